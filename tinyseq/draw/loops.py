"""A compiled scan opened: its plans as items, the loop folded or its steps in columns, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyseq.compiler.loop import Plan, Program
from tinyseq.draw.diagram import BoxKind
from tinyseq.draw.record import Frame, Item, Record
from tinyseq.graph import Equation, Operand, Var

__all__ = ["Opening", "Scan", "read_program", "shown_steps"]

Env = dict[Var, list[tuple[int | None, int]]]  # the items of each value, with the step they belong to if to one
HIDDEN = -1  # the step of what stands in a gap
TOTALS = {
    "stack": "sum over all t",
    "product": "matmul over all t",
    "scatter": "scatter_add over all t",
    "fixed": "T times",
}


def shown_steps(steps: int, columns: int) -> list[int | None]:
    """Which steps are drawn in so many columns, oldest first; None is the gap.

    >>> shown_steps(5, 5), shown_steps(9, 5), shown_steps(9, 1)
    ([0, 1, 2, 3, 4], [0, 1, 2, None, 8], [0, None, 8])
    """
    first = max(columns - 2, 1)
    if steps <= max(columns, first + 2):
        return list(range(steps))
    return [*range(first), None, steps - 1]


@dataclass(slots=True, eq=False)
class Scan:
    """An opened scan, for its backward pass.

    Attributes:
        opening, program, prefix, frame, steps, reverse: as it was opened.
        env: the items of the forward pass.
        carry, inputs: the items it was given: for each part of the carry, and for xs and what was closed over.
        last, ys: the items of its results.
        used: which results are used, counted through both; None: all.
    """

    opening: Opening
    program: Program
    prefix: str
    frame: int | None
    steps: int | None
    reverse: bool
    env: Env
    carry: list[list[int]]
    inputs: list[list[int]]
    last: list[list[int]]
    ys: list[list[int]]
    used: set[int] | None = None

    def remap(self, place: Callable[[int], int | None]) -> None:
        """The items have moved."""

        def moved(items: Iterable[int]) -> list[int]:
            return list(dict.fromkeys(n for n in map(place, items) if n is not None))

        self.env = {v: [(t, n) for t, i in pairs if (n := place(i)) is not None] for v, pairs in self.env.items()}
        self.carry, self.inputs, self.last, self.ys = (
            [moved(items) for items in part] for part in (self.carry, self.inputs, self.last, self.ys)
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """How compiled scans are opened: with their steps in so many columns, or folded if ``columns`` is None."""

    columns: int | None = None

    def forward(
        self,
        record: Record,
        program: Program,
        carry: Sequence[list[int]],
        inputs: Sequence[list[int]],
        *,
        prefix: str,
        frame: int | None,
        steps: int | None,
        reverse: bool,
    ) -> Scan:
        """Add the forward pass to the record."""
        body = program.body
        env: Env = {v: [(None, i) for i in items] for v, items in zip((*body.x, *body.joint.closed), inputs, strict=False)}
        scan = Scan(self, program, prefix, frame, steps, reverse, env, list(carry), list(inputs), [], [])
        scan.last = self._plan(record, program.forward, env, body.carry, carry, scan, frame, backward=False)
        scan.ys = [_all(env, y) for y in body.y]
        record.scans.append(scan)
        return scan

    def backward(
        self, record: Record, scan: Scan, last: Sequence[list[int]], ys: Sequence[list[int]], around: int | None
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Add the backward pass, in a frame: the items of the gradients of the carry, and of xs and what was closed over."""
        body, plan = scan.program.body, scan.program.backward
        env: Env = {**scan.env}
        env.update(zip(body.cotangents[body.carries :], ([(None, i) for i in items] for items in ys), strict=False))
        first = self._plan(record, plan, env, body.cotangents[: body.carries], last, scan, around, backward=True)
        frame: int | None = None
        for k, total in enumerate(plan.totals):
            if frame is None:
                frame = record.frame(Frame(f"{scan.prefix}.b.sums", "part", "summed over all t", around, backward=True))
            count = len(total.inputs or (total.var,))
            item = Item(f"{scan.prefix}.b.total{k}", "backward", TOTALS[total.kind], [], count, (), {}, total.var.shape)
            item.dtype, item.frame = total.var.dtype, frame
            item.parents = [(i, s) for s, v in enumerate(total.inputs or (total.var,)) for _, i in env.get(v, ())]
            env[total.var] = [(None, record.add(item))]
        for k, e in enumerate(plan.finally_):
            env[e.output] = [(None, _equation(record, e, env, f"{scan.prefix}.b.last{k}", frame, None, True, None))]
        return first, [_all(env, g) for g in body.gradients[body.carries :]]

    def _plan(
        self,
        record: Record,
        plan: Plan,
        env: Env,
        carry: Sequence[Var],
        start: Sequence[list[int]],
        scan: Scan,
        around: int | None,
        *,
        backward: bool,
    ) -> list[list[int]]:
        """Add one direction; ``env`` gains its values. Returns the items of the last carry."""
        prefix = f"{scan.prefix}.{'b' if backward else 'f'}"
        steps, reverse = scan.steps, scan.reverse != backward

        def part(title: str, equations: Sequence[Equation], tag: str) -> None:
            if not equations:
                return
            frame = record.frame(Frame(f"{prefix}.{tag}", "part", title, around, backward=backward))
            for k, e in enumerate(equations):
                stacked = (steps or "T") if e.output in plan.stacked else None
                env[e.output] = [(None, _equation(record, e, env, f"{prefix}.{tag}{k}", frame, None, backward, stacked))]

        part("once", plan.fixed, "once")
        part("before the loop, for all t at once", plan.before, "before")
        loop = Frame(f"{prefix}.loop", "loop", "backward loop" if backward else "loop", around)
        loop.steps, loop.reverse, loop.backward = steps, reverse, backward
        where = record.frame(loop)
        graph, count = plan.step.graph, len(carry)
        loop.count = len(graph.equations) * (steps or 1)
        written: Env = {}

        def run(local: Env, frame: int, t: int | None, tag: str) -> list[list[int]]:
            for k, e in enumerate(graph.equations):
                local[e.output] = [(None, _equation(record, e, local, f"{prefix}.{tag}{k}", frame, t, backward, None))]
            for v, out in zip(plan.written, graph.outputs[count:], strict=True):
                written.setdefault(v, []).extend((t, i) for i in _all(local, out))
            return [_all(local, out) for out in graph.outputs[:count]]

        if self.columns is None or steps is None:
            loop.folded = True
            local, first = {**env}, len(record.items)
            for k, (v, items) in enumerate(zip(carry, start, strict=True)):
                local[v] = [(None, _carry(record, v, items, f"{prefix}.carry{k}", where, k, count, backward))]
            new = run(local, where, None, "step")
            boxes = [local[v][0][1] for v in carry]
            for box, items in zip(boxes, new, strict=True):
                record.carries += [(i, box) for i in items if i != box]
            for item in record.items[boxes[0] if boxes else first :]:
                item.count = (steps or 1) if item.kind != "carry" else 0
            into: Env = {v: [(None, box)] for v, box in zip(carry, boxes, strict=True)}
            out: list[list[tuple[int | None, int]]] = [[(None, i) for i in items] for items in new]
        else:
            into, out, new = self._columns(
                record, plan, env, carry, start, prefix, where, steps, reverse, backward, run, written
            )
        for i in plan.step.histories:
            env[carry[i]] = into[carry[i]]
            produced = plan.new_carry[i]
            if isinstance(produced, Var):
                env.setdefault(produced, out[i])
        env.update(written)
        part("after the loop, for all t at once", plan.after, "after")
        return new

    def _columns(
        self,
        record: Record,
        plan: Plan,
        env: Env,
        carry: Sequence[Var],
        start: Sequence[list[int]],
        prefix: str,
        loop: int,
        steps: int,
        reverse: bool,
        backward: bool,
        run: Callable[[Env, int, int | None, str], list[list[int]]],
        written: Env,
    ) -> tuple[Env, list[list[tuple[int | None, int]]], list[list[int]]]:
        """The steps in columns: what each carry is before and after each step, and after the last one."""
        assert self.columns is not None
        shown = shown_steps(steps, self.columns)
        frames = {}
        for t in shown:
            title = "" if t is None else f"t = {t}"
            kind: Any = "gap" if t is None else "step"
            at = len(shown) - 2 if t is None else t
            frames[t] = record.frame(Frame(f"{prefix}.t{t}", kind, title, loop, at, backward=backward))
        hidden = steps - len(shown) + 1
        into: Env = {v: [] for v in carry}
        out: list[list[tuple[int | None, int]]] = [[] for _ in carry]
        state = [list(items) for items in start]
        for t in reversed(shown) if reverse else shown:
            number = HIDDEN if t is None else t
            for v, items in zip(carry, state, strict=True):
                into[v] += [(number, i) for i in items]
            if t is None:
                parents = [i for items in state for i in items]
                for v in plan.step.slices:
                    parents += [i for tt, i in env.get(v, ()) if tt in (None, HIDDEN)]
                gap = Item(f"{prefix}.gap", "gap", f"… {hidden:,} more steps …", [(i, 0) for i in dict.fromkeys(parents)])
                gap.frame, gap.count = frames[None], len(plan.step.graph.equations) * hidden
                box = record.add(gap)
                for v in plan.written:
                    written.setdefault(v, []).append((HIDDEN, box))
                state = [[box] for _ in state]
            else:
                local: Env = {v: [(tt, i) for tt, i in pairs if tt in (None, t)] for v, pairs in env.items()}
                local.update({v: [(None, i) for i in items] for v, items in zip(carry, state, strict=True)})
                state = run(local, frames[t], t, f"t{t}.")
            for i, items in enumerate(state):
                out[i] += [(number, j) for j in items]
        return into, out, state


