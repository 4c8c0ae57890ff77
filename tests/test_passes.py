"""The compiler's passes: what each makes of a small graph, and that no graph computes anything else afterwards."""

from __future__ import annotations

import doctest
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from graphs import data, evaluate, graphs, parse
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.compiler import passes
from tinyseq.compiler.passes import (
    common_subexpressions,
    dead_code,
    factor_sums,
    fold,
    join_slices,
    merge_products,
    narrow,
    rewrite,
    simplify,
    split_columns,
    split_products,
    split_sums,
)
from tinyseq.graph import Equation, Graph, Operand, Var
from tinyseq.primitives import TABLE

Pass = Callable[[Graph], Graph]


def becomes(one: Pass, before: str, after: str) -> None:
    """The pass turns the one text into the other, up to the names of values."""
    graph = one(parse(dedent(before)).check()).check()
    assert graph.key() == parse(dedent(after)).check().key(), f"it became\n{graph}"


def stays(one: Pass, text: str) -> None:
    becomes(one, text, text)


def names(graph: Graph) -> Counter[str]:
    return Counter(e.primitive.name for e in graph.equations)


# --- exactly ----------------------------------------------------------------------------------------------------------


class TestRewrite:
    @staticmethod
    def square(e: Equation, emit: Any) -> Operand | None:
        if e.primitive.name == "power" and e.inputs[1] == 2:
            return emit("mul", e.inputs[0], e.inputs[0])
        return 3.0 if e.primitive.name == "sign" else None

    def test_what_a_rule_knows_better_is_replaced_everywhere(self) -> None:
        before = """
            graph (x: float64[2]) {
              a: float64[2] = power(x, 2)
              b: float64[2] = power(a, 2)
              c: float64[2] = sign(b)
              d: float64[2] = add(b, c)
            } -> (d, a, c, x)
        """
        after = """
            graph (x: float64[2]) {
              a: float64[2] = mul(x, x)
              b: float64[2] = mul(a, a)
              d: float64[2] = add(b, 3.0)
            } -> (d, a, 3.0, x)
        """
        becomes(lambda graph: rewrite(graph, self.square), before, after)

    def test_a_rule_sees_its_inputs_rewritten(self) -> None:
        seen: list[tuple[str, ...]] = []
        graph = parse("graph (x: float64[]) {\n  a: float64[] = power(x, 2)\n  b: float64[] = neg(a)\n} -> (b)")

        def rule(e: Equation, emit: Any) -> Operand | None:
            seen.append((e.primitive.name, *("x" if v is graph.inputs[0] else "other" for v in e.inputs)))
            return e.inputs[0] if e.primitive.name == "power" else None

        rewrite(graph, rule)
        assert seen == [("power", "x", "other"), ("neg", "x")]

    def test_an_emitted_operation_that_does_not_fit_is_refused(self) -> None:
        graph = parse("graph (x: float64[2], y: float64[3]) {\n  a: float64[2] = neg(x)\n} -> (a)")
        with pytest.raises(ts.ShapeError, match="add cannot broadcast"):
            rewrite(graph, lambda e, emit: emit("add", *graph.inputs))


def test_dead_code() -> None:
    becomes(
        dead_code,
        """
        graph (x: float32[2], y: float32[2]; w: float32[2]) {
          a: float32[2] = mul(x, w)
          b: float32[2] = exp(a)
          c: float32[2] = exp(b)
          d: float32[2] = neg(a)
        } -> (d, x)
        """,
        """
        graph (x: float32[2], y: float32[2]; w: float32[2]) {
          a: float32[2] = mul(x, w)
          b: float32[2] = neg(a)
        } -> (b, x)
        """,
    )


class TestCommonSubexpressions:
    def test_the_same_happens_once(self) -> None:
        becomes(
            common_subexpressions,
            """
            graph (x: float32[2,4]) {
              a: float32[2,2] = getitem(x, key=(..., 0:2))
              b: float32[2,2] = getitem(x, key=(..., 0:2))
              c: float32[2,2] = exp(a)
              d: float32[2,2] = exp(b)
              e: float32[2,2] = mul(c, d)
            } -> (e, d)
            """,
            """
            graph (x: float32[2,4]) {
              a: float32[2,2] = getitem(x, key=(..., 0:2))
              b: float32[2,2] = exp(a)
              c: float32[2,2] = mul(b, b)
            } -> (c, b)
            """,
        )

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("sub(x, y)", "sub(y, x)"),
            ("div(x, 0.0)", "div(x, -0.0)"),
            ("add(x, 1)", "add(x, 1.0)"),
            ("add(x, x)", "mul(x, x)"),
            ("clip(x, low=0.0, high=1.0)", "clip(x, low=-0.0, high=1.0)"),
            ("flip(x, axis=(-1,))", "flip(x, axis=(-2,))"),
        ],
    )
    def test_what_differs_stays(self, one: str, other: str) -> None:
        stays(
            common_subexpressions,
            f"""
            graph (x: float32[2,2], y: float32[2,2]) {{
              a: float32[2,2] = {one}
              b: float32[2,2] = {other}
            }} -> (a, b)
            """,
        )

    def test_nan_is_the_same_constant_as_nan(self) -> None:
        x = Var((), "float64")
        sums = [Equation(TABLE["add"], (x, float(nan)), {}, Var((), "float64")) for nan in ("nan", "nan")]
        graph = Graph((x,), tuple(sums), tuple(e.output for e in sums)).check()
        assert len(common_subexpressions(graph).equations) == 1


