"""What is drawn: boxes, arrows and columns, free of how they are laid out or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Arrow", "Box", "BoxKind", "Diagram", "Strip"]

BoxKind = Literal["operation", "output", "parameter", "input", "constant", "reference", "gap"]


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the picture: a title in bold, smaller lines under it, and the strip that it stands in, if any."""

    kind: BoxKind
    title: str
    lines: tuple[str, ...] = ()
    strip: int | None = None


@dataclass(frozen=True, slots=True)
class Arrow:
    """From one box to another, each given by its place in ``Diagram.boxes``.

    ``carry`` arrows run from one time step to another; ``count`` is 2 for ``x * x``.
    """

    tail: int
    head: int
    kind: Literal["data", "carry", "parameter"]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Strip:
    """A column of the picture: a time step, or the gap (title None) where steps are left out. Each scan is a row."""

    row: int
    title: str | None


@dataclass(frozen=True, slots=True)
class Diagram:
    """All that is drawn, each box after those it was computed from."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    strips: tuple[Strip, ...]
