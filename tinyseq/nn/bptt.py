"""Backpropagation through time in chunks: the state goes on, the gradient stops.

Letters: T steps, B rows of a batch, k steps of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinyseq.errors import ShapeError
from tinyseq.nn.cells import Gated
from tinyseq.scan import checked_lengths
from tinyseq.tensor import Tensor, as_tensor
from tinyseq.tree import flatten, tree_map

__all__ = ["truncated_bptt"]

Tree = Any  # nested tuples, lists and dicts of tensors


def truncated_bptt(
    layer: Any, xs: Tree, k: int, state: Tree = None, *, lengths: Any = None, resets: Any = None
) -> Iterator[tuple[slice, Tree, Tree]]:
    """Run a layer over a long sequence, k steps at a time (Williams and Peng 1990).

    The state is carried from chunk to chunk, but detached there: the gradient of a chunk's loss goes back to its first
    step and no further, and memory is needed for one chunk. A chunk runs when it is asked for, so it sees the weights as
    the last update left them::

        for steps, output, state in truncated_bptt(layer, xs, k=35):
            loss = cross_entropy(output.flatten(0, 1), targets[steps].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    Args:
        layer: ``layer(xs, state, ...) -> (output, state)`` such as RNN, GRU, LSTM, :class:`Recurrent` or a model around
            one; its attribute ``batch_first`` says whether time is the second axis.
        xs: (T, B, ...), or (B, T, ...) with ``batch_first``.
        k: steps of a chunk; the last may be shorter.
        state: the state before the first step, from which the first chunk's gradient is passed on; None is the layer's.
        lengths: (B,) integers, how many of the T steps of each row are valid.
        resets: booleans in the layout of ``xs``, where another sequence begins in a row.

    Yields:
        The steps as a slice of T, the outputs at these steps, and the detached state after them, which may be passed on
        as the ``state`` of another sequence.

    Raises:
        ValueError: k is less than 1, or the layer runs backwards and has no state to carry on.
        ShapeError: the inputs have no axis of time, or not as many steps.
        DTypeError: lengths are no integers.

    >>> import tinyseq as ts
    >>> layer = ts.nn.GRU(3, 4)
    >>> for steps, output, state in ts.nn.truncated_bptt(layer, ts.zeros((5, 2, 3)), k=2):
    ...     print(steps, output.shape, state.requires_grad)
    slice(0, 2, None) (2, 2, 4) False
    slice(2, 4, None) (2, 2, 4) False
    slice(4, 5, None) (1, 2, 4) False
    """
    if k < 1:
        raise ValueError(f"a chunk has at least one step, got k={k}")
    if getattr(layer, "bidirectional", False) or getattr(layer, "reverse", False):
        raise ValueError(f"{type(layer).__name__} runs backwards, so it has no state to carry from one chunk to the next")
    xs = tree_map(as_tensor, xs)
    unbatched = isinstance(layer, Gated) and isinstance(xs, Tensor) and xs.ndim == 2
    axis = 1 if getattr(layer, "batch_first", False) and not unbatched else 0
    total = _steps(xs, axis)
    counts = None if lengths is None else checked_lengths(lengths, total, "truncated_bptt")
    flags = None if resets is None else as_tensor(resets)
    return _chunks(layer, xs, k, state, axis, total, counts, flags)


def _chunks(
    layer: Any, xs: Tree, k: int, state: Tree, axis: int, total: int, counts: np.ndarray[Any, Any] | None, flags: Tensor | None
) -> Iterator[tuple[slice, Tree, Tree]]:
    for first in range(0, total, k):
        steps = slice(first, min(first + k, total))
        key = (slice(None),) * axis + (steps,)
        options: dict[str, Any] = {}
        if counts is not None:
            options["lengths"] = np.clip(counts - first, 0, steps.stop - first)
        if flags is not None:
            options["resets"] = flags[key]
        output, state = layer(tree_map(lambda x: x[key], xs), state, **options)  # noqa: B023 (called at once)
        state = tree_map(Tensor.detach, state)
        yield steps, output, state


def _steps(xs: Tree, axis: int) -> int:
    shapes = [x.shape for x in flatten(xs)[0]]
    if not shapes or any(len(shape) <= axis for shape in shapes):
        raise ShapeError(f"truncated_bptt takes inputs with time as axis {axis}, got shapes {shapes}")
    if len({shape[axis] for shape in shapes}) > 1 or not shapes[0][axis]:
        raise ShapeError(f"truncated_bptt takes inputs of one length, at least 1, got shapes {shapes} with time as axis {axis}")
    return shapes[0][axis]
