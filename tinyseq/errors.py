"""The errors that tinyseq raises: each is a :class:`TinyseqError` and the built-in kind that a caller expects."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "GraphError",
    "NonFiniteError",
    "ShapeError",
    "TinyseqError",
]


class TinyseqError(Exception):
    """The base of every error that tinyseq raises on purpose.

    >>> try:
    ...     raise ShapeError("matmul of (2, 3) and (4, 5): the inner sizes 3 and 4 differ")
    ... except TinyseqError as error:
    ...     print(error)
    matmul of (2, 3) and (4, 5): the inner sizes 3 and 4 differ
    """


class ShapeError(TinyseqError, ValueError):
    """Shapes, axes or nested structures do not fit together."""


class DTypeError(TinyseqError, TypeError):
    """A dtype or a Python type is not one that the operation takes."""


class BackendError(TinyseqError, RuntimeError):
    """A backend is unknown, not available, mixed with another, or lacks an operation."""


class GraphError(TinyseqError, RuntimeError):
    """The tape is used in a way that it does not allow, such as a second walk over a freed graph."""


class CheckpointError(TinyseqError, ValueError):
    """A saved file is truncated, foreign, or belongs to another architecture."""


class NonFiniteError(TinyseqError, ArithmeticError):
    """A NaN or an infinity arose where finite numbers were asked for."""


class DataError(TinyseqError, ValueError):
    """A data set or a text is missing, empty, or too short for what is asked of it."""
