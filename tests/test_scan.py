"""scan: the loop over time, against its definition in NumPy, and the laws that it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.tape import ancestors
from tinyseq.tree import flatten, tree_map

F64 = np.float64
T, B, H = 5, 4, 3
LENGTHS = [5, 2, 0, 3]


def tensors(rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[ts.Tensor]:
    return [ts.tensor(rng.standard_normal(shape)) for shape in shapes]


@pytest.fixture
def problem(rng: np.random.Generator) -> tuple[ts.Tensor, ts.Tensor, ts.Tensor, ts.Tensor]:
    """xs (T, B, H), a carry (B, H), two matrices that do not commute."""
    xs, carry, w, v = tensors(rng, (T, B, H), (B, H), (H, H), (H, H))
    return xs, carry, w * 0.5, v * 0.5  # gentle enough for differences to tell


def step_with(w: ts.Tensor, v: ts.Tensor) -> Callable[..., Any]:
    def step(h: ts.Tensor, x: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h = ts.tanh(h @ w + x @ v)
        return h, h * x + h

    return step


def numpy_scan(
    xs: np.ndarray,
    carry: np.ndarray,
    w: np.ndarray,
    v: np.ndarray,
    *,
    reverse: bool = False,
    lengths: Any = None,
    resets: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """One row and one step at a time, and each row only as long as it is: no masks at all."""
    steps, batch, _ = xs.shape
    ys, end = np.zeros_like(xs), carry.copy()
    for b in range(batch):
        count = steps if lengths is None else lengths[b]
        h = carry[b]
        for t in reversed(range(count)) if reverse else range(count):
            if resets is not None and resets[t, b]:
                h = carry[b]
            h = np.tanh(h @ w + xs[t, b] @ v)
            ys[t, b] = h * xs[t, b] + h
        end[b] = h
    return end, ys


RESETS = np.random.default_rng(3).random((T, B)) < 0.4
VARIANTS = [
    pytest.param({"reverse": reverse, "lengths": lengths, "resets": resets}, id=f"{name}{'-reverse' * reverse}")
    for reverse in (False, True)
    for name, lengths, resets in [
        ("plain", None, None),
        ("lengths", LENGTHS, None),
        ("resets", None, RESETS),
        ("lengths-resets", LENGTHS, RESETS),
    ]
]


@pytest.mark.parametrize("options", VARIANTS)
class TestAgainstTheDefinition:
    def test_values(self, problem: tuple[ts.Tensor, ...], options: dict[str, Any]) -> None:
        xs, carry, w, v = problem
        end, ys = ts.scan(step_with(w, v), carry, xs, **options)
        expected_end, expected_ys = numpy_scan(*(t.numpy() for t in problem), **options)
        np.testing.assert_allclose(end.numpy(), expected_end, rtol=1e-12)
        np.testing.assert_allclose(ys.numpy(), expected_ys, rtol=1e-12)

    def test_gradients(self, problem: tuple[ts.Tensor, ...], options: dict[str, Any]) -> None:
        """With respect to the inputs, the carry, and what the step closes over; and theirs in turn."""

        def f(xs: ts.Tensor, carry: ts.Tensor, w: ts.Tensor, v: ts.Tensor) -> Any:
            return ts.scan(step_with(w, v), carry, xs, **options)

        ts.check_grads(f, problem, order=2, step=2e-4)

    def test_a_batch_is_its_rows(self, problem: tuple[ts.Tensor, ...], options: dict[str, Any]) -> None:
        xs, carry, w, v = problem
        end, ys = ts.scan(step_with(w, v), carry, xs, **options)
        for b in range(B):
            mine: dict[str, Any] = dict(options)
            mine["lengths"] = mine["lengths"] and mine["lengths"][b : b + 1]
            mine["resets"] = None if mine["resets"] is None else mine["resets"][:, b : b + 1]
            row_end, row_ys = ts.scan(step_with(w, v), carry[b : b + 1], xs[:, b : b + 1], **mine)
            np.testing.assert_allclose(row_end.numpy()[0], end.numpy()[b], rtol=1e-12)
            np.testing.assert_allclose(row_ys.numpy()[:, 0], ys.numpy()[:, b], rtol=1e-12)


@pytest.mark.parametrize("options", [variant for variant in VARIANTS if variant.values[0]["lengths"]])
def test_padding_has_no_effect(problem: tuple[ts.Tensor, ...], options: dict[str, Any]) -> None:
    """Not even NaN and infinity in it: values and gradients are finite, and the same."""
    xs, carry, w, v = problem
    padding = np.arange(T)[:, None] >= np.array(LENGTHS)

    def run(fill: float) -> list[np.ndarray]:
        filled = ts.where(ts.tensor(padding[:, :, None]), fill, xs).detach().requires_grad_()
        leaves = [filled, *(ts.tensor(each, requires_grad=True) for each in (carry, w, v))]
        end, ys = ts.scan(step_with(*leaves[2:]), leaves[1], filled, **options)
        ((ys * ys).sum() + (end * end).sum()).backward()
        return [end.detach().numpy(), ys.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]

    with np.errstate(all="raise"):
        clean = run(0.0)
        for fill in (1e30, np.nan, np.inf):
            for a, b in zip(clean, run(fill), strict=True):
                np.testing.assert_array_equal(a, b)
    assert not clean[1][padding].any()
    assert not clean[2][padding].any()


# --- laws -------------------------------------------------------------------------------------------------------------


def test_reversing_in_and_out_is_reverse(problem: tuple[ts.Tensor, ...]) -> None:
    xs, carry, w, v = problem
    end, ys = ts.scan(step_with(w, v), carry, xs, reverse=True)
    other_end, other_ys = ts.scan(step_with(w, v), carry, xs.flip(0))
    np.testing.assert_array_equal(end.numpy(), other_end.numpy())
    np.testing.assert_array_equal(ys.numpy(), other_ys.flip(0).numpy())
    assert not np.allclose(end.numpy(), ts.scan(step_with(w, v), carry, xs)[0].numpy())


@pytest.mark.parametrize("first", [1, 3, 4])
def test_a_split_run_is_the_whole_run(problem: tuple[ts.Tensor, ...], first: int) -> None:
    xs, carry, w, v = problem
    end, ys = ts.scan(step_with(w, v), carry, xs)
    middle, before = ts.scan(step_with(w, v), carry, xs[:first])
    other_end, after = ts.scan(step_with(w, v), middle, xs[first:])
    np.testing.assert_array_equal(end.numpy(), other_end.numpy())
    np.testing.assert_array_equal(ys.numpy(), ts.concatenate([before, after]).numpy())


def test_one_step(problem: tuple[ts.Tensor, ...]) -> None:
    xs, carry, w, v = problem
    end, ys = ts.scan(step_with(w, v), carry, xs[:1])
    h, y = step_with(w, v)(carry, xs[0])
    np.testing.assert_array_equal(end.numpy(), h.numpy())
    np.testing.assert_array_equal(ys.numpy(), y.numpy()[None])


def test_an_empty_row_keeps_its_carry_and_gives_nothing_else_a_gradient(rng: np.random.Generator) -> None:
    xs, carry, w, v = (t.requires_grad_() for t in tensors(rng, (T, 1, H), (1, H), (H, H), (H, H)))
    end, ys = ts.scan(step_with(w, v), carry, xs, lengths=[0])
    (end.sum() + ys.sum()).backward()
    np.testing.assert_array_equal(end.detach().numpy(), carry.detach().numpy())
    np.testing.assert_array_equal(carry.grad.numpy(), np.ones((1, H)))
    for t in (xs, w, v):
        assert not t.grad.numpy().any()


def test_a_reset_cuts_the_gradient(rng: np.random.Generator) -> None:
    xs, carry, w, v = tensors(rng, (T, 1, H), (1, H), (H, H), (H, H))
    xs.requires_grad = carry.requires_grad = True
    end, _ = ts.scan(step_with(w, v), carry, xs, resets=np.arange(T)[:, None] == 3)
    end.sum().backward()
    assert not xs.grad.numpy()[:3].any()
    assert xs.grad.numpy()[3:].all()
    alone, _ = ts.scan(step_with(w, v), carry.detach(), xs.detach()[3:])
    np.testing.assert_array_equal(end.detach().numpy(), alone.numpy())
    assert carry.grad.numpy().all()


# --- structures -------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    a: Any
    b: Any


def test_nested_structures(rng: np.random.Generator) -> None:
    """A dict in a tuple as carry, a named tuple as input, a list with None as output; several of each."""
    x, ids = ts.tensor(rng.standard_normal((T, B, H))), ts.tensor(rng.integers(0, 7, (T, B)))
    table = ts.tensor(rng.standard_normal((7, H)))
    carry = ({"h": ts.zeros((B, H), F64), "n": ts.zeros((B,), np.int64)}, ts.ones((B, H), F64))

    def step(carry: Any, x: Pair) -> Any:
        state, c = carry
        assert type(x) is Pair
        looked_up = ts.embedding(table, x.b)
        c = c * 0.5 + looked_up
        return ({"n": state["n"] + x.b, "h": state["h"] + c * x.a}, c), [looked_up, None, {"n": state["n"]}]

    (state, c), (looked_up, none, counts) = ts.scan(step, carry, Pair(x, ids))
    assert none is None
    np.testing.assert_array_equal(state["n"].numpy(), ids.numpy().sum(0))
    np.testing.assert_array_equal(counts["n"].numpy(), np.cumsum(ids.numpy(), 0) - ids.numpy())
    np.testing.assert_array_equal(looked_up.numpy(), table.numpy()[ids.numpy()])
    cs, h = np.ones((B, H)), np.zeros((B, H))
    for t in range(T):
        cs = cs * 0.5 + table.numpy()[ids.numpy()[t]]
        h = h + cs * x.numpy()[t]
    np.testing.assert_allclose(c.numpy(), cs, rtol=1e-12)
    np.testing.assert_allclose(state["h"].numpy(), h, rtol=1e-12)


def test_padding_of_ids_and_flags_is_replaced(rng: np.random.Generator) -> None:
    """A padding id outside the table is never looked up, and the dtypes stay."""
    table = ts.tensor(rng.standard_normal((3, H)))

    def step(carry: ts.Tensor, x: tuple[ts.Tensor, ts.Tensor]) -> Any:
        ids, flags = x
        assert ids.dtype == np.int64
        assert flags.dtype == np.bool_
        return carry + ts.embedding(table, ids), (ids, flags)

    ids, flags = np.array([[1, 2], [0, -100]]), np.array([[True, True], [True, True]])
    end, (ids_out, flags_out) = ts.scan(step, ts.zeros((2, H), F64), (ids, flags), lengths=[2, 1])
    np.testing.assert_array_equal(end.numpy(), [table.numpy()[1] + table.numpy()[0], table.numpy()[2]])
    assert ids_out.tolist() == [[1, 2], [0, 0]]
    assert flags_out.tolist() == [[True, True], [True, False]]


def test_without_inputs_length_says_how_long() -> None:
    end, ys = ts.scan(lambda c, x: (c * 2, c), 1.0, length=4)
    assert (end.item(), ys.tolist()) == (16.0, [1.0, 2.0, 4.0, 8.0])


def test_neither_carry_nor_output() -> None:
    assert ts.scan(lambda c, x: (None, x * 2), None, ts.arange(3))[1].tolist() == [0, 2, 4]
    carry, ys = ts.scan(lambda c, x: (c + x, None), 0, ts.arange(3))
    assert (carry.item(), ys) == (3, None)


def test_carries_and_outputs_that_the_loss_does_not_use(rng: np.random.Generator) -> None:
    x, w, unused = (t.requires_grad_() for t in tensors(rng, (T, H), (H, H), (H,)))
    (h, _), (_, sums) = ts.scan(
        lambda carry, x: ((ts.tanh(carry[0] @ w + x), carry[1] * x), (carry[1], carry[0])), (unused * 0, unused), x
    )
    (h.sum() + sums.sum()).backward()
    assert not unused.grad.numpy().any()
    assert x.grad.numpy().all()


def test_a_scan_inside_a_scan(rng: np.random.Generator) -> None:
    def f(xs: ts.Tensor, w: ts.Tensor) -> ts.Tensor:
        def outer(h: ts.Tensor, rows: ts.Tensor) -> Any:
            inner, _ = ts.scan(lambda a, x: (ts.tanh(a @ w + x), None), h, rows)
            return inner, inner

        return ts.scan(outer, ts.zeros(H, F64), xs)[1]

    xs, w = tensors(rng, (2, 3, H), (H, H))
    h, expected = np.zeros(H), []
    for rows in xs.numpy():
        for x in rows:
            h = np.tanh(h @ w.numpy() + x)
        expected.append(h)
    np.testing.assert_allclose(f(xs, w).numpy(), expected, rtol=1e-12)
    ts.check_grads(f, (xs, w), order=2)


@pytest.mark.parametrize("reverse", [False, True])
def test_steps_are_marked_on_the_record(problem: tuple[ts.Tensor, ...], reverse: bool) -> None:
    """What a picture puts in columns: each step's operations, the look-up of its input among them, and no others."""
    xs, carry, w, v = problem
    w.requires_grad = xs.requires_grad = True
    _, ys = ts.scan(step_with(w, v), carry, xs, reverse=reverse, unroll=True)
    scopes = [p.scope for p in ancestors([ys.node]) if getattr(p, "primitive", None)]
    steps = [(s.kind, s.name) for s in scopes if s is not None]
    order = list(dict.fromkeys(name for _, name in steps))
    assert order == (list(range(T))[::-1] if reverse else list(range(T)))
    assert all(kind == "step" for kind, _ in steps)
    assert len(steps) == 7 * T  # x[t], two products, their sum, tanh, h * x + h
    assert ts.scan(step_with(w, v), carry, xs, unroll=True)[0].node.scope.parent is None


