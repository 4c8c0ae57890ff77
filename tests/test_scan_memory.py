"""What a compiled scan can do besides its result: keep less, hand out norms, say what it does."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import tinyseq as ts

BACKENDS = ["numpy", "numba"]
T, B, H = 23, 3, 5


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    with ts.use_backend(request.param) as chosen:
        yield chosen


def case() -> tuple[Any, Any, Any]:
    """A step with two carries, a frozen row and outputs; its inputs and parameters."""
    ts.manual_seed(0)
    w = ts.random.randn((H, H)).astype(np.float64)
    b = ts.random.randn((H,)).astype(np.float64)
    xs = ts.random.randn((T, B, H)).astype(np.float64)
    h = ts.random.randn((B, H)).astype(np.float64)
    c = ts.random.randn((B, H)).astype(np.float64)
    leaves = [w, b, xs, h, c]
    for leaf in leaves:
        leaf.requires_grad = True

    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        h = ts.tanh(h @ w + x + b)
        c = c * ts.sigmoid(h) + x
        return (h, c), {"h": h, "out": c @ w}

    return step, leaves, ((h, c), xs)


def gradients(options: dict[str, Any]) -> tuple[list[np.ndarray[Any, Any]], Any]:
    step, leaves, (carry, xs) = case()
    with ts.trace_gradients() as flow:
        (h, c), ys = ts.scan(step, carry, xs, **options)
        loss = (h * 2.0).sum() + (c * c).mean() + (ys["h"] ** 2).sum() + ys["out"].sum()
        loss.backward()
    return [loss.numpy(), h.numpy(), ys["out"].numpy(), *(leaf.grad.numpy() for leaf in leaves)], flow


VARIANTS = [{}, {"reverse": True}, {"lengths": [T, 0, 7]}, {"lengths": [T, 4, 7], "reverse": True}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("every", [1, 4, T - 1, T, 100, True])
def test_a_checkpointed_scan_is_the_scan(backend: Any, variant: dict[str, Any], every: int) -> None:
    expected, norms = gradients({**variant, "unroll": True})
    found, others = gradients({**variant, "checkpoint": every})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    for name in norms:
        np.testing.assert_allclose(others[name], norms[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_norms_of_a_compiled_scan_are_those_of_the_tape(backend: Any, variant: dict[str, Any]) -> None:
    _, expected = gradients({**variant, "unroll": True})
    _, found = gradients(variant)
    assert set(expected) == set(found) == {"scan.0", "scan.1"}
    for name in expected:
        assert found[name].shape == (T,)
        assert np.all(found[name] > 0)
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-10)


def test_the_norm_by_hand() -> None:
    """h_t = a h_(t-1) + x_t and L = h_T: dL/dh_t is a to the power of T - t."""
    a = ts.tensor(0.5, requires_grad=True)
    with ts.trace_gradients() as flow:
        h, _ = ts.scan(lambda h, x: (a * h + x, None), ts.zeros((1, 1)), ts.ones((6, 1, 1)))
        h.sum().backward()
    np.testing.assert_allclose(flow["scan"], 0.5 ** np.arange(5, -1, -1.0), rtol=1e-6)


def test_every_layer_has_its_name() -> None:
    layer = ts.nn.LSTM(3, 4, num_layers=2)
    with ts.trace_gradients() as flow:
        ys, _ = layer(ts.random.randn((7, 2, 3)))
        ys.sum().backward()
    assert sorted(flow) == ["LSTM 2.0", "LSTM 2.1", "LSTM.0", "LSTM.1"]
    assert len(flow) == 4


def test_outside_the_block_nothing_is_collected() -> None:
    layer = ts.nn.RNN(3, 4)
    with ts.trace_gradients() as flow:
        pass
    layer(ts.random.randn((7, 2, 3)))[0].sum().backward()
    assert not flow


def test_second_derivatives_of_a_checkpointed_scan(backend: Any) -> None:
    step, _, (carry, xs) = case()

    def loss(h: ts.Tensor, **options: Any) -> ts.Tensor:
        (last, _), ys = ts.scan(step, (h, carry[1]), xs, **options)
        return (last**2).sum() + ys["out"].sum()

    v = ts.ones_like(carry[0])
    expected = ts.hvp(lambda h: loss(h, unroll=True), (carry[0].detach(),), (v,))
    found = ts.hvp(lambda h: loss(h, checkpoint=5), (carry[0].detach(),), (v,))
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("every", [0, -1, 2.5, "all"])
def test_a_checkpoint_that_is_no_number_of_steps(every: Any) -> None:
    with pytest.raises(ValueError, match="positive number of steps"):
        ts.scan(lambda c, x: (c, x), ts.zeros(2), ts.zeros((3, 2)), checkpoint=every)


def test_checkpoint_and_unroll() -> None:
    with pytest.raises(ts.GraphError, match=r"ts\.checkpoint"):
        ts.scan(lambda c, x: (c, x), ts.zeros(2), ts.zeros((3, 2)), checkpoint=2, unroll=True)


MEMORY = """
import re, sys
import numpy as np, tinyseq as ts
ts.use_backend("numba")
def peak():  # in KiB, of this process alone
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
cell = ts.nn.LSTMCell(8, 64)
def run(steps, checkpoint):
    h = ts.zeros((8, 64))
    def step(carry, x):
        return cell(x, carry)[1], None
    (h, c), _ = ts.scan(step, (h, h), ts.zeros((steps, 8, 8)), checkpoint=checkpoint)
    h.sum().backward()
run(16, False)
before = peak()
run(int(sys.argv[1]), sys.argv[2] == "True")
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is read from /proc")
def test_a_checkpointed_scan_keeps_a_fraction() -> None:
    def peak(checkpoint: bool) -> int:
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, "4000", str(checkpoint)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert peak(True) < 0.25 * peak(False)


def test_debug_shows_what_the_compiler_does() -> None:
    code = """
import tinyseq as ts
w = ts.Parameter([[0.5]])
h, _ = ts.scan(lambda h, x: (ts.tanh(h @ w + x), None), ts.zeros((1, 1)), ts.ones((3, 1, 1)))
h.sum().backward()
"""

    def said(value: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "TINYSEQ_DEBUG": value}
        )
        assert done.stdout == ""
        return done.stderr

    assert said("") == said("0") == ""
    most = said("1")
    for part in (
        "[tinyseq graph]",
        "[tinyseq split]",
        "FORWARD",
        "BACKWARD",
        "compiled the forward loop for numpy",
        "3 steps of",
    ):
        assert part in most, part
    assert "[tinyseq source]" not in most
    assert "def loop(" in said("source")
    assert "[tinyseq time]" not in said("graph,split")


def test_norms_that_are_small_in_float32_are_not_zero(backend: Any) -> None:
    a = ts.tensor(np.float32(1e-3), requires_grad=True)
    with ts.trace_gradients() as flow:
        h, _ = ts.scan(lambda h, x: (a * h + x, None), ts.zeros((1, 1)), ts.ones((11, 1, 1)))
        h.sum().backward()
    np.testing.assert_allclose(flow["scan"], 1e-3 ** np.arange(10, -1, -1.0), rtol=1e-5)


def test_norms_of_a_backward_pass_that_is_recorded(backend: Any) -> None:
    step, _, (carry, xs) = case()
    found = []
    for recorded in (False, True):
        with ts.trace_gradients() as flow:
            (h, c), _ = ts.scan(step, carry, xs)
            ((h**2).sum() + c.sum()).backward(create_graph=recorded)
        found.append(flow)
    for name in ("scan.0", "scan.1"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-10)
