"""The harness that every benchmark here shares: the same work, done by several libraries in turn, and the ratio of each pair.

A benchmark is one file. It names its cases, and for each peer a function that imports the peer and says how to build a case
(see `Job`). The same file is its own worker: `main` starts it once for each peer as a process that lives through the whole
run, and speaks with it in lines of JSON over stdin and stdout. Nothing is timed before the peers' outputs and gradients
have been found equal. Then the processes take turns, one at a time, so that a slow minute of the machine hits all of them,
and every turn gives one ratio to each peer; what is reported is the median of those ratios.

`main` is the whole of a benchmark; one with a report of its own calls `command`, `serve` and `measure` instead. The peers
may live in another virtual environment than tinyseq (`--peer-python`), so this file needs NumPy alone.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import datetime
import io
import json
import math
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
SETTLE = 0.03  # seconds for which the threads of the process before may go on spinning
LEAST_PAIRS = 3  # that any row rests on, however slow the peer


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
    `prepare` compiles what is compiled for one size, without running it.
    """

    results: Callable[[], dict[str, np.ndarray]]
    timed: Mapping[str, Callable[[], object]]
    prepare: Callable[[], object] = lambda: None


Build = Callable[[Case], Job | None]  # None: the peer has no such thing
Connect = Callable[[], Build]  # imports the peer; an ImportError means that the peer is not there


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library to be measured: how to connect to it, and the distributions whose versions are reported.

    One that is `own` runs in the Python of the harness, as tinyseq does, and not in `--peer-python`.
    """

    connect: Connect
    distributions: Sequence[str] = ()
    own: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A subject, mostly tinyseq, against one peer in one case and mode.

    Seconds are medians, `ratios` holds ours/theirs of every pair.
    """

    case: str
    mode: str
    peer: str
    unit: str
    ours: float
    theirs: float
    ratios: list[float]
    aim: float | None
    subject: str = "tinyseq"

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

    job: Job | None = None  # of one case at a time: its tensors go when the next one comes
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "gemm":
            answer(flops=gemm_peak())
        elif request["do"] == "build":
            job = None
            job = build(Case(**request["case"]))
            arrays = {name: _encode(array) for name, array in job.results().items()} if job else {}
            answer(results=arrays, modes=list(job.timed) if job else [])
        elif request["do"] == "calibrate":
            assert job is not None
            calls, seconds = _calls_that_last(job.timed[request["mode"]], request["seconds"] / PARTS)
            answer(calls=calls, seconds=seconds)
        elif request["do"] == "time":
            assert job is not None
            run, calls, parts = job.timed[request["mode"]], request["calls"], request["parts"]
            if parts > 1:
                run()  # the other processes have had the caches since our last turn
            else:
                time.sleep(SETTLE)
            answer(seconds=min(_time(run, calls) for _ in range(parts)) / calls)


