"""Folding: a loop whose steps were recorded one by one, drawn once, with its carries going round."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tinyseq.draw.columns import time_of
from tinyseq.draw.record import Item, Record

__all__ = ["fold"]


def fold(record: Record, only_inner: bool = False) -> None:
    """Fold the loops whose steps are recorded one by one, inner ones first; or only those that are in a step of another."""
    depth = [len(record.path(f)) for f in range(len(record.frames))]
    found = {frame.parent for frame in record.frames if frame.kind == "step" and frame.parent is not None}
    if only_inner:
        found = {f for f in found if any(record.frames[outer].kind == "step" for outer in record.path(f))}
    loops = sorted(found, key=lambda f: -depth[f])
    for level in dict.fromkeys(depth[f] for f in loops):
        _fold(record, [f for f in loops if depth[f] == level])


def _fold(record: Record, loops: list[int]) -> None:
    """Fold loops of which none is in another: a step of each stands for all."""
    time = time_of(record, loops)
    shown: dict[int, int] = {}  # of each loop the step that is drawn: the second has a state before it, and after it
    number: dict[int, int] = {}
    for loop, steps in time.steps.items():
        shown[loop] = steps[min(1, len(steps) - 1)]
        number.update((f, n) for n, f in enumerate(steps))
        frame = record.frames[loop]
        frame.folded, frame.steps = True, frame.steps or len(steps)

    # What an item has in common with its like in another step: operation, shape, and which of such it is.
    seen: Counter[Any] = Counter()
    key: list[Any] = [None] * len(record.items)
    table: dict[Any, int] = {}
    for i, item in enumerate(record.items):
        owner = time.owner[i]
        if owner is None or time.leading[i]:
            continue
        kind = "operation" if item.kind == "output" else item.kind
        plain = (owner[0], time.inside[i] is None, kind, item.operation, item.shape)
        seen[owner[1], plain] += 1
        key[i] = (*plain, seen[owner[1], plain])
        if owner[1] == shown[owner[0]]:
            table[key[i]] = i
    for i in range(len(record.items) - 1, -1, -1):  # what leads to one step is known by what it is there
        for p, slot in record.items[i].parents:
            owner = time.owner[p]
            if key[i] is not None and key[p] is None and time.leading[p] and owner is not None:
                key[p] = (key[i], slot)
                if owner[1] == shown[owner[0]]:
                    table[key[p]] = p
    to: list[int | None] = []
    owners = list(time.owner)
    for i, owner in enumerate(time.owner):
        if owner is None or key[i] is None or (time.inside[i] is None and key[i] not in table):
            owners[i] = None  # what is outside and has no like in another step stays
            to.append(i)
        else:
            to.append(table.get(key[i]))

    for i, target in enumerate(to):
        if target is not None and target != i and record.items[i].params != record.items[target].params:
            one = record.items[target]
            one.params = {name: _any_step(value) if name == "key" else value for name, value in one.params.items()}

    # An arrow from step to step becomes one to a carry's box, and from there to whoever used it.
    carried: dict[int, dict[tuple[int, int], None]] = {}  # for each producer: its uses, each an item and an operand
    for i, item in enumerate(record.items):
        mine, head = owners[i], to[i]
        kept = []
        for p, slot in item.parents:
            theirs, tail = owners[p], to[p]
            if mine is None or theirs is None or mine[0] != theirs[0] or mine[1] == theirs[1]:
                kept.append((p, slot))
            elif head is not None and tail is not None:
                carried.setdefault(tail, {})[head, slot] = None
        item.parents = kept
    by_use = {use: tail for tail, uses in carried.items() for use in uses}
    start: dict[int, list[int]] = {tail: [] for tail in carried}  # what a carry is before the first step
    for i, item in enumerate(record.items):
        mine = owners[i]
        if mine is None or number[mine[1]] or to[i] is None:
            continue
        kept = []
        for p, slot in item.parents:
            tail = by_use.get((to[i], slot))  # type: ignore[arg-type]
            if tail is None or owners[p] == mine:
                kept.append((p, slot))
            else:
                start[tail].append(p)
        item.parents = kept

    boxes: dict[int, int] = {}
    loop_of = {tail: owner[0] for tail in carried if (owner := owners[tail]) is not None}
    count = Counter(loop_of.values())
    for tail, uses in carried.items():
        producer, loop = record.items[tail], loop_of[tail]
        nth = sum(loop_of[other] == loop for other in boxes)
        title = producer.name or ("carry" if count[loop] == 1 else f"carry {nth}")
        box = Item(f"{record.frames[loop].id}.carry{nth}", "carry", title, [(p, 0) for p in dict.fromkeys(start[tail])])
        box.shape, box.dtype, box.frame, box.count = producer.shape, producer.dtype, loop, 0
        boxes[tail] = record.add(box)
        for head, slot in uses:
            record.items[head].parents.append((boxes[tail], slot))
            record.items[head].parents.sort(key=lambda pair: pair[1])
    record.carries += list(boxes.items())
    record.replaced([*to, *range(len(to), len(record.items))])
    for i in record.outputs:  # one that was in the last step is now in that which stands for all
        if record.items[i].kind == "operation":
            record.items[i].kind = "output"
    for f, frame in enumerate(record.frames):
        if frame.kind == "step" and frame.parent in shown and shown[frame.parent] == f:
            loop = frame.parent
            frame.kind = "part"
            for item in record.items:
                if item.frame == f:
                    item.frame = loop
            for other in record.frames:
                if other.parent == f:
                    other.parent = loop


def _any_step(key: Any) -> Any:
    """An index that differs from step to step: ``[t]``."""
    return tuple("t" if isinstance(entry, int) and not isinstance(entry, bool) else entry for entry in key)
