"""A scan's body as three programs: what can run before the loop, what must run at every step, what can wait until after.

An equation belongs to the *step* if it is reachable from the incoming carry and reaches the outgoing one. What does not
depend on the carry goes *before*, for all T at once (``x @ W`` is one product with T * B rows); what no later step needs
goes *after* (an output layer, and in the backward pass every gradient of a weight). Products and reductions move;
elementwise work moves into the loop wherever that saves a pass over memory.

The same is done to the gradient, which is a loop of its own: its carry is the carry's cotangent, time runs the other
way, and what it needs of the forward pass is either kept or, where that is cheap, computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Any

from tinyseq import mode
from tinyseq.abstract import Abstract
from tinyseq.array_api import INDEX
from tinyseq.compiler.passes import ARITHMETIC, ELEMENTWISE, merge_products, narrow, simplify, split_columns
from tinyseq.compiler.trace import Trace, Traced, graph_of
from tinyseq.graph import Equation, Graph, Names, Operand, Var
from tinyseq.primitives import TABLE
from tinyseq.tape import Leaf, Node, walk
from tinyseq.tensor import Tensor, as_tensor, recorded

__all__ = ["TURN", "Body", "Opened", "Plan", "Program", "Step", "Total", "differentiate", "lifted", "open_body", "program"]

FlatStep = Callable[..., tuple[Sequence[Any], Sequence[Any]]]

LINEAR = frozenset(("add", "sub", "neg", "reshape", "permute", "concatenate", "flip"))
VIEWS = frozenset(("reshape", "permute", "broadcast_to", "getitem"))
FUSABLE = ELEMENTWISE | {"concatenate", "positions"}
CHEAP = ARITHMETIC | {"concatenate", "div", "sqrt", "positions"}


def is_view(e: Equation) -> bool:
    """Whether the operation only says where an element is found; a gather by an index tensor reads and writes."""
    return e.primitive.name in VIEWS and len(e.inputs) == 1


@dataclass(frozen=True)
class Body:
    """The body of a scan and its gradient, in one graph.

    Attributes:
        joint: inputs are carry, x, the cotangents of the new carry and of y; outputs are the new carry, y, and the
            gradients of carry, x and what was closed over.
        carries, xs, ys: how many of each there are.
        closed: the Tensors that were closed over.
        watched: for which parts of the carry the squared gradient is handed out too, summed over the last axis.
    """

    joint: Graph
    carries: int
    xs: int
    ys: int
    closed: tuple[Tensor, ...]
    watched: tuple[int, ...] = ()

    @property
    def carry(self) -> tuple[Var, ...]:
        return self.joint.inputs[: self.carries]

    @property
    def x(self) -> tuple[Var, ...]:
        return self.joint.inputs[self.carries : self.carries + self.xs]

    @property
    def cotangents(self) -> tuple[Var, ...]:
        return self.joint.inputs[self.carries + self.xs :]  # none, if no gradient was asked for

    @property
    def new_carry(self) -> tuple[Operand, ...]:
        return self.joint.outputs[: self.carries]

    @property
    def y(self) -> tuple[Operand, ...]:
        return self.joint.outputs[self.carries : self.carries + self.ys]

    @property
    def gradients(self) -> tuple[Operand, ...]:
        return self.joint.outputs[self.carries + self.ys : len(self.joint.outputs) - len(self.watched)]

    @property
    def squares(self) -> tuple[Operand, ...]:
        return self.joint.outputs[len(self.joint.outputs) - len(self.watched) :]


TURN = {"axes": (-1, -2)}


class _Step(Trace):
    """A trace that takes a transposed tensor as what it is the transpose of, and transposes it inside.

    A weight's gradient then comes out as the weight lies in memory, and need not be copied.
    """

    def __init__(self) -> None:
        super().__init__()
        self.turned: dict[Any, Tensor] = {}

    def inside(self, x: Tensor) -> Tensor:
        node = x.node
        if (
            isinstance(x.data, Abstract)
            or not isinstance(node, Node)
            or node.primitive.name != "permute"
            or node.params != TURN
        ):
            return super().inside(x)
        key = (id(x.data), node)
        if key not in self.turned:
            (parent,) = node.parents
            *batch, rows, columns = x.shape
            inner = self.new((*batch, columns, rows), x.dtype, parent.name if isinstance(parent, Leaf) else None)
            self.closed[key] = (x, inner)
            self.turned[key] = self.apply(TABLE["permute"], (inner,), TURN)
        return self.turned[key]


@dataclass(frozen=True)
class Opened:
    """A traced body, not yet differentiated.

    Attributes:
        tracer: who traced.
        arguments, outputs: the traced carry and x; the traced new carry and y.
    """

    tracer: Trace
    arguments: list[Tensor]
    outputs: list[Tensor]

    @cached_property
    def closed(self) -> tuple[Tensor, ...]:
        """What was closed over; differentiation may close over more."""
        return tuple([outer for outer, _ in self.tracer.closed.values()])

    @cached_property
    def turned(self) -> tuple[bool, ...]:
        """Which of these the graph takes transposed."""
        known = self.tracer.turned if isinstance(self.tracer, _Step) else {}
        return tuple([key in known for key in self.tracer.closed][: len(self.closed)])

    @cached_property
    def traced(self) -> Traced:
        """The graph, and what was closed over; asked for before differentiation."""
        return graph_of(self.tracer, self.arguments, self.outputs)

    def key(self) -> Any:
        """A value that is equal for bodies with the same graph; it takes less time than the graph does."""
        return self.tracer.key(self.arguments, self.outputs)


def open_body(step: FlatStep, carry: Sequence[Any], xs: Sequence[Any]) -> Opened:
    """Trace a flat ``step(*carry, *x) -> (new carry, y)``.

    Args:
        step: the body, on flat sequences of Tensors.
        carry: shape and dtype of each part of the carry.
        xs: shape and dtype of each part of one step's input.
    """
    tracer = _Step()
    arguments = [tracer.new(x.shape, x.dtype) for x in (*carry, *xs)]
    tracer.follow()
    with mode.changed(recording=True, tracing=True):
        after, ys = step(*arguments)
        outputs = [tracer.inside(as_tensor(y)) for y in (*after, *ys)]
    tracer.ended = True
    return Opened(tracer, arguments, outputs)


def differentiate(opened: Opened, carries: int, wanted: Sequence[bool], watch: bool = False, one_pass: bool = True) -> Body:
    """A traced body and its gradient, in one graph.

    Args:
        opened: what ``open_body`` returned.
        carries: how many parts the carry has.
        wanted: for carry, x and what was closed over: whether its gradient is asked for.
        watch: hand out the squared gradient of the state that each step leaves.
        one_pass: whether elementwise work will be one pass over memory.
    """
    tracer, arguments, outputs = opened.tracer, opened.arguments, opened.outputs
    plain = opened.traced
    if not any(wanted):
        return Body(simplify(plain.graph, one_pass), carries, len(arguments) - carries, len(outputs) - carries, plain.closed)
    closed_before = [inner for _, inner in tracer.closed.values()]
    with mode.changed(recording=True, tracing=True):
        cotangents = [tracer.new(y.shape, y.dtype) for y in outputs]
        starts = [(y.node, g) for y, g in zip(outputs, cotangents, strict=True) if y.dtype.kind in "fV" and y.node is not None]
        places = [x.node for x in (*arguments, *closed_before) if x.node is not None]
        asked = {place for i, (place, w) in enumerate(zip(places, wanted, strict=True)) if w or i < carries}
        watched = tuple(i for i, y in enumerate(outputs[:carries]) if watch and y.dtype.kind in "fV" and y.node is not None)
        left: dict[int, Tensor] = {}  # the whole gradient of the state that a step leaves, as the walk passes it
        for i in watched:
            outputs[i].register_hook(partial(left.__setitem__, i))
        found = walk(recorded, starts, asked, retain=True)
        gradients = [found.get(place) if place in asked else None for place in places]
        for i in range(carries):  # the loop carries it on, so it must be a value
            if gradients[i] is None:
                x = arguments[i]
                gradients[i] = tracer.inside(Tensor(tracer.full(x.shape, 0, x.dtype)))
        squares = []
        for i in sorted(left):
            exact = left[i].astype("float64")  # the square of what is small in float32 would be zero
            squares.append((exact * exact).sum(-1) if exact.ndim else exact * exact)
    traced = graph_of(tracer, [*arguments, *cotangents], [*outputs, *gradients, *squares])
    inputs, ys = len(arguments) - carries, len(outputs) - carries
    return Body(simplify(traced.graph, one_pass), carries, inputs, ys, traced.closed, tuple(sorted(left)))


@dataclass(frozen=True)
class Total:
    """A value summed over all steps: the gradient of what was closed over.

    Attributes:
        var: the value at one step.
        kind: "stack": sum the stack; "product": ``x.T @ y`` over all rows of all steps at once; "batched": ``x @ y``, with
            time within the inner axis, for stacks of matrices; "scatter": one scatter of all steps; "fixed": the same at
            every step; "rows": the sum of all rows of all steps; "each": the sum over the steps, for each row.
        inputs: the operands of the product or the scatter, or what is summed.
        params: the metadata of the scatter.
    """

    var: Var
    kind: str
    inputs: tuple[Var, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a backend compiles: the equations of one step.

    Attributes:
        graph: inputs are the carry, then this step's slices of the stacks; ``closed`` are the values that stay the same;
            outputs are the new carry, then what is written to the output stacks.
        carries: how many parts the carry has.
        histories: which parts of the carry are kept for every step.
        before, after: so many of the first equations need no carry, and so many of the last ones are for no later step: a
            backend may run them for some steps at a time. None, unless the backend said that it fuses them.
        sums: what is added up over all rows and steps, likewise.
    """

    graph: Graph
    carries: int
    histories: tuple[int, ...]
    before: int = 0
    after: int = 0
    sums: tuple[Total, ...] = ()

    @property
    def carry(self) -> tuple[Var, ...]:
        return self.graph.inputs[: self.carries]

    @property
    def slices(self) -> tuple[Var, ...]:
        return self.graph.inputs[self.carries :]

    @property
    def new_carry(self) -> tuple[Operand, ...]:
        return self.graph.outputs[: self.carries]

    @property
    def written(self) -> tuple[Operand, ...]:
        return self.graph.outputs[self.carries :]


