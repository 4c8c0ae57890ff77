"""Make the pictures of the documentation: ``python docs/pictures/make.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import tinyseq as ts
from tinyseq.draw import Picture

FOLDER = Path(__file__).parent


class LanguageModel(ts.nn.Module):
    """Tokens to scores of the next token, with an LSTM whose steps are recorded one by one."""

    def __init__(self, tokens: int = 20, features: int = 8, hidden: int = 16) -> None:
        self.embedding = ts.nn.Embedding(tokens, features)
        self.cell = ts.nn.LSTMCell(features, hidden)
        self.head = ts.nn.Linear(hidden, tokens)

    def __call__(self, tokens: ts.Tensor) -> ts.Tensor:
        def step(state, x):
            y, state = self.cell(x, state)
            return state, y

        _, ys = ts.scan(step, self.cell.initial_state(tokens.shape[1]), self.embedding(tokens), unroll=True)
        return self.head(ys)


def lstm_steps(steps: int = 3) -> Picture:
    """The loss of an LSTM language model over some time steps."""
    ts.manual_seed(0)
    model = LanguageModel()
    text = ts.tensor(np.arange(4 * (steps + 1)).reshape(steps + 1, 4) % 20)
    scores = model(text[:-1])
    loss = ts.nn.functional.cross_entropy(scores.reshape(-1, 20), text[1:].reshape(-1))
    return ts.draw(loss, names=model)


if __name__ == "__main__":
    picture = lstm_steps()
    for suffix in (".svg", ".png"):
        print(picture.save(FOLDER / f"lstm_steps{suffix}"))
