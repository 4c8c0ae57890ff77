"""A piece of work in shares, one a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from queue import SimpleQueue
from typing import Any

from tinyseq_numba.waiting import Mailbox, call

__all__ = ["run", "threads", "together"]

LOOKS = 80_000  # of a thread into its mailbox before it sleeps: about two milliseconds, more than is between two loops


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """How many threads a loop may use: ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS``, else one a core."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return cores()


class _Worker:
    """A thread that does one share after the other: machine code from its mailbox, Python functions from a queue."""

    def __init__(self, name: str) -> None:
        self.box = Mailbox()
        self.calls: SimpleQueue[tuple[Callable[..., None], Sequence[Any], SimpleQueue[Exception | None]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def put(self, code: int, arguments: int) -> None:
        """Give it machine code; ``box.wait`` returns when it is done."""
        if not self.box.put(code, arguments):
            self.calls.put(None)

    def call(self, function: Callable[..., None], arguments: Sequence[Any], done: SimpleQueue[Exception | None]) -> None:
        """Give it a Python function; ``done`` gets its error, or None."""
        self.box.put(0, 0)
        self.calls.put((function, arguments, done))

    def _work(self) -> None:
        while True:
            share = self.calls.get()
            if share is not None:
                function, arguments, done = share
                error = None
                try:
                    function(*arguments)
                except Exception as raised:
                    error = raised
                self.box.clear()
                done.put(error)
            # A thread that looks keeps its core from others: not where there are more threads than cores.
            self.box.watch(LOOKS if threads() <= cores() else 0)


@cache
def _worker(number: int, process: int) -> _Worker:
    """The threads of this process: a forked one has none of its parent's."""
    return _Worker(f"tinyseq-{number}")


_busy = threading.Lock()  # the threads work for one caller at a time


def run(code: int, shares: Sequence[int], release: Callable[[], object] | None = None) -> None:
    """Run machine code once for each share, the first in this thread, and return when all are done.

    Also when it is interrupted: the others write into arrays that would be gone.

    Args:
        code: the address of a function of one pointer.
        shares: the pointers.
        release: for shares that wait for each other: lets the others go on if the first was interrupted.
    """
    if len(shares) == 1:
        call(code, shares[0])
        return
    with _busy:
        stopped: BaseException | None = None
        others: list[_Worker] = []
        try:
            for number, arguments in enumerate(shares[1:]):
                others.append(_worker(number, os.getpid()))
                others[-1].put(code, arguments)
            call(code, shares[0])
        except BaseException as error:
            stopped = error
            if release is not None:
                release()
        while others:
            try:
                others[-1].box.wait()
                others.pop()
            except KeyboardInterrupt as interrupt:
                stopped = interrupt
        if stopped is not None:
            raise stopped


def together(function: Callable[..., None], shares: Sequence[Sequence[Any]]) -> None:
    """Call a Python function that releases the interpreter with each share's arguments; otherwise as ``run``."""
    done: SimpleQueue[Exception | None] = SimpleQueue()
    with _busy:
        stopped: BaseException | None = None
        given = 0
        try:
            for number, arguments in enumerate(shares[1:]):
                _worker(number, os.getpid()).call(function, arguments, done)
                given += 1
            function(*shares[0])
        except BaseException as error:
            stopped = error
        while given:
            try:
                stopped = done.get() or stopped
                given -= 1
            except KeyboardInterrupt as interrupt:
                stopped = interrupt
        if stopped is not None:
            raise stopped
