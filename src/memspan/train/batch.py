"""Questions -> `TrainBatch`: what one training step reads, as tokens, and which document each question needs.

Contexts and documents are written by the functions that serve (`PromptTemplate`, `RoundProtocol`, `split_document`), so
that a model is asked as it was trained.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch

from memspan.config import MSAConfig
from memspan.text.packing import PackedContexts, pack_contexts
from memspan.text.parts import split_document
from memspan.text.rounds import RoundProtocol
from memspan.text.template import Context, Passage, PromptTemplate, encoded_text, part_text
from memspan.train.counterfactual import Altered, alter
from memspan.types import Document, Span

if TYPE_CHECKING:
    from memspan.text.questions import Question

_LEAST_DAYS, _MOST_DAYS = 30, 3000
IGNORED = -100
"""The label of a token that is not learned."""

ResponseKind = Literal["answer", "latent", "generate"]


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
        anchors: token ids of texts on which the model is to stay what its backbone is (`memspan.train.anchor`).
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

    @property
    def num_anchor_tokens(self) -> int:
        return sum(map(len, self.anchors))

    @cached_property
    def num_routed_questions(self) -> int:
        """Questions with a positive document: those the routing loss counts."""
        return int(self.positives_BN.any(1).sum())

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch with its tensors on a device (documents are moved when they are encoded)."""
        tensors = {name: getattr(self, name).to(device) for name in ("labels_BT", "positives_BN", "candidates_BN")}
        return replace(self, contexts=self.contexts.to(device), **tensors)


