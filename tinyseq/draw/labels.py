"""The words in a picture: an operation's metadata, shapes, numbers and names, each short enough to read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from tinyseq.array_api import INDEX
from tinyseq.backend import backend_of
from tinyseq.draw.diagram import Facts

__all__ = [
    "SHOWN",
    "amount_label",
    "array_label",
    "bytes_label",
    "fact_labels",
    "is_number",
    "metadata_label",
    "number_label",
    "seconds_label",
    "shorten",
    "value_label",
]

LONGEST = 40
SHOWN = ("shape", "value", "kept", "seconds", "gradient")  # the facts that may have a line in a box
# What the output's shape and dtype say already, and what only a rule needs.
TOLD_ELSEWHERE = {"shape", "dtype", "sizes"}


def array_label(shape: tuple[int | str, ...], dtype: Any) -> str:
    """A shape and a dtype.

    >>> array_label((4, 16), "float32"), array_label((3,), "int64"), array_label((), "float64")
    ('4×16 float32', '3 int64', 'scalar float64')
    """
    # An array library of another make writes its dtypes as module.name.
    name = str(getattr(dtype, "name", dtype)).rpartition(".")[2]
    return f"{'×'.join(map(str, shape)) or 'scalar'} {name}"


def number_label(value: object) -> str | None:
    """A number, or an array of no dimensions, as a short text; None for anything else.

    >>> number_label(0.5), number_label(1e-05), number_label(True), number_label([1, 2])
    ('0.5', '1e-05', 'True', None)
    """
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float) or getattr(value, "shape", None) == ():
        return format(float(value), ".6g")  # type: ignore[arg-type]
    return None


def is_number(value: object) -> bool:
    """Whether ``number_label`` has a text for it; looks at no value."""
    return isinstance(value, bool | int | float) or getattr(value, "shape", None) == ()


def value_label(array: Any) -> str:
    """The numbers of a small array.

    >>> import numpy as np
    >>> value_label(np.array([[1.0, 0.25]])), value_label(np.array(3)), value_label(np.array([True]))
    ('[[1, 0.25]]', '3', '[True]')
    """
    backend = backend_of(array)
    host = backend.to_numpy(array) if backend else np.asarray(array)

    def text(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(text, value))}]"  # as deep as the array has axes
        return str(value) if isinstance(value, bool | int) else format(float(value), ".4g")

    return shorten(text(host.tolist()))


def bytes_label(count: int) -> str:
    """A number of bytes.

    >>> bytes_label(512), bytes_label(2048), bytes_label(5 * 2**20)
    ('512 B', '2.0 KiB', '5.0 MiB')
    """
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def seconds_label(seconds: float) -> str:
    """A duration.

    >>> seconds_label(2.5), seconds_label(0.0123), seconds_label(4.2e-06)
    ('2.5 s', '12.3 ms', '4.2 µs')
    """
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def amount_label(norm: float) -> str:
    """The norm of a gradient.

    >>> amount_label(0.01234), amount_label(float("nan")), amount_label(0.0), amount_label(1234567.0)
    ('0.012', 'NaN', '0', '1.2e+06')
    """
    return "NaN" if norm != norm else "∞" if norm == float("inf") else format(norm, ".2g")


def fact_labels(facts: Facts, show: Collection[str] = SHOWN) -> list[str]:
    """What is known of a value beside its shape, a text for each of the facts to ``show``.

    >>> fact_labels(Facts(value="[1, 2]", kept=2048, gradient=0.5)), fact_labels(Facts(value="3", kept=8), show=["kept"])
    (['= [1, 2]', 'keeps 2.0 KiB', '‖grad‖ = 0.5'], ['keeps 8 B'])
    """
    texts = []
    if "value" in show and facts.value is not None:
        texts.append(f"= {facts.value}")
    if "kept" in show and facts.kept:
        texts.append(f"keeps {bytes_label(facts.kept)}")
    if "seconds" in show and facts.seconds is not None:
        texts.append(seconds_label(facts.seconds))
    if "gradient" in show and facts.gradient is not None:
        texts.append(f"‖grad‖ = {amount_label(facts.gradient)}")
    return texts


def metadata_label(params: Mapping[str, Any]) -> str:
    """An operation's metadata as it would be written in a call, or as an index.

    >>> metadata_label({"axis": (-1,), "keepdims": False}), metadata_label({"key": (Ellipsis, slice(0, 16))})
    ('axis=-1', '[..., 0:16]')
    """
    if "key" in params:
        return shorten(f"[{', '.join(map(_index, params['key']))}]")
    said = {key: value for key, value in params.items() if key not in TOLD_ELSEWHERE and _is_plain(value)}
    return shorten(", ".join(f"{key}={_value(value)}" for key, value in said.items()))


def shorten(text: str, longest: int = LONGEST) -> str:
    """One line of printable characters, its middle left out if it is too long.

    >>> shorten("two\\nlines\\x00"), shorten("encoder.layers.0.weight", longest=12)
    ('two lines�', 'encode…eight')
    """
    half = longest // 2
    if len(text) > 2 * longest:  # a text of millions of characters is cut before anything looks at each
        text = text[:longest] + text[-longest:]
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "�" for c in text).split())
    return text if len(text) <= longest else f"{text[:half]}…{text[half - longest + 1 :]}"


def _is_plain(value: Any) -> bool:
    """Whether a value says something, and the same each time: no None or False, no object with an address."""
    if isinstance(value, tuple):
        return all(isinstance(part, int | float | str | tuple) for part in value)
    return isinstance(value, int | float | str) and value is not False


def _value(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 1 and not isinstance(value[0], tuple):
        return _value(value[0])
    return format(value, ".6g") if isinstance(value, float) else str(value)


def _index(entry: Any) -> str:
    if isinstance(entry, slice):
        start, stop = ("" if end is None else str(end) for end in (entry.start, entry.stop))
        return f"{start}:{stop}" + ("" if entry.step in (None, 1) else f":{entry.step}")
    return "array" if entry is INDEX else "..." if entry is Ellipsis else str(entry)
