"""Starting values of recurrent layers, and what is beyond the plain distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import nn
from tinyseq.nn import init


@pytest.fixture(autouse=True)
def _seeded() -> None:
    ts.manual_seed(0)


def total(layer: nn.Module, suffix: str = "") -> np.ndarray:
    return (getattr(layer, "bias_ih" + suffix) + getattr(layer, "bias_hh" + suffix)).detach().numpy()


def assert_orthogonal(weight: ts.Tensor, gates: int, size: int) -> None:
    for block in weight.detach().numpy().reshape(gates, size, size):
        np.testing.assert_allclose(block @ block.T, np.eye(size), atol=1e-6)


def test_each_gate_by_itself() -> None:
    weight = nn.GRUCell(2, 5).weight_hh
    assert init.per_gate_(weight, 3, init.orthogonal_, gain=2.0) is weight
    assert_orthogonal(weight / 2, 3, 5)
    assert weight.requires_grad
    assert weight.grad is None
    with pytest.raises(ts.ShapeError, match=r"4 equal blocks, which shape \(15, 5\)"):
        init.per_gate_(weight, 4, init.orthogonal_)


@pytest.mark.parametrize("make", [nn.RNN, nn.GRU, nn.LSTM])
def test_the_start_of_keras(make: type) -> None:
    layer = make(3, 4, num_layers=2, bidirectional=True)
    assert init.recurrent_(layer) is layer
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[make.__name__]
    keeps = {"RNN": None, "GRU": 1, "LSTM": 1}[make.__name__]
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        assert_orthogonal(getattr(layer, "weight_hh" + suffix), gates, 4)
        weight = getattr(layer, "weight_ih" + suffix).detach().numpy()
        bound = math.sqrt(6 / (weight.shape[1] + 4))
        assert 0.75 * bound < np.abs(weight).max() <= bound
        want = np.zeros((gates, 4))
        if keeps is not None:
            want[keeps] = 1
        np.testing.assert_array_equal(total(layer, suffix), want.reshape(-1))


def test_forget_bias_leaves_other_biases_alone() -> None:
    cell = nn.LSTMCell(2, 3)
    before = total(cell).copy()
    init.forget_bias_(cell, 2.5)
    after = total(cell)
    assert after[3:6].tolist() == [2.5] * 3
    np.testing.assert_array_equal(np.delete(after, range(3, 6)), np.delete(before, range(3, 6)))


def test_coupled_gates_keep_by_not_writing() -> None:
    cell = init.forget_bias_(nn.LSTMCell(2, 3, coupled=True), 2.0)
    assert total(cell)[:3].tolist() == [-2.0] * 3


@pytest.mark.parametrize("bidirectional", [False, True])
def test_chrono(bidirectional: bool) -> None:
    lstm = init.chrono_(nn.LSTM(2, 500, bidirectional=bidirectional), longest=101)
    for suffix in ("_l0", "_l0_reverse")[: 1 + bidirectional]:
        i, f = total(lstm, suffix)[:500], total(lstm, suffix)[500:1000]
        np.testing.assert_array_equal(i, -f)
        u = np.exp(f)
        assert 1 <= u.min() < 2 < 99 < u.max() <= 100.001
        assert abs(u.mean() - 50.5) < 4  # uniform over [1, 100]
    gru = init.chrono_(nn.GRUCell(2, 500), longest=101)
    assert 1 <= np.exp(total(gru)[500:1000]).min() < np.exp(total(gru)[500:1000]).max() <= 100.001
    before = total(gru)[:500]
    assert np.abs(before).max() < 0.1  # the reset gate's, as it was
    coupled = init.chrono_(nn.LSTMCell(2, 50, coupled=True), longest=11)
    assert 1 <= np.exp(-total(coupled)[:50]).min() < np.exp(-total(coupled)[:50]).max() <= 10.001


def test_a_chrono_lstm_forgets_slowly() -> None:
    cell = init.chrono_(nn.LSTMCell(1, 200), longest=1000)
    h, c = ts.zeros((1, 200)), ts.ones((1, 200))
    with ts.no_grad():
        for _ in range(50):
            _, (_, c) = cell(ts.zeros((1, 1)), (h, c))
    assert c.mean().item() > 0.7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: init.forget_bias_(nn.RNN(2, 3)), ts.DTypeError, "for GRU and LSTM and their cells, not for RNN"),
        (lambda: init.chrono_(nn.Linear(2, 3), 10), ts.DTypeError, "not for Linear"),
        (lambda: init.recurrent_(nn.Linear(2, 3)), ts.DTypeError, "not for Linear"),
        (lambda: init.chrono_(nn.LSTM(2, 3, bias=False), 10), ValueError, "this LSTM has no biases"),
        (lambda: init.chrono_(nn.LSTM(2, 3), 2), ValueError, "more than 2 steps, got 2"),
        (lambda: init.kaiming_normal_(ts.zeros((2, 2)), mode="fan"), ValueError, "'fan_in' or 'fan_out', got 'fan'"),
        (lambda: init.calculate_gain("gelu"), ValueError, "no gain for 'gelu'"),
        (lambda: init.trunc_normal_(ts.zeros(3), 0.0, 1.0, 9.0, 10.0), ValueError, "hardly a number"),
        (lambda: init.eye_(ts.zeros(3)), ts.ShapeError, r"got shape \(3,\)"),
        (lambda: init.sparse_(ts.zeros((3, 3)), 1.5), ValueError, "1.5"),
    ],
)
def test_refusals(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_recurrent_start_without_biases() -> None:
    assert_orthogonal(init.recurrent_(nn.LSTMCell(2, 3, bias=False)).weight_hh, 4, 3)


def test_kaiming_takes_pytorchs_arguments() -> None:
    weight = ts.Parameter(np.zeros((400, 100)))
    for settings, want in (
        ({}, math.sqrt(2 / 100)),
        ({"mode": "fan_out"}, math.sqrt(2 / 400)),
        ({"a": 2.0}, math.sqrt(2 / 5 / 100)),
        ({"nonlinearity": "tanh"}, 5 / 3 / 10),
    ):
        assert init.kaiming_normal_(weight, **settings).detach().numpy().std() == pytest.approx(want, rel=0.02)
        values = init.kaiming_uniform_(weight, **settings).detach().numpy()
        assert np.abs(values).max() == pytest.approx(want * math.sqrt(3), rel=0.01)


def test_truncated_normal() -> None:
    values = init.trunc_normal_(ts.Parameter(np.zeros(20_000)), 1.0, 2.0, 0.0, 2.0).detach().numpy()
    assert 0 <= values.min() < 0.01 < 1.99 < values.max() <= 2
    assert values.mean() == pytest.approx(1.0, abs=0.02)
    assert values.std() == pytest.approx(0.565, abs=0.01)  # of N(1, 4) cut at half a deviation on both sides


def test_identity_and_sparse() -> None:
    assert init.eye_(ts.Parameter(np.ones((2, 3)))).tolist() == [[1, 0, 0], [0, 1, 0]]
    values = init.sparse_(ts.Parameter(np.ones((10, 50))), 0.25, std=3.0).detach().numpy()
    assert ((values == 0).sum(0) == 3).all()
    assert len({tuple(np.flatnonzero(column)) for column in values.T}) > 10
    assert values[values != 0].std() == pytest.approx(3.0, rel=0.15)
