"""Scaled dot-product attention (Vaswani et al. 2017) as functions, and the softmax with a mask that all attention shares.

Letters: B rows of a batch, L queries, S keys, E features, V features of a value; "..." are leading axes that broadcast.
"""

from __future__ import annotations

import math

import numpy as np

from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import dropout, matmul, repeat, softmax, where
from tinyseq.fused import fused
from tinyseq.tensor import Operand, Tensor, _floating, as_tensor, bool_

__all__ = ["attention_weights", "causal_mask", "masked_softmax", "scaled_dot_product_attention"]


def masked_softmax(scores: Operand, mask: Operand) -> Tensor:
    """``softmax`` over the last axis of what the mask leaves; zeros elsewhere, without overflow.

    A row in which the mask leaves nothing is zeros, and so is its gradient.

    Args:
        scores: (..., S).
        mask: booleans that broadcast to the scores, True where a score counts.

    Raises:
        DTypeError: a mask that is not boolean.
        ShapeError: a mask that does not broadcast to the scores.

    >>> import tinyseq as ts
    >>> masked_softmax(ts.tensor([[1.0, 1.0, 9.0], [1.0, 2.0, 3.0]]), ts.tensor([[True, True, False], [False] * 3])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    scores, mask = _floating(as_tensor(scores)), as_tensor(mask)
    if mask.dtype != bool_:
        raise DTypeError(f"masked_softmax takes booleans, True where a score counts, got dtype {mask.dtype}")
    try:
        fits = np.broadcast_shapes(mask.shape, scores.shape) == scores.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"a mask of shape {mask.shape} does not broadcast to the attention scores of shape {scores.shape}")
    # A finite number, since a row of nothing but -inf would be inf - inf; half of the lowest, so that none overflows.
    hidden = float(np.finfo(scores.dtype).min) / 2 if scores.dtype.kind == "f" else -1e38  # bfloat16 reaches as far as float32
    return where(mask, softmax(where(mask, scores, hidden)), 0.0)


def causal_mask(queries: int, keys: int | None = None, start: int = 0) -> Tensor:
    """(L, S) booleans, True where key j is not after query i, which is at position ``start + i``: ``j <= start + i``.

    >>> causal_mask(2, 3).tolist()
    [[True, False, False], [True, True, False]]
    """
    return as_tensor(np.tri(queries, keys, start, dtype=bool))


def attention_weights(
    query: Operand,
    key: Operand,
    attn_mask: Operand | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """``softmax(scale query key^T + mask)``, how much each query looks at each key: (..., L, S).

    The arguments are those of :func:`scaled_dot_product_attention`.

    >>> import tinyseq as ts
    >>> attention_weights(ts.zeros((2, 4)), ts.ones((2, 4)), is_causal=True).tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    query, key = as_tensor(query), as_tensor(key)
    if query.ndim < 2 or key.ndim < 2 or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            f"attention takes queries (..., L, E) and keys (..., S, E) with one E, got shapes {query.shape} and {key.shape}"
        )
    if not key.shape[-2]:
        raise ShapeError(f"attention needs at least one key to look at, got keys of shape {key.shape}")
    size = query.shape[-1]
    scores = matmul(query * (1 / math.sqrt(size or 1) if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        if attn_mask is not None:
            raise ValueError("attention takes attn_mask or is_causal=True, not both; put the causal part into the mask")
        # Every query sees the first key, so there is no empty row to look out for, which saves two passes over the scores.
        return softmax(scores + where(causal_mask(*scores.shape[-2:]), 0.0, -math.inf).astype(scores.dtype))
    if attn_mask is None:
        return softmax(scores)
    mask = as_tensor(attn_mask)
    if mask.dtype == bool_:
        return masked_softmax(scores, mask)
    if mask.dtype.kind not in "fV":
        raise DTypeError(f"attn_mask is boolean, or floating and added to the scores, got dtype {mask.dtype}")
    mask = mask.astype(scores.dtype)
    hidden = mask == -math.inf
    return masked_softmax(scores + where(hidden, 0.0, mask), ~hidden)


@fused("attention")
def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, is_causal: bool, scale: float | None
) -> Tensor:
    return matmul(attention_weights(query, key, mask, is_causal, scale), value)


def scaled_dot_product_attention(
    query: Operand,
    key: Operand,
    value: Operand,
    attn_mask: Operand | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(scale query key^T + mask) value``: (..., L, V) (Vaswani et al. 2017).

    A query whose keys are all masked gets zeros, and gives no gradient. A backend may have a kernel that never holds all
    (L, S) scores; dropout, and a mask that asks for a gradient, need them.

    Args:
        query: (..., L, E).
        key: (..., S, E).
        value: (..., S, V).
        attn_mask: broadcasts to (..., L, S): booleans, True where a query may look; or numbers that are added to the
            scores, -inf where it may not.
        dropout_p: the probability of dropping a weight. It acts whenever it is not 0: give 0 in evaluation.
        is_causal: query i looks at keys 0 to i only.
        scale: what the products are multiplied by; None is 1 / sqrt(E).
        enable_gqa: key and value have fewer heads (axis -3) than the query, each for several of them (Ainslie et al. 2023).

    Raises:
        ShapeError: shapes that do not fit, or no keys at all.
        DTypeError: a mask of integers.
        ValueError: both ``attn_mask`` and ``is_causal``, or a probability outside [0, 1].

    >>> import tinyseq as ts
    >>> keys, values = ts.tensor([[1.0, 0.0], [0.0, 1.0]]), ts.tensor([[1.0], [3.0]])
    >>> scaled_dot_product_attention(ts.zeros((1, 2)), keys, values).tolist()
    [[2.0]]
    """
    query, key, value = as_tensor(query), as_tensor(key), as_tensor(value)
    if value.ndim < 2 or value.shape[-2] != key.shape[-2]:
        raise ShapeError(f"attention needs a value for each key, got keys of shape {key.shape} and values of {value.shape}")
    if enable_gqa:
        key, value = (_for_all_heads(x, query) for x in (key, value))
    mask = None if attn_mask is None else as_tensor(attn_mask)
    if dropout_p == 0 and (mask is None or mask.node is None):
        if mask is not None and mask.dtype.kind in "fV":
            mask = mask.astype(query.dtype)
        return _attention(query, key, value, mask, is_causal=is_causal, scale=scale)
    weights = attention_weights(query, key, mask, is_causal, scale)
    return matmul(dropout(weights, dropout_p), value)


def _for_all_heads(x: Tensor, query: Tensor) -> Tensor:
    if x.ndim < 3 or query.ndim < 3 or not x.shape[-3] or query.shape[-3] % x.shape[-3]:
        raise ShapeError(f"grouped attention divides the query's heads among those of key and value: {query.shape}, {x.shape}")
    return repeat(x, query.shape[-3] // x.shape[-3], -3)
