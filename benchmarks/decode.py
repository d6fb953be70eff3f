"""Decoding speed: answers over injected documents, against the backbone's own cached `generate`, in one run.

    python benchmarks/decode.py [--model DIR] [--adapter none] [--bank DIR] [--questions 8] [--tokens 64]
                                [--bars] [--json FILE] [--png FILE]

Every question of `examples/` is answered from the documents that full-text search finds in `examples/notes`, whose text
stands before it; all rows get the same tokens (so the same local length), weights and number format, question by
question in turn. memspan's rows also attend to the memory the prefill routed to. What is timed is the time from the
first token to the last, by the wall and by the process's own clock; greedy, to the answer's own end.

    backbone       `generate` of transformers with its standard (SDPA) attention and cache
    exact          memspan with the weights as loaded, a token a step
    half           copies of 16 bits, where they are read faster; the default
    int8, int4
    ...+lookup     with drafts copied from the context (prompt lookup), where they pay; the default
    llama.cpp      where `xllamacpp` is installed and the backbone is the embedded one: its own Q4_1 file

Loss: tokens of the notes, read through decoding steps: perplexity, and how often the best next token is that of the
exact weights. For answers: the share that is equal, token by token, to `exact`'s.

Bar: the default, `half+lookup`, is at least 3 times as fast as `backbone` where the model is loaded in float32 (an AVX2
machine), 2.5 times in bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from plots import Bar, add_bars, bar_figures, check_bars, parse_options, write_figures
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from memspan import Document, Memory, MemoryBank, Sampling
from memspan.bank.encode import manifest_of
from memspan.bank.scope import Scope
from memspan.bench.device import plain_backbone
from memspan.eval.plots import Spread, draw_bars, spread
from memspan.generate.context import fitted_context, room_for
from memspan.generate.decode import Decoding
from memspan.generate.finder import Finder
from memspan.generate.lookup import PromptLookup
from memspan.model.backbones import known_gguf
from memspan.model.convert import LoadedModel, load
from memspan.model.decoding import DecodeRows, prefill, prepare
from memspan.model.memory_api import LayerMemory
from memspan.model.packed import DecodeWeights, PackedLinear
from memspan.model.shipped import DEFAULT_SOURCE
from memspan.text.corpus import read_paths
from memspan.text.packing import pack_contexts
from memspan.text.template import Context
from memspan.types import Retrieved, Span

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
DOCUMENTS = 3
# Tokens a step of the loss's measurement reads: one, as packed products may be slower over more, and are left then.
STEP = 1


@dataclass(slots=True)
class Row:
    """One way to decode: per question its tokens, and the seconds behind the first one (wall, process)."""

    ids: list[list[int]] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    lookups: list[PromptLookup] = field(default_factory=list)

    def add(self, times: Sequence[tuple[float, float]], ids: list[int]) -> None:
        self.ids.append(ids)
        self.wall.append(times[-1][0] - times[0][0])
        self.cpu.append(times[-1][1] - times[0][1])

    def rates(self, seconds: Sequence[float]) -> list[float]:
        """Tokens per second of every question."""
        return [(len(ids) - 1) / s for ids, s in zip(self.ids, seconds, strict=True) if len(ids) > 1]

    def per_second(self, seconds: Sequence[float]) -> float:
        """Median over the questions of tokens per second."""
        return statistics.median(self.rates(seconds))


class Clock(BaseStreamer):
    """Notes the time of every token that `generate` hands out."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(now())

    def end(self) -> None:
        pass


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def run_backbone(backbone: Any, context: Context, tokens: int, stops: Sequence[int], row: Row) -> None:
    clock = Clock()
    ids = torch.tensor([context.ids])
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": list(stops), "pad_token_id": 0}
    out = backbone.generate(ids, attention_mask=torch.ones_like(ids), streamer=clock, **options)
    row.add(clock.times[1:], out[0, ids.shape[1] :].tolist())  # the first is the prompt's


def run_memspan(
    loaded: LoadedModel, context: Context, memory: LayerMemory, tokens: int, row: Row, *, lookup: bool
) -> None:
    decoding = Decoding(loaded, [context], memory, Sampling(max_new_tokens=tokens))
    if not lookup:
        decoding.lookup = None
    times = [now() for _ in decoding.run()]
    row.lookups += [decoding.lookup] if decoding.lookup else []
    row.add(times, decoding.rows[0].ids)


