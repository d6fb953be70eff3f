"""Prefill and decode of a batch over [memory ; local] (paper 3.4.3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from memspan.errors import QuestionError
from memspan.generate.constrain import Guide
from memspan.generate.sampling import Sampling, StopStrings, pick_token
from memspan.model.convert import LoadedModel
from memspan.model.lower import LowerStates
from memspan.model.memory_api import AskStep, LayerMemory
from memspan.model.modeling import MSAForCausalLM
from memspan.text.packing import PackedContexts, pack_contexts
from memspan.text.template import Context
from memspan.types import Retrieved

_INCOMPLETE = "\ufffd"  # what a tokenizer shows for half a character


@dataclass(slots=True)
class Generated:
    """One question's answer, growing. `text` is what may be shown so far."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None


class Decoding:
    """A batch of contexts on its way to answers: one prefill, which routes, then a token per step, which does not.

    Args:
        guides: per context what may be written, and when it is complete; None: the model decides both.
        cache, lower: what the layers below the first MSA layer need not compute again; None: nothing is known.

    Attributes:
        rows: the answers, in the order of the contexts.
        retrieved: per MSA layer what the prefill routed to.
        cache, lower: as given, filled by the prefill.
        ids_B: every row's newest token.
        positions_B1: the newest tokens' positions.

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
    ) -> None:
        for context in contexts:
            check_fits(loaded, len(context.ids), sampling.max_new_tokens)
        self.rows = [Generated() for _ in contexts]
        self.retrieved: dict[int, Retrieved] = {}
        self._model, self._template, self._sampling, self._memory = loaded.model, loaded.template, sampling, memory
        self._guides: Sequence[Guide | None] = guides or [None] * len(contexts)
        self._stops = StopStrings((*loaded.template.stop_strings, *sampling.stop))
        self._packed = pack_contexts(contexts, loaded.model.config.offset).to(loaded.model.device)
        self.cache = cache if cache is not None else DynamicCache(config=loaded.model.config.text_config)
        self.lower = lower
        self._stop_ids = loaded.template.stop_ids | _end_ids(loaded.model)
        self._generators = [torch.Generator().manual_seed(sampling.seed) for _ in contexts]
        self.ids_B: list[int] = []
        self.positions_B1 = self._packed.positions[:, -1:]
        self._valid_BS = self._packed.padding_mask

    @property
    def finished(self) -> bool:
        return all(row.finish_reason for row in self.rows)

    def run(self) -> Iterator[None]:
        """Yield after the prefill's and after every further token, until every row has finished."""
        self.begin()
        yield
        while not self.finished:
            self._step()
            yield

    def begin(self) -> None:
        """Run the contexts, and pick every row's first token."""
        self.take(prefill(self._model, self._packed, self._memory, self.retrieved, self.cache, self.lower))

    def take(self, logits_BV: torch.Tensor) -> None:
        """Pick every row's next token from the logits behind its newest one."""
        self.ids_B = self._advance(logits_BV)
        self.positions_B1 = self.positions_B1 + 1

    @torch.inference_mode()
    def _step(self) -> None:
        """Run the newest tokens."""
        valid_BS = self._valid_BS
        if valid_BS is not None:
            valid_BS = self._valid_BS = torch.cat([valid_BS, valid_BS.new_ones(len(valid_BS), 1)], dim=1)
        out = self._model(
            input_ids=torch.tensor(self.ids_B, device=self.positions_B1.device)[:, None],
            position_ids=self.positions_B1,
            past_key_values=self.cache,
            use_cache=True,
            memory=AskStep(valid_BS=valid_BS, memory=self._memory, retrieved=self.retrieved),
        )
        self.take(out.logits[:, -1])

    def _advance(self, logits_BV: torch.Tensor) -> list[int]:
        """Pick every unfinished row's next token; finished rows go on with a token nobody reads."""
        ids = []
        states = zip(self.rows, logits_BV, self._generators, self._guides, strict=True)
        for row, logits_V, generator, guide in states:
            if row.finish_reason is None:
                logits_V = guide.mask(logits_V, row.ids) if guide else logits_V
                self._accept(row, pick_token(logits_V, self._sampling, generator), guide)
            ids.append(row.ids[-1] if row.ids else 0)
        return ids

    def _accept(self, row: Generated, token: int, guide: Guide | None) -> None:
        row.ids.append(token)
        if guide and guide.finished(row.ids):
            row.finish_reason = "complete"
        elif token in self._stop_ids:
            row.finish_reason = "stop"
        elif len(row.ids) == self._sampling.max_new_tokens:
            row.finish_reason = "length"
        written = row.ids[:-1] if row.finish_reason == "stop" else row.ids
        text = self._template.text(written)
        final = row.finish_reason is not None
        if text.endswith(_INCOMPLETE) and not final:
            return
        row.text, stopped = self._stops.cut(text, final)
        if stopped:
            row.finish_reason = "stop_string"


@torch.inference_mode()
def prefill(
    model: torch.nn.Module,
    packed: PackedContexts,
    memory: LayerMemory | None,
    retrieved: dict[int, Retrieved],
    cache: DynamicCache,
    lower: LowerStates | None = None,
) -> torch.Tensor:
    """Run whole contexts; MSA layers route into `retrieved`. Returns the logits after the last token, `[B, V]`."""
    step = AskStep(
        valid_BS=packed.padding_mask,
        sees_memory_BT=packed.sees_memory,
        routes_BT=packed.routes,
        memory=memory,
        retrieved=retrieved,
        lower=lower,
    )
    out = model(
        input_ids=packed.ids,
        position_ids=packed.positions,
        past_key_values=cache,
        use_cache=True,
        memory=step,
        logits_to_keep=1,
    )
    return out.logits[:, -1]


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
    config = loaded.model.config
    return config.text_config.max_position_embeddings - config.offset - max_new_tokens
