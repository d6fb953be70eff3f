"""Encoding ends where the last latents are recorded; training, which wants gradients, runs the same to the end."""

from __future__ import annotations

import pytest
import torch
from helpers import FAMILIES, random_ids, tiny_model

from memspan.model import modeling
from memspan.model.memory_api import EncodeStep
from memspan.model.modeling import decoder_layers


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_latents_are_those_of_a_whole_forward(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(family, msa_layers=[1, 2])
    ended: list[int] = []
    for place, layer in enumerate(decoder_layers(model.backbone, range(4)).values()):
        layer.register_forward_hook(lambda *_, place=place: ended.append(place))
    documents = random_ids(9, 21, 4)
    short = model.encode(documents)
    assert ended == [0, 1], "neither the rest of the last MSA layer nor the layer above"
    ended.clear()
    monkeypatch.setattr(modeling, "EncodeStep", lambda lengths, size, last_layer: EncodeStep(lengths, size))
    whole = model.encode(documents)
    assert ended == [0, 1, 2, 3]
    assert torch.equal(short.router_keys_LCW, whole.router_keys_LCW)
    assert torch.equal(short.content_LC2GD, whole.content_LC2GD)


def test_with_gradients_the_forward_runs_to_its_end() -> None:
    model = tiny_model(msa_layers=[1, 2])
    ended: list[int] = []
    for place, layer in enumerate(decoder_layers(model.backbone, range(4)).values()):
        layer.register_forward_hook(lambda *_, place=place: ended.append(place))
    model.encode(random_ids(9)).content_LC2GD.sum().backward()
    assert ended == [0, 1, 2, 3]


def test_a_model_that_encoded_generates_as_before() -> None:
    model = tiny_model()
    ids = torch.tensor(random_ids(12))
    with torch.no_grad():
        before = model(ids).logits
        model.encode(random_ids(9))
        assert torch.equal(model(ids).logits, before)
