"""Fingerprints are functions of the files: of what in them shapes latents, and not of how they are loaded."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAMILIES, counted_sha256, tiny_config, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig
from typer.testing import CliRunner

from memspan.cli import app
from memspan.config import FINGERPRINT_MARK, MSAConfig
from memspan.errors import CheckpointError
from memspan.model.adapter import save_adapter
from memspan.model.convert import load, save_checkpoint
from memspan.model.fingerprint import mapped_weights
from memspan.model.lora import LoraSpec, add_lora, merge_lora
from memspan.model.modeling import is_lora
from memspan.model.runtime import DTYPES

LOWER, UPPER = r"layers\.1\..*(q|v)_proj$", r"layers\.[23]\..*(q|up)_proj$"


@pytest.fixture(params=["float32", "bfloat16"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return _saved(tmp_path / "checkpoint", DTYPES[request.param])


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    _save_adapter(checkpoint, tmp_path / "adapter")
    return tmp_path / "adapter"


def _saved(folder: Path, dtype: torch.dtype = torch.bfloat16, **msa: Any) -> Path:
    save_checkpoint(tiny_model(dtype=dtype, **msa), tiny_tokenizer(), folder)
    return folder


@torch.no_grad()
def _save_adapter(checkpoint: Path, folder: Path) -> None:
    """Save an adapter: LoRA of both sides and of the query side alone, routers, and another value projection."""
    model = load(checkpoint, dtype="float32").model
    add_lora(model, LoraSpec(UPPER, rank=3, alpha=6))
    add_lora(model, LoraSpec(LOWER, rank=2, alpha=3, sides=("query",)))
    further = "backbone.model.layers.3.self_attn.v_proj.weight"
    for name, parameter in model.named_parameters():
        if is_lora(name) or "router_" in name or name == further:
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert model.config.backbone_fingerprint is not None
    save_adapter(model, folder, model.config.backbone_fingerprint, [further])


def _loaded(checkpoint: Path, adapter: Path | None = None, **options: Any) -> str:
    options = {"dtype": "float32", **options}
    found = load(checkpoint, adapter=adapter, **options).model.encoder_fingerprint()
    assert found.startswith(FINGERPRINT_MARK) and len(found) == len(FINGERPRINT_MARK) + 64
    return found


def _edit_json(file: Path, **changes: Any) -> None:
    """Set fields of a JSON file; those set to None are removed."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))


# --- how a model is loaded ------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_every_way_to_load_gives_the_same(checkpoint: Path, adapter: Path, threads: Callable[[int], None]) -> None:
    for given in (None, adapter):
        found = set()
        for dtype in DTYPES:
            for number in (1, 2):
                threads(number)
                found.add(_loaded(checkpoint, given, dtype=dtype))
        found.add(_loaded(checkpoint, given, weights="int8"))
        assert len(found) == 1
    assert _loaded(checkpoint) != _loaded(checkpoint, adapter)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_made_in_memory_has_the_fingerprint_of_its_files(family: str, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        save_checkpoint(tiny_model(family, dtype=dtype), tiny_tokenizer(), folder)
        assert (
            _loaded(folder)
            == _loaded(folder, dtype="bfloat16")
            == tiny_model(family, dtype=dtype).encoder_fingerprint()
        )


def test_a_model_in_training_has_the_fingerprint_of_the_adapter_it_becomes(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, dtype="float32").model
    add_lora(model, LoraSpec(UPPER, rank=3, alpha=6))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name) or "router_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(model, tmp_path / "adapter", str(model.config.backbone_fingerprint))
    assert _loaded(checkpoint, tmp_path / "adapter") == model.encoder_fingerprint()


