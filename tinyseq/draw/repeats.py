"""Repeated steps in a record that does not say where its steps are: a loop that was written in Python."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tinyseq.draw.columns import time_of
from tinyseq.draw.record import Frame, Record

__all__ = ["recognise"]

FEWEST = 3  # repeats that make a loop
SMALLEST = 0.01  # of all operations: what repeats itself for less is chance
CANDIDATES = 24  # lengths of a step that are tried


def recognise(record: Record) -> None:
    """Give frames to loops that are found in what no loop has marked: the same operations, again and again.

    A step's operations follow one another with the same primitives and shapes. Where each has parameters of its own it is
    no step in time but a layer.
    """
    owner = time_of(record).owner if record.frames else [None] * len(record.items)
    marked = [frame.kind != "module" for frame in record.frames]
    free = [
        i
        for i, item in enumerate(record.items)
        if item.kind in ("operation", "output") and owner[i] is None and not _in(record, i, marked)
    ]
    codes: dict[object, int] = {}
    kinds = [(record.items[i].operation, record.items[i].shape) for i in free]
    tokens = np.array([codes.setdefault(kind, len(codes)) for kind in kinds], dtype=np.int64)
    waiting = [(0, len(tokens))]
    while waiting:
        low, high = waiting.pop()
        run = _longest(tokens[low:high])
        if run is None or run[1] < len(tokens) * SMALLEST:
            continue
        start, length, period = run
        start += low
        phase = _phase(record, free[start : start + length], period)
        if phase is None:
            continue
        first = start + phase
        count = (start + length - first) // period
        if count < FEWEST or _has_own_parameters(record, free[first : first + 2 * period], period):
            continue
        _mark(record, free, first, count, period)
        waiting += [(low, first), (first + count * period, high)]
    record.sort_frames()


def _in(record: Record, i: int, marked: list[bool]) -> bool:
    frame = record.items[i].frame
    return frame is not None and any(marked[f] for f in record.path(frame))


def _longest(tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[int, int, int] | None:
    """The stretch that repeats itself over the greatest length, with the shortest step: start, length, length of a step."""
    n = len(tokens)
    if n < FEWEST:
        return None
    # A step's length is the distance between two occurrences of something that is in it once.
    order = np.argsort(tokens, kind="stable")
    same = tokens[order[1:]] == tokens[order[:-1]]
    votes = Counter((order[1:] - order[:-1])[same].tolist())
    best: tuple[int, int, int] | None = None
    distances = {d for d, _ in votes.most_common(CANDIDATES)}
    distances |= {m * d for d in sorted(distances)[:4] for m in (2, 3, 4)}
    for period in sorted(distances):
        equal = tokens[period:] == tokens[:-period]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.astype(np.int8), [0]))))
        if not len(edges):
            continue
        lengths = edges[1::2] - edges[::2] + period
        k = int(lengths.argmax())
        length = int(lengths[k])
        if length >= FEWEST * period and (best is None or length > 1.2 * best[1]):
            best = int(edges[::2][k]), length, period
    return best


def _phase(record: Record, items: list[int], period: int) -> int | None:
    """Where a step best begins, from 0 up to its length: where the fewest values cross from one step to the next.

    None if none does: then it is no loop, but things side by side.
    """
    position = {i: k for k, i in enumerate(items)}
    crossing = [0] * (period + 1)
    for k in range(min(period, len(items) - period), min(2 * period, len(items))):
        tails = {position[p] for p, _ in record.items[items[k]].parents if p in position}
        for tail in tails:
            if k - tail >= period:
                continue
            # Borders lie before the positions tail + 1 ... k.
            for border in range(tail + 1, k + 1):
                crossing[border % period] += 1
    best = min(range(period), key=lambda phase: (crossing[phase], phase))
    return best if crossing[best] else None


def _has_own_parameters(record: Record, items: list[int], period: int) -> bool:
    """Whether two steps have different parameters."""
    first, second = (
        {p for i in step for p in _parents(record, i) if record.items[p].kind == "parameter"}
        for step in (items[:period], items[period:])
    )
    return first != second


def _parents(record: Record, i: int) -> set[int]:
    """What an item was computed from, and what that was; as a weight that is transposed is no operation of a step alone."""
    near = {p for p, _ in record.items[i].parents}
    return near | {p for q in near for p, _ in record.items[q].parents}


def _mark(record: Record, free: list[int], first: int, count: int, period: int) -> None:
    """Put the steps into frames."""
    paths = [record.items[free[first + k]].frame for k in range(count * period)]
    around = None if paths[0] is None else record.frames[paths[0]].parent
    shared = paths[0] if all(path == paths[0] for path in paths) else around if _all_within(record, paths, around) else None
    loop = record.frame(Frame(f"r{len(record.frames)}", "loop", "repeated", shared, steps=count))
    steps = [record.frame(Frame(f"r{len(record.frames)}", "step", f"repeat {t}", loop, t)) for t in range(count)]
    # The outermost frame of a step's own goes into the step, unless it is in several.
    owner: dict[int, int] = {}
    inner = []
    for k, frame in enumerate(paths):
        path = [] if frame == shared else record.path(frame)
        own = None if not path else path[-1] if shared is None else path[path.index(shared) - 1]
        inner.append(own)
        if own is not None:
            owner[own] = steps[k // period] if owner.get(own, steps[k // period]) == steps[k // period] else -1
    for k, own in enumerate(inner):
        if own is None or owner[own] == -1:
            record.items[free[first + k]].frame = steps[k // period]
        else:
            record.frames[own].parent = owner[own]


def _all_within(record: Record, frames: list[int | None], around: int | None) -> bool:
    return around is not None and all(frame is not None and around in record.path(frame) for frame in frames)
