"""From examples to batches: vocabularies of words, padding, loaders, threads, windows, splits."""

from __future__ import annotations

import gc
import json
import signal
import threading
import time
from collections import Counter, namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyseq as ts
from tinyseq.data import (
    CharVocabulary,
    Loader,
    Padded,
    Prefetch,
    Vocabulary,
    Windows,
    collate_padded,
    collate_stacked,
    pad_sequences,
    split_by_group,
    unpad,
)
from tinyseq.errors import DataError, DTypeError

# --- Vocabulary -------------------------------------------------------------------------------------------------------

SENTENCES = [["b", "a", "b"], ["c", "b", "a"], ["d"]]


def test_frequent_tokens_come_first_and_equals_in_order() -> None:
    assert Vocabulary.build(SENTENCES).tokens == ("<pad>", "<unk>", "b", "a", "c", "d")
    assert Vocabulary.build(SENTENCES, min_count=2, pad=None).tokens == ("<unk>", "b", "a")
    assert Vocabulary.build(SENTENCES, max_size=4, end="</s>").tokens == ("<pad>", "<unk>", "</s>", "b")
    assert Vocabulary.build(SENTENCES, pad=None, unknown=None).tokens == ("b", "a", "c", "d")
    special = Vocabulary.build([["<unk>", "x", "<mask>"]], extra=("<mask>",))
    assert special.tokens == ("<pad>", "<unk>", "<mask>", "x")
    assert Vocabulary.build(["abba"]).tokens[2:] == ("a", "b")


def test_encoding_and_decoding() -> None:
    v = Vocabulary(["x", "y"], begin="<s>", end="</s>")
    assert (v.pad_id, v.unknown_id, v.begin_id, v.end_id, len(v)) == (0, 1, 2, 3, 6)
    ids = v.encode(["y", "z", "x"], begin=True, end=True)
    assert ids.dtype == np.int64
    assert ids.tolist() == [2, 5, 1, 4, 3]
    assert v.decode(ts.tensor([2, 5, 1, 4, 3, 4, 4])) == ["y", "<unk>", "x"]
    assert v.decode([]) == []
    assert v.encode([]).dtype == np.int64
    assert "x" in v
    assert "z" not in v
    assert repr(v) == "<Vocabulary of 6: '<pad>', '<unk>', '<s>', '</s>', 'x', 'y'>"


@given(st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=5), min_size=1, max_size=5))
def test_what_is_built_from_a_text_encodes_it(sequences: list[list[str]]) -> None:
    v = Vocabulary.build(sequences, pad="\0pad", unknown="\0unk")
    for sequence in sequences:
        if "\0pad" not in sequence:
            assert v.decode(v.encode(sequence)) == sequence


def test_vocabularies_on_disk(tmp_path: Path) -> None:
    v = Vocabulary(["é", "\ud800"], unknown=None, end="</s>", extra=["<m>"])
    v.save(tmp_path / "v.json")
    again = Vocabulary.load(tmp_path / "v.json")
    assert again.tokens == v.tokens
    assert (again.pad_id, again.unknown_id, again.end_id) == (0, None, 1)
    again.save(tmp_path / "w.json")
    assert (tmp_path / "w.json").read_bytes() == (tmp_path / "v.json").read_bytes()
    characters = CharVocabulary("a\U0001f3ad\n", unknown=True)
    characters.save(tmp_path / "c.json")
    loaded = CharVocabulary.load(tmp_path / "c.json")
    assert (loaded.characters, loaded.unknown_id) == (characters.characters, 3)
    for kind, name in ((Vocabulary, "c.json"), (CharVocabulary, "v.json")):
        with pytest.raises(DataError, match=rf"{name}' holds no vocabulary of this kind"):
            kind.load(tmp_path / name)
    (tmp_path / "bad.json").write_text("[1")
    with pytest.raises(DataError, match="holds no vocabulary"):
        Vocabulary.load(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"cannot read the vocabulary .*none.json'"):
        CharVocabulary.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot write the vocabulary"):
        v.save(tmp_path / "no" / "v.json")
    assert json.loads((tmp_path / "v.json").read_text())["extra"] == ["<m>"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocabulary(["a", "b", "a"]), DataError, "token 'a' occurs twice"),
        (lambda: Vocabulary(["<pad>"]), DataError, "'<pad>' occurs twice"),
        (lambda: Vocabulary([3]), DataError, "tokens are texts, not int: 3"),
        (lambda: Vocabulary([], pad=None, unknown=None), DataError, "at least one token"),
        (lambda: Vocabulary.build(SENTENCES, max_size=1), DataError, "max_size=1 has no room for its 2 special"),
        (lambda: Vocabulary(["a"], unknown=None).encode("ab"), DataError, "token 'b' is not among the 2"),
        (lambda: Vocabulary(["a"]).encode("a", end=True), DataError, "no token to end a sequence"),
        (lambda: Vocabulary(["a"]).decode([7]), DataError, "the id 7 at position 0 is outside the vocabulary's 0 to 2"),
        (lambda: Vocabulary(["a"]).decode([0.5]), DTypeError, "ids are integers, not float64"),
    ],
)
def test_vocabularies_refuse(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- padding ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.booleans())
def test_what_is_padded_is_unpadded(lengths: list[int], batch_first: bool) -> None:
    sequences = [np.arange(2 * n).reshape(n, 2) + 1 for n in lengths]
    padded = pad_sequences(sequences, -7, batch_first)
    assert padded.lengths.tolist() == lengths
    assert padded.values.shape == ((len(lengths), max(lengths), 2) if batch_first else (max(lengths), len(lengths), 2))
    assert padded.values.flags.c_contiguous
    assert (padded.values == -7).sum() == 2 * sum(max(lengths) - n for n in lengths)
    for row, sequence in zip(unpad(*padded, batch_first=batch_first), sequences, strict=True):
        np.testing.assert_array_equal(row, sequence)


