"""A diagram as text: a line an operation, blocks for modules and loops, values by letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count, product
from string import ascii_lowercase

from tinyseq.draw.cuts import NUMBERED
from tinyseq.draw.diagram import LEAVES, Box, Diagram, Facts
from tinyseq.draw.labels import array_label, shorten
from tinyseq.draw.record import in_order

__all__ = ["text"]


def text(diagram: Diagram) -> str:
    """The text of what is seen of a diagram."""
    operands: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of each box: the operand that it is, and the box
    carried: dict[int, list[int]] = defaultdict(list)
    for arrow in diagram.arrows:
        if diagram.boxes[arrow.head].kind == "carry" and arrow.kind == "carry":
            carried[arrow.head].append(arrow.tail)
        else:
            operands[arrow.head] += [(slot, arrow.tail) for slot in arrow.slots or (len(operands[arrow.head]),)]
    order = _by_groups(diagram)
    names = _names(diagram, order)
    lines: list[str] = []
    opened: list[int] = []
    pending: list[tuple[int, str]] = []  # carries of open loops, said where the loop ends
    written = set[int]()

    def close(depth: int) -> None:
        while len(opened) > depth:
            g = opened.pop()
            indent = "  " * len(opened)
            for group, line in pending:
                if group == g:
                    lines.append(f"{indent}  {line}")
            pending[:] = [(group, line) for group, line in pending if group != g]
            lines.append(f"{indent}}}")

    for i in order:
        box = diagram.boxes[i]
        path = []
        g = box.group
        while g is not None:
            path.append(g)
            g = diagram.groups[g].parent
        path.reverse()
        shared = 0
        while shared < min(len(path), len(opened)) and path[shared] == opened[shared]:
            shared += 1
        close(shared)
        for g in path[shared:]:
            title = diagram.groups[g].title or diagram.groups[g].kind
            lines.append(f"{'  ' * len(opened)}{shorten(title, 60)} {{")
            opened.append(g)
        indent = "  " * len(opened)
        if box.kind == "reference" or i in written:
            continue
        written.add(i)
        by_slot: dict[int, list[str]] = defaultdict(list)
        for slot, p in sorted(operands[i]):
            by_slot[slot].append(names[p])
        several = box.facts.operation is not None  # an operand that is a stack of what the steps gave
        given = [f"[{', '.join(each)}]" if several and len(each) > 1 else ", ".join(each) for each in by_slot.values()]
        lines.append(indent + _line(box, names[i], given))
        if carried[i]:
            tails = ", ".join(names[p] for p in carried[i])
            if box.group is not None:
                pending.append((box.group, f"next {names[i]} = {tails}"))
    close(0)
    lines += [f"# {note}" for note in diagram.notes]
    if diagram.outputs:
        lines.append(f"-> {', '.join(names[i] for i in diagram.outputs)}")
    return "\n".join(lines)


def _by_groups(diagram: Diagram) -> list[int]:
    """The boxes in order, those of a group together: each box and group after those it is computed from, where that can be."""
    groups = diagram.groups
    paths: list[tuple[int, ...]] = []  # of each group those around it and itself, outermost first
    for g, group in enumerate(groups):
        paths.append((*(paths[group.parent] if group.parent is not None else ()), g))
    own: dict[int | None, list[tuple[int, bool, int]]] = defaultdict(list)  # of each group what is in it, with its place
    first: dict[int, int] = {}
    # A leaf may be much older than what uses it: it says where a group stands only if nothing else is in there.
    for only_leaves in (False, True):
        for i, box in enumerate(diagram.boxes):
            around = box.group
            while around is not None and around not in first and (box.kind in LEAVES) == only_leaves:
                first[around] = i
                around = groups[around].parent
    for g, at in first.items():
        own[groups[g].parent].append((at, True, g))
    for i, box in enumerate(diagram.boxes):
        own[box.group].append((i, False, i))
    number: dict[tuple[bool, int], int] = {}  # of each box and group among what is in the same group, in order
    for inside in own.values():
        inside.sort()
        number.update(((is_group, n), k) for k, (_, is_group, n) in enumerate(inside))
    parents: dict[int | None, list[list[tuple[int, int]]]] = {g: [[] for _ in inside] for g, inside in own.items()}
    for arrow in diagram.arrows:
        if arrow.kind in ("carry", "kept"):
            continue
        ends = []
        for i in (arrow.tail, arrow.head):
            around = diagram.boxes[i].group
            ends.append([*((True, g) for g in (() if around is None else paths[around])), (False, i)])
        shared = 0
        while ends[0][shared] == ends[1][shared]:
            shared += 1
        outer = ends[0][shared - 1][1] if shared else None
        tail, head = (number[end[shared]] for end in ends)
        parents[outer][head].append((tail, 0))
    order: list[int] = []
    stack: list[tuple[bool, int | None]] = [(True, None)]
    while stack:
        is_group, n = stack.pop()
        if not is_group:
            order.append(n)  # type: ignore[arg-type]
            continue
        if n in own:
            places, _ = in_order(range(len(own[n])), parents[n])
            stack += [own[n][k][1:] for k in reversed(places)]
    return order


def _line(box: Box, name: str, operands: list[str]) -> str:
    typed = f"{name}: {_type(box.facts)}" if box.facts.shape is not None else name
    value = f" = {box.facts.value}" if box.facts.value is not None else ""
    if box.kind in LEAVES:
        return f"{box.kind} {typed}{value}"
    if box.kind == "gradient":
        return f"{typed} = {box.facts.value or ', '.join(operands) or 'given'}"
    if box.kind == "carry":
        return f"carry {typed}" + (f" = {', '.join(operands)}" if operands else "")
    if box.kind in ("gap", "flow"):
        flow = "; ".join(f"{row}: {norms[0]:.2g} … {norms[-1]:.2g}" for row, norms in box.facts.flow)
        return f"{box.title}{': ' + flow if flow else ''}"
    return f"{typed} = {_call(box, operands)}{f'  #{value[2:]}' if value else ''}"


def _call(box: Box, operands: list[str]) -> str:
    """The call that a title stands for, with the operands' names for its dots."""
    title = _title(box)
    if box.kind in ("operation", "output"):  # the name before it stands on the left already
        title = title.partition(" = ")[2] or title
    head, bracket, inside = title.partition("(")
    if bracket and "·" in inside:
        rest = iter(operands)
        given = [next(rest, "·") if part.strip(")") == "·" else part.strip(")") for part in inside[:-1].split(", ")]
    else:
        head, given = title, list(operands)
    called = box.kind in ("operation", "output", "backward") and box.facts.operations is None
    params = box.lines[0] if box.lines and called and not _is_type(box.lines[0], box.facts) else ""
    if params.startswith("["):
        return f"{given[0]}{params}" + (f" with {', '.join(given[1:])}" if given[1:] else "") if given else params
    return f"{head}({', '.join([*given, *([params] if params else [])])})"


