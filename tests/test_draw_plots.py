"""Plots of a run: the values and the words that are drawn, what cannot be drawn, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.draw import DrawError
from tinyseq.draw.plots import _outline, _smoothed, attention, curves, gradient_flow
from tinyseq.errors import ShapeError

matplotlib = pytest.importorskip("matplotlib")
FigureCanvasAgg = pytest.importorskip("matplotlib.backends.backend_agg").FigureCanvasAgg

NAN, INF = float("nan"), float("inf")


def image(axes):
    (found,) = axes.get_images()
    return found


def words(labels) -> list[str]:
    return [label.get_text() for label in labels]


def hatched(axes) -> dict[str, list[tuple[float, float, float, float]]]:
    """The rectangles (left, bottom, right, top) of each kind that no colour stands for."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for collection in axes.collections:
        for path in collection.get_paths():
            found.setdefault(collection.get_gid(), []).append(tuple(path.get_extents().extents.tolist()))
    return found


def overlap(figure, labels) -> bool:
    """Whether two labels in a row touch each other."""
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    return any(a.overlaps(b) for a, b in pairwise(boxes))


def inside(figure) -> bool:
    """Whether all that is drawn lies within the picture, a hundredth of an inch aside."""
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) > -0.01


# --- gradient flow ----------------------------------------------------------------------------------------------------


def test_gradient_flow_draws_the_norms_themselves_on_a_logarithmic_scale() -> None:
    flow = {"rnn": [1e-8, 1e-4, 1.0], "lstm": [0.25, 0.5, 2.0]}
    figure = gradient_flow(flow)
    axes, bar = figure.axes
    np.testing.assert_array_equal(image(axes).get_array(), [[1e-8, 1e-4, 1.0], [0.25, 0.5, 2.0]])
    norm = image(axes).norm
    assert isinstance(norm, matplotlib.colors.LogNorm)
    assert (norm.vmin, norm.vmax) == (1e-8, 2.0)
    assert words(axes.get_yticklabels()) == ["rnn", "lstm"]
    assert (axes.get_xlabel(), bar.get_ylabel()) == ("time step t", "‖∂L/∂hₜ‖")
    assert hatched(axes) == {}
    assert figure.legends == []


def test_gradient_flow_takes_arrays_and_tensors() -> None:
    norms = np.array([[0.5, 1.0], [2.0, 4.0]], np.float32)
    for flow in (norms, ts.tensor(norms), {"layer 0": ts.tensor(norms[0], requires_grad=True), "layer 1": norms[1]}):
        axes = gradient_flow(flow).axes[0]
        np.testing.assert_array_equal(image(axes).get_array(), norms)
        assert words(axes.get_yticklabels()) == ["layer 0", "layer 1"]
    np.testing.assert_array_equal(image(gradient_flow([1.0, 3.0]).axes[0]).get_array(), [[1.0, 3.0]])


def test_zero_infinite_and_nan_are_hatched_and_explained() -> None:
    figure = gradient_flow({"a": [0.0, 0.0, 1.0, NAN], "b": [INF, 0.1, 0.0]})
    axes = figure.axes[0]
    assert hatched(axes) == {
        "zero": [(-0.5, -0.5, 1.5, 0.5), (1.5, 0.5, 2.5, 1.5)],
        "infinite": [(-0.5, 0.5, 0.5, 1.5)],
        "not a number": [(2.5, -0.5, 3.5, 0.5)],
    }
    array = image(axes).get_array()
    assert array.mask.tolist() == [[True, True, False, True], [True, False, True, True]]  # b has three steps only
    assert array.compressed().tolist() == [1.0, 0.1]
    assert words(figure.legends[0].get_texts()) == ["zero", "infinite", "not a number"]
    assert (image(axes).norm.vmin, image(axes).norm.vmax) == (0.1, 1.0)


@pytest.mark.parametrize("flow", [[0.0, 0.0], [NAN], [INF, 0.0], [2.0], [1e-300, 5e-324]])
def test_where_there_is_no_range_there_is_a_picture(flow: list[float]) -> None:
    figure = gradient_flow(flow)
    figure.draw_without_rendering()
    assert image(figure.axes[0]).norm.vmin < image(figure.axes[0]).norm.vmax


