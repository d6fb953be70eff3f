"""Importing what takes seconds, when it is needed."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def importing() -> Iterator[None]:
    """Around imports: the garbage collector rests meanwhile, and passes over what was made from then on.

    The million objects of torch and transformers all stay, and to look for garbage among them took a fifth of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def imported(name: str) -> ModuleType:
    """A module of the commands, with all that it imports."""
    with importing():
        return importlib.import_module(f"{__package__}.{name}")
