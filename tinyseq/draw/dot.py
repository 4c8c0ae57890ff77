"""From a diagram to DOT text: the same diagram gives the same bytes."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinyseq.draw.colours import LIGHT, SCALE, Scale
from tinyseq.draw.diagram import Arrow, Box, Diagram, Group
from tinyseq.draw.labels import amount_label

if TYPE_CHECKING:
    from tinyseq.draw.routes import Rectangle, Spline

__all__ = ["OPENING", "Placement", "Writer", "title_width"]

FONT = "Helvetica"  # Graphviz adds sans-serif in an SVG, for those who have neither it nor Arial
OPENING = f"""\
digraph tinyseq {{
  graph [bgcolor="{LIGHT["page"]}", fontcolor="{LIGHT["grey"]}", fontname="{FONT}", fontsize="11", nodesep="0.2",
    newrank="true", nslimit="2", nslimit1="2", pad="0.15", ranksep="0.32", splines="true"];
  node [color="{LIGHT["grey"]}", fillcolor="{LIGHT["box"]}", fontcolor="{LIGHT["ink"]}", fontname="{FONT}", fontsize="11",
    height="0.3", margin="0.13,0.05", shape="box", style="rounded,filled", width="0.5"];
  edge [arrowsize="0.6", color="{LIGHT["grey"]}", fontcolor="{LIGHT["grey"]}", fontname="{FONT}", fontsize="9"];"""
EMPTY = "#FFFFFF00"
# Spaces that are larger than a small line move it down, the first one away from the underscores of the title.
SPACE = ("&#160;", '<font point-size="10">&#160;</font>')


def _painted(role: str, more: str = "") -> str:
    return f', color="{LIGHT[role]}", fillcolor="{LIGHT[f"{role} area"]}"{more}'


BOXES = {
    "operation": "",
    "output": _painted("output", ', penwidth="2"'),
    "parameter": _painted("parameter", ', style="filled"'),
    "input": _painted("input", ', shape="ellipse", style="filled", margin="0.04,0.02"'),
    "constant": f', color="{LIGHT["grey"]}", style="filled,dashed"',
    "carry": _painted("carry", ', shape="ellipse", style="filled", margin="0.04,0.02"'),
    "backward": _painted("backward"),
    "gradient": _painted("gradient", ', style="filled"'),
    "module": _painted("module", ', penwidth="1.6"'),
    "loop": _painted("loop", ', penwidth="1.6"'),
    "step": f', color="{LIGHT["grey"]}", fillcolor="{LIGHT["part area"]}", penwidth="1.6"',
    "reference": f', color="{LIGHT["grey"]}", style="rounded,filled,dashed"',
    "flow": f', color="{EMPTY}", fillcolor="{EMPTY}", style="filled", margin="0"',
    "gap": f', color="{EMPTY}", fillcolor="{EMPTY}", style="filled"',
}
ARROWS = {
    "data": "",
    "carry": f', color="{LIGHT["carry"]}", penwidth="1.6", constraint="false"',
    "parameter": f', color="{LIGHT["faint"]}", penwidth="0.8"',
    "backward": f', color="{LIGHT["backward"]}"',
    "kept": f', color="{LIGHT["grey"]}", style="dashed", penwidth="0.8"',
}
GROUPS = {
    "module": f'color="{LIGHT["module"]}", fillcolor="{LIGHT["module area"]}", style="rounded,filled"',
    "loop": f'color="{LIGHT["loop"]}", fillcolor="{LIGHT["loop area"]}", style="rounded,filled", penwidth="1.4"',
    "step": f'color="{LIGHT["frame"]}", fillcolor="{LIGHT["column"]}", style="rounded,filled"',
    "gap": 'style="invis"',
    "part": f'color="{LIGHT["part"]}", fillcolor="{LIGHT["part area"]}", style="rounded,filled,dashed"',
}
MEANING = {  # of the kinds that a legend explains, in this order
    "input": "input",
    "parameter": "parameter",
    "constant": "constant",
    "operation": "operation",
    "output": "result",
    "module": "module",
    "loop": "loop",
    "step": "several operations",
    "carry": "state of a loop",
    "backward": "backward pass",
    "gradient": "gradient",
    "reference": "stands for #",
}
ARROW_MEANING = {"carry": "from step to step", "kept": "kept for backward", "backward": "gradient flows"}
MOST_CELLS = 50  # of a strip of norms


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the boxes, groups and arrows of a diagram stand, each by its number; and the legend."""

    boxes: Mapping[int, Rectangle]
    groups: Mapping[int, Rectangle]
    titles: Mapping[int, tuple[float, float]]
    arrows: Mapping[int, Spline]
    legend: Rectangle | None = None


class Writer:
    """Writes the boxes, groups and arrows of one diagram, with what they share: the scale of its gradients."""

    def __init__(self, diagram: Diagram, legend: bool = True) -> None:
        self.diagram = diagram
        self.scale = Scale.of(diagram)
        self.children: dict[int | None, list[int]] = defaultdict(list)
        for g, group in enumerate(diagram.groups):
            self.children[group.parent].append(g)
        self.members: dict[int | None, list[int]] = defaultdict(list)
        for i, box in enumerate(diagram.boxes):
            self.members[box.group].append(i)
        self.legend = self._legend(legend)

    def dot(self, placement: Placement | None = None) -> str:
        """The DOT text, each group a cluster; with a placement, for ``neato -n2`` to draw just so."""
        lines = [OPENING]
        # Depth first, without recursion: a None on the stack with a depth closes a cluster.
        todo: list[tuple[str, int | None, int]] = [("open", None, 0)]
        while todo:
            what, g, depth = todo.pop()
            indent = "  " * (depth + 1)
            if what == "close":
                lines.append(f"{'  ' * depth}}}")
                continue
            if g is not None:
                group = self.diagram.groups[g]
                lines.append(f"{'  ' * depth}subgraph cluster_{g} {{")
                lines.append(f"{indent}graph [{self.group_attributes(group, True, _place(placement, g))}];")
                todo.append(("close", g, depth))
            lines += [f"{indent}{self.box(i, _centre(placement, i))}" for i in self.members[g]]
            todo += [("open", child, depth + 1) for child in reversed(self.children[g])]
        lines += [
            f"  {self.arrow(arrow, _spline(placement, a), placement is not None)}"
            for a, arrow in enumerate(self.diagram.arrows)
        ]
        lines += self.hints() if placement is None else []
        if self.legend:
            at = placement.legend if placement else None
            lines.append(f"  {self.legend_line(at)}")
        return "\n".join([*lines, "}\n"])

    def hints(self) -> list[str]:
        """Invisible arrows that keep a strip of norms below the loop that it belongs to."""
        lines = []
        for i, box in enumerate(self.diagram.boxes):
            if box.kind == "flow":
                inside = {box.group}
                for g, group in enumerate(self.diagram.groups):
                    if group.parent in inside:
                        inside.add(g)
                members = [j for g in inside if g is not None for j in self.members[g] if j != i]
                tails = {arrow.tail for arrow in self.diagram.arrows if arrow.kind != "carry" and arrow.head in set(members)}
                lines += [f'  n{j} -> n{i} [style="invis"];' for j in sorted(members) if j not in tails]
        return lines

    def box(self, i: int, more: str = "") -> str:
        """The statement that makes box ``i`` a node."""
        box = self.diagram.boxes[i]
        if box.kind == "flow":
            return f"n{i} [label=<{self._strip(box)}>{BOXES[box.kind]}{more}];"
        title = html_text(box.title)
        label = f"<b>{title}</b>" if box.kind != "gap" else f'<font color="{LIGHT["grey"]}">{title}</font>'
        small = "".join(
            f'<br/>{SPACE[k > 0]}<font point-size="9">{html_text(line)}</font>{SPACE[k > 0]}'
            for k, line in enumerate(box.lines)
        )
        return f"n{i} [label=<{label}{small}>{BOXES[box.kind]}{more}];"

    def arrow(self, arrow: Arrow, more: str = "", placed: bool = False) -> str:
        """The statement that makes an arrow an edge; one that goes back to a carry is laid out the other way round."""
        label = arrow.label or (f"×{arrow.count}" if arrow.count > 1 else "")
        text = f', label=<<font color="{LIGHT["grey"]}"> {html_text(label)}</font>>' if label else ""
        style = ARROWS[arrow.kind]
        if arrow.gradient is not None and self.scale is not None:
            colour, width = self.scale.colour(arrow.gradient), self.scale.width(arrow.gradient)
            style += f', color="{colour}", penwidth="{width}"'
            style = style.replace(f', color="{LIGHT["carry"]}", penwidth="1.6"', "")
        ends = f"n{arrow.tail} -> n{arrow.head}"
        if self.turned(arrow) and not placed:
            ends, style = f"n{arrow.head} -> n{arrow.tail}", style.replace('constraint="false"', 'dir="back"')
        attributes = f"{style}{text}{more}".removeprefix(", ")
        return ends + (f" [{attributes}];" if attributes else ";")

    def turned(self, arrow: Arrow) -> bool:
        """Whether an arrow goes round in a folded loop, against the order of the others."""
        return arrow.kind == "carry" and self.diagram.boxes[arrow.head].kind == "carry"

    def group_attributes(self, group: Group, titled: bool = True, more: str = "") -> str:
        """The look of a cluster, with its title or without."""
        style = GROUPS[group.kind]
        if group.backward and group.kind in ("module", "loop", "step"):
            style = f'color="{LIGHT["backward"]}", fillcolor="{LIGHT["part area"]}", style="rounded,filled"'
        title = f"<{html_text(group.title)}>" if group.title and titled else '""'
        return f'{style}, label={title}, labeljust="l", margin="10"{more}'

    def title_line(self, g: int) -> str:
        """The statement that makes a group's title a node of its own."""
        title = f'<font color="{LIGHT["grey"]}">{html_text(self.diagram.groups[g].title)}</font>'
        return f'g{g} [label=<{title}>, shape="plaintext", style="", margin="0.02,0", height="0.1"];'

    def legend_line(self, place: Rectangle | None = None) -> str:
        """The statement that makes the legend a node."""
        more = f', pos="{_point((place.x, place.y))}"' if place else ""
        return f'legend [label=<{self.legend}>, color="{EMPTY}", fillcolor="{EMPTY}", style="filled", margin="0"{more}];'

    def _strip(self, box: Box) -> str:
        """Norms at each step as coloured cells, a row a part of the carry."""
        assert self.scale is not None
        rows = []
        longest = max(len(norms) for _, norms in box.facts.flow)
        group = -(-longest // MOST_CELLS)
        width = max(6, min(22, 400 * group // max(longest, 1)))
        count = -(-longest // group)
        for name, norms in box.facts.flow:
            cells = []
            for k in range(0, len(norms), group):
                part = norms[k : k + group]
                # Of several steps in a cell the largest is shown, and NaN if any is none.
                worst = next((x for x in part if x != x), max(part))
                cells.append(f'<td bgcolor="{self.scale.colour(worst)}" width="{width}" height="14"></td>')
            ends = f"{amount_label(norms[0])} … {amount_label(norms[-1])}"
            rows.append(
                f'<tr><td align="right"><font point-size="9">{html_text(name)} </font></td>{"".join(cells)}'
                f'<td align="left"><font point-size="9"> {html_text(ends)}</font></td></tr>'
            )
        grey = f'<font point-size="9" color="{LIGHT["grey"]}">'
        half = max(count // 2, 1)
        axis = f'<tr><td></td><td colspan="{half}" align="left">{grey}t = 0</font></td>'
        if count > half:
            axis += f'<td colspan="{count - half}" align="right">{grey}t = {longest - 1}</font></td>'
        title = f'<tr><td colspan="{count + 2}">{grey}gradient norms ‖∂L/∂hₜ‖</font></td></tr>'
        table = '<table border="0" cellborder="0" cellpadding="1" cellspacing="1">'
        return f"{table}{title}{''.join(rows)}{axis}<td></td></tr></table>"

    def _legend(self, wanted: bool) -> str:
        """What the kinds of boxes and arrows mean that occur, the scale of gradients, and the notes, which are always there."""
        boxes = {box.kind for box in self.diagram.boxes if wanted}
        arrows = {arrow.kind for arrow in self.diagram.arrows if wanted}
        cells = []
        for kind, meaning in MEANING.items():
            if kind in boxes:
                known = f"{kind} area" in LIGHT
                line = LIGHT[kind] if known else LIGHT["grey"]
                area = LIGHT[f"{kind} area"] if known else LIGHT["part area" if kind == "step" else "box"]
                style = ' style="dashed"' if kind in ("constant", "reference") else ""
                swatch = f'<td bgcolor="{area}" color="{line}" border="1"{style} width="16" height="10"></td>'
                cells.append(f'{swatch}<td align="left">{_small(meaning)}</td>')
        for kind, meaning in ARROW_MEANING.items():
            if kind in arrows:
                colour = {"carry": LIGHT["carry"], "kept": LIGHT["grey"], "backward": LIGHT["backward"]}[kind]
                mark = "⇢" if kind == "kept" else "→"
                cells.append(f'<td><font color="{colour}">{mark}</font></td><td align="left">{_small(meaning)}</td>')
        scale = ""
        if self.scale is not None and wanted:
            swatches = "".join(f'<td bgcolor="{colour}" width="9" height="10"></td>' for colour in SCALE)
            low, high = (_small(amount_label(x)) for x in (self.scale.low, self.scale.high))
            inside = f"<td>{_small('gradient norm from ')}{low}</td>{swatches}<td>{_small('to ')}{high}</td>"
            table = f'<table border="0" cellborder="0" cellpadding="1" cellspacing="0"><tr>{inside}</tr></table>'
            scale = f'<tr><td align="left" colspan="18">{table}</td></tr>'
        notes = "".join(f'<tr><td align="left" colspan="18">{_small(note)}</td></tr>' for note in self.diagram.notes)
        if len(cells) < 2 and not notes and not scale:
            return ""
        body = "".join(f"<tr>{''.join(cells[k : k + 6])}</tr>" for k in range(0, len(cells), 6))
        return f'<table border="0" cellborder="0" cellpadding="2" cellspacing="3">{body}{scale}{notes}</table>'


def _small(text: str) -> str:
    return f'<font point-size="9" color="{LIGHT["grey"]}">{html_text(text)}</font>'


def html_text(text: str) -> str:
    """Any text as the inside of an HTML-like label, where Graphviz would also take backslashes for its own."""
    return html.escape(text).replace("&#x27;", "&#39;").replace("\\", "&#92;&#92;")


def title_width(title: str) -> float:
    """About how far a column's title reaches from the left, in points."""
    return 10.0 + 6.0 * len(title) if title else 0.0


def _centre(placement: Placement | None, i: int) -> str:
    return f', pos="{_point((placement.boxes[i].x, placement.boxes[i].y))}"' if placement else ""


def _place(placement: Placement | None, g: int) -> str:
    if placement is None:
        return ""
    place = placement.groups[g]
    title = f', lp="{_point(placement.titles[g])}"' if g in placement.titles else ""
    return f', bb="{_point((place.left, place.bottom))},{_point((place.right, place.top))}"{title}'


def _spline(placement: Placement | None, a: int) -> str:
    if placement is None:
        return ""
    spline = placement.arrows[a]
    tip = f"e,{_point(spline.tip)} " if spline.tip else ""
    label = f', lp="{_point(spline.label)}"' if spline.label else ""
    return f', pos="{tip}{" ".join(map(_point, spline.points))}"{label}'


def _point(point: tuple[float, float]) -> str:
    return f"{point[0]:.2f},{point[1]:.2f}"
