"""The loop."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tinyseq.console import Progress, Stop
from tinyseq.errors import CheckpointError, DataError, DTypeError, NonFiniteError
from tinyseq.io import load_whole, save
from tinyseq.nn.module import Module
from tinyseq.optim.clip import clip_grad_norm
from tinyseq.optim.ema import EMA
from tinyseq.optim.lr_scheduler import ReduceLROnPlateau
from tinyseq.optim.optimizer import Optimizer
from tinyseq.tape import no_grad
from tinyseq.tensor import Tensor
from tinyseq.train.checkpoint import RandomState, Stateful, load_checkpoint, save_checkpoint
from tinyseq.train.logs import Log
from tinyseq.train.metrics import Totals
from tinyseq.train.statistics import arrays_of, norms
from tinyseq.train.stopping import EarlyStopping

__all__ = ["Trainer"]

Batches = Iterable[Any]
Loss = Callable[[Any, Any], Tensor | Mapping[str, Any]]
Values = dict[str, tuple[Any, Any]]
LAST, BEST = "last.safetensors", "best.safetensors"


class Trainer:
    """Trains a model: steps, validation, logs, checkpoints, an orderly stop.

    Args:
        model: the model.
        optimizer: its optimizer.
        loss: ``loss(model, batch)`` returns the loss, a tensor of one number; or a dict with it under ``"loss"`` and with
            metrics: numbers, or (total, count) pairs such as those of :func:`accuracy`, whose mean over many batches is
            exact. ``"count"`` says how much the loss, a mean, counts (tokens or rows; 1 if it is not given). If it has
            a ``state_dict`` (an object that carries a recurrent state from batch to batch, say), that is saved too.
        folder: for checkpoints: ``last.safetensors``, all that the run goes on from, and ``best.safetensors``, the
            model's ``state_dict`` where ``monitor`` was best. None saves nothing.
        schedule: a learning-rate schedule, stepped after each step, or at each validation if it is ReduceLROnPlateau.
        clip: the largest norm of the gradient.
        accumulate: how many batches make a step: the mean of their gradients is what one batch of all their rows gives, if
            the loss is a mean and they are of one size. An epoch's last step has as many as are left.
        ema: a mean of the weights, updated after each step; validation, and what is best, uses it.
        logs: where numbers go.
        statistics: log the norms of all parameters and gradients, and their distributions, every so many steps; 0 never.
        monitor: the metric that says which model is best, one of those of validation.
        mode: "min" if less of it is better, "max" if more is.
        patience: end training when so many validations in a row, and one more, did not beat the best; None never.
        parts: more that a run goes on from, by name.

    Attributes:
        step: how many steps were made.
        history: a dict for each row of the log, with ``"step"`` and what was measured.
        stopping: the best value of ``monitor``, ``stopping.best``.
        signal: the number of the signal that stopped the last :meth:`fit`, or 0.

    >>> import numpy as np, tinyseq as ts
    >>> ts.manual_seed(0)
    >>> model = ts.nn.Linear(1, 1)
    >>> x = np.arange(4, dtype=np.float32)[:, None]
    >>> loss = lambda model, batch: ts.nn.functional.mse_loss(model(ts.tensor(batch)), ts.tensor(2 * batch))
    >>> trainer = ts.train.Trainer(model, ts.optim.Adam(model.parameters(), lr=0.1), loss)
    >>> trainer.fit([x], steps=200, valid=[x], valid_every=100, quiet=True)
    'steps'
    >>> trainer.step, trainer.history[-1]["valid/loss"] < 1e-3
    (200, True)
    """

    def __init__(
        self,
        model: Module,
        optimizer: Optimizer,
        loss: Loss,
        *,
        folder: str | os.PathLike[str] | None = None,
        schedule: Any = None,
        clip: float | None = None,
        accumulate: int = 1,
        ema: EMA | None = None,
        logs: Sequence[Log] = (),
        statistics: int = 0,
        monitor: str = "valid/loss",
        mode: str = "min",
        patience: int | None = None,
        parts: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.folder = None if folder is None else Path(folder)
        self.schedule = schedule
        if accumulate < 1:
            raise ValueError(f"a step takes at least 1 batch, got accumulate={accumulate}")
        self.clip = clip
        self.accumulate = accumulate
        self.ema = ema
        self.logs = tuple(logs)
        self.statistics = statistics
        self.monitor = monitor
        self.stopping = EarlyStopping(math.inf if patience is None else patience, mode)
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.signal = 0
        self._totals = Totals()  # since the last row of the log
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "trainer": self, "random": RandomState()}
        self._parts |= {"schedule": schedule} if schedule is not None else {}
        self._parts |= {"ema": ema} if ema is not None else {}
        self._parts |= {"loss": loss} if _is_stateful(loss) else {}
        if taken := sorted(self._parts.keys() & (parts or {}).keys()):
            raise ValueError(f"a trainer has a part of its own called {taken[0]!r}; choose another name")
        self._parts |= parts or {}

    # Training

    def fit(
        self,
        batches: Batches,
        *,
        steps: int | None = None,
        epochs: int | None = None,
        seconds: float = math.inf,
        valid: Batches | Callable[[], Mapping[str, float]] | None = None,
        valid_every: int | None = None,
        log_every: int = 50,
        save_every: int | None = None,
        resume: bool = False,
        quiet: bool = False,
    ) -> str:
        """Train until something ends it, and save.

        A Ctrl-C or a SIGTERM ends it after the step under way. A run that is taken up again with the same arguments
        goes on bit for bit as if it had never stopped, if ``batches`` (a :class:`tinyseq.data.Loader`, say) knows its
        place; a plain list begins anew.

        Args:
            batches: an iterable of batches, read again and again.
            steps: the step, counted from the very first, after which training ends.
            epochs: or as many passes over ``batches``, counted from the very first; they must have a length.
            seconds: or the time after which it ends, if that is sooner.
            valid: batches to validate with: means of the loss and of the metrics, named ``valid/...``, in evaluation
                mode; or a function that returns such numbers, which are then named so too.
            valid_every: steps between validations; by default those of an epoch.
            log_every: steps between rows of the log.
            save_every: steps between checkpoints; by default as ``valid_every``. The last step is always saved.
            resume: go on from ``last.safetensors`` in the trainer's folder.
            quiet: show nothing.

        Returns:
            What ended it: "steps", "seconds", "patience" or "signal".

        Raises:
            NonFiniteError: the loss, or with ``clip`` the gradient's norm, is not finite; the weights are as before
                that step.
            CheckpointError: the folder holds another run, or, with ``resume``, none that fits; or it cannot be written.
            DataError: there are no batches.
            ValueError: nothing would end training, ``valid_every`` is missing and ``batches`` have no length, a number
                of steps between two things is less than 1, or ``monitor`` is not among the metrics.
        """
        for what, count in (("valid_every", valid_every), ("log_every", log_every), ("save_every", save_every)):
            if count is not None and count < 1:
                raise ValueError(f"{what} is at least 1, got {count}")
        end, every = _end(batches, self.accumulate, steps, epochs, seconds, valid_every, valid)
        for name, source in (("batches", batches), ("valid", valid)):
            self._parts.pop(name, None)
            if _is_stateful(source):
                self._parts[name] = source
        self._begin(resume)
        if "batches" in self._parts:  # go on in an epoch that is half read
            self._parts["batches"].load_state_dict(self._parts["batches"].state_dict())
        stop = Stop() if threading.current_thread() is threading.main_thread() else None
        shown = Progress(sys.maxsize if end is None else end, seconds, done=self.step, quiet=quiet)

        def over() -> str | None:
            if stop is not None and stop.signal:
                return "signal"
            if self.stopping.over:
                return "patience"
            if end is not None and self.step >= end:
                return "steps"
            return "seconds" if shown.over else None

        def read() -> str | None:
            """One pass over the batches, or what ended it."""
            unread = iter(batches)
            while group := list(islice(unread, self.accumulate)):
                self._train_step(group)
                if self.step % log_every == 0:
                    self._log_means()
                if valid is not None and self.step % every == 0:
                    self._validate(valid)
                if self.step % (save_every or every) == 0:
                    self.save()
                shown.update(self._summary())
                if (why := over()) is not None:
                    return why
            return None

        empty = 0
        with stop or nullcontext(), shown:
            why = over()
            while why is None:
                before = self.step
                why = read()
                # A pass may be empty: that of a run which was taken up again after the last batch of an epoch.
                empty = empty + 1 if self.step == before else 0
                if empty == 2:
                    raise DataError(f"there are no batches after step {self.step}; give a list or a Loader, not a generator")
        self.signal = stop.signal if stop is not None else 0
        self.save()
        return why

    def _begin(self, resume: bool) -> None:
        last = None if self.folder is None else self.folder / LAST
        if resume:
            if last is None:
                raise CheckpointError("a trainer without a folder has nothing to resume from; give it one")
            load_checkpoint(last, self._parts)
        elif self.step == 0 and last is not None and last.exists():
            raise CheckpointError(f"{str(last)!r} is of another run; go on from it with resume=True, or name another folder")
        if resume or self.step == 0:
            for log in self.logs:
                log.rewind(self.step)

    def _train_step(self, batches: Sequence[Any]) -> None:
        self.optimizer.zero_grad()
        measured: list[Values] = []
        for batch in batches:
            loss, values = _measured(self.loss(self.model, batch))
            self._check("loss", loss.item())
            (loss if len(batches) == 1 else loss / len(batches)).backward()
            measured.append(values)
        if self.statistics and (self.step + 1) % self.statistics == 0:
            self._log_statistics()
        if self.clip is not None:
            norm = clip_grad_norm(self.model.parameters(), self.clip).item()
            self._check("norm of the gradient", norm)
            measured.append({"gradient_norm": (norm, 1)})
        self.optimizer.step()
        if self.schedule is not None and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        for values in measured:
            self._totals.add(values)

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the {what} is {value} at step {self.step + 1}; lower the learning rate, clip the gradient, or look for "
                "the operation with ts.detect_anomaly"
            )

    # Looking at it

    def evaluate(self, batches: Batches) -> dict[str, float]:
        """The means of the loss and of the metrics over batches, in evaluation mode, with the weights as they are.

        Raises:
            DataError: there are no batches.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        totals, count = Totals(), 0
        self.model.eval()
        try:
            with no_grad():
                for batch in batches:
                    totals.add(_measured(self.loss(self.model, batch))[1])
                    count += 1
        finally:
            for module, training in modes:
                module.training = training
        if not count:
            raise DataError("there are no batches to evaluate with")
        return totals.means()

    def _validate(self, valid: Batches | Callable[[], Mapping[str, float]]) -> None:
        with self.ema.swapped() if self.ema is not None else nullcontext():
            found = self.evaluate(valid) if isinstance(valid, Iterable) else valid()
            values = {name if name.startswith("valid/") else f"valid/{name}": float(value) for name, value in found.items()}
            if self.monitor not in values:
                raise ValueError(f"there is no metric {self.monitor!r} to monitor, only {', '.join(sorted(values))}")
            if self.stopping.update(values[self.monitor]) and self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                facts = {"step": str(self.step), "metrics": json.dumps(values)}
                save(self.folder / BEST, self.model.state_dict(), facts)
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(values[self.monitor])
        self._log(values)

    def _log_means(self) -> None:
        self._log({**self._totals.means(), "lr": self.optimizer.lr})
        self._totals = Totals()

    def _log(self, values: Mapping[str, float]) -> None:
        self.history.append({"step": self.step, **values})
        for log in self.logs:
            log.write(self.step, values)

    def _log_statistics(self) -> None:
        arrays = arrays_of(self.model.named_parameters())
        for log in self.logs:
            log.write(self.step + 1, norms(arrays))
            log.histograms(self.step + 1, arrays)

    def _summary(self) -> str:
        means = self._totals.means() or next((row for row in reversed(self.history) if "loss" in row), {})
        shown = [f"loss {means['loss']:.4g}"] if "loss" in means else []
        validated = next((row[self.monitor] for row in reversed(self.history) if self.monitor in row), None)
        return ", ".join(shown + ([] if validated is None else [f"{self.monitor} {validated:.4g}"]))

    # Saving

    def save(self) -> None:
        """Write ``last.safetensors``; nothing without a folder.

        Raises:
            NonFiniteError: a parameter is not finite; the file is as it was.
            CheckpointError: it cannot be written.
        """
        if self.folder is None:
            return
        for name, value in self.model.named_parameters():
            if not np.isfinite(value.detach().numpy()).all():
                raise NonFiniteError(f"the parameter {name} is not finite after step {self.step}; {LAST} is of an earlier one")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.folder / LAST, self._parts)

    def load_best(self) -> dict[str, float]:
        """Give the model the weights of ``best.safetensors``; the metrics that it had then.

        Raises:
            CheckpointError: there is none, or it does not fit.
        """
        path = None if self.folder is None else self.folder / BEST
        if path is None or not path.exists():
            raise CheckpointError("there is no best checkpoint; a trainer with a folder writes one when it validates")
        state, facts = load_whole(path)
        self.model.load_state_dict(state)
        return json.loads(facts["metrics"])

    def state_dict(self) -> dict[str, Any]:
        """The trainer's own part of a checkpoint, in a form that JSON can hold."""
        return {
            "step": self.step,
            "history": list(self.history),
            "totals": self._totals.state_dict(),
            "stopping": self.stopping.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.step = state["step"]
        self.history = list(state["history"])
        self._totals.load_state_dict(state["totals"])
        self.stopping.load_state_dict(state["stopping"])


def _is_stateful(part: Any) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def _end(
    batches: Any, accumulate: int, steps: int | None, epochs: int | None, seconds: float, valid_every: int | None, valid: Any
) -> tuple[int | None, int]:
    """The step that training ends with, if any, and the steps between validations and checkpoints."""
    length = -(-len(batches) // accumulate) if hasattr(batches, "__len__") else None  # in steps
    if length == 0:
        raise DataError("there are no batches to train with")
    if epochs is not None:
        if length is None:
            raise ValueError(f"epochs={epochs} needs batches with a length; say steps instead")
        steps = epochs * length if steps is None else min(steps, epochs * length)
    if steps is None and seconds == math.inf:
        raise ValueError("nothing would end training; give steps, epochs or seconds")
    if valid is not None and valid_every is None and length is None:
        raise ValueError("batches without a length do not say how often to validate; give valid_every")
    return steps, valid_every or length or sys.maxsize


def _measured(result: Any) -> tuple[Tensor, Values]:
    """The loss to descend, and what is to be averaged, as (total, count) pairs."""
    found = dict(result) if isinstance(result, Mapping) else {"loss": result}
    loss = found.pop("loss", None)
    if not isinstance(loss, Tensor) or loss.size != 1:
        given = "none" if loss is None else f"shape {loss.shape}" if isinstance(loss, Tensor) else type(loss).__name__
        raise DTypeError(f"a loss function returns a tensor of one number, alone or in a dict under 'loss', got {given}")
    count = float(found.pop("count", 1))
    values: Values = {"loss": (loss.item() * count, count)}
    for name, value in found.items():
        values[name] = value if isinstance(value, tuple) else (float(value) * count, count)
    return loss, values
