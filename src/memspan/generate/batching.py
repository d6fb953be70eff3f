"""Continuous batching: questions that began at different times take their decoding steps in one forward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from memspan.generate.sampling import pick_tokens
from memspan.model.convert import LoadedModel
from memspan.model.decoding import DecodeRows, prepare

if TYPE_CHECKING:
    from memspan.generate.decode import Decoding, DecodingState
    from memspan.generate.lookup import PromptLookup


# Steps of a model before it is prepared: to prepare the default model takes about as long as it saves in so many.
_UNPREPARED_STEPS = 24


class DecodingBatch:
    """Decodings that join and leave between steps. For one thread.

    Whoever drives it takes the next of every `run`, calls `step`, and begins again. Every question gets the tokens it
    would get alone.

    Args:
        max_rows: questions that decode together, at most; buffers are made for so many.
        clock: seconds, by which drafts are found to pay or not.
    """

    def __init__(self, loaded: LoadedModel, max_rows: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._model, self._costs, self._clock = loaded.model, loaded.model.step_costs, clock
        self._rows = DecodeRows(loaded.model, max_rows)
        self._members: list[tuple[DecodingState, PromptLookup | None]] = []
        # A draft that was run behind the newest token and is not compared yet, with the logits behind each token of it.
        self._draft: list[tuple[int, torch.Tensor]] = []
        self._num_drafted = 0
        self.max_rows = max_rows

    def __len__(self) -> int:
        """Questions that are decoding."""
        return len(self._members)

    def run(self, decoding: Decoding) -> Iterator[None]:
        """Run a decoding among the others; yields after each of its tokens.

        The first token is the prefill's, which runs alone; for each further one `step` is to be called. Closing the
        iterator gives up the places.
        """
        decoding.begin()
        ended = decoding.finished
        self._join(decoding)
        try:
            yield
            while not ended:
                ended = decoding.finished
                yield
        finally:
            for writing in decoding.writings:
                self._leave(writing)

    @torch.inference_mode()
    def step(self) -> None:
        """Write one token of every question; those that are finished by it leave."""
        if not self._members:
            return
        if self._draft:
            # The newest token is what was drafted, so what follows it is known already.
            _, logits_V = self._draft.pop(0)
            logits_RV = logits_V[None]
        else:
            logits_RV = self._forward()
        tokens = write_next([writing for writing, _ in self._members], logits_RV)
        for (_, lookup), token in zip(self._members, tokens, strict=True):
            if lookup is not None:
                lookup.extend([token])
        if not self._draft or self._draft[0][0] != self._members[0][0].row.ids[-1]:
            self._take_back_draft()
        for writing in [writing for writing, _ in self._members if writing.finished]:
            self._leave(writing)

    def _forward(self) -> torch.Tensor:
        """Run the newest token of every row, and a draft behind it where there is one row: logits `[R, V]`."""
        self._model.decode_steps += 1
        if self._model.decode_steps > _UNPREPARED_STEPS:
            prepare(self._model)
        (writing, lookup), draft = self._members[0], list[int]()
        if len(self) == 1 and lookup is not None:
            draft = lookup.draft(writing.room - 1)
            draft = draft[: self._costs.best_draft(lookup.kept, len(draft))]
        began = self._clock()
        logits_RTV = self._rows.step([[writing.row.ids[-1], *draft] for writing, _ in self._members])
        if len(self) == 1:
            self._costs.add(1 + len(draft), self._clock() - began)
        self._draft, self._num_drafted = list(zip(draft, logits_RTV[0, 1:], strict=True)), len(draft)
        return logits_RTV[:, 0]

    def _take_back_draft(self) -> None:
        """A draft was compared: take back what the model does not write, or what comes too late to be compared."""
        if not self._num_drafted:
            return
        self._rows.drop(0, len(self._draft))
        ((_, lookup),) = self._members
        assert lookup is not None, "it drafted"
        lookup.accepted(self._num_drafted - len(self._draft), self._num_drafted)
        self._draft, self._num_drafted = [], 0

    def _join(self, decoding: Decoding) -> None:
        """Take the rows that are not finished already."""
        rows = [row for row, writing in enumerate(decoding.writings) if not writing.finished]
        if not rows:
            return
        self._take_back_draft()
        self._rows.join(decoding.packed, decoding.cache, decoding.retrieved, rows, decoding.kept_layers)
        for row in rows:
            if decoding.lookup is not None:
                decoding.lookup.extend(decoding.rows[row].ids)
            self._members.append((decoding.writings[row], decoding.lookup))

    def _leave(self, writing: DecodingState) -> None:
        """Free a row: the last one takes its place."""
        row = next((row for row, (member, _) in enumerate(self._members) if member is writing), None)
        if row is None:
            return
        self._take_back_draft()
        self._rows.leave(row)
        self._members[row] = self._members[-1]
        self._members.pop()


def write_next(writings: Sequence[DecodingState], logits_RV: torch.Tensor) -> list[int]:
    """Write the next token of every answer, and give them. The CPU waits once for what that takes of the logits."""
    if any(writing.guide for writing in writings):
        parts = zip(writings, logits_RV, strict=True)
        logits_RV = torch.stack([writing.allowed(logits_V) for writing, logits_V in parts])
    samplings, generators = zip(*((writing.sampling, writing.generator) for writing in writings), strict=True)
    tokens = pick_tokens(logits_RV, samplings, generators)
    for writing, token in zip(writings, tokens, strict=True):
        writing.write(token)
    return tokens
