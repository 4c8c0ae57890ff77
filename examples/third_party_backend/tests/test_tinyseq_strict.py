"""All that a backend has to show: tinyseq's conformance suite, run on it."""

from __future__ import annotations

import tinyseq as ts
from tinyseq.testing import BackendConformance


class TestStrict(BackendConformance):
    backend = "strict"


def test_arrays_are_the_librarys_own() -> None:
    import array_api_strict as xp

    with ts.use_backend("strict"):
        y = ts.tanh(ts.tensor([1.0, 2.0]))
    assert type(y.data) is type(xp.empty(0))
    assert y.data.dtype == xp.float32
