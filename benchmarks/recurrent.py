"""Recurrent layers, forward and forward+backward: tinyseq's compiled loop beside PyTorch, JAX and the tape.

    python benchmarks/recurrent.py --peer-python peers/bin/python --quick
    python benchmarks/recurrent.py --peer-python peers/bin/python --write
    python benchmarks/recurrent.py --peer-python peers/bin/python --cells rnn gru --write     # a piece of it

The cells and sizes are in `cells.py`, how each library runs them is in `libraries.py`. "forward" is inference, under
`no_grad`; "forward+backward" has the gradients of the inputs, the initial state and all parameters. Ratios are given as how
many times as fast tinyseq is: over 1, it is the faster one. `--write` merges each cell, as soon as it is measured, into the
results that are there, so that a run can be cut into pieces. The two hoisted peers, to be asked for by name, have the
inputs' products before the loop, which tinyseq finds by itself and a user of PyTorch or JAX has to write.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import libraries
from cells import CELLS, SIZES, Size
from common import Case, Peer, Row

MODES = ("forward", "forward+backward")
QUICK = [Size(37, 5, 19, 83), Size(28, 128, 28, 128), Size(64, 32, 128, 128)]
COMPILED = [Size(37, 5, 19, 83), Size(28, 128, 28, 128)]  # torch.compile unrolls the steps and takes minutes
LARGEST = Size(100, 64, 512, 512)

LABELS = {
    "tinyseq": "tinyseq",
    "nn": "PyTorch nn",
    "loop": "PyTorch loop",
    "jax": "JAX scan",
    "numpy": "NumPy loop",
    "tape": "NumPy tape",
    "loop-hoisted": "PyTorch loop, hoisted",
    "jax-hoisted": "JAX scan, hoisted",
    "compile": "torch.compile",
}


def cases_of(connect: Callable[[], libraries.Run]) -> common.Connect:
    def connected() -> common.Build:
        run = connect()
        return lambda case: run(CELLS[case.settings["cell"]], Size(*case.settings["size"]))

    return connected


def few_cases() -> common.Build:
    """torch.compile where it takes less than many minutes."""
    build = cases_of(lambda: libraries.torch_loop(compiled=True))()
    return lambda case: build(case) if Size(*case.settings["size"]) in COMPILED else None


PEERS: dict[str, Peer] = {
    "tinyseq": Peer(cases_of(libraries.tinyseq), ["tinyseq", "numba", "numpy"]),
    "nn": Peer(cases_of(libraries.torch_nn), ["torch"]),
    "loop": Peer(cases_of(libraries.torch_loop), ["torch"]),
    "jax": Peer(cases_of(libraries.jax_scan), ["jax", "jaxlib"]),
    "numpy": Peer(cases_of(lambda: libraries.tinyseq("numpy")), ["tinyseq", "numpy"], own=True),
    "tape": Peer(cases_of(lambda: libraries.tinyseq("numpy", unroll=True)), ["tinyseq", "numpy"], own=True),
    "loop-hoisted": Peer(cases_of(lambda: libraries.torch_loop(hoisted=True)), ["torch"]),
    "jax-hoisted": Peer(cases_of(lambda: libraries.jax_scan(hoisted=True)), ["jax", "jaxlib"]),
    "compile": Peer(few_cases, ["torch"]),
}
DEFAULT = ["nn", "loop", "jax", "numpy", "tape"]
AND_ALSO = [("numpy", "tape")]  # a pair without tinyseq's machine code


@dataclasses.dataclass(frozen=True)
class Aim:
    """How many times as fast one wants to be: in the geometric mean of forward+backward, and in every single case."""

    against: str
    subject: str
    peer: str
    cells: Sequence[str]
    mean: float
    least: float


CUSTOM = [name for name, cell in CELLS.items() if cell.torch_builtin is None]
AIMS = [
    Aim("PyTorch nn.LSTM", "tinyseq", "nn", ["lstm"], 1.2, 0.95),
    Aim("PyTorch nn.GRU and nn.RNN", "tinyseq", "nn", ["gru", "rnn"], 2.0, 1.0),
    Aim("JAX scan, all cells", "tinyseq", "jax", list(CELLS), 2.0, 1.0),
    Aim("PyTorch loop, custom cells", "tinyseq", "loop", CUSTOM, 5.0, 2.0),
    Aim("NumPy loop against NumPy tape, all cells", "numpy", "tape", list(CELLS), 2.0, 1.0),
]
AIMED_FRACTION = 0.8  # of the GEMM peak: LSTM, LARGEST, forward+backward


# --- what was measured ------------------------------------------------------------------------------------------------

Record = dict[str, Any]


def record(row: Row, run: str) -> Record:
    cell, size = row.case.split(" ")
    return {
        "cell": cell,
        "size": size,
        "mode": row.mode,
        "subject": row.subject,
        "peer": row.peer,
        "subject_seconds": row.ours,
        "peer_seconds": row.theirs,
        "times_as_fast": [1 / ratio for ratio in row.ratios],
        "run": run,
    }


def key(row: Record) -> tuple[str, ...]:
    return tuple(row[name] for name in ("cell", "size", "mode", "subject", "peer"))


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old report with what was measured anew; what no longer is a case is dropped, and runs that nothing is left of."""
    measured, sizes = {key(row) for row in new["rows"]}, {str(size) for size in SIZES}
    kept = [row for row in old["rows"] if key(row) not in measured and row["cell"] in CELLS and row["size"] in sizes]
    order = {name: place for place, name in enumerate([*CELLS, *(str(size) for size in SIZES), *MODES, *LABELS])}
    rows = sorted([*kept, *new["rows"]], key=lambda row: [order[part] for part in key(row)])
    named = {row["run"] for row in rows}
    runs = {name: run for name, run in {**old["runs"], **new["runs"]}.items() if name in named}
    return {"title": new["title"], "runs": runs, "rows": rows}


