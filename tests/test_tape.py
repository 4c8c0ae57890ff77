"""The tape: how long and how wide a graph may be, what it keeps, when it is freed, hooks, and assignment in place."""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import mode
from tinyseq.errors import DTypeError, GraphError, ShapeError
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tape import Leaf, Node, ancestors
from tinyseq.tensor import Tensor, apply


def leaf(value: Any, dtype: Any = ts.float64) -> Tensor:
    return ts.tensor(value, dtype=dtype, requires_grad=True)


# --- large graphs -----------------------------------------------------------------------------------------------------


def test_a_chain_of_100_000_operations() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1e-3
    y.backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0
    assert y.item() == pytest.approx(101.0)


def test_a_chain_of_100_000_operations_recorded_and_differentiated_again() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y * 1.00001
    y.backward(create_graph=True)
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(1.00001**100_000)
    del y


def test_a_chain_is_dropped_without_a_walk() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y.sin()
    del y  # a recursion in C would end the process here
    assert x.grad is None


def test_a_diamond_doubled_40_times() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(40):
        y = y + y
    y.backward()
    assert x.grad is not None
    assert x.grad.item() == 2.0**40


def test_a_diamond_is_dropped_without_a_walk() -> None:
    y = leaf(1.0)
    for _ in range(100_000):
        y = y + y * 0.0
    del y


def test_a_diamond_of_products_to_the_second_order() -> None:
    """x ** 1024 at 1."""
    one = ts.tensor(1.0, dtype=ts.float64)
    assert ts.grad(_doubled)(one).item() == 1024.0
    assert ts.grad(ts.grad(_doubled))(one).item() == 1024.0 * 1023.0


def _doubled(x: Tensor) -> Tensor:
    for _ in range(10):
        x = x * x
    return x


def _ladder(n: int) -> float:
    x = leaf(np.ones(4))
    a = b = x
    start = time.perf_counter()
    for _ in range(n):
        a, b = (a + b) * 0.5, (a - b) * 0.5
    (a + b).sum().backward()
    return time.perf_counter() - start


@pytest.mark.slow
def test_time_is_linear_in_the_graph() -> None:
    """Ten times the graph takes about ten times as long: far from the hundred of a quadratic walk."""
    _ladder(200)
    short = min(_ladder(1000) for _ in range(5))
    assert min(_ladder(10_000) for _ in range(2)) < 40 * short


def _memory(n: int) -> int:
    x = leaf(1.0)
    tracemalloc.start()
    try:
        y = x
        for _ in range(n):
            y = y * 0.6 + y * 0.4
        y.backward()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_is_linear_in_the_graph() -> None:
    """Ten times the graph takes about ten times the memory: far from the hundred of a quadratic walk."""
    assert _memory(10_000) < 20 * _memory(1000)


# --- what is kept, and for how long -----------------------------------------------------------------------------------


def _living(kind: type) -> int:
    return sum(type(o) is kind for o in gc.get_objects())


def _kept(f: Callable[[Tensor], Tensor], value: Any) -> list[tuple[str, int, bool]]:
    """For each node behind f(x): its primitive, how many inputs it keeps, and whether it keeps its output."""
    y = f(leaf(value))
    assert isinstance(y.node, Node)
    nodes = [n for n in ancestors([y.node]) if isinstance(n, Node)]
    return [(n.primitive.name, sum(a is not None for a in n.inputs or ()), n.output is not None) for n in nodes]


