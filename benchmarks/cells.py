"""The recurrent cells that the benchmarks run, each written once, and the weights and inputs that all libraries get.

A cell's equations name five functions (`Names`) that every library has, so what runs in tinyseq as a user's cell, in a
PyTorch loop and in JAX's `lax.scan` are the same lines. They come in two parts, which a plain cell calls one after the
other: `inputs`, what depends on the input alone, and `step`, all else. Products that share an operand are written as one.

Letters: T steps, B rows of a batch, I input features, H hidden units.
"""

# ruff: noqa: E741  (I is the usual letter)

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Function = Callable[..., Any]
Params = Mapping[str, Any]


class Size(NamedTuple):
    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        return ",".join(map(str, self))


SIZES = [
    Size(100, 1, 128, 128),
    Size(1000, 4, 32, 32),
    Size(512, 8, 64, 64),
    Size(37, 5, 19, 83),
    Size(200, 1, 256, 256),
    Size(28, 128, 28, 128),
    Size(64, 32, 128, 128),
    Size(16, 256, 64, 64),
    Size(64, 32, 128, 256),
    Size(35, 20, 650, 650),
    Size(100, 32, 256, 256),
    Size(50, 64, 40, 320),
    Size(100, 64, 512, 512),
]


@dataclasses.dataclass(frozen=True)
class Names:
    """The functions that are not operators, as one library spells them."""

    tanh: Function
    sigmoid: Function
    linear: Function  # (x, w), (x, w, b): x @ w.T + b
    split: Function  # (x, n): n equal pieces along the last axis
    layer_norm: Function  # (x, gain, shift), over the last axis, eps 1e-5


@dataclasses.dataclass(frozen=True)
class Cell:
    """`inputs(F, p, x) -> a` and `step(F, p, a, state) -> (output, state)`; the state is a tuple of tensors.

    `weights` and `state` give the shapes of the parameters, and the widths of the state's parts, for I and H. `builtin` is
    the layer that is this cell, in tinyseq and in PyTorch alike where they have one.
    """

    name: str
    paper: str
    inputs: Function
    step: Function
    weights: Callable[[int, int], dict[str, tuple[int, ...]]]
    state: Callable[[int], tuple[int, ...]] = lambda H: (H,)
    builtin: str | None = None  # in tinyseq
    torch_builtin: str | None = None

    def flops(self, size: Size, mode: str) -> float:
        """The operations of the matrix products; backward, each one gives two."""
        multiplied = sum(math.prod(shape) for shape in self.weights(size.I, size.H).values() if len(shape) == 2)
        return 2.0 * size.T * size.B * multiplied * (1 if mode == "forward" else 3)


@dataclasses.dataclass(frozen=True)
class Data:
    """What one case is computed from; `dy` is the cotangent of the outputs."""

    weights: dict[str, np.ndarray]
    x: np.ndarray
    state: list[np.ndarray]
    dy: np.ndarray

    @property
    def leaves(self) -> dict[str, np.ndarray]:
        """Everything that gets a gradient."""
        return {**self.weights, "x": self.x, **{f"state{k}": part for k, part in enumerate(self.state)}}


def data(cell: Cell, size: Size) -> Data:
    """Return the same float32 numbers in every process."""
    random = np.random.default_rng(0)
    bound = 1 / math.sqrt(size.H)

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = random.uniform(-bound, bound, shape)
        # A gain of 1 makes a layer-norm LSTM chaotic: float32 differences grow with T. Small, as Cooijmans et al. 2017 advise.
        return (values + 0.2 if name.startswith("gain") else values).astype(np.float32)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    weights = {name: weight(name, shape) for name, shape in cell.weights(size.I, size.H).items()}
    state = [0.5 * normal(size.B, width) for width in cell.state(size.H)]
    return Data(weights, normal(size.T, size.B, size.I), state, normal(size.T, size.B, cell.state(size.H)[0]))


def gated(gates: int) -> Callable[[int, int], dict[str, tuple[int, ...]]]:
    """PyTorch's weights."""
    return lambda I, H: {
        "weight_ih": (gates * H, I),
        "weight_hh": (gates * H, H),
        "bias_ih": (gates * H,),
        "bias_hh": (gates * H,),
    }


def linear_inputs(F: Names, p: Params, x: Any) -> Any:
    return F.linear(x, p["weight_ih"], p["bias_ih"])


# --- the equations ----------------------------------------------------------------------------------------------------


def rnn_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    (h,) = state
    h = F.tanh(a + F.linear(h, p["weight_hh"], p["bias_hh"]))
    return h, (h,)


