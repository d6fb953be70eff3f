"""`BatchMemory`: the documents of a batch as the model's `LayerMemory`, differentiable.

Serving reads rounded latents from a bank and scores them in two passes; a batch is small and scored once, in float32.
Both call `memspan.ops.scoring`, and select by score, then by id.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memspan.config import MSAConfig
from memspan.model.modeling import MSAForCausalLM
from memspan.ops.scoring import chunk_scores, document_scores, fold_queries, routing_queries, top_documents
from memspan.text.packing import BATCH_TOKENS, length_batches
from memspan.types import EncodedDocuments, Retrieved


class BatchMemory:
    """N encoded documents, asked by B contexts that may attend to them all.

    Asking a layer again (gradient checkpointing does) computes the same and changes nothing.

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
        self._place_N = order_N.argsort()
        chunks_N = torch.tensor(documents.num_chunks)
        self._document_C = torch.repeat_interleave(chunks_N).to(device)
        self._bank_order_C = self._place_N.to(device)[self._document_C].argsort(stable=True)
        self._place_C = self._place_N.to(device)[self._document_C][self._bank_order_C]
        self._sorted_ids = [self._ids[index] for index in order_N.tolist()]
        self.scores: dict[int, torch.Tensor] = {}
        self._chosen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """See `LayerMemory.route`. Gradients flow into queries, keys and content, not through the selection."""
        with torch.autocast(router_query_BTHD.device.type, enabled=False):
            score_BN = self._score(layer, router_query_BTHD, query_mask_BT)
        self.scores.setdefault(layer, score_BN)
        if layer not in self._chosen:  # a choice is made once, so that a recomputed layer sees what it saw
            self._chosen[layer] = [
                top_documents(score_N, self._place_N.to(score_N.device), self._top_k if self._attend else 0)
                for score_N in score_BN.detach()
            ]
        return self._gather(layer, score_BN)

    def _score(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> torch.Tensor:
        config, query_BTHD = self._config, routing_queries(router_query_BTHD, query_mask_BT)
        query_BTW = fold_queries(query_BTHD, config.num_kv_heads, config.similarity)
        key_CW = self._documents.router_keys_LCW[config.layers.index(layer)]
        score_BC = chunk_scores(query_BTW, key_CW.to(query_BTW.dtype))
        return document_scores(score_BC, self._document_C, len(self._ids))

    def _gather(self, layer: int, score_BN: torch.Tensor) -> Retrieved:
        """The content of what was chosen, in the order of ids, zero-padded to the longest."""
        chosen = self._chosen[layer]
        mask_BN = torch.zeros(len(chosen), len(self._ids), dtype=torch.bool, device=score_BN.device)
        for row_N, (places, _) in zip(mask_BN, chosen, strict=True):
            row_N[places] = True
        chosen_BC = mask_BN[:, self._place_C]
        counts_B = chosen_BC.sum(1)
        M = int(counts_B.max())
        mask_BM = torch.arange(M, device=counts_B.device) < counts_B[:, None]
        rows_BM = self._bank_order_C[chosen_BC.byte().argsort(dim=1, descending=True, stable=True)[:, :M]]
        content_C2GD = self._documents.content_LC2GD[self._config.layers.index(layer)]
        content = content_C2GD.index_select(0, rows_BM.flatten()).unflatten(0, rows_BM.shape)
        key_BMGD, value_BMGD = content.masked_fill(~mask_BM[..., None, None, None], 0).unbind(2)
        row_scores_BM = score_BN.gather(1, self._document_C[rows_BM]).masked_fill(~mask_BM, 0)
        return Retrieved(
            keys_BGMD=key_BMGD.transpose(1, 2),
            values_BGMD=value_BMGD.transpose(1, 2),
            mask_BM=mask_BM,
            doc_ids=tuple(tuple(self._sorted_ids[place] for place in places.tolist()) for places, _ in chosen),
            scores=tuple(tuple(scores.tolist()) for _, scores in chosen),
            row_scores_BM=row_scores_BM,
        )


def encode_documents(
    model: MSAForCausalLM, documents: Sequence[Sequence[int]], max_tokens: int = BATCH_TOKENS
) -> EncodedDocuments:
    """Encode documents in sub-batches of like length, at most `max_tokens` padded tokens each; latents in order."""
    batches = list(length_batches([len(ids) for ids in documents], max_tokens))
    encoded = [model.encode([documents[index] for index in batch]) for batch in batches]
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
