"""A published bank of made-up latents: seconds of publishing it, and of the first question over it with an empty cache.

    python benchmarks/publish.py [--chunks 60000] [--documents 20000] [--url URL] [--json FILE]

Without a URL the bank is published to a folder, and a web server in another process serves it over loopback. The
question is routed in every MSA layer, and the content and texts of the selected documents are read; the model is left
out. 60,000 chunks at the default model's shapes are 1 GB. The catalog also holds `--documents` short notes without
latents. At last comes a commit, and the bytes that an open reader fetches for it.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import multiprocessing
import random
import re
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from plots import add_json, write_json

from memspan.bank.bank import MemoryBank
from memspan.bank.edits import NewSource, add_sources
from memspan.bank.folder import WrittenSegments
from memspan.bank.publish import publish
from memspan.bank.store import Store
from memspan.bank.synthetic import SHAPES, synthetic_manifest, write_synthetic
from memspan.places import BankPlace
from memspan.routing.local import LocalMemory
from memspan.types import Document


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Gives files, and byte ranges of them; connections stay open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, wanted = (
            Path(self.translate_path(self.path)),
            re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")),
        )
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        first, last = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last - first + 1))

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path, port: Any) -> None:
    """Give a folder over loopback until the process is ended."""
    handler = functools.partial(Ranges, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port.send(server.server_address[1])
        server.serve_forever()


def write_bank(folder: Path, num_chunks: int, num_documents: int) -> MemoryBank:
    """A bank of latents, and of notes that are not encoded."""
    bank = write_synthetic(folder, synthetic_manifest("smollm2-135m"), num_chunks, chunks_per_document=4)
    chooser = random.Random(0)
    words = [" ".join(f"word{chooser.randrange(20_000)}" for _ in range(60)) for _ in range(200)]
    notes = [Document(f"note {number}", words[number % 200]) for number in range(num_documents)]
    with bank.locked():
        add_sources(bank.catalog, "default", [NewSource(note, ()) for note in notes], WrittenSegments([], []))
    return bank


def ask(bank: MemoryBank, seed: int) -> int:
    """Route a question in every layer, and read the selected documents; gives how many there were."""
    _, _, head_dim, num_heads = SHAPES["smollm2-135m"]
    generator = torch.Generator().manual_seed(seed)
    query_BTHD = torch.randn(1, 12, num_heads, head_dim, generator=generator)
    with bank.snapshot() as snapshot:
        memory = LocalMemory(snapshot.shards, bank.manifest, 16, tiers=snapshot.tiers)
        found = {
            document_id
            for layer in bank.manifest.msa_layers
            for document_id in memory.route(layer, query_BTHD, torch.ones(1, 12, dtype=torch.bool)).doc_ids[0]
        }
        snapshot.search("word17 word18", 10)
        return len(snapshot.documents(sorted(found)))


class Counted:
    """What was read of a store, counted: replaces `Store.read_ranges` and `Store.read`."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        self._ranges, self._read = Store.read_ranges, Store.read
        Store.read_ranges = self._counted(self._ranges)  # type: ignore[method-assign]
        Store.read = self._counted(self._read)  # type: ignore[method-assign]

    def _counted(self, read: Any) -> Any:
        def counted(store: Store, asked: Any) -> Any:
            found = read(store, asked)
            self.requests += len(found)
            self.bytes += sum(len(data or b"") for data in found)
            return found

        return counted

    def taken(self) -> dict[str, int]:
        """Since it was last asked."""
        found = {"requests": self.requests, "bytes": self.bytes}
        self.requests = self.bytes = 0
        return found


def timed(call: Any) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = call()
    return result, round(time.perf_counter() - begin, 2)


def measure(scratch: Path, num_chunks: int, num_documents: int, url: str | None) -> dict[str, Any]:
    """Seconds, requests and bytes."""
    here, port = multiprocessing.get_context("spawn").Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(scratch / "shared", port), daemon=True)
    server.start()
    readers_url = url or f"http://127.0.0.1:{here.recv()}"
    counted = Counted()
    with closing(write_bank(scratch / "bank", num_chunks, num_documents)) as bank:
        done, seconds = timed(lambda: publish(bank, url or str(scratch / "shared")))
        found: dict[str, Any] = {"bytes": done.uploaded_bytes, "published": seconds}
        counted.taken()
        reader, opened = timed(lambda: MemoryBank.open(BankPlace(readers_url, scratch / "cache")))
        with closing(reader):
            documents, asked = timed(lambda: ask(reader, 0))
            found["first"] = {"opened": opened, "asked": asked, "documents": documents, **counted.taken()}
            again = [timed(lambda seed=seed: ask(reader, seed))[1] for seed in range(1, 6)]
            found["another"] = {"asked": sorted(again)[2], **counted.taken()}
            with bank.locked():
                note = Document("one more", "a note about the otter")
                add_sources(bank.catalog, "default", [NewSource(note, ())], WrittenSegments([], []))
            _, found["published_again"] = timed(lambda: publish(bank, url or str(scratch / "shared")))
            time.sleep(1.1)  # a reader looks once a second
            counted.taken()
            found["followed"] = {"asked": timed(lambda: ask(reader, 7))[1], **counted.taken()}
            assert reader.catalog.source("default", "one more") is not None
    server.terminate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=60_000)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--url", help="of an empty place, as s3://bucket/bench")
    add_json(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), options.chunks, options.documents, options.url)
    for name, value in found.items():
        print(f"{name:16} {value}")
    write_json(options.json, found)


if __name__ == "__main__":
    main()
