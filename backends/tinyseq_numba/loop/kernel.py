"""A step as LLVM code: one function that takes a share of the batch through all T steps.

for each chunk of steps
  before the loop, for each stage
    for each step of the chunk, for each row of the share
      for each phase: the numbers that are one a row, then the columns, a vector at a time
    the products that follow the stage, for all steps of the chunk at once
  for each step of the chunk
    for each stage: the rows, then the products
  after the loop: as before it
  the sums over rows and steps grow

With many weights, each thread has all rows and a part of the columns of every product: it reads only its part of the weights at
a step, and the threads wait for each other before and after a product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from tinyseq.graph import Equation, Operand, Var
from tinyseq_numba.loop.barrier import define_barrier
from tinyseq_numba.loop.layout import (
    AFTER,
    BEFORE,
    COLUMNS,
    LOOP,
    Layout,
    Place,
    gathers,
    looks_up,
    padded,
    pass_of,
    plan_layout,
    position_in,
    width_of,
)
from tinyseq_numba.loop.lower import LOOKUP
from tinyseq_numba.loop.product import define_outer, define_product, lanes_of, loop, panel_of
from tinyseq_numba.loop.vectors import I32, I64, TYPES, Vectors, compute, in_memory

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["KINDS", "NUMBERS", "Kernel", "write_kernel"]

# The order of the kernel's pointers: all carries, then all histories' ... as ``Kernel.pointers`` counts them.
OWN = ("total", "partial", "panel")  # of each thread
KINDS = ("carry", "history", "stack", "closed", "packed", "written", "scratch", "chunk", "barrier", "fault", *OWN)
NUMBERS = 8  # before the pointers
IDENTITY = frozenset(("copy", "reshape", "broadcast_to"))


class Kernel:
    """A kernel's text, and what its caller must give it.

    Attributes:
        text: LLVM assembly of ``void loop(table)``. The table begins with the NUMBERS first, last, rows, steps, chunk, reverse,
            part, parts: rows first to last of ``rows``, so many steps at a time; of products, if there are more parts than
            one, all rows and this part of the columns. Then come the pointers.
        layout: where things are.
        offsets: for each kind of array, where its pointers begin.
    """

    def __init__(self, text: str, layout: Layout, offsets: dict[str, int], count: int) -> None:
        self.text = text
        self.layout = layout
        self.offsets = offsets
        self.count = count


def write_kernel(step: Step) -> Kernel:
    """Generate the code of a step.

    Raises:
        Unsupported: there is none for an operation in it.
    """
    return _Writer(step).write()


class _Writer:
    def __init__(self, step: Step) -> None:
        self.layout = plan_layout(step)
        self.step = step = self.layout.step
        self.rows = self.layout.rows
        counts = {
            "carry": len(step.carry), "history": len(step.carry), "stack": len(step.slices), "closed": len(step.graph.closed),
            "packed": len(self.layout.packed), "written": len(step.written), "scratch": len(self.layout.scratch),
            "chunk": len(self.layout.chunks), "barrier": 1, "fault": 1, "partial": len(step.sums), "total": len(step.sums),
            "panel": 2,
        }  # fmt: skip
        self.offsets, self.count = {}, 0
        for kind in KINDS:
            self.offsets[kind] = self.count
            self.count += counts[kind]
        self.dtype = next((v.dtype for v in step.carry if v.dtype.kind == "f"), np.dtype("float32"))
        self.lanes = lanes_of(self.dtype)
        self.lookups = {e.output: i for i, e in enumerate(self.layout.lookups)}

    def write(self) -> Kernel:
        module = ir.Module("tinyseq_loop")
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), "loop")
        (table,) = function.args
        self.b = b = ir.IRBuilder(function.append_basic_block("entry"))
        self.entry = function.entry_basic_block
        kinds = [I64] * NUMBERS + [ir.PointerType()] * self.count
        words = [b.load(b.gep(table, [I64(i)], source_etype=I64), typ=kind) for i, kind in enumerate(kinds)]
        self.first, self.last, self.batch, self.steps, chunk, reverse, self.part, self.parts = words[:NUMBERS]
        self.pointers = words[NUMBERS:]
        self.accumulators: dict[tuple[Var, int], Any] = {}
        self._make_accumulators()
        self.backwards = b.icmp_signed("!=", reverse, I64(0))
        self.together = b.icmp_signed(">", self.parts, I64(1))  # at every product
        self.top = b.select(self.together, I64(0), self.first)  # the rows that this thread has of a product
        self.height = b.select(self.together, self.batch, b.sub(self.last, self.first))
        self.arrivals = b.alloca(I64)
        b.store(I64(0), self.arrivals)
        outputs = [e.output for products in self.layout.products.values() for e, _ in products]
        factors = [total.inputs[1] for total in self.step.sums if total.kind == "product"]
        self.spans = {v: self._span(v) for v in (*outputs, *factors)}
        with loop(b, I64(0), self.steps, chunk) as self.begin:
            rest = b.sub(self.steps, self.begin)
            self.length = b.select(b.icmp_signed("<", rest, chunk), rest, chunk)
            self._clear_sums()
            self._around(BEFORE)
            with loop(b, I64(0), self.length) as s:
                self._at_step(s)
                for stage in range(self.layout.stages[LOOP]):
                    self._rows(LOOP, stage)
                    self._products(stage)
            self._around(AFTER)
            self._add_sums()
        b.ret_void()
        return Kernel(str(module), self.layout, self.offsets, self.count)

    # The parts

    def _at_step(self, s: Any) -> None:
        """From here on, addresses are those of step ``s`` of the chunk."""
        b = self.b
        count = b.add(self.begin, s)
        t = b.select(self.backwards, b.sub(b.sub(self.steps, I64(1)), count), count)
        later = b.add(t, I64(1))
        self.now = {
            "s": s,
            "t": t,
            "in": b.select(self.backwards, later, t),
            "out": b.select(self.backwards, t, later),
            "parity": b.and_(count, I64(1)),
        }
        self.bases: dict[tuple[str, int], Any] = {}
        for place in (*self.layout.reads.values(), *(p for places in self.layout.writes.values() for p in places)):
            self._base(place)  # before the loops that use it
        for _, place, _ in self.layout.copies:
            self._base(place)

    def _around(self, section: int) -> None:
        """What stands before or after the loop, for all steps of a chunk, stage by stage."""
        for stage in range(self.layout.stages[section]):
            if self._passes(section, stage):
                with loop(self.b, I64(0), self.length) as s:
                    self._at_step(s)
                    self._rows(section, stage)
            products = self.layout.products.get((section, stage), ())
            if products:
                self._wait()
                self._at_step(I64(0))
            for e, number in products:
                # Tiles go along time: a sequence has as many steps as a chunk, a share may have one row.
                left, out = e.inputs[0], e.output
                assert isinstance(left, Var)
                a, c = self.layout.reads[left], self.layout.reads[out]
                self._product(e, number, self.length, self._over_time(a), self._over_time(c), self.height,
                              I64(a.distance), I64(c.distance))  # fmt: skip
            if products:
                self._wait()

    def _products(self, stage: int) -> None:
        """The products of a step that follow a stage."""
        products = self.layout.products.get((LOOP, stage), ())
        if products:
            self._wait()
        for e, number in products:
            left, out = e.inputs[0], e.output
            assert isinstance(left, Var)
            a, c = self.layout.reads[left], self.layout.reads[out]
            self._product(e, number, self.height, I64(a.distance), I64(c.distance), I64(1), I64(0), I64(0))
        if products:
            self._wait()

    def _span(self, v: Var) -> tuple[Any, Any]:
        """The columns of a product that are this thread's to compute, in whole panels."""
        panel = panel_of(v.dtype)
        panels = I64(-(-v.shape[-1] // panel))
        edges = (self.b.sdiv(self.b.mul(panels, at), self.parts) for at in (self.part, self.b.add(self.part, I64(1))))
        start, stop = (self.b.mul(edge, I64(panel)) for edge in edges)
        return start, stop

    def _wait(self) -> None:
        """Wait until all threads are here, if they share the columns."""
        with self.b.if_then(self.together):
            arrivals = self.b.add(self.b.load(self.arrivals, typ=I64), self.parts)
            self.b.store(arrivals, self.arrivals)
            self.b.call(define_barrier(self.b.module), [self.pointers[self.offsets["barrier"]], arrivals])

    def _product(
        self, e: Equation, number: int, rows: Any, lda: Any, ldc: Any, groups: Any, group_a: Any, group_c: Any
    ) -> None:
        left, out = e.inputs[0], e.output
        assert isinstance(left, Var)
        inner = I64(left.shape[-1])
        a, c = (self._address(self.layout.reads[v], self.top, I64(0)) for v in (left, out))
        panels = self.pointers[self.offsets["packed"] + number]
        product = define_product(self.b.module, out.dtype)
        self.b.call(product, [groups, group_a, group_c, rows, *self.spans[out], inner, a, lda, panels, c, ldc])

    def _over_time(self, place: Place) -> Any:
        """The distance from a row to the same row one step further on, in the order in which the loop runs."""
        b, kind = self.b, place.base[0]
        if kind == "closed":
            return I64(0)
        size = b.mul(self.batch, I64(place.distance))
        return size if kind == "chunk" else b.select(self.backwards, b.neg(size), size)

    # Sums over rows and steps

    def _clear_sums(self) -> None:
        for i, total in enumerate(self.step.sums):
            if total.kind == "rows":
                self._each_column(i, lambda v, dtype, partial, whole: v.store(v.constant(dtype, 0), dtype, partial))

    def _add_sums(self) -> None:
        """A chunk's sums join the whole ones: sums of sums lose fewer bits than one long sum."""
        b = self.b

        def add(v: Vectors, dtype: np.dtype[Any], partial: Any, whole: Any) -> None:
            v.store(b.fadd(v.load(dtype, whole), v.load(dtype, partial)), dtype, whole)

        products = any(total.kind == "product" for total in self.step.sums)
        if products:
            self._wait()
        for i, total in enumerate(self.step.sums):
            if total.kind == "rows":
                self._each_column(i, add)
            if total.kind != "product":
                continue
            self._at_step(I64(0))
            left, right = total.inputs
            operands: list[Any] = []
            for x in (left, right):
                place = self.layout.reads[x]
                operands += [
                    I64(x.shape[-1]), self._address(place, self.top, I64(0)), I64(place.distance), self._over_time(place)
                ]  # fmt: skip
            panels = [self.pointers[self.offsets["panel"] + side] for side in (0, 1)]
            c = self.pointers[self.offsets["total"] + i]
            ldc = I64(padded(right.shape[-1], right.dtype))
            outer = define_outer(b.module, left.dtype)
            b.call(outer, [self.height, self.length, *operands, *self.spans[right], *panels, c, ldc])
        if products:
            self._wait()

    def _each_column(self, i: int, do: Callable[[Vectors, np.dtype[Any], Any, Any], None]) -> None:
        (x,) = self.step.sums[i].inputs
        width = width_of(x, self.rows)
        for start, stop, lanes in self._strides(width):
            with loop(self.b, I64(start), I64(stop), lanes) as column:
                partial, total = (
                    self._at(self.pointers[self.offsets[kind] + i], x.dtype, column) for kind in ("partial", "total")
                )
                do(Vectors(self.b, lanes), x.dtype, partial, total)

    # Memory

    def _make_accumulators(self) -> None:
        for e in self.layout.equations:
            name = e.primitive.name
            for lanes in (self.lanes, 1) if name in COLUMNS else (1,) if name == "cumsum" else ():
                self.accumulators[e.output, lanes] = self.b.alloca(ir.VectorType(TYPES[e.output.dtype], lanes))

    def _dtype_of(self, base: tuple[str, int]) -> np.dtype[Any]:
        kind, i = base
        if kind in ("in", "out"):
            return self.step.carry[i].dtype
        if kind in ("scratch", "chunk"):
            return (self.layout.scratch if kind == "scratch" else self.layout.chunks)[i][1]
        if kind in ("partial", "total"):
            return self.step.sums[i].var.dtype
        value = {"stack": self.step.slices, "closed": self.step.graph.closed, "written": self.step.written}[kind][i]
        assert isinstance(value, Var)
        return value.dtype

    def _base(self, place: Place) -> Any:
        """The address of the first row of an array at this step."""
        if place.base not in self.bases:
            b, (kind, i) = self.b, place.base
            size = b.mul(self.batch, I64(place.distance)) if place.distance else I64(place.width)
            if kind in ("in", "out"):
                kept = i in self.step.histories
                pointer = self.pointers[self.offsets["history" if kept else "carry"] + i]
                index = self.now[kind] if kept else self.now["parity"] if kind == "in" else b.xor(self.now["parity"], I64(1))
            else:
                pointer = self.pointers[self.offsets[kind] + i]
                index = self.now["s"] if kind == "chunk" else self.now["t"] if kind in ("stack", "written") else None
            offset = I64(0) if index is None else b.mul(index, size)
            self.bases[place.base] = self._at(pointer, self._dtype_of(place.base), offset)
        return self.bases[place.base]

    def _at(self, pointer: Any, dtype: np.dtype[Any], index: Any) -> Any:
        return self.b.gep(pointer, [index], source_etype=in_memory(dtype))

    def _address(self, place: Place, row: Any, column: Any) -> Any:
        index = self.b.add(column, I64(place.column))
        if place.distance:
            index = self.b.add(index, self.b.mul(row, I64(place.distance)))
        return self._at(self._base(place), self._dtype_of(place.base), index)

    # Stages and phases

    def _passes(self, section: int, stage: int) -> list[int]:
        """The phases of a stage in which there is something to do."""
        levels = [self._pass_of(e) for e in self.layout.equations] + [level for _, _, level in self.layout.copies]
        return sorted({phase for *at, phase in levels if at == [section, stage]})

    def _rows(self, section: int, stage: int) -> None:
        """A stage of a step: its passes over each row of the share."""
        phases = self._passes(section, stage)
        if not phases:
            return
        with loop(self.b, self.first, self.last) as row:
            for phase in phases:
                level = (section, stage, phase)
                self._phase(
                    row,
                    [e for e in self.layout.equations if self._pass_of(e) == level],
                    [(v, place) for v, place, at in self.layout.copies if at == level],
                )

    def _pass_of(self, e: Equation) -> tuple[int, int, int]:
        """The pass in which an equation runs; a sum over a row is there one phase after the pass that adds it up."""
        section, stage, phase = self.layout.level[e.output]
        return section, stage, phase - 1 if e.primitive.name in COLUMNS else phase

    def _shape(self, e: Equation) -> tuple[int, ...]:
        """What the pass goes over in which an equation runs."""
        return pass_of(next(e.vars) if e.primitive.name in COLUMNS else e.output, self.rows)

    def _phase(self, row: Any, equations: Sequence[Equation], copies: Sequence[tuple[Var, Place]]) -> None:
        """The passes over a row that need nothing of each other but single numbers."""
        groups: dict[tuple[int, ...], tuple[list[Equation], list[tuple[Var, Place]]]] = {(1,): ([], [])}
        for e in equations:
            groups.setdefault(self._shape(e), ([], []))[0].append(e)
        for v, place in copies:
            groups.setdefault((width_of(v, self.rows),), ([], []))[1].append((v, place))
        singles, single_copies = groups.pop((1,))
        scalars: dict[Var, Any] = {}
        if singles or single_copies:
            sums = [e for e in singles if e.primitive.name in COLUMNS]  # over rows of one number
            for e in (*sums, *(e for e in singles if e.primitive.name == "cumsum")):
                self._start(e)
            scalars = self._body(row, I64(0), 1, singles, single_copies, {})
            for e in sums:
                self._finish(row, I64(0), e)
        for shape, (group, copied) in groups.items():
            if len(shape) == 1:
                self._columns(row, shape[0], group, copied, self._singles(row, I64(0), group, copied, scalars))
                continue
            lines, width = shape
            for e in filter(gathers, group):
                self._clear(row, e, width)
            known = self._singles(row, I64(0), group, (), scalars)
            with loop(self.b, I64(0), I64(lines)) as line:
                of_line = self._singles(row, line, group, (), known, of_lines=lines)
                self._columns(row, width, group, (), of_line, (line, self.b.mul(line, I64(width))))

    def _singles(
        self,
        row: Any,
        line: Any,
        group: Sequence[Equation],
        copied: Iterable[tuple[Var, Place]],
        known: Mapping[Var, Any],
        of_lines: int = 0,
    ) -> dict[Var, Any]:
        """What is one number a row, or a line, is read once and not at every column."""
        found = dict(known)
        for x in dict.fromkeys([*(x for e in group for x in e.vars), *(x for x, _ in copied)]):
            one = x.shape[-1:] == (1,) and width_of(x, self.rows) == of_lines if of_lines else width_of(x, self.rows) == 1
            if x not in found and one:
                found[x] = Vectors(self.b, 1).load(x.dtype, self._address(self.layout.reads[x], row, line))
        return found

    def _columns(
        self,
        row: Any,
        width: int,
        group: Sequence[Equation],
        copied: Sequence[tuple[Var, Place]],
        scalars: dict[Var, Any],
        line: tuple[Any, Any] | None = None,
    ) -> None:
        """A pass over the features of a row or of a line of it: its number, and where it begins."""
        b = self.b
        sums = [e for e in group if e.primitive.name in COLUMNS and not gathers(e)]
        for e in (*sums, *(e for e in group if e.primitive.name == "cumsum")):
            self._start(e)
        # What divides is turned into a factor once.
        divisors = {
            e.inputs[1]: Vectors(b, 1).divisor(scalars[e.inputs[1]])
            for e in group
            if e.primitive.name == "div" and e.inputs[1] in scalars
        }
        # So is an id into where its row of the table begins.
        begins = {e.output: self._begin(e, scalars[e.inputs[1]]) for e in group if e.primitive is LOOKUP}  # type: ignore[index]
        for start, stop, lanes in self._strides(width):
            with loop(b, I64(start), I64(stop), lanes) as column:
                self._body(row, column, lanes, group, copied, scalars, divisors, begins, line and line[1])
        for e in sums:
            self._finish(row, I64(0) if line is None else line[0], e)

    def _strides(self, width: int) -> list[tuple[int, int, int]]:
        """From where to where the columns are taken as so many at a time: whole vectors, then one by one."""
        whole = width - width % self.lanes
        return [stride for stride in ((0, whole, self.lanes), (whole, width, 1)) if stride[0] < stride[1]]

    def _clear(self, row: Any, e: Equation, width: int) -> None:
        """Zeros, where a sum over lines grows."""
        (place,) = self.layout.writes[e.output]
        for start, stop, lanes in self._strides(width):
            with loop(self.b, I64(start), I64(stop), lanes) as column:
                v = Vectors(self.b, lanes)
                self._put(v, v.constant(e.output.dtype, 0), e.output.dtype, place, row, column)

    def _start(self, e: Equation) -> None:
        for lanes in (self.lanes, 1):
            if (e.output, lanes) in self.accumulators:
                first = Vectors(self.b, lanes).start(e.primitive.name, e.output.dtype)
                self.b.store(first, self.accumulators[e.output, lanes])

    def _finish(self, row: Any, line: Any, e: Equation) -> None:
        """Add the lanes up and put the sum of a row, or of a line of it, where it is read."""
        b, name, out = self.b, e.primitive.name, e.output
        many, one = Vectors(b, self.lanes), Vectors(b, 1)
        vector, rest = (b.load(self.accumulators[out, v.lanes], typ=v.type(out.dtype)) for v in (many, one))
        total = one.combined(name, one.splat(many.across(name, vector)), rest)
        for place in self.layout.writes.get(out, ()):
            self._put(one, total, out.dtype, place, row, line)

    def _id(self, v: Vectors, e: Equation, ids: Any) -> Any:
        """Where each id points: negative ones count from the end; what is out of bounds is noted, and points to the first."""
        b, size = self.b, e.inputs[0].shape[e.params["own"]]  # type: ignore[union-attr]
        ids = v.cast(ids, np.dtype("int64"))
        place = b.select(v.compare("<", ids, v.like(ids, 0)), b.add(ids, v.like(ids, size)), ids)
        wild = b.icmp_unsigned(">=", place, v.like(ids, size))
        fault = b.gep(self.pointers[self.offsets["fault"]], [I64(self.lookups[e.output])], source_etype=I64)
        for lane in range(v.lanes):
            with b.if_then(b.extract_element(wild, I32(lane)), likely=False):
                b.store(b.extract_element(ids, I32(lane)), fault)
        return b.select(wild, v.like(ids, 0), place)

    def _begin(self, e: Equation, ids: Any) -> Any:
        """Where the row of the table begins that an id points to."""
        return self.b.mul(self.b.extract_element(self._id(Vectors(self.b, 1), e, ids), I32(0)), I64(e.output.shape[-1]))

    def _looked_up(self, v: Vectors, e: Equation, index: Any, row: Any, column: Any) -> Any:
        """Some columns of the row of a table that begins at the index, or the numbers that ids point to."""
        b, (x, _) = self.b, e.inputs
        assert isinstance(x, Var)
        place = self.layout.reads[x]
        if e.primitive is LOOKUP:
            return v.load(x.dtype, self._address(place, row, b.add(index, column)))
        at, one = self._id(v, e, index), Vectors(b, 1)
        found = v.constant(x.dtype, 0)
        for lane in range(v.lanes):
            number = one.load(x.dtype, self._address(place, row, b.extract_element(at, I32(lane))))
            found = b.insert_element(found, b.extract_element(number, I32(0)), I32(lane))
        return found

    def _body(
        self,
        row: Any,
        column: Any,
        lanes: int,
        equations: Sequence[Equation],
        copies: Sequence[tuple[Var, Place]],
        scalars: dict[Var, Any],
        divisors: Mapping[Any, tuple[Any, Any]] = MappingProxyType({}),
        begins: Mapping[Var, Any] = MappingProxyType({}),
        begin: Any = None,
    ) -> dict[Var, Any]:
        """Some columns of a row, or of the line that begins there: load what is in memory, compute, store what is wanted."""
        v = Vectors(self.b, lanes)

        def at(x: Var) -> Any:
            """Where in its row a value has these columns; one that has no lines serves all of them."""
            return column if begin is None or len(pass_of(x, self.rows)) == 1 else self.b.add(begin, column)

        values: dict[Var, Any] = {}

        def value(x: Operand, like: np.dtype[Any]) -> Any:
            if not isinstance(x, Var):
                return v.constant(like, x)
            if x not in values:
                if x in scalars:
                    values[x] = v.spread(scalars[x])
                else:
                    place = self.layout.reads[x]
                    if width_of(x, self.rows) == 1:
                        values[x] = v.load_one(x.dtype, self._address(place, row, I64(0)))
                    else:
                        values[x] = v.load(x.dtype, self._address(place, row, at(x)))
            return values[x]

        for e in equations:
            name, out = e.primitive.name, e.output
            if looks_up(e):
                index = begins[out] if out in begins else value(e.inputs[1], np.dtype("int64"))
                values[out] = self._looked_up(v, e, index, row, column)
            else:
                like = next(x.dtype for x in e.vars) if name not in ("where",) else out.dtype
                inputs = [value(x, like) for x in e.inputs]
                if name in COLUMNS:
                    self._add_columns(v, e, v.cast(inputs[0], out.dtype), row, column)
                    continue
                exponent = e.inputs[1] if name == "power" and not isinstance(e.inputs[1], Var) else None
                if name == "cumsum":
                    slot = self.accumulators[out, 1]
                    before = self.b.load(slot, typ=Vectors(self.b, 1).type(out.dtype))
                    values[out], after = v.running(v.cast(inputs[0], out.dtype), before)
                    self.b.store(after, slot)
                elif name == "positions":
                    counts = {"row": v.splat(row), "column": v.counted(column), "nothing": v.constant(out.dtype, 0)}
                    values[out] = counts[position_in(e) or "nothing"]
                elif name == "div" and e.inputs[1] in divisors:
                    values[out] = v.divided(inputs[0], *divisors[e.inputs[1]])
                else:
                    values[out] = compute(v, name, inputs, e.params, exponent)
            for place in self.layout.writes.get(out, ()):
                self._put(v, values[out], out.dtype, place, row, at(out))
        for x, place in copies:
            self._put(v, value(x, x.dtype), x.dtype, place, row, column)
        return values

    def _add_columns(self, v: Vectors, e: Equation, x: Any, row: Any, column: Any) -> None:
        """Columns join a reduction: that of the row, or of the lines, column by column."""
        dtype, name = e.output.dtype, e.primitive.name
        if gathers(e):
            (place,) = self.layout.writes[e.output]
            address = self._address(place, row, column)
            v.store(v.add(v.load(dtype, address), x), dtype, address)
        else:
            slot = self.accumulators[e.output, v.lanes]
            self.b.store(v.combined(name, self.b.load(slot, typ=v.type(dtype)), x), slot)

    def _put(self, v: Vectors, value: Any, dtype: np.dtype[Any], place: Place, row: Any, column: Any) -> None:
        """Store a value; where it is summed over rows or steps, add it."""
        address = self._address(place, row, column)
        if place.base[0] in ("partial", "total"):
            value = self.b.fadd(v.load(dtype, address), value)
        v.store(value, dtype, address)
