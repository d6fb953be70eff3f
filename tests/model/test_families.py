"""What must hold for every supported decoder family, on tiny random models. Sequences outgrow the sliding window."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers import (
    FAMILIES,
    WINDOW,
    TensorMemory,
    ask,
    ask_in_steps,
    random_context,
    random_ids,
    tiny_backbone,
    tiny_model,
)
from transformers import DynamicCache, PreTrainedModel

from memspan.text.packing import pack_contexts
from memspan.text.template import Context
from memspan.types import Span

pytestmark = pytest.mark.parametrize("family", FAMILIES)

ATOL = 1e-5
LONG = 2 * WINDOW + 5


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def _eager(backbone: PreTrainedModel, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    return backbone(ids, attention_mask=torch.ones_like(ids), position_ids=positions, use_cache=False).logits


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)


def _left_padded(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, attention mask and positions of a left-padded batch, as `generate` would make them."""
    T = max(map(len, sequences))
    ids = torch.tensor([[3] * (T - len(s)) + list(s) for s in sequences])
    mask = torch.tensor([[0] * (T - len(s)) + [1] * len(s) for s in sequences])
    return ids, mask, (mask.cumsum(1) - 1).clamp(min=0)


def test_a_converted_model_without_memory_is_the_backbone(family: str) -> None:
    backbone, model = tiny_backbone(family), tiny_model(family)
    ids = torch.tensor(random_ids(LONG, LONG))
    expected = _eager(backbone, ids)
    _close(model(ids).logits, expected)
    _close(model(ids, attention_mask=torch.ones_like(ids)).logits, expected)


def test_a_left_padded_batch_is_the_backbones_on_every_token(family: str) -> None:
    backbone, model = tiny_backbone(family), tiny_model(family)
    ids, mask, positions = _left_padded(random_ids(LONG, WINDOW + 3, 4))
    expected = backbone(ids, attention_mask=mask, position_ids=positions).logits
    found = model(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.isfinite(found).all()
    _close(found[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("steps", [(1, 1, 1), (3, 2)])
def test_prefill_and_decoding_of_a_padded_batch_equal_one_pass_of_the_backbone(
    family: str, steps: tuple[int, ...]
) -> None:
    backbone, model = tiny_backbone(family), tiny_model(family)
    ids, mask, positions = _left_padded(random_ids(LONG, WINDOW + 3, 7))
    expected = backbone(ids, attention_mask=mask, position_ids=positions).logits
    cache = DynamicCache(config=model.config.text_config)
    start, found = 0, []
    for size in (LONG - sum(steps), *steps):
        new = slice(start, start + size)
        inputs = {"attention_mask": mask[:, : new.stop], "position_ids": positions[:, new], "past_key_values": cache}
        found.append(model(ids[:, new], **inputs).logits)
        start = new.stop
    _close(torch.cat(found, dim=1)[mask.bool()], expected[mask.bool()])


def test_a_batch_of_questions_gives_each_what_it_gets_alone(family: str) -> None:
    model = tiny_model(family)
    memory = TensorMemory(model, model.encode(random_ids(9, 3, 8, 14, 1)), k=2)
    contexts = [random_context(3, LONG, 4), random_context(3, 5, 4), random_context(3, 1, 4)]
    together = ask(model, contexts, memory)
    for context, found in zip(contexts, together, strict=True):
        assert torch.isfinite(found).all()
        _close(found, ask(model, [context], memory)[0])


@pytest.mark.parametrize("steps", [(1, 1, 1), (3, 2)])
def test_prefill_and_decoding_over_a_memory_equal_one_pass(family: str, steps: tuple[int, ...]) -> None:
    model = tiny_model(family)
    memory = TensorMemory(model, model.encode(random_ids(9, 3, 8, 14, 1)), k=2)
    contexts = [random_context(3, LONG, 7), random_context(3, 5, 7), random_context(3, 1, 7)]
    expected = ask(model, contexts, memory)
    for found, wanted in zip(ask_in_steps(model, contexts, memory, steps), expected, strict=True):
        _close(found[-len(wanted) :], wanted)


def test_every_msa_layer_routes_exactly_once_in_a_round(family: str) -> None:
    model = tiny_model(family)
    memory = TensorMemory(model, model.encode(random_ids(9, 3, 8)))
    ask_in_steps(model, [random_context(3, 5, 7), random_context(3, 2, 7)], memory, steps=(1, 1, 2))
    assert memory.calls == [2, 3]


def test_an_empty_memory_gives_the_backbones_logits_at_the_same_positions(family: str) -> None:
    backbone, model = tiny_backbone(family), tiny_model(family, position_offset=16)
    memory = TensorMemory.empty(model)
    contexts = [random_context(3, LONG, 4), random_context(3, 2, 4)]
    for context, found in zip(contexts, ask(model, contexts, memory), strict=True):
        packed = pack_contexts([context], 16)
        assert packed.positions[0, :4].tolist() == [0, 1, 2, 19], "the gap this test is about"
        _close(found, _eager(backbone, packed.ids, packed.positions)[0])
    assert memory.calls == [2, 3]


def test_the_template_prefix_does_not_see_the_memory_and_everything_behind_it_does(family: str) -> None:
    model = tiny_model(family)
    context = random_context(3, 6, 4)
    (with_memory,) = ask(model, [context], TensorMemory(model, model.encode(random_ids(9, 3, 8))))
    (without,) = ask(model, [context], None)
    _close(with_memory[:3], without[:3])
    assert (with_memory[3:] - without[3:]).abs().amax(-1).min() > 1e-2


def test_a_document_kept_token_by_token_in_every_layer_is_attended_like_ordinary_context(family: str) -> None:
    # With one token per chunk nothing is lost by pooling: [memory ; local] is plain causal attention over both.
    document, question = random_ids(9, 6)
    backbone = tiny_backbone(family)
    model = tiny_model(family, msa_layers=[0, 1, 2, 3], chunk_size=1, position_offset=len(document))
    memory = TensorMemory(model, model.encode([document]))
    (found,) = ask(model, [Context(tuple(question), Span(0, len(question)))], memory)
    _close(found, _eager(backbone, torch.tensor([document + question]))[0, len(document) :])


def test_the_memory_lies_outside_the_sliding_window(family: str) -> None:
    # The last token of a question longer than the window still sees the document: its own layer's mask decides
    # about local keys only. Layers below the last are the backbone's, so only that layer's memory can matter.
    model = tiny_model(family, msa_layers=[2])  # layer 2 slides where layers alternate
    memory = TensorMemory(model, model.encode(random_ids(9)))
    context = random_context(0, LONG, 0)
    last_row = slice(LONG - 1, LONG)
    (with_memory,), (without,) = ask(model, [context], memory), ask(model, [context], None)
    assert (with_memory[last_row] - without[last_row]).abs().max() > 1e-2


def test_documents_of_a_batch_are_encoded_as_each_alone(family: str) -> None:
    model = tiny_model(family)
    documents = random_ids(1, 3, 4, 5, LONG, WINDOW)
    together = model.encode(documents)
    alone = [model.encode([document]) for document in documents]
    assert together.num_chunks == tuple(count for encoded in alone for count in encoded.num_chunks)
    _close(together.router_keys_LCW, torch.cat([encoded.router_keys_LCW for encoded in alone], dim=1))
    _close(together.content_LC2GD, torch.cat([encoded.content_LC2GD for encoded in alone], dim=1))
