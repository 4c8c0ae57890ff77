"""``jit``: a function of tensors, traced once and from then on run as a compiled program that has a gradient.

The way is that of :func:`tinyseq.scan` without the loop: trace, differentiate on the tape, simplify, keep what the gradient
needs, and hand both directions to the backend (``Backend.compile_graph``). A call is one node on the tape.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from tinyseq import mode
from tinyseq.abstract import Abstract
from tinyseq.backend import Backend, current_backend
from tinyseq.compiler import debug
from tinyseq.compiler.loop import Body, Opened, differentiate, is_view
from tinyseq.compiler.passes import ELEMENTWISE, dead_code
from tinyseq.compiler.trace import Trace
from tinyseq.errors import GraphError
from tinyseq.flow import active as active_flow
from tinyseq.graph import Equation, Graph, Operand, Var, constant_key
from tinyseq.primitives import Primitive
from tinyseq.tape import Node, walk
from tinyseq.tensor import Tensor, apply, as_tensor, link, outputs_of, recorded
from tinyseq.tree import TreeDef, flatten

__all__ = ["Jitted", "jit"]

Array = Any
Function = Callable[..., Any]
CACHED = 128  # programs of one function
MANY = 32  # programs for arguments of one kind, which tell of a mistake
LONGEST = 1000  # a container that is no longer is looked into
# Calls of the C library for each number: their results are kept even where other elementwise work is done again.
COSTLY = frozenset(("erf", "log", "log1p", "sin", "cos", "power", "remainder", "floor_divide"))

ONE_PASS = ELEMENTWISE | {"sum", "max", "min", "reshape", "broadcast_to"}


def jit(f: Function) -> Jitted:
    """``f``, traced at its first call and from then on run as a compiled program.

    ``f`` takes and returns tensors, or nested tuples, lists and dicts of them. Arrays are taken as tensors. Everything else
    in its arguments is static: there is a program for each of its values, as there is for the shapes and dtypes of the
    tensors and for which of them want gradients. So a learning rate that changes is better a tensor than a float.

    On Numba, elementwise work and the sums and maxima of rows become machine code, one pass over memory each, with threads;
    products and the rest stay calls of NumPy. A new number of rows traces anew but compiles nothing. NumPy and CuPy run the
    program operation by operation.

    Tensors that ``f`` closes over, such as parameters, are read at every call and get their gradients. Gradients of any
    order are exact; those above the first run the traced operations on the tape. What else ``f`` closes over or finds
    among its globals (numbers, containers, functions, the attributes of objects such as ``model.training``) is looked at
    at every call, and what has changed makes a new program.

    Within another ``jit`` or the step of a ``scan``, ``f`` is a part of that. A function that runs a ``scan`` is left as it
    is: its loop is compiled by itself. So is one that is called in anomaly mode or within ``trace_gradients``, which look
    inside.

    Args:
        f: a function without side effects. It runs once for each program, so it must not branch on values, draw random
            numbers or change anything outside.

    Raises:
        GraphError: at a call, if ``f`` looks at a value, draws random numbers or assigns to a tensor outside.

    >>> import tinyseq as ts
    >>> w = ts.Parameter([1.0, 2.0])
    >>> @ts.jit
    ... def loss(x):
    ...     return ((w * x).tanh() ** 2).sum()
    >>> value = loss(ts.tensor([0.5, -0.5]))
    >>> value.backward()
    >>> f"{value.item():.2f}", [f"{g:.2f}" for g in w.grad.tolist()], loss.programs
    ('0.79', ['0.36', '0.32'], 1)
    """
    return Jitted(f)


class Jitted:
    """What :func:`jit` returns: called like the function, which is its ``__wrapped__``.

    Attributes:
        programs: how many programs it has made so far.
    """

    def __init__(self, f: Function) -> None:
        self.__wrapped__: Function
        functools.update_wrapper(self, f, updated=())
        self.programs = 0
        self._made: OrderedDict[Any, _Program | None] = OrderedDict()
        self._times: dict[Any, int] = {}  # how many programs there were for arguments of one kind

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result, by its program for arguments of this kind."""
        f, m = self.__wrapped__, mode.current()
        if m.tracing or m.observer is not None or active_flow() is not None:
            return f(*args, **kwargs)
        backend = m.backend or current_backend()
        structure, leaves, tensors = None, args, args  # the usual case: nothing but tensors
        if kwargs or not all(isinstance(x, Tensor) for x in args):
            found, structure = flatten((args, kwargs))
            arrays = (np.ndarray, backend.array_type)
            leaves = tuple([as_tensor(x) if isinstance(x, arrays) else x for x in found])
            tensors = tuple([x for x in leaves if isinstance(x, Tensor)])
        if tensors and type(tensors[0].data) is not backend.array_type:
            backend = tensors[0].backend
        if any(type(x.data) is not backend.array_type for x in tensors):
            return f(*args, **kwargs)  # which says what is wrong
        alike = (id(backend), m.recording, structure, *[_kind_of(x) for x in leaves])
        key = (alike, _seen(f, set()))
        program = self._made.get(key)
        if program is None and key in self._made:
            return f(*args, **kwargs)
        if program is None or not program.fits(m.recording):
            try:
                program = _Program(f, leaves, structure, backend, m.recording)
            except _LeftAlone as reason:
                debug.show("time", f"{self!r} runs as it is: {reason}")
                program = None
            self._keep(key, alike, program)
            if program is None:
                return f(*args, **kwargs)
        self._made.move_to_end(key)
        return program(tensors)

    def _keep(self, key: Any, alike: Any, program: _Program | None) -> None:
        self._made[key] = program
        self.programs += program is not None
        if len(self._made) > CACHED:
            self._made.popitem(last=False)
        if len(self._times) > CACHED:
            self._times.clear()
        self._times[alike] = self._times.get(alike, 0) + 1
        if self._times[alike] == MANY:
            warnings.warn(
                f"{self!r} was traced {MANY} times for arguments of the same kind, since something that it closes over changes "
                "from call to call; pass it as an argument, a number as a tensor",
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return f"<jit of {getattr(self, '__qualname__', self.__wrapped__)}, {self.programs} programs>"


# --- what a function depends on besides the numbers of its tensors ----------------------------------------------------


class _Same:
    """Equal for the same object only, and keeps it alive, so that no other takes its place."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _kind_of(leaf: Any) -> Any:
    """A value that is equal for arguments that make the same program."""
    if isinstance(leaf, Tensor):
        return leaf.data.shape, leaf.data.dtype, leaf.node is not None
    return _seen(leaf, set())


def _seen(value: Any, looked_into: set[int]) -> Any:
    """What of a value could change what a function that reads it does; a tensor is itself, whatever its numbers."""
    kind: Any = type(value)
    if value is None or kind is str or kind is bytes:
        return value
    if kind is int or kind is bool:
        return kind, value
    if kind is float or kind is slice:
        return constant_key(value)
    if isinstance(value, _ITSELF):
        return _Same(value)
    if kind is types.MethodType:
        return _seen(value.__func__, looked_into), _seen(value.__self__, looked_into)
    if kind is Jitted:
        value, kind = value.__wrapped__, type(value.__wrapped__)
    if id(value) in looked_into or (isinstance(value, tuple | list | dict) and len(value) > LONGEST):
        return _Same(value)
    looked_into.add(id(value))
    if isinstance(value, tuple | list):
        return kind, *[_seen(x, looked_into) for x in value]
    if isinstance(value, dict):
        return kind, *[(name, _seen(x, looked_into)) for name, x in value.items()]
    if kind is types.FunctionType:
        return value.__code__, *[_seen(x, looked_into) for x in _read_by(value)]
    if isinstance(value, functools.partial):
        return _seen(value.func, looked_into), _seen(value.args, looked_into), _seen(value.keywords, looked_into)
    inside = getattr(value, "__dict__", None)
    if inside is not None:
        return kind, _seen(_call_of(kind), looked_into), _seen(inside, looked_into)
    if isinstance(value, set):
        return kind, frozenset(value)
    return _Same(value) if kind.__hash__ is None else (kind, value)


_ITSELF = (Tensor, np.ndarray, type, types.ModuleType, Backend)


@functools.cache
def _call_of(kind: type) -> Any:
    """What runs when an object of a class is called, if it is Python."""
    call = inspect.getattr_static(kind, "__call__", None)
    return call if isinstance(call, types.FunctionType | Jitted) else None


def _read_by(f: types.FunctionType) -> Iterator[Any]:
    """What a function closes over, its defaults and the globals that it names; nothing of this library, which is fixed."""
    if (f.__module__ or "").partition(".")[0] == "tinyseq":
        return
    for cell in f.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            yield None
    yield f.__defaults__
    yield f.__kwdefaults__
    space = f.__globals__
    for name in _names(f.__code__):
        if name in space:
            yield space[name]


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names in a function's code and in that of functions within."""
    inner = (name for c in code.co_consts if isinstance(c, types.CodeType) for name in _names(c))
    return tuple(dict.fromkeys((*code.co_names, *inner)))


# --- from a function to a program -------------------------------------------------------------------------------------


class _NoArray:
    """The array type of a backend to which every array is a stranger."""


class _LeftAlone(Exception):
    """The function is not compiled as a whole; the sentence says why."""


class _Staged(Trace):
    """A trace that takes in every operation, also one on tensors with numbers: those may be others at the next call.

    It is the backend in force while it traces, so that it is asked whatever the arrays are.
    """

    array_type = _NoArray  # type: ignore[assignment]
    caller = "jit"
    remedy = "leave that part outside the function that jit compiles"

    def __init__(self, host: Backend) -> None:
        super().__init__()
        self.host = host

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        """Refused: what is traced has no numbers, and what is not may have others at the next call."""
        if isinstance(array, Abstract):
            return super().to_numpy(array)
        raise GraphError(
            f"a function that jit compiles runs once, and the numbers of a tensor of shape {array.shape} outside it may "
            "change; pass them as Python numbers, or leave the part that looks at them outside the function"
        )

    def inside(self, x: Tensor) -> Tensor:
        """As for any trace; but what was closed over is read again at every call, so two tensors of one array are two."""
        if isinstance(x.data, Abstract):
            return super().inside(x)
        key = id(x)
        if key not in self.closed:
            self.closed[key] = (x, self.new(x.data.shape, x.dtype, x.name))
        return self.closed[key][1]

    def loop(self) -> NoReturn:
        """The function is left as it is."""
        raise _LeftAlone("it runs a scan, which is compiled by itself")


class _Program:
    """A traced function for arguments of one kind, on one backend."""

    def __init__(
        self, f: Function, leaves: Sequence[Any], structure: TreeDef | None, backend: Backend, recording: bool
    ) -> None:
        self.backend = backend
        tracer = _Staged(backend)
        given = [x for x in leaves if isinstance(x, Tensor)]
        arguments = [tracer.new(x.shape, x.dtype) for x in given]
        places = iter(arguments)
        traced = [next(places) if isinstance(x, Tensor) else x for x in leaves]
        args, kwargs = (traced, {}) if structure is None else structure.unflatten(traced)
        with mode.changed(recording=True, tracing=True, backend=tracer):
            results, self.structure = flatten(f(*args, **kwargs))
            found = [
                tracer.inside(as_tensor(y)) if isinstance(y, Tensor | np.ndarray | backend.array_type) else None
                for y in results
            ]
        tracer.ended = True
        outputs = [y for y in found if y is not None]
        self.others = [(i, y) for i, (y, there) in enumerate(zip(results, found, strict=True)) if there is None]
        opened = Opened(tracer, arguments, outputs)
        if any(v.dtype.kind == "V" for v in (*opened.traced.graph.inputs, *opened.traced.graph.closed)):
            raise _LeftAlone("compiled gradients know no bfloat16")
        self.graph, self.closed = opened.traced.graph, opened.traced.closed
        self.kinds = self._kinds(recording)
        self.wanted = tuple(recording and x.node is not None for x in (*given, *self.closed))
        self.tracked = _tracked(self.graph, self.wanted)
        body = differentiate(opened, 0, self.wanted)
        debug.show("graph", "a function and its gradient", body.joint)
        # Differentiation may have met constants of its own; they follow what the function closed over.
        self.constants = [x.data for x in body.closed[len(self.closed) :]]
        self._divide(body)

    def _divide(self, body: Body) -> None:
        """The body as a forward program, and what is needed for the backward one."""
        inputs = (*body.x, *body.joint.closed)
        results = [v for v in body.y if isinstance(v, Var)]
        late = set(body.cotangents)
        for e in body.joint.equations:
            if any(v in late for v in e.vars):
                late.add(e.output)
        forward = [e for e in body.joint.equations if e.output not in late]
        backward = [e for e in body.joint.equations if e.output in late]
        gradients = [v for v in body.gradients if isinstance(v, Var)]
        own = {e.output for e in dead_code(Graph(inputs, tuple(forward), tuple(results))).equations}
        kept, again = self._kept({*inputs, *results}, own, forward, backward, gradients)
        backward = [*again, *backward]
        made = {e.output for e in backward}
        used = {*(v for e in backward for v in e.vars), *gradients} - made
        at_hand = dict.fromkeys([*inputs, *results, *kept])  # in the order in which a call has them
        numbers = {v: i for i, v in reversed(list(enumerate([*inputs, *results, *kept])))}
        read = [v for v in at_hand if v in used]
        self.read = [numbers[v] for v in read]
        self.cotangents = body.cotangents
        self.asked = [i for i, v in enumerate(body.gradients) if isinstance(v, Var)]
        self.forward = self._compiled("", Graph(inputs, tuple(forward), (*results, *kept)))
        # Compiled when first asked for: who only infers does not wait for it.
        self._backward: Callable[..., list[Array]] | None = None
        self._gradient = Graph((*read, *body.cotangents), tuple(backward), tuple(gradients))

    def _kept(
        self,
        at_hand: set[Var],
        own: set[Var],
        forward: Sequence[Equation],
        backward: Sequence[Equation],
        gradients: Sequence[Var],
    ) -> tuple[list[Var], list[Equation]]:
        """What the gradient needs of the forward pass: values to keep, and equations to run with the gradient.

        Those are the ones that the results do not need, and views. So is elementwise work, done again, where it is one pass
        over memory with what reads it; what a product or the like reads has to be in memory anyway. ``own`` are the values
        that the results need.
        """
        needed = {*(v for e in backward for v in e.vars), *gradients}
        in_memory = {*(v for e in backward if e.primitive.name not in ONE_PASS for v in e.vars), *gradients}
        kept: list[Var] = []
        again: list[Equation] = []
        for e in reversed(forward):
            name, out = e.primitive.name, e.output
            if out not in needed or out in at_hand:
                continue
            cheap = name in ELEMENTWISE and (name not in COSTLY or (name == "power" and e.inputs[1] == 2))
            free = is_view(e) or name == "positions"
            if out not in own or free or (cheap and self.backend.recomputes and out not in in_memory):
                again.append(e)
                needed.update(e.vars)
                if out in in_memory or name not in ONE_PASS:
                    in_memory.update(e.vars)
            else:
                kept.append(out)
        return kept, again[::-1]

    def _compiled(self, what: str, graph: Graph) -> Callable[..., list[Array]]:
        with debug.timed(f"compiled a function{what} for {self.backend.name}"):
            return self.backend.compile_graph(dead_code(graph).check())

    def _kinds(self, recording: bool) -> list[Any]:
        return [(x.data.shape, x.data.dtype, recording and x.node is not None) for x in self.closed]

    def fits(self, recording: bool) -> bool:
        """Whether what the function closed over still is of the same shapes, dtypes and wants."""
        return self.kinds == self._kinds(recording)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returns for tensors of these kinds."""
        inputs = (*tensors, *self.closed)
        arrays = [*[x.data for x in inputs], *self.constants]
        found = self.forward(*arrays)
        results = found[: len(self.tracked)]
        if True in self.tracked:
            everything = [*arrays, *found]
            kept = [everything[i] for i in self.read]
            parents = tuple([x.node if want else None for x, want in zip(inputs, self.wanted, strict=True)])
            # The inputs are for gradients of higher order only; they cost nothing as long as others hold them.
            given = tuple([x.data for x in inputs])
            node = Node(_JIT, parents, given, kept, {"program": self}, (), None, mode.current().scope)
            ys = outputs_of(node, results)
            ys = [y if own else Tensor(y.data) for y, own in zip(ys, self.tracked, strict=True)]
        else:
            ys = [Tensor(a) for a in results]
        for i, other in self.others:
            ys.insert(i, other)
        return self.structure.unflatten(ys)

    def pull(self, g: Sequence[Array | None], kept: Sequence[Array]) -> list[Array | None]:
        """The cotangents of all inputs, by the compiled gradient."""
        if self._backward is None:
            self._backward = self._compiled("'s gradient", self._gradient)
        backend = self.backend
        cotangents = [
            backend.full(v.shape, 0, v.dtype) if part is None else backend.asarray(part)
            for part, v in zip(g, self.cotangents, strict=True)
        ]
        parts: list[Array | None] = [None] * len(self.wanted)
        for i, part in zip(self.asked, self._backward(*kept, *cotangents), strict=True):
            parts[i] = part
        return parts

    def pull_recorded(self, g: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
        """The cotangents of all inputs as a recorded computation: the traced operations, run on the tape."""
        given = [link(x) if x.node is not None else x for x in inputs]
        env: dict[Operand, Any] = dict(zip((*self.graph.inputs, *self.graph.closed), given, strict=True))
        for e in self.graph.equations:
            env[e.output] = apply(e.primitive, tuple(env[x] if isinstance(x, Var) else x for x in e.inputs), e.params)
        outputs = [env[v] for v in self.graph.outputs]
        starts = [(y.node, part) for y, part in zip(outputs, g, strict=True) if part is not None and y.node is not None]
        found = walk(recorded, starts, {x.node for x in given if x.node is not None}, retain=True)
        return [None if x.node is None else found.get(x.node) for x in given]


def _tracked(graph: Graph, wanted: Sequence[bool]) -> list[bool]:
    """Which outputs a gradient flows back from."""
    found = {v for v, want in zip((*graph.inputs, *graph.closed), wanted, strict=True) if want}
    for e in graph.equations:
        if e.primitive.differentiable and e.output.dtype.kind == "f" and any(v in found for v in e.vars):
            found.add(e.output)
    return [v in found for v in graph.outputs]


def _vjp(F: Any, g: list[Any], inputs: tuple[Any, ...], out: Any, node: Any) -> list[Any]:
    program = node.params["program"]
    return program.pull_recorded(g, inputs) if F is recorded else program.pull(g, out)


_JIT = Primitive("jit", lambda *inputs, **params: None, (), _vjp)
