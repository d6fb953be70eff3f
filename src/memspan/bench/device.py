"""What a device can do of memspan, measured: routing, decoding, encoding. Its model is made up, of Qwen3-4B's shapes.

    python -m memspan.bench.device STEP DEVICE FOLDER [TOKENS ...]

runs one step of `memspan bench gpu`, and writes its figures into FOLDER/gpu-STEP.json. The model is random: its speed
is that of the real one, its answers are noise.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bench.gpu import MODEL
from memspan.eval.machine import machine
from memspan.eval.plots import spread
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel, convert, known_checkpoint, load
from memspan.model.runtime import encode_tokens
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.ops.coarse import CoarseKeys, coarse_scores, quantize_queries
from memspan.ops.integers import accelerator_way, key_levels
from memspan.ops.scoring import exact_document_scores, leading_of_batch
from memspan.ops.transfer import launched
from memspan.text.packing import length_batches
from memspan.text.template import Context
from memspan.types import Document, Span

CHUNK, DOCUMENT = 64, 3
"""Tokens of a chunk, chunks of a document."""
LEADING = 128
MEDIAN_TOKENS = 120
SIZES = (10**6, 10**7, 10**8)
QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}


def plain_backbone(loaded: LoadedModel) -> Any:
    """The backbone with the same weights, number format and device, and its standard (SDPA) attention."""
    model = loaded.model
    backbone: Any = AutoModelForCausalLM.from_config(
        copy.deepcopy(model.config.backbone_config), attn_implementation="sdpa", dtype=model.dtype
    )
    backbone.load_state_dict(dict(model.named_backbone_weights()), strict=False)
    return backbone.to(model.device).eval()


def made_up_keys(rows: int, width: int, device: torch.device) -> CoarseKeys:
    """Random routing keys of one layer."""
    levels = key_levels(width)
    key_CW = torch.randint(-levels, levels + 1, (rows, width), dtype=torch.int8, device=device)
    return CoarseKeys(key_CW, torch.rand(rows, device=device) + 0.5)


@dataclass(frozen=True, slots=True)
class RoutingShapes:
    """What is routed, by default Qwen3-4B's: MSA layers, width of a key, tokens of a question; and how many times."""

    layers: int = 18
    width: int = 1024
    query_tokens: int = 32
    repeats: int = 5


