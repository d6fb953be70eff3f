from __future__ import annotations

import pytest
import torch
from helpers import tiny_tokenizer

from memspan.config import TEMPLATES
from memspan.errors import MemspanError
from memspan.generate.constrain import IdTrie, RoutedIds, id_pieces
from memspan.text.rounds import RoundProtocol
from memspan.text.template import PromptTemplate

END, ENOUGH = "<|object_ref_end|>", "<End-of-Retrieve>"


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", True),
        ("[", True),
        ("[1", True),
        ("[12", True),
        ("[12]", True),
        ("[12][", True),
        ("[12][1]", True),
        ("[12][1][", False),  # two at most
        ("[12][12]", False),
        ("[12][12", False),  # nothing else begins so
        ("[2", False),
        ("[11", False),
        ("[123", False),
        ("]", False),
        ("[]", False),
        ("[[1", False),
        ("[1]2", False),
        ("1", False),
    ],
)
def test_a_trie_accepts_beginnings_of_lists_of_its_ids(text: str, accepted: bool) -> None:
    assert IdTrie({1, 12, 345}, at_most=2).accepts(text) is accepted


def _protocol(markers_are_tokens: bool, joined: bool) -> RoundProtocol:
    """Of a tokenizer that joins the border of two ids, and pairs of digits, into tokens; or does not."""
    tokenizer = tiny_tokenizer()
    if joined:
        tokenizer.add_tokens(["][", "12", "[3"])
    if markers_are_tokens:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", END, ENOUGH]})
    return RoundProtocol(PromptTemplate(TEMPLATES["msa"], tokenizer))


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("markers_are_tokens", [True, False])
def test_whatever_is_preferred_the_result_is_a_list_of_allowed_ids(markers_are_tokens: bool, joined: bool) -> None:
    protocol = _protocol(markers_are_tokens, joined)
    vocabulary = len(protocol.template.tokenizer)
    seen, used = set(), set()
    for seed in range(60):
        guide = RoutedIds(protocol, lambda: {1, 12, 3, 344}, at_most=3)
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = []
        while not guide.finished(ids):
            logits_V = guide.mask(torch.rand(vocabulary, generator=generator), ids)
            assert logits_V.isfinite().any()
            ids.append(int(logits_V.argmax()))
            assert len(ids) < 80
        named = protocol.parse(protocol.text(ids))
        assert (named.repeated, named.malformed) == (0, 0) and named.end
        assert bool(named.ids) == (named.end == "round"), "a round names something; enough names nothing"
        assert set(named.ids) <= {1, 12, 3, 344} and len(named.ids) <= 3
        seen |= {named.ids}
        used |= {protocol.template.tokenizer.convert_ids_to_tokens(token) for token in ids}
    assert {number for ids in seen for number in ids} == {1, 12, 3, 344} and () in seen
    assert ({"][", "12"} <= used) == joined, "every spelling is open"


def test_with_nothing_to_name_there_is_only_the_end() -> None:
    protocol = _protocol(True, False)
    guide = RoutedIds(protocol, set, at_most=3)
    assert guide.next_tokens([]) == set(protocol.retrieval_end)


def test_a_tokenizer_that_cannot_spell_ids_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.get_vocab = lambda: {"[": 0, "]": 1, "0": 2}  # type: ignore[method-assign]
    with pytest.raises(MemspanError, match=r"no token for 1 2 3 4 5 6 7 8 9 alone.*constrain_ids=False"):
        id_pieces(tokenizer)