@dataclass(frozen=True)
class Plan:
    """One direction of a scan.

    Attributes:
        fixed: equations that depend on neither time nor carry; they run once.
        before: equations that run once for all steps, on stacks.
        step: the loop.
        after: equations that run once for all steps, on stacks.
        totals: what is summed over time in the end.
        finally_: what is then done with the sums, once.
        new_carry, written: the values that the step's outputs are (within the step they may have been computed otherwise).
        stacked: which values have a leading time axis in ``before`` and ``after``.
    """

    fixed: tuple[Equation, ...]
    before: tuple[Equation, ...]
    step: Step
    after: tuple[Equation, ...]
    totals: tuple[Total, ...]
    finally_: tuple[Equation, ...]
    new_carry: tuple[Operand, ...]
    written: tuple[Var, ...]
    stacked: frozenset[Var]

    def __str__(self) -> str:
        return self.text(Names())

    def text(self, names: Names) -> str:
        """The four parts, with names that they share."""

        def part(title: str, equations: Iterable[Equation]) -> list[str]:
            return [f"{title}:", *([f"  {names.line(e)}" for e in equations] or ["  (nothing)"])]

        step = self.step.graph.text(names).removeprefix("graph ")
        lines = [*part("once", self.fixed), *part("before", self.before), f"step {step}"]
        if self.step.before or self.step.after:
            lines.append(
                f"of it {self.step.before} equations before and {self.step.after} after the loop, some steps at a time"
            )
        lines += [
            f"summed in the loop: {names[total.var]} ({total.kind} of {', '.join(names[v] for v in total.inputs)})"
            for total in self.step.sums
        ]
        lines += part("after", self.after)
        for total in self.totals:
            inputs = ", ".join(names[v] for v in total.inputs or (total.var,))
            lines.append(f"sum over time: {names[total.var]} ({total.kind} of {inputs})")
        if self.finally_:
            lines += part("of the sums", self.finally_)
        return "\n".join(lines)


