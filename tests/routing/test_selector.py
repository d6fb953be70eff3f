from __future__ import annotations

import itertools

import pytest

from memspan.errors import MemspanError
from memspan.routing.ranking import Ranked
from memspan.routing.selector import (
    ROUTER_WEIGHT,
    SELECTORS,
    Selected,
    check_selector,
    default_selector,
    fuse,
    keep_adaptively,
    select,
)


def _routed(*scores: tuple[int, float]) -> list[Ranked]:
    return [Ranked(document_id, score, layers=2) for document_id, score in scores]


# A lexical hit far above its noise; a router that sees nothing but noise and ranks the hit last, or not at all.
LEXICAL = [(7, 12.0), (1, 3.0), (2, 2.5), (3, 2.0)]
NOISE = _routed((4, 0.52), (1, 0.51), (5, 0.505), (2, 0.5))


def test_an_untrained_router_is_not_asked_by_default() -> None:
    assert default_selector(router_trained=False) == "lexical"
    assert default_selector(router_trained=True) == "hybrid"


def test_unknown_selectors_are_refused_with_those_there_are() -> None:
    assert [check_selector(name) for name in SELECTORS] == ["router", "lexical", "hybrid"]
    for name in ("", "bm25", "Router"):
        with pytest.raises(MemspanError, match=f"router, lexical, hybrid, not '{name}'"):
            check_selector(name)


def test_every_selector_ranks_by_its_own_scores_and_tells_what_routed() -> None:
    lexical = [(3, 4.0), (1, 2.0)]
    routed = [Ranked(1, 1.5, 2), Ranked(7, 0.75, 1), Ranked(9, 0.5, 0)]
    assert select("lexical", lexical, []) == [Selected(3, 4.0, None), Selected(1, 2.0, None)]
    # The router's own scores have no floor: they are told from the last one considered to the best.
    assert select("router", [], routed) == [Selected(1, 1.0, 2), Selected(7, 0.25, 1), Selected(9, 0.0, 0)]
    assert select("router", [], routed[:1]) == [Selected(1, 1.0, 2)]
    assert select("router", [], _routed((4, -0.5), (6, -0.5))) == [Selected(4, 1.0, 2), Selected(6, 1.0, 2)]
    found = select("hybrid", lexical, routed)
    assert [(document.document_id, document.layers) for document in found] == [(1, 2), (3, 0), (7, 1), (9, 0)]
    assert [(document.document_id, document.score) for document in found] == fuse(lexical, routed)


def test_nothing_found_is_nothing_selected() -> None:
    for selector in ("router", "lexical", "hybrid"):
        assert select(selector, [], []) == []


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


def test_the_only_document_of_a_bank_has_a_score() -> None:
    ((document_id, score),) = fuse([(1, 2.0)], _routed((1, 0.5)))
    assert (document_id, score) == (1, pytest.approx(1.0))


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
