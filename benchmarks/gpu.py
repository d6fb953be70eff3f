"""The steps of `memspan bench gpu` with other sizes: routing from keys in a GPU's memory, a made-up model, decoding.

    python benchmarks/gpu.py [--device cuda] [--tokens 1000000 10000000 100000000] [--questions 1 8] [--json FILE]
    python benchmarks/gpu.py --model-out DIR [--model-layers 12]
    python benchmarks/gpu.py --decode DIR [--rows 1 8 32] [--context 4096] [--new-tokens 64] [--json FILE]

`memspan.bench.device` says what is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from plots import add_json, write_json

from memspan.bench.device import SIZES, RoutingShapes, decode_rows, make_model, measure_routing
from memspan.model.convert import load
from memspan.ops.integers import accelerator_way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=SIZES)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--layers", type=int, default=18, help="MSA layers; default: Qwen3-4B's")
    parser.add_argument("--width", type=int, default=1024, help="of a key; default: Qwen3-4B's")
    parser.add_argument("--query-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model-out", type=Path, help="write a made-up model there, and measure nothing")
    parser.add_argument("--model-layers", type=int, default=12)
    parser.add_argument("--decode", type=Path, help="decode with the model that is there, and route nothing")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=4096, help="tokens before an answer")
    parser.add_argument("--new-tokens", type=int, default=64, help="of an answer")
    add_json(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here; --device cpu runs the same code, slowly")
    if options.model_out:
        make_model(options.model_out, options.model_layers, options.device)
        return
    if options.decode:
        loaded = load(options.decode, adapter="none", device=options.device)
        runs = decode_rows(loaded, options.rows, options.context, options.new_tokens)
        write_json(options.json, {"runs": runs})
        raise SystemExit(int(any("error" in run for run in runs)))
    device = torch.device(options.device)
    shapes = RoutingShapes(options.layers, options.width, options.query_tokens, options.repeats)
    way = accelerator_way(options.width, device)
    sizes = ((tokens, number) for tokens in options.tokens for number in options.questions)
    runs = [measure_routing(device, shapes, *size) for size in sizes]
    for run in runs:
        print(
            f"{run['tokens']:>12,} tokens  {run['questions']:>2} questions  {run['milliseconds']['median']:8.2f} ms  "
            f"{run['read_gb_per_second']:6.0f} GB/s  ({way})"
        )
    write_json(options.json, {"way": way, "layers": options.layers, "width": options.width, "runs": runs})


if __name__ == "__main__":
    main()
