"""The seam: what is handed into the model's forward as `memory=`, and nothing else knows how memory is kept.

A step object carries what the attention function must know, since no attention mask reaches it: which tokens are
padding (by length, never by token id), which see memory, which route.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch

from memspan.model.buffers import DecodeBuffers
from memspan.model.lower import LowerStates
from memspan.types import Retrieved


class LayerMemory(Protocol):
    """A memory that every MSA layer asks for itself. Implementations score with `memspan.ops.scoring` only."""

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """Select documents for a batch of questions and return their content.

        Args:
            layer: index of the MSA layer.
            router_query_BTHD: output of the layer's router query projection.
            query_mask_BT: True for the tokens that route.
        """
        ...


@dataclass(frozen=True)
class EncodeStep:
    """One forward over right-padded documents; MSA layers leave what is kept of them in `recorded`.

    Attributes:
        lengths_B: tokens per document.
        chunk_size: P.
        last_layer: the last MSA layer: behind its K and V nothing is kept, so without gradients the forward ends there
            (`AllRecorded`); None: it runs to its end.
        recorded: per MSA layer the pooled rows. Recording twice (gradient checkpointing) gives the same entry.
    """

    lengths_B: torch.Tensor
    chunk_size: int
    last_layer: int | None = None
    recorded: dict[int, PooledLayer] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenStep:
    """One forward over right-padded documents, each with a repetition behind it, whose attention says which tokens'
    keys and values are kept (`memspan.ops.choosing`). Behind the last of `layers` it ends (`AllRecorded`).

    Attributes:
        layers: in which tokens are kept.
        documents: where the tokens of each document begin and end; the repetition follows.
        ends: of each repetition.
        recorded: per layer and document what attention its tokens got `[G, S]`, and K and V `[G, S, 2, D]`.
    """

    layers: tuple[int, ...]
    documents: tuple[tuple[int, int], ...]
    ends: tuple[int, ...]
    recorded: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = field(default_factory=dict)


class AllRecorded(Exception):
    """Ends a forward: everything that is kept of the documents, or looked at, is recorded."""


@dataclass(slots=True)
class PooledLayer:
    """What one MSA layer keeps of a batch of documents, padded to the longest: `[B, C, G, D]` each.

    The routing key is left unscaled here; `fold_keys` makes it ready for scoring.

    Attributes:
        hidden_BCF: pooled input of the router key projection, from which training makes the key anew.
    """

    hidden_BCF: torch.Tensor | None = None
    router_key_BCGD: torch.Tensor | None = None
    key_BCGD: torch.Tensor | None = None
    value_BCGD: torch.Tensor | None = None


@dataclass(frozen=True)
class QueryStep:
    """One forward of the active context: a whole prompt, or the tokens decoded since.

    Attributes:
        valid_BS: True for tokens, False for padding, over all cached and new tokens; None: no padding.
        sees_memory_BT: False for the template prefix; None: every new token sees memory.
        routes_BT: the tokens that route; None: none does, and what was `retrieved` before is used.
        memory: asked by every MSA layer in a step that routes (again when gradient checkpointing recomputes the
            layer, so asking must have no other effect); None: there is no memory.
        retrieved: per MSA layer what was selected; shared by all steps of a round, so decoding never re-routes.
        lower: what the layers below the first MSA layer need not compute again; None: they run for every new token.
        local_masks: per (T, S, sliding window) which local tokens are seen, made by the first layer that asks.
        slice_tokens: tokens that attend at a time, at most, where a mask is needed, so that it never is a square of a
            long context; None: all.
        buffers: K and V of the rows that are decoded, in the place of a cache, of `retrieved` and of `valid_BS`.
        watch: what of the attention is looked at; None: nothing.
    """

    valid_BS: torch.Tensor | None = None
    sees_memory_BT: torch.Tensor | None = None
    routes_BT: torch.Tensor | None = None
    memory: LayerMemory | None = None
    retrieved: dict[int, Retrieved] = field(default_factory=dict)
    lower: LowerStates | None = None
    local_masks: dict[tuple[int, int, int | None], torch.Tensor | None] = field(default_factory=dict)
    slice_tokens: int | None = None
    buffers: DecodeBuffers | None = None
    watch: Watch | None = None


@dataclass(frozen=True)
class Watch:
    """What the forward of one context without padding is run to see: how the attention of its last tokens is divided
    among all. Behind the last layer that is looked at the forward ends (`AllRecorded`).

    Attributes:
        owner_S: of every token who it belongs to, from 0 to N - 1; N: nobody.
        num_owners: N.
        num_last: T, the last tokens, whose attention is looked at.
        layers: that are looked at.
        shares: per layer, `[H, T, N]`.
    """

    owner_S: torch.Tensor
    num_owners: int
    num_last: int
    layers: tuple[int, ...]
    shares: dict[int, torch.Tensor] = field(default_factory=dict)


DocumentStep = EncodeStep | TokenStep
Step = DocumentStep | QueryStep
