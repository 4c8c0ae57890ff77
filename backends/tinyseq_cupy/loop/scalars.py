"""Primitives on numbers in registers, as C++ expressions, and the few functions that they call.

float16 and bfloat16 are how numbers lie in memory; in registers they are float32, rounded when they are stored or cast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = [
    "COMBINE",
    "FUNCTIONS",
    "START",
    "SUPPORTED",
    "c_type",
    "expression",
    "is_float",
    "is_half",
    "memory_type",
    "number",
    "register_dtype",
]

# By name: NumPy knows bfloat16 only where ml_dtypes brings it.
TYPES = {"float32": "float", "float64": "double", "float16": "ts_float16", "bfloat16": "ts_bfloat16", "bool": "unsigned char"}
HALVES = ("float16", "bfloat16")
WHOLE = {"int32": "int", "int64": "long long"}

# NaN comes out of all of them as NaN, and infinity as the limit. CUDA's compiler knows these functions without a header.
FUNCTIONS = "\n".join(
    f"""\
TS_FUNCTION {t} ts_sigmoid({t} x) {{ return ({t})1 / (({t})1 + exp{f}(-x)); }}
TS_FUNCTION {t} ts_larger({t} x, {t} y) {{ return x > y || x != x ? x : y; }}
TS_FUNCTION {t} ts_smaller({t} x, {t} y) {{ return x < y || x != x ? x : y; }}
TS_FUNCTION {t} ts_sign({t} x) {{ return x > 0 ? ({t})1 : x < 0 ? ({t})-1 : x; }}
"""
    for t, f in (("float", "f"), ("double", ""))
)

COMBINE = {"sum": "{} + {}", "max": "ts_larger({}, {})", "min": "ts_smaller({}, {})"}
START = {"sum": 0.0, "max": -math.inf, "min": math.inf}

_CALLS = {
    "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sqrt": "sqrt", "tanh": "tanh", "erf": "erf", "sin": "sin",
    "cos": "cos", "abs": "fabs", "floor": "floor", "round": "rint",
}  # fmt: skip
_TEMPLATES = {
    "neg": "-{}", "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}",
    "eq": "{} == {}", "ne": "{} != {}", "lt": "{} < {}", "le": "{} <= {}", "gt": "{} > {}", "ge": "{} >= {}",
    "logical_and": "{} && {}", "logical_or": "{} || {}", "logical_xor": "{} != {}", "logical_not": "!{}",
    "where": "{} ? {} : {}", "isnan": "{0} != {0}", "isfinite": "{0} - {0} == 0",
    "sigmoid": "ts_sigmoid({})", "maximum": "ts_larger({}, {})", "minimum": "ts_smaller({}, {})", "sign": "ts_sign({})",
}  # fmt: skip
SUPPORTED = frozenset((*_CALLS, *_TEMPLATES, "relu", "clip", "cast", "power"))


def is_half(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of the floating-point types of 16 bits."""
    return dtype.name in HALVES


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether there is code for such floating-point numbers."""
    return dtype.kind != "b" and dtype.name in TYPES


def register_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In what dtype numbers are computed and summed."""
    return np.dtype("float32") if is_half(dtype) else dtype


def c_type(dtype: np.dtype[Any]) -> str:
    """The type of a value in a register."""
    return "bool" if dtype.kind == "b" else memory_type(register_dtype(dtype))


def memory_type(dtype: np.dtype[Any]) -> str:
    """The type of an element of an array."""
    return WHOLE[dtype.name] if dtype.kind == "i" else TYPES[dtype.name]


def number(value: float, dtype: np.dtype[Any]) -> str:
    """A constant, to the last bit.

    >>> number(0.1, np.dtype("float32")), number(-np.inf, np.dtype("float64")), number(True, np.dtype("bool"))
    ('0.1f', '(-TS_INFINITY)', 'true')
    """
    if dtype.kind == "b":
        return "true" if value else "false"
    if dtype.kind == "i":
        return f"({int(value)}LL)"
    dtype = register_dtype(dtype)
    suffix = "f" if dtype == np.float32 else ""
    x = dtype.type(value)
    if np.isnan(x):
        return f"TS_NAN{suffix.upper()}"
    if np.isinf(x):
        return f"({'-' if x < 0 else ''}TS_INFINITY{suffix.upper()})"
    text = np.format_float_scientific(x, unique=True, trim="0") if abs(x) >= 1e16 or 0 < abs(x) < 1e-4 else str(x)
    text = f"{text}{suffix}"
    return f"({text})" if text.startswith("-") else text


def expression(
    name: str, inputs: Sequence[str], dtype: np.dtype[Any], out: np.dtype[Any], params: dict[str, Any], exponent: float | None
) -> str:
    """A primitive on expressions that are names or constants.

    Args:
        name: of the primitive.
        inputs: its operands.
        dtype: of the operands.
        out: of the result.
        params: its metadata.
        exponent: the second operand of a power, if it is a number.
    """
    f = "f" if register_dtype(dtype) == np.float32 else ""
    if name in _CALLS:
        return f"{_CALLS[name]}{f}({inputs[0]})"
    if name in _TEMPLATES:
        return _TEMPLATES[name].format(*inputs)
    special: dict[str, Callable[[], str]] = {
        "relu": lambda: f"ts_larger({inputs[0]}, {number(0, dtype)})",
        "clip": lambda: _clip(inputs[0], dtype, params["low"], params["high"]),
        "cast": lambda: _cast(inputs[0], out),
        "power": lambda: _power(inputs, f, dtype, exponent),
    }
    return special[name]()


def _cast(x: str, out: np.dtype[Any]) -> str:
    if out.kind == "b":
        return f"({x} != 0)"
    return f"(float){memory_type(out)}((float){x})" if is_half(out) else f"({c_type(out)}){x}"


def _clip(x: str, dtype: np.dtype[Any], low: float | None, high: float | None) -> str:
    text = x
    if low is not None:
        bound = number(low, dtype)
        text = f"({text} < {bound} ? {bound} : {text})"
    if high is not None:
        bound = number(high, dtype)
        text = f"({text} > {bound} ? {bound} : {text})"
    return text


def _power(inputs: Sequence[str], f: str, dtype: np.dtype[Any], exponent: float | None) -> str:
    """Small whole exponents that are known are products."""
    x = inputs[0]
    if exponent in (2, 3):
        return " * ".join([x] * int(exponent))
    if exponent == 0.5:
        return f"sqrt{f}({x})"
    if exponent == -1:
        return f"{number(1, dtype)} / {x}"
    return f"pow{f}({x}, {inputs[1]})"
