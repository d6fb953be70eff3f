"""What is kept between rounds changes nothing but the work: logits, routing and caches equal a run from scratch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from helpers import FAMILIES, TensorMemory, tiny_loaded

from memspan.generate.batching import write_next
from memspan.generate.decode import Decoding, DecodingState
from memspan.generate.sampling import Sampling
from memspan.generate.state import RoundState
from memspan.model.convert import LoadedModel
from memspan.model.modeling import decoder_layers
from memspan.text.template import Context
from memspan.types import Span

SLIDING = ("mistral", "gemma3_text")
SAMPLING = Sampling(max_new_tokens=3)
GROWTH = ([9, 14], [20, 15], [31, 40])
"""Lengths of two contexts in three rounds: either is the longer one at times, and one hardly grows."""


def _context(seed: int, length: int) -> Context:
    ids = torch.randint(3, 500, (64,), generator=torch.Generator().manual_seed(seed))[:length].tolist()
    return Context(tuple(ids), Span(2, length - 1))


def _memory(loaded: LoadedModel) -> TensorMemory:
    return TensorMemory(loaded.model, loaded.model.encode([_context(seed, 10 + seed).ids for seed in range(10, 15)]))


@contextmanager
def _tokens_run(loaded: LoadedModel, layer: int) -> Iterator[list[int]]:
    """The tokens (with padding) that every forward runs through the attention of a layer."""
    counts: list[int] = []
    (module,) = decoder_layers(loaded.model.backbone, [layer]).values()

    def count(_: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        counts.append(kwargs["hidden_states"].shape[1] if "hidden_states" in kwargs else args[0].shape[1])

    handle = module.self_attn.register_forward_pre_hook(count, with_kwargs=True)  # type: ignore[union-attr]
    yield counts
    handle.remove()


def _run(decoding: Decoding) -> tuple[torch.Tensor, list[list[int]]]:
    """The prefill's logits and what was written."""
    first: list[torch.Tensor] = []

    def spy(writings: Sequence[DecodingState], logits_RV: torch.Tensor) -> list[int]:
        first.append(logits_RV.clone())
        return write_next(writings, logits_RV)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memspan.generate.decode.write_next", spy)
        for _ in decoding.run():
            pass
    return first[0], [row.ids for row in decoding.rows]


def _rounds(loaded: LoadedModel, growth: Sequence[Sequence[int]], questions: Sequence[str]) -> Iterator[tuple]:
    memory = _memory(loaded)
    state = RoundState(loaded)
    for lengths in growth:
        contexts = [_context(seed, length) for seed, length in enumerate(lengths)]
        kept = _run(state.decode(contexts, memory, SAMPLING, questions=questions))
        yield state.num_lower_tokens, kept, _run(Decoding(loaded, contexts, memory, SAMPLING))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounds_equal_runs_from_scratch(family: str) -> None:
    loaded = tiny_loaded(family)
    assert loaded.model.config.layers[0] == 2
    for _, (logits, ids), (wanted_logits, wanted_ids) in _rounds(loaded, GROWTH, ["a", "b"]):
        torch.testing.assert_close(logits, wanted_logits, atol=1e-5, rtol=1e-5)
        assert ids == wanted_ids


def test_only_new_tokens_run_through_the_lower_layers() -> None:
    loaded = tiny_loaded()
    tokens = [count for count, *_ in _rounds(loaded, GROWTH, ["a", "b"])]
    assert tokens == [2 * 14, 2 * 11, 2 * 25]
    with _tokens_run(loaded, 1) as lower, _tokens_run(loaded, 2) as upper:
        list(_rounds(loaded, GROWTH, ["a", "b"]))
    # The documents; then per round a prefill and two decoding steps with what is kept, and the same from scratch.
    assert lower == [24, 14, 1, 1, 14, 1, 1, 11, 1, 1, 20, 1, 1, 25, 1, 1, 40, 1, 1]
    assert upper == [24, 14, 1, 1, 14, 1, 1, 20, 1, 1, 20, 1, 1, 40, 1, 1, 40, 1, 1]


@pytest.mark.parametrize("family", SLIDING)
def test_layers_with_a_sliding_window_run_for_all_tokens(family: str) -> None:
    tokens = [count for count, *_ in _rounds(tiny_loaded(family), GROWTH, ["a", "b"])]
    assert tokens == [2 * 14, 2 * 20, 2 * 40]


def test_without_lower_layers_nothing_is_kept() -> None:
    loaded = tiny_loaded(msa_layers=[0, 2])
    for _, (logits, ids), (wanted_logits, wanted_ids) in _rounds(loaded, GROWTH[:2], ["a", "b"]):
        assert torch.equal(logits, wanted_logits) and ids == wanted_ids


def test_a_context_that_changed_at_its_beginning_is_run_again_from_there() -> None:
    loaded = tiny_loaded()
    memory, state = _memory(loaded), RoundState(loaded)
    first, other = _context(0, 20), _context(1, 26)
    _run(state.decode([first], memory, SAMPLING, questions=["a"]))
    mixed = Context((*first.ids[:7], *other.ids[7:]), other.routes)
    logits, _ = _run(state.decode([mixed], memory, SAMPLING, questions=["a"]))
    assert state.num_lower_tokens == 26 - 7
    torch.testing.assert_close(logits, _run(Decoding(loaded, [mixed], memory, SAMPLING))[0], atol=1e-5, rtol=1e-5)


def test_the_same_context_again_runs_one_token() -> None:
    loaded = tiny_loaded()
    memory, state = _memory(loaded), RoundState(loaded)
    context = _context(0, 20)
    wanted, _ = _run(state.decode([context], memory, SAMPLING, questions=["a"]))
    logits, _ = _run(state.decode([context], memory, SAMPLING, questions=["a"]))
    assert state.num_lower_tokens == 1
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)


def test_questions_come_and_go() -> None:
    """A question that is done leaves the batch; one that was not there before joins, and all are run for it."""
    loaded = tiny_loaded()
    memory, state = _memory(loaded), RoundState(loaded)
    a, b = _context(0, 20), _context(1, 24)
    _run(state.decode([a, b], memory, SAMPLING, questions=["a", "b"]))
    longer = _context(1, 30)
    logits, _ = _run(state.decode([longer], memory, SAMPLING, questions=["b"]))
    assert state.num_lower_tokens == 6
    torch.testing.assert_close(logits, _run(Decoding(loaded, [longer], memory, SAMPLING))[0], atol=1e-5, rtol=1e-5)
    c = _context(2, 12)
    logits, _ = _run(state.decode([c, longer], memory, SAMPLING, questions=["c", "b"]))
    torch.testing.assert_close(logits, _run(Decoding(loaded, [c, longer], memory, SAMPLING))[0], atol=1e-5, rtol=1e-5)
    assert state.num_lower_tokens == 2 * 12


def test_a_decoding_that_was_never_run_leaves_what_was_kept() -> None:
    loaded = tiny_loaded()
    memory, state = _memory(loaded), RoundState(loaded)
    _run(state.decode([_context(0, 20)], memory, SAMPLING, questions=["a"]))
    state.decode([_context(0, 22)], memory, SAMPLING, questions=["a"])
    logits, _ = _run(state.decode([_context(0, 25)], memory, SAMPLING, questions=["a"]))
    assert state.num_lower_tokens == 5
    wanted, _ = _run(Decoding(loaded, [_context(0, 25)], memory, SAMPLING))
    torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=1e-5)