def speed(row: Record) -> float:
    return statistics.median(row["times_as_fast"])


def chosen(rows: Iterable[Record], **wanted: Any) -> list[Record]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def peak(report: Mapping[str, Any], row: Record) -> float:
    """GFLOP/s of the product of two large matrices, in the run that the row is of."""
    return max(report["runs"][row["run"]]["machine"]["gemm_gflops"])


def gflops(row: Record, of: str = "subject") -> float:
    size = Size(*map(int, row["size"].split(",")))
    return CELLS[row["cell"]].flops(size, row["mode"]) / row[f"{of}_seconds"] / 1e9


# --- the report -------------------------------------------------------------------------------------------------------

Table = list[list[str]]


def aims_table(report: Mapping[str, Any]) -> Table:
    lines = [["forward+backward, against", "aim", "nowhere under", "geometric mean", "least", "cases under", "verdict"]]
    for aim in AIMS:
        rows = chosen(report["rows"], mode="forward+backward", subject=aim.subject, peer=aim.peer)
        rows = [row for row in rows if row["cell"] in aim.cells]
        if not rows:
            continue
        mean, least = statistics.geometric_mean(map(speed, rows)), min(rows, key=speed)
        under = sum(speed(row) < aim.least for row in rows)
        where = f"{speed(least):.2f} ({least['cell']} {least['size']})"
        verdicts = [f"mean {'met' if mean >= aim.mean else 'missed'}", f"least {'missed' if under else 'met'}"]
        lines.append(
            [aim.against, f"{aim.mean}", f"{aim.least}", f"{mean:.2f}", where, f"{under} of {len(rows)}", ", ".join(verdicts)]
        )
    for row in fastest(report["rows"], cell="lstm", size=str(LARGEST), mode="forward+backward"):
        fraction = gflops(row) / peak(report, row)
        verdict = "met" if fraction >= AIMED_FRACTION else "missed"
        lines.append([f"GEMM peak, LSTM {LARGEST}", f"{AIMED_FRACTION}", "", f"{fraction:.2f}", "", "", verdict])
    return lines


def fastest(rows: Iterable[Record], **wanted: Any) -> list[Record]:
    """tinyseq's row that rests on the most turns, for its own seconds; none if there is none."""
    found = chosen(rows, subject="tinyseq", **wanted)
    return [max(found, key=lambda row: len(row["times_as_fast"]))] if found else []


def columns(rows: Sequence[Record]) -> list[tuple[str, str]]:
    """The pairs (subject, peer) that there are, in the order of LABELS."""
    there = {(row["subject"], row["peer"]) for row in rows}
    return [(subject, peer) for subject in LABELS for peer in LABELS if (subject, peer) in there]


