"""Where the threads of a loop wait for each other: a counter that all of them raise and watch."""

from __future__ import annotations

from llvmlite import ir

from tinyseq_numba.loop.vectors import I64
from tinyseq_numba.waiting import YIELDS, wait_until

__all__ = ["AVAILABLE", "PASSED", "define_barrier"]

AVAILABLE = YIELDS  # else a thread that waits may keep the core that the other one wants
PASSED = 1 << 62  # a count that lets everybody through


def define_barrier(module: ir.Module) -> ir.Function:
    """``barrier(counter, arrivals)``: one more has arrived; returns when there were so many."""
    if "barrier" in module.globals:
        return module.globals["barrier"]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType(), I64]), "barrier")
    function.linkage = "internal"
    counter, arrivals = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    b.atomic_rmw("add", counter, I64(1), "acq_rel")
    wait_until(b, lambda: b.icmp_signed(">=", b.load_atomic(counter, "acquire", 8, typ=I64), arrivals))
    b.ret_void()
    return function
