"""Elementwise operations on short vectors, as LLVM instructions.

One method a primitive, on values of ``lanes`` numbers (1 for the end of a row). exp, expm1, tanh and sigmoid are
polynomials here, since LLVM would call the C library for each number: all rest on expm1 of an argument reduced to
[-log(2)/2, log(2)/2], whose Taylor series stops where the next term is under half a unit in the last place.
NaN comes out as NaN, and infinities as the limits. Integers have signs and wrap around, as NumPy's do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

__all__ = ["SUPPORTED", "Vectors", "compute", "in_memory", "supports"]

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOATS: dict[np.dtype[Any], ir.Type] = {np.dtype("float32"): ir.FloatType(), np.dtype("float64"): ir.DoubleType()}
# The type of one number in a register; a boolean is a bit there, and a byte in memory.
TYPES: dict[np.dtype[Any], ir.Type] = {
    **FLOATS,
    np.dtype("bool"): I1,
    **{np.dtype(f"int{kind.width}"): kind for kind in (I8, I16, I32, I64)},
}

Value = Any


def in_memory(dtype: np.dtype[Any]) -> ir.Type:
    """The type of one number in memory."""
    return I8 if dtype.kind == "b" else TYPES[dtype]


class Vectors:
    """Writes operations on vectors of ``lanes`` numbers.

    Args:
        builder: where the instructions go.
        lanes: how many numbers a value has.
    """

    def __init__(self, builder: ir.IRBuilder, lanes: int) -> None:
        self.b = builder
        self.lanes = lanes

    # Types and constants

    def type(self, dtype: np.dtype[Any]) -> ir.Type:
        """The type of a value of this dtype; booleans are single bits."""
        return ir.VectorType(TYPES[dtype], self.lanes)

    def constant(self, dtype: np.dtype[Any], number: float) -> Value:
        """The same number in every lane."""
        one = dtype.type(number).item()
        return ir.Constant(self.type(dtype), [int(one) if dtype.kind == "b" else one] * self.lanes)

    def splat(self, scalar: Value) -> Value:
        """One number, in every lane."""
        kind = ir.VectorType(scalar.type, self.lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def spread(self, one: Value) -> Value:
        """A vector of one number, in every lane."""
        return self.splat(self.b.extract_element(one, I32(0)))

    # Memory

    def load(self, dtype: np.dtype[Any], pointer: Value) -> Value:
        """As many numbers as there are lanes."""
        if dtype.kind == "b":
            bytes_ = self.b.load(pointer, typ=ir.VectorType(I8, self.lanes), align=1)
            return self.b.icmp_unsigned("!=", bytes_, ir.Constant(bytes_.type, [0] * self.lanes))
        return self.b.load(pointer, typ=self.type(dtype), align=dtype.itemsize)

    def load_one(self, dtype: np.dtype[Any], pointer: Value) -> Value:
        """One number, in every lane."""
        if dtype.kind == "b":
            byte = self.b.load(pointer, typ=I8, align=1)
            return self.splat(self.b.icmp_unsigned("!=", byte, I8(0)))
        return self.splat(self.b.load(pointer, typ=TYPES[dtype], align=dtype.itemsize))

    def store(self, value: Value, dtype: np.dtype[Any], pointer: Value) -> None:
        """The opposite of ``load``."""
        if dtype.kind == "b":
            value = self.b.zext(value, ir.VectorType(I8, self.lanes))
        self.b.store(value, pointer, align=dtype.itemsize)

    # Calls

    def intrinsic(self, name: str, *values: Value, returns: ir.Type | None = None) -> Value:
        """An LLVM intrinsic, overloaded on the type of its first argument."""
        kind = values[0].type
        element = {ir.FloatType(): "f32", ir.DoubleType(): "f64", I32: "i32", I64: "i64"}[kind.element]
        full = f"llvm.{name}.v{self.lanes}{element}"
        module = self.b.module
        function = module.globals.get(full) or ir.Function(
            module, ir.FunctionType(returns or kind, [v.type for v in values]), full
        )
        return self.b.call(function, values)

    def library(self, name: str, *values: Value) -> Value:
        """A function of the C library, called for each lane."""
        scalar = values[0].type.element
        full = name + ("f" if scalar == ir.FloatType() else "")
        module = self.b.module
        function = module.globals.get(full) or ir.Function(module, ir.FunctionType(scalar, [scalar] * len(values)), full)
        result = ir.Constant(values[0].type, ir.Undefined)
        for lane in range(self.lanes):
            one = self.b.call(function, [self.b.extract_element(v, I32(lane)) for v in values])
            result = self.b.insert_element(result, one, I32(lane))
        return result

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        return self.intrinsic("fma", x, y, z)

    def like(self, x: Value, number: float) -> Value:
        """A number in every lane, of the type of ``x``."""
        return self.constant(self.dtype(x), number)

    def dtype(self, x: Value) -> np.dtype[Any]:
        """The dtype of a value."""
        return next(dtype for dtype, kind in TYPES.items() if kind == x.type.element)

    # The family of exp

    def _reduced(self, x: Value) -> tuple[Value, Value]:
        """n and expm1(r) with x = n log(2) + r and |r| <= log(2) / 2; n is a whole number, as a float."""
        single = x.type.element == ir.FloatType()
        n = self.intrinsic("rint", self.b.fmul(x, self.like(x, 1 / math.log(2))))
        # log(2) in two parts, the first with so few bits that n times it is exact.
        high = 0.693359375 if single else float.fromhex("0x1.62e42fee00000p-1")
        low = math.log(2) - high if single else float.fromhex("0x1.a39ef35793c76p-33")
        r = self.fma(n, self.like(x, -high), x)
        r = self.fma(n, self.like(x, -low), r)
        terms = 7 if single else 13
        p = self.like(x, 1 / math.factorial(terms))
        for k in range(terms - 1, 1, -1):
            p = self.fma(p, r, self.like(x, 1 / math.factorial(k)))
        # r + r^2 (1/2 + r (...)): the small part is added last, so that tiny arguments keep all their bits.
        return n, self.fma(self.b.fmul(r, r), p, r)

    def _power_of_two(self, n: Value) -> Value:
        """2^n for whole n in the range of normal exponents."""
        single = n.type.element == ir.FloatType()
        integer, bias, shift = (I32, 127, 23) if single else (I64, 1023, 52)
        kind = ir.VectorType(integer, self.lanes)
        whole = self.b.fptosi(n, kind)
        biased = self.b.add(whole, ir.Constant(kind, [bias] * self.lanes))
        return self.b.bitcast(self.b.shl(biased, ir.Constant(kind, [shift] * self.lanes)), n.type)

    def _clamped(self, x: Value, low: float, high: float) -> Value:
        """x within bounds; a NaN becomes the lower bound (and is put back by ``_or_nan``)."""
        above = self.b.fcmp_ordered(">=", x, self.like(x, low))
        x = self.b.select(above, x, self.like(x, low))
        return self.b.select(self.b.fcmp_ordered("<=", x, self.like(x, high)), x, self.like(x, high))

    def _or_nan(self, y: Value, x: Value) -> Value:
        return self.b.select(self.b.fcmp_unordered("uno", x, x), x, y)

    def exp(self, x: Value) -> Value:
        single = x.type.element == ir.FloatType()
        n, p = self._reduced(self._clamped(x, -104.0 if single else -746.0, 89.0 if single else 710.0))
        # 2^n in two factors: it may be larger or smaller than any normal number.
        half = self.intrinsic("floor", self.b.fmul(n, self.like(x, 0.5)))
        y = self.b.fmul(self.b.fadd(p, self.like(x, 1)), self._power_of_two(half))
        y = self.b.fmul(y, self._power_of_two(self.b.fsub(n, half)))
        return self._or_nan(y, x)

    def expm1(self, x: Value) -> Value:
        single = x.type.element == ir.FloatType()
        low, high = (-18.0, 88.0) if single else (-38.0, 709.0)
        scaled = self._expm1(self._clamped(x, low, high))
        big = self.b.fcmp_ordered(">", x, self.like(x, high))
        return self._or_nan(self.b.select(big, self.exp(x), scaled), x)

    def _expm1(self, x: Value) -> Value:
        """expm1 where 2^n is a normal number."""
        n, p = self._reduced(x)
        scale = self._power_of_two(n)
        return self.fma(scale, p, self.b.fsub(scale, self.like(x, 1)))

    def tanh(self, x: Value) -> Value:
        # With e = expm1(2 |x|): e / (e + 2) where that is small, 1 - 2 / (e + 2) where it is near 1, and rounds to 1.
        bound = 9.1 if x.type.element == ir.FloatType() else 19.1
        size = self.intrinsic("fabs", x)
        e = self._expm1(self._clamped(self.b.fadd(size, size), 0.0, 2 * bound))
        q = self.b.fdiv(self.like(x, 2), self.b.fadd(e, self.like(x, 2)))
        near_zero = self.b.fmul(self.b.fmul(e, self.like(x, 0.5)), q)
        near_one = self.b.fsub(self.like(x, 1), q)
        y = self.b.select(self.b.fcmp_ordered("<", e, self.like(x, 1)), near_zero, near_one)
        return self._or_nan(self.intrinsic("copysign", y, x), x)

    def sigmoid(self, x: Value) -> Value:
        # 1 / (1 + exp(-x)); below the bound the result is 0 to within the smallest normal number.
        single = x.type.element == ir.FloatType()
        low, high = (-87.0, 17.5) if single else (-708.0, 37.5)
        y = self._clamped(x, low, high)
        n, p = self._reduced(self.b.fneg(y))
        e = self.b.fmul(self.b.fadd(p, self.like(x, 1)), self._power_of_two(n))
        result = self.b.fdiv(self.like(x, 1), self.b.fadd(self.like(x, 1), e))
        tiny = self.b.fcmp_ordered("<", x, self.like(x, low))
        return self._or_nan(self.b.select(tiny, self.like(x, 0), result), x)

    # Division of many by one

    def divisor(self, y: Value) -> tuple[Value, Value]:
        """(scale, factor) for ``divided``: the scale, a power of two, keeps the factor from overflow and loss of bits."""
        far = 100 if y.type.element == ir.FloatType() else 900
        size = self.intrinsic("fabs", y)
        small = self.b.fcmp_ordered("<", size, self.like(y, 2.0**-far))
        large = self.b.fcmp_ordered(">", size, self.like(y, 2.0**far))
        up, down = self.like(y, 2.0 ** (far * 0.64)), self.like(y, 2.0 ** (-far * 0.64))
        scale = self.b.select(small, up, self.b.select(large, down, self.like(y, 1)))
        return scale, self.b.fdiv(self.like(y, 1), self.b.fmul(y, scale))

    def divided(self, x: Value, scale: Value, factor: Value) -> Value:
        """x / y, to within one and a half units in the last place: a product takes less time than a division."""
        return self.b.fmul(self.b.fmul(x, self.spread(scale)), self.spread(factor))

    # Arithmetic on any kind of number

    def add(self, x: Value, y: Value) -> Value:
        kind = self.dtype(x).kind
        return self.b.fadd(x, y) if kind == "f" else self.b.or_(x, y) if kind == "b" else self.b.add(x, y)

    def sub(self, x: Value, y: Value) -> Value:
        return self.b.fsub(x, y) if self.dtype(x).kind == "f" else self.b.sub(x, y)

    def mul(self, x: Value, y: Value) -> Value:
        kind = self.dtype(x).kind
        return self.b.fmul(x, y) if kind == "f" else self.b.and_(x, y) if kind == "b" else self.b.mul(x, y)

    def neg(self, x: Value) -> Value:
        return self.b.fneg(x) if self.dtype(x).kind == "f" else self.b.sub(self.like(x, 0), x)

    def abs(self, x: Value) -> Value:
        if self.dtype(x).kind == "f":
            return self.intrinsic("fabs", x)
        return self.b.select(self.compare("<", x, self.like(x, 0)), self.neg(x), x)

    def floor_divided(self, x: Value, y: Value) -> tuple[Value, Value]:
        """Quotient and remainder of integers, of which the remainder has the sign of ``y``; both 0 if ``y`` is."""
        zero, one = self.like(x, 0), self.like(x, 1)
        by_zero, turned = self.compare("==", y, zero), self.compare("==", y, self.like(y, -1))
        # The processor stops the program at x / 0 and at the smallest integer / -1.
        divisor = self.b.select(self.b.or_(by_zero, turned), one, y)
        quotient = self.b.sdiv(x, divisor)
        rest = self.b.sub(x, self.b.mul(quotient, divisor))
        low = self.b.and_(self.compare("!=", rest, zero), self.b.xor(self.compare("<", rest, zero), self.compare("<", y, zero)))
        quotient = self.b.select(low, self.b.sub(quotient, one), quotient)
        quotient = self.b.select(turned, self.neg(x), quotient)
        return self.b.select(by_zero, zero, quotient), self.b.select(low, self.b.add(rest, y), rest)

    # Comparisons and logic

    def compare(self, how: str, x: Value, y: Value) -> Value:
        kind = self.dtype(x).kind
        if kind != "f":
            return self.b.icmp_unsigned(how, x, y) if kind == "b" else self.b.icmp_signed(how, x, y)
        return self.b.fcmp_unordered(how, x, y) if how == "!=" else self.b.fcmp_ordered(how, x, y)

    def extremum(self, how: str, x: Value, y: Value) -> Value:
        """The larger or the smaller of two; NaN if either is NaN."""
        best = self.b.select(self.compare(how, x, y), x, y)
        return self._or_nan(self._or_nan(best, y), x) if self.dtype(x).kind == "f" else best

    def sign(self, x: Value) -> Value:
        zero, one = self.like(x, 0), self.like(x, 1)
        positive = self.b.select(self.compare(">", x, zero), one, x)
        return self.b.select(self.compare("<", x, zero), self.like(x, -1), positive)

    def relu(self, x: Value) -> Value:
        return self.extremum(">", x, self.like(x, 0))

    def clip(self, x: Value, low: float | None, high: float | None) -> Value:
        if low is not None:
            x = self.b.select(self.compare("<", x, self.like(x, low)), self.like(x, low), x)
        if high is not None:
            x = self.b.select(self.compare(">", x, self.like(x, high)), self.like(x, high), x)
        return x

    def cast(self, x: Value, dtype: np.dtype[Any]) -> Value:
        source, target = self.dtype(x), self.type(dtype)
        if source == dtype:
            return x
        if dtype.kind == "b":
            return self.compare("!=", x, self.like(x, 0))
        if source.kind == "b":
            return self.b.uitofp(x, target) if dtype.kind == "f" else self.b.zext(x, target)
        if source.kind == dtype.kind:
            wider = dtype.itemsize > source.itemsize
            if dtype.kind == "f":
                return self.b.fpext(x, target) if wider else self.b.fptrunc(x, target)
            return self.b.sext(x, target) if wider else self.b.trunc(x, target)
        if dtype.kind == "f":
            return self.b.sitofp(x, target)
        # What is no integer of this width, NaN among it, becomes the smallest one: as the processor has it, and NumPy.
        limit = 2.0 ** (8 * dtype.itemsize - 1)
        fits = self.b.and_(self.compare(">=", x, self.like(x, -limit)), self.compare("<", x, self.like(x, limit)))
        return self.b.select(fits, self.b.fptosi(x, target), self.constant(dtype, np.iinfo(dtype).min))

    def power(self, x: Value, y: Value, exponent: float | None) -> Value:
        """x to the y; small whole exponents that are known are products."""
        if exponent in (2, 3):
            square = self.b.fmul(x, x)
            return square if exponent == 2 else self.b.fmul(square, x)
        if exponent == 0.5:
            return self.intrinsic("sqrt", x)
        if exponent == -1:
            return self.b.fdiv(self.like(x, 1), x)
        return self.library("pow", x, y)

    # Between lanes

    def transposed(self, lines: list[Value]) -> list[Value]:
        """As many vectors as there are lanes, as the rows of a matrix: its columns."""
        count = self.lanes
        first = [k // 2 + (k % 2) * count for k in range(count)]
        halves = [ir.Constant(ir.VectorType(I32, count), [k + h * count // 2 for k in first]) for h in (0, 1)]
        for _ in range(count.bit_length() - 1):  # each round shuffles two halves of the rows into one another, like cards
            pairs = list(zip(lines[: count // 2], lines[count // 2 :], strict=True))
            lines = [self.b.shuffle_vector(x, y, half) for x, y in pairs for half in halves]
        return lines

    def start(self, name: str, dtype: np.dtype[Any]) -> Value:
        """Where a reduction begins."""
        if name in ("sum", "cumsum", "any", "all"):
            return self.constant(dtype, name == "all")
        if dtype.kind == "f":
            return self.constant(dtype, -np.inf if name == "max" else np.inf)
        ends = (False, True) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return self.constant(dtype, ends[name == "min"])

    def combined(self, name: str, x: Value, y: Value) -> Value:
        """Two parts of a reduction as one."""
        if name == "sum":
            return self.add(x, y)
        if name in ("any", "all"):
            return self.b.or_(x, y) if name == "any" else self.b.and_(x, y)
        return self.extremum(">" if name == "max" else "<", x, y)

    def across(self, name: str, x: Value) -> Value:
        """All lanes reduced to one number."""
        one = Vectors(self.b, 1)
        result, *others = (one.splat(self.b.extract_element(x, I32(lane))) for lane in range(self.lanes))
        for other in others:
            result = one.combined(name, result, other)
        return self.b.extract_element(result, I32(0))

    def running(self, x: Value, before: Value) -> tuple[Value, Value]:
        """The running sum over the lanes, beginning with a vector of one number, and the sum of all, likewise."""
        apart = 1
        while apart < self.lanes:
            places = [lane - apart if lane >= apart else self.lanes for lane in range(self.lanes)]
            moved = self.b.shuffle_vector(x, self.like(x, 0), ir.Constant(ir.VectorType(I32, self.lanes), places))
            x = self.add(x, moved)
            apart *= 2
        x = self.add(x, self.spread(before))
        return x, Vectors(self.b, 1).splat(self.b.extract_element(x, I32(self.lanes - 1)))

    def counted(self, first: Value) -> Value:
        """first, first + 1, ... in the lanes."""
        return self.b.add(self.splat(first), ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes))))


# A primitive's name and how its vectors are computed from the inputs' vectors.
_UNARY: dict[str, Callable[[Vectors, Value], Value]] = {
    "neg": Vectors.neg,
    "exp": Vectors.exp,
    "expm1": Vectors.expm1,
    "tanh": Vectors.tanh,
    "sigmoid": Vectors.sigmoid,
    "relu": Vectors.relu,
    "sign": Vectors.sign,
    "sqrt": lambda v, x: v.intrinsic("sqrt", x),
    "abs": Vectors.abs,
    "floor": lambda v, x: v.intrinsic("floor", x),
    "round": lambda v, x: v.intrinsic("rint", x),
    "log": lambda v, x: v.library("log", x),
    "log1p": lambda v, x: v.library("log1p", x),
    "erf": lambda v, x: v.library("erf", x),
    "sin": lambda v, x: v.library("sin", x),
    "cos": lambda v, x: v.library("cos", x),
    "isnan": lambda v, x: v.b.fcmp_unordered("uno", x, x),
    "isfinite": lambda v, x: v.b.fcmp_ordered("<", v.intrinsic("fabs", x), v.like(x, math.inf)),
    "logical_not": lambda v, x: v.b.xor(x, v.constant(np.dtype(bool), True)),
    "copy": lambda v, x: x,
    "broadcast_to": lambda v, x: x,
    "reshape": lambda v, x: x,
}
_BINARY: dict[str, Callable[[Vectors, Value, Value], Value]] = {
    "add": Vectors.add,
    "sub": Vectors.sub,
    "mul": Vectors.mul,
    "div": lambda v, x, y: v.b.fdiv(x, y),
    "maximum": lambda v, x, y: v.extremum(">", x, y),
    "minimum": lambda v, x, y: v.extremum("<", x, y),
    "eq": lambda v, x, y: v.compare("==", x, y),
    "ne": lambda v, x, y: v.compare("!=", x, y),
    "lt": lambda v, x, y: v.compare("<", x, y),
    "le": lambda v, x, y: v.compare("<=", x, y),
    "gt": lambda v, x, y: v.compare(">", x, y),
    "ge": lambda v, x, y: v.compare(">=", x, y),
    "logical_and": lambda v, x, y: v.b.and_(x, y),
    "logical_or": lambda v, x, y: v.b.or_(x, y),
    "logical_xor": lambda v, x, y: v.b.xor(x, y),
    "floor_divide": lambda v, x, y: v.floor_divided(x, y)[0],
    "remainder": lambda v, x, y: v.floor_divided(x, y)[1],
}
_INTEGER = frozenset(("floor_divide", "remainder"))
SUPPORTED = frozenset((*_UNARY, *_BINARY, "where", "clip", "cast", "power")) - _INTEGER  # on floats, and logic
_LOGIC = frozenset(("logical_and", "logical_or", "logical_xor", "logical_not"))
_ANYTHING = frozenset((
    "copy", "broadcast_to", "reshape", "where", "cast", "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "add", "mul",
))  # fmt: skip
_BY_KIND = {
    "f": SUPPORTED - _LOGIC,
    "i": _ANYTHING | _INTEGER | {"sub", "neg", "abs", "sign", "relu", "clip"},
    "b": _ANYTHING | _LOGIC,
}


def supports(name: str, dtype: np.dtype[Any]) -> bool:
    """Whether there is code for a primitive on operands of this dtype."""
    return dtype in TYPES and name in _BY_KIND[dtype.kind]


def compute(v: Vectors, name: str, values: list[Value], params: dict[str, Any], exponent: float | None) -> Value:
    """A primitive on vectors; ``exponent`` is the second operand of a power if it is a number."""
    if name in _UNARY:
        return _UNARY[name](v, values[0])
    if name in _BINARY:
        return _BINARY[name](v, *values)
    if name == "where":
        return v.b.select(values[0], values[1], values[2])
    if name == "clip":
        return v.clip(values[0], params["low"], params["high"])
    if name == "cast":
        return v.cast(values[0], params["dtype"])
    return v.power(values[0], values[1], exponent)
