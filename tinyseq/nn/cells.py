"""The recurrent cells: their equations, each written once, and the modules that hold their weights.

Letters: B rows of a batch, I input features, H hidden units. A cell maps an input (B, I) and a state to an output and
the next state: ``cell(x, state) -> (output, state)``. Without a batch axis, x is (I,) and the state (H,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

from tinyseq import random
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.nn.module import Module
from tinyseq.tape import no_grad
from tinyseq.tensor import Operand, Parameter, Tensor, as_tensor, float32, sigmoid, tanh

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

State = Any  # a tensor (H on the last axis), or a pair of them (LSTM)
Equations = Callable[[Tensor, State], tuple[Tensor, State]]
Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


# --- the equations ----------------------------------------------------------------------------------------------------

# Each takes the weights as PyTorch lays them out, does what is the same at every step, and returns the step.


def rnn(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, *, nonlinearity: str) -> Equations:
    """``h' = tanh(W_ih x + W_hh h + b)``."""
    w_ih, w_hh, bias = w_ih.T, w_hh.T, _total(b_ih, b_hh)
    activate = tanh if nonlinearity == "tanh" else Tensor.relu

    def cell(x: Tensor, h: State) -> tuple[Tensor, State]:
        h = activate(_plus(x @ w_ih + h @ w_hh, bias))
        return h, h

    return cell


