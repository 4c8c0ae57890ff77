"""Attention and positional encodings against their equations, one query and one key at a time, and the laws they keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensors import array, draw, put

import tinyseq as ts
from tinyseq import nn
from tinyseq.nn import functional as F

F64 = np.float64
B, L, S, Q, K, A = 3, 4, 5, 2, 3, 6  # the letters of the docstrings
LENGTHS = [5, 2, 0]
BACKENDS = ["numpy", "numba"]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def read(scores: np.ndarray, values: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and mean of one query, over the keys that it may see; nothing to see gives zeros."""
    weights = np.zeros(len(scores))
    if seen.any():
        weights[seen] = softmax(scores[seen])
    return weights @ values, weights


# --- softmax with a mask ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_softmax(scale: float, dtype: str, backend: str, rng: np.random.Generator) -> None:
    x, mask = (rng.standard_normal((6, 5)) * scale).astype(dtype), rng.random((6, 5)) < 0.5
    mask[0], mask[1] = False, True
    with ts.use_backend(backend):
        y = F.masked_softmax(x, mask)
    assert y.dtype == dtype
    expected = [read(row.astype(F64), np.zeros(5), seen)[1] for row, seen in zip(x, mask, strict=True)]
    tolerance = {"float64": 1e-14, "float32": 1e-6, "float16": 2e-3}[dtype]
    np.testing.assert_allclose(array(y), expected, atol=tolerance)
    assert not array(y)[~mask].any()


def test_masked_softmax_gradients(rng: np.random.Generator) -> None:
    mask = rng.random((4, 5)) < 0.5
    mask[0], mask[1] = False, True
    ts.check_grads(lambda x: F.masked_softmax(x, mask), (draw(rng, 4, 5),), order=2)
    x = ts.tensor(np.where(mask, 1.0, np.nan), requires_grad=True)  # what is masked has no part in anything
    (F.masked_softmax(x, mask) * draw(rng, 4, 5)).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    assert not x.grad.numpy()[~mask].any()


