from __future__ import annotations

import copy
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from helpers import random_context, save_backbone
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from memspan.config import TEMPLATES
from memspan.errors import CheckpointError, UnsupportedBackbone
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model import backbones, released
from memspan.model.convert import convert, load
from memspan.model.fingerprint import fingerprint
from memspan.model.modeling import MSAForCausalLM
from memspan.model.released import convert_released, released_config, served_similarity

PARITY = Path(__file__).parent / "parity" / "checkpoint_P4"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_end|>")
ATTENTION = "model.layers.2.self_attn"


def _tokenizer(*markers: str, letters: str = "") -> PreTrainedTokenizerFast:
    """Bytes (or only some letters) and markers as tokens."""
    vocab = {char: index for index, char in enumerate(letters or sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(markers))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A released checkpoint with a tokenizer, to be changed at will."""
    folder = tmp_path / "MSA-4B"
    shutil.copytree(PARITY, folder)
    _tokenizer(*MARKERS).save_pretrained(folder)
    return folder


def _configure(folder: Path, msa: dict[str, Any] | None = None, **fields: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | fields
    values["msa_config"] |= msa or {}
    (folder / "config.json").write_text(json.dumps(values))


def _reweigh(folder: Path, add: dict[str, torch.Tensor] | None = None, remove: tuple[str, ...] = ()) -> None:
    weights = load_file(folder / WEIGHTS) | (add or {})
    save_file({name: weights[name] for name in weights if name not in remove}, folder / WEIGHTS)


def _shard(folder: Path, num_files: int) -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-{number:05d}-of-{num_files:05d}.safetensors" for number in range(1, num_files + 1)]
    where = {key: names[place % num_files] for place, key in enumerate(weights)}
    for name in names:
        save_file({key: weights[key] for key in weights if where[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _expected(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the (unsharded) source by our names."""
    weights = load_file(folder / WEIGHTS)
    return {name.replace("_proj.0.", "_proj."): weight for name, weight in weights.items() if name != "temperature"}


def _only(folder: Path, name: str) -> bool:
    return [path.name for path in folder.iterdir()] == [name]


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["INFONCE", "INFONCE_DECOUPLE"])
def test_a_released_checkpoint_becomes_one_of_ours(source: Path, tmp_path: Path, method: str) -> None:
    _configure(source, {"aux_loss_method": method})
    config = convert(str(source), tmp_path / "ours")
    loaded = load(tmp_path / "ours", dtype="bfloat16", device="cpu")
    for found in (config, loaded.model.config):
        assert (found.layers, found.chunk_size, found.top_k_docs, found.offset) == ((2, 3), 4, 3, 3)
        assert found.similarity == ("cosine" if method == "INFONCE" else "dot")
        assert found.template_spec == TEMPLATES["msa"]
        assert found.router_trained
        assert (found.text_config.name_or_path, found.text_config.model_type) == ("MSA-4B", "qwen3")
    expected = _expected(source)
    found_weights = {name.removeprefix("backbone."): weight for name, weight in loaded.model.named_parameters()}
    assert found_weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found_weights[name], weight.bfloat16()), name
    assert (tmp_path / "ours" / "generation_config.json").read_text() == (source / "generation_config.json").read_text()
    text = "<|im_start|>[3]. Ångström<|object_ref_end|>"
    assert loaded.template.tokenizer(text).input_ids == _tokenizer(*MARKERS)(text).input_ids
    decoding = Decoding(loaded, [random_context(3, 5, 2)], None, Sampling(max_new_tokens=2))
    list(decoding.run())
    assert len(decoding.rows[0].ids) == 2


def test_the_released_template_asks_for_documents_and_opens_a_turn_without_a_role() -> None:
    spec = TEMPLATES["msa"]
    assert spec.document_prefix + "TEXT" + spec.document_suffix == "<|im_start|>[{id}]. TEXT[{id}]<|im_end|>"
    asked = spec.context_prefix + spec.plain_question.format(question="Who?") + spec.context_suffix
    assert asked == (
        "<|im_start|>user\n\nPlease answer the question based on the above historical document information\n\nWho?\n"
        "Please return all documents related to the question\n<|im_end|>\n<|im_start|>"
    )
    assert (spec.round_end, spec.retrieval_end) == ("<|object_ref_end|>", "<End-of-Retrieve>")


