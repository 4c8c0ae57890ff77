"""What joins a loop from before and after it, and that it computes the same there."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compiled_scan import cells, run
from test_plan import B, H, I, names, planned
from tinyseq_numpy import NumpyBackend

import tinyseq as ts
from tinyseq.backend import Backend, CannotFuse
from tinyseq.compiler.fuse import fuse
from tinyseq.compiler.interpret import interpreted
from tinyseq.compiler.loop import Plan, Step
from tinyseq.graph import Equation, Var

scans = sys.modules["tinyseq.compiler.scan"]
NAMES = {"matmul", "sum", "tanh", "add", "mul", "sub", "sigmoid", "getitem", "concatenate"}


class Fusing(NumpyBackend):
    """NumPy, with loops that run operation by operation and take in what ``chosen`` says."""

    name = "numpy"

    def __init__(self, chosen: Callable[[Equation], bool]) -> None:
        super().__init__()
        self.fuses = lambda e, stacked: all(len(v.shape) <= 2 for v in (*e.vars, e.output)) and chosen(e)
        self.steps: list[Step] = []

    def compile_loop(self, step: Step) -> Any:
        self.steps.append(step)
        return interpreted(step, self)


def everything(e: Equation) -> bool:
    return e.primitive.name in NAMES


def lstm_plans(fuses: Any) -> tuple[Plan, Plan, Plan, Plan]:
    """The plans of an LSTM cell, forward and backward, and what becomes of them."""
    cell = ts.nn.LSTMCell(I, H)

    def step(carry: Any, x: Any) -> Any:
        y, carry = cell(x, carry)
        return carry, y

    made = planned(step, [(B, H), (B, H)])
    outputs = [v for v in made.body.y if isinstance(v, Var)]
    gradients = [v for v in made.body.gradients[2:3] if isinstance(v, Var)]
    return (
        made.forward, fuse(made.forward, outputs, fuses), made.backward, fuse(made.backward, gradients, fuses),
    )  # fmt: skip


def test_an_lstms_products_and_sums_join_its_loops() -> None:
    forward, joined, backward, together = lstm_plans(lambda e, stacked: True)
    assert names(forward.before) == {"matmul": 1}  # x @ W
    assert (joined.before, joined.after, joined.step.before, joined.step.after) == ((), (), 1, 0)
    assert names(joined.step.graph.equations)["matmul"] == 2
    assert names(backward.after) == {"matmul": 1, "sum": 1}  # the gradient of x, and of the bias at one step
    assert (together.before, together.after, together.totals) == ((), (), ())
    assert together.step.after == 1
    assert sorted(total.kind for total in together.step.sums) == ["product", "product", "rows"]
    # The gates' gradients are read within the loop alone: they are no longer written for all steps.
    assert sum(v.shape[-1] for v in backward.step.written if isinstance(v, Var)) == 4 * H
    assert [v.shape for v in together.step.written if isinstance(v, Var)] == [(B, I)]


def test_what_the_backend_does_not_take_stays_where_it_was() -> None:
    forward, same, _, partly = lstm_plans(lambda e, stacked: e.primitive.name != "matmul")
    assert same is forward
    assert names(partly.after) == {"matmul": 1}
    assert [total.kind for total in partly.step.sums].count("rows") == 1


def test_nothing_moves_past_what_stays_outside() -> None:
    """``tanh(sin(x @ W))`` before the loop and ``cos(h) @ V`` after it: what waits for sin or cos waits outside."""
    w, v = ts.Parameter(np.ones((I, H), np.float32)), ts.Parameter(np.ones((H, 3), np.float32))

    def step(carry: Any, x: Any) -> Any:
        (h,) = carry
        h = ts.tanh(h * 0.5 + ts.functions.cumsum(x @ w, -1) @ ts.ones((H, H)))
        return (h,), ts.functions.cumsum(h, -1) @ v

    made = planned(step, [(B, H)], gradients=False)
    joined = fuse(made.forward, [y for y in made.body.y if isinstance(y, Var)], lambda e, stacked: e.primitive.name == "matmul")
    assert names(joined.before) == {"matmul": 1, "cumsum": 1}
    assert joined.step.before == 1
    assert names(joined.after) == {"cumsum": 1, "matmul": 1}
    assert joined.step.after == 0


class Refusing(Fusing):
    def compile_loop(self, step: Step) -> Any:
        if step.before or step.after or step.sums:
            raise CannotFuse("anything")
        return super().compile_loop(step)


@contextmanager
def only(backend: Backend) -> Iterator[None]:
    """Everything on NumPy arrays runs on this backend, and no loop is known yet."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(scans, "_runners", OrderedDict())
        with ts.use_backend(backend):
            yield


@pytest.mark.parametrize("kind", [Refusing, Fusing])
def test_a_backend_that_cannot_after_all_gets_the_step_alone(kind: type[Fusing]) -> None:
    def gradients() -> list[Any]:
        ts.manual_seed(0)
        layer, x = ts.nn.LSTM(I, H), ts.random.randn((4, B, I))
        ys, _ = layer(x)
        (ys * ys).sum().backward()
        return [ys.numpy(), *(p.grad.numpy() for p in layer.parameters() if p.grad is not None)]

    wanted = gradients()
    backend = kind(everything)
    with only(backend):
        for a, b in zip(wanted, gradients(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert [bool(step.before or step.sums) for step in backend.steps] == [kind is Fusing] * 2


@settings(max_examples=60, deadline=None)
@given(cell=cells, chosen=st.sets(st.sampled_from(sorted(NAMES))), seed=st.integers(0, 99), reverse=st.booleans())
def test_whatever_joins_the_loop_the_numbers_are_the_same(cell: Any, chosen: set[str], seed: int, reverse: bool) -> None:
    rng = np.random.default_rng(seed)
    t, b, size = 3, 2, 3
    shapes = {
        "x": (t, b, size), "h": (b, size), "c": (b, size), "w0": (size, size), "w1": (size, size),
        "joint": (2 * size, size), "scale": (size,), "shift": (size,),
        "g_h": (b, size), "g_c": (b, size), "g_y": (t, b, size),
    }  # fmt: skip
    arrays = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    wanted = run(cell, arrays, {"reverse": reverse}, unroll=True)
    backend = Fusing(lambda e: e.primitive.name in chosen)
    with only(backend):
        found = run(cell, arrays, {"reverse": reverse}, unroll=False)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-9, err_msg=name)
    assert backend.steps
