"""Optimizers as trajectories of parameters, schedules as sequences of rates, clipping as norms and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from torch_cases.case import Arrays, Case, Sizes, nonzero, real

RATE = 0.05
WEIGHTS = (1.0, -0.5, 2.0, 0.5, -1.0)  # of the five steps: gradients grow, shrink and turn round


def problem(weight: float, parameters: list[Any], slopes: list[Any]) -> Any:
    """A loss whose gradients are never near zero: RMSprop and Adam magnify the rounding of a small one."""
    w, b = ((weight * slope * p + 0.01 * p * p).sum() for p, slope in zip(parameters, slopes, strict=True))
    return w + b


class Trajectory(Case):
    """Parameters after each of five steps, of `torch.optim` and `ts.optim`."""

    twice = False

    def __init__(
        self,
        name: str,
        kind: str,
        settings: Mapping[str, Any],
        *,
        ours: tuple[str, Mapping[str, Any]] | None = None,
        groups: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
    ) -> None:
        self.name = name
        self.theirs = (kind, {"lr": RATE} | dict(settings))
        self.ours = ours if ours is not None else self.theirs
        self.groups = groups
        self.least: Mapping[str, int] = {}

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        draws = {"w": real("IH"), "b": real("H"), "slope_w": nonzero("IH"), "slope_b": nonzero("H")}
        return {name: draw(rng, sizes) for name, draw in draws.items()}

    def _arguments(self, parameters: list[Any]) -> list[Any]:
        if self.groups is None:
            return parameters
        return [{"params": [p]} | dict(group) for p, group in zip(parameters, self.groups, strict=True)]

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        tensors = {name: torch.tensor(array) for name, array in arrays.items()}
        kind, settings = self.theirs
        parameters = [torch.nn.Parameter(tensors[name]) for name in "wb"]
        optimizer = getattr(torch.optim, kind)(self._arguments(parameters), **settings)
        return self._walk(parameters, [tensors["slope_w"], tensors["slope_b"]], optimizer)

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        tensors = {name: ts.tensor(array.astype(dtype)) for name, array in arrays.items()}
        kind, settings = self.ours
        parameters = [ts.Parameter(tensors[name]) for name in "wb"]
        optimizer = getattr(ts.optim, kind)(self._arguments(parameters), **settings)
        return self._walk(parameters, [tensors["slope_w"], tensors["slope_b"]], optimizer)

    def _walk(self, parameters: list[Any], slopes: list[Any], optimizer: Any) -> Arrays:
        path: list[list[np.ndarray]] = []
        for weight in WEIGHTS:
            optimizer.zero_grad()
            problem(weight, parameters, slopes).backward()
            optimizer.step()
            path.append([parameter.detach().numpy().copy() for parameter in parameters])
        return {f"path/{name}": np.stack(values) for name, values in zip("wb", zip(*path, strict=True), strict=True)}


class Rates(Case):
    """The learning rate at the start and after each scheduler step: `count` of them, or one for each measure it is told."""

    twice = False

    def __init__(
        self,
        name: str,
        theirs: Callable[[Any, Any], Any],
        ours: Callable[[Any, Any], Any] | None = None,
        *,
        count: int = 24,
        measures: Sequence[float] = (),
    ) -> None:
        self.name = name
        self.theirs = theirs
        self.ours = ours or theirs
        self.steps = [(measure,) for measure in measures] or [()] * count
        self.least: Mapping[str, int] = {}

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        return {"rate": np.array([0.5, 0.125])}

    def _walk(self, optimizer: Any, schedule: Any) -> Arrays:
        rates = []
        for told in self.steps:
            rates.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step(*told)
        return {"rates": np.array(rates, dtype=np.float64)}

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        groups = [{"params": [p], "lr": float(rate)} for p, rate in zip(parameters, arrays["rate"], strict=True)]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        return self._walk(optimizer, self.theirs(torch.optim.lr_scheduler, optimizer))

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        parameters = [ts.Parameter(ts.zeros(1)) for _ in range(2)]
        groups = [{"params": [p], "lr": float(rate)} for p, rate in zip(parameters, arrays["rate"], strict=True)]
        optimizer = ts.optim.SGD(groups, lr=1.0)
        rates = self._walk(optimizer, self.ours(ts.optim.lr_scheduler, optimizer))
        return {name: values.astype(dtype) for name, values in rates.items()}


class Clipping(Case):
    """The total norm, and the gradients afterwards; one parameter has none."""

    twice = False

    def __init__(self, name: str, maximum: float, **settings: Any) -> None:
        self.name = name
        self.maximum = maximum
        self.settings = settings
        self.least: Mapping[str, int] = {}

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        return {"w": real("IH")(rng, sizes), "b": real("H")(rng, sizes)}

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        parameters = [torch.nn.Parameter(torch.tensor(arrays[name])) for name in "wb"]
        spare = torch.nn.Parameter(torch.zeros(2))
        sum((p * p).sum() for p in parameters).backward()  # type: ignore[union-attr]
        norm = torch.nn.utils.clip_grad_norm_([*parameters, spare], self.maximum, **self.settings)
        return self._answer(norm, parameters, np.float64)

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        parameters = [ts.Parameter(ts.tensor(arrays[name].astype(dtype))) for name in "wb"]
        spare = ts.Parameter(ts.zeros(2))
        first, second = parameters
        ((first * first).sum() + (second * second).sum()).backward()
        norm = ts.optim.clip_grad_norm([*parameters, spare], self.maximum, **self.settings)
        return self._answer(norm, parameters, dtype)

    def _answer(self, norm: Any, parameters: list[Any], dtype: Any) -> Arrays:
        gradients = {f"grad/{name}": p.grad.numpy() for name, p in zip("wb", parameters, strict=True)}
        return {"norm": np.asarray(float(norm), dtype=dtype)} | gradients


TRAJECTORIES: list[Case] = [
    Trajectory("sgd", "SGD", {}),
    Trajectory("sgd_weight_decay", "SGD", {"weight_decay": 0.1}),
    Trajectory("sgd_momentum", "SGD", {"momentum": 0.9}),
    Trajectory("sgd_momentum_dampening", "SGD", {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.01}),
    Trajectory("sgd_nesterov", "SGD", {"momentum": 0.9, "nesterov": True}),
    Trajectory("sgd_nesterov_weight_decay", "SGD", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
    Trajectory("sgd_maximize", "SGD", {"momentum": 0.9, "maximize": True}),
    Trajectory("momentum", "SGD", {"momentum": 0.9}, ours=("Momentum", {"lr": RATE})),
    Trajectory("sgd_groups", "SGD", {"momentum": 0.5}, groups=({"lr": 0.2}, {"weight_decay": 0.3})),
    Trajectory("rmsprop", "RMSprop", {}),
    Trajectory("rmsprop_weight_decay", "RMSprop", {"alpha": 0.9, "eps": 1e-6, "weight_decay": 0.1}),
    Trajectory("rmsprop_momentum", "RMSprop", {"momentum": 0.9}),
    Trajectory("rmsprop_centered", "RMSprop", {"centered": True}),
    Trajectory("rmsprop_centered_momentum", "RMSprop", {"centered": True, "momentum": 0.5, "weight_decay": 0.1}),
    Trajectory("adagrad", "Adagrad", {}),
    Trajectory(
        "adagrad_settings",
        "Adagrad",
        {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-6},
    ),
    Trajectory("adam", "Adam", {}),
    Trajectory("adam_settings", "Adam", {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    Trajectory("adam_amsgrad", "Adam", {"amsgrad": True, "betas": (0.5, 0.6)}),
    Trajectory("adam_maximize", "Adam", {"maximize": True}),
    Trajectory("adam_groups", "Adam", {}, groups=({"lr": 0.2}, {"betas": (0.5, 0.9)})),
    Trajectory("adamw", "AdamW", {}),
    Trajectory("adamw_settings", "AdamW", {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}),
    Trajectory("adamw_amsgrad", "AdamW", {"amsgrad": True, "betas": (0.5, 0.6)}),
]

SCHEDULES: list[Case] = [
    Rates("step_lr", lambda s, o: s.StepLR(o, step_size=5, gamma=0.3)),
    Rates("multi_step_lr", lambda s, o: s.MultiStepLR(o, milestones=[3, 4, 10], gamma=0.5)),
    Rates("exponential_lr", lambda s, o: s.ExponentialLR(o, gamma=0.9)),
    Rates("constant_lr", lambda s, o: s.ConstantLR(o, factor=0.5, total_iters=4)),
    Rates("cosine_annealing_lr", lambda s, o: s.CosineAnnealingLR(o, T_max=10, eta_min=0.01), count=11),
    Rates("cosine_annealing_lr_beyond", lambda s, o: s.CosineAnnealingLR(o, T_max=7)),
    Rates("linear_lr", lambda s, o: s.LinearLR(o)),
    Rates("linear_lr_warm_up", lambda s, o: s.LinearLR(o, start_factor=0.1, end_factor=1.0, total_iters=8)),
    Rates("lambda_lr", lambda s, o: s.LambdaLR(o, lambda epoch: 1.0 / (1 + epoch))),
    Rates("polynomial_lr", lambda s, o: s.PolynomialLR(o, total_iters=9, power=2.0)),
    Rates(
        "reduce_lr_on_plateau",
        lambda s, o: s.ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=2, min_lr=0.05),
        measures=(3.0, 2.0, 2.0, 2.0, 2.0, 1.9999, 2.0, 2.0, 1.0, float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
    ),
    Rates(
        "reduce_lr_on_plateau_largest",
        lambda s, o: s.ReduceLROnPlateau(o, mode="max", patience=0, threshold=0.1, threshold_mode="abs"),
        measures=(1.0, 1.05, 1.2, 1.2, 1.4, 1.45),
    ),
    Rates(
        "warm_up_then_cosine",
        lambda s, o: s.SequentialLR(
            o, [s.LinearLR(o, start_factor=0.1, total_iters=5), s.CosineAnnealingLR(o, T_max=15)], milestones=[5]
        ),
        count=20,
    ),
]

CLIPPINGS: list[Case] = [
    Clipping("clip_grad_norm", 1.0),
    Clipping("clip_grad_norm_within", 1000.0),
    Clipping("clip_grad_norm_one", 2.0, norm_type=1.0),
    Clipping("clip_grad_norm_infinity", 0.5, norm_type=float("inf")),
]

OPTIMIZERS = TRAJECTORIES + SCHEDULES + CLIPPINGS
