"""Whatever a file holds, reading it ends: in documents, or in files and records that are named with a reason."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.text.corpus import read_paths
from memspan.text.readers import ReadOptions
from memspan.types import Document, Skipped


def _table(delimiter: str) -> str:
    stream = io.StringIO(newline="")
    rows = [["id", "Text", "date"], ["1", 'two\nlines; "quoted"', "2024"], ["2", "größe, 5 €", "03/04/2024"]]
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue()


RECORDS = [
    {"id": 1, "text": "größe", "date": "2024-03", "more": [1, {"a": None}]},
    {"text": "b", "created_at": 1709251200},
]
LINES = "\n".join(map(json.dumps, RECORDS))
FRONT = "---\ntitle: T\ndate: 2024-03-01\ntags: [a, b]\n---\n# Heading\n\nDate: 1 March 2024\nText 東京\n"
PAGE = (
    '<html><head><meta charset="utf-8"><title>T</title><meta name="date" content="2024"></head><body><nav>n</nav>'
    "<p hidden>h</p><table><tr><td>東\n京</td></tr></table><script>x</script><!-- c --><pre> a</pre></body></html>"
)
SEEDS: dict[str, bytes] = {
    "a.txt": FRONT.encode(),
    "b.txt": "Größe und Übung in einem alten Format".encode("cp1252"),
    "c.txt": FRONT.encode("utf-16"),
    "d.txt": FRONT.encode("utf-16-le"),
    "a.md": FRONT.replace("---", "+++").replace(": ", " = ").encode(),
    "a.rst": FRONT.encode("utf-8-sig"),
    "a.html": PAGE.encode(),
    "b.html": PAGE.replace("utf-8", "shift_jis").encode("shift_jis"),
    "a.json": json.dumps(RECORDS).encode(),
    "b.json": json.dumps({"data": RECORDS}, indent=1).encode(),
    "c.json": LINES.encode(),
    "a.jsonl": LINES.encode(),
    "a.jsonl.gz": gzip.compress(LINES.encode(), mtime=0),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.csv": _table(",").encode(),
    "b.csv": ("sep=;\r\n" + _table(";")).encode("cp1252"),
    "a.tsv": _table("\t").encode("utf-16"),
}

NUMBERS = st.integers(0, 2**16)
KINDS = st.sampled_from(["flip", "cut", "drop", "insert", "repeat"])
Changes = list[tuple[str, int, bytes]]
CHANGES = st.lists(st.tuples(KINDS, NUMBERS, st.binary(max_size=4)))


def changed(data: bytes, changes: Changes) -> bytes:
    """Data after some damage, each at a place."""
    for kind, number, more in changes:
        at = number % (len(data) + 1)
        if kind == "flip":
            data = data[:at] + bytes((data[at] ^ 1 << number % 8,)) + data[at + 1 :] if at < len(data) else data
        elif kind == "cut":
            data = data[:at]
        elif kind == "drop":
            data = data[:at] + data[at + 1 + len(more) :]
        elif kind == "insert":
            data = data[:at] + more + data[at:]
        else:
            data = data[:at] + data[at : at + 8] * 3 + data[at:]
    return data


def check(name: str, data: bytes, options: ReadOptions) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        items = list(read_paths([path], options=options))
    assert items
    for item in items:
        assert isinstance(item, Document) or (isinstance(item, Skipped) and item.source.startswith(str(path)))
        assert not isinstance(item, Skipped) or item.reason.strip()


OPTIONS = st.sampled_from([ReadOptions(), ReadOptions(encoding="cp1252"), ReadOptions(text_column="id")])


@pytest.mark.parametrize("name", SEEDS)
@given(CHANGES, OPTIONS)
@settings(max_examples=50, derandomize=True, deadline=None)
def test_damaged_files_are_read_or_named(name: str, changes: Changes, options: ReadOptions) -> None:
    check(name, changed(SEEDS[name], changes), options)


@given(st.sampled_from(sorted(SEEDS)), st.binary(max_size=300), OPTIONS)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_random_bytes_are_read_or_named(name: str, data: bytes, options: ReadOptions) -> None:
    check(name, data, options)


@given(st.sampled_from(sorted(SEEDS)), st.sampled_from(["txt", "html", "csv", "json", "jsonl", "md"]))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_files_read_as_another_format_are_read_or_named(name: str, format: str) -> None:
    check(name, SEEDS[name], ReadOptions(format=format))
