"""Time in columns: where the boxes of a diagram with steps stand.

Graphviz alone puts clusters in the order that crosses the fewest lines, not in the order of time. So each column is laid
out by itself, the columns of a scan are set side by side, and a third layout arranges what is not in any column around
these rows, each of which is one large node to it. Graphviz then draws the lines between all that stands.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import OPENING, Placement, arrow_line, box_line
from tinyseq.draw.render import Layout

__all__ = ["place"]

PADDING, HEADER, GUTTER = 10.0, 24.0, 30.0  # points: inside a strip, for its title, between two strips
PAIR = re.compile(r"(-?[\d.]+(?:e[-+]?\d+)?),(-?[\d.]+(?:e[-+]?\d+)?)")


def place(diagram: Diagram, layout: Layout) -> Placement:
    """Lay a diagram with strips out."""
    boxes = [(0.0, 0.0)] * len(diagram.boxes)
    strips = [(0.0, 0.0, 0.0, 0.0)] * len(diagram.strips)
    arrows: dict[int, str] = {}

    columns = _columns(diagram, layout)
    sizes = [(c["size"][0] + 2 * PADDING, c["size"][1] + 2 * PADDING + HEADER) for c in columns]
    rows: dict[int, list[int]] = {}
    for s, strip in enumerate(diagram.strips):
        rows.setdefault(strip.row, []).append(s)
    around = _around(diagram, rows, sizes, layout)

    boxes_around, splines_around, left_tops = around
    for i, centre in boxes_around.items():
        boxes[i] = centre
    arrows.update(splines_around)
    for row, members in rows.items():
        left, top = left_tops[row]
        for s in members:
            width, height = sizes[s]
            strips[s] = (left, top - height, left + width, top)
            dx, dy = left + PADDING, top - height + PADDING
            for i, (x, y) in columns[s]["boxes"].items():
                boxes[i] = (x + dx, y + dy)
            arrows.update((a, _moved(spline, dx, dy)) for a, spline in columns[s]["arrows"].items())
            left += width + GUTTER
    return Placement(boxes, strips, arrows)


def _columns(diagram: Diagram, layout: Layout) -> list[dict[str, Any]]:
    """Each strip laid out by itself: its size, its boxes and the arrows between them."""
    texts = []
    for s in range(len(diagram.strips)):
        inside = [i for i, box in enumerate(diagram.boxes) if box.strip == s]
        lines = [box_line(i, diagram.boxes[i]) for i in inside]
        lines += [
            arrow_line(arrow, f', comment="{a}"')
            for a, arrow in enumerate(diagram.arrows)
            if diagram.boxes[arrow.tail].strip == s == diagram.boxes[arrow.head].strip
        ]
        texts.append("\n".join([OPENING, *lines, "}\n"]))
    found = []
    for graph in _graphs(layout.run("".join(texts), "-Tjson0")):
        left, bottom, right, top = map(float, graph["bb"].split(","))
        found.append({"size": (right - left, top - bottom), "boxes": _centres(graph), "arrows": _splines(graph)})
    return found


def _around(
    diagram: Diagram, rows: dict[int, list[int]], sizes: list[tuple[float, float]], layout: Layout
) -> tuple[dict[int, tuple[float, float]], dict[int, str], dict[int, tuple[float, float]]]:
    """What is in no strip, with each row as one node that has a port for each strip; also each row's left top corner."""
    lines = [OPENING]
    for row, members in rows.items():
        cells = "".join(
            f'<td port="s{s}" fixedsize="true" width="{round(sizes[s][0] + GUTTER)}" height="10"></td>' for s in members
        )
        width = sum(sizes[s][0] for s in members) + GUTTER * (len(members) - 1)
        height = max(sizes[s][1] for s in members)
        table = f'<table border="0" cellborder="0" cellpadding="0" cellspacing="0"><tr>{cells}</tr></table>'
        lines.append(
            f'r{row} [label=<{table}>, margin="0", shape="box", fixedsize="true", '
            f'width="{width / 72:.4f}", height="{height / 72:.4f}"];'
        )

    def end(i: int, side: str) -> str:
        strip = diagram.boxes[i].strip
        return f"n{i}" if strip is None else f"r{diagram.strips[strip].row}:s{strip}:{side}"

    lines += [box_line(i, box) for i, box in enumerate(diagram.boxes) if box.strip is None]
    for a, arrow in enumerate(diagram.arrows):
        tail, head = (diagram.boxes[i].strip for i in (arrow.tail, arrow.head))
        if tail is None or head is None or diagram.strips[tail].row != diagram.strips[head].row:
            lines.append(f'{end(arrow.tail, "s")} -> {end(arrow.head, "n")} [comment="{a}"];')
    (graph,) = _graphs(layout.run("\n".join([*lines, "}\n"]), "-Tjson0"))
    corners = {}
    for thing in graph["objects"]:
        if thing["name"].startswith("r"):
            x, y = map(float, thing["pos"].split(","))
            corners[int(thing["name"][1:])] = (x - 36 * float(thing["width"]), y + 36 * float(thing["height"]))
    splines = {
        a: spline
        for a, spline in _splines(graph).items()
        if all(diagram.boxes[i].strip is None for i in (diagram.arrows[a].tail, diagram.arrows[a].head))
    }
    return _centres(graph), splines, corners


def _graphs(output: bytes) -> list[dict[str, Any]]:
    """The JSON texts that stand one after the other in Graphviz's output."""
    text, decoder, found, at = output.decode(), json.JSONDecoder(), [], 0
    while at < len(text):
        graph, at = decoder.raw_decode(text, at)
        found.append(graph)
        at = len(text) - len(text[at:].lstrip())
    return found


def _centres(graph: dict[str, Any]) -> dict[int, tuple[float, float]]:
    found = {}
    for thing in graph.get("objects", ()):
        if thing["name"].startswith("n"):
            x, y = map(float, thing["pos"].split(","))
            found[int(thing["name"][1:])] = (x, y)
    return found


def _splines(graph: dict[str, Any]) -> dict[int, str]:
    return {int(edge["comment"]): edge["pos"] for edge in graph.get("edges", ()) if "pos" in edge}


def _moved(spline: str, dx: float, dy: float) -> str:
    return PAIR.sub(lambda pair: f"{float(pair[1]) + dx:.2f},{float(pair[2]) + dy:.2f}", spline)
