"""Decoding against brute force over all sequences of small vocabularies, and against a search written with plain lists."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq import nn

V, END, LONGEST = 4, 0, 4
BACKENDS = ["numpy", "numba"]

# A decoder whose logits depend on all tokens so far: a recurrent state (N, 3), and a constant of each row (N, 2).


class Toy:
    """A small random recurrent net, as a decoder of this library and as a function of whole sequences in NumPy."""

    def __init__(self, seed: int, sharpness: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        self.embedding, self.recurrent = rng.standard_normal((V, 3)), rng.standard_normal((3, 3))
        self.constant, self.output = rng.standard_normal((2, 3)), sharpness * rng.standard_normal((3, V))
        self.calls = 0

    def __call__(self, tokens: ts.Tensor, state: Any) -> tuple[Any, Any]:
        self.calls += 1
        h, c = state["h"], state["c"]
        h = ts.tanh(ts.tensor(self.embedding)[tokens] + h @ ts.tensor(self.recurrent) + c @ ts.tensor(self.constant))
        return (h @ ts.tensor(self.output), h[:, :2]), {"h": h, "c": c}

    def run(self, state: dict[str, np.ndarray], row: int, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """log P of the next token and what the decoder returns beside it, at every step of one sequence."""
        h, log_p, seen = state["h"][row], [], []
        for token in tokens:
            h = np.tanh(self.embedding[token] + h @ self.recurrent + state["c"][row] @ self.constant)
            logits = h @ self.output
            log_p.append(logits - np.log(np.exp(logits).sum()))
            seen.append(h[:2])
        return np.array(log_p), np.array(seen)

    def log_p(self, state: dict[str, np.ndarray], row: int, start: int, sequence: tuple[int, ...]) -> float:
        steps, _ = self.run(state, row, [start, *sequence[:-1]])
        return float(sum(step[token] for step, token in zip(steps, sequence, strict=True)))


def states(rng: np.random.Generator, batch: int) -> dict[str, np.ndarray]:
    return {"h": rng.standard_normal((batch, 3)), "c": rng.standard_normal((batch, 2))}


def tensors(state: dict[str, np.ndarray]) -> dict[str, ts.Tensor]:
    return {name: ts.tensor(array) for name, array in state.items()}


def all_sequences(longest: int) -> list[tuple[int, ...]]:
    """Every complete sequence: those with an end token, at the end only, and those cut off."""
    words = [w for w in range(V) if w != END]
    ended = [(*body, END) for n in range(longest) for body in itertools.product(words, repeat=n)]
    return ended + list(itertools.product(words, repeat=longest))


def penalised(log_p: float, length: int, alpha: float) -> float:
    return log_p / ((5 + length) / 6) ** alpha


def rows_of(decoded: nn.Decoded) -> list[tuple[int, ...]]:
    """The tokens of each row up to the end token, which is among them."""
    flat = decoded.tokens.numpy().reshape(-1, decoded.tokens.shape[-1]).tolist()
    return [tuple(row[: row.index(END) + 1]) if END in row else tuple(row) for row in flat]


# --- beam search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all_sequences(
    alpha: float, backend: str, rng: np.random.Generator
) -> None:
    with ts.use_backend(backend):
        for seed in range(8):
            toy, state, start = Toy(seed), states(rng, 3), [1, 2, 3]
            best = nn.beam_search(toy, tensors(state), start, END, LONGEST, beams=V**LONGEST, length_penalty=alpha, n_best=5)
            found, scores = rows_of(best), best.scores.numpy()
            for row in range(3):
                every = [(penalised(toy.log_p(state, row, start[row], y), len(y), alpha), y) for y in all_sequences(LONGEST)]
                every.sort(reverse=True)
                np.testing.assert_allclose(scores[row], [score for score, _ in every[:5]], rtol=1e-10)
                assert found[5 * row : 5 * row + 5] == [y for _, y in every[:5]]


def beam_by_hand(
    toy: Toy, state: Any, row: int, start: int, beams: int, alpha: float, longest: int, early: bool, n_best: int
) -> list[tuple[float, tuple[int, ...]]]:
    """The same search for one row, with lists of (log P, sequence)."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    complete: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, longest + 1):
        candidates = []
        for log_p, y in live:
            steps, _ = toy.run(state, row, [start, *y])
            candidates += [(log_p + steps[-1][token], (*y, token)) for token in range(V)]
        candidates.sort(reverse=True)
        complete += [(penalised(p, length, alpha), y) for p, y in candidates[:beams] if y[-1] == END]
        complete = sorted(complete, reverse=True)[:beams]
        live = [(p, y) for p, y in candidates if y[-1] != END][:beams]
        if early and len(complete) == beams:
            return complete
        if len(complete) >= n_best and complete[n_best - 1][0] >= penalised(live[0][0], longest, alpha):
            return complete
    return sorted(complete + [(penalised(p, longest, alpha), y) for p, y in live], reverse=True)[:beams]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    batch=st.integers(1, 4),
    beams=st.integers(1, 6),
    alpha=st.sampled_from([0.0, 0.6, 1.0, 5.0]),
    longest=st.integers(1, 6),
    early=st.booleans(),
    data=st.data(),
)
def test_beam_search_is_the_one_written_with_lists(
    seed: int, batch: int, beams: int, alpha: float, longest: int, early: bool, data: Any
) -> None:
    n_best = data.draw(st.integers(1, beams))
    toy, state = Toy(seed), states(np.random.default_rng(seed), batch)
    start = [1 + row % 3 for row in range(batch)]
    options = {"beams": beams, "length_penalty": alpha, "early_stopping": early, "n_best": n_best}
    best = nn.beam_search(toy, tensors(state), start, END, longest, **options)
    found = rows_of(best)
    assert best.weights is not None
    for row in range(batch):
        expected = beam_by_hand(toy, state, row, start[row], beams, alpha, longest, early, n_best)[:n_best]
        for n, (score, y) in enumerate(expected):
            np.testing.assert_allclose(best.scores[row, n].item(), score, rtol=1e-10)
            assert found[row * n_best + n] == y
            assert best.lengths[row, n].item() == len(y) - (y[-1] == END)
            _, seen = toy.run(state, row, [start[row], *y[:-1]])
            np.testing.assert_allclose(best.weights[row, n].numpy()[: len(y)], seen, rtol=1e-10)
            assert not best.weights[row, n].numpy()[len(y) :].any()
        assert not np.isfinite(best.scores[row].numpy()[len(expected) :]).any()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_one_beam_is_greedy(alpha: float, rng: np.random.Generator) -> None:
    for seed in range(20):
        toy, state = Toy(seed), tensors(states(rng, 5))
        greedy = nn.greedy_search(toy, state, ts.tensor([1] * 5), END, 6)
        best = nn.beam_search(toy, state, 1, END, 6, beams=1, length_penalty=alpha, early_stopping=True)
        assert rows_of(best) == rows_of(greedy)
        lengths = np.array([len(y) for y in rows_of(greedy)])
        np.testing.assert_allclose(best.scores.numpy()[:, 0] * ((5 + lengths) / 6) ** alpha, greedy.scores.numpy(), rtol=1e-12)
        np.testing.assert_array_equal(best.lengths.numpy()[:, 0], greedy.lengths.numpy())


