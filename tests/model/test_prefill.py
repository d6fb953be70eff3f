"""A prefill that attends some tokens at a time is the prefill that attends all at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import FAMILIES, WINDOW, TensorMemory, random_context, random_ids, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import DynamicCache

from memspan.model.decoding import prefill
from memspan.model.lower import LowerStates
from memspan.model.modeling import MSAForCausalLM
from memspan.text.packing import pack_contexts
from memspan.types import Retrieved

BODIES = {"one": (3 * WINDOW + 1,), "several": (3 * WINDOW, 2, WINDOW + 5)}


def _run(
    model: MSAForCausalLM, bodies: Sequence[int], memory: Any, size: int, lower: bool = False
) -> tuple[torch.Tensor, dict[int, Retrieved], DynamicCache]:
    model.prefill_tokens = size
    torch.manual_seed(0)
    packed = pack_contexts([random_context(3, body, 2) for body in bodies], model.config.offset)
    cache, retrieved = DynamicCache(config=model.config.text_config), dict[int, Retrieved]()
    states = None
    if lower:  # a round before ran all but the last tokens through the lower layers
        states = LowerStates(torch.randn(len(bodies), 4, model.config.text_config.hidden_size))
        for layer in range(model.config.layers[0]):
            heads, width = model.config.num_kv_heads, model.config.head_dim
            cache.update(*torch.randn(2, len(bodies), heads, 4, width), layer)
    return prefill(model, packed, memory, retrieved, cache, states), retrieved, cache


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
@pytest.mark.parametrize("bodies", BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_however_many_tokens_attend_at_a_time_the_prefill_is_the_same(
    family: str, bodies: Sequence[int], size: int
) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        memories = [None, TensorMemory(model, model.encode(random_ids(9, 3, 8, 14, 1)))]
    for memory in memories:
        whole, routed, kept = _run(model, bodies, memory, 1_000_000)
        found, again, cache = _run(model, bodies, memory, size)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
        assert [one.doc_ids for one in again.values()] == [one.doc_ids for one in routed.values()]
        for one, other in zip(cache.layers, kept.layers, strict=True):
            torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_tokens_that_a_round_before_has_run_stay_before_each_part() -> None:
    model = tiny_model()
    with torch.no_grad():
        memory = TensorMemory(model, model.encode(random_ids(9, 3, 8)))
    logits = []
    for size in (1_000_000, 3):
        logits.append(_run(model, BODIES["several"], memory, size, lower=True)[0])
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


class _Largest(TorchDispatchMode):
    """The most truth values in a tensor made inside: a mask."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_iter(out) if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
        self.most = max(self.most, *sizes, 0)
        return out


def test_no_mask_is_a_square_of_the_context() -> None:
    model = tiny_model()
    with torch.no_grad():
        memory = TensorMemory(model, model.encode(random_ids(9, 3, 8)))
    sizes = []
    for size in (1_000_000, 8):
        with _Largest() as made:
            _run(model, (200,), memory, size)
        sizes.append(made.most)
    assert sizes[0] > 200 * 200 > 16 * sizes[1]


def test_a_context_that_needs_no_mask_is_not_cut() -> None:
    model, calls = tiny_model(), []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(options["attn_mask"])
        return attend(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
        _run(model, (50,), None, 4)
    assert calls == [None] * model.config.text_config.num_hidden_layers
