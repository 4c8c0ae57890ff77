"""Peak memory of one training step: tinyseq beside PyTorch, JAX and the tape; and of 20,000 steps with checkpoints.

    python benchmarks/memory.py --peer-python peers/bin/python --write

Each figure comes from a process of its own. It builds the layer, does one training step of the same widths over two time
steps, so that libraries are loaded and loops are compiled, has JAX compile its step for the size, and then notes by how
much the resident memory rises at its highest above where it stood, during one step: forward, and the gradients of the
inputs, the initial state and all parameters. The gradients themselves and the outputs are part of it, the inputs are not.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from cells import CELLS, Size, data
from recurrent import DEFAULT, LABELS, PEERS

EACH_CELL = Size(100, 32, 256, 256)
LONG = Size(512, 32, 256, 256)
CASES = [*((name, EACH_CELL) for name in CELLS), ("lstm", LONG), ("lstm-layer-norm", LONG)]
QUICK_CASES = [("lstm", EACH_CELL)]
STRETCH = Size(20_000, 8, 8, 128)  # narrow inputs and no outputs: what grows with T is what the loop keeps
MEBI = 2**20


# --- in a process of its own ------------------------------------------------------------------------------------------


def status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)


def highest() -> int:
    """The highest resident memory so far, in bytes."""
    found = status("VmHWM")  # unlike ru_maxrss it can be set back, and has not begun with that of the parent process
    if found is not None:
        return found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def growth(step: Callable[[], object]) -> int:
    """By how many bytes the resident memory rises, at its highest, while `step` runs."""
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the high-water mark is set back to what is resident now
    before = status("VmRSS") or highest()
    step()
    return max(0, highest() - before)


def training_step(peer: str, cell: str, size: Size) -> int:
    build = PEERS[peer].connect()

    def job(of: Size) -> common.Job | None:
        return build(common.Case(cell, {"cell": cell, "size": list(of)}))

    small, whole = job(size._replace(T=2)), job(size)
    if small is None or whole is None:
        raise LookupError(f"{peer} has no {cell}")
    small.timed["forward+backward"]()
    whole.prepare()
    return growth(whole.timed["forward+backward"])


def stretch(checkpoint: int | None, steps: int) -> int:
    """tinyseq's LSTM over many steps, where the loss is made of the last state alone."""
    import tinyseq as ts

    size = STRETCH._replace(T=steps)
    values = data(CELLS["lstm"], size)
    cell = ts.nn.LSTMCell(size.I, size.H)
    cell.load_state_dict(values.weights)

    def step(state: Any, x: Any) -> tuple[Any, None]:
        return cell(x, state)[1], None

    def run(xs: Any) -> None:
        state, _ = ts.scan(step, cell.initial_state(size.B), xs, checkpoint=checkpoint or False)
        (state[0] * state[1]).sum().backward()

    xs = ts.tensor(values.x)
    run(xs[: 2 * (checkpoint or 1)])
    return growth(lambda: run(xs))


# --- the harness ------------------------------------------------------------------------------------------------------


def measured(args: argparse.Namespace, peer: str, *words: object) -> int | str | None:
    """The bytes that a fresh process tells; the reason if the library is missing; None if it has no such layer."""
    python = sys.executable if peer == "tinyseq" or PEERS[peer].own else args.peer_python
    return common.told(__file__, python, [peer, *words], common.environment(args))["result"]


def tell(result: Callable[[], int]) -> None:
    try:
        found: int | str | None = result()
    except ImportError as error:
        found = str(error)
    except LookupError:
        found = None
    print(json.dumps({"result": found}))


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    peers = [peer for peer in LABELS if any(peer in row["bytes"] for row in rows)]
    lines = [["cell", "T,B,I,H", *(f"{LABELS[peer]}, MiB" for peer in peers), "nn / tinyseq", "JAX / tinyseq"]]
    for row in rows:
        found = row["bytes"]
        shown = [f"{found[peer] / MEBI:.1f}" if peer in found else "" for peer in peers]
        ratios = [f"{found[peer] / found['tinyseq']:.2f}" if peer in found else "" for peer in ("nn", "jax")]
        lines.append([row["cell"], row["size"], *shown, *ratios])
    return lines