def test_stopping_when_nothing_better_is_left_changes_nothing(rng: np.random.Generator) -> None:
    """A sharp decoder that ends at once: the search stops long before max_length."""
    toy, state = Toy(3, sharpness=0.0), tensors(states(rng, 2))
    toy.output[:, END] = 0

    def sharp(tokens: ts.Tensor, state: Any) -> tuple[Any, Any]:
        logits, state = toy(tokens, state)
        return logits[0] + 20.0 * ts.one_hot(ts.full(tokens.shape, END, "int64"), V, "float64"), state

    best = nn.beam_search(sharp, state, 1, END, 1000, beams=3)
    assert toy.calls < 10
    assert rows_of(best) == [(END,)] * 2


@pytest.mark.parametrize("search", ["greedy", "beam"])
def test_a_batch_is_its_rows(search: str, rng: np.random.Generator) -> None:
    toy, state, start = Toy(11), states(rng, 6), np.array([1, 2, 3, 1, 2, 3])

    def run(rows: slice) -> nn.Decoded:
        some = tensors({name: array[rows] for name, array in state.items()})
        if search == "greedy":
            return nn.greedy_search(toy, some, start[rows], END, 7)
        return nn.beam_search(toy, some, start[rows], END, 7, beams=3, n_best=2)

    whole = run(slice(None))
    for row in range(6):
        one = run(slice(row, row + 1))
        size = one.tokens.shape[-1]
        np.testing.assert_array_equal(one.tokens.numpy()[0], whole.tokens.numpy()[row][..., :size])
        assert (whole.tokens.numpy()[row][..., size:] == END).all()
        np.testing.assert_allclose(one.scores.numpy()[0], whole.scores.numpy()[row], rtol=1e-12)
        np.testing.assert_array_equal(one.lengths.numpy()[0], whole.lengths.numpy()[row])
        np.testing.assert_allclose(one.weights.numpy()[0], whole.weights.numpy()[row][..., :size, :], rtol=1e-12)


