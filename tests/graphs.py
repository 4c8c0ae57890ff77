"""Graphs for tests: read from their text form, run operation by operation, and made up by hypothesis."""

from __future__ import annotations

import ast
import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.array_api import INDEX
from tinyseq.errors import ShapeError
from tinyseq.graph import Equation, Graph, Operand, Var
from tinyseq.primitives import TABLE

# --- the text form ----------------------------------------------------------------------------------------------------

NAME = r"[A-Za-z_][\w.]*"
VALUE = rf"(?P<name>{NAME}): (?P<dtype>[a-z]+[0-9]*)\[(?P<shape>[0-9,]*)\]"
HEAD = re.compile(r"graph \((?P<inputs>[^;]*?)(?:; (?P<closed>.+))?\) \{")
LINE = re.compile(rf"  {VALUE} = (?P<primitive>[a-z_0-9]+)\((?P<operands>.*)\)")
LAST = re.compile(r"\} -> \((?P<outputs>.*)\)")
NUMBERS = {"inf": float("inf"), "nan": float("nan"), "-inf": -float("inf"), "...": ..., "[]": INDEX}


def parse(text: str) -> Graph:
    """The graph that prints as ``text``; anything that is not of the grammar above is an error."""
    first, *lines, last = text.strip().splitlines()
    known: dict[str, Var] = {}

    def assigned(match: re.Match[str]) -> Var:
        name, dtype, shape = match["name"], match["dtype"], match["shape"]
        assert name not in known, f"{name} is assigned twice"
        known[name] = Var(tuple(map(int, filter(None, shape.split(",")))), dtype, name)
        return known[name]

    def operand(word: str) -> Any:
        return known[word] if word in known else constant(word)

    def listed(words: str) -> tuple[Var, ...]:
        return tuple(assigned(matched(re.compile(VALUE), word)) for word in _split(words))

    head = matched(HEAD, first)
    inputs, closed = listed(head["inputs"]), listed(head["closed"] or "")
    equations = []
    for line in lines:
        match = matched(LINE, line)
        words = list(_split(match["operands"]))
        named = [word for word in words if re.match(rf"{NAME}=", word)]
        operands = tuple(operand(word) for word in words if word not in named)
        params = {name: constant(value) for name, value in (word.split("=", 1) for word in named)}
        equations.append(Equation(TABLE[match["primitive"]], operands, params, assigned(match)))
    outputs = tuple(map(operand, _split(matched(LAST, last)["outputs"])))
    return Graph(inputs, tuple(equations), outputs, closed)


def constant(word: str) -> Any:
    """A number, a slice, a dtype, or a tuple of them."""
    if word in NUMBERS:
        return NUMBERS[word]
    if word.startswith("("):
        return tuple(map(constant, _split(word[1:-1])))
    if ":" in word:
        return slice(*(int(part) if part else None for part in word.split(":")))
    if re.fullmatch(r"[a-z]+\d+|bool", word):
        return np.dtype(word)
    return ast.literal_eval(word)


