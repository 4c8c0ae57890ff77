"""The example of captions, on made-up emojis: shapes in colours, drawn by two hands."""

from __future__ import annotations

import doctest
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9), "grey": (0.5, 0.5, 0.5)}
ROWS, COLUMNS = np.mgrid[:32, :32] / 31 - 0.5
SHAPES = {
    "circle": ROWS**2 + COLUMNS**2 < 0.12,
    "square": np.maximum(abs(ROWS), abs(COLUMNS)) < 0.3,
    "bar": abs(ROWS) < 0.1,
    "pole": abs(COLUMNS) < 0.1,
    "cross": np.minimum(abs(ROWS), abs(COLUMNS)) < 0.08,
}


@pytest.fixture(scope="module")
def captions() -> Iterator[ModuleType]:
    yield from load("captions")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of emoji-datasource, with an emoji for each colour and shape; the last was drawn by Google alone."""
    imsave = pytest.importorskip("matplotlib.image").imsave
    path, rng = tmp_path_factory.mktemp("emojis"), np.random.default_rng(0)
    names = [f"{colour.upper()} {shape.upper()}" for colour, shape in itertools.product(COLOURS, SHAPES)]
    entries = [
        {
            "unified": f"1F6{i:02X}", "name": name, "sheet_x": i % 6, "sheet_y": i // 6, "has_img_google": True,
            "has_img_twitter": i < len(names) - 1,
        }
        for i, name in enumerate(names)
    ]  # fmt: skip
    (path / "emoji.json").write_text(json.dumps(entries))
    for number, hand in enumerate(("google", "twitter")):
        sheet = np.zeros((4 * 34, 6 * 34, 4))
        for entry in entries:
            colour, shape = entry["name"].lower().split()
            picture = np.zeros((32, 32, 4))
            picture[SHAPES[shape]] = (*np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.1, 0.1, 3), 0, 1), 1 - 0.3 * number)
            x, y = entry["sheet_x"] * 34 + 1, entry["sheet_y"] * 34 + 1
            sheet[y : y + 32, x : x + 32] = picture
        (path / "img" / hand / "sheets").mkdir(parents=True)
        imsave(path / "img" / hand / "sheets" / "32.png", sheet)
    return path


def test_its_examples_are_true(captions: ModuleType) -> None:
    found = doctest.testmod(captions)
    assert found.attempted >= 2
    assert not found.failed


def test_the_drawings_are_cut_from_the_sheets(captions: ModuleType, folder: Path) -> None:
    emojis = captions.load_emojis(folder)
    assert len(emojis) == len(COLOURS) * len(SHAPES) - 1
    first = emojis[0]
    assert (first.code, first.name, first.drawings.shape) == ("1F600", ["red", "circle"], (2, 32, 32, 4))
    for number, drawing in enumerate(first.drawings):
        assert np.array_equal(drawing[..., 3] > 0, SHAPES["circle"])
        # Colours as much as they are opaque, to a step of eight bits.
        opacity = 1 - 0.3 * number
        np.testing.assert_allclose(drawing[16, 16] / opacity, (*COLOURS["red"], 1), atol=0.11)
        assert not drawing[0, 0].any()


def test_what_is_one_picture_is_on_one_side(captions: ModuleType, folder: Path) -> None:
    emojis = captions.load_emojis(folder)
    twin = emojis[3]._replace(code="1F9FF", drawings=emojis[7].drawings)
    assert len(set(captions.groups(emojis))) == len(emojis)
    found = captions.groups([*emojis, twin])
    assert found[7] == found[-1]
    assert len(set(found)) == len(emojis)


def test_scores(captions: ModuleType) -> None:
    assert captions.words_f1(["red", "bar"], ["bar", "red"]) == 1
    assert captions.rouge_l(["red", "bar"], ["bar", "red"]) == 0.5
    assert captions.words_f1(["red"], ["red", "bar", "pole"]) == pytest.approx(2 * 1 / (1 + 3))
    assert captions.constant([["red", "bar"], ["red", "pole"], ["red"]]) == ["red"]


def test_nearest_picture(captions: ModuleType, folder: Path) -> None:
    known = captions.pairs(captions.load_emojis(folder))
    assert captions.nearest(known, known.pictures[4:7], 1) == known.names[4:7]


def test_it_learns_and_says_how_well(
    captions: ModuleType,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asked for the names that it has learned from: few others are left of nineteen."""
    monkeypatch.setattr(captions, "split", lambda emojis, seed: captions.Parts(emojis, emojis, emojis))
    small = "--epochs 60 --hidden 8 --embedding 6 --count 1 --batch 8 --squares 4 --dropout 0 --lr 0.02"
    with ts.use_backend("numpy"):
        assert captions.main([*small.split(), "--quiet", "--emojis", str(folder), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    fixed, near, ours = (float(x) for x in re.findall(r"F1 of the words ([\d.]+)%", shown))
    assert near == 100
    assert ours > fixed + 20
    assert (tmp_path / "captions.png").stat().st_size > 5000


def test_emojis_that_are_not_there(captions: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert captions.main(["--emojis", str(tmp_path), "--out", str(tmp_path), "--quiet"]) == 2
    assert "npm install --prefix runs/data --ignore-scripts emoji-datasource@16.0.0" in capsys.readouterr().err
