"""Which fusion of lexical search and router `hybrid` should use: measured with routers fitted for the purpose.

    memspan add BANK DATA/dev/bank_small.jsonl.gz
    python benchmarks/fusion.py BANK DATA [--pairs 1500] [--steps 300] [--json FILE]

The backbone stays frozen; the router projections of every MSA layer are fitted by in-batch negatives on hidden states
computed once (pooling commutes with the projection), which gives a router that has learned something but is far from
good: the case in which a fusion can do harm. Recall@1/5/16 on the questions of DATA/dev/sample_ids.json over the bank,
for lexical search, router, reciprocal-rank fusion, and `fuse` with several weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from memspan import MemoryBank, load
from memspan.bank.encode import BATCH_TOKENS
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import AskStep, EncodeStep
from memspan.model.modeling import routed_modules
from memspan.ops.pooling import pool_chunks
from memspan.ops.scoring import chunk_scores, document_scores, fold_keys, fold_queries, routing_queries
from memspan.routing.ranking import Ranked, rank_documents
from memspan.routing.selector import fuse
from memspan.routing.source import Candidates
from memspan.text.packing import length_batches, pack_contexts
from memspan.text.template import encoded_text

TRAIN_FILES = ("qa/qed_nq_train.jsonl.gz", "qa/squad_pool.jsonl.xz", "pairs/debian.jsonl.gz")
DEPTHS = (1, 5, 16)
BATCH_PAIRS, LEARNING_RATE, TEMPERATURE = 48, 3e-3, 0.05
CANDIDATES = 128

Ranking = list[tuple[int, float]]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


class HiddenStates:
    """The normalised inputs of the MSA layers' attention: pooled for documents, by token for questions."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded, self._seen = loaded, {}
        for layer, module in zip(loaded.model.config.layers, routed_modules(loaded.model), strict=True):
            module.register_forward_pre_hook(self._keep(layer), with_kwargs=True)

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            step = kwargs["memory"]
            hidden_BTF = kwargs["hidden_states"]
            if isinstance(step, EncodeStep):
                hidden_BTF = pool_chunks(hidden_BTF, step.lengths_B, step.chunk_size)
            self._seen[layer] = hidden_BTF.float()

        return hook

    def _stacked(self) -> torch.Tensor:
        return torch.stack([self._seen[layer] for layer in self._loaded.model.config.layers])

    @torch.inference_mode()
    def of_documents(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Per document `[L, C, F]`."""
        template = self._loaded.template
        ids = [template.document(random.randrange(1, 10**5), text)[:256] for text in texts]
        states: list[torch.Tensor] = [torch.empty(0)] * len(ids)
        for batch in length_batches(list(map(len, ids)), BATCH_TOKENS):
            chunks = self._loaded.model.encode([ids[index] for index in batch]).num_chunks
            for row, (index, count) in enumerate(zip(batch, chunks, strict=True)):
                states[index] = self._stacked()[:, row, :count].clone()
        return states

    @torch.inference_mode()
    def of_question(self, question: str) -> torch.Tensor:
        """The tokens that route, `[L, T, F]`."""
        packed = pack_contexts([self._loaded.template.context(question)], self._loaded.model.config.offset)
        step = AskStep(sees_memory_BT=packed.sees_memory)
        self._loaded.model(input_ids=packed.ids, position_ids=packed.positions, memory=step, logits_to_keep=1)
        return self._stacked()[:, 0, packed.routes[0]].clone()


class Routers(torch.nn.Module):
    """The router projections of all MSA layers, `[L, out, F]` each."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__()
        config = loaded.model.config
        self.heads, self.kv_heads, self.size = config.num_heads, config.num_kv_heads, config.head_dim
        size = config.text_config.hidden_size
        self.query = torch.nn.Parameter(0.02 * torch.randn(len(config.layers), self.heads * self.size, size))
        self.key = torch.nn.Parameter(0.02 * torch.randn(len(config.layers), self.kv_heads * self.size, size))

    def scores(self, questions: Sequence[torch.Tensor], documents: Sequence[torch.Tensor]) -> torch.Tensor:
        """`[L, B, N]` document scores."""
        state_BLTF = torch.nn.utils.rnn.pad_sequence([q.transpose(0, 1) for q in questions], batch_first=True)
        lengths = torch.tensor([q.shape[1] for q in questions])
        mask_BT = torch.arange(state_BLTF.shape[1]) < lengths[:, None]
        state_LCF = torch.cat(list(documents), dim=1)
        document_C = torch.repeat_interleave(torch.tensor([d.shape[1] for d in documents]))
        by_layer = []
        for layer, (query_OF, key_OF) in enumerate(zip(self.query, self.key, strict=True)):
            query_BTHD = (state_BLTF[:, :, layer] @ query_OF.T).unflatten(-1, (self.heads, self.size))
            key_CGD = (state_LCF[layer] @ key_OF.T).unflatten(-1, (self.kv_heads, self.size))
            folded = routing_queries(fold_queries(query_BTHD, self.kv_heads, "cosine"), mask_BT)
            score_BC = chunk_scores(folded, fold_keys(key_CGD, "cosine"))
            by_layer.append(document_scores(score_BC, document_C, len(documents)))
        return torch.stack(by_layer)


def fit(routers: Routers, questions: list[torch.Tensor], documents: list[torch.Tensor], steps: int) -> None:
    """In-batch negatives, one positive each (paper eq. 5 with |P| = 1), in every MSA layer."""
    optimizer = torch.optim.Adam(routers.parameters(), lr=LEARNING_RATE)
    for step in range(steps):
        chosen = random.sample(range(len(questions)), BATCH_PAIRS)
        scores_LBN = routers.scores([questions[i] for i in chosen], [documents[i] for i in chosen]) / TEMPERATURE
        target = torch.arange(BATCH_PAIRS).expand(len(scores_LBN), -1)
        loss = torch.nn.functional.cross_entropy(scores_LBN.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(loss):.3f}", flush=True)


def ranked(scores_LN: torch.Tensor, ids_N: torch.Tensor, layers: Sequence[int], top_k: int) -> list[Ranked]:
    candidates = {}
    for layer, scores_N in zip(layers, scores_LN, strict=True):
        best = scores_N.topk(min(CANDIDATES, len(scores_N)))
        candidates[layer] = Candidates(ids_N[best.indices], best.values)
    return rank_documents(candidates, top_k)


def reciprocal_ranks(lexical: Ranking, routed: list[Ranked]) -> Ranking:
    fused: dict[int, float] = {}
    for ids in ([i for i, _ in lexical], [found.document_id for found in routed]):
        for rank, document_id in enumerate(ids, start=1):
            fused[document_id] = fused.get(document_id, 0.0) + 1 / (60 + rank)
    return sorted(fused.items(), key=lambda item: (-item[1], item[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)

    loaded, bank = load(), MemoryBank.open(options.bank)
    states = HiddenStates(loaded)
    pairs = []
    for name in TRAIN_FILES:
        lines = list(read_lines(options.data / "train" / name))
        pairs += random.sample(lines, options.pairs // len(TRAIN_FILES))
    positives = [encoded_text(pair["positives"][0]["title"], pair["positives"][0]["text"]) for pair in pairs]
    routers = Routers(loaded)
    fit(routers, [states.of_question(p["question"]) for p in pairs], states.of_documents(positives), options.steps)

    stored = bank.catalog.page("default", 0, 10**6)
    ids_N = torch.tensor([found.id for found in stored])
    document_states = states.of_documents([found.encoded_text for found in stored])
    by_text: dict[tuple[str, str], int] = {(found.title, found.text): found.id for found in stored}
    weights = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
    recalls: dict[str, dict[str, list[list[float]]]] = {}
    for dev_set, wanted in json.loads((options.data / "dev" / "sample_ids.json").read_text()).items():
        lines = [line for line in read_lines(options.data / "dev" / f"{dev_set}.jsonl.gz") if line["id"] in wanted]
        with torch.inference_mode():
            scores_LBN = routers.scores([states.of_question(line["question"]) for line in lines], document_states)
        for line, scores_LN in zip(lines, scores_LBN.unbind(1), strict=True):
            gold = {by_text.get((p["title"], p["text"])) for p in line["positives"]} - {None}
            if not gold:
                continue
            lexical = bank.catalog.search("default", line["question"], 64)
            routed = ranked(scores_LN, ids_N, loaded.model.config.layers, loaded.model.config.top_k_docs)
            rankings: dict[str, Ranking] = {
                "lexical": lexical,
                "router": [(found.document_id, found.score) for found in routed],
                "reciprocal ranks": reciprocal_ranks(lexical, routed),
                **{f"fuse {weight}": fuse(lexical, routed, weight) for weight in weights},
            }
            for name, ranking in rankings.items():
                found_ids = [document_id for document_id, _ in ranking]
                recall = [len(gold & set(found_ids[:depth])) / len(gold) for depth in DEPTHS]
                recalls.setdefault(name, {}).setdefault(dev_set, []).append(recall)
    figures = {
        name: {dev_set: torch.tensor(rows).mean(0).tolist() for dev_set, rows in sets.items()}
        for name, sets in recalls.items()
    }
    for name, sets in figures.items():
        mean = torch.tensor(list(sets.values())).mean(0).tolist()
        print(f"{name:<17}", "  ".join(f"@{d} {r:.3f}" for d, r in zip(DEPTHS, mean, strict=True)))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
