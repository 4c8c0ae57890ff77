"""A step's loop, operation by operation, on any backend: slow, and the plainest statement of what a loop does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tinyseq.compiler.loop import Step, Total
from tinyseq.graph import Operand, Var

if TYPE_CHECKING:
    from tinyseq.backend import Backend

__all__ = ["interpreted"]

Array = Any


def interpreted(step: Step, backend: Backend) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
    """``loop(carry, stacks, closed, steps, reverse)``, as :meth:`Backend.compile_loop` describes it."""
    ops = backend.ops

    def stacked(arrays: Sequence[Array], reverse: bool) -> Array:
        rows = [ops.reshape(a, shape=(1, *a.shape)) for a in (arrays[::-1] if reverse else arrays)]
        return ops.concatenate(*rows, axis=-len(rows[0].shape), sizes=(1,) * len(rows))

    def summed(total: Total, inputs: Sequence[Array]) -> Array:
        """What one step adds."""
        if total.kind == "product":
            return ops.matmul(ops.permute(inputs[0], axes=(-1, -2)), inputs[1])
        if total.kind == "each":
            return inputs[0]
        return ops.reshape(ops.sum(inputs[0], axis=(-2,), keepdims=False), shape=total.var.shape)

    def loop(
        carry: Sequence[Array], stacks: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        states = [list(carry)]
        written: list[list[Array]] = []
        sums: list[Array] = []
        for t in range(steps - 1, -1, -1) if reverse else range(steps):
            slices = [ops.getitem(stack, key=(t,) + (slice(None),) * (len(stack.shape) - 1)) for stack in stacks]
            env: dict[Var, Array] = dict(zip(step.graph.inputs, (*states[-1], *slices), strict=True))
            env.update(zip(step.graph.closed, closed, strict=True))

            def value(x: Operand, env: dict[Var, Array] = env) -> Any:
                return env[x] if isinstance(x, Var) else x

            for e in step.graph.equations:
                output = backend.table[e.primitive.name](*map(value, e.inputs), **e.params)
                env[e.output] = output if type(output) is backend.array_type else backend.asarray(output)
            states.append([value(x) for x in step.new_carry])
            written.append([value(x) for x in step.written])
            grown = [summed(total, [env[v] for v in total.inputs]) for total in step.sums]
            sums = [ops.add(old, new) for old, new in zip(sums, grown, strict=True)] if sums else grown
        histories = [stacked([state[i] for state in states], reverse) for i in step.histories]
        return states[-1], histories, [stacked(column, reverse) for column in map(list, zip(*written, strict=True))], sums

    return loop
