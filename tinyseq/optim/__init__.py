"""Optimizers, learning-rate schedules and gradient clipping, with PyTorch's names, arguments and arithmetic."""

from __future__ import annotations

from tinyseq.optim import lr_scheduler
from tinyseq.optim.clip import clip_grad_norm, clip_grad_value
from tinyseq.optim.ema import EMA
from tinyseq.optim.methods import SGD, Adagrad, Adam, AdamW, Momentum, RMSprop
from tinyseq.optim.optimizer import Optimizer

__all__ = [
    "EMA",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Momentum",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm",
    "clip_grad_value",
    "lr_scheduler",
]
