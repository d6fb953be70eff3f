"""How often decoding waits for an accelerator: counted on one that is only pretended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import paged_kernel, tiny_loaded
from pretended import DEVICE, PretendedDevice

from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model import decoding
from memspan.model.paged import PagedBuffers

QUESTIONS = ("where is the otter?", "who went to Bergen, and when was that?", "tin")
TOKENS = 12


@pytest.fixture(autouse=True)
def _tensors_of_a_subclass(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pretended tensor is of a class of its own, which can be swapped in as a weight, and knows no inference mode."""
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    with torch.no_grad():
        yield
    torch.__future__.set_swap_module_params_on_conversion(swapped)


def _decoding(temperature: float, questions: int, device: str | torch.device = "cpu") -> Decoding:
    loaded = tiny_loaded()
    torch.nn.Module.to(loaded.model, device)
    contexts = [loaded.template.context(question) for question in QUESTIONS[:questions]]
    return Decoding(loaded, contexts, None, Sampling(max_new_tokens=TOKENS, temperature=temperature))


@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_step_waits_once_however_many_questions_decode(
    questions: int, temperature: float, in_pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _decoding(temperature, questions)
    for _ in expected.run():
        pass
    if in_pages:
        monkeypatch.setattr(decoding, "_buffers_for", lambda model: PagedBuffers(paged_kernel))
    monkeypatch.setattr("torch.autograd.grad_mode.inference_mode.__enter__", lambda self: None)
    monkeypatch.setattr("torch.autograd.grad_mode.inference_mode.__exit__", lambda self, *error: None)
    counts: list[int] = []
    with PretendedDevice() as device:
        on_device = _decoding(temperature, questions, DEVICE)
        for _ in on_device.run():
            counts.append(sum(device.waits.values()))
            device.waits.clear()
    assert [row.ids for row in on_device.rows] == [row.ids for row in expected.rows]
    assert len(counts) == max(len(row.ids) for row in expected.rows) > 3
    assert set(counts[2:]) == {1}, "the first are the prefill's, and of rows that join"
