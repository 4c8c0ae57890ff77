"""Encoder and decoder: from one sequence to another of a different length (Sutskever et al. 2014, Cho et al. 2014).

Letters: S steps of the source, T steps of the target, B rows of a batch, E features of an embedding, H hidden units, M
features of a memory's vector, V tokens in the vocabulary, N rows that a decoder is fed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tinyseq import random
from tinyseq.creation import ones
from tinyseq.errors import DTypeError, ShapeError
from tinyseq.functions import concatenate, cumsum, dropout, softmax, tanh, where
from tinyseq.nn import decoding
from tinyseq.nn.attention import Memory
from tinyseq.nn.cells import Noise, NoisyStep, State, checked_cell, checked_output_size, checked_probability, for_sequence
from tinyseq.nn.decoding import Decoded
from tinyseq.nn.layers import Linear
from tinyseq.nn.module import Module
from tinyseq.nn.recurrent import Recurrent
from tinyseq.nn.wrappers import DropoutCell, ProjectionCell, ResidualCell, StackedCell
from tinyseq.scan import checked_lengths, scan
from tinyseq.tape import no_grad
from tinyseq.tensor import Operand, Tensor, as_tensor, float32
from tinyseq.tree import flatten, tree_map

__all__ = [
    "BahdanauCell",
    "Bridge",
    "EncoderDecoder",
    "LuongCell",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "exponential_decay",
    "inverse_sigmoid_decay",
    "linear_decay",
]


# --- cells that read a memory -----------------------------------------------------------------------------------------


class _AttentionCell(Module):
    """A cell that reads a memory at every step; ``over(memory)`` makes it an ordinary one."""

    def __init__(self, cell: Any, attention: Any, value_size: int | None) -> None:
        kind = type(self).__name__
        self.cell = checked_cell(cell, kind)
        if not hasattr(attention, "remember") or not hasattr(attention, "read"):
            raise DTypeError(
                f"{kind} takes an attention with remember(keys) and read(query, memory), got {type(attention).__name__}"
            )
        size = checked_output_size(cell, kind)
        self.attention = attention
        self.value_size = value_size or getattr(attention, "key_size", None) or size

    def over(self, memory: Memory, need_weights: bool = False) -> AttendingCell:
        """The cell that reads this memory: an ordinary one, for ``nn.Recurrent`` and ``ts.scan``.

        Args:
            memory: what ``attention.remember`` made of an encoder's outputs.
            need_weights: whether its output is a pair (output, weights (B, S)).
        """
        return AttendingCell(self, memory, need_weights)

    def initial_state(self, batch: int) -> State:
        """That of the cell inside, completed by ``state_from``."""
        return self.state_from(self.cell.initial_state(batch), batch)

    def state_from(self, state: State, batch: int) -> State:
        """This cell's state before the first step, given that of the cell inside."""
        raise NotImplementedError

    def step(
        self, own: Callable[[Any, State], tuple[Tensor, State]], x: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, Tensor, State]:
        """The output, the weights (B, S) and the next state; ``own`` is the step of the cell inside."""
        raise NotImplementedError


class AttendingCell:
    """An attention cell and the memory that it reads; made by ``over``."""

    def __init__(self, cell: _AttentionCell, memory: Memory, need_weights: bool = False) -> None:
        self.cell = cell
        self.memory = memory
        self.need_weights = need_weights

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return self.cell.output_size  # type: ignore[attr-defined]

    def initial_state(self, batch: int) -> State:
        """That of the attention cell."""
        return self.cell.initial_state(batch)

    def __call__(self, x: Operand, state: State = None) -> tuple[Any, State]:
        """The output, or with ``need_weights`` the pair (output, weights), and the next state."""
        x = as_tensor(x)
        return self._step(self.cell.cell, x, self.initial_state(x.shape[0]) if state is None else state)

    def for_sequence(self, steps: int, batch: tuple[int, ...]) -> tuple[NoisyStep, Noise]:
        """The step of one sequence, and what the cell inside draws for its steps."""
        own, noise = for_sequence(self.cell.cell, steps, batch)

        def step(x: Any, state: State, noise: Noise) -> tuple[Any, State]:
            return self._step(lambda x, state: own(x, state, noise), x, state)

        return step, noise

    def _step(self, own: Callable[[Any, State], tuple[Tensor, State]], x: Tensor, state: State) -> tuple[Any, State]:
        output, weights, state = self.cell.step(own, x, state, self.memory)
        return ((output, weights) if self.need_weights else output), state


