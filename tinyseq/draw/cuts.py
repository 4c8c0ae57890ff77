"""Cutting long arrows: what is used far from where it is drawn gets another box there.

An arrow past many ranks is hard to follow, and the time that Graphviz takes grows steeply with their summed length: fifty
arrows from one parameter into a chain of a hundred operations are minutes of work.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from tinyseq.draw.diagram import LEAVES, Box, Diagram
from tinyseq.draw.layout import Strips

__all__ = ["shortened"]

NEAR = 8  # ranks past which a parameter, an input or a constant is drawn again
NUMBERED = re.compile(r" #(\d+)$")
MOST = 300  # ranks that the arrows from operations may pass together before some are cut, too


def shortened(diagram: Diagram) -> Diagram:
    """The same diagram without very long arrows; an operation that is referred to gets a number, here and there."""
    boxes, arrows = list(diagram.boxes), list(diagram.arrows)
    column = Strips(diagram).of_box
    rank = _ranks(diagram, column)
    repeated: dict[int, list[int]] = defaultdict(list)  # the arrows whose tails may be drawn again, by their tails
    others: dict[int, list[int]] = defaultdict(list)
    for a, arrow in enumerate(arrows):
        start = boxes[arrow.tail]
        if column[arrow.tail] == column[arrow.head] and arrow.kind != "carry":
            is_leaf = start.kind in LEAVES
            (repeated if is_leaf else others)[arrow.tail].append(a)

    def length(a: int) -> int:
        return rank[arrows[a].head] - rank[arrows[a].tail] - 1

    passed = {tail: sum(map(length, out)) for tail, out in others.items()}
    number: dict[int, int] = {}
    numbers = [int(match[1]) for box in boxes if (match := NUMBERED.search(box.title))]
    last = max(numbers, default=0)
    for tail in sorted(passed, key=lambda tail: -passed[tail]):
        if sum(passed.values()) <= MOST:
            break
        cut = [a for a in others[tail] if length(a) > NEAR]
        passed[tail] -= sum(map(length, cut))
        if cut:
            known = NUMBERED.search(boxes[tail].title)
            number[tail] = int(known[1]) if known else last + 1
            last = max(last, number[tail])
            if not known:
                boxes[tail] = replace(boxes[tail], title=f"{boxes[tail].title} #{number[tail]}")
            repeated[tail] = cut

    copies: Counter[str] = Counter()
    for tail, out in repeated.items():
        out.sort(key=lambda a: rank[arrows[a].head])
        copy = None if tail in number else tail
        reach = rank[arrows[out[0]].head] + NEAR
        for a in out:
            at = rank[arrows[a].head]
            if copy is None or at > reach:
                copy, reach = len(boxes), at + NEAR
                copies[boxes[tail].id] += 1
                one = replace(boxes[tail], id=f"{boxes[tail].id}#{copies[boxes[tail].id]}", group=boxes[arrows[a].head].group)
                boxes.append(replace(one, kind="reference") if tail in number else one)
            arrows[a] = replace(arrows[a], tail=copy)
    return replace(diagram, boxes=tuple(_numbered_anew(boxes)), arrows=tuple(arrows))


def _numbered_anew(boxes: Sequence[Box]) -> list[Box]:
    """The boxes with the numbers 1, 2, ... for those that are referred to, in order, and none for others."""
    referred = {match[1] for box in boxes if box.kind == "reference" and (match := NUMBERED.search(box.title))}
    anew: dict[str, int] = {}
    result = []
    for box in boxes:
        match = None if box.kind in LEAVES else NUMBERED.search(box.title)
        if match:
            number = f" #{anew.setdefault(match[1], len(anew) + 1)}" if match[1] in referred else ""
            box = replace(box, title=box.title[: match.start()] + number)
        result.append(box)
    return result


def _ranks(diagram: Diagram, column: Sequence[int | None]) -> list[int]:
    """How many arrows the longest way to each box has, in its column or outside all columns.

    What is computed from leaves alone, as a weight that is transposed, stands just above what uses it.
    """
    heads: dict[int, list[int]] = defaultdict(list)
    waiting = [0] * len(diagram.boxes)
    movable = [True] * len(diagram.boxes)
    for arrow in diagram.arrows:
        if column[arrow.tail] == column[arrow.head] and arrow.kind != "carry":
            heads[arrow.tail].append(arrow.head)
            waiting[arrow.head] += 1
    rank = [0] * len(diagram.boxes)
    order = [i for i, count in enumerate(waiting) if not count]
    for tail in order:  # grows
        is_leaf = diagram.boxes[tail].kind in LEAVES
        for head in heads[tail]:
            rank[head] = max(rank[head], rank[tail] + 1)
            movable[head] = movable[head] and (is_leaf or (movable[tail] and len(heads[tail]) == 1))
            waiting[head] -= 1
            if not waiting[head]:
                order.append(head)
    for i in reversed(order):
        if movable[i] and heads[i]:
            rank[i] = min(rank[head] for head in heads[i]) - 1
    return rank
