"""Encoding on Ray: a cluster of two workers, some of them killed. `test_ray.py` runs it in a network of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from helpers import read_bank, save_backbone
from typer.testing import CliRunner

ray = pytest.importorskip("ray", reason="Ray is not installed")
importlib.import_module("ray.data")

import memspan  # noqa: E402
from memspan.bank import encoded  # noqa: E402
from memspan.bank.add import add_documents, encode_pending  # noqa: E402
from memspan.bank.bank import MemoryBank  # noqa: E402
from memspan.bank.encode import manifest_of  # noqa: E402
from memspan.bank.encoder import encoding_tasks  # noqa: E402
from memspan.bank.locks import encoder_lock  # noqa: E402
from memspan.bank.verify import verify  # noqa: E402
from memspan.cli import app  # noqa: E402
from memspan.errors import BankBusy, RankError  # noqa: E402
from memspan.generate.memory import Memory  # noqa: E402
from memspan.integrations import ray as on_ray  # noqa: E402
from memspan.model.convert import LoadedModel, convert, load  # noqa: E402
from memspan.types import AddReport, Document  # noqa: E402

BATCH_TOKENS = 60


@pytest.fixture(scope="module", autouse=True)
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers, so that the bits are comparable
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(Path(memspan.__file__).parents[1]))  # workers have the same memspan
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_backbone(folder / "plain")
    convert(str(folder / "plain"), folder / "msa", dtype=torch.float32, chunk_size=4, top_k_docs=2)
    return folder / "msa"


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load(checkpoint, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memspan.bank.encode.WINDOW_BATCHES", 2)


def _corpus(count: int) -> list[Document]:
    generator = random.Random(0)
    words = ["otter", "heron", "lynx", "river", "tower"]
    texts = [" ".join(generator.choices(words, k=1 + 7 * n % 40)) for n in range(count)]
    return [Document(f"doc {n}", f"{n} {text}", metadata={"n": n}) for n, text in enumerate(texts)]


def _content(bank: MemoryBank) -> list[tuple[Any, ...]]:
    assert verify(bank) == []
    return [(dataclasses.replace(stored, date="", source_id=0), *latents) for stored, *latents in read_bank(bank)]


def _alone(folder: Path, loaded: LoadedModel, corpus: list[Document]) -> list[tuple[Any, ...]]:
    with closing(MemoryBank.create(folder, manifest_of(loaded))) as bank:
        add_documents(bank, loaded, corpus, later=True)
        encode_pending(bank, loaded, batch_tokens=BATCH_TOKENS)
        return _content(bank)


def _memory(folder: Path, loaded: LoadedModel) -> Memory:
    return Memory(MemoryBank.create(folder, manifest_of(loaded)), loaded)


def _on_ray(memory: Memory, **options: Any) -> AddReport:
    return on_ray.encode(None, memory, **{"dtype": "float32", "batch_tokens": BATCH_TOKENS, **options})


def _workers() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "_Worker" in " ".join(_words(child))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("moments", [(1,), (2, 5)])
def test_workers_that_are_killed_lose_nothing_and_double_nothing(
    tmp_path: Path, loaded: LoadedModel, moments: tuple[int, ...]
) -> None:
    corpus = _corpus(30)
    expected = _alone(tmp_path / "one", loaded, corpus)
    with closing(_memory(tmp_path / "bank", loaded)) as memory:
        memory.add(corpus, later=True)
        reports: list[AddReport] = []
        killed: list[int] = []

        def progress(report: AddReport) -> None:
            reports.append(report)
            if sum(one.documents > 0 for one in reports) in moments:  # so many tasks came back
                killed.append(random.Random(len(killed)).choice(sorted(_workers())))
                os.kill(killed[-1], signal.SIGKILL)

        report = _on_ray(memory, progress=progress, commit_seconds=0.0)
        assert len(killed) == len(moments)
        assert (report.documents, report.pending) == (len(expected), 0)
        assert [one.documents for one in reports] == sorted(one.documents for one in reports)
        assert _content(memory.bank) == expected
        with memory.bank.locked():
            pass
        assert list((tmp_path / "bank" / "encoded").iterdir()) == []
        assert _on_ray(memory).documents == 0, "nothing is left to do"


def test_workers_that_are_killed_at_twenty_random_moments_lose_nothing_and_double_nothing(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    """After each of twenty tasks, drawn by a seed, a worker is killed in the middle of whatever it does then."""
    generator = random.Random(20)
    corpus = _corpus(120)
    expected = _alone(tmp_path / "one", loaded, corpus)
    with closing(_memory(tmp_path / "bank", loaded)) as memory:
        memory.add(corpus, later=True)
        tasks = list(encoding_tasks(memory.bank, loaded, batch_tokens=BATCH_TOKENS))
        moments = set(generator.sample(range(1, len(tasks) - 5), 20))
        delays = [generator.uniform(0.0, 0.2) for _ in moments]
        killers: list[threading.Thread] = []
        killed: list[int] = []
        came_back: list[AddReport] = []

        def kill(delay: float, chosen: random.Random) -> None:
            time.sleep(delay)
            while True:
                with contextlib.suppress(IndexError, ProcessLookupError):  # all were killed, and none is there again
                    os.kill(worker := chosen.choice(sorted(_workers())), signal.SIGKILL)
                    killed.append(worker)
                    return
                time.sleep(0.05)

        def progress(report: AddReport) -> None:
            if not report.documents or (came_back and report.documents == came_back[-1].documents):
                return
            came_back.append(report)
            if len(came_back) in moments:
                killers.append(
                    threading.Thread(target=kill, args=(delays.pop(), random.Random(len(killers))), daemon=True)
                )
                killers[-1].start()

        report = _on_ray(memory, progress=progress, commit_seconds=0.1)
        for killer in killers:
            killer.join(60)
        assert len(killed) == 20
        assert (report.documents, report.pending) == (len(expected), 0)
        assert _content(memory.bank) == expected
        assert list((tmp_path / "bank" / "encoded").iterdir()) == []


def test_rows_of_a_dataset_become_documents(tmp_path: Path, checkpoint: Path, loaded: LoadedModel) -> None:
    from datetime import date

    rows = [
        {"id": "a", "text": "The otter of Rome.", "title": "Otter", "n": 1.5, "date": date(2026, 3, 1)},
        {"id": "b", "text": "The heron of Oslo.", "title": None, "n": float("nan"), "date": None},
        {"id": None, "text": "The lynx of Quito.", "title": "", "n": 2.0, "date": None},
        {"id": "d", "text": " ", "title": "", "n": 0.0, "date": None},
        {"id": "a", "text": "Another text of the same id.", "title": "", "n": 0.0, "date": None},
    ]
    options: dict[str, Any] = {"model": checkpoint, "dtype": "float32", "workers": 1}
    report = on_ray.encode(ray.data.from_items(rows), tmp_path / "bank", **options)
    assert (report.added, report.documents, report.pending) == (3, 3, 0)
    assert [one.source for one in report.skipped] == ["row 4", "a"]
    with closing(MemoryBank.open(tmp_path / "bank")) as bank:
        found = {one.document.external_id: one.document for one in bank.catalog.sources("default")}
        assert (found["a"].title, found["a"].date, found["a"].metadata) == ("Otter", "2026-03-01", {"n": 1.5})
        assert found["b"].metadata["n"] is None and _content(bank)
    again = on_ray.encode(ray.data.from_items(rows), tmp_path / "bank", **options)
    assert (again.added, again.unchanged, again.documents) == (0, 3, 0)


def test_a_run_that_is_stopped_keeps_what_is_encoded_and_another_continues(tmp_path: Path, loaded: LoadedModel) -> None:
    corpus = _corpus(24)
    expected = _alone(tmp_path / "one", loaded, corpus)
    with closing(_memory(tmp_path / "bank", loaded)) as memory:
        memory.add(corpus, later=True)
        done: list[AddReport] = []
        stopped = _on_ray(
            memory, workers=1, progress=done.append, should_stop=lambda: bool(done and done[-1].documents)
        )
        assert stopped.interrupted and 0 < stopped.documents < len(expected)
        assert stopped.pending == len(expected) - stopped.documents
        with encoder_lock(memory.bank.folder), pytest.raises(BankBusy, match="another process encodes"):
            _on_ray(memory)
        assert _on_ray(memory, workers=1).pending == 0
        assert len(_content(memory.bank)) == len(expected) and all(keys for _, keys, _ in _content(memory.bank))


def test_a_worker_with_another_version_is_a_named_error(
    tmp_path: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(_memory(tmp_path / "bank", loaded)) as memory:
        memory.add(_corpus(3), later=True)
        with monkeypatch.context() as patch:
            patch.setattr(encoded, "VERSION", "9.9.9")  # of this process; the workers have their own
            with pytest.raises(RankError, match=r"BankMismatch: this was made by memspan 9\.9\.9"):
                _on_ray(memory, workers=1)
        with monkeypatch.context() as patch:
            named = type(loaded.names)("no such model", "none")  # type: ignore[misc]
            patch.setattr(LoadedModel, "names", named)
            with pytest.raises(RankError, match="a worker cannot encode"):
                _on_ray(memory, workers=1)


def test_the_command_encodes_on_ray(tmp_path: Path, checkpoint: Path, loaded: LoadedModel) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    for document in _corpus(3):
        (notes / f"{document.external_id}.txt").write_text(document.text, encoding="utf-8")
    invoke: Callable[..., Any] = CliRunner().invoke
    model = ["--model", str(checkpoint)]
    done = invoke(app, ["add", str(tmp_path / "bank"), str(notes), "--engine", "ray", "--workers", "1", *model])
    assert done.exit_code == 0 and "3 added" in done.stdout and "not encoded" not in done.output, done.output
    with closing(MemoryBank.open(tmp_path / "bank")) as bank:
        assert all(keys for _, keys, _ in _content(bank))
    for wrong, message in (
        (["--engine", "spork"], "there is no engine 'spork'; there is ray"),
        (["--workers", "3"], "they need --engine ray"),
        (["--address", "auto"], "they need --engine ray"),
    ):
        refused = invoke(app, ["add", str(tmp_path / "bank"), str(notes), *wrong])
        assert refused.exit_code == 1 and message in refused.output
    assert invoke(app, ["add", str(tmp_path / "bank"), str(notes), "--engine", "ray", "--workers", "0"]).exit_code == 2


def test_no_ray_and_no_cluster_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: LoadedModel) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: False)

        def refuse(**_: Any) -> None:
            raise ConnectionError("Could not find any running Ray instance.")

        patch.setattr(ray, "init", refuse)
        with closing(_memory(tmp_path / "bank", loaded)) as memory, pytest.raises(RankError, match="cannot be reached"):
            _on_ray(memory, address="auto")
    with pytest.raises(ValueError, match="at least one worker"):
        on_ray.encode(None, tmp_path / "bank", workers=0)
    monkeypatch.delitem(sys.modules, "memspan.integrations.ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'memspan\[ray\]'"):
        importlib.import_module("memspan.integrations.ray")
    refused = CliRunner().invoke(app, ["add", str(tmp_path / "bank"), str(tmp_path), "--engine", "ray"])
    assert refused.exit_code == 1 and "pip install 'memspan[ray]'" in refused.output