@pytest.mark.parametrize(
    ("f", "kept"),
    [
        (lambda x: x.tanh(), [("tanh", 0, True)]),
        (lambda x: x.exp(), [("exp", 0, True)]),
        (lambda x: x.sigmoid(), [("sigmoid", 0, True)]),
        (lambda x: x.relu(), [("relu", 0, True)]),
        (lambda x: x.log(), [("log", 1, False)]),
        (lambda x: x + 1.0, [("add", 0, False)]),
        (lambda x: x + ts.ones(2, dtype=ts.float64), [("add", 0, False)]),
        (lambda x: x.sum(), [("sum", 0, False)]),
        (lambda x: x.reshape(2, 1), [("reshape", 0, False)]),
        (lambda x: x[::-1], [("getitem", 0, False)]),
        (lambda x: x[ts.tensor([0, 0])], [("getitem", 1, False)]),
        (lambda x: x * ts.ones(2, dtype=ts.float64), [("mul", 1, False)]),  # the constant, not the variable
        (lambda x: x * x, [("mul", 2, False)]),
    ],
)
def test_a_node_keeps_what_its_rule_names(f: Callable[[Tensor], Tensor], kept: list[Any]) -> None:
    assert _kept(f, [0.5, 2.0]) == kept


def test_of_a_product_with_a_constant_only_the_constant_is_kept() -> None:
    w = ts.ones((2, 3), dtype=ts.float64)
    y = leaf(np.ones((4, 2))) @ w
    assert isinstance(y.node, Node)
    assert [a is not None for a in y.node.inputs or ()] == [False, True]


def test_dropping_the_loss_frees_the_graph_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        before = _living(Node)
        x = leaf(np.ones(3))
        loss = ((x.tanh() * x).exp() + x).sum()
        assert _living(Node) == before + 5
        watched = weakref.ref(loss)
        del loss
        assert watched() is None
        assert _living(Node) == before
        loss = (x.tanh() * x).sum()
        loss.backward()
        del loss
        assert _living(Node) == before
    finally:
        gc.enable()


def test_dropping_a_recorded_backward_frees_both_graphs_without_the_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        before = _living(Node)
        x = leaf(np.ones(3))
        loss = (x.tanh() * x).sum()
        loss.backward(create_graph=True)
        assert _living(Node) > before
        del loss
        x.grad = None
        assert _living(Node) == before
    finally:
        gc.enable()


def test_backward_drops_the_kept_arrays_and_leaves_the_structure() -> None:
    x = leaf(np.ones(3))
    y = x.tanh()
    holders = sys.getrefcount(y.data)
    loss = y.sum()
    loss.backward()
    now = sys.getrefcount(y.data)
    assert now == holders - 1  # the node's own reference is gone
    assert isinstance(loss.node, Node)
    assert [n.primitive.name for n in ancestors([loss.node]) if isinstance(n, Node)] == ["tanh", "sum"]


def _peaks(build: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float, float]:
    """In arrays of the size of a step: held after the forward pass, the peak of the backward pass, and held after it."""
    unit = 8 * 50_000
    gc.collect()
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        loss = build(x)
        held = tracemalloc.get_traced_memory()[0] - start
        tracemalloc.reset_peak()
        loss.backward()
        now, peak = (m - start for m in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    return held / unit, peak / unit, now / unit


def test_tanh_steps_keep_their_outputs_and_no_more() -> None:
    steps = 50

    def build(x: Tensor) -> Tensor:
        for _ in range(steps):
            x = (x * 0.9).tanh()
        return x.sum()

    held, peak, after = _peaks(build, leaf(np.ones(50_000)))
    assert steps <= held < steps + 2
    assert peak < held + 5
    assert after < 3  # the gradient, and what the loss still holds


def test_a_recurrent_net_keeps_its_states_and_no_more() -> None:
    steps, w = 50, leaf(np.eye(50) * 0.9)

    def build(x: Tensor) -> Tensor:
        h = x.reshape(1000, 50)
        for _ in range(steps):
            h = (h @ w + h).tanh()
        return h.sum()

    held, peak, _ = _peaks(build, leaf(np.ones(50_000)))
    assert steps <= held < steps + 2
    assert peak < held + 6


def test_the_peak_does_not_grow_with_the_walk() -> None:
    """Where rules keep nothing, a walk over ten times the steps needs no more."""

    def build(steps: int) -> Callable[[Tensor], Tensor]:
        def chain(x: Tensor) -> Tensor:
            for _ in range(steps):
                x = x * 0.99 + 1.0
            return x.sum()

        return chain

    (_, few, _), (_, many, _) = (_peaks(build(steps), leaf(np.ones(50_000))) for steps in (10, 100))
    assert many < few + 1


def test_indexing_each_step_is_linear_in_the_steps() -> None:
    """The gradient of x[t] is added into one buffer: T arrays of T steps would be 100 times as much here."""
    steps = 100

    def build(x: Tensor) -> Tensor:
        xs = x.reshape(steps, 500)
        total = ts.zeros(500, dtype=ts.float64)
        for t in range(steps):
            total = total + xs[t]
        return total.sum()

    x = leaf(np.ones(50_000))
    held, peak, _ = _peaks(build, x)
    assert held < 1
    assert peak < 5
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), 1.0)