def test_limits_are_those_that_were_asked_for() -> None:
    figure = gradient_flow([1e-9, 1.0], limits=(1e-4, 10.0))
    norm = image(figure.axes[0]).norm
    assert (norm.vmin, norm.vmax) == (1e-4, 10.0)
    for limits in ((0.0, 1.0), (1.0, 1.0), (1.0, INF)):
        with pytest.raises(ValueError, match="positive and in order"):
            gradient_flow([1.0], limits=limits)


def test_what_is_no_flow_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(T,\) or \(layers, T\), not \(1, 1, 1\)"):
        gradient_flow(np.ones((1, 1, 1)))
    with pytest.raises(ShapeError, match=r"'x' has shape \(2, 2\)"):
        gradient_flow({"x": np.ones((2, 2))})
    for empty in ({}, {"x": []}, []):
        with pytest.raises(ShapeError, match="no norms at all"):
            gradient_flow(empty)
    with pytest.raises(ValueError, match=r"'x' has -2 at t = 1"):
        gradient_flow({"x": [1.0, -2.0]})


def test_one_step_among_thousands_is_seen() -> None:
    flow = np.ones((2, 5000))
    flow[1, 1234] = NAN
    figure = gradient_flow(flow)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3].astype(int)
    axes = figure.axes[0]
    (left, y), (right, _) = (axes.transData.transform(point).astype(int) for point in ((1100, 1.2), (1400, 1.2)))
    row = np.abs(pixels[y, left:right] - pixels[y, left]).max(axis=-1)
    (seen,) = np.nonzero(row > 60)
    assert 1 <= len(seen) <= 4
    assert abs(axes.transData.inverted().transform((left + seen.mean(), y))[0] - 1234) < 15


# --- attention --------------------------------------------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def test_attention_draws_the_weights_and_the_tokens() -> None:
    weights = [[0.9, 0.1, 0.0], [0.25, 0.5, 0.25]]
    figure = attention(weights, ["the", "cat", "."], ["le", "chat"], title="English to French")
    axes = figure.axes[0]
    np.testing.assert_array_equal(image(axes).get_array(), weights)
    assert (image(axes).norm.vmin, image(axes).norm.vmax) == (0.0, 0.9)
    assert words(axes.get_xticklabels()) == ["the", "cat", "."]
    assert axes.get_xticks().tolist() == [0, 1, 2]
    assert words(axes.get_yticklabels()) == ["le", "chat"]
    assert axes.get_ylim() == (1.5, -0.5)  # the first token stands at the top
    assert (figure.get_supxlabel(), figure.get_supylabel(), figure.get_suptitle()) == ("source", "target", "English to French")


def test_without_tokens_there_are_positions() -> None:
    axes = attention(np.full((2, 4), 0.25)).axes[0]
    assert words(axes.get_xticklabels()) == ["0", "1", "2", "3"]
    assert words(axes.get_yticklabels()) == ["0", "1"]


def test_heads_are_small_multiples_with_the_same_colours(rng: np.random.Generator) -> None:
    weights = softmax(rng.standard_normal((5, 3, 4)))
    figure = attention(ts.tensor(weights), list("abcd"), list("xyz"))
    heads = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in heads] == [f"head {i}" for i in range(5)]
    for axes, weight in zip(heads, weights, strict=True):
        np.testing.assert_array_equal(image(axes).get_array(), weight)
        assert (image(axes).norm.vmin, image(axes).norm.vmax) == (0.0, weights.max())
    figure.draw_without_rendering()

    def shown(labels) -> bool:
        return any(label.get_visible() and label.get_text() for label in labels)

    # Three columns and two rows, of which the second has two: tokens stand below the last head of each column.
    assert [shown(axes.get_xticklabels()) for axes in heads] == [False, False, True, True, True]
    assert [shown(axes.get_yticklabels()) for axes in heads] == [True, False, False, True, False]
    named = attention({"first": weights[0], "second": weights[1]})
    assert [axes.get_title() for axes in named.axes[:2]] == ["first", "second"]


def test_masked_rows_are_hatched() -> None:
    figure = attention([[NAN, NAN], [0.5, 0.5]])
    assert hatched(figure.axes[0]) == {"not a number": [(-0.5, -0.5, 1.5, 0.5)]}
    assert words(figure.legends[0].get_texts()) == ["not a number"]


HARD = ["internationalisation" * 5, "$x^", " ", "\n", "\ta ", "", "</script>", "\x00", "a\nb", "_{}\\"]


