from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import TensorMemory, random_context, random_ids, tiny_loaded, tiny_model

from memspan.errors import MemspanError
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model import packed
from memspan.model.buffers import DecodeBuffers
from memspan.model.convert import load
from memspan.model.decoding import DecodeRows
from memspan.model.lora import LoraSpec, add_lora, merge_lora
from memspan.model.memory_api import QueryStep
from memspan.model.packed import (
    ROWS,
    DecodeWeights,
    PackedLinear,
    Packing,
    Seconds,
    WeightFormat,
    check_weights,
    pack_weights,
    reading_packed,
)

QUANTIZED: tuple[Literal["int8", "int4"], ...] = ("int8", "int4")
PACKINGS: tuple[Packing, ...] = ("float16", "bfloat16", "int8", "int4")
# A fifteenth of a group's range of about four deviations, uniform: 0.08 of a deviation. An eighth bit: far less.
_ERROR = {"float16": 0.001, "bfloat16": 0.01, "int8": 0.01, "int4": 0.1}


@pytest.fixture(autouse=True)
def small_weights_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LEAST_BYTES", 0)


def _taking(packing: Packing, dtype: torch.dtype = torch.float32, most_rows: int = 8) -> Seconds:
    """Timings by which one packing (int8 in place of int4 as well), with rows of one number format, is the fastest."""

    def seconds(form: WeightFormat | None, weights: Sequence[torch.Tensor]) -> list[float]:
        if form is None:
            return [1.0] * len(ROWS)
        fits = form.packing in (packing, "int8" if packing == "int4" else packing) and form.rows == dtype
        return [0.1 if fits and num_rows <= most_rows else 2.0 for num_rows in ROWS]

    return seconds


