"""What a question may see: its namespace and its scope, on every path, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, endless_loaded, random_latents, read_latents, tiny_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from memspan.bank.bank import MemoryBank
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.encode import manifest_of
from memspan.bank.manifest import Manifest
from memspan.bank.scope import Scope
from memspan.errors import BankError, EmptyBank, FilterError, UnknownDocument
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.routing.local import LocalMemory
from memspan.text.template import Context, Passage, PromptTemplate
from memspan.types import Answer, Document, Evidence, Retrieved

SELECTORS = ("router", "lexical", "hybrid")

SHORT = Sampling(max_new_tokens=3)
ANIMALS = ("otter", "heron", "badger", "newt", "falcon", "lynx", "marmot", "viper", "ibis", "gecko", "stoat", "raven")
CITIES = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Quito", "Paris", "Tokyo", "Delhi", "Accra", "Kyiv", "Riga")
# One sentence of as many words for each, so that full-text search ranks them alike in a bank of any size.
DOCUMENTS = [
    Document(
        f"{animal}-{year}",
        f"In {year} the {animal} saw a river near {city}.",
        metadata={"city": city, "year": year, "group": "xyz"[place % 3]},
        date=f"{year}-05-{place + 1:02}",
    )
    for year in (2021, 2022)
    for place, (animal, city) in enumerate(zip(ANIMALS, CITIES, strict=True))
]
QUESTIONS = ("Which river is it?", "Where was the lynx at the river?")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return endless_loaded()


@dataclass
class Seen:
    """All that a model was shown: documents it could attend to, and their texts.

    Attributes:
        routed: per call of `route` and question the chosen ids.
        passages: of every context made.
    """

    routed: list[tuple[int, ...]] = field(default_factory=list)
    considered: set[int] = field(default_factory=set)
    passages: list[Passage] = field(default_factory=list)

    @property
    def ids(self) -> set[int]:
        return {number for ids in self.routed for number in ids} | {p.document_id for p in self.passages}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()
    route, true_context = LocalMemory.route, PromptTemplate.context

    def recording(self: LocalMemory, layer: int, *args: Any) -> Retrieved:
        retrieved = route(self, layer, *args)
        seen.routed += retrieved.doc_ids
        seen.considered |= {number for found in self.candidates[layer] for number in found.ids.tolist()}
        return retrieved

    def context(self: PromptTemplate, question: str, passages: Any = (), *more: Any, **named: Any) -> Context:
        seen.passages += passages
        return true_context(self, question, passages, *more, **named)

    monkeypatch.setattr(LocalMemory, "route", recording)
    monkeypatch.setattr(PromptTemplate, "context", context)
    return seen


def _part_of(
    bank: MemoryBank, folder: Path, keep: Collection[str] | None = None, namespace: str = "default"
) -> MemoryBank:
    """A bank that holds only these sources of a namespace (or all), under the same ids, in the default one."""
    fresh, latents = MemoryBank.create(folder, bank.manifest), read_latents(bank, namespace)
    with fresh.writer() as writer:
        for source in bank.catalog.sources(namespace):
            if keep is None or source.document.external_id in keep:
                parts = bank.catalog.documents_of(namespace, source.document.external_id)
                documents = tuple(NewDocument(part.id, part.span, part.tokens) for part in parts)
                writer.add(NewSource(source.document, documents), [latents[part.id] for part in parts])
        writer.commit()
    return fresh


def _told(answer: Answer) -> tuple[Any, ...]:
    """An answer without what depends on the clock or, by full-text search, on the size of the bank."""
    evidence = [dataclasses.replace(item, score=0.0) for item in answer.evidence]
    return answer.text, evidence, answer.selector, answer.finish_reason, answer.num_prompt_tokens


def _stream(memory: Memory, question: str, **options: Any) -> Answer:
    answers: list[Answer] = []
    text = "".join(memory.stream(question, on_answer=answers.append, **options))
    assert text.strip() == answers[0].text
    return answers[0]


# --- a scope is the bank that holds nothing else --------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """In several segments, with a document that is deleted."""
    bank = MemoryBank.create(tmp_path_factory.mktemp("filled") / "bank", manifest_of(loaded))
    memory = Memory(bank, loaded)
    for first in range(0, len(DOCUMENTS), 7):
        memory.add(DOCUMENTS[first : first + 7])
    memory.add([Document("gone", "A river that is gone.", metadata={"group": "x", "year": 2021}, date="2021-01-01")])
    memory.delete(["gone"])
    yield bank
    bank.close()


SCOPES: dict[str, tuple[dict[str, Any] | None, str | None]] = {
    "one field": ({"group": "y"}, None),
    "an interval": ({"date": {">=": "2021-05-10", "<": "2022-05-03"}}, None),
    "several fields": ({"year": {">": 2021}, "city": {"!=": "Oslo"}}, None),
    "as of": (None, "2021-05-06"),
    "both": ({"group": {"in": ["x", "z"]}}, "2022-05-04T12:00"),
    "one document": ({"external_id": "lynx-2022"}, None),
}


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("selector", SELECTORS)
def test_a_question_in_a_scope_is_answered_as_by_a_bank_that_holds_nothing_else(
    filled: MemoryBank, loaded: LoadedModel, tmp_path: Path, selector: str, scope: str, seen: Seen
) -> None:
    where, as_of = SCOPES[scope]
    sources = list(filled.catalog.sources("default", Scope.parse(where, as_of)))
    names = {source.document.external_id for source in sources}
    allowed = {filled.catalog.documents_of("default", name)[0].id for name in names}
    assert 0 < len(allowed) < len(DOCUMENTS) // 4 * 3, "else it is hardly a scope"
    fresh, memory = Memory(_part_of(filled, tmp_path / "fresh", names), loaded), Memory(filled, loaded)
    # What is found by words routes nothing before the answer.
    options: Any = {"selector": selector, "sampling": SHORT, "route_answer": selector == "lexical"}
    for question, max_documents in ((QUESTIONS[0], 5), (QUESTIONS[1], 2), (QUESTIONS[0], 0)):
        options["max_documents"] = max_documents
        seen.__init__()
        answer = memory.ask(question, where=where, as_of=as_of, **options)
        assert seen.ids <= allowed and seen.considered <= allowed and seen.routed
        streamed = _stream(memory, question, where=where, as_of=as_of, **options)
        (batched, _) = memory.ask_batch([question, "other words"], where=where, as_of=as_of, **options)
        assert seen.ids <= allowed and seen.considered <= allowed
        expected = fresh.ask(question, **options)
        assert _told(answer) == _told(streamed) == _told(expected)
        assert [item.document_id for item in batched.evidence] == [item.document_id for item in expected.evidence]
        found = memory.search(question, selector=selector, where=where, as_of=as_of, limit=30)
        searched = fresh.search(question, selector=selector, limit=30)
        assert [(item.document_id, item.layers) for item in found] == [(i.document_id, i.layers) for i in searched]
        assert {item.document_id for item in found} <= allowed
        if selector == "router":  # its scores do not depend on what else there is
            assert found == searched
            assert [item.score for item in answer.evidence] == [item.score for item in expected.evidence]
    fresh.close()


@pytest.mark.parametrize("scope", SCOPES)
def test_full_text_search_in_a_scope_is_the_whole_ranking_without_the_others(
    filled: MemoryBank, loaded: LoadedModel, scope: str
) -> None:
    where, as_of = SCOPES[scope]
    memory = Memory(filled, loaded)
    names = {source.document.external_id for source in filled.catalog.sources("default", Scope.parse(where, as_of))}
    for question in QUESTIONS:
        whole = [item for item in memory.search(question, selector="lexical", limit=99) if item.external_id in names]
        for limit in (1, 3, 99):
            found = memory.search(question, selector="lexical", where=where, as_of=as_of, limit=limit)
            assert found == whole[:limit]
        assert whole


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_scope_that_nothing_matches_finds_nothing_and_cannot_be_asked(
    filled: MemoryBank, loaded: LoadedModel, selector: str
) -> None:
    memory = Memory(filled, loaded)
    for options in ({"where": {"group": "q"}}, {"as_of": "2020-01-01"}, {"where": {"year": "2021"}}):
        options: Any
        assert memory.search("river", selector=selector, **options) == []
        for ask in (memory.ask, lambda question, **more: list(memory.stream(question, **more))):
            with pytest.raises(EmptyBank, match=r"no document of .* is in the scope of the filter; widen it"):
                ask("river", selector=selector, **options)
    for call in (memory.search, memory.ask, lambda question, **more: list(memory.stream(question, **more))):
        with pytest.raises(FilterError, match="no document has a field 'grup'; there are, among others: city, date"):
            call("river", selector=selector, where={"grup": "x"})
        with pytest.raises(FilterError, match=r"as_of: .*date"):
            call("river", selector=selector, as_of="soon")
        with pytest.raises(FilterError, match="operator 'like'"):
            call("river", selector=selector, where={"group": {"like": "x"}})


# --- namespaces -----------------------------------------------------------------------------------------------------


SECRET = "zanzibar"
OF_A = [
    *(dataclasses.replace(document, text=f"{document.text[:-1]} by {SECRET}.") for document in DOCUMENTS[:12]),
    Document("a-only", f"The {SECRET} river.", f"{SECRET} title", {"of_a": SECRET, "group": "x"}, "2021-01-01"),
]
OF_B = [
    *DOCUMENTS[6:18],
    Document("b-only", "The lynx and the river of B.", metadata={"group": "x"}, date="2020-01-01"),
]


@pytest.fixture
def both(loaded: LoadedModel, tmp_path: Path) -> Iterator[tuple[Memory, Memory]]:
    """Two namespaces of one bank: `A` and `B`. Some external ids are in both, the ids of their documents alternate."""
    a = Memory(MemoryBank.create(tmp_path / "both", manifest_of(loaded)), loaded, namespace="A")
    b = a.in_namespace("B")
    for first in range(0, len(OF_A), 6):
        a.add(OF_A[first : first + 6])
        b.add(OF_B[first : first + 6])
    yield a, b
    a.close()


def _ids(memory: Memory) -> set[int]:
    return {stored.id for stored in memory.bank.catalog.page(memory.namespace, 0, 1000)}


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_question_in_one_namespace_is_answered_as_if_there_were_no_other(
    both: tuple[Memory, Memory], loaded: LoadedModel, tmp_path: Path, selector: str, seen: Seen
) -> None:
    a, b = both
    alone = Memory(_part_of(b.bank, tmp_path / "alone", namespace="B"), loaded)
    assert _ids(b) == _ids_of_default(alone) and not _ids(a) & _ids(b)
    for question in (*QUESTIONS, SECRET, f"Where is the {SECRET} title?"):
        options: Any = {"selector": selector, "sampling": SHORT, "route_answer": selector == "lexical"}
        seen.__init__()
        answers = [b.ask(question, **options), _stream(b, question, **options), *b.ask_batch([question], **options)]
        found = b.search(question, selector=selector, limit=50)
        scoped = b.search(question, selector=selector, limit=50, where={"group": "x"})
        assert seen.ids <= _ids(b) and seen.considered <= _ids(b) and seen.routed
        assert {item.document_id for item in (*found, *scoped)} <= _ids(b)
        assert SECRET not in repr([seen.passages, found, scoped, [answer.evidence for answer in answers]])
        # Bit for bit, scores of full-text search, too: its statistics are the namespace's own.
        expected = alone.ask(question, **options)
        for answer in answers:
            assert (answer.text, answer.evidence) == (expected.text, expected.evidence)
        assert found == alone.search(question, selector=selector, limit=50)
        assert scoped == alone.search(question, selector=selector, limit=50, where={"group": "x"})
    assert any(SECRET in item.text for item in a.search(SECRET, selector=selector)), "A finds it"
    alone.close()


def _ids_of_default(memory: Memory) -> set[int]:
    return {stored.id for stored in memory.bank.catalog.page("default", 0, 1000)}


def test_documents_of_another_namespace_cannot_be_read_changed_or_told_from_none(both: tuple[Memory, Memory]) -> None:
    a, b = both
    before = [stored for stored in a.bank.catalog.page("A", 0, 1000)]
    (of_a,) = a.bank.catalog.documents_of("A", "a-only")
    for call in (
        b.get,
        lambda key: b.delete([key]),
        lambda key: b.delete(["b-only", key]),
        lambda key: b.update(key, text="x"),
    ):
        messages = []
        for unknown in ("a-only", of_a.id, "nothing", 10**12):
            with pytest.raises(UnknownDocument) as refused:
                call(unknown)
            messages.append(str(refused.value).replace(f"document {unknown!r} in", "document ID in"))
        assert len(set(messages)) == 1, "an id of A is as unknown as one that never was"
        assert "'B'" in messages[0] and SECRET not in messages[0] and "'A'" not in messages[0]
    assert b.get("b-only").text == "The lynx and the river of B.", "what was asked with an unknown id was not done"
    assert a.bank.catalog.page("A", 0, 1000) == before
    # A name that both have is each one's own.
    assert SECRET in a.get("raven-2021").text != b.get("raven-2021").text
    listed = b.bank.catalog.page("B", 0, 1000)
    assert SECRET not in repr(listed) and {stored.external_id for stored in listed} == {d.external_id for d in OF_B}
    assert b.bank.catalog.documents("B", sorted(_ids(a) | _ids(b))) == listed
    assert SECRET not in repr(list(b.bank.catalog.sources("B")))
    assert b.bank.catalog.counts("B").documents == len(OF_B)
    with pytest.raises(FilterError) as refused:
        b.search("river", where={"of_a": SECRET})
    assert "there are, among others: city, date, external_id, group, title, year" in str(refused.value)
    assert b.add([Document("a-only", "of B")], existing="refuse").added == 1, "no name of A is taken"
    assert a.bank.catalog.page("A", 0, 1000) == before


def test_a_namespace_that_holds_nothing_is_empty_whatever_others_hold(both: tuple[Memory, Memory]) -> None:
    other = both[0].in_namespace("C")
    for call in (other.ask, other.search, lambda question: list(other.stream(question))):
        with pytest.raises(EmptyBank, match=r"namespace 'C' of .* holds no documents; .* --namespace C") as refused:
            call("river")
        assert SECRET not in str(refused.value)
    with pytest.raises(UnknownDocument, match="namespace 'C'"):
        other.get("a-only")
    assert other.bank.catalog.page("C", 0, 10) == []
    other.close()


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\0", "x" * 201, "\ud800"])
def test_a_name_that_no_namespace_can_have_is_refused(both: tuple[Memory, Memory], name: str) -> None:
    with pytest.raises(BankError, match="a namespace needs a printable name"):
        both[0].in_namespace(name)
    with pytest.raises(BankError, match="a namespace needs a printable name"), both[0].bank.writer(name):
        pass


def test_namespaces_whose_names_look_alike_are_different_ones(loaded: LoadedModel, tmp_path: Path) -> None:
    names = ["a", "A", "a ", "é", "e\u0301", "%", "_", "'", '"', "1", "default", "words_1", "x" * 200]
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        for name in names:
            memory.in_namespace(name).add([Document("same", f"the river of number {names.index(name)}")])
        assert sorted(memory.bank.catalog.namespaces()) == sorted(names)
        for number, name in enumerate(names):
            for selector in SELECTORS:
                (found,) = memory.in_namespace(name).search("river", selector=selector)
                assert found.text == f"the river of number {number}"


def _state(memory: Memory) -> list[Any]:
    """Everything that questions in a namespace bring to light, to the bit."""
    return [
        *(memory.search(question, selector=name, limit=50) for question in QUESTIONS for name in SELECTORS),
        *((answer.text, answer.evidence) for answer in memory.ask_batch(QUESTIONS, selector="hybrid", sampling=SHORT)),
        memory.bank.catalog.page(memory.namespace, 0, 1000),
        memory.bank.catalog.counts(memory.namespace).documents,
    ]


def test_whatever_happens_in_one_namespace_the_other_stays_as_it_is_to_the_bit(both: tuple[Memory, Memory]) -> None:
    a, b = both
    before = _state(a)
    changes: list[Callable[[], object]] = [
        lambda: b.add(
            [Document(f"new-{n}", f"The river and the lynx number {n}.", date="2021-01-01") for n in range(9)]
        ),
        lambda: [b.add([Document(f"single-{n}", f"Single river {n}.", date="2021-01-01")]) for n in range(9)],
        lambda: b.add([dataclasses.replace(OF_B[0], text="Another river.")]),
        lambda: b.update("lynx-2022", metadata={"group": "other"}),
        lambda: b.delete([document.external_id for document in OF_B[:9]]),
        lambda: b.delete([b.search("single river")[0].document_id]),
        lambda: a.bank.compact(),
        lambda: b.delete([stored.external_id for stored in b.bank.catalog.page("B", 0, 1000)]),
        lambda: a.bank.compact(secure=True, timeout=0),
        lambda: b.add(OF_B),
    ]
    for number, change in enumerate(changes):
        change()
        assert _state(a) == before, number
    of_b = _state(b)
    a.delete(["raven-2021", "a-only"])
    assert _state(b) == of_b
    assert b.get("raven-2021") == DOCUMENTS[11]
    with pytest.raises(UnknownDocument):
        a.get("raven-2021")


def test_another_namespace_shares_the_bank_and_closing_it_leaves_the_first_open(both: tuple[Memory, Memory]) -> None:
    a, b = both
    assert (b.bank, b.loaded) == (a.bank, a.loaded)
    before = _state(a)
    b.close()
    with a.in_namespace("B") as again:
        assert again.search("river")
    assert _state(a) == before


# --- random interleavings -------------------------------------------------------------------------------------------


MANIFEST = tiny_manifest()
NAMES = ("p", "q", "r", "s")
WORDS = ("river", "lynx", "stone")
ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("AB"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("add"), st.sampled_from("AB"), st.sampled_from(NAMES), st.integers(0, 3)),
    st.tuples(st.just("delete"), st.sampled_from("AB"), st.sampled_from(NAMES), st.just(0)),
    st.tuples(st.just("compact"), st.just("A"), st.just(""), st.just(0)),
)


def _document(name: str, version: int) -> Document:
    text = " ".join(WORDS[: version + 1]) + f" {name}" * (version + 1)
    return Document(name, text, metadata={"version": version}, date=f"2026-01-0{version + 1}")


def _do(bank: MemoryBank, action: tuple[str, str, str, int], namespace: str, manifest: Manifest = MANIFEST) -> None:
    what, _, name, version = action
    if what == "compact":
        bank.compact()
    elif what == "add":
        document = _document(name, version)
        torch.manual_seed(int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:4]))
        with bank.writer(namespace) as writer:
            add_latents(writer, document, random_latents(manifest, version + 1))
            writer.commit()
    elif bank.catalog.hashes(namespace, name):
        bank.delete([name], namespace)


def _answers(bank: MemoryBank, namespace: str, queries: torch.Tensor) -> list[Any]:
    """Full-text search and routing of a namespace, by external ids, with their scores to the bit."""
    found: list[Any] = []
    with bank.snapshot(namespace) as snapshot:
        for scope in (Scope(), Scope.parse({"version": {">": 0}}), Scope.parse(as_of="2026-01-02")):
            try:
                selectable_N = snapshot.selectable_mask(scope)
            except FilterError as error:
                found.append(str(error))
                continue
            memory = LocalMemory(snapshot.shards, MANIFEST, 2, selectable_N=selectable_N)
            retrieved = [memory.route(layer, queries, torch.ones(queries.shape[:2]).bool()) for layer in (1, 3)]
            named = {stored.id: stored.external_id for stored in snapshot.documents(_routed(retrieved))}
            found += [[[named[i] for i in ids] for ids in of_layer.doc_ids] for of_layer in retrieved]
            found += [of_layer.scores for of_layer in retrieved]
            for word in WORDS:
                lexical = snapshot.search(word, 10, scope)
                texts = snapshot.documents([number for number, _ in lexical])
                found.append([(stored.external_id, score) for stored, (_, score) in zip(texts, lexical, strict=True)])
    return found


def _routed(retrieved: list[Retrieved]) -> list[int]:
    return sorted({number for found in retrieved for ids in found.doc_ids for number in ids})


@given(st.lists(ACTIONS, min_size=1, max_size=12))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_interleaved_namespaces_equal_banks_of_their_own(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str, str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("interleaved")
    banks = {name: MemoryBank.create(folder / name, MANIFEST) for name in ("both", "A", "B")}
    model: dict[str, dict[str, int]] = {"A": {}, "B": {}}
    for action in actions:
        what, namespace, name, version = action
        _do(banks["both"], action, namespace)
        if what != "compact":
            _do(banks[namespace], action, "default")
        if what == "add":
            model[namespace].pop(name, None)
            model[namespace][name] = version
        elif what == "delete":
            model[namespace].pop(name, None)
    queries = torch.randn(2, 2, 6, MANIFEST.head_dim, generator=torch.Generator().manual_seed(1))
    for namespace, expected in model.items():
        sources = banks["both"].catalog.sources(namespace)
        assert [source.document for source in sources] == list(itertools.starmap(_document, expected.items()))
        assert _answers(banks["both"], namespace, queries) == _answers(banks[namespace], "default", queries)
    for bank in banks.values():
        bank.close()


def test_evidence_names_documents_of_its_own_namespace_by_both_ids(both: tuple[Memory, Memory]) -> None:
    a, b = both
    for memory, given_ in ((a, OF_A), (b, OF_B)):
        documents = {document.external_id: document for document in given_}
        for selector in SELECTORS:
            found: list[Evidence] = memory.search("Where was the lynx at the river?", selector=selector, limit=50)
            assert found
            for item in found:
                assert memory.get(item.document_id) == memory.get(item.external_id) == documents[item.external_id]
