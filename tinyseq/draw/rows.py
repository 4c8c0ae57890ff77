"""A scan's columns set side by side, and the lines from one to another, into them and out of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.routes import SPACING, Column, Point, Rectangle, Spline, rounded

__all__ = ["PADDING", "Row"]

PADDING, HEADER, GUTTER = 10.0, 22.0, 30.0  # points: inside a column, for its title, between two columns
FOOTER = 16.0  # below the columns, for lines that pass some of them
BUS = 6.0  # above the columns, for each line that leads from one box to several of them


class Row:
    """The columns of one scan, with the left top corner of the whole at (0, 0).

    Attributes:
        columns: the columns by their strips.
        width, height: of the whole, with the room above and below the columns.
        splines: the arrows from column to column.
        entries: for each arrow that comes from elsewhere, the way from the top edge to its box.
        exits: for each box that an arrow leaves for elsewhere, the way to the bottom edge.
    """

    def __init__(self, diagram: Diagram, strips: Sequence[int], laid_out: Mapping[int, tuple[Point, dict[int, Rectangle]]]):
        self._diagram = diagram
        self._strips = list(strips)
        between, entering, leaving = [], [], []
        sources: dict[int, list[int]] = defaultdict(list)
        for a, arrow in enumerate(diagram.arrows):
            tail, head = (diagram.boxes[i].strip for i in (arrow.tail, arrow.head))
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
        left = 0.0
        for s in strips:
            (width, height), boxes = laid_out[s]
            frame = Rectangle(left, top - height - 2 * PADDING - HEADER, left + width + 2 * PADDING, top)
            dx, dy = frame.left + PADDING, frame.bottom + PADDING
            self.columns[s] = Column(frame, {i: box.moved(dx, dy) for i, box in boxes.items()}, diagram.strips[s].title or "")
            left = frame.right + GUTTER
        self.width = left - GUTTER
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
        arrow, boxes = self._diagram.arrows[a], self._diagram.boxes
        return boxes[arrow.tail].strip, boxes[arrow.head].strip  # type: ignore[return-value]

    def _column(self, i: int) -> Column:
        return self.columns[self._diagram.boxes[i].strip]  # type: ignore[index]

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
                lanes[gutter] = left + GUTTER * used[gutter] / (total[gutter] + 1)
            first, last = (lanes[gutter] for gutter in gutters[a])
            arrow = self._diagram.arrows[a]
            side = 1 if position[self._ends(a)[0]] < position[self._ends(a)[1]] else -1
            way = self._column(arrow.tail).out(arrow.tail, side, first)
            if first != last:
                way += [(first, FOOTER / 2 - self.height), (last, FOOTER / 2 - self.height)]
            points = rounded(way + self._column(arrow.head).into(arrow.head, -side, last))
            splines[a] = Spline(points, None, points[len(points) // 2]).pointed()
        return splines
