"""Teachers: who scores documents for questions, so that routers learn from unlabelled text (distillation).

A score is only compared with the others of its question; a temperature (in the loss) brings it to a useful range:
cosines lie between -1 and 1, BM25 scores between 0 and about 30.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from memspan.errors import DataError
from memspan.text.terms import index_terms
from memspan.train.bm25 import Bm25

Embed = Callable[[Sequence[str]], torch.Tensor]
"""Texts to rows of unit length, `[N, F]` in float32."""

BM25 = "bm25"
_CACHED_TEXTS = 2**16


class Teacher(Protocol):
    """Scores every document for every question."""

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """`[B, N]` in float32, on the CPU; the more the better."""
        ...


class Bm25Teacher:
    """BM25 by the word statistics of a corpus: no model, no download.

    Args:
        corpus: the texts whose words are counted; documents need not be among them.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        self._index = Bm25(corpus)
        self._counts = lru_cache(maxsize=_CACHED_TEXTS)(_word_counts)

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """See `Teacher`."""
        counts = [self._counts(document) for document in documents]
        rows = [[self._index.score_counts(query, count) for count in counts] for query in queries]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(queries), len(documents))


def _word_counts(text: str) -> Counter[str]:
    return Counter(index_terms(text))


class SentenceTeacher:
    """Cosine similarity of sentence embeddings; texts seen before are not embedded again.

    Args:
        embed: texts to rows of unit length.
        cache: where embeddings are kept between runs. None: they are computed anew.
        query_prompt, document_prompt: put before every text, for models that were trained so (`query: `).
    """

    def __init__(
        self, embed: Embed, cache: EmbeddingCache | None = None, query_prompt: str = "", document_prompt: str = ""
    ) -> None:
        self._embed, self._cache = embed, cache
        self._query_prompt, self._document_prompt = query_prompt, document_prompt

    @classmethod
    def load(
        cls,
        name: str,
        cache: Path | None = None,
        query_prompt: str = "",
        document_prompt: str = "",
        device: str | None = None,
        batch_size: int = 32,
    ) -> SentenceTeacher:
        """A sentence-transformers model by name or folder.

        Args:
            cache: folder of embeddings; every model has a file of its own in it.

        Raises:
            DataError: sentence-transformers is not installed, or there is no such model.
        """
        try:
            from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
        except ImportError as error:
            raise DataError("this teacher needs sentence-transformers: pip install 'memspan[train]'") from error
        try:
            model = SentenceTransformer(name, device=device)
        except (OSError, ValueError) as error:
            raise DataError(f"{name!r} is no model of sentence-transformers, by name or folder: {error}") from error

        def embed(texts: Sequence[str]) -> torch.Tensor:
            rows = model.encode(
                list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False,
                batch_size=batch_size,
            )  # fmt: skip
            return rows.to("cpu", torch.float32)

        store = None if cache is None else EmbeddingCache(cache / f"{_weights_key(model.state_dict())}.sqlite")
        return cls(embed, store, query_prompt, document_prompt)

    def scores(self, queries: Sequence[str], documents: Sequence[str]) -> torch.Tensor:
        """See `Teacher`."""
        if not queries or not documents:
            return torch.zeros(len(queries), len(documents))
        texts = [self._query_prompt + query for query in queries]
        texts += [self._document_prompt + document for document in documents]
        embedded = self.embed(texts)
        return embedded[: len(queries)] @ embedded[len(queries) :].T

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Rows of unit length, in order, `[N, F]` in float32; what is in the cache is taken from there."""
        known = self._cache.get(texts) if self._cache else {}
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            rows = self._embed(missing)
            new = dict(zip(missing, rows.unbind(), strict=True))
            if self._cache:
                self._cache.put(new)
            known |= new
        return torch.stack([known[text] for text in texts])


def _weights_key(state: dict[str, torch.Tensor]) -> str:
    """A name for a model's weights: a hash over their names, shapes and a sample of their values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        sample = value.detach().flatten()[:: max(1, value.numel() // 64)].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(value.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


class EmbeddingCache:
    """Embeddings of one model on disk, by the sha256 of their text. Several processes may use it at once.

    Files: `path`, an SQLite database, and its log beside it while it is open.

    Raises:
        DataError: the file is something else, or cannot be written.
    """

    _SECONDS = 60.0
    _AT_ONCE = 500

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                with connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS rows (text BLOB PRIMARY KEY, value BLOB) STRICT")
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def get(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The rows of those texts that have one."""
        by_hash = {_hash(text): text for text in texts}
        hashes = list(by_hash)
        found: dict[str, torch.Tensor] = {}
        try:
            with closing(self._connect()) as connection:
                for start in range(0, len(hashes), self._AT_ONCE):
                    some = hashes[start : start + self._AT_ONCE]
                    marks = ",".join("?" * len(some))
                    for key, value in connection.execute(f"SELECT text, value FROM rows WHERE text IN ({marks})", some):
                        found[by_hash[key]] = torch.from_numpy(np.frombuffer(value, "<f4").copy())
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return found

    def put(self, rows: dict[str, torch.Tensor]) -> None:
        """Keep rows, all of them or none."""
        values = [(_hash(text), row.numpy().astype("<f4").tobytes()) for text, row in rows.items()]
        try:
            with closing(self._connect()) as connection, connection:
                connection.executemany("INSERT OR IGNORE INTO rows VALUES (?, ?)", values)
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._SECONDS)

    def _failed(self, error: Exception) -> DataError:
        return DataError(f"embeddings cannot be kept in {self._path}: {error}; delete the file, or name another folder")


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def load_teacher(name: str, corpus: Sequence[str], cache: Path | None = None) -> Teacher:
    """The teacher of a recipe: `bm25` over the corpus' words, or a sentence-transformers model by name or folder."""
    return Bm25Teacher(corpus) if name == BM25 else SentenceTeacher.load(name, cache)
