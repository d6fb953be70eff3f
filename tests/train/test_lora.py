"""LoRA that knows its side: in training, in an adapter, with banks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from batches import random_batch
from helpers import TensorMemory, ask, random_context, random_ids, save_backbone, tiny_backbone, tiny_model
from safetensors.torch import load_file, save_file

from memspan.errors import CheckpointError
from memspan.generate.memory import Memory
from memspan.model.adapter import apply_adapter, save_adapter
from memspan.model.convert import convert, load
from memspan.model.lora import (
    LoraLinear,
    LoraSpec,
    Side,
    TwoSidedLinear,
    add_lora,
    lora_modules,
    merge_lora,
    trained_lora_off,
)
from memspan.model.modeling import MSAForCausalLM, is_lora, is_router
from memspan.train.forward import LossWeights, Objective, training_forward
from memspan.train.parameters import ROUTERS, choose_parameters, make_trainable
from memspan.train.settings import GroupSettings
from memspan.types import Document, EncodedDocuments

BOTH: tuple[Side, ...] = ("document", "query")
ONE_SIDED: list[tuple[Side, ...]] = [("document",), ("query",)]
UPPER = r"layers\.(2|3)\..*_proj$"


def changed_model(sides: tuple[Side, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> MSAForCausalLM:
    """A tiny model with LoRA that matters, in the layers 2 and 3."""
    model = tiny_model(seed=seed, dtype=dtype)
    add_lora(model, LoraSpec(UPPER, rank=3, alpha=6, sides=sides))
    shake(model)
    return model


def shake(model: MSAForCausalLM) -> None:
    generator = torch.Generator().manual_seed(9)
    for module in lora_modules(model).values():
        module.lora_b.data.normal_(0, 0.2, generator=generator)


def outputs(model: MSAForCausalLM) -> tuple[EncodedDocuments, torch.Tensor]:
    """Latents of two documents, and logits of a context over fixed latents, which no document side has a part in."""
    torch.manual_seed(4)
    documents, context = random_ids(9, 14), random_context(3, 6, 2)
    fixed = tiny_model().encode(random_ids(7, 8, 9))
    return model.encode(documents), ask(model, [context], TensorMemory(model, fixed))[0]


@torch.no_grad()
def test_lora_begins_as_nothing() -> None:
    plain, model = tiny_model(), tiny_model()
    names = add_lora(model, LoraSpec(UPPER, rank=3))
    assert len(names) == 14 and all("layers.2." in name or "layers.3." in name for name in names)
    assert not any("router" in name for name in names)
    for found, expected in zip(outputs(model), outputs(plain), strict=True):
        if isinstance(found, EncodedDocuments):
            found, expected = found.content_LC2GD, expected.content_LC2GD  # type: ignore[union-attr]
        assert torch.equal(found, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [BOTH, *ONE_SIDED])
@torch.no_grad()
def test_a_change_holds_on_its_sides_only(sides: tuple[Side, ...]) -> None:
    plain, changed = outputs(tiny_model()), outputs(changed_model(sides))
    assert torch.equal(plain[0].content_LC2GD[1], changed[0].content_LC2GD[1]) == ("document" not in sides)
    assert torch.equal(plain[1], changed[1]) == ("query" not in sides)


@torch.no_grad()
def test_without_a_step_a_forward_is_of_the_query_side() -> None:
    ids = torch.tensor(random_ids(8))
    plain = tiny_model()(ids).logits
    assert torch.equal(changed_model(("document",))(ids).logits, plain)
    assert not torch.equal(changed_model(("query",))(ids).logits, plain)


@pytest.mark.parametrize("sides", [BOTH, *ONE_SIDED])
@torch.no_grad()
def test_off_means_the_backbones_own_logits(sides: tuple[Side, ...]) -> None:
    """Bit for bit, without memory; and only in the thread that asks for it."""
    ids = torch.tensor(random_ids(11))
    model, expected = changed_model(sides), tiny_model()(ids).logits
    on = model(ids).logits
    elsewhere: list[torch.Tensor] = []

    def run() -> None:
        with torch.no_grad():
            elsewhere.append(model(ids).logits)

    with trained_lora_off():
        assert torch.equal(model(ids).logits, expected)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert torch.equal(elsewhere[0], on) and torch.equal(model(ids).logits, on)
    torch.testing.assert_close(expected, tiny_backbone("llama")(ids).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_failed_forward_leaves_no_side_behind() -> None:
    model = changed_model(("document",))
    linear = next(iter(lora_modules(model).values()))
    for step in (None, object()):
        with pytest.raises((TypeError, AttributeError)):
            model.backbone(torch.tensor([[1]]), memory=step, position_ids="wrong")
    with pytest.raises(AssertionError, match="inside a decoder layer"):
        linear(torch.zeros(1, linear.in_features))


@pytest.mark.parametrize("sides", [BOTH, *ONE_SIDED])
def test_checkpointing_sees_the_same_side(sides: tuple[Side, ...]) -> None:
    batch, found = random_batch(), []
    for saving in (False, True):
        model = changed_model(sides).train()
        if saving:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        training_forward(model, batch, Objective()).total(LossWeights(1, 1)).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any(is_lora(name) for name in found[0])
    for name, expected in found[0].items():
        assert expected is not None
        torch.testing.assert_close(found[1][name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_merged_is_the_same_but_for_rounding(dtype: torch.dtype) -> None:
    """float32: 1e-5. bfloat16: every weight is within 1/256 of the exact one."""
    model, merged = changed_model(BOTH, dtype=dtype), changed_model(BOTH, dtype=dtype)
    assert merge_lora(merged) == 14 and not lora_modules(merged)
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in tiny_model().named_parameters()}
    for name, module in lora_modules(model).items():
        exact = module.weight.double() + 2 * module.lora_b.double() @ module.lora_a.double()
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8
        found = merged.backbone.get_submodule(name).weight
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=1e-7)
    if dtype == torch.float32:
        torch.testing.assert_close(outputs(merged)[1], outputs(model)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sides", ONE_SIDED)
@torch.no_grad()
def test_lora_of_one_side_leaves_two_weights(tmp_path: Path, sides: tuple[Side, ...]) -> None:
    model, merged = changed_model(sides), changed_model(sides)
    assert merge_lora(merged) == 14 and not lora_modules(merged)
    (documents, logits), (expected, expected_logits) = outputs(merged), outputs(model)
    torch.testing.assert_close(documents.content_LC2GD, expected.content_LC2GD, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=1e-5)
    if sides == ("query",):
        assert merged.encoder_fingerprint() == model.encoder_fingerprint()
    with pytest.raises(ValueError, match="of one side"):
        merged.save_pretrained(tmp_path)


def test_a_bank_outlives_changes_of_the_query_side_only() -> None:
    fingerprint = tiny_model().encoder_fingerprint()
    assert changed_model(("query",)).encoder_fingerprint() == fingerprint
    assert changed_model(("document",)).encoder_fingerprint() != fingerprint
    assert changed_model(BOTH).encoder_fingerprint() != fingerprint


def test_a_checkpoint_of_a_model_with_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_adapter"):
        changed_model(BOTH).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LoraSpec(rank=0),
        lambda: LoraSpec(alpha=0),
        lambda: LoraSpec(sides=()),
        lambda: LoraSpec(sides=("both",)),  # type: ignore[arg-type]
        lambda: LoraSpec(targets="("),
        lambda: add_lora(tiny_model(), LoraSpec("nothing")),
        lambda: add_lora(tiny_model(), LoraSpec("lm_head")),
        lambda: add_lora(changed_model(BOTH), LoraSpec(UPPER)),
        lambda: GroupSettings("wrong", "("),
        lambda: choose_parameters(tiny_model(), [GroupSettings("none", "nowhere")]),
    ],
)
def test_what_cannot_be_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        wrong()


# --- adapters -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_backbone(folder / "plain", "llama")
    convert(str(folder / "plain"), folder / "msa", dtype=torch.float32)
    return folder / "msa"


def trained_adapter(checkpoint: Path, folder: Path, sides: tuple[Side, ...], **options: torch.dtype) -> MSAForCausalLM:
    model = load(checkpoint, dtype="float32").model
    add_lora(model, LoraSpec(UPPER, rank=3, alpha=6, sides=sides))
    shake(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_router(name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert model.config.backbone_fingerprint
    save_adapter(model, folder, model.config.backbone_fingerprint, **options)
    return model


@pytest.mark.parametrize("sides", [BOTH, *ONE_SIDED])
@torch.no_grad()
def test_an_adapter_serves_what_was_trained(checkpoint: Path, tmp_path: Path, sides: tuple[Side, ...]) -> None:
    trained = trained_adapter(checkpoint, tmp_path / "adapter", sides)
    served = load(checkpoint, adapter=tmp_path / "adapter", dtype="float32").model
    assert not lora_modules(served)
    two_sided = sum(isinstance(module, TwoSidedLinear) for module in served.modules())
    assert two_sided == (0 if sides == BOTH else 14)
    for found, expected in zip(outputs(served), outputs(trained), strict=True):
        if isinstance(found, EncodedDocuments) and isinstance(expected, EncodedDocuments):
            torch.testing.assert_close(found.router_keys_LCW, expected.router_keys_LCW, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.content_LC2GD, expected.content_LC2GD, atol=1e-5, rtol=1e-5)
        elif isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert served.config.router_trained and served.encoder_fingerprint() == trained.encoder_fingerprint()


def test_an_adapter_in_bfloat16_is_half_the_size(checkpoint: Path, tmp_path: Path) -> None:
    trained_adapter(checkpoint, tmp_path / "wide", BOTH)
    trained_adapter(checkpoint, tmp_path / "half", BOTH, dtype=torch.bfloat16)
    wide, half = (load_file(tmp_path / name / "adapter.safetensors") for name in ("wide", "half"))
    assert wide.keys() == half.keys()
    assert all(2 * half[name].nbytes == weight.nbytes for name, weight in wide.items())
    served = load(checkpoint, adapter=tmp_path / "half", dtype="float32").model
    assert served.config.router_trained


def test_a_memory_is_opened_with_an_adapter_and_its_bank_belongs_to_it(checkpoint: Path, tmp_path: Path) -> None:
    """A bank made without the adapter fits one of the query side, if the routing keys are the old ones."""
    model = load(checkpoint, dtype="float32").model
    add_lora(model, LoraSpec(UPPER, rank=3, alpha=6, sides=("query",)))
    shake(model)
    save_adapter(model, tmp_path / "query", model.config.backbone_fingerprint or "")
    with Memory.open(tmp_path / "bank", checkpoint, create=True, dtype="float32") as memory:
        memory.add([Document("otter", "The otter lives in Oslo.")])
        plain = memory.ask("Where?", selector="router").text
    with Memory.open(tmp_path / "bank", checkpoint, adapter=tmp_path / "query", dtype="float32") as memory:
        assert memory.ask("Where?", selector="router").text != plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, w: c["lora"].update({"model.layers.9.mlp.up_proj": c["lora"].pop(next(iter(c["lora"])))}),
            "layers.9",
        ),
        (lambda c, w: c["lora"][next(iter(c["lora"]))].update(rank=4), "lora_a of shape"),
        (lambda c, w: c["lora"][next(iter(c["lora"]))].update(sides=["both"]), "no readable adapter"),
        (lambda c, w: c["lora"][next(iter(c["lora"]))].pop("scale"), "no readable adapter"),
        (lambda c, w: w.pop(next(name for name in w if "lora_b" in name)), "lacks 1 of its weights"),
        (lambda c, w: w.pop(next(name for name in w if "router" in name)), "lacks 1 of its weights"),
        (lambda c, w: c["lora"].clear(), "weights this model has not"),
    ],
)
def test_an_adapter_that_does_not_fit_says_why(
    checkpoint: Path, tmp_path: Path, change: Callable[[dict, dict], object], message: str
) -> None:
    folder = tmp_path / "adapter"
    trained_adapter(checkpoint, folder, BOTH)
    values, weights = json.loads((folder / "adapter.json").read_text()), load_file(folder / "adapter.safetensors")
    change(values, weights)
    (folder / "adapter.json").write_text(json.dumps(values))
    save_file(weights, folder / "adapter.safetensors")
    with pytest.raises(CheckpointError, match=message):
        apply_adapter(load(checkpoint, dtype="float32").model, folder)


# --- what trains ----------------------------------------------------------------------------------------------------


def test_what_trains_is_chosen_by_pattern() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    trained = make_trainable(model, (ROUTERS, r"\.layers\.3\."), LoraSpec(r"layers\.2.*q_proj$"))
    further = [name for name in trained if not is_router(name) and not is_lora(name)]
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert {p.dtype for name, p in model.named_parameters() if name not in trained} == {torch.bfloat16}
    assert all(".layers.3." in name for name in further) and len(further) == 9
    assert len(trained) == 9 + 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = training_forward(model, random_batch(), Objective())
    terms.total(LossWeights(1, 1)).backward()
    assert all(p.grad is not None for p in trained.values())


def test_lora_trains_on_a_bfloat16_backbone_without_autocast() -> None:
    model = tiny_model(dtype=torch.bfloat16)
    trained = make_trainable(model, lora=LoraSpec(UPPER))
    shake(model)
    training_forward(model, random_batch(), Objective()).total(LossWeights(1, 1)).backward()
    grads = {name: p.grad for name, p in trained.items()}
    assert len(grads) == 4 + 28 and all(g is not None and bool(g.any()) for g in grads.values())
    assert isinstance(model.backbone.get_submodule("model.layers.3.mlp.up_proj"), LoraLinear)
