"""A step's loop, run by machine code on NumPy arrays, a share of the batch a thread."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.compiler import debug
from tinyseq.graph import Var
from tinyseq_numba.loop.barrier import AVAILABLE, PASSED
from tinyseq_numba.loop.kernel import KINDS, OWN, Kernel, write_kernel
from tinyseq_numba.loop.layout import LOOP, padded, width_of
from tinyseq_numba.loop.memory import LINE, aligned, empty
from tinyseq_numba.loop.product import DEPTH, ROWS, packed_shape, write_pack
from tinyseq_numba.machine import Function, compiled
from tinyseq_numba.threads import threads, together

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step, Total

__all__ = ["compile_step", "pack"]

Array = np.ndarray[Any, Any]
COMMON = tuple(kind for kind in KINDS if kind not in OWN)
MANY = 1 << 17  # weights from which it pays to wait for another thread twice a step
CHUNK = 192  # rows, over some steps, that go through what stands around the loop at a time: their values stay in the cache


def compile_step(step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
    """The step as a loop on NumPy arrays.

    Raises:
        Unsupported: there is no code for an operation in it.
    """
    kernel = write_kernel(step)
    debug.show("source", "LLVM", kernel.text)
    return _Loop(step, kernel, compiled(kernel.text, "loop", *[ctypes.c_int64] * 8, ctypes.c_void_p))


def pack(weights: Array, packed: Array, address: int | None = None) -> None:
    """(K, N) as (panels, K, columns of a panel), with zeros where N does not fill the last panel.

    Args:
        weights: with any strides.
        packed: of the shape ``packed_shape``; takes the result.
        address: of ``packed``, if it is known.
    """
    row, column = (stride // weights.itemsize for stride in weights.strides)
    at = _address(weights.T if weights.flags.f_contiguous else weights)
    _pack(weights.dtype)(*weights.shape, row, column, at, _address(packed) if address is None else address)


@cache
def _pack(dtype: np.dtype[Any]) -> Function:
    return compiled(write_pack(dtype), "pack", *[ctypes.c_int64] * 4, ctypes.c_void_p, ctypes.c_void_p)


class _Loop:
    """``loop(carry, stacks, closed, steps, reverse)`` -> the last carry, histories (T + 1, ...), written (T, ...), sums."""

    def __init__(self, step: Step, kernel: Kernel, function: Function) -> None:
        self.step, self.kernel, self.function = step, kernel, function
        layout = kernel.layout
        rows = layout.rows
        self.distances = [
            layout.reads[v].distance if i not in step.histories else width_of(v, rows) for i, v in enumerate(step.carry)
        ]
        self.packed = [step.graph.closed.index(v) for v in layout.packed]
        looped = [e.inputs[1] for (section, _), products in layout.products.items() for e, _ in products if section == LOOP]
        self.weights = sum(math.prod(v.shape) for v in looped if isinstance(v, Var))  # that each step reads
        read = {place.base for v, place in layout.reads.items()}
        self.only_packed = {i for i in self.packed if ("closed", i) not in read}
        self.spare: list[tuple[tuple[int, int, int], _Room]] = []  # rooms of calls that have ended

    def __call__(
        self, carry: Sequence[Array], stacks: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        step, layout = self.step, self.kernel.layout
        batch = step.carry[0].shape[0]
        columns = self._columns(batch)  # are shared, and not the rows
        shares = threads() if columns else max(1, min(threads(), batch))
        share = max(1, batch if columns else -(-batch // shares))
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
        totals = [
            np.zeros((1, *total.var.shape) if total.kind == "each" else (shares, *_room(total)), total.var.dtype)
            for total in step.sums
        ]
        size = (batch, shares, chunk)
        room = self._room(size)
        for closed_at, place, address in zip(self.packed, room.packed, room.addresses["packed"], strict=True):
            pack(closed[closed_at], place, address)
        at = [_address(a) for a in carried]
        addresses = {
            **room.addresses, "carry": at, "history": at, "stack": [_address(a) for a in given],
            "closed": [0 if i in self.only_packed else _address(a) for i, a in enumerate(same)],
            "written": [_address(a) for a in written],
        }  # fmt: skip
        common = [address for kind in COMMON for address in addresses[kind]]
        whole = [(_address(a), a.strides[0] if len(a) > 1 else 0) for a in totals]
        for share, table in enumerate(room.tables):
            table[: len(common)] = common
            table[len(common) : len(common) + len(whole)] = [address + share * apart for address, apart in whole]
        self._run(batch, steps, chunk, int(reverse), room, columns)
        self.spare.append((size, room))
        last = []
        for i, v in enumerate(step.carry):
            if i in step.histories:
                last.append(carried[i][0 if reverse else steps])
            else:
                last.append(carried[i][steps & 1, :, : width_of(v, layout.rows)].reshape(v.shape))
        return last, [carried[i] for i in step.histories], written, [_sum(t, a) for t, a in zip(step.sums, totals, strict=True)]

    def _room(self, size: tuple[int, int, int]) -> _Room:
        """What the kernel writes for itself: taken from a call that has ended, if it was of the same size."""
        while self.spare:
            known, room = self.spare.pop()
            if known == size:
                return room
        return _Room(self.step, self.kernel, *size)

    def _columns(self, batch: int) -> bool:
        """Whether the threads had better share the columns of the products: there are few rows, and the weights are many."""
        return AVAILABLE and 0 < 2 * batch <= threads() and self.weights >= MANY

    def _run(self, batch: int, steps: int, chunk: int, reverse: int, room: _Room, columns: bool) -> None:
        """Each thread takes a share of the batch through all steps; they never wait for each other within the loop.

        Or each takes a share of the columns of every product, and they do wait.
        """
        shares = len(room.table_addresses)
        common = (batch, steps, chunk, reverse)
        if columns:
            room.barrier[0] = 0
            calls = [(0, batch, *common, part, shares, table) for part, table in enumerate(room.table_addresses)]
            together(self.function, calls, lambda: room.barrier.fill(PASSED))
            return
        edges = [batch * i // shares for i in range(shares + 1)]
        pairs = zip(itertools.pairwise(edges), room.table_addresses, strict=True)
        together(self.function, [(first, last, *common, 0, 1, table) for (first, last), table in pairs])


class _Room:
    """Arrays that a kernel writes for itself, and for each thread a table of where everything is.

    ``partials`` and ``panels`` have a part for each thread.
    """

    def __init__(self, step: Step, kernel: Kernel, batch: int, shares: int, chunk: int) -> None:
        layout = kernel.layout
        self.packed = [aligned(packed_shape(v.shape, v.dtype), v.dtype) for v in layout.packed]
        # Zeros where nothing is written: columns that a wider value has beside those it was made of.
        self.scratch = [aligned((batch, width), dtype) for width, dtype in layout.scratch]
        self.chunks = [aligned((chunk, batch, width), dtype) for width, dtype in layout.chunks]
        self.partials = [aligned((shares, *_room(total)), total.var.dtype) for total in step.sums]
        products = [total for total in step.sums if total.kind == "product"]
        depth = max(DEPTH, -(-batch // shares))
        sides = [max((_room(total)[side] * total.var.dtype.itemsize for total in products), default=0) for side in (0, 1)]
        self.panels = [aligned((shares, depth * side), np.uint8) for side in sides]
        self.barrier = aligned((LINE // 8,), np.int64)
        common = {"packed": self.packed, "scratch": self.scratch, "chunk": self.chunks, "barrier": [self.barrier]}
        self.addresses = {kind: [_address(a) for a in arrays] for kind, arrays in common.items()}
        self.tables = np.zeros((shares, kernel.count), np.int64)
        own = [*self.partials, *self.panels]
        for share, table in enumerate(self.tables):
            table[kernel.count - len(own) :] = [_address(a) + share * a.strides[0] for a in own]
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
    whole = shares[0]
    if total.kind == "each":
        return whole
    for one in shares[1:]:
        whole = whole + one
    if total.kind == "rows":
        return whole.reshape(total.var.shape)
    rows, columns = total.var.shape
    return whole[:rows, :columns]


def _address(array: Array) -> int:
    """Where an array begins. The way through a buffer, which contiguous arrays have that can be written, is the shorter one."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return int(array.ctypes.data)
