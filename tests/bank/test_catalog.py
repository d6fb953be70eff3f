from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import commit_texts, tiny_manifest

from memspan.bank import edits
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.folder import WrittenSegments
from memspan.bank.manifest import FORMAT_VERSION, Manifest
from memspan.bank.segment import RowLocation, SegmentFiles
from memspan.errors import BankError, BankMismatch
from memspan.types import Document, Span

DEFAULT = DEFAULT_NAMESPACE


def _documents(texts: dict[str, str]) -> list[Document]:
    return [Document(external_id, text) for external_id, text in texts.items()]


def _found(catalog: Catalog, question: str, limit: int = 100) -> list[int]:
    return [document_id for document_id, _ in catalog.search(DEFAULT, question, limit)]


# --- documents ------------------------------------------------------------------------------------------------------


def test_documents_come_back_as_they_were_given(catalog: Catalog) -> None:
    text = "e\u0301 \U0001f600 über\r\n\tÅ中文 'quoted' \"twice\" %s ?"
    given = [
        Document("a/ä.txt", text, "Títle", {"page": 3, "tags": ["x", None, True], "deep": {"é": 1.5}}),
        Document("b", "plain"),
    ]
    commit_texts(catalog, *given, parts=3)
    for document in given:
        parts = [found for found in catalog.page(DEFAULT, 0, 100) if found.external_id == document.external_id]
        assert "".join(found.text for found in parts) == document.text
        for found in parts:
            assert found.text == document.text[found.span.start : found.span.end]
            assert (found.title, found.metadata) == (document.title, dict(document.metadata))
            assert (found.tokens, found.chunks) == (found.span.length, 2)


