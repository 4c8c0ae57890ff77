"""The recurrent cells of a course, written from their equations, beside the layers that come with the library.

    python examples/cells.py
    python examples/cells.py --backend numba --hidden 256 --length 128

Each cell is a dozen lines that look like its equations. The weights of the one are copied into the other under the right
mapping; then both get the same inputs, and the table says how far apart their outputs and gradients are, in float64, and
how long a training step (forward, and back through time) takes each, in float32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import tinyseq as ts
from tinyseq.console import Parser, number

# --- the cells --------------------------------------------------------------------------------------------------------


class SimpleRNN(ts.nn.Module):
    """h_t = tanh(W_xh x_t + W_hh h_{t-1}),  y_t = W_hy h_t."""

    def __init__(self, inputs: int, hidden: int, dtype: str) -> None:
        self.W_xh = weight(hidden, inputs, dtype)
        self.W_hh = weight(hidden, hidden, dtype)
        self.W_hy = weight(hidden, hidden, dtype)

    def initial_state(self, batch: int) -> ts.Tensor:
        return ts.zeros((batch, self.W_hh.shape[0]), self.W_hh.dtype)

    def __call__(self, x: ts.Tensor, h: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        h = ts.tanh(x @ self.W_xh.T + h @ self.W_hh.T)
        y = h @ self.W_hy.T
        return y, h


class GRU(ts.nn.Module):
    """z and r on [h, x];  h~ = tanh(W [r * h, x]);  h_t = z * h~ + (1 - z) * h_{t-1}."""

    def __init__(self, inputs: int, hidden: int, dtype: str) -> None:
        self.W_z = weight(hidden, hidden + inputs, dtype)
        self.W_r = weight(hidden, hidden + inputs, dtype)
        self.W = weight(hidden, hidden + inputs, dtype)

    def initial_state(self, batch: int) -> ts.Tensor:
        return ts.zeros((batch, self.W.shape[0]), self.W.dtype)

    def __call__(self, x: ts.Tensor, h: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        z = ts.sigmoid(ts.concatenate([h, x], -1) @ self.W_z.T)
        r = ts.sigmoid(ts.concatenate([h, x], -1) @ self.W_r.T)
        new = ts.tanh(ts.concatenate([r * h, x], -1) @ self.W.T)
        h = z * new + (1 - z) * h
        return h, h


class LSTM(ts.nn.Module):
    """f, i, o and c~ on [h, x];  c_t = f * c_{t-1} + i * c~;  h_t = o * tanh(c_t)."""

    def __init__(self, inputs: int, hidden: int, dtype: str) -> None:
        for gate in "fico":
            setattr(self, f"W_{gate}", weight(hidden, hidden + inputs, dtype))
            setattr(self, f"b_{gate}", weight(hidden, None, dtype))

    def initial_state(self, batch: int) -> tuple[ts.Tensor, ts.Tensor]:
        zeros = ts.zeros((batch, self.b_f.shape[0]), self.b_f.dtype)
        return zeros, zeros

    def __call__(self, x: ts.Tensor, state: tuple[ts.Tensor, ts.Tensor]) -> tuple[ts.Tensor, tuple[ts.Tensor, ts.Tensor]]:
        h, c = state
        hx = ts.concatenate([h, x], -1)
        f = ts.sigmoid(hx @ self.W_f.T + self.b_f)
        i = ts.sigmoid(hx @ self.W_i.T + self.b_i)
        new = ts.tanh(hx @ self.W_c.T + self.b_c)
        c = f * c + i * new
        o = ts.sigmoid(hx @ self.W_o.T + self.b_o)
        h = o * ts.tanh(c)
        return h, (h, c)


def weight(rows: int, columns: int | None, dtype: str) -> ts.Parameter:
    bound = rows**-0.5
    return ts.Parameter(ts.random.uniform((rows,) if columns is None else (rows, columns), -bound, bound, dtype))


# --- the same, by the layers of the library ---------------------------------------------------------------------------


class BuiltInRNN(ts.nn.Module):
    """The layer, and the output's weights after it."""

    def __init__(self, inputs: int, hidden: int, dtype: str) -> None:
        self.layer = ts.nn.RNN(inputs, hidden, bias=False, dtype=dtype)
        self.output = ts.nn.Linear(hidden, hidden, bias=False, dtype=dtype)

    def __call__(self, x: ts.Tensor) -> tuple[ts.Tensor, Any]:
        hidden, state = self.layer(x)
        return self.output(hidden), state


Arrays = dict[str, np.ndarray]


def rnn_weights(w: Arrays) -> Arrays:
    return {"layer.weight_ih_l0": w["W_xh"], "layer.weight_hh_l0": w["W_hh"], "output.weight": w["W_hy"]}


def gru_weights(w: Arrays) -> Arrays:
    """The layer's gate z keeps the old state where the course's takes the new one: 1 - sigma(a) is sigma(-a)."""
    return columns(w["W_r"], -w["W_z"], w["W"])


def lstm_weights(w: Arrays) -> Arrays:
    """The course has one bias a gate, the layer two, which are added."""
    bias = np.concatenate([w[f"b_{gate}"] for gate in "ifco"])
    return columns(*(w[f"W_{gate}"] for gate in "ifco")) | {"bias_ih_l0": bias, "bias_hh_l0": np.zeros_like(bias)}


