"""How large the weights and their gradients are: what to look at when training goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyseq.tensor import Tensor

__all__ = ["arrays_of", "norms"]


def arrays_of(named: Iterable[tuple[str, Tensor]]) -> dict[str, npt.NDArray[Any]]:
    """``parameter/<name>`` and, after ``backward()``, ``gradient/<name>``: every parameter and its gradient.

    Args:
        named: (name, parameter) pairs, such as ``model.named_parameters()``.
    """
    arrays = {}
    for name, parameter in named:
        arrays[f"parameter/{name}"] = parameter.detach().numpy()
        if parameter.requires_grad and parameter.grad is not None:
            arrays[f"gradient/{name}"] = parameter.grad.numpy()
    return arrays


def norms(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """The Euclidean norm of each array, and of all parameters and of all gradients together.

    >>> import tinyseq as ts
    >>> layer = ts.nn.Linear(1, 1, bias=False)
    >>> layer(ts.tensor([3.0])).sum().backward()
    >>> norms(arrays_of(layer.named_parameters()))["gradient/weight"]
    3.0
    """
    squares = {name: float(np.square(array, dtype=np.float64).sum()) for name, array in arrays.items()}
    totals = {
        f"{kind}_norm": sum(square for name, square in squares.items() if name.startswith(f"{kind}/"))
        for kind in ("parameter", "gradient")
    }
    return {name: float(np.sqrt(square)) for name, square in {**totals, **squares}.items()}
