from __future__ import annotations

import dataclasses
import itertools
import random
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_bank, read_latents, tiny_loaded, watch_encoding

from memspan.bank import add
from memspan.bank.add import AddReport, add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, StoredDocument
from memspan.bank.encode import manifest_of
from memspan.bank.segment import SegmentWriter
from memspan.bank.stored import num_pending
from memspan.bank.verify import verify
from memspan.errors import BankError, BankMismatch, DuplicateDocument
from memspan.model.convert import LoadedModel
from memspan.text.template import encoded_text
from memspan.types import Document

DEFAULT = DEFAULT_NAMESPACE
MAX_TOKENS = 64
# Half a unit in the last place of bfloat16, and one more where float32 noise tips the rounding.
BF16 = {"rtol": 2**-7, "atol": 1e-6}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=MAX_TOKENS)


@pytest.fixture
def bank(tmp_path: Path, loaded: LoadedModel) -> MemoryBank:
    return MemoryBank.create(tmp_path / "bank", manifest_of(loaded))


@pytest.fixture
def encoded(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text, in its template, of every document that the model encodes from here on."""
    return watch_encoding(monkeypatch, loaded)


def _text(generator: random.Random, num_words: int) -> str:
    return " ".join("".join(generator.choices(string.ascii_lowercase, k=5)) for _ in range(num_words))


def _corpus(count: int, seed: int = 0, num_words: int = 5) -> list[Document]:
    """Documents of 1 to `num_words` words (of about 4 tokens), short enough not to be split; a title here and there."""
    generator = random.Random(seed)
    return [
        Document(
            f"doc {number}",
            f"{_text(generator, generator.randint(1, num_words))}.",
            title=_text(generator, 1) if number % 3 == 0 else "",
            metadata={"number": number},
        )
        for number in range(count)
    ]


def _as_added(stored: StoredDocument) -> StoredDocument:
    """A document without the time it was added, if that is its only date."""
    return dataclasses.replace(stored, date="")


def _times_encoded(corpus: Sequence[Document], encoded: Sequence[str]) -> list[int]:
    return [sum(document.text in text for text in encoded) for document in corpus]


def _without_ids(bank: MemoryBank) -> dict[str, list[tuple[Any, ...]]]:
    """What a bank holds, by external id, but for the ids and what depends on how many digits they have."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for document in bank.catalog.page(DEFAULT, 0, 100_000):
        values = (document.span, document.text, document.title, document.metadata)
        found.setdefault(document.external_id, []).append(values)
    return found


def _assert_latents_are_those_of_the_model(bank: MemoryBank, loaded: LoadedModel) -> None:
    """Every stored row is what the model computes for that document alone, rounded to bfloat16."""
    latents = read_latents(bank)
    stored = bank.catalog.page(DEFAULT, 0, 100_000)
    assert sorted(latents) == [document.id for document in stored]
    for document in stored:
        ids = loaded.template.document(document.id, encoded_text(document.title, document.text))
        with torch.no_grad():
            alone = loaded.model.encode([ids])
        found = latents[document.id]
        assert {str(found.router_keys_LCW.dtype), str(found.content_LC2GD.dtype)} == {f"torch.{bank.manifest.dtype}"}
        assert (document.tokens, document.chunks) == (len(ids), alone.num_chunks[0]) == (len(ids), found.num_chunks[0])
        torch.testing.assert_close(found.router_keys_LCW.float(), alone.router_keys_LCW, **BF16)
        torch.testing.assert_close(found.content_LC2GD.float(), alone.content_LC2GD, **BF16)


# --- what a bank holds ----------------------------------------------------------------------------------------------


def test_a_bank_holds_what_the_model_computes_for_every_document_alone(bank: MemoryBank, loaded: LoadedModel) -> None:
    corpus = _corpus(23, num_words=40)  # some are split
    report = add_documents(bank, loaded, corpus)
    _assert_latents_are_those_of_the_model(bank, loaded)
    counts = bank.catalog.counts()
    assert (report.added, report.updated, report.unchanged) == (23, 0, 0)
    assert counts.documents > 23
    assert (report.documents, report.tokens, report.chunks) == (counts.documents, counts.tokens, counts.chunks)
    assert report.characters == sum(len(document.text) for document in corpus)
    assert not report.interrupted


def test_a_reopened_bank_is_the_fresh_one(bank: MemoryBank, loaded: LoadedModel) -> None:
    add_documents(bank, loaded, _corpus(12, num_words=30))
    fresh, found = read_bank(bank), bank.catalog.search(DEFAULT, bank.catalog.page(DEFAULT, 0, 1)[0].text, 9)
    bank.close()
    reopened = MemoryBank.open(bank.folder)
    assert read_bank(reopened) == fresh
    assert reopened.catalog.search(DEFAULT, fresh[0][0].text, 9) == found != []


def test_documents_come_back_verbatim(bank: MemoryBank, loaded: LoadedModel) -> None:
    text = "<|im_end|> [1]. \u00e9 e\u0301 \U0001f600\r\n\t  日本  " * 6
    given = Document("a/ü", text, "<|im_start|>", {"tags": ["x", None]})
    add_documents(bank, loaded, [given])
    parts = bank.catalog.page(DEFAULT, 0, 99)
    assert len(parts) > 1
    assert "".join(part.text for part in parts) == text
    assert {(part.external_id, part.title) for part in parts} == {("a/ü", "<|im_start|>")}
    assert all(part.metadata == given.metadata for part in parts)


@pytest.mark.parametrize(("window", "batch_tokens"), [(1, 1000), (4, 100), (1000, 1), (1000, 150)])
def test_windows_and_batches_do_not_change_what_is_stored(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, window: int, batch_tokens: int
) -> None:
    corpus = _corpus(13, num_words=20)
    plain, cut = (MemoryBank.create(tmp_path / name, manifest_of(loaded)) for name in ("plain", "cut"))
    add_documents(plain, loaded, corpus)
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", window)
    add_documents(cut, loaded, corpus, batch_tokens=batch_tokens, commit_seconds=0)
    same = [[_as_added(found) for found in bank.catalog.page(DEFAULT, 0, 1000)] for bank in (cut, plain)]
    assert same[0] == same[1], "the same documents under the same ids"
    found, expected = read_latents(cut), read_latents(plain)
    for document_id, latents in expected.items():
        for name in ("router_keys_LCW", "content_LC2GD"):
            one, other = getattr(found[document_id], name), getattr(latents, name)
            torch.testing.assert_close(one.float(), other.float(), **BF16)


def test_nothing_added_is_nothing_written(bank: MemoryBank, loaded: LoadedModel) -> None:
    report = add_documents(bank, loaded, [])
    assert dataclasses.replace(report, seconds=0.0) == AddReport()
    assert bank.catalog.segments() == []


# --- splitting ------------------------------------------------------------------------------------------------------


def test_a_long_document_is_one_source_in_parts_that_cover_it(bank: MemoryBank, loaded: LoadedModel) -> None:
    generator = random.Random(3)
    texts = [" ".join(f"{_text(generator, generator.randint(3, 9))}." for _ in range(30)), _text(generator, 400)]
    texts.append("x" * 900)
    corpus = [Document(str(number), text, title="A title") for number, text in enumerate(texts)]
    corpus[2] = dataclasses.replace(corpus[2], title="")
    report = add_documents(bank, loaded, corpus)
    assert report.added == bank.catalog.counts().sources == 3
    stored = bank.catalog.page(DEFAULT, 0, 10_000)
    for document in corpus:
        parts = [part for part in stored if part.external_id == document.external_id]
        assert len(parts) > 5
        assert [part.id for part in parts] == list(range(parts[0].id, parts[0].id + len(parts)))
        assert parts[0].span.start == 0 and parts[-1].span.end == len(document.text)
        assert all(one.span.end == two.span.start for one, two in itertools.pairwise(parts))
        assert all(part.text == document.text[part.span.start : part.span.end] for part in parts)
        assert max(part.tokens for part in parts) <= MAX_TOKENS
        # Parts are not needlessly small: two neighbours would not have fitted together.
        assert all(one.tokens + two.tokens > MAX_TOKENS // 2 for one, two in itertools.pairwise(parts))
    _assert_latents_are_those_of_the_model(bank, loaded)


# --- adding again ---------------------------------------------------------------------------------------------------


def test_adding_a_second_time_encodes_and_writes_nothing(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str]
) -> None:
    corpus = _corpus(9, num_words=30)
    add_documents(bank, loaded, corpus)
    before, files = read_bank(bank), sorted((bank.folder / "segments").iterdir())
    encoded.clear()
    report = add_documents(MemoryBank.open(bank.folder), loaded, corpus)
    assert encoded == []
    assert (report.added, report.updated, report.unchanged, report.documents) == (0, 0, 9, 0)
    assert report.characters == sum(len(document.text) for document in corpus)
    assert (read_bank(bank), sorted((bank.folder / "segments").iterdir())) == (before, files)


def test_only_what_is_new_or_changed_is_encoded(bank: MemoryBank, loaded: LoadedModel, encoded: list[str]) -> None:
    corpus = _corpus(8)
    add_documents(bank, loaded, corpus)
    before = {document.external_id: rest for document, *rest in read_bank(bank)}
    encoded.clear()
    changed = {
        2: dataclasses.replace(corpus[2], text="another text"),
        4: dataclasses.replace(corpus[4], title="Another title"),
        5: dataclasses.replace(corpus[5], metadata={"number": "another"}),
        6: dataclasses.replace(corpus[6], date="2026-03-01"),
    }
    new = Document("new", "newtext")
    report = add_documents(bank, loaded, [changed.get(n, document) for n, document in enumerate(corpus)] + [new])
    assert (report.added, report.updated, report.unchanged, report.documents) == (1, 4, 4, 3)
    assert _times_encoded([changed[2], changed[4], new], encoded) == [1, 1, 1]
    assert len(encoded) == 3, "metadata and dates are not encoded"
    after = {document.external_id: (document, rest) for document, *rest in read_bank(bank)}
    assert len(after) == 9
    for number, document in enumerate(corpus):
        stored, rest = after[document.external_id]
        wanted = changed.get(number, document)
        assert (stored.text, stored.title, stored.metadata) == (wanted.text, wanted.title, wanted.metadata)
        assert (rest == before[document.external_id]) is (number not in (2, 4)), "its latents"


def test_a_long_document_replaced_by_a_short_one_leaves_no_part_behind(bank: MemoryBank, loaded: LoadedModel) -> None:
    add_documents(bank, loaded, [Document("a", _text(random.Random(0), 100) + " zebra"), Document("b", "other")])
    assert bank.catalog.counts().documents > 5
    report = add_documents(bank, loaded, [Document("a", "short")])
    assert (report.updated, bank.catalog.search(DEFAULT, "zebra", 9)) == (1, [])
    assert [document.text for document, *_ in read_bank(bank)] == ["other", "short"]
    assert len(bank.catalog.search(DEFAULT, "short", 9)) == 1


def test_equal_texts_under_two_names_are_two_documents_with_their_own_latents(
    bank: MemoryBank, loaded: LoadedModel
) -> None:
    report = add_documents(bank, loaded, [Document("a", "the same text"), Document("b", "the same text")])
    assert report.added == 2
    one, two = read_latents(bank).values()
    # The first token stands before the id; what comes after has seen it.
    assert one.content_LC2GD.shape == two.content_LC2GD.shape
    assert not torch.allclose(one.content_LC2GD.float(), two.content_LC2GD.float(), atol=0.05)
    _assert_latents_are_those_of_the_model(bank, loaded)


@pytest.mark.parametrize("commit_seconds", [0, 1e9])
def test_a_document_given_twice_is_encoded_and_counted_once(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, encoded: list[str], commit_seconds: float
) -> None:
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", 2)
    corpus = _corpus(4)
    report = add_documents(bank, loaded, corpus * 2, commit_seconds=commit_seconds)
    assert (report.added, report.unchanged) == (4, 4)
    assert _times_encoded(corpus, encoded) == [1] * 4


def test_metadata_that_cannot_be_stored_does_not_stop_the_others(bank: MemoryBank, loaded: LoadedModel) -> None:
    try:
        bad = [Document("bad", "text", metadata={"key": "\ud800"})]
    except ValueError:
        bad = []  # refused where it is made, as such titles and texts are
    add_documents(bank, loaded, [Document("a", "text a"), *bad, Document("b", "text b")])
    assert {"a", "b"} <= _without_ids(bank).keys()


# --- what is there already ------------------------------------------------------------------------------------------


def test_a_change_of_metadata_or_date_keeps_the_id_and_the_latents(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str]
) -> None:
    given = Document("a", _text(random.Random(0), 40), "Title", {"old": 1}, "2026-01-01")
    add_documents(bank, loaded, [given])
    before, files = read_bank(bank), sorted((bank.folder / "segments").iterdir())
    encoded.clear()
    changed = dataclasses.replace(given, metadata={"new": [2]}, date="2026-02-02")
    report = add_documents(bank, loaded, [changed])
    assert (report.updated, report.documents, report.characters, encoded) == (1, 0, len(given.text), [])
    assert sorted((bank.folder / "segments").iterdir()) == files
    assert len(before) > 1
    assert read_bank(bank) == [
        (dataclasses.replace(stored, metadata={"new": [2]}, date="2026-02-02"), *latents) for stored, *latents in before
    ]


