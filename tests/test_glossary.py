"""The table of words in docs/architecture.md: it explains every public class, and names no class that is not there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import memspan

ROOT = Path(__file__).parents[1]
_ROW = re.compile(r"^\| (?P<word>[^|]+) \| [^|]+ \| (?P<names>[^|]+) \|$", re.MULTILINE)


def _rows() -> dict[str, list[str]]:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("\n## Words\n")[1].split("\n## ")[0]
    rows = {row["word"]: re.findall(r"`(\w+)`", row["names"]) for row in _ROW.finditer(table)}
    return {word: names for word, names in rows.items() if names}


def test_a_word_stands_once_and_its_names_are_those_of_the_package() -> None:
    rows = _rows()
    assert len(rows) >= 30
    defined = set[str]()
    for path in (ROOT / "src").rglob("*.py"):
        defined |= set(re.findall(r"^(?:class|def) (\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    names = [name for row in rows.values() for name in row]
    assert set(names) <= defined
    assert len(names) == len(set(names))


def test_every_public_class_has_a_word() -> None:
    public = {name for name in memspan.__all__ if inspect.isclass(getattr(memspan, name))}
    errors = {name for name in public if issubclass(getattr(memspan, name), Exception)}
    assert public - errors <= {name for row in _rows().values() for name in row}


def test_no_two_classes_of_the_library_share_a_name() -> None:
    """Those of other packages' protocols (a retriever of each framework) and those inside a module aside."""
    places: dict[str, list[str]] = {}
    for path in (ROOT / "src").rglob("*.py"):
        for name in re.findall(r"^class ([A-Z]\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            places.setdefault(name, []).append(path.stem)
    assert {name: stems for name, stems in places.items() if len(stems) > 1 and name != "MemspanRetriever"} == {}
