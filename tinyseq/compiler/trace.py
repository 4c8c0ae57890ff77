"""From a function to a Graph: call it once on values that have a shape and a dtype but no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from tinyseq import mode
from tinyseq.abstract import Abstract, Tracer
from tinyseq.backend import canonical_dtype, current_backend
from tinyseq.errors import GraphError
from tinyseq.graph import Equation, Graph, Operand, Var, constant_key
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tape import Leaf, Node, Place, ancestors
from tinyseq.tensor import Tensor, as_tensor

__all__ = ["Trace", "Traced", "trace"]

_level = count(1).__next__
LEFT = (
    "a traced tensor has left the scan or function that it was made in and has no numbers; return it from there, as a part of "
    "the carry or as y, and use what scan returns"
)


class Trace(Tracer):
    """The backend of traced Tensors: an operation records an equation and computes nothing.

    Tensors with numbers that meet traced ones are what the function closes over; they become inputs of the graph, so
    that gradients reach them.
    """

    name: ClassVar[str] = "trace"

    def __init__(self) -> None:  # no array library, no table: `apply` is all there is
        self.level = _level()
        self.ended = False
        self.host = current_backend()
        self.closed: dict[Any, tuple[Tensor, Tensor]] = {}
        self.nodes: list[Node] = []
        self.fused = {}
        self.ops = SimpleNamespace()

    @property
    def device(self) -> str:
        """Nowhere: checks that look at values are left out."""
        return "trace"

    def new(self, shape: Sequence[int], dtype: Any, name: str | None = None) -> Tensor:
        """A traced Tensor that is an input of the graph."""
        shape = tuple(shape)
        return Tensor(Abstract(self, shape, dtype), Leaf(shape, dtype, name))

    def asarray(self, value: Any, dtype: Any = None) -> Any:
        """A constant, on the backend that the function will run on."""
        return self.host.asarray(value, dtype)

    def full(self, shape: tuple[int, ...], value: Any, dtype: np.dtype[Any]) -> Any:
        """A constant, on the backend that the function will run on."""
        return self.host.full(shape, value, dtype)

    def to_numpy(self, array: Abstract) -> np.ndarray[Any, Any]:
        """Refused: there are no numbers yet."""
        if self.ended:
            raise GraphError(LEFT)
        raise GraphError(
            f"a traced tensor of shape {array.shape} has no numbers yet, so Python cannot branch on it, print it or turn it "
            f"into an array; use ts.where for a choice, or {self.remedy}"
        )

    @property
    def xp(self) -> Any:
        """Refused: only what depends on values asks for the array library itself."""
        raise GraphError(
            "the shape of this result depends on the values of a traced tensor, which has none yet; use ts.where, or "
            f"{self.remedy}"
        )

    def inside(self, x: Tensor) -> Tensor:
        """The Tensor itself if it is of this trace, else the input that stands for it."""
        if isinstance(x.data, Abstract) and x.data.tracer is self:
            return x
        if isinstance(x.data, Abstract) and x.data.tracer.ended:
            raise GraphError(LEFT)
        # The same array at another place on the tape is another tensor.
        key = (id(x.data), x.node)
        if key not in self.closed:
            name = x.name if isinstance(x.node, Leaf) else None
            self.closed[key] = (x, self.new(x.data.shape, canonical_dtype(x.data.dtype), name))
        return self.closed[key][1]

    def apply(self, primitive: Primitive, inputs: tuple[Any, ...], params: dict[str, Any]) -> Tensor:
        """Record an equation."""
        operands, parents = [], []
        for x in inputs:
            if isinstance(x, Tensor):
                if type(x.data) is not Abstract or x.data.tracer is not self:
                    x = self.inside(x)
                operands.append(x.data)
                parents.append(x.node)
            else:
                operands.append(x)
                parents.append(None)
        arrays = tuple(operands)
        shape, dtype = primitive.shape(*arrays, **params)
        output = Abstract(self, tuple(shape), dtype)
        # Whatever the VJPs will want is at hand: abstract values hold no memory.
        m = mode.current()
        node = Node(primitive, tuple(parents), arrays, output, params, output.shape, dtype, m.scope)
        self.nodes.append(node)
        result = Tensor(output, node)
        # Under no_grad within the traced function no gradient flows back through the result.
        return result if m.recording or not primitive.differentiable else self.apply(TABLE["detach"], (result,), {})

    def key(self, arguments: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
        """A value that is equal for traces of the same operations in the same order."""
        leaves = [x.node for x in (*arguments, *(inner for _, inner in self.closed.values()))]
        numbers: dict[Place | None, int] = {place: i for i, place in enumerate(leaves)}
        lines = []
        for node in self.nodes:
            operands = [
                constant_key(x) if parent is None else numbers[parent]
                for parent, x in zip(node.parents, node.inputs or (), strict=True)
            ]
            lines.append((node.primitive.name, *operands, constant_key(node.params) if node.params else None))
            numbers[node] = len(numbers)
        types = tuple([(x.data.shape, x.data.dtype) for x in (*arguments, *(inner for _, inner in self.closed.values()))])
        return len(arguments), types, tuple(lines), tuple([numbers[y.node] for y in outputs])


@dataclass(frozen=True)
class Traced:
    """A traced function.

    Attributes:
        graph: what it does.
        closed: the Tensors that it closed over, in the order of ``graph.closed``.
        places: where on the tape each value of the graph was recorded.
    """

    graph: Graph
    closed: tuple[Tensor, ...]
    places: dict[Place, Var]


def trace(f: Callable[..., Sequence[Any]], inputs: Sequence[Any], names: Sequence[str | None] = ()) -> Traced:
    """Call ``f`` on traced Tensors and return its Graph.

    Args:
        f: from Tensors to a flat sequence of Tensors or numbers.
        inputs: the shape and dtype of each argument (anything that has both).
        names: names for the inputs, for those who read the graph.

    >>> import tinyseq as ts
    >>> from tinyseq.compiler.trace import trace
    >>> w = ts.Parameter([[1.0], [2.0]])
    >>> print(trace(lambda x: [(x @ w).tanh()], [ts.zeros((3, 2))], ["x"]).graph)
    graph (x: float32[3,2]; a: float32[2,1]) {
      b: float32[3,1] = matmul(x, a)
      c: float32[3,1] = tanh(b)
    } -> (c)
    """
    tracer = Trace()
    names = [*names, *[None] * (len(inputs) - len(names))]
    arguments = [tracer.new(x.shape, x.dtype, name) for x, name in zip(inputs, names, strict=True)]
    with mode.changed(recording=True, tracing=True):
        outputs = [tracer.inside(as_tensor(y)) for y in f(*arguments)]
    tracer.ended = True
    traced = graph_of(tracer, arguments, outputs)
    traced.graph.check()
    return traced


def graph_of(tracer: Trace, arguments: Sequence[Tensor], outputs: Sequence[Tensor | None]) -> Traced:
    """The graph from arguments (and what was closed over) to outputs, read off the tape; None gives the number 0."""
    stand_ins = [inner for _, inner in tracer.closed.values()]
    places: dict[Place, Var] = {}
    for x in (*arguments, *stand_ins):
        assert x.node is not None
        places[x.node] = Var(x.node.shape, x.node.dtype, x.node.name if isinstance(x.node, Leaf) else None)
    equations = []
    for place in ancestors([y.node for y in outputs if y is not None and y.node is not None], places):
        if place in places:
            continue
        assert isinstance(place, Node), f"{place!r} is of another trace"
        operands: list[Operand] = [
            (place.inputs or ())[i] if parent is None else places[parent] for i, parent in enumerate(place.parents)
        ]
        places[place] = Var(place.shape, place.dtype)
        equations.append(Equation(place.primitive, tuple(operands), place.params, places[place]))
    graph = Graph(
        tuple(places[x.node] for x in arguments if x.node is not None),
        tuple(equations),
        tuple(0.0 if y is None or y.node is None else places[y.node] for y in outputs),
        tuple(places[x.node] for x in stand_ins if x.node is not None),
    )
    return Traced(graph, tuple(outer for outer, _ in tracer.closed.values()), places)
