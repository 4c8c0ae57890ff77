"""What cells can be asked for besides: against their equations in NumPy, and on the compiled loop."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from tensors import draw, parts, spread

import tinyseq as ts
from tinyseq import nn
from tinyseq.tree import flatten, tree_map

F64 = np.float64
T, B, I, H, P = 5, 4, 3, 6, 2  # noqa: E741 (the letters of the docstrings)
LENGTHS = [5, 2, 0, 3]
RESETS = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)
Arrays = dict[str, np.ndarray]

EXTRAS: dict[str, Any] = {"proj_size": P, "peepholes": True, "coupled": True, "layer_norm": True}
LSTM_OPTIONS: list[dict[str, Any]] = [
    dict(itertools.compress(EXTRAS.items(), chosen)) for chosen in itertools.product((False, True), repeat=4)
]
CELLS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {}),
    ("RNN", {"layer_norm": True}),
    ("RNN", {"layer_norm": True, "nonlinearity": "relu"}),
    ("GRU", {}),
    ("GRU", {"layer_norm": True}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"layer_norm": True, "reset_after": False}),
    *(("LSTM", options) for options in LSTM_OPTIONS),
]
each_cell = pytest.mark.parametrize(
    ("kind", "options"), CELLS, ids=["-".join([kind, *(f"{k}={v}" for k, v in o.items())]) for kind, o in CELLS]
)
RANDOM: list[dict[str, Any]] = [{"recurrent_dropout": 0.4}, {"zoneout": 0.3}, {"recurrent_dropout": 0.4, "zoneout": 0.3}]
each_random = pytest.mark.parametrize("noise", RANDOM, ids=["recurrent_dropout", "zoneout", "both"])


def make(kind: str, options: dict[str, Any], suffix: str = "", **more: Any) -> Any:
    return spread(getattr(nn, kind + suffix)(I, H, **options, **more, dtype=F64))


def a_state(module: Any, rng: np.random.Generator, *shape: int) -> Any:
    first, *rest = (draw(rng, *shape, size) for size in ((module.output_size, H) if module.pair else (H,)))
    return (first, *rest) if rest else first


def weights_of(module: Any) -> Arrays:
    return {name.removesuffix("_l0"): value.detach().numpy() for name, value in module.named_parameters()}


# --- the equations, one row and one gate at a time --------------------------------------------------------------------


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normal(a: np.ndarray, gain: np.ndarray | None) -> np.ndarray:
    return a if gain is None else gain * (a - a.mean()) / np.sqrt(((a - a.mean()) ** 2).mean() + 1e-5)


def rnn(x: np.ndarray, h: np.ndarray, w: Arrays, seen: np.ndarray, relu: bool) -> list[np.ndarray]:
    a = normal(w["weight_ih"] @ x + w["weight_hh"] @ (seen * h), w.get("norm")) + w["bias_ih"] + w["bias_hh"]
    return [np.maximum(a, 0) if relu else np.tanh(a)]


def gru(x: np.ndarray, h: np.ndarray, w: Arrays, seen: np.ndarray, reset_after: bool) -> list[np.ndarray]:
    def product(side: str, v: np.ndarray, rows: slice) -> np.ndarray:
        gain = w[f"norm_{side}"][rows] if "norm_ih" in w else None
        return normal(w[f"weight_{side}"][rows] @ v, gain) + w[f"bias_{side}"][rows]

    gates, new = slice(0, 2 * H), slice(2 * H, None)
    r, z = np.split(sigma(product("ih", x, gates) + product("hh", seen * h, gates)), 2)
    from_h = r * product("hh", seen * h, new) if reset_after else product("hh", r * seen * h, new)
    return [(1 - z) * np.tanh(product("ih", x, new) + from_h) + z * h]


def lstm(x: np.ndarray, h: np.ndarray, c: np.ndarray, w: Arrays, seen: np.ndarray, coupled: bool) -> list[np.ndarray]:
    a = normal(w["weight_ih"] @ x, w.get("norm_ih")) + normal(w["weight_hh"] @ (seen * h), w.get("norm_hh"))
    a = np.split(a + w["bias_ih"] + w["bias_hh"], 3 if coupled else 4)
    p = np.split(w.get("weight_peephole", np.zeros((2 if coupled else 3) * H)), 2 if coupled else 3)
    i = sigma(a[0] + p[0] * c)
    f = 1 - i if coupled else sigma(a[1] + p[1] * c)
    c = f * c + i * np.tanh(a[-2])
    o = sigma(a[-1] + p[-1] * c)
    h = o * np.tanh(normal(c, w.get("norm_c")) + w.get("bias_c", 0))
    return [w["weight_hr"] @ h if "weight_hr" in w else h, c]


def step(kind: str, options: dict[str, Any], x: np.ndarray, state: list[np.ndarray], w: Arrays, seen: Any) -> Any:
    if kind == "RNN":
        return rnn(x, *state, w, seen, options.get("nonlinearity") == "relu")
    if kind == "GRU":
        return gru(x, *state, w, seen, options.get("reset_after", True))
    return lstm(x, *state, w, seen, options.get("coupled", False))


@each_cell
def test_cell_follows_its_equations(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    cell = make(kind, options, "Cell")
    x, state = draw(rng, B, I), a_state(cell, rng, B)
    output, after = cell(x, state)
    for b in range(B):
        expected = step(kind, options, x.numpy()[b], [part[b] for part in parts(state)], weights_of(cell), 1.0)
        for part, value in zip(parts(after), expected, strict=True):
            np.testing.assert_allclose(part[b], value, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(output.detach().numpy(), parts(after)[0])


@each_cell
def test_cell_gradients(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    """With respect to the input, the state and every weight, against float64 differences."""
    cell = make(kind, options, "Cell")
    names = [name for name, _ in cell.named_parameters()]
    mask = ts.tensor(rng.integers(0, 2, (B, cell.output_size)) * 1.5)

    def f(x: ts.Tensor, state: Any, weights: list[ts.Tensor]) -> Any:
        return cell.equations(dict(zip(names, weights, strict=True)), mask)(x, state)

    weights = [parameter.detach() for parameter in cell.parameters()]
    ts.check_grads(f, (draw(rng, B, I), a_state(cell, rng, B), weights), directions=2, step=1e-5)


@each_cell
def test_cell_without_batch(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    cell = make(kind, options, "Cell", zoneout=0.3).eval()
    x, state = draw(rng, I), a_state(cell, rng)
    batched = cell(x.unsqueeze(0), tree_map(lambda part: part.unsqueeze(0), state))
    for a, b in zip(parts(cell(x, state)), parts(batched), strict=True):
        np.testing.assert_allclose(a, b[0], rtol=1e-12)


# --- what is random in training ---------------------------------------------------------------------------------------


def reference(kind: str, options: dict[str, Any], cell: Any, x: np.ndarray, state: list[np.ndarray], **masks: Any) -> Any:
    """A sequence, one row at a time: ``seen`` (B, P) scales what a product reads of h, ``kept`` (T, B, ...) is zoneout's."""
    seen, kept, rates = masks["seen"], masks["kept"], cell.zoneout
    ys, end = np.zeros((len(x), B, cell.output_size)), [np.zeros_like(part) for part in state]
    for b in range(B):
        row = [part[b] for part in state]
        for t in range(len(x)):
            new = step(kind, options, x[t, b], row, weights_of(cell), seen[b])
            for place, (old, fresh) in enumerate(zip(row, new, strict=True)):
                keep = rates[place] if kept is None else kept[place][t, b]
                new[place] = keep * old + (1 - keep) * fresh
            row, ys[t, b] = new, new[0]
        for part, value in zip(end, row, strict=True):
            part[b] = value
    return ys, end


