"""The backward pass of what was recorded: for each operation its VJP, which runs in the opposite order."""

from __future__ import annotations

from typing import Any

from tinyseq.draw.loops import Scan
from tinyseq.draw.record import Frame, Item, Record

__all__ = ["mirror"]


def mirror(record: Record) -> None:
    """Add the backward pass to a record: it starts at the outputs and ends in the gradients of parameters and inputs."""
    _Mirror(record).run()


class _Mirror:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.cotangents: dict[int, list[int]] = {}  # for each item those that add up to its gradient
        self.frames: dict[int, int] = {}
        self.carried: dict[int, list[int]] = {}  # the carry boxes that an item of a folded loop leads to
        self.scan_of: dict[int, Scan] = {}
        self.skip: set[int] = set()

    def run(self) -> None:
        record = self.record
        forward = len(record.items)
        for scan in record.scans:
            inside = self._items_of(scan, forward)
            if inside:
                self.scan_of[max(inside)] = scan
                self.skip |= inside
        for tail, head in record.carries:
            if head not in self.skip:
                self.carried.setdefault(tail, []).append(head)
        boxes: dict[int, int] = {}  # of the backward carries, by those of the forward ones
        for output in record.outputs:
            source = record.items[output]
            seed = self._add(output, f"∂ {source.name or 'output'}", "start", [output], "gradient")
            record.items[seed].frame = None
            if source.shape == ():
                record.items[seed].array = 1.0
            self.cotangents[output] = [seed]
        for i in range(forward - 1, -1, -1):
            if i in self.scan_of:
                self._scan(self.scan_of[i])
            if i in self.skip:
                continue
            item = record.items[i]
            for head in self.carried.get(i, ()):
                box = self._add(head, f"∂ {record.items[head].operation}", "d", [], "carry")
                record.items[box].count = 0
                boxes[head] = box
                self.cotangents.setdefault(i, []).append(box)
            arrived = self.cotangents.get(i, [])
            if not arrived:
                continue
            if item.kind in ("parameter", "input"):
                if _is_float(item):
                    self._add(i, f"∂ {item.operation}", "d", arrived, "gradient")
            elif item.kind == "carry":
                record.carries += [(tail, boxes[i]) for tail in arrived if i in boxes]
                self._hand_on(item, arrived)
            elif item.kind == "gap":
                self._hand_on(item, [self._add(i, item.operation, "d", arrived, "gap")])
            elif item.kind != "constant":
                mine = self._add(i, f"∂ {item.operation}", "d", arrived, "backward")
                record.items[mine].seconds = None
                if item.kept:
                    record.items[mine].parents.append((i, len(arrived)))
                self._hand_on(item, [mine])

    def _hand_on(self, item: Item, tails: list[int]) -> None:
        for p in dict.fromkeys(p for p, _ in item.parents):
            if self.record.items[p].kind != "constant":
                known = self.cotangents.setdefault(p, [])
                known += [tail for tail in tails if tail not in known]

    def _add(self, i: int, title: str, prefix: str, arrived: list[int], kind: Any) -> int:
        source = self.record.items[i]
        item = Item(f"{prefix}{source.id}", kind, title, [(p, slot) for slot, p in enumerate(arrived)])
        item.shape, item.dtype, item.gradient = source.shape, source.dtype, source.gradient
        item.frame = self._frame(source.frame)
        item.count = source.count
        return self.record.add(item)

    def _frame(self, frame: int | None) -> int | None:
        """The frame of the backward pass that answers to a frame."""
        for f in reversed(self.record.path(frame)):
            if f not in self.frames:
                source = self.record.frames[f]
                parent = None if source.parent is None else self.frames[source.parent]
                title = source.title if source.kind in ("step", "gap") else f"backward: {source.title}"
                twin = Frame(f"d{source.id}", source.kind, title, parent, source.t, source.steps, not source.reverse)
                twin.folded, twin.backward, twin.count = source.folded, True, source.count
                self.frames[f] = self.record.frame(twin)
        return None if frame is None else self.frames[frame]

    def _items_of(self, scan: Scan, forward: int) -> set[int]:
        start = f"{scan.prefix}."
        return {i for i in range(forward) if self.record.items[i].id.startswith(start)}

    def _scan(self, scan: Scan) -> None:
        """A compiled scan has a plan of its own for the way back."""

        def arrived(items: list[int]) -> list[int]:
            return list(dict.fromkeys(c for i in items for c in self.cotangents.get(i, ())))

        results = [*scan.last, *scan.ys]
        all_used = [arrived(items) if scan.used is None or k in scan.used else [] for k, items in enumerate(results)]
        last, ys = all_used[: len(scan.last)], all_used[len(scan.last) :]
        first, others = scan.opening.backward(self.record, scan, last, ys, self._frame(scan.frame))
        for given, tails in zip([*scan.carry, *scan.inputs], [*first, *others], strict=False):
            for p in given:
                if self.record.items[p].kind != "constant":
                    self.cotangents.setdefault(p, []).extend(tails)


def _is_float(item: Item) -> bool:
    return item.dtype is None or getattr(item.dtype, "kind", "f") in "fV"
