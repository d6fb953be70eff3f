"""Encoding as a pure step: tasks, rows of a manifest, and the one committer."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FORK, read_bank, tiny_loaded, watch_encoding

from memspan.bank import edits, encode
from memspan.bank.add import add_documents, encode_pending
from memspan.bank.bank import MemoryBank
from memspan.bank.commit import CommitReport
from memspan.bank.encode import manifest_of
from memspan.bank.encoded import EncodedSegment, EncodingTask, read_manifest
from memspan.bank.encoder import Encoder, encoding_tasks
from memspan.bank.reencode import reencode
from memspan.bank.stored import num_pending
from memspan.bank.texts import TextBank
from memspan.bank.verify import verify
from memspan.errors import BankBusy, BankError, BankMismatch
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.types import Document

BATCH_TOKENS = 60
OTHER = "other"
Row = dict[str, Any]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=64)


@pytest.fixture(scope="module", autouse=True)
def _small_tasks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memspan.bank.encode.WINDOW_BATCHES", 2)
        yield


def _corpus(count: int, seed: int = 0) -> list[Document]:
    generator = random.Random(seed)
    words = ["otter", "heron", "лось", "河", "tower"]
    texts = [" ".join(generator.choices(words, k=1 + 9 * n % 40)) for n in range(count)]
    return [Document(f"doc {n}", f"{n} {text}", title="T" * (n % 3)) for n, text in enumerate(texts)]


def _bank(folder: Path, loaded: LoadedModel, count: int = 9) -> MemoryBank:
    """A bank of texts that are to be encoded, in two namespaces."""
    bank = MemoryBank.create(folder, manifest_of(loaded))
    add_documents(bank, loaded, _corpus(count), later=True)
    add_documents(bank, loaded, _corpus(3, seed=1), namespace=OTHER, later=True)
    return bank


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> Path:
    """The folder of `bank`, made once."""
    folder = tmp_path_factory.mktemp("texts") / "bank"
    _bank(folder, loaded).close()
    return folder


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, texts: Path, loaded: LoadedModel) -> tuple[Path, list[Row]]:
    """The folder of `encoded` and its rows, made once."""
    folder = Path(shutil.copytree(texts, tmp_path_factory.mktemp("encoded") / "bank"))
    with closing(MemoryBank.open(folder)) as bank:
        return folder, _rows(bank, loaded)


@pytest.fixture
def bank(tmp_path: Path, texts: Path) -> Iterator[MemoryBank]:
    with closing(MemoryBank.open(shutil.copytree(texts, tmp_path / "bank"))) as made:
        yield made


@pytest.fixture
def encoded(tmp_path: Path, manifest: tuple[Path, list[Row]]) -> Iterator[tuple[MemoryBank, list[Row]]]:
    """The bank with all of it encoded, and the rows that commit it."""
    folder, rows = manifest
    with closing(MemoryBank.open(shutil.copytree(folder, tmp_path / "bank"))) as made:
        yield made, copy.deepcopy(rows)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedModel) -> list[tuple[Any, ...]]:
    """What one process makes of the same texts."""
    return _alone(tmp_path_factory.mktemp("alone") / "bank", loaded)


def _content(bank: MemoryBank) -> list[tuple[Any, ...]]:
    """Every live document with its latents, but for the time it was added; and the bank is sound."""
    assert verify(bank) == []
    found = [one for namespace in bank.catalog.namespaces() for one in read_bank(bank, namespace)]
    return [(dataclasses.replace(stored, date="", source_id=0), *latents) for stored, *latents in found]


def _alone(folder: Path, loaded: LoadedModel, count: int = 9) -> list[tuple[Any, ...]]:
    """What one process makes of the same texts."""
    with closing(_bank(folder, loaded, count)) as bank:
        encode_pending(bank, loaded, batch_tokens=BATCH_TOKENS)
        return _content(bank)


def _tasks(bank: TextBank, loaded: LoadedModel, **options: Any) -> list[EncodingTask]:
    return list(encoding_tasks(bank, loaded, batch_tokens=BATCH_TOKENS, **options))


def _rows(bank: MemoryBank, loaded: LoadedModel, **options: Any) -> list[Row]:
    encoder = Encoder(loaded, bank=bank.folder)
    return [row for task in _tasks(bank, loaded, **options) for row in encoder(task)]


def _encoded_files(bank: MemoryBank) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bank.folder / "encoded").iterdir()}


def _nothing_is_left(bank: MemoryBank) -> None:
    names = {files.name for _, files in bank.catalog.segments()}
    assert {path.name.partition(".")[0] for path in (bank.folder / "segments").iterdir()} == names
    assert list((bank.folder / "encoded").iterdir()) == []


# --- the pure step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tasks_in_any_order_and_in_json_make_the_bank_that_one_process_makes(
    bank: MemoryBank, loaded: LoadedModel, expected: list[tuple[Any, ...]], seed: int
) -> None:
    tasks = [json.loads(json.dumps(task.as_json())) for task in _tasks(bank, loaded)]
    random.Random(seed).shuffle(tasks)
    encoders = [Encoder(loaded, bank=bank.folder), Encoder(loaded, bank=str(bank.folder))]
    rows = [row for n, task in enumerate(tasks) for row in json.loads(json.dumps(encoders[n % 2](task)))]
    assert len(tasks) > 3 and {row["origin"]["namespace"] for row in rows} == {"default", OTHER}
    assert num_pending(bank.catalog) == len(expected), "nothing exists before the commit"
    report = bank.commit(rows)
    assert report == CommitReport(len(expected), 0, 0, 0) and _content(bank) == expected
    _nothing_is_left(bank)


def test_the_same_task_gives_the_same_files_and_row(bank: MemoryBank, loaded: LoadedModel) -> None:
    first = _rows(bank, loaded)
    files = _encoded_files(bank)
    assert len(files) == 2 * len(first)
    assert _rows(bank, loaded) == first and _encoded_files(bank) == files


def test_other_tokens_or_another_id_give_another_file(bank: MemoryBank, loaded: LoadedModel) -> None:
    encoder, (task, *_) = Encoder(loaded, bank=bank.folder), _tasks(bank, loaded)
    one = task.documents[0]
    variants = [one, dataclasses.replace(one, id=one.id + 1), dataclasses.replace(one, tokens=one.tokens[::-1])]
    rows = [encoder(dataclasses.replace(task, documents=(variant,)))[0] for variant in variants]
    assert len({row["files"]["name"] for row in rows}) == 3


def test_an_encoder_loads_the_model_that_the_bank_was_made_with(tmp_path: Path, bank: MemoryBank) -> None:
    with pytest.raises(BankError, match="there is no bank in"):
        Encoder(bank=tmp_path / "nowhere")


def test_tasks_of_some_namespaces_and_of_what_is_left(bank: MemoryBank, loaded: LoadedModel) -> None:
    assert {task.origin.namespace for task in _tasks(bank, loaded, namespaces=[OTHER])} == {OTHER}
    bank.commit(_rows(bank, loaded, namespaces=[OTHER]))
    assert {task.origin.namespace for task in _tasks(bank, loaded)} == {"default"}
    bank.commit(_rows(bank, loaded))
    assert _tasks(bank, loaded) == [] and _tasks(bank, loaded, namespaces=["nobody's"]) == []


def test_a_task_that_is_none_is_a_named_error(bank: MemoryBank, loaded: LoadedModel) -> None:
    encoder, (task, *_) = Encoder(loaded, bank=bank.folder), _tasks(bank, loaded)
    good = task.as_json()
    bad: list[Any] = [
        {},
        {**good, "documents": []},
        {**good, "batch_tokens": 0},
        {**good, "batch_tokens": True},
        None,
        7,
    ]
    bad.append({**good, "documents": [{**good["documents"][0], "tokens": ["a"]}]})
    bad.append({**good, "documents": [good["documents"][0]] * 2})
    for one in bad:
        with pytest.raises(BankError, match="the task is not what"):
            encoder(one)
    assert not (bank.folder / "encoded").exists()


@pytest.mark.parametrize("side", ["task", "row"])
@pytest.mark.parametrize("what", ["version", "model", "bank"])
def test_another_version_model_or_bank_is_named(
    tmp_path: Path, bank: MemoryBank, loaded: LoadedModel, side: str, what: str
) -> None:
    task, manifest = _tasks(bank, loaded)[0], manifest_of(tiny_loaded(seed=3, max_document_tokens=64))
    changed = {
        "version": {"memspan": "0.0.9"},
        "model": {"manifest": manifest},
        "bank": {"bank": "0" * 32},
    }[what]
    message = {"version": r"memspan 0\.0\.9", "model": "encoder_fingerprint", "bank": "another bank"}[what]
    encoder = Encoder(loaded, bank=bank.folder)
    if side == "task":
        other = dataclasses.replace(task, origin=dataclasses.replace(task.origin, **changed))
        if what == "bank":  # an encoder knows only the folder; the committer sees it
            with pytest.raises(BankMismatch, match=message):
                bank.commit(encoder(other))
        else:
            with pytest.raises(BankMismatch, match=message):
                encoder(other)
    else:
        rows = [*_rows(bank, loaded, namespaces=[OTHER]), *encoder(task)]
        rows[-1]["origin"] |= {name: getattr(value, "__dict__", value) for name, value in changed.items()}
        if what == "model":
            rows[-1]["origin"]["manifest"] = dataclasses.asdict(manifest)
        with pytest.raises(BankMismatch, match=message):
            bank.commit(rows)
    assert num_pending(bank.catalog) == sum(len(task.documents) for task in _tasks(bank, loaded)), "nothing was done"


def test_a_manifest_of_another_bank_with_the_same_ids_is_refused(
    tmp_path: Path, bank: MemoryBank, loaded: LoadedModel
) -> None:
    rows = _rows(bank, loaded)
    with closing(_bank(tmp_path / "twin", loaded)) as twin, pytest.raises(BankMismatch, match="another bank"):
        twin.commit(rows)


# --- committing ------------------------------------------------------------------------------------------------------


def test_however_often_and_in_whatever_pieces_it_is_committed(
    encoded: tuple[MemoryBank, list[Row]], expected: list[tuple[Any, ...]]
) -> None:
    bank, rows = encoded
    half = len(rows) // 2
    assert bank.commit([]) == CommitReport(0, 0, 0, len(expected))
    first = bank.commit([*rows[:half], *rows[:half]])
    again = bank.commit(rows[:half])
    assert first.documents and again == dataclasses.replace(first, documents=0, before=first.documents)
    whole = bank.commit(rows)
    assert (whole.before, whole.documents, whole.pending) == (first.documents, first.pending, 0)
    commits = bank.catalog.commits()
    assert bank.commit(rows).before == len(expected) and bank.catalog.commits() == commits, "nothing to do"
    bank.compact()
    assert bank.commit(rows).before == len(expected), "also where its segments were merged since"
    assert _content(bank) == expected
    _nothing_is_left(bank)


def test_all_of_a_manifest_begins_to_exist_in_one_transaction(bank: MemoryBank, loaded: LoadedModel) -> None:
    every, commits = _rows(bank, loaded), bank.catalog.commits()
    rows = [*every[:3], every[-1]]  # of both namespaces, and too few to be merged
    with closing(MemoryBank.open(bank.folder)) as reader:
        seen: list[int] = []
        original = edits.reseal

        def watch(*arguments: Any) -> None:
            seen.append(num_pending(reader.catalog))  # as others see it
            original(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(edits, "reseal", watch)
            report = bank.commit(rows)
        assert set(seen) == {report.documents + report.pending} and num_pending(reader.catalog) == report.pending
    assert bank.catalog.commits() == commits + 1


@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_commit_that_fails_leaves_nothing_done_and_can_be_repeated(
    encoded: tuple[MemoryBank, list[Row]], expected: list[tuple[Any, ...]], at: int
) -> None:
    bank, rows = encoded
    calls = list(range(len(expected)))

    def failing(*_: Any) -> None:
        if calls.pop() == range(len(expected))[at]:
            raise BankError("the disk is full")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(BankError, match="full"):
        patch.setattr(edits, "reseal", failing)
        bank.commit(rows)
    assert num_pending(bank.catalog) == len(expected) and verify(bank) == []
    assert bank.commit(rows).documents == len(expected) and _content(bank) == expected
    _nothing_is_left(bank)


@pytest.mark.parametrize("change", ["delete", "update", "expire"])
def test_what_changed_meanwhile_is_not_committed_and_is_counted(
    tmp_path: Path, bank: MemoryBank, loaded: LoadedModel, change: str
) -> None:
    rows = _rows(bank, loaded)
    names = ["doc 1", "doc 4", "doc 5"]
    gone = [stored.id for name in names for stored in bank.catalog.documents_of("default", name)]
    if change == "delete":
        bank.delete(names)
    elif change == "update":
        add_documents(bank, loaded, [Document(name, "another text") for name in names], later=True)
    else:
        given = [dataclasses.replace(one, expires="2001-01-01") for one in _corpus(9) if one.external_id in names]
        add_documents(bank, loaded, given, later=True)
    report = bank.commit(rows)
    assert report.gone == len(gone) and report.pending == (3 if change == "update" else 0)
    encode_pending(bank, loaded)
    found = {stored.id for stored, *_ in _content(bank)}
    assert not found & set(gone) and all(keys for _, keys, _ in _content(bank))
    bank.compact()
    _nothing_is_left(bank)


def test_what_is_deleted_right_behind_a_commit_was_committed(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, locked = _rows(bank, loaded, namespaces=[OTHER]), MemoryBank.locked

    @contextmanager
    def deleting(self: MemoryBank, patience: float = 0.0) -> Iterator[None]:
        with locked(self, patience):
            yield
        monkeypatch.setattr(MemoryBank, "locked", locked)
        bank.delete(["doc 0", "doc 1"], OTHER)

    monkeypatch.setattr(MemoryBank, "locked", deleting)
    report = bank.commit(rows)
    assert (report.documents, report.before, report.gone) == (sum(len(row["documents"]) for row in rows), 0, 0)


def test_what_another_run_encoded_first_is_not_there_twice(bank: MemoryBank, loaded: LoadedModel) -> None:
    rows = _rows(bank, loaded)
    encode_pending(bank, loaded, namespaces=["default"])
    before = len(read_bank(bank))
    report = bank.commit(rows)
    assert (report.before, report.gone, report.pending) == (before, 0, 0)
    assert len(read_bank(bank)) == before and verify(bank) == []
    _nothing_is_left(bank)


def test_two_manifests_of_the_same_documents_give_each_once(bank: MemoryBank, loaded: LoadedModel) -> None:
    rows = _rows(bank, loaded)
    other = [
        row for task in encoding_tasks(bank, loaded, batch_tokens=31) for row in Encoder(loaded, bank=bank.folder)(task)
    ]
    report = bank.commit([*rows[1::2], *other, *rows[::2]])
    assert (report.before, report.gone, report.pending) == (0, 0, 0) and verify(bank) == []
    live = [stored.id for namespace in ("default", OTHER) for stored, keys, _ in read_bank(bank, namespace) if keys]
    assert len(live) == len(set(live)) == report.documents
    _nothing_is_left(bank)


def test_committers_at_once_commit_each_document_once(
    encoded: tuple[MemoryBank, list[Row]], expected: list[tuple[Any, ...]]
) -> None:
    bank, rows = encoded
    reports: list[CommitReport] = []

    def commit() -> None:
        with closing(MemoryBank.open(bank.folder)) as own:
            reports.append(own.commit(rows))

    threads = [threading.Thread(target=commit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(report.documents for report in reports) == [0, 0, 0, len(expected)]
    assert _content(bank) == expected


def test_a_bank_that_another_writes_is_waited_for(bank: MemoryBank, loaded: LoadedModel) -> None:
    rows = _rows(bank, loaded)
    with MemoryBank.open(bank.folder).locked(), pytest.raises(BankBusy):
        bank.commit(rows, patience=0)
    assert bank.commit(rows).pending == 0


def test_a_memory_commits_too_and_the_next_question_sees_it(bank: MemoryBank, loaded: LoadedModel) -> None:
    memory = Memory(bank, loaded)
    assert memory.commit(_rows(bank, loaded)).pending == 0
    assert memory.search("otter", selector="router", limit=2)


# --- what a row may not be -------------------------------------------------------------------------------------------


def _changed(row: Row, **values: Any) -> Row:
    """A row with other values: `files.name`, as `files__name`."""
    changed = copy.deepcopy(row)
    for path, value in values.items():
        *outer, last = path.split("__")
        place: Any = changed
        for name in outer:
            place = place[int(name) if name.isdigit() else name]
        place[int(last) if last.isdigit() else last] = value
    return changed


@pytest.mark.parametrize(
    "values",
    [
        {"files__name": "../../catalog"},
        {"files__name": "A" * 32},
        {"files__name": None},
        {"files__documents": "3"},
        {"files__rows": 1.5},
        {"documents": []},
        {"documents": {}},
        {"documents__0__id": 0},
        {"documents__0__id": True},
        {"documents__0__tokens": -1},
        {"documents__0__tokens": 10**30},
        {"documents__0": [1, 2, 3, 4, 5]},
        {"origin": None},
        {"origin__namespace": 7},
        {"origin__manifest": {}},
        {"origin__bank": ["x"]},
    ],
    ids=str,
)
def test_a_row_of_another_form_is_a_named_error(encoded: tuple[MemoryBank, list[Row]], values: dict[str, Any]) -> None:
    bank, rows = encoded
    rows[-1] = _changed(rows[-1], **values)
    with pytest.raises(BankError, match="a row of the manifest is not what the encoder gave"):
        bank.commit(rows)
    assert num_pending(bank.catalog) and not read_bank(bank)[0][1]


@pytest.mark.parametrize(
    "values",
    [
        {"documents__0__id": 999},
        {"documents__0__rows": 9},
        {"documents__0__first_row": 1},
        {"documents__0__text_crc32": 1},
        {"files__name": "0" * 32},
        {"files__keys_sha256": "0" * 64},
        {"files__content_sha256": "0" * 64},
        {"files__keys_bytes": 1},
        {"files__index_crc32": 5},
        {"files__rows": 10**30},
        {"files__documents": 1},
        {"origin__namespace": "nobody's"},
    ],
    ids=str,
)
def test_a_row_that_its_files_do_not_bear_out_is_refused_and_nothing_is_done(
    encoded: tuple[MemoryBank, list[Row]], values: dict[str, Any]
) -> None:
    bank, rows = encoded
    with pytest.raises(BankError, match="encode"):
        bank.commit(
            [*rows[:-1], _changed(rows[0], **values)]
            if "files__name" in values
            else [_changed(rows[0], **values), *rows[1:]]
        )
    assert num_pending(bank.catalog) == sum(len(row["documents"]) for row in rows)
    assert bank.commit(rows).pending == 0 and verify(bank) == []


def test_a_row_in_another_namespace_is_refused(bank: MemoryBank, loaded: LoadedModel) -> None:
    rows = _rows(bank, loaded)
    with pytest.raises(BankError, match="encode"):
        bank.commit([_changed(rows[0], origin__namespace=OTHER)])
    assert all(not keys for _, keys, _ in read_bank(bank, OTHER))


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "exchanged"])
@pytest.mark.parametrize("kind", ["keys", "content"])
def test_a_damaged_file_is_named_and_encoding_again_mends_it(
    encoded: tuple[MemoryBank, list[Row]],
    expected: list[tuple[Any, ...]],
    loaded: LoadedModel,
    kind: str,
    damage: str,
) -> None:
    bank, rows = encoded
    path, other = (bank.folder / "encoded" / f"{row['files']['name']}.{kind}.safetensors" for row in rows[:2])
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-3], "exchanged": other.read_bytes()}.get(damage, data))
    with pytest.raises(BankError, match=f"{path.name}.* encode"):
        bank.commit(rows)
    assert num_pending(bank.catalog) == len(expected) and verify(bank) == []
    assert _rows(bank, loaded) == rows and bank.commit(rows).pending == 0
    assert _content(bank) == expected


def test_lines_of_a_manifest(bank: MemoryBank, loaded: LoadedModel) -> None:
    lines = [json.dumps(row) for row in _rows(bank, loaded)]
    assert len(read_manifest(["\n", *(f"{line}\r\n" for line in lines), "  \n"], "x")) == len(lines)
    for bad in ("{", "[1]", "null", '"row"', lines[0][:-9], "\udcff"):
        with pytest.raises(BankError, match=r"line 2 of here\.jsonl is not what"):
            read_manifest([lines[0], bad], "here.jsonl")


# --- what stays until it is committed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "do",
    [
        lambda bank, loaded: bank.delete(["doc 0"]),
        lambda bank, loaded: add_documents(bank, loaded, [Document("new", "a new text")]),
        lambda bank, loaded: bank.compact(),
        lambda bank, loaded: encode_pending(bank, loaded, namespaces=[OTHER]),
        lambda bank, loaded: [add_documents(bank, loaded, [Document(f"more {n}", "text")]) for n in range(9)],
        lambda bank, loaded: MemoryBank.open(bank.folder).commit([]),
    ],
    ids=["delete", "add", "compact", "encode the others", "merge", "commit nothing"],
)
def test_writers_leave_what_may_still_be_committed(
    bank: MemoryBank, loaded: LoadedModel, do: Callable[[MemoryBank, LoadedModel], Any]
) -> None:
    rows, half_done = _rows(bank, loaded, namespaces=["default"]), f"{'a' * 32}.content.safetensors"
    for name in (f"{half_done}.partial", half_done):
        (bank.folder / "encoded" / name).write_bytes(b"an encoder is writing it")
    files = _encoded_files(bank)
    do(bank, loaded)
    with bank.locked():
        assert _encoded_files(bank) == files
    bank.commit(rows)
    encode_pending(bank, loaded)
    assert num_pending(bank.catalog) == 0 and verify(bank) == []
    with bank.locked():
        _nothing_is_left(bank)


def test_what_cannot_be_committed_any_more_is_swept(bank: MemoryBank, loaded: LoadedModel) -> None:
    rows = _rows(bank, loaded)
    of_default = {row["files"]["name"] for row in rows if row["origin"]["namespace"] == "default"}
    bank.delete([source.document.external_id for source in bank.catalog.sources("default")])
    with bank.locked():
        left = {name.partition(".")[0] for name in _encoded_files(bank)}
    assert left and not left & of_default
    (bank.folder / "encoded" / "of somebody else").write_text("kept")
    encode_pending(bank, loaded)
    with bank.locked():
        assert set(_encoded_files(bank)) == {"of somebody else"}


def test_a_damaged_file_does_not_stay_forever(bank: MemoryBank, loaded: LoadedModel) -> None:
    row = _rows(bank, loaded)[0]
    path = bank.folder / "encoded" / f"{row['files']['name']}.keys.safetensors"
    path.write_bytes(b"no safetensors")
    with bank.locked():
        assert not path.exists()


def test_a_secure_compaction_leaves_no_latents_of_what_was_deleted(bank: MemoryBank, loaded: LoadedModel) -> None:
    rows = _rows(bank, loaded)
    bank.delete(["doc 0"])
    bank.compact(secure=True)
    assert _encoded_files(bank) == {}
    with pytest.raises(BankError, match="encode its documents again"):
        bank.commit(rows)
    assert bank.commit(_rows(bank, loaded)).pending == 0


def test_a_bank_that_was_encoded_for_another_model_meanwhile_refuses_the_manifest(
    bank: MemoryBank, loaded: LoadedModel
) -> None:
    rows, other = _rows(bank, loaded), tiny_loaded(seed=4, max_document_tokens=64)
    with closing(MemoryBank.open(bank.folder)) as theirs:
        reencode(theirs, other)
    for own in (bank, MemoryBank.open(bank.folder)):
        with pytest.raises(BankMismatch):
            own.commit(rows)
    again = MemoryBank.open(bank.folder)
    reencode(again, loaded)
    report = again.commit(rows)
    assert (report.documents, report.pending) == (0, 0) and verify(again) == []


# --- files without links ---------------------------------------------------------------------------------------------


def test_a_file_system_without_links_gets_copies(
    encoded: tuple[MemoryBank, list[Row]], expected: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, rows = encoded

    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    bank.commit(rows)
    assert _content(bank) == expected
    _nothing_is_left(bank)


# --- killed at any moment --------------------------------------------------------------------------------------------


def _encode_all(folder: Path, loaded: LoadedModel, manifest: Path) -> None:
    """What a worker of any engine does: encodes tasks, and writes the rows down."""
    encoder = Encoder(loaded, bank=folder)
    with closing(TextBank.open(folder)) as bank, manifest.open("a", encoding="utf-8") as out:
        for task in _tasks(bank, loaded):
            for row in encoder(task):
                out.write(f"{json.dumps(row)}\n")
                out.flush()


def _commit_all(folder: Path, loaded: LoadedModel, manifest: Path) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        bank.commit(_whole_rows(manifest))


def _whole_rows(manifest: Path) -> list[EncodedSegment]:
    """The rows of a manifest, but for one that was cut off."""
    lines = manifest.read_text("utf-8").splitlines(keepends=True) if manifest.exists() else []
    return read_manifest([line for line in lines if line.endswith("\n")], str(manifest))


_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.chmod", "shutil.", "sqlite3.")


def _in_child(do: Callable[[], None], kill_at: int | None) -> int:
    """Do something in a process that is killed at its n-th step, if it has so many; returns how many it took.

    Steps are what it does to files and to the catalog, and batches that it encodes.
    """
    ours, theirs = FORK.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        steps = [0]

        def step(event: str, _: Any) -> None:
            if event.startswith(_EVENTS):
                steps[0] += 1
                if steps[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        real = encode.encode_batch

        def encode_batch(*arguments: Any) -> None:
            step("open", ())
            real(*arguments)

        encode.encode_batch = encode_batch  # in this process alone
        sys.addaudithook(step)
        do()
        theirs.send(steps[0])

    child = FORK.Process(target=run)
    child.start()
    theirs.close()
    child.join(60)
    return ours.recv() if child.exitcode == 0 and ours.poll(0) else 0


@pytest.mark.parametrize("killed", ["encoder", "committer"])
def test_killed_at_any_of_20_moments_nothing_is_lost_and_nothing_twice(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = _alone(tmp_path / "one", loaded, 5)
        _bank(tmp_path / "made", loaded, 5).close()
        if killed == "committer":
            _encode_all(tmp_path / "made", loaded, tmp_path / "made" / "rows.jsonl")

        def work(folder: Path, kill_at: int | None) -> int:
            shutil.copytree(tmp_path / "made", folder)
            do = _encode_all if killed == "encoder" else _commit_all
            return _in_child(lambda: do(folder, loaded, folder / "rows.jsonl"), kill_at)

        steps = work(tmp_path / "whole", None)
        assert steps > 40
        for moment in sorted(random.Random(0).sample(range(1, steps + 1), 20)):
            folder = tmp_path / f"killed at {moment}"
            assert work(folder, moment) == 0, "it was killed"
            _goes_on(folder, loaded, expected, has_rows=killed == "committer")
            shutil.rmtree(folder)
    finally:
        torch.set_num_threads(before)


def _goes_on(folder: Path, loaded: LoadedModel, expected: Sequence[Any], has_rows: bool) -> None:
    """After a kill: another writer comes and goes, what is in the manifest is committed, the rest encoded."""
    with closing(MemoryBank.open(folder)) as bank:
        assert verify(bank) == []
        bank.delete([])
        with bank.locked():
            pass
        rows = _whole_rows(folder / "rows.jsonl")
        report = bank.commit(rows)
        assert report.documents + report.before == len({number for row in rows for number in row.ids})
        assert report.gone == 0 and (report.pending == 0 or not has_rows)
        with pytest.MonkeyPatch.context() as patch:
            encoded = watch_encoding(patch, loaded)
            _encode_all(folder, loaded, folder / "rows.jsonl")
        assert len(encoded) == report.pending, "what is in the manifest is not encoded again"
        bank.commit(_whole_rows(folder / "rows.jsonl"))
        bank.commit(_whole_rows(folder / "rows.jsonl"))
        assert _content(bank) == expected
        with bank.locked():
            _nothing_is_left(bank)
