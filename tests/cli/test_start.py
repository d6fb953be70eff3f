"""What a command imports: torch and transformers take seconds, and few commands need them. Counted, not timed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command import memspan

# Packages that take longer to import than `memspan ls` does to run. What typer and rich bring is not among them.
HEAVY = {
    *("accelerate", "fastapi", "huggingface_hub", "numpy", "pypdf", "safetensors", "sympy", "tokenizers"),
    *("torch", "transformers", "uvicorn"),
}
OF_A_MODEL = {"accelerate", "fastapi", "huggingface_hub", "pypdf", "tokenizers", "transformers", "uvicorn"}
# Runs commands one after the other, in one process; prints the exit code of each, and the packages that it brought.
PROGRAM = """
import json, sys
from memspan.cli import app
known = set()
for arguments in json.load(sys.stdin):
    code = 0
    try:
        app(arguments)
    except SystemExit as end:
        code = end.code
    there = {name.partition(".")[0] for name in sys.modules}
    print("imported", json.dumps([code, sorted(there - known)]), file=sys.stderr)
    known |= there
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


def imported(folder: Path, commands: Sequence[str], code: int = 0) -> dict[str, set[str]]:
    """The packages that each command is the first to import, of those that run one after the other in one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([command.split() for command in commands]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
    )
    lines = [line.removeprefix("imported ") for line in done.stderr.splitlines() if line.startswith("imported ")]
    found = dict(zip(commands, map(json.loads, lines), strict=True))
    assert {command: one[0] for command, one in found.items()} == dict.fromkeys(commands, code), done.stderr
    return {command: set(packages) for command, (_, packages) in found.items()}


def test_what_needs_no_latents_imports_no_torch(kept: Path) -> None:
    commands = [
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
    ]
    found = imported(kept, commands)
    assert not {command: heavy for command, packages in found.items() if (heavy := packages & HEAVY)}


def test_help_of_all_commands_imports_what_their_options_are_made_of_and_nothing_else() -> None:
    program = "import sys\nfrom memspan.cli import app\ntry:\n    app(['--help'])\nfinally:\n"
    program += "    print(sorted(name for name in sys.modules if name.startswith('memspan.')), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    found = {name.split(".")[1] for name in ast.literal_eval(done.stderr.splitlines()[-1])}
    assert found == {"cli", "dates", "errors", "events", "files", "places", "serve", "types", "version"}
    assert "'memspan.serve.settings'" in done.stderr and "'memspan.serve.keys'" not in done.stderr


def test_an_error_comes_as_soon(kept: Path) -> None:
    commands = [
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
    ]
    found = imported(kept, commands, code=1)
    assert not {command: heavy for command, packages in found.items() if (heavy := packages & HEAVY)}


def test_what_reads_latents_imports_no_model(kept: Path) -> None:
    commands = ["verify bank", "compact bank", "export bank whole"]
    found = imported(kept, commands)
    assert not {command: heavy for command, packages in found.items() if (heavy := packages & OF_A_MODEL)}


def test_importing_leaves_the_collector_as_it_was() -> None:
    program = "import gc\nfrom memspan.cli.importing import imported\n{0}imported('listing')\n"
    program += "assert gc.isenabled() == {1} and (gc.get_freeze_count() > 0) == {1}"
    for before, after in (("", True), ("gc.disable(); ", False)):
        subprocess.run([sys.executable, "-c", program.format(before, after)], timeout=120, check=True)
