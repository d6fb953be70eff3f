"""The latency curve: how long a question waits for its first token, and how fast the others come, as memory grows.

Banks of made-up latents at the model's own shapes stand for documents (`memspan.bank.synthetic`), so that a size can be
measured before there is a corpus of it. A question goes the way of `Memory.ask` with the selector "router": a snapshot
of the bank, a prefill of the question that routes through every MSA layer, the ranking, then the prefill of the
context to answer in, then decoding. Only the text that is put in is always the same.

Not covered: full-text search (made-up documents have no words; `benchmarks/bank.py` measures it); content that must
come from a slow disk (made-up content is holes in files); what decoded tokens say.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.manifest import Manifest
from memspan.bank.scope import EVERYTHING
from memspan.bank.synthetic import disk_bytes, made_up, open_or_write_synthetic, write_synthetic
from memspan.errors import EvaluationError
from memspan.eval.machine import machine
from memspan.eval.plots import Spread, draw_curves
from memspan.events import Done, Event, RoundDone, RoundStarted, TextWritten
from memspan.generate.context import room_for
from memspan.generate.finder import Finder, SearchQuery
from memspan.generate.interleave import Plan, QuestionState
from memspan.generate.sampling import Sampling
from memspan.generate.searched import answering
from memspan.generate.state import RoundState
from memspan.model.convert import LoadedModel
from memspan.model.decoding import prepare
from memspan.ops.pooling import num_chunks
from memspan.routing.ranks import Ranks
from memspan.text.template import Context, Passage
from memspan.types import Answer, LayerRouting, Round

# The size that the largest one is compared with, and how much longer its first token may take.
BASE_TOKENS, MOST_RATIO = 10**6, 2.0
STAGES = ("select", "prefill", "routing", "fetch")
_QUESTION = "Tell me a long story about beekeeper number {number} and her dog."
_SENTENCE = "Note {number}: the beekeeper of house {number} feeds her dog at dawn and counts {number} hives by noon. "
# Chunks written to find out how long making a larger bank takes.
_SAMPLE_CHUNKS = 4096
# Beside the latents: the catalog, and what rounding up to blocks takes.
_DISK_MARGIN = 1.1


@dataclass(frozen=True, slots=True)
class LatencySettings:
    """What is measured; checked when built.

    Attributes:
        sizes: tokens of memory, growing.
        questions: asked of every size, after one that is not counted.
        injected_tokens: of the text that is put in.
        new_tokens: decoded behind the first, at most.
        route_answer: the context to answer in routes too, its text included.
    """

    sizes: tuple[int, ...]
    questions: int = 5
    injected_tokens: int = 256
    new_tokens: int = 32
    route_answer: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            EvaluationError: a number is too small.
        """
        if min(self.questions, self.new_tokens) < 1 or self.injected_tokens < 0:
            raise EvaluationError("--questions and --new-tokens must be at least 1, --injected-tokens at least 0")


@dataclass(frozen=True, slots=True)
class QuestionTimes:
    """One question's times.

    Attributes:
        first_token, first_token_cpu: seconds until the first token, by the wall and of the process.
        stages: `Answer.timings` but for decode, and `other`, what of `first_token` is in none of them.
        pace: tokens per second behind the first; None where the model ended with its first.
    """

    first_token: float
    first_token_cpu: float
    stages: Mapping[str, float]
    pace: float | None


class FixedReading:
    """A `Reading` whose documents are found by routing, but whose text is always the same."""

    def __init__(self, loaded: LoadedModel, finder: Finder, plan: Plan, passages: Sequence[Passage]) -> None:
        self._loaded, self._finder, self._plan, self._passages = loaded, finder, plan, passages

    def round(self, asked: Sequence[QuestionState], number: int) -> Iterator[tuple[QuestionState, Event]]:
        started = time.perf_counter()
        for one in asked:
            yield one, RoundStarted(number, one.question)
        looks = [SearchQuery(one.question, self._loaded.template.context(one.question)) for one in asked]
        found = self._finder.rank("router", looks, self._plan.documents)
        seconds = {"select": time.perf_counter() - started}
        for one, ranked in zip(asked, found, strict=True):
            done = Round(number, "router", one.question, ranked.routed, timings=seconds)
            yield one, RoundDone(one.close_round(self._plan, done, "limit", 0))

    def context(self, asked: QuestionState) -> Context:
        return self._loaded.template.context(asked.question, self._passages)

    def routed(self, asked: QuestionState) -> Sequence[LayerRouting] | None:
        return None if self._plan.route_answer else asked.rounds[-1].routed


