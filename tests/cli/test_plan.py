"""`memspan estimate --target`: what a memory takes on machines that are not here."""

from __future__ import annotations

import math
import re
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import failed, memspan
from helpers import add_latents, random_latents, tiny_loaded, tiny_manifest
from transformers import AutoConfig, AutoModelForCausalLM

from memspan.bank.bank import MemoryBank
from memspan.bank.estimate import estimate
from memspan.bank.synthetic import SHAPES, disk_bytes, synthetic_manifest, write_synthetic
from memspan.bench import plan as module
from memspan.bench.plan import (
    KINDS,
    MOST_MAPPINGS,
    SPLIT_TOKENS_PER_SECOND,
    CapacityPlan,
    PlannedModel,
    parse_gpus,
    parse_tokens,
    plan,
)
from memspan.errors import PlanError
from memspan.types import Document

QWEN = PlannedModel.of_shape("qwen3-4b")


def _plan(tokens: str, gpus: str, price: float | None = None, model: PlannedModel = QWEN) -> CapacityPlan:
    return plan(model, parse_tokens(tokens), *parse_gpus(gpus), price)


# --- what is given ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        *[("1B", 10**9), ("1b", 10**9), (" 100M ", 10**8), ("2.5B", 25 * 10**8), ("0.1B", 10**8), ("64k", 64_000)],
        *[("1", 1), ("1_000_000", 10**6), ("1,000", 1000), ("1T", 10**12), ("1.000001M", 1_000_001), ("007", 7)],
    ],
)
def test_a_target_is_a_number_of_tokens(text: str, tokens: int) -> None:
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize(
    "text",
    ["0", "0B", "0.0K", "-1B", "", " ", "B", "1BB", "1 B C", "1e9", "nan", "inf", "1.5", "0.1", ".5B", "1.0001K", "٣M"],
)
def test_a_target_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(PlanError, match="--target is a number of tokens, at least 1"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("8xH100", (8, "H100")), ("8Xh100", (8, "H100")), (" 16 x h200 ", (16, "H200")), ("H100", (1, "H100"))],
        *[("4090", (1, "4090")), ("2x4090", (2, "4090")), ("3×L40S", (3, "L40S")), ("2*a100-80g", (2, "A100-80G"))],
        *[("cpu", (1, "cpu")), ("4xCPU", (4, "cpu")), ("008xB200", (8, "B200"))],
    ],
)
def test_machines_are_a_number_and_a_kind(text: str, expected: tuple[int, str]) -> None:
    count, kind = parse_gpus(text)
    assert (count, kind.name) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "8x",
        "x",
        "xH100",
        "0xH100",
        "-1xH100",
        "1.5xH100",
        "8xA100",
        "8xH100,2xL40S",
        "8 H100",
        "H100x8",
        "gpu",
    ],
)
def test_an_unknown_kind_or_number_names_the_kinds(text: str) -> None:
    with pytest.raises(PlanError, match=r"the kinds are H100, H200, A100-80G, L40S, 4090, B200, cpu; not '"):
        parse_gpus(text)


@pytest.mark.parametrize("price", [-1.0, -0.01, math.nan, math.inf, -math.inf])
def test_a_price_that_is_none_is_an_error(price: float) -> None:
    with pytest.raises(PlanError, match="--price is what an hour of one GPU costs"):
        _plan("1B", "8xH100", price)


# --- against what is counted ------------------------------------------------------------------------------------------


