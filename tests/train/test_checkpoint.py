"""Checkpoints of a run: whole or not at all, the newest and the best are kept, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import file_size_limit

from memspan.errors import CheckpointError
from memspan.train.checkpoint import Checkpoint, CheckpointStore


def checkpoint(step: int, size: int = 8) -> Checkpoint:
    torch.manual_seed(step)
    weight = torch.randn(size)
    return Checkpoint({"w": weight}, {"w/exp_avg": weight / 2, "w/step": torch.tensor(3.0)}, {"step": step, "x": [0.1]})


def assert_same(read: Checkpoint, written: Checkpoint) -> None:
    for name in ("trained", "optimizer"):
        ours, theirs = getattr(read, name), getattr(written, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert read.state == {**written.state, "format": 1}


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", keep=2)
    for step in (10, 20):
        store.save(checkpoint(step))
    assert_same(store.load(), checkpoint(20))
    assert_same(store.load(10), checkpoint(10))
    files = {path.name for path in store.path(10).iterdir()}
    assert files == {"trained.safetensors", "optimizer.safetensors", "state.json"}


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in range(10, 70, 10):
        store.save(checkpoint(step), best_step=20)
    assert store.steps() == [20, 50, 60]
    store.save(checkpoint(70), best_step=70)
    assert store.steps() == [60, 70]


def test_a_step_can_be_written_again(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    store.save(checkpoint(10))
    store.save(checkpoint(10))
    assert_same(store.load(), checkpoint(10))


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(checkpoint(10))
    with (
        file_size_limit(4096),
        pytest.raises(CheckpointError, match=r"step-00000020 \(.*the one of step 10 stays; make room and resume"),
    ):
        store.save(checkpoint(20, size=100_000))
    assert_same(store.load(), checkpoint(10))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]
    store.save(checkpoint(20))
    assert store.steps() == [20]


def test_what_a_killed_writer_left_is_not_read_and_goes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    left = tmp_path / ".step-00000005.0a1b2c3d.partial"
    left.mkdir()
    (left / "trained.safetensors").write_bytes(b"torn")
    assert store.steps() == []
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        store.load()
    store.save(checkpoint(10))
    assert not left.exists()


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    path = store.save(checkpoint(10)) / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="step-00000010 is damaged"):
        store.load()


def test_another_format_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    path = store.save(checkpoint(10)) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="is of format 2, this version reads 1"):
        store.load()
