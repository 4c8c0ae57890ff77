"""Anomaly mode names the primitive and the line where the first NaN or infinity arose, forward or backward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.errors import NonFiniteError


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def _line(of: Any, words: str) -> str:
    """``file:line`` of the first line of a function that holds the words."""
    lines, start = inspect.getsourcelines(of)
    return f"test_anomaly.py:{start + next(i for i, line in enumerate(lines) if words in line)} in {of.__name__}"


def test_the_first_nan_forward_is_named_with_its_line() -> None:
    x = ts.tensor([1.0, -1.0])
    with ts.detect_anomaly():
        x.exp()
        with pytest.raises(NonFiniteError, match="log made a NaN of finite inputs") as caught:
            x.log()  # here
    assert _line(test_the_first_nan_forward_is_named_with_its_line, "# here") in str(caught.value)


def test_the_first_infinity_forward_is_named() -> None:
    with ts.detect_anomaly(), pytest.raises(NonFiniteError, match="div made an infinity"):
        ts.tensor([1.0]) / 0.0


def test_through_a_layer_the_line_is_the_users() -> None:
    layer = ts.nn.Linear(2, 2)
    with ts.no_grad():
        layer.weight[0, 0] = 3e38
    with ts.detect_anomaly(), pytest.raises(NonFiniteError) as caught:
        layer(ts.full((1, 2), 3e38))  # here
    assert _line(test_through_a_layer_the_line_is_the_users, "# here") in str(caught.value)


def test_the_first_nan_backward_is_named_with_the_line_of_the_forward_call() -> None:
    x = ts.tensor([0.0, 4.0], requires_grad=True)
    with ts.detect_anomaly():
        y = x.sqrt()  # here
        with pytest.raises(NonFiniteError, match="the gradient of sqrt became NaN or infinite") as caught:
            (y * 2.0).sum().backward()
    here = _line(test_the_first_nan_backward_is_named_with_the_line_of_the_forward_call, "# here")
    assert here in str(caught.value)


def test_backward_of_a_graph_made_outside_the_block() -> None:
    x = ts.tensor([0.0], requires_grad=True)
    y = x.sqrt()
    with ts.detect_anomaly(), pytest.raises(NonFiniteError, match=r"the gradient of sqrt.*outside detect_anomaly"):
        y.sum().backward()


def test_at_higher_order_too() -> None:
    x = ts.tensor([0.0], requires_grad=True)
    with ts.detect_anomaly():
        (x**1.5).sum().backward(create_graph=True)
        assert x.grad is not None
        with pytest.raises(NonFiniteError, match="power"):
            x.grad.sum().backward()


def test_what_came_in_already_is_not_blamed_on_the_operation() -> None:
    with ts.detect_anomaly():
        assert math.isnan((ts.tensor([math.nan]) * 2.0).item())
        assert (ts.tensor([-math.inf]).exp()).item() == 0.0


def test_it_ends_with_its_block_also_after_an_error() -> None:
    with ts.detect_anomaly(), pytest.raises(NonFiniteError):
        ts.tensor([-1.0]).sqrt()
    assert math.isnan(ts.tensor([-1.0]).sqrt().item())


def test_it_changes_no_result() -> None:
    def run() -> tuple[Any, Any]:
        x = ts.tensor(np.linspace(-1, 1, 6).reshape(2, 3), requires_grad=True)
        loss = (ts.softmax(x @ x.mT) * x[:, :2]).sum() + x[0].cumsum(0)[-1] + ts.concatenate([x, x]).max()
        loss.backward()
        assert x.grad is not None
        return loss.item(), x.grad.tolist()

    expected = run()
    with ts.detect_anomaly():
        assert run() == expected


def test_on_a_library_that_follows_the_standard() -> None:
    with ts.use_backend(StrictBackend()), ts.detect_anomaly(), pytest.raises(NonFiniteError, match="log made a NaN"):
        ts.tensor([-1.0]).log()