def measure_routing(device: torch.device, shapes: RoutingShapes, tokens: int, questions: int) -> dict[str, Any]:
    """Route some questions over a memory of so many tokens, in every layer.

    Routing is what a question waits for in all MSA layers: its queries are rounded to 8 bits, the keys of a layer are
    read once, the leading documents are chosen, scored exactly from the stored keys, and copied to the CPU. Keys are
    random; where those of all layers do not fit, those of some stand for the others. The CPU's part, fetching content,
    is not in it. Bytes read a second stand beside the milliseconds: nothing can be faster than the memory.
    """
    rows = max(1, tokens // CHUNK)
    coarse, stored = rows * (shapes.width + 4), 2 * rows * shapes.width
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**31
    held = max(1, min(shapes.layers, int(0.8 * free) // (coarse + stored)))
    keys = [made_up_keys(rows, shapes.width, device) for _ in range(held)]
    exact_keys = [layer.key_CW.bfloat16() for layer in keys]
    document_C = torch.arange(rows, device=device, dtype=torch.int32) // DOCUMENT
    rows_N = torch.bincount(document_C.long())
    first_N = rows_N.cumsum(0) - rows_N
    query_BTW = torch.randn(questions, shapes.query_tokens, shapes.width, device=device)
    score_BC = torch.empty(questions, rows, device=device)

    def exact(place: int, document_BK: torch.Tensor) -> torch.Tensor:
        given = first_N[document_BK], rows_N[document_BK], DOCUMENT
        return exact_document_scores(query_BTW, exact_keys[place], *given)

    def route() -> float:
        started = time.perf_counter()
        for place in range(shapes.layers):
            coarse_scores(quantize_queries(query_BTW), keys[place % held], score_BC)
            leading_of_batch(score_BC, document_C, LEADING, partial(exact, place % held))  # waits
        return time.perf_counter() - started

    route()
    seconds = [route() for _ in range(shapes.repeats)]
    return {
        "tokens": tokens,
        "questions": questions,
        "layers_in_memory": held,
        "milliseconds": spread([1000 * one for one in seconds]),
        "read_gb_per_second": shapes.layers * coarse / min(seconds) / 1e9,
    }


def measure_decoding(loaded: LoadedModel, backbone: Any, rows: int, context: int, new_tokens: int) -> dict[str, Any]:
    """Decode some rows behind contexts of so many random tokens, as `Memory` and as `generate` of transformers do."""
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


def decode_rows(
    loaded: LoadedModel, numbers: Sequence[int] = (1, 8, 32), context: int = 4096, new_tokens: int = 64
) -> list[dict[str, Any]]:
    """Decode every number of rows; a run that fails, as for lack of memory, does not stop the others."""
    loaded.template.stop_ids, cast(Any, loaded.model).generation_config = frozenset(), None  # nothing ends it early
    backbone = plain_backbone(loaded)
    measure_decoding(loaded, backbone, 1, 64, 4)  # kernels are tried and compiled
    runs = []
    for rows in numbers:
        try:
            runs.append(measure_decoding(loaded, backbone, rows, context, new_tokens))
        except RuntimeError as error:
            runs.append({"rows": rows, "context": context, "error": str(error)})
        print(runs[-1], flush=True)  # kept where the step is stopped
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


def measure_encoding(loaded: LoadedModel, documents: int, repeats: int) -> dict[str, Any]:
    """Encode made-up documents beside the backbone's own forward over the same batches.

    Both sides run the same token ids in the same length buckets, batch by batch in turn; the backbone's side is its
    decoder without the head, with its standard (SDPA) attention. Tokens are real ones, padding is not counted.
    `outside_encoding` is the share of `add` in which the model does not encode.
    """
    made = random_documents(documents, loaded.model.config.vocab_size)
    lengths = [len(document) for document in made]
    buckets = list(length_batches(lengths, encode_tokens(loaded.model.device)))
    pairs = compared(loaded, [[made[index] for index in bucket] for bucket in buckets], repeats)
    padded = sum(len(bucket) * max(lengths[index] for index in bucket) for bucket in buckets)
    sides = {"encode": [encode for encode, _ in pairs], "backbone": [backbone for _, backbone in pairs]}
    return {
        "msa_layers": list(loaded.model.config.layers),
        "documents": len(made),
        "tokens": sum(lengths),
        "padding_share": round(1 - sum(lengths) / padded, 4),
        "tokens_per_second": {
            name: spread([sum(lengths) / clock.wall for clock in clocks], 0) for name, clocks in sides.items()
        },
        "encode_over_backbone": {
            "wall": spread([backbone.wall / encode.wall for encode, backbone in pairs]),
            "cpu": spread([backbone.cpu / encode.cpu for encode, backbone in pairs]),
        },
        "outside_encoding": outside_encoding(loaded, made),
    }


def _route(device: str, out: Path, sizes: Sequence[int]) -> dict[str, Any]:
    shapes, where = RoutingShapes(), torch.device(device)
    runs = [measure_routing(where, shapes, tokens, number) for tokens in sizes for number in (1, 8)]
    return {"way": accelerator_way(shapes.width, where), **asdict(shapes), "runs": runs}


def _decode(device: str, out: Path, sizes: Sequence[int]) -> dict[str, Any]:
    return {"runs": decode_rows(load(out / MODEL, adapter="none", device=device))}


def _encode(device: str, out: Path, sizes: Sequence[int]) -> dict[str, Any]:
    with torch.inference_mode():
        return measure_encoding(load(out / MODEL, adapter="none", device=device), documents=2048, repeats=3)


def _make(device: str, out: Path, sizes: Sequence[int]) -> dict[str, Any]:
    make_model(out / MODEL, 12, device)
    return {"folder": str(out / MODEL)}


STEPS = {"routing": _route, "model": _make, "decode": _decode, "encode": _encode}
"""What each step measures on a device, given the folder and the sizes of memories."""


def main(step: str, device: str, folder: str, *sizes: str) -> int:
    """Run a step and write its figures. Returns 1 where a part of it failed."""
    out = Path(folder)
    figures = STEPS[step](device, out, [int(size) for size in sizes] or SIZES)
    text = json.dumps({"machine": machine(None), **figures}, indent=2)
    (out / f"gpu-{step}.json").write_text(text + "\n", "utf-8")
    return int(any("error" in run for run in figures.get("runs", ())))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