def one_operation(dtype: str, operation: str, shape: str = "2,3") -> str:
    return f"graph (x: {dtype}[2,3], y: {dtype}[3]) {{\n  a: {dtype}[{shape}] = {operation}\n}} -> (a)"


class TestFold:
    @pytest.mark.parametrize(
        "operation",
        [
            *(
                "mul(x, 1)",
                "mul(1.0, x)",
                "div(x, 1)",
                "power(x, 1)",
                "sub(x, 0)",
                "sub(x, 0.0)",
                "add(x, -0.0)",
                "add(-0.0, x)",
            ),
            *("reshape(x, shape=(2, 3))", "broadcast_to(x, shape=(2, 3))", "cast(x, dtype=float32)"),
            *("copy(x)", "detach(x)", "concatenate(x, axis=-1, sizes=(3,))"),
        ],
    )
    def test_what_changes_nothing_goes(self, operation: str) -> None:
        becomes(fold, one_operation("float32", operation), "graph (x: float32[2,3], y: float32[3]) {\n} -> (x)")

    @pytest.mark.parametrize("operation", ["add(x, 0)", "add(0, x)", "sub(x, 0)", "mul(x, 1)", "mul(1, x)"])
    def test_an_integer_has_one_zero(self, operation: str) -> None:
        becomes(fold, one_operation("int64", operation), "graph (x: int64[2,3], y: int64[3]) {\n} -> (x)")

    @pytest.mark.parametrize(
        "operation",
        [
            # NaN, infinities and the sign of zero; what is not neutral; what only looks so.
            *("mul(x, 0)", "add(x, 0)", "add(x, 0.0)", "add(0, x)", "sub(x, -0.0)", "sub(0, x)", "div(1, x)", "power(1, x)"),
            *("mul(x, 2)", "add(x, 1)", "mul(x, True)", "add(x, False)", "floor_divide(x, 1)", "neg(x)", "mul(x, y)"),
            *("broadcast_to(y, shape=(2, 3))", "concatenate(x, x, axis=-2, sizes=(2, 2))", "cast(x, dtype=float64)"),
        ],
    )
    def test_what_changes_something_stays(self, operation: str) -> None:
        shape = "4,3" if "concatenate" in operation else "2,3"
        text = one_operation("float32", operation, shape)
        stays(fold, text.replace("a: float32", "a: float64") if "float64" in operation else text)

    def test_pairs_that_cancel_go(self) -> None:
        becomes(
            fold,
            """
            graph (x: float32[2,3]) {
              a: float32[2,3] = neg(x)
              b: float32[2,3] = neg(a)
              c: float32[3,2] = permute(b, axes=(-1, -2))
              d: float32[2,3] = permute(c, axes=(-1, -2))
              e: float32[6] = reshape(d, shape=(6,))
              f: float32[3,2] = reshape(e, shape=(3, 2))
              g: float32[1,6] = reshape(f, shape=(1, 6))
              h: float32[2,3] = reshape(g, shape=(2, 3))
            } -> (d, g, h)
            """,
            """
            graph (x: float32[2,3]) {
              a: float32[2,3] = neg(x)
              c: float32[3,2] = permute(x, axes=(-1, -2))
              e: float32[6] = reshape(x, shape=(6,))
              f: float32[3,2] = reshape(x, shape=(3, 2))
              g: float32[1,6] = reshape(x, shape=(1, 6))
            } -> (x, g, x)
            """,
        )

    def test_concatenations_within_each_other_become_one(self) -> None:
        becomes(
            lambda graph: dead_code(fold(graph)),
            """
            graph (x: float32[2,3], y: float32[2,1]) {
              a: float32[2,4] = concatenate(x, y, axis=-1, sizes=(3, 1))
              b: float32[2,5] = concatenate(y, a, axis=-1, sizes=(1, 4))
              c: float32[2,10] = concatenate(b, b, axis=-1, sizes=(5, 5))
              d: float32[4,10] = concatenate(c, c, axis=-2, sizes=(2, 2))
            } -> (d)
            """,
            """
            graph (x: float32[2,3], y: float32[2,1]) {
              a: float32[2,10] = concatenate(y, x, y, y, x, y, axis=-1, sizes=(1, 3, 1, 1, 3, 1))
              b: float32[4,10] = concatenate(a, a, axis=-2, sizes=(2, 2))
            } -> (b)
            """,
        )


class TestSplitProducts:
    def test_each_part_has_its_rows(self) -> None:
        becomes(
            split_products,
            """
            graph (h: float32[2,3], x: float32[2,1]; w: float32[4,5]) {
              a: float32[2,4] = concatenate(h, x, axis=-1, sizes=(3, 1))
              b: float32[2,5] = matmul(a, w)
            } -> (b)
            """,
            """
            graph (h: float32[2,3], x: float32[2,1]; w: float32[4,5]) {
              a: float32[3,5] = getitem(w, key=(..., 0:3, :))
              b: float32[2,5] = matmul(h, a)
              c: float32[1,5] = getitem(w, key=(..., 3:4, :))
              d: float32[2,5] = matmul(x, c)
              e: float32[2,5] = add(b, d)
            } -> (e)
            """,
        )

    def test_parts_of_parts_are_split_at_once(self) -> None:
        becomes(
            split_products,
            """
            graph (x: float64[2,1], y: float64[2,2], z: float64[2,3]; w: float64[6,4]) {
              a: float64[2,3] = concatenate(x, y, axis=-1, sizes=(1, 2))
              b: float64[2,6] = concatenate(a, z, axis=-1, sizes=(3, 3))
              c: float64[2,4] = matmul(b, w)
            } -> (c)
            """,
            """
            graph (x: float64[2,1], y: float64[2,2], z: float64[2,3]; w: float64[6,4]) {
              a: float64[1,4] = getitem(w, key=(..., 0:1, :))
              b: float64[2,4] = matmul(x, a)
              c: float64[2,4] = getitem(w, key=(..., 1:3, :))
              d: float64[2,4] = matmul(y, c)
              e: float64[2,4] = add(b, d)
              f: float64[3,4] = getitem(w, key=(..., 3:6, :))
              g: float64[2,4] = matmul(z, f)
              h: float64[2,4] = add(e, g)
            } -> (h)
            """,
        )

    @pytest.mark.parametrize(
        ("parts", "weights"),
        [
            ("concatenate(h, h, axis=-2, sizes=(1, 1))", "w: float32[3,5]"),  # rows put together, not columns
            ("concatenate(h, h, axis=-2, sizes=(1, 1))", "w: float32[2,3,5]"),
        ],
    )
    def test_other_products_stay(self, parts: str, weights: str) -> None:
        shape = "2,2,5" if weights.count(",") == 2 else "2,5"
        stays(
            split_products,
            f"""
            graph (h: float32[1,3]; {weights}) {{
              a: float32[2,3] = {parts}
              b: float32[{shape}] = matmul(a, w)
            }} -> (b)
            """,
        )


