from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import tiny_loaded

from memspan.cli.choices import ModelChoice
from memspan.cli.models import on_own_gpu
from memspan.errors import MemspanError
from memspan.model import runtime
from memspan.model.runtime import DeviceMap, fast_bfloat16, pick_device, pick_dtype, pick_one_device
from memspan.ops import transfer
from memspan.ops.attention import attend

CPU = torch.device("cpu")


def _with_accelerator(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    found = torch.device(kind) if kind else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu", None])
def test_the_best_device_is_the_accelerator_that_is_there(monkeypatch: pytest.MonkeyPatch, kind: str | None) -> None:
    monkeypatch.delenv("MEMSPAN_DEVICE", raising=False)
    _with_accelerator(monkeypatch, kind)
    assert pick_device() == torch.device(kind or "cpu")
    assert pick_device("cpu") == CPU
    monkeypatch.setenv("MEMSPAN_DEVICE", "cpu")
    assert pick_device() == CPU


@pytest.mark.parametrize("name", ["nonsense", "xpu", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind = torch.device(name).type if name != "nonsense" else ""
    if kind and kind == getattr(torch.accelerator.current_accelerator(check_available=True), "type", None) != "cuda":
        pytest.skip("needs a machine without this device")
    for given in (True, False):
        monkeypatch.setenv("MEMSPAN_DEVICE", "cpu" if given else name)
        with pytest.raises(MemspanError, match=f"device '{name}' is not present on this machine; leave it out, or use"):
            pick_device(name if given else None)


@pytest.mark.parametrize(
    ("kind", "rank", "expected"),
    [("cuda", "2", "cuda:2"), ("xpu", "1", "xpu:1"), ("cuda:1", "2", "cuda:1"), ("cpu", "2", "cpu")],
)
def test_each_rank_has_its_own_accelerator(
    monkeypatch: pytest.MonkeyPatch, kind: str, rank: str, expected: str
) -> None:
    _with_accelerator(monkeypatch, None)
    monkeypatch.setattr("memspan.cli.models.pick_device", torch.device)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert on_own_gpu(ModelChoice(None, None, None, kind)).device == expected


def _cpu(monkeypatch: pytest.MonkeyPatch, has_onednn: bool, isa: str, *flags: str) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: isa)
    known = {name: name in flags for name in ("avx2", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16", "bf16")}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)


@pytest.mark.parametrize(
    ("cpu", "has_onednn", "isa", "flags", "expected"),
    [
        ("AMD Zen 1 to 3", True, "AVX2", ("avx2",), False),
        ("Intel Skylake", True, "AVX512", ("avx2", "avx512_f"), False),
        ("AMD Zen 4", True, "AVX512", ("avx2", "avx512_f", "avx512_bf16"), True),
        ("Intel Sapphire Rapids", True, "AVX512", ("avx512_f", "avx512_bf16", "amx_tile", "amx_bf16"), True),
        ("the same, kept to AVX2", True, "AVX2", ("avx512_f", "avx512_bf16", "amx_tile", "amx_bf16"), False),
        ("Graviton 2", True, "DEFAULT", (), False),
        ("Graviton 3", True, "SVE256", ("bf16",), True),
        ("Apple M1", False, "DEFAULT", (), False),
        ("Apple M2, whose torch has no oneDNN", False, "DEFAULT", ("bf16",), False),
    ],
)
def test_bfloat16_is_used_on_cpus_that_multiply_it_fast(
    monkeypatch: pytest.MonkeyPatch, cpu: str, has_onednn: bool, isa: str, flags: tuple[str, ...], expected: bool
) -> None:
    _cpu(monkeypatch, has_onednn, isa, *flags)
    assert fast_bfloat16(CPU) == expected
    assert pick_dtype(None, CPU) == (torch.bfloat16 if expected else torch.float32)
    assert pick_dtype("float32", CPU) == torch.float32


def test_what_this_cpu_can_do_is_read_from_torch() -> None:
    assert isinstance(fast_bfloat16(CPU), bool)
    assert "architecture" in torch.cpu.get_capabilities()


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_gets_float32(
    monkeypatch: pytest.MonkeyPatch, kind: str, supported: bool
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or supported

    monkeypatch.setattr(getattr(torch, kind), "is_bf16_supported", is_bf16_supported)
    assert fast_bfloat16(torch.device(kind)) == supported


@pytest.mark.parametrize(("version", "expected"), [((13, 3), False), ((14, 0), True), ((26, 0), True)])
def test_metal_has_bfloat16_from_macos_14_on(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: version >= (major, minor))
    assert fast_bfloat16(torch.device("mps")) == expected


@pytest.mark.parametrize(("kind", "pinned"), [("cuda", True), ("xpu", True), ("mps", False), ("cpu", False)])
def test_memory_is_page_locked_where_a_copy_needs_it(monkeypatch: pytest.MonkeyPatch, kind: str, pinned: bool) -> None:
    done: list[str] = []

    class Recorded(torch.Tensor):
        def pin_memory(self) -> Recorded:  # type: ignore[override]
            done.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Recorded:  # type: ignore[override]
            done.append(f"{device}{' at once' if non_blocking else ''}")
            return self

    transfer.to_device(torch.zeros(2).as_subclass(Recorded), torch.device(kind))
    assert done == (["pinned", f"{kind} at once"] if pinned else [kind])


@pytest.mark.parametrize("kind", ["meta", "cpu"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
def test_devices_of_which_it_is_not_known_that_they_take_grouped_heads_get_none(
    monkeypatch: pytest.MonkeyPatch, kind: str, masked: bool, rows: int
) -> None:
    seen: list[tuple[bool, bool]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def record(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append((key.shape[1] == query.shape[1], bool(options["enable_gqa"])))
        return real(query, key, value, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    query, key = torch.randn(rows, 4, 3, 8, device=kind), torch.randn(rows, 2, 3, 8, device=kind)
    out = attend(query, key, key, torch.ones(1, 1, 3, 3, dtype=torch.bool, device=kind) if masked else None, None)
    assert out.shape == (rows, 3, 4, 8)
    assert seen == [(False, True) if kind == "cpu" else (True, False)]


@pytest.mark.parametrize(
    "device_map", ["cpu", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")}, {"a": "cpu", "b": "cpu"}]
)
def test_a_map_to_one_device_is_that_device(device_map: DeviceMap) -> None:
    assert pick_one_device(None, device_map, 10**15) == torch.device("cpu")


@pytest.mark.parametrize(
    ("device_map", "named"),
    [
        ({"a": 0, "b": 1}, "cuda:0, cuda:1"),
        ({"a": "cuda:0", "b": "cpu"}, "cpu, cuda:0"),
        ({"a": 0, "b": "disk"}, "cuda:0, disk"),
        ({"": "disk"}, "disk"),
        ("disk", "disk"),
        ({}, "no device"),
    ],
)
def test_a_model_divided_over_devices_is_refused_by_their_names(device_map: DeviceMap, named: str) -> None:
    with pytest.raises(MemspanError, match=f"puts the model on {named}, and a memory serves one device; name one"):
        pick_one_device(None, device_map, 1)


@pytest.mark.parametrize("moved", ["layers.1.", "layers.3.self_attn.router_q_proj", "embed_tokens", ""])
def test_a_model_that_somebody_else_divided_is_refused_before_it_is_used(moved: str) -> None:
    """Parts on another device, as accelerate leaves those that it keeps on disk; "": all of it."""
    loaded = tiny_loaded()
    for name, module in loaded.model.named_modules():
        if moved in f"{name}.":
            for own, parameter in module.named_parameters(recurse=False):
                setattr(module, own, torch.nn.Parameter(parameter.to("meta")))
    named = "cpu, meta" if moved else "(cpu, )?meta"
    with pytest.raises(MemspanError, match=f"puts the model on {named}, and a memory serves one device"):
        replace(loaded)


@pytest.mark.parametrize("device_map", ["cuda:77", 77, {"": 77}, {"": "no such device"}])
def test_a_map_to_a_device_that_is_not_there_is_refused(device_map: DeviceMap) -> None:
    with pytest.raises(MemspanError, match="is not present on this machine"):
        pick_one_device(None, device_map, 1)


def test_a_device_and_a_map_are_one_too_many() -> None:
    with pytest.raises(MemspanError, match="device='cpu' or device_map='auto', not both"):
        pick_one_device("cpu", "auto", 1)
    assert pick_one_device("cpu", None, 1) == torch.device("cpu")


@pytest.mark.parametrize("how", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_a_map_that_chooses_takes_the_best_device_where_the_weights_fit(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda:0")
    monkeypatch.setattr(runtime, "pick_device", lambda name=None: cuda)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 10**9, 16 * 10**9))
    assert pick_one_device(None, how, 8 * 10**9) == cuda
    with pytest.raises(MemspanError, match=r"its weights take 8\.01 GB, and cuda:0 has 8\.00 GB free; .*quantization"):
        pick_one_device(None, how, 8 * 10**9 + 1)
    monkeypatch.setattr(runtime, "pick_device", lambda name=None: torch.device("cpu"))
    assert pick_one_device(None, how, 10**15) == torch.device("cpu")
