"""Sources whose weights are quantized already, as GPTQ and AWQ store them: with layers of these tests in their place.

transformers' own configs of both methods are used; the packages with their kernels are not.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_backbone
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from typer.testing import CliRunner

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.cli import app
from memspan.errors import BankMismatch, CheckpointError, TrainingError, UnsupportedBackbone
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model import convert as converting
from memspan.model.convert import load
from memspan.model.modeling import is_router, routed_modules
from memspan.train.recipe import recipe_of
from memspan.train.setup import load_model

METHODS = ("gptq", "awq")
SETTINGS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 8, "group_size": -1, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 8, "group_size": -1, "zero_point": False, "version": "gemm"},
}


class _Packed(nn.Module):
    """Weights in 8 bits with a scale a row, in buffers, as the layers of both methods: it is no `nn.Linear`."""

    def __init__(self, inner: int, outer: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = inner, outer
        self.register_buffer("qweight", torch.zeros(outer, inner, dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(outer, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(outer, dtype=torch.float16) if bias else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.qweight.to(x.dtype) * self.scales[:, None].to(x.dtype)
        return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


class _Quantizer(HfQuantizer):
    """Puts `_Packed` where the method's own loading puts its layers."""

    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and self._is_replaced(name):
                packed = _Packed(module.in_features, module.out_features, module.bias is not None)
                model.set_submodule(name, packed)

    def _is_replaced(self, name: str) -> bool:
        config = self.quantization_config
        if config.quant_method.value == "awq":
            return should_convert_module(name, config.modules_to_not_convert)
        inside = [part for parts in config.modules_in_block_to_quantize for part in parts]
        block = config.block_name_to_quantize
        return name.startswith(block) and any(name.endswith(part) for part in inside)  # as optimum does

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    def is_serializable(self, *_: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def _faked(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in METHODS:
        monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, method, _Quantizer)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.3.0" if name == "optimum" else version(name))


def source(folder: Path, method: str, left: tuple[str, ...] = (), family: str = "llama", shards: int = 1) -> Path:
    """A plain checkpoint whose layers' linear weights are quantized, but for those with a name in `left`."""
    save_backbone(folder, family)
    stored = load_file(folder / "model.safetensors")
    found: dict[str, torch.Tensor] = {}
    for name, weight in stored.items():
        stem = name.removesuffix(".weight")
        if ".layers." not in name or weight.dim() != 2 or any(part in name for part in left):
            found[name] = weight.to(torch.float16).contiguous()
        else:
            scale = weight.float().abs().amax(1) / 127
            found[f"{stem}.qweight"] = (weight.float() / scale[:, None]).round().to(torch.int32)
            found[f"{stem}.scales"] = scale.to(torch.float16)
    (folder / "model.safetensors").unlink()
    names = sorted(found)
    where = {name: f"model-{place * shards // len(names) + 1:05d}.safetensors" for place, name in enumerate(names)}
    for file in set(where.values()):
        save_file({n: found[n] for n in names if where[n] == file}, folder / file, {"format": "pt"})
    if shards == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
    else:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}), "utf-8")
    changed = json.loads((folder / "config.json").read_text("utf-8"))
    changed |= {"quantization_config": dict(SETTINGS[method]), "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(changed), "utf-8")
    return folder


def converted(tmp_path: Path, method: str, **how: Any) -> Path:
    converting.convert(source(tmp_path / "plain", method, **how), tmp_path / "msa", chunk_size=4, top_k_docs=2)
    return tmp_path / "msa"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("left", "family", "shards"),
    [((), "llama", 1), (("mlp",), "llama", 3), (("layers.0.", "o_proj"), "qwen3", 2)],
    ids=["all", "some, in shards", "another family"],
)
def test_a_quantized_source_is_converted_and_loaded_as_it_is(
    tmp_path: Path, method: str, left: tuple[str, ...], family: str, shards: int
) -> None:
    folder = converted(tmp_path, method, left=left, family=family, shards=shards)
    loaded = load(folder, device="cpu", dtype="float32")
    packed = {name.removeprefix("backbone.") for name, m in loaded.model.named_modules() if isinstance(m, _Packed)}
    stored = {}
    for file in (tmp_path / "plain").glob("*.safetensors"):
        stored |= load_file(file)
    assert packed == {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")} != set()
    own = {name.removeprefix("backbone."): x for name, x in loaded.model.state_dict().items()}
    for name, weight in stored.items():
        assert torch.equal(own[name].to(weight.dtype), weight), name
    for attention in routed_modules(loaded.model):
        assert type(attention.router_q_proj) is nn.Linear and type(attention.router_k_proj) is nn.Linear
        assert 0.01 < float(attention.router_k_proj.weight.std()) < 1
    assert loaded.model.decode_weights is None and not loaded.model.config.router_trained


@pytest.mark.parametrize("method", METHODS)
def test_a_memory_of_it_answers_and_its_bank_is_its_own(tmp_path: Path, method: str) -> None:
    folder, how = converted(tmp_path, method), {"device": "cpu", "dtype": "float32"}
    loaded = load(folder, **how)
    assert loaded.names is not None, "its folder alone loads it again, in other processes too"
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add(["The otter lives in Oslo.", "Tin melts early."])
        assert memory.ask("Where does the otter live?", sampling=Sampling(max_new_tokens=4)).text is not None
    again = load(folder, **how, verify=True)
    with Memory(MemoryBank.open(tmp_path / "bank"), again) as memory:
        assert memory.add(["The newt lives in Bern."]).added == 1
    shutil.rmtree(tmp_path / "plain")
    save_backbone(tmp_path / "plain")
    converting.convert(tmp_path / "plain", tmp_path / "exact", chunk_size=4, top_k_docs=2)
    with pytest.raises(BankMismatch), Memory(MemoryBank.open(tmp_path / "bank"), load(tmp_path / "exact")) as memory:
        memory.add(["The newt lives in Bern."])


@pytest.mark.parametrize("method", METHODS)
def test_the_command_converts_it_without_the_methods_packages(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(AUTO_QUANTIZER_MAPPING, method)
    folder = source(tmp_path / "plain", method)
    result = CliRunner().invoke(app, ["convert", str(folder), "--out", str(tmp_path / "msa")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "msa" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("Loading a GPTQ quantized model requires optimum (`pip install optimum`)"), "pip install optimum"),
        (
            ImportError("it requires gptqmodel. Please `pip install gptqmodel`\nand much advice"),
            "pip install gptqmodel",
        ),
        (RuntimeError("GPU is required to quantize or run quantize model."), "GPU is required"),
    ],
    ids=["optimum", "gptqmodel", "a GPU"],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, method: str, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise error

    folder = converted(tmp_path, method)
    monkeypatch.setattr(_Quantizer, "validate_environment", missing)
    with pytest.raises(UnsupportedBackbone, match=f"quantized by {method} cannot be loaded on cpu here") as raised:
        load(folder, device="cpu")
    assert said in str(raised.value) and "much advice" not in str(raised.value)


@pytest.mark.parametrize("method", METHODS)
def test_with_transformers_own_code_the_missing_package_is_named(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(tmp_path, method)
    monkeypatch.undo()
    from transformers.quantizers.quantizer_awq import AwqQuantizer
    from transformers.quantizers.quantizer_gptq import GptqHfQuantizer

    assert AUTO_QUANTIZER_MAPPING[method] is {"gptq": GptqHfQuantizer, "awq": AwqQuantizer}[method]
    with pytest.raises(UnsupportedBackbone, match=r"optimum|gptqmodel|GPU is required"):
        load(folder, device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_adapters_lora_training_and_a_second_quantization_are_refused_by_name(tmp_path: Path, method: str) -> None:
    folder = converted(tmp_path, method)
    with pytest.raises(CheckpointError, match=r'adapter="none"'):
        load(folder, device="cpu", adapter=tmp_path)
    from transformers import AwqConfig

    with pytest.raises(CheckpointError, match=rf"are quantized \({method}\); load without quantization"):
        load(folder, device="cpu", quantization=AwqConfig())
    values = {
        "name": "no",
        "model": {"checkpoint": str(folder)},
        "corpus": "not read",
        "train": [{"name": "routers", "match": "router_"}],
        "phases": [{"name": "one", "steps": 2, "lr": 1e-3}],
    }
    for changes in ({}, {"lora": {"targets": "q_proj$"}}):
        with pytest.raises(TrainingError, match=r"are quantized.*train the plain model"):
            load_model(recipe_of({**values, **changes}), tmp_path / "run")


def test_a_decoder_that_computes_something_else_is_refused_on_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = converted(tmp_path, "awq")
    forward = _Packed.forward
    seen: list[int] = []

    def drifting(self: _Packed, x: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        return forward(self, x) * (1 + len(seen) % 97)

    monkeypatch.setattr(_Packed, "forward", drifting)
    with pytest.raises(UnsupportedBackbone, match="differ from its own eager attention"):
        load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_missing_are_named(tmp_path: Path, method: str) -> None:
    folder = source(tmp_path / "plain", method)
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.qweight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    converting.convert(folder, tmp_path / "msa", chunk_size=4)
    with pytest.raises(CheckpointError, match="lacks 1 weights of its model"):
        load(tmp_path / "msa", device="cpu")


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "compressed-tensors", None, 3, ["awq"]])
def test_other_methods_are_refused_as_before(tmp_path: Path, method: Any) -> None:
    folder = source(tmp_path / "plain", "awq")
    changed = json.loads((folder / "config.json").read_text("utf-8"))
    changed["quantization_config"]["quant_method"] = method
    (folder / "config.json").write_text(json.dumps(changed), "utf-8")
    with pytest.raises((UnsupportedBackbone, CheckpointError), match=r"quantized|cannot load"):
        converting.convert(folder, tmp_path / "msa")
    assert not (tmp_path / "msa").exists()


def test_routers_begin_as_those_of_a_plain_source(tmp_path: Path) -> None:
    loaded = load(converted(tmp_path, "awq"), device="cpu", dtype="float32")
    save_backbone(tmp_path / "other")
    converting.convert(tmp_path / "other", tmp_path / "exact", chunk_size=4, dtype=torch.float16)
    exact = load(tmp_path / "exact", device="cpu", dtype="float32")
    for name, parameter in exact.model.named_parameters():
        if is_router(name):
            assert torch.equal(parameter, loaded.model.get_parameter(name)), name
