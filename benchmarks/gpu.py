"""Routing from keys in a GPU's memory, and a made-up model of Qwen3-4B's shapes to encode and decode with there.

    python benchmarks/gpu.py [--device cuda] [--tokens 1000000 10000000 100000000] [--questions 1 8] [--json FILE]
    python benchmarks/gpu.py --model-out DIR [--model-layers 12]

Routing is what a question waits for in all MSA layers: its queries are rounded to 8 bits, the keys of a layer are read
once, and the leading documents are chosen and copied to the CPU. Keys are random; where those of all layers do not fit,
those of some stand for the others. The CPU's part, exact re-scoring and fetching content, is not in it. Bytes read a
second stand beside the milliseconds: nothing can be faster than the memory.

The model is random: its speed is that of the real one, its answers are noise. `make gpu-check` runs all of it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from plots import add_json, spread, write_json

from memspan.model.convert import convert, known_checkpoint
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.ops.coarse import CoarseKeys, coarse_scores, quantize_queries
from memspan.ops.integers import accelerator_way, key_levels
from memspan.ops.scoring import leading_of_batch

CHUNK, DOCUMENT = 64, 3
"""Tokens of a chunk, chunks of a document."""
LEADING = 128
QWEN3_4B = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}


def made_up_keys(rows: int, width: int, device: torch.device) -> CoarseKeys:
    """Random routing keys of one layer."""
    levels = key_levels(width)
    key_CW = torch.randint(-levels, levels + 1, (rows, width), dtype=torch.int8, device=device)
    return CoarseKeys(key_CW, torch.rand(rows, device=device) + 0.5)


def measure_routing(options: argparse.Namespace, tokens: int, questions: int) -> dict[str, Any]:
    """Route some questions over a memory of so many tokens, in every layer."""
    device, rows = torch.device(options.device), max(1, tokens // CHUNK)
    layer = rows * (options.width + 4)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**31
    held = max(1, min(options.layers, int(0.8 * free) // layer))
    keys = [made_up_keys(rows, options.width, device) for _ in range(held)]
    document_C = torch.arange(rows, device=device, dtype=torch.int32) // DOCUMENT
    query_BTW = torch.randn(questions, options.query_tokens, options.width, device=device)
    score_BC = torch.empty(questions, rows, device=device)

    def route() -> float:
        started = time.perf_counter()
        for place in range(options.layers):
            coarse_scores(quantize_queries(query_BTW), keys[place % held], score_BC)
            leading_of_batch(score_BC, document_C, LEADING)  # waits
        return time.perf_counter() - started

    route()
    seconds = [route() for _ in range(options.repeats)]
    return {
        "tokens": tokens,
        "questions": questions,
        "layers_in_memory": held,
        "milliseconds": spread([1000 * one for one in seconds]),
        "read_gb_per_second": options.layers * layer / min(seconds) / 1e9,
    }


def make_model(out: Path, layers: int, device: str) -> None:
    """Write an MSA checkpoint of random weights: `layers` of Qwen3-4B's 36, the default backbone's tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(known_checkpoint(DEFAULT_SOURCE), local_files_only=True)
    config = Qwen3Config(**QWEN3_4B, num_hidden_layers=layers, vocab_size=len(tokenizer), dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    plain = out.with_name(f"{out.name}-plain")
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    convert(str(plain), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--layers", type=int, default=18, help="MSA layers; default: Qwen3-4B's")
    parser.add_argument("--width", type=int, default=1024, help="of a key; default: Qwen3-4B's")
    parser.add_argument("--query-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model-out", type=Path, help="write a made-up model there, and measure nothing")
    parser.add_argument("--model-layers", type=int, default=12)
    add_json(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use here; --device cpu runs the same code, slowly")
    if options.model_out:
        make_model(options.model_out, options.model_layers, options.device)
        return
    way = accelerator_way(options.width, torch.device(options.device))
    runs = [measure_routing(options, tokens, number) for tokens in options.tokens for number in options.questions]
    for run in runs:
        print(
            f"{run['tokens']:>12,} tokens  {run['questions']:>2} questions  {run['milliseconds']['median']:8.2f} ms  "
            f"{run['read_gb_per_second']:6.0f} GB/s  ({way})"
        )
    write_json(options.json, {"way": way, "layers": options.layers, "width": options.width, "runs": runs})


if __name__ == "__main__":
    main()
