"""So much of CuPy as ``tinyseq_cupy.loop.cuda`` calls, on the CPU: what it starts runs through the shim."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_shim import CpuMachine, CpuProgram

Call = Callable[[], None]


class DeviceArray(np.ndarray[Any, Any]):
    """A NumPy array whose ``data`` is a pointer as CuPy has it."""

    @property
    def data(self) -> Any:  # type: ignore[override]
        return Pointer(self.__array_interface__["data"][0])

    @property
    def device(self) -> Any:  # type: ignore[override]
        import sys

        cupy = sys.modules["cupy"]
        return cupy.cuda.Device(getattr(self, "number", None))

    def __array_finalize__(self, other: Any) -> None:
        if isinstance(other, DeviceArray) and hasattr(other, "number"):
            self.number = other.number


class Pointer:
    def __init__(self, ptr: int, events: list[str] | None = None) -> None:
        self.ptr, self.events = ptr, events if events is not None else []

    def __add__(self, count: int) -> Pointer:
        return Pointer(self.ptr + count, self.events)

    def _copy(self, source: int, size: int) -> None:
        import ctypes

        ctypes.memmove(self.ptr, source, size)

    def copy_from_host_async(self, source: int, size: int, stream: Any) -> None:
        self.events.append("table")
        self._copy(source, size)

    def copy_from_device_async(self, source: Pointer, size: int, stream: Any) -> None:
        self.events.append("entry")
        self._copy(source.ptr, size)


class Function:
    """A kernel on the device; while a stream captures, it is kept instead of run."""

    ptr = 1

    def __init__(self, cupy: CupyOnCpu, program: CpuProgram, name: str) -> None:
        self.cupy, self.program, self.name = cupy, program, name

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int, enable_cooperative_groups: bool = False) -> None:
        assert enable_cooperative_groups == (self.name == "ts_loop")
        call = lambda: self.program.run(self.name, grid, shared_mem, int(args[0]) if args else 0)
        if self.cupy.captured is not None:
            self.cupy.captured.append(call)
            return
        self.cupy.events.append(self.name)
        call()


class Graph:
    def __init__(self, cupy: CupyOnCpu, calls: list[Call]) -> None:
        self.cupy, self.calls = cupy, calls

    def launch(self) -> None:
        self.cupy.events.append(f"graph of {len(self.calls)}")
        for call in self.calls:
            call()


class Stream:
    def __init__(self, cupy: CupyOnCpu) -> None:
        self.cupy = cupy

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin_capture(self) -> None:
        self.cupy.captured = []

    def end_capture(self) -> Graph:
        calls, self.cupy.captured = self.cupy.captured, None
        assert calls is not None
        return Graph(self.cupy, calls)

    def wait_event(self, event: Any) -> None:
        self.cupy.events.append("wait")


class Event:
    def __init__(self, cupy: CupyOnCpu) -> None:
        self.cupy = cupy

    def synchronize(self) -> None:
        pass  # a copy of eight calls ago

    def record(self, stream: Any) -> None:
        self.cupy.events.append("record")


class OutOfMemoryError(MemoryError):
    pass


class Device:
    """A device, which is the current one within ``with``."""

    def __init__(self, cupy: CupyOnCpu, number: int | None) -> None:
        self.cupy, self.id = cupy, cupy.current if number is None else number
        limits = CpuMachine.limits
        self.compute_capability = cupy.capability
        self.attributes = {"MultiProcessorCount": limits.processors, "MaxSharedMemoryPerBlockOptin": limits.shared}
        self.before: list[int] = []

    def __enter__(self) -> Device:
        self.before.append(self.cupy.current)
        self.cupy.current = self.id
        return self

    def __exit__(self, *error: object) -> None:
        self.cupy.current = self.before.pop()

    def synchronize(self) -> None:
        self.cupy.events.append(f"synchronize {self.id}")


class CupyOnCpu(types.ModuleType):
    """Put it into ``sys.modules`` as ``cupy`` and ``cupyx``.

    Attributes:
        events: what was started, in order.
        capability, resident: what a device says of itself.
        current: the number of the current device.
    """

    def __init__(self) -> None:
        super().__init__("cupy")
        self.events: list[str] = []
        self.captured: list[Call] | None = None
        self.capability, self.resident, self.current = "90", 1, 0
        self.cuda = types.SimpleNamespace(
            Device=lambda number=None: Device(self, number),
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=types.SimpleNamespace(memGetInfo=lambda: (2**29, 8 * 2**30)),
            Event=lambda disable_timing: Event(self),
            Stream=lambda non_blocking: Stream(self),
            get_current_stream=lambda: Stream(self),
            driver=types.SimpleNamespace(occupancyMaxActiveBlocksPerMultiprocessor=lambda *_: self.resident),
        )

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Any:
        return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 1, dtype).view(DeviceArray)

    @staticmethod
    def zeros(count: int, dtype: Any) -> Any:
        return np.zeros(count, dtype).view(DeviceArray)

    @staticmethod
    def arange(start: int, stop: int, step: int, dtype: Any) -> Any:
        return np.arange(start, stop, step, dtype).reshape(-1, 1).view(DeviceArray)  # an element of CuPy's is an array

    @staticmethod
    def ascontiguousarray(array: Any) -> Any:
        return np.ascontiguousarray(array).view(DeviceArray)

    @staticmethod
    def empty_pinned(count: int, dtype: Any) -> Any:
        return np.empty(count, dtype)

    def RawModule(self, *, code: str, options: tuple[str, ...]) -> Any:
        import ctypes

        defines = {}
        for option in options:
            if option.startswith("-D"):
                name, value = option[2:].split("=")
                defines[name] = int(value)
        program = CpuMachine().compile(code, defines)
        table = ctypes.addressof(ctypes.c_longlong.in_dll(program.library, "ts_table"))
        return types.SimpleNamespace(
            get_global=lambda name: Pointer(table, self.events),
            get_function=lambda name: types.SimpleNamespace(kernel=Function(self, program, name)),
        )
