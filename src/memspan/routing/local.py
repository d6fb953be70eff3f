"""`LocalMemory`: a bank in one process as the model's `LayerMemory`.

Routing takes two passes. A coarse one scores every chunk in 8 bits (`memspan.ops.coarse`) and keeps at least 8k
documents per question; an exact one re-scores those from the stored keys by a routine that does not depend on batch,
tile or shard. Order is by score, then by id. Documents that are not live, or filtered out, are never scored into the
selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from torch.nn.utils.rnn import pad_sequence

from memspan.bank.manifest import TOKENS, Manifest
from memspan.bank.segment import LATENT_DTYPE
from memspan.bank.shard import Shard
from memspan.bank.tiers import Tiers
from memspan.ops.choosing import by_layer
from memspan.ops.scoring import fold_queries, routing_places, take_tokens, top_documents
from memspan.ops.transfer import start_to_device, to_device
from memspan.routing.ahead import ContentAhead
from memspan.routing.source import Candidates, DocumentSource, LocalSource, accelerator
from memspan.stages import stage
from memspan.types import LayerRouting, Retrieved

CANDIDATES_PER_SELECTED = 8
MOST_CANDIDATES = 4096
# What the coarse pass may be wrong by: so many times the largest error seen among the documents that were re-scored.
_ERROR_MARGIN = 3.0


class SourceMemory:
    """A `LayerMemory` over a `DocumentSource`.

    Attributes:
        candidates: per MSA layer and question what the last `route` considered, exactly scored, best first; more than
            are attended to. For ranking over layers.
    """

    def __init__(
        self,
        source: DocumentSource,
        manifest: Manifest,
        top_k: int,
        device: torch.device | None = None,
        ahead: ContentAhead | None = None,
    ) -> None:
        """
        Args:
            source: the documents.
            manifest: of their bank.
            top_k: documents attended to per MSA layer; all, where there are no more.
            device: where the selected content goes. Default: CPU.
            ahead: what copies content there before it is selected. Default: nothing does.
        """
        self._source, self._manifest, self._top_k = source, manifest, top_k
        self._device, self._ahead = device or torch.device("cpu"), ahead
        self._mask_BT = self._place_BR = torch.empty(0)
        self.candidates: dict[int, list[Candidates]] = {}

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """See `LayerMemory.route`."""
        if self._mask_BT is not query_mask_BT:  # the same in every layer; padding and the template's own do not route
            self._mask_BT = query_mask_BT
            self._place_BR = to_device(routing_places(query_mask_BT.cpu()), router_query_BTHD.device)
        query_BTHD = take_tokens(router_query_BTHD, self._place_BR)
        query_BTW = fold_queries(query_BTHD, self._manifest.num_kv_heads, self._manifest.similarity)
        at_once = self._source.questions_at_once
        self.candidates[layer] = [
            found for part_BTW in query_BTW.split(at_once) for found in self._candidates(layer, part_BTW)
        ]
        selected = [
            Candidates(found.ids[: self._top_k], found.scores[: self._top_k]) for found in self.candidates[layer]
        ]
        if self._manifest.content is not None:
            return self._unread(selected)
        retrieved = self.gather(layer, selected)
        for following in [one for one in self._manifest.msa_layers if one > layer][:1]:
            self.read_ahead(following, retrieved.doc_ids)  # which often selects them too
        return retrieved

    def read(self, ids: Sequence[Sequence[int]]) -> dict[int, Retrieved]:
        """Content of tokens, of some documents for every question: what each layer that reads it attends to. With
        ranks, all of them ask for the same."""
        manifest, wanted = self._manifest, sorted({document_id for of_one in ids for document_id in of_one})
        assert manifest.content is not None, "the bank keeps tokens"
        if not wanted:
            return {}
        rows = dict(zip(wanted, self._source.content(TOKENS, wanted), strict=True))
        none = torch.empty(0, 2, 1, manifest.head_dim + 1, dtype=LATENT_DTYPE)
        questions = [torch.cat([none, *(rows[number] for number in sorted(of_one))])[:, :, 0] for of_one in ids]
        doc_ids, scores = tuple(map(tuple, ids)), tuple((0.0,) * len(of_one) for of_one in ids)
        found = {}
        of_layers = by_layer(questions, len(manifest.content.layers), manifest.num_kv_heads)
        for layer, tensors in zip(manifest.content.layers, of_layers, strict=True):
            keys, values, heads_BGM = (to_device(tensor, self._device) for tensor in tensors)
            found[layer] = Retrieved(keys, values, heads_BGM.any(1), doc_ids, scores, heads_BGM)
        return found

    def _unread(self, selected: Sequence[Candidates]) -> Retrieved:
        """Selected documents of which nothing is attended to: their tokens are read once it is known which documents
        are chosen over all layers (`read`)."""
        none_BG0D = torch.empty(len(selected), self._manifest.num_kv_heads, 0, self._manifest.head_dim)
        return Retrieved(
            none_BG0D.to(self._device, LATENT_DTYPE),
            none_BG0D.to(self._device, LATENT_DTYPE),
            torch.empty(len(selected), 0, dtype=torch.bool, device=self._device),
            doc_ids=tuple(tuple(found.ids.tolist()) for found in selected),
            scores=tuple(tuple(found.scores.tolist()) for found in selected),
        )

    def read_ahead(self, layer: int, doc_ids: Iterable[Iterable[int]]) -> None:
        """Have the content of questions' documents in a layer read ahead, and copied where it is attended to."""
        ids = sorted({document_id for of_question in doc_ids for document_id in of_question})
        if self._ahead is None:
            self._source.prefetch(layer, ids)
        else:
            self._ahead.start(layer, ids)

    def _candidates(self, layer: int, query_BTW: torch.Tensor) -> list[Candidates]:
        """The best documents of the coarse pass, re-scored: 8k, and what it cannot tell from the k-th best of those.

        Limit: its errors on documents left out are taken to be at most `_ERROR_MARGIN` times the largest seen; and no
        more than `MOST_CANDIDATES` are looked at.
        """
        count = CANDIDATES_PER_SELECTED * self._top_k
        leading = [best(found, count) for found in self._source.leading(layer, query_BTW, count)]
        exact = self._exact(layer, leading)
        bounds = [self._bound(coarse, scored) for coarse, scored in zip(leading, exact, strict=True)]
        if all(
            len(found.ids) < count or float(found.scores[-1]) < bound
            for found, bound in zip(leading, bounds, strict=True)
        ):
            return [best(found, count) for found in exact]
        most = max(count, MOST_CANDIDATES)
        wider = [
            best(found, most) if len(found.ids) > len(first.ids) else first
            for found, first in zip(self._source.above(bounds), leading, strict=True)
        ]
        return [best(found, most) for found in self._exact(layer, wider)]

    def _exact(self, layer: int, found: Sequence[Candidates]) -> list[Candidates]:
        scores = self._source.exact(layer, [coarse.ids for coarse in found])
        return [Candidates(coarse.ids, exact_K) for coarse, exact_K in zip(found, scores, strict=True)]

    def _bound(self, coarse: Candidates, exact: Candidates) -> float:
        """A coarse score below which no document is expected to be among the best k."""
        if len(exact.ids) <= self._top_k:
            return float("inf")  # there are no others
        error = float((coarse.scores - exact.scores).abs().max())
        return float(exact.scores.topk(self._top_k).values[-1]) - _ERROR_MARGIN * error

    @stage("fetch")
    def gather(self, layer: int, candidates: Sequence[Candidates]) -> Retrieved:
        """Fetch the content of every question's documents, in the order of their ids (bank order), zero-padded to the
        longest. All that this memory has ever considered can be fetched; of a bank in one process, any document."""
        chosen = [tuple(found.ids.tolist()) for found in candidates]
        first_of, content_X2GD = self._content(layer, sorted({document_id for ids in chosen for document_id in ids}))
        rows = ([place for id in sorted(ids) for place in first_of[id]] for ids in chosen)
        places = [torch.tensor(places, dtype=torch.int64) for places in rows]
        place_BM = to_device(pad_sequence(places, batch_first=True), self._device)
        content_BM2GD = content_X2GD.index_select(0, place_BM.flatten()).view(*place_BM.shape, *content_X2GD.shape[1:])
        key_BMGD, value_BMGD = content_BM2GD.unbind(2)
        return Retrieved(
            keys_BGMD=key_BMGD.transpose(1, 2),
            values_BGMD=value_BMGD.transpose(1, 2),
            mask_BM=place_BM > 0,
            doc_ids=tuple(chosen),
            scores=tuple(tuple(found.scores.tolist()) for found in candidates),
        )

    def _content(self, layer: int, ids: Sequence[int]) -> tuple[dict[int, range], torch.Tensor]:
        """Which rows are a document's, and all rows on the device: zeros, then those of the documents."""
        there = self._ahead.take(layer) if self._ahead is not None else {}
        missing = [document_id for document_id in ids if document_id not in there]
        contents = self._source.content(layer, missing)
        zeros_12GD = torch.zeros(1, 2, self._manifest.num_kv_heads, self._manifest.head_dim, dtype=LATENT_DTYPE)
        content_X2GD = start_to_device(torch.cat([zeros_12GD, *contents]), self._device)()
        if there:
            there.update(zip(missing, content_X2GD[1:].split([len(rows) for rows in contents]), strict=True))
            content_X2GD = torch.cat([content_X2GD[:1], *(there[document_id] for document_id in ids)])
            contents = [there[document_id] for document_id in ids]
        ends = accumulate((len(rows) for rows in contents), initial=1)
        return {i: range(first, last) for i, (first, last) in zip(ids, pairwise(ends), strict=True)}, content_X2GD


