"""Graph: a straight-line program of primitives. It prints itself, and it checks itself.

    graph (h: float32[2,4], x: float32[2,3]; w: float32[3,4]) {
      a: float32[2,4] = matmul(x, w)
      b: float32[2,4] = add(a, h)
    } -> (b)

Inputs come first, after the semicolon what the function closed over, and each line assigns one value of a known type.

A graph is what a function does when it is traced; the compiler's passes turn graphs into graphs, backends run them, and
pictures are drawn from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from string import ascii_lowercase
from typing import Any

import numpy as np

from tinyseq.errors import GraphError
from tinyseq.primitives import Primitive

__all__ = ["Equation", "Graph", "Names", "Operand", "Var", "constant_key"]

Shape = tuple[int, ...]


class Var:
    """A value of the program: assigned once, known by its shape and dtype."""

    __slots__ = ("dtype", "name", "shape")

    def __init__(self, shape: Shape, dtype: Any, name: str | None = None) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.name = name

    def __repr__(self) -> str:
        return f"{self.name or 'value'}: {_type(self)}"


Operand = Var | int | float | bool


@dataclass(frozen=True, eq=False, slots=True)
class Equation:
    """``output = primitive(*inputs, **params)``."""

    primitive: Primitive
    inputs: tuple[Operand, ...]
    params: dict[str, Any]
    output: Var

    @property
    def vars(self) -> Iterator[Var]:
        """The inputs that are values, not numbers."""
        return (x for x in self.inputs if isinstance(x, Var))

    def with_inputs(self, inputs: Sequence[Operand], output: Var | None = None) -> Equation:
        """The same operation on other inputs."""
        return Equation(self.primitive, tuple(inputs), self.params, output or self.output)


@dataclass(frozen=True, eq=False, slots=True)
class Graph:
    """A program: inputs, equations in an order in which they can run, outputs.

    Attributes:
        inputs: what a caller gives.
        closed: what the traced function closed over; given after the inputs.
        equations: each assigns one value.
        outputs: what comes out; a number where the function returned one.
    """

    inputs: tuple[Var, ...]
    equations: tuple[Equation, ...]
    outputs: tuple[Operand, ...]
    closed: tuple[Var, ...] = field(default=())

    def check(self) -> Graph:
        """This graph, if it is well formed.

        Raises:
            GraphError: a value is used before it is assigned or assigned twice, operands do not fit, or the shape or dtype
                of a result is not what the primitive's shape rule says.
        """
        known: set[Var] = set()
        for var in (*self.inputs, *self.closed):
            if var in known:
                raise GraphError(f"the graph takes {var!r} twice")
            known.add(var)
        for equation in self.equations:
            for var in equation.vars:
                if var not in known:
                    raise GraphError(f"{equation.primitive.name} uses {var!r} before it is assigned")
            if equation.output in known:
                raise GraphError(f"{equation.primitive.name} assigns {equation.output!r}, which was assigned before")
            known.add(equation.output)
            try:
                shape, dtype = equation.primitive.shape(*equation.inputs, **equation.params)
            except (LookupError, TypeError, ValueError) as error:  # tinyseq's own among them
                raise GraphError(f"{equation.primitive.name} cannot assign {equation.output!r}: {error}") from error
            if (tuple(shape), dtype) != (equation.output.shape, equation.output.dtype):
                raise GraphError(
                    f"{equation.primitive.name} gives {dtype}{list(shape)}, and the graph says {equation.output!r}"
                )
        for output in self.outputs:
            if isinstance(output, Var) and output not in known:
                raise GraphError(f"the output {output!r} is never assigned")
        return self

    def key(self) -> Any:
        """A value that is equal for graphs with the same equations in the same order, whatever their values are called."""
        numbers = {v: i for i, v in enumerate((*self.inputs, *self.closed))}

        def operand(x: Operand) -> Any:
            return numbers[x] if isinstance(x, Var) else constant_key(x)

        lines = []
        for e in self.equations:
            lines.append((e.primitive.name, *map(operand, e.inputs), constant_key(e.params)))
            numbers[e.output] = len(numbers)
        types = tuple((v.shape, v.dtype) for v in (*self.inputs, *self.closed))
        return len(self.inputs), types, tuple(lines), tuple(map(operand, self.outputs))

    def uses(self) -> dict[Var, int]:
        """How often each value is used, as an input of an equation or as an output."""
        counts: dict[Var, int] = {}
        for var in (*(v for e in self.equations for v in e.vars), *(v for v in self.outputs if isinstance(v, Var))):
            counts[var] = counts.get(var, 0) + 1
        return counts

    def __str__(self) -> str:
        return self.text(Names())

    def text(self, names: Names) -> str:
        """The program, with names that it may share with other graphs."""

        def listed(variables: Iterable[Var]) -> str:
            return ", ".join(f"{names[v]}: {_type(v)}" for v in variables)

        takes = listed(self.inputs) + (f"; {listed(self.closed)}" if self.closed else "")
        lines = [f"  {line}" for line in map(names.line, self.equations)]
        gives = ", ".join(map(names.operand, self.outputs))
        return "\n".join([f"graph ({takes}) {{", *lines, f"}} -> ({gives})"])


class Names(dict[Var, str]):
    """A short name for each value, given when it is first asked for: its own if that is free, else a, b, c ..."""

    def __missing__(self, var: Var) -> str:
        taken = set(self.values())
        own = var.name if var.name and var.name not in taken else None
        self[var] = name = own or next(letters for letters in _letters() if letters not in taken)
        return name

    def operand(self, x: Operand) -> str:
        """A value by its name, a number as it is."""
        return self[x] if isinstance(x, Var) else repr(x)

    def line(self, e: Equation) -> str:
        """An equation as a line of text."""
        operands = [*map(self.operand, e.inputs), *(f"{key}={_shown(value)}" for key, value in e.params.items())]
        return f"{self[e.output]}: {_type(e.output)} = {e.primitive.name}({', '.join(operands)})"


def constant_key(value: Any) -> Any:
    """Metadata or a number as a value that can be compared and hashed (slices cannot, before Python 3.12)."""
    if isinstance(value, dict):
        return tuple((name, constant_key(value[name])) for name in sorted(value))
    if isinstance(value, tuple):
        return tuple(map(constant_key, value))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    if isinstance(value, float):
        return (type(value).__name__, value.hex())  # 0.0 and -0.0 differ, and NaN is itself
    return (type(value).__name__, value)  # 1, 1.0 and True are different constants


def _type(var: Var) -> str:
    return f"{var.dtype}[{','.join(map(str, var.shape))}]"


def _shown(value: Any) -> str:
    """Metadata as one would write it: slices with colons, three dots for the axes before."""
    if isinstance(value, slice):
        start, stop, step = ("" if part is None else str(part) for part in (value.start, value.stop, value.step))
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))}{',' * (len(value) == 1)})"
    if value is Ellipsis:
        return "..."
    return str(value) if isinstance(value, np.dtype) else repr(value)


def _letters() -> Iterator[str]:
    """a, b, ..., z, aa, ab, ..."""
    for n in count(1):
        for letters in product(ascii_lowercase, repeat=n):
            yield "".join(letters)
