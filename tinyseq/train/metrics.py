"""Numbers that say how well a model does."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tinyseq.errors import DataError, ShapeError
from tinyseq.tensor import Operand, as_tensor

__all__ = ["Totals", "accuracy", "edit_distance", "error_rate"]


class Totals:
    """Means over many batches, each exact: sums and counts are added, and divided at the end.

    >>> totals = Totals()
    >>> totals.add({"loss": (6.0, 3), "accuracy": (1, 3)})
    >>> totals.add({"loss": (2.0, 1), "accuracy": (1, 1)})
    >>> totals.means()
    {'loss': 2.0, 'accuracy': 0.5}
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, values: Mapping[str, tuple[Any, Any]]) -> None:
        """Add (total, count) pairs of numbers, or tensors of one number, by name."""
        for name, (total, count) in values.items():
            sums = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (sums[0] + float(total), sums[1] + float(count))

    def means(self) -> dict[str, float]:
        """Each total divided by its count; NaN where nothing was counted."""
        return {name: total / count if count else float("nan") for name, (total, count) in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, in a form that JSON can hold."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums = {name: (total, count) for name, (total, count) in state.items()}


def accuracy(scores: Operand, targets: Operand, ignore_index: int = -100) -> tuple[int, int]:
    """How many of the classes with the highest scores are right, and how many there are: a pair for :class:`Totals`.

    Args:
        scores: (..., C).
        targets: (...) classes.
        ignore_index: targets of this value do not count.

    Raises:
        ShapeError: shapes that do not fit.

    >>> import tinyseq as ts
    >>> accuracy(ts.tensor([[0.1, 0.9], [0.8, 0.2]]), ts.tensor([1, 1]))
    (1, 2)
    """
    values, classes = as_tensor(scores).detach().numpy(), as_tensor(targets).numpy()
    if values.shape[:-1] != classes.shape or not values.ndim:
        raise ShapeError(f"scores of shape {values.shape} need targets of shape {values.shape[:-1]}, got {classes.shape}")
    counted = classes != ignore_index
    return int(((values.argmax(-1) == classes) & counted).sum()), int(counted.sum())


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """The least number of insertions, deletions and substitutions that turn ``a`` into ``b`` (Levenshtein 1966).

    >>> edit_distance("kitten", "sitting")
    3
    """
    numbers: dict[Hashable, int] = {}
    x, y = (np.array([numbers.setdefault(_plain(t), len(numbers)) for t in each], np.int64) for each in (a, b))
    place = np.arange(len(y) + 1)
    row = place
    for i, token in enumerate(x):
        best = np.append(i + 1, np.minimum(row[1:] + 1, row[:-1] + (y != token)))
        row = np.minimum.accumulate(best - place) + place  # insertions, a running minimum
    return int(row[-1])


def _plain(token: Any) -> Hashable:
    return token.item() if isinstance(token, np.generic) else token


def error_rate(predictions: Iterable[Sequence[Hashable]], references: Iterable[Sequence[Hashable]]) -> float:
    """Edits divided by the tokens of the references: the word, phoneme, digit or character error rate. It may exceed 1.

    Raises:
        DataError: not as many predictions as references, or references without a token.

    >>> error_rate(["cat", "do"], ["cart", "dog"])
    0.2857142857142857
    """
    edits = tokens = 0
    ours, theirs = list(predictions), list(references)
    if len(ours) != len(theirs):
        raise DataError(f"an error rate needs a prediction for each reference, got {len(ours)} and {len(theirs)}")
    for prediction, reference in zip(ours, theirs, strict=True):
        edits += edit_distance(prediction, reference)
        tokens += len(reference)
    if not tokens:
        raise DataError("an error rate needs references with at least one token in all")
    return edits / tokens
