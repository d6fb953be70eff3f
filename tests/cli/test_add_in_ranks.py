"""`memspan add` in the processes that `torchrun` starts."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from command import memspan
from ranked import as_started_by_torchrun

from memspan.cli import app
from memspan.errors import BankError


def _in_ranks(ranks: int, *arguments: object) -> list[tuple[object, str, str]]:
    """Exit code, output and messages of the command in every rank."""

    def command() -> tuple[object, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                app([str(argument) for argument in arguments])
            except SystemExit as end:
                return end.code, out.getvalue(), err.getvalue()
        raise AssertionError("the command exits")

    return as_started_by_torchrun(command, ranks)


def _documents(bank: Path) -> list[dict[str, object]]:
    return [{**found, "date": ""} for found in memspan("ls", bank, "--json").json]


def test_ranks_make_the_bank_that_the_command_makes_alone(notes: Path, tmp_path: Path) -> None:
    assert memspan("add", tmp_path / "one", notes).code == 0
    first, second = _in_ranks(2, "add", tmp_path / "two", notes)
    assert first[0] == second[0] == 0
    assert first[1].startswith("done: 3 added") and second[1:] == ("", ""), "the first alone says anything"
    assert _documents(tmp_path / "two") == _documents(tmp_path / "one")
    assert memspan("verify", tmp_path / "two").code == 0
    assert _in_ranks(2, "add", tmp_path / "two", notes)[0][1].startswith("done: 0 added, 0 updated, 3 unchanged")


def test_an_error_of_the_first_rank_ends_all(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise BankError("the disk is full")

    monkeypatch.setattr("memspan.bank.add.remember", full)  # the first rank alone changes the bank
    first, second = _in_ranks(2, "add", tmp_path / "bank", notes)
    assert (first[0], second[0]) == (1, 1)
    assert "the disk is full" in first[2] and "rank 0 failed (BankError: the disk is full)" in second[2]


def test_a_missing_path_is_named_before_any_rank_waits_for_another(notes: Path, tmp_path: Path) -> None:
    for code, _, error in _in_ranks(2, "add", tmp_path / "bank", notes / "none"):
        assert code == 1 and "does not exist" in error
