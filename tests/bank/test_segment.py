from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import bits, random_latents, tiny_manifest
from safetensors import SafetensorError
from safetensors.torch import save_file

from memspan.bank import segment
from memspan.bank.segment import Placed, SegmentFiles, SegmentReader, SegmentWriter, segment_paths, sweep
from memspan.errors import BankError
from memspan.types import EncodedDocuments

MANIFEST = tiny_manifest()
LAYERS = MANIFEST.msa_layers
ROW = MANIFEST.row_bytes
ROWS = [3, 1, 7, 2, 2, 5, 1, 1, 4]


def _write(folder: Path, documents: list[EncodedDocuments], max_rows: float) -> tuple[list[SegmentFiles], list[Placed]]:
    writer = SegmentWriter(folder, LAYERS, int(max_rows * ROW))
    for document_id, latents in enumerate(documents):
        writer.append(document_id, latents)
    return writer.finish()


def _read(folder: Path, segments: list[SegmentFiles], places: list[Placed]) -> list[EncodedDocuments]:
    readers = {files.name: SegmentReader(folder, files, LAYERS) for files in segments}
    documents = []
    for place in places:
        reader, stop = readers[place.segment], place.first_row + place.rows
        keys = torch.stack([reader.router_keys(layer)[place.first_row : stop] for layer in LAYERS])
        content = torch.stack([reader.content(layer, place.first_row, place.rows) for layer in LAYERS])
        documents.append(EncodedDocuments(keys, content, (place.rows,)))
    return documents


@pytest.mark.parametrize("max_rows", [0.5, 1, 3, 7, 8, 26, 1000])
def test_latents_read_back_bit_for_bit(tmp_path: Path, max_rows: float) -> None:
    documents = [random_latents(MANIFEST, rows) for rows in ROWS]
    # Values that a conversion or a comparison of floats would lose.
    documents[2].router_keys_LCW[0, 0, :4] = torch.tensor([-0.0, float("inf"), float("nan"), 1e-40])
    documents[3].content_LC2GD[1, 1, 0, 0, :4] = torch.tensor([float("nan"), -0.0, 3e38, -1e-40])
    segments, places = _write(tmp_path, documents, max_rows)
    assert [place.document_id for place in places] == list(range(len(ROWS)))
    read = _read(tmp_path, segments, places)
    assert [bits(latents) for latents in read] == [bits(latents) for latents in documents]


@pytest.mark.parametrize("max_rows", [0.5, 1, 3, 7, 7.99, 8, 26, 1000])
def test_a_document_is_whole_in_one_segment_and_segments_are_as_full_as_allowed(
    tmp_path: Path, max_rows: float
) -> None:
    segments, places = _write(tmp_path, [random_latents(MANIFEST, rows) for rows in ROWS], max_rows)
    assert [place.rows for place in places] == ROWS
    by_segment = [[place for place in places if place.segment == files.name] for files in segments]
    for files, inside in zip(segments, by_segment, strict=True):
        starts = list(itertools.accumulate((place.rows for place in inside), initial=0))
        assert [place.first_row for place in inside] == starts[:-1], "rows follow each other without a gap"
        assert files.rows == starts[-1]
        # One document alone may be more than a segment should hold: it is never cut.
        assert files.rows <= max_rows or len(inside) == 1
    for files, following in zip(segments, by_segment[1:], strict=False):
        assert files.rows + following[0].rows > max_rows, "the next document would have fitted"


def test_what_the_catalog_is_told_of_a_segment_is_what_is_on_disk(tmp_path: Path) -> None:
    segments, _ = _write(tmp_path, [random_latents(MANIFEST, rows) for rows in ROWS], 8)
    assert len(segments) > 2
    expected = set()
    for files in segments:
        told = ((files.keys_bytes, files.keys_sha256), (files.content_bytes, files.content_sha256))
        for path, (size, sha256) in zip(segment_paths(tmp_path, files.name), told, strict=True):
            expected.add(path)
            assert path.stat().st_size == size
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert set(tmp_path.iterdir()) == expected, "no file beside them"


