from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bits, random_latents, tiny_manifest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from memspan.bank.segment import RowLocation, SegmentFiles, SegmentReader, SegmentWriter, segment_paths
from memspan.errors import BankError
from memspan.types import EncodedDocuments

MANIFEST = tiny_manifest()
LAYERS = MANIFEST.msa_layers
ROW = MANIFEST.row_bytes
ROWS = [3, 1, 7, 2, 2, 5, 1, 1, 4]


def _write(
    folder: Path, documents: list[EncodedDocuments], max_rows: float
) -> tuple[list[SegmentFiles], list[RowLocation]]:
    writer = SegmentWriter(folder, MANIFEST, int(max_rows * ROW))
    for document_id, latents in enumerate(documents):
        writer.append(document_id, 100 + document_id, latents)
    return writer.finish()


def _read(folder: Path, segments: list[SegmentFiles], places: list[RowLocation]) -> list[EncodedDocuments]:
    readers = {files.name: SegmentReader(folder, files, MANIFEST) for files in segments}
    documents = []
    for place in places:
        reader = readers[place.segment]
        documents.append(reader.latents(reader.documents_N4[:, 0].tolist().index(place.document_id)))
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
        assert files.changed(tmp_path) == []
    assert set(tmp_path.iterdir()) == expected, "no file beside them"


def test_a_segment_lists_its_documents_by_row(tmp_path: Path) -> None:
    segments, places = _write(tmp_path, [random_latents(MANIFEST, rows) for rows in ROWS], 8)
    for files in segments:
        expected = [
            [place.document_id, place.first_row, place.rows, 100 + place.document_id]
            for place in places
            if place.segment == files.name
        ]
        reader = SegmentReader(tmp_path, files, MANIFEST)
        assert reader.documents_N4.tolist() == expected
        assert (files.documents, files.rows) == (len(expected), sum(rows for _, _, rows, _ in expected))


def test_one_layer_of_one_document_can_be_read_alone(tmp_path: Path) -> None:
    documents = [random_latents(MANIFEST, rows) for rows in ROWS]
    (files,), places = _write(tmp_path, documents, 1000)
    reader = SegmentReader(tmp_path, files, MANIFEST)
    for row, layer in enumerate(LAYERS):
        assert reader.router_keys(layer).equal(torch.cat([latents.router_keys_LCW[row] for latents in documents]))
        for place in places:
            expected = documents[place.document_id].content_LC2GD[row]
            assert reader.content(layer, place.document_id).equal(expected)


def test_finish_reports_every_segment_once(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, MANIFEST, 4 * ROW)
    documents = [random_latents(MANIFEST, rows) for rows in (3, 3, 2)]
    writer.append(1, 0, documents[0])
    writer.append(2, 0, documents[1])  # the first segment is written here
    first = writer.finish()
    assert [len(part) for part in first] == [2, 2]
    assert writer.finish() == ([], [])
    writer.append(3, 0, documents[2])
    second = writer.finish()
    assert [place.document_id for place in second[1]] == [3]
    assert not {files.name for files in first[0]} & {files.name for files in second[0]}
    read = _read(tmp_path, first[0] + second[0], first[1] + second[1])
    assert [bits(latents) for latents in read] == [bits(latents) for latents in documents]


def test_the_buffer_never_holds_more_than_a_segment(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, MANIFEST, 8 * ROW)
    for document_id, rows in enumerate(ROWS):
        writer.append(document_id, 0, random_latents(MANIFEST, rows))
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
        SegmentReader(tmp_path, files, MANIFEST)
    assert str(path) in str(raised.value)
    assert ("bytes instead of" in str(raised.value)) is (damage in ("empty", "truncated", "longer"))


@pytest.mark.parametrize(
    "changes", [{"msa_layers": (*LAYERS, 7)}, {"num_kv_heads": 4}, {"head_dim": 4}, {"num_kv_heads": 1, "head_dim": 16}]
)
def test_a_file_of_another_shape_than_the_manifest_says_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 5)], 8)
    with pytest.raises(BankError, match=rf"{files.name}\..*memspan verify BANK --repair"):
        SegmentReader(tmp_path, files, tiny_manifest(**changes))


@pytest.mark.parametrize("which", [0, 1], ids=["keys", "content"])
@pytest.mark.parametrize("other", ["rows", "documents", "order"])
def test_a_file_that_is_another_segments_is_named(tmp_path: Path, which: int, other: str) -> None:
    documents = [random_latents(MANIFEST, 5), random_latents(MANIFEST, 5)]
    (files,), _ = _write(tmp_path, documents, 20)
    others = {"rows": [random_latents(MANIFEST, 6)] * 2, "documents": documents[:1], "order": documents[::-1]}[other]
    (wrong,), _ = _write(tmp_path, others, 20)
    path = segment_paths(tmp_path, files.name)[which]
    shutil.copy(segment_paths(tmp_path, wrong.name)[which], path)
    sizes = {"keys_bytes": wrong.keys_bytes} if which == 0 else {"content_bytes": wrong.content_bytes}
    with pytest.raises(BankError, match=str(path)):  # even if the size were that of the catalog
        SegmentReader(tmp_path, dataclasses.replace(files, **sizes), MANIFEST).latents(0)


