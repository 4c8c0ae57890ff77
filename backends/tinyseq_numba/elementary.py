"""Elementary functions as compiled loops want them: free of calls, so that LLVM turns a loop over them into vector code.

Numba's own ``math.exp`` calls the scalar C library, which no loop is vectorised around. Here a function is plain Python
with an overload for compiled float32; float64 stays the library's. A product and a sum may be rounded once (``contract``),
nothing else about floating point is relaxed.

Numba recompiles a cached kernel when the kernel's own file changes, not when this one does: after an edit here, touch
``kernels.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["exp", "maximum", "sqrt"]

sqrt = math.sqrt
maximum = np.maximum  # NaN if either is


def _bitcast(typing_context: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


_float_of_bits: Any = intrinsic(_bitcast)


def exp(x: float) -> float:
    """The exponential; NaN, infinities and underflow to 0 as IEEE says."""
    return math.exp(x)


LOWEST, HIGHEST = np.float32(-104.0), np.float32(88.72284)  # beyond these float32 gives 0 and infinity
PER_LN2 = np.float32(1.442695)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.1219444e-4)  # their sum is ln 2; n * LN2_HIGH is exact
HALF, ONE, ZERO, INFINITY = np.float32(0.5), np.float32(1.0), np.float32(0.0), np.float32(math.inf)
BIAS, MANTISSA = np.int32(127), np.int32(23)
# exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2; a least-maximum fit, off by 3e-8
P5, P4, P3, P2, P1, P0 = map(
    np.float32, (1.9875691e-4, 1.39819995e-3, 8.3334519e-3, 4.16657959e-2, 1.66666655e-1, 5.00000012e-1)
)


@overload(exp, jit_options={"fastmath": {"contract"}})
def _exp(x: Any) -> Callable[[Any], Any] | None:
    def exp64(x: Any) -> Any:
        return math.exp(x)

    def exp32(x: Any) -> Any:
        # Written as x > LOWEST and not as x <= LOWEST: NaN takes a harmless number and comes back at the end.
        c = x if x > LOWEST else LOWEST
        c = c if c < HIGHEST else HIGHEST
        n = np.floor(c * PER_LN2 + HALF)
        r = (c - n * LN2_HIGH) - n * LN2_LOW
        p = ((((P5 * r + P4) * r + P3) * r + P2) * r + P1) * r + P0
        y = p * r * r + r + ONE
        # 2^n in two factors, for n = 128 and for results below the normal numbers.
        whole = np.int32(n)
        half = whole >> np.int32(1)
        y = y * _float_of_bits((half + BIAS) << MANTISSA) * _float_of_bits((whole - half + BIAS) << MANTISSA)
        y = y if x > LOWEST else ZERO
        y = y if x < HIGHEST else INFINITY
        return y if x == x else x

    return {types.float32: exp32, types.float64: exp64}.get(x)