def _reachable(equations: Iterable[Equation], sources: Iterable[Var]) -> set[Var]:
    """The values that depend on a source, the sources included."""
    found = set(sources)
    for e in equations:
        if any(v in found for v in e.vars):
            found.add(e.output)
    return found


def _reaching(equations: Sequence[Equation], targets: Iterable[Operand]) -> set[Var]:
    """The values that a target depends on, the targets included."""
    found = {v for v in targets if isinstance(v, Var)}
    for e in reversed(equations):
        if e.output in found:
            found.update(e.vars)
    return found


def _plan(
    equations: Sequence[Equation],
    carry: Sequence[Var],
    new_carry: Sequence[Operand],
    stacks: Iterable[Var],
    closed: Iterable[Var],
    outputs: Iterable[Var],
    sums: Sequence[Var] = (),
    one_pass: bool = True,
) -> Plan:
    """Split straight-line equations by time.

    Args:
        equations: the program of one step.
        carry, new_carry: what comes in from the step before and what goes out to the next.
        stacks: values that differ from step to step and are given for all steps.
        closed: values that stay the same.
        outputs: values that are asked for at every step.
        sums: values whose sum over all steps is asked for.
        one_pass: whether elementwise work in the loop is one pass over memory; else each operation that need not be there is
            a call a step too many.
    """
    equations = _own_positions(equations)
    totals, once = _totals(equations, sums, _reachable(equations, (*carry, *stacks)))
    asked = {*outputs, *(v for total in totals for v in total.inputs or (total.var,))}
    needed = _reaching(equations, (*new_carry, *asked))
    equations = [e for e in equations if e.output in needed]
    timed = _reachable(equations, (*carry, *stacks))
    from_carry = _reachable(equations, carry)
    to_carry = _reaching(equations, new_carry)
    consumers: dict[Var, list[Equation]] = {}
    for e in equations:
        for v in e.vars:
            consumers.setdefault(v, []).append(e)

    fixed = [e for e in equations if e.output not in timed]
    inside = {e.output for e in equations if e.output in from_carry and e.output in to_carry}
    # What cannot run for all steps at once stays in the loop, and so does what it needs that depends on the carry.
    for e in equations:
        if e.output in timed and e.output not in inside and not can_lift(e):
            inside.add(e.output)
    for e in reversed(equations):
        if e.output in from_carry and any(c.output in inside for c in consumers.get(e.output, ())):
            inside.add(e.output)
    # Elementwise work that only the loop uses is fused into it, rather than written to memory and read again.
    for e in reversed(equations) if one_pass else ():
        users = consumers.get(e.output, ())
        if (
            e.output in timed
            and e.output not in inside
            and e.output not in from_carry
            and (e.primitive.name in FUSABLE or is_view(e))
            and e.output not in asked
            and users
            and all(c.output in inside for c in users)
        ):
            inside.add(e.output)
    # And elementwise work on what the loop has at hand is done there and then; so are the views that it looks through.
    made = {e.output: e for e in equations}

    def at_hand(v: Var) -> bool:
        if v in inside or v not in from_carry or v in carry:
            return True
        return v in made and is_view(made[v]) and all(map(at_hand, made[v].vars))

    def take(v: Var) -> None:
        if v in made and v in from_carry and v not in inside:
            inside.add(v)
            for w in made[v].vars:
                take(w)

    for e in equations if one_pass else ():
        if e.output in from_carry and e.primitive.name in FUSABLE and all(map(at_hand, e.vars)):
            take(e.output)

    before = [e for e in equations if e.output in timed and e.output not in inside and e.output not in from_carry]
    loop = [e for e in equations if e.output in inside]
    # A view that is asked for afterwards is taken afterwards, of what it views: it costs nothing there.
    later = {e.output for e in equations if e.output in timed and e.output not in inside and e.output in from_carry}
    for e in reversed(equations):
        used_later = e.output in asked or any(c.output in later for c in consumers.get(e.output, ()))
        if e.output in inside and is_view(e) and used_later:
            later.add(e.output)
    after = [e for e in equations if e.output in later]

    wanted_later = (asked | {v for e in after for v in e.vars}) - later
    histories = tuple(
        i
        for i, (old, new) in enumerate(zip(carry, new_carry, strict=True))
        if old in wanted_later or (isinstance(new, Var) and new in wanted_later and new in inside)
    )
    kept = {new_carry[i] for i in histories}
    written = [e.output for e in loop if e.output in wanted_later and e.output not in kept]
    used = {v for e in loop for v in e.vars} | {v for v in (*new_carry, *written) if isinstance(v, Var)}
    outer = [*stacks, *(e.output for e in before)]
    slices = tuple(v for v in outer if v in used)
    same = tuple(v for v in (*closed, *(e.output for e in fixed)) if v in used)
    graph = Graph((*carry, *slices), tuple(loop), (*new_carry, *written), same)
    merged = merge_products(graph)
    merged = narrow(merged) if one_pass else merged
    # Weights that were joined are joined once, not at every step.
    moved, rest = _hoist(merged)
    graph = Graph(merged.inputs, rest, merged.outputs, (*merged.closed, *(e.output for e in moved)))
    graph = Graph(graph.inputs, graph.equations, graph.outputs, _only_used(graph))
    return Plan(
        (*fixed, *moved),
        tuple(before),
        Step(graph.check(), len(carry), histories),
        tuple(after),
        totals,
        once,
        tuple(new_carry),
        tuple(written),
        frozenset(timed),
    )


