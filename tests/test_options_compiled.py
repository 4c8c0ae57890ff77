"""No option of a recurrent layer leaves Numba's compiled loop, forward or backward."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.tree import flatten

tinyseq_numba = pytest.importorskip("tinyseq_numba")

T, B, I, H = 6, 4, 7, 19  # noqa: E741 (sizes of no other test, so that nothing is compiled yet)

COMMON: dict[str, dict[str, Any]] = {
    "plain": {},
    "recurrent dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": 0.2},
    "layer norm": {"layer_norm": True},
    "learned state": {"learn_state": True},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2, "dropout": 0.2},
    "bidirectional": {"bidirectional": True},
    "reverse": {"reverse": True},
    "batch first": {"batch_first": True},
    "all": {"recurrent_dropout": 0.3, "zoneout": 0.2, "layer_norm": True, "learn_state": True},
}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "RNN": {"relu": {"nonlinearity": "relu"}},
    "GRU": {"reset before": {"reset_after": False}, "reset before, layer norm": {"reset_after": False, "layer_norm": True}},
    "LSTM": {
        "peepholes": {"peepholes": True},
        "coupled": {"coupled": True},
        "projection": {"proj_size": 5},
        "cells returned": {"return_cells": True},
        "forget bias": {"forget_bias": 1.0},
        "all with peepholes": COMMON["all"] | {"peepholes": True, "proj_size": 5},
        "all coupled": COMMON["all"] | {"peepholes": True, "coupled": True, "return_cells": True},
    },
}
CASES = [
    pytest.param(kind, settings, call, id=f"{kind} {name}{', ' + call if call else ''}")
    for kind in OWN
    for (name, settings), call in itertools.product((COMMON | OWN[kind]).items(), ("", "lengths and resets"))
]


@pytest.fixture(autouse=True)
def numba_says_every_time() -> Any:
    """A loop that falls back warns, and a warning is an error here."""
    tinyseq_numba._said.clear()
    with ts.use_backend("numba"):
        yield
    tinyseq_numba._said.clear()


@pytest.mark.parametrize(("kind", "settings", "call"), CASES)
def test_the_option_is_compiled_and_right(rng: np.random.Generator, kind: str, settings: dict[str, Any], call: str) -> None:
    layer = getattr(ts.nn, kind)(I, H, **settings, dtype=ts.float64)
    shape = (B, T) if layer.batch_first else (T, B)
    x = rng.standard_normal((*shape, I))
    arguments = {"lengths": [3, 6, 0, 5], "resets": rng.random(shape) < 0.3} if call else {}

    def answer(unroll: bool) -> list[np.ndarray]:
        layer.unroll = unroll
        ts.manual_seed(3)
        leaf = ts.tensor(x, requires_grad=True)
        leaves = [leaf, *layer.parameters()]
        for each in leaves:
            each.grad = None
        output, state = layer(leaf, **arguments)
        found = flatten((output, state))[0]
        sum(((part * part).sum() for part in found), ts.tensor(0.0, dtype=ts.float64)).backward()
        return [each.detach().numpy() for each in [*found, *(each.grad for each in leaves)]]

    for got, want in zip(answer(unroll=False), answer(unroll=True), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * max(1.0, np.abs(want).max()))


def test_a_loop_that_falls_back_is_caught() -> None:
    """This file's own alarm: it would be silent if the warning had another name."""
    with pytest.raises(UserWarning, match="the slower NumPy loop"):
        ts.scan(lambda c, v: (ts.flip(c + v, -1), c), ts.zeros((2, H)), ts.zeros((3, 2, H)))
