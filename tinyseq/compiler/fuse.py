"""What a backend can run row by row beside the loop joins the loop.

The split by time puts what needs no carry before the loop and what no later step needs after it, each for all T steps at
once. That suits a library of array operations. A backend that generates code does better to take some steps at a time
through all three: what one part gives is still in the cache when the next part reads it, and a stack that nobody else
reads is never written. The same goes for sums over time, which grow as the steps pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from tinyseq.compiler.loop import Plan, Step, Total, is_view
from tinyseq.graph import Equation, Graph, Operand, Var

__all__ = ["Fuses", "fuse"]

Fuses = Callable[[Equation, frozenset[Var]], bool]


def fuse(plan: Plan, asked: Iterable[Var], fuses: Fuses, products: bool = True) -> Plan:
    """The plan with as much as possible within its step.

    Args:
        plan: the split of one direction.
        asked: the values at every step that are read when the plan has run.
        fuses: ``fuses(equation, stacked)``: whether the backend runs it within the loop, where ``stacked`` are the values
            that differ from step to step.
        products: whether it also adds up products in the loop, where the gradient of a weight grows step by step.
    """
    asked = set(asked)
    # Values of the plan, by the names that they have within the step.
    values = zip((*plan.new_carry, *plan.written), plan.step.graph.outputs, strict=True)
    inner: dict[Var, Operand] = {v: x for v, x in values if isinstance(v, Var)}
    last = _prefix(plan, fuses)
    made_after = {e.output: e for e in plan.after}
    left = {v for v in made_after if v not in last}  # made outside
    batch = plan.step.carry[0].shape[:1] if plan.step.carry else ()

    sums: list[Total] = []
    totals: list[Total] = []
    for total in plan.totals:
        grown = _within(total, made_after, left, plan.stacked, batch) if products or total.kind != "product" else None
        if grown is None:
            totals.append(total)
        else:
            sums.append(grown)
    read = asked | {v for t in totals for v in t.inputs or (t.var,)}
    outside: list[Equation] = []
    inside: list[Equation] = []
    within = {v for t in sums for v in t.inputs}
    first = _suffix(plan, fuses, {*plan.step.slices, *within})
    looped = {e.output for e in plan.step.graph.equations}
    for e in reversed(plan.after):
        mine = e.output in last and (e.output in within or (e.output in read and not is_view(e)))
        if mine and e.output not in looped:  # the loop may look through the same view
            inside.append(e)
            within.update(e.vars)
        if e.output in read and (not mine or is_view(e)):
            outside.append(e)
            read.update(e.vars)
    before = [e for e in plan.before if e.output in first]
    if not (before or inside or sums):
        return plan

    def now(x: Operand) -> Operand:
        return inner.get(x, x) if isinstance(x, Var) else x

    after = [e.with_inputs([now(x) for x in e.inputs]) for e in reversed(inside)]
    sums = [replace(t, inputs=tuple(_var(now(v)) for v in t.inputs)) for t in sums]
    equations = (*before, *plan.step.graph.equations, *after)
    written = [v for v in (*(e.output for e in before), *plan.written, *(e.output for e in after)) if v in read]
    outputs = (*plan.step.new_carry, *(now(v) for v in written))
    made = {*plan.step.carry, *(e.output for e in equations)}
    used = dict.fromkeys([
        *(v for v in (*plan.step.slices, *plan.step.graph.closed)),
        *(v for e in (*before, *after) for v in e.vars),
        *(v for t in sums for v in t.inputs),
    ])  # fmt: skip
    needed = {v for e in equations for v in e.vars} | {v for t in sums for v in t.inputs}
    needed.update(v for v in outputs if isinstance(v, Var))
    given = [v for v in used if v in needed and v not in made]
    slices = tuple(v for v in given if v in plan.stacked)
    closed = tuple(v for v in given if v not in plan.stacked)
    graph = Graph((*plan.step.carry, *slices), equations, outputs, closed).check()
    step = Step(graph, plan.step.carries, plan.step.histories, len(before), len(after), tuple(sums))
    return replace(
        plan,
        before=tuple(e for e in plan.before if e.output not in first),
        step=step,
        after=tuple(reversed(outside)),
        totals=tuple(totals),
        written=tuple(written),
    )


def _suffix(plan: Plan, fuses: Fuses, read: set[Var]) -> set[Var]:
    """Of what comes before the loop and is read there, what the backend runs and nothing outside waits for."""
    users: dict[Var, list[Equation]] = {}
    for e in plan.before:
        for v in e.vars:
            users.setdefault(v, []).append(e)
    found: set[Var] = set()
    for e in reversed(plan.before):
        later = users.get(e.output, [])
        if (later or e.output in read) and fuses(e, plan.stacked) and all(u.output in found for u in later):
            found.add(e.output)
    return found


def _prefix(plan: Plan, fuses: Fuses) -> set[Var]:
    """Of what comes after the loop, what the backend runs and waits for nothing outside."""
    made = {e.output for e in plan.after}
    found: set[Var] = set()
    for e in plan.after:
        if fuses(e, plan.stacked) and all(v in found or v not in made for v in e.vars):
            found.add(e.output)
    return found


def _within(
    total: Total, made_after: dict[Var, Equation], left: set[Var], stacked: frozenset[Var], batch: tuple[int, ...]
) -> Total | None:
    """The sum as one that grows within the loop, if all that it adds up is there."""

    def at_hand(*values: Operand) -> bool:
        return all(isinstance(v, Var) and v in stacked and v not in left and v.shape[:1] == batch != () for v in values)

    if total.kind == "product" and at_hand(*total.inputs):
        return total
    if total.kind != "stack":
        return None
    e = made_after.get(total.var)
    if e is not None and e.primitive.name == "sum" and e.params["axis"] == (-2,):
        (x,) = e.inputs
        if at_hand(x) and isinstance(x, Var) and len(x.shape) == 2 and x.dtype == total.var.dtype:
            return Total(total.var, "rows", (x,))
    return Total(total.var, "each", (total.var,)) if at_hand(total.var) and total.var.dtype.kind == "f" else None


def _var(x: Operand) -> Var:
    assert isinstance(x, Var)
    return x
