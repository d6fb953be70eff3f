"""A server publishes its bank after every change, and servers of the URL follow it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import faulty_store
import pytest
from faulty_store import faulty
from serving import client, error_of, process, serving, wait_for

from memspan.bank import mirror, store
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.publication import read_latest
from memspan.bank.publish import publish
from memspan.bank.store import Store
from memspan.bank.texts import TextBank
from memspan.errors import BankError, BankMismatch, MemspanError, ReadOnlyBank, StoreError
from memspan.model.convert import LoadedModel
from memspan.serve import publishing
from memspan.serve.publishing import Publishing
from memspan.types import Document

URL = "faulty://shelf/notes"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(store, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(publishing, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(publishing, "_AGAIN_SECONDS", 0.01)
    faulty_store.reset()
    yield
    faulty_store.reset()


@pytest.fixture
def bank(tmp_path: Path, loaded: LoadedModel) -> Iterator[MemoryBank]:
    with closing(MemoryBank.create(tmp_path / "bank", manifest_of(loaded))) as made:
        yield made


def _commit(url: str) -> int:
    found = read_latest(Store(url))
    return -1 if found is None else found.edition.commit


@pytest.mark.parametrize("kind", ["a folder", "a URL"])
def test_servers_of_the_url_follow_the_server_that_writes(loaded: LoadedModel, tmp_path: Path, kind: str) -> None:
    """From an empty bank on: memories that are added, changed and deleted over HTTP, latents, and an import."""
    url = str(tmp_path / "published") if kind == "a folder" else URL
    with serving(loaded, f"notes={tmp_path / 'bank'}", publish=url) as (_, writer), client(writer) as written:
        wait_for(lambda: _commit(url) >= 0)
        with serving(loaded, f"notes={url}") as (_, reader), client(reader) as read:

            def has(*ids: str) -> bool:
                return [one["id"] for one in read.get("/v1/memories").raise_for_status().json()["data"]] == [*ids]

            assert has(), "an empty bank is published, too"
            written.post("/v1/memories", json={"id": "otter", "text": "The otter lives in Rome."}).raise_for_status()
            wait_for(lambda: has("otter"))
            asked = {"query": "Where does the otter live?", "selector": "router"}
            wait_for(lambda: read.post("/v1/memories/search", json=asked).json().get("data"))
            written.patch("/v1/memories/otter", json={"text": "The otter lives in Oslo."}).raise_for_status()
            wait_for(lambda: "Oslo" in read.get("/v1/memories/otter").text)
            error_of(read.delete("/v1/memories/otter"), 403)
            many = [{"id": f"{n}", "text": f"The heron {n} of Quito."} for n in range(70)]
            written.post("/v1/imports", json={"memories": many}).raise_for_status()
            written.delete("/v1/memories/otter").raise_for_status()
            wait_for(lambda: len(read.get("/v1/memories", params={"limit": 100}).json()["data"]) == 70)
            assert read.get("/v1/memories/otter").status_code == 404


def test_changes_of_other_processes_are_published_and_an_unchanged_bank_is_not(
    bank: MemoryBank, loaded: LoadedModel, tmp_path: Path
) -> None:
    add_documents(bank, loaded, [Document("otter", "The otter of Rome.")])
    with closing(Publishing(bank, URL)):
        wait_for(lambda: _commit(URL) == bank.catalog.commits())
        first = read_latest(Store(URL))
        with closing(TextBank.open(bank.folder)) as another:
            another.delete(["otter"])
        wait_for(lambda: _commit(URL) == bank.catalog.commits())
    second = read_latest(Store(URL))
    assert first is not None and second is not None and second.edition.number == first.edition.number + 1
    with closing(Publishing(bank, URL)):
        wait_for(lambda: read_latest(Store(URL)) == second)
    assert read_latest(Store(URL)) == second, "the next start finds nothing to do"


def test_a_store_that_fails_is_tried_again_and_named_once(
    bank: MemoryBank, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(Publishing(bank, URL)), caplog.at_level(logging.WARNING):
        wait_for(lambda: _commit(URL) == bank.catalog.commits())
        faults = itertools.count()

        def fail(name: str) -> None:
            if next(faults) < 9:
                raise OSError("the store is down")

        with faulty(on_write=fail):
            add_documents(bank, loaded, [Document("otter", "The otter of Rome.")])
            wait_for(lambda: _commit(URL) == bank.catalog.commits())
    told = [record.getMessage() for record in caplog.records if "is not published" in record.getMessage()]
    assert next(faults) > 9 and len(told) == len(set(told)) >= 1 and all("the store is down" in one for one in told)


def test_a_bank_that_is_closed_while_it_is_published_is_closed_and_readers_keep_the_edition_before(
    bank: MemoryBank, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishes = publishing.publish
    reached: list[int] = []

    def slowly(bank: TextBank, url: str, **options: Any) -> Any:
        check = options.pop("progress")

        def progress(done: int, total: int) -> None:
            reached.append(done)
            wait_for(lambda: behind._stopping.is_set())
            check(done, total)

        return publishes(bank, url, progress=progress, **options)

    before = publish(bank, URL).commit
    add_documents(bank, loaded, [Document("otter", "The otter of Rome.")])
    monkeypatch.setattr(publishing, "publish", slowly)
    behind = Publishing(bank, URL)
    wait_for(lambda: reached)
    behind.close()
    assert len(reached) == 1 and _commit(URL) == before < bank.catalog.commits()
    assert publish(bank, URL).commit == bank.catalog.commits()


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("in the bank", BankError),
        ("other files", BankError),
        ("another bank", BankMismatch),
        ("no such kind", StoreError),
        ("nothing", StoreError),
        ("a published bank", ReadOnlyBank),
    ],
)
def test_a_place_where_it_cannot_be_published_is_refused_at_the_start(
    loaded: LoadedModel, tmp_path: Path, what: str, error: type[MemspanError]
) -> None:
    url, given = str(tmp_path / "there"), tmp_path / "bank"
    MemoryBank.create(given, manifest_of(loaded)).close()
    if what == "in the bank":
        url = str(given / "published")
    elif what == "other files":
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "letter.txt").write_text("dear", encoding="utf-8")
    elif what == "another bank":
        with closing(MemoryBank.create(tmp_path / "second", manifest_of(loaded))) as second:
            publish(second, url)
    elif what == "no such kind":
        url = "spork://there"
    elif what == "nothing":
        url = ""
    else:
        with closing(MemoryBank.open(given)) as bank:
            publish(bank, str(tmp_path / "first"))
        given = tmp_path / "first"
    with pytest.raises(error), serving(loaded, f"notes={given}", publish=url):
        pass
    with closing(MemoryBank.open(tmp_path / "bank")) as bank, bank.locked():
        pass  # it was closed, and nothing holds it


def test_of_several_banks_the_first_is_published(loaded: LoadedModel, tmp_path: Path) -> None:
    with serving(loaded, f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", publish=URL) as (_, address):
        with client(address) as http:
            body = {"id": "otter", "text": "The otter lives in Rome."}
            http.post("/v1/memories", json={**body, "bank": "b"}).raise_for_status()
            http.post("/v1/memories", json={**body, "id": "heron", "bank": "a"}).raise_for_status()
        with closing(TextBank.open(tmp_path / "a")) as first:
            wait_for(lambda: _commit(URL) >= first.catalog.commits())
        with closing(TextBank.open(URL)) as read, read.pinned_catalog() as catalog:
            assert catalog.external_ids("default") == ["heron"]


@pytest.mark.slow
def test_the_command_publishes(endless_checkpoint: Path, tmp_path: Path) -> None:
    url = tmp_path / "published"
    with process(endless_checkpoint, tmp_path / "bank", "--publish", url) as (_, address), client(address) as http:
        http.post("/v1/memories", json={"id": "otter", "text": "The otter lives in Rome."}).raise_for_status()
        wait_for(lambda: _commit(str(url)) >= 1)
