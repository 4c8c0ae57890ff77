"""Programs drawn at random, each written twice: in tinyseq and in NumPy. Values agree, and so do first and second derivatives.

NumPy's own program is the judge: its differences know nothing of the engine. An operation with a kink says how far its
argument is from it, and a program that comes too close is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tensor import Tensor
from tinyseq.testing import directional_derivative

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
MARGIN = 0.01  # differences reach 2e-3 far
SHAPES: list[Shape] = [(), (1,), (3,), (4,), (2, 3), (3, 1), (1, 4), (3, 4), (2, 3, 4), (2, 1, 3)]


@dataclass(frozen=True)
class Op:
    """An operation in both languages, the shapes that it takes, and how far its arguments are from a kink."""

    ours: Callable[..., Tensor]
    numpy: Callable[..., Any]
    takes: Callable[..., bool] = lambda *shapes: True
    margin: Callable[..., float] = field(default=lambda *xs: math.inf)


def _gap(x: Array, axis: int | None = -1) -> float:
    """The least distance between two elements along an axis."""
    x = np.sort(x.ravel() if axis is None else x, axis=-1 if axis is None else axis)
    return float(np.min(np.diff(x, axis=-1 if axis is None else axis), initial=math.inf))


def _least(x: Any) -> float:
    return float(np.min(np.abs(x), initial=math.inf))


def _axes(least: int) -> Callable[..., bool]:
    return lambda s: len(s) >= least


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _broadcasts(a: Shape, b: Shape) -> bool:
    return all(x == y or 1 in (x, y) for x, y in zip(a[::-1], b[::-1], strict=False))


def _multiplies(a: Shape, b: Shape) -> bool:
    return bool(a and b) and a[-1] == b[-2 if len(b) > 1 else -1] and _broadcasts(a[:-2], b[:-2])


_erf = np.vectorize(math.erf, otypes=[float])
_mask = lambda shape: np.arange(math.prod(shape)).reshape(shape) % 3 != 1

ONE: dict[str, Op] = {
    "neg": Op(lambda x: -x, np.negative),
    "exp": Op(lambda x: x.exp(), np.exp),
    "expm1": Op(lambda x: ts.expm1(x), np.expm1),
    "log": Op(lambda x: (x + 2.0).log(), lambda x: np.log(x + 2)),
    "log1p": Op(lambda x: ts.log1p(x * x), lambda x: np.log1p(x * x)),
    "sqrt": Op(lambda x: (x + 2.0).sqrt(), lambda x: np.sqrt(x + 2)),
    "tanh": Op(lambda x: x.tanh(), np.tanh),
    "sigmoid": Op(lambda x: x.sigmoid(), lambda x: 1 / (1 + np.exp(-x))),
    "erf": Op(lambda x: x.erf(), _erf),
    "sin": Op(lambda x: x.sin(), np.sin),
    "cos": Op(lambda x: x.cos(), np.cos),
    "relu": Op(lambda x: x.relu(), lambda x: np.maximum(x, 0), margin=_least),
    "abs": Op(abs, np.abs, margin=_least),
    "clip": Op(lambda x: x.clip(-0.5, 0.7), lambda x: np.clip(x, -0.5, 0.7),
               margin=lambda x: min(_least(x + 0.5), _least(x - 0.7))),
    "remainder": Op(lambda x: x % 0.75, lambda x: x % 0.75, margin=lambda x: min(_least(x % 0.75), _least(x % 0.75 - 0.75))),
    "floor": Op(lambda x: ts.floor(x * 2.0) + x, lambda x: np.floor(x * 2) + x,
                margin=lambda x: _least(2 * x - np.round(2 * x))),
    "cube": Op(lambda x: x**3, lambda x: x**3),
    "inverse power": Op(lambda x: (x + 2.0) ** -1.5, lambda x: (x + 2) ** -1.5),
    "power of two": Op(lambda x: 2.0**x, lambda x: 2**x),
    "sum": Op(lambda x: x.sum(), np.sum),
    "sum of rows": Op(lambda x: x.sum(-1, keepdims=True), lambda x: x.sum(-1, keepdims=True), _axes(1)),
    "mean of columns": Op(lambda x: x.mean(0), lambda x: x.mean(0), _axes(1)),
    "max": Op(lambda x: x.max(-1), lambda x: x.max(-1), _axes(1), _gap),
    "min": Op(lambda x: x.min(0, keepdims=True), lambda x: x.min(0, keepdims=True), _axes(1), lambda x: _gap(x, 0)),
    "max of all": Op(lambda x: x.max(), np.max, margin=lambda x: _gap(x, None)),
    "cumsum": Op(lambda x: x.cumsum(0), lambda x: x.cumsum(0), _axes(1)),
    "prod": Op(lambda x: ts.prod(x, -1), lambda x: x.prod(-1), _axes(1)),
    "var": Op(lambda x: ts.var(x, -1), lambda x: x.var(-1, ddof=1), lambda s: len(s) >= 1 and s[-1] > 1),
    "norm": Op(lambda x: ts.norm(x + 2.0, -1), lambda x: np.linalg.norm(x + 2, axis=-1), _axes(1)),
    "logsumexp": Op(lambda x: ts.logsumexp(x), lambda x: np.log(np.exp(x).sum(-1)), _axes(1)),
    "softmax": Op(lambda x: ts.softmax(x), _softmax, _axes(1)),
    "layer norm": Op(lambda x: ts.layer_norm(x, eps=0.1),
                     lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1), _axes(1)),
    "transpose": Op(lambda x: x.T, np.transpose),
    "last two": Op(lambda x: x.mT, lambda x: np.swapaxes(x, -1, -2), _axes(2)),
    "flatten": Op(lambda x: x.reshape(-1), lambda x: x.reshape(-1)),
    "new axis": Op(lambda x: x[..., None, :], lambda x: x[..., None, :], _axes(1)),
    "expand": Op(lambda x: x.expand(2, *x.shape), lambda x: np.broadcast_to(x, (2, *x.shape)), lambda s: len(s) < 3),
    "flip": Op(lambda x: x.flip(-1), lambda x: np.flip(x, -1), _axes(1)),
    "roll": Op(lambda x: ts.roll(x, 1, -1), lambda x: np.roll(x, 1, -1), _axes(1)),
    "pad": Op(lambda x: ts.pad(x, [(1, 1)], 0.5),
              lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 1)], constant_values=0.5), _axes(1)),
    "slice": Op(lambda x: x[..., ::-2], lambda x: x[..., ::-2], _axes(1)),
    "row": Op(lambda x: x[-1], lambda x: x[-1], _axes(1)),
    "gather": Op(lambda x: x[ts.tensor([[0, -1], [0, 0]])], lambda x: x[np.array([[0, -1], [0, 0]])],
                 lambda s: 1 <= len(s) < 3),
    "pairs": Op(lambda x: x[ts.tensor([0, -1, 0]), :, ts.tensor([0, -1, 0])], lambda x: x[[0, -1, 0], :, [0, -1, 0]], _axes(3)),
    "mask": Op(lambda x: x[ts.tensor(_mask(x.shape))], lambda x: x[_mask(x.shape)], _axes(1)),
    "where": Op(lambda x: ts.where(ts.tensor(_mask(x.shape)), x, x * 2.0), lambda x: np.where(_mask(x.shape), x, x * 2)),
    "sort": Op(lambda x: ts.sort(x)[0], np.sort, _axes(1), _gap),
    "topk": Op(lambda x: ts.topk(x, 1, axis=0)[0], lambda x: np.max(x, 0, keepdims=True), _axes(1), lambda x: _gap(x, 0)),
    "gram": Op(lambda x: x @ x.mT, lambda x: x @ np.swapaxes(x, -1, -2), _axes(2)),
    "trace": Op(lambda x: ts.einsum("...ij,...ij->...", x, x), lambda x: (x * x).sum((-1, -2)), _axes(2)),
    "split": Op(lambda x: ts.concatenate(ts.chunk(x, 2, -1)[::-1], -1),
                lambda x: np.concatenate(np.array_split(x, [-(-x.shape[-1] // 2)], -1)[::-1], -1), _axes(1)),
    "checkpoint": Op(lambda x: ts.checkpoint(lambda x: x.sin() * x, x), lambda x: np.sin(x) * x),
    "halves and doubles": Op(lambda x: x * 0.5 + x.detach() * 0.0 + x, lambda x: x * 1.5),
}  # fmt: skip
TWO: dict[str, Op] = {
    "add": Op(lambda x, y: x + y, np.add, _broadcasts),
    "sub": Op(lambda x, y: x - y, np.subtract, _broadcasts),
    "mul": Op(lambda x, y: x * y, np.multiply, _broadcasts),
    "div": Op(lambda x, y: x / (y + 2.0), lambda x, y: x / (y + 2), _broadcasts),
    "power": Op(lambda x, y: (x + 2.0) ** y, lambda x, y: (x + 2) ** y, _broadcasts),
    "maximum": Op(ts.maximum, np.maximum, _broadcasts, lambda x, y: math.inf if x is y else _least(x - y)),
    "minimum": Op(ts.minimum, np.minimum, _broadcasts, lambda x, y: math.inf if x is y else _least(x - y)),
    "logaddexp": Op(ts.logaddexp, np.logaddexp, _broadcasts),
    "larger": Op(lambda x, y: ts.where(x > y, x, y * 0.5), lambda x, y: np.where(x > y, x, y * 0.5), _broadcasts,
                lambda x, y: math.inf if x is y else _least(x - y)),
    "matmul": Op(lambda x, y: x @ y, np.matmul, _multiplies),
    "stack": Op(lambda x, y: ts.stack([x, y, x], -1), lambda x, y: np.stack([x, y, x], -1), lambda a, b: a == b and len(a) < 3),
    "concatenate": Op(lambda x, y: ts.concatenate([x.reshape(-1), y.reshape(-1)]),
                      lambda x, y: np.concatenate([x.ravel(), y.ravel()])),
    "outer": Op(lambda x, y: ts.outer(x.reshape(-1)[:3], y.reshape(-1)[:3]),
                lambda x, y: np.outer(x.ravel()[:3], y.ravel()[:3])),
}  # fmt: skip

OPS = {**ONE, **TWO}
Step = tuple[str, int, int]


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[Array], list[Step]]:
    """Inputs, and steps: an operation, and which of the values so far it takes. A value may be taken often."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3))
    inputs = [np.asarray(rng.uniform(-1.5, 1.5, shape)) for shape in shapes]
    count, steps = len(inputs), []
    for _ in range(draw(st.integers(1, 7))):
        name = draw(st.sampled_from([*OPS]))
        steps.append((name, draw(st.integers(0, count - 1)), draw(st.integers(0, count - 1))))
        count += 1
    return inputs, steps


