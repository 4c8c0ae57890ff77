"""The CuPy backend, as far as it can be checked without a GPU, and on one where there is one.

In rungs, each named for what it is: the names it uses exist in CuPy; it says why it cannot run; its own logic is right if
CuPy does as NumPy does; its random numbers are those of the published algorithm. Only ``TestCupy`` and what else is marked
``gpu`` runs on a GPU.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinyseq_cupy
from tinyseq_cupy import CupyBackend, device, elementwise, philox
from tinyseq_cupy.philox import PHILOX, Philox

import tinyseq as ts
from tinyseq.backend import Backend
from tinyseq.errors import BackendError, DTypeError
from tinyseq.primitives import TABLE
from tinyseq.testing import BackendConformance

HAVE_CUPY = importlib.util.find_spec("cupy") is not None
needs_cupy = pytest.mark.skipif(not HAVE_CUPY, reason="CuPy is not installed")


# --- CuPy has what we call --------------------------------------------------------------------------------------------


def _names_used(module: types.ModuleType) -> set[str]:
    """The dotted names under ``cupy`` and ``cupyx`` that a module's source names."""
    roots = {"cupy": "cupy", "self.xp": "cupy", "self._cupy": "cupy"}
    names = set()
    tree = ast.parse(inspect.getsource(module))
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("cupyx", "cupy.")):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            dotted = ast.unparse(node)
            for root, real in roots.items():
                if dotted.startswith(root + "."):
                    names.add(real + dotted.removeprefix(root))
    return {name.partition("(")[0] for name in names}


def test_the_list_of_names_is_found() -> None:
    found = _names_used(tinyseq_cupy) | _names_used(philox)
    assert {"cupy.add", "cupy.asnumpy", "cupyx.scatter_add", "cupyx.scipy.special.erf", "cupy.ElementwiseKernel"} <= found
    assert len(found) > 35


@needs_cupy
@pytest.mark.parametrize("name", sorted(set().union(*map(_names_used, (tinyseq_cupy, philox, device, elementwise)))))
def test_cupy_has_it(name: str) -> None:
    module, *rest = name.split(".")
    if name.startswith("cupy._core."):
        module, rest = "cupy._core", rest[1:]
    if name.startswith("cupyx.scipy.special"):
        module, rest = "cupyx.scipy.special", rest[2:]
    value: Any = importlib.import_module(module)
    for part in rest:
        value = getattr(value, part)
    assert callable(value) or isinstance(value, type)


@needs_cupy
def test_tf32_has_the_number_that_cupy_gives_it() -> None:
    from cupy._core import _routines_linalg

    assert tinyseq_cupy._TF32 == _routines_linalg.COMPUTE_TYPE_TF32
    assert tinyseq_cupy._DEFAULT == _routines_linalg.COMPUTE_TYPE_DEFAULT
    assert {"get_compute_type", "set_compute_type"} <= set(dir(importlib.import_module("cupy._core")))


@needs_cupy
def test_every_primitive_has_a_function() -> None:
    """The table is built from CuPy's namespace without touching a device."""
    backend = CupyBackend()
    for name in TABLE:
        assert callable(backend.table[name]), name
    assert backend.version.startswith("cupy ")


# --- what it says where it cannot run ---------------------------------------------------------------------------------


def test_importing_it_imports_no_cupy() -> None:
    code = "import sys, tinyseq_cupy; print(any(name.split('.')[0] in ('cupy', 'cupyx') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert CupyBackend.unavailable() == "CuPy is not installed"
    with pytest.raises(BackendError, match=r"'cupy' cannot run here: CuPy is not installed.*tinyseq\[cuda12\]"):
        ts.use_backend("cupy")


@pytest.mark.parametrize(
    ("count", "status", "driver", "reason"),
    [
        (None, 35, 0, "finds no NVIDIA driver: install one"),
        (
            None,
            35,
            11040,
            r"driver is for CUDA 11\.4 and this CuPy for CUDA 12\.9: update the driver, or install the CuPy for CUDA 11",
        ),
        (None, 100, 13000, "finds no GPU: look at nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it"),
        (0, None, 13000, "finds no GPU: look at nvidia-smi"),
        (None, 999, 13000, "CUDA reports error 999"),
        (1, None, 13000, None),
    ],
)
def test_installed_and_no_gpu(
    monkeypatch: pytest.MonkeyPatch, count: int | None, status: int, driver: int, reason: str | None
) -> None:
    """No driver, one that is too old, no GPU, and what nobody foresaw."""

    class Failed(Exception):
        pass

    def count_them() -> int:
        if count is None:
            error = Failed()
            error.status = status  # type: ignore[attr-defined]
            raise error
        return count

    runtime = types.SimpleNamespace(
        getDeviceCount=count_them, CUDARuntimeError=Failed, driverGetVersion=lambda: driver, runtimeGetVersion=lambda: 12090
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    found = CupyBackend.unavailable()
    if reason is None:
        assert found is None
    else:
        assert re.search(reason, found or "")
        with pytest.raises(BackendError, match=reason) as raised:
            ts.get_backend("cupy:1")
        assert "pip install" not in str(raised.value)  # which would not help


def test_installed_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "cupy", None)  # then the import fails
    reason = CupyBackend.unavailable() or ""
    assert reason.startswith("CuPy is installed but cannot be imported")
    assert "\n" not in reason


