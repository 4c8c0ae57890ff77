"""Composed functions: values against NumPy and SciPy's formulas, derivatives of two orders against differences, extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.tensor import Tensor

RNG = np.random.default_rng(11)
X, Y = RNG.normal(size=(2, 3, 4))
BLOCK = RNG.normal(size=(2, 3, 4))
P = RNG.uniform(0.1, 0.9, size=(3, 4))
IDS = np.array([1, 0, 3])


def _lse(x: Any, axis: Any = -1, keepdims: bool = False) -> Any:
    return np.log(np.exp(x).sum(axis=axis, keepdims=keepdims))


def _erf(x: Any) -> Any:
    return np.vectorize(math.erf)(x)


def _norm_rows(x: Any, eps: float = 1e-5) -> Any:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


# name: ours, NumPy's, the arrays
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]] = {
    "softmax": (ts.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), (X,)),
    "softmax of axis 0": (lambda x: ts.softmax(x, 0), lambda x: np.exp(x) / np.exp(x).sum(0), (X,)),
    "softmax in the middle": (lambda x: ts.softmax(x, 1), lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), (BLOCK,)),
    "log_softmax": (ts.log_softmax, lambda x: x - _lse(x, keepdims=True), (X,)),
    "log_softmax of axis 0": (lambda x: ts.log_softmax(x, 0), lambda x: x - _lse(x, 0, True), (X,)),
    "logsumexp": (ts.logsumexp, _lse, (X,)),
    "logsumexp of all": (lambda x: ts.logsumexp(x, None), lambda x: _lse(x, None), (X,)),
    "logsumexp of two": (lambda x: ts.logsumexp(x, (0, 2), True), lambda x: _lse(x, (0, 2), True), (BLOCK,)),
    "logaddexp": (ts.logaddexp, np.logaddexp, (X, Y)),
    "logaddexp, broadcast": (ts.logaddexp, np.logaddexp, (X, Y[0])),
    "square": (ts.square, np.square, (X,)),
    "softplus": (ts.softplus, lambda x: np.log1p(np.exp(x)), (X,)),
    "softplus with beta": (lambda x: ts.softplus(x, 2.0), lambda x: np.log1p(np.exp(2 * x)) / 2, (X,)),
    "silu": (ts.silu, lambda x: x / (1 + np.exp(-x)), (X,)),
    "gelu": (ts.gelu, lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2, (X,)),
    "gelu by tanh": (
        lambda x: ts.gelu(x, approximate=True),
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        (X,),
    ),
    "elu": (lambda x: ts.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(x)), (X,)),
    "leaky_relu": (lambda x: ts.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x), (X,)),
    "relu": (ts.relu, lambda x: np.maximum(x, 0), (X,)),
    "layer_norm": (ts.layer_norm, _norm_rows, (X,)),
    "layer_norm with weight and bias": (ts.layer_norm, lambda x, w, b: _norm_rows(x) * w + b, (X, Y[0], Y[1])),
    "var": (lambda x: ts.var(x, 0), lambda x: x.var(0, ddof=1), (X,)),
    "var of all": (lambda x: ts.var(x, correction=0), np.var, (X,)),
    "std": (lambda x: ts.std(x, (0, -1), keepdims=True), lambda x: x.std((0, -1), ddof=1, keepdims=True), (BLOCK,)),
    "norm": (ts.norm, np.linalg.norm, (X,)),
    "norm of rows": (lambda x: ts.norm(x, -1), lambda x: np.linalg.norm(x, axis=-1), (X,)),
    "prod": (ts.prod, np.prod, (X,)),
    "prod of an axis": (lambda x: ts.prod(x, 1, keepdims=True), lambda x: np.prod(x, 1, keepdims=True), (BLOCK,)),
    "prod of two": (lambda x: ts.prod(x, (0, 2)), lambda x: np.prod(x, (0, 2)), (BLOCK,)),
    "mean": (lambda x: ts.mean(x, (0, 1)), lambda x: x.mean((0, 1)), (BLOCK,)),
    "max": (lambda x: ts.max(x, (0, 2)), lambda x: x.max((0, 2)), (BLOCK,)),
    "min": (lambda x: ts.min(x, 1, keepdims=True), lambda x: x.min(1, keepdims=True), (BLOCK,)),
    "cumsum": (lambda x: ts.cumsum(x, 1), lambda x: x.cumsum(1), (BLOCK,)),
    "clip": (lambda x: ts.clip(x, -0.5, 0.5), lambda x: x.clip(-0.5, 0.5), (X,)),
    "power": (lambda x, y: ts.exp(x) ** y, lambda x, y: np.exp(x) ** y, (X, Y)),
    "maximum": (ts.maximum, np.maximum, (X, Y)),
    "where": (lambda x, y: ts.where(x > y, x, y * 2), lambda x, y: np.where(x > y, x, y * 2), (X, Y)),
    "masked_fill": (lambda x: ts.masked_fill(x, x > 0, -7.0), lambda x: np.where(x > 0, -7, x), (X,)),
    "concatenate": (lambda x, y: ts.concatenate([x, y, x], -1), lambda x, y: np.concatenate([x, y, x], -1), (X, Y)),
    "stack": (lambda x, y: ts.stack([x, y], 1), lambda x, y: np.stack([x, y], 1), (X, Y)),
    "stack last": (lambda x, y: ts.stack([x, y], -1), lambda x, y: np.stack([x, y], -1), (X, Y)),
    "split": (lambda x: ts.split(x, [1, 3], 1)[1], lambda x: x[:, 1:], (X,)),
    "split by a number": (lambda x: ts.split(x, 3, 1)[1], lambda x: x[:, 3:], (X,)),
    "chunk": (lambda x: ts.chunk(x, 2, 0)[0], lambda x: x[:2], (X,)),
    "pad": (lambda x: ts.pad(x, [(1, 0), (0, 2)], 3.0), lambda x: np.pad(x, [(1, 0), (0, 2)], constant_values=3), (X,)),
    "roll": (lambda x: ts.roll(x, 5, 1), lambda x: np.roll(x, 5, 1), (X,)),
    "roll back": (lambda x: ts.roll(x, -1, 0), lambda x: np.roll(x, -1, 0), (X,)),
    "tile": (lambda x: ts.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), (X,)),
    "repeat": (lambda x: ts.repeat(x, 3, 0), lambda x: np.repeat(x, 3, 0), (X,)),
    "moveaxis": (lambda x: ts.moveaxis(x, 0, -1), lambda x: np.moveaxis(x, 0, -1), (BLOCK,)),
    "flip": (lambda x: ts.flip(x, (0, 2)), lambda x: np.flip(x, (0, 2)), (BLOCK,)),
    "transpose": (lambda x: ts.transpose(x, 0, 2), lambda x: x.swapaxes(0, 2), (BLOCK,)),
    "broadcast_to": (lambda x: ts.broadcast_to(x, 2, 3, 4), lambda x: np.broadcast_to(x, (2, 3, 4)), (X,)),
    "outer": (lambda x, y: ts.outer(x[0], y[1]), lambda x, y: np.outer(x[0], y[1]), (X, Y)),
    "tril": (lambda x: ts.tril(x, 1), lambda x: np.tril(x, 1), (BLOCK,)),
    "triu": (lambda x: ts.triu(x, -1), lambda x: np.triu(x, -1), (BLOCK,)),
    "sort": (lambda x: ts.sort(x, 0)[0], lambda x: np.sort(x, 0), (X,)),
    "sort descending": (lambda x: ts.sort(x, descending=True)[0], lambda x: -np.sort(-x), (X,)),
    "topk": (lambda x: ts.topk(x, 2)[0], lambda x: -np.sort(-x)[:, :2], (X,)),
    "topk smallest": (lambda x: ts.topk(x, 2, 0, largest=False)[0], lambda x: np.sort(x, 0)[:2], (X,)),
    "take_along_axis": (
        lambda x: ts.take_along_axis(x, ts.tensor(IDS[:, None]), 1),
        lambda x: np.take_along_axis(x, IDS[:, None], 1),
        (X,),
    ),
    "embedding": (lambda t: ts.embedding(t, ts.tensor([[2, 0], [2, 2]])), lambda t: t[[[2, 0], [2, 2]]], (X,)),
    "linear": (ts.linear, lambda x, w, b: x @ w.T + b, (BLOCK, Y, X[:, 0])),
    "matmul": (ts.matmul, np.matmul, (BLOCK, Y.T)),
    "vector by matrix": (lambda x, y: x[0] @ y.mT, lambda x, y: x[0] @ y.T, (X, Y)),
    "cosine_similarity": (
        ts.cosine_similarity,
        lambda x, y: (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)),
        (X, Y),
    ),
    "mse_loss": (ts.mse_loss, lambda x, y: ((x - y) ** 2).mean(), (X, Y)),
    "l1_loss": (ts.l1_loss, lambda x, y: np.abs(x - y).mean(), (X, Y)),
    "huber_loss": (
        lambda x, y: ts.huber_loss(x, y, 0.7, "none"),
        lambda x, y: np.where(np.abs(x - y) < 0.7, (x - y) ** 2 / 2, 0.7 * (np.abs(x - y) - 0.35)),
        (X, Y),
    ),
    "smooth_l1_loss": (
        lambda x, y: ts.smooth_l1_loss(x, y, 0.7, "sum"),
        lambda x, y: np.where(np.abs(x - y) < 0.7, (x - y) ** 2 / 1.4, np.abs(x - y) - 0.35).sum(),
        (X, Y),
    ),
    "binary_cross_entropy": (
        lambda p: ts.binary_cross_entropy(p, ts.tensor(P[::-1].copy())),
        lambda p: -(P[::-1] * np.log(p) + (1 - P[::-1]) * np.log(1 - p)).mean(),
        (P,),
    ),
    "binary_cross_entropy_with_logits": (
        lambda x: ts.binary_cross_entropy_with_logits(x, ts.tensor(P), pos_weight=ts.tensor(2.0, dtype=ts.float64)),
        lambda x: (2 * P * np.log1p(np.exp(-x)) + (1 - P) * np.log1p(np.exp(x))).mean(),
        (X,),
    ),
    "cross_entropy": (
        lambda x: ts.cross_entropy(x, ts.tensor(IDS)),
        lambda x: (_lse(x) - x[np.arange(3), IDS]).mean(),
        (X,),
    ),
    "cross_entropy, smoothed": (
        lambda x: ts.cross_entropy(x, ts.tensor(IDS), label_smoothing=0.2, reduction="sum"),
        lambda x: (0.8 * (_lse(x) - x[np.arange(3), IDS]) + 0.2 * (_lse(x, keepdims=True) - x).mean(-1)).sum(),
        (X,),
    ),
    "cross_entropy, one ignored": (
        lambda x: ts.cross_entropy(x, ts.tensor([1, -100, 3])),
        lambda x: (_lse(x) - x[np.arange(3), IDS])[[0, 2]].mean(),
        (X,),
    ),
    "cross_entropy, weighted": (
        lambda x: ts.cross_entropy(x, ts.tensor(IDS), weight=ts.tensor(P[0])),
        lambda x: ((_lse(x) - x[np.arange(3), IDS]) * P[0][IDS]).sum() / P[0][IDS].sum(),
        (X,),
    ),
    "cross_entropy of probabilities": (
        lambda x: ts.cross_entropy(x, ts.softmax(ts.tensor(Y))),
        lambda x: ((_lse(x, keepdims=True) - x) * np.exp(Y) / np.exp(Y).sum(-1, keepdims=True)).sum(-1).mean(),
        (X,),
    ),
    "nll_loss": (
        lambda x: ts.nll_loss(ts.log_softmax(x), ts.tensor(IDS), reduction="none"),
        lambda x: _lse(x) - x[np.arange(3), IDS],
        (X,),
    ),
    "kl_div": (
        lambda x: ts.kl_div(ts.log_softmax(x), ts.tensor(P), "batchmean"),
        lambda x: (P * (np.log(P) - x + _lse(x, keepdims=True))).sum() / 3,
        (X,),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_value_and_two_derivatives(name: str) -> None:
    ours, theirs, arrays = CASES[name]
    y = ours(*(ts.tensor(a) for a in arrays))
    np.testing.assert_allclose(y.numpy(), theirs(*arrays), rtol=1e-11, atol=1e-13, strict=True)
    ts.check_grads(ours, [ts.tensor(a) for a in arrays], order=2, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in CASES if "cross_entropy" not in name and name != "kl_div"])
def test_in_float32_it_stays_there(name: str) -> None:
    """The result and the gradients are float32, and close to those of float64."""
    ours, _, arrays = CASES[name]
    wide = [ts.tensor(a.astype(np.float32).astype(float), requires_grad=True) for a in arrays]
    narrow = [ts.tensor(a.astype(np.float32), requires_grad=True) for a in arrays]
    expected, y = ours(*wide), ours(*narrow)
    assert y.dtype == ts.float32
    np.testing.assert_allclose(y.numpy(), expected.numpy(), rtol=2e-5, atol=2e-6)
    expected.sum().backward()
    y.sum().backward()
    for a, b in zip(narrow, wide, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert a.grad.dtype == ts.float32
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=2e-5)


# --- extremes: no overflow, no NaN from a branch that was not taken, and no warning -------------------------------------


def _slope(f: Callable[[Tensor], Tensor], at: list[float]) -> tuple[list[float], list[float]]:
    x = ts.tensor(at, dtype=ts.float64, requires_grad=True)
    y = f(x)
    y.sum().backward()
    assert x.grad is not None
    return y.tolist(), x.grad.tolist()


def test_softmax_and_logsumexp_of_huge_numbers() -> None:
    assert ts.softmax(ts.tensor([1e4, 1e4, -1e4])).tolist() == [0.5, 0.5, 0.0]
    assert ts.log_softmax(ts.tensor([0.0, 1e4])).tolist() == [-1e4, 0.0]
    value, slope = _slope(ts.logsumexp, [1e4, -1e4])
    assert (value, slope) == (1e4, [1.0, 0.0])
    assert ts.logsumexp(ts.tensor([-math.inf, 2.0])).item() == 2.0


def test_a_masked_softmax_gives_the_masked_nothing() -> None:
    x = ts.tensor([1.0, -math.inf, 1.0], dtype=ts.float64, requires_grad=True)
    y = ts.softmax(x)
    assert y.tolist() == [0.5, 0.0, 0.5]
    (y * ts.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [-0.5, 0.0, 0.5])


def test_logsumexp_of_nothing_but_minus_infinity() -> None:
    value, slope = _slope(ts.logsumexp, [-math.inf, -math.inf])
    assert value == -math.inf
    assert slope == [0.0, 0.0]


def test_softplus_and_sigmoid_in_both_tails() -> None:
    value, slope = _slope(ts.softplus, [-800.0, -40.0, 0.0, 800.0])
    np.testing.assert_allclose(value, [0.0, math.exp(-40), math.log(2), 800.0], rtol=1e-12)
    np.testing.assert_allclose(slope, [0.0, math.exp(-40), 0.5, 1.0], rtol=1e-12)
    value, slope = _slope(ts.sigmoid, [-800.0, -40.0, 40.0, 800.0])
    np.testing.assert_allclose(value, [0.0, math.exp(-40), 1.0, 1.0], rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(slope, [0.0, math.exp(-40), math.exp(-40), 0.0], rtol=1e-12, atol=1e-16)


def test_softplus_at_zero_to_the_third_order() -> None:
    """It is smooth there, though it is made of pieces that are not; so is cross-entropy at a logit of zero."""
    ts.check_grads(ts.softplus, [ts.tensor([0.0, 1.0])], order=3)
    x = ts.zeros(2, requires_grad=True)
    ts.binary_cross_entropy_with_logits(x, ts.tensor([1.0, 0.0]), reduction="sum").backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.5, 0.5]


def test_elu_and_where_take_no_nan_from_the_other_branch() -> None:
    assert _slope(ts.elu, [1000.0, -1000.0]) == ([1000.0, -1.0], [1.0, 0.0])
    safe = lambda x: ts.where(x > 0, ts.where(x > 0, x, 1.0).log(), 0.0)
    assert _slope(safe, [0.0, 1.0]) == ([0.0, 0.0], [0.0, 1.0])


def test_norm_at_zero() -> None:
    assert _slope(lambda x: ts.norm(x), [0.0, 0.0]) == (0.0, [0.0, 0.0])
    value, slope = _slope(lambda x: ts.norm(x), [3.0, 4.0])
    np.testing.assert_allclose([value, *slope], [5.0, 0.6, 0.8], rtol=1e-15)


def test_prod_at_zeros() -> None:
    """One zero: its slope is the product of the others. Two: nothing has a slope."""
    assert _slope(lambda x: ts.prod(x), [2.0, 0.0, 5.0]) == (0.0, [0.0, 10.0, 0.0])
    assert _slope(lambda x: ts.prod(x), [2.0, 0.0, 0.0]) == (0.0, [0.0, 0.0, 0.0])
    assert ts.prod(ts.tensor([2, 3])).item() == 6
    assert ts.prod(ts.zeros((2, 0)), axis=1).tolist() == [1.0, 1.0]
    ts.check_grads(lambda x: ts.prod(x), [ts.tensor([1.5, 0.0, -2.0, 3.0])], order=3)


def test_extrema_share_among_ties() -> None:
    assert _slope(lambda x: x.max(), [3.0, 1.0, 3.0])[1] == [0.5, 0.0, 0.5]
    assert _slope(lambda x: ts.maximum(x, 1.0), [1.0, 2.0, 0.0])[1] == [0.5, 1.0, 0.0]
    assert _slope(lambda x: ts.clip(x, 0.0, 1.0), [0.0, 1.0, 2.0, -1.0])[1] == [1.0, 1.0, 0.0, 0.0]


def test_binary_cross_entropy_of_certainty() -> None:
    value = ts.binary_cross_entropy(ts.tensor([0.0, 1.0]), ts.tensor([0.0, 1.0]))
    assert value.item() == 0.0
    assert ts.binary_cross_entropy(ts.tensor([0.0]), ts.tensor([1.0])).item() == 100.0
    logits = ts.binary_cross_entropy_with_logits(ts.tensor([1e4, -1e4]), ts.tensor([1.0, 1.0]), reduction="none")
    assert logits.tolist() == [0.0, 1e4]


def test_cross_entropy_of_huge_logits_and_of_nothing() -> None:
    assert ts.cross_entropy(ts.tensor([[1e4, 0.0]]), ts.tensor([1])).item() == 1e4
    assert math.isnan(ts.cross_entropy(ts.zeros((2, 3)), ts.tensor([-100, -100])).item())
    assert ts.cross_entropy(ts.zeros((2, 3)), ts.tensor([-100, -100]), reduction="sum").item() == 0.0


def test_cross_entropy_of_images() -> None:
    logits = RNG.normal(size=(2, 5, 3, 2))
    targets = RNG.integers(0, 5, (2, 3, 2))
    expected = _lse(logits, 1) - np.take_along_axis(logits, targets[:, None], 1)[:, 0]
    actual = ts.cross_entropy(ts.tensor(logits), ts.tensor(targets), reduction="none")
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


# --- integers, orders, one_hot, dropout -------------------------------------------------------------------------------


def test_orders_of_ties_are_stable() -> None:
    x = ts.tensor([2, 1, 2, 1])
    assert ts.argsort(x).tolist() == [1, 3, 0, 2]
    assert ts.argsort(x, descending=True).tolist() == [0, 2, 1, 3]
    assert ts.topk(x, 3)[1].tolist() == [0, 2, 1]
    assert ts.sort(x)[0].tolist() == [1, 1, 2, 2]


def test_one_hot_and_argmax_undo_each_other() -> None:
    ids = ts.tensor([[2, 0], [1, 2]])
    hot = ts.one_hot(ids, 3)
    assert hot.shape == (2, 2, 3)
    assert hot.argmax(-1).tolist() == ids.tolist()
    assert hot.sum(-1).tolist() == [[1, 1], [1, 1]]


def test_embedding_leaves_the_padding_row_alone() -> None:
    table = ts.tensor(X, requires_grad=True)
    ts.embedding(table, ts.tensor([0, 1, 1]), padding_idx=0).sum().backward()
    assert table.grad is not None
    assert table.grad.sum(1).tolist() == [0.0, 8.0, 0.0]


def test_dropout_keeps_the_mean_and_its_gradient_is_the_mask() -> None:
    ts.manual_seed(5)
    x = ts.ones(40_000, requires_grad=True)
    y = ts.dropout(x, 0.25)
    np.testing.assert_allclose(np.unique(y.numpy()), [0.0, 4 / 3], rtol=1e-6)
    assert abs(y.mean().item() - 1) < 0.02
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())
    assert ts.dropout(x, 0.25, training=False) is x
    assert ts.dropout(x, 1.0).sum().item() == 0.0


# --- einsum -----------------------------------------------------------------------------------------------------------

EQUATIONS = [
    "ij,jk->ik", "ij,kj->ik", "bij,bjk->bik", "bij,jk->bik", "i,i->", "i,j->ij", "ij->ji", "ij->", "ii->i", "ii->", "ij,j",
    "bhid,bhjd->bhij", "ij,jk,kl->il", "ijk,k,j->i", "ij,ij->ij", "...ij,...jk->...ik", "...i->...", "a,b,c->abc", "iij->ij",
    "ij,jk,ki->", "bi,bj->bij", "i...,i...->...",
]  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_as_numpy(equation: str) -> None:
    sizes = dict(zip("abcdhijkl", (2, 3, 2, 3, 2, 3, 4, 2, 3), strict=True))
    arrays = [
        RNG.normal(size=[size for c in term.replace("...", "..") for size in ((2, 3)[:1] if c == "." else (sizes[c],))])
        for term in equation.partition("->")[0].split(",")
    ]
    ours = lambda *xs: ts.einsum(equation, *xs)
    y = ours(*map(ts.tensor, arrays))
    np.testing.assert_allclose(y.numpy(), np.einsum(equation, *arrays), rtol=1e-11, atol=1e-13, strict=True)
    ts.check_grads(ours, [ts.tensor(a) for a in arrays], order=2, rtol=1e-6)


@st.composite
def _equations(draw: st.DrawFn) -> tuple[str, list[np.ndarray[Any, Any]]]:
    letters = "ijkl"
    sizes = {c: draw(st.integers(1, 3)) for c in letters}
    terms = draw(st.lists(st.text(letters, min_size=0, max_size=3), min_size=1, max_size=3))
    used = sorted(set("".join(terms)))
    output = "".join(draw(st.permutations(draw(st.lists(st.sampled_from(used), unique=True)) if used else [])))
    rng = np.random.default_rng(len(output))
    return ",".join(terms) + "->" + output, [np.asarray(rng.normal(size=[sizes[c] for c in t])) for t in terms]


@settings(max_examples=60)
@given(_equations())
def test_any_einsum_as_numpy(drawn: tuple[str, list[np.ndarray[Any, Any]]]) -> None:
    equation, arrays = drawn
    y = ts.einsum(equation, *map(ts.tensor, arrays))
    np.testing.assert_allclose(y.numpy(), np.einsum(equation, *arrays), rtol=1e-10, atol=1e-12)


# --- what does not fit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "error", "words"),
    [
        (lambda: ts.concatenate([]), ShapeError, "at least one"),
        (lambda: ts.split(ts.ones(4), 0), ShapeError, "0"),
        (lambda: ts.pad(ts.ones(4), [(1, 1), (1, 1)]), ShapeError, r"\(4,\)"),
        (lambda: ts.pad(ts.ones(4), [(-1, 0)]), ShapeError, "-1"),
        (lambda: ts.topk(ts.ones(4), 5), ShapeError, "5.*4"),
        (lambda: ts.take_along_axis(ts.ones((2, 2)), ts.tensor([0]), 0), ShapeError, "2 axes"),
        (lambda: ts.one_hot(ts.tensor([0.5]), 2), DTypeError, "float32"),
        (lambda: ts.one_hot(ts.tensor([-1]), 2), ShapeError, "-1"),
        (lambda: ts.embedding(ts.ones((3, 2)), ts.tensor([1.0])), DTypeError, "float32"),
        (lambda: ts.mse_loss(ts.ones(2), ts.ones(3)), ShapeError, r"\(2,\).*\(3,\)"),
        (lambda: ts.mse_loss(ts.ones(2), ts.ones(2), "avg"), ValueError, "'avg'"),
        (lambda: ts.cross_entropy(ts.ones((2, 3)), ts.tensor([0, 3])), ShapeError, "3"),
        (lambda: ts.cross_entropy(ts.ones((2, 3)), ts.tensor([0, 1]), label_smoothing=2.0), ValueError, "2.0"),
        (lambda: ts.binary_cross_entropy(ts.tensor([1.5]), ts.tensor([1.0])), ValueError, "with_logits"),
        (lambda: ts.huber_loss(ts.ones(1), ts.ones(1), 0.0), ValueError, "0.0"),
        (lambda: ts.einsum("ij->k", ts.ones((2, 2))), ShapeError, "'k'"),
        (lambda: ts.einsum("ij,j->i", ts.ones((2, 2))), ShapeError, "2 terms for 1"),
        (lambda: ts.einsum("ijk->i", ts.ones((2, 2))), ShapeError, r"\(2, 2\)"),
        (lambda: ts.einsum("ij->ii", ts.ones((2, 2))), ShapeError, "once"),
    ],
)
def test_what_does_not_fit(act: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        act()


PLAIN = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos,
    "tanh": np.tanh, "abs": np.abs, "neg": np.negative, "sign": np.sign, "floor": np.floor, "round": np.round,
    "isfinite": np.isfinite, "isnan": np.isnan, "logical_not": np.logical_not, "argmin": np.argmin, "argmax": np.argmax,
    "sum": np.sum, "prod": np.prod, "min": np.min, "max": np.max, "all": np.all, "any": np.any,
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "power": np.power, "minimum": np.minimum,
    "remainder": np.remainder, "floor_divide": np.floor_divide, "eq": np.equal, "ne": np.not_equal, "lt": np.less,
    "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "logical_and": np.logical_and,
    "logical_or": np.logical_or, "logical_xor": np.logical_xor,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PLAIN if hasattr(ts, name)])
def test_plain_functions_take_lists_as_numpy_does(name: str) -> None:
    lists = [[0.5, 2.0], [1.5, 0.25]]
    arguments = lists[: 2 if isinstance(PLAIN[name], np.ufunc) and PLAIN[name].nin == 2 else 1]
    expected = PLAIN[name](*(np.array(a) for a in arguments))
    actual = getattr(ts, name)(*arguments)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6)
    assert actual.shape == np.shape(expected)


def test_allclose() -> None:
    assert ts.allclose([1.0, 2.0], ts.tensor([1.0, 2.0 + 1e-6]))
    assert not ts.allclose([1.0, 2.0], ts.tensor([1.0, 2.1]))
