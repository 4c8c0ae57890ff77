"""A picture as one self-contained HTML page, in which modules and loops can be opened and closed.

The page holds the diagram as JSON, and a script that lays it out, so that it needs no Graphviz. A content security policy
forbids it any connection and any script but its own; all names are put into it as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import numpy as np

from tinyseq.draw.colours import DARK, DARK_SCALE, LIGHT, SCALE, Scale
from tinyseq.draw.diagram import Diagram, Facts, Group
from tinyseq.draw.labels import bytes_label, seconds_label

__all__ = ["page"]

LEGEND = (
    ("operation", "operation"),
    ("output", "what was asked for"),
    ("parameter", "parameter"),
    ("input", "input"),
    ("constant", "constant"),
    ("carry", "state that a loop carries"),
    ("backward", "operation of the backward pass"),
    ("gradient", "gradient"),
    ("reference", "stands for a box far away"),
    ("group module", "module: click to open and close"),
    ("group loop", "loop"),
    ("group step", "time step"),
    ("group part", "part of a computation"),
    ("edge data", "data"),
    ("edge carry", "from one time step to the next"),
    ("edge parameter", "parameter"),
    ("edge backward", "gradient"),
    ("edge kept", "kept for the backward pass"),
)
TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<input id="search" type="search" placeholder="search (/)" aria-label="search" autocomplete="off" spellcheck="false">
<button id="next" type="button">next</button>
<output id="hits" for="search"></output>
<button id="open" type="button">open all</button>
<button id="close" type="button">close all</button>
<button id="out" type="button" aria-label="zoom out">−</button>
<button id="in" type="button" aria-label="zoom in">+</button>
<output id="scale" aria-label="scale"></output>
<button id="fit" type="button">fit</button>
<button id="theme" type="button">theme: auto</button>
</header>
{notes}<main>
<svg id="canvas" role="group" aria-label="graph of the computation"><g id="view"></g></svg>
<details>
<summary>legend and keys</summary>
<ul id="kinds"></ul>
<p id="range" hidden></p>
<p><kbd>Tab</kbd> into the picture, <kbd>←</kbd> <kbd>↑</kbd> <kbd>→</kbd> <kbd>↓</kbd> from box to box, <kbd>Enter</kbd>
opens and closes; <kbd>Shift</kbd> and arrows move, <kbd>+</kbd> <kbd>−</kbd> <kbd>0</kbd> <kbd>1</kbd> zoom,
<kbd>/</kbd> searches.</p>
</details>
</main>
<div id="card" role="status" hidden></div>
<noscript>This page draws with JavaScript; save the picture as .svg to see it without.</noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def page(diagram: Diagram, title: str) -> str:
    """The whole page, as text to be written in UTF-8.

    Args:
        diagram: what is drawn, with groups open and closed as they are at first.
        title: of the page.

    >>> from tinyseq.draw.diagram import Box
    >>> text = page(Diagram((Box("x", "input", "</script>"),)), "A picture")
    >>> text.count("</script>"), "connect-src" in text, "default-src 'none'" in text
    (2, False, True)
    """
    style = _colours() + _file("page.css")
    script = f'"use strict";{{\n{_file("page_layout.js")}{_file("page.js")}}}'
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'"
    )
    notes = "".join(f'<p id="notes">{html.escape(" ".join(diagram.notes))}</p>\n' for _ in diagram.notes[:1])
    return TEMPLATE.format(
        policy=policy, title=html.escape(title), style=style, notes=notes, data=_embedded(_data(diagram)), script=script
    )


def _file(name: str) -> str:
    return files("tinyseq.draw").joinpath(name).read_text("utf-8")


def _colours() -> str:
    """The style rules that define the colours: dark ones where the reader's system or the switch on the page says so."""
    light, dark = (
        f"color-scheme:{scheme};"
        + "".join(f"--{role.replace(' ', '-')}:{colour};" for role, colour in roles.items())
        + "".join(f"--shade{i}:{colour};" for i, colour in enumerate(scale))
        for scheme, roles, scale in (("light", LIGHT, SCALE), ("dark", DARK, DARK_SCALE))
    )
    return (
        f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}\n"
        f":root[data-theme=dark]{{{dark}}}\n"
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _embedded(data: object) -> str:
    """JSON in which nothing can end the element that it stands in."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(diagram: Diagram) -> dict[str, Any]:
    """What the script reads: boxes, groups and arrows, each with the words of its card."""
    groups: list[dict[str, Any]] = []
    place: list[int] = []  # of each group among those of the page
    row: dict[int, int] = {}  # of a loop, the row that its steps stand in
    for group in diagram.groups:
        parent = None if group.parent is None else place[group.parent]
        if parent is not None and group.kind in ("step", "gap") and diagram.groups[group.parent].kind == "loop":  # type: ignore[index]
            if parent not in row:
                row[parent] = len(groups)
                groups.append(_row(parent))
            parent = row[parent]
        place.append(len(groups))
        groups.append(_group(group, parent))
    boxes: list[dict[str, Any]] = []
    number: dict[int, int] = {}
    for i, box in enumerate(diagram.boxes):
        around = None if box.group is None else place[box.group]
        if box.kind == "flow" and around is not None:
            groups[around]["strips"] += _strips(box.facts)
            continue
        number[i] = len(boxes)
        boxes.append({"id": box.id, "kind": box.kind, "group": around, **_words(box.title, box.lines, box.facts)})
        if box.kind == "flow":
            boxes[-1]["strips"] = _strips(box.facts)
    arrows = [
        {
            "tail": number[arrow.tail],
            "head": number[arrow.head],
            "kind": arrow.kind,
            "count": arrow.count,
            "label": arrow.label,
            "gradient": _norm(arrow.gradient),
        }
        for arrow in diagram.arrows
        if arrow.tail in number and arrow.head in number
    ]
    norms = [thing["gradient"] for thing in (*boxes, *groups, *arrows)]
    norms += [norm for thing in (*boxes, *groups) for strip in thing.get("strips", ()) for norm in strip["norms"]]
    known = [norm for norm in norms if isinstance(norm, float) and norm > 0]
    scale = Scale.over(known)
    return {
        "boxes": boxes,
        "groups": groups,
        "arrows": arrows,
        "range": [scale.low, scale.high] if known else None,
        "legend": LEGEND,
    }


def _row(parent: int) -> dict[str, Any]:
    """Steps of a loop side by side: a group that is not seen itself."""
    nothing: dict[str, Any] = {"title": "", "lines": (), "facts": [], "gradient": None, "strips": []}
    return {"id": "", "kind": "row", "parent": parent, "open": True, "fixed": True, "backward": False, **nothing}


def _group(group: Group, parent: int | None) -> dict[str, Any]:
    return {
        "id": group.id,
        "kind": group.kind,
        "parent": parent,
        "open": group.open or group.kind == "gap",
        "fixed": group.kind == "gap",
        "backward": group.backward,
        "strips": [],
        **_words(group.title, group.lines, group.facts),
    }


def _words(title: str, lines: Iterable[str], facts: Facts) -> dict[str, Any]:
    return {"title": title, "lines": [*lines], "facts": _card(facts), "gradient": _norm(facts.gradient)}


def _card(facts: Facts) -> list[tuple[str, str]]:
    """The lines of the card that is shown beside a box: a name and a text."""
    known: list[tuple[str, str | None]] = [("operation", facts.operation), ("name", facts.name)]
    if facts.shape is not None:
        known.append(("shape", "×".join(map(str, facts.shape)) or "scalar"))
    known.append(("dtype", facts.dtype))
    if facts.shape is not None and facts.dtype is not None:
        known.append(("size", bytes_label(int(math.prod(facts.shape)) * _itemsize(facts.dtype))))
    known.append(("value", facts.value))
    for name, count in (("parameters", facts.parameters), ("operations", facts.operations), ("steps", facts.steps)):
        known.append((name, None if count is None else f"{count:,}"))
    known.append(("kept for backward", None if facts.kept is None else bytes_label(facts.kept)))
    known.append(("time", None if facts.seconds is None else seconds_label(facts.seconds)))
    return [(name, text) for name, text in known if text is not None]


def _itemsize(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def _norm(norm: float | None) -> float | str | None:
    """A norm in JSON, which knows neither NaN nor infinity."""
    if norm is None or math.isfinite(norm):
        return None if norm is None else float(norm)
    return "nan" if math.isnan(norm) else "inf"


def _strips(facts: Facts) -> list[dict[str, Any]]:
    return [{"name": name, "norms": [_norm(norm) for norm in norms]} for name, norms in facts.flow if len(norms)]
