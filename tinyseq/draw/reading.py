"""Reading the record: from tensors to the diagram of the operations that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinyseq.draw.columns import Selection, select
from tinyseq.draw.diagram import Arrow, Box, Diagram, Strip
from tinyseq.draw.labels import array_label, metadata_label, number_label, shorten
from tinyseq.errors import DTypeError
from tinyseq.tape import Leaf, Node, Place, ancestors
from tinyseq.tensor import Parameter, Tensor

if TYPE_CHECKING:
    from tinyseq.nn import Module

__all__ = ["Names", "read"]

Names = dict[int, tuple[str, bool]]  # by the identity of a place or array: its name, and whether a module learns it
FEW = 3  # an operation of more inputs (concatenate) does not show its constants one by one


def read(outputs: Sequence[Tensor], names: Module | Mapping[str, object] | None, limit: int) -> Diagram:
    """The diagram of all that the outputs were computed from; more than about ``limit`` boxes are folded.

    Raises:
        DTypeError: ``names`` is neither a module nor a mapping.
    """
    roots = [tensor.node for tensor in outputs if tensor.node is not None]
    places = ancestors(roots)
    return _Reader(set(roots), _names(names), select(places, roots, limit)).run(places)


def _names(names: Module | Mapping[str, object] | None) -> Names:
    if names is None:
        return {}
    if isinstance(names, Mapping):
        named = list(names.items())
        learned = [isinstance(value, Parameter) for _, value in named]
    elif hasattr(names, "named_parameters"):
        named = list(names.named_parameters())
        learned = [True] * len(named)
    else:
        raise DTypeError(f"names is a {type(names).__name__}; give a module or a dict from names to tensors")
    found: Names = {}
    for (name, value), is_learned in zip(named, learned, strict=True):
        if isinstance(value, Tensor):  # others may be among the values, for names=locals() is handy
            found.setdefault(id(value.data if value.node is None else value.node), (str(name), is_learned))
    return found


class _Reader:
    """Collects the boxes and arrows of one diagram."""

    def __init__(self, roots: set[Place], names: Names, selection: Selection) -> None:
        self.roots = roots
        self.names = names
        self.gap = selection.gap
        self.boxes: list[Box] = []
        self.arrows: dict[tuple[int, int], int] = {}
        self.index: dict[object, int] = {}
        self.strips: list[Strip] = []
        self.strip_of: dict[Place, int] = {}
        self.gap_strip: dict[int, int] = {}
        self.folded = selection.folded
        self.left_out = sum(scan is None and isinstance(place, Node) for place, scan in self.gap.items())
        for row, scan in enumerate(selection.scans):
            for i, step in enumerate(scan):
                if self.folded[row] and i == len(scan) - 1:
                    self.gap_strip[row] = self._strip(row, None)
                drawn = [node for node in step.nodes if node not in self.gap]
                if drawn:
                    strip = self._strip(row, f"t = {step.t}")
                    self.strip_of.update((node, strip) for node in drawn)

    def _strip(self, row: int, title: str | None) -> int:
        self.strips.append(Strip(row, title))
        return len(self.strips) - 1

    def run(self, places: Sequence[Place]) -> Diagram:
        for place in places:
            if isinstance(place, Leaf):
                continue  # drawn where it is used
            head = self._box_of(place, None)
            strip = self.boxes[head].strip
            hidden = place in self.gap
            for parent in place.parents:
                if parent is not None and not (hidden and self._is_parameter(parent)):
                    self._arrow(self._box_of(parent, strip), head)
            if not hidden:
                for i in self._shown_constants(place):
                    self._arrow(self._constant(place.inputs[i], strip), head)  # type: ignore[index]
        for root in self.roots:
            self._box_of(root, None)
        arrows = [self._finished(*ends, count) for ends, count in self.arrows.items()]
        return Diagram(tuple(self.boxes), tuple(arrows), tuple(self.strips))

    def _arrow(self, tail: int, head: int) -> None:
        if tail != head and not (self.boxes[head].kind == "gap" and self.boxes[head].strip is None):
            self.arrows[tail, head] = self.arrows.get((tail, head), 0) + 1

    def _finished(self, tail: int, head: int, count: int) -> Arrow:
        start, end = self.boxes[tail], self.boxes[head]
        if "gap" in (start.kind, end.kind):
            count = 1
        if start.kind == "parameter":
            return Arrow(tail, head, "parameter", count)
        crosses = start.strip is not None and end.strip is not None and start.strip != end.strip
        carries = crosses and self.strips[start.strip].row == self.strips[end.strip].row  # type: ignore[index]
        return Arrow(tail, head, "carry" if carries else "data", count)

    def _add(self, key: object, box: Box) -> int:
        if key not in self.index:
            self.index[key] = len(self.boxes)
            self.boxes.append(box)
        return self.index[key]

    def _box_of(self, place: Place, strip: int | None) -> int:
        """The box that stands for a place; a parameter used in a time step has one of its own there."""
        if place in self.gap:
            return self._gap_box(self.gap[place])
        if place in self.index:
            return self.index[place]
        if isinstance(place, Leaf):
            name, learned = self.names.get(id(place), (place.name, False))
            lines = (array_label(place.shape, place.dtype),)
            if learned and COPY:
                return self._add((place, strip), Box("parameter", shorten(name or "parameter"), lines, strip))
            return self._add(place, Box("parameter" if learned else "input", shorten(name or "input"), lines))
        title = self._title(place)
        if id(place) in self.names:
            title = f"{shorten(self.names[id(place)][0])} = {title}"
        metadata = metadata_label(place.params)
        lines = (*((metadata,) if metadata else ()), array_label(place.shape, place.dtype))
        kind = "output" if place in self.roots else "operation"
        return self._add(place, Box(kind, title, lines, self.strip_of.get(place)))

    def _is_parameter(self, place: Place) -> bool:
        return self.names.get(id(place), ("", False))[1]

    def _gap_box(self, scan: int | None) -> int:
        if scan is None:
            noun = "operation" if self.left_out == 1 else "operations"
            return self._add("rest", Box("gap", f"… {self.left_out:,} {noun} not drawn …"))
        return self._add(("gap", scan), Box("gap", f"… {self.folded[scan]:,} more steps …", (), self.gap_strip[scan]))

    def _shown_constants(self, node: Node) -> list[int]:
        """Which inputs get a box as constants: those that are kept, few, and no plain numbers."""
        if len(node.parents) > FEW:
            return []
        return [
            i
            for i, kept in enumerate(node.inputs or ())
            if node.parents[i] is None and kept is not None and number_label(kept) is None
        ]

    def _constant(self, array: Any, strip: int | None) -> int:
        name, learned = self.names.get(id(array), ("constant", False))
        box = Box("parameter" if learned else "constant", shorten(name), (array_label(array.shape, array.dtype),), strip)
        return self._add((id(array), strip), box)

    def _title(self, node: Node) -> str:
        """The primitive's name, with its constant operands where they have no box: ``mul(·, 0.5)``."""
        name, parents, inputs = node.primitive.name, node.parents, node.inputs or ()
        boxed = self._shown_constants(node)
        if all(parent is not None or i in boxed for i, parent in enumerate(parents)):
            return name
        if len(parents) > FEW:
            return name
        operands = (
            "·" if parent is not None or i in boxed else (number_label(inputs[i]) if i < len(inputs) else None) or "const"
            for i, parent in enumerate(parents)
        )
        return f"{name}({', '.join(operands)})"


import os
COPY = not os.environ.get("ONCE")
