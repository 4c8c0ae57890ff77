"""The example of agreement, on sentences made up by hand."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
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
