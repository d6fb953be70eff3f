"""Banks of format 2, which kept the paths of files in metadata: none is given away, and the files are known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import add_latents, make_format_2, random_latents, tiny_manifest

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE
from memspan.bank.former_paths import place_of, without_disk
from memspan.bank.ledger import Ledger
from memspan.bank.lines import export_documents
from memspan.bank.texts import TextBank
from memspan.bank.verify import verify
from memspan.text.corpus import read_paths
from memspan.types import Document

MANIFEST = tiny_manifest(num_kv_heads=1, head_dim=2)

FILES = {
    "docs/a.md": "docs/a.md",
    "docs/sub/b.md": "docs/sub/b.md",
    "docs/r.jsonl#1": "docs/r.jsonl",
    "an-id-of-a-record": "docs/r.jsonl",
    "notes.txt": "alone/notes.txt",
    "{tmp}/alone/other.txt": "alone/other.txt",
}


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A bank of format 2 of files that are there, and of documents with paths of their own."""
    torch.manual_seed(0)
    with closing(MemoryBank.create(tmp_path / "bank", MANIFEST)) as bank, bank.writer() as writer:
        for external_id, relative in FILES.items():
            path = tmp_path / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"text": "A record."}\n' if path.suffix == ".jsonl" else f"The text of {path.name}.")
            name = external_id.format(tmp=tmp_path)
            document = Document(name, f"The text of {path.name}.", path.stem, {"path": str(path), "n": 1})
            add_latents(writer, document, random_latents(MANIFEST, 1))
        for number, path in enumerate(["/api/users", "relative/x.md", "C:\\own\\path.md", "", "docs/a.md"]):
            document = Document(f"own-{number}", "By hand.", "", {"path": path})
            add_latents(writer, document, random_latents(MANIFEST, 1))
        writer.commit()
    make_format_2(tmp_path / "bank")
    yield tmp_path / "bank"


def paths(bank: TextBank) -> dict[str, object]:
    found = bank.catalog.sources(DEFAULT_NAMESPACE)
    return {one.document.external_id: one.document.metadata["path"] for one in found}


def expected(tmp_path: Path) -> dict[str, str]:
    of_files = ["a.md", "sub/b.md", "r.jsonl", "r.jsonl", "notes.txt", "other.txt"]
    own = ["/api/users", "relative/x.md", "C:\\own\\path.md", "", "docs/a.md"]
    return {
        **{name.format(tmp=tmp_path): path for name, path in zip(FILES, of_files, strict=True)},
        **{f"own-{number}": path for number, path in enumerate(own)},
    }


def test_what_is_only_read_gives_no_path_away(old: Path, tmp_path: Path) -> None:
    with closing(TextBank.open(old)) as bank, (tmp_path / "x.jsonl").open("w+", encoding="utf-8") as lines:
        assert paths(bank) == expected(tmp_path)
        export_documents(bank, lines)
        lines.seek(0)
        kept = {value["external_id"]: value["metadata"]["path"] for value in map(json.loads, lines)}
        assert kept == expected(tmp_path)
        assert Ledger(bank.catalog, DEFAULT_NAMESPACE).files() == []
    with closing(MemoryBank.open(old)) as bank:
        assert verify(bank) == []


def test_the_first_writer_keeps_the_files_instead_of_their_paths(old: Path, tmp_path: Path) -> None:
    with closing(MemoryBank.open(old)) as bank:
        bank.delete(["own-0"])
        wanted = expected(tmp_path)
        del wanted["own-0"]
        assert paths(bank) == wanted and verify(bank) == []
        ledger = Ledger(bank.catalog, DEFAULT_NAMESPACE)
        found = {file.name: (Path(file.path).relative_to(tmp_path).as_posix(), file.alone) for file in ledger.files()}
        assert found == {
            "docs/a.md": ("docs/a.md", False),
            "docs/sub/b.md": ("docs/sub/b.md", False),
            "docs/r.jsonl": ("docs/r.jsonl", False),
            "notes.txt": ("alone/notes.txt", True),
            f"{tmp_path}/alone/other.txt": ("alone/other.txt", True),
        }
        assert ledger.stale() == [], "what the files were like then is not known"
        assert [root.name for root in ledger.roots().all] == ["docs", "alone"]
        ids = [
            one.external_id
            for one in read_paths([tmp_path / "docs"], roots=ledger.roots())
            if isinstance(one, Document)
        ]
        assert ids == ["docs/a.md", "docs/r.jsonl#1", "docs/sub/b.md"]


def test_documents_of_two_folders_that_were_one_are_told_apart(tmp_path: Path) -> None:
    with closing(MemoryBank.create(tmp_path / "bank", MANIFEST)) as bank, bank.writer() as writer:
        for name, path in (("docs/a.md", "/x/docs/a.md"), ("docs/b.md", "/y/docs/b.md"), ("docs/c.md", "/x/docs/c.md")):
            add_latents(writer, Document(name, name, "", {"path": path}), random_latents(MANIFEST, 1))
        writer.commit()
    make_format_2(tmp_path / "bank")
    with closing(MemoryBank.open(tmp_path / "bank")) as bank, bank.writer():
        files = {file.name: file.root for file in Ledger(bank.catalog, DEFAULT_NAMESPACE).files()}
        assert files == {"docs/a.md": "docs", "docs/b.md": "y/docs", "docs/c.md": "docs"}


@pytest.mark.parametrize(
    ("external_id", "path", "place"),
    [
        ("docs/a.md", "/x/docs/a.md", ("/x/docs", "a.md", False)),
        ("docs/sub/a.md", "/x/docs/sub/a.md", ("/x/docs", "sub/a.md", False)),
        ("a.md", "/x/a.md", ("/x", "a.md", True)),
        ("/x/a.md", "/x/a.md", ("/x", "a.md", True)),
        ("/a.md", "/a.md", ("/", "a.md", True)),
        ("docs/t.csv#12", "/x/docs/t.csv", ("/x/docs", "t.csv", False)),
        ("docs/a#1.md", "/x/docs/a#1.md", ("/x/docs", "a#1.md", False)),
        ("42", "/x/data.jsonl.gz", ("/x", "data.jsonl.gz", True)),
        ("docs/a.md", "C:\\x\\docs\\a.md", ("C:\\x\\docs", "a.md", False)),
        ("docs/a.md", "\\\\host\\share\\docs\\a.md", ("\\\\host\\share\\docs", "a.md", False)),
        ("42", "/api/v1", None),
        ("a.md", "docs/a.md", None),
        ("a.md", "/x/ba.md", None),
        ("a.md", 7, None),
        ("a.md", None, None),
        ("a.md", ["/x/a.md"], None),
    ],
)
def test_which_paths_are_those_of_files(external_id: str, path: object, place: tuple[str, str, bool] | None) -> None:
    assert place_of(external_id, path) == place
    metadata = json.dumps({"path": path, "x": "\u00fc"}, ensure_ascii=False)
    kept = json.loads(without_disk(external_id, metadata))
    assert kept == {"path": path if place is None else place[1], "x": "\u00fc"}


def test_a_read_only_copy_is_read_too(old: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(old, tmp_path / "copy")
    with closing(TextBank.open(copy)) as bank, bank.pinned_catalog() as catalog:
        (found,) = catalog.documents_of(DEFAULT_NAMESPACE, "docs/sub/b.md")
        assert found.metadata == {"path": "sub/b.md", "n": 1}
