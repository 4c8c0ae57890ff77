"""tinyseq: a small autodiff engine with a pluggable backend, for sequence models."""

from __future__ import annotations

from tinyseq import tensor as _t
from tinyseq.tensor import tensor
