"""The HTML page of a picture, in a real browser: what is drawn and where, what pointer and keyboard do, what is forbidden."""

from __future__ import annotations

import http.server
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import Browser, missing
from hypothesis import given
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.draw.colours import DARK, LIGHT
from tinyseq.draw.diagram import Arrow, Box, Diagram, Facts, Group, visible
from tinyseq.draw.html import _data, _embedded, page
from tinyseq.draw.labels import bytes_label
from tinyseq.mode import scope

GOLDEN = Path(__file__).parent / "golden"
WINDOW = (1200, 900)
T = 50


def lstm() -> Diagram:
    """An LSTM's loop, folded, in a module: gates, carries that go round, gradients."""
    flow = [10.0 ** (-6 + 6 * t / T) for t in range(T)]
    groups = (
        Group("lstm", "module", "LSTM", ("144 parameters",), facts=Facts(parameters=144)),
        Group("scan", "loop", f"scan T = {T}", ("50 steps",), 0, facts=Facts(steps=T)),
        Group("cell", "module", "LSTMCell", (), 1),
    )
    boxes: list[Box] = []
    arrows: list[Arrow] = []

    def box(kind: Any, title: str, shape: tuple[int, ...], group: int | None, *tails: int, **facts: Any) -> int:
        line = f"{'×'.join(map(str, shape)) or 'scalar'} float32"
        boxes.append(Box(f"b{len(boxes)}", kind, title, (line,), group, Facts(shape=shape, dtype="float32", **facts)))
        for slot, tail in enumerate(tails):
            kind = "parameter" if boxes[tail].kind == "parameter" else "data"
            arrows.append(Arrow(tail, len(boxes) - 1, kind, (slot,)))
        return len(boxes) - 1

    xs, w, u = (
        box("input", "xs", (T, 2, 3), None),
        *(box("parameter", name, (12, 4), None, name=f"cell.{name}") for name in "WU"),
    )
    before = box("operation", "matmul", (T, 2, 12), 0, xs, w, operation="matmul", kept=4800, gradient=0.01)
    h, c = (box("carry", name, (2, 4), 1) for name in "hc")
    total = box("operation", "add", (2, 12), 2, before, box("operation", "matmul", (2, 12), 2, h, u, operation="matmul"))
    gates = [box("operation", name, (2, 4), 2, box("operation", "getitem", (2, 4), 2, total)) for name in ("i", "f", "g", "o")]
    products = box("operation", "mul", (2, 4), 2, gates[0], gates[2]), box("operation", "mul", (2, 4), 2, gates[1], c)
    state = box("operation", "add", (2, 4), 2, *products)
    out = box("operation", "mul", (2, 4), 2, box("operation", "tanh", (2, 4), 2, state), gates[3], gradient=1.0)
    box("flow", "flow", (), 1, flow=(("h", tuple(flow)), ("c", (float("nan"), 0.0, *flow[2:]))))
    box("output", "sum", (), None, out)
    arrows.extend([Arrow(state, c, "carry"), Arrow(out, h, "carry", gradient=0.5)])
    return Diagram(tuple(boxes), tuple(arrows), groups)


def unrolled(steps: int = 4) -> Diagram:
    """A plain recurrent layer, its steps in columns, with a gap before the last."""
    boxes = [Box(name, "parameter", name, ("4×4 float32",)) for name in ("W", "U")] + [
        Box("xs", "input", "xs", ("100×2×4 float32",))
    ]
    arrows: list[Arrow] = []
    groups = [Group("scan", "loop", "scan T = 100", ("100 steps",))]
    h: int | None = None
    outputs = []

    def box(title: str, group: int, *tails: tuple[int, Any]) -> int:
        boxes.append(Box(f"{group}.{len(boxes)}", "operation", title, ("2×4 float32",), group))
        arrows.extend(Arrow(tail, len(boxes) - 1, kind) for tail, kind in tails)
        return len(boxes) - 1

    for t in range(steps):
        if t == steps - 1:
            groups.append(Group("gap", "gap", "", (), 0))
            boxes.append(Box("gap box", "gap", "… 96 more steps …", (), len(groups) - 1))
            arrows.append(Arrow(h or 0, len(boxes) - 1, "carry"))
            h = len(boxes) - 1
        groups.append(Group(f"step {t}", "step", f"t = {t if t < steps - 1 else 99}", (), 0))
        g = len(groups) - 1
        x = box("matmul", g, (box("getitem", g, (2, "data")), "data"), (0, "parameter"))
        u = box("matmul", g, (1, "parameter"), *(() if h is None else ((h, "carry"),)))
        h = box("tanh", g, (box("add", g, (x, "data"), (u, "data")), "data"))
        outputs.append(h)
    boxes.append(Box("ys", "output", "concatenate", ("100×2×4 float32",)))
    arrows += [Arrow(tail, len(boxes) - 1, "data") for tail in outputs]
    return Diagram(tuple(boxes), tuple(arrows), tuple(groups))


