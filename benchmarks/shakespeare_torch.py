"""The PyTorch program that does what `examples/shakespeare.py` does, step by step; `shakespeare.py` here measures both.

Embedding, LSTM, a linear map to logits, mean cross-entropy; Adam, the gradient clipped to a norm; the state is carried from
chunk to chunk. As in the example, a loss or a norm that is not finite ends the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class CharacterModel(nn.Module):
    """The names are those of the example's model, so that one state dict fits both."""

    def __init__(self, characters: int, embedding: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        self.recurrent = nn.LSTM(embedding, hidden)
        self.output = nn.Linear(hidden, characters)

    def forward(self, ids: torch.Tensor, state: Any = None) -> tuple[torch.Tensor, Any]:
        """(T, B) ids and the state before them to (T, B, V) logits and the state after them."""
        hidden, state = self.recurrent(self.embedding(ids), state)
        return self.output(hidden), state


class Training:
    """The model, its optimizer and the state that goes from chunk to chunk."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], embedding: int, hidden: int, lr: float, clip: float, device: str = "cpu"
    ) -> None:
        self.device = device
        self.model = CharacterModel(len(weights["output.bias"]), embedding, hidden).to(device)
        self.model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, fused=True)  # the fastest there is
        self.clip = clip
        self.state: Any = None

    def step(self, inputs: np.ndarray, targets: np.ndarray, starts: bool) -> float:
        """Learn from a (T, B) chunk, which begins the text anew if it `starts`; return its loss."""
        ids, wanted = (torch.from_numpy(a).to(self.device) for a in (inputs, targets))
        logits, state = self.model(ids, None if starts else self.state)
        loss = functional.cross_entropy(logits.reshape(targets.size, -1), wanted.reshape(-1))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        value = loss.item()
        if not (math.isfinite(value) and math.isfinite(norm.item())):
            raise FloatingPointError(f"the loss is {value}, the norm of the gradient {norm.item()}")
        self.optimizer.step()
        self.state = tuple(part.detach() for part in state)
        return value
