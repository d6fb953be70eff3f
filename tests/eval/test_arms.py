"""Every arm puts before the model what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.errors import EvaluationError
from memspan.eval.arms import Arm, answer, parse_arm, rank, whole_memory
from memspan.eval.dense import SentenceRetriever
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.text.questions import Question, passage

TEXTS = ("the otter of Rome", "the heron of Oslo", "the lynx of Quito")
DOCUMENTS = tuple(passage("", text) for text in TEXTS)
QUESTION = Question("q", "Where is the heron?", ("Oslo",), (DOCUMENTS[1],))
SAMPLING = Sampling(max_new_tokens=4)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    loaded = tiny_loaded()
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as opened:
        opened.add(DOCUMENTS)
        yield opened


@pytest.mark.parametrize(
    ("text", "arm"),
    [
        ("none", Arm("none", "none", None, False)),
        ("oracle", Arm("oracle", "oracle", None, False)),
        ("bm25", Arm("bm25@5", "bm25", 5, False)),
        ("bm25@10", Arm("bm25@10", "bm25", 10, False)),
        ("router@1", Arm("router@1", "router", 1, True)),
        ("router@0", Arm("router@0", "router", 0, True)),
        ("hybrid@5-latents", Arm("hybrid@5-latents", "hybrid", 5, False)),
        ("oracle+latents", Arm("oracle+latents", "oracle", None, True)),
    ],
)
def test_an_arm_is_its_name(text: str, arm: Arm) -> None:
    assert parse_arm(text) == arm


@pytest.mark.parametrize("text", ["", "bm25@", "rag", "none@5", "oracle@1", "bm25@0", "router@0-latents", "bm25@-1"])
def test_a_name_that_is_no_arm_is_refused(text: str) -> None:
    with pytest.raises(EvaluationError):
        parse_arm(text)


def prompt(memory: Memory, name: str, monkeypatch: pytest.MonkeyPatch, **changes: int) -> tuple[str, bool]:
    """The prompt of an arm as text, and whether the MSA layers attended to memory."""
    arm, seen = parse_arm(name), []
    from memspan.eval import arms

    class Watched(arms.Decoding):
        def __init__(self, loaded, contexts, layers, sampling) -> None:  # type: ignore[no-untyped-def]
            super().__init__(loaded, contexts, layers, sampling)
            seen.append((contexts, layers))
            self.watched = self.retrieved

        def run(self) -> Iterator[None]:
            yield from super().run()
            attended.extend(len(found.doc_ids[0]) for found in self.retrieved.values())

    attended: list[int] = []
    monkeypatch.setattr(arms, "Decoding", Watched)
    found = rank(memory, arm, QUESTION, None).documents
    answer(memory, arm, [QUESTION.question], [found], SAMPLING, **changes)
    ((contexts, _),) = seen
    return memory.loaded.template.tokenizer.decode(list(contexts[0].ids)), sum(attended) > 0


@pytest.mark.parametrize(
    ("name", "texts", "latents"),
    [
        ("none", [], False),
        ("oracle", [TEXTS[1]], False),
        ("oracle+latents", [TEXTS[1]], True),
        ("bm25@1", [TEXTS[1]], False),
        ("router@0", [], True),
        ("router@3", list(TEXTS), True),
        ("router@3-latents", list(TEXTS), False),
        ("hybrid@3", list(TEXTS), True),
    ],
)
def test_what_is_before_the_model(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, name: str, texts: list[str], latents: bool
) -> None:
    shown, attended = prompt(memory, name, monkeypatch)
    assert [text for text in TEXTS if text in shown] == texts
    assert attended is latents
    assert QUESTION.question in shown


def test_the_budget_of_the_prompt_holds_for_every_arm(memory: Memory) -> None:
    for name in ("oracle", "bm25@3", "router@3"):
        arm = parse_arm(name)
        found = rank(memory, arm, QUESTION, None).documents
        (full,) = answer(memory, arm, ["q?"], [found], SAMPLING)
        (tight,) = answer(memory, arm, ["q?"], [found], SAMPLING, full.num_prompt_tokens - 1)
        assert full.used == tuple(item.external_id for item in found)
        assert tight.used == full.used[:-1] and tight.num_prompt_tokens < full.num_prompt_tokens


def test_a_batch_is_answered_as_its_questions_alone(memory: Memory) -> None:
    arm = parse_arm("router@2")
    questions = ["Where is the heron?", "otter", "Does the lynx live in Quito or in Rome?"]
    found = [rank(memory, arm, Question(q, q, ("x",), ()), None).documents for q in questions]
    together = answer(memory, arm, questions, found, SAMPLING)
    for question, documents, one in zip(questions, found, together, strict=True):
        (alone,) = answer(memory, arm, [question], [documents], SAMPLING)
        assert (alone.text, alone.used, alone.num_prompt_tokens) == (one.text, one.used, one.num_prompt_tokens)


def test_the_whole_memory_or_a_refusal(memory: Memory) -> None:
    assert [item.text for item in whole_memory(memory, SAMPLING, None)] == list(TEXTS)
    with pytest.raises(EvaluationError, match="room for 20"):
        whole_memory(memory, SAMPLING, 20)


def test_bm25_ranks_by_the_full_text_index_and_the_rest_by_the_router(memory: Memory) -> None:
    lexical = rank(memory, parse_arm("bm25"), QUESTION, None).documents
    assert lexical[0].text == TEXTS[1]
    routed = rank(memory, parse_arm("router"), QUESTION, None).documents
    assert len(routed) == 3 and routed[0].layers is not None
    assert [item.text for item in rank(memory, parse_arm("oracle"), QUESTION, None).documents] == [TEXTS[1]]


def test_dense_ranks_by_cosine(memory: Memory) -> None:
    calls: list[int] = []

    def embed(texts: Sequence[str]) -> torch.Tensor:
        calls.append(len(texts))
        rows = torch.tensor([[float("heron" in text), float("lynx" in text), 0.5] for text in texts])
        return torch.nn.functional.normalize(rows, dim=1)

    retriever, arm = SentenceRetriever(embed), parse_arm("dense@2")
    for _ in range(2):
        found = rank(memory, arm, QUESTION, retriever).documents
        assert [item.text for item in found] == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert found[0].score == pytest.approx(1) and found[1].score == pytest.approx(0.5 / 1.25**0.5)
    assert calls == [3, 1, 1], "documents are embedded once"
    with pytest.raises(EvaluationError, match="pip install"):
        rank(memory, arm, QUESTION, None)
