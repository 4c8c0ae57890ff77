"""What tinyseq and PyTorch are asked, once, for golden files and for the live comparison.

A case draws its own inputs and knows how to run both sides. Each side returns a flat dict of arrays (values and
gradients), so that a golden file, a test and the live comparison treat a function, a layer and an optimizer alike.
"""

from __future__ import annotations

from torch_cases.attention import ATTENTION
from torch_cases.case import GOLDEN_SIZES, Case, Sizes
from torch_cases.compare import assert_same
from torch_cases.functional import FUNCTIONAL
from torch_cases.functions import FUNCTIONS
from torch_cases.layers import LAYERS
from torch_cases.losses import LOSSES
from torch_cases.optimizers import OPTIMIZERS
from torch_cases.products import EVERY_TWO, PRODUCTS
from torch_cases.recurrent import RECURRENT
from torch_cases.seq2seq import SEQ2SEQ
from torch_cases.transformer import TRANSFORMER

GROUPS: dict[str, list[Case]] = {
    "attention": ATTENTION + EVERY_TWO,
    "functions": FUNCTIONS,
    "functional": FUNCTIONAL,
    "layers": LAYERS,
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "recurrent": RECURRENT,
    "seq2seq": SEQ2SEQ,
    "transformer": TRANSFORMER,
}

__all__ = ["GOLDEN_SIZES", "GROUPS", "PRODUCTS", "Case", "Sizes", "assert_same"]
