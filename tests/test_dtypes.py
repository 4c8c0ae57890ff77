"""Which dtype comes out: the highest kind wins; within a kind tensors decide before zero-dimensional ones and numbers."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.errors import DTypeError
from tinyseq.tensor import Tensor, result_dtype

B, I32, I64, F32, F64 = (np.dtype(name) for name in ("bool", "int32", "int64", "float32", "float64"))


def of(dtype: np.dtype[Any], *shape: int) -> Tensor:
    return ts.ones(shape, dtype=dtype)


# As PyTorch documents it: operands (tensor with axes, tensor without, or number) and the result's dtype.
TABLE = [
    (of(F32, 2), of(F32, 2), F32),
    (of(F32, 2), of(F64, 2), F64),
    (of(I32, 2), of(I64, 2), I64),
    (of(I64, 2), of(F32, 2), F32),
    (of(B, 2), of(I32, 2), I32),
    (of(B, 2), of(F64, 2), F64),
    (of(B, 2), of(B, 2), B),
    # A tensor without axes does not widen one with axes of its kind, and does decide a higher kind.
    (of(F32, 2), of(F64), F32),
    (of(I32, 2), of(I64), I32),
    (of(I64, 2), of(F64), F64),
    (of(I64, 2), of(F32), F32),
    (of(B, 2), of(I64), I64),
    (of(F32), of(F64), F64),
    (of(F64, 2), of(I64), F64),
    # A number does not widen within its kind; of a higher kind it is int64 or float32.
    (of(F32, 2), 1.5, F32),
    (of(F64, 2), 1.5, F64),
    (of(F32), 1.5, F32),
    (of(F32, 2), 1, F32),
    (of(F32, 2), True, F32),
    (of(I32, 2), 1, I32),
    (of(I32, 2), True, I32),
    (of(I32, 2), 1.5, F32),
    (of(I64), 1.5, F32),
    (of(B, 2), 1, I64),
    (of(B, 2), 1.5, F32),
    (of(B, 2), True, B),
]


def _name(value: Any) -> str:
    return f"{value.dtype}{value.shape}" if isinstance(value, Tensor) else repr(value)


@pytest.mark.parametrize(("x", "y", "expected"), TABLE, ids=[f"{_name(x)} {_name(y)}" for x, y, _ in TABLE])
def test_promotion(x: Any, y: Any, expected: np.dtype[Any]) -> None:
    assert result_dtype(x, y) == expected
    assert result_dtype(y, x) == expected
    for left, right in ((x, y), (y, x)):
        if expected != B:
            assert (left + right).dtype == expected
            assert (left * right).dtype == expected
            assert ts.maximum(left, right).dtype == expected
        assert ts.where(of(B, 2), left, right).dtype == expected
        assert (left / right).dtype == (expected if expected.kind == "f" else F32)
        assert (left == right).dtype == B
        assert (left < right).dtype == B


def test_promotion_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    for x, y, expected in TABLE:
        theirs = [torch.ones(t.shape, dtype=getattr(torch, t.dtype.name)) if isinstance(t, Tensor) else t for t in (x, y)]
        assert str(torch.result_type(*theirs)) == f"torch.{expected.name}"


def test_numpy_arrays_and_scalars_keep_their_dtype() -> None:
    x = of(F32, 2)
    assert (x + np.ones(2)).dtype == F64
    assert (np.ones(2) + x).dtype == F64
    assert (np.ones(2, np.float32) * x).dtype == F32
    assert (x * np.float64(2)).dtype == F32  # a scalar is a tensor without axes
    assert isinstance(np.ones(2) - x, Tensor)
    assert (of(I64, 2) + np.int32(1)).dtype == I64


def test_what_new_tensors_are() -> None:
    assert ts.tensor([1.0]).dtype == F32
    assert ts.tensor([1]).dtype == I64
    assert ts.tensor([True]).dtype == B
    assert ts.tensor(np.ones(2)).dtype == F64
    assert ts.tensor([np.float64(1), np.float64(2)]).dtype == F64
    assert ts.tensor([1, 2.5]).dtype == F32
    assert ts.tensor([]).dtype == F32
    assert ts.tensor([1], dtype=ts.float64).dtype == F64
    assert ts.tensor(0.1, dtype=ts.float64).item() == 0.1  # not by way of float32
    assert ts.as_tensor([0.1], dtype="float64").tolist() == [0.1]
    assert ts.tensor(2**53 + 1).item() == 2**53 + 1
    assert ts.tensor(-1.7, dtype=ts.int64).item() == -1
    assert ts.tensor([ts.tensor(1.0), ts.tensor(2.0)]).dtype == F32
    assert ts.zeros(2).dtype == F32
    assert ts.arange(3).dtype == I64
    assert ts.full((2,), 1).dtype == I64


@pytest.mark.parametrize("name", ["exp", "log", "sqrt", "tanh", "sigmoid", "sin", "cos", "erf", "expm1", "log1p"])
def test_functions_of_integers_are_float32(name: str) -> None:
    for x in (ts.tensor([1, 2]), ts.tensor([True]), ts.tensor([1], dtype=ts.int32)):
        y = getattr(ts, name)(x)
        assert y.dtype == F32
        np.testing.assert_array_equal(y.numpy(), getattr(ts, name)(x.astype(ts.float32)).numpy())


def test_reductions() -> None:
    ints, bools = ts.tensor([1, 2], dtype=ts.int32), ts.tensor([True, True])
    assert (ints.sum().dtype, ints.sum().item()) == (I64, 3)
    assert (bools.sum().dtype, bools.sum().item()) == (I64, 2)
    assert ints.mean().dtype == F32
    assert ints.max().dtype == I32
    assert ints.cumsum(0).dtype == I64
    assert ts.tensor([0.0, 1.0]).all().dtype == B
    assert ts.tensor([0.0, 1.0]).argmax().dtype == I64
    assert ts.zeros(3, dtype=ts.float64).mean().dtype == F64


def test_integer_arithmetic_stays_whole() -> None:
    x = ts.tensor([7, -7])
    assert (x // 2).tolist() == [3, -4]
    assert (x % 3).tolist() == [1, 2]
    assert (x**2).tolist() == [49, 49]
    assert (x * 3 - 1).tolist() == [20, -22]
    assert (x / 2).tolist() == [3.5, -3.5]
    assert (2 - x).dtype == I64
    assert abs(x).tolist() == [7, 7]
    assert ts.maximum(x, 0).tolist() == [7, 0]


def test_clip_with_bounds_of_a_higher_kind() -> None:
    """A bound of 0.5 on integers gives floats, as in PyTorch, and does not turn into 0."""
    x = ts.tensor([-2, 0, 2])
    assert x.clip(-1, 1).dtype == I64
    assert x.clip(-1, 1).tolist() == [-1, 0, 1]
    assert x.clip(-0.5, 0.5).dtype == F32
    assert x.clip(-0.5, 0.5).tolist() == [-0.5, 0, 0.5]
    assert ts.ones(2).clip(0, 2).dtype == F32


def test_logic_takes_truth() -> None:
    x, y = ts.tensor([0.0, 2.0]), ts.tensor([1, 0])
    assert (x & y).tolist() == [False, False]
    assert (x | y).tolist() == [True, True]
    assert (~ts.tensor([True, False])).tolist() == [False, True]
    assert (ts.tensor([True, False]) ^ True).tolist() == [False, True]


@pytest.mark.parametrize("op", [operator.add, operator.mul, operator.sub, operator.truediv, operator.pow])
def test_gradients_pass_promotion(op: Any) -> None:
    """Each gradient has its own tensor's dtype, and the value that float64 gives."""
    x, y = (ts.tensor([1.5, 2.5], dtype=d, requires_grad=True) for d in (ts.float32, ts.float64))
    op(x, y).sum().backward()
    a, b = (ts.tensor([1.5, 2.5], dtype=ts.float64, requires_grad=True) for _ in range(2))
    op(a, b).sum().backward()
    for narrow, wide in ((x, a), (y, b)):
        assert narrow.grad is not None
        assert wide.grad is not None
        assert narrow.grad.dtype == narrow.dtype
        np.testing.assert_allclose(narrow.grad.numpy(), wide.grad.numpy(), rtol=1e-6)


