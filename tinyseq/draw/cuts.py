"""Cutting long arrows: what is used far from where it is drawn gets another box there.

An arrow past many ranks is hard to follow, and the time that Graphviz takes grows steeply with their summed length: fifty
arrows from one parameter into a chain of a hundred operations are minutes of work.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from tinyseq.draw.diagram import Diagram

__all__ = ["shortened"]

NEAR = 8  # ranks past which a parameter, an input or a constant is drawn again
MOST = 300  # ranks that the arrows from operations may pass together before some are cut, too


def shortened(diagram: Diagram) -> Diagram:
    """The same diagram without very long arrows; an operation that is referred to gets a number, here and there."""
    boxes, arrows = list(diagram.boxes), list(diagram.arrows)
    rank = _ranks(diagram)
    repeated: dict[int, list[int]] = defaultdict(list)  # the arrows whose tails may be drawn again, by their tails
    others: dict[int, list[int]] = defaultdict(list)
    for a, arrow in enumerate(arrows):
        start = boxes[arrow.tail]
        if start.strip == boxes[arrow.head].strip:
            is_leaf = start.kind in ("parameter", "input", "constant")
            (repeated if is_leaf else others)[arrow.tail].append(a)

    def length(a: int) -> int:
        return rank[arrows[a].head] - rank[arrows[a].tail] - 1

    passed = {tail: sum(map(length, out)) for tail, out in others.items()}
    number: dict[int, int] = {}
    for tail in sorted(passed, key=lambda tail: -passed[tail]):
        if sum(passed.values()) <= MOST:
            break
        cut = [a for a in others[tail] if length(a) > NEAR]
        passed[tail] -= sum(map(length, cut))
        if cut:
            number[tail] = len(number) + 1
            boxes[tail] = replace(boxes[tail], title=f"{boxes[tail].title} #{number[tail]}")
            repeated[tail] = cut

    for tail, out in repeated.items():
        out.sort(key=lambda a: rank[arrows[a].head])
        copy = None if tail in number else tail
        reach = rank[arrows[out[0]].head] + NEAR
        for a in out:
            at = rank[arrows[a].head]
            if copy is None or at > reach:
                copy, reach = len(boxes), at + NEAR
                boxes.append(replace(boxes[tail], kind="reference") if tail in number else boxes[tail])
            arrows[a] = replace(arrows[a], tail=copy)
    return Diagram(tuple(boxes), tuple(arrows), diagram.strips)


def _ranks(diagram: Diagram) -> list[int]:
    """How many arrows the longest way to each box has, in its strip or outside all strips."""
    heads: dict[int, list[int]] = defaultdict(list)
    waiting = [0] * len(diagram.boxes)
    for arrow in diagram.arrows:
        if diagram.boxes[arrow.tail].strip == diagram.boxes[arrow.head].strip:
            heads[arrow.tail].append(arrow.head)
            waiting[arrow.head] += 1
    rank = [0] * len(diagram.boxes)
    ready = [i for i, count in enumerate(waiting) if not count]
    while ready:
        tail = ready.pop()
        for head in heads[tail]:
            rank[head] = max(rank[head], rank[tail] + 1)
            waiting[head] -= 1
            if not waiting[head]:
                ready.append(head)
    return rank
