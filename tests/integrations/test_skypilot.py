"""The example for SkyPilot: what SkyPilot takes, and its script run by three nodes, one of which is stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import read_bank, save_backbone

from memspan.bank.add import add_documents, encode_pending
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.encoded import read_manifest
from memspan.bank.encoder import encoding_tasks
from memspan.bank.verify import verify
from memspan.model.convert import convert, load
from memspan.types import Document

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cluster" / "sky.yaml"
TASK: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))


def test_the_example_is_a_task_of_at_most_forty_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40
    assert TASK.keys() <= {"name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}
    assert TASK["resources"].keys() <= {"accelerators", "cpus", "memory", "use_spot", "infra"}
    (mount,) = TASK["file_mounts"]
    assert mount == TASK["envs"]["SHARED"] and TASK["file_mounts"][mount]["mode"] == "MOUNT"
    assert isinstance(TASK["num_nodes"], int)


def test_skypilot_takes_the_example() -> None:
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(TASK, schemas.get_task_schema())
    jsonschema.validate(TASK["resources"], schemas.get_resources_schema())
    for storage in TASK["file_mounts"].values():
        jsonschema.validate(storage, schemas.get_storage_schema())


@pytest.mark.slow
def test_nodes_encode_what_one_process_would(tmp_path: Path) -> None:
    if shutil.which("sh") is None:
        pytest.skip("of the other systems")
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    loaded = load(tmp_path / "msa", device="cpu")
    corpus = [Document(f"doc {n}", f"{n} " + "otter heron река 河 " * (1 + 37 * n % 60)) for n in range(60)]
    for name in ("one", "bank"):
        with closing(MemoryBank.create(tmp_path / name, manifest_of(loaded))) as bank:
            add_documents(bank, loaded, corpus, later=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the nodes, so that the bits are comparable
    try:
        with closing(MemoryBank.open(tmp_path / "one")) as bank:
            encode_pending(bank, loaded, batch_tokens=500)
            expected = _content(bank)
    finally:
        torch.set_num_threads(threads)
    shared = tmp_path / "shared"
    shared.mkdir()
    with closing(MemoryBank.open(tmp_path / "bank")) as bank:
        tasks = [json.dumps(task.as_json()) for task in encoding_tasks(bank, loaded, batch_tokens=500)]
        assert len(tasks) >= 4
        (shared / "tasks.jsonl").write_text("\n".join(tasks) + "\n", encoding="utf-8")
        for rank in (0, 1, 2):
            _run(shared, tmp_path / "msa", rank, 3)
        (shared / "rows" / "1.jsonl").unlink()  # as if the node had been stopped before it
        before = {path: path.stat().st_mtime_ns for path in (shared / "rows").iterdir()}
        _run(shared, tmp_path / "msa", 1, 3)
        assert all(path.stat().st_mtime_ns == at for path, at in before.items()), "what is done is not done again"
        shutil.copytree(shared / "encoded", tmp_path / "bank" / "encoded", dirs_exist_ok=True)
        rows = sorted((shared / "rows").glob("*.jsonl"))
        assert len(rows) == len(tasks)
        report = bank.commit(row for path in rows for row in read_manifest(path.open(encoding="utf-8"), path.name))
        assert (report.documents, report.pending) == (len(expected), 0)
        assert _content(bank) == expected


def _run(shared: Path, model: Path, rank: int, nodes: int) -> None:
    """The script of the example, as a node of SkyPilot runs it."""
    own = {"SHARED": str(shared), "MODEL": str(model), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    own |= {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(nodes)}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["sh", "-c", TASK["run"]], capture_output=True, text=True, check=False, env=os.environ | own)
    assert done.returncode == 0, done.stderr


def _content(bank: MemoryBank) -> list[tuple[Any, ...]]:
    assert verify(bank) == []
    return [(dataclasses.replace(stored, date="", source_id=0), *latents) for stored, *latents in read_bank(bank)]
