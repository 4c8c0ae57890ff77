"""Where boxes stand and how arrows run: Graphviz ranks what is computed from what, and time goes from left to right.

Graphviz puts clusters in the order in which the fewest lines cross, which need not be that of time. So it lays out each
column by itself; the columns of a loop are set side by side (``rows``), and another layout arranges what is in no column
around these rows, each of which is one large node to it. The legend stands below.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import OPENING, Placement, Writer
from tinyseq.draw.render import Layout
from tinyseq.draw.routes import Point, Rectangle, Spline, rounded
from tinyseq.draw.rows import Row

__all__ = ["Strips", "place"]

NUMBER = re.compile(r"-?[\d.]+(?:e[-+]?\d+)?")
LEGEND_GAP = 14.0
TITLE_INDENT = 8.0


class Strips:
    """The columns of a diagram: each step, or gap, of an unrolled loop that is in no other.

    Attributes:
        of_group, of_box: the column that a group or a box is in, as a group; None outside.
        row: the loop that each column belongs to.
    """

    def __init__(self, diagram: Diagram) -> None:
        self.of_group: list[int | None] = []
        self.row: dict[int, int] = {}
        for g, group in enumerate(diagram.groups):
            column = None if group.parent is None else self.of_group[group.parent]
            if column is None and group.kind in ("step", "gap") and group.parent is not None:
                column = g
                self.row[g] = group.parent
            self.of_group.append(column)
        self.of_box = [None if box.group is None else self.of_group[box.group] for box in diagram.boxes]
        self.titles = {g: diagram.groups[g].title for g in self.row}

    def row_of_box(self, i: int) -> int | None:
        """The loop in whose columns a box stands."""
        column = self.of_box[i]
        return None if column is None else self.row[column]


@dataclass(slots=True)
class _Part:
    """What Graphviz has laid out in one graph: boxes, rows, groups and arrows by their numbers."""

    size: Point
    boxes: dict[int, Rectangle] = field(default_factory=dict)
    rows: dict[int, Rectangle] = field(default_factory=dict)
    groups: dict[int, Rectangle] = field(default_factory=dict)
    titles: dict[int, Rectangle] = field(default_factory=dict)
    arrows: dict[int, Spline] = field(default_factory=dict)
    legend: Rectangle | None = None


def place(diagram: Diagram, writer: Writer, layout: Layout) -> Placement:
    """Lay out a diagram."""
    strips = Strips(diagram)
    members: dict[int, list[int]] = defaultdict(list)
    for column, loop in strips.row.items():
        members[loop].append(column)
    columns = list(strips.row)
    texts = [_column_text(diagram, writer, strips, column) for column in columns]
    if writer.legend:
        texts.append("\n".join([OPENING, writer.legend_line(), "}\n"]))
    parts = _laid_out(texts, layout) if texts else []
    legend = parts.pop().legend if writer.legend else None
    by_column = dict(zip(columns, parts, strict=True))

    # The rows of loops with as many columns stand below one another, step below step.
    widths: dict[int, list[float]] = {}
    for own in members.values():
        wide = [by_column[column].size[0] for column in own]
        known = widths.setdefault(len(own), wide)
        widths[len(own)] = [max(pair) for pair in zip(known, wide, strict=True)]
    laid_out = {column: (part.size, part.boxes) for column, part in by_column.items()}
    rows = {loop: Row(diagram, strips, own, laid_out, widths[len(own)]) for loop, own in members.items()}
    leaders = _leaders(diagram, strips, rows)
    (around,) = _laid_out([_text_around(diagram, writer, strips, rows, leaders)], layout)

    boxes, groups, texts_of = dict(around.boxes), dict(around.groups), dict(around.titles)
    titles: dict[int, Point] = {}
    splines: dict[int, Spline] = {}
    for loop, row in rows.items():
        corner = around.rows[loop].left, around.rows[loop].top
        for column, placed in row.columns.items():
            part, frame = by_column[column], placed.frame.moved(*corner)
            groups[column] = frame
            boxes.update((i, box.moved(*corner)) for i, box in placed.boxes.items())
            dx, dy = (placed.inside[0] + corner[0], placed.inside[1] + corner[1])
            groups.update((g, inner.moved(dx, dy)) for g, inner in part.groups.items())
            texts_of.update((g, title.moved(dx, dy)) for g, title in part.titles.items())
            splines.update((a, spline.moved(dx, dy)) for a, spline in part.arrows.items())
            half = 6.0 * len(strips.titles[column]) / 2
            titles[column] = (frame.left + 10 + half, frame.top - 12)
        splines.update((a, spline.moved(*corner)) for a, spline in row.splines.items())
    for a, leader in leaders.items():
        splines[a] = _joined(diagram, strips, a, around.arrows[leader], rows, around.rows)
    lines = list(splines.values())
    titles.update((g, _clear_of_lines(title, groups[g], lines)) for g, title in texts_of.items())
    if legend is not None:
        low = min([0.0, *(box.bottom for box in boxes.values()), *(group.bottom for group in groups.values())])
        left = min([*(box.left for box in boxes.values()), *(group.left for group in groups.values())], default=0.0)
        legend = legend.moved(left - legend.left, low - LEGEND_GAP - legend.top)
    return Placement(boxes, groups, titles, splines, legend)


def _clear_of_lines(title: Rectangle, frame: Rectangle, lines: Sequence[Spline]) -> Point:
    """Where a title stands, for which all of the top of its frame is free: on the left, or where the fewest lines cross it."""
    half = (title.right - title.left) / 2
    first, last = frame.left + TITLE_INDENT + half, frame.right - TITLE_INDENT - half
    places = [x for x in (first, last, title.x, (first + last) / 2) if first <= x <= last] or [title.x]
    near = [line for line in lines if line.touches(Rectangle(frame.left, title.bottom, frame.right, title.top))]

    def crossings(x: float) -> int:
        text = Rectangle(x - half, title.bottom + 2, x + half, title.top - 2)
        return sum(line.touches(text) for line in near)

    return min(places, key=crossings), title.y


def _ends(diagram: Diagram, strips: Strips, a: int) -> tuple[int | None, int | None]:
    """The columns in which an arrow starts and ends."""
    arrow = diagram.arrows[a]
    return strips.of_box[arrow.tail], strips.of_box[arrow.head]


def _clusters(diagram: Diagram, writer: Writer, strips: Strips, top: int | None, extra: Mapping[int, list[str]]) -> list[str]:
    """The boxes in a group (None: in no column), in the clusters of the groups within it."""
    lines: list[str] = []
    below: list[str] = []  # a title stands above all that is in its frame, so that no line crosses it
    fed = _fed(diagram)
    todo: list[tuple[bool, int | None]] = [(True, top)]
    while todo:
        opening, g = todo.pop()
        if not opening:
            lines.append("}")
            continue
        children = [child for child in writer.children[g] if strips.of_group[child] == top]
        own = extra.get(g, []) if g is not None else []
        if g != top and g is not None:
            lines += [f"subgraph cluster_{g} {{", f"graph [{writer.group_attributes(diagram.groups[g], False)}];"]
            todo.append((False, g))
            if diagram.groups[g].title:
                lines.append(writer.title_line(g))
                heads = [f"n{i}" for i in writer.members[g] if (i, g) not in fed and diagram.boxes[i].kind != "flow"]
                heads += [f"g{child}" for child in children if diagram.groups[child].title]
                heads += [f"r{g}"] * bool(own)
                below += [f'g{g} -> {head} [style="invis"];' for head in heads]
        lines += [writer.box(i) for i in writer.members[g]]
        lines += own
        todo += [(True, child) for child in reversed(children)]
    return lines + below


def _fed(diagram: Diagram) -> set[tuple[int, int]]:
    """The boxes that are computed from something in the same group, each with the group."""
    fed: set[tuple[int, int]] = set()
    around: list[list[int]] = []
    for g, group in enumerate(diagram.groups):
        around.append([g, *(around[group.parent] if group.parent is not None else [])])
    for arrow in diagram.arrows:
        tail, head = diagram.boxes[arrow.tail].group, diagram.boxes[arrow.head].group
        if arrow.kind != "carry" and tail is not None and head is not None and head in around[tail]:
            fed.add((arrow.head, head))
    return fed


def _column_text(diagram: Diagram, writer: Writer, strips: Strips, column: int) -> str:
    """The DOT text of a column by itself."""
    lines = [OPENING, *_clusters(diagram, writer, strips, column, {})]
    lines += [
        writer.arrow(arrow, f', comment="{a}"')
        for a, arrow in enumerate(diagram.arrows)
        if strips.of_box[arrow.tail] == column == strips.of_box[arrow.head]
    ]
    return "\n".join([*lines, "}\n"])


def _leaders(diagram: Diagram, strips: Strips, rows: Mapping[int, Row]) -> dict[int, int]:
    """For each arrow that runs outside the rows the first that takes the same way there."""
    first: dict[object, int] = {}
    leaders = {}
    for a, arrow in enumerate(diagram.arrows):
        tail, head = strips.row_of_box(arrow.tail), strips.row_of_box(arrow.head)
        if tail is None or tail != head:
            port = arrow.head if head is None else (head, rows[head].entries[a][0])
            leaders[a] = first.setdefault((arrow.tail, port, arrow.kind == "carry"), a)
    return leaders


def _text_around(diagram: Diagram, writer: Writer, strips: Strips, rows: Mapping[int, Row], leaders: Mapping[int, int]) -> str:
    """The DOT text of what is in no column, each row being one node that has ports where lines come in and go out."""
    ports: dict[int, set[int]] = {number: set() for number in rows}

    def port(number: int, x: float, side: str) -> str:
        ports[number].add(round(x))
        return f"r{number}:x{round(x)}:{side}"

    lines = []
    for a in sorted({*leaders.values()}):
        arrow = diagram.arrows[a]
        tail, head = strips.row_of_box(arrow.tail), strips.row_of_box(arrow.head)
        if tail is None and head is None:
            lines.append(writer.arrow(arrow, f', comment="{a}"'))
            continue
        # What comes out of a row often meets a parameter, for which one rank more leaves room below the row.
        start = f"n{arrow.tail}:s" if tail is None else port(tail, rows[tail].exits[arrow.tail][-1][0], "s")
        end = f"n{arrow.head}:n" if head is None else port(head, rows[head].entries[a][0][0], "n")
        rest = f'dir="{"forward" if head is None else "none"}", minlen="{2 + (tail is not None and head is not None)}"'
        lines.append(f'{start} -> {end} [comment="{a}", {rest}];')
    like: dict[int, int] = {}
    nodes: dict[int, list[str]] = {}
    for number, row in rows.items():
        before = like.get(len(row.columns))
        if before is not None:
            lines.append(f'r{before} -> r{number} [style="invis", weight="200"];')
        like[len(row.columns)] = number
        cells, at = [], 0
        for x in sorted(ports[number]):
            cells += [_cell(x - 1 - at, row.height), _cell(2, row.height, f'port="x{x}" ')]
            at = x + 1
        cells.append(_cell(round(row.width) - at, row.height))
        table = f'<table border="0" cellborder="0" cellpadding="0" cellspacing="0"><tr>{"".join(cells)}</tr></table>'
        size = f'height="{row.height / 72:.4f}", width="{row.width / 72:.4f}"'
        nodes[number] = [f'r{number} [label=<{table}>, fixedsize="true", {size}, margin="0"];']
    return "\n".join([OPENING, *_clusters(diagram, writer, strips, None, nodes), *lines, *writer.hints(), "}\n"])


def _cell(width: int, height: float, port: str = "") -> str:
    return f'<td {port}fixedsize="true" width="{width}" height="{height:.0f}"></td>' if width > 0 else ""


def _joined(
    diagram: Diagram, strips: Strips, a: int, spline: Spline, rows: Mapping[int, Row], corners: Mapping[int, Rectangle]
) -> Spline:
    """An arrow's line outside the rows, with the ways inside them that lead to it and on from it."""
    arrow = diagram.arrows[a]
    tail, head = strips.row_of_box(arrow.tail), strips.row_of_box(arrow.head)
    points = spline.points
    if tail is not None:
        way = _moved(rows[tail].exits[arrow.tail], corners[tail])
        points = rounded(way) + points[1:]
    if head is not None:
        points = points[:-1] + rounded(_moved(rows[head].entries[a], corners[head]))
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
    at = 0
    for _ in texts:
        while output[at].isspace():
            at += 1
        graph, at = decoder.raw_decode(output, at)
        left, bottom, right, top = _numbers(graph["bb"])
        part = _Part((right - left, top - bottom))
        for thing in graph.get("objects", ()):
            name = thing["name"]
            if name.startswith("cluster_"):
                if "bb" in thing:
                    part.groups[int(name[8:])] = Rectangle(*_numbers(thing["bb"]))
                continue
            x, y = _numbers(thing["pos"])
            dx, dy = 36 * float(thing["width"]), 36 * float(thing["height"])
            rectangle = Rectangle(x - dx, y - dy, x + dx, y + dy)
            if name == "legend":
                part.legend = rectangle
            elif name[0] == "g":
                part.titles[int(name[1:])] = rectangle
            else:
                (part.boxes if name[0] == "n" else part.rows)[int(name[1:])] = rectangle
        for edge in graph.get("edges", ()):
            if "comment" not in edge or "pos" not in edge:
                continue  # an invisible one
            points = _points(edge["pos"])
            back = edge["pos"].startswith("s")
            tip = points.pop(0) if back or edge["pos"].startswith("e") else None
            if back:
                points.reverse()
            label = _points(edge["lp"])[0] if "lp" in edge else None
            part.arrows[int(edge["comment"])] = Spline(tuple(points), tip, label)
        parts.append(part)
    return parts


def _numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text.lstrip("es"))]


def _points(text: str) -> list[Point]:
    numbers = _numbers(text)
    return list(zip(numbers[::2], numbers[1::2], strict=True))
