"""Running a straight-line graph: a list of calls on numbered places, each place emptied when its value is no longer needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyseq.graph import Equation, Graph, Operand, Var

if TYPE_CHECKING:
    from tinyseq.backend import Backend

__all__ = ["Call", "call_of", "interpreted", "runner"]

Array = Any


@dataclass(frozen=True)
class Call:
    """A part of a program: ``outputs = function(*inputs)``; numbers among the inputs are given as they are."""

    function: Callable[..., Sequence[Array]]
    inputs: tuple[Operand, ...]
    outputs: tuple[Var, ...]


def call_of(e: Equation, backend: Backend) -> Call:
    """An equation as the backend's own operation."""
    operation, params, array_type = backend.table[e.primitive.name], e.params, backend.array_type

    def function(*arrays: Array) -> tuple[Array]:
        output = operation(*arrays, **params)
        return (output if type(output) is array_type else backend.asarray(output),)

    return Call(function, e.inputs, (e.output,))


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

    reads = [[place(x) for x in call.inputs] for call in calls]
    writes = [[place(v) for v in call.outputs] for call in calls]
    last = {i: n for n, call in enumerate(calls) for i in (places[v] for v in (*call.inputs, *call.outputs) if isinstance(v, Var))}
    outputs = [places[v] for v in graph.outputs if isinstance(v, Var)]
    gone: list[list[int]] = [[] for _ in calls]
    for i, n in last.items():
        if i not in outputs:
            gone[n].append(i)
    steps = list(zip([call.function for call in calls], reads, writes, gone, strict=True))

    def program(*arrays: Array) -> list[Array]:
        env = template.copy()
        env[: len(arrays)] = arrays
        for function, read, written, unneeded in steps:
            results = function(*[env[i] for i in read])
            for i, result in zip(written, results):  # noqa: B905 (they are as many, and this is run a thousand times)
                env[i] = result
            for i in unneeded:
                env[i] = None
        return [env[i] for i in outputs]

    return program
