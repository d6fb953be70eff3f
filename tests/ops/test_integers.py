from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from memspan.ops import amx, integers
from memspan.ops.integers import LargestProducts

WAYS = ["in one pass", "packed", "plain", "float"]


def _integers(*shape: int) -> torch.Tensor:
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def _expected(query_BTW: torch.Tensor, key_CW: torch.Tensor) -> torch.Tensor:
    largest_BC = (query_BTW.double() @ key_CW.double().T).amax(1).float()
    return largest_BC * _scales(len(key_CW)) * _scales(len(query_BTW))[:, None]


def _scales(number: int) -> torch.Tensor:
    return torch.linspace(0.1, 3.0, number)


def _write(query_BTW: torch.Tensor, key_CW: torch.Tensor, out_BC: torch.Tensor, tile: int | None = None) -> None:
    LargestProducts(query_BTW, _scales(len(query_BTW))).write(key_CW, _scales(len(key_CW)), out_BC, tile)


def _largest(query_BTW: torch.Tensor, key_CW: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    out_BC = torch.full((len(query_BTW), len(key_CW)), float("nan"))
    _write(query_BTW, key_CW, out_BC, tile)
    return out_BC


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every way in turn, whatever is the fastest here."""
    if request.param == "in one pass":
        if not integers._amx_is_exact():
            pytest.skip("no AMX here, or no compiler when memspan was installed")
        return request.param
    monkeypatch.setattr(LargestProducts, "_in_one_pass", None)
    monkeypatch.setattr(integers, "_WORTH_PACKING", 0 if request.param == "packed" else 2**62)
    if request.param == "float":
        monkeypatch.setattr(integers, "_exact_way", lambda pack: integers._float_product)
    return request.param


@pytest.mark.parametrize(
    ("B", "T", "C", "W"),
    [(1, 32, 1, 64), (1, 32, 33, 192), (3, 64, 301, 192), (2, 45, 64, 1024), (1, 5, 77, 16), (2, 1, 40, 64)],
)
def test_every_way_finds_the_largest_products(way: str, B: int, T: int, C: int, W: int) -> None:
    query_BTW, key_CW = _integers(B, T, W), _integers(C, W)
    for tile in (None, 1, 17, 300):
        assert torch.equal(_largest(query_BTW, key_CW, tile), _expected(query_BTW, key_CW))


def test_the_largest_sums_of_either_sign_are_exact(way: str) -> None:
    for W in (192, 1024):
        query_BTW = torch.full((2, 32, W), 127, dtype=torch.int8)
        query_BTW[1] *= -1
        key_CW = torch.full((40, W), 127, dtype=torch.int8)
        key_CW[::2] *= -1
        assert torch.equal(_largest(query_BTW, key_CW), _expected(query_BTW, key_CW))


def test_rows_are_written_in_their_place_and_nowhere_else(way: str) -> None:
    """A shard's part of all scores, on several threads."""
    query_BTW, key_CW = _integers(2, 256, 64), _integers(4100, 64)
    assert key_CW.shape[0] * query_BTW.shape[0] * query_BTW.shape[1] >= 2 * amx._SUMS_OF_A_PART
    whole_BC = torch.full((2, 5000), -1.0)
    _write(query_BTW, key_CW, whole_BC[:, 400:4500])
    assert torch.equal(whole_BC[:, 400:4500], _expected(query_BTW, key_CW))
    assert (whole_BC[:, :400] == -1).all() and (whole_BC[:, 4500:] == -1).all()


def test_several_threads_ask_at_once(way: str) -> None:
    asked = [(_integers(1, 64, 192), _integers(9000, 192)) for _ in range(4)]
    found: dict[int, torch.Tensor] = {}

    def ask(index: int) -> None:
        found[index] = _largest(*asked[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], _expected(*asked[index])) for index in range(len(asked)))


def test_a_process_that_was_forked_asks_too() -> None:
    code = """
import os, torch
from memspan.ops.integers import LargestProducts
key_CW, scale_C = torch.ones(40000, 64, dtype=torch.int8), torch.ones(40000)
largest = LargestProducts(torch.ones(1, 32, 64, dtype=torch.int8), torch.ones(1))
def ask():
    out_BC = torch.empty(1, 40000)
    largest.write(key_CW, scale_C, out_BC)
    assert out_BC.eq(64).all()
torch.set_num_threads(2)
ask()
torch.set_num_threads(1)  # OpenMP's own threads do not survive a fork
child = os.fork()
if not child:
    from memspan.ops import amx
    torch.get_num_threads = lambda: 2
    if amx._library() is not None:
        ask()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("missing", ["file", "CPU"])
def test_without_amx_the_products_are_tiled(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "file":
        monkeypatch.setattr(amx.importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(amx, "_library", amx._library.__wrapped__)
    else:
        monkeypatch.setattr(amx, "_library", lambda: None)
    monkeypatch.setattr(integers, "_amx_is_exact", integers._amx_is_exact.__wrapped__)
    query_BTW, key_CW = _integers(2, 32, 64), _integers(50, 64)
    assert amx.amx_largest(query_BTW, _scales(2)) is None
    assert torch.equal(_largest(query_BTW, key_CW), _expected(query_BTW, key_CW))


def test_a_compiled_file_of_another_interface_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "_INTERFACE", -1)
    assert amx._library.__wrapped__() is None


def test_amx_that_computes_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        integers, "amx_largest", lambda query_BTW, scale_B: lambda left_CW, scale_C, out_BC: out_BC.zero_()
    )
    assert not integers._amx_is_exact.__wrapped__()


def test_the_compiled_file_refuses_shapes_that_it_cannot_do() -> None:
    library = amx._library()
    if library is None:
        pytest.skip("no AMX here, or no compiler when memspan was installed")
    key_CW, scale_C, out_BC = _integers(4, 8192), torch.ones(4), torch.full((1, 4), -1.0)
    keys, scales, out = key_CW.data_ptr(), scale_C.data_ptr(), out_BC.data_ptr()
    for width, tiles in ((0, 2), (63, 2), (8192, 2), (64, 0)):
        assert library.memspan_amx_largest(keys, scales, 4, width, keys, scales, 1, tiles, out, 4)
    assert (out_BC == -1).all()


def test_a_kernel_that_is_missing_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integers.torch.ops.onednn, "qlinear_pointwise", None, raising=False)
    assert not integers._is_exact(integers._packed_product)
    assert integers._is_exact(integers._float_product)


@pytest.mark.parametrize("isa", ["AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"])
def test_a_cpu_that_saturates_is_noticed(isa: str) -> None:
    code = """
import torch
from memspan.ops import integers
for rows in (1, 8, 300):
    key_CW = torch.full((rows, 192), 127, dtype=torch.int8)
    for columns in (1, 4, 300):
        query_WQ = torch.full((192, columns), 127, dtype=torch.int8)
        for pack in (True, False):
            assert integers._exact_way(pack)(query_WQ)(key_CW).eq(127 * 127 * 192).all()
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa}, check=True, timeout=60)
