"""Passes: small functions from Graph to Graph. Each does one thing, and the result computes the same.

``simplify`` runs them in their order. A pass that rewrites one equation at a time is a rule for ``rewrite``.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from typing import Any

from tinyseq.array_api import full_key
from tinyseq.graph import Equation, Graph, Operand, Var, constant_key
from tinyseq.primitives import TABLE, Primitive

# Operations on corresponding elements.
ARITHMETIC = frozenset((
    "neg", "abs", "sign", "floor", "round", "relu", "clip", "cast", "copy", "add", "sub", "mul", "where", "maximum", "minimum",
    "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "logical_not", "isfinite", "isnan",
))  # fmt: skip
ELEMENTWISE = ARITHMETIC | frozenset((
    "exp", "expm1", "log", "log1p", "sqrt", "tanh", "sigmoid", "erf", "sin", "cos", "div", "power", "remainder", "floor_divide",
))  # fmt: skip

__all__ = [
    "ARITHMETIC",
    "ELEMENTWISE",
    "common_subexpressions",
    "dead_code",
    "factor_sums",
    "fold",
    "join_slices",
    "merge_products",
    "narrow",
    "rewrite",
    "simplify",
    "split_columns",
    "split_products",
    "split_sums",
]

Emit = Callable[..., Var]
Rule = Callable[[Equation, Emit], Operand | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """The graph with each equation that ``rule`` knows better replaced.

    ``rule(equation, emit)`` sees an equation whose inputs are already rewritten. It returns what stands for the
    output (after it has emitted new equations by ``emit(primitive name, *inputs, **params)``), or None to keep it.
    """
    stands_for: dict[Var, Operand] = {}
    equations: list[Equation] = []

    def emit(name: str, *inputs: Operand, **params: Any) -> Var:
        return _emit(equations, TABLE[name], inputs, params)

    def now(x: Operand) -> Operand:
        return stands_for.get(x, x) if isinstance(x, Var) else x

    for equation in graph.equations:
        current = equation.with_inputs([now(x) for x in equation.inputs])
        better = rule(current, emit)
        if better is None:
            equations.append(current)
        else:
            stands_for[equation.output] = better
    return Graph(graph.inputs, tuple(equations), tuple(now(x) for x in graph.outputs), graph.closed)


def _emit(equations: list[Equation], primitive: Primitive, inputs: Sequence[Operand], params: dict[str, Any]) -> Var:
    shape, dtype = primitive.shape(*inputs, **params)
    output = Var(tuple(shape), dtype)
    equations.append(Equation(primitive, tuple(inputs), params, output))
    return output


def dead_code(graph: Graph) -> Graph:
    """Without the equations that no output needs."""
    needed = {x for x in graph.outputs if isinstance(x, Var)}
    kept = []
    for equation in reversed(graph.equations):
        if equation.output in needed:
            kept.append(equation)
            needed.update(equation.vars)
    return Graph(graph.inputs, tuple(reversed(kept)), graph.outputs, graph.closed)


def common_subexpressions(graph: Graph) -> Graph:
    """The same operation on the same inputs happens once."""
    seen: dict[Any, Var] = {}

    def rule(e: Equation, emit: Emit) -> Operand | None:
        operands = tuple(x if isinstance(x, Var) else constant_key(x) for x in e.inputs)
        key = (e.primitive.name, operands, constant_key(e.params))
        if key in seen:
            return seen[key]
        seen[key] = e.output
        return None

    return rewrite(graph, rule)


def _neutral(name: str, x: Operand, dtype: Any) -> bool:
    """Whether the number on the right of the operation changes nothing, not even the sign of a zero: -0.0 + 0 is 0.0."""
    if isinstance(x, Var | bool):
        return False
    if name in ("mul", "div", "power"):
        return x == 1
    negative = math.copysign(1, x) < 0
    return x == 0 and (dtype.kind != "f" or (name == "add" and negative) or (name == "sub" and not negative))


def fold(graph: Graph) -> Graph:
    """Without operations that change nothing: a * 1, a - 0, a reshape to the same shape, a cast to the same dtype.

    a * 0 stays, since it is not 0 for a NaN or an infinity, and so does a + 0 in floats, since it is 0.0 for -0.0.
    """
    made: dict[Var, Equation] = {}

    def rule(e: Equation, emit: Emit) -> Operand | None:
        name, first, out = e.primitive.name, e.inputs[0], e.output
        made[out] = e

        def same(x: Operand) -> bool:
            return isinstance(x, Var) and (x.shape, x.dtype) == (out.shape, out.dtype)

        if name in ("reshape", "broadcast_to", "cast", "copy", "detach", "concatenate") and len(e.inputs) == 1 and same(first):
            return first
        if name in ("mul", "div", "power", "add", "sub") and same(first) and _neutral(name, e.inputs[1], out.dtype):
            return first
        if name in ("mul", "add") and same(e.inputs[1]) and _neutral(name, first, out.dtype):
            return e.inputs[1]
        if name == "concatenate":
            return _flattened(e, made, emit)
        if name in ELEMENTWISE and len(e.inputs) > 1:
            return _unstretched(e, made, emit)
        if name in ("getitem", "scatter_add") and len(e.inputs) == 1:
            return _plain_columns(e, made, emit)
        inner = made.get(first) if isinstance(first, Var) else None
        if inner is not None and name == inner.primitive.name:
            if name == "neg":
                return inner.inputs[0]
            if name == "reshape":
                source = inner.inputs[0]
                return source if same(source) else _noted(made, emit, "reshape", source, shape=e.params["shape"])
            if name == "permute" and e.params["axes"] == inner.params["axes"] == (-1, -2):
                return inner.inputs[0]
        if name == "permute" and e.params["axes"] == (-1, -2) and len(out.shape) > 2 and 1 in out.shape[-2:]:
            return _noted(made, emit, "reshape", first, shape=out.shape)  # of two axes it stays: a product looks for it
        return None

    return rewrite(graph, rule)


def _plain_columns(e: Equation, made: dict[Var, Equation], emit: Emit) -> Operand | None:
    """Columns written in one way, ``x[..., a:b]``, however they were asked for: by a negative bound, or a single one.

    The same holds for the scatter that is the gradient; what picks everything is a reshape.
    """
    (x,), key, name, out = e.inputs, e.params["key"], e.primitive.name, e.output
    whole = x if name == "getitem" else out
    assert isinstance(x, Var)
    assert isinstance(whole, Var)
    forward = all(type(k) is int or k is None or k is Ellipsis or (isinstance(k, slice) and k.step in (None, 1)) for k in key)
    if forward and math.prod(x.shape) == math.prod(out.shape):
        return x if x.shape == out.shape else _noted(made, emit, "reshape", x, shape=out.shape)
    if key and type(key[-1]) is int and len(key) in (len(whole.shape), 1 + (Ellipsis in key)):
        at = key[-1] % whole.shape[-1]  # one column, without its axis
        columns = (*key[:-1], slice(at, at + 1))
        if _span(columns, whole.shape) is None:
            return None
        if name == "getitem":
            part = _noted(made, emit, "getitem", x, key=(Ellipsis, columns[-1]))
            return _noted(made, emit, "reshape", part, shape=out.shape)
        part = _noted(made, emit, "reshape", x, shape=(*x.shape, 1))
        return _noted(made, emit, "scatter_add", part, key=(Ellipsis, columns[-1]), shape=out.shape)
    span = _span(key, whole.shape)
    if span is None or (name == "scatter_add" and x.shape != (*out.shape[:-1], span[1] - span[0])):
        return None
    plain = (Ellipsis, slice(*span))
    if constant_key(key) == constant_key(plain):
        return None
    return _noted(made, emit, name, x, **{**e.params, "key": plain})


def _unstretched(e: Equation, made: dict[Var, Equation], emit: Emit) -> Operand | None:
    """Without the stretching of an operand that another one brings about anyway."""
    inputs = list(e.inputs)
    for i, x in enumerate(inputs):
        source = made.get(x) if isinstance(x, Var) else None
        if source is not None and source.primitive.name == "broadcast_to":
            others = [y.shape for j, y in enumerate(inputs) if j != i and isinstance(y, Var)]
            if e.output.shape in others:
                inputs[i] = source.inputs[0]
    return None if inputs == list(e.inputs) else _noted(made, emit, e.primitive.name, *inputs, **e.params)


def _noted(made: dict[Var, Equation], emit: Emit, name: str, *inputs: Operand, **params: Any) -> Var:
    """Emit an equation that later ones can look through."""
    output = emit(name, *inputs, **params)
    made[output] = Equation(TABLE[name], inputs, params, output)
    return output


def _flattened(e: Equation, made: dict[Var, Equation], emit: Emit) -> Operand | None:
    """What was put together from parts that were put together before, from all parts at once."""
    parts: list[Operand] = []
    for x in e.inputs:
        inner = made.get(x) if isinstance(x, Var) else None
        joined = inner is not None and inner.primitive.name == "concatenate" and inner.params["axis"] == e.params["axis"]
        parts += inner.inputs if inner is not None and joined else [x]
    if len(parts) == len(e.inputs):
        return None
    sizes = tuple(x.shape[e.params["axis"]] for x in parts if isinstance(x, Var))
    return _noted(made, emit, "concatenate", *parts, axis=e.params["axis"], sizes=sizes)


def _columns(e: Equation | None, name: str) -> tuple[int, int] | None:
    """Which columns of the last axis a getitem reads or a scatter_add writes, if it is nothing but that."""
    if e is None or e.primitive.name != name or len(e.inputs) != 1:
        return None
    whole = e.inputs[0] if name == "getitem" else e.output
    assert isinstance(whole, Var)
    return _span(e.params["key"], whole.shape)


def _span(key: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The columns of the last axis that a key picks, if it picks nothing else."""
    *rows, columns = full_key(key, shape) or (None,)
    sizes = shape[:-1]
    if len(rows) != len(sizes) or not all(_everything(row, size) for row, size in zip(rows, sizes, strict=True)):
        return None
    if not isinstance(columns, slice) or columns.step not in (None, 1):
        return None
    start, stop, _ = columns.indices(shape[-1])
    return start, stop


