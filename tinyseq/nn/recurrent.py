"""Layers that run a cell over time: any cell, and the stacks of PyTorch's arguments, names and shapes.

Letters: T steps, B rows of a batch, I input features, H hidden units, L layers, D directions (1 or 2).
"""

from __future__ import annotations

import warnings
from typing import Any

from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import concatenate, dropout, stack
from tinyseq.nn.cells import Equations, Gated, State, checked_nonlinearity, gru, gru_reset_before, lstm, rnn
from tinyseq.nn.module import Module
from tinyseq.scan import Step, scan
from tinyseq.tensor import Operand, Tensor, as_tensor, float32
from tinyseq.tree import flatten, tree_map

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]


class Recurrent(Module):
    """Any cell, run over a sequence.

    A cell is a module, or any object, with

    * ``cell(x, state) -> (output, next state)`` for one step, and
    * ``cell.initial_state(batch) -> state`` for ``batch`` rows,

    where input, output and state are tensors or nested tuples, lists and dicts of them.

    Args:
        cell: the cell.
        reverse: run from the last step to the first; outputs stay in the order of the inputs.
        batch_first: whether inputs, resets and outputs are (B, T, ...) and not (T, B, ...).

    Set the attribute ``unroll`` to record every step on the tape, as ``ts.scan(..., unroll=True)`` does: for a cell that
    branches on values or draws random numbers, and for pictures of the steps.

    Raises:
        DTypeError: ``cell`` is no cell.

    >>> import tinyseq as ts
    >>> class Sum(ts.nn.Module):
    ...     def initial_state(self, batch):
    ...         return ts.zeros((batch, 1))
    ...     def __call__(self, x, total):
    ...         total = total + x
    ...         return total, total
    >>> ys, total = ts.nn.Recurrent(Sum())(ts.tensor([[[1.0]], [[2.0]], [[3.0]]]))
    >>> ys.reshape(-1).tolist(), total.item()
    ([1.0, 3.0, 6.0], 6.0)
    """

    unroll = False

    def __init__(self, cell: Any, reverse: bool = False, batch_first: bool = False) -> None:
        if not callable(cell) or not hasattr(cell, "initial_state"):
            raise DTypeError(
                f"Recurrent takes a cell with __call__(x, state) and initial_state(batch), got {type(cell).__name__}"
            )
        self.cell = cell
        self.reverse = reverse
        self.batch_first = batch_first

    def __call__(self, xs: Any, state: State = None, lengths: Any = None, resets: Any = None) -> tuple[Any, State]:
        """The outputs of all steps, and the state after the last one.

        Args:
            xs: (T, B, ...), or (B, T, ...) with ``batch_first``.
            state: the state before the first step; None asks the cell.
            lengths: (B,) integers, how many steps of each row are valid. See :func:`tinyseq.scan`.
            resets: (T, B) booleans, where a row's state goes back to its start. See :func:`tinyseq.scan`.

        Raises:
            ShapeError, DTypeError: what :func:`tinyseq.scan` raises.
        """
        xs = tree_map(as_tensor, xs)
        for x in flatten(xs)[0]:
            if x.ndim < 2:
                raise ShapeError(f"Recurrent takes inputs with axes for time and batch, got shape {x.shape}")
        if self.batch_first:
            xs = _exchanged(xs)
            resets = None if resets is None else as_tensor(resets).transpose(0, 1)
        if state is None:
            leaves = flatten(xs)[0]
            if not leaves:
                raise ShapeError("Recurrent without inputs does not know the batch size; give a state")
            state = self.cell.initial_state(leaves[0].shape[1])
        step = _as_step(self.cell)
        state, ys = scan(step, state, xs, reverse=self.reverse, lengths=lengths, resets=resets, unroll=self.unroll)
        return (_exchanged(ys) if self.batch_first else ys), state


