"""Which tokens of a document are kept: those that the model looks at most while it repeats the text.

The question is not known when a document is encoded, so the repetition stands for all questions (KVzip, arXiv
2505.23416). Layers and heads share out the tokens that are kept: each keeps those with its own largest attention, one
of them many and another few. So a kept token is a row of its own, which says whose it is: `[2, D + 1]`, its key (0)
with the layer's place behind it, and its value (1) with the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_NOBODY = -1.0
"""In the place of the layer, of rows that fill up."""


def attention_received(query_HQD: Tensor, key_GSD: Tensor, scaling: float | None) -> Tensor:
    """How much the queries of a repetition look at every token of a document, `[G, S]`, float32: the largest share of
    attention that any query of the heads of a group gives it.

    Args:
        query_HQD, key_GSD: rotated, of one layer; H is a multiple of G.
        scaling: of their products; None means D**-0.5.
    """
    D = query_HQD.shape[-1]
    query_GQD = query_HQD.reshape(len(key_GSD), -1, D).float()
    return (query_GQD @ key_GSD.float().mT).mul_(D**-0.5 if scaling is None else scaling).softmax(-1).amax(1)


def kept_rows(received_LGS: Tensor, content_LGS2D: Tensor, count: int) -> Tensor:
    """The `count` tokens with most attention, over all layers and heads, `[count, 2, D + 1]`, in order of layer, head
    and place; behind them rows of nobody, where there are fewer."""
    L, G, S = received_LGS.shape
    place_M = received_LGS.flatten().topk(min(count, L * G * S)).indices.sort().values
    owners_M2 = torch.stack([place_M // (G * S), place_M // S % G], dim=1)
    kept_M2D = content_LGS2D.flatten(0, 2)[place_M]
    rows = content_LGS2D.new_zeros(count, 2, content_LGS2D.shape[-1] + 1)
    rows[:, 0, -1] = _NOBODY
    rows[: len(place_M)] = torch.cat([kept_M2D, owners_M2[..., None].to(kept_M2D.dtype)], dim=-1)
    return rows


def by_layer(questions: Sequence[Tensor], num_layers: int, num_heads: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What every layer reads for some questions: keys and values `[B, G, M, D]`, and which are there `[B, G, M]`. M is
    the most rows of any head; a head with fewer has zeros.

    Args:
        questions: the rows of the documents that each question reads, `[X, 2, D + 1]`.
    """
    of_questions = [_by_owner(rows, num_layers, num_heads) for rows in questions]
    for first in range(0, num_layers * num_heads, num_heads):
        of_heads = [rows for of_owners in of_questions for rows in of_owners[first : first + num_heads]]
        padded_NM2D = pad_sequence(of_heads, batch_first=True)
        there_NM = torch.arange(padded_NM2D.shape[1]) < torch.tensor([len(rows) for rows in of_heads])[:, None]
        keys, values = padded_NM2D.unflatten(0, (len(questions), num_heads)).unbind(3)
        yield keys, values, there_NM.view(len(questions), num_heads, -1)


def _by_owner(rows: Tensor, num_layers: int, num_heads: int) -> tuple[Tensor, ...]:
    """The rows of every head of every layer, `[M, 2, D]` each, in the order in which they stand."""
    rows = rows[rows[:, 0, -1] != _NOBODY]
    owner_M = rows[:, 0, -1].long() * num_heads + rows[:, 1, -1].long()
    counts = owner_M.bincount(minlength=num_layers * num_heads).tolist()
    return rows[owner_M.argsort(stable=True), :, :-1].split(counts)
