"""Nested containers of leaves: tuples, named tuples, lists, dicts and None, taken apart and put together again.

Everything that is not one of these containers is a leaf, and so is an instance of a subclass of one (apart from named
tuples and ``OrderedDict``), because only its author knows how to build it. None is a container of nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tinyseq.errors import ShapeError

__all__ = ["TreeDef", "flatten", "leaf_paths", "tree_map"]

IsLeaf = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class TreeDef:
    """The structure of a tree without its leaves.

    Two structures are equal where their containers have the same types and keys; the order in which a dict's keys
    were inserted does not matter. Structures are hashable when their dict keys are, which they always are.

    >>> leaves, structure = flatten({"h": 1, "c": [2, None]})
    >>> leaves, structure
    ([2, 1], TreeDef({'c': [*, None], 'h': *}))
    >>> structure.unflatten("xy")
    {'h': 'y', 'c': ['x', None]}
    """

    kind: Any  # the container's type; None for a leaf
    keys: tuple[Any, ...] = ()  # of the children, in the order of the leaves
    children: tuple[TreeDef, ...] = ()
    insertion: tuple[Any, ...] = field(default=(), compare=False)  # a dict's keys as its author ordered them
    num_leaves: int = field(default=1, compare=False)

    def unflatten(self, leaves: Iterable[Any]) -> Any:
        """Build the tree that has this structure and these leaves.

        Raises ShapeError if the number of leaves is not ``num_leaves``.

        >>> flatten((1, {"a": 2}))[1].unflatten([10, 20])
        (10, {'a': 20})
        """
        leaves = list(leaves)
        if len(leaves) != self.num_leaves:
            raise ShapeError(f"{self} takes {self.num_leaves} leaves, but {len(leaves)} were given")
        return self._build(iter(leaves))

    def paths(self) -> list[str]:
        """Return a dotted name for each leaf, in order; the name of a tree that is itself a leaf is empty.

        >>> flatten({"cell": (1, 2), "bias": 3})[1].paths()
        ['bias', 'cell.0', 'cell.1']
        """
        return [".".join(map(str, path)) for path in self._paths(())]

    def mismatch(self, other: TreeDef) -> str | None:
        """Say where and how ``other`` first differs from this structure; None if it does not.

        >>> flatten({"h": (1, 2)})[1].mismatch(flatten({"h": [1, 2]})[1])
        "at 'h' the one has (*, *) and the other [*, *]"
        """
        return self._mismatch(other, ())

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind is None:
            return next(leaves)
        if self.kind is type(None):
            return None
        values = [child._build(leaves) for child in self.children]
        if issubclass(self.kind, dict):
            by_key = dict(zip(self.keys, values, strict=True))
            return self.kind((key, by_key[key]) for key in self.insertion)
        return self.kind._make(values) if _is_namedtuple(self.kind) else self.kind(values)

    def _paths(self, prefix: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        if self.kind is None:
            yield prefix
        for key, child in zip(self.keys, self.children, strict=True):
            yield from child._paths((*prefix, key))

    def _mismatch(self, other: TreeDef, path: tuple[Any, ...]) -> str | None:
        if self == other:
            return None
        if self.kind is other.kind and self.keys == other.keys:
            pairs = zip(self.keys, self.children, other.children, strict=True)
            return next(found for key, a, b in pairs if (found := a._mismatch(b, (*path, key))))
        where = f"at '{'.'.join(map(str, path))}'" if path else "at the top"
        return f"{where} the one has {self._text()} and the other {other._text()}"

    def _text(self) -> str:
        if self.kind is None:
            return "*"
        if self.kind is type(None):
            return "None"
        texts = [child._text() for child in self.children]
        if self.kind is tuple:
            return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"
        if self.kind is list:
            return f"[{', '.join(texts)}]"
        if issubclass(self.kind, dict):
            body = "{" + ", ".join(f"{key!r}: {text}" for key, text in zip(self.keys, texts, strict=True)) + "}"
            return body if self.kind is dict else f"{self.kind.__name__}({body})"
        fields = (f"{key}={text}" for key, text in zip(self.keys, texts, strict=True))
        return f"{self.kind.__name__}({', '.join(fields)})"

    def __repr__(self) -> str:
        return f"TreeDef({self._text()})"


_LEAF = TreeDef(None)
_NONE = TreeDef(type(None), num_leaves=0)


def flatten(tree: Any, is_leaf: IsLeaf | None = None) -> tuple[list[Any], TreeDef]:
    """Return the leaves of ``tree``, from left to right, and its structure.

    A dict's leaves come in the order of its sorted keys, so that two dicts with the same keys flatten alike however
    they were built. ``is_leaf(subtree)`` may end the descent early, at any container including None.

    >>> flatten([1, (2, None), {"b": 4, "a": 3}])
    ([1, 2, 3, 4], TreeDef([*, (*, None), {'a': *, 'b': *}]))
    >>> flatten([1, (2, 3)], is_leaf=lambda t: isinstance(t, tuple))
    ([1, (2, 3)], TreeDef([*, *]))
    """
    leaves: list[Any] = []
    return leaves, _flatten(tree, is_leaf, leaves)


def tree_map(f: Callable[..., Any], *trees: Any, is_leaf: IsLeaf | None = None) -> Any:
    """Apply ``f`` to the leaves of one tree, or to the corresponding leaves of several trees of one structure.

    Raises ShapeError, with the path to the first difference, if the structures differ.

    >>> tree_map(lambda x, y: x + y, {"h": 1, "c": (2, 3)}, {"c": (20, 30), "h": 10})
    {'h': 11, 'c': (22, 33)}
    >>> tree_map(max, [1, (2, 3)], [1, 2])
    Traceback (most recent call last):
    ...
    tinyseq.errors.ShapeError: tree_map: trees 1 and 2 differ in structure: at '1' the one has (*, *) and the other *
    """
    if not trees:
        raise TypeError("tree_map takes a function and at least one tree")
    first, structure = flatten(trees[0], is_leaf)
    columns = [first]
    for number, tree in enumerate(trees[1:], start=2):
        leaves, other = flatten(tree, is_leaf)
        if difference := structure.mismatch(other):
            raise ShapeError(f"tree_map: trees 1 and {number} differ in structure: {difference}")
        columns.append(leaves)
    return structure.unflatten([f(*row) for row in zip(*columns, strict=True)])


def leaf_paths(tree: Any, is_leaf: IsLeaf | None = None) -> list[str]:
    """Return a dotted name for each leaf of ``tree``, in the order of ``flatten``.

    >>> leaf_paths({"layers": [{"w": 1, "b": 2}, {"w": 3}], "scale": 4})
    ['layers.0.b', 'layers.0.w', 'layers.1.w', 'scale']
    """
    return flatten(tree, is_leaf)[1].paths()


def _flatten(tree: Any, is_leaf: IsLeaf | None, leaves: list[Any]) -> TreeDef:
    kind = type(tree)
    if is_leaf is not None and is_leaf(tree):
        leaves.append(tree)
        return _LEAF
    if kind is tuple or kind is list:
        keys: tuple[Any, ...] = tuple(range(len(tree)))
        values = tree
    elif kind is dict or kind is OrderedDict:
        keys = _leaf_order(tree)
        values = [tree[key] for key in keys]
    elif tree is None:
        return _NONE
    elif _is_namedtuple(kind):
        keys, values = tree._fields, tree
    else:
        leaves.append(tree)
        return _LEAF
    before = len(leaves)
    children = tuple(_flatten(value, is_leaf, leaves) for value in values)
    insertion = tuple(tree) if isinstance(tree, dict) else ()
    return TreeDef(kind, keys, children, insertion, len(leaves) - before)


def _leaf_order(tree: dict[Any, Any]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(tree))
    except TypeError:  # keys of several types have no order among them
        return tuple(sorted(tree, key=lambda key: (type(key).__qualname__, repr(key))))


def _is_namedtuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
