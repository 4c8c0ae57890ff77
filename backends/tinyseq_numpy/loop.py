"""The reference for compiled loops: a step as a Python function of NumPy calls into buffers that are made once.

A buffer is written over as soon as nobody needs what is in it, so that a step's work stays in the processor's cache.
"""

from __future__ import annotations

import linecache
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.array_api import full_permutation
from tinyseq.backend import CannotFuse
from tinyseq.compiler import debug
from tinyseq.compiler.loop import is_view
from tinyseq.compiler.passes import ELEMENTWISE, Emit, common_subexpressions, rewrite
from tinyseq.graph import Equation, Graph, Operand, Var
from tinyseq_numpy import memory

if TYPE_CHECKING:
    from tinyseq.backend import Backend
    from tinyseq.compiler.loop import Step

__all__ = ["compile_loop", "fuses", "source"]

Array = np.ndarray[Any, Any]

# Primitives that are one ufunc.
UFUNCS = {
    "neg": "negative", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt", "tanh": "tanh",
    "sin": "sin", "cos": "cos", "abs": "abs", "sign": "sign", "floor": "floor", "add": "add", "sub": "subtract",
    "mul": "multiply", "div": "divide", "power": "power", "remainder": "remainder", "floor_divide": "floor_divide",
    "maximum": "maximum", "minimum": "minimum", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
    "gt": "greater", "ge": "greater_equal", "logical_and": "logical_and", "logical_or": "logical_or",
    "logical_xor": "logical_xor", "logical_not": "logical_not", "isfinite": "isfinite", "isnan": "isnan",
}  # fmt: skip
POWERS = {2.0: "square", 0.5: "sqrt"}  # as NumPy's own operator has it
REDUCTIONS = {"sum": "add", "max": "maximum", "min": "minimum"}
BLAS = (np.dtype(np.float32), np.dtype(np.float64))
LARGE = 1 << 14  # bytes of an array whose work takes longer than a call
_serial = count(1).__next__


def fuses(e: Equation, stacked: frozenset[Var]) -> bool:
    """What a loop takes in from before and after it: all but products, which are faster for all steps at once.

    Where the arrays of one step fill a part of the cache, those of all steps do not fit: each operation would read from
    memory what the one before it wrote there. Where they are small, one call for all steps is better (``compile_loop``).
    """
    return e.primitive.name in ELEMENTWISE or e.primitive.name in (*REDUCTIONS, "concatenate") or is_view(e)


def _into_a_buffer(e: Equation) -> bool:
    """Whether the result is written into an array that is given, and so lies in no other value's memory."""
    name = e.primitive.name
    reduced = name in REDUCTIONS and e.output.shape != ()
    return reduced or name in UFUNCS or name in ("sigmoid", "matmul", "concatenate", "where")


def _sums_rows(e: Equation) -> bool:
    return e.primitive.name == "sum" and e.params["axis"] == (-1,) and e.output.shape != ()


def _reciprocals(e: Equation, emit: Emit) -> Operand | None:
    """A division by one number a row as a product with what one over it is."""
    x, y = e.inputs if e.primitive.name == "div" else (0, 0)
    if not isinstance(y, Var) or e.output.dtype not in BLAS:
        return None
    wide = e.output.shape[-1:] > (4,) and y.shape[-1:] == (1,)
    return emit("mul", x, emit("div", 1, y)) if wide and y.dtype == e.output.dtype else None


