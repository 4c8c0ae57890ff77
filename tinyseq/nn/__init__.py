"""Modules: layers, recurrent cells and what runs them over time, losses, starting values."""

from __future__ import annotations

from tinyseq.nn import functional as functional
from tinyseq.nn import init as init
from tinyseq.nn.cells import *  # noqa: F403
from tinyseq.nn.layers import *  # noqa: F403
from tinyseq.nn.losses import *  # noqa: F403
from tinyseq.nn.module import *  # noqa: F403
from tinyseq.nn.recurrent import *  # noqa: F403
