"""Tensors on disk: safetensors files, written so that a crash leaves the old file or the new one, never a part of one.

Nothing is pickled, so opening a file never runs code from it. A file made here also carries a checksum of all that is
in it; a file made by another program (PyTorch's ``safetensors.torch.save_file``, say) is read without one.
"""

from __future__ import annotations

import glob
import importlib
import json
import os
import secrets
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from tinyseq.errors import CheckpointError, DTypeError
from tinyseq.tensor import Tensor, tensor

if sys.platform != "win32":
    import fcntl

__all__ = ["load", "load_metadata", "save"]

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
SUPPORTED = ", ".join(DTYPES.values())
CHECKSUM = "tinyseq.checksum"  # the metadata entry that load() verifies and load_metadata() does not show

Array = npt.NDArray[Any]


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor | Array],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write named tensors, and texts about them, to a safetensors file.

    The file is written beside its place under another name, forced to the disk, and only then given its name. Whatever
    happens on the way, ``path`` holds either the whole old file or the whole new one. What a killed run left beside it
    is removed by the next save.

    Args:
        path: where the file goes; its folder must exist. A link is followed.
        tensors: tensors of any backend or NumPy arrays of any shape and memory layout, by name.
        metadata: texts by name, such as a configuration in JSON.

    Raises:
        CheckpointError: the file cannot be written (a missing or read-only folder, a full disk), or a name or a
            metadata entry is not what the format can hold. A file that was there before is untouched.
        DTypeError: a tensor has a dtype that the format or tinyseq does not hold.

    >>> import tempfile, tinyseq as ts
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ts.save(f"{folder}/model.safetensors", {"weight": ts.tensor([1.5, 2.5])}, {"step": "7"})
    ...     ts.load(f"{folder}/model.safetensors")["weight"].numpy(), load_metadata(f"{folder}/model.safetensors")
    (array([1.5, 2.5], dtype=float32), {'step': '7'})
    """
    target = Path(os.path.realpath(path))
    arrays = {name: _host_array(name, value) for name, value in tensors.items()}
    texts = dict(metadata or {})
    for key, text in texts.items():
        if not (_is_text(key) and _is_text(text)):
            raise CheckpointError(f"metadata holds texts by name, not {key!r}: {text!r}; write it as a str, or JSON")
    if CHECKSUM in texts:
        raise CheckpointError(f"the metadata name {CHECKSUM!r} is used by tinyseq itself; choose another")
    texts[CHECKSUM] = _checksum(arrays, texts)
    content = safetensors.numpy.save(arrays, texts)
    try:
        write_whole(target, content)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {str(target)!r} ({error.strerror or error}); give a path in a folder that exists, can be "
            f"written and has {len(content):,} bytes free (an earlier file of that name is untouched)"
        ) from error


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, by name in alphabetical order, onto the current backend.

    Raises:
        CheckpointError: the file is truncated, damaged, of another format, or holds a dtype that tinyseq lacks.
        FileNotFoundError: there is no such file.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/counts.safetensors", {"counts": np.array([[1, 2], [3, 4]])})
    ...     load(f"{folder}/counts.safetensors")["counts"].numpy().tolist()
    [[1, 2], [3, 4]]
    """
    return load_whole(path)[0]


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the texts that :func:`save` was given as ``metadata``; a file without any gives an empty dict.

    Raises:
        CheckpointError: the file is truncated, damaged, or of another format.
        FileNotFoundError: there is no such file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(f"{folder}/note.safetensors", {}, {"cell": "lstm"})
    ...     load_metadata(f"{folder}/note.safetensors")
    {'cell': 'lstm'}
    """
    return _read(path)[1]


def load_whole(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What :func:`load` and :func:`load_metadata` give, from one reading of the file; the same errors."""
    arrays, metadata = _read(path)
    return {name: tensor(arrays[name]) for name in sorted(arrays)}, metadata


