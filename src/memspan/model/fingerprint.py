"""Fingerprints of weights and files: which backbone a checkpoint grew from, which encoder filled a bank."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def fingerprint(named_weights: Iterable[tuple[str, torch.Tensor]], settings: str = "") -> str:
    """sha256 over names, shapes, dtypes and bytes of weights, in order of their names, and over `settings`."""
    digest = hashlib.sha256(settings.encode())
    for name, weight in sorted(named_weights, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
