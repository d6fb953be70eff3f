from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_manifest

from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import Catalog, NewDocument, NewSource
from memspan.bank.manifest import FORMAT_VERSION, Manifest
from memspan.bank.segment import Placed, SegmentFiles
from memspan.errors import BankError, BankMismatch
from memspan.types import Document, Span

# Forked: the interpreter's own files may be closed to other users.
FORK = multiprocessing.get_context("fork")
TABLES = ("manifest", "segments", "sources", "documents", "word_index_data", "word_index_idx", "word_index_docsize")


@pytest.fixture
def catalog(tmp_path: Path) -> Iterable[Catalog]:
    catalog = Catalog(tmp_path / "catalog.sqlite", create=True)
    yield catalog
    catalog.close()


def _commit(catalog: Catalog, *documents: Document, parts: int = 1, first_id: int | None = None) -> list[int]:
    """Commit sources in one transaction, each in `parts` documents of two rows, all in one new segment."""
    next_id = first_id or catalog.next_document_id()
    name = f"segment{next_id}"
    sources, places = [], []
    for document in documents:
        cuts = [len(document.text) * part // parts for part in range(parts + 1)]
        new = []
        for start, end in itertools.pairwise(cuts):
            new.append(NewDocument(next_id, Span(start, end), tokens=end - start))
            places.append(Placed(next_id, name, 2 * len(places), 2))
            next_id += 1
        sources.append(NewSource(document, tuple(new)))
    catalog.commit(sources, [SegmentFiles(name, 2 * len(places), 10, "a", 20, "b")], places)
    return [place.document_id for place in places]


def _documents(texts: dict[str, str]) -> list[Document]:
    return [Document(external_id, text) for external_id, text in texts.items()]


def _found(catalog: Catalog, question: str, limit: int = 100) -> list[int]:
    return [document_id for document_id, _ in catalog.search(question, limit)]


def _dump(path: Path) -> dict[str, list[Any]]:
    """Every row of the file, read by a connection of its own."""
    db = sqlite3.connect(path)
    rows = {table: list(db.execute(f"SELECT * FROM {table}")) for table in TABLES}
    db.close()
    return rows


# --- documents ------------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were_given(catalog: Catalog) -> None:
    text = "e\u0301 \U0001f600 über\r\n\tÅ中文 'quoted' \"twice\" %s ?"
    given = [
        Document("a/ä.txt", text, "Títle", {"page": 3, "tags": ["x", None, True], "deep": {"é": 1.5}}),
        Document("b", "plain"),
    ]
    _commit(catalog, *given, parts=3)
    for document in given:
        parts = [found for found in catalog.page(0, 100) if found.external_id == document.external_id]
        assert "".join(found.text for found in parts) == document.text
        for found in parts:
            assert found.text == document.text[found.span.start : found.span.end]
            assert (found.title, found.metadata) == (document.title, dict(document.metadata))
            assert (found.tokens, found.chunks) == (found.span.length, 2)


def test_documents_are_returned_in_the_order_asked_for_and_unknown_ids_left_out(catalog: Catalog) -> None:
    ids = _commit(catalog, *_documents({name: name for name in "abcde"}))
    asked = [ids[3], 99, ids[0], -1, ids[4]]
    assert [found.id for found in catalog.documents(asked)] == [ids[3], ids[0], ids[4]]
    assert catalog.documents([]) == []


def test_pages_walk_over_every_live_document_once(catalog: Catalog) -> None:
    ids = _commit(catalog, *_documents({str(number): "text" for number in range(11)}))
    _commit(catalog, Document("4", "other"))
    ids = [document_id for document_id in ids if document_id != ids[4]] + [ids[-1] + 1]
    walked: list[int] = []
    while page := catalog.page(walked[-1] if walked else 0, 3):
        assert len(page) <= 3
        walked += [found.id for found in page]
    assert walked == ids


def test_ids_are_never_given_twice(catalog: Catalog) -> None:
    assert catalog.next_document_id() == 1
    seen: list[int] = []
    for round_ in range(5):
        # Every round replaces everything, so that no id is in use that was.
        ids = _commit(catalog, *_documents({"a": f"text {round_}", "b": f"other {round_}"}), parts=round_ + 1)
        assert not set(ids) & set(seen)
        seen += ids
        assert catalog.next_document_id() > max(seen)
        assert [found.id for found in catalog.page(0, 100)] == ids
    path = catalog.path
    catalog.close()
    assert Catalog(path).next_document_id() == max(seen) + 1


def test_ids_that_were_skipped_stay_skipped(catalog: Catalog) -> None:
    _commit(catalog, Document("a", "text"), first_id=10)
    _commit(catalog, Document("b", "text"), first_id=7)  # reserved earlier, committed later
    assert catalog.next_document_id() == 11


def test_an_id_cannot_be_committed_twice(catalog: Catalog) -> None:
    _commit(catalog, Document("a", "text"))
    before = _dump(catalog.path)
    with pytest.raises(BankError, match="UNIQUE"):
        _commit(catalog, Document("b", "text"), first_id=1)
    assert _dump(catalog.path) == before


def test_places_stand_in_order_of_segments_and_rows(catalog: Catalog) -> None:
    files = [SegmentFiles(name, 10, 1, "a", 2, "b") for name in ("zz", "aa")]
    places = [Placed(1, "aa", 6, 4), Placed(2, "zz", 3, 7), Placed(3, "aa", 0, 6), Placed(4, "zz", 0, 3)]
    sources = [
        NewSource(Document(str(place.document_id), "text"), (NewDocument(place.document_id, Span(0, 4), 4),))
        for place in places
    ]
    catalog.commit(sources, files, places)
    assert list(catalog.places()) == [("zz", 4, 0, 3), ("zz", 2, 3, 7), ("aa", 3, 0, 6), ("aa", 1, 6, 4)]
    assert catalog.segments() == files


def test_counts_are_those_of_what_is_live(catalog: Catalog) -> None:
    _commit(catalog, *_documents({"a": "six letters", "b": "four"}), parts=2)
    _commit(catalog, Document("a", "abc"))
    counts = catalog.counts()
    assert (counts.sources, counts.documents, counts.tokens, counts.chunks) == (2, 3, 7, 6)
    assert (counts.segments, counts.segment_bytes) == (2, 60), "files stay until they are compacted"


def test_content_hashes_are_those_of_live_sources(catalog: Catalog) -> None:
    documents = _documents({f"id{number}": f"text {number}" for number in range(20)})
    _commit(catalog, *documents)
    changed = Document("id7", "text 7", metadata={"new": True})
    _commit(catalog, changed)
    expected = {document.external_id: document.content_hash for document in [*documents, changed]}
    assert {external_id: catalog.content_hash(external_id) for external_id in expected} == expected
    assert catalog.content_hash("unknown") is None


def test_the_version_changes_with_commits_of_any_connection_and_with_nothing_else(catalog: Catalog) -> None:
    other = Catalog(catalog.path)
    versions = [(catalog.version(), other.version())]
    for writer in (catalog, other, catalog):
        _commit(writer, Document("a", f"text {len(versions)}"))
        versions.append((catalog.version(), other.version()))
    for reader in (0, 1):
        assert len({version[reader] for version in versions}) == 4
    for reader in (catalog, other):
        reader.search("text", 5), reader.page(0, 9), reader.counts(), reader.segments(), list(reader.places())
    assert (catalog.version(), other.version()) == versions[-1]
    other.close()


# --- updates --------------------------------------------------------------------------------------------------------


def test_an_update_hides_every_part_of_the_old_source(catalog: Catalog) -> None:
    old = _commit(catalog, Document("a", "zebra zebra zebra zebra", "Stripes"), parts=3)
    (bystander,) = _commit(catalog, Document("b", "zebra crossing"))
    new = _commit(catalog, Document("a", "giraffe giraffe", "Spots"), parts=2)
    assert _found(catalog, "zebra") == [bystander]
    assert _found(catalog, "stripes") == []
    assert _found(catalog, "giraffe spots") == new
    assert [place[1] for place in catalog.places()] == [bystander, *new]
    assert [found.id for found in catalog.page(0, 100)] == [bystander, *new]
    assert [found.id for found in catalog.documents([*old, bystander, *new])] == [bystander, *new]


def test_a_source_replaced_within_one_commit_is_there_once_as_it_was_last(catalog: Catalog) -> None:
    first, second = _commit(catalog, Document("a", "zebra"), Document("a", "giraffe"))
    assert (_found(catalog, "zebra"), _found(catalog, "giraffe")) == ([], [second])
    assert [found.id for found in catalog.documents([first, second])] == [second]
    assert catalog.counts().sources == 1


def test_searching_after_updates_is_searching_a_bank_that_never_held_the_old_texts(tmp_path: Path) -> None:
    # The statistics behind the scores (documents, lengths, frequencies) must forget the old texts as well.
    generator = random.Random(0)
    words = [f"w{number}" for number in range(30)] + ["日本語", "don't", "Ümläut", "dogs"]

    def text() -> str:
        return " ".join(generator.choices(words, k=generator.randint(1, 25)))

    updated, fresh = (Catalog(tmp_path / name, create=True) for name in ("updated", "fresh"))
    for round_ in range(4):
        documents = [Document(f"d{number}", text(), text()) for number in range(round_, 40, round_ + 1)]
        _commit(updated, *documents, parts=1 + round_ % 3)
    for found in updated.page(0, 1000):
        _commit(fresh, Document(f"{found.id}", found.text, found.title), first_id=found.id)
    for word in words:
        for question in (word, f"{word} {generator.choice(words)}"):
            assert updated.search(question, 100) == fresh.search(question, 100), question
    assert updated.search("w0", 100)


# --- transactions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database or disk is full"), MemoryError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize("step", ["_insert_segment", "_insert_source", "_insert_document", "_retire"])
def test_a_commit_that_fails_leaves_nothing(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    _commit(catalog, *_documents({"a": "zebra one", "b": "zebra two"}))
    before, version = _dump(catalog.path), catalog.next_document_id()
    real, calls = getattr(Catalog, step), []

    def fail_late(self: Catalog, *arguments: Any) -> Any:
        result = real(self, *arguments)
        calls.append(step)
        if len(calls) == (1 if step == "_insert_segment" else 3):
            raise error
        return result

    changes = _documents({"a": "giraffe one", "c": "giraffe three", "b": "giraffe two"})
    with monkeypatch.context() as patched:
        patched.setattr(Catalog, step, fail_late)
        with pytest.raises(BankError if isinstance(error, sqlite3.Error) else type(error)) as raised:
            _commit(catalog, *changes)
    if isinstance(error, sqlite3.Error):
        assert str(catalog.path) in str(raised.value)
        assert "disk is full" in str(raised.value)
    assert _dump(catalog.path) == before
    assert catalog.next_document_id() == version
    assert (_found(catalog, "zebra"), _found(catalog, "giraffe")) == ([1, 2], [])
    ids = _commit(catalog, *changes)  # the same connection goes on
    assert (_found(catalog, "zebra"), _found(catalog, "giraffe")) == ([], ids)


def test_a_locked_catalog_is_a_named_error(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    _commit(catalog, Document("a", "zebra"))
    other = sqlite3.connect(catalog.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    catalog._db.execute("PRAGMA busy_timeout = 0")
    with pytest.raises(BankError, match="locked"):
        _commit(catalog, Document("b", "zebra"))
    assert _found(catalog, "zebra") == [1], "readers go on"
    other.execute("ROLLBACK")
    other.close()
    assert _commit(catalog, Document("b", "zebra")) == [2]


# --- search ---------------------------------------------------------------------------------------------------------


def test_scores_are_bm25_sorted_and_limited(catalog: Catalog) -> None:
    generator = random.Random(1)
    words = [f"w{number}" for number in range(12)]
    texts = {str(n): " ".join(generator.choices(words, k=generator.randint(1, 30))) for n in range(1, 31)}
    _commit(catalog, *_documents(texts))
    split = {int(name): text.split() for name, text in texts.items()}
    mean_length = sum(map(len, split.values())) / len(split)

    def bm25(question: list[str], document: list[str]) -> float:
        total = 0.0
        for word in question:
            holders, count = sum(word in other for other in split.values()), document.count(word)
            idf = max(math.log((len(split) - holders + 0.5) / (holders + 0.5)), 1e-6)
            total += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(document) / mean_length))
        return total

    for _ in range(20):
        question = generator.sample(words, 3)
        expected = {n: bm25(question, document) for n, document in split.items() if set(question) & set(document)}
        found = catalog.search(" ".join(question), 100)
        assert dict(found) == pytest.approx(expected)
        assert found == sorted(found, key=lambda item: (-item[1], item[0])), "best first, ties by id"
        assert catalog.search(" ".join(question), 4) == found[:4]


@pytest.mark.parametrize(
    "question",
    [
        *(
            '"',
            '""',
            "'",
            "''",
            '"zebra',
            "zebra'",
            'ze"bra zebra',
            "zebra*",
            "*",
            "^zebra",
            "zebra^2",
            "-zebra",
            "+zebra",
        ),
        *(
            "AND",
            "OR zebra",
            "zebra AND",
            "zebra OR OR",
            "NOT zebra",
            "zebra NOT",
            "NEAR(zebra",
            "NEAR(zebra giraffe, 2)",
        ),
        *(
            "(zebra",
            "zebra)",
            "()",
            "{words}: zebra",
            "words:zebra",
            "zebra;--",
            "zebra\\",
            "[zebra]",
            "zebra, {",
            "rank",
        ),
        *("", " \t\n", "?!.,", "\u200b", "\U0001f600", "zebra \U0001f993", "\x00 zebra", "\ud800 zebra", "½ ² zebra"),
        *("\U0001e900 zebra", "\u0301", "e\u0301 zebra", "\ufeffzebra", "ـ zebra", "_zebra_", "__", "zebra\u2028zebra"),
        pytest.param(" ".join(f"word{number}" for number in range(5000)) + " zebra", id="5000 words"),
        pytest.param("z" * 100_000 + " zebra", id="a long word"),
    ],
)
def test_any_text_is_a_question(catalog: Catalog, question: str) -> None:
    (zebra, *_) = _commit(catalog, *_documents({"a": "a zebra", "b": "a giraffe", "c": "words rank"}))
    found = _found(catalog, question)
    assert (zebra in found) is bool(re.search("(?<![a-z])zebra(?![a-z])", question))


def test_operators_are_words_like_any_other(catalog: Catalog) -> None:
    a, b, c = _commit(catalog, *_documents({"a": "zebra", "b": "giraffe", "c": "near"}))
    assert set(_found(catalog, "zebra AND giraffe")) == {a, b}
    assert set(_found(catalog, "zebra NOT giraffe")) == {a, b}
    assert set(_found(catalog, "NEAR(zebra)")) == {a, c}


def test_a_question_of_stop_words_alone_still_finds(catalog: Catalog) -> None:
    who, _ = _commit(catalog, *_documents({"a": "The Who", "b": "Led Zeppelin"}))
    assert _found(catalog, "Who are the who?") == [who]


def test_stop_words_do_not_find_where_there_are_others(catalog: Catalog) -> None:
    _, zeppelin = _commit(catalog, *_documents({"a": "The Who and what they are", "b": "Led Zeppelin"}))
    assert _found(catalog, "Who are the Zeppelins?") == [zeppelin]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("the dog's bone", "dogs"),
        ("the dogs", "dog's"),
        ("the dog’s bone", "dog"),
        ("she was running", "run"),
        ("Connections", "connected"),
        ("Das Café in Zürich", "cafe zurich"),
        ("cafe", "CAFÉ"),
        ("don’t panic", "don't"),
        ("MiXeD", "mixed"),
        ("snake_case_name", "case"),
        ("version 3.14", "3.14"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("我住在东京塔附近", "东京塔在哪里？"),
        ("東京タワーの高さは333メートル", "東京タワー"),
        ("서울의 날씨", "서울"),
        ("第42回大会", "42"),
        ("GPUを使う", "gpu"),
        ("猫", "猫"),
    ],
)
def test_other_forms_of_a_word_find_it(catalog: Catalog, text: str, question: str) -> None:
    (wanted, _) = _commit(catalog, Document("a", text), Document("b", "nothing of interest, 无关的文字"))
    assert _found(catalog, question) == [wanted]


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("Zu\u0308rich", "Z\u00fcrich"),
        ("Z\u00fcrich", "Zu\u0308rich"),
        ("\uac00\uc744", "\u1100\u1161\u110b\u1173\u11af"),
    ],
)
def test_composed_and_decomposed_letters_are_the_same(catalog: Catalog, text: str, question: str) -> None:
    (wanted, _) = _commit(catalog, Document("a", text), Document("b", "nothing"))
    assert _found(catalog, question) == [wanted]


