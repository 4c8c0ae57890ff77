"""THE table: one row a primitive: its name, its shape rule and its VJP.

A VJP is one function for each array argument, from the cotangent ``g`` of the output to that of the argument. *The names
of its parameters say what it keeps*: a rule is handed what it names, and the tape keeps nothing else alive.

    F                  the operations of this table, on raw arrays or on Tensors; the rule cannot tell
    g                  the cotangent of the output
    x, y, z            the first, second, third input
    out                the output
    indices            the inputs after the first
    x_shape, y_shape, x_dtype   what is known without keeping an array
    axis, key, ...     the operation's own metadata
    inputs, node       all inputs; the node itself: for rules that are programs of their own (scan, checkpoint)

Rules broadcast freely: the walker sums a cotangent down to its argument's shape. Axes count from the end, so that a rule
holds unchanged when a leading time axis is put in front.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from tinyseq.array_api import INDEX
from tinyseq.backend import canonical_dtype
from tinyseq.errors import ShapeError

__all__ = ["TABLE", "Primitive", "keepdims_shape", "primitive"]

Shape = tuple[int, ...]
DType = Any
Rule = Callable[..., Any]
Plan = tuple[tuple[bool, ...] | None, bool, Rule]
BOOL, INT64 = np.dtype("bool"), np.dtype("int64")


class Primitive:
    """A row of the table.

    Attributes:
        name: its name here, in every backend's ``ops``, in pictures and in messages.
        shape: from the inputs (anything with a shape and a dtype, or a number) and the metadata to the output's shape
            and dtype; raises ``ShapeError`` with a sentence if they do not fit.
        pulls: for each argument the adapted VJP ``(F, g, node) -> cotangent``, or None where there is no gradient.
        joint: the adapted VJP that gives all arguments' cotangents at once, for operations with many inputs.
    """

    __slots__ = ("_rules", "differentiable", "joint", "name", "plans", "pulls", "shape")

    def __init__(self, name: str, shape: Rule, rules: tuple[Rule | None, ...], joint: Rule | None = None) -> None:
        self.name = name
        self.shape = shape
        self.pulls = tuple(rule and _adapt([rule], joint=True) for rule in rules)
        self.joint = joint and _adapt([joint], joint=True)
        self._rules = rules if joint is None else (joint,)
        self.differentiable = any(self._rules)
        self.plans: dict[int, Plan] = {}

    def plan(self, mask: int) -> Plan:
        """Which inputs to keep (None for all, empty for none), whether the output, and the VJP of the tracked arguments.

        Bit i of ``mask`` says that input i is tracked; one more bit on top says how many inputs there are.
        """
        if mask not in self.plans:
            count = mask.bit_length() - 1
            if self.joint:
                rules: list[Rule | None] = list(self._rules)
            else:
                rules = [rule if mask >> i & 1 else None for i, rule in enumerate(self._rules[:count])]
            named = {name for rule in rules if rule for name in _parameters(rule)}
            inputs = tuple(
                (i < 3 and "xyz"[i] in named) or "inputs" in named or (i > 0 and "indices" in named) for i in range(count)
            )
            keep = None if all(inputs) else inputs if any(inputs) else ()
            self.plans[mask] = (keep, "out" in named, self.joint or _adapt(rules))
        return self.plans[mask]

    def __repr__(self) -> str:
        return f"<primitive {self.name}>"


# What an adapted rule reads from a node for each name; any other name is metadata.
_SOURCES = {
    "F": "F",
    "g": "g",
    "x": "n.inputs[0]",
    "y": "n.inputs[1]",
    "z": "n.inputs[2]",
    "inputs": "n.inputs",
    "out": "n.output",
    "indices": "n.inputs[1:]",
    "x_shape": "n.parents[0].shape",
    "y_shape": "n.parents[1].shape",
    "z_shape": "n.parents[2].shape",
    "x_dtype": "n.parents[0].dtype",
    "node": "n",
}


def _parameters(rule: Rule) -> tuple[str, ...]:
    return tuple(inspect.signature(rule).parameters)


def _adapt(rules: Sequence[Rule | None], joint: bool = False) -> Rule:
    """``(F, g, node)`` -> what each rule makes of what it names, None for none; written as source once, to cost one call."""
    calls = []
    for i, rule in enumerate(rules):
        names = _parameters(rule) if rule else ()
        arguments = ", ".join(_SOURCES.get(name, f"n.params[{name!r}]") for name in names)
        calls.append(f"rule{i}({arguments})" if rule else "None")
    body = calls[0] if joint else f"[{', '.join(calls)}]"
    return eval(f"lambda F, g, n: {body}", {f"rule{i}": rule for i, rule in enumerate(rules)})


TABLE: dict[str, Primitive] = {}


def primitive(name: str, shape: Rule, *rules: Rule | None, joint: Rule | None = None) -> Primitive:
    """Add a row to the table and return it.

    Args:
        name: the primitive's name; a backend's ``ops`` has a function of that name.
        shape: its shape rule.
        rules: a VJP for each argument, or None where an argument has no gradient. No rules: nothing has a gradient.
        joint: one VJP that returns a cotangent for each argument, in place of ``rules``.
    """
    if name in TABLE:
        raise ValueError(f"there is already a primitive {name!r}; choose another name")
    TABLE[name] = row = Primitive(name, shape, rules, joint)
    return row


# --- shape rules ------------------------------------------------------------------------------------------------------


def _dtype(*inputs: Any) -> DType:
    """The dtype of the first array among the operands (they agree by now; numbers follow)."""
    for x in inputs:
        if (dtype := getattr(x, "dtype", None)) is not None:
            return canonical_dtype(dtype)
    raise AssertionError("an operation on numbers alone")


def _shape(x: Any) -> Shape:
    return tuple(x.shape) if hasattr(x, "shape") else ()


def _broadcast(name: str, *shapes: Shape) -> Shape:
    if len(shapes) == 2 and (shapes[0] == shapes[1] or not shapes[1]):  # as nearly always
        return shapes[0]
    result: list[int] = []
    for axis in range(-max(map(len, shapes), default=0), 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            listed = " and ".join(map(str, shapes))
            raise ShapeError(
                f"{name} cannot broadcast shapes {listed}: axis {axis} has sizes {' and '.join(map(str, sorted(sizes)))}; "
                "they must be equal or 1"
            )
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def _same(x: Any, **params: Any) -> tuple[Shape, DType]:
    return _shape(x), _dtype(x)


def _boolean(x: Any) -> tuple[Shape, DType]:
    return _shape(x), BOOL


def _broadcasting(name: str, dtype: DType | None = None) -> Rule:
    def rule(*inputs: Any) -> tuple[Shape, DType]:
        return _broadcast(name, *map(_shape, inputs)), dtype or _dtype(*inputs)

    return rule


def keepdims_shape(shape: Shape, axis: tuple[int, ...]) -> Shape:
    """The shape with size 1 at the given (negative) axes."""
    return tuple(1 if i - len(shape) in axis else size for i, size in enumerate(shape))


def _reduced(x: Any, *, axis: tuple[int, ...], keepdims: bool) -> tuple[Shape, DType]:
    shape = _shape(x)
    if keepdims:
        return keepdims_shape(shape, axis), _dtype(x)
    return tuple(size for i, size in enumerate(shape) if i - len(shape) not in axis), _dtype(x)


def _summed(x: Any, *, axis: tuple[int, ...], keepdims: bool) -> tuple[Shape, DType]:
    shape, dtype = _reduced(x, axis=axis, keepdims=keepdims)
    return shape, INT64 if dtype.kind in "bi" else dtype


def _running(x: Any, *, axis: int) -> tuple[Shape, DType]:
    dtype = _dtype(x)
    return _shape(x), INT64 if dtype.kind in "bi" else dtype


def _truth(x: Any, *, axis: tuple[int, ...], keepdims: bool) -> tuple[Shape, DType]:
    return _reduced(x, axis=axis, keepdims=keepdims)[0], BOOL


def _position(x: Any, *, axis: int) -> tuple[Shape, DType]:
    return _reduced(x, axis=(axis,), keepdims=False)[0], INT64


def _matmul_shape(x: Any, y: Any) -> tuple[Shape, DType]:
    a, b = _shape(x), _shape(y)
    if len(a) < 2 or len(b) < 2 or a[-1] != b[-2]:
        raise ShapeError(
            f"matmul cannot multiply shapes {a} and {b}: the last axis of the first must equal the last but one of the second"
        )
    return (*_broadcast("matmul", a[:-2], b[:-2]), a[-2], b[-1]), _dtype(x, y)


def _reshape_shape(x: Any, *, shape: Shape) -> tuple[Shape, DType]:
    if math.prod(shape) != math.prod(_shape(x)):
        raise ShapeError(f"reshape cannot turn shape {_shape(x)} ({math.prod(_shape(x))} elements) into {shape}")
    return shape, _dtype(x)


def _permute_shape(x: Any, *, axes: tuple[int, ...]) -> tuple[Shape, DType]:
    shape = _shape(x)
    lead = len(shape) - len(axes)
    return (*shape[:lead], *(shape[axis] for axis in axes)), _dtype(x)


def _broadcast_to_shape(x: Any, *, shape: Shape) -> tuple[Shape, DType]:
    if len(shape) < len(_shape(x)) or _broadcast("broadcast_to", _shape(x), shape) != shape:
        raise ShapeError(f"broadcast_to cannot stretch shape {_shape(x)} to {shape}")
    return shape, _dtype(x)


def _pad_shape(x: Any, *, widths: tuple[tuple[int, int], ...], value: float) -> tuple[Shape, DType]:
    shape = _shape(x)
    lead = len(shape) - len(widths)
    padded = (size + sum(width) for size, width in zip(shape[lead:], widths, strict=True))
    return (*shape[:lead], *padded), _dtype(x)


def _concatenate_shape(*arrays: Any, axis: int, sizes: tuple[int, ...]) -> tuple[Shape, DType]:
    shapes = [_shape(x) for x in arrays]
    first = shapes[0]
    for i, shape in enumerate(shapes):
        rest = [s[: len(s) + axis] + s[len(s) + axis + 1 :] for s in (first, shape)]
        if len(shape) != len(first) or rest[0] != rest[1]:
            raise ShapeError(
                f"concatenate along axis {axis}: input {i} has shape {shape}, which differs from {first} on another axis"
            )
    at = len(first) + axis
    return (*first[:at], sum(shape[axis] for shape in shapes), *first[at + 1 :]), _dtype(*arrays)


def _sliced(shape: Shape, key: tuple[Any, ...]) -> Shape:
    """What slices leave; at most one of the entries stands for the axes between."""
    at = key.index(Ellipsis) if Ellipsis in key else len(key)
    after = len(key) - at - 1 if at < len(key) else 0
    middle = len(shape) - after
    slices = (*zip(key[:at], shape, strict=False), *zip(key[at + 1 :], shape[middle:], strict=True))
    sizes = [len(range(*entry.indices(size))) for entry, size in slices]
    return (*sizes[:at], *shape[at:middle], *sizes[at:])


def _getitem_shape(x: Any, *indices: Any, key: tuple[Any, ...]) -> tuple[Shape, DType]:
    if not indices and len(key) <= len(x.shape) and all(type(entry) is slice or entry is Ellipsis for entry in key):
        return _sliced(_shape(x), key), _dtype(x)
    # NumPy's own indexing of an array that takes no memory.
    hollow = np.broadcast_to(np.zeros((), dtype=bool), _shape(x))
    rest = iter(indices)
    filled = tuple(np.zeros(_shape(next(rest)), dtype=np.int64) if entry is INDEX else entry for entry in key)
    if indices and 0 in hollow.shape:
        hollow = np.broadcast_to(hollow.dtype.type(0), tuple(max(size, 1) for size in hollow.shape))
    return hollow[filled].shape, _dtype(x)


def _scattered(values: Any, *indices: Any, key: tuple[Any, ...], shape: Shape) -> tuple[Shape, DType]:
    return shape, _dtype(values)


# --- VJPs that take more than a line ----------------------------------------------------------------------------------


def _spread(F: Any, g: Any, shape: Shape, axis: tuple[int, ...], keepdims: bool) -> Any:
    """A reduction's cotangent, back over the axes that were reduced."""
    if not keepdims and len(axis) < len(shape):  # a single number broadcasts as it is
        g = F.reshape(g, shape=keepdims_shape(shape, axis))
    return F.broadcast_to(g, shape=shape)


