"""Graph: it prints itself in a form that can be read back, finds what is wrong with it, and knows its equals."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from graphs import graphs, parse
from hypothesis import given, settings

import tinyseq as ts
from tinyseq.compiler.trace import trace
from tinyseq.graph import Equation, Graph, Names, Var
from tinyseq.primitives import TABLE

TEXT = """
graph (x: float32[2,3], h: float32[2,4]; w: float32[3,4], table: float64[5,4], ids: int64[2]) {
  a: float32[2,4] = matmul(x, w)
  b: float32[2,4] = add(a, h)
  c: bool[2,4] = gt(b, -0.0)
  d: float32[2,4] = where(c, b, nan)
  e: float32[2,2] = getitem(d, key=(..., 0:2))
  f: float64[2,4] = getitem(table, ids, key=([],))
  g: float32[2] = sum(e, axis=(-1,), keepdims=False)
  i: float64[2] = cast(g, dtype=float64)
} -> (i, d, 0.0, f)
""".strip()


# --- printing ---------------------------------------------------------------------------------------------------------


def test_a_graph_prints_what_it_was_read_from() -> None:
    graph = parse(TEXT).check()
    assert str(graph) == TEXT
    assert str(graph) == TEXT  # and again


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_the_text_form_reads_back_as_the_same_program(graph: Graph) -> None:
    again = parse(str(graph)).check()
    assert again.key() == graph.key()
    assert str(again) == str(graph)


def test_a_traced_function_prints_by_its_names() -> None:
    w = ts.Parameter(np.ones((3, 4), np.float32))
    w.name = "weight"
    graph = trace(lambda x, h: [ts.tanh(x @ w + h * 2), 1.5], [ts.zeros((2, 3)), ts.zeros((2, 4))], ["x", "h"]).graph
    assert str(graph) == (
        "graph (x: float32[2,3], h: float32[2,4]; weight: float32[3,4], a: float32[]) {\n"
        "  b: float32[2,4] = matmul(x, weight)\n"
        "  c: float32[2,4] = mul(h, 2)\n"
        "  d: float32[2,4] = add(b, c)\n"
        "  e: float32[2,4] = tanh(d)\n"
        "} -> (e, a)"
    )


def test_names_are_unique_and_go_on_after_z() -> None:
    names = Names()
    own, other, free = Var((), "float32", "a"), Var((), "float32", "a"), [Var((), "float32") for _ in range(30)]
    assert [names[own], names[other], *map(names.__getitem__, free[:2])] == ["a", "b", "c", "d"]
    assert [names[v] for v in free][-8:] == ["y", "z", "aa", "ab", "ac", "ad", "ae", "af"]
    assert len(set(names.values())) == 32
    assert [names[own], names[free[-1]]] == ["a", "af"]  # once given, a name stays


def test_names_can_be_shared_between_graphs() -> None:
    x, y, z = (Var((), "float32") for _ in range(3))
    names = Names()
    first = Graph((x,), (Equation(TABLE["tanh"], (x,), {}, y),), (y,)).text(names)
    second = Graph((y,), (Equation(TABLE["exp"], (y,), {}, z),), (z,)).text(names)
    assert "b: float32[] = tanh(a)" in first
    assert "c: float32[] = exp(b)" in second


def test_a_value_says_its_type() -> None:
    assert repr(Var((2, 3), np.float32, "x")) == "x: float32[2,3]"
    assert repr(Var((), np.int64)) == "value: int64[]"


# --- checking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("b: float32[2,4] = add", "b: float32[2,5] = add", r"add gives float32\[2, 4\], and the graph says b: float32\[2,5\]"),
        ("b: float32[2,4] = add", "b: float64[2,4] = add", r"add gives float32\[2, 4\], and the graph says b: float64\[2,4\]"),
        ("c: bool[2,4]", "c: float32[2,4]", r"gt gives bool\[2, 4\], and the graph says c: float32"),
        ("h: float32[2,4]", "h: float32[2,3]", r"add cannot assign b: float32\[2,4\]: add cannot broadcast"),
        ("matmul(x, w)", "matmul(w, x)", r"matmul cannot assign a: float32\[2,4\]: matmul cannot multiply"),
        ("0:2", "3, 3, 3", "getitem cannot assign e: .* too many indices"),
        (", keepdims=False", "", "sum cannot assign g: .* missing 1 required keyword-only argument: 'keepdims'"),
        ("sum(e, ", "sum(", "sum cannot assign g: .* missing 1 required positional argument"),
    ],
)
def test_wrong_types_are_found(old: str, new: str, sentence: str) -> None:
    assert old in TEXT
    with pytest.raises(ts.GraphError, match=sentence):
        parse(TEXT.replace(old, new)).check()


def value(name: str) -> Var:
    return Var((2,), "float32", name)


def tanh(x: Any, y: Any) -> Equation:
    return Equation(TABLE["tanh"], (x,), {}, y)


A, B, C = value("a"), value("b"), value("c")


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (Graph((A,), (tanh(B, C),), (C,)), r"tanh uses b: float32\[2\] before it is assigned"),
        (Graph((A,), (tanh(C, B), tanh(A, C)), (B,)), r"tanh uses c: float32\[2\] before it is assigned"),
        (Graph((A,), (tanh(A, B), tanh(A, B)), (B,)), r"tanh assigns b: float32\[2\], which was assigned before"),
        (Graph((A,), (tanh(A, A),), (A,)), r"tanh assigns a: float32\[2\], which was assigned before"),
        (Graph((A, A), (), (A,)), r"takes a: float32\[2\] twice"),
        (Graph((A,), (), (A,), closed=(A,)), r"takes a: float32\[2\] twice"),
        (Graph((A,), (), (A, B)), r"the output b: float32\[2\] is never assigned"),
    ],
)
def test_wrong_order_is_found(graph: Graph, sentence: str) -> None:
    with pytest.raises(ts.GraphError, match=sentence):
        graph.check()


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_a_graph_without_one_of_the_equations_it_needs_is_found(graph: Graph) -> None:
    used = graph.uses()
    for i, e in enumerate(graph.equations):
        broken = Graph(graph.inputs, graph.equations[:i] + graph.equations[i + 1 :], graph.outputs, graph.closed)
        if e.output in used:
            with pytest.raises(ts.GraphError):
                broken.check()
        else:
            broken.check()


# --- equality ---------------------------------------------------------------------------------------------------------


def test_equal_programs_have_equal_keys() -> None:
    renamed = parse(TEXT.replace("a: ", "first: ").replace("(a, ", "(first, "))
    assert renamed.key() == parse(TEXT).key()
    hash(renamed.key())


DIFFERENT = [
    TEXT,
    TEXT.replace("add(a, h)", "add(h, a)"),
    TEXT.replace("add(a, h)", "sub(a, h)"),
    TEXT.replace("add(a, h)", "add(a, 1)"),
    TEXT.replace("add(a, h)", "add(a, 1.0)"),
    TEXT.replace("add(a, h)", "add(a, True)"),
    TEXT.replace("-0.0", "0.0"),
    TEXT.replace("-0.0", "0"),
    TEXT.replace("nan", "inf"),
    TEXT.replace("0:2", "2:4"),
    TEXT.replace("(i, d, 0.0, f)", "(i, b, 0.0, f)"),
    TEXT.replace("(i, d, 0.0, f)", "(d, i, 0.0, f)"),
    TEXT.replace("(i, d, 0.0, f)", "(i, d, 0, f)"),
    TEXT.replace("(i, d, 0.0, f)", "(i, d, -0.0, f)"),
    TEXT.replace(", h: float32[2,4]; ", "; h: float32[2,4], "),
    TEXT.replace("table: float64[5,4]", "table: float64[6,4]"),
    TEXT.replace("ids: int64[2]", "ids: int32[2]"),
    "\n".join(TEXT.splitlines()[:1] + TEXT.splitlines()[1:-1] + ["  j: bool[2,4] = isnan(d)"] + TEXT.splitlines()[-1:]),
]


def test_different_programs_have_different_keys() -> None:
    assert len(set(DIFFERENT)) == len(DIFFERENT)  # each replacement found its place
    keys = [parse(text).check().key() for text in DIFFERENT]
    for (i, a), (j, b) in itertools.combinations(enumerate(keys), 2):
        assert a != b, f"{DIFFERENT[i]}\n\n{DIFFERENT[j]}"


@settings(max_examples=60, deadline=None)
@given(graphs(), graphs())
def test_keys_are_equal_where_the_texts_are(a: Graph, b: Graph) -> None:
    assert (a.key() == b.key()) == (str(a) == str(b))


def test_uses_counts_outputs_too() -> None:
    graph = parse(TEXT)
    counts = {v.name: n for v, n in graph.uses().items()}
    assert counts == {
        "x": 1,
        "w": 1,
        "a": 1,
        "h": 1,
        "b": 2,
        "c": 1,
        "d": 2,
        "table": 1,
        "ids": 1,
        "e": 1,
        "g": 1,
        "i": 1,
        "f": 1,
    }
