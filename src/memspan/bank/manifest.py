"""What a bank was encoded with, and whether a model fits it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memspan.content import TokenContent, is_part
from memspan.errors import BankError, BankMismatch

if TYPE_CHECKING:
    from memspan.config import MSAConfig

FORMAT_VERSION = 3
TOKENS = -1
"""Stands for all layers that share the rows of content of tokens."""
_READ_VERSIONS = (2, FORMAT_VERSION)
LATENT_DTYPE_NAME, _LATENT_BYTES = "bfloat16", 2
# Encoder fingerprint of a bank of made-up latents (`memspan bench synth`).
SYNTHETIC = "synthetic"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything of a model that shapes the latents of a bank.

    Attributes:
        format_version: of the bank's files.
        encoder_fingerprint: `MSAForCausalLM.encoder_fingerprint()`.
        msa_layers, chunk_size, similarity, max_document_tokens: as in `MSAConfig`.
        num_kv_heads, head_dim: G and D.
        document_prefix, document_suffix: the template around an encoded document.
        dtype: of the stored latents.
        backbone: what the model was converted from; told to people, not compared.
        content_chunk, content_layers: as in `TokenContent`; None: content is of means. A bank of means stores neither.
    """

    format_version: int
    encoder_fingerprint: str
    msa_layers: tuple[int, ...]
    chunk_size: int
    num_kv_heads: int
    head_dim: int
    similarity: str
    document_prefix: str
    document_suffix: str
    max_document_tokens: int
    dtype: str
    backbone: str
    content_chunk: int | None = None
    content_layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "msa_layers", tuple(self.msa_layers))
        if self.content_layers is not None:
            object.__setattr__(self, "content_layers", tuple(self.content_layers))

    @classmethod
    def of_model(cls, config: MSAConfig, encoder_fingerprint: str, content: TokenContent | None = None) -> Manifest:
        """
        Args:
            content: None: it is of means.
        """
        spec = config.template_spec
        return cls(
            format_version=FORMAT_VERSION,
            encoder_fingerprint=encoder_fingerprint,
            msa_layers=config.layers,
            chunk_size=config.chunk_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            similarity=config.similarity,
            document_prefix=spec.document_prefix,
            document_suffix=spec.document_suffix,
            max_document_tokens=config.max_document_tokens,
            dtype=LATENT_DTYPE_NAME,
            backbone=str(config.text_config.name_or_path),
            content_chunk=content and content.chunk,
            content_layers=content and content.layers,
        )

    def as_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Manifest:
        """Read a stored manifest. One of format 2 is given as one of this format, as which such a bank is read.

        Raises:
            BankError: written by a newer memspan, or incomplete.
        """
        version = values.get("format_version")
        if isinstance(version, bool) or version not in _READ_VERSIONS:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            remedy = "update memspan" if newer else "build the bank again from its documents"
            raise BankError(
                f"this bank has format version {version}, and this memspan reads {FORMAT_VERSION} (and 2); {remedy}"
            )
        fields = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        odd = set(fields) ^ set(values)
        if odd not in (set(), {"content_chunk", "content_layers"}):
            raise BankError(f"this bank's manifest is damaged: {sorted(map(str, odd))} are missing or unknown")
        for name, value in values.items():
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            is_layers = isinstance(value, list | tuple) and all(type(layer) is int and layer >= 0 for layer in value)
            kind = fields[name].removesuffix(" | None")
            if not {"int": is_whole, "str": isinstance(value, str)}.get(kind, is_layers):
                raise BankError(f"this bank's manifest is damaged: {name} is {str(value)[:80]!r}")
        chunk, size = values.get("content_chunk"), values["chunk_size"]
        if chunk is not None and not is_part(chunk, size):
            raise BankError(f"this bank's manifest is damaged: content_chunk is {chunk}, and chunk_size {size}")
        present: dict[str, Any] = values | {"format_version": FORMAT_VERSION}
        return cls(**present)

    @property
    def key_width(self) -> int:
        """Numbers in a chunk's routing key of one MSA layer; K and V have as many each."""
        return self.num_kv_heads * self.head_dim

    @property
    def content(self) -> TokenContent | None:
        """None: it is of means."""
        if self.content_chunk is None or self.content_layers is None:
            return None
        return TokenContent(self.content_chunk, self.content_layers)

    @property
    def kept_layers(self) -> tuple[int, ...]:
        """The layers that have content of their own; `TOKENS` alone, where all share the rows."""
        return self.msa_layers if self.content is None else (TOKENS,)

    @property
    def content_rows(self) -> int:
        """Rows of content of one chunk, in one of the `kept_layers`."""
        return 1 if self.content is None else self.content.rows(self.chunk_size, self.num_kv_heads)

    @property
    def content_shape(self) -> tuple[int, ...]:
        """Content of one chunk in one of the `kept_layers`: K and V; of tokens the layer and the head behind these."""
        if self.content is None:
            return 2, self.num_kv_heads, self.head_dim
        return self.content_rows, 2, 1, self.head_dim + 1

    @property
    def key_bytes(self) -> int:
        """Bytes on disk of the routing keys of one chunk over all MSA layers."""
        return len(self.msa_layers) * self.key_width * _LATENT_BYTES

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of one chunk: routing keys over all MSA layers, K and V over all layers that have content."""
        return self.key_bytes + len(self.kept_layers) * math.prod(self.content_shape) * _LATENT_BYTES

    def check_same(self, model: Manifest) -> None:
        """Compare the bank's manifest (self) with that of a model that wants to read it.

        Raises:
            BankMismatch: names every field that differs, and what to do; or the bank's latents are made up.
        """
        if self.encoder_fingerprint == SYNTHETIC:
            raise BankMismatch(
                "this bank holds made-up latents, to measure routing with; it cannot answer. "
                "Make one of documents with: memspan add BANK FILES..."
            )
        differing = [
            f"{field.name}: bank {getattr(self, field.name)!r}, model {getattr(model, field.name)!r}"
            for field in dataclasses.fields(self)
            if field.name != "backbone" and getattr(self, field.name) != getattr(model, field.name)
        ]
        if differing:
            raise BankMismatch(
                f"this bank was encoded by another model (converted from {self.backbone}):\n  "
                + "\n  ".join(differing)
                + "\nName that model (memspan ask BANK --model DIR), or rebuild the bank's latents with this one "
                "(memspan reencode BANK --model DIR)."
            )
