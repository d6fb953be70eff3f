"""Summaries over a scope: read every document of it in batches that fit, then summarise the summaries.

Every statement names the documents it rests on, found by its words, not by the model's say-so; a statement whose words
stand in none of the documents it was written from is left out and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from memspan.bank.catalog import StoredDocument
from memspan.bank.snapshot import Snapshot
from memspan.errors import QuestionError
from memspan.generate.answerer import Answerer, Message
from memspan.generate.chat import written_by
from memspan.generate.citing import cite, sentences, supports, words_of
from memspan.generate.decode import Decoding, context_room
from memspan.generate.finder import Finder
from memspan.generate.prompts import document_block, estimated_tokens, room_of, summary_messages
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.text.packing import length_batches
from memspan.text.splitter import sentence_ends, split_text
from memspan.text.template import Context, Passage, shown_passage
from memspan.text.terms import content_words

MAX_STATEMENTS = 10
BATCH_TOKENS = 512
_MIN_WORDS = 3  # fewer are a heading, which says nothing
_DECODE_TOKENS = 8192  # of prompts decoded together


@dataclass(frozen=True, slots=True)
class SummaryPlan:
    """How to summarise; checked when built.

    Attributes:
        about: what is wanted of the documents; empty: everything.
        max_statements: of the summary.
        batch_tokens: of the texts that are read together, at most.
        sampling: how to write; `max_new_tokens` is that of one batch's summary.
    """

    about: str = ""
    max_statements: int = MAX_STATEMENTS
    batch_tokens: int = BATCH_TOKENS
    sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=96))

    def __post_init__(self) -> None:
        for name, least in (("max_statements", 1), ("batch_tokens", 32)):
            if getattr(self, name) < least:
                raise QuestionError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Source:
    """A document that a statement cites."""

    document_id: int
    external_id: str
    title: str
    pages: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence of a summary.

    Attributes:
        sources: the documents that hold its words, the one that holds most of them first.
        support: the share of its words that stand in them.
    """

    text: str
    sources: tuple[Source, ...]
    support: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What the documents of a scope say, and how much of them that is.

    Attributes:
        num_documents: in the scope. All of them were read.
        num_cited: of them, those that a statement of this summary cites.
        num_batches: texts read together.
        num_unsupported: statements left out because no document holds their words, or because they are headings.
        num_prompt_tokens, num_new_tokens: that the model read and wrote, over all levels.
        levels: summaries of summaries; 0 where the first statements were few enough.
    """

    statements: tuple[Statement, ...]
    num_documents: int
    num_cited: int
    num_batches: int
    num_unsupported: int
    num_prompt_tokens: int
    num_new_tokens: int
    levels: int
    seconds: float = field(compare=False, default=0.0)


@dataclass(slots=True)
class _Counts:
    unsupported: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """Texts that are read together, and the documents their statements may cite."""

    passages: tuple[Passage, ...]
    document_ids: tuple[int, ...]


class Summarizer:
    """Summarises the documents of one snapshot that are in a finder's scope."""

    def __init__(
        self,
        loaded: LoadedModel,
        snapshot: Snapshot,
        finder: Finder,
        plan: SummaryPlan,
        progress: Callable[[int, int], None] = lambda done, total: None,
        answerer: Answerer | None = None,
    ) -> None:
        """
        Args:
            progress: called with the number of documents read so far, and the number of all.
            answerer: another model that writes; None: the memory model.

        Raises:
            QuestionError: the model has no room for a batch of this size beside what it writes.
            TypeError: the plan is something else.
        """
        if not isinstance(plan, SummaryPlan):
            raise TypeError(f"plan is a SummaryPlan, as SummaryPlan(about='the bees'), not {plan!r}")
        self._loaded, self._snapshot, self._finder, self._plan, self._progress = (
            loaded,
            snapshot,
            finder,
            plan,
            progress,
        )
        self._counts, self._answerer = _Counts(), answerer
        if answerer is None:
            overhead, room = len(self._context(()).ids), context_room(loaded, plan.sampling.max_new_tokens)
        else:
            overhead = estimated_tokens(summary_messages((), plan.about))
            room = room_of(answerer, plan.sampling)
        self._room = min(plan.batch_tokens, room - overhead)
        if self._room < 1:
            raise QuestionError(
                f"summaries of {plan.sampling.max_new_tokens} tokens and a request of {overhead} leave this model no "
                "room to read; ask for fewer max_new_tokens, or for less with `about`"
            )

    def run(self) -> Summary:
        """Read everything, and sum it up until few enough statements are left."""
        started = time.perf_counter()
        ids = self._finder.ids()
        batches = list(self._batches(ids))
        statements = _distinct(self._read(batches, len(ids)))
        levels = 0
        while len(statements) > self._plan.max_statements:
            statements = self._condense(statements)
            levels += 1
        return Summary(
            statements=tuple(statements),
            num_documents=len(ids),
            num_cited=len(_cited_documents(statements)),
            num_batches=len(batches),
            num_unsupported=self._counts.unsupported,
            num_prompt_tokens=self._counts.prompt_tokens,
            num_new_tokens=self._counts.new_tokens,
            levels=levels,
            seconds=time.perf_counter() - started,
        )

    def _batches(self, ids: Sequence[int]) -> Iterator[_Batch]:
        """Documents in the order they were added, as many at a time as fit; what is too long by itself in parts."""
        waiting: list[Passage] = []
        tokens = 0
        for passage in self._passages(ids):
            cost = self._cost(passage)
            if waiting and tokens + cost > self._room:
                yield _batch(waiting)
                waiting, tokens = [], 0
            waiting.append(passage)
            tokens += cost
        if waiting:
            yield _batch(waiting)

    def _passages(self, ids: Sequence[int]) -> Iterator[Passage]:
        count = self._loaded.template.count_tokens
        for document in self._stored(ids):
            whole = _passage(document)
            if self._cost(whole) <= self._room:
                yield whole
                continue
            overhead = self._cost(replace(whole, text=""))
            for span in split_text(whole.text, count, max(1, self._room - overhead)):
                yield replace(whole, text=whole.text[span.start : span.end])

    def _stored(self, ids: Sequence[int]) -> Iterator[StoredDocument]:
        page = 256
        for start in range(0, len(ids), page):
            yield from self._finder.documents(ids[start : start + page])

    def _cost(self, passage: Passage) -> int:
        if self._answerer is not None:
            return estimated_tokens([Message("user", document_block(passage.document_id, passage.text))])
        return self._loaded.template.count_tokens(self._loaded.template.passages([passage]))

    def _read(self, batches: Sequence[_Batch], num_documents: int) -> list[Statement]:
        """The statements of every batch, in order of the batches."""
        found: dict[int, list[Statement]] = {}
        read: set[int] = set()
        for place, text in self._written([batch.passages for batch in batches]):
            found[place] = self._cited(text, batches[place].document_ids)
            read.update(batches[place].document_ids)
            self._progress(len(read), num_documents)
        return [statement for place in range(len(batches)) for statement in found[place]]

    def _condense(self, statements: Sequence[Statement]) -> list[Statement]:
        """Fewer statements: every group of them that fits is summed up. Never none, never as many."""
        groups = self._groups(statements)
        passages = [[Passage(place, one.text) for place, one in enumerate(group, 1)] for group in groups]
        condensed: list[Statement] = []
        texts = dict(self._written(passages))
        for place, group in enumerate(groups):
            documents = tuple(_cited_documents(group))
            new = _distinct(self._cited(texts[place], documents))[: len(group) // 2]
            # What the model drops the documents of, or can't shorten, is picked from instead.
            enough = 2 * len(_cited_documents(new)) >= len(documents)
            condensed += new if enough else _pick(group, len(group) // 2)
        return _distinct(condensed)

    def _groups(self, statements: Sequence[Statement]) -> list[list[Statement]]:
        """Neighbors that fit into one context; two at least, or nothing would become shorter."""
        groups: list[list[Statement]] = [[]]
        tokens = 0
        for place, one in enumerate(statements, 1):
            cost = self._cost(Passage(place, one.text))
            if len(groups[-1]) >= 2 and tokens + cost > self._room:
                groups.append([])
                tokens = 0
            groups[-1].append(one)
            tokens += cost
        if len(groups) > 1 and len(groups[-1]) == 1:
            groups[-2] += groups.pop()
        return groups

    def _context(self, passages: Sequence[Passage]) -> Context:
        return self._loaded.template.summary_request(passages, self._plan.about)

    def _written(self, batches: Sequence[Sequence[Passage]]) -> Iterator[tuple[int, str]]:
        """What is written of every batch, with its place; those of like length together."""
        if self._answerer is not None:
            yield from self._written_by(self._answerer, batches)
            return
        contexts = [self._context(passages) for passages in batches]
        for together in length_batches([len(context.ids) for context in contexts], _DECODE_TOKENS):
            yield from zip(together, self._write([contexts[place] for place in together]), strict=True)

    def _written_by(self, answerer: Answerer, batches: Sequence[Sequence[Passage]]) -> Iterator[tuple[int, str]]:
        """The same by another model."""
        asked = [summary_messages(passages, self._plan.about) for passages in batches]
        for place, reply in written_by(answerer, asked, self._plan.sampling):
            self._counts.prompt_tokens += reply.num_prompt_tokens
            self._counts.new_tokens += reply.num_new_tokens
            yield place, reply.text if reply.finish_reason != "length" else _whole_sentences(reply.text)

    def _write(self, contexts: Sequence[Context]) -> list[str]:
        decoding = Decoding(self._loaded, contexts, None, self._plan.sampling)
        for _ in decoding.run():
            pass
        self._counts.prompt_tokens += sum(len(context.ids) for context in contexts)
        self._counts.new_tokens += sum(len(row.ids) for row in decoding.rows)
        return [row.text if row.finish_reason != "length" else _whole_sentences(row.text) for row in decoding.rows]

    def _cited(self, text: str, document_ids: Sequence[int]) -> list[Statement]:
        """The statements of a text that the documents support, with those that do."""
        documents = list(self._stored(document_ids))
        words = [words_of(document.title, document.text, document.date) for document in documents]
        statements = []
        for sentence in sentences(text):
            places, support = cite(sentence, words)
            held = supports(support, sentence, [words[place] for place in places])
            if not held or len(content_words(sentence)) < _MIN_WORDS:
                self._counts.unsupported += 1
                continue
            cited = (documents[place] for place in places)
            sources = tuple(Source(one.id, one.external_id, one.title, one.pages) for one in cited)
            statements.append(Statement(sentence, sources, support))
        return statements


def _whole_sentences(text: str) -> str:
    """A text cut off by the limit of tokens, without the sentence it stopped in; all of it, if that is the first."""
    last = max(sentence_ends(text), default=0)
    return text[:last] or text


def _distinct(statements: Iterable[Statement]) -> list[Statement]:
    """Each statement once; what says the same in the same words counts with the first one's sources."""
    kept: dict[tuple[str, ...], Statement] = {}
    for one in statements:
        kept.setdefault(tuple(content_words(one.text)), one)
    return list(kept.values())


def _cited_documents(statements: Iterable[Statement]) -> dict[int, None]:
    return dict.fromkeys(source.document_id for one in statements for source in one.sources)


def _pick(statements: Sequence[Statement], count: int) -> list[Statement]:
    """So many of the statements, in order: each time the one that cites most documents that none cites yet."""
    picked: list[int] = []
    cited: set[int] = set()
    while len(picked) < count:
        left = [place for place in range(len(statements)) if place not in picked]
        best = max(left, key=lambda place: (len(_cited_documents([statements[place]]).keys() - cited), -place))
        picked.append(best)
        cited.update(_cited_documents([statements[best]]))
    return [statements[place] for place in sorted(picked)]


def _passage(document: StoredDocument) -> Passage:
    return shown_passage(document.id, document.title, document.text, document.date)


def _batch(passages: Sequence[Passage]) -> _Batch:
    return _Batch(tuple(passages), tuple(dict.fromkeys(passage.document_id for passage in passages)))
