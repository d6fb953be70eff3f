"""Questions become batches that serving would recognise; every random draw comes from one generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers import tiny_loaded, tiny_model, tiny_tokenizer

from memspan.config import TEMPLATES
from memspan.errors import MemspanError
from memspan.text.questions import Question, passage
from memspan.text.rounds import RoundProtocol
from memspan.text.template import Passage, PromptTemplate
from memspan.train.batch import IGNORED, Collator, TrainBatch
from memspan.train.batch_settings import BatchSettings
from memspan.types import Document

LOADED = tiny_loaded(max_document_tokens=128)
OTTER, FERRY, TIN = (
    passage("Otter", "It lives in Oslo."),
    passage("Ferry", "To Bergen."),
    passage("", "Tin melts early."),
)
NOISE = [passage("", f"Nothing of note, number {index}.") for index in range(30)]


def question(name: str = "q", **changes: object) -> Question:
    values = {
        "question": "Where does the otter live?",
        "answers": ("Oslo",),
        "positives": (OTTER,),
        "negatives": (TIN,),
    }
    return Question(name, **(values | changes))  # type: ignore[arg-type]


def collate(questions: list[Question], seed: int = 0, **settings: object) -> TrainBatch:
    return collator(**settings)(questions, random.Random(seed))


def collator(template: PromptTemplate = LOADED.template, fillers: tuple = (), **settings: object) -> Collator:
    return Collator(template, LOADED.model.config, BatchSettings(**settings), fillers=fillers)  # type: ignore[arg-type]


def names_where(batch: TrainBatch, row: int, what: str) -> set[str]:
    return {n for n, there in zip(batch.document_names, getattr(batch, what)[row].tolist(), strict=True) if there}


def learned_text(batch: TrainBatch, row: int) -> str:
    ids = batch.labels_BT[row]
    return LOADED.template.tokenizer.decode(ids[ids != IGNORED].tolist())


def context_ids(batch: TrainBatch, row: int) -> list[int]:
    return batch.contexts.ids[row][batch.contexts.valid[row]].tolist()


def rounds_template() -> PromptTemplate:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|object_ref_end|>"], special_tokens=True)
    return PromptTemplate(TEMPLATES["msa"], tokenizer)


# --- documents ------------------------------------------------------------------------------------------------------


def test_each_document_is_there_once_and_encoded_as_serving_does() -> None:
    """One question's negative may be another's positive."""
    batch = collate([question(), question("r", positives=(TIN,), negatives=(OTTER, FERRY))], negatives=5)
    assert batch.document_names == tuple(d.external_id for d in (OTTER, TIN, FERRY))
    assert batch.document_texts == ("Otter\nIt lives in Oslo.", "Tin melts early.", "Ferry\nTo Bergen.")
    for ids, number, text in zip(batch.documents, batch.document_ids, batch.document_texts, strict=True):
        assert list(ids) == LOADED.template.document(number, text)
    assert [names_where(batch, row, "positives_BN") for row in range(2)] == [{OTTER.external_id}, {TIN.external_id}]


def test_a_document_that_holds_the_answer_is_no_negative() -> None:
    also = passage("", "OSLO is where otters are.")
    within = passage("", "Osloite is a mineral.")
    asked = question(negatives=(also, within))
    batch = collate([asked], negatives=2)
    assert names_where(batch, 0, "candidates_BN") == {OTTER.external_id, within.external_id}
    assert collate([asked], negatives=2, drop_answering=False).candidates_BN.all()
    assert collate([question(type="yesno", negatives=(also,))]).candidates_BN.all()
    assert batch.num_routed_questions == 1


def test_as_many_negatives_and_documents_as_asked_for() -> None:
    asked = question(negatives=tuple(NOISE[:9]))
    for negatives in (0, 4, 9, 20):
        assert len(collate([asked], negatives=negatives).documents) == 1 + min(negatives, 9)
    filled = collator(fillers=tuple(NOISE), num_documents=20, negatives=4)([asked], random.Random(0))
    assert len(filled.documents) == 20 == len(set(filled.document_names))
    assert len(collator(fillers=tuple(NOISE[:3]), num_documents=20)([asked], random.Random(0)).documents) <= 5


def test_ids_are_drawn_from_small_and_large_memories() -> None:
    asked = question(negatives=tuple(NOISE))
    largest = [max(collate([asked], seed, negatives=9, max_id=10**6).document_ids) for seed in range(60)]
    assert min(largest) < 200 and max(largest) > 100_000 and max(largest) <= 10**6
    given = {document.external_id: index + 5 for index, document in enumerate((OTTER, TIN))}
    kept = Collator(LOADED.template, LOADED.model.config, BatchSettings(), document_ids=given)
    assert kept([question()], random.Random(0)).document_ids == (5, 6)


def test_a_long_document_is_cut_to_the_part_that_serving_would_encode_first() -> None:
    long = Document("long", "The otter swims. " * 60, "Otters")
    batch = collate([question(positives=(long,))], max_document_tokens=64)
    assert len(batch.documents[0]) <= 64
    assert batch.document_texts[0].startswith("Otters\nThe otter swims.")
    assert batch.document_texts[0].rstrip().endswith("swims.")


def test_the_same_generator_gives_the_same_batch() -> None:
    asked = [question(str(index), negatives=tuple(NOISE)) for index in range(4)]
    settings = {"answer": 0.5, "latent": 0.3, "negatives": 3}
    one, same, other = (collate(asked, seed, **settings) for seed in (1, 1, 2))
    assert one.documents == same.documents and one.contexts.ids.equal(same.contexts.ids)
    assert one.document_ids != other.document_ids


# --- contexts and labels --------------------------------------------------------------------------------------------


def test_without_a_response_a_context_is_what_serving_routes_with_and_ends_there() -> None:
    batch = collate([question()])
    served = LOADED.template.context("Where does the otter live?")
    assert context_ids(batch, 0) == list(served.ids[: served.routes.end])
    assert batch.contexts.routes.sum() == served.routes.length and batch.num_label_tokens == 0


def test_an_answer_from_the_latents_follows_the_served_context() -> None:
    batch = collate([question()], latent=1.0)
    served = LOADED.template.context("Where does the otter live?")
    answer = LOADED.template.answer("Oslo")
    assert context_ids(batch, 0) == [*served.ids, *answer]
    assert learned_text(batch, 0) == "Oslo<|im_end|>" and batch.num_label_tokens == len(answer)
    assert not (batch.contexts.routes & (batch.labels_BT != IGNORED)).any()
    assert names_where(batch, 0, "positives_BN") == {OTTER.external_id}


def test_an_answer_from_texts_masks_them_and_does_not_route_to_what_it_has_read() -> None:
    """Texts stand as serving puts them: by date, then by id; gold among them, wherever it comes."""
    asked = question(negatives=tuple(NOISE))
    seen = set()
    for seed in range(12):
        batch = collate([asked], seed, answer=1.0, injected_documents=4, negatives=9)
        read = set(batch.document_names) - names_where(batch, 0, "candidates_BN")
        assert OTTER.external_id in read and 1 <= len(read) <= 4 and batch.num_routed_questions == 0
        ids = dict(zip(batch.document_names, batch.document_ids, strict=True))
        texts = dict(zip(batch.document_names, batch.document_texts, strict=True))
        passages = [Passage(ids[n], texts[n], "2000-01-01") for n in sorted(read, key=lambda name: ids[name])]
        served = LOADED.template.context(asked.question, passages)
        assert context_ids(batch, 0) == [*served.ids, *LOADED.template.answer("Oslo")]
        assert learned_text(batch, 0) == "Oslo<|im_end|>"
        seen.add((len(read), passages.index(next(p for p in passages if p.document_id == ids[OTTER.external_id]))))
    assert len(seen) > 4


def test_a_question_without_an_answer_learns_to_say_so() -> None:
    batch = collate([question(answers=(), positives=(), type="unanswerable")], answer=1.0, no_answer="Unknown.")
    assert learned_text(batch, 0) == "Unknown.<|im_end|>"
    pair = collate([question(answers=(), type="pair")], answer=1.0)
    assert pair.num_label_tokens == 0 and pair.num_routed_questions == 1


@pytest.mark.parametrize("positives", [(OTTER,), (OTTER, FERRY)])
def test_a_question_whose_document_is_not_read_learns_to_say_so(positives: tuple[Document, ...]) -> None:
    two = question(positives=positives, type="multi", negatives=(TIN, passage("", "He is from Oslo, too.")))
    partial = 0
    for seed in range(20):
        settings = {"answer": 1.0, "unanswerable": 1.0, "negatives": 2, "injected_documents": 2}
        batch = collate([two], seed, **settings)
        text = LOADED.template.tokenizer.decode(context_ids(batch, 0))
        read = [found for found in positives if found.text in text]
        assert learned_text(batch, 0).startswith("The notes do not say.")
        assert len(read) < len(positives), "one at least is missing"
        assert "He is from Oslo" not in text, "what is read instead holds no answer"
        assert read or TIN.text in text or FERRY.text in text, "something is read"
        left = {found.external_id for found in positives if found not in read}
        assert names_where(batch, 0, "positives_BN") == left, "they are still to be found"
        partial += bool(read)
    assert (partial > 0) == (len(positives) > 1)


def test_no_question_loses_its_documents_where_none_is_to() -> None:
    batches = [collate([question()], seed, answer=1.0) for seed in range(10)]
    assert all(learned_text(batch, 0).startswith("Oslo") for batch in batches)


def test_steps_of_a_chain_are_those_of_the_round_protocol() -> None:
    """Each step is drawn; what was read before is neither positive nor negative, what is still to find is positive."""
    template = rounds_template()
    protocol = RoundProtocol(template)
    asked = question(type="multi", positives=(OTTER, FERRY), negatives=(TIN,), answers=("Norway",))
    make = collator(template, generate=1.0)
    steps = set()
    for seed in range(20):
        batch = make([asked], random.Random(seed))
        ids = dict(zip(batch.document_names, batch.document_ids, strict=True))
        texts = dict(zip(batch.document_names, batch.document_texts, strict=True))
        hops = [[Passage(ids[d.external_id], texts[d.external_id], "2000-01-01")] for d in (OTTER, FERRY)]
        expected = protocol.samples(asked.question, hops, "Norway")
        found = context_ids(batch, 0)
        step = next(i for i, sample in enumerate(expected) if list(sample.transcript.context().ids) == found)
        steps.add(step)
        spans = [found[span.start : span.end] for span in expected[step].learned]
        labels = batch.labels_BT[0][batch.labels_BT[0] != IGNORED].tolist()
        assert labels == [token for span in spans for token in span]
        unread = {d.external_id for d in (OTTER, FERRY)[step:]}
        assert names_where(batch, 0, "positives_BN") == unread
        assert names_where(batch, 0, "candidates_BN") == unread | {TIN.external_id}
        routes = batch.contexts.routes[0][batch.contexts.valid[0]].tolist()
        context = expected[step].transcript.context()
        silent = {i for span in context.silent for i in range(span.start, span.end)}
        assert routes == [context.routes.start <= i < context.routes.end and i not in silent for i in range(len(found))]
    assert steps == {0, 1, 2}


def test_a_context_that_is_too_long_loses_distractors_then_its_response() -> None:
    long = [passage("", f"number {index} " * 12) for index in range(9)]
    asked = question(negatives=tuple(long))
    short = collate([asked], 3, answer=1.0, injected_documents=8, negatives=9, max_context_tokens=180)
    assert len(context_ids(short, 0)) <= 180 and learned_text(short, 0) == "Oslo<|im_end|>"
    none = collate([asked], 3, answer=1.0, negatives=9, max_context_tokens=20)
    assert none.num_label_tokens == 0 and len(context_ids(none, 0)) <= 20 + len(LOADED.template.prefix_ids)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: BatchSettings(answer=0.7, latent=0.7), ValueError),
        (lambda: BatchSettings(answer=-0.1), ValueError),
        (lambda: BatchSettings(negatives=-1), ValueError),
        (lambda: BatchSettings(max_document_tokens=0), ValueError),
        (lambda: collator(max_document_tokens=129), ValueError),
        (lambda: collator(generate=0.1), MemspanError),
        (lambda: collate([]), ValueError),
        (lambda: collate([question(positives=(), negatives=())]), ValueError),
        (lambda: replace(collate([question()]), document_ids=(1, 1)), ValueError),
    ],
)
def test_what_makes_no_batch_is_refused(wrong: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        wrong()


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = collate([question()], latent=1.0)
    moved = batch.to(tiny_model().device)
    assert moved.labels_BT.equal(batch.labels_BT) and moved.contexts.ids.equal(batch.contexts.ids)
