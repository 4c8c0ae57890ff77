"""From a record to a diagram: words for each box, frames as groups, arrows of their kinds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tinyseq.draw.closing import drawn, fitted
from tinyseq.draw.diagram import FLOW, Arrow, ArrowKind, Box, Diagram, Facts, Group
from tinyseq.draw.gathering import OPERATIONS, REPEATED, around_loops, bodies, by_loop, with_modules
from tinyseq.draw.labels import (
    amount_label,
    array_label,
    fact_labels,
    metadata_label,
    number_label,
    shorten,
    value_label,
)
from tinyseq.draw.reading import FEW
from tinyseq.draw.record import Item, Record

__all__ = ["MANY", "Flow", "Level", "build", "least", "size"]

Level = Literal["modules", "operations", "both"]
Flow = Mapping[str, Sequence[float]]
MANY, FEW_IN_LOOPS = 300, 59  # the most boxes unless told otherwise: of any picture, and of one with folded loops


def build(
    record: Record,
    level: Level,
    *,
    open_loops: bool,
    show: Collection[str],
    values: int,
    flow: Flow,
    coloured: bool,
    modules: Mapping[str, str],
    limit: int | None,
) -> Diagram:
    """The diagram of a record.

    Args:
        record: is changed.
        level: which frames are drawn, and which are closed.
        open_loops: whether modules with loops in them are open at the level of modules, too.
        show: which facts have a line in the boxes.
        values: the most elements of a tensor whose numbers are shown.
        flow: the norms of dL/dh_t by the names of carries.
        coloured: whether arrows show the norms of gradients that a profile has noted.
        modules: the classes of the modules of a model by their dotted names, as far as they are known.
        limit: with more boxes than this frames are closed; None: with more than 59 where loops are folded, twice as many
            with the backward pass, and 300 elsewhere.
    """
    return _Builder(record, level, open_loops, show, values, flow, coloured, modules, limit).run()


def size(record: Record, level: Level) -> int:
    """About how many boxes a record needs, with leaves drawn once in each column."""
    if level == "modules":
        return len({item.frame for item in record.items}) + sum(item.frame is None for item in record.items)
    columns = record.columns()
    extra: set[tuple[int, int | None]] = set()
    for item in record.items:
        column = None if item.frame is None else columns[item.frame]
        for p, _ in item.parents:
            if record.items[p].kind in REPEATED:
                extra.add((p, None if column is None else column[1]))
    return len(extra) + sum(item.kind not in REPEATED for item in record.items)


def least(record: Record, level: Level) -> int:
    """About how many boxes a record needs if all frames are closed that can be.

    A frame around everything stays open: if it has more frames in it than fit, a picture of its one box would say nothing.
    """
    columns = record.columns()
    loops = any(frame.kind == "loop" for frame in record.frames)
    found = set[object]()
    second: dict[int, set[int]] = {}  # of each outermost frame those in it
    for i, item in enumerate(record.items):
        if item.kind in REPEATED:
            continue  # where it is used
        path = [f for f in record.path(item.frame) if level != "operations" or record.frames[f].kind != "module"]
        if not path:
            found.add("around the loops" if loops else ("item", i))
        elif (column := columns[path[0]]) is not None and column[0] == path[-1]:
            found.add(column[1])  # a step becomes no box, but what is in it does
        else:
            found.add(path[-1])
            second.setdefault(path[-1], set()).update(path[-2:-1])
    return max([len(found), *map(len, second.values())])


@dataclass(slots=True, eq=False)
class _Builder:
    record: Record
    level: Level
    open_loops: bool
    show: Collection[str]
    values: int
    flow: Flow
    coloured: bool
    modules: Mapping[str, str]
    limit: int | None
    # Known once the frames are in their last order:
    columns: Sequence[tuple[int, int] | None] = ()  # as of Record.columns()
    backward: Sequence[bool] = ()  # whether each item is on the way back
    _flow_of_loop: dict[int, list[str]] | None = None

    def run(self) -> Diagram:
        if self.level == "operations":
            self._without_modules()
        self._localise()
        closed = self._closed() if self.level == "modules" else set[int]()
        diagram = self._diagram(closed)
        limit = self.limit
        if limit is None:
            kinds = {group.kind for group in diagram.groups}
            folded = "loop" in kinds and "step" not in kinds
            limit = FEW_IN_LOOPS * (1 + any(self.backward)) if folded else MANY
        if drawn(diagram) > limit:
            optional = self._gathered()
            diagram = fitted(self._diagram(closed), limit, optional)
        return diagram

    def _diagram(self, closed: set[int]) -> Diagram:
        """The diagram as the record stands; the numbers of the frames that are closed change."""
        record = self.record
        record.sort_frames(closed)
        self._flow_of_loop = None
        self.columns = record.columns()
        self.backward = [self._is_backward(item) for item in record.items]
        used = {f for item in record.items for f in record.path(item.frame)}
        kept = [f for f in range(len(record.frames)) if f in used]
        number = {f: n for n, f in enumerate(kept)}
        boxes = [self._box(item, number) for item in record.items]
        arrows = self._arrows(boxes)
        contents: dict[int, list[int]] = {f: [] for f in kept}
        for i, item in enumerate(record.items):
            for f in record.path(item.frame):
                contents[f].append(i)
        leaving = self._leaving()
        groups = [self._group(f, number, contents[f], leaving, f not in closed) for f in kept]
        diagram = Diagram(tuple(boxes), tuple(arrows), tuple(groups), tuple(record.notes), tuple(record.outputs))
        names = {record.frames[f].id: rows for f, rows in self._flow_names().items()} if self.flow else {}
        return _with_strips(diagram, self.flow, names)

    # Frames

    def _without_modules(self) -> None:
        record = self.record
        to: list[int | None] = []
        for frame in record.frames:
            parent = None if frame.parent is None else to[frame.parent]
            frame.parent = parent
            to.append(parent if frame.kind == "module" else len(to))
        for item in record.items:
            item.frame = None if item.frame is None else to[item.frame]

    def _closed(self) -> set[int]:
        """The frames that are closed at the level of modules; what a loop does without modules is put into one more."""
        record = self.record
        has_modules, has_loops = with_modules(record), set[int]()
        for frame in record.frames:
            if frame.kind == "loop":
                has_loops.update(record.path(frame.parent))
        closed = {
            f
            for f, frame in enumerate(record.frames)
            if frame.kind == "module" and f not in has_modules and not (self.open_loops and f in has_loops)
        }
        closed.update(around_loops(record))
        inside: Counter[int] = Counter(f for item in record.items for f in record.path(item.frame) if item.kind in OPERATIONS)
        for item in record.items:
            f = item.frame
            if f is None or record.frames[f].kind != "part" or f in closed or inside[f] != 1:
                continue
            if record.frames[f].parent in has_loops:
                item.frame = record.frames[f].parent  # one operation needs no part
        closed.update(
            f for f, frame in enumerate(record.frames) if frame.kind == "part" and f not in has_modules and inside[f] > 1
        )
        closed.update(bodies(record, self._without_bodies(has_modules)))
        return closed

    def _without_bodies(self, has_modules: Collection[int]) -> list[int]:
        """The folded loops and the steps of others in which there are no modules."""
        return [
            f
            for f, frame in enumerate(self.record.frames)
            if f not in has_modules and (frame.kind == "step" or (frame.kind == "loop" and frame.folded))
        ]

    def _gathered(self) -> list[str]:
        """Frames around what can be closed but has none; gives the ids of those that are of use only if closed."""
        record = self.record
        for item in record.items:  # the gradient of a parameter is part of what computes it
            before = [record.items[p] for p, _ in item.parents]
            if item.kind == "gradient" and item.frame is None and before and all(map(self._is_backward, before)):
                item.frame = _common([record.path(other.frame) for other in before])
        by_loop(record)
        made = around_loops(record, top=True)
        has_bodies = {frame.parent for frame in record.frames if frame.id.endswith(".body")}
        made += bodies(record, [f for f in self._without_bodies(with_modules(record)) if f not in has_bodies])
        return [record.frames[f].id for f in made]

    # Leaves

    def _localise(self) -> None:
        """Parameters, constants and gradients stand where they are used, once in each column."""
        record = self.record
        columns = record.columns()
        uses: dict[int, dict[int | None, list[int]]] = {}
        for i, item in enumerate(record.items):
            column = None if item.frame is None else columns[item.frame]
            for p, _ in item.parents:
                if record.items[p].kind in REPEATED:
                    uses.setdefault(p, {}).setdefault(None if column is None else column[1], []).append(i)
        items: list[Item] = []
        place: dict[tuple[int, int | None], int] = {}
        own: dict[int, int] = {}
        for i, item in enumerate(record.items):
            if item.kind not in REPEATED or i not in uses:
                column = None if item.frame is None else columns[item.frame]
                at = None if column is None else column[1]
                item.parents = [(place.get((p, at), own.get(p, -1)), slot) for p, slot in item.parents]
                own[i] = len(items)
                items.append(item)
                continue
            for n, (step, users) in enumerate(uses[i].items()):
                copy = item if n == 0 else replace(item, id=f"{item.id}@{record.frames[step].id if step is not None else ''}")
                copy.frame = _common([self._where(record.items[u]) for u in users])
                own.setdefault(i, len(items))
                place[i, step] = len(items)
                items.append(copy)
        # Carries of folded loops point back, so that their places are known only now.
        record.carries = [(own[a], own[b]) for a, b in record.carries]
        record.outputs = [own[i] for i in record.outputs]
        record.items = items
        self._localise_gradients(columns)

    def _where(self, user: Item) -> list[int]:
        """The frames around an item; the state before a loop is given to it from outside."""
        path = self.record.path(user.frame)
        return path[1:] if user.kind == "carry" else path

    def _localise_gradients(self, columns: Sequence[tuple[int, int] | None]) -> None:
        """What adds to a parameter's gradient in a column ends there."""
        record = self.record
        spread = set()
        for i, item in enumerate(list(record.items)):
            if item.kind != "gradient":
                continue
            by_step: dict[int | None, list[tuple[int, int]]] = {}
            for p, slot in item.parents:
                frame = record.items[p].frame
                column = None if frame is None else columns[frame]
                by_step.setdefault(None if column is None else column[1], []).append((p, slot))
            steps = [step for step in by_step if step is not None]
            if len(steps) < 2:
                continue
            for step in steps:
                record.add(replace(item, id=f"{item.id}@{record.frames[step].id}", frame=step, parents=by_step[step]))
            item.parents = by_step.get(None, [])
            if not item.parents:
                spread.add(i)
        if spread:
            record.replaced([None if i in spread else i for i in range(len(record.items))])

    # Boxes

    def _is_backward(self, item: Item) -> bool:
        return item.kind in ("backward", "gradient") or (item.frame is not None and self.record.frames[item.frame].backward)

    def _box(self, item: Item, number: Mapping[int, int]) -> Box:
        title = _title(item)
        if item.kind in ("operation", "output") and item.name and item.name != item.operation:
            title = f"{shorten(item.name)} = {title}"
        facts = Facts(
            operation=item.operation if item.kind in ("operation", "output") else None,
            name=None if item.name is None else shorten(item.name, 200) or None,
            shape=item.shape,
            dtype=_dtype(item.dtype),
            parameters=_size(item.shape) if item.kind == "parameter" else None,
            value=self._value(item),
            kept=sum(item.kept.values()) if item.kept else None,
            seconds=item.seconds,
            gradient=item.gradient,
        )
        lines = []
        if item.operands is not None:
            lines.append(metadata_label(item.params))
        # What has several results has no dtype itself.
        if "shape" in self.show and item.shape is not None and item.dtype is not None:
            lines.append(array_label(item.shape, item.dtype))
        lines += fact_labels(facts, self.show)
        group = None if item.frame is None else number[item.frame]
        return Box(item.id, item.kind, title, tuple(filter(None, lines)), group, facts)

    def _value(self, item: Item) -> str | None:
        if item.array is None or item.shape is None or item.count > 1 or not self.values:
            return None
        many = _size(item.shape)
        return value_label(item.array) if 0 < many <= self.values else None

    def _leaving(self) -> set[int]:
        """The items that another frame uses, or that were asked for."""
        record = self.record
        leaving = set(record.outputs)
        for item in record.items:
            leaving.update(p for p, _ in item.parents if record.items[p].frame != item.frame)
        return leaving

    def _group(self, f: int, number: Mapping[int, int], inside: Sequence[int], leaving: set[int], is_open: bool) -> Group:
        record, frame = self.record, self.record.frames[f]
        items = [record.items[i] for i in inside]
        parameters = {item.id.partition("@")[0]: item for item in items if item.kind == "parameter"}
        own = [item for item in items if item.kind in OPERATIONS]
        outer = next((record.items[i] for i in reversed(inside) if i in leaving and record.items[i].kind in OPERATIONS), None)
        kept: dict[int, int] = {}
        for item in items:
            kept.update(item.kept)
        seconds = [item.seconds for item in items if item.seconds is not None]
        gradients = [item.gradient for item in parameters.values() if item.gradient is not None]
        facts = Facts(
            shape=outer.shape if outer else None,
            dtype=_dtype(outer.dtype) if outer else None,
            parameters=sum(_size(item.shape) for item in parameters.values()) or None,
            operations=frame.count if frame.count is not None else sum(item.count for item in own),
            steps=frame.steps,
            kept=sum(kept.values()) or None,
            seconds=sum(seconds) if seconds else None,
            gradient=math.hypot(*gradients) if gradients else None,
        )
        title = frame.title
        if frame.kind == "module":
            path = self._path_of(frame.title.removeprefix("backward: "), [item.name or "" for item in parameters.values()])
            title = f"{shorten(path)}: {title}" if path else title
            facts = replace(facts, name=path or None)
        if frame.kind == "loop" or frame.steps is not None:
            last = "T−1" if frame.steps is None else f"{frame.steps - 1:,}"
            title += "" if frame.steps is None else f" × {frame.steps:,}"
            title += f", t = {last} … 0" if frame.reverse else ", t = 0 … T−1" if frame.steps is None else ""
        lines = []
        if outer is not None and outer.dtype is not None and outer.shape is not None and "shape" in self.show:
            lines.append(array_label(outer.shape, outer.dtype))
        if facts.parameters:
            lines.append(f"{facts.parameters:,} parameter{'s' * (facts.parameters != 1)}")
        if facts.operations and frame.kind != "module":
            lines.append(f"{facts.operations:,} operation{'s' * (facts.operations != 1)}")
        lines += fact_labels(facts, {*self.show, "kept"})
        parent = None if frame.parent is None else number[frame.parent]
        return Group(frame.id, frame.kind, shorten(title, 60), tuple(lines), parent, is_open, facts, frame.backward)

    def _path_of(self, kind: str, names: Sequence[str]) -> str:
        """Where in the model a module is, by its dotted name: as near to its parameters as one of its kind stands."""
        path = _path(names)
        while self.modules and path and self.modules.get(path) != kind:
            path = path.rpartition(".")[0]
        return path

    # Arrows

    def _arrows(self, boxes: list[Box]) -> list[Arrow]:
        record = self.record
        arrows: list[Arrow] = []
        references: dict[tuple[int, int | None], int] = {}
        numbers: dict[int, int] = {}
        for head, item in enumerate(record.items):
            slots: dict[int, list[int]] = {}
            for p, slot in item.parents:
                slots.setdefault(p, []).append(slot)
            for tail, which in slots.items():
                kind = self._kind(tail, head)
                if kind == "kept":
                    # The rules of a tape are not taken apart, and what they keep is a fact; a plan's equations say what
                    # they read: a box in their frame stands for it.
                    source = boxes[tail]
                    if item.operands is None or source.kind == "gap":
                        continue
                    key = tail, item.frame
                    if key not in references:
                        if tail not in numbers:
                            numbers[tail] = len(numbers) + 1
                            boxes[tail] = source = replace(source, title=f"{source.title} #{numbers[tail]}")
                        references[key] = len(boxes)
                        where = f"{source.id}@{'' if item.frame is None else record.frames[item.frame].id}"
                        lines = source.lines[-1:]
                        boxes.append(Box(where, "reference", source.title, lines, boxes[head].group, source.facts))
                    arrows.append(Arrow(references[key], head, "kept", tuple(which)))
                    continue
                gradient = record.items[tail].gradient if self.coloured else None
                arrows.append(Arrow(tail, head, kind, tuple(which), "", gradient))
        for tail, head in record.carries:
            arrows.append(Arrow(tail, head, "carry", (), "", record.items[tail].gradient if self.coloured else None))
        return [self._with_flow(arrow) for arrow in arrows]

    def _kind(self, tail: int, head: int) -> ArrowKind:
        record = self.record
        start, end = record.items[tail], record.items[head]
        if end.kind == "gradient" and not self.backward[tail]:
            return "backward"  # where the way back begins
        if self.backward[head] and not self.backward[tail] and start.kind not in ("parameter", "input", "constant"):
            return "kept"
        if start.kind == "parameter":
            return "parameter"
        steps = [None if item.frame is None else self.columns[item.frame] for item in (start, end)]
        if steps[0] is not None and steps[1] is not None and steps[0][0] == steps[1][0] and steps[0] != steps[1]:
            return "carry"
        return "backward" if self.backward[tail] else "data"

    def _with_flow(self, arrow: Arrow) -> Arrow:
        """A carry between two columns, with the norm of the gradient that flows back along it."""
        if not self.flow or arrow.kind != "carry" or arrow.tail >= len(self.record.items):
            return arrow
        record = self.record
        ends = [record.items[i].frame for i in (arrow.tail, arrow.head)]
        steps = [None if f is None else self.columns[f] for f in ends]
        if steps[0] is None or steps[1] is None or steps[0] == steps[1]:
            return arrow
        loop = record.frames[steps[0][0]]
        # An arrow carries the state that a step leaves, or the gradient with respect to it.
        left, other = (record.frames[step[1]] for step in (reversed(steps) if loop.backward else steps))  # type: ignore[index]
        at = left.t
        if left.kind == "gap":
            at = (other.t or 0) + (1 if loop.reverse != loop.backward else -1)
        name = record.items[arrow.tail].name
        rows = [name] if name is not None and name in self.flow else self._flow_names().get(steps[0][0], [])
        if at is None:
            return arrow
        found = [float(self.flow[row][at]) for row in rows if len(self.flow[row]) == loop.steps]
        if not found:
            return arrow
        gradient = math.hypot(*found)
        return replace(arrow, gradient=gradient, label=amount_label(gradient))

    def _flow_names(self) -> dict[int, list[str]]:
        """Which norms belong to which loop, as frames; a loop's backward pass has its own."""
        if self._flow_of_loop is None:
            frames = self.record.frames
            self._flow_of_loop = {}
            for backward in (False, True):
                loops = [f for f, frame in enumerate(frames) if frame.kind == "loop" and frame.backward == backward]
                paths = [[frames[g].title for g in self.record.path(f) if frames[g].kind == "module"] for f in loops]
                bases = [".".join(title.removeprefix("backward: ") for title in reversed(path)) or "scan" for path in paths]
                if backward:  # in the opposite order
                    loops.reverse()
                    bases.reverse()
                self._flow_of_loop.update(zip(loops, matched(self.flow, bases), strict=True))
        return self._flow_of_loop


