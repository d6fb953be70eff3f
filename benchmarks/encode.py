"""Encoding speed: documents into latents, against the backbone's own forward over the same batches, in one run.

    python benchmarks/encode.py [--model DIR] [--documents 192] [--repeats 3] [--json FILE] [--png FILE]

Both sides run the same token ids in the same length buckets, in the same number format, batch by batch in turn; the
backbone's side is its decoder without the language-model head (`model.model(ids)`), with its standard (SDPA) attention.
Encoding does more: it pools K and V of every MSA layer and computes the routing keys. Tokens are real ones, padding is
not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
from backbone import plain_backbone
from plots import parse_options, spread, write_figures

from memspan.bank.encode import BATCH_TOKENS
from memspan.eval.plots import Spread, draw_bars
from memspan.model.convert import load
from memspan.text.packing import length_batches, padding_share

MEDIAN_TOKENS = 120


def random_documents(count: int, vocab_size: int) -> list[list[int]]:
    """Token ids with lengths spread like passages' (log-normal around MEDIAN_TOKENS, at most 512)."""
    generator = torch.Generator().manual_seed(0)
    lengths = (MEDIAN_TOKENS * torch.empty(count).log_normal_(0.0, 0.5, generator=generator)).clamp(8, 512).int()
    return [torch.randint(vocab_size, (int(length),), generator=generator).tolist() for length in lengths]


def right_padded(batch: list[list[int]]) -> torch.Tensor:
    ids = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.long)
    for row, document in zip(ids, batch, strict=True):
        row[: len(document)] = torch.tensor(document)
    return ids


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="MSA checkpoint; default: SmolLM2-135M-Instruct")
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    options = parse_options(parser)

    loaded = load(options.model)
    config = loaded.model.config
    decoder = plain_backbone(loaded).base_model

    documents = random_documents(options.documents, config.vocab_size)
    lengths = [len(document) for document in documents]
    buckets = list(length_batches(lengths, BATCH_TOKENS))
    batches = [[documents[index] for index in bucket] for bucket in buckets]
    loaded.model.encode(batches[0])
    decoder(right_padded(batches[0]).to(loaded.model.device), use_cache=False)

    seconds: dict[str, list[float]] = {"encode": [], "backbone": []}
    for _ in range(options.repeats):
        totals = dict.fromkeys(seconds, 0.0)
        for batch in batches:
            started = time.perf_counter()
            loaded.model.encode(batch)
            between = time.perf_counter()
            decoder(right_padded(batch).to(loaded.model.device), use_cache=False)
            totals["encode"] += between - started
            totals["backbone"] += time.perf_counter() - between
        for name, total in totals.items():
            seconds[name].append(total)
    ratios = [backbone / encode for encode, backbone in zip(seconds["encode"], seconds["backbone"], strict=True)]
    rates = {name: [sum(lengths) / second for second in values] for name, values in seconds.items()}
    figures = {
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "documents": len(documents),
        "tokens": sum(lengths),
        "padding_share": round(padding_share(lengths, buckets), 4),
        "tokens_per_second": {name: spread(values, 0) for name, values in rates.items()},
        "encode_over_backbone": round(statistics.median(ratios), 3),
        "encode_over_backbone_runs": [round(ratio, 3) for ratio in ratios],
    }
    bars = {name: Spread.of(values) for name, values in rates.items()}
    write_figures(options, figures, partial(draw_bars, bars=bars, up="tokens per second", title="encoding"))


if __name__ == "__main__":
    main()
