"""From raw data to the arrays that a model reads: vocabularies, streams of text, corpora."""

from __future__ import annotations

from tinyseq.data.corpora import read_text, shakespeare, split_plays
from tinyseq.data.streams import Chunk, TextStream
from tinyseq.data.vocabulary import CharVocabulary

__all__ = ["CharVocabulary", "Chunk", "TextStream", "read_text", "shakespeare", "split_plays"]
