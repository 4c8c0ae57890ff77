"""The compiled loop equals the loop on the tape: values and all gradients, for cells that hypothesis makes up."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_backend import StrictBackend

import tinyseq as ts

BACKENDS: list[Any] = ["numpy", "numba", StrictBackend()]
F64, F32 = np.dtype("float64"), np.dtype("float32")

# A cell is a list of instructions on a pool of (B, H) values, which begins with the carry (h, c) and the input x.
UNARY: dict[str, Callable[[Any], Any]] = {
    "tanh": ts.tanh,
    "sigmoid": ts.sigmoid,
    "relu": lambda a: (a + 0.05).relu(),
    "exp": lambda a: ts.exp(ts.tanh(a)),
    "log": lambda a: ts.log(a * a + 1.5),
    "sqrt": lambda a: ts.sqrt(a * a + 0.5),
    "sin": ts.sin,
    "cube": lambda a: ts.tanh(a) ** 3,
    "softmax": ts.softmax,
    "norm": ts.functions.layer_norm,
    "logsumexp": lambda a: a - ts.functions.logsumexp(a, -1, keepdims=True),
    "largest": lambda a: a / (1 + a.max(-1, keepdims=True) ** 2),
    "clip": lambda a: a.clip(-0.731, 0.617),
    "turned": lambda a: ts.functions.roll(a, 1, -1),
    "halves": lambda a: ts.concatenate([part.tanh() for part in ts.functions.chunk(a, 2, -1)], -1),
    "detached": lambda a: a + ts.tanh(a).detach(),
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: ts.tanh(a) * b,
    "div": lambda a, b: a / (b * b + 1.5),
    "maximum": ts.maximum,
    "where": lambda a, b: ts.where(a > 0.123, a, b),
    "gate": lambda a, b: ts.sigmoid(a) * b + (1 - ts.sigmoid(a)) * a,
}
index = st.integers(0, 30)
instruction = st.one_of(
    st.tuples(st.sampled_from(sorted(UNARY)), index),
    st.tuples(st.sampled_from(sorted(BINARY)), index, index),
    st.tuples(st.just("product"), index, st.integers(0, 1)),
    st.tuples(st.just("joint"), index, index),
    st.tuples(st.just("scale"), index),
)
cells = st.tuples(st.lists(instruction, min_size=1, max_size=9), index, index, index)


def make_step(cell: Any, weights: dict[str, ts.Tensor]) -> Any:
    program, new_h, new_c, output = cell

    def step(carry: Any, x: Any) -> Any:
        pool = [carry["h"], carry["c"], x]
        for name, *operands in program:
            a = pool[operands[0] % len(pool)]
            if name in UNARY:
                pool.append(UNARY[name](a))
            elif name in BINARY:
                pool.append(BINARY[name](a, pool[operands[1] % len(pool)]))
            elif name == "product":
                pool.append(a @ weights[f"w{operands[1]}"])
            elif name == "joint":  # as the textbooks write it
                pool.append(ts.concatenate([a, pool[operands[1] % len(pool)]], -1) @ weights["joint"])
            else:
                pool.append(a * weights["scale"] + weights["shift"])
        pool = [ts.tanh(v) for v in pool]  # bounded, so that T steps stay comparable
        pick = lambda i: pool[(len(pool) - 1 - i) % len(pool)]
        return {"h": pick(new_h), "c": pick(new_c)}, (pick(output), pick(new_h) * 0.5)

    return step


def run(cell: Any, arrays: dict[str, Any], options: dict[str, Any], unroll: bool) -> dict[str, np.ndarray[Any, Any]]:
    """The values and the gradients with respect to everything."""
    t = {name: ts.tensor(a, requires_grad=True) for name, a in arrays.items() if not name.startswith("g_")}
    carry, (y, z) = ts.scan(make_step(cell, t), {"h": t["h"], "c": t["c"]}, t["x"], unroll=unroll, **options)
    g = {name: ts.tensor(a) for name, a in arrays.items() if name.startswith("g_")}
    loss = (carry["h"] * g["g_h"]).sum() + (carry["c"] * g["g_c"]).sum() + (y * g["g_y"]).sum() + (z * g["g_y"]).sum()
    loss.backward()
    found = {"h_T": carry["h"], "c_T": carry["c"], "y": y, "z": z}
    found |= {f"d{name}": v.grad for name, v in t.items() if v.grad is not None}
    return {name: v.numpy() for name, v in found.items()}


@pytest.mark.parametrize("backend", BACKENDS, ids=["numpy", "numba", "array-api-strict"])
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@settings(max_examples=25, deadline=None)
@given(
    cell=cells,
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 3, 8, 11, 19])),
    reverse=st.booleans(),
    masks=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_compiled_equals_unrolled(
    backend: Any, dtype: Any, cell: Any, sizes: Any, reverse: bool, masks: Any, seed: int
) -> None:
    if backend == "numba":
        pytest.importorskip("numba")
    steps, batch, size = sizes
    rng = np.random.default_rng(seed)
    shapes = {
        "h": (batch, size), "c": (batch, size), "x": (steps, batch, size), "w0": (size, size), "w1": (size, size),
        "joint": (2 * size, size), "scale": (size,), "shift": (1, size),
        "g_h": (batch, size), "g_c": (batch, size), "g_y": (steps, batch, size),
    }  # fmt: skip
    arrays = {name: rng.standard_normal(shape).astype(dtype) * 0.7 for name, shape in shapes.items()}
    arrays = {name: a.astype(dtype) for name, a in arrays.items()}
    options: dict[str, Any] = {"reverse": reverse}
    if masks[0]:
        options["lengths"] = rng.integers(0, steps + 1, batch)
    if masks[1]:
        options["resets"] = rng.random((steps, batch)) < 0.3
    with ts.use_backend(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a scan runs on the slower NumPy loop")
        expected = run(cell, arrays, options, unroll=True)
        actual = run(cell, arrays, options, unroll=False)
    assert set(actual) >= set(expected)
    tolerance = 1e-10 if dtype == F64 else 2e-4
    for name, wanted in expected.items():
        scale = max(1.0, float(abs(wanted).max(initial=0)))
        np.testing.assert_allclose(actual[name] / scale, wanted / scale, atol=tolerance, rtol=0, err_msg=name)
        assert actual[name].dtype == dtype
    for name in set(actual) - set(expected):
        np.testing.assert_array_equal(actual[name], 0)


# --- a memory that every step reads -----------------------------------------------------------------------------------

Read = Callable[[Any, Any, Any], Any]

# From a memory (B, S, H), a query (B, H) and weights to (B, H).
READS: dict[str, Read] = {
    "dot": lambda m, q, t: _mix(m, (m @ q[..., None])[..., 0]),
    "scaled": lambda m, q, t: _mix(m, (m @ (q * t["scale"])[..., None])[..., 0] / q.shape[-1] ** 0.5),
    "additive": lambda m, q, t: _mix(m, (ts.tanh(m @ t["w0"] + (q @ t["w1"])[:, None, :]) * t["scale"]).sum(-1)),
    "largest": lambda m, q, t: (m * q[:, None, :]).max(-2),
    "mean": lambda m, q, t: ts.tanh(m * q[:, None, :]).mean(-2),
}


def _mix(memory: Any, scores: Any) -> Any:
    return (ts.softmax(scores)[:, None, :] @ memory)[:, 0, :]


@pytest.mark.parametrize("backend", BACKENDS, ids=["numpy", "numba", "array-api-strict"])
@settings(max_examples=25, deadline=None)
@given(
    reads=st.lists(st.sampled_from(sorted(READS)), min_size=1, max_size=2),
    cell=cells,
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 5, 8]), st.integers(1, 5)),
    reverse=st.booleans(),
    masks=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**31),
)
def test_cells_that_read_a_memory(
    backend: Any, reads: list[str], cell: Any, sizes: Any, reverse: bool, masks: Any, seed: int
) -> None:
    """An attention read (B, S, H) within a made-up cell, in float64, with lengths, resets and both directions."""
    steps, batch, size, slots = sizes
    rng = np.random.default_rng(seed)
    shapes = {
        "h": (batch, size), "c": (batch, size), "x": (steps, batch, size), "w0": (size, size), "w1": (size, size),
        "joint": (2 * size, size), "scale": (size,), "shift": (1, size), "memory": (batch, slots, size),
    }  # fmt: skip
    arrays = {name: 0.7 * rng.standard_normal(shape) for name, shape in shapes.items()}
    options: dict[str, Any] = {"reverse": reverse}
    if masks[0]:
        options["lengths"] = rng.integers(0, steps + 1, batch)
    if masks[1]:
        options["resets"] = rng.random((steps, batch)) < 0.3

    def found(unroll: bool) -> dict[str, np.ndarray[Any, Any]]:
        t = {name: ts.tensor(a, requires_grad=True) for name, a in arrays.items()}
        inner = make_step(cell, t)

        def step(carry: Any, x: Any) -> Any:
            for name in reads:
                x = ts.tanh(x + READS[name](t["memory"], carry["h"], t))
            return inner(carry, x)

        carry, (y, z) = ts.scan(step, {"h": t["h"], "c": t["c"]}, t["x"], unroll=unroll, **options)
        (carry["h"].sum() + (carry["c"] * carry["c"]).sum() + (y * z).sum() + y.sum()).backward()
        values = {"h_T": carry["h"], "c_T": carry["c"], "y": y, "z": z}
        values |= {f"d{name}": v.grad for name, v in t.items() if v.grad is not None}
        return {name: v.numpy() for name, v in values.items()}

    with ts.use_backend(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a scan runs on the slower NumPy loop")
        expected, actual = found(unroll=True), found(unroll=False)
    for name, wanted in expected.items():
        scale = max(1.0, float(abs(wanted).max(initial=0)))
        np.testing.assert_allclose(actual[name] / scale, wanted / scale, atol=1e-10, rtol=0, err_msg=name)
    for name in set(actual) - set(expected):
        np.testing.assert_array_equal(actual[name], 0)


# --- a scan inside a scan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS, ids=["numpy", "numba", "array-api-strict"])
@pytest.mark.parametrize("outwards", [False, True])
@pytest.mark.parametrize("inwards", [False, True])
@pytest.mark.parametrize("lengths", [None, [3, 0, 2]])
def test_a_scan_inside_a_scan_with_its_own_lengths_and_direction(
    backend: Any, outwards: bool, inwards: bool, lengths: list[int] | None
) -> None:
    """The inner one becomes a part of the outer one's step; values and gradients are those of both on the tape."""
    rng = np.random.default_rng(0)
    arrays = {"xs": (4, 3, 3, 5), "h": (3, 5), "u": (5, 5), "w": (5, 5)}

    def found(unroll: bool) -> list[np.ndarray[Any, Any]]:
        t = {name: ts.tensor(values[name], requires_grad=True) for name in arrays}

        def outer(h: Any, rows: Any) -> Any:
            inner = lambda a, x: (ts.tanh(a @ t["u"] + x + h),) * 2
            last, states = ts.scan(inner, h, rows, reverse=inwards, lengths=lengths, unroll=unroll)
            h = ts.tanh(last @ t["w"] + states.sum(0))
            return h, h

        last, ys = ts.scan(outer, t["h"], t["xs"], reverse=outwards, lengths=[4, 2, 0] if lengths else None, unroll=unroll)
        ((ys * ys).sum() + last.sum()).backward()
        return [last.numpy(), ys.numpy(), *(v.grad.numpy() for v in t.values())]

    values = {name: 0.7 * rng.standard_normal(shape) for name, shape in arrays.items()}
    with ts.use_backend(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a scan runs on the slower NumPy loop")
        for wanted, got in zip(found(unroll=True), found(unroll=False), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-11)
