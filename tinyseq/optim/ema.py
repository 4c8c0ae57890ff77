"""A running mean of the weights, which often does better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tinyseq.errors import CheckpointError
from tinyseq.optim.optimizer import Parameters, named_parameters
from tinyseq.tape import no_grad
from tinyseq.tensor import Tensor, as_tensor, int64

__all__ = ["EMA"]


class EMA:
    """The exponential moving average of parameters: ``m = d m + (1 - d) p`` after each step (Polyak and Juditsky 1992).

    Args:
        params: parameters or (name, parameter) pairs, as an optimizer takes them.
        decay: d, in [0, 1).
        warmup: let d be no more than (1 + n) / (10 + n) at update n = 1, 2 ..., so that the first weights, which are
            random, are soon forgotten.

    Raises:
        ValueError: ``decay`` is not in [0, 1), or there is no parameter.

    >>> import tinyseq as ts
    >>> p = ts.Parameter([0.0])
    >>> ema = ts.optim.EMA([p], decay=0.75)
    >>> p.data = ts.tensor([4.0]).data
    >>> ema.update()
    >>> with ema.swapped():
    ...     print(p.tolist())
    [1.0]
    >>> p.tolist()
    [4.0]
    """

    def __init__(self, params: Parameters, decay: float = 0.999, warmup: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA needs a decay in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        self._params = [p for _, p in named_parameters(params)]
        self._means = [p.detach().copy() for p in self._params]
        self._count = 0

    def update(self) -> None:
        """Take the parameters as they are now into the mean; call it after the optimizer's step."""
        self._count += 1
        decay = min(self.decay, (1 + self._count) / (10 + self._count)) if self.warmup else self.decay
        with no_grad():
            for i, p in enumerate(self._params):
                mean, now = self._means[i], p.detach()
                self._means[i] = now + decay * (mean - now)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters are the means inside the ``with`` block, and themselves again after it, whatever happens in it."""
        own = [p.data for p in self._params]
        for p, mean in zip(self._params, self._means, strict=True):
            p.data = mean.data
        try:
            yield
        finally:
            for p, data in zip(self._params, own, strict=True):
                p.data = data

    def copy_to_parameters(self) -> None:
        """Give the parameters the values of the means, for good."""
        for p, mean in zip(self._params, self._means, strict=True):
            p.data = mean.copy().data

    def state_dict(self) -> dict[str, Tensor]:
        """The means, ``mean.0`` of the first parameter, and how many updates they have had."""
        count = {"updates": as_tensor(self._count, int64)}
        return count | {f"mean.{i}": mean.detach() for i, mean in enumerate(self._means)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state_dict`` of the same parameters.

        Raises:
            CheckpointError: it does not fit; nothing was changed.
        """
        wanted = {"updates", *(f"mean.{i}" for i in range(len(self._params)))}
        if set(state) != wanted:
            odd = sorted(wanted ^ set(state))
            raise CheckpointError(
                f"the EMA's state is of other parameters: {', '.join(odd)} {'do' if odd[1:] else 'does'} not fit"
            )
        for i, p in enumerate(self._params):
            mean = state[f"mean.{i}"]
            if mean.shape != p.shape or mean.dtype != p.dtype:
                raise CheckpointError(
                    f"the EMA's entry mean.{i} is {mean.dtype} {mean.shape}, but the parameter is {p.dtype} {p.shape}; "
                    "it is of another architecture"
                )
        self._means = [state[f"mean.{i}"].detach().to(p.backend).copy() for i, p in enumerate(self._params)]
        self._count = int(state["updates"].item())
