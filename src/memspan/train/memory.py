"""`BatchMemory`: the documents of a batch as the model's `LayerMemory`, differentiable.

Serving reads rounded latents from a bank and scores them in two passes; a batch is small and scored once, in float32.
Both call `memspan.ops.scoring`, and select by score, then by id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch

from memspan.config import MSAConfig
from memspan.model.modeling import MSAForCausalLM
from memspan.ops.scoring import chunk_scores, document_scores, fold_queries, routing_places, take_tokens
from memspan.ops.transfer import to_device
from memspan.text.packing import BATCH_TOKENS, length_batches
from memspan.types import EncodedDocuments, Retrieved

Encode = Callable[[Sequence[int]], EncodedDocuments]
"""Gives the latents of some documents by their places."""

EncodeAll = Callable[[Encode, Sequence[Sequence[int]]], list[EncodedDocuments]]


class BatchMemory:
    """N encoded documents, asked by B contexts that may attend to them all.

    Asking a layer again (gradient checkpointing does) computes the same and changes nothing. A device is waited for
    once, not in every layer.

    Attributes:
        scores: per MSA layer the routing scores of all documents as it first asked, `[B, N]` float32, with gradients.
    """

    def __init__(
        self,
        documents: EncodedDocuments,
        document_ids: Sequence[int],
        config: MSAConfig,
        *,
        top_k: int | None = None,
        attend: bool = True,
    ) -> None:
        """
        Args:
            document_ids: of the N documents, distinct; scores are in this order, content in that of the ids.
            top_k: documents selected per layer; default: the config's. All, where there are no more.
            attend: False: scores only, no content.
        """
        self._documents, self._config, self._attend = documents, config, attend
        self._top_k = config.top_k_docs if top_k is None else top_k
        device = documents.router_keys_LCW.device
        self._ids = list(document_ids)
        # Position of every document in the order of ids, which is that of a bank, and the rows in that order.
        order_N = torch.tensor(self._ids).argsort()
        document_C = torch.repeat_interleave(torch.tensor(documents.num_chunks))
        place_C = order_N.argsort()[document_C]
        in_bank_order_C = place_C.argsort(stable=True)
        self._order_N, self._document_C = to_device(order_N, device), to_device(document_C, device)
        self._bank_order_C, self._place_C = to_device(in_bank_order_C, device), to_device(place_C.sort()[0], device)
        self._most_rows = sum(sorted(documents.num_chunks, reverse=True)[: self._top_k])
        self._sorted_ids = sorted(self._ids)
        self._mask_BT = self._place_BR = torch.empty(0)
        self.scores: dict[int, torch.Tensor] = {}
        self._chosen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """See `LayerMemory.route`. Gradients flow into queries, keys and content, not through the selection."""
        with torch.autocast(router_query_BTHD.device.type, enabled=False):
            score_BN = self._score(layer, router_query_BTHD, query_mask_BT)
        self.scores.setdefault(layer, score_BN)
        if layer not in self._chosen:  # a choice is made once, so that a recomputed layer sees what it saw
            by_id_BN = score_BN.detach().index_select(1, self._order_N)
            best_BN = by_id_BN.sort(dim=1, descending=True, stable=True)  # as `top_documents`: by score, then by id
            k = self._top_k if self._attend else 0
            self._chosen[layer] = best_BN.values[:, :k], best_BN.indices[:, :k]
        return self._gather(layer, score_BN)

    def _score(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> torch.Tensor:
        config = self._config
        if self._mask_BT is not query_mask_BT:  # the same in every layer
            places_BR = routing_places(query_mask_BT.cpu())
            self._mask_BT, self._place_BR = query_mask_BT, to_device(places_BR, router_query_BTHD.device)
        query_BTHD = take_tokens(router_query_BTHD, self._place_BR)
        query_BTW = fold_queries(query_BTHD, config.num_kv_heads, config.similarity)
        key_CW = self._documents.router_keys_LCW[config.layers.index(layer)]
        score_BC = chunk_scores(query_BTW, key_CW.to(query_BTW.dtype))
        return document_scores(score_BC, self._document_C, len(self._ids))

    def _gather(self, layer: int, score_BN: torch.Tensor) -> Retrieved:
        """The content of what was chosen, in the order of ids, zero-padded to the longest."""
        score_BK, place_BK = self._chosen[layer]
        mask_BN = torch.zeros_like(score_BN, dtype=torch.bool).scatter_(1, place_BK, score_BK.isfinite())
        chosen_BC = mask_BN[:, self._place_C]
        counts_B = chosen_BC.sum(1)
        # What the longest documents have: more columns than needed cost a device less than to be asked how many are.
        M = int(counts_B.max()) if counts_B.is_cpu else min(self._most_rows, chosen_BC.shape[1])
        mask_BM = torch.arange(M, device=counts_B.device) < counts_B[:, None]
        rows_BM = self._bank_order_C[chosen_BC.byte().argsort(dim=1, descending=True, stable=True)[:, :M]]
        content_C2GD = self._documents.content_LC2GD[self._config.layers.index(layer)]
        content = content_C2GD.index_select(0, rows_BM.flatten()).unflatten(0, rows_BM.shape)
        key_BMGD, value_BMGD = content.masked_fill(~mask_BM[..., None, None, None], 0).unbind(2)
        return Retrieved(
            keys_BGMD=key_BMGD.transpose(1, 2),
            values_BGMD=value_BMGD.transpose(1, 2),
            mask_BM=mask_BM,
            doc_ids=cast(Any, _Later(lambda: self._found(layer, place_BK, lambda place: self._sorted_ids[place]))),
            scores=cast(Any, _Later(lambda: self._found(layer, score_BK, float))),
        )

    def _found(self, layer: int, value_BK: torch.Tensor, read: Callable[[Any], Any]) -> tuple[tuple[Any, ...], ...]:
        """What is known of the chosen documents of every question."""
        pairs = zip(value_BK.tolist(), self._chosen[layer][0].isfinite().tolist(), strict=True)
        return tuple(tuple(read(x) for x, is_one in zip(*row, strict=True) if is_one) for row in pairs)


class _Later(Sequence[tuple[Any, ...]]):
    """Tuples that are read off a device when they are looked at, which training does not."""

    def __init__(self, read: Callable[[], tuple[tuple[Any, ...], ...]]) -> None:
        self._read = cache(read)

    def __getitem__(self, place: Any) -> Any:
        return self._read()[place]

    def __len__(self) -> int:
        return len(self._read())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._read() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._read())


def moved(documents: EncodedDocuments, device: torch.device) -> EncodedDocuments:
    """The same latents on a device."""
    keys_LCW, content_LC2GD = (x.to(device) for x in (documents.router_keys_LCW, documents.content_LC2GD))
    return EncodedDocuments(keys_LCW, content_LC2GD, documents.num_chunks)


def encode_documents(
    model: MSAForCausalLM,
    documents: Sequence[Sequence[int]],
    max_tokens: int = BATCH_TOKENS,
    encode_all: EncodeAll = lambda encode, batches: [encode(batch) for batch in batches],
) -> EncodedDocuments:
    """Encode documents in sub-batches of like length, at most `max_tokens` padded tokens each; latents in order.

    Args:
        encode_all: has every sub-batch encoded, in order: here, or by several processes.
    """
    batches = list(length_batches([len(ids) for ids in documents], max_tokens))
    encoded = encode_all(lambda batch: model.encode([documents[index] for index in batch]), batches)
    order = [index for batch in batches for index in batch]
    chunks = torch.tensor([count for part in encoded for count in part.num_chunks])
    # Rows lie in the order they were encoded in; documents 0, 1, ... are wanted.
    rows_C = torch.repeat_interleave(torch.tensor(order), chunks).argsort(stable=True)
    keys_LCW = torch.cat([part.router_keys_LCW for part in encoded], dim=1)
    content_LC2GD = torch.cat([part.content_LC2GD for part in encoded], dim=1)
    rows_C = rows_C.to(keys_LCW.device)
    in_order = chunks[torch.tensor(order).argsort()]
    return EncodedDocuments(
        keys_LCW.index_select(1, rows_C), content_LC2GD.index_select(1, rows_C), tuple(in_order.tolist())
    )
