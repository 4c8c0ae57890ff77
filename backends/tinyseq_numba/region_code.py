"""A region as machine code: rows outside, columns inside, a vector at a time; and its calls, a share of the rows a thread.

for each row
  for each phase: the numbers that are one a row, then the columns

A sum over a row is there at the next phase. A value that a later phase reads waits in a row of scratch memory, which stays
in the cache. Sums over all rows are kept in float64. The code knows neither R nor C nor the numbers in the graph, so
arrays of other sizes compile nothing.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from tinyseq.compiler import debug
from tinyseq.compiler.regions import REDUCTIONS, Region, partition
from tinyseq.compiler.straight import Call, call_of, runner
from tinyseq.graph import Equation, Graph, Names, Operand, Var
from tinyseq_numba.loop.product import lanes_of, loop
from tinyseq_numba.loop.vectors import FLOATS, I8, I32, I64, SUPPORTED, Vectors, compute
from tinyseq_numba.machine import address
from tinyseq_numba.threads import run, threads

if TYPE_CHECKING:
    from tinyseq.backend import Backend

__all__ = ["compile_graph"]

Array = np.ndarray[Any, Any]
F64 = np.dtype("float64")
FIRST = {"sum": 0.0, "max": -math.inf, "min": math.inf}
LEAST = 8.0  # calls of NumPy that take as long as one of machine code
CUT = 2048  # columns of a row where any cut will do
NUMBERS = 3  # that a kernel's table begins with: the first row, the one after the last, the columns
WORK = 1 << 19  # elements times operations that are worth a thread


class _Kernel:
    """A region's code: ``region(first, last, columns, table)`` runs rows first to last.

    The table holds a word for each of these, in this order: the numbers in the equations, as float64; the addresses of what
    is read, of what is written, of the totals, of the scratch rows; and for each full value that is read, how many numbers
    there are from a row to the next.

    Attributes:
        text: LLVM assembly.
        numbers: the numbers in the equations.
        scratch: the values that wait in a row of scratch memory.
    """

    def __init__(self, region: Region) -> None:
        self.region = region
        self.roles = region.roles
        self.numbers: list[float] = []
        self.level = self._levels()
        self.made = {e.output: e for e in region.equations}
        self.scratch = self._scratch()
        self.text = self._write()

    def _levels(self) -> dict[Var, int]:
        """The phase in which each value is there."""
        level = dict.fromkeys(self.region.reads, 0)
        for e in self.region.equations:
            level[e.output] = max(level[v] for v in e.vars) + (self._over_row(e) and self.roles[e.output] == "row")
        return level

    def _over_row(self, e: Equation) -> bool:
        """Whether an equation adds up the columns of a row: also where the sum then goes on over all rows."""
        if e.primitive.name not in REDUCTIONS:
            return False
        (x,) = e.vars
        return self.roles[x] == "full" and (self.roles[e.output] == "row" or math.prod(e.output.shape) == 1)

    def _scratch(self) -> list[Var]:
        """Full values that a later phase reads and nobody else asks for."""
        late = [v for e in self.region.equations for v in e.vars if self.level[v] < self._pass_of(e)]
        return [v for v in dict.fromkeys(late) if v in self.made and self.roles[v] == "full" and v not in self.region.writes]

    def _pass_of(self, e: Equation) -> int:
        """The phase in which an equation is computed; what it gives may be there a phase later."""
        return max(self.level[v] for v in e.vars)

    # Code

    def _write(self) -> str:
        module = ir.Module("tinyseq_region")
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), "region")
        (table,) = function.args
        self.b = b = ir.IRBuilder(function.append_basic_block("entry"))
        first, last, self.columns = (b.load(b.gep(table, [I64(i)], source_etype=I64), typ=I64) for i in range(NUMBERS))
        self.table = b.gep(table, [I64(NUMBERS)], source_etype=I64)
        region = self.region
        floats = [v.dtype for e in region.equations for v in (*e.vars, e.output) if v.dtype.kind == "f"]
        self.lanes = lanes_of(min(floats, key=lambda dtype: dtype.itemsize, default=np.dtype("float32")))
        self.whole = b.and_(self.columns, I64(-self.lanes))
        self.sums = {
            (e.output, lanes): b.alloca(ir.VectorType(FLOATS[e.output.dtype], lanes))
            for e in region.equations
            if self._over_row(e)
            for lanes in (self.lanes, 1)
        }
        self._words()
        phases = sorted({self._pass_of(e) for e in region.equations})
        with loop(b, first, last) as self.row:
            self.scalars: dict[Var, Any] = {}
            for phase in phases:
                self._phase([e for e in region.equations if self._pass_of(e) == phase])
        b.ret_void()
        return str(module)

    def _words(self) -> None:
        """Read the table."""
        region, words = self.region, itertools.count()
        one = Vectors(self.b, 1)

        def word(kind: ir.Type) -> Any:
            return self.b.load(self.b.gep(self.table, [I64(next(words))], source_etype=I64), typ=kind)

        self.constants: dict[tuple[int, int], Any] = {}
        for n, e in enumerate(region.equations):
            for i, x in enumerate(e.inputs):
                if self._is_number(e, i):
                    assert not isinstance(x, Var)
                    self.numbers.append(float(x))
                    self.constants[n, i] = one.cast(one.splat(word(ir.DoubleType())), self._like(e))
        self.base = {v: word(ir.PointerType()) for v in (*region.reads, *region.writes, *region.totals, *self.scratch)}
        self.distance = {v: word(I64) for v in region.reads if self.roles[v] == "full"}
        self.singles = {v: one.load_one(v.dtype, self.base[v]) for v in region.reads if self.roles[v] == "one"}

    def _is_number(self, e: Equation, i: int) -> bool:
        """Whether an operand is a number that is given at the call; the others are part of the code."""
        exponent = e.primitive.name == "power" and i == 1
        return not isinstance(e.inputs[i], Var) and not exponent and self._like(e).kind == "f"

    def _like(self, e: Equation) -> np.dtype[Any]:
        """The dtype of the numbers among an equation's operands."""
        return e.output.dtype if e.primitive.name == "where" else next(e.vars).dtype

    def _address(self, v: Var, column: Any) -> Any:
        """Where a value is, in the present row."""
        b, role = self.b, self.roles[v]
        if role == "full" and v not in self.scratch:
            column = b.add(column, b.mul(self.row, self.distance.get(v, self.columns)))
        elif role == "row":
            column = self.row
        return b.gep(self.base[v], [column], source_etype=I8 if v.dtype.kind == "b" else FLOATS[v.dtype])

    def _phase(self, equations: Sequence[Equation]) -> None:
        singles = [e for e in equations if self.roles[e.output] == "row" and not self._over_row(e)]
        singles += [e for e in equations if self.roles[e.output] == "total" and self.roles[next(e.vars)] == "row"]
        wide = [e for e in equations if e not in singles]
        self._body(I64(0), 1, singles, self.scalars)
        over = [e for e in wide if self._over_row(e)]
        for e in over:
            for lanes in (self.lanes, 1):
                one = Vectors(self.b, lanes)
                self.b.store(one.constant(e.output.dtype, FIRST[e.primitive.name]), self.sums[e.output, lanes])
        if wide:
            with loop(self.b, I64(0), self.whole, self.lanes) as column:
                self._body(column, self.lanes, wide, {})
            with loop(self.b, self.whole, self.columns) as column:
                self._body(column, 1, wide, {})
        for e in over:
            self._finish(e)

    def _finish(self, e: Equation) -> None:
        """What the lanes of a row have come to, as one number."""
        b, out, name = self.b, e.output, e.primitive.name
        one = Vectors(b, 1)
        many, rest = (b.load(self.sums[out, lanes], typ=ir.VectorType(FLOATS[out.dtype], lanes)) for lanes in (self.lanes, 1))
        value = self._combined(one, name, one.splat(Vectors(b, self.lanes).across(name, many)), rest)
        if self.roles[out] == "total":
            self._add(one, value, out, I64(0))
            return
        self.scalars[out] = value
        if out in self.region.writes:
            one.store(value, out.dtype, self._address(out, I64(0)))

    def _combined(self, v: Vectors, name: str, x: Any, y: Any) -> Any:
        return v.b.fadd(x, y) if name == "sum" else v.extremum(">" if name == "max" else "<", x, y)

    def _add(self, v: Vectors, value: Any, out: Var, column: Any) -> None:
        """Add to a total."""
        place = self.b.gep(self.base[out], [column], source_etype=ir.DoubleType())
        v.store(self.b.fadd(v.load(F64, place), v.cast(value, F64)), F64, place)

    def _body(self, column: Any, lanes: int, equations: Sequence[Equation], values: dict[Var, Any]) -> None:
        """Some columns of a row: load what comes from memory, compute, store what is wanted."""
        v = Vectors(self.b, lanes)

        def spread(x: Any) -> Any:
            return v.splat(self.b.extract_element(x, I32(0))) if lanes > 1 else x

        def value(n: int, i: int, e: Equation) -> Any:
            x: Operand = e.inputs[i]
            if not isinstance(x, Var):
                return spread(self.constants[n, i]) if (n, i) in self.constants else v.constant(self._like(e), x)
            if x not in values:
                if x in self.scalars or x in self.singles:
                    values[x] = spread(self.scalars.get(x, self.singles.get(x)))
                elif self.roles[x] == "row":
                    values[x] = v.load_one(x.dtype, self._address(x, I64(0)))
                else:
                    values[x] = v.load(x.dtype, self._address(x, column))
            return values[x]

        numbered = {e.output: n for n, e in enumerate(self.region.equations)}
        for e in equations:
            name, out, n = e.primitive.name, e.output, numbered[e.output]
            inputs = [value(n, i, e) for i in range(len(e.inputs))]
            if self._over_row(e):
                slot = self.sums[out, lanes]
                self.b.store(self._combined(v, name, self.b.load(slot, typ=inputs[0].type), inputs[0]), slot)
            elif name in REDUCTIONS:
                self._add(v, inputs[0], out, column)
            else:
                exponent = e.inputs[1] if name == "power" and not isinstance(e.inputs[1], Var) else None
                values[out] = compute(v, name, inputs, e.params, exponent)
                if out in self.base:
                    v.store(values[out], out.dtype, self._address(out, column))


