"""Losses of sequences and of quantiles; PyTorch's answers to the others are in the golden files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.nn import QuantileLoss, SequenceCrossEntropyLoss
from tinyseq.nn.functional import ctc_loss, quantile_loss, sequence_cross_entropy, sequence_loss

REDUCTIONS = ("mean", "sum", "batchmean", "rows", "none")


@pytest.mark.parametrize("batch_first", [False, True])
def test_sequence_loss_reduces_over_valid_steps(batch_first: bool, rng: np.random.Generator) -> None:
    losses, lengths = rng.random((4, 3)), np.array([4, 0, 2])
    valid = np.arange(4)[:, None] < lengths
    want = {
        "mean": losses[valid].sum() / 6,
        "sum": losses[valid].sum(),
        "batchmean": losses[valid].sum() / 3,
        "rows": (losses * valid).sum(0),
        "none": (losses * valid).T if batch_first else losses * valid,
    }
    losses[~valid] = np.nan
    for reduction in REDUCTIONS:
        x = ts.tensor(losses.T if batch_first else losses, requires_grad=True)
        result = sequence_loss(x, lengths, reduction, batch_first)
        np.testing.assert_allclose(result.detach().numpy(), want[reduction], rtol=1e-14)
        result.sum().backward()
        share = {"mean": 1 / 6, "batchmean": 1 / 3}.get(reduction, 1.0)
        np.testing.assert_allclose(x.grad.numpy(), share * (valid.T if batch_first else valid), rtol=1e-14)
    assert np.isnan(sequence_loss(x, [0, 0, 0], "mean", batch_first).item())
    assert sequence_loss(ts.ones((4, 3))).item() == 1.0


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_sequence_cross_entropy_is_that_of_the_valid_rows(batch_first: bool, weighted: bool, rng: np.random.Generator) -> None:
    logits, targets, lengths = rng.standard_normal((4, 3, 5)), rng.integers(0, 5, (4, 3)), [3, 0, 4]
    targets[1, 2] = -100
    valid = np.arange(4)[:, None] < np.array(lengths)
    weight = ts.tensor(rng.random(5)) if weighted else None
    settings = {"weight": weight, "label_smoothing": 0.1}
    x = ts.tensor(logits, requires_grad=True)
    want = ts.cross_entropy(x[ts.tensor(valid)], ts.tensor(targets[valid]), **settings)
    want.backward()
    expected = x.grad.numpy()

    logits[~valid], targets[~valid] = np.nan, 12345
    if batch_first:
        logits, targets, expected = (np.swapaxes(each, 0, 1) for each in (logits, targets, expected))
    y = ts.tensor(logits, requires_grad=True)
    got = sequence_cross_entropy(y, ts.tensor(targets), lengths, batch_first=batch_first, **settings)
    got.backward()
    assert got.item() == pytest.approx(want.item(), rel=1e-13)
    np.testing.assert_allclose(y.grad.numpy(), expected, rtol=1e-12, atol=1e-15)
    module = SequenceCrossEntropyLoss(weight, label_smoothing=0.1, batch_first=batch_first)
    assert module(y, ts.tensor(targets), lengths).item() == got.item()


def test_sequence_cross_entropy_refuses() -> None:
    logits, targets = ts.zeros((4, 2, 3)), ts.zeros((4, 2), ts.int64)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (lambda: sequence_cross_entropy(logits, targets, [5, 1]), ts.ShapeError, "0 to the 4 steps there are, got 5 in row 0"),
        (lambda: sequence_cross_entropy(logits, targets, [1, -1]), ts.ShapeError, "got -1 in row 1"),
        (lambda: sequence_cross_entropy(logits, targets, [1]), ts.ShapeError, r"shape \(2,\), got \(1,\)"),
        (lambda: sequence_cross_entropy(logits, targets, [1.5, 2]), ts.DTypeError, "integers as lengths, got dtype float"),
        (lambda: sequence_cross_entropy(logits, targets.T, [1, 2]), ts.ShapeError, r"got \(4, 2, 3\) and \(2, 4\)"),
        (lambda: sequence_cross_entropy(logits, targets.astype("float32")), ts.DTypeError, "integer classes"),
        (lambda: sequence_cross_entropy(logits, targets + 3), ts.ShapeError, "id 3, which is not in"),
        (lambda: sequence_cross_entropy(logits, targets, reduction="all"), ValueError, "reduction is 'mean'"),
        (lambda: sequence_loss(logits), ts.ShapeError, r"got shape \(4, 2, 3\)"),
        (lambda: sequence_loss(ts.zeros((4, 2)), [4, 4], "all"), ValueError, "reduction is 'mean'"),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


def test_the_median_and_the_quantiles_minimise_the_quantile_loss() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0, 100.0])
    quantiles = (0.1, 0.5, 0.9)
    candidates = np.linspace(0, 101, 1011)
    for i, best in enumerate((1.0, 4.0, 100.0)):
        losses = [
            quantile_loss(ts.tensor(np.full((5, 3), c)), ts.tensor(values), quantiles, "none")[:, i].mean().item()
            for c in candidates
        ]
        assert candidates[int(np.argmin(losses))] == pytest.approx(best, abs=0.06)


def test_quantile_loss(rng: np.random.Generator) -> None:
    x, y = rng.standard_normal((2, 3, 2)), rng.standard_normal((2, 3))
    d = y[..., None] - x
    want = np.maximum(np.array([0.25, 0.9]) * d, (np.array([0.25, 0.9]) - 1) * d)
    for reduction, value in (("none", want), ("sum", want.sum()), ("mean", want.mean())):
        np.testing.assert_allclose(quantile_loss(x, y, (0.25, 0.9), reduction).numpy(), value, rtol=1e-13)
        np.testing.assert_allclose(QuantileLoss((0.25, 0.9), reduction)(x, y).numpy(), value, rtol=1e-13)
    assert quantile_loss(ts.zeros((2, 1)), ts.zeros(2), [0.5]).dtype == np.float32
    with pytest.raises(ts.ShapeError, match=r"of \(2, 3, 1\), got \(2, 3, 2\)"):
        quantile_loss(x, y, (0.5,))
    with pytest.raises(ValueError, match=r"between 0 and 1, got \[1.0, 0.5\]"):
        quantile_loss(x, y, (1.0, 0.5))


def test_on_another_array_library(rng: np.random.Generator) -> None:
    """Nothing of NumPy's own in the losses, the starting values, the embedding and the mean of weights."""
    logits = rng.standard_normal((6, 3, 4))

    def run() -> list[Any]:
        ts.manual_seed(0)
        x = ts.tensor(logits, requires_grad=True)
        ctc = ctc_loss(ts.log_softmax(x), [[1, 2], [3, 3], [1, 0]], [6, 5, 2], [2, 2, 1])
        steps = sequence_cross_entropy(x, ts.tensor(np.arange(18).reshape(6, 3) % 4), [6, 0, 2])
        quantiles = quantile_loss(x[..., :2], ts.zeros((6, 3), "float64"), (0.1, 0.9))
        (ctc + steps + quantiles).backward()
        embedding = ts.nn.Embedding(4, 3, padding_idx=1, dtype="float64")
        rows = embedding(ts.tensor([[1, 2], [3, 1]]))
        ema = ts.optim.EMA(embedding.parameters(), 0.5)
        ema.update()
        cell = ts.nn.init.chrono_(ts.nn.init.recurrent_(ts.nn.LSTMCell(3, 4, dtype="float64")), 20)
        with ema.swapped():
            return [ctc, steps, quantiles, x.grad, rows, embedding.weight, *cell.parameters()]

    expected = [value.detach().numpy() for value in run()]
    with ts.use_backend(StrictBackend()):
        for ours, theirs in zip(run(), expected, strict=True):
            np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-10, atol=1e-12)
