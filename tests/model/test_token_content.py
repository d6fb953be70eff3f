"""Content of tokens: the keys and values that are kept are those of a question's own context, and the right ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import random_ids, tiny_backbone, tiny_loaded, tiny_model
from transformers import DynamicCache

from memspan.content import TokenContent
from memspan.errors import MemspanError
from memspan.model.tokens import Framing, token_content
from memspan.ops.choosing import attention_received, by_layer, kept_rows

HOW = Framing(prefix=(7, 8, 9), repeat=(11, 12), end=40)
ALL = TokenContent(1, (0, 1, 2, 3))


def rows_of(found: torch.Tensor, layer: int, head: int) -> torch.Tensor:
    """What a layer's head keeps, `[rows, 2, D]`."""
    rows = found[0, :, :, 0]
    return rows[(rows[:, 0, -1] == layer) & (rows[:, 1, -1] == head), :, :-1]


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_all_tokens_are_those_of_the_backbones_own_cache(family: str) -> None:
    model, backbone = tiny_model(family), tiny_backbone(family)
    bodies = random_ids(9, 5, 12)
    found = token_content(model, bodies, [100, 40, 96], ALL, HOW)
    for body, part in zip(bodies, found.split([100, 40, 96], dim=1), strict=True):
        cache = DynamicCache(config=backbone.config)
        places = [0, 1, 2, *range(HOW.end - len(body), HOW.end)]
        backbone(torch.tensor([[*HOW.prefix, *body]]), position_ids=torch.tensor([places]), past_key_values=cache)
        for layer, kept in enumerate(cache.layers):
            for head in range(2):
                rows = rows_of(part, layer, head)
                torch.testing.assert_close(rows[:, 0], kept.keys[0, head, 3:])
                torch.testing.assert_close(rows[:, 1], kept.values[0, head, 3:])
        assert (part[0, :, 0, 0, -1] == -1).sum() == part.shape[1] - 8 * len(body)


def test_a_batch_keeps_what_each_document_keeps_alone() -> None:
    model, content = tiny_model(), TokenContent(2, (1, 3))
    bodies = random_ids(16, 3, 7)
    together = token_content(model, bodies, [32, 8, 16], content, HOW)
    alone = [token_content(model, [ids], [count], content, HOW) for ids, count in zip(bodies, [32, 8, 16], strict=True)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_a_token_counts_by_the_largest_share_that_a_query_gives_it() -> None:
    torch.manual_seed(0)
    query_HQD, key_GSD = torch.randn(4, 5, 8), torch.randn(2, 6, 8)
    wanted_GS = torch.zeros(2, 6)
    for group, token in itertools.product(range(2), range(6)):
        for head, query in itertools.product((2 * group, 2 * group + 1), range(5)):
            products = torch.stack([key @ query_HQD[head, query] for key in key_GSD[group]])
            wanted_GS[group, token] = max(wanted_GS[group, token], (products * 0.3).softmax(0)[token])
    torch.testing.assert_close(attention_received(query_HQD, key_GSD, 0.3), wanted_GS)


@pytest.mark.parametrize("count", [1, 7, 24, 30])
def test_layers_and_heads_share_the_rows_by_attention(count: int) -> None:
    torch.manual_seed(count)
    received_LGS, content_LGS2D = torch.rand(2, 3, 4), torch.randn(2, 3, 4, 2, 5)
    rows = kept_rows(received_LGS, content_LGS2D, count)
    owners = sorted(itertools.product(range(2), range(3), range(4)), key=lambda one: -received_LGS[one])[:count]
    assert rows.shape == (count, 2, 6) and not rows[len(owners) :, :, :-1].any()
    for row, (layer, head, token) in zip(rows, sorted(owners), strict=False):
        assert row[:, :-1].equal(content_LGS2D[layer, head, token]) and row[:, -1].tolist() == [layer, head]
    assert rows[len(owners) :, 0, -1].tolist() == [-1.0] * (count - len(owners))


def test_each_layer_reads_its_own_rows_of_all_documents() -> None:
    torch.manual_seed(0)
    documents = [kept_rows(torch.rand(2, 3, 6), torch.randn(2, 3, 6, 2, 5), count) for count in (20, 40)]
    questions = [torch.cat(documents), documents[0], documents[0][:0]]
    for layer, (keys, values, there) in enumerate(by_layer(questions, 2, 3)):
        assert keys.shape == values.shape == (3, 3, there.shape[2], 5) and not keys[~there].any()
        for question, head in itertools.product(range(3), range(3)):
            rows = rows_of(questions[question][None, :, :, None], layer, head)
            assert keys[question, head, there[question, head]].equal(rows[:, 0])
            assert values[question, head, there[question, head]].equal(rows[:, 1])


def test_a_loaded_model_keeps_as_many_rows_of_every_chunk() -> None:
    loaded = tiny_loaded()
    documents = [loaded.template.document(1, "a short one"), loaded.template.document(2, "a text of some more words")]
    means = loaded.encode(documents)
    loaded = loaded.keeping(TokenContent.of(loaded.model.config, 2))
    tokens = loaded.encode(documents)
    assert torch.equal(tokens.router_keys_LCW, means.router_keys_LCW) and tokens.num_chunks == means.num_chunks
    # Two of four tokens of a chunk, in four layers of two heads.
    assert tokens.content_LC2GD.shape == (1, 2 * 4 * 2 * sum(means.num_chunks), 2, 1, 17)
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
