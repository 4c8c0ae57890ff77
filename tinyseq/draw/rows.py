"""A scan's columns set side by side, and the lines from one to another, into them and out of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.routes import SPACING, Column, Point, Rectangle, Spline, rounded

__all__ = ["Row"]

PADDING, HEADER, GUTTER = 10.0, 22.0, 30.0  # points: inside a column, for its title, between two columns
FOOTER = 16.0  # below the columns, for lines that pass some of them
BUS = 6.0  # above the columns, for each line that leads from one box to several of them


class Row:
    """The columns of one scan, the left top corner of the whole at (0, 0).

    Attributes:
        columns: the columns by their strips.
        width, height: of the whole, with the room above and below the columns.
        splines: the arrows from column to column.
        entries: for each arrow that comes from elsewhere the way from the top edge to its box.
        exits: for each box from which an arrow leads elsewhere the way to the bottom edge.
    """

    def __init__(self, diagram: Diagram, strips: Sequence[int], columns: Sequence[tuple[Point, dict[int, Rectangle]]]) -> None:
        self._diagram = diagram
        self._position = {s: k for k, s in enumerate(strips)}
        inside, outgoing, incoming = [], [], []
        for a, arrow in enumerate(diagram.arrows):
            tail, head = (diagram.boxes[i].strip in self._position for i in (arrow.tail, arrow.head))
            if tail and head and self._column_of(arrow.tail) != self._column_of(arrow.head):
                inside.append(a)
            elif tail and not head:
                outgoing.append(a)
            elif head and not tail:
                incoming.append(a)
        ...
