"""Functions composed of primitives: shape moves, softmax and its kin, activations, losses. None has a VJP of its own."""

from __future__ import annotations

import math
import string
from builtins import any as builtin_any
from builtins import max as builtin_max
from builtins import min as builtin_min
from builtins import sum as builtin_sum
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tinyseq import random
from tinyseq.creation import arange, zeros
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.fused import fused
from tinyseq.primitives import TABLE
from tinyseq.tensor import (
    Axis,
    Operand,
    Tensor,
    _agree,
    _floating,
    abs_,
    add,
    apply,
    as_tensor,
    cos,
    div,
    eq,
    erf,
    exp,
    expm1,
    floor,
    floor_divide,
    ge,
    gt,
    int64,
    isfinite,
    isnan,
    le,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    matmul,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    normalize_axes,
    normalize_axis,
    power,
    relu,
    remainder,
    result_dtype,
    round_,
    sigmoid,
    sign,
    sin,
    sqrt,
    sub,
    tanh,
    where,
)

abs = abs_
round = round_

__all__ = [
    "abs",
    "add",
    "all",
    "allclose",
    "any",
    "argmax",
    "argmin",
    "argsort",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "broadcast_to",
    "chunk",
    "clip",
    "concatenate",
    "cos",
    "cosine_similarity",
    "cross_entropy",
    "cumsum",
    "div",
    "dropout",
    "einsum",
    "elu",
    "embedding",
    "eq",
    "erf",
    "exp",
    "expm1",
    "flatten",
    "flip",
    "floor",
    "floor_divide",
    "ge",
    "gelu",
    "gt",
    "huber_loss",
    "isfinite",
    "isnan",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "le",
    "leaky_relu",
    "linear",
    "log",
    "log1p",
    "log_softmax",
    "logaddexp",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logsumexp",
    "lt",
    "masked_fill",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "moveaxis",
    "mse_loss",
    "mul",
    "ne",
    "neg",
    "nll_loss",
    "norm",
    "one_hot",
    "outer",
    "pad",
    "permute",
    "power",
    "prod",
    "relu",
    "remainder",
    "repeat",
    "reshape",
    "result_dtype",
    "roll",
    "round",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "sort",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "sub",
    "sum",
    "take_along_axis",
    "tanh",
    "tile",
    "topk",
    "transpose",
    "tril",
    "triu",
    "unsqueeze",
    "var",
    "where",
]

# --- the Tensor's methods as functions --------------------------------------------------------------------------------


