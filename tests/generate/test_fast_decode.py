"""One question's fast path (buffers, drafts, packed weights) against the path of a batch, which is the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from helpers import FAMILIES, IM_END, WINDOW, TensorMemory, random_context, random_ids, tiny_loaded

from memspan.generate.batching import DecodingBatch
from memspan.generate.decode import Decoding
from memspan.generate.lookup import PromptLookup
from memspan.generate.sampling import Sampling
from memspan.model import buffers
from memspan.model.convert import LoadedModel
from memspan.model.costs import StepCosts
from memspan.text.template import Context
from memspan.types import Span

GREEDY = Sampling(max_new_tokens=24)
SAMPLED = Sampling(max_new_tokens=24, temperature=0.5, seed=3)


@pytest.fixture(autouse=True)
def drafts_always_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step's seconds are learned; whether drafts pay is tested with a clock of its own."""
    monkeypatch.setattr(StepCosts, "add", lambda *_: None)


def _memory(loaded: LoadedModel) -> TensorMemory:
    with torch.no_grad():
        return TensorMemory(loaded.model, loaded.model.encode(random_ids(9, 3, 8, 14, 1)))


class _Parrot(PromptLookup):
    """Drafts what it was told, but for every third token: so drafts are kept whole, in part, or not at all."""

    def __init__(self, script: Sequence[int]) -> None:
        super().__init__(())
        self._script = [token if place % 3 else token ^ 1 for place, token in enumerate(script)]

    def draft(self, at_most: int) -> list[int]:
        return self._script[len(self._ids) :][: min(4, at_most)]


def _write(decoding: Decoding) -> tuple[list[int], str, str | None]:
    for _ in decoding.run():
        pass
    (row,) = decoding.rows
    return row.ids, row.text, row.finish_reason


def _plain(loaded: LoadedModel, context: Context, memory: TensorMemory | None, sampling: Sampling, **options: object):
    decoding = Decoding(loaded, [context], memory, sampling, **options)  # type: ignore[arg-type]
    decoding.lookup = None
    return _write(decoding)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_change_nothing_whatever_they_are(
    family: str, sampling: Sampling, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "_ROOM", 3)  # they grow on the way
    loaded = tiny_loaded(family)
    memory = _memory(loaded)
    loaded.model.to(device)  # type: ignore[arg-type]
    if device.type == "cuda":
        memory = None
    for body in (2 * WINDOW, 1):  # longer than a window, and shorter
        context = random_context(3, body, 2)
        plain = _plain(loaded, context, memory, sampling)
        decoding = Decoding(loaded, [context], memory, sampling)
        decoding.lookup = parrot = _Parrot(plain[0])
        assert _write(decoding) == plain
        assert 0 < parrot.num_accepted < parrot.num_drafted
        assert _write(Decoding(loaded, [context], memory, sampling)) == plain


def test_a_token_is_yielded_at_a_time_whatever_a_step_writes() -> None:
    loaded = tiny_loaded()
    context = random_context(3, 9, 2)
    ids, *_ = _plain(loaded, context, None, GREEDY)
    decoding = Decoding(loaded, [context], None, GREEDY)
    decoding.lookup = _Parrot(ids)
    assert [len(decoding.rows[0].ids) for _ in decoding.run()] == list(range(1, len(ids) + 1))


def test_a_stop_inside_an_accepted_draft_ends_the_answer() -> None:
    loaded = tiny_loaded()
    context = random_context(3, 9, 2)
    ids, *_ = _plain(loaded, context, None, GREEDY)
    place = next(place for place in range(4, len(ids)) if ids[place] not in ids[:place])
    loaded.template.stop_ids |= {ids[place]}
    decoding = Decoding(loaded, [context], None, GREEDY)
    decoding.lookup = _Parrot(ids)
    written, _, reason = _write(decoding)
    assert (written, reason) == (ids[: place + 1], "stop")


class _Even:
    """Lets even tokens be written only, ten of them."""

    def mask(self, logits_V: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        odd = torch.arange(len(logits_V)) % 2 == (1 if len(ids) % 2 else 0)
        return logits_V.masked_fill(odd, float("-inf"))

    def finished(self, ids: Sequence[int]) -> bool:
        return len(ids) == 10


def test_a_guide_sees_every_token_of_a_draft() -> None:
    loaded = tiny_loaded()
    context = random_context(3, 9, 2)
    plain = _plain(loaded, context, None, GREEDY, guides=[_Even()])
    decoding = Decoding(loaded, [context], None, GREEDY, [_Even()])
    decoding.lookup = parrot = _Parrot(plain[0])
    assert _write(decoding) == plain
    assert plain[2] == "complete" and parrot.num_accepted > 0


# --- what is drafted --------------------------------------------------------------------------------------------------


def test_a_draft_is_what_followed_the_longest_last_match() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 3, 6, 7, 8, 2, 3])
    assert lookup.draft(10) == [4, 5, 9, 3, 6], "(2, 3) matches before the later 3"
    lookup.extend([6])
    assert lookup.draft(10) == [7, 8, 2, 3, 6], "(3, 6), where it stood last"
    assert lookup.draft(2) == [7, 8]
    assert lookup.draft(0) == []
    lookup.extend([100])
    assert lookup.draft(10) == [], "nothing reads like the end, which does not match itself"


