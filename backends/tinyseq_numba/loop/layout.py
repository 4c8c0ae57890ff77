"""Where the values of a step live and when they are there.

A row is one sequence of the batch. Elementwise work goes over a row in one pass and keeps values in registers; a value
is put into memory only if a product, another pass, the next step or the caller asks for it.

    section  before, in and after the loop over a chunk of steps: what is for all steps of a chunk at once stands around it
    stage    begins after the products of the stage before: a value that a product gives is there at the next stage
    phase    within a stage, one pass over a row: a sum over the row is there at the next phase

A row has features, or lines of features: (B, N) or (B, S, N), where S vectors are looked at in each sequence. A pass goes
over one of these shapes, and what has other axes, a number a line or one line for all, comes from memory. So does what is
looked up by ids: the whole of it has to be there before the pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.graph import Equation, Operand, Var
from tinyseq_numba.loop.lower import LOOKUP, PICK, lower, row_numbers
from tinyseq_numba.loop.product import panel_of
from tinyseq_numba.loop.vectors import SUPPORTED, TYPES, supports

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step, Total

__all__ = [
    "AFTER", "BEFORE", "LOOP", "Layout", "Place", "Unsupported", "fuses", "gathers", "looks_up", "pass_of",
    "plan_layout", "position_in", "width_of",
]  # fmt: skip

Level = tuple[int, int, int]
BEFORE, LOOP, AFTER = range(3)
COLUMNS = ("sum", "max", "min", "all", "any")
MOVED = ("matmul", "concatenate", "scatter_add")  # what no pass over a row computes
STAYS = ("stack", "written", "chunk", "closed")  # arrays that hold every step of a chunk when its loop has run


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
        step: what is laid out: the step as it was given, or written in another way.
        equations: what is computed, in order; slices and joins have become places and are left out.
        level: when each value is there.
        reads: where a value that is in memory is read.
        writes: where a value that is computed is put.
        rows: which values have a row of their own for each sequence.
        products: for each section and stage, the products that follow it: the equation, the number of its packed weights.
        packed: the weights to pack.
        scratch: the numbers in a row of each scratch array, and its dtype.
        chunks: likewise, of arrays with a row for every step of a chunk.
        stages: how many there are in each section.
        copies: values that are in memory and wanted in another place too, and the pass that puts them there.
        row_numbers: the closed values that have to be 0, 1, 2 ..., one for each row.
    """

    step: Step
    equations: tuple[Equation, ...]
    level: dict[Var, Level]
    reads: dict[Var, Place]
    writes: dict[Var, list[Place]]
    rows: frozenset[Var]
    products: dict[tuple[int, int], list[tuple[Equation, int]]]
    packed: tuple[Var, ...]
    scratch: tuple[tuple[int, np.dtype[Any]], ...]
    chunks: tuple[tuple[int, np.dtype[Any]], ...]
    stages: tuple[int, int, int]
    copies: tuple[tuple[Var, Place, Level], ...]
    row_numbers: frozenset[int]

    @property
    def lookups(self) -> tuple[Equation, ...]:
        """The equations with ids that may be out of bounds."""
        return tuple(e for e in self.equations if looks_up(e))


def width_of(v: Var, rows: Iterable[Var]) -> int:
    """Numbers in a row of a value."""
    return math.prod(v.shape[1:] if v in rows else v.shape)


def dims_of(v: Var, rank: int, rows: Iterable[Var]) -> tuple[int, ...]:
    """The axes of a row of a value, beside a result with so many axes in all.

    Raises:
        Unsupported: a row would be spread over something else than its own sequence.
    """
    shape = (1,) * (rank - len(v.shape)) + v.shape
    if (len(v.shape) != rank) if v in rows else (rank > 1 and shape[0] != 1):
        raise Unsupported(f"a value of shape {v.shape} beside one with {rank} axes")
    return shape[1:]


