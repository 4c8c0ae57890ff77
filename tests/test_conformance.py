"""Every backend that is here runs the one suite; array-api-strict stands for any library that follows the standard."""

from __future__ import annotations

import importlib.util

import pytest
from strict_backend import StrictBackend

from tinyseq.errors import BackendError
from tinyseq.backend import get_backend
from tinyseq.primitives import TABLE
from tinyseq.testing import CASES, BackendConformance


class TestNumpy(BackendConformance):
    backend = "numpy"


class TestStrict(BackendConformance):
    backend = StrictBackend()


def test_every_primitive_has_a_case() -> None:
    """Who adds a row to the table adds a case to the list."""
    assert set(TABLE) - {case.primitive for case in CASES} == set()