def _own_positions(equations: Sequence[Equation]) -> list[Equation]:
    """With positions for each reader anew, on its side of the split: they cost nothing, and a stack of them tells nothing."""
    made = {e.output: e for e in equations if e.primitive.name == "positions"}
    result: list[Equation] = []
    for e in equations:
        own = {v: replace(made[v], output=Var(v.shape, v.dtype)) for v in e.vars if v in made}
        result += own.values()
        result.append(e.with_inputs([own[x].output if x in own else x for x in e.inputs]) if own else e)
    return result


def _totals(
    equations: Sequence[Equation], sums: Sequence[Var], timed: set[Var]
) -> tuple[tuple[Total, ...], tuple[Equation, ...]]:
    """How each sum over time is best taken, and what is then done once to the sums: a linear operation waits until then."""
    made = {e.output: e for e in equations}
    uses = Counter(v for e in equations for v in e.vars)
    uses.update(sums)
    totals: dict[Var, Total] = {}
    once: list[Equation] = []

    @cache
    def gains(var: Var) -> bool:
        """Whether there is a better way than to sum a stack."""
        e = made.get(var)
        if var not in timed or e is None:
            return var not in timed
        return _in_one_go(e, made, timed) is not None or (splits(e) and any(map(gains, e.vars)))

    def splits(e: Equation) -> bool:
        """Whether the operation waits for the sums; one stack is summed in less time than two."""
        linear = e.primitive.name in LINEAR and all(isinstance(x, Var) for x in e.inputs)
        return linear and (len(e.inputs) == 1 or any(map(gains, e.vars)))

    def total(var: Var) -> None:
        if var in totals or any(e.output is var for e in once):
            return
        e = made.get(var)
        if var not in timed:
            totals[var] = Total(var, "fixed")
        elif e is not None and (turned := _turned(e, made, timed, uses)):
            totals[var] = turned
        elif e is not None and splits(e):
            for x in e.vars:
                total(x)
            once.append(e)
        else:
            totals[var] = (e and _in_one_go(e, made, timed)) or Total(var, "stack")

    for var in sums:
        total(var)
    return tuple(totals.values()), tuple(once)


