"""From the record to the diagram of the operations that made some tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyseq.draw.columns import FEW, Selection, boxed_constants, select
from tinyseq.draw.cuts import shortened
from tinyseq.draw.diagram import Arrow, Box, BoxKind, Diagram, Strip
from tinyseq.draw.labels import array_label, metadata_label, number_label, shorten
from tinyseq.errors import DTypeError
from tinyseq.tape import Leaf, Node, Place, ancestors
from tinyseq.tensor import Parameter, Tensor

if TYPE_CHECKING:
    from tinyseq.nn import Module

__all__ = ["Names", "read"]


def read(outputs: Sequence[Place], names: Module | Mapping[str, object] | None, limit: int) -> Diagram:
    """The diagram of all that the outputs were computed from; above about ``limit`` boxes it is folded.

    Raises:
        DTypeError: ``names`` is neither a module nor a mapping.
    """
    places = ancestors(outputs)
    return shortened(_Reader(outputs, Names(names), select(places, outputs, limit)).run(places))


class Names:
    """What the user calls tensors, and which of them are parameters.

    A module names its parameters; so does a mapping, in which all that is no tensor is passed over, for ``locals()`` is
    handy. Without a module, a leaf that has a name of its own is taken for a parameter, for modules name theirs.
    """

    def __init__(self, names: Module | Mapping[str, object] | None) -> None:
        self.trust_leaves = not hasattr(names, "named_parameters")
        if names is None:
            named: list[tuple[str, object]] = []
        elif isinstance(names, Mapping):
            named = list(names.items())
        elif not self.trust_leaves:
            named = list(names.named_parameters())
        else:
            raise DTypeError(f"names is a {type(names).__name__}; give a module, or a dict of tensors by name")
        self.known: dict[int, tuple[str, bool]] = {}  # by the identity of a place or, for constants, of an array
        for name, value in named:
            if isinstance(value, Tensor):
                learned = isinstance(value, Parameter) or not self.trust_leaves
                self.known.setdefault(id(value.data if value.node is None else value.node), (str(name), learned))

    def of(self, thing: Any) -> str | None:
        """The name of a place or of a constant's array, if it has one."""
        name, _ = self.known.get(id(thing), (thing.name if isinstance(thing, Leaf) else None, False))
        return None if name is None else shorten(name)

    def is_parameter(self, thing: Any) -> bool:
        """Whether it is a parameter, as far as is known."""
        own = isinstance(thing, Leaf) and thing.name is not None and self.trust_leaves
        return self.known.get(id(thing), ("", own))[1]


