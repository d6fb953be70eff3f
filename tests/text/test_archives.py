"""Archives and compressed files, and what they must not do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import zstandard

from memspan.text.corpus import read_paths
from memspan.text.readers import archives, unpacking
from memspan.types import Document, Skipped

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


def read(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Texts by id and reasons by source, both from the file's own name on."""
    found = list(read_paths([path]))
    start = f"{path.parent.name}/"
    texts = {one.external_id.removeprefix(start): one.text for one in found if isinstance(one, Document)}
    reasons = {one.source.partition(start)[2]: one.reason for one in found if isinstance(one, Skipped)}
    assert len(texts) + len(reasons) == len(found)
    return texts, reasons


def zipped(members: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# Compressed files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize(
    ("name", "data", "ids"),
    [
        ("a.txt", b"An otter.", [""]),
        ("a.MD", b"# Otters\n\nText", [""]),
        ("a.html", b"<title>T</title><p>An otter", [""]),
        ("a.csv", b"id,text\n1,one\n2,two\n", ["1", "2"]),
        ("a.jsonl", b'{"text": "one"}\n{"text": "two"}\n', ["#1", "#2"]),
        ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n", [""]),
        ("a.tar", tarred({"b.txt": b"In it."}), ["/b.txt"]),
        ("a.zip", zipped({"b.txt": b"In it."}), ["/b.txt"]),
    ],
)
def test_every_format_may_be_compressed(tmp_path: Path, packed: str, name: str, data: bytes, ids: list[str]) -> None:
    path = written(tmp_path / f"{name}.{packed}", PACKERS[packed](data))
    texts, reasons = read(path)
    assert not reasons
    assert sorted(texts) == [id if id.isdigit() else path.name + id for id in ids]


@pytest.mark.parametrize("packed", PACKERS)
def test_a_compressed_file_that_is_damaged_is_skipped(tmp_path: Path, packed: str) -> None:
    data = PACKERS[packed](os.urandom(5000).hex().encode())
    for name, broken in (("cut", data[: len(data) // 2]), ("empty", b""), ("other", b"not compressed at all")):
        texts, reasons = read(written(tmp_path / f"{name}.txt.{packed}", broken))
        assert not texts
        assert len(reasons) == 1


def test_the_name_of_a_compressed_file_decides_its_format_and_its_title(tmp_path: Path) -> None:
    (found,) = read_paths([written(tmp_path / "notes.txt.gz", gzip.compress(b"Only this"))])
    assert isinstance(found, Document)
    assert (found.text, found.title) == ("Only this", "notes.txt")


def test_a_folder_reads_compressed_files_of_known_formats_only(tmp_path: Path) -> None:
    written(tmp_path / "a.txt.gz", gzip.compress(b"Text"))
    written(tmp_path / "b.gz", gzip.compress(b"Text"))
    written(tmp_path / "c.exe.xz", lzma.compress(b"Text"))
    found = list(read_paths([tmp_path]))
    assert [type(one) for one in found] == [Document, Skipped, Skipped]


def test_a_bomb_of_zeros_is_named_and_unpacks_to_no_more_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MIN_ALLOWED_BYTES", 1 << 20)
    bomb = bytes(8 << 20)
    for name, data in (("a.pdf.gz", gzip.compress(bomb)), ("a.zip", zipped({"a.txt": bomb, "b.txt": b"b"}))):
        texts, reasons = read(written(tmp_path / name, data))
        assert not texts
        (reason,) = reasons.values()
        assert "unpacks to too much for its size" in reason


# Archives -------------------------------------------------------------------------------------------------------------

MEMBERS = {"a.txt": b"One", "deep/er/b.md": b"# B\n\nTwo", "c.jsonl": b'{"id": "x", "text": "Three"}'}


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("x.zip", zipped),
        ("x.tar", tarred),
        ("x.tar.gz", lambda members: gzip.compress(tarred(members))),
        ("x.tgz", lambda members: gzip.compress(tarred(members))),
        ("X.TGZ", lambda members: gzip.compress(tarred(members))),
        ("x.tar.xz", lambda members: lzma.compress(tarred(members))),
        ("x.tbz2", lambda members: bz2.compress(tarred(members))),
        ("x.tar.zst", lambda members: PACKERS["zst"](tarred(members))),
    ],
)
def test_members_are_documents_and_records(tmp_path: Path, name: str, pack: Callable[..., bytes]) -> None:
    texts, reasons = read(written(tmp_path / name, pack(MEMBERS)))
    assert texts == {f"{name}/a.txt": "One", f"{name}/deep/er/b.md": "# B\n\nTwo", "x": "Three"}
    assert not reasons


def test_members_have_the_titles_dates_and_metadata_of_their_files(tmp_path: Path) -> None:
    data = zipped({"2024-03-01-plan.md": "# The plan\n\nText", "code/a.py": "x = 1\n"})
    plan, code = read_paths([written(tmp_path / "x.zip", data)])
    assert isinstance(plan, Document) and isinstance(code, Document)
    assert (plan.title, plan.date) == ("The plan", "2024-03-01")
    assert code.title == f"{tmp_path.name}/x.zip/code/a.py"


@pytest.mark.parametrize(
    ("member", "id"),
    [
        ("/etc/passwd.txt", "etc/passwd.txt"),
        ("../../up.txt", "up.txt"),
        ("a/../../../b.txt", "a/b.txt"),
        ("..\\..\\w.txt", "w.txt"),
        ("C:\\Users\\w.txt", "Users/w.txt"),
        ("a:b?.txt", "a:b?.txt"),
        ("con.txt", "con.txt"),
        ("ü/é.txt", "ü/é.txt"),
        ("x" * 200 + ".txt", "x" * 200 + ".txt"),
    ],
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_member_leaves_the_folder_it_is_unpacked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[..., bytes], member: str, id: str
) -> None:
    unpacked_to = tmp_path / "unpacked"
    unpacked_to.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(unpacked_to))
    name = "x.zip" if pack is zipped else "x.tar"
    texts, _ = read(written(tmp_path / name, pack({member: b"Text"})))
    assert texts == {f"{name}/{id}": "Text"}
    assert sorted(tmp_path.iterdir()) == sorted([unpacked_to, tmp_path / name])
    assert list(unpacked_to.iterdir()) == [], "all of it is removed"


