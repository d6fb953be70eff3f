"""Routing speed and exactness: the grouped dot product against the literal formula, in one run.

    python benchmarks/route.py [--chunks 65536] [--tokens 32] [--repeats 5] [--dtype NAME] [--bars] [--json FILE]
                               [--png FILE]

Shape: Qwen3-4B's (32 query heads, 8 key heads, size 128). Ways to score the same keys:

    served     the coarse pass (`memspan.ops.coarse`): keys in 8 bits, queries in 7, the rounding of the query counted,
               in the way that this machine does fastest; `fastest` in the figures names it
    served in  the same in each of the ways that are exact here (`memspan.ops.integers`): amx, packed, float
    gemm       one float32 product of this size, without anything before or after it
    grouped    one product for all heads, as memspan trains with (`memspan.ops.scoring.chunk_scores`)
    literal    the per-head formula as the released code writes it: keys repeated for every query head, one product
               per head, then mean over heads and max over tokens
    folded     a well-written literal: a group's query heads in the rows of one product, tiled, no copy of the keys

Grouped, literal and folded read the same keys, in the number format that memspan takes here (--dtype). Exactness:
largest difference of the scores from the formula in float64 on those keys, before and after the candidates (the best of
the coarse pass) are re-scored, and whether the top k is the same. Times are medians of alternating runs.

Bars: served is at least 25 times as fast as literal, takes at most 1.3 times as long as gemm, and at most 1.5 times as
long as the fastest way here: no faster one was passed over.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from plots import Bar, add_bars, bar_figures, check_bars, parse_options, write_figures

from memspan.eval.plots import Spread, draw_bars, spread
from memspan.model.runtime import DTYPES, pick_dtype
from memspan.ops.coarse import CoarseKeys, coarse_scores, quantize_keys, quantize_queries
from memspan.ops.integers import exact_ways
from memspan.ops.scoring import chunk_scores, exact_chunk_scores, fold_keys, fold_queries

H, G, D = 32, 8, 128
TOP_K, CANDIDATES = 16, 128


def served(query_1TW: torch.Tensor, keys: CoarseKeys, way: str | None = None) -> torch.Tensor:
    score_1C = torch.empty(1, len(keys.scale_C))
    coarse_scores(replace(quantize_queries(query_1TW), way=way), keys, score_1C)
    return score_1C[0]


def grouped(query_1TW: torch.Tensor, key_CW: torch.Tensor) -> torch.Tensor:
    return chunk_scores(query_1TW, key_CW)[0]


def literal(query_HTD: torch.Tensor, key_GCD: torch.Tensor) -> torch.Tensor:
    key_HCD = key_GCD.repeat_interleave(len(query_HTD) // len(key_GCD), dim=0)
    return torch.matmul(query_HTD, key_HCD.transpose(1, 2)).mean(0).amax(0)


def folded(query_HTD: torch.Tensor, key_GCD: torch.Tensor, tile: int = 8192) -> torch.Tensor:
    T = query_HTD.shape[1]
    query_GRD = query_HTD.view(G, (H // G) * T, D)
    best = []
    for tile_GCD in key_GCD.split(tile, dim=1):
        scores_GRC = torch.bmm(query_GRD, tile_GCD.transpose(1, 2))
        best.append(scores_GRC.view(H, T, -1).mean(0).amax(0))
    return torch.cat(best)


def formula(query_HTD: torch.Tensor, key_GCD: torch.Tensor) -> torch.Tensor:
    """The definition in float64, a head at a time."""
    total_TC = torch.zeros(query_HTD.shape[1], key_GCD.shape[1], dtype=torch.float64)
    for head in range(H):
        total_TC += query_HTD[head].double() @ key_GCD[head // (H // G)].double().T
    return (total_TC / H).amax(0)


def alternate(functions: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every function, run in turn, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def top(scores_C: torch.Tensor) -> list[int]:
    """The best TOP_K chunks, by score, then by index."""
    return torch.argsort(scores_C, descending=True, stable=True)[:TOP_K].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=65_536)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, help="default: as memspan loads models here")
    add_bars(parser)
    options = parse_options(parser)

    torch.manual_seed(0)
    key_CW = fold_keys(torch.randn(options.chunks, G, D), "cosine").bfloat16()
    query_1TW = fold_queries(torch.randn(1, options.tokens, H, D), G, "cosine")
    coarse_keys = quantize_keys(key_CW)
    # The other two take what they would be given: unit-length query heads, keys head by head.
    torch.manual_seed(0)
    torch.randn(options.chunks, G, D)
    query_THD = torch.nn.functional.normalize(torch.randn(1, options.tokens, H, D)[0], dim=-1)
    query_HTD = query_THD.transpose(0, 1).contiguous()
    key_GCD = key_CW.view(options.chunks, G, D).transpose(0, 1).contiguous()
    dtype = pick_dtype(options.dtype, torch.device("cpu"))
    key_CW_, key_GCD_, query_HTD_ = (x.to(dtype) for x in (key_CW, key_GCD, query_HTD))
    key32_CW, query32_WT = key_CW.float(), query_1TW[0].T.contiguous()
    ways = exact_ways(G * D)

    seconds = alternate(
        {
            "served": lambda: served(query_1TW, coarse_keys),
            **{f"served in {way}": partial(served, query_1TW, coarse_keys, way) for way in ways},
            "gemm": lambda: key32_CW @ query32_WT,
            "grouped": lambda: grouped(query_1TW, key_CW_),
            "folded": lambda: folded(query_HTD_, key_GCD_),
            "literal": lambda: literal(query_HTD_, key_GCD_),
        },
        options.repeats,
    )
    milliseconds = {name: [1000 * value for value in values] for name, values in seconds.items()}
    spreads = {name: Spread.of(values) for name, values in milliseconds.items()}
    medians = {name: found.median for name, found in spreads.items()}

    true_C = formula(query_HTD, key_GCD)
    grouped_C, coarse_C = grouped(query_1TW, key_CW), served(query_1TW, coarse_keys)
    if not all(torch.equal(coarse_C, served(query_1TW, coarse_keys, way)) for way in ways):
        raise SystemExit(f"the ways {', '.join(ways)} differ")
    candidates = torch.argsort(coarse_C, descending=True, stable=True)[:CANDIDATES].sort().values
    exact = exact_chunk_scores(query_1TW[0], key_CW[candidates])
    fastest = min(medians[f"served in {way}"] for way in ways)
    bars = {
        "literal_over_served": Bar(round(medians["literal"] / medians["served"], 2), at_least=25.0),
        "served_over_gemm": Bar(round(medians["served"] / medians["gemm"], 2), at_most=1.3),
        "served_over_fastest_way": Bar(round(medians["served"] / fastest, 2), at_most=1.5),
    }
    figures = {
        "bars": bar_figures(bars),
        "shape": {"H": H, "G": G, "D": D, "tokens": options.tokens, "chunks": options.chunks, "dtype": str(dtype)},
        "ms": {name: spread(values, 2) for name, values in milliseconds.items()},
        "fastest": quantize_queries(query_1TW).largest.fastest(options.chunks),
        "literal_over_grouped": round(medians["literal"] / medians["grouped"], 1),
        "folded_over_grouped": round(medians["folded"] / medians["grouped"], 1),
        "folded_over_served": round(medians["folded"] / medians["served"], 1),
        "grouped_max_error": float((grouped_C.double() - true_C).abs().max()),
        "coarse_max_error": float((coarse_C.double() - true_C).abs().max()),
        "rescored_max_error": float((exact.double() - true_C[candidates]).abs().max()),
        "rescored_top_k_equal": [int(candidates[i]) for i in top(exact)] == top(true_C),
    }
    title = f"scoring {options.chunks:,} chunks for {options.tokens} query tokens, one layer"
    write_figures(options, figures, partial(draw_bars, bars=spreads, up="milliseconds", title=title))
    check_bars(options, bars)


if __name__ == "__main__":
    main()
