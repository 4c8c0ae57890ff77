"""A long series cut into pairs: what is known, and what comes after."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError

__all__ = ["Windows"]

Array = npt.NDArray[Any]


class Windows:
    """The windows over a series as examples: ``windows[i]`` is the pair (I steps, the O steps that follow).

    The arrays are views of the series. Split a series in time before windows are cut from it, or training windows
    overlap those that test. Use :func:`collate_stacked` to make batches (I, B, ...) and (O, B, ...) of them.

    Args:
        series: (T,) or (T, F).
        inputs: I, the steps that are known.
        targets: O, the steps to be foretold.
        of: the series that targets are cut from, if not ``series`` itself: (T, ...).
        gap: the steps between the last input and the first target.
        every: the steps from one window to the next.

    Raises:
        DataError: series of different lengths, sizes that are less than 1 (0 for ``gap``), or a series that is too short.

    >>> windows = Windows(np.arange(6), inputs=3, targets=2)
    >>> len(windows), [part.tolist() for part in windows[1]]
    (2, [[1, 2, 3], [4, 5]])
    """

    def __init__(
        self, series: npt.ArrayLike, inputs: int, targets: int, *, of: npt.ArrayLike | None = None, gap: int = 0, every: int = 1
    ) -> None:
        self.series = np.asarray(series)
        self.of = self.series if of is None else np.asarray(of)
        if not self.series.ndim or self.of.shape[:1] != self.series.shape[:1]:
            raise DataError(f"windows are cut from series of one length, got shapes {self.series.shape} and {self.of.shape}")
        if inputs < 1 or targets < 1 or gap < 0 or every < 1:
            raise DataError(
                f"windows need at least one step of each kind, got inputs={inputs}, targets={targets}, gap={gap}, every={every}"
            )
        self.inputs, self.targets, self.gap, self.every = inputs, targets, gap, every
        self._span = inputs + gap + targets
        if len(self.series) < self._span:
            raise DataError(f"a series of {len(self.series)} steps is too short for a window of {self._span}")

    def __len__(self) -> int:
        return (len(self.series) - self._span) // self.every + 1

    def __getitem__(self, place: int) -> tuple[Array, Array]:
        if not -len(self) <= place < len(self):
            raise IndexError(f"there are {len(self)} windows, none with the number {place}")
        start = place % len(self) * self.every
        middle = start + self.inputs + self.gap
        return self.series[start : start + self.inputs], self.of[middle : middle + self.targets]
