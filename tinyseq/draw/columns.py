"""Time in columns: which steps of which loops a picture shows side by side, and which it leaves out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from tinyseq.draw.diagram import LEAVES
from tinyseq.draw.loops import shown_steps
from tinyseq.draw.record import Frame, Item, Record

__all__ = ["Time", "nearest", "select", "time_of"]

Step = tuple[int, int]  # a loop and a step of it, as frames


@dataclass(slots=True)
class Time:
    """Which step each item belongs to.

    Attributes:
        steps: the steps of each outermost loop, as frames, in the order in which they ran.
        inside: the step in which each item was recorded, if any.
        owner: the step with which it is left out or folded: that in which it was recorded; or the only one that uses it,
            as with a slice ``xs[t]``; or the latest that it was computed from, as with the loss of a step.
        leading: whether it is owned by the one step that uses it.
    """

    steps: dict[int, list[int]]
    inside: list[Step | None]
    owner: list[Step | None]
    leading: list[bool]


def time_of(record: Record, loops: Sequence[int] | None = None) -> Time:
    """Sort the items by the steps of the given loops, or else of the outermost ones that are not folded."""
    found = record.columns()
    if loops is not None:
        found = []
        for f, frame in enumerate(record.frames):
            outer = None if frame.parent is None else found[frame.parent]
            if frame.kind in ("step", "gap") and frame.parent in loops:
                outer = frame.parent, f  # type: ignore[assignment]
            found.append(outer)
    steps: dict[int, list[int]] = {}
    for f, column in enumerate(found):
        if column is not None and column[1] == f:
            steps.setdefault(column[0], []).append(f)
    inside = [None if item.frame is None else found[item.frame] for item in record.items]
    latest = list(inside)
    for i, item in enumerate(record.items):
        if latest[i] is None:
            # Steps are numbered in the order in which they ran.
            before = [step for p, _ in item.parents if (step := latest[p]) is not None]
            latest[i] = max(before, key=lambda step: step[1], default=None)
    owner: list[Step | None] = list(inside)
    leading = [False] * len(owner)
    nothing: Step = (-1, -1)
    users: list[Step | None] = [nothing] * len(owner)
    for i in range(len(owner) - 1, -1, -1):
        if owner[i] is None and users[i] not in (nothing, None):
            owner[i], leading[i] = users[i], True
        mine = owner[i]
        for p, _ in record.items[i].parents:
            users[p] = mine if users[p] in (nothing, mine) else None
    for i, item in enumerate(record.items):
        if owner[i] is None and item.kind not in LEAVES:
            owner[i] = latest[i]
    for i in record.outputs:
        if inside[i] is None:
            owner[i], leading[i] = None, False
    return Time(steps, inside, owner, leading)


def select(record: Record, columns: int) -> None:
    """Leave out steps of loops with more than so many, which are recorded one by one; a gap takes their place."""
    time = time_of(record)
    gaps: dict[int, int] = {}  # the frame of the gap, by the steps that are left out
    frames = record.frames
    hidden: dict[int, int] = {}
    for loop, steps in time.steps.items():
        shown = shown_steps(len(steps), columns)
        # A compiled scan has its gap already.
        if any(frames[f].kind == "gap" for f in steps) or None not in shown:
            continue
        ordered = sorted(steps, key=lambda f: frames[f].t or 0)
        left_out = ordered[len(shown) - 2 : -1]
        gap = record.frame(Frame(f"{frames[loop].id}.gap", "gap", "", loop, frames[left_out[0]].t))
        hidden[gap] = len(left_out)
        gaps.update(dict.fromkeys(left_out, gap))
    _move_in(record, time)
    to: list[int | None] = list(range(len(record.items)))
    boxes: dict[int, int] = {}  # of each gap the item: it takes the place of the first that is left out
    for i, step in enumerate(time.owner):
        if step is None or step[1] not in gaps:
            continue
        gap, item = gaps[step[1]], record.items[i]
        # What is used all over, such as a parameter, leads to no gap.
        item.parents = [(p, s) for p, s in item.parents if record.items[p].kind not in ("parameter", "constant")]
        if gap not in boxes:
            boxes[gap] = i
            title = f"… {hidden[gap]:,} more step{'s' * (hidden[gap] != 1)} …"
            record.items[i] = Item(f"{frames[gap].id}.more", "gap", title, item.parents, frame=gap, count=0)
        to[i] = boxes[gap]
    used = [False] * len(record.items)
    for item in record.items:
        for p, _ in item.parents:
            used[p] = True
    for i, item in enumerate(record.items):
        if item.kind in ("parameter", "constant") and not used[i] and i not in record.outputs:
            to[i] = None
    record.replaced(to)


def _move_in(record: Record, time: Time) -> None:
    """What is outside the steps but has its like for each of them stands in their columns."""
    seen: Counter[object] = Counter()
    likes: dict[object, list[int]] = {}
    for i, item in enumerate(record.items):
        step = time.owner[i]
        if step is None or time.inside[i] is not None or item.kind in ("parameter", "constant"):
            continue
        plain = (step[0], item.kind, "" if item.kind == "input" else item.operation, item.shape)
        seen[step[1], plain] += 1
        likes.setdefault((plain, seen[step[1], plain]), []).append(i)
    for own in likes.values():
        if len(own) > 1:
            for i in own:
                record.items[i].frame = time.owner[i][1]  # type: ignore[index]


def nearest(record: Record, limit: int) -> None:
    """Keep about so many items, those with the shortest way to an output, and a gap that stands for the others."""
    limit = max(limit - 1, 1)  # there is the gap, too
    near: set[int] = set()
    queue = deque(record.outputs)
    while queue and limit:
        i = queue.popleft()
        if i in near:
            continue
        near.add(i)
        limit -= record.items[i].kind != "gap"
        queue.extend(p for p, _ in record.items[i].parents if p not in near)
    left_out = sum(item.count for i, item in enumerate(record.items) if i not in near and _is_operation(item))
    if not left_out:
        return
    noun = "operation" if left_out == 1 else "operations"
    title = f"… {left_out:,} {noun} not drawn …"
    far = Item("far", "gap", title, [], count=0)
    # It stands before what is drawn, so that arrows lead on from it and none to it.
    record.items.append(far)
    number = len(record.items) - 1
    to: list[int | None] = [i if i in near else number for i in range(number)]
    for i, item in enumerate(record.items[:-1]):
        if i not in near:
            item.parents = []
            if item.kind in LEAVES:
                to[i] = None
    record.replaced([*to, number])
    record.notes.append(f"{left_out:,} {noun} far from the output {'is' if left_out == 1 else 'are'} not drawn.")


def _is_operation(item: Item) -> bool:
    return item.kind in ("operation", "output", "backward")
