"""The Transformer (Vaswani et al. 2017): its layers and stacks, with PyTorch's arguments and names of weights.

Letters: B rows of a batch, S steps of the source, T steps of the target, E features, F units of the feed-forward net, H
heads. Sequences are (S, B, E), or (B, S, E) with ``batch_first``, or (S, E) without a batch. Masks are those of
:class:`MultiheadAttention`: in a boolean one, True hides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from tinyseq import functions
from tinyseq.creation import full
from tinyseq.errors import ShapeError
from tinyseq.nn import functional, init
from tinyseq.nn.attention import AttentionCache, MultiheadAttention
from tinyseq.nn.layers import Dropout, LayerNorm, Linear
from tinyseq.nn.module import Module
from tinyseq.tensor import Operand, Tensor, as_tensor, float32

__all__ = [
    "DecoderCache",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]


class DecoderCache(NamedTuple):
    """What one :class:`TransformerDecoderLayer` keeps of a target that comes in pieces, and of the encoder's output."""

    target: AttentionCache
    memory: AttentionCache

    def select(self, rows: Operand) -> None:
        """Keep these rows of the batch, in this order."""
        for cache in self:
            cache.select(rows)


Activation = str | Callable[[Any], Tensor]
ACTIVATIONS: dict[str, Callable[[Any], Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}
M = TypeVar("M", bound=Module)


class _Layer(Module):
    """What the two kinds of layers share: a residual connection and a normalisation around each part."""

    attentions: ClassVar[tuple[str, ...]] = ("self_attn",)
    self_attn: MultiheadAttention
    norm1: LayerNorm
    norm2: LayerNorm

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: Any = float32,
    ) -> None:
        for name in self.attentions:
            setattr(self, name, MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype))
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype)
        self.norm_first = norm_first
        for place in range(1, len(self.attentions) + 2):
            setattr(self, f"norm{place}", LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype))
        if isinstance(activation, str) and activation not in ACTIVATIONS:
            raise ValueError(f"activation is 'relu', 'gelu' or a function, got {activation!r}")
        self.activation = ACTIVATIONS[activation] if isinstance(activation, str) else activation

    def _residual(self, x: Tensor, norm: LayerNorm, block: Callable[[Tensor], Tensor]) -> Tensor:
        """``x + block(norm(x))`` with ``norm_first``, else ``norm(x + block(x))``."""
        if self.norm_first:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


