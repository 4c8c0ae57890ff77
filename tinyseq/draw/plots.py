"""Plots of a run, drawn by Matplotlib: gradients through time, attention weights, loss curves.

Each returns a ``matplotlib.figure.Figure``, which Jupyter shows and ``figure.savefig("plot.png")`` writes. What is drawn
can be changed through ``figure.axes`` as with any other. Colours are told apart by colour-blind people, too; fonts are
those of Matplotlib's settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tinyseq.draw.labels import shorten
from tinyseq.draw.render import DrawError
from tinyseq.errors import ShapeError
from tinyseq.tensor import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Theme", "attention", "curves", "gradient_flow"]

Theme = Literal["light", "dark"]
Array = np.ndarray[Any, Any]

# The palette of Okabe and Ito (2008), without its black and its yellow, which is faint on white.
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
DASHES = ("-", "--", ":", "-.")  # for the lines after these
# Background, ink, faint ink, and the sequential map of attention, which starts near the background.
THEMES = {"light": ("#FFFFFF", "#222222", "#8A8A8A", "Blues"), "dark": ("#1B1D21", "#E6E6E6", "#8A8F98", "Blues_r")}
LONGEST_TOKEN = 24
LETTER = 0.085  # inches that a letter of a token takes
CELL, SMALLEST_CELL = 0.24, 0.12  # inches: a row whose label has 9 points, and one in which 6 points still fit
MOST_INCHES = 12.0  # along a side of all heat maps together; more tokens than fit are labelled in part
TINY, HUGE = 1e-280, 1e280  # between which Matplotlib's logarithmic scale works
LONG_CURVE = 5_000  # values past which the raw line shows the lowest and the highest of each stretch


def gradient_flow(
    flow: Mapping[str, Any] | Any,
    *,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
    theme: Theme = "light",
) -> Figure:
    """A heat map of ‖∂L/∂h_t‖, the norm of the gradient that reaches each time step: time to the right, a row a layer.

    Colours are logarithmic. A gradient that is exactly zero, infinite or no number is hatched, and the legend says so.

    Args:
        flow: norms of shape (T,) by the name of a layer, or an array of shape (layers, T) or (T,). Layers may have
            different lengths.
        limits: the norms at the two ends of the colours, for plots that are to be compared; otherwise those that occur.
        title: what stands above.
        theme: ``"dark"`` for a dark page.

    Raises:
        ShapeError: the norms of a layer are not one number a step, or there is none.
        ValueError: a norm is negative, or ``limits`` are not positive and in order.
        DrawError: Matplotlib is not installed.

    >>> figure = gradient_flow({"lstm.0": [1e-6, 1e-3, 1.0], "lstm.1": [0.0, 0.1, 1.0]})
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['lstm.0', 'lstm.1']
    """
    rows = _rows(flow)
    longest = max(len(row) for row in rows.values())
    norms = np.full((len(rows), longest), np.nan)
    kinds = np.full(norms.shape, "", dtype=object)  # of what no colour stands for
    for i, (name, row) in enumerate(rows.items()):
        if (row < 0).any():
            raise ValueError(f"norms are not negative, but {name!r} has {row.min():g} at t = {int(row.argmin())}")
        norms[i, : len(row)] = row
        kinds[i, : len(row)] = np.select([np.isnan(row), np.isinf(row), row == 0], ["not a number", "infinite", "zero"], "")
    low, high = _limits(norms, limits)

    with _figure(theme) as make:
        from matplotlib.colors import LogNorm

        left = 0.5 + 0.08 * max(len(shorten(name)) for name in rows)
        figure = make((left + 6.5, max(1.2 + 0.34 * len(rows), 2.0)))
        axes = figure.add_subplot()
        if title:
            figure.suptitle(title, parse_math=False)
        shown = np.ma.masked_where(~(np.isfinite(norms) & (norms > 0)), norms)
        image = axes.imshow(shown, cmap="cividis", norm=LogNorm(low, high), aspect="auto", interpolation="nearest")
        _explain(figure, _hatched(axes, kinds, theme))
        axes.set_xlabel("time step t")
        axes.locator_params(axis="x", integer=True)
        axes.set_yticks(range(len(rows)), [shorten(name) for name in rows], parse_math=False)
        axes.set_yticks(np.arange(len(rows) - 1) + 0.5, minor=True)
        axes.tick_params(which="both", length=0)
        axes.tick_params(axis="x", which="major", length=3)
        axes.grid(which="minor", axis="y", color=THEMES[theme][0], linewidth=3)
        extend = ("neither", "min", "max", "both")[bool((shown < low).any()) + 2 * bool((shown > high).any())]
        figure.colorbar(image, ax=axes, label="‖∂L/∂hₜ‖", extend=extend, fraction=0.05, pad=0.02)
    return figure


def attention(
    weights: Mapping[str, Any] | Any,
    source: Sequence[str] | None = None,
    target: Sequence[str] | None = None,
    *,
    title: str | None = None,
    theme: Theme = "light",
) -> Figure:
    """A heat map of attention weights: a row for each token that looks, a column for each that is looked at.

    Several heads stand side by side and share their colours, which begin at 0. Weights that are no number, as softmax gives
    where everything is masked, are hatched.

    Args:
        weights: of shape (S_out, S_in); for several heads (heads, S_out, S_in), or matrices by the name of a head.
        source: the S_in tokens that are looked at; their positions if not given.
        target: the S_out tokens that look; their positions if not given.
        title: what stands above.
        theme: ``"dark"`` for a dark page.

    Raises:
        ShapeError: the weights have another number of dimensions, or there is not one token for each row and column.
        ValueError: a weight is negative or infinite.
        DrawError: Matplotlib is not installed.

    >>> figure = attention([[0.9, 0.1], [0.2, 0.8]], ["the", "cat"], ["le", "chat"])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['the', 'cat']
    """
    heads = _heads(weights)
    rows, columns = next(iter(heads.values())).shape
    for name, head in heads.items():
        if head.shape != (rows, columns):
            raise ShapeError(f"heads differ in shape: {(rows, columns)} and {head.shape} of {name!r}")
        if (head < 0).any() or np.isinf(head).any():
            raise ValueError(f"attention weights are at least 0 and finite, which scores before the softmax are not{_of(name)}")
    across, down = _tokens(source, columns, "source"), _tokens(target, rows, "target")
    known = np.concatenate([head[np.isfinite(head)] for head in heads.values()])
    high = float(known.max(initial=0.0)) or 1.0

    beside = len(heads) if len(heads) <= 4 else math.ceil(math.sqrt(len(heads)))
    below = math.ceil(len(heads) / beside)
    cell = min(CELL, MOST_INCHES / (columns * beside), MOST_INCHES / (rows * below))
    width, height = max(cell * columns, 1.2), max(cell * rows, 1.0)
    upright = max(map(len, across)) * LETTER > width / columns
    left, bottom = LETTER * max(map(len, down)), LETTER * (max(map(len, across)) if upright else 2)

    with _figure(theme) as make:
        _, ink, _, colours = THEMES[theme]
        figure = make((1.6 + left + beside * (width + 0.1), 0.8 + bottom + below * (height + 0.4)))
        if title:
            figure.suptitle(title, parse_math=False)
        every, size = _thinned(columns, width)
        across_labels: dict[str, Any] = {"fontsize": size, "rotation": 90 if upright else 0, "parse_math": False}
        row_every, row_size = _thinned(rows, height)
        image: Any = None
        kinds: dict[str, Any] = {}
        for i, (name, head) in enumerate(heads.items()):
            axes = figure.add_subplot(below, beside, i + 1)
            image = axes.imshow(
                np.ma.masked_invalid(head), cmap=colours, vmin=0.0, vmax=high, aspect="auto", interpolation="nearest"
            )
            kinds |= _hatched(axes, np.where(np.isnan(head), "not a number", ""), theme)
            axes.set_title(shorten(name), fontsize=10, parse_math=False)
            axes.tick_params(length=0)
            axes.spines[:].set(visible=True, color=ink, linewidth=0.5)
            axes.set_xticks(range(0, columns, every), across[::every], **across_labels)
            axes.set_yticks(range(0, rows, row_every), down[::row_every], fontsize=row_size, parse_math=False)
            axes.tick_params(labelbottom=i + beside >= len(heads), labelleft=i % beside == 0)
        figure.colorbar(image, ax=figure.axes, label="weight", fraction=0.05, pad=0.02)
        _explain(figure, kinds)
        figure.supxlabel("source", fontsize=10)
        figure.supylabel("target", fontsize=10)
    return figure


def curves(
    losses: Any,
    *,
    smooth: float | None = None,
    ylabel: str = "loss",
    log: bool = False,
    title: str | None = None,
    theme: Theme = "light",
) -> Figure:
    """Loss curves: a smoothed line for each run, and the raw one, faint, behind it.

    The smoothed line is the mean of all values so far with weights that fall by ``smooth`` a value. Values that are
    infinite or no number are left out of it, and marked by crosses at the top.

    Args:
        losses: the values of a run, one a step; or runs by name; or the rows of a log, each a mapping such as
            ``{"step": 10, "loss": 2.3}``, in which a key may be missing. A run may also be pairs (step, value).
        smooth: between 0, which draws the values as they are, and 1; if None, 0 for up to 50 values, and 0.95 for more.
        ylabel: what is written beside the axis of the values.
        log: a logarithmic axis; values that are not positive count as not finite.
        title: what stands above.
        theme: ``"dark"`` for a dark page.

    Raises:
        ShapeError: a run is neither values nor pairs, or there is none.
        ValueError: ``smooth`` is not in [0, 1).
        DrawError: Matplotlib is not installed.

    >>> figure = curves({"training": [3.0, 2.0, 1.5], "held out": [(0, 3.1), (2, 2.0)]})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['training', 'held out']
    """
    if smooth is not None and not 0 <= smooth < 1:
        raise ValueError(f"smooth must be at least 0 and below 1, not {smooth:g}")
    runs = _runs(losses)
    with _figure(theme) as make:
        figure = make((7.0, 4.0))
        axes = figure.add_subplot(xlabel="step", yscale="log" if log else "linear")
        if title:
            axes.set_title(title, parse_math=False)
        if all((steps == steps.round()).all() for steps, _ in runs.values()):
            axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(ylabel, parse_math=False)
        lost = False
        for i, (name, (steps, values)) in enumerate(runs.items()):
            colour, dashes = LINES[i % len(LINES)], DASHES[i // len(LINES) % len(DASHES)]
            good = np.isfinite(values) & (values > 0 if log else True)
            weight = (0.95 if len(values) > 50 else 0.0) if smooth is None else smooth
            if weight:
                axes.plot(*_outline(steps[good], values[good]), color=colour, alpha=0.3, linewidth=0.8, gid="raw")
            line = _smoothed(values[good], weight)
            marker = "o" if len(values) <= 50 else None
            axes.plot(steps[good], line, dashes, color=colour, label=shorten(name), marker=marker, markersize=3)
            if not good.all():
                at = steps[~good]
                axes.plot(at, np.ones(len(at)), "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
                lost = True
        if lost:
            axes.plot([], [], "x", color=THEMES[theme][1], label="not positive and finite" if log else "not finite")
        axes.grid(color=THEMES[theme][2], alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if lost or len(runs) > 1 or next(iter(runs)) != ylabel:
            legend = figure.legend(loc="outside right upper", frameon=False) if len(runs) > 5 else axes.legend(frameon=False)
            for text in legend.get_texts():
                text.set_parse_math(False)
    return figure


@contextmanager
def _figure(theme: Theme) -> Iterator[Callable[[tuple[float, float]], Figure]]:
    """Matplotlib in the colours of a theme, and what makes a figure of (width, height) inches."""
    if theme not in THEMES:
        raise ValueError(f"theme must be 'light' or 'dark', not {theme!r}")
    try:
        import matplotlib

        from tinyseq.draw.figure import Figure
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise DrawError("plots need Matplotlib: pip install tinyseq[draw]") from error
    ground, ink, faint, _ = THEMES[theme]
    colours: dict[Any, str] = dict.fromkeys(
        ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), ground
    )
    colours |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), ink)
    colours |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), faint)
    with matplotlib.rc_context(colours):
        yield lambda size: Figure(figsize=size, layout="constrained")


def _array(values: Any) -> Array:
    """Numbers on the host, in float64."""
    if isinstance(values, Tensor):
        values = values.numpy()
    return np.asarray(values.get() if hasattr(values, "get") else values, dtype=float)  # get: of an array of CuPy's


def _rows(flow: Any) -> dict[str, Array]:
    if isinstance(flow, Mapping):
        rows = {str(name): _array(row) for name, row in flow.items()}
    else:
        array = _array(flow)
        if array.ndim not in (1, 2):
            raise ShapeError(f"gradient_flow takes norms of shape (T,) or (layers, T), not {array.shape}")
        rows = {f"layer {i}": row for i, row in enumerate(array)} if array.ndim == 2 else {"": array}
    for name, row in rows.items():
        if row.ndim != 1:
            raise ShapeError(f"gradient_flow takes one norm a time step, shape (T,), but {name!r} has shape {row.shape}")
    if not any(map(len, rows.values())):
        raise ShapeError("gradient_flow got no norms at all")
    return rows


def _limits(norms: Array, limits: tuple[float, float] | None) -> tuple[float, float]:
    if limits is None:
        known = norms[np.isfinite(norms) & (norms > 0)]
        low, high = (known.min(), known.max()) if known.size else (1.0, 1.0)
        low, high = (min(max(float(end), TINY), HUGE) for end in (low, high))
        # One value alone is put into the middle of a decade.
        return (low, high) if low < high else (max(low / 10**0.5, TINY), min(high * 10**0.5, HUGE))
    low, high = limits
    if not 0 < low < high < math.inf:
        raise ValueError(f"limits must be positive and in order, not {low:g} and {high:g}")
    return low, high


def _heads(weights: Any) -> dict[str, Array]:
    if isinstance(weights, Mapping):
        heads = {str(name): _array(head) for name, head in weights.items()}
    else:
        array = _array(weights)
        heads = {f"head {i}": head for i, head in enumerate(array)} if array.ndim == 3 else {"": array}
    for name, head in heads.items():
        if head.ndim != 2 or not head.size:
            raise ShapeError(
                f"attention takes weights of shape (S_out, S_in), or (heads, S_out, S_in), not {head.shape}{_of(name)}"
            )
    if not heads:
        raise ShapeError("attention got no weights at all")
    return heads


def _of(name: str) -> str:
    return f" of {name!r}" if name else ""


def _tokens(tokens: Sequence[str] | None, count: int, side: str) -> list[str]:
    if tokens is None:
        return [str(i) for i in range(count)]
    if len(tokens) != count:
        raise ShapeError(f"the weights have {count} {side} positions, but there are {len(tokens)} {side} tokens")
    return [_token(str(token)) for token in tokens]


def _token(token: str) -> str:
    """A token that can be seen: blanks at its ends, and what is nothing but blanks, are written out.

    >>> _token("cat"), _token(" "), _token(" cat"), _token("\\n"), _token("")
    ('cat', '␣', '␣cat', '⏎', '∅')
    """
    inner = token.strip()
    start = len(token) - len(token.lstrip())
    blanks = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
    end = token[start + len(inner) :]
    return shorten(token[:start].translate(blanks) + inner + end.translate(blanks), LONGEST_TOKEN) or "∅"


def _thinned(count: int, inches: float) -> tuple[int, float]:
    """Every which row or column is labelled, and in what size: no label may touch the next."""
    each = inches / count
    return math.ceil(SMALLEST_CELL / each - 1e-9), min(9.0, max(6.0, each * 72 * 0.7))


def _hatched(axes: Axes, kinds: Array, theme: Theme) -> dict[str, Any]:
    """Cells for which there is no colour, hatched by their kind; returns a key for the legend of each kind that occurs."""
    from matplotlib.patches import Patch

    ground, ink, faint, _ = THEMES[theme]
    styles: dict[str, dict[str, Any]] = {
        "zero": {"facecolor": ground, "edgecolor": faint, "hatch": "////"},
        "infinite": {"facecolor": "#CC79A7", "edgecolor": ink, "hatch": "++++"},
        "not a number": {"facecolor": "#D55E00", "edgecolor": ink, "hatch": "xxxx"},
    }
    keys = {}
    for kind, style in styles.items():
        for i, row in enumerate(kinds == kind):
            if row.any():
                edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8))).tolist()
                spans = [(start - 0.5, end - start) for start, end in zip(edges[::2], edges[1::2], strict=True)]
                # The line keeps a single step visible among thousands.
                axes.broken_barh(spans, (i - 0.5, 1.0), linewidth=0.8, gid=kind, **style)
                keys[kind] = Patch(label=kind, **style)
    return keys


def _explain(figure: Figure, keys: Mapping[str, Any]) -> None:
    if keys:
        figure.legend(handles=list(keys.values()), loc="outside lower left", ncols=3, frameon=False)


def _runs(losses: Any) -> dict[str, tuple[Array, Array]]:
    """Steps and values of each run."""
    if isinstance(losses, Mapping):
        return _checked({str(name): values for name, values in losses.items()})
    if isinstance(losses, Sequence) and losses and isinstance(losses[0], Mapping):
        names = dict.fromkeys(key for row in losses for key in row if key != "step")
        pairs = {name: [(row.get("step", i), row[name]) for i, row in enumerate(losses) if name in row] for name in names}
        return _checked(pairs)
    return _checked({"loss": losses})


def _checked(runs: Mapping[str, Any]) -> dict[str, tuple[Array, Array]]:
    found = {}
    for name, values in runs.items():
        array = _array(values)
        if array.ndim == 1:
            array = np.stack([np.arange(len(array)), array], axis=1)
        if array.ndim != 2 or array.shape[1] != 2 or not len(array):
            raise ShapeError(f"curves takes values (N,) or pairs (N, 2) of a step and a value, not {array.shape} of {name!r}")
        found[name] = array[:, 0], array[:, 1]
    if not found:
        raise ShapeError("curves got no values at all")
    return found


def _smoothed(values: Array, weight: float) -> Array:
    """s_n = Σ_k w^(n-k) y_k / Σ_k w^(n-k): a mean of values only, so that it does not begin at zero."""
    total = count = 0.0
    means = np.empty(len(values))
    for i, value in enumerate(values.tolist()):
        total, count = weight * total + value, weight * count + 1.0
        means[i] = total / count
    return means


def _outline(steps: Array, values: Array) -> tuple[Array, Array]:
    """A line that looks the same and has few points: of a long one the lowest and the highest of each stretch."""
    if len(values) <= LONG_CURVE:
        return steps, values
    stretches = np.array_split(np.arange(len(values)), LONG_CURVE // 2)
    kept = np.array([sorted((part[values[part].argmin()], part[values[part].argmax()])) for part in stretches]).ravel()
    return steps[kept], values[kept]
