"""The reference for compiled loops: a step as a Python function of NumPy calls into buffers that are made once."""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.compiler import debug
from tinyseq.graph import Equation, Operand, Var

if TYPE_CHECKING:
    from tinyseq.backend import Backend
    from tinyseq.compiler.loop import Step

__all__ = ["compile_loop", "source"]

Array = np.ndarray[Any, Any]

# Primitives that are one ufunc.
UFUNCS = {
    "neg": "negative", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt", "tanh": "tanh",
    "sin": "sin", "cos": "cos", "abs": "abs", "sign": "sign", "floor": "floor", "add": "add", "sub": "subtract",
    "mul": "multiply", "div": "divide", "power": "power", "remainder": "remainder", "floor_divide": "floor_divide",
    "maximum": "maximum", "minimum": "minimum", "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal",
    "gt": "greater", "ge": "greater_equal", "logical_and": "logical_and", "logical_or": "logical_or",
    "logical_xor": "logical_xor", "logical_not": "logical_not", "isfinite": "isfinite", "isnan": "isnan",
    "matmul": "matmul",
}  # fmt: skip
REDUCTIONS = {"sum": "add", "max": "maximum", "min": "minimum"}
VIEWS = ("reshape", "permute", "getitem", "broadcast_to")
_serial = count(1).__next__


def _arguments(operands: Sequence[str], params: dict[str, str]) -> str:
    return ", ".join([*operands, *(f"{key}={value}" for key, value in params.items())])


