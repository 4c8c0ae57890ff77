"""Products of one vector a row with a matrix of its own, such as an attention's read, as multiplications and sums.

The kernel walks the matrix of a row once and multiplies, adds up and whatever else there is to do on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyseq.graph import Equation, Graph, Operand, Var
from tinyseq.primitives import TABLE

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["lower"]


def lower(step: Step) -> Step:
    """The step without products of more than two axes, as far as there is another way to write them."""
    equations = step.graph.equations
    first, last = step.before, len(equations) - step.after
    before, loop, after = (_lowered(part) for part in (equations[:first], equations[first:last], equations[last:]))
    if len(before) + len(loop) + len(after) == len(equations):
        return step
    graph = Graph(step.graph.inputs, (*before, *loop, *after), step.graph.outputs, step.graph.closed).check()
    return replace(step, graph=graph, before=len(before), after=len(after))


def _lowered(equations: Sequence[Equation]) -> list[Equation]:
    plain = [new for e in equations for new in (_product(e) if e.primitive.name == "matmul" else (e,))]
    return [new for e in plain for new in (_one_axis(e) if e.primitive.name in ("sum", "max", "min") else (e,))]


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
    (batch, rows, inner), columns = left.shape, right.shape[-1]
    made: list[Equation] = []

    def emit(name: str, *inputs: Operand, output: Var, **params: Any) -> Var:
        made.append(Equation(TABLE[name], inputs, params, output))
        return output

    def reshaped(x: Var, *shape: int) -> Var:
        return x if x.shape == shape else emit("reshape", x, output=Var(shape, x.dtype), shape=shape)

    if inner == 1:
        emit("mul", left, right, output=out)
    elif rows == 1 and len(right.shape) == 2:
        product = emit("matmul", reshaped(left, batch, inner), right, output=Var((batch, columns), out.dtype))
        emit("reshape", product, output=out, shape=out.shape)
    elif columns == 1:
        parts = emit("mul", left, reshaped(right, *right.shape[:-2], 1, inner), output=Var(left.shape, out.dtype))
        emit("sum", parts, output=out, axis=(-1,), keepdims=True)
    elif rows == 1:
        parts = emit("mul", reshaped(left, batch, inner, 1), right, output=Var((batch, inner, columns), out.dtype))
        emit("sum", parts, output=out, axis=(-2,), keepdims=True)
    else:
        return (e,)
    return made