def _turned(e: Equation, made: dict[Var, Equation], timed: set[Var], uses: Counter[Var]) -> Total | None:
    """A transposed product that nobody else reads: ``(x.T @ y).T`` is ``y.T @ x``, which needs no copy to lie in one piece."""
    x = e.inputs[0]
    if e.primitive.name != "permute" or e.params["axes"] != (-1, -2) or not isinstance(x, Var) or uses[x] != 1 or x not in made:
        return None
    total = _in_one_go(made[x], made, timed)
    return Total(e.output, "product", total.inputs[::-1]) if total is not None and total.kind == "product" else None


def _in_one_go(e: Equation, made: dict[Var, Equation], timed: set[Var]) -> Total | None:
    """A sum over time of products as one product, or of scatters as one scatter."""
    if e.primitive.name == "matmul":
        left, right = e.inputs
        turned = made.get(left) if isinstance(left, Var) else None
        if turned is not None and turned.primitive.name == "permute" and turned.params["axes"] == (-1, -2):
            rows = turned.inputs[0]
            both = isinstance(rows, Var) and isinstance(right, Var) and {rows, right} <= timed
            if both and len(rows.shape) == len(right.shape) == 2:  # type: ignore[union-attr]
                return Total(e.output, "product", (rows, right))  # type: ignore[arg-type]
        stacks = isinstance(left, Var) and isinstance(right, Var) and {left, right} <= timed and len(left.shape) > 2
        if stacks and left.shape[:-2] == right.shape[:-2]:  # type: ignore[union-attr]
            return Total(e.output, "batched", (left, right))  # type: ignore[arg-type]
    keyed = len(e.inputs) > 1 and all(entry is INDEX for entry in e.params.get("key", ()))
    if e.primitive.name == "scatter_add" and keyed and all(v in timed for v in e.inputs):
        return Total(e.output, "scatter", tuple(e.vars), e.params)
    return None


