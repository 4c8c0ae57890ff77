"""The gradient's way back through time: the norm of dL/dh_t at every step of the scans in a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from typing import Any

import numpy as np

from tinyseq import mode
from tinyseq.tensor import Tensor

__all__ = ["GradientFlow", "trace_gradients"]


class GradientFlow(Mapping[str, np.ndarray[Any, Any]]):
    """The norms that ``trace_gradients`` collected: for each part of each scan's carry, an array (T,).

    Element t is the norm of dL/dh_t, taken over all that h_t holds (batch and features), where h_t is the state that
    step t leaves. A part is there once a backward pass has gone through its scan; a second pass replaces it.
    """

    def __init__(self) -> None:
        self._norms: dict[str, np.ndarray[Any, Any]] = {}
        self._names: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        return self._norms[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._norms)

    def __len__(self) -> int:
        return len(self._norms)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {len(norms)} steps" for name, norms in self._norms.items())
        return f"GradientFlow({parts})"

    def entry(self, paths: Sequence[str]) -> Entry:
        """A place for the norms of one scan, named after the modules that it runs in."""
        modules = []
        at = mode.current().scope
        while at is not None:
            modules += [str(at.name)] if at.kind == "module" else []
            at = at.parent
        base = name = ".".join(reversed(modules)) or "scan"
        count = 1
        while name in self._names:
            count += 1
            name = f"{base} {count}"
        self._names.add(name)
        return Entry(self._norms, [f"{name}.{path}" if path else name for path in paths])


class Entry:
    """Where the norms of one scan go.

    Attributes:
        names: of the parts of its carry.
    """

    def __init__(self, norms: dict[str, np.ndarray[Any, Any]], names: Sequence[str]) -> None:
        self._norms = norms
        self.names = names

    def put(self, part: int, squares: np.ndarray[Any, Any]) -> None:
        """The squared gradients of a part, time first: (T, ...), summed here over all the rest."""
        self._norms[self.names[part]] = np.sqrt(squares.reshape(len(squares), -1).sum(axis=1, dtype=np.float64))


_active: ContextVar[GradientFlow | None] = ContextVar("tinyseq.flow", default=None)
active = _active.get


class trace_gradients:
    """Have every scan of a ``with`` block hand out the norm of dL/dh_t at each step when its gradient is taken.

    The compiled backward loop has the gradient of the state at hand at every step, so this costs one sum over a row.
    The forward pass must lie in the block; the backward pass may come later.

    >>> import tinyseq as ts
    >>> ts.manual_seed(0)
    >>> layer, xs = ts.nn.RNN(3, 8), ts.random.randn((20, 4, 3))
    >>> with ts.trace_gradients() as flow:
    ...     ys, state = layer(xs)
    ...     ys[-1].sum().backward()
    >>> flow
    GradientFlow(RNN: 20 steps)
    >>> bool(flow["RNN"][0] < flow["RNN"][-1])  # it vanishes on its way back
    True
    """

    def __enter__(self) -> GradientFlow:
        flow = GradientFlow()
        self._token: Token[GradientFlow | None] = _active.set(flow)
        return flow

    def __exit__(self, *error: object) -> None:
        _active.reset(self._token)


def watch(entry: Entry, t: int, steps: int, leaves: Sequence[Tensor], squares: dict[int, np.ndarray[Any, Any]]) -> None:
    """The same for a scan on the tape: a hook on each part of the state that step ``t`` leaves."""

    def hook(part: int) -> Any:
        def record(gradient: Tensor) -> None:
            array = gradient.numpy().astype(np.float64)
            if part not in squares:
                squares[part] = np.zeros(steps)
            squares[part][t] = float((array * array).sum())
            entry.put(part, squares[part])

        return record

    for part, leaf in enumerate(leaves):
        if leaf.node is not None and leaf.dtype.kind == "f":
            leaf.register_hook(hook(part))