class _Stack(Gated):
    """L layers of a cell in D directions: the inputs of a layer are the outputs of the one below."""

    unroll = False  # as in Recurrent

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: Any,
        forget_bias: float | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        if num_layers < 1:
            raise ShapeError(f"{type(self).__name__} needs at least one layer, got num_layers={num_layers}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"a dropout probability lies in [0, 1], got {dropout}")
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers and has no effect with num_layers=1", UserWarning, stacklevel=3
            )
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        for layer in range(num_layers):
            below = hidden_size * len(self._directions) if layer else input_size
            for suffix in self._directions:
                self._add_weights(below, f"_l{layer}{suffix}", dtype, forget_bias)

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def __call__(self, x: Operand, state: State = None, lengths: Any = None) -> tuple[Tensor, State]:
        """The outputs of the last layer at all steps, and the state of every layer after its last step.

        Args:
            x: (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) without a batch.
            state: (L D, B, H) before the first step, without a batch (L D, H); for LSTM a pair (h_0, c_0) of such; in
                the order layer 0 forward, layer 0 reverse, layer 1 forward ... None is zeros. May ask for gradients.
            lengths: (B,) integers from 0 to T, how many steps of each row are valid, in any order. The state after a
                row's last valid step is returned, outputs after it are zeros, and the reverse direction starts there.

        Returns:
            ``output, h_n`` (for LSTM ``output, (h_n, c_n)``): output is (T, B, D H) in the layout of ``x``, h_n and c_n
            are as ``state``.

        Raises:
            ShapeError, DTypeError: an argument does not fit; says what is needed.
        """
        x = as_tensor(x)
        if x.ndim not in (2, 3):
            raise ShapeError(f"{type(self).__name__} takes inputs (T, B, I) or (T, I), got shape {x.shape}")
        weight = self._weights("_l0")[0]
        self._check_input(x, weight)
        batched = x.ndim == 3
        if not batched and lengths is not None:
            raise ShapeError(f"{type(self).__name__} takes lengths for a batch of inputs, got one of shape {x.shape}")
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        depth = self.num_layers * len(self._directions)
        batch = x.shape[1:-1]  # () without one
        start = self._start(state, (depth, *batch, self.hidden_size), weight)
        if not batched:
            x, start = x.unsqueeze(1), tree_map(lambda part: part.unsqueeze(1), start)

        final: list[State] = []
        for layer in range(self.num_layers):
            if layer:
                x = dropout(x, self.dropout, self.training)
            outputs = []
            for suffix in self._directions:
                cell = self.equations(*self._weights(f"_l{layer}{suffix}"))
                before = tree_map(lambda part: part[len(final)], start)
                after, y = scan(_as_step(cell), before, x, reverse=bool(suffix), lengths=lengths, unroll=self.unroll)
                outputs.append(y)
                final.append(after)
            x = outputs[0] if len(outputs) == 1 else concatenate(outputs, -1)
        end = tree_map(lambda *parts: stack(parts), *final)

        if not batched:
            return x.squeeze(1), tree_map(lambda part: part.squeeze(1), end)
        return (x.transpose(0, 1) if self.batch_first else x), end


class RNN(_Stack):
    """Layers of simple recurrent cells: see :class:`RNNCell` for the equation, and the call for shapes.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (B, T, ...) and not (T, B, ...); states never are.
        dropout: the probability of dropping an output between layers, in training.
        bidirectional: whether each layer also runs backwards; outputs are then (T, B, 2 H).
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> output, h_n = ts.nn.RNN(3, 4, num_layers=2)(ts.zeros((5, 2, 3)))
    >>> output.shape, h_n.shape
    ((5, 2, 4), (2, 2, 4))
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = float32,
    ) -> None:
        self.nonlinearity = checked_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype)

    def equations(self, *weights: Any) -> Equations:
        """The step of one layer."""
        return rnn(*weights, nonlinearity=self.nonlinearity)


class GRU(_Stack):
    """Layers of gated recurrent units: see :class:`GRUCell` for the equations, and the call for shapes.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (B, T, ...) and not (T, B, ...); states never are.
        dropout: the probability of dropping an output between layers, in training.
        bidirectional: whether each layer also runs backwards; outputs are then (T, B, 2 H).
        reset_after: whether the reset gate acts after the recurrent product (PyTorch) or before it (Cho et al. 2014).
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> output, h_n = ts.nn.GRU(3, 4, bidirectional=True)(ts.zeros((5, 2, 3)), lengths=[5, 2])
    >>> output.shape, h_n.shape
    ((5, 2, 8), (2, 2, 4))
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reset_after: bool = True,
        dtype: Any = float32,
    ) -> None:
        self.reset_after = reset_after
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype)

    def equations(self, *weights: Any) -> Equations:
        """The step of one layer."""
        return (gru if self.reset_after else gru_reset_before)(*weights)


class LSTM(_Stack):
    """Layers of long short-term memory: see :class:`LSTMCell` for the equations, and the call for shapes.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (B, T, ...) and not (T, B, ...); states never are.
        dropout: the probability of dropping an output between layers, in training.
        bidirectional: whether each layer also runs backwards; outputs are then (T, B, 2 H).
        forget_bias: where the forget gates' bias starts; None leaves it random.
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> output, (h_n, c_n) = ts.nn.LSTM(3, 4, batch_first=True)(ts.zeros((2, 5, 3)))
    >>> output.shape, h_n.shape, c_n.shape
    ((2, 5, 4), (1, 2, 4), (1, 2, 4))
    """

    gates = 4
    pair = True

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        forget_bias: float | None = None,
        dtype: Any = float32,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, forget_bias)

    def equations(self, *weights: Any) -> Equations:
        """The step of one layer."""
        return lstm(*weights)


def _as_step(cell: Any) -> Step:
    """A cell's convention in scan's: state first, then the input; state first, then the output."""

    def step(state: State, x: Any) -> tuple[State, Any]:
        output, state = cell(x, state)
        return state, output

    return step


def _exchanged(tree: Any) -> Any:
    """The first two axes, time and batch, of every tensor exchanged."""
    return tree_map(lambda x: x.transpose(0, 1), tree)
