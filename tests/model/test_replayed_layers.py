"""Decoding with replayed layers against the layers' own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import FAMILIES, WINDOW, TensorMemory, random_context, random_ids, tiny_loaded

from memspan.generate.batching import DecodingBatch
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model import replay
from memspan.model.convert import LoadedModel
from memspan.model.decoding import prepare
from memspan.model.lora import LoraSpec, add_lora, merge_lora
from memspan.model.modeling import decoder_layers
from memspan.model.replay import ReplayedLayer, replay_layers
from memspan.text.template import Context

SAMPLING = Sampling(max_new_tokens=14)


def _layers(loaded: LoadedModel) -> list[torch.nn.Module]:
    return list(
        decoder_layers(loaded.model.backbone, range(loaded.model.config.text_config.num_hidden_layers)).values()
    )


def _written(loaded: LoadedModel, contexts: Sequence[Context], memory: TensorMemory) -> list[list[int]]:
    decoding = Decoding(loaded, contexts, memory, SAMPLING)
    for _ in decoding.run():
        pass
    return [row.ids for row in decoding.rows]


def _memory(loaded: LoadedModel) -> TensorMemory:
    with torch.no_grad():
        return TensorMemory(loaded.model, loaded.model.encode(random_ids(9, 3, 8, 14, 1)))


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_layers_write_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded(family)
    memory = _memory(loaded)
    one = [random_context(3, 2 * WINDOW, 4)]
    some = [random_context(3, 37, 4), random_context(3, 1, 4), random_context(3, 5, 4)]
    before = [_written(loaded, contexts, memory) for contexts in (one, some)]
    documents = random_ids(9, 3)
    latents = loaded.model.encode(documents).content_LC2GD
    traced: list[object] = []
    program = replay._Program
    monkeypatch.setattr(replay, "_Program", lambda *given: traced.append(given) or program(*given))
    loaded.model.decode_weights = "exact"
    prepare(loaded.model)
    assert all(isinstance(layer, ReplayedLayer) for layer in _layers(loaded))
    if family == "llama":
        assert len(traced) == 2, "layers that compute alike share a program: those with a router, and those without"
    forwards: list[object] = []
    for layer in loaded.model.backbone.modules():
        if hasattr(layer, "q_proj") or hasattr(layer, "qkv_proj"):
            layer.register_forward_hook(lambda *_: forwards.append(0))
    assert [_written(loaded, contexts, memory) for contexts in (one, some)] == before
    assert len(forwards) == 2 * len(_layers(loaded)), "but for the prefills no layer ran its own forward"
    assert torch.equal(loaded.model.encode(documents).content_LC2GD, latents)


def test_a_batch_that_is_joined_and_left_replays_any_sizes() -> None:
    plain, loaded = tiny_loaded(), tiny_loaded()
    loaded.model.decode_weights = "exact"
    prepare(loaded.model)
    contexts = [random_context(3, length, 4) for length in (9, 30, 2)]
    memory = _memory(plain)
    alone = [_written(plain, [context], memory)[0] for context in contexts]
    batch = DecodingBatch(loaded, 3)
    decodings = [Decoding(loaded, [context], memory, SAMPLING) for context in contexts]
    runs = [batch.run(decoding) for decoding in decodings]
    for joined in (1, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3):
        for run in runs[:joined]:
            next(run, None)
        batch.step()
    assert [decoding.rows[0].ids for decoding in decodings] == alone


def test_layers_with_weights_of_two_sides_replay_those_of_questions() -> None:
    loaded = tiny_loaded()
    add_lora(loaded.model, LoraSpec(targets=r"\.(gate|q)_proj$", rank=2, sides=("query",)))
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter)
    merge_lora(loaded.model)
    memory, contexts = _memory(loaded), [random_context(3, 9, 4)]
    before = _written(loaded, contexts, memory)
    assert replay_layers(loaded.model, _layers(loaded)) == 4
    assert _written(loaded, contexts, memory) == before


def test_a_layer_that_cannot_be_traced_or_compared_runs_as_it_is() -> None:
    loaded = tiny_loaded()
    layers: list[Any] = [*_layers(loaded)]
    own = layers[1].mlp.forward

    def depends(x_RTF: torch.Tensor) -> torch.Tensor:
        return own(x_RTF) if float(x_RTF.sum()) < 1e9 else x_RTF  # on what no trace knows

    layers[1].mlp.forward = depends
    memory, contexts = _memory(loaded), [random_context(3, 9, 4)]
    before = _written(loaded, contexts, memory)
    layers[2].mlp.forward = lambda x_RTF: own(x_RTF) * x_RTF.shape[1]  # another way in which a layer is its own
    after = _written(loaded, contexts, memory)
    assert replay_layers(loaded.model, layers) >= 2
    assert not isinstance(layers[1], ReplayedLayer)
    assert _written(loaded, contexts, memory) == after
    assert before and after
