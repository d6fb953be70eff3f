"""Summaries: what is cited rests on the documents, everything is read, and it gets shorter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.scope import EVERYTHING
from memspan.errors import EmptyBank, QuestionError
from memspan.generate.citing import cite, sentences
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.generate.summarize import Summarizer, SummaryPlan
from memspan.model.convert import LoadedModel
from memspan.text.template import Context
from memspan.types import Document

COLOURS = ("amber", "blue", "crimson", "denim", "emerald", "fuchsia", "green", "hazel", "indigo", "jade")
DOCUMENTS = [
    Document(colour, f"Door {colour} leads into room number {place}.", metadata={"even": place % 2 == 0})
    for place, colour in enumerate(COLOURS)
]
_PASSAGE = re.compile(r"\[\d+\]\. \([^)]*\) (.*)")
Writer = Callable[[list[str]], str]


@pytest.fixture
def memory(filled: Path, loaded: LoadedModel) -> Iterator[Memory]:
    with Memory(MemoryBank.open(filled), loaded) as memory:
        yield memory


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Writer], list[list[str]]]:
    """Lets a function of the passages shown write the summaries; gives the list of what was shown."""

    def install(writer: Writer) -> list[list[str]]:
        shown: list[list[str]] = []

        def write(self: Summarizer, contexts: Sequence[Context]) -> list[str]:
            texts = [self._loaded.template.text(context.ids) for context in contexts]
            shown.extend(_PASSAGE.findall(text) for text in texts)
            return [writer(_PASSAGE.findall(text)) for text in texts]

        monkeypatch.setattr(Summarizer, "_write", write)
        return shown

    return install


def _plan(**settings: int) -> SummaryPlan:
    return SummaryPlan(sampling=Sampling(max_new_tokens=16), **{"batch_tokens": 96, **settings})


def test_every_document_is_read_once_and_cited_by_what_it_says(
    memory: Memory, scripted: Callable[[Writer], list[list[str]]]
) -> None:
    shown = scripted(lambda passages: "\n".join(f"{n}. {text}" for n, text in enumerate(passages, 1)))
    told: list[tuple[int, int]] = []
    summary = memory.summarize(_plan(), progress=lambda done, total: told.append((done, total)))
    assert sorted(text for batch in shown for text in batch) == sorted(one.text for one in DOCUMENTS)
    assert len(shown) == summary.num_batches > 1
    assert [(one.text, [s.external_id for s in one.sources]) for one in summary.statements] == [
        (document.text, [document.external_id]) for document in DOCUMENTS
    ]
    assert (summary.num_documents, summary.num_cited, summary.num_unsupported, summary.levels) == (10, 10, 0, 0)
    assert told[-1] == (10, 10)


def test_only_the_scope_is_read(memory: Memory, scripted: Callable[[Writer], list[list[str]]]) -> None:
    shown = scripted("\n".join)
    summary = memory.summarize(_plan(), where={"even": True})
    assert sorted(text for batch in shown for text in batch) == sorted(one.text for one in DOCUMENTS[::2])
    assert summary.num_documents == summary.num_cited == 5
    with pytest.raises(EmptyBank, match="scope"):
        memory.summarize(_plan(), as_of="1999-01-01")


def test_what_no_document_says_is_left_out_and_counted(
    memory: Memory, scripted: Callable[[Writer], list[list[str]]]
) -> None:
    scripted(lambda passages: "\n".join([*passages, "Whales sing beneath frozen harbours.", "Door amber"]))
    summary = memory.summarize(_plan())
    assert {one.text for one in summary.statements} == {one.text for one in DOCUMENTS}
    assert summary.num_unsupported == 2 * summary.num_batches


def test_too_many_statements_are_summed_up_again(memory: Memory, scripted: Callable[[Writer], list[list[str]]]) -> None:
    shown = scripted(lambda passages: f"{passages[0]} {passages[-1]}" if len(passages) > 1 else passages[0])
    summary = memory.summarize(_plan(max_statements=3))
    assert 1 <= len(summary.statements) <= 3
    assert summary.levels >= 1
    first_level = summary.num_batches
    written = {one.text for one in DOCUMENTS}
    assert all(set(texts) <= written for texts in shown[first_level:])  # later levels read statements
    for one in summary.statements:
        colours = {source.external_id for source in one.sources}
        assert all(f"Door {colour}" in one.text for colour in colours)


def test_a_model_that_cannot_condense_still_ends_with_the_statements_that_cite_most(
    memory: Memory, scripted: Callable[[Writer], list[list[str]]]
) -> None:
    calls: list[int] = []

    def writer(passages: list[str]) -> str:
        calls.append(1)
        return "\n".join(passages) if any("leads" in text for text in passages) and len(calls) <= 5 else "gibberish qq"

    scripted(writer)
    summary = memory.summarize(_plan(max_statements=2))
    assert 1 <= len(summary.statements) <= 2
    assert all(one.support == 1.0 for one in summary.statements)


def test_a_document_longer_than_a_batch_is_read_in_parts(loaded: LoadedModel, tmp_path: Path) -> None:
    text = " ".join(f"Shelf {n} holds the jar of {colour} paint." for n, colour in enumerate(COLOURS * 6))
    bank = MemoryBank.create(tmp_path, manifest_of(loaded))
    add_documents(bank, loaded, [Document("long", text)])
    with Memory(bank, loaded) as memory, memory._snapshot() as snapshot:
        finder = memory._finder(snapshot, EVERYTHING)
        summarizer = Summarizer(loaded, snapshot, finder, _plan(batch_tokens=64))
        passages = [passage for batch in summarizer._batches(finder.ids()) for passage in batch.passages]
        assert len(passages) > len(finder.ids())
        stored = {document.id: document.text for document in snapshot.documents(finder.ids())}
        for document_id, whole in stored.items():
            assert "".join(p.text for p in passages if p.document_id == document_id) == whole
        assert all(summarizer._cost(passage) <= 64 for passage in passages)


def test_the_real_loop_writes_with_the_model(memory: Memory) -> None:
    summary = memory.summarize(_plan())
    assert summary.num_documents == 10
    assert summary.num_prompt_tokens > 0 and 0 < summary.num_new_tokens <= 16 * summary.num_batches


def test_about_is_part_of_the_request_and_cannot_pass_for_a_marker(loaded: LoadedModel) -> None:
    template = loaded.template
    assert "about the doors" in template.text(template.summary_request((), "the doors").ids)
    (end,) = template.tokens("<|im_end|>")
    count = template.summary_request((), "x").ids.count(end)
    assert template.summary_request((), "<|im_end|>").ids.count(end) == count


def test_options_out_of_range_are_refused(memory: Memory) -> None:
    with pytest.raises(QuestionError, match="max_statements must be at least 1"):
        SummaryPlan(max_statements=0)
    with pytest.raises(QuestionError, match="batch_tokens must be at least 32"):
        SummaryPlan(batch_tokens=8)
    with pytest.raises(QuestionError, match="no room to read"):
        memory.summarize(SummaryPlan(sampling=Sampling(max_new_tokens=100_000)))


@pytest.mark.parametrize(
    ("sentence", "documents", "places", "support"),
    [
        ("Red fish swim.", [{"red", "fish", "swim"}], [0], 1.0),
        ("Red fish swim.", [{"red"}, {"fish", "swim"}], [1, 0], 1.0),
        ("Red fish swim.", [{"red", "fish"}, {"red", "fish"}], [0], 2 / 3),
        ("One two three four five six.", [{"one", "two", "three", "four", "five"}, {"six"}], [0], 5 / 6),
        ("Red fish swim.", [{"bird"}], [], 0.0),
        ("Red fish swim.", [], [], 0.0),
        ("...", [{"red"}], [], 0.0),
    ],
)
def test_the_few_documents_that_hold_the_words_are_cited(
    sentence: str, documents: list[set[str]], places: list[int], support: float
) -> None:
    assert cite(sentence, documents) == (places, pytest.approx(support))


def test_sentences_lose_the_marks_of_a_list() -> None:
    text = "1. The first. And on.\n- The second\n* 3 bees\n\n12) Dr. Who came.\n2024 was dry.\n..."
    assert sentences(text) == ["The first.", "And on.", "The second", "3 bees", "Dr. Who came.", "2024 was dry."]
