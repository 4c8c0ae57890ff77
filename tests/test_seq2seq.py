"""Encoder and decoder: attention cells against their equations, one loop against its steps, training against decoding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tensors import array, draw, put

import tinyseq as ts
from tinyseq import nn
from tinyseq.nn.seq2seq import drawn
from tinyseq.tree import flatten

F64 = np.float64
B, S, T, E, H, M, A, V = 3, 5, 4, 3, 4, 6, 5, 7
START, END = 1, 0
LENGTHS = [5, 2, 3]
BACKENDS = ["numpy", "numba"]


def ids(rng: np.random.Generator, *shape: int) -> ts.Tensor:
    return ts.tensor(rng.integers(0, V, shape))


# --- models of every kind ---------------------------------------------------------------------------------------------


def bahdanau(cell: Any = None, query_size: int = A) -> Any:
    encoder = nn.RecurrentEncoder(nn.Embedding(V, E), nn.GRU(E, H, bidirectional=True))
    cell = cell or nn.GRUCell(E + 2 * H, A)
    reader = nn.BahdanauCell(cell, nn.AdditiveAttention(query_size, 2 * H, 6))
    decoder = nn.RecurrentDecoder(nn.Embedding(V, E), reader, nn.Linear(reader.output_size, V))
    return nn.EncoderDecoder(encoder, decoder, START, END, nn.Bridge(2 * H, cell))


def luong(feeding: bool = True) -> Any:
    encoder = nn.RecurrentEncoder(nn.Embedding(V, E), nn.LSTM(E, H))
    cell = nn.LSTMCell(E + A * feeding, H)
    reader = nn.LuongCell(cell, nn.DotProductAttention(), attentional_size=A, input_feeding=feeding)
    decoder = nn.RecurrentDecoder(nn.Embedding(V, E), reader, nn.Linear(A, V))
    return nn.EncoderDecoder(encoder, decoder, START, END)


def plain() -> Any:
    """No attention: all that the decoder knows is the encoder's last state, of two layers."""
    encoder = nn.RecurrentEncoder(nn.Embedding(V, E), nn.GRU(E, H, num_layers=2))
    cell = nn.StackedCell([nn.GRUCell(E, H), nn.GRUCell(H, H)])
    return nn.EncoderDecoder(encoder, nn.RecurrentDecoder(nn.Embedding(V, E), cell, nn.Linear(H, V)), START, END)


def deep() -> Any:
    """A stack of LSTM cells with a residual connection that reads by its last cell's h."""
    cell = nn.StackedCell([nn.LSTMCell(E + 2 * H, A), nn.ResidualCell(nn.LSTMCell(A, A))])
    return bahdanau(cell)


MODELS: dict[str, Callable[[], Any]] = {
    "bahdanau": bahdanau,
    "luong": luong,
    "luong_no_feeding": lambda: luong(False),
    "plain": plain,
    "deep": deep,
}
each_model = pytest.mark.parametrize("kind", MODELS)


def make(kind: str, dtype: Any = F64) -> Any:
    """With numbers large enough that attention and tokens differ."""
    model = MODELS[kind]()
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1.0, 1.0)
    return model.astype(np.dtype(dtype).name)


def gradients(model: Any) -> dict[str, np.ndarray]:
    return {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}


# --- the cells --------------------------------------------------------------------------------------------------------


