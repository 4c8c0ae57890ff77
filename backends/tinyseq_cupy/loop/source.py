"""A step as CUDA C++: a function a section, and around them the kernels of the two drivers.

The text depends on the step's graph alone. How large a block's share is (``Tile.defines``), how many steps and sequences
there are and where the arrays lie is said when it is compiled and run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce

from tinyseq.graph import Operand, Var
from tinyseq_cupy.loop.plan import REDUCTIONS, RENAMES, Array, Group, Place, Plan, Product, Section, sources
from tinyseq_cupy.loop.scalars import COMBINE, FUNCTIONS, START, c_type, expression, memory_type, number

__all__ = ["BASICS", "HEADER", "kernels", "source"]

# The first entries of the table; the arrays' addresses follow.
HEADER = ("steps", "batch", "reverse", "first_step", "arrivals")

BASICS = r"""
#define TS_FUNCTION static __device__ __forceinline__
#define TS_MEMBER __device__ __forceinline__

#ifndef TS_ON_CPU
#define TS_INFINITY __longlong_as_double(0x7ff0000000000000LL)
#define TS_INFINITYF __int_as_float(0x7f800000)
#define TS_NAN __longlong_as_double(0x7ff8000000000000LL)
#define TS_NANF __int_as_float(0x7fc00000)
#define TS_SHARED(name) extern __shared__ double2 name##_memory[]; char* const name = (char*)name##_memory