def _hoist(graph: Graph) -> tuple[list[Equation], tuple[Equation, ...]]:
    """The equations that depend only on closed values, and the others."""
    known = set(graph.closed)
    moved, rest = [], []
    for e in graph.equations:
        if all(v in known for v in e.vars):
            known.add(e.output)
            moved.append(e)
        else:
            rest.append(e)
    return moved, tuple(rest)


def _only_used(graph: Graph) -> tuple[Var, ...]:
    used = {v for e in graph.equations for v in e.vars} | {v for v in graph.outputs if isinstance(v, Var)}
    return tuple(v for v in graph.closed if v in used)


def kept_of(
    body: Body, backward: Sequence[Equation], forward: Sequence[Equation], one_pass: bool = True
) -> tuple[list[Var], list[Equation]]:
    """What the backward pass needs of the forward one: the values to keep, and the equations to run again.

    Where elementwise work is not one pass over memory, views alone are taken again, and what the outputs do not need is left
    to the gradient. Otherwise arithmetic is run again, for it takes less time than to write a value and read it, and so is
    any elementwise work whose inputs are at hand anyway; the results of products, reductions and costly functions are kept.
    """
    made = {e.output: e for e in forward}
    own = _reaching(forward, (*body.new_carry, *body.y))
    carried = {v for v in body.new_carry if isinstance(v, Var)}
    at_hand: set[Var] = {*body.carry, *body.x, *body.joint.closed, *carried}
    timed = _reachable(forward, (*body.carry, *body.x))  # the rest runs once, so it may as well run again
    kept: list[Var] = []
    again: set[Var] = set()

    def need(v: Var) -> None:
        if v in at_hand or v in again:
            return
        e = made[v]
        name = e.primitive.name
        cheap = v not in timed or is_view(e) or (name in CHEAP if one_pass else v not in own or name == "positions")
        if cheap or (one_pass and name in ELEMENTWISE and all(w in at_hand for w in e.vars)):
            again.add(v)
            for w in e.vars:
                need(w)
        else:
            at_hand.add(v)
            kept.append(v)

    # Oldest first, so that what costly functions gave is kept before what follows from it is looked at.
    asked = {v for e in backward for v in e.vars if v in made}
    for e in forward:
        if e.output in asked:
            need(e.output)
    return kept, [e for e in forward if e.output in again]


@dataclass(frozen=True)
class Program:
    """A scan's body, ready to run both ways.

    Attributes:
        forward, backward: the plans.
    """

    body: Body
    forward: Plan
    backward: Plan

    def __str__(self) -> str:
        names = Names()
        return f"FORWARD\n{self.forward.text(names)}\n\nBACKWARD\n{self.backward.text(names)}"


def program(body: Body, one_pass: bool = True) -> Program:
    """Both plans of a body, with what the backward pass needs kept.

    Args:
        body: a step and its gradient.
        one_pass: whether elementwise work will be one pass over memory.
    """
    carried = (*body.new_carry, *body.gradients[: body.carries])
    body = replace(body, joint=split_columns(body.joint, carried).check())
    equations = body.joint.equations
    from_cotangents = _reachable(equations, body.cotangents)
    forward = [e for e in equations if e.output not in from_cotangents]
    backward = [e for e in equations if e.output in from_cotangents]
    kept, again = kept_of(body, backward, forward, one_pass)
    timed = _reachable(forward, (*body.carry, *body.x))
    read = {v for e in (*backward, *again) for v in e.vars}
    histories = [v for v in (*body.carry, *body.new_carry) if isinstance(v, Var) and v in read]
    outputs = [v for v in (*body.y, *kept, *histories) if isinstance(v, Var)]
    repeated = {e.output for e in again}
    given = [e.output for e in forward if e.output not in repeated]
    inputs, weights = body.gradients[body.carries : body.carries + body.xs], body.gradients[body.carries + body.xs :]
    return Program(
        body,
        _plan(forward, body.carry, body.new_carry, body.x, body.joint.closed, outputs, (), one_pass),
        _plan(
            [*again, *backward],
            body.cotangents[: body.carries],
            body.gradients[: body.carries],
            [*body.carry, *body.x, *body.cotangents[body.carries :], *(v for v in given if v in timed)],
            body.joint.closed,
            [v for v in (*inputs, *body.squares) if isinstance(v, Var)],
            [v for v in weights if isinstance(v, Var)],
            one_pass,
        ),
    )


