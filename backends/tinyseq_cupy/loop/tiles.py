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

from tinyseq_cupy.loop.plan import Plan, Product, Section
from tinyseq_cupy.loop.scalars import is_half, register_dtype

__all__ = ["Device", "Tile", "choose", "persistent_tile", "shared_bytes", "streamed_tile"]

THREADS = 256
ROWS_A_THREAD = 8  # sums that a thread keeps in registers, for each piece
ALIGNMENT = 16
WARP = 32
MMA_ROWS, MMA_COLUMNS, MMA_DEPTH = 16, 8, 16  # what tensor cores take at a time, and the inner axis in whole such parts
MMA_SPEED = 8  # times that of sums of numbers; a guess


@dataclass(frozen=True)
class Device:
    """What the choice of tiles depends on.

    Attributes:
        processors: streaming multiprocessors.
        shared: bytes of shared memory that a block may have.
        tensor_cores: whether they take float16, bfloat16 and TF32.
    """

    processors: int
    shared: int
    tensor_cores: bool = True


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
        mma: whether products of float16 and bfloat16 run on tensor cores.
        tf32: whether those of float32 do as well, rounded to TF32.
    """

    units: int
    rows: int
    row_groups: int
    splits: int
    depth: int
    threads: int = THREADS
    stationary: bool = False
    mma: bool = False
    tf32: bool = False

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
            "TS_MMA": int(self.mma),
            "TS_TF32": int(self.tf32),
        }

    def takes(self, dtype: np.dtype[Any]) -> bool:
        """Whether products of this dtype run on tensor cores."""
        return self.mma and (is_half(dtype) or (self.tf32 and dtype == np.float32))

    def grid(self, plan: Plan, batch: int) -> tuple[int, int]:
        """Blocks along the units and along the batch."""
        return -(-plan.widest // self.units), -(-batch // self.rows)


def _bytes(count: int, dtype: np.dtype[Any]) -> int:
    return -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def _up(count: int, whole: int) -> int:
    return -(-count // whole) * whole


def _columns(p: Product, tile: Tile) -> int:
    return _up(p.pieces * tile.units, MMA_COLUMNS if tile.takes(p.out.dtype) else 1)


def _weights(p: Product, tile: Tile) -> int:
    depth = _up(p.inner, MMA_DEPTH if tile.takes(p.out.dtype) else 4)
    return _bytes(depth * _columns(p, tile), p.out.dtype)


def _section_parts(plan: Plan, section: Section, tile: Tile) -> Iterator[int]:
    """The parts of shared memory that a section has, in the order of the source."""
    slots, dtype = plan.terms
    yield _bytes(slots * tile.rows * tile.units, dtype)
    if section.products:
        yield max(_bytes(tile.rows * (tile.depth + 4), p.out.dtype) for p in section.products)
        if not tile.stationary:
            yield max(_bytes(tile.depth * _columns(p, tile), p.out.dtype) for p in section.products)
    for p in section.products:
        yield _bytes(tile.splits * tile.rows * p.pieces * tile.units, register_dtype(p.out.dtype))
    for v in section.totals:
        yield _bytes(tile.rows, register_dtype(v.dtype))


def shared_bytes(plan: Plan, tile: Tile) -> int:
    """Bytes of shared memory of a block."""
    weights = sum(_weights(p, tile) for p in plan.products) if tile.stationary else 0
    return weights + max(sum(_section_parts(plan, section, tile)) for section in plan.sections)


def _power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _tile(units: int, rows: int, depth: int, stationary: bool, kinds: _Kinds) -> Tile:
    """Row groups and splits that give every thread of a block a share of the product."""
    lanes = THREADS // units
    groups = max(1, min(lanes, rows // 4), rows // ROWS_A_THREAD)
    splits = max(1, lanes // groups)
    if kinds.mma:  # the inner axis in at most as many parts as there are warps
        splits, depth = min(splits, THREADS // WARP), max(depth, MMA_DEPTH)
    return Tile(units, rows, groups, splits, max(4, depth), stationary=stationary, mma=kinds.mma, tf32=kinds.tf32)


@dataclass(frozen=True)
class _Kinds:
    """Which of a plan's products run on tensor cores."""

    mma: bool
    tf32: bool


def _kinds(plan: Plan, device: Device, tf32: bool) -> _Kinds:
    dtypes = [p.out.dtype for p in plan.products]
    tf32 = tf32 and device.tensor_cores and any(dtype == np.float32 for dtype in dtypes)
    return _Kinds(tf32 or (device.tensor_cores and any(map(is_half, dtypes))), tf32)


def _cost(plan: Plan, tile: Tile, batch: int, device: Device) -> float:
    """Cycles of a step's products, roughly: multiply-adds, and what is read from the second-level cache; never measured."""
    work = read = 0.0
    for p in plan.products:
        columns, words = p.inner * p.pieces * tile.units, p.out.dtype.itemsize / 4
        work += columns / (MMA_SPEED if tile.takes(p.out.dtype) else 1)
        read += (p.inner * tile.rows + (0 if tile.stationary else columns)) * words
    blocks = tile.grid(plan, batch)
    waves = -(-blocks[0] * blocks[1] // device.processors)
    return waves * (work * tile.rows / 64 + read / 16)


def _rows(batch: int, kinds: _Kinds) -> list[int]:
    """How many sequences a block may take: as many as there are, half of them, a quarter ..."""
    least = MMA_ROWS if kinds.mma else 1
    most = max(least, min(ROWS_A_THREAD * 8, _power_of_two(batch)))
    return [most >> i for i in range(most.bit_length()) if most >> i >= least]


def streamed_tile(plan: Plan, batch: int, device: Device, tf32: bool = False) -> Tile | None:
    """The tile with the least work a block; None if none fits."""
    kinds = _kinds(plan, device, tf32)
    tiles = [_tile(units, rows, 32, False, kinds) for units in (32, 16, 8) for rows in _rows(batch, kinds)]
    fitting = [tile for tile in tiles if shared_bytes(plan, tile) <= device.shared]
    return min(fitting, key=lambda tile: _cost(plan, tile, batch, device), default=None)


def persistent_tile(plan: Plan, batch: int, device: Device, tf32: bool = False) -> Tile | None:
    """The tile with the least work a block among those whose blocks all run at once; None if the weights do not fit."""
    fitting = []
    inner, kinds = max((p.inner for p in plan.products), default=1), _kinds(plan, device, tf32)
    for units in (1, 2, 4, 8, 16, 32):
        for rows in _rows(batch, kinds):
            depths = [d for d in (_power_of_two(inner) >> i for i in range(8)) if d >= min(16, inner)]
            tiles = [_tile(units, rows, depth, True, kinds) for depth in depths]
            tile = next((tile for tile in tiles if shared_bytes(plan, tile) <= device.shared), None)
            if tile is not None and math.prod(tile.grid(plan, batch)) <= device.processors:
                fitting.append(tile)
    return min(fitting, key=lambda tile: _cost(plan, tile, batch, device), default=None)


def choose(plan: Plan, batch: int, device: Device, tf32: bool = False) -> Tile | None:
    """Persistent where the weights fit, else streamed; None if not even that fits.

    Args:
        plan: what is to run.
        batch: how many sequences.
        device: where.
        tf32: whether products of float32 may be rounded to TF32, for which there are tensor cores.
    """
    return persistent_tile(plan, batch, device, tf32) or streamed_tile(plan, batch, device, tf32)
