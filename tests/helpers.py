"""What tests share: tiny random models of several families, a tokenizer built in memory, a memory made of tensors."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import multiprocessing
import os
import sqlite3
import string
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from memspan.bank.bank import BankWriter, MemoryBank
from memspan.bank.catalog import DEFAULT_NAMESPACE, Catalog, StoredDocument
from memspan.bank.edits import NewDocument, NewSource, add_sources
from memspan.bank.folder import WrittenSegments
from memspan.bank.manifest import FORMAT_VERSION, Manifest
from memspan.bank.schema import FORMAT_2
from memspan.bank.segment import RowLocation, SegmentFiles
from memspan.bank.shard import Shard
from memspan.bank.stored import still_pending
from memspan.config import MSAConfig
from memspan.model.convert import LoadedModel
from memspan.model.memory_api import LayerMemory, QueryStep
from memspan.model.modeling import MSAForCausalLM
from memspan.ops.attention import attend
from memspan.ops.scoring import chunk_scores, document_scores, fold_queries, routing_queries, top_documents
from memspan.text.packing import PackedContexts, pack_contexts
from memspan.text.template import Context, PromptTemplate
from memspan.text.terms import plain_words
from memspan.types import Document, EncodedDocuments, Retrieved, Span


class _NoFork:
    def __getattr__(self, name: str) -> NoReturn:
        pytest.skip("no process can be forked here")


# Forked, not spawned: a new interpreter takes seconds to import torch, and its own files may be closed to other users.
FORK: Any = multiprocessing.get_context("fork") if hasattr(os, "fork") else _NoFork()
VOCAB = 512
ENDOFTEXT, IM_START, IM_END = 509, 510, 511
WINDOW = 16
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2", "phi3")

_FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 32,  # not the head size, so that a lost `scaling` shows
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "phi3": {"pad_token_id": 0},
}


class CopiedText(str):
    """A text that counts the characters of all its slices, and of the slices of those."""

    copied: list[int]

    def __new__(cls, text: str, copied: list[int] | None = None) -> CopiedText:
        made = super().__new__(cls, text)
        made.copied = [0] if copied is None else copied
        return made

    def __getitem__(self, key: Any) -> CopiedText:
        piece = super().__getitem__(key)
        self.copied[0] += len(piece)
        return CopiedText(piece, self.copied)


def examples_here(number: int) -> int:
    """How many examples a costly property is tried on: a share of them (`MEMSPAN_TEST_EXAMPLES`) in `make test`."""
    return max(1, round(number * float(os.environ.get("MEMSPAN_TEST_EXAMPLES", "1"))))


def tiny_config(family: str) -> PretrainedConfig:
    """A four-layer decoder's config (H=4, G=2, D=16). Weights are large, so that every layer matters to the logits."""
    return AutoConfig.for_model(
        family,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=IM_END,
        **_FAMILY_SETTINGS.get(family, {}),
    )


