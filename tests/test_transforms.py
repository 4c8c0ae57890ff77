"""grad, value_and_grad, vjp, jvp, hvp, jacobian, checkpoint and check_grads against closed forms, differences, each other."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.errors import DTypeError, GraphError, ShapeError
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tensor import Tensor, apply


def f64(value: Any) -> Tensor:
    return ts.tensor(value, dtype=ts.float64)


def close(actual: Any, expected: Any, rtol: float = 1e-12, atol: float = 1e-14) -> None:
    actual = actual.numpy() if isinstance(actual, Tensor) else actual
    expected = expected.numpy() if isinstance(expected, Tensor) else expected
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


X, Y = np.array([0.3, -1.2, 2.0]), np.array([1.5, 0.4, -0.7])


# --- grad and value_and_grad ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "derivatives"),
    [
        (lambda x: x**4, [lambda x: 4 * x**3, lambda x: 12 * x**2, lambda x: 24 * x]),
        (lambda x: x.sin(), [np.cos, lambda x: -np.sin(x), lambda x: -np.cos(x)]),
        (lambda x: (2 * x).exp(), [lambda x: 2 * np.exp(2 * x), lambda x: 4 * np.exp(2 * x), lambda x: 8 * np.exp(2 * x)]),
        (lambda x: (x * x + 1).log(), [lambda x: 2 * x / (x * x + 1), lambda x: (2 - 2 * x * x) / (x * x + 1) ** 2,
                                       lambda x: 4 * x * (x * x - 3) / (x * x + 1) ** 3]),
        (lambda x: x.tanh(), [lambda x: 1 - np.tanh(x) ** 2, lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2),
                              lambda x: (6 * np.tanh(x) ** 2 - 2) * (1 - np.tanh(x) ** 2)]),
        (lambda x: 1.0 / (x * x + 1), [lambda x: -2 * x / (x * x + 1) ** 2, lambda x: (6 * x * x - 2) / (x * x + 1) ** 3,
                                       lambda x: 24 * x * (1 - x * x) / (x * x + 1) ** 4]),
    ],
    ids=["power", "sin", "exp", "log", "tanh", "reciprocal"],
)  # fmt: skip
def test_nested_to_the_third_order(f: Callable[[Tensor], Tensor], derivatives: list[Callable[[float], float]]) -> None:
    for x in (0.7, -1.3):
        g: Any = f
        for derivative in derivatives:
            g = ts.grad(g)
            close(g(f64(x)), derivative(x), rtol=1e-11)


def test_third_order_of_a_vector_function_is_a_tensor_of_derivatives() -> None:
    """Of sum(x)^4 / 24 every third derivative is sum(x)."""
    third = ts.jacobian(ts.jacobian(ts.grad(lambda x: x.sum() ** 4 / 24)))
    close(third(f64(X)), np.full((3, 3, 3), X.sum()))


def test_value_and_grad_by_several_arguments() -> None:
    value, gradients = ts.value_and_grad(lambda x, y: (x * x * y).sum(), argnums=(1, 0))(f64(X), f64(Y))
    close(value, (X * X * Y).sum())
    assert isinstance(gradients, tuple)
    close(gradients[0], X * X)
    close(gradients[1], 2 * X * Y)
    assert not value.requires_grad
    close(ts.grad(lambda x, y: (x * y).sum(), argnums=-1)(f64(X), f64(Y)), X)


def test_auxiliary_results_and_keywords() -> None:
    def f(x: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Any]]:
        y = x * scale
        return (y * y).sum(), {"y": y, "count": 3}

    (value, aux), gradient = ts.value_and_grad(f, has_aux=True)(f64(X), scale=3.0)
    close(value, 9 * (X * X).sum())
    close(gradient, 18 * X)
    close(aux["y"], 3 * X)
    assert not aux["y"].requires_grad
    assert int(aux["count"]) == 3


class Pair(NamedTuple):
    left: Any
    right: Any


def test_structures_of_arguments() -> None:
    tree = {"a": f64(X), "b": [Pair(f64(Y), f64(2.0)), None]}
    gradient = ts.grad(lambda t: (t["a"] * t["b"][0].left * t["b"][0].right).sum())(tree)
    close(gradient["a"], 2 * Y)
    assert isinstance(gradient["b"][0], Pair)
    close(gradient["b"][0].left, 2 * X)
    close(gradient["b"][0].right, X @ Y)
    assert gradient["b"][1] is None


def test_what_the_value_does_not_depend_on_has_gradient_zero() -> None:
    gradients = ts.grad(lambda x, y: (y * 2).sum(), argnums=(0, 1))(f64(X), f64(Y))
    close(gradients[0], np.zeros(3))
    close(gradients[1], np.full(3, 2.0))
    close(ts.grad(lambda x: f64(1.0))(f64(X)), np.zeros(3))


def test_gradients_leave_leaves_alone() -> None:
    x, w = ts.tensor(X, requires_grad=True), ts.tensor(Y, requires_grad=True)
    gradient = ts.grad(lambda x: (x * x).sum())(x)
    close(gradient, 2 * X)
    ts.grad(lambda x: (x * w).sum())(f64(X))
    assert x.grad is None
    assert w.grad is None


def test_grad_works_where_recording_is_off() -> None:
    with ts.no_grad():
        close(ts.grad(lambda x: (x**3).sum())(f64(X)), 3 * X**2)
        close(ts.grad(ts.grad(lambda x: x**3))(f64(2.0)), 12.0)
        close(ts.jvp(lambda x: x * x, (f64(X),), (f64(Y),))[1], 2 * X * Y)


def test_no_grad_inside_hides_a_part() -> None:
    def f(x: Tensor) -> Tensor:
        with ts.no_grad():
            c = x * x
        return (c * x).sum()

    close(ts.grad(f)(f64(X)), X**2)


# --- through closures -------------------------------------------------------------------------------------------------


def test_a_gradient_penalty_trains_what_the_inner_gradient_closes_over() -> None:
    """The penalty of f(x) = sum(tanh(w x)): sum((w (1 - tanh(w x)^2))^2), by w."""
    w = ts.tensor(Y, requires_grad=True)
    g = ts.grad(lambda x: (w * x).tanh().sum())(f64(X))
    assert g.requires_grad
    (g * g).sum().backward()
    t = np.tanh(Y * X)
    s = 1 - t * t
    close(w.grad, 2 * Y * s * (s + Y * (-2 * t) * s * X), rtol=1e-11)


def test_a_value_closes_over_a_leaf_too() -> None:
    w = ts.tensor(Y, requires_grad=True)
    value, gradient = ts.value_and_grad(lambda x: (w * x * x).sum())(f64(X))
    (value + gradient.sum()).backward()
    close(w.grad, X * X + 2 * X)


def test_the_argument_itself_may_be_on_the_tape() -> None:
    x = ts.tensor(X, requires_grad=True)
    y = x * 2.0
    g = ts.grad(lambda y: (y**3).sum())(y)  # 3 y^2 = 12 x^2
    close(g, 12 * X**2)
    g.sum().backward()
    close(x.grad, 24 * X)


def test_inner_and_outer_variables_are_told_apart() -> None:
    """d/dx [x * d/dy (x + y)] = 1: an inner derivative that took x for y would say 2."""
    close(ts.grad(lambda x: x * ts.grad(lambda y: x + y)(x))(f64(3.0)), 1.0)
    close(ts.grad(lambda x: x * ts.grad(lambda y: x * y)(f64(2.0)))(f64(3.0)), 6.0)
    pushed = ts.jvp(lambda x: x * ts.jvp(lambda y: x + y, (f64(1.0),), (f64(1.0),))[1], (f64(3.0),), (f64(1.0),))[1]
    close(pushed, 1.0)


def test_a_step_of_gradient_descent_is_differentiable() -> None:
    """Learning a rate: after one step on sum(w^2), the loss is (1 - 2 r)^2 sum(w^2)."""

    def after(rate: Tensor) -> Tensor:
        w = f64(X)
        w = w - rate * ts.grad(lambda w: (w * w).sum())(w)
        return (w * w).sum()

    value, slope = ts.value_and_grad(after)(f64(0.1))
    close(value, 0.64 * (X * X).sum())
    close(slope, -4 * 0.8 * (X * X).sum())


# --- vjp, jvp, hvp, jacobian ------------------------------------------------------------------------------------------


def test_vjp_of_a_structure_may_be_pulled_more_than_once() -> None:
    value, pull = ts.vjp(lambda x, y: {"product": x * y, "sum": x.sum()}, f64(X), f64(Y))
    close(value["product"], X * Y)
    close(value["sum"], X.sum())
    for v in (np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.0, 5.0])):
        gx, gy = pull({"product": f64(v), "sum": f64(10.0)})
        close(gx, v * Y + 10)
        close(gy, v * X)


def test_a_pull_back_is_differentiable_in_its_cotangent() -> None:
    _, pull = ts.vjp(lambda x: x * x, f64(X))
    close(ts.jacobian(lambda v: pull(v)[0])(f64(Y)), np.diag(2 * X))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elementwise": lambda x: (x.sin() * x.exp()).tanh(),
    "matmul": lambda x: x @ x.T.tanh() @ x,
    "softmax": lambda x: ts.softmax(x * 2.0, 0) * x,
    "layer norm": lambda x: ts.layer_norm(x) * x,
    "indexing": lambda x: x[ts.tensor([2, 0, 0])] * x[::-1] + x[1:2],
    "reductions": lambda x: x.max(axis=1, keepdims=True) * x.mean() + x.cumsum(0) * ts.prod(x, 0),
    "shapes": lambda x: ts.concatenate([x.T.reshape(2, 6), ts.pad(x.reshape(2, 6)[:, 1:-1] ** 2, ((1, 1),))]),
    "loss": lambda x: ts.cross_entropy(x, ts.tensor([0, 3, 1]), label_smoothing=0.1, reduction="none"),
    "loop": lambda x: ts.scan(lambda h, t: ((h * 0.5 + t).tanh(), h * t), x[0], x)[1],
    "checkpoint": lambda x: ts.checkpoint(lambda x: (x * x).sin() + x, x) * x,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp_against_differences_and_against_vjp(name: str, rng: np.random.Generator) -> None:
    f = FUNCTIONS[name]
    x, d = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    value, pushed = ts.jvp(f, (f64(x),), (f64(d),))
    close(value, f(f64(x)))
    h = 1e-3

    def at(t: float) -> Any:
        return f(f64(x + t * d)).numpy()

    close(pushed, (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h), rtol=1e-7, atol=1e-8)
    v = rng.normal(size=value.shape)
    pulled = ts.vjp(f, f64(x))[1](f64(v))[0]
    np.testing.assert_allclose((pushed.numpy() * v).sum(), (pulled.numpy() * d).sum(), rtol=1e-10, atol=1e-12)


def test_jvp_of_several_arguments_and_results() -> None:
    (product, constant), (d_product, d_constant) = ts.jvp(
        lambda x, p: (x * p["y"], f64(5.0)), (f64(X), {"y": f64(Y)}), (f64(Y), {"y": f64(X)})
    )
    close(product, X * Y)
    close(d_product, Y * Y + X * X)
    close(constant, 5.0)
    close(d_constant, 0.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_hvp_against_the_hessian_by_differences(name: str, rng: np.random.Generator) -> None:
    f = FUNCTIONS[name]
    x, v = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))

    def loss(x: Tensor) -> Tensor:
        return (f(x) ** 2).sum()

    def gradient(x: Any) -> Any:
        return ts.grad(loss)(f64(x)).numpy().ravel()

    h = 1e-3
    hessian = np.empty((12, 12))
    for i in range(12):
        e = np.zeros(12)
        e[i] = h
        e = e.reshape(3, 4)
        hessian[i] = (8 * (gradient(x + e) - gradient(x - e)) - (gradient(x + 2 * e) - gradient(x - 2 * e))) / (12 * h)
    scale = np.abs(hessian).max()
    np.testing.assert_allclose(hessian, hessian.T, rtol=0, atol=1e-6 * scale)
    close(ts.hvp(loss, (f64(x),), (f64(v),)), (hessian @ v.ravel()).reshape(3, 4), rtol=1e-5, atol=1e-6 * scale)


def test_hvp_of_several_arguments() -> None:
    """The Hessian of sum(x^2 y): [2 y, 2 x; 2 x, 0]."""
    hx, hy = ts.hvp(lambda x, y: (x * x * y).sum(), (f64(X), f64(Y)), (f64(Y), f64(X)))
    close(hx, 2 * Y * Y + 2 * X * X)
    close(hy, 2 * X * Y)


def test_jacobian_of_a_linear_map_and_its_shape() -> None:
    A = np.arange(6.0).reshape(2, 3)
    close(ts.jacobian(lambda x: f64(A) @ x)(f64(X)), A)
    close(ts.jacobian(lambda y, x: f64(A) @ x * y, argnums=1)(f64(2.0), f64(X)), 2 * A)
    J = ts.jacobian(lambda x: f64(A) @ x)(f64(np.ones((3, 2))))
    close(J, np.einsum("ij,kl->ikjl", A, np.eye(2)))
    assert ts.jacobian(lambda x: x[:0])(f64(X)).shape == (0, 3)


def test_hessian_as_a_jacobian_of_a_gradient() -> None:
    A = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, -1.0], [4.0, 0.0, 1.0]])
    close(ts.jacobian(ts.grad(lambda x: x @ f64(A) @ x))(f64(X)), A + A.T)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: ts.vjp(lambda x: x, f64(X))[1](f64([1.0, 2.0])), ShapeError, r"cotangent has shape \(2,\).*\(3,\)"),
        (lambda: ts.vjp(lambda x: (x, x), f64(X))[1](f64(X)), ShapeError, r"cotangent has the structure .* the value"),
        (lambda: ts.jvp(lambda x: x, (f64(X),), (f64(X), f64(X))), ShapeError, "tangents have the structure"),
        (lambda: ts.jvp(lambda x: x, (f64(X),), (f64(1.0),)), ShapeError, r"tangent has shape \(\), its argument \(3,\)"),
        (lambda: ts.jacobian(lambda x: (x, x))(f64(X)), GraphError, "one tensor, got tuple"),
        (lambda: ts.grad(lambda x: 1.0)(f64(X)), GraphError, "returns one number, got float"),
        (lambda: ts.grad(lambda x: x.sum())(ts.tensor([1, 2])), DTypeError, "argument 0 has dtype int64"),
        (lambda: ts.check_grads(lambda x: x, [ts.tensor([1])]), DTypeError, "no floating-point argument"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


# --- checkpoint -------------------------------------------------------------------------------------------------------


def _block(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w).tanh() * x.sigmoid() + x


def test_checkpoint_changes_nothing(rng: np.random.Generator) -> None:
    """Values, first and second order: of the argument and of what is closed over."""
    x0, w0 = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))

    def run(around: Callable[..., Any]) -> list[Any]:
        x, w = ts.tensor(x0, requires_grad=True), ts.tensor(w0, requires_grad=True)
        h = x * 1.0
        for _ in range(3):
            h = around(lambda h: _block(h, w), h)
        loss = (h * h).sum()
        loss.backward(create_graph=True)
        first = [x.grad, w.grad]
        x.grad = w.grad = None
        (first[0].tanh().sum() + (first[1] * first[1]).sum()).backward()  # type: ignore[union-attr,operator]
        return [loss, *first, x.grad, w.grad]

    for ours, expected in zip(run(ts.checkpoint), run(lambda f, *args: f(*args)), strict=True):
        close(ours, expected, rtol=1e-10)


def test_checkpoint_of_structures_and_of_results_that_are_not_used() -> None:
    x = ts.tensor(X, requires_grad=True)
    out = ts.checkpoint(lambda tree, k: {"a": tree[0] * k, "b": tree[0].exp(), "c": tree[1]}, (x, f64(Y)), 3.0)
    out["a"].sum().backward()
    close(x.grad, np.full(3, 3.0))
    assert not out["c"].requires_grad
    close(out["b"], np.exp(X))


def test_checkpoint_inside_checkpoint() -> None:
    x = ts.tensor(X, requires_grad=True)
    ts.checkpoint(lambda x: ts.checkpoint(lambda y: (y * y).sin(), x).exp(), x).sum().backward()
    close(x.grad, np.exp(np.sin(X * X)) * np.cos(X * X) * 2 * X)


def test_checkpoint_draws_the_same_dropout_mask_again() -> None:
    def run(around: Callable[..., Any]) -> tuple[Any, Any, Any]:
        ts.manual_seed(5)
        x = ts.ones(1000, dtype=ts.float64, requires_grad=True)
        y = around(lambda x: ts.dropout(x, 0.5) * x, x)
        between = ts.random.rand(3)  # what is drawn afterwards is not drawn again
        y.sum().backward()
        after = ts.random.rand(3)
        return y, x.grad, [between, after]

    y, gradient, drawn = run(ts.checkpoint)
    close(gradient, 2 * y.numpy())
    plain = run(lambda f, *args: f(*args))
    close(y, plain[0])
    close(gradient, plain[1])
    for ours, expected in zip(drawn, plain[2], strict=True):
        np.testing.assert_array_equal(ours.numpy(), expected.numpy())


def test_checkpoint_in_a_second_backward() -> None:
    x = ts.tensor(X, requires_grad=True)
    loss = ts.checkpoint(lambda x: x**3, x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    close(x.grad, 6 * X**2)
    with pytest.raises(GraphError, match="walked before"):
        loss.backward()


def test_checkpoint_keeps_less() -> None:
    """Of a hundred steps in ten blocks: ten arguments, not two hundred intermediate results; and no more than a block."""
    unit = 8 * 10_000

    def peaks(around: Callable[..., Any]) -> tuple[float, float]:
        def block(h: Tensor) -> Tensor:
            for _ in range(10):
                h = (h * h).tanh()
            return h

        x = ts.ones(10_000, dtype=ts.float64, requires_grad=True)
        gc.collect()
        tracemalloc.start()
        try:
            start = tracemalloc.get_traced_memory()[0]
            h = x
            for _ in range(10):
                h = around(block, h)
            loss = h.sum()
            del h
            held = tracemalloc.get_traced_memory()[0] - start
            tracemalloc.reset_peak()
            loss.backward()
            return held / unit, (tracemalloc.get_traced_memory()[1] - start) / unit
        finally:
            tracemalloc.stop()

    held, peak = peaks(ts.checkpoint)
    assert held < 12
    assert peak < 12 + 20
    assert peaks(lambda f, x: f(x))[0] > 99


def test_checkpoint_of_constants_is_a_call() -> None:
    assert ts.checkpoint(lambda x: x * 2, f64(X)).node is None
    x = ts.tensor(X, requires_grad=True)
    with ts.no_grad():
        assert ts.checkpoint(lambda x: x * 2, x).node is None


# --- check_grads ------------------------------------------------------------------------------------------------------


def _wrong(rule: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    row = Primitive("mul", TABLE["mul"].shape, (rule, None))
    return lambda x: apply(row, (x, 2.0))


def test_check_grads_catches_2_001_for_2() -> None:
    ts.check_grads(_wrong(lambda g: 2.0 * g), [f64(X)])
    with pytest.raises(AssertionError, match=r"order 1 with respect to argument 0.*VJP says.*differences say"):
        ts.check_grads(_wrong(lambda g: 2.001 * g), [f64(X)])


def test_check_grads_catches_a_wrong_second_order() -> None:
    """Right by the first, wrong by the second: a rule that takes its own factor for a constant."""
    row = Primitive("wrong", TABLE["sin"].shape, (lambda F, g, x: g * F.cos(x if not isinstance(x, Tensor) else x.detach()),))
    table = ts.current_backend().table
    table["wrong"] = table["sin"]
    try:
        f = lambda x: apply(row, (x,))
        ts.check_grads(f, [f64(X)])
        with pytest.raises(AssertionError, match="order 2"):
            ts.check_grads(f, [f64(X)], order=2)
    finally:
        del table["wrong"]


def test_check_grads_names_the_argument() -> None:
    bad = _wrong(lambda g: -g)
    with pytest.raises(AssertionError, match=r"argument 1\.w"):
        ts.check_grads(lambda x, p: x * bad(p["w"]), [f64(X), {"w": f64(Y)}])


def test_check_grads_takes_float32_and_integers() -> None:
    ts.check_grads(lambda x, i: x[i].tanh(), [ts.tensor([0.5, 1.0]), ts.tensor([1, 0, 1])], order=2)


def test_check_grads_sees_a_nan() -> None:
    with pytest.raises(AssertionError, match="nan"):
        ts.check_grads(_wrong(lambda g: g * float("nan")), [f64(X)])
