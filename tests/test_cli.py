from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tinyseq import backend, cli
from tinyseq.backend import BackendInfo

ECHO = "import sys; print('{name}', sys.argv[1:], flush=True)\nif __name__ == '__main__': sys.exit({status})\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose demo and benchmarks print their name and arguments, from which tinyseq seems installed."""
    for name, status in {
        "examples/shakespeare": 3,
        "benchmarks/eager": 0,
        "benchmarks/scan": 0,
        "tinyseq/cli": 0,
    }.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(ECHO.format(name=name, status=status))
    (tmp_path / "benchmarks/common.py").write_text("raise AssertionError('not a benchmark')")
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "tinyseq/cli.py"))
    return tmp_path


def failure(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command that must fail, and return its one line on standard error."""
    assert cli.main(words) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("tinyseq: ")
    assert err.count("\n") == 1
    return err[len("tinyseq: ") : -1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"tinyseq {version('tinyseq')}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    out = capsys.readouterr().out
    for command in ("backends", "demo", "bench", "draw", "TINYSEQ_BACKEND"):
        assert command in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: COMMAND (see tinyseq --help)"),
        (["backends", "--jsn"], "unrecognized arguments: --jsn (see tinyseq --help)"),
        (["draw", "m:f", "extra", "-x"], "unrecognized arguments: extra -x (see tinyseq --help)"),
        (["draw"], "the following arguments are required: MODULE:FUNCTION (see tinyseq draw --help)"),
        (["draw", "m.f"], "'m.f' does not name a function; write it as MODULE:FUNCTION"),
        (["draw", ":f"], "':f' does not name a function; write it as MODULE:FUNCTION"),
        (["draw", "no.such:f"], "there is no module 'no.such' here or on Python's path"),
        (["draw", "math:sinus"], "the module 'math' has no function 'sinus'"),
        (["draw", "math:pi"], "the module 'math' has no function 'pi'"),
        (
            ["draw", "builtins:dict"],
            "builtins:dict returned a dict: draw takes a tensor, a list of tensors, a function with example inputs, a Graph or "
            "a Program, not a dict",
        ),
        (
            ["draw", "builtins:list", "--show", "smell"],
            "builtins:list returned a list: show='smell' is unknown; "
            "choose from 'shape', 'value', 'kept', 'seconds', 'gradient'",
        ),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    words: list[str], sentence: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert failure(capfd, *words) == sentence


def test_an_unknown_command_names_the_known(capfd: pytest.CaptureFixture[str]) -> None:
    sentence = failure(capfd, "backend")
    for name in ("'backend'", "backends", "demo", "draw", "bench"):
        assert name in sentence


def test_backends_prints_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    infos = [
        BackendInfo("numpy", "numpy 2.4.6", "cpu", True, "", ""),
        BackendInfo("cupy", "", "", False, "CuPy is not installed", "pip install 'tinyseq[cuda12]'"),
        BackendInfo("other", "", "", False, "it is broken", ""),
    ]
    monkeypatch.setattr(backend, "backends", lambda: infos)
    assert cli.main(["backends"]) == 0
    assert capsys.readouterr().out == (
        "name   version      device  available\n"
        "numpy  numpy 2.4.6  cpu     yes\n"
        "cupy   -            -       no: CuPy is not installed; install with: pip install 'tinyseq[cuda12]'\n"
        "other  -            -       no: it is broken\n"
    )


def test_backends_lists_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["backends"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(rows)[:4] == ["name", "numpy", "numba", "cupy"]
    assert rows["numpy"].split() == ["numpy", "numpy", np.__version__, "cpu", "yes"]
    for name in ("numba", "cupy"):
        assert rows[name].endswith("yes") or "; install with: pip install" in rows[name]


@pytest.mark.parametrize("arguments", [[], ["--steps", "5", "--backend=numpy"], ["--help"], ["--version"]])
def test_demo_runs_the_example_with_its_arguments(
    checkout: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", *arguments]) == 3
    assert capfd.readouterr().out == f"examples/shakespeare {arguments}\n"


@pytest.mark.parametrize("folder", [".", "examples"])
def test_demo_finds_the_checkout_around_the_current_folder(
    checkout: Path, folder: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path_factory.mktemp("site-packages") / "tinyseq/cli.py"))
    monkeypatch.chdir(checkout / folder)
    assert cli.main(["demo"]) == 3


@pytest.mark.parametrize(("command", "part"), [("demo", "examples/shakespeare.py"), ("bench", "benchmarks")])
def test_outside_a_checkout_they_say_where_the_script_is(
    command: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages/tinyseq/cli.py"))
    monkeypatch.chdir(tmp_path)
    assert failure(capfd, command, "--any") == (
        f"{part} is part of tinyseq's source and not of the installed package; run this inside a checkout"
    )


@pytest.mark.parametrize(
    ("words", "names"),
    [([], ["eager", "scan"]), (["scan"], ["scan"]), (["scan", "eager"], ["scan", "eager"])],
)
@pytest.mark.parametrize("options", [[], ["--quick", "7"]])
def test_bench_runs_all_or_the_named(
    checkout: Path, words: list[str], names: list[str], options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *words, *options]) == 0
    assert capfd.readouterr().out == "".join(f"benchmarks/{name} {options}\n" for name in names)


def test_bench_stops_at_the_first_failure(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "benchmarks/eager.py").write_text(ECHO.format(name="eager", status=4))
    assert cli.main(["bench"]) == 4
    assert capfd.readouterr().out == "eager []\n"


def test_bench_names_the_benchmarks_there_are(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert failure(capfd, "bench", "common") == "there is no benchmark 'common'; choose from: eager, scan"


@pytest.mark.skipif(os.name == "nt", reason="process groups and signals as POSIX has them")
def test_ctrl_c_lets_the_script_save_first(checkout: Path) -> None:
    (checkout / "examples/shakespeare.py").write_text(
        "import sys, time\n"
        "try:\n    print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.3); print('saved', flush=True); sys.exit(130)\n"
    )
    command = "import sys; from tinyseq import cli; cli.__file__ = sys.argv[1]; sys.exit(cli.main(['demo']))"
    with subprocess.Popen(
        [sys.executable, "-c", command, str(checkout / "tinyseq/cli.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "saved\n", "")


@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_a_script_that_a_signal_ended_gives_the_shells_status(checkout: Path) -> None:
    (checkout / "examples/shakespeare.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert cli.main(["demo"]) == 128 + signal.SIGTERM


def draw_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "tinyseq.cli", "draw", *words]  # -P: as the script starts
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_draw_writes_the_picture(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import tinyseq as ts\n"
        "def loss():\n    x = ts.tensor([1.0, 2.0], requires_grad=True)\n    return (x.tanh() * x).sum()\n"
    )
    done = draw_in(tmp_path, "model:loss", "--out", "loss.svg")
    assert (done.returncode, done.stdout, done.stderr) == (0, "loss.svg\n", "")
    svg = (tmp_path / "loss.svg").read_text("utf-8")
    assert "<svg" in svg
    for operation in ("tanh", "mul", "sum"):
        assert operation in svg


def test_draw_takes_a_module_with_its_inputs_and_all_options(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import tinyseq as ts\n"
        "def lstm():\n    return ts.nn.LSTM(3, 4), ts.zeros((50, 2, 3))\n"
        "def chain():\n    x = ts.tensor([1.0], requires_grad=True)\n"
        "    for _ in range(300):\n        x = x.tanh().exp()\n    return x\n"
        "def picture():\n    return ts.draw(*lstm(), theme='dark')\n"
    )
    done = draw_in(tmp_path, "model:lstm", "--out", "a.txt", "--level", "modules", "--time", "folded", "--no-legend")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.txt\n", "")
    text = (tmp_path / "a.txt").read_text("utf-8")
    assert "LSTM {" in text
    assert "loop × 50 {" in text
    assert "next carry 0 = " in text
    done = draw_in(tmp_path, "model:chain", "--out", "b.dot", "--limit", "5", "--steps", "4", "--theme", "dark")
    assert (done.returncode, done.stdout) == (0, "b.dot\n")
    assert done.stderr == "tinyseq: Loops are drawn once: their steps would need more than 5 boxes.\n"
    done = draw_in(tmp_path, "model:picture", "--out", "c.svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert "#16191d" in (tmp_path / "c.svg").read_text("utf-8")
    done = draw_in(tmp_path, "model:picture", "--out", "d.svg", "--level", "modules", "--no-legend")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tinyseq: model:picture returned a Picture: give level, legend to its ts.draw instead\n"
    assert not (tmp_path / "d.svg").exists()
    done = draw_in(tmp_path, "model:lstm", "--out", "no/such.txt")
    assert (done.returncode, done.stderr) == (2, "tinyseq: cannot write 'no/such.txt': No such file or directory\n")


def test_draw_says_why_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import tinyseq as ts\ndef loss():\n    return ts.tensor([1.0], requires_grad=True).sum()\n"
    )
    done = draw_in(tmp_path, "model:loss", "--out", "no/such/folder/loss.svg")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tinyseq: cannot write 'no/such/folder/loss.svg': No such file or directory\n"


def test_draw_reports_what_the_function_raised(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import tinyseq as ts\ndef loss():\n    return ts.tensor([[1.0, 2.0]]) @ ts.tensor([[1.0, 2.0]])\n"
    )
    done = draw_in(tmp_path, "model:loss")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("tinyseq: matmul")


def test_draw_does_not_hide_a_missing_import_of_the_module(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import not_installed\n")
    done = draw_in(tmp_path, "model:loss")
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'not_installed'\n")
