"""Forecasts with intervals: the sea's temperature in 24 hours, and tomorrow's highest temperature in Seattle.

    pip install --no-deps bokeh_sampledata vega_datasets        # the data, 13 MB
    python examples/forecasting.py --backend numba
    python examples/forecasting.py --series weather --hidden 64 --epochs 40

A GRU reads the last days and foretells five quantiles of how much the temperature will change; from the quantiles come
the forecast, their median, and the intervals that half and nine tenths of the outcomes should lie in. A network is
tested on times after all that it was trained and validated on. The sea is forecast two months at a time, by a network
trained on all that was before, but for the last month, which chose the epoch. Seattle's 2015 is forecast by one trained
on 2012 and 2013, and 2014 chose the epoch. The baseline is that nothing changes, at the same times.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, data_folder, example_parser, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, number
from tinyseq.nn.functional import quantile_loss

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MIDDLE = QUANTILES.index(0.5)
HOUR, DAY = np.timedelta64(1, "h"), np.timedelta64(1, "D")


# --- the series -------------------------------------------------------------------------------------------------------


@dataclass
class Series:
    """A series, what is to be foretold of it, and how it is parted in time.

    Attributes:
        name: of the series, and
        title: what stands above its picture.
        times: (T,), one step apart.
        target: (T,), in degrees.
        features: (T, F), besides the target, of about unit size.
        ahead: how many steps ahead the forecast is.
        window: how many steps are read, and
        every: how far they lie apart.
        epochs: to train for, if not told otherwise.
        mirrored: whether what holds for a series and its features also holds for their negatives.
        splits: for each network the times at which its validation begins, its test begins, and its test ends.
    """

    name: str
    title: str
    times: np.ndarray
    target: np.ndarray
    features: np.ndarray
    ahead: int
    window: int
    every: int
    epochs: int
    mirrored: bool
    splits: list[tuple[np.datetime64, np.datetime64, np.datetime64]]


def on_a_grid(times: np.ndarray, values: np.ndarray, step: np.timedelta64, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Readings at even steps: on a line between two that are up to ``longest`` steps apart, NaN where they are further.

    >>> times = np.array(["2020-01-01T00:00", "2020-01-01T02:00", "2020-01-01T05:00"], "datetime64[m]")
    >>> on_a_grid(times, np.array([1.0, 3.0, 4.0]), HOUR, longest=2)[1].tolist()
    [1.0, 2.0, 3.0, nan, nan, 4.0]
    """
    grid = np.arange(times.min(), times.max() + np.timedelta64(1, "s"), step)
    x, at = ((when - times.min()) / step for when in (times, grid))
    x, first = np.unique(x, return_index=True)
    line = np.interp(at, x, values[first])
    after = np.searchsorted(x, at)
    line[(x[after] != at) & (x[after] - x[after - 1] > longest)] = np.nan
    return grid, line


def waves(phase: np.ndarray) -> np.ndarray:
    """(T,) phases, 1 a turn, as (T, 2) points of a circle, so that the end of a day or a year is beside its start."""
    return np.stack([np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)], 1)


def year_of(times: np.ndarray) -> np.ndarray:
    """(T, 2): the place in the year."""
    return waves((times - times.astype("datetime64[Y]")) / (365.25 * DAY))


def sea() -> Series:
    """The water's temperature off New Hampshire, hour by hour, from February 2016 to March 2017."""
    folder = data_folder("bokeh_sampledata", "bokeh_sampledata", "the sea's temperatures")
    path = folder / "_data" / "sea_surface_temperature.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    read_at = np.array([np.datetime64(when.rstrip("Z")) for when, _ in rows])
    times, values = on_a_grid(read_at, np.array([float(value) for _, value in rows]), HOUR, longest=2)
    features = np.c_[waves((times - times.astype("datetime64[D]")) / DAY), year_of(times)]
    bounds = [np.datetime64(f"{month}-15") for month in ("2016-06", "2016-08", "2016-10", "2016-12", "2017-02", "2017-04")]
    splits = [(start - 31 * DAY, start, end) for start, end in itertools.pairwise(bounds)]
    title = "the sea off New Hampshire, 24 hours ahead"
    return Series("sea", title, times, values, features, 24, 24, 3, 8, True, splits)


