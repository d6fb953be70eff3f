"""Encoding speed: documents into latents, against the backbone's own forward over the same batches, in one run.

    python benchmarks/encode.py [--model DIR] [--documents 192] [--repeats 3] [--json FILE]

Both sides run the same token ids in the same length buckets, in the same number format, batch by batch in turn; the
backbone's side is its decoder without the language-model head (`model.model(ids)`), with its standard (SDPA) attention.
Encoding does more: it pools K and V of every MSA layer and computes the routing keys. Tokens are real ones, padding is
not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from memspan.model.convert import load
from memspan.text.packing import BATCH_TOKENS, length_batches, padding_share

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
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    loaded = load(options.model)
    config = loaded.model.config
    backbone: Any = AutoModelForCausalLM.from_config(
        copy.deepcopy(config.backbone_config), attn_implementation="sdpa", dtype=loaded.model.dtype
    )
    backbone.load_state_dict(dict(loaded.model.named_backbone_weights()), strict=False)
    decoder = backbone.to(loaded.model.device).eval().base_model

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
    figures = {
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "documents": len(documents),
        "tokens": sum(lengths),
        "padding_share": round(padding_share(lengths, buckets), 4),
        "tokens_per_second": {name: round(sum(lengths) / statistics.median(v)) for name, v in seconds.items()},
        "encode_over_backbone": round(statistics.median(ratios), 3),
        "encode_over_backbone_runs": [round(ratio, 3) for ratio in ratios],
    }
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
