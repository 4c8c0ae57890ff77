"""A backend on array-api-strict, which allows what the standard promises and nothing more: no NumPy-ism runs on it."""

from __future__ import annotations

from typing import Any, ClassVar

import array_api_strict
import numpy as np

from tinyseq.backend import Backend

__all__ = ["StrictBackend"]


class StrictBackend(Backend):
    """The base class as it is."""

    name: ClassVar[str] = "strict"
    generator_family: ClassVar[str] = "numpy"

    def __init__(self) -> None:
        self.xp = array_api_strict
        self.array_type = type(array_api_strict.asarray(0.0))
        super().__init__()

    def to_numpy(self, array: Any) -> np.ndarray[Any, Any]:
        return np.asarray(array)
