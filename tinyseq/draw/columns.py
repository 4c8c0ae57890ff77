"""Time on the record: which operations belong to which step of which scan, and which of them a picture leaves out."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tinyseq.draw.labels import number_label
from tinyseq.mode import Scope
from tinyseq.tape import Leaf, Node, Place

__all__ = ["FEW", "Selection", "boxed_constants", "scans", "select"]

FEW = 3  # an operation of more inputs, such as concatenate, does not show its constants one by one
Step = tuple[int, int]  # which scan, and which of its steps in the order in which they ran


@dataclass(slots=True)
class Selection:
    """What stands where, and what a picture leaves out.

    Attributes:
        scans: the t of each step of each scan, in the order in which they ran.
        column: the step in whose column a place stands, if it stands in one.
        folded: how many steps are left out of each scan, just before its last.
        gap: for each place that is not drawn, the scan in whose gap it lies, or None if it is far from the outputs.
    """

    scans: list[list[int]]
    column: dict[Place, Step]
    folded: list[int]
    gap: dict[Place, int | None]


def select(places: Sequence[Place], outputs: Sequence[Place], limit: int) -> Selection:
    """Choose what to draw of ``places`` (oldest first), so that about ``limit`` boxes are enough.

    Each scan loses its middle steps first: all keep the same number of first steps, and the last. If that is not enough,
    the places with the shortest way to an output stay.
    """
    found, column = scans(places)
    latest = _latest(places, column)
    owner = _owners(places, column, latest)
    for output in outputs:
        owner.pop(output, None)
    sizes = [[0] * len(times) for times in found]
    for scan, step in owner.values():
        sizes[scan][step] += 1
    extra = _extra(column)
    for scan, step in extra:
        sizes[scan][step] += 1
    everything = len(places) + len(extra)
    sums = [[0, *accumulate(size)] for size in sizes]

    def cost(first: int) -> int:
        """The boxes needed where the first so many steps of each scan are drawn, a box for the gap, and the last."""
        return everything - sum(total[-2] - total[first] - 1 for total in sums if len(total) > first + 3)

    first, longest = 1, max(map(len, found), default=0)
    while first < longest and cost(first + 1) <= limit:
        first += 1
    folded = [len(times) - first - 1 if len(times) > first + 2 else 0 for times in found]
    gap: dict[Place, int | None] = {
        place: i for place, (i, step) in owner.items() if folded[i] and first <= step < len(found[i]) - 1
    }
    if cost(first) > limit:
        near = _nearest(outputs, gap, limit)
        gap.update((place, None) for place in places if place not in near)
    column.update(_returning(places, column, latest, gap))
    return Selection(found, column, folded, gap)


def boxed_constants(node: Node) -> list[int]:
    """Which constant inputs get a box of their own: those that the tape has kept, if they are few and no plain numbers."""
    if len(node.parents) > FEW:
        return []
    kept = enumerate(node.inputs or ())
    return [i for i, array in kept if node.parents[i] is None and array is not None and number_label(array) is None]


def _extra(column: Mapping[Place, Step]) -> list[Step]:
    """A step for each box in its column besides its operations: leaves, drawn once in each step, and constants."""
    leaves: set[tuple[Step, Leaf]] = set()
    constants: list[Step] = []
    for place, step in column.items():
        if isinstance(place, Node):
            leaves.update((step, parent) for parent in place.parents if isinstance(parent, Leaf))
            constants += [step] * len(boxed_constants(place))
    return [*(step for step, _ in leaves), *constants]


def scans(places: Sequence[Place]) -> tuple[list[list[int]], dict[Place, Step]]:
    """The t of each step of each scan, and the step that each place was recorded in, if any.

    Of a scan that runs in the step of another only the outer one counts. A scope says which step it is, but not of which
    scan: a new scan begins where t no longer goes on in one direction.
    """
    outermost: dict[int, Scope | None] = {}  # by identity, for equal scopes may belong to different scans
    steps: dict[int, Step] = {}
    current: dict[int, int] = {}  # the scan that goes on, by the identity of the scope that it runs in
    found: list[list[int]] = []
    column: dict[Place, Step] = {}
    for place in places:
        if not isinstance(place, Node) or place.scope is None:
            continue
        if id(place.scope) not in outermost:
            outermost[id(place.scope)] = _outermost_step(place.scope)
        scope = outermost[id(place.scope)]
        if scope is None:
            continue
        if id(scope) not in steps:
            t, scan = int(scope.name), current.get(id(scope.parent))
            if scan is None or not _goes_on(found[scan], t):
                scan = current[id(scope.parent)] = len(found)
                found.append([])
            steps[id(scope)] = scan, len(found[scan])
            found[scan].append(t)
        column[place] = steps[id(scope)]
    return found, column


def _outermost_step(scope: Scope) -> Scope | None:
    step: Scope | None = None
    at: Scope | None = scope
    while at is not None:
        if at.kind == "step" and isinstance(at.name, int):
            step = at
        at = at.parent
    return step


def _goes_on(times: list[int], t: int) -> bool:
    first, last = times[0], times[-1]
    return t > last if last > first else t < last if last < first else t != last


def _latest(places: Sequence[Place], column: Mapping[Place, Step]) -> dict[Place, Step]:
    """The latest step that each place was computed from, if any."""
    latest = dict(column)
    for place in places:
        if place not in latest:
            step = max((latest[parent] for parent in place.parents if parent in latest), default=None)
            if step is not None:
                latest[place] = step
    return latest


def _owners(places: Sequence[Place], column: Mapping[Place, Step], latest: Mapping[Place, Step]) -> dict[Place, Step]:
    """The step with which each place is left out or not.

    That is the step it was recorded in; or the only one that uses it, as with a slice ``xs[t]``; or the latest that it was
    computed from, as with the loss of a step.
    """
    owner = dict(column)
    users: dict[Place, Step | None] = {}
    for place in reversed(places):
        user = users.get(place)
        if user is not None:
            owner.setdefault(place, user)
        mine = owner.get(place)
        for parent in place.parents:
            if parent is not None:
                users[parent] = mine if users.get(parent, mine) == mine else None
    return {**latest, **owner}


def _returning(
    places: Sequence[Place], column: Mapping[Place, Step], latest: Mapping[Place, Step], gap: Mapping[Place, int | None]
) -> dict[Place, Step]:
    """The places outside a scan's steps through which one step leads to another: they stand in the earlier one's column."""
    found: dict[Place, Step] = {}
    leads_to: dict[Place, set[int]] = {}
    for place in reversed(places):
        step = column.get(place) or latest.get(place)
        if step is None:
            continue
        scan = step[0]
        if place not in column and gap.get(place) != scan:
            if scan not in leads_to.get(place, ()):
                continue
            found[place] = step
        for parent in place.parents:
            if parent is not None:
                leads_to.setdefault(parent, set()).add(scan)
    return found


def _nearest(outputs: Sequence[Place], gap: Container[Place], limit: int) -> set[Place]:
    """The first ``limit`` places on the way back from the outputs, breadth first; what lies in a gap counts nothing."""
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
