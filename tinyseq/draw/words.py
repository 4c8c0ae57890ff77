"""A diagram as text: a line an operation, blocks for modules and loops, values by letters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import count, product
from string import ascii_lowercase

from tinyseq.draw.diagram import LEAVES, Box, Diagram, Facts
from tinyseq.draw.labels import array_label, shorten

__all__ = ["text"]


def text(diagram: Diagram) -> str:
    """The text of what is seen of a diagram."""
    operands: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of each box: the operand that it is, and the box
    carried: dict[int, list[int]] = defaultdict(list)
    for arrow in diagram.arrows:
        if diagram.boxes[arrow.head].kind == "carry" and arrow.kind == "carry":
            carried[arrow.head].append(arrow.tail)
        elif arrow.kind != "kept":
            operands[arrow.head] += [(slot, arrow.tail) for slot in arrow.slots or (len(operands[arrow.head]),)]
    names = _names(diagram)
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

    for i in _by_groups(diagram):
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
    """The boxes in order, those of a group together, where its first one stands."""
    groups = diagram.groups
    children: dict[int | None, list[tuple[int, str, int]]] = defaultdict(list)
    first: dict[int, int] = {}
    for i, box in enumerate(diagram.boxes):
        children[box.group].append((i, "box", i))
        g = None if box.kind in LEAVES else box.group  # a leaf may be much older than what uses it
        while g is not None and g not in first:
            first[g] = i
            g = groups[g].parent
    for i, box in enumerate(diagram.boxes):  # groups of leaves alone
        g = box.group
        while g is not None and g not in first:
            first[g] = i
            g = groups[g].parent
    for g, at in first.items():
        children[groups[g].parent].append((at, "group", g))
    order: list[int] = []
    stack = [("group", -1)]
    while stack:
        kind, number = stack.pop()
        if kind == "box":
            order.append(number)
            continue
        inside = sorted(children[None if number < 0 else number])
        stack += [(what, n) for _, what, n in reversed(inside)]
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
    title = box.title.partition(" = ")[2] or box.title
    head, bracket, inside = title.partition("(")
    if bracket and "·" in inside:
        rest = iter(operands)
        given = [next(rest, "·") if part.strip(")") == "·" else part.strip(")") for part in inside[:-1].split(", ")]
    else:
        head, given = title, list(operands)
    params = box.lines[0] if box.lines and box.facts.operation and not _is_type(box.lines[0], box.facts) else ""
    if params.startswith("["):
        return f"{given[0]}{params}" + (f" with {', '.join(given[1:])}" if given[1:] else "") if given else params
    return f"{head}({', '.join([*given, *([params] if params else [])])})"


def _is_type(line: str, facts: Facts) -> bool:
    """Whether a line says what the result is, and not how it is computed."""
    shape = facts.shape is not None and line == array_label(facts.shape, facts.dtype)
    return shape or line[:1] in "=‖" or line.startswith("keeps")


def _type(facts: Facts) -> str:
    return f"{facts.dtype or ''}[{','.join(map(str, facts.shape or ()))}]"


def _names(diagram: Diagram) -> list[str]:
    """A name for each box: its own if it has one, else a letter; no two have the same."""
    taken = set[str]()
    known: dict[str, str] = {}
    letters = _letters()
    names = []
    for box in diagram.boxes:
        source = box.id.partition("@")[0]
        if source in known and box.kind in (*LEAVES, "reference"):
            names.append(known[source])
            continue
        own = shorten(box.facts.name or (box.title if box.kind in ("carry", "gradient", *LEAVES) else ""))
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
        names.append(name)
    return names


def _letters() -> Iterator[str]:
    for n in count(1):
        for letters in product(ascii_lowercase, repeat=n):
            yield "".join(letters)
