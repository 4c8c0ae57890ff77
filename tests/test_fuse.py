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
from strict_backend import StrictBackend
from test_compiled_scan import cells, run
from test_plan import B, H, I, names, planned
from tinyseq_numpy import NumpyBackend
from tinyseq_numpy import loop as numpy_loop

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


@settings(max_examples=60, deadline=None)
@given(cell=cells, seed=st.integers(0, 99), reverse=st.booleans(), batch=st.integers(1, 3))
def test_numpys_loop_takes_in_large_arrays_and_the_numbers_are_the_same(
    cell: Any, seed: int, reverse: bool, batch: int
) -> None:
    """With every array as large: what joins the loop, what it sums there, and which buffer is written over when."""
    rng = np.random.default_rng(seed)
    t, size = 3, 5
    shapes = {
        "x": (t, batch, size), "h": (batch, size), "c": (batch, size), "w0": (size, size), "w1": (size, size),
        "joint": (2 * size, size), "scale": (size,), "shift": (size,),
        "g_h": (batch, size), "g_c": (batch, size), "g_y": (t, batch, size),
    }  # fmt: skip
    arrays = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    wanted = run(cell, arrays, {"reverse": reverse}, unroll=True)
    with pytest.MonkeyPatch.context() as m, only(NumpyBackend()):
        m.setattr(numpy_loop, "LARGE", 0)
        found = run(cell, arrays, {"reverse": reverse}, unroll=False)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-10, err_msg=name)


def test_numpys_loop_sums_large_rows_and_leaves_products_and_small_arrays_outside() -> None:
    """A layer-norm cell whose rows are large: gains and shifts are summed in the loop, weights after it."""
    w, u, gain = (ts.Parameter(np.ones(shape, np.float32)) for shape in ((I, H), (H, H), (H,)))

    def step(carry: Any, x: Any) -> Any:
        h = ts.tanh(ts.functions.layer_norm(x @ w, gain) + carry[0] @ u)
        return (h,), h

    made = planned(step, [(B, H)])
    joined = fuse(made.backward, [], numpy_loop.fuses, NumpyBackend.sums_products)
    assert [total.kind for total in joined.step.sums] == ["rows"]
    assert sorted(total.kind for total in joined.totals) == ["product", "product"]
    with pytest.raises(CannotFuse):
        numpy_loop.compile_loop(joined.step, NumpyBackend())


# --- sums over time ---------------------------------------------------------------------------------------------------

S = 4


def read(memory: Any, query: Any) -> Any:
    """(B, S, H) and (B, H) to (B, H): what an attention over a memory reads."""
    scores = (memory @ query[..., None])[..., 0]
    return (ts.softmax(scores)[..., None, :] @ memory)[..., 0, :]


def reads_a_memory(memory: Any, u: Any) -> Callable[[Any, Any], Any]:
    return lambda carry, x: ((ts.tanh(carry[0] @ u + read(memory, carry[0]) + x),), carry[0])


def kinds(step: Callable[[Any, Any], Any], shape: tuple[int, ...], fuses: Any = None) -> tuple[list[str], list[str]]:
    """The kinds of the sums over time of what has that shape: after the loop, and in it."""
    plan = planned(step, [(B, H)], (B, H)).backward
    joined = plan if fuses is None else fuse(plan, [], fuses)
    return (
        [total.kind for total in joined.totals if total.var.shape == shape],
        [total.kind for total in joined.step.sums if total.var.shape == shape],
    )


def test_a_memory_that_is_read_by_products_has_its_gradient_from_batched_products() -> None:
    """Also where the loop takes in all else: one product a row, over all steps."""
    memory, u = ts.Parameter(np.ones((B, S, H), np.float32)), ts.Parameter(np.ones((H, H), np.float32))
    step = reads_a_memory(memory, u)
    for fuses in (None, lambda e, stacked: True):
        assert kinds(step, (B, S, H), fuses) == (["batched", "batched"], [])


def test_a_matrix_that_all_rows_share_is_no_batched_product() -> None:
    w = ts.Parameter(np.ones((H, H), np.float32))
    step = lambda carry, x: ((ts.tanh(carry[0] @ w + x),), carry[0])
    assert kinds(step, (H, H)) == (["product"], [])
    assert kinds(step, (H, H), lambda e, stacked: True) == ([], ["product"])


def test_what_is_closed_over_row_by_row_is_summed_for_each_row() -> None:
    """``a`` (B, H) has a gradient a row, which is not summed over the rows; ``b`` (H,) is, and is of another kind."""
    a, b = ts.Parameter(np.ones((B, H), np.float32)), ts.Parameter(np.ones((H,), np.float32))
    step = lambda carry, x: ((ts.tanh(carry[0] * a * b + x),), carry[0])
    assert kinds(step, (B, H)) == (["stack"], [])
    assert kinds(step, (B, H), lambda e, stacked: True) == ([], ["each"])
    assert kinds(step, (B, H), lambda e, stacked: e.primitive.name == "add") in [(["stack"], []), ([], ["each"])]
    assert kinds(step, (H,), lambda e, stacked: True) == ([], ["rows"])


def test_what_does_not_begin_with_the_batch_is_not_summed_for_each_row() -> None:
    """(1, H) stands for all rows: its gradient is a sum over them."""
    a = ts.Parameter(np.ones((1, H), np.float32))
    step = lambda carry, x: ((ts.tanh(carry[0] * a + x),), carry[0])
    after, within = kinds(step, (1, H), lambda e, stacked: True)
    assert "each" not in (*after, *within)


@pytest.mark.parametrize("backend", ["numpy", "numba", StrictBackend()], ids=["numpy", "numba", "array-api-strict"])
@pytest.mark.parametrize("reverse", [False, True])
def test_sums_of_both_kinds_are_right(backend: Any, reverse: bool) -> None:
    """Of a memory read by products, and of what is multiplied row by row, against the loop on the tape."""
    rng = np.random.default_rng(0)
    shapes = {"memory": (B, S, H), "rows": (B, H), "scale": (H,), "u": (H, H), "h": (B, H), "x": (6, B, H)}
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}

    def gradients(unroll: bool) -> dict[str, Any]:
        t = {name: ts.tensor(a, requires_grad=True) for name, a in arrays.items()}

        def step(h: Any, x: Any) -> Any:
            h = ts.tanh(h @ t["u"] * t["scale"] + read(t["memory"], h) * t["rows"] + x)
            return h, h

        last, ys = ts.scan(step, t["h"], t["x"], reverse=reverse, unroll=unroll)
        ((ys * ys).sum() + last.sum()).backward()
        return {name: v.grad.numpy() for name, v in t.items()}

    with ts.use_backend(backend):
        wanted, found = gradients(unroll=True), gradients(unroll=False)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-10, atol=1e-11, err_msg=name)