def _all(env: Env, x: Operand) -> list[int]:
    return [i for _, i in env.get(x, ())] if isinstance(x, Var) else []


def _equation(
    record: Record, e: Equation, env: Env, name: str, frame: int | None, t: int | None, backward: bool, stacked: Any
) -> int:
    kind: BoxKind = "backward" if backward else "operation"
    item = Item(name, kind, e.primitive.name, [], len(e.inputs), tuple(None if isinstance(x, Var) else x for x in e.inputs))
    for slot, x in enumerate(e.inputs):
        if isinstance(x, Var):
            item.parents += [(i, slot) for tt, i in env.get(x, ()) if t is None or tt in (None, t)]
    item.params, item.dtype, item.frame = e.params, e.output.dtype, frame
    item.shape = e.output.shape if stacked is None else (stacked, *e.output.shape)
    return record.add(item)


def _carry(record: Record, v: Var, start: Sequence[int], name: str, frame: int, k: int, count: int, backward: bool) -> int:
    title = "carry" if count == 1 else f"carry {k}"
    item = Item(name, "carry", f"∂ {title}" if backward else title, [(i, 0) for i in start], frame=frame)
    item.shape, item.dtype = v.shape, v.dtype
    return record.add(item)


def read_program(program: Program, opening: Opening, steps: int | None, backward: bool) -> Record:
    """The record of a planned scan by itself."""
    record, body = Record(), program.body

    def given(kind: BoxKind, title: str, v: Var, stacked: bool) -> list[int]:
        shape = ((steps or "T"), *v.shape) if stacked else v.shape
        item = Item(f"n{len(record.items)}", kind, title, [], name=title, shape=shape, dtype=v.dtype)
        return [record.add(item)]

    def numbered(title: str, k: int, count: int) -> str:
        return title if count == 1 else f"{title} {k}"

    carry = [given("input", numbered("initial carry", k, body.carries), v, False) for k, v in enumerate(body.carry)]
    xs = [given("input", numbered("xs", k, body.xs), v, True) for k, v in enumerate(body.x)]
    closed = []
    for k, (v, tensor) in enumerate(zip(body.joint.closed, body.closed, strict=True)):
        learned = tensor.node is not None
        name = v.name or tensor.name or (f"closed over {k}" if learned else "constant")
        closed.append(given("parameter" if learned else "constant", name, v, False))
    scan = opening.forward(record, program, carry, [*xs, *closed], prefix="s", frame=None, steps=steps, reverse=False)
    results = [*scan.last, *scan.ys]
    record.outputs = list(dict.fromkeys(i for items in results for i in items if record.items[i].kind == "operation"))
    for i in record.outputs:
        record.items[i].kind = "output"
    if backward and body.cotangents:
        last = [
            given("backward", f"∂ {numbered('last carry', k, body.carries)}", v, False)
            for k, v in enumerate(body.cotangents[: body.carries])
        ]
        ys = [
            given("backward", f"∂ {numbered('ys', k, body.ys)}", v, True) for k, v in enumerate(body.cotangents[body.carries :])
        ]
        for items, seeds in zip(results, [*last, *ys], strict=True):
            record.items[seeds[0]].kind = "gradient"
            record.items[seeds[0]].parents = [(i, slot) for slot, i in enumerate(items)]
        first, others = opening.backward(record, scan, last, ys, None)
        for items, of in zip([*first, *others], [*carry, *xs, *closed], strict=False):
            source = record.items[of[0]]
            if items:
                record.add(
                    Item(
                        f"d{source.id}",
                        "gradient",
                        f"∂ {source.operation}",
                        [(i, 0) for i in items],
                        shape=source.shape,
                        dtype=source.dtype,
                    )
                )
    record.scans.clear()
    return record
