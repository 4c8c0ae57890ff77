"""tinyseq against PyTorch itself, second derivatives included, on sizes and numbers that no golden file holds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch_cases import GROUPS, PRODUCTS, Case, Sizes, assert_same

import tinyseq as ts

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning"),
    pytest.mark.filterwarnings("ignore:target .* its loss is infinite:UserWarning"),
]

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
@settings(
    max_examples=10,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # nothing to shrink: sizes are small, numbers come from a seed
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_equals_torch(case: Case, backend: str, data: st.DataObject) -> None:
    sizes = data.draw(sizes_from(case), label="sizes")
    arrays = case.draw(np.random.default_rng(data.draw(st.integers(0, 2**32), label="seed")), sizes)
    want = case.run_torch(arrays, sizes, case.twice)
    once = {name: array for name, array in want.items() if not name.startswith("grad2/")}
    with ts.use_backend(backend):
        # Second derivatives in float64 only: those of a deep recurrent net magnify the roundings of float32.
        assert_same(case.run_tinyseq(arrays, sizes, np.float64, case.twice), want, np.float64, case.each)
        assert_same(case.run_tinyseq(arrays, sizes, np.float32), once, np.float32, case.each)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cases", [pytest.param(cases, id=name) for name, cases in PRODUCTS.items()])
def test_equals_torch_over_the_product_of_options(cases: Callable[[], list[Case]], backend: str) -> None:
    with ts.use_backend(backend):
        for case in cases():
            rng = np.random.default_rng(zlib.crc32(case.name.encode()))
            sizes = {letter: int(rng.integers(case.least.get(letter, 1), 5)) for letter in LETTERS}
            arrays = case.draw(rng, sizes)
            try:
                assert_same(case.run_tinyseq(arrays, sizes, np.float64), case.run_torch(arrays, sizes), np.float64)
            except Exception as error:
                error.add_note(f"{case} with the sizes {sizes}")
                raise
