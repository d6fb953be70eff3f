"""Questions whose documents say something else than the world: the model is to believe what it reads.

A model that knows an answer learns nothing from reading it. With another question's answer in its place, in the
document and as what is to be answered, only reading helps (entity substitution: Longpre et al. 2021, "Entity-Based
Knowledge Conflicts in Question Answering"). Where both documents are read, the later of them is right: a memory is told
first that somebody lives in one city, then that it is another.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from memspan.text.questions import Question, passage
from memspan.text.splitter import sentence_bounds
from memspan.train.data.matching import whole_words
from memspan.types import Document

MAX_WORDS = 6
"""Longer answers are sentences, and fit nowhere else."""


def with_other_answers(questions: Sequence[Question], share: float, rng: random.Random) -> list[Question]:
    """The questions of a batch, a share of them with another's answer, in their documents as well.

    Questions that one document answers are altered where it holds the answer word for word and no other question of
    the batch has it; what takes its place is the answer of another question that looks like it (a number for a
    number, a name for a name) and that neither question nor document hold. Others are left as they are.

    Args:
        share: of the questions that can be altered, the probability that one is.
    """
    used = Counter(found.external_id for question in questions for found in question.positives + question.negatives)
    answers = [question.answers[0] for question in questions if question.answers and question.type == "single"]
    altered = []
    for question in questions:
        # Drawn for every question, so that what is drawn does not depend on which of them can be altered.
        wanted, candidates = rng.random() < share, rng.sample(answers, len(answers))
        shared = any(used[document.external_id] > 1 for document in question.positives)
        other = None if shared or not wanted else _other_answer(question, candidates)
        altered.append(question if other is None else _altered(question, other))
    return altered


@dataclass(frozen=True)
class CounterfactualBatch:
    """A batch's questions, some of whose documents say something else than they did.

    Attributes:
        replaced: what stands in the place of a document, by its former name.
        outdated: by a question's `id`, the document that contradicts its own and is to be read as the older one. It
            belongs to the batch, beside the others.
        wrong: by a question's `id`, answers that were right before it was altered, or are in its outdated document.
    """

    questions: list[Question]
    replaced: dict[str, Document] = field(default_factory=dict)
    outdated: dict[str, Document] = field(default_factory=dict)
    wrong: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def documents(self, documents: Mapping[str, Document]) -> dict[str, Document]:
        """A batch's documents by name, as they are now; those that are `outdated` come last."""
        current = [self.replaced.get(name, document) for name, document in documents.items()]
        return {document.external_id: document for document in (*current, *self.outdated.values())}


def alter(questions: Sequence[Question], share: float, outdated: float, rng: random.Random) -> CounterfactualBatch:
    """`with_other_answers`, and what follows from it for the batch.

    Args:
        share: of the questions that can be altered, the probability that one is.
        outdated: of the altered ones, the probability that the document as it was is read as well (of alternatives,
            another one, in other words). Which of the two is the older one is drawn: in half of the cases the question
            is as it was. Each of them is shortened to what answers the question in half of the cases.
    """
    result = CounterfactualBatch(with_other_answers(questions, share, rng))
    for place, (before, after) in enumerate(zip(questions, list(result.questions), strict=True)):
        if after is before:
            continue
        asked, other, replaced = after, before, before.positives
        if outdated > 0 and rng.random() < outdated:
            pair = (before, after) if rng.random() < 0.5 else (after, before)
            # Of alternatives, which say the same in other words, two different ones.
            places = rng.sample(range(len(replaced)), 2) if len(replaced) > 1 else (0, 0)
            pair = (replace(one, positives=(one.positives[place],)) for one, place in zip(pair, places, strict=True))
            asked, other = (_shortened(one) if rng.random() < 0.5 else one for one in pair)
            result.outdated[asked.id] = other.positives[0]
            replaced = (replaced[places[0]],)
        result.replaced.update((old.external_id, new) for old, new in zip(replaced, asked.positives, strict=True))
        result.questions[place] = asked
        result.wrong[asked.id] = other.answers
    return result


def _shortened(question: Question) -> Question:
    """A question whose documents are but the sentences that hold its answers, so that no two look alike."""
    own = whole_words(question.answers)
    positives = []
    for found in question.positives:
        sentences = [found.text[start:end] for start, end in sentence_bounds(found.text)]
        # Notes of two sentences are short enough, and one of them may say who speaks.
        text = "".join(sentence for sentence in sentences if own.search(sentence)).strip() if len(sentences) > 2 else ""
        positives.append(replace(passage("", text), date=found.date) if text else found)
    return replace(question, positives=tuple(positives))


def _other_answer(question: Question, candidates: Sequence[str]) -> str | None:
    """The first answer that can stand in the place of the question's own."""
    if question.type != "single" or not question.positives or not question.answers:
        return None
    own = whole_words(question.answers)
    if any(len(answer.split()) > MAX_WORDS for answer in question.answers) or own.search(question.question):
        return None
    if not all(own.search(document.text) for document in question.positives):
        return None
    said = " ".join((question.question, *(f"{found.title} {found.text}" for found in question.positives))).casefold()
    for other in candidates:
        short = len(other.split()) <= MAX_WORDS
        if short and other.casefold() not in said and _form(other) == _form(question.answers[0]):
            return other
    return None


def _altered(question: Question, answer: str) -> Question:
    own = whole_words(question.answers)
    positives = tuple(
        replace(passage(own.sub(lambda _: answer, found.title), own.sub(lambda _: answer, found.text)), date=found.date)
        for found in question.positives
    )
    return replace(question, answers=(answer,), positives=positives)


def _form(answer: str) -> tuple[bool, bool, bool]:
    """What an answer looks like: with digits, with a capital, of more than three words."""
    return any(map(str.isdigit, answer)), answer[:1].isupper(), len(answer.split()) > 3
