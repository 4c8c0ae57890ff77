"""The recurrent cells of a course, written from their equations, beside the layers that come with the library.

    python examples/cells.py
    python examples/cells.py --backend numba --hidden 256 --length 128

Each cell is a dozen lines that look like its equations. The weights of the one are copied into the other under the right
mapping; then both get the same inputs, and the table says how far apart their outputs and gradients are, in float64, and
how long a training step (forward, and back through time) takes each, in float32.

Then both learn from Shakespeare's plays what character comes next, each from the other's starting weights, and are compared
again: update by update, and in bits a character on plays that are held out. The baselines foretell a character from how
frequent it is, or is after the one before. The picture shows how they learned and the times. It is a matter of a minute;
Ctrl-C leaves a picture of what was learned until then.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, Interrupted, run_example, short_parser

import tinyseq as ts
from tinyseq.console import Parser, Stop, number
from tinyseq.data import CharVocabulary, TextStream, shakespeare, split_plays
from tinyseq.nn.functional import cross_entropy
from tinyseq.tree import tree_map

CLIP = 1.0

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

    def __call__(self, x: ts.Tensor, state: Any = None) -> tuple[ts.Tensor, Any]:
        hidden, state = self.layer(x, state)
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


# --- learning ---------------------------------------------------------------------------------------------------------


class Plays(NamedTuple):
    """Characters to learn from and held-out ones, as numbers (N,), and how many different ones there are."""

    training: np.ndarray
    held_out: np.ndarray
    characters: int


def load_plays(most: int) -> Plays:
    """Shakespeare's plays, of the held-out ones so many characters."""
    training, held_out = ("\n".join(part.values()) for part in split_plays(shakespeare()))
    vocabulary = CharVocabulary(training + held_out)
    return Plays(vocabulary.encode(training), vocabulary.encode(held_out[:most]), len(vocabulary))


def bits_of_counts(plays: Plays) -> tuple[float, float]:
    """Bits a held-out character by how frequent it is, and by how frequent after the one before; one added to each count."""
    pairs = np.ones((plays.characters, plays.characters))
    np.add.at(pairs, (plays.training[:-1], plays.training[1:]), 1)
    alone, before, after = pairs.sum(0) / pairs.sum(), plays.held_out[:-1], plays.held_out[1:]
    return float(-np.log2(alone[after]).mean()), float(-np.log2(pairs[before, after] / pairs.sum(1)[before]).mean())


class Reader(ts.nn.Module):
    """A layer, which is one's own cell or built in, and a linear map of its outputs to characters."""

    def __init__(self, layer: Any, characters: int, output: ts.nn.Linear) -> None:
        self.layer, self.output = layer, output
        self.characters = characters

    def __call__(self, ids: np.ndarray, targets: np.ndarray, state: Any = None) -> tuple[ts.Tensor, Any]:
        """(T, B) characters and those after them, to the mean loss in nats and the state."""
        seen = np.eye(self.characters, dtype=self.output.weight.dtype)[ids]
        outputs, state = self.layer(ts.tensor(seen), state)
        logits = self.output(outputs)
        return cross_entropy(logits.reshape(targets.size, -1), ts.tensor(targets.reshape(-1))), state


class Learned(NamedTuple):
    """The loss (N,) of each update in bits, and the bits a held-out character after them."""

    losses: np.ndarray
    held_out: float


def learn(reader: Reader, plays: Plays, options: argparse.Namespace, stop: Stop) -> Learned:
    """Adam on chunks of T steps of B places of the plays; the state is carried on, the gradient is not.

    Of a layer's two biases, which are added, one stays at zero: both would learn twice as fast as the course's one.
    """
    stream = TextStream(plays.training, options.batch, options.length)
    learned = [parameter for name, parameter in reader.named_parameters() if "bias_hh" not in name]
    optimizer = ts.optim.Adam(learned, lr=options.lr)
    state, losses = None, []
    for _ in range(options.updates):
        if stop.signal:
            break
        chunk = next(stream)
        loss, state = reader(chunk.inputs, chunk.targets, None if chunk.starts else state)
        optimizer.zero_grad()
        loss.backward()
        ts.optim.clip_grad_norm(learned, CLIP)
        optimizer.step()
        state = tree_map(ts.Tensor.detach, state)
        losses.append(loss.item() / math.log(2))
    with ts.no_grad():
        loss, _ = reader(plays.held_out[:-1, None], plays.held_out[1:, None])
    return Learned(np.array(losses), loss.item() / math.log(2))


