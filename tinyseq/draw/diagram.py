"""What is drawn: boxes in nested groups, and arrows, free of how they are laid out or written.

A diagram is plain data: numbers, texts and tuples of them. It holds more than a picture shows at once: what is in a
group that is not open is there, too, and :func:`visible` gives what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

__all__ = [
    "FLOW",
    "LEAVES",
    "Arrow",
    "ArrowKind",
    "Box",
    "BoxKind",
    "Diagram",
    "Facts",
    "Group",
    "GroupKind",
    "merged",
    "visible",
]

LEAVES = ("parameter", "input", "constant")
FLOW = "‖∂L/∂hₜ‖"  # the title of a strip of norms
BoxKind = Literal[
    "operation",
    "output",
    "parameter",
    "input",
    "constant",
    "carry",
    "backward",
    "gradient",
    "module",
    "loop",
    "step",
    "reference",
    "flow",
    "gap",
]
GroupKind = Literal["module", "loop", "step", "gap", "part"]
ArrowKind = Literal["data", "carry", "parameter", "backward", "kept"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a value, an operation, a module or a loop; None where it is not known.

    Attributes:
        operation: the primitive's name.
        name: what the user calls it; for a parameter its dotted name.
        shape, dtype: of the result; "T" stands for a number of steps that is not known.
        value: of a small tensor, as text.
        parameters: how many numbers are learned in it.
        operations: how many operations are in it, in all steps.
        steps: T of a loop.
        kept: bytes of arrays that are kept for the backward pass.
        seconds: time spent, forward and backward, in all steps.
        gradient: the norm of the gradient with respect to it; may be NaN or infinite.
        flow: of a loop, for each part of its carry a name and the norms of dL/dh_t, t = 0 first.
    """

    operation: str | None = None
    name: str | None = None
    shape: tuple[int | str, ...] | None = None
    dtype: str | None = None
    value: str | None = None
    parameters: int | None = None
    operations: int | None = None
    steps: int | None = None
    kept: int | None = None
    seconds: float | None = None
    gradient: float | None = None
    flow: tuple[tuple[str, tuple[float, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the picture.

    Attributes:
        id: the same in every picture of the same computation, whatever is open or folded.
        kind: what it is; decides shape and colour.
        title: shown in bold; in a call, ``·`` stands for each operand that is a box: ``mul(·, 3)``.
        lines: shown smaller under it.
        group: the innermost group that it is in, as its place in ``Diagram.groups``.
        facts: all that is known, shown or not.
    """

    id: str
    kind: BoxKind
    title: str
    lines: tuple[str, ...] = ()
    group: int | None = None
    facts: Facts = field(default=Facts())


@dataclass(frozen=True, slots=True)
class Group:
    """A frame around boxes and other groups: a call of a module, a loop, a step of it, a part such as "before".

    A loop whose children are steps is drawn unrolled: they are columns, in this order; a gap is a column where steps are
    left out. A loop without steps is drawn folded: its body once, with its carries going round.

    Attributes:
        id: as in Box.
        kind: what it is.
        title, lines: as in Box; the lines are shown when it is closed.
        parent: the group around it, as its place in ``Diagram.groups``, where it stands before its children.
        open: whether its content is seen, or one box in its place.
        facts: the sums of its content's facts.
        backward: whether it is part of the backward pass.
    """

    id: str
    kind: GroupKind
    title: str
    lines: tuple[str, ...] = ()
    parent: int | None = None
    open: bool = True
    facts: Facts = field(default=Facts())
    backward: bool = False


@dataclass(frozen=True, slots=True)
class Arrow:
    """From one box to another, each given by its place in ``Diagram.boxes``.

    Attributes:
        tail, head: the boxes, never the same.
        kind: "data"; "carry", from one step to the next (in a folded loop it leads back to the carry's box);
            "parameter"; "backward", what a VJP hands on; "kept", from what was kept of the forward pass to who reads it.
        slots: which operands of the head this is: (0, 1) for ``x * x``. Empty where that means nothing.
        label: a text beside it.
        gradient: the norm of the gradient that flows back along it, from head to tail.
    """

    tail: int
    head: int
    kind: ArrowKind
    slots: tuple[int, ...] = ()
    label: str = ""
    gradient: float | None = None

    @property
    def count(self) -> int:
        """How many operands of the head it stands for."""
        return max(len(self.slots), 1)


@dataclass(frozen=True, slots=True)
class Diagram:
    """All there is to draw.

    Attributes:
        boxes: each after those it was computed from, apart from carries of folded loops.
        arrows, groups: what is between them and around them.
        notes: sentences about what is not drawn.
        outputs: the boxes of what was asked for.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...] = ()
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()
    outputs: tuple[int, ...] = ()


def visible(diagram: Diagram) -> Diagram:
    """What is seen of a diagram: each outermost closed group is one box, in place of the first operation in it.

    The norms of loops that are in closed groups stay, as one strip for all that are side by side.
    """
    outermost: list[int | None] = []  # for each group the outermost closed one that it is in, itself included
    for g, group in enumerate(diagram.groups):
        around = None if group.parent is None else outermost[group.parent]
        outermost.append(g if around is None and not group.open else around)
    number = {g: n for n, g in enumerate(g for g, closed in enumerate(outermost) if closed is None)}

    def renumbered(g: int | None) -> int | None:
        return None if g is None else number[g]

    inside = [None if box.group is None else outermost[box.group] for box in diagram.boxes]
    stands: dict[int, int] = {}  # the box whose place a closed group takes: the first operation, for leaves may be older
    for i, closed in enumerate(inside):
        if closed is not None and diagram.boxes[i].kind not in LEAVES:
            stands.setdefault(closed, i)
    for i, closed in enumerate(inside):
        if closed is not None:
            stands.setdefault(closed, i)
    boxes: list[Box] = []
    place: dict[int, int] = {}
    for i, (box, closed) in enumerate(zip(diagram.boxes, inside, strict=True)):
        if closed is None:
            place[i] = len(boxes)
            boxes.append(replace(box, group=renumbered(box.group)))
        elif stands[closed] == i:
            place[i] = len(boxes)
            group = diagram.groups[closed]
            boxes.append(_closed(group, renumbered(group.parent)))
    places = [place[i if closed is None else stands[closed]] for i, closed in enumerate(inside)]
    arrows = [replace(arrow, tail=places[arrow.tail], head=places[arrow.head]) for arrow in diagram.arrows]
    strips: dict[int | None, list[tuple[str, tuple[float, ...]]]] = {}
    for box, closed in zip(diagram.boxes, inside, strict=True):
        if closed is not None and box.facts.flow:
            strips.setdefault(renumbered(diagram.groups[closed].parent), []).extend(box.facts.flow)
    groups = [replace(diagram.groups[g], parent=renumbered(diagram.groups[g].parent)) for g in number]
    for around, rows in strips.items():
        name = f"{'' if around is None else groups[around].id}.flows"
        boxes.append(Box(name, "flow", FLOW, (), around, Facts(flow=tuple(rows))))
    outputs = tuple(dict.fromkeys(places[i] for i in diagram.outputs))
    return Diagram(tuple(boxes), merged(arrows, boxes), tuple(groups), diagram.notes, outputs)


def _closed(group: Group, parent: int | None) -> Box:
    """A closed group as a box."""
    kind: BoxKind = "backward" if group.backward else "step"
    if not group.backward and (group.kind in ("module", "loop") or group.facts.steps is not None):
        kind = "module" if group.kind == "module" else "loop"
    return Box(group.id, kind, group.title, group.lines, parent, group.facts)


def merged(arrows: Sequence[Arrow], boxes: Sequence[Box]) -> tuple[Arrow, ...]:
    """Arrows without those inside one box, and one for all between the same two boxes."""
    found: dict[tuple[int, int, ArrowKind], Arrow] = {}
    for arrow in arrows:
        if arrow.tail == arrow.head:
            continue
        key = arrow.tail, arrow.head, arrow.kind
        before = found.get(key)
        if before is None:
            found[key] = arrow
            continue
        plain = boxes[arrow.head].facts.operations is None and boxes[arrow.head].kind != "gap"
        slots = tuple(sorted({*before.slots, *arrow.slots})) if plain else before.slots[:1]
        found[key] = replace(before, slots=slots, gradient=_norm(before.gradient, arrow.gradient))
    return tuple(found.values())


def _norm(a: float | None, b: float | None) -> float | None:
    """The norm of two parts."""
    if a is None or b is None:
        return a if b is None else b
    return (a * a + b * b) ** 0.5
