"""The recurrent cells: their equations, each written once, and the modules that hold their weights.

Letters: T steps, B rows of a batch, I input features, H hidden units, P units of a projected output (P = H without a
projection). A cell maps an input (B, I) and a state to an output and the next state: ``cell(x, state) -> (output,
state)``. Without a batch axis, x is (I,) and the state (H,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypedDict, Unpack

from tinyseq import mode, random
from tinyseq.backend import use_backend
from tinyseq.creation import ones, zeros
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import layer_norm
from tinyseq.nn import init
from tinyseq.nn.module import Module
from tinyseq.tensor import Operand, Parameter, Tensor, as_tensor, float32, sigmoid, tanh, where
from tinyseq.tree import tree_map

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

State = Any  # a tensor (H on the last axis), or a pair of them (LSTM)
Equations = Callable[[Tensor, State], tuple[Tensor, State]]
Weights = Mapping[str, Tensor]  # by PyTorch's names, without a layer's suffix; what is switched off is missing
Noise = Any  # nested tuples of (T, B, ...) tensors; None where nothing is random
NoisyStep = Callable[[Any, State, Noise], tuple[Any, State]]


# --- the equations ----------------------------------------------------------------------------------------------------

# Each takes the weights as PyTorch lays them out, does what is the same at every step, and returns the step. ``mask``
# is what recurrent dropout multiplies h with wherever a product reads it: (B, P), the same at every step.


def rnn(w: Weights, mask: Tensor | None = None, *, nonlinearity: str = "tanh") -> Equations:
    """``h' = tanh(W_ih x + W_hh h + b)``."""
    w_ih, w_hh, bias = w["weight_ih"].T, w["weight_hh"].T, _total(w)
    activate = tanh if nonlinearity == "tanh" else Tensor.relu

    def cell(x: Tensor, h: State) -> tuple[Tensor, State]:
        h = activate(_plus(_normalised(x @ w_ih + _times(h, mask) @ w_hh, w.get("norm")), bias))
        return h, h

    return cell


def gru(w: Weights, mask: Tensor | None = None) -> Equations:
    """The reset gate acts on the product W_hn h + b_hn."""
    w_ih, w_hh = w["weight_ih"].T, w["weight_hh"].T
    size = w_hh.shape[0]
    gates, new = slice(None, 2 * size), slice(2 * size, None)
    gates_x, gates_h, new_x, new_h = (_affine(w, side, part) for part in (gates, new) for side in ("ih", "hh"))

    def cell(x: Tensor, h: State) -> tuple[Tensor, State]:
        a, b = x @ w_ih, _times(h, mask) @ w_hh
        both = sigmoid(gates_x(a[..., gates]) + gates_h(b[..., gates]))
        r, z = both[..., :size], both[..., size:]
        n = tanh(new_x(a[..., new]) + r * new_h(b[..., new]))
        h = n + z * (h - n)
        return h, h

    return cell


def gru_reset_before(w: Weights, mask: Tensor | None = None) -> Equations:
    """The reset gate acts on h, before the product."""
    w_ih, w_hh = w["weight_ih"].T, w["weight_hh"].T
    size = w_hh.shape[0]
    gates, new = slice(None, 2 * size), slice(2 * size, None)
    gates_x, gates_h, new_x, new_h = (_affine(w, side, part) for part in (gates, new) for side in ("ih", "hh"))
    w_gates, w_new = w_hh[:, gates], w_hh[:, new]

    def cell(x: Tensor, h: State) -> tuple[Tensor, State]:
        a, read = x @ w_ih, _times(h, mask)
        both = sigmoid(gates_x(a[..., gates]) + gates_h(read @ w_gates))
        r, z = both[..., :size], both[..., size:]
        n = tanh(new_x(a[..., new]) + new_h((r * read) @ w_new))
        h = n + z * (h - n)
        return h, h

    return cell


