"""A recurrent network learns to write Shakespeare, one character after another.

    python examples/shakespeare.py --seconds 75
    python examples/shakespeare.py --cell gru --hidden 512 --backend cupy --steps 20000
    python examples/shakespeare.py --steps 40000 --resume
    python examples/shakespeare.py --text novel.txt --out runs/novel

It reads 35 plays in parallel rows, a chunk of each row at a time, and carries the state from chunk to chunk (truncated
backpropagation through time); three plays are held out and tell how well it does, in bits a character. Into the folder
--out go a checkpoint, a sampled passage, the loss curve and a picture of the model. Ctrl-C saves; --resume goes on, bit
for bit as if nothing had happened.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import tinyseq as ts
from tinyseq.data import CharVocabulary, TextStream, read_text, shakespeare, split_plays
from tinyseq.io import load_metadata
from tinyseq.nn.functional import cross_entropy
from tinyseq.tree import flatten, tree_map

CELLS = {"rnn": ts.nn.RNN, "gru": ts.nn.GRU, "lstm": ts.nn.LSTM}
EVALUATED = 30_000  # characters of the held-out text that an evaluation reads, in rows that lie all over it

# What a checkpoint remembers. The first six cannot change when a run is resumed.
ARCHITECTURE = {"cell": "lstm", "embedding": 64, "hidden": 256, "layers": 1, "batch": 32, "chunk": 64}
SETTINGS = {**ARCHITECTURE, "dropout": 0.0, "lr": 2e-3, "clip": 1.0, "seed": 0, "text": None}


class CharacterModel(ts.nn.Module):
    """p(next character | all before it): embedding, recurrent layers, a linear map to the scores (logits)."""

    def __init__(self, characters: int, cell: str, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = ts.nn.Embedding(characters, embedding)
        self.recurrent = CELLS[cell](embedding, hidden, num_layers=layers, dropout=dropout)
        self.output = ts.nn.Linear(hidden, characters)

    def __call__(self, ids: ts.Tensor, state: Any = None) -> tuple[ts.Tensor, Any]:
        """(T, B) ids and the state before them to (T, B, V) logits and the state after them."""
        hidden, state = self.recurrent(self.embedding(ids), state)
        return self.output(hidden), state

    def loss(self, ids: np.ndarray, targets: np.ndarray, state: Any = None) -> tuple[ts.Tensor, Any]:
        """The mean cross-entropy in nats a character, and the state after the chunk."""
        logits, state = self(ts.tensor(ids), state)
        return cross_entropy(logits.reshape(targets.size, -1), ts.tensor(targets.reshape(-1))), state


@dataclass
class Run:
    """All that training goes on from, and all that a checkpoint holds."""

    settings: dict[str, Any]
    vocabulary: CharVocabulary
    stream: TextStream
    held_out: np.ndarray
    text_hash: str
    state: Any = None  # carried from chunk to chunk
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of each step, nats a character
    held_out_bits: list[tuple[int, float]] = field(default_factory=list)  # (step, bits a character)

    def __post_init__(self) -> None:
        s = self.settings
        ts.manual_seed(s["seed"])
        self.model = CharacterModel(
            len(self.vocabulary), s["cell"], s["embedding"], s["hidden"], s["layers"], s["dropout"]
        )
        self.optimizer = ts.optim.Adam(self.model.parameters(), lr=s["lr"])

    def save(self, path: Path) -> None:
        tensors = {
            **{f"model.{name}": value for name, value in self.model.state_dict().items()},
            **{f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()},
            **{f"state.{place}": leaf for place, leaf in enumerate(flatten(self.state)[0])},
            "history.losses": np.array(self.losses),
            "history.held_out": np.array(self.held_out_bits).reshape(-1, 2),
        }
        for name, value in tensors.items():
            if not np.isfinite(value if isinstance(value, np.ndarray) else value.numpy()).all():
                raise ts.NonFiniteError(f"{name} is no longer finite at step {self.step}; {remedy(path)}")
        progress = {
            "settings": self.settings,
            "text_hash": self.text_hash,
            "step": self.step,
            "stream": self.stream.state(),
            "random": ts.random.get_state(),
        }
        ts.save(path, tensors, {"shakespeare": json.dumps(progress)})

    def restore(self, path: Path) -> None:
        progress, tensors = read_progress(path), ts.load(path)
        if progress["text_hash"] != self.text_hash:
            raise ts.CheckpointError(f"{str(path)!r} is of another text; resume with the --text that it was trained on")

        def part(name: str) -> dict[str, ts.Tensor]:
            return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

        self.model.load_state_dict(part("model"))
        self.optimizer.load_state_dict(part("optimizer"))
        self.optimizer.lr = self.settings["lr"]
        leaves = list(part("state").values())
        self.state = (tuple(leaves) if self.settings["cell"] == "lstm" else leaves[0]) if leaves else None
        self.step = progress["step"]
        self.losses = tensors["history.losses"].tolist()
        self.held_out_bits = [(int(step), bits) for step, bits in tensors["history.held_out"].tolist()]
        self.stream.restore(progress["stream"])
        ts.random.set_state(progress["random"])


def read_progress(path: Path) -> dict[str, Any]:
    """What a checkpoint says about its run."""
    try:
        return json.loads(load_metadata(path)["shakespeare"])
    except FileNotFoundError:
        raise ts.CheckpointError(f"there is no checkpoint {str(path)!r} to resume; leave out --resume") from None
    except (KeyError, ValueError) as error:
        if isinstance(error, ts.CheckpointError):
            raise
        raise ts.CheckpointError(f"{str(path)!r} is no checkpoint of this program; give its folder as --out") from error


def start(options: argparse.Namespace, path: Path) -> Run:
    """A new run, or the one that the checkpoint at ``path`` holds."""
    given = {name: value for name, value in vars(options).items() if name in SETTINGS}
    saved = read_progress(path)["settings"] if options.resume else {}
    for name in ARCHITECTURE:
        if name in given and name in saved and given[name] != saved[name]:
            raise ts.CheckpointError(
                f"{str(path)!r} was trained with --{name} {saved[name]}, not {given[name]}; leave out --{name}, or train "
                "a new model in another --out"
            )
    settings = {**SETTINGS, **saved, **given}
    training, held_out = texts(settings["text"])
    vocabulary = CharVocabulary(training + held_out)
    stream = TextStream(vocabulary.encode(training), settings["batch"], settings["chunk"])
    text_hash = hashlib.sha256((training + "\0" + held_out).encode()).hexdigest()
    run = Run(settings, vocabulary, stream, vocabulary.encode(held_out), text_hash)
    if options.resume:
        run.restore(path)
    return run


def texts(path: str | None) -> tuple[str, str]:
    """The training and the held-out text: Shakespeare's plays, or the first 90 % and the rest of a file."""
    if path is None:
        training, held_out = split_plays(shakespeare())
        return "\n".join(training.values()), "\n".join(held_out.values())
    text = read_text(path)
    cut = len(text) - max(len(text) // 10, 2)
    if cut < 1:
        raise ts.DataError(f"the text {path!r} has {len(text)} characters, too few for any chunk; give a longer one")
    return text[:cut], text[cut:]


def train_step(run: Run) -> float:
    """Learn from the next chunk; the loss in nats a character."""
    chunk = next(run.stream)
    loss, state = run.model.loss(chunk.inputs, chunk.targets, None if chunk.starts else run.state)
    run.optimizer.zero_grad()
    loss.backward()
    norm = ts.optim.clip_grad_norm(run.model.parameters(), run.settings["clip"])
    for name, value in (("loss", loss.item()), ("gradient's norm", norm.item())):
        if not math.isfinite(value):
            raise ts.NonFiniteError(f"the {name} is {value} at step {run.step + 1}")
    run.optimizer.step()
    run.state = tree_map(ts.Tensor.detach, state)  # the gradient stops here, the state goes on
    run.step += 1
    run.losses.append(loss.item())
    return run.losses[-1]


def evaluate(run: Run) -> float:
    """Bits a character on the held-out text, the state carried from chunk to chunk."""
    chunk = min(run.settings["chunk"], len(run.held_out) - 1)
    batch = min(run.settings["batch"], (len(run.held_out) - 1) // chunk)
    stream = TextStream(run.held_out, batch, chunk)
    nats, count, state = 0.0, 0, None
    run.model.eval()
    with ts.no_grad():
        for inputs, targets, _ in islice(stream, min(len(stream), max(1, EVALUATED // (batch * chunk)))):
            loss, state = run.model.loss(inputs, targets, state)
            nats, count = nats + loss.item() * targets.size, count + targets.size
    run.model.train()
    return nats / count / math.log(2)


def sample(run: Run, length: int, temperature: float, seed: int) -> str:
    """A passage as the model would write it; temperature 0 always takes the likeliest character."""
    generator = np.random.default_rng(seed)
    ids, state = [0], None  # the first in the order of code points, in most texts the newline
    run.model.eval()
    with ts.no_grad():
        for _ in range(length):
            logits, state = run.model(ts.tensor([[ids[-1]]]), state)
            scores = logits.numpy().reshape(-1).astype(np.float64)
            # argmax(scores + temperature * Gumbel noise) is a draw from softmax(scores / temperature)
            ids.append(int(np.argmax(scores + temperature * generator.gumbel(size=scores.size))))
    run.model.train()
    return run.vocabulary.decode(ids[1:])


def plot(run: Run, path: Path) -> None:
    """The loss curve, training and held out."""
    from matplotlib.figure import Figure

    bits = np.array(run.losses) / math.log(2)
    window = max(1, len(bits) // 50)
    steps = np.arange(1, len(bits) + 1)
    smooth = np.convolve(bits, np.ones(window) / window, "valid")
    axes = (figure := Figure(figsize=(7, 4), layout="constrained")).add_subplot()
    axes.plot(steps, bits, color="C0", alpha=0.25, linewidth=0.8, label="training, each chunk")
    axes.plot(steps[window - 1 :], smooth, color="C0", label=f"training, mean of {window}")
    axes.plot(*zip(*run.held_out_bits, strict=True), "o-", color="C1", label="held out")
    axes.set(xlabel="step", ylabel="bits a character", title=f"{run.settings['cell'].upper()} on {source(run)}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw(run: Run, *paths: Path) -> None:
    """The model's graph over three steps of one row."""
    loss, _ = run.model.loss(run.held_out[:3, None] * 0, run.held_out[:3, None] * 0)
    picture = ts.draw(loss, names=run.model)
    for path in paths:
        picture.save(path)


def source(run: Run) -> str:
    return "Shakespeare" if run.settings["text"] is None else Path(run.settings["text"]).name


class Stop:
    """Remembers a Ctrl-C or a request to end, so that the step under way is finished first; a second one is obeyed."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.signal = number
        signal.signal(number, self._before[number])


class Display:
    """How training goes: a bar on a terminal, else a line every few seconds, or nothing."""

    def __init__(self, run: Run, steps: int, seconds: float, quiet: bool) -> None:
        self.run, self.first, self.steps, self.seconds = run, run.step, steps, seconds
        self.started = self.shown = time.monotonic()
        self.bar: Any = None
        self.quiet = quiet
        if not quiet and sys.stdout.isatty() and importlib.util.find_spec("rich"):
            from rich.progress import BarColumn, Progress, TextColumn

            self.bar = Progress(BarColumn(bar_width=20), TextColumn("{task.description}"))
            self.task = self.bar.add_task("", total=1.0)

    def __enter__(self) -> Display:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def update(self) -> None:
        run, done = self.run, self.run.step - self.first
        left = min((self.steps - run.step) * self.elapsed / done, self.seconds - self.elapsed)
        if self.bar:
            self.bar.update(self.task, description=self.line(left), completed=self.elapsed / (self.elapsed + max(left, 0)))
        elif not self.quiet and (time.monotonic() - self.shown > 5 or run.step == self.steps):
            print(self.line(left), flush=True)
            self.shown = time.monotonic()

    def line(self, left: float) -> str:
        run, s = self.run, self.run.settings
        loss = float(np.mean(run.losses[-20:]))
        held_out = f"held out {run.held_out_bits[-1][1]:.3f}  " if run.held_out_bits else ""
        rate = (run.step - self.first) * s["batch"] * s["chunk"] / self.elapsed
        minutes, seconds = divmod(max(0, round(left)), 60)
        return (
            f"step {run.step}  loss {loss:.3f}  {loss / math.log(2):.3f} bits a character  {held_out}"
            f"{rate:,.0f} characters/s  {minutes}:{seconds:02} left"
        )
