"""Machine code from LLVM assembly, kept on the disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import secrets
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import platformdirs

__all__ = ["Function", "address", "compiled", "vector_bytes", "vector_registers"]

Function = Callable[..., None]
FORMAT = 3  # of the kept files


@cache
def _machine() -> tuple[llvm.TargetMachine, str]:
    """The code generator for this processor, and what it is."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=name, features=features, opt=3, jit=True)
    return machine, f"{llvmlite.__version__} {llvm.llvm_version_info} {target.triple} {name} {features}"


def _has(feature: str) -> bool:
    return bool(llvm.get_host_cpu_features().get(feature, False))


def vector_bytes() -> int:
    """How long the vectors are that pay: those of 64 bytes were slower where the processor splits them."""
    return 32 if _has("avx") else 16


def vector_registers() -> int:
    """How many such vectors the processor has at hand."""
    return 32 if _has("avx512vl") or platform.machine().lower() in ("aarch64", "arm64") else 16


_engines: list[Any] = []  # for ever: LLVM crashes when an engine that was given an object file is taken down


@cache
def compiled(text: str, name: str, *kinds: Any, returns: Any = None) -> Any:
    """The compiled function of a module; it takes arguments of these types."""
    return ctypes.CFUNCTYPE(returns, *kinds)(address(text, name))  # releases the interpreter's lock


@cache
def address(text: str, name: str) -> int:
    """Where a compiled function of a module begins."""
    return int(_engine(text).get_function_address(name))


@cache
def _engine(text: str) -> Any:
    """A module's machine code, ready to run."""
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
    _engines.append(engine)
    return engine


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
