"""Layers that run a cell over time: any cell, and the stacks of PyTorch's arguments, names and shapes.

Letters: T steps, B rows of a batch, I input features, H hidden units, P units of a projected output (P = H without a
projection), L layers, D directions (1 or 2).
"""

from __future__ import annotations

import warnings
from typing import Any, Unpack

from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import concatenate, dropout, stack
from tinyseq.nn.cells import (
    Gated,
    GatedUnit,
    Memory,
    Noise,
    NoisyStep,
    Options,
    Simple,
    State,
    checked_cell,
    checked_nonlinearity,
    checked_probability,
    for_sequence,
)
from tinyseq.nn.module import Module
from tinyseq.scan import _select, scan
from tinyseq.tensor import Operand, Tensor, as_tensor, bool_, float32
from tinyseq.tree import flatten, tree_map

__all__ = ["GRU", "LSTM", "RNN", "Recurrent"]


class Recurrent(Module):
    """Any cell, run over a sequence.

    A cell is a module, or any object, with

    * ``cell(x, state) -> (output, next state)`` for one step, and
    * ``cell.initial_state(batch) -> state`` for ``batch`` rows,

    where input, output and state are tensors or nested tuples, lists and dicts of them. A cell that draws random numbers
    in training has besides

    * ``cell.for_sequence(steps, batch) -> (step, noise)``, where ``batch`` is the tuple ``(B,)``: a function
      ``step(x, state, noise_t) -> (output, next state)`` that closes over what it draws for the whole sequence, and a
      nested tuple of tensors (T, B, ...) with what it draws for each step.

    Args:
        cell: the cell.
        reverse: run from the last step to the first; outputs stay in the order of the inputs.
        batch_first: whether inputs, resets and outputs are (B, T, ...) and not (T, B, ...).

    Set the attribute ``unroll`` to record every step on the tape, as ``ts.scan(..., unroll=True)`` does: for a cell that
    branches on values or draws random numbers, and for pictures of the steps. Set ``checkpoint`` to keep the state every so
    many steps only, or to True, as ``ts.scan(..., checkpoint=k)`` does: long sequences then take less memory, for the time of
    one more forward pass.

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
    checkpoint: int | bool = False

    def __init__(self, cell: Any, reverse: bool = False, batch_first: bool = False) -> None:
        self.cell = checked_cell(cell, "Recurrent")
        self.reverse = reverse
        self.batch_first = batch_first

    def __call__(self, xs: Any, state: State = None, lengths: Any = None, resets: Any = None) -> tuple[Any, State]:
        """The outputs of all steps, and the state after the last one.

        Args:
            xs: (T, B, ...), or (B, T, ...) with ``batch_first``.
            state: the state before the first step; None asks the cell.
            lengths: (B,) integers, how many steps of each row are valid. See :func:`tinyseq.scan`.
            resets: (T, B) booleans, where another sequence begins in a row: its state goes back to the cell's initial
                state, also where ``state`` was another. In reverse that happens after the step.

        Raises:
            ShapeError, DTypeError: what :func:`tinyseq.scan` raises.
        """
        xs = tree_map(as_tensor, xs)
        leaves = flatten(xs)[0]
        if not leaves:
            raise ShapeError("Recurrent takes at least one tensor as its input, got none")
        for x in leaves:
            if x.ndim < 2:
                raise ShapeError(f"Recurrent takes inputs with axes for time and batch, got shape {x.shape}")
        if self.batch_first:
            xs = _exchanged(xs)
            resets = None if resets is None else as_tensor(resets).transpose(0, 1)
        steps, batch = flatten(xs)[0][0].shape[:2]
        if not batch:
            raise ShapeError(f"Recurrent takes a batch of at least one row, got shape {leaves[0].shape}")
        flags = None if resets is None else _checked_flags(resets, steps, batch)
        initial = None
        if state is None or flags is not None:
            initial = self.cell.initial_state(batch)
        start = initial if state is None else state
        step, noise = for_sequence(self.cell, steps, (batch,))
        ys, state = _run(step, noise, start, xs, self.reverse, lengths, flags, initial, self.unroll, self.checkpoint)
        return (_exchanged(ys) if self.batch_first else ys), state


def _run(
    cell: NoisyStep,
    noise: Noise,
    start: State,
    xs: Any,
    reverse: bool,
    lengths: Any,
    flags: Tensor | None,
    initial: State,
    unroll: bool,
    checkpoint: int | bool,
) -> tuple[Any, State]:
    """A cell's step over a sequence: all outputs, and the last state."""
    if flags is not None and reverse:  # a sequence that begins at t + 1 is over, backwards, before step t
        flags = concatenate([flags[1:], flags[:1] & False])

    def step(state: State, inputs: Any) -> tuple[State, Any]:
        x, noise, flag = inputs
        if flag is not None:
            state = tree_map(lambda first, now: _select(flag, first, now), initial, state)
        output, state = cell(x, state, noise)
        return state, output

    state, ys = scan(step, start, (xs, noise, flags), reverse=reverse, lengths=lengths, unroll=unroll, checkpoint=checkpoint)
    return ys, state