# --- scaled dot-product attention -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "additive", "both", "causal", "none"])
def test_scaled_dot_product_attention(kind: str, rng: np.random.Generator) -> None:
    q, k, v = (rng.standard_normal(shape) for shape in ((B, 2, L, K), (B, 2, S, K), (B, 2, S, A)))
    seen = rng.random((B, 1, L, S)) < 0.6
    seen[0, 0, 1] = False
    extra = np.zeros((B, 1, L, S))
    mask: Any = seen
    if kind in ("additive", "both"):
        extra = rng.standard_normal((B, 1, L, S))
        mask = np.where(seen, extra, -np.inf) if kind == "both" else extra
        seen = seen if kind == "both" else np.ones_like(seen)
    elif kind != "bool":
        mask = None
        seen = np.broadcast_to(np.tri(L, S, dtype=bool) if kind == "causal" else np.ones((L, S), bool), seen.shape)
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal", scale=0.3)
    weights = F.attention_weights(q, k, mask, is_causal=kind == "causal", scale=0.3)
    for b, h, i in itertools.product(range(B), range(2), range(L)):
        scores = np.array([0.3 * q[b, h, i] @ k[b, h, j] + extra[b, 0, i, j] for j in range(S)])
        context, expected = read(scores, v[b, h], seen[b, 0, i])
        np.testing.assert_allclose(array(y)[b, h, i], context, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(array(weights)[b, h, i], expected, rtol=1e-10, atol=1e-14)


def test_scaled_dot_product_attention_gradients(rng: np.random.Generator) -> None:
    mask = rng.random((L, S)) < 0.5
    mask[1] = False

    def f(q: ts.Tensor, k: ts.Tensor, v: ts.Tensor, bias: ts.Tensor) -> ts.Tensor:
        return F.scaled_dot_product_attention(q, k, v, ts.where(mask, bias, -math.inf))

    ts.check_grads(f, (draw(rng, 2, L, K), draw(rng, 2, S, K), draw(rng, 2, S, 2), draw(rng, L, S)), order=2, step=1e-4)


def test_a_query_that_sees_nothing_gives_no_gradient(rng: np.random.Generator) -> None:
    q, k, v = (ts.tensor(rng.standard_normal((1, S, K)), requires_grad=True) for _ in range(3))
    F.scaled_dot_product_attention(q, k, v, np.zeros((S, S), bool)).sum().backward()
    assert not any(x.grad.numpy().any() for x in (q, k, v))


def test_dropout_acts_on_the_weights(rng: np.random.Generator) -> None:
    """With values that are the unit vectors, the output is the weights."""
    x, unit = ts.tensor(rng.standard_normal((300, 20, 4))), np.eye(20)
    weights = F.attention_weights(x, x)
    dropped = array(F.scaled_dot_product_attention(x, x, np.broadcast_to(unit, (300, 20, 20)), dropout_p=0.25))
    kept = dropped != 0
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(dropped[kept], (array(weights) / 0.75)[kept], rtol=1e-10)


# --- the attentions of recurrent decoders -----------------------------------------------------------------------------


def energies(kind: str, attention: Any, s: np.ndarray, h: np.ndarray) -> np.ndarray:
    """The score of one query for each key, from the equations."""
    if kind == "additive":
        w, u, v = (array(x) for x in (attention.query.weight, attention.key.weight, attention.energy))
        b = array(attention.key.bias)
        return np.array([v @ np.tanh(w @ s + u @ h_j + b) for h_j in h])
    if kind == "general":
        return np.array([0.5 * s @ array(attention.key.weight) @ h_j for h_j in h])
    return np.array([s @ h_j / (math.sqrt(K) if kind == "scaled" else 1.0) for h_j in h])


ATTENTIONS: dict[str, Callable[[], Any]] = {
    "additive": lambda: nn.AdditiveAttention(Q, K, A, bias=True, dtype=F64),
    "general": lambda: nn.GeneralAttention(Q, K, scale=0.5, dtype=F64),
    "dot": lambda: nn.DotProductAttention(),
    "scaled": lambda: nn.DotProductAttention(scale=None),
}
each_attention = pytest.mark.parametrize("kind", ATTENTIONS)


def query_size(kind: str) -> int:
    return Q if kind in ("additive", "general") else K


@each_attention
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_follows_its_equations(
    kind: str, masked: bool, several: bool, backend: str, rng: np.random.Generator
) -> None:
    with ts.use_backend(backend):
        attention = ATTENTIONS[kind]()
        s, h = draw(rng, *((B, L) if several else (B,)), query_size(kind)), draw(rng, B, S, K)
        values = draw(rng, B, S, 2)
        context, weights = attention(s, h, values, lengths=LENGTHS if masked else None)
    for b in range(B):
        seen = np.arange(S) < (LENGTHS[b] if masked else S)
        for i in range(L if several else 1):
            at = (b, i) if several else (b,)
            expected = read(energies(kind, attention, array(s)[at], array(h)[b]), array(values)[b], seen)
            np.testing.assert_allclose(array(context)[at], expected[0], rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(array(weights)[at], expected[1], rtol=1e-10, atol=1e-14)


@each_attention
@pytest.mark.parametrize("several", [False, True])
def test_attention_gradients(kind: str, several: bool, rng: np.random.Generator) -> None:
    """With respect to queries, keys, values and all weights, once and twice; one row sees nothing."""
    attention = ATTENTIONS[kind]()
    names = [name for name, _ in attention.named_parameters()]

    def f(s: ts.Tensor, h: ts.Tensor, values: ts.Tensor, weights: list[ts.Tensor]) -> Any:
        put(attention, names, weights)
        return attention(s, h, values, lengths=LENGTHS)

    s = draw(rng, *((B, L) if several else (B,)), query_size(kind))
    weights = [parameter.detach() for parameter in attention.parameters()]
    ts.check_grads(f, (s, draw(rng, B, S, K), draw(rng, B, S, 2), weights), order=2, step=1e-4, directions=2)


@each_attention
def test_attention_laws(kind: str, rng: np.random.Generator) -> None:
    attention = ATTENTIONS[kind]()
    s, h = draw(rng, B, L, query_size(kind)), draw(rng, B, S, K)
    whole = [array(x) for x in attention(s, h, lengths=LENGTHS)]
    # A mask says the same as lengths; a memory made once can be read often; keys are the values unless there are others.
    memory = attention.remember(h, h, mask=np.arange(S) < np.array(LENGTHS)[:, None])
    for i in range(L):
        for one, all_ in zip(attention.read(s[:, i], memory), whole, strict=True):
            np.testing.assert_allclose(array(one), all_[:, i], rtol=1e-12, atol=1e-15)
    # A batch is its rows, and padding may hold any number.
    wild = array(h).copy()
    for b, length in enumerate(LENGTHS):
        wild[b, length:] = 1e30
        if length:
            context, weights = attention(s[b], h[b, :length])
            np.testing.assert_allclose(array(context), whole[0][b], rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(array(weights), whole[1][b, :, :length], rtol=1e-12, atol=1e-15)
    with np.errstate(over="ignore", invalid="ignore"):
        for one, all_ in zip(attention(s, wild, lengths=LENGTHS), whole, strict=True):
            np.testing.assert_array_equal(array(one), all_)


def test_attention_starts(rng: np.random.Generator) -> None:
    attention = nn.AdditiveAttention(30, 40, 100)
    shapes = {name: parameter.shape for name, parameter in attention.named_parameters()}
    assert shapes == {"query.weight": (100, 30), "key.weight": (100, 40), "energy": (100,)}
    energy = array(attention.energy)
    assert energy.dtype == np.float32
    assert 0.09 < np.abs(energy).max() <= 0.1


# --- MultiheadAttention -----------------------------------------------------------------------------------------------

E, H = 6, 3


def by_heads(layer: Any, q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row (L, E): every head and query by itself."""
    size = E // H
    w_q, w_k, w_v = np.split(array(layer.in_proj_weight), 3)
    b_q, b_k, b_v = np.split(array(layer.in_proj_bias), 3)
    contexts, weights = np.zeros((len(q), E)), np.zeros((H, len(q), len(k)))
    for h, i in itertools.product(range(H), range(len(q))):
        rows = slice(h * size, (h + 1) * size)
        query = w_q[rows] @ q[i] + b_q[rows]
        scores = np.array([query @ (w_k[rows] @ x + b_k[rows]) / math.sqrt(size) for x in k])
        values = np.array([w_v[rows] @ x + b_v[rows] for x in v])
        contexts[i, rows], weights[h, i] = read(scores, values, seen[i])
    return contexts @ array(layer.out_proj.weight).T + array(layer.out_proj.bias), weights


def multihead(**options: Any) -> Any:
    layer = nn.MultiheadAttention(E, H, **options, dtype=F64)
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("hidden", [False, True])
def test_multihead_follows_its_equations(hidden: bool, need_weights: bool, backend: str, rng: np.random.Generator) -> None:
    """Key padding that leaves one row nothing, a mask that leaves one query nothing, and the causal mask beside them."""
    with ts.use_backend(backend):
        layer = multihead()
        q, k, v = draw(rng, L, B, E), draw(rng, S, B, E), draw(rng, S, B, E)
        padding, mask = rng.random((B, S)) < 0.3, rng.random((L, S)) < 0.3
        padding[0], mask[2] = True, True
        masks = {"key_padding_mask": padding, "attn_mask": mask, "is_causal": True} if hidden else {}
        y, weights = layer(q, k, v, need_weights=need_weights, average_attn_weights=False, **masks)
    for b in range(B):
        seen = ~padding[b] & ~mask & np.tri(L, S, dtype=bool) if hidden else np.ones((L, S), bool)
        expected = by_heads(layer, *(array(x)[:, b] for x in (q, k, v)), seen)
        np.testing.assert_allclose(array(y)[:, b], expected[0], rtol=1e-10, atol=1e-13)
        if need_weights:
            np.testing.assert_allclose(array(weights)[b], expected[1], rtol=1e-10, atol=1e-14)
        else:
            assert weights is None


def test_multihead_says_the_same_in_many_ways(rng: np.random.Generator) -> None:
    layer, x, other = multihead(), draw(rng, S, B, E), draw(rng, S, B, E)
    hidden, padding = rng.random((S, S)) < 0.4, rng.random((B, S)) < 0.4
    hidden[:, 0] = padding[:, 0] = False
    y, weights = layer(x, other, other, padding, attn_mask=hidden)

    def same(got: tuple[Any, Any], exact: bool = False) -> None:
        tolerance = 0 if exact else 1e-13
        np.testing.assert_allclose(array(got[0]), array(y), rtol=0, atol=tolerance)
        np.testing.assert_allclose(array(got[1]), array(weights), rtol=0, atol=tolerance)

    same(layer(x, other, other * 1.0, padding, attn_mask=hidden))  # three products instead of two
    additive = [np.where(mask, -np.inf, 0.0) for mask in (padding, hidden)]
    same(layer(x, other, other, additive[0], attn_mask=additive[1]))
    same(layer(x, other, other, padding, attn_mask=additive[1].astype(np.float32)))
    same(layer(x, other, other, padding, attn_mask=np.broadcast_to(hidden, (B * H, S, S))))
    each = layer(x, other, other, padding, attn_mask=hidden, average_attn_weights=False)
    same((each[0], each[1].mean(1)))
    layer.batch_first = True
    turned = layer(*(t.transpose(0, 1) for t in (x, other, other)), padding, attn_mask=hidden)
    same((turned[0].transpose(0, 1), turned[1]), exact=True)
    layer.batch_first = False
    for b in range(B):  # a batch is its rows, and padding is as if it were not there
        kept = ~padding[b]
        row, seen = layer(x[:, b], other[kept, b], other[kept, b], attn_mask=hidden[:, kept])
        np.testing.assert_allclose(array(row), array(y)[:, b], rtol=0, atol=1e-13)
        np.testing.assert_allclose(array(seen), array(weights)[b][:, kept], rtol=0, atol=1e-13)
        assert not array(weights)[b][:, ~kept].any()
    causal, future = layer(x, x, x, is_causal=True)[0], array(x).copy()
    same_mask = layer(x, x, x, attn_mask=~np.tri(S, dtype=bool), is_causal=True)[0]
    np.testing.assert_allclose(array(causal), array(same_mask), rtol=0, atol=1e-13)
    future[3:] = 1e3
    np.testing.assert_array_equal(array(layer(future, future, future, is_causal=True)[0])[:3], array(causal)[:3])


@pytest.mark.parametrize("options", [{}, {"kdim": 2, "vdim": 4}, {"add_bias_kv": True, "add_zero_attn": True}, {"bias": False}])
def test_multihead_gradients(options: dict[str, Any], rng: np.random.Generator) -> None:
    layer = nn.MultiheadAttention(E, H, **options, dtype=F64)
    names = [name for name, _ in layer.named_parameters()]
    hidden = rng.random((B, S)) < 0.4
    hidden[0] = True

    def f(q: ts.Tensor, k: ts.Tensor, v: ts.Tensor, weights: list[ts.Tensor]) -> Any:
        put(layer, names, weights)
        return layer(q, k, v, hidden)

    inputs = (draw(rng, L, B, E), draw(rng, S, B, layer.kdim), draw(rng, S, B, layer.vdim))
    weights = [parameter.detach() for parameter in layer.parameters()]
    ts.check_grads(f, (*inputs, weights), order=2, step=1e-4, directions=2)


def test_multihead_dropout_acts_in_training_only(rng: np.random.Generator) -> None:
    layer, x = nn.MultiheadAttention(E, H, dropout=0.4, dtype=F64), draw(rng, 60, 20, E)
    plain = array(layer.eval()(x, x, x, average_attn_weights=False)[1])
    _, weights = layer.train()(x, x, x, average_attn_weights=False)
    kept = array(weights) != 0
    assert abs(kept.mean() - 0.6) < 0.01
    np.testing.assert_allclose(array(weights)[kept], plain[kept] / 0.6, rtol=1e-10)
    assert (array(layer(x, x, x, need_weights=False)[0]) != array(layer.eval()(x, x, x, need_weights=False)[0])).any()


def test_multihead_starts_as_in_pytorch() -> None:
    layer = nn.MultiheadAttention(200, 4, add_bias_kv=True)
    shapes = {name: parameter.shape for name, parameter in layer.named_parameters()}
    assert shapes == {
        "in_proj_weight": (600, 200),
        "in_proj_bias": (600,),
        "bias_k": (1, 1, 200),
        "bias_v": (1, 1, 200),
        "out_proj.weight": (200, 200),
        "out_proj.bias": (200,),
    }
    for weight, bound in [(layer.in_proj_weight, math.sqrt(6 / 800)), (layer.out_proj.weight, math.sqrt(1 / 200))]:
        assert 0.99 * bound < np.abs(array(weight)).max() <= bound
    assert not array(layer.in_proj_bias).any()
    assert not array(layer.out_proj.bias).any()
    assert abs(array(layer.bias_k).std() * math.sqrt(200) - 1) < 0.2
    others = nn.MultiheadAttention(6, 2, kdim=3, vdim=5)
    assert [name for name, _ in others.named_parameters()][:3] == ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    assert (others.k_proj_weight.shape, others.v_proj_weight.shape) == ((6, 3), (6, 5))


# --- positional encodings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize("start", [0, 7])
def test_sinusoidal_encoding(size: int, start: int) -> None:
    waves = array(nn.sinusoidal_encoding(9, size, "float64", start))
    for t, i in np.ndindex(9, size):
        angle = (t + start) / 10000 ** (2 * (i // 2) / size)
        np.testing.assert_allclose(waves[t, i], math.cos(angle) if i % 2 else math.sin(angle), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_positional_encodings(kind: str, rng: np.random.Generator) -> None:
    def make(**options: Any) -> Any:
        if kind == "sinusoidal":
            return nn.SinusoidalPositionalEncoding(E, **options)
        ts.manual_seed(1)
        return nn.LearnedPositionalEncoding(12, E, **options, dtype=F64)

    encode, x = make(), draw(rng, 10, B, E)
    rows = array(encode.weight) if kind == "learned" else array(nn.sinusoidal_encoding(12, E, "float64"))
    np.testing.assert_allclose(array(encode(x)), array(x) + rows[:10, None], rtol=1e-12)
    np.testing.assert_allclose(array(encode(x[:, 0])), array(x)[:, 0] + rows[:10], rtol=1e-12)
    np.testing.assert_allclose(array(encode(x[4:], start=4)), array(encode(x))[4:], rtol=1e-12)
    first = make(batch_first=True)
    np.testing.assert_allclose(array(first(x.transpose(0, 1))), array(encode(x)).swapaxes(0, 1), rtol=1e-12)
    assert encode(x.astype("float32")).dtype == ("float32" if kind == "sinusoidal" else "float64")
    dropping = make(dropout=0.5)
    dropped = array(dropping(x))
    assert 0.3 < (dropped == 0).mean() < 0.7
    np.testing.assert_allclose(dropped[dropped != 0], 2 * array(encode(x))[dropped != 0], rtol=1e-12)
    np.testing.assert_array_equal(array(dropping.eval()(x)), array(encode(x)))
    if kind == "learned":
        encode(x).sum().backward()
        np.testing.assert_array_equal(encode.weight.grad.numpy(), np.repeat([B, 0.0], [10, 2])[:, None] * np.ones(E))


# --- what is refused --------------------------------------------------------------------------------------------------

X = np.zeros((S, B, E), np.float32)
KEYS = np.zeros((B, S, K), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: F.masked_softmax(X, np.ones((E,))), ts.DTypeError, "booleans, True where a score counts, got dtype float64"),
        (lambda: F.masked_softmax(X, np.ones((2, E), bool)), ts.ShapeError, r"mask of shape \(2, 6\) does not broadcast"),
        (lambda: F.masked_softmax(X[0], np.ones(X.shape, bool)), ts.ShapeError, r"does not broadcast .* \(3, 6\)"),
        (lambda: F.scaled_dot_product_attention(X, X[..., :2], X), ts.ShapeError, r"with one E, got .* \(5, 3, 2\)"),
        (lambda: F.scaled_dot_product_attention(X, X, X[:, :2]), ts.ShapeError, "a value for each key"),
        (lambda: F.scaled_dot_product_attention(X, X[:, :0], X[:, :0]), ts.ShapeError, "at least one key"),
        (lambda: F.scaled_dot_product_attention(X, X, X, np.ones((B, B), int)), ts.DTypeError, "attn_mask is boolean, or"),
        (
            lambda: F.scaled_dot_product_attention(X, X, X, np.ones((B, B), bool), is_causal=True),
            ValueError,
            "attn_mask or is_causal=True, not both",
        ),
        (lambda: F.scaled_dot_product_attention(X, X, X, dropout_p=2.0), ValueError, r"lies in \[0, 1\], got 2.0"),
        (
            lambda: F.scaled_dot_product_attention(X, X[:3], X[:3], enable_gqa=True),
            ts.ShapeError,
            "divides the query's heads",
        ),
        (lambda: nn.AdditiveAttention(Q, K, 0), ts.ShapeError, "hidden_size >= 1, got 0"),
        (lambda: nn.AdditiveAttention(Q, 2, A)(X[0, :, :Q], KEYS), ts.ShapeError, r"keys \(B, S, 2\) .* \(3, 5, 3\)"),
        (lambda: nn.AdditiveAttention(Q, K, A)(X[0, :, :3], KEYS), ts.ShapeError, r"queries \(3, 2\) or \(3, 'L', 2\)"),
        (lambda: nn.DotProductAttention()(X[0, :2, :3], KEYS), ts.ShapeError, r"got shape \(2, 3\)"),
        (lambda: nn.DotProductAttention()(X[0, :, :2], KEYS), ts.ShapeError, "of one size, got 2 and 3; GeneralAttention"),
        (lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, KEYS[:, :2]), ts.ShapeError, "a value for each key"),
        (lambda: nn.DotProductAttention()(X[0, :, :3], KEYS[:, :0]), ts.ShapeError, "at least one in S"),
        (
            lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, mask=np.ones((B, S))),
            ts.DTypeError,
            "a boolean mask, True where there is something to look at",
        ),
        (
            lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, mask=np.ones((S, B), bool)),
            ts.ShapeError,
            r"mask of shape \(3, 5\)",
        ),
        (
            lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, mask=np.ones((B, S), bool), lengths=[1, 1, 1]),
            ValueError,
            "a mask or lengths, not both",
        ),
        (lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, lengths=[1, 1, 6]), ts.ShapeError, "5 steps .* got 6 in row 2"),
        (lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, lengths=[1, 1]), ts.ShapeError, r"shape \(3, 5\) .* \(2, 5\)"),
        (lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, lengths=[1.0] * 3), ts.DTypeError, "takes integers as lengths"),
        (lambda: nn.DotProductAttention()(X[0, :, :3], KEYS, lengths=3), ts.ShapeError, r"one length a row, .* got shape \(\)"),
        (lambda: nn.MultiheadAttention(7, 2), ts.ShapeError, "got 7 for 2"),
        (lambda: nn.MultiheadAttention(6, 2, dropout=1.5), ValueError, r"lies in \[0, 1\], got 1.5"),
        (lambda: nn.MultiheadAttention(E, 2)(X, X, X[:2]), ts.ShapeError, r"\(L, B, E\) .* \(2, 3, 6\)"),
        (lambda: nn.MultiheadAttention(E, 2)(X, X[:, :2], X[:, :2]), ts.ShapeError, r"\(5, 2, 6\)"),
        (lambda: nn.MultiheadAttention(E, 2, kdim=4)(X, X, X), ts.ShapeError, "E = 6, 4 and 6"),
        (lambda: nn.MultiheadAttention(E, 2, batch_first=True)(X, X[0], X[0]), ts.ShapeError, r"\(B, L, E\)"),
        (
            lambda: nn.MultiheadAttention(E, 2)(X, X, X, np.ones((S, B), bool)),
            ts.ShapeError,
            r"key_padding_mask has shape \(3, 5\)",
        ),
        (
            lambda: nn.MultiheadAttention(E, 2)(X, X, X, attn_mask=np.ones((S, 2), bool)),
            ts.ShapeError,
            r"attn_mask has shape \(5, 5\) or \(6, 5, 5\) .* got \(5, 2\)",
        ),
        (
            lambda: nn.MultiheadAttention(E, 2)(X, X, X, attn_mask=np.ones((S, S), int)),
            ts.DTypeError,
            "got dtype int64; write mask != 0",
        ),
        (lambda: nn.SinusoidalPositionalEncoding(4)(X), ts.ShapeError, r"\(T, B, E\) or \(T, E\) with E = 4"),
        (lambda: nn.SinusoidalPositionalEncoding(4, dropout=-1), ValueError, r"lies in \[0, 1\], got -1"),
        (lambda: nn.LearnedPositionalEncoding(4, E)(X), ts.ShapeError, "positions 0 to 3, got a sequence from 0 to 4"),
        (lambda: nn.LearnedPositionalEncoding(0, E), ts.ShapeError, "max_length >= 1"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