def test_finish_reports_every_segment_once(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, LAYERS, 4 * ROW)
    documents = [random_latents(MANIFEST, rows) for rows in (3, 3, 2)]
    writer.append(1, documents[0])
    writer.append(2, documents[1])  # the first segment is written here
    first = writer.finish()
    assert [len(part) for part in first] == [2, 2]
    assert writer.finish() == ([], [])
    writer.append(3, documents[2])
    second = writer.finish()
    assert [place.document_id for place in second[1]] == [3]
    assert not {files.name for files in first[0]} & {files.name for files in second[0]}
    read = _read(tmp_path, first[0] + second[0], first[1] + second[1])
    assert [bits(latents) for latents in read] == [bits(latents) for latents in documents]


def test_the_buffer_never_holds_more_than_a_segment(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, LAYERS, 8 * ROW)
    for document_id, rows in enumerate(ROWS):
        writer.append(document_id, random_latents(MANIFEST, rows))
        assert rows * ROW <= writer.buffered_bytes <= 8 * ROW
    writer.finish()
    assert writer.buffered_bytes == 0


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 2)], 8)
        assert os.umask(0o027) == 0o027, "the umask is left as it was"
    finally:
        os.umask(umask)
    assert [path.stat().st_mode & 0o777 for path in segment_paths(tmp_path, files.name)] == [0o640, 0o640]


# --- damage ---------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _garble(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def _swap_for_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _truncate,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "garbage": _garble,
    "a folder": _swap_for_a_folder,
}


@pytest.mark.parametrize("which", [0, 1], ids=["keys", "content"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(tmp_path: Path, which: int, damage: str) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 5)], 8)
    path = segment_paths(tmp_path, files.name)[which]
    DAMAGES[damage](path)
    with pytest.raises(BankError) as raised:
        SegmentReader(tmp_path, files, LAYERS)
    assert str(path) in str(raised.value)


def test_a_file_that_lacks_a_layer_or_has_other_rows_is_named(tmp_path: Path) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 5)], 8)
    with pytest.raises(BankError, match=str(segment_paths(tmp_path, files.name)[0])):
        SegmentReader(tmp_path, files, (*LAYERS, 7))
    (other,), _ = _write(tmp_path, [random_latents(MANIFEST, 6)], 8)
    mixed = SegmentFiles(files.name, 5, files.keys_bytes, "", other.content_bytes, "")
    shutil.copy(segment_paths(tmp_path, other.name)[1], segment_paths(tmp_path, files.name)[1])
    with pytest.raises(BankError, match=f"{segment_paths(tmp_path, files.name)[1]}.* 5 rows"):
        SegmentReader(tmp_path, mixed, LAYERS)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
@pytest.mark.parametrize("which", [0, 1], ids=["keys", "content"])
def test_a_full_disk_is_a_named_error_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, error: Exception
) -> None:
    calls = itertools.count()

    def save_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        if next(calls) == which:
            os.truncate(path, path.stat().st_size // 2)
            raise error

    monkeypatch.setattr(segment, "save_file", save_half)
    writer = SegmentWriter(tmp_path, LAYERS, 8 * ROW)
    writer.append(1, random_latents(MANIFEST, 3))
    with pytest.raises(BankError, match=r"cannot write .*(No space left|I/O error)") as raised:
        writer.finish()
    assert str(tmp_path) in str(raised.value)
    assert len(list(tmp_path.iterdir())) == which, "whole files only; the next writer sweeps them"


def test_sweeping_removes_what_was_never_committed_and_nothing_else(tmp_path: Path) -> None:
    documents = [random_latents(MANIFEST, 5) for _ in range(2)]
    (kept, lost), _ = _write(tmp_path, documents, 5)
    keys, content = segment_paths(tmp_path, kept.name)
    leftovers = [
        *segment_paths(tmp_path, lost.name),
        keys.with_name(keys.name + ".partial"),
        content.with_name(f"unknown{segment.CONTENT_SUFFIX}.partial"),
    ]
    for path in leftovers[2:]:
        path.write_bytes(b"torn")
    others = [tmp_path / name for name in ("notes.txt", "model.safetensors", "notes.partial", f"{lost.name}.txt")]
    for path in others:
        path.write_text("not ours")
    sweep(tmp_path, {kept.name})
    assert set(tmp_path.iterdir()) == {keys, content, *others}
    SegmentReader(tmp_path, kept, LAYERS)