def heading(subject: str, peer: str) -> str:
    return LABELS[peer] if subject == "tinyseq" else f"{LABELS[subject]} against {LABELS[peer]}"


def summary_table(report: Mapping[str, Any], mode: str) -> Table:
    """For each cell and peer the geometric mean over all sizes, the least and the most."""
    rows = chosen(report["rows"], mode=mode)
    pairs = columns(rows)
    lines = [["cell", *(heading(*pair) for pair in pairs)]]
    groups = [(name, chosen(rows, cell=name)) for name in CELLS] + [("all", rows)]
    for name, group in groups:
        if group:
            of_pair = [chosen(group, subject=subject, peer=peer) for subject, peer in pairs]
            lines.append([name, *(spread(list(map(speed, found))) for found in of_pair)])
    return lines


def spread(speeds: Sequence[float]) -> str:
    if not speeds:
        return ""
    return f"{statistics.geometric_mean(speeds):.2f} [{min(speeds):.2f}, {max(speeds):.2f}]"


def cell_table(report: Mapping[str, Any], cell: str) -> Table:
    rows = chosen(report["rows"], cell=cell)
    pairs = columns(rows)
    lines = [["T,B,I,H", "mode", "tinyseq", "GFLOP/s", "of peak", *(heading(*pair) for pair in pairs)]]
    for size in map(str, SIZES):
        for mode in MODES:
            for ours in fastest(rows, size=size, mode=mode):
                rate = gflops(ours)
                facts = [common.time_text(ours["subject_seconds"]), f"{rate:.3g}", f"{rate / peak(report, ours):.2f}"]
                found = [chosen(rows, size=size, mode=mode, subject=subject, peer=peer) for subject, peer in pairs]
                lines.append([size, mode, *facts, *(interval(row[0]) if row else "" for row in found)])
    return lines


def interval(row: Record) -> str:
    """The median of the pairs' ratios, its quartiles, and how many pairs."""
    speeds = row["times_as_fast"]
    low, _, high = common.quartiles(speeds)
    return f"{speed(row):.2f} [{low:.2f}, {high:.2f}] ×{len(speeds)}"


def facts(report: Mapping[str, Any]) -> list[str]:
    versions = {
        f"{name} {number}" for run in report["runs"].values() for of in run["versions"].values() for name, number in of.items()
    }
    machines = {
        f"{m['cpu']}, {m['cores']} cores ({m['system']}), {m['threads']} thread(s) for each process, NumPy's BLAS {m['blas']}"
        for m in (run["machine"] for run in report["runs"].values())
    }
    missing = {f"{peer} ({reason})" for run in report["runs"].values() for peer, reason in run["missing"].items()}
    return [
        *sorted(machines),
        *(f"Left out: {each}" for each in sorted(missing)),
        f"Versions: {', '.join(sorted(versions))}",
        "A figure says how many times as fast as the peer tinyseq is: theirs / ours, the median over pairs measured in turn; "
        "brackets hold the quartiles, ×n is the number of pairs. In summaries they hold the least and the most of all sizes",
        "GFLOP/s counts the matrix products alone, backward twice as many as forward; of peak: as a share of the GEMM's",
    ]


def runs_table(report: Mapping[str, Any]) -> Table:
    lines = [["run", "threads", "seconds a turn", "GEMM before, GFLOP/s", "after"]]
    for name, run in report["runs"].items():
        rates = [f"{rate:.1f}" for rate in run["machine"]["gemm_gflops"]]
        lines.append([name, str(run["machine"]["threads"]), str(run["seconds"]), *rates])
    return lines


