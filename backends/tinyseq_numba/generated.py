"""Generated source, compiled so that Numba keeps the machine code on the disk.

Numba caches only functions that stand in a file. So a source is written to a file in the user's cache folder (or the one
that ``TINYSEQ_CACHE_DIR`` names), beside which Numba puts what it compiled. Its name holds a hash of all that it depends
on: Numba itself looks at the file alone, not at the functions that it calls.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from tinyseq_numba.jit import compiled

__all__ = ["compile_source", "unique_name"]


def unique_name(prefix: str, *depends_on: Any) -> str:
    """``prefix`` with a hash of everything that a function depends on, as far as ``repr`` shows it.

    >>> unique_name("loop", "x + 1") == unique_name("loop", "x + 1") != unique_name("loop", "x + 2")
    True
    """
    return f"{prefix}_{hashlib.sha256(repr(depends_on).encode()).hexdigest()[:20]}"


def compile_source(name: str, source: str, namespace: dict[str, Any]) -> Any:
    """The function ``name`` that ``source`` defines, compiled by Numba on its first call or read from the disk.

    Args:
        name: the function's name, made by :func:`unique_name` from the source and from what the namespace depends on:
            functions of one name share their machine code.
        source: a module's text.
        namespace: what the source may use by name.
    """
    path = _folder() / f"{name}.py"
    kept = _write(path, source)
    # Numba looks for a cached function's module among those that can be imported, so the function says it is of this one.
    scope = {**namespace, "__name__": __name__}
    exec(compile(source, str(path) if kept else f"<{path.name}>", "exec"), scope)
    return compiled(cache=kept)(scope[name])


def _folder() -> Path:
    named = os.environ.get("TINYSEQ_CACHE_DIR")
    return (Path(named) if named else platformdirs.user_cache_path("tinyseq", appauthor=False)) / "numba"


def _write(path: Path, source: str) -> bool:
    """Put the source in its file, whole, unless it is there; whether that worked."""
    try:
        # Numba takes a changed file time for changed source, so a file that is right stays as it is.
        if not (path.exists() and path.read_bytes() == source.encode()):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            part.write_bytes(source.encode())
            part.replace(path)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        _say_once(str(path.parent), str(error.strerror or error))
        return False
    return True


@cache
def _say_once(folder: str, why: str) -> None:
    warnings.warn(
        f"compiled functions cannot be kept in {folder!r} ({why}) and are compiled anew in every run; "
        "set TINYSEQ_CACHE_DIR to a folder that can be written",
        stacklevel=2,
    )
