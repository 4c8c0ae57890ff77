"""Learning-rate schedules under PyTorch's names: the rate as a function of the step and of the rate at the start.

Every schedule here has a closed form, so a rate never depends on rounding that piled up, and a run resumes at any step.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tinyseq.errors import CheckpointError
from tinyseq.optim.optimizer import Optimizer
from tinyseq.tensor import Tensor, as_tensor

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "Schedule",
    "SequentialLR",
    "StepLR",
]


class Schedule:
    """The base of all schedules, each of which says the rate after so many steps for a group that starts at ``base``.

    It sets the optimizer's rate when it is made, and at each :meth:`step`, which follows the optimizer's. One schedule
    drives an optimizer at a time; combine several with :class:`SequentialLR`, or multiply them in a :class:`LambdaLR`.

    Raises:
        ValueError: at a step, where the rate is no longer what this schedule has set.
    """

    def __init__(self, optimizer: Any) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"a schedule takes an optimizer, not {type(optimizer).__name__}")
        self.optimizer = optimizer
        self._count = 0
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._set()

    def rate(self, base: float, step: int) -> float:
        """The learning rate after ``step`` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Go one step on and set the optimizer's rates."""
        for group, mine in zip(self.optimizer.param_groups, self._rates, strict=True):
            if group["lr"] != mine:
                raise ValueError(
                    f"the learning rate is {group['lr']}, but this schedule has set {mine}: another schedule or an "
                    "assignment changed it; combine schedules with SequentialLR or LambdaLR"
                )
        self._count += 1
        self._set()

    def _set(self) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = float(self._rate(group["initial_lr"], self._count, i))
        self._rates = self.get_last_lr()

    def _rate(self, base: float, step: int, group: int) -> float:
        """The rate for the group of that number; the same for all, unless a schedule says otherwise."""
        return self.rate(base, step)

    @property
    def lr(self) -> float:
        """The rate now in force, of the first group."""
        return self.optimizer.lr

    def get_last_lr(self) -> list[float]:
        """The rates now in force, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Tensor]:
        """How far the schedule has come. The optimizer's ``state_dict`` holds the rates at the start."""
        return {"step": as_tensor(np.int64(self._count))}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there: make the schedule anew with the same arguments, load the optimizer's state, then this.

        Raises:
            CheckpointError: the entries are not those of a schedule.
        """
        self._count = int(_entries(state, {"step"})["step"])
        self._set()


def _entries(state: Mapping[str, Tensor], names: set[str]) -> dict[str, Any]:
    if state.keys() != names:
        raise CheckpointError(f"a schedule of this kind saves {sorted(names)}, but the state holds {sorted(state)}")
    return {name: t.item() for name, t in state.items()}


def _positive(name: str, value: int) -> int:
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    return value


class LambdaLR(Schedule):
    """``base * factor(step)``, for any function of the step; or one such function a group.

    >>> import tinyseq as ts
    >>> optimizer = ts.optim.SGD([ts.Parameter([1.0])], lr=0.5)
    >>> schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    >>> schedule.step(); optimizer.lr
    0.25
    """

    def __init__(self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]) -> None:
        groups = len(optimizer.param_groups)
        self.factors = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.factors) != groups:
            raise ValueError(f"LambdaLR needs one function for each of {groups} groups, got {len(self.factors)}")
        super().__init__(optimizer)

    def _rate(self, base: float, step: int, group: int) -> float:
        return base * self.factors[group](step)


class StepLR(Schedule):
    """Multiply by ``gamma`` every ``step_size`` steps.

    >>> import tinyseq as ts
    >>> optimizer = ts.optim.SGD([ts.Parameter([1.0])], lr=1.0)
    >>> schedule = StepLR(optimizer, step_size=2)
    >>> for _ in range(3):
    ...     schedule.step()
    >>> optimizer.lr
    0.1
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = _positive("step_size", step_size), gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return base * self.gamma ** (step // self.step_size)


class MultiStepLR(Schedule):
    """Multiply by ``gamma`` at each of the milestones."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return base * self.gamma ** bisect.bisect_right(self.milestones, step)


class ExponentialLR(Schedule):
    """Multiply by ``gamma`` at every step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return base * self.gamma**step


class ConstantLR(Schedule):
    """``base * factor`` for the first ``total_iters`` steps, ``base`` afterwards."""

    def __init__(self, optimizer: Optimizer, factor: float = 1 / 3, total_iters: int = 5) -> None:
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return base * self.factor if step < self.total_iters else base


class LinearLR(Schedule):
    """A straight line from ``base * start_factor`` to ``base * end_factor`` in ``total_iters`` steps: a warm-up.

    >>> import tinyseq as ts
    >>> optimizer = ts.optim.SGD([ts.Parameter([1.0])], lr=1.0)
    >>> schedule = LinearLR(optimizer, start_factor=0.2, total_iters=4)
    >>> schedule.step(); optimizer.lr
    0.4
    """

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = _positive("total_iters", total_iters)
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        done = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * done)


class PolynomialLR(Schedule):
    """``base * (1 - step / total_iters) ** power``, and 0 after ``total_iters`` steps."""

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        self.total_iters, self.power = _positive("total_iters", total_iters), power
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return float(base * (1 - min(step, self.total_iters) / self.total_iters) ** self.power)