class LocalMemory(SourceMemory):
    """Documents of a bank, as a snapshot's shards hold them."""

    def __init__(
        self,
        shards: Sequence[Shard],
        manifest: Manifest,
        top_k: int,
        *,
        selectable_N: torch.Tensor | None = None,
        device: torch.device | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        """
        Args:
            shards: of the bank (`Snapshot.shards`), in any order.
            manifest, top_k, device: as for `SourceMemory`. An accelerator keeps routing keys, too: as many as the
                budget of `tiers` allows.
            selectable_N: for every document of the shards, in order, whether it may be selected
                (`Snapshot.selectable_mask`). Default: every live one.
            tiers: what is kept in memory (`Snapshot.tiers`). Default: all routing keys.
        """
        keys_on = accelerator(device)
        source = LocalSource(shards, manifest.msa_layers, selectable_N, tiers, keys_on=keys_on)
        ahead = None if keys_on is None else ContentAhead(source.content, keys_on)
        super().__init__(source, manifest, top_k, device, ahead)


class ReplayedMemory:
    """A `LayerMemory` that selects for a batch of questions what was selected for them before, whatever routes now.

    Args:
        routed: per question what every MSA layer was routed to, in a snapshot of the same documents.
    """

    def __init__(self, memory: SourceMemory, routed: Sequence[Sequence[LayerRouting]]) -> None:
        self._memory = memory
        self._found: dict[int, list[Candidates]] = {}
        for question in routed:
            for found in question:
                candidates = Candidates(torch.tensor(found.document_ids, dtype=torch.int64), torch.tensor(found.scores))
                self._found.setdefault(found.layer, []).append(candidates)

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        """See `LayerMemory.route`."""
        retrieved = self._memory.gather(layer, self._found[layer])
        for following in sorted(one for one in self._found if one > layer)[:1]:
            self._memory.read_ahead(following, (found.ids.tolist() for found in self._found[following]))
        return retrieved


def best(found: Candidates, count: int) -> Candidates:
    """The best documents, `count` of them at most, best first, ties by id."""
    return Candidates(*top_documents(found.scores, found.ids, count))
