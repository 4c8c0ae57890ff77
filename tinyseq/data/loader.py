"""Examples to batches, epoch after epoch, in an order that can be taken up again anywhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tinyseq.data.batches import collate_padded
from tinyseq.data.prefetch import Prefetch
from tinyseq.errors import DataError, DTypeError

__all__ = ["Loader"]

Indices = npt.NDArray[np.int64]


class Examples(Protocol):
    """What a loader takes: a list, an array, :class:`tinyseq.data.Windows`, any object with a length and an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Any: ...


class Loader:
    """Batches of a data set: ``for batch in loader`` is one epoch.

    The order of epoch e depends on the seed and on e alone, so that a run that was stopped goes on with the very batches
    it would have seen: :meth:`state_dict` says how many were given out, and after :meth:`load_state_dict` the next loop
    gives the rest of that epoch. A loop that was left early leaves the epoch: the next one begins it anew.

    With ``lengths``, a batch holds sequences of similar length, and little padding. When shuffling, the examples are
    shuffled, sorted by length in pools of ``pool`` batches, cut into batches, and these shuffled; else all are sorted.

    Args:
        data: the examples: ``len(data)`` and ``data[i]``.
        batch: B, how many examples a batch has; the last one may have fewer.
        shuffle: whether the order changes from epoch to epoch.
        seed: of the orders.
        lengths: (N,), the length of each example.
        pool: how many batches are sorted together.
        drop_last: whether to leave out a last batch that is not full.
        collate: from a list of examples to a batch.
        prefetch: how many batches a thread makes ahead of time; 0 makes none.

    Attributes:
        epoch: how many epochs were read to their end.
        position: the batches already given out in this epoch.

    Raises:
        DataError: no examples, no full batch where the last is dropped, or lengths that are not one an example.
        ValueError: a batch or a pool of less than 1.

    >>> loader = Loader([[1], [2, 2], [3], [4, 4]], batch=2, lengths=[1, 2, 1, 2])
    >>> [batch.values.T.tolist() for batch in loader]
    [[[1], [3]], [[2, 2], [4, 4]]]
    """

    def __init__(
        self,
        data: Examples,
        batch: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        lengths: npt.ArrayLike | None = None,
        pool: int = 32,
        drop_last: bool = False,
        collate: Callable[[list[Any]], Any] = collate_padded,
        prefetch: int = 0,
    ) -> None:
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise DTypeError(
                f"a Loader needs examples with a length and an index, not {type(data).__name__}; put them in a list"
            )
        if batch < 1 or pool < 1 or prefetch < 0 or seed < 0:
            raise ValueError(
                f"a Loader needs batch >= 1, pool >= 1, prefetch >= 0 and seed >= 0, got {batch}, {pool}, {prefetch} and {seed}"
            )
        if not len(data):
            raise DataError("there are no examples to load")
        if drop_last and len(data) < batch:
            raise DataError(f"{len(data)} examples make no full batch of {batch}; keep the last one or make the batch smaller")
        self._lengths = None if lengths is None else np.asarray(lengths)
        if self._lengths is not None and self._lengths.shape != (len(data),):
            raise DataError(f"a Loader of {len(data)} examples needs as many lengths, got shape {self._lengths.shape}")
        self.data = data
        self.batch = batch
        self.shuffle = shuffle
        self.seed = seed
        self.pool = pool
        self.drop_last = drop_last
        self.collate = collate
        self.prefetch = prefetch
        self.epoch = 0
        self.position = 0
        self._resume = 0

    def __len__(self) -> int:
        """The batches of an epoch."""
        return len(self.data) // self.batch if self.drop_last else -(-len(self.data) // self.batch)

    def order(self, epoch: int) -> list[Indices]:
        """Which examples are in each batch of an epoch.

        >>> [batch.tolist() for batch in Loader("abcde", batch=2).order(0)]
        [[0, 1], [2, 3], [4]]
        """
        count = len(self.data)
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(count) if self.shuffle else np.arange(count)
        if self._lengths is not None:
            size = self.batch * self.pool if self.shuffle else count
            pools = (order[start : start + size] for start in range(0, count, size))
            order = np.concatenate([part[np.argsort(self._lengths[part], kind="stable")] for part in pools])
        batches = [order[start : start + self.batch] for start in range(0, count, self.batch)][: len(self)]
        if self._lengths is not None and self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def __iter__(self) -> Iterator[Any]:
        self.position, self._resume = self._resume, 0
        made = self._made(self.position)
        batches = Prefetch(made, self.prefetch) if self.prefetch else made
        with closing(batches):
            for batch in batches:
                self.position += 1
                yield batch
        self.epoch, self.position = self.epoch + 1, 0

    def _made(self, start: int) -> Generator[Any]:
        for indices in self.order(self.epoch)[start:]:
            yield self.collate([self.data[i] for i in indices.tolist()])

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands, in a form that JSON can hold."""
        sizes = {"examples": len(self.data), "batch": self.batch, "seed": self.seed}
        return {"epoch": self.epoch, "position": max(self.position, self._resume), **sizes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the loader that gave ``state`` stood; its examples, settings and seed must be the same.

        Raises:
            DataError: it is the state of another loader.
        """
        mine, other = self.state_dict(), {name: state.get(name) for name in self.state_dict()}
        differing = [name for name in ("examples", "batch", "seed") if mine[name] != other[name]]
        epoch, position = other["epoch"], other["position"]
        if differing or not (
            isinstance(epoch, int) and isinstance(position, int) and epoch >= 0 and 0 <= position <= len(self)
        ):
            told = ", ".join(f"{name} {other[name]} and not {mine[name]}" for name in differing) or f"{dict(state)}"
            raise DataError(f"the state is of another loader: {told}; use the data and the settings it had")
        self.epoch, self.position, self._resume = epoch, 0, position
