"""From a diagram to DOT text: the same diagram gives the same bytes."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseq.draw.diagram import Arrow, Box, Diagram, Strip

if TYPE_CHECKING:
    from tinyseq.draw.routes import Rectangle, Spline

__all__ = ["OPENING", "Placement", "arrow_line", "box_line", "title_width", "to_dot"]

# The palette of Okabe and Ito (2008), which colour-blind people can tell apart: full for lines, light for areas.
INK, GREY, PALE = "#222222", "#6E6E6E", "#F4F4F4"
BLUE, SKY, LIGHT_SKY = "#0072B2", "#56B4E9", "#DDF0FB"
ORANGE, LIGHT_ORANGE = "#E69F00", "#FCE8BF"
GREEN, LIGHT_GREEN = "#009E73", "#CFEFE4"

FONT = "Helvetica"  # Graphviz adds sans-serif in an SVG, for those who have neither it nor Arial
OPENING = f"""\
digraph tinyseq {{
  graph [bgcolor="#FFFFFF", fontcolor="{GREY}", fontname="{FONT}", fontsize="11", nodesep="0.2",
    nslimit="2", nslimit1="2", pad="0.15", ranksep="0.32", splines="true"];
  node [color="{GREY}", fillcolor="#FFFFFF", fontcolor="{INK}", fontname="{FONT}", fontsize="11", height="0.3",
    margin="0.13,0.05", shape="box", style="rounded,filled", width="0.5"];
  edge [arrowsize="0.6", color="{GREY}", fontcolor="{GREY}", fontname="{FONT}", fontsize="9"];"""
BOXES = {
    "operation": "",
    "output": f', color="{GREEN}", fillcolor="{LIGHT_GREEN}", penwidth="2"',
    "parameter": f', color="{ORANGE}", fillcolor="{LIGHT_ORANGE}", style="filled"',
    "input": f', color="{SKY}", fillcolor="{LIGHT_SKY}", shape="ellipse", style="filled", margin="0.04,0.02"',
    "constant": f', color="{GREY}", fillcolor="#FFFFFF", style="filled,dashed"',
    "reference": f', color="{GREY}", style="rounded,filled,dashed"',
    "gap": ', color="#FFFFFF00", fillcolor="#FFFFFF00", style="filled"',
}
ARROWS = {
    "data": "",
    "carry": f', color="{BLUE}", penwidth="1.6", constraint="false"',
    "parameter": ', color="#B0B0B0", penwidth="0.8"',
}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the boxes, strips and arrows of a diagram stand, each by its number."""

    boxes: Mapping[int, Rectangle]
    strips: Mapping[int, Rectangle]
    arrows: Mapping[int, Spline]


def to_dot(diagram: Diagram, placement: Placement | None = None) -> str:
    """The DOT text, each time step a cluster; with a placement, for ``neato -n2`` to draw just so."""
    members: dict[int | None, list[str]] = defaultdict(list)
    for i, box in enumerate(diagram.boxes):
        members[box.strip].append(box_line(i, box, _centre(placement, i)))
    lines = [OPENING]
    for s, strip in enumerate(diagram.strips):
        style = f'color="#C8C8C8", fillcolor="{PALE}", style="rounded,filled"' if strip.title else 'style="invis"'
        lines.append(f"  subgraph cluster_{s} {{")
        lines.append(
            f'    graph [{style}, label="{strip.title or ""}", labeljust="l", margin="12"{_rectangle(placement, s, strip)}];'
        )
        lines += [f"    {line}" for line in members[s]]
        lines.append("  }")
    lines += [f"  {line}" for line in members[None]]
    lines += [f"  {arrow_line(arrow, _spline(placement, i))}" for i, arrow in enumerate(diagram.arrows)]
    return "\n".join([*lines, "}\n"])


def box_line(i: int, box: Box, more: str = "") -> str:
    """The statement that makes box ``i`` a node."""
    title = html_text(box.title)
    label = f"<b>{title}</b>" if box.kind != "gap" else f'<font color="{GREY}">{title}</font>'
    small = "".join(f'<br/><font point-size="9">{html_text(line)}</font>' for line in box.lines)
    return f"n{i} [label=<{label}{small}>{BOXES[box.kind]}{more}];"


def arrow_line(arrow: Arrow, more: str = "") -> str:
    """The statement that makes an arrow an edge."""
    count = f', label=" ×{arrow.count}"' if arrow.count > 1 else ""
    attributes = f"{ARROWS[arrow.kind]}{count}{more}".removeprefix(", ")
    return f"n{arrow.tail} -> n{arrow.head}" + (f" [{attributes}];" if attributes else ";")


def html_text(text: str) -> str:
    """Any text as the inside of an HTML-like label, where Graphviz would also take backslashes for its own."""
    return html.escape(text).replace("&#x27;", "&#39;").replace("\\", "&#92;&#92;")


def title_width(title: str) -> float:
    """About how far a column's title reaches from the left, in points."""
    return 10.0 + 6.0 * len(title) if title else 0.0


def _centre(placement: Placement | None, i: int) -> str:
    return f', pos="{_point((placement.boxes[i].x, placement.boxes[i].y))}"' if placement else ""


def _rectangle(placement: Placement | None, s: int, strip: Strip) -> str:
    if placement is None:
        return ""
    place = placement.strips[s]
    title = _point((place.left + 5 + title_width(strip.title or "") / 2, place.top - 12))
    return f', bb="{_point((place.left, place.bottom))},{_point((place.right, place.top))}", lp="{title}"'


def _spline(placement: Placement | None, a: int) -> str:
    if placement is None:
        return ""
    spline = placement.arrows[a]
    tip = f"e,{_point(spline.tip)} " if spline.tip else ""
    label = f', lp="{_point(spline.label)}"' if spline.label else ""
    return f', pos="{tip}{" ".join(map(_point, spline.points))}"{label}'


def _point(point: tuple[float, float]) -> str:
    return f"{point[0]:.2f},{point[1]:.2f}"