def _extremum_vjp(F: Any, g: Any, x: Any, out: Any, x_shape: Shape, axis: tuple[int, ...], keepdims: bool) -> Any:
    # Ties share the cotangent equally, as torch.amax and jax do.
    kept = keepdims_shape(x_shape, axis)
    g, out = F.reshape(g, shape=kept), F.reshape(out, shape=kept)
    chosen = F.cast(F.eq(x, out), dtype=canonical_dtype(g.dtype))
    return chosen * (g / F.sum(chosen, axis=axis, keepdims=True))


def _pick(F: Any, g: Any, better: Any, equal: Any) -> Any:
    """An elementwise extremum's cotangent; where both are equal each gets half."""
    return F.where(better, g, F.where(equal, 0.5 * g, 0.0))


def _power_base_vjp(F: Any, g: Any, x: Any, y: Any) -> Any:
    if isinstance(y, int | float):
        return g * 0.0 if y == 0 else g * (y * F.power(x, y - 1)) if y != 2 else g * (2 * x)
    flat = F.eq(y, 0)  # also where x is 0, of which the power -1 would warn
    return F.where(flat, 0.0, g * (y * F.power(x, F.where(flat, 1.0, y) - 1)))


def _power_exponent_vjp(F: Any, g: Any, x: Any, y: Any, out: Any) -> Any:
    # 0 ** y is flat in y for y >= 0, where log(0) would say NaN.
    if isinstance(x, int | float):
        return g * (out * math.log(x)) if x > 0 else F.where(F.ge(y, 0), 0.0, g * math.nan) if x == 0 else g * math.nan
    flat = F.logical_and(F.eq(x, 0), F.ge(y, 0))
    return F.where(flat, 0.0, g * (out * F.log(F.where(flat, 1.0, x))))