@each_random
@each_cell
def test_training_and_evaluation(kind: str, options: dict[str, Any], noise: dict[str, Any], rng: np.random.Generator) -> None:
    """In training the masks are the seed's; in evaluation there are none, and zoneout is what is expected of it."""
    cell = make(kind, options, "Cell", **noise)
    x, state = draw(rng, T, B, I), a_state(cell, rng, B)
    sizes = [cell.output_size, H][: len(cell.zoneout)]
    ts.manual_seed(7)
    keep = 1 - cell.recurrent_dropout
    seen = ts.random.bernoulli(keep, (B, sizes[0])).numpy() / keep if keep < 1 else np.ones((B, 1))
    kept = [ts.random.bernoulli(0.3, (T, B, size)).numpy() for size in sizes] if "zoneout" in noise else None
    assert kept is None or {0, 1} == set(np.unique(kept[0]))
    for training in (True, False):
        ts.manual_seed(7)
        ys, after = nn.Recurrent(cell.train(training))(x, state)
        masks = {"seen": seen, "kept": kept} if training else {"seen": np.ones((B, 1)), "kept": None}
        masks["kept"] = masks["kept"] if "zoneout" in noise or not training else [np.zeros((T, B, s)) for s in sizes]
        expected, end = reference(kind, options, cell, x.numpy(), parts(state), **masks)
        np.testing.assert_allclose(ys.detach().numpy(), expected, rtol=1e-10, atol=1e-12)
        for a, b in zip(parts(after), end, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_zoneout_of_h_and_of_c(rng: np.random.Generator) -> None:
    """All of one part stays, none of the other; what c would have been is what h is made of."""
    x, state = draw(rng, B, I), (draw(rng, B, H), draw(rng, B, H))
    plain = make("LSTM", {}, "Cell")
    _, (h, c) = plain(x, state)
    for rates, expected in (((1.0, 0.0), (state[0], c)), ((0.0, 1.0), (h, state[1]))):
        for training in (True, False):
            cell = make("LSTM", {}, "Cell", zoneout=rates).train(training)
            cell.load_state_dict(plain.state_dict())
            output, after = cell(x, state)
            for a, b in zip(parts((output, *after)), parts((expected[0], *expected)), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12)


def test_recurrent_dropout_of_everything_leaves_the_input_alone(rng: np.random.Generator) -> None:
    cell, x = make("RNN", {}, "Cell", recurrent_dropout=1.0), draw(rng, T, B, I)
    ys, _ = nn.Recurrent(cell)(x, draw(rng, B, H))
    expected = np.tanh(x.numpy() @ cell.weight_ih.detach().numpy().T + sum(weights_of(cell)[n] for n in ("bias_ih", "bias_hh")))
    np.testing.assert_allclose(ys.detach().numpy(), expected, rtol=1e-12)


def test_a_cell_called_by_itself_draws_anew(rng: np.random.Generator) -> None:
    cell, x, h = make("RNN", {}, "Cell", recurrent_dropout=0.5), draw(rng, B, I), draw(rng, B, H)
    ts.manual_seed(3)
    seen = [ts.random.bernoulli(0.5, (B, H)).numpy() * 2.0 for _ in range(2)]
    ts.manual_seed(3)
    for mask in seen:
        expected = np.stack([step("RNN", {}, x.numpy()[b], [h.numpy()[b]], weights_of(cell), mask[b])[0] for b in range(B)])
        np.testing.assert_allclose(cell(x, h)[0].detach().numpy(), expected, rtol=1e-12)


# --- the compiled loop ------------------------------------------------------------------------------------------------


def run_layer(layer: Any, x: ts.Tensor, state: Any, dtype: Any, **options: Any) -> list[np.ndarray]:
    """Values and all gradients of a loss in which every output has a weight of its own."""
    layer.zero_grad()
    x, state = tree_map(lambda leaf: ts.tensor(leaf.numpy(), dtype, requires_grad=True), (x, state))
    ts.manual_seed(5)
    results = flatten(layer(x, state, **options))[0]
    loss = sum(((y * ts.arange(y.size).reshape(y.shape).astype(dtype).cos()).sum() for y in results), ts.tensor(0.0, dtype))
    loss.backward()
    gradients = [leaf.grad for leaf in (x, *flatten(state)[0], *layer.parameters())]
    assert all(gradient is not None for gradient in gradients)
    return [leaf.detach().numpy() for leaf in (*results, *gradients)]


def assert_loop_is_the_definition(layer: Any, rng: np.random.Generator, dtype: Any = F64, **options: Any) -> None:
    """To the last bits in float64, and to 1e-5 in float32.

    Layer norm over few units divides by small deviations and makes much of rounding: there float32 may be as far from float64
    as a few times what the definition's own rounding makes, or one of its inputs' last bits.
    """
    depth = layer.num_layers * (1 + layer.bidirectional)
    drawn = draw(rng, T, B, I), a_state(layer, rng, depth, B)
    x, state = tree_map(lambda leaf: ts.tensor(leaf.numpy().astype(dtype).astype(F64)), drawn)
    layer.astype(dtype)

    def results(unroll: bool, dtype: Any, x: Any = x) -> list[np.ndarray]:
        layer.astype(dtype)
        layer.unroll = unroll
        return run_layer(layer, x, state, dtype, **options)

    exact = results(True, F64)

    def error(found: list[np.ndarray]) -> float:
        return max(
            float(np.abs(a - b).max(initial=0)) / max(1.0, float(np.abs(b).max(initial=0)))
            for a, b in zip(found, exact, strict=True)
        )

    own = 0.0
    if layer.layer_norm and dtype != F64:
        bits = [ts.tensor(1 + np.finfo(dtype).eps * rng.integers(-1, 2, x.shape)) for _ in range(3)]
        own = max(error(results(True, dtype, x * each)) for each in (1.0, *bits))
    assert error(results(False, dtype)) <= (1e-10 if dtype == F64 else max(1e-5, 5 * own))


NOISE = {"recurrent_dropout": 0.3, "zoneout": 0.2}


@pytest.mark.usefixtures("strict_loop")
@each_cell
def test_no_option_leaves_the_compiled_loop(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    """Values and gradients are those of the unrolled definition, with the same masks; and there is no warning."""
    layer = make(kind, options, learn_state=True, **NOISE)
    assert_loop_is_the_definition(layer, rng, lengths=LENGTHS, resets=RESETS)


@pytest.mark.usefixtures("strict_loop")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "options"), [CELLS[1], CELLS[4], CELLS[6], CELLS[14], CELLS[-1]])
def test_layers_in_both_directions(
    kind: str, options: dict[str, Any], training: bool, dtype: Any, rng: np.random.Generator
) -> None:
    more = {"num_layers": 2, "bidirectional": True, "dropout": 0.2, **NOISE}
    assert_loop_is_the_definition(make(kind, options, **more).train(training), rng, dtype, lengths=LENGTHS)