def test_float32_stays_float32(rng: np.random.Generator) -> None:
    xs, carry, w, v = (t.astype(np.float32) for t in tensors(rng, (T, B, H), (B, H), (H, H), (H, H)))
    end, ys = ts.scan(step_with(w, v), carry, xs, lengths=LENGTHS, resets=RESETS)
    assert (end.dtype, ys.dtype) == (np.float32, np.float32)
    expected_end, expected_ys = numpy_scan(*(t.numpy().astype(F64) for t in (xs, carry, w, v)), lengths=LENGTHS, resets=RESETS)
    np.testing.assert_allclose(end.numpy(), expected_end, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ys.numpy(), expected_ys, rtol=1e-5, atol=1e-6)


def test_a_long_sequence() -> None:
    """Ten thousand steps, and gradients through all of them."""
    x = ts.full((10_000, 1), 1.0, F64, requires_grad=True)
    end, _ = ts.scan(lambda c, x: (c * 0.999 + x, None), ts.zeros(1, F64), x)
    end.sum().backward()
    np.testing.assert_allclose(end.item(), (1 - 0.999**10_000) / 0.001, rtol=1e-10)
    np.testing.assert_allclose(x.grad.numpy()[::-1, 0], 0.999 ** np.arange(10_000), rtol=1e-10)