def test_unstacking_by_iteration_gives_the_gradient_of_each_step() -> None:
    x = leaf(np.arange(6.0).reshape(3, 2))
    loss = sum((row * float(i + 1)).sum() for i, row in enumerate(x))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [[1, 1], [2, 2], [3, 3]])


# --- walking twice ----------------------------------------------------------------------------------------------------


def test_a_second_walk_over_a_freed_graph_is_refused() -> None:
    x = leaf([1.0, 2.0])
    loss = (x.tanh() * x).sum()
    loss.backward()
    with pytest.raises(GraphError, match=r"walked before.*retain_graph=True"):
        loss.backward()


def test_a_shared_part_of_a_freed_graph_is_refused() -> None:
    x = leaf([1.0, 2.0])
    y = x.exp()
    y.sum().backward()
    with pytest.raises(GraphError, match="walked before"):
        (y * 2).sum().backward()


def test_a_retained_graph_is_walked_again_and_gradients_add_up() -> None:
    x = leaf([1.0, 2.0])
    loss = (x * x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 8.0])
    with pytest.raises(GraphError):
        loss.backward()


def test_create_graph_retains_unless_told_otherwise() -> None:
    x = leaf([1.0, 2.0])
    loss = (x**3).sum()
    loss.backward(create_graph=True)
    loss.backward(create_graph=True)
    assert x.grad is not None
    assert x.grad.requires_grad
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 24.0])


def test_gradients_of_gradients_through_backward() -> None:
    x = leaf([1.0, 2.0])
    (x**3).sum().backward(create_graph=True)
    g, x.grad = x.grad, None
    assert g is not None
    (g**2).sum().backward()  # sum of 9 x^4
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [36.0, 288.0], rtol=1e-14)


def test_a_first_order_gradient_is_a_constant() -> None:
    x = leaf([1.0, 2.0])
    (x**3).sum().backward()
    assert x.grad is not None
    assert not x.grad.requires_grad


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_the_seed_weighs_the_outputs() -> None:
    x = leaf([1.0, 2.0])
    (x * x).backward([1.0, 10.0])
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 40.0])


def test_a_tensor_of_one_element_needs_no_seed() -> None:
    x = leaf([[3.0]])
    (x * x).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[6.0]]


def test_the_gradient_is_apart_from_the_seed() -> None:
    """What is done to the seed afterwards does not reach the gradient, nor does one gradient reach another."""
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    seed = np.ones(2)
    (x + y).backward(seed)
    seed[:] = 7
    assert x.grad is not None
    assert y.grad is not None
    with ts.no_grad():
        x.grad[0] = 5.0
    assert x.grad.tolist() == [5.0, 1.0]
    assert y.grad.tolist() == [1.0, 1.0]


def test_a_leaf_by_itself() -> None:
    x = leaf(2.0)
    x.backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0


# --- recording --------------------------------------------------------------------------------------------------------


