"""What is done beside the model's forward while documents are encoded, and batches that a device has no room for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bits, random_ids, read_latents, tiny_loaded, tiny_model
from pretended import DEVICE, Pretended, PretendedDevice

from memspan.bank import encode
from memspan.bank.add import add_documents, encode_pending
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import EncodingRun, Part, encode_batch, manifest_of
from memspan.bank.reencode import reencode
from memspan.bank.stored import num_pending
from memspan.bank.verify import verify
from memspan.errors import MemspanError
from memspan.model.convert import LoadedModel
from memspan.model.runtime import encode_tokens
from memspan.types import Document, EncodedDocuments, Span

PATIENCE = 30.0
CORPUS = [Document(str(number), f"Note {number} is about the {'old ' * (number % 5)}otter.") for number in range(12)]


@pytest.fixture
def loaded() -> LoadedModel:
    return tiny_loaded(max_document_tokens=64)


def _watched(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, before: Callable[[int], None]
) -> list[Sequence[Sequence[int]]]:
    """The batches that the model encodes from here on; `before` hears of each, by its number."""
    real, seen = loaded.model.encode, list[Sequence[Sequence[int]]]()

    def encoding(documents: Sequence[Sequence[int]]) -> EncodedDocuments:
        before(len(seen))
        seen.append(documents)
        return real(documents)

    monkeypatch.setattr(loaded.model, "encode", encoding)
    return seen


def test_a_batch_is_copied_while_the_next_one_runs(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, divide = threading.Event(), encode._divided
    _watched(monkeypatch, loaded, lambda number: second.set() if number == 1 else None)

    def copied(*given: Any) -> list[EncodedDocuments]:
        assert second.wait(PATIENCE), "the second batch does not wait for the copies of the first"
        return divide(*given)

    monkeypatch.setattr(encode, "_divided", copied)
    assert add_documents(bank, loaded, CORPUS[:4], batch_tokens=1).documents == 4


def test_no_more_than_two_batches_are_on_the_device(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied, divide = list[int](), encode._divided

    def copying(*given: Any) -> list[EncodedDocuments]:
        copied.append(1)
        return divide(*given)

    def begun(number: int) -> None:
        assert len(copied) >= number - 1

    monkeypatch.setattr(encode, "_divided", copying)
    assert len(_watched(monkeypatch, loaded, begun)) == 0
    assert add_documents(bank, loaded, CORPUS, batch_tokens=1).documents == 12


def test_the_next_window_is_tokenised_while_the_model_runs(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "WINDOW_BATCHES", 1)
    tokenised, real = [threading.Event() for _ in CORPUS], Part.of
    counter = iter(tokenised)

    def of(*given: Any) -> Part:
        next(counter).set()
        return real(*given)

    monkeypatch.setattr(Part, "of", of)
    _watched(monkeypatch, loaded, lambda number: _is_set(tokenised[min(number + 1, 11)]))
    assert add_documents(bank, loaded, CORPUS, batch_tokens=1).documents == 12


def _is_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE), "the document after this one is read meanwhile"


@pytest.mark.parametrize("where", ["copying", "reading"])
def test_what_fails_beside_ends_the_run_and_nothing_is_lost(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(encode, "WINDOW_BATCHES", 1)
    calls = iter(range(100))

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if next(calls) == 3:
                raise RuntimeError("lost")
            return real(*given)

        return call

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="lost"):
        if where == "copying":
            patch.setattr(encode, "_divided", failing(encode._divided))
        else:
            patch.setattr(Part, "of", failing(Part.of))
        add_documents(bank, loaded, CORPUS, batch_tokens=1)
    assert verify(bank) == [] and bank.catalog.counts().sources == 12 and num_pending(bank.catalog) > 0
    assert encode_pending(bank, loaded).pending == 0 and verify(bank) == []


def test_a_bank_may_be_closed_as_soon_as_a_run_was_stopped(bank: MemoryBank, loaded: LoadedModel) -> None:
    report = add_documents(bank, loaded, CORPUS, batch_tokens=1, should_stop=lambda: num_pending(bank.catalog) > 0)
    bank.close()
    assert report.interrupted


# --- batches that do not fit ------------------------------------------------------------------------------------------


def _small_device(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, room: int) -> list[int]:
    """Let the model have room for so many padded tokens; what it encoded, in padded tokens."""
    real, done = loaded.model.encode, list[int]()

    def encoding(documents: Sequence[Sequence[int]]) -> EncodedDocuments:
        padded = len(documents) * max(map(len, documents))
        if padded > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        done.append(padded)
        return real(documents)

    monkeypatch.setattr(loaded.model, "encode", encoding)
    return done


def _latents(bank: MemoryBank) -> list[tuple[bytes, bytes]]:
    return [bits(latents) for _, latents in sorted(read_latents(bank).items())]


@pytest.mark.parametrize("room", [60, 80, 100])
def test_a_batch_that_does_not_fit_is_encoded_in_parts_and_later_ones_are_smaller(
    bank: MemoryBank,
    loaded: LoadedModel,
    room: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(MemoryBank.create(tmp_path / "other", manifest_of(loaded))) as other:
        add_documents(other, loaded, CORPUS)
        expected = _latents(other)
    done = _small_device(monkeypatch, loaded, room)
    report = add_documents(bank, loaded, CORPUS, batch_tokens=400)
    assert report.documents == 12 and verify(bank) == [] and max(done) <= room
    for one, other in zip(_latents(bank), expected, strict=True):
        near = [torch.frombuffer(bytearray(x), dtype=torch.bfloat16) for pair in (one, other) for x in pair]
        torch.testing.assert_close(near[0], near[2]), torch.testing.assert_close(near[1], near[3])
    assert "cpu has no room for a batch" in caplog.text and "tokens are encoded at a time" in caplog.text
    caplog.clear()
    add_documents(bank, loaded, [Document("new", "A new note.")])
    assert not caplog.text


def test_a_document_that_does_not_fit_is_refused_with_its_tokens_and_the_rest_is_kept(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    _small_device(monkeypatch, loaded, 30)
    long = Document("long", "The bittern, the heron, the newt, the lynx and the otter live in Rome, Oslo and Bern.")
    with pytest.raises(MemspanError, match=r"cpu has no room for a document of \d\d tokens; use --device cpu"):
        add_documents(bank, loaded, [Document("short", "a"), long], batch_tokens=1)
    assert verify(bank) == [] and bank.catalog.counts().sources == 2


@pytest.mark.parametrize("count", [0, -1, -2048])
def test_batches_of_no_tokens_are_refused(bank: MemoryBank, loaded: LoadedModel, count: int) -> None:
    for do in (
        lambda: add_documents(bank, loaded, CORPUS, batch_tokens=count),
        lambda: EncodingRun(loaded, batch_tokens=count),
    ):
        with pytest.raises(MemspanError, match="batch_tokens must be at least 1"):
            do()
    assert bank.catalog.counts().sources == 0


def test_a_gpu_encodes_more_at_a_time() -> None:
    assert encode_tokens(torch.device("cpu")) == 2048
    assert encode_tokens(torch.device("cuda:1")) == encode_tokens(torch.device("xpu")) > 2048


@pytest.mark.parametrize("batch_tokens", [1, 40, 10**6, None])
def test_latents_do_not_depend_on_the_batches_but_for_rounding(
    bank: MemoryBank, loaded: LoadedModel, batch_tokens: int | None
) -> None:
    add_documents(bank, loaded, CORPUS, batch_tokens=batch_tokens)
    for document_id, found in read_latents(bank).items():
        stored = bank.catalog.documents("default", [document_id])
        (one,) = [Part.of(document.id, document.span, document.encoded_text, loaded.template) for document in stored]
        encode_batch(loaded, [one])
        assert one.latents is not None
        torch.testing.assert_close(found.content_LC2GD, one.latents.content_LC2GD, rtol=2e-2, atol=2e-2)


def test_encoding_a_bank_anew_waits_for_the_last_copies(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_documents(bank, loaded, CORPUS)
    other = tiny_loaded(seed=1, max_document_tokens=64)
    reencode(bank, other, batch_tokens=1)
    assert verify(bank) == [] and bank.manifest == manifest_of(other)


# --- a device ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _tensors_of_a_subclass(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """See tests/generate/test_waits_of_decoding.py."""
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    monkeypatch.setattr("torch.autograd.grad_mode.inference_mode.__enter__", lambda self: None)
    monkeypatch.setattr("torch.autograd.grad_mode.inference_mode.__exit__", lambda self, *error: None)
    with torch.no_grad():
        yield
    torch.__future__.set_swap_module_params_on_conversion(swapped)


@pytest.mark.usefixtures("_tensors_of_a_subclass")
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_batch_is_encoded_without_waiting_for_the_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_ids(9, 3, 30, 64)
    expected = tiny_model(family).encode(documents)
    begun: list[torch.Tensor] = []

    def start(tensor: torch.Tensor) -> torch.Tensor:
        assert isinstance(tensor, Pretended)
        begun.append(tensor.held)
        return tensor.held

    monkeypatch.setattr(encode, "start_to_host", start)
    loaded = tiny_loaded(family)
    parts = [Part.of(number, Span(0, 1), "a", loaded.template) for number in range(4)]
    for part, ids in zip(parts, documents, strict=True):
        part.ids = ids
    with PretendedDevice() as device:
        torch.nn.Module.to(loaded.model, DEVICE)
        encode_batch(loaded, parts)
        device.waits.clear()
        encode_batch(loaded, parts)
        assert not device.waits, "nothing is waited for but the copies, in their thread"
    assert len(begun) == 4
    keys = torch.cat([part.encoded().router_keys_LCW for part in parts if part.encoded], 1)
    torch.testing.assert_close(keys.float(), expected.router_keys_LCW.float(), rtol=2e-2, atol=2e-2)
