"""A region of a straight-line graph as one CUDA kernel: losses, layer norm and all that is elementwise, for ``ts.jit``.

A block of threads takes a row at a time, a thread every so many columns; where rows mean nothing, a thread takes any number.
A sum over a row is there at the next phase, and what a later phase needs is computed again from what is in memory. Sums
over all rows are one partial sum a block in float64. The last block to come adds those that are one number, in the same
order each time, and computes what is made of them; those that are one for each column a second kernel adds.

The code knows neither sizes nor the numbers in the graph, so arrays of other sizes compile nothing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyseq.array_api import INDEX
from tinyseq.compiler import debug
from tinyseq.compiler.regions import CHOICES, REDUCTIONS, RENAMES, Region, chosen, partition
from tinyseq.compiler.straight import Call, call_of, runner
from tinyseq.graph import Equation, Graph, Names, Var
from tinyseq_cupy.loop.run import Machine, Program
from tinyseq_cupy.loop.scalars import COMBINE, FUNCTIONS, START, SUPPORTED, c_type, expression, memory_type, number
from tinyseq_cupy.loop.source import BASICS

if TYPE_CHECKING:
    from tinyseq.backend import Backend

__all__ = ["RegionFunction", "compile_graph", "region_source"]

Array = Any
DTYPES = ("float16", "bfloat16", "float32", "float64", "bool", "int32", "int64")
F64 = np.dtype("float64")
HEADER = ("rows", "columns", "blocks")
THREADS, WARP = 256, 32
BLOCKS = 8  # of threads a processor; two where each has sums over all rows for every column

REDUCE = """
// What all threads of a block have, as one number that all of them get; always added in the same order.
template <class F, class Combine> TS_FUNCTION F ts_together(F x, char* shared, Combine combine) {
    F* const at = (F*)shared;
    __syncthreads();
    at[threadIdx.x] = x;
    __syncthreads();
    for (int n = TS_THREADS / 2; n > 0; n /= 2) {
        if ((int)threadIdx.x < n) at[threadIdx.x] = combine(at[threadIdx.x], at[threadIdx.x + n]);
        __syncthreads();
    }
    return at[0];
}
struct ts_sum {
    template <class F> TS_MEMBER F operator()(F x, F y) const { return x + y; }
};
struct ts_max {
    template <class F> TS_MEMBER F operator()(F x, F y) const { return ts_larger(x, y); }
};
struct ts_min {
    template <class F> TS_MEMBER F operator()(F x, F y) const { return ts_smaller(x, y); }
};

