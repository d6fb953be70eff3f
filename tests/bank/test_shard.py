from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bits, latents_in, random_latents, tiny_manifest

from memspan.bank import shard as module
from memspan.bank.segment import SegmentReader, SegmentWriter
from memspan.bank.shard import JoinedReader, Shard, join_small
from memspan.types import EncodedDocuments

MANIFEST = tiny_manifest()
LAYERS = MANIFEST.msa_layers


def _segment(folder: Path, ids: Sequence[int], rows: Sequence[int]) -> tuple[SegmentReader, list[EncodedDocuments]]:
    writer = SegmentWriter(folder, MANIFEST, 2**20)
    latents = [random_latents(MANIFEST, count) for count in rows]
    for document_id, encoded in zip(ids, latents, strict=True):
        writer.append(document_id, 0, encoded)
    ((files,), _) = writer.finish()
    return SegmentReader(folder, files, MANIFEST), latents


@pytest.fixture
def parts(tmp_path: Path) -> list[tuple[SegmentReader, list[EncodedDocuments]]]:
    return [
        _segment(tmp_path, ids, rows) for ids, rows in (([5, 2, 9], [3, 1, 2]), ([7], [4]), ([1, 12, 3], [1, 1, 5]))
    ]


# --- one segment ----------------------------------------------------------------------------------------------------


def test_every_row_belongs_to_the_document_that_it_was_written_for(tmp_path: Path) -> None:
    reader, latents = _segment(tmp_path, [5, 2, 9], [3, 1, 2])
    shard = Shard.of(reader)
    assert (shard.ids_N.tolist(), shard.live_N.tolist()) == ([5, 2, 9], [True] * 3)
    for row, layer in enumerate(LAYERS):
        keys = reader.router_keys(layer)
        for index, encoded in enumerate(latents):
            assert keys[shard.document_C == index].equal(encoded.router_keys_LCW[row])


def test_documents_are_found_by_their_ids_whatever_the_order(tmp_path: Path) -> None:
    reader, _ = _segment(tmp_path, [5, 2, 9], [1, 1, 1])
    shard = Shard.of(reader)
    for asked in ([5, 2, 9], [9, 5], [4, 9, 1, 2, 100, 5], [], [3], [0, 2**62]):
        found, indices = shard.find(torch.tensor(asked, dtype=torch.int64))
        assert found.tolist() == [place for place, number in enumerate(asked) if number in (5, 2, 9)]
        assert indices.tolist() == [[5, 2, 9].index(asked[place]) for place in found.tolist()]


def test_the_mask_of_some_ids_stands_in_the_order_of_the_rows(tmp_path: Path) -> None:
    reader, _ = _segment(tmp_path, [5, 2, 9], [1, 1, 1])
    shard = Shard.of(reader)
    for allowed in ([], [2], [2, 9], [1, 3, 10], [1, 2, 5, 9, 11], [9]):
        mask_N = shard.contains_mask(torch.tensor(allowed, dtype=torch.int64))
        assert mask_N.dtype == torch.bool
        assert mask_N.tolist() == [number in allowed for number in (5, 2, 9)]


def test_without_gives_a_new_shard_and_leaves_the_old_as_it_was(tmp_path: Path) -> None:
    reader, _ = _segment(tmp_path, [5, 2, 9], [1, 1, 1])
    shard = Shard.of(reader)
    fewer = shard.without([9])
    none = fewer.without([2, 5])
    assert [one.live_N.tolist() for one in (shard, fewer, none)] == [
        [True, True, True],
        [True, True, False],
        [False, False, False],
    ]
    assert none.ids_N is shard.ids_N and none.document_C is shard.document_C
    assert shard.without([]) is shard
    assert fewer.without([100]).live_N.equal(fewer.live_N), "ids of other segments do not matter"


# --- several as one -------------------------------------------------------------------------------------------------


