"""A long text cut for truncated backpropagation through time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError

__all__ = ["Chunk", "TextStream"]


class Chunk(NamedTuple):
    """One piece of a :class:`TextStream`, time first.

    ``targets[t, b]`` is the id that follows ``inputs[t, b]``; both have shape (T, B). ``starts`` is true where the rows
    begin anew, so that the state carried from the chunk before must be dropped.
    """

    inputs: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    starts: bool


class TextStream:
    """A text of N ids as B parallel rows, read T steps at a time, again and again.

    Row b is the b-th of B contiguous stretches of (N - 1) // B ids, so chunk k + 1 goes on in every row where chunk k
    ended, and a state carried along sees unbroken text. The last chunk of an epoch is shorter where T does not divide
    the rows: every id of a row is a target once an epoch. Fewer than B ids at the end of the text are left out.

    Iterating never ends; ``len(stream)`` chunks are an epoch.

    Args:
        ids: the text, integers of shape (N,).
        batch: B, the number of rows.
        chunk: T, the steps of a chunk.

    Attributes:
        epoch: how often the text was read to its end.
        position: the chunks already given out in this epoch.

    Raises:
        DataError: the text has no characters, or fewer than B * T + 1, or a size is less than 1.

    >>> stream = TextStream(np.arange(9), batch=2, chunk=3)
    >>> [(c.inputs.T.tolist(), c.targets.T.tolist(), c.starts) for _, c in zip(range(3), stream)]
    [([[0, 1, 2], [4, 5, 6]], [[1, 2, 3], [5, 6, 7]], True),
     ([[3], [7]], [[4], [8]], False),
     ([[0, 1, 2], [4, 5, 6]], [[1, 2, 3], [5, 6, 7]], True)]
    >>> stream.state_dict()
    {'epoch': 1, 'position': 1}
    """

    def __init__(self, ids: npt.ArrayLike, batch: int, chunk: int) -> None:
        array = np.asarray(ids)
        if batch < 1 or chunk < 1:
            raise DataError(f"a stream needs at least one row and one step, not batch={batch} and chunk={chunk}")
        if array.ndim != 1:
            raise DataError(f"a stream reads one text, ids of shape (N,), not {array.shape}; flatten them first")
        if not array.size:
            raise DataError("the text is empty; a stream needs at least batch * chunk + 1 characters")
        if array.size < batch * chunk + 1:
            raise DataError(
                f"the text has {array.size:,} characters, too few for {batch} rows of one chunk of {chunk}, which take "
                f"{batch * chunk + 1:,}; give a longer text, or make the batch or the chunk smaller"
            )
        length = (array.size - 1) // batch
        self._inputs = array[: batch * length].reshape(batch, length).T
        self._targets = array[1 : batch * length + 1].reshape(batch, length).T
        self._chunk = chunk
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        """The chunks of an epoch."""
        return -(-len(self._inputs) // self._chunk)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self.position == len(self):
            self.epoch, self.position = self.epoch + 1, 0
        steps = slice(self.position * self._chunk, (self.position + 1) * self._chunk)
        starts = self.position == 0
        self.position += 1
        return Chunk(np.array(self._inputs[steps], order="C"), np.array(self._targets[steps], order="C"), starts)

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands, in a form that JSON can hold; see :meth:`load_state_dict`."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the stream that gave ``state`` stood. The text and the sizes must be the same.

        Raises:
            DataError: the state belongs to a stream with other sizes or to no stream.
        """
        epoch, position = state.get("epoch"), state.get("position")
        if not (isinstance(epoch, int) and isinstance(position, int) and epoch >= 0 and 0 <= position <= len(self)):
            raise DataError(f"{dict(state)} is no place in a stream of {len(self)} chunks; use the text and sizes it had")
        self.epoch, self.position = epoch, position
