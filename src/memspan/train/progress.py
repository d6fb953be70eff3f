"""How well the routers find documents, and what the model writes, on the hold-out, while a run goes on.

Figures, all in [0, 1]; WHO is an MSA layer's number, `fused` (the sum over layers, as serving ranks), `untrained/WHO`
(the same backbone with freshly initialized routers) or `bm25`:

    WHO/recall@K      share of a question's documents among the best K, mean over questions; K = 1, 5, 16
    WHO/precision     share of a question's documents among as many best ones as it has
    WHO/all_gold@16   share of the questions of several documents that have all of them among the best 16
    fused/recall@16/SOURCE
    answer/..., generate/...    where the phase trains the model to write; see `WritingProgress`
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from memspan.model.memory_api import QueryStep
from memspan.model.modeling import MSAForCausalLM, is_router
from memspan.text.packing import BATCH_TOKENS, pack_contexts
from memspan.text.questions import Question
from memspan.text.template import PromptTemplate, encoded_text
from memspan.train.batch import Collator
from memspan.train.batch_settings import BatchSettings
from memspan.train.bm25 import Bm25
from memspan.train.data.stream import by_source
from memspan.train.frozen import FrozenMemory
from memspan.train.memory import BatchMemory, Encode, encode_documents, moved
from memspan.train.parallel import assign, shared_out, whole
from memspan.train.settings import EvaluationSettings, PhaseSettings
from memspan.train.writing import WritingProgress
from memspan.types import Document, EncodedDocuments

CUTOFFS = (1, 5, 16)
UNTRAINED, BM25, FUSED = "untrained/", "bm25", "fused"


@dataclass(frozen=True)
class HoldOut:
    """Questions kept out of training, and the fixed bank they are asked of.

    Raises:
        ValueError: there is no question, or one whose positives the bank lacks.
    """

    questions: tuple[Question, ...]
    documents: tuple[Document, ...]

    def __post_init__(self) -> None:
        names = {document.external_id for document in self.documents}
        if not self.questions:
            raise ValueError("the hold-out has no question")
        for question in self.questions:
            if not question.positives or any(document.external_id not in names for document in question.positives):
                raise ValueError(f"the hold-out's bank lacks the documents of question {question.id!r}")

    def cut(self, questions: int = 0, documents: int = 0) -> HoldOut:
        """At most so many questions of every source, and so many documents (the questions' own come first); 0: all."""
        kept = by_source(self.questions).values()
        chosen = tuple(question for found in kept for question in found[: questions or None])
        own = {d.external_id for q in chosen for d in (*q.positives, *q.negatives)}
        order = sorted(self.documents, key=lambda document: document.external_id not in own)
        gold = {d.external_id for q in chosen for d in q.positives}
        order.sort(key=lambda document: document.external_id not in gold)
        return HoldOut(chosen, tuple(order[: max(documents, len(gold)) if documents else None]))


class RouterProgress:
    """Measures routing over the hold-out's bank, and writing where the phase trains it.

    The processes of a run share out its batches, which are those of one process: so are the figures, bit for bit.
    """

    def __init__(
        self,
        holdout: HoldOut,
        template: PromptTemplate,
        model: MSAForCausalLM,
        settings: EvaluationSettings,
        batch: BatchSettings,
        *,
        encode_tokens: int = BATCH_TOKENS,
        seed: int = 0,
        frozen_in: Path | None = None,
    ) -> None:
        """
        Args:
            batch: of training: how documents are cut, and up to what their ids are drawn.
            seed: of the documents' ids, and of freshly initialized routers.
            frozen_in: folder to keep the bank's documents in, encoded once (see `FrozenMemory`): for runs in which
                nothing trains that shapes them.
        """
        self.holdout, self._template, self._settings = holdout, template, settings
        self._seed, self._encode_tokens = seed, encode_tokens
        collator = Collator(template, model.config, batch)
        documents = holdout.documents
        self._texts = [collator.part(document) for document in documents]
        most = max(batch.max_id, len(documents))
        self._ids = random.Random(f"{seed}:holdout").sample(range(1, most + 1), len(documents))
        self._documents = [template.document(*pair) for pair in zip(self._ids, self._texts, strict=True)]
        self._frozen = None
        if frozen_in is not None:
            kept = (documents, collator.part, frozen_in)
            self._frozen = FrozenMemory.build(
                model, template, *kept, seed=seed, max_id=most, encode_tokens=encode_tokens
            )
            self._ids = [self._frozen.ids[document.external_id] for document in documents]
        places = {document.external_id: place for place, document in enumerate(documents)}
        self._gold = [[places[d.external_id] for d in question.positives] for question in holdout.questions]
        self._writing = WritingProgress(holdout.questions, documents, template, model.config, settings, seed)

    def references(self, model: MSAForCausalLM) -> dict[str, float]:
        """The untrained router's figures and BM25's, over the same bank and questions."""
        if model.config.router_trained:
            with _fresh_routers(model, self._seed):
                untrained = self._routing(model)
        else:
            untrained = self._routing(model)
        return {**{f"{UNTRAINED}{name}": value for name, value in untrained.items()}, **self._bm25()}

    def measure(self, model: MSAForCausalLM, phase: PhaseSettings) -> dict[str, float]:
        """The figures of a model now."""
        return {**self._routing(model), **self._writing.measure(model, phase.batch)}

    def _routing(self, model: MSAForCausalLM) -> dict[str, float]:
        scores_LQN = self.scores(model)
        found: dict[str, float] = {}
        for layer, scores_QN in zip(model.config.layers, scores_LQN, strict=True):
            found |= self._figures(str(layer), ranks(scores_QN, self._ids, self._gold))
        fused = ranks(scores_LQN.sum(0), self._ids, self._gold)
        return found | self._figures(FUSED, fused) | self._by_source(fused)

    @torch.no_grad()
    def scores(self, model: MSAForCausalLM) -> Tensor:
        """Routing scores of every hold-out question for every document of the bank, `[L, Q, N]` float32 on the CPU."""
        memory, questions, size = self._encoded(model), self.holdout.questions, self._settings.batch

        def score(batch: Sequence[Question]) -> Tensor:
            contexts = [self._template.context(question.question) for question in batch]
            packed = pack_contexts(contexts, model.config.offset).to(model.device)
            asked = BatchMemory(memory, self._ids, model.config)
            step = QueryStep(packed.padding_mask, packed.sees_memory, packed.routes, asked)
            model.backbone.base_model(packed.ids, position_ids=packed.positions, memory=step, use_cache=False)
            return torch.stack([asked.scores[layer] for layer in model.config.layers]).float().cpu()

        batches = [questions[start : start + size] for start in range(0, len(questions), size)]
        return torch.cat(shared_out(model, score, batches), dim=1)

    def _encoded(self, model: MSAForCausalLM) -> EncodedDocuments:
        """The bank's documents."""
        if self._frozen is not None:
            return self._frozen.encoded(model, [document.external_id for document in self.holdout.documents])

        def encode_all(encode: Encode, batches: Sequence[Sequence[int]]) -> list[EncodedDocuments]:
            return shared_out(model, lambda batch: moved(encode(batch), torch.device("cpu")), batches)

        found = encode_documents(model, self._documents, self._encode_tokens, encode_all)
        return moved(found, model.device)

    def _bm25(self) -> dict[str, float]:
        texts = [encoded_text(document.title, document.text) for document in self.holdout.documents]
        index = Bm25(texts)
        scores = torch.stack([torch.as_tensor(index.scores(q.question)) for q in self.holdout.questions])
        scores = scores.masked_fill(scores == 0, float("-inf"))  # a document without any of the words is not found
        found = ranks(scores, self._ids, self._gold)
        return self._figures(BM25, found) | self._by_source(found, BM25)

    def _figures(self, who: str, ranks: Sequence[Sequence[int]]) -> dict[str, float]:
        found = {f"{who}/recall@{k}": _mean([_share(row, k) for row in ranks]) for k in CUTOFFS}
        found[f"{who}/precision"] = _mean([_share(row, len(row)) for row in ranks])
        several = [
            float(max(row) <= CUTOFFS[-1])
            for row, question in zip(ranks, self.holdout.questions, strict=True)
            if len(row) > 1 and question.needs_all
        ]
        return found | ({f"{who}/all_gold@{CUTOFFS[-1]}": _mean(several)} if several else {})

    def _by_source(self, ranks: Sequence[Sequence[int]], who: str = FUSED) -> dict[str, float]:
        shares: dict[str, list[float]] = {}
        for row, question in zip(ranks, self.holdout.questions, strict=True):
            shares.setdefault(question.source, []).append(_share(row, CUTOFFS[-1]))
        return {f"{who}/recall@{CUTOFFS[-1]}/{name}": _mean(found) for name, found in shares.items() if name}


def ranks(scores_QN: Tensor, ids: Sequence[int], gold: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rank of every question's gold documents, from 1: by score, then by id. Of one scored -inf: beyond all.

    Args:
        ids: of the N documents.
        gold: per question, places (0..N-1) of its documents.
    """
    ids_N = torch.tensor(ids)
    found = []
    for scores_N, places in zip(scores_QN, gold, strict=True):
        row = []
        for place in places:
            before_N = (scores_N > scores_N[place]) | ((scores_N == scores_N[place]) & (ids_N < ids_N[place]))
            absent = bool(scores_N[place] == float("-inf"))
            row.append(len(ids) + 1 if absent else int(before_N.sum()) + 1)
        found.append(row)
    return found


def _share(ranks: Sequence[int], k: int) -> float:
    return sum(rank <= k for rank in ranks) / len(ranks)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@contextmanager
def _fresh_routers(model: MSAForCausalLM, seed: int) -> Iterator[None]:
    """The model with routers as `MSAForCausalLM.from_backbone` initializes them; its own come back afterwards."""
    generator = torch.Generator().manual_seed(seed)
    std = getattr(model.config.text_config, "initializer_range", 0.02)
    routers = {name: parameter for name, parameter in model.named_parameters() if is_router(name)}
    own: Mapping[str, Tensor] = {name: whole(parameter).clone() for name, parameter in routers.items()}
    for parameter in routers.values():
        assign(parameter, torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
    try:
        yield
    finally:
        for name, parameter in routers.items():
            assign(parameter, own[name])