def test_the_better_cjk_match_comes_first(catalog: Catalog) -> None:
    texts = {"a": "东京的天气很好", "b": "东京塔在东京港区", "c": "北京的塔", "d": "英文", "e": "法文", "f": "德文"}
    ids = dict(zip(texts, _commit(catalog, *_documents(texts)), strict=True))
    assert _found(catalog, "东京塔")[:2] == [ids["b"], ids["a"]]


def test_the_title_is_searched_with_every_part(catalog: Catalog) -> None:
    ids = _commit(catalog, Document("a", "one two three four", "Zebra"), parts=2)
    assert sorted(_found(catalog, "zebra")) == ids


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_the_manifest_reads_back_equal(catalog: Catalog) -> None:
    manifest = tiny_manifest(document_prefix='<|im_start|>[{id}]. "é"\n')
    catalog.write_manifest(dataclasses.asdict(manifest))
    assert Manifest.from_json(catalog.read_manifest()) == manifest
    assert manifest.row_bytes == 3 * 2 * (2 * 8) * 2


def _bank_with_manifest(folder: Path, **changes: str | None) -> Path:
    """A bank in whose manifest some values were overwritten by (JSON) text, or removed (None)."""
    MemoryBank.create(folder, tiny_manifest()).close()
    db = sqlite3.connect(folder / "catalog.sqlite")
    for key, value in changes.items():
        db.execute("DELETE FROM manifest WHERE key = ?", (key,))
        if value is not None:
            db.execute("INSERT INTO manifest VALUES (?, ?)", (key, value))
    db.commit()
    db.close()
    return folder


