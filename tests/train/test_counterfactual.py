"""Documents that say something else than the world: altered whole, or left as they are."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import tiny_loaded

from memspan.text.questions import UNDATED, Question, passage
from memspan.train.batch import Collator, TrainBatch
from memspan.train.batch_settings import BatchSettings
from memspan.train.counterfactual import with_other_answers
from memspan.train.settings import EvaluationSettings
from memspan.train.writing import WritingProgress


def question(name: str, asked: str, answers: tuple[str, ...], *texts: str, **changes: object) -> Question:
    positives = tuple(passage("On " + answers[0], text) for text in texts)
    return Question(name, asked, answers, positives, **changes)  # type: ignore[arg-type]


OSLO = question(
    "oslo", "Where does the otter live?", ("Oslo", "Oslo city"), "In Oslo city. OSLO is its home, not Oslofjord."
)
ROME = question("rome", "Where does the bear live?", ("Rome",), "The bear lives in Rome.")
YEAR = question("year", "When was it?", ("1844",), "It was in 1844.")


def altered(*questions: Question, share: float = 1.0, seed: int = 0) -> list[Question]:
    return with_other_answers(questions, share, random.Random(seed))


def test_every_form_of_an_answer_is_replaced_by_another_questions() -> None:
    first, second, _ = altered(OSLO, ROME, YEAR)
    assert first.answers == ("Rome",)
    (document,) = first.positives
    assert document.title == "On Rome"
    assert document.text == "In Rome. Rome is its home, not Oslofjord."
    assert document.external_id == passage(document.title, document.text).external_id != OSLO.positives[0].external_id
    assert (first.id, first.question) == (OSLO.id, OSLO.question)
    assert second.positives[0].text == "The bear lives in Oslo."


@pytest.mark.parametrize(
    "kept",
    [
        YEAR,  # no other number
        replace(OSLO, type="multi"),
        replace(OSLO, question="Where in Oslo does it live?"),
        replace(OSLO, positives=(passage("", "A town in the north."),)),
        replace(OSLO, positives=(passage("", "Oslo, and not Rome."),)),
        replace(OSLO, answers=("It lives in a house in Oslo, by the sea",)),
        Question("pair", "An otter", (), OSLO.positives, type="pair"),
    ],
    ids=["form", "several", "asked", "not in it", "both in it", "long", "pair"],
)
def test_what_cannot_be_altered_is_left(kept: Question) -> None:
    assert altered(kept, ROME)[0] is kept


def test_a_document_that_two_questions_need_stays() -> None:
    twin = replace(OSLO, id="twin", question="Whose town is it?")
    assert altered(OSLO, twin, ROME)[:2] == [OSLO, twin]


def test_the_share_is_drawn_from_the_generator_alone() -> None:
    assert altered(OSLO, ROME, share=0.0) == [OSLO, ROME]
    runs = [altered(OSLO, ROME, share=0.5, seed=seed) for seed in range(60)]
    assert runs == [altered(OSLO, ROME, share=0.5, seed=seed) for seed in range(60)]
    assert 15 < sum(run[0] is not OSLO for run in runs) < 45


def test_a_batch_asks_by_the_altered_documents() -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    settings = BatchSettings(answer=1.0, counterfactual=1.0, negatives=0)
    batch = Collator(loaded.template, loaded.model.config, settings)([OSLO, ROME], random.Random(0))
    assert sorted(batch.document_texts) == sorted(
        ["On Rome\nIn Rome. Rome is its home, not Oslofjord.", "On Oslo\nThe bear lives in Oslo."]
    )
    plain = Collator(loaded.template, loaded.model.config, replace(settings, counterfactual=0.0))
    assert set(plain([OSLO, ROME], random.Random(0)).document_texts).isdisjoint(batch.document_texts)


def test_what_answered_before_is_no_negative_and_stands_beside_no_altered_document() -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    filler = passage("", "Oslo lies under a glacier.")
    settings = BatchSettings(answer=1.0, counterfactual=1.0, negatives=0, num_documents=3, injected_documents=5)
    collate = Collator(loaded.template, loaded.model.config, settings, fillers=[filler])
    for seed in range(10):
        batch = collate([OSLO, ROME], random.Random(seed))
        place = batch.document_names.index(filler.external_id)
        assert batch.candidates_BN[:, place].tolist() == [False, False]  # ROME's own answer is now Oslo
        own = batch.contexts.ids[0][batch.contexts.valid[0]].tolist()
        assert "glacier" not in loaded.template.tokenizer.decode(own)


def read_by(batch: TrainBatch, row: int) -> str:
    """The context of a question as text, its answer behind it."""
    return tiny_loaded(max_document_tokens=128).template.tokenizer.decode(
        batch.contexts.ids[row][batch.contexts.valid[row]].tolist()
    )


def test_of_two_documents_that_contradict_each_other_the_later_is_right() -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    filler = passage("", "Seals live in the sea.")
    settings = BatchSettings(answer=1.0, counterfactual=1.0, outdated=1.0, negatives=0, num_documents=3)
    collate = Collator(loaded.template, loaded.model.config, settings, fillers=[filler])
    later = Counter[str]()
    for seed in range(40):
        batch = collate([OSLO, ROME], random.Random(seed))
        text = read_by(batch, 1)
        towns = re.findall(r"bear lives in (\w+)\.", text)
        days = re.findall(r"\((\d{4}-\d\d-\d\d)\)", text)
        assert sorted(towns) == ["Oslo", "Rome"]
        assert days == sorted(set(days)) and len(days) == text.count("]. (")
        assert text.rstrip().endswith(towns[1] + "<|im_end|>")
        later[towns[1]] += 1
        # Both stand in the memory with ids of their own, and none of them is a document to be found or not to be found.
        assert len(set(batch.document_names)) == len(batch.document_names) == 5
        assert not batch.positives_BN[1].any()
        told = ["bear" in document for document in batch.document_texts]
        assert sum(told) == 2 and not batch.candidates_BN[1][torch.tensor(told)].any()
    assert min(later["Oslo"], later["Rome"]) > 8


def test_of_alternatives_two_in_different_words_contradict_each_other() -> None:
    """And the others, which say one of both, are neither read beside them nor to be found or not to be found."""
    loaded = tiny_loaded(max_document_tokens=128)
    wordings = ("The bear lives in Rome.", "Rome is the bear's home.", "You find the bear in Rome.")
    told = replace(ROME, positives=tuple(passage("", text) for text in wordings))
    settings = BatchSettings(answer=1.0, counterfactual=1.0, outdated=1.0, negatives=0, injected_documents=5)
    collate = Collator(loaded.template, loaded.model.config, settings)
    seen = set()
    for seed in range(40):
        batch = collate([OSLO, told], random.Random(seed))
        text = read_by(batch, 1).partition("Where does the bear live?")[2]
        before = read_by(batch, 1).partition("Where does the bear live?")[0]
        found = [frame for frame in ("bear lives in", "the bear's home", "find the bear") if frame in before]
        assert len(found) >= 2, before  # a third that says the same as the later one does no harm
        seen |= {frozenset(found)}
        assert {"Oslo" in before, "Rome" in before} == {True} and ("Oslo" in text) != ("Rome" in text)
        about = torch.tensor(["bear" in document for document in batch.document_texts])
        assert int(about.sum()) in (3, 4) and not batch.candidates_BN[1][about].any()
    assert sum(len(pair) == 2 for pair in seen) == 3


@pytest.mark.parametrize("outdated", [0.0, 1.0])
def test_what_a_question_needs_is_not_told_from_the_rest_by_its_date_or_place(outdated: float) -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    share = float(outdated > 0)
    settings = BatchSettings(answer=1.0, counterfactual=share, outdated=outdated, negatives=0, injected_documents=2)
    collate = Collator(loaded.template, loaded.model.config, settings)
    first = Counter[bool]()
    for seed in range(60):
        # No other answer has the form of a year: this question is never altered.
        text = read_by(collate([YEAR, ROME], random.Random(seed)), 0)
        days = re.findall(r"\((\d{4}-\d\d-\d\d)\)", text)
        assert len(days) == text.count("]. (") and (set(days) == {UNDATED}) == (outdated == 0)
        if len(days) == 2:
            first[text.index("1844") < text.index("bear")] += 1
    assert min(first[True], first[False]) > 8


def test_nothing_is_outdated_where_nothing_is_read() -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    settings = BatchSettings(latent=1.0, counterfactual=1.0, outdated=1.0, negatives=0)
    batch = Collator(loaded.template, loaded.model.config, settings)([OSLO, ROME], random.Random(0))
    assert len(batch.documents) == 2


def test_writing_is_measured_on_the_hold_out_as_it_is() -> None:
    loaded = tiny_loaded(max_document_tokens=128)
    settings = EvaluationSettings(generations=2, max_new_tokens=2)
    writing = WritingProgress([OSLO, ROME], (), loaded.template, loaded.model.config, settings)
    plain = BatchSettings(answer=1.0, negatives=0)
    altering = replace(plain, counterfactual=1.0, outdated=1.0)
    assert writing.measure(loaded.model, altering) == writing.measure(loaded.model, plain) != {}


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="outdated"):
        BatchSettings(counterfactual=1.0, outdated=-0.5)
    with pytest.raises(ValueError, match="of counterfactual questions"):
        BatchSettings(outdated=0.5)
    with pytest.raises(ValueError, match="need 2"):
        BatchSettings(counterfactual=0.5, outdated=0.5, injected_documents=1)
    with pytest.raises(ValueError, match="counterfactual"):
        BatchSettings(counterfactual=1.5)
    loaded = tiny_loaded()
    with pytest.raises(ValueError, match="new in every batch"):
        Collator(loaded.template, loaded.model.config, BatchSettings(answer=1.0, counterfactual=0.5), document_ids={})