class BahdanauCell(_AttentionCell):
    """Attention before the step (Bahdanau et al. 2015): the old state asks, and the cell gets the answer as input.

    With the memory h_1 ... h_S::

        c_t = attention(s_{t-1}; h_1 ... h_S)
        s_t = cell([x_t; c_t], s_{t-1})
        y_t = [s_t; c_t]

    Args:
        cell: takes (B, E + M) and tells by ``output_size`` how many features its output s has.
        attention: whose queries are the cell's hidden state.
        query: from the cell's state to its hidden state (B, H); by default, and for the cells of this library, what the
            next step's gates would read: h of a pair (h, c), of a stack that of the last cell.
        value_size: M; by default the attention's ``key_size``, or if it has none the cell's ``output_size``.

    Raises:
        DTypeError: no cell, no attention, or a cell that does not tell its ``output_size``.

    >>> import tinyseq as ts
    >>> attention = ts.nn.AdditiveAttention(query_size=4, key_size=6, hidden_size=5)
    >>> cell = ts.nn.BahdanauCell(ts.nn.GRUCell(3 + 6, 4), attention)
    >>> memory = attention.remember(ts.zeros((2, 7, 6)))
    >>> ys, h = ts.nn.Recurrent(cell.over(memory))(ts.zeros((5, 2, 3)))
    >>> ys.shape, h.shape
    ((5, 2, 10), (2, 4))
    """

    def __init__(
        self,
        cell: Any,
        attention: Any,
        query: Callable[[State], Tensor] | None = None,
        value_size: int | None = None,
    ) -> None:
        super().__init__(cell, attention, value_size)
        self.query = query

    @property
    def output_size(self) -> int:
        """The features of an output."""
        return self.cell.output_size + self.value_size

    def state_from(self, state: State, batch: int) -> State:
        """The state of the cell inside is all there is."""
        return state

    def step(
        self, own: Callable[[Any, State], tuple[Tensor, State]], x: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, Tensor, State]:
        """The equations."""
        asks = _hidden(self.cell, state) if self.query is None else self.query(state)
        context, weights = self.attention.read(asks, memory)
        output, state = own(concatenate([x, context], -1), state)
        return concatenate([output, context], -1), weights, state


class LuongCell(_AttentionCell):
    """Attention after the step (Luong et al. 2015): the new state asks, and the answer goes into the output.

    With the memory h_1 ... h_S::

        s_t = cell([x_t; a_{t-1}], s_{t-1})      # input_feeding; else cell(x_t, s_{t-1})
        c_t = attention(s_t; h_1 ... h_S)
        a_t = tanh(W [c_t; s_t])
        y_t = a_t

    The state is the pair (state of the cell, a); a starts as zeros. W is ``combine.weight``.

    Args:
        cell: takes (B, E + A) with input feeding, else (B, E), and tells its ``output_size``.
        attention: whose queries are the cell's output.
        attentional_size: A, the features of a; by default the cell's ``output_size``.
        value_size: M; by default the attention's ``key_size``, or if it has none the cell's ``output_size``.
        input_feeding: whether a of the step before is part of the input.
        dtype: of the weight.

    Raises:
        DTypeError: no cell, no attention, or a cell that does not tell its ``output_size``.

    >>> import tinyseq as ts
    >>> attention = ts.nn.DotProductAttention()
    >>> cell = ts.nn.LuongCell(ts.nn.LSTMCell(3 + 4, 4), attention)
    >>> memory = attention.remember(ts.zeros((2, 7, 4)), lengths=[7, 3])
    >>> (ys, weights), _ = ts.nn.Recurrent(cell.over(memory, need_weights=True))(ts.zeros((5, 2, 3)))
    >>> ys.shape, weights.shape
    ((5, 2, 4), (5, 2, 7))
    """

    def __init__(
        self,
        cell: Any,
        attention: Any,
        attentional_size: int | None = None,
        value_size: int | None = None,
        input_feeding: bool = True,
        dtype: Any = float32,
    ) -> None:
        super().__init__(cell, attention, value_size)
        self.input_feeding = input_feeding
        size = cell.output_size if attentional_size is None else attentional_size
        self.combine = Linear(self.value_size + cell.output_size, size, bias=False, dtype=dtype)

    @property
    def output_size(self) -> int:
        """A."""
        return self.combine.out_features

    def state_from(self, state: State, batch: int) -> State:
        """The pair with zeros for a."""
        weight = self.combine.weight
        return state, Tensor(weight.backend.full((batch, self.output_size), 0, weight.dtype))

    def step(
        self, own: Callable[[Any, State], tuple[Tensor, State]], x: Tensor, state: State, memory: Memory
    ) -> tuple[Tensor, Tensor, State]:
        """The equations."""
        inner, a = state
        output, inner = own(concatenate([x, a], -1) if self.input_feeding else x, inner)
        context, weights = self.attention.read(output, memory)
        a = tanh(self.combine(concatenate([context, output], -1)))
        return a, weights, (inner, a)


