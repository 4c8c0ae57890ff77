"""Lines that leave a column run in the corridors between its ranks and in the gutters beside it, where no box stands.

Coordinates are points, y upward, as Graphviz has them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tinyseq.draw.dot import title_width

__all__ = ["Column", "Point", "Rectangle", "Spline", "rounded"]

Point = tuple[float, float]
RADIUS = 9.0  # of a rounded corner
HEAD = 6.0  # the length of an arrow's head
CLEARANCE, SPACING = 4.0, 5.0  # between a line and a box, between two lines
CORRIDOR = 8.0  # from the first and the last rank to the corridors above and below them
ASIDE = (-2.5, 2.5, -7.0, 7.0, 0.0)  # of the middle of a corridor, for one line after the other


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box, or the frame of a column."""

    left: float
    bottom: float
    right: float
    top: float

    @property
    def x(self) -> float:
        """The middle."""
        return (self.left + self.right) / 2

    @property
    def y(self) -> float:
        """The middle."""
        return (self.bottom + self.top) / 2

    def moved(self, dx: float, dy: float) -> Rectangle:
        """The same rectangle elsewhere."""
        return Rectangle(self.left + dx, self.bottom + dy, self.right + dx, self.top + dy)


class Column:
    """A column: its frame, its boxes in the ranks that Graphviz has set them in, and the ways that were found between."""

    def __init__(self, frame: Rectangle, boxes: dict[int, Rectangle], title: str = "", inside: Point = (0.0, 0.0)) -> None:
        self.frame = frame
        self.inside = inside  # where the corner of what Graphviz has laid out stands
        self.boxes = boxes
        self.title = Rectangle(frame.left, frame.top, frame.left + title_width(title), frame.top)
        ranks: dict[int, list[Rectangle]] = {}
        for box in boxes.values():
            ranks.setdefault(round(box.y), []).append(box)
        heights = sorted(ranks, reverse=True)
        self.ranks = [ranks[y] for y in heights]
        self.rank_of = {i: heights.index(round(box.y)) for i, box in boxes.items()}
        self._corridors: Counter[int] = Counter()  # how many lines run above each rank
        self._lanes: list[tuple[float, float, float]] = []  # vertical lines: where, from where to where

    def out(self, i: int, side: int, lane: float) -> list[Point]:
        """From box i to the lane at x = ``lane``, beside the column on the right (side 1) or left (side -1)."""
        box, rank = self.boxes[i], self.rank_of[i]
        if self._is_last(box, rank, side):
            return [(box.right if side > 0 else box.left, box.y), (lane, box.y)]
        x, y = box.x + side * (box.right - box.left) / 4, self._corridor(rank + 1)
        return [(x, box.bottom), (x, y), (lane, y)]

    def into(self, i: int, side: int, lane: float) -> list[Point]:
        """From the lane at x = ``lane``, beside the column on the right (side 1) or left (side -1), to box i."""
        box, rank = self.boxes[i], self.rank_of[i]
        if self._is_last(box, rank, side):
            return [(lane, box.y), (box.right if side > 0 else box.left, box.y)]
        x, y = box.x + side * (box.right - box.left) / 4, self._corridor(rank)
        return [(lane, y), (x, y), (x, box.top)]

    def down(self, i: int) -> list[Point]:
        """From box i to the bottom of the frame."""
        box, rank = self.boxes[i], self.rank_of[i]
        lane = self._lane(box, self.ranks[rank + 1 :], self.frame.bottom)
        if abs(lane - box.x) < (box.right - box.left) / 2 - CLEARANCE:
            return [(lane, box.bottom), (lane, self.frame.bottom)]
        x, y = _aside(box, lane), self._corridor(rank + 1)
        return [(x, box.bottom), (x, y), (lane, y), (lane, self.frame.bottom)]

    def up(self, i: int) -> list[Point]:
        """From the top of the frame to box i."""
        box, rank = self.boxes[i], self.rank_of[i]
        lane = self._lane(box, self.ranks[:rank], self.frame.top)
        if abs(lane - box.x) < (box.right - box.left) / 2 - CLEARANCE:
            return [(lane, self.frame.top), (lane, box.top)]
        x, y = _aside(box, lane), self._corridor(rank)
        return [(lane, self.frame.top), (lane, y), (x, y), (x, box.top)]

    def _is_last(self, box: Rectangle, rank: int, side: int) -> bool:
        return all((other.x - box.x) * side <= 0 for other in self.ranks[rank])

    def _lane(self, box: Rectangle, ranks: Sequence[list[Rectangle]], edge: float) -> float:
        """The x nearest to a box at which a line to the frame's edge meets no box of these ranks and no other line."""
        low, high = sorted((box.y, edge))
        passed = [other for rank in ranks for other in rank]
        if edge == self.frame.top and self.title.right > self.title.left:
            passed.append(self.title)
        lines = [x for x, bottom, top in self._lanes if bottom < high and top > low]
        beside = [x for other in passed for x in (other.left - CLEARANCE, other.right + CLEARANCE)]
        tries = [box.x, *(x + step * SPACING for x in (box.x, *beside) for step in range(-8, 9))]

        def is_free(x: float) -> bool:
            return (
                self.frame.left <= x <= self.frame.right
                and all(x <= other.left - CLEARANCE or x >= other.right + CLEARANCE for other in passed)
                and all(abs(x - line) >= SPACING for line in lines)
            )

        lane = min(filter(is_free, tries), key=lambda x: abs(x - box.x), default=self.frame.left)
        self._lanes.append((lane, low, high))
        return lane

    def _corridor(self, rank: int) -> float:
        """The height at which the next line runs through the corridor above a rank."""
        aside = ASIDE[self._corridors[rank] % len(ASIDE)]
        self._corridors[rank] += 1
        if rank == 0:
            return max(box.top for box in self.ranks[0]) + CORRIDOR + aside
        floor = min(box.bottom for box in self.ranks[rank - 1])
        if rank == len(self.ranks):
            return floor - CORRIDOR + aside
        return (floor + max(box.top for box in self.ranks[rank])) / 2 + aside