def test_any_token_is_shown_as_it_is() -> None:
    figure = attention(np.eye(10), HARD, HARD)
    expected = ["internationa…ionalisation"[:24], "$x^", "␣", "⏎", "⇥a␣", "∅", "</script>", "�", "a b", "_{}\\"]
    shown = words(figure.axes[0].get_xticklabels())
    assert shown[1:] == expected[1:]
    assert len(shown[0]) == 24
    assert shown[0].startswith("international"[:12])
    assert inside(figure)
    assert not overlap(figure, figure.axes[0].get_xticklabels())


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 200), (150, 4), (120, 200), (60, 60)])
def test_labels_do_not_overlap_and_nothing_is_cut_off(rows: int, columns: int) -> None:
    source = [f"token{i}" for i in range(columns)]
    figure = attention(np.full((rows, columns), 1 / columns), source, [f"word{i}" for i in range(rows)], title="T")
    axes = figure.axes[0]
    assert not overlap(figure, axes.get_xticklabels())
    assert not overlap(figure, axes.get_yticklabels())
    assert inside(figure)
    assert max(figure.get_size_inches()) < 16
    every = int(np.diff(axes.get_xticks())[0]) if len(axes.get_xticks()) > 1 else 1
    assert words(axes.get_xticklabels()) == source[::every]


def test_what_is_no_attention_is_refused() -> None:
    for wrong in (np.ones(3), np.ones((1, 1, 1, 1)), np.ones((0, 3))):
        with pytest.raises(ShapeError, match=r"\(S_out, S_in\), or \(heads, S_out, S_in\)"):
            attention(wrong)
    with pytest.raises(ShapeError, match="no weights at all"):
        attention({})
    with pytest.raises(ShapeError, match="3 source positions, but there are 2 source tokens"):
        attention(np.ones((2, 3)), ["a", "b"])
    with pytest.raises(ShapeError, match="2 target positions, but there are 3 target tokens"):
        attention(np.ones((2, 3)), None, ["a", "b", "c"])
    with pytest.raises(ShapeError, match="heads differ"):
        attention({"a": np.ones((2, 3)), "b": np.ones((3, 2))})
    for value in (-0.1, INF):
        with pytest.raises(ValueError, match="scores before the softmax"):
            attention([[value, 0.5]])


# --- loss curves ------------------------------------------------------------------------------------------------------


def lines(figure) -> dict[str, tuple[list[float], list[float]]]:
    """The lines by their labels, raw ones under "raw", without the marks of what is not finite."""
    return {
        line.get_gid() or line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in figure.axes[0].get_lines()
        if line.get_marker() != "x"
    }


def test_few_values_are_drawn_as_they_are() -> None:
    figure = curves([3.0, 2.0, 1.5])
    assert lines(figure) == {"loss": ([0.0, 1.0, 2.0], [3.0, 2.0, 1.5])}
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "loss")
    assert figure.axes[0].get_legend() is None


def test_the_raw_line_stands_behind_the_smoothed_one() -> None:
    figure = curves({"training": [4.0, 2.0, 1.0]}, smooth=0.5)
    drawn = lines(figure)
    assert drawn["raw"][1] == [4.0, 2.0, 1.0]
    # Weights 1; 1/2, 1; 1/4, 1/2, 1.
    np.testing.assert_allclose(drawn["training"][1], [4.0, (2 + 2) / 1.5, (1 + 1 + 1) / 1.75], rtol=1e-14)
    raw, smooth = figure.axes[0].get_lines()
    assert raw.get_color() == smooth.get_color()
    assert raw.get_alpha() < 1
    assert raw.get_zorder() <= smooth.get_zorder()


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 0.999))
def test_smoothing_is_a_weighted_mean(values: list[float], weight: float) -> None:
    n = len(values)
    table = np.array([[weight ** (i - k) if k <= i else 0.0 for k in range(n)] for i in range(n)])
    expected = table @ values / table.sum(axis=1)
    np.testing.assert_allclose(_smoothed(np.array(values), weight), expected, rtol=1e-9, atol=1e-6)