// Whether this block is the last to come here; it sees what the others wrote.
static __device__ unsigned ts_finished;  // 0 at first, and again after the last
TS_FUNCTION bool ts_last(char* shared) {
    int* const last = (int*)(shared + TS_THREADS * sizeof(double));
    if (threadIdx.x == 0) {
        __threadfence();
        *last = atomicInc(&ts_finished, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();
    }
    __syncthreads();
    return *last;
}

// An index into n numbers; as in CuPy, one that is out of bounds wraps around.
TS_FUNCTION long long ts_wrapped(long long i, long long n) {
    if (i >= 0 && i < n) return i;
    i %= n;
    return i < 0 ? i + n : i;
}
""".strip()


def compile_graph(graph: Graph, backend: Backend, machine: Callable[[], Machine]) -> Callable[..., list[Array]]:
    """The graph's regions as kernels, and what stands between them as the backend's operations.

    Args:
        graph: what is computed.
        backend: runs what stands alone.
        machine: gives the machine on which a call runs.
    """
    calls: list[Call] = []
    graph = chosen(graph)
    parts = partition(graph, {*SUPPORTED, *RENAMES, *CHOICES}, DTYPES, singles=True)
    if debug.wanted("split"):
        names = Names()
        lines = [part.text(names) if isinstance(part, Region) else names.line(part) for part in parts]
        debug.show("split", "into kernels and operations", "\n".join(lines))
    for part in parts:
        if isinstance(part, Equation):
            calls.append(_call(part, backend))
        elif sum(e.primitive.name not in RENAMES for e in part.equations) < 2:
            calls += [_call(e, backend) for e in part.equations]
        else:
            calls.append(Call(RegionFunction(part, machine), part.reads, (*part.totals, *part.writes), fresh=True))
    return runner(graph, calls)


def _call(e: Equation, backend: Backend) -> Call:
    """An equation that stands alone as the backend's operations."""
    ops, name = backend.table, e.primitive.name
    if name not in CHOICES:
        return call_of(e, backend)

    def function(x: Array, i: Array) -> tuple[Array]:
        if name == "look_up":
            return (ops["getitem"](x, i, key=(INDEX,)),)
        rows = ops["positions"](i, axis=-1)
        if name == "pick":
            return (ops["getitem"](x, rows, i, key=(INDEX, INDEX)),)
        return (ops["scatter_add"](x, rows, i, key=(INDEX, INDEX), shape=e.output.shape),)

    return Call(function, e.inputs, (e.output,), fresh=True)


class RegionFunction:
    """A region as a function from the arrays that it reads to its totals, then to what it writes.

    Args:
        region: what is computed.
        machine: gives the machine on which a call runs.
    """

    def __init__(self, region: Region, machine: Callable[[], Machine]) -> None:
        self.region, self.machine = region, machine
        self.text, numbers = region_source(region)
        self.numbers = [x if isinstance(x, int) else struct.unpack("q", struct.pack("d", x))[0] for x in numbers]
        debug.show("source", "CUDA C++", self.text)
        self.programs: dict[Machine, Program] = {}
        rows, columns = (1, math.prod(region.space)) if region.flat else region.space
        self.rows, self.columns = rows, columns
        self.threads = THREADS if region.flat else max(WARP, min(THREADS, 1 << (columns - 1).bit_length()))
        self.wide = any(math.prod(v.shape) > 1 for v in region.totals)

    def __call__(self, *arrays: Array) -> list[Array]:
        region, machine = self.region, self.machine()
        if machine not in self.programs:
            with debug.timed("compiled a region"):
                self.programs[machine] = machine.compile(self.text, {"TS_THREADS": self.threads})
        program = self.programs[machine]
        most = machine.limits.processors * (2 if self.wide else BLOCKS)
        blocks = min(most, -(-self.columns // self.threads) if region.flat else self.rows)
        laid = [machine.contiguous(a) for a in arrays]  # which live until the kernels are started
        written = [machine.empty(v.shape, v.dtype) for v in region.writes]
        totals = [machine.empty(v.shape, v.dtype) for v in region.totals]
        partials = [machine.empty((blocks, math.prod(v.shape)), F64) for v in region.totals]
        places = [machine.address(a) for a in (*laid, *written, *partials, *totals)]
        table = [self.rows, self.columns, blocks, *self.numbers, *places]
        shared = (self.threads + 1) * F64.itemsize
        program.plain("ts_region", table, (blocks, 1), shared)
        if self.wide:
            columns = max(math.prod(v.shape) for v in region.totals)
            program.plain("ts_totals", table, (-(-columns // self.threads), len(totals)), shared)
        return [*totals, *written]


def region_source(region: Region) -> tuple[str, list[float | int]]:
    """The kernels' text, and what comes with the arguments: the numbers in the equations, and, whole, the sizes of tables."""
    writer = _Writer(region)
    return writer.text(), writer.numbers


class _Writer:
    def __init__(self, region: Region) -> None:
        self.region, self.roles = region, region.roles
        self.made = {e.output: e for e in region.equations}
        values = (*region.reads, *(e.output for e in region.equations))
        self.names = {v: f"v{i}" for i, v in enumerate(values)}
        self.numbers: list[float | int] = []
        self.number_names: dict[tuple[Var, int], str] = {}
        self.sizes: dict[Var, str] = {}
        for e in region.equations:
            for i, x in enumerate(e.inputs):
                if not isinstance(x, Var) and self._is_argument(e, i):
                    self.number_names[e.output, i] = f"number{len(self.numbers)}"
                    self.numbers.append(float(x))
            if e.primitive.name == "look_up":
                table = next(e.vars)
                self.sizes[table] = f"ts_table[{len(HEADER) + len(self.numbers)}]"
                self.numbers.append(table.shape[0])
        self.level = self._levels()

    def _is_argument(self, e: Equation, i: int) -> bool:
        exponent = e.primitive.name == "power" and i == 1
        return not exponent and self._operand_dtype(e).kind not in "bi"

    def _operand_dtype(self, e: Equation) -> np.dtype[Any]:
        return e.output.dtype if e.primitive.name == "where" else next(e.vars).dtype

    def _levels(self) -> dict[Var, int]:
        """The phase in which each value is there."""
        level = dict.fromkeys(self.region.reads, 0)
        for e in self.region.equations:
            level[e.output] = self._pass(e, level) + (self._over_row(e) and self.roles[e.output] == "row")
        return level

    def _pass(self, e: Equation, level: dict[Var, int]) -> int:
        return max(level[v] for v in e.vars)

    def _over_row(self, e: Equation) -> bool:
        """Whether an equation combines the columns of a row: also where the sum then goes on over all rows."""
        return e.primitive.name in REDUCTIONS and self.roles[next(e.vars)] == "full" and not self._by_column(e)

    def _by_column(self, e: Equation) -> bool:
        return self.roles[e.output] == "total" and math.prod(e.output.shape) > 1

    # Text

    def text(self) -> str:
        region = self.region
        arrays = [
            *((self._at(v), memory_type(v.dtype)) for v in (*region.reads, *region.writes)),
            *((f"partial{i}", "double") for i in range(len(region.totals))),
            *((f"total{i}", memory_type(v.dtype)) for i, v in enumerate(region.totals)),
        ]
        first = len(HEADER) + len(self.numbers)
        lines = [BASICS, "", FUNCTIONS, REDUCE]
        lines.append(f'extern "C" {{ __constant__ long long ts_table[{first + len(arrays)}]; }}')
        lines += [f"#define ts_{name} ts_table[{i}]" for i, name in enumerate(HEADER)]
        lines += [f"#define {name} (({t}*)ts_table[{first + i}])" for i, (name, t) in enumerate(arrays)]
        lines.append("")
        lines.append('extern "C" __global__ void __launch_bounds__(TS_THREADS, 1) ts_region() {')
        lines += [f"    {line}" for line in (self._flat() if region.flat else self._by_rows())]
        lines.append("}")
        if len(self._scalars()) < len(region.totals):
            lines += ["", *self._totals()]
        return "\n".join(lines) + "\n"

    def _at(self, v: Var) -> str:
        """The name of an array."""
        return f"{self.names[v]}_at"

    def _start(self) -> Iterator[str]:
        yield "TS_SHARED(shared);"
        yield "const long long columns = ts_columns;"
        for (v, _), name in self.number_names.items():
            t = c_type(self._operand_dtype(self.made[v]))
            yield f"const {t} {name} = ({t})__longlong_as_double(ts_table[{len(HEADER) + int(name.removeprefix('number'))}]);"
        for v in self.region.reads:
            if self.roles[v] == "one":
                yield f"const {c_type(v.dtype)} {self.names[v]} = {self._at(v)}[0];"
        yield from self._singles("one", "blockIdx.x == 0 && threadIdx.x == 0")
        for v in self._scalars():
            yield f"double {self.names[v]}_sum = 0;"

    def _singles(self, role: str, who: str) -> Iterator[str]:
        """The single numbers before or after the rows; one thread writes those that others read."""
        for e in self.region.equations:
            out = e.output
            if self.roles[out] == role:
                yield from self._line(e, {})
                if out in self.region.writes:
                    yield f"if ({who}) {self._at(out)}[0] = {self.names[out]};"

    def _scalars(self) -> list[Var]:
        """The totals that are one number."""
        return [v for v in self.region.totals if not self._by_column(self.made[v])]

    def _end(self) -> Iterator[str]:
        for v in self._scalars():
            i = self.region.totals.index(v)
            own = f"{self.names[v]}_sum"
            # What is one a row all threads have added alike.
            value = own if self.roles[next(self.made[v].vars)] == "row" else f"ts_together({own}, shared, ts_sum())"
            yield f"const double partial{i}_own = {value};"
            yield f"if (threadIdx.x == 0) partial{i}[blockIdx.x] = partial{i}_own;"
        if not self._scalars():
            return
        yield "if (!ts_last(shared)) return;"
        for v in self._scalars():
            i, name = self.region.totals.index(v), self.names[v]
            yield f"{name}_sum = 0;"
            yield f"for (long long b = threadIdx.x; b < ts_blocks; b += TS_THREADS) {name}_sum += __ldcg(&partial{i}[b]);"
            yield f"const {c_type(v.dtype)} {name} = ({c_type(v.dtype)})ts_together({name}_sum, shared, ts_sum());"
            yield f"if (threadIdx.x == 0) total{i}[0] = {name};"
        yield from self._singles("late", "threadIdx.x == 0")

    def _flat(self) -> Iterator[str]:
        yield from self._start()
        step = "(long long)gridDim.x * TS_THREADS"
        yield f"for (long long at = (long long)blockIdx.x * TS_THREADS + threadIdx.x; at < columns; at += {step}) {{"
        yield from (f"    {line}" for line in self._body(0, set()))
        yield "}"
        yield from self._end()

    def _by_rows(self) -> Iterator[str]:
        yield from self._start()
        for i, v in enumerate(self.region.totals):
            if self._by_column(self.made[v]):
                place = f"partial{i}[blockIdx.x * columns + c]"
                yield f"for (long long c = threadIdx.x; c < columns; c += TS_THREADS) {place} = 0;"
        yield "for (long long row = blockIdx.x; row < ts_rows; row += gridDim.x) {"
        yield from (f"    {line}" for line in self._phases())
        yield "}"
        yield from self._end()

    def _phases(self) -> Iterator[str]:
        equations = self.region.equations
        known: set[Var] = set()  # numbers that are one a row and at hand
        for v in self.region.reads:
            if self.roles[v] == "row":
                known.add(v)
                yield f"const {c_type(v.dtype)} {self.names[v]} = {self._at(v)}[row];"
        for phase in sorted({self._pass(e, self.level) for e in equations}):
            mine = [e for e in equations if self._pass(e, self.level) == phase]
            for e in mine:
                out = e.output
                if self.roles[out] == "row" and not self._over_row(e):
                    yield from self._pick(e, known) if e.primitive.name == "pick" else self._line(e, {})
                    known.add(out)
                    yield from self._write_row(out)
                elif self.roles[out] == "total" and self.roles[next(e.vars)] == "row":
                    yield f"{self.names[out]}_sum += {self.names[next(e.vars)]};"
            rows = [e for e in mine if self._over_row(e) and self.roles[e.output] == "row"]
            for e in rows:
                t = c_type(e.output.dtype)
                yield f"{t} {self.names[e.output]}_own = {number(START[e.primitive.name], e.output.dtype)};"
            body = list(self._body(phase, known))
            if body:
                yield "for (long long c = threadIdx.x; c < columns; c += TS_THREADS) {"
                yield "    const long long at = row * columns + c;"
                yield from (f"    {line}" for line in body)
                yield "}"
            for e in rows:
                out, name = e.output, self.names[e.output]
                known.add(out)
                yield f"const {c_type(out.dtype)} {name} = ts_together({name}_own, shared, ts_{e.primitive.name}());"
                yield from self._write_row(out)

    def _pick(self, e: Equation, known: set[Var]) -> Iterator[str]:
        """What a row has in one column: computed there, whether it is in memory or not."""
        (x, i), name = e.vars, self.names[e.output]
        yield f"{c_type(x.dtype)} {name};"
        yield "{"
        yield f"    const long long c = ts_wrapped({self.names[i]}, columns), at = row * columns + c;"
        yield from (f"    {line}" for line in self._needed(x, known, {}))
        yield f"    {name} = {self.names[x]};"
        yield "}"

    def _write_row(self, v: Var) -> Iterator[str]:
        if v in self.region.writes:
            yield f"if (threadIdx.x == 0) {self._at(v)}[row] = {self.names[v]};"

    def _body(self, phase: int, known: set[Var]) -> Iterator[str]:
        """What a thread does for one column of a row in a phase."""
        done: dict[Var, None] = {}
        for e in self.region.equations:
            out, name = e.output, self.names[e.output]
            if self._pass(e, self.level) != phase:
                continue
            if e.primitive.name in REDUCTIONS:
                (x,) = e.vars
                if self.roles[x] != "full":
                    continue
                yield from self._needed(x, known, done)
                if self.roles[out] == "row":
                    yield f"{name}_own = {COMBINE[e.primitive.name].format(f'{name}_own', self.names[x])};"
                elif self._by_column(e):
                    i = self.region.totals.index(out)
                    yield f"partial{i}[blockIdx.x * columns + c] += {self.names[x]};"
                else:
                    yield f"{name}_sum += {self.names[x]};"
            elif self.roles[out] == "full" and out in self.region.writes:
                yield from self._needed(out, known, done)
                yield f"{self._at(out)}[at] = {name};"

    def _needed(self, v: Var, known: set[Var], done: dict[Var, None]) -> Iterator[str]:
        """The lines that make a value of this column, and what it is made of, unless they were there before."""
        waiting = [v]
        while waiting:
            x = waiting[-1]
            if x in done or x in known or self.roles[x] == "one":
                waiting.pop()
            elif x in self.made:
                missing = [y for y in self._read(self.made[x]) if not (y in done or y in known or self.roles[y] == "one")]
                if missing:
                    waiting += missing
                else:
                    yield from self._line(self.made[waiting.pop()], done)
            else:
                done[waiting.pop()] = None
                place = "at" if self.roles[x] == "full" else "c"
                yield f"const {c_type(x.dtype)} {self.names[x]} = {self._at(x)}[{place}];"

    def _read(self, e: Equation) -> list[Var]:
        """What an equation needs as numbers: not the table that it looks them up in."""
        return list(e.vars)[1 if e.primitive.name == "look_up" else 0 :]

    def _line(self, e: Equation, done: dict[Var, None]) -> Iterator[str]:
        out, name = e.output, e.primitive.name
        done[out] = None
        if name in CHOICES:
            x, i = e.vars
            if name == "place":
                text = f"c == ts_wrapped({self.names[i]}, columns) ? {self.names[x]} : {number(0, x.dtype)}"
            else:
                text = f"{self._at(x)}[ts_wrapped({self.names[i]}, {self.sizes[x]})]"
            yield f"const {c_type(out.dtype)} {self.names[out]} = {text};"
            return
        dtype = self._operand_dtype(e)
        inputs = [
            self.names[x] if isinstance(x, Var) else self.number_names.get((out, i)) or number(x, dtype)
            for i, x in enumerate(e.inputs)
        ]
        exponent = e.inputs[1] if name == "power" else None
        known = None if exponent is None or isinstance(exponent, Var) else float(exponent)
        text = inputs[0] if name in RENAMES else expression(name, inputs, dtype, out.dtype, e.params, known)
        yield f"const {c_type(out.dtype)} {self.names[out]} = {text};"

    def _totals(self) -> Iterator[str]:
        yield 'extern "C" __global__ void __launch_bounds__(TS_THREADS, 1) ts_totals() {'
        yield "    const long long c = (long long)blockIdx.x * TS_THREADS + threadIdx.x;"
        for i, v in enumerate(self.region.totals):
            if self._by_column(self.made[v]):
                yield f"    if (blockIdx.y == {i}) {{"
                yield "        double sum = 0;"
                each = f"sum += partial{i}[b * ts_columns + c]"
                yield f"        for (long long b = 0; b < ts_blocks && c < ts_columns; b++) {each};"
                yield f"        if (c < ts_columns) total{i}[c] = ({c_type(v.dtype)})sum;"
                yield "    }"
        yield "}"
