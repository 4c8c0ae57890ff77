"""Time in columns: where the boxes of a diagram with time steps stand, and how the arrows between them run.

Graphviz puts clusters in the order in which the fewest lines cross, which need not be that of time. So it lays out each
column by itself; the columns of a scan are set side by side, and another layout arranges all that is in no column around
these rows, each of which is one large node to it. What is left is to join the lines that enter and leave the columns.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import OPENING, Placement, arrow_line, box_line
from tinyseq.draw.render import Layout
from tinyseq.draw.routes import Column, Point, Rectangle, Spline, rounded

__all__ = ["place"]

PADDING, HEADER, GUTTER = 10.0, 22.0, 30.0  # points: inside a column, for its title, between two columns
FOOTER = 16.0  # below the columns, for lines that pass some of them
NUMBER = re.compile(r"-?[\d.]+(?:e[-+]?\d+)?")
Rows = dict[int, list[int]]


@dataclass(slots=True)
class _Part:
    """What Graphviz has laid out in one graph: boxes, rows and arrows by their numbers."""

    size: Point
    boxes: dict[int, Rectangle]
    rows: dict[int, Rectangle]
    arrows: dict[int, Spline]


def place(diagram: Diagram, layout: Layout) -> Placement:
    """Lay out a diagram that has strips."""
    rows: Rows = defaultdict(list)
    for s, strip in enumerate(diagram.strips):
        rows[strip.row].append(s)
    parts = _laid_out([_column_text(diagram, s) for s in range(len(diagram.strips))], layout)
    columns = [_column(part) for part in parts]
    (around,) = _laid_out([_text_around(diagram, rows, columns)], layout)

    boxes, splines = around.boxes, around.arrows
    for row, members in rows.items():
        left, top = around.rows[row].left, around.rows[row].top
        for s in members:
            columns[s] = columns[s].moved(left, top)
            left = columns[s].frame.right + GUTTER
            boxes.update(columns[s].boxes)
    splines.update(_entering(diagram, columns, splines))
    splines.update(_sideways(diagram, rows, columns, {row: place.bottom for row, place in around.rows.items()}))
    for part, column in zip(parts, columns, strict=True):
        dx, dy = column.frame.left + PADDING, column.frame.bottom + PADDING
        splines.update((a, spline.moved(dx, dy)) for a, spline in part.arrows.items())
    return Placement(boxes, [column.frame for column in columns], splines)


def _column(part: _Part) -> Column:
    """A strip with its frame around it, the left top corner at the origin."""
    width, height = part.size[0] + 2 * PADDING, part.size[1] + 2 * PADDING + HEADER
    boxes = {i: box.moved(PADDING, PADDING - height) for i, box in part.boxes.items()}
    return Column(Rectangle(0.0, -height, width, 0.0), boxes)


def _ends(diagram: Diagram, a: int) -> tuple[int | None, int | None]:
    """The strips in which an arrow starts and ends."""
    arrow = diagram.arrows[a]
    return diagram.boxes[arrow.tail].strip, diagram.boxes[arrow.head].strip


def _same_row(diagram: Diagram, a: int) -> bool:
    tail, head = _ends(diagram, a)
    return tail is not None and head is not None and diagram.strips[tail].row == diagram.strips[head].row


def _column_text(diagram: Diagram, s: int) -> str:
    """The DOT text of one strip by itself."""
    lines = [box_line(i, box) for i, box in enumerate(diagram.boxes) if box.strip == s]
    lines += [
        arrow_line(arrow, f', comment="{a}"') for a, arrow in enumerate(diagram.arrows) if _ends(diagram, a) == (s, s)
    ]
    return "\n".join([OPENING, *lines, "}\n"])


def _text_around(diagram: Diagram, rows: Rows, columns: Sequence[Column]) -> str:
    """The DOT text of what is in no strip, with each row as one node that has ports where lines come in and go out."""
    ports: dict[int, set[int]] = {row: set() for row in rows}
    left: dict[int, float] = {}
    for members in rows.values():
        at = 0.0
        for s in members:
            left[s] = at
            at += columns[s].frame.right + GUTTER

    def end(i: int, leaves: bool) -> str:
        strip = diagram.boxes[i].strip
        if strip is None:
            return f"n{i}"
        port = round(left[strip] + (columns[strip].down(i)[-1] if leaves else columns[strip].up(i)[0])[0])
        row = diagram.strips[strip].row
        ports[row].add(port)
        return f"r{row}:x{port}:{'s' if leaves else 'n'}"

    lines = [box_line(i, box) for i, box in enumerate(diagram.boxes) if box.strip is None]
    for a, arrow in enumerate(diagram.arrows):
        tail, head = _ends(diagram, a)
        if tail is None and head is None:
            lines.append(arrow_line(arrow, f', comment="{a}"'))
        elif not _same_row(diagram, a):
            lines.append(f'{end(arrow.tail, True)} -> {end(arrow.head, False)} [comment="{a}"];')
    for row, members in rows.items():
        height = FOOTER - min(columns[s].frame.bottom for s in members)
        width = left[members[-1]] + columns[members[-1]].frame.right
        cells, at = "", 0
        for port in sorted(ports[row]):
            cells += _cell(port - 1 - at, height) + _cell(2, height, f'port="x{port}" ')
            at = port + 1
        cells += _cell(round(width) - at, height)
        table = f'<table border="0" cellborder="0" cellpadding="0" cellspacing="0"><tr>{cells}</tr></table>'
        lines.append(
            f'r{row} [label=<{table}>, fixedsize="true", height="{height / 72:.4f}", margin="0", width="{width / 72:.4f}"];'
        )
    return "\n".join([OPENING, '  graph [ranksep="0.5"];', *lines, "}\n"])


def _cell(width: int, height: float, port: str = "") -> str:
    return f'<td {port}fixedsize="true" width="{width}" height="{height:.0f}"></td>' if width > 0 else ""


def _laid_out(texts: Sequence[str], layout: Layout) -> list[_Part]:
    """What Graphviz makes of several graphs."""
    output, decoder, at = layout.run("".join(texts), "-Tjson0").decode(), json.JSONDecoder(), 0
    parts = []
    for _ in texts:
        graph, at = decoder.raw_decode(output, at)
        at += len(output[at:]) - len(output[at:].lstrip())
        left, bottom, right, top = _numbers(graph["bb"])
        part = _Part((right - left, top - bottom), {}, {}, {})
        for thing in graph["objects"]:
            x, y = _numbers(thing["pos"])
            dx, dy = 36 * float(thing["width"]), 36 * float(thing["height"])
            kind, number = thing["name"][0], int(thing["name"][1:])
            (part.boxes if kind == "n" else part.rows)[number] = Rectangle(x - dx, y - dy, x + dx, y + dy)
        for edge in graph.get("edges", ()):
            points = list(_points(edge["pos"]))
            tip = points.pop(0) if edge["pos"].startswith("e") else None
            label = next(_points(edge["lp"])) if "lp" in edge else None
            part.arrows[int(edge["comment"])] = Spline(tuple(points), tip, label)
        parts.append(part)
    return parts


def _numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text.lstrip("e"))]


def _points(text: str) -> zip[Point]:
    numbers = _numbers(text)
    return zip(numbers[::2], numbers[1::2], strict=True)


def _entering(diagram: Diagram, columns: Sequence[Column], splines: Mapping[int, Spline]) -> dict[int, Spline]:
    """The arrows between a column and what is outside it: they were drawn to its edge, and go on to the box."""
    found = {}
    for a, spline in splines.items():
        tail, head = _ends(diagram, a)
        if tail == head:
            continue
        points, tip = spline.points, spline.tip
        if tail is not None:
            way = columns[tail].down(diagram.arrows[a].tail)
            points = rounded([*way, points[0]]) + points[1:]
        if head is not None:
            way = columns[head].up(diagram.arrows[a].head)
            points = points[:-1] + rounded([points[-1], *way])
        found[a] = Spline(points, tip, points[len(points) // 2])
        if head is not None:
            found[a] = found[a].pointed()
    return found


def _sideways(
    diagram: Diagram, rows: Rows, columns: Sequence[Column], floors: dict[int, float]
) -> dict[int, Spline]:
    """The arrows from one column of a row to another: through the gutter between them, or below those they pass."""
    position = {s: k for members in rows.values() for k, s in enumerate(members)}
    crossing = [a for a in range(len(diagram.arrows)) if _same_row(diagram, a) and len({*_ends(diagram, a)}) == 2]

    def gutters(a: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where an arrow leaves its column and where it comes to its other: each a row and the strip left of it."""
        tail, head = (position[s] for s in _ends(diagram, a))  # type: ignore[index]
        row = diagram.strips[_ends(diagram, a)[0]].row  # type: ignore[index]
        return ((row, tail), (row, head - 1)) if tail < head else ((row, tail - 1), (row, head))

    total = Counter(gutter for a in crossing for gutter in {*gutters(a)})
    used: Counter[tuple[int, int]] = Counter()
    found = {}
    for a in crossing:
        lanes = {}
        for gutter in {*gutters(a)}:
            used[gutter] += 1
            left = columns[rows[gutter[0]][gutter[1]]].frame.right
            lanes[gutter] = left + GUTTER * used[gutter] / (total[gutter] + 1)
        leaving, coming = gutters(a)
        tail, head = _ends(diagram, a)
        side = 1 if position[tail] < position[head] else -1  # type: ignore[index]
        way = columns[tail].out(diagram.arrows[a].tail, side, lanes[leaving])  # type: ignore[index]
        if leaving != coming:
            floor = floors[leaving[0]] + FOOTER / 2
            way += [(lanes[leaving], floor), (lanes[coming], floor)]
        way += columns[head].into(diagram.arrows[a].head, -side, lanes[coming])  # type: ignore[index]
        points = rounded(way)
        found[a] = Spline(points, None, points[len(points) // 2]).pointed()
    return found
