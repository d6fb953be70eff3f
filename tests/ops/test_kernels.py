"""The kernel of the coarse pass: by Triton's interpreter it finds what the ways of the CPU find, bit for bit; and it is
compiled for GPUs, ahead of time and without one.

Triton interprets or compiles as the environment says when it is imported, so what is interpreted is a process of its
own: this file, run as a script.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

from memspan.ops import integers
from memspan.ops.coarse import CoarseQueries, coarse_scores, quantize_keys, quantize_queries

SHAPES = [(1, 32, 128, 128), (1, 1, 1, 16), (3, 33, 129, 192), (2, 45, 64, 1024), (1, 5, 300, 100), (5, 2, 127, 256)]
"""Questions, tokens, rows, width."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_the_kernel_finds_what_the_cpu_finds() -> None:
    environment = {**os.environ, **({"TRITON_INTERPRET": "1"} if DEVICE.type == "cpu" else {})}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["checked", str(len(SHAPES) + 3)]


def check_products(B: int, T: int, C: int, W: int) -> None:
    torch.manual_seed(B * T * C * W)
    query_BTW = torch.randint(-integers.query_levels(W), integers.query_levels(W) + 1, (B, T, W), dtype=torch.int8)
    key_CW = torch.randint(-integers.key_levels(W), integers.key_levels(W) + 1, (C, W), dtype=torch.int8)
    scale_B, scale_C, expected_BC = torch.rand(B), torch.rand(C), torch.empty(B, C)
    integers.LargestProducts(query_BTW, scale_B, way="float").write(key_CW, scale_C, expected_BC)
    # Into some columns of a wider tensor, of which no other is touched.
    found_BC = torch.full((B, C + 4), -7.0, device=DEVICE)
    queries = integers.LargestProducts(query_BTW.to(DEVICE), scale_B.to(DEVICE), way="triton")
    queries.write(key_CW.to(DEVICE), scale_C.to(DEVICE), found_BC[:, 2:-2])
    assert torch.equal(found_BC[:, 2:-2].cpu(), expected_BC), (B, T, C, W)
    assert torch.all(found_BC[:, :2] == -7) and torch.all(found_BC[:, -2:] == -7)


def check_largest_sums(sign: int) -> None:
    W = 1024
    key_CW = torch.full((130, W), sign * integers.key_levels(W), dtype=torch.int8, device=DEVICE)
    query_BTW = torch.full((1, 3, W), integers.query_levels(W), dtype=torch.int8, device=DEVICE)
    found_BC, ones = torch.empty(1, 130, device=DEVICE), torch.ones(130, device=DEVICE)
    integers.LargestProducts(query_BTW, ones[:1], way="triton").write(key_CW, ones, found_BC)
    assert torch.all(found_BC == sign * W * integers.key_levels(W) * integers.query_levels(W))


def check_coarse_scores() -> None:
    torch.manual_seed(0)
    key_CW, query_BTW = torch.randn(200, 192), torch.randn(2, 7, 192)
    assert integers.accelerator_way(192, DEVICE) == "triton"
    scores = []
    for device, way in ((DEVICE, "triton"), (torch.device("cpu"), None)):
        rounded = quantize_queries(query_BTW.to(device))
        scores.append(torch.empty(2, 200, device=device))
        queries = CoarseQueries(rounded.query_BTW, rounded.scale_B, way)
        coarse_scores(queries, quantize_keys(key_CW.to(device)), scores[-1])
    assert torch.equal(scores[0].cpu(), scores[1])


def test_without_a_gpu_or_an_interpreter_the_kernel_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    query_BTW = torch.zeros(1, 1, 64, dtype=torch.int8)
    assert integers.WAYS["triton"](query_BTW, torch.ones(1)) is None
    assert integers.accelerator_way.__wrapped__(64, torch.device("cpu")) == "integers"


@pytest.mark.parametrize(
    ("installed", "reason"), [(True, "its kernel fails here"), (False, "Triton is not installed; pip install triton")]
)
def test_a_gpu_without_the_kernel_is_told(
    installed: bool, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(integers, "_is_exact", lambda way, *_: way is integers.WAYS["integers"])
    monkeypatch.setattr(integers, "find_spec", lambda name: object() if installed else None)
    assert integers.accelerator_way.__wrapped__(64, torch.device("cuda:1")) == "integers"
    assert f"routing keys on cuda:1 are scored by torch (integers), more slowly: {reason}" in caplog.text
    caplog.clear()
    assert integers.accelerator_way.__wrapped__(64, torch.device("mps")) == "integers" and not caplog.text


@needs_triton
@pytest.mark.parametrize(
    ("capability", "product"), [(80, r"mma\.sync.*s8\.s8\.s32"), (90, r"wgmma\.mma_async.*s8\.s8")]
)
def test_the_kernel_compiles_for_gpus_with_tensor_cores_and_without_spills(capability: int, product: str) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from memspan.ops import kernels

    pointers = {"query": "*i8", "query_scale": "*fp32", "row": "*i8", "row_scale": "*fp32", "out": "*fp32"}
    sizes = dict.fromkeys(("num_rows", "num_tokens", "num_questions", "width"), "i32")
    constants = {"ROWS": kernels.ROWS, "TOKENS": kernels.TOKENS, "DEPTH": kernels.DEPTH}
    # As tensors of torch are: aligned, and of tokens and a width that 16 divides.
    aligned = {(place,): [["tt.divisibility", 16]] for place in (0, 1, 2, 3, 4, 6, 8)}
    signature = {**pointers, **sizes, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernels.largest_products, signature, constexprs=constants, attrs=aligned)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a default of Triton's that will change, and does not matter here
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert re.search(product, compiled.asm["ptx"]), "products are not made by tensor cores"
    assert ".local" not in compiled.asm["ptx"], "an array lies in memory"
    assert _spilled_bytes(compiled.asm["ptx"], capability) == [0, 0], "registers are spilled"
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 99 * 1024, "of the smallest such card"


def _spilled_bytes(ptx: str, capability: int) -> list[int]:
    """Bytes of registers that the assembler stores in memory and loads from it."""
    from triton.backends.nvidia.compiler import get_ptxas

    assembler = get_ptxas() if not inspect.signature(get_ptxas).parameters else get_ptxas(capability)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx, encoding="utf-8")
        arch = f"sm_{capability}a" if capability == 90 else f"sm_{capability}"
        command = [assembler.path, "-v", f"--gpu-name={arch}", "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(number) for number in re.findall(r"(\d+) bytes spill", done.stderr)]


if __name__ == "__main__":
    for shape in SHAPES:
        check_products(*shape)
    for sign in (1, -1):
        check_largest_sums(sign)
    check_coarse_scores()
    print("checked", len(SHAPES) + 3)
