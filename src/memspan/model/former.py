"""Encoder fingerprints as banks were given them before: sha256 of merged weights in the number format of the load."""

from __future__ import annotations

import re
from weakref import WeakKeyDictionary

import torch

from memspan.model.convert import LoadedModel, load
from memspan.model.modeling import MSAForCausalLM
from memspan.model.runtime import DTYPES
from memspan.model.shipped import NO_ADAPTER

_FORMER = re.compile("[0-9a-f]{64}")
_compared: WeakKeyDictionary[MSAForCausalLM, dict[str, bool]] = WeakKeyDictionary()


def is_former_fingerprint(fingerprint: str, loaded: LoadedModel) -> bool:
    """Whether a model had this fingerprint before, in any number format that it can be loaded in.

    All weights are hashed, once per process and fingerprint; a model in half precision may have to be loaded again, in
    float32. Only what this machine computes can be proven: LoRA merged by another BLAS, or into weights that are stored
    in float32 and were loaded in half precision, may have had another.
    """
    if not _FORMER.fullmatch(fingerprint):
        return False
    answers = _compared.setdefault(loaded.model, {})
    if fingerprint not in answers:
        answers[fingerprint] = _is_former(fingerprint, loaded)
    return answers[fingerprint]


def _is_former(fingerprint: str, loaded: LoadedModel) -> bool:
    model = loaded.model
    if model.dtype != torch.float32:
        if model.weights_fingerprint() == fingerprint:
            return True
        if not loaded.path.is_dir():
            return False  # made in memory
        model = load(loaded.path, adapter=loaded.adapter or NO_ADAPTER, dtype="float32", device="cpu").model
    # Weights are merged in float32 and rounded once, so these are what a load in the other formats gives.
    return any(model.weights_fingerprint(dtype=dtype) == fingerprint for dtype in DTYPES.values())
