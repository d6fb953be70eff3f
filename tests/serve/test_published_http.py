"""A server of a published bank: it answers, follows, and refuses changes by name."""

from __future__ import annotations

from pathlib import Path

import httpx2 as httpx
import pytest
from serving import serving

from memspan.bank import mirror
from memspan.bank.add import add_documents
from memspan.bank.bank import MemoryBank
from memspan.bank.encode import manifest_of
from memspan.bank.publish import publish
from memspan.model.convert import LoadedModel
from memspan.types import Document


@pytest.mark.parametrize("kind", ["a folder", "a URL", "a URL with a name"])
def test_a_published_bank_is_served_and_not_changed(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("MEMSPAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "POLL_SECONDS", 0.0)
    bank = MemoryBank.create(tmp_path / "bank", manifest_of(loaded))
    add_documents(bank, loaded, [Document("otter", "The otter of Rome lives at number seven.")])
    url = str(tmp_path / "notes") if kind == "a folder" else (tmp_path / "notes").as_uri()
    publish(bank, url)
    given = f"shelf={url}" if "name" in kind else url
    with serving(loaded, given) as (_, address), httpx.Client(base_url=address, timeout=60) as client:
        name = "shelf" if "name" in kind else "notes"
        assert [model["id"] for model in client.get("/v1/models").json()["data"]][:1] == [f"memspan/{name}"]
        asked = {"query": "otter", "selector": "lexical"}
        found = client.post("/v1/memories/search", json=asked).raise_for_status().json()
        assert "otter" in str(found)
        memories = {"text": "The heron of Oslo."}, {"memories": [{"text": "The heron of Oslo."}]}
        refused = [
            client.post("/v1/memories", json=memories[0]),
            client.post("/v1/imports", json=memories[1]),
            client.patch("/v1/memories/otter", json={"title": "x"}),
            client.delete("/v1/memories/otter"),
        ]
        assert [(one.status_code, one.json()["error"]["code"]) for one in refused] == [(403, "read_only")] * 4
        assert all(str(tmp_path) not in one.text for one in refused)
        add_documents(bank, loaded, [Document("heron", "The heron of Oslo lives at number nine.")])
        publish(bank, url)
        assert "heron" in client.get("/v1/memories").raise_for_status().text
    bank.close()
