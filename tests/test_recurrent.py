"""Cells and recurrent layers, against their equations written out in NumPy, and the laws that they keep."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tensors import close, draw, parts, spread

import tinyseq as ts
from tinyseq import nn
from tinyseq.nn import recurrent
from tinyseq.tree import flatten, tree_map

F64 = np.float64
T, B, I, H = 5, 4, 3, 2  # noqa: E741 (the letters of the docstrings)
LENGTHS = [5, 2, 0, 3]
Weights = list[np.ndarray]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    ts.manual_seed(0)


# --- the equations, one row and one gate at a time --------------------------------------------------------------------


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gates(x: np.ndarray, h: np.ndarray, weights: Weights, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """W_i x + b_i and W_h h + b_h of each gate."""
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (np.zeros(len(w_ih)), np.zeros(len(w_ih)))
    for k in range(count):
        rows = slice(k * H, (k + 1) * H)
        yield w_ih[rows] @ x + b_ih[rows], w_hh[rows] @ h + b_hh[rows]


def rnn_tanh(x: np.ndarray, state: Weights, weights: Weights) -> Weights:
    ((a, b),) = gates(x, state[0], weights, 1)
    return [np.tanh(a + b)]


def rnn_relu(x: np.ndarray, state: Weights, weights: Weights) -> Weights:
    ((a, b),) = gates(x, state[0], weights, 1)
    return [np.maximum(a + b, 0)]


def gru(x: np.ndarray, state: Weights, weights: Weights) -> Weights:
    (h,) = state
    (r_x, r_h), (z_x, z_h), (n_x, n_h) = gates(x, h, weights, 3)
    r, z = sigma(r_x + r_h), sigma(z_x + z_h)
    n = np.tanh(n_x + r * n_h)
    return [(1 - z) * n + z * h]


def gru_cho(x: np.ndarray, state: Weights, weights: Weights) -> Weights:
    (h,) = state
    (r_x, r_h), (z_x, z_h), _ = gates(x, h, weights, 3)
    r, z = sigma(r_x + r_h), sigma(z_x + z_h)
    n_x, n_h = list(gates(x, r * h, weights, 3))[2]
    return [(1 - z) * np.tanh(n_x + n_h) + z * h]


def lstm(x: np.ndarray, state: Weights, weights: Weights) -> Weights:
    h, c = state
    i, f, g, o = (a + b for a, b in gates(x, h, weights, 4))
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return [sigma(o) * np.tanh(c), c]


Step = Callable[[np.ndarray, Weights, Weights], Weights]
KINDS: dict[str, tuple[str, dict[str, Any], Step]] = {
    "RNN": ("RNN", {}, rnn_tanh),
    "RNN-relu": ("RNN", {"nonlinearity": "relu"}, rnn_relu),
    "GRU": ("GRU", {}, gru),
    "GRU-Cho": ("GRU", {"reset_after": False}, gru_cho),
    "LSTM": ("LSTM", {}, lstm),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, suffix: str = "", **options: Any) -> Any:
    name, own, _ = KINDS[kind]
    return getattr(nn, name + suffix)(I, H, **own, **options, dtype=F64)


def weights_of(module: Any, suffix: str = "") -> Weights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [getattr(module, n + suffix).detach().numpy() for n in names if hasattr(module, n + suffix)]


def a_state(kind: str, rng: np.random.Generator, *shape: int) -> Any:
    return (draw(rng, *shape), draw(rng, *shape)) if kind == "LSTM" else draw(rng, *shape)


def run(kind: str, layer: Any, x: np.ndarray, state: Weights, lengths: list[int] | None) -> tuple[np.ndarray, Weights]:
    """All layers and directions of ``layer``, one row at a time and only as long as it is."""
    step = KINDS[kind][2]
    directions = ["", "_reverse"] if layer.bidirectional else [""]
    end = [np.zeros_like(part) for part in state]
    for place in range(layer.num_layers * len(directions)):
        level, suffix = place // len(directions), directions[place % len(directions)]
        if suffix == "":
            below, x = x, np.zeros((*x.shape[:2], H * len(directions)))
        columns = slice(H, None) if suffix else slice(0, H)
        for b in range(x.shape[1]):
            count = x.shape[0] if lengths is None else lengths[b]
            row = [part[place, b] for part in state]
            for t in reversed(range(count)) if suffix else range(count):
                row = step(below[t, b], row, weights_of(layer, f"_l{level}{suffix}"))
                x[t, b, columns] = row[0]
            for part, value in zip(end, row, strict=True):
                part[place, b] = value
    return x, end


# --- cells ------------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("bias", [True, False])
def test_cell_follows_its_equations(kind: str, bias: bool, rng: np.random.Generator) -> None:
    cell = make(kind, "Cell", bias=bias)
    x, state = draw(rng, B, I), a_state(kind, rng, B, H)
    output, after = cell(x, state)
    for b in range(B):
        row = [part[b] for part in parts(state)]
        expected = KINDS[kind][2](x.numpy()[b], row, weights_of(cell))
        for part, value in zip(parts(after), expected, strict=True):
            np.testing.assert_allclose(part[b], value, rtol=1e-12)
    np.testing.assert_array_equal(output.detach().numpy(), parts(after)[0])


@each_kind
def test_cell_gradients(kind: str, rng: np.random.Generator) -> None:
    """With respect to the input, the state and every weight, once and twice."""
    cell = make(kind, "Cell")

    names = [name for name, _ in cell.named_parameters()]

    def f(x: ts.Tensor, state: Any, weights: list[ts.Tensor]) -> Any:
        return cell.equations(dict(zip(names, weights, strict=True)))(x, state)

    ts.check_grads(
        f, (draw(rng, B, I), a_state(kind, rng, B, H), [*map(ts.Tensor.detach, cell.parameters())]), order=2, step=1e-4
    )
    cell(draw(rng, B, I))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in cell.parameters())


@each_kind
def test_cell_without_state_starts_from_zeros(kind: str, rng: np.random.Generator) -> None:
    cell, x = make(kind, "Cell"), draw(rng, B, I)
    zeros = cell.initial_state(B)
    assert not any(part.any() for part in parts(zeros))
    for a, b in zip(parts(cell(x)), parts(cell(x, zeros)), strict=True):
        np.testing.assert_array_equal(a, b)


@each_kind
def test_cell_without_batch(kind: str, rng: np.random.Generator) -> None:
    cell = make(kind, "Cell")
    x, state = draw(rng, I), a_state(kind, rng, H)
    batched = cell(x.unsqueeze(0), tree_map(lambda part: part.unsqueeze(0), state))
    for a, b in zip(parts(cell(x, state)), parts(batched), strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-12)
    assert parts(cell(x))[0].shape == (H,)


# --- layers -----------------------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("given", [True, False], ids=["state", "no_state"])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (1, True), (3, False), (2, True)])
def test_layer_follows_its_equations(
    kind: str, num_layers: int, bidirectional: bool, given: bool, lengths: Any, rng: np.random.Generator
) -> None:
    layer = make(kind, num_layers=num_layers, bidirectional=bidirectional, bias=given)
    depth = num_layers * (1 + bidirectional)
    x, state = draw(rng, T, B, I), a_state(kind, rng, depth, B, H)
    if not given:
        state = tree_map(ts.zeros_like, state)
    output, after = layer(x, state if given else None, lengths=lengths)
    expected, end = run(kind, layer, x.numpy(), parts(state), lengths)
    np.testing.assert_allclose(output.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(parts(after), end, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@each_kind
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_layer_gradients(kind: str, lengths: Any, rng: np.random.Generator) -> None:
    """With respect to inputs, initial states and all weights of two layers in both directions."""
    layer = make(kind, num_layers=2, bidirectional=True)
    names = [name for name, _ in layer.named_parameters()]

    def f(x: ts.Tensor, state: Any, weights: list[ts.Tensor]) -> Any:
        for name, weight in zip(names, weights, strict=True):
            setattr(layer, name, weight)
        return layer(x, state, lengths=lengths)

    weights = [parameter.detach() for parameter in layer.parameters()]
    ts.check_grads(f, (draw(rng, T, B, I), a_state(kind, rng, 4, B, H), weights), directions=2, step=1e-5)


def test_second_derivatives_of_a_layer(rng: np.random.Generator) -> None:
    layer = make("LSTM")
    ts.check_grads(lambda x: layer(x, lengths=[3, 2])[0], (draw(rng, 3, 2, I),), order=2)


@each_kind
def test_float32_is_the_same_to_its_precision(kind: str, rng: np.random.Generator) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    x = rng.standard_normal((T, B, I)).astype(np.float32)
    wide, _ = layer(x.astype(F64), lengths=LENGTHS)
    narrow, after = layer.astype(np.float32)(x, lengths=LENGTHS)
    assert narrow.dtype == np.float32
    assert {part.dtype for part in parts(after)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(narrow.detach().numpy(), wide.detach().numpy(), rtol=1e-5, atol=1e-6)


@each_kind
def test_batch_first_exchanges_two_axes(kind: str, rng: np.random.Generator) -> None:
    layer = make(kind, num_layers=2)
    x, state = draw(rng, T, B, I), a_state(kind, rng, 2, B, H)
    expected, end = layer(x, state, LENGTHS)
    layer.batch_first = True
    output, after = layer(x.transpose(0, 1), state, LENGTHS)
    np.testing.assert_array_equal(output.detach().numpy(), expected.transpose(0, 1).detach().numpy())
    for a, b in zip(parts(after), parts(end), strict=True):
        np.testing.assert_array_equal(a, b)


@each_kind
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_is_a_batch_of_one(kind: str, batch_first: bool, rng: np.random.Generator) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    x, state = draw(rng, T, I), a_state(kind, rng, 4, H)
    expected, end = layer(x.unsqueeze(1), tree_map(lambda part: part.unsqueeze(1), state))
    layer.batch_first = batch_first
    output, after = layer(x, state)
    np.testing.assert_array_equal(output.detach().numpy(), expected.squeeze(1).detach().numpy())
    for a, b in zip(parts(after), parts(end), strict=True):
        np.testing.assert_array_equal(a, b[:, 0])


@each_kind
def test_padding_has_no_effect(kind: str, rng: np.random.Generator) -> None:
    layer = make(kind, num_layers=2, bidirectional=True)
    padding = np.arange(T)[:, None] >= np.array(LENGTHS)

    def run_with(fill: float) -> list[np.ndarray]:
        values = x.copy()
        values[padding] = fill
        layer.zero_grad()
        leaves = ts.tensor(values, requires_grad=True), a_state(kind, np.random.default_rng(1), 4, B, H)
        starts = [part.requires_grad_() for part in flatten(leaves[1])[0]]
        output, after = layer(*leaves, lengths=LENGTHS)
        sum(((leaf * leaf).sum() for leaf in flatten((output, after))[0]), start=ts.tensor(0.0, F64)).backward()
        gradients = [leaf.grad.numpy() for leaf in (leaves[0], *starts, *layer.parameters())]
        return [*parts((output, after)), *gradients]

    x = rng.standard_normal((T, B, I))
    clean = run_with(0.0)
    assert not clean[0][padding].any()
    for fill in (np.nan, np.inf, 1e300):
        for a, b in zip(clean, run_with(fill), strict=True):
            np.testing.assert_array_equal(a, b)


@each_kind
def test_a_batch_is_its_rows(kind: str, rng: np.random.Generator) -> None:
    """Each row alone, cut to its length, without ``lengths``."""
    layer = make(kind, num_layers=2, bidirectional=True)
    x, state = draw(rng, T, B, I), a_state(kind, rng, 4, B, H)
    output, after = layer(x, state, LENGTHS)
    for b, count in enumerate(LENGTHS):
        before = tree_map(lambda part: part[:, b : b + 1], state)  # noqa: B023
        if not count:
            row_end = before
        else:
            row, row_end = layer(x[:count, b : b + 1], before)
            np.testing.assert_allclose(output.detach().numpy()[:count, b], row.detach().numpy()[:, 0], rtol=1e-12)
        for a, c in zip(parts(after), parts(row_end), strict=True):
            np.testing.assert_allclose(a[:, b], c[:, 0], rtol=1e-12)


@each_kind
def test_a_split_run_is_the_whole_run(kind: str, rng: np.random.Generator) -> None:
    layer, x = make(kind, num_layers=2), draw(rng, T, B, I)
    output, after = layer(x)
    first, middle = layer(x[:2])
    second, end = layer(x[2:], middle)
    np.testing.assert_allclose(ts.concatenate([first, second]).detach().numpy(), output.detach().numpy(), rtol=1e-12)
    for a, b in zip(parts(end), parts(after), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_an_initial_state_can_be_learned(rng: np.random.Generator) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            self.h = ts.Parameter(np.zeros((1, 1, H)))
            self.rnn = make("RNN")

        def __call__(self, x: ts.Tensor) -> Any:
            return self.rnn(x, self.h.expand(1, x.shape[1], H))

    model = Model()
    model(draw(rng, T, B, I))[1].sum().backward()
    assert model.h.grad.numpy().all()
    assert "h" in model.state_dict()


def test_dropout_acts_between_layers_and_in_training_only(rng: np.random.Generator) -> None:
    layer, x = make("GRU", num_layers=2, dropout=1.0), draw(rng, T, B, I)
    plain = make("GRU", num_layers=2)
    plain.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(layer.eval()(x)[0].detach().numpy(), plain(x)[0].detach().numpy())
    output, (first, _) = layer.train()(x)
    np.testing.assert_array_equal(first.detach().numpy(), plain(x)[1][0].detach().numpy())
    silent = make("GRU")
    silent.input_size = H
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(silent, f"{name}_l0", getattr(layer, f"{name}_l1"))
    expected = silent(ts.zeros((T, B, H), F64))[0]
    np.testing.assert_array_equal(output.detach().numpy(), expected.detach().numpy())


def test_dropout_of_a_single_layer_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="no effect with num_layers=1"):
        nn.LSTM(I, H, dropout=0.5)


@pytest.mark.parametrize(("kind", "count"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_names_shapes_and_starting_values_are_those_of_pytorch(kind: str, count: int) -> None:
    layer = getattr(nn, kind)(30, 25, num_layers=2, bidirectional=True)
    shapes = {name: value.shape for name, value in layer.state_dict().items()}
    assert shapes == {
        f"{name}_l{level}{suffix}": shape
        for level, below in ((0, 30), (1, 50))
        for suffix in ("", "_reverse")
        for name, shape in {
            "weight_ih": (count * 25, below),
            "weight_hh": (count * 25, 25),
            "bias_ih": (count * 25,),
            "bias_hh": (count * 25,),
        }.items()
    }
    for parameter in layer.parameters():
        values = parameter.detach().numpy()
        assert values.dtype == np.float32
        assert np.abs(values).max() <= 0.2
        assert values.min() < -0.1 < 0.1 < values.max()
    assert list(getattr(nn, kind + "Cell")(3, 4).state_dict()) == ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def test_forget_bias() -> None:
    for module, suffix in ((nn.LSTM(I, H, forget_bias=1.5), "_l0"), (nn.LSTMCell(I, H, forget_bias=1.5), "")):
        bias_ih, bias_hh = weights_of(module, suffix)[2:]
        np.testing.assert_array_equal(bias_ih[H : 2 * H] + bias_hh[H : 2 * H], [1.5] * H)
        assert (bias_ih[:H] != 1.5).all()
        assert bias_hh[2 * H :].all()
    with pytest.raises(ValueError, match="leave it out with bias=False"):
        nn.LSTM(I, H, bias=False, forget_bias=1.0)


def test_a_state_dict_moves_from_a_cell_to_a_layer(rng: np.random.Generator) -> None:
    cell, layer = make("LSTM", "Cell"), make("LSTM")
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x = draw(rng, T, B, I)
    ys, (h, c) = nn.Recurrent(cell)(x, lengths=LENGTHS)
    output, (h_n, c_n) = layer(x, lengths=LENGTHS)
    np.testing.assert_allclose(ys.detach().numpy(), output.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(h.detach().numpy(), h_n[0].detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(c.detach().numpy(), c_n[0].detach().numpy(), rtol=1e-12)


# --- what can be asked for besides: see also test_cells.py ------------------------------------------------------------

FULL: dict[str, Any] = {"proj_size": 1, "peepholes": True, "layer_norm": True, "zoneout": 0.2, "learn_state": True}
RESETS = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"layer_norm": True, "zoneout": 0.2}),
    ("GRU", {"layer_norm": True, "learn_state": True}),
    ("GRU-Cho", {"zoneout": 0.2}),
    ("LSTM", {}),
    ("LSTM", {"coupled": True, "peepholes": True}),
    ("LSTM", FULL),
]
each_option = pytest.mark.parametrize(
    ("kind", "options"), OPTIONS, ids=["-".join([kind, *options]) for kind, options in OPTIONS]
)


def test_projected_layers_have_pytorchs_names_and_shapes() -> None:
    layer = nn.LSTM(I, 6, num_layers=2, bidirectional=True, proj_size=4)
    shapes = {name: value.shape for name, value in layer.state_dict().items()}
    assert list(shapes)[:5] == [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")]
    assert shapes["weight_hr_l1_reverse"] == (4, 6)
    assert shapes["weight_hh_l1"] == (24, 4)
    assert shapes["weight_ih_l1"] == (24, 8)
    output, (h, c) = layer(ts.zeros((T, B, I)))
    assert (output.shape, h.shape, c.shape) == ((T, B, 8), (4, B, 4), (4, B, 6))


@each_option
@pytest.mark.parametrize("bidirectional", [False, True])
def test_laws_with_options(kind: str, options: dict[str, Any], bidirectional: bool, rng: np.random.Generator) -> None:
    """A batch is its rows; padding, even of NaN, changes nothing; T steps are k steps and T - k steps."""
    layer = spread(make(kind, num_layers=2, bidirectional=bidirectional, **options)).eval()
    x = draw(rng, T, B, I)
    output, after = layer(x, lengths=LENGTHS)
    padded = np.where(np.arange(T)[:, None, None] < np.array(LENGTHS)[:, None], x.numpy(), np.nan)
    for a, b in zip(parts(layer(padded, lengths=LENGTHS)), parts((output, after)), strict=True):
        np.testing.assert_array_equal(a, b)
    for b, count in enumerate(LENGTHS):
        if count:
            row, row_end = layer(x[:count, b : b + 1])
            close(output[:count, b : b + 1], row)
            close(tree_map(lambda part: part[:, b : b + 1], after), row_end)  # noqa: B023
    assert not output.detach().numpy()[:, 2].any()
    initial = layer._start(None, (2 * (1 + bidirectional),), (B,), layer.weight_hh_l0)
    close(tree_map(lambda part: part[:, 2], after), tree_map(lambda part: part[:, 2], initial))
    if not bidirectional:
        whole, end = layer(x)
        first, middle = layer(x[:2])
        second, last = layer(x[2:], middle)
        close(ts.concatenate([first, second]), whole)
        close(last, end)


@each_option
def test_a_row_of_length_0_has_no_gradient(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    """Neither its inputs nor the weights through it; its initial state has that of its last state."""
    layer = spread(make(kind, **options))
    x = ts.tensor(rng.standard_normal((T, 2, I)), requires_grad=True)
    state = tree_map(lambda part: part.detach().requires_grad_(), layer._start(None, (1,), (2,), layer.weight_hh_l0))
    output, after = layer(x, state, lengths=[0, 0])
    sum((2 * y.sum() for y in flatten((output, after))[0]), ts.tensor(0.0, F64)).backward()
    for leaf in (x, *(p for name, p in layer.named_parameters() if name not in ("h_0", "c_0"))):
        assert leaf.grad is None or not leaf.grad.numpy().any()
    for part in flatten(state)[0]:
        np.testing.assert_array_equal(part.grad.numpy(), np.full(part.shape, 2.0))


@each_option
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_reverse_is_the_other_direction(kind: str, options: dict[str, Any], lengths: Any, rng: np.random.Generator) -> None:
    both = spread(make(kind, bidirectional=True, **options)).eval()
    back = make(kind, reverse=True, **options).eval()
    state = both.state_dict()
    own = {name: state[f"{name}_reverse"] if f"{name}_reverse" in state else state[name][1:] for name in back.state_dict()}
    back.load_state_dict(own)
    x = draw(rng, T, B, I)
    output, after = both(x, lengths=lengths)
    alone, end = back(x, lengths=lengths)
    close(alone, output[..., both.output_size :])
    close(end, tree_map(lambda part: part[1:], after))
    if lengths is None:
        back.reverse = False
        close(back(x.flip(0))[0].flip(0), alone)


@each_option
@pytest.mark.parametrize("bidirectional", [False, True])
def test_resets_join_sequences_in_a_row(
    kind: str, options: dict[str, Any], bidirectional: bool, rng: np.random.Generator
) -> None:
    """Several sequences in a row give what each gives alone, in both directions; only the first sees the given state."""
    layer = spread(make(kind, bidirectional=bidirectional, **options)).eval()
    x, state = draw(rng, T, B, I), None
    if not bidirectional:
        state = tree_map(lambda part: part + 1, layer._start(None, (1,), (B,), layer.weight_hh_l0))
    output, after = layer(x, state, resets=RESETS)
    for b in range(B):
        edges = sorted({0, *np.flatnonzero(RESETS[:, b]), T})
        for start, stop in itertools.pairwise(edges):
            fresh = start > 0 or RESETS[0, b] or state is None
            given = None if fresh else tree_map(lambda part: part[:, b : b + 1], state)  # noqa: B023
            alone, end = layer(x[start:stop, b : b + 1], given)
            close(output[start:stop, b : b + 1], alone)
            if stop == T:
                close(tree_map(lambda part: part[:1, b : b + 1], after), tree_map(lambda part: part[:1], end))  # noqa: B023


def test_no_rows_at_all(rng: np.random.Generator) -> None:
    with pytest.raises(ts.ShapeError, match=f"GRU takes a batch of at least one row, got 0 of {T} steps"):
        make("GRU")(draw(rng, T, 0, I), lengths=[])
    with pytest.raises(ts.ShapeError, match=rf"Recurrent takes a batch of at least one row, got shape \({T}, 0, {I}\)"):
        nn.Recurrent(nn.GRUCell(I, H))(draw(rng, T, 0, I))


def test_resets_in_every_layout(rng: np.random.Generator) -> None:
    layer, x = make("GRU", num_layers=2, bidirectional=True), draw(rng, T, B, I)
    output, end = layer(x, resets=RESETS)
    alone, last = layer(x[:, 3], resets=RESETS[:, 3])
    close(alone, output[:, 3])
    close(last, end[:, 3])
    layer.batch_first = True
    turned, after = layer(x.transpose(0, 1), resets=RESETS.T)
    close(turned.transpose(0, 1), output)
    close(after, end)
    close(layer(x[:, 3], resets=RESETS[:, 3].tolist())[0], alone)


def test_resets_of_any_cell_go_back_to_its_initial_state(rng: np.random.Generator) -> None:
    layer, x = nn.Recurrent(make("LSTM", "Cell")), draw(rng, 3, 1, I)
    state = (draw(rng, 1, H), draw(rng, 1, H))
    ys, end = layer(x, state, resets=[[False], [True], [False]])
    close(ys[:1], layer(x[:1], state)[0])
    alone, last = layer(x[1:])
    close(ys[1:], alone)
    close(end, last)
    layer.reverse = True  # the sequence that begins at 1 comes first, and the given state is for it
    ys, end = layer(x, state, resets=[[False], [True], [False]])
    close(ys[1:], layer(x[1:], state)[0])
    alone, last = layer(x[:1])
    close(ys[:1], alone)
    close(end, last)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_all_memories_are_returned(unroll: bool, batch_first: bool, rng: np.random.Generator) -> None:
    """Those of the last layer are what the states after 1, 2, 3 ... steps hold."""
    layer = make("LSTM", num_layers=2, bidirectional=True, proj_size=1)
    x = draw(rng, T, B, I)
    expected, end = layer(x, lengths=LENGTHS)
    asked = nn.LSTM(I, H, 2, bidirectional=True, proj_size=1, return_cells=True, batch_first=batch_first, dtype=F64)
    asked.load_state_dict(layer.state_dict())
    asked.unroll = unroll
    (output, cells), after = asked(x.transpose(0, 1) if batch_first else x, lengths=LENGTHS)
    if batch_first:
        output, cells = output.transpose(0, 1), cells.transpose(0, 1)
    close(output, expected)
    close(after, end)
    assert cells.shape == (T, B, 2 * H)
    for b, count in enumerate(LENGTHS):
        assert not cells.detach().numpy()[count:, b].any()
        if count:
            np.testing.assert_allclose(parts(cells)[0][count - 1, b, :H], parts(after)[1][2, b], rtol=1e-10)
            np.testing.assert_allclose(parts(cells)[0][0, b, H:], parts(after)[1][3, b], rtol=1e-10)
    single = make("LSTM", return_cells=True)
    (_, cells), _ = single(x)
    for t in range(T):
        np.testing.assert_allclose(parts(cells)[0][t], parts(single(x[: t + 1])[1])[1][0], rtol=1e-10)
    ts.check_grads(lambda x: single(x)[0][1], (x,))


def test_learned_initial_states_of_layers(rng: np.random.Generator) -> None:
    layer = spread(make("LSTM", num_layers=2, bidirectional=True, learn_state=True))
    x = draw(rng, T, B, I)
    assert layer.h_0.shape == layer.c_0.shape == (4, H)
    given = tuple(p.detach().unsqueeze(1).expand(4, B, H) for p in (layer.h_0, layer.c_0))
    close(layer(x), layer(x, given))
    close(layer(x[:, 0]), tree_map(lambda part: part[:, 0], layer(x)))
    layer(x)[0].sum().backward()
    expected = ts.grad(lambda h, c: layer(x, (h, c))[0].sum(), argnums=(0, 1))(*given)
    for parameter, gradient in zip((layer.h_0, layer.c_0), expected, strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), gradient.numpy().sum(1), rtol=1e-10)


# --- Recurrent --------------------------------------------------------------------------------------------------------


class MinimalGated(nn.Module):
    """A user's cell (Zhou et al. 2016)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        self.forget = nn.Linear(input_size + hidden_size, hidden_size, dtype=F64)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size, dtype=F64)
        self.size = hidden_size

    def initial_state(self, batch: int) -> ts.Tensor:
        return ts.zeros((batch, self.size), F64)

    def __call__(self, x: ts.Tensor, h: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        f = ts.sigmoid(self.forget(ts.concatenate([x, h], -1)))
        n = ts.tanh(self.candidate(ts.concatenate([x, f * h], -1)))
        h = (1 - f) * h + f * n
        return h, h


def test_a_users_cell(rng: np.random.Generator) -> None:
    cell, x = MinimalGated(I, H), draw(rng, T, B, I)
    ys, state = nn.Recurrent(cell)(x)
    w_f, b_f, w_n, b_n = (p.detach().numpy() for p in cell.parameters())
    h = np.zeros((B, H))
    for t in range(T):
        f = sigma(np.hstack([x.numpy()[t], h]) @ w_f.T + b_f)
        n = np.tanh(np.hstack([x.numpy()[t], f * h]) @ w_n.T + b_n)
        h = (1 - f) * h + f * n
        np.testing.assert_allclose(ys.detach().numpy()[t], h, rtol=1e-12)
    np.testing.assert_allclose(state.detach().numpy(), h, rtol=1e-12)
    layer = nn.Recurrent(cell)
    assert next(name for name, _ in layer.named_parameters()) == "cell.forget.weight"
    ts.check_grads(lambda x, h: layer(x, h, lengths=LENGTHS), (x, draw(rng, B, H)))


@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}, {"resets": np.eye(T, B, dtype=bool)}])
def test_recurrent_batch_first_and_reverse(options: dict[str, Any], rng: np.random.Generator) -> None:
    cell = make("GRU", "Cell")
    x, state = draw(rng, T, B, I), draw(rng, B, H)
    for reverse in (False, True):
        expected, end = nn.Recurrent(cell, reverse=reverse)(x, state, **options)
        turned = {key: value.T if key == "resets" else value for key, value in options.items()}
        layer = nn.Recurrent(cell, reverse=reverse, batch_first=True)
        ys, after = layer(x.transpose(0, 1), state, **turned)
        np.testing.assert_array_equal(ys.transpose(0, 1).detach().numpy(), expected.detach().numpy())
        np.testing.assert_array_equal(after.detach().numpy(), end.detach().numpy())
    if not options:
        ys, _ = nn.Recurrent(cell)(x.flip(0), state)
        np.testing.assert_array_equal(ys.flip(0).detach().numpy(), expected.detach().numpy())


