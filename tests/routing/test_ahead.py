"""Content that is copied to a device before a layer asks for it: in order, for as long as needed, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import add_latents, random_latents, tiny_manifest
from pretended import DEVICE, Pretended, PretendedDevice

from memspan.bank.bank import MemoryBank
from memspan.errors import BankError
from memspan.ops import transfer
from memspan.routing import ahead, local
from memspan.routing.ahead import ContentAhead
from memspan.routing.local import LocalMemory, ReplayedMemory
from memspan.routing.source import LocalSource
from memspan.types import Document, LayerRouting, Retrieved

MANIFEST, CPU = tiny_manifest(), torch.device("cpu")
LAYERS = MANIFEST.msa_layers


def _read(layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
    return [torch.full((1 + document_id % 3, 2), 10.0 * layer + document_id) for document_id in ids]


class _AtOnce:
    """Threads that do their work when it is given to them, or never."""

    def __init__(self, does: bool = True) -> None:
        self._does = does

    def submit(self, do: Callable[..., Any], *given: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._does:
            future.set_running_or_notify_cancel()
            try:
                future.set_result(do(*given))
            except Exception as error:
                future.set_exception(error)
        return future


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_threads", _AtOnce)


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_what_was_begun_for_a_layer_is_given_once() -> None:
    content = ContentAhead(_read, CPU)
    content.start(3, [7, 2, 9])
    taken: dict[int, torch.Tensor] = {}
    while not taken:  # what has not begun yet is not waited for
        content.start(3, [7, 2, 9])
        taken = content.take(3)
    assert list(taken) == [7, 2, 9]
    assert all(torch.equal(rows, *_read(3, [document_id])) for document_id, rows in taken.items())
    assert content.take(3) == {}


@pytest.mark.usefixtures("at_once")
def test_what_was_begun_for_another_layer_is_given_up() -> None:
    content = ContentAhead(_read, CPU)
    content.start(3, [7])
    assert content.take(5) == {} and content.take(3) == {}
    content.start(3, [])
    assert content.take(3) == {}
    content.start(3, [1])
    content.start(5, [2])
    assert list(content.take(5)) == [2]


def test_what_no_thread_has_come_to_yet_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_threads", lambda: _AtOnce(does=False))
    content = ContentAhead(_read, CPU)
    content.start(3, [7])
    assert content.take(3) == {}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("error", [BankError("damaged"), OSError("gone"), torch.OutOfMemoryError("full")])
def test_what_cannot_be_read_ahead_is_left_to_who_needs_it(error: Exception) -> None:
    def fail(layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        raise error

    content = ContentAhead(fail, CPU)
    content.start(3, [7])
    assert content.take(3) == {}


def test_reading_does_not_wait_for_the_layer_and_the_layer_does_for_reading() -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slowly(layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        begun.set()
        assert may_end.wait(30)
        return _read(layer, ids)

    content = ContentAhead(slowly, CPU)
    content.start(3, [4])  # comes back
    assert begun.wait(30)
    threading.Timer(0.01, may_end.set).start()
    assert list(content.take(3)) == [4]


# --- streams ----------------------------------------------------------------------------------------------------------


class _Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log = name, log

    def __enter__(self) -> _Stream:
        self._log.append(f"on {self._name}")
        return self

    def __exit__(self, *error: object) -> None:
        self._log.append(f"off {self._name}")

    def record_event(self) -> str:
        self._log.append(f"{self._name} records")
        return f"event of {self._name}"

    def wait_event(self, event: str) -> None:
        self._log.append(f"{self._name} waits for {event}")

    def __str__(self) -> str:
        return self._name


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is done with two streams, in order."""
    done: list[str] = []
    copies, computing = _Stream("copies", done), _Stream("computing", done)
    monkeypatch.setattr(transfer, "copy_stream", lambda device: copies)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: done.append(f"kept for {stream}"))
    to_device = transfer.to_device
    monkeypatch.setattr(transfer, "to_device", lambda *given: (done.append("copy"), to_device(*given))[1])
    yield done


COPIED = ["on copies", "copy", "copies records", "off copies"]
WAITED = ["computing waits for event of copies", "kept for computing"]


def test_a_copy_begins_at_once_on_its_stream_and_is_waited_for_where_it_is_taken(log: list[str]) -> None:
    copied = transfer.start_to_device(torch.arange(3), CPU)
    assert log == COPIED, "nothing waits for it yet"
    log.append("the layer is computed")
    assert copied().tolist() == [0, 1, 2]
    assert log == [*COPIED, "the layer is computed", *WAITED]


@pytest.mark.usefixtures("at_once")
def test_the_next_layers_content_is_copied_before_that_layer_is_routed(log: list[str]) -> None:
    content = ContentAhead(_read, CPU)
    content.start(3, [7, 2])
    log.append("the layer before is computed")
    assert list(content.take(3)) == [7, 2]
    assert log == [*COPIED, "the layer before is computed", *WAITED]


def test_a_cpu_has_no_streams() -> None:
    assert transfer.copy_stream(CPU) is None and transfer.copy_stream(torch.device("mps")) is None
    tensor = torch.arange(3)
    assert transfer.start_to_device(tensor, CPU)() is tensor


