from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import TensorMemory, random_context, random_ids, tiny_loaded, tiny_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memspan.errors import QuestionError
from memspan.generate import batching, decode
from memspan.generate.decode import Decoding, check_fits, context_room
from memspan.generate.sampling import Sampling, pick_tokens
from memspan.model.buffers import DecodeBuffers
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import QueryStep
from memspan.text.packing import pack_contexts
from memspan.text.template import Context
from memspan.train.greedy import decode_greedily
from memspan.types import Retrieved

GREEDY = Sampling(max_new_tokens=12)
SAMPLED = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=5)


def _memory(loaded: LoadedModel) -> TensorMemory:
    with torch.no_grad():
        return TensorMemory(loaded.model, loaded.model.encode(random_ids(9, 3, 8, 14, 1)))


def _decode(
    loaded: LoadedModel, contexts: list[Context], memory: TensorMemory | None, sampling: Sampling
) -> list[decode.Generated]:
    decoding = Decoding(loaded, contexts, memory, sampling)
    for _ in decoding.run():
        pass
    return decoding.rows


def _ids(text: str) -> list[int]:
    return tiny_tokenizer()(text).input_ids


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Let a model write the given tokens, whatever its logits are (one question at a time)."""

    def write(tokens: list[int]) -> None:
        left: Iterator[int] = iter(tokens)
        monkeypatch.setattr(batching, "pick_tokens", lambda *_: [next(left)])

    return write


# --- the same numbers whichever way -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_batch_of_mixed_lengths_decodes_what_each_would_alone(family: str, sampling: Sampling) -> None:
    loaded = tiny_loaded(family)
    memory = _memory(loaded)
    contexts = [random_context(3, 37, 4), random_context(3, 5, 4), random_context(3, 1, 4), random_context(3, 5, 4)]
    alone = [_decode(loaded, [context], memory, sampling)[0] for context in contexts]
    loaded.template.stop_ids |= {alone[1].ids[4]}  # one of them ends before the others
    alone = [_decode(loaded, [context], memory, sampling)[0] for context in contexts]
    together = _decode(loaded, contexts, memory, sampling)
    assert [row.ids for row in together] == [row.ids for row in alone]
    assert [(row.text, row.finish_reason) for row in together] == [(row.text, row.finish_reason) for row in alone]
    assert len({len(row.ids) for row in together}) > 1, "one of them ended before the others"
    assert len({tuple(row.ids) for row in together}) > 1, "the questions are answered differently"


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_training_writes_what_serving_does(family: str) -> None:
    loaded = tiny_loaded(family)
    memory = _memory(loaded)
    contexts = [random_context(3, 37, 4), random_context(3, 5, 4), random_context(3, 1, 4)]
    first = _decode(loaded, contexts, memory, GREEDY)
    loaded.template.stop_ids |= {first[0].ids[4]}  # one of them ends before the others, and those go on
    served = [row.ids for row in _decode(loaded, contexts, memory, GREEDY)]
    ended = loaded.template.stop_ids.__contains__
    written = decode_greedily(loaded.model, contexts, memory, GREEDY.max_new_tokens, lambda ids: ended(ids[-1]))
    assert written == served
    assert len(written[0]) <= 5 < max(map(len, written)) == 12


@pytest.mark.parametrize("with_memory", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
def test_decoding_equals_one_pass_over_the_whole_sequence(
    family: str, with_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny_loaded(family)
    memory = _memory(loaded) if with_memory else None
    context = random_context(3, 21, 4)
    steps: list[torch.Tensor] = []

    def record(logits_RV: torch.Tensor, *args: Any) -> list[int]:
        steps.append(logits_RV[0].clone())
        return pick_tokens(logits_RV, *args)

    retrieved: dict[int, Retrieved] = {}
    join = DecodeBuffers.join

    def keep(buffers: DecodeBuffers, cache: Any, found: dict[int, Retrieved], *args: Any) -> None:
        retrieved.update(found)  # before K and V are given up
        join(buffers, cache, found, *args)

    monkeypatch.setattr(DecodeBuffers, "join", keep)
    monkeypatch.setattr(batching, "pick_tokens", record)
    decoding = Decoding(loaded, [context], memory, GREEDY)
    for _ in decoding.run():
        pass
    (row,) = decoding.rows
    assert len(steps) == len(row.ids) == 12

    whole = dataclasses.replace(context, ids=(*context.ids, *row.ids))
    packed = pack_contexts([whole], loaded.model.config.offset)
    # Nothing routes: what the prefill retrieved is read by every token behind the prefix.
    step = QueryStep(sees_memory_BT=packed.sees_memory, memory=memory, retrieved=retrieved)
    with torch.no_grad():
        logits_TV = loaded.model(packed.ids, position_ids=packed.positions, memory=step, use_cache=False).logits[0]
    expected = logits_TV[len(context.ids) - 1 : -1]
    torch.testing.assert_close(torch.stack(steps), expected, rtol=0, atol=1e-4)
    assert expected.argmax(-1).tolist() == row.ids
    assert set(decoding.retrieved) == (set(loaded.model.config.layers) if with_memory else set())


def test_memory_changes_what_is_decoded() -> None:
    loaded = tiny_loaded()
    context = random_context(3, 21, 4)
    (with_memory,) = _decode(loaded, [context], _memory(loaded), GREEDY)
    (without,) = _decode(loaded, [context], None, GREEDY)
    assert with_memory.ids != without.ids


def test_every_layer_routes_once_for_a_whole_batch_and_answer() -> None:
    loaded = tiny_loaded()
    memory = _memory(loaded)
    rows = _decode(loaded, [random_context(3, 9, 4), random_context(3, 2, 4)], memory, GREEDY)
    assert [len(row.ids) for row in rows] == [12, 12]
    assert memory.calls == list(loaded.model.config.layers)


def test_sampling_depends_on_the_seed_alone() -> None:
    loaded = tiny_loaded()
    context = random_context(3, 9, 4)
    first, again, other = (
        _decode(loaded, [context], None, Sampling(max_new_tokens=12, temperature=1.5, seed=seed))[0].ids
        for seed in (1, 1, 2)
    )
    assert first == again != other


# --- when an answer ends ----------------------------------------------------------------------------------------------


def test_max_new_tokens_ends_an_answer_after_as_many_steps() -> None:
    loaded = tiny_loaded()
    context = random_context(3, 9, 4)
    (long,) = _decode(loaded, [context], None, GREEDY)
    for count in (1, 5):
        decoding = Decoding(loaded, [context], None, Sampling(max_new_tokens=count))
        assert len(list(decoding.run())) == count
        assert decoding.rows[0].ids == long.ids[:count]
        assert decoding.rows[0].finish_reason == "length"


def test_a_stop_token_ends_an_answer_and_is_not_part_of_its_text(script: Callable[[list[int]], None]) -> None:
    loaded = tiny_loaded()
    (stop,) = loaded.template.stop_ids
    script([*_ids("done"), stop])
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, GREEDY)
    assert (row.text, row.finish_reason, row.ids[-1]) == ("done", "stop", stop)
    script([stop])
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, GREEDY)
    assert (row.text, row.finish_reason, row.ids) == ("", "stop", [stop])


def test_every_end_the_generation_settings_name_ends_an_answer(script: Callable[[list[int]], None]) -> None:
    loaded = tiny_loaded()
    one, two = 500, 501
    assert not {one, two} & loaded.template.stop_ids
    for ends, settings_ in (((one, two), [one, two]), ((one,), one)):
        loaded.model.generation_config.eos_token_id = settings_
        for end in (*ends, *loaded.template.stop_ids):
            script([*_ids("done"), end])
            (row,) = _decode(loaded, [random_context(3, 9, 4)], None, GREEDY)
            assert (row.text, row.finish_reason, row.ids) == ("done", "stop", [*_ids("done"), end])
    loaded.model.generation_config.eos_token_id = None
    script([one, two, *_ids("x")])
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, Sampling(max_new_tokens=3))
    assert (row.ids, row.finish_reason) == ([one, two, *_ids("x")], "length")


def test_a_stop_token_as_the_last_possible_one_still_ends_by_stopping(script: Callable[[list[int]], None]) -> None:
    loaded = tiny_loaded()
    (stop,) = loaded.template.stop_ids
    script([*_ids("Q"), stop])
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, Sampling(max_new_tokens=2))
    assert (row.text, row.finish_reason) == ("Q", "stop")


def test_a_stop_string_over_a_border_of_tokens_ends_an_answer_and_no_part_of_it_is_shown(
    script: Callable[[list[int]], None],
) -> None:
    loaded = tiny_loaded()
    tokens = [*_ids("Rome"), *_ids("\n"), *_ids("Que"), *_ids("stion: and on")]
    script(tokens)
    decoding = Decoding(loaded, [random_context(3, 9, 4)], None, Sampling(max_new_tokens=30, stop=("\nQuestion:",)))
    shown = [decoding.rows[0].text for _ in decoding.run()]
    (row,) = decoding.rows
    assert (row.text, row.finish_reason) == ("Rome", "stop_string")
    assert all("Rome".startswith(text) for text in shown), "the beginning of the stop string was held back"
    assert len(row.ids) == tokens.index(_ids(":")[0]) + 1, "decoding went on after the stop string was complete"


def test_what_only_looked_like_a_stop_string_is_shown_after_all(script: Callable[[list[int]], None]) -> None:
    loaded = tiny_loaded()
    tokens = _ids("Rome\nQu") + _ids("ick")
    script(tokens)
    sampling = Sampling(max_new_tokens=len(tokens), stop=("\nQuestion:",))
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, sampling)
    assert (row.text, row.finish_reason) == ("Rome\nQuick", "length")
    tokens = _ids("Rome\nQu")  # it ends there: what was held back belongs to the answer
    script(tokens)
    sampling = Sampling(max_new_tokens=len(tokens), stop=("\nQuestion:",))
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, sampling)
    assert (row.text, row.finish_reason) == ("Rome\nQu", "length")


def test_the_templates_own_stop_strings_end_an_answer(script: Callable[[list[int]], None]) -> None:
    loaded = tiny_loaded()
    loaded.template.stop_strings = ("\n\n",)
    script(_ids("Rome\n\nnext"))
    (row,) = _decode(loaded, [random_context(3, 9, 4)], None, GREEDY)
    assert (row.text, row.finish_reason) == ("Rome", "stop_string")


# --- characters of several tokens -------------------------------------------------------------------------------------


def test_a_character_of_several_tokens_is_shown_whole_or_not_at_all(script: Callable[[list[int]], None]) -> None:
    loaded = tiny_loaded()
    text = "naïve 日本 😀!"
    tokens = _ids(text)
    assert len(tokens) > len(text) + 5, "its characters are of several tokens"
    script(tokens)
    decoding = Decoding(loaded, [random_context(3, 9, 4)], None, Sampling(max_new_tokens=len(tokens)))
    shown = [decoding.rows[0].text for _ in decoding.run()]
    assert all(text.startswith(part) for part in shown)
    assert shown[-1] == text
    assert sorted(set(shown), key=len) == [text[:end] for end in sorted({len(part) for part in shown})]
    assert "naïve 日" in shown and "naïve 日本 " in shown, "a whole character does not wait for the next"


@given(st.lists(st.integers(0, 255), min_size=1, max_size=10))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_a_model_writes_what_was_shown_is_never_taken_back(
    one_model: LoadedModel, script: Callable[[list[int]], None], tokens: list[int]
) -> None:
    script(tokens)
    decoding = Decoding(one_model, [Context((1, 2, 3), random_context(0, 3, 0).routes)], None, Sampling(len(tokens)))
    shown = [decoding.rows[0].text for _ in decoding.run()]
    for before, after in itertools.pairwise(shown):
        assert after.startswith(before)
    assert shown[-1] == tiny_tokenizer().decode(tokens)


@pytest.fixture(scope="module")
def one_model() -> LoadedModel:
    return tiny_loaded()


# --- room -------------------------------------------------------------------------------------------------------------


def test_a_context_that_fits_exactly_is_decoded_and_one_token_more_is_refused_with_the_numbers() -> None:
    loaded = tiny_loaded(position_offset=7)
    room = 512 - 7 - 12
    assert context_room(loaded, 12) == room
    check_fits(loaded, room, 12)
    (row,) = _decode(loaded, [random_context(3, room - 7, 4)], None, GREEDY)
    assert len(row.ids) == 12
    message = f"needs {room + 1} tokens and the model has room for {room} beside an answer of 12; shorten it"
    with pytest.raises(QuestionError, match=message):
        Decoding(loaded, [random_context(3, 5, 4), random_context(3, room - 6, 4)], None, GREEDY)