def columns(*gates: np.ndarray) -> Arrays:
    """W on [h, x] is W_h on h and W_x on x."""
    joint, hidden = np.concatenate(gates), len(gates[0])
    return {"weight_hh_l0": joint[:, :hidden], "weight_ih_l0": joint[:, hidden:]}


@dataclass(frozen=True)
class Pair:
    """A cell of one's own, the layer that computes the same, and the weights of the one as those of the other."""

    cell: Callable[..., Any]
    layer: Callable[..., Any]
    mapping: Callable[[Arrays], Arrays]

    def build(self, inputs: int, hidden: int, dtype: str) -> tuple[ts.nn.Recurrent, ts.nn.Module]:
        own, layer = ts.nn.Recurrent(self.cell(inputs, hidden, dtype)), self.layer(inputs, hidden, dtype=dtype)
        layer.load_state_dict(self.mapping({name: value.numpy() for name, value in own.cell.state_dict().items()}))
        return own, layer


PAIRS = {
    "RNN": Pair(SimpleRNN, BuiltInRNN, rnn_weights),
    "GRU": Pair(GRU, partial(ts.nn.GRU, bias=False, reset_after=False), gru_weights),
    "LSTM": Pair(LSTM, ts.nn.LSTM, lstm_weights),
}


# --- comparing --------------------------------------------------------------------------------------------------------


def loss_of(layer: Any, x: ts.Tensor, targets: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
    """The sum over the steps of each step's loss, half the squared distance; and the outputs."""
    outputs, _ = layer(x)
    return ((outputs - targets) ** 2).sum((1, 2)).sum() / 2, outputs


def train_step(layer: Any, x: ts.Tensor, targets: ts.Tensor) -> tuple[float, np.ndarray]:
    """Forward, and back through time."""
    layer.zero_grad()
    loss, outputs = loss_of(layer, x, targets)
    loss.backward()
    return loss.item(), outputs.detach().numpy()


def differences(pair: Pair, options: argparse.Namespace) -> tuple[float, float, float]:
    """The loss, and how far apart outputs and gradients are, relative to the largest of them."""
    own, layer = pair.build(options.inputs, options.hidden, "float64")
    x, targets = batch(options, "float64")
    (loss, outputs), (_, others) = (train_step(each, x, targets) for each in (own, layer))
    expected = pair.mapping({name: parameter.grad.numpy() for name, parameter in own.cell.named_parameters()})
    found = {name: parameter.grad.numpy() for name, parameter in layer.named_parameters()}
    gradient = max(relative(found[name], value) for name, value in expected.items() if "bias_hh" not in name)
    return loss, relative(others, outputs), gradient


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def timings(pair: Pair, options: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of a training step, of one's own cell and of the layer, in turns: the medians."""
    layers = pair.build(options.inputs, options.hidden, "float32")
    x, targets = batch(options, "float32")
    seconds: tuple[list[float], list[float]] = ([], [])
    for layer in layers:
        train_step(layer, x, targets)  # compiles
    for _ in range(options.repeats):
        for layer, times in zip(layers, seconds, strict=True):
            began = time.perf_counter()
            train_step(layer, x, targets)
            times.append(time.perf_counter() - began)
    own, built_in = (1e3 * statistics.median(times) for times in seconds)
    return own, built_in


def batch(options: argparse.Namespace, dtype: str) -> tuple[ts.Tensor, ts.Tensor]:
    shape = (options.length, options.batch)
    return ts.random.randn((*shape, options.inputs), dtype), ts.random.randn((*shape, options.hidden), dtype) * 0.5


def parser() -> Parser:
    size = number(int, at_least=1)
    result = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--backend", metavar="NAME", help="numpy, numba, cupy or another that is installed [$TINYSEQ_BACKEND or numpy]")
    add("--length", type=size, default=64, metavar="T", help="steps of a sequence [%(default)s]")
    add("--batch", type=size, default=32, metavar="B", help="sequences [%(default)s]")
    add("--inputs", type=size, default=64, metavar="I", help="features of an input [%(default)s]")
    add("--hidden", type=size, default=128, metavar="H", help="hidden units [%(default)s]")
    add("--repeats", type=size, default=9, metavar="N", help="timed training steps [%(default)s]")
    add("--seed", type=number(int, at_least=0), default=0, metavar="N", help="of weights and inputs [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 after a sentence on standard error."""
    try:
        options = parser().parse_args(argv)
        if options.backend:
            ts.use_backend(options.backend)
        ts.manual_seed(options.seed)
        print(f"T {options.length}, B {options.batch}, I {options.inputs}, H {options.hidden} on {ts.current_backend().name}")
        print(f"{'cell':4} {'loss':>10} {'outputs':>9} {'gradients':>9} {'own ms':>8} {'built-in':>8} {'ratio':>6}")
        for name, pair in PAIRS.items():
            loss, outputs, gradients = differences(pair, options)
            own, built_in = timings(pair, options)
            print(f"{name:4} {loss:10.2f} {outputs:9.1e} {gradients:9.1e} {own:8.2f} {built_in:8.2f} {own / built_in:6.2f}")
    except (ts.TinyseqError, OSError) as error:
        print(f"cells: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
