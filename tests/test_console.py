"""Flags, progress and the orderly stop of a training script."""

from __future__ import annotations

import re
import signal
import sys
import time

import pytest

from tinyseq.console import Parser, Progress, Stop, UsageError, number


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "2.5"], "argument --count: invalid int value: '2.5' (see --help)"),
        (["--count", "0"], "argument --count: 0 is less than 1 (see --help)"),
        (["--rate", "nan"], "argument --rate: invalid float value: 'nan' (see --help)"),
        (["--rate", "-0.5"], "argument --rate: -0.5 is less than 0 (see --help)"),
        (["--share", "1.0"], "argument --share: 1.0 is not less than 1 (see --help)"),
        (["extra"], "unrecognized arguments: extra (see --help)"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments: list[str], message: str) -> None:
    parser = Parser()
    parser.add_argument("--count", type=number(int, at_least=1))
    parser.add_argument("--rate", type=number(float, at_least=0))
    parser.add_argument("--share", type=number(float, at_least=0, below=1))
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        parser.parse_args(arguments)


def test_numbers_at_the_limit_are_taken() -> None:
    assert number(int, at_least=1)("1") == 1
    assert number(float, at_least=0)("0") == 0.0
    assert number(float, at_least=0)("inf") == float("inf")
    assert number(float, at_least=0, below=1)("0.999") == 0.999


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_handlers_come_back(which: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert stop.signal == 0
        signal.raise_signal(which)
        assert stop.signal == which
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_interrupt_ends_at_once() -> None:
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT


def test_progress_ends_with_the_steps_or_the_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(steps=7, done=5, unit="characters", size=100) as progress:
        while not progress.over:
            time.sleep(0.01)
            progress.update("loss 1.25")
    assert progress.done == 7
    line = capsys.readouterr().out
    found = re.fullmatch(r"step 7: loss 1.25, ([\d,]+) characters/s, 0:00 left\n", line)
    assert found, line
    assert 500 < float(found[1].replace(",", "")) <= 10_000  # 2 steps of 100, at least 0.01 s each

    with Progress(steps=10**9, seconds=0.05, quiet=True) as progress:
        while not progress.over:
            time.sleep(0.001)
            progress.update("")
    assert 1 <= progress.done <= 50
    assert capsys.readouterr().out == ""


def test_lines_come_every_five_seconds_and_tell_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress(steps=10_000, size=10) as progress:
        for _ in range(6):
            now[0] += 2
            progress.update("x")
    assert capsys.readouterr().out == "step 3: x, 5 steps/s, 5:33:14 left\nstep 6: x, 5 steps/s, 5:33:08 left\n"
    with Progress(steps=10_000, seconds=75) as progress:
        now[0] += 6
        progress.update("x")
    assert capsys.readouterr().out == "step 1: x, 0 steps/s, 1:09 left\n"


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(steps=3) as progress:
        while not progress.over:
            progress.update("loss 1.25")
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().out)  # without colours and cursor moves
    assert "━" * 20 + " step 3: loss 1.25" in shown


def test_a_narrow_terminal_shows_it_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    with Progress(steps=1) as progress:
        progress.update("loss 1.25, 1.80 bits a character, held out 2.01")
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "step 1: loss 1.25" in shown
    assert "0:00 left" in shown
