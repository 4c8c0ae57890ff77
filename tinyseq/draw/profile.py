"""Seconds and gradient norms of the operations that run: what a picture adds to their shapes."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from tinyseq import mode
from tinyseq.backend import backend_of
from tinyseq.primitives import Primitive
from tinyseq.tape import Leaf, Node, Part, Scatter
from tinyseq.tensor import Tensor

__all__ = ["Profile", "norm", "profile"]


class Profile:
    """What :func:`profile` has seen.

    Attributes:
        seconds: for each operation on the tape, forward and backward together, by its number there (``node.serial``).
        gradients: the norm of the gradient that reached each operation and each leaf, likewise.
    """

    def __init__(self, gradients: bool = True) -> None:
        self.seconds: dict[int, float] = {}
        self.gradients: dict[int, float] = {}
        self._with_gradients = gradients
        self._squares: dict[int, float] = {}
        self._last = time.perf_counter()
        self._entered: list[AbstractContextManager[object]] = []

    @property
    def total(self) -> float:
        """All seconds."""
        return sum(self.seconds.values())

    def __enter__(self) -> Profile:
        observer = mode.current().observer
        change = mode.changed(observer=_Both(self, observer) if observer else self)
        change.__enter__()
        self._entered.append(change)
        self._last = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.pop().__exit__(*error)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"<profile of {len(self.seconds)} operations, {self.total:.3g} s>"

    # An Observer

    def applied(self, primitive: Primitive, arrays: tuple[Any, ...], output: Any, node: Node | None) -> None:
        """An operation has run forward: what has passed since the one before is its time."""
        if mode.current().tracing:
            return  # a step that is traced computes nothing; the time goes to the scan
        now = time.perf_counter()
        if node is not None:
            self._add(self._scan_before(node) or node, now)
        self._last = time.perf_counter()

    def pulled(self, node: Node, cotangent: Any, contributions: Any) -> None:
        """An operation's VJP has run."""
        if mode.current().tracing:
            return
        self._add(node, time.perf_counter())
        if self._with_gradients:
            self._note(node, cotangent)
            # A leaf is not pulled: its gradient is the sum of what is handed to it, of which the norm is kept there.
            for parent, part in zip(node.parents, contributions, strict=False):
                if isinstance(parent, Leaf) and part is not None:
                    self._note(parent, part)
        self._last = time.perf_counter()

    def _scan_before(self, node: Node) -> Node | None:
        """A compiled scan that has just run and said nothing of it: the operation that reads its result does."""
        for parent in node.parents:
            if isinstance(parent, Node) and parent.primitive.name == "item":
                scan = parent.parents[0]
                if isinstance(scan, Node) and scan.serial not in self.seconds:
                    return scan
        return None

    def _add(self, node: Node, now: float) -> None:
        self.seconds[node.serial] = self.seconds.get(node.serial, 0.0) + now - self._last

    def _note(self, place: Node | Leaf, cotangent: Any) -> None:
        parts = cotangent if isinstance(cotangent, list | tuple) else [cotangent]
        values = [norm(part) for part in parts if part is not None]
        if values:
            self._squares[place.serial] = math.hypot(self._squares.get(place.serial, 0.0), *values)
            self.gradients[place.serial] = self._squares[place.serial]


class _Both:
    """Two observers."""

    def __init__(self, *observers: Any) -> None:
        self.observers = observers

    def applied(self, *arguments: Any) -> None:
        """An operation has run forward."""
        for observer in self.observers:
            observer.applied(*arguments)

    def pulled(self, *arguments: Any) -> None:
        """An operation's VJP has run."""
        for observer in self.observers:
            observer.pulled(*arguments)


def profile(gradients: bool = True) -> Profile:
    """Inside this ``with`` block note the seconds of each operation, and the norm of each gradient.

    An operation's time is what has passed since the operation before it, so Python's share counts, too. On a GPU, where
    operations run later, it is the time of asking for them.

    Args:
        gradients: whether to take norms, which costs a pass over each gradient.

    >>> import tinyseq as ts
    >>> x = ts.tensor([3.0, 4.0], requires_grad=True)
    >>> with ts.draw.profile() as profile:
    ...     y = x * 2
    ...     y.sum().backward()
    >>> profile.gradients[y.node.serial], len(profile.seconds)
    (1.414, 2)
    """
    return Profile(gradients)


def norm(array: Any) -> float:
    """The Euclidean norm of an array, a Tensor or a part of a cotangent, in float64; NaN where it has NaN."""
    data = array.data if isinstance(array, Tensor) else array.values if isinstance(array, Scatter) else array
    if isinstance(data, Part):
        data = data.value
    backend = backend_of(data)
    host = backend.to_numpy(data) if backend else np.asarray(data)
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.linalg.norm(host.astype(np.float64).reshape(-1)))
