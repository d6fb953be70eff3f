"""Contexts become answers: which tokens are picked, and when an answer ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from memspan.errors import QuestionError
from memspan.generate.batching import DecodingBatch, write_next
from memspan.generate.constrain import Guide
from memspan.generate.lookup import PromptLookup
from memspan.generate.sampling import Sampling, StopStrings
from memspan.model.convert import LoadedModel
from memspan.model.decoding import prefill
from memspan.model.lower import LowerStates
from memspan.model.memory_api import LayerMemory
from memspan.model.modeling import MSAForCausalLM
from memspan.stages import StageClock
from memspan.text.growing import GrowingText
from memspan.text.packing import pack_contexts
from memspan.text.template import Context
from memspan.types import Retrieved


@dataclass(slots=True)
class Generated:
    """One question's answer, growing. `text` is what may be shown so far."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


class DecodingState:
    """One answer on its way: takes tokens, and knows when it is complete.

    Attributes:
        row: the answer so far.
        sampling, guide, generator: how the next token is picked (`memspan.generate.sampling.pick_tokens`).
    """

    def __init__(self, loaded: LoadedModel, sampling: Sampling, guide: Guide | None) -> None:
        self.row = Generated()
        self.sampling, self.guide, self._template = sampling, guide, loaded.template
        self._stops = StopStrings((*loaded.template.stop_strings, *sampling.stop))
        self._stop_ids = loaded.template.stop_ids | _end_ids(loaded.model)
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self._growing = GrowingText(loaded.template)

    @property
    def finished(self) -> bool:
        return self.row.finish_reason is not None

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self.sampling.max_new_tokens - len(self.row.ids)

    def allowed(self, logits_V: torch.Tensor) -> torch.Tensor:
        """The logits behind the newest token, -inf where the next one may not be written."""
        return self.guide.mask(logits_V, self.row.ids) if self.guide else logits_V

    def write(self, token: int) -> None:
        """Take the next token."""
        row, guide = self.row, self.guide
        row.ids.append(token)
        if guide and guide.finished(row.ids):
            row.finish_reason = "complete"
        elif token in self._stop_ids:
            row.finish_reason = "stop"
        elif not self.room:
            row.finish_reason = "length"
        written = row.ids[:-1] if row.finish_reason == "stop" else row.ids
        text = self._template.text(written) if self.finished else self._growing.read(written)
        if text is not None:
            row.text, stopped = self._stops.cut(text, self.finished)
            if stopped:
                row.finish_reason = "stop_string"


class Decoding:
    """Contexts on their way to answers: one prefill, which routes, then steps, which do not.

    A step is a token of each. Where only one question is decoded, it may be a token and what `PromptLookup` drafts
    behind it.

    Args:
        guides: per context what may be written, and when it is complete; None: the model decides both.
        cache, lower: what the layers below the first MSA layer need not compute again; None: nothing is known.
        read: what layers attend to in the place of texts (`SourceMemory.read`), beside a memory or without one.

    Attributes:
        rows: the answers, in the order of the contexts.
        writings: what writes them.
        packed: the contexts.
        retrieved: per MSA layer what the prefill routed to, and what was `read`.
        cache, lower: as given, filled by the prefill.
        lookup: where one question's drafts come from; None: it gets none, nor do several.
        clock: seconds of the prefill, and apart from it of routing and of fetching what was routed to.

    Raises:
        QuestionError: a context with its answer does not fit into the model's positions.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        contexts: Sequence[Context],
        memory: LayerMemory | None,
        sampling: Sampling,
        guides: Sequence[Guide] | None = None,
        cache: DynamicCache | None = None,
        lower: LowerStates | None = None,
        read: Mapping[int, Retrieved] | None = None,
    ) -> None:
        for context in contexts:
            check_fits(loaded, len(context.ids), sampling.max_new_tokens)
        self.writings = [DecodingState(loaded, sampling, guide) for guide in guides or [None] * len(contexts)]
        self.rows = [writing.row for writing in self.writings]
        self.retrieved: dict[int, Retrieved] = dict(read or {})
        self.packed = pack_contexts(contexts, loaded.offset).to(loaded.model.device)
        self.cache = cache if cache is not None else DynamicCache(config=loaded.model.config.text_config)
        self.lower = lower
        self.lookup = PromptLookup(contexts[0].ids) if len(contexts) == 1 else None
        self.clock = StageClock()
        self._loaded, self._memory = loaded, memory

    @property
    def kept_layers(self) -> int:
        """How many of the first layers the cache keeps when the rows join a batch: those `lower` is of."""
        return self._loaded.model.config.layers[0] if self.lower is not None else 0

    @property
    def finished(self) -> bool:
        return all(writing.finished for writing in self.writings)

    def run(self) -> Iterator[None]:
        """Yield after the prefill's and after every further token, until every row has finished."""
        batch = DecodingBatch(self._loaded, len(self.rows))
        for _ in batch.run(self):
            yield
            batch.step()

    def begin(self) -> None:
        """Run the contexts, and pick every row's first token."""
        with self.clock.stage("prefill"):
            logits_BV = prefill(self._loaded.model, self.packed, self._memory, self.retrieved, self.cache, self.lower)
        write_next(self.writings, logits_BV)


def _end_ids(model: MSAForCausalLM) -> frozenset[int]:
    """The ends of sequence that the backbone's own generation settings name."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def check_fits(loaded: LoadedModel, num_tokens: int, max_new_tokens: int) -> None:
    """Refuse a context that would run past the model's positions.

    Raises:
        QuestionError: with the numbers.
    """
    room = context_room(loaded, max_new_tokens)
    if room < 1:
        raise QuestionError(
            f"an answer of {max_new_tokens} tokens leaves the model no room; ask for fewer max_new_tokens"
        )
    if num_tokens > room:
        raise QuestionError(
            f"the question needs {num_tokens} tokens and the model has room for {room} beside an answer of "
            f"{max_new_tokens}; shorten it, or ask for fewer max_new_tokens"
        )


def context_room(loaded: LoadedModel, max_new_tokens: int) -> int:
    """Tokens a context may have, so that it and its answer fit into the backbone's positions."""
    return loaded.model.config.text_config.max_position_embeddings - loaded.offset - max_new_tokens
