"""Summaries: from the description of a Debian package to the one line that stands above it.

    sudo apt-get -o Acquire::Languages=en update      # on Debian: fetches the descriptions, 6 MB, where they are missing
    python examples/summaries.py --backend numba

A bidirectional LSTM reads the first paragraph of a description, and an LSTM with attention (Bahdanau et al. 2015) writes
the line. At every word it may take one of the vocabulary or copy one that it looks at (See et al. 2017): names
above all are in no vocabulary. The answers are those of a beam search with length normalisation.

The measure is ROUGE-L (Lin 2004), the words that two texts share in the same order; the baseline the first words of the
paragraph. Packages that belong together, by their source package or by text, are on one side of the split, and of those with
one text only one is used.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import itertools
import lzma
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, UsageError, number
from tinyseq.data import Vocabulary, pad_sequences
from tinyseq.nn.functional import cross_entropy, sequence_loss
from tinyseq.train import Trainer

Baseline = Callable[[Sequence[str], int], list[str]]
LISTS = Path("/var/lib/apt/lists")
HELPER = Path("/usr/lib/apt/apt-helper")
FETCH = "sudo apt-get -o Acquire::Languages=en update"
SHARES = (0.8, 0.1, 0.1)
ASKED = 32  # paragraphs at once
LONGEST = 20  # words of a line that is written
TINY = 1e-10  # of a probability, so that its logarithm is a number
LOOKED_AT = 200  # held-out pairs among which good and bad ones are shown


class Pair(NamedTuple):
    """A package's name, the words of its paragraph, and those of its line."""

    name: str
    paragraph: list[str]
    line: list[str]


# --- the packages -----------------------------------------------------------------------------------------------------


def find_descriptions() -> Path:
    """The largest of apt's files of English descriptions.

    Raises:
        UsageError: there is none.
    """
    found = [path for path in LISTS.glob("*_Translation-en*") if path.is_file()]
    if not found:
        raise UsageError(f"apt has no English descriptions in {LISTS}: {FETCH}, or say with --data where the file is")
    return max(found, key=lambda path: path.stat().st_size)


def read(path: Path) -> str:
    """The text of a file of descriptions, packed or not.

    Raises:
        UsageError: it is packed with lz4, and apt's helper, which unpacks it, is missing or fails.
    """
    if path.suffix == ".lz4":
        if not HELPER.exists():
            raise UsageError(f"{str(path)!r} is packed with lz4, and {HELPER} is not there to unpack it: lz4 -d, then --data")
        unpacked = subprocess.run([HELPER, "cat-file", path], capture_output=True, check=False)
        if unpacked.returncode:
            raise UsageError(f"{str(path)!r} cannot be unpacked: {unpacked.stderr.decode(errors='replace').strip()}")
        return unpacked.stdout.decode("utf-8")
    opened: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
    with opened.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        return str(file.read())


def parse(text: str) -> Iterator[tuple[str, str, str]]:
    r"""Names, lines and first paragraphs.

    >>> entry = "Package: cat\nDescription-md5: 0\nDescription-en: shows files\n Shows files,\n one by one.\n .\n More.\n"
    >>> list(parse(entry))
    [('cat', 'shows files', 'Shows files, one by one.')]
    """
    pattern = r"^Package: (\S+)\n(?:\S.*\n)*?Description-en: (.+)\n((?: (?!\.\n).*(?:\n|\Z))+)"
    for name, line, paragraph in re.findall(pattern, text, re.MULTILINE):
        yield name, line, " ".join(paragraph.split())


def find_packages(path: Path) -> Path:
    """The list of packages that lies beside a file of descriptions.

    Raises:
        UsageError: there is none.
    """
    prefix = path.name.rpartition("i18n_Translation-en")[0]
    found = sorted(path.parent.glob(f"{prefix}*Packages*"))
    if not found:
        raise UsageError(f"beside {str(path)!r} lies no file Packages, which says which packages belong together: {FETCH}")
    return found[0]


