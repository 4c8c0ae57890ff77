"""What scan refuses: each in one sentence that names what was wrong and says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyseq as ts

T, B, H = 4, 2, 3
Step = Callable[[Any, Any], Any]


def xs() -> ts.Tensor:
    return ts.tensor(np.arange(T * B * H, dtype=np.float32).reshape(T, B, H))


def zeros(*shape: int, dtype: Any = np.float32) -> ts.Tensor:
    return ts.zeros(shape or (B, H), dtype)


def refused(error: type[Exception], said: str, call: Callable[[], Any]) -> None:
    """The call raises the error with one sentence in which ``said`` is found."""
    with pytest.raises(error) as caught:
        call()
    sentence = str(caught.value)
    assert type(caught.value) is error
    assert re.search(said, sentence), sentence
    assert "\n" not in sentence
    assert not re.search(r"\. [A-Z]", sentence), sentence  # one sentence


# --- a carry that changes ---------------------------------------------------------------------------------------------

WIDER = np.float64


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize(
    ("carry", "change", "error", "said"),
    [
        (
            lambda: zeros(),
            lambda c: c[:, :2],
            ts.ShapeError,
            r"carry to keep .* turned float32 \(2, 3\) into float32 \(2, 2\); cast or reshape",
        ),
        (lambda: zeros(), lambda c: c.sum(), ts.ShapeError, r"carry to keep .* float32 \(2, 3\) into float32 \(\)"),
        (lambda: zeros(1, H), lambda c: c + zeros(), ts.ShapeError, r"float32 \(1, 3\) into float32 \(2, 3\)"),
        (
            lambda: zeros(),
            lambda c: c.astype(WIDER),
            ts.DTypeError,
            r"carry to keep .* turned float32 \(2, 3\) into float64 \(2, 3\); cast",
        ),
        (lambda: 0, lambda c: c + 0.5, ts.DTypeError, r"int64 \(\) into float32 \(\)"),
        (lambda: zeros(), lambda c: c > 0, ts.DTypeError, r"float32 \(2, 3\) into bool \(2, 3\)"),
        (
            lambda: {"h": zeros(), "c": zeros()},
            lambda c: {"h": c["h"], "c": c["c"].astype(WIDER)},
            ts.DTypeError,
            r"carry\.c to keep .* float32 \(2, 3\) into float64 \(2, 3\)",
        ),
        (
            lambda: (zeros(), [zeros(), {"count": ts.zeros(B, np.int64)}]),
            lambda c: (c[0], [c[1][0], {"count": c[1][1]["count"][:, None]}]),
            ts.ShapeError,
            r"carry\.1\.1\.count to keep .* int64 \(2,\) into int64 \(2, 1\)",
        ),
        (lambda: (zeros(), zeros()), lambda c: c[:1], ts.ShapeError, "carry to keep its structure, but step 0 changed it"),
        (lambda: {"h": zeros()}, lambda c: {"s": c["h"]}, ts.ShapeError, "carry to keep its structure"),
        (lambda: (zeros(), zeros()), lambda c: list(c), ts.ShapeError, "carry to keep its structure"),
        (lambda: zeros(), lambda c: None, ts.ShapeError, "carry to keep its structure"),
    ],
)
def test_a_carry_that_changes(carry: Any, change: Any, error: Any, said: str, unroll: bool) -> None:
    refused(error, said, lambda: ts.scan(lambda c, x: (change(c), x), carry(), xs(), unroll=unroll))


def test_a_carry_that_changes_later() -> None:
    steps = iter(range(T))
    step = lambda c, x: (c if next(steps) < 2 else c.astype(WIDER), x)
    refused(ts.DTypeError, "step 2 turned float32", lambda: ts.scan(step, zeros(), xs(), unroll=True))


@pytest.mark.parametrize("result", [lambda c, x: c, lambda c, x: [c, x], lambda c, x: (c, x, x), lambda c, x: None])
def test_a_step_that_returns_no_pair(result: Step) -> None:
    refused(ts.ShapeError, r"a step that returns the pair \(carry, y\), got", lambda: ts.scan(result, zeros(), xs()))


# --- how many steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize(
    ("inputs", "options", "error", "said"),
    [
        (lambda: (xs(), xs()[:3]), {}, ts.ShapeError, r"one length, but xs\.0 has 4 steps and xs\.1 has 3"),
        (lambda: {"a": [xs()], "b": {"c": xs()[:1]}}, {}, ts.ShapeError, r"xs\.a\.0 has 4 steps and xs\.b\.c has 1"),
        (lambda: xs(), {"length": 5}, ts.ShapeError, "length has 5 steps and xs has 4"),
        (lambda: None, {}, ts.ShapeError, "how many steps to run; give xs or length"),
        (lambda: None, {"length": 0}, ts.ShapeError, "give at least one step"),
        (lambda: xs()[:0], {}, ts.ShapeError, "give at least one step"),
        (lambda: 1.5, {}, ts.ShapeError, "xs is a single number; close over it instead"),
        (lambda: xs(), {"lengths": [T + 1, 1]}, ts.ShapeError, "from 0 to the 4 steps there are, got 5 in row 0"),
        (lambda: xs(), {"lengths": [1, -1]}, ts.ShapeError, "from 0 to the 4 steps there are, got -1 in row 1"),
        (
            lambda: xs(),
            {"lengths": [1, 1, 1]},
            ts.ShapeError,
            r"for 3 rows needs the batch as axis 0 of carry, got shape \(2, 3\)",
        ),
        (lambda: xs(), {"lengths": 3}, ts.ShapeError, r"one length a row, of shape \(B,\), got shape \(\)"),
        (lambda: xs(), {"lengths": [1.0, 2.0]}, ts.DTypeError, "integers as lengths, got dtype float64; cast"),
        (lambda: xs(), {"resets": np.zeros((T, B), np.int64)}, ts.DTypeError, "booleans as resets, got dtype int64; write"),
        (lambda: xs(), {"resets": np.zeros((T + 1, B), bool)}, ts.ShapeError, r"with T = 4 steps, got shape \(5, 2\)"),
    ],
)
def test_the_number_of_steps(inputs: Any, options: Any, error: Any, said: str, unroll: bool) -> None:
    refused(error, said, lambda: ts.scan(lambda c, x: (c, c), zeros(), inputs(), unroll=unroll, **options))


# --- Python that looks at a value -------------------------------------------------------------------------------------


def branch(c: Any, x: Any) -> Any:
    return (c if (x > 0).any() else x), x


def loop(c: Any, x: Any) -> Any:
    while abs(c).max() > 1:
        c = c / 2
    return c, x


def asserted(c: Any, x: Any) -> Any:
    assert (c == c).all()
    return c, x


def counted(c: Any, x: Any) -> Any:
    for _ in range(c.sum().astype(np.int64)):
        c = c + 1
    return c, x


def printed(c: Any, x: Any) -> Any:
    str(c)
    return c, x


NO_NUMBERS = r"traced tensor of shape \(.*\) has no numbers yet.*; use ts\.where for a choice, or scan\(\.\.\., unroll=True\)"


@pytest.mark.parametrize(
    "step",
    [
        branch,
        loop,
        asserted,
        counted,
        printed,
        lambda c, x: (c * float(c.sum()), x),
        lambda c, x: (c * int(c.sum()), x),
        lambda c, x: (c * c.sum().item(), x),
        lambda c, x: (c * c.tolist()[0][0], x),
        lambda c, x: (c + np.asarray(c), x),
        lambda c, x: (c + c.numpy(), x),
        lambda c, x: (max(c.sum(), x.sum()) + c, x),
        lambda c, x: (c if 1.0 in c[0] else x, x),
        lambda c, x: (c if c.sum() and x.sum() else x, x),
        lambda c, x: (c * [1, 2, 3][c.sum().astype(np.int64)], x),
    ],
)
def test_python_that_looks_at_a_value(step: Step) -> None:
    refused(ts.GraphError, NO_NUMBERS, lambda: ts.scan(step, zeros(), xs()))
    ts.scan(step, zeros(), xs(), unroll=True)  # the remedy


def test_python_may_look_at_shapes_and_at_what_stands_outside() -> None:
    limit = ts.tensor(2.0)

    def step(c: Any, x: Any) -> Any:
        c = c + x if len(c) == B and c.shape[-1] == H and c.ndim == 2 and limit.item() > 1 else x
        return c, x

    end, _ = ts.scan(step, zeros(), xs())
    np.testing.assert_array_equal(end.numpy(), xs().numpy().sum(0))


def test_a_shape_that_depends_on_values() -> None:
    said = r"depends on the values of a traced tensor.*; use ts\.where, or scan\(\.\.\., unroll=True\)"
    refused(ts.GraphError, said, lambda: ts.scan(lambda c, x: (c, x[x > 0].sum()), zeros(), xs()))


# --- side effects -----------------------------------------------------------------------------------------------------

LEFT = r"has left the scan .* that it was made in .*; return it from there, .* and use what scan returns"
OUTSIDE = r"an assignment to a tensor outside it .*; make that tensor a part of the carry"


def escaped() -> ts.Tensor:
    """A traced tensor that a step put into a list outside."""
    outside: list[ts.Tensor] = []

    def step(c: Any, x: Any) -> Any:
        c = c + x
        outside.append(c)
        return c, c

    ts.scan(step, zeros(), xs())
    assert len(outside) == 1
    return outside[0]


USES: list[Any] = [
    pytest.param(lambda t: t.numpy(), id="numpy"),
    pytest.param(lambda t: (t * 2).tolist(), id="operation"),
    pytest.param(lambda t: (t + ts.ones((B, H))).tolist(), id="beside-numbers"),
    pytest.param(lambda t: ts.stack([t]).tolist(), id="stack"),
    pytest.param(lambda t: ts.scan(lambda c, x: (c + x, c), t, xs())[0].tolist(), id="carry"),
]


@pytest.mark.parametrize("use", USES)
def test_a_traced_tensor_that_outlives_its_scan_is_refused(use: Callable[[ts.Tensor], Any]) -> None:
    t = escaped()
    refused(ts.GraphError, LEFT, lambda: use(t))


def test_a_traced_tensor_that_outlives_its_scan_in_another_step() -> None:
    t = escaped()
    refused(ts.GraphError, LEFT, lambda: ts.scan(lambda c, x: (c + t, x), zeros(), xs()))


@pytest.mark.parametrize(
    "call",
    [
        lambda: escaped().sum().backward(),
        lambda: ts.scan(lambda c, x: (c.sum().backward() or c, x), zeros(), xs()),
    ],
    ids=["outside", "inside"],
)
def test_backward_of_a_traced_tensor(call: Callable[[], Any]) -> None:
    refused(ts.GraphError, r"backward\(\) on a traced tensor.*; call it on what scan returns, or use ts\.grad", call)


def test_assignment_to_a_part_of_the_carry() -> None:
    def step(c: Any, x: Any) -> Any:
        c[0] = 1.0
        return c, x

    refused(ts.GraphError, r"in-place assignment .*; write x = ts\.where", lambda: ts.scan(step, zeros(), xs()))


@pytest.mark.parametrize("value", [1.0, "outside"])
def test_assignment_to_a_tensor_outside(value: Any) -> None:
    count = zeros(2)

    def step(c: Any, x: Any) -> Any:
        count[0] = count[0] + 1 if value == "outside" else value
        return c + x, x

    refused(ts.GraphError, OUTSIDE, lambda: ts.scan(step, zeros(), xs()))


def test_assignment_of_a_traced_value_to_a_tensor_outside() -> None:
    state = zeros(2)

    def step(c: Any, x: Any) -> Any:
        state[0] = c.sum()
        return c + x, x

    refused(ts.GraphError, OUTSIDE, lambda: ts.scan(step, zeros(), xs()))


def test_a_name_outside_that_is_bound_to_a_traced_tensor() -> None:
    total = zeros()

    def step(c: Any, x: Any) -> Any:
        nonlocal total
        total = total + c
        return c + x, x

    ts.scan(step, zeros(), xs())
    refused(ts.GraphError, LEFT, total.numpy)


def test_a_scan_inside_a_step_may_read_what_is_traced_outside_it() -> None:
    """No side effect: the inner step only reads."""

    def outer(h: Any, x: Any) -> Any:
        inner, _ = ts.scan(lambda a, z: (ts.tanh(a + z + h), None), zeros(), ts.ones((2, B, H)))
        return inner + x * 0.01, h

    compiled, _ = ts.scan(outer, zeros(), xs())
    unrolled, _ = ts.scan(outer, zeros(), xs(), unroll=True)
    np.testing.assert_allclose(compiled.numpy(), unrolled.numpy(), rtol=1e-5)


# --- afterwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [branch, lambda c, x: (c[:1], x), lambda c, x: c])
def test_after_a_refusal_all_is_as_before(bad: Step) -> None:
    """The mode is put back, nothing is left on the tape, and the same scan with a good step works."""
    start = zeros().requires_grad_()
    with pytest.raises(ts.TinyseqError):
        ts.scan(bad, start, xs())
    with ts.no_grad():
        assert ts.scan(lambda c, x: (c + x, x), start, xs())[0].node is None
    end, _ = ts.scan(lambda c, x: (c * 2 + x, x), start, xs())
    end.sum().backward()
    np.testing.assert_array_equal(start.grad.numpy(), np.full((B, H), 2.0**T))
    assert str(end.sum() * 0 + 1).startswith("tensor(1")  # values can be looked at again
