"""A tinyseq backend on array-api-strict, found by tinyseq through this package's entry point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinyseq.array_api import fill_key
from tinyseq.backend import Array, Backend

try:
    import array_api_strict as xp
except ImportError:
    xp = None

__all__ = ["StrictBackend"]


class StrictBackend(Backend):
    """Every operation on array-api-strict's arrays, which live on the host."""

    name = "strict"
    install = "pip install array-api-strict"
    generator_family = "numpy"  # random numbers are drawn by NumPy, so a seed gives here what it gives there

    def __init__(self) -> None:
        self.xp = xp
        self.array_type = type(xp.empty(0))
        super().__init__()

    @classmethod
    def unavailable(cls) -> str | None:
        return "array-api-strict is not installed" if xp is None else None

    def overrides(self) -> dict[str, Callable[..., Array]]:
        return {"scatter_add": scatter_add}


def scatter_add(values: Array, *indices: Array, key: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
    """Zeros of ``shape`` with ``values`` added where the key points, by NumPy; the standard would need a Python loop."""
    total = np.zeros(shape, dtype=np.asarray(values).dtype)
    np.add.at(total, fill_key(key, tuple(map(np.asarray, indices))), np.asarray(values))
    return xp.asarray(total)
