"""`memspan commit`: manifests of what other processes encoded."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from command import failed, memspan

from memspan.bank.encoder import Encoder, encoding_tasks
from memspan.bank.texts import TextBank


@pytest.fixture
def encoded(notes: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A bank of texts, and the lines of a manifest of all of them."""
    bank = tmp_path / "texts"
    assert memspan("add", bank, notes, "--later").code == 0
    encoder = Encoder(bank=bank, device="cpu")  # the model that the bank remembers
    with closing(TextBank.open(bank)) as texts:
        tasks = list(encoding_tasks(texts, encoder.loaded, batch_tokens=30))
    return bank, [json.dumps(row) for task in tasks for row in encoder(task)]


def test_manifests_are_committed_once_and_say_what_was_done(
    encoded: tuple[Path, list[str]], bank: Path, tmp_path: Path
) -> None:
    folder, lines = encoded
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    second.write_text("\n", encoding="utf-8")
    wanted = {"documents": 3, "before": 0, "gone": 0, "pending": 0}
    assert memspan("commit", folder, first, second, "--json").json == wanted
    assert memspan("commit", folder, "-", "--json", stdin="\n".join(lines)).json == {
        **wanted,
        "documents": 0,
        "before": 3,
    }
    assert memspan("verify", folder).code == 0
    found = memspan("search", folder, "otter", "--selector", "router", "--json").json
    assert {one["external_id"] for one in found} >= {"notes/otter.txt"}


def test_what_cannot_be_committed_is_named(encoded: tuple[Path, list[str]], bank: Path, tmp_path: Path) -> None:
    folder, lines = encoded
    manifest = tmp_path / "rows.jsonl"
    assert "cannot read" in failed("commit", folder, tmp_path / "none.jsonl")
    assert "cannot read" in failed("commit", folder, tmp_path)
    for damaged in (b"{", b"\xff\xfe", lines[0].encode()[:-5]):
        manifest.write_bytes(lines[0].encode() + b"\n" + damaged)
        assert f"line 2 of {manifest}" in failed("commit", folder, manifest)
    manifest.write_text("\n".join(lines), encoding="utf-8")
    assert "another bank" in failed("commit", bank, manifest)
    assert "there is no bank" in failed("commit", tmp_path / "nowhere", manifest)
    assert memspan("ls", folder, "--json").json[0]["chunks"] == 0, "nothing was committed"
    assert memspan("commit", folder, manifest).code == 0
