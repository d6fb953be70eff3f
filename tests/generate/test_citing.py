"""What answers rest on: claims, marks that are checked as they are written, citations, answers that have none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.generate.citing import (
    CitationChecker,
    abstains,
    citations_of,
    claims,
    marked_text,
    sentence_spans,
    sentences,
    without_marks,
)
from memspan.types import Answer, Evidence, Span

LEASE = "The lease of the mill ends in May 2027. Ada Berg signed it."
MOVE = "# Move\n\nThe office moves to Oslo on 3 June.\n- Boxes come from the attic."
CHINESE = "水獭住在罗马。苍鹭住在奥斯陆。"


def evidence(*texts: str, **metadata: object) -> list[Evidence]:
    """Documents by their numbers, each a part that begins at the hundredth character of its source."""
    return [
        Evidence(10 * n, f"notes/{n}", "", text, Span(100, 100 + len(text)), 0.5, None, metadata, "2026-03-04")  # type: ignore[arg-type]
        for n, text in enumerate(texts, start=1)
    ]


def answer(text: str, items: Sequence[Evidence]) -> Answer:
    return Answer("?", text, tuple(items), "lexical", "stop", 0, 0, {}, citations=citations_of(text, items))


def checked(text: str, items: Sequence[Evidence], size: int = 3) -> tuple[str, int, bool]:
    """An answer as its marks are checked when it comes in pieces; what was shown never changes later."""
    marks, shown = CitationChecker(items), ""
    for start in range(0, len(text), size):
        now = marks.add(text[start : start + size])
        assert now.startswith(shown)
        shown = now
    now = marks.add("", final=True)
    assert now.startswith(shown)
    return now, marks.removed, marks.said_none


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("written", "shown", "removed"),
    [
        ("The lease ends in May 2027 [1].", "The lease ends in May 2027 [1].", 0),
        (
            "The lease ends in May 2027. [1] Ada Berg signed it [1].",
            "The lease ends in May 2027. [1] Ada Berg signed it [1].",
            0,
        ),
        ("The lease ends in May 2027[1].", "The lease ends in May 2027[1].", 0),
        ("The lease ends in May 2027 [2].", "The lease ends in May 2027.", 1),
        ("The lease ends in May 2028 [1].", "The lease ends in May 2028.", 1),
        ("The lease ends in May 2027 [1, 2].", "The lease ends in May 2027 [1].", 1),
        ("The lease ends in May 2027 [1] [2]. So.", "The lease ends in May 2027 [1]. So.", 1),
        ("The lease ends in May [7][12].", "The lease ends in May.", 2),
        (
            "Ada Berg signed [1] and the office moves to Oslo [2].",
            "Ada Berg signed [1] and the office moves to Oslo [2].",
            0,
        ),
        ("Ada Berg moves to Oslo on 3 June [1][2].", "Ada Berg moves to Oslo on 3 June [1][2].", 0),
        ("[1] The lease ends.", " The lease ends.", 1),
        ("See [the plan] and [2027] or [", "See [the plan] and [2027] or [", 0),
        ("Use `rows[2]` here.", "Use `rows[2]` here.", 0),
        ("It is x[0] there.", "It is x[0] there.", 0),
        ("- The lease ends in May 2027 [1]\n- Dogs bark [1]\n", "- The lease ends in May 2027 [1]\n- Dogs bark\n", 1),
        ("Written on 2026-03-04: the lease ends [1].", "Written on 2026-03-04: the lease ends [1].", 0),
        ("", "", 0),
    ],
)
def test_marks_stay_where_their_documents_say_so(written: str, shown: str, removed: int, size: int) -> None:
    assert checked(written, evidence(LEASE, MOVE), size) == (shown, removed, False)


@pytest.mark.parametrize("written", ["The documents do not say it. [0]", "Das steht nirgends [0].", "[0]", "没有。[0]"])
def test_a_mark_says_in_any_language_that_there_is_no_answer(written: str) -> None:
    shown, removed, said_none = checked(written, evidence(LEASE))
    assert said_none and removed == 0 and "[0]" not in shown


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["The lease", " ends", " in May 2027", ".", " ", "[", "]", "[1]", "[2, 1]", "\n", "0", "`", "1"]
        ),
        max_size=20,
    ),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_pieces_of_any_size_show_the_same(parts: list[str], cuts: list[int]) -> None:
    text, items = "".join(parts), evidence(LEASE, MOVE)
    whole = CitationChecker(items)
    whole.add(text, final=True)
    pieces = CitationChecker(items)
    shown = ""
    for start, end in itertools.pairwise([0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]):
        assert pieces.add(text[start:end]).startswith(shown)
        shown = pieces.text
    assert pieces.add("", final=True) == whole.text
    assert (pieces.removed, pieces.said_none) == (whole.removed, whole.said_none)
    for citation in citations_of(whole.text, items):
        assert whole.text[citation.span.start : citation.span.end].strip()


def test_every_sentence_is_cited_or_said_to_be_without_support() -> None:
    items = evidence(LEASE, MOVE, page=4)
    text = "Ada Berg signed the lease. The office moves to Oslo on 3 June! Dogs bark.\n1. Boxes come from the attic"
    found = answer(text, items)
    shown = [(text[c.span.start : c.span.end], c.supported, c.evidence, c.document_id) for c in found.citations]
    assert shown == [
        ("Ada Berg signed the lease.", True, 1, 10),
        ("The office moves to Oslo on 3 June!", True, 2, 20),
        ("Dogs bark.", False, None, None),
        ("Boxes come from the attic", True, 2, 20),
    ]
    said = [
        items[c.evidence - 1].text[c.source.start - 100 : c.source.end - 100]
        for c in found.citations
        if c.evidence and c.source
    ]
    assert said == ["Ada Berg signed it.", "The office moves to Oslo on 3 June.", "Boxes come from the attic."]
    assert {c.page for c in found.citations} == {4, None} and found.citations[0].external_id == "notes/1"
    assert marked_text(found).startswith(
        "Ada Berg signed the lease. [1] The office moves to Oslo on 3 June! [2] Dogs bark.\n1."
    )
    marked = replace(answer(marked_text(found), items), answerer="m")
    assert marked_text(marked) == marked.text, "marks are written once"


@pytest.mark.parametrize(
    ("text", "supported"),
    [
        ("May 2027", [True]),
        ("2027", [True]),
        ("Ada", [True]),
        ("June 2027", [False]),
        ("Yes.", [False]),
        ("", []),
        ("...", []),
        ("水獭住在罗马。", [True]),
        ("水獭吃鱼很快。", [False]),
        ("The lease of the mill ends in June 2031.", [False]),
    ],
)
def test_short_answers_and_other_scripts(text: str, supported: list[bool]) -> None:
    assert [one.supported for one in citations_of(text, evidence(LEASE, CHINESE))] == supported
    assert not any(one.supported for one in citations_of(text, ())), "without documents nothing is supported"


@pytest.mark.parametrize(
    ("page", "expected"), [(3, 3), ("iv", "iv"), (True, None), ([1], None), (None, None), (2.5, None)]
)
def test_a_page_is_what_the_metadata_say(page: object, expected: object) -> None:
    (one,) = citations_of("Ada Berg signed it.", evidence(LEASE, page=page))
    assert one.page == expected


def test_one_sentence_may_rest_on_two_documents() -> None:
    found = citations_of("Ada Berg moves to Oslo on 3 June.", evidence(LEASE, MOVE))
    assert [(one.evidence, one.span) for one in found] == [(2, Span(0, 33)), (1, Span(0, 33))]


def test_numbers_that_the_memory_model_copies_are_no_marks() -> None:
    items = evidence(LEASE, MOVE)
    (one,) = citations_of("Ada Berg signed it [2].", items, marked=False)
    assert one.evidence == 1, "[2] is a document's id there"
    (one,) = citations_of("Ada Berg signed it [2].", items)
    assert not one.supported


def test_claims_and_marks() -> None:
    text = "A cat [1] and a dog [2][3]. Birds. [1, 2]\n* Fish"
    assert [(text[c.span.start : c.span.end], c.marks) for c in claims(text)] == [
        ("A cat", (1,)),
        ("and a dog", (2, 3)),
        ("Birds.", (1, 2)),
        ("Fish", ()),
    ]
    assert without_marks(text) == "A cat and a dog. Birds.\n* Fish"


@pytest.mark.parametrize(
    "text", ["One. Two.\r\n3. Three\n\n- ", "一。二。", "  a\tb \n", "Dr. Lee came. He left.", "\n\n"]
)
def test_spans_are_where_sentences_stand(text: str) -> None:
    assert [text[span.start : span.end] for span in sentence_spans(text)] == sentences(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't know.", True),
        ("The answer is not mentioned in the notes.", True),
        ("It cannot be determined from the text", True),
        ("Unanswerable", True),
        ("The documents do not say when.", True),
        ("The document doesn’t mention it", True),
        ("These texts don't contain the name.", True),
        ("Nobody knows the trouble", False),
        ("Vegan food does not contain milk.", False),
        ("Paris", False),
        ("", False),
        ("He is known as the Unknownable", False),
    ],
)
def test_what_counts_as_abstaining(text: str, expected: bool) -> None:
    assert abstains(text) is expected
