"""The round loop with a model that names documents itself: a scripted one (logits from a table), and a free one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny_model, tiny_tokenizer
from transformers import DynamicCache

from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.config import TEMPLATES
from memspan.errors import MemspanError, QuestionError
from memspan.events import Done, RoundDone, RoundStarted, TextWritten
from memspan.generate.constrain import RoutedIds
from memspan.generate.decode import Decoding
from memspan.generate.memory import Memory
from memspan.generate.sampling import Sampling
from memspan.model import decoding
from memspan.model.buffers import DecodeBuffers
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import QueryStep
from memspan.text.packing import pack_contexts
from memspan.text.rounds import RoundProtocol
from memspan.text.template import Passage, PromptTemplate
from memspan.types import Answer, Document

END, ENOUGH = "<|object_ref_end|>", "<End-of-Retrieve>"
ANIMALS = ("otter", "heron", "badger", "newt", "falcon", "lynx", "marmot", "viper", "ibis", "gecko")
DOCUMENTS = [
    Document(animal, f"The {animal} lives at number {place}.", metadata={"place": place}, date="2024-01-01")
    for place, animal in enumerate(ANIMALS)
]
FREE = {"selector": "generate", "constrain_ids": False}
SHORT = Sampling(max_new_tokens=12)


def _loaded(markers: Sequence[str] = (END, ENOUGH), **settings: Any) -> LoadedModel:
    """A tiny model with the released template; without `markers`, they are several tokens of its tokenizer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *markers]})
    template = dataclasses.asdict(TEMPLATES["msa"])
    model = tiny_model(template=template, **settings)
    if markers:
        torch.manual_seed(9)
        model.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.config.text_config.vocab_size = model.config.vocab_size = len(tokenizer)
    return LoadedModel(model, PromptTemplate(model.config.template_spec, tokenizer), Path("tiny"))