def sources_of(text: str) -> dict[str, str]:
    r"""The source package of each package in a list of packages that has another name than it.

    >>> sources_of("Package: cat\nSource: felines (1.2)\nVersion: 1\n\nPackage: dog\nVersion: 2\n")
    {'cat': 'felines'}
    """
    return dict(re.findall(r"^Package: (\S+)\nSource: (\S+)", text, re.MULTILINE))


def words_of(text: str) -> list[str]:
    """Words in small letters, and the signs that part sentences.

    >>> words_of("A C++ library (e.g. for real-time I/O), by X.Org.")
    ['a', 'c++', 'library', '(', 'e.g', '.', 'for', 'real-time', 'i/o', ')', ',', 'by', 'x.org', '.']
    """
    return re.findall(r"[^\W_]+(?:[-'./&_][^\W_]+)*\+*|[.,:;()]", text.lower())


def line_of(text: str) -> list[str]:
    """A package's line, without the note at its end that tells it from packages beside it.

    >>> line_of("library for reading project files (runtime)"), line_of("cryptocoin client - testsuite")
    (['library', 'for', 'reading', 'project', 'files'], ['cryptocoin', 'client'])
    """
    return words_of(re.sub(r"\s*\([^()]*\)\s*$|\s+--?\s+[^-]*$", "", text))


def pairs_of(text: str, longest: int) -> list[Pair]:
    """A pair for each different paragraph, that of the package with the shortest name; paragraphs are cut to ``longest`` words.

    Left out are lines of fewer than 3 or more than ``LONGEST`` words, paragraphs of fewer than 10, and packages that are
    empty or only have others installed.
    """
    best: dict[str, Pair] = {}
    for name, line, paragraph in sorted(parse(text), key=lambda entry: (len(entry[0]), entry[0])):
        pair = Pair(name, words_of(paragraph)[:longest], line_of(line))
        empty = re.search(r"transitional|dummy|meta-?package|debcargo|dependency package", f"{line} {paragraph}", re.IGNORECASE)
        if len(pair.paragraph) >= 10 and 3 <= len(pair.line) <= LONGEST and not empty:
            best.setdefault(" ".join(pair.paragraph), pair)
    return sorted(best.values())


