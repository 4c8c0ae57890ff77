"""A planned step on a device: its arrays, the table of their addresses, and the kernels in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tinyseq.compiler import debug
from tinyseq.graph import Var
from tinyseq_cupy.loop.plan import Array as Slot
from tinyseq_cupy.loop.plan import Plan, Unsupported, plan_step
from tinyseq_cupy.loop.source import HEADER, kernels, source
from tinyseq_cupy.loop.tiles import Device, Tile, choose, shared_bytes

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step

__all__ = ["Loop", "Machine", "Program", "compile_loop"]

Array = Any
LINE = 32  # counters of blocks that wait for each other lie so many words apart, each in a line of the cache of its own


class Program(Protocol):
    """Compiled source."""

    def persistent(self, table: Sequence[int], grid: tuple[int, int], shared: int) -> None:
        """Run ``ts_loop``; all its blocks run at once."""

    def streamed(self, table: Sequence[int], grid: tuple[int, int], shared: int, before: bool, each: int, steps: int) -> None:
        """Run ``ts_before`` if it is there, then ``ts_kernel0 ...`` for every step."""

    def plain(self, name: str, table: Sequence[int], grid: tuple[int, int], shared: int) -> None:
        """Run a kernel once."""


class Machine(Protocol):
    """Where kernels run."""

    limits: Device

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array that holds anything."""

    def zeros(self, count: int) -> Array:
        """Counters, 32 bits each."""

    def contiguous(self, array: Array) -> Array:
        """The array in C order."""

    def address(self, array: Array) -> int:
        """Where its first element is."""

    def compile(self, text: str, defines: dict[str, int]) -> Program:
        """Compile source, or find it compiled."""


def compile_loop(step: Step, machine: Machine, tile: Tile | None = None, tf32: bool = False) -> Loop:
    """The step as a loop on a device's arrays.

    Args:
        step: what to compile.
        machine: where it is to run.
        tile: the share of a block; chosen by the device if None.
        tf32: whether products of float32 may be rounded to TF32.

    Raises:
        Unsupported: there is no code for an operation in it, a block's share does not fit into shared memory, or something is
            added up over all steps.
    """
    if step.sums:
        raise Unsupported("sums over all steps")
    return Loop(plan_step(step), machine, tile, tf32)


class Loop:
    """``loop(carry, stacks, closed, steps, reverse)`` -> last carry, histories (T + 1, ...), written (T, ...), no sums."""

    def __init__(self, plan: Plan, machine: Machine, tile: Tile | None = None, tf32: bool = False) -> None:
        self.plan, self.machine = plan, machine
        self.batch = plan.step.carry[0].shape[0]
        chosen = tile or choose(plan, self.batch, machine.limits, tf32)
        if chosen is None or shared_bytes(plan, chosen) > machine.limits.shared:
            raise Unsupported(f"{plan.widest} units in the {machine.limits.shared} bytes of shared memory of a block")
        self.tile = chosen
        self.grid, self.shared = chosen.grid(plan, self.batch), shared_bytes(plan, chosen)
        each, before = kernels(plan)
        self.each, self.before = len(each), bool(before)
        self.text = source(plan)
        debug.show("source", f"CUDA C++, {self.tile}", self.text)
        self.program = machine.compile(self.text, self.tile.defines)

    def __call__(
        self, carry: Sequence[Array], stacks: Sequence[Array], closed: Sequence[Array], steps: int, reverse: bool
    ) -> tuple[list[Array], list[Array], list[Array], list[Array]]:
        plan, machine, step, batch = self.plan, self.machine, self.plan.step, self.batch
        stacks, closed = ([machine.contiguous(a) for a in arrays] for arrays in (stacks, closed))
        given = {"stack": stacks, "closed": closed}
        arrays: dict[str, Array] = {}
        for slot in plan.arrays:
            if slot.kind in given:
                arrays[slot.name] = given[slot.kind][slot.number]
            else:
                arrays[slot.name] = machine.empty(self._shape(slot, steps), slot.dtype)
        carries = [arrays[f"{'history' if i in step.histories else 'carry'}{i}"] for i in range(step.carries)]
        for i, (array, start) in enumerate(zip(carries, carry, strict=True)):
            array[steps if reverse and i in step.histories else 0] = start
        if steps and batch:
            self._run(steps, reverse, arrays)
        last = [array[(0 if reverse else steps) if i in step.histories else steps & 1] for i, array in enumerate(carries)]
        return last, [carries[i] for i in step.histories], [arrays[f"written{i}"] for i in range(len(step.written))], []

    def _shape(self, slot: Slot, steps: int) -> tuple[int, ...]:
        step, batch = self.plan.step, self.batch
        match slot.kind:
            case "carry":
                return (2, *step.carry[slot.number].shape)
            case "history":
                return (steps + 1, *step.carry[slot.number].shape)
            case "written":
                value = step.written[slot.number]
                assert isinstance(value, Var)
                return (steps, *value.shape)
            case "partial":
                return (2, -(-slot.width // self.tile.units), batch)
        return (slot.copies, batch, slot.width)

    def _run(self, steps: int, reverse: bool, arrays: dict[str, Array]) -> None:
        machine = self.machine
        arrivals = machine.zeros(self.grid[1] * LINE) if self.tile.stationary else None
        header = {
            "steps": steps, "batch": self.batch, "reverse": int(reverse), "first_step": 0,
            "arrivals": 0 if arrivals is None else machine.address(arrivals),
        }  # fmt: skip
        table = [*(header[name] for name in HEADER), *(machine.address(arrays[slot.name]) for slot in self.plan.arrays)]
        if self.tile.stationary:
            self.program.persistent(table, self.grid, self.shared)
        else:
            self.program.streamed(table, self.grid, self.shared, self.before, self.each, steps)
