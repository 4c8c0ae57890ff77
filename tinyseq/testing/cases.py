"""What every backend is asked: for each primitive some inputs, the metadata, and the answer in plain NumPy.

A case is written once and run for every dtype, memory layout and backend. A reference works in float64 and knows nothing
of the engine; its differences say what the VJP must be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyseq.array_api import INDEX

__all__ = ["CASES", "SLOPES", "Case", "Slope"]

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
Make = Callable[[np.random.Generator, np.dtype[Any]], Any]
Reference = Callable[..., Any]

DTYPES = {"f": ("float32", "float64"), "i": ("int32", "int64"), "b": ("bool",)}
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Case:
    """A call of a primitive, and its answer.

    Attributes:
        primitive: the row of the table.
        inputs: for each input a function of a generator and a dtype that makes it: an array, or a number.
        reference: the same operation in NumPy, of the same inputs and metadata.
        params: the metadata.
        kinds: the dtypes that apply: any of f (float32 and float64), i (int32 and int64), b (bool).
        note: what is special about it.
        differentiate: whether the reference has a derivative at these inputs.
        ties: whether equal elements would take the derivative away.
    """

    primitive: str
    inputs: tuple[Make, ...]
    reference: Reference
    params: Mapping[str, Any] = field(default_factory=dict)
    kinds: str = "f"
    note: str = ""
    differentiate: bool = True
    ties: bool = False

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The names of the dtypes that it runs in."""
        return tuple(name for kind in self.kinds for name in DTYPES[kind])

    def __str__(self) -> str:
        return f"{self.primitive}{'-' if self.note else ''}{self.note}"


@dataclass(frozen=True)
class Slope:
    """What the derivatives of an elementwise primitive are where no difference can tell: at a kink, a pole, infinity, NaN."""

    primitive: str
    at: tuple[float, ...]
    slopes: tuple[float, ...]
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.primitive}{self.at}"


# --- inputs -----------------------------------------------------------------------------------------------------------