# --- running an equation for all steps at once ------------------------------------------------------------------------

BY_AXIS = frozenset(
    (
        "sum", "max", "min", "all", "any", "argmax", "argmin", "argsort", "positions", "cumsum", "flip", "permute",
        "concatenate", "pad",
    )
)  # fmt: skip


def can_lift(e: Equation) -> bool:
    """Whether ``lifted`` can run the equation."""
    name = e.primitive.name
    if name in ELEMENTWISE or name in BY_AXIS or name in ("reshape", "broadcast_to"):
        return True
    if name == "matmul":
        return True
    if name in ("getitem", "scatter_add"):
        key = e.params["key"]
        if len(e.inputs) == 1:
            return True
        # Index arrays first and nothing between them, so that the time axis can stand in front of all.
        return all(entry is INDEX for entry in key)
    return False


def lifted(ops: Any, e: Equation, operands: Sequence[Any], times: Sequence[bool], steps: int) -> Any:
    """Run an equation for all steps at once.

    Args:
        ops: a backend's operations.
        e: the equation, for one step.
        operands: its inputs; those with a time axis have it in front.
        times: which of them have.
        steps: T.
    """
    name, params = e.primitive.name, e.params
    run = getattr(ops, name)
    if name in ELEMENTWISE or name in ("broadcast_to", "matmul"):
        rank = len(e.output.shape)
        aligned = [
            _aligned(ops, x, v, rank, steps) if timed else x for x, v, timed in zip(operands, e.inputs, times, strict=True)
        ]
        if name == "broadcast_to":
            return run(aligned[0], shape=(steps, *params["shape"]))
        if name == "matmul" and times == (True, False) and len(aligned[0].shape) == 3 and len(aligned[1].shape) == 2:
            t, rows, inner = aligned[0].shape
            product = run(ops.reshape(aligned[0], shape=(t * rows, inner)), aligned[1])
            return ops.reshape(product, shape=(t, rows, product.shape[-1]))
        return run(*aligned, **params)
    if name == "reshape":
        return run(operands[0], shape=(steps, *params["shape"]))
    if name == "concatenate":
        shaped = [
            x if timed else ops.broadcast_to(x, shape=(steps, *x.shape)) for x, timed in zip(operands, times, strict=True)
        ]
        return run(*shaped, **params)
    if name in ("getitem", "scatter_add"):
        return _lifted_index(ops, e, operands, times, steps)
    return run(*operands, **params)


def _aligned(ops: Any, x: Any, v: Operand, rank: int, steps: int) -> Any:
    """A stack with ones between the time axis and a step's own axes, so that it broadcasts as one step would."""
    assert isinstance(v, Var)
    missing = rank - len(v.shape)
    return x if missing <= 0 else ops.reshape(x, shape=(steps, *(1,) * missing, *x.shape[1:]))


def _lifted_index(ops: Any, e: Equation, operands: Sequence[Any], times: Sequence[bool], steps: int) -> Any:
    key, name = e.params["key"], e.primitive.name
    x, indices = operands[0], list(operands[1:])
    run = getattr(ops, name)
    shape = {"shape": (steps, *e.params["shape"])} if name == "scatter_add" else {}
    if not indices:
        return run(x, key=key if key and key[0] is Ellipsis else (slice(None), *key), **shape)
    if name == "getitem" and not times[0]:
        return run(x, *indices, key=key)  # a table: the indices bring the time axis
    if name == "scatter_add" and not times[0]:
        x = ops.broadcast_to(x, shape=(steps, *x.shape))
    # Every step has its own array: one more index says which.
    rank = max(len(v.shape) for v in e.inputs[1:] if isinstance(v, Var))
    indices = [
        _aligned(ops, i, v, rank, steps) if timed else i for i, v, timed in zip(indices, e.inputs[1:], times[1:], strict=True)
    ]
    one_step = (*(1,) * (rank - len(indices[0].shape)), *indices[0].shape)
    like = indices[0] if times[1] else ops.broadcast_to(indices[0], shape=(steps, *one_step))
    which = ops.positions(like, axis=-rank - 1)
    return run(x, which, *indices, key=(INDEX, *key), **shape)
