"""``ts.draw``: from anything that can be drawn to a picture of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tinyseq.compiler.loop import Program
from tinyseq.draw.building import MANY, Flow, Level, build, least, size
from tinyseq.draw.colours import Theme
from tinyseq.draw.columns import nearest, select
from tinyseq.draw.folding import fold
from tinyseq.draw.graphs import read_graph, trace_outputs
from tinyseq.draw.labels import SHOWN
from tinyseq.draw.loops import Opening, read_program
from tinyseq.draw.mirror import mirror
from tinyseq.draw.picture import Picture
from tinyseq.draw.profile import Profile
from tinyseq.draw.profile import profile as profile_
from tinyseq.draw.reading import Names, read_tape
from tinyseq.draw.record import Record
from tinyseq.draw.repeats import recognise
from tinyseq.errors import DTypeError, GraphError, ShapeError
from tinyseq.graph import Graph
from tinyseq.tape import Place
from tinyseq.tensor import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tinyseq.nn import Module

__all__ = ["Draw", "Time", "draw"]

Time = Literal["folded", "unrolled"]

COLUMNS = 5


class Draw:
    """What ``ts.draw`` is: a function that draws a computation, and the plots of a run beside it."""

    def __call__(
        self,
        what: Tensor | Sequence[Tensor] | Callable[..., Any] | Graph | Program,
        *examples: Any,
        level: Level = "both",
        time: Time | None = None,
        steps: int = COLUMNS,
        backward: bool | None = None,
        names: Module | Mapping[str, object] | None = None,
        show: Collection[str] | None = None,
        values: int = 4,
        profile: Profile | None = None,
        gradients: Mapping[str, Any] | None = None,
        theme: Theme = "auto",
        legend: bool = True,
        limit: int | None = None,
        seconds: float = 20.0,
    ) -> Picture:
        """A picture of a computation. Jupyter shows it by itself; ``.save("graph.svg")`` writes it to a file.

        Args:
            what: a tensor or several, of which the tape is drawn, before or after ``backward()``; a function or module,
                which is called on ``examples`` without computing anything; a ``Graph``; or a scan's split into what runs
                before, in and after its loop (``compiler.loop.Program``).
            examples: tensors, or nested tuples, lists and dicts of them, for a function or a module.
            level: "modules" draws a box a layer, "operations" one a primitive, "both" operations in frames of modules.
            time: "folded" draws a loop once, with its state going round; "unrolled" its steps in columns, and the
                backward pass below, which walks them back. None draws a compiled scan and a traced function folded, and
                a scan that was recorded with ``unroll=True`` in columns. Given explicitly it also finds loops that
                were written in Python, by their repeated steps.
            steps: the most columns: the first steps, a gap, and the last one.
            backward: whether to draw the backward pass; None draws it where ``time="unrolled"`` and of a split scan.
            names: the module whose parameters to name, or tensors by name: ``names=locals()`` will do.
            show: which facts have a line in each box, of "shape", "value", "kept" (bytes that wait for the backward
                pass), "seconds" and "gradient"; all are in tooltips. None shows all but "kept".
            values: tensors of at most so many elements show their numbers, where these are at hand.
            profile: seconds and gradient norms, as noted inside ``with ts.draw.profile() as profile:``.
            gradients: norms of dL/dh_t, (T,) by name, as ``with ts.trace_gradients() as gradients:`` notes them: a strip
                under each folded loop of T steps, colours and widths of the arrows from step to step of an unrolled one.
                Several loops share the names equally, in order.
            theme: "light", "dark", or "auto": an SVG that is dark where the reader's page is.
            legend: whether what colours mean stands below; notes on what is not drawn do in any case.
            limit: with more boxes than this the picture folds, as far as needed, and says so. None: with more than 59
                where loops are folded (118 with the backward pass), and 300 elsewhere.
            seconds: how long Graphviz may take to lay the picture out.

        Raises:
            DTypeError: ``what``, ``names`` or ``gradients`` is of another type.
            GraphError: nothing was recorded for a tensor, or a traced function looks at values.
            ShapeError: norms are not one number a step.
            ValueError: a word or a number is not one of those above.

        >>> import tinyseq as ts
        >>> w = ts.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = (w * 3.0).sum()
        >>> picture = ts.draw(loss, names={"w": w})
        >>> "mul(·, 3)" in picture.dot
        True
        >>> print(ts.draw(ts.nn.Linear(2, 3), ts.zeros((4, 2)), level="modules").text())
        input x: float32[4,2]
        a: float32[4,3] = Linear(x)
        -> a
        """
        show = (show,) if isinstance(show, str) else show
        _check(level, time, steps, show, theme, limit, seconds, values)
        flow = _flow(gradients)
        known = Names(names)
        columns = steps if time == "unrolled" else None
        if not callable(what) and examples:
            raise DTypeError(f"draw takes example inputs only with a function or a module, not with a {_kind(what)}")
        record = _read(what, examples, known, profile, columns, backward)
        planned = isinstance(what, Program)
        open_loops = time is not None
        if time is None and callable(what) and not isinstance(what, Tensor):
            time = "folded"
        both = backward if backward is not None else time == "unrolled"
        most = MANY if limit is None else limit
        _fit(record, level, time, steps, most // 2 if both and not planned else most)
        if both and not planned:
            mirror(record)
        shown = (set(SHOWN) - {"kept"}) if show is None else set(show)
        coloured = profile is not None and bool(profile.gradients)
        diagram = build(
            record,
            level,
            open_loops=open_loops,
            show=shown,
            values=values,
            flow=flow,
            coloured=coloured,
            modules=known.modules,
            limit=limit,
        )
        return Picture(diagram, seconds=seconds, theme=theme, legend=legend)

    @staticmethod
    def profile(gradients: bool = True) -> Profile:
        """See :func:`tinyseq.draw.profile.profile`."""
        return profile_(gradients)

    @staticmethod
    def gradient_flow(*arguments: Any, **keywords: Any) -> Figure:
        """See :func:`tinyseq.draw.plots.gradient_flow`."""
        from tinyseq.draw.plots import gradient_flow

        return gradient_flow(*arguments, **keywords)

    @staticmethod
    def attention(*arguments: Any, **keywords: Any) -> Figure:
        """See :func:`tinyseq.draw.plots.attention`."""
        from tinyseq.draw.plots import attention

        return attention(*arguments, **keywords)

    @staticmethod
    def curves(*arguments: Any, **keywords: Any) -> Figure:
        """See :func:`tinyseq.draw.plots.curves`."""
        from tinyseq.draw.plots import curves

        return curves(*arguments, **keywords)

    def __repr__(self) -> str:
        return "<ts.draw>"


draw = Draw()


def _read(
    what: Any, examples: Sequence[Any], names: Names, profile: Profile | None, columns: int | None, backward: bool | None
) -> Record:
    if isinstance(what, Graph):
        return read_graph(what)
    if isinstance(what, Program):
        return read_program(what, Opening(None), None, backward is not False)
    opening = Opening(columns)
    if isinstance(what, Tensor) or not callable(what):
        places = _places(what)
        for tensor, place in zip([what] if isinstance(what, Tensor) else what, places, strict=True):
            names.arrays.setdefault(id(place), tensor.data)
        return read_tape(places, names, profile, opening)
    places, closed = trace_outputs(what, examples, names)
    return read_tape(places, names, profile, opening, closed)


def _fit(record: Record, level: Level, time: Time | None, steps: int, limit: int) -> None:
    """Fold a record, or leave out steps, as it is asked for and until it has about as many boxes as the limit."""
    large = size(record, level) > limit
    if large or time is not None:
        recognise(record)
    if time == "folded":
        fold(record)
    else:
        _columns(record, level, steps, limit, large)
    if size(record, level) > limit and least(record, level) > limit:
        nearest(record, limit)


def _columns(record: Record, level: Level, steps: int, limit: int, large: bool) -> None:
    """Columns for the steps of loops, as many as fit; if not even three fit, the loops are folded, as inner ones always are."""
    fold(record, only_inner=True)
    loops: dict[int, list[int]] = {}
    columns = record.columns()
    for f, column in enumerate(columns):
        if column is not None and column[1] == f:
            loops.setdefault(column[0], []).append(f)
    if not loops:
        return
    longest = max(map(len, loops.values()))
    counts = [0] * len(record.frames)
    for item in record.items:
        column = None if item.frame is None else columns[item.frame]
        if column is not None:
            counts[column[1]] = 2 if level == "modules" else counts[column[1]] + 1
    # Steps are alike, so that the second one's size tells that of any; leaves are drawn in each.
    per_step = sum(max(counts[f] for f in own[:3]) for own in loops.values())
    total = sum(counts)
    outside = size(record, level) - total
    fitting = min(steps, longest, max((limit - min(outside, limit // 2)) // max(per_step, 1), 0))
    if large and fitting < 3 and longest > 3:
        record.notes.append(f"Loops are drawn once: their steps would need more than {limit:,} boxes.")
        fold(record)
        return
    if fitting < min(steps, longest):
        record.notes.append(f"Only {fitting} columns are drawn: more would need more than {limit:,} boxes.")
    if any(frame.folded and columns[f] is not None for f, frame in enumerate(record.frames)):
        record.notes.append("Loops inside the steps are drawn once.")
    select(record, max(fitting, 3))


def _places(what: Any) -> list[Place]:
    tensors = [what] if isinstance(what, Tensor) else list(what) if isinstance(what, Sequence) else [what]
    places = []
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise DTypeError(
                f"draw takes a tensor, a list of tensors, a function with example inputs, a Graph or a Program, "
                f"not a {_kind(tensor)}"
            )
        if tensor.node is None:
            raise GraphError(
                f"nothing was recorded for this tensor of shape {tensor.shape}: nothing it was computed from asks for a "
                "gradient, or it was computed under no_grad(); make a tensor with requires_grad=True first"
            )
        places.append(tensor.node)
    if not places:
        raise DTypeError("draw got an empty list; give at least one tensor")
    return places


def _kind(what: object) -> str:
    return type(what).__name__


def _flow(gradients: Mapping[str, Any] | None) -> Flow:
    """The norms as plain lists of numbers."""
    import numpy as np

    if gradients is None:
        return {}
    if not isinstance(gradients, Mapping):
        raise DTypeError(f"gradients is a {_kind(gradients)}; give norms of shape (T,) by name")
    flow: dict[str, list[float]] = {}
    for name, norms in gradients.items():
        row = np.asarray(norms.numpy() if isinstance(norms, Tensor) else norms, dtype=float)
        if row.ndim != 1:
            raise ShapeError(f"gradients[{name!r}] has shape {row.shape}; give one norm a step, (T,)")
        flow[str(name)] = row.tolist()
    return flow


def _check(
    level: str,
    time: str | None,
    steps: int,
    show: Collection[str] | None,
    theme: str,
    limit: int | None,
    seconds: float,
    values: int,
) -> None:
    for name, word, words in (
        ("level", level, ("modules", "operations", "both")),
        ("time", time, (None, "folded", "unrolled")),
        ("theme", theme, ("light", "dark", "auto")),
    ):
        if word not in words:
            raise ValueError(f"{name}={word!r} is unknown; choose from {', '.join(map(repr, words))}")
    unknown = [word for word in show or () if word not in SHOWN]
    if unknown:
        raise ValueError(f"show={unknown[0]!r} is unknown; choose from {', '.join(map(repr, SHOWN))}")
    if (limit is not None and limit < 1) or not seconds > 0:
        raise ValueError(f"limit and seconds must be positive, not {limit} and {seconds}")
    if steps < 3 or values < 0:
        raise ValueError(f"steps must be at least 3 and values at least 0, not {steps} and {values}")
