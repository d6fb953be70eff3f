"""Routing from keys in a GPU's memory, and a made-up model of Qwen3-4B's shapes to encode and decode with there.

    python benchmarks/gpu.py [--device cuda] [--tokens 1000000 10000000 100000000] [--questions 1 8] [--json FILE]
    python benchmarks/gpu.py --model-out DIR [--model-layers 12]
    python benchmarks/gpu.py --decode DIR [--rows 1 8 32] [--context 4096] [--new-tokens 64] [--json FILE]

Routing is what a question waits for in all MSA layers: its queries are rounded to 8 bits, the keys of a layer are read
once, the leading documents are chosen, scored exactly from the stored keys, and copied to the CPU. Keys are random;
where those of all layers do not fit, those of some stand for the others. The CPU's part, fetching content, is not in
it. Bytes read a second stand beside the milliseconds: nothing can be faster than the memory.

The model is random: its speed is that of the real one, its answers are noise. Decoding writes so many tokens behind
contexts of random tokens, as `Memory` does and as `generate` of transformers does. `make gpu-check` runs all of it.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from backbone import plain_backbone
from plots import add_json, spread, write_json

from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel, convert, known_checkpoint, load
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.ops.coarse import CoarseKeys, coarse_scores, quantize_queries
from memspan.ops.integers import accelerator_way, key_levels
from memspan.ops.scoring import exact_document_scores, leading_of_batch
from memspan.text.template import Context
from memspan.types import Span

CHUNK, DOCUMENT = 64, 3
"""Tokens of a chunk, chunks of a document."""
LEADING = 128
QWEN3_4B: dict[str, Any] = {
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
    coarse, stored = rows * (options.width + 4), 2 * rows * options.width
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**31
    held = max(1, min(options.layers, int(0.8 * free) // (coarse + stored)))
    keys = [made_up_keys(rows, options.width, device) for _ in range(held)]
    exact_keys = [layer.key_CW.bfloat16() for layer in keys]
    document_C = torch.arange(rows, device=device, dtype=torch.int32) // DOCUMENT
    rows_N = torch.bincount(document_C.long())
    first_N = rows_N.cumsum(0) - rows_N
    query_BTW = torch.randn(questions, options.query_tokens, options.width, device=device)
    score_BC = torch.empty(questions, rows, device=device)

    def exact(place: int, document_BK: torch.Tensor) -> torch.Tensor:
        given = first_N[document_BK], rows_N[document_BK], DOCUMENT
        return exact_document_scores(query_BTW, exact_keys[place], *given)

    def route() -> float:
        started = time.perf_counter()
        for place in range(options.layers):
            coarse_scores(quantize_queries(query_BTW), keys[place % held], score_BC)
            leading_of_batch(score_BC, document_C, LEADING, partial(exact, place % held))  # waits
        return time.perf_counter() - started

    route()
    seconds = [route() for _ in range(options.repeats)]
    return {
        "tokens": tokens,
        "questions": questions,
        "layers_in_memory": held,
        "milliseconds": spread([1000 * one for one in seconds]),
        "read_gb_per_second": options.layers * coarse / min(seconds) / 1e9,
    }


def measure_decoding(loaded: LoadedModel, backbone: Any, rows: int, context: int, new_tokens: int) -> dict[str, Any]:
    """Decode some rows behind contexts of so many tokens, as `Memory` does and as `generate` of transformers does."""
    device = loaded.model.device
    generator = torch.Generator().manual_seed(rows)
    ids_RT = torch.randint(1, loaded.model.config.text_config.vocab_size, (rows, context), generator=generator)

    def decode() -> tuple[float, float, int]:
        contexts = [Context(tuple(ids), Span(0, context)) for ids in ids_RT.tolist()]
        decoding = Decoding(loaded, contexts, None, Sampling(max_new_tokens=new_tokens))
        decoding.lookup = None  # a token a step, as there
        started = time.perf_counter()
        steps = decoding.run()
        next(steps)
        first = time.perf_counter() - started
        for _ in steps:
            pass
        return first, time.perf_counter() - started - first, sum(len(row.ids) - 1 for row in decoding.rows)

    def generate() -> tuple[float, float, int]:
        given = ids_RT.to(device)
        seconds = []
        for count in (1, new_tokens):
            started = time.perf_counter()
            how: Any = {"min_new_tokens": count, "max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
            written = backbone.generate(given, attention_mask=torch.ones_like(given), **how).cpu()
            seconds.append(time.perf_counter() - started)
        return seconds[0], max(seconds[1] - seconds[0], 1e-9), rows * (written.shape[1] - context - 1)

    figures: dict[str, Any] = {"rows": rows, "context": context}
    for name, side in (("memspan", decode), ("generate", generate)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first, seconds, tokens = side()
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        rate = {"tokens_per_second": tokens / seconds, "first_token_seconds": first, "peak_memory_gb": peak}
        figures[name] = rate
    figures["over_generate"] = figures["memspan"]["tokens_per_second"] / figures["generate"]["tokens_per_second"]
    return figures


def decode_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Decode every number of rows; a run that fails, as for lack of memory, does not stop the others."""
    loaded = load(options.decode, adapter="none", device=options.device)
    loaded.template.stop_ids, cast(Any, loaded.model).generation_config = frozenset(), None  # nothing ends it early
    backbone = plain_backbone(loaded)
    measure_decoding(loaded, backbone, 1, 64, 4)  # kernels are tried and compiled
    runs = []
    for rows in options.rows:
        try:
            runs.append(measure_decoding(loaded, backbone, rows, options.context, options.new_tokens))
        except RuntimeError as error:
            runs.append({"rows": rows, "context": options.context, "error": str(error)})
        print(runs[-1], flush=True)
    return runs


def make_model(out: Path, layers: int, device: str) -> None:
    """Write an MSA checkpoint of random weights: `layers` of Qwen3-4B's 36, the default backbone's tokenizer."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(known_checkpoint(DEFAULT_SOURCE), local_files_only=True)
    config = Qwen3Config(**QWEN3_4B, num_hidden_layers=layers, vocab_size=len(tokenizer), dtype=torch.bfloat16)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen3ForCausalLM(config).bfloat16()
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
        runs = decode_rows(options)
        write_json(options.json, {"runs": runs})
        raise SystemExit(int(any("error" in run for run in runs)))
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
