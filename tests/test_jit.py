"""``ts.jit``: a compiled function equals the function on the tape: values, gradients, and what it refuses."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import test_compiled_scan as cells
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.compiler.trace import trace

BACKENDS: list[Any] = ["numpy", "numba", StrictBackend()]
F64, F32 = np.dtype("float64"), np.dtype("float32")
F = ts.functions


@pytest.fixture(params=BACKENDS, ids=["numpy", "numba", "array-api-strict"])
def backend(request: Any) -> Any:
    if request.param == "numba":
        pytest.importorskip("numba")
    with ts.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True, scope="module")
def _machine_code_for_small_arrays_too() -> Any:
    if importlib.util.find_spec("numba") is None:
        yield
        return
    from tinyseq_numba import region_code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(region_code, "LEAST", 1.0)
        yield


def numbers(*shape: int, dtype: Any = F64, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def values_and_gradients(f: Any, arrays: list[Any], names: set[int] | None = None) -> list[Any]:
    """What ``f`` gives for the arrays, and the gradients of a number that all outputs enter."""
    inputs = [ts.tensor(a, requires_grad=a.dtype.kind == "f" and (names is None or i in names)) for i, a in enumerate(arrays)]
    outputs = ts.tree.flatten(f(*inputs))[0]
    loss = None
    for i, y in enumerate(outputs):
        if isinstance(y, ts.Tensor) and y.requires_grad:
            weight = numbers(*y.shape, dtype=y.dtype, seed=100 + i)
            part = (y * ts.tensor(weight)).sum()
            loss = part if loss is None else loss + part
    if loss is not None:
        loss.backward()
    found = [y.numpy() if isinstance(y, ts.Tensor) else y for y in outputs]
    return found + [None if x.node is None or x.grad is None else x.grad.numpy() for x in inputs]


def same(actual: list[Any], wanted: list[Any], tolerance: float = 1e-10) -> None:
    assert len(actual) == len(wanted)
    for i, (a, b) in enumerate(zip(actual, wanted, strict=True)):
        if a is None or b is None:
            assert not np.any(b if a is None else a), i  # no gradient is a gradient of zero
            continue
        if not isinstance(b, np.ndarray):
            assert a == b
            continue
        assert a.shape == b.shape, i
        assert a.dtype == b.dtype, i
        scale = max(1.0, float(abs(b[np.isfinite(b)]).max(initial=0))) if b.dtype.kind == "f" else 1
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance, rtol=0, err_msg=str(i))


# --- made-up functions ------------------------------------------------------------------------------------------------

# A function is a list of instructions on a pool of (..., N, W) values, which begins with its two inputs.
# The operations of test_compiled_scan's cells, and more.
UNARY: dict[str, Callable[[Any], Any]] = {
    **cells.UNARY,
    "gelu": F.gelu,
    "gelu tanh": lambda a: F.gelu(a, True),
    "softplus": F.softplus,
    "log softmax": F.log_softmax,
    "column largest": lambda a: a - a.max(0, keepdims=True),
    "column mean": lambda a: a - a.mean(0, keepdims=True),
    "mean": lambda a: a - a.mean(),
    "rms": lambda a: a / ((a * a).mean(-1) + 1).sqrt()[..., None],
    "flat": lambda a: (a.reshape(-1) * 0.7).reshape(a.shape),
    "transposed": lambda a: (a.transpose() * 0.7).transpose(),
    "float32": lambda a: a.astype(F32).astype(a.dtype) if a.dtype == F32 else a * 1.0,
    "rounded": lambda a: a + ts.floor(a * 3).detach() * 0.1,
    "whole": lambda a: a * (a > 0).astype(np.int64).sum(-1, keepdims=True).astype(a.dtype),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **cells.BINARY,
    "row": lambda a, b: a * b.sum(-1, keepdims=True).tanh(),
    "column": lambda a, b: a * b.mean(0).tanh(),
    "total": lambda a, b: a * b.mean().tanh(),
    "dot": lambda a, b: a * (a * b).sum(-1, keepdims=True).tanh(),
    "product": lambda a, b: a @ (b.transpose() @ a).tanh() * 0.3,
}
index = st.integers(0, 30)
instruction = st.one_of(
    st.tuples(st.sampled_from(sorted(UNARY)), index),
    st.tuples(st.sampled_from(sorted(BINARY)), index, index),
    st.tuples(st.just("weight"), index),
    st.tuples(st.just("affine"), index),
    st.tuples(st.just("ids"), index),
)
functions = st.tuples(st.lists(instruction, min_size=1, max_size=10), index, index)
SHAPES = [(4, 19), (3, 8), (1, 16), (5, 1), (2, 3, 11), (70, 32), (17, 2, 33)]


def made_up(function: Any, weights: dict[str, Any]) -> Callable[..., Any]:
    program, first, second = function

    def f(x: Any, y: Any, ids: Any, scale: Any) -> Any:
        pool = [x, y]
        for name, *operands in program:
            a = pool[operands[0] % len(pool)]
            if name in UNARY:
                pool.append(UNARY[name](a))
            elif name in BINARY:
                pool.append(BINARY[name](a, pool[operands[1] % len(pool)]))
            elif name == "weight":
                pool.append(a @ weights["w"])
            elif name == "affine":
                pool.append(a * scale + weights["shift"])
            else:
                pool.append(a + weights["w"][ids])
        pool = [ts.tanh(v) for v in pool]
        pick = lambda i: pool[(len(pool) - 1 - i) % len(pool)]
        return {"y": pick(first), "losses": [(pick(second) ** 2).mean(), pick(second).sum(-1)], "size": len(pool)}

    return f


@pytest.mark.parametrize("backend", BACKENDS, ids=["numpy", "numba", "array-api-strict"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@settings(max_examples=30, deadline=None)
@given(function=functions, shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**31))
def test_compiled_equals_the_tape(backend: Any, dtype: Any, function: Any, shape: Any, seed: int) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    rng = np.random.default_rng(seed)
    draw = lambda *s: (rng.standard_normal(s) * 0.7).astype(dtype)
    width = shape[-1]
    arrays = [draw(*shape), draw(*shape), rng.integers(0, width, shape[:-1]), draw(width)]
    closed = {"w": draw(width, width), "shift": draw(1, width)}
    with ts.use_backend(backend), warnings.catch_warnings():
        warnings.simplefilter("error")
        results = []
        for compile_ in (lambda f: f, ts.jit):
            weights = {name: ts.tensor(a, requires_grad=True) for name, a in closed.items()}
            found = values_and_gradients(compile_(made_up(function, weights)), arrays)
            results.append(found + [None if w.grad is None else w.grad.numpy() for w in weights.values()])
    same(results[1], results[0], 1e-10 if dtype == F64 else 3e-4)


@pytest.mark.parametrize(
    "f",
    [F.layer_norm, F.gelu, ts.softmax, F.log_softmax, lambda a: (a * a.mean(0)).sum()],
    ids=["layer norm", "gelu", "softmax", "log softmax", "column mean"],
)
def test_against_differences(backend: Any, f: Any) -> None:
    ts.check_grads(ts.jit(f), (ts.tensor(numbers(5, 33)),))


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (5,), (16,), (511,), (512,), (1025,), (3, 1), (0, 4), (4, 0), (33, 700)])
def test_elementwise_work_of_any_size(backend: Any, shape: Any) -> None:
    f = lambda x, y: (ts.tanh(x) * y + 1, (x > y) & (y > 0), ts.log1p(x.exp()))
    arrays = [numbers(*shape), numbers(*shape, seed=1)]
    same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))


@pytest.mark.parametrize("shape", [(70, 32), (1, 32), (4, 5, 16), (2500, 24)])
def test_a_bias_is_broadcast_and_its_gradient_summed(backend: Any, shape: Any) -> None:
    f = lambda x, b, s: F.gelu(x + b) * s
    arrays = [numbers(*shape), numbers(shape[-1], seed=1), numbers(*shape[:-1], 1, seed=2)]
    same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))


@pytest.mark.parametrize(
    "f",
    [
        lambda x: (x * x).sum(),
        lambda x: (x * x).mean((0, 2)),
        lambda x: (x * x).sum((0, 1)),
        lambda x: (x * x).sum((1, 2), keepdims=True) + x,
        lambda x: (x * x).max(),
        lambda x: (x * x).min((1, 2)) * 2,
        lambda x: F.std(x, 0) + F.std(x, -1).sum(),
        lambda x: F.logsumexp(x, (1, 2)),
        lambda x: ((x > 0).all(-1), (x > 1).any(), x.argmax(-1), (x > 0).sum(), x.cumsum(1)),
    ],
)
def test_reductions_over_any_axes(backend: Any, f: Any) -> None:
    arrays = [numbers(40, 3, 17)]
    same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))


def test_arrays_that_are_views(backend: Any) -> None:
    whole = ts.tensor(numbers(40, 66), requires_grad=True)
    f = lambda a, b: (F.layer_norm(a) * b.tanh()).sum(-1)
    results = []
    for g in (f, ts.jit(f)):
        whole.grad = None
        y = g(whole[:, ::2], whole[:, 1::2])
        (y * y).sum().backward()
        results.append([y.numpy(), whole.grad.numpy()])
    same(*results)


def test_an_array_that_is_rows_here_and_the_same_for_all_rows_there(backend: Any) -> None:
    def f(x: Any, y: Any) -> Any:
        rows = ts.tanh(x) * x.sum(-1, keepdims=True)
        spread = (y + x).tanh() * (y + rows)
        return rows, spread, (spread * x).sum(-1).exp()

    arrays = [numbers(16, 16), numbers(16, 16, 16, seed=1)]
    same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))


# --- what goes in and out ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


def test_nested_structures_and_static_values(backend: Any) -> None:
    def f(batch: Any, *, scale: float, names: tuple[str, ...], nothing: None = None) -> Any:
        y = batch["x"] * scale + batch["pair"].left
        return Pair({"y": y, "name": names[0], "rank": y.ndim}, [y.sum(), None, batch["pair"].right])

    g = ts.jit(f)
    x = ts.tensor(numbers(3, 20))
    batch = {"x": x, "pair": Pair(x * 2, ts.tensor([1, 2]))}
    got = g(batch, scale=3.0, names=("a", "b"))
    want = f(batch, scale=3.0, names=("a", "b"))
    assert type(got) is Pair
    assert got.left["name"] == "a"
    assert got.left["rank"] == 2
    assert got.right[1] is None
    assert got.right[2].tolist() == [1, 2]
    np.testing.assert_allclose(got.left["y"].numpy(), want.left["y"].numpy(), rtol=1e-12)
    assert g(batch, scale=4.0, names=("c",)).left["name"] == "c"
    assert g.programs == 2


def test_static_values_that_only_look_alike() -> None:
    g = ts.jit(lambda x, s: x * s if s is not True else x)
    x = ts.tensor([2, 3])
    assert [g(x, 1).dtype, g(x, 1.0).dtype, g(x, True).dtype] == [ts.int64, ts.float32, ts.int64]
    h = ts.jit(lambda x, zero: x / zero)
    with np.errstate(divide="ignore"):
        assert h(ts.tensor([1.0]), 0.0).item() == np.inf
        assert h(ts.tensor([1.0]), -0.0).item() == -np.inf


def test_outputs_that_are_inputs_or_the_same_and_inputs_that_nothing_uses(backend: Any) -> None:
    f = lambda x, y, z: (x, x * 2, x * 2, x, z)
    arrays = [numbers(4, 20), numbers(4, 20, seed=1), np.arange(3)]
    same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))
    x = ts.tensor([1.0, 2.0])
    y = ts.jit(lambda x: x)(x)
    y[0] = 9.0
    assert x.tolist() == [1.0, 2.0]


def test_only_what_wants_a_gradient_gets_one(backend: Any) -> None:
    f = lambda x, y, n: (x * y, y * 2, x.detach() + 1, n + 1, (x > 0), x.sign())
    arrays = [numbers(4, 20), numbers(4, 20, seed=1), np.arange(3)]
    for names in (set(), {0}, {1}, {0, 1}):
        same(values_and_gradients(ts.jit(f), arrays, names), values_and_gradients(f, arrays, names))
    x, y = ts.tensor(arrays[0], requires_grad=True), ts.tensor(arrays[1])
    g = ts.jit(f)
    assert [t.requires_grad for t in g(x, y, ts.tensor([1]))] == [True, False, False, False, False, True]
    with ts.no_grad():
        assert not any(t.requires_grad for t in g(x, y, ts.tensor([1])))
    assert g.programs == 2


def test_numpy_arrays_are_tensors() -> None:
    g = ts.jit(lambda x: x * 2)
    assert g(np.ones(3)).tolist() == [2.0] * 3
    assert g(np.zeros(3)).tolist() == [0.0] * 3
    assert g.programs == 1


def test_a_set_is_static() -> None:
    g = ts.jit(lambda x, names: x * len(names))
    assert [g(ts.tensor(2.0), names).item() for names in ({1, 2}, {2, 1}, {1})] == [4.0, 4.0, 2.0]
    assert g.programs == 2


# --- what it closes over ----------------------------------------------------------------------------------------------


def test_parameters_are_read_at_every_call(backend: Any) -> None:
    w = ts.Parameter(np.ones((4, 2)))
    g = ts.jit(lambda x: (x @ w.T.T).tanh() + w.detach().sum(0))  # w.T is an operation on w alone
    x = ts.tensor(numbers(3, 4))
    first = g(x).numpy()
    optimizer = ts.optim.SGD([w], lr=0.5)
    (g(x) ** 2).sum().backward()
    gradient = w.grad.numpy().copy()
    optimizer.step()
    second = g(x).numpy()
    changed = np.ones((4, 2)) - 0.5 * gradient
    np.testing.assert_allclose(first, np.tanh(x.numpy() @ np.ones((4, 2))) + 4, rtol=1e-12)
    np.testing.assert_allclose(second, np.tanh(x.numpy() @ changed) + changed.sum(0), rtol=1e-10)
    with ts.no_grad():
        w[0, 0] = 7.0
        third = g(x).numpy()
    changed[0, 0] = 7.0
    np.testing.assert_allclose(third, np.tanh(x.numpy() @ changed) + changed.sum(0), rtol=1e-10)


def test_two_tensors_of_one_array_are_two() -> None:
    a = ts.tensor([1.0, 2.0])
    b = a.detach()
    g = ts.jit(lambda x: x * a + b)
    assert g(ts.tensor(1.0)).tolist() == [2.0, 4.0]
    b[0] = 9.0  # which is now an array of its own
    assert g(ts.tensor(1.0)).tolist() == [10.0, 4.0]


def test_a_parameter_that_is_frozen_or_changes_its_dtype() -> None:
    w = ts.Parameter([1.0, 2.0])
    g = ts.jit(lambda x: x * w)
    x = ts.tensor([3.0, 4.0])
    assert g(x).requires_grad
    w.requires_grad = False
    assert not g(x).requires_grad
    w.data = w.data.astype(np.float64)
    assert g(x).dtype == F64
    assert g.programs == 3


def test_what_is_closed_over_is_looked_at_again() -> None:
    scale, table = 2.0, {"shift": 1.0}
    helper = lambda x: x * scale

    def f(x: Any) -> Any:
        return helper(x) + table["shift"]

    g = ts.jit(f)
    x = ts.tensor([1.0, 2.0])
    assert g(x).tolist() == [3.0, 5.0]
    scale = 3.0
    assert g(x).tolist() == [4.0, 7.0]
    table["shift"] = 0.5
    assert g(x).tolist() == [3.5, 6.5]
    w = ts.tensor([1.0, 1.0])
    h = ts.jit(lambda x: x + w)
    assert h(x).tolist() == [2.0, 3.0]
    w = ts.tensor([2.0, 2.0])
    assert h(x).tolist() == [3.0, 4.0]
    assert (g.programs, h.programs) == (3, 2)


def test_attributes_of_an_object_count() -> None:
    class Model:
        def __init__(self) -> None:
            self.scale = 2.0

        def scaled(self, x: Any) -> Any:
            return x * self.scale

        @ts.jit
        def run(self, x: Any) -> Any:
            return self.scaled(x) + 1

    model, x = Model(), ts.tensor([1.0])
    outer = ts.jit(lambda x: model.run(x) * 2)
    for _ in range(3):
        assert [model.run(x).item(), outer(x).item()] == [3.0, 6.0]
    model.scale = 5.0
    assert [model.run(x).item(), outer(x).item()] == [6.0, 12.0]
    assert [Model.run.programs, outer.programs] == [2, 2]


def test_equal_objects_make_one_program() -> None:
    @dataclass(frozen=True)
    class Settings:
        scale: float

    @dataclass
    class Changing:
        scale: float

    f = lambda x, settings, which: x * settings.scale
    g, h = ts.jit(f), ts.jit(f)
    x, changing = ts.tensor([1.0]), Changing(0.0)
    for scale in (2.0, 2.0, 3.0):
        changing.scale = scale
        assert [g(x, Settings(scale), ts.float32).item(), h(x, changing, ts.float32).item()] == [scale, scale]
    assert [g.programs, h.programs] == [2, 2]


def test_a_function_that_is_traced_again_and_again_is_said_so() -> None:
    steps = 0
    g = ts.jit(lambda x: x + steps)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _step in range(40):
            steps = _step
            assert g(ts.tensor(1)).item() == 1 + steps
    (warning,) = said
    assert "was traced 32 times for arguments of the same kind, since something that it closes over" in str(warning.message)
    h = ts.jit(lambda x: x + 1)
    for size in range(1, 40):  # new shapes are no mistake
        h(ts.zeros(size))


def test_modules(backend: Any) -> None:
    model = ts.nn.Sequential(ts.nn.Linear(8, 16), F.gelu, ts.nn.LayerNorm(16), ts.nn.Dropout(0.5), ts.nn.Linear(16, 2))
    x = ts.tensor(numbers(5, 8, dtype=F32))
    g = ts.jit(model)
    with pytest.raises(ts.GraphError, match="random numbers inside a traced function"):
        g(x)
    model.eval()
    results = []
    for f in (model, g):
        for p in model.parameters():
            p.grad = None
        loss = (f(x) ** 2).mean()
        loss.backward()
        results.append([loss.numpy(), *(p.grad.numpy() for p in model.parameters())])
    same(results[1], results[0], 1e-5)
    model.train()
    with pytest.raises(ts.GraphError, match="random numbers inside a traced function"):
        g(x)  # and not the program without dropout


def test_methods(backend: Any) -> None:
    class Scale(ts.nn.Module):
        def __init__(self, by: float) -> None:
            self.w = ts.Parameter([by])
            self.power = 1

        @ts.jit
        def __call__(self, x: Any) -> Any:
            return (x * self.w) ** self.power

    a, b = Scale(2.0), Scale(3.0)
    x = ts.tensor([1.0, 2.0])
    assert [a(x).tolist(), b(x).tolist(), a(x).tolist()] == [[2.0, 4.0], [3.0, 6.0], [2.0, 4.0]]
    a.power = 2
    assert a(x).tolist() == [4.0, 16.0]
    a(x).sum().backward()
    assert a.w.grad.tolist() == [20.0]
    assert b.w.grad is None


def test_a_partial_and_the_name_of_the_function() -> None:
    def affine(x: Any, scale: float, shift: Any = 0.0) -> Any:
        """Scaled and shifted."""
        return x * scale + shift

    assert ts.jit(functools.partial(affine, scale=2.0))(ts.tensor([1.0]), shift=ts.tensor([3.0])).tolist() == [5.0]
    g = ts.jit(affine)
    assert (g.__name__, g.__doc__) == ("affine", "Scaled and shifted.")
    assert g.__wrapped__ is affine
    assert "affine" in repr(g)


# --- within others ----------------------------------------------------------------------------------------------------


def test_jit_in_jit_and_in_transforms(backend: Any) -> None:
    inner = ts.jit(lambda a: F.layer_norm(a).tanh())
    f = lambda x, y: (inner(x) * y).sum()
    x, y = ts.tensor(numbers(4, 20)), ts.tensor(numbers(4, 20, seed=1))
    plain = lambda x, y: (F.layer_norm(x).tanh() * y).sum()
    wanted = ts.value_and_grad(plain, (0, 1))(x, y)
    for g in (ts.value_and_grad(f, (0, 1)), ts.value_and_grad(ts.jit(f), (0, 1)), ts.jit(ts.value_and_grad(f, (0, 1)))):
        for _ in range(2):
            value, slopes = g(x, y)
            same([value.numpy(), *(s.numpy() for s in slopes)], [wanted[0].numpy(), *(s.numpy() for s in wanted[1])])


def test_gradients_of_what_is_closed_over_inside(backend: Any) -> None:
    w = ts.Parameter(numbers(4))
    g = ts.jit(lambda x: ts.grad(lambda v: (v * x).tanh().sum())(w))
    x = ts.tensor(numbers(4, seed=1))
    for _ in range(2):
        np.testing.assert_allclose(g(x).numpy(), x.numpy() * (1 - np.tanh(w.numpy() * x.numpy()) ** 2), rtol=1e-10)
        with ts.no_grad():
            w[:] = w.detach() * 2


def test_higher_orders_run_through_the_function(backend: Any) -> None:
    w = ts.tensor(numbers(20, seed=2))
    f = lambda x: (F.layer_norm(x * w).tanh() ** 2).sum()
    x, v = ts.tensor(numbers(4, 20)), ts.tensor(numbers(4, 20, seed=1))
    np.testing.assert_allclose(ts.hvp(ts.jit(f), (x,), (v,))[1].numpy(), ts.hvp(f, (x,), (v,))[1].numpy(), atol=1e-10)
    p = ts.Parameter(numbers(3))
    (ts.jit(lambda x: (x * p**3).sum())(ts.ones(3, F64))).backward(create_graph=True)
    first, p.grad = p.grad, None
    first.sum().backward()
    np.testing.assert_allclose(p.grad.numpy(), 6 * p.numpy(), rtol=1e-10)


def test_inside_a_scan_and_around_one(backend: Any) -> None:
    w = ts.Parameter(numbers(6, 6) * 0.3)
    cell = lambda h, x: F.layer_norm(h @ w + x).tanh()
    compiled = ts.jit(cell)
    xs, h = numbers(5, 3, 6), numbers(3, 6, seed=1)

    def run(step: Any, h: Any, xs: Any) -> Any:
        last, ys = ts.scan(lambda h, x: (step(h, x), h * 2), h, xs)
        return last, ys

    wanted = values_and_gradients(functools.partial(run, cell), [h, xs])
    w_wanted, w.grad = w.grad.numpy(), None
    variants = [
        functools.partial(run, compiled),
        ts.jit(functools.partial(run, cell)),
        ts.jit(functools.partial(run, compiled)),
    ]
    for f in variants:
        same(values_and_gradients(f, [h, xs]), wanted)
        np.testing.assert_allclose(w.grad.numpy(), w_wanted, rtol=1e-9, atol=1e-12)
        w.grad = None


def test_a_function_that_runs_a_scan_is_left_as_it_is(backend: Any) -> None:
    w = ts.Parameter(numbers(6, 6) * 0.3)
    calls = itertools.count()

    def f(h: Any, xs: Any) -> Any:
        next(calls)
        last, ys = ts.scan(lambda h, x: ((h @ w + x).tanh(), h), h, xs * 2)
        return last.exp(), ys.mean(0)

    arrays = [numbers(3, 6), numbers(5, 3, 6, seed=1)]
    g, results = ts.jit(f), []
    for each in (f, g, g):
        w.grad = None
        results.append([*values_and_gradients(each, arrays), w.grad.numpy()])
    same(results[1], results[0])
    same(results[2], results[0])
    assert (g.programs, next(calls)) == (0, 4)  # it was traced once, up to the scan


def test_an_unrolled_scan_is_a_part_of_the_program(backend: Any) -> None:
    w = ts.Parameter(numbers(6, 6) * 0.3)
    f = lambda h, xs: ts.scan(lambda h, x: ((h @ w + x).tanh(), h), h, xs, unroll=True)
    arrays = [numbers(3, 6), numbers(5, 3, 6, seed=1)]
    g = ts.jit(f)
    same(values_and_gradients(g, arrays), values_and_gradients(f, arrays))
    assert g.programs == 1


def test_layers_of_loops(backend: Any) -> None:
    lstm = ts.nn.LSTM(4, 6, num_layers=2, bidirectional=True, dtype=F64)
    f = lambda x: lstm(x)[0]
    arrays = [numbers(5, 3, 4)]
    results = []
    for g in (f, ts.jit(f)):
        for p in lstm.parameters():
            p.grad = None
        results.append([*values_and_gradients(g, arrays), *(p.grad.numpy() for p in lstm.parameters())])
    same(results[1], results[0])


def test_a_scan_in_a_scan_in_a_jit(backend: Any) -> None:
    def outer(h: Any, x: Any) -> Any:
        inner, _ = ts.scan(lambda a, z: ((a + z + h * x).tanh(), None), h, ts.ones((2, 3, 6), F64))
        return inner, h

    f = lambda h, xs: ts.scan(outer, h, xs)
    arrays = [numbers(3, 6), numbers(5, 3, 6, seed=1)]
    same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))


def test_a_scan_of_what_is_closed_over_is_not_run_once_and_for_all(backend: Any) -> None:
    w = ts.Parameter(numbers(3))
    xs = ts.tensor(numbers(4, 3, seed=1))
    g = ts.jit(lambda x: ts.scan(lambda h, z: (h * w + z, None), ts.zeros(3, F64), xs)[0] * x)
    plain = lambda: ts.scan(lambda h, z: (h * w + z, None), ts.zeros(3, F64), xs, unroll=True)[0]
    for _ in range(2):
        np.testing.assert_allclose(g(ts.tensor(2.0, F64)).numpy(), 2 * plain().numpy(), rtol=1e-12)
        with ts.no_grad():
            w[:] = w.detach() * 0.5


def test_a_training_run_is_the_same(backend: Any) -> None:
    def train(compile_: Any) -> list[float]:
        ts.manual_seed(0)
        model = ts.nn.Sequential(ts.nn.Linear(6, 12), ts.nn.LayerNorm(12), ts.tanh, ts.nn.Linear(12, 3))
        optimizer = ts.optim.Adam(model.parameters(), lr=0.05)
        loss = compile_(lambda x, t: ts.cross_entropy(model(x), t))
        x, targets = ts.tensor(numbers(20, 6, dtype=F32)), ts.tensor(np.arange(20) % 3)
        losses = []
        for _ in range(5):
            optimizer.zero_grad()
            value = loss(x, targets)
            value.backward()
            optimizer.step()
            losses.append(value.item())
        return losses

    wanted = train(lambda f: f)
    np.testing.assert_allclose(train(ts.jit), wanted, rtol=2e-4)
    assert wanted[-1] < wanted[0] * 0.9


# --- programs ---------------------------------------------------------------------------------------------------------


def test_how_often_it_is_traced(backend: Any) -> None:
    traced = itertools.count()

    def f(x: Any, y: Any) -> Any:
        next(traced)
        return (x * y).tanh()

    g = ts.jit(f)
    a = ts.tensor(numbers(3, 20))
    calls: list[tuple[Any, ...]] = [
        (a, a),
        (a, a * 2),
        (a, 2.0),
        (a, 2.0),
        (a, 3.0),
        (a[:2], a[:2]),
        (a.astype(F32), a.astype(F32)),
    ]
    for args in calls:
        np.testing.assert_allclose(g(*args).numpy(), f(*args).numpy(), rtol=1e-6)
    g(a.detach().requires_grad_(), a)
    assert g.programs == 6
    assert next(traced) == 6 + len(calls)  # f itself ran for each comparison


def test_a_new_number_of_rows_makes_no_new_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from tinyseq_numba import region_code

    compiled: set[str] = set()
    original = region_code.address
    monkeypatch.setattr(region_code, "address", lambda text, *kind: compiled.add(text) or original(text, *kind))
    f = ts.jit(lambda x, w, b: F.gelu(F.layer_norm(x, w, b)).mean())
    g = ts.jit(lambda x, y: (x * y).tanh() + x)
    with ts.use_backend("numba"):
        w, b = (ts.tensor(numbers(24, seed=s), requires_grad=True) for s in (1, 2))
        counts = []
        for rows in (40, 41, 23, 1500):
            x = ts.tensor(numbers(rows, 24), requires_grad=True)
            f(x, w, b).backward()
            g(x, x + 1).sum().backward()
            counts.append(len(compiled))
    assert counts[0] > 2
    assert set(counts) == {counts[0]}
    assert f.programs == 4


def test_threads_and_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from tinyseq_numba import region_code

    f = lambda x, w: (F.layer_norm(x, w) * w).tanh() + x.mean((0, 1))
    arrays = [numbers(50, 41, 33), numbers(33, seed=1)]
    with ts.use_backend("numba"):
        wanted = values_and_gradients(f, arrays)
        for threads in (1, 2, 3, 7):
            monkeypatch.setenv("NUMBA_NUM_THREADS", str(threads))
            monkeypatch.setattr(region_code, "WORK", 100)
            monkeypatch.setattr(region_code, "CUT", 64)
            same(values_and_gradients(ts.jit(f), arrays), wanted)


def test_sums_over_many_rows_keep_float32s_digits() -> None:
    pytest.importorskip("numba")
    x = np.random.default_rng(0).random((200_000, 16), np.float32)
    with ts.use_backend("numba"):
        total = ts.jit(lambda a: (a * a).sum(0))(ts.tensor(x))
    exact = (x.astype(F64) ** 2).sum(0)
    assert abs(total.numpy() / exact - 1).max() < 2e-6


def test_the_backend_is_the_one_in_force_at_the_call() -> None:
    g = ts.jit(lambda x: F.gelu(x) * 2)
    x = numbers(3, 20)
    for name in BACKENDS:
        with ts.use_backend(name):
            y = g(ts.tensor(x))
            assert type(y.data) is ts.current_backend().array_type
            np.testing.assert_allclose(y.numpy(), 2 * F.gelu(ts.tensor(x)).numpy(), rtol=1e-12)
    assert g.programs == 3


def test_memory_of_a_call_is_freed_with_its_result() -> None:
    import gc
    import weakref

    w = ts.Parameter(numbers(20))
    g = ts.jit(lambda x: (x * w).tanh().sum())
    x = ts.tensor(numbers(3, 20))
    held = weakref.ref(x)
    loss = g(x)
    del x
    loss.backward()
    gc.collect()
    assert held() is None
    with pytest.raises(ts.GraphError, match="walked before"):
        loss.backward()


# --- what it refuses --------------------------------------------------------------------------------------------------

NO_NUMBERS = r"traced tensor of shape \(.*\) has no numbers yet"


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x if (x > 0).any() else -x,
        lambda x: x * float(x.sum()),
        lambda x: x + np.asarray(x),
        lambda x: x * x.sum().item(),
        lambda x: str(x),
        lambda x: sum(x.tolist()),
    ],
)
def test_python_that_looks_at_a_value(f: Any) -> None:
    x = ts.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(ts.GraphError, match=NO_NUMBERS):
        ts.jit(f)(x)
    assert (x * 2).tolist() == [2.0, 4.0]  # all is as before
    with ts.no_grad():
        assert not ts.jit(lambda x: x * 2)(x).requires_grad


OUTSIDE = "the numbers of a tensor of shape .* outside it may change; pass them as Python numbers"


@pytest.mark.parametrize("look", [lambda w: w.item(), lambda w: w.tolist(), lambda w: float(w), lambda w: w.numpy()])
def test_looking_at_what_is_closed_over(look: Any) -> None:
    """A scan may, since it is traced anew at every call; here it would be the same number for ever."""
    w = ts.Parameter(1.0)
    with pytest.raises(ts.GraphError, match=OUTSIDE):
        ts.jit(lambda x: x * look(w))(ts.tensor(1.0))


def test_the_gradient_of_a_parameter() -> None:
    w = ts.Parameter(1.0)
    (w * 2).backward()
    with pytest.raises(ts.GraphError, match=r"it would see the \.grad of that moment for ever; pass gradients to it"):
        ts.jit(lambda x: x * w.grad)(ts.tensor(1.0))


def test_looking_at_an_operation_on_what_is_closed_over() -> None:
    w = ts.Parameter([1.0, 2.0])
    with pytest.raises(ts.GraphError, match=NO_NUMBERS):
        ts.jit(lambda x: x if (w > 0).all() else -x)(ts.tensor(1.0))


def test_random_numbers() -> None:
    with pytest.raises(ts.GraphError, match="random numbers inside a traced function would be drawn once"):
        ts.jit(lambda x: x + ts.random.randn(2))(ts.tensor([1.0, 2.0]))


def test_side_effects() -> None:
    outside, left = ts.zeros(2), []

    def assigns(x: Any) -> Any:
        outside[0] = 1.0
        return x

    with pytest.raises(ts.GraphError):
        ts.jit(assigns)(ts.tensor(1.0))
    assert outside.tolist() == [0.0, 0.0]
    ts.jit(lambda x: left.append(x * 2) or x)(ts.tensor([1.0]))
    with pytest.raises(ts.GraphError, match="has left"):
        left[0].numpy()
    with pytest.raises(ts.GraphError):
        ts.jit(lambda x: x.sum().backward() or x)(ts.tensor([1.0], requires_grad=True))


def test_errors_of_the_function_are_its_own() -> None:
    with pytest.raises(ts.ShapeError, match="matmul cannot multiply"):
        ts.jit(lambda x, y: x @ y)(ts.zeros((2, 3)), ts.zeros((2, 3)))


def test_no_grad_within(backend: Any) -> None:
    w = ts.Parameter(numbers(3))

    def f(x: Any) -> Any:
        with ts.no_grad():
            a = x * w
        return a * x, a, a.detach() + 1

    arrays = [numbers(4, 3)]
    results = []
    for g in (f, ts.jit(f)):
        w.grad = None
        results.append(values_and_gradients(g, arrays))
        assert w.grad is None
    same(results[1], results[0])
    assert [y.requires_grad for y in ts.jit(f)(ts.tensor(arrays[0], requires_grad=True))] == [True, False, False]


def test_no_grad_within_the_step_of_a_scan(backend: Any) -> None:
    def step(c: Any, x: Any) -> Any:
        with ts.no_grad():
            a = c * w
        return c + a * w * x, a

    w, results = ts.Parameter(numbers(3)), []
    for unroll in (True, False):
        w.grad = None
        found = values_and_gradients(lambda c, xs: ts.scan(step, c, xs, unroll=unroll)[0], [numbers(3), numbers(4, 3)])  # noqa: B023
        results.append([*found, w.grad.numpy()])
    same(results[1], results[0])


def test_anomaly_mode_finds_the_operation() -> None:
    with ts.detect_anomaly(), pytest.raises(ts.NonFiniteError, match="log"), np.errstate(divide="ignore"):
        ts.jit(lambda x: ts.log(x) * 2)(ts.tensor([0.0, 1.0]))


def test_traced_gradients_are_seen_inside() -> None:
    layer = ts.nn.RNN(3, 8)
    with ts.trace_gradients() as flow:
        ys, _ = ts.jit(layer)(ts.ones((6, 2, 3)))
        ys.sum().backward()
    assert len(flow["RNN"]) == 6


def test_it_is_one_box_of_a_picture() -> None:
    x = ts.tensor([1.0, 2.0], requires_grad=True)
    assert "jit" in ts.draw(ts.jit(lambda x: (x * 2).tanh().sum())(x)).dot


# --- regions ----------------------------------------------------------------------------------------------------------


def parts_of(f: Any, *shapes: Any, dtype: Any = F32) -> list[Any]:
    pytest.importorskip("numba")
    from tinyseq_numba.loop.vectors import SUPPORTED

    from tinyseq.compiler.regions import partition

    graph = trace(lambda *xs: ts.tree.flatten(f(*xs))[0], [ts.zeros(s, dtype) for s in shapes]).graph
    parts = partition(graph, SUPPORTED)
    known = {*graph.inputs, *graph.closed}
    for part in parts:  # all that is read is there
        reads, writes = (part.vars, [part.output]) if hasattr(part, "primitive") else (part.reads, [*part.writes, *part.totals])
        assert set(reads) <= known
        known |= set(writes)
    assert set(graph.outputs) <= known
    assert sum(1 if hasattr(part, "primitive") else len(part.equations) for part in parts) == len(graph.equations)
    return parts


def named(parts: list[Any]) -> list[str]:
    return [part.primitive.name if hasattr(part, "primitive") else "region" for part in parts]


def test_layer_norm_is_one_region() -> None:
    (region,) = parts_of(F.layer_norm, (70, 5, 32), (32,), (32,))
    assert region.space == (350, 32)
    assert [region.roles[v] for v in region.reads] == ["full", "column", "column"]
    assert len(region.writes) == 1
    assert not region.totals
    assert not region.flat


def test_products_stand_between_regions_and_sums_over_rows_end_them() -> None:
    first, product, second, last = parts_of(lambda x, w: ((x * 2 + 1) @ w).tanh().sum(0) * 3, (64, 32), (32, 16))
    assert named([first, product, second, last]) == ["region", "matmul", "region", "region"]
    assert first.flat
    assert len(second.totals) == 1
    assert not second.writes


def test_elementwise_work_waits_for_what_reads_it() -> None:
    """(x + 1) goes through memory once, after the product that comes first in the program."""
    parts = parts_of(lambda x, w: (x + 1).exp() * (x @ w), (64, 32), (32, 32))
    assert named(parts) == ["matmul", "region"]


def test_two_chains_that_meet_are_one_region() -> None:
    (region,) = parts_of(lambda x, y: x.tanh().exp() * y.sigmoid().exp(), (64, 32), (64, 32))
    assert len(region.equations) == 5
    assert len(region.writes) == 1


def test_work_on_numbers_a_row_goes_with_their_rows() -> None:
    (region,) = parts_of(lambda g, x: -g[:, None] * x / (x * x).sum(-1, keepdims=True).sqrt(), (64,), (64, 32))[1:]
    assert region.space == (64, 32)
    assert sorted(region.roles[v] for v in region.reads) == ["full", "row"]


def test_an_array_that_is_rows_here_and_columns_there_is_not_mistaken() -> None:
    def f(x: Any, y: Any) -> Any:
        s = (x * y).sum(-1)  # (16,), a number a row
        return x * s  # and here a column

    assert len(parts_of(f, (16, 16), (16, 16))) == 2
    arrays = [numbers(16, 16), numbers(16, 16, seed=1)]
    with ts.use_backend("numba"):
        same(values_and_gradients(ts.jit(f), arrays), values_and_gradients(f, arrays))


def test_numbers_are_no_part_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    from tinyseq_numba import region_code

    texts: list[str] = []
    original = region_code.address
    monkeypatch.setattr(region_code, "address", lambda text, *kind: texts.append(text) or original(text, *kind))
    g = ts.jit(lambda x, rate: (x - rate * x.sign()) * 2.0)
    x = numbers(40, 20)
    with ts.use_backend("numba"):
        for rate in (0.1, 0.25, np.inf):
            np.testing.assert_allclose(g(ts.tensor(x), float(rate)).numpy(), (x - rate * np.sign(x)) * 2.0, rtol=1e-12)
    assert len(texts) == 3
    assert len(set(texts)) == 1


def test_numbers_that_are_not_finite(backend: Any) -> None:
    f = lambda x: (x.max(-1), x.min(-1), x.sum(-1), (x * 0).tanh(), ts.where(x == x, x, 0.0).clip(-2.0, 2.0))
    special = [[np.nan, 1.0, 2.0], [np.inf, -np.inf, 0.0], [-np.inf, 1.0, -0.0]]
    x = np.tile(np.array(special), (20, 7))
    with np.errstate(invalid="ignore"):
        for found, wanted in zip(ts.jit(f)(ts.tensor(x)), f(ts.tensor(x)), strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted.numpy())


def test_what_is_needed_no_more_is_written_over_and_nothing_else() -> None:
    def f(x: Any, y: Any) -> Any:
        a = x
        for _ in range(30):
            a = (a * y + 1).tanh()
        turned = (a * 2).transpose()
        return a, turned + (a * 2).exp().transpose(), x * 1.0, turned

    arrays = [numbers(256, 256), numbers(256, 256, seed=1)]
    x, y = (ts.tensor(a) for a in arrays)
    with ts.use_backend("numpy"):
        wanted = [t.numpy().copy() for t in f(x, y)]
        g = ts.jit(f)
        g(x, y)
        tracemalloc.start()
        found = g(x, y)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        same([t.numpy() for t in found], wanted)
    assert peak < 7 * x.numpy().nbytes  # four results and what is at work, not thirty
    same([x.numpy(), y.numpy()], arrays)
    for a, b in itertools.combinations([t.data for t in found], 2):
        assert not np.shares_memory(a, b)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_what_only_the_gradient_needs_is_left_to_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "numba":
        pytest.importorskip("numba")
    graphs = []
    with ts.use_backend(name) as backend:
        original = type(backend).compile_graph
        monkeypatch.setattr(type(backend), "compile_graph", lambda self, graph: graphs.append(graph) or original(self, graph))
        x = ts.tensor(numbers(40, 20), requires_grad=True)
        y = ts.jit(lambda x: (x @ x.detach().T).tanh())(x)
        assert [e.primitive.name for e in graphs[0].equations] == ["permute", "matmul", "tanh"]
        y.sum().backward()
    assert [len(graph.outputs) for graph in graphs] == [1, 1]  # tanh's own result is all that is kept


def test_what_is_no_longer_needed_is_let_go() -> None:
    def f(x: Any) -> Any:
        for _ in range(30):
            x = x @ x.detach()
        return x

    x = ts.tensor(np.eye(256))
    with ts.use_backend("numpy"):
        g = ts.jit(f)
        g(x)
        tracemalloc.start()
        g(x)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 * x.numpy().nbytes
