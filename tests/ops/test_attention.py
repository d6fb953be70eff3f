from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from memspan.ops import naive
from memspan.ops.attention import _attend_by_group, attend, local_mask, memory_mask

H, G, D = 4, 2, 8
SCALING = 0.3  # not D**-0.5, so that a lost scaling shows
LENGTHS = [9, 1, 6]
ROWS = [5, 0, 3]  # memory rows of each question
PREFIX = [2, 0, 1]  # tokens that see no memory


def _explicit(
    query_THD: torch.Tensor, key_SGD: torch.Tensor, value_SGD: torch.Tensor, visible_TS: torch.Tensor
) -> torch.Tensor:
    """Softmax attention under any mask, written out over all heads."""
    key_SHD, value_SHD = (x.repeat_interleave(H // G, dim=1) for x in (key_SGD, value_SGD))
    logits_HTS = torch.einsum("thd,shd->hts", query_THD, key_SHD) * SCALING
    weights_HTS = logits_HTS.masked_fill(~visible_TS, -math.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights_HTS, value_SHD)


class Batch:
    """A ragged left-padded batch with memory; padding holds large finite garbage, masked memory rows are zero."""

    def __init__(self, device: torch.device) -> None:
        def tokens(heads: int) -> list[torch.Tensor]:
            return [torch.randn(length, heads, D, dtype=torch.float64, device=device) for length in LENGTHS]

        def rows() -> list[torch.Tensor]:
            return [torch.randn(count, G, D, dtype=torch.float64, device=device) for count in ROWS]

        self.q, self.k, self.v = tokens(H), tokens(G), tokens(G)
        self.mk, self.mv = rows(), rows()
        self.T, self.M = max(LENGTHS), max(ROWS)
        steps = torch.arange(self.T)
        self.valid = torch.stack([steps >= self.T - length for length in LENGTHS]).to(device)
        self.sees = torch.stack([steps >= self.T - n + p for n, p in zip(LENGTHS, PREFIX, strict=True)]).to(device)
        self.mask_BM = torch.stack([torch.arange(self.M) < count for count in ROWS]).to(device)
        self.query, self.key, self.value = (self._left(x, garbage=1e3) for x in (self.q, self.k, self.v))
        self.memory_key, self.memory_value = (self._right(x) for x in (self.mk, self.mv))

    def _left(self, items: list[torch.Tensor], garbage: float) -> torch.Tensor:
        padded = items[0].new_full((len(items), self.T, *items[0].shape[1:]), garbage)
        for row, item in zip(padded, items, strict=True):
            row[self.T - len(item) :] = item
        return padded.transpose(1, 2)

    def _right(self, items: list[torch.Tensor]) -> torch.Tensor:
        padded = items[0].new_zeros(len(items), self.M, G, D)
        for row, item in zip(padded, items, strict=True):
            row[: len(item)] = item
        return padded.transpose(1, 2)

    def run(self, new: int | None = None) -> torch.Tensor:
        """Output for the last `new` tokens (default: all), `[B, new, H, D]`."""
        new = new or self.T
        local = local_mask(new, self.T, self.valid, None, self.query.device)
        memory = memory_mask(self.mask_BM, self.sees[:, -new:])
        return attend(
            self.query[:, :, -new:],
            torch.cat([self.memory_key, self.key], dim=2),
            torch.cat([self.memory_value, self.value], dim=2),
            torch.cat([memory, local.expand(len(LENGTHS), -1, -1, -1)], dim=-1),
            SCALING,
        )


def test_a_ragged_batch_with_memory_equals_the_naive_loop_of_every_question(device: torch.device) -> None:
    batch = Batch(device)
    out = batch.run()
    assert torch.isfinite(out).all(), "padding rows are defined too"
    for b, length in enumerate(LENGTHS):
        sees = batch.sees[b, -length:].tolist()
        expected = naive.memory_attention(batch.q[b], batch.k[b], batch.v[b], batch.mk[b], batch.mv[b], sees, SCALING)
        torch.testing.assert_close(out[b, -length:], expected, rtol=0, atol=1e-12)


def test_prefix_rows_do_not_depend_on_the_memory_and_all_others_do(device: torch.device) -> None:
    batch = Batch(device)
    before = batch.run()
    batch.memory_key = torch.randn_like(batch.memory_key) * batch.mask_BM[:, None, :, None]
    batch.memory_value = torch.randn_like(batch.memory_value) * batch.mask_BM[:, None, :, None]
    changed = (batch.run() != before).any(-1).any(-1)
    expected = batch.sees & batch.mask_BM.any(1, keepdim=True)
    assert torch.equal(changed & batch.valid, expected)


@pytest.mark.parametrize("new", [1, 2, 3])
def test_decoding_gives_the_last_rows_of_the_full_pass(new: int, device: torch.device) -> None:
    batch = Batch(device)
    decoded, full = batch.run(new), batch.run()[:, -new:]
    valid = batch.valid[:, -new:]
    torch.testing.assert_close(decoded[valid], full[valid], rtol=0, atol=1e-12)
    assert torch.isfinite(decoded).all()


@pytest.mark.parametrize("new", [None, 1, 3])
def test_what_padding_holds_never_changes_a_token(new: int | None, device: torch.device) -> None:
    batch = Batch(device)
    before = batch.run(new)
    padding = ~batch.valid[:, None, :, None]
    batch.query, batch.key, batch.value = (
        torch.where(padding, -7.0 * torch.randn_like(x), x) for x in (batch.query, batch.key, batch.value)
    )
    after = batch.run(new)
    valid = batch.valid[:, -before.shape[1] :]
    assert torch.equal(after[valid], before[valid])


@pytest.mark.parametrize("window", [1, 3, 4, 9, 20])
@pytest.mark.parametrize("num_queries", [1, 2, 3, 9])
def test_a_sliding_window_with_padding_equals_an_explicit_mask(
    num_queries: int, window: int, device: torch.device
) -> None:
    batch = Batch(device)
    S = batch.T
    mask = local_mask(num_queries, S, batch.valid, window, device)
    out = attend(batch.query[:, :, -num_queries:], batch.key, batch.value, mask, SCALING)
    assert torch.isfinite(out).all()
    for b, length in enumerate(LENGTHS):
        new = min(num_queries, length)
        visible = [[t - window < s <= t for s in range(length)] for t in range(length - new, length)]
        expected = _explicit(batch.q[b][-new:], batch.k[b], batch.v[b], torch.tensor(visible, device=device))
        torch.testing.assert_close(out[b, -new:], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [None, 4, 9, 20])
@pytest.mark.parametrize("num_queries", [1, 2, 3, 9])
def test_without_padding_the_mask_or_its_absence_means_causal_within_the_window(
    num_queries: int, window: int | None, device: torch.device
) -> None:
    S = 9
    query = torch.randn(1, H, num_queries, D, dtype=torch.float64, device=device)
    key, value = torch.randn(2, 1, G, S, D, dtype=torch.float64, device=device)
    out = attend(query, key, value, local_mask(num_queries, S, None, window, device), SCALING)[0]
    visible = [[t - (window or S) < s <= t for s in range(S)] for t in range(S - num_queries, S)]
    query_THD, key_SGD, value_SGD = (x[0].transpose(0, 1) for x in (query, key, value))
    expected = _explicit(query_THD, key_SGD, value_SGD, torch.tensor(visible, device=device))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_validity_longer_than_a_trimmed_cache_is_read_from_its_end() -> None:
    valid_BS = torch.tensor([[False] * 4 + [True] * 6, [True] * 10])
    trimmed = local_mask(2, 7, valid_BS, None, torch.device("cpu"))
    assert torch.equal(trimmed, local_mask(2, 7, valid_BS[:, -7:], None, torch.device("cpu")))
    assert trimmed[0, 0, -1].tolist() == [False] + [True] * 6


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_queries", [2, 9])
def test_padding_is_seen_by_itself_alone_so_that_every_row_has_a_key(num_queries: int, window: int | None) -> None:
    valid_BS = torch.tensor([[False] * 8 + [True], [True] * 9])
    mask = local_mask(num_queries, 9, valid_BS, window, torch.device("cpu"))[0, 0]
    itself = torch.eye(9, dtype=torch.bool)[-num_queries:]
    assert torch.equal(mask, itself)


@pytest.mark.parametrize("kind", ["causal", "masked", "cached"])
def test_with_gradients_it_is_the_same_attention(kind: str) -> None:
    """On a CPU the way with gradients is another one: same values, and the gradients of the fused kernel."""
    torch.manual_seed(3)
    T, S = (3, 7) if kind == "cached" else (7, 7)
    given = [torch.randn(2, heads, length, D, dtype=torch.float64) for heads, length in ((H, T), (G, S), (G, S))]
    mask = None
    if kind != "causal":
        mask = torch.rand(2, 1, T, S) < 0.6
        mask[..., 0] = True

    @torch.enable_grad()
    def run(plainly: bool) -> list[torch.Tensor]:
        q, k, v = (x.clone().requires_grad_() for x in given)
        if plainly:
            out = attend(q, k, v, mask, SCALING)
        else:
            k_all, v_all = (x.repeat_interleave(H // G, dim=1) for x in (k, v))
            fused = torch.nn.functional.scaled_dot_product_attention(
                q, k_all, v_all, attn_mask=mask, is_causal=mask is None, scale=SCALING
            )
            out = fused.transpose(1, 2)
        (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
        return [out, *(x.grad for x in (q, k, v) if x.grad is not None)]

    for got, wanted in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(got, wanted)
    with torch.no_grad():
        torch.testing.assert_close(attend(*given, mask, SCALING), run(True)[0].detach())


class _Made(TorchDispatchMode):
    """The most numbers of any tensor that is made inside and is no view."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_iter(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, x.numel())
        return out


@pytest.mark.parametrize("T", [1, 3])
@pytest.mark.parametrize("masked", [0, 1, H])
def test_on_an_accelerator_one_row_attends_to_grouped_heads_that_are_not_repeated(T: int, masked: int) -> None:
    """Under a mask of one head for all, or of each."""
    S = 400
    query, key, value = torch.randn(1, H, T, D), torch.randn(1, G, S, D), torch.randn(1, G, S, D)
    if not masked and T > 1:
        key, value = key[:, :, :T], value[:, :, :T]
    mask = torch.randn(1, masked, T, S) if masked else None
    with torch.inference_mode():
        expected = attend(query, key, value, mask, SCALING)
        with _Made() as made:
            found = _attend_by_group(query, key, value, mask, SCALING, 0.0)
    torch.testing.assert_close(found, expected)
    assert made.most < max(key.numel(), query.numel() + 1), "neither keys nor values were copied"
