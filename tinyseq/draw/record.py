"""A computation as the pictures see it: items in the order in which they ran, in nested frames.

Tapes, graphs and planned scans are all read into a :class:`Record`; folding, unrolling and the backward pass turn records
into records; ``building`` makes a diagram of the last one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from tinyseq.draw.diagram import BoxKind, GroupKind

if TYPE_CHECKING:
    from tinyseq.draw.loops import Scan

__all__ = ["Frame", "Item", "Record", "in_order"]

NO_PARAMS: dict[str, Any] = {}


@dataclass(slots=True, eq=False)
class Item:
    """What becomes a box.

    Attributes:
        id, kind: as in Box.
        operation: the primitive's name, or a title of its own.
        parents: the items it was computed from, each with the operand that it is.
        operands: how many there are, or None where the title should not list them.
        inputs: the operands that are at hand: numbers to be shown, arrays of which a box may be made.
        params: the metadata.
        shape, dtype: of the result; both may be None.
        name: what the user calls it.
        frame: the frame it stands in.
        array: the result, if it is at hand.
        kept: the bytes of the arrays that are kept for its VJP, by their identity.
        seconds, gradient: from a profile.
        count: how many items of the computation it stands for.
    """

    id: str
    kind: BoxKind
    operation: str
    parents: list[tuple[int, int]]
    operands: int | None = None
    inputs: Sequence[Any] = ()
    params: Mapping[str, Any] = field(default_factory=lambda: NO_PARAMS)
    shape: tuple[int | str, ...] | None = None
    dtype: Any = None
    name: str | None = None
    frame: int | None = None
    array: Any = None
    kept: dict[int, int] = field(default_factory=dict)
    seconds: float | None = None
    gradient: float | None = None
    count: int = 1


@dataclass(slots=True, eq=False)
class Frame:
    """What becomes a group.

    Attributes:
        id, kind, title, backward: as in Group.
        parent: the frame around it; it stands before this one.
        t: of a step.
        steps: T of a loop.
        reverse: whether a loop ran from the last step to the first.
        folded: whether a loop shows its body once.
        count: how many items are in all steps of a folded loop.
    """

    id: str
    kind: GroupKind
    title: str
    parent: int | None = None
    t: int | None = None
    steps: int | None = None
    reverse: bool = False
    folded: bool = False
    backward: bool = False
    count: int | None = None


@dataclass(slots=True, eq=False)
class Record:
    """Items in order, the frames around them, and where the computation ends.

    Attributes:
        items: parents stand before those computed from them.
        frames: parents stand before children.
        outputs: the items asked for.
        carries: (tail, head) from an item to the carry box of a folded loop, against the order.
        notes: sentences on what is not drawn.
        scans: the compiled scans that were opened.
    """

    items: list[Item] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    carries: list[tuple[int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scans: list[Scan] = field(default_factory=list)

    def add(self, item: Item) -> int:
        self.items.append(item)
        return len(self.items) - 1

    def frame(self, frame: Frame) -> int:
        self.frames.append(frame)
        return len(self.frames) - 1

    def replaced(self, to: Sequence[int | None]) -> list[int | None]:
        """Let other items stand for items: ``to`` gives each item's stand-in, itself, or None if it goes.

        What an item was computed from becomes what its stand-in is computed from. Returns the new place of each item.
        """
        edges: list[list[tuple[int, int]]] = [[] for _ in self.items]
        for i, item in enumerate(self.items):
            target = to[i]
            if target is None:
                continue
            known = edges[target]
            # Operands that are one now are one arrow, unless they were one before.
            for p, slot in item.parents:
                if to[p] == p and i == target and (p, slot) not in known:
                    known.append((p, slot))
            for p, slot in item.parents:
                q = to[p]
                if q is not None and q != target and (q != p or i != target) and all(q != other for other, _ in known):
                    known.append((q, slot))
            known.sort(key=itemgetter(1))
            if target != i:
                _add_up(self.items[target], item)
        order, against = in_order([i for i in range(len(self.items)) if to[i] == i], edges)
        number = {old: new for new, old in enumerate(order)}
        for i in order:
            self.items[i].parents = [(number[p], slot) for p, slot in edges[i] if (p, i) not in against]

        def place(i: int) -> int | None:
            target = to[i]
            return None if target is None else number[target]

        places = [place(i) for i in range(len(self.items))]
        self.items = [self.items[i] for i in order]
        self.outputs = list(dict.fromkeys(n for n in map(place, self.outputs) if n is not None))
        for scan in self.scans:
            scan.remap(place)
        carries = [(place(a), place(b)) for a, b in self.carries] + [(number[p], number[i]) for p, i in sorted(against)]
        self.carries = list(dict.fromkeys((a, b) for a, b in carries if a is not None and b is not None and a != b))
        return places

    def path(self, frame: int | None) -> list[int]:
        """The frame and those around it, innermost first."""
        path = []
        while frame is not None:
            path.append(frame)
            frame = self.frames[frame].parent
        return path

    def sort_frames(self, marked: set[int] | None = None) -> None:
        """Put frames after those around them again, and say where those in ``marked`` are now."""
        depth = [len(self.path(f)) for f in range(len(self.frames))]
        # The steps of a loop from left to right in time.
        times = [(frame.t or 0) if frame.kind in ("step", "gap") else 0 for frame in self.frames]
        order = sorted(range(len(depth)), key=lambda f: (depth[f], times[f]))
        number = {old: new for new, old in enumerate(order)}
        self.frames = [self.frames[f] for f in order]
        for frame in self.frames:
            frame.parent = None if frame.parent is None else number[frame.parent]
        for item in self.items:
            item.frame = None if item.frame is None else number[item.frame]
        for scan in self.scans:
            scan.frame = None if scan.frame is None else number[scan.frame]
        if marked is not None:
            moved = {number[f] for f in marked}
            marked.clear()
            marked |= moved

    def columns(self) -> list[tuple[int, int] | None]:
        """For each frame the outermost unrolled loop that it is in, and the step of it, as frames."""
        found: list[tuple[int, int] | None] = []
        for f, frame in enumerate(self.frames):
            outer = None if frame.parent is None else found[frame.parent]
            if outer is None and frame.kind in ("step", "gap") and frame.parent is not None:
                outer = frame.parent, f
            found.append(outer)
        return found


def _add_up(item: Item, other: Item) -> None:
    """An item stands for another, too."""
    item.count += other.count
    item.kept.update(other.kept)
    if other.seconds is not None:
        item.seconds = (item.seconds or 0.0) + other.seconds
    if other.gradient is not None:
        item.gradient = math.hypot(item.gradient or 0.0, other.gradient)


def in_order(items: Sequence[int], parents: Sequence[Sequence[tuple[int, int]]]) -> tuple[list[int], set[tuple[int, int]]]:
    """The items, each after its parents and else in order; and the arrows that go against any order."""
    if all(p < i for i in items for p, _ in parents[i]):
        return list(items), set()
    waiting = {i: len({p for p, _ in parents[i]}) for i in items}
    children: dict[int, list[int]] = {}
    for i in items:
        for p in {p for p, _ in parents[i]}:
            children.setdefault(p, []).append(i)
    ready = [i for i in items if not waiting[i]]
    order: list[int] = []
    done: set[int] = set()
    left = iter(items)
    while len(order) < len(items):
        if not ready:  # a circle: it is cut at its first item
            ready.append(next(i for i in left if i not in done))
        i = heappop(ready)
        if i in done:
            continue
        done.add(i)
        order.append(i)
        for child in children.get(i, ()):
            waiting[child] -= 1
            if not waiting[child] and child not in done:
                heappush(ready, child)
    number = {i: n for n, i in enumerate(order)}
    return order, {(p, i) for i in items for p, _ in parents[i] if number[p] >= number[i]}
