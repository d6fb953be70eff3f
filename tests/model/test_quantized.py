"""Checkpoints quantised by transformers' own loading: with a method of these tests, which rounds weights to 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_backbone, tiny_config
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import BankMismatch, CheckpointError, UnsupportedBackbone
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model import convert as converting
from memspan.model.backbones import check_config
from memspan.model.convert import LoadedModel, load
from memspan.model.modeling import routed_modules
from memspan.model.packed import PackedLinear


class _Rounded(nn.Linear):
    """Weights in 8 bits, a scale a row, as int8 methods keep them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.weight.abs().amax(1, keepdim=True) / 127
        return nn.functional.linear(x, (self.weight / scale).round() * scale, self.bias)


class _Config(QuantizationConfigMixin):
    def __init__(self, bits: int = 8, modules_to_not_convert: list[str] | None = None, **_: Any) -> None:
        self.quant_method, self.bits, self.modules_to_not_convert = "rounded", bits, modules_to_not_convert


class _Eager(_Config):
    """Cannot be told to leave anything."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        del self.modules_to_not_convert


class _Quantizer(HfQuantizer):
    requires_calibration = False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        left = getattr(self.quantization_config, "modules_to_not_convert", None) or ()
        for name, module in model.named_modules():
            if type(module) is nn.Linear and not any(part in name for part in left):
                module.__class__ = _Rounded

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        return model

    def is_serializable(self, *_: Any) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def _registered() -> Any:
    register_quantization_config("rounded")(_Config)
    register_quantizer("rounded")(_Quantizer)
    yield
    del AUTO_QUANTIZATION_CONFIG_MAPPING["rounded"], AUTO_QUANTIZER_MAPPING["rounded"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_backbone(tmp_path / "plain")
    converting.convert(str(tmp_path / "plain"), tmp_path / "msa", chunk_size=4, top_k_docs=2)
    return tmp_path / "msa"


def _rounded(loaded: LoadedModel) -> list[str]:
    return [name for name, module in loaded.model.named_modules() if isinstance(module, _Rounded)]


def test_weights_are_quantised_but_for_routers_and_head_and_answers_are_near(folder: Path) -> None:
    exact, rounded = load(folder, device="cpu"), load(folder, device="cpu", quantization=_Config())
    names = _rounded(rounded)
    assert len(names) == 4 * 7 and not any("router" in name or "lm_head" in name for name in names)
    for one, other in zip(routed_modules(exact.model), routed_modules(rounded.model), strict=True):
        assert torch.equal(one.router_q_proj.weight, other.router_q_proj.weight)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        logits = [loaded.model(ids).logits.float() for loaded in (exact, rounded)]
    error = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert 0 < error < 0.1
    assert not any(isinstance(module, PackedLinear) for module in rounded.model.modules())


def test_a_bank_is_of_one_quantisation(folder: Path, tmp_path: Path) -> None:
    exact, rounded = load(folder, device="cpu"), load(folder, device="cpu", quantization=_Config())
    again, other = (load(folder, device="cpu", quantization=_Config(bits)) for bits in (8, 4))
    prints = [loaded.model.encoder_fingerprint() for loaded in (exact, rounded, again, other)]
    assert prints[1] == prints[2] and len(set(prints)) == 3
    assert exact.names is not None and rounded.names is None, "a folder alone does not load it again"
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(rounded)), rounded) as memory:
        memory.add(["The otter lives in Oslo.", "Tin melts early."])
        assert memory.ask("Where does the otter live?", sampling=Sampling(max_new_tokens=4)).text is not None
    for wrong in (exact, other):
        with pytest.raises(BankMismatch), Memory(MemoryBank.open(tmp_path / "bank"), wrong) as memory:
            memory.add(["The newt lives in Bern."])
    with Memory(MemoryBank.open(tmp_path / "bank"), again) as memory:
        assert memory.add(["The newt lives in Bern."]).added == 1


def test_a_memory_is_opened_with_a_quantisation_and_a_map_to_its_device(folder: Path, tmp_path: Path) -> None:
    how: Any = {"device_map": {"": "cpu"}, "quantization": _Config()}
    with Memory.open(tmp_path / "bank", folder, create=True, **how) as memory:
        memory.add(["The otter lives in Oslo."])
        assert len(_rounded(memory.loaded)) == 4 * 7
    with Memory.open(tmp_path / "bank", folder, **how) as memory:
        assert memory.ask("Where does the otter live?", sampling=Sampling(max_new_tokens=4)).text is not None
    with pytest.raises(BankMismatch):
        Memory.open(tmp_path / "bank", folder, device="cpu")


def test_what_quantises_routers_too_is_refused(folder: Path) -> None:
    AUTO_QUANTIZATION_CONFIG_MAPPING["rounded"] = _Eager
    with pytest.raises(UnsupportedBackbone, match="rounded quantized the routers"):
        load(folder, device="cpu", quantization=_Eager())


def test_what_the_caller_leaves_stays_left_and_the_callers_own_is_not_changed(folder: Path) -> None:
    given = _Config(modules_to_not_convert=["mlp"])
    assert not any("mlp" in name for name in _rounded(load(folder, device="cpu", quantization=given)))
    assert given.modules_to_not_convert == ["mlp"]


def test_an_adapter_beside_it_is_refused_with_what_to_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converting, "find_adapter", lambda *_: tmp_path)
    with pytest.raises(CheckpointError, match=r'adapter="none".* merge'):
        load(folder, device="cpu", quantization=_Config())


def test_weights_that_compute_nothing_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Rounded, "forward", lambda self, x: x.new_full((*x.shape[:-1], self.out_features), torch.nan))
    with pytest.raises(UnsupportedBackbone, match="computes no numbers"):
        load(folder, device="cpu", quantization=_Config())


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_a_quantised_source_is_refused_by_what_to_do(method: str) -> None:
    config = tiny_config("llama")
    config.quantization_config = {"quant_method": method, "bits": 4}
    with pytest.raises(UnsupportedBackbone, match="are quantized; convert the model that they were made from"):
        check_config(config)