def twins(pair: Pair, plays: Plays, options: argparse.Namespace, stop: Stop) -> tuple[Learned, Learned]:
    """What one's own cell learns, and what the layer does that starts with the same weights, in float64."""
    layers = pair.build(plays.characters, options.hidden, "float64")
    outputs = [ts.nn.Linear(options.hidden, plays.characters, dtype="float64") for _ in layers]
    outputs[1].load_state_dict(outputs[0].state_dict())
    own, built_in = (
        learn(Reader(layer, plays.characters, output), plays, options, stop)
        for layer, output in zip(layers, outputs, strict=True)
    )
    return own, built_in


def plot(
    learned: dict[str, tuple[Learned, Learned]], times: dict[str, tuple[float, float]], counted: Sequence[float], path: Path
) -> None:
    """How the cells learned, each beside its twin, and how long a training step takes both."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    first, second = figure.subplots(1, 2, width_ratios=(2, 1))
    for i, (name, (own, built_in)) in enumerate(learned.items()):
        updates = np.arange(1, len(built_in.losses) + 1)
        first.plot(updates, built_in.losses, color=f"C{i}", linewidth=1, label=f"{name}, built in")
        some = slice(6 * i, None, 20)
        own_updates = np.arange(1, len(own.losses) + 1)
        first.plot(own_updates[some], own.losses[some], "o", color=f"C{i}", markersize=5, mfc="none", label=f"{name}, own cell")
    across = first.get_yaxis_transform()  # the width is 1
    labels = ("as frequent as it is", 0.99, "right"), ("as frequent as after the one before", 0.01, "left")
    for bits, (label, place, side) in zip(counted, labels, strict=True):  # where no curve is
        first.axhline(bits, color="gray", linewidth=0.8, linestyle=":")
        first.text(place, bits, label, fontsize=8, color="gray", va="bottom", ha=side, transform=across)
    first.set(xlabel="update", ylabel="bits a character", title="learning Shakespeare's plays")
    first.legend(ncols=len(learned), fontsize=8)
    places = np.arange(len(times))
    for shift, label in ((-0.2, "own cell"), (0.2, "built in")):
        bars = second.bar(places + shift, [pair[shift > 0] for pair in times.values()], 0.4, label=label)
        second.bar_label(bars, fmt="%.1f", fontsize=8)
    second.set_xticks(places, list(times))
    second.set(ylabel="ms", title="a training step, float32")
    second.legend()
    for axes in (first, second):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)


def parser() -> Parser:
    result = short_parser("cells", __doc__)
    add = result.add_argument
    add("--length", type=SIZE, default=64, metavar="T", help="steps of a sequence [%(default)s]")
    add("--batch", type=SIZE, default=32, metavar="B", help="sequences [%(default)s]")
    add("--inputs", type=SIZE, default=64, metavar="I", help="features of an input, in the table [%(default)s]")
    add("--hidden", type=SIZE, default=128, metavar="H", help="hidden units [%(default)s]")
    add("--repeats", type=SIZE, default=9, metavar="N", help="timed training steps [%(default)s]")
    add("--updates", type=SIZE, default=200, metavar="N", help="of each network that learns the plays [%(default)s]")
    add("--lr", type=number(float, at_least=0), default=3e-3, metavar="X", help="Adam's learning rate [%(default)s]")
    add("--held-out", type=number(int, at_least=2), default=20000, metavar="N", help="characters [%(default)s]")
    return result


def run(options: argparse.Namespace) -> None:
    """The table, the trainings and the picture."""
    plays = load_plays(options.held_out)
    print(f"T {options.length}, B {options.batch}, I {options.inputs}, H {options.hidden} on {ts.current_backend().name}")
    print(f"{'cell':4} {'loss':>10} {'outputs':>9} {'gradients':>9} {'own ms':>8} {'built-in':>8} {'ratio':>6}")
    times = {}
    for name, pair in PAIRS.items():
        loss, outputs, gradients = differences(pair, options)
        own, built_in = times[name] = timings(pair, options)
        print(f"{name:4} {loss:10.2f} {outputs:9.1e} {gradients:9.1e} {own:8.2f} {built_in:8.2f} {own / built_in:6.2f}")
    counted = bits_of_counts(plays)
    print(f"\nbits a held-out character after {options.updates} updates; by its frequency {counted[0]:.3f}, ", end="")
    print(f"after the one before {counted[1]:.3f}")
    learned = {}
    with Stop() as stop:
        for name, pair in PAIRS.items():
            if stop.signal:
                break
            ours, theirs = learned[name] = twins(pair, plays, options, stop)
            if not stop.signal:
                apart = np.abs(ours.losses - theirs.losses).max()
                print(f"{name:4} own {ours.held_out:.3f}, built in {theirs.held_out:.3f}; losses at most {apart:.1e} apart")
    plot(learned, times, counted, options.out / "cells.png")
    if stop.signal:
        raise Interrupted(stop.signal, f"stopped; {options.out / 'cells.png'} shows what was learned until then")
    print(f"see {options.out / 'cells.png'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("cells", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