def test_no_grad_and_enable_grad_nest() -> None:
    x = leaf([1.0])
    with ts.no_grad():
        assert not (x * 2).requires_grad
        with ts.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_is_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), ts.no_grad():
        raise ZeroDivisionError
    assert mode.current().recording


def test_detach_shares_the_values_and_stops_the_gradient() -> None:
    x = leaf([2.0])
    y = x.detach()
    assert not y.requires_grad
    assert y.data is x.data
    (x * y).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0]


def test_constants_leave_no_record() -> None:
    assert (ts.ones(3) * 2).tanh().node is None


def test_what_has_no_gradient_leaves_no_record() -> None:
    x = leaf([1.0, 2.0])
    for y in (x > 1.0, x.argmax(), x == x, ts.isnan(x), x.astype(ts.int64), x.astype(ts.bool_)):
        assert not y.requires_grad
    assert x.astype(ts.float32).requires_grad


def test_a_round_trip_through_integers_has_no_gradient() -> None:
    x = leaf([1.5, 2.5])
    (x.astype(ts.int64).astype(ts.float64) * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0]


def test_unused_branches_and_unused_leaves() -> None:
    x, y = leaf([1.0]), leaf([1.0])
    unused = x.exp()
    (x * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0]
    assert y.grad is None
    assert unused.requires_grad


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_a_hook_replaces_the_gradient_on_a_leaf_and_inside() -> None:
    x = leaf([1.0])
    y = x * 3
    y.register_hook(lambda g: g * 10)
    x.register_hook(lambda g: g + 1)
    (y * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2 * 10 * 3 + 1]


def test_hooks_run_in_the_order_of_their_making_each_on_the_last_ones_result() -> None:
    x, seen = leaf([1.0]), []
    for factor in (2.0, 5.0):
        x.register_hook(lambda g, factor=factor: seen.append((factor, g.item())) or g * factor)
    (x * 3).sum().backward()
    assert seen == [(2.0, 3.0), (5.0, 6.0)]
    assert x.grad is not None
    assert x.grad.tolist() == [30.0]


def test_a_removed_hook_is_gone() -> None:
    x = leaf([1.0])
    first = x.register_hook(lambda g: g * 2)
    x.register_hook(lambda g: g * 3)
    first.remove()
    first.remove()
    (x * 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0]


def test_a_hook_runs_once_when_all_parts_are_there() -> None:
    x, seen = leaf([1.0]), []
    y = x * 1.0
    y.register_hook(lambda g: seen.append(g.item()))
    (y * 2 + y * 3 + y * y).sum().backward()
    assert seen == [7.0]


def test_a_hook_sees_a_recorded_gradient_at_higher_order() -> None:
    x = leaf([2.0])
    x.register_hook(lambda g: g * g)
    (x**3).sum().backward(create_graph=True)
    assert x.grad is not None
    assert x.grad.tolist() == [144.0]
    g, x.grad = x.grad, None
    # The gradient is 9 x^4; its own gradient, 36 x^3 = 288, passes the hook on its way to x and is squared.
    g.sum().backward()
    assert x.grad.tolist() == [288.0**2]


def test_retain_grad_leaves_the_gradient_of_a_result() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2
    y.retain_grad()
    assert y.grad is None
    (y * y).sum().backward()
    assert y.grad is not None
    assert y.grad.tolist() == [4.0, 8.0]
    x.retain_grad()  # has it anyway
    assert x.grad is not None


def test_a_retained_gradient_adds_up_as_a_leafs_does() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2
    y.retain_grad()
    loss = (y * y).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert y.grad is not None
    assert y.grad.tolist() == [8.0, 16.0]


def test_retain_grad_after_a_hook_and_at_higher_order() -> None:
    x = leaf([2.0])
    y = x * 1.0
    y.retain_grad()
    y.register_hook(lambda g: g * 5)
    (y * y).sum().backward(create_graph=True)
    assert y.grad is not None
    assert y.grad.tolist() == [20.0]
    assert y.grad.requires_grad


