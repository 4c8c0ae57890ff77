"""The suite that every backend passes: each primitive in value, dtype, shape and derivative, on every layout of memory.

Nothing here is written for a backend. The judge is NumPy in float64: its values, and its differences in a random direction.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tinyseq.array_api import INDEX
from tinyseq.backend import Backend, canonical_dtype, get_backend, use_backend
from tinyseq.primitives import TABLE
from tinyseq.tensor import Tensor, apply, tensor
from tinyseq.testing.cases import CASES, SLOPES, Array, Case, Slope

__all__ = ["BackendConformance", "directional_derivative"]

# Relative to the largest value that is compared.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
CASTS = {"float16": 2e-3, "bfloat16": 2e-2}


def directional_derivative(f: Callable[[float], Any], step: float = 1e-3) -> Any:
    """df/dt at t = 0 by five-point central differences, right to about 1e-11 for a smooth f of size 1.

    >>> import math
    >>> directional_derivative(lambda t: math.sin(1 + t))
    0.5403023058
    """
    return (8 * (f(step) - f(-step)) - (f(2 * step) - f(-2 * step))) / (12 * step)


def _close(actual: Array, expected: Any, name: str, *, slack: float = 1.0) -> None:
    """Equal to within the dtype's rounding, NaN and infinities in the same places."""
    expected = np.asarray(expected)
    if actual.dtype.kind in "biu":
        np.testing.assert_array_equal(actual, expected)
        return
    with np.errstate(over="ignore"):
        expected = expected.astype(actual.dtype)
    tolerance = slack * {**TOLERANCE, **CASTS}[actual.dtype.name]
    finite = np.abs(expected[np.isfinite(expected)])
    # Near the smallest normal number a result may be flushed to zero, or stop short of it.
    floor = max(tolerance * float(np.min([1.0, finite.max(initial=0)])), 4 * float(np.finfo(actual.dtype).tiny))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=floor, err_msg=name)


# --- layouts of memory: the same values, or a selection of them, laid out in another way ------------------------------


def _contiguous(backend: Backend, x: Array) -> Any:
    return backend.asarray(x)


def _every_other(backend: Backend, x: Array) -> Any:
    padded = np.repeat(x, 2, axis=-1)
    return backend.ops.getitem(backend.asarray(padded), key=(Ellipsis, slice(None, None, 2)))


def _reversed(backend: Backend, x: Array) -> Any:
    everywhere = (slice(None, None, -1),) * x.ndim
    return backend.ops.getitem(backend.asarray(x[everywhere].copy()), key=everywhere)


def _transposed(backend: Backend, x: Array) -> Any:
    backwards = tuple(-1 - axis for axis in range(x.ndim))
    return backend.ops.permute(backend.asarray(x.T.copy()), axes=backwards)


def _stretched(backend: Backend, x: Array) -> Any:
    """Every column is the first: one column in memory, with a stride of zero."""
    return backend.xp.broadcast_to(backend.asarray(x[..., :1].copy()), x.shape)


LAYOUTS: dict[str, Callable[[Backend, Array], Any]] = {
    "contiguous": _contiguous,
    "every other element": _every_other,
    "reversed": _reversed,
    "transposed": _transposed,
    "stretched": _stretched,
}


def _rng(case: Case) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


def _inputs(case: Case, dtype: str, layout: str = "contiguous") -> list[Any]:
    """The case's inputs on the host, with the values that they have in that layout."""
    rng = _rng(case)
    inputs = [make(rng, np.dtype(dtype)) for make in case.inputs]
    if layout == "stretched":
        inputs = [np.broadcast_to(x[..., :1], x.shape) if _is_array(x) and x.ndim else x for x in inputs]
    return inputs


def _runs(case: Case, dtypes: tuple[str, ...] | None = None) -> Iterator[tuple[str, str, list[Any], str]]:
    """Every dtype and layout: both, the inputs, and what to call them in a message."""
    for dtype in case.dtypes if dtypes is None else dtypes:
        laid_out = any(_is_array(x) and x.ndim and x.size for x in _inputs(case, dtype))
        for layout in LAYOUTS if laid_out else ("contiguous",):
            yield dtype, layout, _inputs(case, dtype, layout), f"{case}, {dtype}, {layout}"


