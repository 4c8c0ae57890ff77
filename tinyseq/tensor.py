"""Tensor: an array and its place on the tape; operators, methods, indexing, ``backward``.

Everything here is one primitive of the table, or a few; what is composed of many stands in ``tinyseq.functions``.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

from tinyseq import backend as backend_module
from tinyseq import mode, tape
from tinyseq.abstract import Abstract, Tracer
from tinyseq.array_api import INDEX
from tinyseq.backend import Backend, backend_of, canonical_dtype, current_backend, get_backend
from tinyseq.errors import BackendError, DTypeError, GraphError, ShapeError
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tape import Leaf, Node, Part, Place, Scatter, walk

__all__ = [
    "Hook",
    "Parameter",
    "Tensor",
    "apply",
    "as_tensor",
    "bool_",
    "float16",
    "float32",
    "float64",
    "int32",
    "int64",
    "recorded",
    "tensor",
]

Array = Any
Axis = int | Sequence[int] | None
DType = np.dtype[Any]
Operand = Any  # a Tensor, a NumPy array or a number

float16, float32, float64 = np.dtype("float16"), np.dtype("float32"), np.dtype("float64")
int32, int64, bool_ = np.dtype("int32"), np.dtype("int64"), np.dtype("bool")
DEFAULT = float32  # of what is made from Python floats

_NO_PARAMS: dict[str, Any] = {}
current_mode, new_object, next_serial = mode.current, object.__new__, tape.next_serial


# --- running a primitive ----------------------------------------------------------------------------------------------


def apply(primitive: Primitive, inputs: tuple[Any, ...], params: dict[str, Any] = _NO_PARAMS) -> Tensor:
    """Run a primitive on Tensors and numbers, and record it if any of them is on the tape.

    The backend follows the arrays. Dtypes must already agree.
    """
    # Every eager operation passes here: one or two Tensors go without a loop, and objects are made without __init__.
    m = current_mode()
    backend = m.backend or backend_module._default or current_backend()
    array_type = backend.array_type
    count = len(inputs)
    if count == 2 and isinstance(x := inputs[0], Tensor) and isinstance(y := inputs[1], Tensor):
        a, b, p, q = x.data, y.data, x.node, y.node
        arrays: tuple[Any, ...] = (a, b)
        parents: tuple[Place | None, ...] = (p, q)
        mask = (4 if p is None else 5) if q is None else (6 if p is None else 7)
        native = type(a) is array_type is type(b)
    elif count == 1 and isinstance(x := inputs[0], Tensor):
        a, p = x.data, x.node
        arrays, parents = (a,), (p,)
        mask = 2 if p is None else 3
        native = type(a) is array_type
    else:
        arrays = tuple([x.data if isinstance(x, Tensor) else x for x in inputs])
        parents = tuple([x.node if isinstance(x, Tensor) else None for x in inputs])
        mask, native = 1 << count, True
        for i, x in enumerate(inputs):
            if isinstance(x, Tensor):
                native = native and type(x.data) is array_type
                if x.node is not None:
                    mask |= 1 << i
    if not native:
        backend = _backend_for(primitive, inputs)
        if isinstance(backend, Tracer):
            return backend.apply(primitive, inputs, params)
        array_type = backend.array_type
    try:
        output = backend.table[primitive.name](*arrays, **params)
    except Exception as error:
        _explain(primitive, arrays, params, error)
    if type(output) is not array_type:  # NumPy turns zero-dimensional results into scalars
        output = backend.asarray(output)
    node = None
    if mask != 1 << count and m.recording and primitive.differentiable:
        keep, keep_output, pull = primitive.plans.get(mask) or primitive.plan(mask)
        node = new_object(Node)
        node.serial = next_serial()
        node.primitive = primitive
        node.parents = parents
        node.inputs = arrays if keep is None else keep and tuple([a if k else None for a, k in zip(arrays, keep)])  # noqa: B905
        node.output = output if keep_output else None
        node.params = params
        node.shape = output.shape
        node.dtype = output.dtype
        node.scope = m.scope
        node.pull = pull
        node.extra = None
    if m.observer is not None:
        m.observer.applied(primitive, arrays, output, node)
    result = new_object(Tensor)
    result.data = output
    result.node = node
    return result


def _backend_for(primitive: Primitive, inputs: tuple[Any, ...]) -> Backend:
    """The one backend that all the inputs' arrays belong to."""
    inner: Tracer | None = None  # of traces within traces
    for x in inputs:
        if isinstance(x, Tensor) and type(x.data) is Abstract and (inner is None or x.data.tracer.level > inner.level):
            inner = x.data.tracer
    if inner is not None:
        return inner
    if isinstance(staging := current_mode().backend, Tracer):  # a jit takes in what has numbers too: they may change
        return staging
    found = {type(x.data): backend_of(x.data) for x in inputs if isinstance(x, Tensor)}
    if len(found) > 1:
        names = " and ".join(repr(b.name) if b else f"no backend ({kind})" for kind, b in found.items())
        raise BackendError(
            f"{primitive.name} got tensors of different backends, {names}; move one over with .to({current_backend().name!r})"
        )
    (backend,) = found.values()
    if backend is None:
        raise BackendError(f"no loaded backend takes arrays of type {next(iter(found))}; make them with ts.tensor(...)")
    return backend


def _explain(primitive: Primitive, arrays: Sequence[Array], params: dict[str, Any], error: Exception) -> NoReturn:
    """Raise the shape rule's sentence if the shapes were at fault, else what the library said."""
    try:
        primitive.shape(*arrays, **params)
    except ShapeError as explained:
        raise explained from None
    except Exception:
        pass
    raise error