def _matmul_right_vjp(F: Any, g: Any, x: Any, y_shape: Shape) -> Any:
    if len(y_shape) == 2 and len(x.shape) > 2:
        # One product over all rows, not one for each leading index to be summed afterwards.
        rows = math.prod(x.shape[:-1])
        x, g = F.reshape(x, shape=(rows, x.shape[-1])), F.reshape(g, shape=(math.prod(g.shape[:-1]), g.shape[-1]))
    return F.matmul(F.permute(x, axes=(-1, -2)), g)


def _unpad(F: Any, g: Any, x_shape: Shape, widths: tuple[tuple[int, int], ...]) -> Any:
    sizes = x_shape[len(x_shape) - len(widths) :]
    slices = (slice(low, low + size) for size, (low, _) in zip(sizes, widths, strict=True))
    return F.getitem(g, key=(Ellipsis, *slices))


def _cut(F: Any, g: Any, sizes: tuple[int, ...], axis: int) -> list[Any]:
    parts, start = [], 0
    rest = (slice(None),) * (-axis - 1)
    for size in sizes:
        parts.append(F.getitem(g, key=(Ellipsis, slice(start, start + size), *rest)))
        start += size
    return parts


@cache
def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    n = len(axes)
    inverse = [0] * n
    for to, axis in enumerate(axes):
        inverse[axis + n] = to - n
    return tuple(inverse)


TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)

# --- the table --------------------------------------------------------------------------------------------------------
# fmt: off

# Elementwise, one argument
primitive("neg", _same, lambda g: -g)
primitive("exp", _same, lambda g, out: g * out)
primitive("expm1", _same, lambda g, out: g * (out + 1))
primitive("log", _same, lambda g, x: g / x)
primitive("log1p", _same, lambda g, x: g / (x + 1))
primitive("sqrt", _same, lambda g, out: g * 0.5 / out)
primitive("tanh", _same, lambda g, out: g - g * out * out)
primitive("sigmoid", _same, lambda g, out: g * (out * (1 - out)))
primitive("relu", _same, lambda F, g, out: F.where(F.le(out, 0), 0.0, g))
primitive("erf", _same, lambda F, g, x: g * (TWO_OVER_ROOT_PI * F.exp(-(x * x))))
primitive("sin", _same, lambda F, g, x: g * F.cos(x))
primitive("cos", _same, lambda F, g, x: -(g * F.sin(x)))
primitive("abs", _same, lambda F, g, x: g * F.sign(x))
primitive("clip", _same, lambda F, g, x, low, high: F.where(_inside(F, x, low, high), g, 0.0))
primitive("cast", lambda x, *, dtype: (_shape(x), dtype), lambda F, g, x_dtype: F.cast(g, dtype=canonical_dtype(x_dtype)))
primitive("copy", _same, lambda g: g)