def test_float16_where_the_backend_has_it() -> None:
    x = ts.tensor([1.0, 2.0], dtype=ts.float16, requires_grad=True)
    (x * x + 1.5).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == ts.float16
    assert x.grad.tolist() == [2.0, 4.0]
    with ts.use_backend(StrictBackend()), pytest.raises(DTypeError, match=r"strict.*float16.*float32"):
        ts.zeros(2, dtype=ts.float16)


@pytest.mark.parametrize("value", [1j, "a", None, object(), [1, "a"], np.array([1j]), np.array(["a"]), np.array([None])])
def test_what_is_not_a_number(value: Any) -> None:
    with pytest.raises(DTypeError, match=r"dtype|cannot make a tensor"):
        ts.tensor(value)


def test_scalars_out() -> None:
    assert float(ts.tensor(1.5)) == 1.5
    assert int(ts.tensor(3)) == 3
    assert bool(ts.tensor([True]))
    assert [10, 20, 30][ts.tensor(1)] == 20
    assert ts.tensor(2).item() == 2
    assert isinstance(ts.tensor(2.0).item(), float)


def test_out_to_numpy_is_read_only_and_in_its_dtype() -> None:
    x = ts.ones(2)
    with pytest.raises(ValueError, match="read-only"):
        x.numpy()[0] = 2
    assert np.asarray(x).dtype == np.float32
    assert np.asarray(x, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.from_dlpack(x), [1.0, 1.0])
