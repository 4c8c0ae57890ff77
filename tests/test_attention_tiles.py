"""Attention by tiles against its definition: every mask, sizes that no tile divides, both dtypes, all gradients."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tinyseq_numpy.attention as tiles

import tinyseq as ts
from tinyseq import nn
from tinyseq.backend import Backend
from tinyseq.nn import functional as F

B, H, E, V = 2, 3, 4, 6
TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


@pytest.fixture(params=["numpy", "numba", "numba-2-threads"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """With tiles so small that every call has many, of both axes and of the heads."""
    for name, size in {"ROWS": 4, "COLUMNS": 7, "COLUMNS_BY_MASK": 5, "TILE": 64}.items():
        monkeypatch.setattr(tiles, name, size)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2" if request.param.endswith("threads") else "1")
    with ts.use_backend(request.param.split("-")[0]) as backend:
        if backend.name == "numba":
            from tinyseq_numba.attention import Attention

            monkeypatch.setitem(backend.fused, "attention", Attention())
        yield backend


def masks(rng: np.random.Generator, kind: str, L: int, S: int) -> np.ndarray | None:
    if kind == "none":
        return None
    if kind == "rows":
        mask = rng.random((L, S)) < 0.4
        mask[min(3, L - 1)] = False  # a query that sees nothing
        return mask
    if kind == "padding":
        return np.arange(S) < np.array([S // 2, 0])[:, None, None, None]
    if kind == "heads":
        return rng.random((B, H, L, S)) < 0.5
    if kind == "queries":
        return rng.random((H, L, 1)) < 0.5
    if kind == "late":  # whole tiles are hidden, the first among them
        return np.broadcast_to(np.arange(S) >= S - 2, (L, S))
    assert kind == "numbers"
    return np.where(rng.random((B, 1, L, S)) < 0.5, -np.inf, rng.standard_normal((B, 1, L, S)))


def answers(arrays: tuple[np.ndarray, ...], g: np.ndarray, fused: bool, **options: Any) -> list[np.ndarray]:
    kernel = ts.current_backend().fused["attention"]
    accepts = type(kernel).accepts
    inputs = [ts.tensor(x, requires_grad=True) for x in arrays]
    try:
        if not fused:
            type(kernel).accepts = lambda *arguments, **options: False
        y = F.scaled_dot_product_attention(*inputs, **options)
    finally:
        type(kernel).accepts = accepts
    assert (y.node.primitive.name == "attention") == fused
    y.backward(ts.tensor(g))
    return [y.detach().numpy(), *(x.grad.numpy() for x in inputs)]


def drawn(rng: np.random.Generator, L: int, S: int, dtype: type) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    q, k, v, g = (rng.standard_normal((B, H, *shape)).astype(dtype) for shape in [(L, E), (S, E), (S, V), (L, V)])
    return (q, k, v), g


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("kind", ["none", "causal", "rows", "padding", "heads", "queries", "late", "numbers"])
@pytest.mark.parametrize(("L", "S"), [(1, 1), (5, 5), (9, 23), (23, 9), (8, 14)])
def test_equals_the_definition(backend: Backend, rng: np.random.Generator, L: int, S: int, kind: str, dtype: type) -> None:
    arrays, g = drawn(rng, L, S, dtype)
    mask = None if kind == "causal" else masks(rng, kind, L, S)
    options = {"attn_mask": None if mask is None else ts.tensor(mask), "is_causal": kind == "causal"}
    for got, want in zip(answers(arrays, g, True, **options), answers(arrays, g, False, **options), strict=True):
        assert got.dtype == want.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(want).max()))


def test_a_scale_and_no_axes_in_front(backend: Backend, rng: np.random.Generator) -> None:
    q, k, v = rng.standard_normal((9, E)), rng.standard_normal((15, E)), rng.standard_normal((15, V))
    scores = 0.3 * q @ k.T
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    got = F.scaled_dot_product_attention(ts.tensor(q), ts.tensor(k), ts.tensor(v), scale=0.3)
    np.testing.assert_allclose(got.numpy(), weights @ v, rtol=1e-12)


def test_arrays_that_are_not_in_one_piece(backend: Backend, rng: np.random.Generator) -> None:
    """As heads are, cut from one projection; a cotangent may be a broadcast view."""
    wide = rng.standard_normal((B, 9, 3, H, E))
    q, k, v = (ts.tensor(wide, requires_grad=True)[:, :, place].transpose(1, 2) for place in range(3))
    copies = tuple(np.ascontiguousarray(x.detach().numpy()) for x in (q, k, v))
    want = answers(copies, np.ones((B, H, 9, E)), False, is_causal=True)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    got = [y, *ts.grad(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True).sum(), argnums=(0, 1, 2))(q, k, v)]
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["causal", "rows", "numbers"])
def test_second_derivatives(backend: Backend, rng: np.random.Generator, kind: str) -> None:
    arrays, _ = drawn(rng, 6, 9, np.float64)
    mask = None if kind == "causal" else ts.tensor(masks(rng, kind, 6, 9))

    def f(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal")

    ts.check_grads(f, [ts.tensor(x) for x in arrays], order=2)


def test_extreme_scores(backend: Backend) -> None:
    """Scores of ten thousands overflow nothing; infinite ones are NaN as in the definition, row by row."""
    x = np.linspace(-300, 300, 9 * E).reshape(9, E)
    want = answers((x, x, x), np.ones((9, E)), False)
    for got, right in zip(answers((x, x, x), np.ones((9, E)), True), want, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-10, atol=1e-10)
    odd = np.ones((9, E))
    odd[2] = np.inf
    keys = np.ones((9, E))
    with np.errstate(all="ignore"):
        got, right = (answers((odd, keys, keys), np.ones((9, E)), fused)[0] for fused in (True, False))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(right))
    assert np.isnan(got[2]).all()
    assert np.isfinite(got[3]).all()


def test_what_a_mask_hides_may_be_nan(backend: Backend, rng: np.random.Generator) -> None:
    (q, k, v), g = drawn(rng, 5, 9, np.float64)
    shown = np.arange(9) < 6
    clean = answers((q, k, v), g, True, attn_mask=ts.tensor(shown))
    k[..., 6:, :] = np.nan
    for mask in (shown, np.where(shown, 0.0, -np.inf)):
        y = F.scaled_dot_product_attention(ts.tensor(q), ts.tensor(k), ts.tensor(v), ts.tensor(mask))
        np.testing.assert_array_equal(y.numpy(), clean[0])


def test_a_mask_that_asks_for_a_gradient_and_dropout_run_by_the_definition(backend: Backend, rng: np.random.Generator) -> None:
    (q, k, v), _ = drawn(rng, 5, 9, np.float64)
    tensors = [ts.tensor(x) for x in (q, k, v)]
    bias = ts.tensor(rng.standard_normal((5, 9)), requires_grad=True)
    ts.check_grads(lambda bias: F.scaled_dot_product_attention(*tensors, bias), [bias], order=1)
    dropped = F.scaled_dot_product_attention(*tensors, dropout_p=0.5)
    assert np.abs(dropped.numpy() - F.scaled_dot_product_attention(*tensors).numpy()).max() > 0.1


@pytest.mark.parametrize("masked", [False, True])
def test_multihead_attention_takes_it(
    backend: Backend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, masked: bool
) -> None:
    layer = nn.MultiheadAttention(12, 3, batch_first=True, dtype=ts.float64)
    x = ts.tensor(rng.standard_normal((2, 9, 12)), requires_grad=True)
    hidden = np.arange(9) >= np.array([9, 5])[:, None] if masked else None
    want, _ = layer(x, x, x, key_padding_mask=hidden, is_causal=True)
    taken = []
    kernel = backend.fused["attention"]
    forward = kernel.forward
    monkeypatch.setattr(kernel, "forward", lambda *x, **o: taken.append(o["is_causal"]) or forward(*x, **o))
    got, _ = layer(x, x, x, key_padding_mask=hidden, need_weights=False, is_causal=True)
    assert taken == [not masked]
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=0, atol=1e-12)


def test_memory_grows_with_the_steps_and_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 2048
    with ts.use_backend("numpy"):
        x = [ts.tensor(np.ones((1, 1, steps, 8), np.float32), requires_grad=True) for _ in range(3)]
        tracemalloc.start()
        F.scaled_dot_product_attention(*x, is_causal=True).sum().backward()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < steps * steps  # a quarter of what all scores would take
