"""What a decoding step costs by the number of its tokens, learned from steps: whether drafts pay on this machine."""

from __future__ import annotations

# Steps of a size before its cost is taken for known: the first also makes what later ones find made.
_RUNS = 2
# The least seconds seen count, and rise by this factor with every slower step: machines change.
_RISE = 1.05
# One token more than pays is drafted all the same once in so many times, to see whether it does by now.
_TRIED_AGAIN = 32


class StepCosts:
    """Seconds of a step of one row by its tokens. A size that is not known is taken to cost what a shorter one does."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._runs: dict[int, int] = {}
        self._passed_over = 0

    def add(self, num_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        self._runs[num_tokens] = self._runs.get(num_tokens, 0) + 1
        self._seconds[num_tokens] = min(seconds, _RISE * self._seconds.get(num_tokens, seconds))

    def best_draft(self, kept: float, at_most: int) -> int:
        """How many tokens to draft behind the newest one so that most tokens a second are written: 0 to `at_most`.

        Args:
            kept: probability that a drafted token is kept where those before it are.
        """
        best = max(range(at_most + 1), key=lambda length: self._rate(kept, length))
        if best < at_most:
            self._passed_over = (self._passed_over + 1) % _TRIED_AGAIN
            best += int(not self._passed_over)
        return best

    def _rate(self, kept: float, length: int) -> float:
        # Of a copy: another thread may be adding.
        known = [size for size, runs in dict(self._runs).items() if size <= 1 + length and runs >= _RUNS]
        expected = sum(kept**place for place in range(length + 1))
        return expected / (self._seconds[max(known)] if known else 1.0)
