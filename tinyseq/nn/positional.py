"""Positional encodings: what tells a Transformer where in the sequence a vector stands.

Letters: T steps, B rows of a batch, E features.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from tinyseq import functions, random
from tinyseq.errors import ShapeError
from tinyseq.nn.cells import checked_probability
from tinyseq.nn.module import Module
from tinyseq.tensor import Operand, Parameter, Tensor, as_tensor, float32

__all__ = ["LearnedPositionalEncoding", "SinusoidalPositionalEncoding", "sinusoidal_encoding"]


def sinusoidal_encoding(length: int, size: int, dtype: Any = float32, start: int = 0) -> Tensor:
    """(T, E) waves of different lengths (Vaswani et al. 2017)::

        p[t, 2 i]     = sin(t / 10000^(2 i / E))
        p[t, 2 i + 1] = cos(t / 10000^(2 i / E))

    Args:
        length: T.
        size: E.
        dtype: of the result.
        start: the position t of the first row.

    >>> [[f"{value:.2f}" for value in row] for row in sinusoidal_encoding(2, 4).tolist()]
    [['0.00', '1.00', '0.00', '1.00'], ['0.84', '0.54', '0.01', '1.00']]
    """
    return as_tensor(_waves(length, size, start).astype(dtype))


@lru_cache(maxsize=32)
def _waves(length: int, size: int, start: int) -> np.ndarray[Any, Any]:
    column = np.arange(size)
    angles = np.arange(start, start + length)[:, None] / 10000.0 ** ((column - column % 2) / size)
    return np.where(column % 2, np.cos(angles), np.sin(angles))


class _PositionalEncoding(Module):
    """A vector for each position, added to the input; a subclass says which."""

    def __init__(self, size: int, dropout: float, batch_first: bool) -> None:
        self.size = size
        self.dropout = checked_probability(dropout, "dropout")
        self.batch_first = batch_first

    def _rows(self, start: int, length: int, dtype: Any) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Operand, start: int = 0) -> Tensor:
        """``x + p``, in training with dropout.

        Args:
            x: (T, B, E), or (B, T, E) with ``batch_first``, or (T, E) without a batch.
            start: the position of the first step, for a sequence that comes in pieces.

        Raises:
            ShapeError: an input of another size; with learned encodings, one that is too long.
        """
        x = as_tensor(x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.size:
            layout = "(B, T, E)" if self.batch_first else "(T, B, E)"
            raise ShapeError(f"{type(self).__name__} takes {layout} or (T, E) with E = {self.size}, got shape {x.shape}")
        between = x.ndim == 3 and not self.batch_first
        rows = self._rows(start, x.shape[0 if between else -2], x.dtype)
        return functions.dropout(x + (rows.unsqueeze(1) if between else rows), self.dropout, self.training)


class SinusoidalPositionalEncoding(_PositionalEncoding):
    """Adds :func:`sinusoidal_encoding` to the input; sequences may have any length (Vaswani et al. 2017).

    Args:
        size: E.
        dropout: the probability of dropping an element of the sum, in training.
        batch_first: whether inputs are (B, T, E) and not (T, B, E).

    >>> import tinyseq as ts
    >>> encode = ts.nn.SinusoidalPositionalEncoding(4)
    >>> encode(ts.zeros((3, 2, 4)))[0].tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]]
    """

    def __init__(self, size: int, dropout: float = 0.0, batch_first: bool = False) -> None:
        super().__init__(size, dropout, batch_first)

    def _rows(self, start: int, length: int, dtype: Any) -> Tensor:
        return sinusoidal_encoding(length, self.size, dtype, start)


class LearnedPositionalEncoding(_PositionalEncoding):
    """Adds a learned vector for each position to the input (Gehring et al. 2017).

    The table ``weight`` (max_length, E) starts from N(0, 0.02^2), as in GPT-2.

    Args:
        max_length: how many positions there are.
        size: E.
        dropout: the probability of dropping an element of the sum, in training.
        batch_first: whether inputs are (B, T, E) and not (T, B, E).
        dtype: of the table.

    >>> import tinyseq as ts
    >>> encode = ts.nn.LearnedPositionalEncoding(8, 4)
    >>> encode(ts.zeros((3, 4))).tolist() == encode.weight[:3].tolist()
    True
    """

    def __init__(
        self, max_length: int, size: int, dropout: float = 0.0, batch_first: bool = False, dtype: Any = float32
    ) -> None:
        if max_length < 1 or size < 1:
            raise ShapeError(f"LearnedPositionalEncoding needs max_length >= 1 and size >= 1, got {max_length} and {size}")
        super().__init__(size, dropout, batch_first)
        self.max_length = max_length
        self.weight = Parameter(random.normal((max_length, size), 0.0, 0.02, dtype))

    def _rows(self, start: int, length: int, dtype: Any) -> Tensor:
        if start < 0 or start + length > self.max_length:
            raise ShapeError(
                f"LearnedPositionalEncoding has vectors for positions 0 to {self.max_length - 1}, "
                f"got a sequence from {start} to {start + length - 1}"
            )
        return self.weight[start : start + length]
