"""Connectionist temporal classification: a loss over all alignments of a sequence of labels with frames, and decoding.

Letters: T frames, N sequences in the batch, C classes, one of which is the blank, S labels of a target.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import _reduce, logsumexp, roll, stack
from tinyseq.scan import scan
from tinyseq.tensor import Operand, Tensor, as_tensor, exp, isfinite, log, maximum, where

__all__ = ["ctc_beam_decode", "ctc_greedy_decode", "ctc_loss"]

Ids = npt.NDArray[np.int64]


def ctc_loss(
    log_probs: Operand,
    targets: Operand,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """``-log p(target)``, where p sums over all ways to spread the target over the frames (Graves et al. 2006).

    A path of T classes stands for the labels that remain when repeats are merged and blanks are dropped. With l' the
    target between blanks, ``l' = (blank, l_1, blank, ..., l_S, blank)``, and y_t the log-probabilities of frame t, the
    log-probability of all paths that reach position s of l' at frame t is::

        alpha_t(s) = y_t(l'_s) + logsumexp(alpha_{t-1}(s), alpha_{t-1}(s - 1), alpha_{t-1}(s - 2))

    the last of them only where l'_s is neither blank nor l'_{s-2}. It is a scan over the frames, and its gradient that
    of the scan. A target that needs more frames than there are (S, and one more for each label that repeats the one
    before) has the loss infinity and no gradient, where PyTorch's is NaN; a warning names it, unless ``zero_infinity`` is
    asked for.

    Args:
        log_probs: (T, N, C), or (T, C) without a batch; usually of :func:`tinyseq.log_softmax`.
        targets: (N, S) classes, padded with anything; or all targets one after the other, (the sum of the lengths,);
            or (S,) without a batch.
        input_lengths: (N,) integers, how many frames of each sequence count.
        target_lengths: (N,) integers, how many labels each target has.
        blank: the class that stands for no label.
        reduction: "mean" divides each loss by its target's length (by 1 where that is 0), then takes the mean over the
            batch; "sum"; or "none" for (N,).
        zero_infinity: whether an infinite loss counts as 0.

    Raises:
        ShapeError: shapes that do not fit, a length that is negative or too large, a label that is not in [0, C).
        DTypeError: targets or lengths that are no integers.
        ValueError: a target that contains the blank.

    >>> import tinyseq as ts
    >>> even = ts.log_softmax(ts.zeros((3, 1, 2)))  # of the 8 paths, 6 stand for the target (1,)
    >>> f"{ctc_loss(even, ts.tensor([[1]]), [3], [1]).exp().item() * 6 / 8:.4f}"
    '1.0000'
    """
    log_probs = as_tensor(log_probs)
    if log_probs.dtype.kind not in "fV":
        raise DTypeError(f"ctc_loss takes log-probabilities, got dtype {log_probs.dtype}")
    if log_probs.ndim not in (2, 3):
        raise ShapeError(f"ctc_loss takes log-probabilities (T, N, C) or (T, C), got shape {log_probs.shape}")
    batched = log_probs.ndim == 3
    ids = _integers(targets, "targets")
    if not batched:
        log_probs, ids = log_probs.unsqueeze(1), ids.reshape(1, -1)
    frames, rows, classes = log_probs.shape
    if not rows:
        raise ShapeError(f"ctc_loss takes at least one sequence, got log-probabilities of shape {log_probs.shape}")
    if not 0 <= blank < classes:
        raise ShapeError(f"ctc_loss needs a blank in [0, {classes}), got {blank}")
    inputs = _lengths(input_lengths, rows, frames, "input")
    if ids.ndim == 1:
        counts = _lengths(target_lengths, rows, ids.size, "target")
        ids = _side_by_side(ids, counts)
    elif ids.ndim == 2 and len(ids) == rows:
        counts = _lengths(target_lengths, rows, ids.shape[1], "target")
    else:
        raise ShapeError(f"ctc_loss of {rows} sequences takes targets ({rows}, S), or all in a row, got shape {ids.shape}")
    ids = _checked_labels(ids, counts, classes, blank)
    if not zero_infinity:
        _warn_of_the_impossible(ids, inputs, counts)

    path = np.full((rows, 2 * ids.shape[1] + 1), blank)
    path[:, 1::2] = ids
    losses = -_log_likelihood(log_probs, path, inputs, counts, blank)
    if zero_infinity:
        losses = where(losses == math.inf, 0.0, losses)
    if reduction == "mean":
        losses = losses / _beside(losses, np.maximum(counts, 1)).astype(losses.dtype)
    if not batched:
        losses = losses.squeeze(0)
    return _reduce(losses, reduction)


def _log_likelihood(log_probs: Tensor, path: Ids, inputs: Ids, counts: Ids, blank: int) -> Tensor:
    """(N,): the log-probability of all ways through the positions of ``path`` (N, 2 S + 1)."""
    place, rows = np.arange(path.shape[1]), np.arange(len(path))[:, None]
    skips = (place >= 2) & (path != blank) & (path != np.roll(path, 2, axis=1))
    emitted = log_probs[:, _beside(log_probs, rows), _beside(log_probs, path)]
    one, two = _beside(log_probs, np.tile(place >= 1, (len(path), 1))), _beside(log_probs, skips)
    # Before the first frame all of the probability stands on the first blank: it may stay there or go to the first label.
    start = _beside(log_probs, np.where(place == 0, 0.0, np.full(path.shape, -math.inf))).astype(log_probs.dtype)

    def step(alpha: Tensor, y: Tensor) -> tuple[Tensor, None]:
        # The ends that come round are masked. Each copy makes the gradient of a roll one rotation, not slices of a sum.
        ways = (
            alpha,
            where(one, roll(alpha.copy(), 1, -1), -math.inf),
            where(two, roll(alpha.copy(), 2, -1), -math.inf),
        )
        top = maximum(maximum(ways[0], ways[1]), ways[2]).detach()
        top = where(isfinite(top), top, 0.0)
        total = exp(ways[0] - top) + exp(ways[1] - top) + exp(ways[2] - top)
        closed = total == 0  # no way leads here: the logarithm would warn, and its gradient would be NaN
        return y + where(closed, -math.inf, log(where(closed, 1.0, total)) + top), None

    alpha = start if not len(log_probs) else scan(step, start, emitted, lengths=inputs)[0]
    at, end, label = (_beside(alpha, index) for index in (rows[:, 0], 2 * counts, np.maximum(2 * counts - 1, 0)))
    return logsumexp(stack([alpha[at, end], where(_beside(alpha, counts > 0), alpha[at, label], -math.inf)]), 0)


def _beside(x: Tensor, array: npt.NDArray[Any]) -> Tensor:
    """A constant on the backend of ``x``."""
    return Tensor(x.backend.asarray(array))


def _integers(value: Any, what: str) -> Ids:
    array = value.numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype.kind not in "iu" and array.size:
        raise DTypeError(f"ctc takes {what} that are integers, got dtype {array.dtype}; cast them to int64")
    return array.astype(np.int64)


def _lengths(given: Any, rows: int, most: int, what: str) -> Ids:
    lengths = _integers(given, f"{what}_lengths").reshape(-1)
    if lengths.shape != (rows,):
        raise ShapeError(f"ctc needs one {what} length for each of {rows} sequences, got {lengths.size}")
    wrong = (lengths < 0) | (lengths > most)
    if wrong.any():
        row = int(wrong.argmax())
        raise ShapeError(f"ctc needs {what} lengths from 0 to {most}, got {lengths[row]} for sequence {row}")
    return lengths


def _warn_of_the_impossible(ids: Ids, inputs: Ids, counts: Ids) -> None:
    """Say which target has no alignment, and is why the loss will be infinite."""
    repeats = (ids[:, 1:] == ids[:, :-1]) & (np.arange(1, ids.shape[1]) < counts[:, None])
    needed = counts + repeats.sum(1)
    if (needed > inputs).any():
        row = int((needed > inputs).argmax())
        warnings.warn(
            f"target {row} has {counts[row]} labels and needs {needed[row]} frames, but there are {inputs[row]}: its loss is "
            "infinite; leave it out, or give zero_infinity=True",
            UserWarning,
            stacklevel=3,
        )


def _side_by_side(ids: Ids, counts: Ids) -> Ids:
    """Targets one after the other, as rows."""
    if counts.sum() != ids.size:
        raise ShapeError(f"ctc_loss got {ids.size} labels in a row, but target lengths that add up to {counts.sum()}")
    table = np.zeros((len(counts), max(counts, default=0)), np.int64)
    table[np.arange(table.shape[1]) < counts[:, None]] = ids
    return table


def _checked_labels(ids: Ids, counts: Ids, classes: int, blank: int) -> Ids:
    """The labels, with blanks in the padding; at least one column."""
    if not ids.shape[1]:
        return np.full((len(ids), 1), blank)
    valid = np.arange(ids.shape[1]) < counts[:, None]
    for wrong in (valid & ((ids < 0) | (ids >= classes)), valid & (ids == blank)):
        if wrong.any():
            row, place = np.unravel_index(int(wrong.argmax()), wrong.shape)
            found = f"target {row} has the label {ids[row, place]} at position {place}"
            if ids[row, place] == blank:
                raise ValueError(f"{found}, which is the blank; number the labels without it, or name another blank")
            raise ShapeError(f"{found}, which is not in [0, {classes})")
    return np.where(valid, ids, blank)


# --- decoding ---------------------------------------------------------------------------------------------------------


def ctc_greedy_decode(log_probs: Operand, input_lengths: Any = None, blank: int = 0) -> list[Ids]:
    """The labels of the likeliest path: the best class of each frame, repeats merged and blanks dropped.

    Args:
        log_probs: (T, N, C); logits will do.
        input_lengths: (N,) integers, how many frames count; all by default.
        blank: the class that stands for no label.

    Returns:
        For each of N sequences an array of its labels.

    Raises:
        ShapeError: as :func:`ctc_loss`.

    >>> import tinyseq as ts
    >>> frames = ts.tensor([[[0.0, 9.0]], [[0.0, 9.0]], [[9.0, 0.0]], [[0.0, 9.0]]])
    >>> ctc_greedy_decode(frames)[0].tolist()
    [1, 1]
    """
    scores, lengths = _frames(log_probs, input_lengths, blank)
    best = scores.argmax(-1)
    decoded = []
    for row, length in enumerate(lengths):
        path = best[:length, row]
        changed = np.append(True, path[1:] != path[:-1])[:length]
        decoded.append(path[changed & (path != blank)].astype(np.int64))
    return decoded


def ctc_beam_decode(
    log_probs: Operand,
    input_lengths: Any = None,
    blank: int = 0,
    beam: int = 16,
    best: int = 1,
) -> list[list[tuple[Ids, float]]]:
    """Prefix beam search: the likeliest labels, each with the probability of all its paths (Graves 2012; Hannun 2014).

    A prefix is kept with two sums over the paths that stand for it: those that end in a blank and those that do not,
    after which the same label again would be merged. With a beam that holds every prefix the search is exact.

    Args:
        log_probs: (T, N, C) log-probabilities.
        input_lengths: (N,) integers, how many frames count; all by default.
        blank: the class that stands for no label.
        beam: how many prefixes are kept after each frame.
        best: how many results are returned.

    Returns:
        For each of N sequences up to ``best`` pairs of labels and their log-probability, the likeliest first.

    Raises:
        ShapeError: as :func:`ctc_loss`.
        ValueError: a ``beam`` that is less than ``best``, or a ``best`` that is less than 1.

    >>> import numpy as np, tinyseq as ts
    >>> frames = ts.tensor(np.log([[[0.6, 0.4]], [[0.6, 0.4]]]))  # the likeliest path is blank twice: 0.36
    >>> [(labels.tolist(), round(float(np.exp(score)), 2)) for labels, score in ctc_beam_decode(frames, best=2)[0]]
    [([1], 0.64), ([], 0.36)]
    """
    if not 1 <= best <= beam:
        raise ValueError(f"ctc_beam_decode needs 1 <= best <= beam, got best={best} and beam={beam}")
    scores, lengths = _frames(log_probs, input_lengths, blank)
    return [_search(scores[:length, row].astype(np.float64), blank, beam)[:best] for row, length in enumerate(lengths)]


def _search(frames: npt.NDArray[Any], blank: int, beam: int) -> list[tuple[Ids, float]]:
    low = -math.inf
    ends: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, low)}  # log p of paths that end in a blank, and others
    for y in frames.tolist():
        grown: dict[tuple[int, ...], list[float]] = {}

        def add(prefix: tuple[int, ...], end: int, score: float, grown: dict[tuple[int, ...], list[float]] = grown) -> None:
            if score > low:
                sums = grown.setdefault(prefix, [low, low])
                sums[end] = _log_add(sums[end], score)

        for prefix, (after_blank, after_label) in ends.items():
            total = _log_add(after_blank, after_label)
            add(prefix, 0, total + y[blank])
            if prefix:
                add(prefix, 1, after_label + y[prefix[-1]])
            for label, score in enumerate(y):
                if label != blank:
                    repeats = bool(prefix) and label == prefix[-1]
                    add((*prefix, label), 1, (after_blank if repeats else total) + score)
        ranked = sorted(grown.items(), key=lambda item: -_log_add(*item[1]))  # stable: equals keep their order
        ends = {prefix: (sums[0], sums[1]) for prefix, sums in ranked[:beam]}
    found = [(np.array(prefix, np.int64), _log_add(*sums)) for prefix, sums in ends.items()]
    return sorted(found, key=lambda item: -item[1])


def _log_add(x: float, y: float) -> float:
    low, high = (x, y) if x < y else (y, x)
    return high + math.log1p(math.exp(low - high)) if low > -math.inf else high


def _frames(log_probs: Operand, input_lengths: Any, blank: int) -> tuple[npt.NDArray[Any], Sequence[int]]:
    scores = as_tensor(log_probs).detach().numpy()
    if scores.ndim != 3 or not 0 <= blank < scores.shape[2]:
        raise ShapeError(f"ctc decoding takes frames (T, N, C) and a blank in [0, C), got shape {scores.shape} and {blank}")
    frames, rows = scores.shape[:2]
    given = np.full(rows, frames) if input_lengths is None else input_lengths
    return scores, _lengths(given, rows, frames, "input").tolist()