class TestStretching:
    def test_what_an_operand_stretches_is_not_stretched_before(self) -> None:
        becomes(
            lambda graph: passes.dead_code(fold(graph)),
            """
            graph (x: float32[2,1], y: float32[2,4]) {
              a: float32[2,4] = broadcast_to(x, shape=(2, 4))
              b: float32[2,4] = mul(a, y)
              c: float32[2,4] = sub(b, a)
            } -> (c)
            """,
            """
            graph (x: float32[2,1], y: float32[2,4]) {
              b: float32[2,4] = mul(x, y)
              c: float32[2,4] = sub(b, x)
            } -> (c)
            """,
        )

    def test_what_alone_gives_the_shape_is_stretched(self) -> None:
        stays(
            fold,
            """
            graph (x: float32[2,1], y: float32[4]) {
              a: float32[2,4] = broadcast_to(x, shape=(2, 4))
              b: float32[2,4] = mul(a, y)
              c: float32[2,4] = tanh(a)
            } -> (b, c)
            """,
        )


class TestJoinSlices:
    GRADIENT_OF_A_SPLIT = """
        graph (x: float32[2,1], y: float32[2,3], z: float32[2,2]) {
          a: float32[2,6] = scatter_add(y, key=(..., 1:4), shape=(2, 6))
          b: float32[2,6] = scatter_add(z, key=(:, 4:), shape=(2, 6))
          c: float32[2,6] = add(a, b)
          d: float32[2,6] = scatter_add(x, key=(..., :1), shape=(2, 6))
          e: float32[2,6] = add(c, d)
        } -> (e)
    """

    def test_pieces_stand_side_by_side(self) -> None:
        becomes(
            join_slices,
            self.GRADIENT_OF_A_SPLIT,
            """
            graph (x: float32[2,1], y: float32[2,3], z: float32[2,2]) {
              a: float32[2,6] = concatenate(x, y, z, axis=-1, sizes=(1, 3, 2))
            } -> (a)
            """,
        )

    def test_a_split_of_a_split(self) -> None:
        becomes(
            join_slices,
            """
            graph (x: float32[2,1], y: float32[2,2], z: float32[2,3]) {
              a: float32[2,3] = scatter_add(x, key=(..., 0:1), shape=(2, 3))
              b: float32[2,3] = scatter_add(y, key=(..., 1:3), shape=(2, 3))
              c: float32[2,3] = add(a, b)
              d: float32[2,6] = scatter_add(c, key=(..., 0:3), shape=(2, 6))
              e: float32[2,6] = scatter_add(z, key=(..., 3:6), shape=(2, 6))
              f: float32[2,6] = add(d, e)
            } -> (f)
            """,
            """
            graph (x: float32[2,1], y: float32[2,2], z: float32[2,3]) {
              a: float32[2,3] = concatenate(x, y, axis=-1, sizes=(1, 2))
              b: float32[2,6] = concatenate(a, z, axis=-1, sizes=(3, 3))
            } -> (b)
            """,
        )

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("4:)", "3:5)"),  # overlap
            ("1:4)", "0:3)"),  # a gap, and an overlap
            (":1)", ":2:2)"),  # not beside each other
            ("d: float32[2,6] = scatter_add(x, key=(..., :1), shape=(2, 6))",
             "d: float32[2,6] = concatenate(y, y, axis=-1, sizes=(3, 3))"),
            ("y: float32[2,3]", "y: float32[3]"),  # spread over the rows by the scatter
            ("e: float32[2,6] = add(c, d)", "e: float32[2,6] = mul(c, d)"),
            ("e: float32[2,6] = add(c, d)", "e: float32[2,6] = add(c, c)"),
        ],
    )  # fmt: skip
    def test_other_sums_stay(self, old: str, new: str) -> None:
        text = dedent(self.GRADIENT_OF_A_SPLIT)
        assert old in text
        graph = parse(text.replace(old, new)).check()
        assert names(join_slices(graph).check()) == names(dead_code(graph))

    def test_two_pieces_in_the_same_place_stay(self) -> None:
        text = """
            graph (x: float32[2,2], y: float32[2,2], z: float32[2,2]) {
              a: float32[2,4] = scatter_add(x, key=(..., 0:2), shape=(2, 4))
              b: float32[2,4] = scatter_add(y, key=(..., 0:2), shape=(2, 4))
              c: float32[2,4] = add(a, b)
              d: float32[2,4] = scatter_add(z, key=(..., 2:4), shape=(2, 4))
              e: float32[2,4] = add(c, d)
            } -> (e)
        """
        stays(join_slices, text)

    def test_a_gap_stays_zero(self) -> None:
        stays(
            join_slices,
            """
            graph (x: float32[2,2], y: float32[2,2]) {
              a: float32[2,5] = scatter_add(x, key=(..., 0:2), shape=(2, 5))
              b: float32[2,5] = scatter_add(y, key=(..., 3:5), shape=(2, 5))
              c: float32[2,5] = add(a, b)
            } -> (c)
            """,
        )


