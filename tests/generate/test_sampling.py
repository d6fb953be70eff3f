from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.errors import MemspanError
from memspan.generate.sampling import Sampling, StopStrings, pick_tokens
from memspan.ops import scoring


def pick_token(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    return pick_tokens(logits_V[None], [sampling], [generator])[0]


def _drawn(probabilities: list[float], sampling: Sampling, times: int = 300) -> list[int]:
    generator = torch.Generator().manual_seed(sampling.seed)
    logits_V = torch.tensor(probabilities).log()
    return [pick_token(logits_V, sampling, generator) for _ in range(times)]


# --- pick_tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "top_p, kept",
    [
        (0.1, {2}),
        (0.49, {2}),
        (0.51, {2, 0}),
        (0.74, {2, 0}),
        (0.8, {2, 0, 3}),
        (0.95, {2, 0, 3, 1}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: set[int]) -> None:
    probabilities = [0.25, 0.078125, 0.5, 0.171875]
    assert set(_drawn(probabilities, Sampling(temperature=1.0, top_p=top_p))) == kept


def test_of_equally_likely_tokens_top_p_keeps_the_first() -> None:
    assert set(_drawn([0.25] * 4, Sampling(temperature=1.0, top_p=0.4))) == {0, 1}


def test_kept_tokens_are_drawn_in_proportion_to_their_probabilities() -> None:
    drawn = _drawn([0.25, 0.078125, 0.5, 0.171875], Sampling(temperature=1.0, top_p=0.74), times=3000)
    assert drawn.count(2) / 3000 == pytest.approx(2 / 3, abs=0.03)
    hot = _drawn([0.1, 0.9], Sampling(temperature=2.0), times=3000)  # odds of 9 become odds of 3
    assert hot.count(1) / 3000 == pytest.approx(3 / 4, abs=0.03)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=12, unique=True), st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_no_temperature_and_a_tiny_top_p_pick_the_likeliest(values: list[int], top_p: float) -> None:
    logits_V = torch.tensor(values, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    best = values.index(max(values))
    assert pick_token(logits_V, Sampling(temperature=0, top_p=top_p), generator) == best
    assert pick_token(logits_V, Sampling(temperature=1.0, top_p=1e-9), generator) == best


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=8),
    st.floats(0.3, 2),
    st.floats(0.05, 0.999),
    st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_what_is_drawn_lies_in_the_nucleus(values: list[float], temperature: float, top_p: float, seed: int) -> None:
    logits_V = torch.tensor(values)
    token = pick_token(logits_V, Sampling(temperature=temperature, top_p=top_p), torch.Generator().manual_seed(seed))
    probabilities = torch.softmax(logits_V.double() / temperature, dim=-1).tolist()
    likelier = sum(p for p in probabilities if p > probabilities[token] * (1 + 1e-4))
    assert likelier < top_p + 1e-4, "the likelier tokens alone reached top_p"


def test_a_seed_gives_the_same_draws_and_another_gives_others() -> None:
    even = [0.25] * 4
    first = _drawn(even, Sampling(temperature=1.0, seed=3), times=40)
    assert first == _drawn(even, Sampling(temperature=1.0, seed=3), times=40)
    assert first != _drawn(even, Sampling(temperature=1.0, seed=4), times=40)


def test_logits_in_half_precision_are_sampled() -> None:
    logits_V = torch.tensor([0.0, 50.0, 0.0], dtype=torch.bfloat16)
    assert pick_token(logits_V, Sampling(temperature=1.0), torch.Generator().manual_seed(0)) == 1


SAMPLINGS = [
    Sampling(temperature=0.7, seed=1),
    Sampling(),
    Sampling(temperature=1.3, top_p=0.8, seed=2),
    Sampling(temperature=1e-300, seed=3),
    Sampling(temperature=100.0, top_p=0.999, seed=4),
    Sampling(temperature=0.7, top_p=0.01, seed=5),
]


def _generators(samplings: list[Sampling]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(sampling.seed) for sampling in samplings]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_question_is_given_in_any_batch_what_it_would_be_given_alone(
    dtype: torch.dtype, device: torch.device
) -> None:
    logits = torch.randn(6, 20, 1000).to(dtype)
    alone, together = _generators(SAMPLINGS), _generators(SAMPLINGS)
    some = [4, 0, 2]
    in_part = _generators(SAMPLINGS)
    for step in range(20):
        tokens = pick_tokens(logits[:, step].to(device), SAMPLINGS, together)
        expected = [
            pick_tokens(logits[row, step][None], [sampling], [alone[row]])[0] for row, sampling in enumerate(SAMPLINGS)
        ]
        assert tokens == expected
        chosen = pick_tokens(logits[some, step].to(device), [SAMPLINGS[x] for x in some], [in_part[x] for x in some])
        assert chosen == [tokens[row] for row in some]
        for row in (1, 3, 5):
            assert tokens[row] == int(logits[row, step].argmax())


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("number", [0, 1, 2**51, 2**52 - 1])
def test_the_smallest_and_the_largest_number_draw_what_may_be_drawn(
    number: int, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([number]))
    logits_V = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.3, -0.2, float("-inf")])
    token = pick_token(logits_V, Sampling(temperature=1.0, top_p=top_p), torch.Generator())
    assert token in (1, 3, 4)
    if top_p == 1:
        assert token == {0: 1, 1: 1, 2**51: 3, 2**52 - 1: 4}[number]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.5)])
