"""``TINYSEQ_DEBUG``: what the compiler does, printed to standard error as it does it.

The variable lists what is wanted, separated by commas: ``graph`` (a traced step and its gradient), ``split`` (what runs
before the loop, in it, and after it), ``source`` (what a backend generated), ``time`` (seconds to compile and to run, and
where a backend fell back). ``1`` stands for all but the source, ``all`` for everything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["show", "timed", "wanted"]


def wanted(kind: str) -> bool:
    """Whether to show this kind of thing."""
    value = os.environ.get("TINYSEQ_DEBUG", "")
    if value in ("", "0"):
        return False
    words = value.split(",")
    return "all" in words or kind in words or ("1" in words and kind != "source")


def show(kind: str, title: str, text: object = "") -> None:
    """Print, if it is wanted."""
    if wanted(kind):
        body = f"\n{text}" if str(text) else ""
        print(f"[tinyseq {kind}] {title}{body}", file=sys.stderr, flush=True)


@contextmanager
def timed(title: str) -> Iterator[None]:
    """Show how long the block took."""
    if not wanted("time"):
        yield
        return
    start = time.perf_counter()
    yield
    show("time", f"{title}: {(time.perf_counter() - start) * 1e3:.2f} ms")
