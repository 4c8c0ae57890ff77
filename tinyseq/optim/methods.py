"""The update rules, each one function of numbers, and the optimizers that run them.

A rule takes a parameter's element ``p``, its states, the gradient's element ``g`` and numbers that are the same for all
elements; it returns ``p`` and the states anew. Backends run it over whole arrays, or compile it to one pass over memory.
What can be computed once a step (``1 - beta``, bias corrections) is a number handed in, so that a rule holds no
constants, which a compiler would compute with in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tinyseq.optim.optimizer import Group, Optimizer, Parameters, Update

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Momentum", "RMSprop"]

Rule = Callable[..., tuple[Any, ...]]


def sgd(F: Any, *, maximize: bool, decay: bool, momentum: bool, nesterov: bool) -> Rule:
    def update(p: Any, velocity: Any, g: Any, lr: float, weight_decay: float, mu: float, share: float) -> tuple[Any, ...]:
        if maximize:
            g = -g
        if decay:
            g = g + weight_decay * p
        if momentum:
            velocity = mu * velocity + share * g
            g = g + mu * velocity if nesterov else velocity
        return p - lr * g, velocity

    return update


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013) if asked for.

    ``v = momentum v + (1 - dampening) g``, at the first step ``v = g``; then ``p -= lr v``, and with ``nesterov``
    ``p -= lr (g + momentum v)``. ``weight_decay`` times p is added to g first.

    Raises:
        ValueError: a setting is out of range, or nesterov is asked for without momentum or with dampening.

    >>> import tinyseq as ts
    >>> p = ts.Parameter([1.0, 2.0])
    >>> optimizer = SGD([p], lr=0.5)
    >>> (p * p).sum().backward()
    >>> optimizer.step(); p.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def _check(self, settings: Group) -> None:
        if settings["nesterov"] and (settings["momentum"] == 0 or settings["dampening"] != 0):
            raise ValueError(
                f"nesterov needs momentum above 0 and dampening 0, got momentum {settings['momentum']} and "
                f"dampening {settings['dampening']}"
            )

    def _update(self, group: Group) -> Update:
        momentum = group["momentum"] != 0
        flags = {
            "maximize": group["maximize"],
            "decay": group["weight_decay"] != 0,
            "momentum": momentum,
            "nesterov": group["nesterov"],
        }
        return Update(sgd, flags, ("momentum_buffer" if momentum else None,))

    def _numbers(self, group: Group, step: int, fresh: bool) -> tuple[float, ...]:
        # The first gradient enters the velocity whole, as in PyTorch.
        share = 1.0 if fresh else 1 - group["dampening"]
        return group["lr"], group["weight_decay"], group["momentum"], share


class Momentum(SGD):
    """:class:`SGD` whose momentum is 0.9 unless said otherwise."""

    def __init__(self, params: Parameters, lr: float = 1e-3, momentum: float = 0.9, **settings: Any) -> None:
        super().__init__(params, lr, momentum, **settings)


def rmsprop(F: Any, *, maximize: bool, decay: bool, centered: bool, momentum: bool) -> Rule:
    def update(
        p: Any, square: Any, mean: Any, velocity: Any, g: Any,
        lr: float, weight_decay: float, alpha: float, rest: float, eps: float, mu: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        if maximize:
            g = -g
        if decay:
            g = g + weight_decay * p
        square = alpha * square + rest * g * g
        if centered:
            mean = mean + rest * (g - mean)
            # The variance, which rounding must not make negative.
            size = F.sqrt(F.maximum(square, mean * mean) - mean * mean) + eps
        else:
            size = F.sqrt(square) + eps
        if momentum:
            velocity = mu * velocity + g / size
            p = p - lr * velocity
        else:
            p = p - lr * g / size
        return p, square, mean, velocity

    return update


class RMSprop(Optimizer):
    """The gradient divided by a running root of its mean square (Tieleman and Hinton 2012; centred: Graves 2013).

    ``s = alpha s + (1 - alpha) g^2``, ``p -= lr g / (sqrt(s) + eps)``. With ``centered`` the square of a running mean of g
    is taken off s; with ``momentum`` the quotients are accumulated first.

    >>> import tinyseq as ts
    >>> p = ts.Parameter([1.0, -2.0])
    >>> optimizer = RMSprop([p], lr=0.01)
    >>> (p * p).sum().backward()
    >>> optimizer.step(); p.tolist()  # the first step is lr / sqrt(1 - alpha), whatever the gradient
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )

    def _update(self, group: Group) -> Update:
        centered, momentum = group["centered"], group["momentum"] > 0
        flags = {
            "maximize": group["maximize"],
            "decay": group["weight_decay"] != 0,
            "centered": centered,
            "momentum": momentum,
        }
        states = ("square_avg", "grad_avg" if centered else None, "momentum_buffer" if momentum else None)
        return Update(rmsprop, flags, states)

    def _numbers(self, group: Group, step: int, fresh: bool) -> tuple[float, ...]:
        alpha = group["alpha"]
        return group["lr"], group["weight_decay"], alpha, 1 - alpha, group["eps"], group["momentum"]


