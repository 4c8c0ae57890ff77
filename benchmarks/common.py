"""The harness that every benchmark here shares: the same work, done by several libraries in turn, and the ratio of each pair.

A benchmark is one file. It names its cases, and for each peer a function that imports the peer and says how to build a case
(see `Job`). The same file is its own worker: `main` starts it once for each peer as a process that lives through the whole
run, and speaks with it in lines of JSON over stdin and stdout. Nothing is timed before the peers' outputs and gradients
have been found equal. Then the processes take turns, one at a time, so that a slow minute of the machine hits all of them,
and every turn gives one ratio to each peer; what is reported is the median of those ratios.

The peers may live in another virtual environment than tinyseq (`--peer-python`), so this file needs NumPy alone.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import datetime
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
GEMM_SIZE = 2048
PARTS = 3  # a turn counts as its best part, so that a process that was interrupted once does not look slow


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work: its name, the settings that every peer builds it from, and how many `unit`s a call of it does."""

    name: str
    settings: Mapping[str, Any]
    count: int = 1
    unit: str = "call"


@dataclasses.dataclass(frozen=True)
class Job:
    """A case as one peer runs it.

    `results` gives the named outputs and gradients as NumPy arrays; they are compared before anything is timed. `timed` has
    one call for each mode ("forward", "forward+backward"); on a device a call has to wait for the device by itself.
    """

    results: Callable[[], dict[str, np.ndarray]]
    timed: Mapping[str, Callable[[], object]]


Build = Callable[[Case], Job]
Connect = Callable[[], Build]  # imports the peer; an ImportError means that the peer is not there


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library to be measured: how to connect to it, and the distributions whose versions are reported."""

    connect: Connect
    distributions: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """tinyseq against one peer in one case and mode; seconds are medians, `ratios` holds ours/theirs of every pair."""

    case: str
    mode: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratios: list[float]
    aim: float | None

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> str:
        return verdict(self.ratio, self.aim)


def verdict(ratio: float, aim: float | None) -> str:
    if aim is None:
        return ""
    return f"met (≤ {aim})" if ratio <= aim else f"missed (≤ {aim})"


# The worker's side


def serve(peer: Peer) -> None:
    """Answer the harness until it closes our stdin."""
    # What a library prints must not get among the answers: file descriptor 1 becomes a second stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        build = peer.connect()
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(versions={"python": platform.python_version(), **{name: _version(name) for name in peer.distributions}})

    jobs: dict[str, Job] = {}
    calls: dict[tuple[str, str], int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "gemm":
            answer(flops=gemm_peak())
        elif request["do"] == "build":
            case = Case(**request["case"])
            jobs[case.name] = build(case)
            arrays = {name: _encode(array) for name, array in jobs[case.name].results().items()}
            answer(results=arrays, modes=list(jobs[case.name].timed))
        elif request["do"] == "time":
            key = (request["case"], request["mode"])
            run = jobs[key[0]].timed[key[1]]
            if key not in calls:
                calls[key] = _calls_that_last(run, request["seconds"] / PARTS)
            run()  # the other processes have had the caches since our last turn
            answer(seconds=min(_time(run, calls[key]) for _ in range(PARTS)) / calls[key])


def _time(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def _calls_that_last(run: Callable[[], object], seconds: float) -> int:
    run()  # a first call may compile, or start threads
    calls = 1
    while (elapsed := _time(run, calls)) < seconds / 2:
        calls *= 2
    return max(1, round(calls * seconds / elapsed))


def gemm_peak() -> float:
    """Return the best rate, in float32 operations a second, of NumPy's product of two 2048 x 2048 matrices."""
    a, b = np.random.default_rng(0).standard_normal((2, GEMM_SIZE, GEMM_SIZE), dtype=np.float32)
    out = np.empty_like(a)
    return 2 * GEMM_SIZE**3 / min(_time(lambda: np.matmul(a, b, out=out), 1) for _ in range(5))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed as a package"


