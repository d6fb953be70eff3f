"""LlamaIndex: `MemspanRetriever` finds documents in a bank, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memspan.generate.memory import Memory
from memspan.generate.request import MAX_DOCUMENTS
from memspan.integrations.memories import in_any_order, metadata_of

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
except ImportError as error:
    raise ImportError(f"LlamaIndex is not installed ({error.name}): pip install 'memspan[llama-index]'") from error


class MemspanRetriever(BaseRetriever):
    """Finds documents in a bank. Every call sees what was committed by then.

    A node's id is the bank's number of the document; its metadata are the document's own and, under `memspan` and not
    shown to models, what the bank says of it: `external_id`, `span`, `date`, `layers`.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        k: int = MAX_DOCUMENTS,
        selector: str | None = None,
        where: Mapping[str, Any] | None = None,
        as_of: str | None = None,
        known_at: str | None = None,
        **options: Any,
    ) -> None:
        """Put a memory before LlamaIndex.

        Args:
            memory: of which bank and namespace; `Memory.open`.
            k: documents found, at most.
            selector: as of `Memory.search`; default: the memory's own.
            where, as_of, known_at: see `memspan.generate.memory.AskOptions`.
            options: of LlamaIndex's `BaseRetriever`.
        """
        super().__init__(**options)
        self._memory, self._k = memory, k
        self._options = {"selector": selector, "where": where, "as_of": as_of, "known_at": known_at}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = in_any_order(self._memory).search(query_bundle.query_str, limit=self._k, **self._options)
        return [
            NodeWithScore(
                node=TextNode(
                    id_=str(item.document_id),
                    text=item.text,
                    metadata=metadata_of(item),
                    excluded_llm_metadata_keys=["memspan"],
                    excluded_embed_metadata_keys=["memspan"],
                ),
                score=item.score,
            )
            for item in found
        ]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
