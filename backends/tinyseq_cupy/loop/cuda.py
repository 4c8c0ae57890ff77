"""The loop's kernels on a GPU through CuPy: compiled by NVRTC, kept on the disk by CuPy, started without waiting for anything.

**Nothing here has run on a GPU yet.**
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.errors import BackendError
from tinyseq_cupy.device import memory_explained
from tinyseq_cupy.loop.plan import plan_step
from tinyseq_cupy.loop.run import Loop
from tinyseq_cupy.loop.source import HEADER
from tinyseq_cupy.loop.tiles import Device

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["CudaMachine", "DeviceLoops", "current_machine"]

Array = Any
CAPABILITY = 70  # release and acquire instructions came with Volta
TENSOR_CORES = 80  # those that take bfloat16 and TF32 came with Ampere
STEPS = 32  # of a CUDA graph, at most; it is replayed for every so many steps
TABLES = 8  # calls that may be under way before the host waits for the first of them


def current_machine() -> CudaMachine:
    """The current device's machine."""
    import cupy

    return _machine(cupy.cuda.Device().id)


@cache
def _machine(number: int) -> CudaMachine:
    return CudaMachine(number)


class DeviceLoops:
    """A step's loop on the device where its arrays are when it is called; the current device's is made at once.

    Args:
        step: what to compile.
        tf32: whether products of float32 may be rounded to TF32, asked at each call.

    Raises:
        Unsupported: there is no code for an operation in the step, or a block's share does not fit into shared memory.
    """

    def __init__(self, step: Step, tf32: Callable[[], bool]) -> None:
        self.plan, self.tf32 = plan_step(step), tf32
        self.loops: dict[tuple[CudaMachine, bool], Loop] = {}
        self.loop()

    def __call__(
        self, carry: Sequence[Array], stacks: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        """Run it.

        Raises:
            BackendError: the device's memory is full.
        """
        import cupy

        with carry[0].device, memory_explained(cupy):
            return self.loop()(carry, stacks, closed, steps, reverse)

    def loop(self) -> Loop:
        """The current device's."""
        key = current_machine(), self.tf32()
        if key not in self.loops:
            self.loops[key] = Loop(self.plan, key[0], tf32=key[1])
        return self.loops[key]


class CudaMachine:
    """A GPU, as ``tinyseq_cupy.loop.run`` wants it.

    Raises:
        BackendError: the GPU is too old.
    """

    def __init__(self, number: int) -> None:
        import cupy

        self._cupy, self.number = cupy, number
        self._programs: dict[tuple[Any, ...], CudaProgram] = {}
        device = cupy.cuda.Device(number)
        capability = int(device.compute_capability)
        if capability < CAPABILITY:
            raise BackendError(
                f"compiled loops need a GPU of compute capability 7.0 or newer, and cuda:{number} has "
                f"{device.compute_capability[:-1]}.{device.compute_capability[-1]}: use scan(unroll=True) or another backend"
            )
        self.limits = Device(
            device.attributes["MultiProcessorCount"],
            device.attributes["MaxSharedMemoryPerBlockOptin"],
            capability >= TENSOR_CORES,
        )

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array on the device."""
        return self._cupy.empty(shape, dtype)

    def zeros(self, count: int) -> Array:
        """Counters on the device."""
        return self._cupy.zeros(count, np.uint32)

    def contiguous(self, array: Array) -> Array:
        """The array in C order."""
        return self._cupy.ascontiguousarray(array)

    def address(self, array: Array) -> int:
        """On the device."""
        return int(array.data.ptr)

    def compile(self, text: str, defines: dict[str, int]) -> CudaProgram:
        """By NVRTC; CuPy keeps what it compiled in its own folder on the disk.

        CuPy also loads the same text only once. So there is one program for it, which knows when its table is in use.
        """
        options = ("-std=c++17", *(f"-D{name}={value}" for name, value in defines.items()))
        if (text, options) not in self._programs:
            module = self._cupy.RawModule(code=text, options=options)
            self._programs[text, options] = CudaProgram(self._cupy, module, defines["TS_THREADS"], self.limits)
        return self._programs[text, options]


class CudaProgram:
    """A compiled source on one device."""

    def __init__(self, cupy: Any, module: Any, threads: int, limits: Device) -> None:
        self._cupy, self.module, self.threads, self.limits = cupy, module, threads, limits
        self.kernels: dict[tuple[str, int], Any] = {}
        self.graphs: dict[Any, Any] = {}

    @cached_property
    def table(self) -> _Table:
        """The table of the kernels' arguments, in the device's constant memory."""
        return _Table(self._cupy, self.module.get_global("ts_table"))

    def kernel(self, name: str, shared: int) -> Any:
        """A kernel that may have so many bytes of shared memory."""
        if (name, shared) not in self.kernels:
            kernel = self.module.get_function(name)
            kernel.max_dynamic_shared_size_bytes = shared
            self.kernels[name, shared] = kernel.kernel
        return self.kernels[name, shared]

    def persistent(self, table: Sequence[int], grid: tuple[int, int], shared: int) -> None:
        """One cooperative launch.

        Raises:
            BackendError: not all blocks would run at once, and so they would wait for each other for ever.
        """
        kernel = self.kernel("ts_loop", shared)
        at_once = self._cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.ptr, self.threads, shared)
        check_resident(grid, at_once * self.limits.processors, shared)
        with self.table.filled(table):
            kernel(grid, (self.threads,), (), shared_mem=shared, enable_cooperative_groups=True)

    def streamed(self, table: Sequence[int], grid: tuple[int, int], shared: int, before: bool, each: int, steps: int) -> None:
        """A graph of some steps, again and again; kernels past the last step return at once."""
        count = min(STEPS, 1 << (steps - 1).bit_length())
        graph = self._graph(grid, shared, each, count)
        firsts = self._cupy.arange(0, steps, count, dtype=np.int64)
        with self.table.filled(table):
            if before:
                self.kernel("ts_before", shared)(grid, (self.threads,), (np.int32(0),), shared_mem=shared)
            for i in range(len(firsts)):
                if i:
                    self.table.copy_entry("first_step", firsts[i])
                graph.launch()

    def plain(self, name: str, table: Sequence[int], grid: tuple[int, int], shared: int) -> None:
        """Any kernel, once."""
        kernel = self.kernel(name, shared)
        with self.table.filled(table):
            kernel(grid, (self.threads,), (), shared_mem=shared)

    def _graph(self, grid: tuple[int, int], shared: int, each: int, count: int) -> Any:
        key = grid, shared, count
        if key not in self.graphs:
            kernels = [self.kernel(f"ts_kernel{k}", shared) for k in range(each)]  # loaded before the capture
            stream = self._cupy.cuda.Stream(non_blocking=True)
            with stream:
                stream.begin_capture()
                for i, kernel in itertools.product(range(count), kernels):
                    kernel(grid, (self.threads,), (np.int32(i),), shared_mem=shared)
                self.graphs[key] = stream.end_capture()
        return self.graphs[key]


def check_resident(grid: tuple[int, int], at_once: int, shared: int) -> None:
    """Refuse a grid whose blocks would not all run at the same time.

    Raises:
        BackendError: it would not.
    """
    blocks = grid[0] * grid[1]
    if blocks > at_once:
        raise BackendError(
            f"the persistent loop has {blocks} blocks of {shared} bytes of shared memory that must run at the same time, "
            f"but this GPU runs {at_once}: free it of other programs, or use a smaller batch"
        )


class _Table:
    """The kernels' arguments in constant memory, written by way of page-locked memory, so that the host waits for nothing."""

    def __init__(self, cupy: Any, target: Any) -> None:
        self._cupy, self.target = cupy, target
        self.free: itertools.cycle[Any] | None = None
        self.done = self._cupy.cuda.Event(disable_timing=True)

    def filled(self, values: Sequence[int]) -> _Table:
        """For ``with``: kernels started inside it find these values."""
        from cupyx import empty_pinned

        if self.free is None:
            events = [self._cupy.cuda.Event(disable_timing=True) for _ in range(TABLES)]
            self.free = itertools.cycle([(empty_pinned(len(values), np.int64), event) for event in events])
        host, copied = next(self.free)
        copied.synchronize()
        host[:] = values
        stream = self._cupy.cuda.get_current_stream()
        stream.wait_event(self.done)  # another stream may still use what is there now
        self.target.copy_from_host_async(host.ctypes.data, host.nbytes, stream)
        copied.record(stream)
        return self

    def copy_entry(self, name: str, value: Array) -> None:
        """Put a number that is on the device into the table."""
        (self.target + 8 * HEADER.index(name)).copy_from_device_async(value.data, 8, self._cupy.cuda.get_current_stream())

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.done.record(self._cupy.cuda.get_current_stream())