# --- assignment in place ----------------------------------------------------------------------------------------------


def test_assignment_on_the_tape_is_refused_with_what_to_write() -> None:
    x = leaf([1.0, 2.0])
    y = x * 2
    for t in (x, y):
        with pytest.raises(GraphError, match=r"in-place assignment.*ts\.where"):
            t[0] = 5.0
    with ts.no_grad(), pytest.raises(GraphError):
        y[0] = 5.0
    assert y.tolist() == [2.0, 4.0]


def test_a_leaf_may_be_assigned_to_under_no_grad() -> None:
    x = leaf([1.0, 2.0])
    with ts.no_grad():
        x[0] = 5.0
    assert x.tolist() == [5.0, 2.0]
    assert x.requires_grad


def test_assignment_to_a_leaf_does_not_change_a_gradient_that_was_promised() -> None:
    x = leaf([1.0, 2.0])
    loss = (x * x).sum()
    with ts.no_grad():
        x[0] = 100.0
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 4.0]


def test_assignment_to_a_constant_that_the_tape_kept_copies_first() -> None:
    x, c = leaf([1.0, 2.0]), ts.tensor([3.0, 4.0], dtype=ts.float64)
    loss = (x * c).sum()
    c[0] = 100.0
    assert c.tolist() == [100.0, 4.0]
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 4.0]


def test_assignment_to_an_index_that_the_tape_kept_copies_first() -> None:
    x, i = leaf([1.0, 2.0, 3.0]), ts.tensor([0, 0])
    loss = x[i].sum()
    i[0] = 2
    loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 0.0, 0.0]


def test_assignment_does_not_reach_views_nor_the_viewed() -> None:
    base = ts.tensor([[1.0, 2.0], [3.0, 4.0]])
    row, whole, same = base[0], base.reshape(4), base.detach()
    base[0, 0] = 9.0
    assert (row.tolist(), whole.tolist(), same.tolist()) == ([1.0, 2.0], [1.0, 2.0, 3.0, 4.0], [[1.0, 2.0], [3.0, 4.0]])
    row[1] = 7.0
    assert base.tolist() == [[9.0, 2.0], [3.0, 4.0]]


def test_assignment_does_not_reach_what_was_taken_out() -> None:
    t = ts.zeros(3)
    seen, array = t.numpy(), np.ones(3, np.float32)
    t[0] = 1.0
    assert seen.tolist() == [0.0, 0.0, 0.0]
    shared = ts.as_tensor(array)
    shared[0] = 5.0
    assert array.tolist() == [1.0, 1.0, 1.0]


def test_assignment_is_in_place_where_nobody_else_holds_the_array() -> None:
    t = ts.zeros(1000)
    before = id(t.data)
    t[3:5] = 1.0
    assert id(t.data) == before


def test_assignment_by_every_kind_of_key() -> None:
    t, expected = ts.zeros((3, 4)), np.zeros((3, 4), np.float32)
    mask = np.arange(12).reshape(3, 4) % 5 == 0
    for key, numpy_key, value in (
        ((0, 1), (0, 1), 1.0),
        (slice(1, None), slice(1, None), 2.0),
        ((Ellipsis, -1), (Ellipsis, -1), ts.tensor([5.0, 6.0, 7.0])),
        (ts.tensor([0, 2]), np.array([0, 2]), ts.full((2, 4), 3.0)),
        (ts.tensor(mask), mask, -1.0),
        ((ts.tensor([0, 1]), slice(None, None, -2)), (np.array([0, 1]), slice(None, None, -2)), 8),
    ):
        t[key] = value
        expected[numpy_key] = value.numpy() if isinstance(value, Tensor) else value
        np.testing.assert_array_equal(t.numpy(), expected)


