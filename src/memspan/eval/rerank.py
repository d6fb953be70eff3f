"""Ranking a ranking's first documents anew: by the backbone's own likelihood, or by a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from memspan.errors import EvaluationError
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import QueryStep
from memspan.text.packing import BATCH_TOKENS, length_batches
from memspan.text.template import encoded_text
from memspan.types import Evidence

_PASSAGE_TOKENS = 256
_ASKED = "\n\nA question that this text answers: "


class Reranker(Protocol):
    """Says how well texts answer a question; higher is better."""

    def score(self, question: str, texts: Sequence[str]) -> list[float]: ...


def reranked(reranker: Reranker, question: str, documents: Sequence[Evidence]) -> list[Evidence]:
    """The documents by a reranker's scores, best first; of equal ones the order stays."""
    scores = reranker.score(question, [encoded_text(item.title, item.text) for item in documents])
    order = sorted(range(len(documents)), key=lambda place: -scores[place])
    return [replace(documents[place], score=scores[place]) for place in order]


class BackboneReranker:
    """Scores a text by how likely the model finds the question after it (query likelihood; Ponte and Croft 1998,
    with a language model as in Sachan et al. 2022): the mean log-probability of the question's tokens.

    The model runs without memory. Of a text its first 256 tokens are read.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        template = self._loaded.template
        wanted = template.tokens("{asked}", asked=_ASKED + question)
        given = [template.tokens("{text}", text=text)[:_PASSAGE_TOKENS] for text in texts]
        skipped = len(template.tokens("{asked}", asked=_ASKED))
        scores = [0.0] * len(texts)
        lengths = [len(ids) + len(wanted) for ids in given]
        for batch in length_batches(lengths, BATCH_TOKENS):
            found = self._log_likelihood([[*given[place], *wanted] for place in batch], len(wanted) - skipped)
            for place, value in zip(batch, found, strict=True):
                scores[place] = value
        return scores

    @torch.inference_mode()
    def _log_likelihood(self, sequences: Sequence[Sequence[int]], last: int) -> list[float]:
        """The mean log-probability of the last tokens of each sequence."""
        T, device = max(map(len, sequences)), self._loaded.model.device
        ids_BT = torch.zeros(len(sequences), T, dtype=torch.long)
        valid_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
        for row, ids in enumerate(sequences):
            ids_BT[row, T - len(ids) :] = torch.tensor(ids)
            valid_BT[row, T - len(ids) :] = True
        positions_BT = (valid_BT.cumsum(1) - 1).clamp(min=0)
        out = self._loaded.model(
            input_ids=ids_BT.to(device),
            position_ids=positions_BT.to(device),
            memory=QueryStep(valid_BS=None if bool(valid_BT.all()) else valid_BT.to(device)),
            use_cache=False,
            logits_to_keep=last + 1,
        )
        log_BTV = out.logits[:, :-1].float().log_softmax(-1)
        picked_BT = log_BTV.gather(2, ids_BT[:, -last:, None].to(device))[..., 0]
        return picked_BT.mean(1).tolist()


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers, from a folder or a name of the hub."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            EvaluationError: sentence-transformers is not installed, or the model cannot be had.
        """
        try:
            from sentence_transformers import CrossEncoder  # type: ignore[import-not-found]
        except ImportError as error:
            raise EvaluationError(f"--cross-encoder needs {error.name}: pip install 'memspan[eval]'") from error
        try:
            self._model = CrossEncoder(name, device="cpu")
        except (OSError, ValueError) as error:
            raise EvaluationError(f"the cross-encoder {name!r} cannot be loaded: {error}; give its folder") from error

    def score(self, question: str, texts: Sequence[str]) -> list[float]:
        return [float(value) for value in self._model.predict([(question, text) for text in texts])]