def _checked_flags(resets: Any, steps: int, batch: int) -> Tensor:
    """(T, B) booleans."""
    flags = as_tensor(resets)
    if flags.dtype != bool_:
        raise DTypeError(f"resets are booleans, got dtype {flags.dtype}; write resets != 0")
    if flags.shape != (steps, batch):
        raise ShapeError(f"resets are (T, B) = {(steps, batch)} for this input, got shape {flags.shape}")
    return flags


class _Stack(Gated):
    """L layers of a cell in D directions: the inputs of a layer are the outputs of the one below."""

    unroll = False  # as in Recurrent
    checkpoint: int | bool = False
    return_cells = False

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
        reverse: bool,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        if num_layers < 1:
            raise ShapeError(f"{type(self).__name__} needs at least one layer, got num_layers={num_layers}")
        if bidirectional and reverse:
            raise ValueError("bidirectional layers run in reverse already; leave out reverse=True")
        if checked_probability(dropout, "dropout") and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} acts between layers and has no effect with num_layers=1", UserWarning, stacklevel=3
            )
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.reverse = reverse
        for layer in range(num_layers):
            below = self.output_size * len(self._directions) if layer else input_size
            for suffix in self._directions:
                self._add_weights(below, f"_l{layer}{suffix}", dtype)
        self._add_state((num_layers * len(self._directions),), dtype)

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def __call__(self, x: Operand, state: State = None, lengths: Any = None, resets: Any = None) -> tuple[Any, State]:
        """The outputs of the last layer at all steps, and the state of every layer after its last step.

        Args:
            x: (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) without a batch.
            state: (L D, B, P) before the first step, without a batch (L D, P); for LSTM a pair (h_0, c_0) of such, where
                c_0 ends with H; in the order layer 0 forward, layer 0 reverse, layer 1 forward ... None is the learned
                state, else zeros. May ask for gradients.
            lengths: (B,) integers from 0 to T, how many steps of each row are valid, in any order. The state after a
                row's last valid step is returned, outputs after it are zeros, and the reverse direction starts there.
            resets: booleans in the layout of ``x``, (T, B), (B, T) or (T,), where another sequence begins in a row:
                the state of every layer goes back to its initial value (the learned state or zeros, also where ``state``
                was another); the reverse direction does so after the step.

        Returns:
            ``output, h_n`` (for LSTM ``output, (h_n, c_n)``): output is (T, B, D P) in the layout of ``x``, h_n and c_n
            are as ``state``. With ``return_cells``, ``(output, cells), (h_n, c_n)``, where cells is (T, B, D H).

        Raises:
            ShapeError, DTypeError: an argument does not fit; says what is needed.
        """
        x = as_tensor(x)
        if x.ndim not in (2, 3):
            raise ShapeError(f"{type(self).__name__} takes inputs (T, B, I) or (T, I), got shape {x.shape}")
        weight: Tensor = self._weights("_l0")["weight_ih"]
        self._check_input(x, weight)
        batched = x.ndim == 3
        if not batched and lengths is not None:
            raise ShapeError(f"{type(self).__name__} takes lengths for a batch of inputs, got one of shape {x.shape}")
        resets = None if resets is None else as_tensor(resets)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
            resets = resets if resets is None or resets.ndim != 2 else resets.transpose(0, 1)
        depth = (self.num_layers * len(self._directions),)
        batch = x.shape[1:-1]  # () without one
        if 0 in batch:
            raise ShapeError(f"{type(self).__name__} takes a batch of at least one row, got 0 of {x.shape[0]} steps")
        start = self._start(state, depth, batch, weight)
        initial = None if resets is None else self._start(None, depth, batch, weight)
        if not batched:
            x = x.unsqueeze(1)
            start, initial, resets = (tree_map(lambda part: part.unsqueeze(1), each) for each in (start, initial, resets))
        flags = None if resets is None else _checked_flags(resets, *x.shape[:2])

        outputs: Any = x
        final: list[State] = []
        for layer in range(self.num_layers):
            if layer:
                x = dropout(x, self.dropout, self.training)
            columns = []
            for suffix in self._directions:
                step, noise = self._noisy(self._weights(f"_l{layer}{suffix}"), x.shape[0], x.shape[1:-1])
                if self.return_cells and layer == self.num_layers - 1:
                    step = _with_cells(step)
                before, first = (tree_map(lambda part: part[len(final)], each) for each in (start, initial))
                reverse = bool(suffix) or self.reverse
                ys, after = _run(step, noise, before, x, reverse, lengths, flags, first, self.unroll, self.checkpoint)
                columns.append(ys)
                final.append(after)
            outputs = columns[0] if len(columns) == 1 else tree_map(lambda *parts: concatenate(parts, -1), *columns)
            x = outputs
        end = tree_map(lambda *parts: stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0), *final)

        if not batched:
            return tree_map(lambda y: y.squeeze(1), outputs), tree_map(lambda part: part.squeeze(1), end)
        return (_exchanged(outputs) if self.batch_first else outputs), end


