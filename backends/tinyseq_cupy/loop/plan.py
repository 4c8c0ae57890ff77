"""What a step does between one exchange of values and the next.

A block of threads owns some *units* (columns) of some rows. As long as an operation needs only its own column and numbers
that are one a row, a thread computes it in registers. Two things need the columns of other blocks: a product, which reads
whole rows of its left operand, and a sum over a row.

    section     the work between two exchanges; a product or a sum of what section s computes is there in section s + 1
    unit        a column of a value; the gates of a cell, H columns each of 4 H, belong to the same unit
    piece       the columns of a value that have the same place within its units: 4 in a row of 4 H columns with H units

So slices and joins of gates are nothing but other names of pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.graph import Equation, Operand, Var
from tinyseq_cupy.loop.scalars import SUPPORTED, is_float, register_dtype

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = [
    "REDUCTIONS",
    "RENAMES",
    "Array",
    "Group",
    "Place",
    "Plan",
    "Product",
    "Section",
    "Unsupported",
    "plan_step",
    "sources",
]

REDUCTIONS = ("sum", "max", "min")
RENAMES = ("getitem", "concatenate", "reshape", "broadcast_to", "copy")
MAX_PIECES = 16  # of a value: each is a line of code


class Unsupported(Exception):
    """The generator has no code for an operation; the sentence names it."""


@dataclass(frozen=True)
class Array:
    """An array that the kernels read or write.

    Attributes:
        kind: "carry" or "history" (of the step's input), "stack", "closed", "written", "scratch" or "partial".
        number: which of its kind.
        dtype: of its elements.
        width: numbers in a row; for a partial sum, the units that are summed over.
        rows: whether each sequence has a row of its own.
        copies: how many there are: 2 if a step must leave alone what the step before wrote.
    """

    kind: str
    number: int
    dtype: np.dtype[Any]
    width: int
    rows: bool = True
    copies: int = 1

    @property
    def name(self) -> str:
        return f"{self.kind}{self.number}"


@dataclass(frozen=True)
class Place:
    """An array at some time: "in" and "out" of a carry, "t" of a stack, "parity" of two copies, or "" for always."""

    array: Array
    when: str


@dataclass(frozen=True)
class Product:
    """``out = left @ right``, (B, K) by (K, G units).

    Attributes:
        number: which product of the step.
        left: where the left operand is.
        right: the weights.
        inner: K.
        pieces: G.
        units: the columns of a piece.
        out: the result, which is in shared memory in its section.

    Its operands' dtype is that of ``out``; sums are of its register dtype.
    """

    number: int
    left: Place
    right: Array
    inner: int
    pieces: int
    units: int
    out: Var


@dataclass(frozen=True)
class Group:
    """The work of a section on values with the same units; None for numbers that are one a row.

    Attributes:
        units: how many units there are.
        stores: values to put into memory, and where.
        terms: sums over a row to which this section adds.
    """

    units: int | None
    stores: tuple[tuple[Var, tuple[Place, ...]], ...]
    terms: tuple[Equation, ...]


@dataclass(frozen=True)
class Section:
    """The work between two exchanges.

    Attributes:
        products: are computed first.
        totals: sums over a row that are read.
        groups: then this.
    """

    products: tuple[Product, ...]
    totals: tuple[Var, ...]
    groups: tuple[Group, ...]

    @property
    def terms(self) -> tuple[Equation, ...]:
        """The sums over a row to which this section adds."""
        return tuple(e for group in self.groups for e in group.terms)


@dataclass(frozen=True)
class Plan:
    """A step, cut into sections.

    Attributes:
        step: what was planned.
        arrays: in the order in which their addresses are given to the kernels.
        sections: in the order in which they run.
        exchange: whether the first section, too, reads what other blocks wrote in the step before.
        section_of: in which section a value is there.
        reads: where a value that is in memory is read.
        partials: the partial sums of a sum over a row.
        made: the equation of each value that is computed.
        units_of: the units of each value with columns.
        widths: numbers in a row of each value; 1 for what is one a row.
    """

    step: Step
    arrays: tuple[Array, ...]
    sections: tuple[Section, ...]
    exchange: bool
    section_of: dict[Var, int]
    reads: dict[Var, Place]
    partials: dict[Var, Array]
    made: dict[Var, Equation]
    units_of: dict[Var, int]
    widths: dict[Var, int]

    @property
    def products(self) -> tuple[Product, ...]:
        """All products, in the order in which they run."""
        return tuple(p for section in self.sections for p in section.products)

    @property
    def widest(self) -> int:
        """The largest number of units, which decides how many blocks there are."""
        return max([1, *(g.units for s in self.sections for g in s.groups if g.units), *(p.units for p in self.products)])

    @property
    def terms(self) -> tuple[int, np.dtype[Any]]:
        """The most sums to which a section adds, and the widest dtype of any."""
        dtypes = [register_dtype(v.dtype) for v in self.partials]
        most = max(len(section.terms) for section in self.sections)
        return most, max(dtypes, key=lambda d: d.itemsize, default=np.dtype("float32"))

    def pieces(self, v: Var) -> int:
        """How many columns of a value a thread has."""
        return self.widths[v] // self.units_of[v] if v in self.units_of else 1


def plan_step(step: Step) -> Plan:
    """Cut a step into sections.

    Raises:
        Unsupported: an operation, a shape or a dtype that there is no code for.
    """
    return _Planner(step).plan()


def find_rows(step: Step) -> set[Var]:
    """The values that have a row, or a number, for each sequence of the batch."""
    batch = step.carry[0].shape[0]
    rows: set[Var] = set()
    uses: dict[Var, list[Equation]] = {}
    for e in step.graph.equations:
        for v in e.vars:
            uses.setdefault(v, []).append(e)
    for v in (*step.graph.inputs, *step.graph.closed):
        if not v.shape or v.shape[0] != batch:
            continue
        # As many units as sequences: what it is used for tells.
        weight = any(e.primitive.name == "matmul" and e.inputs[1] is v for e in uses.get(v, ()))
        spread = [e for e in uses.get(v, ()) if e.primitive.name in SUPPORTED or e.primitive.name == "broadcast_to"]
        column = len(v.shape) == 1 and any(len(e.output.shape) == 2 for e in spread)
        if v in step.carry or not (weight or column):
            rows.add(v)
    for e in step.graph.equations:
        if e.primitive.name in SUPPORTED - {"reshape"}:
            for v in e.vars:
                if v in rows and len(v.shape) != len(e.output.shape):
                    raise Unsupported(f"a value of shape {v.shape} beside one with {len(e.output.shape)} axes")
        if any(v in rows for v in e.vars):
            if not e.output.shape or e.output.shape[0] != batch:
                raise Unsupported(f"{e.primitive.name} across the batch")
            rows.add(e.output)
    return rows


class _Planner:
    def __init__(self, step: Step) -> None:
        self.step = step
        graph = step.graph
        if not step.carry or any(not v.shape for v in step.carry):
            raise Unsupported("a carry without a batch axis")
        for v in (*graph.inputs, *graph.closed, *(e.output for e in graph.equations)):
            if not is_float(v.dtype) and v.dtype.kind != "b":
                raise Unsupported(f"values of dtype {v.dtype}")
            if len(v.shape) > 2:
                raise Unsupported(f"a value of shape {v.shape}")
        self.rows = find_rows(step)
        self.made = {e.output: e for e in graph.equations}
        self.given = {*graph.inputs, *graph.closed}
        values = (*graph.inputs, *graph.closed, *self.made)
        self.widths = {v: 1 if not v.shape or (len(v.shape) == 1 and v in self.rows) else v.shape[-1] for v in values}
        self.units_of = self._units()
        self.section_of: dict[Var, int] = {}
        self.arrays: list[Array] = []
        self.reads: dict[Var, Place] = {}
        self.stores: dict[Var, list[Place]] = {}
        self.partials: dict[Var, Array] = {}
        self.products: dict[Var, Product] = {}
        self.count = dict.fromkeys(("scratch", "partial"), 0)

    def plan(self) -> Plan:
        self._inputs()
        for e in self.step.graph.equations:
            self._section(e)
        self._outputs()
        for e in self.step.graph.equations:
            if e.primitive.name == "matmul":
                self._product(e)
        sections = self._demand(1 + max(self.section_of.values(), default=0))
        # What is one number a row is written by one block and read by all.
        exchange = any(p.left.when == "in" for p in sections[0].products) or any(self.widths[v] == 1 for v in self.step.carry)
        return Plan(
            self.step,
            tuple(self.arrays),
            sections,
            exchange,
            self.section_of,
            self.reads,
            self.partials,
            self.made,
            self.units_of,
            self.widths,
        )

    # Shapes

    def _units(self) -> dict[Var, int]:
        """The units of each value with columns: what elementwise work, slices and joins bring together has the same."""
        root: dict[Var, Var] = {}

        def find(v: Var) -> Var:
            while root.setdefault(v, v) is not v:
                v = root[v]
            return v

        cuts: list[tuple[Var, int]] = []
        for e in self.step.graph.equations:
            name, out = e.primitive.name, e.output
            if name == "matmul" or name in REDUCTIONS:
                cuts += [(v, self.widths[v]) for v in (out, e.inputs[0]) if isinstance(v, Var)]
                continue
            together = [v for v in (*e.vars, out) if self.widths[v] > 1]
            cuts += [(v, self.widths[v]) for v in together]
            if name == "getitem":
                cuts.append((out, self._start(e)))
            for v in together[1:]:
                root[find(v)] = find(together[0])
        for old, new in zip(self.step.carry, self.step.new_carry, strict=True):
            if isinstance(new, Var) and self.widths[old] > 1:  # a thread finds its own columns again in the next step
                root[find(new)] = find(old)
                cuts.append((old, self.widths[old]))
        units: dict[Var, int] = {}
        for v, at in cuts:
            units[find(v)] = gcd(units.get(find(v), 0), at)
        for v in self.widths:
            if self.widths[v] > 1:
                units.setdefault(find(v), self.widths[v])
        return {v: units[find(v)] for v in self.widths if self.widths[v] > 1}

    def _start(self, e: Equation) -> int:
        """The first column of a slice.

        Raises:
            Unsupported: it is not a slice of neighbouring columns.
        """
        x, *indices = e.inputs
        key = e.params["key"]
        slices = not indices and len(key) == 2 and key[0] is Ellipsis and isinstance(key[1], slice)
        if not slices or not isinstance(x, Var) or self.widths[x] == 1 or self.widths[e.output] == 1:
            raise Unsupported(f"getitem with the key {key}")
        start, _, stride = key[1].indices(self.widths[x])
        if stride != 1:
            raise Unsupported(f"getitem with the key {key}")
        return int(start)

    # Where the inputs are, and when everything else is there

    def _array(self, kind: str, number: int, v: Var, copies: int = 1) -> Array:
        array = Array(kind, number, v.dtype, self.widths[v], v in self.rows, copies)
        self.arrays.append(array)
        return array

    def _inputs(self) -> None:
        step = self.step
        self.carries = [
            self._array(*(("history", i, v) if i in step.histories else ("carry", i, v, 2))) for i, v in enumerate(step.carry)
        ]
        places = [(v, Place(a, "in")) for v, a in zip(step.carry, self.carries, strict=True)]
        places += [(v, Place(self._array("stack", i, v), "t")) for i, v in enumerate(step.slices)]
        places += [(v, Place(self._array("closed", i, v), "")) for i, v in enumerate(step.graph.closed)]
        for v, place in places:
            self.reads[v] = place
            self.section_of[v] = 0

    def _section(self, e: Equation) -> None:
        name, out = e.primitive.name, e.output
        for v in e.vars:
            if v in self.given and v not in self.rows and len(v.shape) == 2 and v.shape[0] != 1 and name != "matmul":
                raise Unsupported(f"a matrix of shape {v.shape} outside a product")
        ready = max((self.section_of[v] for v in e.vars), default=0)
        if name == "matmul":
            left, right = e.inputs
            if not isinstance(left, Var) or right not in self.step.graph.closed or right in self.rows or left not in self.rows:
                raise Unsupported("a product whose right side changes from step to step or from row to row")
            assert isinstance(right, Var)
            if left.dtype != right.dtype or not is_float(left.dtype) or len(right.shape) != 2 or len(left.shape) != 2:
                raise Unsupported(f"a product of {left.dtype}{list(left.shape)} and {right.dtype}{list(right.shape)}")
            if 1 in (self.widths[left], self.widths[out]):
                raise Unsupported(f"a product of {left.dtype}{list(left.shape)} and {right.dtype}{list(right.shape)}")
            self.section_of[out] = 0 if left in self.given else ready + 1
        elif name in REDUCTIONS:
            (x,) = e.inputs
            if not isinstance(x, Var) or x not in self.rows or len(x.shape) != 2 or e.params["axis"] != (-1,):
                raise Unsupported(f"{name} over axis {e.params['axis']}")
            if not is_float(x.dtype):
                raise Unsupported(f"{name} of {x.dtype}")
            self.section_of[out] = ready if self.widths[x] == 1 else ready + 1
        elif name in SUPPORTED or name in RENAMES:
            widths = {self.widths[v] for v in e.vars} - {1}
            joined = name in ("getitem", "concatenate")
            if not joined and (widths - {self.widths[out]} or (name == "reshape" and self.widths[out] == 1 and widths)):
                raise Unsupported(f"{name} from shape {next(e.vars).shape} to {out.shape}")
            if name == "concatenate" and (e.params["axis"] != -1 or not all(isinstance(x, Var) for x in e.inputs)):
                raise Unsupported("concatenate other than of features")
            if name == "concatenate" and any(self.widths[v] == 1 for v in e.vars):
                raise Unsupported("concatenate with a single feature")
            self.section_of[out] = ready
        else:
            raise Unsupported(name)
        if out in self.units_of and self.widths[out] // self.units_of[out] > MAX_PIECES:
            raise Unsupported(f"{name} that cuts rows of {self.widths[out]} into pieces of {self.units_of[out]}")

    # What is put into memory

    def _outputs(self) -> None:
        wanted: list[tuple[Operand, Place]] = []
        for i, v in enumerate(self.step.new_carry):
            wanted.append((v, Place(self.carries[i], "out")))
        for i, v in enumerate(self.step.written):
            wanted.append((v, Place(self._array("written", i, v), "t")) if isinstance(v, Var) else (v, wanted[0][1]))
        for v, place in wanted:
            if not isinstance(v, Var) or v not in self.rows:
                raise Unsupported("an output that is the same for every row")
            self._store(v, place)

    def _store(self, v: Var, place: Place) -> None:
        self.stores.setdefault(v, []).append(place)
        self.reads.setdefault(v, place)

    def _scratch(self, kind: str, v: Var, copies: int) -> Array:
        self.count[kind] += 1
        return self._array(kind, self.count[kind] - 1, v, copies)

    def _product(self, e: Equation) -> None:
        left, right = e.inputs
        assert isinstance(left, Var)
        assert isinstance(right, Var)
        if left not in self.reads:  # other blocks may still read what the step before put there
            self._store(left, Place(self._scratch("scratch", left, 2), "parity"))
        units = self.units_of[e.output]
        self.products[e.output] = Product(
            len(self.products),
            self.reads[left],
            self.reads[right].array,
            left.shape[-1],
            self.widths[e.output] // units,
            units,
            e.output,
        )

    def _demand(self, count: int) -> tuple[Section, ...]:
        """From the last section to the first: what it needs of earlier ones is computed again or kept in memory."""
        sections: list[Section] = []
        terms: dict[int, list[Equation]] = {}
        for s in reversed(range(count)):
            roots = [v for v in self.stores if self.section_of[v] == s]
            summed = [next(e.vars) for e in terms.get(s, ())]
            totals, products = self._need([*roots, *summed], s)
            for v in totals:
                e = self.made[v]
                at = terms.setdefault(self.section_of[v] - 1, [])
                if e not in at:
                    at.append(e)
                    x = next(e.vars)
                    units = self.units_of[x]
                    self.count["partial"] += 1
                    array = Array("partial", self.count["partial"] - 1, register_dtype(v.dtype), units, True, 2)
                    self.arrays.append(array)
                    self.partials[v] = array
            sections.append(
                Section(
                    tuple(sorted((self.products[v] for v in products), key=lambda p: p.number)),
                    tuple(totals),
                    self._groups(roots, terms.get(s, [])),
                )
            )
        return tuple(reversed(sections))

    def _groups(self, roots: list[Var], terms: list[Equation]) -> tuple[Group, ...]:
        groups: dict[int | None, tuple[list[Var], list[Equation]]] = {}
        for v in roots:
            groups.setdefault(self.units_of.get(v), ([], []))[0].append(v)
        for e in terms:
            groups.setdefault(self.units_of[next(e.vars)], ([], []))[1].append(e)
        return tuple(
            Group(units, tuple((v, tuple(self.stores[v])) for v in stored), tuple(summed))
            for units, (stored, summed) in groups.items()
        )

    def _need(self, wanted: list[Var], s: int) -> tuple[list[Var], list[Var]]:
        """The sums and the products that a section must have for some values; puts into memory what it cannot compute."""
        at_hand = self._at_hand(s)
        totals: list[Var] = []
        products: list[Var] = []
        seen: set[Var] = set(self.given)
        while wanted:
            v = wanted.pop()
            if v in seen:
                continue
            seen.add(v)
            e = self.made[v]
            if e.primitive.name in REDUCTIONS and self.widths[next(e.vars)] > 1:
                totals.append(v)
            elif v in self.units_of and self.section_of[v] < s and (v in self.stores or v not in at_hand):
                if v not in self.stores:  # each thread finds there what it put there
                    self._store(v, Place(self._scratch("scratch", v, 1), ""))
            elif v in self.products:
                products.append(v)
            else:
                wanted += e.vars
        return totals, products

    def _at_hand(self, s: int) -> set[Var]:
        """What a section can compute from what is in memory: the inputs, what is one a row, what was stored before."""
        found = {v for v in self.section_of if v in self.given or v not in self.units_of}
        found.update(v for v in self.stores if self.section_of[v] < s)
        for e in self.step.graph.equations:
            if e.primitive.name != "matmul" and all(v in found for v in e.vars):
                found.add(e.output)
        return found


def sources(e: Equation, piece: int, plan: Plan) -> Iterator[tuple[Operand, int]]:
    """Which pieces of the inputs a piece of an elementwise result, a slice or a join is made of."""
    if e.primitive.name == "getitem":
        x = e.inputs[0]
        assert isinstance(x, Var)
        start, _, _ = e.params["key"][1].indices(plan.widths[x])
        yield x, piece + start // plan.units_of[x]
    elif e.primitive.name == "concatenate":
        for x in e.vars:
            if piece < plan.pieces(x):
                yield x, piece
                return
            piece -= plan.pieces(x)
    else:
        for operand in e.inputs:
            yield operand, piece if isinstance(operand, Var) and plan.pieces(operand) > 1 else 0
