"""memspan: Memory Sparse Attention (MSA) for any Hugging Face decoder.

A model with a memory: documents are encoded once into a compressed latent memory, upper layers route each question to
the few that matter, and the model answers from them, naming its evidence. Method: arXiv 2603.23516.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from memspan.bank.bank import MemoryBank
from memspan.config import MSAConfig, TemplateSpec
from memspan.errors import (
    BankError,
    BankMismatch,
    CheckpointError,
    CorpusError,
    EmptyBank,
    MemspanError,
    QuestionError,
    UnsupportedBackbone,
)
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel, convert, load
from memspan.model.modeling import MSAForCausalLM
from memspan.types import Answer, Document, Evidence, Span

AutoConfig.register(MSAConfig.model_type, MSAConfig)
AutoModelForCausalLM.register(MSAConfig, MSAForCausalLM)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BankError",
    "BankMismatch",
    "CheckpointError",
    "CorpusError",
    "Document",
    "EmptyBank",
    "Evidence",
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
    "UnsupportedBackbone",
    "convert",
    "load",
]
