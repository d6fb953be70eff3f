"""Routing over a bank of made-up latents: time through all MSA layers, peak memory, agreement with exact scores.

    memspan bench synth BANK --chunks 1562500            # 100M tokens at SmolLM2's shapes; 13.5 GB on disk
    python benchmarks/scale.py BANK [--tokens 32] [--questions 5] [--threads 2] [--memory-budget 4GB]
                               [--json FILE] [--png FILE]

A question is routed through every MSA layer one after the other, as the model does, content of the selected documents
read included. The first question also checks every key's checksum. Peak memory is VmHWM of a process of its own, which
loads no language model. Agreement: the share of the true top 16 documents (scores accumulated in float32 over the
stored bfloat16 keys, every chunk) that routing found, over `--checked` layers and all questions.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from keys import TOP_K, questions, true_top
from plots import parse_options, write_figures

from memspan.bank.bank import MemoryBank
from memspan.bank.synthetic import SHAPES
from memspan.bank.tiers import resident_bytes
from memspan.eval.plots import Spread, draw_bars, spread
from memspan.ops.scoring import fold_queries
from memspan.places import parse_bytes
from memspan.routing.local import LocalMemory


def peak_bytes() -> int:
    """VmHWM of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    budget = parse_bytes(options.memory_budget) if options.memory_budget else None
    before = resident_bytes()
    started = time.perf_counter()
    with closing(MemoryBank.open(options.bank, budget)) as bank, bank.snapshot() as snapshot:
        opened = time.perf_counter() - started
        manifest = bank.manifest
        num_heads = next(
            shape[3] for shape in SHAPES.values() if shape[1:3] == (manifest.num_kv_heads, manifest.head_dim)
        )
        asked = questions(snapshot, num_heads, options.tokens, options.questions)
        mask_BT = torch.ones(1, options.tokens, dtype=torch.bool)
        wall, cpu, per_layer, found = [], [], [], []
        for number in [0, *range(options.questions)]:  # the first twice: it checks every key once
            started, started_cpu = time.perf_counter(), time.process_time()
            memory = LocalMemory(snapshot.shards, manifest, TOP_K, tiers=snapshot.tiers)
            selected = []
            for place, layer in enumerate(manifest.msa_layers):
                began = time.perf_counter()
                selected.append(memory.route(layer, asked[place, number], mask_BT).doc_ids[0])
                per_layer.append(time.perf_counter() - began)
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - started_cpu)
            found.append(selected)
        peak, resident = peak_bytes(), resident_bytes()
        agreed = total = 0
        for place in range(0, len(manifest.msa_layers), max(1, len(manifest.msa_layers) // options.checked)):
            for number in range(options.questions):
                query_TW = fold_queries(asked[place, number], manifest.num_kv_heads, manifest.similarity)[0]
                true = true_top(bank, manifest.msa_layers[place], query_TW)
                agreed += len(set(true) & set(found[number + 1][place]))
                total += len(true)
        cache = snapshot.tiers.content
        counts = bank.catalog.counts()
        return {
            "bank": {
                "made_up": manifest.encoder_fingerprint == "synthetic",
                "backbone": manifest.backbone,
                "msa_layers": len(manifest.msa_layers),
                "width": manifest.key_width,
                "chunks": counts.chunks,
                "documents": counts.documents,
                "segments": counts.segments,
                "tokens_stood_for": counts.chunks * manifest.chunk_size,
                "routing_key_bytes_int8": sum(
                    len(manifest.msa_layers) * shard.reader.mapped_coarse_bytes for shard in snapshot.shards
                ),
                "routing_key_bytes_per_chunk_int8": len(manifest.msa_layers) * (manifest.key_width + 4),
            },
            "query_tokens": options.tokens,
            "threads": options.threads,
            "memory_budget": budget,
            "seconds": {
                "open": round(opened, 3),
                "first_question": round(wall[0], 3),
                "all_layers": spread(wall[1:]),
                "all_layers_cpu": spread(cpu[1:]),
                "layer": spread(per_layer[len(manifest.msa_layers) :]),
            },
            "bytes": {
                "before_opening": before,
                "resident_after": resident,
                "peak_vmhwm": peak,
                "content_cache": cache.bytes,
            },
            "agreement_top_16": round(agreed / total, 5),
            "agreement_of": total,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--questions", type=int, default=5)
    parser.add_argument("--checked", type=int, default=3, help="layers whose scores are computed exactly")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-budget")
    options = parse_options(parser)
    figures = measure(options)
    write_figures(options, figures, partial(draw, figures=figures))


def draw(path: Path, figures: dict[str, Any]) -> None:
    seconds = figures["seconds"]
    bars = {"all layers": seconds["all_layers"], "CPU": seconds["all_layers_cpu"], "one layer": seconds["layer"]}
    title = f"routing over {figures['bank']['tokens_stood_for']:,} tokens, {figures['query_tokens']} query tokens"
    draw_bars(path, {name: Spread(**bar) for name, bar in bars.items()}, up="seconds", title=title)


if __name__ == "__main__":
    main()
