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
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq import mode
from tinyseq.draw import DrawError, Picture, draw, render
from tinyseq.draw.diagram import Diagram
from tinyseq.draw.dot import Writer
from tinyseq.draw.labels import shorten
from tinyseq.draw.layout import Strips, place
from tinyseq.draw.render import Layout
from tinyseq.draw.routes import Rectangle, Spline
from tinyseq.errors import DTypeError, GraphError

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


def check_layout(drawn: Diagram) -> None:
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
        assert inside(end, boxes[arrow.head], -1.5)
        if strips.of_box[arrow.tail] != strips.of_box[arrow.head]:  # a line of ours
            for i, box in enumerate(boxes):
                assert not any(inside(point, box) for point in samples(placed.arrows[a])), (a, drawn.boxes[i])


def title_box(title: str, x: float, y: float) -> Rectangle:
    width = 5.0 * len(title)
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
    assert len(drawn.boxes) == 51
    assert titles(drawn, "gap") == ["… 452 operations not drawn …"]
    assert picture.notes == ("452 operations far from the output are not drawn.",)
    assert titles(drawn, "output") == ["exp"]
    assert titles(drawn, "input") == []
    assert sum(tail == "… 452 operations not drawn …" for tail, *_ in arrows(drawn)) == 1


def test_below_the_limit_all_is_drawn() -> None:
    loss, names = rnn(30)
    drawn = diagram(loss, names=names, limit=1000, steps=30)
    assert len(columns(drawn)) == 30
    assert titles(drawn, "gap") == []
    assert sum(box.title == "tanh" for box in drawn.boxes) == 30


@pytest.mark.parametrize("used_everywhere", ["leaf", "operation"])
def test_a_hundred_thousand_operations_are_drawn_in_seconds(used_everywhere: str) -> None:
    x = leaf(1)
    hub = y = x if used_everywhere == "leaf" else x.exp()
    for _ in range(50_000):
        y = (y + hub).tanh()
    start = time.monotonic()
    picture = draw(y)
    picture.svg()
    content = picture.png()
    assert time.monotonic() - start < 15  # about two; without the cuts the layout takes minutes
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert max(width, height) <= 16_001
    assert "… 49,996 more steps …" in picture.dot
    assert len(picture._seen.boxes) < 20


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
    ("name", "start"), [("a.svg", b"<svg"), ("a.PNG", b"\x89PNG"), ("a.dot", b"digraph"), ("a.gv", b"digraph")]
)
def test_the_ending_chooses_the_format(picture: Picture, tmp_path: Path, name: str, start: bytes) -> None:
    path = picture.save(tmp_path / name)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [name]


def test_a_file_is_as_readable_as_any_other(picture: Picture, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert picture.save(str(tmp_path / "a.svg")).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["a.jpg", "a", ".svg", "a.svg.txt"])
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

    def full(path: Path, content: bytes) -> int:
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
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


def test_the_documentation_s_picture_is_made_by_its_script() -> None:
    spec = importlib.util.spec_from_file_location("make_pictures", ROOT / "docs" / "pictures" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.lstm_steps(3).diagram
    assert [group.title for group in drawn.groups if group.kind == "step"] == ["t = 0", "t = 1", "t = 2"]
    assert {"cell.weight_ih", "cell.weight_hh", "embedding.weight", "head.bias"} <= set(titles(drawn, "parameter"))


def test_the_examples_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, loop = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "drawing.md").read_text("utf-8"), re.DOTALL)
    names: dict[str, object] = {"xs": ts.ones((3, 2, 4)), "w": leaf(4, 4), "u": leaf(4, 4), "h": ts.zeros((2, 4))}
    exec(model, names)
    assert os.listdir() == ["graph.svg"]
    exec(loop, names)
    drawn = diagram(names["h"], names=names)  # type: ignore[arg-type]
    assert [title for _, title in columns(drawn)] == ["t = 0", "t = 1", "t = 2"]


def test_a_fused_function_is_one_box() -> None:
    """What a backend's kernel keeps for its backward pass is no input of the picture."""
    pytest.importorskip("numba")
    with ts.use_backend("numba"):
        x = ts.tensor(np.ones((4, 3), np.float32), requires_grad=True)
        text = ts.draw(ts.functions.cross_entropy(x, ts.tensor([0, 1, 2, 0]))).dot
    assert text.count("softmax_cross_entropy") == 1
