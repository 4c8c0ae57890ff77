"""What holds for the code that runs now: recording, as blocks, decorators and in tasks; anomaly mode; who watches."""

from __future__ import annotations

import asyncio
import contextvars
import linecache
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import mode
from tinyseq.errors import NonFiniteError
from tinyseq.primitives import TABLE, Primitive
from tinyseq.tensor import Tensor, apply


def leaf(value: Any) -> Tensor:
    return ts.tensor(value, dtype=ts.float64, requires_grad=True)


# --- recording --------------------------------------------------------------------------------------------------------


def test_no_grad_and_enable_grad_as_decorators() -> None:
    @ts.no_grad()
    def quiet(x: Tensor, depth: int = 0) -> list[bool]:
        """With a name and a docstring."""
        return [*([] if depth == 2 else quiet(x, depth + 1)), (x * 2).requires_grad]  # a decorated function may call itself

    @ts.enable_grad()
    def loud(x: Tensor) -> bool:
        return (x * 2).requires_grad

    x = leaf([1.0])
    assert quiet(x) == [False, False, False]
    assert quiet.__name__ == "quiet"
    assert quiet.__doc__ == "With a name and a docstring."
    with ts.no_grad():
        assert loud(x)
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def test_a_decorated_function_that_fails_puts_the_mode_back() -> None:
    @ts.no_grad()
    def fails() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert mode.current().recording


def test_one_block_object_may_be_entered_again() -> None:
    x, block = leaf([1.0]), ts.no_grad()
    for _ in range(2):
        with block:
            assert not (x * 2).requires_grad
        assert (x * 2).requires_grad


def test_asynchronous_tasks_have_a_mode_each() -> None:
    x = leaf([1.0])

    async def watch(block: Any, seen: list[bool], my_turn: asyncio.Event, next_turn: asyncio.Event) -> None:
        with block:
            for _ in range(3):
                await my_turn.wait()
                my_turn.clear()
                seen.append((x * 2).requires_grad)
                next_turn.set()

    async def both() -> tuple[list[bool], list[bool]]:
        quiet: list[bool] = []
        loud: list[bool] = []
        a, b = asyncio.Event(), asyncio.Event()
        a.set()
        await asyncio.gather(watch(ts.no_grad(), quiet, a, b), watch(ts.enable_grad(), loud, b, a))
        return quiet, loud

    assert asyncio.run(both()) == ([False] * 3, [True] * 3)


def test_a_copied_context_carries_the_mode_to_a_thread() -> None:
    x = leaf([1.0])
    with ts.no_grad(), ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        assert not pool.submit(context.run, lambda: (x * 2).requires_grad).result()
        assert pool.submit(lambda: (x * 2).requires_grad).result()


def test_many_threads_each_in_a_mode_of_its_own() -> None:
    x, start = leaf(np.ones(4)), threading.Barrier(8)

    def work(i: int) -> bool:
        start.wait()
        block = ts.no_grad() if i % 2 else ts.enable_grad()
        with block:
            return all((x * float(k)).requires_grad == (i % 2 == 0) for k in range(200))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_modes_of_different_kinds_keep_apart() -> None:
    x = leaf([1.0])
    with ts.no_grad(), ts.use_backend("numpy"), mode.scope("module", "Outer"), ts.enable_grad():
        y = x * 2
        assert y.node is not None
        assert y.node.scope.name == "Outer"  # type: ignore[union-attr]
        assert mode.current().backend is ts.get_backend("numpy")
    assert mode.current().scope is None


# --- anomaly mode -----------------------------------------------------------------------------------------------------


def line_of(error: BaseException) -> str:
    """The source line that the message points at."""
    found = re.search(r"called at (.*):(\d+) in (\w+)", str(error))
    assert found, str(error)
    return linecache.getline(found[1], int(found[2])).strip()