def _with_cells(step: NoisyStep) -> NoisyStep:
    """The step with the output (h, c)."""

    def both(x: Any, state: State, noise: Noise) -> tuple[Any, State]:
        output, state = step(x, state, noise)
        return (output, state[1]), state

    return both


class RNN(_Stack, Simple):
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
        reverse: whether each layer runs backwards only; outputs stay in the order of the inputs.
        layer_norm, recurrent_dropout, zoneout: as in :class:`RNNCell`, in each layer and direction by itself.
        learn_state: whether the initial state is a parameter ``h_0`` (L D, H), which starts as zeros.

    >>> import tinyseq as ts
    >>> output, h_n = ts.nn.RNN(3, 4, num_layers=2)(ts.zeros((5, 2, 3)))
    >>> output.shape, h_n.shape
    ((5, 2, 4), (2, 2, 4))
    """

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
        *,
        reverse: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self.nonlinearity = checked_nonlinearity(nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse, **options
        )


class GRU(_Stack, GatedUnit):
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
        reverse: whether each layer runs backwards only; outputs stay in the order of the inputs.
        layer_norm, recurrent_dropout, zoneout: as in :class:`GRUCell`, in each layer and direction by itself.
        learn_state: whether the initial state is a parameter ``h_0`` (L D, H), which starts as zeros.

    >>> import tinyseq as ts
    >>> output, h_n = ts.nn.GRU(3, 4, bidirectional=True)(ts.zeros((5, 2, 3)), lengths=[5, 2])
    >>> output.shape, h_n.shape
    ((5, 2, 8), (2, 2, 4))
    """

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
        *,
        reverse: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self.reset_after = reset_after
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse, **options
        )


class LSTM(_Stack, Memory):
    """Layers of long short-term memory: see :class:`LSTMCell` for the equations, and the call for shapes.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L.
        bias: whether there are biases.
        batch_first: whether inputs and outputs are (B, T, ...) and not (T, B, ...); states never are.
        dropout: the probability of dropping an output between layers, in training.
        bidirectional: whether each layer also runs backwards; outputs are then (T, B, 2 P).
        proj_size: P, less than H; 0 is no projection.
        dtype: of the weights.
        forget_bias: where the forget gates' bias starts; None leaves it random.
        reverse: whether each layer runs backwards only; outputs stay in the order of the inputs.
        return_cells: whether c of the last layer at all steps is returned beside its outputs.
        peepholes, coupled: as in :class:`LSTMCell`.
        layer_norm, recurrent_dropout, zoneout: as in :class:`LSTMCell`, in each layer and direction by itself.
        learn_state: whether the initial state is a parameter: ``h_0`` (L D, P) and ``c_0`` (L D, H), which start as zeros.

    >>> import tinyseq as ts
    >>> output, (h_n, c_n) = ts.nn.LSTM(3, 4, batch_first=True)(ts.zeros((2, 5, 3)))
    >>> output.shape, h_n.shape, c_n.shape
    ((2, 5, 4), (1, 2, 4), (1, 2, 4))
    >>> (output, cells), _ = ts.nn.LSTM(3, 4, proj_size=2, return_cells=True)(ts.zeros((5, 2, 3)))
    >>> output.shape, cells.shape
    ((5, 2, 2), (5, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: Any = float32,
        *,
        forget_bias: float | None = None,
        reverse: bool = False,
        return_cells: bool = False,
        peepholes: bool = False,
        coupled: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._choose(hidden_size, proj_size, peepholes, coupled)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, reverse, **options
        )
        self._start_forget_gates(forget_bias)
        self.return_cells = return_cells


def _exchanged(tree: Any) -> Any:
    """The first two axes, time and batch, of every tensor exchanged."""
    return tree_map(lambda x: x.transpose(0, 1), tree)
