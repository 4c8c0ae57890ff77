"""The example of summaries, on made-up packages whose names no vocabulary has."""

from __future__ import annotations

import bz2
import doctest
import gzip
import importlib.util
import itertools
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts

TEXT = """Package: cat-utils
Description-md5: 01
Description-en: shows files one by one (runtime)
 Shows files, one by one, to all who
 want to see them on their screens.
 .
 Not in the first paragraph.

Package: cat
Description-md5: 02
Description-en: shows files one by one
 Shows files, one by one, to all who want to see them on their screens.

Package: old-cat
Description-md5: 03
Description-en: transitional package for cat
 This package is there only so that cat gets installed, and it can be removed.

Package: dog
Description-md5: 04
Description-en: keeps the house
 Barks at whoever comes near the house, friends and foes alike, all night."""


@pytest.fixture(scope="module")
def summaries() -> Iterator[ModuleType]:
    yield from load("summaries")


def options_of(summaries: ModuleType, *flags: str) -> Any:
    return summaries.parser().parse_args([*flags, "--hidden", "6", "--embedding", "5", "--dropout", "0"])


def made_up(summaries: ModuleType, count: int) -> list[Any]:
    """Lines that say what paragraphs say, with a word in them that occurs nowhere else, and is neither first nor last."""
    rng = np.random.default_rng(0)
    kinds, deeds = ["library", "tool", "game", "daemon"], ["reading", "writing", "sorting", "hiding"]
    pairs = []
    for i in range(count):
        kind, deed, other = rng.choice(kinds), rng.choice(deeds), rng.choice(deeds)
        name = "".join(rng.choice(list("bdfgklmnprst"), 6))
        paragraph = f"we like {other} , and so this old {kind} is good for {deed} {name} and much more ."
        pairs.append(summaries.Pair(f"p{i}", paragraph.split(), f"{kind} for {deed} {name}".split()))
    return pairs


# --- the packages -----------------------------------------------------------------------------------------------------


def test_the_doctests(summaries: ModuleType) -> None:
    found = doctest.testmod(summaries)
    assert found.failed == 0
    assert found.attempted >= 7


def test_packages_are_read(summaries: ModuleType) -> None:
    assert [entry[:2] for entry in summaries.parse(TEXT)] == [
        ("cat-utils", "shows files one by one (runtime)"),
        ("cat", "shows files one by one"),
        ("old-cat", "transitional package for cat"),
        ("dog", "keeps the house"),
    ]
    paragraphs = [entry[2] for entry in summaries.parse(TEXT)]
    assert paragraphs[0] == paragraphs[1] == "Shows files, one by one, to all who want to see them on their screens."
    assert paragraphs[3].endswith("all night.")


def test_of_one_text_the_shortest_name_is_used_and_no_empty_package(summaries: ModuleType) -> None:
    cat, dog = summaries.pairs_of(TEXT, longest=12)
    assert (cat.name, dog.name) == ("cat", "dog")
    assert cat.line == ["shows", "files", "one", "by", "one"]
    assert cat.paragraph == ["shows", "files", ",", "one", "by", "one", ",", "to", "all", "who", "want", "to"]
    assert summaries.pairs_of(TEXT, longest=9) == []


