"""Search by words alone: what needs neither a model nor latents."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, SupportsFloat, cast

from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog, StoredDocument
from memspan.bank.scope import EVERYTHING, Scope
from memspan.bank.texts import TextBank, check_namespace
from memspan.errors import EmptyBank, MemspanError, QuestionError
from memspan.generate.rerank import NONE, RERANKED, Means, check_reranker, reranked
from memspan.generate.sampling import check_whole
from memspan.generate.selectors import SearchQuery, SearchResult, check_packages, ranking_selector
from memspan.places import quoted
from memspan.routing.ranking import Selected
from memspan.text.template import encoded_text
from memspan.text.terms import content_words, plain_words
from memspan.types import Evidence, LayerRouting, Turn, is_unicode

if TYPE_CHECKING:
    from memspan.generate.finder import Finder

# Documents that full-text search ranks, at least.
SEARCH_DEPTH = 64
_TURNS_SEARCHED = 2
_WORD = re.compile(r"(?<!\w)[^\W\d_][\w'’-]*")
_OPENS_SENTENCE = ".!?:\n"
_BEFORE_WORD = " \t\"'“(*_#-"


class TextFinder:
    """What selectors that need no model find documents with; as `Finder`, without its routing.

    Attributes:
        received_bytes: 0; no other process is asked.
    """

    received_bytes = 0

    def __init__(self, catalog: Catalog, namespace: str, scope: Scope) -> None:
        self._catalog, self._namespace, self._scope = catalog, namespace, scope

    def rank(self, selector: str, looks: Sequence[SearchQuery], depth: int) -> list[SearchResult]:
        """Rank documents for every look, at least `depth` by full-text search (where so many match)."""
        return ranking_selector(selector).rank(cast("Finder", self), looks, max(depth, SEARCH_DEPTH))

    def evidence(self, selected: Sequence[Selected]) -> list[Evidence]:
        """The stored documents that were chosen, in order."""
        return chosen_evidence(selected, self.documents([found.document_id for found in selected]))

    def search(self, query: str, limit: int) -> list[tuple[int, float]]:
        """Full-text search: ids and BM25 scores, best first."""
        return self._catalog.search(self._namespace, query, limit, self._scope)

    def documents(self, ids: Sequence[int]) -> list[StoredDocument]:
        """Documents of the scope by their ids, in the order given."""
        return self._catalog.documents(self._namespace, ids, self._scope)

    def ids(self) -> list[int]:
        """The documents in the scope, in the order they were added."""
        return self._catalog.ids_in_scope(self._namespace, self._scope).tolist()


def search_words(
    bank: TextBank,
    question: str,
    scope: Scope = EVERYTHING,
    limit: int = 10,
    namespace: str = DEFAULT_NAMESPACE,
    selector: str = "lexical",
    min_score: float | None = None,
    rerank: str | None = None,
    cross_encoder: str | None = None,
) -> list[Evidence]:
    """What `Memory.search` finds with a selector that needs no model, best first.

    Raises:
        MemspanError, ValueError, TypeError: as for `fitting`, `check_reranker` and `check_min_score`.
        QuestionError: the question is empty or no text, or `limit` is negative.
        FilterError: the scope names a field that no document has.
        EmptyBank: the namespace holds no documents.
    """
    check_namespace(namespace)
    check_limit("limit", limit)
    check_min_score(min_score)
    check_questions([question])
    check_packages(selector)
    means = Means(cross_encoder=cross_encoder)
    check_reranker(rerank or NONE, means)
    with bank.pinned_catalog() as catalog:
        if not catalog.page(namespace, 0, 1):
            raise nothing_stored(bank.place, namespace)
        if not catalog.page(namespace, 0, 1, scope):
            return []
        finder = TextFinder(catalog, namespace, scope)
        (found,) = finder.rank(selector, [SearchQuery(question)], limit)
        fit = fitting(found, min_score, selector).selected
        return shown(finder, question, fit, limit, rerank or NONE, means)


def shown(
    finder: Finder | TextFinder, question: str, selected: Sequence[Selected], limit: int, rerank: str, means: Means
) -> list[Evidence]:
    """The documents that a search shows of a ranking: `limit` at most, the first ones ranked anew where there is a
    reranker."""
    depth = limit if rerank == NONE else max(limit, RERANKED)
    return reranked(rerank, question, finder.evidence(selected[:depth]), means)[:limit]


def fitting(found: SearchResult, min_score: float | None, selector: str) -> SearchResult:
    """What was found, without the documents that score less than `min_score`, and without their latents; None: all.

    Raises:
        MemspanError: the selector's scores do not say how well a document fits.
    """
    if min_score is None:
        return found
    if any(one.fit is None for one in found.selected):
        raise MemspanError(
            f"scores of the selector {selector} with this model mean something else for each question; leave the least "
            "score out"
        )
    selected = [one for one in found.selected if (one.fit or 0.0) >= min_score]
    return SearchResult(selected, tuple(_among({one.document_id for one in selected}, layer) for layer in found.routed))


def _among(ids: Container[int], routed: LayerRouting) -> LayerRouting:
    """What an MSA layer routed to, of these documents."""
    kept = [pair for pair in zip(routed.document_ids, routed.scores, strict=True) if pair[0] in ids]
    return LayerRouting(routed.layer, tuple(id for id, _ in kept), tuple(score for _, score in kept))


def check_min_score(min_score: float | None) -> None:
    """
    Raises:
        ValueError: the least score is not from 0 to 1.
        TypeError: it is no number.
    """
    if min_score is None:
        return
    if isinstance(min_score, bool) or not isinstance(min_score, SupportsFloat):
        raise TypeError(f"min_score is a number, not {min_score!r}")
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score is from 0 to 1, not {min_score}")


def check_questions(questions: Sequence[str], said: Sequence[str] = ()) -> None:
    """See that there is something to ask.

    Args:
        said: what else the model is to read.

    Raises:
        QuestionError: a question is empty, or a text cannot be written as UTF-8.
    """
    if not questions or not all(question.strip() for question in questions):
        raise QuestionError("the question is empty; write one")
    if not all(map(is_unicode, (*questions, *said))):
        raise QuestionError("the question is not valid Unicode; check the encoding it is read in")


def check_limit(name: str, documents: int) -> None:
    """
    Raises:
        QuestionError: a number of documents is negative.
        TypeError: it is no whole number.
    """
    check_whole(name, documents)
    if documents < 0:
        raise QuestionError(f"{name} must not be negative, not {documents}")


def nothing_stored(place: str, namespace: str) -> EmptyBank:
    """The error of a question to a namespace without documents."""
    where = place if namespace == DEFAULT_NAMESPACE else f"namespace {namespace!r} of {place}"
    option = "" if namespace == DEFAULT_NAMESPACE else f" --namespace {quoted(namespace)}"
    return EmptyBank(f"{where} holds no documents; add some with: memspan add {quoted(place)} FILES...{option}")


def nothing_in_scope(place: str) -> EmptyBank:
    """The error of a question to a scope without documents."""
    return EmptyBank(f"no document of {place} is in the scope of the filter; widen it")


def chosen_evidence(selected: Sequence[Selected], stored: Iterable[StoredDocument]) -> list[Evidence]:
    """The chosen documents in order, as far as they are stored."""
    by_id = {document.id: document for document in stored}
    return [
        evidence_of(document, found.score if found.fit is None else found.fit, found.layers)
        for found in selected
        if (document := by_id.get(found.document_id)) is not None
    ]


def evidence_of(stored: StoredDocument, score: float = 0.0, layers: int | None = None) -> Evidence:
    """A stored document as evidence; of `layers` None where no router chose it."""
    return Evidence(
        document_id=stored.id,
        external_id=stored.external_id,
        title=stored.title,
        text=stored.text,
        span=stored.span,
        score=score,
        layers=layers,
        metadata=stored.metadata,
        date=stored.date,
        pages=stored.pages,
    )


def next_query(question: str, newest: Iterable[Evidence]) -> str:
    """What a further round searches for: the question, and the names in the texts found last.

    Names, not whole texts: the words of a text drown the name that leads on to the next document (measured on the
    two-hop questions of `examples/`, see docs/LOG.md). A text without names, or in a script without capitals, leaves
    the question; what it found before is passed over.
    """
    known = set(plain_words(question))
    found = (name for item in newest for name in names_in(encoded_text(item.title, item.text)))
    names = [name for name in dict.fromkeys(found) if not known.issuperset(content_words(name))]
    return " ".join([question, *names])


def said_before(history: Sequence[Turn]) -> str:
    """The newest turns of a conversation, which a question may speak of ("and where does she live?")."""
    newest = [turn for turn in history if turn.answer][-_TURNS_SEARCHED:]
    return "\n".join(text for turn in newest for text in (turn.question, turn.answer))


def names_in(text: str) -> list[str]:
    """The capitalised words inside sentences, each once. A word that opens a sentence says nothing by its capital."""
    names, end = [], 0
    for word in _WORD.finditer(text):
        # The word before counts from its last letter: marks at its end may stand there as well.
        before = text[end : word.start()].rstrip(_BEFORE_WORD)
        if word[0][0].isupper() and before and before[-1] not in _OPENS_SENTENCE:
            names.append(word[0])
        end = word.start() + len(word[0].rstrip(_BEFORE_WORD)) - 1
    return list(dict.fromkeys(names))
