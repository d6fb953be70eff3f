from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers import tiny_loaded

from memspan.bank.bank import MemoryBank
from memspan.bank.manifest import Manifest
from memspan.bank.synthetic import SHAPES, synthetic_manifest, write_synthetic
from memspan.bank.verify import verify
from memspan.errors import BankError, BankMismatch
from memspan.generate.memory import Memory
from memspan.routing.local import LocalMemory


def _tiny() -> Manifest:
    return dataclasses.replace(synthetic_manifest("smollm2-135m"), msa_layers=(1, 3), num_kv_heads=2, head_dim=16)


def test_a_made_up_bank_is_a_whole_bank_whose_content_takes_no_space(tmp_path: Path) -> None:
    manifest, told = _tiny(), []
    with closing(
        write_synthetic(
            tmp_path / "bank",
            manifest,
            101,
            chunks_per_document=3,
            max_segment_bytes=40 * manifest.row_bytes,
            progress=told.append,
        )
    ) as bank:
        counts = bank.catalog.counts()
        assert (counts.chunks, counts.documents, counts.segments) == (101, 34, 3) and told == [39, 78, 101]
        assert verify(bank) == []
        with bank.snapshot() as snapshot:
            (shard,) = snapshot.shards
            keys_CW = torch.cat([segment.router_rows(1, at) for segment, at in map(shard.place, range(34))]).float()
            assert keys_CW.view(-1, 2, 16).norm(dim=-1).sub(1).abs().max() < 0.01
            memory = LocalMemory(snapshot.shards, manifest, 4)
            found = memory.route(3, torch.randn(1, 2, 4, 16), torch.ones(1, 2).bool())
            assert len(found.doc_ids[0]) == 4 and not found.keys_BGMD.any()
    content = [path for path in (tmp_path / "bank" / "segments").iterdir() if ".content." in path.name]
    assert all(path.stat().st_blocks * 512 <= max(4096, path.stat().st_size) for path in content)


def test_the_same_seed_makes_the_same_keys(tmp_path: Path) -> None:
    def keys(name: str, seed: int) -> torch.Tensor:
        with closing(write_synthetic(tmp_path / name, _tiny(), 10, seed=seed)) as bank, bank.snapshot() as snapshot:
            segment, place = snapshot.shards[0].place(2)
            return segment.router_rows(1, place)

    assert torch.equal(keys("a", 1), keys("b", 1)) and not torch.equal(keys("c", 1), keys("d", 2))


def test_no_question_is_answered_from_it(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "bank", _tiny(), 4).close()
    with pytest.raises(BankMismatch, match="made-up latents"):
        Memory(MemoryBank.open(tmp_path / "bank"), tiny_loaded())


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_the_models(shape: str) -> None:
    manifest = synthetic_manifest(shape)
    assert (len(manifest.msa_layers), manifest.num_kv_heads * manifest.head_dim) in {(15, 192), (18, 1024)}


def test_bad_numbers_and_shapes_are_named(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="smollm2-135m, qwen3-4b, not 'gpt'"):
        synthetic_manifest("gpt")
    with pytest.raises(BankError, match="not 0 and 2"):
        write_synthetic(tmp_path / "bank", _tiny(), 0)
    assert not (tmp_path / "bank").exists()