def test_other_content_is_refused_when_asked_and_what_came_before_it_is_kept(
    bank: MemoryBank, loaded: LoadedModel
) -> None:
    add_documents(bank, loaded, [Document("old", "old text"), Document("same", "same text")])
    before = read_bank(bank)
    given = [Document("new", "new text"), Document("same", "same text"), Document("old", "x"), Document("later", "y")]
    with pytest.raises(DuplicateDocument, match="'old' is in the bank already"):
        add_documents(bank, loaded, given, existing="refuse", commit_seconds=1e9)
    assert read_bank(bank)[:2] == before
    assert [document.external_id for document, *_ in read_bank(bank)] == ["old", "same", "new"]


@pytest.mark.parametrize("window", [1, 1000])
@pytest.mark.parametrize("changes", [{"metadata": {"n": 1}}, {"date": "2026-01-01"}, {"title": "New"}, {"text": "new"}])
def test_any_change_is_refused_when_asked_also_within_one_run(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], window: int
) -> None:
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", window)
    given = Document("a", "text")
    with pytest.raises(DuplicateDocument, match="'a'"):
        add_documents(bank, loaded, [given, dataclasses.replace(given, **changes)], existing="refuse")
    assert [stored.document for stored in bank.catalog.sources(DEFAULT)] == [given]


