"""The benchmarks run and compare; how fast anything is, no test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import eager  # noqa: E402

BRIEF = ["--pairs", "2", "--seconds", "0.001", "--links", "4"]


def run(*arguments: str, script: Path = BENCHMARKS / "eager.py") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "backends"), str(BENCHMARKS)])}
    return subprocess.run(
        [sys.executable, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def result_of(name: str) -> tuple[list[str], dict[str, dict[str, np.ndarray]]]:
    """The modes and, for each case, the outputs and gradients that a peer gives in this process."""
    build = eager.PEERS[name].connect()
    jobs = {case.name: build(case) for case in eager.cases(links(8))}
    modes = {mode for job in jobs.values() for mode in job.timed}
    return sorted(modes), {case: job.results() for case, job in jobs.items()}


def links(count: int) -> Any:
    class Arguments:
        links = count

    return Arguments()


def test_eager_runs_and_writes_what_it_prints(tmp_path: Path) -> None:
    done = run(*BRIEF, "--peers", "numpy", "--write", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "eager.json").read_text("utf-8"))
    assert [(row["case"], row["mode"], row["peer"]) for row in report["rows"]] == [
        (case, "forward", "numpy") for case in eager.FUNCTIONS
    ]
    assert all(len(row["ratios"]) == report["pairs"] == 2 for row in report["rows"])
    assert all(row["ratio"] == pytest.approx(sum(row["ratios"]) / 2) for row in report["rows"])
    assert len(report["machine"]["gemm_gflops"]) == 2
    assert report["machine"]["threads"] == 1
    assert report["versions"]["numpy"]["numpy"] == np.__version__
    text = (tmp_path / "eager.md").read_text("utf-8")
    for row in report["rows"]:
        assert f"{row['ratio']:.2f} [" in text
        assert f"{row['ratio']:.2f} [" in done.stdout
    assert f"| geometric mean | forward | numpy |  |  | {report['geometric_means'][0]['ratio']:.2f} |  |" in text


def test_a_missing_peer_is_named_and_left_out(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import common, eager\n"
        "peers = {'tinyseq': eager.PEERS['tinyseq'], 'nonesuch': common.Peer(lambda: __import__('nonesuch'))}\n"
        "if __name__ == '__main__':\n"
        "    common.main(__file__, 'Two', peers, lambda args: eager.cases(args)[:1], {}, eager.add_arguments)\n"
    )
    done = run(*BRIEF, script=script)
    assert done.returncode == 0, done.stderr
    assert "Left out: nonesuch (No module named 'nonesuch')" in done.stdout


def test_what_a_peer_prints_stays_out_of_the_answers_and_a_wrong_one_is_not_timed(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(
        "import dataclasses, common, eager\n"
        "def connect():\n"
        "    print('a banner')\n"
        "    build = eager.numpy_build()\n"
        "    def wrong(case):\n"
        "        job = build(case)\n"
        "        return dataclasses.replace(job, results=lambda: {k: v * 1.001 for k, v in job.results().items()})\n"
        "    return wrong\n"
        "peers = {'tinyseq': eager.PEERS['tinyseq'], 'wrong': common.Peer(connect)}\n"
        "if __name__ == '__main__':\n"
        "    common.main(__file__, 'Wrong', peers, eager.cases, {}, eager.add_arguments)\n"
    )
    done = run(*BRIEF, script=script)
    assert done.returncode == 1
    assert "mul: y differs from wrong's by" in done.stderr
    assert "a banner" in done.stderr
    assert "a banner" not in done.stdout


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, common, eager\n"
        "peers = {'tinyseq': eager.PEERS['tinyseq'], 'dies': common.Peer(lambda: os._exit(7))}\n"
        "if __name__ == '__main__':\n"
        "    common.main(__file__, 'Dies', peers, eager.cases, {}, eager.add_arguments)\n"
    )
    done = run(*BRIEF, script=script)
    assert done.returncode == 1
    assert "the worker of dies ended with status 7" in done.stderr


X = np.array([1.0, -4.0], np.float32)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"y": X + np.float32(1e-3)}, "y differs from peer's by 0.001"),
        ({"y": np.array([1.0, np.nan], np.float32)}, "y differs from peer's by nan"),
        ({"y": X.astype(np.float64)}, r"y is float32\[2\] in tinyseq and float64\[2\] in peer"),
        ({"y": X[:1]}, r"y is float32\[2\] in tinyseq and float32\[1\] in peer"),
        ({"z": X}, r"peer gives \['z'\], tinyseq gives \['dx', 'y'\]"),
        ({}, r"peer gives \[\]"),
    ],
)
def test_unequal_results_are_refused(theirs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        common.check_equal("case", "peer", {"y": X, "dx": X}, theirs, 1e-5)


def test_equal_results_pass() -> None:
    common.check_equal("case", "peer", {"y": X, "dx": X}, {"y": X + np.float32(1e-5)}, 1e-5)


def test_the_ratio_is_the_median_over_pairs_and_the_verdict_follows_the_aim() -> None:
    row = common.Row("case", "forward", "peer", "op", 1e-6, 2e-6, [0.5, 9.0, 0.4, 0.6, 0.1], 0.5)
    assert (row.ratio, row.verdict) == (0.5, "met (≤ 0.5)")
    other = common.Row("other", "forward", "peer", "op", 1e-6, 2e-6, [2.0], 0.5)
    assert other.verdict == "missed (≤ 0.5)"
    assert common.geometric_means([row, other]) == [("forward", "peer", pytest.approx(1.0), 0.5)]
    assert common.table([row, other])[1][3:6] == ["1.00 µs / op", "2.00 µs / op", "0.50 [0.25, 4.80]"]


def test_the_functions_of_a_case_are_right() -> None:
    """tinyseq's outputs are NumPy's, and its gradients have the slope that NumPy's outputs have in float64."""
    _, ours = result_of("tinyseq")
    modes, outputs = result_of("numpy")
    assert modes == ["forward"]
    names = eager.Names(np.tanh, lambda x: 1 / (1 + np.exp(-x)), lambda gates: np.split(gates, 4, axis=1))
    random = np.random.default_rng(1)
    for case, function in eager.FUNCTIONS.items():
        common.check_equal(case, "numpy", ours[case], outputs[case], 1e-5)
        arrays = {name: array.astype(np.float64) for name, array in eager.leaves(case).items()}
        directions = {name: random.standard_normal(array.shape) for name, array in arrays.items()}
        count = 1 if case == "lstm" else 8

        def loss(
            t: float, function: Any = function, count: int = count, arrays: Any = arrays, directions: Any = directions
        ) -> float:
            moved = (arrays[name] + t * directions[name] for name in arrays)
            return float(eager.loss_of(function(names, count, *moved)))

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        found = [float(np.sum(ours[case][f"d{name}"] * directions[name])) for name in arrays]
        assert np.sum(found) == pytest.approx(slope, rel=1e-4, abs=1e-4 * np.abs(found).max())


@pytest.mark.peers
@pytest.mark.parametrize("peer", ["torch", "autograd", "mygrad"])
def test_peers_agree(peer: str) -> None:
    pytest.importorskip(peer)
    _, ours = result_of("tinyseq")
    modes, theirs = result_of(peer)
    assert modes == ["forward", "forward+backward"]
    for case in eager.FUNCTIONS:
        assert ours[case].keys() == theirs[case].keys()
        common.check_equal(case, peer, ours[case], theirs[case], 1e-5)
