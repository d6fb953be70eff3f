"""A bank that keeps tokens: files, sizes, damage and repair; the rest of the bank does not know the difference."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import add_latents, bits, random_latents, tiny_loaded, tiny_manifest

from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.estimate import estimate
from memspan.bank.folder import segment_paths, segments_folder
from memspan.bank.manifest import Manifest
from memspan.bank.publish import publish
from memspan.bank.repair import repair
from memspan.bank.segment import SegmentReader, SegmentWriter
from memspan.bank.verify import verify
from memspan.content import TokenContent
from memspan.errors import BankError
from memspan.generate.memory import Memory
from memspan.places import BankPlace
from memspan.types import Document, EncodedDocuments

MANIFEST = tiny_manifest(content_chunk=2, content_layers=(0, 2, 3))
TEXTS = [Document(f"d{n}", " ".join(f"word{n} number{place}" for place in range(5 + 3 * n))) for n in range(4)]


def test_a_segment_gives_back_keys_and_tokens(tmp_path: Path) -> None:
    documents = [random_latents(MANIFEST, rows) for rows in (1, 4, 2)]
    writer = SegmentWriter(tmp_path, MANIFEST, 2**20)
    for number, latents in enumerate(documents, start=1):
        writer.append(number, number, latents)
    ((files,), places) = writer.finish()
    reader = SegmentReader(tmp_path, files, MANIFEST)
    assert [(place.first_row, place.rows) for place in places] == [(0, 1), (1, 4), (5, 2)]
    for index, latents in enumerate(documents):
        assert bits(reader.latents(index)) == bits(latents)
        for row, layer in enumerate(MANIFEST.kept_layers):
            assert reader.content(layer, index).equal(latents.content_LC2GD[row])
    size = sum(path.stat().st_size for path in segment_paths(tmp_path, files.name))
    assert 0 < size - 7 * MANIFEST.row_bytes < 4096  # headers and the list of documents
    with pytest.raises(ValueError):
        reader.content(1, 0)  # it routes, and keeps nothing


def test_the_manifest_says_it_and_one_of_means_says_nothing(tmp_path: Path) -> None:
    assert Manifest.from_json(json.loads(json.dumps(MANIFEST.as_json()))) == MANIFEST
    means = tiny_manifest()
    assert not {"content_chunk", "content_layers"} & means.as_json().keys()
    assert (means.content, means.kept_layers, means.content_rows) == (None, means.msa_layers, 1)
    assert (MANIFEST.content, MANIFEST.content_rows) == (TokenContent(2, (0, 2, 3)), 2 * 3 * 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"content_chunk": 3},
        {"content_chunk": 4},
        {"content_chunk": 0},
        {"content_layers": "x"},
        {"content_chunk": None},
    ],
)
def test_a_damaged_manifest_is_refused(changes: dict[str, object]) -> None:
    values = {name: value for name, value in (MANIFEST.as_json() | changes).items() if value is not None}
    with pytest.raises(BankError, match="manifest is damaged"):
        Manifest.from_json(values)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    loaded = tiny_loaded(max_document_tokens=64)
    loaded = loaded.keeping(TokenContent(2, (1, 2, 3)))
    memory = Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded)
    memory.add(TEXTS)
    return memory


def test_an_estimate_counts_the_bytes_that_are_written(memory: Memory) -> None:
    with memory:
        found = estimate(memory.loaded, TEXTS)
        counts = memory.bank.catalog.counts()
        assert found.latent_bytes == counts.chunks * memory.bank.manifest.row_bytes
        assert abs(counts.segment_bytes - found.latent_bytes) < 4096 * counts.segments
        assert found.routing_key_bytes == counts.chunks * memory.bank.manifest.key_bytes


def test_damaged_tokens_are_found_and_encoded_again(memory: Memory) -> None:
    with memory:
        before, answer = _latents(memory.bank), memory.ask("word2 number3", max_texts=0).text
        ((_, files), *_) = memory.bank.catalog.segments("default")
        path = segment_paths(segments_folder(memory.bank.folder), files.name)[1]
    path.write_bytes(path.read_bytes()[:-3] + b"\x01\x02\x03")
    with Memory(MemoryBank.open(memory.bank.folder), memory.loaded) as opened:
        faults = verify(opened.bank)
        assert [fault.kind for fault in faults] == ["segment"]
        with pytest.raises(BankError, match="content of document"):
            opened.ask("word0 word1 word2 word3", max_texts=0)
        assert repair(opened.bank, opened.loaded, faults) == []
        assert _latents(opened.bank) == before and opened.ask("word2 number3", max_texts=0).text == answer


def test_compaction_and_export_keep_tokens(memory: Memory, tmp_path: Path) -> None:
    with memory:
        before = _latents(memory.bank)
        memory.delete("d1")
        memory.bank.compact()
        after = _latents(memory.bank)
        assert after.items() < before.items() and len(after) == memory.bank.catalog.counts().documents
        assert verify(memory.bank) == []
        export_bank(memory.bank, tmp_path / "bank.zip")
    with closing(import_bank(tmp_path / "bank.zip", tmp_path / "copy")) as copy:
        assert copy.manifest == memory.bank.manifest and verify(copy) == []


def test_a_published_bank_is_read_from_tokens(memory: Memory, tmp_path: Path) -> None:
    with memory:
        wanted = memory.ask("word2 number3", max_texts=0)
        publish(memory.bank, (tmp_path / "store").as_uri())
    place = BankPlace.of((tmp_path / "store").as_uri(), tmp_path / "cache", None)
    with Memory(MemoryBank.open(place), memory.loaded.keeping(None)) as reader:
        found = reader.ask("word2 number3", max_texts=0)
    assert (found.text, found.evidence) == (wanted.text, wanted.evidence)


def test_a_shard_attends_to_nothing_while_it_routes(tmp_path: Path) -> None:
    with closing(MemoryBank.create(tmp_path / "bank", MANIFEST)) as bank:
        latents = dict(enumerate(map(_owned, (3, 1, 2)), start=1))
        with bank.writer() as writer:
            for number, found in latents.items():
                add_latents(writer, Document(f"d{number}", "a text"), found)
            writer.commit()
        with bank.snapshot() as snapshot:
            from memspan.routing.local import LocalMemory

            routed = LocalMemory(snapshot.shards, snapshot.manifest, 2)
            query = torch.randn(1, 3, 2, 8)
            found = routed.route(1, query, torch.ones(1, 3, dtype=torch.bool))
            assert found.mask_BM.shape == (1, 0) and len(found.doc_ids[0]) == 2
            read = routed.read([[3, 1]])
    assert list(read) == [0, 2, 3] and read[0].doc_ids == ((3, 1),)
    rows = torch.cat([latents[number].content_LC2GD[0, :, :, 0] for number in (1, 3)])
    for place, layer in enumerate((0, 2, 3)):
        for head in range(2):
            own = rows[(rows[:, 0, -1] == place) & (rows[:, 1, -1] == head), :, :-1]
            there = read[layer].heads_BGM[0, head]
            assert read[layer].keys_BGMD[0, head, there].equal(own[:, 0]) and len(own)
            assert read[layer].values_BGMD[0, head, there].equal(own[:, 1])


def _owned(rows: int) -> EncodedDocuments:
    """Random latents whose rows are of layers and heads."""
    latents = random_latents(MANIFEST, rows)
    content = latents.content_LC2GD
    content[..., 0, 0, -1] = torch.randint(-1, 3, content.shape[:2])
    content[..., 1, 0, -1] = torch.randint(0, 2, content.shape[:2])
    return latents


def _latents(bank: MemoryBank) -> dict[int, object]:
    """Of every live document by its id."""
    with bank.snapshot() as snapshot:
        return {
            number: bits(reader.latents(place))
            for shard in snapshot.shards
            for index, (number, is_live) in enumerate(zip(shard.ids_N.tolist(), shard.live_N.tolist(), strict=True))
            if is_live
            for reader, place in [shard.place(index)]
        }
