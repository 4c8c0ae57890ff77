"""Every backend that is here runs the one suite; array-api-strict stands for any library that follows the standard."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strict_backend import StrictBackend
from tinyseq_numpy import NumpyBackend

from tinyseq.array_api import fill_key
from tinyseq.backend import Backend, get_backend, use_backend
from tinyseq.errors import ShapeError
from tinyseq.primitives import TABLE, Primitive, keepdims_shape
from tinyseq.tensor import Tensor
from tinyseq.testing import CASES, SLOPES, BackendConformance


class TestNumpy(BackendConformance):
    backend = "numpy"


class TestStrict(BackendConformance):
    backend = StrictBackend()


def test_every_primitive_has_a_case() -> None:
    """Who adds a row to the table adds a case to the list."""
    assert set(TABLE) - {case.primitive for case in CASES} == set()


@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="Numba is not installed")
class TestNumba(BackendConformance):
    backend = "numba"


# --- the checker is checked: what is wrong is caught, and by the test that is there for it ----------------------------


class Suite(BackendConformance):
    """The suite's tests as functions that a test may call."""

    def __init__(self, backend: Backend) -> None:
        self.b = backend

    def fails(self, test: str, primitive: str) -> bool:
        """Whether any case of the primitive fails that test."""
        check, failed = getattr(self, test), 0
        with use_backend(self.b), np.errstate(all="ignore"):
            for case in CASES:
                smooth = case.differentiate and "f" in case.kinds
                if case.primitive == primitive and (smooth or ("vjp" not in test and "order" not in test)):
                    try:
                        check(case)
                    except (AssertionError, ShapeError):
                        failed += 1
        return failed > 0


def _wrong(name: str, *rules: Callable[..., Any]) -> Primitive:
    return Primitive(name, TABLE[name].shape, rules)


def _forgets_the_size_of_an_axis(F: Any, g: Any, x_shape: Any, axis: Any, keepdims: bool) -> Any:
    spread = F.broadcast_to(F.reshape(g, shape=keepdims_shape(x_shape, axis)), shape=x_shape)
    return spread / x_shape[axis[0]] if len(axis) > 1 else spread


def _first_order_only(F: Any, g: Any, out: Any) -> Any:
    out = out.detach() if isinstance(out, Tensor) else out
    return g * (1 - out * out)


def _deaf_to_its_cotangent(F: Any, g: Any, x: Any) -> Any:
    g = g.detach() if isinstance(g, Tensor) else g
    return g * F.cos(x)


def _writes_to_the_cotangent(F: Any, g: Any) -> Any:
    g *= -1
    return g


WRONG_RULES = [
    ("a factor of 2.001 for 2", _wrong("exp", lambda g, out: g * (out * (2.001 / 2))), "test_vjp"),
    ("of a millionth", _wrong("tanh", lambda g, out: g * (1 - out * out) * (1 + 1e-6)), "test_vjp"),
    ("a wrong sign for one argument", _wrong("sub", lambda g: g, lambda g: g), "test_vjp"),
    ("the size of one axis", _wrong("sum", _forgets_the_size_of_an_axis), "test_vjp"),
    ("no reverse", _wrong("cumsum", lambda F, g, axis: F.cumsum(g, axis=axis)), "test_vjp"),
    ("the wrong argument", _wrong("div", lambda g, y: g / y, lambda g, y, out: -(g * out)), "test_vjp"),
    ("half at a tie only", _wrong("abs", lambda F, g, x: F.where(F.ge(x, 0), g, -g)), "test_slope"),
    ("not differentiable again", _wrong("tanh", _first_order_only), "test_second_order"),
    ("deaf to its cotangent", _wrong("sin", _deaf_to_its_cotangent), "test_second_order"),
    ("writes to its cotangent", _wrong("neg", _writes_to_the_cotangent), "test_inputs_unmodified"),
    ("in float64", _wrong("cos", lambda F, g, x: F.cast(-g * F.sin(x), dtype=np.dtype("float64"))), "test_vjp"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "row", "test"), WRONG_RULES, ids=[rule[0] for rule in WRONG_RULES])
def test_a_wrong_rule_is_caught(what: str, row: Primitive, test: str, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = Suite(get_backend("numpy"))
    if test == "test_slope":
        (slope,) = [slope for slope in SLOPES if slope.primitive == row.name and slope.at == (0,)]
        suite.test_slope_at_an_odd_place(slope, "float64")
        monkeypatch.setitem(TABLE, row.name, row)
        with pytest.raises(AssertionError):
            suite.test_slope_at_an_odd_place(slope, "float64")
        return
    assert not suite.fails(test, row.name)
    monkeypatch.setitem(TABLE, row.name, row)
    assert suite.fails(test, row.name)


def _in_place_relu(x: Any) -> Any:
    x[x < 0] = 0
    return x


def _blind_to_strides(x: Any) -> Any:
    return np.exp(np.ravel(x, order="K")).reshape(x.shape)


WRONG_OPERATIONS = [
    ("slightly wrong", "tanh", lambda x: np.tanh(x) * (1 + x.dtype.type(1e-4)), "test_value"),
    ("loses NaN", "exp", lambda x: np.exp(np.where(np.isnan(x), 0, x)), "test_value"),
    ("blind to strides", "exp", _blind_to_strides, "test_value"),
    ("in place", "relu", _in_place_relu, "test_inputs_unmodified"),
    ("always in float64", "sin", lambda x: np.sin(x.astype(np.float64)), "test_shape_and_dtype"),
    ("integers as floats", "mul", lambda x, y: np.multiply(x, y) * 1.0, "test_shape_and_dtype"),
    ("keeps an axis", "max", lambda x, *, axis, keepdims: np.max(x, axis=axis, keepdims=True), "test_shape_and_dtype"),
    ("last index wins", "scatter_add", lambda v, *i, key, shape: _assigned(v, *i, key=key, shape=shape), "test_value"),
    ("ties reversed", "argsort", lambda x, *, axis, descending: _ties_reversed(x, axis, descending), "test_value"),
]  # fmt: skip


def _assigned(values: Any, *indices: Any, key: Any, shape: Any) -> Any:
    total = np.zeros(shape, values.dtype)
    total[fill_key(key, indices)] = values
    return total


def _ties_reversed(x: Any, axis: int, descending: bool) -> Any:
    order = np.argsort(x, axis=axis, kind="stable")
    return np.flip(order, axis) if descending else order


@pytest.mark.parametrize(("what", "name", "operation", "test"), WRONG_OPERATIONS, ids=[op[0] for op in WRONG_OPERATIONS])
def test_a_wrong_operation_is_caught(what: str, name: str, operation: Callable[..., Any], test: str) -> None:
    class Wrong(NumpyBackend):
        def overrides(self) -> dict[str, Callable[..., Any]]:
            return {**super().overrides(), name: operation}

    assert not Suite(NumpyBackend()).fails(test, name)
    assert Suite(Wrong()).fails(test, name)


def test_a_row_without_a_case_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TABLE, "new", Primitive("new", TABLE["neg"].shape, ()))
    with pytest.raises(AssertionError, match="new"):
        test_every_primitive_has_a_case()