def adagrad(F: Any, *, maximize: bool, decay: bool) -> Rule:
    def update(p: Any, total: Any, g: Any, rate: float, weight_decay: float, eps: float) -> tuple[Any, ...]:
        if maximize:
            g = -g
        if decay:
            g = g + weight_decay * p
        total = total + g * g
        return p - rate * g / (F.sqrt(total) + eps), total

    return update


class Adagrad(Optimizer):
    """The gradient divided by the root of the sum of all its squares so far (Duchi et al. 2011).

    ``s += g^2``, ``p -= lr / (1 + (step - 1) lr_decay) g / (sqrt(s) + eps)``; s starts at ``initial_accumulator_value``.

    >>> import tinyseq as ts
    >>> p = ts.Parameter([1.0, -2.0])
    >>> optimizer = Adagrad([p], lr=0.1)
    >>> (p * p).sum().backward()
    >>> optimizer.step(); p.tolist()
    [0.9, -1.9]
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
        )

    def _initial(self, group: Group) -> float:
        return group["initial_accumulator_value"]

    def _update(self, group: Group) -> Update:
        return Update(adagrad, {"maximize": group["maximize"], "decay": group["weight_decay"] != 0}, ("sum",))

    def _numbers(self, group: Group, step: int, fresh: bool) -> tuple[float, ...]:
        return group["lr"] / (1 + (step - 1) * group["lr_decay"]), group["weight_decay"], group["eps"]


def adam(F: Any, *, maximize: bool, decay: bool, decoupled: bool, amsgrad: bool) -> Rule:
    def update(
        p: Any, mean: Any, square: Any, largest: Any, g: Any,
        weight_decay: float, kept: float, rest1: float, beta2: float, rest2: float, size: float, root: float, eps: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        if maximize:
            g = -g
        if decay:
            if decoupled:
                p = kept * p
            else:
                g = g + weight_decay * p
        mean = mean + rest1 * (g - mean)
        square = beta2 * square + rest2 * g * g
        if amsgrad:
            largest = F.maximum(largest, square)
            p = p - size * mean / (F.sqrt(largest) / root + eps)
        else:
            p = p - size * mean / (F.sqrt(square) / root + eps)
        return p, mean, square, largest

    return update


class Adam(Optimizer):
    """Running means of the gradient and of its square, corrected for their start at zero (Kingma and Ba 2015).

    ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``,
    ``p -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)``. ``weight_decay`` times p is added to g first; ``amsgrad``
    divides by the largest v so far (Reddi et al. 2018).

    >>> import tinyseq as ts
    >>> p = ts.Parameter([1.0, -2.0])
    >>> optimizer = Adam([p], lr=0.1)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     (p * p).sum().backward()
    ...     optimizer.step()
    >>> [round(value, 2) for value in p.tolist()]
    [0.70, -1.70]
    """

    _decoupled = False

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize)

    def _update(self, group: Group) -> Update:
        flags = {
            "maximize": group["maximize"],
            "decay": group["weight_decay"] != 0,
            "decoupled": self._decoupled,
            "amsgrad": group["amsgrad"],
        }
        return Update(adam, flags, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq" if group["amsgrad"] else None))

    def _numbers(self, group: Group, step: int, fresh: bool) -> tuple[float, ...]:
        lr, (beta1, beta2), decay = group["lr"], group["betas"], group["weight_decay"]
        size, root = lr / (1 - beta1**step), (1 - beta2**step) ** 0.5
        return decay, 1 - lr * decay, 1 - beta1, beta2, 1 - beta2, size, root, group["eps"]


class AdamW(Adam):
    """:class:`Adam` whose weight decay shrinks the parameter itself, ``p *= 1 - lr weight_decay`` (Loshchilov and Hutter 2019).

    >>> import tinyseq as ts
    >>> p = ts.Parameter([4.0])
    >>> optimizer = AdamW([p], lr=0.5, weight_decay=0.1)
    >>> (p * 0.0).sum().backward()
    >>> optimizer.step(); p.tolist()
    [3.8]
    """

    _decoupled = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
