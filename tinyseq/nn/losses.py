"""The losses of ``tinyseq.nn.functional`` with their settings held in a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyseq import functions
from tinyseq.nn import functional
from tinyseq.nn.module import Module
from tinyseq.tensor import Operand, Tensor, as_tensor

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CTCLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "QuantileLoss",
    "SequenceCrossEntropyLoss",
    "SmoothL1Loss",
]


def _constant(weight: Operand | None) -> Tensor | None:
    return None if weight is None else as_tensor(weight)


class CrossEntropyLoss(Module):
    """:func:`tinyseq.cross_entropy` of logits (N, C, ...) and classes (N, ...) or probabilities (N, C, ...).

    >>> import tinyseq as ts
    >>> f"{ts.nn.CrossEntropyLoss()(ts.tensor([[0.0, 0.0]]), ts.tensor([1])).item():.4f}"
    '0.6931'
    """

    def __init__(
        self,
        weight: Operand | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        self.weight = _constant(weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Operand, targets: Operand) -> Tensor:
        """The loss."""
        settings = (self.weight, self.ignore_index, self.reduction, self.label_smoothing)
        return functions.cross_entropy(logits, targets, *settings)


class NLLLoss(Module):
    """:func:`tinyseq.nll_loss` of log-probabilities (N, C, ...) and classes (N, ...)."""

    def __init__(self, weight: Operand | None = None, ignore_index: int = -100, reduction: str = "mean") -> None:
        self.weight = _constant(weight)
        self.ignore_index = ignore_index
        self.reduction = reduction

    def __call__(self, logp: Operand, targets: Operand) -> Tensor:
        """The loss."""
        return functions.nll_loss(logp, targets, self.weight, self.ignore_index, self.reduction)


class MSELoss(Module):
    """:func:`tinyseq.mse_loss`: squared differences.

    >>> import tinyseq as ts
    >>> ts.nn.MSELoss()(ts.tensor([1.0, 2.0]), ts.tensor([1.0, 4.0])).item()
    2.0
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def __call__(self, x: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.mse_loss(x, target, self.reduction)


class L1Loss(Module):
    """:func:`tinyseq.l1_loss`: absolute differences."""

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def __call__(self, x: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.l1_loss(x, target, self.reduction)


class HuberLoss(Module):
    """:func:`tinyseq.huber_loss`: squared near zero, absolute from ``delta`` on."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        self.reduction = reduction
        self.delta = delta

    def __call__(self, x: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.huber_loss(x, target, delta=self.delta, reduction=self.reduction)


class SmoothL1Loss(Module):
    """:func:`tinyseq.smooth_l1_loss`: the Huber loss divided by ``beta``."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        self.reduction = reduction
        self.beta = beta

    def __call__(self, x: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.smooth_l1_loss(x, target, beta=self.beta, reduction=self.reduction)


class BCELoss(Module):
    """:func:`tinyseq.binary_cross_entropy` of probabilities and targets of one shape."""

    def __init__(self, weight: Operand | None = None, reduction: str = "mean") -> None:
        self.weight = _constant(weight)
        self.reduction = reduction

    def __call__(self, p: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.binary_cross_entropy(p, target, self.weight, self.reduction)


class BCEWithLogitsLoss(Module):
    """:func:`tinyseq.binary_cross_entropy_with_logits` of logits and targets of one shape."""

    def __init__(self, weight: Operand | None = None, reduction: str = "mean", pos_weight: Operand | None = None) -> None:
        self.weight = _constant(weight)
        self.reduction = reduction
        self.pos_weight = _constant(pos_weight)

    def __call__(self, x: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.binary_cross_entropy_with_logits(x, target, self.weight, self.reduction, self.pos_weight)


class KLDivLoss(Module):
    """:func:`tinyseq.kl_div` of log-probabilities and probabilities of one shape."""

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        self.reduction = reduction
        self.log_target = log_target

    def __call__(self, logp: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functions.kl_div(logp, target, self.reduction, self.log_target)


class SequenceCrossEntropyLoss(Module):
    """:func:`tinyseq.nn.functional.sequence_cross_entropy` of logits (T, B, C), classes (T, B) and lengths (B,).

    >>> import tinyseq as ts
    >>> loss = ts.nn.SequenceCrossEntropyLoss(reduction="rows")
    >>> [f"{row:.4f}" for row in loss(ts.zeros((3, 2, 4)), ts.tensor([[0, 1]] * 3), [1, 3]).tolist()]
    ['1.3863', '4.1589']
    """

    def __init__(
        self,
        weight: Operand | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        batch_first: bool = False,
    ) -> None:
        self.weight = _constant(weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.batch_first = batch_first

    def __call__(self, logits: Operand, targets: Operand, lengths: Any = None) -> Tensor:
        """The loss."""
        settings = (self.weight, self.ignore_index, self.reduction, self.label_smoothing, self.batch_first)
        return functional.sequence_cross_entropy(logits, targets, lengths, *settings)


class CTCLoss(Module):
    """:func:`tinyseq.nn.functional.ctc_loss` of log-probabilities (T, N, C), targets and their lengths.

    >>> import tinyseq as ts
    >>> f"{ts.nn.CTCLoss()(ts.log_softmax(ts.zeros((1, 1, 4))), ts.tensor([[2]]), [1], [1]).item():.4f}"
    '1.3863'
    """

    def __init__(self, blank: int = 0, reduction: str = "mean", zero_infinity: bool = False) -> None:
        self.blank = blank
        self.reduction = reduction
        self.zero_infinity = zero_infinity

    def __call__(self, log_probs: Operand, targets: Operand, input_lengths: Any, target_lengths: Any) -> Tensor:
        """The loss."""
        settings = (self.blank, self.reduction, self.zero_infinity)
        return functional.ctc_loss(log_probs, targets, input_lengths, target_lengths, *settings)


class QuantileLoss(Module):
    """:func:`tinyseq.nn.functional.quantile_loss` of predictions (..., Q) and targets (...)."""

    def __init__(self, quantiles: Sequence[float], reduction: str = "mean") -> None:
        self.quantiles = tuple(quantiles)
        self.reduction = reduction

    def __call__(self, x: Operand, target: Operand) -> Tensor:
        """The loss."""
        return functional.quantile_loss(x, target, self.quantiles, self.reduction)
