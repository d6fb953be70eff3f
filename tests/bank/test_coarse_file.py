from __future__ import annotations

import random
import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import add_latents, bits, random_latents, tiny_loaded, tiny_manifest

from memspan.bank import coarse, shard
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.mapping import open_mapped
from memspan.bank.repair import repair
from memspan.bank.segment import SegmentFiles, SegmentReader, SegmentWriter, coarse_path, segment_paths
from memspan.bank.verify import verify
from memspan.errors import BankError
from memspan.ops.coarse import quantize_keys
from memspan.routing.local import LocalMemory
from memspan.types import Document, EncodedDocuments

MANIFEST = tiny_manifest()
LAYERS = MANIFEST.msa_layers
ROWS = [3, 1, 7, 2]


@pytest.fixture(autouse=True)
def every_segment_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 0)
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)


def _segment(folder: Path) -> tuple[SegmentFiles, list[EncodedDocuments]]:
    documents = [random_latents(MANIFEST, rows) for rows in ROWS]
    writer = SegmentWriter(folder, MANIFEST, 2**20)
    for document_id, latents in enumerate(documents):
        writer.append(document_id, 0, latents)
    ((files,), _) = writer.finish()
    return files, documents


def _coarse_bits(reader: SegmentReader) -> list[bytes]:
    found = []
    for layer in LAYERS:
        keys = reader.coarse_keys(layer)
        found += [keys.key_CW.numpy().tobytes(), keys.scale_C.numpy().tobytes()]
    return found


def _bank(folder: Path, count: int = 40) -> MemoryBank:
    bank = MemoryBank.create(folder, MANIFEST)
    with bank.writer(max_segment_bytes=30 * MANIFEST.row_bytes) as writer:
        for number in range(count):
            add_latents(writer, Document(str(number), f"text {number}"), random_latents(MANIFEST, 1 + number % 3))
        writer.commit()
    return bank


def _route(bank: MemoryBank, questions: torch.Tensor) -> list[object]:
    with bank.snapshot() as snapshot:
        memory = LocalMemory(snapshot.shards, MANIFEST, 3)
        retrieved = [memory.route(layer, questions, torch.ones(questions.shape[:2]).bool()) for layer in LAYERS]
        return [(x.doc_ids, x.scores, x.keys_BGMD.float().tolist()) for x in retrieved]


def _coarse_files(bank: MemoryBank) -> list[Path]:
    return sorted(path for path in (bank.folder / "segments").iterdir() if ".coarse." in path.name)


def test_keys_in_8_bits_are_those_of_the_segment(tmp_path: Path) -> None:
    files, documents = _segment(tmp_path)
    reader = SegmentReader(tmp_path, files, MANIFEST)
    for row, layer in enumerate(LAYERS):
        expected = quantize_keys(torch.cat([latents.router_keys_LCW[row] for latents in documents]))
        found = reader.coarse_keys(layer)
        assert torch.equal(found.key_CW, expected.key_CW) and torch.equal(found.scale_C, expected.scale_C)
        for index, latents in enumerate(documents):
            assert torch.equal(reader.router_rows(layer, index), latents.router_keys_LCW[row])
        reader.give_back_coarse(layer)
        assert torch.equal(reader.coarse_keys(layer).key_CW, expected.key_CW), "read again"
    assert reader.has_coarse() and reader.mapped_coarse_bytes == 13 * (16 + 4)


def test_a_small_segment_has_no_such_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 2**20)
    files, _ = _segment(tmp_path)
    reader = SegmentReader(tmp_path, files, MANIFEST)
    assert not reader.coarse_path.exists() and not reader.is_large and reader.mapped_coarse_bytes == 0
    assert len(_coarse_bits(reader)) == 4


def test_no_changed_byte_gives_wrong_keys(tmp_path: Path) -> None:
    files, documents = _segment(tmp_path)
    expected = _coarse_bits(SegmentReader(tmp_path, files, MANIFEST))
    path = coarse_path(tmp_path, files.name)
    whole = path.read_bytes()
    drawn, harmless = random.Random(0), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= drawn.choice([1, 0x20, 0x80])
        path.write_bytes(damaged)
        reader = SegmentReader(tmp_path, files, MANIFEST)
        is_used = reader.has_coarse()
        assert _coarse_bits(reader) == expected
        assert bits(reader.latents(0)) == bits(documents[0])
        assert torch.equal(reader.router_rows(LAYERS[1], 2), documents[2].router_keys_LCW[1])
        harmless += is_used
    assert harmless < 50, "only what pads the header may change unseen"


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "a folder", "of another segment"])
def test_without_a_sound_file_keys_are_rounded_in_memory(tmp_path: Path, damage: str) -> None:
    files, _ = _segment(tmp_path)
    expected = _coarse_bits(SegmentReader(tmp_path, files, MANIFEST))
    path = coarse_path(tmp_path, files.name)
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "of another segment":
        shutil.copy(coarse_path(tmp_path, _segment(tmp_path)[0].name), path)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": whole[:-1], "garbage": b"\xff" * len(whole)}[damage])
    reader = SegmentReader(tmp_path, files, MANIFEST)
    assert not reader.has_coarse() and _coarse_bits(reader) == expected


