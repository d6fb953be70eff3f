from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SAMPLE = """
import pytest
def test_runs(): pass
def test_is_skipped(): pytest.skip("no GPU here")
@pytest.mark.skipif(True, reason="Windows has no fork")
def test_is_marked(): pass
@pytest.mark.xfail(reason="a known bug")
def test_is_expected_to_fail(): assert False
"""
MODULE = 'import pytest\npytest.importorskip("no_such_package", reason="needs a package")\n'
ALL = ["no GPU here", "Windows has no f.*", "needs a package"]


def _run(folder: Path, *arguments: object, sample: str = SAMPLE) -> subprocess.CompletedProcess[str]:
    (folder / "test_sample.py").write_text(sample, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "allowed_skips",
        "-p",
        "no:cacheprovider",
        "-q",
        *arguments,
        folder,
    ]
    environment = os.environ | {"PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert "INTERNALERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done


def _listed(folder: Path, *lines: str) -> tuple[str, Path]:
    path = folder / "skips.txt"
    path.write_text("\n".join(["# comment", "", *lines]), encoding="utf-8")
    return "--skips", path


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n", "1")])
def test_a_skip_that_is_not_listed_fails_the_run(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "test_module.py").write_text(MODULE, encoding="utf-8")
    done = _run(tmp_path, *workers, *_listed(tmp_path, *ALL))
    assert done.returncode == 0 and "without leave" not in done.stdout, done.stdout
    for listed, missing in ((ALL[:1], ALL[1:]), (ALL[1:], ALL[:1])):
        done = _run(tmp_path, *workers, *_listed(tmp_path, *listed))
        assert done.returncode == 1, done.stdout
        assert done.stdout.count("SKIPPED without leave") == len(missing)
        named = done.stdout.partition("SKIPPED without leave")[2]
        assert all(reason.replace(".*", "") in named for reason in missing)


def test_a_reason_must_be_listed_whole(tmp_path: Path) -> None:
    assert _run(tmp_path, *_listed(tmp_path, "no GPU", "Windows has no fork")).returncode == 1


def test_without_a_list_skips_are_left_alone(tmp_path: Path) -> None:
    assert _run(tmp_path).returncode == 0


def test_a_run_that_fails_anyhow_says_so(tmp_path: Path) -> None:
    done = _run(tmp_path, *_listed(tmp_path, ".*"), sample=SAMPLE + "def test_fails(): assert False\n")
    assert done.returncode == 1 and "without leave" not in done.stdout
    nothing = _run(tmp_path, *_listed(tmp_path), sample="")
    assert nothing.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


def test_the_lists_of_the_workflow_are_there() -> None:
    workflow = (HERE.parent / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    for name in ("everywhere", "linux", "macos", "windows", "avx2"):
        assert (HERE / "skips" / f"{name}.txt").is_file() and name in workflow