class Latency:
    """Asks banks of made-up latents."""

    def __init__(self, loaded: LoadedModel, settings: LatencySettings) -> None:
        """
        Raises:
            EvaluationError: text, question and answer do not fit into the model.
        """
        self._loaded, self._settings = loaded, settings
        self.passages = _passages(loaded, settings.injected_tokens)
        room = room_for(loaded, settings.new_tokens + 1, None)
        self.prompt_tokens = len(loaded.template.context(_QUESTION.format(number=0), self.passages).ids)
        if self.prompt_tokens > room:
            raise EvaluationError(
                f"the prompt would have {self.prompt_tokens} tokens, and the model has room for {room} beside the "
                "answer; give fewer --injected-tokens or --new-tokens"
            )

    def ask(self, bank: MemoryBank, number: int, ranks: Ranks | None = None) -> QuestionTimes:
        """Ask one question; those of different numbers differ in their words. Ranks, if given, all ask it together."""
        loaded, plan = self._loaded, Plan("router", 1, 0, route_answer=self._settings.route_answer)
        started, started_cpu = time.perf_counter(), time.process_time()
        first: tuple[float, float] | None = None
        answer: Answer | None = None
        with bank.snapshot() as snapshot:
            finder, state = Finder(loaded, snapshot, EVERYTHING, ranks), RoundState(loaded)
            reading = FixedReading(loaded, finder, plan, self.passages)
            sampling = Sampling(max_new_tokens=1 + self._settings.new_tokens)
            loop = answering(state, finder, plan, sampling, reading)
            for _, event in loop.run([_QUESTION.format(number=number)]):
                if first is None and (event is None or isinstance(event, TextWritten)):
                    first = time.perf_counter() - started, time.process_time() - started_cpu
                if isinstance(event, Done):
                    answer = event.answer
        assert first is not None and answer is not None, "a question ends with its answer, which has a first token"
        stages = {stage: answer.timings[stage] for stage in STAGES}
        more = answer.num_new_tokens - 1
        pace = more / answer.timings["decode"] if more else None
        return QuestionTimes(*first, {**stages, "other": first[0] - sum(stages.values())}, pace)


