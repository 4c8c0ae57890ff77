"""The kernels that this backend registers under the names of ``tinyseq.fused``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tinyseq_numba import kernels
from tinyseq_numba.kernels import plain

__all__ = ["KERNELS"]

Array = np.ndarray[Any, Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def _rows(x: Array) -> Array:
    """All axes but the last as one."""
    return plain(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _takes(x: Array) -> bool:
    return x.dtype in DTYPES and x.ndim > 0 and x.shape[-1] > 0


class Softmax:
    """``softmax(x)`` over the last axis."""

    def accepts(self, x: Array) -> bool:
        return _takes(x)

    def forward(self, x: Array) -> tuple[Array, tuple[Array, ...]]:
        y = np.empty(x.shape, x.dtype)
        kernels.softmax_forward(_rows(x), _rows(y))
        return y, ()

    def backward(
        self, cotangent: Array, arrays: tuple[Array, ...], output: Array, residuals: tuple[Array, ...]
    ) -> tuple[Array | None, ...]:
        dx = np.empty(output.shape, output.dtype)
        kernels.softmax_backward(_rows(cotangent), _rows(output), _rows(dx))
        return (dx,)


class SoftmaxCrossEntropy:
    """``softmax_cross_entropy(logits, targets)``: (N, C) and int64 (N,) to (N,).

    Keeps two numbers a row, not the probabilities, which the backward computes again.
    """

    def accepts(self, logits: Array, targets: Array) -> bool:
        return _takes(logits) and logits.ndim == 2 and targets.dtype == np.int64 and targets.shape == logits.shape[:1]

    def forward(self, logits: Array, targets: Array) -> tuple[Array, tuple[Array, ...]]:
        losses, tops, totals = (np.empty(targets.shape, logits.dtype) for _ in range(3))
        outside = kernels.softmax_cross_entropy_forward(plain(logits), plain(targets), losses, tops, totals)
        if outside >= 0:
            raise IndexError(f"index {targets[outside]} is out of bounds for axis 1 with size {logits.shape[1]}")
        return losses, (tops, totals)

    def backward(
        self, cotangent: Array, arrays: tuple[Array, ...], output: Array, residuals: tuple[Array, ...]
    ) -> tuple[Array | None, ...]:
        logits, targets = arrays
        dx = np.empty(logits.shape, logits.dtype)
        kernels.softmax_cross_entropy_backward(plain(cotangent), plain(logits), plain(targets), *residuals, dx)
        return dx, None


class LayerNorm:
    """``layer_norm(x, weight, bias, eps=...)`` over the last axis; weight and bias may be None."""

    def accepts(self, x: Array, weight: Array | None, bias: Array | None, *, eps: float) -> bool:
        return _takes(x) and all(p is None or (p.dtype == x.dtype and p.shape == x.shape[-1:]) for p in (weight, bias))

    def forward(self, x: Array, weight: Array | None, bias: Array | None, *, eps: float) -> tuple[Array, tuple[Array, ...]]:
        size = x.shape[-1:]
        weight = np.ones(size, x.dtype) if weight is None else plain(weight)
        bias = np.zeros(size, x.dtype) if bias is None else plain(bias)
        y, rows = np.empty(x.shape, x.dtype), _rows(x)
        means, scales = (np.empty(rows.shape[0], x.dtype) for _ in range(2))
        kernels.layer_norm_forward(rows, weight, bias, x.dtype.type(eps), _rows(y), means, scales)
        return y, (means, scales)

    def backward(
        self,
        cotangent: Array,
        arrays: tuple[Array | None, ...],
        output: Array,
        residuals: tuple[Array, ...],
        *,
        eps: float,
    ) -> tuple[Array | None, ...]:
        x, weight, bias = arrays
        assert x is not None
        scale = np.ones(x.shape[-1:], x.dtype) if weight is None else plain(weight)
        dx = np.empty(x.shape, x.dtype)
        dweight, dbias = np.zeros(x.shape[-1:]), np.zeros(x.shape[-1:])
        kernels.layer_norm_backward(_rows(cotangent), _rows(x), scale, *residuals, _rows(dx), dweight, dbias)
        return (
            dx,
            None if weight is None else dweight.astype(x.dtype),
            None if bias is None else dbias.astype(x.dtype),
        )


KERNELS: dict[str, Any] = {
    "softmax": Softmax(),
    "softmax_cross_entropy": SoftmaxCrossEntropy(),
    "layer_norm": LayerNorm(),
}