def _host_array(name: str, value: Tensor | Array) -> Array:
    if not _is_text(name) or name == "__metadata__":
        raise CheckpointError(f"a tensor cannot be called {name!r} in a safetensors file; choose another name")
    host = value.numpy() if isinstance(value, Tensor) else value
    if not isinstance(host, np.ndarray | np.generic):
        raise DTypeError(f"{name!r} is a {type(value).__name__}; save takes tensors and NumPy arrays")
    if host.dtype.name not in DTYPES.values():
        raise DTypeError(f"{name!r} has dtype {host.dtype}, which cannot be saved; cast it to one of {SUPPORTED}")
    # The writer reads memory from the array's first byte on, so the order must be C; ascontiguousarray would turn a
    # zero-dimensional array into a vector.
    return np.asarray(host, dtype=host.dtype.newbyteorder("="), order="C")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _checksum(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> str:
    """A CRC-32 of every text, name, dtype, shape and element, whatever order the file has them in."""
    description = [
        sorted(metadata.items()),
        [(name, array.dtype.name, array.shape) for name, array in sorted(arrays.items())],
    ]
    crc = zlib.crc32(json.dumps(description).encode())
    for _, array in sorted(arrays.items()):
        crc = zlib.crc32(array.reshape(-1).view(np.uint8).data, crc)
    return f"{crc:08x}"


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of one file, verified."""
    with open(path, "rb") as file:
        content = file.read()
    shown = repr(os.fspath(path))
    try:
        entries = safetensors.deserialize(content)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        if content.startswith((b"PK\x03\x04", b"\x80")):
            advice = "it looks like a pickle or a torch.save archive, which can run code when opened: write it anew with "
            advice += "safetensors.torch.save_file where it was made"
        else:
            advice = "it was cut short or is of another format: take an earlier copy of it or make it again"
        raise CheckpointError(f"{shown} ({len(content):,} bytes) is not a whole safetensors file; {advice}") from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__") or {}
    arrays = {name: _array(shown, name, entry) for name, entry in entries}
    expected = metadata.pop(CHECKSUM, None)
    if expected is not None and expected != _checksum(arrays, metadata):
        raise CheckpointError(
            f"{shown} is damaged: what it holds does not match its checksum {expected}; "
            "take an earlier copy of it or make it again"
        )
    return arrays, metadata


def _array(shown: str, name: str, entry: Mapping[str, Any]) -> Array:
    try:
        bfloat16 = entry["dtype"] == "BF16"
        dtype = np.dtype(importlib.import_module("ml_dtypes").bfloat16 if bfloat16 else DTYPES[entry["dtype"]])
    except KeyError:
        raise CheckpointError(
            f"{shown} holds {name!r} as {entry['dtype']}, which tinyseq has no dtype for; cast it to one of "
            f"{SUPPORTED} where the file was made"
        ) from None
    except ImportError:
        raise CheckpointError(
            f"{shown} holds {name!r} as bfloat16, for which NumPy needs a package: pip install ml_dtypes"
        ) from None
    return np.frombuffer(entry["data"], dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(entry["shape"])


def write_whole(target: Path, content: bytes) -> None:
    """Put ``content`` at ``target`` in one step that a crash cannot split."""
    _remove_leftovers(target)
    temporary, descriptor = _create_temporary(target)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if sys.platform != "win32":
                os.replace(temporary, target)  # while the lock is held, or another run would take it for a leftover
        if sys.platform == "win32":
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sys.platform != "win32":  # the new name must reach the disk, too; Windows cannot open a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _create_temporary(target: Path) -> tuple[Path, int]:
    """A new, locked file beside ``target``, hidden and not ending in what checkpoints end in."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        descriptor = os.open(temporary, flags, 0o666)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # another run found it before it was locked, and removed it


def _remove_leftovers(target: Path) -> None:
    """Delete the temporary files of runs that were killed: those whose lock nobody holds any more."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        try:
            descriptor = os.open(leftover, os.O_RDWR)
        except OSError:
            continue
        try:
            if _lock(descriptor, wait=False):
                leftover.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Take a lock that the system releases when its holder dies; False where it is held or locks do not exist."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
