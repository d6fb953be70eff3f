"""Signals that ask a command to end: what they mean to `stop_flag`, and what `add` keeps."""

from __future__ import annotations

import signal

import pytest

from memspan.cli.process import stop_flag

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
