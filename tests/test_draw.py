"""Pictures: what they show, where it stands, that they hold any name and size, and what happens when they cannot be made."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq import mode
from tinyseq.draw import DrawError, Picture, draw, render
from tinyseq.draw.diagram import Arrow, Box, Diagram, Facts, Group, visible
from tinyseq.draw.dot import Writer
from tinyseq.draw.labels import shorten
from tinyseq.draw.layout import Strips, place
from tinyseq.draw.loops import shown_steps
from tinyseq.draw.render import Layout
from tinyseq.draw.routes import Rectangle, Spline
from tinyseq.errors import DTypeError, GraphError, ShapeError

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parents[1]


def leaf(*shape: int) -> ts.Tensor:
    return ts.tensor(np.ones(shape, "float32"), requires_grad=True)


def diagram(*tensors: ts.Tensor, level: str = "operations", values: int = 0, **options: object) -> Diagram:
    """What is seen of a picture."""
    return draw(list(tensors), level=level, values=values, **options)._seen  # type: ignore[arg-type]


def titles(drawn: Diagram, kind: str) -> list[str]:
    return [box.title for box in drawn.boxes if box.kind == kind]


def arrows(drawn: Diagram) -> set[tuple[str, str, str, int]]:
    return {(drawn.boxes[a.tail].title, drawn.boxes[a.head].title, a.kind, a.count) for a in drawn.arrows}


def rnn(steps: int, *, reverse: bool = False, layers: int = 1) -> tuple[ts.Tensor, dict[str, ts.Tensor]]:
    """The sum of all outputs of plain recurrent layers, one upon the other, and their parameters."""
    names = {f"{name}{k}": ts.Parameter(np.full((4, 4), 0.1, "float32")) for k in range(layers) for name in "WU"}
    ys = ts.tensor(np.ones((steps, 2, 4), "float32"))
    for k in range(layers):
        w, u = names[f"W{k}"], names[f"U{k}"]

        def step(h: ts.Tensor, x: ts.Tensor, w: ts.Tensor = w, u: ts.Tensor = u) -> tuple[ts.Tensor, ts.Tensor]:
            h = (x @ w + h @ u).tanh()
            return h, h

        _, ys = ts.scan(step, ts.zeros((2, 4)), ys, reverse=reverse, unroll=True)
    return ys.sum(), names


def hoisted(steps: int) -> tuple[ts.Tensor, dict[str, ts.Tensor]]:
    """A recurrent layer whose steps share what is computed once before them, and read a sequence that has a gradient."""
    names = {"W": leaf(4, 4), "U": leaf(4, 4), "b": leaf(4), "c": leaf(4), "xs": leaf(steps, 2, 4)}
    w, u, b, xs = names["W"].T, names["U"].T, names["b"] + names["c"], names["xs"] * 2

    def step(h: ts.Tensor, x: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h = (x @ w + h @ u + b).tanh()
        return h, h

    _, ys = ts.scan(step, ts.zeros((2, 4)), xs, unroll=True)
    return ys.sum(), names


def lstm(steps: int) -> tuple[ts.Tensor, ts.nn.Module]:
    """The loss of an LSTM over some steps, and the cell."""
    ts.manual_seed(0)
    cell = ts.nn.LSTMCell(3, 4)
    xs = ts.random.randn((steps, 2, 3))
    _, ys = ts.scan(lambda state, x: cell(x, state)[::-1], cell.initial_state(2), xs, unroll=True)
    return (ys * ys).mean(), cell


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_every_operation_is_a_box_and_every_use_an_arrow() -> None:
    x, y = leaf(2, 3), leaf(3)
    drawn = diagram(((x * y).tanh() * 0.5).sum(axis=0), names={"x": x, "y": y})
    assert [(box.kind, box.title, box.lines) for box in sorted(drawn.boxes, key=lambda box: box.title)] == [
        ("operation", "mul", ("2×3 float32",)),
        ("operation", "mul(·, 0.5)", ("2×3 float32",)),
        ("output", "sum", ("axis=-2", "3 float32")),
        ("operation", "tanh", ("2×3 float32",)),
        ("input", "x", ("2×3 float32",)),
        ("input", "y", ("3 float32",)),
    ]
    assert arrows(drawn) == {
        ("x", "mul", "data", 1),
        ("y", "mul", "data", 1),
        ("mul", "tanh", "data", 1),
        ("tanh", "mul(·, 0.5)", "data", 1),
        ("mul(·, 0.5)", "sum", "data", 1),
    }


def test_a_tensor_used_twice_by_one_operation_has_an_arrow_that_says_so() -> None:
    x = leaf(2)
    assert arrows(diagram(x * x, names={"x": x})) == {("x", "mul", "data", 2)}
    assert "×2" in draw(x * x).dot


def test_parameters_are_named_by_the_module_and_told_from_inputs() -> None:
    model = ts.nn.Sequential(ts.nn.Linear(3, 4), ts.nn.Linear(4, 2))
    x = leaf(5, 3)
    drawn = diagram(model(x), names=model)
    assert sorted(titles(drawn, "parameter")) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert titles(drawn, "input") == ["input"]


def test_names_come_from_a_dict_in_which_other_things_are_passed_over() -> None:
    w, x = ts.Parameter(np.ones((2, 2), "float32")), leaf(2, 2)
    hidden, number = x @ w, 3
    drawn = diagram(hidden.tanh(), names=locals())
    assert (titles(drawn, "parameter"), titles(drawn, "input")) == (["w"], ["x"])
    assert titles(drawn, "operation") == ["hidden = matmul"]
    assert number == 3


def test_without_names_a_leaf_shows_its_own_or_that_it_is_an_input() -> None:
    x, y, z = leaf(1), leaf(2), leaf(2)
    x.name = "bias"
    drawn = diagram(x + y + z)
    assert (titles(drawn, "parameter"), titles(drawn, "input")) == (["bias"], ["input", "input 2"])


def test_constants_are_boxes_if_the_tape_has_kept_them_and_words_if_not() -> None:
    x, mask = leaf(2, 3), ts.tensor(np.ones((2, 3), "float32"))
    drawn = diagram(x * mask * mask, names={"mask": mask})
    assert titles(drawn, "constant") == ["mask"]
    assert ("mask", "mul", "data", 1) in arrows(drawn)
    assert titles(diagram(x + 1), "output") == ["add(·, const)"]
    assert titles(diagram(1 - x), "output") == ["sub(const, ·)"]
    assert titles(diagram(x**2), "output") == ["power(·, 2)"]
    assert titles(diagram(ts.concatenate([x, mask, mask, mask])), "output") == ["concatenate"]


def test_metadata_reads_like_the_call() -> None:
    x = leaf(4, 6)
    assert diagram(x[1:3, ::2]).boxes[-1].lines == ("[1:3, ::2]", "2×3 float32")
    assert diagram(x[ts.tensor([0, 2])]).boxes[-1].lines == ("[array]", "2×6 float32")
    assert diagram(x.sum(axis=-1, keepdims=True)).boxes[-1].lines == ("axis=-1, keepdims=True", "4×1 float32")
    assert diagram(x.sum()).boxes[-1].lines == ("axis=(-2, -1)", "scalar float32")
    assert diagram(x.reshape(3, 8)).boxes[-1].lines == ("3×8 float32",)


def test_an_operation_with_several_results_and_objects_among_its_metadata_says_only_what_lasts() -> None:
    w = leaf(4, 4)
    _, ys = ts.scan(lambda h, x: ((x @ w + h).tanh(),) * 2, ts.zeros((2, 4)), ts.zeros((3, 2, 4)))
    picture = draw(ys.sum(), names={"w": w})
    assert "0x" not in picture.dot
    assert "None" not in picture.dot


def test_a_graph_can_be_drawn_after_backward() -> None:
    loss, cell = lstm(3)
    before = draw(loss, names=cell)
    loss.backward()
    after = draw(loss, names=cell)
    assert after.dot.count("cell") == before.dot.count("cell")
    assert after.dot.count("sigmoid") == before.dot.count("sigmoid") == 9
    assert "mul(const, ·)" in after.dot or "mul(·, const)" in after.dot
    assert ElementTree.fromstring(after.svg()).tag == f"{SVG}svg"


def test_several_tensors_share_a_picture() -> None:
    x = leaf(2)
    h = x.tanh()
    drawn = diagram(h, h.exp())
    assert titles(drawn, "output") == ["tanh", "exp"]
    assert len(draw([h, h.exp()]).dot.split(" -> ")) == 3


def test_a_leaf_alone_is_a_picture() -> None:
    x = leaf(2)
    assert titles(diagram(x, names={"x": x}), "input") == ["x"]


def test_what_has_no_record_is_refused() -> None:
    with pytest.raises(GraphError, match=r"nothing was recorded for this tensor of shape \(2,\).*requires_grad=True"):
        draw(ts.tensor([1.0, 2.0]))
    with pytest.raises(DTypeError, match="not a ndarray"):
        draw(np.ones(2))  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="not a int"):
        draw([leaf(2), 3])  # type: ignore[list-item]
    with pytest.raises(DTypeError, match="empty"):
        draw([])
    with pytest.raises(DTypeError, match="names is a list"):
        draw(leaf(2), names=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive, not 0"):
        draw(leaf(2), limit=0)


# --- time in columns --------------------------------------------------------------------------------------------------


def columns(drawn: Diagram) -> list[tuple[int, str | None]]:
    """The columns from left to right, each with the number of its loop; a gap has no title."""
    strips = Strips(drawn)
    loops = list(dict.fromkeys(strips.row.values()))
    return sorted(
        ((loops.index(loop), drawn.groups[column].title or None) for column, loop in strips.row.items()),
        key=lambda pair: pair[0],
    )


def column_of(drawn: Diagram, i: int) -> int | None:
    """Which column a box stands in, counted through all loops."""
    strips = Strips(drawn)
    column = strips.of_box[i]
    return None if column is None else list(strips.row).index(column)


def test_each_time_step_is_a_column_with_its_own_operations_and_parameters() -> None:
    loss, names = rnn(3)
    drawn = diagram(loss, names=names)
    assert columns(drawn) == [(0, "t = 0"), (0, "t = 1"), (0, "t = 2")]
    for s in range(3):
        inside = Counter(box.title for i, box in enumerate(drawn.boxes) if column_of(drawn, i) == s and box.kind != "constant")
        assert inside == Counter({"matmul": 2, "add": 1, "tanh": 1, "reshape": 1, "W0": 1, "U0": 1})
    outside = {box.title for i, box in enumerate(drawn.boxes) if column_of(drawn, i) is None}
    assert outside == {"concatenate", "sum"}
    carried = [
        (drawn.boxes[a.tail].title, column_of(drawn, a.tail), drawn.boxes[a.head].title, column_of(drawn, a.head))
        for a in drawn.arrows
        if a.kind == "carry"
    ]
    assert carried == [("tanh", 0, "matmul", 1), ("tanh", 1, "matmul", 2)]


def test_time_goes_from_left_to_right_also_in_reverse_and_layers_are_rows() -> None:
    loss, names = rnn(3, reverse=True)
    drawn = diagram(loss, names=names)
    assert [title for _, title in columns(drawn)] == ["t = 0", "t = 1", "t = 2"]
    backwards = {(column_of(drawn, a.tail), column_of(drawn, a.head)) for a in drawn.arrows if a.kind == "carry"}
    assert backwards == {(1, 0), (2, 1)}
    loss, names = rnn(2, layers=2)
    assert columns(diagram(loss, names=names)) == [(0, "t = 0"), (0, "t = 1"), (1, "t = 0"), (1, "t = 1")]


def test_scans_of_one_step_are_told_apart() -> None:
    loss, names = rnn(1, layers=2)
    assert columns(diagram(loss, names=names)) == [(0, "t = 0"), (1, "t = 0")]


def test_what_leads_from_step_to_step_outside_the_steps_stands_in_a_column() -> None:
    x = total = leaf(2)
    for t in range(3):
        with mode.scope("step", t):
            y = (total * 2).tanh()
        total = total + y
    drawn = diagram(total, names={"x": x})
    assert [(box.kind, column_of(drawn, i)) for i, box in enumerate(drawn.boxes) if box.title == "add"] == [
        ("operation", 0),
        ("operation", 1),
        ("output", None),
    ]


def test_of_nested_scans_the_outer_one_makes_the_columns() -> None:
    x = leaf(2)
    for t in range(2):
        with mode.scope("step", t):
            for k in range(3):
                with mode.scope("module", "Inner"), mode.scope("step", k):
                    x = x.tanh()
    drawn = diagram(x)
    assert columns(drawn) == [(0, "t = 0"), (0, "t = 1")]
    assert Counter(column_of(drawn, i) for i, box in enumerate(drawn.boxes) if box.title == "tanh") == {0: 3, 1: 3}


PROGRAMS = list(render._programs(pdf=False))


@pytest.fixture(params=PROGRAMS, ids=[Path(path).name for path in PROGRAMS])
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each Graphviz that is here, in turn."""
    path: str = request.param
    monkeypatch.setattr(render, "_programs", lambda pdf: [path])
    return path


