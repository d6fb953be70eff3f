"""What no memory could hold is refused by name: long texts, lines and cells, files that grow, deep nesting."""

from __future__ import annotations

import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from reading import document, documents, found, refused

from memspan.text import corpus
from memspan.text.corpus import read_stream
from memspan.text.readers import Unreadable, opening, tables
from memspan.text.readers.opening import DecompressedFile
from memspan.types import Document, Skipped

MIB = 2**20


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """What a document and a line may be, small."""
    for module in (opening, tables):
        monkeypatch.setattr(module, "LONGEST_TEXT", 1000)
    monkeypatch.setattr(corpus, "_LONGEST_STREAM", 1000)
    return 1000


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html", "a.rst", "a.unknown"])
def test_a_text_beyond_the_limit_is_refused_and_one_at_the_limit_is_read(tmp_path: Path, limit: int, name: str) -> None:
    assert "MiB of text; split it into files" in refused(tmp_path / name, "a" * (limit + 1))
    assert len(document(tmp_path / name, "a" * limit).text) == limit


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_beyond_the_limit_ends_a_file_of_records_by_name(tmp_path: Path, limit: int, end: str) -> None:
    long = json.dumps({"text": "a" * limit})
    one, skipped = found(tmp_path / "a.jsonl", f'{{"text": "a"}}\n{long}{end}')
    assert isinstance(one, Document) and isinstance(skipped, Skipped)
    assert skipped.reason.startswith("line 2 is longer than")
    one, skipped = found(tmp_path / "a.csv", f"text,n\na,1\n{'b' * limit},2{end}")
    assert isinstance(one, Document) and isinstance(skipped, Skipped)


def test_a_long_line_is_not_read_beyond_the_limit(limit: int) -> None:
    class Endless(io.TextIOBase):
        num_read = 0

        def readline(self, size: int = -1, /) -> str:
            assert size > 0
            self.num_read += size
            return "a" * size

    endless: Any = Endless()
    with pytest.raises(Unreadable, match="line 1 is longer"):
        list(opening.bounded_lines(endless))
    assert endless.num_read <= limit + 1


def test_standard_input_beyond_the_limit_is_refused(limit: int) -> None:
    for stream in (io.StringIO("a" * 1001), io.TextIOWrapper(io.BytesIO(b"a" * 5000), "utf-8")):
        (skipped,) = read_stream(stream)
        assert isinstance(skipped, Skipped) and "write it to a file" in skipped.reason


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("filling", [b"\n", b"a", b'{"text": "a"}\n'])
def test_a_compressed_file_that_grows_beyond_measure_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack: Any, filling: bytes
) -> None:
    monkeypatch.setattr(opening, "_FREE_EXPANSION", 100_000)
    reason = refused(tmp_path / f"a.jsonl{suffix}", pack(filling * (MIB // len(filling))))
    assert reason == "expands more than 200-fold, as no text does; decompress it yourself first"


def test_a_bomb_of_zeros_is_read_no_further_than_it_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read = 0
    readinto = DecompressedFile.readinto

    def counting(self: DecompressedFile, buffer: Any) -> int:
        nonlocal num_read
        size = readinto(self, buffer)
        num_read += size
        return size

    monkeypatch.setattr(DecompressedFile, "readinto", counting)
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        for _ in range(256):
            file.write(bytes(MIB))
    assert refused(tmp_path / "a.jsonl.gz", packed.getvalue()) == "binary file"
    assert num_read <= 2 * MIB


def test_what_grows_as_texts_do_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_FREE_EXPANSION", 1000)
    lines = "".join(
        json.dumps({"id": f"{n}", "text": f"The heron number {n * 7919 % 10007}"}) + "\n" for n in range(5000)
    )
    assert len(documents(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))) == 5000


@pytest.mark.parametrize("depth", [101, 900, 100_000])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
def test_metadata_that_is_nested_too_deep_costs_the_record(tmp_path: Path, depth: int, opens: str, closes: str) -> None:
    deep = opens * depth + "1" + closes * depth
    bad, good = found(tmp_path / "a.jsonl", f'{{"text": "a", "deep": {deep}}}\n{{"text": "b"}}\n')
    assert isinstance(bad, Skipped) and isinstance(good, Document)
    assert isinstance(found(tmp_path / "a.json", f'[{{"text": "a", "deep": {deep}}}]')[0], Skipped)


def test_metadata_of_a_depth_that_people_use_are_kept(tmp_path: Path) -> None:
    deep = "[" * 50 + "]" * 50
    assert document(tmp_path / "a.jsonl", f'{{"text": "a", "deep": {deep}}}').metadata["deep"] == json.loads(deep)
