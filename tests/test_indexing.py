"""Indexing reads what NumPy reads, and its gradient puts back where it read from, adding up where an index repeats."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.backend import Backend, get_backend
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.tensor import Tensor

BACKENDS = [get_backend("numpy"), StrictBackend()]
every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)


@st.composite
def keyed(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """A shape, and a key that fits it: integers, slices of either sign, None, Ellipsis, index arrays, masks."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=4))
    key: list[Any] = []
    axis, ellipsis = 0, False
    index_shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, min_side=1, max_side=3))
    while axis < len(shape) or len(key) < 2:
        kinds = ["none"]
        if axis < len(shape):
            kinds += ["integer", "slice", "slice", "array", "stop"]
            if not any(isinstance(k, np.ndarray) for k in key):
                kinds.append("mask")
        if not ellipsis:
            kinds.append("ellipsis")
        kind = draw(st.sampled_from(kinds))
        if kind == "stop" or len(key) > 5:
            break
        if kind == "none":
            key.append(None)
        elif kind == "ellipsis":
            ellipsis = True
            key.append(Ellipsis)
            axis = draw(st.integers(axis, len(shape)))  # how many axes it stands for; what follows must fit the rest
            for size in shape[axis:]:
                entries = st.integers(-size, size - 1)
                array = hnp.arrays(np.int64, index_shape, elements=entries)
                key.append(draw(st.one_of(entries, st.slices(size), array)))
            break
        elif kind == "integer":
            key.append(draw(st.integers(-shape[axis], shape[axis] - 1)))
            axis += 1
        elif kind == "slice":
            key.append(draw(st.slices(shape[axis])))
            axis += 1
        elif kind == "array":
            key.append(draw(hnp.arrays(np.int64, index_shape, elements=st.integers(-shape[axis], shape[axis] - 1))))
            axis += 1
        else:
            count = draw(st.integers(1, len(shape) - axis))
            key.append(draw(hnp.arrays(bool, shape[axis : axis + count])))
            axis += count
            if any(isinstance(k, np.ndarray) for k in key[:-1]):
                break
            rest = len(shape) - axis
            key.extend(draw(st.lists(st.just(slice(None)), max_size=rest)))
            break
    return shape, tuple(key)


def _as_tensors(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(ts.tensor(k) if isinstance(k, np.ndarray) else k for k in key)


def _check(backend: Backend, shape: tuple[int, ...], key: tuple[Any, ...]) -> None:
    values = np.arange(1.0, np.prod(shape, dtype=int) + 1).reshape(shape)
    try:
        expected = values[key]
    except IndexError:  # index arrays that do not broadcast
        with ts.use_backend(backend), pytest.raises((IndexError, ShapeError, ValueError)):
            ts.tensor(values)[_as_tensors(key)]
        return
    with ts.use_backend(backend):
        x = ts.tensor(values, requires_grad=True)
        y = x[_as_tensors(key)]
        np.testing.assert_array_equal(y.numpy(), expected, strict=True)
        v = np.arange(1.0, expected.size + 1).reshape(expected.shape)
        gradient = np.zeros(shape)
        np.add.at(gradient, key, v)
        y.backward(v, create_graph=True)
        assert x.grad is not None
        np.testing.assert_array_equal(x.grad.numpy(), gradient, strict=True)
        x.grad = None
        y.backward(v)
        assert x.grad is not None
        np.testing.assert_array_equal(x.grad.numpy(), gradient, strict=True)


@given(keyed())
def test_any_key_reads_as_numpy_and_scatters_back(drawn: tuple[tuple[int, ...], tuple[Any, ...]]) -> None:
    _check(BACKENDS[0], *drawn)


@given(keyed())
def test_any_key_on_a_library_that_follows_the_standard(drawn: tuple[tuple[int, ...], tuple[Any, ...]]) -> None:
    _check(BACKENDS[1], *drawn)


MASK = np.array([[True, False, True], [False, False, True]])


@every_backend
@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ((2, 3), (MASK,)),
        ((2, 3, 4), (MASK,)),
        ((2, 3), (np.array([True, False]),)),
        ((2, 3), (slice(None), np.array([True, False, True]))),
        ((4, 2, 3), (Ellipsis, MASK)),
        ((2, 3, 2), (Ellipsis, np.array([True, False]))),
        ((2, 3), (np.zeros((2, 3), bool),)),
        ((2, 3), (None, MASK)),
        ((5,), (np.array([0, 0, 0, -5]),)),
        ((5,), (np.array([], int),)),
        ((3, 4), (np.array([[0], [2]]), np.array([1, 1, -1]))),
        ((3, 4, 5), (np.array([0, 2]), slice(None), np.array([1, 1]))),
        ((3, 4, 5), (0, slice(None), np.array([1, 1]))),
        ((3, 4, 5), (slice(None), 0, np.array([1, 1]))),
        ((3, 4, 5), (np.array(1), slice(1, 3))),
        # An Ellipsis between index arrays separates them, also where it stands for no axis.
        ((3, 4, 5), (slice(None), np.array([0, 2]), Ellipsis, np.array([1, 1]))),
        ((3, 4, 5), (slice(None), np.array([0, 2]), Ellipsis, 0)),
        ((3, 4, 5), (slice(None), Ellipsis, np.array([0, 2]), 0)),
        ((3, 4), (np.int64(1), np.int32(-1))),
        ((3,), (np.array([1, 2], np.int32),)),
        ((3,), (np.array([1, 2], np.uint8),)),
    ],
    ids=str,
)
def test_keys_worth_a_name(backend: Backend, shape: tuple[int, ...], key: tuple[Any, ...]) -> None:
    _check(backend, shape, key)