class _Reader:
    """Collects the boxes and arrows of one diagram, oldest first."""

    def __init__(self, outputs: Sequence[Place], names: Names, selection: Selection) -> None:
        self.outputs = set(outputs)
        self.names = names
        self.gap = selection.gap
        self.folded = selection.folded
        self.left_out = sum(scan is None and isinstance(place, Node) for place, scan in self.gap.items())
        self.unnamed = 0
        self.boxes: list[Box] = []
        self.index: dict[object, int] = {}  # of the box that stands for a key
        self.arrows: dict[tuple[int, int], int] = {}
        self.strips: list[Strip] = []
        self.strip_of: dict[Place, int] = {}
        self.gap_strip: dict[int, int] = {}
        self._make_strips(selection)

    def _make_strips(self, selection: Selection) -> None:
        """Time goes from left to right, also where a scan ran in reverse."""
        drawn: dict[tuple[int, int], list[Place]] = {}
        for place, step in selection.column.items():
            if place not in self.gap:
                drawn.setdefault(step, []).append(place)
        for row, times in enumerate(selection.scans):
            columns: list[tuple[str | None, list[Place]]] = []
            for i, t in enumerate(times):
                if selection.folded[row] and i == len(times) - 1:
                    columns.append((None, []))
                if (row, i) in drawn:
                    columns.append((f"t = {t}", drawn[row, i]))
            for title, places in columns if times[0] <= times[-1] else reversed(columns):
                if title is None:
                    self.gap_strip[row] = len(self.strips)
                self.strip_of.update((place, len(self.strips)) for place in places)
                self.strips.append(Strip(row, title))

    def run(self, places: Sequence[Place]) -> Diagram:
        for place in places:
            if isinstance(place, Leaf):
                if place in self.outputs:
                    self._box_of(place, None)
                continue  # the others are drawn where they are used
            head = self._box_of(place, None)
            strip = self.boxes[head].strip
            hidden = place in self.gap
            for parent in place.parents:
                if parent is not None and not (hidden and self.names.is_parameter(parent)):
                    self._arrow(self._box_of(parent, strip), head)
            if not hidden:
                for i in boxed_constants(place):
                    self._arrow(self._constant(place.inputs[i], strip), head)  # type: ignore[index]
        arrows = [self._finished(tail, head, count) for (tail, head), count in self.arrows.items()]
        # Where most is left out, a gap may be empty: its steps are far from the output, too.
        kept = {s: k for k, s in enumerate(sorted({box.strip for box in self.boxes if box.strip is not None}))}
        boxes = [replace(box, strip=None if box.strip is None else kept[box.strip]) for box in self.boxes]
        return Diagram(tuple(boxes), tuple(arrows), tuple(self.strips[s] for s in kept))

    def _arrow(self, tail: int, head: int) -> None:
        far = self.boxes[head].kind == "gap" and self.boxes[head].strip is None
        if tail != head and not far:
            self.arrows[tail, head] = self.arrows.get((tail, head), 0) + 1

    def _finished(self, tail: int, head: int, count: int) -> Arrow:
        start, end = self.boxes[tail], self.boxes[head]
        if "gap" in (start.kind, end.kind):
            count = 1
        if start.kind == "parameter":
            return Arrow(tail, head, "parameter", count)
        rows = [None if box.strip is None else self.strips[box.strip].row for box in (start, end)]
        carried = start.strip != end.strip and rows[0] is not None and rows[0] == rows[1]
        return Arrow(tail, head, "carry" if carried else "data", count)

    def _add(self, key: object, box: Box) -> int:
        if key not in self.index:
            self.index[key] = len(self.boxes)
            self.boxes.append(box)
        return self.index[key]

    def _box_of(self, place: Place, strip: int | None) -> int:
        """The box that stands for a place; for a parameter, the one in the strip where it is used."""
        if place in self.gap:
            return self._gap_box(self.gap[place])
        name, parameter = self.names.of(place), self.names.is_parameter(place)
        if isinstance(place, Leaf):
            lines: tuple[str, ...] = (array_label(place.shape, place.dtype),)
            if parameter:
                return self._add((place, strip), Box("parameter", name or "parameter", lines, strip))
            if not name and place not in self.index:
                self.unnamed += 1
                name = "input" if self.unnamed == 1 else f"input {self.unnamed}"
            return self._add(place, Box("input", name or "", lines))
        if place in self.index:
            return self.index[place]
        title = _title(place)
        # What has several results has no dtype itself.
        described = "" if place.dtype is None else array_label(place.shape, place.dtype)
        lines = tuple(filter(None, (metadata_label(place.params), described)))
        kind: BoxKind = "output" if place in self.outputs else "operation"
        return self._add(place, Box(kind, f"{name} = {title}" if name else title, lines, self.strip_of.get(place)))

    def _gap_box(self, scan: int | None) -> int:
        if scan is None:
            noun = "operation" if self.left_out == 1 else "operations"
            return self._add("far", Box("gap", f"… {self.left_out:,} {noun} not drawn …"))
        return self._add(("gap", scan), Box("gap", f"… {self.folded[scan]:,} more steps …", (), self.gap_strip[scan]))

    def _constant(self, array: Any, strip: int | None) -> int:
        kind: BoxKind = "parameter" if self.names.is_parameter(array) else "constant"
        box = Box(kind, self.names.of(array) or "constant", (array_label(array.shape, array.dtype),), strip)
        return self._add((id(array), strip), box)


def _title(node: Node) -> str:
    """The primitive's name, and its operands where some are constants without a box: ``mul(·, 0.5)``."""
    name, inputs, boxed = node.primitive.name, node.inputs or (), boxed_constants(node)
    if len(node.parents) > FEW:
        return name
    operands = [
        "·" if parent is not None or i in boxed else (number_label(inputs[i]) if i < len(inputs) else None) or "const"
        for i, parent in enumerate(node.parents)
    ]
    return name if set(operands) == {"·"} else f"{name}({', '.join(operands)})"
