"""What a command imports: torch and transformers take seconds, and few commands need them. Counted, not timed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import memspan

# Packages that take longer to import than `memspan ls` does to run. What typer and rich bring is not among them.
HEAVY = {
    *("accelerate", "fastapi", "huggingface_hub", "numpy", "pypdf", "safetensors", "sympy", "tokenizers"),
    *("torch", "transformers", "uvicorn"),
}
OF_A_MODEL = {"accelerate", "fastapi", "huggingface_hub", "pypdf", "tokenizers", "transformers", "uvicorn"}
PROGRAM = """
import json, sys
from memspan.cli import app
code = 0
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""
OTTER = "notes/otter.txt"


@pytest.fixture(scope="module")
def kept(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bank of two notes."""
    folder = tmp_path_factory.mktemp("start")
    lines = [{"id": name, "text": f"The {name} of Rome lives at number seven."} for name in (OTTER, "notes/heron.txt")]
    (folder / "notes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert memspan("add", folder / "bank", folder / "notes.jsonl", "--model", checkpoint).code == 0
    assert memspan("publish", folder / "bank", folder / "shared").code == 0
    return folder


def imported(folder: Path, *arguments: str, code: int = 0) -> set[str]:
    """Packages that a process has when a command has run in it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )
    found_code, packages = json.loads(done.stderr.splitlines()[-1])
    assert found_code == code, done.stderr
    return set(packages)


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "ask --help",
        "ls bank --where path!=none --json",
        "info bank",
        "changes bank 7d --json",
        "search bank otter --selector lexical --as-of 2999-01-01 --json",
        f"update bank {OTTER} --date 2020-05-01 --set legs=4",
        "export bank -",
        "publish bank shared",
        "search shared otter --selector lexical --cache cache",
        "reindex bank",
        "rm bank notes/heron.txt",
        "keys add bob --keys keys.json",
        "keys list --keys keys.json",
    ],
)
def test_what_needs_no_latents_imports_no_torch(kept: Path, command: str) -> None:
    assert not imported(kept, *command.split()) & HEAVY


def test_help_of_all_commands_imports_what_their_options_are_made_of_and_nothing_else() -> None:
    program = "import sys\nfrom memspan.cli import app\ntry:\n    app(['--help'])\nfinally:\n"
    program += "    print(sorted(name for name in sys.modules if name.startswith('memspan.')), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    found = {name.split(".")[1] for name in ast.literal_eval(done.stderr.splitlines()[-1])}
    assert found == {"cli", "dates", "errors", "events", "files", "places", "serve", "types", "version"}
    assert "'memspan.serve.settings'" in done.stderr and "'memspan.serve.keys'" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "ls nowhere",
        "ask nowhere otter",
        "search nowhere otter",
        "summarize nowhere",
        "reencode nowhere",
        "compact nowhere",
        "reindex nowhere",
        "info nowhere",
        "ls bank --where wings=2",
        "search bank otter --selector lexical --where wings=2",
        f"update bank {OTTER}",
        "rm bank nothing",
        "rm bank otter.txt",
        "add bank",
        "add bank nowhere",
        "sync bank nowhere",
    ],
)
def test_an_error_comes_as_soon(kept: Path, command: str) -> None:
    assert not imported(kept, *command.split(), code=1) & HEAVY


@pytest.mark.parametrize("command", ["verify bank", "compact bank", "export bank whole"])
def test_what_reads_latents_imports_no_model(kept: Path, command: str) -> None:
    assert not imported(kept, *command.split()) & OF_A_MODEL


def test_importing_leaves_the_collector_as_it_was(kept: Path) -> None:
    program = "import gc\nfrom memspan.cli.importing import imported\n{0}imported('models')\n"
    program += "assert gc.isenabled() == {1} and (gc.get_freeze_count() > 0) == {1}"
    for before, after in (("", True), ("gc.disable(); ", False)):
        subprocess.run([sys.executable, "-c", program.format(before, after)], timeout=120, check=True)
