"""The compiled functions: scatter-add by rows, and the row kernels of softmax, cross-entropy and layer norm.

Each works on C-ordered arrays that it is given whole and writes into arrays that the caller made. Rows come first. A sum
may be taken in any order (``reassoc``), which lets it run in vector registers and rounds no worse; nothing else about
floating point is relaxed, so NaN and infinities come out as IEEE says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyseq_numba.elementary import exp, sqrt
from tinyseq_numba.jit import compiled

__all__ = [
    "add_rows",
    "layer_norm_backward",
    "layer_norm_forward",
    "plain",
    "softmax_backward",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "softmax_forward",
]

Array = np.ndarray[Any, Any]


def plain(x: Array) -> Array:
    """The array if it is in C order, aligned and writable, as kernels are compiled for; else a copy that is."""
    return x if x.flags.carray else x.copy()


@compiled
def add_rows(total: Array, index: Array, rows: Array) -> int:
    """``total[index[n]] += rows[n]`` for each n; where an index is out of bounds, its n, and nothing is added. Else -1."""
    size = total.shape[0]
    for n in range(index.size):
        if index[n] < -size or index[n] >= size:
            return n
    for n in range(index.size):
        at = index[n] if index[n] >= 0 else index[n] + size
        for j in range(total.shape[1]):
            total[at, j] += rows[n, j]
    return -1


@compiled
def _larger(x: Any, y: Any) -> Any:
    return x if x > y else y


@compiled
def _largest(row: Array) -> Any:
    """The largest element, NaN left aside: a row with NaN in it turns to NaN in the sum that follows."""
    a = b = c = d = row.dtype.type(-np.inf)  # four at a time: one comparison need not wait for the one before
    whole = row.size - row.size % 4
    for j in range(0, whole, 4):
        a, b = _larger(row[j], a), _larger(row[j + 1], b)
        c, d = _larger(row[j + 2], c), _larger(row[j + 3], d)
    for j in range(whole, row.size):
        a = _larger(row[j], a)
    return _larger(_larger(a, b), _larger(c, d))


@compiled(fastmath={"reassoc"})
def _sum(row: Array) -> Any:
    total = row.dtype.type(0)
    for j in range(row.size):
        total += row[j]
    return total


@compiled(fastmath={"reassoc"})
def _dot(x: Array, y: Array) -> Any:
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@compiled
def softmax_forward(x: Array, y: Array) -> None:
    """``y = exp(x - max x) / sum(...)`` by rows."""
    for n in range(x.shape[0]):
        top = _largest(x[n])
        for j in range(x.shape[1]):
            y[n, j] = exp(x[n, j] - top)
        total = _sum(y[n])
        for j in range(x.shape[1]):
            y[n, j] /= total


@compiled
def softmax_backward(g: Array, y: Array, dx: Array) -> None:
    """``dx = y (g - g . y)`` by rows."""
    for n in range(y.shape[0]):
        shift = _dot(g[n], y[n])
        for j in range(y.shape[1]):
            dx[n, j] = y[n, j] * (g[n, j] - shift)


@compiled
def softmax_cross_entropy_forward(x: Array, targets: Array, losses: Array, tops: Array, totals: Array) -> int:
    """``log(sum(exp(x))) - x[target]`` by rows, with what the backward keeps; the first n with a bad target, or -1."""
    classes = x.shape[1]
    for n in range(targets.size):
        if targets[n] < -classes or targets[n] >= classes:
            return n
    scratch = np.empty(classes, x.dtype)
    for n in range(targets.size):
        top = _largest(x[n])
        # exp(inf - inf) would be NaN where the true sum is infinite, or zero.
        top = top if np.isfinite(top) else x.dtype.type(0)
        for j in range(classes):
            scratch[j] = exp(x[n, j] - top)
        total = _sum(scratch)
        tops[n], totals[n] = top, total
        losses[n] = np.log(total) + top - x[n, targets[n]]
    return -1


@compiled
def softmax_cross_entropy_backward(g: Array, x: Array, targets: Array, tops: Array, totals: Array, dx: Array) -> None:
    """``dx = g (softmax(x) - onehot(target))`` by rows; a row of -inf has no softmax and takes 0 for it."""
    for n in range(targets.size):
        top, scale = tops[n], g[n] / totals[n]
        if totals[n] == 0:
            scale = x.dtype.type(0)
        for j in range(x.shape[1]):
            dx[n, j] = exp(x[n, j] - top) * scale
        dx[n, targets[n]] -= g[n]


@compiled
def layer_norm_forward(x: Array, weight: Array, bias: Array, eps: Any, y: Array, means: Array, scales: Array) -> None:
    """``y = (x - mean) scale weight + bias`` by rows, with ``scale = 1 / sqrt(var + eps)``."""
    one, size = x.dtype.type(1), x.dtype.type(x.shape[1])
    for n in range(x.shape[0]):
        mean = _sum(x[n]) / size
        for j in range(x.shape[1]):
            y[n, j] = x[n, j] - mean
        scale = one / sqrt(_dot(y[n], y[n]) / size + eps)
        for j in range(x.shape[1]):
            y[n, j] = y[n, j] * scale * weight[j] + bias[j]
        means[n], scales[n] = mean, scale


@compiled
def layer_norm_backward(
    g: Array, x: Array, weight: Array, means: Array, scales: Array, dx: Array, dweight: Array, dbias: Array
) -> None:
    """With ``z = (x - mean) scale`` and ``h = g weight``: ``dx = scale (h - mean(h) - z mean(h z))``, by rows.

    ``dweight`` and ``dbias``, sums over all rows, are zeros of float64: many rows would lose digits in float32.
    """
    size = x.dtype.type(x.shape[1])
    z, h = np.empty(x.shape[1], x.dtype), np.empty(x.shape[1], x.dtype)
    for n in range(x.shape[0]):
        mean, scale = means[n], scales[n]
        for j in range(x.shape[1]):
            z[j] = (x[n, j] - mean) * scale
            h[j] = g[n, j] * weight[j]
            dweight[j] += g[n, j] * z[j]
            dbias[j] += g[n, j]
        shift, tilt = _sum(h) / size, _dot(h, z) / size
        for j in range(x.shape[1]):
            dx[n, j] = scale * (h[j] - shift - z[j] * tilt)
