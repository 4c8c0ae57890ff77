"""Integers and booleans within the loop as machine code: ids that are looked up, chosen, counted and compared at every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.tree import flatten

pytest.importorskip("numba")
import tinyseq_numba
from tinyseq_numba.loop import compile as loops

STEPS, BATCH, VOCABULARY, SIZE, END = 11, 5, 19, 6, 3


@pytest.fixture(autouse=True)
def numba(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(loops, "CHUNK", 30)  # 6 steps at a time, of which the last chunk has fewer
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    with ts.use_backend("numba"), warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing here may leave the machine code
        yield


class Data:
    """What the cells below close over and are given, from one seed."""

    def __init__(self, dtype: Any) -> None:
        rng = np.random.default_rng(5)
        self.dtype = np.dtype(dtype)

        def parameter(*shape: int) -> ts.Parameter:
            return ts.Parameter((rng.standard_normal(shape) * 0.5).astype(dtype))

        self.table, self.w, self.out = parameter(VOCABULARY, SIZE), parameter(SIZE, SIZE), parameter(SIZE, VOCABULARY)
        self.scale, self.memory = parameter(VOCABULARY), parameter(BATCH, 4, SIZE)
        self.start, self.noise = parameter(BATCH, SIZE), parameter(STEPS, BATCH, SIZE)
        self.tokens = ts.tensor(rng.integers(0, VOCABULARY, (STEPS, BATCH)))
        self.given = ts.tensor(rng.random((STEPS, BATCH)) < 0.4)
        self.chances = ts.tensor(rng.random((STEPS, BATCH)).astype(dtype))
        self.gumbel = ts.tensor(rng.gumbel(size=(STEPS, BATCH, VOCABULARY)).astype(dtype))
        self.first = ts.tensor(rng.integers(0, VOCABULARY, BATCH))

    @property
    def leaves(self) -> list[ts.Parameter]:
        return [self.table, self.w, self.out, self.scale, self.memory, self.start, self.noise]


Cell = tuple[Callable[[Any, Any], Any], Any, Any]


def greedy(d: Data) -> Cell:
    """The likeliest token is fed back, or the one that is given."""

    def step(carry: Any, x: Any) -> Any:
        (h, last), (token, given) = carry, x
        h = ts.tanh(h @ d.w + d.table[ts.where(given, token, last)])
        logits = h @ d.out
        return (h, ts.argmax(logits, -1)), (logits, last)

    return step, (d.start, d.first), (d.tokens, d.given)


def drawn_by_gumbel(d: Data) -> Cell:
    def step(carry: Any, gumbel: Any) -> Any:
        h, last = carry
        h = ts.tanh(h @ d.w + d.table[last])
        logits = h @ d.out
        return (h, ts.argmax(logits + gumbel, -1)), logits

    return step, (d.start, d.first), d.gumbel


def drawn_by_chance(d: Data) -> Cell:
    """The class at which the running sum of probabilities passes a number."""

    def step(carry: Any, chance: Any) -> Any:
        h, last = carry
        h = ts.tanh(h @ d.w + d.table[last])
        logits = h @ d.out
        sums = ts.softmax(logits.detach()).cumsum(-1)
        drawn = (sums <= chance.unsqueeze(-1)).astype("int64").sum(-1).clip(0, VOCABULARY - 1)
        return (h, drawn), (logits, drawn)

    return step, (d.start, d.first), d.chances


def given_ids(d: Data) -> Cell:
    """The lookup cannot leave the loop: what is looked up is multiplied by the state first, and by its mask."""

    def step(h: Any, token: Any) -> Any:
        h = ts.tanh(h @ d.w * d.table[token] + h * d.scale[token][:, None] + d.table[(token + h.argmax(-1)) % VOCABULARY])
        return h, h

    return step, d.start, d.tokens


def ids_from_the_end(d: Data) -> Cell:
    def step(carry: Any, x: Any) -> Any:
        h, last = carry
        h = ts.tanh(h @ d.w + d.table[-1 - last] + x)
        return (h, (last + 5) % VOCABULARY), h

    return step, (d.start, d.first), d.noise


def counters(d: Data) -> Cell:
    """Carries of several integer dtypes, with arithmetic on them that floors as Python's does."""

    def step(carry: Any, x: Any) -> Any:
        h, count, small = carry
        h = ts.tanh(h @ d.w + x) * (1 + count % 3).astype(d.dtype)[:, None] * 0.5
        turned = ts.where(small > 4, -small, small + 2)
        y = (count // 2, turned // -3, turned % -3, abs(turned), -count, ts.maximum(count, turned.astype("int64")), count * 3)
        return (h, count + (h[:, 0] > 0).astype("int64"), turned), y

    return step, (d.start, ts.zeros(BATCH, "int64"), ts.zeros(BATCH, "int32")), d.noise


def masks_by_id(d: Data) -> Cell:
    def step(carry: Any, x: Any) -> Any:
        h, last = carry
        chosen = (h @ d.out).argmin(-1)
        h = ts.where((chosen == last)[:, None], h, ts.tanh(h @ d.w + x))
        h = h * ((chosen != END) & (chosen >= 1)).astype(d.dtype)[:, None] + h * 0.25
        return (h, chosen), (h, chosen == END, (chosen < last).astype("int32"))

    return step, (d.start, d.first), d.noise


def one_hot(d: Data) -> Cell:
    def step(carry: Any, x: Any) -> Any:
        h, last = carry
        hot = ts.one_hot(last, VOCABULARY, d.dtype)
        h = ts.tanh(h @ d.w + hot @ d.table + x)
        return (h, (h @ d.out).argmax(-1)), (h, ts.one_hot(last, VOCABULARY))

    return step, (d.start, d.first), d.noise


def loss_in_the_loop(d: Data) -> Cell:
    """The log-probability of each row's target, picked at every step; it is part of what the next step sees."""

    def step(carry: Any, token: Any) -> Any:
        h, total = carry
        h = ts.tanh(h @ d.w + total[:, None] * 0.1)
        logp = ts.log_softmax(h @ d.out)
        picked = ts.functions.take_along_axis(logp, token[:, None], -1)[:, 0]
        again = logp[np.arange(BATCH), (token + 1) % VOCABULARY]
        return (h, total - picked + 0.5 * again), picked

    return step, (d.start, ts.zeros(BATCH, d.dtype)), d.tokens


def cross_entropy(d: Data) -> Cell:
    def step(carry: Any, token: Any) -> Any:
        h, total = carry
        h = ts.tanh(h @ d.w + total[:, None] * 0.1)
        loss = ts.cross_entropy(h @ d.out, token, reduction="none")
        return (h, total + loss), loss

    return step, (d.start, ts.zeros(BATCH, d.dtype)), d.tokens


def finished(d: Data) -> Cell:
    """As a greedy decoder does: a row is done once it has given the end token, and then gives padding."""

    def step(carry: Any, _: Any) -> Any:
        h, last, done, length = carry
        h = ts.tanh(h @ d.w + d.table[last])
        token = ts.where(done, 0, (h @ d.out).argmax(-1))
        now = done | (token == END) | (token % 5 == 1)
        return (h, token, now, length + (~done).astype("int64")), (token, now, done ^ now)

    return step, (d.start, d.first, ts.zeros(BATCH, bool), ts.zeros(BATCH, "int64")), d.noise


def extrema(d: Data) -> Cell:
    def step(h: Any, x: Any) -> Any:
        logits = h @ d.out
        best, at = logits.max(-1, keepdims=True), logits.argmax(-1)
        ids = (logits * 10).astype("int32")
        h = ts.tanh(h @ d.w + best + x + ids.max(-1).astype(d.dtype)[:, None] * 0.01)
        return h, (at, logits.argmin(-1), ids.min(-1), ids.sum(-1), (ids > 3).any(-1), (ids > -9).all(-1), (ids > 0).sum(-1))

    return step, d.start, d.noise


def line_of_a_memory(d: Data) -> Cell:
    """A pointer into each row's memory: it moves on where a number is positive."""

    def step(carry: Any, x: Any) -> Any:
        h, at = carry
        h = ts.tanh(h @ d.w + d.memory[np.arange(BATCH), at] + x)
        return (h, ts.minimum(at + (h[:, 0] > 0).astype("int64"), 3)), (h, at)

    return step, (d.start, ts.zeros(BATCH, "int64")), d.noise


def several_ids(d: Data) -> Cell:
    """A window of the last tokens, whose rows are summed: integers with features."""

    def step(carry: Any, x: Any) -> Any:
        h, window = carry
        h = ts.tanh(h @ d.w + d.table[window].sum(1) + (d.scale[window] * 0.5).sum(-1, keepdims=True) + x)
        token = (h @ d.out).argmax(-1)
        return (h, ts.concatenate([window[:, 1:], token[:, None]], -1)), (h, window, token)

    return step, (d.start, ts.tensor(np.arange(3 * BATCH).reshape(BATCH, 3))), d.noise


CELLS = [
    greedy, drawn_by_gumbel, drawn_by_chance, given_ids, ids_from_the_end, counters, masks_by_id, one_hot, loss_in_the_loop,
    cross_entropy, finished, extrema, line_of_a_memory, several_ids,
]  # fmt: skip


def results(cell: Callable[[Data], Cell], dtype: Any, **options: Any) -> list[np.ndarray[Any, Any]]:
    """All values that come out, then the gradients of all leaves."""
    data = Data(dtype)
    step, carry, xs = cell(data)
    if options.get("unroll"):
        options.pop("checkpoint", None)
    last, ys = ts.scan(step, carry, xs, **options)
    values = flatten((last, ys))[0]
    rng = np.random.default_rng(7)
    loss = ts.tensor(0.0, dtype)
    for v in values:
        weights = ts.tensor(rng.standard_normal(v.shape).astype(dtype))
        if v.dtype.kind == "f":
            loss = loss + (v * weights).sum()
    if loss.node is not None:
        loss.backward()
    zeros = [np.zeros(p.shape, dtype) for p in data.leaves]
    grads = [zero if p.grad is None else p.grad.numpy() for p, zero in zip(data.leaves, zeros, strict=True)]
    return [*(v.numpy() for v in values), *grads]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lengths": {"lengths": [STEPS, 0, 3, 7, STEPS - 1]},
    "resets": {"resets": np.random.default_rng(2).random((STEPS, BATCH)) < 0.2, "reverse": True},
    "checkpoint": {"checkpoint": 3},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_integers_stay_in_machine_code(cell: Callable[[Data], Cell], options: str) -> None:
    found = results(cell, np.float64, **OPTIONS[options])
    with ts.use_backend("numpy"):
        wanted = results(cell, np.float64, unroll=True, **OPTIONS[options])
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        if one.dtype.kind != "f":
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.__name__)
def test_integers_beside_float32(cell: Callable[[Data], Cell]) -> None:
    found, wanted = results(cell, np.float32), None
    with ts.use_backend("numpy"):
        wanted = results(cell, np.float32, unroll=True)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        if one.dtype.kind != "f":
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("cell", [greedy, loss_in_the_loop, line_of_a_memory, several_ids], ids=lambda cell: cell.__name__)
def test_any_number_of_threads(cell: Callable[[Data], Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for threads in (1, 2, 3, 5):
        monkeypatch.setenv("NUMBA_NUM_THREADS", str(threads))
        found.append(results(cell, np.float64))
    for several in found[1:]:
        for one, other in zip(found[0], several, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-11, atol=1e-12)


# --- ids out of bounds ------------------------------------------------------------------------------------------------


def look_up(ids: Any, pick: bool = False) -> Any:
    """Row by row, what ids (T, B) that pass through the carry point to."""
    table = ts.tensor(np.arange(14.0).reshape(7, 2))

    def step(carry: Any, token: Any) -> Any:
        h, last = carry
        found = (h @ table.mT)[np.arange(h.shape[0]), last][:, None] if pick else table[last]
        return (h * 0.5 + found, token), h

    ids = ts.tensor(np.asarray(ids))
    rows = ids.shape[1]
    return ts.scan(step, (ts.ones((rows, 2), "float64"), ts.zeros(rows, ids.dtype)), ids)


@pytest.mark.parametrize("pick", [False, True])
@pytest.mark.parametrize("bad", [7, -8, 1 << 40, -(1 << 62)])
def test_an_id_out_of_bounds_is_an_error_and_reads_nothing(bad: int, pick: bool) -> None:
    good = [[0, 6, -7], [3, -1, 2], [0, 0, 0]]
    look_up(good, pick)
    wrong = [[0, 6, -7], [3, bad, 2], [0, 0, 0]]
    for backend in ("numba", "numpy"):
        message = f"index {bad} is out of bounds for axis {int(pick)} with size 7"
        with ts.use_backend(backend), pytest.raises(IndexError, match=message):
            look_up(wrong, pick)
    (_, last), ys = look_up(good, pick)  # nothing is left of it
    with ts.use_backend("numpy"):
        (_, wanted), others = look_up(good, pick)
    np.testing.assert_array_equal(last.numpy(), wanted.numpy())
    np.testing.assert_allclose(ys.numpy(), others.numpy(), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_ids_of_any_width(dtype: str) -> None:
    (h, last), _ = look_up(np.array([[0, 6, -7], [3, -1, 2]], dtype))
    with ts.use_backend("numpy"):
        (wanted, _), _ = look_up(np.array([[0, 6, -7], [3, -1, 2]], dtype))
    assert last.dtype == dtype
    np.testing.assert_array_equal(h.numpy(), wanted.numpy())


def test_a_table_as_high_as_the_batch_is_no_batch_of_rows() -> None:
    table, ids = ts.tensor(np.arange(12.0).reshape(4, 3)), np.array([[3, 0, 1, 1], [2, 2, 0, 3]])
    step = lambda carry, i: ((carry[0] + table[carry[1]], i), carry[0])
    (h, _), _ = ts.scan(step, (ts.zeros((4, 3), "float64"), ts.zeros(4, "int64")), ts.tensor(ids))
    np.testing.assert_array_equal(h.numpy(), table.numpy()[0] + table.numpy()[ids[0]])


def test_rows_that_look_at_one_another_run_operation_by_operation() -> None:
    """``x[rows, ids]`` is code for rows 0, 1, 2 ...; of others only the numbers tell."""
    tinyseq_numba._said.clear()
    start, xs = ts.Parameter(np.arange(6.0).reshape(3, 2)), ts.tensor(np.linspace(-1, 1, 18).reshape(3, 3, 2))
    w = ts.Parameter(np.array([[0.3, -0.2], [0.1, 0.4]]))

    def run(rows: Any, **options: Any) -> list[Any]:
        start.grad = w.grad = None

        def step(carry: Any, x: Any) -> Any:
            h, i = carry
            h = ts.tanh(h @ w + x)
            return (h * h[rows, i][:, None], 1 - i), h

        (h, _), ys = ts.scan(step, (start, ts.tensor(np.array([0, 1, 1]))), xs, **options)
        ((h * h).sum() + (ys * xs).sum()).backward()
        return [h.numpy(), ys.numpy(), start.grad.numpy(), w.grad.numpy()]  # type: ignore[union-attr]

    run(np.arange(3))  # the loop is compiled for these
    with pytest.warns(UserWarning, match="no code for an index whose rows are not 0, 1, 2"):
        found = run(np.array([2, 0, 0]))
    for one, other in zip(found, run(np.array([2, 0, 0]), unroll=True), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64"])
def test_arithmetic_of_integers_is_numpys(dtype: str) -> None:
    """Every pair of small numbers and of the largest and smallest there are, division by zero included."""
    ends = np.iinfo(dtype)
    numbers = np.array([*range(-4, 5), ends.min, ends.min + 1, ends.max, ends.max - 1], dtype)
    x, y = (a.reshape(1, -1) for a in np.meshgrid(numbers, numbers))

    def step(carry: Any, pair: Any) -> Any:
        x, y = pair[0] + carry, pair[1] + carry
        return carry, (
            x + y, x - y, x * y, x // y, x % y, -x, abs(x), ts.maximum(x, y), ts.minimum(x, y), ts.sign(x), x.clip(-3, 2),
            x < y, x >= y, x == y, x != y, ts.where(x > y, x, 0), x.astype("float32"), x.astype("float64"), x.astype("bool"),
            (x > y).astype(dtype), x.astype("int64"), x.astype("int16"), (x > y).sum(-1), x.max(-1), x.min(-1), x.argmax(-1),
        )  # fmt: skip

    def run(**options: Any) -> Any:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "divide by zero|overflow", RuntimeWarning)
            given = (ts.tensor(x[None]), ts.tensor(y[None]))
            return ts.scan(lambda c, p: step(c, p), ts.zeros((1, x.size), dtype), given, **options)[1]

    for i, (one, other) in enumerate(zip(run(), run(unroll=True), strict=True)):
        assert one.dtype == other.dtype, i
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=str(i))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_become_integers_as_in_numpy(dtype: type) -> None:
    x = np.array([[0.0, -0.0, 0.9, -0.9, 1.5, -7.9, 2.0**30, -(2.0**31), 100.7]], dtype)
    step = lambda c, v: (c, ((v + c).astype("int32"), (v + c).astype("int64"), (v + c).astype("bool")))
    _, found = ts.scan(step, ts.zeros(x.shape, dtype), ts.tensor(x[None]))
    for one, kind in zip(found, ("int32", "int64", "bool"), strict=True):
        np.testing.assert_array_equal(one.numpy()[0], x.astype(kind))


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 33])
def test_the_first_of_equals_and_nan_are_found_as_in_numpy(width: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.integers(-2, 3, (6, 40, width)).astype(np.float32)
    x[3:][rng.random((3, 40, width)) < 0.1] = np.nan
    x[5, ::2] = -np.inf
    step = lambda c, v: (c, ((v + c).argmax(-1), (v + c).argmin(-1), ts.functions.isnan(v + c).any(-1), ((v + c) == 1).all(-1)))
    _, (most, least, some, every) = ts.scan(step, ts.zeros((40, width)), ts.tensor(x))
    np.testing.assert_array_equal(most.numpy(), x.argmax(-1))
    np.testing.assert_array_equal(least.numpy(), x.argmin(-1))
    np.testing.assert_array_equal(some.numpy(), np.isnan(x).any(-1))
    np.testing.assert_array_equal(every.numpy(), (x == 1).all(-1))


@pytest.mark.parametrize("width", [1, 5, 8, 21])
def test_running_sums(width: int) -> None:
    x = np.random.default_rng(width).standard_normal((3, 4, width))
    step = lambda c, v: (c * 0.5 + v, ((v + c).cumsum(-1), (v + c > 0).cumsum(-1)))
    (_, found), (_, wanted) = (ts.scan(step, ts.zeros((4, width), "float64"), ts.tensor(x), unroll=u) for u in (False, True))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-13, atol=1e-13)


def test_a_window_of_a_state_that_is_kept_moves_on() -> None:
    """Columns of the carry within the next one, both kept for every step."""
    xs = np.arange(12.0).reshape(4, 3, 1)
    step = lambda w, x: (ts.concatenate([w[:, 1:], x * w[:, :1]], -1), w)
    (_, found), (_, wanted) = (ts.scan(step, ts.ones((3, 3), "float64"), ts.tensor(xs), unroll=u) for u in (False, True))
    np.testing.assert_array_equal(found.numpy(), wanted.numpy())
