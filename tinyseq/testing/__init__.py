"""What the tests of any backend import: one list of cases, and the suite that runs it.

>>> from tinyseq.testing import BackendConformance
>>> class TestMine(BackendConformance):
...     backend = "numpy"

Run by pytest, such a class checks every primitive, each dtype and layout of memory, and its derivatives of first and
second order.
"""

from __future__ import annotations

from tinyseq.testing.cases import CASES, SLOPES, Case, Slope
from tinyseq.testing.conformance import BackendConformance, directional_derivative

__all__ = ["CASES", "SLOPES", "BackendConformance", "Case", "Slope", "directional_derivative"]
