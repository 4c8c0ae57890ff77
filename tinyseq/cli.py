"""The command ``tinyseq``: list the backends, run the demo and the benchmarks, draw a graph."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from tinyseq.errors import DTypeError, TinyseqError

__all__ = ["main"]

DEMO = "examples/shakespeare.py"
BENCHMARKS = "benchmarks"
DRAWABLE = (
    "The function returns a tensor or a list of tensors, a Graph, a Program, a Picture, or a pair of a module or function "
    "and its example input (more inputs: a longer tuple)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 after one sentence on standard error.

    Args:
        argv: the words after ``tinyseq``; those of the process if None.

    >>> main(["draw", "no_colon_here"])
    2
    """
    try:
        arguments, rest = _parser().parse_known_args(argv)
        command: Callable[[argparse.Namespace, list[str]], int] = arguments.command
        return command(arguments, rest)
    except (_UsageError, TinyseqError) as error:
        print(f"tinyseq: {error}", file=sys.stderr)
        return 2


class _UsageError(Exception):
    """The command line asks for something that cannot be done; the message is a sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tinyseq",
        description="A small autodiff engine for sequence models, on NumPy, Numba or CuPy.",
        epilog="The environment variable TINYSEQ_BACKEND names the backend that is used where no flag does.",
    )
    parser.add_argument("--version", action="version", version=f"tinyseq {version('tinyseq')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[..., int], summary: str, **options: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary, **options)
        command.set_defaults(command=run)
        return command

    add("backends", _backends, "List the backends: which can run here, on what, and how to install the others.")
    # --help and every other word of these two go to the script that they run.
    add("demo", _demo, f"Run {DEMO} of a checkout; the arguments are the script's.", add_help=False)
    add("bench", _bench, "Run the benchmarks of a checkout, or only those named: bench NAME --options.", add_help=False)
    draw = add("draw", _draw, "Draw a computation: to a picture, a page or text.", epilog=DRAWABLE)
    draw.add_argument("target", metavar="MODULE:FUNCTION", help="called without arguments; returns what to draw")
    draw.add_argument(
        "--out", metavar="FILE", default="graph.svg", help="ends in .svg, .png, .pdf, .html, .dot or .txt [%(default)s]"
    )
    draw.add_argument("--level", choices=("modules", "operations", "both"), help="a box a layer, a primitive, or both [both]")
    draw.add_argument("--time", choices=("folded", "unrolled"), help="loops once, or their steps in columns [as recorded]")
    draw.add_argument("--steps", type=int, metavar="N", help="the most columns [5]")
    draw.add_argument("--backward", action=argparse.BooleanOptionalAction, help="the backward pass, too")
    draw.add_argument("--show", metavar="FACTS", help="some of shape,value,kept,seconds,gradient")
    draw.add_argument("--theme", choices=("light", "dark", "auto"), help="auto: an SVG that follows the reader's page [auto]")
    draw.add_argument("--legend", action=argparse.BooleanOptionalAction, help="what the colours mean")
    draw.add_argument("--limit", type=int, metavar="N", help="boxes above which the picture folds [300; loops 59]")
    draw.add_argument("--seconds", type=float, metavar="S", help="how long Graphviz may take [20]")
    return parser


def _no_more(rest: list[str]) -> None:
    if rest:
        raise _UsageError(f"unrecognized arguments: {' '.join(rest)} (see tinyseq --help)")


def _backends(_: argparse.Namespace, rest: list[str]) -> int:
    from tinyseq.backend import backends

    _no_more(rest)
    rows = [("name", "version", "device", "available")]
    for info in backends():
        remedy = f"; install with: {info.install}" if info.install else ""
        state = "yes" if info.available else f"no: {info.reason}{remedy}"
        rows.append((info.name, info.version or "-", info.device or "-", state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _demo(_: argparse.Namespace, rest: list[str]) -> int:
    return _run(_checkout(DEMO) / DEMO, rest)


def _bench(_: argparse.Namespace, rest: list[str]) -> int:
    folder = _checkout(BENCHMARKS) / BENCHMARKS
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if "__main__" in path.read_text("utf-8")}
    first_option = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    names, options = rest[:first_option], rest[first_option:]
    if unknown := [name for name in names if name not in scripts]:
        raise _UsageError(f"there is no benchmark {unknown[0]!r}; choose from: {', '.join(scripts)}")
    for name in names or scripts:
        if status := _run(scripts[name], options):
            return status
    return 0


def _draw(arguments: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    make = _function(arguments.target)
    from tinyseq.draw import Picture, draw

    words = ("level", "time", "steps", "backward", "theme", "legend", "limit", "seconds")
    options = {word: value for word in words if (value := getattr(arguments, word)) is not None}
    if arguments.show is not None:
        options["show"] = [fact for fact in arguments.show.split(",") if fact]
    what = make()
    try:
        if isinstance(what, Picture):
            if options:
                raise _UsageError(f"{arguments.target} returned a Picture: give {', '.join(options)} to its ts.draw instead")
            picture = what
        elif isinstance(what, tuple) and what and callable(what[0]):
            function, *examples = what
            names = function if hasattr(function, "named_parameters") else None
            picture = draw(function, *examples, names=names, **options)
        else:
            picture = draw(what, **options)
    except (ValueError, DTypeError) as error:
        raise _UsageError(f"{arguments.target} returned a {type(what).__name__}: {error}") from error
    picture.save(arguments.out)
    for note in picture.notes:
        print(f"tinyseq: {note}", file=sys.stderr)
    print(arguments.out)
    return 0


def _function(target: str) -> Callable[[], Any]:
    """What ``module:function`` names, the module being looked for in the current folder first, as Python does."""
    module_name, colon, name = target.partition(":")
    if not (colon and module_name and name):
        raise _UsageError(f"{target!r} does not name a function; write it as MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and lacks one that it needs
        raise _UsageError(f"there is no module {module_name!r} here or on Python's path") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise _UsageError(f"the module {module_name!r} has no function {name!r}")
    return function


def _checkout(part: str) -> Path:
    """The root of the checkout that tinyseq is installed from, or that the current folder lies in."""
    here = Path.cwd()
    for root in (Path(__file__).parents[1], here, *here.parents):
        if (root / part).exists() and (root / "tinyseq" / "cli.py").exists():
            return root
    raise _UsageError(f"{part} is part of tinyseq's source and not of the installed package; run this inside a checkout")


def _run(script: Path, arguments: list[str]) -> int:
    with subprocess.Popen([sys.executable, str(script), *arguments]) as process:
        while True:
            try:
                status = process.wait()
            except KeyboardInterrupt:  # the script got the same Ctrl-C, and ends when it has saved its work
                continue
            return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
