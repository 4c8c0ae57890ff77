"""Event files that TensorBoard shows, without TensorFlow or TensorBoard.

A file is a row of records: the length of the data (8 bytes), its checksum, the data, their checksum. The data are a
protocol buffer, a message of type Event. https://www.tensorflow.org/tutorials/load_data/tfrecord has the first,
tensorflow/core/util/event.proto and tensorflow/core/framework/summary.proto the second.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyseq.errors import DataError
from tinyseq.train.logs import Log

__all__ = ["TensorBoard"]

_count = itertools.count()


class TensorBoard(Log):
    """Writes numbers, distributions, pictures and texts to an event file: ``tensorboard --logdir folder`` shows them.

    Args:
        folder: where the file goes; made if it is missing. Each run has a folder of its own.

    Raises:
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     TensorBoard(folder).write(1, {"loss": 0.5})
    ...     [path.name[:20] for path in Path(folder).iterdir()]
    ['events.out.tfevents.']
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._path: Path | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Curves: a number for each name."""
        self._values(step, [_text(1, name) + _float(2, value) for name, value in values.items()])

    def histograms(self, step: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Distributions of the finite numbers in arrays, over 30 equal bins; an array without any is left out."""
        values = []
        for name, array in arrays.items():
            finite = np.asarray(array, np.float64)[np.isfinite(array)]
            if finite.size:
                values.append(_text(1, name) + _message(5, _histogram(finite)))
        self._values(step, values)

    def image(self, step: int, name: str, png: bytes) -> None:
        """A picture in PNG format, such as :func:`tinyseq.draw` and Matplotlib write.

        Raises:
            DataError: the bytes are no PNG.
        """
        if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
            raise DataError("a picture for TensorBoard is a PNG file's bytes; these are not")
        width, height = struct.unpack(">II", png[16:24])
        picture = _integer(1, height) + _integer(2, width) + _integer(3, 4) + _message(4, png)
        self._values(step, [_text(1, name) + _message(4, picture)])

    def text(self, step: int, name: str, text: str) -> None:
        """A text, in Markdown."""
        metadata = _message(1, _text(1, "text"))  # for the plugin of that name
        tensor = _integer(1, 7) + _message(2, b"") + _text(8, text)  # of dtype string and of no axes
        self._values(step, [_text(1, name) + _message(9, metadata) + _message(8, tensor)])

    def rewind(self, step: int) -> None:
        """Tell TensorBoard to forget what earlier files in this folder hold of later steps."""
        if any(self.folder.glob("events.out.tfevents.*")):
            self._event(step + 1, _message(7, _integer(1, 1)))  # a session starts

    def _values(self, step: int, values: list[bytes]) -> None:
        if values:
            self._event(step, _message(5, b"".join(_message(1, value) for value in values)))

    def _event(self, step: int, content: bytes) -> None:
        records = [_integer(2, step) + content]
        if self._path is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_count)}"
            self._path = self.folder / name
            records.insert(0, _text(3, "brain.Event:2"))
        with open(self._path, "ab") as file:
            file.write(b"".join(record(_double(1, time.time()) + each) for each in records))


def _histogram(values: npt.NDArray[np.float64]) -> bytes:
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, 30, (low, high if high > low else low + max(abs(low), 1.0) * 1e-6))
    limits = edges[1:].astype("<f8").tobytes()
    moments = (low, high, values.size, values.sum(), np.square(values).sum())
    numbers = b"".join(_double(field, float(number)) for field, number in enumerate(moments, start=1))
    return numbers + _message(6, limits) + _message(7, counts.astype("<f8").tobytes())


# --- protocol buffers -------------------------------------------------------------------------------------------------

# A field is a key, its number and the kind of what follows, and that: 0 a varint, 1 eight bytes, 2 a length and bytes,
# 5 four bytes.


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    value &= (1 << 64) - 1  # negative numbers as two's complement
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _float(field: int, value: float) -> bytes:
    with np.errstate(over="ignore"):  # a number beyond float32 is shown as infinite
        return _varint(field << 3 | 5) + np.float32(value).astype("<f4").tobytes()


# --- records ----------------------------------------------------------------------------------------------------------


def record(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def masked_crc(data: bytes) -> int:
    """The CRC-32C of the data, rotated and shifted, so that a checksum of data with checksums in them is a good one."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720, of Castagnoli's polynomial.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _remainder(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc


_TABLE = [_remainder(byte) for byte in range(256)]
