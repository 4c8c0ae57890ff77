"""The short examples: what they compute is right, and their command lines run."""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.tree import flatten, tree_map

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKENDS = [info.name for info in ts.backends() if info.available]


def load(name: str) -> Iterator[ModuleType]:
    """The example as a module, for as long as the tests of this file run."""
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(EXAMPLES))  # where a script finds what it shares with others
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    yield module
    sys.modules.pop(spec.name, None)  # it may have been loaded twice


@pytest.fixture(scope="module")
def cells() -> Iterator[ModuleType]:
    yield from load("cells")


@pytest.fixture(scope="module")
def vanishing() -> Iterator[ModuleType]:
    yield from load("vanishing")


# --- the cells of a course --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_courses_cells_are_the_built_in_layers(cells: ModuleType, name: str, backend: str) -> None:
    options = argparse.Namespace(length=7, batch=3, inputs=4, hidden=5)
    with ts.use_backend(backend):
        loss, outputs, gradients = cells.differences(cells.PAIRS[name], options)
    assert loss > 1
    assert outputs < 1e-12
    assert gradients < 1e-12


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def course_rnn(w: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, Any]:
    h = np.tanh(w["W_xh"] @ x + w["W_hh"] @ h)
    return w["W_hy"] @ h, h


def course_gru(w: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, Any]:
    z, r = sigma(w["W_z"] @ np.hstack([h, x])), sigma(w["W_r"] @ np.hstack([h, x]))
    h = z * np.tanh(w["W"] @ np.hstack([r * h, x])) + (1 - z) * h
    return h, h


def course_lstm(w: dict[str, np.ndarray], x: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
    h, c = state
    f, i, new, o = (w[f"W_{gate}"] @ np.hstack([h, x]) + w[f"b_{gate}"] for gate in "fico")
    c = sigma(f) * c + sigma(i) * np.tanh(new)
    h = sigma(o) * np.tanh(c)
    return h, (h, c)


@pytest.mark.parametrize(("name", "equations"), [("RNN", course_rnn), ("GRU", course_gru), ("LSTM", course_lstm)])
def test_the_courses_cells_follow_their_equations(
    cells: ModuleType, name: str, equations: Callable[..., Any], rng: np.random.Generator
) -> None:
    own, _ = cells.PAIRS[name].build(3, 4, "float64")
    weights = {key: value.numpy() for key, value in own.cell.state_dict().items()}
    x = rng.standard_normal((5, 2, 3))
    outputs, _ = own(ts.tensor(x))
    for b in range(2):
        state = tree_map(lambda part: part.numpy()[0], own.cell.initial_state(1))
        for t in range(5):
            y, state = equations(weights, x[t, b], state)
            np.testing.assert_allclose(outputs.detach().numpy()[t, b], y, rtol=1e-12)


def test_a_wrong_mapping_is_seen(cells: ModuleType) -> None:
    own = cells.PAIRS["GRU"]
    wrong = cells.Pair(own.cell, own.layer, lambda w: own.mapping({**w, "W_z": -w["W_z"]}))
    _, outputs, _ = cells.differences(wrong, argparse.Namespace(length=7, batch=3, inputs=4, hidden=5))
    assert outputs > 0.01


def test_the_loss_is_summed_over_the_steps(cells: ModuleType, rng: np.random.Generator) -> None:
    y, targets = rng.standard_normal((2, 5, 3, 4))
    loss, _ = cells.loss_of(lambda x: (x, None), ts.tensor(y), ts.tensor(targets))
    expected = sum(0.5 * ((y[t, b] - targets[t, b]) ** 2).sum() for t in range(5) for b in range(3))
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)


