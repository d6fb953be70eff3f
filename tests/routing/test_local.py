from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    TensorMemory,
    add_latents,
    ask,
    ask_in_steps,
    random_context,
    random_latents,
    read_latents,
    tiny_loaded,
    tiny_manifest,
)

from memspan.bank import shard
from memspan.bank.add import add_documents
from memspan.bank.bank import MAX_SEGMENT_BYTES, MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.manifest import Manifest
from memspan.bank.scope import Scope
from memspan.bank.shard import Shard
from memspan.bank.tiers import Tiers
from memspan.generate.memory import Memory
from memspan.model.convert import LoadedModel
from memspan.ops import integers, naive
from memspan.ops.scoring import fold_queries
from memspan.routing.local import LocalMemory
from memspan.routing.ranking import rank_documents
from memspan.text.packing import length_batches
from memspan.types import Document, EncodedDocuments, Retrieved

H = 6
LAYERS = tiny_manifest().msa_layers
MANIFESTS = {similarity: tiny_manifest(similarity=similarity) for similarity in ("cosine", "dot")}
MANIFEST = MANIFESTS["cosine"]


def _ragged(count: int, manifest: Manifest = MANIFEST, seed: int = 0) -> list[EncodedDocuments]:
    sizes = random.Random(seed).choices([1, 1, 2, 3, 5, 9], k=count)
    return [random_latents(manifest, rows) for rows in sizes]


def _bank(
    folder: Path,
    documents: list[EncodedDocuments],
    manifest: Manifest = MANIFEST,
    max_segment_bytes: int = MAX_SEGMENT_BYTES,
) -> MemoryBank:
    """A bank of the given documents, under ids from 1."""
    bank = MemoryBank.create(folder, manifest)
    _add(bank, dict(enumerate(documents)), max_segment_bytes)
    return bank


def _add(
    bank: MemoryBank, documents: Mapping[int, EncodedDocuments], max_segment_bytes: int = MAX_SEGMENT_BYTES
) -> None:
    with bank.writer(max_segment_bytes=max_segment_bytes) as writer:
        for name, latents in documents.items():
            add_latents(writer, Document(str(name), f"text {name}"), latents)
        writer.commit()


@pytest.fixture(autouse=True, params=["cpu", "device", "both"])
def _keys_on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where keys are scored: on the CPU; as on an accelerator (here it is the CPU, too); half of the shards on each."""
    if request.param == "cpu":
        return
    monkeypatch.setattr("memspan.routing.local.accelerator", lambda device: torch.device("cpu"))
    if request.param == "both":
        move = Tiers.move
        monkeypatch.setattr(Tiers, "move", lambda self, readers, *rest: move(self, readers[: len(readers) // 2], *rest))


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments are not joined: every one is a shard."""
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)


def _shards(bank: MemoryBank) -> list[Shard]:
    with bank.snapshot() as snapshot:
        return list(snapshot.shards)


def _only(shards: Sequence[Shard], allowed: Collection[int]) -> torch.Tensor:
    """Which documents of some shards live and are allowed."""
    return torch.tensor(
        [
            live and number in allowed
            for shard in shards
            for number, live in zip(shard.ids_N.tolist(), shard.live_N.tolist(), strict=True)
        ],
        dtype=torch.bool,
    )