def _everything(entry: Any, size: int) -> bool:
    return isinstance(entry, slice) and entry.indices(size) == (0, size, 1)


def join_slices(graph: Graph) -> Graph:
    """A sum of pieces, each put into columns of its own, is the pieces side by side.

    Such sums are the gradient of a split: z[:, :H], z[:, H:2H] ... each give zeros but for their columns.
    """
    made: dict[Var, Equation] = {}

    def pieces(x: Operand, shape: tuple[int, ...]) -> dict[tuple[int, int], Operand] | None:
        e = made.get(x) if isinstance(x, Var) else None
        if e is None or e.output.shape != shape:
            return None
        span = _columns(e, "scatter_add")
        if span is not None:
            piece = e.inputs[0]
            exact = isinstance(piece, Var) and piece.shape == (*shape[:-1], span[1] - span[0])
            return {span: piece} if exact else None
        if e.primitive.name != "add" or e.inputs[0] is e.inputs[1]:
            return None
        left, right = (pieces(side, shape) for side in e.inputs)
        if left is None or right is None:
            return None
        spans = sorted([*left, *right])
        if any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
            return None
        return {**left, **right}

    def rule(e: Equation, emit: Emit) -> Operand | None:
        made[e.output] = e
        found = pieces(e.output, e.output.shape) if e.primitive.name == "add" else None
        if not found:
            return None
        spans = sorted(found)
        edges = [0, *(edge for span in spans for edge in span), e.output.shape[-1]]
        if any(edges[i] != edges[i + 1] for i in range(0, len(edges), 2)):
            return None  # a gap would have to be filled with zeros
        sizes = tuple(stop - start for start, stop in spans)
        return emit("concatenate", *(found[span] for span in spans), axis=-1, sizes=sizes)

    return dead_code(rewrite(graph, rule))


