"""Time on the record: which operations belong to which step of which scan, and which of them a picture leaves out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from tinyseq.mode import Scope
from tinyseq.tape import Node, Place

__all__ = ["Selection", "Step", "scans", "select"]


@dataclass(slots=True)
class Step:
    """The operations that step ``t`` of a scan recorded, oldest first."""

    t: int
    nodes: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Selection:
    """What a picture leaves out.

    Attributes:
        scans: the steps of each scan.
        folded: how many steps are left out of each scan, just before its last one.
        gap: for each place that is not drawn, the scan in whose gap it lies, or None if it is far from the output.
    """

    scans: list[list[Step]]
    folded: list[int]
    gap: dict[Place, int | None]


def scans(places: Sequence[Place]) -> list[list[Step]]:
    """The steps of each scan in the order in which they ran; of a scan inside another's step the outer one counts.

    A scope says which step it is, but not of which scan: a new scan begins where t no longer goes on in one direction.
    """
    outermost: dict[int, Scope | None] = {}  # by identity, for equal scopes may belong to different scans
    steps: dict[int, Step] = {}
    latest: dict[int, list[Step]] = {}  # by the identity of what the scan ran in
    found: list[list[Step]] = []
    for place in places:
        if not isinstance(place, Node) or place.scope is None:
            continue
        if id(place.scope) not in outermost:
            outermost[id(place.scope)] = _outermost_step(place.scope)
        scope = outermost[id(place.scope)]
        if scope is None:
            continue
        step = steps.get(id(scope))
        if step is None:
            step = steps[id(scope)] = Step(int(scope.name))
            scan = latest.get(id(scope.parent))
            if scan is None or not _goes_on(scan, step.t):
                scan = latest[id(scope.parent)] = []
                found.append(scan)
            scan.append(step)
        step.nodes.append(place)
    return found


def _outermost_step(scope: Scope) -> Scope | None:
    step, at = None, scope
    while at is not None:
        if at.kind == "step" and isinstance(at.name, int):
            step = at
        at = at.parent  # type: ignore[assignment]
    return step


def _goes_on(scan: list[Step], t: int) -> bool:
    first, last = scan[0].t, scan[-1].t
    return t > last if last > first else t < last if last < first else t != last


def select(places: Sequence[Place], outputs: Sequence[Place], limit: int) -> Selection:
    """Choose what to draw of ``places`` (oldest first), so that no more than about ``limit`` boxes are needed.

    Each scan loses its middle steps first: all keep the same number of first steps, and the last. If that is not enough,
    the places with the shortest way to an output stay.
    """
    found = scans(places)
    folded = [0] * len(found)
    gap: dict[Place, int | None] = {}
    if len(places) <= limit:
        return Selection(found, folded, gap)

    owner = _owners(places, found, outputs)
    sizes = [[0] * len(scan) for scan in found]
    for scan, step in owner.values():
        sizes[scan][step] += 1

    def cost(first: int) -> int:
        spared = (sum(size[first:-1]) - 1 for size in sizes if len(size) > first + 2)
        return len(places) - sum(spared)

    longest = max(map(len, found), default=0)
    first = 1
    while first < longest and cost(first + 1) <= limit:
        first += 1
    for i, scan in enumerate(found):
        if len(scan) > first + 2:
            folded[i] = len(scan) - first - 1
    for place, (i, step) in owner.items():
        if folded[i] and first <= step < len(found[i]) - 1:
            gap[place] = i
    if cost(first) > limit:
        near = _nearest(outputs, gap, limit)
        gap.update((place, None) for place in places if place not in near)
    return Selection(found, folded, gap)


def _owners(
    places: Sequence[Place], found: list[list[Step]], outputs: Sequence[Place]
) -> dict[Place, tuple[int, int]]:
    """The scan and the step that each place goes with, if any.

    Besides those of the step these are what only that step uses, such as a slice ``xs[t]``, and what is computed from no
    later step, such as that step's loss.
    """
    owner: dict[Place, tuple[int, int]] = {
        node: (i, j) for i, scan in enumerate(found) for j, step in enumerate(scan) for node in step.nodes
    }
    users: dict[Place, tuple[int, int] | None] = {}
    for place in reversed(places):
        user = users.get(place)
        if user is not None:
            owner.setdefault(place, user)
        mine = owner.get(place)
        for parent in place.parents:
            if parent is not None:
                users[parent] = mine if users.get(parent, mine) == mine else None
    for place in places:
        if place not in owner:
            latest = max((owner[parent] for parent in place.parents if parent in owner), default=None)
            if latest is not None:
                owner[place] = latest
    for output in outputs:
        owner.pop(output, None)
    return owner


def _nearest(outputs: Sequence[Place], gap: dict[Place, int | None], limit: int) -> set[Place]:
    """The first ``limit`` places on the way back from the outputs, breadth first; going through a gap costs nothing."""
    near: set[Place] = set()
    queue = deque(outputs)
    while queue and limit:
        place = queue.popleft()
        if place in near:
            continue
        near.add(place)
        limit -= place not in gap
        for parent in place.parents:
            if parent is not None and parent not in near:
                if parent in gap:
                    queue.appendleft(parent)
                else:
                    queue.append(parent)
    return near
