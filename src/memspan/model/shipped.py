"""Models and adapters by name: what `memspan.model.convert.load` takes, and the adapters that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "adapters"
DEFAULT_ADAPTER = "memspan-smollm2-135m"
"""Trained for the embedded default backbone, and applied to it unless told otherwise."""
NO_ADAPTER = "none"


@dataclass(frozen=True, slots=True)
class ModelNames:
    """What loads a model again.

    Attributes:
        model: the checkpoint's folder, or the name of the default model.
        adapter: the adapter's folder, the name of a shipped one, or "none".
    """

    model: str
    adapter: str


def shipped_adapters() -> tuple[str, ...]:
    """The names that can be given where an adapter's folder can."""
    return tuple(sorted(folder.parent.name for folder in SHIPPED.glob("*/adapter.json")))


def find_adapter(adapter: str | Path | None, default_model: bool) -> Path | None:
    """The folder of an adapter, or None for no adapter.

    Args:
        adapter: a folder; the name of a shipped one; `none`; or None: the shipped one on the default model, no other.
        default_model: whether the model is the embedded default.
    """
    if adapter is None:
        return SHIPPED / DEFAULT_ADAPTER if default_model else None
    if str(adapter) == NO_ADAPTER:
        return None
    return SHIPPED / adapter if str(adapter) in shipped_adapters() else Path(adapter).expanduser()
