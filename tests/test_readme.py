"""The README's example prints what it says."""

from __future__ import annotations

import doctest
from pathlib import Path


def test_the_example_prints_what_it_says() -> None:
    result = doctest.testfile(str(Path(__file__).parents[1] / "README.md"), module_relative=False)
    assert (result.failed, result.attempted > 5) == (0, True)
