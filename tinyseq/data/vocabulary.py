"""Characters as integers and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError, DTypeError

__all__ = ["CharVocabulary"]

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
        array = np.asarray(ids).reshape(-1)
        if not array.size:
            return ""
        if array.dtype.kind not in "iu":
            raise DTypeError(f"ids are integers, not {array.dtype}; cast them first")
        outside = (array < 0) | (array >= len(self))
        if outside.any():
            raise DataError(
                f"the id {array[outside.argmax()]} at position {outside.argmax()} is outside the vocabulary's 0 to "
                f"{len(self) - 1}; decode with the vocabulary that encoded"
            )
        return _text(np.append(self._codes, np.uint32(ord(REPLACEMENT)))[array])


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32, copy=False)


def _text(codes: npt.NDArray[np.uint32]) -> str:
    return codes.astype("<u4", copy=False).tobytes().decode("utf-32-le", "surrogatepass")
