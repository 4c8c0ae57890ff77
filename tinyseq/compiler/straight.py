"""Running a straight-line graph: a list of calls on numbered places.

A place is emptied when its value is no longer needed, and where a library can write into an array that it is given,
that of such a value is written over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.compiler.passes import ELEMENTWISE
from tinyseq.graph import Equation, Graph, Operand, Var

if TYPE_CHECKING:
    from tinyseq.backend import Backend

__all__ = ["Call", "call_of", "interpreted", "runner"]

Array = Any
FRESH = ELEMENTWISE | {"matmul", "sum"}


@dataclass(frozen=True)
class Call:
    """A part of a program: ``outputs = function(*inputs)``; numbers among the inputs are given as they are.

    Attributes:
        fresh: whether the outputs have memory of their own, and no other value's.
        into: the same operation, element by element, into the array that it is given as ``out``, which may be an input.
    """

    function: Callable[..., Sequence[Array]]
    inputs: tuple[Operand, ...]
    outputs: tuple[Var, ...]
    fresh: bool = False
    into: Callable[..., Array] | None = None


def call_of(e: Equation, backend: Backend) -> Call:
    """An equation as the backend's own operation."""
    operation, params, array_type = backend.table[e.primitive.name], e.params, backend.array_type

    def function(*arrays: Array) -> tuple[Array]:
        output = operation(*arrays, **params)
        return (output if type(output) is array_type else backend.asarray(output),)

    into = operation if isinstance(operation, np.ufunc) and e.primitive.name in ELEMENTWISE else None
    return Call(function, e.inputs, (e.output,), e.primitive.name in FRESH, into)


def interpreted(graph: Graph, backend: Backend) -> Callable[..., list[Array]]:
    """The graph operation by operation, on any backend."""
    return runner(graph, [call_of(e, backend) for e in graph.equations])


def runner(graph: Graph, calls: Sequence[Call]) -> Callable[..., list[Array]]:
    """``program(*arrays)`` from the arrays of the graph's inputs, then of what it closed over, to those of its outputs.

    Args:
        graph: what is computed; its outputs are values, not numbers.
        calls: how, in an order in which they can run.
    """
    given = (*graph.inputs, *graph.closed)
    places: dict[Var, int] = {v: i for i, v in enumerate(given)}
    template: list[Any] = [None] * len(given)

    def place(x: Operand) -> int:
        if isinstance(x, Var) and x in places:
            return places[x]
        template.append(None if isinstance(x, Var) else x)
        if isinstance(x, Var):
            places[x] = len(template) - 1
        return len(template) - 1

    last: dict[Var, int] = {v: n for n, call in enumerate(calls) for v in (*call.inputs, *call.outputs) if isinstance(v, Var)}
    own = {v for call in calls if call.fresh for v in call.outputs}.difference(
        graph.outputs, (v for call in calls if not call.fresh for v in call.inputs)
    )
    steps = []
    for n, call in enumerate(calls):
        gone = [v for v in dict.fromkeys((*call.inputs, *call.outputs)) if isinstance(v, Var) and last[v] == n]
        over = None  # what is written over, since nobody needs it any more
        if call.into is not None:
            (out,) = call.outputs
            over = next((v for v in gone if v in own and v is not out and (v.shape, v.dtype) == (out.shape, out.dtype)), None)
        read, written = [place(x) for x in call.inputs], [place(v) for v in call.outputs]
        unneeded = [places[v] for v in gone if v not in graph.outputs]
        steps.append((call.function, call.into, read, written, unneeded, None if over is None else places[over]))
    outputs = [places[v] for v in graph.outputs if isinstance(v, Var)]

    def program(*arrays: Array) -> list[Array]:
        env = template.copy()
        env[: len(arrays)] = arrays
        for function, into, read, written, unneeded, over in steps:
            if over is None:
                for i, result in zip(written, function(*[env[i] for i in read])):  # noqa: B905 (they are as many)
                    env[i] = result
            else:
                env[written[0]] = into(*[env[i] for i in read], out=env[over])  # type: ignore[misc]
            for i in unneeded:
                env[i] = None
        return [env[i] for i in outputs]

    return program
