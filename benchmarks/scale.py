"""Routing over a bank of made-up latents: time through all MSA layers, peak memory, agreement with exact scores.

    memspan bench synth BANK --chunks 1562500            # 100M tokens at SmolLM2's shapes; 13.5 GB on disk
    python benchmarks/scale.py BANK [--tokens 32] [--questions 5] [--threads 2] [--memory-budget 4GB] [--json FILE]

A question is routed through every MSA layer one after the other, as the model does, content of the selected documents
read included. The first question also checks every key's checksum. Peak memory is VmHWM of a process of its own, which
loads no language model. Agreement: the share of the true top 16 documents (scores accumulated in float32 over the
stored bfloat16 keys, every chunk) that routing found, over `--checked` layers and all questions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import closing
from pathlib import Path

import torch

from memspan.bank.bank import MemoryBank
from memspan.bank.mapping import open_mapped
from memspan.bank.segment import segment_paths
from memspan.bank.snapshot import Snapshot
from memspan.bank.synthetic import SHAPES
from memspan.bank.tiers import parse_bytes, resident_bytes
from memspan.ops.scoring import document_scores, fold_queries, top_documents
from memspan.routing.local import LocalMemory

TOP_K = 16


def peak_bytes() -> int:
    """VmHWM of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def questions(snapshot: Snapshot, num_heads: int, tokens: int, count: int) -> torch.Tensor:
    """Router queries `[L, count, 1, T, H, D]`, each about the key of some document."""
    manifest = snapshot.manifest
    L, G, D = len(manifest.msa_layers), manifest.num_kv_heads, manifest.head_dim
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(L, count, 1, tokens, num_heads, D, generator=generator)
    for number in range(count):
        shard = snapshot.shards[number % len(snapshot.shards)]
        for place, layer in enumerate(manifest.msa_layers):
            key_GD = shard.reader.router_rows(layer, 7 * number)[0].float().view(G, D)
            query[place, number, 0] += 0.7 * D**0.5 * key_GD.repeat_interleave(num_heads // G, 0)
    return query


def true_top(bank: MemoryBank, layer: int, query_TW: torch.Tensor) -> list[int]:
    """The best TOP_K documents by scores in float32 of every chunk, read from the files apart from any reader."""
    ids, scores = [], []
    for _, files in bank.catalog.segments():
        mapped = open_mapped(segment_paths(bank.folder / "segments", files.name)[0])
        key_CW, documents_N4 = mapped[f"layer_{layer}"], mapped["documents"].tensor
        score_C = torch.cat([(tile_CW.float() @ query_TW.T).amax(1) for tile_CW in key_CW.tensor.split(4096)])
        document_C = torch.repeat_interleave(documents_N4[:, 2])
        scores.append(document_scores(score_C[None], document_C, len(documents_N4))[0])
        ids.append(documents_N4[:, 0].clone())
        key_CW.give_back()
    return top_documents(torch.cat(scores), torch.cat(ids), TOP_K)[0].tolist()


def measure(options: argparse.Namespace) -> dict[str, object]:
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
                "width": manifest.num_kv_heads * manifest.head_dim,
                "chunks": counts.chunks,
                "documents": counts.documents,
                "segments": counts.segments,
                "tokens_stood_for": counts.chunks * manifest.chunk_size,
                "routing_key_bytes_int8": sum(
                    len(manifest.msa_layers) * shard.reader.mapped_coarse_bytes for shard in snapshot.shards
                ),
                "routing_key_bytes_per_chunk_int8": len(manifest.msa_layers)
                * (manifest.num_kv_heads * manifest.head_dim + 4),
            },
            "query_tokens": options.tokens,
            "threads": options.threads,
            "memory_budget": budget,
            "seconds": {
                "open": round(opened, 3),
                "first_question": round(wall[0], 3),
                "all_layers_median": round(statistics.median(wall[1:]), 3),
                "all_layers_min_max": [round(min(wall[1:]), 3), round(max(wall[1:]), 3)],
                "all_layers_cpu_median": round(statistics.median(cpu[1:]), 3),
                "layer_median": round(statistics.median(per_layer[len(manifest.msa_layers) :]), 4),
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
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    figures = measure(options)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