def test_a_plan_by_files_is_their_estimate_and_scales_with_the_target() -> None:
    loaded = tiny_loaded(max_document_tokens=64)
    counted = estimate(loaded, [Document(str(n), "the otter of Rome " * (1 + n)) for n in range(9)])
    model = PlannedModel.of(loaded)
    one = plan(model, counted.tokens, 1, KINDS["cpu"], sample=counted)
    assert (one.documents, one.chunks) == (counted.documents, counted.chunks)
    assert (one.latent_bytes, one.catalog_bytes) == (counted.latent_bytes, counted.catalog_bytes)
    assert one.computing_seconds == pytest.approx(counted.seconds), "this machine is a machine without a GPU"
    many = plan(model, 1000 * counted.tokens, 1, KINDS["cpu"], sample=counted)
    assert (many.documents, many.chunks) == (1000 * counted.documents, 1000 * counted.chunks)
    on_gpu = plan(model, counted.tokens, 1, KINDS["h100"], sample=counted)
    assert on_gpu.computing_seconds == plan(model, counted.tokens, 1, KINDS["h100"]).computing_seconds
    unknown = plan(model, counted.tokens, 1, KINDS["cpu"], sample=replace(counted, tokens_per_second=0.0))
    assert unknown.computing_seconds == plan(model, counted.tokens, 1, KINDS["cpu"]).computing_seconds
    with pytest.raises(PlanError, match="the files hold no text"):
        plan(model, 1000, 1, KINDS["cpu"], sample=estimate(loaded, []))


def test_a_model_is_counted_without_its_embeddings() -> None:
    loaded = tiny_loaded()
    model = PlannedModel.of(loaded)
    embeddings = loaded.model.backbone.get_input_embeddings().weight.numel()
    assert model.weights == sum(weight.numel() for weight in loaded.model.parameters())
    assert model.weights - model.multiplied == embeddings and model.top_k == 2


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "qwen3-4b",
            {
                "model_type": "qwen3",
                "vocab_size": 151_936,
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "head_dim": 128,
            }
            | {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8},
        ),
        (
            "smollm2-135m",
            {"model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536}
            | {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
        ),
    ],
)
def test_the_weights_of_a_shape_are_those_of_its_model(name: str, config: dict[str, Any]) -> None:
    model_type = config.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config, tie_word_embeddings=True))
    model.tie_weights()
    shape = PlannedModel.of_shape(name)
    assert (shape.weights, shape.multiplied) == (model.num_parameters(), model.num_parameters(exclude_embeddings=True))
    assert set(module._SHAPES) == set(SHAPES)


def test_bytes_on_disk_are_those_of_a_bank(tmp_path: Path) -> None:
    manifest = synthetic_manifest("smollm2-135m")
    found = _plan("6.4M", "1xcpu", model=PlannedModel.of_shape("smollm2-135m"))
    assert found.chunks == 100_000 and found.documents == 12_500
    content = found.chunks * 2 * len(manifest.msa_layers) * manifest.key_width * 2
    assert found.latent_bytes + found.coarse_bytes - content == disk_bytes(manifest, found.chunks)
    with closing(write_synthetic(tmp_path / "bank", manifest, 1500, chunks_per_document=8)) as bank:
        derived = sum(path.stat().st_size for path in bank.folder.rglob("*.coarse.safetensors"))
        counts = bank.catalog.counts()
    small = _plan("96K", "1xcpu", model=PlannedModel.of_shape("smollm2-135m"))
    assert (small.chunks, small.documents) == (counts.chunks, counts.documents)
    assert small.coarse_bytes <= derived <= 1.1 * small.coarse_bytes
    assert small.latent_bytes == pytest.approx(counts.segment_bytes, rel=0.1)


def test_what_a_process_keeps_and_maps_of_each_segment_is_what_is_counted(tmp_path: Path) -> None:
    with closing(MemoryBank.create(tmp_path / "bank", tiny_manifest())) as bank:
        for number in range(3):
            with bank.writer() as writer:
                for place in range(40):
                    add_latents(writer, Document(f"{number}-{place}", "text"), random_latents(tiny_manifest(), 3))
                writer.commit()
        with bank.snapshot() as snapshot:
            tables = [x for s in snapshot.shards for x in (s.ids_N, s.document_C, s.live_N, s.order_N, s.sorted_N)]
            held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tables}
            assert sum(held.values()) == 360 * module._CHUNK_TABLE_BYTES + 120 * module._DOCUMENT_TABLE_BYTES
            if sys.platform != "linux":
                return
            maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
            mapped = [line for line in maps if f"{tmp_path}/bank/segments/" in line]
    # Small segments have no keys in 8 bits in a file.
    assert len(mapped) == 3 * (module._MAPPED_FILES - 1)