class TestNarrow:
    @pytest.mark.parametrize("rows", ["...", ":"])
    def test_elementwise_work_is_done_on_the_columns_that_are_cut(self, rows: str) -> None:
        becomes(
            narrow,
            f"""
            graph (x: float32[2,4]; b: float32[4], c: float32[2,1]) {{
              a: float32[2,4] = add(x, b)
              d: float32[2,4] = mul(a, c)
              e: float32[2,4] = sigmoid(d)
              f: float32[2,2] = getitem(e, key=({rows}, 2:4))
              g: float32[2,2] = getitem(e, key=({rows}, 2:))
              h: float32[2,2] = mul(f, g)
            }} -> (h)
            """,
            """
            graph (x: float32[2,4]; b: float32[4], c: float32[2,1]) {
              a: float32[2,2] = getitem(x, key=(..., 2:4))
              d: float32[2] = getitem(b, key=(..., 2:4))
              e: float32[2,2] = add(a, d)
              f: float32[2,2] = mul(e, c)
              g: float32[2,2] = sigmoid(f)
              h: float32[2,2] = mul(g, g)
            } -> (h)
            """,
        )

    def test_elementwise_work_is_done_before_parts_are_put_together(self) -> None:
        becomes(
            narrow,
            """
            graph (x: float32[2,1], y: float32[2,3], z: float32[2,4]) {
              a: float32[2,4] = concatenate(x, y, axis=-1, sizes=(1, 3))
              b: float32[2,4] = mul(z, a)
              c: float32[2,4] = tanh(b)
            } -> (c)
            """,
            """
            graph (x: float32[2,1], y: float32[2,3], z: float32[2,4]) {
              a: float32[2,1] = getitem(z, key=(..., 0:1))
              b: float32[2,1] = mul(a, x)
              c: float32[2,3] = getitem(z, key=(..., 1:4))
              d: float32[2,3] = mul(c, y)
              e: float32[2,1] = tanh(b)
              f: float32[2,3] = tanh(d)
              g: float32[2,4] = concatenate(e, f, axis=-1, sizes=(1, 3))
            } -> (g)
            """,
        )

    def test_columns_of_columns_are_columns(self) -> None:
        becomes(
            narrow,
            """
            graph (x: float32[2,6]) {
              a: float32[2,4] = getitem(x, key=(..., 1:5))
              b: float32[2,4] = tanh(a)
              c: float32[2,2] = getitem(b, key=(..., 2:4))
            } -> (c)
            """,
            """
            graph (x: float32[2,6]) {
              a: float32[2,2] = getitem(x, key=(..., 3:5))
              b: float32[2,2] = tanh(a)
            } -> (b)
            """,
        )

    def test_rows_put_together_stay_together(self) -> None:
        stays(
            narrow,
            """
            graph (x: float32[1,6], y: float32[2,6]) {
              a: float32[3,6] = concatenate(x, y, axis=-2, sizes=(1, 2))
              b: float32[3,6] = tanh(a)
            } -> (b)
            """,
        )

    def test_what_is_cut_out_of_something_stretched_is_stretched_less(self) -> None:
        becomes(
            narrow,
            """
            graph (x: float32[2,1], y: float32[4]) {
              a: float32[2,4] = broadcast_to(x, shape=(2, 4))
              b: float32[2,3] = getitem(a, key=(..., 1:4))
              c: float32[2,4] = broadcast_to(y, shape=(2, 4))
              d: float32[2,3] = getitem(c, key=(..., 1:4))
            } -> (b, d)
            """,
            """
            graph (x: float32[2,1], y: float32[4]) {
              a: float32[2,3] = broadcast_to(x, shape=(2, 3))
              b: float32[3] = getitem(y, key=(..., 1:4))
              c: float32[2,3] = broadcast_to(b, shape=(2, 3))
            } -> (a, c)
            """,
        )

    def test_what_is_cut_out_of_parts_is_a_part(self) -> None:
        becomes(
            narrow,
            """
            graph (x: float32[2,2], y: float32[2,3]) {
              a: float32[2,5] = concatenate(x, y, axis=-1, sizes=(2, 3))
              b: float32[2,3] = getitem(a, key=(..., 2:5))
              c: float32[2,2] = getitem(b, key=(..., 1:3))
              d: float32[2,2] = getitem(a, key=(..., 1:3))
            } -> (b, c, d)
            """,
            """
            graph (x: float32[2,2], y: float32[2,3]) {
              a: float32[2,5] = concatenate(x, y, axis=-1, sizes=(2, 3))
              c: float32[2,2] = getitem(y, key=(..., 1:3))
              d: float32[2,2] = getitem(a, key=(..., 1:3))
            } -> (y, c, d)
            """,
        )

    @pytest.mark.parametrize(
        ("operation", "shape"),
        [
            ("getitem(a, key=(..., 0:2, :))", "2,4"),
            ("getitem(a, key=(0:2,))", "2,4"),
            ("getitem(a, key=(..., 0:4:2))", "4,2"),
            ("getitem(a, key=(0,))", "4"),
            ("getitem(a, key=(None, ..., 0:2))", "1,4,2"),
            ("sum(a, axis=(-1,), keepdims=False)", "4"),
        ],
    )
    def test_what_is_not_columns_stays(self, operation: str, shape: str) -> None:
        stays(
            narrow,
            f"""
            graph (x: float32[4,4]) {{
              a: float32[4,4] = tanh(x)
              b: float32[{shape}] = {operation}
            }} -> (b)
            """,
        )