def real(*shape: int, low: float = -2.0, high: float = 2.0) -> Make:
    """Numbers between two bounds; integers between them, or booleans."""

    def make(rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
        if dtype.kind == "b":
            return np.asarray(rng.random(shape) < 0.5)
        if dtype.kind == "i":
            return np.asarray(rng.integers(math.ceil(low), math.floor(high) + 1, shape), dtype)
        return np.asarray(rng.uniform(low, high, shape), dtype)

    return make


def broken(*shape: int, at: float = 1.0) -> Make:
    """Numbers of both signs that keep away from every multiple of ``at``, where a function of them has a kink or a jump."""

    def make(rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
        steps = rng.integers(-3, 3, shape)
        return np.asarray(steps if dtype.kind != "f" else (steps + rng.uniform(0.2, 0.8, shape)) * at, dtype)

    return make


def distinct(*shape: int) -> Make:
    """Numbers of which no two are close."""

    def make(rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
        count = math.prod(shape)
        return np.asarray(rng.permutation(count).reshape(shape) - count // 2, dtype)

    return make


def values(*rows: Any) -> Make:
    """These very values."""
    return lambda rng, dtype: np.array(rows if len(rows) != 1 else rows[0]).astype(dtype)


def exactly(*values: Any) -> Make:
    """These very values, in the dtype that they have."""
    return lambda rng, dtype: np.array(values)


def index(*shape: int, size: int) -> Make:
    """Indices into an axis, with repeats, some counted from the end."""
    return lambda rng, dtype: np.asarray(rng.integers(-size, size, shape))


def truth(*shape: int) -> Make:
    """Booleans."""
    return lambda rng, dtype: np.asarray(rng.random(shape) < 0.5)


def number(value: float) -> Make:
    """A Python number beside an array: an int beside integers, True or False beside booleans."""

    def make(rng: np.random.Generator, dtype: np.dtype[Any]) -> float:
        return float(value) if dtype.kind == "f" else bool(value) if dtype.kind == "b" else int(value)

    return make


# --- families of cases ------------------------------------------------------------------------------------------------

CASES: list[Case] = []
_function: Reference  # of the loops below


def case(primitive: str, *inputs: Make, reference: Reference, **rest: Any) -> None:
    """Add a case; what is not a field of its own is metadata."""
    named = {key: rest.pop(key) for key in ("kinds", "note", "differentiate", "ties") if key in rest}
    CASES.append(Case(primitive, inputs, reference, rest, **named))


SHAPES: dict[str, Shape] = {"matrix": (3, 4), "zero-dimensional": (), "empty": (0, 3)}
BROADCASTS: dict[str, tuple[Shape, Shape]] = {
    "alike": ((3, 4), (3, 4)),
    "broadcast": ((2, 1, 4), (3, 1)),
    "zero-dimensional": ((), ()),
    "zero-dimensional beside a matrix": ((), (2, 3)),
    "empty": ((0, 3), (3,)),
}
ODD = (NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1e-30, -1e-30, 1e30, -1e30, 88.0, -100.0)


def elementwise(primitive: str, reference: Reference, make: Callable[..., Make] = real, **rest: Any) -> None:
    """One argument: of each shape, and at NaN, infinities and other odd places."""
    bounds = {key: rest.pop(key) for key in ("low", "high", "at") if key in rest and make in (real, broken)}
    for note, shape in SHAPES.items():
        case(primitive, make(*shape, **bounds), reference=reference, note=note, **rest)
    rest = {**rest, "kinds": "f", "differentiate": False}
    case(primitive, values(*ODD), reference=reference, note="odd values", **rest)


def pairwise(
    primitive: str,
    reference: Reference,
    first: Callable[..., Make] = real,
    second: Callable[..., Make] = real,
    numbers: tuple[float, ...] = (1.5,),
    **rest: Any,
) -> None:
    """Two arguments: of shapes that broadcast, beside numbers, and all pairs of odd values."""
    for note, (left, right) in BROADCASTS.items():
        case(primitive, first(*left), second(*right), reference=reference, note=note, **rest)
    for value in numbers:
        case(primitive, first(2, 3), number(value), reference=reference, note=f"beside {value}", **rest)
        case(primitive, number(value), second(2, 3), reference=reference, note=f"{value} beside", **rest)
    rest = {**rest, "kinds": "f", "differentiate": False}
    grid = np.array([(a, b) for a in ODD for b in ODD])
    case(primitive, values(grid[:, 0]), values(grid[:, 1]), reference=reference, note="odd values", **rest)


AXES: tuple[tuple[Shape, tuple[int, ...], bool], ...] = (
    ((2, 3, 4), (-1,), False),
    ((2, 3, 4), (-3, -1), True),
    ((2, 3, 4), (-3, -2, -1), False),
    ((2, 3), (), False),
    ((), (), False),
)


def reduction(primitive: str, reference: Reference, make: Callable[..., Make] = real, *, empty: bool, **rest: Any) -> None:
    """Over one axis, several, all or none."""
    shapes = (*AXES, ((0, 3), (-2,), False), ((2, 0), (-1,), True)) if empty else (*AXES, ((0, 3), (-1,), False))
    for shape, axis, keepdims in shapes:
        note = f"{shape} over {axis}{' kept' if keepdims else ''}"
        case(primitive, make(*shape), reference=reference, note=note, axis=axis, keepdims=keepdims, **rest)
    rows = [[1.0, NAN, 2.0], [INF, 1.0, 0.0], [-INF, 1.0, -0.0], [INF, -INF, 1.0]]
    rest = {**rest, "kinds": "f", "differentiate": False}
    case(primitive, values(*rows), reference=reference, note="odd values", axis=(-1,), keepdims=False, **rest)


# --- one argument -----------------------------------------------------------------------------------------------------


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf, otypes=[float])(x)


def _clip(x: Any, low: float | None, high: float | None) -> Any:
    return np.clip(x, low, high)


elementwise("neg", np.negative, kinds="fi")
elementwise("exp", np.exp)
elementwise("expm1", np.expm1)
elementwise("log", np.log, low=0.4, high=3)
elementwise("log1p", np.log1p, low=-0.6, high=3)
elementwise("sqrt", np.sqrt, low=0.4, high=3)
elementwise("tanh", np.tanh)
elementwise("sigmoid", _sigmoid)
elementwise("relu", lambda x: np.maximum(x, 0), broken, kinds="fi")
elementwise("erf", _erf)
elementwise("sin", np.sin)
elementwise("cos", np.cos)
elementwise("abs", np.abs, broken, kinds="fi")
elementwise("sign", np.sign, broken, kinds="fi")
elementwise("floor", np.floor, broken)
elementwise("round", np.round, broken, at=0.5)
elementwise("copy", lambda x: x, kinds="fib")
elementwise("detach", lambda x: x, kinds="fib")
elementwise("isfinite", np.isfinite)
elementwise("isnan", np.isnan)
case("logical_not", truth(2, 3), reference=np.logical_not, kinds="b")
case("logical_not", truth(), reference=np.logical_not, kinds="b", note="zero-dimensional")
case("logical_not", truth(0), reference=np.logical_not, kinds="b", note="empty")
for _low, _high in ((-1, 1), (None, 1), (-1, None)):
    for _note, _shape in SHAPES.items():
        case("clip", broken(*_shape), reference=_clip, low=_low, high=_high, note=f"{_note} {_low} to {_high}", kinds="fi")
    case("clip", values(*ODD), reference=_clip, low=_low, high=_high, note=f"odd values {_low} to {_high}", differentiate=False)
for _name in ("float32", "float64"):
    case("cast", real(2, 3), reference=lambda x, dtype: x, dtype=np.dtype(_name), note=f"to {_name}", kinds="fib")
    case("cast", values(NAN, INF, -INF, -0.0), reference=lambda x, dtype: x, dtype=np.dtype(_name), differentiate=False,
         note=f"odd values to {_name}")  # fmt: skip
for _name in ("int32", "int64", "bool"):
    case("cast", broken(2, 3), reference=lambda x, dtype: x.astype(dtype), dtype=np.dtype(_name), note=f"to {_name}",
         kinds="fib", differentiate=False)  # fmt: skip

# --- two arguments and three ------------------------------------------------------------------------------------------


def _positive(*shape: int) -> Make:
    return real(*shape, low=0.5, high=2.5)


def _upper(*shape: int) -> Make:
    return broken(*shape, at=0.7)


def _unlike(*shape: int) -> Make:
    # Never close to what ``broken`` gives: below, within and above its values.
    def make(rng: np.random.Generator, dtype: np.dtype[Any]) -> Array:
        steps = rng.integers(-3, 3, shape)
        return np.asarray(steps if dtype.kind != "f" else steps + rng.uniform(-0.1, 0.1, shape), dtype)

    return make


pairwise("add", np.add, kinds="fi")
pairwise("sub", np.subtract, kinds="fi")
pairwise("mul", np.multiply, kinds="fi")
pairwise("div", np.divide, second=_positive, numbers=(1.5, -2.0))
pairwise("power", np.power, first=_positive, numbers=(1.5,))
for _exponent in (2, 3, -1, 0.5, 0):
    case("power", _positive(2, 3), number(_exponent), reference=np.power, note=f"to the {_exponent}")
case("power", real(2, 3), values([[0.0, 1.0, 2.0]]), reference=np.power, note="integers", kinds="i")
case("power", real(2, 3), number(2), reference=np.power, note="integers squared", kinds="i")
pairwise("remainder", np.remainder, first=broken, second=lambda *shape: values(np.ones(shape)), numbers=())
case("remainder", broken(3, 4), number(1), reference=np.remainder, note="beside 1", kinds="f")
case("remainder", values(-7, -3, -1, 0, 2, 5), values(3, -3, 2, -2, -5, 5), reference=np.remainder, note="of both signs",
     kinds="fi", differentiate=False)  # fmt: skip
case("remainder", values(-7.5, -3.2, 4.3, 2.9), values(3.0, -2.1, -1.7, 0.8), reference=np.remainder, note="of fractions")
pairwise("floor_divide", np.floor_divide, first=broken, second=lambda *shape: values(np.ones(shape)), numbers=())
case("floor_divide", values(-7, -3, -1, 0, 2, 5), values(3, -3, 2, -2, -5, 5), reference=np.floor_divide,
     note="of both signs", kinds="fi", differentiate=False)  # fmt: skip
case("floor_divide", values(-7.5, -3.2, 4.3, 2.9), values(3.0, -2.1, -1.7, 0.8), reference=np.floor_divide,
     note="of fractions")  # fmt: skip
pairwise("maximum", np.maximum, first=broken, second=_unlike, numbers=(1.0,), kinds="fi")
pairwise("minimum", np.minimum, first=broken, second=_unlike, numbers=(1.0,), kinds="fi")
for _name, _function in (
    ("eq", np.equal),
    ("ne", np.not_equal),
    ("lt", np.less),
    ("le", np.less_equal),
    ("gt", np.greater),
    ("ge", np.greater_equal),
):
    pairwise(_name, _function, numbers=(1.0,), kinds="fi")
for _name, _function in (("eq", np.equal), ("ne", np.not_equal)):
    case(_name, truth(2, 3), truth(3), reference=_function, note="booleans", kinds="b")
for _name, _function in (
    ("logical_and", np.logical_and),
    ("logical_or", np.logical_or),
    ("logical_xor", np.logical_xor),
):
    for _note, (_left, _right) in BROADCASTS.items():
        case(_name, truth(*_left), truth(*_right), reference=_function, note=_note, kinds="b")
for _note, (_left, _right) in BROADCASTS.items():
    case("where", truth(*_left), real(*_right), real(*_left), reference=np.where, note=_note, kinds="fib")
case("where", truth(2, 3), real(3), number(0.0), reference=np.where, note="or a number", kinds="fi")
case("where", truth(2, 3), number(1.0), real(2, 1), reference=np.where, note="a number or", kinds="fi")
case("where", exactly(True, False), values(NAN, 1.0), values(2.0, INF), reference=np.where, note="odd values",
     differentiate=False)  # fmt: skip

# --- reductions -------------------------------------------------------------------------------------------------------


def _over(function: Reference) -> Reference:
    return lambda x, axis, keepdims: function(x, axis=axis, keepdims=keepdims)


reduction("sum", _over(np.sum), kinds="fib", empty=True)
reduction("max", _over(np.max), distinct, kinds="fi", empty=False, ties=True)
reduction("min", _over(np.min), distinct, kinds="fi", empty=False, ties=True)
for _name, _function in (("all", np.all), ("any", np.any)):
    for _shape, _axis, _keep in (*AXES, ((0, 3), (-2,), False)):
        case(_name, truth(*_shape), reference=_over(_function), axis=_axis, keepdims=_keep, kinds="b",
             note=f"{_shape} over {_axis}{' kept' if _keep else ''}")  # fmt: skip
for _name, _function in (("argmax", np.argmax), ("argmin", np.argmin)):
    for _shape, _at in (((2, 3, 4), -2), ((5,), -1), ((0, 3), -1)):
        case(_name, distinct(*_shape), reference=lambda x, axis, f=_function: f(x, axis=axis), axis=_at, kinds="fi",
             note=f"{_shape} along {_at}")  # fmt: skip
    case(_name, values([1, 3, 3, 1], [0, 0, 0, 0]), reference=lambda x, axis, f=_function: f(x, axis=axis), axis=-1,
         note="of ties the first", kinds="fi")  # fmt: skip
    case(_name, values([1.0, NAN, NAN, 5.0], [INF, 1.0, -INF, INF]), axis=-1, differentiate=False, note="odd values",
         reference=lambda x, axis, f=_function: f(x, axis=axis))  # fmt: skip


def _sorting(x: Array, axis: int, descending: bool) -> Array:
    # Stable in both directions; NaN counts as the largest number.
    order = np.argsort(x if not descending else np.flip(x, axis), axis=axis, kind="stable")
    return order if not descending else x.shape[axis] - 1 - np.flip(order, axis)


for _down in (False, True):
    _note = "descending" if _down else "ascending"
    for _shape, _at in (((2, 3, 4), -2), ((5,), -1), ((2, 0), -1)):
        case("argsort", distinct(*_shape), reference=_sorting, axis=_at, descending=_down, kinds="fi",
             note=f"{_shape} along {_at} {_note}")  # fmt: skip
    case("argsort", values([1, 0, 1, 0, 1, 1], [2, 2, 2, 2, 2, 2]), reference=_sorting, axis=-1, descending=_down,
         note=f"ties in their order {_note}", kinds="fi")  # fmt: skip
    case("argsort", values(1.0, NAN, -INF, INF, NAN, 0.0), reference=_sorting, axis=-1, descending=_down,
         note=f"odd values {_note}", differentiate=False)  # fmt: skip
for _shape, _at in (((2, 3, 4), -2), ((4,), -1), ((0, 3), -1), ((2, 0), -1)):
    case("positions", real(*_shape), reference=lambda x, axis: np.indices(x.shape)[axis], axis=_at, kinds="fib",
         note=f"{_shape} along {_at}")  # fmt: skip
    case("cumsum", real(*_shape), reference=np.cumsum, axis=_at, kinds="f", note=f"{_shape} along {_at}")
case("cumsum", real(2, 3), reference=np.cumsum, axis=-1, kinds="i", note="integers")
case("cumsum", values([1.0, NAN, 2.0], [INF, -INF, 1.0]), reference=np.cumsum, axis=-1, differentiate=False,
     note="odd values")  # fmt: skip

# --- products ---------------------------------------------------------------------------------------------------------

for _left, _right in (
    ((2, 3), (3, 4)),
    ((1, 1), (1, 1)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((2, 1, 2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)),
    ((2, 0), (0, 4)),
    ((0, 2, 3), (3, 4)),
):
    case("matmul", real(*_left), real(*_right), reference=np.matmul, kinds="fi", note=f"{_left} by {_right}")
case("matmul", values([1.0, INF], [NAN, 0.0]), values([0.0, 1.0], [2.0, 0.0]), reference=np.matmul, differentiate=False,
     note="odd values")  # fmt: skip

# --- shape moves ------------------------------------------------------------------------------------------------------

for _from, _to in (((2, 6), (3, 4)), ((2, 3), (6,)), ((), (1, 1)), ((1,), ()), ((0, 3), (3, 0, 2)), ((2, 3), (2, 1, 3))):
    case("reshape", real(*_from), reference=lambda x, shape: np.reshape(x, shape), shape=_to, kinds="fib",
         note=f"{_from} to {_to}")  # fmt: skip


def _trailing(x: Array, axes: tuple[int, ...]) -> Array:
    lead = x.ndim - len(axes)
    return np.transpose(x, (*range(lead), *(x.ndim + axis for axis in axes)))


for _shape, _axes in (
    ((2, 3), (-1, -2)),
    ((2, 3, 4), (-1, -2)),
    ((2, 3, 4), (-1, -3, -2)),
    ((2, 3, 4, 1), (-2, -4, -1, -3)),
    ((5, 2, 3, 4), (-1, -3, -2)),
    ((), ()),
    ((0, 3), (-1, -2)),
):
    case("permute", real(*_shape), reference=_trailing, axes=_axes, kinds="fib", note=f"{_shape} by {_axes}")
for _from, _to in (((3, 1), (2, 3, 4)), ((), (2, 3)), ((3,), (3,)), ((1, 3), (0, 3)), ((1,), (70, 70)), ((), ())):
    case("broadcast_to", real(*_from), reference=lambda x, shape: np.broadcast_to(x, shape), shape=_to, kinds="fib",
         note=f"{_from} to {_to}")  # fmt: skip


def _padded(x: Array, widths: tuple[tuple[int, int], ...], value: float) -> Array:
    if not widths:
        return x
    return np.pad(x, (*[(0, 0)] * (x.ndim - len(widths)), *widths), constant_values=value)


for _shape, _widths, _value in (
    ((2, 3), ((1, 2), (0, 1)), 0.0),
    ((2, 3), ((2, 0),), 1.0),
    ((3,), ((0, 0),), 0.0),
    ((0, 2), ((1, 1), (0, 0)), 5.0),
    ((), (), 0.0),
):
    case("pad", real(*_shape), reference=_padded, widths=_widths, value=_value, kinds="fi", note=f"{_shape} by {_widths}")
case("pad", real(2, 3), reference=_padded, widths=((1, 1),), value=-INF, note="with minus infinity")
for _shape, _axis in (((2, 3, 4), (-1,)), ((2, 3, 4), (-3, -1)), ((2, 3), ()), ((), ()), ((0, 3), (-2,))):
    case("flip", real(*_shape), reference=lambda x, axis: np.flip(x, axis), axis=_axis, kinds="fib",
         note=f"{_shape} along {_axis}")  # fmt: skip
for _shapes, _at in (
    (((2, 3), (2, 1), (2, 4)), -1),
    (((1, 3), (2, 3)), -2),
    (((2, 3),), -1),
    (((0, 3), (2, 3), (0, 3)), -2),
):
    case("concatenate", *(real(*_shape) for _shape in _shapes), axis=_at, kinds="fib",
         sizes=tuple(_shape[_at] for _shape in _shapes), note=f"{' '.join(map(str, _shapes))} along {_at}",
         reference=lambda *xs, axis, sizes: np.concatenate(xs, axis=axis))  # fmt: skip

# --- gather and scatter-add -------------------------------------------------------------------------------------------


def _key(key: tuple[Any, ...], indices: tuple[Array, ...]) -> tuple[Any, ...]:
    rest = iter(indices)
    return tuple(next(rest) if entry is INDEX else entry for entry in key)


def _taken(x: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
    return x[_key(key, indices)]


def _added(values: Array, *indices: Array, key: tuple[Any, ...], shape: Shape) -> Array:
    total = np.zeros(shape, values.dtype)
    np.add.at(total, _key(key, indices), values)
    return total


_all = slice(None)
for _shape, _wanted in (  # a maker stands where an index array does
    ((4, 5), (1,)),
    ((4, 5), (-1, 2)),
    ((4, 5), (slice(1, 3),)),
    ((4, 5), (slice(None, None, -2), slice(4, None, -1))),
    ((4, 5), (slice(10, 0, -3), 0)),
    ((4, 5), (slice(-10, None, -1), slice(-9, 9, 2))),
    ((0, 5), (slice(None, None, -1),)),
    ((4, 5), (Ellipsis, None, 2)),
    ((4, 5), (None, 1, None, slice(1, 4, 2))),
    ((4, 5), ()),
    ((), ()),
    ((), (None, Ellipsis)),
    ((4, 5), (slice(2, 2),)),
    ((0, 5), (_all, slice(1, 3))),
    ((4, 5), (index(7, size=4),)),
    ((4, 5), (index(2, 3, size=4),)),
    ((4, 5), (index(size=4),)),
    ((4, 5), (index(0, size=4),)),
    ((0, 5), (index(0, size=4),)),
    ((4, 5), (_all, index(7, size=5))),
    ((4, 5), (index(7, size=4), index(7, size=5))),
    ((4, 5), (index(2, 1, size=4), index(3, size=5))),
    ((4, 5, 3), (index(6, size=4), slice(1, 4), index(6, size=3))),
    ((4, 5, 3), (slice(1, 3), index(6, size=5), index(2, 1, size=3))),
    ((4, 5, 3), (Ellipsis, index(6, size=3))),
    ((4, 5, 3), (index(6, size=4), None, 1)),
    ((4, 5, 3), (1, index(6, size=5))),
    ((4, 5, 3), (slice(None, None, -1), None, index(2, 2, size=5), slice(0, 2))),
    ((4, 5, 3), (index(6, size=4), Ellipsis, 0)),
    ((4, 5, 3), (0, None, index(6, size=5))),
):
    _makers = [entry for entry in _wanted if callable(entry)]
    _indices = tuple(make(np.random.default_rng(0), np.dtype("int64")) for make in _makers)
    _static = tuple(INDEX if callable(entry) else entry for entry in _wanted)
    _note = f"{_shape} at {_static}{''.join(f' {i.shape}' for i in _indices)}"
    case("getitem", real(*_shape), *_makers, reference=_taken, key=_static, kinds="fib", note=_note)
    _result = _taken(np.zeros(_shape), *_indices, key=_static).shape
    case("scatter_add", real(*_result), *_makers, reference=_added, key=_static, shape=_shape, kinds="fi", note=_note)
case("scatter_add", values(NAN, 1.0, INF, -INF), exactly(0, 1, 2, 2), reference=_added, key=(INDEX,), shape=(4,),
     note="odd values", differentiate=False)  # fmt: skip

# --- derivatives at odd places ----------------------------------------------------------------------------------------

SLOPES = [
    *(Slope("tanh", (x,), (slope,)) for x, slope in ((0, 1), (INF, 0), (-INF, 0), (1e30, 0), (NAN, NAN))),
    *(Slope("sigmoid", (x,), (slope,)) for x, slope in ((0, 0.25), (INF, 0), (-INF, 0), (1e4, 0), (-1e4, 0), (NAN, NAN))),
    *(Slope("exp", (x,), (slope,)) for x, slope in ((-INF, 0), (INF, INF), (NAN, NAN))),
    *(Slope("expm1", (x,), (slope,)) for x, slope in ((-INF, 0), (INF, INF), (NAN, NAN))),
    *(Slope("log", (x,), (slope,)) for x, slope in ((0, INF), (INF, 0), (NAN, NAN))),
    *(Slope("log1p", (x,), (slope,)) for x, slope in ((-1, INF), (INF, 0), (0, 1), (NAN, NAN))),
    *(Slope("sqrt", (x,), (slope,)) for x, slope in ((0, INF), (INF, 0), (NAN, NAN))),
    *(Slope("erf", (x,), (slope,)) for x, slope in ((0, 2 / math.sqrt(math.pi)), (INF, 0), (-INF, 0), (NAN, NAN))),
    *(Slope("sin", (x,), (slope,)) for x, slope in ((0, 1), (INF, NAN), (NAN, NAN))),
    *(Slope("relu", (x,), (slope,)) for x, slope in ((0, 0), (-0.0, 0), (INF, 1), (-INF, 0))),
    *(Slope("abs", (x,), (slope,)) for x, slope in ((0, 0), (INF, 1), (-INF, -1), (NAN, NAN))),
    *(Slope("clip", (x,), (slope,), {"low": -1.0, "high": 1.0})
      for x, slope in ((-1, 1), (1, 1), (1.5, 0), (INF, 0), (-INF, 0))),
    *(Slope(name, (x,), (0,)) for name in ("sign", "floor", "round") for x in (0, 1, -0.5, INF)),
    Slope("div", (1, 0), (INF, -INF)),
    Slope("div", (1, INF), (0, 0)),
    Slope("div", (0, 2), (0.5, 0)),
    Slope("mul", (0, INF), (INF, 0)),
    Slope("power", (0, 2), (0, 0)),
    Slope("power", (0, 0), (0, 0)),
    Slope("power", (2, 0), (0, math.log(2))),
    Slope("power", (-2, 3), (12, NAN)),
    Slope("power", (0, 0.5), (INF, 0)),
    Slope("power", (NAN, 0), (0, NAN)),
    Slope("maximum", (1, 1), (0.5, 0.5)),
    Slope("maximum", (INF, 1), (1, 0)),
    Slope("maximum", (-INF, -INF), (0.5, 0.5)),
    Slope("minimum", (1, 1), (0.5, 0.5)),
    Slope("minimum", (INF, 1), (0, 1)),
]  # fmt: skip
