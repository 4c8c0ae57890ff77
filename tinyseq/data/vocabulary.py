"""Characters and words as integers and back."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError, DTypeError

__all__ = ["CharVocabulary", "Vocabulary"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class CharVocabulary:
    """The characters that a model knows, numbered from 0 in the order of their code points.

    Args:
        text: any text; its distinct characters are the vocabulary.
        unknown: reserve one more id, after all others, that stands for every character that is not in ``text``.
            It is decoded as U+FFFD. Without it such a character is an error.

    Attributes:
        characters: the characters in the order of their ids. ``CharVocabulary(v.characters)`` is ``v`` again.
        unknown_id: the reserved id, or None.

    Raises:
        DataError: the text is empty.

    >>> vocabulary = CharVocabulary("hello world")
    >>> len(vocabulary), vocabulary.characters
    (8, ' dehlorw')
    >>> vocabulary.encode("hold").tolist()
    [3, 5, 4, 1]
    >>> vocabulary.decode([3, 2, 4, 4, 5])
    'hello'
    >>> CharVocabulary("abc", unknown=True).encode("cab!").tolist()
    [2, 0, 1, 3]
    """

    def __init__(self, text: str, unknown: bool = False) -> None:
        codes = np.unique(_code_points(text))
        if not codes.size:
            raise DataError("a vocabulary needs at least one character, but the text is empty; give the training text")
        self._codes = codes
        self.characters = _text(codes)
        self.unknown_id = len(codes) if unknown else None

    def __len__(self) -> int:
        """How many ids there are, the reserved one included."""
        return len(self._codes) + (self.unknown_id is not None)

    def __repr__(self) -> str:
        return f"CharVocabulary({self.characters!r}, unknown={self.unknown_id is not None})"

    def encode(self, text: str) -> npt.NDArray[np.int64]:
        """The ids of the characters of ``text``, an array of shape (N,).

        Raises:
            DataError: a character is not in the vocabulary, and no id is reserved for unknown ones.
        """
        wanted = _code_points(text)
        ids = np.minimum(np.searchsorted(self._codes, wanted), len(self._codes) - 1)
        missing = self._codes[ids] != wanted
        if missing.any():
            if self.unknown_id is None:
                place = int(missing.argmax())
                raise DataError(
                    f"the character {text[place]!r} (U+{ord(text[place]):04X}) at position {place} is not among the "
                    f"{len(self)} of the vocabulary; build the vocabulary from this text too, or with unknown=True"
                )
            ids[missing] = self.unknown_id
        return ids.astype(np.int64, copy=False)

    def decode(self, ids: Any) -> str:
        """The text that ``ids``, a sequence, array or tensor of integers of shape (N,), stands for.

        Raises:
            DataError: an id is negative or not less than ``len(self)``.
            DTypeError: the ids are not integers.
        """
        return _text(np.append(self._codes, np.uint32(ord(REPLACEMENT)))[_checked(ids, len(self))])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary to a JSON file.

        Raises:
            DataError: the file cannot be written.
        """
        _write(path, {"characters": [ord(c) for c in self.characters], "unknown": self.unknown_id is not None})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a vocabulary that :meth:`save` wrote.

        Raises:
            DataError: the file cannot be read, or holds no such vocabulary.
        """
        content = _read(path)
        try:
            return cls("".join(map(chr, content["characters"])), content["unknown"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _foreign(path, error) from error


class Vocabulary:
    """The tokens that a model knows (words, phonemes, labels), numbered from 0: the special ones first.

    Args:
        tokens: the tokens that are not special, in the order of their ids.
        pad: the token that fills up a batch; it has the id 0.
        unknown: what stands for every token that is not known; without one such a token is an error.
        begin: what stands before a sequence, and
        end: after it.
        extra: more special tokens.

    Each of the special ones may be None, for none.

    Attributes:
        tokens: all tokens, in the order of their ids.
        pad_id, unknown_id, begin_id, end_id: the ids of the special ones, or None.

    Raises:
        DataError: a token occurs twice, is no text, or there is none.

    >>> vocabulary = Vocabulary.build([["the", "cats"], ["the", "dogs"]], min_count=2, begin="<s>", end="</s>")
    >>> vocabulary.tokens
    ('<pad>', '<unk>', '<s>', '</s>', 'the')
    >>> vocabulary.encode(["the", "cats"], begin=True, end=True).tolist()
    [2, 4, 1, 3]
    >>> vocabulary.decode([2, 4, 1, 3, 0])
    ['the', '<unk>']
    """

    def __init__(
        self,
        tokens: Iterable[str],
        *,
        pad: str | None = "<pad>",
        unknown: str | None = "<unk>",
        begin: str | None = None,
        end: str | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        special = [token for token in (pad, unknown, begin, end, *extra) if token is not None]
        self.tokens = (*special, *tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if not self.tokens:
            raise DataError("a vocabulary needs at least one token")
        for token in self.tokens:
            if not isinstance(token, str):
                raise DataError(f"tokens are texts, not {type(token).__name__}: {token!r}")
        if len(self._ids) < len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise DataError(f"the token {twice!r} occurs twice in the vocabulary; name the special ones otherwise")
        self.pad_id, self.unknown_id, self.begin_id, self.end_id = (
            None if token is None else self._ids[token] for token in (pad, unknown, begin, end)
        )
        self._extra = tuple(extra)

    @classmethod
    def build(
        cls, sequences: Iterable[Iterable[str]], *, min_count: int = 1, max_size: int | None = None, **special: Any
    ) -> Self:
        """The tokens of the training sequences, the most frequent first, equals in alphabetical order.

        Args:
            sequences: each a list of tokens; a text counts as its characters.
            min_count: how often a token must occur.
            max_size: how many tokens there may be, the special ones included.
            special: the special tokens, as the class takes them.

        Raises:
            DataError: ``max_size`` leaves no room for the special tokens.
        """
        counts = Counter(token for sequence in sequences for token in sequence)
        names = {"pad": "<pad>", "unknown": "<unk>", **special}
        reserved = {*(names.get(name) for name in ("pad", "unknown", "begin", "end")), *special.get("extra", ())} - {None}
        if max_size is not None and max_size < len(reserved):
            raise DataError(f"a vocabulary of max_size={max_size} has no room for its {len(reserved)} special tokens")
        ranked = sorted((-count, token) for token, count in counts.items() if count >= min_count and token not in reserved)
        room = None if max_size is None else max_size - len(reserved)
        return cls([token for _, token in ranked[:room]], **special)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._ids

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.tokens[:8])) + (", ..." if len(self) > 8 else "")
        return f"<Vocabulary of {len(self)}: {shown}>"

    def id_of(self, token: str) -> int:
        """The id of a token.

        Raises:
            DataError: it is not known, and no token stands for unknown ones.
        """
        found = self._ids.get(token, self.unknown_id)
        if found is None:
            raise DataError(
                f"the token {token!r} is not among the {len(self)} of the vocabulary; build it from this text too, or "
                "with a token for unknown ones"
            )
        return found

    def encode(self, tokens: Iterable[str], begin: bool = False, end: bool = False) -> npt.NDArray[np.int64]:
        """The ids (N,) of a sequence, if asked for with those of the tokens that begin and end one.

        Raises:
            DataError: a token is not known, and no token stands for unknown ones; or there is no token to begin or end.
        """
        ids = [self.id_of(token) for token in tokens]
        for wanted, which, name in ((begin, self.begin_id, "begin"), (end, self.end_id, "end")):
            if wanted and which is None:
                raise DataError(f"this vocabulary has no token to {name} a sequence; make it with {name}='...'")
        first, last = [self.begin_id] * begin, [self.end_id] * end
        return np.array([*first, *ids, *last], np.int64)

    def decode(self, ids: Any) -> list[str]:
        """The tokens of ``ids`` (N,) up to the one that ends a sequence, without those that pad and begin.

        Raises:
            DataError: an id is negative or not less than ``len(self)``.
            DTypeError: the ids are not integers.
        """
        tokens = []
        for i in _checked(ids, len(self)).tolist():
            if i == self.end_id:
                break
            if i not in (self.pad_id, self.begin_id):
                tokens.append(self.tokens[i])
        return tokens

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary to a JSON file.

        Raises:
            DataError: the file cannot be written.
        """
        named = {"pad": self.pad_id, "unknown": self.unknown_id, "begin": self.begin_id, "end": self.end_id}
        special = {name: None if i is None else self.tokens[i] for name, i in named.items()}
        count = sum(i is not None for i in named.values()) + len(self._extra)
        _write(path, {"special": special, "extra": self._extra, "tokens": self.tokens[count:]})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a vocabulary that :meth:`save` wrote.

        Raises:
            DataError: the file cannot be read, or holds no such vocabulary.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Vocabulary(["a", "b"], unknown=None).save(f"{folder}/words.json")
        ...     Vocabulary.load(f"{folder}/words.json").tokens
        ('<pad>', 'a', 'b')
        """
        content = _read(path)
        try:
            return cls(content["tokens"], extra=tuple(content["extra"]), **content["special"])
        except (KeyError, TypeError) as error:
            raise _foreign(path, error) from error


def _checked(ids: Any, count: int) -> npt.NDArray[np.int64]:
    array = np.asarray(ids).reshape(-1)
    if not array.size:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"ids are integers, not {array.dtype}; cast them first")
    outside = (array < 0) | (array >= count)
    if outside.any():
        raise DataError(
            f"the id {array[outside.argmax()]} at position {outside.argmax()} is outside the vocabulary's 0 to "
            f"{count - 1}; decode with the vocabulary that encoded"
        )
    return array.astype(np.int64)


def _write(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    try:
        Path(path).write_text(json.dumps(content, ensure_ascii=True, indent=1) + "\n", encoding="ascii")
    except OSError as error:
        raise DataError(f"cannot write the vocabulary {os.fspath(path)!r}: {error.strerror or error}") from error


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the vocabulary {os.fspath(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise _foreign(path, error) from error
    if not isinstance(content, dict):
        raise _foreign(path, TypeError("no object"))
    return content


def _foreign(path: str | os.PathLike[str], error: Exception) -> DataError:
    return DataError(f"{os.fspath(path)!r} holds no vocabulary of this kind ({type(error).__name__}: {error}); save it anew")


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32, copy=False)


def _text(codes: npt.NDArray[np.uint32]) -> str:
    return codes.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")
