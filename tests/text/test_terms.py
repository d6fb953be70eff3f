from __future__ import annotations

import itertools

import pytest

from memspan.text.terms import STOP_WORDS, index_terms, query_terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("the the The", ["the", "the", "the"]),
        ("the dog's and the dog’s", ["the", "dog", "and", "the", "dog"]),
        ("don't DON’T o'clock rock'n'roll", ["dont", "dont", "oclock", "rocknroll"]),
        ("the dogs' 'quoted' words", ["the", "dogs", "quoted", "words"]),
        ("snake_case __init__ x_1", ["snake", "case", "init", "x", "1"]),
        ("3.14 1,000 v2 2nd", ["3", "14", "1", "000", "v2", "2nd"]),
        ("a-b c/d e@f.org #tag C++", ["a", "b", "c", "d", "e", "f", "org", "tag", "c"]),
        ("naïve Ærøskøbing ΣΊΣΥΦΟΣ", ["naïve", "ærøskøbing", "σίσυφος"]),
        ("", []),
        (" \t\n", []),
        ("?!… \U0001f600 — ''", []),
    ],
)
def test_words_are_lower_case_runs_of_letters_and_digits(text: str, terms: list[str]) -> None:
    assert index_terms(text) == terms


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("猫", ["猫"]),
        ("黒猫", ["黒猫"]),
        ("东京塔高", ["东京", "京塔", "塔高"]),
        ("東京、大阪", ["東京", "大阪"]),
        ("タワーの高さ", ["タワ", "ワー", "ーの", "の高", "高さ"]),
        ("서울의", ["서울", "울의"]),
        ("第42回", ["42", "第", "回"]),
        ("GPUを使う", ["gpu", "を使", "使う"]),
        ("一二one三四", ["one", "一二", "三四"]),
        ("東京's", ["s", "東京"]),
    ],
)
def test_scripts_without_spaces_are_overlapping_pairs(text: str, terms: list[str]) -> None:
    assert index_terms(text) == terms


def test_a_question_is_the_distinct_words_that_are_no_stop_words() -> None:
    assert query_terms("What is the zebra's Zebra and THE giraffe?") == ["zebra", "giraffe"]
    assert query_terms("东京的东京") == ["东京", "京的", "的东"]


@pytest.mark.parametrize("question", ["To be, or not to be?", "The Who", "IT", "what's this"])
def test_a_question_of_stop_words_keeps_them(question: str) -> None:
    terms = query_terms(question)
    assert terms
    assert set(terms) == set(index_terms(question)) <= STOP_WORDS


def test_questions_are_cut_as_texts_are() -> None:
    # Every term of a question is one a text of the same words is indexed by: else it could never be found.
    pieces = ["The", "dog's", "东京塔", "don’t", "_x_", "Ümläut", "3.14", "猫", "\U0001f600", "IT'S"]
    for words in itertools.permutations(pieces, 3):
        for joined in (" ".join(words), "".join(words), "-".join(words)):
            terms = query_terms(joined)
            assert len(terms) == len(set(terms))
            assert set(terms) <= set(index_terms(joined))


def test_stop_words_are_words_as_they_are_indexed() -> None:
    for word in STOP_WORDS:
        assert index_terms(word) == [word]


def test_every_term_can_be_quoted() -> None:
    # The catalog joins terms by spaces and puts them in quotes.
    text = "".join(map(chr, range(0x3000))) + "日\"本 a\"b 'c' \u2028d\u00a0e"
    for term in index_terms(text):
        assert term and '"' not in term and "'" not in term and not any(map(str.isspace, term))


@pytest.mark.parametrize(
    ("one", "other"), [("Z\u00fcrich", "Zu\u0308rich"), ("\uac00\uc744", "\u1100\u1161\u110b\u1173\u11af")]
)
def test_composed_and_decomposed_letters_are_the_same_word(one: str, other: str) -> None:
    assert index_terms(one) == index_terms(other)
