from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch

from memspan.ops import amx, integers
from memspan.ops.integers import LargestProducts

KEY_LEVELS, QUERY_LEVELS = 127, 63


def _keys(*shape: int) -> torch.Tensor:
    return torch.randint(-KEY_LEVELS, KEY_LEVELS + 1, shape, dtype=torch.int8)


def _queries(*shape: int) -> torch.Tensor:
    return torch.randint(-QUERY_LEVELS, QUERY_LEVELS + 1, shape, dtype=torch.int8)


def _expected(query_BTW: torch.Tensor, key_CW: torch.Tensor) -> torch.Tensor:
    largest_BC = (query_BTW.double() @ key_CW.double().T).amax(1).float()
    return largest_BC * _scales(len(key_CW)) * _scales(len(query_BTW))[:, None]


def _scales(number: int) -> torch.Tensor:
    return torch.linspace(0.1, 3.0, number)


def _write(query_BTW: torch.Tensor, key_CW: torch.Tensor, out_BC: torch.Tensor, way: str | None = None) -> None:
    LargestProducts(query_BTW, _scales(len(query_BTW)), way=way).write(key_CW, _scales(len(key_CW)), out_BC)


def _largest(query_BTW: torch.Tensor, key_CW: torch.Tensor, way: str | None = None) -> torch.Tensor:
    out_BC = torch.full((len(query_BTW), len(key_CW)), float("nan"))
    _write(query_BTW, key_CW, out_BC, way)
    return out_BC


@pytest.fixture(
    params=[*(name for name in integers.WAYS if name != "triton"), None], ids=lambda name: name or "fastest"
)
def way(request: pytest.FixtureRequest) -> str | None:
    """Every way in turn, whatever is the fastest here."""
    if request.param == "amx" and amx._library() is None:
        pytest.skip("no AMX here, or no compiler when memspan was installed")
    return request.param