class _Writer:
    """Writes the source of one step: what is done once, and what at every step."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names: dict[Var, str] = {}
        self.constants: dict[str, Any] = {}
        self.literals: dict[Any, str] = {}
        self.once: list[str] = []
        self.each: list[str] = []
        self.still: set[Var] = set(graph.closed)  # values whose array is the same object at every step
        self.target: dict[Var, str] = {}
        self.whole: set[Var] = set()  # values that fill the buffer that they are in
        self.buffered: set[Var] = set()  # values that were given one
        self.free: dict[tuple[tuple[int, ...], np.dtype[Any]], list[str]] = {}
        # What a value may lie in the memory of: what a view looks at is needed as long as the view is.
        self.roots: dict[Var, tuple[Var, ...]] = {}
        uses: Counter[Var] = Counter()
        self.last: dict[Var, int] = {}
        for n, e in enumerate(graph.equations):
            uses.update(e.vars)
            for v in e.vars:
                self.read(v, n)
            if not _into_a_buffer(e):
                self.roots[e.output] = tuple({root: None for v in e.vars for root in self.roots.get(v, (v,))})
        for x in graph.outputs:
            if isinstance(x, Var):
                uses[x] += 1
                self.read(x, len(graph.equations))
        # A product that is only summed over a row is the dot product of two rows.
        self.dots: dict[Var, Equation] = {}
        made = {e.output: e for e in graph.equations}
        for n, e in enumerate(graph.equations):
            inner = next(e.vars, None) if _sums_rows(e) else None
            product = made.get(inner) if inner is not None and uses[inner] == 1 else None
            if product is None or product.primitive.name != "mul" or product.output.dtype not in BLAS:
                continue
            if all(isinstance(y, Var) and y.shape == product.output.shape for y in product.inputs):
                self.dots[product.output] = product
                for v in product.vars:
                    self.read(v, n)

    def read(self, v: Var, n: int) -> None:
        """Note that equation n needs a value, and what it lies in the memory of."""
        for x in (v, *self.roots.get(v, ())):
            self.last[x] = max(self.last.get(x, n), n)

    def name(self, x: Operand, like: np.dtype[Any] | None = None) -> str:
        if isinstance(x, Var):
            if x not in self.names:
                self.names[x] = f"v{len(self.names)}"
            return self.names[x]
        if like in BLAS and not isinstance(x, bool):
            # A ufunc takes an array without axes in half the time of a Python number.
            key = (like, x, math.copysign(1, x))
            if key not in self.literals:
                self.literals[key] = self.constant(np.array(x, like))
            return self.literals[key]
        return repr(x) if math.isfinite(x) else self.constant(x)

    def constant(self, value: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def ones(self, n: int, dtype: np.dtype[Any], column: bool = False) -> str:
        key = ("ones", n, dtype, column)
        if key not in self.literals:
            self.literals[key] = self.constant(np.ones((n, 1) if column else n, dtype))
        return self.literals[key]

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
        """A buffer that nobody uses."""
        free = self.free.setdefault((shape, dtype), [])
        if free:
            return free.pop()
        name = f"b{len(self.once)}"
        self.once.append(f"{name} = empty({shape!r}, {self.constant(dtype)})")
        return name

    def give(self, v: Var) -> None:
        if v in self.whole:
            self.whole.discard(v)
            self.free[v.shape, v.dtype].append(self.names[v])

    def buffer(self, v: Var) -> str:
        """Where an equation writes: a slice of an output stack, else a buffer."""
        if v in self.target:
            self.each.append(f"{self.name(v)} = {self.target[v]}")
        else:
            self.names[v] = self.take(v.shape, v.dtype)
            self.still.add(v)
            self.whole.add(v)
            self.buffered.add(v)
        return self.name(v)

    def done(self, n: int, e: Equation) -> None:
        """Give back the buffers that no later equation reads."""
        seen = [*e.vars, e.output, *(x for v in e.vars if v in self.dots for x in self.dots[v].vars)]
        for v in dict.fromkeys([*seen, *(root for x in seen for root in self.roots.get(x, ()))]):
            if self.last.get(v, -1) <= n:
                self.give(v)

    def equation(self, n: int, e: Equation) -> None:
        name = e.primitive.name
        if e.output in self.dots:
            return
        if is_view(e):
            self.view(e)
        elif name in UFUNCS or name == "sigmoid":
            like = next((v.dtype for v in e.vars), None)
            inputs = [self.name(x, like) for x in e.inputs]
            # Element by element, the result may take the place of an input.
            for v in dict.fromkeys(e.vars):
                if self.last[v] <= n:
                    self.give(v)
            out = self.buffer(e.output)
            function = f"np.{UFUNCS[name]}" if name in UFUNCS else "ops.sigmoid"
            if name == "power" and not isinstance(e.inputs[1], Var) and e.inputs[1] in POWERS and like in BLAS:
                function, inputs = f"np.{POWERS[e.inputs[1]]}", inputs[:1]
            # By place it takes less time, but these two warn.
            to = f"out={out}" if name in ("maximum", "minimum") else out
            self.each.append(f"{function}({', '.join([*inputs, to])})")
        elif name == "matmul":
            x, y = e.vars
            flat = len(x.shape) == len(y.shape) == 2 and x.dtype == y.dtype and x.dtype in BLAS
            inputs, out = [self.name(v) for v in e.vars], self.buffer(e.output)
            self.each.append(f"np.{'dot' if flat else 'matmul'}({', '.join(inputs)}, {out})")
        elif name in REDUCTIONS and _into_a_buffer(e):
            self.reduction(e)
        elif name == "concatenate":
            inputs, out = [self.name(x) for x in e.inputs], self.buffer(e.output)
            self.each.append(f"np.concatenate(({', '.join(inputs)},), {e.params['axis']}, {out})")
        elif name == "where":
            inputs, out = [self.name(x) for x in e.inputs], self.buffer(e.output)
            self.each.append(f"np.copyto({out}, {inputs[2]}); np.copyto({out}, {inputs[1]}, where={inputs[0]})")
        else:
            inputs = [self.name(x) for x in e.inputs]
            params = [f"{key}={self.constant(value)}" for key, value in e.params.items()]
            self.each.append(f"{self.name(e.output)} = asarray(ops.{name}({', '.join([*inputs, *params])}))")
            self.copy_to_target(e.output)
        self.done(n, e)

    def reduction(self, e: Equation) -> None:
        (x,), axis, keep = e.vars, e.params["axis"], e.params["keepdims"]
        if x in self.dots:
            left, right = self.dots[x].vars
            out = self.buffer(e.output)
            end = "[..., 0]" if keep else ""
            self.each.append(f"np.vecdot({self.name(left)}, {self.name(right)}, {out}{end})")
            return
        inner, out = self.name(x), self.buffer(e.output)
        flat = e.primitive.name == "sum" and len(x.shape) == 2 and x.dtype in BLAS and e.output.dtype == x.dtype
        if flat and axis == (-1,):  # BLAS adds up a row in a third of the time that NumPy does
            ones = self.ones(x.shape[-1], x.dtype, column=keep)
            self.each.append(f"np.dot({inner}, {ones}, {out})")
        elif flat and axis == (-2,) and not keep:
            self.each.append(f"np.dot({self.ones(x.shape[0], x.dtype)}, {inner}, {out})")
        else:
            which = axis[0] if len(axis) == 1 else axis
            self.each.append(f"np.{REDUCTIONS[e.primitive.name]}.reduce({inner}, {which}, None, {out}, {keep})")

    def view(self, e: Equation) -> None:
        """A view of a buffer that stays where it is is taken once. (A reshape of a view may be a copy.)"""
        name, (x,), v = e.primitive.name, e.vars, e.output
        still = x in (self.whole | set(self.graph.closed) if name == "reshape" else self.still) and v not in self.target
        if still:
            self.still.add(v)
        inner = self.name(x)
        if name == "getitem":
            text = f"{inner}[{self.constant(e.params['key'])}]"
        elif name == "reshape":
            text = f"{inner}.reshape({e.params['shape']!r})"
        elif name == "permute":
            axes = full_permutation(e.params["axes"], len(x.shape))
            text = f"{inner}.transpose({axes!r})"
        else:
            text = f"np.broadcast_to({inner}, {e.params['shape']!r})"
        (self.once if still else self.each).append(f"{self.name(v)} = {text}")
        self.copy_to_target(v)

    def copy_to_target(self, v: Var) -> None:
        if v in self.target:
            self.each.append(f"{self.target[v]} = {self.name(v)}")


def _unpacked(names: Sequence[str], what: str) -> list[str]:
    return [f"{', '.join(names)}{',' if len(names) == 1 else ''} = {what}"] if names else []


def source(step: Step) -> tuple[str, dict[str, Any]]:
    """The source of ``loop(carry, stacks, closed, steps, reverse)``, and the constants that it names.

    It returns the last carry, the histories (T + 1, ...), the written stacks (T, ...), and the sums.
    """
    outputs = step.graph.outputs
    added = [v for total in step.sums for v in total.inputs]
    graph = Graph(step.graph.inputs, step.graph.equations, (*outputs, *added), step.graph.closed)
    graph = common_subexpressions(rewrite(graph, _reciprocals))
    new_carry, stacked, summed = (
        graph.outputs[: step.carries], graph.outputs[step.carries : len(outputs)], graph.outputs[len(outputs) :]
    )  # fmt: skip
    w = _Writer(graph)
    carry = [w.name(v) for v in step.carry]
    stacks = [f"s{i}" for i in range(len(step.slices))]
    closed = [w.name(v) for v in graph.closed]
    histories = [f"h{i}" for i in step.histories]
    written = [f"w{i}" for i in range(len(stacked))]
    inputs = {*graph.inputs, *graph.closed}
    # What an equation computes is written where it is wanted, if it is wanted at one place and made here.
    copies: list[str] = []
    wanted: list[tuple[Operand, str]] = [
        *((new_carry[i], f"h{i}[after, ...]") for i in step.histories),
        *((v, f"w{i}[t, ...]") for i, v in enumerate(stacked)),
    ]
    for v, place in wanted:
        if isinstance(v, Var) and v not in inputs and v not in w.target:
            w.target[v] = place
        else:
            copies.append(f"{place} = {w.name(v)}")
    for v, stack in zip(step.slices, stacks, strict=True):
        w.each.append(f"{w.name(v)} = {stack}[t]")
    for n, e in enumerate(graph.equations):
        w.equation(n, e)
    w.each += copies
    sums = [f"g{i}" for i in range(len(step.sums))]
    for g, total, v in zip(sums, step.sums, summed, strict=True):
        assert isinstance(v, Var)
        if total.kind == "rows":
            row = w.take((v.shape[-1],), v.dtype)
            if v.dtype in BLAS:
                w.each.append(f"np.dot({w.ones(v.shape[0], v.dtype)}, {w.name(v)}, {row})")
            else:
                w.each.append(f"np.add.reduce({w.name(v)}, 0, None, {row})")
            w.each.append(f"{g} += {row}")
            w.free[(v.shape[-1],), v.dtype].append(row)
        else:
            w.each.append(f"{g} += {w.name(v)}")
    # The next step must not find its input overwritten: a carry in a buffer that stays is copied.
    news = []
    for new in new_carry:
        copied = isinstance(new, Var) and any(root in w.buffered for root in w.roots.get(new, (new,)))
        news.append(f"{w.name(new)}.copy()" if copied else w.name(new))
    w.each += _unpacked(carry, f"{', '.join(news)}{',' if len(news) == 1 else ''}")
    lines = [
        "def loop(carry, stacks, closed, steps, reverse):",
        *(f"    {line}" for line in (*_unpacked(carry, "carry"), *_unpacked(stacks, "stacks"), *_unpacked(closed, "closed"))),
        *(
            f"    h{i} = stack((steps + 1, *{step.carry[i].shape!r}), {w.constant(step.carry[i].dtype)}); "
            f"h{i}[steps if reverse else 0] = {carry[i]}"
            for i in step.histories
        ),
        *(
            f"    w{i} = stack((steps, *{v.shape!r}), {w.constant(v.dtype)})"
            for i, v in enumerate(stacked)
            if isinstance(v, Var)
        ),
        *(
            f"    {g} = np.zeros({(v.shape[-1:] if total.kind == 'rows' else v.shape)!r}, {w.constant(v.dtype)})"
            for g, total, v in zip(sums, step.sums, summed, strict=True)
            if isinstance(v, Var)
        ),
        *(f"    {line}" for line in w.once),
        "    for t in range(steps - 1, -1, -1) if reverse else range(steps):",
        "        after = t if reverse else t + 1",
        *(f"        {line}" for line in w.each),
        *(f"    {g} = {g}.reshape({total.var.shape!r})" for g, total in zip(sums, step.sums, strict=True)),
        f"    return [{', '.join(carry)}], [{', '.join(histories)}], [{', '.join(written)}], [{', '.join(sums)}]",
    ]
    return "\n".join(lines) + "\n", w.constants


def compile_loop(step: Step, backend: Backend) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
    """The step as a loop on NumPy arrays.

    Raises:
        CannotFuse: what was fused into the step is so small that it takes less time for all steps at once.
    """
    equations = step.graph.equations
    joined = (*equations[: step.before], *equations[len(equations) - step.after :])
    values = {v for e in joined for v in (*e.vars, e.output)} | {v for total in step.sums for v in total.inputs}
    if values and max(math.prod(v.shape) * v.dtype.itemsize for v in values) < LARGE:
        raise CannotFuse("arrays of a few numbers")
    text, constants = source(step)
    debug.show("source", "Python", text)
    name = f"<tinyseq loop {_serial()}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # so that a traceback shows it
    given = {"np": np, "empty": np.empty, "stack": memory.empty, "asarray": np.asarray, "ops": backend.ops}
    space: dict[str, Any] = {**given, **constants}
    exec(compile(text, name, "exec"), space)
    return space["loop"]