def test_logits_that_are_no_numbers_are_an_error(value: float, sampling: Sampling) -> None:
    logits_RV = torch.zeros(2, 5)
    logits_RV[1, 3] = value
    with pytest.raises(MemspanError, match="no numbers to draw a token from; load it with --dtype float32"):
        pick_tokens(logits_RV, [sampling] * 2, _generators([sampling] * 2))


def test_nothing_but_forbidden_tokens_is_an_error() -> None:
    with pytest.raises(MemspanError, match="no numbers"):
        pick_token(torch.full((4,), float("-inf")), Sampling(temperature=1.0), torch.Generator())


@pytest.mark.parametrize("number", [0, 2**51, 2**52 - 1])
def test_a_device_without_float64_draws_in_float32(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([number]))
    logits_RV = torch.randn(6, 50)
    logits_RV[:, [0, 49]] = float("-inf")
    expected = pick_tokens(logits_RV, SAMPLINGS, _generators(SAMPLINGS))
    monkeypatch.setattr(scoring, "has_float64", lambda device: False)
    assert pick_tokens(logits_RV, SAMPLINGS, _generators(SAMPLINGS)) == expected
    assert not {0, 49} & set(expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 or a positive number"),
        ({"temperature": float("nan")}, "temperature must be 0 or a positive number"),
        ({"temperature": float("inf")}, "temperature must be 0 or a positive number"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1"),
        ({"stop": ("a", "")}, "a stop string must not be empty"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


# --- StopStrings ----------------------------------------------------------------------------------------------------


def _stream(stops: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown after each piece, as a decoder would ask, and whether a stop string ended it."""
    cutter, text, shown = StopStrings(stops), "", []
    for piece in pieces:
        text += piece
        now, stopped = cutter.cut(text, final=False)
        shown.append(now)
        if stopped:
            return shown, True
    now, stopped = cutter.cut(text, final=True)
    return [*shown, now], stopped


_LETTERS = st.text(alphabet="ab\n", min_size=1, max_size=4)


@given(st.lists(_LETTERS, max_size=3).map(tuple), st.lists(_LETTERS, max_size=12))
@settings(max_examples=200, deadline=None)
def test_increments_join_to_the_final_text_and_never_show_a_part_of_a_stop_string(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    shown, stopped = _stream(stops, pieces)
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before), "what was shown is never taken back"
    text, final = "".join(pieces), shown[-1]
    assert text.startswith(final)
    assert not any(stop in final for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    if stopped:
        assert any(text.startswith(stop, len(final)) for stop in stops), "it ends where a stop string begins"
    else:
        assert final == text


@given(_LETTERS, st.lists(_LETTERS, max_size=12))
@settings(max_examples=120, deadline=None)
def test_a_single_stop_string_cuts_at_its_first_place_whatever_the_pieces(stop: str, pieces: list[str]) -> None:
    shown, stopped = _stream((stop,), pieces)
    text, found, _ = "".join(pieces).partition(stop)
    assert (shown[-1], stopped) == (text, bool(found))


@given(st.lists(_LETTERS, min_size=1, max_size=3).map(tuple), st.lists(_LETTERS, max_size=12))
@settings(max_examples=120, deadline=None)
def test_only_what_may_become_a_stop_string_is_held_back(stops: tuple[str, ...], pieces: list[str]) -> None:
    text = ""
    for piece in pieces:
        text += piece
        shown, stopped = StopStrings(stops).cut(text, final=False)
        if stopped:
            return
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_examples_of_cutting() -> None:
    cutter = StopStrings(("\n\n", "END"))
    assert cutter.cut("Paris\n", final=False) == ("Paris", False)
    assert cutter.cut("Paris\n", final=True) == ("Paris\n", False)
    assert cutter.cut("Paris\n\nmore", final=False) == ("Paris", True)
    assert cutter.cut("Paris EN", final=False) == ("Paris ", False)
    assert cutter.cut("Paris ENd", final=False) == ("Paris ENd", False)
    assert cutter.cut("END\n\n", final=True) == ("", True)
    assert StopStrings(()).cut("anything", final=False) == ("anything", False)
