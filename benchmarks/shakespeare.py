"""Characters a second: `examples/shakespeare.py` beside a PyTorch program that does the same step by step.

    python benchmarks/shakespeare.py --peer-python peers/bin/python --write

Both learn from the same chunks of the plays, from the same weights: T = 64 steps, B = 32 rows, embedding 128, an LSTM of 256
units, Adam, clipping. The losses of the first steps are compared before anything is timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import Case, Job, Peer

EXAMPLE = Path(__file__).parents[1] / "examples" / "shakespeare.py"
T, B, EMBEDDING, HIDDEN, LR, CLIP = 64, 32, 128, 256, 5e-3, 1.0
CHECKED = 20  # steps whose losses are compared
AIM = 1.2  # times as fast
MODE = "training"
TITLE = "Characters a second of a training step"


def weights(characters: int) -> dict[str, np.ndarray]:
    """The first weights, under the names that both models give them."""
    random = np.random.default_rng(0)
    bound = 1 / math.sqrt(HIDDEN)
    shapes = {
        "recurrent.weight_ih_l0": (4 * HIDDEN, EMBEDDING),
        "recurrent.weight_hh_l0": (4 * HIDDEN, HIDDEN),
        "recurrent.bias_ih_l0": (4 * HIDDEN,),
        "recurrent.bias_hh_l0": (4 * HIDDEN,),
        "output.weight": (characters, HIDDEN),
        "output.bias": (characters,),
    }
    arrays = {name: random.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    arrays["embedding.weight"] = random.standard_normal((characters, EMBEDDING))
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def chunks(ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """Inputs, targets (T, B) and whether the text begins anew: what `ts.data.TextStream` gives, without tinyseq."""
    rows = np.ascontiguousarray(ids[:-1].reshape(B, -1).T), np.ascontiguousarray(ids[1:].reshape(B, -1).T)
    while True:
        for at in range(0, len(rows[0]), T):
            yield rows[0][at : at + T], rows[1][at : at + T], at == 0


def first_losses(step: Any) -> dict[str, np.ndarray]:
    return {"losses": np.array([step() for _ in range(CHECKED)])}


def load_example() -> Any:
    """The example, whose file has the name of this one."""
    spec = importlib.util.spec_from_file_location("shakespeare_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks up its own names
    spec.loader.exec_module(module)
    return module


def tinyseq() -> common.Build:
    from tinyseq.data import TextStream

    example = load_example()

    def build(case: Case) -> Job:
        ids, characters = np.load(case.settings["ids"]), case.settings["characters"]
        settings = {
            **example.DEFAULTS,
            "embedding": EMBEDDING,
            "hidden": HIDDEN,
            "batch": B,
            "chunk": T,
            "lr": LR,
            "clip": CLIP,
        }
        run = example.Run(settings, range(characters), TextStream(ids, B, T), ids[:0], "")
        run.model.load_state_dict(weights(characters))

        def step() -> float:
            run.train_step()
            return run.losses[-1]

        return Job(lambda: first_losses(step), {MODE: step})

    return build


def torch() -> common.Build:
    import torch
    from shakespeare_torch import Training

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def build(case: Case) -> Job:
        training = Training(weights(case.settings["characters"]), EMBEDDING, HIDDEN, LR, CLIP)
        stream = chunks(np.load(case.settings["ids"]))

        def step() -> float:
            return training.step(*next(stream))

        return Job(lambda: first_losses(step), {MODE: step})

    return build


PEERS = {"tinyseq": Peer(tinyseq, ["tinyseq", "numba", "numpy"]), "torch": Peer(torch, ["torch"])}


def text_ids() -> tuple[np.ndarray, int]:
    """The training plays as ids, cut so that chunks of T fill all rows, and how many characters there are."""
    from tinyseq.data import CharVocabulary, shakespeare, split_plays

    training, held_out = ("\n".join(plays.values()) for plays in split_plays(shakespeare()))
    vocabulary = CharVocabulary(training + held_out)
    ids = vocabulary.encode(training)
    return ids[: (len(ids) - 1) // (B * T) * B * T + 1], len(vocabulary)


def main() -> None:
    args = common.command(
        TITLE, PEERS, defaults={"backend": "numba", "threads": 2, "pairs": 15, "seconds": 0.3, "tolerance": 1e-4}
    )
    if args.worker:
        common.serve(PEERS[args.worker])
        return
    from tinyseq.errors import TinyseqError  # which the peer's environment need not have

    try:
        ids, characters = text_ids()
    except TinyseqError as error:  # the plays are not installed
        sys.exit(str(error))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.npy"
        np.save(path, ids)
        settings = {"ids": str(path), "characters": characters}
        case = Case(f"T {T}, B {B}, embedding {EMBEDDING}, H {HIDDEN}", settings, count=T * B, unit="character")
        measured = common.measure(__file__, PEERS, [case], args)
    lines = [["case", "peer", "tinyseq, characters/s", "peer's", "times as fast", "pairs", "aim"]]
    for row in measured.rows:
        speeds = [1 / ratio for ratio in row.ratios]
        low, middle, high = common.quartiles(speeds)
        aim = f"{'met' if middle >= AIM else 'missed'} (≥ {AIM})"
        rates = [f"{1 / seconds:,.0f}" for seconds in (row.ours, row.theirs)]
        lines.append([row.case, row.peer, *rates, f"{middle:.2f} [{low:.2f}, {high:.2f}]", str(len(speeds)), aim])
    report = {
        "title": TITLE,
        "machine": measured.machine,
        "versions": measured.versions,
        "missing": measured.missing,
        "backend": args.backend,
        "pairs": args.pairs,
        "seconds": args.seconds,
        "rows": [dataclasses.asdict(row) for row in measured.rows],
    }
    facts = [
        *common.summary(report, measured.missing),
        f"Losses of the first {CHECKED} steps: equal to {args.tolerance:g} of the largest",
        "Times as fast: theirs / ours",
    ]
    print("\n".join([*facts, "", common.plain(lines)]))
    if args.write:
        common.write(__file__, args.write, report, common.markdown(TITLE, facts, lines))


if __name__ == "__main__":
    main()
