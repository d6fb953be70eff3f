"""Texts first: what is found, told and kept before documents are encoded, and encoding behind."""

from __future__ import annotations

import dataclasses
import io
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from helpers import read_bank, read_latents, tiny_loaded, watch_encoding

from memspan.bank import add, behind, edits
from memspan.bank.add import add_documents, encode_pending, import_documents
from memspan.bank.archive import export_bank, import_bank
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.lines import export_documents
from memspan.bank.locks import encoder_lock
from memspan.bank.reencode import reencode
from memspan.bank.repair import repair
from memspan.bank.scope import Scope
from memspan.bank.stored import num_pending
from memspan.bank.texts import TextBank
from memspan.bank.verify import verify
from memspan.errors import BankBusy, BankError, EmptyBank, FilterError, NotEncoded
from memspan.generate.lexical import search_words
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.types import AddReport, Document, EncodedDocuments

ANIMALS = {"otter": "Rome", "heron": "Oslo", "lynx": "Quito", "newt": "Bern"}
CORPUS = [Document(name, f"The {name} lives in {city}.", metadata={"city": city}) for name, city in ANIMALS.items()]
LONG = Document("long", " ".join(f"Sentence {number} is about the bittern." for number in range(40)), "Bittern")


@pytest.fixture
def encoded(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text, in its template, of every document that the model encodes from here on."""
    return watch_encoding(monkeypatch, loaded)


def _later(bank: MemoryBank, loaded: LoadedModel, documents: Sequence[Document] = CORPUS, **options: Any) -> AddReport:
    return add_documents(bank, loaded, documents, later=True, **options)


def _is_whole(bank: MemoryBank, namespace: str = "default") -> None:
    assert verify(bank) == [] and num_pending(bank.catalog, namespace) == 0
    assert all(keys for _, keys, _ in read_bank(bank, namespace))


# --- found at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [CORPUS, [LONG], [*CORPUS, LONG]], ids=["short", "long", "both"])
def test_texts_are_in_the_bank_without_a_forward_and_the_report_says_what_is_pending(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str], documents: list[Document]
) -> None:
    report = _later(bank, loaded, documents)
    assert encoded == [] and (report.added, report.documents, report.tokens) == (len(documents), 0, 0)
    counts = bank.catalog.counts()
    assert report.pending == counts.pending == counts.documents >= len(documents)
    assert (counts.sources, counts.tokens, counts.chunks, counts.segments) == (len(documents), 0, 0, 0)
    assert [stored.document for stored in bank.catalog.sources("default")] == documents
    assert verify(bank) == []


@pytest.mark.parametrize("selector", ["lexical", "hybrid"])
def test_a_question_is_answered_from_texts_that_are_not_encoded(
    memory: Memory, bank: MemoryBank, loaded: LoadedModel, selector: str
) -> None:
    _later(bank, loaded)
    assert memory.search("Where does the lynx live?", selector=selector)[0].external_id == "lynx"
    answer = memory.ask("Where does the lynx live?", selector=selector, max_documents=2)
    assert answer.evidence[0].external_id == "lynx" and answer.pending == 4
    encode_pending(bank, loaded)
    assert memory.ask("Where does the lynx live?", selector=selector).pending == 0


@pytest.mark.parametrize("selector", ["lexical", "hybrid"])
def test_both_kinds_are_found_together(memory: Memory, bank: MemoryBank, loaded: LoadedModel, selector: str) -> None:
    add_documents(bank, loaded, CORPUS[:2])
    _later(bank, loaded, CORPUS[2:])
    found = {item.external_id for item in memory.search("the otter heron lynx newt", selector=selector)}
    assert found >= set(ANIMALS)
    for name in ANIMALS:
        assert memory.ask(f"Where does the {name} live?", selector=selector).evidence[0].external_id == name


@pytest.mark.parametrize("alike", [3, 12, 31])
@pytest.mark.parametrize("limit", [1, 3])
def test_a_new_note_is_found_first_beside_encoded_ones_of_nearly_its_words(
    memory: Memory, bank: MemoryBank, loaded: LoadedModel, alike: int, limit: int
) -> None:
    others = [Document(f"o{n}", f"{name} lives by water {n}.") for n, name in enumerate([*ANIMALS] * 40)]
    said = "The purple gate behind the old harbor warehouse opens with code {0}."
    add_documents(bank, loaded, [*others, *(Document(f"n{n}", said.format(n)) for n in range(alike))])
    _later(bank, loaded, [Document("new", said.format(alike))])
    question = f"Does the purple gate behind the old harbor warehouse open with code {alike}?"
    found = memory.search(question, selector="hybrid", limit=limit)
    assert found[0].external_id == "new"


def test_the_router_sees_what_is_encoded_and_says_so_where_nothing_is(
    memory: Memory, bank: MemoryBank, loaded: LoadedModel
) -> None:
    _later(bank, loaded)
    for ask in (memory.search, memory.ask):
        with pytest.raises(NotEncoded, match="memspan encode"):
            ask("Where does the lynx live?", selector="router")
    add_documents(bank, loaded, [Document("eel", "The eel lives in Lima.")])
    assert {item.external_id for item in memory.search("lynx", selector="router")} == {"eel"}
    answer = memory.ask("Where does the lynx live?", selector="router")
    assert answer.pending == 4 and {item.external_id for item in answer.evidence} <= {"eel"}
    with pytest.raises(NotEncoded):
        memory.ask("Where?", selector="router", where={"city": "Rome"})


def test_rounds_and_answers_from_no_text_go_on_too(memory: Memory, bank: MemoryBank, loaded: LoadedModel) -> None:
    _later(bank, loaded, [*CORPUS, LONG])
    answer = memory.ask("Where do the otter and the heron live?", selector="hybrid", rounds=3, documents_per_round=1)
    assert len(answer.rounds) > 1 and {item.external_id for item in answer.evidence} >= {"otter"}
    assert memory.ask("Where?", selector="hybrid", text_only=True).pending
    batch = memory.ask_batch(["Where is the otter?", "Where is the newt?"], selector="hybrid")
    assert [one.evidence[0].external_id for one in batch] == ["otter", "newt"]


def test_a_filter_holds_for_what_is_pending(memory: Memory, bank: MemoryBank, loaded: LoadedModel) -> None:
    add_documents(bank, loaded, CORPUS[:1])
    _later(bank, loaded, CORPUS[1:])
    for selector in ("lexical", "hybrid"):
        found = memory.search("the otter heron lynx newt", selector=selector, where={"city": {"in": ["Oslo", "Rome"]}})
        assert {item.external_id for item in found} == {"otter", "heron"}
    with pytest.raises(FilterError, match="wings"):
        memory.search("otter", selector="lexical", where={"wings": 2})
    assert memory.search("otter", selector="hybrid", where={"city": "Nowhere"}) == []
    with pytest.raises(EmptyBank):
        memory.ask("otter", where={"city": "Nowhere"})


def test_words_alone_find_it_without_a_model(bank: MemoryBank, loaded: LoadedModel) -> None:
    _later(bank, loaded, [*CORPUS, LONG])
    with closing(TextBank.open(bank.folder)) as texts:
        assert search_words(texts, "Where does the newt live?")[0].external_id == "newt"
        page = texts.catalog.page("default", 0, 100)
        assert [stored.id for stored in page] == sorted(stored.id for stored in page)
        assert {(stored.tokens, stored.chunks) for stored in page} == {(0, 0)}
        assert texts.get(page[-1].id).external_id == "long"


def test_pages_are_in_order_where_both_kinds_are_mixed(bank: MemoryBank, loaded: LoadedModel) -> None:
    for number in range(6):
        documents = [Document(f"{number} {n}", f"text {number} {n}") for n in range(3)]
        add_documents(bank, loaded, documents, later=bool(number % 2))
    whole = [stored.id for stored in bank.catalog.page("default", 0, 100)]
    assert whole == list(range(1, 19))
    pages: list[int] = []
    while page := bank.catalog.page("default", pages[-1] if pages else 0, 5):
        pages += [stored.id for stored in page]
    assert pages == whole and bank.catalog.ids_in_scope("default", Scope()).tolist() == whole
    with bank.snapshot() as snapshot:
        assert snapshot.ids() == whole and snapshot.num_pending == 9
        assert [stored.id for stored in snapshot.documents([18, 1, 5, 4, 99])] == [18, 1, 5, 4]


def test_all_documents_are_summed_up(memory: Memory, bank: MemoryBank, loaded: LoadedModel) -> None:
    add_documents(bank, loaded, CORPUS[:1])
    _later(bank, loaded, CORPUS[1:])
    assert memory.summarize().num_documents == 4


# --- encoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [30, 2048])
@pytest.mark.parametrize("commit_seconds", [0, 1e9])
def test_what_is_encoded_behind_is_what_would_have_been_at_once(
    tmp_path: Path, bank: MemoryBank, loaded: LoadedModel, commit_seconds: float, batch_tokens: int
) -> None:
    documents = [*CORPUS, LONG]
    at_once = MemoryBank.create(tmp_path / "other", manifest_of(loaded))
    options: dict[str, Any] = {"commit_seconds": commit_seconds, "batch_tokens": batch_tokens}
    add_documents(at_once, loaded, documents, **options)
    _later(bank, loaded, documents)
    report = encode_pending(bank, loaded, **options)
    _is_whole(bank)
    assert report.documents == bank.catalog.counts().documents and report.pending == 0

    def content(of: MemoryBank) -> list[tuple[Any, ...]]:
        return [(dataclasses.replace(stored, date=""), keys, values) for stored, keys, values in read_bank(of)]

    assert content(bank) == content(at_once)


def test_encoding_what_is_encoded_does_nothing(bank: MemoryBank, loaded: LoadedModel, encoded: list[str]) -> None:
    assert encode_pending(bank, loaded).documents == 0
    add_documents(bank, loaded, CORPUS)
    encoded.clear()
    assert encode_pending(bank, loaded) == dataclasses.replace(AddReport(), seconds=0.0) and encoded == []


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_stopped_it_continues(bank: MemoryBank, loaded: LoadedModel, encoded: list[str], after: int) -> None:
    _later(bank, loaded, [*CORPUS, LONG])
    calls = itertools.count(1)
    first = encode_pending(bank, loaded, batch_tokens=1, should_stop=lambda: next(calls) == after)
    assert first.interrupted and first.documents == after == len(encoded)
    assert verify(bank) == [] and first.pending == num_pending(bank.catalog)
    second = encode_pending(bank, loaded)
    assert second.documents == first.pending and not second.interrupted
    assert len(encoded) == bank.catalog.counts().documents, "nothing was encoded twice"
    _is_whole(bank)


def test_a_stop_while_texts_are_read_keeps_all_that_were_read(bank: MemoryBank, loaded: LoadedModel) -> None:
    read: list[str] = []

    def stream() -> Iterator[Document]:
        for document in CORPUS:
            read.append(document.external_id)
            yield document

    report = add_documents(bank, loaded, stream(), should_stop=lambda: len(read) == 3)
    assert report.interrupted and (report.added, report.documents, report.pending) == (3, 0, 3)
    assert read == list(ANIMALS)[:3]
    again = add_documents(bank, loaded, CORPUS)
    assert (again.added, again.unchanged, again.documents) == (1, 3, 4), "the same again continues"
    _is_whole(bank)


def test_an_add_encodes_what_it_was_given_and_leaves_the_rest(bank: MemoryBank, loaded: LoadedModel) -> None:
    _later(bank, loaded)
    report = add_documents(bank, loaded, [Document("eel", "The eel lives in Lima.")])
    assert (report.documents, report.pending) == (1, 4)
    report = add_documents(bank, loaded, [CORPUS[1], Document("gnu", "The gnu lives in Bonn.")])
    assert (report.documents, report.unchanged, report.pending) == (2, 1, 3)
    assert encode_pending(bank, loaded).documents == 3


def test_namespaces_are_encoded_together_or_by_name(bank: MemoryBank, loaded: LoadedModel) -> None:
    for name in ("a", "b", "c"):
        _later(bank, loaded, namespace=name)
    report = encode_pending(bank, loaded, namespaces=["b"])
    assert (report.documents, report.pending) == (4, 0)
    assert [num_pending(bank.catalog, name) for name in "abc"] == [4, 0, 4]
    assert encode_pending(bank, loaded, namespaces=["nobody's"]).documents == 0
    assert encode_pending(bank, loaded).documents == 8
    for name in "abc":
        _is_whole(bank, name)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failing_model_loses_no_text_and_keeps_what_was_encoded(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    real, calls = loaded.model.encode, itertools.count()

    def failing(documents: Sequence[Sequence[int]]) -> EncodedDocuments:
        if next(calls) == 2:
            raise error
        return real(documents)

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(loaded.model, "encode", failing)
        add_documents(bank, loaded, CORPUS, batch_tokens=1)
    assert bank.catalog.counts().sources == 4 and num_pending(bank.catalog) == 2 and verify(bank) == []
    encode_pending(bank, loaded)
    _is_whole(bank)


@pytest.mark.parametrize("where", ["place_pending", "_insert_segments"])
def test_a_commit_that_fails_leaves_it_pending(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _later(bank, loaded)

    def full(*_: Any, **__: Any) -> None:
        raise BankError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(BankError, match="full"):
        patch.setattr(edits, where, full)
        encode_pending(bank, loaded)
    assert num_pending(bank.catalog) == 4 and verify(bank) == []
    encode_pending(bank, loaded)
    _is_whole(bank)
    names = {files.name for _, files in bank.catalog.segments()}
    assert {path.name.partition(".")[0] for path in (bank.folder / "segments").iterdir()} == names


def test_progress_counts_texts_then_documents_down(bank: MemoryBank, loaded: LoadedModel) -> None:
    told: list[AddReport] = []
    add_documents(bank, loaded, CORPUS, progress=told.append, batch_tokens=1)
    assert [(one.added, one.documents, one.pending) for one in told] == [
        (4, 0, 0),
        *((4, done, 4 - done) for done in (1, 2, 3, 4)),
    ]
    assert [one.seconds for one in told] == sorted(one.seconds for one in told)


def test_memory_is_bounded_by_commits(bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "MAX_SEGMENT_BYTES", 20 * bank.manifest.row_bytes)
    documents = [Document(str(number), f"text number {number} of some words") for number in range(40)]
    segments: list[int] = []
    folder = bank.folder / "segments"
    options: dict[str, Any] = {"progress": lambda report: segments.append(len(list(folder.iterdir())))}
    add_documents(bank, loaded, documents, batch_tokens=60, commit_seconds=1e9, **options)
    assert segments[1] == 0 < segments[len(segments) // 2], "written on the way, not kept to the end"
    _is_whole(bank)


# --- changes meanwhile ----------------------------------------------------------------------------------------------

_Change = Callable[[Memory], object]
CHANGES: dict[str, tuple[_Change, set[str]]] = {
    "deleted": (lambda memory: memory.delete("lynx"), {"otter", "heron", "newt"}),
    "deleted by its number": (lambda memory: memory.delete([3]), {"otter", "heron", "newt"}),
    "replaced": (lambda memory: memory.add([Document("lynx", "It moved.")], later=True), set(ANIMALS)),
    "relabelled": (lambda memory: memory.update("lynx", metadata={"n": 1}), set(ANIMALS)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_deleted_or_replaced_before_its_turn_is_never_encoded(
    memory: Memory, bank: MemoryBank, loaded: LoadedModel, encoded: list[str], change: str
) -> None:
    _later(bank, loaded)
    memory.later = True
    do, left = CHANGES[change]
    do(memory)
    assert verify(bank) == []
    found = memory.search("Quito", selector="lexical")
    assert bool(found) == (change == "relabelled")
    encode_pending(bank, loaded)
    assert any("Quito" in text for text in encoded) == (change == "relabelled")
    assert {document.external_id for document in memory} == left
    _is_whole(bank)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", [1, 2])
def test_others_change_the_bank_while_it_is_encoded(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str], change: str, at: int
) -> None:
    """Also what is encoded already and not yet committed."""
    _later(bank, loaded, [CORPUS[2], *CORPUS[:2], CORPUS[3]])
    other = Memory(MemoryBank.open(bank.folder), loaded)
    other.later = True
    batches = itertools.count(1)

    def progress(report: AddReport) -> None:
        if next(batches) == at:
            if change == "deleted by its number":
                other.delete([1])
            else:
                CHANGES[change][0](other)

    encode_pending(bank, loaded, batch_tokens=1, commit_seconds=1e9, progress=progress)
    other.close()
    assert verify(bank) == []
    encode_pending(bank, loaded)
    _is_whole(bank)
    assert {stored.external_id for stored in bank.catalog.page("default", 0, 9)} == CHANGES[change][1]


def test_what_is_added_meanwhile_is_encoded_in_the_same_run(bank: MemoryBank, loaded: LoadedModel) -> None:
    _later(bank, loaded)
    other = MemoryBank.open(bank.folder)
    calls = itertools.count()

    def progress(report: AddReport) -> None:
        if next(calls) == 0:
            _later(other, loaded, [Document("eel", "The eel lives in Lima.")])

    assert encode_pending(bank, loaded, batch_tokens=1, progress=progress).documents == 5
    other.close()
    _is_whole(bank)


def test_ids_of_documents_that_were_never_encoded_are_not_given_again(
    memory: Memory, bank: MemoryBank, loaded: LoadedModel
) -> None:
    _later(bank, loaded)
    memory.delete(list(ANIMALS))
    assert bank.catalog.next_document_id() == 5
    memory.add(["a new text"])
    assert [stored.id for stored in bank.catalog.page("default", 0, 9)] == [5]


def test_one_process_encodes_at_a_time(bank: MemoryBank, loaded: LoadedModel) -> None:
    with encoder_lock(bank.folder) as is_ours:
        assert is_ours
        report = add_documents(bank, loaded, CORPUS)
        assert (report.added, report.documents, report.pending) == (4, 0, 4), "left to the other"
        with pytest.raises(BankBusy, match="another process encodes"):
            encode_pending(bank, loaded)
    assert encode_pending(bank, loaded).documents == 4


def test_a_commit_waits_for_another_writer_and_gives_up_after_a_while(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _later(bank, loaded)
    other = MemoryBank.open(bank.folder)
    monkeypatch.setattr(behind, "_PATIENCE_SECONDS", 0.2)
    with other.locked(), pytest.raises(BankBusy, match="another writer"):
        encode_pending(bank, loaded)
    monkeypatch.setattr(behind, "_PATIENCE_SECONDS", 60)
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        with other.locked():
            held.set()
            released.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    options: dict[str, Any] = {"progress": lambda report: released.set()}
    assert encode_pending(bank, loaded, **options).documents == 4
    holder.join()
    other.close()


# --- what else is done to a bank ------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_compacting_keeps_what_is_pending_and_erases_what_was_deleted_of_it(
    memory: Memory, bank: MemoryBank, loaded: LoadedModel, secure: bool
) -> None:
    _later(bank, loaded, [*CORPUS, Document("secret", "xyzzyplugh")])
    memory.delete("secret")
    bank.compact(secure=secure)
    assert num_pending(bank.catalog) == 4 and verify(bank) == []
    assert memory.search("lynx", selector="lexical")[0].external_id == "lynx"
    if secure:
        assert not any(b"xyzzyplugh" in path.read_bytes() for path in bank.folder.rglob("*") if path.is_file())
    encode_pending(bank, loaded)
    _is_whole(bank)


def test_an_exported_bank_has_what_is_pending(tmp_path: Path, bank: MemoryBank, loaded: LoadedModel) -> None:
    add_documents(bank, loaded, CORPUS[:2])
    _later(bank, loaded, CORPUS[2:])
    export_bank(bank, tmp_path / "whole")
    with closing(import_bank(tmp_path / "whole", tmp_path / "copy")) as copy:
        assert num_pending(copy.catalog) == 2 and verify(copy) == []
        encode_pending(copy, loaded)
        _is_whole(copy)
        assert {document.external_id for document in Memory(copy, loaded)} == set(ANIMALS)


def test_exported_lines_have_it_and_an_import_encodes_all_namespaces(
    tmp_path: Path, bank: MemoryBank, loaded: LoadedModel
) -> None:
    _later(bank, loaded)
    add_documents(bank, loaded, [LONG], namespace="other")
    stream = io.StringIO()
    assert export_documents(bank, stream) == 5
    with closing(MemoryBank.create(tmp_path / "copy", manifest_of(loaded))) as copy:
        stream.seek(0)
        report = import_documents(copy, loaded, stream)
        assert (report.added, report.pending) == (5, 0)
        for name in ("default", "other"):
            _is_whole(copy, name)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"chunk_size": 8}, {"max_document_tokens": 32}])
def test_encoding_a_bank_anew_encodes_what_is_pending_too(
    bank: MemoryBank, loaded: LoadedModel, changes: dict[str, Any]
) -> None:
    add_documents(bank, loaded, CORPUS[:2])
    _later(bank, loaded, [*CORPUS[2:], LONG])
    other = tiny_loaded(**{"max_document_tokens": 64} | changes)
    report = reencode(bank, other)
    assert report.updated == 5 and report.pending == 0
    with closing(MemoryBank.open(bank.folder)) as opened:
        _is_whole(opened)
        assert Memory(opened, other).search("Where does the lynx live?", selector="lexical")[0].external_id == "lynx"
        assert read_latents(opened).keys() == {stored.id for stored in opened.catalog.page("default", 0, 1000)}


FAULTS = {
    "a part is missing": "DELETE FROM pending WHERE document_id = (SELECT max(document_id) FROM pending)",
    "a span is another": "UPDATE pending SET span_end = span_end - 1 WHERE document_id = 5",
    "it is another's": "UPDATE pending SET source_id = 1 WHERE document_id = 6",
    "its number is another": "UPDATE pending SET document_id = 1000 WHERE document_id = 5",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_of_what_is_pending_is_found_and_mended(bank: MemoryBank, loaded: LoadedModel, fault: str) -> None:
    _later(bank, loaded, [*CORPUS, LONG])
    with bank.catalog.transaction():
        bank.catalog.execute(FAULTS[fault])
    faults = verify(bank)
    assert faults and all(found.repairable for found in faults)
    assert repair(bank, loaded, faults) == []
    encode_pending(bank, loaded)
    _is_whole(bank)
    assert {stored.document.external_id for stored in bank.catalog.sources("default")} == {*ANIMALS, "long"}


def test_a_snapshot_does_not_change_while_documents_are_encoded(bank: MemoryBank, loaded: LoadedModel) -> None:
    _later(bank, loaded)
    reader = MemoryBank.open(bank.folder)
    with reader.snapshot() as before:
        encode_pending(bank, loaded)
        assert (before.num_pending, before.selectable_mask().numel(), before.num_documents) == (4, 0, 4)
        assert before.search("lynx", 5) and len(before.documents(before.ids())) == 4
    with reader.snapshot() as after:
        assert (after.num_pending, int(after.selectable_mask().sum()), after.num_documents) == (0, 4, 4)
    reader.close()


def test_any_order_of_changes_gives_the_same_bank(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding at once and later, deleting, replacing, encoding in part: what is held is what a dictionary would."""
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", 2)
    for seed in range(6):
        generator = random.Random(seed)
        with closing(MemoryBank.create(tmp_path / str(seed), manifest_of(loaded))) as bank:
            memory, held = Memory(bank, loaded), dict[str, str]()
            for step in range(15):
                name = generator.choice("abcd")
                match generator.choice(["add", "later", "delete", "some", "compact"]):
                    case "add" | "later" as how:
                        held[name] = f"text {step} " * generator.choice([1, 30])
                        memory.add([Document(name, held[name])], later=how == "later")
                    case "delete" if name in held:
                        memory.delete(name)
                        del held[name]
                    case "some":
                        encode_pending(bank, loaded, batch_tokens=1, should_stop=lambda: True)
                    case "compact":
                        bank.compact()
                assert verify(bank) == []
                assert {document.external_id: document.text for document in memory} == held
            encode_pending(bank, loaded)
            _is_whole(bank)