def matched(flow: Flow, bases: Sequence[str]) -> list[list[str]]:
    """The names of norms that belong to each loop, given what ``trace_gradients`` would call the loops.

    Where no name fits, the loops share the names equally, in order, or each has all.

    >>> matched({"LSTM.0": [], "LSTM.1": [], "LSTM 2.0": [], "LSTM 2.1": []}, ["LSTM", "LSTM"])
    [['LSTM.0', 'LSTM.1'], ['LSTM 2.0', 'LSTM 2.1']]
    >>> matched({"h": [], "c": []}, ["scan", "scan"])
    [['h'], ['c']]
    """
    seen: Counter[str] = Counter()
    rows = []
    for base in bases:
        seen[base] += 1
        name = base if seen[base] == 1 else f"{base} {seen[base]}"
        rows.append([row for row in flow if row == name or row.startswith(f"{name}.")])
    if any(rows) or not bases:
        return rows
    share = len(flow) // len(bases) if len(flow) % len(bases) == 0 else 0
    names = list(flow)
    return [names[k * share : (k + 1) * share] if share else names for k in range(len(bases))]


def _with_strips(diagram: Diagram, flow: Flow, names: Mapping[str, Sequence[str]]) -> Diagram:
    """The norms as a strip under each folded loop of as many steps; ``names`` says which belong to it, by its id."""
    has_steps = {group.parent for group in diagram.groups if group.kind == "step"}
    groups, boxes = list(diagram.groups), list(diagram.boxes)
    for g, group in enumerate(diagram.groups):
        if group.kind != "loop" or group.backward or g in has_steps:
            continue
        mine = [name for name in names.get(group.id, ()) if len(flow[name]) == group.facts.steps]
        rows = tuple((shorten(name), tuple(float(x) for x in flow[name])) for name in mine)
        if rows:
            groups[g] = replace(group, facts=replace(group.facts, flow=rows))
            boxes.append(Box(f"{group.id}.flow", "flow", FLOW, (), g, Facts(flow=rows)))
    return replace(diagram, boxes=tuple(boxes), groups=tuple(groups))


