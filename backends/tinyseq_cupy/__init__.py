"""The CuPy backend: the same table on arrays that live on an NVIDIA GPU.

**Nothing here has run on a GPU yet.** What is checked without one: that every function it names exists in CuPy, how it
is imported, what it says where it cannot run, and the arithmetic of its random numbers.

No operation copies to the host; ``.numpy()``, ``.item()``, ``print`` and the like do, and wait for the device. As always
in CuPy, an index out of bounds wraps around without an error, and sums of many terms into one place (the gradient of a
look-up) add in no fixed order.

``"cupy"`` is the current CUDA device, ``"cupy:1"`` device 1. An operation runs where its arrays are. Memory comes from
CuPy's pool, which keeps what is freed for the next array.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tinyseq.array_api import fill_key, full_permutation
from tinyseq.backend import Backend, get_backend
from tinyseq_cupy.device import careful, device_count, device_name, device_number, memory_explained, why_no_device
from tinyseq_cupy.philox import Philox

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step
    from tinyseq.graph import Graph
    from tinyseq_cupy.elementwise import Elementwise

__all__ = ["CupyBackend"]

Array = Any
_DEFAULT, _TF32 = 1, 7  # of cupy._core._routines_linalg's compute types


class CupyBackend(Backend):
    """CuPy arrays on a CUDA device.

    Args:
        number: the device on which new arrays are made; the one that is current at the time if None.
    """

    name: str = "cupy"  # type: ignore[misc]  # each device has a name and a random generator of its own
    generator_family: str = "cupy"  # type: ignore[misc]
    install: ClassVar[str] = "pip install 'tinyseq[cuda12]' (or cuda13, to match the driver)"
    recomputes: ClassVar[bool] = True
    dlpack_devices: ClassVar[tuple[int, ...]] = (2, 13)  # CUDA's memory, and such as moves by itself

    def __init__(self, number: int | None = None) -> None:
        import cupy

        self.xp = cupy
        self.array_type = cupy.ndarray
        self.number = number
        super().__init__()
        if number is not None:
            self.name = self.generator_family = f"cupy:{number}"
        self.several = device_count(cupy) > 1
        self.table.update({name: careful(name, operation, cupy, self.several) for name, operation in self.table.items()})
        self._compiled: dict[tuple[Any, ...], Elementwise] = {}

    @classmethod
    def on(cls, place: str) -> CupyBackend:
        """The device with that number."""
        import cupy

        return cls(device_number(place, cupy))

    @classmethod
    def unavailable(cls) -> str | None:
        """CuPy is missing or broken, or it finds no GPU."""
        if importlib.util.find_spec("cupy") is None:
            return "CuPy is not installed"
        try:
            import cupy
        except Exception as error:  # what a broken CUDA installation raises is not only ImportError
            return f"CuPy is installed but cannot be imported: {str(error).strip().splitlines()[0]}"
        return why_no_device(cupy)

    @property
    def device(self) -> str:
        """The GPU's name and number."""
        number = self.xp.cuda.Device().id if self.number is None else self.number
        return f"{device_name(self.xp, number)} (cuda:{number})"

    @property
    def allow_tf32(self) -> bool:
        """Whether products of float32 may round what they multiply to TF32, for which there are fast tensor cores.

        Off, as in PyTorch, unless the environment says ``CUPY_TF32=1``. It is CuPy's own setting, and holds for all devices.
        """
        from cupy._core import get_compute_type

        return bool(get_compute_type(np.float32) == _TF32)

    @allow_tf32.setter
    def allow_tf32(self, allowed: bool) -> None:
        from cupy._core import set_compute_type

        set_compute_type(np.float32, _TF32 if allowed else _DEFAULT)

    @contextmanager
    def _here(self) -> Iterator[None]:
        """Make new arrays on this device."""
        cupy = self.xp
        with nullcontext() if self.number is None else cupy.cuda.Device(self.number), memory_explained(cupy):
            yield

    def overrides(self) -> dict[str, Callable[..., Array]]:
        """CuPy's ufuncs take numbers beside arrays as they are; making an array of each would be a copy to the device."""
        return _overrides(self.xp)

    def native_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """CuPy uses NumPy's dtypes."""
        return dtype

    def holds(self, array: Array) -> bool:
        """Whether it is a CuPy array, and on this device."""
        if not self._own(array) or not self.several:
            return self._own(array)
        number = self.xp.cuda.Device().id if self.number is None else self.number
        return bool(array.device.id == number)

    def _own(self, array: Any) -> bool:
        return type(array) is self.array_type

    def owner(self, array: Array) -> Backend:
        """That of the array's device, if there are several."""
        if not self.several or self.holds(array):
            return self
        return get_backend(f"cupy:{array.device.id}")

    def moved(self, array: Array) -> Array:
        """A CuPy array of another device on this one, without the host."""
        with self._here():
            return array.copy()

    def asarray(self, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
        """Values on this device; a CuPy array stays where it is."""
        if self._own(value) and dtype in (None, value.dtype):
            return value
        with self._here():
            return self.xp.asarray(value, dtype=dtype)

    def full(self, shape: tuple[int, ...], value: Any, dtype: np.dtype[Any]) -> Array:
        """A new array with every element equal to ``value``."""
        with self._here():
            return self.xp.full(shape, value, dtype=dtype)

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
            with self._here():
                return DeviceLoops(step, lambda: self.allow_tf32)
        except Unsupported as reason:
            debug.show("time", f"fell back to one operation at a time: there is no code for {reason}")
            _say_once(str(reason))
            return super().compile_loop(step)

    def compile_graph(self, graph: Graph) -> Callable[..., list[Array]]:
        """Elementwise work and reductions of rows as one kernel each; the rest as it is."""
        from tinyseq_cupy.loop.cuda import current_machine
        from tinyseq_cupy.regions import compile_graph

        program = compile_graph(graph, self, current_machine)

        def run(*arrays: Array) -> list[Array]:
            where = next((a.device for a in arrays if self._own(a)), nullcontext())
            with where, memory_explained(self.xp):
                return program(*arrays)

        return run

    def elementwise(self, rule: Callable[..., Callable[..., tuple[Any, ...]]], **flags: Any) -> Callable[..., tuple[Any, ...]]:
        """One kernel that writes in place, for float16, float32 and float64."""
        from tinyseq_cupy.elementwise import Elementwise

        key = (rule, *sorted(flags.items()))
        if key not in self._compiled:
            self._compiled[key] = Elementwise(self.xp, rule, flags, super().elementwise(rule, **flags))
        return self._compiled[key]

    def contiguous(self, array: Array) -> Array:
        """The array in C order."""
        return array if array.flags.c_contiguous else self.table["copy"](array)

    def synchronize(self) -> None:
        """Wait for all work on this device."""
        with self._here():
            self.xp.cuda.Device().synchronize()

    def new_generator(self, seed: int) -> Philox:
        """Numbers are made on the device; the state, a key and a counter, stays on the host."""
        return Philox(self.xp, seed, self._here)

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

    def matmul(x: Array, y: Array) -> Array:
        if x.ndim < 3 or y.ndim != 2:
            return cupy.matmul(x, y)
        # One product of many rows. As a batch of products CuPy 14 computes float16 in float32, and bfloat16 not at all.
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return cupy.matmul(rows, y).reshape(*x.shape[:-1], y.shape[-1])

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
        "matmul": matmul,
        "pad": pad,
        "concatenate": lambda *arrays, axis, sizes: cupy.concatenate(arrays, axis=axis),
        "getitem": lambda x, *indices, key: x[fill_key(key, indices)],
        "scatter_add": lambda values, *indices, key, shape: scatter_add_into(
            cupy.zeros(shape, values.dtype), values, *indices, key=key
        ),
        "scatter_add_into": scatter_add_into,
        "argsort": argsort,
    }
