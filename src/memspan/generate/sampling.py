"""How the next token is picked, and when an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memspan.errors import MemspanError

if TYPE_CHECKING:
    import torch


def check_whole(name: str, value: object) -> None:
    """
    Raises:
        TypeError: a value is no whole number.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} is a whole number, not {value!r}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of decoding.

    Attributes:
        max_new_tokens: an answer's length at most.
        temperature: 0 is greedy.
        top_p: sample from the smallest set of tokens whose probability reaches this.
        seed: of every question's own generator, so that a batch samples what its members would alone.
        stop: strings that end the answer; they are not part of it.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens)
        if isinstance(self.stop, str):
            raise TypeError(f"stop is a tuple of texts, as ({self.stop!r},), not one text")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or a positive number, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be a number from 0 to 2**63 - 1, not {self.seed}")
        if "" in self.stop:
            raise ValueError("a stop string must not be empty")


GREEDY = Sampling()

# Of the numbers, from 0 to 1, by which tokens are drawn.
_STEPS = 2**52


def pick_tokens(
    logits_RV: torch.Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> list[int]:
    """The next token of every question. It is picked on the device of the logits, which is waited for once.

    Tokens are drawn by one number a question, which its generator on the CPU gives: so a question gets the same tokens
    in any batch, and on any device that computes the same logits.

    Raises:
        MemspanError: a token is to be drawn from logits that are no numbers.
    """
    drawn = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    token_R = logits_RV.argmax(-1)
    for in_nucleus in (False, True):
        rows = [row for row in drawn if (samplings[row].top_p < 1) == in_nucleus]
        if rows:
            _draw(token_R, logits_RV, rows, samplings, generators, in_nucleus)
    tokens = token_R.tolist()
    if min(tokens) < 0:
        raise MemspanError("the model computed no numbers to draw a token from; load it with --dtype float32")
    return tokens


def _draw(
    token_R: torch.Tensor,
    logits_RV: torch.Tensor,
    rows: Sequence[int],
    samplings: Sequence[Sampling],
    generators: Sequence[torch.Generator],
    in_nucleus: bool,
) -> None:
    """Put a token drawn for each of some rows in its place; -1 where the logits are no numbers."""
    import torch  # settings are read without it

    from memspan.ops.scoring import widest_float
    from memspan.ops.transfer import to_device

    device, wide = logits_RV.device, widest_float(logits_RV.device)
    numbers = [int(torch.randint(_STEPS, (1,), generator=generators[row])) / _STEPS for row in rows]
    settings = [(samplings[row].temperature, samplings[row].top_p, x) for row, x in zip(rows, numbers, strict=True)]
    temperature_R1, top_p_R1, number_R1 = to_device(torch.tensor(settings, dtype=wide).T[..., None], device)
    row_R = to_device(torch.tensor(rows), device)
    # With the best logit at 0, so that no temperature, however small, overflows.
    logits_RV = logits_RV.index_select(0, row_R).to(wide)
    logits_RV = (logits_RV - logits_RV.amax(-1, keepdim=True)) / temperature_R1.clamp(min=torch.finfo(wide).tiny)
    part_RV, order_RV = torch.softmax(logits_RV, dim=-1).float(), None
    if in_nucleus:
        part_RV, order_RV = part_RV.sort(dim=-1, descending=True, stable=True)
        # A token is kept while the ones before it have not reached top_p; the first always is.
        part_RV = part_RV.masked_fill(part_RV.cumsum(-1, dtype=wide) - part_RV >= top_p_R1, 0)
    sum_RV = part_RV.cumsum(-1, dtype=wide)
    whole_R1 = sum_RV[:, -1:]
    place_R1 = (sum_RV <= number_R1 * whole_R1).sum(-1, keepdim=True)
    place_R1 = torch.minimum(place_R1, (sum_RV < whole_R1).sum(-1, keepdim=True))  # the number may be rounded to 1
    picked_R1 = place_R1 if order_RV is None else order_RV.gather(1, place_R1)
    picked_R1 = picked_R1.masked_fill(whole_R1.isnan(), -1)
    token_R.index_copy_(0, row_R, picked_R1[:, 0])


class StopStrings:
    """Gives out text as soon as it can no longer turn into a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)

    def cut(self, text: str, final: bool) -> tuple[str, bool]:
        """What of `text` may be shown, and whether a stop string ended it.

        Args:
            text: the whole answer so far.
            final: no more text will come, so nothing is held back.
        """
        found = [text.find(stop) for stop in self._stops if stop in text]
        if found:
            return text[: min(found)], True
        if final:
            return text, False
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        return text[: len(text) - held], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
