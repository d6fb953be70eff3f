"""The order of the house: every import in `src/memspan` goes one way. Imports under TYPE_CHECKING count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "memspan"
FILES = sorted(SOURCE.rglob("*.py"))

_LEVELS = (
    ("types", "config", "dates", "errors", "events", "files", "places", "registry", "stages", "version"),
    ("text", "ops"),
    ("model",),
    ("bank",),
    ("routing",),
    ("generate",),
    ("eval", "integrations"),
    ("bench",),
    ("serve", "cli", "__init__", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(_LEVELS) for part in parts}
# A server among the integrations, under the name by which it is looked for; nothing imports it.
SERVER = "integrations/ray_serve.py"
BASE = frozenset(
    {"types", "config", "dates", "errors", "files", "places", "registry", "stages", "version", "text", "ops", "model"}
)


def _allowed(part: str) -> frozenset[str]:
    """Parts of the package that `part` may import: those below it, and itself."""
    if part == "ops":
        return frozenset({"ops", "registry"})
    if part == "train":
        return BASE | {"train"}
    below = {other for other, level in LEVEL.items() if level < LEVEL[part]}
    if LEVEL[part] in (0, LEVEL["cli"]):
        below |= set(_LEVELS[LEVEL[part]])
    if part == "config":  # it checks the name of a similarity; `ops` knows nothing of configurations
        below |= {"ops"}
    if part in ("cli", "__init__", "__main__"):
        below |= {"train"}
    return frozenset(below | {part})


def _part(path: Path) -> str:
    """The part of the package that a file belongs to: a folder or a module right under it."""
    within = path.relative_to(SOURCE)
    return "serve" if within.as_posix() == SERVER else within.with_suffix("").parts[0]


def _imports(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a file imports, relative imports resolved."""
    package = ["memspan", *path.relative_to(SOURCE).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from memspan import ops` names a part only together with its alias.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _violations(text: str, path: Path) -> list[str]:
    part = _part(path)
    allowed = _allowed(part)
    found = []
    for line, name in _imports(ast.parse(text), path):
        top, _, rest = name.partition(".")
        where = f"{path.relative_to(SOURCE)}:{line} imports {name}"
        if top == "memspan":
            target = rest.partition(".")[0]
            if (target if target in LEVEL or target == "train" else "__init__") not in allowed:
                found.append(where)
        elif part == "ops" and top not in ("torch", "triton") and top not in sys.stdlib_module_names:
            found.append(where)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_parts_below_its_own(path: Path) -> None:
    part = _part(path)
    assert part in LEVEL or part == "train", f"{part} has no place in the order yet; give it one in this test"
    assert not _violations(path.read_text(encoding="utf-8"), path)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ops/scoring.py", "from memspan.types import Retrieved"),
        ("ops/scoring.py", "import numpy"),
        ("text/packing.py", "from memspan.ops.pooling import pool_chunks"),
        ("text/packing.py", "from .. import ops"),
        ("model/router.py", "if TYPE_CHECKING:\n    from memspan.bank import Bank"),
        ("model/router.py", "def late():\n    import memspan.bank.catalog"),
        ("model/router.py", "from memspan import MSAForCausalLM"),
        ("bank/bank.py", "from ..routing import local"),
        ("routing/local.py", "from memspan.generate.memory import Memory"),
        ("generate/memory.py", "from memspan.cli import main"),
        ("integrations/langchain.py", "from memspan.serve.schemas import Message"),
        ("integrations/ray.py", "from memspan.serve.app import create_app"),
        ("train/loop.py", "from memspan.bank.bank import Bank"),
        ("types.py", "from memspan.text.template import Context"),
    ],
)
def test_an_import_against_the_order_is_noticed(file: str, line: str) -> None:
    assert _violations(line, SOURCE / file)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("ops/scoring.py", "import math, torch.nn.functional\nfrom .pooling import pool_chunks"),
        ("model/router.py", "from memspan.ops.pooling import pool_chunks\nfrom . import attention"),
        ("config.py", "from memspan.errors import MemspanError"),
        ("cli.py", "from memspan.generate.memory import Memory\nfrom memspan import __version__"),
        ("train/loop.py", "from memspan.model.modeling import MSAForCausalLM"),
        ("__init__.py", "from memspan.generate.memory import Memory\nfrom .config import MSAConfig"),
    ],
)
def test_an_import_along_the_order_is_let_through(file: str, line: str) -> None:
    assert not _violations(line, SOURCE / file)
