"""The page ``docs/add_a_primitive.md``, carried out on a copy of the source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/add_a_primitive.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def edit(source: Path, diff: str) -> None:
    """Apply a difference; each hunk must fit at exactly one place, so that a page that the source has left behind fails."""
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, _, hunks = part.partition("\n")
        path = source / name
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] != skip) for skip in "+-")
            text = path.read_text("utf-8")
            assert text.count(before) == 1, f"{before!r} occurs {text.count(before)} times in {name}"
            path.write_text(text.replace(before, after), "utf-8")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    leave_out = shutil.ignore_patterns("__pycache__", "golden")
    for folder in ("tinyseq", "backends", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave_out)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def run(source: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(source), str(source / "backends")])
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *words], cwd=source, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_page_adds_a_primitive(source: Path) -> None:
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_conformance.py", "-k", "atan"]
    cases, *rest = blocks("diff")
    edit(source, cases)
    failed = run(source, *suite)
    assert failed.returncode != 0
    assert "KeyError: 'atan'" in failed.stdout

    for diff in rest:
        edit(source, diff)
    (example,) = blocks("python")
    done = run(source, "-c", f"import tinyseq; print(tinyseq.__file__)\n{example}")
    assert (done.returncode, done.stdout) == (0, f"{source / 'tinyseq/__init__.py'}\n"), done.stderr

    passed = run(source, *suite)
    assert passed.returncode == 0, passed.stdout
    assert " passed" in passed.stdout
