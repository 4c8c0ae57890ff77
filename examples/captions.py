"""Captions: the picture of an emoji to its name.

    npm install --prefix runs/data --ignore-scripts emoji-datasource@16.0.0      # pictures and names, 25 MB
    python examples/captions.py --backend numba

Each emoji of Unicode has a name, and is drawn by Google and by Twitter in 32 x 32 pixels. One bidirectional LSTM reads
the rows of a drawing from top to bottom, another its columns, and an LSTM with attention (Bahdanau et al. 2015; for
pictures Xu et al. 2015) writes the words of the name.

Names are held out: both drawings of an emoji are in one part (training, validation, test), and with them those in other
skin colours, of another gender, or with the same pixels. So many a word that is asked for was never seen; a half of the
answer can be right, and the measure says how much: F1 of the words of a name, whatever their order, and ROUGE-L (Lin
2004), the F1 of the words in the same order. The baselines are the constant answer that does best in training, and the
name of the nearest picture by its pixels.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shared import SIZE, example_parser, parameters, rising_then_falling, run_example, train

import tinyseq as ts
from tinyseq.console import Parser, UsageError, number
from tinyseq.data import Vocabulary, pad_sequences, split_by_group
from tinyseq.nn.functional import sequence_cross_entropy
from tinyseq.train import Trainer

SIDE = 32  # pixels
SHARES = (0.7, 0.1, 0.2)
SETS = ("google", "twitter")
LONGEST = 10  # words of an answer
LOOKS = {"FE0F", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}  # shown as a picture; skin colours
PERSON, CHILD, FAMILY = "1F9D1", "1F9D2", "1F46A"
ADULTS, CHILDREN = ("1F468", "1F469"), ("1F466", "1F467")
GENDERS = [  # emojis that have a code of their own for each gender
    ("1F474", "1F475", "1F9D3"),  # older people
    ("1F385", "1F936", "1F9D1-1F384"),  # Father and Mother Christmas
    ("1F934", "1F478", "1FAC5"),  # with a crown
    ("1F46B", "1F46C", "1F46D", "1F9D1-1F91D-1F9D1"),  # holding hands
    ("1F930", "1FAC3", "1FAC4"),  # pregnant
    ("1F483", "1F57A"),  # dancing
]
INSTALL = "npm install --prefix runs/data --ignore-scripts emoji-datasource@16.0.0"


class Emoji(NamedTuple):
    """Code points, the words of the name, drawings (N, 32, 32, 4), and those in other skin colours (M, 32, 32, 4)."""

    code: str
    name: list[str]
    drawings: np.ndarray
    coloured: np.ndarray


# --- the pictures -----------------------------------------------------------------------------------------------------


def words_of(name: str) -> list[str]:
    """The words of a name in small letters.

    >>> words_of("COUPLE WITH HEART: MAN, HEAD-BANDAGE"), words_of("O\u2019CLOCK")
    (['couple', 'with', 'heart', 'man', 'head', 'bandage'], ['o\u2019clock'])
    """
    return re.findall(r"\w+(?:['\u2019]\w+)*", name.lower())


def kind(code: str) -> str:
    """The code of an emoji without gender, skin colour and direction: what has the same is on one side of the split.

    >>> kind("1F3C3-200D-2642-FE0F-200D-27A1-FE0F"), kind("1F469-1F3FB-200D-1F33E"), kind("1F478"), kind("2640-FE0F")
    ('1F3C3', '1F9D1-1F33E', '1F934', '2640')
    """
    parts = ["-".join(point for point in part.split("-") if point not in LOOKS) for part in code.split("-200D-")]
    parts = [parts[0], *(part for part in parts[1:] if part not in ("2640", "2642", "27A1"))]
    parts = [PERSON if part in ADULTS else CHILD if part in CHILDREN else part for part in parts]
    if len(parts) > 1 and set(parts) <= {PERSON, CHILD}:
        return FAMILY
    found = "-".join(parts)
    return next((codes[0] for codes in GENDERS if found in codes), found)


def load_emojis(folder: Path) -> list[Emoji]:
    """All emojis that both have drawn.

    Raises:
        UsageError: they are not there.
    """
    from matplotlib.image import imread

    if not (folder / "emoji.json").exists():
        raise UsageError(f"the emojis are not in {str(folder)!r}: {INSTALL}, or say with --emojis where they are")
    sheets = [imread(folder / "img" / name / "sheets" / "32.png") for name in SETS]

    def cut(entries: Sequence[dict[str, Any]]) -> np.ndarray:
        """(N, 32, 32, 4): both drawings of each."""
        found = np.zeros((len(entries), len(SETS), SIDE, SIDE, 4), np.float32)
        for i, entry in enumerate(entries):
            x, y = (entry[key] * (SIDE + 2) + 1 for key in ("sheet_x", "sheet_y"))
            found[i] = [sheet[y : y + SIDE, x : x + SIDE] for sheet in sheets]
        return solid(found.reshape(-1, SIDE, SIDE, 4))

    def drawn(entry: dict[str, Any]) -> bool:
        return all(entry[f"has_img_{name}"] for name in SETS)

    entries = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    return [
        Emoji(entry["unified"], words_of(entry["name"]), cut([entry]), cut(list(filter(drawn, others))))
        for entry in entries
        if drawn(entry)
        for others in [entry.get("skin_variations", {}).values()]
    ]


def solid(pictures: np.ndarray) -> np.ndarray:
    """(..., 4) red, green, blue and opacity: colours as much as they are opaque, so that what is not seen is zeros."""
    return np.concatenate([pictures[..., :3] * pictures[..., 3:], pictures[..., 3:]], -1)


def groups(emojis: Sequence[Emoji], near: float = 0.01) -> list[str]:
    """What may not be parted: the kind, the same one for kinds of which two drawings by one hand hardly differ."""
    found = [kind(emoji.code) for emoji in emojis]
    for i in range(len(emojis[0].drawings)):
        flat = np.stack([emoji.drawings[i].ravel() for emoji in emojis])
        for a, b in np.argwhere(distances(flat, flat) < near):
            if a < b and found[a] != found[b]:
                found = [found[a] if group == found[b] else group for group in found]
    return found


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, P) and (M, P) to (N, M): the root of the mean square of the differences."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0) / a.shape[1])


class Parts(NamedTuple):
    training: list[Emoji]
    valid: list[Emoji]
    test: list[Emoji]


def split(emojis: list[Emoji], seed: int) -> Parts:
    return Parts(*([emojis[i] for i in part] for part in split_by_group(groups(emojis), SHARES, seed)))


def limited(emojis: Sequence[Emoji], words: Vocabulary) -> list[Emoji]:
    """Names without the words that are not among these, and without the emojis of which nothing is left."""
    found = [emoji._replace(name=[word for word in emoji.name if word in words]) for emoji in emojis]
    return [emoji for emoji in found if emoji.name]


class Pairs(NamedTuple):
    """Each drawing (N, 32, 32, 4) with the name it should get."""

    pictures: np.ndarray
    names: list[list[str]]


def pairs(emojis: Sequence[Emoji]) -> Pairs:
    names = [emoji.name for emoji in emojis for _ in emoji.drawings]
    return Pairs(np.concatenate([emoji.drawings for emoji in emojis]), names)


# --- how good an answer is --------------------------------------------------------------------------------------------


def f_score(common: int, answer: Sequence[str], name: Sequence[str]) -> float:
    """F1, the harmonic mean of the shares of an answer and of a name that are common to both."""
    return 2 * common / (len(answer) + len(name)) if common else 0.0


def words_f1(answer: Sequence[str], name: Sequence[str]) -> float:
    """F1 of the words, whatever their order.

    >>> words_f1(["woman", "red", "hair"], ["hair", "red", "hair", "dye"]) == 2 * 2 / 7
    True
    """
    return f_score((Counter(answer) & Counter(name)).total(), answer, name)


def rouge_l(answer: Sequence[str], name: Sequence[str]) -> float:
    """F1 of the longest sequence of words that both have in this order, with any others between (Lin 2004).

    >>> rouge_l(["woman", "red", "hair"], ["hair", "red"]) == 2 * 1 / 5
    True
    """
    row = [0] * (len(name) + 1)
    for word in answer:
        before = row
        row = [0]
        for j, other in enumerate(name):
            row.append(before[j] + 1 if word == other else max(before[j + 1], row[j]))
    return f_score(row[-1], answer, name)


class Scores(NamedTuple):
    """Of each answer (N,): F1 of its words, ROUGE-L, and whether it is the name."""

    words: np.ndarray
    rouge: np.ndarray
    exact: np.ndarray

    def __str__(self) -> str:
        shares = f"F1 of the words {self.words.mean():.1%}, ROUGE-L {self.rouge.mean():.1%}"
        return f"{shares}, the very name {self.exact.mean():.1%}"


def scores(answers: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> Scores:
    both = list(zip(answers, names, strict=True))
    columns = ([measure(a, b) for a, b in both] for measure in (words_f1, rouge_l, lambda a, b: list(a) == list(b)))
    return Scores(*map(np.array, columns))


# --- the baselines ----------------------------------------------------------------------------------------------------


def constant(names: Sequence[Sequence[str]], most: int = 6) -> list[str]:
    """The answer of the few most frequent words that has the best F1 for all these names.

    >>> constant([["face"], ["red", "face"], ["dog", "face"], ["flag"]])
    ['face']
    """
    frequent = [word for word, _ in Counter(word for name in names for word in name).most_common(most)]
    answers = [frequent[: i + 1] for i in range(len(frequent))]
    return max(answers, key=lambda answer: np.mean([words_f1(answer, name) for name in names]))


def coarse(pictures: np.ndarray, pixels: int) -> np.ndarray:
    """(N, 32, 32, 4) to (N, 32 / pixels, 32 / pixels, 4): the mean of each square."""
    side = SIDE // pixels
    return pictures.reshape(-1, side, pixels, side, pixels, 4).mean((2, 4))


def nearest(known: Pairs, asked: np.ndarray, pixels: int) -> list[list[str]]:
    """For each picture the name of the nearest known one; squares of so many pixels a side count by their mean."""
    theirs, ours = (coarse(pictures, pixels).reshape(len(pictures), -1) for pictures in (asked, known.pictures))
    return [known.names[i] for i in distances(theirs, ours).argmin(1)]


# --- the model --------------------------------------------------------------------------------------------------------


class Pictures(ts.nn.Module):
    """Two bidirectional LSTMs, one over the rows of pictures and one over their columns.

    Args:
        hidden: units of each direction.
        squares: pixels a side of the squares that are seen by their mean; S = 32 / squares rows are read.
        dropout: the probability of dropping a unit of their outputs, in training.
    """

    def __init__(self, hidden: int, squares: int, dropout: float) -> None:
        side = SIDE // squares
        self.shape = (side, squares, -1, side, squares, 4)
        self.rows = ts.nn.LSTM(4 * side, hidden, bidirectional=True)
        self.columns = ts.nn.LSTM(4 * side, hidden, bidirectional=True)
        self.dropout = ts.nn.Dropout(dropout)

    def __call__(self, pictures: ts.Tensor, lengths: Any = None) -> tuple[ts.Tensor, Any]:
        """(32, B, 32, 4) rows of pixels to (2 S, B, 2 H), what was read after each row and then after each column."""
        seen = pictures.reshape(self.shape).mean((1, 4))
        rows, first = self.rows(seen.flatten(2))
        columns, second = self.columns(seen.transpose(0, 2).flatten(2))
        return self.dropout(ts.concatenate([rows, columns])), (first, second)


def captioner(words: Vocabulary, options: Namespace) -> ts.nn.EncoderDecoder:
    nn, size, hidden = ts.nn, options.embedding, options.hidden
    inner = nn.LSTMCell(size + 2 * hidden, 2 * hidden)
    cell = nn.BahdanauCell(inner, nn.AdditiveAttention(2 * hidden, 2 * hidden, hidden))
    output = nn.Sequential(nn.Dropout(options.dropout), nn.Linear(cell.output_size, len(words)))
    decoder = nn.RecurrentDecoder(nn.Embedding(len(words), size, padding_idx=0), cell, output, options.dropout)
    bridge = nn.Bridge(8 * hidden, inner)
    return nn.EncoderDecoder(Pictures(hidden, options.squares, options.dropout), decoder, words.begin_id, words.end_id, bridge)


class Batch(NamedTuple):
    pictures: np.ndarray
    names: np.ndarray
    lengths: np.ndarray


class Drawings:
    """Emojis to learn from: in each batch one drawing of each, in any skin colour, changed a little.

    It is moved by a few pixels and its red, green and blue are made stronger or weaker, and where the name does not
    tell left from right, half of the time it is mirrored.
    """

    def __init__(self, emojis: Sequence[Emoji], words: Vocabulary, options: Namespace) -> None:
        self.emojis = emojis
        self.words = words
        self.moved, self.tint = options.moved, options.tint

    def batch(self, emojis: Sequence[Emoji]) -> Batch:
        chances = ts.random.rand((len(emojis), 3)).numpy()
        moves = ts.random.randint(-self.moved, self.moved + 1, (len(emojis), 2)).numpy()
        tints = ts.random.uniform((len(emojis), 3), 1 - self.tint, 1 + self.tint).numpy()
        shown = []
        for emoji, (coloured, which, mirrored), move, tint in zip(emojis, chances, moves, tints, strict=True):
            drawings = emoji.coloured if coloured < 0.5 and len(emoji.coloured) else emoji.drawings
            picture = shifted(drawings[int(which * len(drawings))], *move) * [*tint, 1]
            sided = any(re.match("left|right", word) for word in emoji.name)
            shown.append(picture[:, ::-1] if mirrored < 0.5 and not sided else picture)
        names = pad_sequences([self.words.encode(emoji.name, end=True) for emoji in emojis])
        return Batch(np.stack(shown, 1).astype(np.float32), *names)

    def loader(self, size: int, seed: int) -> ts.data.Loader:
        return ts.data.Loader(self.emojis, size, shuffle=True, seed=seed, collate=self.batch, drop_last=True)


def shifted(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    """A picture moved by a few pixels; what comes in is empty.

    >>> shifted(np.arange(1, 5).reshape(2, 2, 1), 1, -1)[..., 0].tolist()
    [[0, 0], [2, 0]]
    """
    height, width = picture.shape[:2]
    result = np.zeros_like(picture)
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = picture[
        max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)
    ]
    return result


def loss_of(model: ts.nn.EncoderDecoder, batch: Batch) -> dict[str, Any]:
    logits, _ = model(batch.pictures, batch.names, target_lengths=batch.lengths)
    return {"loss": sequence_cross_entropy(logits, ts.tensor(batch.names), batch.lengths), "count": batch.lengths.sum()}


class Answer(NamedTuple):
    """The words of an answer, and the weights (words and the end, 2 S) with which rows and columns were looked at."""

    words: list[str]
    weights: np.ndarray


def answers(model: ts.nn.EncoderDecoder, words: Vocabulary, pictures: np.ndarray) -> list[Answer]:
    """What the model calls pictures (N, 32, 32, 4), taking the likeliest word at every step."""
    model.eval()
    found = model.greedy_search(np.ascontiguousarray(pictures.transpose(1, 0, 2, 3)), max_length=LONGEST)
    said = [words.decode(ids) for ids in found.tokens.numpy()]
    return [Answer(each, looked[: len(each) + 1]) for each, looked in zip(said, found.weights.numpy(), strict=True)]


# --- the run ----------------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A drawing (32, 32, 4), its name, and what it was called."""

    picture: np.ndarray
    name: list[str]
    answer: Answer


