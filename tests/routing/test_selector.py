from __future__ import annotations

import itertools

import pytest

from memspan.routing.ranking import (
    ROUTER_WEIGHT,
    Ranked,
    Selected,
    chosen,
    fuse,
    fused_fits,
    keep_adaptively,
    router_fits,
    scaled,
    words_fits,
)


def _routed(*scores: tuple[int, float]) -> list[Ranked]:
    return [Ranked(document_id, score, layers=2) for document_id, score in scores]


# A lexical hit far above its noise; a router that sees nothing but noise and ranks the hit last, or not at all.
LEXICAL = [(7, 12.0), (1, 3.0), (2, 2.5), (3, 2.0)]
NOISE = _routed((4, 0.52), (1, 0.51), (5, 0.505), (2, 0.5))


def test_the_routers_own_scores_are_told_from_the_last_one_considered_to_the_best() -> None:
    assert scaled([Ranked(1, 1.5, 2), Ranked(7, 0.75, 1), Ranked(9, 0.5, 0)]) == [(1, 1.0), (7, 0.25), (9, 0.0)]
    assert scaled(_routed((1, 1.5))) == [(1, 1.0)]
    assert scaled(_routed((4, -0.5), (6, -0.5))) == [(4, 1.0), (6, 1.0)]
    assert scaled([]) == []


def test_a_chosen_document_tells_how_many_layers_routed_to_it() -> None:
    scores = [(3, 4.0), (1, 2.0)]
    assert chosen(scores, []) == [Selected(3, 4.0, None), Selected(1, 2.0, None)]
    assert chosen(scores, [Ranked(1, 1.5, 2)]) == [Selected(3, 4.0, 0), Selected(1, 2.0, 2)]
    assert chosen([], _routed((1, 1.0))) == []


def test_fusing_is_the_weighted_sum_of_shares_of_the_best_score() -> None:
    # BM25 from 0 to the best hit, the router from its last candidate to its best.
    found = fuse([(1, 8.0), (2, 6.0), (3, 2.0)], _routed((3, 0.75), (4, 0.5), (1, 0.25)))
    lexical = 1 - ROUTER_WEIGHT
    expected = {1: lexical, 2: lexical * 0.75, 3: lexical * 0.25 + ROUTER_WEIGHT, 4: ROUTER_WEIGHT / 2}
    assert dict(found) == pytest.approx(expected)
    assert [document_id for document_id, _ in found] == sorted(expected, key=lambda number: -expected[number])


def test_neither_the_scale_of_a_score_nor_the_offset_of_the_routers_matters() -> None:
    lexical, routed = LEXICAL, _routed((3, 0.9), (7, 0.5), (5, 0.25))
    expected = dict(fuse(lexical, routed))
    for scale, offset in itertools.product((0.125, 64.0), (-4.0, 8.0)):
        scaled = [(document_id, score * scale) for document_id, score in lexical]
        assert dict(fuse(scaled, routed)) == pytest.approx(expected)
        moved = [Ranked(found.document_id, found.score * scale + offset, 2) for found in routed]
        assert dict(fuse(lexical, moved)) == pytest.approx(expected)


def test_equal_scores_are_ordered_by_id() -> None:
    found = fuse([(9, 3.0), (4, 3.0), (6, 1.0)], [])
    assert [document_id for document_id, _ in found] == [4, 9, 6]


def test_the_best_lexical_hit_does_not_lose_to_noise() -> None:
    # By ranks it would: 1 and 2 are in both lists, which is all that reciprocal ranks reward.
    def by_ranks(document_id: int) -> float:
        lists = ([found[0] for found in LEXICAL], [found.document_id for found in NOISE])
        return sum(1 / (60 + ids.index(document_id)) for ids in lists if document_id in ids)

    assert by_ranks(1) > by_ranks(7)
    for noise in (NOISE, [*NOISE, Ranked(7, 0.4, 0)], [*NOISE, *_routed((7, -3.0))], []):
        assert fuse(LEXICAL, noise)[0][0] == 7


def test_a_hit_of_both_is_before_a_hit_of_one() -> None:
    found = fuse([(1, 5.0), (2, 4.9), (3, 1.0)], _routed((2, 0.9), (4, 0.8), (5, 0.1)))
    assert [document_id for document_id, _ in found][:3] == [2, 1, 4]


