"""What an option of the LSTM costs: each one against the plain LSTM of the same size, in the compiled loop.

    python benchmarks/options.py --write

An option that left the compiled loop would cost many times as much: here it ends the benchmark, as does a result that is not
that of the unrolled loop on the tape. "forward" is inference, under `no_grad` but in training mode, so that what is random
is drawn; "forward+backward" has the gradients of the inputs and all parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np
from cells import Size
from common import Case, Job, Peer, Row

SIZES = [Size(64, 32, 128, 128), Size(100, 32, 256, 256)]
AIM = 1.5  # times the plain LSTM
TITLE = "Options of the LSTM"
LAYER: dict[str, Mapping[str, Any]] = {
    "none": {},
    "recurrent-dropout": {"recurrent_dropout": 0.2},
    "zoneout": {"zoneout": 0.1},
    "layer-norm": {"layer_norm": True},
    "peepholes": {"peepholes": True},
    "coupled": {"coupled": True},
    "projection": {},  # of the half of H
    "lengths": {},
    "resets": {},
    "all": {"recurrent_dropout": 0.2, "zoneout": 0.1, "layer_norm": True, "peepholes": True},
}


def call_arguments(option: str, size: Size) -> dict[str, np.ndarray]:
    """What is given with the call: rows between half and all of the steps, a new sequence every fifty."""
    random = np.random.default_rng(1)
    found = {"lengths": random.integers(size.T // 2, size.T + 1, size.B), "resets": random.random((size.T, size.B)) < 0.02}
    return {name: array for name, array in found.items() if option in (name, "all")}


def build_option(option: str | None = None) -> Callable[[Case], Job]:
    """The option that the case names, or one for all cases."""
    import tinyseq as ts

    def build(case: Case) -> Job:
        name, size = option or case.settings["option"], Size(*case.settings["size"])
        random = np.random.default_rng(0)
        ts.manual_seed(0)
        settings = {**LAYER[name], **({"proj_size": size.H // 2} if name == "projection" else {})}
        layer = ts.nn.LSTM(size.I, size.H, **settings)
        for key, parameter in layer.named_parameters():
            if key.startswith("norm"):  # a gain of 1 makes it chaotic: float32 differences grow with T
                ts.nn.init.constant_(parameter, 0.2)
        arguments = {key: ts.tensor(array) for key, array in call_arguments(name, size).items()}
        x = ts.tensor(random.standard_normal((size.T, size.B, size.I), np.float32), requires_grad=True)
        dy = ts.tensor(random.standard_normal((size.T, size.B, layer.output_size), np.float32))
        leaves = {"x": x, **dict(layer.named_parameters())}

        def forward() -> Any:
            with ts.no_grad():
                return layer(x, **arguments)

        def both() -> Any:
            for leaf in leaves.values():
                leaf.grad = None
            ys, _ = layer(x, **arguments)
            ys.backward(dy)
            return ys

        def results(unroll: bool = False) -> dict[str, np.ndarray]:
            ts.manual_seed(1)  # the same masks for both
            layer.unroll = unroll
            try:
                ys = both()
            finally:
                layer.unroll = False
            gradients = {f"d{key}": np.array(leaf.grad.numpy()) for key, leaf in leaves.items()}
            return {"ys": np.array(ys.detach().numpy()), **gradients}

        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a loop that falls back warns
            compiled = results()
        common.check_equal(case.name, "the unrolled loop", compiled, results(unroll=True), case.settings["tolerance"])
        return Job(lambda: compiled, {"forward": forward, "forward+backward": both})

    return build


PEERS = {
    "option": Peer(build_option, ["tinyseq", "numba", "numpy"]),
    "plain": Peer(lambda: build_option("none"), ["tinyseq", "numba", "numpy"], own=True),
}


def measured(case: Case, workers: list[common.Worker], args: argparse.Namespace) -> list[Row]:
    answers = [worker.ask(do="build", case=dataclasses.asdict(case)) for worker in workers]
    rows = []
    for mode in answers[0]["modes"]:
        times = common.take_turns(workers, mode, args)
        ours, theirs = (times[worker.peer] for worker in workers)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        medians = (float(np.median(each)) for each in (ours, theirs))
        rows.append(Row(case.name, mode, "plain", "call", *medians, ratios, AIM, subject=case.settings["option"]))
    return rows


def table(rows: list[Row]) -> list[list[str]]:
    lines = [["option", "T,B,I,H", "mode", "with it", "plain", "times the plain", "aim"]]
    for row in rows:
        low, _, high = common.quartiles(row.ratios)
        seconds = (common.time_text(each) for each in (row.ours, row.theirs))
        ratio = f"{row.ratio:.2f} [{low:.2f}, {high:.2f}]"
        lines.append([row.subject, row.case.split(" ")[1], row.mode, *seconds, ratio, row.verdict])
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--options", nargs="+", choices=LAYER, default=list(LAYER), help="which options")


def main() -> None:
    defaults = {"backend": "numba", "threads": 2, "pairs": 11}
    args = common.command(TITLE, PEERS, add_arguments, defaults)
    if args.worker:
        common.serve(PEERS[args.worker])
        return
    sizes = SIZES[:1] if args.quick else SIZES
    workers: list[common.Worker] = []
    rows: list[Row] = []
    try:
        workers += [common.Worker(Path(__file__), peer, sys.executable, common.environment(args)) for peer in PEERS]
        flops = [workers[0].ask(do="gemm")["flops"]]
        for size in sizes:
            for option in args.options:
                print(f"{option} {size} ...", file=sys.stderr, flush=True)
                settings = {"option": option, "size": list(size), "tolerance": args.tolerance}
                rows += measured(Case(f"{option} {size}", settings), workers, args)
        flops.append(workers[0].ask(do="gemm")["flops"])
    except RuntimeError as error:
        sys.exit(str(error))
    finally:
        for worker in workers:
            worker.close()
    report = {
        "title": TITLE,
        "machine": common.machine(args.threads, flops, args.blas_threads),
        "versions": {"tinyseq": workers[0].versions},
        "backend": args.backend,
        "pairs": args.pairs,
        "seconds": args.seconds,
        "rows": [{**dataclasses.asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in rows],
    }
    facts = common.summary(report, {})
    print("\n".join([*facts, "", common.plain(table(rows))]))
    if args.write:
        common.write(__file__, args.write, report, common.markdown(TITLE, facts, table(rows)))


if __name__ == "__main__":
    main()