def inside(point: tuple[float, float], box: Rectangle, margin: float = 1.5) -> bool:
    x, y = point
    return box.left + margin < x < box.right - margin and box.bottom + margin < y < box.top - margin


def samples(spline: Spline) -> list[tuple[float, float]]:
    points = []
    for k in range(0, len(spline.points) - 1, 3):
        p = np.array(spline.points[k : k + 4])
        for u in np.linspace(0, 1, 21):
            x, y = ((1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u * u * (1 - u), u**3) @ p
            points.append((float(x), float(y)))
    return points


LAYOUTS = [lambda: rnn(3), lambda: rnn(2, layers=2), lambda: rnn(3, reverse=True), lambda: lstm(3), lambda: hoisted(3)]


@pytest.mark.parametrize("build", LAYOUTS, ids=["rnn", "layers", "reverse", "lstm", "hoisted"])
def test_nothing_overlaps_and_lines_run_beside_boxes(program: str, build: Callable[[], tuple[ts.Tensor, object]]) -> None:
    loss, names = build()
    drawn = diagram(loss, names=names)
    check_layout(drawn)


def check_layout(drawn: Diagram, lines: bool = True) -> None:
    """Boxes and titles do not overlap, they stand in their frames, and arrows lead from box to box beside the others."""
    writer, strips = Writer(drawn), Strips(drawn)
    placed = place(drawn, writer, Layout(60.0))
    boxes = [placed.boxes[i] for i in range(len(drawn.boxes))]
    titles = [title_box(drawn.groups[g].title, *placed.titles[g]) for g in placed.titles]
    legend = [] if placed.legend is None else [placed.legend]
    everything = [*boxes, *titles, *legend]
    for i, box in enumerate(everything):
        assert not [
            other
            for other in everything[i + 1 :]
            if min(box.right, other.right) > max(box.left, other.left) + 0.5
            and min(box.top, other.top) > max(box.bottom, other.bottom) + 0.5
        ], drawn.boxes[min(i, len(boxes) - 1)]
    for g, title in zip(placed.titles, titles, strict=True):
        assert not any(line.touches(title) for line in placed.arrows.values()), drawn.groups[g].title
    for i, box in enumerate(boxes):
        around, g = set(), drawn.boxes[i].group
        while g is not None:
            around.add(g)
            g = drawn.groups[g].parent
        for g, frame in placed.groups.items():
            assert inside((box.x, box.y), frame, 0.0) == (g in around)
    for loop in set(strips.row.values()):
        frames = [placed.groups[column] for column, row in strips.row.items() if row == loop]
        assert all(left.right < right.left for left, right in pairwise(frames))
        assert len({round(frame.top, 3) for frame in frames}) == 1
    for a, arrow in enumerate(drawn.arrows):
        start, end = samples(placed.arrows[a])[0], placed.arrows[a].tip
        assert end is not None
        assert drawn.boxes[arrow.tail].kind in ("input", "carry") or not inside(start, boxes[arrow.tail])  # those are ellipses
        assert inside(start, boxes[arrow.tail], -1.5)
        assert inside(end, boxes[arrow.head], -3.5)  # the tip of a wide arrow
        if lines and strips.of_box[arrow.tail] != strips.of_box[arrow.head]:  # a line of ours
            for i, box in enumerate(boxes):
                assert not any(inside(point, box) for point in samples(placed.arrows[a])), (a, drawn.boxes[i])


def test_a_line_touches_a_box_only_if_it_runs_through_it() -> None:
    line = Spline(((0.0, 0.0), (0.0, 100.0), (100.0, 100.0), (100.0, 0.0)))  # at its highest at 75
    for x, y, expected in ((50, 75, True), (50, 82, False), (50, 68, False), (0, 0, True), (100, 0, True), (16, 48, True)):
        assert line.touches(Rectangle(x - 5, y - 5, x + 5, y + 5)) == expected, (x, y)
    assert not line.moved(0.0, 20.0).touches(Rectangle(45.0, 70.0, 55.0, 80.0))


def title_box(title: str, x: float, y: float) -> Rectangle:
    width = 4.5 * len(title)  # of 11 points, as such words are on average
    return Rectangle(x - width / 2, y - 5, x + width / 2, y + 5)


def test_the_columns_of_the_svg_are_in_the_order_of_time(program: str) -> None:
    loss, names = rnn(5)
    root = ElementTree.fromstring(draw(loss, names=names).svg())
    left = {}
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "cluster":
            shape = group.find(f"{SVG}path")
            assert shape is not None
            title = (group.findtext(f"{SVG}title") or "").partition(",")[0]
            left[title] = min(float(x) for x in re.findall(r"([\d.]+),", shape.get("d", "")))
    assert left.pop("loop × 5") is not None
    assert sorted(left, key=lambda title: left[title]) == [f"t = {t}" for t in range(5)]


def test_texts_fit_into_their_boxes_in_any_font(program: str) -> None:
    loss, names = rnn(2)
    root = ElementTree.fromstring(draw(loss, names=names).svg())
    texts = 0
    for group in root.iter(f"{SVG}g"):
        if group.get("class") == "node" and group.findtext(f"{SVG}title") != "legend":
            shape = group.find(f"{SVG}path")
            shape = group.find(f"{SVG}polygon") if shape is None else shape
            assert shape is not None
            xs = [float(x) for x in re.findall(r"(-?[\d.]+),", shape.get("d") or shape.get("points") or "")]
            heights = [float(text.get("y", "nan")) for text in group.iter(f"{SVG}text")]
            assert all(low - high >= (10.9 if k == 0 else 9.9) for k, (high, low) in enumerate(pairwise(heights)))
            for text in group.iter(f"{SVG}text"):
                texts += 1
                assert text.get("text-anchor") == "middle"
                assert float(text.get("x", "nan")) == pytest.approx((min(xs) + max(xs)) / 2, abs=0.1)
                assert 0 < float(text.get("textLength", "nan")) <= max(xs) - min(xs) - 8
    assert texts > 30


# --- size -------------------------------------------------------------------------------------------------------------


def test_long_scans_show_their_first_steps_a_gap_and_the_last() -> None:
    loss, names = rnn(1000)
    drawn = diagram(loss, names=names, limit=60)
    shown = [title for _, title in columns(drawn)]
    assert shown == ["t = 0", "t = 1", "t = 2", None, "t = 999"]
    (gap,) = titles(drawn, "gap")
    assert gap == f"… {1000 - len(shown) + 1} more steps …"
    assert len(drawn.boxes) == 36
    kinds = {(drawn.boxes[a.tail].title, drawn.boxes[a.head].title, a.kind, a.count) for a in drawn.arrows}
    assert {("tanh", gap, "carry", 1), (gap, "matmul", "carry", 1), (gap, "concatenate", "data", 1)} <= kinds
    assert not any(drawn.boxes[a.head].title == gap and a.kind == "parameter" for a in drawn.arrows)


def test_a_long_scan_in_reverse_has_its_gap_in_the_middle() -> None:
    loss, names = rnn(100, reverse=True)
    drawn = diagram(loss, names=names, steps=3)
    assert columns(drawn) == [(0, "t = 0"), (0, None), (0, "t = 99")]
    carried = {(column_of(drawn, a.tail), column_of(drawn, a.head)) for a in drawn.arrows if a.kind == "carry"}
    assert carried == {(2, 1), (1, 0)}


def test_what_each_step_adds_outside_is_left_out_with_it() -> None:
    w, h, total = leaf(4, 4), ts.zeros((2, 4)), 0
    for t in range(200):
        with mode.scope("step", t):
            h = ((h + 1) @ w).tanh()
        total = total + (h * h).sum()
    drawn = diagram(total, names={"w": w}, limit=60)
    assert len(drawn.boxes) <= 65
    assert [title for _, title in columns(drawn)][-2:] == [None, "t = 199"]
    assert not [title for title in titles(drawn, "gap") if "not drawn" in title]


def test_without_steps_what_is_near_the_output_stays() -> None:
    x = y = leaf(2)
    functions = [ts.tanh, ts.sin, ts.cos]
    for i in np.random.default_rng(0).integers(3, size=500):  # no steps that are alike
        y = functions[i](y)
    picture = draw(y.tanh().exp(), names={"x": x}, limit=50)
    drawn = picture._seen
    assert len(drawn.boxes) == 50
    assert titles(drawn, "gap") == ["… 453 operations not drawn …"]
    assert picture.notes == ("453 operations far from the output are not drawn.",)
    assert titles(drawn, "output") == ["exp"]
    assert titles(drawn, "input") == []
    assert sum(tail == "… 453 operations not drawn …" for tail, *_ in arrows(drawn)) == 1


def test_below_the_limit_all_is_drawn() -> None:
    loss, names = rnn(30)
    drawn = diagram(loss, names=names, limit=1000, steps=30)
    assert len(columns(drawn)) == 30
    assert titles(drawn, "gap") == []
    assert sum(box.title == "tanh" for box in drawn.boxes) == 30


def test_a_doubled_diamond_is_drawn_once() -> None:
    x = y = leaf(1)
    for _ in range(40):
        y = y + y
    drawn = diagram(y, names={"x": x})
    assert len(drawn.boxes) == 41
    assert all(arrow.count == 2 for arrow in drawn.arrows)


def test_a_parameter_used_far_away_is_drawn_again_there() -> None:
    w, y = ts.Parameter([2.0]), leaf(1)
    for _ in range(20):
        y = (y * w).tanh().exp()
    drawn = diagram(y, names={"w": w})
    assert len(titles(drawn, "parameter")) == 7  # once for what lies within eight ranks
    assert sum(a.kind == "parameter" for a in drawn.arrows) == 20


def test_an_operation_used_far_away_in_many_places_gets_references_with_its_number() -> None:
    x = leaf(1)
    hub = y = x.sin()
    for _ in range(60):
        y = (y * hub).tanh()
    drawn = diagram(y)
    assert titles(drawn, "operation").count("sin #1") == 1
    assert set(titles(drawn, "reference")) == {"sin #1"}
    uses = sum(a.count for a in drawn.arrows if drawn.boxes[a.tail].title == "sin #1")
    assert uses == 61  # the first product uses it twice
    assert "reference" not in {box.kind for box in diagram(hub.tanh() * hub).boxes}


# --- the same graph, the same bytes -----------------------------------------------------------------------------------

DETERMINISM = """
import sys
sys.path.insert(0, {tests!r})
from test_draw import draw, lstm
_ = [object() for _ in range({ballast})]
loss, names = lstm(3)
picture = draw(loss, names=names)
print(picture.dot)
print(picture.svg())
"""


def test_the_same_graph_gives_the_same_bytes() -> None:
    outputs = [
        subprocess.run(
            [sys.executable, "-c", DETERMINISM.format(tests=str(ROOT / "tests"), ballast=ballast)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed, ballast in (("1", 0), ("2", 1000))
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) > 10_000


# --- any name ---------------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "</title></g><script>x</script>",
    "quote \" and ' and ` and \\",
    "ends in a backslash \\",
    "\\N \\G \\l \\n",
    "two\nlines\tand\r\nmore",
    "&lt;b&gt; &amp; &#60;",
    "]]> <!-- --> <![CDATA[",
    "<b>bold</b><br/>",
    "zero \x00 bell \x07 \x1b[31m",
    "\ud800 surrogate \uffff",
    "\u202egnp.exe",
    "n0 -> n1; } digraph {",
    "日本語 é ∂ 🙂",
    "javascript:alert(1)",
    "{a|b}",
    "",
    "   ",
    "x" * 100_000,
]


def node_texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert not [element for element in root.iter() if element.tag.rpartition("}")[2].lower() in ("script", "a", "image")]
    assert not [name for element in root.iter() for name in element.attrib if "href" in name or name.startswith("on")]
    return [text.text or "" for text in root.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name)[:20] for name in HOSTILE])
