"""`memspan bench gpu`: its steps as processes of an installed package, on the CPU; a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command import failed, memspan

from memspan.bench import device, gpu
from memspan.bench.gpu import MODEL, SECONDS, Step, check_gpu, chosen_steps, run_all, steps
from memspan.errors import MemspanError


@pytest.mark.parametrize("more", [(), ("--json",), ("--steps", "routing")])
def test_without_a_gpu_the_error_says_what_would_work(
    tmp_path: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = failed("bench", "gpu", "--out", tmp_path / "made", *more)
    assert "there is no GPU that torch can use here; --device cpu runs the same code, slowly" in message
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--steps", "rooting"), "--steps takes routing, model, decode, encode or all, not 'rooting'"),
        (("--steps", ""), "--steps takes"),
        (("--steps", "all,routing"), "--steps takes"),
        (("--tokens", "many"), "no size 'many'"),
        (("--device", "no such"), "device 'no such' is not present"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    with_device = options if "--device" in options else (*options, "--device", "cpu")
    assert said in failed("bench", "gpu", "--out", tmp_path / "made", *with_device)
    assert not (tmp_path / "made").exists()


def test_a_step_is_measured_in_a_process_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(SECONDS, "routing", 1000.0)
    command = ("bench", "gpu", "--device", "cpu", "--tokens", "2k,4k", "--steps", "routing", "--seconds", 1000)
    command = (*command, "--out", tmp_path)
    report = memspan(*command, "--json").json
    assert report["device"] == "cpu"
    (step,) = report["steps"]
    assert step["step"] == "routing" and step["ok"], step
    figures = step["figures"]
    assert [(run["tokens"], run["questions"]) for run in figures["runs"]] == [
        (2000, 1),
        (2000, 8),
        (4000, 1),
        (4000, 8),
    ]
    assert figures["layers"] == 18 and figures["machine"]["threads"] >= 1
    assert json.loads((tmp_path / "gpu-routing.json").read_text("utf-8")) == figures


def test_a_step_that_fails_is_shown_with_its_last_words_and_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    broken = Step((sys.executable, "-c", "print('[no] model\u00e9'.encode()); raise SystemExit('out of memory')"), 60)
    monkeypatch.setattr(gpu, "steps", lambda *_: {"routing": broken, "model": Step(("no such program",), 60)})
    done = memspan("bench", "gpu", "--device", "cpu", "--out", tmp_path)
    assert done.code == 1 and "routing: failed" in done.err
    assert all(said in done.out for said in ("out of memory", "no such program", "[no] model"))


def test_the_steps_are_of_the_package_alone(tmp_path: Path) -> None:
    found = steps(tmp_path, "cuda", [5])
    assert list(found) == list(SECONDS) == list(device.STEPS) == chosen_steps("all")
    assert sum(step.seconds for step in found.values()) <= 480
    assert all(step.command[1:3] == ("-m", "memspan.bench.device") for step in found.values())
    assert list(run_all(found, ["encode"], tmp_path, -1)) == [
        {"step": "encode", "ok": False, "seconds": 0.0, "note": "no time is left"}
    ]


def test_chosen_steps_keep_the_order_they_need(tmp_path: Path) -> None:
    assert chosen_steps(" encode, model ") == ["encode", "model"]
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "config.json").write_text("{}", "utf-8")
    reports = list(run_all(steps(tmp_path, "cpu"), ["encode", "model"], tmp_path, 0))
    assert [report["step"] for report in reports] == ["model", "encode"]
    assert reports[0]["note"] == "it is there already"


def test_decoding_that_fails_in_a_part_fails_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, Any]] = [{"rows": 1}, {"rows": 8, "error": "out of memory"}]
    monkeypatch.setitem(device.STEPS, "decode", lambda *_: {"runs": runs})
    assert device.main("decode", "cpu", str(tmp_path)) == 1
    assert json.loads((tmp_path / "gpu-decode.json").read_text("utf-8"))["runs"] == runs
    monkeypatch.setitem(device.STEPS, "decode", lambda *_: {"runs": runs[:1]})
    assert device.main("decode", "cpu", str(tmp_path)) == 0


def test_a_device_of_another_kind_is_looked_for() -> None:
    check_gpu("cpu")
    with pytest.raises(MemspanError, match="is not present"):
        check_gpu("cuda:77")
