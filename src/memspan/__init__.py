"""memspan: Memory Sparse Attention (MSA) for any Hugging Face decoder.

A model with a memory: documents are encoded once into a compressed latent memory, upper layers route each question to
the few that matter, and the model answers from them, naming its evidence. Method: arXiv 2603.23516.

Names that need torch or transformers are imported when they are first used, so that `import memspan` (and `memspan
--help`) does not wait for them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from memspan.errors import (
    AnswererError,
    BankBusy,
    BankError,
    BankMismatch,
    CheckpointError,
    CorpusError,
    DuplicateDocument,
    EmptyBank,
    FilterError,
    MemspanError,
    QuestionError,
    UnknownDocument,
    UnsupportedBackbone,
)
from memspan.types import Answer, Citation, Document, Evidence, Span, Turn
from memspan.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from memspan.bank.bank import MemoryBank
    from memspan.config import MSAConfig, TemplateSpec
    from memspan.generate.endpoint import Endpoint
    from memspan.generate.memory import Memory
    from memspan.generate.sampling import Sampling
    from memspan.model.convert import LoadedModel, convert, load
    from memspan.model.modeling import MSAForCausalLM

_HOMES = {
    "memspan.bank.bank": ("MemoryBank",),
    "memspan.config": ("MSAConfig", "TemplateSpec"),
    "memspan.generate.endpoint": ("Endpoint",),
    "memspan.generate.memory": ("Memory",),
    "memspan.generate.sampling": ("Sampling",),
    "memspan.model.convert": ("LoadedModel", "convert", "load"),
    "memspan.model.modeling": ("MSAForCausalLM",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "AnswererError",
    "BankBusy",
    "BankError",
    "BankMismatch",
    "CheckpointError",
    "Citation",
    "CorpusError",
    "Document",
    "DuplicateDocument",
    "EmptyBank",
    "Endpoint",
    "Evidence",
    "FilterError",
    "LoadedModel",
    "MSAConfig",
    "MSAForCausalLM",
    "Memory",
    "MemoryBank",
    "MemspanError",
    "QuestionError",
    "Sampling",
    "Span",
    "TemplateSpec",
    "Turn",
    "UnknownDocument",
    "UnsupportedBackbone",
    "convert",
    "load",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'memspan' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