class TestSplitSums:
    def test_a_sum_of_parts_is_the_sum_of_their_sums(self) -> None:
        becomes(
            split_sums,
            """
            graph (x: float32[2,2], y: float32[2,3], z: float32[2,1]) {
              a: float32[2,6] = concatenate(x, y, z, axis=-1, sizes=(2, 3, 1))
              b: float32[2,1] = sum(a, axis=(-1,), keepdims=True)
            } -> (b)
            """,
            """
            graph (x: float32[2,2], y: float32[2,3], z: float32[2,1]) {
              b: float32[2,1] = sum(x, axis=(-1,), keepdims=True)
              c: float32[2,1] = sum(y, axis=(-1,), keepdims=True)
              d: float32[2,1] = sum(z, axis=(-1,), keepdims=True)
              e: float32[2,1] = add(b, c)
              f: float32[2,1] = add(e, d)
            } -> (f)
            """,
        )

    @pytest.mark.parametrize("operation", ["sum(a, axis=(-2,), keepdims=True)", "max(a, axis=(-2,), keepdims=True)"])
    def test_a_sum_over_rows_of_parts_stays(self, operation: str) -> None:
        stays(
            split_sums,
            f"""
            graph (x: float32[2,2], y: float32[2,3]) {{
              a: float32[2,5] = concatenate(x, y, axis=-1, sizes=(2, 3))
              b: float32[1,5] = {operation}
            }} -> (b)
            """,
        )


class TestFactorSums:
    def test_what_a_row_is_multiplied_by_waits_for_its_sum(self) -> None:
        becomes(
            factor_sums,
            """
            graph (x: float32[2,3], c: float32[2,1]) {
              a: float32[2,3] = neg(x)
              b: float32[2,3] = div(a, c)
              d: float32[2,3] = mul(0.5, b)
              e: float32[2,1] = sum(d, axis=(-1,), keepdims=True)
            } -> (e)
            """,
            """
            graph (x: float32[2,3], c: float32[2,1]) {
              a: float32[2,1] = sum(x, axis=(-1,), keepdims=True)
              b: float32[2,1] = neg(a)
              d: float32[2,1] = div(b, c)
              e: float32[2,1] = mul(0.5, d)
            } -> (e)
            """,
        )

    def test_what_is_added_twice_is_doubled_where_it_has_one_number_a_row(self) -> None:
        becomes(
            factor_sums,
            """
            graph (x: float32[2,3], y: float32[2,3], c: float32[2,1]) {
              a: float32[2,3] = mul(c, x)
              b: float32[2,3] = add(y, a)
              d: float32[2,3] = add(b, a)
            } -> (d)
            """,
            """
            graph (x: float32[2,3], y: float32[2,3], c: float32[2,1]) {
              a: float32[2,1] = mul(c, 2)
              b: float32[2,3] = mul(a, x)
              d: float32[2,3] = add(y, b)
            } -> (d)
            """,
        )

    @pytest.mark.parametrize(
        ("operation", "keepdims"),
        [("mul(x, g)", True), ("div(c, x)", True), ("div(x, c)", False), ("add(x, c)", True), ("mul(x, x)", True)],
    )
    def test_what_differs_from_column_to_column_stays(self, operation: str, keepdims: bool) -> None:
        stays(
            factor_sums,
            f"""
            graph (x: float32[2,3], c: float32[2,1], g: float32[3]) {{
              a: float32[2,3] = {operation}
              b: float32[{"2,1" if keepdims else "2"}] = sum(a, axis=(-1,), keepdims={keepdims})
            }} -> (b)
            """,
        )

    def test_what_another_reads_stays(self) -> None:
        stays(
            factor_sums,
            """
            graph (x: float32[2,3], c: float32[2,1]) {
              a: float32[2,3] = div(x, c)
              b: float32[2,1] = sum(a, axis=(-1,), keepdims=True)
            } -> (a, b)
            """,
        )


