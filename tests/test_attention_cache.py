"""A sequence that comes in pieces: with a cache, attention gives what it gives for the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import nn

T, S, B, E, H = 7, 5, 3, 8, 2
PIECES = [[1] * T, [3, 1, 1, 2], [4, 3], [T]]


@pytest.fixture(params=["numpy", "numba"], autouse=True)
def backend(request: pytest.FixtureRequest) -> Any:
    with ts.use_backend(request.param):
        yield


def given(rng: np.random.Generator, *shape: int) -> ts.Tensor:
    return ts.tensor(rng.standard_normal(shape))


def cut(x: Any, pieces: list[int], axis: int = 0) -> list[Any]:
    stops = np.cumsum(pieces)
    return [x[(slice(None),) * axis + (slice(stop - size, stop),)] for size, stop in zip(pieces, stops, strict=True)]


def same(got: Any, want: Any) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("pieces", PIECES, ids=str)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
def test_pieces_equal_the_whole(rng: np.random.Generator, layout: str, need_weights: bool, pieces: list[int]) -> None:
    attention = nn.MultiheadAttention(E, H, batch_first=layout == "batch first", dtype=ts.float64)
    axis = int(layout == "batch first")
    x = given(rng, *{"time first": (T, B, E), "batch first": (B, T, E), "unbatched": (T, E)}[layout])
    whole, weights = attention(x, x, x, need_weights=need_weights, is_causal=True)
    cache = nn.AttentionCache()
    parts = [attention(p, p, p, need_weights=need_weights, is_causal=True, cache=cache) for p in cut(x, pieces, axis)]
    same(ts.concatenate([y for y, _ in parts], axis), whole)
    assert len(cache) == T
    if weights is not None:
        for piece, (_, found) in zip(cut(weights, pieces, weights.ndim - 2), parts, strict=True):
            same(found, piece[..., : found.shape[-1]])
            assert not piece[..., found.shape[-1] :].numpy().any()


def test_padding_is_of_the_whole_sequence(rng: np.random.Generator) -> None:
    attention = nn.MultiheadAttention(E, H, dtype=ts.float64)
    x, hidden = given(rng, T, B, E), np.arange(T) < np.array([0, 2, 1])[:, None]  # at the start, as prompts are padded
    whole, _ = attention(x, x, x, hidden, need_weights=False, is_causal=True)
    cache = nn.AttentionCache()
    parts = [
        attention(x[t : t + 1], x[t : t + 1], x[t : t + 1], hidden[:, : t + 1], False, is_causal=True, cache=cache)[0]
        for t in range(T)
    ]
    same(ts.concatenate(parts), whole)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}, {"bias": False}], ids=str)
def test_a_fixed_memory_is_projected_once(rng: np.random.Generator, sizes: dict[str, Any]) -> None:
    attention = nn.MultiheadAttention(E, H, dtype=ts.float64, **sizes)
    query = given(rng, T, B, E)
    key, value = given(rng, S, B, sizes.get("kdim", E)), given(rng, S, B, sizes.get("vdim", E))
    hidden = np.arange(S) >= np.array([5, 2, 4])[:, None]
    whole, _ = attention(query, key, value, hidden)
    cache = nn.AttentionCache(fixed=True)
    first, _ = attention(query[:3], key, value, hidden, cache=cache)
    kept = cache.keys
    second, _ = attention(query[3:], key, value, hidden, cache=cache)
    same(ts.concatenate([first, second]), whole)
    assert cache.keys is kept


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_a_decoder_equals_itself_step_by_step(rng: np.random.Generator, norm_first: bool, pieces: list[int]) -> None:
    layer = nn.TransformerDecoderLayer(E, H, 16, dropout=0.0, norm_first=norm_first, dtype=ts.float64)
    decoder = nn.TransformerDecoder(layer, 2, nn.LayerNorm(E, dtype=ts.float64))
    target, memory = given(rng, T, B, E), given(rng, S, B, E)
    padding = np.arange(S) >= np.array([5, 2, 4])[:, None]
    whole = decoder(target, memory, memory_key_padding_mask=padding, tgt_is_causal=True)
    cache = decoder.new_cache()
    parts = [
        decoder(piece, memory, memory_key_padding_mask=padding, tgt_is_causal=True, cache=cache)
        for piece in cut(target, pieces)
    ]
    same(ts.concatenate(parts), whole)


def test_a_causal_encoder_equals_itself_step_by_step(rng: np.random.Generator) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, dropout=0.0, dtype=ts.float64), 2)
    x, cache = given(rng, T, B, E), encoder.new_cache()
    parts = [encoder(x[t : t + 1], is_causal=True, cache=cache) for t in range(T)]
    same(ts.concatenate(parts), encoder(x, is_causal=True))


def test_gradients_pass_through_a_cache(rng: np.random.Generator) -> None:
    attention = nn.MultiheadAttention(E, H, dtype=ts.float64)

    def whole(x: Any) -> Any:
        return (attention(x, x, x, is_causal=True)[0] ** 2).sum()

    def pieces(x: Any) -> Any:
        cache = nn.AttentionCache()
        parts = [attention(p, p, p, is_causal=True, cache=cache)[0] for p in cut(x, [3, 1, 3])]
        return (ts.concatenate(parts) ** 2).sum()

    x = given(rng, T, B, E)
    same(ts.grad(pieces)(x), ts.grad(whole)(x))


def test_beams_change_places(rng: np.random.Generator) -> None:
    """Rows go on from the past of those that they were selected from."""
    layer = nn.TransformerDecoderLayer(E, H, 16, dropout=0.0, dtype=ts.float64)
    target, memory, rows = given(rng, T, B, E), given(rng, S, B, E), [2, 2, 0, 1]
    cache = layer.new_cache()
    layer(target[:4], memory, tgt_is_causal=True, cache=cache)
    cache.select(ts.tensor(rows))
    got = layer(target[4:, rows], memory[:, rows], tgt_is_causal=True, cache=cache)
    same(got, layer(target, memory, tgt_is_causal=True)[4:, rows])


@pytest.mark.parametrize("layout", ["time first", "batch first", "unbatched"])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 4, "vdim": 6}, {"kdim": 4, "vdim": 4}, {"bias": False}], ids=str)
@pytest.mark.parametrize("one", [False, True])
def test_a_memory_is_remembered(rng: np.random.Generator, sizes: dict[str, Any], layout: str, one: bool) -> None:
    attention = nn.MultiheadAttention(E, H, batch_first=layout == "batch first", dtype=ts.float64, **sizes)
    if attention.in_proj_bias is not None:
        nn.init.uniform_(attention.in_proj_bias, -1, 1)
    shapes = {"time first": (S, B), "batch first": (B, S), "unbatched": (S,)}[layout]
    key, value = (given(rng, *shapes, sizes.get(name, E)) for name in ("kdim", "vdim"))
    query = given(rng, *{"time first": (T, B), "batch first": (B, T), "unbatched": (T,)}[layout], E)
    value = key if one and sizes.get("kdim") == sizes.get("vdim") else value
    cache = attention.remember(key) if value is key else attention.remember(key, value)
    for need_weights in (False, True):
        want = attention(query, key, value, need_weights=need_weights)
        got = attention(query, None, None, need_weights=need_weights, cache=cache)
        same(got[0], want[0])
        if need_weights:
            same(got[1], want[1])


@pytest.mark.parametrize("later", ["the source again", "no source"])
@pytest.mark.parametrize("settings", [{}, {"norm_first": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_a_transformer_equals_itself_step_by_step(
    rng: np.random.Generator, pieces: list[int], settings: dict[str, bool], later: str
) -> None:
    model = nn.Transformer(E, H, 2, 2, 16, dropout=0.0, dtype=ts.float64, **settings)
    axis = int(model.batch_first)
    target, source = (given(rng, B, n, E) if axis else given(rng, n, B, E) for n in (T, S))
    hidden = np.arange(S) >= np.array([5, 2, 4])[:, None]
    masks = {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden, "tgt_is_causal": True}
    whole, cache = model(source, target, **masks), model.new_cache()
    parts = []
    for place, piece in enumerate(cut(target, pieces, axis)):
        parts.append(model(None if place and later == "no source" else source, piece, cache=cache, **masks))
    same(ts.concatenate(parts, axis), whole)


def test_the_encoder_runs_once(rng: np.random.Generator) -> None:
    model = nn.Transformer(E, H, 1, 1, 16, dropout=0.0, dtype=ts.float64)
    encoder, calls = model.encoder, []
    model.encoder = lambda *given: calls.append(given) or encoder(*given)
    source, target, cache = given(rng, S, B, E), given(rng, T, B, E), model.new_cache()
    for t in range(T):
        model(source, target[t : t + 1], cache=cache, tgt_is_causal=True)
    assert len(calls) == 1


def test_refused(rng: np.random.Generator) -> None:
    x, cache = given(rng, 2, B, E), nn.AttentionCache()
    attention = nn.MultiheadAttention(E, H, dtype=ts.float64)
    attention(x, x, x, cache=cache)
    with pytest.raises(ts.ShapeError, match="the cache is of 3 rows, got keys and values of 2"):
        attention(x[:, :2], x[:, :2], x[:, :2], cache=cache)
    fixed = nn.AttentionCache(fixed=True)
    attention(x, x, x, cache=fixed)
    with pytest.raises(ts.ShapeError, match="the cache is of 3 rows, got a query of 2"):
        attention(x[:, :2], x[:, :2], x[:, :2], cache=fixed)
    with pytest.raises(ValueError, match="needs key and value, or a cache that holds them: one made by remember"):
        attention(x, None, None, cache=nn.AttentionCache())
    with pytest.raises(ValueError, match="where in a fixed memory a query stands; give attn_mask instead"):
        attention(x, x, x, is_causal=True, cache=fixed)
    with pytest.raises(ts.ShapeError, match=r"got shapes \(2, 3, 8\), \(2, 3, 7\)"):
        attention.remember(x, np.zeros((2, 3, 7)))
    with pytest.raises(ValueError, match="a source, or a cache that has seen one"):
        nn.Transformer(E, H, 1, 1, 16)(None, x.astype("float32"))
    added = nn.MultiheadAttention(E, H, add_zero_attn=True, dtype=ts.float64)
    with pytest.raises(ValueError, match="without add_bias_kv and add_zero_attn"):
        added(x, x, x, cache=nn.AttentionCache())
    with pytest.raises(ValueError, match="without add_bias_kv and add_zero_attn"):
        added.remember(x)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 16, dtype=ts.float64), 2)
    with pytest.raises(ts.ShapeError, match=r"2 layers takes as many caches, got 1; make them with new_cache\(\)"):
        encoder(x, cache=[nn.AttentionCache()])
