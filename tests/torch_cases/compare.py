"""When two arrays are the same numbers, to a dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

RELATIVE = {np.dtype(np.float64): 1e-10, np.dtype(np.float32): 1e-5}


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], dtype: Any, each: bool = False) -> None:
    """Every array of `got` equals its namesake in `want`.

    Integers and booleans are equal exactly. Floats differ by at most the dtype's tolerance times the largest finite
    magnitude wanted, plus ten roundings of one, which is what a true zero computed as a difference of
    ordinary numbers may leave; with `each`, every element is held to its own magnitude. Infinities and NaN stand at the
    same places. Where PyTorch answers a float64 question in float32 (a number made of integers), that is the dtype
    wanted.
    """
    assert sorted(got) == sorted(want), f"results are {sorted(got)}, but should be {sorted(want)}"
    for name, expected in want.items():
        actual = np.asarray(got[name])
        assert actual.shape == expected.shape, f"{name} has shape {actual.shape}, but should have {expected.shape}"
        if expected.dtype.kind != "f":
            assert actual.dtype == expected.dtype, f"{name} is {actual.dtype}, but should be {expected.dtype}"
            np.testing.assert_array_equal(actual, expected, err_msg=name)
            continue
        wanted = expected.dtype if expected.dtype == np.float32 else np.dtype(dtype)
        assert actual.dtype == wanted, f"{name} is {actual.dtype}, but should be {wanted}"
        relative = RELATIVE[wanted]
        magnitude = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
        absolute = relative * magnitude + 10 * np.finfo(wanted).eps
        tolerance = {"rtol": relative, "atol": 0} if each else {"rtol": 0, "atol": absolute}
        np.testing.assert_allclose(actual.astype(np.float64), expected, err_msg=name, **tolerance)
