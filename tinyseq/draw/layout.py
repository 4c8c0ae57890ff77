"""Time in columns: where the boxes of a diagram with time steps stand, and how the arrows between them run.

Graphviz puts clusters in the order in which the fewest lines cross, which need not be that of time. So it lays out each
column by itself; the columns of a scan are set side by side (``rows``), and another layout arranges what is in no column
around these rows, each of which is one large node to it.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import OPENING, Placement, arrow_line, box_line
from tinyseq.draw.render import Layout
from tinyseq.draw.routes import Point, Rectangle, Spline, rounded
from tinyseq.draw.rows import PADDING, Row

__all__ = ["place"]

NUMBER = re.compile(r"-?[\d.]+(?:e[-+]?\d+)?")


@dataclass(slots=True)
class _Part:
    """What Graphviz has laid out in one graph: boxes, rows and arrows by their numbers."""

    size: Point
    boxes: dict[int, Rectangle]
    rows: dict[int, Rectangle]
    arrows: dict[int, Spline]


def place(diagram: Diagram, layout: Layout) -> Placement:
    """Lay out a diagram that has strips."""
    strips: dict[int, list[int]] = defaultdict(list)
    for s, strip in enumerate(diagram.strips):
        strips[strip.row].append(s)
    parts = _laid_out(_column_texts(diagram), layout)
    laid_out = {s: (part.size, part.boxes) for s, part in enumerate(parts)}
    rows = {number: Row(diagram, members, laid_out) for number, members in strips.items()}
    leaders = _leaders(diagram, rows)
    (around,) = _laid_out([_text_around(diagram, rows, leaders)], layout)

    boxes = around.boxes
    frames: dict[int, Rectangle] = {}
    splines: dict[int, Spline] = {}
    for number, row in rows.items():
        corner = around.rows[number].left, around.rows[number].top
        for s, column in row.columns.items():
            frames[s] = column.frame.moved(*corner)
            boxes.update((i, box.moved(*corner)) for i, box in column.boxes.items())
            inside = frames[s].left + PADDING, frames[s].bottom + PADDING
            splines.update((a, spline.moved(*inside)) for a, spline in parts[s].arrows.items())
        splines.update((a, spline.moved(*corner)) for a, spline in row.splines.items())
    for a, leader in leaders.items():
        splines[a] = _joined(diagram, a, around.arrows[leader], rows, around.rows)
    return Placement(boxes, frames, splines)


def _ends(diagram: Diagram, a: int) -> tuple[int | None, int | None]:
    """The strips in which an arrow starts and ends."""
    arrow = diagram.arrows[a]
    return diagram.boxes[arrow.tail].strip, diagram.boxes[arrow.head].strip


def _column_texts(diagram: Diagram) -> list[str]:
    """The DOT text of each strip by itself."""
    lines = [[OPENING] for _ in diagram.strips]
    for i, box in enumerate(diagram.boxes):
        if box.strip is not None:
            lines[box.strip].append(box_line(i, box))
    for a, arrow in enumerate(diagram.arrows):
        tail, head = _ends(diagram, a)
        if tail is not None and tail == head:
            lines[tail].append(arrow_line(arrow, f', comment="{a}"'))
    return ["\n".join([*column, "}\n"]) for column in lines]


def _leaders(diagram: Diagram, rows: Mapping[int, Row]) -> dict[int, int]:
    """For each arrow that runs outside the rows the first that takes the same way there."""
    first: dict[object, int] = {}
    leaders = {}
    for a, arrow in enumerate(diagram.arrows):
        tail, head = (None if s is None else diagram.strips[s].row for s in _ends(diagram, a))
        if tail is None or tail != head:
            port = arrow.head if head is None else (head, rows[head].entries[a][0])
            leaders[a] = first.setdefault((arrow.tail, port), a)
    return leaders


def _text_around(diagram: Diagram, rows: Mapping[int, Row], leaders: Mapping[int, int]) -> str:
    """The DOT text of what is in no strip, each row being one node that has ports where lines come in and go out."""
    ports: dict[int, set[int]] = {number: set() for number in rows}

    def port(number: int, x: float, side: str) -> str:
        ports[number].add(round(x))
        return f"r{number}:x{round(x)}:{side}"

    lines = [box_line(i, box) for i, box in enumerate(diagram.boxes) if box.strip is None]
    for a in sorted({*leaders.values()}):
        arrow = diagram.arrows[a]
        tail, head = (None if s is None else diagram.strips[s].row for s in _ends(diagram, a))
        if tail is None and head is None:
            lines.append(arrow_line(arrow, f', comment="{a}"'))
            continue
        # What comes out of a row often meets a parameter, for which one rank more leaves room below the row.
        start = f"n{arrow.tail}:s" if tail is None else port(tail, rows[tail].exits[arrow.tail][-1][0], "s")
        end = f"n{arrow.head}:n" if head is None else port(head, rows[head].entries[a][0][0], "n")
        rest = f'dir="{"forward" if head is None else "none"}", minlen="{1 if tail is None else 2}"'
        lines.append(f'{start} -> {end} [comment="{a}", {rest}];')
    for number, row in rows.items():
        cells, at = [], 0
        for x in sorted(ports[number]):
            cells += [_cell(x - 1 - at, row.height), _cell(2, row.height, f'port="x{x}" ')]
            at = x + 1
        cells.append(_cell(round(row.width) - at, row.height))
        table = f'<table border="0" cellborder="0" cellpadding="0" cellspacing="0"><tr>{"".join(cells)}</tr></table>'
        size = f'height="{row.height / 72:.4f}", width="{row.width / 72:.4f}"'
        lines.append(f'r{number} [label=<{table}>, fixedsize="true", {size}, margin="0"];')
    return "\n".join([OPENING, *lines, "}\n"])


def _cell(width: int, height: float, port: str = "") -> str:
    return f'<td {port}fixedsize="true" width="{width}" height="{height:.0f}"></td>' if width > 0 else ""


def _joined(diagram: Diagram, a: int, spline: Spline, rows: Mapping[int, Row], corners: Mapping[int, Rectangle]) -> Spline:
    """An arrow's line outside the rows, with the ways inside them that lead to it and on from it."""
    tail, head = _ends(diagram, a)
    points = spline.points
    if tail is not None:
        number = diagram.strips[tail].row
        way = _moved(rows[number].exits[diagram.arrows[a].tail], corners[number])
        points = rounded(way) + points[1:]
    if head is not None:
        number = diagram.strips[head].row
        points = points[:-1] + rounded(_moved(rows[number].entries[a], corners[number]))
    if tail is None and head is None:
        return spline
    joined = Spline(points, spline.tip, points[len(points) // 2])
    return joined if head is None else joined.pointed()


def _moved(points: Sequence[Point], place: Rectangle) -> list[Point]:
    return [(x + place.left, y + place.top) for x, y in points]


def _laid_out(texts: Sequence[str], layout: Layout) -> list[_Part]:
    """What Graphviz makes of several graphs."""
    output, decoder = layout.run("".join(texts), "-Kdot", "-Tjson0").decode(), json.JSONDecoder()
    parts = []
    for _ in texts:
        graph, end = decoder.raw_decode(output)
        output = output[end:].lstrip()
        left, bottom, right, top = _numbers(graph["bb"])
        part = _Part((right - left, top - bottom), {}, {}, {})
        for thing in graph["objects"]:
            x, y = _numbers(thing["pos"])
            dx, dy = 36 * float(thing["width"]), 36 * float(thing["height"])
            kind, number = thing["name"][0], int(thing["name"][1:])
            (part.boxes if kind == "n" else part.rows)[number] = Rectangle(x - dx, y - dy, x + dx, y + dy)
        for edge in graph.get("edges", ()):
            points = _points(edge["pos"])
            tip = points.pop(0) if edge["pos"].startswith("e") else None
            label = _points(edge["lp"])[0] if "lp" in edge else None
            part.arrows[int(edge["comment"])] = Spline(tuple(points), tip, label)
        parts.append(part)
    return parts


def _numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text.lstrip("e"))]


def _points(text: str) -> list[Point]:
    numbers = _numbers(text)
    return list(zip(numbers[::2], numbers[1::2], strict=True))
