"""Starting values: each function fills a tensor in place and returns it.

``fan_in`` and ``fan_out`` of a weight (O, I) are I and O; further axes multiply both. The weights of a gated layer hold
several matrices, one a gate: :func:`per_gate_` fills each by itself. Those that take a whole recurrent layer return it.

>>> import tinyseq as ts
>>> layer = ts.nn.Linear(3, 2)
>>> ts.nn.init.constant_(layer.bias, 0.5).tolist()
[0.5, 0.5]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from tinyseq import random
from tinyseq.backend import use_backend
from tinyseq.creation import full_like
from tinyseq.errors import DTypeError, GraphError, ShapeError
from tinyseq.functions import concatenate
from tinyseq.nn.module import Module
from tinyseq.tape import no_grad
from tinyseq.tensor import Tensor

L = TypeVar("L", bound=Module)

__all__ = [
    "calculate_gain",
    "chrono_",
    "constant_",
    "eye_",
    "forget_bias_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "orthogonal_",
    "per_gate_",
    "recurrent_",
    "sparse_",
    "trunc_normal_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4}


def uniform_(t: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """U(low, high)."""
    with use_backend(t.backend):
        return _fill(t, random.uniform(t.shape, low, high, t.dtype))


def normal_(t: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """N(mean, std^2)."""
    with use_backend(t.backend):
        return _fill(t, random.normal(t.shape, mean, std, t.dtype))


def constant_(t: Tensor, value: float) -> Tensor:
    """One value everywhere."""
    return _fill(t, full_like(t, value))


def zeros_(t: Tensor) -> Tensor:
    """Zeros."""
    return constant_(t, 0)


def ones_(t: Tensor) -> Tensor:
    """Ones."""
    return constant_(t, 1)


def xavier_uniform_(t: Tensor, gain: float = 1.0) -> Tensor:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6 / sum(_fans(t)))
    return uniform_(t, -bound, bound)


def xavier_normal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """N(0, s^2) with s = gain sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    return normal_(t, 0.0, gain * math.sqrt(2 / sum(_fans(t))))


def calculate_gain(nonlinearity: str, a: float = 0.01) -> float:
    """What a weight's scale is multiplied with before a nonlinearity, as PyTorch has it; ``a`` is leaky_relu's slope.

    Raises:
        ValueError: another nonlinearity than linear, sigmoid, tanh, relu, leaky_relu, selu.

    >>> calculate_gain("tanh")
    1.6666666666666667
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + a * a))
    if nonlinearity not in GAINS:
        raise ValueError(f"there is no gain for {nonlinearity!r}; choose one of {', '.join(GAINS)}, leaky_relu")
    return GAINS[nonlinearity]


def kaiming_uniform_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """U(-b, b) with b = gain sqrt(3 / fan), PyTorch's arguments; the default is for relu (He et al. 2015)."""
    bound = math.sqrt(3) * _kaiming_std(t, a, mode, nonlinearity)
    return uniform_(t, -bound, bound)


