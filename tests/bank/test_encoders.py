"""N processes (gloo on loopback) make the bank that one makes; what one of them commits no other can lose."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import read_bank, tiny_loaded
from ranked import in_processes

from memspan.bank import add, segment
from memspan.bank import encode as encoding
from memspan.bank.add import AddReport, add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import Part, encode_batch, manifest_of
from memspan.bank.encoders import encode_for_first
from memspan.bank.folder import segment_of
from memspan.bank.texts import TextBank
from memspan.bank.verify import verify
from memspan.errors import BankBusy, BankError, RankError
from memspan.model.convert import LoadedModel
from memspan.routing.ranks import Ranks
from memspan.types import Document

BATCH_TOKENS = 150


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=64)


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", 5)
    monkeypatch.setattr(encoding, "WINDOW_BATCHES", 3)


def _corpus(count: int) -> list[Document]:
    """Documents of 1 to 60 words; the longer ones are split."""
    generator = random.Random(0)
    words = ["otter", "heron", "lynx", "river", "tower"]
    texts = [" ".join(generator.choices(words, k=1 + 7 * n % 60)) for n in range(count)]
    return [Document(f"doc {n}", f"{n} {text}", metadata={"n": n}) for n, text in enumerate(texts)]


def _bank(folder: Path, loaded: LoadedModel) -> Path:
    MemoryBank.create(folder, manifest_of(loaded)).close()
    return folder


def _content(folder: Path) -> list[tuple[Any, ...]]:
    """Every live document with its latents, but for the time it was added; and the bank is sound."""
    bank = MemoryBank.open(folder)
    assert verify(bank) == []
    found = read_bank(bank)
    with bank.snapshot() as snapshot:  # what routing sees is what the catalog knows
        live = [int(ident) for shard in snapshot.shards for ident in shard.ids_N[shard.live_N]]
        assert sorted(live) == sorted(stored.id for stored, keys, _ in found if keys)
    assert [hit for hit, _ in bank.catalog.search("default", "otter", 1000)] or not found
    bank.close()
    return [(dataclasses.replace(stored, date="", source_id=0), *latents) for stored, *latents in found]


def _add(
    folder: Path,
    loaded: LoadedModel,
    corpus: Sequence[Document] | Callable[[], Iterator[Document]],
    joined: Ranks,
    **options: Any,
) -> AddReport:
    """What every rank does; rank 0 alone has opened the bank."""
    stop = options.pop("should_stop", lambda: False)
    if joined.rank:
        return encode_for_first(folder, loaded, joined, should_stop=stop)
    bank = MemoryBank.open(folder)
    documents = corpus() if callable(corpus) else corpus
    options = {"batch_tokens": BATCH_TOKENS, "group": joined, "should_stop": stop, **options}
    try:
        return add_documents(bank, loaded, documents, **options)
    finally:
        bank.close()


def _alone(folder: Path, loaded: LoadedModel, corpus: Sequence[Document]) -> list[tuple[Any, ...]]:
    """The bank that one process makes."""
    in_processes(lambda joined: _add(_bank(folder, loaded), loaded, corpus, joined, group=None), 1)
    return _content(folder)


def _after(batches: int, rank: int, joined: Ranks, do: Callable[[], None]) -> None:
    """Have a rank do something in the place of encoding a batch, once it has encoded so many."""
    seen = 0

    def encode(loaded: LoadedModel, batch: Sequence[Part]) -> None:
        nonlocal seen
        if joined.rank == rank and seen == batches:
            do()
        seen += 1
        encode_batch(loaded, batch)

    encoding.encode_batch = encode  # in this process alone


def _is_refused(found: Any, reason: str) -> bool:
    return isinstance(found, RankError) and reason in str(found)


@pytest.mark.parametrize("commit_seconds", [0, 1e9])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_some_ranks_make_the_bank_that_one_makes(
    tmp_path: Path, loaded: LoadedModel, ranks: int, commit_seconds: float
) -> None:
    corpus = _corpus(23)
    expected = _alone(tmp_path / "one", loaded, corpus)
    folder = _bank(tmp_path / "some", loaded)
    reports = in_processes(lambda joined: _add(folder, loaded, corpus, joined, commit_seconds=commit_seconds), ranks)
    assert len(expected) > 23 and _content(folder) == expected
    assert len(set(reports)) == 1
    counts = MemoryBank.open(folder).catalog.counts()
    report = reports[0]
    assert (report.added, report.documents, report.chunks) == (23, counts.documents, counts.chunks)
    assert (report.tokens, report.characters) == (counts.tokens, sum(len(document.text) for document in corpus))
    if commit_seconds:
        assert counts.segments == 1 if ranks == 1 else counts.segments >= ranks, "a task is a segment"
    again = in_processes(lambda joined: _add(folder, loaded, corpus, joined), ranks)[0]
    assert (again.unchanged, again.documents) == (23, 0) and _content(folder) == expected


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_loses_nothing_committed_and_a_run_after_it_completes(
    tmp_path: Path, loaded: LoadedModel, killed: int
) -> None:
    corpus = _corpus(30)
    expected = _alone(tmp_path / "one", loaded, corpus)
    folder = _bank(tmp_path / "bank", loaded)

    def add_until_killed(joined: Ranks) -> AddReport:
        _after(6, killed, joined, lambda: os.kill(os.getpid(), signal.SIGKILL))
        return _add(folder, loaded, corpus, joined, commit_seconds=0)

    found = in_processes(add_until_killed, 2)
    assert found[killed] is None and _is_refused(found[1 - killed], "another rank was lost")
    done = _encoded(folder)
    assert 0 < len(done) < len(expected) and len(_content(folder)) == len(expected), "all texts are there"
    assert done == [found for found in expected if found[0].id in {stored.id for stored, *_ in done}]
    report = in_processes(lambda joined: _add(folder, loaded, corpus, joined), 3)[0]
    assert (report.unchanged, report.added, report.documents) == (30, 0, len(expected) - len(done))
    assert _without_ids(_content(folder)) == _without_ids(expected)
    names = {files.name for _, files in MemoryBank.open(folder).catalog.segments()}
    assert {segment_of(path) for path in (folder / "segments").iterdir()} == names, "nothing is left behind"


def _encoded(folder: Path) -> list[tuple[Any, ...]]:
    return [found for found in _content(folder) if found[1]]


def _without_ids(content: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    return {(stored.external_id, stored.span, stored.text) for stored, *_ in content}


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("where", ["encoding", "writing"])
def test_a_rank_that_fails_is_named_on_all_and_what_was_committed_stays(
    tmp_path: Path, loaded: LoadedModel, failing: int, where: str
) -> None:
    corpus = _corpus(30)
    folder = _bank(tmp_path / "bank", loaded)

    def fail() -> None:
        if where == "encoding":
            raise MemoryError("no room")

        def write(*_: object) -> None:
            raise MemoryError("no room")

        segment.SegmentWriter.finish = write  # type: ignore[method-assign]  # in this process alone

    def add_until_failure(joined: Ranks) -> Any:
        _after(6, failing, joined, fail)
        return _add(folder, loaded, corpus, joined, commit_seconds=0)

    for found in in_processes(add_until_failure, 3):
        assert _is_refused(found, f"rank {failing} failed (MemoryError: no room)"), found
    assert 0 < len(_encoded(folder)) < len(_content(folder))
    report = in_processes(lambda joined: _add(folder, loaded, corpus, joined), 2)[0]
    assert (report.unchanged, report.pending) == (30, 0) and len(_encoded(folder)) == len(_content(folder))
    assert {name for name, *_ in _without_ids(_content(folder))} == {document.external_id for document in corpus}


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_asked_to_stop_stops_all_and_what_is_encoded_is_kept(
    tmp_path: Path, loaded: LoadedModel, stopped: int
) -> None:
    corpus = _corpus(40)
    folder = _bank(tmp_path / "bank", loaded)

    def add_until_stopped(joined: Ranks) -> AddReport:
        asked = 0

        def should_stop() -> bool:
            nonlocal asked
            asked += 1
            return joined.rank == stopped and asked == (6 if stopped else 50)

        return _add(folder, loaded, corpus, joined, should_stop=should_stop, commit_seconds=1e9)

    reports = in_processes(add_until_stopped, 2)
    assert reports[0] == reports[1] and reports[0].interrupted
    done, everything = len(_encoded(folder)), len(_content(folder))
    assert reports[0].added == 40 and 0 < done == reports[0].documents == everything - reports[0].pending < everything
    report = in_processes(lambda joined: _add(folder, loaded, corpus, joined), 2)[0]
    assert (report.unchanged, report.documents, report.pending) == (40, everything - done, 0)
    assert len(_encoded(folder)) == everything


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_failing_progress_leaves_nothing_that_the_catalog_does_not_know(
    tmp_path: Path, loaded: LoadedModel, rounds: int
) -> None:
    """Rank 0 tells its progress also after all ranks encoded a round and before that is committed."""
    folder, corpus = _bank(tmp_path / "bank", loaded), _corpus(25)

    def add_and_fail(joined: Ranks) -> Any:
        own, told, ended = [0], [(0, 0)], [0]

        def encode(loaded: LoadedModel, batch: Sequence[Part]) -> None:
            own[0] += len(batch)
            encode_batch(loaded, batch)

        def progress(report: AddReport) -> None:
            told.append((report.documents, own[0]))
            ended[0] += told[-1][0] > told[-2][0] and told[-1][1] == told[-2][1]  # what others encoded was counted
            if ended[0] == rounds:
                raise BrokenPipeError

        encoding.encode_batch = encode  # in this process alone
        try:
            return _add(folder, loaded, corpus, joined, progress=progress)
        except (BrokenPipeError, RankError) as error:
            return type(error)

    # What fails while a batch is encoded is a RankError on both.
    assert in_processes(add_and_fail, 2) == [BrokenPipeError, RankError]
    kept = len(_encoded(folder))
    assert in_processes(lambda joined: _add(folder, loaded, corpus, joined), 2)[0].pending == 0
    assert len({stored.external_id for stored, *_ in _content(folder)}) == 25 and kept < len(_encoded(folder))


def test_a_corpus_that_cannot_be_read_ends_all_and_what_came_before_is_kept(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    def broken() -> Iterator[Document]:
        yield from _corpus(13)
        raise OSError("the disk is gone")

    folder = _bank(tmp_path / "bank", loaded)

    def add_all(joined: Ranks) -> Any:
        try:
            return _add(folder, loaded, broken, joined)
        except OSError as error:
            return str(error)

    found = in_processes(add_all, 2)
    assert found[0] == "the disk is gone" and _is_refused(found[1], "rank 0 failed (OSError: the disk is gone)")
    assert len({stored.external_id for stored, *_ in _content(folder)}) == 13


def test_others_change_the_bank_while_ranks_encode(tmp_path: Path, loaded: LoadedModel) -> None:
    corpus = _corpus(20)
    folder = _bank(tmp_path / "bank", loaded)

    def add_all(joined: Ranks) -> AddReport:
        deleted: list[str] = []

        def progress(report: AddReport) -> None:
            if report.documents and not deleted:  # its latents are on their way
                deleted.append("doc 3")
                with contextlib.closing(TextBank.open(folder)) as other:
                    other.delete(deleted)

        return _add(folder, loaded, corpus, joined, progress=progress, commit_seconds=1e9)

    report = in_processes(add_all, 2)[0]
    assert (report.added, report.pending) == (20, 0)
    assert {stored.external_id for stored, *_ in _content(folder)} == {one.external_id for one in corpus} - {"doc 3"}
    assert len(_encoded(folder)) == len(_content(folder)) and list((folder / "encoded").iterdir()) == []


def test_a_bank_that_another_writes_is_refused_on_all(tmp_path: Path, loaded: LoadedModel) -> None:
    folder = _bank(tmp_path / "bank", loaded)

    def add_all(joined: Ranks) -> Any:
        try:
            return _add(folder, loaded, _corpus(3), joined)
        except BankBusy as error:
            return str(error)

    with MemoryBank.open(folder).locked():
        found = in_processes(add_all, 2)
    assert "another writer" in found[0] and _is_refused(found[1], "rank 0 failed (BankBusy")


def test_ranks_with_different_models_are_refused(tmp_path: Path, loaded: LoadedModel) -> None:
    folder, other = _bank(tmp_path / "bank", loaded), tiny_loaded(seed=5, max_document_tokens=64)
    found = in_processes(lambda joined: _add(folder, other if joined.rank else loaded, _corpus(3), joined), 2)
    assert all(_is_refused(error, "the ranks differ in their models") for error in found)
    assert _content(folder) == []


def test_a_rank_with_another_folder_is_noticed_before_anything_is_committed(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    folder, other = (_bank(tmp_path / name, loaded) for name in ("bank", "other"))

    def add_all(joined: Ranks) -> Any:
        try:
            return _add(other if joined.rank else folder, loaded, _corpus(20), joined)
        except BankError as error:
            return str(error)

    found = in_processes(add_all, 2)
    assert "let all use the same folder" in found[0] and _is_refused(found[1], "rank 0 failed (BankError")
    assert _encoded(folder) == []