def narrow(graph: Graph) -> Graph:
    """Elementwise work on columns that are cut apart, or were put together, is done on each part by itself.

    ``sigmoid(z)[:, :H]`` is ``sigmoid(z[:, :H])``, and ``concatenate(a, b) * c`` is ``a * c[:, :H]`` beside
    ``b * c[:, H:]``: so all the gates of a cell go through one pass over H columns, in registers.
    """
    made: dict[Var, Equation] = {}
    cut: dict[tuple[Var, int, int], Var] = {}

    def rule(e: Equation, emit: Emit) -> Operand | None:
        name, out = e.primitive.name, e.output

        emitted = partial(_noted, made, emit)

        def columns(x: Operand, start: int, stop: int, width: int) -> Operand:
            """The columns of an operand; a number or a single column is its own."""
            if not isinstance(x, Var) or not x.shape or x.shape[-1] != width or (start, stop) == (0, width):
                return x
            if (x, start, stop) not in cut:
                cut[x, start, stop] = cut_out(x, start, stop, width)
            return cut[x, start, stop]

        def cut_out(x: Var, start: int, stop: int, width: int) -> Var:
            source = made.get(x)
            if source is not None:
                kind = source.primitive.name
                if kind in ELEMENTWISE:
                    inputs = [columns(y, start, stop, width) for y in source.inputs]
                    return emitted(kind, *inputs, **source.params)
                if kind == "concatenate" and source.params["axis"] == -1:
                    at = 0
                    for piece, size in zip(source.inputs, source.params["sizes"], strict=True):
                        if at <= start and stop <= at + size:
                            part = columns(piece, start - at, stop - at, size)
                            assert isinstance(part, Var)
                            return part
                        at += size
                if kind == "broadcast_to":
                    inner = source.inputs[0]
                    assert isinstance(inner, Var)
                    shape = (*x.shape[:-1], stop - start)
                    return emitted("broadcast_to", columns(inner, start, stop, width), shape=shape)
                span = _columns(source, "getitem")
                if span is not None:
                    inner = source.inputs[0]
                    return emitted("getitem", inner, key=(Ellipsis, slice(span[0] + start, span[0] + stop)))
            return emitted("getitem", x, key=(Ellipsis, slice(start, stop)))

        made[out] = e
        span = _columns(e, "getitem")
        if span is not None:
            source = e.inputs[0]
            assert isinstance(source, Var)
            if source in made and made[source].primitive.name in (*ELEMENTWISE, "concatenate", "broadcast_to"):
                return columns(source, *span, source.shape[-1])
            return None
        if name in ELEMENTWISE and out.shape and out.shape[-1] > 1:
            joined = next((made[x] for x in e.vars if x in made and _joins_columns(made[x], out.shape[-1])), None)
            if joined is not None:
                parts, start = [], 0
                for size in joined.params["sizes"]:
                    inputs = [columns(x, start, start + size, out.shape[-1]) for x in e.inputs]
                    parts.append(emitted(name, *inputs, **e.params))
                    start += size
                return emitted("concatenate", *parts, axis=-1, sizes=joined.params["sizes"])
        return None

    return dead_code(rewrite(graph, rule))


