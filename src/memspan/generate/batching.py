"""Continuous batching: questions that began at different times take their decoding steps in one forward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from memspan.generate.decode import Decoding
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import AskStep
from memspan.types import Retrieved

# Columns made at a time for tokens still to be written: the cache is laid out anew when they are used up.
_ROOM = 256


class DecodingBatch:
    """Decodings of one question each, which join and leave between steps. For one thread.

    Whoever drives it takes the next of every `run`, calls `step`, and begins again. Every question gets the tokens it
    would get alone.

    Args:
        max_rows: questions that decode together, at most; the cache is made for so many.
    """

    def __init__(self, loaded: LoadedModel, max_rows: int) -> None:
        self._model = loaded.model
        num_layers = loaded.model.config.text_config.num_hidden_layers
        self._layers = [_RowsLayer(max_rows) for _ in range(num_layers)]
        self._cache = DynamicCache()
        self._cache.layers = [*self._layers]  # type: ignore[assignment]
        self._decodings: list[Decoding] = []
        self._lengths: list[int] = []
        self._retrieved: dict[int, Retrieved] | None = None
        self.max_rows = max_rows
        self._end = 0

    def __len__(self) -> int:
        """Questions that are decoding."""
        return len(self._decodings)

    def run(self, decoding: Decoding) -> Iterator[None]:
        """Run a decoding of one question among the others; yields after each of its tokens.

        The first token is the prefill's, which runs alone; for each further one `step` is to be called. Closing the
        iterator gives up the place.
        """
        assert len(decoding.rows) == 1, "a question joins alone"
        decoding.begin()
        ended = decoding.finished
        if not ended:
            self._join(decoding)
        try:
            yield
            while not ended:
                ended = decoding.finished
                yield
        finally:
            self._leave(decoding)

    @torch.inference_mode()
    def step(self) -> None:
        """Write one token of every question; those that are finished by it leave."""
        if not self._decodings:
            return
        if self._end == self._layers[0].capacity:
            self._lay_out()
        self._end += 1
        self._lengths = [length + 1 for length in self._lengths]
        longest = max(self._lengths)
        for layer in self._layers:
            layer.show(len(self), self._end - longest, self._end - 1)
        if self._retrieved is None:
            self._retrieved = _joined([decoding.retrieved for decoding in self._decodings])
        device = self._decodings[0].positions_B1.device
        lengths_B1 = torch.tensor(self._lengths, device=device)[:, None]
        valid_BS = torch.arange(longest, device=device) >= longest - lengths_B1
        out = self._model(
            input_ids=torch.tensor([decoding.ids_B for decoding in self._decodings], device=device),
            position_ids=torch.cat([decoding.positions_B1 for decoding in self._decodings]),
            past_key_values=self._cache,
            use_cache=True,
            memory=AskStep(valid_BS=None if min(self._lengths) == longest else valid_BS, retrieved=self._retrieved),
        )
        logits_BV = out.logits[:, -1]
        for row, decoding in enumerate(self._decodings):
            decoding.take(logits_BV[row : row + 1])
        for decoding in [decoding for decoding in self._decodings if decoding.finished]:
            self._leave(decoding)

    @torch.inference_mode()
    def _join(self, decoding: Decoding) -> None:
        assert len(self) < self.max_rows, f"the batch has {self.max_rows} rows, and all are taken"
        length = decoding.cache.get_seq_length()
        self._decodings.append(decoding)
        self._lengths.append(length)
        self._retrieved = None
        if self._end < length:
            self._lay_out()
        for layer, given in zip(self._layers, decoding.cache.layers, strict=True):
            layer.put(len(self) - 1, given.keys, given.values, self._end)  # type: ignore[arg-type]

    @torch.inference_mode()
    def _leave(self, decoding: Decoding) -> None:
        """Free a row: the last one takes its place."""
        if decoding not in self._decodings:
            return
        row, last = self._decodings.index(decoding), len(self) - 1
        if row < last:
            for layer in self._layers:
                layer.move_row(last, row)
            self._decodings[row], self._lengths[row] = self._decodings[last], self._lengths[last]
        self._decodings.pop()
        self._lengths.pop()
        self._retrieved = None
        if not self._decodings:
            self._end = 0

    def _lay_out(self) -> None:
        """Move the columns in use so that they end where the longest row's do, and there is room behind them."""
        longest, held = max(self._lengths), self._end
        self._end = longest
        for layer in self._layers:
            layer.lay_out(len(self), held, longest)


