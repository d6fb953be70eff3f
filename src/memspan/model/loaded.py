"""`LoadedModel`: a model with its tokenizer, as everything that encodes or answers gets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from memspan.content import TokenContent
from memspan.model.modeling import MSAForCausalLM
from memspan.model.runtime import check_one_device
from memspan.model.shipped import BACKBONES, NO_ADAPTER, SHIPPED, ModelNames, known_folder
from memspan.model.tokens import Framing, token_content
from memspan.text.template import PromptTemplate
from memspan.types import EncodedDocuments


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with its tokenizer bound to its template.

    Attributes:
        path: the checkpoint folder it came from.
        adapter: the folder of the adapter that was applied, if one was.
        content: of the banks that it makes, and of the bank that it reads; None: means.
    """

    model: MSAForCausalLM
    template: PromptTemplate
    path: Path
    adapter: Path | None = None
    content: TokenContent | None = None

    def __post_init__(self) -> None:
        check_one_device(self.model)

    def keeping(self, content: TokenContent | None) -> LoadedModel:
        """The same model for banks of this content."""
        return self if content == self.content else dataclasses.replace(self, content=content)

    def encode(self, documents: Sequence[Sequence[int]]) -> EncodedDocuments:
        """The latents of documents in their template: what `MSAForCausalLM.encode` gives, with the content of this
        model's banks."""
        encoded = self.model.encode(documents)
        if self.content is None:
            return encoded
        per_chunk = self.content.rows(self.model.config.chunk_size, self.model.config.num_kv_heads)
        counts = [per_chunk * chunks for chunks in encoded.num_chunks]
        prefix = self.template.prefix_ids
        how = Framing(prefix, self.template.repeat_ids, len(prefix) + self.offset)
        bodies = [self.template.body(ids) for ids in documents]
        return dataclasses.replace(encoded, content_LC2GD=token_content(self.model, bodies, counts, self.content, how))

    @property
    def offset(self) -> int:
        """How far behind the template prefix the active context stands: `MSAConfig.position_offset`; or behind the
        longest document where content is of tokens, which keep their positions."""
        offset, longest = self.model.config.offset, self.model.config.max_document_tokens
        return offset if self.content is None else max(offset, longest)

    @property
    def names(self) -> ModelNames | None:
        """The arguments of `load` that load it again; None: it has no folder, or was quantized when it was loaded."""
        quantizer = getattr(self.model, "hf_quantizer", None)
        if (quantizer is not None and not quantizer.pre_quantized) or not (self.path / "config.json").is_file():
            return None
        known = (name for name in BACKBONES if self.path == known_folder(name))
        path = next(known, str(self.path.resolve()))
        if self.adapter is None:
            return ModelNames(path, NO_ADAPTER)
        is_shipped = self.adapter.parent == SHIPPED
        return ModelNames(path, self.adapter.name if is_shipped else str(self.adapter.resolve()))