class TestSplitColumns:
    JOINT = """
        graph (dz: float32[2,8], dy: float32[2,3]; w: float32[8,5]) {
          p: float32[2,5] = matmul(dz, w)
          dh: float32[2,3] = getitem(p, key=(..., 0:3))
          dx: float32[2,2] = getitem(p, key=(..., 3:5))
          c: float32[2,3] = add(dh, dy)
          d: float32[2,2] = tanh(dx)
        } -> (c, d)
        """

    def test_columns_that_no_later_step_waits_for_are_a_product_of_their_own(self) -> None:
        becomes(
            lambda graph: split_columns(graph, graph.outputs[:1]),
            self.JOINT,
            """
            graph (dz: float32[2,8], dy: float32[2,3]; w: float32[8,5]) {
              v: float32[8,3] = getitem(w, key=(..., 0:3))
              dh: float32[2,3] = matmul(dz, v)
              u: float32[8,2] = getitem(w, key=(..., 3:5))
              dx: float32[2,2] = matmul(dz, u)
              c: float32[2,3] = add(dh, dy)
              d: float32[2,2] = tanh(dx)
            } -> (c, d)
            """,
        )

    def test_a_product_of_columns_of_another_that_is_split(self) -> None:
        graph = split_columns(
            parse(
                dedent("""
                graph (dz: float32[2,8]; w: float32[8,5], v: float32[2,5]) {
                  p: float32[2,5] = matmul(dz, w)
                  dh: float32[2,3] = getitem(p, key=(..., 0:3))
                  dx: float32[2,2] = getitem(p, key=(..., 3:5))
                  q: float32[2,5] = matmul(dx, v)
                  a: float32[2,2] = getitem(q, key=(..., 0:2))
                  b: float32[2,3] = getitem(q, key=(..., 2:5))
                  c: float32[2,3] = add(dh, b)
                } -> (c, a)
                """)
            ).check(),
            (),
        )
        graph.check()
        both = parse(str(graph))
        carried = both.outputs[:1]
        assert names(split_columns(both, carried).check())["matmul"] == 3

    @pytest.mark.parametrize("carried", [slice(0), slice(0, 2)])
    def test_columns_that_all_go_one_way_stay_together(self, carried: slice) -> None:
        becomes(lambda graph: split_columns(graph, graph.outputs[carried]), self.JOINT, self.JOINT)

    def test_a_product_that_is_read_whole_too_stays(self) -> None:
        text = self.JOINT.replace("-> (c, d)", "-> (c, d, p)")
        becomes(lambda graph: split_columns(graph, graph.outputs[:1]), text, text)


class TestPlainColumns:
    @pytest.mark.parametrize(
        ("key", "columns"), [("(:, 1:-1)", "1:4"), ("(..., -2:)", "3:5"), ("(:, :3)", "0:3"), ("(..., :, 0:4:1)", "0:4")]
    )
    def test_columns_are_written_in_one_way(self, key: str, columns: str) -> None:
        start, stop = map(int, columns.split(":"))
        width = stop - start
        cut, kept = f"key={key}", f"key=(..., {columns})"
        text = """
            graph (x: float32[2,5], g: float32[2,%d]) {
              a: float32[2,%d] = getitem(x, %s)
              b: float32[2,5] = scatter_add(g, %s, shape=(2, 5))
            } -> (a, b)
            """
        becomes(fold, text % (width, width, cut, cut), text % (width, width, kept, kept))

    @pytest.mark.parametrize("key", ["(:, -1)", "(..., 4)"])
    def test_one_column_is_cut_out_and_loses_its_axis(self, key: str) -> None:
        becomes(
            fold,
            f"""
            graph (x: float32[2,5], g: float32[2]) {{
              a: float32[2] = getitem(x, key={key})
              b: float32[2,5] = scatter_add(g, key={key}, shape=(2, 5))
            }} -> (a, b)
            """,
            """
            graph (x: float32[2,5], g: float32[2]) {
              c: float32[2,1] = getitem(x, key=(..., 4:5))
              a: float32[2] = reshape(c, shape=(2,))
              d: float32[2,1] = reshape(g, shape=(2, 1))
              b: float32[2,5] = scatter_add(d, key=(..., 4:5), shape=(2, 5))
            } -> (a, b)
            """,
        )

    def test_a_new_axis_is_a_reshape(self) -> None:
        becomes(
            fold,
            """
            graph (x: float32[2]) {
              a: float32[2,1] = getitem(x, key=(:, None))
              b: float32[2] = scatter_add(a, key=(:, None), shape=(2,))
            } -> (a, b)
            """,
            """
            graph (x: float32[2]) {
              a: float32[2,1] = reshape(x, shape=(2, 1))
              b: float32[2] = reshape(a, shape=(2,))
            } -> (a, b)
            """,
        )

    def test_what_picks_everything_is_no_more_than_a_reshape(self) -> None:
        becomes(
            fold,
            """
            graph (x: float32[2,1,5], g: float32[2,5]) {
              a: float32[2,5] = getitem(x, key=(:, 0, :))
              b: float32[2,1,5] = getitem(x, key=(..., 0:5))
              c: float32[2,1,5] = scatter_add(g, key=(:, 0, :), shape=(2, 1, 5))
              d: float32[2,5] = scatter_add(g, key=(..., 0:5), shape=(2, 5))
            } -> (a, b, c, d)
            """,
            """
            graph (x: float32[2,1,5], g: float32[2,5]) {
              a: float32[2,5] = reshape(x, shape=(2, 5))
              c: float32[2,1,5] = reshape(g, shape=(2, 1, 5))
            } -> (a, x, c, g)
            """,
        )

    def test_a_row_turned_into_a_column_is_a_reshape(self) -> None:
        becomes(
            fold,
            """
            graph (x: float32[2,1,5], y: float32[2,4,5], z: float32[1,5]) {
              a: float32[2,5,1] = permute(x, axes=(-1, -2))
              b: float32[2,5,4] = permute(y, axes=(-1, -2))
              c: float32[5,1] = permute(z, axes=(-1, -2))
            } -> (a, b, c)
            """,
            """
            graph (x: float32[2,1,5], y: float32[2,4,5], z: float32[1,5]) {
              a: float32[2,5,1] = reshape(x, shape=(2, 5, 1))
              b: float32[2,5,4] = permute(y, axes=(-1, -2))
              c: float32[5,1] = permute(z, axes=(-1, -2))
            } -> (a, b, c)
            """,
        )

    def test_a_new_axis_beside_a_reversed_one_stays(self) -> None:
        stays(fold, "graph (x: float32[2]) {\n  a: float32[2,1] = getitem(x, key=(::-1, None))\n} -> (a)")

    @pytest.mark.parametrize(("key", "shape"), [("(0,)", "5"), ("(0, :)", "5"), ("(1:2, 0)", "1"), ("(..., 0:4:2)", "2,2")])
    def test_what_is_not_columns_alone_stays(self, key: str, shape: str) -> None:
        stays(fold, f"graph (x: float32[2,5]) {{\n  a: float32[{shape}] = getitem(x, key={key})\n}} -> (a)")


