"""What a memory of any size would take on machines that are not here: hours, bytes, and what a question moves.

Encoding is computing, then reading and splitting the text, which one process does for all. What data sheets say of a
machine is an upper bound; what was measured stands in docs/performance.md and docs/LOG.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from memspan.bank.encode import manifest_of
from memspan.bank.estimate import CATALOG_FACTOR, Estimate
from memspan.bank.manifest import Manifest
from memspan.bank.moved import reserved_bytes
from memspan.bank.segment import MAX_SEGMENT_BYTES
from memspan.bank.synthetic import synthetic_manifest
from memspan.bank.tiers import CACHE_BYTES
from memspan.errors import PlanError
from memspan.model.convert import LoadedModel
from memspan.ops.pooling import num_chunks
from memspan.routing.cost import Asked, RoutingCost, coarse_key_bytes, routing_cost

# Of a data sheet's operations a second, what encoding is taken to reach; nobody has measured it on a GPU.
_REACHED = 0.4
# Measured: tokens a second that one process reads and splits (docs/LOG.md), UTF-8 bytes a token (the notes of
# examples/), tokens of a question, keys a second that 2 cores score (docs/performance.md).
SPLIT_TOKENS_PER_SECOND = 115_000
_TEXT_BYTES_PER_TOKEN = 4.0
_QUESTION_TOKENS = 32
_CPU_KEY_BYTES_PER_SECOND = 5.0e9
# Assumed of the network: 25 Gbit/s, and a message in 50 microseconds, as TCP has within a rack.
_NETWORK_BYTES_PER_SECOND, _MESSAGE_SECONDS = 25e9 / 8, 50e-6
# Files of a segment that a process maps, and how many mappings Linux gives a process unless vm.max_map_count says more.
_MAPPED_FILES, MOST_MAPPINGS = 3, 65_530
# A process keeps of all segments: per chunk its document; per document ids, rows, order and whether it lives.
_CHUNK_TABLE_BYTES, _DOCUMENT_TABLE_BYTES = 8, 49
# The most machines. More segments are divided as evenly as these are.
_MOST_SHARDS = 2**16
_WEIGHT_BYTES = 2
# Weights (all; those that every token is multiplied with) and documents selected a layer of `memspan.bank.synthetic`'s
# shapes.
_SHAPES = {"smollm2-135m": (134_515_008, 106_203_456, 16), "qwen3-4b": (4_022_468_096, 3_633_511_936, 16)}
_UNITS = {"": 0, "K": 3, "M": 6, "B": 9, "T": 12}


@dataclass(frozen=True, slots=True)
class Kind:
    """A GPU, or a machine without one.

    Attributes:
        flops: a second, of encoding. memory_bytes: of its own. key_bytes_per_second: of routing keys that it scores.
        is_measured: whether these come from a run; else from its data sheet.
    """

    name: str
    flops: float
    memory_bytes: int
    key_bytes_per_second: float
    is_measured: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.name != "cpu"


def _sheet(name: str, teraflops: float, gigabytes: int, terabytes_per_second: float) -> Kind:
    return Kind(name, _REACHED * teraflops * 1e12, gigabytes * 10**9, terabytes_per_second * 1e12)


# Dense bfloat16 operations, memory and its bandwidth, of the makers' data sheets (SXM forms of the first three and of
# the last). cpu: the machine of docs/performance.md with 2 cores and AMX, 1,665 tokens a second of 108M weights.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name.lower(): kind
        for kind in (
            _sheet("H100", 989, 80, 3.35),
            _sheet("H200", 989, 141, 4.8),
            _sheet("A100-80G", 312, 80, 2.039),
            _sheet("L40S", 362, 48, 0.864),
            _sheet("4090", 165, 24, 1.008),
            _sheet("B200", 2250, 180, 8.0),
            Kind("cpu", 1665 * 2 * 107_972_928, 24 * 10**9, _CPU_KEY_BYTES_PER_SECOND, is_measured=True),
        )
    }
)


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """What a plan needs of a model.

    Attributes:
        weights, multiplied: all its weights, and those that every token is multiplied with.
        top_k: documents that a question selects in an MSA layer.
    """

    manifest: Manifest
    weights: int
    multiplied: int
    top_k: int

    @classmethod
    def of(cls, loaded: LoadedModel) -> PlannedModel:
        model = loaded.model
        multiplied = model.num_parameters(exclude_embeddings=True)
        return cls(manifest_of(loaded), model.num_parameters(), multiplied, model.config.top_k_docs)

    @classmethod
    def of_shape(cls, name: str) -> PlannedModel:
        """
        Raises:
            BankError: there is no such shape.
        """
        return cls(synthetic_manifest(name), *_SHAPES[name])


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """What a memory takes; a rank is a process with a GPU, or a machine without one.

    Attributes:
        gpus, kind, is_measured: the machines, and whether their figures come from a run; else from a data sheet.
        documents, chunks, segments: of the bank. tokens: the target.
        computing_seconds, splitting_seconds: of encoding, one after the other.
        cost: None without a price.
        latent_bytes, coarse_bytes, catalog_bytes: on disk: latents, routing keys in 8 bits, text and its index.
        ranks: that serve together: as many as there are GPUs, but no more than segments.
        weight_bytes: in bfloat16, of a rank.
        key_bytes, key_room_bytes: routing keys of the largest rank, and the room for them in its own memory.
        gpus_for_all_keys: how many of this kind have room for all of them.
        host_bytes: of a rank: tables, cache, and routing keys that its GPU has no room for; without a GPU everything.
        mappings: files that a process maps.
        content_bytes: stored keys and content that a question reads from disk, all ranks together.
        received_bytes: that a rank other than 0 receives for a question. steps: messages that wait for each other.
        routing_seconds: the least that reading the keys takes. network_seconds: and what travels, over a network of 25
            Gbit/s where a message takes 50 microseconds. The rest of an answer is not in them.
    """

    tokens: int
    gpus: int
    kind: str
    is_measured: bool
    documents: int
    chunks: int
    segments: int
    tokens_per_second: float
    computing_seconds: float
    splitting_seconds: float
    gpu_hours: float
    cost: float | None
    latent_bytes: int
    coarse_bytes: int
    catalog_bytes: int
    ranks: int
    weight_bytes: int
    key_bytes: int
    key_room_bytes: int
    gpus_for_all_keys: int | None
    host_bytes: int
    mappings: int
    content_bytes: int
    received_bytes: int
    steps: int
    network_seconds: float
    routing_seconds: float

    @property
    def encoding_seconds(self) -> float:
        return self.computing_seconds + self.splitting_seconds

    @property
    def disk_bytes(self) -> int:
        return self.latent_bytes + self.coarse_bytes + self.catalog_bytes

    @property
    def limits(self) -> tuple[str, ...]:
        """What does not fit, or holds up the rest: a sentence each."""
        found = []
        if self.splitting_seconds > self.computing_seconds:
            found.append("reading and splitting the text takes most of the encoding, and one process does it")
        if self.key_bytes > self.key_room_bytes:
            enough = self.gpus_for_all_keys
            remedy = f"{enough:,} x {self.kind} have room for all" if enough else f"a {self.kind} has no room for any"
            found.append(f"the routing keys do not fit into the memory of {self.gpus:,} x {self.kind}; {remedy}")
        if self.network_seconds > self.routing_seconds:
            found.append(f"{self.ranks:,} ranks wait longer for each other than they read; fewer answer sooner")
        if self.mappings > MOST_MAPPINGS:
            found.append(
                f"a process maps {self.mappings:,} files, and Linux lets it map {MOST_MAPPINGS:,}; "
                f"set vm.max_map_count to {2 * self.mappings}"
            )
        if self.ranks < self.gpus:
            found.append(f"there are {self.segments:,} segments, so no more than {self.ranks:,} ranks serve them")
        return tuple(found)


def parse_tokens(text: str) -> int:
    """A number of tokens: 1B, 100M, 2.5m, 64k, 1_000_000.

    Raises:
        PlanError: it is none, or less than one.
    """
    found = re.fullmatch(r"(\d[\d_,]*(?:\.\d+)?)([KMBT]?)", text.strip().upper(), re.ASCII)
    tokens = Fraction(re.sub("[_,]", "", found[1])) * 10 ** _UNITS[found[2]] if found else Fraction(0)
    if tokens < 1 or tokens.denominator != 1:
        raise PlanError(f"--target is a number of tokens, at least 1, as 100M, 1B or 2.5B; not {text!r}")
    return int(tokens)


def parse_gpus(text: str) -> tuple[int, Kind]:
    """Machines: 8xH100, or one by its name alone.

    Raises:
        PlanError: none of that kind is known, or there are none or too many of it.
    """
    found = re.fullmatch(r"(?:(\d+)\s*[x×*]\s*)?(\S+)", text.strip(), re.ASCII | re.IGNORECASE)
    kind = KINDS.get(found[2].lower()) if found else None
    count = int(found[1] or 1) if found else 0
    if kind is None or not 0 < count <= _MOST_SHARDS:
        names = ", ".join(one.name for one in KINDS.values())
        raise PlanError(
            f"--gpus is a number up to {_MOST_SHARDS:,} and a kind, as 8xH100; the kinds are {names}; not {text!r}"
        )
    return count, kind


def check_price(price: float | None) -> None:
    """
    Raises:
        PlanError: it is negative, infinite or no number.
    """
    if price is not None and not 0 <= price < math.inf:
        raise PlanError(f"--price is what an hour of one GPU costs, 0 or more; not {price}")


def plan(
    model: PlannedModel,
    tokens: int,
    gpus: int,
    kind: Kind,
    price: float | None = None,
    sample: Estimate | None = None,
) -> CapacityPlan:
    """What encoding a number of tokens takes, keeping them, and asking them a question.

    Args:
        price: of an hour of one GPU, in any currency.
        sample: documents like those to come: their chunks and texts a token are taken, and for machines without a GPU
            their speed. Default: documents of as many tokens as the model encodes together.

    Raises:
        PlanError: the price is none, or the sample has no tokens.
    """
    check_price(price)
    manifest = model.manifest
    documents, chunks, catalog_bytes = _corpus(manifest, tokens, sample)
    latent_bytes = chunks * manifest.row_bytes
    segments = -(-latent_bytes // MAX_SEGMENT_BYTES)
    ranks = min(gpus, segments)
    asked = Asked(1, _QUESTION_TOKENS, model.top_k, -(-chunks // documents))
    routed = routing_cost(manifest, _shards(chunks, segments), ranks, asked)
    of_sample = 0.0 if sample is None or kind.is_gpu else sample.tokens_per_second
    rate = gpus * (of_sample or kind.flops / (2 * model.multiplied))
    seconds = tokens / rate, tokens / SPLIT_TOKENS_PER_SECOND
    hours = gpus * sum(seconds) / 3600
    return CapacityPlan(
        tokens=tokens,
        gpus=gpus,
        kind=kind.name,
        is_measured=kind.is_measured,
        documents=documents,
        chunks=chunks,
        segments=segments,
        tokens_per_second=rate,
        computing_seconds=seconds[0],
        splitting_seconds=seconds[1],
        gpu_hours=hours,
        cost=None if price is None else price * hours,
        latent_bytes=latent_bytes,
        coarse_bytes=chunks * coarse_key_bytes(manifest),
        catalog_bytes=catalog_bytes,
        mappings=segments * _MAPPED_FILES,
        content_bytes=routed.content_bytes,
        received_bytes=routed.received_bytes,
        steps=routed.steps,
        network_seconds=routed.network_seconds(_NETWORK_BYTES_PER_SECOND, _MESSAGE_SECONDS),
        **_memory(model, kind, documents, chunks, routed),
    )


def _corpus(manifest: Manifest, tokens: int, sample: Estimate | None) -> tuple[int, int, int]:
    """Documents, chunks and catalog bytes of a number of tokens."""
    if sample is None:
        whole, rest = divmod(tokens, manifest.max_document_tokens)
        of_whole, of_rest = (num_chunks(size, manifest.chunk_size) for size in (manifest.max_document_tokens, rest))
        text_bytes = _TEXT_BYTES_PER_TOKEN * tokens
        return whole + bool(rest), whole * of_whole + of_rest, int(CATALOG_FACTOR * text_bytes)
    if not sample.tokens:
        raise PlanError("the files hold no text, so nothing can be planned by them; name others, or none")
    of_sample = sample.documents, sample.chunks, sample.catalog_bytes
    documents, chunks, catalog_bytes = (-(-count * tokens // sample.tokens) for count in of_sample)
    return documents, chunks, catalog_bytes


def _shards(chunks: int, segments: int) -> list[int]:
    count = min(segments, _MOST_SHARDS)
    return [chunks * (number + 1) // count - chunks * number // count for number in range(count)]


def _memory(model: PlannedModel, kind: Kind, documents: int, chunks: int, routed: RoutingCost) -> dict[str, Any]:
    """The fields of a plan about the memory of a rank, and the time of reading it."""
    ranks, keys = len(routed.key_bytes), max(routed.key_bytes)
    weights = _WEIGHT_BYTES * model.weights
    tables = _CHUNK_TABLE_BYTES * chunks + _DOCUMENT_TABLE_BYTES * documents
    host = tables + _CHUNK_TABLE_BYTES * -(-(chunks + documents) // ranks) + CACHE_BYTES
    room = max(0, kind.memory_bytes - weights - (reserved_bytes(kind.memory_bytes) if kind.is_gpu else host))
    here = min(keys, room) if kind.is_gpu else keys
    of_chunk = coarse_key_bytes(model.manifest)
    most = room // of_chunk
    return {
        "ranks": ranks,
        "weight_bytes": weights,
        "key_bytes": keys,
        "key_room_bytes": room,
        "gpus_for_all_keys": -(-chunks // most) if most else None,
        "host_bytes": host + keys - here if kind.is_gpu else host + weights + keys,
        "routing_seconds": here / kind.key_bytes_per_second + (keys - here) / _CPU_KEY_BYTES_PER_SECOND,
    }