def test_dtypes_are_those_of_tinyseq() -> None:
    for sequences, dtype in (
        ([[1, 2], []], np.int64),
        ([[], [0.5]], np.float32),
        ([[True], [False]], np.bool_),
        ([np.ones(1), np.ones(2)], np.float64),
        ([np.ones(1, np.int32)], np.int32),
        ([ts.tensor([1.0]), ts.tensor([2.0, 3.0])], np.float32),
    ):
        assert pad_sequences(sequences).values.dtype == dtype
    assert pad_sequences([[1]], length=3).values.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pad_sequences([]), "a batch of no sequences"),
        (lambda: pad_sequences([np.zeros((2, 3)), np.zeros((2, 4))]), r"number 0 has shape \(2, 3\) and number 1 has .*4\)"),
        (lambda: pad_sequences([3]), r"number 0 has shape \(\)"),
        (lambda: pad_sequences(["ab"]), "sequences are numbers, but here is 'ab'"),
        (lambda: pad_sequences([[1, 2, 3]], length=2), "sequence 0 has 3 steps, more than length=2"),
        (lambda: unpad(np.zeros((3, 2)), [1, 4]), r"lengths \[1, 4\] do not fit a batch of shape \(3, 2\)"),
        (lambda: collate_padded([]), "at least one example"),
        (lambda: collate_padded([(1, 2), (1,)]), "the same parts, but here are 1 parts and 2 parts"),
        (lambda: collate_padded([{"a": 1}, {"b": 1}]), r"keys \['a'\] and keys \['b'\]"),
        (lambda: collate_stacked([np.zeros(2), np.zeros(3)]), r"shapes \[\(2,\), \(3,\)\] cannot be stacked"),
    ],
)
def test_padding_refuses(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_a_batch_has_the_structure_of_its_examples() -> None:
    Pair = namedtuple("Pair", "words label")
    batch = collate_padded([Pair([1], {"n": 0.5, "name": "x"}), Pair([2, 3], {"n": 1.5, "name": "y"})], value=9)
    assert isinstance(batch, Pair)
    assert isinstance(batch.words, Padded)
    assert batch.words.values.tolist() == [[1, 2], [9, 3]]
    assert batch.label["n"].tolist() == [0.5, 1.5]
    assert batch.label["n"].dtype == np.float32
    assert batch.label["name"] == ["x", "y"]
    stacked, number = collate_stacked([(np.zeros((4, 3)), 1), (np.ones((4, 3)), 2)])
    assert stacked.shape == (4, 2, 3)
    assert stacked[:, 1].all()
    assert number.tolist() == [1, 2]


# --- Loader -----------------------------------------------------------------------------------------------------------

WORDS = [[i] * (i * 7 % 10 + 1) for i in range(23)]
LENGTHS = [len(word) for word in WORDS]
KINDS: list[dict[str, Any]] = [
    {},
    {"shuffle": True},
    {"shuffle": True, "drop_last": True},
    {"lengths": LENGTHS},
    {"shuffle": True, "lengths": LENGTHS, "pool": 2},
    {"shuffle": True, "prefetch": 3},
]


def ids_of(batch: Padded) -> list[int]:
    return batch.values[0].tolist()


@pytest.mark.parametrize("settings", KINDS)
def test_an_epoch_has_every_example_once(settings: dict[str, Any]) -> None:
    loader = Loader(WORDS, 4, **settings)
    epochs = [[ids_of(batch) for batch in loader] for _ in range(3)]
    for epoch in epochs:
        counts = Counter(i for batch in epoch for i in batch)
        assert len(epoch) == len(loader) == (5 if settings.get("drop_last") else 6)
        assert max(counts.values()) == 1
        assert len(counts) == (20 if settings.get("drop_last") else 23)
    assert (epochs[0] != epochs[1]) == bool(settings.get("shuffle"))
    assert [ids_of(batch) for batch in Loader(WORDS, 4, **settings)] == epochs[0]
    assert (loader.epoch, loader.position) == (3, 0)
    if settings.get("shuffle"):
        assert [ids_of(batch) for batch in Loader(WORDS, 4, **(settings | {"seed": 1}))] != epochs[0]
    else:
        order = sorted(range(23), key=lambda i: LENGTHS[i]) if "lengths" in settings else list(range(23))
        assert [i for batch in epochs[0] for i in batch] == order


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("read", [0, 1, 5, 6, 9])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(settings: dict[str, Any], read: int) -> None:
    def endless(loader: Loader) -> Iterator[tuple[int, list[int]]]:
        while True:
            for batch in loader:
                yield loader.epoch, ids_of(batch)

    first, second = Loader(WORDS, 4, **settings), Loader(WORDS, 4, **settings)
    stream = endless(first)
    for _ in range(read):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    assert second.state_dict() == state
    rest = endless(second)
    for _ in range(14):
        assert next(stream) == next(rest)


def test_a_loop_that_is_left_begins_the_epoch_anew() -> None:
    loader = Loader(WORDS, 4, shuffle=True)
    first = next(iter(loader))
    again = next(iter(loader))
    np.testing.assert_array_equal(first.values, again.values)
    assert loader.state_dict()["position"] == 1


def test_buckets_have_little_padding() -> None:
    rng = np.random.default_rng(0)
    words = [[0] * n for n in rng.integers(1, 100, 640)]
    lengths = [len(word) for word in words]

    def padding(loader: Loader) -> float:
        return sum(batch.values.size for batch in loader) / sum(lengths) - 1

    plain, bucketed = Loader(words, 16, shuffle=True), Loader(words, 16, shuffle=True, lengths=lengths, pool=10)
    assert padding(plain) > 0.7
    assert padding(bucketed) < 0.1
    sizes = [batch.values.shape[0] for batch in bucketed]
    assert sizes != sorted(sizes)  # batches of all lengths come in any order


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Loader([], 4), DataError, "no examples"),
        (lambda: Loader([1], 0), ValueError, "got 0, 32, 0 and 0"),
        (lambda: Loader([1, 2], 3, drop_last=True), DataError, "2 examples make no full batch of 3"),
        (lambda: Loader([1, 2], 3, lengths=[1]), DataError, r"2 examples needs as many lengths, got shape \(1,\)"),
        (lambda: Loader((i for i in range(3)), 3), DTypeError, "not generator; put them in a list"),
        (lambda: Loader([1, 2], 1).load_state_dict(Loader([1, 2, 3], 1).state_dict()), DataError, "examples 3 and not 2"),
        (lambda: Loader([1, 2], 1).load_state_dict(Loader([1, 2], 1, seed=4).state_dict()), DataError, "seed 4 and not 0"),
        (lambda: Loader([1], 1).load_state_dict({}), DataError, "of another loader: examples None and not 1"),
    ],
)
def test_loaders_refuse(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# --- Prefetch ---------------------------------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def wait_for_none() -> None:
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


def test_order_and_values_are_those_of_the_source() -> None:
    for ahead in (1, 2, 50):
        assert list(Prefetch(range(20), ahead)) == list(range(20))
        assert not threads()
    exhausted = Prefetch([1])
    assert [next(exhausted, None) for _ in range(3)] == [1, None, None]


def test_it_runs_ahead_but_not_further() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(10):
            made.append(i)
            yield i

    with Prefetch(source(), 3) as items:
        deadline = time.monotonic() + 5
        while len(made) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert made == [0, 1, 2]
        assert next(items) == 0
    assert not threads()
    assert list(items) == []


def test_an_exception_comes_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("the file is gone")

    items = Prefetch(source())
    assert next(items) == 1
    with pytest.raises(KeyError, match="the file is gone"):
        next(items)
    assert list(items) == []
    assert not threads()


def test_a_loop_that_is_left_leaves_no_thread() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.append(threading.current_thread().name)

    for item in Prefetch(source()):
        if item == 3:
            break
    gc.collect()
    wait_for_none()
    assert closed == ["prefetch"]
    for _ in Loader(WORDS, 2, prefetch=2):
        break
    gc.collect()
    wait_for_none()


def test_an_error_in_the_loop_leaves_no_thread() -> None:
    def loop() -> None:
        for _ in Loader(WORDS, 2, prefetch=2):
            raise RuntimeError("in the loop")

    with pytest.raises(RuntimeError, match="in the loop"):
        loop()
    gc.collect()
    wait_for_none()


def test_ctrl_c_while_waiting_leaves_no_thread() -> None:
    release = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        threading.Timer(0.05, lambda: signal.raise_signal(signal.SIGINT)).start()
        release.wait(0.3)
        yield 2

    items = Prefetch(source())
    assert next(items) == 1
    with pytest.raises(KeyboardInterrupt):
        next(items)
    assert not threads()
    assert list(items) == []


def test_the_source_sees_the_callers_backend() -> None:
    with ts.use_backend("numba"):
        assert list(Prefetch(ts.current_backend().name for _ in range(2))) == ["numba"] * 2
    with pytest.raises(ValueError, match="ahead=0"):
        Prefetch([1], 0)


def test_a_loader_counts_what_was_given_out_not_what_was_made() -> None:
    loader = Loader(WORDS, 2, prefetch=5)
    for _ in loader:
        time.sleep(0.02)
        break
    assert loader.position == 1
    wait_for_none()


# --- Windows ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 4), st.integers(0, 20))
def test_windows_follow_one_another(inputs: int, targets: int, gap: int, every: int, more: int) -> None:
    series = np.arange(inputs + gap + targets + more)
    windows = Windows(series, inputs, targets, gap=gap, every=every)
    for i, (known, coming) in enumerate(windows):
        assert known.tolist() == list(range(i * every, i * every + inputs))
        assert coming.tolist() == list(range(i * every + inputs + gap, i * every + inputs + gap + targets))
    assert len(windows) == i + 1
    assert (i + 1) * every + inputs + gap + targets > len(series)
    np.testing.assert_array_equal(windows[-1][0], windows[i][0])


def test_windows_make_batches() -> None:
    series, target = np.arange(20.0).reshape(10, 2), np.arange(10) * 10
    loader = Loader(Windows(series, 3, 2, of=target), 4, collate=collate_stacked)
    known, coming = next(iter(loader))
    assert known.shape == (3, 4, 2)
    assert known[:, 1, 0].tolist() == [2, 4, 6]
    assert coming.T.tolist() == [[30, 40], [40, 50], [50, 60], [60, 70]]
    assert len(loader) == 2
    for call, message in (
        (lambda: Windows(np.arange(4), 3, 2), "a series of 4 steps is too short for a window of 5"),
        (lambda: Windows(np.arange(4), 0, 2), "inputs=0, targets=2"),
        (lambda: Windows(np.arange(4), 1, 2, of=np.arange(3)), r"got shapes \(4,\) and \(3,\)"),
    ):
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(IndexError, match="2 windows, none with the number 2"):
        Windows(np.arange(4), 2, 1)[2]


# --- splits -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=30, max_size=200).filter(lambda g: len(set(g)) > 8), st.integers(0, 3))
def test_no_group_is_in_two_parts(groups: list[int], seed: int) -> None:
    shares = (0.6, 0.2, 0.2)
    parts = split_by_group(groups, shares, seed)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(groups)))
    sides = [{groups[i] for i in part} for part in parts]
    assert all(not (a & b) for a, b in ((sides[0], sides[1]), (sides[0], sides[2]), (sides[1], sides[2])))
    assert all((np.diff(part) > 0).all() for part in parts)
    largest = max(Counter(groups).values())
    for part, share in zip(parts, shares, strict=True):
        assert abs(len(part) - share * len(groups)) <= 2 * largest
    for a, b in zip(parts, split_by_group(groups, shares, seed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shares_come_out_and_seeds_matter() -> None:
    groups = [f"word{i // 3}" for i in range(3000)]
    parts = split_by_group(groups)
    assert [len(part) for part in parts] == [2400, 300, 300]
    assert parts[1].tolist() != split_by_group(groups, seed=1)[1].tolist()
    assert np.ptp(parts[1]) > 2000  # from everywhere
    for shares in ((0.5, 0.4), (1.2, -0.2), ()):
        with pytest.raises(DataError, match="positive and add up to 1"):
            split_by_group(groups, shares)
    with pytest.raises(DataError, match=r"1 groups of 5 examples cannot be parted by \(0.5, 0.5\)"):
        split_by_group(["a"] * 5, (0.5, 0.5))
    with pytest.raises(DataError, match="0 groups of 0 examples"):
        split_by_group([], (0.5, 0.5))
