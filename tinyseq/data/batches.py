"""Sequences of different lengths as one array with their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError

__all__ = ["Padded", "collate_padded", "collate_stacked", "pad_sequences", "unpad"]

Array = npt.NDArray[Any]


class Padded(NamedTuple):
    """Sequences as rows of one array: values (T, B, ...), or (B, T, ...), and lengths (B,), what recurrent layers take."""

    values: Array
    lengths: npt.NDArray[np.int64]


def pad_sequences(sequences: Sequence[Any], value: float = 0, batch_first: bool = False, length: int | None = None) -> Padded:
    """B sequences (T_i, ...) as one array, filled up with ``value`` to the longest.

    Args:
        sequences: arrays, tensors or lists of numbers, alike but for their first axis. Lists of Python floats become
            float32, as they do in :func:`tinyseq.tensor`; arrays keep their dtype.
        value: what the padding holds.
        batch_first: whether the batch is the first axis; otherwise it is the second, after time.
        length: T, if it is not that of the longest.

    Raises:
        DataError: no sequences, something that is not numbers, shapes that differ after the first axis, or a sequence
            that is longer than ``length``.

    >>> padded = pad_sequences([[1, 2, 3], [4]])
    >>> padded.values.T.tolist(), padded.lengths.tolist()
    ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    arrays = [_numbers(sequence) for sequence in sequences]
    if not arrays:
        raise DataError("a batch of no sequences has no shape; give at least one")
    for place, array in enumerate(arrays):
        if not array.ndim or array.shape[1:] != arrays[0].shape[1:]:
            raise DataError(
                f"sequences of one batch are alike but for their first axis, but number 0 has shape {arrays[0].shape} "
                f"and number {place} has shape {array.shape}"
            )
    lengths = np.array([len(array) for array in arrays], np.int64)
    steps = int(lengths.max()) if length is None else length
    if lengths.max() > steps:
        place = int(lengths.argmax())
        raise DataError(f"sequence {place} has {lengths[place]} steps, more than length={steps}; cut it or raise the length")
    # An empty list is of no dtype of its own.
    dtype = np.result_type(*([array for array in arrays if array.size] or arrays))
    values = np.full((len(arrays), steps, *arrays[0].shape[1:]), value, dtype)
    for row, array in zip(values, arrays, strict=True):
        row[: len(array)] = array
    return Padded(values if batch_first else np.ascontiguousarray(np.swapaxes(values, 0, 1)), lengths)


def unpad(padded: Any, lengths: Any, batch_first: bool = False) -> list[Array]:
    """The sequences of a padded batch again.

    Raises:
        DataError: lengths that do not fit.

    >>> [row.tolist() for row in unpad(*pad_sequences([[1, 2, 3], [4]]))]
    [[1, 2, 3], [4]]
    """
    values, counts = np.asarray(padded), np.asarray(lengths)
    rows = values if batch_first or values.ndim < 2 else np.swapaxes(values, 0, 1)
    if (
        values.ndim < 2
        or counts.shape != rows.shape[:1]
        or (counts.size and not 0 <= counts.min() <= counts.max() <= rows.shape[1])
    ):
        raise DataError(f"lengths {counts.tolist()} do not fit a batch of shape {values.shape}")
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def collate_padded(examples: Sequence[Any], value: float = 0, batch_first: bool = False) -> Any:
    """A list of examples as one batch of the same structure.

    An example is a tuple or a dict of parts, or one part. Numbers become an array (B,); arrays, tensors and lists are
    sequences, and become a :class:`Padded`; anything else (a text, say) becomes a list.

    Raises:
        DataError: no examples, or examples that differ in structure or shape.

    >>> words, labels = collate_padded([([3, 1, 2], 0), ([5], 1)])
    >>> words.values.shape, words.lengths.tolist(), labels.tolist()
    ((3, 2), [3, 1], [0, 1])
    """
    return _collate(examples, lambda parts: pad_sequences(parts, value, batch_first))


def collate_stacked(examples: Sequence[Any], axis: int = 1) -> Any:
    """As :func:`collate_padded`, for arrays of one shape: they become one array with the batch as ``axis``.

    >>> inputs, labels = collate_stacked([(np.zeros(4), 0), (np.ones(4), 1)])
    >>> inputs.shape, labels.shape
    ((4, 2), (2,))
    """

    def stacked(parts: list[Any]) -> Array:
        arrays = [_numbers(part) for part in parts]
        if any(array.shape != arrays[0].shape for array in arrays):
            shapes = sorted({array.shape for array in arrays})
            raise DataError(f"arrays of shapes {shapes} cannot be stacked; pad them (collate_padded)")
        return np.stack(arrays, axis)

    return _collate(examples, stacked)


def _collate(examples: Sequence[Any], join: Any) -> Any:
    if not examples:
        raise DataError("a batch needs at least one example")
    first = examples[0]
    if isinstance(first, dict | tuple):
        kinds = {_structure(example) for example in examples}
        if len(kinds) > 1:
            raise DataError(f"examples of one batch have the same parts, but here are {' and '.join(sorted(map(str, kinds)))}")
    if isinstance(first, dict):
        return {key: _collate([example[key] for example in examples], join) for key in first}
    if isinstance(first, tuple):
        parts = [_collate(list(column), join) for column in zip(*examples, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    if isinstance(first, str | bytes) or first is None:
        return list(examples)
    if not isinstance(first, list) and np.ndim(first) == 0:
        return np.stack([_numbers(example) for example in examples])
    return join(list(examples))


def _structure(example: Any) -> Any:
    if isinstance(example, dict):
        return f"keys {sorted(map(str, example))}"
    return f"{len(example)} parts" if isinstance(example, tuple) else type(example).__name__


def _numbers(value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise DataError(f"sequences are numbers, but here is {_short(value)}; encode it with a vocabulary")
    if not hasattr(value, "dtype"):  # Python's numbers, as ts.tensor takes them
        kind = np.float32 if array.dtype.kind == "f" and array.size else np.bool_ if array.dtype.kind == "b" else np.int64
        array = array.astype(kind)
    return array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