@each_cell
def test_layer_gradients(kind: str, options: dict[str, Any], rng: np.random.Generator) -> None:
    """Of a training step with all masks, against float64 differences."""
    layer = make(kind, options, **NOISE)
    names = [name for name, _ in layer.named_parameters()]

    def f(x: ts.Tensor, state: Any, weights: list[ts.Tensor]) -> Any:
        for name, weight in zip(names, weights, strict=True):
            setattr(layer, name, weight)
        ts.manual_seed(5)
        return layer(x, state, lengths=LENGTHS, resets=RESETS)

    weights = [parameter.detach() for parameter in layer.parameters()]
    ts.check_grads(f, (draw(rng, T, B, I), a_state(layer, rng, 1, B), weights), directions=1, step=1e-5)


# --- weights ----------------------------------------------------------------------------------------------------------


def test_names_and_shapes() -> None:
    everything = {"proj_size": P, "peepholes": True, "layer_norm": True, "learn_state": True}
    shapes = {name: value.shape for name, value in nn.LSTMCell(I, H, **everything).state_dict().items()}
    assert shapes == {
        "weight_ih": (4 * H, I),
        "weight_hh": (4 * H, P),
        "bias_ih": (4 * H,),
        "bias_hh": (4 * H,),
        "weight_hr": (P, H),
        "weight_peephole": (3 * H,),
        "norm_ih": (4 * H,),
        "norm_hh": (4 * H,),
        "norm_c": (H,),
        "bias_c": (H,),
        "h_0": (P,),
        "c_0": (H,),
    }
    coupled = nn.LSTMCell(I, H, bias=False, coupled=True, peepholes=True, layer_norm=True).state_dict()
    assert {name: value.shape for name, value in coupled.items()} == {
        "weight_ih": (3 * H, I),
        "weight_hh": (3 * H, H),
        "weight_peephole": (2 * H,),
        "norm_ih": (3 * H,),
        "norm_hh": (3 * H,),
        "norm_c": (H,),
    }
    for name, value in nn.LSTMCell(I, H, layer_norm=True).state_dict().items():
        assert (value.numpy() == 1).all() == name.startswith("norm")