def gru_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    (h,) = state
    a_r, a_z, a_n = F.split(a, 3)
    b_r, b_z, b_n = F.split(F.linear(h, p["weight_hh"], p["bias_hh"]), 3)
    r, z = F.sigmoid(a_r + b_r), F.sigmoid(a_z + b_z)
    n = F.tanh(a_n + r * b_n)
    h = n + z * (h - n)
    return h, (h,)


def gru_before_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    (h,) = state
    a_r, a_z, a_n = F.split(a, 3)
    b_r, b_z = F.split(F.linear(h, p["weight_hg"]), 2)
    r, z = F.sigmoid(a_r + b_r), F.sigmoid(a_z + b_z)
    n = F.tanh(a_n + F.linear(r * h, p["weight_hn"]))
    h = n + z * (h - n)
    return h, (h,)


def lstm_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    h, c = state
    i, f, g, o = F.split(a + F.linear(h, p["weight_hh"], p["bias_hh"]), 4)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    h = F.sigmoid(o) * F.tanh(c)
    return h, (h, c)


def layer_norm_inputs(F: Names, p: Params, x: Any) -> Any:
    return F.layer_norm(F.linear(x, p["weight_ih"]), p["gain_ih"], p["shift_ih"])


def layer_norm_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    h, c = state
    i, f, g, o = F.split(a + F.layer_norm(F.linear(h, p["weight_hh"]), p["gain_hh"], p["shift_hh"]), 4)
    c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
    h = F.sigmoid(o) * F.tanh(F.layer_norm(c, p["gain_c"], p["shift_c"]))
    return h, (h, c)


def peephole_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    h, c = state
    i, f, g, o = F.split(a + F.linear(h, p["weight_hh"], p["bias_hh"]), 4)
    i, f = F.sigmoid(i + p["peep_i"] * c), F.sigmoid(f + p["peep_f"] * c)
    c = f * c + i * F.tanh(g)
    h = F.sigmoid(o + p["peep_o"] * c) * F.tanh(c)
    return h, (h, c)


def minimal_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    (h,) = state
    a_f, a_n = F.split(a, 2)
    f = F.sigmoid(a_f + F.linear(h, p["weight_hf"]))
    n = F.tanh(a_n + F.linear(f * h, p["weight_hn"]))
    h = h + f * (n - h)
    return h, (h,)


def projected_step(F: Names, p: Params, a: Any, state: Any) -> Any:
    h, (_, c) = lstm_step(F, p, a, state)
    r = F.linear(h, p["weight_hr"])
    return r, (r, c)


CELLS = {
    cell.name: cell
    for cell in [
        Cell("rnn", "Elman 1990", linear_inputs, rnn_step, gated(1), builtin="RNN", torch_builtin="RNN"),
        Cell("gru", "Cho et al. 2014, the reset gate after the product", linear_inputs, gru_step, gated(3),
             builtin="GRU", torch_builtin="GRU"),
        Cell("gru-before", "Cho et al. 2014, the reset gate before the product", linear_inputs, gru_before_step,
             lambda I, H: {"weight_ih": (3 * H, I), "bias_ih": (3 * H,), "weight_hg": (2 * H, H), "weight_hn": (H, H)}),
        Cell("lstm", "Hochreiter and Schmidhuber 1997, Gers et al. 2000", linear_inputs, lstm_step, gated(4),
             lambda H: (H, H), builtin="LSTM", torch_builtin="LSTM"),
        Cell("lstm-layer-norm", "Ba et al. 2016", layer_norm_inputs, layer_norm_step,
             lambda I, H: {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "gain_ih": (4 * H,), "shift_ih": (4 * H,),
                           "gain_hh": (4 * H,), "shift_hh": (4 * H,), "gain_c": (H,), "shift_c": (H,)},
             lambda H: (H, H)),
        Cell("lstm-peephole", "Gers et al. 2002", linear_inputs, peephole_step,
             lambda I, H: {**gated(4)(I, H), "peep_i": (H,), "peep_f": (H,), "peep_o": (H,)}, lambda H: (H, H)),
        Cell("minimal-gated", "Zhou et al. 2016", linear_inputs, minimal_step,
             lambda I, H: {"weight_ih": (2 * H, I), "bias_ih": (2 * H,), "weight_hf": (H, H), "weight_hn": (H, H)}),
        Cell("lstm-projected", "Sak et al. 2014, H / 2 units fed back", linear_inputs, projected_step,
             lambda I, H: {**gated(4)(I, H), "weight_hh": (4 * H, H // 2), "weight_hr": (H // 2, H)},
             lambda H: (H // 2, H), torch_builtin="LSTM"),
    ]
}  # fmt: skip
