"""Transformer layers and stacks: their equations from their parts, the laws of masks, and a small one that decodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensors import array, draw, put

import tinyseq as ts
from tinyseq import nn

F64 = np.float64
B, S, T, E, HEADS, UNITS = 3, 5, 4, 6, 2, 8
BACKENDS = ["numpy", "numba"]
SETTINGS = (E, HEADS, UNITS)


def scrambled(module: Any) -> Any:
    """With numbers that are not zero or one in every parameter."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)
    return module.astype("float64")


def norm(layer: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + layer.eps) * array(layer.weight) + array(layer.bias)


def feed_forward(layer: Any, x: np.ndarray) -> np.ndarray:
    hidden = x @ array(layer.linear1.weight).T + array(layer.linear1.bias)
    hidden = {
        "relu": lambda a: np.maximum(a, 0),
        "gelu": lambda a: a * 0.5 * (1 + np.vectorize(math.erf)(a / math.sqrt(2))),
    }[layer.kind](hidden)
    return hidden @ array(layer.linear2.weight).T + array(layer.linear2.bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_layer_is_made_of_its_parts(
    kind: str, norm_first: bool, activation: str, backend: str, rng: np.random.Generator
) -> None:
    with ts.use_backend(backend):
        cls = nn.TransformerEncoderLayer if kind == "encoder" else nn.TransformerDecoderLayer
        layer: Any = scrambled(cls(*SETTINGS, activation=activation, norm_first=norm_first)).eval()
        layer.kind = activation
        x, memory = draw(rng, T, B, E), draw(rng, S, B, E)
        y = layer(x) if kind == "encoder" else layer(x, memory)

        def attend(x: np.ndarray) -> np.ndarray:
            return array(layer.self_attn(x, x, x)[0])

        parts: list[tuple[Any, Callable[[np.ndarray], np.ndarray]]] = [(layer.norm1, attend)]
        if kind == "decoder":
            parts.append((layer.norm2, lambda x: array(layer.multihead_attn(x, memory, memory)[0])))
        parts.append((layer.norm3 if kind == "decoder" else layer.norm2, lambda x: feed_forward(layer, x)))
        expected = array(x)
        for norm_, part in parts:
            expected = expected + part(norm(norm_, expected)) if norm_first else norm(norm_, expected + part(expected))
    np.testing.assert_allclose(array(y), expected, rtol=1e-10, atol=1e-12)


def test_masks_reach_their_attention(rng: np.random.Generator) -> None:
    """Each argument by itself against the same mask at the attention; what is hidden has no effect."""
    layer: Any = scrambled(nn.TransformerDecoderLayer(*SETTINGS)).eval()
    x, memory = array(draw(rng, T, B, E)), array(draw(rng, S, B, E))

    def changed(source: np.ndarray, *places: Any) -> np.ndarray:
        source = source.copy()
        for place in places:
            source[place] += 1.0
        return source

    def run(x: np.ndarray, memory: np.ndarray, **masks: Any) -> np.ndarray:
        return array(layer(x, memory, **masks))

    target_mask, memory_mask = np.zeros((T, T), bool), np.zeros((T, S), bool)
    target_mask[:3, 3] = memory_mask[:3, 2] = True
    target_padding, memory_padding = np.zeros((B, T), bool), np.zeros((B, S), bool)
    target_padding[1, 3] = memory_padding[1, 2] = True
    seen = slice(0, 3)
    for masks, other_x, other_memory, rows, batch in [
        ({"tgt_mask": target_mask}, changed(x, 3), memory, seen, slice(None)),
        ({"tgt_is_causal": True}, changed(x, 3), memory, seen, slice(None)),
        ({"memory_mask": memory_mask}, x, changed(memory, 2), seen, slice(None)),
        ({"memory_is_causal": True}, x, changed(memory, 3, 4), seen, slice(None)),
        ({"tgt_key_padding_mask": target_padding}, changed(x, (3, 1)), memory, seen, slice(1, 2)),
        ({"memory_key_padding_mask": memory_padding}, x, changed(memory, (2, 1)), slice(None), slice(1, 2)),
    ]:
        before, after, free = run(x, memory, **masks), run(other_x, other_memory, **masks), run(other_x, other_memory)
        np.testing.assert_allclose(after[rows, batch], before[rows, batch], rtol=0, atol=1e-12, err_msg=str(masks))
        assert np.abs(free[rows, batch] - run(x, memory)[rows, batch]).max() > 1e-3, masks


@pytest.mark.parametrize("norm_first", [False, True])
def test_padding_and_batches_change_nothing(norm_first: bool, rng: np.random.Generator) -> None:
    """The whole Transformer: a batch with padding is its rows without."""
    model: Any = scrambled(nn.Transformer(E, HEADS, 2, 2, UNITS, norm_first=norm_first)).eval()
    sources, targets, lengths = draw(rng, S, B, E), draw(rng, T, B, E), [5, 2, 3]
    padding = np.arange(S) >= np.array(lengths)[:, None]
    masks = {"src_key_padding_mask": padding, "memory_key_padding_mask": padding, "tgt_is_causal": True}
    whole = array(model(sources, targets, **masks))
    additive = nn.Transformer.generate_square_subsequent_mask(T, F64)
    same = model(sources, targets, tgt_mask=additive, **(masks | {"tgt_is_causal": False}))
    np.testing.assert_allclose(array(same), whole, rtol=0, atol=1e-12)
    model_first: Any = nn.Transformer(E, HEADS, 2, 2, UNITS, norm_first=norm_first, batch_first=True, dtype=F64).eval()
    model_first.load_state_dict(model.state_dict())
    turned = model_first(sources.transpose(0, 1), targets.transpose(0, 1), **masks)
    np.testing.assert_allclose(array(turned).swapaxes(0, 1), whole, rtol=0, atol=1e-12)
    for b, length in enumerate(lengths):
        row = model(sources[:length, b], targets[:, b], tgt_is_causal=True)
        np.testing.assert_allclose(array(row), whole[:, b], rtol=0, atol=1e-12)
        shorter = model(sources[:length, b], targets[:2, b], tgt_is_causal=True)
        np.testing.assert_allclose(array(shorter), whole[:2, b], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients(norm_first: bool, rng: np.random.Generator) -> None:
    model: Any = scrambled(nn.Transformer(4, 2, 1, 1, 3, dropout=0.0, activation="gelu", norm_first=norm_first))
    names = [name for name, _ in model.named_parameters()]

    def f(source: ts.Tensor, target: ts.Tensor, weights: list[ts.Tensor]) -> ts.Tensor:
        put(model, names, weights)
        return model(source, target, tgt_is_causal=True, src_key_padding_mask=[[False] * 3, [False, True, True]])

    weights = [parameter.detach() for parameter in model.parameters()]
    ts.check_grads(f, (draw(rng, 3, 2, 4), draw(rng, 2, 2, 4), weights), directions=2, step=1e-5)


def test_stacks_hold_copies_of_their_layer(rng: np.random.Generator) -> None:
    layer = nn.TransformerEncoderLayer(*SETTINGS, dropout=0.0, dtype=F64)
    stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(E, dtype=F64))
    x = draw(rng, S, B, E)
    np.testing.assert_allclose(array(stack(x)), array(stack.norm(layer(layer(x)))), rtol=1e-12, atol=1e-12)
    stack(x).sum().backward()
    assert all(parameter.grad is None for parameter in layer.parameters())
    gradients = [array(one.linear1.weight.grad) for one in stack.layers]
    assert np.abs(gradients[0] - gradients[1]).max() > 0
    names = [name for name, _ in stack.named_parameters()]
    assert names[0] == "layers.0.self_attn.in_proj_weight"
    assert names[-2:] == ["norm.weight", "norm.bias"]
    assert len(names) == 2 * 12 + 2
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*SETTINGS, dropout=0.0, dtype=F64), 2)
    first, second = decoder.layers
    expected = second(first(x, x, tgt_is_causal=True), x, tgt_is_causal=True)
    np.testing.assert_allclose(array(decoder(x, x, tgt_is_causal=True)), array(expected), rtol=1e-12)