@pytest.fixture
def plays(cells: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A text of six characters in which each but the first follows from the one before."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([[0, *range(1, 1 + word)] for word in rng.integers(3, 6, 800)])
    made = cells.Plays(ids[:3000], ids[3000:3400], 6)
    monkeypatch.setattr(cells, "load_plays", lambda most: made)
    return made


SMALL = "--length 4 --batch 2 --inputs 3 --hidden 4 --repeats 1"


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_table_of_the_cells(
    cells: ModuleType, backend: str, plays: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cells.main(["--backend", backend, *SMALL.split(), "--updates", "3", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(f"on {backend}")
    assert [line.split()[0] for line in lines[2:5]] == ["RNN", "GRU", "LSTM"]
    assert all(float(line.split()[3]) < 1e-12 for line in lines[2:5])
    apart = [re.fullmatch(r"(\w+) +own ([\d.]+), built in ([\d.]+); losses at most (.+) apart", line) for line in lines[7:10]]
    assert [found[1] for found in apart] == ["RNN", "GRU", "LSTM"]
    assert all(found[2] == found[3] and float(found[4]) < 1e-12 for found in apart)
    assert (tmp_path / "cells.png").read_bytes().startswith(b"\x89PNG")


def test_bits_of_counts(cells: ModuleType) -> None:
    """By hand: of 0 1 0 1 0 come after a 0 two 1s, after a 1 two 0s, and one more of each that never came."""
    by_frequency, by_pairs = cells.bits_of_counts(cells.Plays(np.array([0, 1, 0, 1, 0]), np.array([0, 1, 1]), 2))
    assert by_frequency == pytest.approx(1.0)
    assert by_pairs == pytest.approx(-(np.log2(3 / 4) + np.log2(1 / 4)) / 2)


def test_the_cells_learn(cells: ModuleType, plays: Any) -> None:
    """A word has three to five characters after the first: what has seen the last two knows where in it one is."""
    options = argparse.Namespace(length=16, batch=8, hidden=12, updates=150, lr=0.02)
    by_frequency, by_pairs = cells.bits_of_counts(plays)
    for name in ("RNN", "GRU", "LSTM"):
        ts.manual_seed(0)
        own, built_in = cells.twins(cells.PAIRS[name], plays, options, argparse.Namespace(signal=0))
        assert own.held_out < by_frequency / 2
        assert own.held_out < by_pairs + 0.05
        np.testing.assert_allclose(own.losses, built_in.losses, rtol=1e-6)


# --- vanishing gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_the_flow_is_the_gradient_of_what_follows_each_step(
    vanishing: ModuleType, kind: str, backend: str, rng: np.random.Generator
) -> None:
    """dL/dh_t by definition: the loss as a function of the state after step t, one step after the other."""
    with ts.use_backend(backend):
        cell = getattr(ts.nn, kind)(3, 4, dtype="float64")
        x, direction = ts.tensor(rng.standard_normal((6, 2, 3))), ts.tensor(rng.standard_normal((2, 4)))

        def loss(state: Any) -> ts.Tensor:
            return (flatten(state)[0][0] * direction).sum()

        found = vanishing.gradient_flow(cell, x, loss)
        state = cell.initial_state(2)
        for t in range(6):
            _, state = cell(x[t], tree_map(ts.Tensor.detach, state))

            def rest(state: Any, t: int = t) -> ts.Tensor:
                for later in range(t + 1, 6):
                    _, state = cell(x[later], state)
                return loss(state)

            gradient = flatten(ts.grad(rest)(tree_map(ts.Tensor.detach, state)))[0][0]
            np.testing.assert_allclose(found[t], np.linalg.norm(gradient.numpy()), rtol=1e-10)


def test_what_is_known_of_vanishing_gradients(vanishing: ModuleType) -> None:
    """It falls by about the same factor a step; a large forget bias and the identity keep it; a large matrix does not."""
    x, _ = vanishing.batch_of_symbols(60, np.random.default_rng(0))
    ratios = {}
    for panel in vanishing.cells(16).values():
        for label, make in panel.items():
            ts.manual_seed(0)
            cell = make()
            norms = vanishing.gradient_flow(cell, x.astype("float64"), vanishing.read_out(cell))
            ratios[label] = norms[0] / norms[-1]
    assert ratios["RNN"] < 1e-6
    assert ratios["GRU"] < 1e-6
    assert ratios["LSTM"] < 1e-6
    assert 1e-3 < ratios["LSTM, forget bias 3"] < 1e3
    assert 1e-3 < ratios["identity, relu"] < 1e3
    assert ratios["orthogonal x 0.5"] < ratios["orthogonal"] < ratios["orthogonal x 1.5"]


def test_clipping_bounds_what_an_update_changes(vanishing: ModuleType) -> None:
    clipped, free = (vanishing.train(20, 8, 3, clip, seed=0) for clip in (1e-9, None))
    assert clipped.losses[0] == free.losses[0]
    assert clipped.norms[0] == free.norms[0] > 1e-3
    np.testing.assert_allclose(clipped.norms[1:], [vanishing.train(20, 8, k, 1e-30, 0).norms[-1] for k in (2, 3)], rtol=1e-3)
    assert free.losses[2] != pytest.approx(clipped.losses[2], rel=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_picture_of_vanishing_gradients(
    vanishing: ModuleType, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--length", "6", "--hidden", "4", "--steps", "2", "--out", str(tmp_path / "a" / "b")]
    assert vanishing.main(["--backend", backend, *small]) == 0
    assert (tmp_path / "a" / "b" / "vanishing.png").read_bytes().startswith(b"\x89PNG")
    assert "starting values of an RNN: orthogonal x 1.5" in capsys.readouterr().out


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_stop_leaves_the_picture_of_what_was_learned(
    cells: ModuleType,
    vanishing: ModuleType,
    plays: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = ts.optim.clip_grad_norm

    def stopping(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return clip(*args)

    monkeypatch.setattr(ts.optim, "clip_grad_norm", stopping)
    for example, flags in ((cells, SMALL), (vanishing, "--length 6 --hidden 4")):
        name = example.__name__.removesuffix("_example")
        assert example.main([*flags.split(), "--out", str(tmp_path)]) == 130
        assert capsys.readouterr().err == f"stopped; {tmp_path / name}.png shows what was learned until then\n"
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_stop_outside_of_training_is_no_traceback(
    vanishing: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vanishing, "gradient_flow", lambda *_: signal.raise_signal(signal.SIGINT))
    assert vanishing.main(["--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == f"stopped at once; what was saved before is still there, in {tmp_path}\n"


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "shared"))
def test_help_says_how_to_run_it_and_that_a_stop_saves(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for example in load(name):
        with pytest.raises(SystemExit) as end:
            example.main(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"python examples/{name}.py" in shown
    assert "--backend NAME" in shown
    assert "Ctrl-C" in shown
    if "--resume" in shown and name != "shakespeare":  # what trains for minutes does so on data of a package
        assert re.search("pip install|npm install|apt-get", shown)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cells", "vanishing"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "nonsense"], "nonsense"),
        (["--hidden", "0"], "0 is less than 1"),
        (["--speed", "3"], "--speed"),
    ],
)
def test_wrong_flags(
    name: str, arguments: list[str], words: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert request.getfixturevalue(name).main(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"{name}: ")
    assert words in errors
    assert errors.count("\n") == 1


def test_a_picture_without_matplotlib(
    vanishing: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert vanishing.main([]) == 2
    assert "pip install 'tinyseq[examples]'" in capsys.readouterr().err