def _of_weights(model: MSAForCausalLM) -> str:
    """The encoder fingerprint as it is computed where nothing is stored."""
    config = copy.copy(model.config)
    config.backbone_fingerprint = config.document_fingerprint = None
    model.config, stored = config, model.config
    try:
        return model.encoder_fingerprint()
    finally:
        model.config = stored


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("files", [1, 3])
def test_fingerprints_are_those_of_the_loaded_model(source: Path, tmp_path: Path, dtype: str, files: int) -> None:
    if files > 1:
        _shard(source, files)
    convert(str(source), tmp_path / "ours", dtype=getattr(torch, dtype))
    model = load(tmp_path / "ours", dtype=dtype, device="cpu").model
    assert _of_weights(model) == model.config.encoder_fingerprint
    assert model.config.backbone_fingerprint == fingerprint(model.named_backbone_weights())
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved == json.loads((tmp_path / "ours" / "config.json").read_text())


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("limit", [2**30, 100_000, 1])
def test_shards_are_read_and_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, limit: int
) -> None:
    expected = _expected(source)
    if files > 1:
        _shard(source, files)
    monkeypatch.setattr(released, "_SHARD_BYTES", limit)
    convert(str(source), tmp_path / "ours", dtype=torch.float32)
    written = sorted((tmp_path / "ours").glob("*.safetensors"))
    found = [load_file(file) for file in written]
    assert {name: weight.shape for part in found for name, weight in part.items()} == {
        name: weight.shape for name, weight in expected.items()
    }
    assert (len(written) == 1) == (files == 1 and limit == 2**30)
    assert all(len(part) == 1 or sum(weight.nbytes for weight in part.values()) <= limit for part in found)
    if len(written) > 1:
        index = json.loads((tmp_path / "ours" / INDEX).read_text())
        assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in expected.values())
        where = {name: file.name for file, part in zip(written, found, strict=True) for name in part}
        assert index["weight_map"] == where
    for name, weight in load(tmp_path / "ours", dtype="float32", device="cpu").model.named_parameters():
        assert torch.equal(weight, expected[name.removeprefix("backbone.")]), name


_MEASURED = """
import sys, torch
from pathlib import Path
from memspan.model.released import convert_released, released_config

def high_water():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

for source in map(Path, sys.argv[1:]):  # the first loads what is imported late
    into = source.with_name(source.name + ".out")
    into.mkdir()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = high_water()
    convert_released(source, into, released_config(source), torch.bfloat16)
    print(high_water() - before)
"""


def _large_checkpoint(folder: Path, dtype: torch.dtype) -> int:
    """Write a released checkpoint of some 30 million parameters in 8 files; its size in bytes."""
    folder.mkdir()
    shutil.copy(PARITY / "config.json", folder)
    _configure(folder, {"router_layer_idx": "2,3"}, hidden_size=512, intermediate_size=3072, vocab_size=8192)
    with torch.device("meta"):
        model = MSAForCausalLM(released_config(folder))
    weights = {
        name.removeprefix("backbone.").replace("_proj.", "_proj.0." if "router_" in name else "_proj."): torch.full(
            parameter.shape, 0.5, dtype=dtype
        )
        for name, parameter in model.named_parameters()
    }
    save_file(weights, folder / WEIGHTS)
    _shard(folder, 8)
    return sum(weight.nbytes for weight in weights.values())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's high-water mark")
