"""Starting values: each function fills a tensor in place and returns it.

``fan_in`` and ``fan_out`` of a weight (O, I) are I and O; further axes multiply both.

>>> import tinyseq as ts
>>> layer = ts.nn.Linear(3, 2)
>>> ts.nn.init.constant_(layer.bias, 0.5).tolist()
[0.5, 0.5]
"""

from __future__ import annotations

import math

import numpy as np

from tinyseq import random
from tinyseq.backend import use_backend
from tinyseq.creation import full_like
from tinyseq.errors import GraphError, ShapeError
from tinyseq.tensor import Tensor

__all__ = [
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]


def uniform_(t: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """U(low, high)."""
    with use_backend(t.backend):
        return _fill(t, random.uniform(t.shape, low, high, t.dtype))


def normal_(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """N(mean, std^2)."""
    with use_backend(t.backend):
        return _fill(t, random.normal(t.shape, mean, std, t.dtype))


def constant_(t: Tensor, value: float) -> Tensor:
    """One value everywhere."""
    return _fill(t, full_like(t, value))


def zeros_(t: Tensor) -> Tensor:
    """Zeros."""
    return constant_(t, 0)


def ones_(t: Tensor) -> Tensor:
    """Ones."""
    return constant_(t, 1)


def xavier_uniform_(t: Tensor, gain: float = 1.0) -> Tensor:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6 / sum(_fans(t)))
    return uniform_(t, -bound, bound)


def xavier_normal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, s^2) with s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return normal_(t, 0.0, gain * math.sqrt(2 / sum(_fans(t))))


def kaiming_uniform_(t: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    """U(-a, a) with a = gain sqrt(3 / fan_in); the default gain is that of relu (He et al. 2015)."""
    bound = gain * math.sqrt(3 / _fans(t)[0])
    return uniform_(t, -bound, bound)


def kaiming_normal_(t: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    """N(0, s^2) with s = gain / sqrt(fan_in); the default gain is that of relu (He et al. 2015)."""
    return normal_(t, 0.0, gain / math.sqrt(_fans(t)[0]))


def orthogonal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """A matrix with orthonormal rows or columns, whichever are fewer, times ``gain`` (Saxe et al. 2013).

    Axes after the first count as one.
    """
    _fans(t)  # at least two axes
    rows, columns = t.shape[0], math.prod(t.shape[1:])
    with use_backend(t.backend):
        normal = random.randn((max(rows, columns), min(rows, columns)), "float64").numpy()
    q, r = np.linalg.qr(normal)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the result uniform over all such matrices
    q = q if rows >= columns else q.T
    return _fill(t, Tensor(t.backend.asarray((gain * q).reshape(t.shape).astype(t.dtype))))


def _fans(t: Tensor) -> tuple[int, int]:
    """fan_in and fan_out."""
    if t.ndim < 2:
        raise ShapeError(f"this starting value needs a weight with at least two axes, got shape {t.shape}")
    field = math.prod(t.shape[2:])
    return t.shape[1] * field, t.shape[0] * field


def _fill(t: Tensor, values: Tensor) -> Tensor:
    if not t.is_leaf:
        raise GraphError("the result of a recorded operation cannot be filled in place; give a parameter")
    t.data = values.data
    return t
