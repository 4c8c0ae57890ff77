"""The NumPy backend: the reference that every other backend is compared with."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tinyseq.array_api import fill_key, full_permutation
from tinyseq.backend import Backend
from tinyseq_numpy.attention import Attention
from tinyseq_numpy.loop import fuses

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["NumpyBackend"]

Array = np.ndarray[Any, Any]

# Below this many elements a full copy is quicker than NumPy's 2 microseconds for a broadcast view.
SMALL = 4096


# exp of these is finite in floats of 2, 4 and 8 bytes.
LARGEST_EXPONENT = {2: 11.0, 4: 88.0, 8: 709.0}


@cache
def _constants(dtype: np.dtype[Any]) -> tuple[Array, Array]:
    # A ufunc takes an array without axes in half the time of a Python number.
    return np.array(1, dtype), np.array(LARGEST_EXPONENT[dtype.itemsize], dtype)


def _sigmoid(x: Array, out: Array | None = None) -> Array:
    # 1 / (1 + exp(-x)), accurate in both tails. NaN stays NaN.
    one, largest = _constants(x.dtype)
    out = np.negative(x, out=np.empty_like(x) if out is None else out)
    np.minimum(out, largest, out=out)
    np.exp(out, out=out)
    np.add(out, one, out=out)
    return np.divide(one, out, out=out)


try:
    from scipy.special import erf as _erf
except ImportError:

    def _erf(x: Array) -> Array:
        """Exact and slow; installing SciPy makes it quick."""
        return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


def _clip(x: Array, *, low: float | None, high: float | None) -> Array:
    return np.clip(x, low, high)


def _sum(x: Array, *, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.add.reduce(x, axis=axis if len(axis) != 1 else axis[0], keepdims=keepdims)  # type: ignore[call-overload]


def _max(x: Array, *, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.maximum.reduce(x, axis=axis, keepdims=keepdims)  # type: ignore[call-overload]


def _min(x: Array, *, axis: tuple[int, ...], keepdims: bool) -> Array:
    return np.minimum.reduce(x, axis=axis, keepdims=keepdims)  # type: ignore[call-overload]


def _reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def _permute(x: Array, *, axes: tuple[int, ...]) -> Array:
    if axes == (-1, -2):
        return x.mT
    return x.transpose(full_permutation(axes, x.ndim))


def _broadcast_to(x: Array, *, shape: tuple[int, ...]) -> Array:
    if math.prod(shape) <= SMALL and 0 not in shape:
        out = np.empty(shape, x.dtype)
        out[...] = x
        return out
    return np.broadcast_to(x, shape)


def _pad(x: Array, *, widths: tuple[tuple[int, int], ...], value: float) -> Array:
    if not widths:  # np.pad takes no empty tuple
        return x.copy()
    return np.pad(x, (*[(0, 0)] * (x.ndim - len(widths)), *widths), constant_values=value)


def _getitem(x: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
    return x[fill_key(key, indices)]


def _scatter_add(values: Array, *indices: Array, key: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    return _scatter_add_into(np.zeros(shape, values.dtype), values, *indices, key=key)


def _scatter_add_into(total: Array, values: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
    if indices:
        np.add.at(total, fill_key(key, indices), values)  # an index may occur twice
    else:
        total[key] += values
    return total


def _argsort(x: Array, *, axis: int, descending: bool) -> Array:
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    # Stable in descending order, and NaN first, as array libraries have it: sort the reversed array, then turn both back.
    order = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - order


def _concatenate(*arrays: Array, axis: int, sizes: tuple[int, ...]) -> Array:
    return np.concatenate(arrays, axis=axis)


def _matmul(x: Array, y: Array) -> Array:
    # ndarray.dot reaches BLAS in a third of the time that the ufunc takes to set out.
    return x.dot(y) if x.ndim == 2 == y.ndim else np.matmul(x, y)


class NumpyBackend(Backend):
    """NumPy arrays on the CPU."""

    name: ClassVar[str] = "numpy"
    install: ClassVar[str] = "pip install numpy"
    generator_family: ClassVar[str] = "numpy"
    sums_products: ClassVar[bool] = False
    xp = np
    array_type = np.ndarray

    def __init__(self) -> None:
        super().__init__()
        self.fused = {"attention": Attention()}
        self.fuses = fuses

    def overrides(self) -> dict[str, Callable[..., Any]]:
        """NumPy takes numbers beside arrays as they are, so its ufuncs serve directly."""
        return {
            "add": np.add,
            "sub": np.subtract,
            "mul": np.multiply,
            "div": np.divide,
            "power": operator.pow,  # the operator squares and takes roots quicker than the ufunc
            "remainder": np.remainder,
            "floor_divide": np.floor_divide,
            "maximum": np.maximum,
            "minimum": np.minimum,
            "eq": np.equal,
            "ne": np.not_equal,
            "lt": np.less,
            "le": np.less_equal,
            "gt": np.greater,
            "ge": np.greater_equal,
            "where": np.where,
            "relu": lambda x: np.maximum(x, 0),
            "sigmoid": _sigmoid,
            "erf": _erf,
            "clip": _clip,
            "cast": lambda x, *, dtype: x.astype(dtype),
            "copy": lambda x: x.copy(),
            "matmul": _matmul,
            "sum": _sum,
            "max": _max,
            "min": _min,
            "reshape": _reshape,
            "permute": _permute,
            "broadcast_to": _broadcast_to,
            "pad": _pad,
            "getitem": _getitem,
            "scatter_add": _scatter_add,
            "scatter_add_into": _scatter_add_into,
            "argsort": _argsort,
            "concatenate": _concatenate,
        }

    def native_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """NumPy's own dtypes, and those of packages that extend it, such as ml_dtypes."""
        return dtype

    def compile_loop(self, step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
        """The step as a Python function of NumPy calls that write into buffers made once."""
        from tinyseq_numpy.loop import compile_loop

        return compile_loop(step, self)

    def contiguous(self, array: Array) -> Array:
        """The array in C order."""
        return array if array.flags.c_contiguous else array.copy()
