"""When a model no longer gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["EarlyStopping"]


class EarlyStopping:
    """Keeps the best value of a metric, and tells when it was not beaten for too long.

    Args:
        patience: how many values in a row may fail to beat the best; the next one that fails ends training.
        mode: "min" where less is better, "max" where more is.
        least: by how much a value must beat the best.

    Attributes:
        best: the best value so far; None before the first. NaN never is.
        failed: how many values since then did not beat it.

    Raises:
        ValueError: another mode, or a negative patience or ``least``.

    >>> stopping = EarlyStopping(patience=1)
    >>> [(stopping.update(loss), stopping.over) for loss in (3.0, 2.0, 2.5, 2.1)]
    [(True, False), (True, False), (False, False), (False, True)]
    """

    def __init__(self, patience: float = math.inf, mode: str = "min", least: float = 0.0) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode is 'min' or 'max', got {mode!r}")
        if patience < 0 or least < 0:
            raise ValueError(f"patience and least are not negative, got {patience} and {least}")
        self.patience = patience
        self.mode = mode
        self.least = least
        self.best: float | None = None
        self.failed = 0

    def update(self, value: float) -> bool:
        """Take a new value; whether it is the best so far."""
        gain = math.inf if self.best is None else self.best - value if self.mode == "min" else value - self.best
        better = not math.isnan(value) and gain > self.least
        self.best, self.failed = (value, 0) if better else (self.best, self.failed + 1)
        return better

    @property
    def over(self) -> bool:
        """Whether the patience is used up."""
        return self.failed > self.patience

    def state_dict(self) -> dict[str, Any]:
        """The best value and the failures since, in a form that JSON can hold."""
        return {"best": self.best, "failed": self.failed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.best, self.failed = state["best"], state["failed"]