class _RowsLayer(DynamicLayer):
    """One layer's K and V of all rows, `[R, G, S, D]`, in buffers with room behind them; all rows end at one column.

    What stands before a row's own columns is left over from others: it is finite, and masked.
    """

    def __init__(self, max_rows: int) -> None:
        super().__init__()
        self._max_rows = max_rows
        self._buffers: list[torch.Tensor] = []
        self._end = 0
        self.capacity = 0
        self.is_initialized = True

    def lay_out(self, rows: int, held: int, end: int) -> None:
        """Move the `held` columns of some rows to end at column `end`; what does not fit before it is no row's."""
        moved = min(held, end)
        old, self.capacity = self._buffers, end + _ROOM
        self._buffers = []
        for buffer in old:
            R, G, _, D = buffer.shape
            new = buffer.new_zeros(R, G, self.capacity, D)
            new[:rows, :, end - moved : end] = buffer[:rows, :, held - moved : held]
            self._buffers.append(new)

    def put(self, row: int, keys_BGSD: torch.Tensor, values_BGSD: torch.Tensor, end: int) -> None:
        """Fill a row, up to column `end`. A layer with a sliding window has kept its newest tokens only."""
        for place, given_BGSD in enumerate((keys_BGSD, values_BGSD)):
            if len(self._buffers) <= place:
                _, G, _, D = given_BGSD.shape
                self._buffers.append(given_BGSD.new_zeros(self._max_rows, G, self.capacity, D))
            self._buffers[place][row, :, end - given_BGSD.shape[2] : end] = given_BGSD[0]

    def move_row(self, source: int, target: int) -> None:
        for buffer in self._buffers:
            buffer[target] = buffer[source]

    def show(self, rows: int, begin: int, end: int) -> None:
        """Let the next `update` add to columns `begin:end` of the first rows."""
        self._begin, self._end = begin, end
        self.keys, self.values = (buffer[:rows, :, begin:end] for buffer in self._buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, new = len(key_states), slice(self._begin, self._end + key_states.shape[2])
        for buffer, given_BGTD in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, self._end : new.stop] = given_BGTD
        self.keys, self.values = (buffer[:rows, :, new] for buffer in self._buffers)
        return self.keys, self.values


def _joined(retrieved: list[dict[int, Retrieved]]) -> dict[int, Retrieved]:
    """What the rows' prefills routed to, as of one batch."""
    joined = {}
    for layer in retrieved[0]:
        rows = [found[layer] for found in retrieved]
        scores = [found.row_scores_BM for found in rows]
        joined[layer] = Retrieved(
            keys_BGMD=_padded([found.keys_BGMD.transpose(1, 2) for found in rows]).transpose(1, 2),
            values_BGMD=_padded([found.values_BGMD.transpose(1, 2) for found in rows]).transpose(1, 2),
            mask_BM=_padded([found.mask_BM for found in rows]),
            doc_ids=tuple(found.doc_ids[0] for found in rows),
            scores=tuple(found.scores[0] for found in rows),
            row_scores_BM=None if scores[0] is None else _padded([x for x in scores if x is not None]),
        )
    return joined


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    """Batches of one, `[1, M, ...]`, as one batch, padded with zeros to the longest."""
    return pad_sequence([row[0] for row in rows], batch_first=True)
