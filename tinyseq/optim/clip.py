"""Gradients kept within bounds, between ``backward()`` and ``step()``."""

from __future__ import annotations

import math
from typing import Any

from tinyseq.errors import NonFiniteError
from tinyseq.functions import stack
from tinyseq.optim.optimizer import named_parameters
from tinyseq.tape import no_grad
from tinyseq.tensor import Tensor, as_tensor, result_dtype

__all__ = ["clip_grad_norm", "clip_grad_value"]


def _with_gradient(params: Any) -> list[Tensor]:
    listed = [params] if isinstance(params, Tensor) else list(params)
    return [p for _, p in named_parameters(listed) if p.grad is not None] if listed else []


def clip_grad_norm(params: Any, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients by one factor so that their norm, taken together, is at most ``max_norm`` (Pascanu et al. 2013).

    The factor is ``min(1, max_norm / (norm + 1e-6))``, as in PyTorch.

    Args:
        params: parameters, or (name, parameter) pairs, or one parameter; those without a gradient count for nothing.
        max_norm: the largest norm that is let through.
        norm_type: p of the p-norm; ``math.inf`` for the largest absolute value.
        error_if_nonfinite: raise where the norm is NaN or infinite; otherwise it makes every gradient NaN or zero.

    Returns:
        The norm before scaling, a tensor of one number.

    Raises:
        NonFiniteError: the norm is not finite and ``error_if_nonfinite`` is set; the gradients are left as they were.
        ValueError: ``max_norm`` is negative or ``norm_type`` is not positive.

    >>> import tinyseq as ts
    >>> p = ts.Parameter([3.0, 4.0])
    >>> (p * p / 2).sum().backward()
    >>> clip_grad_norm([p], 1.0).item(), p.grad.tolist()
    (5.0, [0.6, 0.8])
    """
    if not max_norm >= 0 or not norm_type > 0:
        raise ValueError(f"clip_grad_norm needs max_norm >= 0 and norm_type > 0, got {max_norm} and {norm_type}")
    clipped = _with_gradient(params)
    if not clipped:
        return as_tensor(0.0)
    with no_grad():
        gradients: list[Tensor] = [p.grad.detach() for p in clipped if p.grad is not None]
        dtype = result_dtype(*gradients)
        total = _norm(stack([_norm(g, norm_type).astype(dtype) for g in gradients]), norm_type)
        if error_if_nonfinite and not math.isfinite(total.item()):
            raise NonFiniteError(
                f"the gradients' norm is {total.item()}; run the step under ts.detect_anomaly() to see where it arose"
            )
        factor = (max_norm / (total + 1e-6)).clip(high=1.0)
        for p, g in zip(clipped, gradients, strict=True):
            p.grad = g * factor.astype(g.dtype)
    return total


def _norm(x: Tensor, p: float) -> Tensor:
    if x.size == 0:
        return x.sum()
    if p == 2:
        return (x * x).sum().sqrt()
    size = x.abs()
    if p == math.inf:
        return size.max()
    return size.sum() if p == 1 else (size**p).sum() ** (1 / p)


def clip_grad_value(params: Any, clip_value: float) -> None:
    """Cut every element of every gradient to the interval from ``-clip_value`` to ``clip_value``.

    Raises:
        ValueError: ``clip_value`` is negative.

    >>> import tinyseq as ts
    >>> p = ts.Parameter([3.0, -0.5])
    >>> (p * p).sum().backward()
    >>> clip_grad_value([p], 2.0)
    >>> p.grad.tolist()
    [2.0, -1.0]
    """
    if not clip_value >= 0:
        raise ValueError(f"clip_grad_value needs clip_value >= 0, got {clip_value}")
    with no_grad():
        for p in _with_gradient(params):
            if p.grad is not None:
                p.grad = p.grad.detach().clip(-clip_value, clip_value)
