"""The full-text index against BM25 written out, and what a budget of scored documents leaves of it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.bank import edits, words
from memspan.bank.catalog import Catalog
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.folder import WrittenSegments
from memspan.bank.scope import EVERYTHING, Scope
from memspan.bank.segment import RowLocation, SegmentFiles
from memspan.types import Document, Span

NAMESPACE = "default"
# Ten words with a digit each, which stemming leaves alone; the later ones are rarer.
VOCABULARY = tuple(f"w{number}" for number in range(10))
K1, B = 1.2, 0.75
SMALLEST_IDF = 1e-6

Found = list[tuple[int, float]]


def _add(catalog: Catalog, texts: Mapping[int, str], namespace: str = NAMESPACE) -> None:
    """Documents without latents, called by their ids; `parity` is even or odd."""
    segment = SegmentFiles(f"{min(texts):032x}", len(texts), len(texts), 0, 10, "a", 20, "b")
    sources = [
        NewSource(
            Document(str(number), text, metadata={"parity": "odd" if number % 2 else "even"}),
            (NewDocument(number, Span(0, len(text)), 1),),
        )
        for number, text in texts.items()
    ]
    places = [RowLocation(number, segment.name, row, 1, 0) for row, number in enumerate(texts)]
    edits.add_sources(catalog, namespace, sources, WrittenSegments([segment], places))


@pytest.fixture(scope="module")
def new_catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Mapping[int, str]], Catalog]]:
    """Makes catalogs of texts, called by their ids."""
    made: list[Catalog] = []

    def new(texts: Mapping[int, str]) -> Catalog:
        if made:
            made.pop().close()
        catalog = Catalog(tmp_path_factory.mktemp("words") / "catalog.sqlite", create=True)
        catalog.execute("PRAGMA synchronous = OFF")
        made.append(catalog)
        _add(catalog, texts)
        return catalog

    yield new
    made.pop().close()


def _reference(texts: Mapping[int, str], question: str) -> dict[int, float]:
    """BM25 as FTS5 computes it, of every document that holds a word of the question."""
    held = {number: Counter(text.split()) for number, text in texts.items()}
    mean_length = sum(counts.total() for counts in held.values()) / len(held)
    scores: dict[int, float] = {}
    for term in dict.fromkeys(question.split()):
        holders = sum(term in counts for counts in held.values())
        idf = max(math.log((len(held) - holders + 0.5) / (holders + 0.5)), SMALLEST_IDF)
        for number, counts in held.items():
            if term in counts:
                length_norm = K1 * (1 - B + B * counts.total() / mean_length)
                score = idf * counts[term] * (K1 + 1) / (counts[term] + length_norm)
                scores[number] = scores.get(number, 0.0) + score
    return scores


def _check(found: Found, expected: Mapping[int, float]) -> None:
    """The expected documents with their scores, best first, equals by id."""
    assert dict(found) == pytest.approx(dict(expected), rel=1e-9)
    assert found == sorted(found, key=lambda item: (-item[1], item[0]))


TEXTS = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12).map(" ".join)
QUESTIONS = st.lists(st.sampled_from([*VOCABULARY, "absent"]), min_size=1, max_size=5).map(" ".join)


@given(
    st.lists(TEXTS, min_size=1, max_size=25), st.lists(QUESTIONS, min_size=5, max_size=5), st.sets(st.integers(1, 25))
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_search_is_bm25_over_the_live_documents(
    new_catalog: Callable[[Mapping[int, str]], Catalog], texts: list[str], questions: list[str], deleted: set[int]
) -> None:
    by_id = dict(enumerate(texts, start=1))
    catalog = new_catalog(by_id)
    for gone in ({}, deleted & set(list(by_id)[:-1])):
        edits.delete_sources(catalog, NAMESPACE, map(str, gone))
        live = {number: text for number, text in by_id.items() if number not in gone}
        for question in questions:
            _check(catalog.search(NAMESPACE, question, 100), _reference(live, question))


def _zipf(count: int) -> dict[int, str]:
    """Texts in which the word number n is in every n-th document, under ids from 1; lengths differ."""
    return {
        number: " ".join(
            ["filler"] * (number * 7 % 5)
            + [f"w{n}" for n in range(1, 10) if number % n == 0 for _ in range(1 + number * n % 3)]
        )
        for number in range(1, count + 1)
    }


@pytest.fixture(scope="module")
def zipf(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    catalog = Catalog(tmp_path_factory.mktemp("zipf") / "catalog.sqlite", create=True)
    _add(catalog, _zipf(120))
    return catalog


ZIPF_QUESTIONS = ("w1 w7", "w9 w2 w1", "w1", "w8 w9 w3", "w1 w2 w3 w4 w5 w6 w7 w8 w9", "absent w7 w1", "w2 filler")


def _rare(question: str, budget: int) -> set[str]:
    """The rarest words of a question, as many as are in about `budget` documents together; at least one."""
    texts = _zipf(120).values()
    counts = {term: sum(term in text.split() for text in texts) for term in question.split()}
    rare: set[str] = set()
    total = 0
    for term in sorted((term for term in counts if counts[term]), key=counts.__getitem__):
        total += counts[term]
        if rare and total > budget:
            break
        rare.add(term)
    return rare


@pytest.mark.parametrize("budget", [1, 15, 40, 70, 1000])
@pytest.mark.parametrize("question", ZIPF_QUESTIONS)
def test_over_the_budget_documents_with_a_rare_word_are_scored_by_all_words_and_others_passed_over(
    zipf: Catalog, question: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MOST_SCORED", budget)
    texts = _zipf(120)
    rare = _rare(question, budget)
    scores = _reference(texts, question)
    expected = {number: score for number, score in scores.items() if rare & set(texts[number].split())}
    found = zipf.search(NAMESPACE, question, 1000)
    _check(found, expected)
    assert found
    for limit in (1, 2, 5, 17, 64):
        assert zipf.search(NAMESPACE, question, limit) == found[:limit]
    if budget == 1000:
        assert expected == scores, "nothing is passed over"


def test_the_budget_leaves_words_out(monkeypatch: pytest.MonkeyPatch, zipf: Catalog) -> None:
    """What the test above rests on: with some budget and question only a part of the words is rare."""
    assert _rare("w9 w2 w1", 15) == {"w9"} and _rare("w9 w2 w1", 1000) == {"w9", "w2", "w1"}
    everything = zipf.search(NAMESPACE, "w9 w2 w1", 1000)
    monkeypatch.setattr(words, "_MOST_SCORED", 15)
    assert 0 < len(zipf.search(NAMESPACE, "w9 w2 w1", 1000)) < len(everything) == 120


@pytest.mark.parametrize("scope", [{"parity": "even"}, {"external_id": {"in": ["7", "14", "21", "22", "40", "119"]}}])
@pytest.mark.parametrize("question", ZIPF_QUESTIONS)
def test_with_a_scope_a_search_is_the_whole_ranking_without_the_others(
    zipf: Catalog, question: str, scope: dict[str, object]
) -> None:
    parsed = Scope.parse(scope)
    allowed = set(zipf.ids_in_scope(NAMESPACE, parsed).tolist())
    whole = [item for item in zipf.search(NAMESPACE, question, 1000) if item[0] in allowed]
    for limit in (1, 2, 4, 8, 1000):
        assert zipf.search(NAMESPACE, question, limit, parsed) == whole[:limit]


@pytest.mark.parametrize("budget", [1, 15, 40])
@pytest.mark.parametrize("scope", [{"parity": "odd"}, {"external_id": {"in": ["2", "4", "9", "22", "40", "119"]}}])
@pytest.mark.parametrize("question", ZIPF_QUESTIONS)
def test_over_the_budget_a_scope_without_rare_words_is_searched_by_the_others(
    zipf: Catalog, question: str, scope: dict[str, object], budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MOST_SCORED", budget)
    parsed = Scope.parse(scope)
    allowed = set(zipf.ids_in_scope(NAMESPACE, parsed).tolist())
    texts, scores = _zipf(120), _reference(_zipf(120), question)
    in_scope = {number: score for number, score in scores.items() if number in allowed}
    rare = {number for number in in_scope if _rare(question, budget) & set(texts[number].split())}
    expected = {number: score for number, score in in_scope.items() if number in rare} or in_scope
    _check(zipf.search(NAMESPACE, question, 1000, parsed), expected)


def test_a_shorter_list_is_the_beginning_of_a_longer_one_in_a_scope_too(
    zipf: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    external_ids = {"in": ["7", "14", "22", "40", "63", "119"]}
    scopes = [Scope.parse(where) for where in ({"parity": "odd"}, {"parity": "even"}, {"external_id": external_ids})]
    for budget, question, scope in itertools.product((1, 15, 40, 1000), ZIPF_QUESTIONS, scopes):
        monkeypatch.setattr(words, "_MOST_SCORED", budget)
        for limit in (1, 2, 4, 8, 16, 32):
            found = zipf.search(NAMESPACE, question, limit, scope)
            assert zipf.search(NAMESPACE, question, 2 * limit, scope)[:limit] == found


def test_a_long_document_with_the_rare_word_is_found_however_long_the_list(
    new_catalog: Callable[[Mapping[int, str]], Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "_MOST_SCORED", 1)
    texts = {1: "rare1 " + "filler " * 60, 2: "common1 other2 third3", 3: "common1 other2 third3"}
    texts |= {number: "filler" for number in range(4, 12)}
    question, scope = "rare1 common1 other2 third3", Scope.parse({"external_id": {"<": "4"}})
    catalog = new_catalog(texts)
    scores = _reference(texts, question)
    assert scores[2] > scores[1], "it is not the best by score"
    for limit in (1, 2, 3):
        assert [number for number, _ in catalog.search(NAMESPACE, question, limit, scope)] == [1]
        assert [number for number, _ in catalog.search(NAMESPACE, question, limit)] == [1]


def test_the_same_search_gives_the_same_whatever_the_history_of_the_index(
    new_catalog: Callable[[Mapping[int, str]], Catalog], zipf: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = _zipf(120)
    order = sorted(texts, key=lambda number: number * 47 % 121)
    catalog = new_catalog({1000: "w1 w9 gone5"})
    for first in range(0, 120, 40):
        _add(catalog, {number: texts[number] for number in order[first : first + 40]})
    edits.delete_sources(catalog, NAMESPACE, ["1000"])
    rebuilt = False
    for budget in (1, 15, 1000):
        monkeypatch.setattr(words, "_MOST_SCORED", budget)
        for question in ZIPF_QUESTIONS:
            for scope in (EVERYTHING, Scope.parse({"parity": "odd"})):
                expected = zipf.search(NAMESPACE, question, 50, scope)
                assert catalog.search(NAMESPACE, question, 50, scope) == expected
                assert zipf.search(NAMESPACE, question, 50, scope) == expected
        if not rebuilt:
            edits.rebuild_words(catalog, NAMESPACE)
            rebuilt = True
    assert not catalog.word_index(NAMESPACE).differs(catalog.texts(NAMESPACE))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "question",
    [
        "",
        "?!",
        "\0",
        '"',
        '"w1" OR',
        "w1 AND",
        "NEAR(w1 w2)",
        "w1*",
        "words: w1",
        "-w1",
        "^w1",
        "(",
        "\ud800w1",
        "w1\0w2",
    ],
)
@pytest.mark.parametrize("budget", [1, 1000])
def test_any_text_is_a_question(zipf: Catalog, question: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_SCORED", budget)
    found = zipf.search(NAMESPACE, question, 5)
    assert bool(found) == ("w1" in question)
    if question in ('"w1" OR', "w1 AND", "w1*", "-w1", "^w1"):
        assert found == zipf.search(NAMESPACE, "w1", 5)


def test_a_limit_of_none_finds_none(zipf: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    for budget in (1, 1000):
        monkeypatch.setattr(words, "_MOST_SCORED", budget)
        assert zipf.search(NAMESPACE, "w1 w9", 0) == []


def test_what_another_namespace_holds_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(tmp_path / "catalog.sqlite", create=True)
    monkeypatch.setattr(words, "_MOST_SCORED", 15)
    _add(catalog, _zipf(60))
    before = [catalog.search(NAMESPACE, question, 100) for question in ZIPF_QUESTIONS]
    _add(catalog, {1000 + number: f"{text} w9 w9" for number, text in _zipf(40).items()}, "other")
    edits.delete_sources(catalog, "other", ["1001", "1002"])
    assert [catalog.search(NAMESPACE, question, 100) for question in ZIPF_QUESTIONS] == before
    assert all(number > 1002 for question in ZIPF_QUESTIONS for number, _ in catalog.search("other", question, 100))
    assert catalog.search("none", "w1", 5) == []
    catalog.close()