TS_FUNCTION unsigned short ts_to_float16(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

TS_FUNCTION float ts_from_float16(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
#endif

// Numbers of 16 bits are so in memory only: all that is done with them is done in float.
struct ts_float16 {
    unsigned short bits;
    ts_float16() = default;
    TS_MEMBER ts_float16(float x) : bits(ts_to_float16(x)) {}
    TS_MEMBER operator float() const { return ts_from_float16(bits); }
};

struct ts_bfloat16 {
    unsigned short bits;
    ts_bfloat16() = default;
    TS_MEMBER ts_bfloat16(float x) {  // the upper half of a float, to the nearest, and to even from the middle
        const unsigned all = __float_as_uint(x);
        bits = x != x ? 0x7fff : (unsigned short)((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
    TS_MEMBER operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
""".strip()

PRELUDE = r"""
#define TS_ROWS_A_THREAD ((TS_ROWS + TS_ROW_GROUPS - 1) / TS_ROW_GROUPS)
#define TS_PITCH (TS_DEPTH + 4)
#define TS_BLOCKS(units) (((units) + TS_UNITS - 1) / TS_UNITS)

#ifndef TS_ON_CPU
TS_FUNCTION void ts_arrive(unsigned* arrivals) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
}

TS_FUNCTION unsigned ts_arrived(unsigned* arrivals) {
    unsigned count;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(arrivals) : "memory");
    return count;
}
#endif

template <class F> struct ts_sum_of { typedef F type; };
template <> struct ts_sum_of<ts_float16> { typedef float type; };
template <> struct ts_sum_of<ts_bfloat16> { typedef float type; };

// How much of the inner axis a tensor core takes at a time; 0 where products are sums of numbers.
template <class F> constexpr int ts_inner = 0;
#if TS_MMA
template <> constexpr int ts_inner<ts_float16> = 16;
template <> constexpr int ts_inner<ts_bfloat16> = 16;
#if TS_TF32
template <> constexpr int ts_inner<float> = 8;
#endif
#endif

TS_FUNCTION constexpr int ts_up(int count, int whole) { return (count + whole - 1) / whole * whole; }
TS_FUNCTION constexpr int ts_most(int a, int b) { return a > b ? a : b; }
template <class F> TS_FUNCTION constexpr int ts_depth(int inner) { return ts_up(inner, ts_inner<F> ? 16 : 4); }
template <class F> TS_FUNCTION constexpr int ts_columns(int pieces) { return ts_up(pieces * TS_UNITS, ts_inner<F> ? 8 : 1); }

// What another block wrote is in the second-level cache, not in this processor's own.
template <class F> TS_FUNCTION F ts_fresh(const F* p) { return __ldcg(p); }
TS_FUNCTION ts_float16 ts_fresh(const ts_float16* p) {
    ts_float16 x;
    x.bits = __ldcg(&p->bits);
    return x;
}
TS_FUNCTION ts_bfloat16 ts_fresh(const ts_bfloat16* p) {
    ts_bfloat16 x;
    x.bits = __ldcg(&p->bits);
    return x;
}

// All blocks that share rows have come here, and see what the others wrote.
TS_FUNCTION void ts_exchange(unsigned* arrivals, unsigned wanted) {
    __syncthreads();
    if (threadIdx.x == 0) {
        ts_arrive(arrivals);
        while ((int)(ts_arrived(arrivals) - wanted) < 0) {}
    }
    __syncthreads();
}

template <class F> TS_FUNCTION F* ts_take(char*& at, int count) {
    F* const part = (F*)at;
    at += (count * (int)sizeof(F) + 15) / 16 * 16;
    return part;
}

// The first row of a thread in the k-th of some loops over rows: other threads for each, so that the loops run side by side.
TS_FUNCTION int ts_turn(int k) { return (threadIdx.x + TS_THREADS - k * TS_ROWS % TS_THREADS) % TS_THREADS; }

// Neighbours in memory, read and written at once where their number allows.
TS_FUNCTION constexpr int ts_alignment(int bytes, int least) { return bytes % 16 == 0 ? 16 : bytes % 8 == 0 ? 8 : least; }
template <class F, int COUNT> struct alignas(ts_alignment(COUNT * sizeof(F), sizeof(F))) ts_few {
    F at[COUNT];
};

// Tensor cores: a warp multiplies 16 rows by 8 columns. Its operands lie in shared memory as its lanes hold them, so that
// each lane reads 16 bytes of the left one and 8 of the right one at once, and all lanes different banks.
#if TS_MMA && !defined(TS_ON_CPU)
TS_FUNCTION float ts_to_tf32(float x) {
    unsigned bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

#define TS_MMA_OF(F, INNER, SHAPE, KIND) \
    TS_FUNCTION void ts_mma(float* c, const ts_few<F, INNER / 2>& left, const ts_few<F, INNER / 4>& right) { \
        const unsigned *a = (const unsigned*)&left, *b = (const unsigned*)&right; \
        asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." KIND "." KIND ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, " \
                     "{%8, %9}, {%0, %1, %2, %3};" \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
    }
TS_MMA_OF(float, 8, "m16n8k8", "tf32")
TS_MMA_OF(ts_float16, 16, "m16n8k16", "f16")
TS_MMA_OF(ts_bfloat16, 16, "m16n8k16", "bf16")
#endif

template <class F> TS_FUNCTION F ts_operand(F x) { return x; }
#if TS_TF32
TS_FUNCTION float ts_operand(float x) { return ts_to_tf32(x); }
#endif

// The lane that holds an element of the inner axis in a row or column, and which of the lane's it is.
template <class F> TS_FUNCTION int ts_lane(int row, int k) { return row % 8 * 4 + (ts_inner<F> == 8 ? k % 4 : k % 8 / 2); }
template <class F> TS_FUNCTION int ts_left(int row, int k) {
    constexpr int INNER = ts_inner<F>;
    const int lower = row % 16 / 8, later = k % INNER / (INNER / 2);
    const int at = INNER == 8 ? later * 2 + lower : later * 4 + lower * 2 + k % 2;
    return ((k / INNER * (TS_ROWS / 16) + row / 16) * 32 + ts_lane<F>(row, k)) * (INNER / 2) + at;
}
template <class F> TS_FUNCTION int ts_right(int k, int column, int columns) {
    constexpr int INNER = ts_inner<F>;
    const int later = k % INNER / (INNER / 2), at = INNER == 8 ? later : later * 2 + k % 2;
    return ((k / INNER * (columns / 8) + column / 8) * 32 + ts_lane<F>(column, k)) * (INNER / 4) + at;
}

// The columns of a block's units, (depth, TS_UNITS, PIECES), of weights (INNER, PIECES * UNITS).
template <class F, int INNER, int PIECES, int UNITS>
TS_FUNCTION void ts_load_weights(const F* weights, F* part, int first, int depth, int first_unit) {
    for (int i = threadIdx.x; i < depth * TS_UNITS; i += TS_THREADS) {
        const int k = first + i / TS_UNITS, unit = first_unit + i % TS_UNITS;
        ts_few<F, PIECES> few;
#pragma unroll
        for (int g = 0; g < PIECES; g++)
            few.at[g] = k < INNER && unit < UNITS ? weights[(long long)k * (PIECES * UNITS) + g * UNITS + unit] : (F)0;
        if constexpr (ts_inner<F> > 0) {
#pragma unroll
            for (int g = 0; g < PIECES; g++)
                part[ts_right<F>(i / TS_UNITS, i % TS_UNITS * PIECES + g, ts_columns<F>(PIECES))] = ts_operand(few.at[g]);
        } else {
            ((ts_few<F, PIECES>*)part)[i] = few;
        }
    }
}

// A share of sums in registers, four of the inner axis at a time; what lies beyond its end is zero.
template <class F, int PIECES> struct ts_scalar_sums {
    typedef typename ts_sum_of<F>::type A;
    A sums[TS_ROWS_A_THREAD][PIECES];
    const int u = threadIdx.x % TS_UNITS, group = threadIdx.x / TS_UNITS % TS_ROW_GROUPS;
    const int split = threadIdx.x / (TS_UNITS * TS_ROW_GROUPS);

    TS_MEMBER ts_scalar_sums() {
#pragma unroll
        for (int r = 0; r < TS_ROWS_A_THREAD; r++)
#pragma unroll
            for (int g = 0; g < PIECES; g++) sums[r][g] = (A)0;
    }

    static TS_MEMBER int place(int r, int k) { return r * TS_PITCH + k; }

    TS_MEMBER void add(const F* lefts, const F* part, int depth) {
        for (int k = 4 * split; k < depth; k += 4 * TS_SPLITS) {
            ts_few<F, 4> x[TS_ROWS_A_THREAD];
#pragma unroll
            for (int r = 0; r < TS_ROWS_A_THREAD; r++)
                x[r] = *(const ts_few<F, 4>*)(lefts + (group + r * TS_ROW_GROUPS) % TS_ROWS * TS_PITCH + k);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const ts_few<F, PIECES> right = ((const ts_few<F, PIECES>*)part)[(k + j) * TS_UNITS + u];
#pragma unroll
                for (int r = 0; r < TS_ROWS_A_THREAD; r++)
#pragma unroll
                    for (int g = 0; g < PIECES; g++) sums[r][g] += (A)x[r].at[j] * (A)right.at[g];
            }
        }
    }

    TS_MEMBER void store(A* out) const {
#pragma unroll
        for (int r = 0; r < TS_ROWS_A_THREAD; r++) {
            const int row = group + r * TS_ROW_GROUPS;
            if (row < TS_ROWS)
#pragma unroll
                for (int g = 0; g < PIECES; g++) out[((split * TS_ROWS + row) * TS_UNITS + u) * PIECES + g] = sums[r][g];
        }
    }
};

#if TS_MMA
// A warp's share, on tensor cores: all rows of some columns.
template <class F, int PIECES> struct ts_mma_sums {
    static constexpr int INNER = ts_inner<F>, ROWS = TS_ROWS / 16, TILES = ts_columns<F>(PIECES) / 8;
    static constexpr int WARPS = TS_THREADS / 32 / TS_SPLITS, EACH = (TILES + WARPS - 1) / WARPS;
    float sums[ROWS][EACH][4];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % WARPS, split = threadIdx.x / (32 * WARPS);

    TS_MEMBER ts_mma_sums() {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int e = 0; e < EACH; e++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[r][e][j] = 0;
    }

    static TS_MEMBER int place(int r, int k) { return ts_left<F>(r, k); }

    TS_MEMBER void add(const F* lefts, const F* part, int depth) {
        for (int k = split; k * INNER < depth; k += TS_SPLITS) {
            ts_few<F, INNER / 2> x[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) x[r] = ((const ts_few<F, INNER / 2>*)lefts)[(k * ROWS + r) * 32 + lane];
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const int tile = warp + e * WARPS;
                if (tile < TILES) {
                    const ts_few<F, INNER / 4> right = ((const ts_few<F, INNER / 4>*)part)[(k * TILES + tile) * 32 + lane];
#pragma unroll
                    for (int r = 0; r < ROWS; r++) ts_mma(sums[r][e], x[r], right);
                }
            }
        }
    }

    TS_MEMBER void store(float* out) const {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int e = 0; e < EACH; e++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int row = r * 16 + j / 2 * 8 + lane / 4, column = (warp + e * WARPS) * 8 + lane % 4 * 2 + j % 2;
                    if (column < TS_UNITS * PIECES) out[(split * TS_ROWS + row) * (TS_UNITS * PIECES) + column] = sums[r][e][j];
                }
    }
};
template <class F, int PIECES, int INNER> struct ts_sums_of { typedef ts_mma_sums<F, PIECES> type; };
template <class F, int PIECES> struct ts_sums_of<F, PIECES, 0> { typedef ts_scalar_sums<F, PIECES> type; };
#else
template <class F, int PIECES, int INNER> struct ts_sums_of { typedef ts_scalar_sums<F, PIECES> type; };
#endif

// out (TS_ROWS, TS_UNITS, PIECES) = left (rows, INNER) @ weights; before that, (TS_SPLITS, ...) parts of the sums.
template <class F, int INNER, int PIECES, int UNITS>
TS_FUNCTION void ts_product(
    const F* left, const F* weights, F* lefts, F* part, typename ts_sum_of<F>::type* out, int first_unit, int rows
) {
    typename ts_sums_of<F, PIECES, ts_inner<F>>::type share;
    for (int first = 0; first < INNER; first += TS_DEPTH) {
        const int depth = INNER - first < TS_DEPTH ? INNER - first : TS_DEPTH;
        if (first) __syncthreads();
        for (int i = threadIdx.x; i < TS_ROWS * TS_DEPTH; i += TS_THREADS) {
            const int r = i / TS_DEPTH, k = i % TS_DEPTH;
            const F x = r < rows && k < depth ? ts_fresh(left + (long long)r * INNER + first + k) : (F)0;
            lefts[share.place(r, k)] = ts_operand(x);
        }
#if TS_STATIONARY
        part = (F*)weights + first * ts_columns<F>(PIECES);
#else
        ts_load_weights<F, INNER, PIECES, UNITS>(weights, part, first, TS_DEPTH, first_unit);
#endif
        __syncthreads();
        if (share.split < TS_SPLITS) share.add(lefts, part, depth);
    }
    if (share.split < TS_SPLITS) share.store(out);
#if TS_SPLITS > 1
    __syncthreads();
    for (int i = threadIdx.x; i < TS_ROWS * TS_UNITS * PIECES; i += TS_THREADS) {
        typename ts_sum_of<F>::type sum = out[i];
#pragma unroll
        for (int s = 1; s < TS_SPLITS; s++) sum += out[s * TS_ROWS * TS_UNITS * PIECES + i];
        out[i] = sum;
    }
#endif
}
""".strip()


def source(plan: Plan) -> str:
    """The source of a step, for both drivers."""
    return _Writer(plan).text()


def kernels(plan: Plan) -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]]]:
    """The streamed driver's kernels: which sections each runs, of this step (0) or the next (1); and what runs before them.

    Where nothing has to be exchanged between two steps, the end of one and the start of the next are one kernel.
    """
    count = len(plan.sections)
    if plan.exchange or count == 1:
        return [[(s, 0)] for s in range(count)], []
    return [[(s, 0)] for s in range(1, count - 1)] + [[(count - 1, 0), (0, 1)]], [(0, 0)]


class _Writer:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        step = plan.step
        values = (*step.graph.inputs, *step.graph.closed, *(e.output for e in step.graph.equations))
        self.numbers = {v: i for i, v in enumerate(values)}
        self.slots = {array: len(HEADER) + i for i, array in enumerate(plan.arrays)}
        self.sums = {v: i for i, v in enumerate(plan.partials)}

    def text(self) -> str:
        plan = self.plan
        lines = [BASICS, "", PRELUDE, "", FUNCTIONS]
        lines.append(f'extern "C" {{ __constant__ long long ts_table[{len(HEADER) + len(plan.arrays)}]; }}')
        lines += [f"#define ts_{name} ts_table[{i}]" for i, name in enumerate(HEADER)]
        lines += [f"#define {array.name} (({memory_type(array.dtype)}*)ts_table[{self.slots[array]}])" for array in plan.arrays]
        lines.append("")
        for s, section in enumerate(plan.sections):
            lines += [*self._section(s, section), ""]
        lines += ["#if TS_STATIONARY", *self._persistent(), "#else", *self._streamed(), "#endif"]
        return "\n".join(lines) + "\n"

    # Sections

    def _section(self, s: int, section: Section) -> Iterator[str]:
        yield f"TS_FUNCTION void section{s}(long long n, char* at{self._weights(section.products, typed=True)}) {{"
        yield "    const long long batch = ts_batch, t = ts_reverse ? ts_steps - 1 - n : n, parity = n & 1;"
        yield "    const long long in = ts_reverse ? t + 1 : t, out = ts_reverse ? t : t + 1;"
        yield "    const int first_unit = blockIdx.x * TS_UNITS;"
        yield "    const long long first_row = (long long)blockIdx.y * TS_ROWS;"
        yield "    const int rows = batch - first_row < TS_ROWS ? (int)(batch - first_row) : TS_ROWS;"
        bodies = [self._group(s, group) for group in section.groups]
        places: dict[Place, None] = dict.fromkeys(p.left for p in section.products)
        for _, used in bodies:
            places.update(used)
        yield from (f"    {line}" for line in map(self._pointer, places))
        yield from (f"    {line}" for line in self._shared(section))
        for i, p in enumerate(section.products):
            if i:
                yield "    __syncthreads();"
            weights = f"weights{p.number}"
            t = memory_type(p.out.dtype)
            yield (
                f"    ts_product<{self._product_arguments(p)}>({_name(p.left)} + first_row * {p.inner}, {weights}, "
                f"({t}*)lefts, ({t}*)part, product{p.number}, first_unit, rows);"
            )
        for k, v in enumerate(section.totals):
            yield from (f"    {line}" for line in self._total(v, k))
        if section.products or section.totals:
            yield "    __syncthreads();"
        for body, _ in bodies:
            yield from (f"    {line}" for line in body)
        if section.terms:
            yield "    __syncthreads();"
        for k, e in enumerate(section.terms):
            yield from (f"    {line}" for line in self._partial(e.output, k))
        yield "}"

    def _weights(self, products: Iterable[Product], typed: bool = False) -> str:
        return "".join(f", {f'const {memory_type(p.out.dtype)}* ' if typed else ''}weights{p.number}" for p in products)

    def _product_arguments(self, p: Product) -> str:
        return f"{memory_type(p.out.dtype)}, {p.inner}, {p.pieces}, {p.units}"

    def _pointer(self, place: Place) -> str:
        array = place.array
        constant = "const " if array.kind in ("stack", "closed") else ""
        return f"{constant}{memory_type(array.dtype)}* const {_name(place)} = {array.name}{_offset(place)};"

    def _shared(self, section: Section) -> Iterator[str]:
        # What is summed has a place of its own: so the first section of a step need not wait for the last of the step before.
        slots, dtype = self.plan.terms
        if slots:
            yield f"{c_type(dtype)}* const terms = ts_take<{c_type(dtype)}>(at, {slots} * TS_ROWS * TS_UNITS);"
        for i, e in enumerate(section.terms):
            t = c_type(e.output.dtype)
            yield f"{t}* const terms{self.sums[e.output]} = ({t}*)(terms + {i} * TS_ROWS * TS_UNITS);"
        if section.products:
            kinds = dict.fromkeys((memory_type(p.out.dtype), p.pieces) for p in section.products)
            wide = _most(f"(int)sizeof({t})" for t in dict.fromkeys(t for t, _ in kinds))
            yield f"char* const lefts = ts_take<char>(at, TS_ROWS * TS_PITCH * {wide});"
            yield "#if TS_STATIONARY"
            yield "char* const part = nullptr;"
            yield "#else"
            deep = _most(f"ts_columns<{t}>({pieces}) * (int)sizeof({t})" for t, pieces in kinds)
            yield f"char* const part = ts_take<char>(at, TS_DEPTH * {deep});"
            yield "#endif"
        for p in section.products:
            t = c_type(p.out.dtype)
            yield f"{t}* const product{p.number} = ts_take<{t}>(at, TS_SPLITS * TS_ROWS * {p.pieces} * TS_UNITS);"
        for v in section.totals:
            t = c_type(v.dtype)
            yield f"{t}* const total{self.sums[v]} = ts_take<{t}>(at, TS_ROWS);"

    def _total(self, v: Var, k: int) -> Iterator[str]:
        """Add up what all blocks found of the k-th sum over a row; all do so in the same order."""
        array, name = self.plan.partials[v], self.plan.made[v].primitive.name
        t = c_type(v.dtype)
        yield f"for (int r = ts_turn({k}); r < rows; r += TS_THREADS) {{"
        yield f"    {t} sum = {number(START[name], v.dtype)};"
        blocks = f"TS_BLOCKS({array.width})"
        yield "#pragma unroll 8"  # so many reads are under way; all at once would take all registers
        yield f"    for (int block = 0; block < {blocks}; block++) {{"
        yield f"        const {t} x = ts_fresh({array.name} + (parity * {blocks} + block) * batch + first_row + r);"
        yield f"        sum = {COMBINE[name].format('sum', 'x')};"
        yield "    }"
        yield f"    total{self.sums[v]}[r] = sum;"
        yield "}"

    def _partial(self, v: Var, k: int) -> Iterator[str]:
        array, name, i = self.plan.partials[v], self.plan.made[v].primitive.name, self.sums[v]
        t = c_type(v.dtype)
        blocks = f"TS_BLOCKS({array.width})"
        yield f"for (int r = ts_turn({k}); r < rows && blockIdx.x < {blocks}; r += TS_THREADS) {{"
        yield f"    {t} sum = {number(START[name], v.dtype)};"
        yield f"    for (int u = 0; u < TS_UNITS; u++) sum = {COMBINE[name].format('sum', f'terms{i}[r * TS_UNITS + u]')};"
        yield f"    {array.name}[(parity * {blocks} + blockIdx.x) * batch + first_row + r] = sum;"
        yield "}"

    def _group(self, s: int, group: Group) -> tuple[list[str], dict[Place, None]]:
        """The loop over a block's share of some units, and the places that it touches."""
        body = _Body(self, s)
        for v, places in group.stores:
            for piece in range(self.plan.pieces(v)):
                for place in places:
                    body.store(v, piece, place)
        starts, ends = [], []
        for e in group.terms:
            name, out, i = e.primitive.name, e.output, self.sums[e.output]
            (x,) = e.vars
            starts.append(f"{c_type(out.dtype)} term{i} = {number(START[name], out.dtype)};")
            for piece in range(self.plan.pieces(x)):
                term = body.value(x, piece)
                body.lines.append(f"term{i} = {COMBINE[name].format(f'term{i}', term)};")
            ends.append(f"terms{i}[r * TS_UNITS + u] = term{i};")
        if group.units is None:
            lines = [
                "for (int r = threadIdx.x; r < rows && blockIdx.x == 0; r += TS_THREADS) {",
                "    const long long row = first_row + r;",
                *(f"    {line}" for line in body.lines),
                "}",
            ]
        else:
            lines = [
                "for (int i = threadIdx.x; i < TS_ROWS * TS_UNITS; i += TS_THREADS) {",
                "    const int r = i / TS_UNITS, u = i % TS_UNITS, unit = first_unit + u;",
                "    const long long row = first_row + r;",
                *(f"    {line}" for line in starts),
                f"    if (r < rows && unit < {group.units}) {{",
                *(f"        {line}" for line in body.lines),
                "    }",
                *(f"    {line}" for line in ends),
                "}",
            ]
        return lines, body.places

    # Kernels

    def _streamed(self) -> Iterator[str]:
        each, before = kernels(self.plan)
        for name, runs in (*((f"ts_kernel{i}", runs) for i, runs in enumerate(each)), ("ts_before", before)):
            if not runs:
                continue
            yield f'extern "C" __global__ void __launch_bounds__(TS_THREADS, 1) {name}(int i) {{'
            yield "    TS_SHARED(shared);"
            yield "    const long long n = ts_first_step + i;"
            for j, (s, later) in enumerate(runs):
                if j and self._follows_at_once():
                    yield "    __syncthreads();"
                weights = "".join(f", {p.right.name}" for p in self.plan.sections[s].products)
                step = "n + 1" if later else "n"
                yield f"    if ({step} < ts_steps) section{s}({step}, shared{weights});"
            yield "}"

    def _follows_at_once(self) -> bool:
        """Whether the first section might take the place in shared memory that the last one of the step before still reads."""
        first, last = self.plan.sections[0], self.plan.sections[-1]
        return bool(first.products and (last.products or last.totals))

    def _persistent(self) -> Iterator[str]:
        plan = self.plan
        yield 'extern "C" __global__ void __launch_bounds__(TS_THREADS, 1) ts_loop() {'
        yield "    TS_SHARED(shared);"
        yield "    char* at = shared;"
        for p in plan.products:
            t = memory_type(p.out.dtype)
            depth = f"ts_depth<{t}>({p.inner})"
            yield f"    {t}* const weights{p.number} = ts_take<{t}>(at, {depth} * ts_columns<{t}>({p.pieces}));"
            arguments = f"{p.right.name}, weights{p.number}, 0, {depth}, blockIdx.x * TS_UNITS"
            yield f"    ts_load_weights<{self._product_arguments(p)}>({arguments});"
        exchanges = len(plan.sections) > 1 or plan.exchange
        if exchanges:
            yield "    unsigned* const arrivals = (unsigned*)ts_arrivals + blockIdx.y * 32;"
            yield "    unsigned wanted = 0;"
        exchange = "ts_exchange(arrivals, wanted += gridDim.x);"
        yield "    const long long steps = ts_steps;"
        yield "    for (long long n = 0; n < steps; n++) {"
        for s, section in enumerate(plan.sections):
            if s:
                yield f"        {exchange}"
            elif plan.exchange:
                yield f"        if (n) {exchange}"
            elif self._follows_at_once():
                yield "        if (n) __syncthreads();"
            yield f"        section{s}(n, at{self._weights(section.products)});"
        yield "    }"
        yield "}"


class _Body:
    """What one thread does for one unit of one row, as lines of C++."""

    def __init__(self, writer: _Writer, s: int) -> None:
        self.writer, self.plan, self.s = writer, writer.plan, s
        self.products = {p.out: p for p in writer.plan.sections[s].products}
        self.lines: list[str] = []
        self.places: dict[Place, None] = {}
        self.known: dict[tuple[Var, int], str] = {}

    def store(self, v: Var, piece: int, place: Place) -> None:
        value = self.value(v, piece)
        self.lines.append(f"{self._element(v, piece, place)} = {value};")

    def value(self, v: Var, piece: int) -> str:
        """The name of a piece of a value; the lines that make it, and what it is made of, come before."""
        waiting = [(v, piece)]
        while waiting:
            at = waiting[-1]
            missing = [] if at in self.known else [x for x in self._parts(*at) if x not in self.known]
            if missing:
                waiting += reversed(missing)
            else:
                waiting.pop()
                if at not in self.known:
                    self.known[at] = self._make(*at)
        return self.known[v, piece]

    def _ready(self, v: Var) -> bool:
        """Whether a value is in memory, in shared memory, or an input."""
        stored = v in self.plan.reads and v in self.plan.units_of and self.plan.section_of[v] < self.s
        return v not in self.plan.made or stored or v in self.products or v in self.plan.partials

    def _parts(self, v: Var, piece: int) -> list[tuple[Var, int]]:
        if self._ready(v):
            return []
        return [(x, g) for x, g in sources(self.plan.made[v], piece, self.plan) if isinstance(x, Var)]

    def _make(self, v: Var, piece: int) -> str:
        plan = self.plan
        if v in self.products:
            p = self.products[v]
            return self._named(v, piece, f"product{p.number}[(r * TS_UNITS + u) * {p.pieces} + {piece}]")
        if v in plan.partials:
            return self._named(v, piece, f"total{self.writer.sums[v]}[r]")
        if self._ready(v):
            element = self._element(v, piece, plan.reads[v])
            # One block writes what is one a row, and all of them read it in the next step; the rest each thread wrote itself.
            foreign = plan.reads[v].when == "in" and v not in plan.units_of
            return self._named(v, piece, f"ts_fresh(&{element})" if foreign else element)
        e = plan.made[v]
        name = e.primitive.name
        operands = list(sources(e, piece, plan))
        typed = [x.dtype for x, _ in operands if isinstance(x, Var)]
        dtype = v.dtype if name == "where" else typed[0] if typed else v.dtype
        inputs = [self.known[x, g] if isinstance(x, Var) else number(x, dtype) for x, g in operands]
        if name in RENAMES or name in REDUCTIONS:  # a sum over one number is that number
            return inputs[0]
        exponent = _number_or_none(e.inputs[1]) if name == "power" else None
        return self._named(v, piece, expression(name, inputs, dtype, v.dtype, e.params, exponent))

    def _named(self, v: Var, piece: int, text: str) -> str:
        name = f"v{self.writer.numbers[v]}" + (f"_{piece}" if self.plan.pieces(v) > 1 else "")
        self.lines.append(f"const {c_type(v.dtype)} {name} = {text};")
        return name

    def _element(self, v: Var, piece: int, place: Place) -> str:
        self.places[place] = None
        array = place.array
        column = ""
        if v in self.plan.units_of:
            units = self.plan.units_of[v]
            column = f"{piece * units} + unit" if piece else "unit"
        if not array.rows:
            return f"{_name(place)}[{column or '0'}]"
        row = f"row * {array.width}" if array.width > 1 else "row"
        return f"{_name(place)}[{row}{f' + {column}' if column else ''}]"


def _name(place: Place) -> str:
    """The pointer to an array at this step."""
    return f"{place.array.name}_{place.when or 'all'}"


def _offset(place: Place) -> str:
    """From an array's beginning to what it holds at this step."""
    array: Array = place.array
    if not place.when:
        return ""
    index = place.when
    if array.kind == "carry":
        index = "parity" if place.when == "in" else "(1 - parity)"
    size = (" * batch" if array.rows else "") + (f" * {array.width}" if array.width > 1 else "")
    return f" + {index}{size}"


def _most(expressions: Iterable[str]) -> str:
    """The largest of some numbers that the compiler knows."""
    return reduce(lambda a, b: f"ts_most({a}, {b})", expressions)


def _number_or_none(x: Operand) -> float | None:
    return None if isinstance(x, Var) else float(x)
