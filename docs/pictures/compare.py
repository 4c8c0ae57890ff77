"""Draw the same models with tinyseq, torchviz and torchview, side by side: ``python docs/pictures/compare.py``.

It needs PyTorch, torchviz, torchview and Graphviz's ``dot``, and writes the pictures in ``docs/pictures/compared`` and the
tables of ``docs/drawing_compared.md``. A picture is timed from the finished forward pass to the SVG, and each in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import textwrap
import time
import warnings
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchview
import torchviz

import tinyseq as ts

PAGE = Path(__file__).parents[1] / "drawing_compared.md"
PICTURES = Path(__file__).parent / "compared"
BATCH, INPUT, HIDDEN, TOKENS, SOURCE, TARGET = 2, 8, 16, 20, 12, 10
LIMIT = 120.0  # seconds for a layout
SLOW = 5.0  # seconds: what takes longer is not run again for a median


class Drawn(NamedTuple):
    """What one tool makes of one model."""

    nodes: int
    seconds: float | None  # None: longer than LIMIT
    svg: bytes | None


class TorchDecoder(torch.nn.Module):
    """A GRU that attends, before each step, to the outputs of an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(TOKENS, INPUT)
        self.cell = torch.nn.GRUCell(INPUT + HIDDEN, HIDDEN)
        self.head = torch.nn.Linear(HIDDEN, TOKENS)

    def forward(self, tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        h, ys = memory.new_zeros(BATCH, HIDDEN), []
        for x in self.embedding(tokens):
            weights = torch.softmax((memory * h).sum(-1), 0)
            context = (weights[..., None] * memory).sum(0)
            h = self.cell(torch.cat([x, context], -1), h)
            ys.append(self.head(h))
        return torch.stack(ys)


class TorchLoop(torch.nn.Module):
    """An LSTM as it is written where the cell is one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.LSTMCell(INPUT, HIDDEN)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        h = c = xs.new_zeros(BATCH, HIDDEN)
        ys = []
        for x in xs:
            h, c = self.cell(x, (h, c))
            ys.append(h)
        return torch.stack(ys)


class Decoder(ts.nn.Module):
    """The same for tinyseq: the loop is a scan."""

    def __init__(self) -> None:
        self.embedding = ts.nn.Embedding(TOKENS, INPUT)
        self.cell = ts.nn.GRUCell(INPUT + HIDDEN, HIDDEN)
        self.head = ts.nn.Linear(HIDDEN, TOKENS)

    def __call__(self, tokens: ts.Tensor, memory: ts.Tensor) -> ts.Tensor:
        def step(h: ts.Tensor, x: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
            weights = ts.softmax((memory * h).sum(axis=-1), axis=0)
            context = (weights[..., None] * memory).sum(axis=0)
            _, h = self.cell(ts.concatenate([x, context], axis=-1), h)
            return h, self.head(h)

        return ts.scan(step, ts.zeros((BATCH, HIDDEN)), self.embedding(tokens))[1]


def models() -> dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...], ts.nn.Module]]:
    """Each model in both libraries, and PyTorch's example inputs, which become tinyseq's."""
    bidirectional = {"num_layers": 2, "bidirectional": True}
    tokens, memory = torch.randint(TOKENS, (TARGET, BATCH)), torch.randn(SOURCE, BATCH, HIDDEN)
    lstms = {
        f"LSTM, T = {t}": (TorchLoop(), (torch.randn(t, BATCH, INPUT),), ts.nn.Recurrent(ts.nn.LSTMCell(INPUT, HIDDEN)))
        for t in (5, 50)
    }
    return {
        **lstms,
        "LSTM as PyTorch's own layer, T = 50": (
            torch.nn.LSTM(INPUT, HIDDEN),
            (torch.randn(50, BATCH, INPUT),),
            ts.nn.LSTM(INPUT, HIDDEN),
        ),
        "Two-layer bidirectional GRU, T = 10": (
            torch.nn.GRU(INPUT, HIDDEN, **bidirectional),
            (torch.randn(10, BATCH, INPUT),),
            ts.nn.GRU(INPUT, HIDDEN, **bidirectional),
        ),
        f"Attention decoder, T = {TARGET}": (TorchDecoder(), (tokens, memory), Decoder()),
    }


def first(output: object) -> object:
    return output[0] if isinstance(output, tuple) else output


def laid_out(source: str) -> bytes | None:
    """The SVG of DOT text; None if that takes too long."""
    try:
        return subprocess.run(["dot", "-Tsvg"], input=source.encode(), capture_output=True, check=True, timeout=LIMIT).stdout
    except subprocess.TimeoutExpired:
        return None


def draw_torchviz(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable[[], str]:
    output = first(model(*inputs)).sum()
    return lambda: torchviz.make_dot(output, params=dict(model.named_parameters())).source


def draw_torchview(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable[[], str]:
    # It runs the model itself.
    return lambda: torchview.draw_graph(model, input_data=inputs, expand_nested=True, device="cpu").visual_graph.source


def draw_tinyseq(level: str, model: ts.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Callable[[], ts.draw.Picture]:
    output = first(model(*(ts.tensor(x.numpy()) for x in inputs))).sum()
    return lambda: ts.draw(output, names=model, time="folded", level=level, legend=False, theme="light")


def measured(draw: Callable[[], object], runs: int) -> Drawn:
    seconds: list[float] = []
    while len(seconds) < runs and (not seconds or seconds[0] < SLOW):
        start = time.perf_counter()
        made = draw()
        svg = laid_out(made) if isinstance(made, str) else made.svg().encode()
        if svg is None:
            return Drawn(len(re.findall(r"^\s*\S+ \[.*label=", made, re.MULTILINE)), None, None)
        seconds.append(time.perf_counter() - start)
    nodes = svg.count(b'class="node"') - svg.count(b"<title>legend</title>")
    return Drawn(nodes, statistics.median(seconds), svg)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the same models with tinyseq, torchviz and torchview.")
    parser.add_argument("--runs", type=int, default=3, help="of which the median is told [%(default)s]")
    runs = parser.parse_args().runs
    busy = os.getloadavg()[0] > 0.5
    torch.manual_seed(0)
    np.random.seed(0)
    PICTURES.mkdir(exist_ok=True)
    rows, pictures = [], []
    for name, (peer, inputs, model) in models().items():
        tools = {
            "tinyseq": draw_tinyseq("both", model, inputs),
            "tinyseq, modules": draw_tinyseq("modules", model, inputs),
            "torchviz": draw_torchviz(peer, inputs),
            "torchview": draw_torchview(peer, inputs),
        }
        cells, images = [], []
        for tool, draw in tools.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                drawn = measured(draw, runs)
            file = PICTURES / f"{_word(name)}_{_word(tool)}.svg"
            if drawn.svg is None:
                file.unlink(missing_ok=True)
                images.append(f"no layout within {LIMIT:g} s")
            else:
                file.write_bytes(drawn.svg)
                images.append(f'<img src="pictures/compared/{file.name}" width="240" alt="{name}, {tool}">')
            cells.append(f"{drawn.nodes:,} in {f'{drawn.seconds:.2f} s' if drawn.seconds else f'more than {LIMIT:g} s'}")
            print(f"{name}, {tool}: {cells[-1]}", flush=True)
        rows.append(f"| {name} | {' | '.join(cells)} |")
        pictures += [f"### {name}", "", f"| {' | '.join(tools)} |", f"|{'---|' * len(tools)}", f"| {' | '.join(images)} |", ""]
    head = [f"| model | {' | '.join(f'{tool}: nodes' for tool in tools)} |", f"|---|{'---|' * len(tools)}"]
    conditions = (
        f"Printed by `python docs/pictures/compare.py --runs {runs}` on {date.today()}, on {os.cpu_count()} CPU cores "
        f"{'that other programs used, too' if busy else 'that nothing else used'}. torchviz {version('torchviz')}, torchview "
        f"{version('torchview')}, PyTorch {torch.__version__}, Python {platform.python_version()}, {dot_version()}."
    )
    text = PAGE.read_text("utf-8")
    for mark, lines in (("table", [*head, *rows, "", textwrap.fill(conditions, 120)]), ("pictures", pictures)):
        before, rest = text.split(f"<!-- {mark} -->\n")
        text = "\n".join([f"{before}<!-- {mark} -->", *lines, rest[rest.index("<!-- end -->") :]])
    PAGE.write_text(text, "utf-8")


def _word(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower())


def dot_version() -> str:
    said = subprocess.run(["dot", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    return said.replace("dot - graphviz", "Graphviz")


if __name__ == "__main__":
    main()