def test_damaged_routing_keys_are_found_where_they_are_read(tmp_path: Path) -> None:
    files, documents = _segment(tmp_path)
    path = segment_paths(tmp_path, files.name)[0]
    whole = bytearray(path.read_bytes())
    needle = documents[2].router_keys_LCW[0].view(torch.uint8).numpy().tobytes()
    whole[whole.index(needle)] ^= 1
    path.write_bytes(whole)
    reader = SegmentReader(tmp_path, files, MANIFEST)
    assert torch.equal(reader.router_rows(LAYERS[0], 1), documents[1].router_keys_LCW[0])
    with pytest.raises(BankError, match="routing keys of document 2 in layer 1"):
        reader.router_rows(LAYERS[0], 2)


def test_routing_is_the_same_with_and_without_the_files(tmp_path: Path) -> None:
    bank, questions = _bank(tmp_path / "bank"), torch.randn(2, 3, 4, 8)
    assert len(_coarse_files(bank)) == len(bank.catalog.segments()) > 2
    expected = _route(bank, questions)
    bank.close()
    for path in _coarse_files(bank):
        path.unlink()
    assert _route(MemoryBank.open(bank.folder), questions) == expected


def test_compaction_gives_segments_the_files_that_they_lack(tmp_path: Path) -> None:
    bank, questions = _bank(tmp_path / "bank"), torch.randn(2, 3, 4, 8)
    expected = _route(bank, questions)
    before = [(path.name, path.read_bytes()) for path in _coarse_files(bank)]
    first, second = _coarse_files(bank)[:2]
    first.unlink()
    second.write_bytes(b"damaged")
    assert [(fault.kind, fault.repairable) for fault in verify(bank)] == [("coarse", True)], "a missing one is none"
    with bank.locked():
        for number, files in bank.catalog.segments():
            reader = SegmentReader(bank.folder / "segments", files, MANIFEST)
            if not reader.has_coarse():
                reader.write_coarse()
                assert reader.has_coarse(), number
    assert [(path.name, path.read_bytes()) for path in _coarse_files(bank)] == before
    first.unlink()
    bank.compact()
    assert len(_coarse_files(bank)) == len(bank.catalog.segments())
    assert _route(bank, questions) == expected


def test_repair_writes_a_damaged_file_anew(tmp_path: Path) -> None:
    loaded = tiny_loaded()
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    with bank.writer() as writer:
        add_latents(writer, Document("one", "text"), random_latents(bank.manifest, 3))
        writer.commit()
    (path,) = _coarse_files(bank)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    faults = verify(bank)
    assert [fault.kind for fault in faults] == ["coarse"]
    assert repair(bank, loaded, [fault for fault in faults if fault.kind == "coarse"]) == []
    assert path.read_bytes() == whole


def test_the_file_goes_with_its_segment_and_is_exported(tmp_path: Path) -> None:
    bank, questions = _bank(tmp_path / "bank"), torch.randn(2, 3, 4, 8)
    bank.delete([str(number) for number in range(10)])
    bank.compact()
    live = {files.name for _, files in bank.catalog.segments()}
    assert {path.name.split(".")[0] for path in _coarse_files(bank)} == live
    export_bank(bank, tmp_path / "bank.zip")
    with closing(import_bank(tmp_path / "bank.zip", tmp_path / "imported")) as imported:
        assert len(_coarse_files(imported)) == len(imported.catalog.segments())
        assert _route(imported, questions) == _route(bank, questions)
        assert verify(imported) == []


def _resident(path: Path) -> int:
    """Bytes of a file's mappings that are resident in this process."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="tells what is resident on Linux only")
def test_what_is_given_back_is_no_longer_resident_and_reads_as_before(tmp_path: Path) -> None:
    manifest = tiny_manifest(head_dim=512)
    documents = [random_latents(manifest, 16) for _ in range(8)]
    writer = SegmentWriter(tmp_path, manifest, 2**30)
    for document_id, latents in enumerate(documents):
        writer.append(document_id, 0, latents)
    ((files,), _) = writer.finish()
    path = coarse_path(tmp_path, files.name)
    keys = open_mapped(path)[f"layer_{LAYERS[0]}"]
    before = keys.tensor.clone()
    keys.prefetch(0, 5)
    assert _resident(path) >= keys.tensor.nbytes
    assert torch.equal(keys.take(3, 7), before[3:7])
    keys.give_back()
    assert _resident(path) == 0
    assert torch.equal(keys.tensor, before)
    reader = SegmentReader(tmp_path, files, tiny_manifest(head_dim=512))
    content = segment_paths(tmp_path, files.name)[1]
    reader.prefetch(LAYERS[0], 3)
    assert torch.equal(reader.content(LAYERS[0], 3), documents[3].content_LC2GD[0])
    assert _resident(content) == 0
