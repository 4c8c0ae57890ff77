"""CTC against the sum over all paths, its decoders against a search through all labels, and its refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.nn import CTCLoss, ctc_beam_decode, ctc_greedy_decode
from tinyseq.nn.functional import ctc_loss

BACKENDS = ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.gpu)]


def collapsed(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def probabilities(log_probs: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every sequence of labels, by all paths of one sequence (T, C)."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        labels = collapsed(path, blank)
        found[labels] = found.get(labels, 0.0) + math.exp(log_probs[np.arange(len(path)), path].sum())
    return found


def draw(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    x = scale * rng.standard_normal(shape)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("blank", [0, 2])
def test_is_the_sum_over_all_paths(blank: int, backend: str, rng: np.random.Generator) -> None:
    frames = draw(rng, 5, 6, 3)
    others = [c for c in range(3) if c != blank]
    targets = [(), (others[0],), (others[1], others[0]), (others[0],) * 2, (others[0], others[1], others[0]), (others[1],) * 3]
    lengths = [5, 4, 2, 3, 5, 5]
    padded = np.full((6, 4), 99)
    for row, target in enumerate(targets):
        padded[row, : len(target)] = target
    want = [
        -math.log(probabilities(frames[:length, row], blank)[target])
        for row, (target, length) in enumerate(zip(targets, lengths, strict=True))
    ]
    counts = [len(target) for target in targets]
    with ts.use_backend(backend):
        arguments = (ts.tensor(frames), ts.tensor(padded), lengths, counts, blank)
        np.testing.assert_allclose(ctc_loss(*arguments, "none").numpy(), want, rtol=1e-12)
        assert ctc_loss(*arguments, "sum").item() == pytest.approx(sum(want), rel=1e-12)
        mean = np.mean(np.array(want) / np.maximum(counts, 1))
        assert ctc_loss(*arguments).item() == pytest.approx(mean, rel=1e-12)
        assert CTCLoss(blank)(*arguments[:4]).item() == pytest.approx(mean, rel=1e-12)
        for row in (1, 2, 4):  # in a table of its own width
            alone = ctc_loss(arguments[0][:, row], [*targets[row]], lengths[row], counts[row], blank, "none")
            assert alone.item() == pytest.approx(want[row], rel=1e-12)
        in_a_row = ts.tensor(np.concatenate([np.array(target, np.int64) for target in targets]))
        np.testing.assert_array_equal(
            ctc_loss(arguments[0], in_a_row, lengths, counts, blank, "none").numpy(), ctc_loss(*arguments, "none").numpy()
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("steps", "rows", "labels"), [(5, 3, 2), (5, 5, 2), (3, 1, 1), (1, 2, 1), (7, 7, 3), (3, 3, 0)])
def test_gradients_are_those_of_finite_differences(
    steps: int, rows: int, labels: int, backend: str, rng: np.random.Generator
) -> None:
    targets = rng.integers(1, 4, (rows, labels))
    targets[:, 1:] = np.where(targets[:, 1:] == targets[:, :-1], targets[:, 1:] % 3 + 1, targets[:, 1:])
    lengths = [steps] * (rows - 1) + [max(labels, 1)]

    def loss(x: ts.Tensor) -> ts.Tensor:
        return ctc_loss(ts.log_softmax(x), targets, lengths, [labels] * rows, reduction="sum")

    with ts.use_backend(backend):
        ts.check_grads(loss, (ts.tensor(rng.standard_normal((steps, rows, 4))),), order=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_behind_the_lengths_has_no_effect(backend: str, rng: np.random.Generator) -> None:
    frames = draw(rng, 6, 2, 4)
    wild = frames.copy()
    wild[4:, 0], wild[2:, 1] = np.nan, np.inf
    results = []
    with ts.use_backend(backend):
        for array, targets in ((frames, [[1, 2, 0], [3, 0, 0]]), (wild, [[1, 2, -5], [3, 7, 8]])):
            x = ts.tensor(array, requires_grad=True)
            loss = ctc_loss(x, targets, [4, 2], [2, 1], reduction="sum")
            loss.backward()
            results.append((loss.item(), x.grad.numpy()))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert not results[0][1][4:, 0].any()
    assert not results[0][1][2:, 1].any()


@pytest.mark.filterwarnings("ignore:target . has")
def test_an_impossible_target_is_infinite_and_leaves_the_others_alone(rng: np.random.Generator) -> None:
    frames = draw(rng, 4, 3, 3)
    targets, counts = [[1, 1, 1], [1, 2, 1], [1, 2, 1]], [3, 3, 3]  # the first takes five frames
    x = ts.tensor(frames, requires_grad=True)
    losses = ctc_loss(x, targets, [4, 4, 2], counts, reduction="none")
    assert np.isfinite(losses.detach().numpy()).tolist() == [False, True, False]
    assert losses[0].item() == math.inf
    losses.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    assert x.grad.numpy().any((0, 2)).tolist() == [False, True, False]
    total = ctc_loss(x, targets, [4, 4, 2], counts, reduction="sum", zero_infinity=True)
    assert total.item() == losses[1].item()
    exact = ctc_loss(ts.tensor(frames[:3, :1]), [[1, 1]], [3], [2], reduction="none")  # one way: 1, blank, 1
    assert exact.item() == pytest.approx(-(frames[0, 0, 1] + frames[1, 0, 0] + frames[2, 0, 1]))


def test_no_frames_say_nothing() -> None:
    with pytest.warns(UserWarning, match="target 1 has 1 labels and needs 1 frames, but there are 0: its loss is infinite"):
        losses = ctc_loss(ts.log_softmax(ts.zeros((2, 2, 3))), [[1], [1]], [0, 0], [0, 1], reduction="none")
    assert losses.tolist() == [0.0, math.inf]
    assert ctc_loss(ts.zeros((0, 1, 3)), [[1]], [0], [0], reduction="none").tolist() == [0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_of_zero_and_far_logits_do_not_make_nan(backend: str) -> None:
    with ts.use_backend(backend):
        x = ts.tensor(np.array([[[0.0, 1e4, -1e4]], [[-1e4, 0.0, 1e4]]], np.float32), requires_grad=True)
        loss = ctc_loss(ts.log_softmax(x), [[1, 2]], [2], [2])
        loss.backward()
        assert loss.item() == 0.0
        assert not x.grad.numpy().any()
        y = ts.tensor([[[-math.inf, 0.0]], [[math.log(0.5), math.log(0.5)]]], requires_grad=True)
        loss = ctc_loss(y, [[1]], [2], [1])
        loss.backward()
        assert loss.item() == pytest.approx(0.0, abs=1e-6)
        np.testing.assert_allclose(y.grad.numpy(), [[[0, -1]], [[-0.5, -0.5]]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"targets": [[1, 3]]}, ts.ShapeError, r"target 0 has the label 3 at position 1, which is not in \[0, 3\)"),
        ({"targets": [[1, -1]]}, ts.ShapeError, "the label -1 at position 1"),
        ({"targets": [[1, 0]]}, ValueError, "target 0 has the label 0 at position 1, which is the blank"),
        ({"targets": [[1.0, 2.0]]}, ts.DTypeError, "targets that are integers, got dtype float"),
        ({"targets": [[[1, 2]]]}, ts.ShapeError, r"takes targets \(1, S\), or all in a row, got shape \(1, 1, 2\)"),
        ({"targets": [[1, 2], [1, 2]]}, ts.ShapeError, r"got shape \(2, 2\)"),
        ({"targets": [1, 2, 1]}, ts.ShapeError, "3 labels in a row, but target lengths that add up to 2"),
        ({"target_lengths": [3]}, ts.ShapeError, "target lengths from 0 to 2, got 3 for sequence 0"),
        ({"input_lengths": [5]}, ts.ShapeError, "input lengths from 0 to 4, got 5"),
        ({"input_lengths": [-1]}, ts.ShapeError, "got -1"),
        ({"input_lengths": [1, 2]}, ts.ShapeError, "one input length for each of 1 sequences, got 2"),
        ({"input_lengths": [2.5]}, ts.DTypeError, "input_lengths that are integers"),
        ({"blank": 3}, ts.ShapeError, r"blank in \[0, 3\), got 3"),
        ({"reduction": "all"}, ValueError, "reduction is 'mean', 'sum' or 'none'"),
        ({"log_probs": ts.zeros((4,))}, ts.ShapeError, r"got shape \(4,\)"),
        ({"log_probs": ts.zeros((4, 1, 3)).astype(ts.int64)}, ts.DTypeError, "got dtype int64"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"log_probs": ts.zeros((4, 1, 3)), "targets": [[1, 2]], "input_lengths": [4], "target_lengths": [2]}
    with pytest.raises(error, match=message):
        ctc_loss(**(given | change))


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_greedy_decoding_collapses_the_best_path(rng: np.random.Generator) -> None:
    frames = draw(rng, 9, 4, 3)
    lengths = [9, 0, 4, 1]
    for blank in range(3):
        want = [collapsed(tuple(frames[:n, row].argmax(-1)), blank) for row, n in enumerate(lengths)]
        decoded = ctc_greedy_decode(ts.tensor(frames), lengths, blank)
        assert [tuple(row.tolist()) for row in decoded] == want
        assert all(row.dtype == np.int64 for row in decoded)
    assert len(ctc_greedy_decode(frames)) == 4


@pytest.mark.parametrize("blank", [0, 1])
def test_a_wide_beam_finds_what_a_search_through_all_finds(blank: int, rng: np.random.Generator) -> None:
    frames = draw(rng, 5, 3, 3, scale=2.0)
    lengths = [5, 3, 0]
    found = ctc_beam_decode(frames, lengths, blank, beam=500, best=5)
    for row, length in enumerate(lengths):
        ranked = sorted(probabilities(frames[:length, row], blank).items(), key=lambda item: -item[1])[:5]
        assert [tuple(labels.tolist()) for labels, _ in found[row]] == [labels for labels, _ in ranked]
        np.testing.assert_allclose([score for _, score in found[row]], np.log([p for _, p in ranked]), rtol=1e-10, atol=1e-12)
        for labels, score in found[row]:
            loss = ctc_loss(frames[:, row], labels, length, len(labels), blank, "none")
            assert -loss.item() == pytest.approx(score, rel=1e-10, abs=1e-12)


def test_a_beam_finds_labels_that_the_best_path_does_not() -> None:
    frames = np.log([[[0.6, 0.4]], [[0.6, 0.4]]])
    assert ctc_greedy_decode(frames)[0].tolist() == []
    (labels, score), *rest = ctc_beam_decode(frames)[0]
    assert labels.tolist() == [1]
    assert math.exp(score) == pytest.approx(0.64)
    assert not rest


def test_a_beam_of_one_is_no_better_than_it_is(rng: np.random.Generator) -> None:
    frames = draw(rng, 6, 1, 4)
    scores = [ctc_beam_decode(frames, beam=beam)[0][0][1] for beam in (1, 2, 8, 300)]
    assert scores[-1] == max(scores)


def test_impossible_classes_are_never_decoded() -> None:
    with np.errstate(divide="ignore"):
        frames = np.log(np.array([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]]]))
    assert {tuple(labels.tolist()) for labels, _ in ctc_beam_decode(frames, best=16)[0]} == {(), (1,)}


def test_decoding_refuses() -> None:
    with pytest.raises(ValueError, match="best=3 and beam=2"):
        ctc_beam_decode(np.zeros((2, 1, 2)), beam=2, best=3)
    with pytest.raises(ts.ShapeError, match=r"got shape \(2, 2\)"):
        ctc_greedy_decode(np.zeros((2, 2)))
    with pytest.raises(ts.ShapeError, match="input lengths from 0 to 2, got 3"):
        ctc_beam_decode(np.zeros((2, 1, 2)), [3])
