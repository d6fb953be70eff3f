"""What the command shows: plain lines, or one JSON value with `--json`. Results on stdout, the rest on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from memspan.places import quoted
from memspan.types import AddReport, Answer, Citation, Evidence, LayerRouting, Round

if TYPE_CHECKING:
    from memspan.bank.texts import TextBank
    from memspan.generate.summarize import Source, Summary
    from memspan.text.corpus import Skipped


class _PlainConsole(Console):
    """A console that shows text as it is, but for control characters: documents must not steer a terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(_CONTROL.sub("", x) if isinstance(x, str) else x for x in objects), **options)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BREAKING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

out = _PlainConsole(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = _PlainConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

_PLAIN_EVERY_TOKENS = 20_000
_SENTENCE_LENGTH = 60


def as_json(value: Any) -> None:
    """Print a value (dataclasses included) as JSON on stdout, in ASCII where stdout is not in a form of Unicode."""
    in_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=not in_unicode) + "\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return value


def fields(values: Mapping[str, Any]) -> None:
    """Print names and values, a line each."""
    width = max(map(len, values))
    for name, value in values.items():
        out.print(f"{name:<{width}}  {value}")


def show(values: Mapping[str, Any], json_wanted: bool) -> None:
    """Print names and values, as JSON or a line each."""
    (as_json if json_wanted else fields)(values)


def one_line(text: object) -> str:
    """A name in a line of many: line ends, tabs and other control characters are written as Python's escapes."""
    return _BREAKING.sub(lambda found: repr(found[0])[1:-1], str(text))


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not out.is_terminal:
        for row in rows:
            out.file.write("\t".join(map(one_line, row)) + "\n")  # print would turn tabs into blanks
        return
    shown = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*map(one_line, row))
    out.print(shown)


def report(done: AddReport, skipped: Sequence[Skipped], bank: TextBank, json_wanted: bool) -> None:
    """What an `add`, a `reencode` or an `update` did."""
    if json_wanted:
        as_json({**dataclasses.asdict(done), "skipped": skipped, "bank": bank.catalog.counts()})
        return
    name_skipped(skipped)
    ended = "stopped" if done.interrupted else "done"
    counts = f"{done.added} added, {done.updated} updated, {done.unchanged} unchanged, {len(skipped)} skipped"
    out.print(f"{ended}: {counts}")
    if done.documents:
        rate = done.tokens / done.seconds if done.seconds else 0.0
        work = f"{counted(done.documents, 'document')}, {counted(done.tokens, 'token')}"
        out.print(f"encoded {work} in {done.seconds:.1f} s ({rate:,.0f} tokens/s)")
    pending_note(done.pending, bank)


def name_skipped(skipped: Iterable[Skipped]) -> None:
    """Name each file that could not be read, with the reason."""
    for found in skipped:
        err.print(one_line(f"skipped {found.source}: {found.reason}"))


def pending_note(pending: int, bank: TextBank) -> None:
    """Say that documents are not encoded yet, if any are."""
    if pending:
        are = f"{counted(pending, 'document')} {'is' if pending == 1 else 'are'}"
        command = f"memspan encode {quoted(bank.place)}"
        err.print(f"note: {are} not encoded yet and found by words only; encode the rest with: {command}")


def answer_footer(answer: Answer) -> None:
    """What an answer rests on, sentence by sentence, evidence and timings under it."""
    if not answer.answered:
        out.print(f"  no answer: {'the documents do not say it' if answer.evidence else 'nothing was found'}")
    for one in answer.citations:
        out.print(f"  {_citation_line(answer, one)}")
    for place, item in enumerate(answer.evidence, start=1):
        out.print(f"  {evidence_line(place, item)}")
    seconds = ", ".join(f"{stage} {value:.2f} s" for stage, value in answer.timings.items())
    received = f"; {size(answer.received_bytes)} from other ranks" if answer.received_bytes else ""
    tokens = f"{answer.num_prompt_tokens} + {answer.num_new_tokens} tokens"
    pending = f"; {counted(answer.pending, 'document')} not encoded yet: found by words only" if answer.pending else ""
    wrote = f"; written by {answer.answerer}" if answer.answerer else ""
    removed = f"; {answer.removed_citations} citations without support left out" if answer.removed_citations else ""
    out.print(f"  selector {answer.selector}{wrote}; {tokens}; {seconds}{received}{removed}{pending}")


def _citation_line(answer: Answer, one: Citation) -> str:
    """A sentence of an answer, shortened, and where its words stand."""
    sentence = " ".join(answer.text[one.span.start : one.span.end].split())
    shown = sentence if len(sentence) <= _SENTENCE_LENGTH else f"{sentence[: _SENTENCE_LENGTH - 1]}…"
    if one.source is None:
        return f"“{shown}” no document that was read says so"
    page = "" if one.page is None else f", page {one.page}"
    return f"“{shown}” [{one.evidence}] {one.external_id}[{one.source.start}:{one.source.end}]{page}"


