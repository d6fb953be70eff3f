"""Which files a path means, and what their documents are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memspan.errors import CorpusError
from memspan.text.corpus import read_paths
from memspan.text.folders import FoundFile, GivenPath, Root, Roots, matches, walk
from memspan.types import Document, Skipped


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.as_posix(), "utf-8")
    return path


def ids(*paths: Path | str, roots: Roots | None = None) -> list[str]:
    found = read_paths(map(Path, paths), roots=roots)
    return [item.external_id for item in found if isinstance(item, Document)]


# Names ----------------------------------------------------------------------------------------------------------------


def test_folders_of_one_name_have_documents_of_their_own(tmp_path: Path) -> None:
    for folder in ("a/docs", "b/docs", "c/b/docs"):
        write(tmp_path / folder / "README.md")
    folders = [tmp_path / folder for folder in ("a/docs", "b/docs", "c/b/docs")]
    assert ids(*folders) == ["docs/README.md", "b/docs/README.md", "c/b/docs/README.md"]
    assert ids(*reversed(folders)) == ["docs/README.md", "b/docs/README.md", "a/docs/README.md"]


@pytest.mark.parametrize(
    "spelling",
    [
        "docs",
        "docs/",
        "./docs",
        "docs/.",
        "docs/../docs",
        "../{top}/docs",
        "{tmp}/docs",
        "{tmp}/../{top}/docs",
        "link",
        "{tmp}/link/sub/..",
    ],
)
def test_a_folder_has_one_name_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    write(tmp_path / "docs/sub/a.md")
    (tmp_path / "link").symlink_to("docs")
    monkeypatch.chdir(tmp_path)
    assert ids(spelling.format(tmp=tmp_path, top=tmp_path.name)) == ["docs/sub/a.md"]


@pytest.mark.parametrize(
    "spelling", ["a.md", "./a.md", "../docs/a.md", "{tmp}/docs/a.md", "../link/a.md", "../to_a.md", "../there.txt"]
)
def test_a_file_is_the_document_that_its_folder_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    write(tmp_path / "docs/a.md")
    (tmp_path / "link").symlink_to("docs")
    (tmp_path / "to_a.md").symlink_to("docs/a.md")
    (tmp_path / "there.txt").symlink_to("to_a.md")
    monkeypatch.chdir(tmp_path / "docs")
    assert ids(spelling.format(tmp=tmp_path)) == ids(tmp_path / "docs") == ["docs/a.md"]


def test_what_overlaps_is_named_by_the_first_that_holds_it(tmp_path: Path) -> None:
    for name in ("docs/a.md", "docs/sub/b.md", "docs/sub/deep/c.md"):
        write(tmp_path / name)
    docs = tmp_path / "docs"
    assert ids(docs, docs / "sub") == [
        *("docs/a.md", "docs/sub/b.md", "docs/sub/deep/c.md"),
        *("docs/sub/b.md", "docs/sub/deep/c.md"),
    ]
    assert ids(docs / "sub", docs)[2:] == ["docs/a.md", "sub/b.md", "sub/deep/c.md"]
    assert ids(docs / "sub/b.md", docs) == ["sub/b.md", "docs/a.md", "sub/b.md", "docs/sub/deep/c.md"]
    assert ids(tmp_path / "docs/a.md", docs) == ["docs/a.md", "docs/a.md", "docs/sub/b.md", "docs/sub/deep/c.md"]


def test_a_file_given_by_itself_names_no_folders_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "a.md")
    write(tmp_path / "docs/b.md")
    assert ids(tmp_path / "a.md", tmp_path / "docs") == [f"{tmp_path.name}/a.md", "docs/b.md"]


@pytest.mark.parametrize(
    ("known", "folder", "name"),
    [
        ([], "/x/docs", "docs"),
        ([], "/", "root"),
        ([("docs", "/x/docs")], "/x/docs", "docs"),
        ([("docs", "/x/docs")], "/y/docs", "y/docs"),
        ([("docs", "/x/docs")], "/docs", "docs~2"),
        ([("docs", "/x/docs"), ("docs~2", "/z")], "/docs", "docs~3"),
        ([("docs", "")], "/x/docs", "docs"),
        ([("docs", ""), ("x/docs", "/x/docs")], "/x/docs", "x/docs"),
        ([("y", "/z/y"), ("docs", "/x/docs")], "/a/y/docs", "a/y/docs"),
        ([("y/docs", "/y/docs")], "/z/y", "z/y"),
        ([("y/docs", "/y/docs")], "/y", "y~2"),
        ([("doc", "/x/doc")], "/x/docs", "docs"),
    ],
)
def test_no_two_roots_can_give_the_same_id(known: list[tuple[str, str]], folder: str, name: str) -> None:
    assert Roots(Root(*one) for one in known).add(folder).name == name


def test_a_root_may_be_told_where_it_is_now() -> None:
    roots = Roots([Root("docs", ""), Root("notes", "/n")])
    now = str(Path("/elsewhere"))
    assert roots.add(now, name="docs") == Root("docs", now)
    assert roots.place(FoundFile(Path("a"), os.path.join(now, "sub"), "a.md"))[1] == "sub/a.md"
    assert [root.name for root in roots.all] == ["docs", "notes"]


def test_nothing_of_the_disk_above_the_folder_is_kept(tmp_path: Path) -> None:
    write(tmp_path / "docs/sub/a.md", "Text")
    write(tmp_path / "docs/r.jsonl", '{"text": "A"}\n{"text": "B", "id": "b", "path": "own"}')
    write(tmp_path / "docs/t.csv", "text\nC\n")
    found = [item for item in read_paths([tmp_path / "docs", tmp_path / "docs/sub/a.md"]) if isinstance(item, Document)]
    assert [one.metadata["path"] for one in found] == ["r.jsonl", "own", "sub/a.md", "t.csv", "sub/a.md"]
    assert str(tmp_path.parent) not in repr(found).replace(repr(found[2].text), "")


# Patterns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("docs/*.md", "docs/a.md", True),
        ("docs/*.md", "docs/sub/a.md", False),
        ("docs/*.md", "docs/.md", True),
        ("docs/*.md", "docs/a.MD", False),
        ("docs/**", "docs/sub/a.md", True),
        ("docs/**", "docs", True),
        ("docs/**", "docs2/a.md", False),
        ("**/*.md", "a.md", True),
        ("**/*.md", "x/y/z.md", True),
        ("**/*.md", "x/y/z.txt", False),
        ("docs/**/a.md", "docs/a.md", True),
        ("docs/**/a.md", "docs/x/y/a.md", True),
        ("docs/**/**/a.md", "docs/x/a.md", True),
        ("?.md", "é.md", True),
        ("?.md", "ab.md", False),
        ("[ab].md", "b.md", True),
        ("[!ab].md", "b.md", False),
        ("docs", "docs/a.md", False),
        ("*", "docs/a.md", False),
        ("*", "a\nb", True),
        ("", "", True),
        ("/".join(["**"] * 60 + ["b"]), "/".join(["a"] * 60), False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert matches(path, pattern) is expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("docs/*.md", ["docs/a.md"]),
        ("docs/**/*.md", ["docs/a.md", "docs/sub/b.md"]),
        ("./docs/s*/*", ["docs/sub/b.md", "docs/sub/c.txt"]),
        ("docs/nothing*", []),
    ],
)
def test_a_pattern_means_the_files_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    for name in ("a.md", "sub/b.md", "sub/c.txt"):
        write(tmp_path / "docs" / name)
    monkeypatch.chdir(tmp_path)
    given = GivenPath.of(Path(pattern), patterns=True)
    found = [file for file in given.files() if isinstance(file, FoundFile)]
    assert [file.path.as_posix() for file in found] == expected
    assert all(given.holds(file.relative) for file in found)


def test_a_name_that_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "[x]/a*.md")
    write(tmp_path / "x/ab.md")
    for path in (tmp_path / "[x]", tmp_path / "[x]/a*.md"):
        (found,) = GivenPath.of(path, patterns=True).files()
        assert isinstance(found, FoundFile) and found.relative == "a*.md"


# .memspanignore -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({"": ""}, ["a.md", "a.txt", "build/x.md", "sub/a.md", "sub/b.txt"]),
        ({"": "*.md"}, ["a.txt", "sub/b.txt"]),
        ({"": "\ufeff# comment\n\n/*.md\n"}, ["a.txt", "build/x.md", "sub/a.md", "sub/b.txt"]),
        ({"": "*.md\r\n!a.md\r\n"}, ["a.md", "a.txt", "sub/a.md", "sub/b.txt"]),
        ({"": "build/"}, ["a.md", "a.txt", "sub/a.md", "sub/b.txt"]),
        ({"": "build/\n!build/x.md"}, ["a.md", "a.txt", "sub/a.md", "sub/b.txt"]),
        ({"": "sub/*.md"}, ["a.md", "a.txt", "build/x.md", "sub/b.txt"]),
        ({"": "**/a.*"}, ["build/x.md", "sub/b.txt"]),
        ({"sub": "*"}, ["a.md", "a.txt", "build/x.md"]),
        ({"": "*.txt", "sub": "!b.txt"}, ["a.md", "build/x.md", "sub/a.md", "sub/b.txt"]),
        ({"sub": "/a.md"}, ["a.md", "a.txt", "build/x.md", "sub/b.txt"]),
        ({"": "*"}, []),
    ],
)
def test_what_is_ignored(tmp_path: Path, rules: dict[str, str], left: list[str]) -> None:
    for name in ("a.md", "a.txt", "build/x.md", "sub/a.md", "sub/b.txt"):
        write(tmp_path / name)
    for folder, text in rules.items():
        (tmp_path / folder / ".memspanignore").write_bytes(text.encode())
    assert [str(path.relative_to(tmp_path)) for path in walk(tmp_path) if isinstance(path, Path)] == left


def test_a_bank_among_the_files_is_passed_over_and_no_other_folder(tmp_path: Path) -> None:
    for name in ("a.md", "bank/catalog.sqlite", "bank/segments/x.md", "bank/imports/y.jsonl"):
        write(tmp_path / name)
    for name in ("data/catalog.sqlite", "data/b.md", "more/segments/c.md"):
        write(tmp_path / name)
    left = ["a.md", "data/b.md", "data/catalog.sqlite", "more/segments/c.md"]
    assert [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path) if isinstance(path, Path)] == left
    (skipped,) = walk(tmp_path / "bank")
    assert isinstance(skipped, Skipped) and "a memory bank; memspan export" in skipped.reason


@pytest.mark.parametrize("rules", [b"!", b"\xff\xfe*"])
def test_rules_that_cannot_be_read_are_an_error_not_passed_over(tmp_path: Path, rules: bytes) -> None:
    write(tmp_path / "a.md")
    (tmp_path / ".memspanignore").write_bytes(rules)
    with pytest.raises(CorpusError, match=r"\.memspanignore cannot be read"):
        list(walk(tmp_path))
