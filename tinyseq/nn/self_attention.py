"""An encoder and a decoder of attention alone, for :class:`EncoderDecoder` and for decoding (Vaswani et al. 2017).

Letters: S steps of the source, T steps of the target, B rows of a batch, E features, V tokens in the vocabulary, N rows that
a decoder is fed at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyseq import random
from tinyseq.errors import ShapeError
from tinyseq.functions import stack as stacked
from tinyseq.functions import where
from tinyseq.nn.cells import checked_probability
from tinyseq.nn.module import Module
from tinyseq.nn.seq2seq import drawn
from tinyseq.nn.transformer import DecoderCache
from tinyseq.scan import checked_lengths
from tinyseq.tensor import Operand, Tensor, as_tensor
from tinyseq.tree import tree_map

__all__ = ["SelfAttentionDecoder", "SelfAttentionEncoder", "SelfAttentionState"]


class SelfAttentionEncoder(Module):
    """Ids to vectors, positions added to them, and a stack of attention layers over them.

    Args:
        embedding: ids (S, B) to (S, B, E), any function.
        positions: such as :class:`SinusoidalPositionalEncoding`: (S, B, E) to (S, B, E).
        stack: :class:`TransformerEncoder`, or what is called as it is.

    Raises:
        ValueError: a part that takes the batch first.

    >>> import tinyseq as ts
    >>> stack = ts.nn.TransformerEncoder(ts.nn.TransformerEncoderLayer(8, 2, 16), num_layers=2)
    >>> encoder = ts.nn.SelfAttentionEncoder(ts.nn.Embedding(20, 8), ts.nn.SinusoidalPositionalEncoding(8), stack)
    >>> outputs, state = encoder(ts.tensor([[1, 2], [3, 0]]), lengths=[2, 1])
    >>> outputs.shape, state
    ((2, 2, 8), None)
    """

    def __init__(self, embedding: Callable[[Any], Tensor], positions: Callable[..., Tensor], stack: Any) -> None:
        _check_time_first(self, positions, stack)
        self.embedding = embedding
        self.positions = positions
        self.stack = stack

    def __call__(self, source: Operand, lengths: Any = None) -> tuple[Tensor, None]:
        """All outputs (S, B, E), and None: there is no last state to hand over.

        Args:
            source: (S, B) ids.
            lengths: (B,) integers, how many of each row are valid: no step looks at the others.
        """
        x = self.positions(self.embedding(source))
        return self.stack(x, src_key_padding_mask=_hidden(lengths, len(x))), None


class SelfAttentionState(NamedTuple):
    """What a :class:`SelfAttentionDecoder` knows of its targets so far, and of what it reads.

    Attributes:
        cache: what each layer keeps.
        hidden: (B, S) booleans, True where the encoder's outputs are padding, or None.
    """

    cache: list[DecoderCache]
    hidden: Tensor | None


class SelfAttentionDecoder(Module):
    """From tokens to the logits of the next ones: an embedding, positions, a stack of attention layers, and an output layer.

    It is a cell from tokens (N,) to logits (N, V), which is what decoding steps through: each step computes the keys and
    values of its own token alone and keeps them in its state. There are no weights beside the logits.

    Args:
        embedding: ids (...) to (..., E), any function.
        positions: such as :class:`SinusoidalPositionalEncoding`: called with vectors (T, B, E) and ``start``, the place of
            the first of them.
        stack: :class:`TransformerDecoder`, or what has its methods.
        output: (..., E) to logits (..., V), any function.

    Raises:
        ValueError: a part that takes the batch first.

    >>> import tinyseq as ts
    >>> nn, positions = ts.nn, ts.nn.SinusoidalPositionalEncoding(8)
    >>> layers = nn.TransformerEncoderLayer(8, 2, 16), nn.TransformerDecoderLayer(8, 2, 16)
    >>> encoder = nn.SelfAttentionEncoder(nn.Embedding(20, 8), positions, nn.TransformerEncoder(layers[0], 2))
    >>> decoder = nn.SelfAttentionDecoder(nn.Embedding(9, 8), positions, nn.TransformerDecoder(layers[1], 2), nn.Linear(8, 9))
    >>> model = nn.EncoderDecoder(encoder, decoder, start=1, end=2)
    >>> sources, targets = ts.tensor([[5, 6], [7, 0]]), ts.tensor([[4, 8], [8, 2], [2, 0]])
    >>> logits, _ = model(sources, targets, source_lengths=[2, 1])
    >>> logits.shape
    (3, 2, 9)
    >>> model.eval().beam_search(sources, [2, 1], max_length=6, beams=3).tokens.shape[:2]
    (2, 1)
    """

    def __init__(
        self,
        embedding: Callable[[Any], Tensor],
        positions: Callable[..., Tensor],
        stack: Any,
        output: Callable[[Tensor], Tensor],
    ) -> None:
        _check_time_first(self, positions, stack)
        self.embedding = embedding
        self.positions = positions
        self.stack = stack
        self.output = output

    def begin(self, outputs: Tensor | None, state: Any, batch: int, lengths: Any = None) -> SelfAttentionState:
        """The state before the first token; the keys and values of the encoder's outputs are computed here.

        Args:
            outputs: (S, B, E), what the encoder put out.
            state: None; the encoder's last state is of no use here.
            batch: B.
            lengths: (B,) integers, how many of the outputs of each row are valid.

        Raises:
            ShapeError: no outputs, or those of another batch.
            ValueError: a state.
        """
        if state is not None:
            raise ValueError("SelfAttentionDecoder takes over no state; let the encoder return (outputs, None)")
        if outputs is None or outputs.shape[1] != batch:
            found = "none" if outputs is None else f"shape {outputs.shape}"
            raise ShapeError(f"SelfAttentionDecoder reads an encoder's outputs (S, {batch}, E), got {found}")
        return SelfAttentionState(self.stack.new_cache(outputs), _hidden(lengths, len(outputs)))

    def __call__(self, tokens: Operand, state: SelfAttentionState) -> tuple[Tensor, SelfAttentionState]:
        """One step: logits (N, V) and the next state; the given one stays as it is.

        Args:
            tokens: (N,) integers.
            state: what ``begin`` gave, or this method.
        """
        logits, state = self._run(as_tensor(tokens).unsqueeze(0), state)
        return logits[0], state

    def force(self, tokens: Operand, state: SelfAttentionState, lengths: Any = None) -> tuple[Tensor, None]:
        """Teacher forcing: the logits (T, B, V) after every token of given sequences, all steps at once; and None.

        Args:
            tokens: (T, B) integers, what is fed at each step.
            state: what ``begin`` gave.
            lengths: of no effect, since no step looks at later ones.
        """
        return self._run(as_tensor(tokens), state)[0], None

    def schedule(
        self, tokens: Operand, state: SelfAttentionState, probability: float, greedy: bool = False, lengths: Any = None
    ) -> tuple[Tensor, None]:
        """Scheduled sampling, step by step: see :meth:`RecurrentDecoder.schedule`."""
        checked_probability(probability, "teacher forcing")
        tokens = as_tensor(tokens)
        given = random.rand(tokens.shape) < probability
        chances = None if greedy else random.rand(tokens.shape)
        logits: list[Tensor] = []
        last = tokens[0]
        for step in range(len(tokens)):
            fed = where(given[step], tokens[step], last) if step else last
            y, state = self(fed, state)
            logits.append(y)
            chosen = y.detach().argmax(-1) if chances is None else drawn(y.detach(), chances[step])
            last = chosen.astype(tokens.dtype)
        return stacked(logits), None

    def _run(self, tokens: Tensor, state: SelfAttentionState) -> tuple[Tensor, SelfAttentionState]:
        """Logits (T, N, V) for tokens (T, N) that come after those of the state, and the state after them."""
        cache = tree_map(copy.copy, state.cache)
        x = self.positions(self.embedding(tokens), start=len(cache[0].target))
        y = self.stack(x, None, memory_key_padding_mask=state.hidden, tgt_is_causal=True, cache=cache)
        return self.output(y), state._replace(cache=cache)


def _hidden(lengths: Any, steps: int) -> Tensor | None:
    """(B, S), True where there is padding."""
    if lengths is None:
        return None
    return as_tensor(np.arange(steps) >= checked_lengths(lengths, steps, "SelfAttentionEncoder")[:, None])


def _check_time_first(owner: Module, *parts: Any) -> None:
    for part in parts:
        for module in part.modules() if isinstance(part, Module) else ():
            if getattr(module, "batch_first", False):
                raise ValueError(
                    f"{type(owner).__name__} runs time first; make its {type(module).__name__} with batch_first=False"
                )