class TransformerEncoderLayer(_Layer):
    """Self-attention and a feed-forward net, each with a residual connection and layer normalisation::

        x = norm1(x + attention(x, x, x))         # norm_first=False, as published
        y = norm2(x + W_2 f(W_1 x + b_1) + b_2)

        x = x + attention(norm1(x), ...)          # norm_first=True (Xiong et al. 2020)
        y = x + W_2 f(W_1 norm2(x) + b_1) + b_2

    Args:
        d_model: E.
        nhead: H.
        dim_feedforward: F.
        dropout: the probability of dropping, in training: an attention weight, a unit of the feed-forward net, an
            element of what is added to x.
        activation: f: "relu", "gelu" or a function.
        layer_norm_eps: added to the variance.
        batch_first: whether inputs and outputs are (B, S, E) and not (S, B, E).
        norm_first: whether normalisation comes before attention and feed-forward net or after the sum.
        bias: whether linear maps and normalisations have biases.
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> layer = ts.nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16)
    >>> layer(ts.zeros((5, 3, 8)), is_causal=True).shape
    (5, 3, 8)
    """

    def new_cache(self) -> AttentionCache:
        """An empty cache, for one sequence."""
        return AttentionCache()

    def __call__(
        self,
        src: Operand,
        src_mask: Operand | None = None,
        src_key_padding_mask: Operand | None = None,
        is_causal: bool = False,
        cache: AttentionCache | None = None,
    ) -> Tensor:
        """The sequence (S, B, E), each step informed by those that it may look at.

        Args:
            src: (S, B, E).
            src_mask: (S, S) or (B H, S, S), which step may not look at which.
            src_key_padding_mask: (B, S), which steps are padding.
            is_causal: step i looks at steps 0 to i only, besides what the masks say.
            cache: of the steps before these ones, for a causal sequence that comes in pieces.

        Raises:
            ShapeError, DTypeError: what :class:`MultiheadAttention` raises.
        """

        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x, x, x, src_key_padding_mask, False, src_mask, is_causal=is_causal, cache=cache)[0]

        x = self._residual(as_tensor(src), self.norm1, attend)
        return self._residual(x, self.norm2, self._feed_forward)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to the encoder's output, and a feed-forward net: see :class:`TransformerEncoderLayer`.

    Args:
        d_model: E.
        nhead: H.
        dim_feedforward: F.
        dropout: the probability of dropping, in training.
        activation: of the feed-forward net: "relu", "gelu" or a function.
        layer_norm_eps: added to the variance.
        batch_first: whether inputs and outputs are (B, T, E) and not (T, B, E).
        norm_first: whether normalisation comes before each part or after the sum.
        bias: whether linear maps and normalisations have biases.
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> layer = ts.nn.TransformerDecoderLayer(8, nhead=2, dim_feedforward=16)
    >>> layer(ts.zeros((4, 3, 8)), ts.zeros((5, 3, 8)), tgt_is_causal=True).shape
    (4, 3, 8)
    """

    attentions = ("self_attn", "multihead_attn")
    multihead_attn: MultiheadAttention
    norm3: LayerNorm

    def new_cache(self, memory: Operand | None = None) -> DecoderCache:
        """An empty cache, for one target and one memory; given the memory, it is in the cache already."""
        of_memory = AttentionCache(fixed=True) if memory is None else self.multihead_attn.remember(memory)
        return DecoderCache(AttentionCache(), of_memory)

    def __call__(
        self,
        tgt: Operand,
        memory: Operand | None,
        tgt_mask: Operand | None = None,
        memory_mask: Operand | None = None,
        tgt_key_padding_mask: Operand | None = None,
        memory_key_padding_mask: Operand | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """The target sequence (T, B, E), each step informed by earlier ones and by the memory.

        Args:
            tgt: (T, B, E).
            memory: (S, B, E), the encoder's output; None if the cache holds it.
            tgt_mask: (T, T) or (B H, T, T), which step of the target may not look at which.
            memory_mask: (T, S) or (B H, T, S), which step of the target may not look at which of the memory.
            tgt_key_padding_mask: (B, T), which steps of the target are padding.
            memory_key_padding_mask: (B, S), which steps of the memory are padding.
            tgt_is_causal: step i looks at steps 0 to i of the target only.
            memory_is_causal: step i looks at steps 0 to i of the memory only.
            cache: of the target's steps before these ones, and of the memory; what ``new_cache`` gave.

        Raises:
            ShapeError, DTypeError, ValueError: what :class:`MultiheadAttention` raises.
        """
        memory = None if memory is None else as_tensor(memory)
        own, of_memory = (None, None) if cache is None else cache

        def attend(x: Tensor) -> Tensor:
            return self.self_attn(x, x, x, tgt_key_padding_mask, False, tgt_mask, is_causal=tgt_is_causal, cache=own)[0]

        def look(x: Tensor) -> Tensor:
            masks = (memory_key_padding_mask, False, memory_mask)
            return self.multihead_attn(x, memory, memory, *masks, is_causal=memory_is_causal, cache=of_memory)[0]

        x = self._residual(as_tensor(tgt), self.norm1, attend)
        x = self._residual(x, self.norm2, look)
        return self._residual(x, self.norm3, self._feed_forward)


class TransformerEncoder(Module):
    """A stack of encoder layers.

    Args:
        encoder_layer: the layer; the stack has copies of it, with the same first weights.
        num_layers: how many.
        norm: what is applied to the last layer's output, as is needed with ``norm_first``.

    Raises:
        ShapeError: no layers.

    >>> import tinyseq as ts
    >>> encoder = ts.nn.TransformerEncoder(ts.nn.TransformerEncoderLayer(8, 2, 16), num_layers=3)
    >>> encoder(ts.zeros((5, 3, 8))).shape
    (5, 3, 8)
    """

    def __init__(self, encoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        self.layers: list[Any] = _copies(encoder_layer, num_layers)
        self.norm = norm

    def new_cache(self) -> list[AttentionCache]:
        """An empty cache of each layer, for one sequence that comes in pieces."""
        return [layer.new_cache() for layer in self.layers]

    def __call__(
        self,
        src: Operand,
        mask: Operand | None = None,
        src_key_padding_mask: Operand | None = None,
        is_causal: bool = False,
        cache: list[Any] | None = None,
    ) -> Tensor:
        """(S, B, E) through all layers; the arguments are those of :class:`TransformerEncoderLayer`.

        ``cache`` is what ``new_cache`` gave: a causal sequence may then come in pieces.
        """
        x = as_tensor(src)
        for layer, own in zip(self.layers, _of_layers(cache, self.layers), strict=True):
            x = layer(x, mask, src_key_padding_mask, is_causal, **own)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(Module):
    """A stack of decoder layers.

    Args:
        decoder_layer: the layer; the stack has copies of it, with the same first weights.
        num_layers: how many.
        norm: what is applied to the last layer's output, as is needed with ``norm_first``.

    Raises:
        ShapeError: no layers.

    >>> import tinyseq as ts
    >>> decoder = ts.nn.TransformerDecoder(ts.nn.TransformerDecoderLayer(8, 2, 16), num_layers=3)
    >>> decoder(ts.zeros((4, 3, 8)), ts.zeros((5, 3, 8)), tgt_is_causal=True).shape
    (4, 3, 8)
    """

    def __init__(self, decoder_layer: Module, num_layers: int, norm: Module | None = None) -> None:
        self.layers: list[Any] = _copies(decoder_layer, num_layers)
        self.norm = norm

    def new_cache(self, memory: Operand | None = None) -> list[DecoderCache]:
        """An empty cache of each layer, for one target that comes in pieces and one memory.

        Given the memory, its keys and values are computed here, and calls with the cache take None for it.

        >>> import tinyseq as ts
        >>> decoder = ts.nn.TransformerDecoder(ts.nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0), num_layers=2)
        >>> target, memory = ts.random.randn((3, 1, 8)), ts.random.randn((5, 1, 8))
        >>> cache = decoder.new_cache(memory)
        >>> steps = [decoder(target[t : t + 1], None, tgt_is_causal=True, cache=cache) for t in range(3)]
        >>> ts.allclose(ts.concatenate(steps), decoder(target, memory, tgt_is_causal=True), atol=1e-5)
        True
        """
        return [layer.new_cache(memory) for layer in self.layers]

    def __call__(
        self,
        tgt: Operand,
        memory: Operand | None,
        tgt_mask: Operand | None = None,
        memory_mask: Operand | None = None,
        tgt_key_padding_mask: Operand | None = None,
        memory_key_padding_mask: Operand | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        cache: list[Any] | None = None,
    ) -> Tensor:
        """(T, B, E) through all layers; the arguments are those of :class:`TransformerDecoderLayer`.

        ``cache`` is what ``new_cache`` gave: a causal target may then come in pieces, a step at a time when it is generated.
        """
        x, memory = as_tensor(tgt), None if memory is None else as_tensor(memory)
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        for layer, own in zip(self.layers, _of_layers(cache, self.layers), strict=True):
            x = layer(x, memory, *masks, tgt_is_causal, memory_is_causal, **own)
        return x if self.norm is None else self.norm(x)


class Transformer(Module):
    """An encoder and a decoder of such layers, from vectors to vectors (Vaswani et al. 2017).

    Embeddings, positional encodings and the output layer are not part of it. Matrices start from U(-a, a) with
    a = sqrt(6 / (fan_in + fan_out)), as in PyTorch.

    Args:
        d_model: E.
        nhead: H.
        num_encoder_layers, num_decoder_layers: how many of each.
        dim_feedforward: F.
        dropout: the probability of dropping, in training.
        activation: of the feed-forward nets: "relu", "gelu" or a function.
        custom_encoder, custom_decoder: in place of the standard ones; they are called with the same arguments.
        layer_norm_eps: added to variances.
        batch_first: whether sequences are (B, S, E) and not (S, B, E).
        norm_first: whether normalisation comes before each part or after the sum.
        bias: whether linear maps and normalisations have biases.
        dtype: of the weights.

    >>> import tinyseq as ts
    >>> model = ts.nn.Transformer(8, 2, 1, 1, dim_feedforward=16)
    >>> model(ts.zeros((5, 3, 8)), ts.zeros((4, 3, 8)), tgt_is_causal=True).shape
    (4, 3, 8)
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = "relu",
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        dtype: Any = float32,
    ) -> None:
        settings = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias, dtype)

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype)

        self.d_model = d_model
        self.nhead = nhead
        self.batch_first = batch_first
        self.encoder = custom_encoder or TransformerEncoder(TransformerEncoderLayer(*settings), num_encoder_layers, norm())
        self.decoder = custom_decoder or TransformerDecoder(TransformerDecoderLayer(*settings), num_decoder_layers, norm())
        for parameter in self.parameters():
            if parameter.ndim > 1:
                init.xavier_uniform_(parameter)

    def new_cache(self) -> list[DecoderCache]:
        """An empty cache of each layer of the decoder, for targets that come in pieces.

        The first call with it runs the encoder; later ones take None for the source, or do not look at it.

        >>> import tinyseq as ts
        >>> model = ts.nn.Transformer(8, 2, 1, 1, 16, dropout=0.0)
        >>> source, target, cache = ts.random.randn((5, 1, 8)), ts.random.randn((3, 1, 8)), model.new_cache()
        >>> steps = [model(source, target[t : t + 1], tgt_is_causal=True, cache=cache) for t in range(3)]
        >>> ts.allclose(ts.concatenate(steps), model(source, target, tgt_is_causal=True), atol=1e-5)
        True
        """
        return self.decoder.new_cache()  # type: ignore[attr-defined]

    def __call__(
        self,
        src: Operand | None,
        tgt: Operand,
        src_mask: Operand | None = None,
        tgt_mask: Operand | None = None,
        memory_mask: Operand | None = None,
        src_key_padding_mask: Operand | None = None,
        tgt_key_padding_mask: Operand | None = None,
        memory_key_padding_mask: Operand | None = None,
        src_is_causal: bool = False,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
        cache: list[DecoderCache] | None = None,
    ) -> Tensor:
        """Sources (S, B, E) and targets (T, B, E) to (T, B, E); the masks are those of the layers.

        ``cache`` is what ``new_cache`` gave: a causal target may then come in pieces, a step at a time when it is generated.

        Raises:
            ShapeError, DTypeError, ValueError: what :class:`MultiheadAttention` raises.
        """
        encoded = cache is not None and all(len(layer.memory) for layer in cache)
        if src is None and not encoded:
            raise ValueError("Transformer needs a source, or a cache that has seen one")
        memory = None if encoded else self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        padding = (tgt_key_padding_mask, memory_key_padding_mask)
        own = {} if cache is None else {"cache": cache}  # a decoder of one's own may not take it
        return self.decoder(tgt, memory, tgt_mask, memory_mask, *padding, tgt_is_causal, memory_is_causal, **own)

    @staticmethod
    def generate_square_subsequent_mask(size: int, dtype: Any = float32) -> Tensor:
        """The causal mask (T, T) as numbers to add: 0 where step i may look at step j <= i, -inf elsewhere.

        >>> Transformer.generate_square_subsequent_mask(2).tolist()
        [[0.0, -inf], [0.0, 0.0]]
        """
        return functions.where(functional.causal_mask(size), 0.0, full((), float("-inf"), dtype))


def _copies(layer: M, count: int) -> list[M]:
    if count < 1:
        raise ShapeError(f"a stack needs at least one layer, got num_layers={count}")
    return [copy.deepcopy(layer) for _ in range(count)]


def _of_layers(cache: list[Any] | None, layers: list[Any]) -> list[dict[str, Any]]:
    """For each layer the argument that hands it its cache; without one nothing, since a layer of one's own may not take it."""
    if cache is None:
        return [{}] * len(layers)
    if len(cache) != len(layers):
        raise ShapeError(f"a stack of {len(layers)} layers takes as many caches, got {len(cache)}; make them with new_cache()")
    return [{"cache": own} for own in cache]
