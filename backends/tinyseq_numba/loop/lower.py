"""Operations written in terms of those that the kernel has code for.

Products of one vector a row with a matrix of its own, such as an attention's read, are multiplications and sums: the kernel
walks the matrix of a row once and multiplies, adds up and whatever else there is to do on the way.

An index by ids is one of two operations that only a kernel has:

    lookup(table, ids)    a row of the table for each id: (V, N) and (..., 1) give (..., N)
    pick(numbers, ids)    a number for each id: (V,) and (...) give (...)

Where ``own`` is set, each row of the batch has a table or numbers of its own: ``x[rows, ids]``, with rows 0, 1, 2 ... Where
something goes to one place in a row, all positions are compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyseq.array_api import INDEX
from tinyseq.graph import Equation, Graph, Operand, Var
from tinyseq.primitives import TABLE, Primitive

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["LOOKUP", "PICK", "lower", "row_numbers"]

LOOKUP = Primitive("lookup", lambda x, ids, *, own: ((*ids.shape[:-1], x.shape[-1]), x.dtype), ())
PICK = Primitive("pick", lambda x, ids, *, own: (ids.shape, x.dtype), ())


def lower(step: Step) -> Step:
    """The step without products of more than two axes and without indices, as far as there is another way to write them."""
    equations = step.graph.equations
    first, last = step.before, len(equations) - step.after
    numbered = _numbered(step)
    before, loop, after = (_lowered(part, numbered) for part in (equations[:first], equations[first:last], equations[last:]))
    if all(x is y for x, y in zip((*before, *loop, *after), equations, strict=False)):
        return step
    graph = Graph(step.graph.inputs, (*before, *loop, *after), step.graph.outputs, step.graph.closed).check()
    return replace(step, graph=graph, before=len(before), after=len(after))


def _lowered(equations: Sequence[Equation], numbered: frozenset[Operand]) -> list[Equation]:
    plain = [new for e in equations for new in _plain(e, numbered)]
    return [new for e in plain for new in (_one_axis(e) if e.primitive.name in ("sum", "max", "min") else (e,))]


def _plain(e: Equation, numbered: frozenset[Operand]) -> Sequence[Equation]:
    name = e.primitive.name
    if name == "matmul":
        return _product(e)
    if name in ("argmax", "argmin"):
        return _extreme_place(e)
    if name in ("getitem", "scatter_add") and len(e.inputs) > 1:
        return (_index if name == "getitem" else _scatter)(e, _own(e, numbered))
    return (e,)


def _numbered(step: Step) -> frozenset[Operand]:
    """Values that number the rows 0, 1, 2 ..., or may do so: of what is closed over, the caller has to look at the numbers."""
    found: set[Operand] = set(step.graph.closed)
    for e in step.graph.equations:
        name, x = e.primitive.name, e.inputs[0]
        if (name == "reshape" and x in found) or (name == "positions" and e.params["axis"] == -len(e.output.shape)):
            found.add(e.output)
    return frozenset(found)


def row_numbers(step: Step) -> frozenset[int]:
    """Which of the closed values have to be 0, 1, 2 ..., one for each row."""
    numbered, made = _numbered(step), {e.output: e for e in step.graph.equations}
    found = set()
    for e in step.graph.equations:
        if _own(e, numbered):
            x = e.inputs[1]
            while x in made and made[x].primitive.name == "reshape":
                x = made[x].inputs[0]
            if x in step.graph.closed:
                found.add(step.graph.closed.index(x))
    return frozenset(found)


def _own(e: Equation, numbered: frozenset[Operand]) -> bool:
    """Whether an index takes one number or one line of each row, ``x[rows, ids]``."""
    if e.primitive.name not in ("getitem", "scatter_add") or e.params["key"] != (INDEX, INDEX) or e.inputs[1] not in numbered:
        return False
    x, rows, ids = e.inputs
    whole = x if e.primitive.name == "getitem" else e.output
    if not isinstance(whole, Var) or not isinstance(rows, Var) or not isinstance(ids, Var):
        return False
    return rows.shape == (whole.shape[0],) + (1,) * (len(ids.shape) - 1) and ids.shape[:1] == rows.shape[:1]


class _Emitter:
    """Collects equations."""

    def __init__(self) -> None:
        self.made: list[Equation] = []

    def __call__(self, primitive: str | Primitive, *inputs: Operand, output: Var | None = None, **params: Any) -> Var:
        row = TABLE[primitive] if isinstance(primitive, str) else primitive
        if output is None:
            shape, dtype = row.shape(*inputs, **params)
            output = Var(tuple(shape), dtype)
        self.made.append(Equation(row, inputs, params, output))
        return output

    def reshaped(self, x: Var, *shape: int) -> Var:
        return x if x.shape == shape else self("reshape", x, shape=shape)


def _one_axis(e: Equation) -> Sequence[Equation]:
    """The sum over an axis of one is the thing itself; over lines of one number it is that of a line."""
    (x,), shape = e.inputs, e.output.shape
    if not isinstance(x, Var) or len(x.shape) != 3 or len(e.params["axis"]) != 1 or min(x.shape[1:]) != 1:
        return (e,)
    (axis,) = e.params["axis"]
    if x.shape[axis] == 1:
        return (Equation(TABLE["reshape"], (x,), {"shape": shape}, e.output),)
    line, total = Var((x.shape[0], x.shape[axis]), x.dtype), Var((x.shape[0], 1), x.dtype)
    return (
        Equation(TABLE["reshape"], (x,), {"shape": line.shape}, line),
        Equation(e.primitive, (line,), {"axis": (-1,), "keepdims": True}, total),
        Equation(TABLE["reshape"], (total,), {"shape": shape}, e.output),
    )


def _product(e: Equation) -> Sequence[Equation]:
    """A product (B, M, K) @ (B, K, N), or @ (K, N), in which an axis is one; any other as it is."""
    (left, right), out = e.inputs, e.output
    if len(out.shape) != 3 or not isinstance(left, Var) or not isinstance(right, Var) or len(left.shape) != 3:
        return (e,)
    (batch, rows, inner), emit = left.shape, _Emitter()
    if inner == 1:
        emit("mul", left, right, output=out)
    elif rows == 1 and len(right.shape) == 2:
        emit("reshape", emit("matmul", emit.reshaped(left, batch, inner), right), output=out, shape=out.shape)
    elif right.shape[-1] == 1:
        parts = emit("mul", left, emit.reshaped(right, *right.shape[:-2], 1, inner))
        emit("sum", parts, output=out, axis=(-1,), keepdims=True)
    elif rows == 1:
        parts = emit("mul", emit.reshaped(left, batch, inner, 1), right)
        emit("sum", parts, output=out, axis=(-2,), keepdims=True)
    else:
        return (e,)
    return emit.made


def _extreme_place(e: Equation) -> Sequence[Equation]:
    """Where the largest or smallest feature is: the least position of those that equal it. NaN is both, as in NumPy."""
    (x,), out, emit = e.inputs, e.output, _Emitter()
    if not isinstance(x, Var) or e.params["axis"] != -1:
        return (e,)
    best = emit("max" if e.primitive.name == "argmax" else "min", x, axis=(-1,), keepdims=True)
    found = emit("eq", x, best)
    if x.dtype.kind == "f":
        found = emit("logical_or", found, emit("isnan", x))
    places = emit("where", found, emit("positions", x, axis=-1), x.shape[-1])
    emit("min", places, output=out, axis=(-1,), keepdims=False)
    return emit.made


def _index(e: Equation, own: bool) -> Sequence[Equation]:
    """Numbers or lines by their ids."""
    x, ids = e.inputs[0], e.inputs[-1]
    if not (own or e.params["key"] == (INDEX,)) or not isinstance(x, Var) or not isinstance(ids, Var):
        return (e,)
    features, emit = x.shape[1 + own :], _Emitter()
    if len(features) > 1:
        return (e,)
    if not features or features == (1,):
        numbers = emit.reshaped(x, *x.shape[: 1 + own])
        found = emit(PICK, numbers, ids, own=own)
        if found.shape == e.output.shape:
            emit.made[-1] = emit.made[-1].with_inputs((numbers, ids), e.output)
        else:
            emit("reshape", found, output=e.output, shape=e.output.shape)
    else:
        emit(LOOKUP, x, emit.reshaped(ids, *ids.shape, 1), output=e.output, own=own)
    return emit.made


def _scatter(e: Equation, own: bool) -> Sequence[Equation]:
    """What goes to one number or one line of each row: there it is, and elsewhere are zeros."""
    x, ids = e.inputs[0], e.inputs[-1]
    if not own or not isinstance(x, Var) or not isinstance(ids, Var):
        return (e,)
    batch, count, *features = e.output.shape
    several = len(ids.shape) > 1
    if len(features) > 1 or len(ids.shape) > 2 or (several and features):
        return (e,)
    emit = _Emitter()
    ids = emit("where", emit("lt", ids, 0), emit("add", ids, count), ids)
    if several:  # a line for each id, which are added up
        line = emit.reshaped(ids, *ids.shape, 1)
        places = emit("positions", emit("broadcast_to", line, shape=(*ids.shape, count)), axis=-1)
        parts = emit("where", emit("eq", line, places), emit.reshaped(x, *ids.shape, 1), 0.0)
        emit("sum", parts, output=e.output, axis=(-2,), keepdims=False)
        return emit.made
    one = emit.reshaped(ids, batch, 1, *(1,) * len(features))
    places = emit("positions", emit("broadcast_to", one, shape=(batch, count, *one.shape[2:])), axis=1 - len(one.shape))
    emit("where", emit("eq", one, places), emit.reshaped(x, batch, 1, *features), 0.0, output=e.output)
    return emit.made
