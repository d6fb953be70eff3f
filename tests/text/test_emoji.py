"""Emoji of several code points are shown whole, however their text comes in."""

from __future__ import annotations

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.text.growing import WholeEmoji

EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪", "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "🧑🏿‍🚀"]


def _shown(pieces: list[str]) -> list[str]:
    whole = WholeEmoji()
    return [text for text in (*map(whole.take, pieces), whole.rest()) if text]


@pytest.mark.parametrize("emoji", EMOJI)
def test_an_emoji_is_never_split(emoji: str) -> None:
    for before, after in (("", ""), ("a", "b"), ("😀", "😀"), ("", "🇫🇷")):
        text = f"{before}{emoji}{after}"
        shown = _shown(list(text))
        assert "".join(shown) == text
        assert any(emoji in piece for piece in shown), shown


def test_other_text_is_shown_at_once() -> None:
    whole = WholeEmoji()
    assert [whole.take(text) for text in ("Hello", " ", "", "世界", "é")] == ["Hello", " ", "", "世界", "é"]
    assert whole.take("ok 😀") == "ok " and whole.take("!") == "😀!" and whole.rest() == ""


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*EMOJI, "a", " ", "é", "‍", "️"]), max_size=12), st.integers(1, 5))
def test_nothing_is_lost_and_nothing_split(parts: list[str], size: int) -> None:
    text = "".join(parts)
    shown = _shown([text[start : start + size] for start in range(0, len(text), size)])
    assert "".join(shown) == text
    place, borders = 0, {match.end() for match in regex.finditer(r"\X", text)}
    for piece in shown[:-1]:
        place += len(piece)
        assert place in borders or not regex.search(r"\p{Extended_Pictographic}", text[place - 1 : place + 1])
