from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from helpers import (
    ENDOFTEXT,
    FAMILIES,
    IM_END,
    VOCAB,
    WINDOW,
    TensorMemory,
    ask,
    random_context,
    random_ids,
    tiny_backbone,
    tiny_config,
    tiny_model,
)
from safetensors.torch import load_file
from transformers import DynamicCache

from memspan.config import TEMPLATES, MSAConfig
from memspan.errors import UnsupportedBackbone
from memspan.model.memory_api import QueryStep
from memspan.model.modeling import MSAForCausalLM, attention_modules, is_router, routed_modules
from memspan.ops import naive
from memspan.ops.scoring import fold_keys

ATOL = 1e-5


# --- encoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_encode_keeps_the_literal_means_of_keys_values_and_router_keys(family: str, similarity: str) -> None:
    """K (after norm and RoPE) and V as the plain backbone caches them; router keys from the attention's own input."""
    backbone, model = tiny_backbone(family), tiny_model(family, similarity=similarity)
    P, layers = model.config.chunk_size, model.config.layers
    inputs: dict[int, torch.Tensor] = {}
    for layer, attention in zip(layers, attention_modules(backbone, layers), strict=True):
        attention.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: inputs.update({layer: kwargs.get("hidden_states", *args[:1])[0]}),
            with_kwargs=True,
        )
    for document in random_ids(1, 3, 4, 2 * WINDOW + 3):
        cache = DynamicCache()
        ids = torch.tensor([document])
        with torch.no_grad():
            backbone(ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
            encoded = model.encode([document])
        assert encoded.num_chunks == (-(-len(document) // P),)
        for row, (layer, attention) in enumerate(zip(layers, routed_modules(model), strict=True)):
            for kind, cached in enumerate((cache.layers[layer].keys, cache.layers[layer].values)):
                expected = naive.pool_chunks(cached[0].transpose(0, 1).flatten(1), P)
                found = encoded.content_LC2GD[row, :, kind].flatten(1)
                torch.testing.assert_close(found, expected, rtol=0, atol=ATOL)
            projected = inputs[layer] @ attention.router_k_proj.weight.T
            expected = naive.pool_chunks(projected, P).unflatten(-1, (2, 16))
            if similarity == "cosine":
                expected = expected / expected.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(encoded.router_keys_LCW[row], expected.flatten(1), rtol=0, atol=ATOL)


def test_gradients_of_latents_reach_router_keys_msa_keys_values_and_embeddings() -> None:
    model = tiny_model("llama")
    encoded = model.encode(random_ids(5, 9))
    (encoded.router_keys_LCW * torch.randn_like(encoded.router_keys_LCW)).sum().backward(retain_graph=True)
    names = [f"model.layers.{layer}.self_attn.router_k_proj.weight" for layer in (2, 3)] + ["model.embed_tokens.weight"]
    for name in names:
        assert model.backbone.get_parameter(name).grad.abs().max() > 0, name
    key = model.backbone.get_parameter("model.layers.3.self_attn.k_proj.weight")
    assert key.grad is None, "the last layer's keys do not shape router keys"
    (encoded.content_LC2GD * torch.randn_like(encoded.content_LC2GD)).sum().backward()
    for layer in (2, 3):
        for name in ("k_proj", "v_proj"):
            weight = model.backbone.get_parameter(f"model.layers.{layer}.self_attn.{name}.weight")
            assert weight.grad.abs().max() > 0, (layer, name)


def test_gradient_checkpointing_of_questions_gives_the_same_gradients() -> None:
    documents, context = random_ids(5, 9, 3), random_context(3, 5, 4)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("qwen3").train()
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        memory = TensorMemory(model, model.encode(documents))
        (logits,) = ask(model, [context], memory)
        logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_gradient_checkpointing_of_encode_gives_the_same_gradients() -> None:
    documents = random_ids(5, 9, 3)
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("qwen3").train()
        if checkpointing:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        encoded = model.encode(documents)
        torch.manual_seed(7)
        weights = torch.randn_like(encoded.router_keys_LCW), torch.randn_like(encoded.content_LC2GD)
        ((encoded.router_keys_LCW * weights[0]).sum() + (encoded.content_LC2GD * weights[1]).sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    assert any("router_k_proj" in name for name in plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("documents", [[], [[]], [[5, 6], []]])
def test_encode_refuses_what_is_empty(documents: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="document"):
        tiny_model().encode(documents)


def test_encoding_in_bfloat16_keeps_router_keys_in_unit_length() -> None:
    encoded = tiny_model("qwen3", dtype=torch.bfloat16).encode(random_ids(5, 9))
    norms = encoded.router_keys_LCW.unflatten(-1, (2, 16)).float().norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-3)
    assert encoded.content_LC2GD.dtype == torch.bfloat16


# --- asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(1, 1, 1), (3, 2)])
def test_a_step_that_leaves_out_padding_and_prefix_means_that_there_is_none(steps: tuple[int, ...]) -> None:
    model = tiny_model("qwen3")
    memory = TensorMemory(model, model.encode(random_ids(9, 3, 8)))
    context = random_context(0, 6, 7)
    ids = torch.tensor([context.ids])
    positions = torch.arange(ids.shape[1])[None] + model.config.position_offset
    with torch.no_grad():
        (expected,) = ask(model, [context], memory)
        cache, found, start = DynamicCache(), [], 0
        first = QueryStep(routes_BT=torch.arange(13 - sum(steps))[None] < 6, memory=memory)
        for size in (13 - sum(steps), *steps):
            new = slice(start, start + size)
            step = QueryStep(retrieved=first.retrieved) if start else first
            found.append(model(ids[:, new], position_ids=positions[:, new], past_key_values=cache, memory=step).logits)
            start += size
    torch.testing.assert_close(torch.cat(found, dim=1)[0], expected, rtol=0, atol=ATOL)


# --- checkpoints and fingerprints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])  # untied and tied embeddings
def test_a_saved_and_loaded_model_is_bit_for_bit_the_same(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=dtype, chunk_size=3, msa_layers=[1, 3])
    model.save_pretrained(tmp_path)
    loaded = MSAForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    saved, again = model.state_dict(), loaded.state_dict()
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    assert (loaded.config.chunk_size, loaded.config.layers) == (3, (1, 3))
    documents, contexts = random_ids(9, 5), [random_context(3, 20, 4), random_context(3, 2, 4)]
    with torch.no_grad():
        for one, other in zip(
            ask(model, contexts, TensorMemory(model, model.encode(documents))),
            ask(loaded, contexts, TensorMemory(loaded, loaded.encode(documents))),
            strict=True,
        ):
            assert torch.equal(one, other)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "phi3"])
def test_a_checkpoint_holds_the_backbones_own_key_names(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    other = tiny_backbone(family, seed=99)
    missing, unexpected = other.load_state_dict(on_disk, strict=False)
    assert set(missing) <= {"lm_head.weight"} and (not missing or model.config.tie_word_embeddings)
    layers = model.config.layers
    assert sorted(unexpected) == sorted(
        f"model.layers.{layer}.self_attn.router_{kind}_proj.weight" for layer in layers for kind in "qk"
    )
    other.tie_weights()
    ids = torch.tensor(random_ids(9))
    expected = tiny_backbone(family)(ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.equal(other(ids, attention_mask=torch.ones_like(ids)).logits, expected)


def test_fingerprints_survive_saving_and_loading(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    model.save_pretrained(tmp_path)
    loaded = MSAForCausalLM.from_pretrained(tmp_path)
    assert loaded.encoder_fingerprint() == model.encoder_fingerprint() == loaded.config.encoder_fingerprint
    loaded.save_pretrained(tmp_path / "again")
    again = MSAConfig.from_pretrained(tmp_path / "again")
    assert again.backbone_fingerprint == loaded.config.backbone_fingerprint == model.config.backbone_fingerprint
    assert again.backbone_fingerprint is not None


def test_the_encoder_fingerprint_changes_with_what_shapes_latents_and_with_nothing_else() -> None:
    document = random_ids(11)

    def changed(edit) -> tuple[bool, bool]:
        """Whether the fingerprint changed, and whether latents did."""
        model = tiny_model("qwen3")
        before, latents = model.encoder_fingerprint(), model.encode(document)
        edit(model)
        after = model.encode(document)
        same = after.num_chunks == latents.num_chunks and torch.equal(after.content_LC2GD, latents.content_LC2GD)
        same = same and torch.equal(after.router_keys_LCW, latents.router_keys_LCW)
        return model.encoder_fingerprint() != before, not same

    def nudge(name: str):
        def edit(model: MSAForCausalLM) -> None:
            model.backbone.get_parameter(name).data.view(-1)[-40:] += 0.5  # the end: all of it counts

        return edit

    shaping = ["self_attn.k_proj", "self_attn.router_k_proj", "self_attn.v_proj"]
    for name in [f"model.layers.3.{leaf}.weight" for leaf in shaping] + ["model.layers.0.mlp.down_proj.weight"]:
        assert changed(nudge(name)) == (True, True), name
    assert changed(nudge("model.layers.3.self_attn.router_q_proj.weight")) == (False, False)
    assert changed(nudge("lm_head.weight")) == (True, False)  # it is of the backbone, whose fingerprint counts whole
    assert changed(lambda model: setattr(model.config, "chunk_size", 5)) == (True, True)
    assert changed(lambda model: setattr(model.config, "similarity", "dot")) == (True, True)
    assert changed(lambda model: setattr(model.config, "top_k_docs", 5)) == (False, False)


def test_the_encoder_fingerprint_covers_the_documents_template_and_not_the_questions() -> None:
    chatml = dataclasses.asdict(TEMPLATES["chatml"])
    fingerprint = tiny_model(template=chatml).encoder_fingerprint()
    for field, value, same in [
        ("document_prefix", "[{id}] ", False),
        ("document_suffix", "<|im_end|>", False),
        ("context_suffix", "\nAnswer:", True),
        ("stops", ("x",), True),
    ]:
        edited = tiny_model(template={**chatml, field: value}).encoder_fingerprint()
        assert (edited == fingerprint) is same, field


def test_the_encoder_fingerprint_covers_what_the_backbones_config_computes_without_weights() -> None:
    model, document = tiny_model("qwen3"), random_ids(11)
    backbone_config = tiny_config("qwen3")
    backbone_config.rope_parameters = {**backbone_config.rope_parameters, "rope_theta": 77.0}
    other = MSAForCausalLM(MSAConfig(backbone_config=backbone_config, chunk_size=4, top_k_docs=2)).eval()
    other.load_state_dict(model.state_dict())
    assert not torch.allclose(other.encode(document).content_LC2GD, model.encode(document).content_LC2GD, atol=1e-2)
    assert other.encoder_fingerprint() != model.encoder_fingerprint()


# --- the wrapper as a Hugging Face model ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_generate_writes_what_the_backbone_writes(family: str) -> None:
    backbone, model = tiny_backbone(family), tiny_model(family)
    T = 21
    ids = torch.tensor([[ENDOFTEXT] * (T - n) + s for n, s in zip((T, 5), random_ids(T, 5), strict=True)])
    mask = torch.tensor([[0] * (T - n) + [1] * n for n in (T, 5)])
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": ENDOFTEXT, "eos_token_id": IM_END}
    expected = backbone.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(model.generate(ids, attention_mask=mask, **settings), expected)


def test_a_static_cache_is_refused() -> None:
    model, ids = tiny_model("llama"), torch.tensor(random_ids(9))
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    with pytest.raises(ValueError, match="DynamicCache"):
        model.generate(ids, cache_implementation="static", disable_compile=True, **settings)


def test_a_model_with_more_tokens_saves_and_loads(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(VOCAB + 8)
    model.save_pretrained(tmp_path)
    loaded = MSAForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == VOCAB + 8
    ids = torch.tensor([[VOCAB + 7, 5]])
    assert loaded(ids).logits.shape[-1] == VOCAB + 8
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_deep_copy_computes_the_same_and_shares_nothing() -> None:
    model = tiny_model("qwen3")
    twin = copy.deepcopy(model)
    documents, contexts = random_ids(9, 5), [random_context(3, 5, 4)]
    with torch.no_grad():
        expected = ask(model, contexts, TensorMemory(model, model.encode(documents)))[0]
        assert torch.equal(ask(twin, contexts, TensorMemory(twin, twin.encode(documents)))[0], expected)
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(ask(twin, contexts, TensorMemory(twin, twin.encode(documents)))[0], expected)


def test_adding_memory_takes_the_backbones_weights_over_and_draws_routers_from_the_seed() -> None:
    backbone = tiny_backbone("llama")
    weights = dict(backbone.named_parameters())
    config = MSAConfig(backbone_config=copy.deepcopy(backbone.config), msa_layers=[1, 3])
    one, same, other = (MSAForCausalLM.from_backbone(backbone, config, seed=seed) for seed in (5, 5, 6))
    routers = [name for name, _ in one.named_parameters() if is_router(name)]
    assert len(routers) == 4
    for name in routers:
        assert torch.equal(one.get_parameter(name), same.get_parameter(name)), name
        assert not torch.equal(one.get_parameter(name), other.get_parameter(name)), name
        assert 0.08 < one.get_parameter(name).std() < 0.12, "the backbone's initializer_range, 0.1"
    for name, parameter in one.named_backbone_weights():
        assert parameter is weights[name], f"{name} is shared, not copied"


def test_a_layer_without_softmax_attention_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedBackbone, match="layer 9 of LlamaForCausalLM"):
        attention_modules(tiny_backbone("llama"), [9])


def test_an_attention_argument_that_would_be_ignored_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedBackbone, match="softcap"):
        tiny_model("llama")(torch.tensor(random_ids(4)), softcap=30.0)


def test_the_router_key_of_a_pooled_input_is_the_pooled_router_key() -> None:
    # The rewrite in RoutedAttention: pooling and a linear map commute, normalising and pooling do not.
    model = tiny_model("llama", chunk_size=3)
    projection = routed_modules(model)[0].router_k_proj
    hidden_TF = torch.randn(10, 64)
    pooled_first = projection(naive.pool_chunks(hidden_TF, 3)).unflatten(-1, (2, 16))
    pooled_last = naive.pool_chunks(projection(hidden_TF), 3).unflatten(-1, (2, 16))
    torch.testing.assert_close(fold_keys(pooled_first, "cosine"), fold_keys(pooled_last, "cosine"), rtol=0, atol=1e-6)


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"msa_layers": []}, "msa_layers"),
        ({"msa_layers": [3, 2]}, "msa_layers"),
        ({"msa_layers": [2, 2]}, "msa_layers"),
        ({"msa_layers": [-1, 2]}, "msa_layers"),
        ({"msa_layers": [2, 4]}, "0..3"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"top_k_docs": 0}, "top_k_docs"),
        ({"max_document_tokens": 0}, "max_document_tokens"),
        ({"position_offset": -1}, "position_offset"),
        ({"similarity": "euclid"}, "cosine, dot"),
        ({"template": {**dataclasses.asdict(TEMPLATES["chatml"]), "document_prefix": "doc "}}, "{id}"),
        ({"template": {**dataclasses.asdict(TEMPLATES["chatml"]), "plain_question": "?"}}, "{question}"),
    ],
)
def test_a_wrong_configuration_is_refused_when_it_is_built(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace(".", r"\.")):
        MSAConfig(backbone_config=tiny_config("llama"), **settings)