def kaiming_normal_(t: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu") -> Tensor:
    """N(0, s^2) with s = gain / sqrt(fan), PyTorch's arguments; the default is for relu (He et al. 2015)."""
    return normal_(t, 0.0, _kaiming_std(t, a, mode, nonlinearity))


def _kaiming_std(t: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode is 'fan_in' or 'fan_out', got {mode!r}")
    return calculate_gain(nonlinearity, a) / math.sqrt(_fans(t)[mode == "fan_out"])


def trunc_normal_(t: Tensor, mean: float = 0.0, std: float = 1.0, low: float = -2.0, high: float = 2.0) -> Tensor:
    """N(mean, std^2) between ``low`` and ``high``: numbers outside are drawn again.

    Raises:
        ValueError: bounds so far out that hardly a number would lie between them.
    """
    inside = (math.erf((high - mean) / (std * math.sqrt(2))) - math.erf((low - mean) / (std * math.sqrt(2)))) / 2
    if inside < 1e-3:
        raise ValueError(f"hardly a number of N({mean}, {std}^2) lies between {low} and {high}; choose other bounds")
    with use_backend(t.backend):
        values = random.normal(t.shape, mean, std, t.dtype).numpy().copy()
        while (outside := (values < low) | (values > high)).any():
            values[outside] = random.normal((int(outside.sum()),), mean, std, t.dtype).numpy()
    return _fill(t, Tensor(t.backend.asarray(values)))


def eye_(t: Tensor) -> Tensor:
    """The identity matrix, the start of a relu recurrence that remembers (Le et al. 2015); further rows or columns are 0."""
    if t.ndim != 2:
        raise ShapeError(f"eye_ fills a matrix, got shape {t.shape}")
    return _fill(t, Tensor(t.backend.asarray(np.eye(*t.shape, dtype=t.dtype))))


def sparse_(t: Tensor, sparsity: float, std: float = 0.01) -> Tensor:
    """N(0, std^2), but that share of each column's entries, chosen at random, is zero (Martens 2010).

    Raises:
        ShapeError: ``t`` is no matrix.
        ValueError: ``sparsity`` is not in [0, 1].
    """
    if t.ndim != 2 or not 0 <= sparsity <= 1:
        error = ShapeError if t.ndim != 2 else ValueError
        raise error(f"sparse_ fills a matrix and takes a share from 0 to 1, got shape {t.shape} and {sparsity}")
    count = math.ceil(sparsity * t.shape[0])
    with use_backend(t.backend):
        order = random.rand(t.shape, "float64").numpy().argsort(0).argsort(0)  # in each column a permutation
        values = random.normal(t.shape, 0.0, std, t.dtype).numpy()
    return _fill(t, Tensor(t.backend.asarray(np.where(order < count, t.dtype.type(0), values))))


def orthogonal_(t: Tensor, gain: float = 1.0) -> Tensor:
    """A matrix with orthonormal rows or columns, whichever are fewer, times ``gain`` (Saxe et al. 2013).

    Axes after the first count as one.
    """
    _fans(t)  # at least two axes
    rows, columns = t.shape[0], math.prod(t.shape[1:])
    with use_backend(t.backend):
        normal = random.randn((max(rows, columns), min(rows, columns)), "float64").numpy()
    q, r = np.linalg.qr(normal)
    q = q * np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the result uniform over all such matrices
    q = q if rows >= columns else q.T
    return _fill(t, Tensor(t.backend.asarray((gain * q).reshape(t.shape).astype(t.dtype))))


# --- recurrent layers -------------------------------------------------------------------------------------------------


def per_gate_(t: Tensor, gates: int, fill: Callable[..., Tensor], *args: Any, **settings: Any) -> Tensor:
    """Fill each of the ``gates`` blocks of rows by itself: of weight_hh (4 H, H), four orthogonal matrices (H, H).

    Raises:
        ShapeError: the rows are not a multiple of ``gates``.

    >>> import tinyseq as ts
    >>> lstm = ts.nn.LSTMCell(2, 3)
    >>> forget = per_gate_(lstm.weight_hh, 4, orthogonal_)[3:6]
    >>> bool((forget @ forget.T - ts.eye(3)).abs().max() < 1e-6)
    True
    """
    if not t.ndim or gates < 1 or t.shape[0] % gates:
        raise ShapeError(f"per_gate_ cuts the rows into {gates} equal blocks, which shape {t.shape} does not allow")
    rows = t.shape[0] // gates
    with no_grad():
        parts = [fill(t.detach()[i * rows : (i + 1) * rows, ...].copy(), *args, **settings) for i in range(gates)]
        return _fill(t, concatenate(parts))


def recurrent_(layer: L) -> L:
    """The start that Keras gives a recurrent layer or cell: Xavier W_ih and orthogonal W_hh, gate by gate; biases zero.

    A gate that keeps the state starts open, with a bias of 1 (:func:`forget_bias_`). Other weights stay as they are.

    Raises:
        DTypeError: the layer is not RNN, GRU or LSTM, or a cell of these.
    """
    gated: Any = layer
    for suffix, weight in _weights(gated, "weight_ih"):
        gates = weight.shape[0] // gated.hidden_size
        per_gate_(weight, gates, xavier_uniform_)
        per_gate_(getattr(gated, "weight_hh" + suffix), gates, orthogonal_)
    for both in _biases(gated):
        for bias in both:
            zeros_(bias)
    if gated.bias and _kept(gated) is not None:
        forget_bias_(layer)
    return layer


def forget_bias_(layer: L, value: float = 1.0) -> L:
    """Open the gates that keep the state: their bias b_ih + b_hh becomes ``value`` (Gers et al. 2000; Jozefowicz 2015).

    These are LSTM's forget gates and GRU's z; where LSTM's gates are coupled, f = 1 - i, the input gates get -``value``.

    Raises:
        DTypeError: the layer is not GRU or LSTM, or a cell of these.
        ValueError: it has no biases.

    >>> import tinyseq as ts
    >>> cell = forget_bias_(ts.nn.LSTMCell(2, 1), 3.0)
    >>> (cell.bias_ih + cell.bias_hh)[1].item()
    3.0
    """
    _open(layer, lambda size: np.full(size, value), close_input=False)
    return layer


def chrono_(layer: L, longest: int) -> L:
    """Let the units of a gated layer forget after times spread from 1 to ``longest`` steps (Tallec and Ollivier 2018).

    With u from U(1, longest - 1) for each unit: b_f = log u and b_i = -b_f for LSTM, and b_z = log u for GRU, whose z
    is what it keeps. Other biases stay as they are.

    Args:
        layer: GRU or LSTM, of any depth and direction, or a cell of these.
        longest: the longest dependency that is expected, in steps; more than 2.

    Raises:
        DTypeError, ValueError: as :func:`forget_bias_`.

    >>> import tinyseq as ts
    >>> cell = chrono_(ts.nn.LSTMCell(2, 5), longest=100)
    >>> b = (cell.bias_ih + cell.bias_hh).tolist()
    >>> b[:5] == [-f for f in b[5:10]], 0 <= min(b[5:10]) and max(b[5:10]) <= 4.6
    (True, True)
    """
    if longest <= 2:
        raise ValueError(f"chrono_ needs a longest dependency of more than 2 steps, got {longest}")

    def draw(size: int) -> Any:
        return np.log(random.uniform((size,), 1.0, longest - 1.0, "float64").numpy())

    _open(layer, draw, close_input=True)
    return layer


def _open(layer: Any, draw: Callable[[int], Any], close_input: bool) -> None:
    kept = _kept(layer)
    if kept is None:
        raise DTypeError(f"this starting value is for GRU and LSTM and their cells, not for {type(layer).__name__}")
    if not layer.bias:
        raise ValueError(f"this {type(layer).__name__} has no biases to set; make it with bias=True")
    gate, sign = kept
    size = layer.hidden_size
    for b_ih, b_hh in _biases(layer):
        with use_backend(b_ih.backend), no_grad():
            values = draw(size)
            b_ih[gate * size : (gate + 1) * size] = Tensor(b_ih.backend.asarray((sign * values).astype(b_ih.dtype)))
            b_hh[gate * size : (gate + 1) * size] = 0.0
            if close_input and layer.pair and gate:
                b_ih[:size] = Tensor(b_ih.backend.asarray((-values).astype(b_ih.dtype)))
                b_hh[:size] = 0.0


def _kept(layer: Any) -> tuple[int, float] | None:
    """Which gate keeps the state, and the sign of its bias: f of i, f, g, o; z of r, z, n; i, closed, where f = 1 - i."""
    for _, weight in _weights(layer, "weight_ih"):
        gates = weight.shape[0] // layer.hidden_size
        return None if gates == 1 else (0, -1.0) if layer.pair and gates == 3 else (1, 1.0)
    return None


def _weights(layer: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of that name, with what follows it, such as ``_l0_reverse``."""
    if not hasattr(layer, "hidden_size") or not hasattr(layer, "pair"):
        raise DTypeError(f"this starting value is for RNN, GRU and LSTM and their cells, not for {type(layer).__name__}")
    for full, value in list(vars(layer).items()):
        if full.startswith(name) and isinstance(value, Tensor):
            yield full.removeprefix(name), value


def _biases(layer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    return ((b_ih, getattr(layer, "bias_hh" + suffix)) for suffix, b_ih in _weights(layer, "bias_ih"))


def _fans(t: Tensor) -> tuple[int, int]:
    """fan_in and fan_out."""
    if t.ndim < 2:
        raise ShapeError(f"this starting value needs a weight with at least two axes, got shape {t.shape}")
    field = math.prod(t.shape[2:])
    return t.shape[1] * field, t.shape[0] * field


def _fill(t: Tensor, values: Tensor) -> Tensor:
    if not t.is_leaf:
        raise GraphError("the result of a recorded operation cannot be filled in place; give a parameter")
    t.data = values.data
    return t