# --- what is refused --------------------------------------------------------------------------------------------------

ZEROS = ts.zeros((B, H))
XS = ts.zeros((T, B, H))


def same(carry: Any, x: Any) -> Any:
    return carry, x


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ((same, ZEROS, {"a": XS, "b": XS[:3]}), {}, ts.ShapeError, "xs.a has 5 steps and xs.b has 3"),
        ((same, ZEROS, XS), {"length": 6}, ts.ShapeError, "length has 6 steps and xs has 5"),
        ((same, ZEROS, XS[:0]), {}, ts.ShapeError, "over 0 steps has no outputs"),
        ((same, ZEROS, None), {}, ts.ShapeError, "how many steps"),
        ((same, ZEROS, (XS, 1.0)), {}, ts.ShapeError, "xs.1 is a single number"),
        ((same, ZEROS, XS), {"lengths": [5, 6, 1, 1]}, ts.ShapeError, "from 0 to the 5 steps there are, got 6 in row 1"),
        ((same, ZEROS, XS), {"lengths": [5, 1, 1, -1]}, ts.ShapeError, "got -1 in row 3"),
        ((same, ZEROS, XS), {"lengths": [5, 1, 1]}, ts.ShapeError, r"for 3 rows .* axis 0 of carry, got shape \(4, 3\)"),
        ((same, ZEROS, XS), {"lengths": [[5, 1, 1, 1]]}, ts.ShapeError, r"one length a row.*\(1, 4\)"),
        ((same, ZEROS, XS), {"lengths": [5.0] * 4}, ts.DTypeError, "integers as lengths, got dtype float64"),
        ((same, (ZEROS, 1.0), XS), {"lengths": [5] * 4}, ts.ShapeError, r"axis 0 of carry.1, got shape \(\)"),
        ((same, ZEROS, (XS, XS[:, :2])), {"lengths": [5] * 4}, ts.ShapeError, r"axis 1 of xs.1, got shape \(5, 2, 3\)"),
        (
            (lambda c, x: (c, x.sum()), ZEROS, XS),
            {"lengths": [5] * 4},
            ts.ShapeError,
            r"axis 1 of ys, got shape \(5,\)",
        ),
        ((same, ZEROS, XS), {"resets": np.zeros((T, B))}, ts.DTypeError, "booleans as resets, got dtype float64"),
        ((same, ZEROS, XS), {"resets": np.zeros((B, T), bool)}, ts.ShapeError, r"\(T, B\) with T = 5 .* \(4, 5\)"),
        (
            (same, ZEROS, XS),
            {"resets": np.zeros((T, 3), bool), "lengths": [5] * 4},
            ts.ShapeError,
            "lengths for 4 rows and resets for 3",
        ),
        (
            (lambda c, x: ({"h": c["h"][:2]}, x), {"h": ZEROS}, XS),
            {},
            ts.ShapeError,
            r"carry.h to keep .* step 0 turned float32 \(4, 3\) into float32 \(2, 3\)",
        ),
        (
            (lambda c, x: ((c[0], c[1] + 0.5), x), (ZEROS, 1), XS),
            {},
            ts.DTypeError,
            r"carry.1 to keep .* int64 \(\) into float32 \(\)",
        ),
        ((lambda c, x: ([c], x), ZEROS, XS), {}, ts.ShapeError, "carry to keep its structure, but step 0 changed it"),
        ((lambda c, x: c, ZEROS, XS), {}, ts.ShapeError, r"returns the pair \(carry, y\), got Tensor"),
        (
            (lambda c, x: (c + 1, x if c.sum().item() == 0 else x[:1]), ZEROS, XS),
            {"unroll": True},
            ts.ShapeError,
            r"y to keep .* step 1 turned float32 \(4, 3\) into float32 \(1, 3\)",
        ),
        (
            (lambda c, x: (c + 1, x if c.sum().item() == 0 else None), ZEROS, XS),
            {"unroll": True},
            ts.ShapeError,
            "y to keep its structure, but step 1 changed it",
        ),
        ((lambda c, x: (c, x if c.sum() > 0 else c), ZEROS, XS), {}, ts.GraphError, r"shape \(\) has no numbers yet.*ts.where"),
        (
            (lambda c, x: (ts.functions.dropout(c, 0.5), x), ZEROS, XS),
            {},
            ts.GraphError,
            "random numbers inside a traced function .* for scan as part of xs",
        ),
    ],
)
def test_refused(arguments: Any, options: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        ts.scan(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_inputs_stay_as_they_were(problem: tuple[ts.Tensor, ...]) -> None:
    before = tree_map(lambda t: t.numpy().copy(), list(problem))
    xs, carry, w, v = problem
    ts.scan(step_with(w, v), carry, xs, lengths=LENGTHS, resets=RESETS)
    for a, b in zip(before, flatten(list(problem))[0], strict=True):
        np.testing.assert_array_equal(a, b.numpy())
