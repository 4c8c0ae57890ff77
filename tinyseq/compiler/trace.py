"""From a function to a Graph: call it once on values that have a shape and a dtype but no numbers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

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
REMEMBERED = 64  # traces, each of other arguments
LEFT = (
    "a traced tensor has left the scan or function that it was made in and has no numbers; return it from there, as a part of "
    "the carry or as y, and use what scan returns"
)


class _Line(NamedTuple):
    """An operation of a trace: what it does to which values, and what comes out."""

    primitive: Primitive
    numbers: tuple[int, ...]  # of the values that it takes; -1 for a constant
    constants: tuple[Any, ...]
    params: dict[str, Any]
    shape: tuple[int, ...]
    dtype: Any
    pull: Any

    def does(self, primitive: Primitive, numbers: tuple[int, ...], constants: Sequence[Any], params: dict[str, Any]) -> bool:
        """Whether this is the same operation on the same values."""
        if primitive is not self.primitive or numbers != self.numbers:
            return False
        return (params is self.params or _alike(params, self.params)) and (
            not constants or _alike(tuple(constants), self.constants)
        )


@dataclass(frozen=True)
class _Memory:
    """A whole trace.

    Attributes:
        lines: what was done.
        given: the shape and dtype of each value that no operation gave, by its number.
        keys: for some outputs, by their numbers, the key of the graph.
    """

    lines: tuple[_Line, ...]
    given: dict[int, tuple[Any, ...]]
    keys: dict[tuple[int, ...], _Key] = field(default_factory=dict)


class _Key:
    """A value that is compared by its content and hashed once."""

    __slots__ = ("content", "number")

    def __init__(self, content: Any) -> None:
        self.content = content
        self.number = hash(content)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, _Key) and self.content == other.content)


_memories: OrderedDict[Any, _Memory] = OrderedDict()


class Trace(Tracer):
    """The backend of traced Tensors: an operation records an equation and computes nothing.

    Tensors with numbers that meet traced ones are what the function closes over; they become inputs of the graph, so
    that gradients reach them.

    A function is traced anew at every call, since nobody knows what its code depends on. But as long as it does, operation
    by operation, what the last trace with such arguments did, shapes and dtypes are known from there.
    """

    name: ClassVar[str] = "trace"

    def __init__(self) -> None:  # no array library, no table: `apply` is all there is
        self.level = _level()
        self.ended = False
        self.host = current_backend()
        self.closed: dict[Any, tuple[Tensor, Tensor]] = {}
        self.nodes: list[Node] = []
        self.lines: list[_Line] = []
        self.given: dict[int, tuple[Any, ...]] = {}
        self.count = 0  # of the values so far: arguments, what is closed over, results
        self.memory: _Memory | None = None  # of a trace that has done the same so far
        self.fused = {}
        self.ops = SimpleNamespace()

    @property
    def device(self) -> str:
        """Nowhere: checks that look at values are left out."""
        return "trace"

    def new(self, shape: Sequence[int], dtype: Any, name: str | None = None) -> Tensor:
        """A traced Tensor that is an input of the graph."""
        shape = tuple(shape)
        self.given[self.count] = kind = shape, dtype
        if self.memory is not None and self.memory.given.get(self.count) != kind:
            self._leave()
        self.count += 1
        return Tensor(Abstract(self, shape, dtype, self.count - 1), Leaf(shape, dtype, name))

    def follow(self) -> None:
        """Called when the arguments are there: look for a trace that had the same."""
        self.memory = _memories.get(tuple(self.given.values()))

    def _leave(self) -> None:
        """This trace is another than the one in memory."""
        assert self.memory is not None
        self.lines = list(self.memory.lines[: len(self.nodes)])
        self.memory = None

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
        operands, parents, numbers, constants = [], [], [], []
        for x in inputs:
            if isinstance(x, Tensor):
                value = x.data
                if type(value) is not Abstract or value.tracer is not self:
                    x = self.inside(x)
                    value = x.data
                operands.append(value)
                parents.append(x.node)
                numbers.append(value.number)
            else:
                operands.append(x)
                parents.append(None)
                numbers.append(-1)
                constants.append(x)
        arrays, at = tuple(operands), len(self.nodes)
        if self.memory is not None:
            lines = self.memory.lines
            if at == len(lines) or not lines[at].does(primitive, tuple(numbers), constants, params):
                self._leave()
        if self.memory is not None:
            line = self.memory.lines[at]
        else:
            shape, dtype = primitive.shape(*arrays, **params)
            mask = sum(1 << i for i, parent in enumerate(parents) if parent is not None) | 1 << len(parents)
            pull = primitive.plan(mask)[2]
            line = _Line(primitive, tuple(numbers), tuple(constants), params, tuple(shape), dtype, pull)
            self.lines.append(line)
        output = Abstract(self, line.shape, line.dtype, self.count)
        self.count += 1
        # Whatever the VJPs will want is at hand: abstract values hold no memory.
        m = mode.current()
        node = Node(primitive, tuple(parents), arrays, output, params, line.shape, line.dtype, m.scope, line.pull)
        self.nodes.append(node)
        result = Tensor(output, node)
        # Under no_grad within the traced function no gradient flows back through the result.
        return result if m.recording or not primitive.differentiable else self.apply(TABLE["detach"], (result,), {})

    def key(self, arguments: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
        """A value that is equal for traces of the same operations in the same order, once the function has returned."""
        memory = self.memory
        if memory is None or len(memory.lines) != len(self.nodes) or len(memory.given) != len(self.given):
            lines = self.lines if self.memory is None else self.memory.lines[: len(self.nodes)]
            memory = _Memory(tuple(lines), dict(self.given))
            _memories[tuple(memory.given[i] for i in range(len(arguments)))] = memory
            if len(_memories) > REMEMBERED:
                _memories.popitem(last=False)
        self.memory = None
        ends = tuple([y.data.number for y in outputs])
        if ends not in memory.keys:
            what = [(e.primitive.name, e.numbers, constant_key(e.constants), constant_key(e.params)) for e in memory.lines]
            memory.keys[ends] = _Key((len(arguments), tuple(memory.given.items()), tuple(what), ends))
        return memory.keys[ends]


def _alike(x: Any, y: Any) -> bool:
    """Whether constants or metadata are the same: of one type, and equal; as ``constant_key`` says, but in less time."""
    if x is y:
        return True
    kind = type(x)
    if kind is not type(y):
        return False
    if kind is tuple:
        return len(x) == len(y) and all(map(_alike, x, y))
    if kind is dict:
        return len(x) == len(y) and all(name in y and _alike(value, y[name]) for name, value in x.items())
    if kind is slice:
        return _alike(x.start, y.start) and _alike(x.stop, y.stop) and _alike(x.step, y.step)
    if isinstance(x, float):
        return x.hex() == y.hex()
    return bool(x == y)


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