def _is_array(x: Any) -> bool:
    return isinstance(x, np.ndarray)


def _widened(inputs: list[Any]) -> list[Any]:
    """Floating inputs in float64."""
    return [x.astype(np.float64) if _is_array(x) and x.dtype.kind == "f" else x for x in inputs]


def _expected(case: Case, inputs: list[Any]) -> Any:
    return case.reference(*_widened(inputs), **case.params)


def _tracked(case: Case, inputs: list[Any]) -> list[int]:
    """Which inputs have a gradient."""
    row = TABLE[case.primitive]
    rules = [row.joint] * len(inputs) if row.joint else row.pulls
    return [i for i, (x, rule) in enumerate(zip(inputs, rules)) if rule and _is_array(x) and x.dtype.kind == "f"]  # noqa: B905


def _random(rng: np.random.Generator, like: Array) -> Array:
    # Numbers that float32 holds, so that every dtype is asked the same.
    return np.asarray(rng.uniform(-1, 1, like.shape), np.float32).astype(like.dtype)


def _agrees(products: list[Array], slope: float, tolerance: float, message: str) -> None:
    """A sum of products is the slope: as exact as its largest terms, and as the differences are."""
    total = sum(float(np.sum(p, dtype=np.float64)) for p in products)
    scale = sum(float(np.sum(np.abs(p), dtype=np.float64)) for p in products) + 1
    np.testing.assert_allclose(total, slope, rtol=0, atol=tolerance * scale, err_msg=message)


EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=str)
EVERY_SMOOTH_CASE = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.differentiate and "f" in case.kinds and TABLE[case.primitive].differentiable],
    ids=str,
)