@pytest.mark.parametrize("which", [0, 1], ids=["keys", "content"])
def test_a_file_of_another_number_format_is_named(tmp_path: Path, which: int) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 5)], 8)
    path = segment_paths(tmp_path, files.name)[which]
    tensors = load_file(path)
    save_file({name: t.view(torch.float16) if name == "layer_1" else t for name, t in tensors.items()}, path)
    size = path.stat().st_size
    sizes = {"keys_bytes": size} if which == 0 else {"content_bytes": size}
    with pytest.raises(BankError, match=rf"layer_1 in the bank's file {path}"):
        SegmentReader(tmp_path, dataclasses.replace(files, **sizes), MANIFEST)


def _read_all(folder: Path, files: SegmentFiles) -> list[tuple[bytes, bytes]]:
    reader = SegmentReader(folder, files, MANIFEST)
    return [bits(reader.latents(index)) for index in range(files.documents)]


@pytest.mark.parametrize("which", [0, 1], ids=["keys", "content"])
def test_no_changed_byte_gives_wrong_latents(tmp_path: Path, which: int) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, rows) for rows in (2, 1)], 8)
    expected = _read_all(tmp_path, files)
    path = segment_paths(tmp_path, files.name)[which]
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    generator, harmless = random.Random(which), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= generator.choice([1, 0x20, 0x80, generator.randrange(1, 256)])
        path.write_bytes(damaged)
        try:
            found = _read_all(tmp_path, files)
        except BankError as error:
            assert str(path) in str(error)
            continue
        assert found == expected, f"byte {place}"
        assert place < data, "only what pads the header may change unseen"
        harmless += 1
    assert harmless < 50


def test_swapped_names_in_a_header_do_not_swap_layers(tmp_path: Path) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 3)], 8)
    for path in segment_paths(tmp_path, files.name):
        whole = path.read_bytes()
        swapped = whole.replace(b"layer_1", b"layer_x").replace(b"layer_3", b"layer_1").replace(b"layer_x", b"layer_3")
        path.write_bytes(swapped)
        with pytest.raises(BankError, match=f"layer 1 in the bank's file {path}|in layer 1 in the bank's file {path}"):
            _read_all(tmp_path, files)
        path.write_bytes(whole)
    assert _read_all(tmp_path, files)


def test_damage_in_one_document_or_layer_leaves_the_others_readable(tmp_path: Path) -> None:
    documents = [random_latents(MANIFEST, rows) for rows in (2, 3)]
    (files,), _ = _write(tmp_path, documents, 8)
    path = segment_paths(tmp_path, files.name)[1]
    whole = path.read_bytes()
    needle = bits(documents[1])[1][: MANIFEST.row_bytes // 3]  # layer 1 of the second document
    assert whole.count(needle) == 1
    damaged = bytearray(whole)
    damaged[whole.index(needle)] ^= 1
    path.write_bytes(damaged)
    reader = SegmentReader(tmp_path, files, MANIFEST)
    assert bits(reader.latents(0)) == bits(documents[0])
    assert reader.content(3, 1).equal(documents[1].content_LC2GD[1])
    with pytest.raises(BankError, match=r"content of document 1 in layer 1"):
        reader.content(1, 1)
    assert reader.files.changed(path.parent) == [path]


def test_content_damaged_after_it_was_read_once_is_found(tmp_path: Path) -> None:
    (files,), _ = _write(tmp_path, [random_latents(MANIFEST, 3)], 8)
    path = segment_paths(tmp_path, files.name)[1]
    reader = SegmentReader(tmp_path, files, MANIFEST)
    reader.content(1, 0)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.raises(BankError, match="content of document 0 in layer 3"):
        reader.content(3, 0)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
@pytest.mark.parametrize("which", [0, 1], ids=["content", "keys"])
def test_a_full_disk_is_a_named_error_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int, error: Exception
) -> None:
    calls = itertools.count()

    def save_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        if next(calls) == which:
            os.truncate(path, path.stat().st_size // 2)
            raise error

    monkeypatch.setattr("memspan.bank.files.save_file", save_half)
    writer = SegmentWriter(tmp_path, MANIFEST, 8 * ROW)
    writer.append(1, 0, random_latents(MANIFEST, 3))
    with pytest.raises(BankError, match=r"cannot write .*(No space left|I/O error)") as raised:
        writer.finish()
    assert str(tmp_path) in str(raised.value)
    assert len(list(tmp_path.iterdir())) == which, "whole files only; the next writer sweeps them"