def matched(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.fullmatch(text)
    assert match is not None, f"{text!r} is not of the form {pattern.pattern}"
    return match


def _split(words: str) -> Iterator[str]:
    """At the commas that no bracket encloses."""
    depth, word = 0, ""
    for letter in words:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            yield word.strip()
            word = ""
        else:
            word += letter
    if word.strip():
        yield word.strip()


# --- its values -------------------------------------------------------------------------------------------------------


def evaluate(graph: Graph, arrays: Sequence[Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs, by the NumPy backend's operations; arrays are those of the inputs, then of what is closed over."""
    table = ts.get_backend("numpy").table
    values = dict(zip((*graph.inputs, *graph.closed), map(np.asarray, arrays), strict=True))

    def value(x: Operand) -> Any:
        return values[x] if isinstance(x, Var) else x

    with np.errstate(all="ignore"):
        for e in graph.equations:
            # In rows, so that how a sum is taken does not depend on how its operand came about.
            values[e.output] = np.array(table[e.primitive.name](*map(value, e.inputs), **e.params), order="C")
            assert (values[e.output].shape, values[e.output].dtype) == (e.output.shape, e.output.dtype), e
    return [np.asarray(value(x)) for x in graph.outputs]


def data(graph: Graph, seed: int, special: float) -> list[np.ndarray[Any, Any]]:
    """Numbers for what the graph takes, a share of them NaN, infinite or a zero of either sign."""
    rng = np.random.default_rng(seed)
    arrays = []
    for v in (*graph.inputs, *graph.closed):
        a = rng.standard_normal(v.shape)
        odd = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], v.shape)
        arrays.append(np.where(rng.random(v.shape) < special, odd, a).astype(v.dtype))
    return arrays


# --- graphs that hypothesis makes up ----------------------------------------------------------------------------------

SMOOTH = ("neg", "tanh", "sigmoid", "copy")
ROUGH = (*SMOOTH, "abs", "relu", "sign", "floor", "exp", "sqrt")
PLAIN = (0, 1, 2, 0.0, -0.0, 1.0, 0.5, -1.0)


class Builder:
    """A graph that grows by one operation after the other, on values drawn from those that there are."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], dtype: str, smooth: bool) -> None:
        self.draw, self.dtype, self.smooth = draw, np.dtype(dtype), smooth
        self.inputs = [Var(shape, dtype) for shape in ((2, 4), (2, 4), (2, 6), (4,), (2, 1), (), (3, 2, 4), (2, 3))]
        self.closed: list[Var] = []
        self.equations: list[Equation] = []
        self.pool = list(self.inputs)

    def one_of(self, things: Any) -> Any:
        return self.draw(st.sampled_from(list(things)))

    def emit(self, name: str, *inputs: Operand, **params: Any) -> Var:
        shape, dtype = TABLE[name].shape(*inputs, **params)
        self.equations.append(Equation(TABLE[name], inputs, params, Var(tuple(shape), dtype)))
        self.pool.append(self.equations[-1].output)
        return self.pool[-1]

    def value(self, rank: int = 0) -> Var:
        """A number of the graph, of at least so many axes; the latest are the likeliest, so that graphs grow deep."""
        fitting = [v for v in self.pool if len(v.shape) >= rank and v.dtype == self.dtype]
        return fitting[-1 - self.draw(st.integers(0, len(fitting) - 1))]

    # Each adds one pattern to the graph.

    def unary(self) -> None:
        self.emit(self.one_of(SMOOTH if self.smooth else ROUGH), self.value())

    def binary(self) -> None:
        names = ("add", "sub", "mul") if self.smooth else ("add", "sub", "mul", "div", "maximum", "minimum", "power")
        operands: list[Operand] = [self.value(), self.one_of([self.value(), self.one_of(PLAIN)])]
        with contextlib.suppress(ShapeError):  # they may not broadcast
            self.emit(self.one_of(names), *self.draw(st.permutations(operands)))

    def choice(self) -> None:
        x, y = self.value(), self.value()
        with contextlib.suppress(ShapeError):
            self.emit("where", self.emit("gt", x, 0.25), x, y)

    def cut(self) -> None:
        x = self.value(1)
        start, stop = sorted(self.draw(st.tuples(*[st.integers(0, x.shape[-1])] * 2)))
        self.emit("getitem", x, key=self.columns(x, start, stop))

    def columns(self, x: Var, start: int, stop: int) -> tuple[Any, ...]:
        """A key for columns: in one of the two ways that people write it."""
        rows = self.one_of([(...,), (slice(None),) * (len(x.shape) - 1)])
        return (*rows, slice(start if start else self.one_of([0, None]), stop))

    def join(self) -> None:
        x = self.value(1)
        axis = self.one_of([-1, -2]) if len(x.shape) > 1 else -1

        def rest(v: Var) -> tuple[int, ...]:
            return v.shape[:axis] + v.shape[len(v.shape) + axis + 1 :]

        fitting = [v for v in self.pool if len(v.shape) == len(x.shape) and rest(v) == rest(x) and v.dtype == x.dtype]
        parts = [*self.draw(st.lists(st.sampled_from(fitting), max_size=2)), x]
        self.emit("concatenate", *parts, axis=axis, sizes=tuple(v.shape[axis] for v in parts))

    def spread(self) -> None:
        """The gradient of a split, which may be of a split itself."""
        self.spread_like(self.value(1), nested=self.draw(st.booleans()))

    def spread_like(self, x: Var, nested: bool) -> Var:
        """Pieces, each put in its place among zeros, and their sum."""
        width = x.shape[-1]
        inner = st.sets(st.integers(1, width - 1), max_size=2) if width > 1 else st.just(set())
        edges = [0, *sorted(self.draw(inner)), width]
        parts = []
        for start, stop in itertools.pairwise(edges):
            piece = self.emit(self.one_of(SMOOTH), self.emit("getitem", x, key=self.columns(x, start, stop)))
            piece = self.emit("add", piece, 0.0)  # no -0.0: among zeros it would lose its sign
            piece = self.spread_like(piece, nested=False) if nested else piece
            parts.append(self.emit("scatter_add", piece, key=self.columns(x, start, stop), shape=x.shape))
        parts = list(self.draw(st.permutations(parts)))
        if self.draw(st.booleans()):
            parts = parts[: self.draw(st.integers(1, len(parts)))]  # with a gap
        total = parts[0]
        for part in parts[1:]:
            total = self.emit("add", total, part)
        return total

    def product(self) -> None:
        x = self.value(2)
        fitting = [v for v in self.closed if v.shape[0] == x.shape[-1]]
        if not fitting or self.draw(st.booleans()):
            fitting = [Var((x.shape[-1], self.one_of((2, 3, 4))), self.dtype)]
            self.closed += fitting
        self.emit("tanh", self.emit("matmul", x, self.one_of(fitting)))

    def reduction(self) -> None:
        x = self.value(1)
        name = self.one_of(("sum", "max")) if not self.smooth and x.shape[-1] else "sum"
        self.emit(name, x, axis=(-1,), keepdims=self.one_of([True, False]))

    def move(self) -> None:
        x = self.value()
        shapes = [x.shape, (int(np.prod(x.shape)),), (1, *x.shape)]
        kind = self.one_of(("reshape", "broadcast_to", "cast", "permute"))
        if kind == "permute" and len(x.shape) > 1:
            self.emit("permute", self.emit("permute", x, axes=(-1, -2)), axes=(-1, -2))
        elif kind == "reshape":
            self.emit("reshape", x, shape=self.one_of(shapes))
        elif kind == "broadcast_to":
            self.emit("broadcast_to", x, shape=self.one_of([x.shape, (2, *x.shape)]))
        else:
            self.emit("cast", x, dtype=self.dtype)

    def again(self) -> None:
        if self.equations:
            e = self.one_of(self.equations)
            self.emit(e.primitive.name, *e.inputs, **e.params)


PATTERNS = ("unary", "binary", "choice", "cut", "join", "spread", "product", "reduction", "move", "again")


@st.composite
def graphs(draw: Any, smooth: bool = False, more: Sequence[str] = ()) -> Graph:
    """A graph of up to a dozen patterns.

    Args:
        smooth: only operations that turn a small difference into a small difference, for passes that reorder sums.
        more: patterns that are to be frequent.
    """
    builder = Builder(draw, draw(st.sampled_from(["float64", "float32"])) if not smooth else "float64", smooth)
    patterns = [name for name in PATTERNS if not (smooth and name == "choice")]
    for name in draw(st.lists(st.sampled_from([*patterns, *list(more) * 3]), min_size=1, max_size=12)):
        getattr(builder, name)()
    outputs = [builder.value() for _ in range(draw(st.integers(1, 3)))]
    return Graph(tuple(builder.inputs), tuple(builder.equations), tuple(outputs), tuple(builder.closed)).check()