def sum(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over the given axes (all by default)."""
    return as_tensor(x).sum(axis, keepdims)


def mean(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over the given axes (all by default)."""
    return as_tensor(x).mean(axis, keepdims)


def max(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The largest value over the given axes (all by default)."""
    return as_tensor(x).max(axis, keepdims)


def min(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The smallest value over the given axes (all by default)."""
    return as_tensor(x).min(axis, keepdims)


def all(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether all elements are true."""
    return as_tensor(x).all(axis, keepdims)


def any(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Whether any element is true."""
    return as_tensor(x).any(axis, keepdims)


def argmax(x: Operand, axis: int | None = None) -> Tensor:
    """Where the largest value is along an axis, or in the flattened tensor."""
    return as_tensor(x).argmax(axis)


def argmin(x: Operand, axis: int | None = None) -> Tensor:
    """Where the smallest value is along an axis, or in the flattened tensor."""
    return as_tensor(x).argmin(axis)


def cumsum(x: Operand, axis: int) -> Tensor:
    """The running sum along an axis."""
    return as_tensor(x).cumsum(axis)


def clip(x: Operand, low: float | None = None, high: float | None = None) -> Tensor:
    """Elementwise: no less than ``low``, no more than ``high``."""
    return as_tensor(x).clip(low, high)


def reshape(x: Operand, *shape: Any) -> Tensor:
    """The same elements in another shape."""
    return as_tensor(x).reshape(*shape)


def permute(x: Operand, *axes: Any) -> Tensor:
    """The axes in another order."""
    return as_tensor(x).permute(*axes)


def transpose(x: Operand, axis0: int = -2, axis1: int = -1) -> Tensor:
    """Two axes exchanged; the last two by default."""
    return as_tensor(x).transpose(axis0, axis1)


def broadcast_to(x: Operand, *shape: Any) -> Tensor:
    """Stretched to a shape."""
    return as_tensor(x).expand(*shape)


def squeeze(x: Operand, axis: Axis = None) -> Tensor:
    """Without axes of size 1."""
    return as_tensor(x).squeeze(axis)


def unsqueeze(x: Operand, axis: int) -> Tensor:
    """With a new axis of size 1."""
    return as_tensor(x).unsqueeze(axis)


def flatten(x: Operand, start: int = 0, end: int = -1) -> Tensor:
    """Axes ``start`` to ``end`` as one."""
    return as_tensor(x).flatten(start, end)


def flip(x: Operand, axis: Axis = None) -> Tensor:
    """In reverse order along the given axes."""
    return as_tensor(x).flip(axis)


# --- joining, splitting, moving ---------------------------------------------------------------------------------------


def concatenate(tensors: Sequence[Operand], axis: int = 0) -> Tensor:
    """Tensors joined along an axis that they have.

    Raises:
        ShapeError: no tensors, or shapes that differ on another axis.

    >>> import tinyseq as ts
    >>> ts.concatenate([ts.tensor([1, 2]), ts.tensor([3])]).tolist()
    [1, 2, 3]
    """
    if not len(tensors):
        raise ShapeError("concatenate needs at least one tensor")
    xs = _agree(*(as_tensor(x) for x in tensors))
    at = normalize_axis(axis, xs[0].ndim)
    sizes = tuple(x.shape[at] if x.ndim >= -at else 0 for x in xs)
    return apply(TABLE["concatenate"], xs, {"axis": at, "sizes": sizes})


def stack(tensors: Sequence[Operand], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis.

    Raises:
        ShapeError: no tensors, or shapes that differ.

    >>> import tinyseq as ts
    >>> ts.stack([ts.tensor([1, 2]), ts.tensor([3, 4])]).tolist()
    [[1, 2], [3, 4]]
    """
    xs = [as_tensor(x) for x in tensors]
    for i, x in enumerate(xs):
        if x.shape != xs[0].shape:
            raise ShapeError(f"stack needs tensors of one shape: the first has {xs[0].shape}, number {i} has {x.shape}")
    return concatenate([x.unsqueeze(axis) for x in xs], axis)


def split(x: Operand, sizes: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """Pieces of the given sizes along an axis; one number means pieces of that size, the last perhaps smaller.

    >>> import tinyseq as ts
    >>> [part.tolist() for part in ts.split(ts.arange(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim)
    total = x.shape[at]
    if isinstance(sizes, int):
        if sizes <= 0:
            raise ShapeError(f"split needs pieces of positive size, got {sizes}")
        sizes = [builtin_min(sizes, total - start) for start in range(0, total, sizes)]
    if builtin_sum(sizes) != total:
        raise ShapeError(f"split sizes {list(sizes)} add up to {builtin_sum(sizes)}, the axis has {total}")
    return [apply(TABLE["getitem"], (x,), params) for params in _pieces(tuple(sizes), at)]


@lru_cache(maxsize=256)
def _pieces(sizes: tuple[int, ...], at: int) -> list[dict[str, Any]]:
    """The metadata of getitem for each piece; kept, since a cell cuts its gates at every step."""
    parts, start = [], 0
    rest = (slice(None),) * (-at - 1)
    for size in sizes:
        parts.append({"key": (..., slice(start, start + size), *rest)})
        start += size
    return parts


def chunk(x: Operand, count: int, axis: int = 0) -> list[Tensor]:
    """``count`` pieces of equal size along an axis, the last perhaps smaller."""
    x = as_tensor(x)
    return split(x, -(-x.shape[normalize_axis(axis, x.ndim)] // count), axis)


def pad(x: Operand, widths: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """More elements, all equal to ``value``, around the last axes.

    Args:
        x: the tensor.
        widths: for each of the last axes, how many go before and how many after.
        value: what they are.

    >>> import tinyseq as ts
    >>> ts.pad(ts.tensor([1, 2]), [(1, 0)]).tolist()
    [0, 1, 2]
    """
    x = as_tensor(x)
    pairs = tuple((int(low), int(high)) for low, high in widths)
    if len(pairs) > x.ndim or builtin_any(width < 0 for pair in pairs for width in pair):
        raise ShapeError(f"pad of shape {x.shape} by {pairs}: give at most {x.ndim} pairs of non-negative widths")
    fill = x.dtype.type(value).item()
    return apply(TABLE["pad"], (x,), {"widths": pairs, "value": fill}) if pairs else x


def roll(x: Operand, shift: int, axis: int) -> Tensor:
    """Elements moved along an axis; what falls off the end comes back at the start."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim)
    size = x.shape[at]
    if not size or not shift % size:
        return x
    cut = size - shift % size
    rest = (slice(None),) * (-at - 1)
    return concatenate([x[(..., slice(cut, None), *rest)], x[(..., slice(None, cut), *rest)]], at)


def tile(x: Operand, repeats: int | Sequence[int]) -> Tensor:
    """The whole tensor again and again along each of its axes (or new leading ones).

    >>> import tinyseq as ts
    >>> ts.tile(ts.tensor([1, 2]), 2).tolist()
    [1, 2, 1, 2]
    """
    x = as_tensor(x)
    counts = (repeats,) if isinstance(repeats, int) else tuple(repeats)
    counts = (1,) * (x.ndim - len(counts)) + counts
    shape = (1,) * (len(counts) - x.ndim) + x.shape
    twofold = [size for pair in zip((1,) * len(shape), shape, strict=True) for size in pair]
    stretched = [size for pair in zip(counts, shape, strict=True) for size in pair]
    return x.reshape(twofold).expand(stretched).reshape([c * s for c, s in zip(counts, shape, strict=True)])


def repeat(x: Operand, count: int, axis: int) -> Tensor:
    """Each element ``count`` times in a row along an axis, as numpy.repeat and torch.repeat_interleave do."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim) + x.ndim
    shape = (*x.shape[: at + 1], count, *x.shape[at + 1 :])
    stretched = x.unsqueeze(at + 1).expand(shape)
    return stretched.reshape((*x.shape[:at], x.shape[at] * count, *x.shape[at + 1 :]))


def moveaxis(x: Operand, source: int, destination: int) -> Tensor:
    """One axis moved to another position; the others keep their order."""
    x = as_tensor(x)
    a, b = (normalize_axis(axis, x.ndim) + x.ndim for axis in (source, destination))
    order = [i for i in range(x.ndim) if i != a]
    return x.permute([*order[:b], a, *order[b:]])


def outer(x: Operand, y: Operand) -> Tensor:
    """The outer product of two vectors: (N,) and (M,) give (N, M)."""
    return as_tensor(x).unsqueeze(-1) * as_tensor(y).unsqueeze(-2)


def tril(x: Operand, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two axes, zeros elsewhere."""
    return _triangle(as_tensor(x), diagonal, lower=True)


def triu(x: Operand, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two axes, zeros elsewhere."""
    return _triangle(as_tensor(x), diagonal, lower=False)


def _triangle(x: Tensor, diagonal: int, lower: bool) -> Tensor:
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    kept = columns - rows <= diagonal if lower else columns - rows >= diagonal
    return where(Tensor(x.backend.asarray(kept)), x, 0)


# --- look-ups ---------------------------------------------------------------------------------------------------------


def take_along_axis(x: Operand, indices: Operand, axis: int) -> Tensor:
    """``out[i, j] = x[i, indices[i, j]]`` for axis 1, and so for others; torch.gather, numpy.take_along_axis."""
    x, indices = as_tensor(x), as_tensor(indices)
    if indices.ndim != x.ndim:
        raise ShapeError(f"take_along_axis needs indices with {x.ndim} axes, got shape {indices.shape}")
    at = normalize_axis(axis, x.ndim) + x.ndim
    key: list[Any] = []
    for i, size in enumerate(indices.shape):
        if i == at:
            key.append(indices)
        else:
            if size > x.shape[i]:
                raise ShapeError(f"take_along_axis: indices of shape {indices.shape} do not fit a tensor of shape {x.shape}")
            shape = tuple(size if j == i else 1 for j in range(x.ndim))
            key.append(Tensor(x.backend.asarray(np.arange(size).reshape(shape))))
    return x[tuple(key)]


def one_hot(ids: Operand, classes: int, dtype: Any = int64) -> Tensor:
    """Rows with a one at each id and zeros elsewhere: (...) integers give (..., classes).

    Raises:
        ShapeError: an id is not in [0, classes).

    >>> import tinyseq as ts
    >>> ts.one_hot(ts.tensor([2, 0]), 3).tolist()
    [[0, 0, 1], [1, 0, 0]]
    """
    ids = _checked_ids(ids, classes, "one_hot")
    columns = Tensor(ids.backend.asarray(np.arange(classes)))
    return (ids.unsqueeze(-1) == columns).astype(dtype)


def _checked_ids(ids: Operand, classes: int, what: str) -> Tensor:
    ids = as_tensor(ids)
    if ids.dtype.kind not in "iu":
        raise DTypeError(f"{what} needs integer ids, got dtype {ids.dtype}")
    # A negative id would silently count from the end. On a device the look would stall the queue.
    if ids.size and ids.backend.device == "cpu":
        values = ids.numpy()
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= classes:
            raise ShapeError(f"{what} got the id {low if low < 0 else high}, which is not in [0, {classes})")
    return ids


def argsort(x: Operand, axis: int = -1, descending: bool = False) -> Tensor:
    """The order that sorts along an axis; equal elements keep their order."""
    x = as_tensor(x)
    return apply(TABLE["argsort"], (x.detach(),), {"axis": normalize_axis(axis, x.ndim), "descending": descending})


def sort(x: Operand, axis: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """The sorted values along an axis and the order that sorts them.

    >>> import tinyseq as ts
    >>> values, order = ts.sort(ts.tensor([3, 1, 2]))
    >>> values.tolist(), order.tolist()
    ([1, 2, 3], [1, 2, 0])
    """
    x = as_tensor(x)
    order = argsort(x, axis, descending)
    return take_along_axis(x, order, axis), order


def topk(x: Operand, k: int, axis: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) values along an axis, best first, and where they are."""
    x = as_tensor(x)
    at = normalize_axis(axis, x.ndim)
    if not 0 <= k <= x.shape[at]:
        raise ShapeError(f"topk of k = {k} along an axis of size {x.shape[at]}; k must be in [0, {x.shape[at]}]")
    order = argsort(x, axis, descending=largest)[(..., slice(0, k), *(slice(None),) * (-at - 1))]
    return take_along_axis(x, order, axis), order


def embedding(table: Tensor, ids: Operand, padding_idx: int | None = None) -> Tensor:
    """Rows of a table (V, E) by integer ids (...): (..., E). The row ``padding_idx`` gets no gradient.

    Raises:
        ShapeError: an id is not in [0, V).
        DTypeError: the ids are not integers.
    """
    ids = _checked_ids(ids, table.shape[0], "embedding")
    rows = table[ids]
    if padding_idx is None:
        return rows
    return where((ids == padding_idx % table.shape[0]).unsqueeze(-1), rows.detach(), rows)


# --- products ---------------------------------------------------------------------------------------------------------


def linear(x: Operand, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: (..., I), (O, I) and (O,) give (..., O)."""
    y = matmul(x, weight.T)
    return y if bias is None else y + bias


def einsum(equation: str, *operands: Operand) -> Tensor:
    """Sums of products by index letters, as numpy.einsum; "..." stands for leading axes that broadcast.

    Contracted pair by pair, from the left, each pair as one batched matrix product.

    Raises:
        ShapeError: the equation does not fit the operands.

    >>> import tinyseq as ts
    >>> ts.einsum("ij,j->i", ts.ones((2, 3)), ts.ones(3)).tolist()
    [3.0, 3.0]
    """
    xs = list(_agree(*(as_tensor(x) for x in operands)))
    terms, output = _parse(equation, xs)
    sizes: dict[str, int] = {}
    for term, x in zip(terms, xs, strict=True):
        for letter, size in zip(term, x.shape, strict=True):
            if sizes.setdefault(letter, size) != size and 1 not in (size, sizes[letter]):
                raise ShapeError(f"einsum {equation!r}: index {letter!r} has sizes {sizes[letter]} and {size}")
            sizes[letter] = builtin_max(sizes[letter], size)
    pairs = [_diagonal(x, term, sizes) for x, term in zip(xs, terms, strict=True)]
    x, term = pairs[0]
    for i, (y, other) in enumerate(pairs[1:], start=1):
        later = set(output).union(*(t for _, t in pairs[i + 1 :]))
        x, term = _contract(x, term, y, other, later, sizes)
    lone = tuple(i for i, letter in enumerate(term) if letter not in output)
    x = x.sum(lone) if lone else x
    term = "".join(letter for letter in term if letter in output)
    return x.permute([term.index(letter) for letter in output])


def _parse(equation: str, xs: Sequence[Tensor]) -> tuple[list[str], str]:
    """Terms of plain letters, one a letter an axis; "..." becomes capital letters that are free."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(xs):
        raise ShapeError(f"einsum {equation!r} has {len(terms)} terms for {len(xs)} operands")
    free = [c for c in string.ascii_letters if c not in equation]
    extra = [x.ndim - len(term.replace("...", "")) for term, x in zip(terms, xs, strict=True)]
    for term, x, n in zip(terms, xs, extra, strict=True):
        if n < 0 or (n > 0 and "..." not in term):
            raise ShapeError(f"einsum {equation!r}: the term {term!r} does not fit an operand of shape {x.shape}")
    dots = "".join(free[: builtin_max(extra, default=0)])
    if not arrow:
        letters = sorted(set(left) - set(",."))
        output = ("..." if dots else "") + "".join(c for c in letters if left.count(c) == 1)
    terms = [t.replace("...", dots[len(dots) - n :]) for t, n in zip(terms, extra, strict=True)]
    output = output.replace("...", dots)
    for letter in output:
        if output.count(letter) > 1 or not builtin_any(letter in t for t in terms):
            raise ShapeError(f"einsum {equation!r}: the output index {letter!r} must occur once, and in an operand")
    return terms, output


def _diagonal(x: Tensor, term: str, sizes: dict[str, int]) -> tuple[Tensor, str]:
    """Every letter once, every axis of its full size."""
    x = x.expand([sizes[letter] for letter in term])
    while len(set(term)) < len(term):
        letter = next(c for c in term if term.count(c) > 1)
        a, b = [i for i, c in enumerate(term) if c == letter][:2]
        rest = [i for i in range(len(term)) if i not in (a, b)]
        positions = arange(sizes[letter])
        x = x.permute([a, b, *rest])[positions, positions]
        term = letter + "".join(term[i] for i in rest)
    return x, term


def _contract(x: Tensor, a: str, y: Tensor, b: str, later: set[str], sizes: dict[str, int]) -> tuple[Tensor, str]:
    """The product of two operands, summed over the indices that nobody asks for later."""
    for mine, other in ((0, b), (1, a)):
        term, t = (a, x) if mine == 0 else (b, y)
        lone = tuple(i for i, c in enumerate(term) if c not in other and c not in later)
        if lone:
            t = t.sum(lone)
            term = "".join(c for c in term if c in other or c in later)
        if mine == 0:
            a, x = term, t
        else:
            b, y = term, t
    batch = [c for c in a if c in b and c in later]
    inner = [c for c in a if c in b and c not in later]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]

    def arranged(t: Tensor, term: str, order: Sequence[Sequence[str]]) -> Tensor:
        t = t.permute([term.index(c) for group in order for c in group])
        return t.reshape([*(sizes[c] for c in order[0]), *(math.prod(sizes[c] for c in group) for group in order[1:])])

    product = matmul(arranged(x, a, (batch, rows, inner)), arranged(y, b, (batch, inner, columns)))
    result = [*batch, *rows, *columns]
    return product.reshape([sizes[c] for c in result]), "".join(result)


# --- reductions -------------------------------------------------------------------------------------------------------


def prod(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The product over the given axes (all by default), in a tree of halves: its gradient is exact at zeros too."""
    x = as_tensor(x)
    axes = normalize_axes(axis, x.ndim)
    kept = [size for i, size in enumerate(x.shape) if i - x.ndim not in axes]
    with_ones = [1 if i - x.ndim in axes else size for i, size in enumerate(x.shape)]
    order = [i for i in range(x.ndim) if i - x.ndim not in axes] + [axis + x.ndim for axis in axes]
    count = math.prod(x.shape[axis] for axis in axes)
    flat = x.permute(order).reshape([*kept, count])
    if x.dtype.kind in "biu":
        flat = flat.astype(int64)
    while count > 1:
        half = count // 2
        product = flat[..., :half] * flat[..., half : 2 * half]
        flat = concatenate([product, flat[..., 2 * half :]], -1) if count % 2 else product
        count = half + count % 2
    if count == 0:
        flat = flat.sum(-1, keepdims=True) + 1
    return flat.reshape(with_ones if keepdims else kept)


def var(x: Operand, axis: Axis = None, correction: float = 1, keepdims: bool = False) -> Tensor:
    """The variance over the given axes, divided by N - correction (1, as in PyTorch; NumPy has 0)."""
    x = _floating(as_tensor(x))
    axes = normalize_axes(axis, x.ndim)
    count = math.prod(x.shape[a] for a in axes)
    centred = x - x.mean(axes, keepdims=True)
    return (centred * centred).sum(axes, keepdims) / (builtin_max(count - correction, 0) or math.nan)


def std(x: Operand, axis: Axis = None, correction: float = 1, keepdims: bool = False) -> Tensor:
    """The square root of :func:`var`."""
    return var(x, axis, correction, keepdims).sqrt()


def norm(x: Operand, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """The Euclidean norm over the given axes; its gradient at zero is zero."""
    x = _floating(as_tensor(x))
    squares = (x * x).sum(axis, keepdims)
    zero = squares == 0
    return where(zero, 0.0, where(zero, 1.0, squares).sqrt())


def logsumexp(x: Operand, axis: Axis = -1, keepdims: bool = False) -> Tensor:
    """``log(sum(exp(x)))`` over the given axes without overflow; -inf where all are -inf."""
    x = _floating(as_tensor(x))
    axes = normalize_axes(axis, x.ndim)
    top = x.detach().max(axes, keepdims=True)
    top = where(isfinite(top), top, 0.0)
    total = (x - top).exp().sum(axes, keepdims=True)
    empty = total == 0  # log(0) is right but would warn, and its gradient would be NaN
    result = where(empty, -math.inf, where(empty, 1.0, total).log() + top)
    if keepdims:
        return result
    return result.reshape([size for i, size in enumerate(x.shape) if i - x.ndim not in axes])


def logaddexp(x: Operand, y: Operand) -> Tensor:
    """``log(exp(x) + exp(y))`` without overflow."""
    x, y = _agree(as_tensor(x), as_tensor(y))
    return logsumexp(stack([x + y * 0, y + x * 0]), 0) if x.shape != y.shape else logsumexp(stack([x, y]), 0)


# --- softmax and activations ------------------------------------------------------------------------------------------


@fused("softmax")
def _softmax(x: Tensor) -> Tensor:
    e = (x - x.detach().max(-1, keepdims=True)).exp()
    return e / e.sum(-1, keepdims=True)


def softmax(x: Operand, axis: int = -1) -> Tensor:
    """``exp(x) / sum(exp(x))`` along an axis, without overflow.

    >>> import tinyseq as ts
    >>> ts.softmax(ts.tensor([0.0, 0.0])).tolist()
    [0.5, 0.5]
    """
    x = _floating(as_tensor(x))
    if normalize_axis(axis, x.ndim) == -1:
        return _softmax(x)
    return moveaxis(_softmax(moveaxis(x, axis, -1)), -1, axis)


def log_softmax(x: Operand, axis: int = -1) -> Tensor:
    """``x - logsumexp(x)`` along an axis."""
    x = _floating(as_tensor(x))
    return x - logsumexp(x, axis, keepdims=True)


def square(x: Operand) -> Tensor:
    """``x * x``."""
    x = as_tensor(x)
    return x * x


def softplus(x: Operand, beta: float = 1.0) -> Tensor:
    """``log(1 + exp(beta x)) / beta`` without overflow."""
    x = _floating(as_tensor(x))
    z = x * beta if beta != 1 else x
    positive = z > 0  # not relu and abs, whose slopes at 0 are not those of a smooth function
    y = where(positive, z, 0.0) + log1p(exp(where(positive, -z, z)))
    return y / beta if beta != 1 else y


def silu(x: Operand) -> Tensor:
    """``x sigmoid(x)`` (Hendrycks and Gimpel 2016)."""
    x = _floating(as_tensor(x))
    return x * x.sigmoid()


def gelu(x: Operand, approximate: bool = False) -> Tensor:
    """``x Phi(x)`` with the normal distribution function; or its tanh approximation (Hendrycks and Gimpel 2016)."""
    x = _floating(as_tensor(x))
    if approximate:
        return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def elu(x: Operand, alpha: float = 1.0) -> Tensor:
    """``x`` where positive, else ``alpha (exp(x) - 1)`` (Clevert et al. 2015)."""
    x = _floating(as_tensor(x))
    positive = x > 0
    return where(positive, x, alpha * expm1(where(positive, 0.0, x)))


def leaky_relu(x: Operand, slope: float = 0.01) -> Tensor:
    """``x`` where positive, else ``slope x``."""
    x = _floating(as_tensor(x))
    return where(x > 0, x, slope * x)


def masked_fill(x: Operand, mask: Operand, value: float) -> Tensor:
    """``value`` where the mask is true, ``x`` elsewhere."""
    return where(mask, value, x)


def allclose(x: Operand, y: Operand, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Whether ``|x - y| <= atol + rtol |y|`` everywhere."""
    return bool(np.allclose(as_tensor(x).numpy(), as_tensor(y).numpy(), rtol=rtol, atol=atol))


@fused("layer_norm")
def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdims=True)
    y = centred / ((centred * centred).mean(-1, keepdims=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm(x: Operand, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Each row of the last axis, shifted to mean 0 and scaled to variance 1 (Ba et al. 2016).

    ``(x - mean) / sqrt(var + eps) * weight + bias``; the variance divides by N.
    """
    return _layer_norm(_floating(as_tensor(x)), weight, bias, eps=eps)


def dropout(x: Operand, p: float = 0.5, training: bool = True) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p) (Srivastava et al. 2014).

    Raises:
        ValueError: p is not in [0, 1].
    """
    x = as_tensor(x)
    if not 0 <= p <= 1:
        raise ValueError(f"a dropout probability lies in [0, 1], got {p}")
    if not training or p == 0:
        return x
    if p == 1:
        return x * 0.0
    return x * (random.bernoulli(1 - p, x.shape).astype(x.dtype) * (1 / (1 - p)))


# --- losses -----------------------------------------------------------------------------------------------------------


def _reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")


def _same_shape(x: Tensor, target: Tensor, what: str) -> None:
    if x.shape != target.shape:
        raise ShapeError(f"{what} needs inputs of one shape, got {x.shape} and a target of {target.shape}")


def _positions(x: Tensor) -> Tensor:
    """0, 1, ... for the elements of a vector; said by a primitive, so that compilers know that no two rows are the same."""
    return apply(TABLE["positions"], (x,), {"axis": -1})


@fused("softmax_cross_entropy")
def softmax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``logsumexp(logits) - logits[target]`` for each row: (N, C) and integers (N,) give (N,)."""
    return logsumexp(logits, -1) - logits[_positions(targets), targets]


def cross_entropy(
    logits: Operand,
    targets: Operand,
    weight: Operand | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The negative log-likelihood of targets under softmax(logits), in nats.

    Args:
        logits: (C,), (N, C) or (N, C, d1, ...): classes on axis 1, as in PyTorch.
        targets: integer classes of shape (), (N,) or (N, d1, ...); or probabilities of the shape of ``logits``.
        weight: a factor for each class (C,); the mean is then weighted.
        ignore_index: targets of this value count for nothing.
        reduction: "mean" over what counts, "sum", or "none".
        label_smoothing: how much of each target is spread over all classes (Szegedy et al. 2016).

    Raises:
        ShapeError: shapes that do not fit, or a target that is not in [0, C).

    >>> import tinyseq as ts
    >>> f"{ts.cross_entropy(ts.tensor([[0.0, 0.0]]), ts.tensor([1])).item():.4f}"
    '0.6931'
    """
    logits, targets = _floating(as_tensor(logits)), as_tensor(targets)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing lies in [0, 1], got {label_smoothing}")
    if targets.dtype.kind in "fV":
        return _soft_cross_entropy(logits, targets, weight, reduction, label_smoothing)
    rows, flat, shape = _class_rows(logits, targets, "cross_entropy")
    valid, safe = _valid_targets(flat, rows.shape[1], ignore_index, "cross_entropy")
    losses = softmax_cross_entropy(rows, safe)
    if label_smoothing:
        logp = log_softmax(rows)
        spread = logp.mean(-1) if weight is None else (logp * as_tensor(weight)).mean(-1)
        if weight is not None:
            losses = losses * as_tensor(weight)[safe]
        losses = (1 - label_smoothing) * losses - label_smoothing * spread
    elif weight is not None:
        losses = losses * as_tensor(weight)[safe]
    return _reduce_valid(losses, valid, safe, weight, reduction, shape)


def nll_loss(
    logp: Operand,
    targets: Operand,
    weight: Operand | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """``-logp[target]``: as :func:`cross_entropy`, of log-probabilities."""
    logp, targets = _floating(as_tensor(logp)), as_tensor(targets)
    rows, flat, shape = _class_rows(logp, targets, "nll_loss")
    valid, safe = _valid_targets(flat, rows.shape[1], ignore_index, "nll_loss")
    losses = -rows[_positions(safe), safe]
    if weight is not None:
        losses = losses * as_tensor(weight)[safe]
    return _reduce_valid(losses, valid, safe, weight, reduction, shape)


def _class_rows(logits: Tensor, targets: Tensor, what: str) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Logits as rows (N, C) and targets as (N,), with the shape that the losses have."""
    if logits.ndim == 0:
        raise ShapeError(f"{what} needs logits with an axis for the classes, got a single number")
    if logits.ndim == 1:
        shape: tuple[int, ...] = ()
        logits = logits.unsqueeze(0)
    else:
        shape = (logits.shape[0], *logits.shape[2:])
    if targets.shape != shape:
        raise ShapeError(f"{what}: logits of shape {logits.shape} need targets of shape {shape}, got {targets.shape}")
    if logits.ndim > 2:
        logits = moveaxis(logits, 1, -1)
        logits = logits.reshape(-1, logits.shape[-1])
    return logits, targets.reshape(-1), shape


def _valid_targets(targets: Tensor, classes: int, ignore_index: int, what: str) -> tuple[Tensor | None, Tensor]:
    """Which targets count (None: all), and the targets with the others replaced by a class that exists."""
    valid = targets != ignore_index
    if targets.backend.device == "cpu" and bool(valid.all()):
        return None, _checked_ids(targets, classes, what)
    return valid, _checked_ids(where(valid, targets, 0), classes, what)


def _reduce_valid(
    losses: Tensor, valid: Tensor | None, safe: Tensor, weight: Operand | None, reduction: str, shape: tuple[int, ...]
) -> Tensor:
    if valid is not None:
        losses = where(valid, losses, 0.0)
    if reduction != "mean" or (valid is None and weight is None):
        return _reduce(losses.reshape(shape) if reduction == "none" else losses, reduction)
    counts = as_tensor(weight)[safe] if weight is not None else zeros(safe.shape, losses.dtype) + 1.0
    count = (counts if valid is None else where(valid, counts, 0.0)).sum()
    return losses.sum() / where(count == 0, math.nan, count)  # nothing counts: NaN, as in PyTorch, and no warning


def _soft_cross_entropy(
    logits: Tensor, targets: Tensor, weight: Operand | None, reduction: str, label_smoothing: float
) -> Tensor:
    _same_shape(logits, targets, "cross_entropy with probabilities")
    at = 0 if logits.ndim == 1 else 1
    classes = logits.shape[at]
    if label_smoothing:
        targets = targets * (1 - label_smoothing) + label_smoothing / classes
    products = moveaxis(targets * log_softmax(logits, at), at, -1)
    losses = -(products if weight is None else products * as_tensor(weight)).sum(-1)
    return _reduce(losses, reduction)


def mse_loss(x: Operand, target: Operand, reduction: str = "mean") -> Tensor:
    """``(x - target)^2``."""
    x, target = as_tensor(x), as_tensor(target)
    _same_shape(x, target, "mse_loss")
    return _reduce(square(x - target), reduction)


def l1_loss(x: Operand, target: Operand, reduction: str = "mean") -> Tensor:
    """``|x - target|``."""
    x, target = as_tensor(x), as_tensor(target)
    _same_shape(x, target, "l1_loss")
    return _reduce(abs_(x - target), reduction)


def huber_loss(x: Operand, target: Operand, delta: float = 1.0, reduction: str = "mean") -> Tensor:
    """``d^2 / 2`` for ``|d| <= delta``, else ``delta (|d| - delta / 2)``, with d = x - target (Huber 1964)."""
    x, target = as_tensor(x), as_tensor(target)
    _same_shape(x, target, "huber_loss")
    if delta <= 0:
        raise ValueError(f"huber_loss needs delta > 0, got {delta}")
    difference = x - target
    distance = abs_(difference)
    # The square is of the difference: that of |d| has the slope 0 twice over at d = 0, and so no second derivative.
    losses = where(distance <= delta, 0.5 * difference * difference, delta * (distance - 0.5 * delta))
    return _reduce(losses, reduction)


def smooth_l1_loss(x: Operand, target: Operand, beta: float = 1.0, reduction: str = "mean") -> Tensor:
    """``d^2 / (2 beta)`` for ``|d| < beta``, else ``|d| - beta / 2``; beta = 0 is :func:`l1_loss` (Girshick 2015)."""
    if beta == 0:
        return l1_loss(x, target, reduction)
    return huber_loss(x, target, beta, reduction) / beta


def _log_or_100(p: Tensor) -> Tensor:
    zero = p <= 0
    return where(zero, -100.0, log(where(zero, 1.0, p))).clip(-100.0)


def binary_cross_entropy(p: Operand, target: Operand, weight: Operand | None = None, reduction: str = "mean") -> Tensor:
    """``-(t log p + (1 - t) log(1 - p))``; logarithms go no lower than -100, as in PyTorch."""
    p, target = as_tensor(p), as_tensor(target)
    _same_shape(p, target, "binary_cross_entropy")
    if p.backend.device == "cpu" and p.size and not bool(((p >= 0) & (p <= 1) | isnan(p)).all()):
        raise ValueError("binary_cross_entropy needs probabilities in [0, 1]; for logits use binary_cross_entropy_with_logits")
    # Where p is 0 or 1 the slope (p - t) / (p (1 - p)) is bounded: a sure prediction that is wrong can still learn.
    fixed = p.detach()
    least = float(np.float32(1e-12))  # PyTorch's bound, a single-precision constant
    sure = fixed * (1 - fixed) < least
    at_fixed = target * _log_or_100(fixed) + (1 - target) * _log_or_100(1 - fixed)
    bounded = (p - fixed) * ((fixed - target.detach()) / least) - at_fixed
    unsure = where(sure, 0.5, p)
    losses = where(sure, bounded, -(target * log(unsure) + (1 - target) * log(1 - unsure)))
    return _reduce(losses if weight is None else losses * weight, reduction)


def binary_cross_entropy_with_logits(
    x: Operand,
    target: Operand,
    weight: Operand | None = None,
    reduction: str = "mean",
    pos_weight: Operand | None = None,
) -> Tensor:
    """:func:`binary_cross_entropy` of sigmoid(x), without overflow; ``pos_weight`` multiplies the positive term."""
    x, target = as_tensor(x), as_tensor(target)
    _same_shape(x, target, "binary_cross_entropy_with_logits")
    if pos_weight is None:
        losses = softplus(x) - target * x
    else:
        losses = (1 - target) * x + (1 + (as_tensor(pos_weight) - 1) * target) * softplus(-x)
    return _reduce(losses if weight is None else losses * weight, reduction)


def kl_div(logp: Operand, target: Operand, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """``t (log t - logp)``, the divergence of ``target`` from exp(logp); "batchmean" divides the sum by the batch."""
    logp, target = as_tensor(logp), as_tensor(target)
    if log_target:
        losses = exp(target) * (target - logp)
    else:
        positive = target > 0
        losses = where(positive, target * (log(where(positive, target, 1.0)) - logp), 0.0)
    if reduction == "batchmean":
        return losses.sum() / losses.shape[0]
    return _reduce(losses, reduction)


def cosine_similarity(x: Operand, y: Operand, axis: int = -1, eps: float = 1e-8) -> Tensor:
    """``x . y / (|x| |y|)`` along an axis; each norm counts as no less than ``eps``."""
    x, y = _agree(as_tensor(x), as_tensor(y))
    return (x * y).sum(axis) / (norm(x, axis).clip(eps) * norm(y, axis).clip(eps))
