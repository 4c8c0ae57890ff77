"""Generated CUDA source on the CPU: compiled by the host's C++ compiler, each CUDA thread a fiber.

It stands for a GPU in ``tinyseq_cupy.loop.run``, so that what is tested is the source as it is and the code that starts it.
It shows wrong indices, missing barriers and what is never written. It shows nothing of a GPU's memory model or speed.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tinyseq_cupy.loop.tiles import Device

HERE = Path(__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")
ORDERS = {"ascending": 0, "descending": 1, "random": 2}


WRONG = {
    1: "no thread can go on",
    2: "threads of a block wait at different barriers",
    3: "a block wrote past its shared memory",
}


class Broken(Exception):
    """A kernel did what no kernel may; the sentence says what."""


class CpuMachine:
    """A machine of ``tinyseq_cupy.loop.run``: NumPy's arrays, full of NaN at first.

    Args:
        order: in which order threads run: "ascending", "descending" or "random".
        seed: of the random order.
        flags: more options of the compiler.
    """

    limits = Device(processors=16, shared=200_000)

    def __init__(self, order: str = "ascending", seed: int = 0, flags: Sequence[str] = ()) -> None:
        self.order, self.seed, self.flags = ORDERS[order], seed, tuple(flags)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        nothing = {"b": True, "i": -77}.get(dtype.kind, np.nan)
        return np.full(shape, nothing, dtype)

    def zeros(self, count: int) -> Any:
        return np.zeros(count, np.uint32)

    def contiguous(self, array: Any) -> Any:
        return np.ascontiguousarray(array)

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def compile(self, text: str, defines: dict[str, int]) -> CpuProgram:
        return CpuProgram(self, build(text, defines, self.flags))


class CpuProgram:
    """A compiled source."""

    def __init__(self, machine: CpuMachine, library: ctypes.CDLL) -> None:
        self.machine, self.library = machine, library

    def run(self, kernel: str, grid: tuple[int, int], shared: int, i: int) -> None:
        threads = ctypes.c_int.in_dll(self.library, "shim_threads").value
        function = ctypes.cast(getattr(self.library, kernel), ctypes.c_void_p)
        result = self.library.shim_run(
            function, *grid, threads, ctypes.c_long(shared), i, self.machine.order, self.machine.seed
        )
        if result:
            raise Broken(WRONG[result])

    def fill(self, table: Sequence[int]) -> None:
        (ctypes.c_longlong * len(table)).in_dll(self.library, "ts_table")[:] = table

    def persistent(self, table: Sequence[int], grid: tuple[int, int], shared: int) -> None:
        self.fill(table)
        self.run("ts_loop", grid, shared, 0)

    def plain(self, name: str, table: Sequence[int], grid: tuple[int, int], shared: int) -> None:
        self.fill(table)
        self.run(name, grid, shared, 0)

    def streamed(self, table: Sequence[int], grid: tuple[int, int], shared: int, before: bool, each: int, steps: int) -> None:
        self.fill(table)
        if before:
            self.run("ts_before", grid, shared, 0)
        for i in range(steps):
            for k in range(each):
                self.run(f"ts_kernel{k}", grid, shared, i)


_folder = tempfile.TemporaryDirectory(prefix="tinyseq-shim-")
atexit.register(_folder.cleanup)
_libraries: dict[str, ctypes.CDLL] = {}


def _compile(arguments: Sequence[str]) -> None:
    assert COMPILER is not None
    done = subprocess.run([COMPILER, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def build(text: str, defines: dict[str, int], flags: Sequence[str] = ()) -> ctypes.CDLL:
    """A library with the kernels of a source and the scheduler."""
    options = [*(f"-D{name}={value}" for name, value in defines.items()), *flags]
    key = hashlib.sha256(repr((text, options)).encode()).hexdigest()[:16]
    if key not in _libraries:
        folder = Path(_folder.name)
        scheduler = folder / "shim.o"
        if not scheduler.exists():
            _compile(["-std=c++17", "-O2", "-fPIC", "-c", str(HERE / "shim.cpp"), "-o", str(scheduler)])
        code, library = folder / f"{key}.cpp", folder / f"{key}.so"
        code.write_text(text + 'extern "C" { int shim_threads = TS_THREADS; }\n')
        include = ["-include", str(HERE / "shim.h")]
        _compile(  # most are run for milliseconds: to optimize them would take longer than it saves
            ["-std=c++17", "-O0", "-w", "-shared", "-fPIC", *options, *include, str(code), str(scheduler), "-o", str(library)]
        )
        _libraries[key] = ctypes.CDLL(str(library))
    return _libraries[key]
