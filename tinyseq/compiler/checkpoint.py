"""A compiled scan that keeps its carry every k steps and runs the steps between again when the gradient is taken.

What the backward pass needs of T steps then takes the memory of k steps and T / k carries: least where k is the square
root of T. Time is that of one more forward pass. (Griewank 1992; Chen et al. 2016, section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyseq.compiler.loop import Program
from tinyseq.compiler.run import Runner

__all__ = ["Checkpointed"]

Array = Any


class Checkpointed:
    """Runs like a :class:`Runner`, in pieces of ``every`` steps.

    Args:
        light: runs the forward pass and keeps nothing.
        full: runs both passes.
        every: k.
    """

    def __init__(self, light: Runner, full: Runner, every: int) -> None:
        self.light, self.full, self.every = light, full, every
        self.backend = full.backend

    @property
    def program(self) -> Program:
        """Of the runner with both passes."""
        return self.full.program

    def _pieces(self, steps: int, reverse: bool) -> list[tuple[int, int]]:
        """First and last step of each piece, in the order in which they run."""
        pieces = [(a, min(a + self.every, steps)) for a in range(0, steps, self.every)]
        return pieces[::-1] if reverse else pieces

    def _cut(self, stacks: Sequence[Array], a: int, b: int) -> list[Array]:
        return [self.backend.ops.getitem(x, key=(slice(a, b), Ellipsis)) for x in stacks]

    def _joined(self, columns: Sequence[Sequence[Array]], reverse: bool) -> list[Array]:
        """Pieces that came in the order of running, as stacks over all steps."""
        joined = []
        for pieces in zip(*columns, strict=True):
            parts = pieces[::-1] if reverse else pieces
            sizes = tuple(p.shape[0] for p in parts)
            joined.append(self.backend.ops.concatenate(*parts, axis=-len(parts[0].shape), sizes=sizes))
        return joined

    def forward(
        self, carry: Sequence[Array], xs: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], Any]:
        """The last carry, the stacked outputs, and the carry before each piece."""
        starts, ys, state = [], [], list(carry)
        known = closed[: len(self.light.program.body.closed)]
        for a, b in self._pieces(steps, reverse):
            starts.append(state)
            state, y, _ = self.light.forward(state, self._cut(xs, a, b), known, b - a, reverse)
            ys.append(y)
        return state, self._joined(ys, reverse), (starts, list(xs), list(closed))

    def backward(
        self, kept: Any, last: Sequence[Array], ys: Sequence[Array], steps: int, reverse: bool, squares: Any = None
    ) -> list[Array | None]:
        """From the cotangents of the last carry and of the outputs to those of carry, xs and what was closed over."""
        starts, xs, closed = kept
        carries, inputs = self.program.body.carries, self.program.body.xs
        of_carry: list[Any] = list(last)
        of_xs: list[list[Array | None]] = []
        of_closed: list[Array | None] = []
        watched: list[list[Array]] = []
        for (a, b), start in zip(reversed(self._pieces(steps, reverse)), reversed(starts), strict=True):
            _, _, again = self.full.forward(start, self._cut(xs, a, b), closed, b - a, reverse)
            found: list[Array] = []
            gradients = self.full.backward(again, of_carry, self._cut(ys, a, b), b - a, reverse, found.extend)
            watched.append(found)
            of_carry = gradients[:carries]
            of_xs.append(gradients[carries : carries + inputs])
            more = gradients[carries + inputs :]
            add = self.backend.ops.add
            of_closed = [m if t is None else add(t, m) for t, m in zip(of_closed, more, strict=True)] if of_closed else more
        if squares is not None:
            squares(self._joined(watched, not reverse))
        wanted = [i for i in range(inputs) if of_xs[0][i] is not None]
        stacks = iter(self._joined([[piece[i] for i in wanted] for piece in of_xs], not reverse)) if wanted else iter(())
        return [*of_carry, *(next(stacks) if i in wanted else None for i in range(inputs)), *of_closed]