def lstm(w: Weights, mask: Tensor | None = None, *, coupled: bool = False) -> Equations:
    """``c' = f c + i g;  h' = o tanh(c')``."""
    w_ih, w_hh, bias = w["weight_ih"].T, w["weight_hh"].T, _total(w)
    size = w_ih.shape[1] // (3 if coupled else 4)
    p_i, *p_f, p_o = _rows(w.get("weight_peephole"), size, 2 if coupled else 3)
    w_hr = w["weight_hr"].T if "weight_hr" in w else None

    def cell(x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        from_x = _normalised(x @ w_ih, w.get("norm_ih"))
        from_h = _normalised(_times(h, mask) @ w_hh, w.get("norm_hh"))
        gates = _plus(from_x + from_h, bias)
        a_i, *a_f, a_g, a_o = (gates[..., k * size : (k + 1) * size] for k in range(3 if coupled else 4))
        i, g = sigmoid(_peep(a_i, p_i, c)), tanh(a_g)
        c = c + i * (g - c) if coupled else sigmoid(_peep(a_f[0], p_f[0], c)) * c + i * g
        o = sigmoid(_peep(a_o, p_o, c))
        h = o * tanh(_plus(_normalised(c, w.get("norm_c")), w.get("bias_c")))
        h = h if w_hr is None else h @ w_hr
        return h, (h, c)

    return cell


def _total(w: Weights) -> Tensor | None:
    return w["bias_ih"] + w["bias_hh"] if "bias_ih" in w else None


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias


def _times(h: Tensor, mask: Tensor | None) -> Tensor:
    return h if mask is None else h * mask


def _peep(gate: Tensor, weight: Tensor | None, c: Tensor) -> Tensor:
    return gate if weight is None else gate + weight * c


def _normalised(x: Tensor, gain: Tensor | None) -> Tensor:
    return x if gain is None else layer_norm(x, gain)


def _affine(w: Weights, side: str, columns: slice) -> Callable[[Tensor], Tensor]:
    """What is done to some columns of a product: normalised by themselves, if at all, and their bias added."""
    gain, bias = (w[name][columns] if name in w else None for name in (f"norm_{side}", f"bias_{side}"))
    return lambda product: _plus(_normalised(product, gain), bias)


def _rows(x: Tensor | None, size: int, count: int) -> list[Tensor | None]:
    return [None if x is None else x[k * size : (k + 1) * size] for k in range(count)]


# --- any cell, over a sequence ----------------------------------------------------------------------------------------


def for_sequence(cell: Any, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
    """A cell's step for one sequence, and the random numbers that it wants at each step.

    A compiled loop looks at its step once, so what is random in it is drawn before: a cell with something random in
    training has a method ``for_sequence(steps, batch) -> (step, noise)``. There it draws what stays the same for the
    whole sequence, which ``step(x, state, noise_t)`` closes over, and ``noise``, whose first axis is time.

    Args:
        cell: a cell, with or without that method.
        steps: T.
        batch: ``(B,)``, or ``()`` without a batch.
    """
    if not hasattr(cell, "for_sequence"):
        return (lambda x, state, _: cell(x, state)), None
    own, noise = cell.for_sequence(steps, batch)

    def step(x: Any, state: State, noise: Noise) -> tuple[Any, State]:
        with mode.scope("module", type(cell).__name__):
            return own(x, state, noise)

    return step, noise


def checked_cell(cell: Any, who: str) -> Any:
    """The cell, if it is one.

    Raises:
        DTypeError: it is not.
    """
    if not callable(cell) or not hasattr(cell, "initial_state"):
        raise DTypeError(f"{who} takes a cell with __call__(x, state) and initial_state(batch), got {type(cell).__name__}")
    return cell


def checked_output_size(cell: Any, who: str) -> int:
    """How many features the cell's output has.

    Raises:
        DTypeError: it does not tell.
    """
    size = getattr(cell, "output_size", None)
    if not isinstance(size, int):
        raise DTypeError(
            f"{who} needs to know how many features {type(cell).__name__} puts out; give it an attribute output_size"
        )
    return size


def checked_probability(p: float, what: str) -> float:
    """The probability, if it is one.

    Raises:
        ValueError: it is not in [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"a {what} probability lies in [0, 1], got {p}")
    return p


# --- what cells and stacks of layers share ----------------------------------------------------------------------------


class Options(TypedDict, total=False):
    """What every cell and every stack of layers can be asked for besides, by keyword."""

    layer_norm: bool
    recurrent_dropout: float
    zoneout: float | tuple[float, float]
    learn_state: bool


class Gated(Module):
    """Weights under PyTorch's names, the checks at the door, and what may be random in a step.

    A subclass says how many gates its weights hold and how large the parts of its state are, and gives its equations.
    """

    pair: ClassVar[bool] = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        *,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        learn_state: bool = False,
    ) -> None:
        if input_size < 0 or hidden_size < 1:
            raise ShapeError(
                f"{type(self).__name__} needs input_size >= 0 and hidden_size >= 1, got {input_size} and {hidden_size}"
            )
        rates = zoneout if isinstance(zoneout, tuple) else (zoneout,) * (1 + self.pair)
        if len(rates) != 1 + self.pair:
            raise ValueError(f"{type(self).__name__} has {1 + self.pair} parts in its state, got zoneout={zoneout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.layer_norm = layer_norm
        self.recurrent_dropout = checked_probability(recurrent_dropout, "recurrent dropout")
        self.zoneout = tuple(checked_probability(rate, "zoneout") for rate in rates)
        self.learn_state = learn_state

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return self._sizes[0]

    @property
    def _gates(self) -> int:
        raise NotImplementedError

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The features of each part of the state, the output's first."""
        return (self.hidden_size,)

    def _shapes(self, input_size: int) -> dict[str, tuple[int, ...]]:
        """The weights of one layer, in PyTorch's order; what PyTorch has not comes last."""
        rows = self._gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, input_size), "weight_hh": (rows, self._sizes[0])}
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return shapes

    def equations(self, weights: Weights, mask: Tensor | None = None) -> Equations:
        """One step, as a function of an input and a state that are known to fit.

        Args:
            weights: by name.
            mask: (B, P), what recurrent dropout multiplies h with.
        """
        raise NotImplementedError

    def _add_weights(self, input_size: int, suffix: str, dtype: Any) -> None:
        """Weights and biases from U(-1/sqrt(H), 1/sqrt(H)); what layer normalisation scales with from 1."""
        bound = 1 / math.sqrt(self.hidden_size)
        shapes = self._shapes(input_size)
        self._names = tuple(shapes)
        for name, shape in shapes.items():
            start = ones(shape, dtype) if name.startswith("norm") else random.uniform(shape, -bound, bound, dtype)
            setattr(self, name + suffix, Parameter(start))

    def _add_state(self, depth: tuple[int, ...], dtype: Any) -> None:
        if self.learn_state:
            for name, size in zip(("h_0", "c_0"), self._sizes, strict=False):
                setattr(self, name, Parameter(zeros((*depth, size), dtype)))

    def _weights(self, suffix: str = "") -> Weights:
        return {name: getattr(self, name + suffix) for name in self._names}

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

    def _start(self, state: State, depth: tuple[int, ...], batch: tuple[int, ...], weight: Tensor) -> State:
        """The state as given, checked; or the learned one; or zeros. No state *is* zeros, from here on."""
        shapes = [(*depth, *batch, size) for size in self._sizes]
        if state is None:
            parts = [
                self._initial(name, len(depth), shape, weight) for name, shape in zip(("h_0", "c_0"), shapes, strict=False)
            ]
            return tuple(parts) if self.pair else parts[0]
        if self.pair and not (isinstance(state, tuple | list) and len(state) == 2):
            raise ShapeError(f"{type(self).__name__} takes its state as a pair (h, c), got {type(state).__name__}")
        parts = [as_tensor(part) for part in (state if self.pair else (state,))]
        for name, part, shape in zip("hc", parts, shapes, strict=False):
            if part.shape != shape or part.dtype != weight.dtype:
                error = DTypeError if part.shape == shape else ShapeError
                raise error(
                    f"{type(self).__name__} needs a state {name} of {weight.dtype} {shape} for this input, "
                    f"got {part.dtype} {part.shape}"
                )
        return tuple(parts) if self.pair else parts[0]

    def _initial(self, name: str, depth: int, shape: tuple[int, ...], weight: Tensor) -> Tensor:
        if not self.learn_state:
            return Tensor(weight.backend.full(shape, 0, weight.dtype))
        learned: Tensor = getattr(self, name)
        return learned.reshape(*shape[:depth], *(1,) * (len(shape) - depth - 1), shape[-1]).expand(shape)

    def _noisy(self, weights: Weights, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
        """The step with recurrent dropout and zoneout, and the masks of zoneout."""
        weight, mask, noise = weights["weight_hh"], None, None
        if self.training and (self.recurrent_dropout or any(self.zoneout)):
            with use_backend(weight.backend):
                if self.recurrent_dropout:
                    keep = 1 - self.recurrent_dropout
                    kept = random.bernoulli(keep, (*batch, self.output_size)).astype(weight.dtype)
                    mask = kept * (1 / keep if keep else 0.0)
                if any(self.zoneout):
                    pairs = zip(self.zoneout, self._sizes, strict=True)
                    noise = tuple(random.bernoulli(rate, (steps, *batch, size)) if rate else None for rate, size in pairs)
        equations = self.equations(weights, mask)
        if not any(self.zoneout):
            return (lambda x, state, _: equations(x, state)), None

        def step(x: Tensor, state: State, masks: Noise) -> tuple[Tensor, State]:
            _, new = equations(x, state)
            before, after = (state, new) if self.pair else ((state,), (new,))
            masks = (None,) * len(after) if masks is None else masks
            parts = tuple(map(_zoned, self.zoneout, masks, before, after))
            return parts[0], parts if self.pair else parts[0]

        return step, noise


def _zoned(rate: float, mask: Tensor | None, before: Tensor, after: Tensor) -> Tensor:
    """A part of the state, where the units of the mask keep what they had; without a mask, what is expected."""
    if not rate:
        return after
    return after + rate * (before - after) if mask is None else where(mask, before, after)


class Simple(Gated):
    """What RNN and RNNCell are."""

    nonlinearity: str

    @property
    def _gates(self) -> int:
        return 1

    def _shapes(self, input_size: int) -> dict[str, tuple[int, ...]]:
        return super()._shapes(input_size) | ({"norm": (self.hidden_size,)} if self.layer_norm else {})

    def equations(self, weights: Weights, mask: Tensor | None = None) -> Equations:
        """The step of one layer."""
        return rnn(weights, mask, nonlinearity=self.nonlinearity)


class GatedUnit(Gated):
    """What GRU and GRUCell are."""

    reset_after: bool

    @property
    def _gates(self) -> int:
        return 3

    def _shapes(self, input_size: int) -> dict[str, tuple[int, ...]]:
        rows = (3 * self.hidden_size,)
        return super()._shapes(input_size) | ({"norm_ih": rows, "norm_hh": rows} if self.layer_norm else {})

    def equations(self, weights: Weights, mask: Tensor | None = None) -> Equations:
        """The step of one layer."""
        return (gru if self.reset_after else gru_reset_before)(weights, mask)


class Memory(Gated):
    """What LSTM and LSTMCell are."""

    pair = True

    def _choose(self, hidden_size: int, proj_size: int, peepholes: bool, coupled: bool) -> None:
        if not 0 <= proj_size < hidden_size:
            raise ShapeError(f"proj_size lies between 0 and hidden_size={hidden_size}, got {proj_size}")
        self.proj_size = proj_size
        self.peepholes = peepholes
        self.coupled = coupled

    @property
    def _gates(self) -> int:
        return 3 if self.coupled else 4

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)

    def _shapes(self, input_size: int) -> dict[str, tuple[int, ...]]:
        size, rows = self.hidden_size, (self._gates * self.hidden_size,)
        shapes = super()._shapes(input_size)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, size)
        if self.peepholes:
            shapes["weight_peephole"] = ((self._gates - 1) * size,)
        if self.layer_norm:
            shapes |= {"norm_ih": rows, "norm_hh": rows, "norm_c": (size,)}
            shapes |= {"bias_c": (size,)} if self.bias else {}
        return shapes

    def _start_forget_gates(self, bias: float | None) -> None:
        if bias is None:
            return
        if not self.bias:
            raise ValueError(f"forget_bias={bias} is the start of a bias; leave it out with bias=False")
        init.forget_bias_(self, bias)

    def equations(self, weights: Weights, mask: Tensor | None = None) -> Equations:
        """The step of one layer."""
        return lstm(weights, mask, coupled=self.coupled)


