"""Where the values of a step live and when they are there.

A row is one sequence of the batch. Elementwise work goes over a row in one pass and keeps values in registers; a value
is put into memory only if a product, another pass, the next step or the caller asks for it.

    stage   begins after the products of the stage before: a value that a product gives is there at the next stage
    phase   within a stage, one pass over a row: a sum over the row is there at the next phase
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.graph import Equation, Operand, Var
from tinyseq_numba.loop.product import panel_of
from tinyseq_numba.loop.vectors import SUPPORTED

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["Layout", "Place", "Unsupported", "plan_layout"]

Level = tuple[int, int]
COLUMNS = ("sum", "max", "min")


class Unsupported(Exception):
    """The generator has no code for an operation; the sentence names it."""


@dataclass(frozen=True)
class Place:
    """Somewhere in memory.

    Attributes:
        base: an array of the kernel, such as ("stack", 0).
        distance: numbers from one row to the next; 0 where all rows share one.
        column: where the value begins within a row.
        width: numbers in a row of the whole array.
    """

    base: tuple[str, int]
    distance: int
    column: int
    width: int

    def shifted(self, columns: int) -> Place:
        """The same rows, from another column on."""
        return Place(self.base, self.distance, self.column + columns, self.width)


@dataclass(frozen=True)
class Layout:
    """The result.

    Attributes:
        equations: what is computed, in order; slices and joins have become places and are left out.
        level: when each value is there.
        reads: where a value that is in memory is read.
        writes: where a value that is computed is put.
        rows: which values have a row of their own for each sequence.
        products: for each stage, the products that follow it: the equation, the number of its packed weights.
        packed: the weights to pack.
        scratch: the numbers in a row of each scratch array, and its dtype.
        stages: how many there are.
        copies: values that are in memory and wanted in another place too.
    """

    equations: tuple[Equation, ...]
    level: dict[Var, Level]
    reads: dict[Var, Place]
    writes: dict[Var, list[Place]]
    rows: frozenset[Var]
    products: dict[int, list[tuple[Equation, int]]]
    packed: tuple[Var, ...]
    scratch: tuple[tuple[int, np.dtype[Any]], ...]
    stages: int
    copies: tuple[tuple[Var, Place], ...]


def width_of(v: Var, rows: Iterable[Var]) -> int:
    """Numbers in a row of a value."""
    if v in rows and len(v.shape) == 1:
        return 1
    return v.shape[-1] if v.shape else 1


def padded(width: int, dtype: np.dtype[Any]) -> int:
    """The width, up to whole panels, so that a product may write into it."""
    panel = panel_of(dtype)
    return -(-width // panel) * panel


def plan_layout(step: Step) -> Layout:
    """Lay out a step.

    Raises:
        Unsupported: an operation, a shape or a dtype that there is no code for.
    """
    return _Planner(step).plan()


class _Planner:
    def __init__(self, step: Step) -> None:
        self.step = step
        if not step.carry or any(not v.shape for v in step.carry):
            raise Unsupported("a carry without a batch axis")
        self.batch = step.carry[0].shape[0]
        self.made = {e.output: e for e in step.graph.equations}
        self.level: dict[Var, Level] = {}
        self.reads: dict[Var, Place] = {}
        self.writes: dict[Var, list[Place]] = {}
        self.rows: set[Var] = set()
        self.scratch: list[tuple[int, np.dtype[Any]]] = []
        self.packed: list[Var] = []
        self.products: dict[int, list[tuple[Equation, int]]] = {}
        self.views: set[Var] = set()  # slices: another place in what they look at
        self.copies: list[tuple[Var, Place]] = []

    def plan(self) -> Layout:
        step = self.step
        for v in (*step.graph.inputs, *step.graph.closed, *(e.output for e in step.graph.equations)):
            if v.dtype.kind not in "fb" or v.dtype == np.float16:
                raise Unsupported(f"values of dtype {v.dtype}")
        self._find_rows()
        for i, v in enumerate(step.carry):
            width = width_of(v, self.rows)
            self._is_at(v, Place(("in", i), self.carry_distance(i), 0, width))
        for i, v in enumerate(step.slices):
            self._is_at(v, self._whole(("stack", i), v))
        for i, v in enumerate(step.graph.closed):
            if not self._only_weights(v):
                self._is_at(v, self._whole(("closed", i), v))
        for e in step.graph.equations:
            self._place(e)
        self._outputs()
        moved = ("matmul", "concatenate")
        kept = tuple(e for e in step.graph.equations if e.primitive.name not in moved and e.output not in self.views)
        stages = 1 + max((level[0] for level in self.level.values()), default=0)
        return Layout(
            kept,
            self.level,
            self.reads,
            self.writes,
            frozenset(self.rows),
            self.products,
            tuple(self.packed),
            tuple(self.scratch),
            stages,
            tuple(self.copies),
        )

    def _find_rows(self) -> None:
        """Which values differ from sequence to sequence; raises for shapes with more than a batch and a feature axis."""
        step, rows = self.step, self.rows
        consumers: dict[Var, list[Equation]] = {}
        for e in step.graph.equations:
            for v in e.vars:
                consumers.setdefault(v, []).append(e)
        for v in (*step.graph.inputs, *step.graph.closed):
            if len(v.shape) > 2:
                raise Unsupported(f"a value of shape {v.shape}")
            if not v.shape or v.shape[0] != self.batch:
                continue
            spread = [e for e in consumers.get(v, ()) if e.primitive.name in SUPPORTED - {"reshape"}]
            stretched = any(len(e.output.shape) == 2 for e in spread)
            weight = any(e.primitive.name == "matmul" and e.inputs[1] is v for e in consumers.get(v, ()))
            if (len(v.shape) == 2 and not weight) or (len(v.shape) == 1 and not stretched) or v in step.carry:
                rows.add(v)
        for e in step.graph.equations:
            out = e.output
            if len(out.shape) > 2:
                raise Unsupported(f"{e.primitive.name} with a result of shape {out.shape}")
            if any(v in rows for v in e.vars):
                if not out.shape or out.shape[0] != self.batch:
                    raise Unsupported(f"{e.primitive.name} across the batch")
                rows.add(out)

    def _whole(self, base: tuple[str, int], v: Var) -> Place:
        width = width_of(v, self.rows)
        if v not in self.rows and len(v.shape) == 2 and v.shape[0] != 1:
            raise Unsupported(f"a matrix of shape {v.shape} outside a product")
        return Place(base, width if v in self.rows else 0, 0, width)

    def _only_weights(self, v: Var) -> bool:
        uses = [e for e in self.step.graph.equations if any(w is v for w in e.vars)]
        return bool(uses) and all(e.primitive.name == "matmul" and e.inputs[1] is v and e.inputs[0] is not v for e in uses)

    def _is_at(self, v: Var, place: Place, level: Level = (0, 0)) -> None:
        self.reads[v] = place
        self.level[v] = level

    def carry_distance(self, i: int) -> int:
        """Numbers from row to row of a carry: as they are in a history, else such that a product may write there."""
        v = self.step.carry[i]
        width = width_of(v, self.rows)
        return width if i in self.step.histories or v.dtype.kind != "f" else padded(width, v.dtype)

    def _new_scratch(self, width: int, dtype: np.dtype[Any]) -> Place:
        self.scratch.append((width, dtype))
        return Place(("scratch", len(self.scratch) - 1), width, 0, width)

    def _in_memory(self, v: Var) -> Place:
        """Where a value can be read from memory; puts it there if it would only be in a register."""
        if v not in self.reads:
            if v not in self.rows:
                raise Unsupported("a value without a batch axis that has to be kept")
            place = self._new_scratch(width_of(v, self.rows), v.dtype)
            self.writes.setdefault(v, []).append(place)
            self.reads[v] = place
        return self.reads[v]

    def _place(self, e: Equation) -> None:
        name, out = e.primitive.name, e.output
        if name == "matmul":
            self._product(e)
        elif name == "concatenate":
            self._join(e)
        elif name == "getitem":
            self._slice(e)
        elif name in COLUMNS:
            (x,) = e.inputs
            if not isinstance(x, Var) or x not in self.rows or len(x.shape) != 2 or e.params["axis"] != (-1,):
                raise Unsupported(f"{name} over axis {e.params['axis']}")
            stage, phase = self._ready(e)
            self.level[out] = (stage, phase + 1)
            self._in_memory(out)
        elif name in SUPPORTED:
            widths = {width_of(v, self.rows) for v in e.vars} - {1}
            if widths - {width_of(out, self.rows)} or (name == "reshape" and widths and out.shape[-1] == 1):
                raise Unsupported(f"{name} from shape {next(iter(e.vars)).shape} to {out.shape}")
            self.level[out] = self._ready(e)
        else:
            raise Unsupported(name)

    def _ready(self, e: Equation) -> Level:
        """When all inputs are there. What comes from an earlier pass than the one that uses it comes through memory."""
        level = max((self.level[v] for v in e.vars), default=(0, 0))
        for v in e.vars:
            if self.level[v] < level and v in self.made and v not in self.views:
                self._in_memory(v)
        return level

    def _product(self, e: Equation) -> None:
        left, right = e.inputs
        if not isinstance(left, Var) or not isinstance(right, Var) or right not in self.step.graph.closed or right in self.rows:
            raise Unsupported("a product whose right side changes from step to step or from row to row")
        if left not in self.rows or left.dtype != right.dtype or left.dtype.kind != "f":
            raise Unsupported(f"a product of {left.dtype}{list(left.shape)} and {right.dtype}{list(right.shape)}")
        self._in_memory(left)
        stage = self.level[left][0]
        if right not in self.packed:
            self.packed.append(right)
        out = e.output
        width = padded(out.shape[-1], out.dtype)
        # A carry that has no history may be written by the product itself.
        place = self._direct_carry(out) or self._new_scratch(width, out.dtype)
        self.products.setdefault(stage, []).append((e, self.packed.index(right)))
        self.writes[out] = [place]
        self._is_at(out, place, (stage + 1, 0))

    def _direct_carry(self, v: Var) -> Place | None:
        for i, new in enumerate(self.step.new_carry):
            if new is v and i not in self.step.histories:
                return Place(("out", i), self.carry_distance(i), 0, v.shape[-1])
        return None

    def _join(self, e: Equation) -> None:
        out = e.output
        if e.params["axis"] != -1 or not all(isinstance(v, Var) and v in self.rows for v in (out, *e.inputs)):
            raise Unsupported("concatenate other than of features")
        place = self._output_place(out) or self._new_scratch(out.shape[-1], out.dtype)
        column, level = 0, (0, 0)
        for piece in e.vars:
            self._also_written(piece, place.shifted(column))
            column += piece.shape[-1]
            level = max(level, self.level[piece])
        self._is_at(out, place, (level[0], level[1] + 1))

    def _slice(self, e: Equation) -> None:
        (x, *indices) = e.inputs
        key = e.params["key"]
        if indices or not isinstance(x, Var) or len(key) != 2 or key[0] is not Ellipsis or not isinstance(key[1], slice):
            raise Unsupported(f"getitem with the key {key}")
        start, _, stride = key[1].indices(x.shape[-1])
        if stride != 1 or len(x.shape) != 2 or x not in self.rows:
            raise Unsupported(f"getitem with the key {key} of shape {x.shape}")
        stage, phase = self.level[x]
        in_register = x not in self.reads
        place = self._in_memory(x)
        computed = x in self.made and self.made[x].primitive.name not in ("matmul", "concatenate") and x not in self.views
        self.views.add(e.output)
        self._is_at(e.output, place.shifted(start), (stage, phase + 1) if computed or in_register else (stage, phase))

    def _output_place(self, v: Var) -> Place | None:
        """Where the caller or the next step wants a value, if anywhere."""
        for i, new in enumerate(self.step.new_carry):
            if new is v:
                return Place(("out", i), self.carry_distance(i), 0, width_of(v, self.rows))
        for i, written in enumerate(self.step.written):
            if written is v:
                return Place(("written", i), width_of(v, self.rows), 0, width_of(v, self.rows))
        return None

    def _also_written(self, v: Var, place: Place) -> None:
        """Have a value written to one more place: by whoever computes it, else by a copy."""
        if v in self.made and self.made[v].primitive.name not in ("matmul", "concatenate") and v not in self.views:
            self.writes.setdefault(v, []).append(place)
        else:
            self.copies.append((v, place))

    def _outputs(self) -> None:
        """The new carry and what the caller wants at every step."""
        step = self.step
        wanted: list[tuple[Operand, Place]] = []
        for i, v in enumerate(step.new_carry):
            wanted.append((v, Place(("out", i), self.carry_distance(i), 0, width_of(step.carry[i], self.rows))))
        for i, v in enumerate(step.written):
            if not isinstance(v, Var):
                raise Unsupported("a number as an output")
            wanted.append((v, Place(("written", i), width_of(v, self.rows), 0, width_of(v, self.rows))))
        for v, place in wanted:
            if not isinstance(v, Var) or v not in self.rows:
                raise Unsupported("an output that is the same for every row")
            if self.reads.get(v) == place:
                continue
            self._also_written(v, place)