def test_what_was_written_is_drafted_too() -> None:
    lookup = PromptLookup([1])
    lookup.extend([5, 6, 7, 5])
    assert lookup.draft(9)[:2] == [6, 7]


def test_what_was_kept_lately_says_what_will_be() -> None:
    lookup = PromptLookup([1])
    before = lookup.kept
    lookup.accepted(1, 4)  # the first was kept, the second not; the others say nothing
    assert 0.5 < lookup.kept < before
    for _ in range(20):
        lookup.accepted(0, 5)
    assert lookup.kept < 0.1
    for _ in range(20):
        lookup.accepted(5, 5)
    assert lookup.kept > 0.9
    assert (lookup.num_drafted, lookup.num_accepted) == (204, 101)


# --- whether drafts pay -----------------------------------------------------------------------------------------------


class _Clock:
    """Time that passes in the model's forwards only: seconds by the tokens of a step."""

    def __init__(self, loaded: LoadedModel, seconds: Callable[[int], float]) -> None:
        self.now, self.seconds = 0.0, seconds
        self.sizes: list[int] = []
        loaded.model.register_forward_pre_hook(self._pass, with_kwargs=True)

    def _pass(self, _: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        self.sizes.append(kwargs["input_ids"].shape[1])
        self.now += self.seconds(self.sizes[-1])

    def write(self, loaded: LoadedModel, decoding: Decoding) -> list[int]:
        """Decode; returns the tokens of every step."""
        batch = DecodingBatch(loaded, 1, clock=lambda: self.now)
        for _ in batch.run(decoding):
            batch.step()
        sizes, self.sizes = self.sizes[1:], []
        return sizes


def _repeating(loaded: LoadedModel) -> Decoding:
    loaded.template.stop_ids -= {IM_END}
    sampling = Sampling(max_new_tokens=200, stop=("\0",))
    return Decoding(loaded, [Context(tuple(random_ids(12)[0]), Span(2, 10))], None, sampling)


def test_drafts_stop_where_steps_of_several_tokens_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # costs are learned
    loaded = tiny_loaded()
    sizes = _Clock(loaded, lambda num_tokens: float(num_tokens) ** 2).write(loaded, _repeating(loaded))
    tried = [place for place, size in enumerate(sizes) if size > 1]
    assert 0 < len(tried) < 25 and tried[-1] > 100, "it is tried, given up, and tried now and then"


def test_drafts_start_again_where_they_have_come_to_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    costs = StepCosts()

    def drafted(seconds: Callable[[int], float]) -> list[int]:
        lengths = []
        for _ in range(200):
            lengths.append(costs.best_draft(0.9, 5))
            costs.add(1 + lengths[-1], seconds(1 + lengths[-1]))
        return lengths

    assert sum(drafted(lambda num_tokens: float(num_tokens) ** 2)) < 40
    assert drafted(lambda num_tokens: 1.0 + 0.01 * num_tokens)[-1] == 5
    assert sum(drafted(lambda num_tokens: float(num_tokens) ** 2)[-50:]) < 10, "and stop again"


def test_drafts_stop_where_they_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    costs = StepCosts()
    for num_tokens in (1, 2, 3, 4, 5, 6):
        for _ in range(2):
            costs.add(num_tokens, 1.0 + 0.2 * num_tokens)
    lookup = PromptLookup([1])
    assert costs.best_draft(lookup.kept, 5) >= 2
    for _ in range(30):
        lookup.accepted(0, 5)
    assert [costs.best_draft(lookup.kept, 5) for _ in range(33)].count(1) == 1
    assert costs.best_draft(1.0, 5) == 5 and costs.best_draft(1.0, 0) == 0


def test_real_repetition_is_drafted_and_kept() -> None:
    loaded = tiny_loaded()
    # A model without attention to speak of writes in cycles: what it wrote is found again.
    decoding = _repeating(loaded)
    _write(decoding)
    assert decoding.lookup is not None and decoding.lookup.num_accepted > 50