def _hidden(cell: Any, state: State) -> Tensor:
    """What the gates of the cell would read of its state; of a stack, of its last cell."""
    if isinstance(cell, StackedCell):
        return _hidden(cell.cells[-1], state[-1])
    if isinstance(cell, DropoutCell | ProjectionCell | ResidualCell):
        return _hidden(cell.cell, state)
    if getattr(cell, "pair", False):
        return state[0]
    if isinstance(state, Tensor):
        return state
    raise DTypeError(
        f"the state of {type(cell).__name__} has several parts; tell the attention cell which one asks, with "
        "query=lambda state: ..."
    )


# --- encoder, decoder, and the bridge between them --------------------------------------------------------------------


class RecurrentEncoder(Module):
    """Ids to vectors, and a recurrent layer over them.

    Args:
        embedding: ids (S, B) to (S, B, E), any function; for a source of vectors use the layer alone as the encoder.
        layer: ``layer(xs, lengths=lengths) -> (outputs, state)``, time first: nn.LSTM, nn.GRU, nn.RNN, nn.Recurrent.
        dropout: the probability of dropping an element of the embedded source, in training.

    Raises:
        ValueError: a layer that takes the batch first, or a probability outside [0, 1].

    >>> import tinyseq as ts
    >>> encoder = ts.nn.RecurrentEncoder(ts.nn.Embedding(20, 3), ts.nn.GRU(3, 4, bidirectional=True))
    >>> outputs, state = encoder(ts.tensor([[1, 2], [3, 0]]), lengths=[2, 1])
    >>> outputs.shape, state.shape
    ((2, 2, 8), (2, 2, 4))
    """

    def __init__(self, embedding: Callable[[Any], Tensor], layer: Any, dropout: float = 0.0) -> None:
        if getattr(layer, "batch_first", False):
            raise ValueError("RecurrentEncoder runs time first; make its layer with batch_first=False")
        self.embedding = embedding
        self.layer = layer
        self.dropout = checked_probability(dropout, "dropout")

    def __call__(self, source: Operand, lengths: Any = None) -> tuple[Tensor, State]:
        """All outputs (S, B, M), and the layer's last state.

        Args:
            source: (S, B) ids.
            lengths: (B,) integers, how many of each row are valid.
        """
        return self.layer(dropout(self.embedding(source), self.dropout, self.training), lengths=lengths)