class CosineAnnealingLR(Schedule):
    """Half a cosine from ``base`` down to ``eta_min`` in ``T_max`` steps, and up again (Loshchilov and Hutter 2017).

    >>> import tinyseq as ts
    >>> optimizer = ts.optim.SGD([ts.Parameter([1.0])], lr=1.0)
    >>> schedule = CosineAnnealingLR(optimizer, T_max=2)
    >>> schedule.step(); round(optimizer.lr, 6)
    0.5
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = _positive("T_max", T_max), eta_min
        super().__init__(optimizer)

    def rate(self, base: float, step: int) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class SequentialLR(Schedule):
    """One schedule after the other: the next one starts, at its own step 0, at each of the milestones.

    >>> import tinyseq as ts
    >>> optimizer = ts.optim.SGD([ts.Parameter([1.0])], lr=1.0)
    >>> parts = [LinearLR(optimizer, 0.5, total_iters=2), ExponentialLR(optimizer, gamma=0.5)]
    >>> schedule = SequentialLR(optimizer, parts, milestones=[2])
    >>> rates = [optimizer.lr]
    >>> for _ in range(4):
    ...     schedule.step(); rates.append(optimizer.lr)
    >>> rates
    [0.5, 0.75, 1.0, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[Schedule], milestones: Sequence[int]) -> None:
        self.schedulers: list[Any] = list(schedulers)
        self.milestones = list(milestones)
        if len(self.milestones) != len(self.schedulers) - 1 or self.milestones != sorted(self.milestones):
            raise ValueError(
                f"SequentialLR needs one milestone between each two schedules, in order; got {len(self.schedulers)} "
                f"schedules and the milestones {self.milestones}"
            )
        for part in self.schedulers:
            if not isinstance(part, Schedule) or part.optimizer is not optimizer:
                raise ValueError(f"SequentialLR needs schedules of this same optimizer, got {type(part).__name__}")
        super().__init__(optimizer)

    def _rate(self, base: float, step: int, group: int) -> float:
        at = bisect.bisect_right(self.milestones, step)
        return self.schedulers[at]._rate(base, step - (self.milestones[at - 1] if at else 0), group)


class ReduceLROnPlateau:
    """Multiply the rates by ``factor`` when a measure has not become better for more than ``patience`` steps.

    Args:
        optimizer: whose rates to set.
        mode: "min" if smaller is better, "max" if larger is.
        factor: what the rates are multiplied by, below 1.
        patience: how many steps without a better measure are let pass.
        threshold: how much better counts: a share of the best value, or with ``threshold_mode="abs"`` a difference.
        cooldown: how many steps after a reduction bad ones are not counted.
        min_lr: the rates' lower bound, one for all groups or one each.
        eps: smaller changes of a rate are not made.

    >>> import tinyseq as ts
    >>> optimizer = ts.optim.SGD([ts.Parameter([1.0])], lr=1.0)
    >>> schedule = ReduceLROnPlateau(optimizer, patience=1)
    >>> for loss in [3.0, 2.0, 2.0, 2.0]:
    ...     schedule.step(loss)
    >>> optimizer.lr
    0.1
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(f"mode is 'min' or 'max' and threshold_mode 'rel' or 'abs', got {mode!r}, {threshold_mode!r}")
        if not 0 <= factor < 1:
            raise ValueError(f"factor must lie in [0, 1) to reduce anything, got {factor}")
        groups = len(optimizer.param_groups)
        self.min_lrs = [float(min_lr)] * groups if isinstance(min_lr, int | float) else list(min_lr)
        if len(self.min_lrs) != groups:
            raise ValueError(f"min_lr needs one number for each of {groups} groups, got {len(self.min_lrs)}")
        self.optimizer = optimizer
        self.mode, self.factor, self.patience, self.cooldown, self.eps = mode, factor, patience, cooldown, eps
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.best = math.inf if mode == "min" else -math.inf
        self.num_bad = 0
        self.cooling = 0

    @property
    def lr(self) -> float:
        """The rate now in force, of the first group."""
        return self.optimizer.lr

    def get_last_lr(self) -> list[float]:
        """The rates now in force, one a group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self, metric: float | Tensor) -> None:
        """Take note of the measure, and reduce the rates if it is time to. NaN is never better."""
        value = float(metric)
        if self._better(value):
            self.best, self.num_bad = value, 0
        else:
            self.num_bad += 1
        if self.cooling > 0:
            self.cooling -= 1
            self.num_bad = 0
        if self.num_bad > self.patience:
            for group, lowest in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                rate = max(group["lr"] * self.factor, lowest)
                if group["lr"] - rate > self.eps:
                    group["lr"] = rate
            self.cooling, self.num_bad = self.cooldown, 0

    def _better(self, value: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        if self.threshold_mode == "abs":
            return sign * value > sign * self.best + self.threshold
        return sign * value > sign * self.best * (1 + sign * self.threshold)

    def state_dict(self) -> dict[str, Tensor]:
        """The best measure so far and the counts; the rates are the optimizer's."""
        return {
            "best": as_tensor(np.float64(self.best)),
            "num_bad": as_tensor(np.int64(self.num_bad)),
            "cooling": as_tensor(np.int64(self.cooling)),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: the entries are not those of this schedule.
        """
        entries = _entries(state, {"best", "num_bad", "cooling"})
        self.best, self.num_bad, self.cooling = entries["best"], entries["num_bad"], entries["cooling"]