class _Recorded(SimpleNamespace):
    """The table's operations on Tensors, with the signatures of a backend's ``ops``: what VJPs run on at higher order."""

    owns_sums = False

    def __init__(self) -> None:
        def recorded(row: Primitive) -> Callable[..., Tensor]:
            return lambda *inputs, **params: apply(row, inputs, params)

        super().__init__(**{name: recorded(row) for name, row in TABLE.items()})

    def view(self, node: Node) -> Any:
        """The node with its kept arrays as Tensors in their places."""
        parents = node.parents
        return SimpleNamespace(
            inputs=tuple(
                Tensor(array, parent) if array is not None and not isinstance(array, int | float) else array
                for array, parent in zip(node.inputs or (), parents, strict=False)
            ),
            output=None if node.output is None else Tensor(node.output, node),
            params=node.params,
            parents=parents,
        )

    def add_owned(self, total: Tensor, part: Tensor) -> Tensor:
        return total + part

    def call_hook(self, hook: Callable[[Tensor], Any], cotangent: Tensor) -> Tensor | None:
        replaced = hook(cotangent)
        return None if replaced is None else as_tensor(replaced)


class _Raw(SimpleNamespace):
    """A backend's operations with what the walk needs besides: a first-order walk wraps nothing."""

    owns_sums = True

    def __init__(self, backend: Backend) -> None:
        super().__init__(**backend.table)
        self.dense_scatter = backend.table["scatter_add"]
        self.scatter_add = Scatter

    view = None  # a node's kept arrays are what the rules want

    @staticmethod
    def add_owned(total: Array, part: Array) -> Array:
        total += part
        return total

    def call_hook(self, hook: Callable[[Tensor], Any], cotangent: Array) -> Array | None:
        backend = current_backend()
        replaced = hook(Tensor(backend.asarray(cotangent)))
        return None if replaced is None else as_tensor(replaced).data


recorded = _Recorded()
_raw: dict[Backend, _Raw] = {}


def raw(backend: Backend) -> _Raw:
    """The operations that a first-order walk over this backend's arrays uses."""
    if backend not in _raw:
        _raw[backend] = _Raw(backend)
    return _raw[backend]


def link(x: Tensor) -> Tensor:
    """The same value at a new place on the tape: gradients with respect to it are its own, and flow on to ``x``."""
    if isinstance(staging := current_mode().backend, Tracer):
        x = staging.inside(x)
    node: Place = (
        _new_leaf(x.data)
        if x.node is None
        else Node(TABLE["copy"], (x.node,), (), None, _NO_PARAMS, x.data.shape, x.data.dtype, mode.current().scope)
    )
    return Tensor(x.data, node)


_ITEM = Primitive("item", lambda x, **params: None, (), lambda g, index, count: [Part(g, index, count)])


def outputs_of(node: Node, arrays: Sequence[Array]) -> list[Tensor]:
    """The Tensors of an operation with several outputs; its VJP gets a list with a cotangent, or None, for each."""
    count, scope = len(arrays), mode.current().scope
    return [
        Tensor(a, Node(_ITEM, (node,), (), None, {"index": i, "count": count}, a.shape, a.dtype, scope))
        for i, a in enumerate(arrays)
    ]


# --- dtypes -----------------------------------------------------------------------------------------------------------

_KIND = {"b": 0, "i": 1, "u": 1, "f": 2, "V": 2}  # bfloat16 calls itself V


def _kind(native: Any) -> int:
    """0 for booleans, 1 for integers, 2 for floating point; of any library's dtype object."""
    try:
        return _KIND[native.kind]
    except (AttributeError, KeyError):  # not NumPy's, or none that we have
        letter = canonical_dtype(native).kind
        if letter not in _KIND:
            raise DTypeError(f"tinyseq has no tensors of dtype {native}; use bool, an integer or a floating dtype") from None
        return _KIND[letter]


def result_dtype(*operands: Any) -> DType:
    """The dtype of an operation on tensors and numbers, as PyTorch has it.

    The highest kind wins (bool, integer, float); within a kind tensors with axes decide before zero-dimensional
    ones, and those before Python numbers.

    >>> import tinyseq as ts
    >>> ts.result_dtype(ts.tensor([1, 2]), 0.5)
    dtype('float32')
    """
    ranks: list[tuple[int, int, DType]] = []
    for x in operands:
        if isinstance(x, Tensor):
            ranks.append((_kind(x.data.dtype), 2 if len(x.shape) else 1, x.dtype))
        else:
            kind = 0 if isinstance(x, bool) else 1 if isinstance(x, int) else 2
            ranks.append((kind, 0, (bool_, int64, DEFAULT)[kind]))
    kind = max(rank[0] for rank in ranks)
    weight = max(rank[1] for rank in ranks if rank[0] == kind)
    dtypes = [dtype for k, w, dtype in ranks if k == kind and w == weight]
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = np.promote_types(result, dtype)
    return result


def _agree(*operands: Operand) -> tuple[Any, ...]:
    """Operands with one dtype: arrays become Tensors, Tensors are cast; numbers stay if they fit the dtype's kind."""
    xs = tuple(x if isinstance(x, Tensor | bool | int | float) else as_tensor(x) for x in operands)
    if not any(isinstance(x, Tensor) for x in xs):
        xs = (as_tensor(xs[0]), *xs[1:])
    dtype = result_dtype(*xs)
    return tuple(x.astype(dtype) if isinstance(x, Tensor) else dtype.type(x).item() for x in xs)


