"""How a scan's body is split by time: what runs once, for all steps at once before the loop, in the loop, and after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from test_compiled_scan import cells, make_step

import tinyseq as ts
from tinyseq.compiler.loop import Body, Plan, Program, differentiate, open_body, program
from tinyseq.graph import Equation, Var
from tinyseq.tree import flatten

B, I, H, O = 2, 3, 5, 7  # noqa: E741
COSTLY = {"exp", "log", "sigmoid", "tanh", "sqrt", "matmul", "sum", "max"}


class Like(NamedTuple):
    """What a scan knows of a value when it traces."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def planned(
    step: Callable[[Any, Any], Any], carry: Sequence[Any], x: Any = (B, I), gradients: bool = True, dtype: Any = np.float32
) -> Program:
    """The program of ``step((c0, c1, ...), x) -> ((c0, c1, ...), y)``."""

    def flat(*values: Any) -> Any:
        after, y = step(tuple(values[: len(carry)]), values[len(carry)])
        return list(after), flatten(y)[0]

    opened = open_body(flat, [Like(shape, np.dtype(np.float32)) for shape in carry], [Like(x, np.dtype(dtype))])
    count = len(carry) + 1 + len(opened.traced.closed)
    places = [*opened.arguments, *(inner for _, inner in opened.tracer.closed.values())]
    return program(differentiate(opened, len(carry), [gradients and p.dtype.kind == "f" for p in places[:count]]))


def parameter(*shape: int) -> ts.Parameter:
    return ts.Parameter(np.ones(shape, np.float32))


def names(equations: Iterable[Equation]) -> Counter[str]:
    return Counter(e.primitive.name for e in equations)


def loop(plan: Plan) -> Counter[str]:
    return names(plan.step.graph.equations)


def kept(plan: Plan, outputs: int = 0) -> int:
    """How many numbers a row the loop writes at every step, beside the states and what is asked for."""
    return sum(v.shape[-1] for v in plan.step.written if isinstance(v, Var)) - outputs


# --- cells ------------------------------------------------------------------------------------------------------------


def lstm() -> Program:
    cell = ts.nn.LSTMCell(I, H)

    def step(carry: Any, x: Any) -> Any:
        y, carry = cell(x, carry)
        return carry, y

    return planned(step, [(B, H), (B, H)])


def textbook_gru(gradients: bool = True) -> Program:
    w_z, w_r, w_n = (parameter(H + I, H) for _ in range(3))

    def step(carry: Any, x: Any) -> Any:
        (h,) = carry
        both = ts.concatenate([h, x], -1)
        z, r = ts.sigmoid(both @ w_z), ts.sigmoid(both @ w_r)
        n = ts.tanh(ts.concatenate([r * h, x], -1) @ w_n)
        h = (1 - z) * h + z * n
        return (h,), h

    return planned(step, [(B, H)], gradients=gradients)


def rnn(after: Callable[[Any], Any] = lambda h: h, before: Callable[[Any], Any] = lambda a: a, **options: Any) -> Program:
    w, u = parameter(I, H), parameter(H, H)

    def step(carry: Any, x: Any) -> Any:
        h = ts.tanh(before(x @ w + carry[0] @ u))
        return (h,), after(h)

    return planned(step, [(B, H)], **options)


class TestLSTM:
    def test_forward(self) -> None:
        plan = lstm().forward
        assert names(plan.before)["matmul"] == 1  # x @ W, for all steps at once
        assert loop(plan)["matmul"] == 1  # h @ U
        assert (loop(plan)["sigmoid"], loop(plan)["tanh"]) == (3, 2)
        assert not plan.after

    def test_backward(self) -> None:
        plan = lstm().backward
        assert loop(plan)["matmul"] == 1  # the gates' cotangents @ U.T
        assert names(plan.after)["matmul"] == 1  # those of the inputs
        # The gradients of both matrices are one product each, over all rows of all steps; the biases' are sums.
        assert Counter(total.kind for total in plan.totals)["product"] == 2
        assert {total.var.shape for total in plan.totals if total.kind == "product"} == {
            (4 * H, I),
            (4 * H, H),
        }  # as the weights lie

    def test_what_is_kept(self) -> None:
        """The gates; the state is there anyway, and nothing that took a product or a gate's function is done again."""
        both = lstm()
        assert H <= kept(both.forward) <= 5 * H
        again = names((*both.backward.fixed, *both.backward.before, *both.backward.step.graph.equations))
        assert not again["sigmoid"]
        assert again["tanh"] <= 1  # of the new state, which is at hand
        assert both.forward.step.histories


