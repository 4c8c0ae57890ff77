"""How long a recurrent layer takes to compile: in a new process with no cache, from the cache on the disk, for a new T or B.

    python benchmarks/compile.py --peer-python peers/bin/python [--torch-compile] [--write]

Each process builds the layer and its inputs and then runs forward+backward. The first run is what is told: with
compiling, or with reading what is kept on the disk; the best of the next three says what the run itself takes. Then it
does the same with other numbers of steps and rows, and counts the files in the cache folder, where every piece of machine
code is kept: no new file, and a first run about as long as the next ones, mean that nothing was compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from cells import CELLS, Size
from recurrent import LABELS, PEERS

SIZE = Size(28, 128, 28, 128)  # one that torch.compile runs too
OTHERS = {"new T": SIZE._replace(T=40), "new B": SIZE._replace(B=100)}
AIMS = {"no cache": 3.0, "from the disk": 0.3}  # seconds of the first run
CACHES = ("TINYSEQ_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
Times = dict[str, Any]


# --- in a process of its own ------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def files() -> int:
    """How many files the cache folders hold."""
    return sum(path.is_file() for name in CACHES[:2] for path in Path(os.environ[name]).rglob("*"))


def first_and_next(peer: str, cell: str, others: bool) -> Times:
    """For SIZE, and OTHERS if asked: the seconds of the first run, the best of the next three, and new files in the cache."""
    start = time.perf_counter()
    build = PEERS[peer].connect()
    times: Times = {"import": time.perf_counter() - start}
    for name, size in ({"start": SIZE} | (OTHERS if others else {})).items():
        job = build(common.Case(cell, {"cell": cell, "size": list(size)}))
        assert job is not None
        run, before = job.timed["forward+backward"], files()
        times[name] = {"first": seconds(run), "next": min(seconds(run) for _ in range(3)), "files": files() - before}
    return times


# --- the harness ------------------------------------------------------------------------------------------------------


def process(args: argparse.Namespace, peer: str, cell: str, cache: str, others: bool) -> Times:
    python = sys.executable if peer == "tinyseq" else args.peer_python
    environment = {**common.environment(args), **{name: str(Path(cache) / name) for name in CACHES}}
    return common.told(__file__, python, [peer, cell, *(["others"] if others else [])], environment)


def measure(args: argparse.Namespace, peer: str, cell: str, repeats: int) -> list[Times] | str:
    """For each repeat, what a process without a cache and the next one with its cache say; the reason if there is no peer."""
    rounds = []
    for _ in range(repeats):
        print(f"{cell}, {LABELS[peer]} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as cache:
            for name in CACHES:
                (Path(cache) / name).mkdir()
            # torch.compile is not asked for other sizes: that would be as many minutes again.
            cold = process(args, peer, cell, cache, others=peer != "compile")
            if "missing" in cold:
                return str(cold["missing"])
            rounds.append({"no cache": cold, "from the disk": process(args, peer, cell, cache, others=False)})
    return rounds


def rows_of(cell: str, peer: str, rounds: list[Times]) -> list[dict[str, Any]]:
    def row(what: str, found: list[Times]) -> dict[str, Any]:
        of = {key: statistics.median(each[key] for each in found) for key in ("first", "next")}
        new = found[0]["files"] if peer == "tinyseq" else None
        aim = AIMS.get(what) if peer == "tinyseq" and cell == "lstm" else None
        return {"cell": cell, "peer": peer, "what": what, "repeats": len(found), **of, "files": new, "aim": aim}

    rows = [row(what, [each[what]["start"] for each in rounds]) for what in ("no cache", "from the disk")]
    there = [name for name in OTHERS if name in rounds[0]["no cache"]]
    return rows + [row(name, [each["no cache"][name] for each in rounds]) for name in there]


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["cell", "library", "case", "first run", "next runs", "new files in the cache", "aim", "processes"]]
    for row in rows:
        times = [common.time_text(row["first"]), common.time_text(row["next"])]
        new = "" if row["files"] is None else str(row["files"])
        lines.append([row["cell"], LABELS[row["peer"]], row["what"], *times, new, verdict(row), str(row["repeats"])])
    return lines


def verdict(row: dict[str, Any]) -> str:
    if row["aim"] is None:
        return ""
    return f"{'met' if row['first'] <= row['aim'] else 'missed'} (≤ {row['aim']} s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=["lstm", "lstm-layer-norm"], help="which cells")
    parser.add_argument("--repeats", type=int, default=3, help="how many processes each figure is the median of")
    parser.add_argument("--torch-compile", action="store_true", help="torch.compile of a loop too, once: it takes minutes")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)


def main() -> None:
    title = "Time to compile"
    known = {peer: PEERS[peer] for peer in ("tinyseq", "jax")}
    args = common.command(title, known, add_arguments, {"backend": "numba", "threads": 2})
    if args.measure:
        peer, cell, *others = args.measure
        try:
            print(json.dumps(first_and_next(peer, cell, bool(others))))
        except ImportError as error:
            print(json.dumps({"missing": str(error)}))
        return

    rows: list[dict[str, Any]] = []
    rounds: dict[str, list[Times]] = {}
    missing: dict[str, str] = {}
    for cell in args.cells[:1] if args.quick else args.cells:
        for peer in ("tinyseq", *args.peers, *(["compile"] if args.torch_compile else [])):
            if peer in missing:
                continue
            found = measure(args, peer, cell, 1 if args.quick or peer == "compile" else args.repeats)
            if isinstance(found, str):
                missing[peer] = found
                continue
            rows += rows_of(cell, peer, found)
            rounds.setdefault(peer, []).extend(found)
    if "tinyseq" in missing:
        sys.exit(f"tinyseq cannot be imported by {sys.executable}: {missing['tinyseq']}")

    machine = common.machine(args.threads, [])
    imports = {peer: statistics.median(each["from the disk"]["import"] for each in found) for peer, found in rounds.items()}
    facts = [
        f"Date: {machine['date']}",
        f"{machine['cpu']}, {machine['cores']} cores, {args.threads} thread(s) ({machine['system']})",
        f"One layer, forward+backward, T,B,I,H = {SIZE}; new T: {OTHERS['new T']}; new B: {OTHERS['new B']}",
        "Every figure is from new processes; importing the library, not in it, takes "
        + ", ".join(f"{LABELS[peer]} {common.time_text(each)}" for peer, each in imports.items()),
        *(f"Left out: {LABELS[peer]} ({reason})" for peer, reason in missing.items()),
    ]
    print("\n".join([*facts, "", common.plain(table(rows))]))
    if args.write:
        report = {"title": title, "machine": machine, "missing": missing, "import": imports, "rows": rows}
        common.write(__file__, args.write, report, common.markdown(title, facts, table(rows)))


if __name__ == "__main__":
    main()