def test_memory_stays_below_the_size_of_the_checkpoint(tmp_path: Path) -> None:
    """All weights at once as read and as written would be 1.5 times (float32), and copied, twice (bfloat16)."""
    small = Path(shutil.copytree(PARITY, tmp_path / "small"))
    sizes = {name: _large_checkpoint(tmp_path / name, getattr(torch, name)) for name in ("float32", "bfloat16")}
    folders = [str(folder) for folder in (small, *(tmp_path / name for name in sizes))]
    done = subprocess.run([sys.executable, "-c", _MEASURED, *folders], capture_output=True, text=True, check=True)
    _, *peaks = map(int, done.stdout.split())
    ratios = {name: peak / size for (name, size), peak in zip(sizes.items(), peaks, strict=True)}
    assert max(ratios.values()) < 1.2, ratios
    assert min(peaks) > 10 * 2**20, "else nothing was measured"


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, expected",
    [
        ("INFONCE", "cosine"),
        ("INFONCE_FOCAL", "dot"),
        ("INFONCE_DECOUPLE", "dot"),
        ("INFONCE_DECOUPLE_FOCAL", "dot"),
        ("BCE", "dot"),
    ],
)
def test_only_the_method_named_infonce_is_served_by_cosine(source: Path, method: str, expected: str) -> None:
    assert served_similarity(method) == expected
    _configure(source, {"aux_loss_method": method})
    assert released_config(source).similarity == expected


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_similarity_can_be_named(source: Path, tmp_path: Path, similarity: str) -> None:
    assert convert(str(source), tmp_path / "ours", similarity=similarity).similarity == similarity
    assert load(tmp_path / "ours").model.config.similarity == similarity
    with pytest.raises(ValueError, match="similarity must be one of cosine, dot, not 'euclid'"):
        convert(str(source), tmp_path / "other", similarity="euclid")


def test_the_similarity_of_a_plain_model_is_cosine_unless_named(tmp_path: Path) -> None:
    save_backbone(tmp_path / "plain")
    assert convert(str(tmp_path / "plain"), tmp_path / "a").similarity == "cosine"
    assert convert(str(tmp_path / "plain"), tmp_path / "b", similarity="dot").similarity == "dot"
    assert (
        convert(str(tmp_path / "plain"), tmp_path / "c").chunk_size,
        load(tmp_path / "c").model.config.top_k_docs,
    ) == (
        64,
        16,
    )


@pytest.mark.parametrize("value", ["2,3", " 3, 2", [2, 3], [3, 2, 3]])
def test_router_layers_are_a_string_or_a_list(source: Path, value: Any) -> None:
    _configure(source, {"router_layer_idx": value})
    assert released_config(source).layers == (2, 3)


def test_router_layers_are_put_in_order(source: Path) -> None:
    _configure(source, {"router_layer_idx": "8,1"}, num_hidden_layers=10)
    assert released_config(source).layers == (1, 8)


def test_all_layers_may_route(source: Path) -> None:
    _configure(source, {"router_layer_idx": "all"})
    assert released_config(source).layers == (0, 1, 2, 3)


def test_sliding_windows_are_ignored_as_the_released_attention_ignores_them(source: Path) -> None:
    windows = ["sliding_attention"] * 4
    _configure(source, use_sliding_window=True, sliding_window=2, max_window_layers=0, layer_types=windows)
    text = released_config(source).text_config
    assert text.sliding_window is None and set(text.layer_types) == {"full_attention"}


def test_the_backbones_own_settings_are_kept(source: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}
    _configure(source, rope_scaling=scaling, rope_theta=5e5, rms_norm_eps=1e-5, eos_token_id=7, attention_bias=True)
    text = released_config(source).text_config
    assert text.rope_parameters == scaling | {"rope_theta": 5e5}
    assert (text.rms_norm_eps, text.eos_token_id, text.attention_bias) == (1e-5, 7, True)


