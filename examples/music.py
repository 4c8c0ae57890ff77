"""Folk tunes in ABC notation: a recurrent network writes them, one character after another.

    pip install music21==10.5.1
    python examples/music.py --backend numba

The package music21 has 4,248 old tunes (Ryan's Mammoth Collection, O'Neill's, Aird's Airs) as text: a few lines of
header, such as the meter and the key, then notes and bars. An LSTM learns to foretell each character of a tune from all
before it, and is compared with a 5-gram model, which sees the four before it, on tunes that are held out, in bits a
character. Then it writes tunes of its own. music21 says how many of them it can read, and how many have only bars of the
length that their meter asks for, beside the same shares of the held-out tunes. One is kept as ABC, MIDI and a picture.

Many tunes are in the books more than once, under other names or in other keys. Tunes with a title in common, or with 16
notes in a row that make the same steps of the scale, are in one part (training, validation, test).
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, data_folder, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, UsageError, number
from tinyseq.data import Vocabulary
from tinyseq.nn.functional import sequence_cross_entropy
from tinyseq.train import Trainer

BOOKS = ("ryansMammoth", "oneills1850", "airdsAirs")
SHARES = (0.85, 0.05, 0.1)
ALIKE = 16  # notes in a row by which two tunes are known to be one
SHOWN = 400  # characters that the tune of the picture has at most
ORDER = 5
BEGIN, END = "<s>", "</s>"
BITS = 1 / math.log(2)  # in a nat


class Tune(NamedTuple):
    """The names that a tune goes by, and its ABC: the lines M:, L:, K: and the notes."""

    titles: tuple[str, ...]
    abc: str


def load_tunes() -> list[Tune]:
    corpus = data_folder("music21", "music21==10.5.1", "the tunes", imported=True) / "corpus"
    texts = (path.read_text("utf-8", "replace") for book in BOOKS for path in sorted((corpus / book).glob("*.abc")))
    return [tune for text in texts for tune in parse(text)]


def parse(text: str) -> Iterator[Tune]:
    """The tunes of an ABC file: meter, unit of length and key, and the notes without remarks.

    >>> next(parse('X:1\\nT:The Lark, a Reel\\nM:C\\nZ:me\\nK:G\\nGA "slow" | B2 \\\\\\nd2 |] % end'))
    Tune(titles=('The Lark, a Reel',), abc='M:C\\nL:1/8\\nK:G\\nGA | B2 d2 |]')
    """
    text = re.sub(r"\\[ \t]*\n", " ", text)  # a line that goes on
    for part in re.split(r"^(?=X:)", text, flags=re.MULTILINE)[1:]:
        head: dict[str, str] = {}
        titles, body = [], []
        for line in part.splitlines():
            line = line.split("%")[0].strip()
            if field := re.match(r"([A-Za-z]):\s*(.*)", line):
                name, value = field.groups()
                if name == "T":
                    titles.append(value)
                elif name in "MLK" and value and "K" not in head:
                    head.setdefault(name, value)
                elif name in "MLK" and value:
                    body.append(f"{name}:{value}")
            elif line and "K" in head:
                line = re.sub(r'"[^"]*"|![^!]*!|\+[^+]*\+|[`\\$]', "", line)
                body.append(" ".join(line.split()))
        if {"M", "K"} <= head.keys() and any(body):
            head.setdefault("L", usual_length(head["M"]))
            yield Tune(tuple(titles), "\n".join([*(f"{name}:{head[name]}" for name in "MLK"), *filter(None, body)]))


def usual_length(meter: str) -> str:
    """The unit of length where none is given, as the ABC standard has it."""
    fraction = re.fullmatch(r"(\d+)/(\d+)", meter)
    return "1/16" if fraction and int(fraction[1]) / int(fraction[2]) < 0.75 else "1/8"


# --- the split --------------------------------------------------------------------------------------------------------


def melody(abc: str) -> np.ndarray:
    """From each note to the next, how many steps of the scale it goes up: the same in every key."""
    notes = re.sub(r"^[A-Za-z]:.*$|\{[^}]*\}", "", abc, flags=re.MULTILINE)
    found = re.findall(r"([A-Ga-g])([,']*)", notes)
    places = ["CDEFGABcdefgab".index(note) + 7 * (octave.count("'") - octave.count(",")) for note, octave in found]
    return np.diff(places).astype(np.int8)


def phrases(abc: str) -> set[bytes]:
    """The steps of all ``ALIKE`` notes in a row."""
    steps = melody(abc).tobytes()
    return {steps[i : i + ALIKE - 1] for i in range(len(steps) - ALIKE + 2)}


def families(tunes: Sequence[Tune]) -> list[int]:
    """(N,): a number for each tune, the same for tunes that may be one: by a title, or by ``ALIKE`` notes in a row."""
    parent = list(range(len(tunes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[Any, int] = {}
    for i, tune in enumerate(tunes):
        titles = {re.sub(r"\b(the|a|an)\b|[^a-z]", "", title.lower()) for title in tune.titles}
        for mark in [*(title for title in titles if len(title) > 3), *phrases(tune.abc)]:
            parent[root(i)] = root(first.setdefault(mark, i))
    return [root(i) for i in range(len(tunes))]


def split(tunes: Sequence[Tune], seed: int) -> list[list[str]]:
    """The ABC of training, validation and test."""
    return [[tunes[i].abc for i in part] for part in ts.data.split_by_group(families(tunes), SHARES, seed)]


# --- the baseline -----------------------------------------------------------------------------------------------------


class NGram:
    """The probability of a character given the n - 1 before it, by interpolated Kneser-Ney smoothing (Chen and Goodman 1999).

    With the context h and h' the same without its first character::

        p(c | h) = max(n(h c) - D, 0) / n(h) + D |{c : n(h c) > 0}| / n(h) p(c | h')

    where n counts occurrences for the longest contexts, and for shorter ones the characters that come before; the
    shortest of all is even over the vocabulary. A tune starts with n - 1 marks and ends with one.
    """

    def __init__(self, tunes: Sequence[str], vocabulary: int, order: int = ORDER, discount: float = 0.75) -> None:
        self.order, self.vocabulary, self.discount = order, vocabulary, discount
        counts: Counter[tuple[str, ...]] = Counter(gram for tune in tunes for gram in self.grams(tune))
        self.levels: list[tuple[dict[Any, int], Counter[Any], Counter[Any]]] = []
        for _ in range(order):
            totals: Counter[Any] = Counter()
            kinds: Counter[Any] = Counter()
            shorter: Counter[Any] = Counter()
            for gram, count in counts.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1
                shorter[gram[1:]] += 1
            self.levels.append((counts, totals, kinds))
            counts = shorter

    def grams(self, tune: str) -> Iterator[tuple[str, ...]]:
        marked = [*[BEGIN] * (self.order - 1), *tune, END]
        return zip(*(marked[i:] for i in range(self.order)), strict=False)

    def probability(self, gram: tuple[str, ...]) -> float:
        p = 1 / self.vocabulary
        for k in range(self.order - 1, -1, -1):
            counts, totals, kinds = self.levels[k]
            part = gram[k:]
            if total := totals.get(part[:-1], 0):
                left = max(counts.get(part, 0) - self.discount, 0.0)
                p = (left + self.discount * kinds[part[:-1]] * p) / total
        return p

    def bits(self, tunes: Sequence[str]) -> float:
        """Bits a character, the mark at the end of a tune counted as one."""
        logs = [math.log2(self.probability(gram)) for tune in tunes for gram in self.grams(tune)]
        return -sum(logs) / len(logs)


def best_ngram(training: Sequence[str], valid: Sequence[str], vocabulary: int) -> NGram:
    """The 5-gram model with the discount that validates best."""
    model = NGram(training, vocabulary)
    scores = {}
    for model.discount in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        scores[model.discount] = model.bits(valid)
    model.discount = min(scores, key=scores.__getitem__)
    return model


# --- the model --------------------------------------------------------------------------------------------------------


class Composer(ts.nn.Module):
    """The logits of the next character, given all before it: embedding, LSTM, linear map."""

    def __init__(self, characters: int, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        self.embedding = ts.nn.Embedding(characters, embedding)
        self.layers = ts.nn.LSTM(embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.dropout = ts.nn.Dropout(dropout)
        self.output = ts.nn.Linear(hidden, characters)

    def __call__(self, ids: Any, state: Any = None, lengths: Any = None) -> tuple[ts.Tensor, Any]:
        """(T, B) ids to (T, B, V) logits and the state after them."""
        outputs, state = self.layers(self.embedding(ts.tensor(ids)), state, lengths=lengths)
        return self.output(self.dropout(outputs)), state

    def step(self, ids: ts.Tensor, state: Any) -> tuple[ts.Tensor, Any]:
        """One step of B rows: (B,) ids to (B, V) logits; the state has its rows first, as decoding wants it."""
        logits, state = self(ids.unsqueeze(0), tuple(part.transpose(0, 1) for part in state))
        return logits.squeeze(0), tuple(part.transpose(0, 1) for part in state)

    def first_state(self, batch: int) -> Any:
        zeros = ts.zeros((batch, self.layers.num_layers, self.layers.hidden_size))
        return zeros, zeros


def loss_of(model: Composer, batch: Any) -> dict[str, Any]:
    ids, lengths = batch
    logits, _ = model(ids[:-1], lengths=lengths - 1)
    return {"loss": sequence_cross_entropy(logits, ts.tensor(ids[1:]), lengths - 1), "count": (lengths - 1).sum()}


def compose(model: Composer, vocabulary: Vocabulary, count: int, temperature: float, longest: int) -> list[str]:
    """Tunes that the model writes; one that has not ended after ``longest`` characters is cut off there."""
    model.eval()
    start = ts.tensor([vocabulary.begin_id] * count)
    drawn = ts.nn.sample(model.step, model.first_state(count), start, vocabulary.end_id, longest, temperature)
    return ["".join(vocabulary.decode(row)) for row in drawn.tokens.numpy()]


# --- what music21 says of tunes ---------------------------------------------------------------------------------------


def music21() -> Any:
    """The package, with a name given to what is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import music21
    except ImportError as error:
        raise UsageError(f"music21 cannot be imported ({error}); with all that it needs: pip install music21") from error
    return music21


def read(abc: str) -> Any:
    """music21's score of a tune, or None if it cannot be read or has no notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            score = music21().converter.parse(f"X:1\nT:\n{abc}\n", format="abc")
            return score if len(score.recurse().notes) else None
        except Exception:  # whatever it raises, it could not read the tune
            return None


def keeps_time(score: Any) -> bool:
    """Whether all bars are of the length that the meter asks for, but for the first, the last, and those at a repeat."""
    bars = list(score.recurse().getElementsByClass("Measure"))
    if len(bars) < 4:
        return False
    meter, last = None, len(bars) - 1
    lengths = []
    for bar in bars:
        meter = bar.timeSignature or meter
        lengths.append(None if meter is None else float(bar.duration.quarterLength / meter.barDuration.quarterLength))
    at_repeat = [i for i, bar in enumerate(bars) if bar.leftBarline is not None or bar.rightBarline is not None]
    free = {0, last, *at_repeat, *(i + 1 for i in at_repeat)}
    return all(length is not None and abs(length - 1) < 1e-6 for i, length in enumerate(lengths) if i not in free)


def judged(tunes: Sequence[str]) -> tuple[float, float]:
    """The share of tunes that can be read, and that of those that also keep time."""
    scores = [read(tune) for tune in tunes]
    return float(np.mean([s is not None for s in scores])), float(np.mean([s is not None and keeps_time(s) for s in scores]))


def kept(tunes: Sequence[str], folder: Path) -> tuple[str, Any]:
    """The longest tune of at most ``SHOWN`` characters that keeps time, written as ABC and MIDI, and its score.

    MIDI plays repeats out, so a tune is passed over whose repeats do not close. ("", None) if none is left.
    """
    for abc in sorted(tunes, key=len, reverse=True):
        score = read(abc) if len(abc) <= SHOWN else None
        if score is None or not keeps_time(score):
            continue
        try:
            score.write("midi", folder / "tune.mid")
        except music21().exceptions21.Music21Exception:
            continue
        (folder / "tune.abc").write_text(f"X:1\nT:Untitled\n{abc}\n", encoding="utf-8")
        return abc, score
    return "", None


def plot(history: Sequence[dict[str, float]], baseline: float, score: Any, path: Path) -> None:
    """How training went, and the tune as a piano roll."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    for name, label in (("loss", "training"), ("valid/loss", "validation")):
        rows = [(row["step"], row[name] * BITS) for row in history if name in row]
        left.plot(*zip(*rows, strict=True), "o-" if name != "loss" else "-", markersize=3, label=label)
    left.axhline(baseline, color="gray", linestyle=":", label="5-gram, validation")
    left.set(xlabel="step", ylabel="bits a character", title="it learns the tunes", ylim=(None, baseline + 1.2))
    left.grid(alpha=0.3)
    left.legend()
    flat = score.flatten()
    pitches = []
    for note in flat.notes:
        for pitch in note.pitches:
            start, length = float(note.offset), float(note.duration.quarterLength)
            right.broken_barh([(start, max(length, 0.05))], (pitch.midi - 0.4, 0.8), color="C0")
            pitches.append(pitch.midi)
    for bar in score.recurse().getElementsByClass("Measure"):
        right.axvline(float(bar.offset), color="gray", linewidth=0.4)
    named = sorted(set(pitches))[:: max(1, len(set(pitches)) // 12)]
    right.set_yticks(named, [music21().pitch.Pitch(midi=midi).nameWithOctave for midi in named])
    right.set(xlabel="quarter notes", title="a tune that it wrote")
    figure.savefig(path, dpi=110)


# --- the run ----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Baseline, training, held-out bits, tunes."""
    tunes = load_tunes()
    music21()  # say at once that it is missing, and not after training
    training, valid, test = split(tunes, options.seed)
    characters = sorted({character for tune in tunes for character in tune.abc})
    vocabulary = Vocabulary(characters, unknown=None, begin=BEGIN, end=END)
    print(f"tunes: {len(training):,} to train with, {len(valid)} to validate, {len(test)} held out")
    began = time.monotonic()
    ngram = best_ngram(training, valid, len(characters) + 1)
    baseline = ngram.bits(test)
    print(f"{ORDER}-gram, discount {ngram.discount}: {baseline:.3f} bits a character ({time.monotonic() - began:.0f} s)")

    began = time.monotonic()
    encoded = [[vocabulary.encode(tune, begin=True, end=True) for tune in part] for part in (training, valid, test)]
    encoded[0] = [ids[: options.longest] for ids in encoded[0]]
    lengths = [[len(ids) for ids in part] for part in encoded]
    loader = ts.data.Loader(encoded[0], options.batch, shuffle=True, seed=options.seed, lengths=lengths[0], drop_last=True)
    valid_loader, test_loader = (ts.data.Loader(encoded[i], 64, lengths=lengths[i]) for i in (1, 2))
    model = Composer(len(vocabulary), options.embedding, options.hidden, options.layers, options.dropout)
    optimizer = ts.optim.Adam(model.parameters(), lr=options.lr)
    schedule = rising_then_falling(optimizer, options.steps)
    trainer = Trainer(model, optimizer, loss_of, folder=options.out / "model", schedule=schedule, clip=1.0)
    if not options.quiet:
        print(f"LSTM: {parameters(model):,} parameters, {options.steps} steps")
    train(trainer, loader, options, steps=options.steps, valid=valid_loader, valid_every=max(1, options.steps // 12))
    bits = trainer.evaluate(test_loader)["loss"] * BITS
    print(f"LSTM: {bits:.3f} bits a character ({time.monotonic() - began:.0f} s), {baseline - bits:.3f} fewer")

    written = compose(model, vocabulary, options.tunes, options.temperature, options.longest)
    for what, some in (("written", written), ("held out", test[: options.tunes])):
        readable, in_time = judged(some)
        print(f"{len(some)} tunes {what}: {readable:.1%} can be read by music21, {in_time:.1%} keep time in every bar")
    known = set().union(*map(phrases, training))
    copied = np.mean([not known.isdisjoint(phrases(tune)) for tune in written])
    print(f"{copied:.1%} of those written have {ALIKE} notes in a row of a training tune, in whatever key")
    abc, score = kept(written, options.out)
    if score is None:
        print("no tune keeps time and can be played, so none is kept; train longer")
        return
    plot(trainer.history, ngram.bits(valid), score, options.out / "music.png")
    if not options.quiet:
        print(f"\n{abc}\n")
    print(f"see {options.out / 'tune.abc'}, tune.mid and music.png")


def parser() -> Parser:
    result = example_parser("music", __doc__)
    add = result.add_argument
    add("--steps", type=SIZE, default=2400, metavar="N", help="updates [%(default)s]")
    add("--hidden", type=SIZE, default=256, metavar="H", help="hidden units [%(default)s]")
    add("--layers", type=SIZE, default=1, metavar="L", help="recurrent layers [%(default)s]")
    add("--embedding", type=SIZE, default=32, metavar="E", help="units of a character's embedding [%(default)s]")
    add("--dropout", type=number(float, 0, 1), default=0.3, metavar="P", help="of a layer's outputs [%(default)s]")
    add("--batch", type=SIZE, default=16, metavar="B", help="tunes of an update [%(default)s]")
    add("--lr", type=number(float, 0), default=5e-3, metavar="X", help="Adam's largest learning rate [%(default)s]")
    add("--longest", type=SIZE, default=700, metavar="T", help="characters of a tune to learn from or to write [%(default)s]")
    add("--tunes", type=SIZE, default=200, metavar="N", help="tunes to write [%(default)s]")
    add("--temperature", type=number(float, 0), default=0.8, metavar="X", help="of the tunes that it writes [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("music", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
