"""Every operation of the table on raw arrays, built from any array-API namespace.

``operations(xp)`` gives a backend its start: a correct function for each primitive. A backend then replaces what its
library does better. Arrays are positional (a Python number may stand for one), metadata keyword, axes negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["INDEX", "fill_key", "full_key", "full_permutation", "operations"]

Array = Any
Operation = Callable[..., Array]


class _Index:
    """Stands in a static key for an index array, which travels as an input of its own."""

    def __repr__(self) -> str:
        return "[]"


INDEX = _Index()


def fill_key(key: tuple[Any, ...], indices: tuple[Array, ...]) -> tuple[Any, ...]:
    """The key with its ``INDEX`` places filled by the index arrays, in order."""
    if not indices:
        return key
    rest = iter(indices)
    return tuple(next(rest) if entry is INDEX else entry for entry in key)


def full_key(key: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[Any, ...]:
    """The key with an entry for every axis, and its slices within the axes' bounds: more than that no library promises."""
    spoken = sum(entry is not None and entry is not Ellipsis for entry in key)
    rest = (slice(None),) * (len(shape) - spoken)
    at = [i for i, entry in enumerate(key) if entry is Ellipsis] or [len(key)]
    sizes = iter(shape)
    full = []
    for entry in (*key[: at[0]], *rest, *key[at[0] + 1 :]):
        if entry is not None:
            size = next(sizes)
            if isinstance(entry, slice):
                chosen = range(*entry.indices(size))
                entry = slice(chosen.start, chosen.stop if chosen.stop >= 0 else None, chosen.step) if chosen else slice(0, 0)
        full.append(entry)
    return tuple(full)