def _title(box: Box) -> str:
    """A title without the number by which boxes far away refer to it: here names do that."""
    return box.title if box.kind in LEAVES else NUMBERED.sub("", box.title)


def _is_type(line: str, facts: Facts) -> bool:
    """Whether a line says what the result is, and not how it is computed."""
    shape = facts.shape is not None and line == array_label(facts.shape, facts.dtype)
    return shape or line[:1] in "=‖" or line.startswith("keeps")


def _type(facts: Facts) -> str:
    return f"{facts.dtype or ''}[{','.join(map(str, facts.shape or ()))}]"


def _names(diagram: Diagram, order: Sequence[int]) -> list[str]:
    """A name for each box: its own if it has one, else a letter, in this order; no two have the same."""
    taken = {"t"}  # as in xs[t]
    known: dict[str, str] = {}
    letters = _letters()
    names = [""] * len(diagram.boxes)
    for i in sorted(order, key=lambda i: diagram.boxes[i].kind == "reference"):  # after what they stand for
        box = diagram.boxes[i]
        source = box.id.partition("@")[0]
        if source in known and box.kind in (*LEAVES, "reference"):
            names[i] = known[source]
            continue
        own = shorten(box.facts.name or (_title(box) if box.kind in ("carry", "gradient", *LEAVES) else ""))
        if box.kind == "reference" or not own:
            own = "" if box.kind != "gap" else "…"
        name = own
        if name and name in taken and box.kind != "gap":
            name = next(f"{own}.{k}" for k in count(2) if f"{own}.{k}" not in taken)
        while not name:
            letter = next(letters)
            name = "" if letter in taken else letter
        taken.add(name)
        known.setdefault(source, name)
        names[i] = name
    return names


def _letters() -> Iterator[str]:
    for n in count(1):
        for letters in product(ascii_lowercase, repeat=n):
            yield "".join(letters)