def test_runs_are_given_in_any_of_three_forms() -> None:
    by_name = {"loss": [3.0, 2.0], "held out": [(0, 3.5), (1, 2.5)]}
    rows = [{"step": 0, "loss": 3.0, "held out": 3.5}, {"step": 1, "loss": 2.0, "held out": 2.5}]
    assert lines(curves(by_name)) == lines(curves(rows)) == {"loss": ([0.0, 1.0], [3.0, 2.0]), "held out": ([0, 1], [3.5, 2.5])}
    sparse = curves([{"loss": 3.0}, {"loss": 2.0, "held out": 2.5}])
    assert lines(sparse)["held out"] == ([1.0], [2.5])
    assert lines(curves(ts.tensor([3.0, 2.0]))) == {"loss": ([0.0, 1.0], [3.0, 2.0])}


def test_what_is_not_finite_is_marked_and_left_out_of_the_mean() -> None:
    figure = curves([4.0, NAN, 2.0, INF], smooth=0.5)
    axes = figure.axes[0]
    np.testing.assert_allclose(lines(figure)["loss"], ([0.0, 2.0], [4.0, 4 / 1.5]), rtol=1e-14)
    (marks, key) = (line for line in axes.get_lines() if line.get_marker() == "x")
    assert (marks.get_xdata().tolist(), marks.get_ydata().tolist()) == ([1.0, 3.0], [1.0, 1.0])
    assert marks.get_transform() == axes.get_xaxis_transform()  # at the top, whatever the values are
    assert key.get_label() == "not finite"
    assert words(axes.get_legend().get_texts()) == ["loss", "not finite"]
    assert lines(curves([1.0, 0.0, -1.0, 2.0], log=True))["loss"] == ([0.0, 3.0], [1.0, 2.0])
    curves([NAN, INF]).draw_without_rendering()


def test_many_runs_are_told_apart_and_their_legend_covers_none() -> None:
    figure = curves({f"run {i}": [float(i), i + 1.0] for i in range(13)})
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()}
    assert len(styles) == 13
    (legend,) = figure.legends
    figure.draw_without_rendering()
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())
    assert inside(figure)


def test_a_long_noisy_run_keeps_its_extremes(rng: np.random.Generator) -> None:
    values = rng.standard_normal(200_000)
    steps, kept = _outline(np.arange(200_000.0), values)
    assert len(kept) == 5000
    assert (kept.min(), kept.max()) == (values.min(), values.max())
    assert (np.diff(steps) >= 0).all()
    np.testing.assert_array_equal(values[steps.astype(int)], kept)


def test_what_are_no_curves_is_refused() -> None:
    with pytest.raises(ValueError, match=r"smooth must be at least 0 and below 1, not 1"):
        curves([1.0], smooth=1.0)
    for empty in ({}, [], {"a": []}):
        with pytest.raises(ShapeError):
            curves(empty)
    with pytest.raises(ShapeError, match=r"pairs \(N, 2\).*not \(1, 3\) of 'x'"):
        curves({"x": [[1.0, 2.0, 3.0]]})


# --- all of them ------------------------------------------------------------------------------------------------------

ALL = [
    lambda **o: gradient_flow([0.1, 1.0], **o),
    lambda **o: attention([[0.5, 0.5]], **o),
    lambda **o: curves([1.0, 2.0], **o),
]


@pytest.mark.parametrize("plot", ALL, ids=["gradient_flow", "attention", "curves"])
def test_a_plot_is_a_figure_that_saves_in_both_themes(plot, tmp_path: Path) -> None:
    corners = {}
    for theme in ("light", "dark"):
        figure = plot(theme=theme, title="costs $5 or $6")
        assert isinstance(figure, matplotlib.figure.Figure)
        figure.savefig(tmp_path / "a.png")
        corners[theme] = matplotlib.image.imread(tmp_path / "a.png")[0, 0, :3].mean()
        assert figure._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")
        assert inside(figure)
    assert corners["light"] == 1.0
    assert corners["dark"] < 0.2
    with pytest.raises(ValueError, match="'light' or 'dark', not 'blue'"):
        plot(theme="blue")
    assert isinstance(pickle.loads(pickle.dumps(plot())), matplotlib.figure.Figure)


def test_the_user_s_settings_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    for plot in ALL:
        plot(theme="dark")
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib" or name == "tinyseq.draw.figure"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot in ALL:
        with pytest.raises(DrawError, match=r"^plots need Matplotlib: pip install tinyseq\[draw\]$"):
            plot()


def test_no_plot_imports_pyplot_and_importing_them_imports_nothing() -> None:
    code = """
import sys
from tinyseq.draw.plots import curves
print("matplotlib" in sys.modules)
curves([1.0, 2.0])
print("matplotlib.pyplot" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\nFalse\n"
