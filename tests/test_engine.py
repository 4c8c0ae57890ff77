"""Programs drawn at random against differences; the choice of a backend; Tensor as users meet it; no NumPy-isms."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.backend import get_backend
from tinyseq.tensor import Tensor
from tinyseq.testing import directional_derivative

# --- programs drawn at random -----------------------------------------------------------------------------------------

SHAPES = [(), (1,), (3,), (2, 1), (2, 3), (1, 3), (2, 2, 3)]
Program = Callable[[list[Tensor]], Tensor]


def _bounded(t: Tensor) -> Tensor:
    """Squashed, so that a deep program stays in a range where differences are exact."""
    return t.tanh() * 1.5


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": lambda t: t.tanh(),
    "sigmoid": lambda t: t.sigmoid(),
    "exp": lambda t: (t * 0.3).exp(),
    "sin": lambda t: t.sin(),
    "erf": lambda t: t.erf(),
    "log": lambda t: (t * t + 1.0).log(),
    "sqrt": lambda t: (t * t + 1.0).sqrt(),
    "neg": lambda t: -t,
    "square": lambda t: t * t,
    "cube": lambda t: t**3,
    "sum": lambda t: t.sum(),
    "sum-last": lambda t: t.sum(axis=-1) if t.ndim else t,
    "mean-first": lambda t: t.mean(axis=0, keepdims=True) if t.ndim else t,
    "cumsum": lambda t: t.cumsum(-1) if t.ndim else t,
    "softmax": lambda t: ts.softmax(t) if t.ndim else t,
    "logsumexp": lambda t: ts.logsumexp(t) if t.ndim else t,
    "transpose": lambda t: t.T,
    "flatten": lambda t: t.reshape(-1),
    "flip": lambda t: t.flip(),
    "gather": lambda t: t[ts.tensor([0, -1, 0])] if t.ndim else t,
    "slice": lambda t: t[..., ::-1] if t.ndim else t,
    "pad": lambda t: ts.pad(t, ((1, 1),), 0.5) if t.ndim else t,
    "gram": lambda t: t @ t.mT if t.ndim >= 2 else t,
    "roll": lambda t: ts.roll(t, 1, -1) if t.ndim else t,
    "where": lambda t: ts.where(ts.ones(t.shape, dtype=ts.bool_).cumsum(-1) % 2 == 0, t, t * 2.0) if t.ndim else t,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (b * b + 1.0),
    "power": lambda a, b: (a * a + 0.5) ** _bounded(b),
    "logaddexp": lambda a, b: ts.logaddexp(a, b),
    "concatenate": lambda a, b: ts.concatenate([a.reshape(-1), b.reshape(-1)]),
    "outer": lambda a, b: ts.outer(a.reshape(-1)[:3], b.reshape(-1)[:3]),
}


def _fits(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(a[::-1], b[::-1], strict=False))


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[np.ndarray[Any, Any]], list[tuple[str, int, int]]]:
    """Inputs, and a list of steps: an operation, and which of the values so far it takes. A value may be used often."""
    seed = draw(st.integers(0, 2**32 - 1))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    rng = np.random.default_rng(seed)
    inputs = [np.asarray(rng.uniform(-1.5, 1.5, shape)) for shape in shapes]
    count = len(inputs)
    steps = []
    for _ in range(draw(st.integers(1, 8))):
        name = draw(st.sampled_from([*UNARY, *BINARY]))
        steps.append((name, draw(st.integers(0, count - 1)), draw(st.integers(0, count - 1))))
        count += 1
    return inputs, steps


def _run(steps: list[tuple[str, int, int]], inputs: list[Tensor]) -> Tensor:
    values = list(inputs)
    for name, i, j in steps:
        a, b = values[i], values[j]
        if name in UNARY:
            out = UNARY[name](a)
        elif name in ("concatenate", "outer") or _fits(a.shape, b.shape):
            out = BINARY[name](a, b)
        else:
            out = a
        values.append(_bounded(out))
    # Every value counts, so that no branch is dead.
    return sum((v.sin().sum() * (0.3 + 0.1 * k) for k, v in enumerate(values)), ts.tensor(0.0, dtype=ts.float64))


def _gradients(steps: list[tuple[str, int, int]], arrays: list[Any]) -> list[np.ndarray[Any, Any]]:
    leaves = [ts.tensor(a, requires_grad=True) for a in arrays]
    _run(steps, leaves).backward()
    return [x.grad.numpy() for x in leaves]  # type: ignore[union-attr]


@settings(max_examples=60)
@given(programs())
def test_random_programs_to_the_second_order(program: tuple[list[Any], list[tuple[str, int, int]]]) -> None:
    inputs, steps = program
    rng = np.random.default_rng(len(steps))
    u, w = ([np.asarray(rng.uniform(-1, 1, x.shape)) for x in inputs] for _ in range(2))

    def value(t: float) -> float:
        return float(_run(steps, [ts.tensor(x + t * d) for x, d in zip(inputs, u, strict=True)]))

    def slope(t: float) -> float:
        found = _gradients(steps, [np.asarray(x + t * d) for x, d in zip(inputs, u, strict=True)])
        return float(sum((g * d).sum() for g, d in zip(found, w, strict=True)))

    leaves = [ts.tensor(x, requires_grad=True) for x in inputs]
    _run(steps, leaves).backward(create_graph=True)
    first = [x.grad for x in leaves]
    for g, raw in zip(first, _gradients(steps, inputs), strict=True):
        assert g is not None
        np.testing.assert_allclose(g.numpy(), raw, rtol=1e-10, atol=1e-11)
    ours = sum(float((g.numpy() * d).sum()) for g, d in zip(first, u, strict=True))  # type: ignore[union-attr]
    scale = 1 + sum(float(np.abs(g.numpy()).sum()) for g in first)  # type: ignore[union-attr]
    np.testing.assert_allclose(ours, directional_derivative(value), rtol=0, atol=1e-8 * scale)

    for x in leaves:
        x.grad = None
    looked_at = sum(((g * ts.tensor(d)).sum() for g, d in zip(first, w, strict=True)), ts.tensor(0.0, dtype=ts.float64))
    looked_at.backward()
    second = [0 * d if x.grad is None else x.grad.numpy() * d for x, d in zip(leaves, u, strict=True)]
    scale = 1 + sum(float(np.abs(s).sum()) for s in second)
    np.testing.assert_allclose(sum(float(s.sum()) for s in second), directional_derivative(slope), rtol=0, atol=1e-7 * scale)


@settings(max_examples=40)
@given(programs())
def test_random_programs_on_a_library_that_follows_the_standard(
    program: tuple[list[Any], list[tuple[str, int, int]]],
) -> None:
    """The same values and gradients as on NumPy."""
    inputs, steps = program
    expected = _gradients(steps, inputs)
    with ts.use_backend(STRICT):
        for ours, theirs in zip(_gradients(steps, inputs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


STRICT = StrictBackend()


# --- the engine on another array library ------------------------------------------------------------------------------


def _training(steps: int = 4) -> list[float]:
    """Embedding, LSTM, norm, output layer, cross-entropy, clipping and Adam: all that a language model needs."""
    ts.manual_seed(3)
    tokens = ts.tensor(np.arange(24).reshape(6, 4) * 7 % 11)
    layers = [ts.nn.Embedding(11, 5), ts.nn.LSTM(5, 6, num_layers=2), ts.nn.LayerNorm(6), ts.nn.Linear(6, 11)]
    parameters = [p for layer in layers for p in layer.parameters()]
    optimizer = ts.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        h, _state = layers[1](layers[0](tokens[:-1]))
        logits = layers[3](layers[2](h))
        loss = ts.nn.functional.cross_entropy(logits.reshape(-1, 11), tokens[1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        ts.optim.clip_grad_norm(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_language_model_trains_on_array_api_strict() -> None:
    """From the same seed the same losses as on NumPy: layers, losses and optimizers use nothing peculiar to it."""
    expected = _training()
    with ts.use_backend(STRICT):
        losses = _training()
        assert type(ts.nn.Linear(2, 2).weight.data) is STRICT.array_type
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", ["SGD", "RMSprop", "Adagrad", "Adam", "AdamW"])
def test_every_optimizer_steps_on_array_api_strict(method: str) -> None:
    def run() -> list[float]:
        w = ts.Parameter([1.0, -2.0, 3.0])
        optimizer = getattr(ts.optim, method)([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (w * w).sum().backward()
            optimizer.step()
        return w.tolist()  # type: ignore[no-any-return]

    expected = run()
    with ts.use_backend(STRICT):
        np.testing.assert_allclose(run(), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers_on_array_api_strict(kind: str) -> None:
    def run() -> tuple[Any, Any]:
        ts.manual_seed(1)
        layer = getattr(ts.nn, kind)(3, 4, bidirectional=True)
        x = ts.tensor(np.linspace(-1, 1, 24).reshape(4, 2, 3).astype(np.float32), requires_grad=True)
        y, _ = layer(x, lengths=ts.tensor([4, 2]))
        (y * y).sum().backward()
        assert x.grad is not None
        return y.tolist(), x.grad.tolist()

    expected = run()
    with ts.use_backend(STRICT):
        for ours, theirs in zip(run(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda x: ts.softmax(x),
    "log_softmax": lambda x: ts.log_softmax(x),
    "logsumexp": lambda x: ts.logsumexp(x),
    "gelu": lambda x: ts.gelu(x),
    "silu": lambda x: ts.silu(x),
    "elu": lambda x: ts.elu(x),
    "softplus": lambda x: ts.softplus(x),
    "var": lambda x: ts.var(x, axis=-1),
    "std": lambda x: ts.std(x, axis=-1),
    "norm": lambda x: ts.norm(x),
    "prod": lambda x: ts.prod(x, axis=-1),
    "einsum": lambda x: ts.einsum("ij,kj->ik", x, x),
    "tril": lambda x: ts.tril(x),
    "triu": lambda x: ts.triu(x, 1),
    "stack": lambda x: ts.stack([x, x * 2], axis=1),
    "split": lambda x: ts.split(x, [1, 3], axis=1)[1],
    "roll": lambda x: ts.roll(x, 1, 0),
    "tile": lambda x: ts.tile(x, (2, 1)),
    "repeat": lambda x: ts.repeat(x, 2, 0),
    "pad": lambda x: ts.pad(x, ((1, 0), (0, 2)), -1.0),
    "sort": lambda x: ts.sort(x)[0],
    "topk": lambda x: ts.topk(x, 2)[0],
    "take_along_axis": lambda x: ts.take_along_axis(x, ts.argsort(x, axis=-1), -1),
    "mask": lambda x: x[x > 0],
    "masked_fill": lambda x: ts.masked_fill(x, x > 0, -5.0),
    "layer_norm": lambda x: ts.layer_norm(x),
    "outer": lambda x: ts.outer(x[0], x[1]),
    "cosine_similarity": lambda x: ts.cosine_similarity(x[:1], x[1:]),
    "huber": lambda x: ts.huber_loss(x, x * 0.5),
    "chunk": lambda x: ts.chunk(x, 2, axis=1)[0],
    "moveaxis": lambda x: ts.moveaxis(x, 0, 1),
    "mean": lambda x: x.mean(axis=0),
    "max": lambda x: x.max(axis=-1),
    "cumsum": lambda x: x.cumsum(-1),
    "vector products": lambda x: x[0] @ x.mT + (x @ x[1])[0],
    "expand": lambda x: x[:, None].expand(-1, 2, -1),
    "iteration": lambda x: sum(row for row in x),
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_functions_on_array_api_strict(name: str) -> None:
    """Value and gradient as on NumPy."""
    values = np.random.default_rng(4).normal(size=(2, 4))

    def run() -> tuple[Any, Any]:
        x = ts.tensor(values, requires_grad=True)
        y = FUNCTIONS[name](x)
        (y * y.detach().sin()).sum().backward()
        assert x.grad is not None
        return y.numpy(), x.grad.numpy()

    expected = run()
    with ts.use_backend(STRICT):
        for ours, theirs in zip(run(), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12, strict=True)


# --- which backend is in force ----------------------------------------------------------------------------------------


def test_as_a_context_it_is_put_back_also_after_an_error() -> None:
    before = ts.current_backend()
    with ts.use_backend(STRICT) as inside:
        assert inside is STRICT is ts.current_backend()
        with ts.use_backend("numpy"):
            assert ts.current_backend().name == "numpy"
        assert ts.current_backend() is STRICT
    assert ts.current_backend() is before
    with pytest.raises(ZeroDivisionError), ts.use_backend(STRICT):
        raise ZeroDivisionError
    assert ts.current_backend() is before


def test_as_a_call_it_holds_for_all_that_follows_and_for_new_threads() -> None:
    ts.use_backend(STRICT)
    assert ts.current_backend() is STRICT
    assert _in_thread(ts.current_backend) is STRICT
    ts.use_backend("numpy")
    assert _in_thread(ts.current_backend).name == "numpy"


def test_a_context_does_not_reach_other_threads() -> None:
    ts.use_backend("numpy")
    with ts.use_backend(STRICT):
        assert _in_thread(ts.current_backend).name == "numpy"
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with ts.use_backend(STRICT):
            entered.set()
            leave.wait()
            seen.append(ts.current_backend())

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    assert ts.current_backend().name == "numpy"
    leave.set()
    thread.join()
    assert seen == [STRICT]


def _in_thread(f: Callable[[], Any]) -> Any:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(f()))
    thread.start()
    thread.join()
    return result[0]


def test_operations_follow_the_arrays_not_the_backend_in_force() -> None:
    with ts.use_backend(STRICT):
        x = ts.tensor([1.0, 2.0], requires_grad=True)
        y = (x * 3).tanh()
    z = (y * y).sum()  # NumPy is in force here
    assert type(z.data) is STRICT.array_type
    z.backward()
    assert x.grad is not None
    assert type(x.grad.data) is STRICT.array_type
    expected = ts.grad(lambda x: ((x * 3).tanh() ** 2).sum())(ts.tensor([1.0, 2.0]))
    np.testing.assert_allclose(x.grad.numpy(), expected.numpy(), rtol=1e-6)
    assert "tensor" in repr(x)


def test_moving_keeps_values_dtype_and_the_wish_for_a_gradient() -> None:
    x = ts.Parameter([1.0, 2.0])
    y = x.to(STRICT)
    assert (type(y), y.requires_grad, y.dtype, y.tolist()) == (ts.Parameter, True, ts.float32, [1.0, 2.0])
    assert y.node is not x.node
    assert x.to("numpy") is x


def test_every_backend_says_what_it_is() -> None:
    lines = {line.name: line for line in ts.backends()}
    assert {"numpy", "numba", "cupy"} <= lines.keys()
    assert lines["numpy"].available
    assert lines["numpy"].version.startswith("numpy ")
    for line in lines.values():
        assert line.available or (line.reason and line.install)
        assert line.name in str(line)
    assert get_backend("numpy") is get_backend("numpy")


# --- Tensor -----------------------------------------------------------------------------------------------------------


def test_what_numpy_arrays_do_later_changes_nothing() -> None:
    """The tape keeps copies: a buffer that is filled anew before the backward pass does no harm."""
    batch, ids, where = np.ones(3), np.array([0, 1, 1]), np.array([True, False, True])
    x = ts.tensor([1.0, 2.0, 3.0], dtype=ts.float64, requires_grad=True)
    loss = (x * batch).sum() + x[ids].sum() + ts.where(where, x, 0.0).sum()
    batch[:], ids[:], where[:] = 100.0, 0, False
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0, 2.0]


def test_reflected_operators() -> None:
    x = ts.tensor([2.0, 4.0])
    assert (1 - x).tolist() == [-1.0, -3.0]
    assert (8 / x).tolist() == [4.0, 2.0]
    assert (2**x).tolist() == [4.0, 16.0]
    assert (5 % x).tolist() == [1.0, 1.0]
    assert (9 // x).tolist() == [4.0, 2.0]
    assert (np.array([1.0, 1.0]) @ x).item() == 6.0
    assert (x > 3).tolist() == [False, True]
    with pytest.raises(TypeError):
        x + "a"
    with pytest.raises(TypeError):
        x + None
    assert (x == None) is False  # noqa: E711


def test_properties_and_representation() -> None:
    x = ts.zeros((2, 3), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.is_leaf, len(x)) == ((2, 3), 2, 6, True, 2)
    assert not (x * 2).is_leaf
    x.name = "weight"
    assert x.name == "weight"
    assert "requires_grad=True" in repr(x)
    assert "from=mul" in repr(x * 2)
    assert "float64" in repr(ts.zeros(1, dtype=ts.float64))
    assert repr(ts.Parameter([1.0])).startswith("Parameter(")
    assert len({x, x, ts.zeros(1)}) == 2


def test_shape_moves_go_by_both_ways_of_writing() -> None:
    x = ts.arange(6).reshape(2, 3)
    assert x.reshape((3, 2)).tolist() == x.reshape(3, -1).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert x.permute(1, 0).tolist() == x.permute((1, 0)).tolist() == x.T.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert x.transpose(0, 1).tolist() == x.mT.tolist()
    assert x.unsqueeze(1).shape == (2, 1, 3)
    assert x.unsqueeze(-1).squeeze(-1).tolist() == x.tolist()
    assert x.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert ts.zeros((2, 3, 4)).flatten(1).shape == (2, 12)
    assert x[0].expand(2, 3).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert ts.zeros((0, 3)).reshape(3, 0).shape == (3, 0)


def test_empty_and_zero_dimensional_tensors_have_gradients() -> None:
    x = ts.zeros((0, 3), requires_grad=True)
    (x.exp().sum() + (x @ ts.ones((3, 2))).sum()).backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 3)
    y = ts.tensor(2.0, requires_grad=True)
    (y * y).backward()
    assert y.grad is not None
    assert y.grad.shape == ()
    assert y.grad.item() == 4.0