def test_hidden_members_are_passed_over_and_others_that_cannot_be_read_named(tmp_path: Path) -> None:
    members = {".git/a.txt": b"x", "__MACOSX/._a.txt": b"x", "a.exe": b"MZ", "b.png": b"\x89PNG", "ok.txt": b"Text"}
    texts, reasons = read(written(tmp_path / "x.zip", zipped(members)))
    assert list(texts) == ["x.zip/ok.txt"]
    assert list(reasons) == ["x.zip/a.exe", "x.zip/b.png"]
    assert "unsupported file type .exe" in reasons["x.zip/a.exe"]
    assert "--ocr" in reasons["x.zip/b.png"]


def test_encrypted_members_are_named_and_the_others_read(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.txt": b"Secret", "b.txt": b"Open"}))
    for place in (data.index(b"PK\x03\x04") + 6, data.index(b"PK\x01\x02") + 8):
        data[place] |= 1
    texts, reasons = read(written(tmp_path / "x.zip", bytes(data)))
    assert texts == {"x.zip/b.txt": "Open"}
    assert reasons["x.zip/a.txt"].startswith("encrypted")


def test_links_and_devices_in_a_tar_are_named_and_not_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("a.txt", tarfile.SYMTYPE), ("b.txt", tarfile.LNKTYPE), ("c.txt", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
    texts, reasons = read(written(tmp_path / "x.tar", buffer.getvalue()))
    assert not texts
    assert list(reasons) == ["x.tar/a.txt", "x.tar/b.txt", "x.tar/c.txt"]


def test_archives_in_archives_are_read_to_a_depth(tmp_path: Path) -> None:
    data = zipped({"deep.txt": "Text"})
    for level in range(5):
        data = zipped({"in.zip": data, f"{level}.txt": "Text"})
    texts, reasons = read(written(tmp_path / "x.zip", data))
    assert set(texts) == {"x.zip/4.txt", "x.zip/in.zip/3.txt", "x.zip/in.zip/in.zip/2.txt"}
    assert list(reasons) == ["x.zip/in.zip/in.zip/in.zip"]


def test_an_inner_archive_shares_the_budget_of_the_outer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MIN_ALLOWED_BYTES", 3 << 20)
    inner = zipped({"zeros.txt": bytes(2 << 20)})
    texts, reasons = read(written(tmp_path / "x.zip", zipped({f"{number}.zip": inner for number in range(50)})))
    assert not texts  # zeros are binary
    assert list(reasons)[-1] == "x.zip"
    assert len(reasons) < 5


def test_too_many_members_end_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 3)
    texts, reasons = read(written(tmp_path / "x.zip", zipped({f"{number}.txt": "Text" for number in range(10)})))
    assert len(texts) == 3
    assert reasons["x.zip"].startswith("holds too many files")


def test_a_damaged_inner_archive_costs_itself_alone(tmp_path: Path) -> None:
    texts, reasons = read(
        written(tmp_path / "x.zip", zipped({"a.zip": b"PK\x03\x04 no", "b.txt": "Text", "c.tar": b"x"}))
    )
    assert list(texts) == ["x.zip/b.txt"]
    assert list(reasons) == ["x.zip/a.zip", "x.zip/c.tar"]


def test_a_member_whose_bytes_are_damaged_costs_itself_alone(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.txt": os.urandom(2000).hex(), "b.txt": "Text"}))
    data[200] ^= 0xFF
    texts, reasons = read(written(tmp_path / "x.zip", bytes(data)))
    assert list(texts) == ["x.zip/b.txt"]
    assert list(reasons) == ["x.zip/a.txt"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x05\x06" + bytes(10)])
def test_what_is_no_archive_is_skipped(tmp_path: Path, name: str, data: bytes) -> None:
    texts, reasons = read(written(tmp_path / name, data))
    assert not texts
    assert list(reasons) == [name]


def test_names_that_are_utf8_without_saying_so_are_read_as_utf8(tmp_path: Path) -> None:
    data = zipped({"gr\u00fc\u00dfe.txt": "Text"})
    for start in (b"PK\x03\x04", b"PK\x01\x02"):
        place = data.index(start) + (6 if start == b"PK\x03\x04" else 8)
        data = data[:place] + b"\0\0" + data[place + 2 :]
    assert list(read(written(tmp_path / "x.zip", data))[0]) == ["x.zip/grüße.txt"]


def test_a_folder_reads_its_archives(tmp_path: Path) -> None:
    written(tmp_path / "x.zip", zipped({"a.txt": "Text"}))
    assert [one.external_id for one in read_paths([tmp_path]) if isinstance(one, Document)] == [
        f"{tmp_path.name}/x.zip/a.txt"
    ]


def test_no_bound_is_above_what_a_disk_holds() -> None:
    assert archives.MAX_DEPTH <= 5
    assert unpacking.MAX_ALLOWED_BYTES <= 16 << 30


# What a file is by its content ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.7\n1 0 obj << >> endobj\n", "a PDF; name it .pdf"),
        (zipped({"a.txt": "x"}), "a zip archive or an office document"),
        (gzip.compress(b"x"), "a gzip file"),
        (lzma.compress(b"x"), "an xz file"),
        (PACKERS["zst"](b"x"), "a Zstandard file"),
        (bz2.compress(b"x"), "a bzip2 file"),
        (tarred({"a.txt": b"x"}), "a tar archive"),
        (b"{\\rtf1\\ansi Text}", "an RTF document"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "an encrypted or older office document"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "an image"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "an image"),
        (b"SQLite format 3\0" + bytes(50), "an SQLite database"),
        (b"\x7fELF" + bytes(50), "a program"),
    ],
    ids=lambda value: value if isinstance(value, str) else "data",
)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.csv", "a.jsonl", "a.py", "a.html", "noname"])
def test_a_file_that_is_another_kind_than_its_name_says_is_named(
    tmp_path: Path, data: bytes, reason: str, name: str
) -> None:
    texts, reasons = read(written(tmp_path / name, data))
    assert not texts
    assert f"by its content {reason}" in reasons[name]


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.odt", "a.epub", "a.rtf", "a.mbox", "a.zip"])
@pytest.mark.parametrize("data", [b"", b"plain text", b"<html><body>404 not found"])
def test_a_text_with_the_name_of_another_kind_is_skipped(tmp_path: Path, data: bytes, name: str) -> None:
    texts, reasons = read(written(tmp_path / name, data))
    assert not texts
    assert list(reasons) == [name]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("a.doc", "save it as .docx"), ("a.ppt", ".pptx"), ("a.rar", "unpack it"), ("a.jpg", "--ocr"), ("b", "extension")],
)
def test_a_folder_names_what_to_do_about_other_kinds(tmp_path: Path, name: str, remedy: str) -> None:
    written(tmp_path / name, b"x")
    (skipped,) = read_paths([tmp_path])
    assert isinstance(skipped, Skipped)
    assert remedy in skipped.reason