def test_renewing_encodes_what_did_not_change_under_new_ids(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str]
) -> None:
    corpus = _corpus(4)
    add_documents(bank, loaded, corpus)
    before = {document.external_id: document.id for document, *_ in read_bank(bank)}
    encoded.clear()
    report = add_documents(bank, loaded, corpus[:2], existing="renew")
    assert (report.updated, report.unchanged, len(encoded)) == (2, 0, 2)
    after = {document.external_id: document.id for document, *_ in read_bank(bank)}
    assert [after[f"doc {n}"] > max(before.values()) for n in range(4)] == [True, True, False, False]
    assert [stored.document for stored in bank.catalog.sources(DEFAULT)] == corpus[2:] + corpus[:2]
    _assert_latents_are_those_of_the_model(bank, loaded)


def test_a_snapshot_of_an_update_holds_the_old_or_the_new_text_and_never_both(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_documents(bank, loaded, [Document("a", _text(random.Random(0), 60)), Document("b", "other")])
    reader = MemoryBank.open(bank.folder)
    seen: list[str] = []

    def look(*_: Any) -> None:
        with reader.snapshot() as snapshot:
            ids = [number for shard in snapshot.shards for number in shard.ids_N[shard.live_N].tolist()]
            assert len(snapshot.documents(ids)) == len(ids)
            parts = [found for found in snapshot.documents(snapshot.ids()) if found.external_id == "a"]
            seen.append("".join(part.text for part in sorted(parts, key=lambda part: part.span.start)))

    old, new = _text(random.Random(0), 60), _text(random.Random(1), 60)
    real = SegmentWriter.finish

    def finish(writer: SegmentWriter) -> Any:
        look()
        written = real(writer)
        look()
        return written

    monkeypatch.setattr(SegmentWriter, "finish", finish)
    look()
    add_documents(bank, loaded, [Document("a", new)], progress=look, batch_tokens=64)
    look()
    assert len(seen) > 4
    assert {*seen} <= {old, new} and seen == sorted(seen, key=lambda text: text == new) and seen[-1] == new


def test_documents_of_one_name_live_in_several_namespaces(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str]
) -> None:
    for namespace in ("ann", "bob"):
        report = add_documents(bank, loaded, [Document("a", "the same text")], namespace=namespace)
        assert (report.added, report.unchanged) == (1, 0)
    add_documents(bank, loaded, [Document("a", "another text")], namespace="bob")
    texts = {name: [found.text for found, *_ in read_bank(bank, name)] for name in (DEFAULT, "ann", "bob")}
    assert texts == {DEFAULT: [], "ann": ["the same text"], "bob": ["another text"]}
    assert len(encoded) == 3