# Elementwise, two arguments and three
primitive("add", _broadcasting("add"), lambda g: g, lambda g: g)
primitive("sub", _broadcasting("sub"), lambda g: g, lambda g: -g)
primitive("mul", _broadcasting("mul"), lambda g, y: g * y, lambda g, x: g * x)
primitive("div", _broadcasting("div"), lambda g, y: g / y, lambda g, y, out: -(g * out) / y)
primitive("power", _broadcasting("power"), _power_base_vjp, _power_exponent_vjp)
primitive("remainder", _broadcasting("remainder"), lambda g: g, lambda F, g, x, y: -(g * F.floor_divide(x, y)))
primitive("maximum", _broadcasting("maximum"),
          lambda F, g, x, y: _pick(F, g, F.gt(x, y), F.eq(x, y)), lambda F, g, x, y: _pick(F, g, F.gt(y, x), F.eq(x, y)))
primitive("minimum", _broadcasting("minimum"),
          lambda F, g, x, y: _pick(F, g, F.lt(x, y), F.eq(x, y)), lambda F, g, x, y: _pick(F, g, F.lt(y, x), F.eq(x, y)))
primitive("where", lambda c, x, y: (_broadcast("where", *map(_shape, (c, x, y))), _dtype(x, y)),
          None, lambda F, g, x: F.where(x, g, 0.0), lambda F, g, x: F.where(x, 0.0, g))

# Reductions
primitive("sum", _summed, lambda F, g, x_shape, axis, keepdims: _spread(F, g, x_shape, axis, keepdims))
primitive("max", _reduced, _extremum_vjp)
primitive("min", _reduced, _extremum_vjp)
primitive("cumsum", _running, lambda F, g, axis: F.flip(F.cumsum(F.flip(g, axis=(axis,)), axis=axis), axis=(axis,)))

# Products
primitive("matmul", _matmul_shape, lambda F, g, y: F.matmul(g, F.permute(y, axes=(-1, -2))), _matmul_right_vjp)

# Shape moves
primitive("reshape", _reshape_shape, lambda F, g, x_shape: F.reshape(g, shape=x_shape))
primitive("permute", _permute_shape, lambda F, g, axes: F.permute(g, axes=_inverse(axes)))
primitive("broadcast_to", _broadcast_to_shape, lambda g: g)
primitive("pad", _pad_shape, _unpad)
primitive("flip", _same, lambda F, g, axis: F.flip(g, axis=axis))
primitive("concatenate", _concatenate_shape, joint=lambda F, g, sizes, axis: _cut(F, g, sizes, axis))

# Gather and scatter-add, each the other's transpose
primitive("getitem", _getitem_shape, lambda F, g, indices, x_shape, key: F.scatter_add(g, *indices, key=key, shape=x_shape))
primitive("scatter_add", _scattered, lambda F, g, indices, key: F.getitem(g, *indices, key=key))

# Flat wherever they have a slope at all
for _name in ("sign", "floor", "round"):
    primitive(_name, _same, lambda g: g * 0.0)
primitive("floor_divide", _broadcasting("floor_divide"), lambda g: g * 0.0, lambda g: g * 0.0)

# Without a gradient
for _name in ("isfinite", "isnan", "logical_not"):
    primitive(_name, _boolean)
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"):
    primitive(_name, _broadcasting(_name, BOOL))
for _name in ("all", "any"):
    primitive(_name, _truth)
for _name in ("argmax", "argmin"):
    primitive(_name, _position)
primitive("detach", _same)  # only in a trace: elsewhere a detached Tensor is one without a place on the tape
primitive("argsort", lambda x, *, axis, descending: (_shape(x), INT64))
primitive("positions", lambda x, *, axis: (_shape(x), INT64))  # where on an axis each element stands: 0, 1, ...
# fmt: on


def _inside(F: Any, x: Any, low: float | None, high: float | None) -> Any:
    """Where clip lets its argument through; the bounds themselves count as inside, as in torch.clamp."""
    if low is None or high is None:
        return F.ge(x, low) if high is None else F.le(x, high)
    return F.logical_and(F.ge(x, low), F.le(x, high))