class RecurrentDecoder(Module):
    """From tokens to the logits of the next ones: an embedding, a cell, and an output layer.

    It is a cell itself, from tokens (N,) to logits (N, V), which is what decoding steps through; its state is the pair
    (state of the cell, memory), where the memory is None for a cell without attention.

    Args:
        embedding: ids (...) to (..., E), any function.
        cell: any cell, or :class:`BahdanauCell` or :class:`LuongCell`, which then read the encoder's outputs.
        output: the cell's output (..., O) to logits (..., V), any function.
        dropout: the probability of dropping an element of an embedded token, in training.

    Set the attribute ``unroll`` to record every step on the tape, as in :class:`Recurrent`.

    Raises:
        DTypeError: ``cell`` is no cell.
        ValueError: a probability outside [0, 1].

    >>> import tinyseq as ts
    >>> decoder = ts.nn.RecurrentDecoder(ts.nn.Embedding(20, 3), ts.nn.GRUCell(3, 4), ts.nn.Linear(4, 20))
    >>> logits, (h, memory) = decoder(ts.tensor([1, 2]), (ts.zeros((2, 4)), None))
    >>> logits.shape, h.shape
    ((2, 20), (2, 4))
    """

    unroll = False

    def __init__(
        self,
        embedding: Callable[[Any], Tensor],
        cell: Any,
        output: Callable[[Tensor], Tensor],
        dropout: float = 0.0,
    ) -> None:
        if not isinstance(cell, _AttentionCell):
            checked_cell(cell, "RecurrentDecoder")
        self.embedding = embedding
        self.cell = cell
        self.output = output
        self.dropout = checked_probability(dropout, "dropout")

    @property
    def attends(self) -> bool:
        """Whether the cell reads a memory."""
        return isinstance(self.cell, _AttentionCell)

    def begin(self, outputs: Tensor | None, state: State, batch: int, lengths: Any = None) -> State:
        """The state before the first token.

        Args:
            outputs: (S, B, M), what the encoder put out; not looked at without attention.
            state: that of the cell (of an attention cell, of the cell inside it); None asks the cell.
            batch: B.
            lengths: (B,) integers, how many of the outputs of each row are valid.

        Raises:
            ShapeError: an attention cell without outputs.
        """
        cell = self.cell.cell if self.attends else self.cell
        state = cell.initial_state(batch) if state is None else state
        if not self.attends:
            return state, None
        if outputs is None:
            raise ShapeError(f"{type(self.cell).__name__} reads an encoder's outputs, but the encoder gave none")
        memory = self.cell.attention.remember(as_tensor(outputs).transpose(0, 1), lengths=lengths)
        return self.cell.state_from(state, batch), memory

    def _bound(self, memory: Memory | None) -> Any:
        return self.cell.over(memory, need_weights=True) if self.attends else self.cell

    def _split(self, output: Any) -> tuple[Tensor, Tensor | None]:
        return output if self.attends else (output, None)

    def __call__(self, tokens: Operand, state: State) -> tuple[Any, State]:
        """One step: logits (N, V), with attention the pair (logits, weights (N, S)); and the next state.

        Args:
            tokens: (N,) integers.
            state: what ``begin`` gave, or this method.
        """
        inner, memory = state
        embedded = dropout(self.embedding(as_tensor(tokens)), self.dropout, self.training)
        output, inner = self._bound(memory)(embedded, inner)
        output, weights = self._split(output)
        logits = self.output(output)
        return (logits if weights is None else (logits, weights)), (inner, memory)

    def force(self, tokens: Operand, state: State, lengths: Any = None) -> tuple[Tensor, Tensor | None]:
        """Teacher forcing: the logits after every token of given sequences, the cell's steps as one compiled loop.

        Args:
            tokens: (T, B) integers, what is fed at each step.
            state: what ``begin`` gave.
            lengths: (B,) integers, how many steps of each row are valid.

        Returns:
            logits (T, B, V), and with attention its weights (T, B, S), else None.
        """
        inner, memory = state
        loop = Recurrent(self._bound(memory))
        loop.unroll = self.unroll
        embedded = dropout(self.embedding(as_tensor(tokens)), self.dropout, self.training)
        ys, _ = loop(embedded, inner, lengths)
        output, weights = self._split(ys)
        return self.output(output), weights

    def schedule(
        self, tokens: Operand, state: State, probability: float, greedy: bool = False, lengths: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        """Scheduled sampling (Bengio et al. 2015): each step is fed the given token, or one of the decoder's own.

        Which of the two, and the number that draws the decoder's token, are decided before the loop, so that it is
        compiled like any other. No gradient passes through the choice of a token. The first step is fed the given one.

        Args:
            tokens: (T, B) integers, the given ones.
            state: what ``begin`` gave.
            probability: of feeding a given token; 1 is teacher forcing.
            greedy: whether the decoder's token is its likeliest, or drawn from its distribution.
            lengths: (B,) integers, how many steps of each row are valid.

        Returns:
            As ``force``.

        Raises:
            ValueError: a probability outside [0, 1].
        """
        checked_probability(probability, "teacher forcing")
        tokens = as_tensor(tokens)
        inner, memory = state
        steps, batch = tokens.shape
        given = random.rand((steps, batch)) < probability  # of no effect on the first step: its token starts as the last one
        chances = None if greedy else random.rand((steps, batch))
        masks = None
        if self.dropout and self.training:
            like = self.embedding(tokens[0])
            masks = dropout(ones((steps, *like.shape), like.dtype), self.dropout)
        own, noise = for_sequence(self._bound(memory), steps, (batch,))

        def step(carry: State, x: Any) -> tuple[State, Any]:
            (inner, last), (token, forced, chance, mask, noise) = carry, x
            embedded = self.embedding(where(forced, token, last))
            output, inner = own(embedded if mask is None else embedded * mask, inner, noise)
            output, weights = self._split(output)
            logits = self.output(output)
            chosen = logits.detach().argmax(-1) if chance is None else drawn(logits.detach(), chance)
            return (inner, chosen.astype(tokens.dtype)), (logits, weights)

        xs = (tokens, given, chances, masks, noise)
        _, (logits, weights) = scan(step, (inner, tokens[0]), xs, lengths=lengths, unroll=self.unroll)
        return logits, weights


def drawn(logits: Tensor, chance: Tensor) -> Tensor:
    """The class at which the running sum of probabilities passes a number from [0, 1): (B, V) and (B,) to (B,)."""
    sums = cumsum(softmax(logits), -1)
    passed = sums <= chance.astype(sums.dtype).unsqueeze(-1) * sums[..., -1:]
    last = logits.shape[-1] - 1  # rounding may put the number at the sum of all
    return passed.astype("int64").sum(-1).clip(0, last)


class Bridge(Module):
    """From an encoder's last state to a decoder's first, of any sizes: ``s_0 = f(W [h_1; ...; h_n] + b)``.

    All parts of the encoder's state, all layers and directions, are joined; each part of the decoder's state is a linear
    map of them with an activation. (Bahdanau et al. 2015 read the backward direction alone.)

    Args:
        in_features: how many features all parts of the encoder's state have together: layers times directions times H,
            twice that for LSTM.
        cell: the decoder's cell (of an attention cell, the one inside): it tells structure and sizes.
        activation: f.
        dtype: of the weights.

    Raises:
        DTypeError: ``cell`` is no cell.

    >>> import tinyseq as ts
    >>> bridge = ts.nn.Bridge(2 * 8, ts.nn.LSTMCell(3, 4))
    >>> h, c = bridge(ts.zeros((2, 5, 8)))  # the state of a bidirectional GRU
    >>> h.shape, c.shape
    ((5, 4), (5, 4))
    """

    def __init__(
        self, in_features: int, cell: Any, activation: Callable[[Tensor], Tensor] = tanh, dtype: Any = float32
    ) -> None:
        leaves, self._structure = flatten(checked_cell(cell, "Bridge").initial_state(1))
        self.in_features = in_features
        self.maps = [Linear(in_features, leaf.shape[-1], dtype=dtype) for leaf in leaves]
        self.activation = activation

    def __call__(self, state: State) -> State:
        """The decoder's first state.

        Args:
            state: tensors of one batch in any structure, each (layers and directions, B, H) or (B, H).

        Raises:
            ShapeError: parts of other shapes, or not of ``in_features`` together.
        """
        parts = []
        for part in map(as_tensor, flatten(state)[0]):
            if part.ndim not in (2, 3):
                raise ShapeError(f"Bridge takes states (L, B, H) or (B, H), got shape {part.shape}")
            parts.append(part if part.ndim == 2 else part.transpose(0, 1).flatten(1))
        found = sum(part.shape[-1] for part in parts)
        if found != self.in_features:
            raise ShapeError(f"Bridge was made for {self.in_features} features of an encoder's state, got {found}")
        joined = concatenate(parts, -1)
        return self._structure.unflatten([self.activation(layer(joined)) for layer in self.maps])


class EncoderDecoder(Module):
    """Any encoder and any decoder, from teacher forcing to beam search.

    Args:
        encoder: ``encoder(source, lengths=lengths) -> (outputs, state)``, time first: :class:`RecurrentEncoder`,
            :class:`SelfAttentionEncoder`, or nn.LSTM, nn.GRU ... for a source of vectors. outputs (S, B, M) may be None
            without attention; a state of None leaves it to the decoder.
        decoder: :class:`RecurrentDecoder`, :class:`SelfAttentionDecoder`, or anything with their methods.
        start: the token that the decoder is fed first.
        end: the token that ends a target.
        bridge: from the encoder's last state to the first one of the decoder's cell, such as :class:`Bridge`. Without
            one the state is handed over as it is: layer by layer to a :class:`StackedCell`, or from one layer to a cell.
        batch_first: whether sources, targets, logits and weights are (B, S, ...) and (B, T, ...), not time first.

    >>> import tinyseq as ts
    >>> encoder = ts.nn.RecurrentEncoder(ts.nn.Embedding(20, 3), ts.nn.GRU(3, 4, bidirectional=True))
    >>> attention = ts.nn.AdditiveAttention(query_size=5, key_size=8, hidden_size=6)
    >>> cell = ts.nn.BahdanauCell(ts.nn.GRUCell(3 + 8, 5), attention)
    >>> decoder = ts.nn.RecurrentDecoder(ts.nn.Embedding(30, 3), cell, ts.nn.Linear(5 + 8, 30))
    >>> model = ts.nn.EncoderDecoder(encoder, decoder, start=1, end=2, bridge=ts.nn.Bridge(8, cell.cell))
    >>> sources, targets = ts.tensor([[5, 6], [7, 0]]), ts.tensor([[4, 9], [8, 2], [2, 0]])
    >>> logits, weights = model(sources, targets, source_lengths=[2, 1])
    >>> logits.shape, weights.shape
    ((3, 2, 30), (3, 2, 2))
    >>> ts.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0).backward()
    >>> model.beam_search(sources, [2, 1], max_length=6, beams=3).tokens.shape[:2]
    (2, 1)
    """

    def __init__(
        self,
        encoder: Any,
        decoder: Any,
        start: int,
        end: int,
        bridge: Callable[[State], State] | None = None,
        batch_first: bool = False,
    ) -> None:
        if getattr(encoder, "batch_first", False):
            raise ValueError(
                "EncoderDecoder runs its encoder time first; make it with batch_first=False, and EncoderDecoder with "
                "batch_first=True if inputs are"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.start = start
        self.end = end
        self.bridge = bridge
        self.batch_first = batch_first

    def encode(self, source: Operand, lengths: Any = None) -> State:
        """The decoder's state before the first token.

        Args:
            source: (S, B) ids, or what else the encoder takes.
            lengths: (B,) integers, how many steps of each row are valid.

        Raises:
            ShapeError: an empty batch, lengths that do not fit, or a state that the decoder cannot take over.
        """
        source = as_tensor(source)
        if source.ndim < 2 or 0 in source.shape[:2]:
            layout = "(B, S, ...)" if self.batch_first else "(S, B, ...)"
            raise ShapeError(f"EncoderDecoder takes a source {layout} with at least one step and row, got {source.shape}")
        source = source.transpose(0, 1) if self.batch_first else source
        batch = source.shape[1]
        if lengths is not None:
            rows = len(checked_lengths(lengths, source.shape[0], "EncoderDecoder"))
            if rows != batch:
                raise ShapeError(f"EncoderDecoder got lengths for {rows} rows and a source of {batch}")
        outputs, state = self.encoder(source, lengths=lengths)
        if state is not None and self.bridge is not None:
            state = self.bridge(state)
        elif state is not None:
            cell = self.decoder.cell
            state = _handed_over(state, cell.cell if isinstance(cell, _AttentionCell) else cell, batch)
        return self.decoder.begin(outputs, state, batch, lengths)

    def __call__(
        self,
        source: Operand,
        targets: Operand,
        source_lengths: Any = None,
        target_lengths: Any = None,
        teacher_forcing: float = 1.0,
        greedy: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits for every token of the targets, each step being fed the target before it.

        Args:
            source: (S, B) ids, or what else the encoder takes.
            targets: (T, B) ids, the end token among them; padding is any id.
            source_lengths: (B,) integers, how many steps of the source are valid.
            target_lengths: (B,) integers, how many targets are valid, the end token included; logits after that are of
                no meaning.
            teacher_forcing: the probability that a step is fed the target, and not a token of the decoder's own:
                scheduled sampling (Bengio et al. 2015). See :meth:`RecurrentDecoder.schedule`.
            greedy: whether such a token is the likeliest, or drawn.

        Returns:
            logits (T, B, V), and with attention its weights (T, B, S), else None.

        Raises:
            ShapeError, DTypeError: inputs or lengths that do not fit.
        """
        state = self.encode(source, source_lengths)
        targets = as_tensor(targets)
        targets = targets.transpose(0, 1) if self.batch_first and targets.ndim == 2 else targets
        batch = as_tensor(source).shape[0 if self.batch_first else 1]
        if targets.ndim != 2 or not targets.shape[0] or targets.shape[1] != batch:
            layout = "(B, T)" if self.batch_first else "(T, B)"
            raise ShapeError(f"EncoderDecoder takes targets {layout} with T >= 1 and B = {batch}, got {targets.shape}")
        if targets.dtype.kind not in "iu":
            raise DTypeError(f"EncoderDecoder takes integer ids as targets, got dtype {targets.dtype}")
        fed = concatenate([targets[:1] * 0 + self.start, targets[:-1]])
        if teacher_forcing == 1:
            logits, weights = self.decoder.force(fed, state, target_lengths)
        else:
            logits, weights = self.decoder.schedule(fed, state, teacher_forcing, greedy, target_lengths)
        if self.batch_first:
            return logits.transpose(0, 1), None if weights is None else weights.transpose(0, 1)
        return logits, weights

    def greedy_search(self, source: Operand, lengths: Any = None, max_length: int = 100, **options: Any) -> Decoded:
        """The likeliest token at every step: see :func:`tinyseq.nn.greedy_search` for options and result (batch first)."""
        return self._decoded(decoding.greedy_search, source, lengths, max_length, options)

    def sample(self, source: Operand, lengths: Any = None, max_length: int = 100, **options: Any) -> Decoded:
        """Tokens drawn at random: see :func:`tinyseq.nn.sample` for options and result (batch first)."""
        return self._decoded(decoding.sample, source, lengths, max_length, options)

    def beam_search(self, source: Operand, lengths: Any = None, max_length: int = 100, **options: Any) -> Decoded:
        """The best sequences of a beam: see :func:`tinyseq.nn.beam_search` for options and result (batch first)."""
        return self._decoded(decoding.beam_search, source, lengths, max_length, options)

    def _decoded(
        self, search: Callable[..., Decoded], source: Operand, lengths: Any, max_length: int, options: dict[str, Any]
    ) -> Decoded:
        with no_grad():
            state = self.encode(source, lengths)
            batch = as_tensor(source).shape[0 if self.batch_first else 1]
            start = as_tensor([self.start] * batch)
            return search(self.decoder, state, start, self.end, max_length, **options)


def _handed_over(state: State, cell: Any, batch: int) -> State:
    """An encoder's last state as the first one of a cell, which has the same shapes."""
    wanted = cell.initial_state(batch)
    shapes = [leaf.shape for leaf in flatten(wanted)[0]]
    depths = {leaf.shape[0] if leaf.ndim == 3 else None for leaf in flatten(state)[0]}
    candidates = [state]
    if len(depths) == 1 and (depth := depths.pop()) is not None:
        layers = tuple(tree_map(lambda part, i=i: part[i], state) for i in range(depth))
        candidates += [layers, *layers] if depth == 1 else [layers]
    for candidate in candidates:
        leaves, structure = flatten(candidate)
        if structure == flatten(wanted)[1] and [leaf.shape for leaf in leaves] == shapes:
            return candidate
    raise ShapeError(
        f"the encoder's state of shapes {[leaf.shape for leaf in flatten(state)[0]]} is not one of the decoder's "
        f"{type(cell).__name__}, {shapes}; give bridge=ts.nn.Bridge(in_features, cell)"
    )


# --- schedules of Bengio et al. (2015) --------------------------------------------------------------------------------


def linear_decay(step: int, slope: float, offset: float = 1.0, least: float = 0.0) -> float:
    """``max(least, offset - slope step)``: how often to feed the target after so many steps of training.

    >>> linear_decay(30, slope=0.01)
    0.7
    """
    return max(least, offset - slope * step)


def exponential_decay(step: int, k: float) -> float:
    """``k^step`` with k < 1: how often to feed the target after so many steps of training.

    >>> exponential_decay(2, k=0.5)
    0.25
    """
    return float(k**step)


def inverse_sigmoid_decay(step: int, k: float) -> float:
    """``k / (k + exp(step / k))`` with k >= 1: how often to feed the target after so many steps of training.

    >>> f"{inverse_sigmoid_decay(0, k=9):.2f} {inverse_sigmoid_decay(40, k=9):.2f}"
    '0.90 0.10'
    """
    return k / (k + math.exp(min(step / k, 700.0)))  # beyond that exp overflows, and the quotient is zero anyway