def compile_graph(graph: Graph, backend: Backend) -> Callable[..., list[Array]]:
    """The graph's regions as machine code, and what stands between them as the backend's operations."""
    calls: list[Call] = []
    parts = partition(graph, SUPPORTED)
    if debug.wanted("split"):
        names = Names()
        lines = [part.text(names) if isinstance(part, Region) else names.line(part) for part in parts]
        debug.show("split", "into passes and operations", "\n".join(lines))
    for part in parts:
        if isinstance(part, Equation):
            calls.append(call_of(part, backend))
        elif part.worth < LEAST:
            calls += [call_of(e, backend) for e in part.equations]
        else:
            calls.append(Call(RegionFunction(part), part.reads, (*part.totals, *part.writes), fresh=True))
    return runner(graph, calls)


class RegionFunction:
    """A region as a function from the arrays that it reads to its totals, then to what it writes."""

    def __init__(self, region: Region) -> None:
        kernel = _Kernel(region)
        debug.show("source", "LLVM", kernel.text)
        with debug.timed("compiled a region"):
            self.code = address(kernel.text, "region")
        size = math.prod(region.space)
        self.flat = region.flat
        self.rows, self.columns = (max(1, size // CUT), min(CUT, size)) if self.flat else region.space
        self.rest = size - self.rows * self.columns  # numbers that fill no row
        self.shares = max(1, min(self.rows, size * len(region.equations) // WORK))
        self.numbers = [struct.unpack("q", struct.pack("d", number))[0] for number in kernel.numbers]
        self.full = [region.roles[v] == "full" for v in region.reads]
        self.writes = [(v.shape, v.dtype) for v in region.writes]
        self.totals = [(v.shape, v.dtype, 1 if math.prod(v.shape) == 1 else self.columns) for v in region.totals]
        self.scratch = [v.dtype for v in kernel.scratch]
        # From the first whole row to what is left over, in bytes.
        steps = [v.dtype.itemsize * (region.roles[v] == "full") for v in (*region.reads, *region.writes)]
        self.shifts = [*[0] * len(self.numbers), *[step * self.rows * self.columns for step in steps]]
        words = NUMBERS + len(self.shifts) + len(self.totals) + len(self.scratch) + sum(self.full)
        self.table = ctypes.c_int64 * words

    def __call__(self, *arrays: Array) -> list[Array]:
        shares = 1 if self.shares == 1 else min(self.shares, threads())
        written = [np.empty(shape, dtype) for shape, dtype in self.writes]
        totals = [np.zeros((shares, width)) for _, _, width in self.totals]
        scratch = [np.empty((shares, self.columns), dtype) for dtype in self.scratch]
        words, distances = self.numbers.copy(), []
        laid = list(arrays)  # which must live until the work is done
        for i, full in enumerate(self.full):
            a = laid[i]
            if full:
                distances.append(self.columns)
            if not a.flags.c_contiguous:
                # Rows may be apart, the columns of a row may not.
                matrix = a.reshape(self.rows, self.columns) if full and not self.flat else a
                if matrix is not a and matrix.strides[1] == a.itemsize:
                    laid[i], distances[-1] = matrix, matrix.strides[0] // a.itemsize
                else:
                    laid[i] = np.ascontiguousarray(a)
            words.append(_address(laid[i]))
        words += map(_address, written)
        own = [(_address(a), a.strides[0]) for a in (*totals, *scratch)]
        tables = []
        for share in range(shares):
            first, last = (self.rows * (share + i) // shares for i in (0, 1))
            places = [at + share * stride for at, stride in own]
            tables.append(self.table(first, last, self.columns, *words, *places, *distances))
        run(self.code, list(map(ctypes.addressof, tables)))
        if self.rest:
            left = [word + shift for word, shift in zip(words, self.shifts, strict=True)]
            table = self.table(0, 1, self.rest, *left, *[at for at, _ in own], *distances)
            run(self.code, [ctypes.addressof(table)])
        sums = [t.sum(0).astype(dtype).reshape(shape) for t, (shape, dtype, _) in zip(totals, self.totals, strict=True)]
        return [*sums, *written]


def _address(a: Array) -> int:
    found: int = a.__array_interface__["data"][0]
    return found
