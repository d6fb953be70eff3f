from __future__ import annotations

import pytest
import torch

from memspan.routing.ranking import Ranked, rank_documents
from memspan.routing.source import Candidates


def _candidates(**scores: float) -> Candidates:
    """Ids and scores of one layer, best first: `_candidates(d7=0.5, d2=0.25)`."""
    return Candidates(torch.tensor([int(name[1:]) for name in scores]), torch.tensor(list(scores.values())))


def test_scores_are_added_over_layers_and_layers_counted_in_which_a_document_is_in_the_top_k() -> None:
    ranked = rank_documents(
        {
            3: _candidates(d1=0.75, d2=0.5, d3=0.25),
            5: _candidates(d3=1.0, d2=0.5, d1=0.125),
            8: _candidates(d2=0.25, d3=0.125, d1=0.0),
        },
        top_k=2,
    )
    # d1: .75 + .125 + 0; d2: .5 + .5 + .25; d3: .25 + 1 + .125
    assert ranked == [Ranked(3, 1.375, 2), Ranked(2, 1.25, 3), Ranked(1, 0.875, 1)]


def test_a_layer_that_did_not_consider_a_document_counts_with_its_lowest_score() -> None:
    ranked = rank_documents({1: _candidates(d1=0.75, d2=0.5), 2: _candidates(d3=0.25, d1=0.125)}, top_k=1)
    # d1: .75 + .125; d2: .5 + .125 (floor); d3: .5 (floor) + .25
    assert ranked == [Ranked(1, 0.875, 1), Ranked(3, 0.75, 1), Ranked(2, 0.625, 0)]


def test_negative_scores_are_added_as_they_are() -> None:
    ranked = rank_documents({1: _candidates(d1=-0.25, d2=-0.5), 2: _candidates(d2=-0.125, d1=-1.0)}, top_k=2)
    assert ranked == [Ranked(2, -0.625, 2), Ranked(1, -1.25, 2)]


def test_ties_go_to_the_smaller_id_whatever_the_order_of_layers() -> None:
    layers = {1: _candidates(d9=0.5, d4=0.25), 2: _candidates(d4=0.5, d9=0.25)}
    expected = [Ranked(4, 0.75, 1), Ranked(9, 0.75, 1)]
    assert rank_documents(layers, top_k=1) == expected
    assert rank_documents(dict(reversed(layers.items())), top_k=1) == expected


def test_one_layer_ranks_as_it_scored() -> None:
    found = _candidates(d5=0.75, d1=0.5, d2=0.5, d9=-0.25)
    ranked = rank_documents({4: found}, top_k=2)
    assert [document.document_id for document in ranked] == found.ids.tolist()
    assert [document.score for document in ranked] == found.scores.tolist()
    assert [document.layers for document in ranked] == [1, 1, 0, 0]


def test_a_document_that_is_last_everywhere_is_ranked_last_but_listed() -> None:
    ranked = rank_documents({1: _candidates(d1=0.5, d2=0.25), 2: _candidates(d1=0.5, d2=0.25)}, top_k=5)
    assert ranked == [Ranked(1, 1.0, 2), Ranked(2, 0.5, 2)]


@pytest.mark.parametrize("layers", [{}, {1: _candidates()}, {1: _candidates(), 2: _candidates()}])
def test_where_nothing_was_considered_nothing_is_ranked(layers: dict[int, Candidates]) -> None:
    assert rank_documents(layers, top_k=2) == []


def test_a_layer_that_considered_nothing_changes_nothing() -> None:
    found = {1: _candidates(d1=0.5, d2=0.25)}
    assert rank_documents({**found, 2: _candidates()}, top_k=1) == rank_documents(found, top_k=1)


def test_the_ranking_is_the_sum_over_all_layers_where_every_layer_considered_everything() -> None:
    scores_LN = torch.randint(-8, 9, (6, 40)) / 8  # exact sums, many ties
    layers = {}
    for layer, score_N in enumerate(scores_LN):
        order = sorted(range(40), key=lambda document, score_N=score_N: (-float(score_N[document]), document))
        layers[layer] = Candidates(torch.tensor(order), score_N[order])
    ranked = rank_documents(layers, top_k=7)
    total = scores_LN.sum(0)
    assert [found.document_id for found in ranked] == sorted(range(40), key=lambda d: (-float(total[d]), d))
    for found in ranked:
        assert found.score == total[found.document_id]
        assert found.layers == sum(found.document_id in layers[layer].ids[:7].tolist() for layer in layers)