# --- in routing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    torch.manual_seed(0)
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    with bank.writer() as writer:
        for number in range(40):
            add_latents(writer, Document(str(number), f"text {number}"), random_latents(MANIFEST, 1 + number % 3))
        writer.commit()
    return bank


def _watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Of which layer what content is read, from here on."""
    read, real = list[tuple[int, list[int]]](), LocalSource.content

    def content(self: LocalSource, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        read.append((layer, list(ids)))
        return real(self, layer, ids)

    monkeypatch.setattr(LocalSource, "content", content)
    return read


def _check_content(found: Retrieved, wanted: Retrieved) -> None:
    assert (found.doc_ids, found.scores) == (wanted.doc_ids, wanted.scores)
    for name in ("keys_BGMD", "values_BGMD", "mask_BM"):
        one = getattr(found, name)
        assert isinstance(one, Pretended) and torch.equal(one.held, getattr(wanted, name)), name


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("top_k", [1, 3, 40])
def test_a_device_is_given_what_the_cpu_is_and_waits_no_more_for_it(
    bank: MemoryBank, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    query_BTHD, mask_BT = torch.randn(2, 4, 6, MANIFEST.head_dim), torch.ones(2, 4, dtype=torch.bool)
    with bank.snapshot() as snapshot:
        here = LocalMemory(snapshot.shards, MANIFEST, top_k, tiers=snapshot.tiers)
        expected = [here.route(layer, query_BTHD, mask_BT) for layer in LAYERS]
        read = _watched(monkeypatch)
        with PretendedDevice() as device:
            memory = LocalMemory(snapshot.shards, MANIFEST, top_k, device=DEVICE, tiers=snapshot.tiers)
            on_device = query_BTHD.to(DEVICE), mask_BT.to(DEVICE)
            for layer in LAYERS:
                memory.route(layer, *on_device)
            device.waits.clear(), read.clear()
            found = [memory.route(layer, *on_device) for layer in LAYERS]
            assert dict(device.waits) == {"copy": len(LAYERS)}
    for one, wanted in zip(found, expected, strict=True):
        _check_content(one, wanted)
    of_layer = [sorted({i for ids in one.doc_ids for i in ids}) for one in expected]
    wanted_reads = [(LAYERS[0], of_layer[0])]
    for place, layer in enumerate(LAYERS[1:], start=1):
        wanted_reads.append((layer, of_layer[place - 1]))  # ahead
        wanted_reads.append((layer, [i for i in of_layer[place] if i not in of_layer[place - 1]]))
    assert read == wanted_reads


@pytest.mark.usefixtures("at_once")
def test_content_selected_before_is_all_there_when_a_layer_asks_again(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    routed = [LayerRouting(layer, (5, 2, 5 + place), (0.5, 0.25, 0.1)) for place, layer in enumerate(LAYERS, start=1)]
    with bank.snapshot() as snapshot:
        here = ReplayedMemory(LocalMemory(snapshot.shards, MANIFEST, 3, tiers=snapshot.tiers), [routed])
        nothing = torch.empty(0)
        expected = [here.route(layer, nothing, nothing) for layer in LAYERS]
        read = _watched(monkeypatch)
        with PretendedDevice():
            memory = LocalMemory(snapshot.shards, MANIFEST, 3, device=DEVICE, tiers=snapshot.tiers)
            there = ReplayedMemory(memory, [routed])
            found = [there.route(layer, nothing, nothing) for layer in LAYERS]
    for one, wanted in zip(found, expected, strict=True):
        _check_content(one, wanted)
    assert [ids for _, ids in read].count([]) == len(LAYERS) - 1, "but for the first layer nothing is missing"


@pytest.mark.usefixtures("at_once")
def test_damaged_content_is_an_error_only_where_it_is_selected(
    bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalSource.content

    def content(self: LocalSource, layer: int, ids: Sequence[int]) -> list[torch.Tensor]:
        if layer == LAYERS[1] and 7 in ids:
            raise BankError("the content of document 7 changed")
        return real(self, layer, ids)

    monkeypatch.setattr(LocalSource, "content", content)
    monkeypatch.setattr(local, "accelerator", lambda device: CPU)
    with bank.snapshot() as snapshot:
        for second, is_error in ((8, False), (7, True)):
            routed = [LayerRouting(LAYERS[0], (7,), (0.5,)), LayerRouting(LAYERS[1], (second,), (0.5,))]
            memory = LocalMemory(snapshot.shards, MANIFEST, 1, tiers=snapshot.tiers)
            replayed, nothing = ReplayedMemory(memory, [routed]), torch.empty(0)
            memory.read_ahead(LAYERS[1], [[7]])
            assert replayed.route(LAYERS[0], nothing, nothing).doc_ids == ((7,),)
            memory.read_ahead(LAYERS[1], [[7]])
            if is_error:
                with pytest.raises(BankError, match="document 7"):
                    replayed.route(LAYERS[1], nothing, nothing)
            else:
                assert replayed.route(LAYERS[1], nothing, nothing).doc_ids == ((8,),)
