"""The usual functions under PyTorch's names and argument order; axes are called ``axis``.

Most are those of ``tinyseq.functions``; here stand the few whose arguments PyTorch orders in another way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinyseq import functions as _f
from tinyseq.errors import ShapeError
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
from tinyseq.tensor import Operand, Tensor, as_tensor

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_similarity",
    "cross_entropy",
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
    "mse_loss",
    "nll_loss",
    "normalize",
    "one_hot",
    "pad",
    "relu",
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