@pytest.mark.parametrize(
    ("B", "T", "C", "W"),
    [(1, 32, 1, 64), (1, 32, 33, 192), (3, 64, 301, 192), (2, 45, 64, 1024), (1, 5, 77, 16), (2, 1, 40, 64)],
)
def test_every_way_finds_the_largest_products(
    way: str | None, B: int, T: int, C: int, W: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "amx" and amx.amx_largest(torch.zeros(1, 16, W, dtype=torch.int8), torch.ones(1)) is None:
        pytest.skip(f"AMX does not take a width of {W}")
    query_BTW, key_CW = _queries(B, T, W), _keys(C, W)
    for least, bytes_ in ((64, 2**21), (1, 1), (17, 1), (300, 1)):
        monkeypatch.setattr(integers, "_LEAST_TILE", least)
        monkeypatch.setattr(integers, "_TILE_BYTES", bytes_)
        assert torch.equal(_largest(query_BTW, key_CW, way), _expected(query_BTW, key_CW))


def test_the_largest_sums_of_either_sign_are_exact(way: str | None) -> None:
    for W in (192, 1024):
        query_BTW = torch.full((2, 32, W), QUERY_LEVELS, dtype=torch.int8)
        query_BTW[1] *= -1
        key_CW = torch.full((40, W), KEY_LEVELS, dtype=torch.int8)
        key_CW[::2] *= -1
        assert torch.equal(_largest(query_BTW, key_CW, way), _expected(query_BTW, key_CW))


def test_rows_are_written_in_their_place_and_nowhere_else(way: str | None) -> None:
    """A shard's part of all scores, on several threads."""
    query_BTW, key_CW = _queries(2, 256, 64), _keys(4100, 64)
    assert key_CW.shape[0] * query_BTW.shape[0] * query_BTW.shape[1] >= 2 * amx._SUMS_OF_A_PART
    whole_BC = torch.full((2, 5000), -1.0)
    _write(query_BTW, key_CW, whole_BC[:, 400:4500], way)
    assert torch.equal(whole_BC[:, 400:4500], _expected(query_BTW, key_CW))
    assert (whole_BC[:, :400] == -1).all() and (whole_BC[:, 4500:] == -1).all()


def test_several_threads_ask_at_once(way: str | None) -> None:
    asked = [(_queries(1, 64, 192), _keys(9000, 192)) for _ in range(4)]
    found: dict[int, torch.Tensor] = {}

    def ask(index: int) -> None:
        found[index] = _largest(*asked[index], way)

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


@pytest.mark.parametrize("missing", ["file", "CPU", "wish"])
def test_without_the_compiled_file_the_library_multiplies(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "wish":
        monkeypatch.setenv("MEMSPAN_COMPILED", "off")
    if missing == "file":
        monkeypatch.setattr(amx.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(amx, "_library", (lambda: None) if missing == "CPU" else amx._library.__wrapped__)
    query_BTW, key_CW = _queries(2, 32, 64), _keys(50, 64)
    assert amx.amx_largest(query_BTW, _scales(2)) is None and "amx" not in integers.exact_ways.__wrapped__(64)
    assert torch.equal(_largest(query_BTW, key_CW), _expected(query_BTW, key_CW))


def test_a_compiled_file_of_another_interface_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "_INTERFACE", -1)
    assert amx._library.__wrapped__() is None


def test_ways_that_compute_wrongly_or_are_missing_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(query_BTW: torch.Tensor, scale_B: torch.Tensor) -> amx.ScaledLargest:
        def write(left_CW: torch.Tensor, scale_C: torch.Tensor, out_BC: torch.Tensor) -> None:
            out_BC.zero_()

        return write

    def fails(query_BTW: torch.Tensor, scale_B: torch.Tensor) -> amx.ScaledLargest:
        raise RuntimeError("no such kernel")

    ways = {"wrong": zeros, "missing": lambda query_BTW, scale_B: None, "fails": fails}
    monkeypatch.setattr(integers, "WAYS", {**ways, "float": integers.WAYS["float"]})
    monkeypatch.setattr(integers, "_CPU_WAYS", (*ways, "float"))
    assert integers.exact_ways.__wrapped__(192) == ("float",)


@pytest.mark.parametrize("order", [("fast", "slow"), ("slow", "fast")])
def test_the_faster_way_is_taken_and_a_hopeless_one_is_not_tried_again(order: tuple[str, ...]) -> None:
    now, calls, seconds = 0.0, {"fast": 0, "slow": 0}, {"fast": 0.010, "slow": 0.015}

    def attempt(name: str) -> None:
        nonlocal now
        calls[name] += 1
        now += seconds[name] if calls[name] > 1 else 1.0  # the first call compiles something

    attempts = {name: functools.partial(attempt, name) for name in order}
    assert integers.fastest(attempts, lambda: now) == "fast" and set(calls.values()) == {6}
    calls.update(fast=0, slow=0)
    seconds["slow"] = 5.0
    assert integers.fastest(attempts, lambda: now) == "fast"
    assert calls["slow"] == (2 if order[0] == "fast" else 6)


def test_what_is_chosen_was_timed_against_every_exact_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and many are kinds of their own, and a kind is timed once."""
    timed: list[tuple[str, ...]] = []

    def last(attempts: dict[str, Callable[[], None]]) -> str:
        for attempt in attempts.values():
            attempt()
        timed.append(tuple(attempts))
        return timed[-1][-1]

    monkeypatch.setattr(integers, "fastest", last)
    monkeypatch.setattr(integers, "fastest_way", functools.cache(integers.fastest_way.__wrapped__))
    for rows in (10, 20, 5000, 6000):
        query_BTW, key_CW = _queries(1, 32, 64), _keys(rows, 64)
        assert torch.equal(_largest(query_BTW, key_CW), _expected(query_BTW, key_CW))
    assert timed == [integers.exact_ways(64)] * 2


def test_choosing_a_way_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    integers.fastest_way.__wrapped__(64, 32, True)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_compiled_file_refuses_shapes_that_it_cannot_do() -> None:
    library = amx._library()
    if library is None:
        pytest.skip("no AMX here, or no compiler when memspan was installed")
    key_CW, scale_C, out_BC = _keys(4, 8192), torch.ones(4), torch.full((1, 4), -1.0)
    keys, scales, out = key_CW.data_ptr(), scale_C.data_ptr(), out_BC.data_ptr()
    for width, tiles in ((0, 2), (63, 2), (8192, 2), (64, 0)):
        assert library.memspan_amx_largest(keys, scales, 4, width, keys, scales, 1, tiles, out, 4)
    assert (out_BC == -1).all()


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI", "nonsense"])
def test_on_every_cpu_all_ways_are_exact_or_passed_over(isa: str) -> None:
    """Each `ONEDNN_MAX_CPU_ISA` takes other kernels; what they compute of the largest numbers must not differ."""
    code = """
import torch
from memspan.ops import integers
for W in (192, 1024):
    ways = integers.exact_ways(W)
    for rows in (1, 8, 300):
        key_CW = torch.full((rows, W), 127, dtype=torch.int8)
        for tokens in (1, 4, 300):
            query_1TW = torch.full((1, tokens, W), 63, dtype=torch.int8)
            for way in (*ways, None):
                out_BC = torch.empty(1, rows)
                integers.LargestProducts(query_1TW, torch.ones(1), way=way).write(key_CW, torch.ones(rows), out_BC)
                assert out_BC.eq(63 * 127 * W).all(), way
print(*ways)
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
