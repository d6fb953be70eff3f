"""How a query head and a key head are compared (sim of paper eq. 2): by the dot product of what these make of them.

A new one is a class with `query` and `key`, and a line at the end; see `memspan.registry` for other packages'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from memspan.registry import Registry

if TYPE_CHECKING:  # the commands list the names, and need no torch for that
    from torch import Tensor


class Similarity(Protocol):
    """Scales heads, the last dimension of a tensor in float32 or wider. Differentiable."""

    def query(self, x_D: Tensor) -> Tensor:
        """Query heads `[..., D]`."""
        ...

    def key(self, x_D: Tensor) -> Tensor:
        """Pooled key heads `[..., D]`."""
        ...


class Cosine:
    """Every head has unit length."""

    def query(self, x_D: Tensor) -> Tensor:
        return _unit(x_D)

    def key(self, x_D: Tensor) -> Tensor:
        return _unit(x_D)


class ScaledDot:
    """The scaled dot product of attention."""

    def query(self, x_D: Tensor) -> Tensor:
        return x_D * x_D.shape[-1] ** -0.5

    def key(self, x_D: Tensor) -> Tensor:
        return x_D


def _unit(x_D: Tensor) -> Tensor:
    from torch.nn.functional import normalize

    return normalize(x_D, dim=-1)


SIMILARITIES: Registry[Similarity] = Registry("similarity", "memspan.similarities", Similarity)
SIMILARITIES.register("cosine", Cosine())
SIMILARITIES.register("dot", ScaledDot())
