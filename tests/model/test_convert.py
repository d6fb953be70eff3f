from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_backbone, tiny_backbone, tiny_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from memspan.errors import CheckpointError, MemspanError, UnsupportedBackbone
from memspan.generate.memory import Memory
from memspan.model import convert as convert_module
from memspan.model.convert import convert, load
from memspan.model.modeling import MSAForCausalLM, is_router

WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A plain folder of a tiny Llama."""
    save_backbone(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def checkpoint(source: Path, tmp_path: Path) -> Path:
    """The same, converted; in float32."""
    convert(str(source), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    return tmp_path / "msa"


def _tokenizer_without_markers() -> PreTrainedTokenizerFast:
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


# --- convert --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@torch.no_grad()
def test_a_converted_checkpoint_computes_its_sources_logits(tmp_path: Path, family: str, dtype: str) -> None:
    torch_dtype = getattr(torch, dtype)
    save_backbone(tmp_path / "plain", family)
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch_dtype)
    loaded = load(tmp_path / "msa", dtype=dtype, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch_dtype, attn_implementation="sdpa")
    kept = dict(loaded.model.named_backbone_weights())
    for name, weight in plain.named_parameters():
        assert kept[name].dtype == torch_dtype
        assert torch.equal(kept[name], weight), name
    ids = torch.randint(1, 500, (2, 40))
    expected = plain(ids, attention_mask=torch.ones_like(ids)).logits
    found = loaded.model(ids).logits
    assert found.dtype == torch_dtype
    worst = (found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)
    assert worst.max() < (1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.parametrize("given, expected", [(None, (2, 3)), ([1], (1,)), ([0, 3], (0, 3))])
def test_msa_layers_are_the_upper_half_unless_named(
    source: Path, tmp_path: Path, given: list[int] | None, expected: tuple[int, ...]
) -> None:
    config = convert(str(source), tmp_path / "msa", msa_layers=given, chunk_size=8, top_k_docs=3)
    for found in (config, load(tmp_path / "msa").model.config):
        assert (found.layers, found.chunk_size, found.top_k_docs, found.offset) == (expected, 8, 3, 3)
        assert not found.router_trained
    routers = {name for name in load_file(tmp_path / "msa" / WEIGHTS) if is_router(name)}
    assert routers == {
        f"model.layers.{layer}.self_attn.router_{kind}_proj.weight" for layer in expected for kind in "qk"
    }


def test_the_same_seed_gives_the_same_bytes_and_another_only_other_routers(source: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed + 7)  # the global generator must not matter
        convert(str(source), tmp_path / name, seed=seed)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()
    first, other = load_file(tmp_path / "a" / WEIGHTS), load_file(tmp_path / "c" / WEIGHTS)
    assert first.keys() == other.keys()
    for name, weight in first.items():
        assert torch.equal(weight, other[name]) != is_router(name), name


@pytest.mark.parametrize("owner, attribute", [("model", "save_pretrained"), ("tokenizer", "save_pretrained")])
def test_a_failed_write_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, attribute: str
) -> None:
    def fail(self: Any, folder: Path, **kwargs: Any) -> None:
        (Path(folder) / "half").write_text("written before the disk was full")
        raise OSError(28, "No space left on device")

    owner_class = MSAForCausalLM if owner == "model" else type(tiny_tokenizer())
    with monkeypatch.context() as patch:
        patch.setattr(owner_class, attribute, fail)
        with pytest.raises(CheckpointError, match=r"cannot write .*msa.*No space left"):
            convert(str(source), tmp_path / "msa")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]
    convert(str(source), tmp_path / "msa")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["msa", "plain"]


def test_an_interrupted_write_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Any, folder: Path, **kwargs: Any) -> None:
        (Path(folder) / "half").write_text("")
        raise KeyboardInterrupt

    monkeypatch.setattr(MSAForCausalLM, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(str(source), tmp_path / "msa")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_folder_that_is_not_empty_is_refused_untouched_before_anything_is_loaded(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not an empty folder; name another --out"):
        convert("no/such/model/anywhere", out)
    with pytest.raises(CheckpointError, match="not an empty folder"):
        convert("no/such/model/anywhere", out / "mine.txt")
    assert (out / "mine.txt").read_text() == "precious"


def test_an_empty_folder_and_missing_parents_are_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "deep" / "er"):
        convert(str(source), out)
        assert load(out).model.config.layers == (2, 3)


def test_the_template_is_chatml_where_the_tokenizer_has_its_markers_else_plain(source: Path, tmp_path: Path) -> None:
    assert convert(str(source), tmp_path / "chat").template_spec.name == "chatml"
    assert convert(str(source), tmp_path / "named", template="msa").template_spec.name == "msa"
    _tokenizer_without_markers().save_pretrained(source)
    assert convert(str(source), tmp_path / "base").template_spec.name == "plain"
    loaded = load(tmp_path / "base")
    assert loaded.template.spec.name == "plain"
    assert loaded.template.stop_strings == ("\n\n", "\nQuestion:")


def test_a_refused_decoder_leaves_nothing_behind(tmp_path: Path) -> None:
    backbone = tiny_backbone("qwen3")
    backbone.config.layer_types = ["linear_attention"] * 4
    backbone.save_pretrained(tmp_path / "plain")
    tiny_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(UnsupportedBackbone, match="qwen3 has layers of type linear_attention"):
        convert(str(tmp_path / "plain"), tmp_path / "msa")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


# --- load -----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_and_one_without_config_name_convert(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match=r"no config.json.*memspan convert") as caught:
            load(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("content", ['{"model_type": "mem', "", "[]", "3"])
def test_a_broken_config_is_damaged(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config.json is damaged.*run memspan convert again"):
        load(checkpoint)


def test_a_plain_model_is_told_to_be_converted(source: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a plain llama model without memory; run: memspan convert"):
        load(source)


def test_a_truncated_weights_file_is_damaged(checkpoint: Path) -> None:
    weights = checkpoint / WEIGHTS
    content = weights.read_bytes()
    for kept in (len(content) // 2, 100, 0):
        weights.write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"is damaged.*run memspan convert again"):
            load(checkpoint)


def test_a_missing_weights_file_is_damaged(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"is damaged.*run memspan convert again"):
        load(checkpoint)


@pytest.mark.parametrize(
    "lost", ["model.layers.3.self_attn.router_q_proj.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"]
)
def test_a_checkpoint_that_lacks_a_weight_is_refused_and_never_filled_at_random(checkpoint: Path, lost: str) -> None:
    weights = load_file(checkpoint / WEIGHTS)
    del weights[lost]
    save_file(weights, checkpoint / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights.*run memspan convert again") as caught:
        load(checkpoint)
    assert lost in str(caught.value)


def test_a_weight_of_another_shape_is_refused(checkpoint: Path) -> None:
    weights = load_file(checkpoint / WEIGHTS)
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, checkpoint / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"run memspan convert again"):
        load(checkpoint)


def test_a_missing_tokenizer_is_damaged(checkpoint: Path) -> None:
    for path in checkpoint.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"(?s)is damaged.*tokenizer.*run memspan convert again"):
        load(checkpoint)


def test_impossible_settings_in_a_config_are_damaged(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "msa_layers": [99]}))
    with pytest.raises(CheckpointError, match=r"msa_layers must be .*run memspan convert again"):
        load(checkpoint)


def test_load_refuses_unknown_number_formats_and_absent_devices(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MemspanError, match="dtype must be one of float32, bfloat16, float16, not 'int3'"):
        load(checkpoint, dtype="int3")
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(MemspanError, match=f"device '{device}' is not present"):
            load(checkpoint, device=device)
    if not torch.cuda.is_available():
        with pytest.raises(MemspanError, match="device 'cuda' is not present"):
            load(checkpoint, device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_gives_the_number_format_and_device_asked_for(checkpoint: Path, dtype: str) -> None:
    loaded = load(str(checkpoint), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert {weight.device.type for weight in loaded.model.parameters()} == {"cpu"}
    assert not loaded.model.training
    assert loaded.path == checkpoint


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, {"": torch.device("cpu")}])
def test_a_device_map_to_one_device_loads_and_one_to_several_is_refused(checkpoint: Path, device_map: Any) -> None:
    assert load(checkpoint, device_map=device_map).model.device == torch.device("cpu")
    with pytest.raises(MemspanError, match="serves one device"):
        load(checkpoint, device_map={"backbone.model": device_map, "backbone.lm_head": "disk"})


def test_a_memory_is_opened_with_how_its_model_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    with Memory.open(tmp_path / "bank", checkpoint, create=True, device_map="cpu", dtype="bfloat16") as memory:
        assert memory.loaded.model.dtype == torch.bfloat16
    with pytest.raises(MemspanError, match="serves one device"):
        Memory.open(tmp_path / "bank", checkpoint, device_map={"a": 0, "b": 1})
    with pytest.raises(TypeError, match="no option 'device_maps'; did you mean 'device_map'"):
        Memory.open(tmp_path / "bank", checkpoint, device_maps="cpu")  # type: ignore[call-arg]


def test_a_device_without_room_for_the_model_is_named_with_the_size(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(MemspanError, match=r"cpu has no room for the model, whose weights take 0\.\d\d GB in torch"):
        load(checkpoint, device="cpu")


def test_the_default_model_is_converted_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []

    def load_tiny(source: str, dtype: torch.dtype) -> Any:
        sources.append(source)
        return tiny_backbone("llama", dtype=dtype), tiny_tokenizer()

    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(convert_module, "load_backbone", load_tiny)
    first, second = load(adapter="none"), load(adapter="none")
    assert sources == ["smollm2-135m-instruct"]
    assert first.path == second.path
    assert first.path.parent == tmp_path / "cache" / "models"
    assert first.path.name.startswith("smollm2-135m-instruct")
    assert [path for path in first.path.parent.iterdir() if path.is_dir()] == [first.path], "no half-made one beside it"
