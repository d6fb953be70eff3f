from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import TensorMemory, random_context, random_ids, tiny_loaded, tiny_model

from memspan.errors import MemspanError
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model.buffers import DecodeBuffers
from memspan.model.convert import load
from memspan.model.decoding import DecodeRows
from memspan.model.lora import LoraSpec, add_lora, merge_lora
from memspan.model.memory_api import AskStep
from memspan.model.modeling import MSAForCausalLM
from memspan.model.packed import PackedLinear, Packing, pack_weights, reading_packed

PACKINGS: tuple[Packing, ...] = ("int8", "int4")
# A fifteenth of a group's range of about four deviations, uniform: 0.08 of a deviation. An eighth bit: far less.
_ERROR = {"int8": 0.01, "int4": 0.1}


def _linear(model: MSAForCausalLM) -> PackedLinear:
    layer = model.backbone.get_submodule("model.layers.1.mlp.gate_proj")
    assert isinstance(layer, PackedLinear)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", PACKINGS)
@torch.no_grad()
def test_a_packed_product_is_near_the_product(packing: Packing, dtype: torch.dtype) -> None:
    model = tiny_model("qwen2", dtype=dtype)  # its q, k and v have biases
    names = [name for name, module in model.backbone.named_modules() if type(module) is torch.nn.Linear]
    pack_weights(model.backbone, packing)
    for name in [name for name in names if "router" not in name]:
        layer = model.backbone.get_submodule(name)
        assert isinstance(layer, PackedLinear), name
        assert layer.packing == ("int8" if name == "lm_head" else packing)
        x_BTF = torch.randn(2, 3, layer.in_features, dtype=dtype)
        plain = layer(x_BTF).float()
        with reading_packed(AskStep(buffers=DecodeBuffers(1))):
            packed = layer(x_BTF).float()
        error = float((packed - plain).norm() / plain.norm())
        assert 0 < error < _ERROR[layer.packing] + (0.01 if dtype == torch.bfloat16 else 0), name


@torch.no_grad()
def test_weights_of_sixteen_steps_a_group_lose_nothing_in_int4() -> None:
    model = tiny_model()
    layer = model.backbone.get_submodule("model.layers.1.mlp.gate_proj")
    steps = torch.randint(0, 16, (layer.out_features, 2, 32))
    steps[..., 0], steps[..., 1] = 0, 15  # a group uses both ends
    weight = steps * torch.rand(layer.out_features, 2, 1) + torch.randn(layer.out_features, 2, 1)
    layer.weight.copy_(weight.flatten(1))
    pack_weights(model.backbone, "int4")
    x_TF = torch.randn(3, layer.in_features)
    with reading_packed(AskStep(buffers=DecodeBuffers(1))):
        torch.testing.assert_close(layer(x_TF), torch.nn.functional.linear(x_TF, layer.weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packing", PACKINGS)
@torch.no_grad()
def test_only_steps_that_decode_a_few_tokens_read_packed_weights(packing: Packing) -> None:
    plain, packed = tiny_loaded(), tiny_loaded()
    pack_weights(packed.model.backbone, packing)
    documents = random_ids(3, 9, 2)  # fewer tokens than rows that are packed
    for one, other in zip(*(vars_of(loaded.model.encode(documents)) for loaded in (plain, packed)), strict=True):
        assert torch.equal(one, other)
    context = random_context(1, 2, 1)
    decodings = [Decoding(loaded, [context], None, Sampling(max_new_tokens=8)) for loaded in (plain, packed)]
    for decoding in decodings:
        decoding.begin()
    for one, other in zip(*(decoding.cache.layers for decoding in decodings), strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)  # type: ignore[arg-type]
    logits = []
    for loaded, decoding in zip((plain, packed), decodings, strict=True):
        rows = DecodeRows(loaded.model, 1)
        rows.join(decoding.packed, decoding.cache, {})
        logits.append(rows.step([[7, 8]]))
    error = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert 0 < error < 5 * _ERROR[packing]


def vars_of(encoded: object) -> tuple[torch.Tensor, torch.Tensor]:
    return encoded.router_keys_LCW, encoded.content_LC2GD  # type: ignore[attr-defined]


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_batch_and_a_question_alone_decode_alike(packing: Packing) -> None:
    loaded = tiny_loaded("qwen3")
    pack_weights(loaded.model.backbone, packing)
    with torch.no_grad():
        memory = TensorMemory(loaded.model, loaded.model.encode(random_ids(9, 3, 8)))
    contexts = [random_context(3, 12, 2), random_context(3, 5, 2)]
    together = Decoding(loaded, contexts, memory, Sampling(max_new_tokens=10))
    for _ in together.run():
        pass
    for context, row in zip(contexts, together.rows, strict=True):
        alone = Decoding(loaded, [context], memory, Sampling(max_new_tokens=10))
        for _ in alone.run():
            pass
        assert alone.rows[0].ids == row.ids


@torch.no_grad()
def test_where_documents_and_questions_have_weights_of_their_own_the_questions_are_packed() -> None:
    model = tiny_model()
    add_lora(model, LoraSpec(targets=r"\.gate_proj$", rank=2, sides=("query",)))
    layer = model.backbone.get_submodule("model.layers.1.mlp.gate_proj")
    layer.lora_b.normal_()  # type: ignore[union-attr, operator]
    documents = random_ids(9, 14)
    latents, ids = model.encode(documents), torch.tensor([[5, 7, 9]])
    whole = model(ids, memory=AskStep(), use_cache=False).logits
    merge_lora(model)
    torch.testing.assert_close(model(ids, memory=AskStep(), use_cache=False).logits, whole, atol=1e-4, rtol=1e-4)
    pack_weights(model.backbone, "int8")
    with reading_packed(AskStep(buffers=DecodeBuffers(1))):
        packed = model.backbone(ids, memory=AskStep(), use_cache=False).logits
    assert 0 < float((packed - whole).norm() / whole.norm()) < 0.1
    assert torch.equal(model.encode(documents).content_LC2GD, latents.content_LC2GD)


def test_packing_changes_nothing_that_is_saved() -> None:
    model = tiny_model()
    names, fingerprint = list(model.state_dict()), model.encoder_fingerprint()
    num_bytes = pack_weights(model.backbone, "int4")
    assert list(model.state_dict()) == names
    assert model.encoder_fingerprint() == fingerprint
    held = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, PackedLinear))
    assert held / 2 < num_bytes < 2 * held


def test_a_wrong_packing_is_refused_by_name(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    loaded.model.save_pretrained(tmp_path)
    loaded.template.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MemspanError, match="int8, int4"):
        load(tmp_path, device="cpu", weights="int2")
    packed = load(tmp_path, device="cpu", weights="int4").model
    assert isinstance(_linear(packed), PackedLinear)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_packing_is_refused_on_a_gpu() -> None:
    model = tiny_model().to("cuda")  # type: ignore[arg-type]
    with pytest.raises(MemspanError, match="CPU"):
        pack_weights(model.backbone, "int8")
