"""Data parted for training and testing, so that nothing leaks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError

__all__ = ["split_by_group"]


def split_by_group(
    groups: Sequence[Hashable], shares: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0
) -> tuple[npt.NDArray[np.int64], ...]:
    """Part N examples so that those of one group are all on one side: a speaker, a word, a document, both drawings of it.

    Groups are taken in random order, each to the part that lacks most of its share.

    Args:
        groups: (N,), what each example belongs to.
        shares: the share of the examples that each part should have; they add up to 1.
        seed: of the order; the same seed gives the same parts.

    Returns:
        For each part the indices of its examples, in order.

    Raises:
        DataError: shares that are not positive or do not add up to 1, or so few groups that a part would be empty.

    >>> train, test = split_by_group(["ann", "bob", "ann", "cid", "dan", "bob"], (0.5, 0.5))
    >>> sorted([*train.tolist(), *test.tolist()])
    [0, 1, 2, 3, 4, 5]
    """
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"shares are positive and add up to 1, got {tuple(shares)}")
    numbers: dict[Hashable, int] = {}
    of = np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)
    sizes = np.bincount(of, minlength=len(numbers)) if len(of) else np.zeros(0, np.int64)
    lacking = np.array(shares) * len(of)
    part = np.zeros(len(numbers), np.int64)
    for group in np.random.default_rng(seed).permutation(len(numbers)):
        part[group] = lacking.argmax()
        lacking[part[group]] -= sizes[group]
    parts = tuple(np.flatnonzero(part[of] == i) if len(of) else of for i in range(len(shares)))
    if not all(len(indices) for indices in parts):
        raise DataError(
            f"{len(numbers)} groups of {len(of)} examples cannot be parted by {tuple(shares)} without an empty part; "
            "give more groups or fewer parts"
        )
    return parts
