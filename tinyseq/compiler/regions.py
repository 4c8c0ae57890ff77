"""Which equations of a straight-line graph go through memory together.

A region's values are matrices of R rows and C columns. It is elementwise work, sums and maxima over a row, and sums over
all rows; where a backend has code for it, also one element of each row by its number; everything else (products, other
gathers, slices) stands between regions as it is.

    full    (R, C)  an array of any shape that ends in C: (T, B, C) is T B rows
    row     (R,)    a number a row: (T, B, 1), or (T, B), such as a mean
    column  (C,)    the same for every row, such as a bias
    table   (K,)    numbers that are looked up, such as a weight for each class
    one     ()      a single number, at hand before the rows
    total           a sum over all rows, there when the region has run
    late    ()      a number made of totals
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tinyseq.array_api import INDEX
from tinyseq.compiler.passes import dead_code
from tinyseq.graph import Equation, Graph, Names, Operand, Var
from tinyseq.primitives import Primitive

__all__ = ["CHOICES", "REDUCTIONS", "Region", "chosen", "partition"]

Space = tuple[int, int]
Roles = dict[Var, str]
REDUCTIONS = ("sum", "max", "min")
DTYPES = ("float32", "float64", "bool")  # by name: NumPy knows bfloat16 only where ml_dtypes brings it
RENAMES = ("reshape", "broadcast_to", "copy", "detach")
WHOLE = ("eq", "ne", "lt", "le", "gt", "ge", "where", "cast", *RENAMES)  # what may be done with integers

PICK = Primitive("pick", lambda x, i: (i.shape, x.dtype), ())  # x[row, i[row]] for each row
PLACE = Primitive("place", lambda x, i, *, size: ((*i.shape, size), x.dtype), ())  # a row is x[row] at i[row], else zeros
LOOK_UP = Primitive("look_up", lambda x, i: (i.shape, x.dtype), ())  # x[i]
CHOICES = ("pick", "place", "look_up")


@dataclass(frozen=True)
class Region:
    """Equations that run in one pass.

    Attributes:
        equations: of the graph, in order.
        space: R and C.
        roles: how each value lies in it.
        reads: the values that come from outside.
        writes: the values that others read, full or a number a row.
        totals: the sums over all rows.
    """

    equations: tuple[Equation, ...]
    space: Space
    roles: Roles
    reads: tuple[Var, ...]
    writes: tuple[Var, ...]
    totals: tuple[Var, ...]

    @property
    def flat(self) -> bool:
        """Whether rows mean nothing, so that any cut will do."""
        return not {"row", "column"} & set(self.roles.values()) and all(math.prod(v.shape) == 1 for v in self.totals)

    @property
    def worth(self) -> float:
        """How much work it is, in calls of NumPy on small arrays: an operation is one, and one more for 2,000 numbers."""
        count = sum(e.primitive.name != "reshape" for e in self.equations)
        return count * (1 + math.prod(self.space) / 2000) if count > 1 else 0.0

    def text(self, names: Names) -> str:
        """The equations, with names that other parts of the graph share."""
        rows, columns = self.space
        what = f"one pass over {rows * columns} numbers" if self.flat else f"one pass over {rows} rows of {columns}"
        return "\n".join([f"{what}:", *(f"  {names.line(e)}" for e in self.equations)])


def chosen(graph: Graph) -> Graph:
    """The graph with gathers and scatters of one element a row as what they are: ``CHOICES``, which partition knows."""
    rows = {e.output for e in graph.equations if e.primitive.name == "positions" and len(e.output.shape) == 1}
    return dead_code(Graph(graph.inputs, tuple(_chosen(e, rows) for e in graph.equations), graph.outputs, graph.closed))


def _chosen(e: Equation, rows: Collection[Operand]) -> Equation:
    name, key = e.primitive.name, e.params.get("key")
    x, *indices = e.inputs
    if not isinstance(x, Var) or any(not isinstance(i, Var) or i.dtype.kind != "i" for i in indices):
        return e
    if name == "getitem" and key == (INDEX,) and len(x.shape) == 1:
        return Equation(LOOK_UP, e.inputs, {}, e.output)
    if key != (INDEX, INDEX) or indices[0] not in rows or indices[1].shape != indices[0].shape:  # type: ignore[union-attr]
        return e
    whole = x if name == "getitem" else e.output
    if len(whole.shape) != 2 or whole.shape[:1] != indices[1].shape:  # type: ignore[union-attr]
        return e
    if name == "getitem":
        return Equation(PICK, (x, indices[1]), {}, e.output)
    if x.shape != whole.shape[:1]:
        return e
    return Equation(PLACE, (x, indices[1]), {"size": whole.shape[1]}, e.output)


def partition(
    graph: Graph, supported: Collection[str], dtypes: Collection[str] = DTYPES, singles: bool = False
) -> list[Region | Equation]:
    """The graph's equations in an order in which they can run, with as many as possible in regions.

    Args:
        graph: what is computed.
        supported: the elementwise primitives that a backend has code for, renames if they cost nothing there, and choices.
        dtypes: of which values, by name.
        singles: whether a backend has code for work on single numbers before and after the rows.
    """
    fusible = {e for e in graph.equations if _fusible(e, supported, dtypes)}
    drafts = _Drafts(fusible, singles)
    for e in _late(graph, fusible):
        drafts.add(e)
    outputs = {v for v in graph.outputs if isinstance(v, Var)}
    return [part for i in range(len(drafts.parts)) for part in drafts.finished(i, outputs)]


# --- how values lie in a region ---------------------------------------------------------------------------------------


def _fusible(e: Equation, supported: Collection[str], dtypes: Collection[str]) -> bool:
    name = e.primitive.name
    if any(v.dtype.name not in dtypes or 0 in v.shape for v in (*e.vars, e.output)):
        return False
    if name in REDUCTIONS:
        return e.output.dtype.kind not in "bi" and _reduced(e) is not None
    return name in supported and (name in CHOICES or _is_plain(e))


def _is_plain(e: Equation) -> bool:
    """Whether there are no integers, or none but such as are compared, chosen from or cast from."""
    if all(v.dtype.kind != "i" for v in (*e.vars, e.output)):
        return True
    numbers = all(isinstance(x, Var) or float(x).is_integer() for x in e.inputs)
    return e.primitive.name in WHOLE and numbers and (e.output.dtype.kind != "i" or all(v.dtype.kind in "ib" for v in e.vars))


def _reduced(e: Equation) -> str | None:
    """What a reduction gives: a number a row, or a total; None for other axes than those."""
    rank, axes = len(next(e.vars).shape), e.params["axis"]
    if axes == (-1,) and rank > 1:
        return "row"
    if e.primitive.name == "sum" and rank and (len(axes) == rank or axes == tuple(range(-rank, -1))):
        return "total"
    return None


def _space(e: Equation) -> Space:
    """The matrix that an equation works on."""
    shape = next(e.vars).shape if e.primitive.name in (*REDUCTIONS, "pick") else e.output.shape
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def _roles(equations: Sequence[Equation], space: Space, singles: bool) -> Roles | None:
    """The role of each value, if all of them have one in this space."""
    rows, columns = space
    roles: Roles = {}
    made = {e.output for e in equations}

    def is_full(v: Var) -> bool:
        return math.prod(v.shape) == rows * columns and (v.shape[-1] if v.shape else 1) == columns

    def has(v: Var, role: str | None) -> bool:
        if roles.get(v) == "table" and role is not None:
            roles[v] = role  # looked up as well
        return role is not None and roles.setdefault(v, role) == role

    for e in equations:
        name, out = e.primitive.name, e.output
        single = _single(e, roles) if singles else None
        if single is not None:
            roles.update(dict.fromkeys([v for v in e.vars if v not in roles], "one"))
            roles[out] = single
        elif name in CHOICES:
            x, i = e.vars
            own = "full" if is_full(out) and name != "pick" else "row" if math.prod(out.shape) == rows else None
            if name == "look_up":
                roles.setdefault(x, "table")
                fits = x not in made and own is not None and has(i, own)
            elif name == "pick":
                fits = is_full(x) and own == "row" and has(x, "full") and has(i, "row")
            else:
                fits = own == "full" and has(x, "row") and has(i, "row")
            if not fits:
                return None
            roles[out] = own or ""
        elif name in REDUCTIONS:
            (x,) = e.vars
            kind = _reduced(e)
            if roles.get(x) == "row" and kind == "total" and len(e.params["axis"]) == len(x.shape):
                pass  # all numbers of the rows
            elif not (is_full(x) and has(x, "full")):
                return None
            roles[out] = kind or ""
        elif name == "reshape":
            (x,) = e.vars
            role = roles.get(x) or ("full" if is_full(x) else "row" if math.prod(x.shape) == rows else None)
            if role not in ("full", "row") or (role == "full" and not is_full(out)) or not has(x, role):
                return None
            roles[out] = role
        else:
            own = "full" if is_full(out) else "row" if math.prod(out.shape) == rows else None
            # A single number serves in any place.
            if own is None or not all(roles.get(x) == "one" or has(x, _operand_role(x, out, own, columns)) for x in e.vars):
                return None
            roles[out] = own
    return roles


def _single(e: Equation, roles: Roles) -> str | None:
    """The role of what is made of single numbers alone; None where one of them has to do with the rows."""
    if e.primitive.name in (*REDUCTIONS, *CHOICES) or any(math.prod(v.shape) != 1 for v in (*e.vars, e.output)):
        return None
    kinds = {roles.get(v, "one") for v in e.vars}
    return "one" if kinds == {"one"} else "late" if kinds <= {"one", "total", "late"} else None


def _operand_role(x: Var, out: Var, role: str, columns: int) -> str | None:
    """The role of an operand of elementwise work whose result has a role."""
    if x.shape == out.shape:
        return role
    if math.prod(x.shape) == 1:
        return "one"
    if role != "full":
        return None
    if math.prod(x.shape) == columns == x.shape[-1]:
        return "column"
    return "row" if x.shape == (*out.shape[:-1], 1) else None


# --- when they run ----------------------------------------------------------------------------------------------------


def _late(graph: Graph, fusible: Collection[Equation]) -> list[Equation]:
    """The equations, elementwise work right before what needs it: in its region, it need not be written to be read."""
    made = {e.output: e for e in graph.equations}
    order: dict[Equation, None] = {}

    def put(e: Equation) -> None:
        pending = [e]
        while pending:
            waiting = [made[v] for v in pending[-1].vars if v in made and made[v] not in order]
            if waiting:
                pending += waiting
            else:
                order[pending.pop()] = None

    for e in (*(e for e in graph.equations if e not in fusible), *(made[v] for v in graph.outputs if v in made)):
        put(e)
    return list(order)


class _Drafts:
    """Regions that grow, and the equations between them, in an order in which they can run."""

    def __init__(self, fusible: Collection[Equation], singles: bool) -> None:
        self.fusible, self.singles = fusible, singles
        self.parts: list[list[Equation]] = []
        self.spaces: list[Space | None] = []  # None for an equation that stands alone
        self.place: dict[Var, int] = {}  # the part that makes a value
        self.readers: dict[Var, set[int]] = {}

    def add(self, e: Equation) -> None:
        """Put an equation into the latest region that it fits in, else behind all others."""
        if e in self.fusible:
            first = max((self.place[v] for v in e.vars if v in self.place), default=0)
            near = {i for v in e.vars if math.prod(v.shape) > 1 for i in (*self.readers.get(v, ()), self.place.get(v, -1))}
            if self.singles:
                near |= {self.place.get(v, -1) for v in e.vars}
            for i in sorted(near - {-1}, reverse=True):
                space = self.spaces[i] if i >= first else None
                if space is not None and self._fit(i, [*self.parts[i], e], space, _space(e)):
                    self._note(i, [e])
                    self._absorb(i, e)
                    return
        alone = e not in self.fusible or e.primitive.name == "reshape" or self._roles([e], _space(e)) is None
        self.parts.append([e])
        self.spaces.append(None if alone else _space(e))
        self._note(len(self.parts) - 1, [e])
        self._absorb(len(self.parts) - 1, e)

    def _roles(self, equations: Sequence[Equation], space: Space) -> Roles | None:
        return _roles(equations, space, self.singles)

    def _fit(self, i: int, equations: list[Equation], *spaces: Space) -> bool:
        """Make these the equations of a region, if they go together in one of the spaces."""
        for space in spaces:
            if self._roles(equations, space) is not None:
                self.parts[i], self.spaces[i] = equations, space
                return True
        return False

    def _note(self, i: int, equations: Sequence[Equation]) -> None:
        for e in equations:
            self.place[e.output] = i
            for v in e.vars:
                self.readers.setdefault(v, set()).add(i)

    def _absorb(self, i: int, e: Equation) -> None:
        """Take in earlier regions that gave an operand of ``e`` and that nothing in between waits for."""
        for k in {self.place[v] for v in e.vars if v in self.place} - {i}:
            space, own = self.spaces[k], self.spaces[i]
            if space is None or own is None:
                continue
            if any(self.readers.get(other.output, set()) - {k, i} for other in self.parts[k]):
                continue
            moved = self.parts[k]
            if self._fit(i, [*moved, *self.parts[i]], own, space):
                self.parts[k], self.spaces[k] = [], None
                for readers in self.readers.values():
                    readers.discard(k)
                self._note(i, moved)

    def finished(self, i: int, outputs: set[Var]) -> list[Region | Equation]:
        """A part as a region, if it is one."""
        equations, space = self.parts[i], self.spaces[i]
        if space is None:
            return list(equations)
        roles = self._roles(equations, space)
        assert roles is not None
        made = {e.output for e in equations}
        totals = tuple(e.output for e in equations if roles[e.output] == "total")
        read = tuple(dict.fromkeys(v for e in equations for v in e.vars if v not in made))
        writes = tuple(
            e.output
            for e in equations
            if roles[e.output] != "total" and (e.output in outputs or self.readers.get(e.output, set()) - {i})
        )
        return [Region(tuple(equations), space, roles, read, writes, totals)]
