"""Time on the record: which operations belong to which step of which scan, and which of them a picture leaves out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tinyseq.mode import Scope
from tinyseq.tape import Leaf, Node, Place

__all__ = ["Selection", "Step", "scans", "select"]


@dataclass(slots=True)
class Step:
    """The operations that one step of a scan recorded, oldest first; ``t`` is what the scan called it."""

    t: str | int
    places: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class Selection:
    """What a picture shows: the steps of each scan, and the places that are not drawn.

    Attributes:
        scans: for each scan its steps, each with whether its operations are drawn.
        gap: for each place that is left out the scan in whose gap it lies, or None if it is far from the output.
    """

    scans: list[list[tuple[Step, bool]]]
    gap: dict[Place, int | None]


def scans(places: Iterable[Place]) -> list[list[Step]]:
    """The steps of each scan in the order in which they ran.

    Only the outermost scan counts where one runs inside another. A scope says which step it is, not of which scan, so
    a new scan begins where the steps no longer go on in one direction.
    """
    step_scopes: dict[int, Scope | None] = {}
    steps: dict[int, Step] = {}  # by the identity of the step's scope: equal scopes may be of different scans
    parents: dict[int, int] = {}
    for place in places:
        if type(place) is Leaf or place.scope is None:  # type: ignore[union-attr]
            continue
        scope = _outermost_step(place.scope, step_scopes)  # type: ignore[union-attr]
        if scope is not None:
            if id(scope) not in steps:
                steps[id(scope)] = Step(scope.name)
                parents[id(scope)] = id(scope.parent)
            steps[id(scope)].places.append(place)
    found: list[list[Step]] = []
    latest: dict[int, list[Step]] = {}
    for key, step in steps.items():
        scan = latest.get(parents[key])
        if scan is None or not _goes_on(scan, step.t):
            latest[parents[key]] = scan = []
            found.append(scan)
        scan.append(step)
    return found


def _outermost_step(scope: Scope, known: dict[int, Scope | None]) -> Scope | None:
    if id(scope) not in known:
        outermost, at = None, scope
        while at is not None:
            if at.kind == "step":
                outermost = at
            at = at.parent  # type: ignore[assignment]
        known[id(scope)] = outermost
    return known[id(scope)]


def _goes_on(scan: list[Step], t: str | int) -> bool:
    times = [step.t for step in (scan[0], *scan[-2:])]
    if not all(isinstance(time, int) for time in (*times, t)):
        return False
    first, last = times[0], times[-1]
    return t > last if last > first else t < last if last < first else t != last  # type: ignore[operator]