def test_augmented_assignment_makes_a_new_tensor() -> None:
    x = leaf([1.0])
    y = x
    y += 1.0
    assert x.tolist() == [1.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0]


# --- threads ----------------------------------------------------------------------------------------------------------


def _in_thread(f: Callable[[], Any]) -> Any:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(f()))
    thread.start()
    thread.join()
    return result[0]


def test_no_grad_in_one_thread_does_not_reach_another() -> None:
    x = leaf([1.0])
    with ts.no_grad():
        assert _in_thread(lambda: (x * 2).requires_grad)
        assert not (x * 2).requires_grad

    def quiet() -> bool:
        ready.wait()
        with ts.no_grad():
            inside.set()
            done.wait()
            return (x * 2).requires_grad

    ready, inside, done = threading.Event(), threading.Event(), threading.Event()
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(quiet()))
    thread.start()
    ready.set()
    inside.wait()
    assert (x * 2).requires_grad
    done.set()
    thread.join()
    assert results == [False]


def test_threads_walk_graphs_of_their_own_over_shared_constants() -> None:
    w = ts.tensor(np.eye(8) * 0.5)

    def gradient(i: int) -> list[float]:
        x = leaf(np.full(8, float(i)))
        h = x
        for _ in range(50):
            h = (h @ w).tanh() + x
        h.sum().backward()
        assert x.grad is not None
        return x.grad.tolist()  # type: ignore[no-any-return]

    alone = [gradient(i) for i in range(4)]
    together: dict[int, list[float]] = {}
    threads = [threading.Thread(target=lambda i=i: together.update({i: gradient(i)})) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert [together[i] for i in range(4)] == alone


# --- places -----------------------------------------------------------------------------------------------------------


def test_serials_are_a_topological_order() -> None:
    x = leaf([1.0])
    y = (x.exp() * x + x.tanh()).sum()
    assert y.node is not None
    order = ancestors([y.node])
    for place in order:
        assert all(parent is None or parent.serial < place.serial for parent in place.parents)
    assert isinstance(order[0], Leaf)


def test_scopes_say_where_a_node_was_made() -> None:
    x = leaf([1.0])
    with mode.scope("module", "Linear"), mode.scope("step", 3):
        y = x * 2
    assert isinstance(y.node, Node)
    assert y.node.scope is not None
    assert (y.node.scope.kind, y.node.scope.name) == ("step", 3)
    assert y.node.scope.parent is not None
    assert y.node.scope.parent.name == "Linear"
    assert (x * 2).node.scope is None  # type: ignore[union-attr]


def test_a_rule_of_a_wrong_shape_is_an_error_that_says_so() -> None:
    row = Primitive("strange", TABLE["neg"].shape, (lambda F, g: F.reshape(g, shape=(3, 1, 1)),))
    backend = ts.current_backend()
    backend.table["strange"] = backend.table["neg"]
    try:
        x = leaf([1.0, 2.0, 3.0])
        with pytest.raises(ShapeError, match=r"cotangent of shape \(3, 1, 1\) for an argument of shape \(3,\)"):
            apply(row, (x,)).backward(np.ones(3))
    finally:
        del backend.table["strange"]


def test_gradients_come_in_their_tensors_dtype() -> None:
    x, w = leaf([1.0, 2.0], ts.float32), leaf([3.0, 4.0], ts.float64)
    (x * w).sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    assert (x.grad.dtype, w.grad.dtype) == (ts.float32, ts.float64)


def test_copies_and_pickles() -> None:
    import copy
    import pickle

    x = leaf([1.0])
    twin = copy.deepcopy(x)
    assert twin.requires_grad
    assert twin.node is not x.node
    with pytest.raises(GraphError, match="copied"):
        copy.copy(x * 2)
    with pytest.raises(TypeError, match=r"ts\.save"):
        pickle.dumps(x)
    with pytest.raises(DTypeError):
        ts.tensor([1]).requires_grad_()
