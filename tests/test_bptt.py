"""Truncated backpropagation through time: the unrolled definition, cut at the borders of the chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensors import close, draw, parts

import tinyseq as ts
from tinyseq import nn
from tinyseq.tree import flatten, tree_map

F64 = np.float64
T, B, I, H = 7, 4, 3, 2  # noqa: E741 (the letters of the docstrings)
LENGTHS = [7, 2, 0, 4]
RESETS = np.random.default_rng(0).random((T, B)) < 0.3


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_the_gradient_is_the_definitions_cut_at_the_borders(kind: str, k: int, backend: str, rng: np.random.Generator) -> None:
    """One cell, one step after the other in Python; the state is detached where a chunk begins."""
    if backend == "numba":
        pytest.importorskip("numba")
    with ts.use_backend(backend):
        layer, cell = getattr(nn, kind)(I, H, dtype=F64), getattr(nn, kind + "Cell")(I, H, dtype=F64)
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
        x, weight = draw(rng, T, B, I), draw(rng, T, B, H)
        first = cell.initial_state(B)
        first = tree_map(lambda part: ts.tensor(rng.standard_normal(part.shape), requires_grad=True), first)

        state, loss = first, ts.tensor(0.0, F64)
        for t in range(T):
            if t and t % k == 0:
                state = tree_map(ts.Tensor.detach, state)
            y, state = cell(x[t], state)
            loss = loss + (y * weight[t]).sum()
        loss.backward()
        expected = parts([state, *(p.grad for p in cell.parameters()), tree_map(lambda part: part.grad, first)])

        start = tree_map(lambda part: part.detach().unsqueeze(0).requires_grad_(), first)
        seen = []
        for steps, output, state in nn.truncated_bptt(layer, x, k, start):
            (output * weight[steps]).sum().backward()
            assert not any(part.requires_grad for part in flatten(state)[0])
            seen.append(steps)
        gradients = [p.grad for p in layer.parameters()]
        found = [tree_map(lambda part: part[0], state), *gradients, tree_map(lambda part: part.grad[0], start)]
    assert [s.stop - s.start for s in seen[:-1]] == [k] * (len(seen) - 1)
    assert (seen[0].start, seen[-1].stop) == (0, T)
    for a, b in zip(parts(found), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("resets", [None, RESETS], ids=["", "resets"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["", "lengths"])
def test_the_values_are_those_of_the_whole(
    k: int, batch_first: bool, resets: Any, lengths: Any, rng: np.random.Generator
) -> None:
    layer = nn.LSTM(I, H, num_layers=2, batch_first=batch_first, learn_state=True, dtype=F64)
    for parameter in (layer.h_0, layer.c_0):
        nn.init.normal_(parameter)
    x = draw(rng, B, T, I) if batch_first else draw(rng, T, B, I)
    resets = resets.T if batch_first and resets is not None else resets
    for start in (None, (draw(rng, 2, B, H), draw(rng, 2, B, H))):
        output, end = layer(x, start, lengths=lengths, resets=resets)
        *_, (_, _, state) = chunks = list(nn.truncated_bptt(layer, x, k, start, lengths=lengths, resets=resets))
        close(ts.concatenate([y for _, y, _ in chunks], int(batch_first)), output)
        close(state, end)


def test_a_chunk_sees_the_weights_of_the_last_update(rng: np.random.Generator) -> None:
    ts.manual_seed(0)
    layer, x = nn.GRU(I, H, dtype=F64), draw(rng, T, B, I)
    optimizer = ts.optim.SGD(layer.parameters(), lr=0.5)
    state, expected = None, []
    for first in range(0, T, 3):
        output, state = layer(x[first : first + 3], state)
        state = state.detach()
        optimizer.zero_grad()
        output.sum().backward()
        optimizer.step()
        expected.append(output)
    ts.manual_seed(0)  # as when the first was made
    again = nn.GRU(I, H, dtype=F64)
    optimizer = ts.optim.SGD(again.parameters(), lr=0.5)
    for (_, output, _), wanted in zip(nn.truncated_bptt(again, x, 3), expected, strict=True):
        optimizer.zero_grad()
        output.sum().backward()
        optimizer.step()
        close(output, wanted)


def test_any_model_with_a_state(rng: np.random.Generator) -> None:
    class Model(nn.Module):
        batch_first = True

        def __init__(self) -> None:
            self.embedding = nn.Embedding(9, I, dtype=F64)
            self.layer = nn.Recurrent(nn.StackedCell([nn.GRUCell(I, H, dtype=F64)] * 2), batch_first=True)

        def __call__(self, ids: ts.Tensor, state: Any = None) -> Any:
            return self.layer(self.embedding(ids), state)

    model = Model()
    model.layer.cell.cells[1] = nn.LSTMCell(H, H, dtype=F64)
    ids = ts.tensor(rng.integers(0, 9, (B, T)))
    output, end = model(ids)
    *_, (_, _, state) = chunks = list(nn.truncated_bptt(model, ids, 3))
    close(ts.concatenate([y for _, y, _ in chunks], 1), output)
    close(state, end)


def test_without_a_batch(rng: np.random.Generator) -> None:
    layer, x = nn.GRU(I, H, batch_first=True, dtype=F64), draw(rng, T, I)
    output, end = layer(x)
    *_, (_, _, state) = chunks = list(nn.truncated_bptt(layer, x, 2))
    close(ts.concatenate([y for _, y, _ in chunks]), output)
    close(state, end)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.truncated_bptt(nn.GRU(3, 4), ts.zeros((5, 2, 3)), 0), ValueError, "at least one step, got k=0"),
        (
            lambda: nn.truncated_bptt(nn.GRU(3, 4, bidirectional=True), ts.zeros((5, 2, 3)), 2),
            ValueError,
            "GRU runs backwards, so it has no state to carry",
        ),
        (
            lambda: nn.truncated_bptt(nn.Recurrent(nn.GRUCell(3, 4), reverse=True), ts.zeros((5, 2, 3)), 2),
            ValueError,
            "Recurrent runs backwards",
        ),
        (lambda: nn.truncated_bptt(nn.GRU(3, 4), ts.zeros(()), 2), ts.ShapeError, r"time as axis 0, got shapes \[\(\)\]"),
        (lambda: nn.truncated_bptt(nn.GRU(3, 4), ts.zeros((0, 2, 3)), 2), ts.ShapeError, "at least 1, got shapes"),
        (lambda: nn.truncated_bptt(nn.GRU(3, 4), (ts.zeros(3), ts.zeros(2)), 2), ts.ShapeError, "of one length"),
        (
            lambda: nn.truncated_bptt(nn.GRU(3, 4), ts.zeros((5, 2, 3)), 2, lengths=[6, 1]),
            ts.ShapeError,
            "truncated_bptt takes lengths from 0 to the 5 steps there are, got 6 in row 0",
        ),
        (
            lambda: nn.truncated_bptt(nn.GRU(3, 4), ts.zeros((5, 2, 3)), 2, lengths=[1.0, 1.0]),
            ts.DTypeError,
            "truncated_bptt takes integers as lengths, got dtype float64",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
