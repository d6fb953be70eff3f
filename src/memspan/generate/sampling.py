"""How the next token is picked, and when an answer ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memspan.types import check_whole

if TYPE_CHECKING:
    import torch


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


def pick_token(logits_V: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token of one question. Sampling runs on the CPU in float32, whatever the model runs on."""
    import torch  # settings are read without it

    if sampling.temperature == 0:
        return int(logits_V.argmax())
    # In float64 with the best logit at 0, so that no temperature, however small, overflows.
    logits_V = logits_V.cpu().double()
    probabilities_V = torch.softmax((logits_V - logits_V.max()) / sampling.temperature, dim=-1).float()
    if sampling.top_p < 1:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        # A token is kept while the ones before it have not reached top_p; the first always is.
        sorted_V[sorted_V.cumsum(0) - sorted_V >= sampling.top_p] = 0
        probabilities_V = torch.zeros_like(probabilities_V).scatter(0, order_V, sorted_V)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


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