@pytest.mark.parametrize(
    "setting, value, reason",
    [
        ("head_reduce_method", "max", "head_reduce_method 'max' .* only 'mean'"),
        ("query_reduce_method", "last", "query_reduce_method 'last' .* only 'max'"),
        ("chunk_reduce_method", "mean", "chunk_reduce_method 'mean' .* only 'max'"),
        ("decouple_pooling_mode", "max", "decouple_pooling_mode 'max' .* only 'mean'"),
        ("decouple_router", False, "decouple_router False .* only True"),
        ("decouple_router", None, "decouple_router None .* only True"),
        ("aux_loss_method", "TRIPLET", "aux_loss_method 'TRIPLET' is none of INFONCE, "),
        ("aux_loss_method", "infonce", "aux_loss_method 'infonce' is none of INFONCE, "),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    source: Path, tmp_path: Path, setting: str, value: Any, reason: str
) -> None:
    _configure(source, {setting: value})
    with pytest.raises(UnsupportedBackbone, match=reason):
        convert(str(source), tmp_path / "ours")
    assert _only(tmp_path, "MSA-4B")


@pytest.mark.parametrize(
    "setting, value, reason",
    [
        ("router_layer_idx", "2,4", r"config.json: msa_layers must be .* 0..3"),
        ("router_layer_idx", "two", "cannot be read as a released MSA checkpoint"),
        ("router_layer_idx", None, "cannot be read as a released MSA checkpoint"),
        ("pooling_kernel_size", 0, "chunk_size must be at least 1"),
        ("pooling_kernel_size", "4", "pooling_kernel_size must be a whole number"),
        ("top_k_docs", 2.5, "top_k_docs must be a whole number"),
    ],
)
def test_malformed_settings_are_refused(source: Path, tmp_path: Path, setting: str, value: Any, reason: str) -> None:
    _configure(source, {setting: value})
    with pytest.raises(CheckpointError, match=reason):
        convert(str(source), tmp_path / "ours")


@pytest.mark.parametrize(
    "lost", ["msa_config", "num_hidden_layers", "top_k_docs", "aux_loss_method", "router_layer_idx"]
)
def test_missing_settings_are_named(source: Path, lost: str) -> None:
    values = json.loads((source / "config.json").read_text())
    (values if lost in values else values["msa_config"]).pop(lost)
    (source / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"lacks '{lost}'"):
        released_config(source)


@pytest.mark.parametrize(
    "asked",
    [{"chunk_size": 8}, {"top_k_docs": 2}, {"msa_layers": [3]}, {"template": "chatml"}],
    ids=lambda a: next(iter(a)),
)
def test_other_settings_than_it_was_trained_with_are_refused(
    source: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(
        ValueError, match=rf"{next(iter(asked))} .* was asked for, but .* trained with .*; leave it out"
    ):
        convert(str(source), tmp_path / "ours", **asked)
    assert _only(tmp_path, "MSA-4B")
    same = {"chunk_size": 4, "top_k_docs": 3, "msa_layers": (2, 3), "template": "msa", "max_document_tokens": 99}
    assert convert(str(source), tmp_path / "ours", **same).max_document_tokens == 99


# --- keys -----------------------------------------------------------------------------------------------------------


def test_keys_that_follow_from_the_config_are_dropped(source: Path, tmp_path: Path) -> None:
    expected = _expected(source)
    frequencies = torch.ones(8)
    names = ("model.rotary_emb.inv_freq", f"{ATTENTION}.rotary_emb.inv_freq", "b")
    _reweigh(source, {name: frequencies.clone() for name in names})
    convert(str(source), tmp_path / "ours")
    assert load_file(tmp_path / "ours" / WEIGHTS).keys() == expected.keys()


@pytest.mark.parametrize(
    "key, shape, error, reason",
    [
        (f"{ATTENTION}.router_q_proj.1.weight", (64, 64), UnsupportedBackbone, "more than one linear map"),
        (f"{ATTENTION}.router_k_proj.2.weight", (32, 32), UnsupportedBackbone, "more than one linear map"),
        (f"{ATTENTION}.router_q_proj.0.bias", (64,), UnsupportedBackbone, "with a bias cannot be served"),
        ("model.layers.1.self_attn.router_q_proj.0.weight", (64, 64), UnsupportedBackbone, "router_layer_idx does not"),
        (f"{ATTENTION}.router_q_proj.weight", (64, 64), UnsupportedBackbone, "not laid out as the released routers"),
        ("model.memory_tokens", (4, 64), CheckpointError, "no weight of this model"),
        (f"{ATTENTION}.q_proj.bias", (64,), CheckpointError, "no weight of this model"),
        ("model.norm.weight", (32,), CheckpointError, r"is \(32,\); its config says \(64,\)"),
        (f"{ATTENTION}.router_q_proj.0.weight", (32, 64), CheckpointError, r"its config says \(64, 64\)"),
    ],
)
def test_every_other_key_is_refused_by_name(
    source: Path, tmp_path: Path, key: str, shape: tuple[int, ...], error: type[Exception], reason: str
) -> None:
    _reweigh(source, {key: torch.zeros(shape)})
    with pytest.raises(error, match=reason) as caught:
        convert(str(source), tmp_path / "ours")
    assert key in str(caught.value)
    assert _only(tmp_path, "MSA-4B")


@pytest.mark.parametrize("lost", [HEAD, EMBEDDING, f"{ATTENTION}.router_k_proj.0.weight", f"{ATTENTION}.k_norm.weight"])
def test_a_missing_weight_is_named(source: Path, tmp_path: Path, lost: str) -> None:
    _reweigh(source, remove=(lost,))
    with pytest.raises(CheckpointError, match=r"lacks 1 weights .*fetch it again") as caught:
        convert(str(source), tmp_path / "ours")
    assert lost.replace(".0.", ".") in str(caught.value)


@pytest.mark.parametrize("stored", [True, False])
def test_a_tied_head_is_the_embedding_whether_stored_or_not(source: Path, tmp_path: Path, stored: bool) -> None:
    _configure(source, tie_word_embeddings=True)
    embedding = load_file(source / WEIGHTS)[EMBEDDING]
    _reweigh(source, {HEAD: embedding.clone()}, remove=() if stored else (HEAD,))
    convert(str(source), tmp_path / "ours", dtype=torch.float32)
    assert HEAD not in load_file(tmp_path / "ours" / WEIGHTS)
    model = load(tmp_path / "ours", dtype="float32", device="cpu").model
    assert torch.equal(model.get_output_embeddings().weight, embedding)  # type: ignore[arg-type]
    assert _of_weights(model) == model.config.encoder_fingerprint


def test_a_head_said_to_be_tied_that_is_not_is_refused(source: Path, tmp_path: Path) -> None:
    _configure(source, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head.weight of its own.*set tie_word_embeddings to false"):
        convert(str(source), tmp_path / "ours")


def test_quantised_weights_are_refused(source: Path, tmp_path: Path) -> None:
    _reweigh(source, {"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"model.norm.weight .* is quantized \(I8\)"):
        convert(str(source), tmp_path / "ours")


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantised_weights_are_refused_whatever_the_config_says_of_them(
    method: str, source: Path, tmp_path: Path
) -> None:
    _reweigh(source, {"model.norm.weight": torch.ones(64, dtype=torch.int32)})
    _configure(source, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(CheckpointError, match=r"model.norm.weight .* is quantized \(I32\)"):
        convert(str(source), tmp_path / "ours")


def test_damaged_weights_are_refused(source: Path, tmp_path: Path) -> None:
    content = (source / WEIGHTS).read_bytes()
    for kept in (len(content) // 2, 4):
        (source / WEIGHTS).write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"model.safetensors is missing or damaged"):
            convert(str(source), tmp_path / "ours")
    (source / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing or damaged"):
        convert(str(source), tmp_path / "ours")
    assert _only(tmp_path, "MSA-4B")


def test_damaged_shards_are_refused(source: Path, tmp_path: Path) -> None:
    _shard(source, 2)
    first, second = sorted(source.glob("model-*.safetensors"))
    save_file(load_file(first) | {"temperature": torch.ones(()), "model.norm.weight": torch.ones(64)}, first)
    save_file(load_file(second) | {"model.norm.weight": torch.ones(64)}, second)
    with pytest.raises(CheckpointError, match=r"model.norm.weight is both in"):
        convert(str(source), tmp_path / "ours")
    second.unlink()
    with pytest.raises(CheckpointError, match=f"{second.name} is missing or damaged"):
        convert(str(source), tmp_path / "ours")
    (source / INDEX).write_text("[]")
    with pytest.raises(CheckpointError, match=rf"{INDEX} is damaged"):
        convert(str(source), tmp_path / "ours")
    assert _only(tmp_path, "MSA-4B")


# --- tokenizer, saving, sources -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", MARKERS[1:])
def test_a_tokenizer_without_a_marker_is_refused_by_its_name(source: Path, tmp_path: Path, lost: str) -> None:
    _tokenizer(*(marker for marker in MARKERS if marker != lost)).save_pretrained(source)
    with pytest.raises(CheckpointError, match=r"the tokenizer lacks .*put the released tokenizer files") as caught:
        convert(str(source), tmp_path / "ours")
    assert lost in str(caught.value)
    assert _only(tmp_path, "MSA-4B")


def test_the_end_of_retrieval_may_be_a_token_or_text_but_must_be_spelled(source: Path, tmp_path: Path) -> None:
    _tokenizer(*MARKERS, "<End-of-Retrieve>").save_pretrained(source)
    convert(str(source), tmp_path / "ours")
    _tokenizer(*MARKERS, letters="abcdefgh").save_pretrained(source)
    with pytest.raises(CheckpointError, match="the tokenizer lacks <End-of-Retrieve>"):
        convert(str(source), tmp_path / "again")


def test_a_checkpoint_without_tokenizer_is_refused_and_its_model_can_be_converted_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer; put the released tokenizer files beside"):
        convert(str(PARITY), tmp_path / "ours")
    assert not list(tmp_path.iterdir())
    convert_released(PARITY, tmp_path, released_config(PARITY), torch.float32)
    assert MSAForCausalLM.from_pretrained(tmp_path).config.router_trained


def test_a_damaged_tokenizer_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .* is damaged"):
        convert(str(source), tmp_path / "ours")


def _full(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def _full_safetensors(*args: Any, **kwargs: Any) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    "owner, attribute, fail",
    [
        (released, "save_file", _full_safetensors),
        (PreTrainedTokenizerFast, "save_pretrained", _full),
        (shutil, "copyfile", _full),
    ],
    ids=["weights", "tokenizer", "settings"],
)
def test_a_failed_write_leaves_nothing_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, attribute: str, fail: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, fail)
        with pytest.raises(CheckpointError, match=r"cannot write .*ours.*No space left"):
            convert(str(source), tmp_path / "ours")
    assert _only(tmp_path, "MSA-4B")
    convert(str(source), tmp_path / "ours")
    assert load(tmp_path / "ours").path == tmp_path / "ours"


def test_loading_one_unconverted_says_to_convert_it(source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a released MSA checkpoint; run: memspan convert .*MSA-4B --out"):
        load(source)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """An empty local cache, and a hub that refuses every connection; the connections that were tried."""
    tried: list[Any] = []

    def refuse(address: Any, *args: Any, **kwargs: Any) -> socket.socket:
        tried.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tried


def _cache(folder: Path, hub_id: str) -> Path:
    """Put a folder into the local cache of the hub under an id."""
    repository, revision = folder.parent / "hub" / f"models--{hub_id.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    return folder.rename(repository / "snapshots" / revision)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_id_in_the_local_cache_is_converted_without_the_hub(
    source: Path, tmp_path: Path, hub: list[Any], monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _cache(source, "EverMind-AI/MSA-4B")
    config = convert("EverMind-AI/MSA-4B", tmp_path / "ours")
    assert config.router_trained and config.text_config.name_or_path == "EverMind-AI/MSA-4B"
    assert load(tmp_path / "ours").model.config.layers == (2, 3)
    assert hub == ([] if offline else [("huggingface.co", 443)])


@pytest.mark.parametrize("hub_id", ["EverMind-AI/MSA-4B", "no/such"])
def test_an_unknown_hub_id_says_that_the_hub_cannot_be_reached(tmp_path: Path, hub: list[Any], hub_id: str) -> None:
    with pytest.raises(CheckpointError, match=f"{hub_id} is not in the local Hugging Face cache and the hub cannot"):
        convert(hub_id, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_plain_hub_id_is_converted_as_before(tmp_path: Path, hub: list[Any]) -> None:
    save_backbone(tmp_path / "plain")
    _cache(tmp_path / "plain", "some/llama")
    config = convert("some/llama", tmp_path / "ours")
    assert (config.text_config.model_type, config.router_trained) == ("llama", False)


def test_files_that_cannot_be_fetched_are_an_error_of_the_hub(
    source: Path, tmp_path: Path, hub: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: Any, **kwargs: Any) -> str:
        raise RuntimeError("connection lost\nand much advice")

    _cache(source, "EverMind-AI/MSA-4B")
    monkeypatch.setattr(backbones, "snapshot_download", lost)
    with pytest.raises(CheckpointError, match=r"cannot fetch EverMind-AI/MSA-4B: connection lost; try again"):
        convert("EverMind-AI/MSA-4B", tmp_path / "ours")
