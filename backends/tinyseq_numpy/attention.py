"""Attention by tiles: the scores of a few queries and keys at a time, never all of them.

The softmax of a row is made as its keys come by, with a running maximum and sum (Milakov and Gimelshein 2018), so memory
grows with L + S and not with L S (Rabe and Staats 2021). The backward pass computes each tile's probabilities again (Dao
et al. 2022) from two numbers a row, the largest score and the sum; one, the logarithm of the sum of exponentials, would lose
digits where scores are large. Tiles that a mask hides are left out. Products are BLAS's, into arrays that are used again.

Letters: N heads of all rows of the batch, L queries, S keys, E features, V features of a value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["Attention", "probabilities", "score_gradients"]

Array = np.ndarray[Any, Any]

ROWS = 64  # queries in a tile
COLUMNS = 512  # keys in a tile
COLUMNS_BY_MASK = 128  # the same under a mask that may hide all of a smaller tile
TILE = 1 << 16  # scores in a tile: short sequences share one; this many, and what belongs to them, stay in the second cache
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def probabilities(scores: Array, tops: Array, totals: Array) -> Array:
    """The numerators of a tile's softmax, in place, and what earlier tiles of the rows are to be multiplied by.

    Args:
        scores: (n, l, s); becomes ``exp(scores - top)``.
        tops: (n, l), the largest score of each row so far; updated.
        totals: (n, l), the sum of each row's numerators so far; updated.

    Returns:
        (n, l): ``exp(old top - new top)``.
    """
    before = tops.copy()
    np.maximum(tops, scores.max(-1), out=tops)
    shift = np.where(tops == -np.inf, 0, tops)  # a row of which nothing has been seen is zeros, not inf - inf
    scores -= shift[..., None]
    np.exp(scores, out=scores)
    factors = np.exp(before - shift)
    totals *= factors
    totals += scores.sum(-1)
    return factors


def score_gradients(scores: Array, tops: Array, totals: Array, gradients: Array, shifts: Array | None) -> None:
    """A tile's numerators of the softmax and the gradients of its scores, in place.

    Args:
        scores: (n, l, s); becomes ``e = exp(scores - top)``.
        tops: (n, l), the largest score of each row.
        totals: (n, l), the sum of each row's numerators.
        gradients: (n, l, s), those of the probabilities, divided by the total, g; becomes ``e (g - shift)``.
        shifts: (n, l), each row's sum of ``e g / total``; None where the tile has all keys of its rows, from which it is
            made as the gradients were, so that what cancels does so to the last digit.
    """
    scores -= tops[..., None]
    np.exp(scores, out=scores)
    if shifts is None:
        shifts = np.einsum("nls,nls->nl", scores, gradients) / totals
    gradients -= shifts[..., None]
    gradients *= scores


class _Mask:
    """A mask that broadcasts to (..., L, S), given out by tiles; booleans that show, or numbers to add."""

    def __init__(self, mask: Array, batch: tuple[int, ...]) -> None:
        mask = mask.reshape((1,) * (len(batch) + 2 - mask.ndim) + mask.shape)
        kinds = math.prod(mask.shape[:-2])
        # For each head its place among the masks, so that what broadcasts is never spread out.
        self.places = np.broadcast_to(np.arange(kinds).reshape(mask.shape[:-2]), batch).reshape(-1)
        self.mask = mask.reshape(kinds, *mask.shape[-2:])
        self.by_rows = mask.shape[-2] > 1 and mask.shape[-1] > 1

    def tile(self, heads: slice, rows: slice, columns: slice) -> Array:
        kinds, length, width = self.mask.shape
        part = self.mask[:, slice(None) if length == 1 else rows, slice(None) if width == 1 else columns]
        return part if kinds == 1 else part[self.places[heads]]


class _Scores:
    """The scores of one call, tile by tile."""

    def __init__(self, query: Array, key: Array, mask: _Mask | None, is_causal: bool, scale: float | None) -> None:
        self.query, self.key, self.mask, self.is_causal = query, key, mask, is_causal
        self.scale = query.dtype.type(1 / math.sqrt(query.shape[2]) if scale is None else scale)
        self.heads, self.queries, self.keys = query.shape[0], query.shape[1], key.shape[1]
        self.width = min(self.keys, COLUMNS_BY_MASK if mask is not None and mask.by_rows else COLUMNS)
        self.rows = min(ROWS, self.queries)
        self.group = min(self.heads, max(1, TILE // max(1, self.rows * self.width)))
        self.size = self.group * self.rows * self.width

    def groups(self) -> list[slice]:
        """The heads that are done together: what belongs to their keys stays in the cache."""
        return _slices(self.heads, self.group)

    def tiles(self, groups: Sequence[slice]) -> Iterator[tuple[slice, slice]]:
        """Heads and queries."""
        return itertools.product(groups, _slices(self.queries, self.rows))

    def columns(self, rows: slice) -> list[slice]:
        """The keys that a tile's queries may look at."""
        return _slices(min(self.keys, rows.stop) if self.is_causal else self.keys, self.width)

    def asked(self, heads: slice, rows: slice, room: Array) -> Array:
        """The tile's queries, scaled."""
        query = self.query[heads, rows]
        return np.multiply(query, self.scale, out=room[: query.size].reshape(query.shape))

    def of(self, heads: slice, rows: slice, columns: slice, asked: Array, room: Array) -> Array | None:
        """The scores (n, l, s), -inf where nothing is to be seen; None if that is everywhere."""
        shown = None if self.mask is None else self.mask.tile(heads, rows, columns)
        if shown is not None and shown.dtype == bool and not shown.any():
            return None
        scores = _product(asked, self.key[heads, columns].swapaxes(-1, -2), room)
        if shown is not None:
            if shown.dtype != bool:
                scores += shown
                shown = shown != -np.inf
            np.copyto(scores, -np.inf, where=~shown)
        first = rows.start + 1  # the first key that not every query of the tile may look at
        if self.is_causal and columns.stop > first:
            begin = max(columns.start, first)
            later = np.arange(begin, columns.stop) > np.arange(rows.start, rows.stop)[:, None]
            np.copyto(scores[..., begin - columns.start :], -np.inf, where=later)
        return scores


