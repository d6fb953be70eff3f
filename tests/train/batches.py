"""Batches of random tokens for tests of a training step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from helpers import random_ids

from memspan.text.packing import pack_contexts
from memspan.text.template import Context
from memspan.train.batch import IGNORED, TrainBatch
from memspan.types import Span


def random_batch(
    document_lengths: Sequence[int] = (9, 4, 13, 6, 5),
    bodies: Sequence[int] = (5, 8, 3),
    responses: Sequence[int] = (4, 2, 6),
    *,
    seed: int = 0,
    offset: int = 2,
    document_ids: Sequence[int] | None = None,
) -> TrainBatch:
    """One question per body, over all documents; question i needs documents i and (i + 2) modulo their number.

    The tokens of a question do not depend on how many others there are.
    """
    torch.manual_seed(seed)
    N, B, prefix, tail = len(document_lengths), len(bodies), 3, 2
    documents = random_ids(*document_lengths)
    contexts, learned = [], []
    for index, (body, response) in enumerate(zip(bodies, responses, strict=True)):
        torch.manual_seed(1000 * seed + index)
        ids = random_ids(prefix + body + tail + response)[0]
        contexts.append(Context(tuple(ids), Span(prefix, prefix + body)))
        learned.append(response)
    packed = pack_contexts(contexts, offset)
    labels_BT = torch.full_like(packed.ids, IGNORED)
    for row, response in enumerate(learned):
        if response:
            labels_BT[row, -response:] = packed.ids[row, -response:]
    positives_BN = torch.zeros(B, N, dtype=torch.bool)
    for row in range(B):
        positives_BN[row, [row % N, (row + 2) % N]] = True
    return TrainBatch(
        documents=tuple(map(tuple, documents)),
        document_names=tuple(f"d{index}" for index in range(N)),
        document_ids=tuple(
            document_ids or (torch.randperm(3 * N, generator=torch.Generator().manual_seed(seed))[:N] + 1).tolist()
        ),
        document_texts=tuple(f"text {index}" for index in range(N)),
        questions=tuple(f"question {index}" for index in range(B)),
        contexts=packed,
        labels_BT=labels_BT,
        positives_BN=positives_BN,
        candidates_BN=torch.ones(B, N, dtype=torch.bool),
    )