def test_what_the_decoder_returns_untouched_is_not_moved(rng: np.random.Generator) -> None:
    toy, state, seen = Toy(5), states(rng, 2), []

    def watched(tokens: ts.Tensor, state: Any) -> tuple[Any, Any]:
        seen.append(state)
        return toy(tokens, state)

    nn.beam_search(watched, tensors(state), 1, END, 5, beams=3)
    assert all(each["c"].data is seen[0]["c"].data for each in seen)
    np.testing.assert_array_equal(seen[0]["c"].numpy(), np.repeat(state["c"], 3, 0))


def test_a_state_that_is_exchanged_once_and_then_kept_is_moved(rng: np.random.Generator) -> None:
    """A part that differs between the beams of a row must follow them, also where the decoder leaves it alone."""
    log_p = np.log([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.5, 0.2], [0.1, 0.6, 0.1, 0.2], [0.05, 0.45, 0.3, 0.2]])

    def decoder(tokens: ts.Tensor, state: Any) -> tuple[Any, Any]:
        first, steps = state
        if steps.numpy()[0, 0] == 1:  # the first token is remembered for good, and decides everything
            first = tokens.unsqueeze(1)
        kind = first[:, 0] if steps.numpy()[0, 0] else tokens
        return ts.tensor(log_p)[kind], (first, steps + 1)

    state = (ts.zeros((1, 1), "int64"), ts.zeros((1, 1), "int64"))
    best = nn.beam_search(decoder, state, [0], None, 4, beams=V**4, length_penalty=0.0, n_best=3)
    every = sorted(
        ((log_p[0, y[0]] + log_p[y[0], list(y[1:])].sum(), y) for y in itertools.product(range(V), repeat=4)),
        reverse=True,
    )
    np.testing.assert_allclose(best.scores.numpy()[0], [score for score, _ in every[:3]], rtol=1e-12)


def test_without_an_end_all_sequences_have_full_length(rng: np.random.Generator) -> None:
    toy, state = Toy(1), states(rng, 2)
    for decoded in (
        nn.greedy_search(toy, tensors(state), 1, None, 5),
        nn.sample(toy, tensors(state), 1, None, 5),
        nn.beam_search(toy, tensors(state), 1, None, 5, beams=2),
    ):
        assert decoded.tokens.shape[-1] == 5
        assert (decoded.lengths.numpy() == 5).all()


def test_fewer_sequences_than_asked_for() -> None:
    """A vocabulary of the end token alone has one sequence."""
    only = lambda tokens, state: (ts.zeros((len(tokens), 1)), state)
    best = nn.beam_search(only, None, [0], 0, 4, beams=3, n_best=2)
    assert best.tokens.tolist() == [[[0], [0]]]
    assert best.lengths.tolist() == [[0, 0]]
    assert best.scores.tolist() == [[0.0, -math.inf]]


