"""How long drawing takes, and how many boxes come out: an unrolled LSTM, many operations, folded loops, the page in a browser.

    python benchmarks/drawing.py --write

A picture is timed from the finished forward pass: "text" is what Python needs until it has DOT text, "to SVG" what
Graphviz and the rest take from there; recording is told beside them. The page is timed by Chromium, from opening the file
to its last box, where Chromium and its driver are installed. There is no peer here: `docs/drawing_compared.md` has models
that other tools draw, too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

BATCH, INPUT, HIDDEN, TOKENS, SOURCE, TARGET = 2, 8, 16, 20, 12, 10
OPERATIONS = 100_000
AIM_UNROLLED, AIM_MANY, AIM_BOXES = 3.0, 10.0, 60  # seconds of an LSTM of T = 1,000 and of 100,000 operations; boxes below
Case = tuple[Callable[[], Any], dict[str, Any], float | None]  # the forward pass, the options of draw, the most seconds


def cases() -> dict[str, Case]:
    """What is drawn, by name."""
    import tinyseq as ts

    class Decoder(ts.nn.Module):
        """A GRU that attends, before each step, to the outputs of an encoder."""

        def __init__(self) -> None:
            self.embedding = ts.nn.Embedding(TOKENS, INPUT)
            self.cell = ts.nn.GRUCell(INPUT + HIDDEN, HIDDEN)
            self.head = ts.nn.Linear(HIDDEN, TOKENS)

        def __call__(self, tokens: Any, memory: Any) -> Any:
            def step(h: Any, x: Any) -> Any:
                weights = ts.softmax((memory * h).sum(axis=-1), axis=0)
                context = (weights[..., None] * memory).sum(axis=0)
                _, h = self.cell(ts.concatenate([x, context], axis=-1), h)
                return h, self.head(h)

            return ts.scan(step, ts.zeros((BATCH, HIDDEN)), self.embedding(tokens))[1]

    def layer(
        kind: Any, steps: int, *, unroll: bool = False, aim: float | None = None, options: Any = None, **more: Any
    ) -> Case:
        model = kind(INPUT, HIDDEN, **more)
        model.unroll = unroll
        xs = ts.random.randn((steps, BATCH, INPUT))
        return lambda: model(xs)[0].sum(), {"names": model, **(options or {})}, aim

    def chain() -> Any:
        x = y = ts.tensor([1.0], requires_grad=True)
        for _ in range(OPERATIONS // 2):
            y = (y + x).tanh()
        return y

    decoder = Decoder()
    tokens, memory = (
        ts.tensor(np.arange(TARGET * BATCH).reshape(TARGET, BATCH) % TOKENS),
        ts.random.randn((SOURCE, BATCH, HIDDEN)),
    )
    folded, gru = {"time": "folded"}, {"num_layers": 2, "bidirectional": True}
    return {
        "LSTM, T = 1,000, on the tape": layer(ts.nn.LSTM, 1000, unroll=True, aim=AIM_UNROLLED),
        "the same, folded": layer(ts.nn.LSTM, 1000, unroll=True, aim=AIM_UNROLLED, options=folded),
        "the same, with the backward pass": layer(
            ts.nn.LSTM, 1000, unroll=True, aim=AIM_UNROLLED, options={"time": "unrolled", "level": "modules"}
        ),
        f"a chain of {OPERATIONS:,} operations": (chain, {}, AIM_MANY),
        "LSTM, T = 5, folded": layer(ts.nn.LSTM, 5, options=folded),
        "LSTM, T = 50, folded": layer(ts.nn.LSTM, 50, options=folded),
        "LSTM, T = 5,000, folded": layer(ts.nn.LSTM, 5000, options=folded),
        "two-layer bidirectional GRU, T = 10, folded": layer(ts.nn.GRU, 10, options=folded, **gru),
        "the same on the tape, folded": layer(ts.nn.GRU, 10, unroll=True, options=folded, **gru),
        f"attention decoder, T = {TARGET}, folded": (lambda: decoder(tokens, memory).sum(), {"names": decoder, **folded}, None),
    }


def measured(name: str, case: Case, runs: int) -> dict[str, Any]:
    """The medians of some runs, and how many boxes are drawn."""
    import tinyseq as ts

    forward, options, aim = case
    seconds: dict[str, list[float]] = {"record": [], "text": [], "svg": []}
    for _ in range(runs):
        times = [time.perf_counter()]
        tensor = forward()
        times.append(time.perf_counter())
        picture = ts.draw(tensor, **options)
        times.append(time.perf_counter())
        svg = picture.svg()
        times.append(time.perf_counter())
        for key, start, end in zip(seconds, times[:-1], times[1:], strict=True):
            seconds[key].append(end - start)
    row = {"case": name, **{key: statistics.median(each) for key, each in seconds.items()}, "aim": aim, "runs": runs}
    boxes = svg.count('class="node"') - svg.count("<title>legend</title>")
    return {**row, "boxes": boxes, "most boxes": AIM_BOXES if options.get("time") == "folded" else None}


def page(boxes: int) -> float | str:
    """The seconds until Chromium has drawn the page of a chain of boxes, or why there is no such figure."""
    from tinyseq.draw.diagram import Arrow, Box, Diagram
    from tinyseq.draw.html import page as text

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from chromium import Browser, missing

    if reason := missing():
        return reason
    far = [Arrow(i, i + 9, "data") for i in range(0, boxes - 9, 13)]
    chain = tuple(Box(f"b{i}", "operation", f"op {i}", ("3 float32",)) for i in range(boxes))
    diagram = Diagram(chain, (*(Arrow(i, i + 1, "data") for i in range(boxes - 1)), *far))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(text(diagram, "a chain"), "utf-8")
        browser = Browser(Path(folder) / "profile")
        try:
            browser.open(path)
            return float(browser.run("return performance.getEntriesByType('navigation')[0].domInteractive")) / 1000
        finally:
            browser.close()


def verdict(row: dict[str, Any]) -> str:
    words = []
    if row["aim"] is not None:
        words.append(f"{'met' if row['text'] + row['svg'] < row['aim'] else 'missed'} (< {row['aim']:g} s)")
    if row["most boxes"] is not None:
        words.append(f"{'met' if row['boxes'] < row['most boxes'] else 'missed'} (< {row['most boxes']} boxes)")
    return ", ".join(words)


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["computation", "boxes", "recording", "text", "to SVG", "drawing", "aim"]]
    for row in rows:
        times = [common.time_text(seconds) for seconds in (row["record"], row["text"], row["svg"], row["text"] + row["svg"])]
        lines.append([row["case"], str(row["boxes"]), *times, verdict(row)])
    return lines


def graphviz() -> str:
    try:
        said = subprocess.run(["dot", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    except OSError:
        return "Graphviz of the graphviz-pure wheel"
    return said.replace("dot - graphviz", "Graphviz")


def main() -> None:
    title = "Drawing"
    args = common.command(title, {"tinyseq": common.Peer(dict)}, defaults={"pairs": 3})
    rows = []
    for name, case in cases().items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(measured(name, case, 1 if args.quick else args.pairs))
    machine = common.machine(args.threads, [])
    opened = {count: page(count) for count in ((100,) if args.quick else (100, 2000))}
    facts = [
        f"Date: {machine['date']}",
        f"{machine['cpu']}, {machine['cores']} cores ({machine['system']}); Python {sys.version.split()[0]}; {graphviz()}",
        f'Medians of {rows[0]["runs"]} runs; "drawing" is "text" and "to SVG" together',
    ]
    for count, found in opened.items():
        told = found if isinstance(found, str) else common.time_text(found)
        facts.append(f"The HTML page of {count:,} boxes in Chromium, from opening the file to the last box: {told}")
    print("\n".join([*facts, "", common.plain(table(rows))]))
    if args.write:
        report = {"title": title, "machine": machine, "pages": opened, "rows": rows}
        common.write(__file__, args.write, report, common.markdown(title, facts, table(rows)))


if __name__ == "__main__":
    main()
