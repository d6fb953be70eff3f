"""Adapters: applied to the backbone they belong to, refused by name on any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import save_backbone
from typer.testing import CliRunner

from memspan.cli import app
from memspan.errors import CheckpointError
from memspan.model import shipped
from memspan.model.adapter import adapter_layers, save_adapter, take_lora
from memspan.model.convert import convert, load


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "plain", "llama")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32)
    return tmp_path / "msa"


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    """Other routers and another value projection."""
    trained = load(checkpoint, dtype="float32").model
    names = ["backbone.model.layers.3.self_attn.v_proj.weight"]
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "router" in name or name in names:
                parameter.add_(torch.randn_like(parameter))
    assert trained.config.backbone_fingerprint
    save_adapter(trained, tmp_path / "adapter", trained.config.backbone_fingerprint, names)
    return tmp_path / "adapter"


def test_an_adapter_makes_the_model_it_was_saved_from(checkpoint: Path, adapter: Path) -> None:
    plain, adapted = load(checkpoint, dtype="float32").model, load(checkpoint, adapter=adapter, dtype="float32").model
    changed = {
        n
        for (n, a), (_, b) in zip(plain.named_parameters(), adapted.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert {name.rpartition(".layers.")[2] for name in changed} == {
        *(f"{layer}.self_attn.router_{side}_proj.weight" for layer in (2, 3) for side in "qk"),
        "3.self_attn.v_proj.weight",
    }
    assert adapted.config.router_trained and not plain.config.router_trained
    assert adapted.encoder_fingerprint() != plain.encoder_fingerprint()


def test_an_adapter_for_reading_alone_leaves_the_router_untrained(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint).model
    save_adapter(model, tmp_path / "reader", model.config.backbone_fingerprint or "", router_trained=False)
    assert not load(checkpoint, adapter=tmp_path / "reader").model.config.router_trained


def test_an_adapter_is_refused_on_another_backbone(adapter: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path / "other", "llama", seed=1)
    convert(str(tmp_path / "other"), tmp_path / "other-msa", dtype=torch.float32)
    with pytest.raises(CheckpointError, match="another backbone"):
        load(tmp_path / "other-msa", adapter=adapter)


def test_an_adapter_for_layers_that_are_not_there_is_refused(checkpoint: Path, adapter: Path) -> None:
    values = json.loads((adapter / "adapter.json").read_text())
    (adapter / "adapter.json").write_text(json.dumps({**values, "msa_layers": [2, 9]}))
    with pytest.raises(CheckpointError, match=r"belongs to another backbone: .*9"):
        load(checkpoint, adapter=adapter)


@pytest.mark.parametrize("damage", ["no folder", "no json", "cut weights"])
def test_a_damaged_adapter_is_named(checkpoint: Path, adapter: Path, damage: str) -> None:
    if damage == "no folder":
        adapter = adapter.with_name("nowhere")
    elif damage == "no json":
        (adapter / "adapter.json").write_text("{")
    else:
        weights = adapter / "adapter.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=f"{adapter.name} holds no readable adapter"):
        load(checkpoint, adapter=adapter)


def test_the_commands_take_an_adapter(checkpoint: Path, adapter: Path, tmp_path: Path) -> None:
    note, bank = tmp_path / "note.txt", str(tmp_path / "bank")
    note.write_text("The otter lives in Oslo.")
    with_adapter = ["--model", str(checkpoint), "--adapter", str(adapter)]
    assert CliRunner().invoke(app, ["add", bank, str(note), *with_adapter]).exit_code == 0
    asked = CliRunner().invoke(app, ["ask", bank, "otter", "--json", "--max-new-tokens", "2", *with_adapter])
    assert asked.exit_code == 0 and '"selector": "hybrid"' in asked.stdout
    without = CliRunner().invoke(app, ["ask", bank, "otter", "--model", str(checkpoint)])
    assert without.exit_code == 1 and "encoder_fingerprint" in without.stderr


def test_an_adapter_says_which_layers_route(adapter: Path, tmp_path: Path) -> None:
    """The checkpoint was converted with other layers; loaded with the adapter it is the model of the adapter's."""
    convert(str(tmp_path / "plain"), tmp_path / "other", dtype=torch.float32, msa_layers=[1, 2])
    wanted = load(tmp_path / "msa", adapter=adapter, dtype="float32").model
    found = load(tmp_path / "other", adapter=adapter, dtype="float32").model
    assert found.config.layers == wanted.config.layers == (2, 3)
    assert found.config.encoder_fingerprint == wanted.config.encoder_fingerprint
    ids = torch.randint(3, 500, (1, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(ids).logits, wanted(ids).logits)
    documents = [ids[0, :9].tolist(), ids[0, 2:].tolist()]
    assert torch.equal(found.encode(documents).router_keys_LCW, wanted.encode(documents).router_keys_LCW)


def test_an_adapter_is_refused_with_settings_it_was_not_trained_with(adapter: Path, tmp_path: Path) -> None:
    for number, settings in enumerate(({"chunk_size": 16}, {"top_k_docs": 4}, {"template": "plain"})):
        folder = tmp_path / f"settings{number}"
        convert(str(tmp_path / "plain"), folder, dtype=torch.float32, **settings)
        with pytest.raises(CheckpointError, match=r"was trained with (chunk_size 64|position_offset 16|template)"):
            load(folder, adapter=adapter, dtype="float32")


def test_a_folder_without_an_adapter_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no readable adapter"):
        load(checkpoint, adapter=tmp_path / "nothing", dtype="float32")


@pytest.mark.parametrize("name", shipped.BACKBONES)
def test_a_shipped_adapter_is_found_by_its_name_and_belongs_to_its_backbone(
    name: str, checkpoint: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped_folder = tmp_path / "shipped"
    shipped_folder.mkdir()
    own = shipped.BACKBONES[name].adapter
    adapter.rename(shipped_folder / own)
    monkeypatch.setattr(shipped, "SHIPPED", shipped_folder)
    monkeypatch.setattr("memspan.model.convert.known_checkpoint", lambda of: checkpoint)
    assert shipped.shipped_adapters() == (own,)
    assert load(name, dtype="float32").model.config.router_trained
    for other in {*shipped.BACKBONES} - {name}:
        assert not load(other, dtype="float32").model.config.router_trained
    assert load(dtype="float32").model.config.router_trained == (name == shipped.DEFAULT_SOURCE)
    assert load(checkpoint, adapter=own, dtype="float32").model.config.router_trained
    assert not load(name, adapter="none", dtype="float32").model.config.router_trained
    assert not load(checkpoint, dtype="float32").model.config.router_trained, "another model has none of its own"
    with pytest.raises(CheckpointError, match="nowhere"):
        load(checkpoint, adapter="nowhere")


@pytest.mark.parametrize("value", [None, 0.0, 8.0])
def test_a_checkpoint_from_before_loads_unless_it_has_a_score_bias(checkpoint: Path, value: float | None) -> None:
    file = checkpoint / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "score_bias": value}), "utf-8")
    if value is None:
        model = load(checkpoint, dtype="float32").model
        assert not hasattr(model.config, "score_bias") and "score_bias" not in model.config.to_dict()
        return
    with pytest.raises(CheckpointError, match=r"score bias, and memspan 0\.1 is the last version that reads one; use"):
        load(checkpoint)
    shown = CliRunner().invoke(app, ["info", str(checkpoint)])
    assert shown.exit_code == 1 and "score bias" in shown.stderr and "run memspan convert" not in shown.stderr


@pytest.mark.parametrize(
    "read",
    [
        lambda checkpoint, adapter: load(checkpoint, adapter=adapter),
        lambda checkpoint, adapter: take_lora(load(checkpoint).model, adapter, but="x"),
        lambda _, adapter: adapter_layers(adapter),
    ],
    ids=["load", "take_lora", "layers"],
)
@pytest.mark.parametrize("value", [None, False, True])
def test_an_adapter_from_before_loads_unless_it_has_a_score_bias(
    checkpoint: Path, adapter: Path, read: Callable[[Path, Path], object], value: bool | None
) -> None:
    file = adapter / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "score_bias": value}), "utf-8")
    if not value:
        read(checkpoint, adapter)
        return
    with pytest.raises(CheckpointError, match=r"adapter was trained with a score bias, and memspan 0\.1"):
        read(checkpoint, adapter)
