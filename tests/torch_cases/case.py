"""A case, the inputs it draws, and how each side differentiates it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Sizes = Mapping[str, int]
Arrays = dict[str, np.ndarray]
Draw = Callable[[np.random.Generator, Sizes], np.ndarray]

# Different sizes for axes that meet in one case, so that a transposed result has the wrong shape.
GOLDEN_SIZES: Sizes = {"B": 3, "T": 4, "I": 4, "H": 5, "C": 4, "D": 3, "K": 5, "M": 2, "N": 3, "V": 7}


class Case(ABC):
    """One question put to both libraries."""

    name: str
    least: Mapping[str, int]
    each: bool = False  # whether each element is held to its own magnitude, not to the largest
    twice: bool = True  # whether a second derivative is asked for, in the live comparison

    @abstractmethod
    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        """The inputs, exact in float32, so that one golden value serves both dtypes."""

    @abstractmethod
    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        """PyTorch's answer in float64; with `twice`, second derivatives too."""

    @abstractmethod
    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        """tinyseq's answer in `dtype`, on the current backend."""

    def __repr__(self) -> str:
        return self.name


# ----------------------------------------------------------------------------------------------------------- drawing


def exact(values: np.ndarray) -> np.ndarray:
    """float64 values that float32 can hold."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def shape_of(letters: str, sizes: Sizes) -> tuple[int, ...]:
    """`"BT1"` is (sizes["B"], sizes["T"], 1)."""
    return tuple(sizes[letter] if letter.isalpha() else int(letter) for letter in letters)


def real(letters: str, scale: float = 1.0) -> Draw:
    """Normal numbers."""
    return lambda rng, sizes: exact(scale * rng.standard_normal(shape_of(letters, sizes)))


def between(letters: str, low: float, high: float) -> Draw:
    """Uniform numbers in an interval."""
    return lambda rng, sizes: exact(rng.uniform(low, high, shape_of(letters, sizes)))


def positive(letters: str) -> Draw:
    """Numbers well above zero."""
    return between(letters, 0.5, 2.0)


def nonzero(letters: str) -> Draw:
    """Numbers of both signs, none near zero."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        shape = shape_of(letters, sizes)
        return exact(rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape))

    return draw


