"""Make the pictures of the documentation: ``python docs/pictures/make.py [FOLDER]``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import tinyseq as ts
from tinyseq.draw import Picture

FOLDER = Path(__file__).parent
STEPS = 100  # of the sequence through which gradients vanish


def expression() -> Picture:
    """A scalar expression with its values, and the gradients that have flowed back through it."""
    a, b, c = (ts.tensor(value, requires_grad=True) for value in (2.0, -0.5, 0.3))
    with ts.draw.profile() as profile:
        product = a * b
        shifted = product + c
        y = ts.tanh(shifted)
        y.backward()
    profile.seconds.clear()  # they differ from run to run
    return ts.draw(y, names=locals(), profile=profile)


def perceptron() -> tuple[ts.nn.Module, ts.Tensor]:
    """An MLP and an input."""
    ts.manual_seed(0)
    return ts.nn.Sequential(ts.nn.Linear(8, 16), ts.tanh, ts.nn.Linear(16, 3)), ts.zeros((4, 8))


def mlp() -> Picture:
    """An MLP: operations in frames of modules."""
    model, x = perceptron()
    return ts.draw(model, x, names=model, values=0)


def mlp_modules() -> Picture:
    """An MLP: a box a layer."""
    model, x = perceptron()
    return ts.draw(model, x, names=model, level="modules")


def lstm_step() -> Picture:
    """One step of an LSTM, written out, with its gates."""

    def step(x: ts.Tensor, h: ts.Tensor, c: ts.Tensor) -> Picture:
        W = {gate: ts.Parameter(np.zeros((8 + 16, 16), "float32")) for gate in "ifgo"}
        W_i, W_f, W_g, W_o = W.values()
        hx = ts.concatenate([h, x], -1)
        i = ts.sigmoid(hx @ W_i)
        f = ts.sigmoid(hx @ W_f)
        g = ts.tanh(hx @ W_g)
        o = ts.sigmoid(hx @ W_o)
        c_new = f * c + i * g
        h_new = o * ts.tanh(c_new)
        return ts.draw([h_new, c_new], names=locals())

    return step(*(ts.zeros((4, n), requires_grad=True) for n in (8, 16, 16)))


def lstm(steps: int, unroll: bool = False) -> tuple[ts.nn.Module, ts.Tensor]:
    """An LSTM and a sequence."""
    ts.manual_seed(0)
    layer = ts.nn.LSTM(8, 16)
    layer.unroll = unroll
    return layer, ts.random.randn((steps, 4, 8))


def lstm_folded() -> Picture:
    """An LSTM over 50 steps, drawn once, with the norms of its gradients under the loop."""
    layer, xs = lstm(50)
    with ts.trace_gradients() as flow:
        ys, _ = layer(xs)
        loss = (ys[-1] ** 2).sum()
        loss.backward()
    layer.zero_grad()
    _, xs = lstm(50)
    return ts.draw((layer(xs)[0][-1] ** 2).sum(), names=layer, gradients=flow, values=0)


def lstm_unrolled() -> Picture:
    """The same with its steps in columns: forward above, and below the backward pass, which walks back."""
    layer, xs = lstm(50, unroll=True)
    with ts.trace_gradients() as flow:
        loss = (layer(xs)[0][-1] ** 2).sum()
        loss.backward()
    layer.zero_grad()
    loss = (layer(xs)[0][-1] ** 2).sum()
    return ts.draw(loss, names=layer, gradients=flow, level="modules", time="unrolled")


def gru_stack() -> Picture:
    """Two layers and two directions: of the four loops, which are alike, one is open; with the norms of their gradients."""
    ts.manual_seed(0)
    layer, xs = ts.nn.GRU(8, 16, num_layers=2, bidirectional=True), ts.random.randn((20, 4, 8))
    with ts.trace_gradients() as flow:
        (layer(xs)[1] ** 2).sum().backward()
    layer.zero_grad()
    return ts.draw((layer(xs)[1] ** 2).sum(), names=layer, gradients=flow, values=0)


class LanguageModel(ts.nn.Module):
    """Tokens to scores of the next token, with an LSTM whose steps are recorded one by one."""

    def __init__(self, tokens: int = 20, features: int = 8, hidden: int = 16) -> None:
        self.embedding = ts.nn.Embedding(tokens, features)
        self.cell = ts.nn.LSTMCell(features, hidden)
        self.head = ts.nn.Linear(hidden, tokens)

    def __call__(self, tokens: ts.Tensor) -> ts.Tensor:
        def step(state: Any, x: ts.Tensor) -> tuple[Any, ts.Tensor]:
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


def encoder_decoder() -> Picture:
    """An encoder and a decoder with attention, a box a module."""
    ts.manual_seed(0)
    encoder = ts.nn.RecurrentEncoder(ts.nn.Embedding(20, 8), ts.nn.GRU(8, 16, bidirectional=True))
    attention = ts.nn.AdditiveAttention(query_size=16, key_size=32, hidden_size=16)
    cell = ts.nn.BahdanauCell(ts.nn.GRUCell(8 + 32, 16), attention)
    decoder = ts.nn.RecurrentDecoder(ts.nn.Embedding(30, 8), cell, ts.nn.Linear(16 + 32, 30))
    model = ts.nn.EncoderDecoder(encoder, decoder, start=1, end=2, bridge=ts.nn.Bridge(32, cell.cell))
    source, target = ts.tensor(np.ones((12, 4), "int64")), ts.tensor(np.ones((9, 4), "int64"))
    return ts.draw(lambda source, target: model(source, target)[0], source, target, names=model, level="modules", time="folded")


def recurrent(unroll: bool) -> tuple[ts.Tensor, dict[str, ts.Tensor]]:
    """A plain recurrent layer and a loss on its outputs, written as in a textbook."""
    W, V = ts.Parameter(np.zeros((8 + 16, 16), "float32")), ts.Parameter(np.zeros((16, 3), "float32"))

    def step(h: ts.Tensor, x: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h = ts.tanh(ts.concatenate([h, x], -1) @ W)
        return h, h @ V

    xs, h0 = ts.zeros((50, 4, 8), requires_grad=True), ts.zeros((4, 16), requires_grad=True)
    _, ys = ts.scan(step, h0, xs, unroll=unroll)
    return ys.sum(), {"W": W, "V": V, "xs": xs, "h0": h0}


def split_before() -> Picture:
    """A scan as it was written: all of the step is in the loop."""
    loss, names = recurrent(unroll=True)
    return ts.draw(loss, names=names, time="folded")


def split_after() -> Picture:
    """The same scan as it runs: products that do not wait for the state stand before the loop and after it."""
    loss, names = recurrent(unroll=False)
    return ts.draw(loss, names=names, backward=True)


def double_backward() -> Picture:
    """A gradient is a computation like any other, and can be differentiated again."""
    x = ts.tensor(0.5, requires_grad=True)
    slope = ts.grad(lambda x: x * ts.sin(x))(x)
    return ts.draw(slope, names=locals(), values=0)


def vanishing(steps: int = STEPS) -> Any:
    """How much of the gradient of the last output reaches each step: RNN, GRU and LSTM over 100 steps."""
    flows = {}
    for kind in (ts.nn.RNN, ts.nn.GRU, ts.nn.LSTM):
        ts.manual_seed(0)
        options = {"forget_bias": 1.0} if kind is ts.nn.LSTM else {}
        layer, xs = kind(16, 64, **options), ts.random.randn((steps, 8, 16))
        with ts.trace_gradients() as flow:
            (layer(xs)[0][-1] ** 2).sum().backward()
        parts = list(flow.values())
        flows[kind.__name__] = np.sqrt(sum(part**2 for part in parts))  # of all parts of the state together
    return ts.draw.gradient_flow(flows, title="How much of the last output's gradient reaches each step")


PICTURES: tuple[Callable[[], Picture], ...] = (
    expression,
    mlp,
    mlp_modules,
    lstm_step,
    lstm_folded,
    lstm_unrolled,
    gru_stack,
    lstm_steps,
    encoder_decoder,
    split_before,
    split_after,
    double_backward,
)


def make(folder: Path, suffix: str = ".svg") -> list[Path]:
    """Write all pictures into a folder."""
    paths = [picture().save(folder / f"{picture.__name__}{suffix}") for picture in PICTURES]
    paths.append(lstm_steps().save(folder / "lstm_steps.png"))  # the README's, for pages that show no SVG
    paths.append(folder / "vanishing.png")
    vanishing().savefig(paths[-1], metadata={"Software": None})
    return paths


if __name__ == "__main__":
    for path in make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER, *sys.argv[2:3]):
        print(path)