class TestMergeProducts:
    def test_products_with_one_operand_are_columns_of_one(self) -> None:
        becomes(
            merge_products,
            """
            graph (h: float32[2,3]; v: float32[3,4], w: float32[2,3]) {
              a: float32[2,4] = matmul(h, v)
              b: float32[2,4] = tanh(a)
              c: float32[3,2] = permute(w, axes=(-1, -2))
              d: float32[2,2] = matmul(h, c)
            } -> (b, d)
            """,
            """
            graph (h: float32[2,3]; v: float32[3,4], w: float32[2,3]) {
              a: float32[3,2] = permute(w, axes=(-1, -2))
              b: float32[3,6] = concatenate(v, a, axis=-1, sizes=(4, 2))
              c: float32[2,6] = matmul(h, b)
              d: float32[2,4] = getitem(c, key=(..., 0:4))
              e: float32[2,4] = tanh(d)
              f: float32[2,2] = getitem(c, key=(..., 4:6))
            } -> (e, f)
            """,
        )

    @pytest.mark.parametrize(
        ("operation", "shape"),
        [
            ("matmul(y, v)", "2,3"),  # another operand
            ("matmul(h, x)", "2,3"),  # weights that change from step to step
            ("matmul(h, u)", "5,2,3"),  # a product for each of five
            ("matmul(v, v)", "3,3"),  # known before the loop
        ],
    )
    def test_other_products_stay(self, operation: str, shape: str) -> None:
        stays(
            merge_products,
            f"""
            graph (h: float32[2,3], x: float32[3,3], y: float32[2,3]; v: float32[3,3], u: float32[5,3,3]) {{
              a: float32[2,3] = matmul(h, v)
              b: float32[{shape}] = {operation}
            }} -> (a, b)
            """,
        )


def test_simplify_makes_a_textbook_cell_two_products_and_one_pass() -> None:
    becomes(
        simplify,
        """
        graph (h: float32[2,3], x: float32[2,1]; w: float32[4,6]) {
          a: float32[2,4] = concatenate(h, x, axis=-1, sizes=(3, 1))
          b: float32[2,6] = matmul(a, w)
          c: float32[2,6] = sigmoid(b)
          d: float32[2,3] = getitem(c, key=(:, :3))
          e: float32[2,3] = getitem(c, key=(:, 3:))
          f: float32[2,4] = concatenate(h, x, axis=-1, sizes=(3, 1))
          g: float32[2,6] = matmul(f, w)
          i: float32[2,3] = mul(d, e)
          j: float32[2,3] = mul(i, 1)
        } -> (j)
        """,
        """
        graph (h: float32[2,3], x: float32[2,1]; w: float32[4,6]) {
          a: float32[3,6] = getitem(w, key=(..., 0:3, :))
          b: float32[2,6] = matmul(h, a)
          c: float32[1,6] = getitem(w, key=(..., 3:4, :))
          d: float32[2,6] = matmul(x, c)
          e: float32[2,3] = getitem(b, key=(..., 0:3))
          f: float32[2,3] = getitem(d, key=(..., 0:3))
          g: float32[2,3] = add(e, f)
          i: float32[2,3] = sigmoid(g)
          j: float32[2,3] = getitem(b, key=(..., 3:6))
          k: float32[2,3] = getitem(d, key=(..., 3:6))
          l: float32[2,3] = add(j, k)
          m: float32[2,3] = sigmoid(l)
          n: float32[2,3] = mul(i, m)
        } -> (n)
        """,
    )


def test_simplify_makes_the_gradient_of_a_split_one_pass_over_columns() -> None:
    becomes(
        simplify,
        """
        graph (f: float32[2,3], g: float32[2,3], s: float32[2,6]; w: float32[6,4]) {
          a: float32[2,6] = scatter_add(g, key=(:, 3:), shape=(2, 6))
          b: float32[2,6] = scatter_add(f, key=(:, :3), shape=(2, 6))
          c: float32[2,6] = add(a, b)
          d: float32[2,6] = mul(c, s)
          e: float32[2,4] = matmul(d, w)
        } -> (e)
        """,
        """
        graph (f: float32[2,3], g: float32[2,3], s: float32[2,6]; w: float32[6,4]) {
          a: float32[2,3] = getitem(s, key=(..., 0:3))
          b: float32[2,3] = mul(f, a)
          c: float32[2,3] = getitem(s, key=(..., 3:6))
          d: float32[2,3] = mul(g, c)
          e: float32[2,6] = concatenate(b, d, axis=-1, sizes=(3, 3))
          h: float32[2,4] = matmul(e, w)
        } -> (h)
        """,
    )


def test_simplify_checks_after_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(graph: Graph) -> Graph:
        return Graph(graph.inputs, graph.equations[1:], graph.outputs, graph.closed)

    monkeypatch.setattr(passes, "SIMPLIFY", (wrong, dead_code))
    with pytest.raises(ts.GraphError, match="before it is assigned"):
        simplify(parse("graph (x: float32[]) {\n  a: float32[] = exp(x)\n  b: float32[] = exp(a)\n} -> (b)"))


