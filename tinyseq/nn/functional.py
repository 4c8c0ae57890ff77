"""The usual functions under PyTorch's names and argument order; axes are called ``axis``.

Most are those of ``tinyseq.functions``; here stand the few whose arguments PyTorch orders in another way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyseq import functions as _f
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    dropout,
    elu,
    huber_loss,
    kl_div,
    l1_loss,
    leaky_relu,
    linear,
    log_softmax,
    mse_loss,
    nll_loss,
    one_hot,
    pad,
    relu,
    sigmoid,
    silu,
    smooth_l1_loss,
    softmax,
    softplus,
    tanh,
)
from tinyseq.nn.ctc import ctc_loss
from tinyseq.nn.dot_product import attention_weights, causal_mask, masked_softmax, scaled_dot_product_attention
from tinyseq.scan import checked_lengths
from tinyseq.tensor import Operand, Tensor, as_tensor

__all__ = [
    "attention_weights",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "causal_mask",
    "cosine_similarity",
    "cross_entropy",
    "ctc_loss",
    "dropout",
    "elu",
    "embedding",
    "gelu",
    "hardtanh",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "logsigmoid",
    "masked_softmax",
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "quantile_loss",
    "relu",
    "scaled_dot_product_attention",
    "sequence_cross_entropy",
    "sequence_loss",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "tanh",
]


def embedding(ids: Operand, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Rows of ``weight`` (V, E) by integer ids (...): (..., E). The row ``padding_idx`` gets no gradient.

    >>> import tinyseq as ts
    >>> embedding(ts.tensor([1, 0]), ts.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
    [[3.0, 4.0], [1.0, 2.0]]
    """
    return _f.embedding(weight, ids, padding_idx)


def sequence_loss(losses: Operand, lengths: Any = None, reduction: str = "mean", batch_first: bool = False) -> Tensor:
    """The losses of the steps of a batch of sequences, reduced over the steps that are valid.

    Args:
        losses: (T, B), one loss a step; or (B, T) with ``batch_first``.
        lengths: (B,) integers from 0 to T, how many steps of each row are valid; None for all.
        reduction: "mean" over all valid steps; "sum" of them; "batchmean", that sum divided by B, the loss of a mean
            sequence; "rows" for (B,), each row's sum; "none" for the losses, with zeros in the padding.

    Without a valid step the mean is NaN, as that of no numbers is.

    Raises:
        ShapeError: losses without two axes, or lengths that do not fit them.
        DTypeError: lengths that are no integers.
        ValueError: another reduction.

    >>> import tinyseq as ts
    >>> losses = ts.tensor([[1.0, 5.0], [3.0, 9.0]])
    >>> [sequence_loss(losses, [2, 1], reduction).tolist() for reduction in ("mean", "sum", "batchmean", "rows")]
    [3.0, 9.0, 4.5, [4.0, 5.0]]
    """
    losses = as_tensor(losses)
    if losses.ndim != 2:
        raise ShapeError(f"sequence_loss takes one loss a step, with axes for time and batch, got shape {losses.shape}")
    valid = _valid_steps(losses, lengths, batch_first, "sequence_loss")
    return _over_steps(losses, valid, None, reduction, batch_first)