def run(steps: list[Step], inputs: list[Any]) -> tuple[Any, float]:
    """The program on Tensors or on NumPy arrays: a weighted sum of all its values, and the least distance from a kink.

    After each step values are squashed into (-1.5, 1.5). A step that does not fit the shapes squashes once more.
    """
    ours = isinstance(inputs[0], Tensor)
    values, margin = list(inputs), math.inf
    for name, i, j in steps:
        op = OPS[name]
        arguments = [values[i], values[j]] if name in TWO else [values[i]]
        if op.takes(*(x.shape for x in arguments)):
            if not ours:
                margin = min(margin, op.margin(*arguments))
            out = op.ours(*arguments) if ours else np.asarray(op.numpy(*arguments))
        else:
            out = values[i]
        values.append(out.tanh() * 1.5 if ours else np.tanh(out) * 1.5)
    # Every value counts, so that no branch is dead.
    if ours:
        return sum((v.sin().sum() * (0.3 + 0.1 * k) for k, v in enumerate(values)), ts.tensor(0.0, dtype=ts.float64)), margin
    return float(sum(np.sin(v).sum() * (0.3 + 0.1 * k) for k, v in enumerate(values))), margin


def leaves(arrays: list[Array]) -> list[Tensor]:
    return [ts.tensor(a, requires_grad=True) for a in arrays]


