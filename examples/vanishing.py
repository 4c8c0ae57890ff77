"""How far back the gradient reaches: the norm of dL/dh_t over a hundred steps.

    python examples/vanishing.py
    python examples/vanishing.py --backend numba --length 200

The loss looks at the last state only, so all that an early step learns has to come back through every step between. The
first panel shows how much of it is left for an RNN, a GRU and an LSTM as they start; the second what other starting values of
the recurrent weights change; the others what clipping does when the gradient explodes instead: an RNN with relu learns
to name the first of many inputs, with and without it. The table gives the same numbers. The inputs are random: the
question is about the cells. It takes half a minute; Ctrl-C leaves a picture of what was learned until then.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shared import SIZE, Interrupted, run_example, short_parser

import tinyseq as ts
from tinyseq.console import Parser, Stop, number
from tinyseq.nn.functional import cross_entropy

SYMBOLS = 4  # that may come first
INPUTS = SYMBOLS + 1  # and a distractor
BATCH = 32
LR = 0.01
CLIP = 1.0


# --- the flow of the gradient -----------------------------------------------------------------------------------------


def gradient_flow(cell: Any, x: ts.Tensor, loss: Callable[[Any], ts.Tensor]) -> np.ndarray:
    """(T,): the norm of dL/dh_t, of all that h_t does to the loss, at once and later."""
    with ts.trace_gradients() as flow:
        _, last = ts.nn.Recurrent(cell)(x)
    loss(last).backward()
    return next(iter(flow.values()))  # an LSTM's state has a second part, c


def read_out(cell: Any) -> Callable[[Any], ts.Tensor]:
    """A loss that looks at the last h with random weights."""
    direction = ts.random.randn((BATCH, cell.hidden_size), "float64")

    def loss(state: Any) -> ts.Tensor:
        h = state[0] if isinstance(state, tuple) else state
        return (h * direction).sum() / BATCH

    return loss


def started_as_orthogonal(cell: ts.nn.RNNCell, gain: float) -> ts.nn.RNNCell:
    ts.nn.init.orthogonal_(cell.weight_hh, gain)
    return cell


def started_as_identity(cell: ts.nn.RNNCell) -> ts.nn.RNNCell:
    """Le, Jaitly and Hinton 2015: with relu, the state stays as it is until an input changes it."""
    ts.nn.init.eye_(cell.weight_hh)
    ts.nn.init.zeros_(cell.bias_ih)
    ts.nn.init.zeros_(cell.bias_hh)
    ts.nn.init.normal_(cell.weight_ih, std=0.1)
    return cell


def cells(hidden: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Each panel's curves: how to make the cell of each."""
    sizes = {"input_size": INPUTS, "hidden_size": hidden, "dtype": "float64"}
    rnn = lambda **more: ts.nn.RNNCell(**sizes, **more)
    return {
        "three cells": {
            "RNN": rnn,
            "GRU": lambda: ts.nn.GRUCell(**sizes),
            "LSTM": lambda: ts.nn.LSTMCell(**sizes),
            "LSTM, forget bias 3": lambda: ts.nn.LSTMCell(**sizes, forget_bias=3.0),
        },
        "starting values of an RNN": {
            "uniform, as PyTorch": rnn,
            "orthogonal": lambda: started_as_orthogonal(rnn(), 1.0),
            "orthogonal x 1.5": lambda: started_as_orthogonal(rnn(), 1.5),
            "orthogonal x 0.5": lambda: started_as_orthogonal(rnn(), 0.5),
            "identity, relu": lambda: started_as_identity(rnn(nonlinearity="relu")),
        },
    }


# --- the task ---------------------------------------------------------------------------------------------------------


def batch_of_symbols(length: int, rng: np.random.Generator) -> tuple[ts.Tensor, ts.Tensor]:
    """A symbol at the first step, noise ever after; the symbol is the target."""
    targets = rng.integers(0, SYMBOLS, BATCH)
    x = np.zeros((length, BATCH, INPUTS), np.float32)
    x[0, np.arange(BATCH), targets] = 1.0
    x[1:, :, SYMBOLS] = rng.standard_normal((length - 1, BATCH))
    return ts.tensor(x), ts.tensor(targets)


@dataclass
class Training:
    """What happened: the loss and the norm of the gradient, before clipping, at each update."""

    losses: list[float]
    norms: list[float]


