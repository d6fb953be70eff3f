"""What options come to: the model a command works with, and the documents it looks at. Each imports what it needs when
it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memspan.cli.importing import imported

if TYPE_CHECKING:
    from memspan.bank.scope import Scope
    from memspan.generate.memory import Memory
    from memspan.model.convert import LoadedModel


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model a command works with; see `memspan.model.convert.load` for the fields."""

    path: Path | None
    adapter: str | None
    dtype: str | None
    device: str | None
    weights: str | None = None
    memory_budget: str | None = None
    gpu_memory_budget: str | None = None

    def load(self, *banks: Path) -> LoadedModel:
        """The model; where none was named, that of the first of these banks that there is."""
        return imported("models").load_model(self, banks)

    def open(self, bank: Path, namespace: str = "default", create: bool = False) -> Memory:
        """The bank with this model; `create` makes an empty one where there is none, in this process alone."""
        return imported("models").open_memory(self, bank, namespace, create)


@dataclass(frozen=True, slots=True)
class ScopeChoice:
    """The documents a command looks at."""

    namespace: str
    expressions: Sequence[str]
    as_of: str | None

    @property
    def where(self) -> dict[str, Any]:
        from memspan.bank.scope import parse_expressions

        return parse_expressions(self.expressions)

    @property
    def scope(self) -> Scope:
        from memspan.bank.scope import Scope

        return Scope.parse(self.where, self.as_of)
