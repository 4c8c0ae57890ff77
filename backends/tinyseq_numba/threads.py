"""A piece of work in shares, one a thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache
from queue import SimpleQueue
from typing import Any

__all__ = ["threads", "together"]


def threads() -> int:
    """How many threads a loop may use: ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS``, else one a core."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker:
    """A thread that does one call after the other."""

    def __init__(self, name: str) -> None:
        self.calls: SimpleQueue[tuple[Callable[..., None], Sequence[Any], SimpleQueue[Exception | None]]] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            function, arguments, done = self.calls.get()
            try:
                function(*arguments)
            except Exception as error:
                done.put(error)
            else:
                done.put(None)


@cache
def _worker(number: int, process: int) -> _Worker:
    """The threads of this process: a forked one has none of its parent's."""
    return _Worker(f"tinyseq-{number}")


_order = threading.Lock()


def together(
    function: Callable[..., None], shares: Sequence[Sequence[Any]], release: Callable[[], object] | None = None
) -> None:
    """Call machine code with each share's arguments, the first in this thread, and return when all are done.

    Also when it is interrupted: the others write into arrays that would be gone.

    Args:
        function: what is called.
        shares: the arguments of each call.
        release: for shares that wait for each other: lets the others go on if the first was interrupted.
    """
    done: SimpleQueue[Exception | None] = SimpleQueue()
    stopped: BaseException | None = None
    given = 0
    try:
        with _order:  # all workers see two callers in one order, so that neither's shares wait behind the other's
            for number, arguments in enumerate(shares[1:]):
                _worker(number, os.getpid()).calls.put((function, arguments, done))
                given += 1
        function(*shares[0])
    except BaseException as error:
        stopped = error
        if release is not None:
            release()
    left = given
    while left:
        try:
            stopped = done.get() or stopped
            left -= 1
        except KeyboardInterrupt as interrupt:
            stopped = interrupt
    if stopped is not None:
        raise stopped
