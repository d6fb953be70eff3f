"""Signals that ask a command to end, what `add` keeps then, and what is left to be encoded later."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from command import memspan

from memspan.bank.bank import MemoryBank
from memspan.bank.verify import verify
from memspan.cli.process import stop_flag
from memspan.model.convert import convert

CATCHABLE = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


@pytest.mark.parametrize("name", CATCHABLE)
def test_every_signal_asks_for_a_clean_stop_and_gives_the_exit_code(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stop_flag() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set() and stop.code == 128 + number
    assert signal.getsignal(number) is before
    assert "run the same command again to continue" in capsys.readouterr().err


@pytest.mark.parametrize("second", CATCHABLE)
@pytest.mark.parametrize("first", CATCHABLE)
def test_only_a_second_ctrl_c_interrupts_at_once_and_the_first_signal_gives_the_code(first: str, second: str) -> None:
    """A terminal that closes, or a supervisor, may send several."""
    with stop_flag() as stop:
        signal.raise_signal(getattr(signal, first))
        if second == "SIGINT":
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        else:
            signal.raise_signal(getattr(signal, second))
        assert stop.code == 128 + getattr(signal, first)


@pytest.mark.parametrize("name", CATCHABLE)
def test_a_signal_that_is_ignored_stays_ignored(name: str) -> None:
    """As SIGHUP under nohup."""
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with stop_flag() as stop:
            signal.raise_signal(number)
            assert not stop.is_set()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_stop_that_another_rank_was_asked_for_exits_as_by_ctrl_c() -> None:
    with stop_flag() as stop:
        assert stop.code == 130


def test_the_message_is_shown_once_and_not_at_all_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with stop_flag("saying so"):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    with stop_flag(""):
        signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err == "saying so\n"


# --- processes ------------------------------------------------------------------------------------------------------

# A command that stops at its first progress of a stage, and goes on when it is written a line.
PROGRAM = """
import sys
from memspan.__main__ import main
from memspan.cli import render
shown, stage, seen = render.AddProgress.__call__, sys.argv.pop(1), []
def show(self, report):
    shown(self, report)
    if not seen and (stage == "texts" or report.documents):
        seen.append(report)
        print("it waits", file=sys.stderr, flush=True)
        sys.stdin.readline()
render.AddProgress.__call__ = show
main()
"""
SENT = {"SIGINT": "SIGINT", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP", "SIGBREAK": "CTRL_BREAK_EVENT"}
SENDABLE = [name for name in CATCHABLE if os.name != "nt" or name == "SIGBREAK"]
RECORDS = 60


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Records of several batches of encoding."""
    path = tmp_path / "many.jsonl"
    lines = [{"id": f"r{number}", "text": f"Record {number} says {'word ' * 40}"} for number in range(RECORDS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@contextlib.contextmanager
def waiting(stage: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, once it waits in a stage. It is killed if it does not end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows: it can be sent Ctrl-Break alone
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, stage, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        creationflags=flags,
    )
    try:
        assert process.stderr is not None
        assert any("it waits" in line for line in process.stderr), "it ended before"
        yield process
    finally:
        process.kill()
        process.communicate()


def _end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate("\n", timeout=120)
    assert "Traceback" not in err and "leaked" not in err
    return process.returncode, out


def _counts(bank: Path) -> tuple[int, int]:
    """Sources, and documents that are not encoded; the bank is sound."""
    with closing(MemoryBank.open(bank)) as opened:
        assert verify(opened) == []
        return opened.catalog.counts().sources, opened.catalog.counts().pending


_QUICK = ("SIGTERM", "encoding")


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        pytest.param(name, stage, marks=() if (name, stage) == _QUICK else pytest.mark.slow)
        for name in SENDABLE
        for stage in ("texts", "encoding")
    ],
)
def test_a_process_that_is_asked_to_end_keeps_what_is_done_and_exits_with_the_signals_code(
    name: str, stage: str, records: Path, tmp_path: Path
) -> None:
    with waiting(stage, "add", tmp_path / "bank", records) as process:
        process.send_signal(getattr(signal, SENT[name]))
        code, out = _end_of(process)
    assert code == 128 + getattr(signal, name) and "stopped: " in out
    sources, pending = _counts(tmp_path / "bank")
    assert sources == RECORDS and (pending == RECORDS if stage == "texts" else 0 < pending < RECORDS)
    report = memspan("encode", tmp_path / "bank", "--json").json
    assert (report["documents"], report["pending"]) == (pending, 0)
    assert _counts(tmp_path / "bank") == (RECORDS, 0)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["add", "encode"])
