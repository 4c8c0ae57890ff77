"""What a step may be given and how exact it is: token ids, ids that it chooses itself, nested structures, float32."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.tree import flatten

T, B, V, E = 6, 3, 7, 4


@pytest.fixture(params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Any:
    with ts.use_backend(request.param) as chosen:
        yield chosen


def both_ways(step: Any, carry: Any, xs: Any, leaves: list[ts.Tensor], **options: Any) -> None:
    """The compiled scan gives what the one on the tape does: values and gradients of every leaf."""
    found = []
    for unroll in (True, False):
        for leaf in leaves:
            leaf.grad = None
        last, ys = ts.scan(step, carry, xs, unroll=unroll, **options)
        values = flatten((last, ys))[0]
        loss = sum(((v * v).sum() for v in values if v.dtype.kind == "f"), start=ts.tensor(0.0, ts.float64))
        loss.backward()
        found.append([*(v.numpy() for v in values), *(leaf.grad.numpy() for leaf in leaves)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-12)


def leaf(*shape: int) -> ts.Tensor:
    x = ts.random.randn(shape).astype(np.float64)
    x.requires_grad = True
    return x


def test_token_ids_are_looked_up_inside_the_step(backend: Any) -> None:
    ts.manual_seed(1)
    table, w = leaf(V, E), leaf(E, E)
    ids = ts.tensor(np.random.default_rng(0).integers(0, V, (T, B)))
    both_ways(lambda h, i: (ts.tanh(h @ w + table[i]), h), leaf(B, E), ids, [table, w])


def test_ids_that_the_step_chooses_itself(backend: Any) -> None:
    """As a greedy decoder does: the carry holds the last token."""
    ts.manual_seed(2)
    table, w, out = leaf(V, E), leaf(E, E), leaf(E, V)

    def step(carry: Any, _: Any) -> Any:
        h, token = carry
        h = ts.tanh(h @ w + table[token])
        scores = h @ out
        return (h, ts.argmax(scores, -1)), (scores, token)

    both_ways(step, (leaf(B, E), ts.zeros(B, np.int64)), None, [table, w, out], length=T)


class State(NamedTuple):
    h: ts.Tensor
    more: dict[str, Any]


def test_nested_structures_and_carries_of_several_shapes(backend: Any) -> None:
    ts.manual_seed(3)
    w, a = leaf(E, E), leaf(B, E)

    def step(state: State, x: Any) -> Any:
        h = ts.tanh(state.h @ w + x["in"][0])
        count = state.more["sums"][1] + h.sum(-1)
        more = {"sums": [state.more["sums"][0] * 0.5 + h, count], "unused": state.more["unused"]}
        return State(h, more), {"h": h, "pair": (count, [x["in"][1]])}

    start = State(a, {"sums": [leaf(B, E), leaf(B)], "unused": leaf(B, 2)})
    xs = {"in": (leaf(T, B, E), leaf(T, B))}
    leaves = [w, a, *start.more["sums"], *xs["in"]]
    both_ways(step, start, xs, leaves)
    both_ways(step, start, xs, leaves, reverse=True)
    both_ways(step, start, xs, leaves, lengths=[T, 0, 2])


@pytest.mark.filterwarnings("ignore:a scan runs on the slower NumPy loop")
def test_a_scan_inside_a_scan(backend: Any) -> None:
    ts.manual_seed(4)
    w, u = leaf(E, E), leaf(E, E)

    def step(h: Any, x: Any) -> Any:
        inner, outs = ts.scan(lambda g, z: (ts.tanh(g @ u + z + h), g), h, x)
        return ts.tanh(inner @ w), outs.sum(0)

    both_ways(step, leaf(B, E), leaf(T, 3, B, E), [w, u])


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_float32_is_float64_to_its_precision(backend: Any, kind: str) -> None:
    ts.manual_seed(5)
    steps, rows, inputs, hidden = 40, 5, 12, 19
    layer = getattr(ts.nn, kind)(inputs, hidden)
    wide = getattr(ts.nn, kind)(inputs, hidden, dtype=np.float64)
    wide.load_state_dict({k: v.astype(np.float64) for k, v in layer.state_dict().items()})
    xs = ts.random.randn((steps, rows, inputs))
    weights = ts.random.randn((steps, rows, hidden))
    gradients = []
    for net, dtype in ((layer, np.float32), (wide, np.float64)):
        x = xs.detach().astype(dtype)
        x.requires_grad = True
        ys, _ = net(x)
        (ys * weights.astype(dtype)).sum().backward()
        gradients.append([ys.numpy(), x.grad.numpy(), *(p.grad.numpy() for p in net.parameters())])
    for narrow, exact in zip(*gradients, strict=True):
        assert narrow.dtype == np.float32
        assert np.linalg.norm(narrow - exact) <= 1e-5 * np.linalg.norm(exact)


def test_the_same_bits_every_time(backend: Any) -> None:
    layer = ts.nn.LSTM(5, 9)
    xs = ts.random.randn((11, 7, 5))
    results = []
    for _ in range(2):
        for p in layer.parameters():
            p.grad = None
        ys, _ = layer(xs)
        (ys * ys).sum().backward()
        results.append([ys.numpy().tobytes(), *(p.grad.numpy().tobytes() for p in layer.parameters())])
    assert results[0] == results[1]


def test_second_derivatives_reach_what_the_step_derives_from_parameters(backend: Any) -> None:
    """``w.T`` is made inside the step, of a closed-over tensor alone."""
    ts.manual_seed(6)
    w, h, xs = leaf(E, E), leaf(B, E), leaf(4, B, E)

    def gradient_of_gradient(unroll: bool) -> list[np.ndarray[Any, Any]]:
        last, ys = ts.scan(lambda h, x: (ts.tanh(h @ w.T + x), h * x), h, xs, unroll=unroll)
        w.grad = h.grad = xs.grad = None
        ((last**2).sum() + ys.sum()).backward(create_graph=True)
        first = [w.grad, h.grad, xs.grad]
        w.grad = h.grad = xs.grad = None
        sum(((g * g).sum() for g in first), start=ts.tensor(0.0, ts.float64)).backward()
        return [x.numpy() for x in (*first, w.grad, h.grad, xs.grad)]

    for one, other in zip(gradient_of_gradient(False), gradient_of_gradient(True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("when", ["before", "after"])
def test_who_waits_for_the_gradient_of_a_transposed_weight_gets_it(backend: Any, when: str) -> None:
    """The loop reads the weight as it lies in memory; the transpose keeps its place on the tape."""
    found = []
    for unroll in (True, False):
        ts.manual_seed(3)
        w, h, xs = leaf(E, E), leaf(B, E), leaf(4, B, E)
        turned, seen = w.T, []
        if when == "before":
            turned.register_hook(seen.append)
        last, _ = ts.scan(lambda h, x, turned=turned: (ts.tanh(h @ turned + x), None), h, xs, unroll=unroll)
        if when == "after":
            turned.register_hook(seen.append)
            turned.retain_grad()
        last.sum().backward()
        assert len(seen) == 1
        if when == "after":
            np.testing.assert_array_equal(turned.grad.numpy(), seen[0].numpy())
        np.testing.assert_array_equal(w.grad.numpy(), seen[0].numpy().T)
        found.append(w.grad.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-11)


def test_a_transposed_value_of_the_outer_step_in_an_inner_one(backend: Any) -> None:
    xs, h = leaf(3, E, E), leaf(E, E)

    def outer(h: Any, x: Any) -> Any:
        turned = x.T
        h, _ = ts.scan(lambda c, z: (ts.tanh(c @ turned + z), None), h, 0.1 * ts.ones((2, E, E), ts.float64))
        return h, h.sum()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a scan runs on the slower NumPy loop")
        both_ways(outer, h, xs, [xs, h])


def test_second_derivatives_where_differentiation_brings_constants_of_its_own(backend: Any) -> None:
    """A carry that the step does not read has a gradient of zeros, which the graph of the step alone does not know."""
    ts.manual_seed(6)
    h, xs, w = leaf(B, E), leaf(3, B, E), leaf(E, E)

    def gradient_of_gradient(unroll: bool) -> list[Any]:
        xs.grad = w.grad = None
        last, ys = ts.scan(lambda h, x: (ts.tanh(x @ w.T), x * x), h, xs, unroll=unroll)
        ((last**2).sum() + ys.sum()).backward(create_graph=True)
        first = [xs.grad, w.grad]
        xs.grad = w.grad = None
        sum(((g * g).sum() for g in first), start=ts.tensor(0.0, ts.float64)).backward()
        return [x.numpy() for x in (*first, xs.grad, w.grad)]

    for one, other in zip(gradient_of_gradient(False), gradient_of_gradient(True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
