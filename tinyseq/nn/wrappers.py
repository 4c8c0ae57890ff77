"""Cells made of cells: a stack, a residual connection, dropout, a projection. Each goes wherever a cell goes.

Letters: T steps, B rows of a batch, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyseq import random
from tinyseq.errors import ShapeError
from tinyseq.nn.cells import Noise, NoisyStep, State, checked_cell, checked_output_size, checked_probability, for_sequence
from tinyseq.nn.layers import Linear
from tinyseq.nn.module import Module
from tinyseq.tensor import Operand, Tensor, as_tensor, float32, where
from tinyseq.tree import tree_map

__all__ = ["DropoutCell", "ProjectionCell", "ResidualCell", "StackedCell"]


class StackedCell(Module):
    """Cells one on the other in one step: the output of each is the input of the next.

    The state is the tuple of theirs. Over a sequence it computes what as many layers of :class:`Recurrent` do, in one
    loop.

    Args:
        cells: from the input to the output.

    Raises:
        ShapeError: there are none.
        DTypeError: one of them is no cell.

    >>> import tinyseq as ts
    >>> stack = ts.nn.StackedCell([ts.nn.GRUCell(3, 4), ts.nn.ResidualCell(ts.nn.LSTMCell(4, 4))])
    >>> ys, (h, (h_1, c_1)) = ts.nn.Recurrent(stack)(ts.zeros((5, 2, 3)))
    >>> ys.shape, h.shape, c_1.shape
    ((5, 2, 4), (2, 4), (2, 4))
    """

    def __init__(self, cells: Sequence[Any]) -> None:
        self.cells = [checked_cell(cell, "StackedCell") for cell in cells]
        if not self.cells:
            raise ShapeError("StackedCell needs at least one cell, got none")

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return checked_output_size(self.cells[-1], "StackedCell")

    def initial_state(self, batch: int) -> tuple[State, ...]:
        """The tuple of each cell's initial state for ``batch`` rows."""
        return tuple(cell.initial_state(batch) for cell in self.cells)

    def __call__(self, x: Any, state: Sequence[State] | None = None) -> tuple[Any, tuple[State, ...]]:
        """The output of the last cell, and the next state of each.

        Args:
            x: what the first cell takes.
            state: the state of each cell; None leaves it to each what that means.

        Raises:
            ShapeError: there are more or fewer states than cells.
        """
        return self._through(self.cells, x, (None,) * len(self.cells) if state is None else state)

    def for_sequence(self, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
        """The step of one sequence, and the tuple of what each cell draws for its steps."""
        own, noises = zip(*(for_sequence(cell, steps, batch) for cell in self.cells), strict=True)

        def step(x: Any, state: State, noise: Noise) -> tuple[Any, State]:
            bound = [lambda x, s, f=f, n=n: f(x, s, n) for f, n in zip(own, noise, strict=True)]
            return self._through(bound, x, state)

        return step, noises

    def _through(self, cells: Sequence[Any], x: Any, state: Sequence[State]) -> tuple[Any, tuple[State, ...]]:
        if not isinstance(state, tuple | list) or len(state) != len(cells):
            what = f"{len(state)}" if isinstance(state, tuple | list) else type(state).__name__
            raise ShapeError(f"StackedCell takes a tuple of {len(cells)} states, one a cell, got {what}")
        after = []
        for cell, before in zip(cells, state, strict=True):
            x, now = cell(x, before)
            after.append(now)
        return x, tuple(after)


class _Wrapper(Module):
    """A cell whose output is changed and whose state is not."""

    def __init__(self, cell: Any) -> None:
        self.cell = checked_cell(cell, type(self).__name__)

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return checked_output_size(self.cell, type(self).__name__)

    def initial_state(self, batch: int) -> State:
        """That of the cell inside."""
        return self.cell.initial_state(batch)

    def __call__(self, x: Any, state: State = None) -> tuple[Any, State]:
        """The output, changed, and the next state of the cell inside, which gets x and state as they are."""
        output, state = self.cell(x, state)
        return self._output(x, output), state

    def for_sequence(self, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
        """The step of one sequence, and what the cell inside draws for its steps."""
        own, noise = for_sequence(self.cell, steps, batch)

        def step(x: Any, state: State, noise: Noise) -> tuple[Any, State]:
            output, state = own(x, state, noise)
            return self._output(x, output), state

        return step, noise

    def _output(self, x: Any, output: Any) -> Any:
        raise NotImplementedError


class ResidualCell(_Wrapper):
    """``y = x + output``: what comes in is added to what comes out (He et al. 2016; in recurrent stacks Wu et al. 2016).

    Args:
        cell: whose outputs have the structure and shapes of its inputs.

    >>> import tinyseq as ts
    >>> cell = ts.nn.ResidualCell(ts.nn.RNNCell(3, 3))
    >>> x = ts.ones((2, 3))
    >>> y, h = cell(x, cell.initial_state(2))
    >>> bool((y == x + h).all())
    True
    """

    def _output(self, x: Any, output: Any) -> Any:
        return tree_map(_added, x, output)


class ProjectionCell(_Wrapper):
    """``y = output W^T + b``: each output through a linear map; the state, unlike with ``proj_size``, stays as it is.

    Args:
        cell: whose outputs are (B, I); it tells I by its attribute ``output_size``.
        out_features: O.
        bias: whether there is a b.
        dtype: of the weights.

    Raises:
        DTypeError: the cell does not tell its ``output_size``.

    >>> import tinyseq as ts
    >>> cell = ts.nn.ProjectionCell(ts.nn.LSTMCell(3, 4), 7)
    >>> y, (h, c) = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> y.shape, h.shape
    ((2, 7), (2, 4))
    """

    def __init__(self, cell: Any, out_features: int, bias: bool = True, dtype: Any = float32) -> None:
        super().__init__(cell)
        self.linear = Linear(checked_output_size(cell, "ProjectionCell"), out_features, bias, dtype)

    @property
    def output_size(self) -> int:
        """O."""
        return self.linear.out_features

    def _output(self, x: Any, output: Operand) -> Tensor:
        return self.linear(output)


class DropoutCell(_Wrapper):
    """In training, outputs with units dropped and the rest scaled by 1 / (1 - p) (Srivastava et al. 2014); never states.

    Args:
        cell: whose outputs are (B, O); it tells O by its attribute ``output_size``.
        p: the probability.
        variational: whether one mask serves a whole sequence (Gal and Ghahramani 2016); otherwise each step has its own.

    Raises:
        ValueError: ``p`` is not in [0, 1].
        DTypeError: the cell does not tell its ``output_size``.

    >>> import tinyseq as ts
    >>> layer = ts.nn.Recurrent(ts.nn.DropoutCell(ts.nn.GRUCell(3, 4), 0.5, variational=True))
    >>> ys, _ = layer(ts.ones((5, 2, 3)))
    >>> dropped = (ys == 0).all(0)                       # a unit is dropped at all steps
    >>> bool((dropped == (ys == 0).any(0)).all())
    True
    """

    def __init__(self, cell: Any, p: float = 0.5, variational: bool = False) -> None:
        super().__init__(cell)
        self.p = checked_probability(p, "dropout")
        self.variational = variational
        checked_output_size(cell, "DropoutCell")  # said now, not in the middle of a training

    def __call__(self, x: Any, state: State = None) -> tuple[Tensor, State]:
        """The output, with a mask of its own, and the next state of the cell inside, which gets x and state as they are.

        :class:`Recurrent` draws the masks for a whole sequence.
        """
        output, state = self.cell(x, state)
        output = as_tensor(output)
        return (self._dropped(output, self._mask(output.shape)) if self._active else output), state

    def for_sequence(self, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
        """The step of one sequence, with its mask if there is one for all steps; else the masks of each."""
        own, inner = for_sequence(self.cell, steps, batch)
        if not self._active:
            return own, inner
        size = self.output_size
        shared = self._mask((*batch, size)) if self.variational else None
        masks = None if self.variational else self._mask((steps, *batch, size))

        def step(x: Any, state: State, noise: Noise) -> tuple[Tensor, State]:
            inner, mask = noise
            output, state = own(x, state, inner)
            return self._dropped(as_tensor(output), mask if shared is None else shared), state

        return step, (inner, masks)

    @property
    def _active(self) -> bool:
        return self.training and self.p > 0

    def _mask(self, shape: tuple[int, ...]) -> Tensor:
        return random.bernoulli(1 - self.p, shape)

    def _dropped(self, output: Tensor, kept: Tensor) -> Tensor:
        return where(kept, output * (1 / (1 - self.p) if self.p < 1 else 0.0), False)  # a number of the lowest kind: any dtype


def _added(x: Operand, output: Operand) -> Tensor:
    x, output = as_tensor(x), as_tensor(output)
    if x.shape != output.shape:
        raise ShapeError(
            f"ResidualCell adds an input of shape {x.shape} to an output of shape {output.shape}; "
            "give it a cell with as many outputs as inputs, or a ProjectionCell around one"
        )
    return x + output
