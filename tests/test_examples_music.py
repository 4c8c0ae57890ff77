"""The example of folk tunes, on made-up tunes."""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts

BARS = ["AFDF", "GBAG", "FADE", "GEFD", "DFAd"]


@pytest.fixture(scope="module")
def music() -> Iterator[ModuleType]:
    yield from load("music")


def made_up(music: ModuleType, count: int = 120) -> list[object]:
    """Tunes of four bars of four eighths each."""
    rng = np.random.default_rng(0)
    return [music.Tune((f"tune {i:b}",), "M:2/4\nL:1/8\nK:D\n" + "|".join(rng.choice(BARS, 4)) + "|") for i in range(count)]


def music21_works() -> bool:
    try:
        import music21  # noqa: F401
    except ImportError:
        return False
    return True


needs_music21 = pytest.mark.skipif(not music21_works(), reason="music21 is not installed, or not all that it needs")


# --- data -------------------------------------------------------------------------------------------------------------


def test_the_doctests(music: ModuleType) -> None:
    found = doctest.testmod(music)
    assert (found.failed, found.attempted) == (0, 1)


def test_a_file_of_tunes_is_read(music: ModuleType) -> None:
    text = (
        '% a book\n\nX:1\nT:One\nT:Uno\nM:2/4\nB:book\nK:Gm\nG2 "slow"A2|!trill!B`B \\\n c2|\nK:D\nd4|]\n\n'
        "X:2\nT:No key\nM:3/4\nabc\n\nX:3\nT:Three\nM:C|\nL:1/16\nK:A\n  a   b | % end\n"
    )
    assert list(music.parse(text)) == [
        music.Tune(("One", "Uno"), "M:2/4\nL:1/16\nK:Gm\nG2 A2|BB c2|\nK:D\nd4|]"),
        music.Tune(("Three",), "M:C|\nL:1/16\nK:A\na b |"),
    ]


def test_a_melody_is_the_same_in_every_key(music: ModuleType) -> None:
    assert music.melody("M:C\nK:G\nG,2 A | {b}Bc' ^c |").tolist() == [8, 1, 8, -7]
    in_g, in_d = ("M:C\nL:1/8\nK:G\nGABc d2BG|gfed", "M:6/8\nL:1/16\nK:D\n(D/E/)FG AAF|Dd cBA")
    assert music.melody(in_g).tolist() == [1, 1, 1, 1, -2, -2, 7, -1, -1, -1]
    assert music.melody(in_d).tolist() == [1, 1, 1, 1, 0, -2, -2, 7, -1, -1, -1]


def test_phrases_are_what_is_alike(music: ModuleType) -> None:
    in_d, in_g = "K:D\n" + "DEFGABcdefgabagfed", "K:G\n" + "z|GABc|defga|bc'd'e'd'c'b|B"
    assert len(music.phrases(in_d)) == 18 - 15
    assert len(music.phrases(in_d) & music.phrases(in_g)) == 1
    assert music.phrases("K:D\nDEFGABcdefgabag") == set()  # 15 notes


def test_what_may_be_one_tune_is_in_one_part(music: ModuleType) -> None:
    phrase = "ABcd efga fdec BAGF"
    tunes = [
        music.Tune(("The Lark",), "K:D\nD E F"),
        music.Tune(("Lark, The", "Other"), "K:D\nG F G"),
        music.Tune(("Song",), f"K:D\nD G {phrase}"),
        music.Tune(("Air",), f"K:G\n{phrase.replace(' ', '|')} B d"),
        music.Tune(("other",), "K:D\nA A B"),
        music.Tune(("Reel",), f"K:D\n{phrase[:12]} D D"),
    ]
    found = music.families(tunes)
    assert found[0] == found[1] == found[4]
    assert found[2] == found[3]
    assert len(set(found)) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(music, "ALIKE", 10)
        assert music.families(tunes)[5] == music.families(tunes)[2]


# --- the 5-gram -------------------------------------------------------------------------------------------------------


def test_the_bigram_by_hand(music: ModuleType) -> None:
    """Of the tunes "ab" and "aa": after a come a, b and the end, once each; a follows the beginning and a."""
    model = music.NGram(["ab", "aa"], vocabulary=4, order=2, discount=0.5)
    # kinds of what comes before: a 2 (beginning, a), b 1 (a), end 2 (b, a); 5 in all, of 3 kinds
    unigram_a, unigram_b = (2 - 0.5) / 5 + 0.5 * 3 / 5 / 4, (1 - 0.5) / 5 + 0.5 * 3 / 5 / 4
    assert model.probability(("a", "b")) == pytest.approx((1 - 0.5) / 3 + 0.5 * 3 / 3 * unigram_b)
    assert model.probability((music.BEGIN, "a")) == pytest.approx((2 - 0.5) / 2 + 0.5 * 1 / 2 * unigram_a)
    assert model.probability(("new", "a")) == pytest.approx(unigram_a)
    p = [(music.BEGIN, "b"), ("b", "a"), ("a", music.END)]
    assert model.bits(["ba"]) == pytest.approx(-sum(math.log2(model.probability(gram)) for gram in p) / 3)


def test_probabilities_add_up_to_one(music: ModuleType) -> None:
    model = music.NGram(["abca", "abba", "cab", "ca"], vocabulary=4, order=3, discount=0.7)
    for context in itertools.product([music.BEGIN, "a", "b", "c", "d"], repeat=2):
        assert sum(model.probability((*context, c)) for c in ["a", "b", "c", music.END]) == pytest.approx(1)