def nested() -> Diagram:
    """Six layers of three blocks each, every other layer closed, with arrows here and there."""
    rng = np.random.default_rng(0)
    groups: list[Group] = []
    boxes: list[Box] = []
    for k in range(6):
        groups.append(Group(f"{k}", "module", f"layer {k}", ("8 parameters",), open=k % 2 == 0))
        top = len(groups) - 1
        for m in range(3):
            groups.append(Group(f"{k}.{m}", "module", f"block {m}", (), top))
            boxes += [Box(f"{k}.{m}.{i}", "operation", f"op {k}.{m}.{i}", ("2×4 float32",), top + 1 + m) for i in range(5)]
    tails = [{int(max(0, i - j)) for j in rng.choice([1, 1, 2, 3, 7, 20], 2)} for i in range(1, len(boxes))]
    return Diagram(
        tuple(boxes), tuple(Arrow(j, i + 1, "data") for i, few in enumerate(tails) for j in sorted(few)), tuple(groups)
    )


def chain(count: int) -> Diagram:
    """A chain with a longer arrow now and then."""
    boxes = tuple(Box(f"b{i}", "operation", f"op {i}", ("3 float32",)) for i in range(count))
    far = [Arrow(i, i + 9, "data") for i in range(0, count - 9, 13)]
    return Diagram(boxes, tuple(Arrow(i, i + 1, "data") for i in range(count - 1)) + tuple(far))


# --- the text of the page ---------------------------------------------------------------------------------------------

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    '"><img src=x onerror="window.hacked=1">',
    "<!-- <script> ]]>",
    "quote \" and ' and ` and \\ and ${window.hacked=1}",
    "two\nlines\u2028and\u2029more",
    "&lt;b&gt; &amp;",
    "\u202egnp.exe 日本語 🙂",
    "x" * 5000,
]


@given(st.text())
def test_data_cannot_end_its_element_and_is_read_back(text: str) -> None:
    written = _embedded({"a": text})
    assert not {*"<>&"} & {*written}
    assert json.loads(written) == {"a": text}


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:20])
def test_no_name_becomes_markup(name: str) -> None:
    text = page(Diagram((Box("x", "input", name, (name,)),), notes=(name,)), name)
    assert len(re.findall("<script", text)) == 2
    assert "<img" not in text
    assert "<!-- " not in text


def test_the_page_needs_nothing_else_and_is_the_same_each_time() -> None:
    text = page(lstm(), "LSTM")
    assert text == page(lstm(), "LSTM")
    outside = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]|<link|@import|url\(|src=", re.sub(r"(?m)^\s*//.*|\s// .*", "", outside))
    assert len(text) < 75_000


def test_sizes_and_times_are_said_as_in_any_picture() -> None:
    sizes = [0, 1023, 1024, 1536, 2**20, 3 * 2**40, 2**60]
    assert [bytes_label(n) for n in sizes] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "3.0 TiB",
        "1048576.0 TiB",
    ]
    (box,) = _data(Diagram((Box("b", "operation", "mul", (), None, Facts(kept=1536, seconds=0.00025)),)))["boxes"]
    assert box["facts"] == [("kept for backward", "1.5 KiB"), ("time", "250 µs")]


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    browser = Browser(tmp_path_factory.mktemp("profile"), WINDOW)
    yield browser
    browser.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Any]:
    """Opens the page of a diagram; at the end, the console must be empty."""

    def show(diagram: Diagram) -> Browser:
        (tmp_path / "page.html").write_text(page(diagram, "a picture"), "utf-8")
        browser.open(tmp_path / "page.html")
        return browser

    yield show
    browser.move(1, 1)
    assert browser.log() == []


ITEMS = """
return [...document.querySelectorAll("#view .item")].map((element) => {
  const {left, top, right, bottom} = element.querySelector(".shape").getBoundingClientRect();
  return {id: element.dataset.id, kind: element.getAttribute("class"), label: element.getAttribute("aria-label"),
          expanded: element.getAttribute("aria-expanded"),
          texts: [...element.querySelectorAll("text")].map((text) => text.textContent),
          rect: [left, top, right, bottom]};
});
"""
EDGES = """
const matrix = document.getElementById("view").getScreenCTM();
return [...document.querySelectorAll("#view .edge")].map((edge) => {
  const line = edge.querySelector(".line"), length = line.getTotalLength(), points = [];
  for (let i = 0; i <= 200; i++) {
    const point = line.getPointAtLength(length * i / 200).matrixTransform(matrix);
    points.push([point.x, point.y]);
  }
  return {kind: edge.getAttribute("class").split(" ")[1], from: edge.dataset.from, to: edge.dataset.to, points};
});
"""
Rect = tuple[float, float, float, float]


