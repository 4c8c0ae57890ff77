"""Random tensors, and the one default generator behind them.

Backends of one family share a generator: ``numpy`` and ``numba`` draw the same numbers for the same seed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyseq import mode
from tinyseq.backend import Backend, current_backend
from tinyseq.creation import _shape
from tinyseq.errors import GraphError, ShapeError
from tinyseq.tensor import DEFAULT, Tensor, as_tensor, bool_, int64

__all__ = [
    "bernoulli",
    "categorical",
    "get_state",
    "manual_seed",
    "normal",
    "permutation",
    "rand",
    "randint",
    "randn",
    "set_state",
    "uniform",
]

Shape = int | Sequence[int]

_seed = int.from_bytes(os.urandom(8), "little")
_generators: dict[str, tuple[Backend, Any]] = {}


def manual_seed(seed: int) -> None:
    """Start the default generator of every backend anew from ``seed``.

    >>> import tinyseq as ts
    >>> ts.manual_seed(0); a = ts.random.rand(3)
    >>> ts.manual_seed(0); bool((ts.random.rand(3) == a).all())
    True
    """
    global _seed
    if seed < 0:
        raise ValueError(f"a seed is not negative, got {seed}")
    _seed = seed
    _generators.clear()


def _generator() -> tuple[Backend, Any]:
    if mode.current().tracing:
        raise GraphError(
            "random numbers inside a traced function would be drawn once and stay the same at every step; "
            "draw them before and pass them in, for scan as part of xs, or use scan(..., unroll=True)"
        )
    backend = current_backend()
    family = backend.generator_family
    if family not in _generators:
        _generators[family] = (backend, backend.new_generator(_seed))
    return backend, _generators[family][1]


def get_state() -> dict[str, Any]:
    """The state of the default generators, as a value that JSON can hold."""
    states = {family: backend.generator_state(g) for family, (backend, g) in _generators.items()}
    return {"seed": _seed, "generators": states}


def set_state(state: dict[str, Any]) -> None:
    """Put back what ``get_state`` gave: the same numbers follow.

    >>> import tinyseq as ts
    >>> state = ts.random.get_state(); a = ts.random.randn(2)
    >>> ts.random.set_state(state); bool((ts.random.randn(2) == a).all())
    True
    """
    manual_seed(state["seed"])
    backend = current_backend()
    for family, saved in state["generators"].items():
        # Another family's state waits until that backend is in force; a seed alone would not bring it back.
        if family == backend.generator_family:
            backend.set_generator_state(_generator()[1], saved)


def rand(shape: Shape = (), dtype: Any = DEFAULT) -> Tensor:
    """Uniform numbers in [0, 1)."""
    backend, generator = _generator()
    return Tensor(backend.asarray(generator.random(_shape(shape), dtype=np.dtype(dtype))))


def uniform(shape: Shape = (), low: float = 0.0, high: float = 1.0, dtype: Any = DEFAULT) -> Tensor:
    """Uniform numbers in [low, high)."""
    return rand(shape, dtype) * (high - low) + low


def randn(shape: Shape = (), dtype: Any = DEFAULT) -> Tensor:
    """Numbers from the standard normal distribution."""
    backend, generator = _generator()
    return Tensor(backend.asarray(generator.standard_normal(_shape(shape), dtype=np.dtype(dtype))))


def normal(shape: Shape = (), mean: float = 0.0, std: float = 1.0, dtype: Any = DEFAULT) -> Tensor:
    """Numbers from a normal distribution."""
    return randn(shape, dtype) * std + mean


def randint(low: int, high: int, shape: Shape = (), dtype: Any = int64) -> Tensor:
    """Integers from ``low`` up to and without ``high``."""
    if high <= low:
        raise ShapeError(f"randint needs low < high, got {low} and {high}")
    backend, generator = _generator()
    return Tensor(backend.asarray(generator.integers(low, high, _shape(shape), dtype=np.dtype(dtype))))


def bernoulli(p: float, shape: Shape = ()) -> Tensor:
    """True with probability ``p``.

    Raises:
        ValueError: ``p`` is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a probability lies in [0, 1], got {p}")
    return (rand(shape) < p).astype(bool_)


def permutation(n: int) -> Tensor:
    """The integers 0 to n - 1 in random order."""
    backend, generator = _generator()
    return Tensor(backend.asarray(generator.permutation(n))).astype(int64)


def categorical(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Draw a class for each row of ``logits`` (..., C), with probabilities softmax(logits / temperature).

    By the Gumbel-max trick (Gumbel 1954): the largest of logits / temperature + noise. Temperature 0 takes the likeliest.

    >>> import tinyseq as ts
    >>> ts.random.categorical(ts.tensor([[0.0, 9.0, 1.0]]), temperature=0).tolist()
    [1]
    """
    if temperature < 0:
        raise ValueError(f"a temperature is not negative, got {temperature}")
    logits = as_tensor(logits).detach()
    if temperature == 0:
        return logits.argmax(-1)
    # 1 - rand lies in (0, 1], so the first logarithm is finite; the second may be inf only where rand is exactly 0.
    noise = -((-((1 - rand(logits.shape, logits.dtype)).log())).clip(1e-38).log())
    return (logits / temperature + noise).argmax(-1)
