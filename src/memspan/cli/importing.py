"""Importing what takes seconds, when it is needed."""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType


def imported(name: str) -> ModuleType:
    """A module of the commands, with all that it imports.

    The garbage collector rests meanwhile, and passes over what was made from then on: the million objects of torch and
    transformers all stay, and to look for garbage among them took a fifth of the time.
    """
    path = f"{__package__}.{name}"
    if path in sys.modules or not gc.isenabled():
        return importlib.import_module(path)
    gc.disable()
    try:
        return importlib.import_module(path)
    finally:
        gc.enable()
        gc.freeze()