@pytest.mark.parametrize(
    ("f", "name", "kind"),
    [
        (lambda x: x.log(), "log", "a NaN"),
        (lambda x: x.sqrt(), "sqrt", "a NaN"),
        (lambda x: x / ts.zeros_like(x), "div", "an infinity"),
        (lambda x: (x * -1000.0).exp(), "exp", "an infinity"),
        (lambda x: x**0.5, "power", "a NaN"),
        (lambda x: ts.tensor([[3e38, 3e38]]).sum(), "sum", "an infinity"),
        (lambda x: ts.tensor([[3e38, 3e38]]) @ ts.ones((2, 1)), "matmul", "an infinity"),
        (lambda x: ts.tensor(1e300, dtype=ts.float64).astype(ts.float32), "cast", "an infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_first_operation_that_makes_it_is_named(f: Callable[[Tensor], Tensor], name: str, kind: str) -> None:
    for x in (leaf([-1.0]), ts.tensor([-1.0])):  # on the tape or not
        f(x)
        sentence = rf"^{name} made {kind} of finite inputs, called at .*test_modes\.py"
        with pytest.raises(NonFiniteError, match=sentence), ts.detect_anomaly():
            f(x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_line_outside_tinyseq_that_called_is_named() -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 2.0
        z = ts.log_softmax(y) + y.log()  # this line
        return z.sum()

    with pytest.raises(NonFiniteError) as caught, ts.detect_anomaly():
        model(leaf([1.0, -1.0]))
    assert line_of(caught.value).endswith("# this line")
    assert str(caught.value).endswith(" in model")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_backward_names_the_forward_line() -> None:
    x = leaf([0.0, 1.0])
    with ts.detect_anomaly():
        y = x.sqrt()  # the root of it
        loss = y.sum()
        with pytest.raises(NonFiniteError, match=r"^the gradient of sqrt became NaN or infinite from a finite one") as caught:
            loss.backward()
    assert line_of(caught.value).endswith("# the root of it")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_backward_in_the_mode_of_a_forward_outside_it() -> None:
    loss = leaf([0.0]).sqrt().sum()
    with ts.detect_anomaly(), pytest.raises(NonFiniteError, match=r"gradient of sqrt.*a line outside detect_anomaly\(\)"):
        loss.backward()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_recorded_backward_is_watched_as_well() -> None:
    with ts.detect_anomaly(), pytest.raises(NonFiniteError):
        leaf([0.0]).sqrt().sum().backward(create_graph=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gradients_through_indexing_and_concatenation_are_watched() -> None:
    x = leaf([[0.0, 1.0], [2.0, 3.0]])
    with ts.detect_anomaly():
        loss = (ts.concatenate([x[0], x[ts.tensor([1, 1])].reshape(-1)]) * x.sum()).sqrt().sum()
        with pytest.raises(NonFiniteError, match="gradient of sqrt"):
            loss.backward()
        y = leaf([[1.0, 1.0], [2.0, 3.0]])
        (ts.concatenate([y[0], y[ts.tensor([1, 1])].reshape(-1)]).sqrt()).sum().backward()
    assert y.grad is not None
    np.testing.assert_allclose(y.grad.numpy(), [[0.5, 0.5], 1 / np.sqrt([2.0, 3.0])], rtol=1e-12)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_comes_in_broken_is_not_blamed_on_those_who_pass_it_on() -> None:
    with ts.detect_anomaly():
        x = leaf([np.inf, np.nan, 1.0])
        y = (x * 2.0 + 1.0).tanh()
        y.backward([np.nan, 1.0, 1.0])
        ts.checkpoint(lambda x: x * 2.0, x).backward([np.nan, 1.0, 1.0])
    assert x.grad is not None
    assert np.isnan(x.grad.numpy()[0])


def test_whole_numbers_and_truth_pass() -> None:
    with ts.detect_anomaly():
        assert (ts.tensor([1, 2]) > 1).any().item()
        assert ts.one_hot(ts.tensor([1]), 2).tolist() == [[0, 1]]


def test_anomaly_mode_changes_no_number() -> None:
    def run() -> tuple[Any, Any]:
        x = leaf(np.linspace(-2, 2, 12).reshape(3, 4))
        loss = ts.cross_entropy(ts.layer_norm(x.tanh() @ x.T), ts.tensor([0, 2, 1]))
        loss.backward()
        assert x.grad is not None
        return loss.item(), x.grad.tolist()

    plain = run()
    with ts.detect_anomaly():
        assert run() == plain


def test_a_wrong_rule_that_makes_a_nan_is_found() -> None:
    row = Primitive("spoilt", TABLE["neg"].shape, (lambda g: g * float("nan"),))
    table = ts.current_backend().table
    table["spoilt"] = table["neg"]
    try:
        with ts.detect_anomaly(), pytest.raises(NonFiniteError, match="the gradient of spoilt"):
            apply(row, (leaf([1.0]) * 1.0,)).sum().backward()
    finally:
        del table["spoilt"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_mode_ends_with_its_block_and_keeps_to_its_thread() -> None:
    with ts.detect_anomaly(), ThreadPoolExecutor(1) as pool:
        assert np.isnan(pool.submit(lambda: ts.tensor([-1.0]).log().item()).result())
    assert np.isnan(ts.tensor([-1.0]).log().item())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_step_of_a_scan_is_watched() -> None:
    def step(h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        h = h - x
        return h, h.log()  # goes below zero

    with pytest.raises(NonFiniteError, match=r"^log made a NaN") as caught, ts.detect_anomaly():
        ts.scan(step, ts.tensor(2.5), ts.ones(5), unroll=True)
    assert line_of(caught.value).endswith("# goes below zero")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_module_and_a_checkpoint_are_watched() -> None:
    with pytest.raises(NonFiniteError, match=r"^log made"), ts.detect_anomaly():
        ts.checkpoint(lambda x: x.log(), leaf([-1.0]))
    layer = ts.nn.Linear(2, 2)
    with ts.no_grad():
        layer.weight[0, 0] = 3e38
    with pytest.raises(NonFiniteError, match=r"^matmul made an infinity") as caught, ts.detect_anomaly():
        layer(ts.tensor([[3e38, 0.0]]))  # into the layer
    assert line_of(caught.value).endswith("# into the layer")


# --- observers --------------------------------------------------------------------------------------------------------


def test_an_observer_sees_every_operation_forward_and_backward() -> None:
    class Log:
        def __init__(self) -> None:
            self.applied_names: list[str] = []
            self.pulled_names: list[str] = []

        def applied(self, primitive: Primitive, arrays: Any, output: Any, node: Any) -> None:
            self.applied_names.append(primitive.name)

        def pulled(self, node: Any, cotangent: Any, contributions: Any) -> None:
            self.pulled_names.append(node.primitive.name)

    x, log = leaf([1.0, 2.0]), Log()
    with mode.changed(observer=log):
        loss = (x.tanh() * x).sum()
        ts.ones(2) + 1.0
        loss.backward()
    loss = x.exp()
    assert log.applied_names[:4] == ["tanh", "mul", "sum", "add"]
    assert log.pulled_names == ["sum", "mul", "tanh"]
