"""Training is serving: the documents of a batch, and the same documents in a bank, route and answer alike."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
import torch
from batches import random_batch
from helpers import ask, read_latents, tiny_loaded, tiny_model

from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.config import MSAConfig
from memspan.model.convert import LoadedModel
from memspan.routing.local import LocalMemory
from memspan.text.packing import pack_contexts
from memspan.text.questions import Question, passage
from memspan.train.batch import Collator, TrainBatch
from memspan.train.batch_settings import BatchSettings
from memspan.train.forward import Objective, training_forward
from memspan.train.memory import BatchMemory, encode_documents
from memspan.types import Document, EncodedDocuments

TEXTS = (
    "The otter lives in Oslo, by the river.",
    "A ferry to Bergen leaves at noon every other day of the week.",
    "Tin melts early.",
    "Her sheepdog is called Mabli, and it barks at the postman in the morning.",
    "The library closes at five.",
    "Nobody remembers who built the lighthouse, but it still stands and shines.",
)
QUESTIONS = ("Where does the otter live?", "When does the ferry to Bergen leave?", "Dog?")


@pytest.fixture
def documents() -> list[Document]:
    return [passage(f"Note {index}", text) for index, text in enumerate(TEXTS)]


def batch_like(loaded: LoadedModel, documents: list[Document], names: dict[str, int]) -> TrainBatch:
    """The questions over all documents, under the ids that the bank gave them; documents in another order."""
    questions = [
        Question(str(index), text, ("yes",), (documents[-index],), tuple(documents))
        for index, text in enumerate(QUESTIONS)
    ]
    settings = BatchSettings(negatives=len(documents))
    return Collator(loaded.template, loaded.model.config, settings, document_ids=names)(questions, random.Random(0))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@torch.no_grad()
def test_a_batch_scores_selects_and_answers_as_a_bank(
    documents: list[Document], tmp_path: Path, similarity: str
) -> None:
    loaded = tiny_loaded(similarity=similarity)
    model = loaded.model
    with closing(MemoryBank.create(tmp_path / "bank", manifest_of(loaded))) as bank:
        add_documents(bank, loaded, documents)
        stored = {d.external_id: d.id for d in bank.catalog.page("default", 0, 100)}
        batch = batch_like(loaded, documents, stored)
        assert sorted(batch.document_ids) != list(batch.document_ids)

        latents = read_latents(bank)
        own = encode_documents(model, batch.documents, 100)
        of_bank = join([latents[document_id] for document_id in batch.document_ids])
        assert own.num_chunks == of_bank.num_chunks
        for found, served in (
            (own.router_keys_LCW, of_bank.router_keys_LCW),
            (own.content_LC2GD, of_bank.content_LC2GD),
        ):
            torch.testing.assert_close(found.bfloat16(), served, atol=1e-6, rtol=2**-7)

        # The same rounded latents: scores, selection and logits are the same.
        rounded = EncodedDocuments(of_bank.router_keys_LCW.float(), of_bank.content_LC2GD.float(), of_bank.num_chunks)
        contexts = [loaded.template.context(question) for question in QUESTIONS]
        packed = pack_contexts(contexts, model.config.offset)
        with bank.snapshot() as snapshot:
            served = LocalMemory(snapshot.shards, bank.manifest, model.config.top_k_docs)
            trained = BatchMemory(rounded, batch.document_ids, model.config)
            logits = [ask(model, contexts, memory) for memory in (served, trained)]
        for one, other in zip(*logits, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        for layer in model.config.layers:
            for row, candidates in enumerate(served.candidates[layer]):
                score_of = dict(zip(batch.document_ids, trained.scores[layer][row].tolist(), strict=True))
                expected = dict(zip(candidates.ids.tolist(), candidates.scores.tolist(), strict=True))
                assert score_of == pytest.approx(expected, abs=1e-5)
                chosen = trained.route(layer, *asked(model.config, layer, packed.routes)).doc_ids[row]
                assert chosen == tuple(candidates.ids[: model.config.top_k_docs].tolist())

        # And those of a training step differ by the bank's rounding alone.
        scores_LBN = training_forward(model, batch, Objective()).scores_LBN
        exact = torch.stack([trained.scores[layer] for layer in model.config.layers])
        torch.testing.assert_close(scores_LBN, exact, atol=0.02, rtol=0.02)


def asked(config: MSAConfig, layer: int, routes_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Any queries: a memory keeps what it chose at first, as a recomputed layer needs."""
    torch.manual_seed(layer)
    return torch.randn(*routes_BT.shape, config.num_heads, config.head_dim), routes_BT


def join(parts: list[EncodedDocuments]) -> EncodedDocuments:
    return EncodedDocuments(
        torch.cat([part.router_keys_LCW for part in parts], dim=1),
        torch.cat([part.content_LC2GD for part in parts], dim=1),
        tuple(count for part in parts for count in part.num_chunks),
    )