def families(pairs: Sequence[Pair], sources: dict[str, str]) -> list[str]:
    """For each pair a name that it shares with all of its source package, and all whose paragraphs begin alike."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    own = [f"source {sources.get(pair.name, pair.name)}" for pair in pairs]
    for pair, source in zip(pairs, own, strict=True):
        parent[root("sentence " + " ".join(itertools.takewhile(lambda word: word != ".", pair.paragraph)))] = root(source)
    return [root(source) for source in own]


class Parts(NamedTuple):
    training: list[Pair]
    valid: list[Pair]
    test: list[Pair]


def load_parts(options: argparse.Namespace) -> Parts:
    path = options.data or find_descriptions()
    pairs = pairs_of(read(path), options.length)
    if not pairs:
        raise UsageError(f"{str(path)!r} has no package descriptions; it should be one of apt's Translation-en")
    groups = families(pairs, sources_of(read(find_packages(path))))
    return Parts(*([pairs[i] for i in part] for part in ts.data.split_by_group(groups, SHARES, options.seed)))


# --- the measure and the baselines ------------------------------------------------------------------------------------


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """How many words the longest common subsequence has: those of both, in one order, whatever stands between.

    >>> common("the cat sat on the mat".split(), "a cat on a mat".split())
    3
    """
    best = [0] * (len(b) + 1)
    for word in a:
        before = best.copy()
        for j, other in enumerate(b):
            best[j + 1] = before[j] + 1 if word == other else max(before[j + 1], best[j])
    return best[-1]


def rouge_l(written: Sequence[str], wanted: Sequence[str]) -> float:
    """F1 of ROUGE-L (Lin 2004): the harmonic mean of the common words' share in the one text and in the other.

    Signs do not count, and they part words: "real-time" is two. Words are not reduced to their stems.

    >>> rouge_l(["a", "fast", "real-time", "game"], ["real", "time", "game", "."])
    0.75
    """
    a, b = ([part for word in text for part in re.findall(r"[^\W_]+", word)] for text in (written, wanted))
    return 2 * common(a, b) / (len(a) + len(b)) if a and b else 0.0


def first_words(paragraph: Sequence[str], count: int) -> list[str]:
    return [word for word in paragraph if word[-1] not in ".,:;()"][:count]


def after_is(paragraph: Sequence[str], count: int) -> list[str]:
    """The words after the first "is", "provides" or "contains" and an article, where the sentence says what a package is.

    >>> after_is(words_of("Foo is a library for reading files."), 4)
    ['library', 'for', 'reading', 'files']
    """
    words = first_words(paragraph, len(paragraph))
    place = next((i + 1 for i, word in enumerate(words[:12]) if word in {"is", "are", "provides", "contains", "implements"}), 0)
    return words[place + (words[place : place + 1] in (["a"], ["an"], ["the"])) :][:count]


def first_sentence(paragraph: Sequence[str], count: int) -> list[str]:
    """The first sentence, however long."""
    return first_words(list(itertools.takewhile(lambda word: word != ".", paragraph)), len(paragraph))


BASELINES = {"first words": first_words, "first sentence": first_sentence, 'words after "is a"': after_is}


def scores(written: Sequence[Sequence[str]], pairs: Sequence[Pair]) -> np.ndarray:
    """(N,): ROUGE-L of what was written for each pair."""
    return np.array([rouge_l(words, pair.line) for words, pair in zip(written, pairs, strict=True)])


def best_count(baseline: Baseline, valid: Sequence[Pair]) -> int:
    """How many words a baseline should take, by the validation part."""
    return max(range(1, 21), key=lambda count: scores([baseline(pair.paragraph, count) for pair in valid], valid).mean())


# --- the model --------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Paragraphs as the model reads them, S words of B of them.

    ``ids`` (S, B) are those of the vocabulary; ``first`` (S, B) says at which place the word of a place stands first;
    ``lengths`` (B,) how many words there are.
    """

    ids: np.ndarray
    first: np.ndarray
    lengths: np.ndarray


class Batch(NamedTuple):
    """Pairs: the targets (T, B) as ids of the vocabulary, from which places each may be copied (T, B, S), and how many
    there are of them (B,), the end counted."""

    source: Source
    targets: np.ndarray
    copies: np.ndarray
    counts: np.ndarray


class Texts:
    """Words to numbers. One vocabulary serves paragraphs and lines."""

    def __init__(self, training: Sequence[Pair], min_count: int) -> None:
        texts = (words for pair in training for words in (pair.paragraph, pair.line))
        self.vocabulary = Vocabulary.build(texts, min_count=min_count, begin="<s>", end="</s>")

    def source(self, paragraphs: Sequence[Sequence[str]]) -> Source:
        ids, lengths = pad_sequences([self.vocabulary.encode(words) for words in paragraphs])
        first = pad_sequences([np.array([words.index(word) for word in words]) for words in paragraphs]).values
        return Source(ids, first, lengths)

    def batch(self, pairs: Sequence[Pair]) -> Batch:
        source = self.source([pair.paragraph for pair in pairs])
        targets, counts = pad_sequences([self.vocabulary.encode(pair.line, end=True) for pair in pairs])
        copies = np.zeros((*targets.shape, len(source.ids)), bool)
        for row, pair in enumerate(pairs):
            copies[: len(pair.line), row, : len(pair.paragraph)] = np.array(pair.line)[:, None] == np.array(pair.paragraph)
        return Batch(source, targets, copies, counts)