@every_backend
def test_repeated_indices_add_up_and_so_do_several_reads(backend: Backend) -> None:
    with ts.use_backend(backend):
        x = ts.tensor([1.0, 2.0, 3.0], requires_grad=True)
        y = (x[ts.tensor([0, 0, 2])] * ts.tensor([1.0, 10.0, 100.0])).sum() + x[0] + x[1:].sum() + (x * x)[::-1][0]
        y.backward()
        assert x.grad is not None
        assert x.grad.tolist() == [12.0, 1.0, 107.0]


@every_backend
def test_a_tensor_without_axes_read_more_than_once(backend: Backend) -> None:
    with ts.use_backend(backend):
        x = ts.tensor(3.0, requires_grad=True)
        (x[None] * 2 + x[...] * 3 + x[()] * 5 + x * 7 + x[None, None]).sum().backward()
        assert x.grad is not None
        assert x.grad.item() == 18.0


def test_second_order_through_a_look_up() -> None:
    ts.check_grads(lambda x: x[ts.tensor([0, 2, 0])] ** 3, [ts.tensor([1.0, 2.0, 3.0])], order=3)


def test_lists_and_numpy_arrays_are_index_arrays() -> None:
    x = ts.arange(5)
    assert x[[0, 0, 4]].tolist() == [0, 0, 4]
    assert x[np.array([1, 2])].tolist() == [1, 2]
    assert x[[True, False, True, False, False]].tolist() == [0, 2]
    assert x[[]].tolist() == []


def test_what_is_read_is_a_tensor_of_the_same_dtype() -> None:
    for dtype in (ts.bool_, ts.int32, ts.float32, ts.float64):
        assert ts.ones((2, 2), dtype=dtype)[0].dtype == dtype


@every_backend
@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ((0, 0, 0), ShapeError, r"too many indices.*\(2, 3\)"),
        (2, IndexError, "2"),
        ((slice(None), -4), IndexError, "4|bounds"),
        (np.array([0, 5]), IndexError, "bounds"),
        (np.array([True, False, True]), ShapeError, r"boolean index of shape \(3,\).*\(2, 3\)"),
        (np.array([0.5]), DTypeError, "float64.*integers"),
        (True, DTypeError, "True or False"),
        ((Ellipsis, Ellipsis), ShapeError, "one Ellipsis"),
        ("a", DTypeError, "str|U1"),
        (slice(0, 1, 0), (ValueError, ShapeError), "zero"),
        (1.0, DTypeError, "float"),
    ],
    ids=str,
)
def test_keys_that_do_not_fit(backend: Backend, key: Any, error: Any, words: str) -> None:
    with ts.use_backend(backend):
        x = ts.zeros((2, 3))
        with pytest.raises(error, match=words):
            x[ts.tensor(key) if isinstance(key, np.ndarray) else key]


def test_embedding_adds_up_the_rows() -> None:
    table = ts.tensor(np.arange(8.0).reshape(4, 2), requires_grad=True)
    rows = table[ts.tensor([[3, 1], [3, 3]])]
    assert isinstance(rows, Tensor)
    rows.sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[0, 0], [1, 1], [0, 0], [3, 3]]
