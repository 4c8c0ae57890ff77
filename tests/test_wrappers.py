"""Cells made of cells, alone, in each other and over a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensors import close, draw, parts

import tinyseq as ts
from tinyseq import nn
from tinyseq.tree import flatten, tree_map

F64 = np.float64
T, B, I, H = 5, 4, 3, 6  # noqa: E741 (the letters of the docstrings)
LENGTHS = [5, 2, 0, 3]


def gru(inputs: int, hidden: int = H, **options: Any) -> nn.GRUCell:
    return nn.GRUCell(inputs, hidden, dtype=F64, **options)


def lstm(inputs: int, hidden: int = H, **options: Any) -> nn.LSTMCell:
    return nn.LSTMCell(inputs, hidden, dtype=F64, **options)


class Leaky:
    """A user's cell, not even a module: a leaky sum of what comes in, under the state {"sum": (B, I)}."""

    def __init__(self, size: int) -> None:
        self.output_size = size

    def initial_state(self, batch: int) -> dict[str, ts.Tensor]:
        return {"sum": ts.zeros((batch, self.output_size), F64)}

    def __call__(self, x: ts.Tensor, state: dict[str, ts.Tensor]) -> tuple[ts.Tensor, dict[str, ts.Tensor]]:
        total = 0.5 * state["sum"] + x
        return total, {"sum": total}


def test_a_stack_is_its_layers_one_after_the_other(rng: np.random.Generator) -> None:
    cells: list[Any] = [gru(I), Leaky(H), lstm(H, 2 * H, proj_size=2)]
    stack, x = nn.StackedCell(cells), draw(rng, T, B, I)
    ys, state = nn.Recurrent(stack)(x, lengths=LENGTHS)
    expected, ends = x, []
    for cell in cells:
        expected, end = nn.Recurrent(cell)(expected, lengths=LENGTHS)
        ends.append(end)
    close(ys, expected)
    close(state, tuple(ends))
    assert isinstance(state, tuple)
    assert set(state[1]) == {"sum"}
    assert stack.output_size == 2
    assert [name for name, _ in stack.named_parameters()][:2] == ["cells.0.weight_ih", "cells.0.weight_hh"]
    ys.sum().backward()
    assert all(p.grad.numpy().any() for p in stack.parameters())


def test_a_stack_of_lstm_cells_is_the_layer_of_pytorchs_names(rng: np.random.Generator) -> None:
    layer = nn.LSTM(I, H, num_layers=2, dtype=F64)
    stack = nn.StackedCell([lstm(I), lstm(H)])
    weights = layer.state_dict()
    for name in list(stack.state_dict()):
        _, place, own = name.split(".")
        weights[name] = weights.pop(f"{own}_l{place}")
    stack.load_state_dict(weights)
    x = draw(rng, T, B, I)
    output, (h, c) = layer(x)
    ys, states = nn.Recurrent(stack)(x)
    close(ys, output)
    close(states, tuple((h[k], c[k]) for k in range(2)))


def test_residual_and_projection_follow_their_equations(rng: np.random.Generator) -> None:
    x, h = draw(rng, B, H), draw(rng, B, H)
    inner = gru(H)
    output, after = inner(x, h)
    y, state = nn.ResidualCell(inner)(x, h)
    np.testing.assert_array_equal(y.detach().numpy(), (x + output).detach().numpy())
    close(state, after)
    cell = nn.ProjectionCell(inner, 2, dtype=F64)
    y, state = cell(x, h)
    w, b = cell.linear.weight.detach().numpy(), cell.linear.bias.detach().numpy()
    np.testing.assert_allclose(y.detach().numpy(), output.detach().numpy() @ w.T + b, rtol=1e-12)
    close(state, after)
    assert cell.output_size == 2
    assert nn.ProjectionCell(inner, 2, bias=False).linear.bias is None


def test_a_residual_of_nested_inputs(rng: np.random.Generator) -> None:
    class Twice:
        def initial_state(self, batch: int) -> ts.Tensor:
            return ts.zeros((batch, 1), F64)

        def __call__(self, x: Any, state: Any) -> Any:
            return {"a": 2 * x["a"], "b": x["b"] + state}, state + 1

    x = {"a": draw(rng, T, B, 2), "b": draw(rng, T, B, 1)}
    ys, _ = nn.Recurrent(nn.ResidualCell(Twice()))(x)
    np.testing.assert_allclose(ys["a"].numpy(), 3 * x["a"].numpy(), rtol=1e-12)
    np.testing.assert_allclose(ys["b"].numpy(), 2 * x["b"].numpy() + np.arange(T)[:, None, None], rtol=1e-12)


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("p", [0.25, 1.0])
def test_dropout_masks_outputs_and_no_state(variational: bool, p: float, rng: np.random.Generator) -> None:
    inner, x = lstm(I), draw(rng, T, B, I)
    expected, end = nn.Recurrent(inner)(x)
    layer = nn.Recurrent(nn.DropoutCell(inner, p, variational))
    ts.manual_seed(3)
    kept = ts.random.bernoulli(1 - p, (B, H) if variational else (T, B, H)).numpy()
    ts.manual_seed(3)
    ys, state = layer(x)
    factor = 1 / (1 - p) if p < 1 else 0
    np.testing.assert_allclose(ys.detach().numpy(), expected.detach().numpy() * kept * factor, rtol=1e-12)
    close(state, end)
    other, _ = layer(x)  # the next sequence has masks of its own
    assert p == 1 or ((other.detach().numpy() == 0) != (ys.detach().numpy() == 0)).any()
    close(layer.eval()(x), (expected, end))
    assert not nn.DropoutCell(inner, 0.0).for_sequence(T, (B,))[1]