class Output(ts.nn.Module):
    """(..., O) to the logits of V words, whose weights are their embeddings, and (..., 1), that of not copying."""

    def __init__(self, size: int, embedding: ts.nn.Embedding, dropout: float) -> None:
        super().__init__()
        self.narrow = ts.nn.Linear(size, embedding.embedding_dim)
        self.dropout = ts.nn.Dropout(dropout)
        self.words = ts.nn.Linear(embedding.embedding_dim, embedding.num_embeddings)
        self.words.weight = embedding.weight
        self.gate = ts.nn.Linear(size, 1)

    def __call__(self, features: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
        return self.words(self.dropout(ts.tanh(self.narrow(features)))), self.gate(features)


def summariser(texts: Texts, options: argparse.Namespace) -> ts.nn.EncoderDecoder:
    """A bidirectional LSTM of H units each way, a bridge from its last state, and an LSTM of 2 H units with attention."""
    nn, size, hidden, vocabulary = ts.nn, options.embedding, options.hidden, texts.vocabulary
    embedding = nn.Embedding(len(vocabulary), size, padding_idx=0)
    nn.init.normal_(embedding.weight, std=0.1)  # as output weights, those of N(0, 1) would be far too sure at first
    encoder = nn.RecurrentEncoder(embedding, nn.LSTM(size, hidden, bidirectional=True), options.dropout)
    inner = nn.LSTMCell(size + 2 * hidden, 2 * hidden)
    cell = nn.BahdanauCell(inner, nn.AdditiveAttention(2 * hidden, 2 * hidden, hidden))
    decoder = nn.RecurrentDecoder(embedding, cell, Output(cell.output_size, embedding, options.dropout), options.dropout)
    return nn.EncoderDecoder(encoder, decoder, vocabulary.begin_id, vocabulary.end_id, nn.Bridge(4 * hidden, inner))


class Loss:
    """The cross-entropy of the targets (See et al. 2017, equation 9)::

        P(w) = p_gen P_vocab(w) + (1 - p_gen) sum of a_i over the places i at which w stands

    A word that is not in the vocabulary but in the paragraph can only be copied. One that is in neither counts as the
    unknown word.
    """

    def __init__(self, unknown: int) -> None:
        self.unknown = unknown

    def __call__(self, model: ts.nn.EncoderDecoder, batch: Batch) -> dict[str, Any]:
        (words, gate), weights = model(batch.source.ids, batch.targets, batch.source.lengths, batch.counts)
        own = ts.sigmoid(gate.squeeze(-1))
        targets = ts.tensor(batch.targets)
        generated = ts.exp(-cross_entropy(words.flatten(0, 1), targets.flatten(), reduction="none")).reshape(targets.shape)
        only_copied = (batch.targets == self.unknown) & batch.copies.any(-1)
        copied = ts.where(batch.copies, weights, 0.0).sum(-1)
        losses = -ts.log(ts.where(only_copied, 0.0, own * generated) + (1 - own) * copied + TINY)
        return {"loss": sequence_loss(losses, batch.counts), "count": batch.counts.sum()}


class Summary(NamedTuple):
    """What the model writes; with the weights (words and the end, words of the paragraph) with which it looked at them, and
    how likely it copied (words and the end,)."""

    words: list[str]
    weights: np.ndarray
    copied: np.ndarray


class Writer:
    """The model as a decoder of V + S tokens for a beam search: V words of the vocabulary, S places of the paragraph.

    A word of the paragraph is that of the place at which it stands first, for the vocabulary's part of its probability too.
    """

    def __init__(self, model: ts.nn.EncoderDecoder, vocabulary: Vocabulary) -> None:
        self.decoder = model.decoder
        self.size = len(vocabulary)
        self.never = np.isin(np.arange(self.size), [vocabulary.pad_id, vocabulary.unknown_id, vocabulary.begin_id])

    def begin(self, state: Any, source: Source) -> Any:
        """The state before the first word; rows first, and the same at all steps but for that of the decoder."""
        ids, first = source.ids.T, source.first.T
        places = np.arange(len(source.ids))
        there = (places < source.lengths[:, None])[..., None] & (first[..., None] == places)  # (B, S, S)
        known = np.zeros((len(ids), self.size), bool)
        np.put_along_axis(known, ids, True, 1)
        own = (first == places) & (places < source.lengths[:, None]) & ~self.never[ids]
        return state, *map(ts.tensor, (ids, there.astype("float32"), ~(known | self.never), own.astype("float32")))

    def __call__(self, tokens: ts.Tensor, state: Any) -> Any:
        """Logits (N, V + S), the weights and the gate (N, S + 1), and the next state."""
        inner, ids, there, others, own = state
        place = (tokens - self.size).clip(0).unsqueeze(-1)
        tokens = ts.where(tokens < self.size, tokens, ts.take_along_axis(ids, place, 1).squeeze(-1))
        ((words, gate), weights), inner = self.decoder(tokens, inner)
        words, gate = ts.softmax(words), ts.sigmoid(gate)
        copied = (weights.unsqueeze(1) @ there).squeeze(1)
        here = gate * ts.take_along_axis(words, ids, 1) * own + (1 - gate) * copied
        chances = ts.concatenate([ts.where(others, gate * words, 0.0), here], -1)
        seen = ts.concatenate([weights, 1 - gate], -1)
        return (ts.log(chances + TINY), seen), (inner, ids, there, others, own)


def written(model: ts.nn.EncoderDecoder, texts: Texts, pairs: Sequence[Pair], options: argparse.Namespace) -> list[Summary]:
    """The model's lines for the paragraphs of pairs."""
    model.eval()
    writer = Writer(model, texts.vocabulary)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].paragraph))
    answers: list[Any] = [None] * len(pairs)
    for start in range(0, len(order), ASKED):
        places = order[start : start + ASKED]
        source = texts.source([pairs[i].paragraph for i in places])
        with ts.no_grad():
            state = writer.begin(model.encode(source.ids, source.lengths), source)
        first = ts.tensor([texts.vocabulary.begin_id] * len(places))
        search = {"beams": options.beams, "length_penalty": options.length_penalty}
        found = ts.nn.beam_search(writer, state, first, texts.vocabulary.end_id, LONGEST, **search)
        tokens, lengths, seen = (part.numpy()[:, 0] for part in (found.tokens, found.lengths, found.weights))
        for row, i in enumerate(places):
            paragraph, count = pairs[i].paragraph, int(lengths[row])
            words = [
                texts.vocabulary.tokens[token] if token < writer.size else paragraph[token - writer.size]
                for token in tokens[row, :count].tolist()
            ]
            looked = seen[row, : count + 1]
            answers[i] = Summary(words, looked[:, : len(paragraph)], looked[:, -1])
    return answers