def train(length: int, hidden: int, updates: int, clip: float | None, seed: int, stop: Stop | None = None) -> Training:
    """An RNN with relu, which bounds neither its state nor its gradient, trained by plain gradient descent."""
    ts.manual_seed(seed)
    rng = np.random.default_rng(seed)
    cell = started_as_identity(ts.nn.RNNCell(INPUTS, hidden, nonlinearity="relu"))
    layer, output = ts.nn.Recurrent(cell), ts.nn.Linear(hidden, SYMBOLS)
    parameters = [*layer.parameters(), *output.parameters()]
    optimizer = ts.optim.SGD(parameters, lr=LR)
    result = Training([], [])
    for _ in range(updates):
        if stop is not None and stop.signal:
            break
        x, targets = batch_of_symbols(length, rng)
        _, h = layer(x)
        loss = cross_entropy(output(h), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = ts.optim.clip_grad_norm(parameters, float("inf") if clip is None else clip)
        optimizer.step()
        result.losses.append(loss.item())
        result.norms.append(norm.item())
    return result


# --- results ----------------------------------------------------------------------------------------------------------


def plot(flows: dict[str, dict[str, np.ndarray]], runs: dict[str, Training], path: Path) -> None:
    """Four panels, the norms on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    first, second, third, fourth = figure.subplots(2, 2).flat
    for axes, (title, curves) in zip((first, second), flows.items(), strict=True):
        for label, norms in curves.items():
            axes.semilogy(np.arange(1, len(norms) + 1), np.maximum(norms / norms[-1], 1e-30), label=label)
        axes.set(xlabel="step t", ylabel="|dL/dh_t| / |dL/dh_T|", title=title)
    for label, run in runs.items():
        updates = np.arange(1, len(run.norms) + 1)
        third.semilogy(updates, run.norms, label=label, alpha=0.8)
        fourth.plot(updates, run.losses, label=label, alpha=0.8)
    third.axhline(CLIP, color="gray", linewidth=0.8, linestyle=":")
    third.set(xlabel="update", ylabel="norm of the gradient, before clipping", title="an RNN with relu learns")
    fourth.axhline(math.log(SYMBOLS), color="gray", linewidth=0.8, linestyle=":")
    fourth.set(xlabel="update", ylabel="loss (guessing: the dotted line)", title="the same, its loss")
    fourth.set_ylim(0, 3 * math.log(SYMBOLS))
    for axes in (first, second, third, fourth):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def parser() -> Parser:
    result = short_parser("vanishing", __doc__)
    add = result.add_argument
    add("--length", type=number(int, at_least=2), default=100, metavar="T", help="steps of a sequence [%(default)s]")
    add("--hidden", type=SIZE, default=64, metavar="H", help="hidden units [%(default)s]")
    add("--steps", type=SIZE, default=300, metavar="N", help="updates with and without clipping [%(default)s]")
    return result


def run(options: argparse.Namespace) -> None:
    """The flows, the trainings, the table and the picture."""
    rng = np.random.default_rng(options.seed)
    x = batch_of_symbols(options.length, rng)[0].astype("float64")
    flows: dict[str, dict[str, np.ndarray]] = {}
    print(f"{'|dL/dh_1| / |dL/dh_T|, T = ' + str(options.length):46} {'ratio':>9} {'a step':>7}")
    for title, makers in cells(options.hidden).items():
        flows[title] = {}
        for label, make in makers.items():
            ts.manual_seed(options.seed)
            cell = make()
            norms = flows[title][label] = gradient_flow(cell, x, read_out(cell))
            ratio = norms[0] / norms[-1]
            print(f"{title + ': ' + label:46} {ratio:9.1e} {ratio ** (1 / (len(norms) - 1)):7.3f}")
    print(f"\n{'an RNN whose gradient explodes':46} {'largest norm':>12} {'median':>9} {'last loss':>9}")
    runs = {}
    with Stop() as stop:
        for label, clip in {"clipped to a norm of 1": CLIP, "as it is": None}.items():
            done = runs[label] = train(options.length, options.hidden, options.steps, clip, options.seed, stop)
            if done.losses:
                last = float(np.mean(done.losses[-20:]))
                print(f"{label:46} {max(done.norms):12.1e} {np.median(done.norms):9.1e} {last:9.3f}")
    print(f"{'guessing':69} {math.log(SYMBOLS):9.3f}")
    plot(flows, runs, options.out / "vanishing.png")
    if stop.signal:
        raise Interrupted(stop.signal, f"stopped; {options.out / 'vanishing.png'} shows what was learned until then")
    print(f"\nsee {options.out / 'vanishing.png'}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("vanishing", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