def tiny_backbone(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The family's own causal language model with random weights, eager attention. The same for the same seed.

    Norm weights and biases are random as well: at their initial ones and zeros a lost one would not show. Ask here
    for another `dtype`: `.to(dtype)` would round the rotary frequencies too, which loading a checkpoint does not.
    """
    torch.manual_seed(seed)
    backbone = AutoModelForCausalLM.from_config(tiny_config(family), dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return backbone


def tiny_model(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **msa: Any) -> MSAForCausalLM:
    """`tiny_backbone(family, seed, dtype)` with memory added; `msa` are fields of `MSAConfig`."""
    backbone = tiny_backbone(family, seed, dtype)
    settings = {"chunk_size": 4, "top_k_docs": 2, **msa}
    config = MSAConfig(backbone_config=copy.deepcopy(backbone.config), **settings)
    return MSAForCausalLM.from_backbone(backbone, config, seed=seed + 1)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 512 tokens: 256 bytes, 253 pairs of letters, three special tokens."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = list(itertools.islice(itertools.product("Ġetaoinshr", string.ascii_lowercase), ENDOFTEXT - len(vocab)))
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )


def tiny_loaded(family: str = "llama", seed: int = 0, **msa: Any) -> LoadedModel:
    """`tiny_model` with `tiny_tokenizer` and its template, as loading a checkpoint gives them."""
    model = tiny_model(family, seed, **msa)
    return LoadedModel(model, PromptTemplate(model.config.template_spec, tiny_tokenizer()), Path("tiny"))


def endless_loaded() -> LoadedModel:
    """A model that never ends an answer by itself."""
    loaded = tiny_loaded()
    loaded.template.stop_ids = frozenset()
    loaded.model.generation_config.eos_token_id = None
    return loaded


def watch_encoding(monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel) -> list[str]:
    """The text, in its template, of every document that a model encodes from here on."""
    texts: list[str] = []
    real = loaded.model.encode

    def watched(documents: Sequence[Sequence[int]]) -> EncodedDocuments:
        result = real(documents)
        texts.extend(loaded.template.text(ids) for ids in documents)
        return result

    monkeypatch.setattr(loaded.model, "encode", watched)
    return texts


def save_backbone(folder: Path, family: str = "llama", seed: int = 0) -> PreTrainedModel:
    """Write `tiny_backbone(family, seed)` and `tiny_tokenizer` as a plain Hugging Face folder."""
    backbone = tiny_backbone(family, seed)
    backbone.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return backbone


def tiny_manifest(**changes: Any) -> Manifest:
    """The manifest of a bank of two MSA layers, for latents that no model made."""
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "encoder_fingerprint": "0" * 64,
        "msa_layers": (1, 3),
        "chunk_size": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "similarity": "cosine",
        "document_prefix": "[{id}]. ",
        "document_suffix": "[{id}]",
        "max_document_tokens": 64,
        "dtype": "bfloat16",
    }
    return Manifest(**({"backbone": "tiny"} | values | changes))


@contextlib.contextmanager
def counted_sha256() -> Iterator[list[int]]:
    """Inside, the bytes that `hashlib.sha256` hashes are counted; it must be called as that."""
    hashed, original = [0], hashlib.sha256

    class Counting:
        def __init__(self, data: bytes = b"", **options: Any) -> None:
            self._digest = original(**options)
            self.update(data)

        def update(self, data: Any) -> None:
            hashed[0] += memoryview(data).nbytes
            self._digest.update(data)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    hashlib.sha256 = Counting
    try:
        yield hashed
    finally:
        hashlib.sha256 = original


def random_latents(manifest: Manifest, rows: int) -> EncodedDocuments:
    """Latents of one document, drawn from torch's generator; routing keys scaled as the similarity wants them."""
    L, G, D = len(manifest.msa_layers), manifest.num_kv_heads, manifest.head_dim
    keys_LCGD = torch.randn(L, rows, G, D)
    if manifest.similarity == "cosine":
        keys_LCGD = torch.nn.functional.normalize(keys_LCGD, dim=-1)
    content_LC2GD = torch.randn(L, rows, 2, G, D)
    return EncodedDocuments(keys_LCGD.flatten(2).bfloat16(), content_LC2GD.bfloat16(), (rows,))


def add_latents(writer: BankWriter, document: Document, *latents: EncodedDocuments) -> list[int]:
    """Add a source cut into as many parts of like length as there are latents; return their ids."""
    bounds = [len(document.text) * part // len(latents) for part in range(len(latents) + 1)]
    ids = list(writer.reserve_ids(len(latents)))
    parts = [
        NewDocument(document_id, Span(*span), 4 * encoded.num_chunks[0])
        for document_id, span, encoded in zip(ids, itertools.pairwise(bounds), latents, strict=True)
    ]
    writer.add(NewSource(document, tuple(parts)), latents)
    return ids


def fill(bank: MemoryBank, *names: str, rows: int = 3, **options: Any) -> dict[int, EncodedDocuments]:
    """Commit one source a name, at once, with the text "text of NAME"; return their latents by id."""
    given: dict[int, EncodedDocuments] = {}
    with bank.writer(**options) as writer:
        for name in names:
            latents = random_latents(bank.manifest, rows)
            (document_id,) = add_latents(writer, Document(name, f"text of {name}"), latents)
            given[document_id] = latents
        writer.commit()
    return given


def commit_texts(
    catalog: Catalog,
    *documents: Document,
    parts: int = 1,
    first_id: int | None = None,
    namespace: str = DEFAULT_NAMESPACE,
) -> list[int]:
    """Commit sources in one transaction, each in `parts` documents of two rows, all in one new segment without files.

    Returns the documents' ids.
    """
    next_id = first_id or catalog.next_document_id()
    name = f"{next_id:032x}"
    sources, places = [], []
    for document in documents:
        new = []
        for start, end in itertools.pairwise(len(document.text) * part // parts for part in range(parts + 1)):
            new.append(NewDocument(next_id, Span(start, end), tokens=end - start))
            places.append(RowLocation(next_id, name, 2 * len(places), 2, 0))
            next_id += 1
        sources.append(NewSource(document, tuple(new)))
    files = SegmentFiles(name, len(places), 2 * len(places), 0, 10, "a", 20, "b")
    add_sources(catalog, namespace, sources, WrittenSegments([files], places))
    return [place.document_id for place in places]


def make_format_2(folder: Path) -> None:
    """Write the catalog of a closed bank as format 2 had it. What only later formats hold is left out."""
    new, old = folder / "catalog.sqlite", folder / "format_2.sqlite"
    with contextlib.closing(sqlite3.connect(old, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FORMAT_2)
        db.execute("ATTACH ? AS new", (str(new),))
        tables = [name for (name,) in db.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'")]
        for table in tables:
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"DELETE FROM main.{table}")
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        db.execute("DELETE FROM main.manifest WHERE key NOT IN (SELECT key FROM new.manifest)")
        db.execute("UPDATE main.manifest SET value = '2' WHERE key = 'format_version'")
        for row in db.execute("SELECT id, namespace_id, external_id, added_at, deleted_in FROM sources").fetchall():
            db.execute("UPDATE sources SET seal = ? WHERE id = ?", (zlib.crc32(json.dumps(row).encode()), row[0]))
        db.execute("DETACH new")
    for suffix in ("", "-wal", "-shm"):
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    old.rename(new)
    with contextlib.closing(Catalog(new)) as catalog:
        for namespace in catalog.namespaces():
            make_first_index(catalog, namespace)


def make_first_index(catalog: Catalog, namespace: str = DEFAULT_NAMESPACE) -> None:
    """Give a namespace the full-text index that it had before rules were recorded."""
    table = f"words_{catalog.namespace_id(namespace)}"
    catalog.execute(f"DROP TABLE IF EXISTS {table}")
    options = "words, content = '', tokenize = 'porter unicode61 remove_diacritics 2'"
    catalog.execute(f"CREATE VIRTUAL TABLE {table} USING fts5 ({options})")
    for document_id, text in catalog.texts(namespace):
        words = " ".join(plain_words(text))
        catalog.execute(f"INSERT INTO {table} (rowid, words) VALUES (?, ?)", (document_id, words))


@contextlib.contextmanager
def child_process(do: Callable[[Connection], None]) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run a function in a process of its own, with a pipe to this one; the process is killed if it does not end."""
    ours, theirs = FORK.Pipe()

    def run() -> None:
        ours.close()
        do(theirs)

    process = FORK.Process(target=run)
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        ours.close()  # a child that waits for a word ends with an error
        process.join(10)
        process.kill()
        process.join(60)


@contextlib.contextmanager
def file_size_limit(max_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size: what a full disk looks like to a writer."""
    resource = pytest.importorskip("resource", reason="the size of files cannot be limited here")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def enterable_folder() -> Iterator[Path]:
    """A folder that any user may enter (pytest's own are private to one)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        try:
            yield Path(name)
        finally:
            for path in Path(name).rglob("*"):
                if path.is_dir():
                    path.chmod(0o755)


def become_nobody() -> None:
    """Give up root's rights, in a child process: root may write everywhere."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def receive(pipe: Connection) -> Any:
    """What the other process says; an error if it says nothing for a minute."""
    assert pipe.poll(60), "the process said nothing"
    return pipe.recv()


def latents_in(shard: Shard, index: int) -> EncodedDocuments:
    """Everything kept of a document of a shard."""
    segment, place = shard.place(index)
    return segment.latents(place)


def read_latents(bank: MemoryBank, namespace: str = DEFAULT_NAMESPACE) -> dict[int, EncodedDocuments]:
    """The stored latents of every live document, by id."""
    with bank.snapshot(namespace) as snapshot:
        return {
            document_id: latents_in(shard, index)
            for shard in snapshot.shards
            for index, document_id in enumerate(shard.ids_N.tolist())
            if shard.live_N[index]
        }


def read_bank(bank: MemoryBank, namespace: str = DEFAULT_NAMESPACE) -> list[tuple[StoredDocument, bytes, bytes]]:
    """Everything a namespace holds: its live documents with the bits of their routing keys and content, by id.

    Those of a document that is not encoded yet are empty.
    """
    latents = read_latents(bank, namespace)
    stored = bank.catalog.page(namespace, 0, 1_000_000)
    pending = still_pending(bank.catalog, [document.id for document in stored])
    has_latents = [document.id for document in stored if document.id not in pending]
    assert has_latents == sorted(latents), "every document that is encoded has latents, and no other"
    return [
        (document, b"", b"") if document.id in pending else (document, *bits(latents[document.id]))
        for document in stored
    ]


def bits(latents: EncodedDocuments) -> tuple[bytes, bytes]:
    """Routing keys and content as bytes, so that equal means bit for bit."""
    return tuple(
        tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for tensor in (latents.router_keys_LCW, latents.content_LC2GD)
    )  # type: ignore[return-value]


def random_ids(*lengths: int) -> list[list[int]]:
    """Sequences of ordinary tokens, drawn from torch's generator."""
    return [torch.randint(1, ENDOFTEXT, (length,)).tolist() for length in lengths]


def random_context(prefix: int, body: int, tail: int) -> Context:
    """A context of random tokens, of which `body` route."""
    return Context(tuple(random_ids(prefix + body + tail)[0]), Span(prefix, prefix + body))


class TensorMemory:
    """A `LayerMemory` over documents in memory; document ids are their indices.

    Attributes:
        calls: layers of the calls of `route`, in order.
    """

    def __init__(self, model: MSAForCausalLM, documents: EncodedDocuments, k: int | None = None) -> None:
        self.config = model.config
        self.documents = documents
        self.k = k or model.config.top_k_docs
        self.calls: list[int] = []
        self.document_C = torch.repeat_interleave(torch.tensor(documents.num_chunks, dtype=torch.long))

    @classmethod
    def empty(cls, model: MSAForCausalLM) -> TensorMemory:
        """A memory without any document."""
        config = model.config
        keys = torch.zeros(len(config.layers), 0, config.num_kv_heads * config.head_dim)
        content = torch.zeros(len(config.layers), 0, 2, config.num_kv_heads, config.head_dim)
        return cls(model, EncodedDocuments(keys, content, ()))

    def route(self, layer: int, router_query_BTHD: torch.Tensor, query_mask_BT: torch.Tensor) -> Retrieved:
        self.calls.append(layer)
        row = self.config.layers.index(layer)
        query_BTW = fold_queries(router_query_BTHD, self.config.num_kv_heads, self.config.similarity)
        query_BTW = routing_queries(query_BTW, query_mask_BT)
        score_BC = chunk_scores(query_BTW, self.documents.router_keys_LCW[row])
        num_documents = len(self.documents.num_chunks)
        score_BN = document_scores(score_BC, self.document_C, num_documents)
        best = [top_documents(score_N, torch.arange(num_documents), self.k) for score_N in score_BN]
        rows = [torch.isin(self.document_C, ids).nonzero().flatten() for ids, _ in best]
        content = self.documents.content_LC2GD[row]
        M = max(len(r) for r in rows)
        mask_BM = torch.stack([torch.arange(M) < len(r) for r in rows])
        content_BM2GD = torch.stack(
            [torch.cat([content[r], content.new_zeros(M - len(r), *content.shape[1:])]) for r in rows]
        )
        keys_BGMD, values_BGMD = content_BM2GD.permute(2, 0, 3, 1, 4)
        return Retrieved(
            keys_BGMD,
            values_BGMD,
            mask_BM,
            doc_ids=tuple(tuple(ids.tolist()) for ids, _ in best),
            scores=tuple(tuple(scores.tolist()) for _, scores in best),
        )


def ask_step(packed: PackedContexts, memory: LayerMemory | None) -> QueryStep:
    """The step of a whole prompt."""
    return QueryStep(packed.valid, packed.sees_memory, packed.routes, memory)


def ask(model: MSAForCausalLM, contexts: Sequence[Context], memory: LayerMemory | None) -> list[torch.Tensor]:
    """Logits of every context's own tokens, computed in one left-padded pass without a cache."""
    packed = pack_contexts(contexts, model.config.position_offset)
    logits = model(packed.ids, position_ids=packed.positions, memory=ask_step(packed, memory), use_cache=False).logits
    return [row[-len(context.ids) :] for row, context in zip(logits, contexts, strict=True)]


def ask_in_steps(
    model: MSAForCausalLM, contexts: Sequence[Context], memory: LayerMemory | None, steps: Sequence[int]
) -> torch.Tensor:
    """Logits `[B, T]` of the left-padded batch: a prefill, then the last `sum(steps)` tokens in passes of those sizes.

    The decoded tokens stand in the contexts' tails: they do not route.
    """
    packed = pack_contexts(contexts, model.config.position_offset)
    cache = DynamicCache(config=model.config.text_config)
    start = packed.ids.shape[1] - sum(steps)
    assert not packed.routes[:, start:].any(), "decoded tokens do not route"
    first = QueryStep(packed.valid[:, :start], packed.sees_memory[:, :start], packed.routes[:, :start], memory)
    logits = [
        model(
            packed.ids[:, :start], position_ids=packed.positions[:, :start], past_key_values=cache, memory=first
        ).logits
    ]
    for size in steps:
        new = slice(start, start + size)
        step = QueryStep(valid_BS=packed.valid[:, : new.stop], memory=memory, retrieved=first.retrieved)
        logits.append(
            model(packed.ids[:, new], position_ids=packed.positions[:, new], past_key_values=cache, memory=step).logits
        )
        start = new.stop
    return torch.cat(logits, dim=1)


def paged_kernel(
    query_XHD: torch.Tensor,
    pool_2PSGD: torch.Tensor,
    table_RP: torch.Tensor,
    used_R: torch.Tensor,
    first_R1: torch.Tensor,
    max_used: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """`PagedAttention` on any device, by a mask over the pages of all rows; it waits for nothing."""
    assert {table_RP.dtype, used_R.dtype, first_R1.dtype} == {torch.int32} and len(first_R1) == len(used_R) + 1
    R, device = len(used_R), query_XHD.device
    query_RHTD = query_XHD.unflatten(0, (R, -1)).transpose(1, 2)
    T = query_RHTD.shape[2]
    keys_RGSD, values_RGSD = pool_2PSGD[:, table_RP.long()].flatten(2, 3).transpose(2, 3)
    column_S = torch.arange(keys_RGSD.shape[2], device=device)
    own_RT1 = (used_R[:, None] - T + torch.arange(T, device=device))[:, :, None]
    seen_RTS = (column_S <= own_RT1) & (column_S < max_used)
    if window is not None:
        seen_RTS &= column_S > own_RT1 - window
    return attend(query_RHTD, keys_RGSD, values_RGSD, seen_RTS[:, None], scaling).flatten(0, 1)
