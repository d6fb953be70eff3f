"""Content of tokens: the keys and values that are kept are those of a question's own context, and the right ones."""

from __future__ import annotations

import pytest
import torch
from helpers import random_ids, tiny_backbone, tiny_loaded, tiny_model
from transformers import DynamicCache

from memspan.config import TokenContent
from memspan.errors import MemspanError
from memspan.model.tokens import Framing, token_content
from memspan.ops.choosing import attention_received, kept_tokens

HOW = Framing(prefix=(7, 8, 9), repeat=(11, 12), end=40)
ALL = TokenContent(1, (0, 1, 2, 3))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_all_tokens_are_those_of_the_backbones_own_cache(family: str) -> None:
    model, backbone = tiny_model(family), tiny_backbone(family)
    bodies = random_ids(9, 5, 12)
    found_L = token_content(model, bodies, [12, 5, 12], ALL, HOW)
    parts = found_L.split([12, 5, 12], dim=1)
    for body, part in zip(bodies, parts, strict=True):
        cache = DynamicCache(config=backbone.config)
        places = [0, 1, 2, *range(HOW.end - len(body), HOW.end)]
        backbone(torch.tensor([[*HOW.prefix, *body]]), position_ids=torch.tensor([places]), past_key_values=cache)
        for layer, kept in zip(cache.layers, part, strict=True):
            for side, wanted in enumerate((layer.keys, layer.values)):
                torch.testing.assert_close(kept[: len(body), side], wanted[0, :, 3:].transpose(0, 1))
        assert not part[:, len(body) :].any()


def test_a_batch_keeps_what_each_document_keeps_alone() -> None:
    model, content = tiny_model(), TokenContent(2, (1, 3))
    bodies = random_ids(16, 3, 7)
    together = token_content(model, bodies, [8, 2, 4], content, HOW)
    alone = [token_content(model, [body], [count], content, HOW) for body, count in zip(bodies, [8, 2, 4], strict=True)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_tokens_are_chosen_by_the_largest_share_that_a_query_gives_each() -> None:
    torch.manual_seed(0)
    query_HQD, key_GSD = torch.randn(4, 5, 8), torch.randn(2, 6, 8)
    wanted = []
    for token in range(6):
        of_groups = []
        for group in range(2):
            shares = [
                (torch.stack([key @ query for key in key_GSD[group]]) * 0.3).softmax(0)[token]
                for head in (2 * group, 2 * group + 1)
                for query in query_HQD[head]
            ]
            of_groups.append(max(shares))
        wanted.append(sum(of_groups) / 2)
    received_S = attention_received(query_HQD, key_GSD, 0.3)
    torch.testing.assert_close(received_S, torch.stack(wanted))
    best = sorted(sorted(range(6), key=lambda token: -wanted[token])[:3])
    assert kept_tokens(received_S, 3).tolist() == best
    assert kept_tokens(received_S, 9).tolist() == list(range(6))


def test_half_of_the_tokens_are_some_of_all_and_in_order() -> None:
    model, (body,) = tiny_model(), random_ids(16)
    every = token_content(model, [body], [16], TokenContent(1, (2,)), HOW)[0]
    half = token_content(model, [body], [8], TokenContent(2, (2,)), HOW)[0]
    places = [next(place for place, row in enumerate(every) if torch.equal(row, kept)) for kept in half]
    assert len(places) == 8 and places == sorted(set(places))


def test_a_loaded_model_keeps_as_many_rows_of_every_chunk() -> None:
    loaded = tiny_loaded()
    documents = [loaded.template.document(1, "a short one"), loaded.template.document(2, "a text of some more words")]
    means = loaded.encode(documents)
    loaded = loaded.keeping(TokenContent.of(loaded.model.config, 2))
    tokens = loaded.encode(documents)
    assert torch.equal(tokens.router_keys_LCW, means.router_keys_LCW) and tokens.num_chunks == means.num_chunks
    assert tokens.content_LC2GD.shape == (4, 2 * sum(means.num_chunks), *means.content_LC2GD.shape[2:])
    assert loaded.keeping(None).encode(documents).content_LC2GD.equal(means.content_LC2GD)


def test_a_document_is_read_without_markers_at_its_ends() -> None:
    template = tiny_loaded().template
    ids = template.document(12, "some text")
    assert template.text(template.body(ids)) == "[12]. some text[12]\n"
    assert template.stop_ids.isdisjoint(template.body(ids)) and ids[0] not in template.body(ids)


@pytest.mark.parametrize("chunk", [0, 3, 4, 64, -1])
def test_a_row_stands_for_a_part_of_a_chunk(chunk: int) -> None:
    with pytest.raises(MemspanError, match=f"content_chunk must divide the 4 tokens .*not {chunk}"):
        TokenContent.of(tiny_model().config, chunk)


@pytest.mark.parametrize("layers", [[], [1, 1], [2, 1], [4], [-1]])
def test_only_layers_of_the_model_keep_content(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="content layers must be ascending"):
        TokenContent.of(tiny_model().config, 2, layers)
