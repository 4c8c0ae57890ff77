"""The tape: what an operation leaves behind, and the walk back over it. It knows no primitive.

Recording knows nothing of gradients either: a ``Node`` says which primitive ran on which nodes, and keeps the arrays
that the primitive's VJP named. Backward, pictures, profiler and compiler all read this one record.

Nodes point at their parents and never at Tensors, so the graph has no cycles: dropping the loss frees it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tinyseq import mode
from tinyseq.errors import GraphError, ShapeError
from tinyseq.mode import Scope

if TYPE_CHECKING:
    from tinyseq.primitives import Primitive

__all__ = ["Leaf", "Node", "Part", "Place", "Scatter", "ancestors", "enable_grad", "no_grad", "walk"]

Array = Any
Hook = Callable[[Any], Any]
next_serial = count().__next__


class Leaf:
    """The node of a tensor that asks for a gradient; ``backward`` leaves the gradient here."""

    __slots__ = ("dtype", "grad", "hooks", "name", "serial", "shape")
    parents: tuple[()] = ()

    def __init__(self, shape: tuple[int, ...], dtype: Any, name: str | None = None) -> None:
        self.serial = next_serial()
        self.shape = shape
        self.dtype = dtype
        self.name = name
        self.grad: Any = None
        self.hooks: dict[int, Hook] | None = None

    def __repr__(self) -> str:
        return f"<leaf {self.name or ''}{self.shape}>"


class Node:
    """One application of a primitive.

    Attributes:
        serial: a number that grows with time; parents have smaller ones, so it is a topological order.
        primitive: the row of the table.
        parents: for each input its Node or Leaf, or None for a constant.
        inputs: the input arrays that the VJP named, None for the others; None altogether once freed.
        output: the output array if the VJP named it.
        params: the metadata.
        shape, dtype: the output's.
        scope: where in the program this was (a step of a scan, a module), or None.
        extra: hooks, a retained gradient, the line that called: a dict, or None for nearly all nodes.
    """

    __slots__ = ("dtype", "extra", "inputs", "output", "params", "parents", "primitive", "pull", "scope", "serial", "shape")

    def __init__(
        self,
        primitive: Primitive,
        parents: tuple[Place | None, ...],
        inputs: tuple[Array, ...] | None,
        output: Array,
        params: dict[str, Any],
        shape: tuple[int, ...],
        dtype: Any,
        scope: Scope | None,
        pull: Any = None,
    ) -> None:
        self.serial = next_serial()
        self.primitive = primitive
        self.parents = parents
        self.inputs = inputs
        self.output = output
        self.params = params
        self.shape = shape
        self.dtype = dtype
        self.scope = scope
        self.extra: dict[str, Any] | None = None
        if pull is None:
            mask = sum(1 << i for i, parent in enumerate(parents) if parent is not None)
            pull = primitive.plan(mask | 1 << len(parents))[2]
        self.pull = pull

    def __repr__(self) -> str:
        return f"<node {self.serial}: {self.primitive.name} {self.shape}>"


Place = Node | Leaf
_serial = attrgetter("serial")


def no_grad() -> Any:
    """Inside this ``with`` block operations are not recorded.

    >>> import tinyseq as ts
    >>> x = ts.tensor([1.0], requires_grad=True)
    >>> with ts.no_grad():
    ...     y = x * 2
    >>> y.requires_grad
    False
    """
    return mode.changed(recording=False)


def enable_grad() -> Any:
    """Inside this ``with`` block operations are recorded, also within a ``no_grad`` block."""
    return mode.changed(recording=True)


def ancestors(places: Iterable[Place], stop: Collection[Place] = ()) -> list[Place]:
    """The given places and all that they were computed from, oldest first; does not look behind those in ``stop``."""
    seen = set(places)
    stack = list(seen)
    while stack:
        place = stack.pop()
        if place in stop:
            continue
        for parent in place.parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(seen, key=_serial)


class Scatter:
    """A cotangent that is zero except where a key points: added into a buffer in place, never spread out on its own.

    Without it a loop over ``x[t]`` would fill T arrays of T steps in its backward pass.
    """

    __slots__ = ("indices", "key", "target", "values")
    shape = None  # not an array yet

    def __init__(self, values: Array, *indices: Array, key: tuple[Any, ...], shape: tuple[int, ...]) -> None:
        self.values = values
        self.indices = indices
        self.key = key
        self.target = shape

    def dense(self, F: Any) -> Array:
        """The whole array."""
        return F.dense_scatter(self.values, *self.indices, key=self.key, shape=self.target)

    def add_to(self, F: Any, total: Array) -> Array:
        """``total``, which the walk owns, with this added."""
        return F.scatter_add_into(total, self.values, *self.indices, key=self.key)


class Part:
    """The cotangent of one of several outputs: an operation with many outputs gets a list, None where none arrived."""

    __slots__ = ("count", "index", "value")
    shape = None  # not an array

    def __init__(self, value: Array, index: int, count: int) -> None:
        self.value = value
        self.index = index
        self.count = count


def walk(
    F: Any,
    outputs: Iterable[tuple[Place, Array]],
    wrt: Collection[Place] | None = None,
    *,
    retain: bool = False,
    deposit: Callable[[Place, Array], None] | None = None,
) -> dict[Place, Array]:
    """Walk back from outputs, each with its cotangent, and return the cotangent of each place in ``wrt``.

    Args:
        F: the operations to run VJPs with: a backend's on raw arrays, or the recorded ones on Tensors. Besides the table
            it has ``view`` (a node as the rules see it, or None for the node itself), ``add_owned`` and ``owns_sums``.
        outputs: where to start, each with a cotangent of its shape.
        wrt: whose cotangents are wanted; the walk does not go behind them. None: every leaf that is reached.
        retain: keep the kept arrays, so that the graph can be walked again.
        deposit: called with a node and its cotangent when a node with ``retain_grad`` is passed.

    Raises:
        GraphError: the graph was freed by an earlier walk.
        ShapeError: a VJP returned a cotangent of a shape that its argument does not broadcast to.
    """
    outputs = list(outputs)
    needed = None if wrt is None else _leading_to(ancestors((place for place, _ in outputs), wrt), wrt)
    # The places that have a cotangent, newest on top: all that could add to it have larger serials, so it is complete.
    heap: list[tuple[int, Place]] = []
    cotangents: dict[Place, Array] = {}
    owned: set[Place] = set()  # whose cotangent is a sum made here, which may be added to in place
    observer = mode.current().observer
    found: dict[Place, Array] = {}
    get, add_owned, owns_sums, view = cotangents.get, F.add_owned, F.owns_sums, F.view

    def add(place: Place, part: Array) -> None:
        total = get(place)
        if total is None:
            heappush(heap, (-place.serial, place))
        kind = type(part)
        if kind is Scatter:
            if place in owned:
                cotangents[place] = part.add_to(F, total)
            else:
                dense = part.dense(F)
                cotangents[place] = dense if total is None else add_owned(dense, total)
                owned.add(place)
        elif kind is Part:
            parts = cotangents.setdefault(place, [None] * part.count)
            have = parts[part.index]
            parts[part.index] = part.value if have is None else have + part.value
        else:
            if part.shape != place.shape:
                part = _unbroadcast(F, part, place.shape, place)
            if total is None:
                cotangents[place] = part
            elif place in owned:
                cotangents[place] = add_owned(total, part)
            else:
                cotangents[place] = total + part
                if owns_sums:
                    owned.add(place)

    for place, cotangent in outputs:
        add(place, cotangent)
    while heap:
        node = heappop(heap)[1]
        cotangent = cotangents.pop(node)
        if needed is not None and node not in needed:
            continue
        if isinstance(node, Leaf):
            if node.hooks:
                cotangent = _run_hooks(node.hooks, cotangent, F)
            found[node] = cotangent
            continue
        if node.extra:
            hooks = node.extra.get("hooks")
            if hooks:
                cotangent = _run_hooks(hooks, cotangent, F)
            if deposit is not None and "retain" in node.extra:
                deposit(node, cotangent)
        if wrt is not None and node in wrt:
            found[node] = cotangent
            continue
        if node.inputs is None:
            raise GraphError(
                f"this graph was walked before and its kept arrays are freed (at {node.primitive.name}, shape {node.shape}); "
                "pass retain_graph=True to the first backward(), or compute the loss again"
            )
        seen = node if view is None else view(node)
        if needed is None or node.primitive.joint:
            parts = node.pull(F, cotangent, seen)
        else:  # what is tracked may yet not be asked for
            parts = [
                pull(F, cotangent, seen) if pull and parent in needed else None
                for pull, parent in zip(node.primitive.pulls, node.parents)  # noqa: B905 (index arrays have no pull)
            ]
        if observer is not None:
            observer.pulled(node, cotangent, parts)
        for parent, part in zip(node.parents, parts):  # noqa: B905
            if part is None or parent is None or (needed is not None and parent not in needed):
                continue
            # The usual case, apart from what add() also knows: the first part, of the right shape.
            if parent not in cotangents and part.shape == parent.shape:
                cotangents[parent] = part
                heappush(heap, (-parent.serial, parent))
            else:
                add(parent, part)
        if not retain:
            node.inputs = node.output = None  # the structure stays, for those who look at it
    return found


def _leading_to(order: list[Place], wrt: Collection[Place]) -> set[Place]:
    """Those of ``order`` (oldest first) from which a place in ``wrt`` can be reached."""
    needed: set[Place] = set()
    for place in order:
        if place in wrt or not needed.isdisjoint(place.parents):
            needed.add(place)
    return needed


def _unbroadcast(F: Any, part: Array, shape: tuple[int, ...], place: Place) -> Array:
    """Sum a cotangent over the axes along which its argument was stretched."""
    axes, lead = _stretched(part.shape, shape)
    if axes is None:
        raise ShapeError(
            f"a VJP gave a cotangent of shape {part.shape} for an argument of shape {shape} ({place!r}); "
            "the rule of the operation that used it is wrong"
        )
    if lead == len(axes):
        return F.sum(part, axis=axes, keepdims=False)
    part = F.sum(part, axis=axes, keepdims=True)
    return F.reshape(part, shape=shape) if lead else part


@lru_cache(maxsize=4096)
def _stretched(have: tuple[int, ...], shape: tuple[int, ...]) -> tuple[tuple[int, ...] | None, int]:
    """The axes to sum over, None if ``shape`` does not broadcast to ``have``; and how many axes ``have`` has in front."""
    lead = len(have) - len(shape)
    if lead < 0 or any(a != b and b != 1 for a, b in zip(have[lead:], shape, strict=True)):
        return None, lead
    return tuple(i - len(have) for i, size in enumerate(have) if i < lead or size != shape[i - lead]), lead


def _run_hooks(hooks: dict[int, Hook], cotangent: Array, F: Any) -> Array:
    for hook in list(hooks.values()):
        replaced = F.call_hook(hook, cotangent)
        if replaced is not None:
            cotangent = replaced
    return cotangent