def stretch_table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["LSTM, T,B,I,H", "carry kept every", "MiB"]]
    for row in rows:
        every = "everything kept" if row["checkpoint"] is None else f"{row['checkpoint']} steps"
        lines.append([row["size"], every, f"{row['bytes'] / MEBI:.1f}"])
    return lines


def verdicts(rows: list[dict[str, Any]], long: list[dict[str, Any]]) -> list[str]:
    """What was aimed at: no more than PyTorch's layer for the long LSTM; with checkpoints, growth as the square root of T."""
    lines = []
    for row in rows:
        found = row["bytes"]
        if (row["cell"], row["size"]) == ("lstm", str(LONG)) and "nn" in found:
            verdict = "met" if found["tinyseq"] <= found["nn"] else "missed"
            lines.append(f"LSTM {LONG}: {found['tinyseq'] / found['nn']:.2f} of PyTorch nn's, {verdict} (≤ 1)")
    for what, chosen in (
        ("everything kept", [row["bytes"] for row in long if row["checkpoint"] is None]),
        ("checkpoints", [row["bytes"] for row in long if row["checkpoint"] is not None]),
    ):
        if len(chosen) == 2:
            lines.append(
                f"Four times the steps, {what}: {chosen[1] / chosen[0]:.2f} times the memory (4 is linear, 2 the square root)"
            )
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="which cells")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)


def main() -> None:
    title = "Peak memory of a training step"
    known = {peer: PEERS[peer] for peer in ["tinyseq", *DEFAULT]}
    args = common.command(title, known, add_arguments, {"backend": "numba", "threads": 2})
    if args.measure:
        peer, what, *rest = args.measure
        if what == "stretch":
            checkpoint, steps = map(int, rest)
            tell(lambda: stretch(checkpoint or None, steps))
        else:
            tell(lambda: training_step(peer, what, Size(*map(int, rest[0].split(",")))))
        return

    missing: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for cell, size in QUICK_CASES if args.quick else CASES:
        if cell not in args.cells:
            continue
        print(f"{cell} {size} ...", file=sys.stderr, flush=True)
        row: dict[str, Any] = {"cell": cell, "size": str(size), "bytes": {}}
        for peer in ("tinyseq", *args.peers):
            if peer in missing:
                continue
            found = measured(args, peer, cell, size)
            if isinstance(found, str):
                missing[peer] = found
            elif found is not None:
                row["bytes"][peer] = found
        if "tinyseq" in missing:
            sys.exit(f"tinyseq cannot be imported by {sys.executable}: {missing['tinyseq']}")
        rows.append(row)

    long: list[dict[str, Any]] = []
    if "lstm" in args.cells:
        for steps in [STRETCH.T // 4, STRETCH.T]:
            for checkpoint in (None, math.isqrt(steps)):
                print(f"lstm, {steps} steps, checkpoint={checkpoint} ...", file=sys.stderr, flush=True)
                found = measured(args, "tinyseq", "stretch", checkpoint or 0, steps)
                long.append({"size": str(STRETCH._replace(T=steps)), "checkpoint": checkpoint, "bytes": found})

    machine = common.machine(args.threads, [])
    facts = [
        f"Date: {machine['date']}",
        f"{machine['cpu']}, {machine['cores']} cores, {args.threads} thread(s) ({machine['system']}); NumPy {np.__version__}",
        "A fresh process each: the rise of its resident memory, at its highest, during one step, in MiB",
        *verdicts(rows, long),
        *(f"Left out: {name} ({reason})" for name, reason in missing.items()),
    ]
    print("\n".join([*facts, "", common.plain(table(rows))]))
    text = [f"# {title}", "", *(f"- {fact}" for fact in facts), "", *common.markdown_table(table(rows)), ""]
    if long:
        print("\n" + common.plain(stretch_table(long)))
        text += ["## Many steps, the loss from the last state", "", *common.markdown_table(stretch_table(long)), ""]
    if args.write:
        report = {"title": title, "machine": machine, "missing": missing, "rows": rows, "long": long}
        common.write(__file__, args.write, report, "\n".join(text))


if __name__ == "__main__":
    main()
