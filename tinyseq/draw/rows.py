"""A scan's columns set side by side, and the lines from one to another, into them and out of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.routes import SPACING, Column, Point, Rectangle, Spline, rounded

if TYPE_CHECKING:
    from tinyseq.draw.layout import Strips

__all__ = ["PADDING", "Row"]

PADDING, HEADER, GUTTER = 10.0, 22.0, 30.0  # points: inside a column, for its title, between two columns
LABELLED_GUTTER = 66.0  # where arrows have labels
FOOTER = 16.0  # below the columns, for lines that pass some of them
BUS = 6.0  # above the columns, for each line that leads from one box to several of them


class Row:
    """The columns of one scan, with the left top corner of the whole at (0, 0).

    Attributes:
        columns: the columns by their groups.
        width, height: of the whole, with the room above and below the columns.
        splines: the arrows from column to column.
        entries: for each arrow that comes from elsewhere, the way from the top edge to its box.
        exits: for each box that an arrow leaves for elsewhere, the way to the bottom edge.
    """

    def __init__(
        self,
        diagram: Diagram,
        columns: Strips,
        strips: Sequence[int],
        laid_out: Mapping[int, tuple[Point, dict[int, Rectangle]]],
        widths: Sequence[float],
    ) -> None:
        self._diagram = diagram
        self._strips = list(strips)
        self._of_box = columns.of_box
        between, entering, leaving = [], [], []
        sources: dict[int, list[int]] = defaultdict(list)
        for a, arrow in enumerate(diagram.arrows):
            tail, head = self._of_box[arrow.tail], self._of_box[arrow.head]
            if tail in strips and head in strips and tail != head:
                between.append(a)
            elif head in strips and tail not in strips:
                entering.append(a)
                sources[arrow.tail].append(a)
            elif tail in strips and head not in strips:
                leaving.append(a)
        # What leads to several columns runs above them, and down into each.
        buses = [arrows for arrows in sources.values() if len({self._ends(a)[1] for a in arrows}) > 1]
        top = -BUS * (len(buses) + 1) if buses else 0.0

        self.columns: dict[int, Column] = {}
        labelled = any(diagram.arrows[a].label for a in between)
        self._gutter = LABELLED_GUTTER if labelled else GUTTER
        left = 0.0
        tallest = max(laid_out[s][0][1] for s in strips)
        for s, wide in zip(strips, widths, strict=True):
            (width, height), boxes = laid_out[s]
            frame = Rectangle(left, top - tallest - 2 * PADDING - HEADER, left + wide + 2 * PADDING, top)
            inside = frame.left + PADDING + (wide - width) / 2, frame.top - PADDING - HEADER - height
            moved = {i: box.moved(*inside) for i, box in boxes.items()}
            self.columns[s] = Column(frame, moved, columns.titles[s], inside)
            left = frame.right + self._gutter
        self.width = left - self._gutter
        self.height = FOOTER - min(column.frame.bottom for column in self.columns.values())

        self.splines = self._between(between)
        self.entries = self._entries(entering, buses)
        self.exits: dict[int, list[Point]] = {}
        for a in leaving:
            i = diagram.arrows[a].tail
            if i not in self.exits:
                way = self._column(i).down(i)
                self.exits[i] = [*way, (way[-1][0], -self.height)]

    def _ends(self, a: int) -> tuple[int, int]:
        """The strips in which an arrow starts and ends, if it does so in strips."""
        arrow = self._diagram.arrows[a]
        return self._of_box[arrow.tail], self._of_box[arrow.head]  # type: ignore[return-value]

    def _column(self, i: int) -> Column:
        return self.columns[self._of_box[i]]  # type: ignore[index]

    def _entries(self, entering: Sequence[int], buses: Sequence[Sequence[int]]) -> dict[int, list[Point]]:
        ways = {a: self._column(self._diagram.arrows[a].head).up(self._diagram.arrows[a].head) for a in entering}
        ports: list[float] = []
        for k, arrows in enumerate(buses):
            lane = -BUS * (k + 1)
            port = sum(ways[a][0][0] for a in arrows) / len(arrows)
            while any(abs(port - other) < SPACING for other in ports):
                port += SPACING
            ports.append(port)
            for a in arrows:
                ways[a] = [(port, lane), (ways[a][0][0], lane), *ways[a][1:]]
        return {a: [(way[0][0], 0.0), *way] for a, way in ways.items()}

    def _between(self, arrows: Sequence[int]) -> dict[int, Spline]:
        """Arrows from column to column: through the gutter between them, or below those that they pass."""
        position = {s: k for k, s in enumerate(self._strips)}
        gutters = {}  # those that an arrow comes through first and last, each by the position of the column on its left
        for a in arrows:
            tail, head = (position[s] for s in self._ends(a))
            gutters[a] = (tail, head - 1) if tail < head else (tail - 1, head)
        total = Counter(gutter for pair in gutters.values() for gutter in {*pair})
        used: Counter[int] = Counter()
        splines = {}
        for a in arrows:
            lanes = {}
            for gutter in sorted({*gutters[a]}):
                used[gutter] += 1
                left = self.columns[self._strips[gutter]].frame.right
                lanes[gutter] = left + self._gutter * used[gutter] / (total[gutter] + 1)
            first, last = (lanes[gutter] for gutter in gutters[a])
            arrow = self._diagram.arrows[a]
            side = 1 if position[self._ends(a)[0]] < position[self._ends(a)[1]] else -1
            way = self._column(arrow.tail).out(arrow.tail, side, first)
            if first != last:
                way += [(first, FOOTER / 2 - self.height), (last, FOOTER / 2 - self.height)]
            way += self._column(arrow.head).into(arrow.head, -side, last)
            splines[a] = Spline(rounded(way), None, _beside(way, first)).pointed()
        return splines


def _beside(way: Sequence[Point], lane: float) -> Point:
    """Where a label stands: above a straight line, or to the right of the part that runs up or down."""
    heights = [y for x, y in way if abs(x - lane) < 0.5]
    low, high = min(heights), max(heights)
    if high - low < 30:
        return lane, high + 7
    return lane + 18, (low + high) / 2