# --- how it grows -----------------------------------------------------------------------------------------------------


def test_more_gpus_shorten_the_computing_alone() -> None:
    one, eight = _plan("1B", "1xH100", 2.5), _plan("1B", "8xH100", 2.5)
    assert one.computing_seconds == pytest.approx(8 * eight.computing_seconds)
    assert one.splitting_seconds == eight.splitting_seconds == 1e9 / SPLIT_TOKENS_PER_SECOND
    assert eight.gpu_hours == pytest.approx(8 * eight.encoding_seconds / 3600)
    assert eight.cost == pytest.approx(2.5 * eight.gpu_hours) and _plan("1B", "8xH100").cost is None
    assert _plan("1B", "8xH100", 0.0).cost == 0.0
    assert one.disk_bytes == eight.disk_bytes
    assert any("one process does it" in limit for limit in eight.limits)
    assert not any("one process does it" in limit for limit in one.limits)


@pytest.mark.parametrize("tokens", ["100M", "1B", "10B"])
@pytest.mark.parametrize("kind", ["H100", "H200", "L40S", "B200", "cpu"])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_as_many_gpus_as_are_named_have_room_for_all_keys(tokens: str, kind: str, shape: str) -> None:
    model = PlannedModel.of_shape(shape)
    asked = _plan(tokens, f"1x{kind}", model=model)
    enough = asked.gpus_for_all_keys
    assert enough is not None
    fits = _plan(tokens, f"{enough + 1}x{kind}", model=model)  # segments are not divided, so one may have more
    assert fits.key_bytes <= fits.key_room_bytes and not any("do not fit" in limit for limit in fits.limits)
    if enough > 1:
        fewer = _plan(tokens, f"{enough - 1}x{kind}", model=model)
        assert fewer.key_bytes > fewer.key_room_bytes or kind == "cpu"
        assert fewer.routing_seconds > fits.routing_seconds
        assert any("do not fit" in limit for limit in asked.limits)


def test_keys_without_room_on_a_gpu_stay_in_host_memory() -> None:
    found = _plan("10B", "8xH100")
    beside = found.key_bytes - found.key_room_bytes
    assert beside > 0 and found.host_bytes > beside
    assert found.routing_seconds > beside / 5e9, "there they are scored by the CPU"
    assert any(f"{found.gpus_for_all_keys} x H100 have room for all" in limit for limit in found.limits)
    tiny = _plan("1B", "1x4090", model=replace(QWEN, weights=12 * 10**9))
    assert tiny.gpus_for_all_keys is None and any("no room for any" in limit for limit in tiny.limits)


def test_many_ranks_wait_for_each_other() -> None:
    few, many = _plan("1B", "8xH100"), _plan("1B", "64xH100")
    assert many.routing_seconds < few.routing_seconds and many.network_seconds > few.network_seconds
    assert few.network_seconds == pytest.approx(few.received_bytes / 3.125e9 + 50e-6 * few.steps)
    assert any("64 ranks wait longer for each other" in limit for limit in many.limits)
    assert not any("wait longer" in limit for limit in _plan("1B", "1xH100").limits)


def test_no_more_ranks_than_segments_serve() -> None:
    found = _plan("1M", "64xH100")
    assert found.ranks == found.segments < 64
    assert any(f"no more than {found.segments} ranks" in limit for limit in found.limits)
    one = _plan("1", "8xH100")
    assert (one.documents, one.chunks, one.segments, one.ranks, one.received_bytes) == (1, 1, 1, 1, 0)