def sequence_cross_entropy(
    logits: Operand,
    targets: Operand,
    lengths: Any = None,
    weight: Operand | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    batch_first: bool = False,
) -> Tensor:
    """:func:`cross_entropy` at every step of a batch of sequences, reduced over the steps that are valid.

    Nothing in the padding, NaN included, has an effect on the loss or a gradient.

    Args:
        logits: (T, B, C), or (B, T, C) with ``batch_first``: classes on the last axis, as recurrent layers give them.
        targets: integer classes (T, B), or (B, T).
        lengths: (B,) integers from 0 to T, how many steps of each row are valid; None for all.
        weight: a factor for each class (C,); the mean is then weighted.
        ignore_index: targets of this value count for nothing either.
        reduction: as in :func:`sequence_loss`.
        label_smoothing: how much of each target is spread over all classes.
        batch_first: which of the two axes is time.

    Raises:
        ShapeError: shapes that do not fit, or a valid target that is not in [0, C).
        DTypeError: targets or lengths that are no integers.
        ValueError: another reduction.

    >>> import tinyseq as ts
    >>> logits, targets = ts.zeros((2, 1, 4)), ts.tensor([[3], [-1]])
    >>> f"{sequence_cross_entropy(logits, targets, lengths=[1]).item():.4f}"
    '1.3863'
    """
    logits, targets = as_tensor(logits), as_tensor(targets)
    if logits.ndim != 3 or targets.shape != logits.shape[:2]:
        raise ShapeError(
            "sequence_cross_entropy takes logits with axes for time, batch and classes, and targets of the first two, "
            f"got {logits.shape} and {targets.shape}"
        )
    if targets.dtype.kind not in "iu":
        raise DTypeError(f"sequence_cross_entropy takes integer classes, got dtype {targets.dtype}")
    valid = _valid_steps(targets, lengths, batch_first, "sequence_cross_entropy")
    counted = targets != ignore_index
    if valid is not None:
        logits = _f.where(valid.unsqueeze(-1), logits, 0.0)
        targets = _f.where(valid, targets, ignore_index)
        counted = valid & counted
    rows, flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    losses = cross_entropy(rows, flat, weight, ignore_index, "none", label_smoothing).reshape(targets.shape)
    factors = None if weight is None else as_tensor(weight)[_f.where(counted, targets, 0)]
    return _over_steps(losses, counted, factors, reduction, batch_first)


def _valid_steps(x: Tensor, lengths: Any, batch_first: bool, who: str) -> Tensor | None:
    """Which steps of ``x`` (T, B), or (B, T), are not padding; None for all."""
    if lengths is None:
        return None
    rows, steps = x.shape if batch_first else x.shape[::-1]
    counts = checked_lengths(lengths, steps, who)
    if counts.shape != (rows,):
        raise ShapeError(f"lengths for {rows} rows have the shape ({rows},), got {counts.shape}")
    valid = np.arange(steps)[:, None] < counts
    return Tensor(x.backend.asarray(np.ascontiguousarray(valid.T) if batch_first else valid))


