"""Router projections in an otherwise untouched attention module (paper 3.2).

An MSA layer's `self_attn` keeps its class, weights and parameter names; its class is replaced by a subclass that adds
`router_q_proj` and `router_k_proj`, computes them from the layer's normalized input, and then runs the original
forward. So norms of q and k, biases, partial rotary embeddings and whatever else a family does keep working, and
`q_proj` is still called `self_attn.q_proj` for PEFT and for plain checkpoints.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from memspan.model.attention import record_router_key
from memspan.model.memory_api import EncodeStep, QueryStep
from memspan.ops.pooling import pool_chunks
from memspan.stages import stage


class RoutedAttention(nn.Module):
    """Mixin of an MSA layer's attention. Subclasses are made by `add_router`, never by hand.

    Attributes:
        router_q_proj: hidden -> H*D, no bias, neither normalized nor rotated.
        router_k_proj: hidden -> G*D, likewise.
    """

    layer_idx: int
    router_heads: tuple[int, int, int]
    router_q_proj: nn.Linear
    router_k_proj: nn.Linear

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        step = kwargs.get("memory")
        if step is not None:
            self._prepare(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0], step)
        return super().forward(*args, **kwargs)

    def _prepare(self, hidden_BTF: torch.Tensor, step: EncodeStep | QueryStep) -> None:
        num_heads, _, head_dim = self.router_heads
        if isinstance(step, EncodeStep):
            # Mean-pooling commutes with a linear map: pool first, project 1/P of the rows.
            pooled_BCF = pool_chunks(hidden_BTF, step.lengths_B, step.chunk_size)
            record_router_key(step, self.layer_idx, pooled_BCF, self.router_key(pooled_BCF))
        elif step.memory is not None and step.routes_BT is not None:
            query_BTHD = project(self.router_q_proj, hidden_BTF).unflatten(-1, (num_heads, head_dim))
            with stage("routing"):
                step.retrieved[self.layer_idx] = step.memory.route(self.layer_idx, query_BTHD, step.routes_BT)

    def router_key(self, pooled_CF: torch.Tensor) -> torch.Tensor:
        """Routing keys `[..., G, D]` of pooled layer inputs `[..., F]`."""
        _, num_kv_heads, head_dim = self.router_heads
        return project(self.router_k_proj, pooled_CF).unflatten(-1, (num_kv_heads, head_dim))


def project(linear: nn.Linear, hidden_BTF: torch.Tensor) -> torch.Tensor:
    """A router projection, computed in its own number format: it may be trained in float32 on a bfloat16 backbone."""
    return linear(hidden_BTF.to(linear.weight.dtype))


@cache
def _routed_class(attention_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Routed{attention_class.__name__}", (RoutedAttention, attention_class), {})


def add_router(
    attention: nn.Module, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> RoutedAttention:
    """Turn an attention module into an MSA layer's, in place. The projections are of `attention`'s dtype and device.

    Args:
        attention: the module called `self_attn` in a decoder layer; must know its `layer_idx`.
        hidden_size: size of the layer's input.
        num_heads, num_kv_heads, head_dim: H, G and D.
    """
    like = next(attention.parameters())
    attention.__class__ = _routed_class(type(attention))
    assert isinstance(attention, RoutedAttention)
    attention.router_heads = (num_heads, num_kv_heads, head_dim)
    for name, heads in (("router_q_proj", num_heads), ("router_k_proj", num_kv_heads)):
        projection = nn.Linear(hidden_size, heads * head_dim, bias=False, device=like.device, dtype=like.dtype)
        setattr(attention, name, projection)
    return attention
