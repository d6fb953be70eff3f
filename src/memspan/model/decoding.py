"""Prefill and decoding steps of a batch over [memory ; local] (paper 3.4.3): tokens in, logits out, nothing picked."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache

from memspan.model.buffers import DecodeBuffers
from memspan.model.lower import LowerStates
from memspan.model.memory_api import AllRecorded, LayerMemory, QueryStep, Watch
from memspan.model.modeling import MSAForCausalLM, decoder_layers
from memspan.model.packed import pack_weights
from memspan.model.paged import PagedBuffers
from memspan.model.replay import replay_layers
from memspan.ops.paged import paged_attention
from memspan.text.packing import PackedContexts
from memspan.types import Retrieved

_preparing = threading.RLock()


def prepare(model: MSAForCausalLM) -> None:
    """Make a model's decoding steps fast, where that was asked for (`decode_weights`) and is not done yet.

    It takes part of a second, so a model that only encodes never does it. Weights must not change afterwards.
    """
    with _preparing:
        if model.decode_weights is None:
            return
        try:
            if model.decode_weights != "exact":
                pack_weights(model.backbone, model.decode_weights)
            num_layers = model.config.text_config.num_hidden_layers
            replay_layers(model, list(decoder_layers(model.backbone, range(num_layers)).values()))
        finally:
            model.decode_weights = None


@contextlib.contextmanager
def unprepared_alone(model: torch.nn.Module) -> Iterator[None]:
    """Run a model that another thread may be about to `prepare`: not meanwhile. One that is prepared runs in any number
    of threads at a time."""
    with _preparing if getattr(model, "decode_weights", None) is not None else contextlib.nullcontext():
        yield


@torch.inference_mode()
def prefill(
    model: torch.nn.Module,
    packed: PackedContexts,
    memory: LayerMemory | None,
    retrieved: dict[int, Retrieved],
    cache: DynamicCache,
    lower: LowerStates | None = None,
) -> torch.Tensor:
    """Run whole contexts; MSA layers route into `retrieved`. Returns the logits after the last token, `[B, V]`."""
    step = QueryStep(
        valid_BS=packed.padding_mask,
        sees_memory_BT=packed.sees_memory,
        routes_BT=packed.routes,
        memory=memory,
        retrieved=retrieved,
        lower=lower,
        slice_tokens=getattr(model, "prefill_tokens", None),
    )
    with unprepared_alone(model):
        out = model(
            input_ids=packed.ids,
            position_ids=packed.positions,
            past_key_values=cache,
            use_cache=True,
            memory=step,
            logits_to_keep=1,
        )
    return out.logits[:, -1]


@torch.inference_mode()
def look(model: torch.nn.Module, packed: PackedContexts, watch: Watch) -> None:
    """Run one context, without memory, as far as is needed to see what `watch` is to be given."""
    with unprepared_alone(model), contextlib.suppress(AllRecorded):
        step = QueryStep(slice_tokens=getattr(model, "prefill_tokens", None), watch=watch)
        model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False, memory=step, logits_to_keep=1)


class DecodeRows:
    """Contexts that are decoded in one forward a step, whenever each of them joined: the one way to decode.

    Args:
        max_rows: contexts at a time, at most.
    """

    def __init__(self, model: MSAForCausalLM, max_rows: int) -> None:
        self._model, self._buffers = model, _buffers_for(model)
        self._next: list[int] = []
        self.max_rows = max_rows

    def __len__(self) -> int:
        """Contexts that are decoding."""
        return len(self._next)

    @torch.inference_mode()
    def join(
        self,
        packed: PackedContexts,
        cache: DynamicCache,
        retrieved: dict[int, Retrieved],
        rows: Sequence[int],
        keep_layers: int = 0,
    ) -> None:
        """Add contexts of a prefill, as the last rows.

        Args:
            packed, cache, retrieved: as `prefill` got and left them. K and V of all contexts are taken out of them.
            rows: the contexts' in them.
            keep_layers: how many of the first layers the cache keeps.
        """
        assert len(self) + len(rows) <= self.max_rows, f"the batch has {self.max_rows} rows, and not enough are free"
        lengths, last = packed.lengths, packed.positions[:, -1].tolist()
        self._buffers.join(cache, retrieved, rows, [lengths[row] for row in rows], keep_layers)
        self._next += [last[row] + 1 for row in rows]

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Free a row: the last one takes its place."""
        self._buffers.leave(row)
        self._next[row] = self._next[-1]
        self._next.pop()

    @torch.inference_mode()
    def step(self, ids_RT: Sequence[Sequence[int]]) -> torch.Tensor:
        """Run T new tokens of every row; the logits behind each, `[R, T, V]`."""
        device, T = self._model.device, len(ids_RT[0])
        self._buffers.begin()
        positions = [[start + place for place in range(T)] for start in self._next]
        with unprepared_alone(self._model):
            out = self._model(
                input_ids=torch.tensor(ids_RT, device=device),
                position_ids=torch.tensor(positions, device=device),
                use_cache=False,
                memory=QueryStep(buffers=self._buffers),
            )
        self._next = [start + T for start in self._next]
        return out.logits

    def drop(self, row: int, count: int) -> None:
        """Take the newest tokens of a row back."""
        self._buffers.drop(row, count)
        self._next[row] -= count


def _buffers_for(model: MSAForCausalLM) -> DecodeBuffers:
    """Buffers whose rows attend in one call, where the model's device has a kernel for that."""
    config = model.config.text_config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    is_paged = paged_attention(model.device, model.dtype, heads, groups, width)
    return PagedBuffers() if is_paged else DecodeBuffers()