def test_the_discount_is_the_one_that_validates_best(music: ModuleType) -> None:
    tunes = [tune.abc for tune in made_up(music, 40)]
    model = music.best_ngram(tunes[:30], tunes[30:], 30)
    best = model.bits(tunes[30:])
    for discount in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        assert music.NGram(tunes[:30], 30, discount=discount).bits(tunes[30:]) >= best


# --- the model --------------------------------------------------------------------------------------------------------


def test_writing_step_by_step_is_reading_at_once(music: ModuleType, rng: np.random.Generator) -> None:
    model = music.Composer(9, 4, 6, 2, 0.5)
    model.eval()
    ids = rng.integers(0, 9, (7, 3))
    at_once, _ = model(ids)
    state = model.first_state(3)
    for t in range(7):
        logits, state = model.step(ts.tensor(ids[t]), state)
        np.testing.assert_allclose(logits.detach().numpy(), at_once.detach().numpy()[t], rtol=1e-4, atol=1e-6)


def test_the_loss_counts_every_character_and_the_end(music: ModuleType) -> None:
    model = music.Composer(9, 4, 6, 1, 0.0)
    tunes = [np.array([1, 5, 6, 2]), np.array([1, 4, 2])]
    found = music.loss_of(model, ts.data.collate_padded(tunes))
    expected = 0.0
    for ids in tunes:
        logits = model(ids[:-1, None])[0].detach().numpy()[:, 0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        expected -= log_p[np.arange(len(ids) - 1), ids[1:]].sum()
    assert found["count"] == 5
    assert found["loss"].item() == pytest.approx(expected / 5, rel=1e-5)


# --- what music21 says ------------------------------------------------------------------------------------------------


@needs_music21
def test_tunes_are_judged(music: ModuleType) -> None:
    good = "M:2/4\nL:1/8\nK:D\nD|AFDF|GBAG|FADE|D3|]"
    late = "M:2/4\nL:1/8\nK:D\nD|AFDF|GBA|FADE|D3|]"
    repeats = "M:2/4\nL:1/8\nK:D\nD|AFDF|GBA:|F|GBAG|FADE|D3|]"
    nothing = "M:2/4\nL:1/8\nK:D\n| |"
    assert music.keeps_time(music.read(good))
    assert not music.keeps_time(music.read(late))
    assert music.keeps_time(music.read(repeats))
    assert music.read(nothing) is None
    assert music.judged([good, late, nothing, good]) == (0.75, 0.5)


@needs_music21
def test_the_tune_that_is_kept_can_be_played(music: ModuleType, tmp_path: Path) -> None:
    import music21

    head = "M:2/4\nL:1/8\nK:D\n"
    open_repeat = f"{head}AFDF|GBAG|FADE|D4:||:FADE|D4|AFDF|GBAG|FADE|D4|]"
    good, short = f"{head}AFDF|GBAG|FADE|D4:||:FADE|D4:|", f"{head}AFDF|GBAG|FADE|D4|"
    assert music.keeps_time(music.read(open_repeat))
    assert music.kept([short, open_repeat, good, f"{head}{'AFDF|' * 200}"], tmp_path)[0] == good
    assert (tmp_path / "tune.abc").read_text() == f"X:1\nT:Untitled\n{good}\n"
    midi = music21.converter.parse(tmp_path / "tune.mid")
    assert [note.pitch.nameWithOctave for note in midi.recurse().notes][:4] == ["A4", "F#4", "D4", "F#4"]
    assert len(midi.recurse().notes) == 2 * 18  # the repeats are played out
    assert music.kept([open_repeat], tmp_path) == ("", None)


@needs_music21
@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_it_learns_and_writes_a_tune(
    music: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(music, "load_tunes", lambda: made_up(music))
    monkeypatch.setattr(music, "families", lambda tunes: list(range(len(tunes))))
    small = "--hidden 32 --embedding 8 --dropout 0 --batch 16 --lr 0.02 --steps 120 --tunes 12 --temperature 0.5"
    assert music.main([*small.split(), "--quiet", "--longest", "60", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    ngram, lstm = (float(x) for x in re.findall(r"([\d.]+) bits a character", shown))
    # a tune of 38 characters is determined but for four choices among five bars
    assert 4 * math.log2(5) / 38 < lstm < 0.5
    assert 4 * math.log2(5) / 38 < ngram < 0.6
    assert "12 tunes held out: 100.0% can be read by music21, 100.0% keep time in every bar" in shown
    assert (tmp_path / "tune.abc").read_text().startswith("X:1\nT:Untitled\nM:2/4\nL:1/8\nK:D\n")
    assert (tmp_path / "tune.mid").read_bytes().startswith(b"MThd")
    assert (tmp_path / "music.png").read_bytes().startswith(b"\x89PNG")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_without_the_package(
    music: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "music21" else find_spec(name))
    assert music.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("music: the tunes come with a package that is not installed: pip install music21==")
    assert error.count("\n") == 1


def test_with_half_of_the_package(
    music: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "music21", None)  # as if something that it needs were missing
    monkeypatch.setattr(music, "load_tunes", lambda: made_up(music))
    assert music.main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "pip install music21" in error
    assert error.count("\n") == 1
