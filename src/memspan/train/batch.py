"""Questions -> `TrainBatch`: what one training step reads, as tokens, and which document each question needs.

Contexts and documents are written by the functions that serve (`PromptTemplate`, `RoundProtocol`, `split_document`), so
that a model is asked as it was trained.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from memspan.config import MSAConfig
from memspan.text.packing import PackedContexts, pack_contexts
from memspan.text.parts import split_document
from memspan.text.questions import UNDATED, Question
from memspan.text.rounds import RoundProtocol
from memspan.text.splitter import sentence_bounds
from memspan.text.template import Passage, PromptTemplate, encoded_text, part_text
from memspan.train.batch_settings import BatchSettings
from memspan.train.counterfactual import CounterfactualBatch, alter
from memspan.train.data.matching import telling_words
from memspan.train.samples import ResponseKind, SampleWriter, TrainingSample, drawn_days
from memspan.types import Document

IGNORED = -100
"""The label of a token that is not learned."""


@dataclass(frozen=True)
class TrainBatch:
    """B questions over N documents, each document once.

    Attributes:
        documents: token ids of each document in its template, as it is encoded.
        document_names: `external_id` of each.
        document_ids: the integer ids written into them, distinct.
        document_texts: what of each is encoded, without the template (for a teacher).
        questions: the bare questions (for a teacher).
        contexts: the active contexts with their responses, left-padded.
        labels_BT: aligned with `contexts.ids` as in transformers: the token's own id where it is learned (it is
            predicted from the position before), `IGNORED` elsewhere.
        positives_BN: the documents a question needs and has not read yet; none: it does not count as one that routes.
        candidates_BN: False where a document is neither positive nor negative for a question. Covers `positives_BN`.
        anchors: token ids of texts on which the model is to stay what it was (`memspan.train.anchor`).
    """

    documents: tuple[tuple[int, ...], ...]
    document_names: tuple[str, ...]
    document_ids: tuple[int, ...]
    document_texts: tuple[str, ...]
    questions: tuple[str, ...]
    contexts: PackedContexts
    labels_BT: torch.Tensor
    positives_BN: torch.Tensor
    candidates_BN: torch.Tensor
    anchors: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        B, N = len(self.questions), len(self.documents)
        shapes = self.positives_BN.shape, self.candidates_BN.shape, self.labels_BT.shape
        if shapes != ((B, N), (B, N), self.contexts.ids.shape) or len(self.contexts.ids) != B:
            raise ValueError(f"a batch of {B} questions over {N} documents has tensors of the shapes {shapes}")
        if len(set(self.document_ids)) != N or len(self.document_names) != N or len(self.document_texts) != N:
            raise ValueError("every document of a batch needs a name, a text and an id that no other has")
        if bool((self.positives_BN & ~self.candidates_BN).any()):
            raise ValueError("a positive document must be a candidate of its question")

    @cached_property
    def num_label_tokens(self) -> int:
        """Tokens that are learned."""
        return int((self.labels_BT != IGNORED).sum())

    @cached_property
    def num_routed_questions(self) -> int:
        """Questions with a positive document: those the routing loss counts."""
        return int(self.positives_BN.any(1).sum())

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch with its tensors on a device (documents are moved when they are encoded)."""
        tensors = {name: getattr(self, name).to(device) for name in ("labels_BT", "positives_BN", "candidates_BN")}
        return replace(self, contexts=self.contexts.to(device), **tensors)


