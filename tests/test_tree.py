from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyseq.errors import ShapeError
from tinyseq.tree import TreeDef, flatten, leaf_paths, tree_map


class State(NamedTuple):
    h: Any
    c: Any = None


Point = namedtuple("Point", "x y")

KEYS = st.text("abc", min_size=1, max_size=2) | st.integers(0, 3)
TREES = st.recursive(
    st.integers() | st.none(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.builds(State, inner, inner)
    ),
    max_leaves=12,
)


@given(TREES)
def test_a_tree_comes_back_as_it_was(tree: Any) -> None:
    leaves, structure = flatten(tree)
    again = structure.unflatten(leaves)
    assert again == tree
    assert repr(again) == repr(tree)  # types and the order of dict keys too
    assert structure.num_leaves == len(leaves) == len(structure.paths())


@given(TREES)
def test_paths_lead_to_the_leaves(tree: Any) -> None:
    leaves, structure = flatten(tree)
    for leaf, path in zip(leaves, structure._paths(()), strict=True):
        found = tree
        for key in path:
            found = getattr(found, key) if isinstance(found, State) else found[key]
        assert found is leaf


@pytest.mark.parametrize(
    ("tree", "leaves", "paths"),
    [
        (5, [5], [""]),
        (None, [], []),
        ((), [], []),
        ((1, [2, (3,)]), [1, 2, 3], ["0", "1.0", "1.1.0"]),
        ({"b": 1, "a": {"z": 2, "y": None}}, [2, 1], ["a.z", "b"]),
        (State(1, Point(2, 3)), [1, 2, 3], ["h", "c.x", "c.y"]),
        (OrderedDict(b=1, a=2), [2, 1], ["a", "b"]),
        ({10: 1, 9: 2}, [2, 1], ["9", "10"]),
    ],
)
def test_leaves_and_paths(tree: Any, leaves: list[int], paths: list[str]) -> None:
    assert flatten(tree)[0] == leaves
    assert leaf_paths(tree) == paths


def test_the_order_of_insertion_changes_neither_leaves_nor_structure() -> None:
    (one, structure_one), (two, structure_two) = flatten({"h": 1, "c": 2}), flatten({"c": 2, "h": 1})
    assert one == two == [2, 1]
    assert structure_one == structure_two
    assert hash(structure_one) == hash(structure_two)
    assert list(structure_one.unflatten(one)) == ["h", "c"]
    assert list(structure_two.unflatten(two)) == ["c", "h"]


def test_keys_without_an_order_among_them_flatten_alike() -> None:
    one, two = {1: "a", "x": "b", (2,): "c"}, {(2,): "c", "x": "b", 1: "a"}
    assert flatten(one) == flatten(two)
    assert flatten(one)[0] == ["a", "b", "c"]
    assert tree_map(lambda a, b: a + b, one, two) == {1: "aa", "x": "bb", (2,): "cc"}


@pytest.mark.parametrize("other", [[1, 2], (1,), (1, (2,)), (1, None), State(1, 2), {0: 1, 1: 2}, 1])
def test_other_structures_are_not_equal(other: Any) -> None:
    assert flatten((1, 2))[1] != flatten(other)[1]


def test_dicts_of_other_keys_are_not_equal() -> None:
    assert flatten({"a": 1})[1] != flatten({"b": 1})[1]
    assert flatten({"a": 1})[1] != flatten(OrderedDict(a=1))[1]


def test_repr() -> None:
    tree = {"h": State(1), "c": [(1,), OrderedDict(a=2), ()]}
    assert repr(flatten(tree)[1]) == "TreeDef({'c': [(*,), OrderedDict({'a': *}), ()], 'h': State(h=*, c=None)})"
    assert repr(flatten(3)[1]) == "TreeDef(*)"


def test_is_leaf_ends_the_descent() -> None:
    leaves, structure = flatten([None, (1, 2), {"a": 3}], is_leaf=lambda t: t is None or isinstance(t, tuple))
    assert leaves == [None, (1, 2), 3]
    assert structure.unflatten("xyz") == ["x", "y", {"a": "z"}]
    assert tree_map(len, {"a": (1, 2)}, is_leaf=lambda t: isinstance(t, tuple)) == {"a": 2}


def test_instances_of_other_classes_are_leaves() -> None:
    class Mine(list[int]):
        pass

    mine = Mine([1, 2])
    assert flatten([mine, "text"])[0] == [mine, "text"]


def test_tree_map_maps_corresponding_leaves() -> None:
    a = {"h": State(1, (2, None)), "x": [3]}
    b = {"x": [30], "h": State(10, (20, None))}
    assert tree_map(lambda x, y: (y, x), a, b) == {"h": State((10, 1), ((20, 2), None)), "x": [(30, 3)]}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": [1, (2, 3)], "b": 4}, "at 'a' the one has (*, (*, *)) and the other [*, (*, *)]"),
        ({"a": (1, (2,)), "b": 4}, "at 'a.1' the one has (*, *) and the other (*,)"),
        ({"a": (1, (2, None)), "b": 4}, "at 'a.1.1' the one has * and the other None"),
        ({"a": (1, (2, 3))}, "at the top the one has {'a': (*, (*, *)), 'b': *} and the other {'a': (*, (*, *))}"),
        (7, "at the top the one has {'a': (*, (*, *)), 'b': *} and the other *"),
    ],
)
def test_tree_map_names_the_path_where_structures_differ(other: Any, message: str) -> None:
    tree = {"a": (1, (2, 3)), "b": 4}
    with pytest.raises(ShapeError) as error:
        tree_map(lambda *leaves: leaves, tree, tree, other)
    assert str(error.value) == f"tree_map: trees 1 and 3 differ in structure: {message}"
    assert flatten(tree)[1].mismatch(flatten(tree)[1]) is None


@pytest.mark.parametrize("leaves", [[], [1], [1, 2, 3]])
def test_unflatten_counts_the_leaves(leaves: list[int]) -> None:
    structure = flatten((1, 2))[1]
    with pytest.raises(ShapeError, match=rf"TreeDef\(\(\*, \*\)\) takes 2 leaves, but {len(leaves)} were given"):
        structure.unflatten(leaves)


def test_tree_map_asks_for_a_tree() -> None:
    with pytest.raises(TypeError, match="at least one tree"):
        tree_map(abs)


def test_a_part_of_a_structure_is_a_structure() -> None:
    structure = flatten((1, [2, (3, 4)], 5))[1]
    part = structure.children[1]
    assert part == flatten([2, (3, 4)])[1]
    assert part.num_leaves == 3
    assert part.unflatten("xyz") == ["x", ("y", "z")]


def test_structures_serve_as_keys() -> None:
    compiled: dict[TreeDef, str] = {flatten({"h": 1, "c": 2})[1]: "kernel"}
    assert compiled[flatten({"c": 5, "h": 6})[1]] == "kernel"