def test_resets_start_a_row_anew(rng: np.random.Generator) -> None:
    layer, x = nn.Recurrent(make("LSTM", "Cell")), draw(rng, T, 1, I)
    ys, state = layer(x, resets=np.array([[False], [False], [True], [False], [False]]))
    first, _ = layer(x[:2])
    second, end = layer(x[2:])
    np.testing.assert_array_equal(ys.detach().numpy(), ts.concatenate([first, second]).detach().numpy())
    for a, b in zip(parts(state), parts(end), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_cell_in_two_layers(rng: np.random.Generator) -> None:
    """The gradient of a shared weight is the sum over its uses."""
    cell = nn.GRUCell(H, H, dtype=F64)

    def f(x: ts.Tensor, weights: dict[str, ts.Tensor], others: dict[str, ts.Tensor]) -> ts.Tensor:
        _, below = ts.scan(lambda h, x: cell.equations(weights)(x, h)[::-1], ts.zeros((B, H), F64), x)
        return ts.scan(lambda h, x: cell.equations(others)(x, h)[::-1], ts.zeros((B, H), F64), below, reverse=True)[1]

    x, weights = draw(rng, T, B, H), cell.state_dict()
    forward, backward = nn.Recurrent(cell), nn.Recurrent(cell, reverse=True)
    output = backward(forward(x)[0])[0]
    np.testing.assert_array_equal(output.detach().numpy(), f(x, weights, weights).numpy())
    output.sum().backward()
    alone = ts.grad(lambda a, b: f(x, a, b).sum(), argnums=(0, 1))(weights, weights)
    for name, parameter in cell.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), (alone[0][name] + alone[1][name]).numpy(), rtol=1e-10)