class Collator:
    """Makes batches. Everything random comes from the `rng` of the call, so a batch can be made again.

    Raises:
        MemspanError: `generate` batches are asked for, and the template has no rounds.
        ValueError: `max_document_tokens` is more than the model's; or `counterfactual` documents are to have given ids.
    """

    def __init__(
        self,
        template: PromptTemplate,
        config: MSAConfig,
        settings: BatchSettings,
        *,
        fillers: Sequence[Document] = (),
        document_ids: Mapping[str, int] | None = None,
    ) -> None:
        """
        Args:
            fillers: further documents to draw negatives from.
            document_ids: ids by `external_id` that are not to be drawn (`FrozenMemory.ids`); covers every document.
        """
        self._template, self._config, self._settings = template, config, settings
        self._fillers, self._given_ids = fillers, document_ids
        self._protocol = RoundProtocol(template) if settings.generate > 0 else None
        self._document_tokens = settings.max_document_tokens or config.max_document_tokens
        if self._document_tokens > config.max_document_tokens:
            raise ValueError(
                f"max_document_tokens {self._document_tokens} is more than the model's {config.max_document_tokens}: "
                "serving would split such documents"
            )
        if settings.counterfactual > 0 and document_ids is not None:
            raise ValueError("counterfactual documents are new in every batch, and have no ids given: set it to 0")

    def __call__(self, questions: Sequence[Question], rng: random.Random) -> TrainBatch:
        """A batch of questions, with their documents.

        Raises:
            ValueError: there are no questions, or no documents.
        """
        settings = self._settings
        documents = self._documents(questions, rng)
        if not questions or not documents:
            raise ValueError("a batch needs questions and documents")
        ids = self._draw_ids(list(documents), rng)
        kinds: tuple[ResponseKind | None, ...] = ("answer", "latent", "generate", None)
        shares = (settings.answer, settings.latent, settings.generate)
        kind = rng.choices(kinds, (*shares, max(0.0, 1 - sum(shares))))[0]
        altered = CounterfactualBatch([*questions])
        if settings.counterfactual > 0 and kind in ("answer", "latent"):
            altered = alter(questions, settings.counterfactual, settings.outdated if kind == "answer" else 0.0, rng)
            questions = altered.questions
            documents = altered.documents(documents)
            ids = dict(zip(documents, _with_further(list(ids.values()), len(documents), rng), strict=True))
        texts = {name: self.part(document) for name, document in documents.items()}
        wrong = {name: telling_words(answers) for name, answers in altered.wrong.items()}
        outdated = {name: document.external_id for name, document in altered.outdated.items()}
        dates = {name: document.date or UNDATED for name, document in documents.items()}
        writer = SampleWriter(self._template, self._protocol, settings, ids, texts, dates, wrong, outdated)
        samples = [writer.sample(question, kind, rng) for question in questions]
        packed = pack_contexts([sample.context for sample in samples], self._config.offset)
        positives_BN, candidates_BN = self._relevance(questions, samples, documents, texts, wrong)
        return TrainBatch(
            documents=tuple(tuple(self._template.document(ids[name], text)) for name, text in texts.items()),
            document_names=tuple(documents),
            document_ids=tuple(ids[name] for name in documents),
            document_texts=tuple(texts.values()),
            questions=tuple(question.question for question in questions),
            contexts=packed,
            labels_BT=_labels(packed, samples),
            positives_BN=positives_BN,
            candidates_BN=candidates_BN,
            anchors=self._anchors(questions, texts, rng),
        )

    def _anchors(
        self, questions: Sequence[Question], texts: Mapping[str, str], rng: random.Random
    ) -> tuple[tuple[int, ...], ...]:
        """Plain texts, and every other time a request in the template, with texts before it and what is written."""
        settings, template = self._settings, self._template
        wanted = {self._asked: settings.anchor_questions, self._summarized: settings.anchor_summaries}
        requests = [request for request, among in wanted.items() if among]
        anchors = []
        for place, text in enumerate(rng.sample(list(texts.values()), min(settings.anchors, len(texts)))):
            ids = template.tokens("{text}", text=text)[: settings.anchor_tokens]
            if place % 2 and requests:
                ids = requests[place // 2 % len(requests)](questions, template.text(ids), list(texts.values()), rng)
            anchors.append(tuple(ids))
        return tuple(anchors)

    def _asked(self, questions: Sequence[Question], text: str, texts: Sequence[str], rng: random.Random) -> list[int]:
        """One of the questions with a text before it, answered."""
        question = rng.choice(questions)
        passage = Passage(rng.randint(1, self._settings.max_id), text, UNDATED)
        answer = self._template.answer(question.answers[0] if question.answers else self._settings.no_answer)
        return [*self._template.context(question.question, [passage]).ids, *answer]

    def _summarized(
        self, questions: Sequence[Question], text: str, texts: Sequence[str], rng: random.Random
    ) -> list[int]:
        """A text and another one, summed up by the first sentence of the former."""
        other = self._template.tokens("{text}", text=rng.choice(texts))[: self._settings.anchor_tokens]
        read = zip((text, self._template.text(other)), drawn_days(2, rng), strict=True)
        passages = [Passage(rng.randint(1, self._settings.max_id), said, day) for said, day in read]
        start, end = next(iter(sentence_bounds(text)), (0, len(text)))
        return [*self._template.summary_request(passages).ids, *self._template.answer(text[start:end].strip())]

    def part(self, document: Document) -> str:
        """What of a document is encoded: its first part, where it is too long for one."""
        text = encoded_text(document.title, document.text)
        # A text of fewer bytes than tokens would have is short enough, whatever the tokenizer.
        if len(self._template.document(self._settings.max_id, text)) <= self._document_tokens:
            return text
        return part_text(document, split_document(document, self._template, self._document_tokens)[0])

    def _documents(self, questions: Sequence[Question], rng: random.Random) -> dict[str, Document]:
        """The documents of a batch by name, in order: positives and some negatives of every question, fillers."""
        found: dict[str, Document] = {}
        for question in questions:
            num_negatives = min(self._settings.negatives, len(question.negatives))
            for document in (*question.positives, *rng.sample(question.negatives, num_negatives)):
                found.setdefault(document.external_id, document)
        lacking = self._settings.num_documents - len(found)
        if lacking > 0 and self._fillers:
            # Some of those drawn are in the batch already.
            drawn = rng.sample(range(len(self._fillers)), min(len(self._fillers), lacking + len(found)))
            for index in drawn:
                if len(found) == self._settings.num_documents:
                    break
                found.setdefault(self._fillers[index].external_id, self._fillers[index])
        return found

    def _draw_ids(self, names: Sequence[str], rng: random.Random) -> dict[str, int]:
        """Distinct ids, below a bound that is drawn too: of a small memory or of a large one."""
        if self._given_ids is not None:
            return {name: self._given_ids[name] for name in names}
        least = 2 * len(names)
        bound = max(least, round(least * (self._settings.max_id / least) ** rng.random()))
        return dict(zip(names, rng.sample(range(1, bound + 1), len(names)), strict=True))

    def _relevance(
        self,
        questions: Sequence[Question],
        samples: Sequence[TrainingSample],
        documents: Mapping[str, Document],
        texts: Mapping[str, str],
        wrong: Mapping[str, re.Pattern[str]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`positives_BN` and `candidates_BN`. A text that stands in the context already is neither."""
        positives_BN = torch.zeros(len(questions), len(documents), dtype=torch.bool)
        candidates_BN = torch.ones_like(positives_BN)
        folded = {name: text.casefold() for name, text in texts.items()}
        for row, (question, sample) in enumerate(zip(questions, samples, strict=True)):
            positives = {document.external_id for document in question.positives}
            answers = [wrong[question.id]] if question.id in wrong else []
            # A document that holds the answer would be a false negative.
            if self._settings.drop_answering and question.type not in ("yesno", "pair", "unanswerable"):
                answers.append(telling_words(question.answers))
            for column, name in enumerate(documents):
                if name in sample.read:
                    candidates_BN[row, column] = False
                elif name in positives:
                    positives_BN[row, column] = True
                elif any(answer.search(folded[name]) for answer in answers):
                    candidates_BN[row, column] = False
        return positives_BN, candidates_BN


def _with_further(ids: Sequence[int], number: int, rng: random.Random) -> list[int]:
    """So many distinct ids: the first of those given, and others as they are missing."""
    missing = number - len(ids)
    if missing <= 0:
        return list(ids[:number])
    drawn = rng.sample(range(1, max(max(ids), number) + 1), number)
    return [*ids, *[further for further in drawn if further not in ids][:missing]]


def _labels(packed: PackedContexts, samples: Sequence[TrainingSample]) -> torch.Tensor:
    labels_BT = torch.full_like(packed.ids, IGNORED)
    T = packed.ids.shape[1]
    for row, sample in enumerate(samples):
        pad = T - len(sample.context.ids)
        for span in sample.learned:
            learned = slice(pad + span.start, pad + span.end)
            labels_BT[row, learned] = packed.ids[row, learned]
    return labels_BT
