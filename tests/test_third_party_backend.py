"""The page ``docs/backends.md`` and its example: a package that no part of tinyseq knows, installed and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/third_party_backend"

pytest.importorskip("array_api_strict")
pytest.importorskip("hatchling")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed in it; what is next to it is a copy of the source."""
    folder = tmp_path_factory.mktemp("third_party")
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"]
    subprocess.run(command, check=True, timeout=120)
    return folder / "site"


def python(site: Path, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(ROOT), str(ROOT / "backends")])
    environment = {k: v for k, v in os.environ.items() if k != "TINYSEQ_BACKEND"} | {"PYTHONPATH": path, **variables}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def run(site: Path, code: str, **variables: str) -> list[str]:
    """What the code prints, line by line."""
    done = python(site, "-c", textwrap.dedent(code), **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_is_found_by_its_entry_point_and_imported_only_when_asked_for(site: Path) -> None:
    lines = run(
        site,
        """
        import sys
        import tinyseq as ts
        print("tinyseq_strict" in sys.modules or "array_api_strict" in sys.modules)
        ts.use_backend("strict")
        print("tinyseq_strict" in sys.modules, ts.current_backend().name)
        """,
    )
    assert lines == ["False", "True strict"]


def test_it_is_listed(site: Path) -> None:
    import array_api_strict

    (info,) = run(site, "import tinyseq as ts; print(*(b for b in ts.backends() if b.name == 'strict'))")
    assert info == f"strict: array_api_strict {array_api_strict.__version__} on cpu"
    command = python(site, "-c", "import sys; from tinyseq.cli import main; sys.exit(main(['backends']))")
    assert command.returncode == 0, command.stderr
    (line,) = (line for line in command.stdout.splitlines() if line.startswith("strict"))
    assert line.split() == ["strict", "array_api_strict", array_api_strict.__version__, "cpu", "yes"]


def test_without_its_library_it_says_so(site: Path) -> None:
    lines = run(
        site,
        """
        import sys
        sys.modules["array_api_strict"] = None  # as if it were not installed
        import tinyseq as ts
        print(*(b for b in ts.backends() if b.name == "strict"))
        try:
            ts.use_backend("strict")
        except ts.BackendError as error:
            print(error)
        """,
    )
    assert lines[0] == "strict: not available: array-api-strict is not installed (pip install array-api-strict)"
    assert lines[1].startswith("the backend 'strict' cannot run here: array-api-strict is not installed")
    assert lines[1].endswith("pip install array-api-strict")


LEARNS = """
import tinyseq as ts
ts.manual_seed(3)
model = ts.nn.LSTM(3, 5)
look_up = ts.nn.Embedding(4, 3)
parameters = [*model.parameters(), *look_up.parameters()]
optimizer = ts.optim.Adam(parameters, lr=0.05)
for _ in range(3):
    ys, _ = model(look_up(ts.tensor([[0, 1], [2, 2], [0, 3]])))
    loss = (ys * ys).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(repr(loss.item()))
print(type(parameters[0].data).__module__.partition(".")[0])
"""


def test_a_model_learns_as_on_numpy(site: Path) -> None:
    *losses, library = run(site, LEARNS, TINYSEQ_BACKEND="strict")
    *expected, reference = run(site, LEARNS, TINYSEQ_BACKEND="numpy")
    assert (library, reference) == ("array_api_strict", "numpy")
    assert [float(x) for x in losses] == pytest.approx([float(x) for x in expected], rel=1e-5)
    assert float(losses[-1]) < float(losses[0])


def test_it_passes_the_conformance_suite(site: Path) -> None:
    source = site.parent / "source"
    done = python(site, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(source), cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr
    match = re.search(r"(\d+) passed", done.stdout)
    assert match is not None
    assert int(match[1]) > 1000
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("language", "files"),
    [("python", ["tinyseq_strict.py", "tests/test_tinyseq_strict.py"]), ("toml", ["pyproject.toml"])],
)
def test_the_page_shows_the_example_as_it_is(language: str, files: list[str]) -> None:
    page = (ROOT / "docs/backends.md").read_text("utf-8")
    shown = re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    texts = [(EXAMPLE / file).read_text("utf-8") for file in files]
    assert shown
    assert [block for block in shown if not any(block in text for text in texts)] == []
    if language == "python":  # and all of it: no line of the module is left without a word
        covered = "".join(shown)
        lines = [line for line in texts[0].splitlines() if line.strip()]
        missing = [line for line in lines if line not in covered]
        assert missing == [lines[0], '__all__ = ["StrictBackend"]']
