"""Fingerprints of weights and files: which backbone a checkpoint grew from, which encoder filled a bank.

They are functions of what is stored, not of what a process made of it: a number format that weights are loaded in, a
device, merged or packed weights do not change them.

- A checkpoint's `config.json` and an adapter's `adapter.json` hold the sha256 of their weights, written when they are
  saved, and a *sample* of them: the sha256 of about a thousand numbers of each weight. Hashing a model takes seconds to
  minutes, so loading computes the sample alone. Where it is the stored one the stored fingerprints count; where it is
  another the file was changed, and all of it is hashed.
- So weights that were trained, merged, rounded or exchanged are noticed by every load. A change of a few numbers may
  not be: `memspan verify CHECKPOINT` hashes everything. (A file that is cut or lacks a weight does not load at all.)
- Settings are not stored as a hash: they are read from the config whenever a fingerprint is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from memspan.errors import CheckpointError

# What a sample takes of a weight.
_PIECES, _PIECE = 8, 128


def fingerprint(named_weights: Iterable[tuple[str, torch.Tensor]], settings: str = "") -> str:
    """sha256 over names, shapes, dtypes and bytes of weights, in order of their names, and over `settings`."""
    digest = hashlib.sha256(settings.encode())
    for name, weight in sorted(named_weights, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sample(named_weights: Iterable[tuple[str, torch.Tensor]], settings: str = "") -> str:
    """`fingerprint` of 8 pieces of 128 numbers from each weight, evenly spread (all of a smaller one)."""
    sampled = ((f"{name} {tuple(weight.shape)}", _pieces(weight)) for name, weight in named_weights)
    return fingerprint(sampled, settings)


def _pieces(weight: torch.Tensor) -> torch.Tensor:
    flat_N = weight.detach().reshape(-1)
    if len(flat_N) <= _PIECES * _PIECE:
        return flat_N
    first_P1 = (torch.arange(_PIECES) * (len(flat_N) - _PIECE) // (_PIECES - 1))[:, None]
    return flat_N[(first_P1 + torch.arange(_PIECE)).flatten().to(flat_N.device)]


def mapped_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint folder by their stored names, mapped: what is not looked at is not read.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    index, weights = folder / "model.safetensors.index.json", dict[str, torch.Tensor]()
    try:
        files = (
            set(json.loads(index.read_text("utf-8"))["weight_map"].values())
            if index.is_file()
            else {"model.safetensors"}
        )
        for file in sorted(files):
            with safe_open(folder / file, "pt") as source:
                weights |= {name: source.get_tensor(name) for name in source.keys()}  # noqa: SIM118 - no dict
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"the weights in {folder} are damaged ({error}); run memspan convert again") from error
    return weights
