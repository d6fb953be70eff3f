"""The example for Spark, in local mode and in a network of its own: Spark opens ports, too."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import read_bank, save_backbone
from own_network import in_own_network

from memspan.bank.add import add_documents, encode_pending
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.remembered import remember
from memspan.bank.verify import verify
from memspan.model.convert import convert, load
from memspan.types import Document

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cluster" / "spark.py"


def test_the_example_has_at_most_forty_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40


def _content(bank: MemoryBank) -> list[tuple[Any, ...]]:
    assert verify(bank) == []
    return [(dataclasses.replace(stored, date="", source_id=0), *latents) for stored, *latents in read_bank(bank)]


@pytest.mark.slow
def test_spark_encodes_what_one_process_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("Spark is not installed")
    if shutil.which("java") is None:
        pytest.skip("there is no Java here")
    command = in_own_network(sys.executable, EXAMPLE, tmp_path / "bank", 2)
    save_backbone(tmp_path / "plain")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    loaded = load(tmp_path / "msa", device="cpu")
    corpus = [Document(f"doc {n}", f"{n} " + "otter heron река 河 " * (1 + 37 * n % 60)) for n in range(150)]
    for name in ("one", "bank"):
        with closing(MemoryBank.create(tmp_path / name, manifest_of(loaded))) as bank:
            remember(bank.catalog, loaded.names)
            add_documents(bank, loaded, corpus, later=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers, so that the bits are comparable
    try:
        with closing(MemoryBank.open(tmp_path / "one")) as bank:
            encode_pending(bank, loaded)
            expected = _content(bank)
    finally:
        torch.set_num_threads(threads)
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    for encoded in (len(expected), 0):
        own = {"PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        own |= {"OMP_NUM_THREADS": "1", "SPARK_LOCAL_DIRS": str(tmp_path / "scratch")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | own)
        reported = f"documents={encoded}, before=0, gone=0, pending=0"
        assert done.returncode == 0 and reported in done.stdout, done.stdout + done.stderr[-5000:]
        with closing(MemoryBank.open(tmp_path / "bank")) as bank:
            assert _content(bank) == expected