def _joins_columns(e: Equation, width: int) -> bool:
    return (
        e.primitive.name == "concatenate"
        and e.params["axis"] == -1
        and e.output.shape[-1] == width
        and sum(map(bool, e.params["sizes"])) > 1
    )


def split_sums(graph: Graph) -> Graph:
    """A sum over columns that were put together is the sum of each part's: nobody has to put them together for it."""
    made: dict[Var, Equation] = {}

    def rule(e: Equation, emit: Emit) -> Operand | None:
        made[e.output] = e
        whole = made.get(e.inputs[0]) if isinstance(e.inputs[0], Var) else None
        if whole is None or e.primitive.name != "sum" or e.params["axis"] != (-1,):
            return None
        if not _joins_columns(whole, whole.output.shape[-1]):
            return None
        return reduce(partial(emit, "add"), [emit("sum", part, **e.params) for part in whole.inputs])

    return dead_code(rewrite(graph, rule))


def factor_sums(graph: Graph) -> Graph:
    """What all numbers of a row are multiplied by waits for the row's sum: ``sum(-x / c)`` is ``-sum(x) / c``.

    And a term that is added twice (the gradient of ``x * x``) is doubled where it has one number a row:
    ``(a + r * x) + r * x`` is ``a + (2 * r) * x``.
    """
    made: dict[Var, Equation] = {}
    uses = Counter(v for e in graph.equations for v in e.vars)
    uses.update(v for v in graph.outputs if isinstance(v, Var))

    def row(x: Operand, shape: tuple[int, ...]) -> bool:
        return isinstance(x, Var) and len(x.shape) == len(shape) and x.shape[-1] == 1 != shape[-1]

    def peeled(x: Operand, keepdims: bool) -> tuple[Operand, Equation, int] | None:
        """Without its last factor: what is left, the operation, and which of its inputs that is."""
        e = made.get(x) if isinstance(x, Var) and uses[x] == 1 else None
        if e is None or e.primitive.name not in ("neg", "mul", "div"):
            return None
        for place in (0,) if e.primitive.name != "mul" else (0, 1):
            rest = e.inputs[place]
            others = [y for i, y in enumerate(e.inputs) if i != place]
            known = isinstance(rest, Var) and (rest.shape, rest.dtype) == (e.output.shape, e.output.dtype)
            if known and all(not isinstance(y, Var | bool) or (keepdims and row(y, e.output.shape)) for y in others):
                return rest, e, place
        return None

    def rule(e: Equation, emit: Emit) -> Operand | None:
        made[e.output] = e
        if e.output.dtype.kind != "f":
            return None
        if e.primitive.name == "sum" and e.params["axis"] == (-1,):
            core = e.inputs[0]
            factors: list[tuple[Equation, int]] = []
            while found := peeled(core, e.params["keepdims"]):
                core, *_ = found
                factors.append(found[1:])
            if not factors:
                return None
            total: Var = emit("sum", core, **e.params)
            for by, place in reversed(factors):
                total = emit(by.primitive.name, *[total if i == place else y for i, y in enumerate(by.inputs)])
            return total
        if e.primitive.name == "add":
            if not all(isinstance(x, Var) for x in e.inputs):
                return None
            first, term = e.vars
            inner, product = (made.get(first), made.get(term))
            if inner is None or inner.primitive.name != "add" or inner.inputs[1] is not term or inner.inputs[0] is term:
                return None
            if uses[first] == 1 and uses[term] == 2 and product is not None and product.primitive.name == "mul":
                factor, x = product.inputs if row(product.inputs[0], e.output.shape) else product.inputs[::-1]
                if row(factor, e.output.shape):
                    return emit("add", inner.inputs[0], emit("mul", emit("mul", factor, 2), x))
        return None

    return dead_code(rewrite(graph, rule))


