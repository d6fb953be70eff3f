from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import FAMILIES, VOCAB, WINDOW, tiny_backbone, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memspan.config import MSAConfig
from memspan.errors import UnsupportedBackbone
from memspan.model import attention
from memspan.model.backbones import check_config
from memspan.model.memory_api import QueryStep
from memspan.model.modeling import MSAForCausalLM
from memspan.model.probe import probe
from memspan.model.router import RoutedAttention

_TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _backbone(family: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**_TINY, **settings})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def _converted(backbone: PreTrainedModel) -> MSAForCausalLM:
    config = MSAConfig(backbone_config=copy.deepcopy(backbone.config), chunk_size=4, top_k_docs=2)
    return MSAForCausalLM.from_backbone(backbone, config)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_probe_passes_where_memory_attention_computes_the_same(family: str) -> None:
    backbone = tiny_backbone(family)
    check_config(backbone.config)
    assert 0 <= probe(backbone, tiny_model(family)) < 1e-4


def test_the_probe_passes_in_half_precision_with_its_wider_tolerance() -> None:
    dtype = torch.bfloat16
    assert 0 < probe(tiny_backbone("llama", dtype=dtype), tiny_model("llama", dtype=dtype)) < 0.1


@pytest.mark.parametrize("family, settings", [("granite", {}), ("starcoder2", {}), ("smollm3", {}), ("glm4", {})])
def test_the_probe_passes_for_families_that_no_other_test_names(family: str, settings: dict[str, Any]) -> None:
    backbone = _backbone(family, **settings)
    assert probe(backbone, _converted(backbone)) < 1e-4