def test_packages_of_one_source_or_one_text_are_on_one_side(summaries: ModuleType) -> None:
    pairs = [
        summaries.Pair(name, text.split(), ["x"])
        for name, text in [("a", "one text . more"), ("b", "two"), ("c", "three"), ("d", "one text . else"), ("e", "four")]
    ]
    a, b, c, d, e = summaries.families(pairs, {"b": "a", "c": "s", "e": "s"})
    assert a == b == d
    assert c == e != a


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress), ("", bytes)]
)
def test_files_are_unpacked(summaries: ModuleType, tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"Translation-en{suffix}"
    path.write_bytes(pack("naïve\n".encode()))
    assert summaries.read(path) == "naïve\n"


def test_the_largest_file_of_apt_is_taken_and_the_packages_beside_it(
    summaries: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "LISTS", tmp_path)
    for archive, text in (("security", "x"), ("stable", TEXT)):
        (tmp_path / f"deb_{archive}_main_i18n_Translation-en").write_text(text, encoding="utf-8")
        (tmp_path / f"deb_{archive}_main_binary-amd64_Packages").write_text("", encoding="utf-8")
    found = summaries.find_descriptions()
    assert found.name == "deb_stable_main_i18n_Translation-en"
    assert summaries.find_packages(found).name == "deb_stable_main_binary-amd64_Packages"


# --- the measure and the baselines ------------------------------------------------------------------------------------


def test_the_longest_common_subsequence_is_the_longest_of_all(summaries: ModuleType) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = (rng.choice(list("abc"), rng.integers(0, 7)).tolist() for _ in range(2))
        chosen = (s for size in range(len(a), -1, -1) for s in itertools.combinations(a, size))
        best = next(len(s) for s in chosen if all(word in rest for rest in [iter(b)] for word in s))
        assert summaries.common(a, b) == best


def test_rouge_l(summaries: ModuleType) -> None:
    assert summaries.rouge_l(["testing"], ["testing", "one", "two"]) == pytest.approx(0.5)
    assert summaries.rouge_l(["police", "kill", "the", "gunman"], ["police", "killed", "the", "gunman"]) == pytest.approx(0.75)
    assert summaries.rouge_l(["the", "gunman", "kill", "police"], ["police", "killed", "the", "gunman"]) == pytest.approx(0.5)
    assert summaries.rouge_l(["a", "(", "b", ")"], ["a", "b"]) == 1
    assert summaries.rouge_l([], ["a"]) == summaries.rouge_l([","], ["a"]) == 0


def test_the_baselines(summaries: ModuleType) -> None:
    paragraph = summaries.words_of("Foo, by Ann, is a fast library. It is good.")
    assert summaries.first_words(paragraph, 3) == ["foo", "by", "ann"]
    assert summaries.first_sentence(paragraph, 3) == ["foo", "by", "ann", "is", "a", "fast", "library"]
    assert summaries.after_is(paragraph, 2) == ["fast", "library"]
    assert summaries.after_is(["no", "verb", "here"], 2) == ["no", "verb"]


def test_the_baselines_length_is_that_which_is_best(summaries: ModuleType) -> None:
    pairs = [summaries.Pair("p", list("abcdefgh"), list("abcx")), summaries.Pair("q", list("hgfedcba"), list("hgf"))]
    assert summaries.best_count(summaries.first_words, pairs) == 3


# --- the model --------------------------------------------------------------------------------------------------------


def chances_of(words: np.ndarray, own: float, weights: np.ndarray, texts: Any, paragraph: list[str]) -> dict[str, float]:
    """Equation 9, word by word."""
    chances = {word: own * float(p) for word, p in zip(texts.vocabulary.tokens, words, strict=True)}
    for word, weight in zip(paragraph, weights, strict=False):
        chances[word] = chances.get(word, 0.0) + (1 - own) * float(weight)
    return chances


def test_loss_and_search_have_the_chances_of_the_equation(summaries: ModuleType) -> None:
    pairs = made_up(summaries, 30)
    texts = summaries.Texts(pairs, min_count=2)
    ts.manual_seed(0)
    model = summaries.summariser(texts, options_of(summaries))
    ts.nn.init.constant_(model.decoder.output.gate.bias, 0.4)
    chosen = [*pairs[:3], summaries.Pair("p", ["library", "for", "xyzzy", "xyzzy"], ["xyzzy", "of", "library", "nowhere"])]
    batch = texts.batch(chosen)
    (words, gate), weights = model(batch.source.ids, batch.targets, batch.source.lengths, batch.counts)
    words, own, seen = ts.softmax(words).numpy(), ts.sigmoid(gate).numpy()[..., 0], weights.numpy()

    expected = []
    for row, pair in enumerate(chosen):
        for t, word in enumerate([*pair.line, "</s>"]):
            chances = chances_of(words[t, row], own[t, row], seen[t, row], texts, pair.paragraph)
            assert sum(chances.values()) == pytest.approx(1, rel=1e-5)
            expected.append(-np.log(chances[word] if word in chances else chances["<unk>"]))
    loss = summaries.Loss(texts.vocabulary.unknown_id)(model, batch)
    assert loss["count"] == len(expected) == batch.counts.sum()
    assert loss["loss"].item() == pytest.approx(np.mean(expected), rel=1e-5)

    # The search deals with places instead of words; its first step is the one that the loss saw.
    writer = summaries.Writer(model, texts.vocabulary)
    with ts.no_grad():
        state = writer.begin(model.encode(batch.source.ids, batch.source.lengths), batch.source)
        (logits, looked), state = writer(ts.tensor([texts.vocabulary.begin_id] * len(chosen)), state)
    found, size = np.exp(logits.numpy()), len(texts.vocabulary)
    for row, pair in enumerate(chosen):
        chances = chances_of(words[0, row], own[0, row], seen[0, row], texts, pair.paragraph)
        for token, word in enumerate(texts.vocabulary.tokens):
            never = word in ("<pad>", "<unk>", "<s>") or word in pair.paragraph
            assert found[row, token] == pytest.approx(0 if never else chances[word], rel=1e-4, abs=1e-9)
        for place in range(len(batch.source.ids)):
            first = place < len(pair.paragraph) and pair.paragraph.index(pair.paragraph[place]) == place
            wanted = chances[pair.paragraph[place]] if first else 0
            assert found[row, size + place] == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    np.testing.assert_allclose(looked.numpy()[:, :-1], seen[0], rtol=1e-5)
    np.testing.assert_allclose(looked.numpy()[:, -1], 1 - own[0], rtol=1e-5)

    # A place is fed as its word: the second step is as if the word itself had been taken.
    with ts.no_grad():
        by_place, _ = writer(ts.tensor([size] * len(chosen)), state)
        by_word, _ = writer(ts.tensor(batch.source.ids[0]), state)
    np.testing.assert_array_equal(by_place[0].numpy(), by_word[0].numpy())


def test_paragraphs_are_answered_alike_in_any_company(summaries: ModuleType) -> None:
    """Lines come back in the order of the pairs, and do not depend on batches and padding."""
    pairs = made_up(summaries, 12)
    pairs = [pair._replace(paragraph=pair.paragraph[: 10 + i % 5]) for i, pair in enumerate(pairs)]
    texts, options = summaries.Texts(pairs, min_count=2), options_of(summaries, "--beams", "3")
    ts.manual_seed(0)
    model = summaries.summariser(texts, options)
    for pair, answer in zip(pairs, summaries.written(model, texts, pairs, options), strict=True):
        [alone] = summaries.written(model, texts, [pair], options)
        assert answer.words == alone.words
        assert answer.weights.shape == (len(answer.copied), len(pair.paragraph))
        np.testing.assert_allclose(answer.weights, alone.weights, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(answer.weights.sum(1), 1, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_it_learns_to_copy_and_leaves_pictures(
    summaries: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = made_up(summaries, 900)
    parts = summaries.Parts(pairs[:800], pairs[800:850], pairs[850:])
    monkeypatch.setattr(summaries, "load_parts", lambda options: parts)
    small = "--hidden 24 --embedding 16 --dropout 0 --batch 32 --lr 0.02 --steps 200 --beams 2 --min-count 5 --quiet"
    assert summaries.main([*small.split(), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    means = {name.strip(): float(x) for name, x in re.findall(r"^  (\S.*?) +ROUGE-L ([\d.]+)", shown, re.MULTILINE)}
    assert set(means) == {*summaries.BASELINES, "model"}
    assert means["model"] > 0.9  # without copying the fourth word, which nothing foretells, at most 0.75
    assert means["first words"] < 0.6
    assert shown.count("package:") == 6
    for name in ("summaries.png", "copying.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_without_the_data(
    summaries: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summaries, "LISTS", tmp_path)
    out = ["--out", str(tmp_path / "out")]
    assert summaries.main(out) == 2
    alone, packed = tmp_path / "Translation-en", tmp_path / "b_i18n_Translation-en.lz4"
    alone.write_text(TEXT)
    assert summaries.main([*out, "--data", str(alone)]) == 2
    monkeypatch.setattr(summaries, "HELPER", tmp_path / "none")
    packed.write_bytes(b"")
    assert summaries.main([*out, "--data", str(packed)]) == 2
    assert summaries.main([*out, "--data", str(tmp_path / "typo")]) == 2
    nothing, beside, packages, typo = capsys.readouterr().err.splitlines()
    assert nothing.startswith("summaries: apt has no English descriptions")
    assert "sudo apt-get -o Acquire::Languages=en update" in nothing
    assert "no file Packages" in beside
    assert "is packed with lz4" in packages
    assert "No such file" in typo


def test_a_file_that_is_something_else(summaries: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "Translation-en").write_text("Package: a\n")
    (tmp_path / "Packages").write_text("Package: a\n")
    assert summaries.main(["--data", str(tmp_path / "Translation-en"), "--out", str(tmp_path / "out")]) == 2
    assert "no package descriptions" in capsys.readouterr().err