def test_it_is_listed_with_its_reason() -> None:
    (line,) = [line for line in ts.backends() if line.name == "cupy"]
    assert line.available == (CupyBackend.unavailable() is None)
    if not line.available:
        assert "CuPy" in line.reason
        assert "cuda12" in line.install
        assert ("cuda12" in str(line)) == ("driver" not in line.reason)  # which pip does not install


# --- our own logic, if CuPy does as NumPy does ------------------------------------------------------------------------


def _philox(index: np.ndarray[Any, Any], draw: int, key: int) -> np.ndarray[Any, Any]:
    """Philox4x32-10 once more, in NumPy: four words for each index."""
    low, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    i = index.astype(np.uint64)
    c = [i & mask, i >> low, *(np.full_like(i, (draw >> shift) & 0xFFFFFFFF) for shift in (0, 32))]
    for turn in range(10):
        k0 = np.uint64(((key & 0xFFFFFFFF) + turn * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64(((key >> 32) + turn * 0xBB67AE85) & 0xFFFFFFFF)
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> low) ^ c[1] ^ k0, b & mask, (a >> low) ^ c[3] ^ k1, a & mask]
    return np.stack(c, -1)


def _kernel_in_numpy(name: str, c: np.ndarray[Any, Any], low: int, span: int) -> np.ndarray[Any, Any]:
    high = (c[..., 0] << np.uint64(32)) | c[..., 1]
    other = (c[..., 2] << np.uint64(32)) | c[..., 3]
    if name == "unit_float":
        return ((c[..., 0] >> np.uint64(8)).astype(np.float32)) * np.float32(2**-24)
    if name == "unit_double":
        return (high >> np.uint64(11)).astype(np.float64) * 2.0**-53
    if name == "normal_float":
        radius = np.sqrt(-2 * np.log(((c[..., 0] >> np.uint64(8)) + np.uint64(1)) * 2.0**-24))
        return radius * np.cos((c[..., 1] >> np.uint64(8)) * (2.0**-24 * 2 * np.pi))
    if name == "normal_double":
        radius = np.sqrt(-2 * np.log(((high >> np.uint64(11)) + np.uint64(1)) * 2.0**-53))
        return radius * np.cos((other >> np.uint64(11)) * (2.0**-53 * 2 * np.pi))
    if name == "integers":
        return np.array([low + ((int(h) * span) >> 64) for h in high.ravel()], np.int64).reshape(high.shape)
    assert name == "keys"
    return high


class _Kernel:
    """Stands for an ElementwiseKernel: the few that there are, in NumPy."""

    def __init__(self, inputs: str, outputs: str, operation: str, name: str, preamble: str = "") -> None:
        self.name = name.removeprefix("tinyseq_")

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "sigmoid":
            (x,) = arguments
            return 1 / (1 + np.exp(-x))
        key, draw, low, span, out = arguments
        index = np.arange(out.size).reshape(out.shape)
        out[...] = _kernel_in_numpy(self.name, _philox(index, int(draw), int(key)), int(low), int(span))
        return out


class _NumpyAsCupy(types.ModuleType):
    """NumPy under CuPy's name, with the few names that NumPy lacks."""

    __version__ = np.__version__
    ElementwiseKernel = _Kernel
    cuda = types.SimpleNamespace(
        Device=lambda: types.SimpleNamespace(id=0, synchronize=lambda: None),
        memory=types.SimpleNamespace(OutOfMemoryError=MemoryError),
        runtime=types.SimpleNamespace(
            getDeviceProperties=lambda number: {"name": b"NumPy"}, getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError
        ),
    )

    @staticmethod
    def asnumpy(array: Any) -> Any:
        return np.array(array)

    @staticmethod
    def argsort(x: Any, axis: int = -1) -> Any:
        return np.argsort(x, axis=axis, kind="stable")

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _scatter_add(total: Any, key: Any, values: Any) -> None:
    if total.dtype.kind == "i" and total.dtype.itemsize == 8:
        raise TypeError("scatter_add only supports int32, float16, float32, float64, uint32, uint64, as data type")
    np.add.at(total, key, values)