def checked_nonlinearity(name: str) -> str:
    """The name, if it is one of those there are."""
    if name not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity is 'tanh' or 'relu', got {name!r}")
    return name


# --- the cells --------------------------------------------------------------------------------------------------------


class _Cell(Gated):
    weight_ih: Parameter
    weight_hh: Parameter

    def __init__(self, input_size: int, hidden_size: int, bias: bool, dtype: Any, **options: Unpack[Options]) -> None:
        super().__init__(input_size, hidden_size, bias, **options)
        self._add_weights(input_size, "", dtype)
        self._add_state((), dtype)

    def initial_state(self, batch: int) -> State:
        """The learned state, else zeros, for ``batch`` rows: (B, H), or a pair (h, c) of such for LSTM."""
        return self._start(None, (), (batch,), self.weight_hh)

    def __call__(self, x: Operand, state: State = None) -> tuple[Tensor, State]:
        """The output and the next state.

        In training, recurrent dropout and zoneout draw new masks at every call; :class:`Recurrent` draws them as they
        are meant, for a whole sequence.

        Args:
            x: (B, I), or (I,) without a batch.
            state: (B, H) or (H,), for LSTM a pair (h, c) of such; None is the initial state.

        Raises:
            ShapeError, DTypeError: the input or the state does not fit; says what is needed.
        """
        x = as_tensor(x)
        step, noise = self.for_sequence(1, x.shape[:-1])
        return step(x, state, tree_map(lambda mask: mask[0], noise))

    def for_sequence(self, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
        """The step of one sequence, with the mask of recurrent dropout; and the masks of zoneout, (T, B, H) each.

        Args:
            steps: T.
            batch: ``(B,)``, or ``()`` without a batch.
        """
        own, noise = self._noisy(self._weights(), steps, batch)

        def step(x: Operand, state: State, noise: Noise) -> tuple[Tensor, State]:
            x = as_tensor(x)
            self._check_input(x, self.weight_ih)
            return own(x, self._start(state, (), x.shape[:-1], self.weight_ih), noise)

        return step, noise


class RNNCell(_Cell, Simple):
    """A simple recurrent cell (Elman 1990); the output is h'.

    With * elementwise and LN(a) = (a - mean) / sqrt(variance) over the units::

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh)
        h' = tanh(norm * LN(W_ih x + W_hh h) + b_ih + b_hh)      # layer_norm (Ba et al. 2016)

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".
        dtype: of the weights.
        layer_norm: whether the sum is normalised.
        recurrent_dropout: the probability that a unit of h is hidden from W_hh, in training; one mask for a whole
            sequence, scaled by 1 / (1 - p) (Gal and Ghahramani 2016).
        zoneout: the probability that a unit keeps its old value, in training; otherwise, in its place, the expected
            value ``zoneout * h + (1 - zoneout) * h'`` (Krueger et al. 2017).
        learn_state: whether the initial state is a parameter ``h_0`` (H,), which starts as zeros.

    Raises:
        ValueError: another nonlinearity, or a probability not in [0, 1].

    >>> import tinyseq as ts
    >>> cell = ts.nn.RNNCell(3, 4)
    >>> output, h = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> output.shape
    (2, 4)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        dtype: Any = float32,
        **options: Unpack[Options],
    ) -> None:
        self.nonlinearity = checked_nonlinearity(nonlinearity)
        super().__init__(input_size, hidden_size, bias, dtype, **options)


class GRUCell(_Cell, GatedUnit):
    """A gated recurrent unit (Cho et al. 2014); the output is h'.

    With sigma the logistic function and * elementwise::

        r = sigma(W_ir x + b_ir + W_hr h + b_hr)
        z = sigma(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))         # reset_after=True: cuDNN's form, PyTorch's
        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)         # reset_after=False: as published
        h' = (1 - z) * n + z * h

    With ``layer_norm`` (Ba et al. 2016) each product is normalised before its bias, those of r and z as one::

        (r, z) = sigma(norm_i * LN((W_ir, W_iz) x) + b_i + norm_h * LN((W_hr, W_hz) h) + b_h)
        n = tanh(norm_in * LN(W_in x) + b_in + r * (norm_hn * LN(W_hn h) + b_hn))

    The weights hold the gates in the order r, z, n; so do ``norm_ih`` and ``norm_hh`` (3 H,).

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        reset_after: whether the reset gate acts after the product or before it.
        dtype: of the weights.
        layer_norm, recurrent_dropout, zoneout, learn_state: as in :class:`RNNCell`.

    >>> import tinyseq as ts
    >>> cell = ts.nn.GRUCell(3, 4)
    >>> output, h = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> output.shape, cell.weight_hh.shape
    ((2, 4), (12, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        reset_after: bool = True,
        dtype: Any = float32,
        **options: Unpack[Options],
    ) -> None:
        self.reset_after = reset_after
        super().__init__(input_size, hidden_size, bias, dtype, **options)


class LSTMCell(_Cell, Memory):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with a forget gate (Gers et al. 2000); the output is h'.

    With sigma the logistic function and * elementwise::

        i = sigma(W_ii x + b_ii + W_hi h + b_hi)
        f = sigma(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o = sigma(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    The weights hold the gates in the order i, f, g, o. The state is the pair (h, c). What can be asked for besides, each
    with any other::

        h' = W_hr (o * tanh(c'))                            # proj_size=P (Sak et al. 2014): h' is (B, P)
        i = sigma(... + p_i * c),  f = sigma(... + p_f * c),  o = sigma(... + p_o * c')
                                                            # peepholes (Gers and Schmidhuber 2000)
        f = 1 - i                                           # coupled (Greff et al. 2017): the order is i, g, o
        (i, f, g, o) before sigma and tanh = norm_i * LN(W_i x) + norm_h * LN(W_h h) + b_i + b_h
        h' = o * tanh(norm_c * LN(c') + b_c)                # layer_norm (Ba et al. 2016)

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are biases.
        dtype: of the weights.
        proj_size: P, less than H; 0 is no projection. The weight W_hr is ``weight_hr`` (P, H).
        forget_bias: where b_if + b_hf starts, for all units; 1 lets gradients through from the beginning (Jozefowicz et
            al. 2015). None leaves it random, as PyTorch does. With ``coupled``, b_ii + b_hi starts at its negative.
        peepholes: whether the gates see c. The weights are ``weight_peephole`` (3 H,) in the order p_i, p_f, p_o;
            with ``coupled`` (2 H,), without p_f.
        coupled: whether the forget gate is what the input gate leaves.
        layer_norm: whether the sums before the gates and the memory are normalised: the 4 H of each product as one.
        recurrent_dropout: as in :class:`RNNCell`.
        zoneout: as in :class:`RNNCell`; two probabilities are those of h and of c.
        learn_state: whether the initial state is a parameter: ``h_0`` (P,) and ``c_0`` (H,), which start as zeros.

    Raises:
        ValueError: ``forget_bias`` without ``bias``, or a probability not in [0, 1].
        ShapeError: ``proj_size`` is not less than ``hidden_size``.

    >>> import tinyseq as ts
    >>> cell = ts.nn.LSTMCell(3, 4)
    >>> output, (h, c) = cell(ts.zeros((2, 3)), cell.initial_state(2))
    >>> output.shape, c.shape
    ((2, 4), (2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        dtype: Any = float32,
        *,
        proj_size: int = 0,
        forget_bias: float | None = None,
        peepholes: bool = False,
        coupled: bool = False,
        **options: Unpack[Options],
    ) -> None:
        self._choose(hidden_size, proj_size, peepholes, coupled)
        super().__init__(input_size, hidden_size, bias, dtype, **options)
        self._start_forget_gates(forget_bias)