def _floating(x: Tensor) -> Tensor:
    """An integer or boolean tensor as float32; others as they are."""
    return x if _kind(x.data.dtype) == 2 else x.astype(DEFAULT)


# --- making the functions ---------------------------------------------------------------------------------------------


def _unary(name: str, *, floating: bool = False) -> Callable[[Any], Tensor]:
    row = TABLE[name]

    def operation(x: Operand) -> Tensor:
        if not isinstance(x, Tensor):
            x = as_tensor(x)
        if floating and x.node is None and _kind(x.data.dtype) != 2:
            x = x.astype(DEFAULT)
        return apply(row, (x,))

    operation.__name__ = operation.__qualname__ = name
    return operation


def _binary(name: str, *, floating: bool = False) -> Callable[[Any, Any], Tensor]:
    row = TABLE[name]

    def operation(x: Operand, y: Operand) -> Tensor:
        # The usual cases first: two tensors of one dtype, or a float tensor and a number.
        if isinstance(x, Tensor):
            if isinstance(y, Tensor):
                if x.data.dtype is not y.data.dtype:
                    x, y = _agree(x, y)
            elif not (type(y) is float or type(y) is int) or _kind(x.data.dtype) != 2:
                x, y = _agree(x, y)
        elif not (type(x) is float or type(x) is int) or not isinstance(y, Tensor) or _kind(y.data.dtype) != 2:
            x, y = _agree(x, y)
        if floating:
            x, y = _both_floating(x, y)
        return apply(row, (x, y))

    operation.__name__ = operation.__qualname__ = name
    return operation


def _both_floating(x: Any, y: Any) -> tuple[Any, Any]:
    return (
        _floating(x) if isinstance(x, Tensor) else float(x),
        _floating(y) if isinstance(y, Tensor) else float(y),
    )


def _reflected(operation: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    return lambda self, other: operation(other, self)


def _operator(operation: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """As an operator: unknown types are handed back to Python."""

    def method(self: Tensor, other: Any) -> Any:
        if isinstance(other, _OPERANDS):
            return operation(self, other)
        return NotImplemented

    return method


add, sub, mul, maximum, minimum = map(_binary, ("add", "sub", "mul", "maximum", "minimum"))
div = _binary("div", floating=True)
power, remainder, floor_divide = map(_binary, ("power", "remainder", "floor_divide"))
eq, ne, lt, le, gt, ge = map(_binary, ("eq", "ne", "lt", "le", "gt", "ge"))
neg, abs_, sign, floor, round_, relu = map(_unary, ("neg", "abs", "sign", "floor", "round", "relu"))
isfinite, isnan = map(_unary, ("isfinite", "isnan"))
exp, expm1, log, log1p, sqrt, tanh, sigmoid, erf, sin, cos = (
    _unary(name, floating=True) for name in ("exp", "expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos")
)


def _logical(name: str) -> Callable[[Any, Any], Tensor]:
    row = TABLE[name]

    def operation(x: Operand, y: Operand) -> Tensor:
        return apply(row, (as_tensor(x).astype(bool_), as_tensor(y).astype(bool_)))

    operation.__name__ = operation.__qualname__ = name
    return operation


logical_and, logical_or, logical_xor = map(_logical, ("logical_and", "logical_or", "logical_xor"))


def logical_not(x: Operand) -> Tensor:
    """Elementwise negation of truth."""
    return apply(TABLE["logical_not"], (as_tensor(x).astype(bool_),))


def where(condition: Operand, x: Operand, y: Operand) -> Tensor:
    """``x`` where the condition holds, ``y`` elsewhere; the three broadcast.

    >>> import tinyseq as ts
    >>> ts.where(ts.tensor([True, False]), 1.0, ts.tensor([5.0, 6.0])).tolist()
    [1.0, 6.0]
    """
    x, y = _agree(x, y)
    return apply(TABLE["where"], (as_tensor(condition).astype(bool_), x, y))


def matmul(x: Operand, y: Operand) -> Tensor:
    """Matrix product over the last two axes, with batches broadcast; a vector is a row on the left, a column on the right.

    Raises:
        ShapeError: the inner sizes differ, or an operand is a scalar.
    """
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)) or x.data.dtype is not y.data.dtype:
        x, y = _agree(as_tensor(x), as_tensor(y))
    nx, ny = len(x.data.shape), len(y.data.shape)
    if nx >= 2 and ny >= 2:
        return apply(_MATMUL, (x, y))
    if nx == 0 or ny == 0:
        raise ShapeError(f"matmul needs at least one axis on each side, got shapes {x.shape} and {y.shape}; use * to scale")
    if nx == ny == 1:
        if x.shape != y.shape:
            raise ShapeError(f"matmul of two vectors needs equal lengths, got {x.shape[0]} and {y.shape[0]}")
        return (x * y).sum()
    if nx == 1:
        product = apply(_MATMUL, (x.unsqueeze(0), y))
        return product.squeeze(-2)
    return apply(_MATMUL, (x, y.unsqueeze(-1))).squeeze(-1)


_MATMUL, _PERMUTE, _GETITEM, _SUM = TABLE["matmul"], TABLE["permute"], TABLE["getitem"], TABLE["sum"]
_PLAIN = (int, type(None))
_SWAPPED = {"axes": (-1, -2)}