@torch.no_grad()
def test_encoding_in_sub_batches_keeps_documents_in_order() -> None:
    model, batch = tiny_model(), random_batch((5, 30, 9, 1, 17, 8))
    whole = model.encode(batch.documents)
    for tokens in (1, 20, 40, 1000):
        parts = encode_documents(model, batch.documents, tokens)
        assert parts.num_chunks == whole.num_chunks
        torch.testing.assert_close(parts.router_keys_LCW, whole.router_keys_LCW, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts.content_LC2GD, whole.content_LC2GD, atol=1e-5, rtol=1e-5)


def random_memory(top_k: int, **options: bool) -> tuple[BatchMemory, EncodedDocuments, MSAConfig]:
    """Five documents of 1, 3, 2, 1, 2 chunks, ids falling."""
    config = tiny_model(top_k_docs=top_k).config
    torch.manual_seed(3)
    C, width = 9, config.num_kv_heads * config.head_dim
    documents = EncodedDocuments(
        torch.nn.functional.normalize(torch.randn(2, C, width), dim=-1).requires_grad_(),
        torch.randn(2, C, 2, config.num_kv_heads, config.head_dim).requires_grad_(),
        (1, 3, 2, 1, 2),
    )
    return BatchMemory(documents, (50, 40, 30, 20, 10), config, **options), documents, config


def test_content_stands_in_the_order_of_ids_and_missing_rows_are_zero() -> None:
    memory, documents, config = random_memory(2)
    mask_BT = torch.tensor([[True, True, False], [False, True, True]])
    found = memory.route(3, *asked(config, 0, mask_BT))
    firsts, rows = (0, 1, 4, 6, 7), documents.num_chunks
    score_BN = memory.scores[3]
    for row, (chosen, scores) in enumerate(zip(found.doc_ids, found.scores, strict=True)):
        best = score_BN[row].topk(2)
        assert list(chosen) == [(50, 40, 30, 20, 10)[index] for index in best.indices.tolist()]
        assert list(scores) == best.values.tolist()
        expected = [
            documents.content_LC2GD[1, firsts[5 - d // 10] : firsts[5 - d // 10] + rows[5 - d // 10]]
            for d in sorted(chosen)
        ]
        content = torch.cat(expected)
        M = len(content)
        assert found.mask_BM[row].tolist() == [True] * M + [False] * (found.mask_BM.shape[1] - M)
        assert torch.equal(found.keys_BGMD[row, :, :M], content[:, 0].transpose(0, 1))
        assert torch.equal(found.values_BGMD[row, :, :M], content[:, 1].transpose(0, 1))
        assert not found.keys_BGMD[row, :, M:].any() and not found.values_BGMD[row, :, M:].any()


def test_documents_that_were_not_chosen_cannot_poison_what_was() -> None:
    memory, documents, config = random_memory(2)
    mask_BT = torch.ones(1, 3, dtype=torch.bool)
    chosen = memory.route(2, *asked(config, 0, mask_BT)).doc_ids[0]
    memory, documents, config = random_memory(2)
    with torch.no_grad():
        for index, rows in enumerate(torch.arange(9).split(documents.num_chunks)):
            if (50, 40, 30, 20, 10)[index] not in chosen:
                documents.content_LC2GD[:, rows] = torch.nan
    found = memory.route(2, *asked(config, 0, mask_BT))
    (found.keys_BGMD.sum() + found.values_BGMD.sum()).backward()
    assert found.keys_BGMD.isfinite().all() and documents.content_LC2GD.grad is not None
    assert documents.content_LC2GD.grad.isfinite().all()


@pytest.mark.parametrize("top_k", [5, 6, 100])
def test_all_documents_are_chosen_where_there_are_no_more(top_k: int) -> None:
    memory, _, config = random_memory(top_k)
    found = memory.route(2, *asked(config, 0, torch.ones(2, 3, dtype=torch.bool)))
    assert found.mask_BM.all() and found.mask_BM.shape == (2, 9)
    assert [sorted(ids) for ids in found.doc_ids] == [[10, 20, 30, 40, 50]] * 2


def test_equal_scores_go_by_id() -> None:
    memory, documents, config = random_memory(3)
    with torch.no_grad():
        documents.router_keys_LCW[:] = documents.router_keys_LCW[:, :1]
    found = memory.route(2, *asked(config, 0, torch.ones(1, 3, dtype=torch.bool)))
    assert found.doc_ids == ((10, 20, 30),)


def test_asking_again_changes_nothing() -> None:
    """A recomputed layer may score a last bit off; it gets the documents it had, and the first scores stay."""
    memory, _, config = random_memory(2)
    mask_BT = torch.ones(2, 3, dtype=torch.bool)
    first = memory.route(2, *asked(config, 0, mask_BT))
    scores = memory.scores[2]
    again = memory.route(2, *asked(config, 1, mask_BT))
    assert memory.scores[2] is scores
    assert again.doc_ids == first.doc_ids and torch.equal(again.keys_BGMD, first.keys_BGMD)


def test_scores_alone_can_be_asked_for() -> None:
    memory, _, config = random_memory(2, attend=False)
    found = memory.route(2, *asked(config, 0, torch.ones(2, 3, dtype=torch.bool)))
    assert found.mask_BM.shape == (2, 0) and found.doc_ids == ((), ()) and memory.scores[2].shape == (2, 5)
