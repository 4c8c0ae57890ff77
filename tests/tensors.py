"""What tests of layers say again and again: numbers to put in, the arrays that came out, and that two results are one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import tinyseq as ts
from tinyseq import nn
from tinyseq.tree import flatten


def draw(rng: np.random.Generator, *shape: int) -> ts.Tensor:
    return ts.tensor(rng.standard_normal(shape))


def array(x: Any) -> np.ndarray:
    return x.detach().numpy()


def parts(tree: Any) -> list[np.ndarray]:
    return [array(leaf) for leaf in flatten(tree)[0]]


def close(a: Any, b: Any, rtol: float = 1e-10) -> None:
    for x, y in zip(parts(a), parts(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13)


def spread(module: Any) -> Any:
    """Weights that start at 0 or 1 elsewhere, so that a test can see them."""
    for name, parameter in module.named_parameters():
        if name.startswith(("norm", "h_0", "c_0")):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module


def put(module: Any, names: Sequence[str], weights: Iterable[ts.Tensor]) -> None:
    """Tensors in the place of parameters, so that their gradients can be asked for."""
    holders = dict(module.named_modules())
    for name, weight in zip(names, weights, strict=True):
        holder, _, last = name.rpartition(".")
        setattr(holders[holder], last, weight)
