"""Products at a core's peak: h @ W with W packed once into panels, and x.T @ y over a chunk, both walked by register tiles.

A step multiplies a short block of states by a matrix that stays the same for all T steps. BLAS would pack that matrix at
every call. Here it is packed once, into panels of some columns, and a tile of up to six rows by one panel keeps its
sums in registers: 6 x 4 vectors fill 24 of 32 registers, and 6 x 2 vectors 12 where there are 16, as with AVX2.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir

from tinyseq_numba.loop.vectors import FLOATS, I64, Vectors
from tinyseq_numba.machine import vector_bytes, vector_registers

__all__ = ["DEPTH", "ROWS", "define_outer", "define_product", "lanes_of", "loop", "packed_shape", "panel_of", "write_pack"]

BYTES = vector_bytes()
VECTORS = 4 if vector_registers() >= 32 else 2  # of a panel
ROWS = 6  # of the largest tile
CHAINS = 8  # sums that are under way at the same time: two multiplications a cycle, each of four or five cycles
DEPTH = 256  # rows that an outer product takes at a time: as many as leave a panel in the nearest cache


def lanes_of(dtype: np.dtype[Any]) -> int:
    """Numbers in a vector."""
    return BYTES // dtype.itemsize


def panel_of(dtype: np.dtype[Any]) -> int:
    """Columns of a panel."""
    return VECTORS * lanes_of(dtype)


def packed_shape(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """The shape that a matrix (K, N) has when it is packed."""
    rows, columns = shape
    width = panel_of(dtype)
    return -(-columns // width), rows, width


def write_pack(dtype: np.dtype[Any]) -> str:
    """The code of ``pack(K, N, row, column, W, packed)``.

    W (K, N), whose rows and columns lie ``row`` and ``column`` numbers apart, becomes (panels, K, columns of a panel), with
    zeros where N does not fill the last panel.
    """
    module = ir.Module("tinyseq_pack")
    pointer, element, width = ir.PointerType(), FLOATS[dtype], panel_of(dtype)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*[I64] * 4, pointer, pointer]), "pack")
    rows, columns, row, column, weights, packed = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    one, many = Vectors(b, 1), Vectors(b, lanes_of(dtype))
    with loop(b, I64(0), columns, width) as first:
        panel = b.gep(packed, [b.mul(first, rows)], source_etype=element)
        top = b.gep(weights, [b.mul(first, column)], source_etype=element)
        rest = b.sub(columns, first)
        whole = b.icmp_signed(">=", rest, I64(width))
        aside = b.and_(whole, b.icmp_signed("==", column, I64(1)))
        with b.if_else(aside) as (side_by_side, apart):
            with side_by_side, loop(b, I64(0), rows) as k:
                for i in range(0, width, many.lanes):
                    source = b.gep(top, [b.add(b.mul(k, row), I64(i))], source_etype=element)
                    out = b.gep(panel, [b.add(b.mul(k, I64(width)), I64(i))], source_etype=element)
                    many.store(many.load(dtype, source), dtype, out)
            with apart:
                stop = b.select(whole, I64(width), rest)
                full = b.mul(b.sdiv(rows, I64(many.lanes)), I64(many.lanes))
                square = b.select(b.and_(whole, b.icmp_signed("==", row, I64(1))), full, I64(0))
                with loop(b, I64(0), square, many.lanes) as k:  # the transpose of what lies in memory, square by square
                    for j in range(0, width, many.lanes):
                        lines = [
                            many.load(dtype, b.gep(top, [b.add(k, b.mul(I64(j + i), column))], source_etype=element))
                            for i in range(many.lanes)
                        ]
                        for i, line in enumerate(many.transposed(lines)):
                            at = b.add(b.mul(b.add(k, I64(i)), I64(width)), I64(j))
                            many.store(line, dtype, b.gep(panel, [at], source_etype=element))
                with loop(b, I64(0), stop) as j, loop(b, square, rows) as k:
                    source = b.gep(top, [b.add(b.mul(k, row), b.mul(j, column))], source_etype=element)
                    out = b.gep(panel, [b.add(b.mul(k, I64(width)), j)], source_etype=element)
                    one.store(one.load(dtype, source), dtype, out)
                with loop(b, stop, I64(width)) as j, loop(b, I64(0), rows) as k:
                    out = b.gep(panel, [b.add(b.mul(k, I64(width)), j)], source_etype=element)
                    one.store(one.constant(dtype, 0), dtype, out)
    b.ret_void()
    return str(module)


def define_product(module: ir.Module, dtype: np.dtype[Any]) -> ir.Function:
    """``product(G, ga, gc, M, start, stop, K, A, lda, panels, C, ldc)``: columns start to stop of C[M, N] = A[M, K] @ W[K, N].

    Both are multiples of a panel's width. A and C are pointers to the first row, lda and ldc the distance between rows, in
    numbers. This is done for G such A and C, which lie ga and gc apart.
    """
    name = f"product_{dtype.name}"
    if name in module.globals:
        return module.globals[name]
    pointer, element = ir.PointerType(), FLOATS[dtype]
    kind = ir.FunctionType(ir.VoidType(), [*[I64] * 7, pointer, I64, pointer, pointer, I64])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    groups, group_a, group_c, rows, start, stop, inner, a, lda, panels, c, ldc = function.args
    width = panel_of(dtype)
    tiles = {size: _define_tile(module, dtype, size) for size in range(1, ROWS + 1)}

    entry = function.append_basic_block("entry")
    b = ir.IRBuilder(entry)
    whole = b.mul(b.sdiv(rows, I64(ROWS)), I64(ROWS))
    left = b.sub(rows, whole)
    with loop(b, start, stop, width) as n, loop(b, I64(0), groups) as group:
        panel = b.gep(panels, [b.mul(n, inner)], source_etype=element)
        first_a, first_c = b.mul(group, group_a), b.add(b.mul(group, group_c), n)

        def run(tile: ir.Function, row: Any) -> None:
            top = b.gep(a, [b.add(first_a, b.mul(row, lda))], source_etype=element)
            out = b.gep(c, [b.add(first_c, b.mul(row, ldc))], source_etype=element)
            b.call(tile, [inner, top, lda, panel, out, ldc])

        with loop(b, I64(0), whole, ROWS) as row:
            run(tiles[ROWS], row)
        # What is left over: one smaller tile.
        done = b.append_basic_block("done")
        switch = b.switch(left, done)
        for size in range(1, ROWS):
            block = b.append_basic_block(f"rows{size}")
            switch.add_case(I64(size), block)
            b.position_at_end(block)
            run(tiles[size], whole)
            b.branch(done)
        b.position_at_end(done)
    b.ret_void()
    return function


class loop:
    """``with loop(builder, start, stop, step) as i:`` writes a counting loop around what is built inside."""

    def __init__(self, builder: ir.IRBuilder, start: Any, stop: Any, step: Any = 1) -> None:
        self.b, self.start, self.stop = builder, start, stop
        self.step = I64(step) if isinstance(step, int) else step

    def __enter__(self) -> Any:
        b = self.b
        before = b.block
        self.head, body = b.append_basic_block("head"), b.append_basic_block("body")
        self.end = b.append_basic_block("end")
        b.branch(self.head)
        b.position_at_end(self.head)
        self.index = b.phi(I64)
        self.index.add_incoming(self.start, before)
        b.cbranch(b.icmp_signed("<", self.index, self.stop), body, self.end)
        b.position_at_end(body)
        return self.index

    def __exit__(self, *_: Any) -> None:
        b = self.b
        after = b.add(self.index, self.step)
        self.index.add_incoming(after, b.block)
        b.branch(self.head)
        b.position_at_end(self.end)


def _define_tile(module: ir.Module, dtype: np.dtype[Any], size: int, outer: bool = False) -> ir.Function:
    """``tile(K, A, lda, panel, C, ldc)``: ``size`` rows of A times one panel.

    A multiplication waits for the one before it that adds to the same sums. So few rows have several sums of each number.
    Of an outer product, A is a panel too, of ``size`` columns, and the product is added to C.
    """
    name = f"{'outer_' if outer else ''}tile{size}_{dtype.name}"
    pointer, element, lanes = ir.PointerType(), FLOATS[dtype], lanes_of(dtype)
    kind = ir.FunctionType(ir.VoidType(), [I64, pointer, I64, pointer, pointer, I64])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    inner, a, lda, panel, c, ldc = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    v = Vectors(b, lanes)
    zero = v.constant(dtype, 0)
    chains = 1 if outer else max(1, CHAINS // (size * VECTORS))
    sums = [[[b.alloca(zero.type) for _ in range(VECTORS)] for _ in range(size)] for _ in range(chains)]  # in registers
    for place in (place for chain in sums for row in chain for place in row):
        b.store(zero, place)
    rows = [b.gep(a, [b.mul(lda, I64(r))], source_etype=element) for r in range(size)]

    def add(k: Any, chain: list[list[Any]]) -> None:
        at = b.gep(panel, [b.mul(k, I64(VECTORS * lanes))], source_etype=element)
        weights = [v.load(dtype, b.gep(at, [I64(i * lanes)], source_etype=element)) for i in range(VECTORS)]
        column = b.gep(a, [b.mul(k, I64(size))], source_etype=element)
        for r in range(size):
            place = b.gep(column, [I64(r)], source_etype=element) if outer else b.gep(rows[r], [k], source_etype=element)
            state = v.load_one(dtype, place)
            for weight, total in zip(weights, chain[r], strict=True):
                b.store(v.fma(state, weight, b.load(total, typ=zero.type)), total)

    whole = b.mul(b.sdiv(inner, I64(chains)), I64(chains))
    with loop(b, I64(0), whole, chains) as k:
        for i, chain in enumerate(sums):
            add(b.add(k, I64(i)), chain)
    if chains > 1:
        with loop(b, whole, inner) as k:
            add(k, sums[0])
    for r in range(size):
        out = b.gep(c, [b.mul(ldc, I64(r))], source_etype=element)
        for i in range(VECTORS):
            place = b.gep(out, [I64(i * lanes)], source_etype=element)
            parts = [b.load(chain[r][i], typ=zero.type) for chain in sums] + ([v.load(dtype, place)] if outer else [])
            v.store(reduce(b.fadd, parts), dtype, place)
    b.ret_void()
    return function


def define_outer(module: ir.Module, dtype: np.dtype[Any]) -> ir.Function:
    """``outer(R, S, M, A, a_row, a_step, N, B, b_row, b_step, start, stop, left, right, C, ldc)``: C[M, N] += A.T @ B.

    The sum is over R rows of S steps, and taken for the columns start to stop, which are multiples of a panel's width. A and
    B are pointers to the first row of the first step, then come the distances between rows and between steps. ``left`` and
    ``right`` have room for the panels of as many rows as are taken at a time: DEPTH, or R if that is more. C has room for
    whole tiles.
    """
    name = f"outer_{dtype.name}"
    if name in module.globals:
        return module.globals[name]
    pointer, element = ir.PointerType(), FLOATS[dtype]
    operand = [I64, pointer, I64, I64]
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, *operand, *operand, I64, I64, pointer, pointer, pointer, I64])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    rows, steps, m, a, a_row, a_step, n, y, y_row, y_step, start, stop, left, right, c, ldc = function.args
    width = panel_of(dtype)
    tile = _define_tile(module, dtype, ROWS, outer=True)
    put_left, put_right = (_define_put(module, dtype, size) for size in (ROWS, width))
    b = ir.IRBuilder(function.append_basic_block("entry"))
    most = b.sdiv(I64(DEPTH), rows)
    most = b.select(b.icmp_signed("<", most, I64(1)), I64(1), most)  # steps at a time
    wanted = b.sub(b.select(b.icmp_signed("<", stop, n), stop, n), start)
    with loop(b, I64(0), steps, most) as first:
        rest = b.sub(steps, first)
        some = b.select(b.icmp_signed("<", rest, most), rest, most)
        depth = b.mul(some, rows)
        for put, x, row, step, at, columns, panels in (
            (put_left, a, a_row, a_step, I64(0), m, left),
            (put_right, y, y_row, y_step, start, wanted, right),
        ):
            begin = b.gep(x, [b.add(b.mul(first, step), at)], source_etype=element)
            b.call(put, [rows, some, columns, begin, row, step, panels])
        with loop(b, start, stop, width) as column:
            panel = b.gep(right, [b.mul(b.sub(column, start), depth)], source_etype=element)
            with loop(b, I64(0), m, ROWS) as line:
                out = b.gep(c, [b.add(b.mul(line, ldc), column)], source_etype=element)
                b.call(tile, [depth, b.gep(left, [b.mul(line, depth)], source_etype=element), I64(0), panel, out, ldc])
    b.ret_void()
    return function


def _define_put(module: ir.Module, dtype: np.dtype[Any], size: int) -> ir.Function:
    """``put(R, S, N, X, x_row, x_step, panels)``: N columns as panels of ``size`` columns, the last filled with zeros."""
    pointer, element, lanes = ir.PointerType(), FLOATS[dtype], lanes_of(dtype)
    function = ir.Function(
        module, ir.FunctionType(ir.VoidType(), [I64, I64, I64, pointer, I64, I64, pointer]), f"put{size}_{dtype.name}"
    )
    function.linkage = "internal"
    rows, steps, columns, x, row, step, panels = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    depth = b.mul(rows, steps)
    parts = [lanes] * (size // lanes) + [part for part in (4, 2, 1) if size % lanes & part]
    with loop(b, I64(0), steps) as s, loop(b, I64(0), rows) as r:
        line = b.gep(x, [b.add(b.mul(s, step), b.mul(r, row))], source_etype=element)
        k = b.add(b.mul(s, rows), r)
        whole = b.mul(b.sdiv(columns, I64(size)), I64(size))
        with loop(b, I64(0), whole, size) as column:
            out = b.gep(panels, [b.add(b.mul(column, depth), b.mul(k, I64(size)))], source_etype=element)
            at = 0
            for part in parts:
                v = Vectors(b, part)
                source = b.gep(line, [b.add(column, I64(at))], source_etype=element)
                v.store(v.load(dtype, source), dtype, b.gep(out, [I64(at)], source_etype=element))
                at += part
        one = Vectors(b, 1)
        out = b.gep(panels, [b.add(b.mul(whole, depth), b.mul(k, I64(size)))], source_etype=element)
        left = b.sub(columns, whole)
        with loop(b, I64(0), left) as i:
            source = b.gep(line, [b.add(whole, i)], source_etype=element)
            one.store(one.load(dtype, source), dtype, b.gep(out, [i], source_etype=element))
        stop = b.select(b.icmp_signed(">", left, I64(0)), I64(size), I64(0))
        with loop(b, left, stop) as i:
            one.store(one.constant(dtype, 0), dtype, b.gep(out, [i], source_etype=element))
    b.ret_void()
    return function
