"""What a bank was encoded with, and whether a model fits it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memspan.errors import BankError, BankMismatch

if TYPE_CHECKING:
    from memspan.config import MSAConfig

FORMAT_VERSION = 3
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "msa_layers", tuple(self.msa_layers))

    @classmethod
    def of_model(cls, config: MSAConfig, encoder_fingerprint: str) -> Manifest:
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
        )

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
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            odd = sorted(map(str, names ^ set(values)))
            raise BankError(f"this bank's manifest is damaged: {odd} are missing or unknown")
        for field in dataclasses.fields(cls):
            value = values[field.name]
            is_whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
            is_layers = isinstance(value, list | tuple) and all(type(layer) is int and layer >= 0 for layer in value)
            if not {"int": is_whole, "str": isinstance(value, str)}.get(str(field.type), is_layers):
                raise BankError(f"this bank's manifest is damaged: {field.name} is {str(value)[:80]!r}")
        present: dict[str, Any] = values | {"format_version": FORMAT_VERSION}
        return cls(**present)

    @property
    def key_width(self) -> int:
        """Numbers in a chunk's routing key of one MSA layer; K and V have as many each."""
        return self.num_kv_heads * self.head_dim

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of one chunk over all MSA layers: routing key, K and V."""
        return 3 * len(self.msa_layers) * self.key_width * _LATENT_BYTES

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
