"""A step's loop, run by machine code on NumPy arrays, a share of the batch a thread."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tinyseq.compiler import debug
from tinyseq.graph import Var
from tinyseq_numba.loop.barrier import AVAILABLE, PASSED
from tinyseq_numba.loop.kernel import KINDS, NUMBERS, OWN, Kernel, write_kernel
from tinyseq_numba.loop.layout import LOOP, padded, width_of
from tinyseq_numba.loop.memory import LINE, aligned, empty
from tinyseq_numba.loop.product import DEPTH, ROWS, packed_shape, write_pack
from tinyseq_numba.machine import Function, address, compiled
from tinyseq_numba.threads import run, threads

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step, Total

__all__ = ["compile_step", "pack"]

Array = np.ndarray[Any, Any]
Loop = Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]
COMMON = tuple(kind for kind in KINDS if kind not in OWN)
# Bytes of weights from which it pays that each thread reads a part of them and waits for the others twice a step: if there are
# no more rows than threads, and if there are more.
MANY, LARGE = 1 << 17, 1 << 22
CHUNK = 192  # rows, over some steps, that go through what stands around the loop at a time: their values stay in the cache


def compile_step(step: Step, otherwise: Callable[[Step], Loop]) -> Loop:
    """The step as a loop on NumPy arrays.

    Args:
        step: what to compile.
        otherwise: compiles it for a call whose rows look at one another, which only the numbers in an index tell.

    Raises:
        Unsupported: there is no code for an operation in it.
    """
    kernel = write_kernel(step)
    debug.show("source", "LLVM", kernel.text)
    return _Loop(step, otherwise, kernel, address(kernel.text, "loop"))


def pack(weights: Array, packed: Array, where: int | None = None) -> None:
    """(K, N) as (panels, K, columns of a panel), with zeros where N does not fill the last panel.

    Args:
        weights: with any strides.
        packed: of the shape ``packed_shape``; takes the result.
        where: the address of ``packed``, if it is known.
    """
    row, column = (stride // weights.itemsize for stride in weights.strides)
    at = _address(weights.T if weights.flags.f_contiguous else weights)
    _pack(weights.dtype)(*weights.shape, row, column, at, _address(packed) if where is None else where)


@cache
def _pack(dtype: np.dtype[Any]) -> Function:
    return compiled(write_pack(dtype), "pack", *[ctypes.c_int64] * 4, ctypes.c_void_p, ctypes.c_void_p)


class _Loop:
    """``loop(carry, stacks, closed, steps, reverse)`` -> the last carry, histories (T + 1, ...), written (T, ...), sums."""

    def __init__(self, step: Step, otherwise: Callable[[Step], Loop], kernel: Kernel, code: int) -> None:
        self.step, self.otherwise, self.kernel, self.code = step, otherwise, kernel, code
        layout = kernel.layout
        rows = layout.rows
        self.distances = [
            layout.reads[v].distance if i not in step.histories else width_of(v, rows) for i, v in enumerate(step.carry)
        ]
        self.packed = [step.graph.closed.index(v) for v in layout.packed]
        looped = [e.inputs[1] for (section, _), products in layout.products.items() for e, _ in products if section == LOOP]
        self.weights = sum(math.prod(v.shape) * v.dtype.itemsize for v in looped if isinstance(v, Var))  # bytes a step reads
        read = {place.base for v, place in layout.reads.items()}
        self.only_packed = {i for i in self.packed if ("closed", i) not in read}
        self.lookups = layout.lookups
        self.row_numbers = layout.row_numbers
        self.spare: list[tuple[tuple[int, ...], _Room]] = []  # rooms of calls that have ended

    def __call__(
        self, carry: Sequence[Array], stacks: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        step, layout = self.step, self.kernel.layout
        batch = step.carry[0].shape[0]
        if any((closed[i].ravel() != np.arange(batch)).any() for i in self.row_numbers):
            return self.otherwise(step)(carry, stacks, closed, steps, reverse)
        most = threads()
        columns = self._columns(batch, most)  # of the products are shared, and not their rows
        shares = most if columns else max(1, min(most, batch))
        share = max(1, -(-batch // shares))
        chunk = max(ROWS, CHUNK // share // ROWS * ROWS) if step.before or step.after or step.sums else steps
        carried: list[Array] = []
        for i, (v, start) in enumerate(zip(step.carry, carry, strict=True)):
            if i in step.histories:
                array = empty((steps + 1, *v.shape), v.dtype)
                array[steps if reverse else 0] = start
            else:
                array = np.empty((2, batch, self.distances[i]), v.dtype)
                array[0, :, : width_of(v, layout.rows)] = start.reshape(batch, -1)
            carried.append(array)
        given = [a if a.flags.c_contiguous else a.copy() for a in stacks]
        same = [a if a.flags.c_contiguous or i in self.only_packed else a.copy() for i, a in enumerate(closed)]
        written = [empty((steps, *v.shape), v.dtype) for v in step.written if isinstance(v, Var)]
        size = (batch, shares, chunk, batch if columns else share)
        room = self._room(size)
        totals = []
        for total, own in zip(step.sums, room.totals, strict=True):
            if own is None:
                shape = total.var.shape if total.kind == "each" else _room(total)
                totals.append(np.zeros((1, *shape), total.var.dtype))  # is handed out
            else:
                own.fill(0)
                totals.append(own)
        for closed_at, place, packed_at in zip(self.packed, room.packed, room.addresses["packed"], strict=True):
            pack(closed[closed_at], place, packed_at)
        at = [_address(a) for a in carried]
        addresses = {
            **room.addresses, "carry": at, "history": at, "stack": [_address(a) for a in given],
            "closed": [0 if i in self.only_packed else _address(a) for i, a in enumerate(same)],
            "written": [_address(a) for a in written],
        }  # fmt: skip
        common = [one for kind in COMMON for one in addresses[kind]]
        whole = [(_address(a), a.strides[0] if len(a) > 1 else 0) for a in totals]
        for share, table in enumerate(room.tables):
            table[NUMBERS : NUMBERS + len(common) + len(whole)] = common + [at + share * apart for at, apart in whole]
        self._run(batch, steps, chunk, int(reverse), room, columns)
        if self.lookups and room.faults.any():
            self._raise(room.faults)
        self.spare.append((size, room))
        last = []
        for i, v in enumerate(step.carry):
            if i in step.histories:
                last.append(carried[i][0 if reverse else steps])
            else:
                last.append(carried[i][steps & 1, :, : width_of(v, layout.rows)].reshape(v.shape))
        return last, [carried[i] for i in step.histories], written, [_sum(t, a) for t, a in zip(step.sums, totals, strict=True)]

    def _raise(self, faults: Array) -> NoReturn:
        """The first id that was out of bounds, as an array library says it."""
        place = int(np.flatnonzero(faults)[0])
        e = self.lookups[place]
        axis = int(e.params["own"])
        size = e.inputs[0].shape[axis]  # type: ignore[union-attr]
        raise IndexError(f"index {faults[place]} is out of bounds for axis {axis} with size {size}")

    def _room(self, size: tuple[int, ...]) -> _Room:
        """What the kernel writes for itself: taken from a call that has ended, if it was of the same size."""
        while self.spare:
            known, room = self.spare.pop()
            if known == size:
                return room
        return _Room(self.step, self.kernel, *size)

    def _columns(self, batch: int, most: int) -> bool:
        """Whether so many threads had better share the columns of the products than their rows."""
        return AVAILABLE and batch > 0 and most > 1 and self.weights >= (MANY if batch <= most else LARGE)

    def _run(self, batch: int, steps: int, chunk: int, reverse: int, room: _Room, columns: bool) -> None:
        """Each thread takes a share of the batch through all steps; they never wait for each other within the loop.

        Or each takes a share of the columns of every product besides, and they do wait.
        """
        shares = len(room.tables)
        edges = [-(-batch * i // shares) for i in range(shares + 1)]  # the first has no less than the others, which begin later
        for part, (table, (first, last)) in enumerate(zip(room.tables, itertools.pairwise(edges), strict=True)):
            table[:NUMBERS] = first, last, batch, steps, chunk, reverse, *((part, shares) if columns else (0, 1))
        room.barrier[0] = 0
        run(self.code, room.table_addresses, lambda: room.barrier.fill(PASSED))


class _Room:
    """Arrays that a kernel writes for itself, and for each thread a table of where everything is.

    ``partials`` and ``panels`` have a part for each thread, ``panels`` for products of so many rows of a step.
    """

    def __init__(self, step: Step, kernel: Kernel, batch: int, shares: int, chunk: int, rows: int) -> None:
        layout = kernel.layout
        self.packed = [aligned(packed_shape(v.shape, v.dtype), v.dtype) for v in layout.packed]
        # Zeros where nothing is written: columns that a wider value has beside those it was made of.
        self.scratch = [aligned((batch, width), dtype) for width, dtype in layout.scratch]
        self.chunks = [aligned((chunk, batch, width), dtype) for width, dtype in layout.chunks]
        # Sums of which each thread has its own; the others are one array, to which each adds rows or columns of its own.
        columns = rows == batch and shares > 1
        self.totals = [
            None
            if shares == 1 or total.kind == "each" or (columns and total.kind == "product")
            else aligned((shares, *_room(total)), total.var.dtype)
            for total in step.sums
        ]
        self.partials = [aligned((shares, *_room(total)), total.var.dtype) for total in step.sums]
        products = [total for total in step.sums if total.kind == "product"]
        depth = max(DEPTH, rows)
        sides = [max((_room(total)[side] * total.var.dtype.itemsize for total in products), default=0) for side in (0, 1)]
        self.panels = [aligned((shares, depth * side), np.uint8) for side in sides]
        self.barrier = aligned((LINE // 8,), np.int64)
        self.faults = aligned((len(layout.lookups),), np.int64)  # of each: an id that was out of bounds, which 0 never is
        common = {
            "packed": self.packed, "scratch": self.scratch, "chunk": self.chunks, "barrier": [self.barrier],
            "fault": [self.faults],
        }  # fmt: skip
        self.addresses = {kind: [_address(a) for a in arrays] for kind, arrays in common.items()}
        self.tables = np.zeros((shares, NUMBERS + kernel.count), np.int64)
        own = [*self.partials, *self.panels]
        for share, table in enumerate(self.tables):
            table[NUMBERS + kernel.count - len(own) :] = [_address(a) + share * a.strides[0] for a in own]
        self.table_addresses = [_address(self.tables) + share * self.tables.strides[0] for share in range(shares)]


def _room(total: Total) -> tuple[int, ...]:
    """The shape of a thread's sum within the kernel: of a product, with room for whole tiles."""
    if total.kind == "each":
        return ()  # the rows of all threads are apart, in one array
    if total.kind == "rows":
        return (total.inputs[0].shape[-1],)
    rows, columns = (v.shape[-1] for v in total.inputs)
    return -(-rows // ROWS) * ROWS, padded(columns, total.var.dtype)


def _sum(total: Total, shares: Array) -> Array:
    """The threads' sums as one, in the order of the threads."""
    if total.kind == "each":
        return shares[0]
    if total.kind == "product":
        rows, columns = total.var.shape
        shares = shares[:, :rows, :columns]
    whole = shares[0]
    for one in shares[1:]:
        whole = whole + one
    return whole.reshape(total.var.shape) if total.kind == "rows" else whole


def _address(array: Array) -> int:
    """Where an array begins. The way through a buffer, which contiguous arrays have that can be written, is the shorter one."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return int(array.ctypes.data)
