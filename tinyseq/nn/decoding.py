"""From a decoder to sequences of tokens: the likeliest next token, a random one, or the best of several kept in a beam.

A decoder is a cell from tokens to logits: ``decoder(tokens, state) -> (logits, state)``, where tokens are (N,) integers,
logits are (N, V), and the state is a tensor or nested tuples, lists and dicts of them, rows first; among them may be
caches of attention, which a search leaves as they were given. Instead of logits it may return a pair (logits, weights), such
as attention weights (N, S); these are collected.

Letters: B rows of a batch, T tokens, V tokens in the vocabulary, K beams, N rows that are run at once, S steps of a source.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tinyseq import random
from tinyseq.errors import DTypeError, NonFiniteError, ShapeError
from tinyseq.functions import argsort, cumsum, isnan, log_softmax, repeat, softmax, take_along_axis, topk, where
from tinyseq.nn.attention import AttentionCache
from tinyseq.tape import no_grad
from tinyseq.tensor import Operand, Tensor, as_tensor
from tinyseq.tree import flatten, tree_map

__all__ = ["Decoded", "beam_search", "filter_logits", "greedy_search", "sample"]

State = Any
Decoder = Callable[[Tensor, State], tuple[Any, State]]
Array = np.ndarray[Any, Any]


class Decoded(NamedTuple):
    """Decoded sequences; a beam search gives the N best of each row, as one more axis after the batch.

    Attributes:
        tokens: (B, T) integers. The end token, if it came, is among them; after it there is padding.
        lengths: (B,) integers, how many tokens come before the end.
        scores: (B,), log-probabilities of whole sequences, the end token included; of a beam search, with its length
            normalisation.
        weights: (B, T, S), what the decoder returned beside the logits of each token, zeros after the end; or None.
    """

    tokens: Tensor
    lengths: Tensor
    scores: Tensor
    weights: Tensor | None


def greedy_search(
    decoder: Decoder, state: State, start: Operand, end: int | None, max_length: int, pad: int | None = None
) -> Decoded:
    """Take the likeliest token at every step.

    Args:
        decoder: see the head of this module.
        state: the state before the first token.
        start: the first token to feed: one for all rows, or (B,).
        end: the token that ends a sequence; None if none does.
        max_length: no sequence gets longer; a row that has not ended by then is cut off.
        pad: what stands after the end; ``end`` by default.

    Raises:
        ShapeError: a batch of unknown size, or max_length < 1.
        NonFiniteError: the decoder gave NaN.

    >>> import tinyseq as ts
    >>> def count(tokens, state):  # after each number comes the next
    ...     return ts.one_hot(tokens + 1, 10, "float32"), state
    >>> greedy_search(count, None, start=ts.tensor([2, 4]), end=6, max_length=5).tokens.tolist()
    [[3, 4, 5, 6], [5, 6, 6, 6]]
    """
    return _follow(decoder, state, start, end, max_length, pad, lambda logits: logits.argmax(-1))


def sample(
    decoder: Decoder,
    state: State,
    start: Operand,
    end: int | None,
    max_length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    pad: int | None = None,
) -> Decoded:
    """Draw every token from the decoder's distribution, changed as :func:`filter_logits` says.

    The scores are log-probabilities under the decoder's own distribution. For the other arguments, the result and the
    errors see :func:`greedy_search`; temperature 0 is the same as that.

    >>> import tinyseq as ts
    >>> def coin(tokens, state):
    ...     return ts.zeros((len(tokens), 2)), state
    >>> flips = sample(coin, None, start=ts.tensor([0]), end=None, max_length=100).tokens
    >>> 30 < flips.sum().item() < 70
    True
    """

    def choose(logits: Tensor) -> Tensor:
        return random.categorical(filter_logits(logits, temperature, top_k, top_p))

    if temperature == 0:
        return greedy_search(decoder, state, start, end, max_length, pad)
    return _follow(decoder, state, start, end, max_length, pad, choose)


def filter_logits(logits: Operand, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Logits divided by a temperature, with -inf for the tokens that are not to be drawn.

    Args:
        logits: (..., V).
        temperature: above 1 evens the distribution out, below 1 sharpens it.
        top_k: only the k likeliest tokens (Fan et al. 2018); None, or more than V, for all.
        top_p: of these, only the likeliest whose probabilities together reach p, the token that reaches it included
            (Holtzman et al. 2020); None for all. One token always stays.

    Raises:
        ValueError: a temperature that is not positive, top_k < 1, or top_p not in (0, 1].

    >>> import tinyseq as ts
    >>> filter_logits(ts.tensor([1.0, 3.0, 2.0]), temperature=0.5, top_k=2).tolist()
    [-inf, 6.0, 4.0]
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is positive, got {temperature}; the limit 0 is greedy_search")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k keeps at least one token, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is a probability in (0, 1], got {top_p}")
    logits = as_tensor(logits)
    logits = logits if temperature == 1 else logits / temperature
    if top_k is None and top_p in (None, 1):
        return logits
    order = argsort(logits, -1, descending=True)
    rank = argsort(order, -1)  # the inverse permutation: the place of each token in the order
    if top_k is not None:
        logits = where(rank < top_k, logits, -math.inf)
    if top_p is not None and top_p < 1:
        likeliest = take_along_axis(softmax(logits), order, -1)
        before = cumsum(likeliest, -1) - likeliest
        logits = where(take_along_axis(before < top_p, rank, -1), logits, -math.inf)
    return logits


def beam_search(
    decoder: Decoder,
    state: State,
    start: Operand,
    end: int | None,
    max_length: int,
    beams: int = 4,
    length_penalty: float = 0.6,
    n_best: int = 1,
    early_stopping: bool = False,
    pad: int | None = None,
) -> Decoded:
    """Keep the K likeliest beginnings of each row at every step, and return the best sequences that they led to.

    A sequence y of length n (its end token counted) has the score of Wu et al. (2016)::

        score(y) = log P(y) / ((5 + n) / 6)^length_penalty

    A sequence is complete when its end token is among the K best continuations, or at ``max_length``. A part of the state
    that the decoder returns as the very tensor that it was given, such as an encoder's output, is taken for a constant
    of its row: it is stretched to the beams once and never moved again.

    Args:
        decoder: see the head of this module.
        state: the state before the first token, of B rows.
        start: the first token to feed: one for all rows, or (B,).
        end: the token that ends a sequence; None if none does.
        max_length: no sequence gets longer.
        beams: K.
        length_penalty: 0 compares log-probabilities, which favours short sequences; more favours longer ones.
        n_best: how many sequences of each row are returned, best first, at most K. If there are fewer, the rest have
            length 0 and score -inf.
        early_stopping: finish a row when K sequences are complete; otherwise when no other can get better than those
            that will be returned.
        pad: what stands after the end; ``end`` by default.

    Returns:
        tokens (B, N, T), lengths (B, N), scores (B, N) and weights (B, N, T, S) with N = n_best.

    Raises:
        ShapeError: a batch of unknown size, or max_length, beams or n_best out of range.
        ValueError: a negative length_penalty.
        NonFiniteError: the decoder gave NaN.

    >>> import tinyseq as ts
    >>> table = ts.tensor([[0.0, 0.6, 0.4], [0.1, 0.45, 0.45], [0.9, 0.05, 0.05]])  # from each token to the next; 0 ends
    >>> def decoder(tokens, state):
    ...     return ts.log(table[tokens] + 1e-9), state
    >>> best = beam_search(decoder, None, start=ts.tensor([0]), end=0, max_length=4, beams=2)
    >>> best.tokens.tolist(), f"{best.scores.exp().item():.2f}"  # the likelier beginning, 1, leads nowhere
    ([[[2, 0]]], '0.39')
    """
    if beams < 1 or not 1 <= n_best <= beams:
        raise ShapeError(f"beam_search returns 1 to {beams} sequences of {beams} beams, got n_best={n_best}")
    if length_penalty < 0:
        raise ValueError(f"a length_penalty is not negative, got {length_penalty}")
    with no_grad():
        tokens, batch = _first(start, state, max_length)
        return _Beams(batch, beams, n_best, end, max_length, length_penalty, early_stopping).run(decoder, tokens, state, pad)


class _Beams:
    """The beams and the complete sequences of every row.

    What a beam has done is kept as two tables a step: the token that it took, and the beam that it came from. A sequence
    is known by where it ends and is read off backwards in the end.
    """

    def __init__(
        self,
        batch: int,
        beams: int,
        n_best: int,
        end: int | None,
        max_length: int,
        length_penalty: float,
        early_stopping: bool,
    ) -> None:
        self.batch, self.beams, self.n_best, self.end = batch, beams, n_best, end
        self.max_length, self.early_stopping = max_length, early_stopping
        self.penalties = ((5 + np.arange(max_length + 1)) / 6) ** length_penalty
        self.live = np.full((batch, beams), -np.inf)  # log-probabilities
        self.live[:, 0] = 0.0  # all beams begin alike, so only one counts
        self.complete = np.full((batch, beams), -np.inf)  # scores, best first
        self.last = np.zeros((batch, beams, 2), np.int64)  # of these: how many tokens before the end, and on which beam
        self.closed = np.zeros(batch, bool)
        self.taken: list[Array] = []  # at each step, (B, K)
        self.origins: list[Array] = []
        self.weights: list[Array] = []

    def run(self, decoder: Decoder, tokens: Tensor, state: State, pad: int | None) -> Decoded:
        leaves, structure = flatten(_opened(state))
        leaves = [repeat(as_tensor(leaf), self.beams, 0) for leaf in leaves]
        constant = dict(zip(structure.paths(), leaves, strict=True))
        tokens = repeat(tokens, self.beams, 0)
        while True:
            logits, weights, state = _step(decoder, tokens, _closed(structure.unflatten(leaves)))
            if weights is not None:
                self.weights.append(weights.numpy().reshape(self.batch, self.beams, *weights.shape[1:]))
            self._extend(log_softmax(logits.astype("float64")))
            if self.closed.all() or len(self.taken) == self.max_length:
                return self._result(pad)
            rows = as_tensor((np.arange(self.batch)[:, None] * self.beams + self.origins[-1]).reshape(-1))
            leaves, structure = flatten(_opened(state))
            named = list(zip(structure.paths(), leaves, strict=True))
            constant = {path: leaf for path, leaf in named if path in constant and constant[path].data is leaf.data}
            leaves = [leaf if constant.get(path) is leaf else leaf[rows] for path, leaf in named]
            tokens = as_tensor(self.taken[-1].reshape(-1))

    def _extend(self, log_p: Tensor) -> None:
        """Every beam by every token, of which the best go on."""
        vocabulary = log_p.shape[-1]
        totals = (as_tensor(self.live).unsqueeze(-1) + log_p.reshape(self.batch, self.beams, vocabulary)).flatten(1)
        # A beam ends in one way only, so that among twice as many there are enough that go on.
        best, where_ = (x.numpy() for x in topk(totals, min(2 * self.beams, totals.shape[1])))
        origins, tokens = where_ // vocabulary, where_ % vocabulary
        length = len(self.taken) + 1
        ends = np.zeros(tokens.shape, bool) if self.end is None else tokens == self.end
        first = np.arange(tokens.shape[1]) < self.beams
        done = np.where(ends & first & ~self.closed[:, None], best, -np.inf)
        self._complete(done / self.penalties[length], length - 1, origins)

        order = np.argsort(ends, 1, kind="stable")[:, : self.beams]  # those that go on, best first
        on = np.take_along_axis(np.where(ends, -np.inf, best), order, 1)
        missing = self.beams - on.shape[1]  # a vocabulary of one
        self.live = np.pad(on, [(0, 0), (0, missing)], constant_values=-np.inf)
        self.taken.append(np.pad(np.take_along_axis(tokens, order, 1), [(0, 0), (0, missing)]))
        self.origins.append(np.pad(np.take_along_axis(origins, order, 1), [(0, 0), (0, missing)]))

        if self.early_stopping:
            self.closed |= np.isfinite(self.complete[:, -1])
        # Log-probabilities only fall, so this is the best that a live beam can still reach.
        within_reach = self.live.max(1) / self.penalties[-1]
        self.closed |= self.complete[:, self.n_best - 1] >= within_reach
        if length == self.max_length:
            left = np.where(self.closed[:, None], -np.inf, self.live)
            self._complete(left / self.penalties[length], length, np.broadcast_to(np.arange(self.beams), left.shape))

    def _complete(self, scores: Array, length: int, beams: Array) -> None:
        """Let sequences in among the best that are complete."""
        order = np.argsort(-np.concatenate([self.complete, scores], 1), 1, kind="stable")[:, : self.beams]
        last = np.stack([np.full(beams.shape, length), beams], -1)
        self.complete = np.take_along_axis(np.concatenate([self.complete, scores], 1), order, 1)
        self.last = np.take_along_axis(np.concatenate([self.last, last], 1), order[..., None], 1)

    def _result(self, pad: int | None) -> Decoded:
        scores = self.complete[:, : self.n_best]
        lengths = np.where(np.isfinite(scores), self.last[:, : self.n_best, 0], 0)
        sequences: list[list[int]] = []
        weights: list[list[Array]] = []
        for row, n in np.ndindex(scores.shape):
            length, beam = lengths[row, n], self.last[row, n, 1]
            ended = bool(np.isfinite(scores[row, n])) and length < len(self.taken)
            tokens = [self.end] if ended else []
            seen = [self.weights[length][row, beam]] if ended and self.weights else []
            for t in range(length - 1, -1, -1):
                tokens.append(int(self.taken[t][row, beam]))
                beam = self.origins[t][row, beam]
                if self.weights:
                    seen.append(self.weights[t][row, beam])
            sequences.append(tokens[::-1])  # type: ignore[arg-type]
            weights.append(seen[::-1])
        longest = max(map(len, sequences), default=0)
        tokens_ = np.full((len(sequences), longest), _padding(self.end, pad), np.int64)
        for row, sequence in enumerate(sequences):
            tokens_[row, : len(sequence)] = sequence
        collected = None
        if self.weights:
            collected = np.zeros((len(sequences), longest, *self.weights[0].shape[2:]), self.weights[0].dtype)
            for row, seen in enumerate(weights):
                if seen:
                    collected[row, : len(seen)] = seen
            collected = collected.reshape(*scores.shape, *collected.shape[1:])
        return Decoded(
            as_tensor(tokens_.reshape(*scores.shape, longest)),
            as_tensor(lengths),
            as_tensor(scores),
            None if collected is None else as_tensor(collected),
        )


def _follow(
    decoder: Decoder,
    state: State,
    start: Operand,
    end: int | None,
    max_length: int,
    pad: int | None,
    choose: Callable[[Tensor], Tensor],
) -> Decoded:
    """One sequence a row, token by token."""
    with no_grad():
        tokens, batch = _first(start, state, max_length)
        state = _closed(_opened(state))
        going = np.ones(batch, bool)
        lengths = np.zeros(batch, np.int64)
        scores = np.zeros(batch)
        columns: list[Array] = []
        seen: list[Array] = []
        while len(columns) < max_length and (going.any() or not columns):
            logits, weights, state = _step(decoder, tokens, state)
            chosen = choose(logits)
            gained = take_along_axis(log_softmax(logits.astype("float64")), chosen.unsqueeze(-1), -1).squeeze(-1).numpy()
            scores += np.where(going, gained, 0.0)
            column = np.where(going, chosen.numpy(), _padding(end, pad))
            if weights is not None:
                seen.append(np.where(going.reshape(-1, *(1,) * (weights.ndim - 1)), weights.numpy(), 0))
            columns.append(column)
            if end is not None:
                going &= column != end
            lengths += going
            tokens = chosen
        return Decoded(
            as_tensor(np.stack(columns, 1).astype(np.int64)),
            as_tensor(lengths),
            as_tensor(scores),
            as_tensor(np.stack(seen, 1)) if seen else None,
        )


class _Growing(NamedTuple):
    """The tensors of an :class:`AttentionCache`."""

    keys: Tensor | None
    values: Tensor | None


class _Fixed(NamedTuple):
    """Those of one that is fixed."""

    keys: Tensor | None
    values: Tensor | None


def _opened(state: State) -> State:
    """The state with caches as tuples, whose tensors are leaves like all others."""

    def opened(leaf: Any) -> Any:
        return (_Fixed if leaf.fixed else _Growing)(leaf.keys, leaf.values) if isinstance(leaf, AttentionCache) else leaf

    return tree_map(opened, state)


def _closed(state: State) -> State:
    """The state with caches of its own."""

    def closed(leaf: Any) -> Any:
        if not isinstance(leaf, _Fixed | _Growing):
            return leaf
        cache = AttentionCache(isinstance(leaf, _Fixed))
        cache.keys, cache.values = leaf
        return cache

    return tree_map(closed, state, is_leaf=lambda leaf: isinstance(leaf, _Fixed | _Growing))


def _first(start: Operand, state: State, max_length: int) -> tuple[Tensor, int]:
    """The first token of every row, and how many rows there are."""
    if max_length < 1:
        raise ShapeError(f"decoding needs max_length >= 1, got {max_length}")
    tokens = as_tensor(start)
    if tokens.dtype.kind not in "iu" or tokens.ndim > 1:
        error = ShapeError if tokens.ndim > 1 else DTypeError
        raise error(f"start is an integer or one a row, got {tokens.dtype} of shape {tokens.shape}")
    leaves = [as_tensor(leaf) for leaf in flatten(_opened(state))[0]]
    rows = {leaf.shape[:1] for leaf in leaves} | ({tokens.shape} if tokens.ndim else set())
    if len(rows) != 1 or () in rows:
        found = sorted(size for shape in rows for size in shape)
        raise ShapeError(
            f"decoding needs one number of rows in the state and in start, got {found or 'none'}; give start as (B,)"
        )
    ((batch,),) = rows
    return (tokens if tokens.ndim else as_tensor(np.full(batch, tokens.item(), np.int64))), batch


def _step(decoder: Decoder, tokens: Tensor, state: State) -> tuple[Tensor, Tensor | None, State]:
    output, state = decoder(tokens, state)
    logits, weights = output if isinstance(output, tuple) else (output, None)
    if logits.ndim != 2 or logits.shape[0] != tokens.shape[0]:
        raise ShapeError(f"a decoder returns logits (N, V) for {tokens.shape[0]} tokens, got shape {logits.shape}")
    if bool(isnan(logits).any()):
        raise NonFiniteError("the decoder gave NaN among its logits, so there is no best token; look for it in the weights")
    return logits, weights, state


def _padding(end: int | None, pad: int | None) -> int:
    return pad if pad is not None else 0 if end is None else end