class TestTextbookGRU:
    """``concatenate(h, x) @ W``, as it stands in the papers."""

    def test_forward(self) -> None:
        plan = textbook_gru().forward
        assert names(plan.before)["matmul"] >= 1
        assert loop(plan)["matmul"] == 2  # both gates at once, then the candidate
        assert "concatenate" not in loop(plan)  # weights are put together once, h and x never
        assert not any(I in e.output.shape or H + I in e.output.shape for e in plan.step.graph.equations)
        assert set(names(plan.fixed)) <= {"getitem", "concatenate", "permute"}

    def test_backward(self) -> None:
        plan = textbook_gru().backward
        assert 2 <= loop(plan)["matmul"] <= 3
        products = [total.var.shape for total in plan.totals if total.kind == "product"]
        assert sum(rows * columns for rows, columns in products) == 3 * (H + I) * H  # no gradient of a weight in the loop
        assert not any(e.output.shape[:1] == (H + I,) for e in plan.step.graph.equations)

    def test_without_gradients_nothing_is_kept(self) -> None:
        both = textbook_gru(gradients=False)
        assert kept(both.forward) == 0
        assert loop(both.forward)["matmul"] == 2
        assert not both.backward.totals


class TestOutputLayer:
    def both(self) -> Program:
        v, b = parameter(H, O), parameter(O)
        return rnn(after=lambda h: ts.functions.log_softmax(h @ v + b))

    def test_it_waits_until_after_the_loop(self) -> None:
        plan = self.both().forward
        assert loop(plan)["matmul"] == 1
        assert loop(plan).keys() & COSTLY == {"matmul", "tanh"}
        assert names(plan.after)["matmul"] == 1
        assert names(plan.after).keys() >= {"exp", "log", "sum"}
        assert kept(plan) == 0  # h is a state, and is kept as such

    def test_its_gradient_comes_before_the_loop_backwards(self) -> None:
        plan = self.both().backward
        assert loop(plan)["matmul"] == 1
        assert loop(plan).keys() & COSTLY == {"matmul"}
        assert names(plan.before)["matmul"] == 1
        shapes = {total.var.shape for total in plan.totals if total.kind == "product"}
        assert shapes == {(I, H), (H, H), (H, O)}


class TestLayerNorm:
    def both(self) -> Program:
        gain = parameter(H)
        return rnn(before=lambda a: ts.functions.layer_norm(a, gain))

    def test_forward(self) -> None:
        plan = self.both().forward
        assert names(plan.before).keys() & COSTLY == {"matmul"}
        assert loop(plan)["matmul"] == 1
        assert loop(plan)["sum"] == 2  # mean and variance of every row at every step
        assert loop(plan)["sqrt"] == 1
        assert not plan.after

    def test_backward(self) -> None:
        both = self.both()
        plan = both.backward
        assert loop(plan)["matmul"] == 1
        assert loop(plan)["sum"] == 2
        assert "sqrt" not in loop(plan)  # kept
        assert "tanh" not in loop(plan)
        assert kept(both.forward) <= 4 * H
        assert {total.var.shape for total in plan.totals if total.kind == "product"} == {(I, H), (H, H)}


def test_what_depends_on_neither_time_nor_state_runs_once() -> None:
    """Work on closed-over tensors alone is not even traced; what the passes add of it stands in front of the loop."""
    w = parameter(H, H)
    both = planned(lambda carry, x: ((ts.tanh(carry[0] @ ts.sigmoid(w)) + x,), None), [(B, H)], (B, H))
    assert "sigmoid" not in names(both.body.joint.equations)
    assert names(both.backward.fixed) == {"permute": 1}
    for plan in (lstm().forward, textbook_gru().forward):
        fixed = {*plan.step.graph.closed, *(e.output for e in plan.fixed)}
        assert plan.fixed
        assert not any(set(e.vars) <= fixed for e in (*plan.before, *plan.step.graph.equations, *plan.after))


