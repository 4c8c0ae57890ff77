"""From raw data to the arrays that a model reads: vocabularies, batches of sequences, streams of text, splits, corpora."""

from __future__ import annotations

from tinyseq.data.batches import Padded, collate_padded, collate_stacked, pad_sequences, unpad
from tinyseq.data.corpora import read_text, shakespeare, split_plays
from tinyseq.data.loader import Loader
from tinyseq.data.prefetch import Prefetch
from tinyseq.data.splits import split_by_group
from tinyseq.data.streams import Chunk, TextStream
from tinyseq.data.vocabulary import CharVocabulary, Vocabulary
from tinyseq.data.windows import Windows

__all__ = [
    "CharVocabulary",
    "Chunk",
    "Loader",
    "Padded",
    "Prefetch",
    "TextStream",
    "Vocabulary",
    "Windows",
    "collate_padded",
    "collate_stacked",
    "pad_sequences",
    "read_text",
    "shakespeare",
    "split_by_group",
    "split_plays",
    "unpad",
]