# --- interruption ---------------------------------------------------------------------------------------------------


def test_an_interrupted_run_over_long_documents_keeps_most_of_what_it_encoded(
    bank: MemoryBank, loaded: LoadedModel
) -> None:
    generator = random.Random(0)
    corpus = [Document(str(number), _text(generator, 80)) for number in range(8)]
    stops = itertools.count(1)
    report = add_documents(bank, loaded, corpus, batch_tokens=256, should_stop=lambda: next(stops) == 12)
    assert report.interrupted and report.documents
    counts = bank.catalog.counts()
    assert counts.documents - counts.pending == report.documents, "parts of a long document are kept, too"


def test_long_documents_are_committed_on_the_way(bank: MemoryBank, loaded: LoadedModel) -> None:
    generator = random.Random(0)
    corpus = [Document(str(number), _text(generator, 80)) for number in range(8)]
    left: list[int] = []
    options: dict[str, Any] = {"progress": lambda report: left.append(num_pending(bank.catalog, DEFAULT))}
    add_documents(bank, loaded, corpus, batch_tokens=256, commit_seconds=0, **options)
    assert len({*left}) > 3 and left[1:] == sorted(left[1:], reverse=True)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["model", "corpus", "progress"])
def test_a_failure_in_the_middle_keeps_what_was_committed(
    bank: MemoryBank,
    loaded: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    encoded: list[str],
    where: str,
    error: BaseException,
) -> None:
    monkeypatch.setattr(add, "_WINDOW_DOCUMENTS", 3)
    monkeypatch.setattr(add, "_WINDOW_SECONDS", float("inf"))
    corpus = _corpus(10)
    watched, calls = loaded.model.encode, itertools.count()

    def fail_third(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise error
        return watched(*arguments) if arguments and where == "model" else None

    def stream() -> Iterator[Document]:
        for number, document in enumerate(corpus):
            if number == 7:
                raise error
            yield document

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        if where == "model":
            patched.setattr(loaded.model, "encode", fail_third)
        add_documents(
            bank,
            loaded,
            stream() if where == "corpus" else corpus,
            progress=fail_third if where == "progress" else lambda report: None,
            commit_seconds=0,
            batch_tokens=64,
        )
    # The texts come first; progress is told after each three of them.
    kept = {"model": 10, "corpus": 7, "progress": 9}[where]
    assert list(_without_ids(bank)) == [document.external_id for document in corpus[:kept]]
    done = kept - num_pending(bank.catalog, DEFAULT)
    assert (done > 0) == (where == "model") and verify(bank) == []
    encoded.clear()
    report = add_documents(bank, loaded, corpus)
    assert (report.added, report.unchanged, report.documents, len(encoded)) == (10 - kept, kept, 10 - done, 10 - done)
    assert len(_without_ids(bank)) == 10
    _assert_latents_are_those_of_the_model(bank, loaded)


def test_a_run_whose_commit_fails_can_be_repeated(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = _corpus(6)
    add_documents(bank, loaded, corpus[:2])
    before = read_bank(bank)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("memspan.bank.files.save_file", full)
        with pytest.raises(BankError, match="No space left"):
            add_documents(bank, loaded, corpus)
    assert read_bank(bank)[:2] == before
    assert [keys for _, keys, _ in read_bank(bank)[2:]] == [b""] * 4, "their texts are there"
    report = add_documents(bank, loaded, corpus)
    assert (report.added, report.unchanged, report.documents) == (0, 6, 4)
    _assert_latents_are_those_of_the_model(bank, loaded)


# --- another model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        ({"seed": 1}, {"encoder_fingerprint"}),
        ({"chunk_size": 8}, {"encoder_fingerprint", "chunk_size"}),
        ({"msa_layers": [1, 3]}, {"encoder_fingerprint", "msa_layers"}),
        ({"similarity": "dot"}, {"encoder_fingerprint", "similarity"}),
        ({"max_document_tokens": 32}, {"max_document_tokens"}),
    ],
)
def test_a_bank_of_another_model_is_refused_and_left_alone(
    bank: MemoryBank, loaded: LoadedModel, encoded: list[str], other: dict[str, Any], fields: set[str]
) -> None:
    add_documents(bank, loaded, _corpus(2))
    before = read_bank(bank)
    stranger = tiny_loaded(**({"max_document_tokens": MAX_TOKENS} | other))
    with pytest.raises(BankMismatch, match="--model") as raised:
        add_documents(bank, stranger, _corpus(4))
    named = Counter(line.strip().partition(":")[0] for line in str(raised.value).splitlines()[1:-1])
    assert named == Counter(fields)
    assert read_bank(bank) == before


def test_a_change_of_the_query_side_keeps_a_bank_valid_and_one_of_the_document_side_does_not(
    bank: MemoryBank,
) -> None:
    twin = tiny_loaded(max_document_tokens=MAX_TOKENS)
    weights = dict(twin.model.named_parameters())
    with torch.no_grad():
        for name in weights:
            if "router_q_proj" in name:
                weights[name].zero_()
    assert add_documents(bank, twin, _corpus(2)).added == 2
    with torch.no_grad():
        weights[next(name for name in weights if "router_k_proj" in name)].mul_(1.5)
    with pytest.raises(BankMismatch, match="encoder_fingerprint"):
        add_documents(bank, twin, _corpus(2))