def llama_runner() -> Callable[[str, int, Row], None]:
    """Runs a prompt through llama.cpp."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # an extra of its own, and without types
    parameters = xllamacpp.CommonParams()
    with known_gguf(DEFAULT_SOURCE) as path:  # a file of one package: it stays where it is
        parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel = 2048, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
    parameters.warmup = True
    server = xllamacpp.Server(parameters)

    def run(prompt: str, tokens: int, row: Row) -> None:
        request = {"prompt": prompt, "n_predict": tokens, "temperature": 0.0, "cache_prompt": False}
        answer = server.handle_completions({**request, "stop": ["<|im_end|>"]})
        timings = answer["timings"]
        row.ids.append([0] * (timings["predicted_n"] + 1))
        row.wall.append(timings["predicted_ms"] / 1000)

    return run


@torch.inference_mode()
def step_logits(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    """Logits behind every token from the `STEP`-th on, read in decoding steps of `STEP` tokens, `[T, V]` float32."""
    packed = pack_contexts([Context(tuple(ids[:STEP]), Span(0, STEP))], 0)
    retrieved: dict[int, Retrieved] = {}
    cache = DynamicCache(config=loaded.model.config.text_config)
    logits = [prefill(loaded.model, packed, None, retrieved, cache).float()]
    rows = DecodeRows(loaded.model, 1)
    rows.join(packed, cache, retrieved, [0])
    logits += [rows.step([ids[begin : begin + STEP]])[0].float() for begin in range(STEP, len(ids), STEP)]
    return torch.cat(logits)[:-1]


def loss(loaded: LoadedModel, texts: Sequence[list[int]], best: list[torch.Tensor] | None) -> dict[str, Any]:
    """Perplexity of texts, and the share of places where the best next token is that of `best` (filled when empty)."""
    total, count, same = 0.0, 0, 0
    best = [] if best is None else best
    filling = not best
    for place, ids in enumerate(texts):
        logits_TV = step_logits(loaded, ids)
        target_T = torch.tensor(ids[STEP:])
        total += float(torch.nn.functional.cross_entropy(logits_TV, target_T, reduction="sum"))
        count += len(target_T)
        if filling:
            best.append(logits_TV.argmax(-1))
        same += int((logits_TV.argmax(-1) == best[place]).sum())
    return {"perplexity": round(math.exp(total / count), 3), "same_best_token": round(same / count, 4), "tokens": count}


def equal_prefix(ids: Sequence[int], plain: Sequence[int]) -> int:
    pairs = zip(ids, plain, strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(plain)))


@contextlib.contextmanager
def opened(options: argparse.Namespace, loaded: LoadedModel) -> Iterator[Memory]:
    """The notes of the examples in a bank, made anew where none is given."""
    with contextlib.ExitStack() as stack:
        folder = options.bank or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bank"
        manifest = manifest_of(loaded)
        bank = MemoryBank.open(folder) if MemoryBank.exists(folder) else MemoryBank.create(folder, manifest)
        memory = stack.enter_context(Memory(bank, loaded))
        memory.add(item for item in read_paths([EXAMPLES / "notes"]) if isinstance(item, Document))
        yield memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="MSA checkpoint; default: SmolLM2-135M-Instruct")
    parser.add_argument(
        "--bank", type=Path, help="bank of the notes; made where it is missing. Default: a temporary one"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: what this machine computes fast")
    parser.add_argument("--adapter", help="as of `memspan ask`; none: the default model's answers are longer")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--texts", type=int, default=4, help="notes whose tokens measure the loss")
    add_bars(parser)
    options = parse_options(parser)

    weights: tuple[DecodeWeights, ...] = ("exact", "half", "int8", "int4")
    models = {
        name: load(options.model, adapter=options.adapter, device="cpu", dtype=options.dtype, weights=name)
        for name in weights
    }
    for model in models.values():
        prepare(model.model)
    loaded = models["exact"]
    backbone = plain_backbone(loaded)
    has_llama = importlib.util.find_spec("xllamacpp") is not None and options.model is None

    rows: dict[str, Row] = {"backbone": Row()}
    rows |= {name + drafts: Row() for name in models for drafts in ("", "+lookup")}
    rows |= {"llama.cpp": Row()} if has_llama else {}
    prompts: list[str] = []
    stops = sorted(loaded.template.stop_ids)
    with opened(options, loaded) as memory, memory.bank.snapshot(memory.namespace) as snapshot:
        finder = Finder(loaded, snapshot, Scope.parse(None, None))
        lines = (EXAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()[: options.questions]
        for line in lines:
            question = json.loads(line)["question"]
            found = memory.search(question, selector="lexical", limit=DOCUMENTS)
            context = fitted_context(loaded, question, found, room_for(loaded, options.tokens, None)).context
            run_backbone(backbone, context, options.tokens, stops, rows["backbone"])
            for name, model in models.items():
                for drafts in ("", "+lookup"):
                    given = context, finder.memory, options.tokens, rows[name + drafts]
                    run_memspan(model, *given, lookup=bool(drafts))
            prompts.append(str(loaded.template.tokenizer.decode(list(context.ids))))
        texts = [list(loaded.template.document(1, item.text))[:256] for item in notes(options.texts)]
    if has_llama:  # last: its threads stay in the process, and slow down those of torch
        llama = llama_runner()
        for prompt in prompts:
            llama(prompt, options.tokens, rows["llama.cpp"])
    best: list[torch.Tensor] = []
    losses = {name: loss(model, texts, best) for name, model in models.items()}

    plain, base = rows["exact"], rows["backbone"]
    figures: dict[str, Any] = {
        "read": {name: dict(Counter(map(form_of, linears(model)))) for name, model in models.items()},
        "rows": {},
        "loss": losses,
    }
    for name, row in rows.items():
        rate = row.per_second(row.wall)
        told: dict[str, Any] = {
            "tokens_per_second": spread(row.rates(row.wall), 1),
            "over_backbone": round(rate / base.per_second(base.wall), 2),
            "tokens": sum(map(len, row.ids)),
        }
        if name != "llama.cpp":  # it tells neither its tokens nor the process's seconds behind the first one
            cpu_rate = row.per_second(row.cpu)
            told["tokens_per_cpu_second"] = round(cpu_rate, 1)
            told["over_backbone_cpu"] = round(cpu_rate / base.per_second(base.cpu), 2)
            told["answers_as_exact"] = sum(ids == other for ids, other in zip(row.ids, plain.ids, strict=True))
            equal = sum(map(equal_prefix, row.ids, plain.ids))
            told["equal_leading_tokens"] = round(equal / sum(map(len, plain.ids)), 3)
        if drafted := sum(lookup.num_drafted for lookup in row.lookups):
            told["drafts_accepted"] = round(sum(lookup.num_accepted for lookup in row.lookups) / drafted, 3)
        figures["rows"][name] = told
    # The default options of a CPU. Other classes load bfloat16, which `generate` reads in half the time.
    wanted = 3.0 if loaded.model.dtype == torch.float32 else 2.5
    bar = {"half+lookup_over_backbone": Bar(figures["rows"]["half+lookup"]["over_backbone"], at_least=wanted)}
    figures["bars"] = bar_figures(bar)
    bars = {name: Spread.of(row.rates(row.wall)) for name, row in rows.items()}
    write_figures(options, figures, partial(draw_bars, bars=bars, up="tokens per second", title="decoding"), loaded)
    check_bars(options, bar)


def linears(loaded: LoadedModel) -> list[torch.nn.Linear]:
    return [module for module in loaded.model.backbone.modules() if isinstance(module, torch.nn.Linear)]


def form_of(linear: torch.nn.Linear) -> str:
    """What decoding steps of one row read in place of a weight."""
    return linear.form.packing if isinstance(linear, PackedLinear) else "plain"


def notes(count: int) -> list[Document]:
    found = [item for item in read_paths([EXAMPLES / "notes"]) if isinstance(item, Document)]
    return found[:: max(1, len(found) // count)][:count]


if __name__ == "__main__":
    main()
