"""Attention: a query looks at the vectors of a memory and gets their weighted mean.

Letters: B rows of a batch, L queries, S vectors of the memory, Q features of a query, K of a key, V of a value, A
attention units, E embedding features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import numpy as np

from tinyseq import random
from tinyseq.creation import zeros
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import broadcast_to, chunk, concatenate, dropout, linear, matmul, pad, softmax, tanh, where
from tinyseq.nn import init
from tinyseq.nn.cells import checked_probability
from tinyseq.nn.dot_product import attention_weights, causal_mask, masked_softmax, scaled_dot_product_attention
from tinyseq.nn.layers import Linear
from tinyseq.nn.module import Module
from tinyseq.scan import checked_lengths
from tinyseq.tensor import Operand, Parameter, Tensor, as_tensor, bool_, float32

__all__ = ["AdditiveAttention", "AttentionCache", "DotProductAttention", "GeneralAttention", "Memory", "MultiheadAttention"]


class Memory(NamedTuple):
    """What an attention looks at, made ready once and read at every step; the batch is the first axis of all.

    Attributes:
        keys: (B, S, A), as the scores want them.
        values: (B, S, V), whose weighted mean is the context.
        mask: (B, S) booleans, True where there is something to look at; None for everywhere.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class _Attention(Module):
    """A score for each pair of a query and a key; the rest is common to all.

    ``attention(query, keys)`` makes a memory and reads it. Where many steps read one memory, make it once with
    ``remember`` and call ``read`` at each: then what depends on the keys alone is computed once.
    """

    query_size: int | None = None  # where it is fixed
    key_size: int | None = None

    def project(self, keys: Tensor) -> Tensor:
        """The part of the scores that depends on the keys alone."""
        return keys

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """(..., Q) and the projected keys (..., S, A) to (..., S); several queries (..., L, Q) to (..., L, S)."""
        raise NotImplementedError

    def remember(
        self, keys: Operand, values: Operand | None = None, mask: Operand | None = None, lengths: Any = None
    ) -> Memory:
        """A memory to read from.

        Args:
            keys: (B, S, K), or (S, K) without a batch.
            values: (B, S, V); None takes the keys.
            mask: (B, S) booleans, True where there is something to look at.
            lengths: (B,) integers, how many vectors of each row there are: another way to say ``mask``.

        Raises:
            ShapeError: shapes that do not fit, or no keys at all.
            DTypeError: a mask that is not boolean, lengths that are no integers.
            ValueError: both a mask and lengths.
        """
        keys = as_tensor(keys)
        kind = type(self).__name__
        if keys.ndim < 2 or not keys.shape[-2] or self.key_size not in (None, keys.shape[-1]):
            size = "K" if self.key_size is None else self.key_size
            raise ShapeError(f"{kind} takes keys (B, S, {size}) with at least one in S, got shape {keys.shape}")
        values = keys if values is None else as_tensor(values)
        if values.shape[:-1] != keys.shape[:-1]:
            raise ShapeError(f"{kind} needs a value for each key, got keys of shape {keys.shape} and values of {values.shape}")
        if lengths is not None:
            if mask is not None:
                raise ValueError(f"{kind} takes a mask or lengths, not both")
            mask = np.arange(keys.shape[-2]) < checked_lengths(lengths, keys.shape[-2], kind)[:, None]
        if mask is not None:
            mask = as_tensor(mask)
            if mask.dtype != bool_:
                raise DTypeError(f"{kind} takes a boolean mask, True where there is something to look at, got {mask.dtype}")
            if mask.shape != keys.shape[:-1]:
                raise ShapeError(f"{kind} needs a mask of shape {keys.shape[:-1]} for these keys, got {mask.shape}")
        return Memory(self.project(keys), values, mask)

    def read(self, query: Operand, memory: Memory) -> tuple[Tensor, Tensor]:
        """The context, which is the mean of the values by weight, and the weights.

        Args:
            query: (B, Q), or several (B, L, Q).
            memory: what ``remember`` gave.

        Returns:
            (B, V) and (B, S), for several queries (B, L, V) and (B, L, S). Weights sum to one, but where the memory's
            mask leaves nothing to look at, weights and context are zeros, and give no gradient.

        Raises:
            ShapeError: a query that does not fit.
        """
        query = as_tensor(query)
        keys, values, mask = memory
        batch = keys.shape[:-2]
        if (
            not query.ndim
            or query.shape[:-1] not in (batch, (*batch, *query.shape[-2:-1]))
            or self.query_size not in (None, query.shape[-1])
        ):
            size = keys.shape[-1] if self.query_size is None else self.query_size
            raise ShapeError(
                f"{type(self).__name__} takes queries {(*batch, size)} or {(*batch, 'L', size)} for this memory, "
                f"got shape {query.shape}"
            )
        scores = self.scores(query, keys)
        if query.ndim == keys.ndim:
            weights = softmax(scores) if mask is None else masked_softmax(scores, mask.unsqueeze(-2))
            return matmul(weights, values), weights
        weights = softmax(scores) if mask is None else masked_softmax(scores, mask)
        return matmul(weights.unsqueeze(-2), values).squeeze(-2), weights

    def __call__(
        self,
        query: Operand,
        keys: Operand,
        values: Operand | None = None,
        mask: Operand | None = None,
        lengths: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """``read(query, remember(keys, values, mask, lengths))``."""
        return self.read(query, self.remember(keys, values, mask, lengths))


class AdditiveAttention(_Attention):
    """Additive attention (Bahdanau et al. 2015): a small network scores each pair of a query and a key.

    For the query s (a decoder's state) and the memory h_1 ... h_S (an encoder's outputs)::

        e_j = v . tanh(W s + U h_j + b)
        a_j = exp(e_j) / sum_k exp(e_k)
        c   = sum_j a_j h_j

    Luong et al. (2015) call this score "concat".

    Args:
        query_size: Q.
        key_size: K.
        hidden_size: A, the units of the network.
        bias: whether there is a b; the paper has none.
        dtype: of the weights.

    The weights W, U and v are ``query.weight`` (A, Q), ``key.weight`` (A, K) and ``energy`` (A,); b is ``key.bias``.

    >>> import tinyseq as ts
    >>> attention = ts.nn.AdditiveAttention(4, 3, 8)
    >>> context, weights = attention(ts.zeros((2, 4)), ts.ones((2, 5, 3)), lengths=[5, 2])
    >>> context.shape, [f"{weight:.2f}" for weight in weights.tolist()[1]]
    ((2, 3), ['0.50', '0.50', '0.00', '0.00', '0.00'])
    """

    def __init__(self, query_size: int, key_size: int, hidden_size: int, bias: bool = False, dtype: Any = float32) -> None:
        if hidden_size < 1:
            raise ShapeError(f"AdditiveAttention needs hidden_size >= 1, got {hidden_size}")
        self.query_size = query_size
        self.key_size = key_size
        self.hidden_size = hidden_size
        self.query = Linear(query_size, hidden_size, bias=False, dtype=dtype)
        self.key = Linear(key_size, hidden_size, bias=bias, dtype=dtype)
        bound = 1 / math.sqrt(hidden_size)
        self.energy = Parameter(random.uniform((hidden_size,), -bound, bound, dtype))

    def project(self, keys: Tensor) -> Tensor:
        """``U h_j + b``."""
        return self.key(keys)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """``v . tanh(W s + keys_j)``."""
        keys = keys.unsqueeze(-3) if query.ndim == keys.ndim else keys
        return matmul(tanh(self.query(query).unsqueeze(-2) + keys), self.energy)


class DotProductAttention(_Attention):
    """Attention by the product of query and key, "dot" of Luong et al. (2015): ``e_j = scale (s . h_j)``.

    Args:
        scale: 1 in the paper; None is 1 / sqrt(A) (Vaswani et al. 2017), which keeps the scores of large vectors small.

    >>> import tinyseq as ts
    >>> memory = ts.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> context, weights = ts.nn.DotProductAttention()(ts.tensor([[9.0, 0.0]]), memory)
    >>> [f"{weight:.3f}" for weight in weights.tolist()[0]]
    ['1.000', '0.000']
    """

    def __init__(self, scale: float | None = 1.0) -> None:
        self.scale = scale

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """``scale (s . keys_j)``."""
        if query.shape[-1] != keys.shape[-1]:
            raise ShapeError(
                f"{type(self).__name__} needs queries and keys of one size, got {query.shape[-1]} and {keys.shape[-1]}; "
                "GeneralAttention takes different ones"
            )
        scale = 1 / math.sqrt(query.shape[-1] or 1) if self.scale is None else self.scale
        query = query if scale == 1 else query * scale
        if query.ndim == keys.ndim:
            return matmul(query, keys.transpose(-2, -1))
        return matmul(keys, query.unsqueeze(-1)).squeeze(-1)


class GeneralAttention(DotProductAttention):
    """Attention by a product with a learned matrix, "general" of Luong et al. (2015): ``e_j = scale (s . W h_j)``.

    W is ``key.weight`` (Q, K).

    Args:
        query_size: Q.
        key_size: K.
        scale: 1 in the paper; None is 1 / sqrt(Q).
        dtype: of the weight.

    >>> import tinyseq as ts
    >>> attention = ts.nn.GeneralAttention(4, 3)
    >>> context, weights = attention(ts.zeros((2, 6, 4)), ts.ones((2, 5, 3)))
    >>> context.shape, weights.shape
    ((2, 6, 3), (2, 6, 5))
    """

    def __init__(self, query_size: int, key_size: int, scale: float | None = 1.0, dtype: Any = float32) -> None:
        super().__init__(scale)
        self.query_size = query_size
        self.key_size = key_size
        self.key = Linear(key_size, query_size, bias=False, dtype=dtype)

    def project(self, keys: Tensor) -> Tensor:
        """``W h_j``."""
        return self.key(keys)


class AttentionCache:
    """The projected keys and values that :class:`MultiheadAttention` has seen of a sequence that comes in pieces.

    A call with the cache projects its own keys and values alone, adds them, and looks at all: T steps one by one then take
    T projections and not T^2 / 2 (and a query attends to no more than it would in the whole sequence).

    Args:
        fixed: whether the first call's keys and values are all there will be, as with an encoder's output. Later calls
            then do not look at theirs.

    Attributes:
        keys: (B, H, S, E / H), or None before the first call.
        values: the same of the values.
    """

    def __init__(self, fixed: bool = False) -> None:
        self.fixed = fixed
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        """S, the steps seen so far."""
        return 0 if self.keys is None else self.keys.shape[-2]

    def add(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, these at the end.

        Raises:
            ShapeError: they are of another batch.
        """
        if self.keys is not None and self.values is not None:
            if keys.shape[:2] != self.keys.shape[:2]:
                raise ShapeError(f"the cache is of {self.keys.shape[0]} rows, got keys and values of {keys.shape[0]}")
            keys, values = concatenate([self.keys, keys], -2), concatenate([self.values, values], -2)
        self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Operand) -> None:
        """Keep these rows of the batch, in this order: beams that go on, or sequences that are not done.

        Args:
            rows: (N,) integers.
        """
        if self.keys is not None and self.values is not None:
            rows = as_tensor(rows)
            self.keys, self.values = self.keys[rows], self.values[rows]


class MultiheadAttention(Module):
    """Several attentions side by side, each on its own projection of the input (Vaswani et al. 2017).

    With H heads of size E / H::

        head_i = softmax((W_q,i x_q) (W_k,i x_k)^T / sqrt(E / H) + mask) (W_v,i x_v)
        y      = W_o [head_1; ...; head_H] + b_o

    Arguments, names of weights, masks and results are PyTorch's. Two things are better defined: a query whose keys are
    all masked looks at nothing, so its heads are zeros and its weights too (with ``need_weights`` PyTorch gives NaN); and
    ``is_causal`` masks by itself, while PyTorch wants ``attn_mask`` beside it.

    Args:
        embed_dim: E.
        num_heads: H, a divisor of E.
        dropout: the probability of dropping a weight, in training.
        bias: whether the projections have biases.
        add_bias_kv: append a learned vector to keys and values.
        add_zero_attn: append zeros to keys and values, so that a query may look at nothing.
        kdim, vdim: the features of key and value; None is E.
        batch_first: whether inputs and outputs are (B, L, E) and not (L, B, E).
        dtype: of the weights.

    Raises:
        ShapeError: E is not a positive multiple of H.
        ValueError: a dropout probability outside [0, 1].

    >>> import tinyseq as ts
    >>> attention = ts.nn.MultiheadAttention(8, num_heads=2)
    >>> x = ts.zeros((5, 3, 8))
    >>> output, weights = attention(x, x, x, is_causal=True)
    >>> output.shape, weights[0, 1].tolist()
    ((5, 3, 8), [0.5, 0.5, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        dtype: Any = float32,
    ) -> None:
        if embed_dim < 1 or num_heads < 1 or embed_dim % num_heads:
            raise ShapeError(f"MultiheadAttention divides embed_dim among num_heads, got {embed_dim} for {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = checked_probability(dropout, "dropout")
        self.add_zero_attn = add_zero_attn
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first = batch_first
        self.in_proj_weight = self.q_proj_weight = self.k_proj_weight = self.v_proj_weight = None
        if self.kdim == self.vdim == embed_dim:
            self.in_proj_weight = _started((3 * embed_dim, embed_dim), dtype)
        else:
            self.q_proj_weight = _started((embed_dim, embed_dim), dtype)
            self.k_proj_weight = _started((embed_dim, self.kdim), dtype)
            self.v_proj_weight = _started((embed_dim, self.vdim), dtype)
        self.in_proj_bias = Parameter(zeros(3 * embed_dim, dtype)) if bias else None
        self.bias_k = self.bias_v = None
        if add_bias_kv:
            self.bias_k = _started((1, 1, embed_dim), dtype, init.xavier_normal_)
            self.bias_v = _started((1, 1, embed_dim), dtype, init.xavier_normal_)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, dtype=dtype)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)

    def remember(self, key: Operand, value: Operand | None = None) -> AttentionCache:
        """A memory's keys and values, projected once for all calls that get the cache; these may give None for both.

        Args:
            key: (S, B, kdim), or (B, S, kdim) with ``batch_first``, or (S, kdim) without a batch.
            value: (S, B, vdim), in the layout of the key; None takes the key.

        Raises:
            ShapeError: shapes that do not fit.
            ValueError: a module with ``add_bias_kv`` or ``add_zero_attn``.

        >>> import tinyseq as ts
        >>> attention, query, memory = ts.nn.MultiheadAttention(8, 2), ts.ones((1, 3, 8)), ts.random.randn((5, 3, 8))
        >>> cache = attention.remember(memory)
        >>> ts.allclose(attention(query, None, None, cache=cache)[0], attention(query, memory, memory)[0])
        True
        """
        self._check_cacheable()
        same = value is None or value is key
        key = as_tensor(key)
        value = key if same else as_tensor(value)
        self._check(None, key, value)
        keys, values = self._key_and_value(self._rows_first(key), self._rows_first(value), same)
        cache = AttentionCache(fixed=True)
        cache.add(self._divided(keys), self._divided(values))
        return cache

    def __call__(
        self,
        query: Operand,
        key: Operand | None,
        value: Operand | None,
        key_padding_mask: Operand | None = None,
        need_weights: bool = True,
        attn_mask: Operand | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        cache: AttentionCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and the weights if they are wanted.

        Args:
            query: (L, B, E), or (B, L, E) with ``batch_first``, or (L, E) without a batch.
            key: (S, B, kdim), in the layout of the query; None with a fixed cache that holds the memory.
            value: (S, B, vdim), in the layout of the query; None likewise.
            key_padding_mask: (B, S), without a batch (S,): booleans, True where a key is padding; or numbers that are
                added to its scores.
            need_weights: whether the weights are returned.
            attn_mask: (L, S) or (B H, L, S): booleans, True where a query may *not* look; or numbers that are added to
                the scores.
            average_attn_weights: whether the weights are the mean over the heads.
            is_causal: query i looks at keys 0 to i only, besides what the masks say; with a cache, query and keys count
                from what it held before.
            cache: of the sequence so far, to which key and value are added: S in the masks' shapes is then all of it; or
                of a memory, see :meth:`remember`. For a sequence without a batch, too.

        Returns:
            The output in the layout of the query, and the weights (B, L, S), or (B, H, L, S) without averaging, or None.
            In training the weights are those after dropout.

        Raises:
            ShapeError: shapes that do not fit.
            DTypeError: a mask of integers.
            ValueError: a cache together with ``add_bias_kv`` or ``add_zero_attn``, a fixed one with ``is_causal``; no key
                or no value, and no fixed cache that holds them.
        """
        if is_causal and cache is not None and cache.fixed:
            raise ValueError("is_causal does not know where in a fixed memory a query stands; give attn_mask instead")
        heads, one = self.num_heads, query is key is value
        query = as_tensor(query)
        key, value = (query, query) if one else (key, value)
        batched = query.ndim == 3
        before = 0 if cache is None or cache.fixed else len(cache)
        q, k, v = self._heads(query, key, value, cache)
        batch, _, queries, _ = q.shape
        # Alone, and with no keys added, it needs no mask: attention by tiles skips what it hides.
        causal_alone = is_causal and key_padding_mask is attn_mask is self.bias_k is None and not self.add_zero_attn
        causal_alone = causal_alone and not before
        added = int(self.bias_k is not None) + int(self.add_zero_attn)
        shape = (batch, heads, queries, k.shape[-2] - added)
        start = before if is_causal and not causal_alone else None
        mask = self._mask(key_padding_mask, attn_mask, start, shape, batched)
        if mask is not None and added:
            mask = pad(mask, [(0, added)], value=mask.dtype == bool_)

        p = self.dropout if self.training else 0.0
        if need_weights:
            weights = dropout(attention_weights(q, k, mask, causal_alone), p)
            y = matmul(weights, v)
        else:
            y = scaled_dot_product_attention(q, k, v, mask, p, causal_alone)
        output = self.out_proj(y.transpose(1, 2).reshape(batch, queries, self.embed_dim))
        if not batched:
            output = output.squeeze(0)
        elif not self.batch_first:
            output = output.transpose(0, 1)
        if not need_weights:
            return output, None
        weights = weights.mean(1) if average_attn_weights else weights
        return output, weights if batched else weights.squeeze(0)

    def _check(self, query: Tensor | None, key: Tensor | None, value: Tensor | None) -> None:
        """The shapes of what is given."""
        batch_axis = 0 if self.batch_first else 1
        sizes = (self.embed_dim, self.kdim, self.vdim)
        given = [(x, size) for x, size in zip((query, key, value), sizes, strict=True) if x is not None]
        shapes = [x.shape for x, _ in given]
        if (
            any(len(shape) not in (2, 3) or shape[-1] != size for shape, (_, size) in zip(shapes, given, strict=True))
            or len({len(shape) for shape in shapes}) > 1
            or (key is not None and value is not None and key.shape[:-1] != value.shape[:-1])
            or (len(shapes[0]) == 3 and len({shape[batch_axis] for shape in shapes}) > 1)
        ):
            layout = "(B, L, E)" if self.batch_first else "(L, B, E)"
            raise ShapeError(
                f"MultiheadAttention takes query, key and value {layout} or (L, E) with E = {sizes[0]}, {sizes[1]} and "
                f"{sizes[2]}, the last two of one length, got shapes {', '.join(map(str, shapes))}"
            )
        if any(0 in shape[:-1] for shape in shapes):
            raise ShapeError(
                "MultiheadAttention takes at least one row, one query and one key, got shapes " + ", ".join(map(str, shapes))
            )

    def _check_cacheable(self) -> None:
        if self.bias_k is not None or self.add_zero_attn:
            raise ValueError("a cache holds the sequence alone; make MultiheadAttention without add_bias_kv and add_zero_attn")

    def _heads(
        self, query: Tensor, key: Operand | None, value: Operand | None, cache: AttentionCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Projected queries, and all keys and values to look at: (B, H, L or S, E / H)."""
        if cache is not None:
            self._check_cacheable()
            if cache.fixed and cache.keys is not None and cache.values is not None:
                self._check(query, None, None)
                q = self._divided(self._query(self._rows_first(query)))
                if len(cache.keys) != len(q):
                    raise ShapeError(f"the cache is of {len(cache.keys)} rows, got a query of {len(q)}")
                return q, cache.keys, cache.values
        if key is None or value is None:
            raise ValueError("MultiheadAttention needs key and value, or a cache that holds them: one made by remember")
        same = key is value
        key = as_tensor(key)
        value = key if same else as_tensor(value)
        self._check(query, key, value)
        one = same and key is query
        query, key, value = (self._rows_first(x) for x in (query, key, value))
        if one and self.in_proj_weight is not None:
            q, k, v = chunk(linear(query, self.in_proj_weight, self.in_proj_bias), 3, -1)
        else:
            q, (k, v) = self._query(query), self._key_and_value(key, value, same)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                concatenate([x, broadcast_to(bias, (len(x), 1, self.embed_dim))], 1)
                for x, bias in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (pad(x, [(0, 1), (0, 0)]) for x in (k, v))
        k, v = self._divided(k), self._divided(v)
        if cache is not None:
            k, v = cache.add(k, v)
        return self._divided(q), k, v

    def _rows_first(self, x: Tensor) -> Tensor:
        """(B, L, E), whatever the layout."""
        if x.ndim == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _divided(self, x: Tensor) -> Tensor:
        """(B, L, E) to (B, H, L, E / H)."""
        return x.reshape(len(x), -1, self.num_heads, self.embed_dim // self.num_heads).transpose(1, 2)

    def _query(self, query: Tensor) -> Tensor:
        """Times its weight."""
        size, bias = self.embed_dim, self.in_proj_bias
        weight = self.q_proj_weight if self.in_proj_weight is None else self.in_proj_weight[:size]
        return linear(query, weight, None if bias is None else bias[:size])  # type: ignore[arg-type]

    def _key_and_value(self, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, ...]:
        """Times their weights; where they are one and the same, as one product."""
        size, weight = self.embed_dim, self.in_proj_weight
        bias = None if self.in_proj_bias is None else self.in_proj_bias[size:]
        if weight is not None and same:
            return tuple(chunk(linear(key, weight[size:], bias), 2, -1))
        weights = (self.k_proj_weight, self.v_proj_weight) if weight is None else chunk(weight[size:], 2)
        biases = (None, None) if bias is None else chunk(bias, 2)
        return tuple(linear(x, w, b) for x, w, b in zip((key, value), weights, biases, strict=True))  # type: ignore[arg-type]

    def _mask(
        self,
        key_padding_mask: Operand | None,
        attn_mask: Operand | None,
        start: int | None,
        shape: tuple[int, int, int, int],
        batched: bool,
    ) -> Tensor | None:
        """All masks as one that broadcasts to (B, H, L, S): booleans, True where a query may look, or numbers to add.

        ``start`` is the position of the first query where the future is hidden, else None.
        """
        batch, heads, queries, keys = shape
        parts = []
        if key_padding_mask is not None:
            wanted = (batch, keys) if batched else (keys,)
            mask = _as_mask(key_padding_mask, "key_padding_mask", wanted)
            parts.append(mask.reshape(batch, 1, 1, keys))
        if attn_mask is not None:
            mask = _as_mask(attn_mask, "attn_mask", (queries, keys), (batch * heads, queries, keys))
            parts.append(mask if mask.ndim == 2 else mask.reshape(shape))
        if start is not None and start < keys - 1:  # else there is no future
            parts.append(causal_mask(queries, keys, start))
        if not parts:
            return None
        if all(mask.dtype == bool_ for mask in parts):
            return reduce(and_, parts)
        total: Any = 0.0
        for mask in parts:
            total = total + (where(mask, 0.0, -math.inf) if mask.dtype == bool_ else mask)
        return total


def _started(shape: tuple[int, ...], dtype: Any, fill: Callable[[Tensor], Tensor] = init.xavier_uniform_) -> Parameter:
    weight = Parameter(zeros(shape, dtype))
    fill(weight)
    return weight


def _as_mask(given: Operand, name: str, *shapes: tuple[int, ...]) -> Tensor:
    """A mask of PyTorch's modules, in which True hides, as one in which True shows; numbers stay as they are."""
    mask = as_tensor(given)
    if mask.shape not in shapes:
        raise ShapeError(f"{name} has shape {' or '.join(map(str, shapes))} for these inputs, got {mask.shape}")
    if mask.dtype == bool_:
        return ~mask
    if mask.dtype.kind not in "fV":
        raise DTypeError(f"{name} is boolean, or floating and added to the scores, got dtype {mask.dtype}; write mask != 0")
    return mask