def gradients(steps: list[Step], arrays: list[Array]) -> list[Array]:
    xs = leaves(arrays)
    run(steps, xs)[0].backward()
    return [x.grad.numpy() for x in xs]  # type: ignore[union-attr]


def judge(program: tuple[list[Array], list[Step]]) -> None:
    """Value, gradient and second derivative in random directions."""
    inputs, steps = program
    value, _ = run(steps, inputs)
    rng = np.random.default_rng(len(steps))
    # Directions of length 1 at most, so that the differences stay within the margin.
    u, w = ([np.asarray(rng.uniform(-1, 1, x.shape)) / math.sqrt(x.size) for x in inputs] for _ in range(2))

    xs = leaves(inputs)
    loss, _ = run(steps, xs)
    np.testing.assert_allclose(loss.item(), value, rtol=1e-11, atol=1e-11)
    loss.backward(create_graph=True)
    recorded = [x.grad for x in xs]
    raw = gradients(steps, inputs)
    for g, expected in zip(recorded, raw, strict=True):
        assert g is not None
        np.testing.assert_allclose(g.numpy(), expected, rtol=1e-10, atol=1e-11)

    def moved(t: float) -> list[Array]:
        return [np.asarray(x + t * d) for x, d in zip(inputs, u, strict=True)]

    ours = sum(float((g * d).sum()) for g, d in zip(raw, u, strict=True))
    scale = 1 + sum(float(np.abs(g).sum()) for g in raw)
    step = 1e-3
    differences = directional_derivative(lambda t: run(steps, moved(t))[0], step)
    np.testing.assert_allclose(ours, differences, rtol=0, atol=1e-8 * scale)

    for x in xs:
        x.grad = None
    zero = ts.tensor(0.0, dtype=ts.float64)
    sum(((g * ts.tensor(d)).sum() for g, d in zip(recorded, w, strict=True)), zero).backward()
    products = [0 * d if x.grad is None else x.grad.numpy() * d for x, d in zip(xs, u, strict=True)]
    scale = 1 + sum(float(np.abs(p).sum()) for p in products)

    def slope(t: float) -> float:
        return sum(float((g * d).sum()) for g, d in zip(gradients(steps, moved(t)), w, strict=True))

    second = sum(float(p.sum()) for p in products)
    np.testing.assert_allclose(second, directional_derivative(slope, step), rtol=0, atol=1e-7 * scale)