def test_a_dropout_cell_by_itself(rng: np.random.Generator) -> None:
    cell, x = nn.DropoutCell(gru(I), 0.5), draw(rng, B, I)
    state = cell.initial_state(B)
    output, after = cell.cell(x, state)
    for _ in range(2):
        y, end = cell(x, state)
        values = y.detach().numpy()
        np.testing.assert_allclose(values, np.where(values == 0, 0, 2 * output.detach().numpy()), rtol=1e-12)
        close(end, after)
    close(cell.eval()(x, state), (output, after))


def test_dropout_keeps_the_dtype(rng: np.random.Generator) -> None:
    ys, _ = nn.Recurrent(nn.DropoutCell(nn.GRUCell(I, H), 0.5))(draw(rng, T, B, I).astype(np.float32))
    assert ys.dtype == np.float32


# --- all of them in each other ----------------------------------------------------------------------------------------


def everything() -> nn.StackedCell:
    noise = {"recurrent_dropout": 0.3, "zoneout": 0.2}
    first = nn.DropoutCell(lstm(I, peepholes=True, layer_norm=True, **noise), 0.2)
    middle = nn.ResidualCell(nn.DropoutCell(nn.StackedCell([gru(H, **noise), Leaky(H)]), 0.3, variational=True))
    return nn.StackedCell([first, middle, nn.DropoutCell(nn.ProjectionCell(lstm(H, 3), 2, dtype=F64), 0.1)])


@pytest.mark.usefixtures("strict_loop")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reverse", [True, False])
def test_wrappers_stay_in_the_compiled_loop(training: bool, reverse: bool, rng: np.random.Generator) -> None:
    cell = everything().train(training)
    layer, values = nn.Recurrent(cell, reverse=reverse), rng.standard_normal((T, B, I))
    found = []
    for unroll in (True, False):
        layer.unroll = unroll
        layer.zero_grad()
        x = ts.tensor(values, requires_grad=True)
        ts.manual_seed(11)
        results = flatten(layer(x, lengths=LENGTHS, resets=np.eye(T, B, dtype=bool)))[0]
        sum(((y * ts.arange(y.size).reshape(y.shape).astype(F64).cos()).sum() for y in results), ts.tensor(0.0, F64)).backward()
        found.append(parts([*results, x.grad, *(p.grad for p in layer.parameters())]))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * max(1.0, np.abs(b).max(initial=0)))


def test_gradients_of_wrapped_cells(rng: np.random.Generator) -> None:
    layer = nn.Recurrent(everything())
    state = tree_map(lambda part: part + 0.1, layer.cell.initial_state(B))

    def f(x: ts.Tensor, state: Any) -> Any:
        ts.manual_seed(11)
        return layer(x, state, lengths=LENGTHS)

    ts.check_grads(f, (draw(rng, T, B, I), state), step=1e-5)


def test_laws_of_wrapped_cells(rng: np.random.Generator) -> None:
    """Without random masks: split runs, rows alone, padding."""
    layer, x = nn.Recurrent(everything().eval()), draw(rng, T, B, I)
    ys, end = layer(x)
    first, middle = layer(x[:2])
    second, last = layer(x[2:], middle)
    close(ts.concatenate([first, second]), ys)
    close(last, end)
    padded, after = layer(x, lengths=LENGTHS)
    for b, count in enumerate(LENGTHS):
        if count:
            row, row_end = layer(x[:count, b : b + 1])
            close(padded[:count, b : b + 1], row)
            close(tree_map(lambda part: part[b : b + 1], after), row_end)  # noqa: B023


def test_modes_and_names_reach_the_cells_inside() -> None:
    cell = everything()
    assert "cells.1.cell.cell.cells.0.weight_hh" in cell.state_dict()
    assert {module.training for module in cell.eval().modules()} == {False}
    assert cell.output_size == 2


# --- what is refused --------------------------------------------------------------------------------------------------


class Silent:
    """A cell that does not tell the size of its output."""

    def initial_state(self, batch: int) -> ts.Tensor:
        return ts.zeros((batch, 3))

    def __call__(self, x: Any, state: Any) -> Any:
        return state, state


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.StackedCell([]), ts.ShapeError, "at least one cell, got none"),
        (lambda: nn.StackedCell([nn.Linear(3, 4)]), ts.DTypeError, r"StackedCell takes a cell .* got Linear"),
        (
            lambda: nn.StackedCell([gru(3), gru(H)])(ts.zeros((2, 3), F64), (ts.zeros((2, H), F64),)),
            ts.ShapeError,
            "a tuple of 2 states, one a cell, got 1",
        ),
        (lambda: nn.StackedCell([gru(3)])(ts.zeros((2, 3), F64), ts.zeros((2, H), F64)), ts.ShapeError, "got Tensor"),
        (
            lambda: nn.ResidualCell(gru(3))(ts.zeros((2, 3), F64)),
            ts.ShapeError,
            r"input of shape \(2, 3\) to an output of shape \(2, 6\)",
        ),
        (lambda: nn.DropoutCell(gru(3), 1.5), ValueError, r"dropout probability lies in \[0, 1\], got 1.5"),
        (lambda: nn.DropoutCell(Silent()), ts.DTypeError, "features Silent puts out; give it an attribute output_size"),
        (lambda: nn.ProjectionCell(Silent(), 3), ts.DTypeError, "ProjectionCell needs to know"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