def _aside(box: Rectangle, lane: float) -> float:
    """Where a line to or from a lane meets a box: off the middle, which is for the lines that run straight."""
    return box.x + math.copysign((box.right - box.left) / 4, lane - box.x)


@dataclass(frozen=True, slots=True)
class Spline:
    """A chain of cubic Bézier curves, the tip of its arrow and the place of its label, if it has them."""

    points: tuple[Point, ...]
    tip: Point | None = None
    label: Point | None = None

    def moved(self, dx: float, dy: float) -> Spline:
        """The same line elsewhere."""
        points, tip, label = (
            tuple((point[0] + dx, point[1] + dy) for point in group if point is not None)
            for group in (self.points, (self.tip,), (self.label,))
        )
        return Spline(points, *tip or (None,), *label or (None,))

    def touches(self, box: Rectangle) -> bool:
        """Whether the line runs through a box: pieces that may are halved until they are short."""
        pieces = [self.points[k : k + 4] for k in range(0, len(self.points) - 1, 3)]
        while pieces:
            piece = pieces.pop()
            xs, ys = [x for x, _ in piece], [y for _, y in piece]
            if max(xs) < box.left or min(xs) > box.right or max(ys) < box.bottom or min(ys) > box.top:
                continue
            if max(xs) - min(xs) < 1 and max(ys) - min(ys) < 1:
                return True
            a, b, c, d = piece
            ab, bc, cd = _between(a, b, 0.5), _between(b, c, 0.5), _between(c, d, 0.5)
            abc, bcd = _between(ab, bc, 0.5), _between(bc, cd, 0.5)
            middle = _between(abc, bcd, 0.5)
            pieces += [(a, ab, abc, middle), (middle, bcd, cd, d)]
        return False

    def pointed(self) -> Spline:
        """The line with an arrow's head at its end."""
        tip = self.points[-1]
        before = next((point for point in reversed(self.points) if point != tip), tip)
        return Spline((*self.points[:-1], _toward(tip, before, HEAD)), tip, self.label)


def rounded(corners: Sequence[Point]) -> tuple[Point, ...]:
    """The chain of curves that runs from corner to corner and rounds those on its way."""
    points = [corner for corner, after in zip(corners, [*corners[1:], None], strict=True) if corner != after]
    chain = [points[0]]

    def straight_to(end: Point) -> None:
        start = chain[-1]
        chain.extend([_between(start, end, 1 / 3), _between(start, end, 2 / 3), end])

    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        radius = min(RADIUS, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
        straight_to(_toward(corner, before, radius))
        end = _toward(corner, after, radius)
        chain.extend([_between(chain[-1], corner, 0.6), _between(end, corner, 0.6), end])
    straight_to(points[-1])
    return tuple(chain)


def _between(start: Point, end: Point, part: float) -> Point:
    return start[0] + part * (end[0] - start[0]), start[1] + part * (end[1] - start[1])


def _toward(start: Point, end: Point, length: float) -> Point:
    distance = math.dist(start, end)
    return _between(start, end, length / distance if distance else 0.0)
