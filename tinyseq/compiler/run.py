"""Running a planned scan: what is fixed, what comes before the loop, the loop itself on the backend, what comes after."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from tinyseq.backend import Backend, CannotFuse
from tinyseq.compiler import debug
from tinyseq.compiler.fuse import fuse
from tinyseq.compiler.loop import Plan, Program, Total, lifted
from tinyseq.graph import Equation, Operand, Var

__all__ = ["Runner"]

Array = Any
Env = dict[Var, Array]
Loop = Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]


class Runner:
    """A program on a backend: its two loops compiled, the rest run operation by operation."""

    def __init__(self, program: Program, backend: Backend) -> None:
        self.program = program
        self.backend = backend
        debug.show("graph", "a step and its gradient", program.body.joint)
        debug.show("split", f"by time, for {backend.name}", program)
        plan, body = program.backward, program.body
        equations = (*plan.fixed, *plan.before, *plan.after)
        self._read = {v for e in equations for v in e.vars} | {*plan.step.slices, *plan.step.graph.closed}
        self._read.update(v for total in plan.totals for v in (total.var, *total.inputs))
        self._forward = self._compiled("forward", program.forward, (*body.y, *self._read))
        self._backward: tuple[Plan, Loop] | None = None  # when first asked for: who only infers does not wait for it

    def _compiled(self, what: str, plan: Plan, asked: Iterable[Operand]) -> tuple[Plan, Loop]:
        """The plan as the backend runs it, and its loop."""
        with debug.timed(f"compiled the {what} loop for {self.backend.name}"):
            if self.backend.fuses is not None:
                values = (v for v in asked if isinstance(v, Var))
                together = fuse(plan, values, self.backend.fuses, self.backend.sums_products)
                if together is not plan:
                    try:
                        loop = self.backend.compile_loop(together.step)
                    except CannotFuse as reason:
                        debug.show("time", f"the {what} loop stays by itself: there is no code for {reason} beside it")
                    else:
                        debug.show("split", f"{what}, as {self.backend.name} runs it", together)
                        return together, loop
            return plan, self.backend.compile_loop(plan.step)

    def forward(
        self, carry: Sequence[Array], xs: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], Env]:
        """The last carry, the stacked outputs, and what the backward pass will read."""
        body, (plan, loop) = self.program.body, self._forward
        env: Env = dict(zip((*body.x, *body.joint.closed), (*xs, *closed), strict=True))
        last, _ = _run(self.backend.ops, plan, loop, env, body.carry, carry, steps, reverse)
        ys = [self._stack(y, env, plan, steps) for y in body.y]
        return last, ys, {v: a for v, a in env.items() if v in self._read}

    def _stack(self, y: Operand, env: Env, plan: Plan, steps: int) -> Array:
        """An output at every step; one that is the same at every step is spread over time."""
        assert isinstance(y, Var)
        return env[y] if y in plan.stacked else self.backend.ops.broadcast_to(env[y], shape=(steps, *y.shape))

    def backward(
        self,
        env: Env,
        last: Sequence[Array],
        ys: Sequence[Array],
        steps: int,
        reverse: bool,
        squares: Callable[[list[Array]], object] | None = None,
    ) -> list[Array | None]:
        """From the cotangents of the last carry and of the outputs to those of carry, xs and what was closed over.

        ``squares`` is given the squared gradients of the watched parts of the carry at every step.
        """
        body, ops = self.program.body, self.backend.ops
        if self._backward is None:
            asked = (*body.gradients[body.carries : body.carries + body.xs], *body.squares)
            self._backward = self._compiled("backward", self.program.backward, asked)
        plan, loop = self._backward
        env = {**env, **dict(zip(body.cotangents[body.carries :], ys, strict=True))}
        first, totals = _run(ops, plan, loop, env, body.cotangents[: body.carries], last, steps, not reverse)
        totals.update((total.var, _total(ops, total, plan, env, steps)) for total in plan.totals)
        for e in plan.finally_:
            totals[e.output] = getattr(ops, e.primitive.name)(*(_value(totals, x) for x in e.inputs), **e.params)
        if squares is not None:
            squares([self._square(v, env, plan, steps) for v in body.squares])
        of_xs = body.gradients[body.carries : body.carries + body.xs]
        of_closed = body.gradients[body.carries + body.xs :]
        return [
            *first,
            *(self._stack(v, env, plan, steps) if isinstance(v, Var) else None for v in of_xs),
            *(totals[v] if isinstance(v, Var) else None for v in of_closed),
        ]

    def _square(self, v: Operand, env: Env, plan: Plan, steps: int) -> Array:
        """A squared gradient at every step; one that nothing depends on is zero."""
        if isinstance(v, Var):
            return self._stack(v, env, plan, steps)
        return self.backend.full((steps,), 0, np.dtype("float32"))


def _run(
    ops: Any,
    plan: Plan,
    loop: Loop,
    env: Env,
    carry: Sequence[Var],
    start: Sequence[Array],
    steps: int,
    reverse: bool,
) -> tuple[list[Array], Env]:
    """Run a plan; ``env`` gains what stands outside the loop and what the loop writes.

    Returns:
        the last carry, and what the loop summed.
    """
    step = plan.step
    for e in plan.fixed:
        env[e.output] = getattr(ops, e.primitive.name)(*(_value(env, x) for x in e.inputs), **e.params)
    _lift(ops, plan.before, plan, env, steps)
    stacks, closed = [env[v] for v in step.slices], [env[v] for v in step.graph.closed]
    with debug.timed(f"{steps} steps of a loop"):
        last, histories, written, sums = loop(start, stacks, closed, steps, reverse)
    for i, history in zip(step.histories, histories, strict=True):
        # The states before each step and those after it are one stack, a step apart.
        first, rest = (ops.getitem(history, key=(part,)) for part in (slice(None, -1), slice(1, None)))
        into, out = (rest, first) if reverse else (first, rest)
        env[carry[i]] = into
        new = plan.new_carry[i]
        if isinstance(new, Var):
            env.setdefault(new, out)
    env.update(zip(plan.written, written, strict=True))
    _lift(ops, plan.after, plan, env, steps)
    return last, {total.var: a for total, a in zip(step.sums, sums, strict=True)}


def _value(env: Env, x: Operand) -> Any:
    return env[x] if isinstance(x, Var) else x


def _lift(ops: Any, equations: Iterable[Equation], plan: Plan, env: Env, steps: int) -> None:
    for e in equations:
        times = tuple(isinstance(x, Var) and x in plan.stacked for x in e.inputs)
        env[e.output] = lifted(ops, e, [_value(env, x) for x in e.inputs], times, steps)


def _total(ops: Any, total: Total, plan: Plan, env: Env, steps: int) -> Array:
    """A value summed over all steps."""
    if total.kind == "product":
        x, y = (ops.reshape(a, shape=(math.prod(a.shape[:-1]), a.shape[-1])) for a in map(env.__getitem__, total.inputs))
        return ops.matmul(ops.permute(x, axes=(-1, -2)), y)
    if total.kind == "batched":
        x, y = (env[v] for v in total.inputs)
        batch, count = total.var.shape[:-2], len(total.var.shape) + 1
        lead = tuple(range(1 - count, -2))  # of the axes, counted from the last; time is the first
        x = ops.reshape(ops.permute(x, axes=(*lead, -2, -count, -1)), shape=(*batch, x.shape[-2], steps * x.shape[-1]))
        y = ops.reshape(ops.permute(y, axes=(*lead, -count, -2, -1)), shape=(*batch, steps * y.shape[-2], y.shape[-1]))
        return ops.matmul(x, y)
    if total.kind == "scatter":
        return ops.scatter_add(*(env[v] for v in total.inputs), **total.params)
    if total.kind == "fixed":
        return ops.mul(env[total.var], steps)
    return ops.sum(env[total.var], axis=(-len(total.var.shape) - 1,), keepdims=False)