def attended(scores: np.ndarray, memory: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.zeros(len(memory))
    e = np.exp(scores[:length] - scores[:length].max())
    weights[:length] = e / e.sum()
    return weights @ memory, weights


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bahdanau_cell_follows_its_equations(backend: str, unroll: bool, rng: np.random.Generator) -> None:
    with ts.use_backend(backend):
        inner = nn.GRUCell(E + M, A, dtype=F64)
        attention = nn.AdditiveAttention(A, M, 2, dtype=F64)
        cell = nn.BahdanauCell(inner, attention)
        x, h, start = draw(rng, T, B, E), draw(rng, B, S, M), draw(rng, B, A)
        loop = nn.Recurrent(cell.over(attention.remember(h, lengths=LENGTHS), need_weights=True))
        loop.unroll = unroll
        (ys, weights), state = loop(x, start)
    w, u, v = (array(p) for p in (attention.query.weight, attention.key.weight, attention.energy))
    for b in range(B):
        s = array(start)[b]
        for t in range(T):
            scores = np.array([v @ np.tanh(w @ s + u @ h_j) for h_j in array(h)[b]])
            context, expected = attended(scores, array(h)[b], LENGTHS[b])
            s = array(inner(np.concatenate([array(x)[t, b], context]), s)[0])
            np.testing.assert_allclose(array(weights)[t, b], expected, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(array(ys)[t, b], np.concatenate([s, context]), rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(array(state)[b], s, rtol=1e-10)
    assert cell.output_size == A + M


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("feeding", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_luong_cell_follows_its_equations(backend: str, feeding: bool, unroll: bool, rng: np.random.Generator) -> None:
    with ts.use_backend(backend):
        inner = nn.LSTMCell(E + 2 * feeding, A, dtype=F64)
        attention = nn.GeneralAttention(A, M, dtype=F64)
        cell = nn.LuongCell(inner, attention, attentional_size=2, input_feeding=feeding, dtype=F64)
        x, memory = draw(rng, T, B, E), draw(rng, B, S, M)
        loop = nn.Recurrent(cell.over(attention.remember(memory, lengths=LENGTHS), need_weights=True))
        loop.unroll = unroll
        (ys, weights), ((h_n, c_n), a_n) = loop(x)
    for b in range(B):
        h, c, a = np.zeros(A), np.zeros(A), np.zeros(2)
        for t in range(T):
            fed = np.concatenate([array(x)[t, b], a]) if feeding else array(x)[t, b]
            h, c = (array(part) for part in inner(fed, (h, c))[1])
            scores = array(memory)[b] @ array(attention.key.weight).T @ h
            context, expected = attended(scores, array(memory)[b], LENGTHS[b])
            a = np.tanh(array(cell.combine.weight) @ np.concatenate([context, h]))
            np.testing.assert_allclose(array(weights)[t, b], expected, rtol=1e-10, atol=1e-14)
            np.testing.assert_allclose(array(ys)[t, b], a, rtol=1e-10, atol=1e-13)
        for part, expected in [(h_n, h), (c_n, c), (a_n, a)]:
            np.testing.assert_allclose(array(part)[b], expected, rtol=1e-10, atol=1e-13)


def test_the_hidden_state_that_asks(rng: np.random.Generator) -> None:
    """By default h of a pair, of a stack that of its last cell; or what the caller says."""
    memory = draw(rng, B, S, M)

    def asked(cell: Any, state: Any, **options: Any) -> np.ndarray:
        seen = []

        class Spy(nn.DotProductAttention):
            def read(self, query: Any, memory: Any) -> Any:
                seen.append(array(query))
                return super().read(query, memory)

        spy = Spy()
        x = draw(rng, B, E)
        nn.BahdanauCell(cell, spy, value_size=M, **options).over(spy.remember(memory))(x, state)
        return seen[0]

    gru, lstm = nn.GRUCell(E + M, M, dtype=F64), nn.LSTMCell(E + M, M, dtype=F64)
    h, c, other = draw(rng, B, M), draw(rng, B, M), draw(rng, B, M)
    np.testing.assert_array_equal(asked(gru, h), array(h))
    np.testing.assert_array_equal(asked(lstm, (h, c)), array(h))
    np.testing.assert_array_equal(asked(lstm, (h, c), query=lambda state: state[1]), array(c))
    stack = nn.StackedCell([gru, nn.ResidualCell(nn.LSTMCell(M, M, dtype=F64))])
    np.testing.assert_array_equal(asked(stack, (other, (h, c))), array(h))


# --- teacher forcing --------------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [F64, np.float32], ids=["float64", "float32"])
def test_compiled_equals_unrolled(kind: str, dtype: type, backend: str, rng: np.random.Generator) -> None:
    """Logits, weights and the gradients of all parameters; with lengths of sources and targets."""
    with ts.use_backend(backend):
        model, source, targets = make(kind, dtype), ids(rng, S, B), ids(rng, T, B)
        found = []
        for unroll in (False, True):
            model.decoder.unroll = model.encoder.layer.unroll = unroll
            model.zero_grad()
            logits, weights = model(source, targets, LENGTHS, [4, 1, 2])
            loss = (logits * ts.tensor(np.cos(np.arange(logits.size)).reshape(logits.shape).astype(dtype))).sum()
            loss = loss if weights is None else loss + (weights * weights).sum()
            loss.backward()
            values = {"logits": array(logits)} | ({} if weights is None else {"weights": array(weights)})
            found.append(values | gradients(model))
    assert set(found[0]) == set(found[1]) >= {name for name, _ in model.named_parameters()}
    for name, expected in found[1].items():
        tolerance = (1e-10 if dtype == F64 else 2e-5) * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(found[0][name], expected, rtol=0, atol=tolerance, err_msg=name)


@each_model
def test_gradients(kind: str, rng: np.random.Generator) -> None:
    """Of all parameters, against differences."""
    model = make(kind)
    source, targets = ids(rng, S, B), ids(rng, T, B)
    names = [name for name, _ in model.named_parameters()]

    def f(*weights: ts.Tensor) -> Any:
        put(model, names, weights)
        logits, weights_ = model(source, targets, LENGTHS, [4, 1, 2])
        return logits if weights_ is None else (logits, weights_)

    ts.check_grads(f, tuple(parameter.detach() for parameter in model.parameters()), directions=1, step=1e-5)


@each_model
def test_forcing_is_stepping(kind: str, rng: np.random.Generator) -> None:
    model, source, targets = make(kind), ids(rng, S, B), ids(rng, T, B)
    logits, weights = model(source, targets, LENGTHS)
    state = model.encode(source, LENGTHS)
    fed = np.concatenate([np.full((1, B), START), targets.numpy()[:-1]])
    for t in range(T):
        output, state = model.decoder(fed[t], state)
        step, seen = output if weights is not None else (output, None)
        np.testing.assert_allclose(array(step), array(logits)[t], rtol=1e-10, atol=1e-12)
        if weights is not None:
            np.testing.assert_allclose(array(seen), array(weights)[t], rtol=1e-10, atol=1e-13)
    assert (weights is None) == (kind == "plain")


@each_model
def test_a_batch_is_its_rows_and_padding_changes_nothing(kind: str, rng: np.random.Generator) -> None:
    model, source, targets = make(kind), ids(rng, S, B), ids(rng, T, B)
    target_lengths = [4, 1, 2]
    logits, weights = model(source, targets, LENGTHS, target_lengths)
    padded = [array(x).copy() for x in (source, targets)]
    for b, (n, m) in enumerate(zip(LENGTHS, target_lengths, strict=True)):
        padded[0][n:, b] = 6
        padded[1][m:, b] = 6
    other, _ = model(*padded, LENGTHS, target_lengths)
    for b, (n, m) in enumerate(zip(LENGTHS, target_lengths, strict=True)):
        row, seen = model(source[:n, b : b + 1], targets[:m, b : b + 1])
        for got in (array(logits), array(other)):
            np.testing.assert_allclose(array(row)[:, 0], got[:m, b], rtol=1e-10, atol=1e-12)
        if weights is not None:
            np.testing.assert_allclose(array(seen)[:, 0], array(weights)[:m, b, :n], rtol=1e-10, atol=1e-13)
            assert not array(weights)[:, b, n:].any()
        after = model.decoder.output(ts.zeros(model.decoder.output.in_features, F64))  # what nothing gives
        np.testing.assert_allclose(array(logits)[m:, b], np.broadcast_to(array(after), (T - m, V)), rtol=1e-12)
    free, _ = model(source, targets, LENGTHS)  # without target lengths the steps after the end are run and mean nothing
    for b, m in enumerate(target_lengths):
        np.testing.assert_allclose(array(free)[:m, b], array(logits)[:m, b], rtol=1e-10, atol=1e-12)


@each_model
def test_batch_first_exchanges_two_axes(kind: str, rng: np.random.Generator) -> None:
    model, source, targets = make(kind), ids(rng, S, B), ids(rng, T, B)
    logits, weights = model(source, targets, LENGTHS)
    tokens = model.greedy_search(source, LENGTHS, max_length=5).tokens.tolist()
    model.batch_first = True
    turned, seen = model(source.T, targets.T, LENGTHS)
    np.testing.assert_array_equal(array(turned).swapaxes(0, 1), array(logits))
    if weights is not None:
        np.testing.assert_array_equal(array(seen).swapaxes(0, 1), array(weights))
    assert model.greedy_search(source.T, LENGTHS, max_length=5).tokens.tolist() == tokens


def test_a_source_of_vectors_and_a_layer_as_encoder(rng: np.random.Generator) -> None:
    cell = nn.GRUCell(E + H, A)
    reader = nn.BahdanauCell(cell, nn.AdditiveAttention(A, H, 6))
    decoder = nn.RecurrentDecoder(nn.Embedding(V, E), reader, nn.Linear(A + H, V))
    model: Any = nn.EncoderDecoder(nn.LSTM(2, H), decoder, START, END, nn.Bridge(2 * H, cell)).astype(F64)
    frames, targets = draw(rng, S, B, 2), ids(rng, T, B)
    logits, weights = model(frames, targets, LENGTHS)
    outputs, state = model.encoder(frames, lengths=LENGTHS)
    memory = reader.attention.remember(outputs.transpose(0, 1), lengths=LENGTHS)
    fed = np.concatenate([np.full((1, B), START), targets.numpy()[:-1]])
    (ys, expected), _ = nn.Recurrent(reader.over(memory, True))(decoder.embedding(fed), model.bridge(state))
    np.testing.assert_allclose(array(logits), array(decoder.output(ys)), rtol=1e-10)
    np.testing.assert_allclose(array(weights), array(expected), rtol=1e-10)


def test_an_encoder_of_any_kind(rng: np.random.Generator) -> None:
    """A mean of embeddings, without a state and without outputs."""
    table = draw(rng, V, H)

    def encoder(source: ts.Tensor, lengths: Any = None) -> Any:
        return None, table[source].mean(0).unsqueeze(0)

    cell = nn.GRUCell(E, H, dtype=F64)
    decoder = nn.RecurrentDecoder(nn.Embedding(V, E, dtype=F64), cell, nn.Linear(H, V, dtype=F64))
    model: Any = nn.EncoderDecoder(encoder, decoder, START, END)
    source, targets = ids(rng, S, B), ids(rng, T, B)
    logits, weights = model(source, targets)
    assert weights is None
    fed = np.concatenate([np.full((1, B), START), targets.numpy()[:-1]])
    ys, _ = nn.Recurrent(cell)(decoder.embedding(fed), table[source].mean(0))
    np.testing.assert_allclose(array(logits), array(decoder.output(ys)), rtol=1e-12)
    unconditional: Any = nn.EncoderDecoder(lambda source, lengths=None: (None, None), decoder, START, END)
    expected, _ = nn.Recurrent(cell)(decoder.embedding(fed))
    np.testing.assert_allclose(array(unconditional(source, targets)[0]), array(decoder.output(expected)), rtol=1e-12)


def test_dropout_acts_in_training_only(rng: np.random.Generator) -> None:
    """On embedded tokens, and inside the decoder's cell; the loop is compiled all the same."""
    model = make("bahdanau")
    source, targets = ids(rng, S, B), ids(rng, T, B)
    expected = array(model.eval()(source, targets)[0])
    for holder, name in [
        (model.encoder, "dropout"),
        (model.decoder, "dropout"),
        (model.decoder.cell.cell, "recurrent_dropout"),
    ]:
        setattr(holder, name, 0.5)
        first, second = (array(model.train()(source, targets)[0]) for _ in range(2))
        assert np.abs(first - second).max() > 1e-3, name
        np.testing.assert_array_equal(array(model.eval()(source, targets)[0]), expected)
        setattr(holder, name, 0.0)
    model.decoder.dropout = 0.5
    scheduled = [array(model.train()(source, targets, teacher_forcing=0.5, greedy=True)[0]) for _ in range(5)]
    assert np.abs(scheduled[0][0] - scheduled[1][0]).max() > 1e-3
    assert all(np.isfinite(each).all() for each in scheduled)


def test_a_row_without_a_source_sees_nothing(rng: np.random.Generator) -> None:
    model, source, targets = make("bahdanau"), ids(rng, S, B), ids(rng, T, B)
    logits, weights = model(source, targets, [5, 0, 2])
    assert not array(weights)[:, 1].any()
    logits[:, 1].sum().backward()
    found = gradients(model)
    assert all(np.isfinite(value).all() for value in found.values())
    assert not found["encoder.layer.weight_ih_l0"].any()
    assert found["decoder.output.weight"].any()


# --- the bridge -------------------------------------------------------------------------------------------------------


def test_bridge(rng: np.random.Generator) -> None:
    """From two layers of a bidirectional LSTM to a stack of a GRU and an LSTM cell."""
    cell = nn.StackedCell([nn.GRUCell(E, 2), nn.LSTMCell(2, 3)])
    bridge: Any = nn.Bridge(4 * H * 2, cell).astype(F64)
    state = (draw(rng, 4, B, H), draw(rng, 4, B, H))
    first, (h, c) = bridge(state)
    joined = np.concatenate([array(part)[i] for part in state for i in range(4)], 1)
    for part, layer in zip((first, h, c), bridge.maps, strict=True):
        expected = np.tanh(joined @ array(layer.weight).T + array(layer.bias))
        np.testing.assert_allclose(array(part), expected, rtol=1e-12)
    assert [name for name, _ in bridge.named_parameters()][:2] == ["maps.0.weight", "maps.0.bias"]
    straight: Any = nn.Bridge(H, nn.RNNCell(E, 2), activation=lambda x: x).astype(F64)
    row = draw(rng, B, H)
    np.testing.assert_allclose(array(straight(row)), array(straight.maps[0](row)), rtol=1e-14)


@pytest.mark.parametrize(
    ("layer", "cell"),
    [
        (lambda: nn.GRU(E, H), lambda: nn.GRUCell(E, H)),
        (lambda: nn.LSTM(E, H), lambda: nn.LSTMCell(E, H)),
        (lambda: nn.LSTM(E, H), lambda: nn.StackedCell([nn.LSTMCell(E, H)])),
        (lambda: nn.LSTM(E, H, num_layers=2), lambda: nn.StackedCell([nn.LSTMCell(E, H), nn.LSTMCell(H, H)])),
        (lambda: nn.GRU(E, H, bidirectional=True), lambda: nn.StackedCell([nn.GRUCell(E, H), nn.GRUCell(H, H)])),
        (lambda: nn.Recurrent(nn.LSTMCell(E, H)), lambda: nn.LSTMCell(E, H)),
    ],
)
def test_states_are_handed_over(layer: Callable[[], Any], cell: Callable[[], Any], rng: np.random.Generator) -> None:
    encoder = nn.RecurrentEncoder(nn.Embedding(V, E), layer())
    model = nn.EncoderDecoder(encoder, nn.RecurrentDecoder(nn.Embedding(V, E), cell(), nn.Linear(H, V)), START, END)
    source = ids(rng, S, B)
    _, state = encoder(source, lengths=LENGTHS)
    inner, memory = model.encode(source, LENGTHS)
    assert memory is None
    depth = 1 if isinstance(encoder.layer, nn.Recurrent) else len(array(flatten(state)[0][0]))
    layers = [[array(part)[i] for part in flatten(state)[0]] for i in range(depth)]
    layers = [[array(part) for part in flatten(state)[0]]] if isinstance(encoder.layer, nn.Recurrent) else layers
    expected = [part for each in layers for part in each]
    for got, want in zip(flatten(inner)[0], expected, strict=True):
        np.testing.assert_array_equal(array(got), want)


# --- scheduled sampling -----------------------------------------------------------------------------------------------


@each_model
def test_always_the_target_is_teacher_forcing(kind: str, rng: np.random.Generator) -> None:
    model, source, targets = make(kind), ids(rng, S, B), ids(rng, T, B)
    state = model.encode(source, LENGTHS)
    fed = ts.concatenate([targets[:1] * 0 + START, targets[:-1]])
    for got, expected in zip(model.decoder.schedule(fed, state, 1.0), model.decoder.force(fed, state), strict=True):
        if expected is not None:
            np.testing.assert_allclose(array(got), array(expected), rtol=1e-10, atol=1e-13)


@each_model
@pytest.mark.parametrize("backend", BACKENDS)
def test_never_the_target_is_greedy_decoding(kind: str, backend: str, rng: np.random.Generator) -> None:
    with ts.use_backend(backend):
        model, source = make(kind), ids(rng, S, B)
        logits, _ = model(source, ids(rng, 9, B), LENGTHS, teacher_forcing=0.0, greedy=True)
        decoded = model.greedy_search(source, LENGTHS, max_length=9)
    for b, length in enumerate(decoded.lengths.tolist()):
        count = min(length + 1, decoded.tokens.shape[1])
        assert array(logits)[:count, b].argmax(-1).tolist() == decoded.tokens[b].tolist()[:count]


@each_model
@pytest.mark.parametrize("backend", BACKENDS)
def test_scheduled_sampling_compiled_equals_unrolled(kind: str, backend: str, rng: np.random.Generator) -> None:
    with ts.use_backend(backend):
        model, source, targets = make(kind), ids(rng, S, B), ids(rng, 8, B)
        found = []
        for unroll in (False, True):
            model.decoder.unroll = unroll
            model.zero_grad()
            ts.manual_seed(5)
            logits, _ = model(source, targets, LENGTHS, [8, 3, 5], teacher_forcing=0.4)
            ts.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
            found.append({"logits": array(logits)} | gradients(model))
    assert set(found[0]) == set(found[1])
    for name, expected in found[1].items():
        np.testing.assert_allclose(found[0][name], expected, rtol=0, atol=1e-10, err_msg=name)


def test_scheduled_sampling_feeds_what_it_says(rng: np.random.Generator) -> None:
    """A decoder without memory or state shows what it was fed; what it draws has its distribution."""
    rows, steps, probability = 4000, 6, 0.3
    logits_of = rng.standard_normal((V, V))

    class Mirror(nn.Module):
        output_size = V

        def initial_state(self, batch: int) -> ts.Tensor:
            return ts.zeros((batch, 1), F64)

        def __call__(self, x: ts.Tensor, state: Any) -> tuple[ts.Tensor, Any]:
            return x, state

    table = ts.tensor(np.eye(V))
    decoder = nn.RecurrentDecoder(lambda tokens: table[tokens], Mirror(), lambda y: y @ ts.tensor(logits_of))
    given = np.full((steps, rows), 6)
    logits, _ = decoder.schedule(given, decoder.begin(None, None, rows), probability)
    fed = np.abs(array(logits)[:, :, None] - logits_of).sum(-1).argmin(-1)
    assert (fed[0] == 6).all()
    p = np.exp(logits_of) / np.exp(logits_of).sum(-1, keepdims=True)
    for t in range(1, steps):
        for before in range(V):
            rows_before = fed[t - 1] == before
            count = rows_before.sum()
            if count < 50:
                continue
            expected = (1 - probability) * p[before] + probability * (np.arange(V) == 6)
            share = np.bincount(fed[t][rows_before], minlength=V) / count
            assert np.abs(share - expected).max() < 5 * math.sqrt(0.25 / count), (t, before)


def test_no_gradient_passes_through_a_drawn_token(rng: np.random.Generator) -> None:
    """The gradients are those of teacher forcing with the tokens that were fed."""
    model, source, targets = make("bahdanau"), ids(rng, S, B), ids(rng, 8, B)
    seen: list[np.ndarray] = []
    table = model.decoder.embedding

    class Spy(nn.Module):
        def __init__(self) -> None:
            self.weight = table.weight

        def __call__(self, tokens: Any) -> ts.Tensor:
            seen.append(np.asarray(array(ts.as_tensor(tokens))))
            return table(tokens)

    model.decoder.embedding = Spy()
    model.decoder.unroll = True
    logits, _ = model(source, targets, LENGTHS, teacher_forcing=0.3)
    (logits * logits).sum().backward()
    expected = gradients(model)
    fed = np.stack(seen)
    model.zero_grad()
    logits, _ = model.decoder.force(fed, model.encode(source, LENGTHS))
    (logits * logits).sum().backward()
    for name, value in gradients(model).items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-10, err_msg=name)
    assert (fed[1:] != array(targets)[:-1]).mean() > 0.3


def test_drawing_by_the_running_sum() -> None:
    """Every class by the share of the numbers that lead to it; the ends of the interval are no class too many."""
    logits = np.log([[0.5, 1e-300, 0.2, 0.3]])
    chances = (np.arange(1000) + 0.5) / 1000
    counts = np.bincount(array(drawn(ts.tensor(np.repeat(logits, 1000, 0)), ts.tensor(chances))), minlength=4)
    assert counts.tolist() == [500, 0, 200, 300]
    edge = np.array([0.0, 0.5, np.nextafter(1, 0), 1.0])
    assert array(drawn(ts.tensor(np.repeat(logits, 4, 0)), ts.tensor(edge))).tolist() == [0, 2, 3, 3]
    first = np.array([[-np.inf, 0.0]])
    assert array(drawn(ts.tensor(first), ts.tensor([0.0]))).tolist() == [1]


def test_decays() -> None:
    assert [nn.linear_decay(k, 0.25, 1.0, 0.4) for k in range(4)] == [1.0, 0.75, 0.5, 0.4]
    assert [nn.exponential_decay(k, 0.5) for k in range(3)] == [1.0, 0.5, 0.25]
    for k in (0, 5, 50):
        assert nn.inverse_sigmoid_decay(k, 10.0) == pytest.approx(10 / (10 + math.exp(k / 10)))
    assert nn.inverse_sigmoid_decay(10**6, 10.0) == pytest.approx(0.0, abs=1e-300)


# --- decoding ---------------------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("backend", BACKENDS)
def test_beam_search_finds_the_best_of_all_sequences(kind: str, backend: str, rng: np.random.Generator) -> None:
    """The scores of all sequences come from teacher forcing: one batch of them a source."""
    longest = 2
    with ts.use_backend(backend):
        model, source = make(kind), ids(rng, S, B)
        best = model.beam_search(source, LENGTHS, max_length=longest, beams=V**longest, length_penalty=0.6, n_best=3)
        words = [w for w in range(V) if w != END]
        every = [(*body, END) for n in range(longest) for body in itertools.product(words, repeat=n)]
        every += itertools.product(words, repeat=longest)
        targets = np.array([(*y, *[END] * (longest - len(y))) for y in every]).T
        for b, n in enumerate(LENGTHS):
            repeated = np.repeat(array(source)[:n, b : b + 1], len(every), 1)
            logits, weights = model(repeated, targets)
            log_p = array(ts.functions.log_softmax(logits))
            scores = []
            for i, y in enumerate(every):
                total = sum(log_p[t, i, token] for t, token in enumerate(y))
                scores.append((total / ((5 + len(y)) / 6) ** 0.6, i))
            for place, (score, i) in enumerate(sorted(scores, reverse=True)[:3]):
                y = list(every[i])
                assert best.tokens[b, place].tolist()[: len(y)] == y
                np.testing.assert_allclose(best.scores[b, place].item(), score, rtol=1e-10)
                if weights is not None:
                    seen = array(best.weights)[b, place, : len(y)]
                    np.testing.assert_allclose(seen[:, :n], array(weights)[: len(y), i], rtol=1e-9, atol=1e-13)
                    assert not seen[:, n:].any()


def test_sampling_draws_from_the_model(rng: np.random.Generator) -> None:
    model, source = make("bahdanau"), ids(rng, S, 1)
    many = ts.tensor(np.repeat(array(source), 4000, 1))
    decoded = model.sample(many, max_length=1)
    p = array(ts.softmax(model(source, ts.zeros((1, 1), "int64"))[0]))[0, 0]
    share = np.bincount(decoded.tokens.numpy()[:, 0], minlength=V) / 4000
    assert np.abs(share - p).max() < 5 * math.sqrt(0.25 / 4000)
    assert not decoded.scores.requires_grad


@pytest.mark.slow
def test_it_learns_to_turn_words_around() -> None:
    """Trained on random words of up to five letters: greedy decoding spells them backwards, and attention looks back."""
    rng = np.random.default_rng(0)
    letters, batch, longest = 6, 32, 5
    encoder = nn.RecurrentEncoder(nn.Embedding(letters + 2, 12), nn.GRU(12, 24, bidirectional=True))
    cell = nn.GRUCell(12 + 48, 24)
    reader = nn.BahdanauCell(cell, nn.AdditiveAttention(24, 48, 24))
    decoder = nn.RecurrentDecoder(nn.Embedding(letters + 2, 12), reader, nn.Linear(72, letters + 2))
    model: Any = nn.EncoderDecoder(encoder, decoder, START, END, nn.Bridge(48, cell))

    def words() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths = rng.integers(1, longest + 1, batch)
        source = rng.integers(2, letters + 2, (longest, batch))
        targets = np.zeros((longest + 1, batch), np.int64)
        for b, n in enumerate(lengths):
            targets[:n, b] = source[:n, b][::-1]
        return source, targets, lengths

    optimizer = ts.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(400):
        source, targets, lengths = words()
        logits, _ = model(source, targets, lengths)
        losses = ts.cross_entropy(logits.flatten(0, 1), targets.reshape(-1), reduction="none").reshape(*targets.shape)
        counted = np.arange(longest + 1)[:, None] <= lengths
        optimizer.zero_grad()
        (losses * counted.astype(np.float32)).sum().backward()
        for parameter in model.parameters():
            parameter.grad = parameter.grad * (1 / counted.sum())
        optimizer.step()
    source, targets, lengths = words()
    decoded = model.eval().beam_search(source, lengths, max_length=longest + 1)
    right, looked = [], []
    for b, n in enumerate(lengths):
        right.append(decoded.tokens[b, 0].tolist()[: n + 1] == targets[: n + 1, b].tolist())
        looked += (decoded.weights.numpy()[b, 0, :n].argmax(-1) == np.arange(n)[::-1]).tolist()
    assert np.mean(right) > 0.9
    assert np.mean(looked) > 0.6


# --- what is refused --------------------------------------------------------------------------------------------------

SOURCE, TARGETS = np.zeros((S, B), np.int64), np.zeros((T, B), np.int64)


def never_attends() -> Any:
    encoder = lambda source, lengths=None: (None, None)
    return nn.EncoderDecoder(encoder, luong().decoder, START, END)


def mismatched() -> Any:
    encoder = nn.RecurrentEncoder(nn.Embedding(V, E), nn.GRU(E, H + 1))
    return nn.EncoderDecoder(encoder, luong().decoder, START, END)


class TwoParts(nn.Module):
    """A cell whose state does not say which part asks."""

    output_size = 2

    def initial_state(self, batch: int) -> Any:
        return {"a": ts.zeros((batch, 2)), "b": ts.zeros((batch, 2))}

    def __call__(self, x: Any, state: Any) -> Any:
        return state["a"], state


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: bahdanau()(SOURCE, TARGETS, [6, 1, 1]), ts.ShapeError, "5 steps .* got 6 in row 0"),
        (lambda: bahdanau()(SOURCE, TARGETS, [1, 1]), ts.ShapeError, "lengths for 2 rows and a source of 3"),
        (lambda: bahdanau()(SOURCE, TARGETS, [1.0, 1, 1]), ts.DTypeError, "EncoderDecoder takes integers as lengths"),
        (lambda: bahdanau()(SOURCE, TARGETS, None, [5, 1, 1]), ts.ShapeError, "4 steps .* got 5 in row 0"),
        (lambda: bahdanau()(SOURCE[:, :0], TARGETS[:, :0]), ts.ShapeError, r"at least one step and row, got \(5, 0\)"),
        (lambda: bahdanau()(SOURCE[:0], TARGETS), ts.ShapeError, r"got \(0, 3\)"),
        (lambda: bahdanau()(SOURCE[:, 0], TARGETS), ts.ShapeError, r"a source \(S, B, ...\)"),
        (lambda: bahdanau()(SOURCE, TARGETS[:, :2]), ts.ShapeError, r"targets \(T, B\) with T >= 1 and B = 3, got \(4, 2\)"),
        (lambda: bahdanau()(SOURCE, TARGETS * 1.0), ts.DTypeError, "integer ids as targets, got dtype float64"),
        (lambda: bahdanau()(SOURCE + V, TARGETS), ts.ShapeError, r"id 7, which is not in \[0, 7\)"),
        (lambda: bahdanau()(SOURCE, TARGETS, teacher_forcing=1.5), ValueError, r"teacher forcing probability .* got 1.5"),
        (lambda: bahdanau()(SOURCE, TARGETS - 1), ts.ShapeError, r"id -1, which is not in \[0, 7\)"),
        (
            lambda: never_attends()(SOURCE, TARGETS),
            ts.ShapeError,
            "LuongCell reads an encoder's outputs, but the encoder gave none",
        ),
        (lambda: mismatched()(SOURCE, TARGETS), ts.ShapeError, r"\[\(1, 3, 5\)\] is not one .* LSTMCell.* give bridge="),
        (lambda: nn.RecurrentEncoder(len, nn.GRU(2, 2, batch_first=True)), ValueError, "batch_first=False"),
        (lambda: nn.EncoderDecoder(nn.GRU(2, 2, batch_first=True), None, 1, 0), ValueError, "batch_first=False"),
        (lambda: nn.RecurrentEncoder(len, nn.GRU(2, 2), dropout=2), ValueError, r"lies in \[0, 1\], got 2"),
        (lambda: nn.RecurrentDecoder(len, len, len), ts.DTypeError, "RecurrentDecoder takes a cell .* got builtin"),
        (lambda: nn.BahdanauCell(nn.GRUCell(2, 2), nn.Linear(2, 2)), ts.DTypeError, "takes an attention .* got Linear"),
        (lambda: nn.BahdanauCell(nn.Linear(2, 2), nn.DotProductAttention()), ts.DTypeError, "takes a cell .* got Linear"),
        (
            lambda: nn.BahdanauCell(TwoParts(), nn.DotProductAttention(), value_size=2).over(
                nn.DotProductAttention().remember(ts.zeros((B, S, 2)))
            )(ts.zeros((B, 2))),
            ts.DTypeError,
            "TwoParts has several parts; .* query=",
        ),
        (lambda: nn.Bridge(3, nn.GRUCell(2, 2))(ts.zeros((1, B, 4))), ts.ShapeError, "made for 3 features .* got 4"),
        (lambda: nn.Bridge(3, nn.GRUCell(2, 2))(ts.zeros(3)), ts.ShapeError, r"\(L, B, H\) or \(B, H\), got shape \(3,\)"),
        (lambda: bahdanau().beam_search(SOURCE, max_length=0), ts.ShapeError, "max_length >= 1"),
        (lambda: bahdanau().greedy_search(SOURCE[:, :0]), ts.ShapeError, r"at least one step and row, got \(5, 0\)"),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
