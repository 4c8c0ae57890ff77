"""The suite that every backend passes: each primitive in value, dtype, shape and derivative, on every layout of memory.

Nothing here is written for a backend. The judge is NumPy in float64: its values, and its differences in a random direction.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinyseq.backend import Backend, get_backend, use_backend
from tinyseq.errors import DTypeError
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
    # What is below the smallest normal number may be flushed to zero.
    floor = max(tolerance * float(np.min([1.0, finite.max(initial=0)])), float(np.finfo(actual.dtype).tiny))
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


def _rng(case: Case | Slope) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(str(case).encode()))


def _inputs(case: Case, dtype: str, layout: str) -> list[Any]:
    """The case's inputs on the host, as that layout will hold them."""
    rng = _rng(case)
    inputs = [make(rng, np.dtype(dtype)) for make in case.inputs]
    if layout == "stretched":
        inputs = [np.broadcast_to(x[..., :1], x.shape) if isinstance(x, np.ndarray) and x.ndim else x for x in inputs]
    return inputs


def _place(backend: Backend, inputs: list[Any], layout: str) -> list[Any]:
    """The inputs in the backend's memory, in that layout; numbers and arrays without axes as they are."""
    put = LAYOUTS[layout]
    return [
        x if isinstance(x, bool | int | float) else put(backend, x) if x.ndim else backend.asarray(x) for x in inputs
    ]


def _expected(case: Case, inputs: list[Any]) -> Any:
    """The reference's answer, in float64 for floating inputs."""
    wide = [x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]
    return case.reference(*wide, **case.params)


def _differentiable(case: Case, inputs: list[Any]) -> list[int]:
    """Which inputs have a gradient."""
    row = TABLE[case.primitive]
    return [
        i
        for i, x in enumerate(inputs)
        if isinstance(x, np.ndarray) and x.dtype.kind == "f" and (row.joint or (i < len(row.pulls) and row.pulls[i]))
    ]


def _layouts(inputs: list[Any]) -> list[str]:
    axes = any(isinstance(x, np.ndarray) and x.ndim and x.size for x in inputs)
    return list(LAYOUTS) if axes else ["contiguous"]


def _random(rng: np.random.Generator, like: Array) -> Array:
    # Numbers that float32 holds, so that every dtype is asked the same.
    return rng.uniform(-1, 1, like.shape).astype(np.float32).astype(like.dtype)


def _parametrize(*kinds: str) -> Any:
    chosen = [(case, dtype) for case in CASES for kind in kinds if kind in case.kinds for dtype in _of_kind(case, kind)]
    return pytest.mark.parametrize(("case", "dtype"), chosen, ids=[f"{case}-{dtype}" for case, dtype in chosen])


def _of_kind(case: Case, kind: str) -> list[str]:
    return [name for name in case.dtypes if np.dtype(name).kind == kind]


