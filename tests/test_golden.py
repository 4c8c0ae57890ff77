"""tinyseq against PyTorch's recorded values and gradients, without PyTorch (see golden/make.py)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_cases import GOLDEN_SIZES, GROUPS, Case, assert_same

import tinyseq as ts

BACKENDS = ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.gpu)]
GOLDEN = Path(__file__).parent / "golden"
CASES = [pytest.param(group, case, id=case.name) for group, cases in GROUPS.items() for case in cases]


@cache
def recorded(group: str) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """case -> "in" or "out" -> name -> array."""
    answers: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for key, array in sorted(load_file(GOLDEN / f"{group}.safetensors").items()):
        case, side, name = key.split("/", 2)
        wide = array.astype(np.float64) if array.dtype == np.float32 and side == "in" else array
        answers.setdefault(case, {"in": {}, "out": {}})[side][name] = wide
    return answers


@pytest.mark.filterwarnings("ignore:target .* its loss is infinite:UserWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("group", "case"), CASES)
def test_equals_the_recorded_answer(group: str, case: Case, dtype: type, backend: str) -> None:
    golden = recorded(group)[case.name]
    with ts.use_backend(backend):
        answer = case.run_tinyseq(golden["in"], GOLDEN_SIZES, dtype)
    assert_same(answer, golden["out"], dtype, case.each)


def test_files_hold_the_cases_and_no_others() -> None:
    for group, cases in GROUPS.items():
        assert sorted(recorded(group)) == sorted(case.name for case in cases), "run tests/golden/make.py"


def test_a_small_error_is_caught() -> None:
    golden = recorded("functions")["tanh"]["out"]
    for dtype, error in [(np.float64, 1e-9), (np.float32, 1e-4)]:
        wrong = {name: (array * (1 + error)).astype(dtype) for name, array in golden.items()}
        with pytest.raises(AssertionError, match="Not equal"):
            assert_same(wrong, golden, dtype)