def _slices(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _product(x: Array, y: Array, room: Array) -> Array:
    """``x @ y`` of three axes in the room's memory."""
    shape = (x.shape[0], x.shape[1], y.shape[2])
    return np.matmul(x, y, out=room[: math.prod(shape)].reshape(shape))


def _quietly(run: Callable[[Sequence[slice]], None]) -> Callable[[Sequence[slice]], None]:
    """Without warnings: infinite scores give NaN, as they do by the definition."""

    def call(groups: Sequence[slice]) -> None:
        with np.errstate(all="ignore"):
            run(groups)

    return call


class Attention:
    """``softmax(scale query key^T + mask) value``, a kernel for ``tinyseq.fused``.

    A backend may give other functions for the elementwise work on a tile, and share the heads among threads.
    """

    probabilities = staticmethod(probabilities)
    score_gradients = staticmethod(score_gradients)

    def share(self, run: Callable[[Sequence[slice]], None], groups: Sequence[slice]) -> None:
        """Run it over all groups of heads, which are independent of each other."""
        run(groups)

    def accepts(
        self, query: Array, key: Array, value: Array, mask: Array | None, *, is_causal: bool, scale: float | None
    ) -> bool:
        """Arrays (..., L, E), (..., S, E) and (..., S, V) of one dtype and with the same axes in front."""
        if min(query.ndim, key.ndim, value.ndim) < 2 or query.dtype not in DTYPES:
            return False
        batch, scores = query.shape[:-2], (*query.shape[:-1], key.shape[-2])
        if mask is not None:
            broadcasts = mask.ndim <= len(scores) and all(
                size in (1, whole) for size, whole in zip(mask.shape[::-1], scores[::-1], strict=False)
            )
            if is_causal or mask.dtype not in (np.dtype(bool), query.dtype) or not broadcasts:
                return False
        return (
            query.dtype == key.dtype == value.dtype
            and key.shape == (*batch, key.shape[-2], query.shape[-1])
            and value.shape == (*batch, key.shape[-2], value.shape[-1])
            and 0 not in (*scores, query.shape[-1], value.shape[-1])
        )

    def forward(
        self, query: Array, key: Array, value: Array, mask: Array | None, *, is_causal: bool, scale: float | None
    ) -> tuple[Array, tuple[Array, ...]]:
        """The output, and for each query the largest score and the sum of ``exp(score - largest)``."""
        batch, dtype = query.shape[:-2], query.dtype
        q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (query, key, value))
        scores = _Scores(q, k, None if mask is None else _Mask(mask, batch), is_causal, scale)
        output = np.empty((*q.shape[:2], v.shape[2]), dtype)
        tops, totals = np.empty(q.shape[:2], dtype), np.empty(q.shape[:2], dtype)

        def run(groups: Sequence[slice]) -> None:
            room = np.empty(scores.size, dtype)
            part = np.empty(scores.group * scores.rows * v.shape[2], dtype)
            own = np.empty(scores.group * scores.rows * q.shape[2], dtype)
            for heads, rows in scores.tiles(groups):
                asked, out = scores.asked(heads, rows, own), output[heads, rows]
                top, total = np.full(out.shape[:2], -np.inf, dtype), np.zeros(out.shape[:2], dtype)
                begun = False
                for columns in scores.columns(rows):
                    found = scores.of(heads, rows, columns, asked, room)
                    if found is None:
                        continue
                    factors = self.probabilities(found, top, total)
                    if begun:
                        out *= factors[..., None]
                        out += _product(found, v[heads, columns], part)
                    else:
                        np.matmul(found, v[heads, columns], out=out)
                        begun = True
                if not begun:
                    out[...] = 0
                if mask is not None:  # a query that sees nothing gets zeros
                    empty = total == 0
                    total[empty], top[empty] = 1, 0
                out /= total[..., None]
                tops[heads, rows], totals[heads, rows] = top, total

        self.share(_quietly(run), scores.groups())
        return output.reshape(*batch, *output.shape[1:]), (tops, totals)

    def backward(
        self,
        cotangent: Array,
        arrays: tuple[Array | None, ...],
        output: Array,
        residuals: tuple[Array, ...],
        *,
        is_causal: bool,
        scale: float | None,
    ) -> tuple[Array | None, ...]:
        """Cotangents of query, key and value; the mask has none here."""
        query, key, value, mask = arrays
        assert query is not None
        assert key is not None
        assert value is not None
        batch, dtype, (tops, totals) = query.shape[:-2], query.dtype, residuals
        q, k, v, g, y = (x.reshape(-1, *x.shape[-2:]) for x in (query, key, value, cotangent, output))
        with np.errstate(all="ignore"):
            g = g / totals[..., None]
        shifts = np.einsum("nlv,nlv->nl", g, y)
        scores = _Scores(q, k, None if mask is None else _Mask(mask, batch), is_causal, scale)
        dq, dk, dv = np.zeros(q.shape, dtype), np.zeros(k.shape, dtype), np.zeros(v.shape, dtype)

        def run(groups: Sequence[slice]) -> None:
            room, gradients = np.empty(scores.size, dtype), np.empty(scores.size, dtype)
            part = np.empty(scores.group * max(scores.rows, scores.width) * max(q.shape[2], v.shape[2]), dtype)
            own = np.empty(scores.group * scores.rows * q.shape[2], dtype)
            for heads, rows in scores.tiles(groups):
                asked, slope = scores.asked(heads, rows, own), g[heads, rows]
                strips = scores.columns(rows)
                for columns in strips:
                    p = scores.of(heads, rows, columns, asked, room)
                    if p is None:
                        continue
                    ds = _product(slope, v[heads, columns].swapaxes(-1, -2), gradients)
                    shift = shifts[heads, rows] if len(strips) > 1 else None
                    self.score_gradients(p, tops[heads, rows], totals[heads, rows], ds, shift)
                    dv[heads, columns] += _product(p.swapaxes(-1, -2), slope, part)
                    dk[heads, columns] += _product(ds.swapaxes(-1, -2), asked, part)
                    dq[heads, rows] += _product(ds, k[heads, columns], part)

        self.share(_quietly(run), scores.groups())
        dq *= scores.scale
        return dq.reshape(query.shape), dk.reshape(key.shape), dv.reshape(value.shape), None
