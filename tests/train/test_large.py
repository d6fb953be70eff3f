"""What training on large devices needs: few waits, wide logits of a few tokens at a time, layers sharded one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from batches import random_batch
from helpers import random_ids, tiny_model
from pretended import DEVICE, PretendedDevice

from memspan.model.lora import LoraSpec, Side, add_lora
from memspan.model.modeling import decoder_layers
from memspan.ops.losses import routing_loss
from memspan.ops.scoring import top_documents
from memspan.train import forward
from memspan.train.forward import Objective, training_forward
from memspan.train.memory import BatchMemory, encode_documents
from memspan.train.parallel import Runner, layer_classes_of, sharding_plugin


@pytest.fixture
def _tensors_of_a_subclass(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pretended tensor is of a class of its own, which can be swapped in as a weight; its device has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with torch.no_grad():
        yield
    torch.__future__.set_swap_module_params_on_conversion(swapped)


def _waits(layers: tuple[int, ...]) -> int:
    model = tiny_model(msa_layers=list(layers))
    batch = random_batch()
    expected = training_forward(model, batch, Objective())
    with PretendedDevice() as device:
        torch.nn.Module.to(model, DEVICE)
        on_device = batch.to(DEVICE)
        device.waits.clear()
        found = training_forward(model, on_device, Objective())
        waits = sum(device.waits.values())
        for name, value in found.sums.items():
            torch.testing.assert_close(value.cpu(), expected.sums[name], rtol=1e-4, atol=1e-5)
    return waits


@pytest.mark.usefixtures("_tensors_of_a_subclass")
def test_a_step_waits_for_the_device_no_oftener_with_more_layers() -> None:
    assert _waits((0,)) == _waits((0, 1)) == _waits((0, 1, 2, 3)) > 0


@pytest.mark.parametrize("top_k", [0, 1, 2, 7])
@torch.no_grad()
def test_documents_are_chosen_by_score_then_by_id(top_k: int) -> None:
    model = tiny_model()
    documents = encode_documents(model, random_ids(9, 3, 8, 5, 1))
    same = documents.router_keys_LCW[:, :1]
    documents.router_keys_LCW[:, 3:6] = same  # some score alike
    ids = (50, 7, 30, 20, 10)
    memory = BatchMemory(documents, ids, model.config, top_k=top_k)
    mask_BT = torch.ones(4, 6, dtype=torch.bool)
    query_BTHD = torch.randn(4, 6, model.config.num_heads, model.config.head_dim)
    found = memory.route(model.config.layers[0], query_BTHD, mask_BT)
    for row, score_N in enumerate(memory.scores[model.config.layers[0]]):
        chosen, scores = top_documents(score_N, torch.tensor(ids), top_k)
        assert (found.doc_ids[row], found.scores[row]) == (tuple(chosen.tolist()), tuple(scores.tolist()))
    assert len(found.doc_ids) == 4 and found.doc_ids == tuple(found.doc_ids) and found.doc_ids != ((1,),) * 4


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_the_loss_of_some_tokens_at_a_time_is_that_of_all(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = torch.randn(20, 50, dtype=torch.bfloat16), torch.randint(50, (20,))
    values = []
    for at_once in (10**9, rows * 50):
        monkeypatch.setattr(forward, "_LOGITS_AT_ONCE", at_once)
        given = logits.clone().requires_grad_()
        loss = forward._summed_loss(given, target)
        loss.backward()
        values.append((loss.detach(), given.grad))
    torch.testing.assert_close(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])


def test_a_vocabulary_larger_than_the_bound_is_read_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_LOGITS_AT_ONCE", 3)
    logits, target = torch.randn(4, 50), torch.randint(50, (4,))
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(forward._summed_loss(logits, target), expected)


def test_wide_logits_are_kept_for_some_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_LOGITS_AT_ONCE", 100)
    kept: list[int] = []
    logits = torch.randn(40, 50, dtype=torch.bfloat16, requires_grad=True)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() if tensor.dtype == torch.float32 else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward._summed_loss(logits, torch.randint(50, (40,)))
    assert max(kept, default=0) <= 100


def test_the_routing_loss_of_all_layers_at_once_is_that_of_each() -> None:
    model, batch = tiny_model(), random_batch()
    out = training_forward(model, batch, Objective())
    each = [
        routing_loss(scores_BN, batch.positives_BN, Objective().temperature, valid_BN=batch.candidates_BN)
        for scores_BN in out.scores_LBN
    ]
    torch.testing.assert_close(out.sums["routing"].detach(), torch.stack(each).mean(0).sum())


# --- sharding ---------------------------------------------------------------------------------------------------------

SIDES: list[tuple[Side, ...] | None] = [None, ("query",), ("document",), ("document", "query")]


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("match", [r"layers\.0\.", r"layers\.2\.", r"layers\.[01]\..*q_proj", r"layers\."])
def test_every_decoder_layer_is_sharded_by_itself_whatever_lora_it_has(
    sides: tuple[Side, ...] | None, match: str
) -> None:
    model = tiny_model()
    if sides is not None:
        add_lora(model, LoraSpec(match, rank=2, sides=sides))
    plugin, runner = sharding_plugin(layer_classes_of(model)), Runner(model)
    plugin.set_auto_wrap_policy(runner)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, runner)
    layers = decoder_layers(model.backbone, range(model.config.text_config.num_hidden_layers))
    assert is_unit is not None and len(layers) == 4 and all(is_unit(layer) for layer in layers.values())