class _OnNumpy(CupyBackend):
    """What compiles is left out: NumPy's arrays are on no device that could be entered."""

    compile_loop, compile_graph, elementwise = Backend.compile_loop, Backend.compile_graph, Backend.elementwise


@pytest.fixture
def numpy_as_cupy(monkeypatch: pytest.MonkeyPatch) -> CupyBackend:
    erf = np.vectorize(__import__("math").erf, otypes=[float])
    modules = {
        "cupy": _NumpyAsCupy("cupy"),
        "cupyx": types.SimpleNamespace(scatter_add=_scatter_add),
        "cupyx.scipy": types.SimpleNamespace(),
        "cupyx.scipy.special": types.SimpleNamespace(erf=lambda x: np.asarray(erf(x), x.dtype)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return _OnNumpy()


class TestOurLogicOnNumpy(BackendConformance):
    """The backend's own code with NumPy in CuPy's place. It says nothing about CuPy."""

    @pytest.fixture(autouse=True)
    def _in_force(self, numpy_as_cupy: CupyBackend) -> Any:
        self.backend = self.b = numpy_as_cupy
        with ts.use_backend(self.b), np.errstate(all="ignore"):
            yield


def test_device_and_synchronize(numpy_as_cupy: CupyBackend) -> None:
    assert numpy_as_cupy.device == "NumPy (cuda:0)"
    numpy_as_cupy.synchronize()


# --- random numbers ---------------------------------------------------------------------------------------------------

# The known answers that come with the algorithm's reference implementation: counter, key, output.
ANSWERS = [
    ((0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**64 - 1, 2**64 - 1), 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x85A308D3_243F6A88, 0x03707344_13198A2E),
        0x299F31D0_A4093822,
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_philox_in_numpy_gives_the_known_answers(counter: tuple[int, int], key: int, expected: str) -> None:
    words = _philox(np.array([counter[0]], np.uint64), counter[1], key)[0]
    assert " ".join(f"{int(word):08x}" for word in words) == expected


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The device code, which is also C, compiled for the CPU."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder: Path = tmp_path_factory.mktemp("philox")
    source = "#include <math.h>\n#define DEVICE\n" + PHILOX
    (folder / "philox.c").write_text(source)
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(folder / "philox.so"), str(folder / "philox.c"), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    library = ctypes.CDLL(str(folder / "philox.so"))
    words = ctypes.c_uint32 * 4
    library.philox.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, words]
    for name, kind in (("float", ctypes.c_float), ("double", ctypes.c_double)):
        for family in ("unit", "normal"):
            function = getattr(library, f"{family}_{name}")
            function.argtypes, function.restype = [words], kind
    library.bounded.argtypes, library.bounded.restype = [words, ctypes.c_uint64], ctypes.c_int64
    return library


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_the_device_code_gives_the_known_answers(
    compiled: ctypes.CDLL, counter: tuple[int, int], key: int, expected: str
) -> None:
    words = (ctypes.c_uint32 * 4)()
    compiled.philox(counter[0], counter[1], key, words)
    assert " ".join(f"{word:08x}" for word in words) == expected


def test_the_device_code_does_as_its_twin_in_numpy(compiled: ctypes.CDLL) -> None:
    """Uniform, normal and bounded numbers, so that the tests of their distribution hold for the device code."""
    key, draw, n = 12345678901234567890, 7, 200
    c = _philox(np.arange(n), draw, key)
    for span in (1, 10, 2**31, 2**40 + 3, 2**62):
        expected = _kernel_in_numpy("integers", c, 0, span)
        for i in range(n):
            words = (ctypes.c_uint32 * 4)()
            compiled.philox(i, draw, key, words)
            assert compiled.bounded(words, span) == expected[i]
    for name, tolerance in (("unit_float", 0), ("unit_double", 0), ("normal_float", 2e-6), ("normal_double", 1e-14)):
        expected = _kernel_in_numpy(name, c, 0, 0)
        actual = []
        for i in range(n):
            words = (ctypes.c_uint32 * 4)()
            compiled.philox(i, draw, key, words)
            actual.append(getattr(compiled, name)(words))
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_no_uniform_number_is_one_and_no_normal_number_infinite(compiled: ctypes.CDLL) -> None:
    for word in (0, 0xFFFFFFFF):
        words = (ctypes.c_uint32 * 4)(*[word] * 4)
        for name in ("unit_float", "unit_double"):
            assert 0 <= getattr(compiled, name)(words) < 1
        for name in ("normal_float", "normal_double"):
            assert np.isfinite(getattr(compiled, name)(words))
        assert compiled.bounded(words, 2**63 - 1) in (0, 2**63 - 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distributions(numpy_as_cupy: CupyBackend, dtype: str) -> None:
    """Moments to within five standard errors, and neither draws nor neighbours correlate."""
    g = numpy_as_cupy.new_generator(5)
    n = 20_000
    u, v = (np.asarray(g.random((n,), dtype=dtype), float) for _ in range(2))
    z, w = (np.asarray(g.standard_normal((n,), dtype=dtype), float) for _ in range(2))
    assert u.min() >= 0
    assert u.max() < 1
    error = 5 / np.sqrt(n)
    assert abs(u.mean() - 0.5) < error * np.sqrt(1 / 12)
    assert abs((u * u).mean() - 1 / 3) < error * np.sqrt(4 / 45)
    assert abs(z.mean()) < error
    assert abs((z * z).mean() - 1) < error * np.sqrt(2)
    assert abs((z**4).mean() - 3) < error * np.sqrt(96)
    for a, b in ((u, v), (z, w), (u[1:], u[:-1]), (z[1:], z[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < error


def test_integers_and_permutation(numpy_as_cupy: CupyBackend) -> None:
    g = numpy_as_cupy.new_generator(5)
    drawn = g.integers(-3, 4, (7000,))
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn + 3)
    assert counts.size == 7
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 6 / 7)
    order = g.permutation(100)
    assert order.tolist() != list(range(100))
    assert sorted(order.tolist()) == list(range(100))
    assert g.integers(0, 10, (2, 3), dtype=np.int32).dtype == np.int32


def test_state_counts_draws_and_a_foreign_one_is_refused(numpy_as_cupy: CupyBackend) -> None:
    g = numpy_as_cupy.new_generator(5)
    before = g.state
    a = g.random((4,))
    assert g.state == {**before, "draw": 1}
    numpy_as_cupy.set_generator_state(g, before)
    np.testing.assert_array_equal(g.random((4,)), a)
    foreign = np.random.PCG64(1).state
    with pytest.raises(ValueError, match=r"PCG64.*philox"):
        g.state = foreign
    with pytest.raises(DTypeError, match="float16"):
        g.random((2,), dtype=np.float16)


def test_seeds_that_are_neighbours_or_large_have_keys_of_their_own() -> None:
    keys = {Philox(np, seed).key for seed in (0, 1, 2, 2**64, 2**64 + 1, 2**200)}
    assert len(keys) == 6


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
class TestCupy(BackendConformance):
    backend = "cupy"


@pytest.mark.gpu
def test_the_same_random_numbers_as_in_numpy() -> None:
    from tinyseq.backend import get_backend

    g = get_backend("cupy").new_generator(3)
    key = g.key
    for draw, (name, dtype) in enumerate((("unit_float", "float32"), ("unit_double", "float64"))):
        actual = get_backend("cupy").to_numpy(g.random((1000,), dtype=dtype))
        np.testing.assert_array_equal(actual, _kernel_in_numpy(name, _philox(np.arange(1000), draw, key), 0, 0))


@pytest.mark.gpu
def test_a_language_model_takes_the_same_steps_as_in_numpy() -> None:
    """Embedding, LSTM, output layer, cross-entropy and Adam: the same losses from the same weights."""
    losses = {}
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (6, 4))
    weights: dict[str, Any] = {}
    for name in ("numpy", "cupy"):
        with ts.use_backend(name):
            layers = ts.nn.Embedding(20, 8), ts.nn.LSTM(8, 16), ts.nn.Linear(16, 20)
            parameters = [p for layer in layers for p in layer.parameters()]
            for i, p in enumerate(parameters):
                p.data = p.backend.asarray(weights.setdefault(i, p.numpy().copy()))
            optimizer = ts.optim.Adam(parameters, lr=1e-2)
            x, y = ts.tensor(tokens[:-1]), ts.tensor(tokens[1:])
            losses[name] = []
            for _ in range(10):
                h, _state = layers[1](layers[0](x))
                loss = ts.nn.functional.cross_entropy(layers[2](h).reshape(-1, 20), y.reshape(-1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[name].append(loss.item())
    np.testing.assert_allclose(losses["cupy"], losses["numpy"], rtol=1e-4)
    assert losses["cupy"][-1] < losses["cupy"][0]


@pytest.mark.gpu
def test_no_operation_copies_to_the_host() -> None:
    """Every case runs while copies to the host are forbidden."""
    import cupy

    from tinyseq.tensor import Tensor, apply
    from tinyseq.testing import CASES

    with ts.use_backend("cupy"), np.errstate(all="ignore"):
        refuse = lambda *args, **kwargs: pytest.fail("an operation copied to the host")
        for case in CASES:
            made = [make(np.random.default_rng(0), np.dtype(case.dtypes[0])) for make in case.inputs]
            tensors = [Tensor(cupy.asarray(x)) if isinstance(x, np.ndarray) else x for x in made]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cupy, "asnumpy", refuse)
                apply(TABLE[case.primitive], tuple(tensors), dict(case.params))
