"""Machine code from LLVM assembly, kept on the disk, and a step's loop run by it, a share of the batch a thread."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import os
import secrets
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
import platformdirs

from tinyseq.compiler import debug
from tinyseq.graph import Var
from tinyseq_numba.loop.kernel import Kernel, write_kernel
from tinyseq_numba.loop.layout import width_of
from tinyseq_numba.loop.product import pack

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["compile_step", "threads"]

Array = np.ndarray[Any, Any]
Function = Callable[[int, int, int, int, int, Any], None]
FORMAT = 2  # of the kept files


@cache
def _machine() -> tuple[llvm.TargetMachine, str]:
    """The code generator for this processor, and what it is."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=features, opt=3, jit=True)
    return machine, f"{llvmlite.__version__} {llvm.llvm_version_info} {target.triple} {name} {features}"


_engines: list[Any] = []  # for ever: LLVM crashes when an engine that was given an object file is taken down


@cache
def _function(text: str) -> Function:
    """The compiled ``loop`` of a module."""
    machine, description = _machine()
    path = _folder() / f"{hashlib.sha256(f'{FORMAT} {description} {text}'.encode()).hexdigest()[:40]}.o"
    code = _read(path)
    if code is None:
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = False  # the code is in vectors already
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        code = machine.emit_object(module)
        _write(path, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5, ctypes.c_void_p)  # releases the interpreter's lock
    _engines.append(engine)
    return kind(engine.get_function_address("loop"))


# --- machine code on the disk -----------------------------------------------------------------------------------------


def _folder() -> Path:
    named = os.environ.get("TINYSEQ_CACHE_DIR")
    return (Path(named) if named else platformdirs.user_cache_path("tinyseq", appauthor=False)) / "loops"


def _read(path: Path) -> bytes | None:
    """The kept code, if it is whole and the one of this name: it begins with a hash of both."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    if _digest(path, code) != digest:
        _say_once(f"a kept kernel in {path.parent} is damaged and is compiled anew")
        return None
    return code


def _write(path: Path, code: bytes) -> None:
    """Keep the code; two processes that do so at once each put a whole file in place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            part.write_bytes(_digest(path, code) + code)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        _say_once(
            f"compiled loops cannot be kept in {path.parent} ({error.strerror or error}) and are compiled anew in every run; "
            "set TINYSEQ_CACHE_DIR to a folder that can be written"
        )


def _digest(path: Path, code: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + code).digest()


@cache
def _say_once(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


# --- running ----------------------------------------------------------------------------------------------------------


def threads() -> int:
    """How many threads a loop may use: ``NUMBA_NUM_THREADS`` or ``OMP_NUM_THREADS``, else one a core."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """The threads of this process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="tinyseq-loop")


def compile_step(step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array]]]:
    """The step as a loop on NumPy arrays.

    Raises:
        Unsupported: there is no code for an operation in it.
    """
    kernel = write_kernel(step)
    debug.show("source", "LLVM", kernel.text)
    function = _function(kernel.text)
    return _Loop(step, kernel, function)


class _Loop:
    """``loop(carry, stacks, closed, steps, reverse)`` -> the last carry, histories (T + 1, ...), written stacks (T, ...)."""

    def __init__(self, step: Step, kernel: Kernel, function: Function) -> None:
        self.step, self.kernel, self.function = step, kernel, function
        layout = kernel.layout
        rows = layout.rows
        self.distances = [
            layout.reads[v].distance if i not in step.histories else width_of(v, rows) for i, v in enumerate(step.carry)
        ]

    def __call__(
        self, carry: Sequence[Array], stacks: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], list[Array]]:
        step, layout = self.step, self.kernel.layout
        batch = step.carry[0].shape[0]
        histories: dict[int, Array] = {}
        buffers: dict[int, Array] = {}
        for i, (v, start) in enumerate(zip(step.carry, carry, strict=True)):
            if i in step.histories:
                histories[i] = np.empty((steps + 1, *v.shape), v.dtype)
                histories[i][steps if reverse else 0] = start
            else:
                buffers[i] = np.empty((2, batch, self.distances[i]), v.dtype)
                buffers[i][0, :, : width_of(v, layout.rows)] = start.reshape(batch, -1)
        stacks = [np.ascontiguousarray(a) for a in stacks]
        closed = [np.ascontiguousarray(a) for a in closed]
        packed = [pack(closed[step.graph.closed.index(v)]) for v in layout.packed]
        written = [np.empty((steps, *v.shape), v.dtype) for v in step.written if isinstance(v, Var)]
        scratch = [np.empty((batch, width), dtype) for width, dtype in layout.scratch]
        pointers = (ctypes.c_void_p * self.kernel.count)()
        groups = {
            "carry": buffers, "history": histories, "stack": dict(enumerate(stacks)), "closed": dict(enumerate(closed)),
            "packed": dict(enumerate(packed)), "written": dict(enumerate(written)), "scratch": dict(enumerate(scratch)),
        }  # fmt: skip
        for kind, arrays in groups.items():
            for i, array in arrays.items():
                pointers[self.kernel.offsets[kind] + i] = array.ctypes.data
        self._run(batch, steps, int(reverse), pointers)
        last = []
        for i, v in enumerate(step.carry):
            if i in histories:
                last.append(histories[i][0 if reverse else steps])
            else:
                last.append(buffers[i][steps & 1, :, : width_of(v, layout.rows)].reshape(v.shape))
        return last, [histories[i] for i in step.histories], written

    def _run(self, batch: int, steps: int, reverse: int, pointers: Any) -> None:
        """Each thread takes a share of the batch through all steps; they never wait for each other within the loop."""
        shares = min(threads(), batch)
        edges = [batch * i // shares for i in range(shares + 1)]
        if shares == 1:
            self.function(0, batch, batch, steps, reverse, pointers)
            return
        pending = [
            _pool(shares - 1, os.getpid()).submit(self.function, a, b, batch, steps, reverse, pointers)
            for a, b in itertools.pairwise(edges[1:])
        ]
        self.function(0, edges[1], batch, steps, reverse, pointers)
        for one in pending:
            one.result()
