"""How a step is cut into blocks of threads, and which of the two drivers runs it.

streamed     a kernel for each section of each step; a block reads the weights of its units again in every step
persistent   one kernel for all steps; a block keeps the weights of its units in shared memory, and blocks that share
             rows wait for each other between two sections. It runs only if all its blocks run at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyseq_cupy.loop.plan import Plan, Section

__all__ = ["Device", "Tile", "choose", "persistent_tile", "shared_bytes", "streamed_tile"]

THREADS = 256
ROWS_A_THREAD = 8  # sums that a thread keeps in registers, for each piece
ALIGNMENT = 16


@dataclass(frozen=True)
class Device:
    """What the choice of tiles depends on.

    Attributes:
        processors: streaming multiprocessors.
        shared: bytes of shared memory that a block may have.
    """

    processors: int
    shared: int


@dataclass(frozen=True)
class Tile:
    """The share of a block of threads.

    Attributes:
        units: columns of a piece.
        rows: sequences.
        row_groups: how many threads share the rows of one unit.
        splits: how many threads share the inner axis of a product.
        depth: the part of the inner axis that is in shared memory at a time; a multiple of 4.
        threads: in a block.
        stationary: whether the weights stay in shared memory.
    """

    units: int
    rows: int
    row_groups: int
    splits: int
    depth: int
    threads: int = THREADS
    stationary: bool = False

    @property
    def defines(self) -> dict[str, int]:
        """The numbers that the source leaves open."""
        return {
            "TS_UNITS": self.units,
            "TS_ROWS": self.rows,
            "TS_ROW_GROUPS": self.row_groups,
            "TS_SPLITS": self.splits,
            "TS_DEPTH": self.depth,
            "TS_THREADS": self.threads,
            "TS_STATIONARY": int(self.stationary),
        }

    def grid(self, plan: Plan, batch: int) -> tuple[int, int]:
        """Blocks along the units and along the batch."""
        return -(-plan.widest // self.units), -(-batch // self.rows)


def _bytes(count: int, dtype: np.dtype[Any]) -> int:
    return -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _section_parts(plan: Plan, section: Section, tile: Tile) -> Iterator[int]:
    """The parts of shared memory that a section has, in the order of the source."""
    slots, dtype = plan.terms
    yield _bytes(slots * tile.rows * tile.units, dtype)
    if section.products:
        yield max(_bytes(tile.rows * (tile.depth + 4), p.out.dtype) for p in section.products)
        if not tile.stationary:
            yield max(_bytes(tile.depth * p.pieces * tile.units, p.out.dtype) for p in section.products)
    for p in section.products:
        yield _bytes(tile.splits * tile.rows * p.pieces * tile.units, p.out.dtype)
    for v in section.totals:
        yield _bytes(tile.rows, v.dtype)


def shared_bytes(plan: Plan, tile: Tile) -> int:
    """Bytes of shared memory of a block."""
    weights = sum(_bytes(p.padded * p.pieces * tile.units, p.out.dtype) for p in plan.products) if tile.stationary else 0
    return weights + max(sum(_section_parts(plan, section, tile)) for section in plan.sections)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _tile(units: int, rows: int, depth: int, stationary: bool) -> Tile:
    """Row groups and splits that give every thread of a block a share of the product."""
    lanes = THREADS // units
    groups = max(1, min(lanes, rows // 4), rows // ROWS_A_THREAD)
    return Tile(units, rows, groups, max(1, lanes // groups), max(4, depth), stationary=stationary)


def _cost(plan: Plan, tile: Tile, batch: int, device: Device) -> float:
    """Cycles of a step's products, roughly: multiply-adds, and what is read from the second-level cache; never measured."""
    columns = sum(p.inner * p.pieces for p in plan.products) * tile.units
    inner = sum(p.inner for p in plan.products)
    blocks = tile.grid(plan, batch)
    waves = -(-blocks[0] * blocks[1] // device.processors)
    return waves * (columns * tile.rows / 64 + (inner * tile.rows + (0 if tile.stationary else columns)) / 16)


def _rows(batch: int) -> list[int]:
    """How many sequences a block may take: as many as there are, half of them, a quarter ..."""
    most = min(ROWS_A_THREAD * 8, _power_of_two(batch))
    return [most >> i for i in range(most.bit_length())]


def streamed_tile(plan: Plan, batch: int, device: Device) -> Tile | None:
    """The tile with the least work a block; None if none fits."""
    tiles = [_tile(units, rows, 32, stationary=False) for units in (32, 16, 8) for rows in _rows(batch)]
    fitting = [tile for tile in tiles if shared_bytes(plan, tile) <= device.shared]
    return min(fitting, key=lambda tile: _cost(plan, tile, batch, device), default=None)


def persistent_tile(plan: Plan, batch: int, device: Device) -> Tile | None:
    """The tile with the least work a block among those whose blocks all run at once; None if the weights do not fit."""
    fitting = []
    inner = max((p.inner for p in plan.products), default=1)
    for units in (1, 2, 4, 8, 16, 32):
        for rows in _rows(batch):
            depths = [d for d in (_power_of_two(inner) >> i for i in range(8)) if d >= min(16, inner)]
            tiles = [_tile(units, rows, depth, stationary=True) for depth in depths]
            tile = next((tile for tile in tiles if shared_bytes(plan, tile) <= device.shared), None)
            if tile is not None and math.prod(tile.grid(plan, batch)) <= device.processors:
                fitting.append(tile)
    return min(fitting, key=lambda tile: _cost(plan, tile, batch, device), default=None)


def choose(plan: Plan, batch: int, device: Device) -> Tile | None:
    """Persistent where the weights fit, else streamed; None if not even that fits."""
    return persistent_tile(plan, batch, device) or streamed_tile(plan, batch, device)
