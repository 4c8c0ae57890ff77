"""Random numbers on the device from a counter, so that the state is two numbers that stay on the host.

CuPy's own generators keep their state on the device and cannot export it, and a checkpoint needs it. Philox4x32-10 has
nothing to export: number i of draw d is a function of the key, d and i. The numbers are the same on every device.

Reference: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from tinyseq.errors import DTypeError, ShapeError

__all__ = ["PHILOX", "Philox"]

Array = Any
Shape = int | Sequence[int]

# Four words for the counter (index, draw) and the key, in C that is also CUDA.
PHILOX = """
DEVICE void philox(unsigned long long index, unsigned long long draw, unsigned long long key, unsigned int* c) {
    unsigned int k0 = (unsigned int)key, k1 = (unsigned int)(key >> 32);
    c[0] = (unsigned int)index;
    c[1] = (unsigned int)(index >> 32);
    c[2] = (unsigned int)draw;
    c[3] = (unsigned int)(draw >> 32);
    for (int round = 0; round < 10; ++round) {
        unsigned long long a = 0xD2511F53ULL * c[0], b = 0xCD9E8D57ULL * c[2];
        c[0] = (unsigned int)(b >> 32) ^ c[1] ^ k0;
        c[1] = (unsigned int)b;
        c[2] = (unsigned int)(a >> 32) ^ c[3] ^ k1;
        c[3] = (unsigned int)a;
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
}
/* Uniform in [0, 1), on the grid of the type's significand. */
DEVICE float unit_float(const unsigned int* c) { return (float)(c[0] >> 8) * 5.9604644775390625e-08f; }
DEVICE double unit_double(const unsigned int* c) {
    return (double)((((unsigned long long)c[0] << 32) | c[1]) >> 11) * 1.1102230246251565e-16;
}
/* Standard normal, by Box and Muller: the radius from a uniform number in (0, 1], so that its logarithm is finite. */
DEVICE float normal_float(const unsigned int* c) {
    float radius = sqrtf(-2.0f * logf((float)((c[0] >> 8) + 1) * 5.9604644775390625e-08f));
    return radius * cosf((float)(c[1] >> 8) * 3.7450703e-07f);
}
DEVICE double normal_double(const unsigned int* c) {
    unsigned long long a = (((unsigned long long)c[0] << 32) | c[1]) >> 11, b = (((unsigned long long)c[2] << 32) | c[3]) >> 11;
    double radius = sqrt(-2.0 * log((double)(a + 1) * 1.1102230246251565e-16));
    return radius * cos((double)b * 6.9757369960172635e-16);
}
/* 0 to span - 1: the upper half of the product of 64 random bits and the span; uneven by less than span / 2**64. */
DEVICE long long bounded(const unsigned int* c, unsigned long long span) {
    unsigned long long carry = ((unsigned long long)c[1] * (span & 0xFFFFFFFFULL)) >> 32;
    unsigned long long low = (unsigned long long)c[0] * (span & 0xFFFFFFFFULL) + carry;
    unsigned long long middle = (unsigned long long)c[1] * (span >> 32) + (low & 0xFFFFFFFFULL);
    return (long long)((unsigned long long)c[0] * (span >> 32) + (low >> 32) + (middle >> 32));
}
"""

FLOATS = {"float32": "float", "float64": "double"}


class Philox:
    """What ``tinyseq.random`` asks of a generator, on CuPy arrays.

    Args:
        cupy: the module.
        seed: any integer that is not negative.
        here: a context in which arrays are made on the right device.
    """

    def __init__(self, cupy: Any, seed: int, here: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self._cupy, self._here = cupy, here
        self._kernels: dict[str, Any] = {}
        # Neighbouring seeds should have nothing in common; NumPy's hash sees to that.
        self.key = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self.draw = 0

    @property
    def state(self) -> dict[str, Any]:
        """The key, and how many draws there were."""
        return {"generator": "philox4x32-10", "key": self.key, "draw": self.draw}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        if state.get("generator") != "philox4x32-10":
            raise ShapeError(
                f"a random state of {state.get('generator') or state.get('bit_generator')!r} does not fit the 'cupy' backend, "
                "which uses 'philox4x32-10'"
            )
        self.key, self.draw = int(state["key"]), int(state["draw"])

    def random(self, size: Shape = (), dtype: Any = np.float64) -> Array:
        """Uniform numbers in [0, 1)."""
        kind = self._float(dtype)
        return self._fill(f"unit_{kind}", f"value = unit_{kind}(c)", size, dtype)

    def standard_normal(self, size: Shape = (), dtype: Any = np.float64) -> Array:
        """Numbers from the standard normal distribution."""
        kind = self._float(dtype)
        return self._fill(f"normal_{kind}", f"value = normal_{kind}(c)", size, dtype)

    def integers(self, low: int, high: int, size: Shape = (), dtype: Any = np.int64) -> Array:
        """Integers from ``low`` up to and without ``high``."""
        return self._fill("integers", "value = (T)(low + bounded(c, span))", size, dtype, low, high - low)

    def permutation(self, n: int) -> Array:
        """The integers 0 to n - 1 in random order: that of random keys, which differ but for one chance in 2**60."""
        keys = self._fill("keys", "value = ((unsigned long long)c[0] << 32) | c[1]", n, np.uint64)
        with self._here():
            return self._cupy.argsort(keys)

    def _float(self, dtype: Any) -> str:
        name = np.dtype(dtype).name
        if name not in FLOATS:
            raise DTypeError(f"random numbers come in float32 and float64, not in {name}; draw those and cast")
        return FLOATS[name]

    def _fill(self, name: str, operation: str, size: Shape, dtype: Any, low: int = 0, span: int = 0) -> Array:
        shape = (size,) if isinstance(size, int) else tuple(size)
        if name not in self._kernels:
            self._kernels[name] = self._cupy.ElementwiseKernel(
                "uint64 key, uint64 draw, int64 low, uint64 span",
                "T value",
                f"unsigned int c[4]; philox(i, draw, key, c); {operation}",
                f"tinyseq_{name}",
                preamble="#define DEVICE __device__ inline\n" + PHILOX,
            )
        with self._here():
            out = self._cupy.empty(shape, dtype=dtype)
            if math.prod(shape):
                self._kernels[name](np.uint64(self.key), np.uint64(self.draw), np.int64(low), np.uint64(span), out)
        self.draw += 1
        return out