# --- results ----------------------------------------------------------------------------------------------------------


def plot(results: dict[str, np.ndarray], path: Path) -> None:
    """How many held-out lines reach which ROUGE-L, model against baselines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 1, 11)
    width = 0.1 / (len(results) + 1)
    for k, (name, found) in enumerate(results.items()):
        heights = 100 * np.histogram(found, edges)[0] / len(found)
        axes.bar(edges[:-1] + (k + 1) * width, heights, width, label=f"{name}: mean {found.mean():.3f}")
    axes.set_xticks(edges)
    axes.set(xlabel="ROUGE-L (F1)", ylabel="held-out lines, %", title="how near the lines come to those of the packages")
    axes.grid(axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def plot_copying(answer: Summary, pair: Pair, path: Path) -> None:
    """Which words each word of a line looks at; beside each, how much of it was copied."""
    rows = [f"{word}, {copied:.0%}" for word, copied in zip([*answer.words, "</s>"], answer.copied, strict=True)]
    title = f"“{pair.name}”: where each word looks, and how much of it is copied"
    figure = ts.draw.attention(answer.weights, pair.paragraph, rows, title=title)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def show(title: str, places: Sequence[int], answers: Sequence[Summary], pairs: Sequence[Pair], found: np.ndarray) -> None:
    print(title)
    for i in places:
        print(f"  {pairs[i].name}: {' '.join(pairs[i].paragraph)}")
        print(f"    package: {' '.join(pairs[i].line)}")
        print(f"    model:   {' '.join(answers[i].words)}   (ROUGE-L {found[i]:.2f})")


def run(options: argparse.Namespace) -> None:
    """The model against the baselines, good and bad lines, and the pictures."""
    parts = load_parts(options)
    texts = Texts(parts.training, options.min_count)
    order = np.random.default_rng(options.seed).permutation(len(parts.test))
    test = [parts.test[i] for i in order[: options.pairs]]
    print(f"pairs: {len(parts.training):,} to train with, {len(parts.valid):,} to validate, {len(test):,} of the test part")
    results: dict[str, np.ndarray] = {}

    began = time.monotonic()
    model = summariser(texts, options)
    if not options.quiet:
        print(f"{parameters(model):,} parameters, {len(texts.vocabulary):,} words, {options.steps} steps")
    loader = ts.data.Loader(
        parts.training,
        options.batch,
        shuffle=True,
        seed=options.seed,
        lengths=[len(pair.paragraph) for pair in parts.training],
        collate=texts.batch,
        drop_last=True,
    )
    valid = ts.data.Loader(
        parts.valid, options.batch, lengths=[len(pair.paragraph) for pair in parts.valid], collate=texts.batch
    )
    optimizer = ts.optim.Adam(model.parameters(), lr=options.lr)
    schedule = rising_then_falling(optimizer, options.steps)
    loss = Loss(texts.vocabulary.unknown_id)
    trainer = Trainer(model, optimizer, loss, folder=options.out / "model", schedule=schedule, clip=1.0)
    train(trainer, loader, options, steps=options.steps, valid=valid, valid_every=max(1, options.steps // 8))
    print(f"{time.monotonic() - began:.0f} s of training")

    answers = written(model, texts, test, options)
    results["model"] = found = scores([answer.words for answer in answers], test)
    for name, baseline in BASELINES.items():
        count = best_count(baseline, parts.valid)
        results[name] = scores([baseline(pair.paragraph, count) for pair in test], test)
        print(f"  {name:18} ROUGE-L {results[name].mean():.3f}" + (f", {count} words" * (baseline is not first_sentence)))
    copied = np.mean([word in pair.paragraph for answer, pair in zip(answers, test, strict=True) for word in answer.words])
    exact = np.mean([answer.words == pair.line for answer, pair in zip(answers, test, strict=True)])
    print(f"  {'model':18} ROUGE-L {found.mean():.3f}; {exact:.1%} are the package's line; {copied:.0%} of words in the text")

    ranked = sorted(range(min(LOOKED_AT, len(test))), key=lambda i: (-found[i], -len(test[i].line), i))
    show("three good ones, of the first 200:", ranked[:3], answers, test, found)
    show("three bad ones:", ranked[-3:], answers, test, found)
    plot({name: results[name] for name in results if name != "first sentence"}, options.out / "summaries.png")
    plot_copying(answers[ranked[0]], test[ranked[0]], options.out / "copying.png")
    print(f"see {options.out / 'summaries.png'} and {options.out / 'copying.png'}")


def parser() -> Parser:
    result = example_parser("summaries", __doc__)
    add = result.add_argument
    add("--data", type=Path, metavar="FILE", help="Translation-en, with Packages beside it [the one in apt's lists]")
    add("--steps", type=SIZE, default=1600, metavar="N", help="updates [%(default)s]")
    add("--hidden", type=SIZE, default=96, metavar="H", help="units a direction; the decoder has twice as many [%(default)s]")
    add("--embedding", type=SIZE, default=96, metavar="E", help="units of an embedding [%(default)s]")
    add("--dropout", type=number(float, at_least=0, below=1), default=0.2, metavar="P", help="of embedded words [%(default)s]")
    add("--batch", type=SIZE, default=64, metavar="B", help="pairs of an update [%(default)s]")
    add("--lr", type=number(float, at_least=0), default=3e-3, metavar="X", help="Adam's largest learning rate [%(default)s]")
    add("--length", type=SIZE, default=40, metavar="S", help="words of a paragraph that are read [%(default)s]")
    add("--min-count", type=SIZE, default=8, metavar="N", help="how often a word of the vocabulary occurs [%(default)s]")
    add("--beams", type=SIZE, default=4, metavar="K", help="of the beam search [%(default)s]")
    add("--length-penalty", type=number(float, at_least=0), default=1.0, metavar="X", help="its exponent [%(default)s]")
    add("--pairs", type=SIZE, default=2000, metavar="N", help="held-out pairs to write lines for, at most [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("summaries", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