@pytest.fixture(scope="module", params=["markers are tokens", "markers are text"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return _loaded() if request.param == "markers are tokens" else _loaded(())


@pytest.fixture
def memory(filled: Path, loaded: LoadedModel) -> Iterator[Memory]:
    with Memory(MemoryBank.open(filled), loaded) as memory:
        yield memory


class _Followed(DecodeBuffers):
    """Knows of every row the prefill's cache and the row in it that it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: list[tuple[int, int]] = []

    def join(self, cache: DynamicCache, retrieved: Any, rows: Sequence[int], *given: Any) -> None:
        super().join(cache, retrieved, rows, *given)
        self.origins += [(id(cache), row) for row in rows]

    def leave(self, row: int) -> None:
        super().leave(row)
        self.origins[row] = self.origins[-1]
        self.origins.pop()


@pytest.fixture(autouse=True)
def rows_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "DecodeBuffers", _Followed)


class Scripted:
    """A model whose logits come from a table: question -> what it writes, turn by turn, then an end of sequence.

    It reads its own place in the table off the tokens before it, so that it says the same however it is run. The real
    model runs as well: it routes.
    """

    def __init__(self, loaded: LoadedModel, script: dict[str, list[str]]) -> None:
        self.model, self.template = loaded.model, loaded.template
        protocol = RoundProtocol(loaded.template)
        self.round_end = protocol.round_end
        self.table = {
            protocol.start(question).context().ids: [self._turn(protocol, turn) for turn in turns]
            for question, turns in script.items()
        }
        self.seen: dict[tuple[int, int], list[int]] = {}

    def _turn(self, protocol: RoundProtocol, turn: str) -> tuple[int, ...]:
        return tuple(self.template.tokens(turn.replace("{", "{{").replace("}", "}}")))

    def __call__(self, *args: Any, **options: Any) -> Any:
        ids, step, cache = options["input_ids"], options["memory"], options.get("past_key_values")
        out = self.model(*args, **options)
        if cache is None:  # decoded from buffers: a draft that was not taken is written over
            starts = (options["position_ids"][:, 0] - self.model.config.offset).tolist()
            for origin, start, new in zip(step.buffers.origins, starts, ids.tolist(), strict=True):
                self.seen[origin] = self.seen[origin][:start] + new
            rows = [self.seen[origin] for origin in step.buffers.origins]
        else:
            rows = ids.tolist()
            if step.valid_BS is not None:
                rows = [ids[row][valid].tolist() for row, valid in enumerate(step.valid_BS)]
            self.seen |= {(id(cache), row): tokens for row, tokens in enumerate(rows)}
        num_read = ids.shape[1] if cache is None else 1
        logits = torch.zeros(len(ids), num_read, out.logits.shape[-1])
        for row, tokens in enumerate(rows):
            for place in range(num_read):
                logits[row, place, self._next(tokens[: len(tokens) - num_read + place + 1])] = 1.0
        return SimpleNamespace(logits=logits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _next(self, tokens: list[int]) -> int:
        (start,) = [(p, turns) for p, turns in self.table.items() if _find(tokens, p) is not None]
        prompt, turns = start
        rest = tokens[_find(tokens, prompt) + len(prompt) :]  # type: ignore[operator]
        for turn in turns:
            same = next((n for n, pair in enumerate(zip(turn, rest, strict=False)) if pair[0] != pair[1]), None)
            if same is None and len(rest) < len(turn):
                return turn[len(rest)]
            rest = rest[len(turn) if same is None else same :]
            # Behind what it wrote stands what the system closed and put in, up to the last delimiter of the turn.
            if same is not None and tuple(rest[: len(self.round_end)]) == self.round_end:
                rest = rest[len(self.round_end) :]
            rest = self._after_injected(rest)
        (end,) = [t for t in self.template.stop_ids if self.template.tokenizer.convert_ids_to_tokens(t) == "<|im_end|>"]
        return end

    def _after_injected(self, rest: list[int]) -> list[int]:
        place = _find(rest, self.round_end)
        return rest if place is None else rest[place + len(self.round_end) :]


def _find(tokens: Sequence[int], part: Sequence[int]) -> int | None:
    part = list(part)
    return next((n for n in range(len(tokens) - len(part) + 1) if list(tokens[n : n + len(part)]) == part), None)


def _play(memory: Memory, script: dict[str, list[str]], **options: Any) -> list[Answer]:
    played = Scripted(memory.loaded, script)
    loaded = dataclasses.replace(memory.loaded, model=played)  # type: ignore[arg-type]
    opened = Memory.__new__(Memory)
    opened.__dict__.update(memory.__dict__)
    opened.loaded = loaded
    return opened.ask_batch(list(script), **{"sampling": SHORT, **FREE, **options})


def _one(memory: Memory, *turns: str, question: str = "Where?", **options: Any) -> Answer:
    return _play(memory, {question: list(turns)}, **options)[0]


def _chosen(answer: Answer) -> list[list[int]]:
    return [[item.document_id for item in found.chosen] for found in answer.rounds]


# --- every branch of the loop -----------------------------------------------------------------------------------------


def test_no_round_but_the_answer(memory: Memory) -> None:
    answer = _one(memory, ENOUGH, "none")
    assert (answer.text, _chosen(answer), answer.evidence) == ("none", [[]], ())
    assert (answer.rounds[0].ended, answer.rounds[0].written) == ("enough", ENOUGH)


def test_one_round_puts_the_named_text_in(memory: Memory) -> None:
    answer = _one(memory, f"[3]{END}", ENOUGH, "at two")
    assert (answer.text, answer.finish_reason, _chosen(answer)) == ("at two", "stop", [[3], []])
    first, second = answer.rounds
    assert (first.injected, first.written) == ("[3]. The badger lives at number 2.\n", f"[3]{END}")
    assert (first.ended, second.ended, first.selector) == ("more", "enough", "generate")
    assert [item.external_id for item in answer.evidence] == ["badger"]
    assert first.num_injected_tokens > 5 and set(first.timings) == {"prefill", "decode"}
    assert [layer.layer for layer in first.routed] == list(memory.loaded.model.config.layers)


def test_three_rounds_and_documents_in_the_order_they_are_named(memory: Memory) -> None:
    answer = _one(memory, f"[7][2]{END}", f"[4]{END}", f"[1]{END}", ENOUGH, "yes")
    assert (answer.text, _chosen(answer)) == ("yes", [[7, 2], [4], [1], []])
    assert answer.rounds[0].injected.startswith("[7]. The marmot") and "\n[2]. The heron" in answer.rounds[0].injected
    assert [item.document_id for item in answer.evidence] == [7, 2, 4, 1]


def test_an_empty_list_ends_retrieval(memory: Memory) -> None:
    answer = _one(memory, END, "so")
    assert (answer.text, _chosen(answer), answer.rounds[0].ended) == ("so", [[]], "nothing")


def test_unknown_ids_are_counted_and_passed_over(memory: Memory) -> None:
    answer = _one(memory, f"[99][3][123456789012345678]{END}", ENOUGH, "x", documents_per_round=4)
    assert (_chosen(answer), answer.rounds[0].unknown, answer.rounds[0].malformed) == ([[3], []], 2, 0)
    answer = _one(memory, f"[99]{END}", "x")
    assert (_chosen(answer), answer.rounds[0].ended, answer.text) == ([[]], "nothing", "x")


def test_an_id_outside_the_scope_is_unknown(memory: Memory) -> None:
    answer = _one(memory, f"[3][6]{END}", ENOUGH, "x", where={"place": {">=": 4}})
    assert (_chosen(answer), answer.rounds[0].unknown) == ([[6], []], 1)


def test_malformed_ids_are_counted_and_passed_over(memory: Memory) -> None:
    answer = _one(memory, f"see [3] and [x][007][][0]{END}", ENOUGH, "x")
    assert (_chosen(answer), answer.rounds[0].malformed) == ([[3], []], 2)
    answer = _one(memory, f"[{'9' * 20}]{END}", "x")
    assert (_chosen(answer), answer.rounds[0].malformed) == ([[]], 1)


def test_a_document_is_never_put_in_twice(memory: Memory) -> None:
    answer = _one(memory, f"[3][3][5]{END}", f"[5][2]{END}", f"[2]{END}", "x")
    assert _chosen(answer) == [[3, 5], [2], []]
    assert [found.repeated for found in answer.rounds] == [1, 1, 1]
    assert answer.rounds[2].ended == "nothing"


def test_without_an_end_marker_the_system_closes_the_round(memory: Memory) -> None:
    answer = _one(memory, "[3]" + "x" * 200, ENOUGH, "y", documents_per_round=1)
    assert (_chosen(answer), answer.rounds[0].malformed, answer.text) == ([[3], []], 1, "y")
    assert END not in answer.rounds[0].written
    protocol = RoundProtocol(memory.loaded.template)
    parts = (protocol.start("Where?"), protocol.round_end, protocol.retrieval_end, protocol.final("Where?"))
    first = answer.rounds[0]
    assert answer.num_prompt_tokens == sum(map(len, parts)) + first.num_written_tokens + first.num_injected_tokens


def test_an_end_of_sequence_instead_of_ids_is_enough(memory: Memory) -> None:
    answer = _one(memory, "<|im_end|>", "x")
    assert (_chosen(answer), answer.rounds[0].ended) == ([[]], "enough")


def test_ids_before_the_end_of_retrieval_are_not_read(memory: Memory) -> None:
    answer = _one(memory, f"[3]{ENOUGH}", "x")
    assert (_chosen(answer), answer.rounds[0].malformed, answer.text) == ([[]], 1, "x")


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_limit_of_rounds(memory: Memory) -> None:
    answer = _one(memory, f"[3]{END}", f"[4]{END}", f"{ENOUGH}", rounds=2)
    assert (_chosen(answer), [found.ended for found in answer.rounds]) == ([[3], [4]], ["more", "limit"])


def test_a_limit_of_documents_per_round_and_of_all(memory: Memory) -> None:
    answer = _one(memory, f"[3][4][5]{END}", f"[6][7]{END}", documents_per_round=2, max_documents=3)
    assert _chosen(answer) == [[3, 4], [6]]
    assert [found.left_out for found in answer.rounds] == [1, 1]
    assert answer.rounds[1].ended == "limit"


def test_no_documents_means_an_answer_from_the_latents_alone(memory: Memory) -> None:
    answer = _one(memory, ENOUGH, "z", max_documents=0)
    assert (answer.rounds, answer.evidence) == ((), ())
    assert {layer.layer for layer in answer.routed} == set(memory.loaded.model.config.layers)


def test_a_limit_of_injected_tokens_leaves_the_last_out(memory: Memory) -> None:
    both = _one(memory, f"[3][4]{END}", ENOUGH, "x").rounds[0].num_injected_tokens
    for limit, chosen in ((both, [3, 4]), (both - 1, [3])):
        answer = _one(memory, f"[3][4]{END}", ENOUGH, "x", max_injected_tokens=limit)
        assert _chosen(answer) == [chosen, []]
        assert answer.rounds[0].left_out == 2 - len(chosen)
    answer = _one(memory, f"[3]{END}", "x", max_injected_tokens=0)
    assert (_chosen(answer), answer.rounds[0].ended, answer.text) == ([[]], "room", "x")


def test_the_limit_of_injected_tokens_is_over_all_rounds(memory: Memory) -> None:
    tokens = [found.num_injected_tokens for found in _one(memory, f"[3]{END}", f"[4]{END}", ENOUGH).rounds[:2]]
    for limit, second in ((sum(tokens), [4]), (sum(tokens) - 1, [])):
        answer = _one(memory, f"[3]{END}", f"[4]{END}", ENOUGH, "x", max_injected_tokens=limit)
        assert _chosen(answer)[:2] == [[3], second]


def test_when_the_room_ends_texts_are_left_out_and_the_answer_still_fits(memory: Memory) -> None:
    room = 512 - memory.loaded.model.config.offset
    options: Any = {"rounds": 1, "documents_per_round": 4}
    needed = _one(memory, f"[3][4][5][7]{END}", ENOUGH, "x", **options).num_prompt_tokens
    for spare, chosen in ((0, [3, 4, 5, 7]), (-1, [3, 4, 5])):
        sampling = Sampling(max_new_tokens=room - needed - spare)
        answer = _one(memory, f"[3][4][5][7]{END}", "x", sampling=sampling, **options)
        assert (_chosen(answer), answer.num_prompt_tokens <= room - sampling.max_new_tokens) == ([chosen], True)


def test_without_room_for_another_round_the_model_answers(memory: Memory) -> None:
    protocol = RoundProtocol(memory.loaded.template)
    needed = len(protocol.start("Where?")) + len(protocol.retrieval_end) + len(protocol.final("Where?"))
    room = 512 - memory.loaded.model.config.offset
    answer = _one(memory, ENOUGH, "x", sampling=Sampling(max_new_tokens=room - needed))
    assert (answer.text, answer.rounds) == ("x", ())
    with pytest.raises(QuestionError, match="needs"):
        _one(memory, ENOUGH, "x", sampling=Sampling(max_new_tokens=room - needed + 1))


# --- batches, streams -------------------------------------------------------------------------------------------------


SCRIPT = {
    "Where?": [f"[3]{END}", f"[4]{END}", f"[1]{END}", ENOUGH, "one"],
    "Where is the lynx, and where does the viper live?": [ENOUGH, "two words"],
    "Who?": [f"[6][8]{END}", ENOUGH, "three"],
    "What, then?": [f"[99]{END}", "four"],
}


@pytest.mark.parametrize("route_tokens", ["all", "newest"])
def test_a_batch_of_different_numbers_of_rounds_answers_as_each_alone(memory: Memory, route_tokens: Any) -> None:
    together = _play(memory, SCRIPT, route_tokens=route_tokens)
    assert [answer.text for answer in together] == ["one", "two words", "three", "four"]
    assert [len(answer.rounds) for answer in together] == [4, 1, 2, 1]
    for question, answer in zip(SCRIPT, together, strict=True):
        (alone,) = _play(memory, {question: SCRIPT[question]}, route_tokens=route_tokens)
        _assert_same(answer, alone)


@pytest.mark.parametrize("constrain_ids", [True, False])
def test_a_batch_of_free_models_answers_as_each_alone(memory: Memory, constrain_ids: bool) -> None:
    for sampling in (SHORT, Sampling(max_new_tokens=12, temperature=2.0, seed=4)):
        options: Any = {"selector": "generate", "sampling": sampling, "constrain_ids": constrain_ids}
        together = memory.ask_batch(list(SCRIPT), **options)
        for question, answer in zip(SCRIPT, together, strict=True):
            _assert_same(answer, memory.ask(question, **options))


def _assert_same(one: Answer, other: Answer) -> None:
    """The same to the bit, but for scores, which are sums of floats."""
    assert (one.text, one.num_prompt_tokens, one.num_new_tokens) == (
        other.text,
        other.num_prompt_tokens,
        other.num_new_tokens,
    )
    assert _chosen(one) == _chosen(other)
    for a, b in zip(one.rounds, other.rounds, strict=True):
        assert [layer.document_ids for layer in a.routed] == [layer.document_ids for layer in b.routed]
        names = ("number", "query", "written", "injected", "ended", "malformed", "unknown", "repeated", "left_out")
        assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
        scores = [x for layer in a.routed for x in layer.scores]
        assert scores == pytest.approx([x for layer in b.routed for x in layer.scores], abs=1e-4)


def test_events_tell_rounds_documents_text_and_the_answer_in_order(memory: Memory) -> None:
    events = list(memory.events("Where?", selector="generate", rounds=2, sampling=SHORT))
    kinds = [type(event) for event in events]
    answer = events[-1].answer  # type: ignore[union-attr]
    num_rounds = len(answer.rounds)
    assert kinds[: 2 * num_rounds] == [RoundStarted, RoundDone] * num_rounds
    assert set(kinds[2 * num_rounds : -1]) <= {TextWritten} and kinds[-1] is Done
    assert tuple(event.round for event in events if isinstance(event, RoundDone)) == answer.rounds
    assert "".join(event.text for event in events if isinstance(event, TextWritten)).strip() == answer.text
    assert "".join(memory.stream("Where?", selector="generate", rounds=2, sampling=SHORT)).strip() == answer.text


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route_tokens", ["all", "newest"])
def test_the_loop_equals_a_run_from_scratch_of_the_whole_context(
    memory: Memory, route_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built by hand here: the whole sequence in one causal pass, the last round's routing in every MSA layer."""
    decodings: list[Decoding] = []
    run = Decoding.run
    monkeypatch.setattr(Decoding, "run", lambda self: (decodings.append(self), run(self))[1])
    steps: list[torch.Tensor] = []

    def record(logits_RV: torch.Tensor, *_: Any) -> list[int]:
        steps.append(logits_RV[0].clone())
        return logits_RV.argmax(-1).tolist()

    monkeypatch.setattr("memspan.generate.batching.pick_tokens", record)
    allowed, enough = RoutedIds.next_tokens, RoundProtocol(memory.loaded.template).retrieval_end[0]
    monkeypatch.setattr(
        RoutedIds, "next_tokens", lambda self, ids: allowed(self, ids) - ({enough} if not ids else set())
    )
    answer = memory.ask("Where?", selector="generate", rounds=3, documents_per_round=1, route_tokens=route_tokens)
    template, spec = memory.loaded.template, memory.loaded.template.spec
    used = [found for found in answer.rounds if found.chosen]
    assert len(used) == 3
    ids, routing = [*template.prefix_ids], []
    for kind, text in _pieces(spec, "Where?", used):
        piece = template.tokens(text.replace("{", "{{").replace("}", "}}"))
        routing += [(len(ids), len(ids) + len(piece))] if kind == "routes" else []
        ids += piece
    last = decodings[-1]
    written = last.rows[0].ids
    length, offset = len(ids), memory.loaded.model.config.offset
    assert length == answer.num_prompt_tokens
    if route_tokens == "newest":
        routing = [routing[0], routing[-1]]
    routes = torch.zeros(1, length, dtype=torch.bool)
    for start, end in routing:
        routes[0, start:end] = True
    position = torch.arange(length)
    prefix = len(template.prefix_ids)
    sees = (position >= prefix)[None]
    position = torch.where(position < prefix, position, position + offset)[None]
    with torch.inference_mode():
        local = last._memory  # the same bank
        step = QueryStep(sees_memory_BT=sees, routes_BT=routes, memory=local)
        memory.loaded.model(torch.tensor([ids]), position_ids=position, memory=step, use_cache=False)
        assert {layer: found.doc_ids for layer, found in step.retrieved.items()} == {
            layer: found.doc_ids for layer, found in last.retrieved.items()
        }
        whole = torch.tensor([[*ids, *written]])
        more = torch.arange(whole.shape[1])
        place = torch.where(more < prefix, more, more + offset)[None]
        final = QueryStep(sees_memory_BT=(more >= prefix)[None], memory=local, retrieved=step.retrieved)
        logits = memory.loaded.model(whole, position_ids=place, memory=final, use_cache=False).logits[0]
    expected = logits[length - 1 : -1]
    torch.testing.assert_close(torch.stack(steps[-len(written) :]), expected, rtol=0, atol=1e-5)


def _pieces(spec: Any, question: str, rounds: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The context to answer in, as literals; a plain concatenation."""
    yield "routes", spec.plain_question.format(question=question)
    yield "tail", spec.context_suffix
    for found in rounds:
        yield "written", found.written
        yield "routes", f"{found.injected}{END}"
    yield "written", ENOUGH
    yield "final", f"<|im_start|>The user's question is: {question}\n{END}"


def test_later_text_changes_nothing_before_it(memory: Memory) -> None:
    """Injected text is attended causally, by itself as well."""
    protocol, model = RoundProtocol(memory.loaded.template), memory.loaded.model
    start = protocol.start("Where?").add("model", protocol.naming([3]))
    one, other = (
        start.add("texts", protocol.texts([Passage(3, f"The badger lives {where}")])) for where in ("here", "there")
    )
    hidden = []
    for transcript in (one, other):
        packed = pack_contexts([transcript.context()], model.config.offset)
        step = QueryStep(packed.valid, packed.sees_memory)
        with torch.inference_mode():
            hidden.append(model(packed.ids, position_ids=packed.positions, memory=step, use_cache=False).logits[0])
    ids = [transcript.context().ids for transcript in (one, other)]
    same = next(n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert same > len(start) + 5, "they part inside the text"
    torch.testing.assert_close(hidden[0][:same], hidden[1][:same], rtol=0, atol=1e-5)


# --- constrained ids --------------------------------------------------------------------------------------------------


def test_constrained_decoding_names_only_what_was_routed_to(memory: Memory) -> None:
    named = 0
    for seed in range(12):
        sampling = Sampling(max_new_tokens=4, temperature=5.0, seed=seed)
        answer = memory.ask("Where?", selector="generate", sampling=sampling, documents_per_round=3)
        read: set[int] = set()
        for found in answer.rounds:
            routed = {x for layer in found.routed for x in layer.document_ids}
            chosen = {item.document_id for item in found.chosen}
            assert chosen <= routed - read
            assert (found.malformed, found.unknown, found.repeated, found.left_out) == (0, 0, 0, 0)
            assert found.written.endswith((END, ENOUGH))
            read |= chosen
            named += len(chosen)
    assert named > 10


def test_a_scripted_model_cannot_name_what_was_not_routed_to(memory: Memory) -> None:
    free = _one(memory, f"[1][2][3][4][5][6][7][8][9][10]{END}", ENOUGH, rounds=1, max_documents=10)
    routed = {x for layer in free.rounds[0].routed for x in layer.document_ids}
    assert len(routed) < 10 == len(_chosen(free)[0])
    held = _one(memory, f"[1][2][3][4][5][6][7][8][9][10]{END}", rounds=1, max_documents=10, constrain_ids=True)
    assert set(_chosen(held)[0]) <= routed


# --- templates without rounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_a_template_without_markers_is_refused_by_name(name: str, tmp_path: Path) -> None:
    model = tiny_model(template=dataclasses.asdict(TEMPLATES[name]))
    loaded = LoadedModel(model, PromptTemplate(TEMPLATES[name], tiny_tokenizer()), tmp_path)
    with Memory(MemoryBank.create(tmp_path / "bank", manifest_of(loaded)), loaded) as memory:
        memory.add(DOCUMENTS)
        with pytest.raises(MemspanError, match=f"template '{name}' of this model has no markers.*choose router"):
            memory.ask("lynx", selector="generate")
        with pytest.raises(
            MemspanError, match="selector must be one of router, lexical, hybrid, dense, fused, rrf, not 'generate'"
        ):
            memory.search("lynx", selector="generate")
