"""Encoding speed: documents into latents, against the backbone's own forward over the same batches, in one run.

    python benchmarks/encode.py [--model DIR] [--adapter none] [--documents 192] [--bars] [--json FILE] [--png FILE]

Both sides run the same token ids in the same length buckets, in the same number format, batch by batch in turn (which
side is first alternates); the backbone's side is its decoder without the language-model head (`model.model(ids)`), with
its standard (SDPA) attention. Encoding does more: it pools K and V of every MSA layer and computes the routing keys.
Tokens are real ones, padding is not counted. A ratio is given with the lowest and highest of the repeats, of wall and
of CPU seconds. Bar: encoding is at least 0.95 times as fast as the backbone, by the median of wall seconds.

Then a bank is made of documents of the same lengths, as `memspan add` makes it. `outside_encoding` is the share of its
time in which the model does not encode: splitting, tokenising, writing, committing. It is the most that doing these
beside the computation could save.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from backbone import plain_backbone
from plots import Bar, add_bars, bar_figures, check_bars, parse_options, spread, write_figures

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.eval.plots import Spread, draw_bars
from memspan.model.convert import LoadedModel, load
from memspan.model.runtime import encode_tokens
from memspan.ops.transfer import launched
from memspan.text.packing import length_batches, padding_share
from memspan.types import Document

MEDIAN_TOKENS = 120


class Clock:
    """Wall and CPU seconds spent in something."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def run(self, do: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return do()
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu


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


def compared(loaded: LoadedModel, batches: list[list[list[int]]], repeats: int) -> list[tuple[Clock, Clock]]:
    """Encoding and the backbone, a pair of clocks a repeat; a device is waited for after every batch."""
    decoder, device = plain_backbone(loaded).base_model, loaded.model.device
    loaded.model.encode(batches[0])
    decoder(right_padded(batches[0]).to(device), use_cache=False)
    found = []
    for repeat in range(repeats):
        encode, backbone = Clock(), Clock()
        for number, batch in enumerate(batches):
            turns = [
                (encode, lambda batch=batch: loaded.model.encode(batch)),
                (backbone, lambda batch=batch: decoder(right_padded(batch).to(device), use_cache=False)),
            ]
            for clock, do in turns if (number + repeat) % 2 else turns[::-1]:
                clock.run(lambda do=do: (do(), launched(device)()))
        found.append((encode, backbone))
    return found


def outside_encoding(loaded: LoadedModel, documents: list[list[int]]) -> dict[str, float]:
    """The share of `add` in which the model does not encode."""
    encode = loaded.model.encode
    texts = [loaded.template.text([token % 10_000 + 1_000 for token in ids]) for ids in documents]
    whole, inside = Clock(), Clock()
    loaded.model.encode = lambda batch: inside.run(lambda: encode(batch))  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        bank = MemoryBank.create(Path(folder) / "bank", manifest_of(loaded))
        corpus = (Document(str(number), text) for number, text in enumerate(texts))
        whole.run(lambda: add_documents(bank, loaded, corpus))
        bank.close()
    loaded.model.encode = encode  # type: ignore[method-assign]
    return {"wall": round(1 - inside.wall / whole.wall, 4), "cpu": round(1 - inside.cpu / whole.cpu, 4)}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="MSA checkpoint; default: SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", help="as of `memspan add`; none: 15 MSA layers of the default model, not 4")
    parser.add_argument("--documents", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=5)
    add_bars(parser)
    options = parse_options(parser)

    loaded = load(options.model, adapter=options.adapter)
    documents = random_documents(options.documents, loaded.model.config.vocab_size)
    lengths = [len(document) for document in documents]
    buckets = list(length_batches(lengths, encode_tokens(loaded.model.device)))
    pairs = compared(loaded, [[documents[index] for index in bucket] for bucket in buckets], options.repeats)
    sides = {"encode": [encode for encode, _ in pairs], "backbone": [backbone for _, backbone in pairs]}
    padded = sum(len(bucket) * max(lengths[index] for index in bucket) for bucket in buckets)
    rates = {name: [sum(lengths) / clock.wall for clock in clocks] for name, clocks in sides.items()}
    over_backbone = {
        "wall": spread([backbone.wall / encode.wall for encode, backbone in pairs]),
        "cpu": spread([backbone.cpu / encode.cpu for encode, backbone in pairs]),
    }
    bar = {"encode_over_backbone": Bar(over_backbone["wall"]["median"], at_least=0.95)}
    figures = {
        "msa_layers": list(loaded.model.config.layers),
        "documents": len(documents),
        "tokens": sum(lengths),
        "padding_share": round(1 - sum(lengths) / padded, 4),
        "tokens_per_second": {name: spread(values, 0) for name, values in rates.items()},
        "encode_over_backbone": over_backbone,
        "bars": bar_figures(bar),
        "outside_encoding": outside_encoding(loaded, documents),
    }
    bars = {name: Spread.of(values) for name, values in rates.items()}
    write_figures(options, figures, partial(draw_bars, bars=bars, up="tokens per second", title="encoding"), loaded)
    check_bars(options, bar)


if __name__ == "__main__":
    main()