@pytest.mark.parametrize(
    ("loaded", "rows"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize("packing", QUANTIZED)
@torch.no_grad()
def test_a_packed_product_is_near_the_product(
    packing: Literal["int8", "int4"], loaded: torch.dtype, rows: torch.dtype
) -> None:
    model = tiny_model("qwen2", dtype=loaded)  # its q, k and v have biases
    names = [name for name, module in model.backbone.named_modules() if type(module) is torch.nn.Linear]
    names = [name for name in names if "router" not in name]
    assert pack_weights(model.backbone, packing, _taking(packing, rows)).get("plain") is None
    for name in names:
        layer = model.backbone.get_submodule(name)
        assert isinstance(layer, PackedLinear), name
        assert layer.form == WeightFormat("int8" if name == "lm_head" else packing, rows)
        x_BTF = torch.randn(2, 3, layer.in_features, dtype=loaded)
        plain = layer(x_BTF)
        with reading_packed(QueryStep(buffers=DecodeBuffers())):
            packed = layer(x_BTF)
        assert packed.dtype == plain.dtype == loaded
        error = float((packed.float() - plain.float()).norm() / plain.float().norm())
        assert 0 < error < _ERROR[layer.form.packing] + (0.01 if rows == torch.bfloat16 else 0), name


def test_of_all_forms_the_fastest_is_taken_and_none_where_nothing_is_faster() -> None:
    asked: list[WeightFormat | None] = []

    def seconds(form: WeightFormat | None, weights: Sequence[torch.Tensor]) -> list[float]:
        asked.append(form)
        if form is None:
            return [1.0] * len(ROWS)
        if len(weights[0]) == 64:  # of the tiny model: not its head, and not what the MLP begins with
            return [1.1] * len(ROWS)
        one = {"float16": 0.5, "bfloat16": 0.5, "int8": 0.6 if form.rows == torch.float32 else 0.4}[form.packing]
        return [one + (num_rows >= 4) for num_rows in ROWS]

    model = tiny_model()
    linears = [x for name, x in model.backbone.named_modules() if type(x) is torch.nn.Linear and "router" not in name]
    counts = pack_weights(model.backbone, "int8", seconds)
    plain = [x for x in linears if x.out_features == 64]
    assert counts == {"plain": len(plain), "int8": len(linears) - len(plain)} and plain
    assert {type(x) for x in plain} == {torch.nn.Linear}
    packed = [x for x in linears if isinstance(x, PackedLinear)]
    assert {(x.form, x.most_rows) for x in packed} == {(WeightFormat("int8", torch.bfloat16), 2)}
    assert WeightFormat("float16", torch.float32) in asked, "what loses less was tried as well"
    x_TF = torch.randn(1, 3, packed[0].in_features)
    with reading_packed(QueryStep(buffers=DecodeBuffers())), torch.no_grad():
        assert torch.equal(packed[0](x_TF), torch.nn.functional.linear(x_TF, packed[0].weight)), "rows it is slow for"


def test_weights_that_stay_in_a_cache_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert set(pack_weights(tiny_model().backbone, "int8", _taking("int8"))) == {"plain"}


def test_half_is_float16_where_it_can_be_packed_and_else_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert set(pack_weights(tiny_model(dtype=dtype).backbone, "half", _taking("float16"))) == {"float16"}
    monkeypatch.setattr(packed, "_has_fbgemm", lambda: False)
    fastest = _taking("bfloat16", torch.bfloat16)
    assert set(pack_weights(tiny_model().backbone, "half", fastest)) == {"bfloat16"}
    assert set(pack_weights(tiny_model(dtype=torch.bfloat16).backbone, "half", fastest)) == {"plain"}, "as loaded"


@torch.no_grad()
def test_weights_of_sixteen_steps_a_group_lose_nothing_in_int4() -> None:
    model = tiny_model()
    layer = model.backbone.get_submodule("model.layers.1.mlp.gate_proj")
    steps = torch.randint(0, 16, (layer.out_features, 2, 32))
    steps[..., 0], steps[..., 1] = 0, 15  # a group uses both ends
    weight = steps * torch.rand(layer.out_features, 2, 1) + torch.randn(layer.out_features, 2, 1)
    layer.weight.copy_(weight.flatten(1))
    pack_weights(model.backbone, "int4", _taking("int4"))
    x_TF = torch.randn(3, layer.in_features)
    with reading_packed(QueryStep(buffers=DecodeBuffers())):
        torch.testing.assert_close(layer(x_TF), torch.nn.functional.linear(x_TF, layer.weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packing", PACKINGS)
@torch.no_grad()
def test_only_steps_that_decode_a_few_tokens_read_packed_weights(
    packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, loaded = tiny_loaded(), tiny_loaded()
    rows = torch.bfloat16 if packing == "bfloat16" else torch.float32
    weights: DecodeWeights = packing if packing in ("int8", "int4") else "half"
    monkeypatch.setattr(packed, "_has_fbgemm", lambda: packing == "float16")
    pack_weights(loaded.model.backbone, weights, _taking(packing, rows))
    documents = random_ids(3, 9, 2)  # fewer tokens than rows that are packed
    for one, other in zip(*(vars_of(model.model.encode(documents)) for model in (plain, loaded)), strict=True):
        assert torch.equal(one, other)
    context = random_context(1, 2, 1)
    decodings = [Decoding(model, [context], None, Sampling(max_new_tokens=8)) for model in (plain, loaded)]
    for decoding in decodings:
        decoding.begin()
    for one, other in zip(*(decoding.cache.layers for decoding in decodings), strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)  # type: ignore[arg-type]
    logits = []
    for model, decoding in zip((plain, loaded), decodings, strict=True):
        step = DecodeRows(model.model, 1)
        step.join(decoding.packed, decoding.cache, {}, [0])
        logits.append(step.step([[7, 8]]))
    error = float((logits[0] - logits[1]).norm() / logits[0].norm())
    assert 0 < error < 5 * _ERROR[packing]


def vars_of(encoded: object) -> tuple[torch.Tensor, torch.Tensor]:
    return encoded.router_keys_LCW, encoded.content_LC2GD  # type: ignore[attr-defined]


@pytest.mark.parametrize("packing", QUANTIZED)
def test_a_batch_and_a_question_alone_decode_alike(packing: Literal["int8", "int4"]) -> None:
    loaded = tiny_loaded("qwen3")
    pack_weights(loaded.model.backbone, packing, _taking(packing))
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
    whole = model(ids, memory=QueryStep(), use_cache=False).logits
    merge_lora(model)
    torch.testing.assert_close(model(ids, memory=QueryStep(), use_cache=False).logits, whole, atol=1e-4, rtol=1e-4)
    pack_weights(model.backbone, "int8", _taking("int8"))
    with reading_packed(QueryStep(buffers=DecodeBuffers())):
        packed = model.backbone(ids, memory=QueryStep(), use_cache=False).logits
    assert 0 < float((packed - whole).norm() / whole.norm()) < 0.1
    assert torch.equal(model.encode(documents).content_LC2GD, latents.content_LC2GD)


def test_packing_changes_nothing_that_is_saved() -> None:
    model = tiny_model()
    names, fingerprint = list(model.state_dict()), model.encoder_fingerprint()
    pack_weights(model.backbone, "int4", _taking("int4"))
    assert list(model.state_dict()) == names
    assert model.encoder_fingerprint() == fingerprint


def test_wrong_weights_are_refused_by_name(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    loaded.model.save_pretrained(tmp_path)
    loaded.template.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MemspanError, match="exact, half, int8, int4"):
        load(tmp_path, device="cpu", weights="int2")
    for weights in ("exact", "int4", None):
        assert load(tmp_path, device="cpu", weights=weights).model.decode_weights == (weights or "half")
    with pytest.raises(MemspanError, match="CPU"):
        check_weights("int8", torch.device("cuda"))