def test_options_that_are_off_draw_no_numbers() -> None:
    """The same seed gives the same weights, with and without them."""
    ts.manual_seed(1)
    plain = nn.GRUCell(I, H).state_dict()
    ts.manual_seed(1)
    full = nn.GRUCell(I, H, layer_norm=True, learn_state=True, zoneout=0.5, recurrent_dropout=0.5).state_dict()
    for name, value in plain.items():
        np.testing.assert_array_equal(value.numpy(), full[name].numpy())


@pytest.mark.parametrize("coupled", [False, True])
def test_forget_bias_is_the_forget_gate_of_nothing(coupled: bool) -> None:
    cell = nn.LSTMCell(I, H, forget_bias=2.0, coupled=coupled, dtype=F64)
    cell.weight_hh = ts.zeros_like(cell.weight_hh)
    _, (_, c) = cell(ts.zeros((1, I), F64), (ts.zeros((1, H), F64), ts.ones((1, H), F64)))
    _, (_, without) = cell(ts.zeros((1, I), F64), (ts.zeros((1, H), F64), ts.zeros((1, H), F64)))
    np.testing.assert_allclose((c - without).detach().numpy(), [[sigma(np.array(2.0))] * H], rtol=1e-12)


def test_a_learned_initial_state(rng: np.random.Generator) -> None:
    assert not any(part.any() for part in parts(nn.LSTMCell(I, H, proj_size=P, learn_state=True).initial_state(B)))
    cell, x = make("LSTM", {"proj_size": P}, "Cell", learn_state=True), draw(rng, B, I)
    state = cell.initial_state(B)
    for part, name in zip(parts(state), ("h_0", "c_0"), strict=True):
        np.testing.assert_array_equal(part, np.tile(weights_of(cell)[name], (B, 1)))
    for a, b in zip(parts(cell(x)), parts(cell(x, state)), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(parts(cell(x[0]))[0], parts(cell(x))[0][0], rtol=1e-12)
    cell(x)[0].sum().backward()
    alone = ts.grad(lambda h, c: cell(x, (h.expand(B, P), c.expand(B, H)))[0].sum(), argnums=(0, 1))
    for parameter, expected in zip((cell.h_0, cell.c_0), alone(cell.h_0.detach(), cell.c_0.detach()), strict=True):
        np.testing.assert_allclose(parameter.grad.numpy(), expected.numpy(), rtol=1e-10)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.LSTMCell(3, 4, proj_size=4), ts.ShapeError, "between 0 and hidden_size=4, got 4"),
        (lambda: nn.LSTMCell(3, 4, proj_size=-1), ts.ShapeError, "got -1"),
        (lambda: nn.LSTMCell(3, 4, zoneout=1.5), ValueError, r"zoneout probability lies in \[0, 1\], got 1.5"),
        (lambda: nn.LSTMCell(3, 4, zoneout=(0.1, 0.2, 0.3)), ValueError, "LSTMCell has 2 parts in its state, got zoneout"),
        (lambda: nn.GRUCell(3, 4, zoneout=(0.1, 0.2)), ValueError, "GRUCell has 1 parts in its state"),
        (lambda: nn.GRUCell(3, 4, recurrent_dropout=-0.1), ValueError, r"recurrent dropout probability .* got -0.1"),
        (lambda: nn.LSTMCell(3, 4, bias=False, coupled=True, forget_bias=1.0), ValueError, "leave it out with bias=False"),
        (
            lambda: nn.LSTMCell(3, 4, proj_size=2)(ts.zeros((2, 3)), (ts.zeros((2, 4)), ts.zeros((2, 4)))),
            ts.ShapeError,
            r"state h of float32 \(2, 2\) for this input, got float32 \(2, 4\)",
        ),
        (
            lambda: nn.Recurrent(nn.LSTMCell(3, 4))(ts.zeros((5, 2, 7))),
            ts.ShapeError,
            r"LSTMCell takes 3 features on the last axis, got an input of shape \(2, 7\)",
        ),
        (lambda: nn.RNNCell(3, 4, peepholes=True), TypeError, "peepholes"),
    ],
)
def test_refused(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
