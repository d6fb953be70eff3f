"""Build the site of these pages into build/site: `python docs/make_site.py` (or `make docs`).

Writes build/pages, which mkdocs.yml names: the README as index.md, the pages, the API reference, and every file beside
docs/ that a page leads to, under its path in the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import memspan

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
_LINK = re.compile(r"""(?:(?<=\]\()|(?<=src=")|(?<=srcset="))(?!\w+:|#)[^)#"\s]+""")
_API = "# API\n\nThe public names of `memspan`, from their docstrings. [Python](python.md) shows how to use them."
_GROUPS = {
    "Memory": ("generate",),
    "Documents and answers": ("types",),
    "Models": ("model", "config"),
    "Banks": ("bank",),
    "Errors": ("errors",),
}
"""Headings of the API reference, and the parts of the package whose public names stand under each."""


def write_pages(folder: Path) -> None:
    """Write the pages of the site into an empty folder."""
    waiting, written = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], set[Path]()
    while waiting:
        source = waiting.pop()
        if source in written:
            continue
        written.add(source)
        target = folder / place(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            text = source.read_text(encoding="utf-8")
            target.write_text(with_moved_links(source, text), encoding="utf-8", newline="\n")
            waiting += [found for link in _LINK.findall(text) if (found := linked(source, link)).is_file()]
        else:
            shutil.copyfile(source, target)
    (folder / "api.md").write_text("\n\n".join(api_reference()), encoding="utf-8", newline="\n")


def api_reference() -> Iterator[str]:
    """The paragraphs of the API reference: a heading, then a directive for each name, which mkdocstrings replaces."""
    yield _API
    homes = {name: getattr(memspan, name).__module__ for name in memspan.__all__ if name != "__version__"}
    for title, parts in _GROUPS.items():
        yield f"## {title}"
        yield from (f"::: {home}.{name}" for name, home in homes.items() if home.split(".")[1] in parts)


def linked(source: Path, link: str) -> Path:
    """The file that a link of a page leads to."""
    return Path(os.path.normpath(source.parent / link))


def place(source: Path) -> Path:
    """Where a file of the repository stands among the pages."""
    if source == ROOT / "README.md":
        return Path("index.md")
    return source.relative_to(ROOT / "docs" if source.is_relative_to(ROOT / "docs") else ROOT)


def with_moved_links(source: Path, text: str) -> str:
    """A page's text, with links that lead to the same files among the pages."""
    start = place(source).parent
    return _LINK.sub(lambda link: Path(os.path.relpath(place(linked(source, link[0])), start)).as_posix(), text)


if __name__ == "__main__":
    shutil.rmtree(PAGES, ignore_errors=True)
    write_pages(PAGES)
    zensical = shutil.which("zensical", path=sysconfig.get_path("scripts"))
    if zensical is None:
        raise SystemExit("this needs zensical: pip install '.[docs]'")
    subprocess.run([zensical, "build", "--strict", "--clean", "--config-file", "mkdocs.yml"], check=True, cwd=ROOT)
