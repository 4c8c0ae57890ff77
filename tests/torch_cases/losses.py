"""The losses of sequences: CTC, cross-entropy over valid steps, quantiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torch_cases.case import Case, Draw, Expression, Sizes, index, positive, real, shape_of
from torch_cases.functional import expression

REDUCTIONS = ("mean", "sum", "none")


def lengths(letters: str, low: int, high: int) -> Draw:
    """Integers from `low` to `high`, both among them."""
    return lambda rng, sizes: np.asarray(rng.integers(low, high + 1, shape_of(letters, sizes)), dtype=np.int64)


def labels(letters: str, blank: int = 0) -> Draw:
    """Classes below C that are not the blank; repeats are likely."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        ids = rng.integers(0, sizes["C"] - 1, shape_of(letters, sizes))
        return np.asarray(ids + (ids >= blank), dtype=np.int64)

    return draw


def ctc(name: str, *inputs: Draw, constant: tuple[int, ...] = (), **settings: Any) -> list[Expression]:
    """CTC of the softmax of the first input. PyTorch has no second derivative of it."""
    blank, zero_infinity = settings.get("blank", 0), settings.get("zero_infinity", False)
    row = (-1,) if settings.get("flat") else None  # all targets one after the other

    def loss(reduction: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
        arguments = (blank, reduction, zero_infinity)
        return (
            lambda F, x, t, *n: F.ctc_loss(F.log_softmax(x, axis=-1), t.reshape(row or t.shape), *n, *arguments),
            lambda F, x, t, *n: F.ctc_loss(F.log_softmax(x, -1), t.reshape(row or t.shape), *n, *arguments),
        )

    return [
        expression(f"{name}_{reduction}", inputs, *loss(reduction), twice=False, constant=constant, least={"C": 3})
        for reduction in REDUCTIONS
    ]


# Four labels, of which three may repeat the one before, take at most seven frames: an alignment exists.
CTC = [
    *ctc("ctc", real("9BC"), labels("B4"), lengths("B", 7, 9), lengths("B", 0, 4)),
    *ctc("ctc_blank", real("9BC", 3.0), labels("B4", 1), lengths("B", 7, 9), lengths("B", 0, 4), blank=1),
    *ctc("ctc_in_a_row", real("9BC"), labels("B4"), lengths("B", 9, 9), lengths("B", 4, 4), flat=True),
    *ctc("ctc_without_batch", real("9C"), labels("4"), lengths("", 9, 9), lengths("", 4, 4)),
    *ctc("ctc_zero_infinity", real("9BC"), labels("B6"), lengths("B", 0, 9), lengths("B", 0, 6), zero_infinity=True),
    *ctc("ctc_impossible", real("9BC"), labels("B6"), lengths("B", 0, 9), lengths("B", 0, 6), constant=(0,)),
    *ctc("ctc_large", real("9BC", 300.0), labels("B4"), lengths("B", 7, 9), lengths("B", 0, 4)),
]


def by_hand(F: Any, x: Any, targets: Any, valid: Any, weight: Any, reduction: str, smoothing: float) -> Any:
    """PyTorch's cross-entropy of steps (T, B, C), of which the false ones are ignored."""
    ignored = targets.masked_fill(~valid, -100)
    settings = {"weight": weight, "label_smoothing": smoothing}
    if reduction in ("mean", "sum"):
        return F.cross_entropy(x.flatten(0, 1), ignored.flatten(), reduction=reduction, **settings)
    losses = F.cross_entropy(x.flatten(0, 1), ignored.flatten(), reduction="none", **settings).reshape(targets.shape)
    return {"none": losses, "rows": losses.sum(0), "batchmean": losses.sum() / losses.shape[1]}[reduction]


def sequence_case(name: str, reduction: str, weighted: bool, smoothing: float, batch_first: bool) -> Expression:
    def ours(ts: Any, x: Any, targets: Any, lengths: Any, weight: Any) -> Any:
        settings = (weight if weighted else None, -100, reduction, smoothing, batch_first)
        result = ts.nn.functional.sequence_cross_entropy(x, targets, lengths.clip(0, targets.shape[batch_first]), *settings)
        return result.mT if batch_first and reduction == "none" else result

    def theirs(torch: Any, x: Any, targets: Any, lengths: Any, weight: Any) -> Any:
        if batch_first:
            x, targets = x.transpose(0, 1), targets.mT
        valid = torch.arange(len(x))[:, None] < lengths
        return by_hand(torch.nn.functional, x, targets, valid, weight if weighted else None, reduction, smoothing)

    shape = "BT" if batch_first else "TB"
    inputs = (real(shape + "C"), index(shape, "C"), lengths("B", 1, 7), positive("C"))
    return Expression(name, inputs, ours, theirs, constant=(3,))


SEQUENCES = [
    sequence_case("_".join(["sequence_cross_entropy", reduction, *words]), reduction, bool(smoothing), smoothing, batch_first)
    for reduction in ("mean", "sum", "none", "rows", "batchmean")
    for words, smoothing, batch_first in (([], 0.0, False), (["batch_first", "weighted_smoothed"], 0.1, True))
]

QUANTILES = (0.1, 0.5, 0.8)
OTHERS = [
    expression(
        f"quantile_loss_{reduction}",
        (real("BT3"), real("BT")),
        lambda F, x, y, reduction=reduction: F.quantile_loss(x, y, QUANTILES, reduction),
        lambda F, x, y, reduction=reduction: pinball(x, y, reduction),
    )
    for reduction in REDUCTIONS
]
OTHERS.append(
    Expression(
        "sequence_loss_of_squares",
        (real("TB"), real("TB")),
        lambda ts, x, y: ts.nn.functional.sequence_loss((x - y) ** 2, [x.shape[0]] * x.shape[1], "batchmean"),
        lambda torch, x, y: ((x - y) ** 2).sum(0).mean(),
    )
)


def pinball(x: Any, y: Any, reduction: str) -> Any:
    """The quantile loss from its definition."""
    import torch

    d, q = y[..., None] - x, torch.tensor(QUANTILES, dtype=x.dtype)
    losses = torch.maximum(q * d, (q - 1) * d)
    return losses if reduction == "none" else getattr(losses, reduction)()


LOSSES: list[Case] = [*CTC, *SEQUENCES, *OTHERS]
