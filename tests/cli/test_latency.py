"""`memspan bench latency` on a tiny model (chunks of 4 tokens, 2 of 4 layers)."""

from __future__ import annotations

import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from command import Done, failed, memspan

from memspan.bench.latency import ratio_of
from memspan.eval.scale import parse_sizes
from memspan.routing.local import SourceMemory

STAGES = {"select", "prefill", "routing", "fetch", "other"}


def latency(folder: Path, *more: object, tokens: str = "40,400") -> Done:
    sizes = ("--tokens", tokens, "--questions", 2, "--injected-tokens", 16, "--new-tokens", 4)
    done = memspan("bench", "latency", *sizes, "--folder", folder, "--json", *more)
    assert done.code == 0, done.err
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "banks"


def test_questions_go_the_way_of_ask_over_every_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routed: list[tuple[int, int]] = []
    real = SourceMemory.route

    def watched(self: SourceMemory, layer: int, *query: Any) -> Any:
        found = real(self, layer, *query)
        routed.append((layer, int(query[1].sum())))
        assert len(found.doc_ids[0]) == 2 and found.mask_BM.sum() == 4, "two documents of two chunks"
        return found

    monkeypatch.setattr(SourceMemory, "route", watched)
    done = latency(folder)
    figures = done.json
    assert [(point["tokens"], point["chunks"], point["documents"]) for point in figures["points"]] == [
        (40, 10, 5),
        (400, 100, 50),
    ]
    # Every layer routes for the choice of documents, and on demand for the answer, with the text that was put in.
    layers, questions = figures["msa_layers"], 2 * (1 + 2)
    assert [layer for layer, _ in routed] == layers * questions
    routed.clear()
    again = latency(folder, "--route-answer").json
    assert [layer for layer, _ in routed] == layers * 2 * questions
    for choice, answer in zip(routed[0::4], routed[2::4], strict=True):
        assert answer[1] >= choice[1] + 12
    assert all(point["stages"]["routing"]["least"] > 0 for point in again["points"])
    for point in figures["points"]:
        assert set(point["stages"]) == STAGES
        waited = point["first_token"]
        assert 0 < waited["least"] <= waited["median"] <= waited["most"]
        assert point["stages"]["routing"]["most"] < point["stages"]["select"]["least"]
        assert point["stages"]["fetch"]["least"] > 0
        parts = sum(stage["median"] for stage in point["stages"].values())
        assert parts == pytest.approx(waited["median"]), "two values: the medians add up as their means do"
    first, last = figures["points"]
    assert figures["ratio"]["from"] == 40 and figures["ratio"]["to"] == 400
    assert figures["ratio"]["first_token"] == last["first_token"]["median"] / first["first_token"]["median"]
    assert "making 2 banks" in done.err and "110 chunks" in done.err and "at most about" in done.err


def test_banks_are_made_once_and_what_was_not_finished_again(folder: Path) -> None:
    (folder / "2x32-40.partial").mkdir(parents=True)
    (folder / "2x32-40.partial" / "junk").write_text("of a run that was killed")
    assert "making 1 banks" in latency(folder, tokens="40").err
    assert sorted(path.name for path in folder.iterdir()) == ["2x32-40"]
    catalog = folder / "2x32-40" / "catalog.sqlite"
    made = catalog.stat().st_ino
    again = latency(folder, tokens="40")
    assert "making" not in again.err and catalog.stat().st_ino == made and again.json["ratio"] is None
    assert "made-up latents" in failed("ask", folder / "2x32-40", "who?"), "the refusal stays"


def test_a_bank_that_does_not_fit_is_refused(folder: Path, bank: Path) -> None:
    command = ("bench", "latency", "--tokens", "40", "--folder", folder, "--injected-tokens", 16)
    memspan("bench", "synth", folder / "2x32-40", "--chunks", 9)
    assert "has 9 made-up chunks, not 10" in failed(*command).splitlines()[-1]
    shutil.rmtree(folder / "2x32-40")
    memspan("bench", "synth", folder / "2x32-40", "--chunks", 10)
    assert "have msa_layers (15," in failed(*command)
    shutil.rmtree(folder / "2x32-40")
    shutil.copytree(bank, folder / "2x32-40")
    assert "a bank of documents" in failed(*command)


def test_a_full_disk_is_told_before_anything_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("memspan.bench.latency.shutil.disk_usage", lambda path: usage(10**9, 0, 10**6))
    message = failed("bench", "latency", "--tokens", "40,1m", "--folder", folder)
    assert "40, 1,000,000 tokens take 0.06 GB" in message and "0.00 GB free" in message
    assert not list(folder.iterdir())


def test_wrong_options_are_refused_before_the_model_is_loaded(
    folder: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*options: object) -> str:
        return failed("bench", "latency", "--folder", folder, *options)

    assert "--tokens must be one or more that grow" in refusal("--tokens", "1m,16k")
    assert "no size '16g'" in refusal("--tokens", "16g")
    assert "--questions" in refusal("--questions", 0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'memspan[eval]'" in refusal("--png", folder / "curve.png")
    assert not folder.exists()


def test_a_prompt_that_does_not_fit_is_refused(folder: Path) -> None:
    options = ("--tokens", "40", "--folder", folder, "--injected-tokens", 600)
    assert "the model has room for" in failed("bench", "latency", *options)
    assert not folder.exists()


def test_the_curve_is_drawn(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    latency(folder, "--png", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    shown = memspan("bench", "latency", "--tokens", "40,400", "--questions", 1, "--folder", folder)
    assert shown.out.startswith("tokens\tfirst token (s)") and "400\t" in shown.out
    assert "first token at 400 tokens over 40: " in shown.out


def test_the_largest_is_compared_with_a_million() -> None:
    points = [{"tokens": n, "first_token": {"median": s}} for n, s in ((16_000, 1.0), (10**6, 2.0), (10**8, 5.0))]
    found = ratio_of(points)
    assert found is not None and (found["from"], found["first_token"]) == (10**6, 2.5)
    assert parse_sizes("16k,1M", kilo=1000) == (16_000, 10**6)
