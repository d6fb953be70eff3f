"""The converted checkpoint serves what the released code serves (paper 3.4; README.md beside this file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TensorMemory, ask_step, tiny_tokenizer
from released_numbers import LAYERS, PREFIX, Parity, assert_close
from transformers import DynamicCache

from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model.convert import LoadedModel
from memspan.ops.scoring import chunk_scores, document_scores, fold_queries, routing_queries
from memspan.text.packing import PackedContexts, pack_contexts
from memspan.text.template import PromptTemplate
from memspan.types import Retrieved


class RecordingMemory(TensorMemory):
    """A `TensorMemory` that keeps what it was asked and what it answered, by layer."""

    def __init__(self, parity: Parity) -> None:
        super().__init__(parity.model, parity.model.encode(parity.facts["docs"]))
        self.asked: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.answered: dict[int, Retrieved] = {}

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        self.asked[layer] = (router_query_BTHD, query_mask_BT)
        self.answered[layer] = super().route(layer, router_query_BTHD, query_mask_BT)
        return self.answered[layer]


class Prefill:
    """All questions of a batch, run once in full."""

    @torch.no_grad()
    def __init__(self, parity: Parity, batch: str) -> None:
        model = parity.model
        self.packed: PackedContexts = pack_contexts(parity.contexts(batch), model.config.offset)
        self.memory = RecordingMemory(parity)
        self.cache = DynamicCache(config=model.config.text_config)
        inputs: dict[str, Any] = {"position_ids": self.packed.positions, "memory": ask_step(self.packed, self.memory)}
        self.hidden_BTF = model.backbone.base_model(
            self.packed.ids, past_key_values=self.cache, **inputs
        ).last_hidden_state
        self.logits_BTV = model(self.packed.ids, use_cache=False, **inputs).logits


@pytest.fixture(scope="module", params=["single", "batch3"])
def batch(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def prefill(served: Parity, batch: str) -> Prefill:
    return Prefill(served, batch)


def test_the_similarity_is_cosine_for_one_method_only(served: Parity) -> None:
    assert served.model.config.similarity == {"INFONCE": "cosine", "INFONCE_DECOUPLE": "dot"}[served.method]


@torch.no_grad()
def test_documents_are_encoded_alike(served: Parity) -> None:
    encoded = served.model.encode(served.facts["docs"])
    assert encoded.num_chunks == tuple(served["s1/pooled_doc_ids"].bincount()[1:].tolist())
    for row, layer in enumerate(LAYERS):
        for place, name in enumerate(("pooled_k", "pooled_v")):
            assert_close(encoded.content_LC2GD[row, :, place], served[f"s1/{name}/layer{layer}"][0].transpose(0, 1))
        expected_CGD = served[f"s1/router_k/layer{layer}"][0].transpose(0, 1)
        assert_close(encoded.router_keys_LCW[row], expected_CGD.flatten(1))


def test_questions_stand_at_the_same_positions(served: Parity, batch: str, prefill: Prefill) -> None:
    valid_BT = served[f"s2/{batch}/attention_mask"] == 1
    T = valid_BT.shape[1]
    assert torch.equal(prefill.packed.positions[:, -T:][valid_BT], served[f"s2/{batch}/position_ids"][valid_BT])
    routes_BT = valid_BT & (served[f"s2/{batch}/doc_ids"] == 0)
    assert torch.equal(prefill.packed.routes[:, -T:], routes_BT)


def test_the_template_prefix_sees_no_memory(served: Parity, prefill: Prefill) -> None:
    """Its K and V are those it has alone, in every layer and at every padding."""
    for layer in range(4):
        cached = prefill.cache.layers[layer]
        for found_BGSD, name in ((cached.keys, "template_k"), (cached.values, "template_v")):
            for row, valid_T in enumerate(prefill.packed.valid):
                start = int((~valid_T).sum())
                assert_close(found_BGSD[row, :, start : start + PREFIX], served[f"s1/{name}/layer{layer}"][0])


@pytest.mark.parametrize("layer", LAYERS)
def test_chunks_and_documents_score_alike(served: Parity, batch: str, prefill: Prefill, layer: int) -> None:
    memory, config = prefill.memory, served.model.config
    query_BTHD, mask_BT = prefill.memory.asked[layer]
    query_BTW = routing_queries(fold_queries(query_BTHD, config.num_kv_heads, config.similarity), mask_BT)
    score_BC = chunk_scores(query_BTW, memory.documents.router_keys_LCW[LAYERS.index(layer)])
    assert_close(score_BC, served[f"s2/{batch}/chunk_scores/layer{layer}"])
    score_BN = document_scores(score_BC, memory.document_C, len(memory.documents.num_chunks))
    assert_close(score_BN, served[f"s2/{batch}/doc_scores/layer{layer}"])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_same_documents_are_selected_best_first(served: Parity, batch: str, prefill: Prefill, layer: int) -> None:
    answered = prefill.memory.answered[layer]
    assert [list(ids) for ids in answered.doc_ids] == served[f"s2/{batch}/topk_doc_ids/layer{layer}"].tolist()
    assert_close(torch.tensor(answered.scores), served[f"s2/{batch}/topk_scores/layer{layer}"])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_context_holds_the_same_chunks_in_bank_order(
    served: Parity, batch: str, prefill: Prefill, layer: int
) -> None:
    answered = prefill.memory.answered[layer]
    rows_B = served[f"s2/{batch}/sel_num_chunks/layer{layer}"].tolist()
    assert answered.mask_BM.sum(1).tolist() == rows_B
    for row, chunks in enumerate(served[f"s2/{batch}/sel_chunk_idx/layer{layer}"].split(rows_B)):
        for found_BGMD, name in ((answered.keys_BGMD, "pooled_k"), (answered.values_BGMD, "pooled_v")):
            expected_GMD = served[f"s1/{name}/layer{layer}"][0][:, chunks]
            assert_close(found_BGMD[row][:, answered.mask_BM[row]], expected_GMD)


def test_every_query_token_has_the_same_hidden_state_and_logits(served: Parity, batch: str, prefill: Prefill) -> None:
    valid_BT = served[f"s2/{batch}/attention_mask"] == 1
    expected = served[f"s2/{batch}/last_hidden"][valid_BT]
    T = valid_BT.shape[1]
    assert_close(prefill.hidden_BTF[:, -T:][valid_BT], expected)
    assert_close(prefill.logits_BTV[:, -T:][valid_BT], expected @ served.lm_head_VF.T)


def test_decoding_gives_the_same_tokens_and_logits(served: Parity, batch: str) -> None:
    """Through the decoding loop that answers questions."""
    expected_BS, expected_BSV = served[f"s2/{batch}/gen/tokens"], served[f"s2/{batch}/gen/logits"]
    loaded = LoadedModel(
        served.model, PromptTemplate(served.model.config.template_spec, tiny_tokenizer()), Path("parity")
    )
    logits: list[torch.Tensor] = []
    positions: list[torch.Tensor] = []

    def record(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        logits.append(output.logits[:, -1])
        positions.append(kwargs["position_ids"][:, -1])

    memory = RecordingMemory(served)
    hook = served.model.register_forward_hook(record, with_kwargs=True)
    try:
        decoding = Decoding(loaded, served.contexts(batch), memory, Sampling(max_new_tokens=expected_BS.shape[1]))
        decoding.lookup = None  # a token a step, as it was recorded; drafts are compared with that elsewhere
        list(decoding.run())
    finally:
        hook.remove()
    assert [row.ids for row in decoding.rows] == expected_BS.tolist()
    assert memory.calls == list(LAYERS), "decoding never routes"
    assert_close(torch.stack(logits[1:], dim=1), expected_BSV)
    assert torch.equal(torch.stack(positions[1:], dim=1), served[f"s2/{batch}/gen/position_ids"])