def split_products(graph: Graph) -> Graph:
    """``concatenate(a, b) @ W`` is ``a @ W[:n] + b @ W[n:]``: as the textbooks write a cell, as fast as the other way."""
    parts: dict[Operand, list[tuple[Operand, int]]] = {}  # of what was put together, with the columns of each

    def rule(e: Equation, emit: Emit) -> Operand | None:
        if e.primitive.name == "concatenate" and e.params["axis"] == -1:
            pairs = zip(e.inputs, e.params["sizes"], strict=True)
            parts[e.output] = [part for x, size in pairs for part in parts.get(x, [(x, size)])]
        if e.primitive.name != "matmul":
            return None
        left, right = e.inputs
        if left not in parts or not isinstance(right, Var) or len(right.shape) != 2:
            return None
        total: Var | None = None
        start = 0
        for part, size in parts[left]:
            rows = emit("getitem", right, key=(Ellipsis, slice(start, start + size), slice(None)))
            product = emit("matmul", part, rows)
            total = product if total is None else emit("add", total, product)
            start += size
        return total

    return dead_code(rewrite(graph, rule))


def split_columns(graph: Graph, carried: Iterable[Operand]) -> Graph:
    """A product some of whose columns the next step waits for, and others not, as two: only the first is in the loop.

    The gradient of ``concatenate(h, x) @ W`` is such a product: ``dz @ W.T``, whose columns are those of h and of x.
    """
    graph = dead_code(graph)  # what nobody reads does not hold a product together
    users: dict[Var, list[Equation]] = {}
    for e in graph.equations:
        for v in e.vars:
            users.setdefault(v, []).append(e)
    waited = {v for v in carried if isinstance(v, Var)}
    for e in reversed(graph.equations):
        if e.output in waited:
            waited.update(e.vars)
    asked = {v for v in graph.outputs if isinstance(v, Var)}
    made = {e.output: e for e in graph.equations}

    def apart(x: Operand) -> bool:
        e = made.get(x) if isinstance(x, Var) else None
        if e is None or e.primitive.name != "matmul" or e.output in asked:
            return False
        cuts = users[e.output]
        right = e.inputs[1]
        plain = isinstance(right, Var) and len(right.shape) == 2 and all(_columns(cut, "getitem") for cut in cuts)
        return plain and len({cut.output in waited for cut in cuts}) == 2

    now: dict[Operand, Equation] = {}  # with inputs already rewritten

    def rule(e: Equation, emit: Emit) -> Operand | None:
        now[e.output] = e
        if e.primitive.name != "getitem" or not apart(e.inputs[0]):
            return None
        left, right = now[e.inputs[0]].inputs
        return emit("matmul", left, emit("getitem", right, key=e.params["key"]))

    return dead_code(rewrite(graph, rule))


