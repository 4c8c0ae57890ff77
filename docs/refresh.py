"""Write into a page what its ``>>>`` examples print: ``python docs/refresh.py docs/compiler.md``."""

from __future__ import annotations

import contextlib
import doctest
import io
import sys
from pathlib import Path


def refreshed(text: str) -> str:
    """The page, with the outputs that its examples have now."""
    parts = []
    globs: dict[str, object] = {"__name__": "__main__"}
    for part in doctest.DocTestParser().parse(text):
        if isinstance(part, str):
            parts.append(part)
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(part.source, "page", "single"), globs)
        first, *more = part.source.rstrip("\n").split("\n")
        parts += [f">>> {first}\n", *(f"...{line and ' '}{line}\n" for line in more), printed.getvalue()]
    return "".join(parts)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(refreshed(path.read_text()))
