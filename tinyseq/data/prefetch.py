"""Batches made ahead of time, in a thread."""

from __future__ import annotations

import contextvars
import queue
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

__all__ = ["Prefetch"]

T = TypeVar("T")
Item = tuple[bool, object]  # whether it is a value; otherwise an exception, or None at the end


class Prefetch(Generic[T]):
    """An iterator over ``source`` that a thread runs ahead of, by up to ``ahead`` items.

    It pays where making an item waits or computes outside Python: reading files, NumPy. Order and values are those of
    the source. An exception in the source reaches the consumer in its place, after the items before it. The thread ends
    with the source, with :meth:`close`, at the end of a ``with`` block, and when nobody holds the iterator any more (a
    loop that was left early): at the latest when the item under way is made. It never keeps the program from ending.

    The source runs in the caller's context (backend, ``no_grad``). What it remembers of its place is ahead of the
    consumer, as are the numbers that it draws from :mod:`tinyseq.random`: to go on from a checkpoint, let a
    :class:`tinyseq.data.Loader` do the prefetching, which counts what it has given out.

    Args:
        source: what is iterated over.
        ahead: how many items may wait.

    Raises:
        ValueError: ``ahead`` is less than 1.

    >>> with Prefetch(n * n for n in range(4)) as squares:
    ...     list(squares)
    [0, 1, 4, 9]
    """

    def __init__(self, source: Iterable[T], ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"a prefetching iterator needs room for at least one item, got ahead={ahead}")
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        room, stop = threading.Semaphore(ahead), threading.Event()
        # The thread holds nothing of this object, or it would never be collected.
        run = contextvars.copy_context().run
        thread = threading.Thread(target=run, args=(_fill, iter(source), items, room, stop), name="prefetch", daemon=True)
        self._items, self._room, self._over = items, room, False
        self._end = weakref.finalize(self, _stop, room, stop, thread)
        self._end.atexit = False  # a source that waits for ever must not keep the program from ending
        thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        try:
            is_value, item = self._items.get()
        except BaseException:  # Ctrl-C while waiting
            self.close()
            raise
        if is_value:
            self._room.release()
            return item  # type: ignore[return-value]
        self.close()
        if item is None:
            raise StopIteration
        assert isinstance(item, BaseException)
        raise item

    def close(self) -> None:
        """Stop the thread and wait for its end; what it made ahead is dropped. More than once is as good as once."""
        self._over = True
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fill(source: Iterator[T], items: queue.SimpleQueue[Item], room: threading.Semaphore, stop: threading.Event) -> None:
    try:
        while True:
            room.acquire()
            if stop.is_set():
                return
            try:
                item = next(source)
            except StopIteration:
                items.put((False, None))
                return
            items.put((True, item))
            del item  # it is the consumer's
    except BaseException as error:
        items.put((False, error))
    finally:
        close = getattr(source, "close", None)  # a generator's clean-up runs here, not whenever it is collected
        if close is not None:
            close()


def _stop(room: threading.Semaphore, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    room.release()
    if thread is not threading.current_thread():  # the collector may run anywhere
        thread.join()
