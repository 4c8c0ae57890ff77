"""Large graphs: what is closed, folded or left out until a picture has few boxes, and that the work grows only linearly."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_draw import check_layout, columns, frames, leaf, lstm, rnn, round_trips, titles

import tinyseq as ts
from tinyseq import mode
from tinyseq.draw import Picture, draw
from tinyseq.draw.closing import drawn, fitted
from tinyseq.draw.diagram import Arrow, Box, Diagram, Facts, Group, visible

FEW = 60
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def recurrent(kind: type[ts.nn.Module], steps: int, unroll: bool = False, **options: Any) -> tuple[ts.Tensor, ts.nn.Module]:
    """The loss of a layer, and the layer."""
    ts.manual_seed(0)
    layer = kind(3, 4, **options)  # type: ignore[call-arg]
    layer.unroll = unroll
    return (layer(ts.random.randn((steps, 2, 3)))[0] ** 2).sum(), layer


STACK = {"num_layers": 2, "bidirectional": True}


# --- folded pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [True, False], ids=["tape", "compiled"])
@pytest.mark.parametrize("level", ["both", "operations", "modules"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ts.nn.RNN, {}),
        (ts.nn.GRU, {}),
        (ts.nn.LSTM, {}),
        (ts.nn.GRU, STACK),
        (ts.nn.LSTM, {"num_layers": 6, "bidirectional": True}),
    ],
    ids=["rnn", "gru", "lstm", "gru-stack", "lstm-deep"],
)
def test_a_folded_picture_has_few_boxes_and_as_many_whatever_t_is(kind: Any, options: Any, level: Any, unroll: bool) -> None:
    def count(steps: int, **more: Any) -> int:
        loss, layer = recurrent(kind, steps, unroll, **options)
        return len(draw(loss, names=layer, time="folded", level=level, **more)._seen.boxes)

    assert count(4) == count(24) < FEW
    assert count(4, backward=True) == count(24, backward=True) < 2 * FEW


def test_of_layers_and_directions_that_are_alike_one_is_open() -> None:
    loss, layer = recurrent(ts.nn.GRU, 10, **STACK)
    picture = draw(loss, names=layer)
    closed = [(box.title, box.lines[-1], box.facts.parameters) for box in picture._seen.boxes if box.kind == "loop"]
    parameters = [
        sum(p.size for n, p in layer.named_parameters() if n.endswith(end)) for end in ("l0_reverse", "l1", "l1_reverse")
    ]
    assert closed == [
        ("loop 2 × 10, t = 9 … 0", "as loop 1 × 10", parameters[0]),
        ("loop 3 × 10", "as loop 1 × 10", parameters[1]),
        ("loop 4 × 10, t = 9 … 0", "as loop 1 × 10", parameters[2]),
    ]
    # What stays open is as detailed as in a picture of one direction alone, with what is hoisted out of its loop.
    assert frames(picture._seen) == ["GRU", "loop 1 × 10", "loop × 10", "once", "before the loop, for all t at once"]
    single = draw(recurrent(ts.nn.GRU, 10)[0])._seen

    def inside(drawn: Diagram) -> Counter[str]:
        return Counter(box.title for box in drawn.boxes if box.group is not None and drawn.groups[box.group].kind == "loop")

    assert inside(picture._seen) == inside(single)
    assert round_trips(picture._seen) == round_trips(single)
    everything = draw(loss, names=layer, limit=1000)
    assert picture.notes == (
        f"3 frames are closed: all open would be {len(everything._seen.boxes)} boxes, more than limit=59.",
    )
    assert everything.notes == ()
    check_layout(picture._seen, lines=False)


def test_notes_are_on_the_picture_in_the_text_and_on_the_page_also_without_a_legend() -> None:
    loss, layer = recurrent(ts.nn.GRU, 10, **STACK)
    for legend in (True, False):
        picture = draw(loss, names=layer, legend=legend)
        (note,) = picture.notes
        assert note in " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg())).replace("\xa0", " ")
        assert f"# {note}" in picture.text()
        assert note in picture.html()
        assert (">parameter</font>" in picture.dot) == legend


def test_all_that_is_closed_is_still_in_the_diagram() -> None:
    loss, layer = recurrent(ts.nn.LSTM, 10, **STACK)
    picture, everything = draw(loss, names=layer), draw(loss, names=layer, limit=1000)
    assert {box.id for box in everything.diagram.boxes} == {box.id for box in picture.diagram.boxes}
    assert {(a.tail, a.head) for a in picture.diagram.arrows}
    named = [
        {(d.boxes[a.tail].id, d.boxes[a.head].id, a.kind) for a in d.arrows} for d in (picture.diagram, everything.diagram)
    ]
    assert named[0] == named[1]


def test_norms_of_closed_loops_are_one_strip_below() -> None:
    layer = ts.nn.GRU(3, 4, **STACK)
    xs = ts.random.randn((10, 2, 3))
    with ts.trace_gradients() as flow:
        (layer(xs)[0] ** 2).sum().backward()
    picture = draw((layer(xs)[0] ** 2).sum(), names=layer, gradients=flow)
    strips = {tuple(name for name, _ in box.facts.flow): box for box in picture._seen.boxes if box.kind == "flow"}
    assert set(strips) == {("GRU",), ("GRU 2", "GRU 3", "GRU 4")}
    for box in strips.values():
        for name, norms in box.facts.flow:
            np.testing.assert_allclose(norms, flow[name], rtol=1e-12)
    assert strips["GRU",].group != strips["GRU 2", "GRU 3", "GRU 4"].group
    assert len(picture._seen.boxes) <= FEW
    check_layout(picture._seen, lines=False)


def test_the_limit_is_what_is_asked_for() -> None:
    loss, layer = recurrent(ts.nn.LSTM, 10, **STACK)
    counts = [len(draw(loss, names=layer, limit=limit)._seen.boxes) for limit in (5, 20, 40, 80, 100, 120, 1000)]
    assert all(count <= limit for count, limit in zip(counts, (5, 20, 40, 80, 100, 120, 1000), strict=True))
    assert counts == sorted(counts)
    assert counts[-1] > 120


def test_a_model_without_loops_is_drawn_whole_up_to_300_boxes_and_then_its_layers_are_closed() -> None:
    def layers(count: int) -> Picture:
        model = ts.nn.Sequential(*(ts.nn.Sequential(ts.nn.Linear(3, 3), ts.tanh) for _ in range(count)))
        return draw(model, ts.zeros((2, 3)), names=model)

    assert (len(layers(40)._seen.boxes), layers(40).notes) == (40 * 6 + 1, ())
    picture = layers(100)
    assert picture.notes == ("99 frames are closed: all open would be 601 boxes, more than limit=300.",)
    assert titles(picture._seen, "module") == [f"{k}: Sequential" for k in range(100)][1:]
    assert {box.lines[-1] for box in picture._seen.boxes if box.kind == "module"} == {"as 0: Sequential"}
    assert len(titles(picture._seen, "parameter")) == 2


def test_of_more_layers_than_fit_the_last_are_drawn() -> None:
    model = ts.nn.Sequential(*(ts.nn.Sequential(ts.nn.Linear(3, 3), ts.tanh) for _ in range(400)))
    picture = draw(model, ts.zeros((2, 3)), names=model)
    assert [note for note in picture.notes if "far from the output are not drawn" in note]
    assert 280 < len(picture._seen.boxes) <= 300
    assert {"399.0.weight", "399.0.bias"} <= set(titles(picture._seen, "parameter"))


def test_layers_are_no_loop() -> None:
    model = ts.nn.Sequential(*(ts.nn.Sequential(ts.nn.Linear(3, 3), ts.tanh) for _ in range(5)))
    for options in ({}, {"time": "folded"}, {"time": "unrolled", "backward": False}):
        seen = draw(model, ts.zeros((2, 3)), names=model, **options)._seen  # type: ignore[arg-type]
        assert len(titles(seen, "parameter")) == 10
        assert "loop" not in {group.kind for group in seen.groups}
    tied, x = ts.nn.Linear(3, 3), leaf(2, 3)
    for _ in range(5):
        x = tied(x).tanh()
    assert "repeated × 5" in frames(draw(x, names=tied, time="folded")._seen)


def test_what_was_asked_for_is_shown_though_it_is_in_a_step() -> None:
    w, h = leaf(2, 2), leaf(1, 2)
    for t in range(4):
        with mode.scope("step", t):
            h = (h @ w).tanh()
    picture = draw(h, names={"w": w}, time="folded")
    assert titles(picture._seen, "output") == ["tanh"]
    assert picture.text().endswith("\n-> b")


# --- closing, by itself -----------------------------------------------------------------------------------------------


def stack(depth: int, wide: int, kind: Any = "module") -> Diagram:
    """Groups in groups, ``wide`` in each, with three boxes in each innermost one."""
    groups: list[Group] = []
    boxes: list[Box] = []
    level: list[int | None] = [None]
    for d in range(depth):
        inner: list[int | None] = []
        for parent in level:
            for k in range(wide):
                groups.append(Group(f"g{len(groups)}", kind, f"{k}: L{d}.{k}", (), parent))
                inner.append(len(groups) - 1)
        level = inner
    for g in level:
        boxes += [Box(f"b{len(boxes) + i}", "operation", f"{i}", (), g, Facts(operation=f"op {g} {i}")) for i in range(3)]
    return Diagram(tuple(boxes), tuple(Arrow(i, i + 1, "data") for i in range(len(boxes) - 1)), tuple(groups))


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_closing_goes_no_further_than_it_must(depth: int, wide: int, limit: int) -> None:
    whole = stack(depth, wide)
    result = fitted(whole, limit)
    if drawn(whole) <= limit:
        assert result == whole
        return
    assert drawn(result) <= max(limit, wide)
    closed = [g for g, group in enumerate(result.groups) if not group.open]
    for g in closed:  # each was needed
        again = Diagram(
            result.boxes,
            result.arrows,
            tuple(Group(h.id, h.kind, h.title, (), h.parent, h.open or k == g) for k, h in enumerate(result.groups)),
        )
        inner = [h for h in closed if result.groups[h].parent == g]
        assert drawn(again) > limit - 3 * wide or inner or drawn(result) == wide


def test_the_deepest_are_closed_first_and_loops_last() -> None:
    groups = (Group("m", "module", "M"), Group("n", "module", "N", (), 0), Group("l", "loop", "loop", (), 0))
    groups += (Group("s", "part", "step", (), 2),)
    where = (0, 1, 1, 2, 2, 3, 3, 3, None)
    boxes = tuple(Box(f"b{i}", "operation", f"b{i}", (), g) for i, g in enumerate(where))
    whole = Diagram(boxes, (), groups)
    closed = [[group.id for group in fitted(whole, limit).groups if not group.open] for limit in (9, 8, 7, 6, 5, 2)]
    assert closed == [[], ["s"], ["s"], ["n", "s"], ["n", "l", "s"], ["m", "n", "l", "s"]]


def test_what_is_in_columns_closes_in_all_of_them() -> None:
    groups = [Group("l", "loop", "loop")]
    boxes = []
    for t in range(3):
        groups += [Group(f"t{t}", "step", f"t = {t}", (), 0), Group(f"c{t}", "module", "Cell", (), 1 + 2 * t)]
        boxes += [Box(f"b{t}{i}", "operation", "tanh", (), 2 + 2 * t) for i in range(4)]
    seen = visible(fitted(Diagram(tuple(boxes), (), tuple(groups)), 11))
    assert [box.title for box in seen.boxes] == ["Cell"] * 3
    assert [group.title for group in seen.groups] == ["loop", "t = 0", "t = 1", "t = 2"]


# --- loops in loops ---------------------------------------------------------------------------------------------------


def nested(outer: int, inner: int) -> tuple[ts.Tensor, dict[str, ts.Tensor]]:
    names = {"w": leaf(2, 2), "x": leaf(1, 2)}
    h = names["x"]
    for t in range(outer):
        with mode.scope("step", t):
            for k in range(inner):
                with mode.scope("step", k):
                    h = (h @ names["w"]).tanh()
            h = h.exp()
    return h.sum(), names


@pytest.mark.parametrize("time", ["unrolled", None])
def test_a_loop_in_a_step_is_drawn_once_in_each_column(time: Any) -> None:
    loss, names = nested(6, 4)
    picture = draw(loss, names=names, time=time, backward=False)
    seen = picture._seen
    assert [title for _, title in columns(seen)] == ["t = 0", "t = 1", "t = 2", None, "t = 5"]
    assert Counter(frames(seen))["loop × 4"] == 4
    assert Counter(titles(seen, "operation")) == Counter({"matmul": 4, "tanh": 4, "exp": 4})
    assert round_trips(seen).count(("tanh", "carry")) == 4
    assert round_trips(seen).count(("exp", "carry")) == 2
    assert picture.notes == ("Loops inside the steps are drawn once.",)
    check_layout(seen, lines=False)


def test_the_way_back_through_nested_loops_mirrors_them() -> None:
    loss, names = nested(6, 4)
    seen = draw(loss, names=names, time="unrolled")._seen
    assert Counter(frames(seen))["backward: loop × 4, t = 3 … 0"] == 4
    assert Counter(titles(seen, "carry")) == Counter({"carry": 4, "∂ carry": 4})
    assert Counter(titles(seen, "gap")) == Counter({"… 2 more steps …": 2})


def test_a_compiled_scan_in_a_step_is_drawn_once_in_each_column() -> None:
    w, x = leaf(2, 2), leaf(1, 2)

    def inner(h: ts.Tensor, z: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h = (h @ w + z).tanh()
        return h, h

    def outer(h: ts.Tensor, z: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h, ys = ts.scan(inner, h, z)
        return h, ys.sum()

    h, ys = ts.scan(outer, x, ts.zeros((6, 9, 1, 2)), unroll=True)
    picture = draw(ys.sum() + h.sum(), names={"w": w, "x": x}, time="unrolled")
    assert Counter(frames(picture._seen))["loop × 9"] == 4
    assert Counter(frames(picture._seen))["backward loop × 9, t = 8 … 0"] == 4
    assert "Loops inside the steps are drawn once." in picture.notes


# --- text -------------------------------------------------------------------------------------------------------------


def undefined(picture: Picture) -> list[tuple[str, str]]:
    """The lines of the text that use a name before the line that gives it, but for what a loop carries."""
    known: set[str] = set()
    found = []
    lines = [line.strip() for line in picture.text().splitlines()]
    given = [re.match(r"(?:parameter|input|constant|carry )?\s*([\w.∂ ]+?): \w+\[", line) for line in lines]
    names = {match[1].strip() for match in given if match}
    for line, match in zip(lines, given, strict=True):
        _, equals, right = line.partition(" = ")
        if match and equals and not line.startswith(("next", "parameter", "input", "constant")):
            used = set(re.findall(r"[(\[, ]((?:∂ )?[A-Za-z_][\w.]*)(?=[,)\]\[])", f"({right})"))
            found += [(name, line) for name in sorted(used & names - known)]
        if match:
            known.add(match[1].strip())
    return found


TEXTS: dict[str, Callable[[], Picture]] = {
    "directions": lambda: draw(recurrent(ts.nn.GRU, 10, **STACK)[0]),
    "traced": lambda: draw(two_layers, ts.zeros((5, 2, 4))),
    "modules": lambda: draw(recurrent(ts.nn.GRU, 10, **STACK)[0], level="modules", time="folded"),
    "tape": lambda: draw(recurrent(ts.nn.LSTM, 4, unroll=True)[0], limit=1000),
    "backward": lambda: draw(recurrent(ts.nn.RNN, 5)[0], backward=True),
}


LAYERS = ts.nn.RNN(4, 4), ts.nn.RNN(4, 4)


def two_layers(x: ts.Tensor) -> ts.Tensor:
    ys, state = LAYERS[0](x)
    return LAYERS[1](ys)[0] * state[-1] + ys


@pytest.mark.parametrize("name", TEXTS)
def test_a_line_of_the_text_stands_below_those_that_it_uses(name: str) -> None:
    picture = TEXTS[name]()
    assert len(picture.text().splitlines()) > 10
    assert undefined(picture) == []


def test_a_group_stands_below_what_any_of_it_uses() -> None:
    groups = (Group("g", "part", "G"), Group("h", "part", "H"))
    boxes = (
        Box("x", "input", "x", (), None, Facts(name="x")),
        Box("a", "operation", "a", (), 0, Facts(operation="a")),
        Box("b", "operation", "b", (), 1, Facts(operation="b")),
        Box("c", "operation", "c", (), 0, Facts(operation="c")),
        Box("d", "output", "d", (), None, Facts(operation="d")),
    )
    lines = (Arrow(0, 1, "data", (0,)), Arrow(0, 2, "data", (0,)), Arrow(1, 3, "data", (0,)), Arrow(2, 3, "data", (1,)))
    whole = Diagram(boxes, (*lines, Arrow(3, 4, "data", (0,))), groups, (), (4,))
    assert Picture(whole, seconds=1.0).text().splitlines() == [
        "input x",
        "H {",
        "  a = b(x)",
        "}",
        "G {",
        "  b = a(x)",
        "  c = c(b, a)",
        "}",
        "d = d(c)",
        "-> d",
    ]


def test_the_text_of_a_backward_pass_names_what_was_kept_and_says_how_it_is_cut() -> None:
    w, x = leaf(3, 4), leaf(2, 4)
    _, ys = ts.scan(lambda h, z: ((ts.concatenate([h, z], -1) @ leafy).tanh(),) * 2, x, ts.zeros((5, 2, 3)) + w[:, :3].sum())
    text = draw(ys.sum(), names={"w": w, "x": x}, backward=True).text()
    assert "#" not in re.sub(r"  # .*", "", text)
    tanh = re.search(r"(\w+): float32\[2,4\] = tanh\(", text)
    assert tanh is not None
    assert len(re.findall(rf"= mul\(\w+, {tanh[1]}\)", text)) == 2  # g - g y y
    assert re.search(r"= permute\(.*axes=\(-1, -2\)\)", text)


leafy = ts.tensor(np.full((7, 4), 0.1, "float32"), requires_grad=True)


# --- work -------------------------------------------------------------------------------------------------------------


def work(run: Callable[[], object]) -> int:
    """How many lines of the package's code are run, those of each turn of a loop counted."""
    folder = os.path.join(os.path.dirname(ts.__file__), "draw", "")
    count = 0

    def line(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return line

    def call(frame: Any, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename.startswith(folder) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


def chained(count: int) -> tuple[ts.Tensor, Any]:
    """The same few operations again and again, without frames, with something that all of them use."""
    x = leaf(1)
    hub = y = x.exp()
    for _ in range(count // 2):
        y = (y + hub).tanh()
    return y, {"x": x}


def different(count: int) -> tuple[ts.Tensor, Any]:
    """Operations of which no steps are alike."""
    x = y = leaf(2)
    functions = [ts.tanh, ts.sin, ts.cos]
    for i in np.random.default_rng(0).integers(3, size=count):
        y = functions[i](y)
    return y, {"x": x}


def layered(count: int) -> tuple[ts.Tensor, Any]:
    """Modules, one after the other."""
    model = ts.nn.Sequential(*(ts.nn.Sequential(ts.nn.Linear(2, 2), ts.tanh) for _ in range(count // 4)))
    return model(leaf(1, 2)), model


SIZES = {
    "chain": chained,
    "different": different,
    "layers": layered,
    "rnn": lambda n: rnn(n // 5),
    "lstm": lambda n: lstm(n // 18),
}


@pytest.mark.parametrize("options", [{}, {"time": "folded"}, {"time": "unrolled"}], ids=["plain", "folded", "unrolled"])
@pytest.mark.parametrize("build", SIZES.values(), ids=SIZES)
def test_twice_the_operations_are_twice_the_work_and_no_larger_picture(build: Callable[[int], Any], options: Any) -> None:
    drawn, texts = [], []
    for count in (1000, 2000, 4000):
        tensor, names = build(count)

        def run(tensor: ts.Tensor = tensor, names: Any = names) -> None:
            picture = draw(tensor, names=names, values=0, **options)
            texts.append((len(picture.dot), len(picture._seen.boxes)))
            picture.text()

        drawn.append(work(run))
    assert drawn[1] < 2.3 * drawn[0]
    assert drawn[2] < 2.3 * drawn[1]
    # What Graphviz is given, whose layout is not linear, does not grow.
    assert texts[2][0] < 1.1 * texts[0][0] + 100
    assert max(boxes for _, boxes in texts) <= 310


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_any_limit_gives_a_picture(limit: int) -> None:
    for tensor, names in (different(50), layered(40), lstm(4), recurrent(ts.nn.GRU, 4, **STACK)):
        for time in (None, "folded", "unrolled"):
            picture = draw(tensor, names=names, limit=limit, time=time)  # type: ignore[arg-type]
            assert picture._seen.boxes
            assert picture.notes
            assert picture.text()


@pytest.mark.parametrize("hub", [True, False], ids=["operation", "leaf"])
def test_a_hundred_thousand_operations_are_drawn(hub: bool) -> None:
    """Without recursion, and without arrows so long that the layout takes minutes."""
    x = leaf(1)
    shared = y = x.exp() if hub else x
    for _ in range(50_000):
        y = (y + shared).tanh()
    picture = draw(y)
    content = picture.png()
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert max(width, height) <= 16_001
    assert "… 49,996 more steps …" in picture.dot
    assert len(picture._seen.boxes) < 20


def test_a_thousand_unrolled_steps_of_an_lstm_fold() -> None:
    loss, cell = lstm(1000)
    picture = draw(loss, names=cell)
    assert "… 996 more steps …" in picture.dot
    assert picture.svg().count('class="node"') == len(picture._seen.boxes) + 1  # the legend
    folded = draw(loss, names=cell, time="folded")
    assert "loop × 1,000" in folded.dot
    assert folded.svg().count('class="node"') == len(folded._seen.boxes) + 1 < FEW


# --- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_counts_the_boxes_and_says_whether_its_aims_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_of_drawing", BENCHMARKS / "drawing.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    name = "two-layer bidirectional GRU, T = 10, folded"
    row = drawing.measured(name, drawing.cases()[name], 2)
    forward, options, _ = drawing.cases()[name]
    assert row["boxes"] == len(draw(forward(), **options)._seen.boxes)
    assert min(row["record"], row["text"], row["svg"]) > 0
    assert drawing.verdict(row) == "met (< 60 boxes)"
    assert drawing.verdict({**row, "boxes": 60, "aim": 0.0}) == "missed (< 0 s), missed (< 60 boxes)"
    assert drawing.table([row])[1][:2] == [name, str(row["boxes"])]
