"""How everything here is compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

from numba import njit

__all__ = ["compiled"]

# Without NumPy's rules for division each one is checked, which no loop is vectorised around. Used as a decorator, with
# further options or without.
compiled: Any = partial(njit, error_model="numpy", nogil=True, cache=True)
