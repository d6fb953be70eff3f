"""What routing costs is what real ranks count: keys that are read, bytes that are received, collectives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import add_latents, random_latents, tiny_manifest
from ranked import in_processes

from memspan.bank import shard
from memspan.bank.bank import MemoryBank
from memspan.bank.synthetic import synthetic_manifest
from memspan.routing import source
from memspan.routing.cost import Asked, coarse_key_bytes, received_bytes, routing_cost
from memspan.routing.ranks import Ranks
from memspan.routing.sharded import ShardedMemory, ShardedSource
from memspan.types import Document

MANIFEST = tiny_manifest()
DOCUMENT_CHUNKS = 2


@pytest.fixture(autouse=True)
def _segments_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    monkeypatch.setattr(ShardedSource, "above", lambda *_: pytest.fail("the first pass is enough here"))


def _bank(folder: Path, sizes: list[int], best_in: int) -> torch.Tensor:
    """Segments of so many documents; one in each of the first is far better for the direction that comes back."""
    wanted_GD = torch.nn.functional.normalize(torch.randn(MANIFEST.num_kv_heads, MANIFEST.head_dim), dim=-1)
    with closing(MemoryBank.create(folder, MANIFEST)) as bank:
        for number, size in enumerate(sizes):
            with bank.writer() as writer:
                for at in range(size):
                    latents = random_latents(MANIFEST, DOCUMENT_CHUNKS)
                    if at == 0 and number < best_in:
                        latents.router_keys_LCW[:] = wanted_GD.flatten().bfloat16()
                    add_latents(writer, Document(f"{number}-{at}", "text"), latents)
                writer.commit()
    return wanted_GD


class Counted:
    """Collectives of this process, and the bytes of routing keys that it scored."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.collectives = self.key_bytes = 0
        for name in ("all_gather", "broadcast", "scatter"):
            patch.setattr(dist, name, self._counting(getattr(dist, name)))
        score = source.coarse_scores

        def scored(queries: Any, keys: Any, out_BC: torch.Tensor) -> None:
            self.key_bytes += keys.nbytes
            score(queries, keys, out_BC)

        patch.setattr(source, "coarse_scores", scored)

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            self.collectives += 1
            return call(*given, **named)

        return counted


@pytest.mark.parametrize(
    ("ranks", "sizes", "questions"),
    [(2, [60, 60], 1), (2, [60, 40, 50, 30], 2), (3, [40, 40, 40], 1), (3, [90, 50, 45, 44, 30], 2)],
)
def test_ranks_read_and_receive_what_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, sizes: list[int], questions: int
) -> None:
    asked = Asked(questions, tokens=5, top_k=ranks, document_chunks=DOCUMENT_CHUNKS)
    wanted_GD = _bank(folder := tmp_path / "bank", sizes, best_in=ranks)  # which even shares give to different ranks
    query_BTHD = wanted_GD.repeat_interleave(2, 0).expand(questions, 5, -1, -1)

    def route(joined: Ranks) -> tuple[int, int, int]:
        with MemoryBank.open(folder).snapshot() as snapshot, pytest.MonkeyPatch.context() as patch:
            memory = ShardedMemory(snapshot, asked.top_k, joined)
            counted, before = Counted(patch), joined.received_bytes
            for layer in MANIFEST.msa_layers:
                memory.route(layer, query_BTHD, torch.ones(questions, 5, dtype=torch.bool))
            return counted.key_bytes, joined.received_bytes - before, counted.collectives

    found = in_processes(route, ranks)
    expected = routing_cost(MANIFEST, [size * DOCUMENT_CHUNKS for size in sizes], ranks, asked)
    assert [key_bytes for key_bytes, _, _ in found] == list(expected.key_bytes)
    assert {collectives for _, _, collectives in found} == {expected.collectives}
    # The questions are the same, so they select the same documents, whose content travels once.
    foreign = (ranks - 1) * DOCUMENT_CHUNKS
    once = received_bytes(MANIFEST, ranks, asked, foreign, 1) * len(MANIFEST.msa_layers)
    assert {received for _, received, _ in found[1:]} == {once}
    assert once == expected.received_bytes or (questions > 1 and once < expected.received_bytes)


def test_one_rank_receives_nothing_and_waits_for_nobody() -> None:
    manifest = synthetic_manifest("qwen3-4b")
    cost = routing_cost(manifest, [100, 50], 1, Asked(1, 32, 16, 8))
    assert (cost.received_bytes, cost.collectives, cost.steps) == (0, 0, 0)
    assert cost.key_bytes == (150 * 18 * 1028,) == (150 * coarse_key_bytes(manifest),)
    assert cost.seconds(memory=150 * 18 * 1028, network=1.0) == 1.0


@pytest.mark.parametrize("shards", [[], [7], [5, 5], [1] * 100, [1000, 1, 1]])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_together_read_every_key_once(shards: list[int], ranks: int) -> None:
    cost = routing_cost(MANIFEST, shards, ranks, Asked(1, 32, 16, 8))
    assert len(cost.key_bytes) == ranks and sum(cost.key_bytes) == sum(shards) * coarse_key_bytes(MANIFEST)


def test_time_is_that_of_the_slowest_rank_and_of_what_travels() -> None:
    asked = Asked(1, 32, 16, 8)
    even, uneven = (routing_cost(MANIFEST, shards, 2, asked) for shards in ([500, 500], [999, 1]))
    assert uneven.seconds(1e9, 1e9) > even.seconds(1e9, 1e9)
    assert even.seconds(1e9, 1e9, 1e-3) == pytest.approx(even.seconds(1e9, 1e9) + 1e-3 * even.steps)
    assert even.seconds(1e9, 1e8) - even.seconds(1e9, 1e9) == pytest.approx(even.received_bytes * 9e-9)
    four = routing_cost(MANIFEST, [500, 500, 500, 500], 4, asked)
    assert four.steps > even.steps and four.received_bytes > even.received_bytes
