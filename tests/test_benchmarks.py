"""The benchmarks run and compare; how fast anything is, no test says."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
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

import cells  # noqa: E402
import common  # noqa: E402
import eager  # noqa: E402
import libraries  # noqa: E402
import memory  # noqa: E402
import recurrent  # noqa: E402
import shakespeare  # noqa: E402

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


# --- the harness's turns ----------------------------------------------------------------------------------------------


class FakeWorker:
    """Says how long a call takes, and notes its turns."""

    def __init__(self, peer: str, seconds: float, log: list[str]) -> None:
        self.peer, self.seconds, self.log = peer, seconds, log

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        if do == "calibrate":
            return {"calls": max(1, round(request["seconds"] / common.PARTS / self.seconds)), "seconds": self.seconds}
        self.log.append(f"{self.peer}{request['parts']}")
        return {"seconds": self.seconds}


def turns_of(budget: float, **seconds: float) -> tuple[dict[str, int], list[str]]:
    log: list[str] = []
    workers: list[Any] = [FakeWorker(peer, each, log) for peer, each in seconds.items()]
    args = argparse.Namespace(pairs=7, seconds=0.05, budget=budget)
    return {peer: len(times) for peer, times in common.take_turns(workers, "forward", args).items()}, log


def test_a_slow_peer_takes_part_in_the_first_turns_only() -> None:
    counts, log = turns_of(0.6, ours=0.001, quick=0.01, slow=0.049, slowest=3.0)
    assert counts == {"ours": 7, "quick": 7, "slow": 4, "slowest": 3}
    assert log[:8] == ["ours3", "quick3", "slow3", "slowest3", "slowest3", "slow3", "quick3", "ours3"]


def test_without_a_budget_everyone_has_all_turns() -> None:
    counts, _ = turns_of(float("inf"), ours=0.001, slow=9.0)
    assert counts == {"ours": 7, "slow": 7}


def test_long_calls_are_not_repeated_within_a_turn_by_anyone() -> None:
    counts, log = turns_of(0.6, ours=0.06, slow=0.099)
    assert counts == {"ours": 6, "slow": 6}
    assert set(log) == {"ours1", "slow1"}


# --- recurrent layers -------------------------------------------------------------------------------------------------

SMALL = cells.Size(7, 3, 5, 6)


def numpy_layer_norm(x: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain + shift


NUMPY = cells.Names(
    np.tanh,
    lambda x: 1 / (1 + np.exp(-x)),
    lambda x, w, b=0.0: x @ w.T + b,
    lambda x, n: np.split(x, n, -1),
    numpy_layer_norm,
)


def recurrent_results(run: libraries.Run, cell: cells.Cell) -> dict[str, np.ndarray]:
    job = run(cell, SMALL)
    assert job is not None
    results = job.results()
    for timed in job.timed.values():  # neither mode changes what the other gives
        timed()
    again = job.results()
    assert all(np.array_equal(results[name], again[name]) for name in results)
    return results


@pytest.mark.parametrize("name", cells.CELLS)
def test_tinyseq_runs_each_cell_as_numpy_does_and_with_the_slope_of_its_loss(name: str) -> None:
    cell, values = cells.CELLS[name], cells.data(cells.CELLS[name], SMALL)
    exact = {key: array.astype(np.float64) for key, array in values.leaves.items()}

    def outputs(leaves: dict[str, np.ndarray]) -> tuple[np.ndarray, Any]:
        state = tuple(leaves[f"state{k}"] for k in range(len(values.state)))
        ys = []
        for x in leaves["x"]:
            y, state = cell.step(NUMPY, leaves, cell.inputs(NUMPY, leaves, x), state)
            ys.append(y)
        return np.stack(ys), state

    compiled = recurrent_results(libraries.tinyseq(), cell)
    common.check_equal(name, "the tape", compiled, recurrent_results(libraries.tinyseq(unroll=True), cell), 2e-5)
    ys, last = outputs(exact)
    expected = {"ys": ys, **{f"last{k}": part for k, part in enumerate(last)}}
    common.check_equal(name, "numpy", compiled, {k: v.astype(np.float32) for k, v in expected.items()}, 1e-5)

    random = np.random.default_rng(1)
    for leaf, array in exact.items():
        direction = random.standard_normal(array.shape)
        ends = [outputs({**exact, leaf: array + t * direction})[0] for t in (1e-5, -1e-5)]
        slope = np.sum((ends[0] - ends[1]) / 2e-5 * values.dy)
        terms = compiled[f"d{leaf}"] * direction
        assert np.sum(terms) == pytest.approx(slope, rel=1e-4, abs=1e-5 * np.abs(terms).sum())


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # PyTorch says that oneDNN has none
@pytest.mark.parametrize(
    ("package", "library"),
    [
        ("torch", libraries.torch_nn),
        ("torch", libraries.torch_loop),
        ("torch", lambda: libraries.torch_loop(hoisted=True)),
        ("jax", libraries.jax_scan),
        ("jax", lambda: libraries.jax_scan(hoisted=True)),
    ],
)
def test_recurrent_peers_agree(package: str, library: Any) -> None:
    pytest.importorskip(package)
    ours, theirs = libraries.tinyseq(), library()
    compared = 0
    for name, cell in cells.CELLS.items():
        job = theirs(cell, SMALL)
        if job is not None:
            results = job.results()
            expected = recurrent_results(ours, cell)
            assert results.keys() == expected.keys()
            common.check_equal(name, package, expected, results, 2e-5)
            compared += 1
    assert compared == (4 if library is libraries.torch_nn else len(cells.CELLS))


def test_operations_are_those_of_the_products() -> None:
    size = cells.Size(10, 2, 3, 4)
    assert cells.CELLS["lstm"].flops(size, "forward") == 2 * 10 * 2 * 16 * (3 + 4)
    assert cells.CELLS["lstm-projected"].flops(size, "forward+backward") == 3 * 2 * 10 * 2 * (16 * (3 + 2) + 2 * 4)


def test_recurrent_runs_and_merges_what_it_writes(tmp_path: Path) -> None:
    script = BENCHMARKS / "recurrent.py"
    common_words = ["--sizes", "37,5,19,83", "--peers", "numpy", "tape", "--pairs", "2", "--seconds", "0.001"]
    for cell in ("gru", "rnn"):
        done = run("--cells", cell, *common_words, "--backend", "numpy", "--write", str(tmp_path), script=script)
        assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "recurrent.json").read_text("utf-8"))
    found = [(row["cell"], row["mode"], row["subject"], row["peer"], len(row["times_as_fast"])) for row in report["rows"]]
    pairs = [("tinyseq", "numpy"), ("tinyseq", "tape"), ("numpy", "tape")]
    assert found == [(c, m, *p, 2) for c, m, p in itertools.product(("rnn", "gru"), recurrent.MODES, pairs)]
    assert all(row["run"] in report["runs"] for row in report["rows"])
    text = (tmp_path / "recurrent.md").read_text("utf-8")
    for row in report["rows"]:
        assert f"{recurrent.speed(row):.2f} [" in text
    assert (tmp_path / "recurrent.png").read_bytes().startswith(b"\x89PNG")


def made_up(cell: str, size: str, peer: str, speeds: list[float], subject: str = "tinyseq", run: str = "a") -> dict[str, Any]:
    return {"cell": cell, "size": size, "mode": "forward+backward", "subject": subject, "peer": peer, "subject_seconds": 0.5,
            "peer_seconds": 1.0, "times_as_fast": speeds, "run": run}  # fmt: skip


def report_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"title": "t", "runs": {"a": {"machine": {"gemm_gflops": [190.0, 200.0]}}}, "rows": list(rows)}


def test_aims_are_judged_by_the_mean_and_by_the_least() -> None:
    small, large = "37,5,19,83", "100,64,512,512"
    rows = [made_up("lstm", small, "nn", [0.9, 0.8, 1.0]), made_up("lstm", large, "nn", [2.5])]
    head, nn, fraction = recurrent.aims_table(report_of(*rows))
    assert head[3:] == ["geometric mean", "least", "cases under", "verdict"]
    assert nn == ["PyTorch nn.LSTM", "1.2", "0.95", "1.50", "0.90 (lstm 37,5,19,83)", "1 of 2", "mean met, least missed"]
    # 3 * 2 * 100 * 64 * 2048 * 1024 operations in half a second, of 200 GFLOP/s
    assert fraction[3] == f"{3 * 2 * 100 * 64 * 2048 * 1024 / 0.5 / 200e9:.2f}" == "0.81"
    assert fraction[-1] == "met"
    gru = [made_up("gru", small, "nn", [4.0]), made_up("rnn", small, "nn", [1.0])]
    assert recurrent.aims_table(report_of(*gru))[1][3:] == ["2.00", "1.00 (rnn 37,5,19,83)", "0 of 2", "mean met, least met"]


def test_merging_replaces_what_was_measured_anew_and_drops_what_nothing_is_left_of() -> None:
    old = {
        "runs": {"a": 1, "b": 2},
        "rows": [made_up("lstm", "37,5,19,83", "nn", [1.0]), made_up("rnn", "1,2,3,4", "nn", [1.0], run="b")],
    }
    new = {
        "title": "t",
        "runs": {"c": 3},
        "rows": [made_up("lstm", "37,5,19,83", "nn", [2.0], run="c"), made_up("rnn", "37,5,19,83", "nn", [3.0], run="c")],
    }
    merged = recurrent.merged(old, new)
    assert [(row["cell"], row["times_as_fast"]) for row in merged["rows"]] == [("rnn", [3.0]), ("lstm", [2.0])]
    assert merged["runs"] == {"c": 3}


def test_a_figure_shows_its_quartiles_and_pairs() -> None:
    assert recurrent.interval(made_up("lstm", "1", "nn", [1.0, 2.0, 3.0])) == "2.00 [1.00, 3.00] ×3"
    assert recurrent.interval(made_up("lstm", "1", "nn", [1.5])) == "1.50 [1.50, 1.50] ×1"
    assert recurrent.spread([1.0, 4.0]) == "2.00 [1.00, 4.00]"


# --- memory, compiling, characters a second ---------------------------------------------------------------------------


@pytest.mark.skipif(memory.status("VmHWM") is None, reason="the high-water mark cannot be set back on this system")
def test_growth_is_that_of_the_step_and_not_of_what_came_before() -> None:
    """In a process of its own: one that has freed much would take the step's memory from what it still holds."""
    code = (
        "import numpy as np, memory\n"
        "np.ones(30 * memory.MEBI, np.uint8)\n"
        "print(memory.growth(lambda: np.ones(20 * memory.MEBI, np.uint8)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=BENCHMARKS, check=True)
    assert float(done.stdout) == pytest.approx(20 * memory.MEBI, rel=0.05)


def test_memory_of_a_step_is_measured_in_a_process_of_its_own() -> None:
    script = BENCHMARKS / "memory.py"
    small, large = (run("--backend", "numpy", "--measure", "tape", "rnn", f"{T},32,16,64", script=script) for T in (20, 1000))
    assert small.returncode == large.returncode == 0, small.stderr + large.stderr
    difference = json.loads(large.stdout)["result"] - json.loads(small.stdout)["result"]
    assert difference > 980 * 32 * 64 * 4  # the outputs alone


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="Numba is not installed")
def test_a_new_size_adds_no_file_to_the_cache(tmp_path: Path) -> None:
    done = run("--quick", "--peers", "--write", str(tmp_path), script=BENCHMARKS / "compile.py")
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads((tmp_path / "compile.json").read_text("utf-8"))["rows"]}
    assert rows["no cache"]["files"] > 0
    assert [rows[name]["files"] for name in ("from the disk", "new T", "new B")] == [0, 0, 0]
    assert rows["no cache"]["first"] > rows["no cache"]["next"] > 0


def test_the_torch_program_reads_the_chunks_that_the_example_reads() -> None:
    from tinyseq.data import TextStream

    ids = np.arange(2 * shakespeare.B * shakespeare.T + 1)
    stream = TextStream(ids, shakespeare.B, shakespeare.T)
    for ours, theirs in zip(itertools.islice(stream, 5), shakespeare.chunks(ids), strict=False):
        assert np.array_equal(ours.inputs, theirs[0])
        assert np.array_equal(ours.targets, theirs[1])
        assert ours.starts == theirs[2]


@pytest.mark.peers
def test_both_programs_have_the_same_losses(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 40, 5 * shakespeare.B * shakespeare.T + 1)
    np.save(tmp_path / "ids.npy", ids)
    case = common.Case("case", {"ids": str(tmp_path / "ids.npy"), "characters": 40})
    ours, theirs = (shakespeare.PEERS[name].connect()(case).results() for name in ("tinyseq", "torch"))
    assert len(ours["losses"]) == shakespeare.CHECKED
    common.check_equal("case", "torch", ours, theirs, 1e-4)