READS: dict[str, Callable[[Catalog, list[int]], object]] = {
    "documents": lambda catalog, ids: catalog.documents(DEFAULT, ids[::-1]),
    "documents_of": lambda catalog, ids: catalog.documents_of(DEFAULT, "long"),
    "documents_in_segment": lambda catalog, ids: catalog.documents_in_segment(DEFAULT, 1),
    "page": lambda catalog, ids: catalog.page(DEFAULT, 0, len(ids)),
    "texts": lambda catalog, ids: list(catalog.texts(DEFAULT)),
    "texts_of": lambda catalog, ids: catalog.texts_of(1),
    "unstaged_documents": lambda catalog, ids: catalog.unstaged_documents(DEFAULT, past=False),
    "new_staged_texts": lambda catalog, ids: catalog.new_staged_texts(DEFAULT, past=False),
    "delete_sources": lambda catalog, ids: edits.delete_sources(catalog, DEFAULT, ["long", "other"]),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_the_text_of_a_source_is_read_once_for_all_its_parts(
    catalog: Catalog, read: Callable[[Catalog, list[int]], object]
) -> None:
    """Not the whole of it for every part: 8 MB in parts took 20 seconds."""
    long, other = Document("long", "Ö word. " * 500), Document("other", "else " * 300)
    ids = commit_texts(catalog, long, other, parts=100)
    for source_id, document in ((1, long), (2, other)):
        parts, places = [], []
        for number in range(100):
            span = Span(number * len(document.text) // 100, (number + 1) * len(document.text) // 100)
            parts.append(NewDocument(1000 * source_id + number, span, 1))
            places.append(RowLocation(parts[-1].document_id, f"{source_id:032x}0"[1:], 2 * number, 2, 0))
        files = SegmentFiles(places[0].segment, len(places), 2 * len(places), 0, 10, "a", 20, "b")
        edits.stage(
            catalog, DEFAULT, [(source_id, NewSource(document, tuple(parts)))], WrittenSegments([files], places)
        )
    num_read = [0]

    def substr(text: str, start: int, length: int) -> str:
        num_read[0] += len(text)
        return text[start - 1 : start - 1 + length]

    def trace(statement: str) -> None:
        if "text from texts" in statement.lower():
            num_read[0] += len(long.text if statement.endswith("= 1") else other.text)

    catalog.connection.create_function("substr", 3, substr)
    catalog.connection.set_trace_callback(trace)
    read(catalog, ids)
    assert 0 < num_read[0] <= len(long.text) + len(other.text)


def test_documents_are_returned_in_the_order_asked_for_and_unknown_ids_left_out(catalog: Catalog) -> None:
    ids = commit_texts(catalog, *_documents({name: name for name in "abcde"}))
    asked = [ids[3], 99, ids[0], -1, ids[4]]
    assert [found.id for found in catalog.documents(DEFAULT, asked)] == [ids[3], ids[0], ids[4]]
    assert catalog.documents(DEFAULT, []) == []


def test_pages_walk_over_every_live_document_once(catalog: Catalog) -> None:
    ids = commit_texts(catalog, *_documents({str(number): "text" for number in range(11)}))
    commit_texts(catalog, Document("4", "other"))
    ids = [document_id for document_id in ids if document_id != ids[4]] + [ids[-1] + 1]
    walked: list[int] = []
    while page := catalog.page(DEFAULT, walked[-1] if walked else 0, 3):
        assert len(page) <= 3
        walked += [found.id for found in page]
    assert walked == ids


def test_documents_of_a_segment_stand_in_the_order_of_their_rows(catalog: Catalog) -> None:
    earlier, later = "a" * 32, "f" * 32
    files = [SegmentFiles(name, 2, 10, 0, 1, "a", 2, "b") for name in (later, earlier)]
    rows = [(1, earlier, 6, 4), (2, later, 3, 7), (3, earlier, 0, 6), (4, later, 0, 3)]
    places = [RowLocation(*row, 0) for row in rows]
    sources = [
        NewSource(Document(str(place.document_id), "text"), (NewDocument(place.document_id, Span(0, 4), 4),))
        for place in places
    ]
    edits.add_sources(catalog, DEFAULT, sources, WrittenSegments(files, places))
    segments = catalog.segments(DEFAULT)
    assert [found for _, found in segments] == files
    assert [[found.id for found in catalog.documents_in_segment(DEFAULT, number)] for number, _ in segments] == [
        [4, 2],
        [3, 1],
    ]


def test_counts_are_those_of_what_is_live(catalog: Catalog) -> None:
    commit_texts(catalog, *_documents({"a": "six letters", "b": "four"}), parts=2)
    commit_texts(catalog, Document("a", "abc"))
    commit_texts(catalog, Document("a", "of another"), namespace="other")
    counts = catalog.counts(DEFAULT)
    assert (counts.sources, counts.documents, counts.tokens, counts.chunks) == (2, 3, 7, 6)
    assert (counts.deleted_documents, counts.past_documents, counts.versions) == (0, 2, 1)
    assert (counts.segments, counts.segment_bytes) == (2, 60), "files stay until they are compacted"
    everything = catalog.counts()
    assert (everything.sources, everything.documents, everything.tokens, everything.segments) == (3, 4, 17, 3)


def test_hashes_are_those_of_live_sources(catalog: Catalog) -> None:
    documents = _documents({f"id{number}": f"text {number}" for number in range(20)})
    commit_texts(catalog, *documents)
    changed = Document("id7", "text 7", metadata={"new": True})
    commit_texts(catalog, changed)
    edits.delete_sources(catalog, DEFAULT, ["id9"])
    expected = {document.external_id: (document.content_hash, document.text_hash) for document in [*documents, changed]}
    expected["id9"] = None
    assert {external_id: catalog.hashes(DEFAULT, external_id) for external_id in expected} == expected
    assert catalog.hashes(DEFAULT, "unknown") is catalog.hashes("other", "id7") is None


def test_the_number_of_commits_grows_with_those_of_any_connection_and_with_nothing_else(catalog: Catalog) -> None:
    other = Catalog(catalog.path)
    seen = [(catalog.commits(), other.commits())]
    for writer in (catalog, other, catalog):
        commit_texts(writer, Document("a", f"text {len(seen)}"))
        seen.append((catalog.commits(), other.commits()))
    assert [one for one, _ in seen] == [two for _, two in seen]
    assert [after - before for (before, _), (after, _) in itertools.pairwise(seen)] == [1, 1, 1]
    for reader in (catalog, other):
        reader.search(DEFAULT, "text", 5), reader.page(DEFAULT, 0, 9), reader.counts(), reader.segments()
    assert (catalog.commits(), other.commits()) == seen[-1]
    other.close()


def test_a_source_is_found_by_the_id_of_any_of_its_documents(catalog: Catalog) -> None:
    first, second, third = commit_texts(catalog, Document("a", "one two three"), parts=3)
    (other,) = commit_texts(catalog, Document("b", "text"), namespace="other")
    assert [catalog.external_id_of(DEFAULT, number) for number in (first, second, third)] == ["a"] * 3
    edits.delete_sources(catalog, "other", ["b"])
    unknown = (other, 0, -1, 99, 2**63, 10**30)
    assert {catalog.external_id_of(namespace, number) for number in unknown for namespace in (DEFAULT, "other")} == {
        None
    }


def test_sources_come_back_whole_as_they_were_given_in_the_order_they_were_added(catalog: Catalog) -> None:
    given = [Document(name, f"text {name}", "Title", {"n": n}, "2026-03-01") for n, name in enumerate("cab")]
    commit_texts(catalog, *given, parts=2)
    assert [stored.document for stored in catalog.sources(DEFAULT)] == given
    assert catalog.source(DEFAULT, "a").document == given[1]  # type: ignore[union-attr]
    assert catalog.source(DEFAULT, "unknown") is None
    walked: list[Document] = []
    after = 0
    while page := catalog.source_page(DEFAULT, after, 2):
        walked += [stored.document for stored in page]
        after = page[-1].id
    assert walked == given


# --- search ---------------------------------------------------------------------------------------------------------


def test_scores_are_bm25_sorted_and_limited(catalog: Catalog) -> None:
    generator = random.Random(1)
    words = [f"w{number}" for number in range(12)]
    texts = {str(n): " ".join(generator.choices(words, k=generator.randint(1, 30))) for n in range(1, 31)}
    commit_texts(catalog, *_documents(texts))
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
        found = catalog.search(DEFAULT, " ".join(question), 100)
        assert dict(found) == pytest.approx(expected)
        assert found == sorted(found, key=lambda item: (-item[1], item[0])), "best first, ties by id"
        assert catalog.search(DEFAULT, " ".join(question), 4) == found[:4]


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
    (zebra, *_) = commit_texts(catalog, *_documents({"a": "a zebra", "b": "a giraffe", "c": "words rank"}))
    found = _found(catalog, question)
    assert (zebra in found) is bool(re.search("(?<![a-z])zebra(?![a-z])", question))


def test_operators_are_words_like_any_other(catalog: Catalog) -> None:
    a, b, c = commit_texts(catalog, *_documents({"a": "zebra", "b": "giraffe", "c": "near"}))
    assert set(_found(catalog, "zebra AND giraffe")) == {a, b}
    assert set(_found(catalog, "zebra NOT giraffe")) == {a, b}
    assert set(_found(catalog, "NEAR(zebra)")) == {a, c}


def test_a_question_of_stop_words_alone_still_finds(catalog: Catalog) -> None:
    who, _ = commit_texts(catalog, *_documents({"a": "The Who", "b": "Led Zeppelin"}))
    assert _found(catalog, "Who are the who?") == [who]


def test_stop_words_do_not_find_where_there_are_others(catalog: Catalog) -> None:
    _, zeppelin = commit_texts(catalog, *_documents({"a": "The Who and what they are", "b": "Led Zeppelin"}))
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
    (wanted, _) = commit_texts(catalog, Document("a", text), Document("b", "nothing of interest, 无关的文字"))
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
    (wanted, _) = commit_texts(catalog, Document("a", text), Document("b", "nothing"))
    assert _found(catalog, question) == [wanted]


def test_the_better_cjk_match_comes_first(catalog: Catalog) -> None:
    texts = {"a": "东京的天气很好", "b": "东京塔在东京港区", "c": "北京的塔", "d": "英文", "e": "法文", "f": "德文"}
    ids = dict(zip(texts, commit_texts(catalog, *_documents(texts)), strict=True))
    assert _found(catalog, "东京塔")[:2] == [ids["b"], ids["a"]]


def test_the_title_is_searched_with_every_part(catalog: Catalog) -> None:
    ids = commit_texts(catalog, Document("a", "one two three four", "Zebra"), parts=2)
    assert sorted(_found(catalog, "zebra")) == ids


# --- the manifest ---------------------------------------------------------------------------------------------------


def test_the_manifest_reads_back_equal(catalog: Catalog) -> None:
    manifest = tiny_manifest(document_prefix='<|im_start|>[{id}]. "é"\n')
    edits.write_manifest(catalog, manifest.as_json())
    assert Manifest.from_json(catalog.read_manifest()) == manifest
    assert manifest.row_bytes == 3 * 2 * (2 * 8) * 2


def _bank_with_manifest(folder: Path, **changes: str | None) -> Path:
    """A bank in whose manifest some values were overwritten by (JSON) text, or removed (None)."""
    MemoryBank.create(folder, tiny_manifest()).close()
    db = sqlite3.connect(folder / "catalog.sqlite")
    db.execute("PRAGMA ignore_check_constraints = ON")
    for key, value in changes.items():
        db.execute("DELETE FROM manifest WHERE key = ?", (key,))
        if value is not None:
            db.execute("INSERT INTO manifest VALUES (?, ?)", (key, value))
    db.commit()
    db.close()
    return folder


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (str(FORMAT_VERSION + 1), "update memspan"),
        ("1", "build the bank again"),
        ('"2.5"', "build the bank again"),
        (None, "build the bank again"),
    ],
)
def test_a_bank_of_another_format_version_is_refused(tmp_path: Path, version: str | None, remedy: str) -> None:
    folder = _bank_with_manifest(tmp_path / "bank", format_version=version, from_the_future="1")
    with pytest.raises(BankError, match=f"format version {json.loads(version) if version else None}.*{remedy}"):
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
    bank = tiny_manifest(content_chunk=1, content_layers=(0, 2))
    bank.check_same(Manifest.from_json(json.loads(json.dumps(bank.as_json()))))
    bank.check_same(dataclasses.replace(bank, backbone="the same, from another place"))
    names = [field.name for field in dataclasses.fields(Manifest) if field.name != "backbone"]
    changes: dict[str, Any] = {
        name: (9, 11) if name.endswith("_layers") else "other" if isinstance(value, str) else value + 1
        for name, value in dataclasses.asdict(bank).items()
    }
    for differing in [[name] for name in names] + [names[2:5], names]:
        model = dataclasses.replace(bank, backbone="other", **{name: changes[name] for name in differing})
        with pytest.raises(BankMismatch) as raised:
            bank.check_same(model)
        first, *middle, last = str(raised.value).splitlines()
        assert first == "this bank was encoded by another model (converted from tiny):"
        assert "memspan ask BANK --model DIR" in last and "memspan reencode BANK --model DIR" in last
        lines = [line.strip() for line in middle]
        assert lines == [f"{name}: bank {getattr(bank, name)!r}, model {getattr(model, name)!r}" for name in differing]


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
    commit_texts(catalog, *_documents({str(number): f"zebra {number}" for number in range(20)}))
    catalog.close()
    whole = catalog.path.read_bytes()
    raised: list[type[Exception]] = []
    for start in range(4096, len(whole), 4096):
        catalog.path.write_bytes(whole[:start] + b"\xff" * 4096 + whole[start + 4096 :])
        try:
            bank = MemoryBank.open(folder)
            bank.catalog.page(DEFAULT, 0, 99), bank.catalog.counts(), bank.catalog.search(DEFAULT, "zebra", 9)
            bank.catalog.segments(), list(bank.catalog.sources(DEFAULT)), bank.catalog.hashes(DEFAULT, "7")
        except Exception as error:
            raised.append(type(error))
    assert set(raised) == {BankError}


def test_more_documents_can_be_asked_for_than_a_statement_has_variables(tmp_path: Path) -> None:
    catalog = MemoryBank.open(_bank_with_manifest(tmp_path / "bank")).catalog
    commit_texts(catalog, Document("only", "zebra"))
    (page,) = catalog.page(DEFAULT, 0, 9)
    assert catalog.documents(DEFAULT, [*range(page.id + 1, 40_000), page.id]) == [page]