def _dtype(dtype: Any) -> str | None:
    return None if dtype is None else str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def _title(item: Item) -> str:
    """The primitive's name, and its operands where some are constants without a box: ``mul(·, 0.5)``."""
    name = item.operation
    if item.operands is None or item.operands > FEW or not item.operands:
        return shorten(name) or item.kind
    given = {slot for _, slot in item.parents}
    operands = [
        "·" if i in given else (number_label(item.inputs[i]) if i < len(item.inputs) else None) or "const"
        for i in range(item.operands)
    ]
    return name if set(operands) == {"·"} else f"{name}({', '.join(operands)})"


def _path(names: Sequence[str]) -> str:
    """The module that all these parameters are in, by its dotted name."""
    if not names:
        return ""
    parts = [name.split(".")[:-1] for name in names]
    common = []
    for pieces in zip(*parts, strict=False):
        if len(set(pieces)) > 1:
            break
        common.append(pieces[0])
    return ".".join(common)


def _common(paths: Sequence[Sequence[int]]) -> int | None:
    """The innermost frame that is on all paths."""
    counts = Counter(f for path in paths for f in set(path))
    return next((f for f in paths[0] if counts[f] == len(paths)), None)


def _size(shape: tuple[Any, ...] | None) -> int:
    return 0 if shape is None or any(isinstance(n, str) for n in shape) else math.prod(shape)
