"""`repair`: whatever the stored text can give back is given back, under the same ids; the rest stays reported."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bits, read_bank, read_latents, tiny_loaded, watch_encoding

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, StoredDocument
from memspan.bank.edits import NewDocument
from memspan.bank.encode import Part, encode_batch, manifest_of
from memspan.bank.locks import writer_lock
from memspan.bank.repair import repair
from memspan.bank.verify import Fault, verify
from memspan.errors import BankBusy, BankMismatch, MemspanError
from memspan.model.convert import LoadedModel
from memspan.types import Document

OTHER = "other"
LONG = " ".join(f"word number {number} of a text that is cut." for number in range(8))
CORPUS = [
    Document("described", "alpha beta", "Title", {"project": "x"}, "2026-03-01"),
    Document("long", LONG, metadata={"k": [1, None, "ü"]}),
    Document("gone", "gamma delta"),
    Document("replaced", "the old text"),
]

Sources = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(autouse=True)
def _encoded_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every document is encoded in a batch of its own: in another batch its last bits may be others."""
    monkeypatch.setattr("memspan.bank.encode.batches", lambda parts, tokens: [[part] for part in parts])


@pytest.fixture(scope="module")
def template(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two namespaces; texts in parts, one replaced, one deleted; three segments."""
    folder = tmp_path_factory.mktemp("repair") / "bank"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memspan.bank.encode.batches", lambda parts, tokens: [[part] for part in parts])
        with closing(MemoryBank.create(folder, manifest_of(loaded))) as bank:
            add_documents(bank, loaded, CORPUS)
            add_documents(bank, loaded, [Document("replaced", "the new text")])
            add_documents(bank, loaded, [Document("long", LONG[:150]), Document("theirs", "private")], namespace=OTHER)
            bank.delete(["gone"])
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "bank")
    return tmp_path / "bank"


def _sources(bank: MemoryBank) -> Sources:
    return {
        namespace: sorted(
            (d.external_id, d.title, d.text, str(d.metadata), d.date or "")
            for d in (stored.document for stored in bank.catalog.sources(namespace))
        )
        for namespace in bank.catalog.namespaces()
    }


def _ids(bank: MemoryBank) -> list[list[int]]:
    return [[stored.id for stored in bank.catalog.page(namespace, 0, 999)] for namespace in bank.catalog.namespaces()]


def _fresh(loaded: LoadedModel, stored: StoredDocument) -> tuple[bytes, bytes]:
    """The latents that the model computes for a document now."""
    tokens = loaded.template.document(stored.id, stored.encoded_text)
    part = Part(NewDocument(stored.id, stored.span, len(tokens)), tokens, 0)
    encode_batch(loaded, [part])
    assert part.latents is not None
    return bits(part.latents)


def _assert_whole(bank: MemoryBank, loaded: LoadedModel, sources: Sources) -> None:
    """Nothing is wrong, the texts are these, and the latents and the words are those of the texts."""
    assert verify(bank) == []
    assert _sources(bank) == sources
    for namespace in bank.catalog.namespaces():
        for stored, *latents in read_bank(bank, namespace):
            assert tuple(latents) == _fresh(loaded, stored), stored.external_id
            found = [number for number, _ in bank.catalog.search(namespace, stored.encoded_text, 50)]
            assert stored.id in found
        spans = {
            source: [part.span for part in bank.catalog.documents_of(namespace, source[0])]
            for source in sources[namespace]
        }
        assert all(parts[0].start == 0 and parts[-1].end == len(source[2]) for source, parts in spans.items())


def _change(folder: Path, *statements: str) -> None:
    """Change the catalog behind the bank's back."""
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        before = list(db.iterdump())
        for statement in statements:
            db.execute(statement)
        db.commit()
        assert list(db.iterdump()) != before


def _segment_files(folder: Path) -> list[Path]:
    return sorted((folder / "segments").iterdir())


def _flip_in(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)


def _flip_everywhere(folder: Path) -> None:
    for path in _segment_files(folder):
        _flip_in(path)


def _flip_one(folder: Path) -> None:
    _flip_in(_segment_files(folder)[0])


def _flip_headers(folder: Path) -> None:
    for path in _segment_files(folder):
        path.write_bytes(b"\xff" + path.read_bytes()[1:])


def _lose_one_of_each_pair(folder: Path) -> None:
    for path in _segment_files(folder)[::2]:
        path.unlink()


def _empty_all(folder: Path) -> None:
    for path in _segment_files(folder):
        path.write_bytes(b"")


def _lose_the_folder(folder: Path) -> None:
    shutil.rmtree(folder / "segments")


def _swap(folder: Path) -> None:
    paths = [path for path in _segment_files(folder) if ".keys." in path.name]
    kept = [path.read_bytes() for path in paths]
    for path, content in zip(paths, kept[1:] + kept[:1], strict=True):
        path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_one,
        _flip_everywhere,
        _flip_headers,
        _lose_one_of_each_pair,
        _empty_all,
        _lose_the_folder,
        _swap,
    ],
)
def test_damaged_latents_are_encoded_again_under_the_same_ids(
    folder: Path, loaded: LoadedModel, damage: Callable[[Path], None]
) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        sources, ids = _sources(bank), _ids(bank)
        latents = [read_bank(bank, namespace) for namespace in bank.catalog.namespaces()]
    damage(folder)
    with closing(MemoryBank.open(folder)) as bank:
        faults = verify(bank)
        assert faults
        assert repair(bank, loaded, faults) == []
        _assert_whole(bank, loaded, sources)
        assert _ids(bank) == ids
        assert [read_bank(bank, namespace) for namespace in bank.catalog.namespaces()] == latents
        assert len(_segment_files(folder)) == 2 * len(bank.catalog.segments()), "the damaged files are gone"
    with closing(MemoryBank.open(folder)) as bank:
        _assert_whole(bank, loaded, sources)