# --- greedy and sampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_takes_the_likeliest(backend: str, rng: np.random.Generator) -> None:
    with ts.use_backend(backend):
        for seed in range(10):
            toy, state, start = Toy(seed), states(rng, 4), [1, 2, 3, 3]
            decoded = nn.greedy_search(toy, tensors(state), start, END, 6, pad=9)
            for row in range(4):
                tokens: list[int] = []
                while len(tokens) < 6 and END not in tokens:
                    steps, seen = toy.run(state, row, [start[row], *tokens])
                    tokens.append(int(steps[-1].argmax()))
                count = len(tokens)
                assert decoded.tokens[row].tolist() == tokens + [9] * (decoded.tokens.shape[1] - count)
                assert decoded.lengths[row].item() == count - (END in tokens)
                np.testing.assert_allclose(
                    decoded.scores[row].item(), toy.log_p(state, row, start[row], tuple(tokens)), rtol=1e-10
                )
                np.testing.assert_allclose(decoded.weights[row].numpy()[:count], seen, rtol=1e-10)
                assert not decoded.weights[row].numpy()[count:].any()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_p": 0.7}, {"top_k": 3, "top_p": 0.5}])
def test_sampling_draws_whole_sequences_with_their_probabilities(options: dict[str, Any], rng: np.random.Generator) -> None:
    toy, one, count = Toy(2, sharpness=1.0), states(rng, 1), 20_000
    state = {name: np.repeat(array, count, 0) for name, array in one.items()}
    decoded = nn.sample(toy, tensors(state), 1, END, 3, **options)
    drawn = Counter(rows_of(decoded))
    for y in all_sequences(3):
        steps, _ = toy.run(one, 0, [1, *y[:-1]])
        p = math.prod(by_hand(step, **options)[token] for step, token in zip(steps, y, strict=True))
        assert abs(drawn[y] / count - p) < 5 * math.sqrt(p * (1 - p) / count) + 1e-9, y
    first = rows_of(decoded)[0]
    np.testing.assert_allclose(decoded.scores[0].item(), toy.log_p(one, 0, 1, first), rtol=1e-10)