def measure_latency(
    loaded: LoadedModel, settings: LatencySettings, folder: Path, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure the curve; banks that are missing in `folder` are made there first, and stay.

    All banks are open together and asked in turn, so that whatever else the machine does falls on all of them.

    Args:
        tell: is given a line about what comes next and how long it takes.

    Returns:
        Figures for JSON: `points` (one for every size), `ratio` (None for a single size), and what was measured.

    Raises:
        EvaluationError: the disk has no room, or the prompt does not fit into the model.
        BankError: the folder holds other banks.
    """
    latency, own = Latency(loaded, settings), manifest_of(loaded)
    prepare(loaded.model)
    manifest = made_up(own)
    tell_cost(folder, manifest, settings.sizes, tell)
    with ExitStack() as stack:
        banks = {
            size: stack.enter_context(closing(made_up_bank(folder, manifest, size, tell))) for size in settings.sizes
        }
        opened = {}
        for size, bank in banks.items():  # the first question reads and checks every key
            opened[size] = latency.ask(bank, 0)
            tell(f"{size:,} tokens: the first question of all took {opened[size].first_token:.1f} s to its first token")
        most = settings.questions * sum(waited.first_token for waited in opened.values())
        tell(f"{settings.questions} questions of {len(banks)} sizes: at most about {most:.0f} s and their decoding")
        asked: dict[int, list[QuestionTimes]] = {size: [] for size in banks}
        for number in range(1, settings.questions + 1):
            for size, bank in banks.items():
                asked[size].append(latency.ask(bank, number))
            tell(f"question {number} of {settings.questions}")
        points = [_point(size, banks[size], opened[size], asked[size]) for size in settings.sizes]
    return {
        "model": {"backbone": own.backbone, "dtype": str(loaded.model.dtype).removeprefix("torch.")},
        "machine": machine(loaded),
        "made_up": True,
        "msa_layers": list(manifest.msa_layers),
        "key_width": manifest.key_width,
        "tokens_per_chunk": manifest.chunk_size,
        "prompt_tokens": latency.prompt_tokens,
        "settings": asdict(settings),
        "points": points,
        "ratio": ratio_of(points),
    }


def made_up_bank(folder: Path, manifest: Manifest, tokens: int, tell: Callable[[str], None]) -> MemoryBank:
    """The bank in `folder` of a manifest of `made_up` that stands for so many tokens; made where it is missing.

    Raises:
        BankError: another bank is in its place.
    """
    chunks = num_chunks(tokens, manifest.chunk_size)
    started = time.monotonic()

    def progress(done: int) -> None:
        if chunks > _SAMPLE_CHUNKS:
            tell(f"{done:,} of {chunks:,} chunks, {time.monotonic() - started:.0f} s")

    return open_or_write_synthetic(bank_folder(folder, manifest, tokens), manifest, chunks, progress=progress)


def bank_folder(folder: Path, manifest: Manifest, tokens: int) -> Path:
    """Where the bank for some shapes and tokens is."""
    layers, width = len(manifest.msa_layers), manifest.key_width
    return folder / f"{layers}x{width}-{tokens}"


def ratio_of(points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How many times as long the largest memory's first token takes as that of 1M tokens (else of the smallest)."""
    if len(points) < 2:
        return None
    *smaller, largest = points
    base = next((point for point in smaller if point["tokens"] == BASE_TOKENS), smaller[0])
    ratio = largest["first_token"]["median"] / base["first_token"]["median"]
    return {"from": base["tokens"], "to": largest["tokens"], "first_token": ratio, "at_most": MOST_RATIO}


def draw_latency(path: Path, figures: Mapping[str, Any]) -> None:
    """Write the curve as a PNG: the time to the first token, and the stages that it consists of.

    Raises:
        EvaluationError: matplotlib is missing.
    """
    points = figures["points"]
    curves = {"first token": [(point["tokens"], Spread(**point["first_token"])) for point in points]}
    for stage in STAGES:
        curves[stage] = [(point["tokens"], Spread(**point["stages"][stage])) for point in points]
    title = f"{figures['model']['backbone']}, {len(figures['msa_layers'])} MSA layers, made-up latents"
    draw_curves(path, curves, across="tokens of memory", up="seconds", title=title)


def _point(size: int, bank: MemoryBank, first: QuestionTimes, asked: Sequence[QuestionTimes]) -> dict[str, Any]:
    counts, paces = bank.catalog.counts(), [waited.pace for waited in asked if waited.pace is not None]
    return {
        "tokens": size,
        "chunks": counts.chunks,
        "documents": counts.documents,
        "segments": counts.segments,
        "first_token": asdict(Spread.of([waited.first_token for waited in asked])),
        "first_token_cpu": asdict(Spread.of([waited.first_token_cpu for waited in asked])),
        "stages": {stage: asdict(Spread.of([x.stages[stage] for x in asked])) for stage in (*STAGES, "other")},
        "decode_tokens_per_second": asdict(Spread.of(paces)) if paces else None,
        "first_question": first.first_token,
    }


def _passages(loaded: LoadedModel, tokens: int) -> list[Passage]:
    """A passage of so many tokens."""
    if not tokens:
        return []
    template, text = loaded.template, ""
    for number in range(tokens):  # a sentence has more than a token
        text += _SENTENCE.format(number=number)
        if template.count_tokens(text) >= tokens:
            break
    return [Passage(1, template.text(template.tokens(text)[:tokens]))]


def tell_cost(folder: Path, manifest: Manifest, sizes: Sequence[int], tell: Callable[[str], None]) -> None:
    """Say what has to be made first, how large it is and how long it takes.

    Raises:
        EvaluationError: the disk has no room for it.
    """
    missing = [size for size in sizes if not MemoryBank.exists(bank_folder(folder, manifest, size))]
    if not missing:
        return
    chunks = sum(num_chunks(size, manifest.chunk_size) for size in missing)
    needed = int(_DISK_MARGIN * disk_bytes(manifest, chunks))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EvaluationError(
            f"banks of {', '.join(f'{size:,}' for size in missing)} tokens take {needed / 1e9:.2f} GB, and {folder} "
            f"has {free / 1e9:.2f} GB free; name another --folder, or leave out the largest of --tokens"
        )
    seconds = _seconds_to_write(folder, manifest, chunks)
    tell(
        f"making {len(missing)} banks of made-up latents in {folder}: {chunks:,} chunks, {needed / 1e9:.2f} GB, "
        f"about {seconds / 60:.1f} minutes; they are kept, and not made again"
    )


def _seconds_to_write(folder: Path, manifest: Manifest, chunks: int) -> float:
    """From the speed of writing a small one; 0 where they are no larger themselves."""
    if chunks <= _SAMPLE_CHUNKS:
        return 0.0
    with TemporaryDirectory(dir=folder) as made:
        started = time.perf_counter()
        write_synthetic(Path(made) / "sample", manifest, _SAMPLE_CHUNKS).close()
        return (time.perf_counter() - started) / _SAMPLE_CHUNKS * chunks