def _run(case: Case, tensors: list[Any]) -> Tensor:
    return apply(TABLE[case.primitive], tuple(tensors), dict(case.params))


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
        self.b = self.backend if isinstance(self.backend, Backend) else get_backend(self.backend)
        with use_backend(self.b), np.errstate(all="ignore"):
            yield

    def host(self, array: Any) -> Array:
        """A copy on the host."""
        return np.array(self.b.to_numpy(array))

    # --- forward ---

    @_parametrize("f", "i", "b")
    def test_value(self, case: Case, dtype: str) -> None:
        """The operation on raw arrays, and through a Tensor, gives what NumPy gives."""
        for layout in _layouts(_inputs(case, dtype, "contiguous")):
            inputs = _inputs(case, dtype, layout)
            arrays = _place(self.b, inputs, layout)
            actual = self.host(self.b.table[case.primitive](*arrays, **case.params))
            _close(actual, _expected(case, inputs), layout)
            wrapped = [x if isinstance(x, bool | int | float) else Tensor(x) for x in arrays]
            np.testing.assert_array_equal(_run(case, wrapped).numpy(), actual, err_msg=layout)

    @_parametrize("f", "i", "b")
    def test_shape_and_dtype(self, case: Case, dtype: str) -> None:
        """What comes out has the shape and the dtype that the shape rule says, and is an array of this backend."""
        inputs = _inputs(case, dtype, "contiguous")
        arrays = _place(self.b, inputs, "contiguous")
        shape, kind = TABLE[case.primitive].shape(*arrays, **case.params)
        out = _run(case, [x if isinstance(x, bool | int | float) else Tensor(x) for x in arrays])
        assert type(out.data) is self.b.array_type
        assert (out.shape, out.dtype) == (shape, kind)
        assert shape == np.shape(_expected(case, inputs))

    @_parametrize("f", "i", "b")
    def test_inputs_unmodified(self, case: Case, dtype: str) -> None:
        """Neither the operation nor its VJP writes to an input, to the output or to the cotangent."""
        for layout in _layouts(_inputs(case, dtype, "contiguous")):
            inputs = _inputs(case, dtype, layout)
            tensors = self._tensors(case, inputs, layout)
            held = [x for x in tensors if isinstance(x, Tensor)]
            out = _run(case, tensors)
            before = out.numpy().copy()
            if out.node is not None:
                seed = tensor(_random(_rng(case), before))
                cotangent = seed.numpy().copy()
                out.backward(seed)
                np.testing.assert_array_equal(seed.numpy(), cotangent, err_msg=f"cotangent, {layout}")
            np.testing.assert_array_equal(out.numpy(), before, err_msg=f"output, {layout}")
            for x, original in zip(held, [x for x in inputs if isinstance(x, np.ndarray)], strict=True):
                np.testing.assert_array_equal(x.numpy(), original, err_msg=layout)

    # --- backward ---

    @_parametrize("f")
    def test_vjp(self, case: Case, dtype: str) -> None:
        """<VJP(v), u> is the derivative of <reference, v> in a random direction u; dtypes and shapes are the arguments'."""
        if not case.differentiate:
            pytest.skip("the reference has no derivative here")
        for layout in _layouts(_inputs(case, dtype, "contiguous")):
            if layout == "stretched" and case.ties:
                continue
            inputs = _inputs(case, dtype, layout)
            tracked = _differentiable(case, inputs)
            gradients, v = self._gradients(case, inputs, layout)
            if not tracked:
                continue
            rng = _rng(case)
            for i, gradient in zip(tracked, gradients, strict=True):
                assert (gradient.shape, gradient.dtype) == (inputs[i].shape, np.dtype(dtype)), layout
                u = _random(rng, inputs[i].astype(np.float64))
                wide = [x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]

                def along(t: float, i: int = i, u: Array = u, wide: list[Any] = wide) -> Any:
                    moved = [x + t * u if j == i else x for j, x in enumerate(wide)]
                    out = np.asarray(case.reference(*moved, **case.params))
                    return np.sum(np.where(v == 0, 0, np.where(np.isfinite(out), out, 0) * v))

                slope = directional_derivative(along)
                products = gradient.numpy().astype(np.float64) * u
                # A sum is as exact as its largest terms; the differences themselves are good to 1e-10.
                scale = float(np.abs(products).sum()) + 1
                tolerance = 1e-9 if dtype == "float64" else 1e-5
                np.testing.assert_allclose(
                    products.sum(), slope, rtol=0, atol=tolerance * scale, err_msg=f"argument {i}, {layout}"
                )

    @_parametrize("f")
    def test_vjp_of_float32_is_that_of_float64(self, case: Case, dtype: str) -> None:
        """Element by element, so that no error hides in a sum."""
        if dtype != "float32" or not case.differentiate:
            pytest.skip("checked against float64, where there is a derivative")
        inputs = _inputs(case, dtype, "contiguous")
        narrow, _ = self._gradients(case, inputs, "contiguous")
        widened = [x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in inputs]
        wide, _ = self._gradients(case, widened, "contiguous")
        for a, b in zip(narrow, wide, strict=True):
            _close(a.numpy(), b.numpy(), str(case), slack=2)

    @_parametrize("f")
    def test_second_order(self, case: Case, dtype: str) -> None:
        """The recorded VJP has the derivatives that differences of the first-order VJP show, by its arguments and by v."""
        if dtype != "float64" or not case.differentiate:
            pytest.skip("checked in float64, where there is a derivative")
        inputs = _inputs(case, dtype, "contiguous")
        tracked = _differentiable(case, inputs)
        if not tracked:
            return
        rng = _rng(case)
        u = {i: _random(rng, inputs[i]) for i in tracked}  # where to go
        w = {i: _random(rng, inputs[i]) for i in tracked}  # what is looked at

        def looked_at(t: float, dv: float, v: Array, u_v: Array) -> float:
            moved = [x + t * u[i] if i in u else x for i, x in enumerate(inputs)]
            found, _ = self._gradients(case, moved, "contiguous", v + dv * u_v)
            return float(sum(np.sum(w[i] * g.numpy()) for i, g in zip(tracked, found, strict=True)))

        tensors = self._tensors(case, inputs, "contiguous")
        out = _run(case, tensors)
        v, u_v = _random(rng, out.numpy()), _random(rng, out.numpy())
        seed = tensor(v, requires_grad=True)
        out.backward(seed, create_graph=True)
        gradients = [tensors[i].grad for i in tracked]
        first, _ = self._gradients(case, inputs, "contiguous", v)
        for recorded, raw in zip(gradients, first, strict=True):
            _close(recorded.numpy(), raw.numpy(), "recorded VJP and raw VJP")
        for i in tracked:
            tensors[i].grad = None
        seed.grad = None
        total = sum((tensor(w[i]) * g).sum() for i, g in zip(tracked, gradients, strict=True))
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
        for name, leaves, directions, t_and_dv in (
            ("arguments", [tensors[i] for i in tracked], list(u.values()), lambda t: (t, 0.0)),
            ("cotangent", [seed], [u_v], lambda t: (0.0, t)),
        ):
            found = [0.0 if x.grad is None else x.grad.numpy() * d for x, d in zip(leaves, directions, strict=True)]
            actual, scale = sum(np.sum(f) for f in found), sum(np.sum(np.abs(f)) for f in found) + 1
            slope = directional_derivative(lambda t, at=t_and_dv: looked_at(*at(t), v, u_v))  # type: ignore[misc]
            np.testing.assert_allclose(actual, slope, rtol=0, atol=1e-9 * scale, err_msg=f"by the {name}")

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("slope", SLOPES, ids=str)
    def test_slope_at_an_odd_place(self, slope: Slope, dtype: str) -> None:
        """At kinks, poles, infinities and NaN the derivative is the limit, the convention, or NaN."""
        for v in (1.0, -2.0):
            inputs = [tensor(np.array([x], dtype), requires_grad=True) for x in slope.at]
            out = apply(TABLE[slope.primitive], tuple(inputs), dict(slope.params))
            out.backward(np.array([v], dtype))
            for i, (x, expected) in enumerate(zip(inputs, slope.slopes, strict=True)):
                assert x.grad is not None and expected is not None
                _close(x.grad.numpy(), np.array([v * expected]), f"argument {i} of {slope}")

    def _tensors(self, case: Case, inputs: list[Any], layout: str) -> list[Any]:
        """The inputs as Tensors; those that have a gradient ask for it."""
        tracked = _differentiable(case, inputs)
        tensors = [x if isinstance(x, bool | int | float) else Tensor(x) for x in _place(self.b, inputs, layout)]
        for i in tracked:
            tensors[i].requires_grad = True
        return tensors

    def _gradients(self, case: Case, inputs: list[Any], layout: str, v: Array | None = None) -> tuple[list[Any], Array]:
        """The gradients of the differentiable inputs for a cotangent v, which is drawn if not given."""
        tensors = self._tensors(case, inputs, layout)
        out = _run(case, tensors)
        if not (tracked := _differentiable(case, inputs)):
            assert out.node is None, "recorded, although nothing in it has a gradient"
            return [], np.zeros(out.shape)
        v = _random(_rng(case), out.numpy()) if v is None else v
        out.backward(v)
        return [tensors[i].grad for i in tracked], v

    # --- what is not in the table ---

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_scatter_add_into(self, dtype: str) -> None:
        """Adds to a total, which it may overwrite, also where an index occurs twice and under a slice."""
        total, values = np.arange(6, dtype=dtype), np.array([1.0, 2.0, 4.0], dtype)
        from tinyseq.array_api import INDEX

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
            assert isinstance(back, np.ndarray) and back.dtype == original.dtype and back.shape == shape
            np.testing.assert_array_equal(back, original)
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
        """A dtype that the library lacks is an error that names it."""
        assert self.host(self.b.asarray([1.5], self.b_dtype("float32"))).dtype == np.float32
        with pytest.raises((DTypeError, TypeError)):
            self.b.asarray([1.5], np.dtype("U3"))

    @staticmethod
    def b_dtype(name: str) -> np.dtype[Any]:
        """NumPy's dtype of that name."""
        return np.dtype(name)

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
        """A function of numbers runs over arrays, and leaves them as they were."""
        step = self.b.elementwise(lambda sqrt: lambda p, g, lr, eps: (p - lr * g / (sqrt(g * g) + eps), g * lr))
        p, g = np.array([1.0, 2.0, 3.0]), np.array([0.5, -2.0, 4.0])
        arrays = self.b.asarray(p), self.b.asarray(g)
        moved, scaled = step(*arrays, 0.1, 1e-8)
        _close(self.host(moved), p - 0.1 * g / (np.abs(g) + 1e-8), "first result")
        _close(self.host(scaled), 0.1 * g, "second result")
        np.testing.assert_array_equal(self.host(arrays[0]), p)
        np.testing.assert_array_equal(self.host(arrays[1]), g)

    def test_it_says_what_it_is(self) -> None:
        """Name, version and device are for people to read."""
        assert self.b.name and self.b.version and self.b.device
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

        parameters = [tensor(p, requires_grad=True) for p in start]
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
