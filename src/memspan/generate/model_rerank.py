"""Rerankers that run the memory model, without any memory: by its attention, or by how likely it finds the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from memspan.errors import QuestionError
from memspan.generate.decode import context_room
from memspan.generate.finder import passages_of
from memspan.model.convert import LoadedModel
from memspan.model.decoding import look
from memspan.model.memory_api import QueryStep, Watch
from memspan.model.modeling import MSAForCausalLM
from memspan.text.packing import BATCH_TOKENS, length_batches, pack_contexts
from memspan.text.template import Passage, encoded_text
from memspan.types import Evidence

_PASSAGE_TOKENS = 256
# Where in the model its attention finds what answers, as a share of its layers: chosen on a training hold-out (LOG).
_DEPTH = 0.6
_TOKENS_AT_BORDERS = 2
_ASKED = "\n\nA question that this text answers: "


def attention(loaded: LoadedModel, question: str, documents: Sequence[Evidence]) -> list[float]:
    """Of each document the share of attention that the question's tokens give it where all documents stand before the
    question, the best nearest to it: of the token that gives most, the mean over the heads of two layers. Of a document
    256 tokens are read, or fewer, so that all have room.

    Raises:
        QuestionError: the question leaves no room for them.
    """
    template, model = loaded.template, loaded.model
    passages = _fitting(loaded, question, documents)
    context, N = template.context(question, passages), len(passages)
    asked = template.question_span(context, question)
    owner_S = torch.full((len(context.ids),), N)
    for place, span in enumerate(template.passage_spans(passages)):
        owner_S[span.start : span.end] = N - 1 - place
    num_layers = model.config.text_config.num_hidden_layers
    last = min(max(1, round(_DEPTH * num_layers)), num_layers - 1)
    watch = Watch(owner_S, N, len(context.ids) - asked.start, tuple(range(max(0, last - 1), last + 1)))
    look(model, pack_contexts([context], model.config.offset).to(model.device), watch)
    shares_HTN = torch.cat([watch.shares[layer] for layer in watch.layers])
    return shares_HTN.mean(0)[: asked.length].amax(0).tolist()


def _fitting(loaded: LoadedModel, question: str, documents: Sequence[Evidence]) -> list[Passage]:
    """Documents in reverse, cut so that all of them fit before the question.

    Raises:
        QuestionError: the question leaves no room for them.
    """
    template, passages = loaded.template, passages_of(reversed(documents))
    room = context_room(loaded, 0) - len(template.context(question, [replace(one, text="") for one in passages]).ids)
    each = min(_PASSAGE_TOKENS, room // len(passages) - _TOKENS_AT_BORDERS)
    if each < 1:
        raise QuestionError("the question leaves no room to rank documents anew; shorten it, or leave rerank out")
    return [replace(one, text=template.cut(one.text, each)) for one in passages]


def likelihood(loaded: LoadedModel, question: str, documents: Sequence[Evidence]) -> list[float]:
    """Of each document the mean log-probability of the question's tokens behind it. Its first 256 tokens are read."""
    template = loaded.template
    wanted = template.tokens("{asked}", asked=_ASKED + question)
    texts = [encoded_text(item.title, item.text) for item in documents]
    given = [template.tokens("{text}", text=text)[:_PASSAGE_TOKENS] for text in texts]
    skipped = len(template.tokens("{asked}", asked=_ASKED))
    scores = [0.0] * len(texts)
    lengths = [len(ids) + len(wanted) for ids in given]
    for batch in length_batches(lengths, BATCH_TOKENS):
        sequences = [[*given[place], *wanted] for place in batch]
        for place, value in zip(batch, _log_likelihood(loaded.model, sequences, len(wanted) - skipped), strict=True):
            scores[place] = value
    return scores


@torch.inference_mode()
def _log_likelihood(model: MSAForCausalLM, sequences: Sequence[Sequence[int]], last: int) -> list[float]:
    """The mean log-probability of the last tokens of each sequence."""
    T, device = max(map(len, sequences)), model.device
    ids_BT = torch.zeros(len(sequences), T, dtype=torch.long)
    valid_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, ids in enumerate(sequences):
        ids_BT[row, T - len(ids) :] = torch.tensor(ids)
        valid_BT[row, T - len(ids) :] = True
    positions_BT = (valid_BT.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids_BT.to(device),
        position_ids=positions_BT.to(device),
        memory=QueryStep(valid_BS=None if bool(valid_BT.all()) else valid_BT.to(device)),
        use_cache=False,
        logits_to_keep=last + 1,
    )
    log_BTV = out.logits[:, :-1].float().log_softmax(-1)
    picked_BT = log_BTV.gather(2, ids_BT[:, -last:, None].to(device))[..., 0]
    return picked_BT.mean(1).tolist()
