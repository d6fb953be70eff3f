"""Any sequence of changes leaves what a dictionary would hold, and what a bank freshly built of it would answer."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import bits, examples_here, latents_in, read_bank, tiny_loaded
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.edits import NewDocument
from memspan.bank.encode import Part, encode_batch, manifest_of
from memspan.bank.reencode import reencode
from memspan.bank.snapshot import Snapshot
from memspan.bank.verify import verify
from memspan.errors import BankBusy, BankMismatch, UnknownDocument
from memspan.model.convert import LoadedModel
from memspan.types import Document

NAMES = ("a", "b", "c", "d", "e")
NAMESPACES = ("default", "other")
WORDS = ("alpha", "beta", "gamma", "delta", "run", "running", "über")

Latents = tuple[bytes, bytes]


@functools.cache
def _model(number: int) -> LoadedModel:
    """One of three models; the last cuts texts elsewhere."""
    return tiny_loaded(seed=number, max_document_tokens=(64, 64, 44)[number])


@functools.cache
def _alone(number: int, document_id: int, text: str) -> Latents:
    """The latents of a text under an id, encoded in a batch of its own."""
    loaded = _model(number)
    tokens = loaded.template.document(document_id, text)
    part = Part(NewDocument(document_id, None, len(tokens)), tokens, 0)  # type: ignore[arg-type] # nobody asks its span
    encode_batch(loaded, [part])
    assert part.latents is not None
    return bits(part.latents)


def _one_by_one(parts: Sequence[Part], batch_tokens: int) -> list[list[Part]]:
    return [[part] for part in parts]


@dataclass
class Kept:
    """A snapshot that is kept open, and what it saw when it was taken."""

    snapshot: Snapshot
    ids: list[int]
    seen: Any


texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)
long_texts = st.builds(lambda text: ". ".join([text, *WORDS[:4]] * 2) + ".", texts)
documents = st.builds(
    Document,
    st.sampled_from(NAMES),
    st.one_of(texts, texts, long_texts),
    st.sampled_from(["", "Title"]),
    st.fixed_dictionaries({}, optional={"n": st.integers(0, 3)}),
    st.sampled_from(["2026-01-01", "2026-01-02T10:00:00"]),
)
namespaces = st.sampled_from(NAMESPACES)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        # In another batch its last bits may be others.
        self.patch.setattr("memspan.bank.encode.batches", _one_by_one)
        self.folder = tempfile.TemporaryDirectory()
        self.number = 0
        self.bank = MemoryBank.create(Path(self.folder.name) / "bank", manifest_of(_model(0)))
        self.reader = MemoryBank.open(self.bank.folder)
        # Per namespace: live documents in the order of adding, and the ids of their parts.
        self.live: dict[str, dict[str, Document]] = {namespace: {} for namespace in NAMESPACES}
        self.ids: dict[str, dict[str, list[int]]] = {namespace: {} for namespace in NAMESPACES}
        self.highest = 0
        self.kept: list[Kept] = []

    def teardown(self) -> None:
        try:
            for kept in self.kept:
                self._check_kept(kept)
                kept.snapshot.close()
            self._compare_with_a_fresh_bank()
            self.bank.compact(secure=True)
            self.the_bank_holds_what_the_dictionary_holds()
        finally:
            self.bank.close()
            self.reader.close()
            self.patch.undo()
            self.folder.cleanup()

    # --- changes

    @rule(namespace=namespaces, given=st.lists(documents, min_size=1, max_size=3))
    def add(self, namespace: str, given: list[Document]) -> None:
        last = {document.external_id: document for document in given}
        add_documents(self.bank, _model(self.number), last.values(), namespace=namespace)
        highest = self.highest
        # Sources are in the order of their numbers.
        numbers = {each.document.external_id: each.id for each in self.bank.catalog.sources(namespace)}
        for document in sorted(last.values(), key=lambda document: numbers[document.external_id]):
            self.highest = max(self.highest, self._expect(namespace, document, highest))

    @rule(namespace=namespaces, number=st.integers(0, 9), metadata=st.integers(4, 9))
    def update_only_metadata(self, namespace: str, number: int, metadata: int) -> None:
        if self.live[namespace]:
            name = list(self.live[namespace])[number % len(self.live[namespace])]
            changed = replace(self.live[namespace][name], metadata={"n": metadata}, date="2025-12-31")
            report = add_documents(self.bank, _model(self.number), [changed], namespace=namespace)
            assert report.documents == 0, "nothing is encoded"
            self.live[namespace][name] = changed

    @rule(namespace=namespaces, number=st.integers(0, 9), by_id=st.booleans())
    def delete(self, namespace: str, number: int, by_id: bool) -> None:
        if self.live[namespace]:
            name = list(self.live[namespace])[number % len(self.live[namespace])]
            parts = self.ids[namespace].pop(name)
            assert self.bank.delete([parts[number % len(parts)] if by_id else name], namespace) == 1
            del self.live[namespace][name]
            with pytest.raises(UnknownDocument):
                self.bank.delete([parts[0]], namespace)

    @rule(secure=st.booleans())
    def compact(self, secure: bool) -> None:
        if secure and self.kept:
            with pytest.raises(BankBusy, match=r"pid|a reader holds"):
                self.bank.compact(secure=True, timeout=0)
        else:
            self.bank.compact(secure=secure)
            assert all(self.bank.catalog.counts(namespace).segments <= 1 for namespace in NAMESPACES)
            assert self.bank.catalog.counts().deleted_documents == 0

    @rule()
    def reopen(self) -> None:
        for kept in self.kept:  # they belong to this handle
            self._check_kept(kept)
            kept.snapshot.close()
        self.kept.clear()
        self.bank.close()
        self.bank = MemoryBank.open(self.bank.folder)

    @rule(number=st.integers(0, 2), stop=st.sampled_from([0, 0, 1, 3]))
    def reencode(self, number: int, stop: int) -> None:
        told: list[Any] = []
        should_stop = (lambda: len(told) >= stop) if stop else (lambda: False)
        report = reencode(
            self.bank, _model(number), progress=told.append, should_stop=should_stop, batch_tokens=1, commit_seconds=0.0
        )
        if report.interrupted or number == self.number:
            return
        self.number = number
        with pytest.raises(BankMismatch):
            self.reader.snapshot()
        self.reader.close()
        self.reader = MemoryBank.open(self.bank.folder)
        for namespace, ids in self.ids.items():
            for name, parts in ids.items():
                now = [part.id for part in self.bank.catalog.documents_of(namespace, name)]
                assert now == parts or min(now) > self.highest
                ids[name] = now
        self.highest = max(
            [self.highest, *(number for ids in self.ids.values() for now in ids.values() for number in now)]
        )

    # --- looks

    @rule(namespace=namespaces)
    @precondition(lambda self: len(self.kept) < 2)
    def keep_a_snapshot(self, namespace: str) -> None:
        snapshot = self.bank.snapshot(namespace)
        ids = sorted(number for parts in self.ids[namespace].values() for number in parts)
        self.kept.append(Kept(snapshot, ids, self._seen_by(snapshot, ids)))

    @rule()
    @precondition(lambda self: self.kept)
    def let_a_snapshot_go(self) -> None:
        kept = self.kept.pop(0)
        self._check_kept(kept)
        kept.snapshot.close()

    @rule(namespace=namespaces, question=texts)
    def search(self, namespace: str, question: str) -> None:
        with self.bank.snapshot(namespace) as snapshot:
            found = snapshot.search(question, 100)
            stored = {document.id: document for document in snapshot.documents([number for number, _ in found])}
        assert len(stored) == len(found)
        wanted = set(question.split()) & set(WORDS[:4])
        holding = {
            number
            for name, parts in self.ids[namespace].items()
            for number in parts
            if any(word in self._text_of(namespace, name, number) for word in wanted)
        }
        assert holding <= set(stored)

    @invariant()
    def the_bank_holds_what_the_dictionary_holds(self) -> None:
        for namespace in NAMESPACES:
            sources = [source.document for source in self.bank.catalog.sources(namespace)]
            assert sources == list(self.live[namespace].values())
            content = read_bank(self.bank, namespace)
            assert read_bank(self.reader, namespace) == content, "a reader that stays open sees the same"
            assert sorted(number for parts in self.ids[namespace].values() for number in parts) == [
                stored.id for stored, *_ in content
            ]
            for stored, *latents in content:
                assert tuple(latents) == _alone(self.number, stored.id, stored.encoded_text)
        assert verify(self.bank) == []

    # --- helpers

    def _expect(self, namespace: str, document: Document, highest: int) -> int:
        """A document was given: it is as it was, or new, with ids above `highest`; returns the last of its ids."""
        name = document.external_id
        known = self.live[namespace].get(name)
        parts = self.bank.catalog.documents_of(namespace, name)
        assert "".join(part.text for part in parts) == document.text
        # One text that was another in between, in one call, is a new one.
        if known is None or known.text_hash != document.text_hash or self.ids[namespace][name] != [p.id for p in parts]:
            self.live[namespace].pop(name, None)
            assert min(part.id for part in parts) > highest, "no id is given twice"
            self.ids[namespace][name] = [part.id for part in parts]
        self.live[namespace][name] = document
        return max(self.ids[namespace][name])

    def _text_of(self, namespace: str, name: str, number: int) -> str:
        return next(part.text for part in self.bank.catalog.documents_of(namespace, name) if part.id == number)

    def _seen_by(self, snapshot: Snapshot, ids: list[int]) -> Any:
        latents = {
            number: bits(latents_in(shard, index))
            for shard in snapshot.shards
            for index, number in enumerate(shard.ids_N.tolist())
            if shard.live_N[index]
        }
        return latents, snapshot.documents(ids), snapshot.search(" ".join(WORDS), 100), snapshot.num_documents

    def _check_kept(self, kept: Kept) -> None:
        assert self._seen_by(kept.snapshot, kept.ids) == kept.seen, "a snapshot sees its moment"
        assert sorted(kept.seen[0]) == kept.ids

    def _compare_with_a_fresh_bank(self) -> None:
        """Full-text search scores as in a bank built now of the same documents, in the order they were added."""
        fresh = MemoryBank.create(Path(self.folder.name) / "fresh", manifest_of(_model(self.number)))
        for namespace, live in self.live.items():
            add_documents(fresh, _model(self.number), live.values(), namespace=namespace)
            for question in (*WORDS[:5], " ".join(WORDS)):
                assert _ranking(self.bank, namespace, question) == _ranking(fresh, namespace, question)
        fresh.close()


def _ranking(bank: MemoryBank, namespace: str, question: str) -> list[tuple[float, str, int]]:
    """Scores and parts of what is found; of equal scores by name, for ids (which break ties) may differ."""
    with bank.snapshot(namespace) as snapshot:
        found = snapshot.search(question, 100)
        stored = snapshot.documents([number for number, _ in found])
    return sorted(
        (-round(score, 9), document.external_id, document.span.start)
        for (_, score), document in zip(found, stored, strict=True)
    )


def test_any_sequence_of_changes_leaves_what_a_dictionary_and_a_fresh_bank_hold() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples_here(40),
            stateful_step_count=16,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=(Phase.explicit, Phase.generate),
        ),
    )