def normalize_axis(axis: int, ndim: int, what: str = "axis") -> int:
    """The axis counted from the end; raises ``ShapeError`` if there is none such."""
    axis = operator.index(axis)
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{what} {axis} is out of range for a tensor with {ndim} axes")
    return axis if axis < 0 else axis - ndim


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes counted from the end, in order; None means all of them."""
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis if axis < 0 else axis - ndim,)
    if axis is None:
        return tuple(range(-ndim, 0))
    axes = tuple(sorted(normalize_axis(a, ndim) for a in ((axis,) if isinstance(axis, int | np.integer) else axis)))
    if len(set(axes)) != len(axes):
        raise ShapeError(f"axis {axis!r} names an axis twice")
    return axes


# --- the Tensor -------------------------------------------------------------------------------------------------------


class Tensor:
    """An array and its place on the tape. Make one with :func:`tensor`.

    Operators and methods work elementwise and broadcast, as in NumPy and PyTorch; axes are called ``axis``.

    >>> import tinyseq as ts
    >>> x = ts.tensor([1.0, 2.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad.tolist()
    [2.0, 4.0]
    """

    __slots__ = ("__weakref__", "data", "node")
    __array_ufunc__ = None  # NumPy arrays hand binary operators over to us
    __hash__ = object.__hash__

    def __init__(self, data: Array, node: Place | None = None) -> None:
        self.data = data
        self.node = node

    # What it is

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(self.data.shape)

    @property
    def dtype(self) -> DType:
        """The element type, as NumPy's dtype whatever the backend."""
        return canonical_dtype(self.data.dtype)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.data.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.data.shape)

    @property
    def backend(self) -> Backend:
        """The backend that operations on this tensor run on."""
        return _backend_for(TABLE["copy"], (self,)).owner(self.data)

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow back through this tensor. May be set on a tensor that no operation made."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value == (self.node is not None):
            return
        if value:
            self.node = _new_leaf(self.data)
        elif self.is_leaf:
            self.node = None
        else:
            raise GraphError("requires_grad cannot be switched off on the result of a recorded operation; use .detach()")

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made this tensor."""
        return type(self.node) is not Node

    @property
    def name(self) -> str | None:
        """The name that pictures and messages show; only a tensor that asks for a gradient has one."""
        return self.node.name if isinstance(self.node, Leaf) else None

    @name.setter
    def name(self, value: str) -> None:
        if not isinstance(self.node, Leaf):
            raise GraphError("only a tensor made with requires_grad=True can be named")
        self.node.name = value

    @property
    def grad(self) -> Tensor | None:
        """The gradient that ``backward`` left here, or None."""
        if isinstance(current_mode().backend, Tracer):
            raise GraphError(
                "a function that jit compiles runs once, so it would see the .grad of that moment for ever; "
                "pass gradients to it as arguments"
            )
        if isinstance(self.node, Leaf):
            return self.node.grad
        return self.node.extra.get("grad") if self.node is not None and self.node.extra else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if not isinstance(self.node, Leaf):
            raise GraphError("only a tensor made with requires_grad=True holds a gradient that can be set")
        if value is not None and (value.shape != self.shape or value.dtype != self.dtype):
            raise ShapeError(
                f"a gradient of shape {value.shape} and dtype {value.dtype} does not fit a tensor of shape {self.shape} "
                f"and dtype {self.dtype}"
            )
        self.node.grad = value

    # Gradients

    def backward(self, gradient: Operand = None, *, retain_graph: bool | None = None, create_graph: bool = False) -> None:
        """Walk the tape back from here and add to ``.grad`` of every tensor that asked for a gradient.

        Args:
            gradient: the cotangent of this tensor, of its shape; may be left out for a single number.
            retain_graph: keep what the walk would free, so that the graph can be walked again; by default
                the value of ``create_graph``.
            create_graph: record the walk itself, so that gradients can be differentiated.

        Raises:
            GraphError: nothing here asked for a gradient, the graph was freed, or a seed gradient is missing.
        """
        if self.node is None:
            raise GraphError("backward() on a tensor that no tensor with requires_grad=True led to; nothing to differentiate")
        backend = self.backend
        if isinstance(backend, Tracer):
            raise GraphError(
                f"backward() on a traced tensor, which has no numbers; call it on what {backend.caller} returns, "
                "or use ts.grad on a function within"
            )
        if gradient is None:
            if self.size != 1:
                raise GraphError(
                    f"backward() on a tensor of shape {self.shape} needs a gradient of that shape; "
                    "pass it, or reduce to one number first, say with .sum()"
                )
            seed = Tensor(backend.full(self.shape, 1, self.dtype))
        else:
            seed = as_tensor(gradient).astype(self.dtype)
            if seed.shape != self.shape:
                raise ShapeError(f"the gradient has shape {seed.shape}, the tensor {self.shape}; they must be equal")
        retain = create_graph if retain_graph is None else retain_graph
        if create_graph:
            with mode.changed(recording=True):
                found = walk(recorded, [(self.node, seed)], retain=retain, deposit=_retain_grad)
        else:
            wrapped = lambda node, array: _retain_grad(node, Tensor(backend.asarray(array)))
            found = walk(raw(backend), [(self.node, seed.data)], retain=retain, deposit=wrapped)
        for leaf, cotangent in found.items():
            if not create_graph:
                if type(cotangent) is not backend.array_type:
                    cotangent = backend.asarray(cotangent)
                cotangent = Tensor(backend.contiguous(cotangent))
            leaf.grad = cotangent if leaf.grad is None else leaf.grad + cotangent  # type: ignore[union-attr]

    def detach(self) -> Tensor:
        """The same array as a constant: no gradient flows through it."""
        traced = isinstance(self.data, Abstract) or isinstance(current_mode().backend, Tracer)
        return apply(TABLE["detach"], (self,)) if traced else Tensor(self.data)

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set ``requires_grad`` and return the tensor itself."""
        self.requires_grad = value
        return self

    def retain_grad(self) -> None:
        """Have ``backward`` leave the gradient of this intermediate result in ``.grad`` too."""
        if self.node is None:
            raise GraphError("retain_grad() on a tensor that is not on the tape; make its inputs with requires_grad=True")
        if isinstance(self.node, Node):
            self.node.extra = {**(self.node.extra or {}), "retain": True}

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Hook:
        """Call ``hook(gradient)`` when the gradient of this tensor is known; what it returns, if not None, takes its place.

        >>> import tinyseq as ts
        >>> x = ts.tensor([1.0], requires_grad=True)
        >>> handle = x.register_hook(lambda g: g * 10)
        >>> (x * 2).sum().backward(); x.grad.tolist()
        [20.0]
        >>> handle.remove()
        """
        if self.node is None:
            raise GraphError("register_hook() on a tensor that is not on the tape; make it with requires_grad=True")
        if isinstance(self.node, Leaf):
            self.node.hooks = hooks = self.node.hooks if self.node.hooks is not None else {}
        else:
            self.node.extra = self.node.extra or {}
            hooks = self.node.extra.setdefault("hooks", {})
        return Hook(hooks, hook)

    # Out of tinyseq

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array on the host: read-only, and without a copy where none is needed."""
        view = self.backend.to_numpy(self.data).view()
        view.flags.writeable = False
        return view

    def item(self) -> Any:
        """The value of a tensor of one element, as a Python number.

        Raises:
            ShapeError: it has more or fewer elements.
        """
        if self.size != 1:
            raise ShapeError(f"item() needs a tensor of one element, got shape {self.shape}")
        return self.numpy().item()

    def tolist(self) -> Any:
        """The values as nested Python lists."""
        return self.numpy().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if _kind(self.data.dtype) == 2:
            raise DTypeError(f"a tensor of dtype {self.dtype} cannot be an index; cast it to int64 first")
        return int(self.item())

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ShapeError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all(), or ts.where for a choice"
            )
        return bool(self.item())

    def __len__(self) -> int:
        if not self.ndim:
            raise ShapeError("len() of a tensor without axes; use .size")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(len(self)):
            yield self[i]

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="tensor(")
        notes = "" if self.dtype in (DEFAULT, int64, bool_) else f", dtype={self.dtype}"
        if isinstance(self.node, Node):
            notes += f", from={self.node.primitive.name}"
        elif self.node is not None:
            notes += ", requires_grad=True"
        return f"tensor({body}{notes})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self._copied()

    def __copy__(self) -> Tensor:
        return self._copied()

    def _copied(self) -> Tensor:
        if isinstance(self.node, Node):
            raise GraphError("only a tensor that no recorded operation made can be copied; use .detach() or .copy()")
        twin = type(self)(self.backend.ops.copy(self.data))
        twin.requires_grad = self.requires_grad
        return twin

    def __reduce__(self) -> NoReturn:
        raise TypeError("tensors are not pickled; use ts.save() and ts.load(), or .numpy()")

    # Operators

    __add__, __sub__, __mul__, __truediv__ = map(_operator, (add, sub, mul, div))
    __pow__, __mod__, __floordiv__, __matmul__ = map(_operator, (power, remainder, floor_divide, matmul))
    __radd__, __rsub__, __rmul__, __rtruediv__ = (_operator(_reflected(f)) for f in (add, sub, mul, div))
    __rpow__, __rmod__, __rfloordiv__, __rmatmul__ = (
        _operator(_reflected(f)) for f in (power, remainder, floor_divide, matmul)
    )
    __and__, __or__, __xor__ = map(_operator, (logical_and, logical_or, logical_xor))
    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__
    __eq__, __ne__, __lt__, __le__, __gt__, __ge__ = map(_operator, (eq, ne, lt, le, gt, ge))  # type: ignore[assignment]
    __neg__, __abs__, __invert__ = neg, abs_, logical_not

    def __pos__(self) -> Tensor:
        return self

    # Elementwise methods

    exp, log, sqrt, tanh, sigmoid, relu = exp, log, sqrt, tanh, sigmoid, relu
    sin, cos, erf, abs, sign = sin, cos, erf, abs_, sign

    def clip(self, low: float | None = None, high: float | None = None) -> Tensor:
        """Elementwise: no less than ``low``, no more than ``high``. The gradient passes where nothing was cut."""
        if low is None and high is None:
            raise ShapeError("clip needs low, high or both")
        x = self.astype(result_dtype(self, *(bound for bound in (low, high) if bound is not None)))
        return apply(TABLE["clip"], (x,), {"low": low, "high": high})

    def astype(self, dtype: Any) -> Tensor:
        """The values in another dtype; the tensor itself if it has it already."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        x = self if dtype.kind in "fV" else self.detach()  # whole numbers have no slope
        return apply(TABLE["cast"], (x,), {"dtype": dtype})

    def copy(self) -> Tensor:
        """The same values in memory of its own."""
        return apply(TABLE["copy"], (self,))

    def to(self, where: str | Backend) -> Tensor:
        """The same values on another backend or device, such as ``"cupy:1"``; a constant, unless it is there already.

        Raises:
            GraphError: the result of a recorded operation cannot move.
        """
        backend = get_backend(where)
        if backend.holds(self.data):
            return self
        if isinstance(self.node, Node):
            raise GraphError("the result of a recorded operation cannot move to another backend; use .detach() first")
        own = type(self.data) is backend.array_type  # on another device of the same library
        moved = type(self)(backend.moved(self.data) if own else backend.asarray(self.backend.to_numpy(self.data)))
        moved.requires_grad = self.requires_grad
        return moved

    # Reductions

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The sum over the given axes (all by default); of booleans and integers, in int64."""
        return apply(TABLE["sum"], (self,), {"axis": normalize_axes(axis, self.ndim), "keepdims": keepdims})

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The mean over the given axes (all by default)."""
        axes = normalize_axes(axis, self.ndim)
        count = math.prod(self.shape[a] for a in axes)
        return _floating(self).sum(axes, keepdims) / (count or math.nan)

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The largest value over the given axes; ties share the gradient equally."""
        return self._extremum("max", axis, keepdims)

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The smallest value over the given axes; ties share the gradient equally."""
        return self._extremum("min", axis, keepdims)

    def _extremum(self, name: str, axis: Axis, keepdims: bool) -> Tensor:
        axes = normalize_axes(axis, self.ndim)
        if any(self.shape[a] == 0 for a in axes):
            raise ShapeError(f"{name} over an empty axis: shape {self.shape}, axis {axis}; there is no value to return")
        return apply(TABLE[name], (self,), {"axis": axes, "keepdims": keepdims})

    def argmax(self, axis: int | None = None) -> Tensor:
        """Where the largest value is along an axis, or in the flattened tensor; the first of several."""
        return self._position("argmax", axis)

    def argmin(self, axis: int | None = None) -> Tensor:
        """Where the smallest value is along an axis, or in the flattened tensor; the first of several."""
        return self._position("argmin", axis)

    def _position(self, name: str, axis: int | None) -> Tensor:
        x = self.reshape(-1) if axis is None else self
        at = normalize_axis(-1 if axis is None else axis, x.ndim)
        if x.shape[at] == 0:
            raise ShapeError(f"{name} over an empty axis: shape {self.shape}, axis {axis}; there is no value to return")
        return apply(TABLE[name], (x,), {"axis": at})

    def all(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Whether all elements along the axes are true."""
        return apply(TABLE["all"], (self.astype(bool_),), {"axis": normalize_axes(axis, self.ndim), "keepdims": keepdims})

    def any(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """Whether any element along the axes is true."""
        return apply(TABLE["any"], (self.astype(bool_),), {"axis": normalize_axes(axis, self.ndim), "keepdims": keepdims})

    def cumsum(self, axis: int) -> Tensor:
        """The running sum along an axis."""
        x = self.astype(int64) if _kind(self.data.dtype) < 2 else self
        return apply(TABLE["cumsum"], (x,), {"axis": normalize_axis(axis, self.ndim)})

    # Shape moves

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in another shape; one size may be -1."""
        sizes = _sizes(shape)
        if sizes.count(-1) == 1:
            known = math.prod(size for size in sizes if size != -1)
            if known and self.size % known == 0:
                sizes = tuple(self.size // known if size == -1 else size for size in sizes)
        if any(size < 0 for size in sizes):
            raise ShapeError(f"reshape cannot turn shape {self.shape} ({self.size} elements) into {sizes}")
        return apply(TABLE["reshape"], (self,), {"shape": sizes})

    def permute(self, *axes: Any) -> Tensor:
        """The axes in another order; every axis is named once."""
        order = tuple(normalize_axis(a, self.ndim) for a in _sizes(axes))
        if sorted(order) != list(range(-self.ndim, 0)):
            raise ShapeError(f"permute needs every axis of {self.shape} once, got {_sizes(axes)}")
        fixed = 0  # leading axes that stay are not part of the equation
        while fixed < len(order) and order[fixed] == fixed - len(order):
            fixed += 1
        return apply(TABLE["permute"], (self,), {"axes": order[fixed:]}) if fixed < len(order) else self

    def transpose(self, axis0: int = -2, axis1: int = -1) -> Tensor:
        """Two axes exchanged; the last two by default."""
        order = list(range(self.ndim))
        a, b = (normalize_axis(axis, self.ndim) + self.ndim for axis in (axis0, axis1))
        order[a], order[b] = order[b], order[a]
        return self.permute(order)

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix; of more axes, all in reverse order."""
        if len(self.data.shape) == 2:
            return apply(_PERMUTE, (self,), _SWAPPED)
        return self.permute(tuple(range(self.ndim))[::-1]) if self.ndim > 1 else self

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        return self.transpose()

    def expand(self, *shape: Any) -> Tensor:
        """Broadcast to a shape; -1 leaves an axis as it is."""
        sizes = _sizes(shape)
        lead = len(sizes) - self.ndim
        sizes = tuple(self.shape[i - lead] if size == -1 and i >= lead else size for i, size in enumerate(sizes))
        return apply(TABLE["broadcast_to"], (self,), {"shape": sizes})

    def squeeze(self, axis: Axis = None) -> Tensor:
        """Without axes of size 1: all of them, or the named ones.

        Raises:
            ShapeError: a named axis has another size.
        """
        if axis is None:
            return self.reshape(tuple(size for size in self.shape if size != 1))
        axes = normalize_axes(axis, self.ndim)
        for a in axes:
            if self.shape[a] != 1:
                raise ShapeError(f"squeeze of axis {axis} of shape {self.shape}: its size is {self.shape[a]}, not 1")
        return self.reshape(tuple(size for i, size in enumerate(self.shape) if i - self.ndim not in axes))

    def unsqueeze(self, axis: int) -> Tensor:
        """A new axis of size 1 in front of position ``axis`` of the result."""
        at = normalize_axis(axis, self.ndim + 1) + self.ndim + 1
        return self.reshape((*self.shape[:at], 1, *self.shape[at:]))

    def flatten(self, start: int = 0, end: int = -1) -> Tensor:
        """Axes ``start`` to ``end`` as one."""
        if not self.ndim:
            return self.reshape(1)
        a, b = (normalize_axis(axis, self.ndim) + self.ndim for axis in (start, end))
        return self.reshape((*self.shape[:a], math.prod(self.shape[a : b + 1]), *self.shape[b + 1 :]))

    def flip(self, axis: Axis = None) -> Tensor:
        """The elements in reverse order along the given axes."""
        return apply(TABLE["flip"], (self,), {"axis": normalize_axes(axis, self.ndim)})

    # Indexing

    def __getitem__(self, key: Any) -> Tensor:
        """NumPy's indexing: integers, slices, None, Ellipsis, integer and boolean tensors.

        The gradient is added up where an index occurs more than once.
        """
        entries = key if type(key) is tuple else (key,)
        if len(entries) <= len(self.data.shape):  # slices, numbers and the like need no looking into
            dots = False
            for entry in entries:
                kind = type(entry)
                if kind is slice:
                    if not (type(entry.start) in _PLAIN and type(entry.stop) in _PLAIN and type(entry.step) in _PLAIN):
                        break
                elif entry is Ellipsis and not dots:
                    dots = True
                elif kind is not int and entry is not None:
                    break
            else:
                return apply(_GETITEM, (self,), {"key": entries})
        static, indices = self._split_key(key)
        return apply(_GETITEM, (self, *indices), {"key": static})

    def __setitem__(self, key: Any, value: Operand) -> None:
        """Assign to part of a constant. Refused on a tensor that the tape needs."""
        if self.node is not None and (isinstance(self.node, Node) or mode.current().recording):
            raise GraphError(
                "in-place assignment on a tensor that is on the tape would change gradients that were promised; "
                "write x = ts.where(mask, value, x), or ts.stack / ts.concatenate the parts "
                "(a leaf may be assigned to under ts.no_grad())"
            )
        if mode.current().tracing:
            raise GraphError(
                "a function that is compiled runs once, so an assignment to a tensor outside it would happen once; make that "
                "tensor a part of the carry of a scan, or of what a jit takes and returns, or use scan(..., unroll=True)"
            )
        static, indices = self._split_key(key)
        value = as_tensor(value)
        if _kind(value.data.dtype) > _kind(self.data.dtype):
            raise DTypeError(f"values of dtype {value.dtype} do not fit a tensor of dtype {self.dtype}; cast one of them")
        backend = self.backend
        # Copy first if the tape, a view or a state_dict holds this array: an assignment changes this tensor only.
        data = self.data if owned_alone(self) else backend.ops.copy(self.data)
        target = static if not indices else tuple(_fill(static, indices))
        data[target if len(target) != 1 else target[0]] = value.astype(self.dtype).data
        self.data = data

    def _split_key(self, key: Any) -> tuple[tuple[Any, ...], tuple[Tensor, ...]]:
        """A key as its static part and the index tensors, which are inputs of the operation."""
        entries = key if isinstance(key, tuple) else (key,)
        static: list[Any] = []
        indices: list[Tensor] = []
        for entry in entries:
            if isinstance(entry, bool | np.bool_):
                raise DTypeError("a tensor cannot be indexed with True or False; use a boolean tensor of its shape")
            if entry is None or entry is Ellipsis or isinstance(entry, int):
                static.append(entry)
            elif isinstance(entry, slice):
                static.append(slice(*(None if v is None else operator.index(v) for v in (entry.start, entry.stop, entry.step))))
            elif isinstance(entry, np.integer) or (
                isinstance(entry, Tensor) and not entry.ndim and _kind(entry.data.dtype) == 1
            ):
                if isinstance(entry, Tensor):
                    static.append(INDEX)
                    indices.append(entry)
                else:
                    static.append(int(entry))
            else:
                index = as_tensor(entry)
                kind = _kind(index.data.dtype) if index.size else 1
                if kind == 2:
                    raise DTypeError(f"a tensor cannot be indexed with dtype {index.dtype}; use integers, booleans or slices")
                if kind == 0:
                    at = len([e for e in static if e is not None and e is not Ellipsis])
                    if (
                        Ellipsis not in [e for e in static if e is not INDEX]
                        and index.shape != self.shape[at : at + index.ndim]
                    ):
                        raise ShapeError(f"a boolean index of shape {index.shape} does not fit a tensor of shape {self.shape}")
                    for positions in index.backend.xp.nonzero(index.data):
                        static.append(INDEX)
                        indices.append(Tensor(positions))
                else:
                    static.append(INDEX)
                    indices.append(index.astype(int64))
        if sum(entry is Ellipsis for entry in static) > 1:
            raise ShapeError("an index has room for one Ellipsis (...); spell out the axes of the other as slices")
        if len([e for e in static if e is not None and e is not Ellipsis]) > self.ndim:
            raise ShapeError(f"too many indices for a tensor of shape {self.shape}: {len(entries)} given")
        return tuple(static), tuple(indices)


def _fill(static: tuple[Any, ...], indices: tuple[Tensor, ...]) -> Iterator[Any]:
    rest = iter(indices)
    for entry in static:
        yield next(rest).data if entry is INDEX else entry


def _sizes(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """``f(2, 3)`` and ``f((2, 3))`` say the same."""
    if len(arguments) == 1 and not hasattr(arguments[0], "__index__"):
        arguments = tuple(arguments[0])
    return tuple(operator.index(size) for size in arguments)


def _new_leaf(data: Array) -> Leaf:
    """A place for a gradient; only floating-point arrays have one."""
    if _kind(data.dtype) != 2:
        raise DTypeError(
            f"only floating-point tensors have gradients, not {canonical_dtype(data.dtype)}; cast with .astype(ts.float32)"
        )
    return Leaf(data.shape, data.dtype)


def _retain_grad(node: Any, cotangent: Tensor) -> None:
    before = node.extra.get("grad")
    node.extra["grad"] = cotangent if before is None else before + cotangent


class Hook:
    """A registered gradient hook; ``remove()`` takes it away."""

    _serial = 0

    def __init__(self, hooks: dict[int, Callable[[Tensor], Any]], hook: Callable[[Tensor], Any]) -> None:
        Hook._serial += 1
        self._hooks, self._key = hooks, Hook._serial
        hooks[self._key] = hook

    def remove(self) -> None:
        """Take the hook away; doing so twice does nothing."""
        self._hooks.pop(self._key, None)


class Parameter(Tensor):
    """A tensor that a module learns: found by ``Module.parameters()``, saved by ``state_dict()``.

    >>> import tinyseq as ts
    >>> ts.Parameter([1.0, 2.0]).requires_grad
    True
    """

    __slots__ = ()

    def __init__(self, data: Any, node: Place | None = None, *, requires_grad: bool = True) -> None:
        super().__init__(data.data if isinstance(data, Tensor) else tensor(data).data, node)
        if requires_grad and node is None:
            self.requires_grad = True

    def __repr__(self) -> str:
        return "Parameter" + super().__repr__().removeprefix("tensor")


# --- who holds an array -----------------------------------------------------------------------------------------------


def _count_alone() -> int:
    lone = Tensor(np.zeros(1))
    return sys.getrefcount(lone.data)


_ALONE = _count_alone()


def owned_alone(t: Tensor) -> bool:
    """Whether nobody but ``t`` holds its array: no tape, view, ``state_dict`` or user. Only then may it change in place."""
    # The reference count tells; an array that is itself a view has a base, which others may see.
    return sys.getrefcount(t.data) <= _ALONE and getattr(t.data, "base", t) is None


# --- making tensors ---------------------------------------------------------------------------------------------------


def as_tensor(value: Operand, dtype: Any = None) -> Tensor:
    """A Tensor as it is; numbers or an array as a constant with memory of its own.

    What happens to the array afterwards changes no result and no gradient.
    """
    if isinstance(value, Tensor):
        return value if dtype is None else value.astype(dtype)
    backend = current_backend()
    owner = None if isinstance(value, np.ndarray) else backend_of(value)
    data = owner.ops.copy(value) if owner is not None else backend.asarray(np.array(_host_array(value, dtype)))
    _kind(data.dtype)
    result = Tensor(data)
    return result if dtype is None else result.astype(dtype)


def _host_array(value: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
    """Numbers, nested lists (of tensors too) as a NumPy array; Python floats in ``dtype``, float32 by default."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__") and not isinstance(value, Tensor):
        return np.asarray(np.from_dlpack(value))
    try:
        array = np.array(value)
    except ValueError as error:
        raise ShapeError(f"cannot make a tensor of nested lists of unequal lengths: {error}") from None
    if array.dtype == object or array.dtype.kind in "USMmc":
        raise DTypeError(f"cannot make a tensor of {type(value).__name__} with elements of dtype {array.dtype}")
    if array.dtype == np.float64 and not _has_numpy_scalars(value):
        array = array.astype(DEFAULT if dtype is None else dtype)
    return array


def _has_numpy_scalars(value: Any) -> bool:
    """Whether a nested list holds NumPy values, whose dtype is then meant."""
    while isinstance(value, list | tuple):
        if not value:
            return False
        value = value[0]
    return isinstance(value, np.generic | np.ndarray)


def tensor(value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor on the backend in force, with a copy of the values.

    Args:
        value: numbers, nested lists, a NumPy array, another library's array, a Tensor. Python floats become float32,
            Python integers int64; arrays keep their dtype.
        dtype: another dtype, such as ``ts.float64``.
        requires_grad: whether ``backward`` should find its gradient.

    Raises:
        DTypeError: the elements are not numbers, or an integer tensor is asked for a gradient.
        ShapeError: nested lists of unequal lengths.

    >>> import tinyseq as ts
    >>> ts.tensor([[1.0, 2.0]]).shape
    (1, 2)
    """
    backend = current_backend()
    if isinstance(value, Tensor):
        data = backend.ops.copy(value.to(backend).data)
    elif type(value) is backend.array_type:
        data = backend.ops.copy(value)
    else:
        data = backend.asarray(np.array(_host_array(value, dtype), copy=True))
    _kind(data.dtype)
    result = Tensor(data)
    if dtype is not None:
        result = result.astype(dtype)
        result.node = None
    if requires_grad:
        result.requires_grad = True
    return result


_OPERANDS = (Tensor, int, float, np.ndarray, np.generic)