def gru(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Equations:
    """The reset gate acts on the product W_hn h + b_hn."""
    w_ih, w_hh = w_ih.T, w_hh.T
    size = w_hh.shape[0]

    def cell(x: Tensor, h: State) -> tuple[Tensor, State]:
        a, b = _plus(x @ w_ih, b_ih), _plus(h @ w_hh, b_hh)
        gates = sigmoid(a[..., : 2 * size] + b[..., : 2 * size])
        r, z = gates[..., :size], gates[..., size:]
        n = tanh(a[..., 2 * size :] + r * b[..., 2 * size :])
        h = n + z * (h - n)
        return h, h

    return cell


def gru_reset_before(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Equations:
    """The reset gate acts on h, before the product."""
    w_ih, w_hh, bias = w_ih.T, w_hh.T, _total(b_ih, b_hh)
    size = w_hh.shape[0]
    w_gates, w_new = w_hh[:, : 2 * size], w_hh[:, 2 * size :]

    def cell(x: Tensor, h: State) -> tuple[Tensor, State]:
        a = _plus(x @ w_ih, bias)
        gates = sigmoid(a[..., : 2 * size] + h @ w_gates)
        r, z = gates[..., :size], gates[..., size:]
        n = tanh(a[..., 2 * size :] + (r * h) @ w_new)
        h = n + z * (h - n)
        return h, h

    return cell


def lstm(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Equations:
    """``c' = f c + i g;  h' = o tanh(c')``."""
    w_ih, w_hh, bias = w_ih.T, w_hh.T, _total(b_ih, b_hh)
    size = w_hh.shape[0]

    def cell(x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        gates = _plus(x @ w_ih + h @ w_hh, bias)
        i, f = sigmoid(gates[..., :size]), sigmoid(gates[..., size : 2 * size])
        g, o = tanh(gates[..., 2 * size : 3 * size]), sigmoid(gates[..., 3 * size :])
        c = f * c + i * g
        h = o * tanh(c)
        return h, (h, c)

    return cell


def _total(b_ih: Tensor | None, b_hh: Tensor | None) -> Tensor | None:
    return None if b_ih is None or b_hh is None else b_ih + b_hh


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


# --- the modules ------------------------------------------------------------------------------------------------------


class Gated(Module):
    """What a cell and a stack of layers share: weights under PyTorch's names, and the checks at the door.

    A subclass says how many gates its weights hold, whether its state is a pair, and gives its equations.
    """

    gates: ClassVar[int]
    pair: ClassVar[bool] = False

    def __init__(self, input_size: int, hidden_size: int, bias: bool) -> None:
        if input_size < 0 or hidden_size < 1:
            raise ShapeError(
                f"{type(self).__name__} needs input_size >= 0 and hidden_size >= 1, got {input_size} and {hidden_size}"
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias

    def equations(self, *weights: Any) -> Equations:
        """One step, as a function of an input and a state that are known to fit."""
        raise NotImplementedError

    def _add_weights(self, input_size: int, suffix: str, dtype: Any, forget_bias: float | None = None) -> None:
        """Weights from U(-1/sqrt(H), 1/sqrt(H)), in PyTorch's order."""
        rows, size = self.gates * self.hidden_size, self.hidden_size
        bound = 1 / math.sqrt(size)
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, size)}
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else {}
        for name, shape in shapes.items():
            setattr(self, name + suffix, Parameter(random.uniform(shape, -bound, bound, dtype)))
        if forget_bias is not None:
            if not self.bias:
                raise ValueError(f"forget_bias={forget_bias} is the start of a bias; leave it out with bias=False")
            with no_grad():
                getattr(self, "bias_ih" + suffix)[size : 2 * size] = forget_bias
                getattr(self, "bias_hh" + suffix)[size : 2 * size] = 0.0

    def _weights(self, suffix: str = "") -> Weights:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        return tuple(getattr(self, name + suffix, None) for name in names)  # type: ignore[return-value]

    def _check_input(self, x: Tensor, weight: Tensor) -> None:
        if not x.ndim or x.shape[-1] != self.input_size:
            raise ShapeError(
                f"{type(self).__name__} takes {self.input_size} features on the last axis, got an input of shape {x.shape}"
            )
        if x.dtype != weight.dtype:
            raise DTypeError(
                f"{type(self).__name__} has weights of dtype {weight.dtype}, got an input of dtype {x.dtype}; "
                "cast one of them with .astype"
            )

    def _start(self, state: State, shape: tuple[int, ...], weight: Tensor) -> State:
        """The state as given, checked; or zeros. No state *is* zeros, from here on."""
        if state is None:
            zeros = Tensor(weight.backend.full(shape, 0, weight.dtype))
            return (zeros, zeros) if self.pair else zeros
        if self.pair and not (isinstance(state, tuple | list) and len(state) == 2):
            raise ShapeError(f"{type(self).__name__} takes its state as a pair (h, c), got {type(state).__name__}")
        parts = [as_tensor(part) for part in (state if self.pair else (state,))]
        for name, part in zip("hc", parts, strict=False):
            if part.shape != shape or part.dtype != weight.dtype:
                error = DTypeError if part.shape == shape else ShapeError
                raise error(
                    f"{type(self).__name__} needs a state {name} of {weight.dtype} {shape} for this input, "
                    f"got {part.dtype} {part.shape}"
                )
        return tuple(parts) if self.pair else parts[0]


class _Cell(Gated):
    weight_ih: Parameter
    weight_hh: Parameter

    def initial_state(self, batch: int) -> State:
        """Zeros for ``batch`` rows: (B, H), or a pair of them for LSTM."""
        return self._start(None, (batch, self.hidden_size), self.weight_hh)

    def __call__(self, x: Operand, state: State = None) -> tuple[Tensor, State]:
        """The output and the next state.

        Args:
            x: (B, I), or (I,) without a batch.
            state: (B, H) or (H,), for LSTM a pair (h, c) of such; None is zeros.

        Raises:
            ShapeError, DTypeError: the input or the state does not fit; says what is needed.
        """
        x = as_tensor(x)
        self._check_input(x, self.weight_ih)
        start = self._start(state, (*x.shape[:-1], self.hidden_size), self.weight_ih)
        return self.equations(*self._weights())(x, start)


class RNNCell(_Cell):
    """A simple recurrent cell (Elman 1990): ``h' = tanh(W_ih x + b_ih + W_hh h + b_hh)``; the output is h'.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".
        dtype: of the weights.

    Raises:
        ValueError: another nonlinearity.

    >>> import tinyseq as ts
    >>> cell = ts.nn.RNNCell(3, 4)
    >>> output, h = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> output.shape
    (2, 4)
    """

    gates = 1

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh", dtype: Any = float32
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.nonlinearity = checked_nonlinearity(nonlinearity)
        self._add_weights(input_size, "", dtype)

    def equations(self, *weights: Any) -> Equations:
        """The step."""
        return rnn(*weights, nonlinearity=self.nonlinearity)


class GRUCell(_Cell):
    """A gated recurrent unit (Cho et al. 2014); the output is h'.

    With sigma the logistic function and * elementwise::

        r = sigma(W_ir x + b_ir + W_hr h + b_hr)
        z = sigma(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))         # reset_after=True: cuDNN's form, PyTorch's
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)         # reset_after=False: as published
        h' = (1 - z) * n + z * h

    The weights hold the gates in the order r, z, n.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        reset_after: whether the reset gate acts after the product or before it.
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> cell = ts.nn.GRUCell(3, 4)
    >>> output, h = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> output.shape, cell.weight_hh.shape
    ((2, 4), (12, 4))
    """

    gates = 3

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, reset_after: bool = True, dtype: Any = float32
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self.reset_after = reset_after
        self._add_weights(input_size, "", dtype)

    def equations(self, *weights: Any) -> Equations:
        """The step."""
        return (gru if self.reset_after else gru_reset_before)(*weights)


class LSTMCell(_Cell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate (Gers et al. 2000); the output is h'.

    With sigma the logistic function and * elementwise::

        i = sigma(W_ii x + b_ii + W_hi h + b_hi)
        f = sigma(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o = sigma(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    The weights hold the gates in the order i, f, g, o. The state is the pair (h, c).

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        forget_bias: where b_if + b_hf starts, for all units; 1 lets gradients through from the beginning (Jozefowicz et
            al. 2015). None leaves it random, as PyTorch does.
        dtype: of the weights.

    Raises:
        ValueError: ``forget_bias`` without ``bias``.

    >>> import tinyseq as ts
    >>> cell = ts.nn.LSTMCell(3, 4)
    >>> output, (h, c) = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> output.shape, c.shape
    ((2, 4), (2, 4))
    """

    gates = 4
    pair = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        forget_bias: float | None = None,
        dtype: Any = float32,
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self._add_weights(input_size, "", dtype, forget_bias)

    def equations(self, *weights: Any) -> Equations:
        """The step."""
        return lstm(*weights)


def checked_nonlinearity(name: str) -> str:
    """The name, if it is one of those there are."""
    if name not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity is 'tanh' or 'relu', got {name!r}")
    return name