def sections(report: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    yield "What was aimed at", aims_table(report)
    for mode in MODES:
        if chosen(report["rows"], mode=mode):
            yield f"Times as fast, {mode}", summary_table(report, mode)
    for name, cell in CELLS.items():
        if chosen(report["rows"], cell=name):
            yield f"{name} ({cell.paper})", cell_table(report, name)
    yield f"Runs; GEMM is a product of two {common.GEMM_SIZE} x {common.GEMM_SIZE} float32 matrices", runs_table(report)


def draw(report: Mapping[str, Any], path: Path) -> None:
    """For each cell and peer a dot at the geometric mean of forward+backward and a line from the least to the most."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    # Okabe and Ito's colours, each with a marker of its own
    styles = {"nn": ("#0072B2", "o"), "loop": ("#D55E00", "s"), "jax": ("#009E73", "D"), "tape": ("#666666", "^")}
    rows = chosen(report["rows"], mode="forward+backward", subject="tinyseq")
    lines = [(cell, peer, list(map(speed, chosen(rows, cell=cell, peer=peer)))) for cell in CELLS for peer in styles]
    lines = [line for line in lines if line[2]]
    figure = Figure(figsize=(9, 1.2 + 0.27 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for place, (cell, peer, speeds) in enumerate(lines):
        colour, marker = styles[peer]
        axes.plot([min(speeds), max(speeds)], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        mean = statistics.geometric_mean(speeds)
        axes.plot(mean, place, marker, color=colour, markersize=7)
        axes.annotate(f"{mean:.1f}", (max(speeds), place), (6, 0), textcoords="offset points", va="center", fontsize=9)
        if place and cell != lines[place - 1][0]:
            axes.axhline(place - 0.5, color="0.85", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else ""))
    axes.set_yticks(range(len(lines)), [f"{cell} / {LABELS[peer]}" for cell, peer, _ in lines], fontsize=9)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times as fast as the peer: geometric mean (its number at the right), least and most of all sizes")
    axes.set_title("tinyseq's compiled loop, forward and all gradients; right of the line it is the faster one", fontsize=11)
    figure.savefig(path, dpi=110)


def text(report: Mapping[str, Any]) -> str:
    parts = [f"# {report['title']}", "", "![Times as fast](recurrent.png)", "", *(f"- {fact}" for fact in facts(report)), ""]
    parts += ["Peak memory: [memory.md](memory.md). Time to compile: [compile.md](compile.md).", ""]
    for title, lines in sections(report):
        parts += [f"## {title}", "", *common.markdown_table(lines), ""]
    return "\n".join(parts)


# --- the command ------------------------------------------------------------------------------------------------------


def cases(cell: str, args: argparse.Namespace) -> list[Case]:
    sizes = args.sizes or (QUICK if args.quick else SIZES)
    return [Case(f"{cell} {size}", {"cell": cell, "size": list(size)}) for size in sizes]


def size_of(text: str) -> Size:
    found = {str(size): size for size in SIZES}
    if text not in found:
        raise argparse.ArgumentTypeError(f"{text!r} is none of the sizes {' '.join(found)}")
    return found[text]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which cells")
    parser.add_argument("--sizes", nargs="+", type=size_of, metavar="T,B,I,H", help="which sizes; all, or few if --quick")
    parser.add_argument(
        "--torch-compile",
        action="store_true",
        help=f"torch.compile of the loop too: minutes for each cell, at {len(COMPILED)} sizes",
    )


def main() -> None:
    title = "Recurrent layers"
    defaults = {"peers": DEFAULT, "backend": "numba", "threads": 2, "pairs": 7, "budget": 0.6}
    args = common.command(title, PEERS, add_arguments, defaults)
    if args.worker:
        common.serve(PEERS[args.worker])
        return
    if args.torch_compile:
        args.peers = [*args.peers, "compile"]
    report: dict[str, Any] = {"title": title, "runs": {}, "rows": []}
    for cell in args.cells:  # each has a run, and a GEMM rate, of its own, and is kept if the next one is broken off
        measured = common.measure(__file__, PEERS, cases(cell, args), args, also=AND_ALSO)
        name = f"{cell}, {measured.machine['date']}"
        run = {
            "machine": measured.machine,
            "versions": measured.versions,
            "missing": measured.missing,
            "backend": args.backend,
            "seconds": args.seconds,
        }
        new = {"title": title, "runs": {name: run}, "rows": [record(row, name) for row in measured.rows]}
        report = merged(report, new)
        if args.write:
            keep(args.write, new)
    print("\n".join(facts(report)))
    for head, lines in sections(report):
        print(f"\n{head}\n{common.plain(lines)}")


def keep(folder: Path, new: Mapping[str, Any]) -> None:
    """Merge what was measured into the results in the folder."""
    path = folder / "recurrent.json"
    old = json.loads(path.read_text("utf-8")) if path.exists() else {"runs": {}, "rows": []}
    report = merged(old, new)
    common.write(__file__, folder, report, text(report))
    draw(report, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