def _time(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


def _calls_that_last(run: Callable[[], object], seconds: float) -> tuple[int, float]:
    """How many calls take about so long, and how long one takes."""
    run()  # a first call may compile, or start threads
    calls = 1
    while (elapsed := _time(run, calls)) < seconds / 2:
        calls *= 2
    return max(1, round(calls * seconds / elapsed)), elapsed / calls


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


def take_turns(workers: Sequence[Worker], mode: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return each peer's seconds a call, turn by turn; the order is reversed in every other turn.

    A slow one takes part in the first few only, as many as `args.budget` seconds allow; tinyseq, the first, in all of them.
    """
    steady = {worker.peer: worker.ask(do="calibrate", mode=mode, seconds=args.seconds) for worker in workers}
    # A call that outlasts a turn is not repeated for the best of three; then nobody's is.
    parts = PARTS if min(each["seconds"] for each in steady.values()) < args.seconds else 1
    pairs = {}
    for peer, each in steady.items():
        allowed = int(min(args.pairs, args.budget / (parts * each["calls"] * each["seconds"])))
        pairs[peer] = min(args.pairs, max(LEAST_PAIRS, allowed))
    turns = pairs[workers[0].peer] = max(pairs[worker.peer] for worker in workers[1:])
    times: dict[str, list[float]] = {worker.peer: [] for worker in workers}
    for turn in range(turns):
        for worker in workers if turn % 2 == 0 else reversed(workers):
            if turn < pairs[worker.peer]:
                answer = worker.ask(do="time", mode=mode, calls=steady[worker.peer]["calls"], parts=parts)
                times[worker.peer].append(answer["seconds"])
    return times


def compare(
    workers: Sequence[Worker],
    case: Case,
    aims: Mapping[tuple[str, str], float],
    args: argparse.Namespace,
    also: Sequence[tuple[str, str]] = (),
) -> list[Row]:
    """Check that the workers agree on `case`, time them, and return a row for each mode and peer; the first is tinyseq.

    `also` names further pairs (subject, peer) to be compared.
    """
    answers = {worker.peer: worker.ask(do="build", case=dataclasses.asdict(case)) for worker in workers}
    ours = workers[0].peer
    results = {k: _decode(v) for k, v in answers[ours]["results"].items()}
    for peer, answer in answers.items():
        if peer != ours and answer["modes"]:
            theirs = {k: _decode(v) for k, v in answer.pop("results").items()}
            check_equal(case.name, peer, results, theirs, args.tolerance)

    rows = []
    for mode in answers[ours]["modes"]:
        able = [worker for worker in workers if mode in answers[worker.peer]["modes"]]
        if len(able) < 2:
            continue
        times = take_turns(able, mode, args)
        pairs = [*((ours, worker.peer) for worker in able[1:]), *((a, b) for a, b in also if a in times and b in times)]
        for subject, peer in pairs:
            mine, theirs = times[subject], times[peer]
            count = min(len(mine), len(theirs))
            rows.append(
                Row(
                    case=case.name,
                    mode=mode,
                    peer=peer,
                    unit=case.unit,
                    ours=statistics.median(mine[:count]) / case.count,
                    theirs=statistics.median(theirs[:count]) / case.count,
                    ratios=[a / b for a, b in zip(mine[:count], theirs[:count], strict=True)],
                    aim=aims.get((peer, mode)),
                    subject=subject,
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


def machine(threads: int, flops: Sequence[float], blas_threads: int | None = None) -> dict[str, Any]:
    blas = np.__config__.CONFIG["Build Dependencies"]["blas"]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "blas": (
            f"{blas['name']} {blas['version']}, {blas_threads or threads} thread(s), "
            f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', 'unset')}"
        ),
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
        f"Pairs: {report['pairs']} for each row, alternating, {report['seconds']} s a turn; a ratio is the median over the "
        "pairs, and the brackets hold its quartiles",
        *(f"Left out: {peer} ({reason})" for peer, reason in missing.items()),
    ]


def _join(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def table(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["case", "mode", "peer", "tinyseq", "peer's", "ours / theirs", "aim"]]
    for row in rows:
        low, _, high = quartiles(row.ratios)
        ours, theirs = (f"{time_text(value)} / {row.unit}" for value in (row.ours, row.theirs))
        lines.append([row.case, row.mode, row.peer, ours, theirs, f"{row.ratio:.2f} [{low:.2f}, {high:.2f}]", row.verdict])
    for mode, peer, mean, aim in geometric_means(rows):
        lines.append(["geometric mean", mode, peer, "", "", f"{mean:.2f}", verdict(mean, aim)])
    return lines


def quartiles(values: list[float]) -> list[float]:
    """The lower one, the median and the upper one; of a single value, three times that."""
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def time_text(seconds: float) -> str:
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds / 1e-6:.2f} µs"


def plain(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def markdown(title: str, facts: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join([f"# {title}", "", *(f"- {fact}" for fact in facts), "", *markdown_table(lines), ""])


def markdown_table(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return [head, "|" + " --- |" * len(lines[0]), *body]


def command(
    title: str,
    peers: Mapping[str, Peer],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    defaults: Mapping[str, Any] | None = None,
) -> argparse.Namespace:
    """Read the command line that all benchmarks have in common, with other `defaults`; the first of `peers` is tinyseq."""
    _, *others = peers
    parser = argparse.ArgumentParser(description=title, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--peers", nargs="*", choices=others, default=others, help="what to compare with")
    parser.add_argument("--peer-python", default=sys.executable, help="the Python of the environment the peers are in")
    parser.add_argument("--backend", default="numpy", help="tinyseq's backend")
    parser.add_argument("--pairs", type=int, default=21, help="how many turns each process gets, for each case and mode")
    parser.add_argument("--seconds", type=float, default=0.05, help="how long one turn lasts")
    parser.add_argument(
        "--budget",
        type=float,
        default=math.inf,
        help=f"seconds for a peer's turns: a slow one has fewer, at least {LEAST_PAIRS}",
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--blas-threads", type=int, help="threads of OpenBLAS in each process (default: as --threads)")
    parser.add_argument("--tolerance", type=float, default=2e-5, help="largest relative difference of the results")
    parser.add_argument("--quick", action="store_true", help="few pairs, and few cases where there are many: a try-out")
    parser.add_argument("--write", nargs="?", const=RESULTS, type=Path, help="write the report (JSON, Markdown) here")
    parser.add_argument("--worker", choices=peers, help=argparse.SUPPRESS)
    add_arguments(parser)
    parser.set_defaults(**(defaults or {}))
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.seconds = min(args.pairs, LEAST_PAIRS), min(args.seconds, 0.02)
    return args


def environment(args: argparse.Namespace) -> dict[str, str]:
    """The variables of a worker. A BLAS reads them once, when it is loaded, so they have to be there from its start."""
    threads = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
    if args.blas_threads is not None:
        threads["OPENBLAS_NUM_THREADS"] = str(args.blas_threads)
    return {**os.environ, **threads, "TINYSEQ_BACKEND": args.backend}


def told(script: str, python: str, words: Sequence[object], variables: Mapping[str, str]) -> Any:
    """What `script --measure WORDS` prints last, as JSON, in a new process. Ends the program where that one fails."""
    command = [python, script, "--measure", *map(str, words)]
    done = subprocess.run(command, env=dict(variables), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the process for {' '.join(map(str, words))} ended with status {done.returncode}; its error is above")
    return json.loads(done.stdout.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Measured:
    """The rows of a run and what belongs beside them."""

    rows: list[Row]
    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    missing: dict[str, str]


def measure(
    script: str,
    peers: Mapping[str, Peer],
    cases: Sequence[Case],
    args: argparse.Namespace,
    aims: Mapping[tuple[str, str], float] | None = None,
    also: Sequence[tuple[str, str]] = (),
) -> Measured:
    """Run the cases with the peers asked for; the first of `peers` is tinyseq. Ends the program where they differ."""
    ours = next(iter(peers))
    workers: list[Worker] = []
    try:
        for peer in (ours, *args.peers):
            python = sys.executable if peer == ours or peers[peer].own else args.peer_python
            workers.append(Worker(Path(script), peer, python, environment(args)))
        missing = {worker.peer: worker.missing for worker in workers if worker.missing is not None}
        if ours in missing:
            sys.exit(f"{ours} cannot be imported by {sys.executable}: {missing[ours]}")
        present = [worker for worker in workers if worker.missing is None]

        flops = [present[0].ask(do="gemm")["flops"]]
        rows: list[Row] = []
        for case in cases:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            rows += compare(present, case, aims or {}, args, also)
        flops.append(present[0].ask(do="gemm")["flops"])
    except (ValueError, RuntimeError) as error:
        sys.exit(str(error))
    finally:
        for worker in workers:
            worker.close()
    return Measured(
        rows, machine(args.threads, flops, args.blas_threads), {worker.peer: worker.versions for worker in present}, missing
    )


def write(script: str, folder: Path, report: Mapping[str, Any], text: str) -> None:
    """Write a benchmark's report, as JSON and as Markdown, under the script's name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / Path(script).stem
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\nwritten: {path}.json and .md")


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
    args = command(title, peers, add_arguments)
    if args.worker:
        serve(peers[args.worker])
        return
    measured = measure(script, peers, cases(args), args, aims)
    rows = measured.rows
    report = {
        "title": title,
        "machine": measured.machine,
        "versions": measured.versions,
        "missing": measured.missing,
        "backend": args.backend,
        "pairs": args.pairs,
        "seconds": args.seconds,
        "rows": [{**dataclasses.asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows],
        "geometric_means": [
            {"mode": mode, "peer": peer, "ratio": mean, "aim": aim} for mode, peer, mean, aim in geometric_means(rows)
        ],
    }
    facts = summary(report, measured.missing)
    print("\n".join([*facts, "", plain(table(rows))]))
    if args.write:
        write(script, args.write, report, markdown(title, facts, table(rows)))