def test_a_hostile_name_is_shown_and_does_nothing(program: str, name: str) -> None:
    x = leaf(2)
    picture = draw(x.tanh(), names={name: x})
    expected = shorten(name) or "input"
    # The XML has no-break spaces where Graphviz wants to keep several.
    assert expected in [text.replace("\xa0", " ") for text in node_texts(picture.svg())]
    assert picture.png().startswith(b"\x89PNG")
    assert len(picture.dot) < 3000


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
@example("\x85 \u2028")
def test_any_name_is_shown(name: str) -> None:
    x = leaf(2)
    shown = [text.replace("\xa0", " ") for text in node_texts(draw(x.tanh(), names={name: x}).svg())]
    assert (shorten(name) or "input") in shown


def test_shortening_keeps_both_ends() -> None:
    assert shorten("a" * 100 + "tail")[-4:] == "tail"
    assert shorten("head" + "a" * 100)[:4] == "head"
    assert {len(shorten("ab" * n)) for n in range(20, 60)} == {40}
    assert len(shorten("x" * 40)) == 40


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def picture() -> Picture:
    return draw(leaf(2).tanh())


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.svg", b"<svg"),
        ("a.PNG", b"\x89PNG"),
        ("a.dot", b"digraph"),
        ("a.gv", b"digraph"),
        ("a.html", b"<!doctype html>"),
        ("a.txt", b"input input: float32[2]\na: float32[2] = tanh(input)  # [0.7616, 0.7616]\n-> a\n"),
    ],
)
def test_the_ending_chooses_the_format(picture: Picture, tmp_path: Path, name: str, start: bytes) -> None:
    path = picture.save(tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [name]


def test_a_file_is_as_readable_as_any_other(picture: Picture, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert picture.save(str(tmp_path / "a.svg")).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["a.jpg", "a", ".svg", "a.svg.md"])
def test_an_unknown_ending_is_refused(picture: Picture, tmp_path: Path, name: str) -> None:
    with pytest.raises(DrawError, match=re.escape(f"cannot save a picture as {name!r}; end its name in .svg, .png")):
        picture.save(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_path_that_cannot_be_written_is_one_sentence_and_leaves_nothing(picture: Picture, tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in ("missing/a.svg", "folder.svg", "file/a.svg", "x" * 300 + ".svg", "zero\0.svg"):
        with pytest.raises(DrawError, match="cannot write"):
            picture.save(tmp_path / path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.svg"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failure_leaves_the_earlier_file(picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture.save(tmp_path / "a.svg")
    before = (tmp_path / "a.svg").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DrawError, match="No space left on device"):
        draw(leaf(3).exp()).save(tmp_path / "a.svg")
    assert os.listdir(tmp_path) == ["a.svg"]
    assert (tmp_path / "a.svg").read_bytes() == before


def test_jupyter_shows_the_svg(picture: Picture) -> None:
    shown = picture._repr_mimebundle_()
    assert shown["image/svg+xml"] == picture.svg()
    assert shown["text/plain"] == "<picture of 2 boxes and 1 arrows>"


# --- Graphviz itself --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_graphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    monkeypatch.setattr(render.importlib.metadata, "files", missing)


@pytest.mark.usefixtures("no_graphviz")
def test_without_graphviz_the_text_is_written_and_the_remedy_named(picture: Picture, tmp_path: Path) -> None:
    with pytest.raises(DrawError, match=r"pip install tinyseq\[draw\].*a\.svg\.dot") as error:
        picture.save(tmp_path / "a.svg")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["a.svg.dot"]
    assert (tmp_path / "a.svg.dot").read_text("utf-8") == picture.dot
    picture.save(tmp_path / "b.dot")
    assert list(picture._repr_mimebundle_()) == ["text/plain"]
    assert "pip install tinyseq[draw]" in picture._repr_mimebundle_()["text/plain"]


def test_pdf_needs_dot(picture: Picture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if render.shutil.which("dot"):
        assert picture.save(tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.setattr(render.shutil, "which", lambda name: None)
    with pytest.raises(DrawError, match=r"PDF needs Graphviz's own program dot"):
        picture.save(tmp_path / "b.pdf")
    assert not (tmp_path / "b.pdf").exists()


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


posix = pytest.mark.skipif(sys.platform == "win32", reason="a script is no program there")


@posix
def test_a_layout_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = script(
        tmp_path / "dot", f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    monkeypatch.setattr(render, "_programs", lambda pdf: [slow])
    loss, names = rnn(2)
    start = time.monotonic()
    with pytest.raises(DrawError, match=r"not laid this picture out in 0\.5 seconds.*limit=.*seconds=.*\.dot"):
        draw(loss, names=names, seconds=0.5).save(tmp_path / "a.svg")
    assert time.monotonic() - start < 10
    assert not (tmp_path / "a.svg").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@posix
def test_a_program_that_fails_leaves_it_to_the_next(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = script(tmp_path / "broken", "import sys; print('no such plugin', file=sys.stderr); sys.exit(1)")
    monkeypatch.setattr(render, "_programs", lambda pdf: [broken, str(tmp_path / "absent"), *PROGRAMS])
    assert picture.svg().startswith("<svg")
    monkeypatch.setattr(render, "_programs", lambda pdf: [broken, str(tmp_path / "absent")])
    with pytest.raises(DrawError, match=r"broken: no such plugin.*\.dot"):
        picture.svg()


def test_importing_tinyseq_imports_no_drawing_library() -> None:
    code = "import sys, tinyseq; print([name for name in ('graphviz', 'matplotlib', 'xml.etree') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_draw_is_a_function_of_the_package_and_a_package() -> None:
    assert ts.draw is draw
    assert sys.modules["tinyseq.draw"].Picture is Picture
    assert isinstance(ts.draw(leaf(1).tanh()), Picture)


def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "pictures" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NUMBER = re.compile(r"(?<![\w×])-?\d[\d.]*(?:e[-+]?\d+)?(?![\w×])")  # by itself: no shape and no name


def words(path: Path) -> list[str]:
    """The texts of an SVG but for its numbers, whose last digits may differ from machine to machine."""
    return sorted(NUMBER.sub("0", "".join(text.itertext())) for text in ElementTree.parse(path).iter(f"{SVG}text"))


def test_the_gallery_is_made_by_its_script(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = gallery().make(tmp_path)
    page = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    for path in paths:
        assert path.stat().st_size > 5000
        assert (ROOT / "docs" / "pictures" / path.name).exists()
        if path.suffix == ".svg":
            assert words(path) == words(ROOT / "docs" / "pictures" / path.name), "run docs/pictures/make.py"
            assert f"pictures/{path.name}" in page
    assert "pictures/vanishing.png" in page


@pytest.mark.parametrize("name", [picture.__name__ for picture in gallery().PICTURES])
def test_in_the_gallery_nothing_overlaps(name: str) -> None:
    check_layout(getattr(gallery(), name)()._seen, lines=False)


def test_gradients_vanish_in_an_rnn_and_less_in_a_gru_and_an_lstm() -> None:
    pytest.importorskip("matplotlib")
    (image,) = gallery().vanishing(60).axes[0].images
    rnn, gru, lstm = np.ma.filled(image.get_array(), 0.0)
    assert rnn[0] < gru[0] < lstm[0]
    assert rnn[0] < 1e-12 * rnn[-1]
    assert lstm[0] > 1e-9 * lstm[-1]


def test_the_examples_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "drawing.md").read_text("utf-8"), re.DOTALL)
    assert len(examples) >= 5
    for code in examples:
        exec(code, names)
    assert {"graph.svg", "loop.svg"} <= set(os.listdir())


def test_a_fused_function_is_one_box() -> None:
    """What a backend's kernel keeps for its backward pass is no input of the picture."""
    pytest.importorskip("numba")
    with ts.use_backend("numba"):
        x = ts.tensor(np.ones((4, 3), np.float32), requires_grad=True)
        text = ts.draw(ts.functions.cross_entropy(x, ts.tensor([0, 1, 2, 0]))).dot
    assert text.count("softmax_cross_entropy") == 1


# --- levels -----------------------------------------------------------------------------------------------------------


def mlp() -> ts.nn.Module:
    return ts.nn.Sequential(ts.nn.Linear(3, 4), ts.tanh, ts.nn.Linear(4, 2))


def frames(drawn: Diagram) -> list[str]:
    return [group.title for group in drawn.groups]


def test_modules_are_frames_boxes_or_nothing() -> None:
    model = mlp()
    both = draw(model, ts.zeros((5, 3)), names=model)._seen
    assert frames(both) == ["Sequential", "0: Linear", "2: Linear"]
    where = {box.title: both.groups[box.group].title for box in both.boxes if box.group is not None}
    assert where == {
        "0.weight": "0: Linear",
        "0.bias": "0: Linear",
        "permute": "2: Linear",
        "matmul": "2: Linear",
        "add": "2: Linear",
        "tanh": "Sequential",
        "2.weight": "2: Linear",
        "2.bias": "2: Linear",
    }
    modules = draw(model, ts.zeros((5, 3)), names=model, level="modules")._seen
    assert [(box.kind, box.title, box.lines) for box in modules.boxes] == [
        ("input", "x", ("5×3 float32",)),
        ("module", "0: Linear", ("5×4 float32", "16 parameters")),
        ("operation", "tanh", ("5×4 float32",)),
        ("module", "2: Linear", ("5×2 float32", "10 parameters")),
    ]
    assert arrows(modules) == {
        ("x", "0: Linear", "data", 1),
        ("0: Linear", "tanh", "data", 1),
        ("tanh", "2: Linear", "data", 1),
    }
    operations = draw(model, ts.zeros((5, 3)), names=model, level="operations")._seen
    assert frames(operations) == []
    assert sorted(box.title for box in operations.boxes) == sorted(box.title for box in both.boxes)
    assert arrows(operations) == arrows(both)


def test_what_is_closed_is_still_in_the_diagram() -> None:
    model = mlp()
    picture = draw(model, ts.zeros((5, 3)), names=model, level="modules")
    assert [(group.title, group.open) for group in picture.diagram.groups] == [
        ("Sequential", True),
        ("0: Linear", False),
        ("2: Linear", False),
    ]
    assert sum(box.title == "matmul" for box in picture.diagram.boxes) == 2
    assert len({box.id for box in picture.diagram.boxes}) == len(picture.diagram.boxes)
    linear = picture.diagram.groups[1].facts
    assert (linear.name, linear.shape, linear.dtype, linear.parameters, linear.operations) == ("0", (5, 4), "float32", 16, 3)
    same = draw(model, ts.zeros((5, 3)), names=model)
    assert [box.id for box in same.diagram.boxes] == [box.id for box in picture.diagram.boxes]


def test_closing_a_group_joins_arrows_and_hides_those_inside() -> None:
    boxes = (
        Box("a", "input", "a"),
        Box("b", "operation", "b", group=0),
        Box("c", "operation", "c", group=1),
        Box("d", "output", "d"),
    )
    groups = (Group("g", "module", "G", open=False, facts=Facts(operations=2)), Group("h", "module", "H", parent=0))
    lines = (
        Arrow(0, 1, "data", (0,)),
        Arrow(0, 2, "data", (1,)),
        Arrow(1, 2, "data", (0,)),
        Arrow(2, 3, "data", (0,), "", 3.0),
        Arrow(1, 3, "data", (1,), "", 4.0),
    )
    seen = visible(Diagram(boxes, lines, groups, ("note",), (3,)))
    assert [(box.id, box.kind, box.group) for box in seen.boxes] == [
        ("a", "input", None),
        ("g", "module", None),
        ("d", "output", None),
    ]
    assert [(a.tail, a.head, a.slots, a.gradient) for a in seen.arrows] == [(0, 1, (0,), None), (1, 2, (0, 1), 5.0)]
    assert (seen.groups, seen.notes, seen.outputs) == ((), ("note",), (2,))


# --- what is traced ---------------------------------------------------------------------------------------------------


def test_a_function_is_traced_and_nothing_computed() -> None:
    w = ts.Parameter(np.ones((3, 4), "float32"))
    mask = ts.tensor([[1.0, 0.0, 1.0, 1.0]])

    def score(x: ts.Tensor, sizes: dict[str, ts.Tensor]) -> dict[str, ts.Tensor]:
        return {"y": (x @ w * mask).tanh() + sizes["b"]}

    class Counter_:
        count = 0

        def applied(self, *_: object) -> None:
            self.count += 1

        def pulled(self, *_: object) -> None: ...

    watch = Counter_()
    with mode.changed(observer=watch):
        picture = draw(score, ts.zeros((2, 3)), {"b": ts.zeros((4,), requires_grad=True)}, names={"w": w, "mask": mask})
    assert watch.count == 0
    assert picture.text() == (
        "parameter w: float32[3,4]\n"
        "input x: float32[2,3]\n"
        "input sizes.b: float32[4]\n"
        "a: float32[2,4] = matmul(x, w)\n"
        "constant mask: float32[1,4] = [[1, 0, 1, 1]]\n"
        "b: float32[2,4] = mul(a, mask)\n"
        "c: float32[2,4] = tanh(b)\n"
        "d: float32[2,4] = add(c, sizes.b)\n"
        "-> d"
    )


def test_what_cannot_be_traced_is_refused() -> None:
    with pytest.raises(DTypeError, match="a function that returned a str; it must return tensors"):
        draw(lambda x: "no tensor", ts.zeros((2,)))
    with pytest.raises(GraphError, match="no numbers yet"):
        draw(lambda x: x if float(x.sum()) > 0 else -x, ts.zeros((2,)))
    with pytest.raises(DTypeError, match="example inputs only with a function or a module, not with a Tensor"):
        draw(leaf(2), leaf(2))


def test_a_graph_is_drawn() -> None:
    from tinyseq.compiler.trace import trace

    w = ts.Parameter([[1.0], [2.0]])
    w.name = "w"
    graph = trace(lambda x: [(x @ w).tanh() * 2], [ts.zeros((3, 2))], ["x"]).graph
    assert draw(graph).text() == (
        "input x: float32[3,2]\n"
        "parameter w: float32[2,1]\n"
        "a: float32[3,1] = matmul(x, w)\n"
        "b: float32[3,1] = tanh(a)\n"
        "c: float32[3,1] = mul(b, 2)\n"
        "-> c"
    )


# --- loops, folded ----------------------------------------------------------------------------------------------------


def plain(steps: int, unroll: bool, reverse: bool = False) -> tuple[ts.Tensor, dict[str, ts.Tensor]]:
    """A scan with an output layer in its step, and what it is computed from."""
    names = {"W": leaf(3, 4), "U": leaf(4, 4), "V": leaf(4, 2), "xs": leaf(steps, 2, 3), "h0": leaf(2, 4)}

    def step(h: ts.Tensor, x: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h = (x @ names["W"] + h @ names["U"]).tanh()
        return h, h @ names["V"]

    _, ys = ts.scan(step, names["h0"], names["xs"], unroll=unroll, reverse=reverse)
    return ys.sum(), names


def group_of(drawn: Diagram, i: int) -> str | None:
    group = drawn.boxes[i].group
    return None if group is None else drawn.groups[group].title


def round_trips(drawn: Diagram) -> list[tuple[str, str]]:
    return [(drawn.boxes[a.tail].title, drawn.boxes[a.head].title) for a in drawn.arrows if a.kind == "carry"]


def test_a_compiled_scan_is_a_loop_with_what_runs_before_and_after_outside() -> None:
    loss, names = plain(7, unroll=False)
    drawn = diagram(loss, names=names)
    where = {
        (box.title, group_of(drawn, i)) for i, box in enumerate(drawn.boxes) if box.kind in ("operation", "carry", "output")
    }
    assert where == {
        ("matmul", "before the loop, for all t at once"),
        ("carry", "loop × 7"),
        ("matmul", "loop × 7"),
        ("add", "loop × 7"),
        ("tanh", "loop × 7"),
        ("matmul", "after the loop, for all t at once"),
        ("sum", None),
    }
    assert round_trips(drawn) == [("tanh", "carry")]
    assert ("h0", "carry", "data", 1) in arrows(drawn)
    shapes = {box.lines[-1] for i, box in enumerate(drawn.boxes) if (group_of(drawn, i) or "").startswith(("before", "after"))}
    assert {"7×2×4 float32", "7×2×2 float32"} <= shapes
    (loop,) = (group for group in drawn.groups if group.kind == "loop")
    assert (loop.facts.steps, loop.facts.operations) == (7, 21)


def test_an_unrolled_scan_folds_into_the_loop_that_was_written() -> None:
    loss, names = plain(7, unroll=True)
    text = draw(loss, names=names, time="folded", level="operations", values=0).text()
    lines = {line.strip() for line in text.splitlines()}
    assert "loop × 7 {" in lines
    assert any(re.fullmatch(r"\w+: float32\[2,3\] = xs\[t\]", line) for line in lines)
    assert "carry carry: float32[2,4] = h0" in lines
    assert sum("matmul" in line for line in lines) == 3
    drawn = diagram(loss, names=names, time="folded")
    assert round_trips(drawn) == [("tanh", "carry")]
    assert [box.title for i, box in enumerate(drawn.boxes) if group_of(drawn, i) is None and box.kind != "input"] == [
        "reshape",
        "concatenate",
        "sum",
    ]


def test_nested_loops_fold_into_nested_loops() -> None:
    x = leaf(2)
    y = x
    for t in range(4):
        with mode.scope("step", t):
            for k in range(3):
                with mode.scope("step", k):
                    y = y.tanh()
            y = y.exp()
    drawn = diagram(y * 2, names={"x": x}, time="folded")
    assert [(g.title, g.parent) for g in drawn.groups] == [("loop × 4", None), ("loop × 3", 0)]
    assert Counter(box.title for box in drawn.boxes if box.kind == "operation") == {"tanh": 1, "exp": 1}
    assert sorted(round_trips(drawn)) == [("exp", "carry"), ("tanh", "carry")]


def test_a_loop_written_in_python_is_recognised() -> None:
    w, u, h, xs = leaf(3, 4), leaf(4, 4), leaf(2, 4), leaf(20, 2, 3)
    state, total = h, ts.tensor(0.0)
    for t in range(20):
        state = (xs[t] @ w + state @ u).tanh()
        total = total + (state * state).sum()
    names = {"w": w, "u": u, "h": h, "xs": xs}
    drawn = diagram(total * 2, names=names, time="folded")
    (loop,) = drawn.groups
    assert loop.facts.steps in (19, 20)
    assert len(drawn.boxes) < 25
    assert {"carry 0", "carry 1"} == set(titles(drawn, "carry"))
    assert Counter(box.title for box in drawn.boxes if box.group == 0)["matmul"] == 2
    unrolled = diagram(total * 2, names=names, time="unrolled", backward=False)
    assert None in [title for _, title in columns(unrolled)]
    assert len(columns(unrolled)) == 5
    assert columns(diagram(total * 2, names=names, limit=1000)) == []  # as it was recorded


def test_what_repeats_side_by_side_is_no_loop() -> None:
    x = leaf(8)
    parts = [x[k : k + 2].tanh() for k in range(0, 8, 2)]
    assert diagram(ts.concatenate(parts), time="folded").groups == ()


def test_a_program_shows_both_ways() -> None:
    from tinyseq.tape import Node, ancestors

    loss, _ = plain(7, unroll=False)
    nodes = [place for place in ancestors([loss.node]) if isinstance(place, Node)]  # type: ignore[list-item]
    (scan,) = (node for node in nodes if node.primitive.name == "scan")
    picture = draw(scan.params["runner"].program)
    drawn = picture._seen
    assert Counter(frames(drawn)) == Counter(
        {
            "before the loop, for all t at once": 2,
            "loop, t = 0 … T−1": 1,
            "after the loop, for all t at once": 2,
            "once": 1,
            "backward loop, t = T−1 … 0": 1,
            "summed over all t": 1,
        }
    )
    assert {"∂ xs", "∂ initial carry", "∂ ys"} <= set(titles(drawn, "gradient"))
    assert "T×2×2 float32" in {line for box in drawn.boxes for line in box.lines}
    references = set(titles(drawn, "reference"))
    assert references
    assert references <= {box.title for box in drawn.boxes if box.kind != "reference"}
    assert "backward" not in {box.kind for box in draw(scan.params["runner"].program, backward=False)._seen.boxes}


def test_a_compiled_scan_can_be_drawn_after_backward() -> None:
    loss, names = plain(7, unroll=False)
    before = diagram(loss, names=names)
    loss.backward()
    after = diagram(loss, names=names)
    assert [box.title for box in after.boxes] == [box.title for box in before.boxes]
    layer = ts.nn.LSTM(3, 4)
    loss = layer(ts.random.randn((5, 2, 3)))[0].sum()
    loss.backward()
    assert "LSTM {" in draw(loss, names=layer).text()


# --- steps in columns, and the way back -------------------------------------------------------------------------------


def test_shown_steps() -> None:
    assert shown_steps(3, 5) == [0, 1, 2]
    assert shown_steps(100, 5) == [0, 1, 2, None, 99]
    assert shown_steps(100, 3) == [0, None, 99]


@pytest.mark.parametrize("unroll", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_unrolled_forward_is_above_and_backward_below_walking_back(unroll: bool, reverse: bool) -> None:
    loss, names = plain(9, unroll=unroll, reverse=reverse)
    drawn = diagram(loss, names=names, time="unrolled")
    loops = [g for g, group in enumerate(drawn.groups) if group.kind == "loop"]
    assert [drawn.groups[g].backward for g in loops] == [False, True]
    shown = ["t = 0", "t = 1", "t = 2", "", "t = 8"]
    for loop in loops:
        assert [group.title for group in drawn.groups if group.parent == loop] == shown
    strips = Strips(drawn)
    forward, backward = set(), set()
    for arrow in drawn.arrows:
        ends = [strips.of_box[i] for i in (arrow.tail, arrow.head)]
        if arrow.kind == "carry" and None not in ends:
            tail, head = (shown.index(drawn.groups[column].title) for column in ends)  # type: ignore[index]
            (backward if drawn.groups[ends[0]].backward else forward).add((tail, head))  # type: ignore[index]
    rightwards = {(k, k + 1) for k in range(4)}
    leftwards = {(k + 1, k) for k in range(4)}
    assert (forward, backward) == ((leftwards, rightwards) if reverse else (rightwards, leftwards))
    placed = place(drawn, Writer(drawn), Layout(60.0))
    above, below = (placed.groups[g] for g in loops)
    assert above.bottom > below.top
    columns_ = [[placed.groups[g] for g, group in enumerate(drawn.groups) if group.parent == loop] for loop in loops]
    for one, other in zip(*columns_, strict=True):
        assert one.x == pytest.approx(other.x, abs=3.0)  # step below step
    assert {"∂ W", "∂ U", "∂ V"} <= set(titles(drawn, "gradient"))


def test_the_backward_pass_mirrors_the_tape() -> None:
    x, y, k = leaf(2, 3), leaf(3), ts.tensor([1, 2])
    loss = ((x * y).tanh()[k * 0] * 0.5).sum()
    drawn = diagram(loss, names={"x": x, "y": y}, backward=True)
    back = {(tail, head) for tail, head, kind, _ in arrows(drawn) if kind == "backward"}
    assert back == {
        ("sum", "∂ output"),
        ("∂ output", "∂ sum"),
        ("∂ sum", "∂ mul"),
        ("∂ mul", "∂ getitem"),
        ("∂ getitem", "∂ tanh"),
        ("∂ tanh", "∂ mul"),
        ("∂ mul", "∂ x"),
        ("∂ mul", "∂ y"),
    }
    assert titles(drawn, "gradient") == ["∂ output", "∂ y", "∂ x"]


NEW_LAYOUTS = [
    lambda: diagram(*plain(7, False)[:1]),
    lambda: diagram(*plain(7, True)[:1], time="folded"),
    lambda: diagram(*plain(7, False)[:1], time="unrolled"),
    lambda: diagram(*plain(7, True)[:1], time="unrolled"),
    lambda: diagram(*plain(7, False)[:1], backward=True),
    lambda: draw(lstm(6)[0], names=lstm(6)[1], level="modules", time="unrolled")._seen,
    lambda: draw(lstm(6)[0], names=lstm(6)[1], time="folded", gradients={"h": np.logspace(-6, 0, 6)})._seen,
]


@pytest.mark.parametrize("build", NEW_LAYOUTS, ids=["loop", "folded", "columns", "tape", "back", "modules", "flow"])
def test_nothing_overlaps_in_loops(build: Callable[[], Diagram]) -> None:
    check_layout(build(), lines=False)


# --- facts ------------------------------------------------------------------------------------------------------------


def test_small_values_are_shown_where_they_are_at_hand() -> None:
    a, b = ts.tensor(2.0, requires_grad=True), ts.tensor([1.0, -0.5], requires_grad=True)
    y = (a * b).tanh()
    lines = {box.title: box.lines[-1] for box in draw(y, names=locals())._seen.boxes}
    assert lines == {"a": "= 2", "b": "= [1, -0.5]", "mul": "2 float32", "y = tanh": "= [0.964, -0.7616]"}
    assert all("=" not in line for box in draw(y, names=locals(), values=0)._seen.boxes for line in box.lines)
    assert all("=" not in line for box in draw(y, names=locals(), values=1)._seen.boxes[1:] for line in box.lines)


def test_kept_bytes_are_counted_once() -> None:
    x = leaf(10, 10)
    y = (x * 2).tanh()
    z = (y * y).sum()  # tanh keeps its output, mul its inputs, which are the same array
    (kept,) = {box.facts.kept for box in draw(z)._seen.boxes if box.title == "tanh"}
    assert kept == 400
    model = ts.nn.Sequential(ts.nn.Linear(10, 10), ts.tanh)
    drawn = draw(model(x).sum(), names=model, level="modules", show=["kept"])._seen
    (linear,) = (box for box in drawn.boxes if box.kind == "module")
    assert linear.lines == ("110 parameters",)  # it keeps x and its weight, which are there anyway
    (tanh,) = (box for box in drawn.boxes if box.title == "tanh")
    assert tanh.lines == ("keeps 400 B",)


@pytest.mark.parametrize("level", ["both", "modules"])
def test_a_compiled_loop_keeps_its_states(level: Any) -> None:
    loss, names = plain(7, unroll=False)
    kept = (7 + 1) * 2 * 4 * 4  # T + 1 states of (2, 4) float32; xs and the weights are there anyway
    picture = draw(loss, names=names, level=level)
    (loop,) = (group for group in picture.diagram.groups if group.kind == "loop")
    assert loop.facts.kept == kept == sum(box.facts.kept or 0 for box in picture.diagram.boxes)
    if level == "modules":
        (step,) = (box for box in picture._seen.boxes if box.title == "step")
        assert "keeps 256 B" in step.lines


def test_arrows_are_as_wide_and_dark_as_the_gradient_that_flows_back() -> None:
    from tinyseq.draw.colours import SCALE, Scale

    x = ts.tensor([3.0, 0.5], requires_grad=True)
    with ts.draw.profile() as profile:
        y = ((x * 2).tanh() * 10).sum()
        y.backward()
    picture = draw(y, names={"x": x}, profile=profile)
    norms = [arrow.gradient for arrow in picture._seen.arrows]
    derivative = 10 * (1 - np.tanh([6.0, 1.0]) ** 2)
    expected = [np.linalg.norm(2 * derivative), np.linalg.norm(derivative), np.sqrt(200), np.sqrt(2)]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    scale = Scale(min(norms), max(norms))  # type: ignore[type-var]
    for arrow, norm in zip(picture._seen.arrows, expected, strict=True):
        style = f'color="{scale.colour(norm)}", penwidth="{scale.width(norm)}"'
        assert f"n{arrow.tail} -> n{arrow.head} [{style}" in picture.dot
    assert {scale.colour(max(expected)), scale.colour(min(expected))} == {SCALE[-1], SCALE[0]}
    assert (scale.width(max(expected)), scale.width(min(expected))) == (3.2, 0.6)


def test_a_profile_has_the_norms_of_all_gradients_and_all_seconds() -> None:
    x, w = ts.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True), ts.tensor(np.ones((3, 2)), requires_grad=True)
    start = time.perf_counter()
    with ts.draw.profile() as profile:
        h = (x @ w).tanh()
        h.retain_grad()
        (h * h).sum().backward()
    took = time.perf_counter() - start
    assert h.grad is not None
    assert profile.gradients[h.node.serial] == pytest.approx(np.linalg.norm(h.grad.numpy()), rel=1e-10)  # type: ignore[union-attr]
    for tensor in (x, w):
        assert tensor.grad is not None
        assert profile.gradients[tensor.node.serial] == pytest.approx(np.linalg.norm(tensor.grad.numpy()), rel=1e-10)  # type: ignore[union-attr]
    assert len(profile.seconds) == 4
    assert 0 < profile.total < took
    picture = draw(h, names={"x": x, "w": w}, profile=profile)
    facts = {box.title: box.facts for box in picture._seen.boxes}
    assert facts["tanh"].seconds == profile.seconds[h.node.serial]  # type: ignore[union-attr]
    assert {arrow.gradient for arrow in picture._seen.arrows} == {
        facts["x"].gradient,
        facts["w"].gradient,
        facts["matmul"].gradient,
    }
    assert "gradient norm from" in picture.dot


def test_a_profile_sees_a_compiled_scan_as_one_operation() -> None:
    with ts.draw.profile() as profile:
        loss, names = plain(7, unroll=False)
        loss.backward()
    picture = draw(loss, names=names, profile=profile)
    (loop,) = (group for group in picture.diagram.groups if group.kind == "loop")
    spent = [box.facts.seconds for box in picture.diagram.boxes if box.facts.seconds is not None]
    assert sum(spent) == pytest.approx(profile.total, rel=1e-9)
    assert loop.facts.steps == 7
    assert names["U"].grad is not None
    gradient = next(box.facts.gradient for box in picture.diagram.boxes if box.title == "U")
    assert gradient == pytest.approx(float(np.linalg.norm(names["U"].grad.numpy())), rel=1e-5)


def test_profiles_and_other_observers_both_watch() -> None:
    x = leaf(2)
    with ts.detect_anomaly(), ts.draw.profile() as outer, ts.draw.profile(gradients=False) as inner:
        (x * 2).sum().backward()
    assert len(outer.seconds) == len(inner.seconds) == 2
    assert outer.gradients
    assert not inner.gradients
    assert mode.current().observer is None


def test_gradients_that_are_no_numbers_are_said_to_be() -> None:
    x = ts.tensor([0.0, 1.0], requires_grad=True)
    with np.errstate(all="ignore"), ts.draw.profile() as profile:
        y = (x * 0.0).log() * x
        y.sum().backward()
    picture = draw(y.sum(), names={"x": x}, profile=profile)
    assert "‖grad‖ = NaN" in picture.dot
    assert "#D55E00" in picture.dot
    assert ElementTree.fromstring(picture.svg()).tag == f"{SVG}svg"
    assert picture.text().endswith("\nd: float32[] = sum(c, axis=-1)  # nan\n-> d")
    loss, names = plain(4, unroll=False)
    strip = draw(loss, names=names, gradients={"h": [float("nan"), 0.0, float("inf"), 1e-300]})
    assert "NaN … 1e-300" in strip.dot
    assert strip.svg()


def test_norms_stand_under_a_folded_loop() -> None:
    loss, names = plain(200, unroll=False)
    norms = np.logspace(-30, 0, 200)
    picture = draw(loss, names=names, gradients={"state": ts.tensor(norms)})
    (strip,) = (box for box in picture._seen.boxes if box.kind == "flow")
    assert strip.facts.flow == (("state", tuple(norms)),)
    assert picture.dot.count('width="8"') == 50  # four steps a cell
    assert "state: 1e-30 … 1" in picture.text()
    assert not titles(draw(loss, names=names, gradients={"state": norms[:10]})._seen, "flow")  # of another loop


@pytest.mark.parametrize("unroll", [True, False])
def test_norms_are_at_the_arrows_of_their_steps(unroll: bool) -> None:
    layers = ts.nn.RNN(3, 4, num_layers=2)
    layers.unroll = unroll
    with ts.trace_gradients() as flow:
        loss = layers(ts.random.randn((6, 2, 3)))[0][-1].sum()
        loss.backward()
    assert set(flow) == {"RNN", "RNN 2"}
    drawn = draw(loss, names=layers, gradients=flow, time="unrolled", steps=4, level="modules")._seen
    strips = Strips(drawn)
    found: dict[tuple[bool, int], list[float]] = {}
    for arrow in drawn.arrows:
        column = strips.of_box[arrow.tail]
        if arrow.kind == "carry" and column is not None:
            loop = drawn.groups[strips.row[column]]
            same = [g for g, group in enumerate(drawn.groups) if group.kind == "loop" and group.backward == loop.backward]
            found.setdefault((loop.backward, same.index(strips.row[column])), []).append(arrow.gradient or 0.0)
    for layer, name in enumerate(("RNN", "RNN 2")):
        expected = sorted(flow[name][[0, 1, 4]])
        assert sorted(found[False, layer]) == pytest.approx(expected, rel=1e-6)
        assert sorted(found[True, 1 - layer]) == pytest.approx(expected, rel=1e-6)


# --- looks ------------------------------------------------------------------------------------------------------------


def test_the_legend_names_what_is_there_and_nothing_else() -> None:
    x = leaf(2)
    text = draw((x * ts.tensor([1.0, 2.0])).sum()).dot
    assert all(f">{meaning}</font>" in text for meaning in ("input", "constant", "operation", "result"))
    assert ">parameter</font>" not in text
    assert "legend" not in draw(x.tanh(), legend=False).dot


def test_themes_exchange_colours_only() -> None:
    loss, cell = lstm(2)
    light, dark, auto = (draw(loss, names=cell, theme=theme) for theme in ("light", "dark", "auto"))  # type: ignore[arg-type]
    hex_ = re.compile(r"#[0-9A-Fa-f]{6}\b")
    assert hex_.sub("", light.dot) == hex_.sub("", dark.dot)
    assert light.dot == auto.dot
    assert "#16191D".lower() in dark.svg()
    assert "prefers-color-scheme:dark" in auto.svg()
    assert "prefers-color-scheme" not in light.svg() + dark.svg()
    assert re.sub(r"<style>.*?</style>", "", auto.svg()) == light.svg()


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_contrast_and_the_scale_is_told_by_lightness_alone() -> None:
    from tinyseq.draw.colours import DARK, DARK_SCALE, LIGHT, SCALE

    for palette, scale in ((LIGHT, SCALE), (DARK, DARK_SCALE)):
        for role, colour in palette.items():
            if role.endswith("area") or role in ("page", "box", "column"):
                light, dark = sorted((luminance(colour), luminance(palette["ink"])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) > 7, role
        steps = [luminance(colour) for colour in scale]
        assert steps == sorted(steps, reverse=palette is LIGHT)


# Machado, Oliveira and Fernandes (2009), the whole loss of one kind of cone, on linear RGB.
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, seen: list[list[float]]) -> np.ndarray:
    """A colour as someone sees it, where distances are those that are perceived: CIE L*a*b*, white of D65."""
    parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.clip(seen @ np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("kind", BLIND)
def test_colour_blind_people_can_tell_the_colours_of_lines_apart(kind: str) -> None:
    """Each from each other by ten times what is just noticed; gradients are darker than VJPs, and have sharp corners."""
    from tinyseq.draw.colours import DARK, LIGHT

    for palette in (LIGHT, DARK):
        roles = ["input", "parameter", "output", "carry", "backward", "bad"]
        seen = {role: lab(palette[role], BLIND[kind]) for role in roles}
        apart = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in combinations(roles, 2)}
        closest = min(apart, key=lambda pair: apart[pair])
        assert apart[closest] > 10, (closest, apart[closest])


def test_one_fact_to_show_may_stand_by_itself() -> None:
    y = leaf(2, 3).tanh()
    assert draw(y, show="shape").dot == draw(y, show=["shape"]).dot
    assert draw(y, show="shape").dot.count("2×3 float32") == draw(y, show=["kept"]).dot.count("2×3 float32") + 2


def test_a_tooltip_has_the_facts_that_no_line_shows() -> None:
    x = ts.tensor([1.0, 2.0], requires_grad=True)
    root = ElementTree.fromstring(draw(x * 2, names={"x": x}, show=["shape"]).svg())
    tooltips = [group.findtext(f"{SVG}title") for group in root.iter(f"{SVG}g") if group.get("class") == "node"]
    assert "x, 2 float32, = [1, 2]" in tooltips


def test_unknown_words_are_refused() -> None:
    x = leaf(2)
    for options, message in (
        ({"level": "layers"}, "level='layers' is unknown; choose from 'modules', 'operations', 'both'"),
        ({"time": "flat"}, "time='flat' is unknown"),
        ({"theme": "blue"}, "theme='blue' is unknown"),
        ({"show": ["taste"]}, "show='taste' is unknown; choose from 'shape', 'value'"),
        ({"steps": 2}, "steps must be at least 3"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            draw(x.tanh(), **options)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="gradients is a list"):
        draw(x.tanh(), gradients=[1.0])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"gradients\['h'\] has shape \(2, 2\)"):
        draw(x.tanh(), gradients={"h": np.ones((2, 2))})


def test_plots_are_there_and_matplotlib_is_not_imported_before_they_are_asked_for() -> None:
    code = (
        "import sys, tinyseq as ts; ts.draw(ts.tensor([1.0], requires_grad=True) * 2).dot; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    pytest.importorskip("matplotlib")
    assert len(ts.draw.gradient_flow({"h": [0.1, 1.0]}).axes[0].images) == 1
    assert ts.draw.attention(np.ones((1, 2)) / 2).axes
    assert ts.draw.curves([1.0, 0.5]).axes


# --- any size ---------------------------------------------------------------------------------------------------------


def test_frames_may_be_nested_deeper_than_the_stack() -> None:
    x = leaf(2)
    depth = 3000
    scopes = [mode.scope("module", f"M{k}") for k in range(depth)]
    for scope in scopes:
        scope.__enter__()
    y = x.tanh().exp()
    for scope in reversed(scopes):
        scope.__exit__()
    picture = draw(y, names={"x": x})
    assert len(picture.diagram.groups) == depth
    assert picture.dot.count("subgraph") == depth
    assert picture.text().count("{") == depth


@pytest.mark.parametrize("name", HOSTILE, ids=[ascii(name)[:20] for name in HOSTILE])
def test_hostile_names_of_modules_and_norms_do_nothing(name: str) -> None:
    x = leaf(2, 2)
    with mode.scope("module", name):
        _, ys = ts.scan(lambda h, x: ((h @ x).tanh(),) * 2, ts.zeros((2, 2)), ts.zeros((3, 2, 2)) + x)
    picture = draw(ys.sum(), names={name: x}, gradients={name: [1.0, 2.0, 3.0]})
    node_texts(picture.svg())
    assert picture.text()
    assert len(picture.dot) < 20_000