def items(browser: Browser) -> dict[str, dict[str, Any]]:
    """What is drawn, by its title."""
    return {item["label"].split(",")[0]: item for item in browser.run(ITEMS)}


def within(inner: Rect, outer: Rect, margin: float = 0.5) -> bool:
    return all(a >= b - margin for a, b in zip(inner[:2], outer[:2], strict=True)) and all(
        a <= b + margin for a, b in zip(inner[2:], outer[2:], strict=True)
    )


def overlap(a: Rect, b: Rect, by: float = 1.0) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > by and min(a[3], b[3]) - max(a[1], b[1]) > by


def middle(rect: Rect) -> tuple[float, float]:
    return (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2


def title_of(item: dict[str, Any]) -> tuple[float, float]:
    """A point in the frame of an open group, beside its title."""
    return item["rect"][0] + 5, item["rect"][1] + 9


def stacked() -> Diagram:
    """Two layers of two directions, of which one is open, with norms of gradients."""
    ts.manual_seed(0)
    layer, xs = ts.nn.GRU(3, 4, num_layers=2, bidirectional=True), ts.random.randn((10, 2, 3))
    with ts.trace_gradients() as flow:
        layer(xs)[0].sum().backward()
    layer.zero_grad()
    return ts.draw(layer(xs)[0].sum(), names=layer, gradients=flow).diagram


def loops_in_columns() -> Diagram:
    """A loop in each step of another."""
    x = y = ts.tensor([1.0, 2.0], requires_grad=True)
    for t in range(6):
        with scope("step", t):
            for k in range(4):
                with scope("step", k):
                    y = (y * x).tanh()
            y = y.exp()
    return ts.draw(y.sum(), names={"x": x}, time="unrolled", backward=False).diagram


DIAGRAMS = {"lstm": lstm, "unrolled": unrolled, "nested": nested, "chain": lambda: chain(60)}
DIAGRAMS |= {"stacked": stacked, "loops in columns": loops_in_columns}


@pytest.mark.parametrize("diagram", [make() for make in DIAGRAMS.values()], ids=DIAGRAMS)
def test_boxes_stand_apart_in_their_frames_and_lines_meet_only_their_ends(show: Any, diagram: Diagram) -> None:
    browser = show(diagram)
    browser.run("document.getElementById('fit').click()")
    drawn = {item["id"]: item for item in browser.run(ITEMS)}
    solid = {key: item["rect"] for key, item in drawn.items() if " open" not in item["kind"]}
    assert len(solid) > 10
    for (a, one), (b, other) in combinations(solid.items(), 2):
        assert not overlap(one, other), f"{a} and {b} overlap"
    frames = {key: item["rect"] for key, item in drawn.items() if " open" in item["kind"]}
    for box in diagram.boxes:
        if box.group is not None and box.id in drawn:
            frame = diagram.groups[box.group]
            assert frame.kind == "gap" or within(drawn[box.id]["rect"], frames[frame.id]), f"{box.id} is not in {frame.title}"
    for (a, one), (b, other) in combinations(frames.items(), 2):
        assert not overlap(one, other) or within(one, other) or within(other, one), f"frames {a} and {b}"
    scale = float(browser.run("return document.getElementById('scale').textContent").split()[0]) / 100
    for edge in browser.run(EDGES):
        tail, head = drawn[edge["from"]]["rect"], drawn[edge["to"]]["rect"]
        (x0, y0), (x1, y1) = edge["points"][0], edge["points"][-1]
        assert tail[0] <= x0 <= tail[2], edge["from"]
        assert abs(y0 - tail[3]) < 1, edge["from"]
        assert head[0] <= x1 <= head[2], edge["to"]
        assert abs(y1 - head[1]) < 1, edge["to"]
        for key, rect in solid.items():
            inner = rect[0] + 2 * scale, rect[1] + 2 * scale, rect[2] - 2 * scale, rect[3] - 2 * scale
            crossed = [p for p in edge["points"] if inner[0] < p[0] < inner[2] and inner[1] < p[1] < inner[3]]
            assert not crossed, f"the line from {edge['from']} to {edge['to']} runs through {key}"


def test_texts_fit_into_their_boxes(show: Any) -> None:
    browser = show(lstm())
    outside = browser.run("""
      return [...document.querySelectorAll("#view .item:not(.open)")].flatMap((item) => {
        const box = item.querySelector(".shape").getBoundingClientRect();
        return [...item.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()])
          .filter(([, r]) => r.left < box.left || r.right > box.right || r.top < box.top || r.bottom > box.bottom)
          .map(([text]) => text);
      });
    """)
    assert outside == []


def test_what_is_drawn_is_what_the_diagram_holds(show: Any) -> None:
    browser = show(lstm())
    found = items(browser)
    assert found["sum"]["texts"] == ["sum", "scalar float32"]
    assert found["LSTM"]["kind"] == "item group module open"
    shown = Counter(item["label"].split(",")[0] for item in browser.run(ITEMS))
    assert shown == Counter([*(box.title for box in lstm().boxes if box.kind != "flow"), *(g.title for g in lstm().groups)])
    kinds = Counter(edge["kind"] for edge in browser.run(EDGES))
    assert kinds == Counter(arrow.kind for arrow in lstm().arrows)


def test_a_carry_goes_round_its_loop(show: Any) -> None:
    browser = show(lstm())
    found = items(browser)
    loop = found[f"scan T = {T}"]["rect"]
    carries = [edge for edge in browser.run(EDGES) if edge["kind"] == "carry"]
    assert len(carries) == 2
    for edge in carries:
        xs, ys = zip(*edge["points"], strict=True)
        assert max(xs) > found["LSTMCell"]["rect"][2]  # past the cell, on the right
        assert ys[-1] < ys[0]  # back to the top
        assert all(loop[0] < x < loop[2] and loop[1] < y < loop[3] for x, y in edge["points"])


def test_steps_stand_in_the_order_of_time(show: Any) -> None:
    found = items(show(unrolled()))
    columns = [found[name]["rect"] for name in ("t = 0", "t = 1", "t = 2", "… 96 more steps …", "t = 99")]
    assert all(a[2] < b[0] for a, b in pairwise(columns))
    assert len({column[1] for column in columns[:3]}) == 1


def test_the_backward_pass_stands_below_the_forward_pass(show: Any) -> None:
    groups = tuple(Group(name, "loop", name, backward=name == "back") for name in ("back", "forth"))
    boxes = (Box("g", "backward", "g", (), 0), Box("x", "operation", "x", (), 1), Box("y", "output", "y"))
    boxes += (Box("r", "reference", "x #1", (), 0), Box("w", "gradient", "dW"))
    arrows = (Arrow(1, 2, "data"), Arrow(3, 0, "data"), Arrow(0, 4, "backward"))
    found = items(show(Diagram(boxes, arrows, groups)))
    assert found["forth"]["rect"][3] < found["back"]["rect"][1]
    assert found["back"]["rect"][3] < found["dW"]["rect"][1]
    assert abs(middle(found["forth"]["rect"])[0] - middle(found["back"]["rect"])[0]) < 20


@pytest.mark.parametrize("diagram", [lstm(), nested()], ids=["lstm", "nested"])
def test_no_line_runs_through_a_title(show: Any, diagram: Diagram) -> None:
    browser = show(diagram)
    titles = browser.run("""
      return [...document.querySelectorAll("#view .labels .title")].map((text) => {
        const r = text.getBoundingClientRect();
        return [text.textContent, [r.left, r.top, r.right, r.bottom]];
      });
    """)
    assert len(titles) >= 3
    for edge in browser.run(EDGES):
        for title, (left, top, right, bottom) in titles:
            assert not any(left < x < right and top < y < bottom for x, y in edge["points"]), title


def test_a_click_closes_a_group_and_another_opens_it_again(show: Any) -> None:
    browser = show(lstm())
    before = {item["id"]: item["rect"] for item in browser.run(ITEMS)}
    browser.click(*title_of(items(browser)["LSTMCell"]))
    found = items(browser)
    assert found["LSTMCell"]["expanded"] == "false"
    inside = sum(box.group == 2 for box in lstm().boxes)
    assert found["LSTMCell"]["texts"] == ["▸ LSTMCell", f"{inside} boxes"]
    assert {"i", "tanh"}.isdisjoint(found)
    keys = {item["id"]: item["label"].split(",")[0] for item in browser.run(ITEMS)}
    ends = Counter((keys[edge["from"]], keys[edge["to"]], edge["kind"]) for edge in browser.run(EDGES))
    assert ends["LSTMCell", "h", "carry"] == ends["LSTMCell", "c", "carry"] == ends["h", "LSTMCell", "data"] == 1
    browser.click(*middle(found["LSTMCell"]["rect"]))
    after = {item["id"]: item["rect"] for item in browser.run(ITEMS)}
    assert after.keys() == before.keys()
    np.testing.assert_allclose([after[key] for key in before], [before[key] for key in before], atol=0.3)


def test_what_is_clicked_stays_where_it_is(show: Any) -> None:
    browser = show(nested())
    before = items(browser)["layer 1"]["rect"]
    browser.click(*middle(before))
    after = items(browser)["layer 1"]["rect"]
    np.testing.assert_allclose(after[:2], before[:2], atol=0.3)
    assert after[3] > before[3] + 50


def test_a_closed_loop_shows_its_gradients_and_its_state_goes_round(show: Any) -> None:
    browser = show(lstm())
    browser.click(*title_of(items(browser)[f"scan T = {T}"]))
    loops = [edge for edge in browser.run(EDGES) if edge["from"] == edge["to"]]
    assert [edge["kind"] for edge in loops] == ["carry"]
    strips = browser.run('return [...document.querySelectorAll(".strip")].map((s) => s.querySelectorAll("rect").length)')
    assert strips == [T, T]


def test_the_strip_has_a_colour_for_each_step(show: Any) -> None:
    browser = show(lstm())
    cells = browser.run("""
      return [...document.querySelectorAll(".strip")].map((s) => [...s.querySelectorAll("rect")].map(
        (r) => [r.getAttribute("class"), r.textContent]));
    """)
    first, second = cells
    shades = [int(kind.removeprefix("gradient shade")) for kind, _ in first]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (0, 6)
    assert first[0][1] == "t = 0: 0.000001"
    assert second[0] == ["gradient nan", "t = 0: not a number"]
    assert second[1] == ["gradient zero", "t = 1: 0"]


STRIPS = """
return [...document.querySelectorAll("#view .over")].filter((over) => over.querySelector(".strip")).map((over) => {
  const item = document.querySelector(`#view .item[data-key="${over.dataset.key}"]`);
  const rect = (element) => { const r = element.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
  const texts = [...item.querySelectorAll("text"), ...over.querySelectorAll("text")].map((t) => [t.textContent, rect(t)]);
  const strips = [...over.querySelectorAll(".strip")].map((strip) => {
    const cells = [...strip.querySelectorAll("rect")].map(rect);
    return [cells[0][0], cells[0][1], cells.at(-1)[2], cells.at(-1)[3]];
  });
  return {id: item.dataset.id, rect: rect(item.querySelector(".shape")), texts, strips};
});
"""


def test_strips_overlap_nothing_and_stay_when_what_is_around_them_closes(show: Any) -> None:
    """Also those with long names, and several of one frame."""
    flow = ("a.very.long.name.of.a.layer.in.a.model.0", (1.0,) * 9), ("h", (0.5, 1.0))
    groups = (Group("m", "module", "M"), *(Group(f"l{k}", "loop", "loop", (), 0) for k in range(2)))
    boxes = [Box(f"x{k}", "operation", "x", ("2×3 float32",), k + 1) for k in range(2)]
    boxes += [Box(f"l{k}.flow", "flow", "flow", (), k + 1, Facts(flow=flow)) for k in range(2)]
    boxes.append(Box("y", "output", "y", ("2×3 float32",)))
    browser = show(Diagram(tuple(boxes), (Arrow(0, 1, "data"), Arrow(1, 4, "data")), groups))

    def check(expected: dict[str, int]) -> None:
        found = {entry["id"]: entry for entry in browser.run(STRIPS)}
        assert {name: len(entry["strips"]) for name, entry in found.items()} == expected
        for entry in found.values():
            drawn = [*entry["strips"], *(rect for _, rect in entry["texts"])]
            assert all(within(rect, entry["rect"]) for rect in drawn), entry
            assert not any(overlap(a, b, 0.0) for a, b in combinations(drawn, 2)), entry

    check({"l0": 2, "l1": 2})
    browser.click(*title_of(next(item for item in browser.run(ITEMS) if item["id"] == "l0")))
    check({"l0": 2, "l1": 2})
    browser.run("document.getElementById('close').click()")
    check({"m": 4})


def test_open_all_and_close_all(show: Any) -> None:
    browser = show(nested())
    browser.run("document.getElementById('close').click()")
    assert sorted(items(browser)) == [f"layer {k}" for k in range(6)]
    browser.run("document.getElementById('open').click()")
    assert sum(item["kind"].startswith("item box") for item in browser.run(ITEMS)) == 90


def transform(browser: Browser) -> tuple[float, float, float]:
    text = browser.run("return document.getElementById('view').getAttribute('transform')")
    x, y, scale = map(float, re.findall(r"[-\d.]+", text))
    return x, y, scale


def test_the_wheel_zooms_about_the_pointer(show: Any) -> None:
    browser = show(lstm())
    x, y = middle(items(browser)["tanh"]["rect"])
    before = transform(browser)[2]
    browser.wheel(x, y, -100)
    after = transform(browser)[2]
    assert after == pytest.approx(before * np.exp(100 / 300), rel=1e-3)
    np.testing.assert_allclose(middle(items(browser)["tanh"]["rect"]), (x, y), atol=1)
    for _ in range(30):
        browser.wheel(600, 500, 300)
    assert transform(browser)[2] >= 0.02


def test_dragging_pans_and_opens_nothing(show: Any) -> None:
    browser = show(lstm())
    before, shown = transform(browser), items(browser)
    x, y = title_of(shown["LSTM"])
    browser.drag((x, y), (x + 30, y + 10), (x + 120, y - 40))
    after = transform(browser)
    np.testing.assert_allclose(np.subtract(after, before), (120, -40, 0), atol=1)
    assert items(browser).keys() == shown.keys()


def test_keys_zoom_and_move(show: Any) -> None:
    browser = show(lstm())
    x, y, scale = transform(browser)
    browser.keys("+")
    assert transform(browser)[2] == pytest.approx(scale * 1.25, abs=1e-3)
    browser.keys("-", "Right")
    np.testing.assert_allclose(transform(browser), (x - 60, y, scale), atol=0.5)
    browser.keys("1")
    assert transform(browser)[2] == 1
    browser.keys("0")
    np.testing.assert_allclose(transform(browser), (x, y, scale), atol=0.5)


def test_the_card_tells_what_is_known(show: Any) -> None:
    browser = show(lstm())
    card = "const c = document.getElementById('card'); return c.hidden ? null : c.innerText"
    assert browser.run(card) is None
    matmul = next(item for item in browser.run(ITEMS) if item["label"] == f"matmul, {T}×2×12 float32")
    browser.move(*middle(matmul["rect"]))
    lines = browser.run(card).split("\n")
    words = [line for line in lines if line]
    assert words[0] == "matmul"
    pairs = dict(zip(words[1::2], words[2::2], strict=True))
    assert pairs == {
        "kind": "operation",
        "operation": "matmul",
        "shape": f"{T}×2×12",
        "dtype": "float32",
        "size": "4.7 KiB",
        "kept for backward": "4.7 KiB",
        "norm of the gradient": "0.01",
        "from": "xs, W",
        "to": "add",
    }
    assert browser.run("return document.querySelectorAll('.edge.near').length") == 3
    browser.move(*middle(items(browser)["h"]["rect"]))
    assert "mul (gradient 0.5)" in browser.run(card)
    inside = browser.run("""const r = document.getElementById('card').getBoundingClientRect();
        return r.left >= 0 && r.top >= 0 && r.right <= innerWidth && r.bottom <= innerHeight""")
    assert inside
    browser.move(5, WINDOW[1] // 2)
    assert browser.run(card) is None


def found_by(browser: Browser) -> list[str]:
    return sorted(item["label"].split(",")[0] for item in browser.run(ITEMS) if "found" in item["kind"])


def test_search_marks_what_it_finds_and_opens_what_hides_it(show: Any) -> None:
    browser = show(nested())
    browser.keys("/", *"OP 1.1.3")
    hits = "return document.getElementById('hits').textContent"
    assert browser.run(hits) == "1 found"
    assert found_by(browser) == ["layer 1"]
    browser.keys("Enter")
    assert browser.run(hits) == "1 of 1"
    assert found_by(browser) == ["op 1.1.3"]
    x, y = middle(items(browser)["op 1.1.3"]["rect"])
    assert 0 < x < WINDOW[0]
    assert 60 < y < WINDOW[1]
    browser.keys(*"99")
    assert browser.run(hits) == "nothing found"
    browser.keys("Escape")
    assert browser.run(hits) == ""
    assert found_by(browser) == []
    assert browser.run("return document.activeElement === document.body")


def test_search_goes_through_its_finds_in_order(show: Any) -> None:
    browser = show(lstm())
    browser.keys("/", *"getitem")
    current = "return [...document.querySelectorAll('.current')].map((e) => e.dataset.id)"
    assert browser.run(current) == []
    seen = []
    for _ in range(5):
        browser.keys("Enter")
        seen += browser.run(current)
    assert len(set(seen[:4])) == 4
    assert seen[4] == seen[0]
    browser.keys("Enter", holding="Shift")
    assert browser.run(current) == [seen[3]]


def test_the_keyboard_alone_is_enough(show: Any) -> None:
    browser = show(lstm())
    focus = "const a = document.activeElement; return a.getAttribute('aria-label') ?? a.id"
    for _ in range(20):
        browser.keys("Tab")
        if browser.run("return document.getElementById('view').contains(document.activeElement)"):
            break
    assert browser.run("return document.querySelectorAll('#view [tabindex=\"0\"]').length") == 1
    browser.run("document.querySelector('#view .output').focus()")
    browser.keys("Up")
    assert browser.run(focus) == "mul, 2×4 float32"
    assert not browser.run("return document.getElementById('card').hidden")
    browser.keys("Up")
    assert browser.run(focus).split(",")[0] in ("tanh", "o")
    browser.keys("Escape")
    assert browser.run("return document.getElementById('card').hidden")
    browser.run("[...document.querySelectorAll('.group')].find((g) => g.getAttribute('aria-label') === 'LSTMCell').focus()")
    browser.keys("Enter")
    assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "false"
    browser.keys(" ")
    assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
    assert browser.run("return document.querySelectorAll('#view [tabindex=\"0\"]').length") == 1


def rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"


def test_light_and_dark_follow_the_system_or_the_switch(show: Any) -> None:
    browser = show(lstm())
    ground = "return getComputedStyle(document.body).backgroundColor"
    light, dark = rgb(LIGHT["page"]), rgb(DARK["page"])
    theme = "document.getElementById('theme').click()"
    try:
        for system, expected in (("light", light), ("dark", dark)):
            browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": system}])
            assert browser.run(ground) == expected
        browser.run(theme)
        assert browser.run("return document.getElementById('theme').textContent") == "theme: light"
        assert browser.run(ground) == light
        browser.run(theme)
        assert browser.run(ground) == dark
        ink = browser.run("return getComputedStyle(document.querySelector('svg .title')).fill")
        assert ink == rgb(DARK["ink"])
    finally:
        browser.cdp("Emulation.setEmulatedMedia", features=[])


def test_the_legend_names_what_is_there_and_nothing_else(show: Any) -> None:
    browser = show(lstm())
    browser.run("document.querySelector('details').open = true")
    entries = browser.run("return [...document.querySelectorAll('#kinds li')].map((e) => e.textContent)")
    assert "parameter" in entries
    assert "state that a loop carries" in entries
    assert "time step" not in entries
    assert browser.run("return document.getElementById('range').innerText.trim()") == "norm of the gradient, 0.000001 to 1"


def test_names_are_shown_as_they_are_and_run_nothing(show: Any) -> None:
    boxes = tuple(Box(f"b{i}", "input", name, (name[:100],), 0, Facts(name=name, value=name)) for i, name in enumerate(HOSTILE))
    browser = show(Diagram(boxes, (Arrow(0, 1, "data", label=HOSTILE[1]),), (Group("g", "module", HOSTILE[0], (HOSTILE[1],)),)))
    texts = browser.run("return [...document.querySelectorAll('.box .title')].map((t) => t.textContent)")
    assert Counter(texts) == Counter(HOSTILE)
    for item in browser.run(ITEMS)[:3]:
        x, y = middle(item["rect"])
        browser.move(min(max(x, 5), WINDOW[0] - 5), y)
    assert browser.run("return window.hacked === undefined && document.images.length === 0 && document.scripts.length === 2")


def test_the_policy_forbids_the_network_and_foreign_scripts(show: Any, browser: Browser) -> None:
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    show(lstm())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        outcome = browser.run(
            """
            const blocked = [];
            addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            document.body.append(Object.assign(document.createElement("img"), {src: arguments[0] + "/image"}));
            const script = document.createElement("script");
            script.textContent = "window.hacked = 1";
            document.body.append(script, Object.assign(document.createElement("script"), {src: arguments[0] + "/script"}));
            document.body.setAttribute("onclick", "window.hacked = 2");
            document.body.click();
            document.body.removeAttribute("onclick");
            return fetch(arguments[0] + "/fetch").then(() => "fetched", () => "refused").then((fetched) =>
              new Promise((done) => setTimeout(done, 200)).then(() =>
                [fetched, window.hacked ?? null, [...new Set(blocked)].sort()]));
            """,
            url,
        )
        server.shutdown()
    assert outcome == ["refused", None, ["connect-src", "img-src", "script-src-attr", "script-src-elem"]]
    assert asked == []
    assert browser.log()  # it has complained, as it should


@pytest.mark.parametrize("count", [1, 2, 2000])
def test_any_size_is_drawn(show: Any, count: int) -> None:
    browser = show(chain(count))
    assert browser.run("return document.querySelectorAll('#view .box').length") == count
    rects = browser.run(ITEMS)
    assert all(np.isfinite(item["rect"]).all() for item in rects)
    assert rects[0]["rect"][1] > 30  # the top is in the window


def test_many_long_lines_have_few_bends(show: Any) -> None:
    """With one in each rank that they pass, these would have 400,000, and take minutes."""
    boxes, arrows, _ = (getattr(chain(2000), name) for name in ("boxes", "arrows", "groups"))
    browser = show(Diagram(boxes, arrows + tuple(Arrow(i, 1999, "data") for i in range(0, 1990, 5))))
    bends = (
        "return [...document.querySelectorAll('.line')].reduce((n, l) => n + l.getAttribute('d').match(/[MLCQ]/g).length, 0)"
    )
    assert browser.run(bends) < 100_000
    long = [edge for edge in browser.run(EDGES) if edge["to"] == "b1999"]
    assert len(long) == 399
    end = {(round(edge["points"][-1][0]), round(edge["points"][-1][1])) for edge in long}
    assert {y for _, y in end} == {round(items(browser)["op 1999"]["rect"][1])}


def test_nothing_at_all_is_a_page(show: Any) -> None:
    browser = show(Diagram((), notes=("Nothing is drawn.",)))
    assert browser.run("return document.getElementById('notes').textContent") == "Nothing is drawn."


# --- from a computation to the page -----------------------------------------------------------------------------------


@pytest.mark.parametrize("time", ["folded", "unrolled"])
def test_a_computation_becomes_a_page(browser: Browser, tmp_path: Path, time: Any) -> None:
    layer = ts.nn.LSTM(3, 4)
    loss = layer(ts.random.randn((6, 2, 3)))[0].sum()
    picture = ts.draw(loss, names=layer, time=time)
    browser.open(picture.save(tmp_path / "graph.html"))
    browser.move(1, 1)
    assert browser.log() == []
    assert browser.run("return document.title") == "graph"
    seen = {item["id"] for item in browser.run(ITEMS)}
    assert {box.id for box in visible(picture.diagram).boxes if box.kind != "flow"} <= seen
    parameter = next(item for item in browser.run(ITEMS) if item["label"].startswith("weight_ih_l0"))
    browser.run("document.querySelector(`[data-id='${arguments[0]}']`).focus()", parameter["id"])
    browser.keys("Down")
    assert browser.run("return document.activeElement.dataset.id") != parameter["id"]
    browser.run("document.getElementById('close').click()")
    assert "LSTM" in items(browser)
    browser.run("document.getElementById('open').click()")
    drawn = {item["id"] for item in browser.run(ITEMS)}
    assert {box.id for box in picture.diagram.boxes if box.kind != "flow"} <= drawn


def test_gradients_of_a_run_are_a_strip(browser: Browser, tmp_path: Path) -> None:
    layer = ts.nn.LSTM(3, 4)
    loss = layer(ts.random.randn((6, 2, 3)))[0].sum()
    norms = 10.0 ** np.arange(-5, 1)
    browser.open(ts.draw(loss, names=layer, time="folded", gradients={"h": norms}).save(tmp_path / "graph.html"))
    cells = browser.run('return [...document.querySelectorAll(".strip rect")].map((cell) => cell.textContent)')
    assert cells == ["t = 0: 0.00001", "t = 1: 0.0001", "t = 2: 0.001", "t = 3: 0.01", "t = 4: 0.1", "t = 5: 1"]


# --- against a picture that was looked at -----------------------------------------------------------------------------


def coarse(png: bytes) -> np.ndarray:
    """The mean brightness and colour of each tile of 20 by 20 pixels."""
    image = pytest.importorskip("matplotlib.image").imread(io.BytesIO(png))[..., :3]
    height, width = (side // 20 for side in image.shape[:2])
    return image[: 20 * height, : 20 * width].reshape(height, 20, width, 20, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("name", ["lstm", "unrolled"])
def test_the_page_looks_as_it_did(show: Any, name: str) -> None:
    """Fonts differ from machine to machine: boxes may be a little wider or narrower, and move by that."""
    browser = show({"lstm": lstm, "unrolled": unrolled}[name]())
    browser.keys("1")
    browser.keys("0")
    expected = json.loads((GOLDEN / f"draw_{name}.json").read_text("utf-8"))
    rects = {item["id"]: item["rect"] for item in browser.run(ITEMS)}
    assert rects.keys() == expected.keys()
    np.testing.assert_allclose([rects[key] for key in expected], [expected[key] for key in expected], atol=40)
    difference = np.abs(coarse(browser.screenshot()) - coarse((GOLDEN / f"draw_{name}.png").read_bytes())).max(axis=-1)
    assert difference.mean() < 0.02
    assert (difference > 0.25).mean() < 0.02


def write_golden() -> None:
    """Write what the test above compares with; look at it before it is committed."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(Path(folder) / "profile", WINDOW)
        for name, diagram in (("lstm", lstm()), ("unrolled", unrolled())):
            path = Path(folder) / "page.html"
            path.write_text(page(diagram, "a picture"), "utf-8")
            browser.open(path)
            browser.keys("0")
            (GOLDEN / f"draw_{name}.png").write_bytes(browser.screenshot())
            rects = {item["id"]: [round(x, 1) for x in item["rect"]] for item in browser.run(ITEMS)}
            (GOLDEN / f"draw_{name}.json").write_text(json.dumps(rects, separators=(",", ":")) + "\n", "utf-8")
        browser.close()


if __name__ == "__main__":
    write_golden()