def test_only_the_damaged_segment_is_encoded_again(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        number, files = bank.catalog.segments(OTHER)[0]
        before = {path.name: path.read_bytes() for path in _segment_files(folder) if files.name not in path.name}
        wanted = [stored.encoded_text for stored in bank.catalog.documents_in_segment(OTHER, number)]
        encoded = watch_encoding(monkeypatch, loaded)
        _flip_in(folder / "segments" / f"{files.name}.keys.safetensors")
        assert repair(bank, loaded, verify(bank)) == []
        assert len(encoded) == len(wanted)
        assert all(text in found for text, found in zip(wanted, encoded, strict=True))
        assert {name: (folder / "segments" / name).read_bytes() for name in before} == before


def test_an_open_reader_that_was_refused_is_answered_after_the_repair(folder: Path, loaded: LoadedModel) -> None:
    reader = MemoryBank.open(folder)
    _flip_everywhere(folder)
    with closing(MemoryBank.open(folder)) as bank:
        repair(bank, loaded, verify(bank))
        assert {key: bits(value) for key, value in read_latents(reader).items()} == {
            key: bits(value) for key, value in read_latents(bank).items()
        }
    reader.close()


def test_nothing_to_mend_changes_nothing(folder: Path, loaded: LoadedModel) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        files, latents = _segment_files(folder), read_bank(bank)
        assert repair(bank, loaded, verify(bank)) == []
        assert (_segment_files(folder), read_bank(bank)) == (files, latents)


def test_a_bank_that_holds_nothing_any_more_is_mended_too(folder: Path, loaded: LoadedModel) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        for namespace in bank.catalog.namespaces():
            bank.delete([source.document.external_id for source in bank.catalog.sources(namespace)], namespace)
        _flip_everywhere(folder)
        assert repair(bank, loaded, verify(bank)) == []
        assert (bank.catalog.counts().documents, _segment_files(folder)) == (0, [])


def _former(bank: MemoryBank) -> list[tuple[str, str, str]]:
    """Former versions: their names, texts and when they were recorded."""
    names = bank.catalog.external_ids("default")
    found = [(name, one) for name in names for one in bank.catalog.versions("default", name)]
    return [(name, one.document.text, one.recorded_at) for name, one in found if one.superseded_at is not None]


LIVE = "SELECT id FROM sources WHERE external_id = '{}' AND namespace_id = 1 AND deleted_in IS NULL"
LONG_SEGMENT = f"(SELECT segment_id FROM documents WHERE source_id = ({LIVE.format('long')}) LIMIT 1)"
REPAIRABLE = {
    "first part lost": f"DELETE FROM documents WHERE id = (SELECT min(id) FROM documents WHERE source_id = "
    f"({LIVE.format('long')}))",
    "last part lost": f"DELETE FROM documents WHERE id = (SELECT max(id) FROM documents WHERE source_id = "
    f"({LIVE.format('long')}))",
    "all parts lost": f"DELETE FROM documents WHERE source_id = ({LIVE.format('long')})",
    "part taken for deleted": f"UPDATE documents SET deleted_in = 1 WHERE id = (SELECT min(id) FROM documents WHERE "
    f"source_id = ({LIVE.format('long')}))",
    "span": f"UPDATE documents SET span_end = span_end - 5 WHERE id = (SELECT min(id) FROM documents WHERE "
    f"source_id = ({LIVE.format('long')}))",
    "first row": f"UPDATE documents SET first_row = first_row + 1 WHERE source_id = ({LIVE.format('long')})",
    "rows": f"UPDATE documents SET rows = 1 WHERE source_id = ({LIVE.format('long')})",
    "number of documents": f"UPDATE segments SET documents = 99 WHERE id = {LONG_SEGMENT}",
    "checksum": f"UPDATE segments SET keys_sha256 = 'abc' WHERE id = {LONG_SEGMENT}",
    "row of the segment lost": f"DELETE FROM segments WHERE id = {LONG_SEGMENT}",
    "all segments lost": "DELETE FROM segments",
    "segment taken for retired": f"UPDATE segments SET state = 'retired', retired_in = 1 WHERE id = {LONG_SEGMENT}",
    "segment taken for staged": f"UPDATE segments SET state = 'staged' WHERE id = {LONG_SEGMENT}",
    "segment of another namespace": f"UPDATE segments SET namespace_id = 2 WHERE id = {LONG_SEGMENT}",
    "part of another source": f"UPDATE documents SET source_id = ({LIVE.format('described')}) WHERE id = "
    f"(SELECT min(id) FROM documents WHERE source_id = ({LIVE.format('long')}))",
    "words added": "INSERT INTO words_2 (rowid, words) VALUES (77, 'alien')",
    "words lost": "INSERT INTO words_1 (words_1) VALUES ('delete-all')",
    "row of docsize lost": "DELETE FROM words_1_docsize WHERE id = (SELECT max(id) FROM words_1_docsize)",
    "row of data lost": "DELETE FROM words_1_data WHERE id > 10",
}


@pytest.mark.parametrize("what", REPAIRABLE)
def test_what_the_stored_text_can_give_back_is_given_back(folder: Path, loaded: LoadedModel, what: str) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        sources, former = _sources(bank), _former(bank)
        assert former
    _change(folder, REPAIRABLE[what])
    with closing(MemoryBank.open(folder)) as bank:
        faults = verify(bank)
        assert any(fault.repairable for fault in faults)
        assert repair(bank, loaded, faults) == []
        _assert_whole(bank, loaded, sources)
        assert _former(bank) == former, "former versions keep their texts"
        add_documents(bank, loaded, [Document("next", "one more")])
        bank.compact(secure=True)
        assert verify(bank) == []


@pytest.mark.parametrize("what", ["DELETE FROM words_1_config", "DROP TABLE words_1"])
def test_a_full_text_index_that_cannot_even_be_opened_is_made_anew(
    folder: Path, loaded: LoadedModel, what: str
) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        sources = _sources(bank)
    _change(folder, what)
    with closing(MemoryBank.open(folder)) as bank:
        (fault,) = verify(bank)
        assert fault.repairable
        assert repair(bank, loaded, [fault]) == []
        _assert_whole(bank, loaded, sources)


def test_everything_broken_at_once_in_two_namespaces_is_mended(folder: Path, loaded: LoadedModel) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        bank.delete(["described"])
        bank.delete(["theirs"], OTHER)
        sources = _sources(bank)
    _flip_everywhere(folder)
    _change(folder, REPAIRABLE["last part lost"], REPAIRABLE["words added"], REPAIRABLE["words lost"])
    with closing(MemoryBank.open(folder)) as bank:
        faults = verify(bank)
        assert {(fault.kind, fault.namespace) for fault in faults} == {
            ("document", DEFAULT_NAMESPACE),
            *((kind, namespace) for kind in ("segment", "index") for namespace in (DEFAULT_NAMESPACE, OTHER)),
        }
        assert repair(bank, loaded, faults) == []
        _assert_whole(bank, loaded, sources)


# --- what cannot be mended ------------------------------------------------------------------------------------------

UNREPAIRABLE = {
    "text": f"UPDATE texts SET text = upper(text) WHERE source_id = ({LIVE.format('described')})",
    "title": f"UPDATE sources SET title = 'TITLE' WHERE id = ({LIVE.format('described')})",
    "metadata": f"UPDATE sources SET metadata = '[]' WHERE id = ({LIVE.format('described')})",
    "date": f"UPDATE sources SET date = '2026-03-02' WHERE id = ({LIVE.format('described')})",
    "row of texts": f"DELETE FROM texts WHERE source_id = ({LIVE.format('described')})",
    "row of sources": f"DELETE FROM sources WHERE id = ({LIVE.format('described')})",
}


@pytest.mark.parametrize("what", UNREPAIRABLE)
def test_what_cannot_be_mended_stays_reported_and_the_rest_is_mended(
    folder: Path, loaded: LoadedModel, what: str
) -> None:
    _change(folder, UNREPAIRABLE[what])
    _flip_in(next(path for path in _segment_files(folder) if _holds(folder, path, OTHER)))
    with closing(MemoryBank.open(folder)) as bank:
        faults = verify(bank)
        left = repair(bank, loaded, faults)
        assert left
        assert {fault.kind for fault in left} == {"catalog"}
        assert {(f.kind, f.where, f.message) for f in left} <= {(f.kind, f.where, f.message) for f in faults}
        assert {stored.external_id for stored, *_ in read_bank(bank, OTHER)} == {"long", "theirs"}


def _holds(folder: Path, path: Path, namespace: str) -> bool:
    with closing(MemoryBank.open(folder)) as bank:
        return any(files.name in path.name for _, files in bank.catalog.segments(namespace))


@pytest.mark.parametrize("what", UNREPAIRABLE)
def test_latents_beside_a_text_that_cannot_be_mended_are_mended(folder: Path, loaded: LoadedModel, what: str) -> None:
    _change(folder, UNREPAIRABLE[what])
    _flip_everywhere(folder)
    with closing(MemoryBank.open(folder)) as bank:
        left = repair(bank, loaded, verify(bank))
        assert {fault.kind for fault in left} == {"catalog"}
        whole = {stored.external_id: latents for stored, *latents in read_bank(bank)}
        for stored, *latents in read_bank(bank, OTHER):
            assert tuple(latents) == _fresh(loaded, stored)
        assert {"long", "replaced"} <= set(whole)


def test_two_documents_that_changed_sources_are_not_taken_for_whole_with_the_latents_of_each_other(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    add_documents(bank, loaded, [Document("one", "alpha beta"), Document("two", "omega zeta")])
    _change(bank.folder, "UPDATE documents SET source_id = 3 - source_id")
    left = repair(bank, loaded, verify(bank))
    for stored, *latents in read_bank(bank):
        assert left or tuple(latents) == _fresh(loaded, stored), stored.external_id


def test_what_was_deleted_does_not_come_back_by_a_repair(folder: Path, loaded: LoadedModel) -> None:
    _change(
        folder,
        "UPDATE documents SET deleted_in = NULL WHERE source_id = (SELECT id FROM sources WHERE external_id = 'gone')",
    )
    with closing(MemoryBank.open(folder)) as bank:
        repair(bank, loaded, verify(bank))
        assert "gone" not in {stored.external_id for stored in bank.catalog.page(DEFAULT_NAMESPACE, 0, 99)}
        assert bank.catalog.search(DEFAULT_NAMESPACE, "gamma", 5) == []


def test_a_source_taken_for_alive_does_not_come_back_by_a_repair(folder: Path, loaded: LoadedModel) -> None:
    _change(folder, "UPDATE sources SET deleted_in = NULL WHERE external_id = 'gone'")
    with closing(MemoryBank.open(folder)) as bank:
        assert {fault.kind for fault in repair(bank, loaded, verify(bank))} == {"catalog"}
        assert "gone" not in {stored.external_id for stored in bank.catalog.page(DEFAULT_NAMESPACE, 0, 99)}
        assert bank.catalog.search(DEFAULT_NAMESPACE, "gamma", 5) == []


# --- refused --------------------------------------------------------------------------------------------------------


def _everything(folder: Path) -> tuple[list[str], dict[str, bytes]]:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        return list(db.iterdump()), {path.name: path.read_bytes() for path in _segment_files(folder)}


@pytest.mark.parametrize("model", [{"seed": 1}, {"chunk_size": 8}])
@pytest.mark.parametrize("what", ["segment", "document", "index"])
def test_another_model_is_refused_and_changes_nothing(folder: Path, what: str, model: dict[str, Any]) -> None:
    if what == "segment":
        _flip_everywhere(folder)
    _change(folder, {"document": REPAIRABLE["all parts lost"]}.get(what, REPAIRABLE["words added"]))
    with closing(MemoryBank.open(folder)) as bank:
        faults = verify(bank)
        assert what in {fault.kind for fault in faults}
        before = _everything(folder)
        with pytest.raises(BankMismatch, match="encoded by another model"):
            repair(bank, tiny_loaded(max_document_tokens=64, **model), faults)
        assert _everything(folder) == before
        assert verify(bank) == faults


def test_a_repair_waits_for_no_writer(folder: Path, loaded: LoadedModel) -> None:
    _flip_everywhere(folder)
    with closing(MemoryBank.open(folder)) as bank:
        faults = verify(bank)
        with writer_lock(folder), pytest.raises(BankBusy, match="pid"):
            repair(bank, loaded, faults)
        assert verify(bank) == faults


@pytest.mark.parametrize("after", range(1, 5))
def test_a_repair_that_failed_half_way_is_done_by_the_next(
    folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        sources, ids = _sources(bank), _ids(bank)
        _flip_everywhere(folder)
        faults, calls, real = verify(bank), [0], loaded.model.encode

        def failing(documents: Any) -> Any:
            calls[0] += 1
            if calls[0] > after:
                raise torch.OutOfMemoryError
            return real(documents)

        with monkeypatch.context() as patched:
            patched.setattr(loaded.model, "encode", failing)
            with pytest.raises(MemspanError, match="no room for a document"):
                repair(bank, loaded, faults)
        assert {fault.kind for fault in verify(bank)} == {"segment"}
        assert repair(bank, loaded, verify(bank)) == []
        _assert_whole(bank, loaded, sources)
        assert _ids(bank) == ids


def test_faults_that_are_mended_already_are_no_trouble(folder: Path, loaded: LoadedModel) -> None:
    with closing(MemoryBank.open(folder)) as bank:
        sources = _sources(bank)
        _flip_everywhere(folder)
        faults: list[Fault] = verify(bank)
        assert repair(bank, loaded, faults) == []
        assert repair(bank, loaded, faults) == []
        _assert_whole(bank, loaded, sources)
