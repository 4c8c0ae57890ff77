"""Write the golden files: PyTorch's values and gradients of every case, in float64.

    python tests/golden/make.py            (needs torch; running it twice gives the same bytes)

A file holds, for each case, `name/in/...` (what both libraries are given; float32, which holds it exactly) and
`name/out/...` (PyTorch's answer). The tests read the inputs from the file: a stream of random numbers may change with
NumPy's version, a golden file may not.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from torch_cases import GOLDEN_SIZES, GROUPS, Case  # noqa: E402


def record(case: Case) -> dict[str, np.ndarray]:
    """One case's inputs and PyTorch's answer."""
    # The seed follows from the name, so that a new case changes no other.
    arrays = case.draw(np.random.default_rng(zlib.crc32(case.name.encode())), GOLDEN_SIZES)
    answer = case.run_torch(arrays, GOLDEN_SIZES)
    given = {}
    for name, array in arrays.items():
        narrow = array.astype(np.float32) if array.dtype.kind == "f" else array
        np.testing.assert_array_equal(narrow, array, err_msg=f"{case.name}: {name} does not fit float32")
        given[f"{case.name}/in/{name}"] = narrow
    return given | {f"{case.name}/out/{name}": array for name, array in answer.items()}


def main() -> None:
    import torch

    warnings.filterwarnings("ignore", "reduction: 'mean' divides")  # kl_div's mean is wanted as it is
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for group, cases in GROUPS.items():
        names = [case.name for case in cases]
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        assert not twice, f"{group} has a name twice: {twice}"
        entries: dict[str, np.ndarray] = {}
        for case in cases:
            entries |= record(case)
        path = HERE / f"{group}.safetensors"
        save_file({name: np.ascontiguousarray(array).reshape(array.shape) for name, array in entries.items()}, path)
        print(f"{path.name}: {len(cases)} cases, {len(entries)} arrays, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
