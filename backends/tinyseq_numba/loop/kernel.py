"""A step as LLVM code: one function that takes a share of the batch through all T steps.

for each step
  for each stage
    for each row of the share
      for each phase: the numbers that are one a row, then the columns, a vector at a time
    the products that follow the stage
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from tinyseq.graph import Equation, Operand, Var
from tinyseq_numba.loop.layout import COLUMNS, Layout, Place, padded, plan_layout, width_of
from tinyseq_numba.loop.product import define_product, lanes_of, loop
from tinyseq_numba.loop.vectors import FLOATS, I8, I64, Vectors, compute

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["KINDS", "Kernel", "write_kernel"]

# The order of the kernel's pointers: all carries, then all histories' ... as ``Kernel.pointers`` counts them.
KINDS = ("carry", "history", "stack", "closed", "packed", "written", "scratch")
IDENTITY = frozenset(("copy", "reshape", "broadcast_to"))


class Kernel:
    """A kernel's text, and what its caller must give it.

    Attributes:
        text: LLVM assembly of ``void loop(first, last, rows, steps, reverse, pointers)``: rows first to last of ``rows``.
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
        self.step = step
        self.layout = plan_layout(step)
        self.rows = self.layout.rows
        counts = {
            "carry": len(step.carry), "history": len(step.carry), "stack": len(step.slices), "closed": len(step.graph.closed),
            "packed": len(self.layout.packed), "written": len(step.written), "scratch": len(self.layout.scratch),
        }  # fmt: skip
        self.offsets, self.count = {}, 0
        for kind in KINDS:
            self.offsets[kind] = self.count
            self.count += counts[kind]
        self.dtype = next((v.dtype for v in step.carry if v.dtype.kind == "f"), np.dtype("float32"))
        self.lanes = lanes_of(self.dtype)
        self.made = {e.output: e for e in step.graph.equations}

    def write(self) -> Kernel:
        module = ir.Module("tinyseq_loop")
        kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64, I64, I64, ir.PointerType()])
        function = ir.Function(module, kind, "loop")
        self.first, self.last, self.batch, self.steps, reverse, pointers = function.args
        self.b = b = ir.IRBuilder(function.append_basic_block("entry"))
        self.entry = function.entry_basic_block
        self.pointers = [
            b.load(b.gep(pointers, [I64(i)], source_etype=ir.PointerType()), typ=ir.PointerType()) for i in range(self.count)
        ]
        self.accumulators: dict[tuple[Var, int], Any] = {}
        self._make_accumulators()
        backwards = b.icmp_signed("!=", reverse, I64(0))
        with loop(b, I64(0), self.steps) as count:
            t = b.select(backwards, b.sub(b.sub(self.steps, I64(1)), count), count)
            later = b.add(t, I64(1))
            self.now = {
                "t": t,
                "in": b.select(backwards, later, t),
                "out": b.select(backwards, t, later),
                "parity": b.and_(count, I64(1)),
            }
            self.bases: dict[tuple[str, int], Any] = {}
            for stage in range(self.layout.stages):
                self._bases_for(stage)
                self._stage(stage)
        b.ret_void()
        return Kernel(str(module), self.layout, self.offsets, self.count)

    # Memory

    def _make_accumulators(self) -> None:
        for e in self.layout.equations:
            if e.primitive.name in COLUMNS:
                for lanes in (self.lanes, 1):
                    kind = ir.VectorType(FLOATS[e.output.dtype], lanes)
                    self.accumulators[e.output, lanes] = self.b.alloca(kind)

    def _dtype_of(self, base: tuple[str, int]) -> np.dtype[Any]:
        kind, i = base
        if kind in ("in", "out"):
            return self.step.carry[i].dtype
        if kind == "scratch":
            return self.layout.scratch[i][1]
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
                index = self.now["t"] if kind in ("stack", "written") else None
            offset = I64(0) if index is None else b.mul(index, size)
            self.bases[place.base] = self._at(pointer, self._dtype_of(place.base), offset)
        return self.bases[place.base]

    def _bases_for(self, stage: int) -> None:
        """Compute the addresses before the loops that use them."""
        for place in (*self.layout.reads.values(), *(p for places in self.layout.writes.values() for p in places)):
            self._base(place)
        for _, place in self.layout.copies:
            self._base(place)

    def _at(self, pointer: Any, dtype: np.dtype[Any], index: Any) -> Any:
        return self.b.gep(pointer, [index], source_etype=I8 if dtype.kind == "b" else FLOATS[dtype])

    def _address(self, place: Place, row: Any, column: Any) -> Any:
        index = self.b.add(column, I64(place.column))
        if place.distance:
            index = self.b.add(index, self.b.mul(row, I64(place.distance)))
        return self._at(self._base(place), self._dtype_of(place.base), index)

    # Stages and phases

    def _stage(self, stage: int) -> None:
        b, layout = self.b, self.layout
        equations = [e for e in layout.equations if self._pass_of(e)[0] == stage]
        copies = [(v, p) for v, p in self.layout.copies if layout.level[v][0] == stage]
        if equations or copies:
            phases = sorted({self._pass_of(e)[1] for e in equations} | {layout.level[v][1] for v, _ in copies})
            with loop(b, self.first, self.last) as row:
                for phase in phases:
                    self._phase(
                        row,
                        [e for e in equations if self._pass_of(e)[1] == phase],
                        [(v, p) for v, p in copies if layout.level[v][1] == phase],
                    )
        for e, number in layout.products.get(stage, ()):
            left, out = e.inputs[0], e.output
            assert isinstance(left, Var)
            a, c = layout.reads[left], layout.reads[out]
            product = define_product(b.module, out.dtype)
            b.call(
                product,
                [
                    b.sub(self.last, self.first),
                    I64(padded(out.shape[-1], out.dtype)),
                    I64(left.shape[-1]),
                    self._address(a, self.first, I64(0)),
                    I64(a.distance),
                    self.pointers[self.offsets["packed"] + number],
                    self._address(c, self.first, I64(0)),
                    I64(c.distance),
                ],
            )

    def _pass_of(self, e: Equation) -> tuple[int, int]:
        """The pass in which an equation runs; a sum over a row is there one phase after the pass that adds it up."""
        stage, phase = self.layout.level[e.output]
        return (stage, phase - 1) if e.primitive.name in COLUMNS else (stage, phase)

    def _width(self, e: Equation) -> int:
        if e.primitive.name in COLUMNS:
            return width_of(next(e.vars), self.rows)
        return width_of(e.output, self.rows)

    def _phase(self, row: Any, equations: Sequence[Equation], copies: Sequence[tuple[Var, Place]]) -> None:
        b = self.b
        singles = [e for e in equations if self._width(e) == 1]
        single_copies = [(v, p) for v, p in copies if width_of(v, self.rows) == 1]
        scalars: dict[Var, Any] = {}
        if singles or single_copies:
            sums = [e for e in singles if e.primitive.name in COLUMNS]  # over rows of one number
            for e in sums:
                self._start(e)
            scalars = self._body(row, I64(0), 1, singles, single_copies, {})
            for e in sums:
                self._finish(row, e)
        widths = dict.fromkeys([*(self._width(e) for e in equations), *(width_of(v, self.rows) for v, _ in copies)])
        for width in widths:
            if width == 1:
                continue
            group = [e for e in equations if self._width(e) == width]
            copied = [(v, p) for v, p in copies if width_of(v, self.rows) == width]
            for e in group:
                if e.primitive.name in COLUMNS:
                    self._start(e)
            whole = width - width % self.lanes
            if whole:
                with loop(b, I64(0), I64(whole), self.lanes) as column:
                    self._body(row, column, self.lanes, group, copied, scalars)
            if whole < width:
                with loop(b, I64(whole), I64(width)) as column:
                    self._body(row, column, 1, group, copied, scalars)
            for e in group:
                if e.primitive.name in COLUMNS:
                    self._finish(row, e)

    def _start(self, e: Equation) -> None:
        first = {"sum": 0.0, "max": -np.inf, "min": np.inf}[e.primitive.name]
        for lanes in (self.lanes, 1):
            v = Vectors(self.b, lanes)
            self.b.store(v.constant(e.output.dtype, first), self.accumulators[e.output, lanes])

    def _combine(self, v: Vectors, name: str, x: Any, y: Any) -> Any:
        return v.b.fadd(x, y) if name == "sum" else v.extremum(">" if name == "max" else "<", x, y)

    def _finish(self, row: Any, e: Equation) -> None:
        """Add the lanes up and put the sum where it is read."""
        b, name, out = self.b, e.primitive.name, e.output
        kind = ir.VectorType(FLOATS[out.dtype], self.lanes)
        many = Vectors(b, self.lanes).across(name, b.load(self.accumulators[out, self.lanes], typ=kind))
        one = Vectors(b, 1)
        rest = b.load(self.accumulators[out, 1], typ=ir.VectorType(FLOATS[out.dtype], 1))
        total = self._combine(one, name, one.splat(many), rest)
        for place in self.layout.writes.get(out, ()):
            one.store(total, out.dtype, self._address(place, row, I64(0)))

    def _body(
        self,
        row: Any,
        column: Any,
        lanes: int,
        equations: Sequence[Equation],
        copies: Sequence[tuple[Var, Place]],
        scalars: dict[Var, Any],
    ) -> dict[Var, Any]:
        """Some columns of a row: load what comes from memory, compute, store what is wanted."""
        v = Vectors(self.b, lanes)
        values: dict[Var, Any] = {}

        def value(x: Operand, like: np.dtype[Any]) -> Any:
            if not isinstance(x, Var):
                return v.constant(like, x)
            if x not in values:
                if x in scalars:
                    values[x] = v.splat(self.b.extract_element(scalars[x], ir.IntType(32)(0)))
                else:
                    place = self.layout.reads[x]
                    if width_of(x, self.rows) == 1:
                        values[x] = v.load_one(x.dtype, self._address(place, row, I64(0)))
                    else:
                        values[x] = v.load(x.dtype, self._address(place, row, column))
            return values[x]

        for e in equations:
            name, out = e.primitive.name, e.output
            like = next(x.dtype for x in e.vars) if name not in ("where",) else out.dtype
            inputs = [value(x, like) for x in e.inputs]
            if name in COLUMNS:
                slot = self.accumulators[out, lanes]
                before = self.b.load(slot, typ=inputs[0].type)
                self.b.store(self._combine(v, name, before, inputs[0]), slot)
                continue
            exponent = e.inputs[1] if name == "power" and not isinstance(e.inputs[1], Var) else None
            values[out] = compute(v, name, inputs, e.params, exponent)
            for place in self.layout.writes.get(out, ()):
                v.store(values[out], out.dtype, self._address(place, row, column))
        for x, place in copies:
            v.store(value(x, x.dtype), x.dtype, self._address(place, row, column))
        return values
