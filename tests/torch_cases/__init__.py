"""What tinyseq and PyTorch are asked, once, for golden files and for the live comparison.

A case draws its own inputs and knows how to run both sides. Each side returns a flat dict of arrays (values and
gradients), so that a golden file, a test and the live comparison treat a function, a layer and an optimizer alike.
"""

from __future__ import annotations

from torch_cases.case import GOLDEN_SIZES, Case, Sizes
from torch_cases.compare import assert_same
from torch_cases.functional import FUNCTIONAL
from torch_cases.functions import FUNCTIONS
from torch_cases.layers import LAYERS
from torch_cases.optimizers import OPTIMIZERS

GROUPS: dict[str, list[Case]] = {
    "functions": FUNCTIONS,
    "functional": FUNCTIONAL,
    "layers": LAYERS,
    "optimizers": OPTIMIZERS,
}

__all__ = ["GOLDEN_SIZES", "GROUPS", "Case", "Sizes", "assert_same"]
