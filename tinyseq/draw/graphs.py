"""What is traced and not computed: functions and modules with example inputs, and graphs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from tinyseq import mode
from tinyseq.compiler.trace import Trace
from tinyseq.draw.reading import Names
from tinyseq.draw.record import Item, Record
from tinyseq.errors import DTypeError
from tinyseq.graph import Graph, Var
from tinyseq.tape import Place
from tinyseq.tensor import Tensor, as_tensor
from tinyseq.tree import flatten

__all__ = ["read_graph", "trace_outputs"]


def read_graph(graph: Graph) -> Record:
    """The record of a graph."""
    record = Record()
    place: dict[Var, int] = {}
    unnamed = 0
    for var in (*graph.inputs, *graph.closed):
        kind: Any = "input" if var in graph.inputs else "parameter" if var.name else "constant"
        title = var.name
        if title is None and kind == "input":
            unnamed += 1
            title = "input" if unnamed == 1 else f"input {unnamed}"
        item = Item(f"n{len(place)}", kind, title or "constant", [], name=title, shape=var.shape, dtype=var.dtype)
        place[var] = record.add(item)
    for e in graph.equations:
        parents = [(place[x], slot) for slot, x in enumerate(e.inputs) if isinstance(x, Var)]
        numbers = tuple(None if isinstance(x, Var) else x for x in e.inputs)
        item = Item(f"n{len(place)}", "operation", e.primitive.name, parents, len(e.inputs), numbers, e.params)
        item.shape, item.dtype, item.name = e.output.shape, e.output.dtype, e.output.name
        place[e.output] = record.add(item)
    record.outputs = list(dict.fromkeys(place[v] for v in graph.outputs if isinstance(v, Var)))
    for i in record.outputs:
        if record.items[i].kind == "operation":
            record.items[i].kind = "output"
    return record


def trace_outputs(
    function: Callable[..., Any], examples: Sequence[Any], names: Names
) -> tuple[list[Place], dict[Place, Tensor]]:
    """Call a function on tensors that have shapes and dtypes but no numbers.

    Returns:
        where its results are recorded, and what places of that record stand for: the tensors it closed over.

    Raises:
        DTypeError: it returns no tensor.
        GraphError: it looks at a value.
    """
    tracer = Trace()
    leaves, kinds = flatten(list(examples))
    given = [as_tensor(leaf) for leaf in leaves]
    titles = _titles(function, kinds.paths())
    arguments = [tracer.new(x.shape, x.dtype, None) for x in given]
    for argument, title, original in zip(arguments, titles, given, strict=True):
        assert argument.node is not None
        own = names.of(original.data if original.node is None else original.node)
        names.known[id(argument.node)] = (own or title, False)
    with mode.changed(recording=True, tracing=True):
        result = function(*kinds.unflatten(arguments))
    outputs = [x for x in flatten(result)[0] if isinstance(x, Tensor)]
    if not outputs:
        raise DTypeError(f"draw traced a function that returned a {type(result).__name__}; it must return tensors")
    places = list(dict.fromkeys(place for x in map(tracer.inside, outputs) if (place := x.node) is not None))
    closed: dict[Place, Tensor] = {}
    for original, inner in tracer.closed.values():
        assert inner.node is not None
        closed[inner.node] = original
        if original.node is None:
            names.constant(inner.node, original)
    names.keep = [arguments, tracer]  # identities must last as long as the names
    return places, closed


def _titles(function: Callable[..., Any], paths: Sequence[str]) -> list[str]:
    """What the function calls each of its inputs; ``paths`` lead to them from the tuple of all arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # written in C
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    titles = []
    for path in paths:
        number, dot, rest = path.partition(".")
        at = int(number or 0)
        own = plain[at] if at < len(plain) else "input" if len(paths) == 1 else f"input {at}"
        titles.append(own + dot + rest)
    return titles