def test_dropout_acts_in_training_only(rng: np.random.Generator) -> None:
    model: Any = nn.Transformer(E, HEADS, 1, 1, UNITS, dropout=0.3, dtype=F64)
    x = draw(rng, S, B, E)
    first, second = array(model(x, x)), array(model(x, x))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(array(model.eval()(x, x)), array(model(x, x)))


def test_matrices_start_as_in_pytorch() -> None:
    model: Any = nn.Transformer(100, 2, 1, 1, 300)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.98 * bound < np.abs(array(parameter)).max() <= bound, name
    assert array(model.encoder.layers[0].norm1.weight).tolist() == [1.0] * 100
    small: Any = nn.Transformer(4, 2, 1, 1, 3, bias=False)
    assert not [name for name, _ in small.named_parameters() if name.endswith("bias")]


def test_a_transformer_decodes_as_it_was_forced(rng: np.random.Generator) -> None:
    """Greedy decoding with the prefix as state gives the tokens whose logits teacher forcing gives."""
    vocabulary, end = 7, 0
    model: Any = scrambled(nn.Transformer(E, HEADS, 1, 1, UNITS, batch_first=True)).eval()
    table, sources = draw(rng, vocabulary, E), draw(rng, B, S, E)
    positions = nn.SinusoidalPositionalEncoding(E, batch_first=True)
    memory = model.encoder(sources)

    def logits_of(ids: ts.Tensor, memory: ts.Tensor) -> ts.Tensor:
        return model.decoder(positions(table[ids]), memory, tgt_is_causal=True) @ table.T

    def decoder(tokens: ts.Tensor, state: Any) -> tuple[ts.Tensor, Any]:
        prefix, memory = state
        prefix = ts.concatenate([prefix, tokens.unsqueeze(1)], 1)
        return logits_of(prefix, memory)[:, -1], (prefix, memory)

    nothing = ts.zeros((B, 0), "int64")
    decoded = nn.greedy_search(decoder, (nothing, memory), 1, end, 6)
    fed = np.concatenate([np.ones((B, 1), np.int64), decoded.tokens.numpy()[:, :-1]], 1)
    forced = array(logits_of(ts.tensor(fed), memory))
    for row, length in enumerate(decoded.lengths.tolist()):
        count = min(length + 1, fed.shape[1])
        assert forced[row, :count].argmax(-1).tolist() == decoded.tokens[row].tolist()[:count]
    best = nn.beam_search(decoder, (nothing, memory), 1, end, 6, beams=3, length_penalty=0.0)
    assert (best.scores.numpy()[:, 0] >= decoded.scores.numpy() - 1e-12).all()


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.TransformerEncoderLayer(5, 2), ts.ShapeError, "got 5 for 2"),
        (lambda: nn.TransformerEncoderLayer(4, 2, activation="swish"), ValueError, "'relu', 'gelu' or a function, got 'swish'"),
        (lambda: nn.TransformerEncoderLayer(4, 2, dropout=3.0), ValueError, r"lies in \[0, 1\], got 3.0"),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 0), ts.ShapeError, "num_layers=0"),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8)(np.zeros((3, 2, 5))), ts.ShapeError, r"\(3, 2, 5\)"),
        (
            lambda: nn.TransformerDecoderLayer(4, 2, 8)(np.zeros((3, 2, 4), "f4"), np.zeros((3, 1, 4), "f4")),
            ts.ShapeError,
            r"\(3, 1, 4\)",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
