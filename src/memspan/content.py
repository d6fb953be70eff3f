"""`TokenContent`: what a bank keeps of documents whose tokens are read in the place of their text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memspan.errors import MemspanError

if TYPE_CHECKING:
    from memspan.config import MSAConfig

# One of so many layers, the first ones, does not read tokens: there it loses no answers (docs/LOG.md).
_UNREAD_SHARE = 5


@dataclass(frozen=True, slots=True)
class TokenContent:
    """Content of a bank that is of tokens: keys and values of some of a document's tokens are kept as they are, and
    read in the place of its text (`memspan.ops.choosing`). Otherwise content is the mean of a chunk, and each MSA layer
    attends to what it routes to (paper 3.2).

    Attributes:
        chunk: tokens of which one is kept, over all layers and heads, which share them out unequally.
        layers: that keep and read them, ascending.
    """

    chunk: int
    layers: tuple[int, ...]

    @classmethod
    def of(cls, config: MSAConfig, chunk: int, layers: Sequence[int] | None = None) -> TokenContent:
        """
        Args:
            layers: None: all but the first fifth.

        Raises:
            MemspanError: a chunk of the model is no multiple of `chunk`.
            ValueError: there is no such layer.
        """
        num_layers = config.text_config.num_hidden_layers
        if not is_part(chunk, config.chunk_size):
            raise MemspanError(
                f"content_chunk must divide the {config.chunk_size} tokens of a chunk and be smaller, not {chunk}; "
                "4 keeps a quarter of the tokens"
            )
        found = tuple(range(num_layers // _UNREAD_SHARE, num_layers) if layers is None else layers)
        check_layers("content layers", found, num_layers)
        return cls(chunk, found)

    def rows(self, chunk_size: int, num_kv_heads: int) -> int:
        """Rows that are kept of a chunk: a token in one layer and head is one."""
        return chunk_size // self.chunk * len(self.layers) * num_kv_heads


def is_part(chunk: int, chunk_size: int) -> bool:
    """Whether a row of content can stand for so many tokens of a chunk."""
    return 1 <= chunk < chunk_size and chunk_size % chunk == 0


def check_layers(name: str, layers: Sequence[int], num_layers: int) -> None:
    """
    Raises:
        ValueError: they are not layers of a model, ascending and distinct.
    """
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= num_layers:
        raise ValueError(f"{name} must be ascending, distinct layer indices in 0..{num_layers - 1}, not {list(layers)}")
