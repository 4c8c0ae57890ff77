"""An encoder-decoder of attention alone: decoding token by token with caches is computing whole sequences anew each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensors import array, put

import tinyseq as ts
from tinyseq import nn

S, T, B, E, HEADS, UNITS, V, START, END = 5, 6, 3, 8, 2, 12, 7, 1, 0
LENGTHS = [5, 2, 3]
F64 = ts.float64


@pytest.fixture(params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> Any:
    with ts.use_backend(request.param):
        yield


def built(norm_first: bool = False, learned: bool = False, layers: int = 2, batch_first: bool = False) -> Any:
    """A model whose numbers are all of some size, so that the likeliest token depends on all that was said before."""

    def positions() -> Any:
        return nn.LearnedPositionalEncoding(20, E) if learned else nn.SinusoidalPositionalEncoding(E)

    settings: Any = {"dropout": 0.0, "norm_first": norm_first}
    above = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, HEADS, UNITS, **settings), layers)
    below = nn.TransformerDecoder(nn.TransformerDecoderLayer(E, HEADS, UNITS, **settings), layers)
    encoder = nn.SelfAttentionEncoder(nn.Embedding(V, E), positions(), above)
    decoder = nn.SelfAttentionDecoder(nn.Embedding(V, E), positions(), below, nn.Linear(E, V))
    model = nn.EncoderDecoder(encoder, decoder, START, END, batch_first=batch_first)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    return model.astype("float64")


def drawn(rng: np.random.Generator, *shape: int) -> ts.Tensor:
    return ts.tensor(rng.integers(0, V, shape))


def from_the_prefix(model: Any, source: ts.Tensor, lengths: Any) -> tuple[Callable[..., Any], Any]:
    """A decoder that keeps all tokens so far and runs the model's layers on all of them, with no cache, and its state."""
    memory, _ = model.encoder(source, lengths=lengths)
    hidden = ts.tensor(np.arange(S) >= np.array(lengths)[:, None])
    parts = model.decoder

    def decoder(tokens: ts.Tensor, state: Any) -> tuple[ts.Tensor, Any]:
        prefix, memory, hidden = state
        prefix = ts.concatenate([prefix, tokens.unsqueeze(1)], 1)
        x = parts.positions(parts.embedding(prefix.transpose(0, 1)))
        y = parts.stack(x, memory.transpose(0, 1), memory_key_padding_mask=hidden, tgt_is_causal=True)
        return parts.output(y)[-1], (prefix, memory, hidden)

    return decoder, (ts.zeros((len(lengths), 0), "int64"), memory.transpose(0, 1), hidden)


