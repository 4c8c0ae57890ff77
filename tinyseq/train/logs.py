"""Where the numbers of a run go: CSV and JSON files. TensorBoard's are in :mod:`tinyseq.train.tensorboard`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tinyseq.errors import DataError
from tinyseq.io import write_whole

__all__ = ["CSVLog", "JSONLog", "Log"]


class Log:
    """The base of all logs. A subclass says what it writes; a trainer calls the rest where it applies."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write what was measured at a step."""
        raise NotImplementedError

    def histograms(self, step: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write distributions, where there is a place for them."""

    def rewind(self, step: int) -> None:
        """Drop what was written of later steps: a run goes on from an earlier checkpoint, or begins (step 0)."""


class JSONLog(Log):
    """A line a row, each a JSON object with ``step`` and the values; NaN and infinity, which JSON lacks, are null.

    Args:
        path: the file; its folder is made if it is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = JSONLog(f"{folder}/log.jsonl")
    ...     log.write(10, {"loss": 0.5})
    ...     Path(f"{folder}/log.jsonl").read_text()
    '{"step": 10, "loss": 0.5}\\n'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a line."""
        numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")

    def rewind(self, step: int) -> None:
        """Keep the lines up to a step; a last line that a crash cut short goes too."""
        if self.path.exists():
            kept = [line for line in self.path.read_text("utf-8").splitlines() if _step_of(line) <= step]
            write_whole(self.path, "".join(line + "\n" for line in kept).encode())


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


class CSVLog(Log):
    """A table with a column for each name, ``step`` first; what was not measured at a step is empty.

    A name that turns up later gets a column of its own: the file is then written anew.

    Args:
        path: the file; its folder is made if it is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = CSVLog(f"{folder}/log.csv")
    ...     log.write(10, {"loss": 0.5})
    ...     log.write(20, {"valid/loss": 0.25})
    ...     print(Path(f"{folder}/log.csv").read_text(), end="")
    step,loss,valid/loss
    10,0.5,
    20,,0.25
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._columns: list[str] | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row.

        Raises:
            DataError: the file holds another table.
        """
        if self._columns is None:
            self._columns = list(self._rows()[0])
        new = [name for name in values if name not in self._columns]
        row = {"step": step, **{name: repr(float(value)) for name, value in values.items()}}
        if new or not self.path.exists():
            old = self._rows()[1]
            self._columns = [*(self._columns or ["step"]), *new]
            self._rewrite([*old, row])
            return
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    def rewind(self, step: int) -> None:
        """Keep the rows up to a step."""
        columns, rows = self._rows()
        if not columns:
            return
        kept = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]
        self._columns = columns if kept else ["step"]
        self._rewrite(kept)

    def _rows(self) -> tuple[list[str], list[dict[str, Any]]]:
        if not self.path.exists():
            return [], []
        with open(self.path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or []), list(reader)
        if columns[:1] not in ([], ["step"]):
            raise DataError(f"{str(self.path)!r} is a table of other columns ({', '.join(columns[:3])}); name another file")
        return columns, rows

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        assert self._columns is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue().encode())