def merge_products(graph: Graph) -> Graph:
    """``a @ V`` and ``a @ W`` become columns of ``a @ concatenate(V, W)``, where V and W are known before the loop."""
    fixed: set[Var] = set(graph.closed)
    for e in graph.equations:
        if all(v in fixed for v in e.vars):
            fixed.add(e.output)
    groups: dict[Var, list[Equation]] = {}
    for e in graph.equations:
        if e.primitive.name == "matmul":
            left, right = e.inputs
            if isinstance(left, Var) and left not in fixed and right in fixed and len(right.shape) == 2:
                groups.setdefault(left, []).append(e)
    member = {e.output: group for group in groups.values() if len(group) > 1 for e in group}
    if not member:
        return graph
    # The joint product stands where the last weight is known; weights depend on nothing in the loop, so they go first.
    outside = [e for e in graph.equations if e.output in fixed]
    inside = [e for e in graph.equations if e.output not in fixed]
    columns: dict[int, tuple[Var, dict[Var, tuple[int, int]]]] = {}

    def rule(e: Equation, emit: Emit) -> Operand | None:
        group = member.get(e.output)
        if group is None:
            return None
        if id(group) not in columns:
            weights = [member_equation.inputs[1] for member_equation in group]
            sizes = tuple(w.shape[-1] for w in weights)  # type: ignore[union-attr]
            spans, start = {}, 0
            for member_equation, size in zip(group, sizes, strict=True):
                spans[member_equation.output] = (start, start + size)
                start += size
            joint = emit("matmul", e.inputs[0], emit("concatenate", *weights, axis=-1, sizes=sizes))
            columns[id(group)] = (joint, spans)
        joint, spans = columns[id(group)]
        return emit("getitem", joint, key=(Ellipsis, slice(*spans[e.output])))

    return rewrite(Graph(graph.inputs, (*outside, *inside), graph.outputs, graph.closed), rule)


SIMPLIFY = (
    dead_code,
    split_products,
    fold,
    common_subexpressions,
    factor_sums,
    join_slices,
    narrow,
    split_sums,
    common_subexpressions,
    fold,
    dead_code,
)


def simplify(graph: Graph, one_pass: bool = True) -> Graph:
    """All passes that hold whatever the graph is for, in order; the graph is checked after each.

    Args:
        graph: what is computed.
        one_pass: whether elementwise work will be one pass over memory. Where each operation is one, it stays as wide as it
            was written: a cut would make several operations of one.
    """
    for one in SIMPLIFY:
        if one_pass or one not in (narrow, split_sums):
            graph = one(graph).check()
    return graph
