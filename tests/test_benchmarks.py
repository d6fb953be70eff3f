"""What the benchmarks compare is the same work, and gives the same documents."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_backbone, tiny_loaded, tiny_manifest

from memspan.bank.bank import MemoryBank
from memspan.bank.synthetic import made_up, write_synthetic
from memspan.bench.gpu import Step, run
from memspan.eval.machine import _cpu_class, machine
from memspan.eval.plots import spread
from memspan.model.convert import convert

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for path in BENCHMARKS.glob("*.py"):  # names as plain as "keys" stay for these tests alone
        sys.modules.pop(path.stem, None)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    manifest = made_up(tiny_manifest(num_kv_heads=2, head_dim=16))
    written = write_synthetic(
        tmp_path / "bank", manifest, 301, chunks_per_document=3, max_segment_bytes=120 * manifest.row_bytes
    )
    with closing(written) as opened:
        assert opened.catalog.counts().segments == 3
        yield opened


def test_every_side_finds_the_true_documents(bank: MemoryBank) -> None:
    import compare
    import keys

    names = ["memspan", "literal", *compare.faiss_sides(1)]
    with bank.snapshot() as snapshot:
        asked = keys.questions(snapshot, num_heads=4, tokens=5, count=3)
        times = compare.route_all(bank, snapshot, asked, names)
    for name in names:
        true = 3 * len(bank.manifest.msa_layers) * keys.TOP_K
        assert times[name].wanted == true and min(times[name].seconds) > 0
        # Exact but for ties; in bfloat16 and in 8 bits without re-scoring nearly so.
        least = true if name in ("memspan", "faiss exact") else 0.9 * true
        assert least <= times[name].found <= true, name
    assert min(times["memspan"].fetched) > 0 and not any(times["literal"].fetched)


def test_faiss_merges_tokens_and_chunks_as_routing_does(bank: MemoryBank) -> None:
    pytest.importorskip("faiss")
    import compare
    import keys

    layer = bank.manifest.msa_layers[0]
    found = keys.LayerKeys.joined(keys.layer_keys(bank, layer))
    assert found.most_rows == 3 and len(found.ids_N) == 101
    query_QTW = torch.randn(4, 6, found.key_CW.shape[1])
    side = compare.Faiss(compare.flat_index(found), found, query_QTW)
    for number, query_TW in enumerate(query_QTW):
        assert side.find(number) == found.best(found.exact(query_TW)) == keys.true_top(bank, layer, query_TW)


@pytest.mark.slow
def test_one_run_compares_all_and_leaves_out_what_is_too_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import compare

    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)

    def run(limit: float) -> dict[str, Any]:
        options = ("--questions", 2, "--query-tokens", 4, "--limit-seconds", limit, "--json", tmp_path / "out.json")
        where = ("--model", tmp_path / "msa", "--folder", tmp_path / "banks", "--threads", 1)
        arguments = ["compare.py", "--tokens", "80,800", *map(str, (*options, *where))]
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(compare, "SMALLEST_CONTEXT", 64)
        compare.main()
        figures = json.loads((tmp_path / "out.json").read_text())
        assert json.loads(capsys.readouterr().out) == figures
        return figures

    figures = run(1000.0)
    assert figures["sides"].keys() == figures["counts"].keys()
    assert figures["machine"]["cpu_class"]
    sizes = {name: [point["tokens"] for point in points] for name, points in figures["sides"].items()}
    assert sizes.pop("whole memory") == [64, 128, 256, 512]
    assert {"memspan", "literal", "memspan, first token"} <= sizes.keys()
    assert all(asked == [80, 800] for asked in sizes.values())
    slow = run(0.0)
    assert all(len(points) == 1 for points in slow["sides"].values())


def test_figures_are_written_and_a_plot_that_cannot_be_drawn_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import plots

    options = plots.parse_options(argparse.ArgumentParser(), ["--json", str(tmp_path / "x.json")])
    plots.write_figures(options, {"a": spread([3.0, 1.0, 2.0])}, lambda path: pytest.fail("no --png"))
    expected = {"machine": machine(), "a": {"median": 2.0, "least": 1.0, "most": 3.0}}
    assert json.loads((tmp_path / "x.json").read_text()) == expected == json.loads(capsys.readouterr().out)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SystemExit):
        plots.parse_options(argparse.ArgumentParser(), ["--png", "x.png"])
    assert "pip install 'memspan[eval]'" in capsys.readouterr().err


def test_every_benchmark_writes_its_figures_with_the_machine() -> None:
    """By one function, which adds it: no other file than that of the function writes JSON for people."""
    writers = set()
    for path in BENCHMARKS.glob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        called = {func.id for func in calls if isinstance(func, ast.Name)}
        if called & {"write_json", "write_figures"}:
            writers.add(path.stem)
        assert path.stem == "plots" or '"--json", type' not in path.read_text(), path
        assert called.isdisjoint({"parse_options", "add_json"}) or path.stem in writers, path
    assert writers >= {"bank", "compare", "decode", "encode", "forgetting", "needles", "retrieval", "route", "scale"}


def _route(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "route.py"), "--chunks", "300", "--tokens", "4", "--repeats", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_wrong_instruction_set_is_told_and_changes_nothing() -> None:
    done = _route(ONEDNN_MAX_CPU_ISA="AVX3", ATEN_CPU_CAPABILITY="avx2")
    assert done.returncode == 0, done.stderr
    assert "ONEDNN_MAX_CPU_ISA=AVX3 is unknown, and ignored" in done.stderr
    figures = json.loads(done.stdout)
    assert figures["machine"]["isa"]["ONEDNN_MAX_CPU_ISA"] == "AVX3 (unknown: ignored)"
    assert figures["machine"]["isa"]["ATEN_CPU_CAPABILITY"] == "avx2"
    assert figures["machine"]["threads"] == 1 and figures["rescored_top_k_equal"]


def test_a_missed_bar_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    import plots

    parser = argparse.ArgumentParser()
    plots.add_bars(parser)
    bars = {"fast": plots.Bar(3.0, at_least=3.0), "slow": plots.Bar(1.3, at_most=1.3)}
    missed = {**bars, "late": plots.Bar(1.31, at_most=1.3), "lame": plots.Bar(2.99, at_least=3.0)}
    assert [found["reached"] for found in plots.bar_figures(missed).values()] == [True, True, False, False]
    plots.check_bars(parser.parse_args(["--bars"]), bars)
    plots.check_bars(parser.parse_args([]), missed)
    with pytest.raises(
        SystemExit, match=re.escape("late is 1.31, wanted: at most 1.3\nlame is 2.99, wanted: at least 3.0")
    ):
        plots.check_bars(parser.parse_args(["--bars"]), missed)


def test_make_bench_fails_where_a_bar_is_missed() -> None:
    makefile = (BENCHMARKS.parent / "Makefile").read_text()
    with_bars = {path.name for path in BENCHMARKS.glob("*.py") if "add_bars(parser)" in path.read_text()}
    assert (
        set(re.findall(r"benchmarks/(\w+\.py) (?:.* )?--bars\n", makefile))
        == with_bars
        == {"encode.py", "decode.py", "route.py"}
    )


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        (["avx2", "avx512_f", "amx_int8"], None, "AMX"),
        (["avx2", "avx512_f", "amx_int8"], "nonsense", "AMX"),
        (["avx2", "avx512_f", "amx_int8"], "AVX512_CORE_AMX", "AMX"),
        (["avx2", "avx512_f", "amx_int8"], "avx512_core_bf16", "AVX-512"),
        (["avx2", "avx512_f", "amx_int8"], "AVX2", "AVX2"),
        (["avx2", "avx512_f"], "AVX2_VNNI", "AVX2"),
        (["avx2"], "AVX512_CORE_AMX", "AVX2"),
        (["asimddp", "i8mm"], None, "ARM"),
        ([], None, platform.machine()),
    ],
)
def test_the_class_of_a_cpu_is_the_best_that_may_be_used(flags: list[str], limit: str | None, expected: str) -> None:
    assert _cpu_class(flags, limit) == expected


def test_starts_and_first_questions_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import start

    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    asked: list[tuple[str, ...]] = []

    def run(arguments: tuple[str, ...]) -> start.Run:
        asked.append(arguments)
        return start.Run(len(asked), len(asked), len(asked))

    monkeypatch.setattr(start, "run", run)
    options = ("--repeats", 2, "--tokens", 80, "--questions", 2, "--folder", tmp_path / "banks", "--model")
    monkeypatch.setattr(sys, "argv", ["start.py", *map(str, options), str(tmp_path / "msa")])
    start.main()
    figures = json.loads(capsys.readouterr().out)
    assert {"python", "--help", "ls", "ask"} < figures["seconds"].keys() == figures["cpu_seconds"].keys()
    in_turn = len(figures["seconds"])
    assert len(asked) == 1 + 3 * in_turn and "ask" in asked[-1] and str(tmp_path / "msa") in asked[-1]
    # The first of all is the bank's making, then comes a run that is not counted.
    assert figures["seconds"]["python"]["least"] == 2 + in_turn
    assert figures["first_question"]["seconds"] > 0 and figures["later_questions"]["seconds"]["least"] > 0


def test_a_start_that_fails_is_told_and_one_that_writes_much_ends() -> None:
    import start

    more_than_a_pipe_holds = start.run(("-c", "print('y' * 10**6)"))
    assert 0 < more_than_a_pipe_holds.first <= more_than_a_pipe_holds.whole
    with pytest.raises(SystemExit, match="no such luck"):
        start.run(("-c", "raise SystemExit('no such luck')"))


def test_routing_in_a_gpus_memory_is_measured_on_any_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    written = tmp_path / "figures.json"
    options = ["--device", "cpu", "--layers", "2", "--width", "192", "--repeats", "1", "--json", str(written)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--tokens", "20000", "--questions", "1", "3"])
    gpu.main()
    figures = json.loads(written.read_text())
    assert [run["questions"] for run in figures["runs"]] == [1, 3] and figures["way"] == "integers"
    assert all(run["layers_in_memory"] == 2 and run["milliseconds"]["median"] > 0 for run in figures["runs"])
    assert "20,000 tokens" in capsys.readouterr().out
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        with pytest.raises(SystemExit, match=r"there is no GPU .* --device cpu"):
            gpu.main()


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_are_decoded_beside_generate(rows: int) -> None:
    from memspan.bench.device import measure_decoding, plain_backbone

    loaded = tiny_loaded()
    loaded.template.stop_ids, loaded.model.generation_config = frozenset(), None
    figures = measure_decoding(loaded, plain_backbone(loaded), rows, 16, 4)
    assert (figures["rows"], figures["context"]) == (rows, 16) and figures["over_generate"] > 0
    for side in ("memspan", "generate"):
        assert figures[side]["tokens_per_second"] > 0 < figures[side]["first_token_seconds"]


def _python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_others_and_the_exit_code_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_check

    written = tmp_path / "gpu-decode.json"
    chosen = {
        "tests": Step(_python("print('two'); raise SystemExit(3)"), 60),
        "routing": Step(_python("import time; time.sleep(600)"), 2),
        "model": Step(("no such program",), 60),
        "decode": Step(_python(f"open({str(written)!r}, 'w').write('{{\"runs\": [1]}}')"), 60),
        "encode": Step(_python("print('\\udcff fine')"), 60),
    }
    (tmp_path / "gpu-encode.json").write_text("of a former run")
    assert gpu_check.report_all(chosen, list(chosen), tmp_path, 600) == 1 + 2 + 4
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["step"] for report in reports] == list(chosen)
    assert [report["ok"] for report in reports] == [False, False, False, True, True]
    assert reports[0]["exit"] == 3 and reports[0]["output"] == ["two"]
    assert reports[1]["output"][-1] == "stopped after 2 s" and reports[1]["exit"] is None
    assert "no such program" in reports[2]["output"][0]
    assert reports[3]["figures"] == {"runs": [1]} and "figures" not in reports[4]
    assert gpu_check.report_all(chosen, ["decode"], tmp_path, 600) == 0
    assert gpu_check.report_all(chosen, ["decode", "encode"], tmp_path, -1) == 8 + 16
    assert capsys.readouterr().out.count("no time is left") == 2


def test_the_steps_of_a_gpu_are_commands_that_exist(tmp_path: Path) -> None:
    import gpu_check

    chosen = gpu_check.all_steps(tmp_path, "cuda")
    assert list(chosen) == ["tests", "routing", "model", "decode", "encode"]
    assert sum(step.seconds for step in chosen.values()) <= 480
    for step in chosen.values():
        for part in step.command:
            assert "/tests/" not in part or Path(part).exists()
            assert not part.endswith(".py") or Path(part).is_file()
            assert not part.startswith("memspan.") or find_spec(part)
    (tmp_path / "gpu-model").mkdir()
    (tmp_path / "gpu-model" / "config.json").write_text("{}")
    assert run("model", chosen["model"], tmp_path, 60)["note"] == "it is there already"