def grid_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The lines, and the features of each, of rows that have both."""
    return (shape[1], shape[2]) if len(shape) == 3 and shape[1] > 1 < shape[2] else None


def pass_of(v: Var, rows: Iterable[Var]) -> tuple[int, ...]:
    """What a pass goes over to compute a value: lines of features, or features."""
    return (grid_of(v.shape) if v in rows else None) or (width_of(v, rows),)


def gathers(e: Equation) -> bool:
    """Whether it sums the lines of each row."""
    return e.primitive.name == "sum" and e.params["axis"] == (-2,)


def looks_up(e: Equation) -> bool:
    """Whether the second input says where in the first, which is in memory, the result is found."""
    return e.primitive in (LOOKUP, PICK)


def position_in(e: Equation) -> str | None:
    """Of what ``positions`` counts: "row", "column" of a pass, or nothing on an axis of one; None where there is no code."""
    shape, axis = e.output.shape, e.params["axis"]
    if axis == -len(shape):
        return "row"
    if shape[axis] == 1:
        return "nothing"
    return "column" if axis == -1 or shape[-1] == 1 else None


def computed_in(e: Equation) -> Iterable[Var]:
    """The inputs that a pass has at hand where it computes the result."""
    return e.inputs[1:] if looks_up(e) else e.vars  # type: ignore[return-value]


def padded(width: int, dtype: np.dtype[Any]) -> int:
    """The width, up to whole panels, so that a product may write into it."""
    panel = panel_of(dtype)
    return -(-width // panel) * panel


def fuses(e: Equation, stacked: frozenset[Var]) -> bool:
    """Whether there may be code for the equation beside the loop; the layout has the last word."""
    name = e.primitive.name
    if any(v.dtype.kind not in "fb" or v.dtype not in TYPES for v in (*e.vars, e.output)):
        return False  # integers cost an array library no more
    if any(len(v.shape) > 3 or grid_of(v.shape) for v in (*e.vars, e.output)):
        return False  # memory for some steps' worth of lines is too much to stay in the cache
    if name == "reshape":
        return e.output.shape[:1] == next(e.vars).shape[:1]
    if name == "matmul":
        left, right = e.inputs
        return left in stacked and right not in stacked and len(left.shape) == len(right.shape) == 2  # type: ignore[union-attr]
    if name in COLUMNS:
        return bool(e.params["axis"] == (-1,))
    if name in ("getitem", "scatter_add"):
        return len(e.inputs) == 1 and len(e.params["key"]) == 2 and e.params["key"][0] is Ellipsis
    if name == "concatenate":
        return bool(e.params["axis"] == -1)
    return name in SUPPORTED


def plan_layout(step: Step) -> Layout:
    """Lay out a step.

    Raises:
        Unsupported: an operation, a shape or a dtype that there is no code for.
    """
    return _Planner(step).plan()


class _Planner:
    def __init__(self, step: Step) -> None:
        self.weights = {e.inputs[1] for e in step.graph.equations if e.primitive.name == "matmul"}
        self.row_numbers = row_numbers(step)
        self.step = step = lower(step)
        self.tables = {e.inputs[0] for e in step.graph.equations if looks_up(e) and not e.params["own"]}
        if not step.carry or any(not v.shape for v in step.carry):
            raise Unsupported("a carry without a batch axis")
        self.batch = step.carry[0].shape[0]
        self.made = {e.output: e for e in step.graph.equations}
        self.level: dict[Var, Level] = {}
        self.reads: dict[Var, Place] = {}
        self.writes: dict[Var, list[Place]] = {}
        self.rows: set[Var] = set()
        self.scratch: list[tuple[int, np.dtype[Any]]] = []
        self.chunks: list[tuple[int, np.dtype[Any]]] = []
        self.packed: list[Var] = []
        self.products: dict[tuple[int, int], list[tuple[Equation, int]]] = {}
        self.views: set[Var] = set()  # slices: another place in what they look at
        self.copies: list[tuple[Var, Place, Level]] = []
        equations = step.graph.equations
        first, last = step.before, len(equations) - step.after
        self.section = {e.output: BEFORE if i < first else LOOP if i < last else AFTER for i, e in enumerate(equations)}
        # What the loop gives and something after it reads has a place of its own for every step of a chunk.
        self.crossing = {v for e in equations[last:] for v in e.vars} | {
            v for total in step.sums for v in total.inputs if total.kind != "each"
        }
        for e in reversed(equations):
            if e.primitive.name in ("getitem", "reshape") and e.output in self.crossing:
                self.crossing.update(e.vars)

    def plan(self) -> Layout:
        step = self.step
        for v in (*step.graph.inputs, *step.graph.closed, *(e.output for e in step.graph.equations)):
            if v.dtype not in TYPES:
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
        for i, total in enumerate(step.sums):
            self._sum(i, total)
        self._outputs()
        kept = tuple(e for e in step.graph.equations if e.primitive.name not in MOVED and e.output not in self.views)
        levels = [*self.level.values(), *(level for _, _, level in self.copies)]
        stages = tuple(
            1 + max((stage for section, stage, _ in levels if section == each), default=-1) for each in (BEFORE, LOOP, AFTER)
        )
        return Layout(
            step,
            kept,
            self.level,
            self.reads,
            self.writes,
            frozenset(self.rows),
            self.products,
            tuple(self.packed),
            tuple(self.scratch),
            tuple(self.chunks),
            stages,  # type: ignore[arg-type]
            tuple(self.copies),
            self.row_numbers,
        )

    def _find_rows(self) -> None:
        """Which values differ from sequence to sequence."""
        step, rows = self.step, self.rows
        consumers: dict[Var, list[Equation]] = {}
        for e in step.graph.equations:
            for v in e.vars:
                consumers.setdefault(v, []).append(e)
        for v in (*step.graph.inputs, *step.graph.closed):
            if len(v.shape) > 3:
                raise Unsupported(f"a value of shape {v.shape}")
            if not v.shape or v.shape[0] != self.batch:
                continue
            spread = [e for e in consumers.get(v, ()) if e.primitive.name in SUPPORTED - {"reshape"}]
            stretched = any(len(e.output.shape) > len(v.shape) for e in spread)
            if v in step.carry or not (stretched or v in self.tables or (len(v.shape) == 2 and v in self.weights)):
                rows.add(v)
        for e in step.graph.equations:
            out = e.output
            if len(out.shape) > 3:
                raise Unsupported(f"{e.primitive.name} with a result of shape {out.shape}")
            if any(v in rows for v in e.vars):
                if not out.shape or out.shape[0] != self.batch:
                    raise Unsupported(f"{e.primitive.name} across the batch")
                rows.add(out)

    def _whole(self, base: tuple[str, int], v: Var) -> Place:
        width = width_of(v, self.rows)
        return Place(base, width if v in self.rows else 0, 0, width)

    def _only_weights(self, v: Var) -> bool:
        uses = [e for e in self.step.graph.equations if any(w is v for w in e.vars)]
        return bool(uses) and all(e.primitive.name == "matmul" and e.inputs[1] is v and e.inputs[0] is not v for e in uses)

    def _is_at(self, v: Var, place: Place, level: Level = (0, 0, 0)) -> None:
        self.reads[v] = place
        self.level[v] = level

    def carry_distance(self, i: int) -> int:
        """Numbers from row to row of a carry: as they are in a history, else such that a product may write there."""
        v = self.step.carry[i]
        width = width_of(v, self.rows)
        return width if i in self.step.histories or v.dtype.kind != "f" else padded(width, v.dtype)

    def _new_place(self, v: Var, width: int) -> Place:
        """Room for a value: for one step, or for all steps of a chunk if it is made or read outside the loop."""
        whole = self.section[v] != LOOP or v in self.crossing
        arrays = self.chunks if whole else self.scratch
        arrays.append((width, v.dtype))
        return Place(("chunk" if whole else "scratch", len(arrays) - 1), width, 0, width)

    def _in_memory(self, v: Var) -> Place:
        """Where a value can be read from memory; puts it there if it would only be in a register."""
        if v not in self.reads:
            if v not in self.rows:
                raise Unsupported("a value without a batch axis that has to be kept")
            place = self._output_place(v) or self._new_place(v, width_of(v, self.rows))
            self.writes.setdefault(v, []).append(place)
            self.reads[v] = place
        return self.reads[v]

    def _at_every_step(self, v: Var) -> Place:
        """Where a value can be read when a chunk's loop has run, or before it has."""
        place = self._in_memory(v)
        kind, i = place.base
        if kind not in STAYS and not (kind in ("in", "out") and i in self.step.histories):
            raise Unsupported("a state that is not kept, read after the loop")
        return place

    def _place(self, e: Equation) -> None:
        name, out = e.primitive.name, e.output
        if name == "matmul":
            self._product(e)
        elif name == "concatenate":
            self._join(e)
        elif name == "scatter_add":
            self._widen(e)
        elif name == "getitem":
            self._slice(e)
        elif name in COLUMNS:
            (x,) = e.inputs
            if not isinstance(x, Var) or x not in self.rows or not self._one_pass_sums(e, x):
                raise Unsupported(f"{name} over axis {e.params['axis']} of shape {next(e.vars).shape}")
            section, stage, phase = self._ready(e)
            self.level[out] = (section, stage, phase + 1)
            self._in_memory(out)
        elif name == "reshape":
            self._reshape(e)
        elif name == "cumsum":
            if e.params["axis"] != -1 or out not in self.rows:
                raise Unsupported(f"cumsum over axis {e.params['axis']} of shape {out.shape}")
            self.level[out] = self._ready(e)
        elif name == "positions":
            if position_in(e) is None or out not in self.rows:
                raise Unsupported(f"positions on axis {e.params['axis']} of shape {out.shape}")
            self.level[out] = self._ready(e)
        elif looks_up(e):
            self._look_up(e)
        elif supports(name, kind := (out if name == "where" else next(e.vars)).dtype) or name in SUPPORTED:
            if not supports(name, kind):
                raise Unsupported(f"{name} of {kind}")
            own = dims_of(out, len(out.shape), self.rows)
            for v in e.vars:
                dims = dims_of(v, len(out.shape), self.rows)
                if any(size not in (1, whole) for size, whole in zip(dims, own, strict=True)):
                    raise Unsupported(f"{name} from shape {v.shape} to {out.shape}")
            self.level[out] = self._ready(e)
        else:
            raise Unsupported(name)

    def _look_up(self, e: Equation) -> None:
        """What ids say where to find: in a table that is the same at every step and row, or in the row itself."""
        (x, ids), out = e.inputs, e.output
        assert isinstance(x, Var)
        assert isinstance(ids, Var)
        if (x in self.rows) != e.params["own"] or ids not in self.rows or 0 in x.shape:
            raise Unsupported(f"getitem by ids of shape {ids.shape} from shape {x.shape}")
        self._in_memory(x)
        self.level[out] = self._ready(e)

    def _one_pass_sums(self, e: Equation, x: Var) -> bool:
        """Whether a pass over a row finds all that is added up for each result."""
        if e.params["axis"] == (-1,):
            return len(x.shape) == 2 or grid_of(x.shape) is not None
        return gathers(e) and grid_of(x.shape) is not None

    def _reshape(self, e: Equation) -> None:
        """The same numbers in the same order: in a register in the same pass, in memory in the same place."""
        (x,), out = e.inputs, e.output
        if not isinstance(x, Var):
            raise Unsupported("a number reshaped")
        if x not in self.reads and pass_of(x, self.rows) == pass_of(out, self.rows):
            self.level[out] = self._ready(e)
            return
        section, stage, phase = max(self.level[x], (self.section[out], 0, 0))
        place = self._in_memory(x)
        self.views.add(out)
        self._is_at(out, place, (section, stage, phase + self._computed(x)))

    def _computed(self, v: Var) -> bool:
        """Whether a pass computes the value at its level, so that only that kind of pass can read it there."""
        return v in self.made and v not in self.views and self.made[v].primitive.name not in (*MOVED, *COLUMNS)

    def _ready(self, e: Equation) -> Level:
        """When all inputs are there. What comes from an earlier pass than the one that uses it comes through memory."""
        section = self.section[e.output]
        level = max((self.level[v] for v in e.vars), default=(0, 0, 0))
        if level[0] < section:
            level = (section, 0, 0)
        # So does what another kind of pass computes, and a later pass reads.
        x = next(e.vars) if e.primitive.name in COLUMNS else e.output
        at_hand = set(computed_in(e))
        for v in e.vars:
            alike = v in at_hand and (width_of(v, self.rows) == 1 or pass_of(v, self.rows) == pass_of(x, self.rows))
            if self.level[v] == level and self._computed(v) and not alike:
                level = (level[0], level[1], level[2] + 1)
                break
        for v in e.vars:
            if self.level[v] < level and v in self.made and v not in self.views:
                self._in_memory(v)
            if section == AFTER:
                self._at_every_step_if_in_memory(v)
        return level

    def _at_every_step_if_in_memory(self, v: Var) -> None:
        if v in self.reads and v in self.rows:
            self._at_every_step(v)

    def _product(self, e: Equation) -> None:
        left, right = e.inputs
        if not isinstance(left, Var) or not isinstance(right, Var) or right not in self.step.graph.closed or right in self.rows:
            raise Unsupported("a product whose right side changes from step to step or from row to row")
        if left not in self.rows or left.dtype != right.dtype or left.dtype.kind != "f":
            raise Unsupported(f"a product of {left.dtype}{list(left.shape)} and {right.dtype}{list(right.shape)}")
        out, section = e.output, self.section[e.output]
        if section == LOOP:
            self._in_memory(left)
        else:
            self._at_every_step(left)
        stage = self.level[left][1] if self.level[left][0] == section else 0
        if right not in self.packed:
            self.packed.append(right)
        width = padded(out.shape[-1], out.dtype)
        # A product writes whole panels: where an output has room for them, right there.
        place = self._output_place(out)
        if place is None or place.distance != width or place.column:
            place = self._new_place(out, width)
        self.products.setdefault((section, stage), []).append((e, self.packed.index(right)))
        self.writes[out] = [place]
        self._is_at(out, place, (section, stage + 1, 0))

    def _join(self, e: Equation) -> None:
        out = e.output
        if (
            e.params["axis"] != -1
            or len(out.shape) != 2
            or not all(isinstance(v, Var) and v in self.rows for v in (out, *e.inputs))
        ):
            raise Unsupported("concatenate other than of features")
        place = self._output_place(out) or self._new_place(out, out.shape[-1])
        column, level = 0, (self.section[out], 0, 0)
        for piece in e.vars:
            self._also_written(piece, place.shifted(column), self.section[out])
            column += piece.shape[-1]
            level = max(level, self.level[piece])
        self._is_at(out, place, (level[0], level[1], level[2] + 1))

    def _widen(self, e: Equation) -> None:
        """Some columns, with zeros beside them: what nothing writes to in an array of its own."""
        (x, *indices), out = e.inputs, e.output
        columns = self._columns(e, out)
        if indices or not isinstance(x, Var) or x not in self.rows or x.shape != (*out.shape[:-1], columns[1] - columns[0]):
            raise Unsupported(f"scatter_add with the key {e.params['key']}")
        place = self._new_place(out, width_of(out, self.rows))
        self._also_written(x, place.shifted(columns[0]), self.section[out])
        section, stage, phase = max(self.level[x], (self.section[out], 0, 0))
        self._is_at(out, place, (section, stage, phase + 1))

    def _columns(self, e: Equation, whole: Var) -> tuple[int, int]:
        """Which columns of a value with rows a getitem reads or a scatter_add writes."""
        key = e.params["key"]
        if len(key) != 2 or key[0] is not Ellipsis or not isinstance(key[1], slice):
            raise Unsupported(f"{e.primitive.name} with the key {key}")
        start, stop, stride = key[1].indices(whole.shape[-1])
        if stride != 1 or len(whole.shape) != 2 or whole not in self.rows:
            raise Unsupported(f"{e.primitive.name} with the key {key} of shape {whole.shape}")
        return start, stop

    def _slice(self, e: Equation) -> None:
        (x, *indices) = e.inputs
        if indices or not isinstance(x, Var):
            raise Unsupported(f"getitem with the key {e.params['key']}")
        start, _ = self._columns(e, x)
        section, stage, phase = self.level[x]
        in_register = x not in self.reads
        place = self._in_memory(x)
        computed = x in self.made and self.made[x].primitive.name not in MOVED and x not in self.views
        self.views.add(e.output)
        later = (section, stage, phase + 1) if computed or in_register else (section, stage, phase)
        self._is_at(e.output, place.shifted(start), later)

    def _sum(self, i: int, total: Total) -> None:
        """What is summed over all rows and steps: rows where they pass by, products from whole chunks."""
        if not all(v in self.rows and v.dtype.kind == "f" for v in total.inputs):
            raise Unsupported(f"a sum of {total.inputs[0].dtype}{list(total.inputs[0].shape)} over rows")
        if total.kind == "each":
            (x,) = total.inputs
            width = width_of(x, self.rows)
            self._also_written(x, Place(("total", i), width, 0, width))
        elif total.kind == "product":
            left, right = total.inputs
            if left.dtype != right.dtype:
                raise Unsupported(f"a product of {left.dtype} and {right.dtype}")
            self._at_every_step(left)
            self._at_every_step(right)
        else:
            (x,) = total.inputs
            self._also_summed(x, Place(("partial", i), 0, 0, width_of(x, self.rows)))

    def _also_summed(self, v: Var, place: Place) -> None:
        """What was put together is summed piece by piece, where the pieces are made."""
        if v in self.made and self.made[v].primitive.name == "concatenate":
            column = 0
            for piece in self.made[v].vars:
                self._also_summed(piece, place.shifted(column))
                column += piece.shape[-1]
        else:
            self._also_written(v, place)

    def _output_place(self, v: Var) -> Place | None:
        """Where the caller or the next step wants a value, if anywhere."""
        for i, new in enumerate(self.step.new_carry):
            if new is v and (i in self.step.histories or (self.section[v] == LOOP and v not in self.crossing)):
                return Place(("out", i), self.carry_distance(i), 0, width_of(v, self.rows))
        for i, written in enumerate(self.step.written):
            if written is v:
                return Place(("written", i), width_of(v, self.rows), 0, width_of(v, self.rows))
        return None

    def _also_written(self, v: Var, place: Place, section: int = LOOP) -> None:
        """Have a value written to one more place: by whoever computes it, else by a copy.

        Args:
            section: where it is copied, if it is not of this step's making.
        """
        kind, i = place.base
        passing = kind == "scratch" or (kind == "out" and i not in self.step.histories)  # holds one step, within the loop
        level = self.level[v]
        e = self.made.get(v)
        computed = e is not None and e.primitive.name not in MOVED and not gathers(e) and v not in self.views
        if computed and not (passing and level[0] != LOOP):
            self.writes.setdefault(v, []).append(place)
            return
        if v in self.made:
            self._in_memory(v)
        self.copies.append((v, place, max(level, (section if passing else self.section.get(v, section), 0, 0))))

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
            if self.reads.get(v) == place or place in self.writes.get(v, ()):
                continue
            self._also_written(v, place)
