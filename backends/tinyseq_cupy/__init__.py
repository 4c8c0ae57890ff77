"""The CuPy backend: the same table on arrays that live on an NVIDIA GPU.

**Nothing here has run on a GPU yet.** What is checked without one: that every function it names exists in CuPy, how it
is imported, what it says where it cannot run, and the arithmetic of its random numbers.

No operation copies to the host; ``.numpy()``, ``.item()``, ``print`` and the like do, and wait for the device. As always
in CuPy, an index out of bounds wraps around without an error, and sums of many terms into one place (the gradient of a
look-up) add in no fixed order.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tinyseq.array_api import fill_key, full_permutation
from tinyseq.backend import Backend
from tinyseq_cupy.philox import Philox

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["CupyBackend"]

Array = Any
Axes = tuple[int, ...]


class CupyBackend(Backend):
    """CuPy arrays on the current CUDA device."""

    name: ClassVar[str] = "cupy"
    install: ClassVar[str] = "pip install 'tinyseq[cuda12]' (or cuda13, to match the driver)"
    generator_family: ClassVar[str] = "cupy"

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self.array_type = cupy.ndarray
        super().__init__()

    @classmethod
    def unavailable(cls) -> str | None:
        """CuPy is missing or broken, or it finds no GPU."""
        if importlib.util.find_spec("cupy") is None:
            return "CuPy is not installed"
        try:
            import cupy
        except Exception as error:  # what a broken CUDA installation raises is not only ImportError
            return f"CuPy is installed but cannot be imported: {str(error).strip().splitlines()[0]}"
        if not cupy.cuda.is_available():
            return "CuPy is installed but finds no GPU, or no driver for one that is new enough"
        return None

    @property
    def device(self) -> str:
        """The GPU's name and number."""
        number = self.xp.cuda.Device().id
        name = self.xp.cuda.runtime.getDeviceProperties(number)["name"].decode()
        return f"{name} (cuda:{number})"

    def overrides(self) -> dict[str, Callable[..., Array]]:
        """CuPy's ufuncs take numbers beside arrays as they are; making an array of each would be a copy to the device."""
        return _overrides(self.xp)

    def native_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """CuPy uses NumPy's dtypes."""
        return dtype

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """A copy on the host; waits for the device."""
        host: np.ndarray[Any, Any] = self.xp.asnumpy(array)
        return host

    def compile_loop(self, step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
        """The step as CUDA kernels; operation by operation where there is no code for one."""
        from tinyseq.compiler import debug
        from tinyseq_cupy.loop.cuda import DeviceLoops
        from tinyseq_cupy.loop.plan import Unsupported

        try:
            return DeviceLoops(step)
        except Unsupported as reason:
            debug.show("time", f"fell back to one operation at a time: there is no code for {reason}")
            _say_once(str(reason))
            return super().compile_loop(step)

    def contiguous(self, array: Array) -> Array:
        """The array in C order."""
        return array if array.flags.c_contiguous else array.copy()

    def synchronize(self) -> None:
        """Wait for all work on the current device."""
        self.xp.cuda.Device().synchronize()

    def new_generator(self, seed: int) -> Philox:
        """Numbers are made on the device; the state, a key and a counter, stays on the host."""
        return Philox(self.xp, seed)

    def generator_state(self, generator: Philox) -> dict[str, Any]:
        """The key and the counter."""
        return generator.state

    def set_generator_state(self, generator: Philox, state: dict[str, Any]) -> None:
        """Put back a key and a counter."""
        generator.state = state


@cache
def _say_once(reason: str) -> None:
    warnings.warn(f"a scan runs one operation at a time, since the compiled loop has no code for {reason}", stacklevel=6)


def _overrides(cupy: Any) -> dict[str, Callable[..., Array]]:
    from cupyx import scatter_add
    from cupyx.scipy.special import erf

    sigmoid = cupy.ElementwiseKernel("T x", "T out", "out = (T)1 / ((T)1 + exp(-x))", "tinyseq_sigmoid")

    def reducing(reduce: Callable[..., Array]) -> Callable[..., Array]:
        return lambda x, *, axis, keepdims: reduce(x, axis=axis, keepdims=keepdims)

    def clip(x: Array, *, low: float | None, high: float | None) -> Array:
        x = x if low is None else cupy.maximum(x, low)
        return x if high is None else cupy.minimum(x, high)

    def pad(x: Array, *, widths: tuple[tuple[int, int], ...], value: float) -> Array:
        lead = x.ndim - len(widths)
        shape = (*x.shape[:lead], *(sum(width) + size for width, size in zip(widths, x.shape[lead:], strict=True)))
        out = cupy.full(shape, value, dtype=x.dtype)
        out[(Ellipsis, *(slice(low, low + size) for (low, _), size in zip(widths, x.shape[lead:], strict=True)))] = x
        return out

    def scatter_add_into(total: Array, values: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
        if not indices:
            total[key] += values
        elif total.dtype == np.int64:
            # CUDA adds atomically to unsigned words only; in two's complement that is the same sum.
            scatter_add(total.view(np.uint64), fill_key(key, indices), values.astype(np.int64, copy=False).view(np.uint64))
        else:
            scatter_add(total, fill_key(key, indices), values)
        return total

    def argsort(x: Array, *, axis: int, descending: bool) -> Array:
        if not descending:
            return cupy.argsort(x, axis=axis)
        # Stable in descending order, and NaN first: sort the reversed array, then turn both back.
        order = cupy.flip(cupy.argsort(cupy.flip(x, axis), axis=axis), axis)
        return x.shape[axis] - 1 - order

    return {
        "add": cupy.add,
        "sub": cupy.subtract,
        "mul": cupy.multiply,
        "div": cupy.true_divide,
        "power": cupy.power,
        "remainder": cupy.remainder,
        "floor_divide": cupy.floor_divide,
        "maximum": cupy.maximum,
        "minimum": cupy.minimum,
        "eq": cupy.equal,
        "ne": cupy.not_equal,
        "lt": cupy.less,
        "le": cupy.less_equal,
        "gt": cupy.greater,
        "ge": cupy.greater_equal,
        "where": cupy.where,
        "relu": lambda x: cupy.maximum(x, 0),
        "sigmoid": sigmoid,
        "erf": erf,
        "round": cupy.rint,
        "clip": clip,
        "cast": lambda x, *, dtype: x.astype(dtype),
        "copy": lambda x: x.copy(),
        "sum": reducing(cupy.sum),
        "max": reducing(cupy.max),
        "min": reducing(cupy.min),
        "all": reducing(cupy.all),
        "any": reducing(cupy.any),
        "argmax": lambda x, *, axis: cupy.argmax(x, axis=axis),
        "argmin": lambda x, *, axis: cupy.argmin(x, axis=axis),
        "cumsum": lambda x, *, axis: cupy.cumsum(x, axis=axis),
        "reshape": lambda x, *, shape: x.reshape(shape),
        "permute": lambda x, *, axes: x.transpose(full_permutation(axes, x.ndim)),
        "pad": pad,
        "concatenate": lambda *arrays, axis, sizes: cupy.concatenate(arrays, axis=axis),
        "getitem": lambda x, *indices, key: x[fill_key(key, indices)],
        "scatter_add": lambda values, *indices, key, shape: scatter_add_into(
            cupy.zeros(shape, values.dtype), values, *indices, key=key
        ),
        "scatter_add_into": scatter_add_into,
        "argsort": argsort,
    }
