"""What a user could take instead, on the same machine in one run: time for a question against the size of the memory.

    python benchmarks/compare.py [--tokens 16k,128k,1m,10m] [--questions 3] [--limit-seconds 60] [--folder DIR]
                                 [--model DIR] [--adapter NAME] [--json FILE] [--png FILE]

Memories of made-up latents at the model's shapes (`memspan bench latency` makes and keeps them too). The same router
queries look for the same 16 documents of every MSA layer (a document counts by its best chunk and best query token):

    memspan         routing as served: 8 bits over every chunk, the best documents re-scored exactly, ranked
    literal         the formula head by head, as the released code writes it (benchmarks/route.py), in bfloat16
    faiss exact     FAISS IndexFlatIP over the grouped keys, float32: every query token's nearest chunks, as many as
                    hold the best 16 documents for certain, then the best by document
    faiss 8 bit     the same with an IndexScalarQuantizer (QT_8bit); nothing is re-scored

and two ways to a first token, by the same model:

    memspan, first token    as `memspan bench latency` measures it: routing twice, fetching, prefill of a fixed text
    whole memory            transformers reads as many tokens as the memory stands for as plain context

What each counts is in the figures under `counts`. Sides are run in turn, a layer at a time, each once before it is
timed; times are summed over the layers. The last two run in a process without FAISS, whose threads would slow the
model down. A side that takes longer than `--limit-seconds` for a question is not run with larger memories.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from keys import TOP_K, LayerKeys, layer_keys, questions
from plots import parse_options, write_figures
from route import literal

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.manifest import Manifest
from memspan.bank.snapshot import Snapshot
from memspan.bank.synthetic import made_up
from memspan.bench.device import plain_backbone
from memspan.bench.latency import Latency, LatencySettings, made_up_bank, tell_cost
from memspan.eval.plots import Spread, draw_curves, spread
from memspan.eval.scale import parse_sizes
from memspan.model.convert import LoadedModel, load
from memspan.ops.scoring import document_scores, fold_queries, top_documents
from memspan.routing.local import LocalMemory
from memspan.stages import StageClock

FIRST_TOKEN, CONTEXT = "memspan, first token", "whole memory"
SMALLEST_CONTEXT = 1024
COUNTS = {
    "memspan": "query folded, coarse pass, exact re-scoring, top 16 of every layer; fetching K and V is told apart",
    "literal": "scores of every chunk, head by head, and the top 16 documents; keys lie in memory, heads scaled",
    "faiss exact": "search and the best by document; building the index (copying float32 keys) is told apart",
    "faiss 8 bit": "as faiss exact; building includes training the quantizer",
    FIRST_TOKEN: "choosing by the router, and prefill of question and text with routing and fetching; not decoding",
    CONTEXT: "one forward over all tokens and the question, no cached prefix; past the model's positions, too",
}


class Side(Protocol):
    """A way to find a layer's best documents.

    Attributes:
        fetched: seconds that the last call took to fetch content, which others do not do.
    """

    fetched: float

    def find(self, number: int) -> list[int]:
        """The ids of the best TOP_K documents of a question, best first."""
        ...


class Served:
    """memspan, a layer of it. A question's layers share what is prefetched."""

    def __init__(self, memories: Sequence[LocalMemory], layer: int, query_Q1THD: torch.Tensor) -> None:
        self.fetched = 0.0
        self._memories, self._layer, self._query_Q1THD = memories, layer, query_Q1THD
        self._mask_1T = torch.ones(1, query_Q1THD.shape[2], dtype=torch.bool)

    def find(self, number: int) -> list[int]:
        clock = StageClock()
        with clock.stage("routing"):
            found = self._memories[number].route(self._layer, self._query_Q1THD[number], self._mask_1T)
        self.fetched = clock.seconds["fetch"]
        return list(found.doc_ids[0])