def test_defaults_are_the_latter_half_of_the_layers_and_an_offset_of_top_k() -> None:
    config = MSAConfig(backbone_config=tiny_config("llama"), top_k_docs=7)
    assert config.layers == (2, 3)
    assert config.position_offset == 7
    assert config.template_spec == TEMPLATES["chatml"]


def test_a_saved_configuration_reads_back_equal(tmp_path: Path) -> None:
    template = dataclasses.asdict(TEMPLATES["plain"])
    config = MSAConfig(
        backbone_config=tiny_config("gemma3_text"), msa_layers=[1], chunk_size=3, position_offset=0, template=template
    )
    config.save_pretrained(tmp_path)
    loaded = MSAConfig.from_pretrained(tmp_path)
    assert type(loaded.text_config) is type(config.text_config)
    assert loaded.text_config.layer_types == config.text_config.layer_types
    for name in ("layers", "chunk_size", "top_k_docs", "position_offset", "similarity", "template_spec", "head_dim"):
        assert getattr(loaded, name) == getattr(config, name), name


def test_turning_the_memory_attention_off_is_refused() -> None:
    with pytest.raises(ValueError, match="memspan"):
        tiny_model("llama").set_attn_implementation("sdpa")


def test_a_mask_beside_a_memory_step_is_refused() -> None:
    model, ids = tiny_model("llama"), torch.tensor(random_ids(5))
    with pytest.raises(ValueError, match="attention_mask"):
        model(ids, attention_mask=torch.ones_like(ids), memory=QueryStep())
