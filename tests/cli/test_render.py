from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from memspan.cli import render
from memspan.types import AddReport, Answer, Document, Evidence, Span


def _evidence(**changes: Any) -> Evidence:
    values: dict[str, Any] = {
        "document_id": 7,
        "external_id": "notes/a.txt",
        "title": "A title",
        "text": "First line\nand more of it",
        "span": Span(10, 35),
        "score": 1.234,
        "layers": None,
        "metadata": {"kind": "note", "nested": {"list": [1, None]}},
        "date": "2024-01-31T08:00:00",
    }
    return Evidence(**(values | changes))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Both consoles on one terminal of 80 columns."""
    written = io.StringIO()
    for name in ("out", "err"):
        console = Console(file=written, force_terminal=True, width=80, color_system=None, _environ={})
        monkeypatch.setattr(render, name, console)
    return written


@pytest.mark.parametrize(
    "num_bytes, shown",
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1536, "1.54 KB"),
        (256e6, "256 MB"),
        (2.5e9, "2.5 GB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_sizes_for_people(num_bytes: float, shown: str) -> None:
    assert render.size(num_bytes) == shown


@pytest.mark.parametrize(
    "seconds, shown",
    [(0, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (90000, "25.0 h")],
)
def test_durations_for_people(seconds: float, shown: str) -> None:
    assert render.duration(seconds) == shown


def test_json_holds_everything_of_nested_dataclasses(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("q?", "naïve 日本", (_evidence(),), "lexical", "stop", 12, 3, {"select": 0.5})
    render.as_json({"answers": [answer], "document": Document("id", "text", metadata={"k": (1, 2)})})
    written = capsys.readouterr().out
    assert written.endswith("}\n") and written.count("\n") == 1
    assert "naïve 日本" in written, "text stays readable"
    values = json.loads(written)
    assert values["document"] == {
        "external_id": "id",
        "text": "text",
        "title": "",
        "metadata": {"k": [1, 2]},
        "date": None,
        "expires": None,
        "pinned": None,
    }
    (found,) = values["answers"]
    assert found["evidence"][0]["span"] == {"start": 10, "end": 35}
    assert found["evidence"][0]["metadata"] == {"kind": "note", "nested": {"list": [1, None]}}
    assert set(found) == set(Answer.__slots__)


def test_what_came_from_other_ranks_stands_under_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    for received, end in ((0, "select 0.50 s\n"), (2_340_000, "select 0.50 s; 2.34 MB from other ranks\n")):
        answer = Answer("q?", "a", (), "router", "stop", 12, 3, {"select": 0.5}, received_bytes=received)
        render.answer_footer(answer)
        assert capsys.readouterr().out == f"  selector router; 12 + 3 tokens; {end}"


def test_json_has_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    """Metadata of documents added through the library may hold such floats."""
    render.as_json(_evidence(score=float("inf"), metadata={"weight": [float("nan"), 1.5]}))
    values = json.loads(capsys.readouterr().out)
    assert (values["score"], values["metadata"]) == (None, {"weight": [None, 1.5]})


def test_an_evidence_line_names_place_id_source_score_and_layers() -> None:
    assert render.evidence_line(2, _evidence()) == "2. [7] A title  (notes/a.txt[10:35], 2024-01-31, score 1.23)"
    routed = render.evidence_line(1, _evidence(title="", layers=3))
    assert routed == "1. [7] First line and more of it  (notes/a.txt[10:35], 2024-01-31, score 1.23, 3 MSA layers)"


def test_fields_are_aligned_and_never_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    render.fields({"a": "[bold]x[/bold]", "longer": [1, 2]})
    assert capsys.readouterr().out == "a       [bold]x[/bold]\nlonger  [1, 2]\n"


def test_a_table_is_tab_separated_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    render.table(("id", "name"), [(1, "[red]a"), (2, long)])
    assert capsys.readouterr().out == f"1\t[red]a\n2\t{long}\n"


def test_text_of_documents_and_answers_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "see :key: and a:cat:b, :smile:"
    render.fields({"a": text})
    render.out.print(text)
    render.err.print(f"skipped docs/{text}: empty")
    captured = capsys.readouterr()
    assert captured.out == f"a  {text}\n{text}\n"
    assert captured.err == f"skipped docs/{text}: empty\n"


def test_a_table_on_a_terminal_has_its_columns_named(terminal: io.StringIO) -> None:
    render.table(("id", "name"), [(1, "first"), (2, "second")])
    lines = [line.split() for line in terminal.getvalue().splitlines()]
    assert lines == [["id", "name"], ["1", "first"], ["2", "second"]]


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with render.AddProgress(lambda: 1000) as progress:
        for tokens, characters in ((19_999, 100), (20_000, 200), (39_999, 300), (40_000, 500)):
            progress(AddReport(documents=tokens // 1000, tokens=tokens, characters=characters, seconds=4.0))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "20 documents, 5,000 tokens/s, 16 s left",
        "40 documents, 10,000 tokens/s, 4 s left",
    ]


def test_progress_of_an_unknown_total_promises_no_end(capsys: pytest.CaptureFixture[str]) -> None:
    with render.AddProgress(lambda: None) as progress:
        progress(AddReport(documents=5, tokens=20_000, characters=100, seconds=2.0))
    assert capsys.readouterr().err == "5 documents, 10,000 tokens/s\n"


def test_progress_on_a_terminal_is_a_bar(terminal: io.StringIO) -> None:
    with render.AddProgress(lambda: 1000) as progress:
        progress(AddReport(documents=5, tokens=100, characters=500, seconds=2.0))
    assert "5 documents, 50 tokens/s" in terminal.getvalue()
    assert "50%" in terminal.getvalue()