def test_a_checkpoint_in_several_files_is_the_same(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for name, size in (("one", "1GB"), ("many", "100KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        tokenizer.save_pretrained(tmp_path / name)
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    assert mapped_weights(tmp_path / "many").keys() == mapped_weights(tmp_path / "one").keys()
    assert _loaded(tmp_path / "many") == _loaded(tmp_path / "one")


def test_a_load_hashes_samples(checkpoint: Path, adapter: Path) -> None:
    """8 pieces of 128 numbers of each weight, whatever its size; hashing them all is many times as much."""
    with counted_sha256() as hashed:
        _loaded(checkpoint, adapter)
    weights = [*mapped_weights(checkpoint).values(), *load_file(adapter / "adapter.safetensors").values()]
    sampled = sum(min(weight.numel(), 1024) * weight.element_size() for weight in weights)
    everything = sum(weight.nbytes for weight in weights)
    assert sampled <= hashed[0] < 1.2 * sampled + 20_000 < everything / 2, (sampled, hashed, everything)
    with counted_sha256() as hashed:
        load(checkpoint, adapter=adapter, dtype="float32", verify=True)
    assert hashed[0] > everything / 2


# --- what it covers -------------------------------------------------------------------------------------------------


def _reweigh(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "adapter.safetensors")
    edit(weights)
    save_file(weights, folder / "adapter.safetensors")


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("layers.1.self_attn.q_proj.lora_b", False),
        ("layers.1.self_attn.v_proj.lora_a", False),
        ("layers.3.self_attn.router_q_proj.weight", False),
        ("layers.3.self_attn.router_k_proj.weight", True),
        ("layers.2.self_attn.q_proj.lora_a", True),
        ("layers.2.mlp.up_proj.lora_b", True),
        ("layers.3.self_attn.v_proj.weight", True),
    ],
)
def test_an_adapters_document_side_counts_and_its_query_side_does_not(
    checkpoint: Path, adapter: Path, name: str, shapes: bool
) -> None:
    before = _loaded(checkpoint, adapter)
    _reweigh(adapter, lambda weights: weights[f"backbone.model.{name}"].add_(0.5))
    assert (_loaded(checkpoint, adapter) != before) is shapes


def test_the_scale_and_the_sides_of_lora_count(checkpoint: Path, adapter: Path) -> None:
    found = [_loaded(checkpoint, adapter)]
    lora = json.loads((adapter / "adapter.json").read_text())["lora"]
    for name, change in [
        ("model.layers.2.mlp.up_proj", {"scale": 3.0}),
        ("model.layers.2.mlp.up_proj", {"sides": ["query"]}),
        ("model.layers.1.self_attn.q_proj", {"sides": ["document"]}),
    ]:
        _edit_json(adapter / "adapter.json", lora={**lora, name: lora[name] | change})
        found.append(_loaded(checkpoint, adapter))
    assert len(set(found)) == len(found)
    queries = "model.layers.1.self_attn.q_proj"
    _edit_json(adapter / "adapter.json", lora={**lora, queries: lora[queries] | {"scale": 9.0}})
    assert _loaded(checkpoint, adapter) == found[0]


def _of_config(edit: Callable[[PretrainedConfig], None], family: str = "qwen3") -> str:
    config = tiny_config(family)
    edit(config)
    msa = MSAConfig(backbone_config=copy.deepcopy(config), backbone_fingerprint="b", document_fingerprint="d")
    found = msa.encoder_fingerprint
    assert found is not None
    assert MSAConfig.from_dict(json.loads(msa.to_json_string())).encoder_fingerprint == found, "stored and read again"
    return found


SAME: list[dict[str, Any]] = [
    {"pad_token_id": 7},
    {"eos_token_id": [1, 2]},
    {"attention_dropout": 0.5},
    {"initializer_range": 3.0},
    {"use_cache": False},
    {"torch_dtype": "float16"},
    {"name_or_path": "elsewhere"},
    {"_private": 1},
    {"unheard_of": None},  # what a newer transformers adds, and this model does not use
    {"rms_norm_eps": 1e-6},
]
OTHER: list[dict[str, Any]] = [
    {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    {"rms_norm_eps": 1e-4},
    {"hidden_act": "gelu"},
    {"layer_types": ["sliding_attention"] * 4},
    {"num_key_value_heads": 4},
    {"max_position_embeddings": 99},
    {"attention_bias": True},
    {"unheard_of": 2},  # it may shape latents: the bank is refused rather than read wrongly
]


@pytest.mark.parametrize(("changes", "same"), [*((one, True) for one in SAME), *((one, False) for one in OTHER)])
def test_settings_of_the_backbone(changes: dict[str, Any], same: bool) -> None:
    def edit(config: PretrainedConfig) -> None:
        for name, value in changes.items():
            setattr(config, name, value)

    assert (_of_config(edit) == _of_config(lambda config: None)) is same


def test_a_window_counts() -> None:
    assert len({_of_config(lambda c, w=w: setattr(c, "sliding_window", w), "mistral") for w in (5, 16, None)}) == 3


def test_a_whole_number_is_the_same_setting_as_a_float() -> None:
    thetas = [{"rope_type": "default", "rope_theta": theta} for theta in (5000, 5000.0)]
    assert len({_of_config(lambda config, t=theta: setattr(config, "rope_parameters", t)) for theta in thetas}) == 1


def test_settings_edited_by_hand_count(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "checkpoint")
    before = _loaded(folder)
    values = json.loads((folder / "config.json").read_text())
    for changes, same in [({"top_k_docs": 5}, True), ({"chunk_size": 8}, False), ({"similarity": "dot"}, False)]:
        (folder / "config.json").write_text(json.dumps(values | changes))
        assert (_loaded(folder) == before) is same, changes


# --- files that were changed, and those from before -----------------------------------------------------------------


def _rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DOWN, ROUTER = "model.layers.0.mlp.down_proj.weight", "model.layers.3.self_attn.router_k_proj.weight"


@pytest.mark.parametrize("name", [DOWN, ROUTER, "model.norm.weight"])
def test_weights_exchanged_by_hand_are_noticed(
    checkpoint: Path, adapter: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = _loaded(checkpoint)
    assert not caplog.records
    _rewrite(checkpoint, lambda weights: weights[name].mul_(1.5))
    found = {_loaded(checkpoint, dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert len(found) == 1 and before not in found, "of the files as they are"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "save_pretrained" in caplog.text
    if name == DOWN:
        with pytest.raises(CheckpointError, match="trained on another backbone"):
            load(checkpoint, adapter=adapter)
    with pytest.raises(CheckpointError, match="differ from the saved ones"):
        load(checkpoint, verify=True)
    again = checkpoint.with_name("again")
    save_checkpoint(load(checkpoint, dtype=_stored(checkpoint)).model, tiny_tokenizer(), again)
    caplog.clear()
    assert {_loaded(again)} == found and not caplog.records


def _stored(checkpoint: Path) -> str:
    return json.loads((checkpoint / "config.json").read_text())["dtype"]


def test_a_few_changed_numbers_are_found_by_verify(checkpoint: Path, adapter: Path) -> None:
    """A load does not see them: it looks at a sample. The limit is stated; here it is held."""
    before = _loaded(checkpoint), _loaded(checkpoint, adapter)
    runner, command = CliRunner(), ["verify", str(checkpoint), "--adapter", str(adapter)]
    found = runner.invoke(app, command)
    assert (found.exit_code, found.stdout) == (0, "no fault found\n")

    def change_one(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
        return lambda weights: weights[name].view(-1)[500:501].fill_(9.0)

    for folder, edit, name in [
        (adapter, _reweigh, "backbone.model.layers.3.self_attn.v_proj.weight"),
        (checkpoint, _rewrite, DOWN),
    ]:
        edit(folder, change_one(name))
        assert (_loaded(checkpoint), _loaded(checkpoint, adapter)) == before
        found = runner.invoke(app, command)
        assert found.exit_code == 1 and f"{folder} differ from the saved ones" in found.stderr.replace("\n", " ")


def test_files_from_before_have_the_same_fingerprints(checkpoint: Path, adapter: Path) -> None:
    now = _loaded(checkpoint), _loaded(checkpoint, adapter)

    def info() -> str:
        return json.loads(CliRunner().invoke(app, ["info", str(checkpoint), "--json"]).stdout)["encoder_fingerprint"]

    assert info() == now[0]
    _edit_json(checkpoint / "config.json", document_fingerprint=None, weights_sample=None, encoder_fingerprint="0" * 64)
    _edit_json(adapter / "adapter.json", document_fingerprint=None, weights_sample=None)
    for dtype in ("float32", "bfloat16"):
        assert (_loaded(checkpoint, dtype=dtype), _loaded(checkpoint, adapter, dtype=dtype)) == now
    load(checkpoint, adapter=adapter, verify=True)
    assert info() == now[0]
    again = checkpoint.with_name("again")
    save_checkpoint(load(checkpoint, dtype=_stored(checkpoint)).model, tiny_tokenizer(), again)
    assert _loaded(again) == now[0]
    assert "encoder_fingerprint" not in json.loads((again / "config.json").read_text())


def test_a_checkpoint_with_merged_lora_is_another_backbone(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, dtype="float32").model
    before = model.config.backbone_fingerprint, model.encoder_fingerprint()
    add_lora(model, LoraSpec(UPPER, rank=3, alpha=6))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    merge_lora(model)
    in_memory = model.encoder_fingerprint()
    assert in_memory != before[1]
    save_checkpoint(model, tiny_tokenizer(), tmp_path / "merged")
    config = MSAConfig.from_pretrained(tmp_path / "merged")
    assert config.backbone_fingerprint != before[0]
    assert config.encoder_fingerprint == _loaded(tmp_path / "merged") == in_memory
