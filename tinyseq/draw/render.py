"""Running Graphviz: the ``dot`` program where it is installed, else the one in the graphviz-pure wheel."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

from tinyseq.errors import TinyseqError

__all__ = ["DrawError", "Layout", "NoGraphviz"]

INSTALL = "pip install tinyseq[draw]"


class DrawError(TinyseqError, RuntimeError):
    """A picture cannot be laid out or written."""


class NoGraphviz(DrawError):
    """There is no Graphviz to draw with."""


class Layout:
    """A budget of seconds, out of which Graphviz is run: as a program of its own, so that it can be stopped."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def run(self, text: str, *arguments: str) -> bytes:
        """What Graphviz makes of DOT text.

        Raises:
            NoGraphviz: there is no program that does it.
            DrawError: it fails, or takes longer than the seconds left.
        """
        complaint = ""
        for program in _programs("-Tpdf" in arguments):
            try:
                done = subprocess.run(
                    [program, *arguments],
                    input=text.encode(),
                    capture_output=True,
                    timeout=max(self.end - time.monotonic(), 0.001),
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise DrawError(
                    f"Graphviz has not laid this picture out in {self.seconds:g} seconds; draw less of it with limit=, "
                    "give it longer with seconds=, or save it as .dot"
                ) from None
            except OSError as error:
                complaint = complaint or f"{program}: {error.strerror or error}"
                continue
            if done.returncode == 0 and done.stdout:
                return done.stdout
            said = done.stderr.decode(errors="replace").strip().splitlines()
            complaint = complaint or f"{program}: {said[-1] if said else f'exit status {done.returncode}'}"
        if complaint:
            raise DrawError(f"Graphviz cannot draw this ({complaint}); save it as .dot to look at what it was given")
        if "-Tpdf" in arguments:
            raise DrawError("PDF needs Graphviz's own program dot (https://graphviz.org/download); or save it as .svg")
        raise NoGraphviz(f"pictures need Graphviz: {INSTALL}")


def _programs(pdf: bool) -> Iterator[str]:
    """The programs to try, best first; only ``dot`` writes PDF."""
    if dot := shutil.which("dot"):
        yield dot
    if pdf:
        return
    # In a virtual environment it stands beside the interpreter, which need not be on the PATH.
    try:
        files = importlib.metadata.files("graphviz-pure") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = str(file.locate())
        if file.stem == "graphviz-pure" and os.access(path, os.X_OK):
            yield path
