"""The compiled scan: traced, planned, compiled by the backend, and one node on the tape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from tinyseq import mode
from tinyseq.abstract import Abstract
from tinyseq.backend import Backend
from tinyseq.compiler.checkpoint import Checkpointed
from tinyseq.compiler.loop import TURN, FlatStep, Opened, differentiate, open_body, program
from tinyseq.compiler.run import Runner
from tinyseq.flow import Entry, watch
from tinyseq.functions import stack
from tinyseq.graph import Var
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tape import Node, walk
from tinyseq.tensor import Tensor, apply, as_tensor, link, outputs_of, recorded

__all__ = ["compiled_scan"]

Unrolled = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]

_runners: OrderedDict[Any, Runner] = OrderedDict()
CACHED = 256


class _Slice:
    """The shape and dtype of one step's slice of a stack."""

    def __init__(self, stack: Tensor) -> None:
        self.shape = stack.shape[1:]
        self.dtype = stack.dtype


def compiled_scan(
    step: FlatStep,
    carry: Sequence[Tensor],
    xs: Sequence[Tensor],
    steps: int,
    reverse: bool,
    unrolled: Unrolled,
    every: int | None = None,
    flow: Entry | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a flat ``step(*carry, *x) -> (new carry, y)`` over T steps as a compiled loop.

    Args:
        step: the body, on flat sequences of Tensors.
        carry: the state before the first step.
        xs: the inputs, (T, ...).
        steps: T.
        reverse: run from the last step to the first.
        unrolled: the same scan on the tape, for a step that reads what is traced outside it.
        every: keep the carry every so many steps, and run the steps between again for the gradient.
        flow: where the norms of the carry's gradients go.
    """
    backend = (*carry, *xs)[0].backend
    opened = open_body(step, carry, [_Slice(x) for x in xs])
    outside, turned = opened.closed, opened.turned
    if traced(outside):  # a scan inside a step that reads what is traced there
        return unrolled(list(carry), list(xs))
    inputs = (*carry, *xs, *outside)
    recording = mode.current().recording
    wanted = tuple(recording and x.node is not None for x in inputs)
    key = opened.key()
    full = _runner(backend, opened, key, len(carry), wanted, watch=flow is not None and any(wanted))
    runner: Runner | Checkpointed = full
    if every is not None and every < steps and any(wanted):
        light = _runner(backend, opened, key, len(carry), (False,) * len(wanted))
        runner = Checkpointed(light, full, every)
    # Differentiation may have met constants of its own; they follow what the body closed over.
    constants = runner.program.body.closed[len(outside) :]
    as_they_lie = [backend.ops.permute(x.data, **TURN) if t else x.data for x, t in zip(outside, turned, strict=True)]
    closed = [*as_they_lie, *(x.data for x in constants)]
    last, ys, kept = runner.forward([x.data for x in carry], [x.data for x in xs], closed, steps, reverse)
    if not any(wanted):
        return [Tensor(a) for a in last], [Tensor(a) for a in ys]
    params = {
        "runner": runner, "kept": kept, "steps": steps, "reverse": reverse, "opened": opened, "carries": len(carry),
        "flow": flow,
    }  # fmt: skip
    arrays = tuple(x.data for x in inputs)
    node = Node(_SCAN, tuple(x.node for x in inputs), arrays, None, params, (), None, mode.current().scope)
    outputs = outputs_of(node, [*last, *ys])
    return outputs[: len(carry)], outputs[len(carry) :]


def _runner(
    backend: Backend, opened: Opened, graph_key: Any, carries: int, wanted: tuple[bool, ...], watch: bool = False
) -> Runner:
    """The program of a traced step on a backend: made once for each graph."""
    key = (id(backend), graph_key, wanted, watch)
    runner = _runners.get(key)
    if runner is None:
        one_pass = backend.recomputes
        body = differentiate(opened, carries, wanted, watch, one_pass)
        runner = _runners[key] = Runner(program(body, one_pass), backend)
        if len(_runners) > CACHED:
            _runners.popitem(last=False)
    else:
        _runners.move_to_end(key)
    return runner


def _scan_vjp(F: Any, g: list[Any], inputs: tuple[Any, ...], node: Any) -> list[Any]:
    params = node.params
    carries, runner = params["carries"], params["runner"]
    if F is recorded:
        return _through_unrolled(params, inputs, g)
    body, backend = runner.program.body, runner.backend
    shapes = [(v.shape, v.dtype) for v in body.new_carry] + [((params["steps"], *v.shape), v.dtype) for v in body.y]
    filled = [
        backend.full(shape, 0, dtype) if part is None else backend.asarray(part)
        for part, (shape, dtype) in zip(g, shapes, strict=True)
    ]
    squares: list[Any] = []
    gradients = runner.backward(
        params["kept"], filled[:carries], filled[carries:], params["steps"], params["reverse"], squares.extend
    )
    for part, square in zip(body.watched, squares, strict=True):
        params["flow"].put(part, backend.to_numpy(square))
    for i, turned in enumerate(params["opened"].turned, len(node.parents) - len(params["opened"].turned)):
        if turned and gradients[i] is not None:
            gradients[i] = backend.ops.permute(gradients[i], **TURN)
    return gradients[: len(node.parents)]


def _through_unrolled(params: dict[str, Any], inputs: Sequence[Any], g: list[Any]) -> list[Any]:
    """The VJP as a recorded computation on the tape, so that it can be differentiated again.

    It runs the traced step, not the function that was traced: that would make anew what it makes of closed-over tensors
    alone (a weight's transpose), whose place on the tape would then not be the one that the scan has as its parent.
    """
    carries, count = params["carries"], params["carries"] + params["runner"].program.body.xs
    given = [link(x) if x.node is not None else x for x in inputs]
    last, ys = _on_the_tape(params, given[:carries], given[carries:count], given[count:])
    starts = [(y.node, part) for y, part in zip([*last, *ys], g, strict=True) if part is not None and y.node is not None]
    found = walk(recorded, starts, {x.node for x in given if x.node is not None}, retain=True)
    return [None if x.node is None else found.get(x.node) for x in given]


def _on_the_tape(
    params: dict[str, Any], carry: list[Tensor], stacks: list[Tensor], closed: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The traced step, run over time and recorded."""
    opened, steps, reverse = params["opened"], params["steps"], params["reverse"]
    graph = opened.traced.graph
    closed = [apply(TABLE["permute"], (x,), TURN) if turned else x for x, turned in zip(closed, opened.turned, strict=True)]
    ys: list[list[Tensor]] = []
    squares: dict[int, Any] = {}
    for t in reversed(range(steps)) if reverse else range(steps):
        env: dict[Any, Any] = dict(zip(graph.inputs, (*carry, *(x[t] for x in stacks)), strict=True))
        env.update(zip(graph.closed, closed, strict=True))
        for e in graph.equations:
            env[e.output] = apply(e.primitive, tuple(env[x] if isinstance(x, Var) else x for x in e.inputs), e.params)
        outputs = [env[x] if isinstance(x, Var) else as_tensor(x) for x in graph.outputs]
        carry = outputs[: len(carry)]
        ys.append(outputs[len(carry) :])
        if params["flow"] is not None:
            watch(params["flow"], t, steps, carry, squares)
    if reverse:
        ys.reverse()
    return carry, [stack(list(column)) for column in zip(*ys, strict=True)]


_SCAN = Primitive("scan", lambda *inputs, **params: None, (), _scan_vjp)


def traced(tensors: Sequence[Tensor]) -> bool:
    """Whether any of the tensors is being traced: then a scan within is unrolled into the trace."""
    return any(isinstance(x.data, Abstract) for x in tensors)
