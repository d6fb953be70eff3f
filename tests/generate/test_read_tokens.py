"""Documents that are read from the tokens a bank keeps of them, in the place of their texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import tiny_backbone, tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.reencode import reencode
from memspan.bank.verify import verify
from memspan.content import TokenContent
from memspan.errors import BankMismatch, MemspanError
from memspan.generate.endpoint import Endpoint
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.types import Document

TEXTS = {
    "kettle": "The kettle in the kitchen sings when its water boils.",
    "boat": "The boat at the jetty is painted green and has no oars.",
    "lamp": "The lamp on the desk needs a new bulb before winter.",
}
SIX = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    """A memory whose bank keeps every token, in every layer."""
    loaded = tiny_loaded(max_document_tokens=64).keeping(TokenContent(1, (0, 1, 2, 3)))
    with Memory(MemoryBank.create(tmp_path_factory.mktemp("every") / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add([Document(name, text) for name, text in TEXTS.items()])
        yield memory


def test_a_document_read_from_all_of_its_tokens_is_a_document_read_as_text(every: Memory) -> None:
    answer = every.ask("where is the kettle", selector="lexical", max_documents=1, max_texts=0, sampling=SIX)
    (item,) = answer.evidence
    template, prefix = every.loaded.template, every.loaded.template.prefix_ids
    body = template.body(template.document(item.document_id, item.text))
    tail = template.context("where is the kettle", grounded=True).ids[len(prefix) :]
    end = len(prefix) + every.loaded.offset
    ids, places = [*prefix, *body, *tail], [*range(len(prefix)), *range(end - len(body), end + len(tail))]
    backbone, written = tiny_backbone("llama"), list[int]()
    for _ in range(6):
        logits = backbone(torch.tensor([ids]), position_ids=torch.tensor([places])).logits
        token = int(logits[0, -1].argmax())
        if token in template.stop_ids:
            break
        written.append(token)
        ids, places = [*ids, token], [*places, places[-1] + 1]
    assert item.external_id == "kettle" and answer.text == template.text(written).strip() != ""
    assert answer.num_prompt_tokens == len(prefix) + len(tail)


def test_the_best_are_read_as_text_and_the_others_from_tokens(every: Memory) -> None:
    question = "the kettle, the boat, the lamp"
    answer = every.ask(question, selector="lexical", max_documents=3, max_texts=1, sampling=SIX)
    as_text, *others = answer.evidence
    assert len(others) == 2 and [item.layers for item in answer.evidence] == [0, 4, 4]
    (done,) = answer.rounds
    assert as_text.text in done.injected and not any(item.text in done.injected for item in others)
    without = every.ask(question, selector="lexical", max_documents=3, max_texts=0, sampling=SIX)
    assert [item.layers for item in without.evidence] == [4, 4, 4] and not without.rounds[0].injected


@pytest.mark.parametrize("selector", ["lexical", "router", "hybrid"])
def test_without_texts_every_selector_finds_what_is_read(every: Memory, selector: str) -> None:
    answer = every.ask("where is the boat", selector=selector, max_documents=0, sampling=SIX)
    assert answer.evidence and all(item.layers == 4 for item in answer.evidence)
    found = every.search("where is the boat", selector=selector, limit=3)
    assert [item.external_id for item in answer.evidence] == [item.external_id for item in found][
        : len(answer.evidence)
    ]


def test_questions_of_a_batch_read_what_each_reads_alone(every: Memory) -> None:
    questions = ["where is the kettle", "the boat and the lamp, and the kettle", "what is green"]
    options = {"selector": "lexical", "max_documents": 3, "max_texts": 1, "sampling": SIX}
    together = every.ask_batch(questions, **options)
    alone = [every.ask(question, **options) for question in questions]
    read = [(answer.text, [item.document_id for item in answer.evidence]) for answer in (*together, *alone)]
    assert read[:3] == read[3:] and {len(ids) for _, ids in read} == {1, 3}


@pytest.mark.parametrize("selector", ["lexical", "router", "hybrid"])
@pytest.mark.parametrize("more", [{}, {"rounds": 2}, {"route_answer": True}])
def test_a_bank_of_tokens_is_asked_as_any_other(every: Memory, selector: str, more: dict[str, object]) -> None:
    asked = {"selector": selector, "max_documents": 2, "sampling": SIX}
    answer = every.ask("where is the boat", **asked, **more)
    texts = every.ask("where is the boat", **asked, text_only=True, **{k: v for k, v in more.items() if k == "rounds"})
    assert (answer.text, len(answer.evidence)) == (texts.text, len(texts.evidence))
    assert every.ask_batch(["where is the boat"], **asked, **more)[0].text == answer.text


def test_what_is_read_matters(every: Memory) -> None:
    texts = {
        every.ask(f"say {name}", selector="lexical", max_documents=1, max_texts=0, sampling=SIX, where=None).text
        for name in TEXTS
    }
    assert len(texts) > 1


def test_a_document_that_is_not_encoded_yet_is_read_as_text(tmp_path: Path) -> None:
    loaded = tiny_loaded(max_document_tokens=64).keeping(TokenContent(2, (1, 2, 3)))
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add([Document("kettle", TEXTS["kettle"])])
        memory.add([Document("boat", TEXTS["boat"])], later=True)
        answer = memory.ask("the kettle, the boat", selector="lexical", max_texts=0, sampling=SIX)
    (done,) = answer.rounds
    assert TEXTS["boat"] in done.injected and TEXTS["kettle"] not in done.injected
    assert {item.external_id: item.layers for item in answer.evidence} == {"kettle": 3, "boat": 0}


def test_rounds_go_on_reading_from_tokens(every: Memory) -> None:
    options = {"selector": "lexical", "max_documents": 3, "rounds": 3, "documents_per_round": 1, "sampling": SIX}
    answer = every.ask("the kettle, the boat, the lamp", max_texts=0, **options)
    assert len(answer.rounds) > 1 and [item.layers for item in answer.evidence] == [4] * len(answer.evidence)


def test_a_bank_of_means_has_no_tokens_to_read(memory: Memory) -> None:
    memory.add([Document("kettle", TEXTS["kettle"])])
    with pytest.raises(MemspanError, match=r"keeps no tokens.*leave max_texts out.*--content-chunk 4"):
        memory.ask("where is the kettle", max_texts=0)


def test_another_model_reads_texts(every: Memory) -> None:
    other = every.in_namespace("default")
    other.answerer = Endpoint("http://127.0.0.1:9", "nobody", room=4096)
    with pytest.raises(MemspanError, match="another model reads texts; leave max_texts out"):
        other.ask("what is green", max_texts=1)


@pytest.mark.parametrize("options", [{"text_only": True}, {"route_answer": True}])
def test_options_that_leave_nothing_to_read_are_refused(every: Memory, options: dict[str, bool]) -> None:
    with pytest.raises(MemspanError, match="leave max_texts out"):
        every.ask("what is green", max_texts=1, **options)


def test_a_bank_is_encoded_anew_with_tokens_and_back(tmp_path: Path) -> None:
    loaded = tiny_loaded(max_document_tokens=64)
    tokens, folder = loaded.keeping(TokenContent(2, (1, 3))), tmp_path / "bank"
    with Memory(MemoryBank.create(folder, manifest_of(loaded)), loaded) as memory:
        memory.add([Document(name, text) for name, text in TEXTS.items()])
        means = memory.ask("the kettle", selector="router", sampling=SIX)
        with pytest.raises(BankMismatch, match=r"keeps means of chunks.*reencode .* --content-chunk 2"):
            Memory(MemoryBank.open(folder), tokens)
        reencode(memory.bank, tokens)
        with pytest.raises(BankMismatch, match="was encoded anew since it was opened; open it again"):
            memory.ask("the kettle")
    # The content is the bank's, whatever the model was loaded for.
    with Memory(MemoryBank.open(folder), loaded) as memory:
        assert verify(memory.bank) == [] and memory.bank.manifest.content == tokens.content
        read = memory.ask("the kettle", selector="router", max_texts=0, sampling=SIX)
        assert {item.layers for item in read.evidence} == {2}
        with pytest.raises(BankMismatch, match="keeps one of 2 tokens, and content_chunk is 1"):
            Memory(MemoryBank.open(folder), loaded.keeping(TokenContent(1, (1, 3))))
        reencode(memory.bank, loaded)
    with Memory(MemoryBank.open(folder), loaded) as memory:
        assert verify(memory.bank) == [] and memory.bank.manifest.content is None
        assert memory.ask("the kettle", selector="router", sampling=SIX).text == means.text
