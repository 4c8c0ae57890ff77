"""A recurrent network learns to write Shakespeare, one character after another.

    python examples/shakespeare.py --seconds 75
    python examples/shakespeare.py --cell gru --hidden 512 --backend cupy --steps 20000
    python examples/shakespeare.py --steps 40000 --resume
    python examples/shakespeare.py --text novel.txt --out runs/novel

The training plays are read in parallel rows, a chunk of each at a time, and the state is carried from chunk to chunk
(truncated backpropagation through time). Three plays are held out and tell how well it does, in bits a character. The
folder --out gets a checkpoint, a sampled passage, the loss curve and a picture of the model. Ctrl-C saves, and --resume
goes on, bit for bit as if the run had never stopped.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import tinyseq as ts
from tinyseq.console import Parser, Progress, Stop, UsageError, number
from tinyseq.data import CharVocabulary, TextStream, read_text, shakespeare, split_plays
from tinyseq.io import load_metadata
from tinyseq.nn.functional import cross_entropy
from tinyseq.tree import flatten, tree_map

CELLS = {"rnn": ts.nn.RNN, "gru": ts.nn.GRU, "lstm": ts.nn.LSTM}
ARCHITECTURE = {"cell": "lstm", "embedding": 64, "hidden": 256, "layers": 1, "batch": 32, "chunk": 64}
DEFAULTS = {**ARCHITECTURE, "dropout": 0.0, "lr": 5e-3, "clip": 1.0, "seed": 0, "text": None}
HELD_OUT_CHARACTERS = 30_000  # that an evaluation reads, in rows that lie all over the held-out text
BITS = 1 / math.log(2)  # in a nat


class CharacterModel(ts.nn.Module):
    """The probability of the next character, given all before it: embedding, recurrent layers, linear map to logits."""

    def __init__(self, characters: int, cell: str, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding = ts.nn.Embedding(characters, embedding)
        self.recurrent = CELLS[cell](embedding, hidden, num_layers=layers, dropout=dropout)
        self.output = ts.nn.Linear(hidden, characters)

    def __call__(self, ids: ts.Tensor, state: Any = None) -> tuple[ts.Tensor, Any]:
        """(T, B) ids and the state before them to (T, B, V) logits and the state after them."""
        hidden, state = self.recurrent(self.embedding(ids), state)
        return self.output(hidden), state

    def loss(self, inputs: np.ndarray, targets: np.ndarray, state: Any = None) -> tuple[ts.Tensor, Any]:
        """The mean cross-entropy of a (T, B) chunk, nats a character, and the state after it."""
        logits, state = self(ts.tensor(inputs), state)
        return cross_entropy(logits.reshape(targets.size, -1), ts.tensor(targets.reshape(-1))), state


@dataclass
class Run:
    """All that training goes on from; a checkpoint holds exactly this."""

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
        ts.manual_seed(self.settings["seed"])
        sizes = {name: self.settings[name] for name in ("cell", "embedding", "hidden", "layers", "dropout")}
        self.model = CharacterModel(len(self.vocabulary), **sizes)
        self.optimizer = ts.optim.Adam(self.model.parameters(), lr=self.settings["lr"])

    def train_step(self) -> None:
        """Learn from the next chunk."""
        chunk = next(self.stream)
        loss, state = self.model.loss(chunk.inputs, chunk.targets, None if chunk.starts else self.state)
        self.optimizer.zero_grad()
        loss.backward()
        norm = ts.optim.clip_grad_norm(self.model.parameters(), self.settings["clip"])
        for name, value in {"loss": loss.item(), "norm of the gradient": norm.item()}.items():
            if not math.isfinite(value):
                raise ts.NonFiniteError(f"the {name} is {value} at step {self.step + 1}")
        self.optimizer.step()
        self.state = tree_map(ts.Tensor.detach, state)  # the state goes on, the gradient stops here
        self.losses.append(loss.item())
        self.step += 1

    def save(self, path: Path) -> None:
        """Write the checkpoint, unless something in it is not finite."""
        tensors = {
            **{f"model.{name}": value for name, value in self.model.state_dict().items()},
            **{f"optimizer.{name}": value for name, value in self.optimizer.state_dict().items()},
            **{f"state.{place}": value for place, value in enumerate(flatten(self.state)[0])},
            "history.losses": np.array(self.losses),
            "history.held_out": np.array(self.held_out_bits).reshape(-1, 2),
        }
        for name, value in tensors.items():
            if not np.isfinite(np.asarray(value)).all():
                raise ts.NonFiniteError(f"{name} is not finite after step {self.step}")
        progress = {
            "settings": self.settings,
            "text": self.text_hash,
            "step": self.step,
            "stream": self.stream.state_dict(),
            "random": ts.random.get_state(),
        }
        ts.save(path, tensors, {"shakespeare": json.dumps(progress)})

    def restore(self, path: Path) -> None:
        """Go on where the run that wrote the checkpoint stood."""
        progress, tensors = read_progress(path), ts.load(path)
        if progress["text"] != self.text_hash:
            raise ts.CheckpointError(f"{str(path)!r} was trained on another text; give that text with --text")

        def part(prefix: str) -> dict[str, ts.Tensor]:
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.optimizer.load_state_dict(part("optimizer."))
        self.optimizer.lr = self.settings["lr"]
        state = tuple(part("state.").values())
        self.state = state if self.settings["cell"] == "lstm" else state[0] if state else None
        self.step = progress["step"]
        self.losses = tensors["history.losses"].tolist()
        self.held_out_bits = [(int(step), bits) for step, bits in tensors["history.held_out"].tolist()]
        self.stream.load_state_dict(progress["stream"])
        ts.random.set_state(progress["random"])


def read_progress(path: Path) -> dict[str, Any]:
    """What a checkpoint tells of its run."""
    try:
        metadata = load_metadata(path)
    except FileNotFoundError:
        raise ts.CheckpointError(f"there is no {str(path)!r} to resume from; leave out --resume") from None
    if "shakespeare" not in metadata:
        raise ts.CheckpointError(f"{str(path)!r} holds tensors, but no run of this program; name its folder with --out")
    return json.loads(metadata["shakespeare"])


def start(options: argparse.Namespace, path: Path) -> Run:
    """A new run, or the one in the checkpoint, which keeps the settings that it was not given anew."""
    given = {name: value for name, value in vars(options).items() if name in DEFAULTS}
    saved = read_progress(path)["settings"] if options.resume else {}
    for name in ARCHITECTURE:
        if saved and name in given and given[name] != saved[name]:
            raise ts.CheckpointError(
                f"{str(path)!r} was trained with --{name} {saved[name]}, not {given[name]}; leave out --{name}, "
                "or train a new model in another folder with --out"
            )
    settings = {**DEFAULTS, **saved, **given}
    if settings["dropout"] and settings["layers"] == 1:
        raise UsageError("--dropout acts between layers; ask for --layers 2 or more with it")
    training, held_out = texts(settings["text"])
    vocabulary = CharVocabulary(training + held_out)
    stream = TextStream(vocabulary.encode(training), settings["batch"], settings["chunk"])
    text_hash = hashlib.sha256(f"{training}\0{held_out}".encode()).hexdigest()
    run = Run(settings, vocabulary, stream, vocabulary.encode(held_out), text_hash)
    if options.resume:
        run.restore(path)
    return run


def texts(path: str | None) -> tuple[str, str]:
    """The training and the held-out text: plays of Shakespeare, or the first nine tenths of a file and the rest."""
    if path is None:
        training, held_out = split_plays(shakespeare())
        return "\n".join(training.values()), "\n".join(held_out.values())
    text = read_text(path)
    cut = len(text) - max(len(text) // 10, 2)  # what is held out has at least one character and the next
    if cut < 2:
        raise ts.DataError(f"the text {path!r} has only {len(text)} characters, fewer than a chunk; give a longer one")
    return text[:cut], text[cut:]


def evaluate(run: Run) -> float:
    """Bits a character on the held-out text, the state carried from chunk to chunk."""
    chunk = min(run.settings["chunk"], len(run.held_out) - 1)
    batch = min(run.settings["batch"], (len(run.held_out) - 1) // chunk)
    stream = TextStream(run.held_out, batch, chunk)
    chunks = min(len(stream), max(1, HELD_OUT_CHARACTERS // (batch * chunk)))
    nats, characters, state = 0.0, 0, None
    run.model.eval()
    with ts.no_grad():
        for inputs, targets, _ in islice(stream, chunks):
            loss, state = run.model.loss(inputs, targets, state)
            nats += loss.item() * targets.size
            characters += targets.size
    run.model.train()
    return nats / characters * BITS


def sample(run: Run, length: int, temperature: float, seed: int) -> str:
    """A passage as the model would write it; at temperature 0 each character is the likeliest."""
    ts.manual_seed(seed)
    ids, state = [0], None  # begin after the character with the least code, in most texts a new line
    run.model.eval()
    with ts.no_grad():
        for _ in range(length):
            logits, state = run.model(ts.tensor([ids[-1:]]), state)
            ids.append(ts.random.categorical(logits.reshape(-1), temperature).item())
    run.model.train()
    return run.vocabulary.decode(ids[1:])


def plot(run: Run, path: Path) -> None:
    """The loss curve, training and held out."""
    from matplotlib.figure import Figure

    bits = np.array(run.losses) * BITS
    window = max(1, len(bits) // 50)
    means = np.convolve(bits, np.ones(window) / window, "valid") if len(bits) else bits
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(np.arange(len(bits)) + 1, bits, color="C0", alpha=0.25, linewidth=0.8)
    axes.plot(np.arange(len(means)) + window, means, color="C0", label=f"training, mean of {window} steps")
    axes.plot(*zip(*run.held_out_bits, strict=True), "o-", color="C1", label="held out")
    axes.set(xlabel="step", ylabel="bits a character", title=f"{run.settings['cell'].upper()} learns to write")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw(run: Run, *paths: Path) -> None:
    """The graph of the model over three steps of one row."""
    chunk = next(TextStream(run.held_out[:4] if len(run.held_out) > 3 else np.zeros(4, int), batch=1, chunk=3))
    run.model.recurrent.unroll = True  # every step by itself, where training runs one loop
    loss, _ = run.model.loss(chunk.inputs, chunk.targets)
    run.model.recurrent.unroll = False
    for path in paths:
        ts.draw(loss, names=run.model).save(path)


def train(run: Run, options: argparse.Namespace, path: Path) -> int:
    """Train until the steps or the seconds are over, or a signal comes: its number, or 0."""
    size = run.settings["batch"] * run.settings["chunk"]
    progress = Progress(options.steps, options.seconds, done=run.step, unit="characters", size=size, quiet=options.quiet)
    with np.errstate(all="ignore"), Stop() as stop, progress:  # what is not finite is found, and told in a sentence
        try:
            while not (progress.over or stop.signal):
                run.train_step()
                if run.step % options.eval_every == 0:
                    run.held_out_bits.append((run.step, evaluate(run)))
                if run.step % options.checkpoint_every == 0:
                    run.save(path)
                progress.update(summary(run))
            run.save(path)
        except ts.NonFiniteError as error:
            raise ts.NonFiniteError(
                f"{error}; {str(path)!r} is of an earlier step: go on from it with --resume and a lower --lr"
            ) from error
    return stop.signal


def summary(run: Run) -> str:
    loss = float(np.mean(run.losses[-20:]))
    held_out = f", held out {run.held_out_bits[-1][1]:.3f}" if run.held_out_bits else ""
    return f"loss {loss:.3f}, {loss * BITS:.3f} bits a character{held_out}"


def finish(run: Run, options: argparse.Namespace) -> None:
    """The last evaluation, a passage, the pictures: nothing that a resumed run goes on from."""
    if not run.held_out_bits or run.held_out_bits[-1][0] != run.step:
        run.held_out_bits.append((run.step, evaluate(run)))
    passage = sample(run, options.sample, options.temperature, run.settings["seed"])
    (options.out / "sample.txt").write_text(passage, encoding="utf-8")
    plot(run, options.out / "loss.png")
    draw(run, options.out / "model.svg", options.out / "model.png")
    if not options.quiet:
        print(f"\n{passage}\n")
    print(f"held out: {run.held_out_bits[-1][1]:.3f} bits a character after {run.step} steps; see {options.out}")


def parser() -> Parser:
    size, rate, share = number(int, at_least=1), number(float, at_least=0), number(float, at_least=0, below=1)
    count = number(int, at_least=0)
    result = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--backend", metavar="NAME", help="numpy, numba, cupy or another that is installed [$TINYSEQ_BACKEND or numpy]")
    add("--steps", type=count, default=2000, metavar="N", help="stop after this step [%(default)s]")
    add("--seconds", type=rate, default=math.inf, metavar="S", help="or after this time, if that is sooner")
    add("--eval-every", type=size, default=100, metavar="N", help="steps between evaluations [%(default)s]")
    add("--checkpoint-every", type=size, default=100, metavar="N", help="steps between checkpoints [%(default)s]")
    add("--out", type=Path, default=Path("runs/shakespeare"), metavar="FOLDER", help="for all results [%(default)s]")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--sample", type=count, default=600, metavar="N", help="characters to write at the end [%(default)s]")
    add("--temperature", type=rate, default=0.8, metavar="X", help="of the sample [%(default)s]")
    add("--quiet", action="store_true", help="print the result only")

    group = result.add_argument_group("settings, which a checkpoint keeps")

    def setting(name: str, meaning: str, **options: Any) -> None:
        default = "Shakespeare" if DEFAULTS[name] is None else DEFAULTS[name]
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=f"{meaning} [{default}]", **options)

    setting("cell", "the recurrent layer", choices=CELLS)
    setting("embedding", "units of the embedding", type=size, metavar="N")
    setting("hidden", "units of a recurrent layer", type=size, metavar="N")
    setting("layers", "recurrent layers", type=size, metavar="N")
    setting("dropout", "of the units between recurrent layers", type=share, metavar="P")
    setting("batch", "rows read in parallel", type=size, metavar="N")
    setting("chunk", "steps of a row between updates", type=size, metavar="N")
    setting("lr", "Adam's learning rate", type=rate, metavar="X")
    setting("clip", "largest norm of the gradient", type=rate, metavar="X")
    setting("seed", "of the first weights, dropout and the sample", type=count, metavar="N")
    setting("text", "a UTF-8 text file, the last tenth of it held out", metavar="FILE")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 after a sentence on standard error, or 128 + the signal that stopped it."""
    try:
        options = parser().parse_args(argv)
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("the loss curve needs the package matplotlib: pip install 'tinyseq[examples]'")
        if options.backend:
            ts.use_backend(options.backend)
        path = options.out / "checkpoint.safetensors"
        run = start(options, path)
        if not options.resume:
            options.out.mkdir(parents=True, exist_ok=True)
            if path.exists():
                os.replace(path, path.with_name("previous.safetensors"))  # another run's work is not thrown away
            run.save(path)
        if stopped_by := train(run, options, path):
            print(f"stopped after step {run.step}, saved in {path}; --resume goes on from there", file=sys.stderr)
            return 128 + stopped_by
        finish(run, options)
    except (ts.TinyseqError, OSError) as error:
        print(f"shakespeare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.exit(main())
