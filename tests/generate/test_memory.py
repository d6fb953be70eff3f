from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save_backbone, tiny_loaded

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import BankError, BankMismatch, EmptyBank, MemspanError, QuestionError
from memspan.generate.finder import Finder
from memspan.generate.interleave import MIN_SHARE
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel, convert
from memspan.routing.local import LocalMemory
from memspan.routing.selector import SELECTORS
from memspan.text.template import Context, Passage, encoded_text
from memspan.types import Answer, Document, Retrieved, Span

SHORT = Sampling(max_new_tokens=8)
SAMPLED = Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3)
CITIES = ("Rome", "Oslo", "Lima", "Bern", "Cairo", "Quito", "Paris", "Tokyo", "Delhi", "Accra")
ANIMALS = ("otter", "heron", "badger", "newt", "falcon", "lynx", "marmot", "viper", "ibis", "gecko")
DOCUMENTS = [
    Document(f"{city}.txt", f"The {animal} of {city} lives at number {place}.", city, {"place": place})
    for place, (city, animal) in enumerate(zip(CITIES, ANIMALS, strict=True))
] + [Document(f"note-{place}", f"A note about {city} and the {city} river.") for place, city in enumerate(CITIES)]
QUESTIONS = [
    "Where does the otter live?",
    "Tell me of the Paris river",
    "lynx",
    "What about Tokyo, and the ibis of Delhi?",
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A model that never ends an answer by itself."""
    loaded = tiny_loaded()
    loaded.template.stop_ids = frozenset()
    loaded.model.generation_config.eos_token_id = None
    return loaded


@pytest.fixture(scope="module")
def trained() -> LoadedModel:
    """The same model, said to have a trained router."""
    return tiny_loaded(router_trained=True)


@pytest.fixture(scope="module")
def filled(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that no test changes."""
    folder = tmp_path_factory.mktemp("filled")
    bank = MemoryBank.create(folder, manifest_of(loaded))
    add_documents(bank, loaded, DOCUMENTS)
    bank.close()
    return folder


@pytest.fixture
def memory(filled: Path, loaded: LoadedModel) -> Iterator[Memory]:
    with Memory(MemoryBank.open(filled), loaded) as memory:
        yield memory


@pytest.fixture
def empty(tmp_path: Path, loaded: LoadedModel) -> Iterator[Memory]:
    """A memory of an empty bank."""
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        yield memory


def _without_timings(answer: Answer) -> tuple[Any, ...]:
    return tuple(getattr(answer, name) for name in Answer.__slots__ if name != "timings")


# --- ask, ask_batch, stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_batch_answers_every_question_as_alone(memory: Memory, selector: str) -> None:
    for sampling in (SHORT, SAMPLED):
        alone = [memory.ask(question, selector=selector, sampling=sampling) for question in QUESTIONS]
        together = memory.ask_batch(QUESTIONS, selector=selector, sampling=sampling)
        # Scores of the router are sums of floats: everything else is equal to the bit.
        for one, other in zip(together, alone, strict=True):
            assert (one.question, one.text, one.finish_reason) == (other.question, other.text, other.finish_reason)
            assert (one.num_prompt_tokens, one.num_new_tokens) == (other.num_prompt_tokens, other.num_new_tokens)
            assert [item.external_id for item in one.evidence] == [item.external_id for item in other.evidence]
            assert [item.layers for item in one.evidence] == [item.layers for item in other.evidence]
            scores = [item.score for item in other.evidence]
            assert [item.score for item in one.evidence] == pytest.approx(scores, abs=1e-4)
    assert len({answer.text for answer in together}) > 1, "the questions are answered differently"


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("sampling", [SHORT, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_pieces_join_to_the_answer(memory: Memory, selector: str, sampling: Sampling) -> None:
    answers: list[Answer] = []
    for question in QUESTIONS:
        pieces = list(memory.stream(question, selector=selector, sampling=sampling, on_answer=answers.append))
        asked = memory.ask(question, selector=selector, sampling=sampling)
        assert "".join(pieces).strip() == asked.text
        assert all(pieces), "no empty piece"
        assert _without_timings(answers[-1]) == _without_timings(asked)
    assert len(answers) == len(QUESTIONS)


def test_an_answer_counts_its_tokens_and_times_its_stages(memory: Memory, loaded: LoadedModel) -> None:
    answer = memory.ask(QUESTIONS[0], sampling=SHORT)
    passages = [Passage(item.document_id, encoded_text(item.title, item.text)) for item in answer.evidence]
    assert answer.num_prompt_tokens == len(loaded.template.context(QUESTIONS[0], passages).ids)
    assert (answer.num_new_tokens, answer.finish_reason) == (8, "length")
    assert list(answer.timings) == ["select", "prefill", "decode"]
    assert all(seconds > 0 for seconds in answer.timings.values())


# --- evidence -------------------------------------------------------------------------------------------------------


def test_evidence_is_the_stored_document_best_first(memory: Memory) -> None:
    answer = memory.ask("Where does the otter of Rome live?", sampling=SHORT)
    first = answer.evidence[0]
    document = DOCUMENTS[0]
    assert (first.external_id, first.title, first.text) == (document.external_id, document.title, document.text)
    assert (first.span, first.metadata) == (Span(0, len(document.text)), {"place": 0})
    assert type(first.layers) is int
    assert first.document_id == 1
    scores = [item.score for item in answer.evidence]
    assert scores == sorted(scores, reverse=True)
    assert all(score >= MIN_SHARE * scores[0] for score in scores)
    assert answer.selector == "lexical"


def test_a_part_of_a_long_source_is_evidence_with_its_place(tmp_path: Path) -> None:
    loaded = tiny_loaded(max_document_tokens=48)
    text = " ".join(f"Item {number} is kept in the {animal} room." for number, animal in enumerate(ANIMALS))
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        assert memory.add([Document("inventory", text)]).documents > 3
        (found, *_) = memory.search("What is kept in the falcon room?")
        assert "falcon" in found.text
        assert found.text == text[found.span.start : found.span.end] != text


@pytest.mark.parametrize("selector", ["router", "hybrid"])
def test_a_router_says_how_many_layers_chose_a_document(memory: Memory, selector: str) -> None:
    found = memory.search("Where does the otter of Rome live?", selector=selector, limit=20)
    config = memory.loaded.model.config
    assert len(found) >= 8 * config.top_k_docs, "more was considered than is attended to"
    layers = [item.layers for item in found]
    assert all(0 <= count <= len(config.layers) for count in layers)
    assert sum(layers) == config.top_k_docs * len(config.layers)


@pytest.mark.parametrize("selector", SELECTORS)
def test_evidence_of_an_answer_is_the_best_of_the_search(memory: Memory, selector: str) -> None:
    for question in QUESTIONS:
        answer = memory.ask(question, selector=selector, sampling=SHORT, max_documents=3)
        found = memory.search(question, selector=selector)
        assert 1 <= len(answer.evidence) <= 3
        # Layers are told of another routing: of the question alone, or of the whole prompt while answering.
        of_answer = [dataclasses.replace(item, layers=None) for item in answer.evidence]
        assert of_answer == [dataclasses.replace(item, layers=None) for item in found[: len(of_answer)]]
        assert {type(item.layers) for item in answer.evidence} == {int}
        assert {type(item.layers) for item in found} == {type(None) if selector == "lexical" else int}


@pytest.mark.parametrize("selector", SELECTORS)
def test_an_answer_says_how_many_layers_routed_to_its_evidence_while_answering(
    memory: Memory, selector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[int] = []
    route, rank = LocalMemory.route, Finder.rank

    def recording(self: LocalMemory, layer: int, *args: Any) -> Retrieved:
        retrieved = route(self, layer, *args)
        chosen.extend(retrieved.doc_ids[0])
        return retrieved

    def ranking(self: Finder, *args: Any) -> Any:
        selected = rank(self, *args)
        chosen.clear()  # what the question alone was routed to
        return selected

    monkeypatch.setattr(LocalMemory, "route", recording)
    monkeypatch.setattr(Finder, "rank", ranking)
    counts = set()
    for question in QUESTIONS:
        evidence = memory.ask(question, selector=selector, sampling=SHORT, max_documents=20).evidence
        config = memory.loaded.model.config
        assert len(chosen) == config.top_k_docs * len(config.layers)
        assert [item.layers for item in evidence] == [chosen.count(item.document_id) for item in evidence]
        counts |= {item.layers for item in evidence}
    assert len(counts) > 1, "some were routed to and some were not"


def test_search_is_limited_and_generates_nothing(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.generate.interleave.Decoding", None)
    found = memory.search("Rome river", limit=2)
    assert [item.external_id for item in found] == ["note-0", "Rome.txt"]
    assert len(memory.search("Rome river", limit=1)) == 1
    assert memory.search("zeppelin") == []


def _contexts(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> list[list[Passage]]:
    """The passages of every context that is made."""
    made: list[list[Passage]] = []
    true_context = type(loaded.template).context

    def context(self: Any, question: str, passages: Any = ()) -> Context:
        made.append(list(passages))
        return true_context(self, question, passages)

    monkeypatch.setattr(type(loaded.template), "context", context)
    return made


def test_no_documents_means_no_text_before_the_question(
    memory: Memory, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _contexts(monkeypatch, loaded)
    answer = memory.ask(QUESTIONS[0], max_documents=0, sampling=SHORT)
    assert answer.evidence == ()
    assert made == [[]]
    memory.ask(QUESTIONS[0], max_documents=1, sampling=SHORT)
    assert [len(passages) for passages in made] == [0, 1]


def test_a_question_no_document_has_words_of_is_answered_without_evidence(memory: Memory) -> None:
    for question in ("zeppelin", "?!"):
        answer = memory.ask(question, sampling=SHORT)
        assert (answer.evidence, answer.num_new_tokens) == ((), 8)


def test_passages_that_do_not_fit_are_dropped_from_the_worst_up_and_are_no_evidence(
    memory: Memory, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Rome Oslo Lima Bern Cairo river"
    everything = memory.ask(question, sampling=SHORT).evidence
    assert len(everything) == 5
    needed = []
    for count in range(6):
        passages = [Passage(item.document_id, encoded_text(item.title, item.text)) for item in everything[:count]]
        needed.append(len(loaded.template.context(question, passages).ids))
    assert needed == sorted(set(needed))
    made = _contexts(monkeypatch, loaded)
    for count in range(6):  # room for exactly so many, and for one token less than one more
        rooms = [needed[count]] if count == 5 else [needed[count], needed[count + 1] - 1]
        for room in rooms:
            max_new_tokens = 512 - loaded.model.config.offset - room
            sampling = Sampling(max_new_tokens=max_new_tokens, stop=tuple(map(chr, range(32, 127))))
            answer = memory.ask(question, sampling=sampling)
            assert answer.evidence == everything[:count]
            assert [passage.document_id for passage in made[-1]] == [item.document_id for item in everything[:count]]
            assert answer.num_prompt_tokens == needed[count]


def test_what_is_remembered_decides_the_answer_without_any_text(
    loaded: LoadedModel, memory: Memory, empty: Memory
) -> None:
    empty.add([Document("other", "Something else altogether, in another bank.")])
    texts = {
        bank.ask(question, max_documents=0, sampling=SHORT).text for bank in (memory, empty) for question in ["lynx"]
    }
    assert len(texts) == 2, "the same prompt over two memories"


# --- selectors ------------------------------------------------------------------------------------------------------


def test_the_default_selector_follows_the_router(filled: Path, loaded: LoadedModel, trained: LoadedModel) -> None:
    for model, expected in ((loaded, "lexical"), (trained, "hybrid")):
        with Memory(MemoryBank.open(filled), model) as memory:
            assert memory.default_selector == expected
            answer = memory.ask(QUESTIONS[0], sampling=SHORT)
            assert answer.selector == expected
            assert type(answer.evidence[0].layers) is int
            assert (memory.search(QUESTIONS[0])[0].layers is None) == (expected == "lexical")
            assert memory.ask(QUESTIONS[0], selector="router", sampling=SHORT).selector == "router"


def test_an_unknown_selector_is_refused_with_the_known_ones(memory: Memory) -> None:
    for call in (memory.ask, memory.search):
        with pytest.raises(MemspanError, match="selector must be one of router, lexical, hybrid, not 'magic'"):
            call("lynx", selector="magic")


def test_hybrid_finds_the_only_document_that_holds_the_word(filled: Path, trained: LoadedModel) -> None:
    with Memory(MemoryBank.open(filled), trained) as memory:
        found = {animal: memory.search(animal, limit=1)[0].text for animal in ANIMALS}
    assert all(animal in text for animal, text in found.items())


# --- what cannot be asked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", ["", " ", "\n\t "])
def test_an_empty_question_is_refused(memory: Memory, question: str) -> None:
    for questions in ([question], ["lynx", question]):
        with pytest.raises(QuestionError, match="the question is empty; write one"):
            memory.ask_batch(questions)
    with pytest.raises(QuestionError, match="empty"):
        list(memory.stream(question))
    with pytest.raises(QuestionError, match="empty"):
        memory.search(question)


def test_an_empty_bank_says_how_to_fill_it(empty: Memory) -> None:
    for ask in (empty.ask, empty.search, lambda question: list(empty.stream(question))):
        with pytest.raises(EmptyBank, match="holds no documents; add some with: memspan add"):
            ask("Where does the otter live?")


@pytest.mark.parametrize("selector", SELECTORS)
def test_a_question_that_is_too_long_is_refused_with_the_numbers(memory: Memory, selector: str) -> None:
    with pytest.raises(QuestionError, match=r"needs \d+ tokens and the model has room for \d+ beside"):
        memory.ask("Is the lynx grey? " * 200, selector=selector)


def test_an_answer_longer_than_the_models_positions_is_refused(memory: Memory) -> None:
    with pytest.raises(QuestionError, match="ask for fewer max_new_tokens"):
        memory.ask("lynx", sampling=Sampling(max_new_tokens=512))


# --- the bank as it is when asked -----------------------------------------------------------------------------------


def test_a_document_added_by_another_handle_is_found_by_the_next_question(empty: Memory, loaded: LoadedModel) -> None:
    empty.add(DOCUMENTS[:3])
    assert empty.search("zeppelin") == []
    other = MemoryBank.open(empty.bank.folder)
    add_documents(other, loaded, [Document("new", "A zeppelin over the lake.")])
    other.close()
    for selector in SELECTORS:
        found = [item.external_id for item in empty.search("zeppelin", selector=selector)]
        assert found == ["new"] if selector == "lexical" else "new" in found
    assert empty.ask("zeppelin", sampling=SHORT).evidence[0].external_id == "new"


def test_adding_through_the_memory_reports_and_is_found(empty: Memory) -> None:
    seen = []
    report = empty.add(DOCUMENTS[:4], progress=seen.append)
    assert (report.added, report.updated, report.unchanged, report.documents) == (4, 0, 0, 4)
    assert seen and seen[-1].documents == 4
    assert empty.add(DOCUMENTS[:4]).unchanged == 4
    assert empty.search("badger")[0].external_id == "Lima.txt"
    report = empty.add([Document("Lima.txt", "Only a walrus is left.")])
    assert (report.added, report.updated) == (0, 1)
    assert empty.search("badger") == []
    (found,) = empty.search("walrus")
    assert (found.external_id, found.document_id) == ("Lima.txt", 5)
    for selector in SELECTORS:
        texts = [item.text for item in empty.search("Lima badger", selector=selector)]
        assert all("badger" not in text for text in texts)


def test_a_bank_of_another_model_is_refused(filled: Path) -> None:
    with pytest.raises(BankMismatch, match="encoder_fingerprint"):
        Memory(MemoryBank.open(filled), tiny_loaded(seed=1))
    with pytest.raises(BankMismatch, match="chunk_size: bank 4, model 8"):
        Memory(MemoryBank.open(filled), tiny_loaded(chunk_size=8))


# --- open -----------------------------------------------------------------------------------------------------------


def test_open_creates_only_when_asked_and_looks_for_the_bank_before_the_model(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="there is no bank in"):
        Memory.open(tmp_path / "bank", tmp_path / "no-model")
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    with Memory.open(tmp_path / "bank", tmp_path / "msa", create=True, dtype="float32", device="cpu") as memory:
        memory.add(DOCUMENTS[:3])
        answer = memory.ask("badger", sampling=SHORT)
    for create in (True, False):
        with Memory.open(str(tmp_path / "bank"), tmp_path / "msa", create=create, dtype="float32") as memory:
            assert _without_timings(memory.ask("badger", sampling=SHORT)) == _without_timings(answer)
