"""Questions that join a batch at any time, and leave it, get the tokens they would get alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from helpers import TensorMemory, random_context, random_ids, tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.config import TEMPLATES
from memspan.events import Done
from memspan.generate import batching
from memspan.generate.batching import DecodingBatch
from memspan.generate.decode import Decoding, Generated
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model import buffers
from memspan.model.convert import LoadedModel
from memspan.text.template import Context
from memspan.types import Document

LENGTHS = (37, 5, 1, 50, 12)
"""Of the contexts, in the order they join: some are longer than all before."""
SAMPLINGS = [
    Sampling(max_new_tokens=length, temperature=float(place % 2), top_p=0.9, seed=place)
    for place, length in enumerate((12, 3, 20, 9, 15))
]


def _memory(loaded: LoadedModel, top_k: int) -> TensorMemory:
    with torch.no_grad():
        return TensorMemory(loaded.model, loaded.model.encode(random_ids(9, 3, 8, 14, 1)), top_k)


def _alone(loaded: LoadedModel, context: Context, memory: TensorMemory, sampling: Sampling) -> Generated:
    decoding = Decoding(loaded, [context], memory, sampling)
    for _ in decoding.run():
        pass
    return decoding.rows[0]


def _take_turns(batch: DecodingBatch, decodings: Sequence[Decoding], every: int) -> None:
    """Run decodings in one batch; one more joins every so many steps, if there is room."""
    waiting, running = list(decodings), []
    for step in itertools.count():
        if waiting and step % every == 0 and len(batch) < batch.max_rows:
            running.append(batch.run(waiting.pop(0)))
        running = [run for run in running if next(run, "ended") is None]
        batch.step()
        if not (waiting or running):
            return


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_whoever_joins_whenever_gets_what_it_would_get_alone(
    family: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "_ROOM", 7)  # they grow several times
    loaded = tiny_loaded(family)
    loaded.template.stop_ids = frozenset()
    contexts = [random_context(3, length, 4) for length in LENGTHS]
    # Of different sizes, so that the rows' memories are padded to each other.
    memories = [_memory(loaded, top_k) for top_k in (2, 1, 5, 3, 2)]
    alone = [_alone(loaded, *given) for given in zip(contexts, memories, SAMPLINGS, strict=True)]
    batch = DecodingBatch(loaded, max_rows=3)
    decodings = [
        Decoding(loaded, [context], memory, sampling)
        for context, memory, sampling in zip(contexts, memories, SAMPLINGS, strict=True)
    ]
    _take_turns(batch, decodings, every)
    assert [decoding.rows[0] for decoding in decodings] == alone
    assert len(batch) == 0
    assert len({tuple(row.ids) for row in alone}) == len(alone), "the questions are answered differently"


def test_closing_a_run_frees_its_row_and_changes_nothing_for_others() -> None:
    loaded = tiny_loaded()
    loaded.template.stop_ids = frozenset()
    memory, sampling = _memory(loaded, 2), Sampling(max_new_tokens=10)
    contexts = [random_context(3, length, 4) for length in (20, 9, 30)]
    alone = [_alone(loaded, context, memory, sampling) for context in contexts]
    batch = DecodingBatch(loaded, max_rows=2)
    first, second, third = (Decoding(loaded, [context], memory, sampling) for context in contexts)
    left, stays = batch.run(first), batch.run(second)
    next(left), next(stays)
    for _ in range(3):
        batch.step()
        next(left), next(stays)
    left.close()  # type: ignore[attr-defined]
    assert len(batch) == 1 and len(first.rows[0].ids) == 4
    runs: list[Iterator[None]] = [stays, batch.run(third)]
    assert next(runs[1], "ended") is None
    while runs:
        batch.step()
        runs = [run for run in runs if next(run, "ended") is None]
    assert [second.rows[0], third.rows[0]] == alone[1:]
    assert len(first.rows[0].ids) == 4, "who left is written no further"


def test_one_forward_serves_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    loaded.template.stop_ids = frozenset()
    memory = _memory(loaded, 2)
    batch = DecodingBatch(loaded, max_rows=4)
    runs = [
        batch.run(Decoding(loaded, [random_context(3, 9, 4)], memory, Sampling(max_new_tokens=5))) for _ in range(4)
    ]
    for run in runs:
        next(run)
    sizes: list[int] = []
    handle = loaded.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for _ in range(4):
        batch.step()
    handle.remove()
    assert sizes == [4] * 4 and len(batch) == 0


@pytest.mark.parametrize(
    ("selector", "rounds"), [("lexical", 1), ("router", 1), ("hybrid", 3), ("generate", 3)], ids=lambda x: str(x)
)
def test_a_question_asked_in_a_batch_is_answered_as_alone(tmp_path: Path, selector: str, rounds: int) -> None:
    loaded = tiny_loaded(template=_rounds_template(), router_trained=True)
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add(Document(f"note-{place}", f"The otter of Rome has {place} rooms.") for place in range(8))
        questions = ["Where does the otter live?", "Rome", "Tell me of the 5 rooms of the otter"]
        options = {"selector": selector, "rounds": rounds, "max_documents": 3, "sampling": Sampling(max_new_tokens=8)}
        alone = [memory.ask(question, **options) for question in questions]  # type: ignore[arg-type]
        batch = DecodingBatch(loaded, max_rows=3)
        waiting = [memory.in_namespace("default").steps(question, batch, **options) for question in questions]  # type: ignore[arg-type]
        running, answers = [], {}
        while waiting or running:
            running += [waiting.pop(0)] if waiting else []
            for run in list(running):
                for event in run:
                    if event is None:
                        break
                    if isinstance(event, Done):
                        answers[event.answer.question] = event.answer
                else:
                    running.remove(run)
            batch.step()
        for one in alone:
            other = answers[one.question]
            assert other.text == one.text and other.finish_reason == one.finish_reason
            assert [x.external_id for x in other.evidence] == [x.external_id for x in one.evidence]
            assert [x.written for x in other.rounds] == [x.written for x in one.rounds]


def _rounds_template() -> dict[str, object]:
    """The chatml template with markers of rounds."""
    spec = dataclasses.replace(TEMPLATES["chatml"], round_end="#", retrieval_end="$")
    return dataclasses.asdict(spec)


def test_a_model_is_prepared_once_it_decodes_much(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    loaded.model.decode_weights = "exact"
    monkeypatch.setattr(batching, "_UNPREPARED_STEPS", 5)
    prepared: list[int] = []
    for _ in range(2):
        decoding = Decoding(loaded, [random_context(3, 9, 2)], None, Sampling(max_new_tokens=7))
        decoding.lookup = None
        for _ in decoding.run():
            if loaded.model.decode_weights is None:
                prepared.append(loaded.model.decode_steps)
    assert prepared and prepared[0] == 6 and loaded.model.decode_steps > 6
