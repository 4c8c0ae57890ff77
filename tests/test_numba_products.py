"""The Numba backend's matrix products: NumPy's BLAS, a share of the result a thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from tinyseq_numba import products

SHAPES = [
    ((40, 30), (30, 7)), ((7, 40), (40, 30)), ((3, 20, 6), (6, 25)), ((4, 2, 10, 8), (4, 2, 8, 10)), ((5, 10, 8), (1, 8, 10)),
    ((1, 10, 8), (5, 8, 10)), ((10, 8), (5, 8, 10)), ((2, 1, 10, 8), (1, 3, 8, 10)), ((1, 90), (90, 50)), ((90, 90), (90, 1)),
    ((1, 1), (1, 1)), ((0, 5), (5, 3)), ((20, 0), (0, 30)), ((5, 0, 4), (4, 3)), ((2, 3, 0), (0, 4)),
]  # fmt: skip


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every product is shared among three threads, and counted."""
    calls: list[int] = []
    together = products.together

    def counted(function: Any, shares: Any) -> None:
        calls.append(len(shares))
        together(function, shares)

    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "SHARED", 0)
    monkeypatch.setattr(products, "threads", lambda: 3)
    monkeypatch.setattr(products, "together", counted)
    if products.blas() is None:
        pytest.skip("NumPy's BLAS here is no OpenBLAS with threads of its own")
    return calls


@pytest.mark.parametrize(("left", "right"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_shares_make_the_whole_product(rng: Any, shared: Any, left: Any, right: Any, dtype: str, order: Any) -> None:
    x, y = rng.standard_normal(left).astype(dtype, order=order), rng.standard_normal(right).astype(dtype, order=order)
    out, want = products.matmul(x, y), np.matmul(x.astype("float64"), y.astype("float64"))
    assert out.dtype == x.dtype
    assert out.shape == want.shape
    np.testing.assert_allclose(out, want, atol=1e-5 if dtype == "float32" else 1e-13)
    assert shared or max(want.shape) < 2 or len(want.shape) > 2


def test_large_products_are_shared_and_small_ones_are_not(rng: Any, shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(products, "threads", lambda: 2)
    monkeypatch.setattr(products, "_large", lambda x, y, work: (x, work))
    x, small = np.ones((512, 128), "float32"), np.ones((16, 16), "float32")
    assert products.matmul(x, x.T)[1] == 512 * 512 * 128
    assert products.matmul(small, small).tolist() == np.full((16, 16), 16.0).tolist()


def test_blas_has_one_thread_within_and_as_many_as_before_after(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    library = products.blas()
    before = library.get_num_threads()
    with products.alone(), products.alone():
        assert library.get_num_threads() == 1
    assert library.get_num_threads() == before
    monkeypatch.setattr(products, "_large", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        products.matmul(np.ones((2, 2)), np.ones((2, 2)))
    assert library.get_num_threads() == before


def test_many_callers_at_once(rng: Any, shared: Any) -> None:
    library = products.blas()
    before = library.get_num_threads()
    x, y = rng.standard_normal((64, 48)), rng.standard_normal((48, 64))
    found: list[Any] = []

    def work() -> None:
        found.extend(products.matmul(x, y) for _ in range(20))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 80
    assert all(np.array_equal(out, found[0]) for out in found)
    assert library.get_num_threads() == before


def test_errstate_holds_in_every_thread(shared: Any) -> None:
    x = np.full((6, 2), 1e300)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        products.matmul(x, x.T)
    with np.errstate(over="ignore"):
        assert np.isinf(products.matmul(x, x.T)).all()
