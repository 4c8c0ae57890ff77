"""tinyseq against PyTorch itself on sizes and numbers that the golden files do not hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_cases import GROUPS, Case, Sizes, assert_same

import tinyseq as ts

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")]

BACKENDS = ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.gpu)]
CASES = [pytest.param(case, id=case.name) for cases in GROUPS.values() for case in cases]
LETTERS = "BTIHCDKMNV"


def sizes_from(case: Case) -> st.SearchStrategy[Sizes]:
    """Every letter of a shape from its least size up to six."""
    return st.fixed_dictionaries({letter: st.integers(case.least.get(letter, 1), 6) for letter in LETTERS})


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_equals_torch(case: Case, backend: str, data: st.DataObject) -> None:
    sizes = data.draw(sizes_from(case), label="sizes")
    arrays = case.draw(np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed")), sizes)
    want = case.run_torch(arrays, sizes, case.twice)
    for dtype in (np.float64, np.float32):
        with ts.use_backend(backend):
            answer = case.run_tinyseq(arrays, sizes, dtype, case.twice)
        assert_same(answer, want, dtype, case.each)
