"""How threads in machine code wait for each other without the interpreter: they look at a word in memory.

To wake a thread that sleeps takes some 50 microseconds, as long as a small loop runs. A loop is often followed by another one
soon, so a thread that has done its share looks into its mailbox for a while before it sleeps.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir

from tinyseq_numba.machine import compiled

__all__ = ["YIELDS", "Mailbox", "call", "wait_until"]

I32, I64, POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType()
SHARE = ir.FunctionType(ir.VoidType(), [POINTER]).as_pointer()
YIELDS = os.name == "posix"  # elsewhere nothing says how to give a core away
PATIENCE = 4000  # looks at a word before the core is given to somebody else, who may be the one that is waited for

LINE = 8  # words of a cache line: what two threads write lies on lines of their own
ASKED, DONE, CODE, ARGUMENTS, WATCHING = 0, LINE, 2 * LINE, 2 * LINE + 1, 3 * LINE
WORDS = 5 * LINE


def wait_until(b: ir.IRBuilder, ready: Callable[[], Any], patience: Any = None) -> Any:
    """Write a loop that looks until ``ready()``, a truth value, holds; whether it does.

    Args:
        b: where the code goes.
        ready: writes a look.
        patience: how many looks; None is as many as it takes, and the core is given away now and then.
    """
    before, look, idle, end = b.block, *(b.append_basic_block(name) for name in ("look", "idle", "end"))
    b.branch(look)
    b.position_at_end(look)
    looks = b.phi(I64)
    looks.add_incoming(I64(0), before)
    found = ready()
    b.cbranch(found, end, idle)
    b.position_at_end(idle)
    if platform.machine().lower() in ("x86_64", "amd64"):
        b.call(_declared(b.module, "llvm.x86.sse2.pause", ir.VoidType()), [])
    more = b.add(looks, I64(1))
    if patience is None:
        if YIELDS:
            with b.if_then(b.icmp_signed("==", b.srem(more, I64(PATIENCE)), I64(0)), likely=False):
                b.call(_declared(b.module, "sched_yield", I32), [])
        b.branch(look)
    else:
        b.cbranch(b.icmp_signed("<", more, patience), look, end)
    looks.add_incoming(more, b.block)
    b.position_at_end(end)
    return found


def _declared(module: ir.Module, name: str, returns: ir.Type) -> ir.Function:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(returns, []), name)


class Mailbox:
    """Where a thread finds shares of work, one at a time: machine code, a function of one pointer, and the pointer.

    ``asked`` counts the shares that were put in and ``done`` those that have run; while ``watching`` is set, the thread looks.
    """

    def __init__(self) -> None:
        self._words = (ctypes.c_int64 * (WORDS + LINE))()
        at = ctypes.addressof(self._words)
        self.address = at + -at % (8 * LINE)

    def put(self, code: int, arguments: int) -> bool:
        """Put a share in, when the last one is done; whether the thread is looking, or has to be woken.

        A code of 0 asks the thread to leave ``watch``.
        """
        return bool(_function("put", 3, ctypes.c_int64)(self.address, code, arguments))

    def wait(self) -> None:
        """Return when all that was put in is done."""
        _function("wait", 1)(self.address)

    def watch(self, patience: int) -> None:
        """Do what is put in, until nothing has come for so many looks, or the thread is asked to leave."""
        _function("watch", 2)(self.address, patience)

    def clear(self) -> None:
        """Take out what asks the thread to leave; it has left."""
        words = (ctypes.c_int64 * WORDS).from_address(self.address)
        words[DONE] = words[ASKED]


def call(code: int, arguments: int) -> None:
    """Run machine code in this thread."""
    _function("call", 2)(code, arguments)


@cache
def _function(name: str, count: int, returns: Any = None) -> Any:
    return compiled(_write(), name, *[ctypes.c_int64] * count, returns=returns)


@cache
def _write() -> str:
    """The code of a mailbox.

    Whoever puts something in first raises ``asked`` and then looks whether the thread watches; the thread first says that it
    does not and then looks whether something was asked. In one order for all, so one of the two sees the other.
    """
    module = ir.Module("tinyseq_mailbox")

    def function(name: str, returns: ir.Type, count: int) -> tuple[ir.IRBuilder, Any, list[Any]]:
        made = ir.Function(module, ir.FunctionType(returns, [I64] * count), name)
        b = ir.IRBuilder(made.append_basic_block("entry"))
        box = b.inttoptr(made.args[0], POINTER)
        return b, lambda word: b.gep(box, [I64(word)], source_etype=I64), made.args[1:]

    def load(b: ir.IRBuilder, at: Any) -> Any:
        return b.load_atomic(at, "seq_cst", 8, typ=I64)

    def store(b: ir.IRBuilder, value: Any, at: Any) -> None:
        b.atomic_rmw("xchg", at, value, "seq_cst")

    b, at, (code, arguments) = function("put", I64, 3)
    b.store(code, at(CODE))
    b.store(arguments, at(ARGUMENTS))
    store(b, b.add(load(b, at(ASKED)), I64(1)), at(ASKED))
    b.ret(load(b, at(WATCHING)))

    b, at, _ = function("wait", ir.VoidType(), 1)
    wait_until(b, lambda: b.icmp_signed("==", load(b, at(DONE)), load(b, at(ASKED))))
    b.ret_void()

    b, at, (patience,) = function("watch", ir.VoidType(), 2)
    names = ("watch", "share", "run", "leave", "left", "ended")
    watch, share, run, leave, left, ended = (b.append_basic_block(name) for name in names)
    b.branch(watch)
    b.position_at_end(watch)
    store(b, I64(1), at(WATCHING))
    asked = lambda: b.icmp_signed("!=", load(b, at(DONE)), load(b, at(ASKED)))
    b.cbranch(wait_until(b, asked, patience), share, leave)
    b.position_at_end(share)
    seen = load(b, at(ASKED))
    code = b.load(at(CODE), typ=I64)
    b.cbranch(b.icmp_signed("==", code, I64(0)), left, run)
    b.position_at_end(run)
    b.call(b.inttoptr(code, SHARE), [b.inttoptr(b.load(at(ARGUMENTS), typ=I64), POINTER)])
    store(b, load(b, at(ASKED)), at(DONE))
    b.branch(watch)
    b.position_at_end(leave)
    store(b, I64(0), at(WATCHING))
    b.cbranch(asked(), watch, ended)  # type: ignore[no-untyped-call]
    b.position_at_end(left)
    store(b, I64(0), at(WATCHING))
    store(b, seen, at(DONE))  # what was put in since then is still there
    b.branch(ended)
    b.position_at_end(ended)
    b.ret_void()

    made = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, I64]), "call")
    b = ir.IRBuilder(made.append_basic_block("entry"))
    b.call(b.inttoptr(made.args[0], SHARE), [b.inttoptr(made.args[1], POINTER)])
    b.ret_void()
    return str(module)
