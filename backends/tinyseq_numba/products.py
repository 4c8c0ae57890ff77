"""Matrix products on NumPy's BLAS, shared among the threads that the loops use.

OpenBLAS keeps threads of its own, which go on turning for some tens of milliseconds after each large product, on the cores
that the next loop wants: a training step that has both took up to twice as long. So BLAS is held to one thread, and each of
ours gives it a share of the product.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

from tinyseq_numba.threads import threads, together

__all__ = ["alone", "blas", "matmul"]

Array = np.ndarray[Any, Any]
LARGE = 1 << 18  # multiplications from which OpenBLAS wakes its threads
SHARED = 1 << 22  # multiplications from which a second thread is worth waking


def matmul(x: Array, y: Array) -> Array:
    """``x @ y`` for two matrices or stacks of them."""
    flat = x.ndim > 2 == y.ndim
    if flat:
        # One product over all rows: a stack would be one for each of its matrices.
        lead, x = x.shape[:-1], x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    work = math.prod(x.shape) * y.shape[-1]
    if work < LARGE or x.dtype != y.dtype or x.dtype.kind != "f" or threads() == 1 or not blas():
        out = x.dot(y) if x.ndim == 2 == y.ndim else np.matmul(x, y)
    else:
        with alone():
            out = _large(x, y, work)
    return out.reshape(*lead, out.shape[-1]) if flat else out


def _large(x: Array, y: Array, work: int) -> Array:
    shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    out = np.empty(shape, x.dtype)
    axis = max(range(len(shape)), key=lambda i: (shape[i], -i)) if len(shape) == 2 else 0
    if work < SHARED or shape[axis] < 2:
        np.matmul(x, y, out)
        return out
    count = min(threads(), shape[axis])
    edges = [shape[axis] * i // count for i in range(count + 1)]
    # A context each, so that np.errstate holds in every thread.
    together(_in_context, [(copy_context(), *_share(x, y, out, axis, slice(*edge))) for edge in pairwise(edges)])
    return out


def _in_context(context: Context, x: Array, y: Array, out: Array) -> None:
    context.run(np.matmul, x, y, out)


def _share(x: Array, y: Array, out: Array, axis: int, part: slice) -> tuple[Array, Array, Array]:
    """The operands of a part of the result along one axis."""
    if out.ndim > 2:
        return _part(x, out.ndim, part), _part(y, out.ndim, part), out[part]
    return (x[part], y, out[part]) if axis == 0 else (x, y[:, part], out[:, part])


def _part(x: Array, axes: int, part: slice) -> Array:
    """The matrices that a part of the first axis of the result needs; an axis of one matrix serves all."""
    return x[part] if x.ndim == axes and x.shape[0] > 1 else x


@cache
def blas() -> Any:
    """What sets the threads of NumPy's BLAS, if that is an OpenBLAS with threads of its own."""
    folder = Path(np.__file__).parent
    found = threadpoolctl.ThreadpoolController().select(internal_api="openblas", threading_layer="pthreads")
    homes = {folder, folder.with_name("numpy.libs")}  # SciPy has one of its own
    return next((library for library in found.lib_controllers if homes & set(Path(library.filepath).parents)), None)


_lock = threading.Lock()
_inside = [0, 0]  # calls that hold BLAS to one thread, and the threads it had before


@contextmanager
def alone() -> Iterator[None]:
    """BLAS has one thread in here, whoever calls it."""
    library = blas()
    with _lock:
        if not _inside[0]:
            _inside[1] = library.get_num_threads()
            library.set_num_threads(1)
        _inside[0] += 1
    try:
        yield
    finally:
        with _lock:
            _inside[0] -= 1
            if not _inside[0]:
                library.set_num_threads(_inside[1])
