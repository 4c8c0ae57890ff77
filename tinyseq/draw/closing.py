"""Closing frames until a picture has no more boxes than it should: what is alike first, then what is deepest, loops last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable
from dataclasses import replace

from tinyseq.draw.cuts import NUMBERED, shortened
from tinyseq.draw.diagram import LEAVES, Diagram, Group, visible

__all__ = ["drawn", "fitted"]


def drawn(diagram: Diagram) -> int:
    """How many boxes are seen."""
    return len(shortened(visible(diagram)).boxes)


def fitted(diagram: Diagram, limit: int, optional: Collection[str] = ()) -> Diagram:
    """The diagram with so many of its groups closed that at most ``limit`` boxes are seen, if that is possible.

    Groups that contain the same operations, such as the layers of a stack, are closed but for the first, which shows what
    is in each; then the deepest, those with loops in them last. What is in the columns of a loop is closed in all of them.

    Args:
        diagram: with all that can be closed open.
        limit: the most boxes.
        optional: the ids of groups that are of use only if closed; those left open go.
    """
    return _Closing(diagram, limit).run(optional)


class _Closing:
    def __init__(self, diagram: Diagram, limit: int) -> None:
        self.diagram = diagram
        self.limit = limit
        groups = diagram.groups
        self.children: list[list[int]] = [[] for _ in groups]
        self.depth: list[int] = []
        self.closed = [not group.open for group in groups]
        self.like: dict[int, int] = {}  # of a group that was closed because it is like another the other
        for g, group in enumerate(groups):
            self.depth.append(0 if group.parent is None else self.depth[group.parent] + 1)
            if group.parent is not None:
                self.children[group.parent].append(g)
        self.seen = [0] * len(groups)  # how many boxes each group makes as things are
        for box in diagram.boxes:
            if box.group is not None:
                self.seen[box.group] += 1
        for g in reversed(range(len(groups))):
            if self.closed[g]:
                self.seen[g] = min(self.seen[g], 1)
            parent = groups[g].parent
            if parent is not None:
                self.seen[parent] += self.seen[g]
        self.total = sum(box.group is None for box in diagram.boxes)
        self.total += sum(self.seen[g] for g, group in enumerate(groups) if group.parent is None)
        self.unit = self._units()

    def run(self, optional: Collection[str]) -> Diagram:
        before, target = drawn(self.diagram), self.limit
        waiting = [*self._alike(), *self._deepest()]
        waiting.reverse()
        result, count = self.diagram, before
        while count > self.limit and waiting:
            while waiting and self.total > target:
                for g, like in waiting.pop():
                    self._close(g, like)
            result = self._result()
            count = drawn(result)
            target = min(target, self.total) - max(count - self.limit, 1)  # arrows that are cut need boxes, too
        result = _without(result, {g for g, group in enumerate(result.groups) if group.open and group.id in optional})
        already = {group.id for group in self.diagram.groups if not group.open}
        shut = [not group.open for group in result.groups]
        closed = 0
        for g, group in enumerate(result.groups):  # those in a closed one are not seen
            closed += shut[g] and group.id not in already and (group.parent is None or not shut[group.parent])
            shut[g] = shut[g] or (group.parent is not None and shut[group.parent])
        if not any(self.closed[g] and group.open for g, group in enumerate(self.diagram.groups)):
            return result
        noun = "frame is" if closed == 1 else "frames are"
        note = f"{closed:,} {noun} closed: all open would be {before:,} boxes, more than limit={self.limit:,}."
        return replace(result, notes=(*result.notes, note))

    def _result(self) -> Diagram:
        groups = []
        for g, group in enumerate(self.diagram.groups):
            lines = group.lines
            if g in self.like:
                lines = (*lines, f"as {self.diagram.groups[self.like[g]].title}")
            groups.append(replace(group, open=not self.closed[g], lines=lines))
        return replace(self.diagram, groups=tuple(groups))

    def _close(self, g: int, like: int | None) -> None:
        """Close a group, if that makes fewer boxes."""
        saved = self.seen[g] - 1
        around: int | None = g
        while around is not None:
            if self.closed[around]:
                return
            around = self.diagram.groups[around].parent
        if saved < 1:
            return
        self.closed[g] = True
        if like is not None:
            self.like[g] = like
        self.total -= saved
        around = g
        while around is not None:
            self.seen[around] -= saved
            around = self.diagram.groups[around].parent

    def _units(self) -> list[int]:
        """A number for each group, the same for those that answer to one another in the columns of a loop."""
        known: dict[Hashable, int] = {}
        units: list[int] = []
        for group in self.diagram.groups:
            above = None if group.parent is None else units[group.parent]
            key = above, group.kind, "" if group.kind in ("step", "gap") else group.title
            units.append(known.setdefault(key, len(known)))
        return units

    def _alike(self) -> list[list[tuple[int, int | None]]]:
        """Groups side by side with the same operations in them, all but the first; those that save most come first."""
        found: dict[Hashable, dict[int | None, list[int]]] = defaultdict(lambda: defaultdict(list))
        for g, contents in enumerate(self._contents()):
            group = self.diagram.groups[g]
            if _can_close(group):
                above = None if group.parent is None else self.unit[group.parent]
                found[above, contents][group.parent].append(g)
        sets = []
        for by_parent in found.values():
            rest = [(g, own[0]) for own in by_parent.values() for g in own[1:]]
            if rest:
                sets.append((sum(self.seen[g] - 1 for g, _ in rest), rest))
        sets.sort(key=lambda pair: -pair[0])
        return [list(rest) for _, rest in sets]

    def _contents(self) -> list[int]:
        """A number for each group, the same for those with the same operations in them."""
        groups, known = self.diagram.groups, dict[Hashable, int]()
        parts: list[list[tuple[int, Hashable]]] = [[] for _ in groups]
        for i, box in enumerate(self.diagram.boxes):
            if box.group is not None and box.kind not in (*LEAVES, "reference", "flow"):
                name = "" if box.kind in ("carry", "gradient") else box.facts.operation or NUMBERED.sub("", box.title)
                parts[box.group].append((i, name))
        numbers = [0] * len(groups)
        for g in reversed(range(len(groups))):
            group = groups[g]
            own = sorted(parts[g], key=lambda part: part[0])
            title = group.title.rpartition(": ")[2] if group.kind == "module" else ""
            key = group.kind, title, group.backward, tuple(part for _, part in own)
            numbers[g] = known.setdefault(key, len(known))
            if group.parent is not None:
                at = own[0][0] if own else len(self.diagram.boxes)
                parts[group.parent].append((at, ("group", numbers[g])))
        return numbers

    def _deepest(self) -> list[list[tuple[int, int | None]]]:
        """Groups in the order in which they are closed; those that answer to one another together."""
        groups = self.diagram.groups
        loops = set[int]()
        for g in reversed(range(len(groups))):
            parent = groups[g].parent
            if groups[g].kind == "loop":
                loops.add(g)
            if g in loops and parent is not None:
                loops.add(parent)
        units: dict[int, list[int]] = defaultdict(list)
        for g, group in enumerate(groups):
            if _can_close(group):
                units[self.unit[g]].append(g)

        def order(own: list[int]) -> tuple[int, int, int]:
            g = own[0]
            rank = 2 if g in loops else 1 if groups[g].id.endswith(".body") else 0
            return rank, -self.depth[g], -sum(self.seen[g] for g in own)

        return [[(g, None) for g in own] for own in sorted(units.values(), key=order)]


def _can_close(group: Group) -> bool:
    """A column of a loop does not become a box."""
    return group.open and group.kind not in ("step", "gap")


def _without(diagram: Diagram, gone: Collection[int]) -> Diagram:
    """The diagram without some groups, of which the contents stay."""
    if not gone:
        return diagram
    to: list[int | None] = []
    groups: list[Group] = []
    for g, group in enumerate(diagram.groups):
        parent = None if group.parent is None else to[group.parent]
        if g in gone:
            to.append(parent)
        else:
            to.append(len(groups))
            groups.append(replace(group, parent=parent))
    boxes = tuple(replace(box, group=None if box.group is None else to[box.group]) for box in diagram.boxes)
    return replace(diagram, boxes=boxes, groups=tuple(groups))