def full_permutation(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """A permutation of the trailing axes, said from the end, as one of all axes, said from the start."""
    lead = ndim - len(axes)
    return (*range(lead), *(ndim + axis for axis in axes))


def operations(xp: Any) -> dict[str, Operation]:
    """A function for each primitive, written in nothing but the array-API standard.

    Args:
        xp: a namespace that follows the standard (2024.12 or later), such as ``numpy`` or ``array_api_strict``.

    Returns:
        The name of each primitive with a function on ``xp``'s arrays.
    """

    def array_like(value: Array, other: Array) -> Array:
        """A Python number as an array of the other operand's dtype; an array as it is."""
        return xp.asarray(value, dtype=other.dtype) if isinstance(value, bool | int | float) else value

    def both(function: Operation) -> Operation:
        """Let either operand be a Python number."""

        def operation(x: Array, y: Array) -> Array:
            return function(array_like(x, y), array_like(y, x))

        return operation

    def native(dtype: Any) -> Any:
        return getattr(xp, dtype.name)

    def where(condition: Array, x: Array, y: Array) -> Array:
        return xp.where(condition, array_like(x, y), array_like(y, x))

    def clip(x: Array, *, low: float | None, high: float | None) -> Array:
        # Not xp.clip: in the standard it may drop NaN bounds and differs between libraries for integers.
        if low is not None:
            x = xp.where(x < low, xp.asarray(low, dtype=x.dtype), x)
        return x if high is None else xp.where(x > high, xp.asarray(high, dtype=x.dtype), x)

    def erf(x: Array) -> Array:
        # The standard has no erf; this is exact and slow, for libraries that bring none.
        flat = xp.reshape(x, (-1,))
        values = [math.erf(float(flat[i])) for i in range(flat.shape[0])]
        return xp.reshape(xp.asarray(values, dtype=x.dtype), x.shape)

    def countable(x: Array) -> Array:
        """Truth as 0 and 1: the standard adds numbers only."""
        return xp.astype(x, xp.int64) if x.dtype == xp.bool else x

    def sum_(x: Array, *, axis: tuple[int, ...], keepdims: bool) -> Array:
        return xp.sum(countable(x), axis=axis, keepdims=keepdims)

    def maximum_over(reduce: Operation) -> Operation:
        def operation(x: Array, *, axis: tuple[int, ...], keepdims: bool) -> Array:
            return reduce(x, axis=axis, keepdims=keepdims)

        return operation

    def argmax_over(reduce: Operation) -> Operation:
        def operation(x: Array, *, axis: int) -> Array:
            return reduce(x, axis=axis)

        return operation

    def permute(x: Array, *, axes: tuple[int, ...]) -> Array:
        return xp.permute_dims(x, full_permutation(axes, x.ndim))

    def pad(x: Array, *, widths: tuple[tuple[int, int], ...], value: float) -> Array:
        lead = x.ndim - len(widths)
        for axis, (low, high) in enumerate(widths, start=lead):
            sizes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in (low, high)]
            sides = [xp.full(shape, value, dtype=x.dtype) for shape in sizes]
            x = xp.concat((sides[0], x, sides[1]), axis=axis)
        return x

    def flip(x: Array, *, axis: tuple[int, ...]) -> Array:
        return xp.flip(x, axis=axis)

    def concatenate(*arrays: Array, axis: int, sizes: tuple[int, ...]) -> Array:
        return xp.concat(arrays, axis=axis)

    def flat_positions(shape: tuple[int, ...], key: tuple[Any, ...], indices: tuple[Array, ...]) -> Array:
        """Which flat positions of an array of ``shape`` the key reads, in the shape of the result."""
        positions = xp.reshape(xp.arange(math.prod(shape), dtype=xp.int64), shape)
        return getitem(positions, *indices, key=key)

    def getitem(x: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
        """Slices first, then one look-up of flat positions: the standard indexes with whole tuples of arrays only."""
        if not indices:
            return x[full_key(key, x.shape)]
        # In the key as it was written: as NumPy has it, an Ellipsis between them separates even where it stands for no axis.
        spoken = [i for i, entry in enumerate(key) if entry is INDEX or isinstance(entry, int)]
        together = spoken == list(range(spoken[0], spoken[-1] + 1))
        key = full_key(key, x.shape)
        advanced = [i for i, entry in enumerate(key) if entry is INDEX or isinstance(entry, int)]
        rest = iter(indices)
        arrays = [
            next(rest) if entry is INDEX else xp.asarray(entry, dtype=xp.int64)
            for entry in key
            if entry is INDEX or isinstance(entry, int)
        ]
        arrays = list(xp.broadcast_arrays(*arrays))
        shape = arrays[0].shape
        # First the basic part, with the indexed axes kept whole.
        basic = x[tuple(slice(None) if entry is INDEX or isinstance(entry, int) else entry for entry in key)]
        front = (*advanced, *[i for i in range(basic.ndim) if i not in advanced])
        moved = xp.permute_dims(basic, front)
        sizes, tail = moved.shape[: len(advanced)], moved.shape[len(advanced) :]
        position = xp.zeros(shape, dtype=xp.int64)
        for index, size in zip(arrays, sizes, strict=True):
            index = xp.astype(index, xp.int64)
            if index.size and (bool(xp.any(index < -size)) or bool(xp.any(index >= size))):
                raise IndexError(f"an index is out of bounds for an axis of size {size}")
            position = position * size + xp.where(index < 0, index + size, index)
        flat = xp.reshape(moved, (math.prod(sizes), *tail))
        taken = xp.reshape(xp.take(flat, xp.reshape(position, (-1,)), axis=0), (*shape, *tail))
        if not together:
            return taken  # as NumPy: separated index arrays put their axes first
        at, n = advanced[0], len(shape)
        return xp.permute_dims(taken, (*range(n, n + at), *range(n), *range(n + at, taken.ndim)))

    def scatter_add(values: Array, *indices: Array, key: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
        """Zeros of ``shape`` with the values added where the key points; the transpose of getitem."""
        positions = xp.reshape(flat_positions(shape, key, indices), (-1,))
        rows = xp.reshape(values, (-1,))
        total = xp.zeros((math.prod(shape),), dtype=values.dtype)
        for i in range(rows.shape[0]):  # slow and right; a backend brings its library's own
            total[int(positions[i])] = total[int(positions[i])] + rows[i]
        return xp.reshape(total, shape)

    def scatter_add_into(total: Array, values: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
        """``total`` with the values added where the key points; ``total`` may be overwritten."""
        return total + scatter_add(values, *indices, key=key, shape=total.shape)

    def positions(x: Array, *, axis: int) -> Array:
        size = x.shape[axis]
        return xp.broadcast_to(xp.reshape(xp.arange(size, dtype=xp.int64), (size, *(1,) * (-axis - 1))), x.shape)

    def argsort(x: Array, *, axis: int, descending: bool) -> Array:
        return xp.argsort(x, axis=axis, descending=descending, stable=True)

    def copy(x: Array) -> Array:
        return xp.asarray(x, copy=True)

    def sigmoid(x: Array) -> Array:
        # exp only of what is negative never overflows, and is accurate in both tails.
        small = xp.exp(-xp.abs(x))
        return xp.where(x < 0, small, xp.ones_like(x)) / (small + 1)

    return {
        "neg": xp.negative,
        "exp": xp.exp,
        "expm1": xp.expm1,
        "log": xp.log,
        "log1p": xp.log1p,
        "sqrt": xp.sqrt,
        "tanh": xp.tanh,
        "sigmoid": sigmoid,
        "relu": lambda x: xp.where(x <= 0, xp.zeros_like(x), x),
        "erf": erf,
        "sin": xp.sin,
        "cos": xp.cos,
        "abs": xp.abs,
        "sign": xp.sign,
        "floor": xp.floor,
        "round": xp.round,
        "isfinite": xp.isfinite,
        "isnan": xp.isnan,
        "add": both(xp.add),
        "sub": both(xp.subtract),
        "mul": both(xp.multiply),
        "div": both(xp.divide),
        "power": both(xp.pow),
        "remainder": both(xp.remainder),
        "floor_divide": both(xp.floor_divide),
        "maximum": both(xp.maximum),
        "minimum": both(xp.minimum),
        "eq": both(xp.equal),
        "ne": both(xp.not_equal),
        "lt": both(xp.less),
        "le": both(xp.less_equal),
        "gt": both(xp.greater),
        "ge": both(xp.greater_equal),
        "logical_and": xp.logical_and,
        "logical_or": xp.logical_or,
        "logical_xor": xp.logical_xor,
        "logical_not": xp.logical_not,
        "where": where,
        "clip": clip,
        "cast": lambda x, *, dtype: xp.astype(x, native(dtype)),
        "copy": copy,
        "detach": lambda x: x,
        "sum": sum_,
        "max": maximum_over(xp.max),
        "min": maximum_over(xp.min),
        "all": maximum_over(xp.all),
        "any": maximum_over(xp.any),
        "argmax": argmax_over(xp.argmax),
        "argmin": argmax_over(xp.argmin),
        "cumsum": lambda x, *, axis: xp.cumulative_sum(countable(x), axis=axis),
        "matmul": xp.matmul,
        "reshape": lambda x, *, shape: xp.reshape(x, shape),
        "permute": permute,
        "broadcast_to": lambda x, *, shape: xp.broadcast_to(x, shape),
        "pad": pad,
        "flip": flip,
        "concatenate": concatenate,
        "getitem": getitem,
        "scatter_add": scatter_add,
        "scatter_add_into": scatter_add_into,
        "argsort": argsort,
        "positions": positions,
    }