def by_hand(log_p: np.ndarray, temperature: float = 1.0, top_k: int = V, top_p: float = 1.0) -> np.ndarray:
    """The distribution that is drawn from: token by token, the likeliest first."""
    p = np.exp(log_p / temperature)
    order = np.argsort(-p, kind="stable")
    p[order[top_k:]] = 0
    p /= p.sum()
    total, kept = 0.0, []
    for token in order:
        kept.append(token)
        total += p[token]
        if total >= top_p:
            break
    p = np.where(np.isin(np.arange(len(p)), kept), p, 0)
    return p / p.sum()


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.integers(-6, 6), min_size=1, max_size=8),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.one_of(st.none(), st.integers(1, 9)),
    top_p=st.one_of(st.none(), st.floats(0.01, 1.0)),
)
def test_filter_logits(logits: list[int], temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Equal logits are among those of integers; the first of them stays."""
    x = np.array(logits, dtype=np.float64) * 0.7
    log_p = x - np.log(np.exp(x).sum())
    filtered = nn.filter_logits(ts.tensor([x, x]), temperature, top_k, top_p)
    expected = by_hand(log_p, temperature, len(x) if top_k is None else top_k, 1.0 if top_p is None else top_p)
    borders = np.cumsum(np.sort(by_hand(log_p, temperature, len(x) if top_k is None else top_k))[::-1])
    if top_p is not None and np.abs(borders - top_p).min() < 1e-12:
        return  # which side of the border a sum falls on is a matter of rounding
    np.testing.assert_allclose(ts.softmax(filtered).numpy(), [expected] * 2, rtol=1e-10, atol=1e-14)
    kept = np.isfinite(filtered.numpy()[0])
    np.testing.assert_allclose(filtered.numpy()[0][kept], x[kept] / temperature, rtol=1e-14)


def test_top_p_ends_with_the_token_that_reaches_it() -> None:
    for p, count in [(0.25, 1), (0.5, 2), (0.51, 3), (1.0, 4)]:
        assert np.isfinite(nn.filter_logits(ts.zeros(4), top_p=p).numpy()).tolist() == [True] * count + [False] * (4 - count)


def test_sampling_follows_the_seed_and_at_temperature_0_is_greedy(rng: np.random.Generator) -> None:
    toy, state = Toy(4), tensors(states(rng, 50))
    runs = []
    for _ in range(2):
        ts.manual_seed(7)
        runs.append(nn.sample(toy, state, 1, END, 8).tokens.tolist())
    assert runs[0] == runs[1] != nn.sample(toy, state, 1, END, 8).tokens.tolist()
    cold = nn.sample(toy, state, 1, END, 8, temperature=0)
    assert cold.tokens.tolist() == nn.greedy_search(toy, state, 1, END, 8).tokens.tolist()


def test_nothing_is_recorded(rng: np.random.Generator) -> None:
    w = ts.Parameter(rng.standard_normal((V, V)))
    decoder = lambda tokens, state: (w[tokens], state)
    for search in (nn.greedy_search, nn.sample, nn.beam_search):
        assert not search(decoder, None, [1, 2], END, 3).scores.requires_grad


# --- a Transformer's decoder ------------------------------------------------------------------------------------------


def test_a_decoder_whose_state_is_the_prefix(rng: np.random.Generator) -> None:
    """Parts of the state may grow along axes after the first."""
    table = rng.standard_normal((V, V))

    def decoder(tokens: ts.Tensor, prefix: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        prefix = ts.concatenate([prefix, tokens.unsqueeze(1)], 1)
        return ts.tensor(table)[prefix].mean(1), prefix

    def log_p(y: tuple[int, ...]) -> float:
        total, prefix = 0.0, [1]
        for token in y:
            logits = table[prefix].mean(0)
            total += logits[token] - np.log(np.exp(logits).sum())
            prefix.append(token)
        return total

    best = nn.beam_search(decoder, ts.zeros((1, 0), "int64"), 1, END, 4, beams=V**4)
    score, y = max((penalised(log_p(y), len(y), 0.6), y) for y in all_sequences(4))
    assert rows_of(best) == [y]
    np.testing.assert_allclose(best.scores.item(), score)


# --- what is refused --------------------------------------------------------------------------------------------------

FLAT: Callable[..., Any] = lambda tokens, state: (ts.zeros((len(tokens), 3)), state)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: nn.greedy_search(FLAT, None, 1, 0, 5), ts.ShapeError, "one number of rows .* got none"),
        (lambda: nn.greedy_search(FLAT, ts.zeros((3, 1)), [1, 1], 0, 5), ts.ShapeError, r"got \[2, 3\]"),
        (lambda: nn.greedy_search(FLAT, None, [1], 0, 0), ts.ShapeError, "max_length >= 1, got 0"),
        (lambda: nn.greedy_search(FLAT, None, [1.0], 0, 3), ts.DTypeError, "start is an integer"),
        (lambda: nn.greedy_search(FLAT, None, [[1]], 0, 3), ts.ShapeError, r"one a row, got int64 of shape \(1, 1\)"),
        (lambda: nn.beam_search(FLAT, None, [1], 0, 3, beams=0), ts.ShapeError, "1 to 0 sequences of 0 beams"),
        (lambda: nn.beam_search(FLAT, None, [1], 0, 3, beams=2, n_best=3), ts.ShapeError, "2 beams, got n_best=3"),
        (lambda: nn.beam_search(FLAT, None, [1], 0, 3, length_penalty=-1), ValueError, "length_penalty is not negative"),
        (lambda: nn.sample(FLAT, None, [1], 0, 3, temperature=-1), ValueError, "temperature is positive, got -1"),
        (lambda: nn.sample(FLAT, None, [1], 0, 3, top_k=0), ValueError, "top_k keeps at least one token, got 0"),
        (lambda: nn.sample(FLAT, None, [1], 0, 3, top_p=1.5), ValueError, r"top_p .* \(0, 1\], got 1.5"),
        (lambda: nn.greedy_search(lambda t, s: (t, s), None, [1], 0, 3), ts.ShapeError, r"logits \(N, V\) for 1 tokens"),
        (
            lambda: nn.beam_search(lambda t, s: (ts.full((len(t), 2), math.nan), s), None, [1], 0, 3),
            ts.NonFiniteError,
            "the decoder gave NaN",
        ),
    ],
)
def test_refused(call: Callable[[], Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
