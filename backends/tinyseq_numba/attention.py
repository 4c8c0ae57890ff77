"""NumPy's attention by tiles with the work on a tile's scores compiled: one pass over them where NumPy takes several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from tinyseq_numpy import attention

from tinyseq_numba.elementary import exp
from tinyseq_numba.jit import compiled
from tinyseq_numba.kernels import _dot, _largest, _sum
from tinyseq_numba.products import alone, blas
from tinyseq_numba.threads import threads, together

__all__ = ["Attention"]

Array = np.ndarray[Any, Any]


@compiled
def _probabilities(scores: Array, tops: Array, totals: Array, factors: Array) -> None:
    zero, lowest = scores.dtype.type(0), scores.dtype.type(-np.inf)
    for n in range(scores.shape[0]):
        for i in range(scores.shape[1]):
            row = scores[n, i]
            before = tops[n, i]
            top = max(before, _largest(row))
            shift = zero if top == lowest else top
            for j in range(row.size):
                row[j] = exp(row[j] - shift)
            factor = exp(before - shift)
            tops[n, i], factors[n, i] = top, factor
            totals[n, i] = totals[n, i] * factor + _sum(row)


@compiled
def _score_gradients(scores: Array, tops: Array, totals: Array, gradients: Array, shifts: Array, whole: bool) -> None:
    for n in range(scores.shape[0]):
        for i in range(scores.shape[1]):
            row, slope, top, shift = scores[n, i], gradients[n, i], tops[n, i], shifts[n, i]
            for j in range(row.size):
                row[j] = exp(row[j] - top)
            if whole:
                shift = _dot(row, slope) / totals[n, i]
            for j in range(row.size):
                slope[j] = (slope[j] - shift) * row[j]


def probabilities(scores: Array, tops: Array, totals: Array) -> Array:
    """As :func:`tinyseq_numpy.attention.probabilities`, which says what it does."""
    if scores.dtype != np.float32:  # of other exponentials NumPy's are the quicker ones
        return attention.probabilities(scores, tops, totals)
    factors = np.empty_like(tops)
    _probabilities(scores, tops, totals, factors)
    return factors


def score_gradients(scores: Array, tops: Array, totals: Array, gradients: Array, shifts: Array | None) -> None:
    """As :func:`tinyseq_numpy.attention.score_gradients`, which says what it does."""
    if scores.dtype != np.float32:
        attention.score_gradients(scores, tops, totals, gradients, shifts)
        return
    rows = (tops, totals, totals if shifts is None else shifts)
    tops, totals, given = (np.ascontiguousarray(each) for each in rows)
    _score_gradients(scores, tops, totals, gradients, given, shifts is None)


class Attention(attention.Attention):
    """``softmax(scale query key^T + mask) value``."""

    probabilities = staticmethod(probabilities)
    score_gradients = staticmethod(score_gradients)

    def share(self, run: Callable[[Sequence[slice]], None], groups: Sequence[slice]) -> None:
        """Among the threads, each with products of its own."""
        count = min(threads(), len(groups))
        if count == 1:
            run(groups)
            return
        with alone() if blas() else nullcontext():
            together(run, [(groups[number::count],) for number in range(count)])
