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
from functools import partial

import torch
from plots import Bar, add_bars, bar_figures, check_bars, parse_options, write_figures

from memspan.bench.device import measure_encoding
from memspan.eval.plots import Spread, draw_bars
from memspan.model.convert import load


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
    figures = measure_encoding(loaded, options.documents, options.repeats)
    bar = {"encode_over_backbone": Bar(figures["encode_over_backbone"]["wall"]["median"], at_least=0.95)}
    bars = {name: Spread(**values) for name, values in figures["tokens_per_second"].items()}
    draw = partial(draw_bars, bars=bars, up="tokens per second", title="encoding")
    write_figures(options, {**figures, "bars": bar_figures(bar)}, draw, loaded)
    check_bars(options, bar)


if __name__ == "__main__":
    main()