@pytest.mark.parametrize("version", [str(FORMAT_VERSION + 1), "0", '"1.5"', None])
def test_a_bank_of_another_format_version_is_refused(tmp_path: Path, version: str | None) -> None:
    folder = _bank_with_manifest(tmp_path / "bank", format_version=version, from_the_future="1")
    with pytest.raises(BankError, match=f"format version {json.loads(version) if version else None}.*update memspan"):
        MemoryBank.open(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_size": None},
        {"surplus": "1"},
        {"chunk_size": None, "surplus": "1"},
        {"msa_layers": "5"},
    ],
)
def test_a_damaged_manifest_is_refused_by_name(tmp_path: Path, changes: dict[str, str | None]) -> None:
    folder = _bank_with_manifest(tmp_path / "bank", **changes)
    with pytest.raises(BankError, match=next(iter(changes))):
        MemoryBank.open(folder)


def test_a_manifest_that_is_no_json_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = _bank_with_manifest(tmp_path / "bank", chunk_size="{")
    with pytest.raises(BankError, match=r"manifest in .*catalog\.sqlite is damaged"):
        MemoryBank.open(folder)


def test_two_manifests_agree_with_themselves_and_name_whatever_differs() -> None:
    bank = tiny_manifest()
    bank.check_same(Manifest.from_json(json.loads(json.dumps(dataclasses.asdict(bank)))))
    bank.check_same(dataclasses.replace(bank, backbone="the same, from another place"))
    names = [field.name for field in dataclasses.fields(Manifest) if field.name != "backbone"]
    changes: dict[str, Any] = {
        name: (9, 11) if name == "msa_layers" else "other" if isinstance(value, str) else value + 1
        for name, value in dataclasses.asdict(bank).items()
    }
    for differing in [[name] for name in names] + [names[2:5], names]:
        model = dataclasses.replace(bank, backbone="other", **{name: changes[name] for name in differing})
        with pytest.raises(BankMismatch) as raised:
            bank.check_same(model)
        first, *middle, last = str(raised.value).splitlines()
        assert first == "this bank was encoded by another model (converted from tiny):"
        assert "memspan ask BANK --model DIR" in last and "memspan add NEW_BANK FILES..." in last
        lines = [line.strip() for line in middle]
        assert lines == [f"{name}: bank {getattr(bank, name)!r}, model {getattr(model, name)!r}" for name in differing]


