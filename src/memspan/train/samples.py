"""One question of a batch as a context: which texts stand before it, on which days, and what of it is learned."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from memspan.text.questions import UNDATED, Question
from memspan.text.rounds import RoundProtocol
from memspan.text.template import Context, Passage, PromptTemplate
from memspan.train.batch_settings import BatchSettings
from memspan.train.data.matching import telling_words
from memspan.types import Span

ResponseKind = Literal["answer", "latent", "generate"]

_LEAST_DAYS, _MOST_DAYS = 30, 3000


@dataclass(frozen=True)
class TrainingSample:
    """A question's context with its response, what of it is learned, and the documents whose texts stand in it."""

    context: Context
    learned: tuple[Span, ...] = ()
    read: frozenset[str] = frozenset()


class SampleWriter:
    """Writes questions of one batch as contexts."""

    def __init__(
        self,
        template: PromptTemplate,
        protocol: RoundProtocol | None,
        settings: BatchSettings,
        ids: Mapping[str, int],
        texts: Mapping[str, str],
        dates: Mapping[str, str],
        wrong: Mapping[str, re.Pattern[str]],
        outdated: Mapping[str, str],
    ) -> None:
        """
        Args:
            ids, texts, dates: of every document of the batch, by name. Undated ones have all the same date (`UNDATED`)
                or, where some are outdated, a day of their own in every context: what a question needs must not be told
                from the rest by its date.
            wrong: by question, what no other document that it reads may hold (in folded case).
            outdated: by question, the document that is read with it as the older one.
        """
        self._template, self._protocol, self._settings = template, protocol, settings
        self._ids, self._texts, self._dates, self._wrong, self._outdated = ids, texts, dates, wrong, outdated

    def sample(self, question: Question, kind: ResponseKind | None, rng: random.Random) -> TrainingSample:
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
        return TrainingSample(Context(context.ids[:end], Span(context.routes.start, end)))

    def _answered(self, question: Question, rng: random.Random, num_injected: int) -> TrainingSample:
        """The answer, after the texts of gold documents and distractors in the order that serving reads them in."""
        gold = list(question.positives)
        if not question.needs_all and gold:
            gold = [rng.choice(gold)]
        outdated = self._outdated.get(question.id)
        needed = [*(document.external_id for document in gold), *([outdated] if outdated else [])][:num_injected]
        others = {*needed, *(document.external_id for document in question.positives)}
        wrong = self._wrong.get(question.id)
        answer = question.answers[0] if question.answers else self._settings.no_answer
        unanswerable = self._settings.unanswerable
        if unanswerable and num_injected and not outdated and rng.random() < unanswerable:
            needed, answer = needed[: rng.randrange(max(1, len(needed)))], self._settings.no_answer
            wrong = telling_words(question.answers)
        distractors = [
            name
            for name, text in self._texts.items()
            if name not in others and not (wrong and wrong.search(text.casefold()))
        ]
        least = min(num_injected, int(not needed))  # where no document of the question is read, another one is
        num_distractors = min(rng.randint(least, max(least, num_injected - len(needed))), len(distractors))
        chosen = [*needed, *rng.sample(distractors, num_distractors)]
        dates = self._dates
        if self._settings.outdated > 0:
            drawn = dict(zip(chosen, drawn_days(len(chosen), rng), strict=True))
            if outdated:
                # The first is the question's own document, the second contradicts it.
                drawn[needed[1]], drawn[needed[0]] = sorted((drawn[needed[0]], drawn[needed[1]]))
            dates = {name: day if outdated else self._dated(name, day) for name, day in drawn.items()}
        learned_ids = self._template.answer(answer)
        while True:
            ordered = sorted(chosen, key=lambda name: (dates[name], self._ids[name]))
            context = self._template.context(question.question, [self._passage(name, dates) for name in ordered])
            if len(chosen) <= len(needed) or len(context.ids) + len(learned_ids) <= self._settings.max_context_tokens:
                break
            chosen.pop()
        whole = Context((*context.ids, *learned_ids), context.routes, context.silent)
        learned = Span(len(context.ids), len(whole.ids))
        return TrainingSample(whole, (learned,), frozenset(chosen))

    def _step(self, question: Question, rng: random.Random) -> TrainingSample:
        """One step of the round protocol, drawn at random."""
        assert self._protocol is not None, "checked when the collator was built"
        names = [document.external_id for document in question.positives]
        hops = [[name] for name in names] if question.type in ("multi", "yesno") else [names] if names else []
        answer = question.answers[0] if question.answers else self._settings.no_answer
        passages = [[self._passage(name, self._dates) for name in hop] for hop in hops]
        samples = self._protocol.samples(question.question, passages, answer)
        drawn = rng.randrange(len(samples))
        read = frozenset(name for hop in hops[:drawn] for name in hop)
        return TrainingSample(samples[drawn].transcript.context(), samples[drawn].learned, read)

    def _dated(self, name: str, day: str) -> str:
        return day if self._dates[name] == UNDATED else self._dates[name]

    def _passage(self, name: str, dates: Mapping[str, str]) -> Passage:
        return Passage(self._ids[name], self._texts[name], dates[name])


def drawn_days(number: int, rng: random.Random) -> list[str]:
    """Distinct days in any order, between weeks and years apart."""
    span = round(_LEAST_DAYS * (_MOST_DAYS / _LEAST_DAYS) ** rng.random())
    first = rng.randrange(date(2000, 1, 1).toordinal(), date(2030, 1, 1).toordinal())
    return [date.fromordinal(first + day).isoformat() for day in rng.sample(range(span), number)]