class Literal:
    """The formula head by head over keys `[G, C, D]`, for cosine similarity."""

    fetched = 0.0

    def __init__(self, keys: LayerKeys, query_QTHD: torch.Tensor, num_kv_heads: int) -> None:
        C, W = keys.key_CW.shape
        self._keys = keys
        self._key_GCD = keys.key_CW.view(C, num_kv_heads, W // num_kv_heads).transpose(0, 1).contiguous()
        self._query_QHTD = torch.nn.functional.normalize(query_QTHD, dim=-1).transpose(1, 2).bfloat16()

    def find(self, number: int) -> list[int]:
        return self._keys.best(literal(self._query_QHTD[number], self._key_GCD))


class Faiss:
    """A FAISS index over the grouped keys.

    Every query token asks for as many chunks as TOP_K documents can have: for the token that a document owes its score
    to, only chunks of better documents come before its best chunk.
    """

    fetched = 0.0

    def __init__(self, index: Any, keys: LayerKeys, query_QTW: torch.Tensor) -> None:
        self._index, self._keys, self._query_QTW = index, keys, query_QTW.numpy()
        self._count = min(len(keys.key_CW), TOP_K * keys.most_rows)
        key_CW = keys.key_CW.float().numpy()
        if not index.is_trained:
            index.train(key_CW)
        index.add(key_CW)

    def find(self, number: int) -> list[int]:
        score_TK, chunk_TK = map(torch.from_numpy, self._index.search(self._query_QTW[number], self._count))
        documents_M, owner = torch.unique(self._keys.document_C[chunk_TK.flatten()], return_inverse=True)
        score_M = document_scores(score_TK.flatten()[None], owner, len(documents_M))[0]
        return top_documents(score_M, self._keys.ids_N[documents_M], TOP_K)[0].tolist()


@dataclass(slots=True)
class Times:
    """What a side took for every question, summed over the layers, and how many of the true documents it found."""

    seconds: list[float]
    fetched: list[float] = field(default_factory=list)
    found: int = 0
    wanted: int = 0
    building: float = 0.0

    def add(self, number: int, seconds: float, fetched: float, found: Sequence[int], true: Sequence[int]) -> None:
        self.seconds[number] += seconds - fetched
        self.fetched[number] += fetched
        self.found += len(set(found) & set(true))
        self.wanted += len(true)

    def figures(self) -> dict[str, Any]:
        told: dict[str, Any] = {"seconds": spread(self.seconds)}
        if self.wanted:
            told["found_of_true_top_16"] = round(self.found / self.wanted, 5)
            told["true_documents"] = self.wanted
        if any(self.fetched):
            told["fetching_seconds"] = spread(self.fetched)
        if self.building:
            told["index_building_seconds"] = round(self.building, 3)
        return told


def route_all(
    bank: MemoryBank, snapshot: Snapshot, query_LQ1THD: torch.Tensor, names: Sequence[str]
) -> dict[str, Times]:
    """Every side finds every layer's documents for all questions."""
    manifest, num_questions = snapshot.manifest, query_LQ1THD.shape[1]
    memories = [LocalMemory(snapshot.shards, manifest, TOP_K, tiers=snapshot.tiers) for _ in range(num_questions)]
    times = {name: Times([0.0] * num_questions, [0.0] * num_questions) for name in names}
    for layer, query_Q1THD in zip(manifest.msa_layers, query_LQ1THD, strict=True):
        keys = LayerKeys.joined(layer_keys(bank, layer))
        query_QTW = fold_queries(query_Q1THD[:, 0], manifest.num_kv_heads, manifest.similarity)
        makers = {
            "memspan": partial(Served, memories, layer, query_Q1THD),
            "literal": partial(Literal, keys, query_Q1THD[:, 0], manifest.num_kv_heads),
            "faiss exact": lambda keys=keys, query=query_QTW: Faiss(flat_index(keys), keys, query),
            "faiss 8 bit": lambda keys=keys, query=query_QTW: Faiss(byte_index(keys), keys, query),
        }
        sides: dict[str, Side] = {}
        for name in names:
            started = time.perf_counter()
            sides[name] = makers[name]()
            times[name].building += time.perf_counter() - started if name.startswith("faiss") else 0.0
            sides[name].find(0)
        for number in range(num_questions):
            true = keys.best(keys.exact(query_QTW[number]))
            for name, side in sides.items():
                started = time.perf_counter()
                found = side.find(number)
                times[name].add(number, time.perf_counter() - started, side.fetched, found, true)
    return times


def flat_index(keys: LayerKeys) -> Any:
    return _faiss().IndexFlatIP(keys.key_CW.shape[1])


def byte_index(keys: LayerKeys) -> Any:
    faiss = _faiss()
    eight_bits = faiss.ScalarQuantizer.QT_8bit
    return faiss.IndexScalarQuantizer(keys.key_CW.shape[1], eight_bits, faiss.METRIC_INNER_PRODUCT)


def _faiss() -> Any:
    return importlib.import_module("faiss")  # an extra of its own, and without types


def check_keys(snapshot: Snapshot) -> None:
    """Read and check every key once, as the first question of a process does."""
    for layer in snapshot.manifest.msa_layers:
        for shard in snapshot.shards:
            shard.reader.coarse_keys(layer)
            segment, place = shard.place(0)
            segment.router_rows(layer, place)


def first_tokens(latency: Latency, bank: MemoryBank, count: int) -> Times:
    latency.ask(bank, 0)
    return Times([latency.ask(bank, number + 1).first_token for number in range(count)])


class WholeContext:
    """Reading a memory as plain context."""

    def __init__(self, loaded: LoadedModel, query_tokens: int) -> None:
        self._backbone, self._query_tokens = plain_backbone(loaded), query_tokens
        self._vocab, self._device = loaded.model.config.text_config.vocab_size, loaded.model.device

    @torch.inference_mode()
    def measure(self, tokens: int, repeats: int, limit: float) -> Times:
        """Read so many tokens and a question; once only where that takes longer than the limit."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self._vocab, (1, tokens + self._query_tokens), generator=generator).to(self._device)
        seconds: list[float] = []
        while len(seconds) < repeats and max(seconds, default=0.0) <= limit:
            started = time.perf_counter()
            int(self._backbone(input_ids=ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
            seconds.append(time.perf_counter() - started)
        return Times(seconds)


Points = dict[str, dict[int, Times]]
"""Side -> tokens of memory -> what was taken."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison: finding documents in a process of its own, then the first tokens in this one.

    FAISS brings its own OpenMP, and threads of one that spin while they wait take the cores from the other. So where it
    runs, waiting threads sleep, which is read from the environment when a process begins; a model's many small
    operations would suffer from that.
    """
    with TemporaryDirectory() as scratch:
        found_by = Path(scratch) / "finding.json"
        command = [sys.executable, __file__, *sys.argv[1:], "--finding", str(found_by)]
        subprocess.run(command, env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, check=True)
        sides = json.loads(found_by.read_text("utf-8"))
    loaded = load(options.model, adapter=options.adapter)
    sizes = sizes_of(options)
    latency = Latency(loaded, LatencySettings(sizes, options.questions))

    def first_token(bank: MemoryBank, running: Sequence[str]) -> dict[str, Times]:
        return {name: first_tokens(latency, bank, options.questions) for name in running}

    found = over_sizes([FIRST_TOKEN], first_token, made_up(manifest_of(loaded)), options)
    found[CONTEXT] = read_whole(loaded, sizes[-1], options)
    return figures_of(loaded, sides | points_of(found), options)


def find(options: argparse.Namespace) -> None:
    """Measure the sides that find documents, and write their figures."""
    torch.set_num_threads(options.threads)
    loaded = load(options.model, adapter=options.adapter)

    def route(bank: MemoryBank, running: Sequence[str]) -> dict[str, Times]:
        with bank.snapshot() as snapshot:
            check_keys(snapshot)
            asked = questions(snapshot, loaded.model.config.num_heads, options.query_tokens, options.questions)
            return route_all(bank, snapshot, asked, running)

    sides = ["memspan", "literal", *faiss_sides(options.threads)]
    found = over_sizes(sides, route, made_up(manifest_of(loaded)), options)
    options.finding.write_text(json.dumps(points_of(found)), "utf-8")


def over_sizes(
    sides: Sequence[str],
    take: Callable[[MemoryBank, Sequence[str]], dict[str, Times]],
    manifest: Manifest,
    options: argparse.Namespace,
) -> Points:
    """Have every size of the memory measured; a side that takes too long is left out of larger ones."""
    found: Points = {}
    sizes, running, rate = sizes_of(options), list(sides), 0.0
    tell_cost(options.folder, manifest, sizes, say)
    for tokens in sizes:
        say(f"{tokens:,} tokens: {', '.join(running)}" + (f"; at most about {rate * tokens:.0f} s" if rate else ""))
        with closing(made_up_bank(options.folder, manifest, tokens, say)) as bank:
            started = time.perf_counter()
            times = take(bank, running)
            rate = (time.perf_counter() - started) / tokens
        for name, taken in times.items():
            found.setdefault(name, {})[tokens] = taken
        for name in [name for name in running if Spread.of(times[name].seconds).median > options.limit_seconds]:
            say(f"{name} is over {options.limit_seconds:g} s a question, and is left out from here on")
            running.remove(name)
    return found


def sizes_of(options: argparse.Namespace) -> tuple[int, ...]:
    return parse_sizes(options.tokens, kilo=1000, least=1, option="--tokens")


def points_of(found: Points) -> dict[str, list[dict[str, Any]]]:
    """A side's figures for every size, as they are written."""
    return {
        name: [{"tokens": tokens, **times.figures()} for tokens, times in points.items()]
        for name, points in found.items()
    }


def read_whole(loaded: LoadedModel, largest: int, options: argparse.Namespace) -> dict[int, Times]:
    """Twice as many tokens each time, until it is too slow."""
    whole, found = WholeContext(loaded, options.query_tokens), dict[int, Times]()
    tokens = SMALLEST_CONTEXT
    while tokens <= max(largest, SMALLEST_CONTEXT):
        slowest = 4 * options.questions * max((max(times.seconds) for times in found.values()), default=0.0)
        say(f"{tokens:,} tokens: {CONTEXT}" + (f"; at most about {slowest:.0f} s" if slowest else ""))
        found[tokens] = whole.measure(tokens, options.questions, options.limit_seconds)
        if max(found[tokens].seconds) > options.limit_seconds:
            break
        tokens *= 2
    return found


def faiss_sides(threads: int) -> list[str]:
    try:
        _faiss().omp_set_num_threads(threads)
    except ImportError:
        say("FAISS is not installed (pip install 'memspan[bench]'), and is left out")
        return []
    return ["faiss exact", "faiss 8 bit"]


def figures_of(
    loaded: LoadedModel, sides: Mapping[str, list[dict[str, Any]]], options: argparse.Namespace
) -> dict[str, Any]:
    manifest = manifest_of(loaded)
    return {
        "model": manifest.backbone,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": options.threads,
        "msa_layers": len(manifest.msa_layers),
        "heads": loaded.model.config.num_heads,
        "key_width": manifest.key_width,
        "query_tokens": options.query_tokens,
        "questions": options.questions,
        "limit_seconds": options.limit_seconds,
        "positions_of_the_model": loaded.model.config.text_config.max_position_embeddings,
        "counts": {name: COUNTS[name] for name in sides},
        "sides": sides,
    }


def draw(path: Path, figures: Mapping[str, Any]) -> None:
    curves = {
        name: [(point["tokens"], Spread(**point["seconds"])) for point in points]
        for name, points in figures["sides"].items()
    }
    title = f"{figures['model']}: routing through {figures['msa_layers']} MSA layers, and whole questions"
    draw_curves(path, curves, across="tokens of memory", up="seconds a question", title=title)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="MSA checkpoint; default: SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", help="default: the default model's own; none: all of the checkpoint's MSA layers")
    parser.add_argument("--tokens", default="16k,128k,1m,10m", help="sizes of the memory")
    parser.add_argument("--query-tokens", type=int, default=32)
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--limit-seconds", type=float, default=60.0, help="of a question")
    parser.add_argument("--folder", type=Path, default=Path("latency-banks"), help="where the made-up banks are kept")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--finding", type=Path, help=argparse.SUPPRESS)
    options = parse_options(parser)
    if options.finding is not None:
        find(options)
        return
    torch.set_num_threads(options.threads)
    figures = measure(options)
    write_figures(options, figures, partial(draw, figures=figures))


if __name__ == "__main__":
    main()