# --- what may only be read ------------------------------------------------------------------------------------------


@pytest.fixture
def enterable() -> Iterator[Path]:
    """A folder that any user may enter (pytest's own are private to one)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        for folder in Path(name).iterdir():
            folder.chmod(0o755)


def _as_nobody(do: Callable[[], Any]) -> Any:
    """What a function returns in a process that may not write everywhere, as root may; errors as (type, message)."""
    ours, theirs = FORK.Pipe()

    def child() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            theirs.send(do())
        except Exception as error:
            theirs.send((type(error), str(error)))

    process = FORK.Process(target=child)
    process.start()
    assert ours.poll(60), "the process said nothing"
    answer = ours.recv()
    process.join(60)
    assert process.exitcode == 0
    return answer


def _filled_bank(folder: Path) -> list[str]:
    """Fill a bank with two documents in several transactions; return their ids."""
    MemoryBank.create(folder, tiny_manifest()).close()
    catalog = Catalog(folder / "catalog.sqlite")
    _commit(catalog, Document("a", "an old zebra"))
    _commit(catalog, *_documents({"a": "a zebra", "b": "a giraffe"}))
    catalog.close()
    return ["a", "b"]


def _look_at(folder: Path) -> tuple[Any, ...]:
    """Everything a reader asks a catalog."""
    bank = MemoryBank.open(folder)
    try:
        catalog = bank.catalog
        found = [document.text for document in catalog.documents(_found(catalog, "zebra"))]
        return (
            bank.manifest,
            [document.external_id for document in catalog.page(0, 9)],
            found,
            catalog.counts().documents,
        )
    finally:
        bank.close()


def test_a_bank_in_a_folder_that_may_not_be_written_opens_for_reading_only(enterable: Path) -> None:
    folder = enterable / "bank"
    names = _filled_bank(folder)
    before = sorted(path.name for path in folder.iterdir())
    folder.chmod(0o555)

    def write() -> None:
        bank = MemoryBank.open(folder)
        _commit(bank.catalog, Document("c", "a gnu"))

    assert _as_nobody(lambda: os.access(folder, os.W_OK)) is False, "else this test tests nothing"
    assert _as_nobody(lambda: _look_at(folder)) == (tiny_manifest(), names, ["a zebra"], 2)
    kind, message = _as_nobody(write)
    assert kind is BankError and "readonly" in message
    assert sorted(path.name for path in folder.iterdir()) == before
    assert _look_at(folder) == (tiny_manifest(), names, ["a zebra"], 2)


def test_a_bank_whose_shared_file_cannot_be_made_opens_for_reading(tmp_path: Path) -> None:
    names = _filled_bank(tmp_path / "bank")
    (tmp_path / "bank" / "catalog.sqlite-shm").mkdir()
    assert _look_at(tmp_path / "bank") == (tiny_manifest(), names, ["a zebra"], 2)


def test_what_stands_in_the_log_only_is_not_passed_over_silently(enterable: Path) -> None:
    """A copy of a bank made while it was written, where no reader may make the file it needs to read the log."""
    folder, copy = enterable / "bank", enterable / "copy"
    _filled_bank(folder)
    catalog = Catalog(folder / "catalog.sqlite")
    _commit(catalog, Document("a", "newest"))
    copy.mkdir()
    for name in ("catalog.sqlite", "catalog.sqlite-wal"):
        shutil.copy(folder / name, copy / name)
    catalog.close()
    assert (copy / "catalog.sqlite-wal").stat().st_size
    copy.chmod(0o555)
    kind, message = _as_nobody(lambda: _look_at(copy))
    assert kind is BankError and str(copy / "catalog.sqlite") in message


# --- damaged files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"garbage" * 3000, b"SQLite format 3\0" + b"\xff" * 8176])
def test_a_file_that_is_no_catalog_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(content)
    with pytest.raises(BankError, match=str(path)):
        MemoryBank.open(tmp_path)


def test_a_catalog_without_its_manifest_table_is_named(tmp_path: Path) -> None:
    folder = _bank_with_manifest(tmp_path / "bank")
    db = sqlite3.connect(folder / "catalog.sqlite")
    db.execute("DROP TABLE manifest")
    db.close()
    with pytest.raises(BankError, match=r"catalog\.sqlite"):
        MemoryBank.open(folder)


def test_a_catalog_damaged_in_any_page_is_a_named_error_or_no_error(tmp_path: Path) -> None:
    folder = _bank_with_manifest(tmp_path / "bank")
    catalog = MemoryBank.open(folder).catalog
    _commit(catalog, *_documents({str(number): f"zebra {number}" for number in range(20)}))
    catalog.close()
    whole = catalog.path.read_bytes()
    raised: list[type[Exception]] = []
    for start in range(4096, len(whole), 4096):
        catalog.path.write_bytes(whole[:start] + b"\xff" * 4096 + whole[start + 4096 :])
        try:
            bank = MemoryBank.open(folder)
            bank.catalog.page(0, 99), bank.catalog.counts(), bank.catalog.search("zebra", 9), bank.catalog.segments()
            list(bank.catalog.places())
        except Exception as error:
            raised.append(type(error))
    assert set(raised) == {BankError}


def test_more_documents_can_be_asked_for_than_a_statement_has_variables(tmp_path: Path) -> None:
    catalog = MemoryBank.open(_bank_with_manifest(tmp_path / "bank")).catalog
    _commit(catalog, *_documents({"only": "zebra"}))
    (page,) = catalog.page(0, 9)
    assert catalog.documents([*range(page.id + 1, 40_000), page.id]) == [page]