def test_a_process_that_is_killed_while_it_encodes_loses_no_text(command: str, records: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    if command == "encode":
        memspan("add", bank, records, "--later")
    with waiting("encoding", command, bank, *([records] if command == "add" else [])) as process:
        process.kill()
        process.wait(60)
    assert _counts(bank) == (RECORDS, RECORDS)
    assert memspan("add", bank, records, "--json").json["documents"] == RECORDS
    assert _counts(bank) == (RECORDS, 0)


@pytest.mark.slow
def test_reencode_and_import_stop_as_add_does(records: Path, plain: Path, tmp_path: Path) -> None:
    bank, lines, copy = tmp_path / "bank", tmp_path / "lines.jsonl", tmp_path / "copy"
    memspan("add", bank, records, "--later")
    memspan("export", bank, lines)
    first, second = SENDABLE[0], SENDABLE[:2][-1]
    with waiting("encoding", "import", lines, copy) as process:
        process.send_signal(getattr(signal, SENT[first]))
        assert _end_of(process)[0] == 128 + getattr(signal, first)
    sources, pending = _counts(copy)
    assert sources == RECORDS and 0 < pending < RECORDS
    again = memspan("import", lines, copy, "--json").json
    assert (again["unchanged"], again["documents"], again["pending"]) == (RECORDS, pending, 0)
    other = tmp_path / "other"
    convert(str(plain), other, dtype=torch.float32, chunk_size=8, top_k_docs=2)
    with waiting("encoding", "reencode", copy, "--model", other) as process:
        process.send_signal(getattr(signal, SENT[second]))
        assert _end_of(process)[0] == 128 + getattr(signal, second)
    assert memspan("reencode", copy, "--model", other, "--json").json["updated"] < RECORDS
    assert _counts(copy) == (RECORDS, 0)


# --- what is left for later -----------------------------------------------------------------------------------------


def test_what_is_left_for_later_is_told_everywhere(records: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    done = memspan("add", bank, records, "--later")
    assert done.code == 0 and f"done: {RECORDS} added" in done.out
    assert f"note: {RECORDS} documents are not encoded yet" in done.err and f"memspan encode {bank}" in done.err
    assert memspan("info", bank, "--json").json["pending"] == RECORDS
    asked = memspan("ask", bank, "What does Record 7 say?", "--max-new-tokens", 2)
    assert f"{RECORDS} documents not encoded yet: found by words only" in asked.out
    assert memspan("ask", bank, "What does Record 7 say?", "--max-new-tokens", 2, "--json").json["pending"] == RECORDS
    assert "documents are not encoded yet" in memspan("search", bank, "Record 7", "--selector", "hybrid").err
    assert {found["tokens"] for found in memspan("ls", bank, "--json").json} == {0}
    refused = memspan("search", bank, "Record 7", "--selector", "router")
    assert refused.code == 1 and f"memspan encode {bank}" in refused.err
    encoded = memspan("encode", bank)
    assert encoded.code == 0 and f"{RECORDS} documents" in encoded.out and "note:" not in encoded.err
    assert memspan("info", bank, "--json").json["pending"] == 0
    assert "not encoded" not in memspan("ask", bank, "What does Record 7 say?", "--max-new-tokens", 2).out


def test_encode_takes_namespaces_and_names_a_bank_that_is_not_there(records: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    for namespace in ("a", "b"):
        memspan("add", bank, records, "--later", "-n", namespace)
    assert memspan("encode", bank, "-n", "a", "--json").json["documents"] == RECORDS
    assert memspan("info", bank, "--json").json["pending"] == RECORDS
    assert memspan("encode", bank, "--json").json["documents"] == RECORDS
    missing = memspan("encode", tmp_path / "nowhere")
    assert missing.code == 1 and "there is no bank" in missing.err
