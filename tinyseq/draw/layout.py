"""Time in columns: where the boxes of a diagram with time steps stand, and how the arrows between them run.

Graphviz puts clusters in the order in which the fewest lines cross, which need not be that of time. So it lays out each
column by itself; the columns of a scan are set side by side, and another layout arranges all that is in no column around
these rows, each of which is one large node to it. What is left is to join the lines that enter and leave the columns.
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
    sizes = [(part.size[0] + 2 * PADDING, part.size[1] + 2 * PADDING + HEADER) for part in parts]
    (around,) = _laid_out([_text_around(diagram, rows, sizes)], layout)

    columns: dict[int, Column] = {}
    boxes, splines = around.boxes, around.arrows
    for row, members in rows.items():
        left, top = around.rows[row].left, around.rows[row].top
        for s in members:
            width, height = sizes[s]
            dx, dy = left + PADDING, top - height + PADDING
            inside = {i: box.moved(dx, dy) for i, box in parts[s].boxes.items()}
            columns[s] = Column(Rectangle(left, top - height, left + width, top), inside)
            boxes.update(inside)
            splines.update((a, spline.moved(dx, dy)) for a, spline in parts[s].arrows.items())
            left += width + GUTTER
    splines.update(_entering(diagram, columns, splines))
    splines.update(_sideways(diagram, rows, columns, {row: place.bottom for row, place in around.rows.items()}))
    return Placement(boxes, {s: column.frame for s, column in columns.items()}, splines)


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


def _text_around(diagram: Diagram, rows: Rows, sizes: Sequence[Point]) -> str:
    """The DOT text of what is in no strip, with each row as one node that has a port for each strip."""

    def end(i: int, side: str) -> str:
        strip = diagram.boxes[i].strip
        return f"n{i}" if strip is None else f"r{diagram.strips[strip].row}:s{strip}:{side}"

    lines = [OPENING]
    for row, members in rows.items():
        height = max(sizes[s][1] for s in members) + FOOTER
        width = sum(sizes[s][0] for s in members) + GUTTER * (len(members) - 1)
        cells = []
        for k, s in enumerate(members):
            cell = sizes[s][0] + GUTTER / 2 * ((k > 0) + (k < len(members) - 1))
            cells.append(f'<td port="s{s}" fixedsize="true" width="{cell:.0f}" height="{height:.0f}"></td>')
        table = f'<table border="0" cellborder="0" cellpadding="0" cellspacing="0"><tr>{"".join(cells)}</tr></table>'
        lines.append(
            f'r{row} [label=<{table}>, fixedsize="true", height="{height / 72:.4f}", margin="0", width="{width / 72:.4f}"];'
        )
    lines += [box_line(i, box) for i, box in enumerate(diagram.boxes) if box.strip is None]
    for a, arrow in enumerate(diagram.arrows):
        tail, head = _ends(diagram, a)
        if tail is None and head is None:
            lines.append(arrow_line(arrow, f', comment="{a}"'))
        elif not _same_row(diagram, a):
            lines.append(f'{end(arrow.tail, "s")} -> {end(arrow.head, "n")} [comment="{a}"];')
    return "\n".join([*lines, "}\n"])


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


def _entering(diagram: Diagram, columns: dict[int, Column], splines: dict[int, Spline]) -> dict[int, Spline]:
    """The arrows between a column and what is outside it: they were drawn to its edge, and are drawn on to the box."""
    found = {}
    for a, spline in splines.items():
        tail, head = _ends(diagram, a)
        if tail == head:
            continue
        points, tip = spline.points, spline.tip
        if tail is not None:
            way = columns[tail].down(diagram.arrows[a].tail)
            points = rounded([*way, (points[0][0], way[-1][1]), points[0]]) + points[1:]
        if head is not None:
            way = columns[head].up(diagram.arrows[a].head)
            points = points[:-1] + rounded([points[-1], (points[-1][0], way[0][1]), *way])
        found[a] = Spline(points, tip, points[len(points) // 2])
        if head is not None:
            found[a] = found[a].pointed()
    return found


def _sideways(
    diagram: Diagram, rows: Rows, columns: dict[int, Column], floors: dict[int, float]
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
