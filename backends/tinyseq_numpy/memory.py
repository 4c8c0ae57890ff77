"""Memory for the stacks that loops leave behind: aligned to cache lines, and used again when they are gone.

A training step makes and drops the same arrays every time. The C library gives large ones back to the system, which
clears each page again when it is next touched.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

__all__ = ["LIMIT", "LINE", "empty"]

Array = np.ndarray[Any, Any]
LINE = 64  # bytes of a cache line
LEAST = 1 << 16  # bytes of an array that is worth keeping
LIMIT = 1 << 28  # bytes that wait to be used again, at most

_free: dict[int, list[Array]] = {}
_held = [0]


class _Block:
    """Memory that goes back when the last array on it is gone."""

    __slots__ = ("__array_interface__", "buffer")

    def __init__(self, buffer: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.buffer = buffer
        address = buffer.__array_interface__["data"][0]
        address += -address % LINE
        self.__array_interface__ = {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}

    def __del__(self) -> None:
        with contextlib.suppress(TypeError, AttributeError):  # at the interpreter's end the names above may be gone
            size = self.buffer.nbytes
            if _held[0] + size <= LIMIT:
                _free.setdefault(size, []).append(self.buffer)
                _held[0] += size


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Like ``np.empty``; large arrays begin at a cache line."""
    size = math.prod(shape) * dtype.itemsize
    if size < LEAST:
        return np.empty(shape, dtype)
    grain = size.bit_length() - 4  # up to an eighth too large, so that sizes nearly the same share memory
    room = ((size + LINE >> grain) + 1) << grain
    try:
        buffer = _free[room].pop()
        _held[0] -= room
    except (KeyError, IndexError):
        if _held[0] + room > LIMIT:  # full of other sizes, which may never be asked for again
            _free.clear()
            _held[0] = 0
        buffer = np.empty(room, np.uint8)
    return np.asarray(_Block(buffer, shape, dtype))