def weather() -> Series:
    """Seattle's weather, day by day, from 2012 to 2015."""
    folder = data_folder("vega_datasets", "vega_datasets", "Seattle's weather reports")
    with open(folder / "_data" / "seattle-weather.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    times = np.array([np.datetime64(row["date"].replace("/", "-")) for row in rows])
    highest, lowest, rain, wind = (
        np.array([float(row[name]) for row in rows]) for name in ("temp_max", "temp_min", "precipitation", "wind")
    )
    weather = [highest / 10 - 1.5, (highest - lowest) / 5 - 1.5, np.log1p(rain) - 1, wind - 3]
    splits = [tuple(np.datetime64(f"{year}-01-01") for year in (2014, 2015, 2016))]
    title = "Seattle's highest temperature, a day ahead"
    return Series("weather", title, times, highest, np.c_[*weather, year_of(times)], 1, 14, 1, 40, False, splits)


@dataclass
class Examples:
    """Windows and what came after them: inputs (N, T, F), change (N,), places (N,) of the foretold step."""

    inputs: np.ndarray
    change: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def mirrored(self) -> Examples:
        """These and their negatives: what the sea does half a year later, upside down."""
        both = lambda part: np.concatenate([part, -part])
        return Examples(both(self.inputs), both(self.change), np.tile(self.places, 2))

    def part(self, chosen: np.ndarray) -> Examples:
        return Examples(self.inputs[chosen], self.change[chosen], self.places[chosen])


def examples_of(series: Series) -> Examples:
    """All windows without a gap. The target is seen relative to its last value, and foretold relative to it."""
    span = (series.window - 1) * series.every + 1
    windows = ts.data.Windows(np.arange(len(series.target)), span, 1, gap=series.ahead - 1)
    places = np.array([(known[-1], foretold[0]) for known, foretold in windows])
    known = np.stack([window[:: series.every] for window, _ in windows])
    last = series.target[places[:, 0]]
    relative = series.target[known] - last[:, None]
    inputs = np.concatenate([relative[:, :, None], series.features[known]], 2)
    change = series.target[places[:, 1]] - last
    whole = np.isfinite(change) & np.isfinite(inputs).all((1, 2))
    return Examples(inputs, change, places[:, 1]).part(whole)


def parted(series: Series, examples: Examples, split: tuple[Any, Any, Any]) -> tuple[Examples, Examples, Examples]:
    """Training, validation, test: no window of one part has a foretold step in a later one."""
    valid, test, end = split
    times = series.times[examples.places]
    between = lambda first, last: examples.part((times >= first) & (times < last))
    return between(series.times[0], valid), between(valid, test), between(test, end)


# --- the model --------------------------------------------------------------------------------------------------------


class Forecaster(ts.nn.Module):
    """A GRU over the window, and from its last state the quantiles of the change, which cannot cross.

    The median is the first output; the others are distances, softplus of the rest, from it outwards. It starts as the
    baseline: the last weights are zeros.
    """

    def __init__(self, features: int, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.layer = ts.nn.GRU(features, hidden)
        self.dropout = ts.nn.Dropout(dropout)
        self.output = ts.nn.Linear(hidden, len(QUANTILES))
        self.scale = scale
        ts.nn.init.zeros_(self.output.weight)
        ts.nn.init.zeros_(self.output.bias)

    def __call__(self, x: ts.Tensor) -> ts.Tensor:
        """(T, B, F) to (B, Q)."""
        _, h = self.layer(x)
        outputs = self.output(self.dropout(h[-1]))
        median, steps = outputs[:, MIDDLE : MIDDLE + 1], ts.softplus(outputs)
        below = [median - steps[:, i:MIDDLE].sum(1, keepdims=True) for i in range(MIDDLE)]
        above = [median + steps[:, MIDDLE + 1 : i + 1].sum(1, keepdims=True) for i in range(MIDDLE + 1, len(QUANTILES))]
        return ts.concatenate([*below, median, *above], 1)

    def quantiles(self, windows: np.ndarray) -> ts.Tensor:
        """(B, T, F) windows, the first feature in degrees, to quantiles (B, Q) in degrees.

        Within, degrees are measured by how much a window varies, so that a restless week and a calm one look alike.
        """
        x = np.swapaxes(windows, 0, 1).astype(np.float32)
        unit = (x[:, :, 0].std(0) + 0.1 * self.scale).astype(np.float32)
        x[:, :, 0] /= unit
        return self(ts.tensor(x)) * ts.tensor(unit[:, None])


def loss(model: Forecaster, batch: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """The quantile loss, in units of the usual change."""
    windows, change = batch
    value = quantile_loss(model.quantiles(windows), ts.tensor(change.astype(np.float32)), QUANTILES) / model.scale
    return {"loss": value, "count": len(change)}


def loader(examples: Examples, batch: int, **options: Any) -> ts.data.Loader:
    collate = lambda chosen: (examples.inputs[chosen], examples.change[chosen])
    return ts.data.Loader(range(len(examples)), batch, collate=collate, **options)


def trained(training: Examples, valid: Examples, name: str, epochs: int, options: Namespace) -> Forecaster:
    """A network as it was after the epoch with which it did best on the validation part."""
    ts.manual_seed(options.seed)
    scale = float(training.change.std())
    model = Forecaster(training.inputs.shape[2], options.hidden, scale, options.dropout)
    optimizer = ts.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    trainer = ts.train.Trainer(model, optimizer, loss, folder=options.out / name, clip=1.0)
    batches = loader(training, options.batch, shuffle=True, seed=options.seed)
    train(trainer, batches, options, epochs=epochs, valid=loader(valid, 512))
    return model.eval()


def forecast(model: Forecaster, examples: Examples) -> np.ndarray:
    """(N, Q) quantiles of the change, in degrees."""
    with ts.no_grad():
        return np.concatenate([model.quantiles(windows).numpy() for windows, _ in loader(examples, 512)])


# --- how good it is ---------------------------------------------------------------------------------------------------


def rmse(errors: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(errors))))


def coverage(quantiles: np.ndarray, outcome: np.ndarray, low: int, high: int) -> float:
    """The share of the outcomes (N,) that lie between two of the quantiles (N, Q)."""
    return float(np.mean((quantiles[:, low] <= outcome) & (outcome <= quantiles[:, high])))


class Forecasts(NamedTuple):
    """All tested steps of a series: their places (N,), the change (N,) and its quantiles (N, Q)."""

    places: np.ndarray
    change: np.ndarray
    quantiles: np.ndarray


def walk(series: Series, options: Namespace) -> Forecasts:
    """Train a network for each split, and let it forecast what comes after."""
    examples, found = examples_of(series), []
    for i, split in enumerate(series.splits):
        training, valid, test = parted(series, examples, split)
        training = training.mirrored() if series.mirrored else training
        model = trained(training, valid, f"{series.name}-{i + 1}", options.epochs or series.epochs, options)
        found.append(Forecasts(test.places, test.change, forecast(model, test)))
    return Forecasts(*(np.concatenate(part) for part in zip(*found, strict=True)))


def report(series: Series, found: Forecasts, seconds: float) -> None:
    ours, repeat = rmse(found.quantiles[:, MIDDLE] - found.change), rmse(found.change)
    half, most = coverage(found.quantiles, found.change, 1, 3), coverage(found.quantiles, found.change, 0, 4)
    print(f"{series.title}: {len(found.places):,} forecasts, after {seconds:.0f} s")
    print(
        f"  RMSE {ours:.3f} °C, repeat {repeat:.3f} °C ({1 - ours / repeat:+.1%}); half within {half:.1%}, 9 of 10 {most:.1%}"
    )


# --- results ----------------------------------------------------------------------------------------------------------


def draw_forecast(axes: Any, series: Series, found: Forecasts, chosen: np.ndarray) -> None:
    """The forecasts at some of the tested steps, each made ``ahead`` steps before, and what came."""
    tested = found.places[chosen]
    places = np.arange(tested[0], tested[-1] + 1)
    times = series.times[places]
    levels, came = np.full((len(places), len(QUANTILES)), np.nan), np.full(len(places), np.nan)  # gaps stay gaps
    levels[tested - places[0]] = series.target[tested - series.ahead, None] + found.quantiles[chosen]
    came[tested - places[0]] = series.target[tested]
    axes.fill_between(times, levels[:, 0], levels[:, -1], color="C0", alpha=0.18, linewidth=0, label="9 of 10")
    axes.fill_between(times, levels[:, 1], levels[:, -2], color="C0", alpha=0.35, linewidth=0, label="half")
    axes.plot(times, levels[:, MIDDLE], color="C0", linewidth=1.2, label="forecast")
    axes.plot(times, came, color="black", linewidth=1.0, label="what came")
    axes.set(ylabel="°C", title=series.title)


def draw_calibration(axes: Any, found: dict[str, Forecasts]) -> None:
    """How often the outcome was below each quantile."""
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    for name, forecasts in found.items():
        below = [np.mean(forecasts.change <= forecasts.quantiles[:, i]) for i in range(len(QUANTILES))]
        axes.plot(QUANTILES, below, "o-", label=name)
    axes.set(xlabel="quantile", ylabel="share of outcomes below it", title="are the quantiles right?", aspect="equal")


def plot(series: Sequence[Series], found: dict[str, Forecasts], path: Path) -> None:
    """A stretch of each series with its intervals, and the calibration."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(series)), layout="constrained")
    grid = figure.add_gridspec(len(series), 2, width_ratios=[2.6, 1])
    for row, each in enumerate(series):
        axes = figure.add_subplot(grid[row, 0])
        forecasts = found[each.name]
        count = min(len(forecasts.places), 24 * 28 if each.name == "sea" else 120)
        draw_forecast(axes, each, forecasts, np.arange(count))
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", ncols=4, fontsize=8)
    axes = figure.add_subplot(grid[:, 1])
    draw_calibration(axes, found)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=110)


SERIES = {"sea": sea, "weather": weather}


def run(options: Namespace) -> None:
    """The series, their figures and the picture."""
    chosen = [make() for name, make in SERIES.items() if options.series in (name, "both")]
    found = {}
    for series in chosen:
        began = time.monotonic()
        found[series.name] = walk(series, options)
        report(series, found[series.name], time.monotonic() - began)
    plot(chosen, found, options.out / "forecasting.png")
    print(f"see {options.out / 'forecasting.png'}")


def parser() -> Parser:
    result = example_parser("forecasting", __doc__)
    add, rate = result.add_argument, number(float, at_least=0)
    add("--series", choices=[*SERIES, "both"], default="both", help="what to forecast [%(default)s]")
    add("--epochs", type=SIZE, metavar="N", help="passes over the training part [8 for the sea, 40 for the weather]")
    add("--hidden", type=SIZE, default=32, metavar="H", help="units of the GRU [%(default)s]")
    add("--dropout", type=number(float, at_least=0, below=1), default=0.1, metavar="P", help="[%(default)s]")
    add("--batch", type=SIZE, default=64, metavar="B", help="windows of an update [%(default)s]")
    add("--lr", type=rate, default=1e-3, metavar="X", help="AdamW's learning rate [%(default)s]")
    add("--weight-decay", type=rate, default=1e-2, metavar="X", help="AdamW's [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("forecasting", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
