"""Modules: layers, recurrent cells and what runs them over time, losses, starting values."""

from __future__ import annotations

from tinyseq.nn import functional as functional
from tinyseq.nn import init as init
from tinyseq.nn.attention import *  # noqa: F403
from tinyseq.nn.bptt import *  # noqa: F403
from tinyseq.nn.cells import *  # noqa: F403
from tinyseq.nn.ctc import ctc_beam_decode as ctc_beam_decode
from tinyseq.nn.ctc import ctc_greedy_decode as ctc_greedy_decode
from tinyseq.nn.decoding import *  # noqa: F403
from tinyseq.nn.layers import *  # noqa: F403
from tinyseq.nn.losses import *  # noqa: F403
from tinyseq.nn.module import *  # noqa: F403
from tinyseq.nn.positional import *  # noqa: F403
from tinyseq.nn.recurrent import *  # noqa: F403
from tinyseq.nn.self_attention import *  # noqa: F403
from tinyseq.nn.seq2seq import *  # noqa: F403
from tinyseq.nn.transformer import *  # noqa: F403
from tinyseq.nn.wrappers import *  # noqa: F403