@settings(max_examples=150)
@given(programs())
def test_random_programs(program: tuple[list[Array], list[Step]]) -> None:
    inputs, steps = program
    assume(run(steps, inputs)[1] > MARGIN)
    judge(program)


@pytest.mark.parametrize("name", OPS)
def test_each_operation_alone(name: str) -> None:
    """So that none is left to chance: on every shape, or pair of shapes, that it takes."""
    rng, judged = np.random.default_rng(7), 0
    for first in SHAPES:
        for second in SHAPES if name in TWO else [first]:
            inputs = [np.asarray(rng.uniform(-1.5, 1.5, shape)) for shape in (first, second)][: 2 if name in TWO else 1]
            step = (name, 0, len(inputs) - 1)
            if OPS[name].takes(*(x.shape for x in inputs)) and run([step], inputs)[1] > MARGIN:
                judge((inputs, [step]))
                judged += 1
    assert judged >= 1


def test_the_judge_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is wrong by a thousandth, and one that is right but only once, are both caught."""
    program = ([np.array([0.3, -1.2, 0.8])], [("sin", 0, 0), ("mul", 1, 0)])
    judge(program)
    for rule in (lambda F, g, x: g * F.cos(x) * 1.001, lambda F, g, x: g * F.cos(x.detach() if isinstance(x, Tensor) else x)):
        wrong = Primitive("sin", TABLE["sin"].shape, (rule,))
        with monkeypatch.context() as patch:
            for field_name in ("pulls", "plans", "_rules"):
                patch.setattr(TABLE["sin"], field_name, getattr(wrong, field_name))
            with pytest.raises(AssertionError):
                judge(program)
    judge(program)
