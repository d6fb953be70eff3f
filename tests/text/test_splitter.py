"""The contract of `split_text`, for counters that add up and counters that do not, and where sentences end."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable

import pytest
from helpers import CopiedText
from hypothesis import example, given
from hypothesis import strategies as st

from memspan.text.splitter import sentence_ends, split_text
from memspan.types import Span

Counter = Callable[[str], int]


def count_words(text: str) -> int:
    return len(text.split())


def count_like_bpe(text: str) -> int:
    """Words carry the space before them; a space that ends the text is a token of its own."""
    return len(re.findall(r"\s?\S+|\s+", text))


def count_superadditive(text: str) -> int:
    """A joined text costs more than its pieces: one more token for every ten characters."""
    return len(text.split()) + len(text) // 10


COUNTERS = [count_words, len, count_like_bpe, count_superadditive]

TEXTS = st.one_of(
    st.text(max_size=200),
    st.text(alphabet="ab. !?\n\r\t。…\u0301\u200d’)", max_size=200),
    st.lists(st.sampled_from(["Word", "e.g.", "end.", "3.14", "你好。", "a" * 30, " ", "\n", "\r\n", "\n\n"])).map(
        " ".join
    ),
)


def parts(text: str, counter: Counter, max_tokens: int) -> list[str]:
    return [text[span.start : span.end] for span in split_text(text, counter, max_tokens)]


def sentences(text: str) -> list[str]:
    bounds = [0, *sentence_ends(text), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(bounds)]


@pytest.mark.parametrize("counter", COUNTERS)
@given(text=TEXTS, max_tokens=st.integers(1, 40))
def test_parts_cover_the_text_and_hold_the_limit(counter: Counter, text: str, max_tokens: int) -> None:
    spans = split_text(text, counter, max_tokens)
    assert "".join(text[span.start : span.end] for span in spans) == (text if text.strip() else "")
    assert all(span.start < span.end for span in spans)
    assert all(before.end == after.start for before, after in itertools.pairwise(spans))
    for span in spans:
        assert counter(text[span.start : span.end]) <= max_tokens or span.end - span.start == 1
    assert spans == split_text(text, counter, max_tokens)


@given(text=TEXTS, max_tokens=st.integers(1, 40))
@example(text="\r0 \u0300\u0300\u200d\x800", max_tokens=1)
def test_no_part_is_blank_where_whitespace_costs_nothing(text: str, max_tokens: int) -> None:
    assert all(part.strip() for part in parts(text, count_words, max_tokens))


@given(text=TEXTS, max_tokens=st.integers(1, 40))
def test_a_blank_part_lies_in_whitespace_that_nearly_fills_a_part(text: str, max_tokens: int) -> None:
    longest_run = max((len(run) for run in re.findall(r"\s+", text)), default=0)
    if longest_run < max_tokens / 2:
        assert all(part.strip() for part in parts(text, len, max_tokens))


@given(text=st.text(alphabet="ab \n\u0301\u0323", max_size=200), max_tokens=st.integers(8, 40))
def test_a_mark_stays_with_its_base(text: str, max_tokens: int) -> None:
    longest_run = max((len(run) for run in re.findall(r"[\u0301\u0323\s]+", text)), default=0)
    if longest_run < max_tokens / 2:
        assert not any(unicodedata.combining(part[0]) for part in parts(text, len, max_tokens)[1:])


@given(words=st.lists(st.sampled_from(["a", "bb", "ccc."]), min_size=1, max_size=60), max_tokens=st.integers(1, 9))
def test_neighbours_without_a_better_border_do_not_fit_together(words: list[str], max_tokens: int) -> None:
    text = " ".join(words).replace(".", "")
    split = parts(text, count_words, max_tokens)
    assert all(count_words(a) == max_tokens for a in split[:-1])


def test_a_text_that_fits_is_one_span_and_counted_once() -> None:
    counted: list[str] = []
    assert split_text(" a b\n\nc ", lambda text: counted.append(text) or 3, 3) == [Span(0, 8)]
    assert counted == [" a b\n\nc "]


def test_a_blank_text_has_no_parts() -> None:
    assert split_text("", len, 1) == split_text(" \n\n ", len, 1) == []


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is 0"):
        split_text("a", len, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b\n\nc d\ne. f", ["a b\n\n", "c d\ne. f"]),
        ("a b\r\n\r\nc d\r\ne. f", ["a b\r\n\r\n", "c d\r\ne. f"]),
        ("a b\n \t\nc d e f", ["a b\n \t\n", "c d e f"]),
        ("a b\nc. d e f", ["a b\n", "c. d e f"]),
        ("a b. c d e f", ["a b. ", "c d e f"]),
        ("a b c d  e f", ["a b c d  ", "e f"]),
        ("a\n\nb\n\nc\n\nd\n\ne", ["a\n\nb\n\nc\n\nd\n\n", "e"]),
        ("\n\n a b c d e", ["\n\n a b c d ", "e"]),
        ("a b c d e \n\n ", ["a b c d ", "e \n\n "]),
        ("if a:\n    b c d e", ["if a:\n", "    b c d e"]),
        ("a b c d e\n\nf g", ["a b c d ", "e\n\nf g"]),
    ],
    ids=[
        "paragraph",
        "CRLF",
        "blank with spaces",
        "line",
        "sentence",
        "word",
        "furthest",
        "lead",
        "trail",
        "indent",
        "tail",
    ],
)
def test_a_part_of_four_words_ends_at_its_best_border(text: str, expected: list[str]) -> None:
    assert parts(text, count_words, 4) == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["One. ", "Two! ", "Three? ", "Four… ", "Five... ", "Six?! ", "Seven"],
        ['He said "no." ', "(Really.) ", "Yes"],
        ["Dr. Who met Mr. J. R. Smith, e.g. in No. 10, vs. others (cf. fig. 3) etc. and so on. ", "Then"],
        ["In the U.S. it costs 3.14 or .5 units. ", "Version 1.2.3 is out. ", "Done."],
        ["I said no. ", "The plan of a. ", "Next"],
        ["Пришёл А. С. Пушкин. ", "Он сел."],
        ["你好。", "再见！", "真的吗？！", "「好。」", "完"],
        ["a.b is a name.\n", "Next"],
    ],
)
def test_sentences(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


def test_chinese_is_cut_after_sentences_though_it_has_no_spaces() -> None:
    assert parts("你好吗。我很好。谢谢你。", len, 9) == ["你好吗。我很好。", "谢谢你。"]


def test_an_unbroken_string_is_cut_into_nearly_full_parts() -> None:
    split = parts("x" * 10_000, len, 100)
    assert len(split) <= 115


def test_emoji_and_surrogate_pairs_stay_whole() -> None:
    for sign in ("👩\u200d🔬", "👍🏽", "\ud83d\ude00", "e\u0301\u0323"):
        assert all(len(part) % len(sign) == 0 for part in parts(sign * 50, len, 11))


def test_a_mark_pile_over_the_limit_is_torn_to_hold_the_limit() -> None:
    assert max(map(len, parts("e" + "\u0301" * 50, len, 8))) <= 8


def test_a_character_over_the_limit_stays_whole() -> None:
    assert parts("你好", lambda text: len(text.encode()), 2) == ["你", "好"]


def test_a_tokenizer_that_merges_spaces_still_fills_the_parts() -> None:
    split = parts("word " * 1000, count_like_bpe, 100)
    assert len(split) <= 11


@pytest.mark.parametrize("piece", ["word ", "A sentence. ", "A line\n", "Para\n\n", "x"])
@pytest.mark.parametrize("counter", COUNTERS)
def test_counting_is_linear(piece: str, counter: Counter) -> None:
    def num_counted(text: str) -> int:
        counted = 0

        def counting(part: str) -> int:
            nonlocal counted
            counted += len(part)
            return counter(part)

        split_text(text, counting, 50)
        return counted

    # Four times the text costs about four times the work; halving an unbroken string adds a logarithm.
    assert num_counted(piece * 4000) <= 6 * num_counted(piece * 1000)


def test_long_runs_of_punctuation_and_blank_lines_are_no_trap() -> None:
    for text in ("." * 50_000 + "x", "a" + "\n" * 50_000 + "b", "a.)" + ")" * 50_000, "a\n" + " " * 50_000 + "b"):
        assert "".join(parts(text, len, 1000)) == text


def test_a_long_run_of_combining_marks_is_cut_in_linear_work() -> None:
    text = CopiedText("a" + "\u0301" * 4000)
    assert "".join(parts(text, len, 10)) == text
    assert text.copied[0] <= 100 * len(text)


def test_a_heading_is_no_part_of_its_own() -> None:
    text = "A heading\n\n" + " ".join(f"word{index}." for index in range(40))
    first, *_ = split_text(text, lambda part: len(part.split()), 20)
    assert len(text[first.start : first.end].split()) == 20


@pytest.mark.parametrize("separator", [",", ";", "|", ",,", '","', "\n", " ", ", "])
@pytest.mark.parametrize("key", ["{:08x}-11aa-4bbb-8ccc-0123456789ab", "{:07d}", "INV-{:05d}", "{:05d},678"])
def test_no_id_is_cut_where_separators_stand_between_ids(separator: str, key: str) -> None:
    ids = [key.format(number) for number in range(101, 161)]
    found = parts(separator.join(ids), len, 120)
    assert len(found) > 2 and all(any(one in part for part in found) for one in ids)


def test_a_separator_is_the_last_resort_before_characters() -> None:
    assert parts("a,b;c|d ef,g", len, 9) == ["a,b;c|d ", "ef,g"]
    assert parts("1,000,000,000,000", len, 6)[0] != "1,"
