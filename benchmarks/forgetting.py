"""What an adapter costs where no memory is used: perplexity on plain text beside the backbone's own, and bit for bit.

    python benchmarks/forgetting.py DATA/text/*.xz DATA/text/*.gz [--adapter DIR] [--pieces 60] [--json FILE]

Pieces of 256 tokens, evenly over the lines of every file ({"text"} as JSON lines). The backbone is the checkpoint
without an adapter; its logits are also compared, bit for bit, with those of the model that it was converted from.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from plots import add_json, write_json

from memspan import load
from memspan.model.backbones import load_backbone
from memspan.model.convert import LoadedModel
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.text.readers import BadRecord, read_records

TOKENS = 256


def pieces(loaded: LoadedModel, path: Path, count: int) -> list[list[int]]:
    """Token ids from the middle of texts."""
    texts = (record.values.get("text", "") for record in read_records(path) if not isinstance(record, BadRecord))
    long = [text for text in islice(texts, 50_000) if isinstance(text, str) and len(text) > 8 * TOKENS]
    found = []
    for text in long[:: max(1, len(long) // count)][:count]:
        middle = len(text) // 2
        ids = loaded.template.tokens("{text}", text=text[middle - 4 * TOKENS : middle + 4 * TOKENS])
        if len(ids) >= TOKENS:
            found.append(list(ids[:TOKENS]))
    return found


@torch.inference_mode()
def mean_loss(loaded: LoadedModel, texts: Sequence[Sequence[int]]) -> float:
    """Nats per token, without memory."""
    total = 0.0
    for text in texts:
        ids_BT = torch.tensor([text], device=loaded.model.device)
        logits_TV = loaded.model(ids_BT, use_cache=False).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits_TV, ids_BT[0, 1:]))
    return total / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--adapter")
    parser.add_argument("--pieces", type=int, default=60, help="of every file")
    add_json(parser)
    options = parser.parse_args()
    plain, adapted = load(adapter="none"), load(adapter=options.adapter)
    figures: dict[str, dict[str, float]] = {}
    sample: list[list[int]] = []
    for path in options.texts:
        texts = pieces(plain, path, options.pieces)
        if not texts:
            print(f"{path.name}: no text of {8 * TOKENS} characters")
            continue
        losses = mean_loss(plain, texts), mean_loss(adapted, texts)
        before, after = map(math.exp, losses)
        figures[path.name] = {"pieces": len(texts), "backbone": before, "adapter": after, "ratio": after / before}
        change = f"perplexity {before:.2f}, with the adapter {after:.2f}: {after / before - 1:+.2%}"
        print(f"{path.name}: {len(texts)} pieces, {change}", flush=True)
        sample += texts[:2]
    mean = math.exp(sum(math.log(one["ratio"]) for one in figures.values()) / len(figures)) - 1
    print(f"mean change {mean:+.2%}")
    same = same_logits(plain, sample)
    print(f"adapter off: logits equal the backbone's own bit for bit: {same}")
    write_json(options.json, {"texts": figures, "mean": mean, "bit_identical": same}, adapted)


@torch.inference_mode()
def same_logits(plain: LoadedModel, texts: Sequence[Sequence[int]]) -> bool:
    """Whether the model without memory computes what transformers computes of the backbone, bit for bit."""
    backbone, _ = load_backbone(DEFAULT_SOURCE, plain.model.dtype)
    backbone.eval().set_attn_implementation("sdpa")
    rows = [torch.tensor([text]) for text in texts]
    return all(torch.equal(backbone(ids_BT).logits, plain.model(ids_BT).logits) for ids_BT in rows)


if __name__ == "__main__":
    main()