def _questions(*lengths: int, manifest: Manifest = MANIFEST) -> tuple[torch.Tensor, torch.Tensor]:
    """Router queries of questions in which some tokens (NaN here: they must not matter) do not route, and which do."""
    B, T = len(lengths), max(lengths) + 2
    query_BTHD = torch.randn(B, T, H, manifest.head_dim)
    mask_BT = torch.zeros(B, T, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask_BT[row, torch.randperm(T)[:length]] = True
    query_BTHD[~mask_BT] = float("nan")
    return query_BTHD, mask_BT


def _naive_scores(
    latents: Mapping[int, EncodedDocuments], layer: int, query_THD: torch.Tensor, manifest: Manifest
) -> dict[int, float]:
    """Eq. 2 over the stored keys, in float64. The bank stores keys at unit length, so the cosine is scaled but once."""
    query_THD = query_THD.double()
    D = manifest.head_dim
    if manifest.similarity == "cosine":
        query_THD = query_THD / query_THD.norm(dim=-1, keepdim=True) * D**0.5
    return {
        document_id: float(
            naive.chunk_scores(
                query_THD, found.router_keys_LCW[LAYERS.index(layer)].double().unflatten(-1, (-1, D)), "dot"
            ).max()
        )
        for document_id, found in latents.items()
    }


def _check(
    retrieved: Retrieved,
    latents: Mapping[int, EncodedDocuments],
    layer: int,
    questions: tuple[torch.Tensor, torch.Tensor],
    k: int,
    manifest: Manifest = MANIFEST,
) -> None:
    """Documents, order, scores, content, mask and padding are those of the naive selection."""
    query_BTHD, mask_BT = questions
    G, D = manifest.num_kv_heads, manifest.head_dim
    wanted_rows = []
    for row, (query_THD, mask_T) in enumerate(zip(query_BTHD, mask_BT, strict=True)):
        scores = _naive_scores(latents, layer, query_THD[mask_T], manifest)
        chosen = naive.select_documents(torch.tensor(list(scores.values())), list(scores), k)
        assert list(retrieved.doc_ids[row]) == chosen
        assert retrieved.scores[row] == pytest.approx([scores[document_id] for document_id in chosen], abs=1e-5)
        content = [latents[document_id].content_LC2GD[LAYERS.index(layer)] for document_id in sorted(chosen)]
        wanted_rows.append(torch.cat([torch.empty(0, 2, G, D, dtype=torch.bfloat16), *content]))
    M = max(map(len, wanted_rows))
    for name, part in (("keys_BGMD", 0), ("values_BGMD", 1)):
        found_BGMD = getattr(retrieved, name)
        assert found_BGMD.shape == (len(query_BTHD), G, M, D)
        for found_GMD, wanted in zip(found_BGMD, wanted_rows, strict=True):
            assert torch.equal(found_GMD[:, : len(wanted)], wanted[:, part].transpose(0, 1))
            assert not found_GMD[:, len(wanted) :].any(), "padding rows are zero"
    assert retrieved.mask_BM.tolist() == [[m < len(wanted) for m in range(M)] for wanted in wanted_rows]


def _assert_same(one: Retrieved, other: Retrieved) -> None:
    assert (one.doc_ids, one.scores) == (other.doc_ids, other.scores)
    for name in ("keys_BGMD", "values_BGMD", "mask_BM"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


# --- the naive selection --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", MANIFESTS)
@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_routing_over_a_bank_is_the_papers_equation_over_the_stored_keys(
    tmp_path: Path, similarity: str, k: int
) -> None:
    # 60 documents: with k = 1 to 3 the coarse pass drops some, with 7 none.
    manifest = MANIFESTS[similarity]
    documents = _ragged(60, manifest)
    bank = _bank(tmp_path / "bank", documents, manifest)
    memory = LocalMemory(_shards(bank), manifest, k)
    latents = dict(enumerate(documents, start=1))
    for layer in LAYERS:
        questions = _questions(5, 1, 3, manifest=manifest)
        _check(memory.route(layer, *questions), latents, layer, questions, k, manifest)


def test_scores_are_the_literal_mean_of_cosines_but_for_the_rounding_of_stored_keys(tmp_path: Path) -> None:
    documents = _ragged(12)
    bank = _bank(tmp_path / "bank", documents)
    query_BTHD, mask_BT = _questions(4)
    retrieved = LocalMemory(_shards(bank), MANIFEST, 12).route(LAYERS[1], query_BTHD, mask_BT)
    for document_id, score in zip(retrieved.doc_ids[0], retrieved.scores[0], strict=True):
        key_CGD = documents[document_id - 1].router_keys_LCW[1].float().unflatten(-1, (-1, MANIFEST.head_dim))
        literal = naive.chunk_scores(query_BTHD[0, mask_BT[0]], key_CGD, "cosine").max()
        assert score == pytest.approx(float(literal), abs=3e-3)


@pytest.mark.parametrize("k", [12, 13, 1000])
def test_a_k_of_all_documents_or_more_attends_to_all(tmp_path: Path, k: int) -> None:
    documents = _ragged(12)
    bank = _bank(tmp_path / "bank", documents)
    questions = _questions(4, 2)
    retrieved = LocalMemory(_shards(bank), MANIFEST, k).route(LAYERS[0], *questions)
    _check(retrieved, dict(enumerate(documents, start=1)), LAYERS[0], questions, k)
    everything = torch.cat([latents.content_LC2GD[0] for latents in documents])
    for row in range(2):
        assert sorted(retrieved.doc_ids[row]) == list(range(1, 13))
        assert torch.equal(retrieved.keys_BGMD[row], everything[:, 0].transpose(0, 1)), "in the order of ids"
    assert retrieved.mask_BM.all()


def test_rows_of_the_shorter_selection_are_padded_with_zeros(tmp_path: Path) -> None:
    bank = _bank(tmp_path / "bank", [random_latents(MANIFEST, rows) for rows in (9, 1)])
    keys = read_latents(bank)
    # Each question is one document's own key in every head of its group, so that it wins.
    query_B1HD = torch.stack(
        [
            keys[document_id].router_keys_LCW[0, 0].float().view(2, 8).repeat_interleave(H // 2, 0)
            for document_id in (1, 2)
        ]
    ).unsqueeze(1)
    retrieved = LocalMemory(_shards(bank), MANIFEST, 1).route(LAYERS[0], query_B1HD, torch.ones(2, 1).bool())
    assert retrieved.doc_ids == ((1,), (2,))
    assert retrieved.mask_BM.sum(1).tolist() == [9, 1]
    assert retrieved.keys_BGMD[0].all() and not retrieved.keys_BGMD[1, :, 1:].any()
    assert retrieved.values_BGMD[0].all() and not retrieved.values_BGMD[1, :, 1:].any()


@pytest.mark.usefixtures("apart")
def test_equal_scores_are_ordered_by_id_over_segments(tmp_path: Path) -> None:
    twin, better = random_latents(MANIFEST, 2), random_latents(MANIFEST, 2)
    documents = [twin, better, twin, better, twin, twin]
    bank = _bank(tmp_path / "bank", documents, max_segment_bytes=4 * MANIFEST.row_bytes)
    shards = _shards(bank)
    assert len(shards) == 3
    query_BTHD, mask_BT = _questions(2)
    for order in (shards, shards[::-1], [shards[1], shards[2], shards[0]]):
        for k in range(1, 7):
            (ids,) = LocalMemory(order, MANIFEST, k).route(LAYERS[0], query_BTHD, mask_BT).doc_ids
            scores = _naive_scores(dict(enumerate(documents, start=1)), LAYERS[0], query_BTHD[0, mask_BT[0]], MANIFEST)
            expected = [2, 4, 1, 3, 5, 6] if scores[2] > scores[1] else [1, 3, 5, 6, 2, 4]
            assert list(ids) == expected[:k]


# --- what must not matter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", MANIFESTS)
def test_a_question_gets_bit_for_bit_the_same_alone_and_in_a_batch(tmp_path: Path, similarity: str) -> None:
    manifest = MANIFESTS[similarity]
    bank = _bank(tmp_path / "bank", _ragged(80, manifest), manifest, 30 * manifest.row_bytes)
    query_BTHD, mask_BT = _questions(7, 1, 3, 7, 2, manifest=manifest)
    memory = LocalMemory(_shards(bank), manifest, 3)
    together = memory.route(LAYERS[0], query_BTHD, mask_BT)
    for row in range(5):
        routing = mask_BT[row].nonzero().flatten()
        first, last = int(routing[0]), int(routing[-1]) + 1
        alone = memory.route(LAYERS[0], query_BTHD[row : row + 1, first:last], mask_BT[row : row + 1, first:last])
        rows = int(together.mask_BM[row].sum())
        assert (alone.doc_ids[0], alone.scores[0]) == (together.doc_ids[row], together.scores[row])
        assert torch.equal(alone.keys_BGMD[0], together.keys_BGMD[row, :, :rows])
        assert torch.equal(alone.values_BGMD[0], together.values_BGMD[row, :, :rows])


def test_neither_order_nor_number_of_segments_nor_tiles_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = _ragged(70)
    whole, cut = (
        _bank(tmp_path / str(size), documents, max_segment_bytes=size * MANIFEST.row_bytes) for size in (10_000, 17)
    )
    questions = _questions(4, 2, 6)
    expected = LocalMemory(_shards(whole), MANIFEST, 2).route(LAYERS[0], *questions)
    (joined,) = _shards(cut)
    _assert_same(LocalMemory([joined], MANIFEST, 2).route(LAYERS[0], *questions), expected)
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 0)
    shards = _shards(MemoryBank.open(cut.folder))
    assert (len(_shards(whole)), len(shards)) == (1, len(cut.catalog.segments()))
    assert len(shards) > 8
    shuffled = random.Random(0).sample(shards, len(shards))
    monkeypatch.setattr(integers, "_TILE_BYTES", 1)
    for tile in (1, 3, 16, 17, 69, 10_000):
        monkeypatch.setattr(integers, "_LEAST_TILE", tile)
        for order in (shards, shards[::-1], shuffled, _shards(whole)):
            _assert_same(LocalMemory(order, MANIFEST, 2).route(LAYERS[0], *questions), expected)


def test_asking_again_gives_the_same_and_other_questions_do_not_matter(tmp_path: Path) -> None:
    bank = _bank(tmp_path / "bank", _ragged(30))
    memory = LocalMemory(_shards(bank), MANIFEST, 3)
    questions = _questions(3, 2)
    first = memory.route(LAYERS[0], *questions)
    memory.route(LAYERS[1], *questions)
    memory.route(LAYERS[0], *_questions(5))
    _assert_same(memory.route(LAYERS[0], *questions), first)


# --- what cannot be selected ----------------------------------------------------------------------------------------


def _winners(manifest: Manifest, rows: int, query_THD: torch.Tensor) -> EncodedDocuments:
    """A document whose keys are the question itself, summed over the heads of a group: nothing scores higher."""
    query_THD = torch.nn.functional.normalize(query_THD, dim=-1)
    key_GD = query_THD[0].unflatten(0, (manifest.num_kv_heads, -1)).sum(1)
    key_W = torch.nn.functional.normalize(key_GD, dim=-1).flatten()
    latents = random_latents(manifest, rows)
    return EncodedDocuments(key_W.expand(*latents.router_keys_LCW.shape).bfloat16(), latents.content_LC2GD, (rows,))


@pytest.mark.parametrize("max_rows", [6, 10_000])
def test_replaced_documents_are_never_selected_even_where_they_would_win(tmp_path: Path, max_rows: int) -> None:
    size = max_rows * MANIFEST.row_bytes
    query_BTHD, mask_BT = torch.randn(1, 1, H, MANIFEST.head_dim), torch.ones(1, 1, dtype=torch.bool)
    winner = _winners(MANIFEST, 3, query_BTHD[0])
    documents = _ragged(20)
    documents[4] = documents[5] = documents[19] = winner
    bank = _bank(tmp_path / "bank", documents, max_segment_bytes=size)
    before = LocalMemory(_shards(bank), MANIFEST, 3)
    assert before.route(LAYERS[0], query_BTHD, mask_BT).doc_ids == ((5, 6, 20),)
    _add(bank, {4: random_latents(MANIFEST, 1), 5: random_latents(MANIFEST, 2), 19: random_latents(MANIFEST, 4)}, size)
    latents = read_latents(bank)
    assert sorted(latents) == [*range(1, 5), *range(7, 20), 21, 22, 23]
    for k in (1, 2, 3, 20, 40):
        memory = LocalMemory(_shards(bank), MANIFEST, k)
        for layer in LAYERS:
            _check(memory.route(layer, query_BTHD, mask_BT), latents, layer, (query_BTHD, mask_BT), k)
    # The bank as it was when a memory was made stays as it was.
    assert before.route(LAYERS[0], query_BTHD, mask_BT).doc_ids == ((5, 6, 20),)


def test_a_bank_of_which_most_was_replaced_routes_like_one_that_never_held_it(tmp_path: Path) -> None:
    documents = _ragged(40)
    bank = _bank(tmp_path / "bank", documents)
    new = {number: random_latents(MANIFEST, 2) for number in range(40) if number % 8}
    _add(bank, new)
    latents = read_latents(bank)
    assert len(latents) == 40
    questions = _questions(3, 5)
    for k in (1, 4, 50):
        retrieved = LocalMemory(_shards(bank), MANIFEST, k).route(LAYERS[1], *questions)
        _check(retrieved, latents, LAYERS[1], questions, k)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("allowed", [[3], [2, 9, 40], list(range(1, 41, 2)), [7, 7, 99, -1]])
@pytest.mark.parametrize("max_rows", [20, 10_000])
def test_a_filter_is_applied_before_the_best_are_taken(tmp_path: Path, allowed: list[int], max_rows: int) -> None:
    documents = _ragged(40)
    bank = _bank(tmp_path / "bank", documents, max_segment_bytes=max_rows * MANIFEST.row_bytes)
    latents = {number: found for number, found in enumerate(documents, start=1) if number in allowed}
    questions = _questions(3, 2)
    shards = _shards(bank)
    for k in (1, 3, 50):
        memory = LocalMemory(shards, MANIFEST, k, selectable_N=_only(shards, allowed))
        _check(memory.route(LAYERS[0], *questions), latents, LAYERS[0], questions, k)


def test_a_filter_does_not_bring_replaced_documents_back(tmp_path: Path) -> None:
    bank = _bank(tmp_path / "bank", _ragged(3))
    _add(bank, {0: random_latents(MANIFEST, 2)})
    shards = _shards(bank)
    memory = LocalMemory(shards, MANIFEST, 5, selectable_N=_only(shards, {1, 2}))
    assert memory.route(LAYERS[0], *_questions(2)).doc_ids == ((2,),)


@pytest.mark.parametrize("max_rows", [12, 40, 10_000])
@pytest.mark.parametrize("joined_bytes", [0, 6000, 2**26], ids=["apart", "in groups", "joined"])
def test_what_is_deleted_or_out_of_scope_counts_as_if_it_never_was(
    tmp_path: Path, max_rows: int, joined_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", joined_bytes)
    monkeypatch.setattr(shard, "_MOST_JOINED_BYTES", joined_bytes)
    drawn = random.Random(max_rows)
    documents = _ragged(50, seed=max_rows)
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    with bank.writer(max_segment_bytes=max_rows * MANIFEST.row_bytes) as writer:
        for number, latents in enumerate(documents, start=1):
            add_latents(writer, Document(str(number), "text", metadata={"group": number % 3}), latents)
        writer.commit()
    opened_before = _shards(bank)
    deleted = drawn.sample(range(1, 51), 20)
    bank.delete(deleted[:10])
    bank.delete([str(number) for number in deleted[10:]])
    everything = dict(enumerate(documents, start=1))
    questions = _questions(3, 1, 5)
    for groups in ([1], [0, 2]):
        with bank.snapshot() as snapshot:
            shards = snapshot.shards
            selectable_N = snapshot.selectable_mask(Scope.parse({"group": {"in": groups}}))
        live = {n: found for n, found in everything.items() if n % 3 in groups and n not in deleted}
        num_segments = len(bank.catalog.segments())
        assert (num_segments > 1) == (max_rows < 10_000)
        assert max_rows > 12 or num_segments > len(shards) > 1 or joined_bytes != 6000
        assert len(shards) == {0: num_segments, 2**26: 1}.get(joined_bytes, len(shards))
        masks = dict(enumerate(selectable_N.split([len(shard.ids_N) for shard in shards])))
        order = drawn.sample(range(len(shards)), len(shards))
        for k in (1, 3, len(live)):
            memory = LocalMemory(shards, MANIFEST, k, selectable_N=selectable_N)
            retrieved = memory.route(LAYERS[1], *questions)
            _check(retrieved, live, LAYERS[1], questions, k)
            for found in memory.candidates[LAYERS[1]]:
                assert set(found.ids.tolist()) <= live.keys(), "nothing else is considered either"
            shuffled = LocalMemory(
                [shards[place] for place in order],
                MANIFEST,
                k,
                selectable_N=torch.cat([masks[place] for place in order]),
            )
            _assert_same(shuffled.route(LAYERS[1], *questions), retrieved)
    # Without a mask every live one may be selected; and what was read before stays as it was.
    whole = {n: found for n, found in everything.items() if n not in deleted}
    _check(LocalMemory(shards, MANIFEST, 4).route(LAYERS[0], *questions), whole, LAYERS[0], questions, 4)
    _check(LocalMemory(opened_before, MANIFEST, 4).route(LAYERS[0], *questions), everything, LAYERS[0], questions, 4)
    bank.compact()
    _check(LocalMemory(_shards(bank), MANIFEST, 4).route(LAYERS[0], *questions), whole, LAYERS[0], questions, 4)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("max_rows", [6, 10_000])
def test_a_deleted_document_is_never_selected_even_where_it_would_win(tmp_path: Path, max_rows: int) -> None:
    query_BTHD, mask_BT = torch.randn(1, 1, H, MANIFEST.head_dim), torch.ones(1, 1, dtype=torch.bool)
    documents = _ragged(20)
    documents[4] = documents[19] = _winners(MANIFEST, 3, query_BTHD[0])
    bank = _bank(tmp_path / "bank", documents, max_segment_bytes=max_rows * MANIFEST.row_bytes)
    assert LocalMemory(_shards(bank), MANIFEST, 1).route(LAYERS[0], query_BTHD, mask_BT).doc_ids == ((5,),)
    bank.delete([5])
    assert LocalMemory(_shards(bank), MANIFEST, 1).route(LAYERS[0], query_BTHD, mask_BT).doc_ids == ((20,),)
    bank.delete(["19"])  # names count from 0, ids from 1
    latents = {number: found for number, found in enumerate(documents, start=1) if number not in (5, 20)}
    for k in (1, 3, 18, 40):
        memory = LocalMemory(_shards(bank), MANIFEST, k)
        for layer in LAYERS:
            _check(memory.route(layer, query_BTHD, mask_BT), latents, layer, (query_BTHD, mask_BT), k)
    bank.delete(list(latents))
    assert LocalMemory(_shards(bank), MANIFEST, 3).route(LAYERS[0], query_BTHD, mask_BT).doc_ids == ((),)


@pytest.mark.parametrize(("count", "only"), [(0, None), (5, []), (40, []), (40, [99])])
def test_without_documents_there_are_no_rows(tmp_path: Path, count: int, only: list[int] | None) -> None:
    bank = _bank(tmp_path / "bank", _ragged(count))
    shards = _shards(bank)
    memory = LocalMemory(shards, MANIFEST, 4, selectable_N=None if only is None else _only(shards, only))
    retrieved = memory.route(LAYERS[0], *_questions(2, 3))
    G, D = MANIFEST.num_kv_heads, MANIFEST.head_dim
    assert retrieved.keys_BGMD.shape == retrieved.values_BGMD.shape == (2, G, 0, D)
    assert retrieved.mask_BM.shape == (2, 0)
    assert (retrieved.doc_ids, retrieved.scores) == (((), ()), ((), ()))


def test_a_question_without_a_routing_token_is_refused(tmp_path: Path) -> None:
    memory = LocalMemory(_shards(_bank(tmp_path / "bank", _ragged(3))), MANIFEST, 2)
    with pytest.raises(ValueError, match="routing token"):
        memory.route(LAYERS[0], torch.randn(1, 2, H, MANIFEST.head_dim), torch.zeros(1, 2, dtype=torch.bool))


def test_documents_of_nearly_equal_scores_are_told_apart(tmp_path: Path) -> None:
    # Keys that have much in common, as those of an anisotropic encoder: all scores lie within a few steps of bfloat16.
    common_GD = 6 * torch.randn(MANIFEST.num_kv_heads, MANIFEST.head_dim)
    documents = []
    for latents in _ragged(400):
        keys = latents.router_keys_LCW.float().unflatten(-1, common_GD.shape) + common_GD
        keys = torch.nn.functional.normalize(keys, dim=-1).flatten(2).bfloat16()
        documents.append(EncodedDocuments(keys, latents.content_LC2GD, latents.num_chunks))
    bank = _bank(tmp_path / "bank", documents)
    query_BTHD = 0.1 * torch.randn(6, 2, H, MANIFEST.head_dim) + common_GD.repeat_interleave(H // 2, 0)
    questions = query_BTHD, torch.ones(6, 2, dtype=torch.bool)
    retrieved = LocalMemory(_shards(bank), MANIFEST, 1).route(LAYERS[0], *questions)
    _check(retrieved, dict(enumerate(documents, start=1)), LAYERS[0], questions, 1)


# --- candidates -----------------------------------------------------------------------------------------------------


def test_candidates_are_exactly_scored_best_first_and_at_least_eight_times_as_many_as_selected(tmp_path: Path) -> None:
    documents = _ragged(60)
    bank = _bank(tmp_path / "bank", documents)
    memory = LocalMemory(_shards(bank), MANIFEST, 2)
    query_BTHD, mask_BT = _questions(4, 2)
    retrieved = memory.route(LAYERS[0], query_BTHD, mask_BT)
    for row, found in enumerate(memory.candidates[LAYERS[0]]):
        scores = _naive_scores(dict(enumerate(documents, start=1)), LAYERS[0], query_BTHD[row, mask_BT[row]], MANIFEST)
        assert 16 <= len(found.ids) < 60
        assert found.scores.tolist() == pytest.approx([scores[i] for i in found.ids.tolist()], abs=1e-5)
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert found.ids[:2].tolist() == list(retrieved.doc_ids[row])
        # Nothing left out scores better than what is in, but by what the coarse pass rounds away.
        left_out = max(score for document_id, score in scores.items() if document_id not in found.ids.tolist())
        assert left_out <= float(found.scores[-1]) + 5e-3


def test_every_layer_and_question_has_its_own_candidates(tmp_path: Path) -> None:
    documents = _ragged(20)
    bank = _bank(tmp_path / "bank", documents)
    memory = LocalMemory(_shards(bank), MANIFEST, 20)
    questions = _questions(4, 2)
    for layer in LAYERS:
        memory.route(layer, *questions)
    for row in range(2):
        ranked = rank_documents({layer: found[row] for layer, found in memory.candidates.items()}, top_k=20)
        total = {
            document_id: sum(
                _naive_scores({document_id: latents}, layer, questions[0][row, questions[1][row]], MANIFEST)[
                    document_id
                ]
                for layer in LAYERS
            )
            for document_id, latents in enumerate(documents, start=1)
        }
        assert [found.document_id for found in ranked] == sorted(total, key=lambda number: -total[number])
        assert [found.score for found in ranked] == pytest.approx([total[found.document_id] for found in ranked])


# --- with a model ---------------------------------------------------------------------------------------------------


TEXTS = [
    "the north tower is older than the river",
    "she sold the ship to another trader in the harbour",
    "on tuesdays the oven is hot",
    "an island",
    "the ratio of sand and stone in the tower is three to one",
    "he is at the other shore, near the harbour",
]


@pytest.fixture(scope="module", params=["cosine", "dot"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    return tiny_loaded(similarity=request.param, max_document_tokens=128)


def _text_bank(folder: Path, loaded: LoadedModel) -> MemoryBank:
    bank = MemoryBank.create(folder, manifest_of(loaded))
    add_documents(bank, loaded, [Document(str(number), text) for number, text in enumerate(TEXTS)])
    return bank


@torch.no_grad()
def _in_memory(loaded: LoadedModel) -> EncodedDocuments:
    """The documents as one batch of the model, rounded as a bank rounds them, in the order of their ids."""
    ids = [loaded.template.document(number, text) for number, text in enumerate(TEXTS, start=1)]
    (order,) = length_batches([len(document) for document in ids], 10_000)
    encoded = loaded.model.encode([ids[index] for index in order])
    keys = dict(zip(order, encoded.router_keys_LCW.split(encoded.num_chunks, 1), strict=True))
    content = dict(zip(order, encoded.content_LC2GD.split(encoded.num_chunks, 1), strict=True))
    return EncodedDocuments(
        torch.cat([keys[index] for index in range(len(ids))], 1).bfloat16().float(),
        torch.cat([content[index] for index in range(len(ids))], 1).bfloat16().float(),
        tuple(keys[index].shape[1] for index in range(len(ids))),
    )


@pytest.mark.parametrize("k", [1, 2, 6])
@torch.no_grad()
def test_a_model_answers_from_a_bank_as_from_the_documents_in_memory(
    tmp_path: Path, loaded: LoadedModel, k: int
) -> None:
    bank, model = _text_bank(tmp_path / "bank", loaded), loaded.model
    documents = _in_memory(loaded)
    stored = read_latents(bank)
    assert torch.equal(torch.cat([stored[n].content_LC2GD for n in sorted(stored)], 1).float(), documents.content_LC2GD)
    assert torch.equal(
        torch.cat([stored[n].router_keys_LCW for n in sorted(stored)], 1).float(), documents.router_keys_LCW
    )
    contexts = [loaded.template.context(question) for question in ("who sold it?", "how hot is the old oven on sunday")]
    contexts.append(random_context(4, 7, 6))
    in_memory = ask(model, contexts, TensorMemory(model, documents, k))
    local = LocalMemory(_shards(bank), bank.manifest, k)
    for found, wanted in zip(ask(model, contexts, local), in_memory, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    # It could fail: other documents give other logits.
    shards = _shards(bank)
    others = LocalMemory(shards, bank.manifest, k, selectable_N=_only(shards, [4]))
    if k < 6:
        assert not torch.allclose(ask(model, contexts, others)[1], in_memory[1], atol=1e-2)


@torch.no_grad()
def test_decoding_over_a_bank_is_the_one_pass_over_it(tmp_path: Path, loaded: LoadedModel) -> None:
    bank, model = _text_bank(tmp_path / "bank", loaded), loaded.model
    contexts = [random_context(3, 4, 6), random_context(3, 9, 7)]
    memory = LocalMemory(_shards(bank), bank.manifest, 2)
    whole = ask(model, contexts, memory)
    stepped = ask_in_steps(model, contexts, memory, (1, 2, 1))
    for context, row, wanted in zip(contexts, stepped, whole, strict=True):
        torch.testing.assert_close(row[-len(context.ids) :], wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_empty_bank_is_an_empty_memory(tmp_path: Path, loaded: LoadedModel) -> None:
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    model, contexts = loaded.model, [random_context(3, 4, 2), random_context(3, 9, 2)]
    local = LocalMemory(_shards(bank), bank.manifest, 2)
    for found, wanted in zip(ask(model, contexts, local), ask(model, contexts, None), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_answers_are_unchanged_after_reopening(tmp_path: Path, loaded: LoadedModel) -> None:
    bank, model = _text_bank(tmp_path / "bank", loaded), loaded.model
    contexts = [random_context(3, 4, 2), random_context(3, 9, 2)]

    def answers(bank: MemoryBank) -> list[Any]:
        logits = ask(model, contexts, LocalMemory(_shards(bank), bank.manifest, 2))
        memory = Memory(bank, loaded)
        found = [memory.ask("who sold the ship?", selector=name) for name in ("router", "lexical", "hybrid")]
        return [[row.tolist() for row in logits], [(answer.text, answer.evidence) for answer in found]]

    fresh = answers(bank)
    bank.close()
    assert answers(MemoryBank.open(tmp_path / "bank")) == fresh
    assert all(evidence for _, evidence in fresh[1])


@torch.no_grad()
def test_an_update_is_seen_by_the_next_question_and_equals_a_bank_made_that_way(
    tmp_path: Path, loaded: LoadedModel
) -> None:
    updated = _text_bank(tmp_path / "updated", loaded)
    add_documents(updated, loaded, [Document("1", "she kept the ship after all")])
    fresh = MemoryBank.create(tmp_path / "fresh", manifest_of(loaded))
    with fresh.writer() as writer:
        latents = read_latents(updated)
        for stored in updated.catalog.page("default", 0, 99):
            writer.reserve_ids(stored.id - writer._next_id)
            add_latents(writer, Document(stored.external_id, stored.text), latents[stored.id])
        writer.commit()
    model, contexts = loaded.model, [random_context(3, 4, 2), random_context(3, 9, 2)]
    for k in (1, 2, 9):
        logits = [ask(model, contexts, LocalMemory(_shards(bank), bank.manifest, k)) for bank in (updated, fresh)]
        for found, wanted in zip(*logits, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("similarity", MANIFESTS)
@pytest.mark.parametrize("kind", ["random", "anisotropic", "of many scales"])
def test_the_true_top_16_of_many_documents_are_found(tmp_path: Path, similarity: str, kind: str) -> None:
    manifest = tiny_manifest(similarity=similarity, num_kv_heads=3, head_dim=64, msa_layers=(1,))
    documents = []
    common_W = torch.randn(192)
    for _ in range(3000):
        key_CW = torch.randn(1, 192) + (3 * common_W if kind == "anisotropic" else 0)
        if kind == "of many scales" and similarity == "dot":
            key_CW = key_CW * torch.rand(1).exp()
        elif similarity == "cosine":
            key_CW = torch.nn.functional.normalize(key_CW.view(1, 3, 64), dim=-1).flatten(1)
        content = torch.zeros(1, 1, 2, 3, 64, dtype=torch.bfloat16)
        documents.append(EncodedDocuments(key_CW[None].bfloat16(), content, (1,)))
    bank = _bank(tmp_path / "bank", documents, manifest)
    query_BTHD = torch.randn(20, 8, 9, 64) + (common_W.view(3, 1, 64).repeat(1, 3, 1).view(9, 64))
    retrieved = LocalMemory(_shards(bank), manifest, 16).route(1, query_BTHD, torch.ones(20, 8).bool())
    query_BTW = fold_queries(query_BTHD, 3, similarity)
    keys_CW = torch.cat([latents.router_keys_LCW[0] for latents in documents]).float()
    found = 0
    for row, query_TW in enumerate(query_BTW):
        true = (keys_CW @ query_TW.T).amax(1).topk(16).indices + 1
        found += len(set(true.tolist()) & set(retrieved.doc_ids[row]))
    assert found >= 0.99 * 16 * 20