def _encode(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def _decode(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)


# The harness's side


class Worker:
    """The process of one peer. `missing` holds the reason where the peer could not be imported, else None."""

    def __init__(self, script: Path, peer: str, python: str, environment: Mapping[str, str]) -> None:
        self.peer = peer
        self.process = subprocess.Popen(
            [python, str(script), "--worker", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )
        hello = self._read()
        self.missing: str | None = hello.get("missing")
        self.versions: dict[str, str] = hello.get("versions", {})

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.peer} ended with status {self.process.wait()}; its error is above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def check_equal(
    case: str, peer: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float
) -> None:
    """Raise ValueError unless each of the peer's arrays is ours, to `tolerance` of the largest magnitude in it.

    A peer without gradients gives its outputs alone, so ours may have more names than theirs.
    """
    if not theirs or theirs.keys() - ours.keys():
        raise ValueError(f"{case}: {peer} gives {sorted(theirs)}, tinyseq gives {sorted(ours)}; nothing was timed")
    for name, theirs_array in theirs.items():
        ours_array = ours[name]
        if ours_array.shape != theirs_array.shape or ours_array.dtype != theirs_array.dtype:
            raise ValueError(
                f"{case}: {name} is {ours_array.dtype}{list(ours_array.shape)} in tinyseq and "
                f"{theirs_array.dtype}{list(theirs_array.shape)} in {peer}; nothing was timed"
            )
        difference = float(np.max(np.abs(ours_array - theirs_array), initial=0.0))
        scale = float(np.max(np.abs(theirs_array), initial=0.0))
        if not difference <= tolerance * scale:  # written so that a NaN fails
            raise ValueError(
                f"{case}: {name} differs from {peer}'s by {difference:.3g} where {tolerance * scale:.3g} is allowed; "
                "nothing was timed"
            )


def take_turns(workers: Sequence[Worker], case: str, mode: str, pairs: int, seconds: float) -> dict[str, list[float]]:
    """Return each peer's seconds a call, `pairs` of them, measured in turn; the order is reversed in every other turn."""
    times: dict[str, list[float]] = {worker.peer: [] for worker in workers}
    for turn in range(pairs):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            times[worker.peer].append(worker.ask(do="time", case=case, mode=mode, seconds=seconds)["seconds"])
    return times


def compare(
    workers: Sequence[Worker], case: Case, aims: Mapping[tuple[str, str], float], args: argparse.Namespace
) -> list[Row]:
    """Check that the workers agree on `case`, time them, and return a row for each mode and peer; the first is tinyseq."""
    answers = {worker.peer: worker.ask(do="build", case=dataclasses.asdict(case)) for worker in workers}
    results = {peer: {k: _decode(v) for k, v in answer["results"].items()} for peer, answer in answers.items()}
    ours, *peers = (worker.peer for worker in workers)
    for peer in peers:
        check_equal(case.name, peer, results[ours], results[peer], args.tolerance)

    rows = []
    for mode in answers[ours]["modes"]:
        able = [worker for worker in workers if mode in answers[worker.peer]["modes"]]
        times = take_turns(able, case.name, mode, args.pairs, args.seconds)
        for worker in able[1:]:
            theirs = times[worker.peer]
            rows.append(
                Row(
                    case=case.name,
                    mode=mode,
                    peer=worker.peer,
                    unit=case.unit,
                    ours=statistics.median(times[ours]) / case.count,
                    theirs=statistics.median(theirs) / case.count,
                    ratios=[mine / other for mine, other in zip(times[ours], theirs, strict=True)],
                    aim=aims.get((worker.peer, mode)),
                )
            )
    return rows


def geometric_means(rows: Iterable[Row]) -> list[tuple[str, str, float, float | None]]:
    """Return (mode, peer, geometric mean of the ratios over all cases, aim) for each mode and peer."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.mode, row.peer), []).append(row)
    return [
        (mode, peer, statistics.geometric_mean(row.ratio for row in group), group[0].aim)
        for (mode, peer), group in groups.items()
    ]


# The report


def machine(threads: int, flops: Sequence[float]) -> dict[str, Any]:
    blas = np.__config__.CONFIG["Build Dependencies"]["blas"]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "blas": f"{blas['name']} {blas['version']}, OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}",
        "gemm_gflops": [round(rate / 1e9, 1) for rate in flops],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def summary(report: Mapping[str, Any], missing: Mapping[str, str]) -> list[str]:
    """Return the facts that belong beside the figures, a line each."""
    host = report["machine"]
    versions = "; ".join(f"{peer}: {_join(found)}" for peer, found in report["versions"].items())
    return [
        f"Date: {host['date']}",
        f"CPU: {host['cpu']}, {host['cores']} cores, {host['threads']} thread(s) for each process ({host['system']})",
        f"NumPy's BLAS: {host['blas']}",
        f"GEMM {GEMM_SIZE} x {GEMM_SIZE} float32, before and after: "
        + " and ".join(f"{rate} GFLOP/s" for rate in host["gemm_gflops"]),
        f"Versions: {versions}",
        f"Pairs: {report['pairs']} for each row, alternating, {report['seconds']} s a turn; the ratio is the median "
        "of ours / theirs, and the brackets hold its quartiles",
        *(f"Left out: {peer} ({reason})" for peer, reason in missing.items()),
    ]


def _join(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def table(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["case", "mode", "peer", "tinyseq", "peer's", "ratio", "aim"]]
    for row in rows:
        low, _, high = statistics.quantiles(row.ratios, n=4) if len(row.ratios) > 1 else row.ratios * 3
        ours, theirs = (f"{_time_text(value)} / {row.unit}" for value in (row.ours, row.theirs))
        lines.append([row.case, row.mode, row.peer, ours, theirs, f"{row.ratio:.2f} [{low:.2f}, {high:.2f}]", row.verdict])
    for mode, peer, mean, aim in geometric_means(rows):
        lines.append(["geometric mean", mode, peer, "", "", f"{mean:.2f}", verdict(mean, aim)])
    return lines


def _time_text(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds / 1e-6:.2f} µs"


def plain(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown(title: str, facts: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|" + " --- |" * len(lines[0])
    return "\n".join([f"# {title}", "", *(f"- {fact}" for fact in facts), "", head, rule, *body, ""])


def main(
    script: str,
    title: str,
    peers: Mapping[str, Peer],
    cases: Callable[[argparse.Namespace], Sequence[Case]],
    aims: Mapping[tuple[str, str], float],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """Run the benchmark in the file `script`, or, with `--worker`, be the worker of one of its peers.

    The first of `peers` is tinyseq. `cases` makes the list of cases from the command line, `aims` holds the largest
    ratio wanted for (peer, mode).
    """
    ours, *others = peers
    parser = argparse.ArgumentParser(description=title, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=others, default=others, help="what to compare with")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of the environment the peers are in")
    parser.add_argument("--backend", default="numpy", help="tinyseq's backend")
    parser.add_argument("--pairs", type=int, default=21, help="how many turns each process gets, for each case and mode")
    parser.add_argument("--seconds", type=float, default=0.05, help="how long one turn lasts")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--tolerance", type=float, default=2e-5, help="largest relative difference of the results")
    parser.add_argument("--write", nargs="?", const=RESULTS, type=Path, help="write the report (JSON, Markdown) here")
    parser.add_argument("--worker", choices=peers, help=argparse.SUPPRESS)
    add_arguments(parser)
    args = parser.parse_args()
    if args.worker:
        serve(peers[args.worker])
        return

    # A BLAS reads these once, when it is loaded, so they have to be in the environment of the process from its start.
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(args.threads)), "TINYSEQ_BACKEND": args.backend}
    workers: list[Worker] = []
    try:
        for peer in (ours, *args.peers):
            python = sys.executable if peer == ours else args.peer_python
            workers.append(Worker(Path(script), peer, python, environment))
        missing = {worker.peer: worker.missing for worker in workers if worker.missing is not None}
        if ours in missing:
            sys.exit(f"{ours} cannot be imported by {sys.executable}: {missing[ours]}")
        present = [worker for worker in workers if worker.missing is None]

        flops = [present[0].ask(do="gemm")["flops"]]
        rows: list[Row] = []
        for case in cases(args):
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            rows += compare(present, case, aims, args)
        flops.append(present[0].ask(do="gemm")["flops"])
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
    finally:
        for worker in workers:
            worker.close()

    report = {
        "title": title,
        "machine": machine(args.threads, flops),
        "versions": {worker.peer: worker.versions for worker in present},
        "missing": missing,
        "backend": args.backend,
        "pairs": args.pairs,
        "seconds": args.seconds,
        "rows": [{**dataclasses.asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows],
        "geometric_means": [
            {"mode": mode, "peer": peer, "ratio": mean, "aim": aim} for mode, peer, mean, aim in geometric_means(rows)
        ],
    }
    facts = summary(report, missing)
    print("\n".join([*facts, "", plain(table(rows))]))
    if args.write:
        args.write.mkdir(parents=True, exist_ok=True)
        name = Path(script).stem
        (args.write / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (args.write / f"{name}.md").write_text(markdown(title, facts, table(rows)), encoding="utf-8")
        print(f"\nwritten: {args.write / name}.json and .md")