def plot(shown: Sequence[Shown], path: Path, words: int = 6) -> None:
    """For each drawing its name, and for each word of the answer the drawing, bright where it was looked at."""
    from matplotlib.figure import Figure

    down = -(-len(shown) // 2)
    figure = Figure(figsize=(12, 1.5 * down + 0.1))
    panels = [[figure.add_axes(box) for box in boxes] for boxes in places(len(shown), words + 1)]
    for (picture, name, answer), line in zip(shown, panels, strict=True):
        white = (picture[..., :3] + 1 - picture[..., 3:]).clip(0, 1)
        line[0].imshow(white, interpolation="nearest")
        line[0].text(0, -13, f"“{' '.join(name)}”", fontsize=9, fontweight="bold", parse_math=False)
        for i, (word, axes) in enumerate(zip(answer.words, line[1:], strict=False)):
            rows, columns = (weights.repeat(SIDE // len(weights)) for weights in np.split(answer.weights[i], 2))
            looked = rows[:, None] + columns
            light = 0.15 + 0.85 * (looked / looked.max())[..., None]
            axes.imshow((light * white + (1 - light) * 0.93).clip(0, 1), interpolation="nearest")
            axes.set_title(word, fontsize=8, pad=3, parse_math=False)
        for axes in line:
            axes.axis("off")
    figure.savefig(path, dpi=110)


def places(lines: int, panels: int) -> list[list[tuple[float, float, float, float]]]:
    """Where the panels of each line stand, in two columns: left, bottom, width and height as shares of the figure."""
    down = -(-lines // 2)
    width, height = 0.48 / panels, 1 / down
    return [
        [
            (line // down * 0.5 + 0.01 + i * width, 1 - (line % down + 0.96) * height, 0.92 * width, 0.56 * height)
            for i in range(panels)
        ]
        for line in range(lines)
    ]


def chosen(found: Sequence[Answer], test: Pairs, score: np.ndarray, count: int = 4) -> list[Shown]:
    """One drawing an emoji: of those named best the ones with most words, and as many spread over all others."""
    first = np.arange(0, len(found), len(SETS))  # of each emoji the first drawing
    order = sorted(first, key=lambda i: (-score[i], -len(test.names[i])))
    names: list[int] = []
    for i in order:
        if len(names) < count and not any(test.names[i][-1] == test.names[j][-1] for j in names):
            names.append(i)
    rest = [i for i in first if score[i] < 1]
    names += rest[len(rest) // (2 * count) :: max(1, len(rest) // count)][:count]
    return [Shown(test.pictures[i], test.names[i], found[i]) for i in names]


def fitted(model: ts.nn.EncoderDecoder, words: Vocabulary, parts: Parts, name: str, options: Namespace) -> None:
    """Train with Adam, its rate falling to nothing, and keep the weights that named best in validation."""
    valid = pairs(parts.valid)
    batches = Drawings(parts.training, words, options).loader(options.batch, options.seed)
    steps = options.epochs * len(batches)
    optimizer = ts.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.decay)
    schedule = rising_then_falling(optimizer, steps)
    found = {"monitor": "valid/f1", "mode": "max"}
    trainer = Trainer(model, optimizer, loss_of, folder=options.out / name, schedule=schedule, clip=1.0, **found)

    def check() -> dict[str, float]:
        found = answers(model, words, valid.pictures)
        return {"f1": float(scores([answer.words for answer in found], valid.names).words.mean())}

    train(trainer, batches, options, steps=steps, valid=check, valid_every=max(1, steps // 12))


def run(options: Namespace) -> None:
    """The model, the baselines, their scores and the picture."""
    began = time.monotonic()
    parts = split(load_emojis(options.emojis), options.seed)
    every = Vocabulary.build((emoji.name for emoji in parts.training), unknown=None)
    known, valid, test = map(pairs, parts)
    names = [emoji.name for emoji in parts.test]
    unseen = np.mean([word not in every for name in names for word in name])
    print(f"names: {len(parts.training):,} to learn from, {len(parts.valid)} to validate, {len(parts.test)} to test")
    print(f"{unseen:.0%} of the words of the test names are in no name to learn from")
    frequent = {"unknown": None, "begin": "<s>", "end": "</s>", "min_count": options.count}
    words = Vocabulary.build((emoji.name for emoji in parts.training), **frequent)
    parts = parts._replace(training=limited(parts.training, words))
    ts.manual_seed(options.seed)
    model = captioner(words, options)
    if not options.quiet:
        print(f"{parameters(model):,} weights, {len(words)} words, {len(parts.training)} names", flush=True)
    fitted(model, words, parts, "model", options)
    found = answers(model, words, test.pictures)
    result = scores([answer.words for answer in found], test.names)

    def checked(choice: tuple[Pairs, int]) -> float:
        return float(scores(nearest(choice[0], valid.pictures, choice[1]), valid.names).words.mean())

    best = max(itertools.product((known, pairs(parts.training)), (1, 2, 4, 8)), key=checked)
    near = scores(nearest(best[0], test.pictures, best[1]), test.names)
    fixed = constant(known.names)
    print(f"{len(test.names)} held-out drawings of {len(parts.test)} names, after {time.monotonic() - began:.0f} s:")
    print(f"  always “{' '.join(fixed)}”: {scores([fixed] * len(test.names), test.names)}")
    kept = "of its frequent words" if best[0] is not known else "of all its words"
    print(f"  the name of the nearest picture, {kept}, by squares of {best[1]}: {near}")
    print(f"  ours: {result}")
    differences = (result.words - near.words).reshape(len(parts.test), -1).mean(1)
    error = differences.std() / np.sqrt(len(differences))
    print(f"  ahead of the nearest picture by {differences.mean():.1%} F1, standard error {error:.1%}")
    plot(chosen(found, test, result.words), options.out / "captions.png")
    print(f"see {options.out / 'captions.png'}")


def parser() -> Parser:
    result = example_parser("captions", __doc__)
    add = result.add_argument
    emojis = Path("runs/data/node_modules/emoji-datasource")
    rate, below_1 = number(float, at_least=0), number(float, at_least=0, below=1)
    add("--emojis", type=Path, default=emojis, metavar="FOLDER", help="where the emojis lie [%(default)s]")
    add("--count", type=SIZE, default=3, metavar="N", help="names with a word, for it to be learned [%(default)s]")
    add("--squares", type=SIZE, choices=(1, 2, 4), default=2, metavar="N", help="pixels that are seen as one [%(default)s]")
    add("--epochs", type=SIZE, default=60, metavar="N", help="over the names [%(default)s]")
    add("--hidden", type=SIZE, default=64, metavar="H", help="units a direction; the decoder has twice as many [%(default)s]")
    add("--embedding", type=SIZE, default=64, metavar="E", help="units of a word [%(default)s]")
    add("--dropout", type=below_1, default=0.3, metavar="P", help="[%(default)s]")
    add("--decay", type=rate, default=0.01, metavar="X", help="of the weights [%(default)s]")
    add("--moved", type=number(int, at_least=0), default=2, metavar="N", help="pixels a drawing moves, at most [%(default)s]")
    add("--tint", type=below_1, default=0.2, metavar="X", help="by which share a colour changes, at most [%(default)s]")
    add("--batch", type=SIZE, default=64, metavar="B", help="drawings of an update [%(default)s]")
    add("--lr", type=rate, default=3e-3, metavar="X", help="Adam's largest learning rate [%(default)s]")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_example("captions", parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())
