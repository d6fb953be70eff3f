"""The round protocol (paper 3.5) of a template: the one place that writes and parses it, for serving and for training.

    system   prefix, question, tail
    model    [3][8]<round end>
    system   [3]. TEXT\n[8]. TEXT\n<round end>
    ...
    model    <retrieval end>
    system   final question
    model    answer

The model names documents by their permanent ids; the system puts in their original text. The parser reads what the
model wrote and nothing else, and no text of a user becomes a marker (see `memspan.text.template`), so neither a
document nor a question can speak for the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from memspan.errors import MemspanError
from memspan.text.template import Context, Passage, PromptTemplate
from memspan.types import Span, Turn

RouteTokens = Literal["all", "newest"]
ROUTE_TOKENS: tuple[str, ...] = ("all", "newest")

_ID_FORM = "[{id}]"
# Eighteen digits fit the bank's 64-bit ids; no id has leading zeros.
_ID = re.compile(r"\[([1-9][0-9]{0,17})\]")


@dataclass(frozen=True, slots=True)
class ParsedRound:
    """What the model wrote in one round, parsed.

    Attributes:
        ids: the documents named, each once, in order.
        repeated: ids named again.
        malformed: runs of other characters; after the end of retrieval, ids count as such too.
        end: "round" (read these), "retrieval" (enough), or "" where neither marker was written.
    """

    ids: tuple[int, ...]
    repeated: int
    malformed: int
    end: Literal["round", "retrieval", ""]


@dataclass(frozen=True, slots=True)
class _Segment:
    kind: Literal["prefix", "question", "system", "model", "texts"]
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transcript:
    """The active context of a question as its rounds go on. Immutable; `RoundProtocol` adds to it."""

    segments: tuple[_Segment, ...]

    def __len__(self) -> int:
        """Tokens."""
        return sum(len(segment.ids) for segment in self.segments)

    def context(self, route_tokens: RouteTokens = "all") -> Context:
        """The context to run. The question routes, and of the texts put in all, or the newest alone.

        What the model wrote, the template's tail and the final question do not route.
        """
        texts = [place for place, segment in enumerate(self.segments) if segment.kind == "texts"]
        question = [place for place, segment in enumerate(self.segments) if segment.kind == "question"]
        routing = {*question, *(texts if route_tokens == "all" else texts[-1:])}
        ids, silent, end = [], [], 0
        for place, segment in enumerate(self.segments):
            start = len(ids)
            ids += segment.ids
            if place in routing:
                end = len(ids)
            elif place and segment.ids:
                silent.append(Span(start, len(ids)))
        prefix = len(self.segments[0].ids)
        return Context(tuple(ids), Span(prefix, end), tuple(span for span in silent if span.end <= end))

    def add(self, kind: Literal["system", "model", "texts"], ids: Sequence[int]) -> Transcript:
        return replace(self, segments=(*self.segments, _Segment(kind, tuple(ids))))


@dataclass(frozen=True, slots=True)
class RetrievalStep:
    """One retrieval step as a training sample (paper 3.3).

    Attributes:
        transcript: everything, in order.
        learned: what the model is to write; all else is the prompt, or was put in, and is masked from the loss.
    """

    transcript: Transcript
    learned: tuple[Span, ...]


class RoundProtocol:
    """The round protocol of a template.

    Raises:
        MemspanError: the template has no markers of rounds.
    """

    def __init__(self, template: PromptTemplate) -> None:
        spec = template.spec
        if not (spec.round_end and spec.retrieval_end and _ID_FORM in spec.document_prefix):
            raise MemspanError(
                f"the template {spec.name!r} of this model has no markers for rounds in which the model names "
                "documents; choose router or another selector, or convert with --template msa"
            )
        self.template, self.spec = template, spec
        self.round_end = tuple(template.tokens(spec.round_end))
        self.retrieval_end = tuple(template.tokens(spec.retrieval_end))

    def start(self, question: str, history: Sequence[Turn] = ()) -> Transcript:
        """The question alone, behind what was said before: the first round's context."""
        context = self.template.context(question, history=history)
        prefix, end = context.routes.start, context.routes.end
        start = context.silent[0].end if context.silent else prefix
        segments = [_Segment("prefix", context.ids[:prefix])]
        if start > prefix:
            segments.append(_Segment("system", context.ids[prefix:start]))
        return Transcript(
            (*segments, _Segment("question", context.ids[start:end]), _Segment("system", context.ids[end:]))
        )

    def naming(self, document_ids: Sequence[int]) -> list[int]:
        """What the model writes to read these documents."""
        return self.template.tokens(f"{{ids}}{self.spec.round_end}", ids="".join(map(id_text, document_ids)))

    def texts(self, passages: Sequence[Passage]) -> list[int]:
        """What the system puts in for them."""
        return self.template.tokens(f"{{texts}}{self.spec.round_end}", texts=self.template.passages(passages))

    def final(self, question: str) -> list[int]:
        """What the system puts in when the model has read enough, before the answer."""
        return self.template.tokens(self.spec.final_question, question=question)

    def text(self, ids: Sequence[int]) -> str:
        """What the model wrote, its markers included."""
        return str(self.template.tokenizer.decode(list(ids), skip_special_tokens=False))

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the model has closed a round, or retrieval."""
        text = self.text(ids)
        return self.spec.round_end in text or self.spec.retrieval_end in text

    def parse(self, written: str) -> ParsedRound:
        """Read what the model wrote in a round, up to the first marker. Nothing raises."""
        places = {"round": written.find(self.spec.round_end), "retrieval": written.find(self.spec.retrieval_end)}
        found = sorted((place, name) for name, place in places.items() if place >= 0)
        end = found[0][1] if found else ""
        pieces = _ID.split(written[: found[0][0]] if found else written)
        malformed = sum(bool(piece.strip()) for piece in pieces[::2])
        named = [int(piece) for piece in pieces[1::2]]
        if end == "retrieval":  # who has read enough names nothing more
            return ParsedRound((), 0, malformed + len(named), "retrieval")
        distinct = tuple(dict.fromkeys(named))
        return ParsedRound(distinct, len(named) - len(distinct), malformed, "round" if end else "")

    def samples(self, question: str, hops: Sequence[Sequence[Passage]], answer: str) -> list[RetrievalStep]:
        """A retrieval chain as one training sample per step.

        The first step sees the query alone, each further one the query with the documents of the hops before, and is
        to name those of its own hop; the last has them all, and is to end retrieval and write the answer. Ids named
        in earlier steps are context: each is learned once, in the step that routes as serving does there.

        Args:
            hops: the documents of each retrieval step, in order; may be empty.
        """
        samples, transcript = [], self.start(question)
        for passages in hops:
            written = transcript.add("model", self.naming([passage.document_id for passage in passages]))
            samples.append(RetrievalStep(written, (Span(len(transcript), len(written)),)))
            transcript = written.add("texts", self.texts(passages))
        enough = transcript.add("model", self.retrieval_end)
        asked = enough.add("system", self.final(question))
        done = asked.add("model", self.template.answer(answer))
        spans = (Span(len(transcript), len(enough)), Span(len(asked), len(done)))
        return [*samples, RetrievalStep(done, spans)]


def id_text(document_id: int) -> str:
    """A document's id as the model reads and writes it."""
    return _ID_FORM.format(id=document_id)
