"""The recurrent product h @ W, at a core's peak: W packed once into panels, walked by register tiles.

A step multiplies a short block of states by a matrix that stays the same for all T steps. BLAS would pack that matrix at
every call. Here it is packed once, into panels of ``PANEL`` columns, and a tile of up to six rows by one panel keeps its
sums in registers: 6 x 4 vectors of 32 bytes fill 24 of 32 registers. Vectors of 64 bytes were slower where the
processor splits them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from tinyseq_numba.loop.vectors import FLOATS, I64, Vectors

__all__ = ["ROWS", "define_product", "lanes_of", "pack", "panel_of"]

VECTORS = 4  # vectors of a panel
ROWS = 6  # rows of the largest tile
BYTES = 32  # of a vector


def lanes_of(dtype: np.dtype[Any]) -> int:
    """Numbers in a vector."""
    return BYTES // dtype.itemsize


def panel_of(dtype: np.dtype[Any]) -> int:
    """Columns of a panel."""
    return VECTORS * lanes_of(dtype)


def pack(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(K, N) as (panels, K, columns of a panel), with zeros where N does not fill the last panel."""
    rows, columns = weights.shape
    width = panel_of(weights.dtype)
    panels = -(-columns // width)
    packed = np.zeros((panels, rows, width), weights.dtype)
    whole = columns // width
    packed[:whole] = weights[:, : whole * width].reshape(rows, whole, width).transpose(1, 0, 2)
    if whole < panels:
        packed[whole, :, : columns - whole * width] = weights[:, whole * width :]
    return packed


def define_product(module: ir.Module, dtype: np.dtype[Any]) -> ir.Function:
    """``product(M, N, K, A, lda, panels, C, ldc)``: C[M, N] = A[M, K] @ W[K, N]; N a multiple of a panel's width.

    A and C are pointers to the first row, lda and ldc the distance between rows, in numbers.
    """
    name = f"product_{dtype.name}"
    if name in module.globals:
        return module.globals[name]
    pointer, element = ir.PointerType(), FLOATS[dtype]
    kind = ir.FunctionType(ir.VoidType(), [I64, I64, I64, pointer, I64, pointer, pointer, I64])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    rows, columns, inner, a, lda, panels, c, ldc = function.args
    width = panel_of(dtype)
    tiles = {size: _define_tile(module, dtype, size) for size in range(1, ROWS + 1)}

    entry = function.append_basic_block("entry")
    b = ir.IRBuilder(entry)
    with loop(b, I64(0), columns, width) as n:
        panel = b.gep(panels, [b.mul(n, inner)], source_etype=element)
        whole = b.mul(b.sdiv(rows, I64(ROWS)), I64(ROWS))
        left = b.sub(rows, whole)

        def run(tile: ir.Function, row: Any) -> None:
            top = b.gep(a, [b.mul(row, lda)], source_etype=element)
            out = b.gep(c, [b.add(b.mul(row, ldc), n)], source_etype=element)
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

    def __init__(self, builder: ir.IRBuilder, start: Any, stop: Any, step: int = 1) -> None:
        self.b, self.start, self.stop, self.step = builder, start, stop, step

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
        after = b.add(self.index, I64(self.step))
        self.index.add_incoming(after, b.block)
        b.branch(self.head)
        b.position_at_end(self.end)


def _define_tile(module: ir.Module, dtype: np.dtype[Any], size: int) -> ir.Function:
    """``tile(K, A, lda, panel, C, ldc)``: ``size`` rows of A times one panel."""
    name = f"tile{size}_{dtype.name}"
    pointer, element, lanes = ir.PointerType(), FLOATS[dtype], lanes_of(dtype)
    kind = ir.FunctionType(ir.VoidType(), [I64, pointer, I64, pointer, pointer, I64])
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    inner, a, lda, panel, c, ldc = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    v = Vectors(b, lanes)
    zero = v.constant(dtype, 0)
    rows = [b.gep(a, [b.mul(lda, I64(r))], source_etype=element) for r in range(size)]
    entry, body, end = b.block, b.append_basic_block("body"), b.append_basic_block("end")
    b.branch(body)
    b.position_at_end(body)
    k = b.phi(I64)
    k.add_incoming(I64(0), entry)
    sums = [[b.phi(zero.type) for _ in range(VECTORS)] for _ in range(size)]
    for row in sums:
        for one in row:
            one.add_incoming(zero, entry)
    at = b.gep(panel, [b.mul(k, I64(VECTORS * lanes))], source_etype=element)
    weights = [v.load(dtype, b.gep(at, [I64(i * lanes)], source_etype=element)) for i in range(VECTORS)]
    new = []
    for r in range(size):
        state = v.load_one(dtype, b.gep(rows[r], [k], source_etype=element))
        new.append([v.fma(state, weights[i], sums[r][i]) for i in range(VECTORS)])
    following = b.add(k, I64(1))
    k.add_incoming(following, body)
    for old_row, new_row in zip(sums, new, strict=True):
        for old, value in zip(old_row, new_row, strict=True):
            old.add_incoming(value, body)
    b.cbranch(b.icmp_signed("<", following, inner), body, end)
    b.position_at_end(end)
    for r in range(size):
        out = b.gep(c, [b.mul(ldc, I64(r))], source_etype=element)
        for i in range(VECTORS):
            v.store(new[r][i], dtype, b.gep(out, [I64(i * lanes)], source_etype=element))
    b.ret_void()
    return function
