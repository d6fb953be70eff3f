"""The score bias: off or 0, no bit changes; else the language loss teaches the routers, and serving does the same."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from batches import random_batch
from helpers import ask, read_latents, save_backbone, tiny_loaded, tiny_model

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.generate.decode import Decoding
from memspan.generate.sampling import Sampling
from memspan.model.adapter import save_adapter
from memspan.model.convert import convert, load
from memspan.model.modeling import MSAForCausalLM, is_router
from memspan.ops.attention import attend, memory_mask, with_row_bias
from memspan.routing.local import LocalMemory
from memspan.train.forward import LossWeights, Objective, training_forward
from memspan.train.memory import BatchMemory
from memspan.types import Document, EncodedDocuments

TEXTS = ("The otter lives in Oslo.", "A ferry leaves at noon every other day.", "Tin melts early.", "Mabli barks.")


def biased_model(value: float = 2.0) -> MSAForCausalLM:
    return tiny_model(score_bias=value)


@torch.no_grad()
def test_a_bias_of_zero_changes_no_bit() -> None:
    off, zero = tiny_model(), biased_model(0.0)
    batch = random_batch()
    first, second = (training_forward(model, batch, Objective()) for model in (off, zero))
    assert torch.equal(first.sums["lm"], second.sums["lm"]) and torch.equal(first.scores_LBN, second.scores_LBN)
    assert {n for n, _ in zero.named_parameters()} - {n for n, _ in off.named_parameters()} == {
        f"backbone.model.layers.{layer}.self_attn.router_score_bias" for layer in (2, 3)
    }


def test_the_bias_is_added_to_the_logits_of_memory_rows_alone() -> None:
    """Softmax by hand, for two questions with two and three memory rows."""
    torch.manual_seed(0)
    B, T, M, H, D = 2, 4, 3, 2, 8
    query, key, value = torch.randn(B, H, T, D), torch.randn(B, H, M + T, D), torch.randn(B, H, M + T, D)
    mask_BM, sees_BT = torch.tensor([[True, True, False], [True] * 3]), torch.tensor([[False, True, True, True]] * 2)
    local = torch.ones(T, T, dtype=torch.bool).tril().expand(B, 1, T, T)
    mask = torch.cat([memory_mask(mask_BM, sees_BT), local], dim=-1)
    bias_BM = torch.randn(B, M)
    found = attend(query, key, value, with_row_bias(mask, bias_BM), None)
    for b in range(B):
        for t in range(T):
            rows = mask[b, 0, t].nonzero().flatten()
            for h in range(H):
                logits = key[b, h, rows] @ query[b, h, t] * D**-0.5
                logits = logits + torch.tensor([float(bias_BM[b, r]) if r < M else 0.0 for r in rows.tolist()])
                torch.testing.assert_close(found[b, t, h], logits.softmax(0) @ value[b, h, rows], atol=1e-5, rtol=1e-5)


def test_the_language_loss_reaches_routers_only_through_the_bias() -> None:
    batch, lm = random_batch(), LossWeights(lm=1.0, routing=0.0)
    for model, taught in ((tiny_model(), False), (biased_model(0.0), False), (biased_model(2.0), True)):
        training_forward(model, batch, Objective()).total(lm).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if is_router(name)}
        for name, grad in grads.items():
            if "score_bias" in name:
                assert grad is not None and bool(grad.any()), "a bias of 0 learns to be another"
            else:
                assert (grad is not None and bool(grad.any())) == taught, name


def test_its_gradients_are_slopes() -> None:
    """In float64: of the bias itself, and of the routers through it."""
    model = tiny_model(dtype=torch.float64, score_bias=1.5)
    batch, lm = random_batch(), LossWeights(lm=1.0, routing=0.0)
    training_forward(model, batch, Objective()).total(lm).backward()
    for name, parameter in model.named_parameters():
        if not is_router(name):
            continue
        assert parameter.grad is not None
        direction = parameter.grad / parameter.grad.norm()
        step, values = 1e-3, []
        with torch.no_grad():
            for move in (step, -2 * step):
                parameter.add_(direction, alpha=move)
                values.append(float(training_forward(model, batch, Objective()).total(lm)))
            parameter.add_(direction, alpha=step)
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float(parameter.grad.norm()), rel=0.02), name


def test_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for saving in (False, True):
        model = biased_model().train()
        if saving:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        training_forward(model, random_batch(), Objective()).total(LossWeights(1, 1)).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in found[0].items():
        assert expected is not None
        torch.testing.assert_close(found[1][name], expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_a_bank_answers_as_a_batch(tmp_path: Path) -> None:
    """The same rounded latents; in one pass, and decoding token by token after it."""
    loaded = tiny_loaded(score_bias=3.0)
    model = loaded.model
    contexts = [loaded.template.context(text) for text in ("Where is the otter?", "Ferry?")]
    with closing(MemoryBank.create(tmp_path / "bank", manifest_of(loaded))) as bank:
        add_documents(bank, loaded, [Document(f"d{index}", text) for index, text in enumerate(TEXTS)])
        latents = read_latents(bank)
        documents = EncodedDocuments(
            torch.cat([part.router_keys_LCW for part in latents.values()], dim=1).float(),
            torch.cat([part.content_LC2GD for part in latents.values()], dim=1).float(),
            tuple(part.num_chunks[0] for part in latents.values()),
        )
        with bank.snapshot() as snapshot:
            served = LocalMemory(snapshot.shards, bank.manifest, model.config.top_k_docs)
            logits = [
                ask(model, contexts, memory) for memory in (served, BatchMemory(documents, list(latents), model.config))
            ]
            for one, other in zip(*logits, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
            without = ask(tiny_loaded().model, contexts, served)
            assert not torch.allclose(without[0], logits[0][0], atol=1e-3)
            decoding = Decoding(loaded, contexts, served, Sampling(max_new_tokens=3))
            for _ in decoding.run():
                pass
            for context, row in zip(contexts, decoding.rows, strict=True):
                longer = type(context)((*context.ids, *row.ids), context.routes)
                whole = ask(model, [longer], served)[0].argmax(-1)
                start = len(context.ids) - 1
                assert whole[start : start + len(row.ids)].tolist() == list(row.ids)


def test_a_checkpoint_and_an_adapter_keep_it_and_banks_stay_valid(tmp_path: Path) -> None:
    model = biased_model(0.7)
    model.save_pretrained(tmp_path / "checkpoint")
    again = MSAForCausalLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)
    assert again.config.score_bias == 0.7
    assert float(again.get_parameter("backbone.model.layers.3.self_attn.router_score_bias")) == pytest.approx(0.7)
    assert model.encoder_fingerprint() == tiny_model().encoder_fingerprint()

    save_backbone(tmp_path / "plain", "llama")
    convert(str(tmp_path / "plain"), tmp_path / "msa", dtype=torch.float32)
    plain = load(tmp_path / "msa", dtype="float32").model
    trained = tiny_model(score_bias=0.7, top_k_docs=16, chunk_size=64)
    with torch.no_grad():
        trained.get_parameter("backbone.model.layers.2.self_attn.router_score_bias").fill_(-1.25)
    assert plain.config.backbone_fingerprint
    save_adapter(trained, tmp_path / "adapter", plain.config.backbone_fingerprint)
    served = load(tmp_path / "msa", adapter=tmp_path / "adapter", dtype="float32").model
    values = [p.item() for name, p in served.named_parameters() if "score_bias" in name]
    assert values == pytest.approx([-1.25, 0.7]) and served.config.score_bias is not None
