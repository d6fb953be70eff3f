"""The bank as a database: how long changing, opening, listing, filtering and searching take as it grows.

    python benchmarks/bank.py [--documents 1000000] [--texts FILE.jsonl] [--folder DIR] [--json FILE]

Two parts, with latents that no model made:

    growth     a catalog of many documents (one tiny chunk each): opening, paging, deleting, updating, the next
               snapshot after a change, a metadata filter, full-text search
    adds       1,000 documents added one by one, at the default model's shapes: segments left, and routing over them
               against the same documents in one segment, both in one run, alternating

Texts are drawn from a Zipf distribution of made-up words, or read from `--texts` (JSON lines with "text"; repeated
with new words where there are too few). Filling a million documents takes some minutes and 2 GB; with `--folder` the
bank is kept and used again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import torch
from plots import add_json, write_json

from memspan.bank.bank import MemoryBank
from memspan.bank.edits import NewDocument, NewSource
from memspan.bank.manifest import FORMAT_VERSION, Manifest
from memspan.bank.scope import EVERYTHING, Scope
from memspan.bank.segment import LATENT_DTYPE
from memspan.routing.local import LocalMemory
from memspan.text.languages import FUNCTION_WORDS
from memspan.types import Document, EncodedDocuments, Span

VOCABULARY, ZIPF_EXPONENT, NUM_WORDS = 200_000, 1.05, 60
COMMIT_EVERY = 20_000
SINGLE_ADDS = 1000


def manifest(layers: tuple[int, ...], num_kv_heads: int, head_dim: int) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        encoder_fingerprint="benchmark",
        msa_layers=layers,
        chunk_size=64,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        similarity="cosine",
        document_prefix="[{id}]. ",
        document_suffix="[{id}]",
        max_document_tokens=512,
        dtype=str(LATENT_DTYPE).removeprefix("torch."),
        backbone="none",
    )


TINY = manifest((0,), 1, 8)
SMOLLM2 = manifest(tuple(range(15, 30)), 3, 64)


def latents(of: Manifest, rows: int) -> EncodedDocuments:
    L, G, D = len(of.msa_layers), of.num_kv_heads, of.head_dim
    keys_LCGD = torch.nn.functional.normalize(torch.randn(L, rows, G, D), dim=-1)
    return EncodedDocuments(
        keys_LCGD.flatten(2).to(LATENT_DTYPE), torch.randn(L, rows, 2, G, D).to(LATENT_DTYPE), (rows,)
    )


def made_up_texts(rng: random.Random) -> Iterator[str]:
    """Texts of words with the frequencies of a Zipf distribution."""
    words = [f"{rng.choice('bcdfgklmnprst')}{rng.choice('aeiou')}{number:x}" for number in range(VOCABULARY)]
    weights = torch.arange(1, VOCABULARY + 1, dtype=torch.float64).pow(-ZIPF_EXPONENT)
    while True:
        drawn = torch.multinomial(weights, 1000 * NUM_WORDS, replacement=True).tolist()
        for start in range(0, len(drawn), NUM_WORDS):
            yield " ".join(words[place] for place in drawn[start : start + NUM_WORDS])


def given_texts(path: Path) -> Iterator[str]:
    """The texts of a file, again and again, told apart by a word of their own after the first time."""
    for turn in count():
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                yield json.loads(line)["text"] + (f" copy{turn}x{number}" if turn else "")


def fill(bank: MemoryBank, texts: Iterator[str], num_documents: int) -> None:
    encoded = latents(TINY, 1)
    started = time.monotonic()
    with bank.writer() as writer:
        for number in range(num_documents):
            document = Document(f"doc-{number}", next(texts), metadata={"project": f"p{number % 50}", "n": number})
            (document_id,) = writer.reserve_ids(1)
            part = NewDocument(document_id, Span(0, len(document.text)), NUM_WORDS)
            writer.add(NewSource(document, (part,)), [encoded])
            if (number + 1) % COMMIT_EVERY == 0:
                writer.commit()
                print(f"  {number + 1} documents, {time.monotonic() - started:.0f} s", flush=True)
        writer.commit()


def add_one(bank: MemoryBank, document: Document, encoded: EncodedDocuments) -> None:
    with bank.writer() as writer:
        (document_id,) = writer.reserve_ids(1)
        part = NewDocument(document_id, Span(0, len(document.text)), NUM_WORDS)
        writer.add(NewSource(document, (part,)), [encoded])
        writer.commit()


def timed(calls: Iterator[Callable[[], object]]) -> dict[str, float]:
    """Median, 95th percentile and maximum of some calls, in milliseconds."""
    times = []
    for call in calls:
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    times.sort()
    return {"median": statistics.median(times), "p95": times[int(0.95 * (len(times) - 1))], "max": times[-1]}


def is_stop_word(word: str) -> bool:
    """Whether a made-up word is one of the most frequent, which questions leave out as they do English stop words."""
    return re.fullmatch(r"[a-z]{2}[0-9a-f]+", word) is not None and int(word[2:], 16) < len(FUNCTION_WORDS["en"])


def questions(bank: MemoryBank, rng: random.Random, number: int) -> list[str]:
    """Six words of one document each, near each other as in a sentence, stop words left out."""
    found = []
    total = bank.catalog.counts().documents
    while len(found) < number:
        documents = bank.catalog.page("default", rng.randrange(total), 1)
        words = [word for word in documents[0].text.split() if not is_stop_word(word)] if documents else []
        if len(words) >= 12:
            start = rng.randrange(len(words) - 11)
            found.append(" ".join(rng.sample(words[start : start + 12], 6)))
    return found


def growth(folder: Path, texts: Iterator[str], num_documents: int, rng: random.Random) -> dict[str, object]:
    if not MemoryBank.exists(folder):
        with closing(MemoryBank.create(folder, TINY)) as bank:
            fill(bank, texts, num_documents)
    figures: dict[str, object] = {}

    def open_and_look() -> None:
        with closing(MemoryBank.open(folder)) as opened, opened.snapshot() as snapshot:
            snapshot.selectable_mask()

    def next_snapshot(reader: MemoryBank, scope: Scope = EVERYTHING) -> None:
        with reader.snapshot() as snapshot:
            snapshot.selectable_mask(scope)

    figures["open"] = timed(open_and_look for _ in range(5))
    with closing(MemoryBank.open(folder)) as bank, closing(MemoryBank.open(folder)) as reader:
        next_snapshot(reader)
        last = bank.catalog.next_document_id()
        names = [
            found.external_id for n in rng.sample(range(last), 2000) for found in bank.catalog.page("default", n, 1)
        ]
        names = list(dict.fromkeys(names))[:800]
        asked = questions(bank, rng, 300)
        figures["documents"] = bank.catalog.counts().documents
        figures["ls"] = timed((lambda n=n: bank.catalog.page("default", n, 50)) for n in rng.sample(range(last), 100))
        figures["delete"] = timed((lambda name=name: bank.delete([name])) for name in names[:200])
        encoded = latents(TINY, 1)
        changed = [Document(name, f"changed {next(texts)}") for name in names[200:400]]
        figures["update"] = timed((lambda d=document: add_one(bank, d, encoded)) for document in changed)

        def after_deletes() -> Iterator[Callable[[], object]]:
            for name in names[400:450]:
                bank.delete([name])
                yield lambda: next_snapshot(reader)

        figures["snapshot after a delete"] = timed(after_deletes())
        scope, wide = Scope.parse({"project": "p7"}), Scope.parse({"n": {">=": num_documents // 10}})
        for name, filtered in (("filter", scope), ("filter, wide", wide)):
            figures[name] = timed(iter([lambda filtered=filtered: next_snapshot(reader, filtered)]))
            figures[f"{name}, next snapshots"] = timed((lambda f=filtered: next_snapshot(reader, f)) for _ in range(20))
        with reader.snapshot() as snapshot:
            figures["search"] = timed((lambda q=q: snapshot.search(q, 64)) for q in asked)
            figures["filtered search"] = timed((lambda q=q: snapshot.search(q, 64, scope)) for q in asked[:100])
    return figures


def single_adds(folder: Path, repeats: int) -> dict[str, object]:
    """Routing over what 1,000 single adds leave, and over the same in one segment."""
    rng = random.Random(0)
    many, one = MemoryBank.create(folder / "many", SMOLLM2), MemoryBank.create(folder / "one", SMOLLM2)
    documents = [(Document(f"d{n}", f"text {n}"), latents(SMOLLM2, rng.randint(1, 4))) for n in range(SINGLE_ADDS)]
    adds = timed((lambda d=d, e=e: add_one(many, d, e)) for d, e in documents)
    with one.writer() as writer:
        for document, encoded in documents:
            (document_id,) = writer.reserve_ids(1)
            writer.add(NewSource(document, (NewDocument(document_id, Span(0, 4), 4),)), [encoded])
        writer.commit()
    query_BTHD, mask_BT = torch.randn(1, 32, 9, 64), torch.ones(1, 32, dtype=torch.bool)

    def route(bank: MemoryBank) -> None:
        with bank.snapshot() as snapshot:
            memory = LocalMemory(snapshot.shards, SMOLLM2, 16, selectable_N=snapshot.selectable_mask())
            for layer in SMOLLM2.msa_layers:
                memory.route(layer, query_BTHD, mask_BT)

    times: dict[str, list[float]] = {"many": [], "one": []}
    for _ in range(repeats):
        for name, bank in (("many", many), ("one", one)):
            started = time.perf_counter()
            route(bank)
            times[name].append(1000 * (time.perf_counter() - started))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {
        "single add": adds,
        "segments": many.catalog.counts().segments,
        "routing, one segment": medians["one"],
        "routing, after single adds": medians["many"],
        "ratio": medians["many"] / medians["one"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--texts", type=Path, help="JSON lines with a key `text`, instead of made-up words")
    parser.add_argument("--folder", type=Path, help="keep the large bank here, or use the one that is here")
    parser.add_argument("--repeats", type=int, default=15)
    add_json(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)
    texts = given_texts(options.texts) if options.texts else made_up_texts(rng)
    with tempfile.TemporaryDirectory() as scratch:
        figures: dict[str, object] = {"adds": single_adds(Path(scratch), options.repeats)}
        figures["growth"] = growth(options.folder or Path(scratch) / "growth", texts, options.documents, rng)
    for part, values in figures.items():
        assert isinstance(values, dict)
        print(f"{part} (milliseconds)")
        for name, value in values.items():
            shown = (
                "  ".join(f"{key} {number:.2f}" for key, number in value.items()) if isinstance(value, dict) else value
            )
            print(f"  {name:<28}{shown}")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
