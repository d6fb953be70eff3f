"""What the rounds of a question have in common, kept from one run of the model to the next (paper 3.5)."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from memspan.generate.batching import DecodingBatch
from memspan.generate.constrain import Guide
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.model.lower import LowerStates
from memspan.model.memory_api import LayerMemory
from memspan.text.template import Context
from memspan.types import Retrieved


@dataclass(frozen=True, slots=True)
class _LowerLayers:
    """The lower layers' work on one question's context: what entered the MSA layers `[S, F]`, K and V `[G, S, D]`."""

    ids: tuple[int, ...]
    entering_SF: torch.Tensor
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def common(self, ids: Sequence[int]) -> int:
        """Leading tokens that another context shares with this one."""
        pairs = zip(self.ids, ids, strict=False)
        return next((place for place, (old, new) in enumerate(pairs) if old != new), min(len(self.ids), len(ids)))


class RoundState:
    """Runs contexts that grow at their end; only their new tokens run through the layers below the first MSA layer.

    Kept per question: these layers' K and V and the states that leave them, of the last context that was run. The
    layers above change with what is routed to, and run for all tokens. Nothing is kept where a lower layer has a
    sliding window (its cache forgets), where there is no lower layer, or where lower layers read content.

    Args:
        batch: where decodings take their steps, together with those of others; None: alone.

    Attributes:
        num_lower_tokens: tokens run through the lower layers by the last call of `decode`, padding included.
    """

    def __init__(self, loaded: LoadedModel, batch: DecodingBatch | None = None) -> None:
        self.loaded = loaded
        self._batch = batch
        self.num_lower_tokens = 0
        self._num_lower = loaded.model.config.layers[0]
        self._kept: dict[Hashable, _LowerLayers] = {}
        self._last: tuple[Sequence[Hashable], Sequence[Context], Decoding] | None = None
        slides = [bool(slides) for slides in self._new_cache().is_sliding[: self._num_lower]]
        self._keeps = self._num_lower > 0 and not any(slides) and loaded.content is None

    def decode(
        self,
        contexts: Sequence[Context],
        memory: LayerMemory | None,
        sampling: Sampling,
        guides: Sequence[Guide] | None = None,
        questions: Sequence[Hashable] | None = None,
        read: Mapping[int, Retrieved] | None = None,
    ) -> Decoding:
        """A decoding of whole contexts, which routes them.

        Args:
            read: as of `Decoding`.
            questions: whose contexts they are; what an earlier context of the same question begins with is kept.
                None: nothing is kept.
        """
        if not self._keeps or questions is None:
            self.num_lower_tokens = len(contexts) * max(len(context.ids) for context in contexts)
            return Decoding(self.loaded, contexts, memory, sampling, guides, read=read)
        self._harvest()
        cache, lower = self._restore(contexts, questions)
        decoding = Decoding(self.loaded, contexts, memory, sampling, guides, cache, lower)
        self._last = (questions, contexts, decoding)
        return decoding

    def run(self, decoding: Decoding) -> Iterator[None]:
        """Yield after every token of a decoding; in a batch, whoever drives that steps it meanwhile."""
        return decoding.run() if self._batch is None else self._batch.run(decoding)

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.loaded.model.config.text_config)

    def _harvest(self) -> None:
        """Keep what the last decoding computed of its contexts (not of what it wrote: that is run again, with more)."""
        if self._last is None:
            return
        questions, contexts, decoding = self._last
        self._last = None
        if not decoding.lower or not decoding.lower.entered:  # it was never run
            return
        entered_BTF = decoding.lower.entered[-1]
        T = entered_BTF.shape[1]
        for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
            here = slice(T - len(context.ids), T)
            layers = tuple(
                (layer.keys[row, :, here], layer.values[row, :, here])  # type: ignore[index]
                for layer in decoding.cache.layers[: self._num_lower]
            )
            self._kept[question] = _LowerLayers(context.ids, entered_BTF[row, here], layers)

    @torch.inference_mode()
    def _restore(self, contexts: Sequence[Context], questions: Sequence[Hashable]) -> tuple[DynamicCache, LowerStates]:
        """A cache of the lower layers and what left them, for as many leading tokens as all contexts have kept.

        Every row runs the same number of tokens anew, so a row that has more kept runs some of them again.
        """
        config, cache = self.loaded.model.config.text_config, self._new_cache()
        kept = [self._kept.get(question) for question in questions]
        lengths = [len(context.ids) for context in contexts]
        commons = [one.common(context.ids) if one else 0 for one, context in zip(kept, contexts, strict=True)]
        num_new = max(1, *(length - common for length, common in zip(lengths, commons, strict=True)))
        K = max(lengths) - num_new
        self.num_lower_tokens = len(contexts) * num_new
        like = next(self.loaded.model.parameters())
        entering_BKF = like.new_zeros(len(contexts), K, config.hidden_size)
        if not K:
            return cache, LowerStates(entering_BKF)
        used = [max(0, length - num_new) for length in lengths]
        rows = [(row, one, used[row]) for row, one in enumerate(kept) if one and used[row]]
        for row, one, count in rows:
            entering_BKF[row, K - count :] = one.entering_SF[:count]
        (_, first, _), *_ = rows
        for layer in range(self._num_lower):
            pair = []
            for side in (0, 1):
                G, _, D = first.layers[layer][side].shape
                x_BGKD = first.layers[layer][side].new_zeros(len(contexts), G, K, D)
                for row, one, count in rows:
                    x_BGKD[row, :, K - count :] = one.layers[layer][side][:, :count]
                pair.append(x_BGKD)
            cache.update(pair[0], pair[1], layer)
        return cache, LowerStates(entering_BKF)
