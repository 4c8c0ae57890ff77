"""CUDA's own compilers, where there is one: NVRTC, as CuPy uses it, else nvcc. Neither needs a GPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Compiled", "compiler"]

Compiled = dict[str, tuple[int, int]]  # of each kernel: bytes spilled to memory, registers
WHEELS = ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cu13/lib/libnvrtc.so.13")
KERNEL = re.compile(
    r"Function properties for (\w+)\s+.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    r".*?Used (\d+) registers",
    re.DOTALL,
)


def compiler() -> Callable[[str, dict[str, int], str], Compiled] | None:
    """``compile(text, defines, architecture)``, or None where neither is installed."""
    spec = importlib.util.find_spec("nvidia")
    found = (
        [Path(folder).parent / name for folder in (spec.submodule_search_locations or ()) if spec for name in WHEELS]
        if spec
        else []
    )
    library = next((str(path) for path in found if path.exists()), None) or ctypes.util.find_library("nvrtc")
    if library:
        nvrtc = ctypes.CDLL(library)
        return lambda text, defines, architecture: _nvrtc(nvrtc, text, _options(defines, architecture))
    if shutil.which("nvcc"):
        return lambda text, defines, architecture: _nvcc(text, _options(defines, architecture))
    return None


def _options(defines: dict[str, int], architecture: str) -> list[str]:
    return [f"-arch={architecture}", "-std=c++17", *(f"-D{name}={value}" for name, value in defines.items())]


def _nvrtc(library: ctypes.CDLL, text: str, options: Sequence[str]) -> Compiled:
    options = [*options, "-ftz=true", "--ptxas-options=-v"]  # -ftz=true as CuPy has it
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"loop.cu", 0, None, None) == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    result = library.nvrtcCompileProgram(program, len(options), given)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    assert result == 0, log.value.decode()
    return _kernels(log.value.decode())


def _nvcc(text: str, options: Sequence[str]) -> Compiled:
    with tempfile.TemporaryDirectory(prefix="tinyseq-nvcc-") as folder:
        path = Path(folder) / "loop.cu"
        path.write_text(text)
        command = ["nvcc", "-cubin", "-Xptxas", "-v", "-ftz=true", *options, "-o", f"{folder}/loop.cubin", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return _kernels(done.stderr)


def _kernels(log: str) -> Compiled:
    found = {
        name: (int(stack) + int(stores) + int(loads), int(used)) for name, stack, stores, loads, used in KERNEL.findall(log)
    }
    assert found, log
    return found