def trace(answer: Answer) -> None:
    """What was looked up before an answer, round by round, and the latents it was written with."""
    for found in answer.rounds:
        out.print(f"  round {found.number}, by {found.selector}: {found.query}")
        _routing(found.routed)
        if found.written:
            out.print(f"    the model wrote {found.written}")
        for place, item in enumerate(found.chosen, start=1):
            out.print(f"    read {evidence_line(place, item)}")
        out.print(f"    {_round_counts(found)}")
    out.print("  answered with the latents of")
    _routing(answer.routed)


def _routing(layers: Iterable[LayerRouting]) -> None:
    for found in layers:
        pairs = zip(found.document_ids, found.scores, strict=True)
        out.print(f"    layer {found.layer}: " + ", ".join(f"[{number}] {score:.3f}" for number, score in pairs))


def _round_counts(found: Round) -> str:
    """The last line of a round: why it is over, tokens, what went wrong, milliseconds."""
    reasons = {
        "more": "looks further",
        "enough": "enough was read",
        "nothing": "nothing new was found",
        "room": "there is no room for more",
        "limit": "a limit was reached",
    }
    counts = {name: getattr(found, name) for name in ("malformed", "unknown", "repeated", "left_out")}
    wrong = "".join(f"; {number} {name.replace('_', ' ')}" for name, number in counts.items() if number)
    stages = ", ".join(f"{stage} {1000 * value:.0f} ms" for stage, value in found.timings.items())
    tokens = f"{found.num_written_tokens} tokens written, {found.num_injected_tokens} put in"
    return f"{reasons[found.ended]}; {tokens}{wrong}; {stages}"


def summary(found: Summary) -> None:
    """Statements with their documents, and what was read."""
    for one in found.statements:
        out.print(one.text)
        out.print(f"  {'; '.join(map(_cited, one.sources))}  ({one.support:.0%} of its words)")
    out.print(
        f"{counted(found.num_documents, 'document')} read, {found.num_cited} of them cited; "
        f"{counted(found.num_unsupported, 'statement')} left out that no document supports"
    )


def _cited(source: Source) -> str:
    from memspan.text.paging import page_label

    pages = f" ({page_label(source.pages)})" if source.pages else ""
    return f"[{source.document_id}] {one_line(source.title or source.external_id)}{pages}"


def evidence_line(place: int, item: Evidence) -> str:
    """One document of the evidence: place, permanent id, title, where it is from, score."""
    from memspan.text.paging import page_label

    routed = "" if item.layers is None else f", {item.layers} MSA layers"
    title = one_line(item.title or " ".join(item.text[:60].split()))
    where = f"{one_line(item.external_id)}[{item.span.start}:{item.span.end}]"
    pages = f", {page_label(item.pages)}" if item.pages else ""
    return f"{place}. [{item.document_id}] {title}  ({where}{pages}, {item.date[:10]}, score {item.score:.2f}{routed})"


class AddProgress:
    """Texts, then documents and tokens per second and time left: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total_characters: Callable[[], float | None] = lambda: None) -> None:
        """
        Args:
            total_characters: of the texts, asked at every report; None: unknown.
        """
        self._total = total_characters
        self._bar: Progress | None = None
        self._next_line = self._next_texts = _PLAIN_EVERY_TOKENS
        self._encoding_from: float | None = None

    def __enter__(self) -> AddProgress:
        if err.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=err)
            self._task = self._bar.add_task("reading", total=None)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, report: AddReport) -> None:
        if report.pending and self._encoding_from is None:
            self._encoding_from = report.seconds
        seconds = report.seconds - (self._encoding_from or 0.0)
        rate = report.tokens / seconds if seconds else 0.0
        texts = report.added + report.updated + report.unchanged
        encoding = f"{counted(report.documents, 'document')}, {rate:,.0f} tokens/s"
        text = encoding if report.documents else counted(texts, "text")
        done, total = self._done_of(report)
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, description=text)
        elif report.tokens >= self._next_line:
            self._next_line = report.tokens + _PLAIN_EVERY_TOKENS
            err.print(text + (f", {seconds * (total - done) / done:.0f} s left" if total and done else ""))
        elif not report.documents and texts >= self._next_texts:
            self._next_texts = texts + _PLAIN_EVERY_TOKENS
            err.print(text)

    def _done_of(self, report: AddReport) -> tuple[float, float | None]:
        """How much is done of how much: documents while texts that are in the bank are encoded, else characters."""
        if self._encoding_from is None:
            return report.characters, self._total()
        return report.documents, report.documents + report.pending


class CountProgress:
    """How many of how many are done: a bar on a terminal, nothing elsewhere."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=err, disable=not err.is_terminal)
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> CountProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)


def counted(number: int, what: str) -> str:
    """A number of things for people."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def size(num_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