def test_what_does_not_depend_on_the_state_runs_for_all_steps_at_once() -> None:
    w, v = parameter(I, H), parameter(H, H)
    plan = planned(lambda carry, x: ((carry[0] * 0.5 + ts.tanh(x @ w) @ v,), None), [(B, H)]).forward
    assert names(plan.before)["matmul"] == 2
    assert names(plan.before)["tanh"] == 1
    assert loop(plan).keys() <= {"mul", "add"}


def test_the_gradient_of_a_table_is_added_up_after_the_loop() -> None:
    table, u = parameter(11, H), parameter(H, H)
    both = planned(
        lambda carry, ids: ((ts.tanh(ts.embedding(table, ids) + carry[0] @ u),), None), [(B, H)], (B,), dtype=np.int64
    )
    assert loop(both.forward).keys() & COSTLY == {"matmul", "tanh"}
    assert "scatter_add" not in loop(both.backward)
    assert [total.kind for total in both.backward.totals if total.var.shape == (11, H)] == ["scatter"]


@pytest.mark.parametrize("make", [lstm, textbook_gru, TestOutputLayer().both, TestLayerNorm().both])
def test_both_directions_print_with_names_that_they_share(make: Callable[[], Program]) -> None:
    both = make()
    text = str(both)
    assert text.index("FORWARD") < text.index("BACKWARD")
    for title in ("once:", "before:", "step (", "after:"):
        assert text.count(title) == 2
    assert text.count("sum over time:") == len(both.backward.totals)
    assigned = [line.split(":")[0].strip() for line in text.splitlines() if " = " in line]
    forward = assigned[: sum(" = " in line for line in text.split("BACKWARD")[0].splitlines())]
    assert len(set(forward)) == len(forward)


# --- any cell ---------------------------------------------------------------------------------------------------------


def well_formed(plan: Plan, known: set[Var]) -> set[Var]:
    """Every part uses only what was there before it; returns what there is in the end."""

    def run(equations: Iterable[Equation], known: set[Var]) -> set[Var]:
        for e in equations:
            assert set(e.vars) <= known, e
            known = known | {e.output}
        return known

    known = run(plan.before, run(plan.fixed, known))
    step = plan.step
    step.graph.check()
    assert {*step.slices, *step.graph.closed} <= known
    known = known | {*plan.written, *(v for v in plan.new_carry if isinstance(v, Var))} | set(step.carry)
    known = run(plan.after, known)
    for total in plan.totals:
        assert set(total.inputs or (total.var,)) <= known
    run(plan.finally_, known | {total.var for total in plan.totals})
    return known


def depends(plan: Plan) -> set[Var]:
    """The values of the loop that the incoming state reaches."""
    found = set(plan.step.carry)
    for e in plan.step.graph.equations:
        if found & set(e.vars):
            found.add(e.output)
    return found


@settings(max_examples=60, deadline=None)
@given(cell=cells)
def test_any_cell(cell: Any) -> None:
    """Each part has what it needs, and no product or reduction is in the loop unless the state reaches it."""
    shapes = {"w0": (H, H), "w1": (H, H), "joint": (2 * H, H), "scale": (H,), "shift": (1, H)}
    step = make_step(cell, {name: parameter(*shape) for name, shape in shapes.items()})

    def flat(carry: Any, x: Any) -> Any:
        after, y = step({"h": carry[0], "c": carry[1]}, x)
        return (after["h"], after["c"]), y

    both = planned(flat, [(B, H), (B, H)], (B, H))
    body: Body = both.body
    known = well_formed(both.forward, {*body.carry, *body.x, *body.joint.closed})
    well_formed(both.backward, known | set(body.cotangents))
    for plan in (both.forward, both.backward):
        reached = depends(plan)
        for e in plan.step.graph.equations:
            assert e.primitive.name not in ("matmul", "sum", "max") or e.output in reached, e