def _over_steps(losses: Tensor, valid: Tensor | None, factors: Tensor | None, reduction: str, batch_first: bool) -> Tensor:
    """Losses of steps, reduced over those that count; ``factors`` says how much each counts in a mean."""
    if valid is not None:
        losses = _f.where(valid, losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "rows":
        return losses.sum(1 if batch_first else 0)
    if reduction == "sum":
        return losses.sum()
    if reduction == "batchmean":
        return losses.sum() / losses.shape[0 if batch_first else 1]
    if reduction != "mean":
        raise ValueError(f"reduction is 'mean', 'sum', 'batchmean', 'rows' or 'none', got {reduction!r}")
    if valid is None:
        return losses.mean()
    counts = valid.astype(losses.dtype) if factors is None else _f.where(valid, factors, 0.0)
    total = counts.sum()
    return losses.sum() / _f.where(total == 0, math.nan, total)


def quantile_loss(x: Operand, target: Operand, quantiles: Sequence[float], reduction: str = "mean") -> Tensor:
    """``max(q d, (q - 1) d)`` with d = target - x, least where x is the q-quantile (Koenker and Bassett 1978).

    Args:
        x: (..., Q), a prediction for each of Q quantiles.
        target: (...).
        quantiles: the Q values of q, each in (0, 1).
        reduction: "mean", "sum", or "none" for (..., Q).

    Raises:
        ShapeError: ``x`` is not of the target's shape with one more axis of size Q.
        ValueError: a quantile that is not in (0, 1), or another reduction.

    >>> import tinyseq as ts
    >>> quantile_loss(ts.tensor([[1.0, 1.0]]), ts.tensor([3.0]), [0.5, 0.75], "none").tolist()
    [[1.0, 1.5]]
    """
    x, target = as_tensor(x), as_tensor(target)
    if not all(0 < q < 1 for q in quantiles):
        raise ValueError(f"quantiles lie between 0 and 1, got {list(quantiles)}")
    if x.shape != (*target.shape, len(quantiles)):
        raise ShapeError(
            f"quantile_loss of {len(quantiles)} quantiles and a target of {target.shape} needs predictions of "
            f"{(*target.shape, len(quantiles))}, got {x.shape}"
        )
    q = Tensor(x.backend.asarray(np.asarray(quantiles, np.float64))).astype(x.dtype)
    difference = target.unsqueeze(-1) - x
    return _f._reduce(difference * _f.where(difference > 0, q, q - 1), reduction)


def layer_norm(
    x: Operand,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last axes, those of ``normalized_shape`` (Ba et al. 2016).

    Raises:
        ShapeError: ``x`` does not end with ``normalized_shape``.

    >>> import tinyseq as ts
    >>> layer_norm(ts.tensor([[1.0, 3.0]]), 2, eps=0).tolist()
    [[-1.0, 1.0]]
    """
    x = as_tensor(x)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ShapeError(f"layer_norm over {shape} needs an input that ends with these axes, got shape {x.shape}")
    for name, given in (("weight", weight), ("bias", bias)):
        if given is not None and given.shape != shape:
            raise ShapeError(f"layer_norm over {shape} needs a {name} of that shape, got {given.shape}")
    if len(shape) == 1:
        return _f.layer_norm(x, weight, bias, eps)
    rows = x.reshape((*x.shape[: -len(shape)], math.prod(shape)))
    weight, bias = (None if given is None else given.reshape(-1) for given in (weight, bias))
    return _f.layer_norm(rows, weight, bias, eps).reshape(x.shape)


def gelu(x: Operand, approximate: str = "none") -> Tensor:
    """``x Phi(x)`` (Hendrycks and Gimpel 2016), exact, or with ``approximate="tanh"`` by tanh.

    Raises:
        ValueError: another approximation.

    >>> f"{gelu(1.0).item():.4f}"
    '0.8413'
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu is approximated by 'none' or 'tanh', got {approximate!r}")
    return _f.gelu(x, approximate == "tanh")


def logsigmoid(x: Operand) -> Tensor:
    """``log(sigmoid(x))`` without overflow.

    >>> logsigmoid(-1000.0).item()
    -1000.0
    """
    return -softplus(-as_tensor(x))


def hardtanh(x: Operand, low: float = -1.0, high: float = 1.0) -> Tensor:
    """``x`` cut to [low, high]; no gradient at the bounds.

    >>> import tinyseq as ts
    >>> hardtanh(ts.tensor([-3.0, 0.5, 3.0])).tolist()
    [-1.0, 0.5, 1.0]
    """
    x = as_tensor(x)
    return _f.where(x >= high, high, _f.where(x <= low, low, x))


def normalize(x: Operand, axis: int = 1, eps: float = 1e-12) -> Tensor:
    """``x`` divided by its Euclidean norm along an axis; the norm counts as no less than ``eps``.

    >>> import tinyseq as ts
    >>> f"{normalize(ts.tensor([[3.0, 4.0]])).tolist()[0][0]:.2f}"
    '0.60'
    """
    x = as_tensor(x)
    return x / _f.norm(x, axis, keepdims=True).clip(eps)


def cosine_similarity(x: Operand, y: Operand, axis: int = 1, eps: float = 1e-8) -> Tensor:
    """``x . y / (|x| |y|)`` along an axis; each norm counts as no less than ``eps``.

    >>> import tinyseq as ts
    >>> cosine_similarity(ts.tensor([[1.0, 0.0]]), ts.tensor([[0.0, 2.0]])).tolist()
    [0.0]
    """
    return _f.cosine_similarity(x, y, axis, eps)