def same(got: nn.Decoded, want: nn.Decoded) -> None:
    assert got.tokens.tolist() == want.tokens.tolist()
    assert got.lengths.tolist() == want.lengths.tolist()
    np.testing.assert_allclose(array(got.scores), array(want.scores), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_the_layers_are_those_of_the_transformer(norm_first: bool, learned: bool, rng: np.random.Generator) -> None:
    model = built(norm_first, learned)
    source, targets = drawn(rng, S, B), drawn(rng, T, B)
    logits, weights = model(source, targets, LENGTHS)
    assert weights is None
    fed = ts.concatenate([targets[:1] * 0 + START, targets[:-1]])
    hidden = np.arange(S) >= np.array(LENGTHS)[:, None]
    above, below = model.encoder, model.decoder
    memory = above.stack(above.positions(above.embedding(source)), src_key_padding_mask=hidden)
    x = below.positions(below.embedding(fed))
    y = below.output(below.stack(x, memory, memory_key_padding_mask=hidden, tgt_is_causal=True))
    np.testing.assert_allclose(array(logits), array(y), rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm_first", [False, True])
def test_forcing_is_stepping(backend: Any, norm_first: bool, rng: np.random.Generator) -> None:
    model, source, tokens = built(norm_first), drawn(rng, S, B), drawn(rng, T, B)
    begun = state = model.encode(source, LENGTHS)
    steps = []
    for t in range(T):
        logits, state = model.decoder(tokens[t], state)
        steps.append(array(logits))
    np.testing.assert_allclose(steps, array(model.decoder.force(tokens, begun)[0]), rtol=0, atol=1e-10)
    assert len(begun.cache[0].target) == 0  # a state that was given is left as it is
    half = begun
    for t in range(2):
        _, half = model.decoder(tokens[t], half)
    np.testing.assert_allclose(steps[2:], array(model.decoder.force(tokens[2:], half)[0]), rtol=0, atol=1e-10)


def test_a_batch_is_its_rows_and_padding_changes_nothing(rng: np.random.Generator) -> None:
    model, source, targets = built(), drawn(rng, S, B), drawn(rng, T, B)
    whole = array(model(source, targets, LENGTHS)[0])
    for b, length in enumerate(LENGTHS):
        row, _ = model(source[:length, b : b + 1], targets[:4, b : b + 1])
        np.testing.assert_allclose(array(row)[:, 0], whole[:4, b], rtol=0, atol=1e-10)
    turned = built(batch_first=True)
    turned.load_state_dict(model.state_dict())
    logits, _ = turned(source.transpose(0, 1), targets.transpose(0, 1), LENGTHS)
    np.testing.assert_allclose(array(logits).swapaxes(0, 1), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"beams": 1}, {"beams": 5, "n_best": 5, "length_penalty": 1.0}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_beams_with_caches_are_beams_without(backend: Any, seed: int, options: Any, rng: np.random.Generator) -> None:
    ts.manual_seed(seed)
    model, source = built(), drawn(rng, S, B)
    decoder, state = from_the_prefix(model, source, LENGTHS)
    same(model.beam_search(source, LENGTHS, 8, **options), nn.beam_search(decoder, state, START, END, 8, **options))


@pytest.mark.parametrize("norm_first", [False, True])
def test_greedy_and_sampling_with_caches_are_those_without(backend: Any, norm_first: bool, rng: np.random.Generator) -> None:
    model, source = built(norm_first), drawn(rng, S, B)
    decoder, state = from_the_prefix(model, source, LENGTHS)
    same(model.greedy_search(source, LENGTHS, 8), nn.greedy_search(decoder, state, START, END, 8))
    ts.manual_seed(5)
    got = model.sample(source, LENGTHS, 8, temperature=1.3, top_k=5)
    ts.manual_seed(5)
    same(got, nn.sample(decoder, state, START, END, 8, temperature=1.3, top_k=5))


def test_a_step_computes_one_token_and_the_memory_is_never_moved(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = built(), drawn(rng, S, B)
    state = model.encode(source, LENGTHS)
    fed: list[int] = []
    kept: list[Any] = []
    heads = nn.MultiheadAttention._heads

    def counted(self: Any, query: Any, *rest: Any) -> Any:
        fed.append(query.shape[0])
        return heads(self, query, *rest)

    def decoder(tokens: ts.Tensor, state: Any) -> Any:
        kept.append(state)
        return model.decoder(tokens, state)

    monkeypatch.setattr(nn.MultiheadAttention, "_heads", counted)
    nn.beam_search(decoder, state, START, None, 8, beams=3)
    assert fed == [1] * (8 * 4)  # steps times attentions
    memories = [part.data for state in kept for layer in state.cache for part in (layer.memory.keys, layer.memory.values)]
    assert len({id(memory) for memory in memories}) == 4  # layers times keys and values


@pytest.mark.parametrize("known", [False, True])
def test_caches_in_a_state_of_ones_own(backend: Any, known: bool, rng: np.random.Generator) -> None:
    """A decoder written as a function; a search leaves the caches that it was given as they are."""
    model, source = built(), drawn(rng, S, B)
    parts = model.decoder
    memory, _ = model.encoder(source, lengths=LENGTHS)
    hidden = ts.tensor(np.arange(S) >= np.array(LENGTHS)[:, None])

    def decoder(tokens: ts.Tensor, state: Any) -> Any:
        place = len(state["cache"][0].target)
        x = parts.positions(parts.embedding(tokens.unsqueeze(0)), start=place)
        given = None if known else state["memory"].transpose(0, 1)
        y = parts.stack(x, given, memory_key_padding_mask=state["hidden"], tgt_is_causal=True, cache=state["cache"])
        return parts.output(y)[0], state

    cache = parts.stack.new_cache(memory if known else None)
    state = {"cache": cache, "memory": memory.transpose(0, 1), "hidden": hidden}
    prefix, other = from_the_prefix(model, source, LENGTHS)
    for _ in range(2):
        same(*(nn.beam_search(*each, START, END, 8, beams=6) for each in ((decoder, state), (prefix, other))))
        same(nn.greedy_search(decoder, state, START, END, 8), nn.greedy_search(prefix, other, START, END, 8))
    assert [len(layer.target) for layer in cache] == [0, 0]


# --- scheduled sampling and gradients ---------------------------------------------------------------------------------


def test_always_the_target_is_teacher_forcing_gradients_included(backend: Any, rng: np.random.Generator) -> None:
    model, source, targets = built(), drawn(rng, S, B), drawn(rng, T, B)
    seed = ts.tensor(rng.standard_normal((T, B, V)))

    def gradients(logits: ts.Tensor) -> list[np.ndarray]:
        model.zero_grad()
        (logits * seed).sum().backward()
        return [array(parameter.grad) for parameter in model.parameters()]

    forced, _ = model(source, targets, LENGTHS)
    fed = ts.concatenate([targets[:1] * 0 + START, targets[:-1]])
    scheduled, _ = model.decoder.schedule(fed, model.encode(source, LENGTHS), 1.0)
    np.testing.assert_allclose(array(scheduled), array(forced), rtol=0, atol=1e-10)
    for got, want in zip(gradients(scheduled), gradients(forced), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * max(1.0, np.abs(want).max()))


def test_never_the_target_is_decoding(rng: np.random.Generator) -> None:
    model, source = built(), drawn(rng, S, B)
    found = nn.greedy_search(model.decoder, model.encode(source, LENGTHS), START, None, T)
    logits, _ = model(source, drawn(rng, T, B), LENGTHS, teacher_forcing=0.0, greedy=True)
    assert array(logits).argmax(-1).T.tolist() == found.tokens.tolist()


def test_a_drawn_token_follows_the_number_drawn_for_it(rng: np.random.Generator) -> None:
    model, source, tokens = built(), drawn(rng, S, 20), drawn(rng, T, 20)
    begun = model.encode(source)
    ts.manual_seed(3)
    logits, _ = model.decoder.schedule(tokens, begun, 0.0)
    ts.manual_seed(3)
    ts.random.rand((T, 20))  # which decide between the given and the drawn
    sums = np.cumsum(array(ts.softmax(logits)), -1)
    own = (sums <= array(ts.random.rand((T, 20)))[..., None]).sum(-1)
    fed = np.concatenate([tokens.numpy()[:1], own[:-1]])
    np.testing.assert_allclose(array(model.decoder.force(fed, begun)[0]), array(logits), rtol=0, atol=1e-10)


def test_scheduled_sampling_feeds_what_it_says(rng: np.random.Generator) -> None:
    """Some tokens are given and some the decoder's own; forcing what was fed gives the same logits."""
    model, source, targets = built(), drawn(rng, S, 20), drawn(rng, T, 20)
    fed: list[np.ndarray] = []
    embedding = model.decoder.embedding
    model.decoder.embedding = lambda ids: fed.append(ids.numpy()[0]) or embedding(ids)
    begun = model.encode(source)
    logits, _ = model.decoder.schedule(targets, begun, 0.5, greedy=True)
    tokens = np.array(fed)
    model.decoder.embedding = embedding
    np.testing.assert_allclose(array(model.decoder.force(ts.tensor(tokens), begun)[0]), array(logits), rtol=0, atol=1e-10)
    own, given = array(logits)[:-1].argmax(-1), targets.numpy()
    assert (tokens[0] == given[0]).all()
    assert ((tokens[1:] == own) | (tokens[1:] == given[1:])).all()
    differ = own != given[1:]
    share = (tokens[1:] == given[1:])[differ].mean()
    assert 0.3 < share < 0.7


def test_gradients(rng: np.random.Generator) -> None:
    model, source, targets = built(layers=1), drawn(rng, S, B), drawn(rng, 4, B)
    names = [name for name, _ in model.named_parameters()]

    def f(*weights: ts.Tensor) -> ts.Tensor:
        put(model, names, list(weights))
        return ts.tanh(model(source, targets, LENGTHS)[0])

    ts.check_grads(f, tuple(p.detach() for p in model.parameters()), directions=2, step=1e-5)


def test_it_learns_to_turn_words_around() -> None:
    rng = np.random.default_rng(0)
    ts.manual_seed(0)
    size = 32
    layers = {"dropout": 0.0, "norm_first": True}
    above = nn.TransformerEncoder(nn.TransformerEncoderLayer(size, 2, 64, **layers), 1)
    below = nn.TransformerDecoder(nn.TransformerDecoderLayer(size, 2, 64, **layers), 1)
    encoder = nn.SelfAttentionEncoder(nn.Embedding(8, size), nn.LearnedPositionalEncoding(8, size), above)
    decoder = nn.SelfAttentionDecoder(nn.Embedding(8, size), nn.LearnedPositionalEncoding(8, size), below, nn.Linear(size, 8))
    model = nn.EncoderDecoder(encoder, decoder, START, END)
    optimizer = ts.optim.Adam(model.parameters(), lr=3e-3)

    def batch(rows: int) -> tuple[ts.Tensor, ts.Tensor]:
        words = rng.integers(2, 8, (4, rows))
        return ts.tensor(words), ts.tensor(np.concatenate([words[::-1], np.full((1, rows), END)]))

    for _ in range(400):
        source, targets = batch(64)
        loss = ts.cross_entropy(model(source, targets)[0].flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source, targets = batch(100)
    for found in (model.greedy_search(source, max_length=6), model.beam_search(source, max_length=6, beams=3)):
        tokens = found.tokens.numpy().reshape(100, -1)[:, :5]
        assert (tokens == targets.numpy().T).all(1).mean() > 0.95


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (
            lambda: nn.SelfAttentionEncoder(nn.Embedding(3, 4), nn.SinusoidalPositionalEncoding(4, batch_first=True), None),
            ValueError,
            "SelfAttentionEncoder runs time first; make its SinusoidalPositionalEncoding with batch_first=False",
        ),
        (
            lambda: built().decoder.begin(None, None, 2),
            ts.ShapeError,
            r"reads an encoder's outputs \(S, 2, E\), got none",
        ),
        (
            lambda: built().decoder.begin(ts.zeros((S, B, E), F64), None, 2),
            ts.ShapeError,
            r"reads an encoder's outputs \(S, 2, E\), got shape \(5, 3, 8\)",
        ),
        (
            lambda: built().decoder.begin(ts.zeros((S, B, E), F64), ts.zeros((B, E)), B),
            ValueError,
            r"takes over no state; let the encoder return \(outputs, None\)",
        ),
        (lambda: built(learned=True).greedy_search(np.ones((S, B), int), max_length=21), ts.ShapeError, "from 20 to 20"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
