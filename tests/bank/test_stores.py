"""Published banks over a network: an S3-compatible server, and a web server that gives ranges; both on loopback."""

from __future__ import annotations

import functools
import http.server
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import fill, read_bank, tiny_manifest

from memspan.bank import coarse, mirror, shard, store
from memspan.bank.bank import MemoryBank
from memspan.bank.publish import publish
from memspan.errors import StoreError
from memspan.places import BankPlace

MANIFEST = tiny_manifest()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(coarse, "LEAST_KEYS_BYTES", 1)
    monkeypatch.setattr(shard, "_SMALL_KEYS_BYTES", 1)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    bank = MemoryBank.create(tmp_path / "bank", MANIFEST)
    fill(bank, "otter", "heron")
    yield bank
    bank.close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3-compatible server."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    name = f"shelf-{uuid.uuid4().hex}"  # a server's buckets stay until the process ends
    s3fs.S3FileSystem().mkdir(name)
    yield name
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_bank_is_published_to_a_bucket_and_followed(bank: MemoryBank, tmp_path: Path, bucket: str) -> None:
    url = f"s3://{bucket}/notes/here"
    assert publish(bank, url).is_new and not publish(bank, url).uploaded_files
    reader = MemoryBank.open(BankPlace(url, tmp_path / "cache"))
    assert read_bank(reader) == read_bank(bank)
    for number in range(3):
        fill(bank, f"crane {number}")
        bank.compact(secure=True)
        done = publish(bank, url, keep=1)
        assert done.is_new and done.removed_files
        with reader.snapshot() as snapshot:
            assert snapshot.num_documents == 3 + number
        assert read_bank(reader) == read_bank(bank)
    reader.close()


def test_a_bucket_that_is_not_there_is_named_and_not_made(bank: MemoryBank, tmp_path: Path, bucket: str) -> None:
    with pytest.raises(StoreError, match="s3://nowhere/notes"):
        publish(bank, "s3://nowhere/notes")
    with pytest.raises(StoreError, match="s3://nowhere/notes"):
        MemoryBank.open(BankPlace("s3://nowhere/notes", tmp_path / "cache"))
    import s3fs

    found = s3fs.S3FileSystem().ls("")
    assert bucket in found and "nowhere" not in found


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Gives files, and the byte ranges of them that are asked for."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data, wanted = path.read_bytes(), re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data if wanted is None else data[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(200 if wanted is None else 206)
        if wanted is not None:
            self.send_header("Content-Range", f"bytes {wanted[1]}-{wanted[2]}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_bank_is_read_from_a_web_server(bank: MemoryBank, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    publish(bank, str(tmp_path / "shared"))
    with serving(tmp_path / "shared") as url:
        reader = MemoryBank.open(BankPlace(url, tmp_path / "cache"))
        assert read_bank(reader) == read_bank(bank)
        fill(bank, "crane")
        publish(bank, str(tmp_path / "shared"))
        assert read_bank(reader) == read_bank(bank) or read_bank(reader) == read_bank(bank)
        with pytest.raises(StoreError, match=rf"{url}"):
            publish(bank, url)
    assert read_bank(reader) == read_bank(bank), "the server is gone; what was read stays"
    with pytest.raises(StoreError, match=rf"cannot read latest\.json from {url}"):
        MemoryBank.open(BankPlace(url, tmp_path / "elsewhere"))
    reader.close()
