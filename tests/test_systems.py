"""What the source must not leave to the system it runs on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("src", "benchmarks", "docs", "examples") for path in sorted((ROOT / folder).rglob("*.py"))]
# Calls that only some systems have, and the one file that knows what to do without.
_ONLY_IN = {
    "fsync": "files.py",
    "F_FULLFSYNC": "files.py",
    "flock": "locks.py",
    "pread": "locks.py",
    "pwrite": "locks.py",
    "geteuid": None,
    "getuid": None,
    "umask": None,
    "fork": None,
    "mkfifo": None,
    "sysconf": None,
    "SIGKILL": None,
    "SIGHUP": None,
}
_MODE = re.compile(r"[rwaxt+]+")


def _without_encoding(tree: ast.Module) -> Iterator[int]:
    """Lines that read or write text in the system's own encoding, which on Windows is not UTF-8."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        is_method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("read_text", "write_text") and is_method:
            yield from [node.lineno] * (len(node.args) < (1 if name == "read_text" else 2))
        elif name in ("open", "fdopen"):
            place = 0 if is_method and name == "open" else 1
            mode = node.args[place] if len(node.args) > place else ast.Constant("r")
            # `Memory.open(folder)`, `archive.open(entry)`: no file, or no text.
            if isinstance(mode, ast.Constant) and isinstance(mode.value, str) and _MODE.fullmatch(mode.value):
                yield node.lineno


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_is_read_and_written_in_a_named_encoding(path: Path) -> None:
    assert list(_without_encoding(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    ["p.read_text()", "p.write_text(x)", "p.open()", "p.open('a')", "open(p)", "open(p, 'w')", "os.fdopen(n, 'w')"],
)
def test_a_line_without_an_encoding_is_noticed(line: str) -> None:
    assert list(_without_encoding(ast.parse(line))) == [1]


@pytest.mark.parametrize(
    "line",
    ["p.read_text('utf-8')", "p.write_text(x, 'utf-8')", "p.open('rb')", "open(p, 'w', encoding='utf-8')", "B.open(p)"],
)
def test_a_line_with_an_encoding_or_without_text_is_let_through(line: str) -> None:
    assert list(_without_encoding(ast.parse(line))) == []


def _float64(tree: ast.Module) -> Iterator[int]:
    """Lines that make float64 of what may lie on an accelerator: Metal has none. `x.cpu().double()` does not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value
            is_on_cpu = isinstance(of, ast.Call) and isinstance(of.func, ast.Attribute) and of.func.attr == "cpu"
            is_torch = isinstance(of, ast.Name) and of.id == "torch"
            if (node.attr == "double" and not is_on_cpu) or (node.attr == "float64" and is_torch):
                yield node.lineno


# `scoring`: rows of the bank, which are scored where they lie; `whiten`: of what `.cpu()` gave; `probe`: a tolerance.
@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_float64_on_an_accelerator(path: Path) -> None:
    found = list(_float64(ast.parse(path.read_text(encoding="utf-8"))))
    assert found == [] or path.name in ("scoring.py", "whiten.py", "probe.py")


def test_float64_is_noticed() -> None:
    assert list(_float64(ast.parse("x.double()\nx.cpu().double()\nx.to(torch.float64)\nnp.float64"))) == [1, 3]


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_only_some_systems_have_is_used_where_the_others_are_thought_of(path: Path) -> None:
    used = {name for _, name in _names(ast.parse(path.read_text(encoding="utf-8"))) if name in _ONLY_IN}
    assert {name for name in used if _ONLY_IN[name] != path.name} == set()
