"""How often decoding waits for an accelerator: counted on one that is only pretended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from helpers import paged_kernel, tiny_loaded
from pretended import DEVICE, PretendedDevice

from memspan.generate.constrain import FreeIds
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model import decoding
from memspan.model.paged import PagedBuffers
from memspan.ops.transfer import to_device
from memspan.text.template import PromptTemplate

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


class _Guide:
    """Lets the model write every third token only, or the end."""

    def __init__(self, template: PromptTemplate) -> None:
        self._end = min(template.stop_ids)

    def mask(self, logits_V: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        allowed = to_device(torch.arange(len(logits_V)) % 3 == 0, logits_V.device)
        return logits_V.masked_fill(~allowed, float("-inf"))

    def finished(self, ids: Sequence[int]) -> bool:
        return self._end in ids


def _decoding(sampling: Sampling, questions: int, device: str | torch.device = "cpu", guided: int = 0) -> Decoding:
    loaded = tiny_loaded()
    torch.nn.Module.to(loaded.model, device)
    contexts = [loaded.template.context(question) for question in QUESTIONS[:questions]]
    guides = [_Guide(loaded.template) if place < guided else FreeIds(None) for place in range(questions)]
    return Decoding(loaded, contexts, None, sampling, cast(Any, guides) if guided else None)


@pytest.mark.parametrize("in_pages", [False, True])
@pytest.mark.parametrize("questions", [1, 3])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=TOKENS),
        Sampling(max_new_tokens=TOKENS, temperature=0.7),
        Sampling(max_new_tokens=TOKENS, temperature=1.5, top_p=0.8, seed=4),
    ],
    ids=["greedy", "drawn", "nucleus"],
)
@pytest.mark.parametrize("guided", [0, 1])
def test_a_step_waits_once_for_a_token_of_every_question(
    questions: int, sampling: Sampling, in_pages: bool, guided: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FreeIds, "finished", lambda self, ids: False)
    expected = _decoding(sampling, questions, guided=guided)
    for _ in expected.run():
        pass
    if in_pages:
        monkeypatch.setattr(decoding, "_buffers_for", lambda model: PagedBuffers(paged_kernel))
    monkeypatch.setattr("torch.autograd.grad_mode.inference_mode.__enter__", lambda self: None)
    monkeypatch.setattr("torch.autograd.grad_mode.inference_mode.__exit__", lambda self, *error: None)
    counts: list[int] = []
    copied: list[int] = []
    with PretendedDevice() as device:
        on_device = _decoding(sampling, questions, DEVICE, guided)
        for _ in on_device.run():
            counts.append(sum(device.waits.values()))
            copied.append(sum(device.copied))
            device.waits.clear(), device.copied.clear()
    assert [row.ids for row in on_device.rows] == [row.ids for row in expected.rows]
    assert len(counts) == max(len(row.ids) for row in expected.rows) > 3
    assert set(counts[2:]) == {1}, "the first are the prefill's, and of rows that join"
    assert max(copied[2:]) <= questions, "a number a question, never its logits"
