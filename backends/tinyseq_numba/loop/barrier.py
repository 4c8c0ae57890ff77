"""Where the threads of a loop wait for each other: a counter that all of them raise and watch."""

from __future__ import annotations

import os
import platform

from llvmlite import ir

from tinyseq_numba.loop.vectors import I32, I64

__all__ = ["AVAILABLE", "PASSED", "define_barrier"]

AVAILABLE = os.name == "posix"  # elsewhere nothing says how to give a core away
PASSED = 1 << 62  # a count that lets everybody through
PATIENCE = 4000  # looks at the counter before the core is given to somebody else, who may be the one that is waited for


def define_barrier(module: ir.Module) -> ir.Function:
    """``barrier(counter, arrivals)``: one more has arrived; returns when there were so many."""
    if "barrier" in module.globals:
        return module.globals["barrier"]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType(), I64]), "barrier")
    function.linkage = "internal"
    counter, arrivals = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    look, wait, tired, again, done = (b.append_basic_block(name) for name in ("look", "wait", "tired", "again", "done"))
    entry = b.block
    b.atomic_rmw("add", counter, I64(1), "acq_rel")
    b.branch(look)
    b.position_at_end(look)
    looks = b.phi(I64)
    looks.add_incoming(I64(0), entry)
    count = b.load_atomic(counter, "acquire", 8, typ=I64)
    b.cbranch(b.icmp_signed(">=", count, arrivals), done, wait)
    b.position_at_end(wait)
    if platform.machine().lower() in ("x86_64", "amd64"):
        b.call(ir.Function(module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"), [])
    more = b.add(looks, I64(1))
    b.cbranch(b.icmp_signed("<", more, I64(PATIENCE)), again, tired)
    b.position_at_end(tired)
    if AVAILABLE:
        b.call(ir.Function(module, ir.FunctionType(I32, []), "sched_yield"), [])
    b.branch(again)
    b.position_at_end(again)
    looks.add_incoming(more, again)
    b.branch(look)
    b.position_at_end(done)
    b.ret_void()
    return function