def test_cells_of_nested_inputs_and_outputs(rng: np.random.Generator) -> None:
    class Gate:
        """Not even a module."""

        def initial_state(self, batch: int) -> dict[str, ts.Tensor]:
            return {"sum": ts.zeros((batch, H), F64)}

        def __call__(self, x: Any, state: Any) -> Any:
            value, gate = x
            total = state["sum"] + value * gate
            return {"total": total, "gate": gate}, {"sum": total}

    value, gate = draw(rng, B, T, H), ts.tensor(rng.integers(0, 2, (B, T, 1)))
    ys, state = nn.Recurrent(Gate(), batch_first=True)((value, gate))
    expected = np.cumsum(value.numpy() * gate.numpy(), axis=1)
    np.testing.assert_allclose(ys["total"].numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(ys["gate"].numpy(), gate.numpy())
    np.testing.assert_allclose(state["sum"].numpy(), expected[:, -1], rtol=1e-12)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.LSTM(3, 4)(ts.zeros((5, 2, 7))), ts.ShapeError, r"LSTM takes 3 features .* shape \(5, 2, 7\)"),
        (lambda: nn.LSTM(3, 4)(ts.zeros(3)), ts.ShapeError, r"\(T, B, I\) or \(T, I\), got shape \(3,\)"),
        (lambda: nn.LSTM(3, 4)(ts.zeros((0, 2, 3))), ts.ShapeError, "over 0 steps"),
        (lambda: nn.LSTM(3, 4)(np.zeros((5, 2, 3))), ts.DTypeError, "dtype float32, got an input of dtype float64"),
        (lambda: nn.LSTM(3, 4)(ts.zeros((5, 2, 3)), ts.zeros((1, 2, 4))), ts.ShapeError, r"a pair \(h, c\), got Tensor"),
        (
            lambda: nn.LSTM(3, 4)(ts.zeros((5, 2, 3)), (ts.zeros((1, 2, 4)), ts.zeros((1, 1, 4)))),
            ts.ShapeError,
            r"state c of float32 \(1, 2, 4\) for this input, got float32 \(1, 1, 4\)",
        ),
        (
            lambda: nn.GRU(3, 4)(ts.zeros((5, 2, 3)), ts.zeros((1, 2, 4), F64)),
            ts.DTypeError,
            r"state h of float32 .* got float64",
        ),
        (lambda: nn.GRU(3, 4)(ts.zeros((5, 2, 3)), ts.zeros((2, 4))), ts.ShapeError, r"got float32 \(2, 4\)"),
        (lambda: nn.GRU(3, 4)(ts.zeros((5, 2, 3)), lengths=[6, 1]), ts.ShapeError, "the 5 steps there are, got 6 in row 0"),
        (lambda: nn.GRU(3, 4)(ts.zeros((5, 3)), lengths=[5]), ts.ShapeError, "lengths for a batch"),
        (lambda: nn.RNNCell(3, 4)(ts.zeros((2, 5))), ts.ShapeError, r"RNNCell takes 3 features .* \(2, 5\)"),
        (
            lambda: nn.RNNCell(3, 4)(ts.zeros((2, 3)), ts.zeros(4)),
            ts.ShapeError,
            r"\(2, 4\) for this input, got float32 \(4,\)",
        ),
        (lambda: nn.RNN(3, 4, nonlinearity="sine"), ValueError, "'tanh' or 'relu', got 'sine'"),
        (lambda: nn.RNN(3, 0), ts.ShapeError, "hidden_size >= 1"),
        (lambda: nn.RNN(3, 4, num_layers=0), ts.ShapeError, "num_layers=0"),
        (lambda: nn.RNN(3, 4, bidirectional=True, reverse=True), ValueError, "leave out reverse=True"),
        (lambda: nn.LSTM(3, 4, proj_size=4), ts.ShapeError, "between 0 and hidden_size=4, got 4"),
        (lambda: nn.GRU(3, 4)(ts.zeros((5, 2, 3)), resets=[[0, 1]] * 5), ts.DTypeError, "resets are booleans, got dtype int64"),
        (
            lambda: nn.GRU(3, 4)(ts.zeros((5, 2, 3)), resets=np.zeros((2, 5), bool)),
            ts.ShapeError,
            r"\(T, B\) = \(5, 2\) for this input, got shape \(2, 5\)",
        ),
        (lambda: nn.Recurrent(nn.GRUCell(3, 4))(ts.zeros((5, 2, 3)), resets=[True]), ts.ShapeError, r"got shape"),
        (lambda: nn.RNN(3, 4, num_layers=2, dropout=2.0), ValueError, r"lies in \[0, 1\], got 2.0"),
        (lambda: nn.Recurrent(nn.Linear(3, 4)), ts.DTypeError, r"initial_state\(batch\), got Linear"),
        (lambda: nn.Recurrent(nn.RNNCell(3, 4))(ts.zeros(5)), ts.ShapeError, r"time and batch, got shape \(5,\)"),
        (lambda: nn.Recurrent(nn.RNNCell(3, 4))(None), ts.ShapeError, "at least one tensor as its input"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("every", [True, 3])
def test_checkpoints_keep_less_and_give_the_same_gradients(every: int | bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, given = recurrent.scan, []
    monkeypatch.setattr(recurrent, "scan", lambda *a, **options: (given.append(options["checkpoint"]), scan(*a, **options))[1])
    found = []
    for checkpoint in (False, every):
        ts.manual_seed(2)
        layer, top = (
            nn.GRU(3, 4, num_layers=2, bidirectional=True, dtype="float64"),
            nn.Recurrent(nn.RNNCell(8, 2, dtype="float64")),
        )
        layer.checkpoint = top.checkpoint = checkpoint
        x = ts.random.randn((10, 2, 3), dtype="float64").requires_grad_()
        ys, _ = top(layer(x, lengths=[10, 4])[0])
        (ys * ys).sum().backward()
        leaves = [x, *layer.parameters(), *top.parameters()]
        found.append([ys.numpy(), *(leaf.grad.numpy() for leaf in leaves if leaf.grad is not None)])
    assert given == [False] * 5 + [every] * 5
    assert len(found[0]) == len(found[1]) == 2 + 16 + 4
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-14)