@pytest.mark.parametrize(
    "cut", [lambda z: ts.functions.chunk(z, 2, -1), lambda z: (z[:, : z.shape[-1] // 2], z[:, z.shape[-1] // 2 :])]
)
def test_a_cell_may_split_what_it_split(cut: Callable[[Any], Any], rng: np.random.Generator) -> None:
    """Gradients of splits within splits, through the whole compiler."""

    def step(c: Any, x: Any) -> Any:
        a, b = cut(c + x)
        a1, a2 = cut(a)
        h = ts.concatenate([ts.tanh(a2), a1 * b[:, :2], ts.sigmoid(b)], -1)
        return h, h

    gradients = []
    for unroll in (False, True):
        x = ts.tensor(rng.standard_normal((3, 2, 8)) if not gradients else gradients[0][0], requires_grad=True)
        _, ys = ts.scan(step, ts.zeros((2, 8), np.float64), x, unroll=unroll)
        (ys * ys).sum().backward()
        assert x.grad is not None
        gradients.append((x.numpy(), x.grad.numpy()))
    np.testing.assert_allclose(gradients[0][1], gradients[1][1], rtol=1e-10)
    assert gradients[0][1].any()


# --- on graphs that hypothesis makes up -------------------------------------------------------------------------------

EXACT: list[Pass] = [
    lambda graph: rewrite(graph, lambda e, emit: None),
    dead_code,
    common_subexpressions,
    fold,
    join_slices,
    narrow,
]
EXACT_NAMES = ["rewrite", "dead_code", "common_subexpressions", "fold", "join_slices", "narrow"]


def split_half(graph: Graph) -> Graph:
    """The next step waits for every second output."""
    return split_columns(graph, graph.outputs[::2])


SUMMED = [split_products, split_sums, factor_sums, split_half, merge_products, simplify]
MORE = {
    "fold": ["move", "binary", "join"],
    "join_slices": ["spread"],
    "narrow": ["cut", "join", "unary"],
    "common_subexpressions": ["again"],
    "split_products": ["join", "product"],
    "split_sums": ["join", "unary"],
    "factor_sums": ["unary", "binary"],
    "split_half": ["product", "cut"],
    "merge_products": ["product"],
    "simplify": ["spread", "cut", "product"],
}
seeds = st.integers(0, 2**31)


def same_types(before: Graph, after: Graph) -> None:
    after.check()
    assert (after.inputs, after.closed) == (before.inputs, before.closed)
    assert [getattr(x, "dtype", type(x)) for x in after.outputs] == [getattr(x, "dtype", type(x)) for x in before.outputs]


@pytest.mark.parametrize(("one", "name"), list(zip(EXACT, EXACT_NAMES, strict=True)), ids=EXACT_NAMES)
@settings(max_examples=200, deadline=None)
@given(drawn=st.data(), seed=seeds)
def test_the_same_numbers_bit_by_bit(one: Pass, name: str, drawn: st.DataObject, seed: int) -> None:
    """NaN, infinities and the signs of zeros included."""
    graph = drawn.draw(graphs(more=MORE.get(name, ())))
    after = one(graph)
    same_types(graph, after)
    arrays = data(graph, seed, special=0.3)
    for a, b in zip(evaluate(graph, arrays), evaluate(after, arrays), strict=True):
        np.testing.assert_array_equal(b, a)
        numbers = ~np.isnan(a)
        np.testing.assert_array_equal(np.signbit(b)[numbers], np.signbit(a)[numbers])


@pytest.mark.parametrize("one", SUMMED, ids=lambda one: one.__name__)
@settings(max_examples=120, deadline=None)
@given(drawn=st.data(), seed=seeds)
def test_the_same_numbers_where_sums_are_taken_in_another_order(one: Pass, drawn: st.DataObject, seed: int) -> None:
    graph = drawn.draw(graphs(smooth=True, more=MORE[one.__name__]))
    after = one(graph)
    same_types(graph, after)
    for special in (0.0, 0.05):
        arrays = data(graph, seed, special)
        everything = Graph(graph.inputs, graph.equations, tuple(e.output for e in graph.equations), graph.closed)
        sizes = [np.abs(a[np.isfinite(a)]).max(initial=1) for a in evaluate(everything, arrays)]
        for a, b in zip(evaluate(graph, arrays), evaluate(after, arrays), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12 * max(sizes, default=1))


# Not simplify: it splits products before it joins slices, so that the gradient of a split stays one product.
@pytest.mark.parametrize("one", [*EXACT[1:], *SUMMED[:-1]], ids=[*EXACT_NAMES[1:], *(one.__name__ for one in SUMMED[:-1])])
@settings(max_examples=80, deadline=None)
@given(graph=graphs(more=["spread", "cut", "join", "product"]))
def test_a_second_time_changes_nothing(one: Pass, graph: Graph) -> None:
    once = one(graph)
    assert one(once).key() == once.key()


@settings(max_examples=80, deadline=None)
@given(graph=graphs(more=["again"]))
def test_what_remains(graph: Graph) -> None:
    """After dead code there is none; after common subexpressions no line occurs twice."""
    live = dead_code(graph)
    used = live.uses()
    assert all(e.output in used for e in live.equations)
    unique = common_subexpressions(graph)
    lines = [str(line).split(" = ")[1] for line in str(unique).splitlines()[1:-1]]
    assert len(set(lines)) == len(lines)


def test_the_page_about_the_compiler_prints_what_it_says() -> None:
    """After a change of a pass: ``python docs/refresh.py docs/compiler.md``, and read the difference."""
    page = Path(__file__).parents[1] / "docs" / "compiler.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert (result.failed, result.attempted > 20) == (0, True)