@pytest.mark.parametrize(
    ("lexical", "best"),
    [
        ([(7, 12.0)], 7),
        ([(7, 12.0), (8, 12.0)], 7),
        ([(7, 12.0), (8, 11.0)], 7),
    ],
)
def test_the_only_lexical_hits_do_not_lose_to_noise(lexical: list[tuple[int, float]], best: int) -> None:
    assert fuse(lexical, NOISE)[0][0] == best


def test_a_document_that_is_not_encoded_yet_counts_by_its_words_alone() -> None:
    alike = [(9, 8.0), *((number, 7.5) for number in range(1, 6))]  # the first is new
    routed = _routed(*((number, 0.9) for number in range(1, 6)), (6, 0.1))
    assert 9 not in [document_id for document_id, _ in fuse(alike, routed)[:3]]
    found = fuse(alike, routed, unencoded={9, 77})
    assert found[0] == (9, pytest.approx(1.0)) and {number for number, _ in found} == {9, *range(1, 7)}
    assert dict(found[1:]) == {number: score for number, score in fuse(alike, routed) if number != 9}
    words = words_fits(alike)
    fits = fused_fits(alike, {number: 0.5 for number in range(1, 7)}, {9})
    assert fits is not None and fits[9] == pytest.approx(words[9]) and fits[1] == pytest.approx(0.6 * words[1] + 0.2)


def test_the_only_document_of_a_bank_has_a_score() -> None:
    ((document_id, score),) = fuse([(1, 2.0)], _routed((1, 0.5)))
    assert (document_id, score) == (1, pytest.approx(1.0))


# --- how well -------------------------------------------------------------------------------------------------------


def test_how_well_a_document_fits_is_the_same_whatever_else_is_found() -> None:
    assert router_fits(_routed((1, 1.5), (2, 0.6)), 3) == router_fits(_routed((1, 1.5)), 3) | {2: pytest.approx(0.2)}
    assert router_fits(_routed((1, 3.3), (2, -0.6)), 3) == {1: 1.0, 2: 0.0}
    assert words_fits([(1, 8.0), (2, 24.0), (3, 0.0)]) == {1: 0.5, 2: 0.75, 3: 0.0}
    both = fused_fits([(1, 8.0), (2, 24.0)], {1: 0.5, 3: 0.5})
    assert both == {1: pytest.approx(0.5), 2: pytest.approx(0.45), 3: pytest.approx(0.2)}
    assert words_fits([]) == fused_fits([], {}) == {}


def test_no_document_fits_better_than_one_ranked_before_it() -> None:
    found = chosen([(1, 1.0), (2, 0.9), (3, 0.1)], (), {1: 0.4, 2: 0.6, 3: 0.2})
    assert [document.fit for document in found] == [0.4, 0.4, 0.2]
    assert [document.score for document in found] == [1.0, 0.9, 0.1], "the ranking's own scores are left"


# --- how many -------------------------------------------------------------------------------------------------------


def _selected(*scores: float) -> list[Selected]:
    return [Selected(number, score, None) for number, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("scores", "at_most", "share", "kept"),
    [
        ((8.0, 4.0, 3.9), 5, 0.5, 2),  # exactly the share is enough
        ((8.0, 7.0, 6.0, 5.0), 2, 0.5, 2),
        ((8.0, 7.0), 5, 0.5, 2),
        ((8.0, 7.0, 1.0), 0, 0.5, 0),
        ((8.0, 3.0), 5, 0.0, 2),
        ((8.0, 8.0, 7.0), 5, 1.0, 2),
        ((0.0, -1.0, -2.0), 2, 0.5, 2),  # without a positive best a share of it means nothing
        ((-1.0, -2.0), 5, 0.5, 2),
        ((), 5, 0.5, 0),
    ],
)
def test_as_many_are_kept_as_matter(scores: tuple[float, ...], at_most: int, share: float, kept: int) -> None:
    selected = _selected(*scores)
    found = keep_adaptively(selected, at_most, share)
    assert len(found) == kept
    wanted = [document for document in selected if scores[0] <= 0 or document.score >= share * scores[0]]
    assert found == wanted[:at_most]


def test_none_is_kept_of_none() -> None:
    assert keep_adaptively([], 5, 0.5) == []