@pytest.mark.parametrize(("tokens", "gpus"), [("1000000T", "8xH100"), ("10T", "65536xH200"), ("1", "9999xcpu")])
def test_huge_plans_are_made(tokens: str, gpus: str) -> None:
    found = _plan(tokens, gpus, 1e6)
    assert all(math.isfinite(x) for x in asdict(found).values() if isinstance(x, float))
    assert tokens == "1" or (found.mappings > MOST_MAPPINGS and any("vm.max_map_count" in one for one in found.limits))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_plans_by_a_shape_without_a_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_model: None
) -> None:
    monkeypatch.delenv("MEMSPAN_MODEL")
    given = ("estimate", "--target", "1B", "--gpus", "8xH100", "--shape", "qwen3-4b", "--price", "2.5")
    shown = memspan(*given)
    assert shown.code == 0 and "8 x H100 (derived from data sheets, not measured)" in shown.out
    names = [line.split("  ")[0] for line in shown.out.splitlines()]
    assert names[:8] == ["memory", "machines", "encoding", "GPU hours", "disk", "a GPU", "host memory", "a question"]
    assert names[8:] == ["network", "limit 1", "limit 2"]
    found = memspan(*given, "--json").json
    assert found == {**asdict(_plan("1B", "8xH100", 2.5)), "skipped": []}
    assert list(tmp_path.iterdir()) == []


def test_the_command_plans_by_the_model_that_is_here_and_by_files(notes: Path, tmp_path: Path) -> None:
    alone = memspan("estimate", "--target", "1M", "--json").json
    assert (alone["gpus"], alone["kind"], alone["is_measured"], alone["tokens"]) == (1, "cpu", True, 10**6)
    assert "network" not in memspan("estimate", "--target", "1M").out
    (notes / "broken.pdf").write_bytes(b"no pdf")
    counted = memspan("estimate", notes, "--json")
    planned = memspan("estimate", notes, "--target", "1M", "--gpus", "2xcpu", "--json")
    assert (counted.code, planned.code) == (3, 3)
    assert [one["source"] for one in planned.json["skipped"]] == [str(notes / "broken.pdf")]
    assert planned.json["chunks"] == -(-counted.json["chunks"] * 10**6 // counted.json["tokens"])
    shown = memspan("estimate", notes, "--target", "1M")
    assert shown.code == 3 and "broken.pdf" in shown.err and "1 x cpu (measured on 2 cores)" in shown.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--target", "0"), "--target is a number of tokens"),
        (("--target", "1B", "--gpus", "8xA100"), "the kinds are H100"),
        (("--target", "1B", "--gpus", "0xH100"), "the kinds are H100"),
        (("--target", "1B", "--price", "-1"), "--price is what"),
        (("--target", "1B", "--price", "nan"), "--price is what"),
        (("--gpus", "8xH100"), "say of how many tokens: --target"),
        (("--price", "2"), "say of how many tokens: --target"),
        (("--shape", "qwen3-4b"), "say of how many tokens: --target"),
        (("--target", "1B", "--shape", "qwen3-4b"), "leave out either"),  # MEMSPAN_MODEL names a model
        (("--target", "1B", "--content-chunk", "4"), "leave out --content-chunk"),
        ((), "or --target TOKENS"),
    ],
)
def test_wrong_options_are_named_before_a_model_is_loaded(given: tuple[str, ...], message: str, no_model: None) -> None:
    assert message in failed("estimate", *given)


def test_a_shape_does_not_go_with_files_and_must_be_known(monkeypatch: pytest.MonkeyPatch, notes: Path) -> None:
    monkeypatch.delenv("MEMSPAN_MODEL")
    assert "leave out either" in failed("estimate", notes, "--target", "1B", "--shape", "qwen3-4b")
    assert "smollm2-135m, qwen3-4b, not 'gpt'" in failed("estimate", "--target", "1B", "--shape", "gpt")
    assert "gone does not exist" in failed("estimate", notes / "gone", "--target", "1B")


def test_the_page_shows_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEMSPAN_MODEL")
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n\$ memspan (.*)\n((?:.*\n)*?)```", page)
    assert len(blocks) == page.count("```console") > 3
    for given, shown in blocks:
        assert memspan(*given.split()).out == shown, given
    named = re.search(r"machines: (.*), or `cpu`", page)
    assert named is not None and [*named[1].split(", "), "cpu"] == [kind.name for kind in KINDS.values()]