class BackendConformance:
    """Subclass it in a backend's tests, and name the backend.

    class TestMine(BackendConformance):
        backend = "mine"

    Attributes:
        backend: the name of a registered backend, or a Backend.
    """

    backend: str | Backend

    @pytest.fixture(autouse=True)
    def _in_force(self) -> Any:
        self.b = get_backend(self.backend)
        with use_backend(self.b), np.errstate(all="ignore"):
            yield

    def host(self, array: Any) -> Array:
        """A copy on the host."""
        return np.array(self.b.to_numpy(array))

    def place(self, inputs: list[Any], layout: str) -> list[Any]:
        """The inputs in the backend's memory, in that layout; numbers as they are."""
        put = LAYOUTS[layout]
        return [put(self.b, x) if _is_array(x) and x.ndim else self.b.asarray(x) if _is_array(x) else x for x in inputs]

    def run(self, case: Case, inputs: list[Any], layout: str = "contiguous") -> tuple[list[Any], Tensor]:
        """The case through Tensors; the inputs that have a gradient ask for it. Returns them and the output."""
        placed = self.place(inputs, layout)
        tensors: list[Any] = [x if isinstance(x, bool | int | float) else Tensor(x) for x in placed]
        for i in _tracked(case, inputs):
            tensors[i].requires_grad = True
        return tensors, apply(TABLE[case.primitive], tuple(tensors), dict(case.params))

    def gradients(self, case: Case, inputs: list[Any], v: Array, layout: str = "contiguous") -> list[Array]:
        """The gradients of the differentiable inputs, for the cotangent v, by a first-order walk."""
        tensors, out = self.run(case, inputs, layout)
        out.backward(v)
        return [tensors[i].grad.numpy() for i in _tracked(case, inputs)]

    # --- forward ---

    @EVERY_CASE
    def test_value(self, case: Case) -> None:
        """The operation on raw arrays gives what NumPy gives, and through Tensors the same."""
        for _, layout, inputs, message in _runs(case):
            actual = self.host(self.b.table[case.primitive](*self.place(inputs, layout), **case.params))
            _close(actual, _expected(case, inputs), message)
            np.testing.assert_array_equal(self.run(case, inputs, layout)[1].numpy(), actual, err_msg=message)

    @EVERY_CASE
    def test_shape_and_dtype(self, case: Case) -> None:
        """What comes out is an array of this backend, with the shape and the dtype that the shape rule says."""
        for _, layout, inputs, message in _runs(case):
            shape, dtype = TABLE[case.primitive].shape(*self.place(inputs, layout), **case.params)
            _, out = self.run(case, inputs, layout)
            assert type(out.data) is self.b.array_type, message
            assert (out.shape, out.dtype) == (shape, dtype), message
            assert shape == np.shape(_expected(case, inputs)), message
            assert out.requires_grad == bool(_tracked(case, inputs)), message

    @EVERY_CASE
    def test_inputs_unmodified(self, case: Case) -> None:
        """Neither the operation nor its VJP writes to an input, to the output or to the cotangent."""
        for _, layout, inputs, message in _runs(case):
            tensors, out = self.run(case, inputs, layout)
            before = out.numpy().copy()
            if out.requires_grad:
                v = _random(_rng(case), before)
                seed = tensor(v)
                out.backward(seed)
                np.testing.assert_array_equal(seed.numpy(), v, err_msg=f"cotangent, {message}")
            np.testing.assert_array_equal(out.numpy(), before, err_msg=f"output, {message}")
            for x, original in zip(tensors, inputs, strict=True):
                np.testing.assert_array_equal(x.numpy() if isinstance(x, Tensor) else x, original, err_msg=message)

    # --- backward ---

    @EVERY_SMOOTH_CASE
    def test_vjp(self, case: Case) -> None:
        """<VJP(v), u> is the derivative of <reference, v> in a random direction u; shapes and dtypes are the arguments'."""
        for dtype, layout, inputs, message in _runs(case, ("float32", "float64")):
            if layout == "stretched" and case.ties:
                continue
            rng, wide = _rng(case), _widened(inputs)
            v = _random(rng, np.asarray(_expected(case, inputs), dtype))
            found = self.gradients(case, inputs, v, layout)
            for i, gradient in zip(_tracked(case, inputs), found, strict=True):
                assert (gradient.shape, gradient.dtype) == (inputs[i].shape, np.dtype(dtype)), message
                u = _random(rng, wide[i])

                def along(t: float) -> float:
                    moved = [x + t * u if j == i else x for j, x in enumerate(wide)]  # noqa: B023
                    out = case.reference(*moved, **case.params)
                    return float(np.sum(np.where(np.isfinite(out), out, 0) * v))  # noqa: B023

                tolerance = 1e-9 if dtype == "float64" else 1e-5
                _agrees([gradient * u], directional_derivative(along), tolerance, f"argument {i}, {message}")

    @EVERY_SMOOTH_CASE
    def test_vjp_in_float32_is_that_in_float64(self, case: Case) -> None:
        """Element by element, so that no error hides in a sum."""
        inputs = _inputs(case, "float32")
        v = _random(_rng(case), np.asarray(_expected(case, inputs), np.float32))
        narrow, wide = (self.gradients(case, x, v) for x in (inputs, _widened(inputs)))
        for a, b in zip(narrow, wide, strict=True):
            _close(a, b, str(case), slack=2)

    @EVERY_SMOOTH_CASE
    def test_second_order(self, case: Case) -> None:
        """The recorded VJP gives what the raw one gives, and differences of that are its derivatives, by x and by v."""
        inputs, rng = _inputs(case, "float64"), _rng(case)
        tracked = _tracked(case, inputs)
        if not tracked:
            return
        u, w = ({i: _random(rng, inputs[i]) for i in tracked} for _ in range(2))
        tensors, out = self.run(case, inputs)
        v, u_v = _random(rng, out.numpy()), _random(rng, out.numpy())
        seed = tensor(v, requires_grad=True)
        out.backward(seed, create_graph=True)
        recorded = [tensors[i].grad for i in tracked]
        for x, raw in zip(recorded, self.gradients(case, inputs, v), strict=True):
            _close(x.numpy(), raw, f"recorded against raw, {case}")
        for x in (*(tensors[i] for i in tracked), seed):
            x.grad = None
        looked_at = sum(((tensor(w[i]) * x).sum() for i, x in zip(tracked, recorded, strict=True)), tensor(0.0))
        if looked_at.requires_grad:
            looked_at.backward()

        def along(t: float, t_v: float) -> float:
            moved = [np.asarray(x + t * u[i]) if i in u else x for i, x in enumerate(inputs)]
            found = self.gradients(case, moved, v + t_v * u_v)
            return sum(float(np.sum(w[i] * x)) for i, x in zip(tracked, found, strict=True))

        tolerance = 1e-9 if out.dtype == np.float64 else 1e-3  # a cast rounds, and a difference sees that
        products = [tensors[i].grad.numpy() * u[i] for i in tracked if tensors[i].grad is not None]
        _agrees(products, directional_derivative(lambda t: along(t, 0.0)), tolerance, f"by the arguments of {case}")
        products = [] if seed.grad is None else [seed.grad.numpy() * u_v]
        _agrees(products, directional_derivative(lambda t: along(0.0, t)), tolerance, f"by the cotangent of {case}")

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("slope", SLOPES, ids=str)
    def test_slope_at_an_odd_place(self, slope: Slope, dtype: str) -> None:
        """At kinks, poles, infinities and NaN the derivative is the limit, the convention, or NaN."""
        for v in (1.0, -2.0):
            inputs = [tensor(np.array([x], dtype), requires_grad=True) for x in slope.at]
            out = apply(TABLE[slope.primitive], tuple(inputs), dict(slope.params))
            out.backward(np.array([v], dtype))
            for i, (x, expected) in enumerate(zip(inputs, slope.slopes, strict=True)):
                assert x.grad is not None
                _close(x.grad.numpy(), np.array([v * expected]), f"argument {i} of {slope}")

    # --- what is not in the table ---

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_scatter_add_into(self, dtype: str) -> None:
        """Adds to a total, which it may overwrite, also where an index occurs twice and under a slice."""
        total, values = np.arange(6, dtype=dtype), np.array([1.0, 2.0, 4.0], dtype)
        ops, put = self.b.ops, self.b.asarray
        got = ops.scatter_add_into(put(total.copy()), put(values), put(np.array([1, -1, 1])), key=(INDEX,))
        np.testing.assert_array_equal(self.host(got), np.array([0, 6, 2, 3, 4, 7], dtype))
        got = ops.scatter_add_into(put(total.copy()), put(values), key=(slice(4, None, -2),))
        np.testing.assert_array_equal(self.host(got), np.array([4, 1, 4, 3, 5, 5], dtype))

    @pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "float32", "float64"])
    def test_arrays_come_and_go(self, dtype: str) -> None:
        """From the host and back: values, dtype, shape; also empty and without axes."""
        for shape in ((2, 3), (), (0, 3)):
            original = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            array = self.b.asarray(original)
            assert type(array) is self.b.array_type
            back = self.b.to_numpy(array)
            assert type(back) is np.ndarray
            np.testing.assert_array_equal(back, original, strict=True)
            whole = self.b.full(shape, 1, np.dtype(dtype))
            np.testing.assert_array_equal(self.b.to_numpy(whole), np.ones(shape, dtype), strict=True)
        assert self.host(self.b.asarray([1, 2], np.dtype(dtype))).dtype == np.dtype(dtype)

    def test_contiguous(self) -> None:
        """The same values whatever the layout was."""
        x = np.arange(6.0).reshape(2, 3)
        for name, put in LAYOUTS.items():
            expected = x if name != "stretched" else np.broadcast_to(x[:, :1], x.shape)
            np.testing.assert_array_equal(self.host(self.b.contiguous(put(self.b, x))), expected, err_msg=name)

    def test_a_copy_is_apart(self) -> None:
        """What is done to a copy in place leaves the original as it was."""
        x = self.b.asarray(np.arange(3.0))
        twin = self.b.ops.copy(x)
        twin += twin
        np.testing.assert_array_equal(self.host(x), [0.0, 1.0, 2.0])

    def test_native_dtypes(self) -> None:
        """NumPy's name for a dtype finds the library's own, and back."""
        for name in ("bool", "int32", "int64", "float32", "float64"):
            dtype = np.dtype(name)
            array = self.b.full((2,), 1, dtype)
            assert array.dtype == self.b.native_dtype(dtype)
            assert canonical_dtype(array.dtype) == dtype

    def test_generator(self) -> None:
        """A seed gives the same numbers again, and so does a state, which JSON can hold."""
        b = self.b

        def draw(generator: Any) -> list[Array]:
            return [
                self.host(b.asarray(generator.standard_normal((2, 3), dtype=np.float32))),
                self.host(b.asarray(generator.random((4,)))),
                self.host(b.asarray(generator.integers(0, 10, (5,)))),
            ]

        generator = b.new_generator(7)
        draw(generator)
        state = json.loads(json.dumps(b.generator_state(generator)))
        later, again = draw(generator), b.new_generator(8)
        b.set_generator_state(again, state)
        for x, y in zip(later, draw(again), strict=True):
            np.testing.assert_array_equal(x, y)
        for x, y in zip(draw(b.new_generator(7)), draw(b.new_generator(7)), strict=True):
            np.testing.assert_array_equal(x, y)
        assert any((x != y).any() for x, y in zip(draw(b.new_generator(1)), draw(b.new_generator(2)), strict=True))

    def test_elementwise(self) -> None:
        """A function of numbers runs over arrays, and overwrites only those that it may."""

        def rule(F: Any, *, nesterov: bool) -> Callable[..., Any]:
            def step(p: Any, m: Any, g: Any, lr: float, eps: float) -> tuple[Any, Any]:
                m = 0.9 * m + g
                d = m + g if nesterov else m
                return p - lr * d / (F.sqrt(d * d) + eps), F.maximum(m, -1.0)

            return step

        p, m, g = np.array([1.0, 2.0, 3.0]), np.array([0.5, -2.0, 4.0]), np.array([0.25, -0.5, 2.0])
        for nesterov in (False, True):
            step = self.b.elementwise(rule, nesterov=nesterov)
            for in_place in ((False, False), (True, False), (True, True)):
                arrays = [self.b.asarray(x.copy()) for x in (p, m, g)]
                moved, momentum = step(*arrays, 0.1, 1e-8, in_place=in_place)
                d = 0.9 * m + g + (g if nesterov else 0)
                _close(self.host(moved), p - 0.1 * d / (np.abs(d) + 1e-8), "first result")
                _close(self.host(momentum), np.maximum(0.9 * m + g, -1), "second result")
                for array, original, may in zip(arrays, (p, m, g), (*in_place, False), strict=True):
                    if not may:
                        np.testing.assert_array_equal(self.host(array), original)

    def test_it_says_what_it_is(self) -> None:
        """Name, version and device are for people to read."""
        assert all((self.b.name, self.b.version, self.b.device))
        assert self.b.name in repr(self.b)
        self.b.synchronize()

    # --- together ---

    def test_a_recurrent_network_learns(self) -> None:
        """Twenty steps of gradient descent on a tanh network through time: the losses that NumPy's own arithmetic gives."""
        rng = np.random.default_rng(0)
        xs, target = rng.normal(size=(5, 4, 3)), rng.normal(size=(4, 2))
        start = [rng.normal(size=shape) * 0.4 for shape in ((3, 6), (6, 6), (6,), (6, 2))]

        def numpy_step(w: list[Array]) -> tuple[float, list[Array]]:
            hs = [np.zeros((4, 6))]
            for x in xs:
                hs.append(np.tanh(x @ w[0] + hs[-1] @ w[1] + w[2]))
            error = hs[-1] @ w[3] - target
            g_out = 2 * error / error.size
            grads = [np.zeros_like(p) for p in w]
            grads[3], g_h = hs[-1].T @ g_out, g_out @ w[3].T
            for x, h, before in zip(xs[::-1], hs[:0:-1], hs[-2::-1], strict=True):
                g_a = g_h * (1 - h * h)
                grads[0] += x.T @ g_a
                grads[1] += before.T @ g_a
                grads[2] += g_a.sum(0)
                g_h = g_a @ w[1].T
            return float((error**2).mean()), grads

        parameters: list[Any] = [tensor(p, requires_grad=True) for p in start]
        inputs, goal = tensor(xs), tensor(target)
        losses, expected, w = [], [], start
        for _ in range(20):
            h = tensor(np.zeros((4, 6)))
            for t in range(5):
                h = (inputs[t] @ parameters[0] + h @ parameters[1] + parameters[2]).tanh()
            loss = ((h @ parameters[3] - goal) ** 2).mean()
            loss.backward()
            losses.append(loss.item())
            parameters = [(p.detach() - 0.3 * p.grad).requires_grad_() for p in parameters]
            value, grads = numpy_step(w)
            expected.append(value)
            w = [p - 0.3 * g for p, g in zip(w, grads, strict=True)]
        np.testing.assert_allclose(losses, expected, rtol=1e-10)
        assert losses[-1] < losses[0] / 2
