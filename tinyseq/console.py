"""What a training script needs on a terminal: flags, progress, and an orderly stop."""

from __future__ import annotations

import argparse
import importlib.util
import math
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, Self

from tinyseq.errors import TinyseqError

__all__ = ["Parser", "Progress", "Stop", "UsageError", "number"]


class UsageError(TinyseqError):
    """A command line asks for something that cannot be done; the message is a sentence."""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises :class:`UsageError` where its parent prints a usage page and exits.

    >>> Parser(prog="train").parse_args(["--what"])
    Traceback (most recent call last):
    tinyseq.console.UsageError: unrecognized arguments: --what (see --help)
    """

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def number(kind: Callable[[str], float], at_least: float, below: float = math.inf) -> Callable[[str], float]:
    """The ``type=`` of a flag that takes an ``int`` or a ``float`` between two limits.

    >>> parser = Parser()
    >>> _ = parser.add_argument("--rate", type=number(float, at_least=0))
    >>> parser.parse_args(["--rate", "0.5"]).rate
    0.5
    >>> parser.parse_args(["--rate", "-1"])
    Traceback (most recent call last):
    tinyseq.console.UsageError: argument --rate: -1 is less than 0 (see --help)
    """

    def parse(text: str) -> float:
        value = kind(text)
        if math.isnan(value):
            raise ValueError
        if value < at_least:
            raise argparse.ArgumentTypeError(f"{text} is less than {at_least}")
        if value >= below < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not less than {below}")
        return value

    parse.__name__ = getattr(kind, "__name__", "number")  # argparse shows it: "invalid int value"
    return parse


class Stop:
    """Notes a Ctrl-C (SIGINT) or SIGTERM inside a ``with`` block, so that the work under way can be finished and saved.

    A second signal of the same kind does what it does outside the block. Only the main thread may enter the block.

    Attributes:
        signal: the number of the signal that came, or 0. A process that it ended has the exit status 128 + signal.

    >>> with Stop() as stop:
    ...     while not stop.signal:
    ...         signal.raise_signal(signal.SIGINT)
    >>> 128 + stop.signal
    130
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Self:
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._handlers[signal.Signals(number)])


class Progress:
    """Shows how training goes, and when it is over: after ``steps`` steps or ``seconds`` seconds.

    On a terminal it is a bar, if Rich is installed; elsewhere a line every five seconds.

    Args:
        steps: the step after which training is over.
        seconds: the time after which it is over, if that comes first.
        done: the steps that are done already.
        unit: what is counted, in the plural, and
        size: how many of it a step handles.
        quiet: show nothing.

    >>> with Progress(steps=2, unit="words", size=50, quiet=True) as progress:
    ...     while not progress.over:
    ...         progress.update("loss 0.1")
    >>> progress.done
    2
    """

    def __init__(
        self,
        steps: int,
        seconds: float = math.inf,
        *,
        done: int = 0,
        unit: str = "steps",
        size: int = 1,
        quiet: bool = False,
    ) -> None:
        self.steps, self.seconds, self.done = steps, seconds, done
        self._first, self._unit, self._size, self._quiet = done, unit, size, quiet
        self._bar: Any = None
        self._start = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if not self._quiet and sys.stdout.isatty() and importlib.util.find_spec("rich"):
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            message = TextColumn("{task.description}", table_column=Column(no_wrap=False))  # a narrow terminal wraps it
            self._bar = Progress(BarColumn(bar_width=20), message)
            self._task = self._bar.add_task("", total=1.0)
            self._bar.start()
        self._start = self._shown = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def over(self) -> bool:
        return self.done >= self.steps or time.monotonic() - self._start >= self.seconds

    def update(self, message: str) -> None:
        """Count one more step, and show it with ``message``, the rate and the time left."""
        self.done += 1
        now = time.monotonic()
        elapsed, count = now - self._start, self.done - self._first
        left = max(0.0, min(elapsed / count * (self.steps - self.done), self.seconds - elapsed))
        rate = count * self._size / max(elapsed, 1e-9)
        line = f"step {self.done}: {message}, {rate:,.0f} {self._unit}/s, {_clock(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=elapsed / max(elapsed + left, 1e-9), description=line)
        elif not self._quiet and (now - self._shown >= 5 or self.over):
            self._shown = now
            print(line, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