class _Writer:
    """Writes the source of one step: what is done once, and what at every step."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.names: dict[Var, str] = {}
        self.constants: dict[str, Any] = {}
        self.once: list[str] = []
        self.each: list[str] = []
        self.still: set[Var] = set()  # values whose array is the same object at every step
        self.whole: set[Var] = set()  # of these, the buffers themselves
        self.target: dict[Var, str] = {}

    def name(self, x: Operand) -> str:
        if not isinstance(x, Var):
            return repr(x) if math.isfinite(x) else self.constant(x)
        if x not in self.names:
            self.names[x] = f"v{len(self.names)}"
        return self.names[x]

    def constant(self, value: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def buffer(self, v: Var) -> str:
        """Where an equation writes: a slice of an output stack, else a buffer of its own."""
        if v in self.target:
            self.each.append(f"{self.name(v)} = {self.target[v]}")
        else:
            self.once.append(f"{self.name(v)} = empty({v.shape!r}, {self.constant(v.dtype)})")
            self.still.add(v)
            self.whole.add(v)
        return self.name(v)

    def equation(self, e: Equation) -> None:
        name, params = e.primitive.name, {key: self.constant(value) for key, value in e.params.items()}
        inputs = [self.name(x) for x in e.inputs]
        if name in VIEWS and len(e.inputs) == 1:
            # A view of a buffer that stays where it is is taken once. (A reshape of a view may be a copy.)
            still = all(v in (self.whole if name == "reshape" else self.still) for v in e.vars) and e.output not in self.target
            lines = self.once if still else self.each
            if still:
                self.still.add(e.output)
            view = "np.broadcast_to" if name == "broadcast_to" else f"ops.{name}"
            lines.append(f"{self.name(e.output)} = {view}({_arguments(inputs, params)})")
            self.copy_to_target(e.output)
            return
        if name in UFUNCS:
            self.each_line(f"np.{UFUNCS[name]}({_arguments(inputs, {'out': self.buffer(e.output)})})")
        elif name in REDUCTIONS and e.output.shape:
            arguments = _arguments(inputs, {**params, "out": self.buffer(e.output)})
            self.each_line(f"np.{REDUCTIONS[name]}.reduce({arguments})")
        elif name == "sigmoid":
            out = self.buffer(e.output)
            self.each_line(f"ops.sigmoid({inputs[0]}, out={out})")
        elif name == "concatenate":
            out = self.buffer(e.output)
            self.each_line(f"np.concatenate(({', '.join(inputs)},), axis={e.params['axis']}, out={out})")
        elif name == "where":
            out = self.buffer(e.output)
            self.each_line(f"np.copyto({out}, {inputs[2]}); np.copyto({out}, {inputs[1]}, where={inputs[0]})")
        else:
            self.each_line(f"{self.name(e.output)} = asarray(ops.{name}({_arguments(inputs, params)}))")
            self.copy_to_target(e.output)

    def each_line(self, line: str) -> None:
        self.each.append(line)

    def copy_to_target(self, v: Var) -> None:
        if v in self.target:
            self.each_line(f"{self.target[v]} = {self.name(v)}")


def source(step: Step) -> tuple[str, dict[str, Any]]:
    """The source of ``loop(carry, stacks, closed, steps, reverse)``, and the constants that it names.

    It returns the last carry, the histories (T + 1, ...), the written stacks (T, ...), and no sums.
    """
    w = _Writer(step)
    carry = [w.name(v) for v in step.carry]
    stacks = [f"s{i}" for i in range(len(step.slices))]
    closed = [w.name(v) for v in step.graph.closed]
    w.still.update(step.graph.closed)
    histories = [f"h{i}" for i in step.histories]
    written = [f"w{i}" for i in range(len(step.written))]
    inputs = {*step.graph.inputs, *step.graph.closed}
    # What an equation computes is written where it is wanted, if it is wanted at one place and made here.
    copies: list[str] = []
    wanted: list[tuple[Operand, str]] = [
        *((step.new_carry[i], f"h{i}[after, ...]") for i in step.histories),
        *((v, f"w{i}[t, ...]") for i, v in enumerate(step.written)),
    ]
    for v, place in wanted:
        if isinstance(v, Var) and v not in inputs and v not in w.target:
            w.target[v] = place
        else:
            copies.append(f"{place} = {w.name(v)}")
    for v, stack in zip(step.slices, stacks, strict=True):
        w.each_line(f"{w.name(v)} = {stack}[t]")
    for e in step.graph.equations:
        w.equation(e)
    for line in copies:
        w.each_line(line)
    # The next step must not find its input overwritten: a carry in a buffer that stays is copied.
    news = []
    for _i, new in enumerate(step.new_carry):
        copied = isinstance(new, Var) and new in w.still and new not in step.graph.closed
        news.append(f"{w.name(new)}.copy()" if copied else w.name(new))
    if news:
        w.each_line(f"{', '.join(carry)}{',' if len(carry) == 1 else ''} = {', '.join(news)}{',' if len(news) == 1 else ''}")

    def unpack(names: Sequence[str], what: str) -> list[str]:
        return [f"{', '.join(names)}{',' if len(names) == 1 else ''} = {what}"] if names else []

    lines = [
        "def loop(carry, stacks, closed, steps, reverse):",
        *(f"    {line}" for line in (*unpack(carry, "carry"), *unpack(stacks, "stacks"), *unpack(closed, "closed"))),
        *(
            f"    h{i} = empty((steps + 1, *{step.carry[i].shape!r}), {w.constant(step.carry[i].dtype)}); "
            f"h{i}[steps if reverse else 0] = {carry[i]}"
            for i in step.histories
        ),
        *(
            f"    w{i} = empty((steps, *{v.shape!r}), {w.constant(v.dtype)})"
            for i, v in enumerate(step.written)
            if isinstance(v, Var)
        ),
        *(f"    {line}" for line in w.once),
        "    for t in range(steps - 1, -1, -1) if reverse else range(steps):",
        "        after = t if reverse else t + 1",
        *(f"        {line}" for line in w.each),
        f"    return [{', '.join(carry)}], [{', '.join(histories)}], [{', '.join(written)}], []",
    ]
    return "\n".join(lines) + "\n", w.constants


def compile_loop(step: Step, backend: Backend) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
    """The step as a loop on NumPy arrays."""
    text, constants = source(step)
    debug.show("source", "Python", text)
    name = f"<tinyseq loop {_serial()}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # so that a traceback shows it
    space: dict[str, Any] = {"np": np, "empty": np.empty, "asarray": np.asarray, "ops": backend.ops, **constants}
    exec(compile(text, name, "exec"), space)
    return space["loop"]
