"""Running Graphviz: the ``dot`` program where it is installed, else the one in the graphviz-pure wheel."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import time
from functools import cache

from tinyseq.errors import TinyseqError

__all__ = ["INSTALL", "DrawError", "Layout", "programs"]

INSTALL = "pip install tinyseq[draw]"


class DrawError(TinyseqError, RuntimeError):
    """A picture cannot be laid out or written."""


class Layout:
    """A budget of seconds, out of which Graphviz is run."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def run(self, text: str, *arguments: str) -> bytes:
        """What Graphviz makes of DOT text.

        Raises:
            DrawError: there is no Graphviz, it takes longer than the seconds left, or it fails.
        """
        found = programs()
        if not found:
            raise DrawError(f"to draw pictures tinyseq needs Graphviz: install it with {INSTALL}")
        complaint = ""
        for program in found:
            try:
                done = subprocess.run(
                    [program, *arguments],
                    input=text.encode(),
                    capture_output=True,
                    timeout=max(self.end - time.monotonic(), 0.01),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise DrawError(
                    f"Graphviz did not lay this picture out in {self.seconds:g} s; draw less with a smaller limit=, allow "
                    "more with seconds=, or save it as .dot"
                ) from None
            except OSError as error:
                complaint = complaint or f"{program}: {error.strerror or error}"
                continue
            if done.returncode == 0 and done.stdout:
                return done.stdout
            said = done.stderr.decode(errors="replace").strip().splitlines()
            complaint = complaint or f"{program}: {said[-1] if said else f'exit status {done.returncode}'}"
        raise DrawError(f"Graphviz failed ({complaint})")


@cache
def programs() -> tuple[str, ...]:
    """The programs to try, best first."""
    dot = shutil.which("dot")
    return tuple(program for program in (dot, _program_of_the_wheel()) if program)


def _program_of_the_wheel() -> str | None:
    """graphviz-pure stands beside the interpreter of a virtual environment, which need not be on the PATH."""
    try:
        files = importlib.metadata.files("graphviz-pure") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = str(file.locate())
        if file.name in ("graphviz-pure", "graphviz-pure.exe") and os.access(path, os.X_OK):
            return path
    return shutil.which("graphviz-pure")
