"""All that a backend has to show: tinyseq's conformance suite, run on it."""

from __future__ import annotations

import tinyseq as ts
from tinyseq.testing import BackendConformance


class TestStrict(BackendConformance):
    backend = "strict"


def test_arrays_are_the_librarys_own() -> None:
    import array_api_strict as xp

    with ts.use_backend("strict"):
        x = ts.tensor([0.5, 2.0], requires_grad=True)
        y = x * x
        y.sum().backward()
    assert type(y.data) is type(x.grad.data) is type(xp.empty(0))
    assert y.data.dtype == x.grad.data.dtype == xp.float32
    assert (y.tolist(), x.grad.tolist()) == ([0.25, 4.0], [1.0, 4.0])
