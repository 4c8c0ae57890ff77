"""Frames around what belongs together but was not recorded as such: the body of a loop, what leads to a loop and on from it."""

from __future__ import annotations

from collections.abc import Iterable

from tinyseq.draw.diagram import LEAVES
from tinyseq.draw.record import Frame, Item, Record

__all__ = ["OPERATIONS", "REPEATED", "around_loops", "bodies", "by_loop", "with_modules"]

OPERATIONS = ("operation", "output", "backward")
REPEATED = ("parameter", "constant")  # what is drawn once in each column that uses it
MOVED = (*OPERATIONS, *REPEATED, "gradient")


def with_modules(record: Record) -> set[int]:
    """The frames with modules in them."""
    return {f for frame in record.frames if frame.kind == "module" for f in record.path(frame.parent)}


def bodies(record: Record, frames: Iterable[int]) -> list[int]:
    """What is in each of these frames, folded loops or steps of others, becomes one part, unless it is one operation."""
    inside: dict[int, list[Item]] = {}
    for item in record.items:
        if item.frame is not None and item.kind in (*OPERATIONS, *REPEATED):
            inside.setdefault(item.frame, []).append(item)
    made = []
    for f in frames:
        frame, items = record.frames[f], inside.get(f, [])
        if sum(item.kind in OPERATIONS for item in items) < 2:
            continue
        title = "∂ step" if frame.backward else "step"
        made.append(record.frame(Frame(f"{frame.id}.body", "part", title, f, backward=frame.backward)))
        for item in items:
            item.frame = made[-1]
    return made


def around_loops(record: Record, top: bool = False) -> list[int]:
    """What a frame does around its loops is one part before each and one after the last; parts that are there are put into it.

    ``top``: also around loops that are in no frame.
    """
    starts: dict[int | None, dict[int, int]] = {}  # of each frame with loops in it the first item of each loop
    for i, item in enumerate(record.items):
        if item.kind in LEAVES:
            continue  # a leaf may be older than all else
        loop = next((f for f in record.path(item.frame) if record.frames[f].kind == "loop"), None)
        around = None if loop is None else record.frames[loop].parent
        if loop is not None and (top or around is not None):
            starts.setdefault(around, {}).setdefault(loop, i)
    parts = {f for f, frame in enumerate(record.frames) if frame.kind == "part" and frame.parent in starts}
    parts -= with_modules(record)
    made: dict[tuple[int | None, int], int] = {}
    moved: dict[int, list[Item]] = {}  # of each part that is made the items, those in other parts included
    for i, item in sorted(enumerate(record.items), key=lambda pair: pair[1].kind in REPEATED):  # leaves last
        own = item.frame if item.frame in parts else None
        frame = item.frame if own is None else record.frames[own].parent
        if frame not in starts or item.kind not in MOVED or (frame is None and item.kind == "output"):
            continue
        passed = 0 if item.kind in REPEATED else sum(first < i for first in starts[frame].values())
        if (frame, passed) not in made:
            if item.kind in REPEATED:
                continue
            title = (
                "before the loop" if passed == 0 else "after the loop" if passed == len(starts[frame]) else "between the loops"
            )
            outer = None if frame is None else record.frames[frame]
            backward = outer.backward if outer else item.kind == "backward"
            name = f"{outer.id if outer else ''}.part{passed}"
            made[frame, passed] = record.frame(Frame(name, "part", title, frame, backward=backward))
        part = made[frame, passed]
        moved.setdefault(part, []).append(item)
        if own is None:
            item.frame = part
        elif item.kind not in REPEATED:
            record.frames[own].parent = part
    for part, items in moved.items():  # one operation needs no part
        if sum(item.kind in OPERATIONS for item in items) == 1:
            outer_frame = record.frames[part].parent
            for item in items:
                item.frame = outer_frame if item.frame == part else item.frame
            for frame_ in record.frames:
                frame_.parent = outer_frame if frame_.parent == part else frame_.parent
    return [part for part, items in moved.items() if sum(item.kind in OPERATIONS for item in items) > 1]


def by_loop(record: Record) -> list[int]:
    """Of several loops in a frame each is in a part of its own, with what leads to it alone, or on from it alone."""
    loops: dict[tuple[int | None, bool], list[int]] = {}
    used = {f for item in record.items for f in record.path(item.frame)}
    for f, frame in enumerate(record.frames):
        if frame.kind == "loop" and f in used:
            loops.setdefault((frame.parent, frame.backward), []).append(f)
    made = []
    for (around, _), several in loops.items():
        if len(several) > 1:
            made += _by_loop(record, around, several)
    return made


def _by_loop(record: Record, around: int | None, loops: list[int]) -> list[int]:
    frames = record.frames
    # The parts of a compiled scan are named like its loop.
    scan = {frames[f].id.rpartition(".")[0]: f for f in loops}
    parts = {
        f: scan.get(frame.id.rpartition(".")[0])
        for f, frame in enumerate(frames)
        if frame.kind == "part" and frame.parent == around
    }
    owner: list[int | None] = []
    for item in record.items:
        path = record.path(item.frame)
        owner.append(next((f if f in loops else parts[f] for f in path if f in loops or parts.get(f) is not None), None))
    free = [
        item.frame == around and item.kind in MOVED and not (around is None and item.kind == "output") for item in record.items
    ]
    backward = [
        item.kind in ("backward", "gradient") or (item.frame is not None and frames[item.frame].backward)
        for item in record.items
    ]
    users: list[list[int]] = [[] for _ in record.items]
    for i, item in enumerate(record.items):
        for p, _ in item.parents:
            if backward[p] == backward[i]:  # what the backward pass reads of the forward pass is beside the point
                users[p].append(i)
    for i in range(len(record.items) - 1, -1, -1):  # what leads to one loop only
        ends = {owner[u] for u in users[i]}
        if free[i] and owner[i] is None and len(ends) == 1:
            owner[i] = ends.pop()
    for i, item in enumerate(record.items):  # what is computed from one loop only
        origins = {owner[p] for p, _ in item.parents if record.items[p].kind not in LEAVES and backward[p] == backward[i]}
        if free[i] and owner[i] is None and len(origins) == 1 and (around is not None or backward[i]):
            owner[i] = origins.pop()
    made: dict[int, int] = {}
    for number, f in enumerate(loops, 1):
        frame = frames[f]
        part = Frame(f"{frame.id}.around", "part", f"{'backward ' if frame.backward else ''}loop {number}", around)
        part.steps, part.reverse, part.backward = frame.steps, frame.reverse, frame.backward
        made[f] = record.frame(part)
        frame.parent = made[f]
    for i, item in enumerate(record.items):
        loop = owner[i]
        if free[i] and loop is not None:
            item.frame = made[loop]
    for f, loop in parts.items():
        if loop is not None:
            frames[f].parent = made[loop]
    return list(made.values())