@dataclass(frozen=True)
class BatchSettings:
    """How questions become batches; checked when built.

    A batch is of one kind, drawn by these shares; what is left of 1 is routing only, without a response.

    Attributes:
        answer: share of batches that answer with documents' texts before the question, masked from the loss.
        latent: share that answer from the compressed memory alone.
        generate: share that learn one step of the round protocol, drawn at random (needs a template with rounds).
        counterfactual: share of questions whose answer is another's, in their documents too, in batches that answer
            (`memspan.train.counterfactual`).
        outdated: share of these beside which, in `answer` batches, stands the document as it was. One of the two, drawn,
            is the older one, and the later is right. Above 0, all texts put before questions have dates.
        negatives: of each question's own, at most.
        num_documents: the least of a batch; `fillers` are drawn until it is reached.
        injected_documents: texts put before a question in an `answer` batch, gold and distractors, at most.
        max_document_tokens: longer documents are cut as serving splits them, to their first part. Default: the model's.
        max_context_tokens: longer contexts lose distractors, then their response.
        max_id: ids are drawn below a bound that is itself drawn, up to this: small memories have small ids.
        drop_answering: a document that holds one of a question's answers, but is none of its positives, is no negative.
        no_answer: what is answered where there is none.
        anchors: texts on which the model is to stay what its backbone is, at most: plain documents of the batch, and
            questions in the template with one before them; see `memspan.train.anchor`.
        anchor_tokens: of each document, from its beginning.
        anchor_questions: whether questions are among them: where answers are learned they would hold these back.
    """

    answer: float = 0.0
    latent: float = 0.0
    generate: float = 0.0
    counterfactual: float = 0.0
    outdated: float = 0.0
    negatives: int = 1
    num_documents: int = 0
    injected_documents: int = 5
    max_document_tokens: int | None = None
    max_context_tokens: int = 2048
    max_id: int = 1_000_000
    drop_answering: bool = True
    no_answer: str = "The notes do not say."
    anchors: int = 0
    anchor_tokens: int = 96
    anchor_questions: bool = True

    def __post_init__(self) -> None:
        shares = (self.answer, self.latent, self.generate)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"answer, latent and generate are shares that sum to at most 1, not {shares}")
        for name in ("counterfactual", "outdated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, not {getattr(self, name)}")
        if self.outdated > 0 and (self.counterfactual == 0 or self.injected_documents < 2):
            raise ValueError("outdated documents are of counterfactual questions, and need 2 injected_documents")
        for name, least in (
            ("negatives", 0),
            ("num_documents", 0),
            ("injected_documents", 1),
            ("max_id", 1),
            ("anchors", 0),
            ("anchor_tokens", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.max_document_tokens is not None and self.max_document_tokens < 1:
            raise ValueError(f"max_document_tokens must be at least 1, not {self.max_document_tokens}")


@dataclass(frozen=True)
class _Sample:
    """A question's context with its response, what of it is learned, and the documents whose texts stand in it."""

    context: Context
    learned: tuple[Span, ...] = ()
    read: frozenset[str] = frozenset()


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
        altered = Altered([*questions])
        if settings.counterfactual > 0 and kind in ("answer", "latent"):
            altered = alter(questions, settings.counterfactual, settings.outdated if kind == "answer" else 0.0, rng)
            questions = altered.questions
            documents = altered.documents(documents)
            ids = dict(zip(documents, _with_further(list(ids.values()), len(documents), rng), strict=True))
        texts = {name: self.part(document) for name, document in documents.items()}
        wrong = {name: _whole_words(answers) for name, answers in altered.wrong.items()}
        writer = _SampleWriter(self._template, self._protocol, settings, ids, texts, wrong, altered.outdated)
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
        """Plain texts, and every other time a question asked in the template with a text before it, and answered."""
        settings, template = self._settings, self._template
        anchors = []
        for place, text in enumerate(rng.sample(list(texts.values()), min(settings.anchors, len(texts)))):
            ids = template.tokens("{text}", text=text)[: settings.anchor_tokens]
            if place % 2 and settings.anchor_questions:
                question = rng.choice(questions)
                passage = Passage(rng.randint(1, settings.max_id), template.text(ids))
                answer = template.answer(question.answers[0] if question.answers else settings.no_answer)
                ids = [*template.context(question.question, [passage]).ids, *answer]
            anchors.append(tuple(ids))
        return tuple(anchors)

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
        samples: Sequence[_Sample],
        documents: Mapping[str, Document],
        texts: Mapping[str, str],
        wrong: Mapping[str, list[re.Pattern[str]]],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`positives_BN` and `candidates_BN`. A text that stands in the context already is neither."""
        positives_BN = torch.zeros(len(questions), len(documents), dtype=torch.bool)
        candidates_BN = torch.ones_like(positives_BN)
        folded = {name: text.casefold() for name, text in texts.items()}
        for row, (question, sample) in enumerate(zip(questions, samples, strict=True)):
            positives = {document.external_id for document in question.positives}
            answers = [
                *(_telling_answers(question) if self._settings.drop_answering else ()),
                *wrong.get(question.id, ()),
            ]
            for column, name in enumerate(documents):
                if name in sample.read:
                    candidates_BN[row, column] = False
                elif name in positives:
                    positives_BN[row, column] = True
                elif any(answer.search(folded[name]) for answer in answers):
                    candidates_BN[row, column] = False
        return positives_BN, candidates_BN


class _SampleWriter:
    """Writes questions of one batch as contexts."""

    def __init__(
        self,
        template: PromptTemplate,
        protocol: RoundProtocol | None,
        settings: BatchSettings,
        ids: Mapping[str, int],
        texts: Mapping[str, str],
        wrong: Mapping[str, list[re.Pattern[str]]],
        outdated: Mapping[str, Document],
    ) -> None:
        """
        Args:
            wrong: patterns by question of what no other document that it reads may hold (in folded case).
            outdated: documents by question that are read with it, as the older ones.
        """
        self._template, self._protocol, self._settings = template, protocol, settings
        self._ids, self._texts, self._wrong, self._outdated = ids, texts, wrong, outdated

    def sample(self, question: Question, kind: ResponseKind | None, rng: random.Random) -> _Sample:
        if kind == "generate":
            written = self._step(question, rng)
        elif kind is None or (question.type == "pair" and not question.answers):
            written = None
        else:
            written = self._answered(question, rng, 0 if kind == "latent" else self._settings.injected_documents)
        if written is not None and len(written.context.ids) <= self._settings.max_context_tokens:
            return written
        context = self._template.context(question.question)
        end = min(context.routes.end, context.routes.start + self._settings.max_context_tokens)
        # Nothing behind what routes can change a score (attention is causal).
        return _Sample(Context(context.ids[:end], Span(context.routes.start, end)))

    def _answered(self, question: Question, rng: random.Random, num_injected: int) -> _Sample:
        """The answer, after the texts of gold documents and distractors in the order that serving reads them in."""
        gold = list(question.positives)
        if not _needs_all(question) and gold:
            gold = [rng.choice(gold)]
        outdated = self._outdated.get(question.id)
        needed = [document.external_id for document in (*gold, *([outdated] if outdated else []))][:num_injected]
        others = {*needed, *(document.external_id for document in question.positives)}
        wrong = self._wrong.get(question.id, ())
        distractors = [
            name
            for name, text in self._texts.items()
            if name not in others and not any(answer.search(text.casefold()) for answer in wrong)
        ]
        num_distractors = min(rng.randint(0, max(0, num_injected - len(needed))), len(distractors))
        chosen = [*needed, *rng.sample(distractors, num_distractors)]
        dates = {document.external_id: document.date or "" for document in question.positives + question.negatives}
        if self._settings.outdated > 0:
            drawn = dict(zip(chosen, _days(len(chosen), rng), strict=True))
            if outdated:
                # The first is the question's own document, the second contradicts it.
                drawn[needed[1]], drawn[needed[0]] = sorted((drawn[needed[0]], drawn[needed[1]]))
            dates = {name: day if outdated else dates.get(name) or day for name, day in drawn.items()}
        answer = self._template.answer(question.answers[0] if question.answers else self._settings.no_answer)
        while True:
            ordered = sorted(chosen, key=lambda name: (dates.get(name, ""), self._ids[name]))
            context = self._template.context(question.question, [self._passage(name, dates) for name in ordered])
            if len(chosen) <= len(needed) or len(context.ids) + len(answer) <= self._settings.max_context_tokens:
                break
            chosen.pop()
        whole = Context((*context.ids, *answer), context.routes, context.silent)
        learned = Span(len(context.ids), len(whole.ids))
        return _Sample(whole, (learned,), frozenset(chosen))

    def _step(self, question: Question, rng: random.Random) -> _Sample:
        """One step of the round protocol, drawn at random."""
        assert self._protocol is not None, "checked when the collator was built"
        names = [document.external_id for document in question.positives]
        hops = [[name] for name in names] if question.type in ("multi", "yesno") else [names] if names else []
        dates = {document.external_id: document.date or "" for document in question.positives}
        answer = question.answers[0] if question.answers else self._settings.no_answer
        passages = [[self._passage(name, dates) for name in hop] for hop in hops]
        samples = self._protocol.samples(question.question, passages, answer)
        drawn = rng.randrange(len(samples))
        read = frozenset(name for hop in hops[:drawn] for name in hop)
        return _Sample(samples[drawn].transcript.context(), samples[drawn].learned, read)

    def _passage(self, name: str, dates: Mapping[str, str]) -> Passage:
        return Passage(self._ids[name], self._texts[name], dates.get(name, ""))


def _telling_answers(question: Question) -> list[re.Pattern[str]]:
    """Patterns of the answers that would make a document that holds one a false negative."""
    return [] if question.type in ("yesno", "pair", "unanswerable") else _whole_words(question.answers)


def _whole_words(answers: Sequence[str]) -> list[re.Pattern[str]]:
    """Patterns of answers that are long enough to tell something, for text in folded case."""
    return [re.compile(rf"(?<!\w){re.escape(answer.casefold())}(?!\w)") for answer in answers if len(answer) > 2]


def _with_further(ids: Sequence[int], number: int, rng: random.Random) -> list[int]:
    """So many distinct ids: the first of those given, and others as they are missing."""
    missing = number - len(ids)
    if missing <= 0:
        return list(ids[:number])
    drawn = rng.sample(range(1, max(max(ids), number) + 1), number)
    return [*ids, *[further for further in drawn if further not in ids][:missing]]


def _days(number: int, rng: random.Random) -> list[str]:
    """Distinct days in any order, between weeks and years apart."""
    span = round(_LEAST_DAYS * (_MOST_DAYS / _LEAST_DAYS) ** rng.random())
    first = rng.randrange(date(2000, 1, 1).toordinal(), date(2030, 1, 1).toordinal())
    return [date.fromordinal(first + day).isoformat() for day in rng.sample(range(span), number)]


def _needs_all(question: Question) -> bool:
    return question.type in ("multi", "yesno", "all")


def _labels(packed: PackedContexts, samples: Sequence[_Sample]) -> torch.Tensor:
    labels_BT = torch.full_like(packed.ids, IGNORED)
    T = packed.ids.shape[1]
    for row, sample in enumerate(samples):
        pad = T - len(sample.context.ids)
        for span in sample.learned:
            learned = slice(pad + span.start, pad + span.end)
            labels_BT[row, learned] = packed.ids[row, learned]
    return labels_BT
