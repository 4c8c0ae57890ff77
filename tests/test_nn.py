"""Layers without a state, losses as modules, starting values, and nn.functional."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import nn
from tinyseq.nn import functional as F
from tinyseq.nn import init

F64 = np.float64


@pytest.fixture(autouse=True)
def _seeded() -> None:
    ts.manual_seed(0)


def draw(rng: np.random.Generator, *shape: int) -> ts.Tensor:
    return ts.tensor(rng.standard_normal(shape))


# --- Linear -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool, rng: np.random.Generator) -> None:
    layer, x = nn.Linear(3, 2, bias=bias, dtype=F64), draw(rng, *shape)
    expected = x.numpy() @ layer.weight.detach().numpy().T + (layer.bias.detach().numpy() if bias else 0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12)
    layer(x).sum().backward()
    rows = x.numpy().reshape(-1, 3)
    np.testing.assert_allclose(layer.weight.grad.numpy(), np.tile(rows.sum(0), (2, 1)), rtol=1e-12)
    if bias:
        np.testing.assert_array_equal(layer.bias.grad.numpy(), [len(rows)] * 2)


def test_linear_starts_as_in_pytorch() -> None:
    layer = nn.Linear(100, 50)
    for parameter in (layer.weight, layer.bias):
        values = parameter.detach().numpy()
        assert values.dtype == np.float32
        assert 0.08 < np.abs(values).max() <= 0.1
    assert nn.Linear(0, 2)(ts.zeros((3, 0))).tolist() == [[0.0, 0.0]] * 3


# --- Embedding --------------------------------------------------------------------------------------------------------


def test_embedding(rng: np.random.Generator) -> None:
    layer, ids = nn.Embedding(7, 3, dtype=F64), rng.integers(0, 7, (4, 5))
    np.testing.assert_array_equal(layer(ids).detach().numpy(), layer.weight.detach().numpy()[ids])
    layer(ids).sum().backward()
    counts = np.bincount(ids.reshape(-1), minlength=7)
    np.testing.assert_array_equal(layer.weight.grad.numpy(), np.tile(counts[:, None], (1, 3)))


@pytest.mark.parametrize("padding_idx", [2, -5])
def test_embedding_of_padding(padding_idx: int) -> None:
    layer = nn.Embedding(7, 3, padding_idx)
    assert layer.padding_idx == 2
    assert layer.weight[2].tolist() == [0.0] * 3
    assert layer.weight.detach().numpy()[3].all()
    (layer(ts.tensor([2, 3, 3])) * 2).sum().backward()
    assert layer.weight.grad.numpy()[:, 0].tolist() == [0, 0, 0, 4, 0, 0, 0]


def test_embedding_starts_from_the_normal_distribution() -> None:
    values = nn.Embedding(100, 100).weight.detach().numpy()
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03


# --- LayerNorm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
@pytest.mark.parametrize(("affine", "bias"), [(True, True), (True, False), (False, True)])
def test_layer_norm(shape: tuple[int, ...], affine: bool, bias: bool, rng: np.random.Generator) -> None:
    layer = nn.LayerNorm(shape, eps=0.1, elementwise_affine=affine, bias=bias, dtype=F64)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"][: affine * (1 + bias)]
    for parameter in layer.parameters():
        assert len(set(parameter.detach().numpy().reshape(-1))) == 1
        init.normal_(parameter)
    w = layer.weight.detach().numpy() if affine else 1.0
    b = layer.bias.detach().numpy() if affine and bias else 0.0
    x = draw(rng, 5, *shape)
    axes = tuple(range(1, len(shape) + 1))
    mean, var = (f(x.numpy(), axis=axes, keepdims=True) for f in (np.mean, np.var))
    expected = (x.numpy() - mean) / np.sqrt(var + 0.1) * w + b
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)

    def f(x: ts.Tensor, weights: list[ts.Tensor]) -> ts.Tensor:
        return F.layer_norm(x, shape, *(*weights, None, None)[:2], eps=0.1)

    ts.check_grads(f, (x, [parameter.detach() for parameter in layer.parameters()]), order=2)


def test_layer_norm_starts_as_the_identity_on_normalised_rows() -> None:
    layer = nn.LayerNorm(2, eps=0.0)
    assert layer.weight.tolist() == [1.0, 1.0]
    assert layer.bias.tolist() == [0.0, 0.0]
    assert layer(ts.tensor([[-1.0, 1.0]])).tolist() == [[-1.0, 1.0]]


# --- Dropout ----------------------------------------------------------------------------------------------------------


def test_dropout() -> None:
    layer, x = nn.Dropout(0.25), ts.ones((200, 200), requires_grad=True)
    y = layer(x)
    values = y.detach().numpy()
    np.testing.assert_allclose(np.unique(values), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs((values == 0).mean() - 0.25) < 0.01
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), values)
    assert (layer(x).detach().numpy() != values).any()
    assert layer.eval()(x) is x
    assert not nn.Dropout(1.0)(x).detach().numpy().any()
    assert nn.Dropout(0.0)(x) is x


def test_dropout_follows_the_seed() -> None:
    first = nn.Dropout()(ts.ones(50)).tolist()
    ts.manual_seed(0)
    assert nn.Dropout()(ts.ones(50)).tolist() == first


# --- losses -----------------------------------------------------------------------------------------------------------

LOGITS = np.array([[0.5, -1.0, 2.0], [0.1, 0.2, 0.3]])
CLASSES = np.array([2, 0])
X, Y = np.array([0.3, -2.5, 1.0]), np.array([0.0, 0.5, 1.0])
P = np.array([0.2, 0.7, 0.9])


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize(
    ("loss", "arguments", "expected"),
    [
        (nn.CrossEntropyLoss(), (LOGITS, CLASSES), -log_softmax(LOGITS)[[0, 1], CLASSES].mean()),
        (nn.CrossEntropyLoss(reduction="none"), (LOGITS, CLASSES), -log_softmax(LOGITS)[[0, 1], CLASSES]),
        (nn.CrossEntropyLoss(ignore_index=0), (LOGITS, CLASSES), -log_softmax(LOGITS)[0, 2]),
        (
            nn.CrossEntropyLoss(weight=np.array([1.0, 2.0, 3.0])),
            (LOGITS, CLASSES),
            -(3 * log_softmax(LOGITS)[0, 2] + log_softmax(LOGITS)[1, 0]) / 4,
        ),
        (
            nn.CrossEntropyLoss(label_smoothing=0.3),
            (LOGITS, CLASSES),
            -(0.7 * log_softmax(LOGITS)[[0, 1], CLASSES] + 0.3 * log_softmax(LOGITS).mean(-1)).mean(),
        ),
        (nn.NLLLoss(reduction="sum"), (LOGITS, CLASSES), -(2.0 + 0.1)),
        (nn.NLLLoss(weight=np.array([1.0, 2.0, 3.0])), (LOGITS, CLASSES), -(3 * 2.0 + 0.1) / 4),
        (nn.MSELoss(), (X, Y), ((X - Y) ** 2).mean()),
        (nn.L1Loss(reduction="sum"), (X, Y), np.abs(X - Y).sum()),
        (nn.HuberLoss(delta=2.0), (X, Y), (0.5 * 0.3**2 + 2 * (3 - 1) + 0) / 3),
        (nn.SmoothL1Loss(beta=2.0), (X, Y), (0.5 * 0.3**2 / 2 + (3 - 1) + 0) / 3),
        (nn.BCELoss(), (P, Y), -(Y * np.log(P) + (1 - Y) * np.log(1 - P)).mean()),
        (nn.BCEWithLogitsLoss(), (np.log(P / (1 - P)), Y), -(Y * np.log(P) + (1 - Y) * np.log(1 - P)).mean()),
        (
            nn.BCEWithLogitsLoss(pos_weight=np.array(3.0)),
            (np.log(P / (1 - P)), Y),
            -(3 * Y * np.log(P) + (1 - Y) * np.log(1 - P)).mean(),
        ),
        (
            nn.KLDivLoss(reduction="batchmean"),
            (np.log(P)[:, None], P[::-1].copy()[:, None]),
            (P[::-1] * np.log(P[::-1] / P)).sum() / 3,
        ),
    ],
)
def test_losses(loss: nn.Module, arguments: tuple[np.ndarray, ...], expected: Any) -> None:
    np.testing.assert_allclose(loss(*arguments).numpy(), expected, rtol=1e-10)


def test_a_loss_module_keeps_its_weights_as_buffers() -> None:
    loss = nn.CrossEntropyLoss(weight=[1.0, 2.0])
    assert list(loss.state_dict()) == ["weight"]
    assert not list(loss.parameters())


# --- functional -------------------------------------------------------------------------------------------------------


def test_functional_holds_what_it_names() -> None:
    assert all(callable(getattr(F, name)) for name in F.__all__)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (F.logsigmoid, lambda x: -np.log1p(np.exp(-x))),
        (F.hardtanh, lambda x: np.clip(x, -1, 1)),
        (lambda x: F.hardtanh(x, -0.5, 2.0), lambda x: np.clip(x, -0.5, 2.0)),
        (F.normalize, lambda x: x / np.sqrt((x * x).sum(1, keepdims=True))),
        (lambda x: F.normalize(x, axis=0), lambda x: x / np.sqrt((x * x).sum(0))),
        (F.gelu, lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
        (
            lambda x: F.gelu(x, approximate="tanh"),
            lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        ),
        (
            lambda x: F.cosine_similarity(x, x[:1]),
            lambda x: x @ x[0] / np.linalg.norm(x, axis=1) / np.linalg.norm(x[0]),
        ),
    ],
)
def test_functional(function: Callable[..., ts.Tensor], expected: Callable[..., np.ndarray], rng: np.random.Generator) -> None:
    x = draw(rng, 4, 3) * 2
    np.testing.assert_allclose(function(x).numpy(), expected(x.numpy()), rtol=1e-10)
    ts.check_grads(function, (x,), order=2, step=1e-4)


def test_functional_embedding_and_layer_norm_take_pytorchs_order(rng: np.random.Generator) -> None:
    table, ids = draw(rng, 5, 2), np.array([[0, 4]])
    np.testing.assert_array_equal(F.embedding(ids, table).numpy(), table.numpy()[ids])
    np.testing.assert_array_equal(F.layer_norm(table, 2).numpy(), F.layer_norm(table, (2,), ts.ones(2, F64)).numpy())


# --- starting values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "mean", "std", "bound"),
    [
        (lambda w: init.uniform_(w, -1, 3), 1.0, 4 / math.sqrt(12), 2.0),
        (lambda w: init.normal_(w, 2.0, 0.5), 2.0, 0.5, None),
        (init.xavier_uniform_, 0.0, math.sqrt(2 / 500), math.sqrt(6 / 500)),
        (lambda w: init.xavier_normal_(w, gain=3.0), 0.0, 3 * math.sqrt(2 / 500), None),
        (init.kaiming_uniform_, 0.0, math.sqrt(2 / 300), math.sqrt(6 / 300)),
        (init.kaiming_normal_, 0.0, math.sqrt(2 / 300), None),
    ],
)
def test_random_starts(fill: Callable[..., ts.Tensor], mean: float, std: float, bound: float | None) -> None:
    weight = ts.Parameter(np.zeros((200, 300)))
    before = weight.data
    assert fill(weight) is weight
    assert weight.requires_grad
    assert not before.any()
    values = weight.detach().numpy()
    assert values.dtype == F64
    assert abs(values.mean() - mean) < 0.02 * std
    assert abs(values.std() - std) < 0.02 * std
    if bound is not None:
        assert 0.99 * bound < np.abs(values - mean).max() <= bound


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6), (4, 2, 3)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    weight = init.orthogonal_(ts.Parameter(np.zeros(shape)), gain=2.0).detach().numpy().reshape(shape[0], -1)
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    np.testing.assert_allclose(tall.T @ tall, 4 * np.eye(tall.shape[1]), atol=1e-12)


def test_constant_starts() -> None:
    weight = ts.Parameter(np.zeros((2, 2), np.float32))
    assert init.ones_(weight).tolist() == [[1.0, 1.0]] * 2
    assert init.constant_(weight, 0.25).tolist() == [[0.25, 0.25]] * 2
    assert init.zeros_(weight).tolist() == [[0.0, 0.0]] * 2
    assert weight.dtype == np.float32


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.Linear(3, 2)(ts.zeros((4, 5))), ts.ShapeError, r"Linear takes 3 features .* shape \(4, 5\)"),
        (lambda: nn.Linear(3, 2)(1.0), ts.ShapeError, r"got an input of shape \(\)"),
        (lambda: nn.Linear(-1, 2), ts.ShapeError, "not negative, got -1 and 2"),
        (lambda: nn.Embedding(3, -2), ts.ShapeError, "not negative, got 3 and -2"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), ts.ShapeError, "padding_idx 3 is not among the 3 rows"),
        (lambda: nn.Embedding(3, 2)(ts.tensor([3])), ts.ShapeError, r"id 3, which is not in \[0, 3\)"),
        (lambda: nn.Embedding(3, 2)(ts.tensor([0.0])), ts.DTypeError, "integer ids, got dtype float32"),
        (lambda: nn.LayerNorm(3)(ts.zeros((4, 2))), ts.ShapeError, r"layer_norm over \(3,\) .* shape \(4, 2\)"),
        (lambda: nn.LayerNorm((2, 3))(ts.zeros(3)), ts.ShapeError, r"layer_norm over \(2, 3\)"),
        (lambda: F.layer_norm(ts.zeros(3), 3, ts.ones(1)), ts.ShapeError, r"needs a weight of that shape, got \(1,\)"),
        (lambda: nn.Dropout(1.5), ValueError, r"lies in \[0, 1\], got 1.5"),
        (lambda: F.gelu(1.0, approximate="exact"), ValueError, "'none' or 'tanh', got 'exact'"),
        (lambda: nn.MSELoss(reduction="average")(X, Y), ValueError, "reduction .* 'average'"),
        (lambda: init.xavier_normal_(ts.zeros(3)), ts.ShapeError, r"at least two axes, got shape \(3,\)"),
        (lambda: init.zeros_(ts.ones(2, requires_grad=True) * 2), ts.GraphError, "give a parameter"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
