"""The cache of machine code on the disk: filled by several at once, read-only, foreign or damaged, it never fails a run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")

PROGRAM = """
import json, sys, time, warnings
from pathlib import Path
import numpy as np
import tinyseq as ts
said = []
warnings.showwarning = lambda message, *rest: said.append(str(message))
ts.use_backend("numba")
ts.manual_seed(0)
layer = ts.nn.LSTM(3, 5)
optimizer = ts.optim.Adam(layer.parameters(), lr=0.1)
x = ts.random.randn((4, 2, 3))
folder, me = Path(sys.argv[1]), sys.argv[2]
(folder / f"ready{me}").touch()
while len(list(folder.glob("ready*"))) < int(sys.argv[3]):  # all begin at once
    time.sleep(0.002)
for repeat in range(2):
    ys, _ = layer(x)
    loss = (ys * ys).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
numbers = [p.numpy().astype(float).sum() for p in layer.parameters()] + [loss.item()]
print(json.dumps({"numbers": numbers, "said": said, "finite": bool(np.isfinite(numbers).all())}))
"""


class Machine:
    """Runs the program in fresh processes that share a cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # of this test
        self.cache = folder / "cache"
        self.runs = 0

    def run(self, processes: int = 1, **environment: str) -> list[dict[str, Any]]:
        """What each process found; they begin to compile at the same moment."""
        self.runs += 1
        here = self.folder / f"run{self.runs}"
        here.mkdir()
        environment = {**os.environ, "TINYSEQ_CACHE_DIR": str(self.cache), "NUMBA_NUM_THREADS": "1", **environment}
        started = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(here), str(i), str(processes)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]
        results = []
        for process in started:
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            results.append(json.loads(out))
            assert results[-1]["finite"]
        return results

    def kernels(self) -> list[Path]:
        return sorted((self.cache / "loops").glob("*.o"))

    def leftovers(self) -> list[Path]:
        """Files that were to take their place in the cache and did not."""
        return [path for path in (self.cache / "loops").iterdir() if path.is_file() and path.suffix != ".o"]

    def times(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.kernels()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.slow
def test_processes_that_fill_an_empty_cache_at_once_all_work(machine: Machine) -> None:
    results = machine.run(processes=3)
    assert all(result == results[0] for result in results)
    assert results[0]["said"] == []
    assert len(machine.kernels()) == 4  # forward, backward, what packs weights, and what waits for other threads
    assert machine.leftovers() == []
    before = machine.times()
    assert machine.run() == results[:1]  # what they left is whole, and is used
    assert machine.times() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"a text that somebody put here", bytes(4096), b"\x7fELF" + bytes(100)],
    ids=["empty", "text", "zeros", "elf"],
)
def test_foreign_files_are_said_once_and_replaced(machine: Machine, content: bytes) -> None:
    expected = machine.run()[0]
    for path in machine.kernels():
        path.write_bytes(content)
    (result,) = machine.run()
    assert result["numbers"] == expected["numbers"]
    assert len(result["said"]) == 1
    assert "is damaged and is compiled anew" in result["said"][0]
    assert machine.run() == [expected]  # mended, and nothing more to say


def test_a_folder_in_the_place_of_a_kernel_is_said_once(machine: Machine) -> None:
    expected = machine.run()[0]
    for path in machine.kernels():
        path.unlink()
        (path / "in the way").mkdir(parents=True)
    (result,) = machine.run()
    assert result["numbers"] == expected["numbers"]
    assert len(result["said"]) == 1
    assert "compiled loops cannot be kept" in result["said"][0]


def test_a_kernel_under_the_name_of_another_is_not_run(machine: Machine) -> None:
    """Whole, and not the one that was asked for."""
    expected = machine.run()[0]
    one, other, *_ = machine.kernels()
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    (result,) = machine.run()
    assert result["numbers"] == expected["numbers"]
    assert len(result["said"]) == 1


@pytest.mark.xfail(reason="Numba raises what pickle raises on a damaged index")
def test_damaged_files_of_numba_are_compiled_anew(machine: Machine) -> None:
    """The optimizer's loops, which Numba keeps in its own way."""
    expected = machine.run()[0]
    files = list((machine.cache / "numba").rglob("*.nb?"))
    assert len(files) == 3
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    (result,) = machine.run()
    assert result["numbers"] == expected["numbers"]
    assert machine.run() == [expected]


def test_a_read_only_cache_that_is_filled_is_read(machine: Machine) -> None:
    expected = machine.run()[0]
    before = machine.times()
    with read_only(machine.cache):
        (result,) = machine.run()
    assert result["numbers"] == expected["numbers"]
    assert not any("loops" in sentence for sentence in result["said"])
    assert len(result["said"]) <= 1  # of the folder in which Numba keeps its own
    assert machine.times() == before


def test_a_read_only_cache_that_lacks_a_kernel_is_said_once(machine: Machine) -> None:
    expected = machine.run()[0]
    for path in machine.kernels():
        path.unlink()
    with read_only(machine.cache):
        (result,) = machine.run()
    assert result["numbers"] == expected["numbers"]
    assert sum("compiled loops cannot be kept" in sentence for sentence in result["said"]) == 1
    assert len(set(result["said"])) == len(result["said"]) <= 2  # one for each of the two folders
    assert machine.kernels() == []


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be made or changed."""
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        yield
    finally:
        for path in folders:
            path.chmod(0o755)