def ties(letters: str) -> Draw:
    """Few different values, zero and one among them: equal maxima, and the kinks of piecewise functions."""
    return among(letters, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def among(letters: str, *values: float) -> Draw:
    """Each one of the values."""
    return lambda rng, sizes: rng.choice(values, shape_of(letters, sizes))


def distinct(letters: str) -> Draw:
    """No two values nearer than a third, so that an order is certain."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        shape = shape_of(letters, sizes)
        count = int(np.prod(shape))
        return exact((rng.permutation(count) - count / 2 + 0.3 * rng.random(count)).reshape(shape) / 2)

    return draw


def distribution(letters: str) -> Draw:
    """Positive rows that sum to one along the last axis."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        rows = rng.uniform(0.2, 1.0, shape_of(letters, sizes))
        return exact(rows / rows.sum(axis=-1, keepdims=True))

    return draw


def holes(letters: str, value: float = -np.inf, chance: float = 0.4) -> Draw:
    """Normal numbers, some replaced by `value`, never a whole row."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        shape = shape_of(letters, sizes)
        values = exact(rng.standard_normal(shape))
        hole = rng.random(shape) < chance
        hole[..., 0] = False
        return np.where(hole, value, values)

    return draw


def index(letters: str, below: str | int, low: int = 0) -> Draw:
    """int64 numbers from `low` up to a size or a number, repeats likely."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        high = sizes[below] if isinstance(below, str) else below
        return np.asarray(rng.integers(-high if low < 0 else low, high, shape_of(letters, sizes)), dtype=np.int64)

    return draw


def mask(letters: str) -> Draw:
    """Booleans, the first one true, so that a selection is never empty."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        values = np.asarray(rng.random(shape_of(letters, sizes)) < 0.5)
        values.flat[0] = True
        return values

    return draw


def order(letters: str) -> Draw:
    """Each row along the last axis a permutation."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        return np.asarray(np.argsort(rng.random(shape_of(letters, sizes)), axis=-1), dtype=np.int64)

    return draw


# -------------------------------------------------------------------------------------------------- differentiating


def cotangent(shape: tuple[int, ...], place: int) -> np.ndarray:
    """Weights in [-1, 1) that depend on position alone: no stream of random numbers to store, exact in float32."""
    count = int(np.prod(shape))
    return (((np.arange(count) + 1 + 101 * place) * 40503) % 65536 / 32768.0 - 1.0).reshape(shape)


def outputs_of(result: Any) -> list[Any]:
    """The tensors in nested tuples and lists, in order."""
    if isinstance(result, tuple | list):
        return [leaf for part in result for leaf in outputs_of(part)]
    return [result]


def torch_answer(result: Any, wanted: Mapping[str, Any], twice: bool = False) -> Arrays:
    """Outputs, and the gradients of `wanted` when each float output has its cotangent.

    With `twice`, also the gradients of those gradients, each with a cotangent: a Hessian times a vector.
    """
    import torch

    def gradients(tensors: list[Any], create_graph: bool) -> list[Any]:
        seeds = [torch.from_numpy(cotangent(tuple(t.shape), place)).to(t.dtype) for place, t in enumerate(tensors)]
        seeded = [(tensor, seed) for tensor, seed in zip(tensors, seeds, strict=True) if tensor.requires_grad]
        if not seeded:
            return [torch.zeros_like(tensor) for tensor in wanted.values()]
        tensors, seeds = zip(*seeded, strict=True)
        return torch.autograd.grad(
            tensors, list(wanted.values()), seeds, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )

    outputs = outputs_of(result)
    answer = {f"out{place}": output.detach().numpy() for place, output in enumerate(outputs)}
    if wanted:
        first = gradients(outputs, create_graph=twice)
        answer |= {f"grad/{name}": g.detach().numpy() for name, g in zip(wanted, first, strict=True)}
        if twice:
            second = gradients(list(first), create_graph=False)
            answer |= {f"grad2/{name}": g.numpy(force=True) for name, g in zip(wanted, second, strict=True)}
    return answer


def tinyseq_answer(result: Any, wanted: Mapping[str, Any], dtype: Any, twice: bool = False) -> Arrays:
    """As `torch_answer`, by `backward()` on the tape."""
    import tinyseq as ts

    def gradients(tensors: list[Any], create_graph: bool) -> list[Any]:
        for tensor in wanted.values():
            tensor.grad = None
        for place, tensor in enumerate(tensors):
            if tensor is not None and tensor.requires_grad:
                seed = ts.tensor(cotangent(tensor.shape, place).astype(tensor.dtype))
                tensor.backward(seed, retain_graph=True, create_graph=create_graph)
        return [tensor.grad for tensor in wanted.values()]

    def array(gradient: Any, tensor: Any) -> np.ndarray:
        return np.zeros(tensor.shape, dtype) if gradient is None else gradient.detach().numpy()

    outputs = outputs_of(result)
    answer = {f"out{place}": output.detach().numpy() for place, output in enumerate(outputs)}
    if wanted:
        first = gradients(outputs, create_graph=twice)
        answer |= {f"grad/{name}": array(g, wanted[name]) for name, g in zip(wanted, first, strict=True)}
        if twice:
            second = gradients(first, create_graph=False)
            answer |= {f"grad2/{name}": array(g, wanted[name]) for name, g in zip(wanted, second, strict=True)}
    return answer


class Expression(Case):
    """A function of arrays: `ours(ts, *tensors)` and `theirs(torch, *tensors)`, one lambda where the words agree."""

    def __init__(
        self,
        name: str,
        inputs: Draw | tuple[Draw, ...],
        ours: Callable[..., Any],
        theirs: Callable[..., Any] | None = None,
        *,
        least: Mapping[str, int] | None = None,
        each: bool = False,
        twice: bool = True,
        constant: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.ours = ours
        self.theirs = theirs or ours
        self.least = least or {}
        self.each = each
        self.twice = twice and not each  # a second derivative's tail is a difference of nearly equal numbers
        self.constant = constant

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        return {f"x{place}": draw(rng, sizes) for place, draw in enumerate(self.inputs)}

    def _wants(self, place: int, array: np.ndarray) -> bool:
        return array.dtype.kind == "f" and place not in self.constant

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        tensors = {}
        for place, (name, array) in enumerate(arrays.items()):
            tensors[name] = torch.tensor(array, requires_grad=self._wants(place, array))
        wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        return torch_answer(self.theirs(torch, *tensors.values()), wanted, twice)

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        tensors = {}
        for place, (name, array) in enumerate(arrays.items()):
            values = array.astype(dtype) if array.dtype.kind == "f" else array
            tensors[name] = ts.tensor(values, requires_grad=self._wants(place, array))
        wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        return tinyseq_answer(self.ours(ts, *tensors.values()), wanted, dtype, twice)