def test_joined_segments_read_as_the_one_that_holds_all_their_documents(
    tmp_path: Path, parts: list[tuple[SegmentReader, list[EncodedDocuments]]]
) -> None:
    joined = Shard.of(JoinedReader([reader for reader, _ in parts]))
    latents = [encoded for _, group in parts for encoded in group]
    writer = SegmentWriter(tmp_path, MANIFEST, 2**20)
    for document_id, encoded in zip([5, 2, 9, 7, 1, 12, 3], latents, strict=True):
        writer.append(document_id, 0, encoded)
    ((files,), _) = writer.finish()
    whole = Shard.of(SegmentReader(tmp_path, files, MANIFEST))
    for name in ("ids_N", "document_C", "live_N", "order_N", "sorted_N"):
        assert getattr(joined, name).equal(getattr(whole, name)), name
    assert joined.reader.documents_N4.equal(whole.reader.documents_N4)
    for layer in LAYERS:
        coarse, expected = joined.reader.coarse_keys(layer), whole.reader.coarse_keys(layer)
        assert coarse.key_CW.equal(expected.key_CW) and coarse.scale_C.equal(expected.scale_C)
        for index in range(7):
            (part, at), (segment, place) = joined.place(index), whole.place(index)
            assert part.router_rows(layer, at).equal(segment.router_rows(layer, place))
            assert part.content(layer, at).equal(segment.content(layer, place))
    assert [bits(latents_in(joined, n)) for n in range(7)] == [bits(encoded) for encoded in latents]


def test_joining_leaves_the_parts_as_they_were(parts: list[tuple[SegmentReader, list[EncodedDocuments]]]) -> None:
    readers = [reader for reader, _ in parts]
    before = [reader.documents_N4.clone() for reader in readers]
    JoinedReader(readers).coarse_keys(LAYERS[0])
    assert all(reader.documents_N4.equal(table) for reader, table in zip(readers, before, strict=True))


def _ids(shards: Sequence[Shard]) -> list[list[int]]:
    return [shard.ids_N.tolist() for shard in shards]


@pytest.mark.parametrize(
    ("small", "most", "expected"),
    [
        (2**23, 2**26, [[5, 2, 9, 7, 1, 12, 3]]),
        (0, 2**26, [[5, 2, 9], [7], [1, 12, 3]]),
        (2**23, 1, [[5, 2, 9], [7], [1, 12, 3]]),
        (900, 2**26, [[1, 12, 3], [5, 2, 9, 7]]),
        (2**23, 1600, [[5, 2, 9, 7], [1, 12, 3]]),
    ],
)
def test_small_segments_are_joined_up_to_a_size_and_large_ones_left_alone(
    parts: list[tuple[SegmentReader, list[EncodedDocuments]]],
    monkeypatch: pytest.MonkeyPatch,
    small: int,
    most: int,
    expected: list[list[int]],
) -> None:
    monkeypatch.setattr(module, "_SMALL_KEYS_BYTES", small)
    monkeypatch.setattr(module, "_MOST_JOINED_BYTES", most)
    sizes = [reader.keys_bytes for reader, _ in parts]
    assert sizes[0] < 900 <= sizes[2] and sizes[0] + sizes[1] <= 1600 < sum(sizes), sizes
    assert _ids(join_small([Shard.of(reader) for reader, _ in parts])) == expected


def test_what_was_deleted_is_deleted_in_the_joined_shard(
    parts: list[tuple[SegmentReader, list[EncodedDocuments]]],
) -> None:
    shards = [Shard.of(reader) for reader, _ in parts]
    shards[0], shards[2] = shards[0].without([2]), shards[2].without([1, 3])
    (joined,) = join_small(shards)
    assert joined.ids_N[joined.live_N].tolist() == [5, 9, 7, 12]


def test_a_joined_reader_is_used_again_while_its_parts_are_the_same(
    parts: list[tuple[SegmentReader, list[EncodedDocuments]]],
) -> None:
    shards: list[Any] = [Shard.of(reader) for reader, _ in parts]
    first = join_small(shards)
    second = join_small([shards[0].without([9]), *shards[1:]], first)
    assert second[0].reader is first[0].reader
    assert (first[0].live_N.all(), second[0].ids_N[~second[0].live_N].tolist()) == (True, [9])
    assert join_small(shards[:2], second)[0].reader is not first[0].reader
    assert join_small(shards[:1], second) == shards[:1], "one alone is itself"
    assert join_small([]) == []
