"""Time in columns: where the boxes of a diagram with time steps stand, and how the arrows between them run.

Graphviz puts clusters in the order in which the fewest lines cross, which need not be that of time. So it lays out each
column by itself; the columns of a scan are set side by side in a row, and another layout arranges what is in no column
around the rows, each of which is one large node to it. Lines that enter, leave and join columns run as ``routes`` says.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import OPENING, Placement, arrow_line, box_line
from tinyseq.draw.render import Layout
from tinyseq.draw.routes import Column, Point, Rectangle, Spline, rounded

__all__ = ["place"]

PADDING, HEADER, GUTTER = 10.0, 22.0, 30.0  # points: inside a column, for its title, between two columns
FOOTER = 16.0  # below the columns, for lines that pass some of them
BUS = 6.0  # above the columns, for each line that leads to several of them
NUMBER = re.compile(r"-?[\d.]+(?:e[-+]?\d+)?")

Ends = list[tuple[int | None, int | None]]  # the strips in which each arrow starts and ends


@dataclass(slots=True)
class _Part:
    """What Graphviz has laid out in one graph: boxes, rows and arrows by their numbers in the diagram."""

    width: float
    height: float
    boxes: dict[int, Rectangle]
    rows: dict[int, Rectangle]
    arrows: dict[int, Spline]


def place(diagram: Diagram, layout: Layout) -> Placement:
    """Lay out a diagram that has strips."""
    ends = [(diagram.boxes[arrow.tail].strip, diagram.boxes[arrow.head].strip) for arrow in diagram.arrows]
    parts = _laid_out([_column_text(diagram, ends, s) for s in range(len(diagram.strips))], layout)
    members: dict[int, list[int]] = defaultdict(list)
    for s, strip in enumerate(diagram.strips):
        members[strip.row].append(s)
    rows = {row: _Row(diagram, ends, strips, parts) for row, strips in members.items()}
    row_of = {s: rows[strip.row] for s, strip in enumerate(diagram.strips)}
    (around,) = _laid_out([_text_around(diagram, ends, rows)], layout)

    placement = Placement(around.boxes, [Rectangle(0, 0, 0, 0)] * len(diagram.strips), {})
    for number, row in rows.items():
        row.move(around.rows[number].left, around.rows[number].top)
        placement.boxes.update(row.boxes)
        placement.arrows.update(row.splines)
        for s, column in row.columns.items():
            placement.strips[s] = column.frame
    leaders = _leaders(diagram, ends, rows)
    for a, (tail, head) in enumerate(ends):
        if a in placement.arrows:
            continue
        spline = around.arrows[leaders[a]]
        ...
    return placement
