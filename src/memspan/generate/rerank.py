"""Rerankers: who ranks the first documents of a ranking anew, between finding and reading. Everything that lists
rerankers, or asks one, reads `RERANKERS`.

A new reranker is a class with `needs` and `score`, and a line at the end of this file; see `memspan.registry` for other
packages'. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memspan.errors import MemspanError, PluginError
from memspan.generate.selectors import Needs, check_packages
from memspan.registry import Registry
from memspan.text.template import encoded_text
from memspan.types import Evidence

if TYPE_CHECKING:
    from memspan.model.convert import LoadedModel

NONE = "none"
"""The name of no reranker."""
RERANKED = 10
"""Documents that are ranked anew for an answer or a search; those behind them follow as they were."""

_PAIRS = 8
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Means:
    """What a reranker may use.

    Attributes:
        loaded: the memory model; None where none is loaded (then a reranker with `Needs.model` is not asked).
        cross_encoder: folder or name of the user's cross-encoder; None: the user named none.
    """

    loaded: LoadedModel | None = None
    cross_encoder: str | None = None


@runtime_checkable
class Reranker(Protocol):
    """Says how well documents answer a question. Of its needs `model` and `packages` count."""

    needs: Needs

    def score(self, question: str, documents: Sequence[Evidence], means: Means) -> Sequence[float]:
        """A number for each document, the higher the better. A document that is too long is cut, not left out."""
        ...


RERANKERS: Registry[Reranker] = Registry("reranker", "memspan.rerankers", Reranker)


def reranker_names() -> list[str]:
    """What is offered: none, and the rerankers. Those of other packages that cannot be used are left out: whoever asks
    one of them meets its error."""
    names = [NONE]
    for name in RERANKERS:
        with suppress(PluginError):
            RERANKERS[name]
            names.append(name)
    return names


def check_name(name: str) -> None:
    """
    Raises:
        UnknownName: there is no such reranker.
        PluginError: it cannot be used; see `memspan.registry`.
    """
    if name != NONE:
        if name not in RERANKERS:
            raise RERANKERS.none_of(reranker_names(), name)
        RERANKERS[name]


def check_reranker(name: str, means: Means) -> None:
    """
    Raises:
        UnknownName, PluginError: as of `check_name`.
        MemspanError: what the reranker needs is missing: the memory model, a package, or the cross-encoder's name.
    """
    check_name(name)
    if name == NONE:
        return
    if RERANKERS[name].needs.model and means.loaded is None:
        raise MemspanError(
            f"the reranker {name} runs the memory model, and none is loaded; open the bank with its model"
        )
    check = getattr(RERANKERS[name], "check", None)
    if check is not None:
        check(means)
    check_packages(name, RERANKERS)


def reranked(
    name: str, question: str, documents: Sequence[Evidence], means: Means, depth: int = RERANKED
) -> list[Evidence]:
    """The documents, the first `depth` of them by a reranker's scores. Of equal scores the order stays. What is shown
    as a document's score stays that of the selector.

    Raises:
        PluginError: the reranker gave no number for a document.
        MemspanError: it cannot be asked; see `check_reranker`.
    """
    first = documents[:depth]
    if name == NONE or len(first) < 2:
        return list(documents)
    check_reranker(name, means)
    scores = [float(score) for score in RERANKERS[name].score(question, first, means)]
    if len(scores) != len(first) or any(map(math.isnan, scores)):
        raise PluginError(f"the reranker {name} gave no number for some of {len(first)} documents; name another one")
    order = sorted(range(len(first)), key=lambda place: -scores[place])
    return [*(first[place] for place in order), *documents[depth:]]


class Attention:
    """By how much the question attends to each document where all of them stand before it (after QRHead, arXiv
    2506.09944): one forward of the memory model, without any memory, that ends behind the layers that are looked at."""

    needs = Needs()

    def score(self, question: str, documents: Sequence[Evidence], means: Means) -> list[float]:
        from memspan.generate.model_rerank import attention

        assert means.loaded is not None, "it was checked"
        return attention(means.loaded, question, documents)


class Likelihood:
    """By how likely the memory model finds the question after each document (query likelihood; Ponte and Croft 1998,
    with a language model as in Sachan et al. 2022): a forward of each, without any memory."""

    needs = Needs()

    def score(self, question: str, documents: Sequence[Evidence], means: Means) -> list[float]:
        from memspan.generate.model_rerank import likelihood

        assert means.loaded is not None, "it was checked"
        return likelihood(means.loaded, question, documents)


class CrossEncoder:
    """By a model that reads question and document together and gives one number (of sentence-transformers, say), from a
    folder or by a name of the hub. What of a document it has no room for is cut off."""

    needs = Needs(model=False)

    def check(self, means: Means) -> None:
        """
        Raises:
            MemspanError: the user named none, or none that can be loaded.
        """
        if not means.cross_encoder:
            raise MemspanError(
                "the reranker cross needs a model: --cross-encoder FOLDER or NAME (in Python cross_encoder=...)"
            )
        _cross_encoder(means.cross_encoder)

    def score(self, question: str, documents: Sequence[Evidence], means: Means) -> list[float]:
        classify, max_length = _cross_encoder(means.cross_encoder or "")
        pairs = [{"text": question, "text_pair": encoded_text(item.title, item.text)} for item in documents]
        how = {"truncation": True, "max_length": max_length, "function_to_apply": "none", "batch_size": _PAIRS}
        return [found["score"] for found in classify(pairs, **how)]


@lru_cache(maxsize=2)
def _cross_encoder(name: str) -> tuple[Any, int]:
    """A cross-encoder, and the tokens of a pair that it has room for.

    Raises:
        MemspanError: there is no such model, or it gives several numbers for a pair.
    """
    from transformers import pipeline

    try:
        classify = pipeline("text-classification", model=name, device="cpu")
    except Exception as error:  # what a folder lacks is met in many forms
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise MemspanError(f"the cross-encoder {name!r} cannot be loaded ({reason}); give its folder") from error
    if classify.model.config.num_labels != 1:
        raise MemspanError(f"the cross-encoder {name!r} gives several numbers for a text; name one that gives one")
    # Some models need two positions for themselves.
    positions = getattr(classify.model.config, "max_position_embeddings", 0) - 2
    limits = [limit for limit in (getattr(classify.tokenizer, "model_max_length", 0), positions) if limit > 0]
    return classify, min(limits)


RERANKERS.register("model", Attention())
RERANKERS.register("likelihood", Likelihood())
RERANKERS.register("cross", CrossEncoder())
