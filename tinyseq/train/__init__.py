"""A training loop that you may ignore, and its parts, each of which works without it.

What :class:`Trainer` does, a plain loop does as well::

    loader = ts.data.Loader(training, batch=32, shuffle=True)
    stopping, board, random = ts.train.EarlyStopping(patience=3), ts.train.TensorBoard("runs/1"), ts.train.RandomState()
    parts = {"model": model, "optimizer": optimizer, "loader": loader, "stopping": stopping, "random": random}
    while loader.epoch < 20 and not stopping.over:
        for batch in loader:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            ts.optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
        error = validate(model.eval()); model.train()
        board.write(loader.epoch, {"loss": loss.item(), "valid/error": error})
        if stopping.update(error):
            ts.save("best.safetensors", model.state_dict())
        ts.train.save_checkpoint("last.safetensors", parts)  # and load_checkpoint before the loop, to go on

The trainer adds rows for every few steps, exact means, progress on the terminal and an orderly stop.
"""

from __future__ import annotations

from tinyseq.train.checkpoint import RandomState, Stateful, load_checkpoint, save_checkpoint
from tinyseq.train.logs import CSVLog, JSONLog, Log
from tinyseq.train.metrics import Totals, accuracy, edit_distance, error_rate
from tinyseq.train.statistics import arrays_of, norms
from tinyseq.train.stopping import EarlyStopping
from tinyseq.train.tensorboard import TensorBoard
from tinyseq.train.trainer import Trainer

__all__ = [
    "CSVLog",
    "EarlyStopping",
    "JSONLog",
    "Log",
    "RandomState",
    "Stateful",
    "TensorBoard",
    "Totals",
    "Trainer",
    "accuracy",
    "arrays_of",
    "edit_distance",
    "error_rate",
    "load_checkpoint",
    "norms",
    "save_checkpoint",
]
