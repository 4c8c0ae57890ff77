"""Steps made up at random: products, sums over a row, slices, joins and elementwise work in any order."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyseq.compiler.loop import Step
from tinyseq.graph import Equation, Graph, Var
from tinyseq.primitives import TABLE

__all__ = ["random_step"]

BATCH = 3


def random_step(rng: np.random.Generator, dtype: str = "float32") -> Step:
    """A step with one to three parts of a carry, some of them one number a row, and no equation that nothing needs."""
    return _Maker(rng, dtype).step()


class _Maker:
    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        self.rng, self.dtype = rng, dtype
        self.units = int(rng.choice([4, 6, 10]))
        self.other = int(rng.choice([self.units, 5, 8]))
        row = lambda width: Var((BATCH, int(width)), dtype)
        widths = (self.units, self.other, 1)
        self.carry = [row(self.units), *(row(rng.choice(widths)) for _ in range(rng.integers(3)))]
        self.stacks = [row(rng.choice((*widths, 2 * self.units))) for _ in range(rng.integers(1, 4))]
        self.flag = Var((BATCH, 1), "bool")
        self.closed = [Var((self.units,), dtype), Var((self.other,), dtype), Var((), dtype)]
        self.weights: list[Var] = []
        self.equations: list[Equation] = []
        self.rows = [*self.carry, *self.stacks]  # values with a row for each sequence

    def one_of(self, values: Any) -> Any:
        """Of the later ones rather than of the first, so that chains grow long."""
        return values[max(int(self.rng.integers(len(values))) for _ in range(3))]

    def add(self, name: str, inputs: tuple[Any, ...], width: int, **params: Any) -> Var:
        out = Var((BATCH, width), self.dtype)
        self.equations.append(Equation(TABLE[name], inputs, params, out))
        self.rows.append(out)
        return out

    def step(self) -> Step:
        makers = [self.one, self.two, self.two, self.product, self.sum, self.slice, self.join, self.where]
        for _ in range(int(self.rng.integers(15, 45))):
            makers[self.rng.integers(len(makers))](self.one_of([v for v in self.rows if v.shape[1] > 1]))
        new: list[Var] = []
        for v in self.carry:
            of_this_shape = [x for x in self.rows if x.shape == v.shape]
            new.append(self.add("tanh", (self.one_of(of_this_shape),), v.shape[1]))
        made = [e.output for e in self.equations]
        written = [made[i] for i in self.rng.choice(len(made), size=int(self.rng.integers(1, 5)))]
        needed, kept = {*new, *written}, []
        for e in reversed(self.equations):
            if e.output in needed:
                kept.append(e)
                needed.update(e.vars)
        closed = tuple(v for v in (*self.closed, *self.weights) if v in needed)
        graph = Graph((*self.carry, *self.stacks, self.flag), tuple(reversed(kept)), (*new, *written), closed)
        return Step(graph.check(), len(self.carry), tuple(i for i in range(len(new)) if self.rng.random() < 0.5))

    def one(self, x: Var) -> None:
        self.add(str(self.rng.choice(["tanh", "sigmoid", "neg", "abs"])), (x,), x.shape[1])

    def two(self, x: Var) -> None:
        width = x.shape[1]
        fitting = [v for v in (*self.closed, *self.rows) if v.shape in ((), (width,), (BATCH, width), (BATCH, 1))]
        inputs = x, self.one_of(fitting) if self.rng.random() < 0.9 else 0.5
        name = str(self.rng.choice(["add", "sub", "mul", "maximum", "minimum"]))
        self.add(name, inputs[:: int(self.rng.choice([1, -1]))], width)

    def product(self, x: Var) -> None:
        columns = int(self.rng.choice([self.units, self.other, 2 * self.units, 4 * self.units]))
        self.weights.append(Var((x.shape[1], columns), self.dtype))
        self.add("matmul", (x, self.weights[-1]), columns)

    def sum(self, x: Var) -> None:
        total = self.add(str(self.rng.choice(["sum", "max", "min"])), (x,), 1, axis=(-1,), keepdims=True)
        self.add("mul", (total, 1 / x.shape[1]), 1)

    def slice(self, x: Var) -> None:
        half = x.shape[1] // 2
        if x.shape[1] == 2 * half and half > 1:
            start = int(self.rng.integers(2)) * half
            self.add("getitem", (x,), half, key=(Ellipsis, slice(start, start + half)))

    def join(self, x: Var) -> None:
        y = self.one_of([v for v in self.rows if v.shape == x.shape])
        if x.shape[1] <= 20:
            self.add("concatenate", (x, y), 2 * x.shape[1], axis=-1, sizes=(x.shape[1],) * 2)

    def where(self, x: Var) -> None:
        self.add("where", (self.flag, x, self.one_of([v for v in self.rows if v.shape == x.shape])), x.shape[1])