# --- refused off the config -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, settings, reason",
    [
        ("llama4_text", {"attention_chunk_size": WINDOW}, "llama4_text has layers of type chunked_attention"),
        ("t5", {"d_model": 64, "d_kv": 16, "num_layers": 2}, "t5 is an encoder-decoder"),
        ("bart", {"d_model": 64}, "bart is an encoder-decoder"),
        ("deepseek_v3", {"kv_lora_rank": 8, "qk_rope_head_dim": 8}, r"deepseek_v3 uses multi-head latent attention"),
        ("qwen3_next", {}, "qwen3_next has layers of type linear_attention"),
        ("mamba", {}, "mamba has layers of type linear_attention"),
        ("jamba", {}, "jamba has layers of type linear_attention"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name_off_its_config(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedBackbone, match=reason):
        check_config(AutoConfig.for_model(family, **{**_TINY, **settings}))


def test_a_plain_decoder_and_one_with_windows_pass_the_config_check() -> None:
    for family in FAMILIES:
        check_config(tiny_backbone(family).config)


# --- refused by running it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family, settings, reason",
    [
        ("gemma2", {"sliding_window": WINDOW}, "Gemma2Attention passes softcap to its attention"),
        (
            "gpt_oss",
            {"sliding_window": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": None},
            r"GptOssAttention passes .*s_aux to its attention",
        ),
        ("stablelm", {}, "stablelm"),  # does not forward keyword arguments: neither padding nor memory arrives
    ],
)
def test_attention_that_is_more_than_softmax_is_refused_by_name(
    family: str, settings: dict[str, Any], reason: str
) -> None:
    backbone = _backbone(family, **settings)
    with pytest.raises(UnsupportedBackbone, match=reason):
        probe(backbone, _converted(backbone))


@pytest.mark.parametrize("family", ["bloom", "rwkv"])
def test_a_decoder_without_attention_that_can_be_found_is_refused_when_it_is_wrapped(family: str) -> None:
    backbone = _backbone(family)
    with pytest.raises(UnsupportedBackbone, match="has no softmax attention with a layer_idx"):
        _converted(backbone)


@pytest.mark.parametrize("family", ["gptj", "mpt"])
def test_a_decoder_without_exchangeable_attention_is_refused(family: str) -> None:
    backbone = _backbone(family)
    with pytest.raises(UnsupportedBackbone):
        probe(backbone, _converted(backbone))


def test_a_mixture_of_experts_passes() -> None:
    backbone = _backbone("qwen3_moe", num_experts=2, num_experts_per_tok=1, moe_intermediate_size=32)
    assert probe(backbone, _converted(backbone)) < 1e-4


def _change_local_mask(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Let the attention function forget an argument of its own mask."""
    true_mask = attention.local_mask

    def mask(T: int, S: int, valid_BS: Any, sliding_window: Any, device: torch.device) -> Any:
        given = {"valid_BS": valid_BS, "sliding_window": sliding_window, **changed}
        return true_mask(T, S, given["valid_BS"], given["sliding_window"], device)

    monkeypatch.setattr(attention, "local_mask", mask)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_an_ignored_window_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _change_local_mask(monkeypatch, sliding_window=None)
    with pytest.raises(UnsupportedBackbone, match=f"{family}: logits in one pass differ"):
        probe(tiny_backbone(family), tiny_model(family))


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_window_of_one_more_or_less_is_caught(off_by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _change_local_mask(monkeypatch, sliding_window=WINDOW + off_by)
    with pytest.raises(UnsupportedBackbone, match="mistral: logits in one pass differ"):
        probe(tiny_backbone("mistral"), tiny_model("mistral"))


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_ignored_padding_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _change_local_mask(monkeypatch, valid_BS=None)
    with pytest.raises(UnsupportedBackbone, match=f"{family}: logits in one pass differ"):
        probe(tiny_backbone(family), tiny_model(family))


def test_a_fault_of_cached_decoding_alone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true_mask = attention.local_mask

    def mask(T: int, S: int, valid_BS: Any, sliding_window: Any, device: torch.device) -> Any:
        return true_mask(T, S, valid_BS if T == S else None, sliding_window, device)

    monkeypatch.setattr(attention, "local_mask", mask)
    with pytest.raises(UnsupportedBackbone, match="llama: logits decoding from a cache differ"):
        probe(tiny_backbone("llama"), tiny_model("llama"))


def test_a_lost_scaling_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true_attend = attention.attend
    monkeypatch.setattr(
        attention, "attend", lambda q, k, v, mask, scaling, dropout: true_attend(q, k, v, mask, None, dropout)
    )
    with pytest.raises(UnsupportedBackbone, match="gemma3_text: logits in one pass differ"):
        probe(tiny_backbone("gemma3_text"), tiny_model("gemma3_text"))


def test_nan_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    true_attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args: true_attend(*args) * float("nan"))
    with pytest.raises(UnsupportedBackbone, match="differ from its own eager attention by nan"):
        probe(tiny_backbone("llama"), tiny_model("llama"))


def test_a_layer_that_never_asks_the_memory_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true_prepare = RoutedAttention._prepare

    def prepare(self: RoutedAttention, hidden_BTF: torch.Tensor, step: QueryStep) -> None:
        if self.layer_idx != 3:
            true_prepare(self, hidden_BTF, step)

    monkeypatch.setattr(RoutedAttention, "_prepare", prepare)
    with pytest.raises(UnsupportedBackbone, match="llama: memory does not reach the attention of layer 2"):
        probe(tiny_backbone("llama"), tiny_model("llama"))


def test_a_layer_whose_attention_never_sees_what_was_retrieved_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true_prepare = RoutedAttention._prepare

    def prepare(self: RoutedAttention, hidden_BTF: torch.Tensor, step: QueryStep) -> None:
        true_prepare(self, hidden_BTF, step)
        if self.layer_idx == 3:
            step.retrieved.clear()

    monkeypatch.setattr(RoutedAttention, "_prepare", prepare)
    with pytest.raises(UnsupportedBackbone, match="llama: memory does not reach the attention of layer 3"):
        probe(tiny_backbone("llama"), tiny_model("llama"))


def test_memory_that_is_masked_away_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    true_mask = attention.memory_mask
    monkeypatch.setattr(attention, "memory_mask", lambda mask_BM, sees_BT: true_mask(mask_BM, sees_BT) & False)
    with pytest.raises(UnsupportedBackbone, match="llama: memory does not reach the attention of layer 2"):
        probe(tiny_backbone("llama"), tiny_model("llama"))
