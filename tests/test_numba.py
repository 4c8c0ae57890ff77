"""Numba's compiled functions against NumPy's, un-jitted too; what they do with bad input; where their machine code is kept."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinyseq_numba import NumbaBackend

import tinyseq as ts
from tinyseq.array_api import INDEX
from tinyseq.backend import get_backend
from tinyseq.errors import BackendError

NUMPY, NUMBA = get_backend("numpy"), get_backend("numba")

# After the backend, whose own import is what a test below looks at.
from tinyseq_numba import elementary, elementwise, fused, generated, kernels  # noqa: E402

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}
SHAPES = [(1, 1), (3, 5), (17, 33), (4, 65), (2, 300), (2, 3, 7), (5,), (0, 4)]
inf, nan = math.inf, math.nan


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("TINYSEQ_CACHE_DIR")
    os.environ["TINYSEQ_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TINYSEQ_CACHE_DIR"]
    else:
        os.environ["TINYSEQ_CACHE_DIR"] = before


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- the backend -------------------------------------------------------------------------------------------------------


def test_importing_the_package_does_not_import_numba() -> None:
    code = "import sys, tinyseq, tinyseq_numba; tinyseq_numba.NumbaBackend.unavailable(); print('numba' in sys.modules)"
    assert python(code) == "False\n"


def test_choosing_it_imports_numba() -> None:
    assert python("import sys, tinyseq as ts; ts.use_backend('numba'); print('numba' in sys.modules)") == "True\n"


def test_it_says_what_it_is() -> None:
    import numba

    assert NUMBA.version == f"numba {numba.__version__}, numpy {np.__version__}"
    assert NUMBA.array_type is np.ndarray
    assert NUMBA.generator_family == NUMPY.generator_family
    assert NumbaBackend.unavailable() is None


def test_without_numba_it_says_how_to_install_it() -> None:
    code = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda cls, name, *rest: None if name == "numba" else find(name, *rest))
import tinyseq as ts
try:
    ts.use_backend("numba")
except ts.errors.BackendError as error:
    print(error)
"""
    assert python(code) == (
        "the backend 'numba' cannot run here: Numba is not installed; install it with: pip install 'tinyseq[numba]'\n"
    )


def test_a_numba_that_does_not_load_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(BackendError, match=r"cannot run here: .*numba.*pip install 'tinyseq\[numba\]'"):
        NumbaBackend()


# --- elementary functions ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exp() -> Any:
    import numba

    @numba.njit(error_model="numpy")
    def run(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = elementary.exp(x[i])

    def over(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        run(x, y)
        return y

    return over


def test_exp_is_right_for_every_kind_of_float32(exp: Any) -> None:
    x = np.arange(0, 2**32, 65537, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = [0, -0.0, 88.7228, 88.72283, 88.72284, 88.8, -87.3, -87.4, -103.9, -104.0, -104.1, 1e-30, inf, -inf, nan]
    x = np.concatenate([x, np.float32(edges), np.linspace(-105, 89, 20011, dtype=np.float32)])
    with np.errstate(all="ignore"):
        wanted = np.exp(x.astype(np.float64))
        rounded = wanted.astype(np.float32)
    got = exp(x)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x))
    np.testing.assert_array_equal(np.isposinf(got), np.isposinf(rounded))
    finite = np.isfinite(rounded)
    error = np.abs(got[finite].astype(np.float64) - wanted[finite]) / np.spacing(rounded[finite]).astype(np.float64)
    assert error.max() <= 1.5
    assert exp(np.float32([-inf, 0.0])).tolist() == [0.0, 1.0]


def test_exp_of_float64_is_the_librarys(exp: Any) -> None:
    x = np.array([0.0, -1.5, 700.0, 710.0, -800.0, inf, -inf, nan])
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(exp(x), np.exp(x), rtol=1e-15)
    assert elementary.exp(1.0) == math.e


# --- scatter-add -------------------------------------------------------------------------------------------------------


def scattered(backend: Any, values: Any, index: Any, shape: tuple[int, ...]) -> Any:
    return backend.ops.scatter_add(values, index, key=(INDEX,), shape=shape)


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16, np.int64])
@pytest.mark.parametrize(
    ("index_shape", "shape"), [((50,), (7, 5)), ((3, 4), (6, 2, 3)), ((9,), (4,)), ((), (3, 2)), ((0,), (3, 2)), ((4,), (2, 0))]
)
def test_scatter_add_is_numpys(rng: Any, dtype: Any, index_shape: Any, shape: Any) -> None:
    index = rng.integers(-shape[0], shape[0], index_shape)
    values = (rng.standard_normal(index_shape + shape[1:]) * 8).astype(dtype)
    want, got = (scattered(b, values, index, shape) for b in (NUMPY, NUMBA))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)  # the same additions in the same order
    total = rng.integers(0, 9, shape).astype(dtype)
    want, got = (b.ops.scatter_add_into(total.copy(), values, index, key=(INDEX,)) for b in (NUMPY, NUMBA))
    np.testing.assert_array_equal(got, want)


def test_scatter_add_of_strided_and_read_only_arrays(rng: Any) -> None:
    index = rng.integers(0, 4, 20)[::2]
    values = np.broadcast_to(rng.standard_normal(3), (10, 3))
    np.testing.assert_array_equal(scattered(NUMBA, values, index, (4, 3)), scattered(NUMPY, values, index, (4, 3)))
    strided = rng.standard_normal((20, 6))[::2, ::2]
    total = np.zeros((3, 4)).T
    want = NUMPY.ops.scatter_add_into(total.copy(), strided, index, key=(INDEX,))
    got = NUMBA.ops.scatter_add_into(total, strided, index, key=(INDEX,))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("bad", [4, -5, 2**40])
def test_scatter_add_refuses_what_numpy_refuses(bad: int) -> None:
    index, total = np.array([1, bad, 2]), np.zeros((4, 2))
    said = []
    for backend in (NUMPY, NUMBA):
        with pytest.raises(IndexError) as error:
            backend.ops.scatter_add_into(total, np.ones((3, 2)), index, key=(INDEX,))
        said.append(str(error.value))
    assert said[0] == said[1] == f"index {bad} is out of bounds for axis 0 with size 4"
    assert not total.any()


def test_other_keys_are_numpys(rng: Any) -> None:
    for key, indices, shape, values in [
        ((slice(1, 3),), (), (4, 2), rng.standard_normal((2, 2))),
        ((INDEX, INDEX), (np.array([0, 1]), np.array([1, 1])), (2, 2), rng.standard_normal(2)),
        ((Ellipsis, INDEX), (np.array([0, 0, 1]),), (3, 2), rng.standard_normal((3, 3))),
    ]:
        want, got = (b.ops.scatter_add(values, *indices, key=key, shape=shape) for b in (NUMPY, NUMBA))
        np.testing.assert_array_equal(got, want)


def test_an_embeddings_gradient() -> None:
    with ts.use_backend("numba"):
        table = ts.tensor(np.zeros((5, 2)), requires_grad=True)
        ids = ts.tensor([[0, 3, 3], [-1, 0, 3]])
        (table[ids] * ts.tensor([1.0, 10.0], ts.float64)).sum().backward()
        assert table.grad.tolist() == [[2, 20], [0, 0], [0, 0], [3, 30], [1, 10]]


# --- fused functions ---------------------------------------------------------------------------------------------------


def answers(backend: str, f: Any, arrays: tuple[Any, ...], seed: Any = None) -> list[Any]:
    """The value and the gradients of the floating arguments."""
    with ts.use_backend(backend), np.errstate(all="ignore"):
        tensors = [None if a is None else ts.as_tensor(a) for a in arrays]
        for t in tensors:
            if t is not None:
                t.requires_grad = t.dtype.kind == "f"
        y = f(*tensors)
        g = np.ones(y.shape, y.dtype) if seed is None else seed
        y.backward(ts.as_tensor(g))
        return [y.numpy(), *(t.grad.numpy() for t in tensors if t is not None and t.requires_grad)]


def compare(f: Any, arrays: tuple[Any, ...], dtype: Any, seed: Any = None, looser: float = 1.0) -> None:
    """Numba's value and gradients are those of the definition in float64, to the rounding of ``dtype``."""
    wide = tuple(a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in arrays)
    wanted = answers("numpy", f, wide, None if seed is None else seed.astype(np.float64))
    for got, want in zip(answers("numba", f, arrays, seed), wanted, strict=True):
        assert got.dtype == dtype
        finite = np.abs(want[np.isfinite(want)]).max(initial=1.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=looser * TOLERANCE[dtype] * finite)


def runs_compiled(name: str, *arrays: Any, **params: Any) -> bool:
    return NUMBA.fused[name].accepts(*arrays, **params)


def layer_norm(x: Any, weight: Any, bias: Any) -> Any:
    return ts.layer_norm(x, weight, bias, eps=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax(rng: Any, dtype: Any, shape: Any) -> None:
    x, g = ((4 * rng.standard_normal(shape)).astype(dtype) for _ in range(2))
    assert runs_compiled("softmax", x)
    compare(ts.softmax, (x,), dtype, g, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) == 2])
def test_cross_entropy(rng: Any, dtype: Any, shape: Any) -> None:
    x, g = (4 * rng.standard_normal(shape)).astype(dtype), rng.standard_normal(shape[:1]).astype(dtype)
    targets = rng.integers(-shape[1], shape[1], shape[0])
    assert runs_compiled("softmax_cross_entropy", x, targets)
    compare(ts.functions.softmax_cross_entropy, (x, targets), dtype, g, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(rng: Any, dtype: Any, shape: Any) -> None:
    x = (3 + 4 * rng.standard_normal(shape)).astype(dtype)
    weight, bias = (rng.standard_normal(shape[-1:]).astype(dtype) for _ in range(2))
    g = rng.standard_normal(shape).astype(dtype)
    assert runs_compiled("layer_norm", x, weight, bias, eps=1e-5)
    for arrays in ((x, weight, bias), (x, None, bias), (x, weight, None), (x, None, None)):
        compare(layer_norm, arrays, dtype, g, 40)


def test_layer_norm_sums_many_rows_without_losing_digits(rng: Any) -> None:
    x = rng.standard_normal((20_000, 3)).astype(np.float32)
    arrays = (x, np.ones(3, np.float32), np.zeros(3, np.float32))
    _, _, _, dbias = answers("numba", layer_norm, arrays, np.full(x.shape, 1.1, np.float32))
    np.testing.assert_allclose(dbias, 20_000 * np.float64(np.float32(1.1)), rtol=1e-7)


FUSED = {
    "softmax": (ts.softmax, (6, 10)),
    "cross_entropy": (lambda x: ts.functions.softmax_cross_entropy(x, ts.tensor([3] * x.shape[0])), (6, 10)),
    "layer_norm": (lambda x: ts.layer_norm(x), (6, 10)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUSED)
def test_strided_and_read_only_input(rng: Any, dtype: Any, name: str) -> None:
    f, shape = FUSED[name]
    base = rng.standard_normal((2 * shape[0], 3 * shape[1])).astype(dtype)
    read_only = base[: shape[0], : shape[1]].copy()
    read_only.flags.writeable = False
    for x in (base[::2, ::3], base.reshape(3 * shape[1], -1)[::3].T[::2], np.broadcast_to(base[0, ::3], shape), read_only):
        assert x.shape == shape
        compare(f, (x,), dtype, looser=40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUSED)
def test_nan_and_infinities_are_the_definitions(dtype: Any, name: str) -> None:
    f, _ = FUSED[name]
    rows = [
        [1.0, nan, 2.0, 3.0, 0.0],
        [nan] * 5,
        [1.0, inf, 2.0, 3.0, 0.0],
        [1.0, inf, inf, inf, 0.0],
        [-inf] * 5,
        [-inf, 1.0, 2.0, -inf, 0.0],
        [-inf, -inf, -inf, 1.0, -inf],
        [nan, inf, -inf, 1.0, 2.0],
        [nan, -inf, -inf, -inf, -inf],
        [80.0, -80.0, 0.0, 70.0, 1.0],
        [300.0, -300.0, 299.0, 0.0, 200.0],
        [1.0, 2.0, 3.0, 4.0, 5.0],
    ]
    x = np.array(rows, dtype)
    for got, want in zip(answers("numba", f, (x,)), answers("numpy", f, (x,)), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=40 * TOLERANCE[dtype])


def test_extreme_logits_in_float32(rng: Any) -> None:
    x = np.float32([[1e38, -1e38, 0.0], [-1e38, -1e38, -1e38], [88.0, 0.0, -88.0], [1e4, 1e4 - 1, 0.0]])
    compare(ts.softmax, (x,), np.float32)
    losses, dx = answers("numba", ts.functions.softmax_cross_entropy, (x[2:], np.array([0, 1])))
    np.testing.assert_allclose(losses, [0.0, math.log(1 + math.e)], atol=2e-3)  # 1e4 has a spacing of 1e-3
    np.testing.assert_allclose(dx[1], [1 / (1 + math.exp(-1)), 1 / (1 + math.e) - 1, 0], atol=1e-6)


@pytest.mark.parametrize("bad", [5, -6])
def test_cross_entropy_refuses_a_class_that_is_not(bad: int) -> None:
    for backend in ("numpy", "numba"):
        with ts.use_backend(backend), pytest.raises(IndexError, match=f"index {bad} is out of bounds for axis 1 with size 5"):
            ts.functions.softmax_cross_entropy(ts.zeros((2, 5)), ts.tensor([0, bad]))


def test_what_kernels_do_not_take_the_definition_does() -> None:
    x = np.ones((2, 3), np.float16)
    assert not runs_compiled("softmax", x)
    assert not runs_compiled("softmax", np.ones((2, 0)))
    assert not runs_compiled("softmax", np.array(1.0))
    assert not runs_compiled("layer_norm", np.ones((2, 3)), np.ones(3, np.float32), None, eps=0.1)
    assert not runs_compiled("layer_norm", np.ones((2, 3)), np.ones((2, 3)), None, eps=0.1)
    assert not runs_compiled("softmax_cross_entropy", np.ones((2, 3)), np.ones(2, np.int32))
    with ts.use_backend("numba"):
        assert ts.softmax(ts.tensor(x)).dtype == np.float16


@pytest.mark.parametrize("name", FUSED)
def test_second_derivatives_run_through_the_definition(rng: Any, name: str) -> None:
    f, _ = FUSED[name]
    x, v = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    products = []
    for backend in ("numpy", "numba"):
        with ts.use_backend(backend):
            y = lambda t: (f(t) ** 3).sum()
            products.append(ts.hvp(y, (ts.tensor(x),), (ts.tensor(v),)))
    (want,), (got,) = [[t.numpy() for t in (p if isinstance(p, tuple) else (p,))] for p in products]
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


JITTED = [
    "add_rows",
    "softmax_forward",
    "softmax_backward",
    "softmax_cross_entropy_forward",
    "softmax_cross_entropy_backward",
    "layer_norm_forward",
    "layer_norm_backward",
    "_larger",
    "_largest",
    "_sum",
    "_dot",
]


def test_the_kernels_say_the_same_uncompiled(rng: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rng.standard_normal((3, 5))
    x[1] = -inf
    weight, targets = rng.standard_normal(5), np.array([1, -2, 4])
    cases = [
        (ts.softmax, (x,)),
        (ts.functions.softmax_cross_entropy, (x, targets)),
        (layer_norm, (x, weight, weight)),
        (lambda table, ids: table[ids], (rng.standard_normal((4, 2)), np.array([0, -1, 0]))),
    ]
    compiled = [answers("numba", f, arrays) for f, arrays in cases]
    for name in JITTED:
        monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)
    plain = [answers(NumbaBackend(), f, arrays) for f, arrays in cases]
    for got, want in zip(plain, compiled, strict=True):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_every_kernel_is_in_the_list_above() -> None:
    jitted = {name for name, f in vars(kernels).items() if hasattr(f, "py_func")}
    assert jitted == set(JITTED)
    assert set(fused.KERNELS) == {"softmax", "softmax_cross_entropy", "layer_norm"}


# --- elementwise loops -------------------------------------------------------------------------------------------------


def rule(F: Any, *, amsgrad: bool) -> Any:
    def update(p: Any, s: Any, top: Any, g: Any, rate: float, eps: float) -> tuple[Any, ...]:
        s = s + g * g
        if amsgrad:
            top = F.maximum(top, s)
        size = F.sqrt(top) if amsgrad else F.sqrt(s)
        return p - rate * g / (size + eps), s, top

    return update


def arguments(rng: Any, shape: tuple[int, ...], dtype: Any, top: bool) -> list[Any]:
    p, s, largest, g = (np.asarray(np.abs(rng.standard_normal(shape)), dtype) for _ in range(4))
    return [p, s, largest if top else 0.0, g, 0.1, 1e-8]


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
@pytest.mark.parametrize("shape", [(37,), (5, 7), (), (0, 3), (2, 3, 4)])
def test_a_loop_gives_numpys_bits(rng: Any, shape: Any, dtype: Any, amsgrad: bool) -> None:
    given = arguments(rng, shape, dtype, amsgrad)
    want, got = (b.elementwise(rule, amsgrad=amsgrad)(*given, in_place=[False] * 3) for b in (NUMPY, NUMBA))
    for a, b in zip(got[: 2 + amsgrad], want[: 2 + amsgrad], strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


def test_a_loop_writes_only_where_it_may(rng: Any) -> None:
    given = arguments(rng, (4, 3), np.float32, True)
    before = [np.copy(a) for a in given]
    p, s, top = NUMBA.elementwise(rule, amsgrad=True)(*given, in_place=[True, False, True])
    assert p is given[0]
    assert top is given[2]
    assert s is not given[1]
    np.testing.assert_array_equal(given[1], before[1])
    np.testing.assert_array_equal(given[3], before[3])
    assert not np.array_equal(p, before[0])


def test_a_loop_takes_strided_read_only_and_broadcast_arrays(rng: Any) -> None:
    p, s = rng.standard_normal((6, 8))[::2, ::2], np.abs(rng.standard_normal((4, 3))).T
    g, top = np.broadcast_to(rng.standard_normal(4), (3, 4)), np.ones((3, 4))
    top.flags.writeable = False
    given = [p, s, top, g, 0.1, 1e-8]
    want, got = (b.elementwise(rule, amsgrad=True)(*given, in_place=[True] * 3) for b in (NUMPY, NUMBA))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loop_over_float32_computes_in_float32() -> None:
    (x,) = NUMBA.elementwise(_third)(np.float32([3.0]), 1 / 3, in_place=[False])
    assert x[0] == np.float32(3.0) * np.float32(1 / 3) - np.float32(1 / 3)


def _third(F: Any) -> Any:
    def update(x: Any, third: float) -> tuple[Any, ...]:
        return (x * third - third,)

    return update


def test_a_loop_divides_by_zero_and_keeps_nan() -> None:
    p, _, top = NUMBA.elementwise(rule, amsgrad=True)(
        np.float32([1, 1, 1]),
        np.float32([0, nan, 1]),
        np.float32([0, 2, nan]),
        np.float32([0, 1, 1]),
        1.0,
        0.0,
        in_place=[False] * 3,
    )
    np.testing.assert_array_equal(np.isnan(top), [False, True, True])
    np.testing.assert_array_equal(np.isnan(p), [True, True, True])  # 0 / 0 too


def test_arrays_that_differ_go_to_numpy(rng: Any) -> None:
    given = [np.ones((2, 3)), np.ones((2, 3)), 0.0, np.ones(3), 0.1, 1e-8]
    p, *_ = NUMBA.elementwise(rule, amsgrad=False)(*given, in_place=[True] * 3)
    np.testing.assert_allclose(p, 1 - 0.1 / math.sqrt(2), rtol=1e-7)


# --- machine code on the disk ------------------------------------------------------------------------------------------

PROGRAM = """
import json, sys, warnings
import numpy as np
import tinyseq as ts
from tinyseq.optim import Adam
said = []
warnings.showwarning = lambda message, *rest: said.append(str(message))
ts.use_backend("numba")
results = []
for amsgrad in map(bool, map(int, sys.argv[1].split(","))):
    p = ts.Parameter(np.float32([1.0, 2.0]))
    optimizer = Adam([p], lr=0.5, betas=(0.5, 0.5), amsgrad=amsgrad)
    for g in ([4.0, 1.0], [0.5, 1.0], [0.5, 2.0]):
        p.grad = ts.tensor(g)
        optimizer.step()
    results.append(p.tolist())
hits = sum(sum(loop.stats.cache_hits.values()) for e in ts.get_backend("numba")._compiled.values() for loop in e.loops.values())
print(json.dumps([results, hits, said]))
"""


def run(variants: str, folder: Path, **environment: str) -> Any:
    code = PROGRAM.replace("sys.argv[1]", repr(variants))
    return json.loads(python(code, TINYSEQ_CACHE_DIR=str(folder), **environment))


def test_loops_are_compiled_once_on_a_machine(tmp_path: Path) -> None:
    (plain,), hits, said = run("0", tmp_path)
    assert (hits, said) == (0, [])
    (amsgrad,), hits, _ = run("1", tmp_path)
    assert hits == 0
    assert amsgrad != plain
    # Both from the disk, into one process: each still does its own.
    assert run("0,1", tmp_path) == [[plain, amsgrad], 2, []]


def test_a_cache_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results, hits, said = run("0,1", tmp_path / "file")
    assert len(results) == 2
    assert hits == 0
    assert len(said) == 1
    assert "set TINYSEQ_CACHE_DIR to a folder that can be written" in said[0]


def test_a_source_file_that_was_changed_is_written_again(tmp_path: Path) -> None:
    (plain,), _, _ = run("0", tmp_path)
    (file,) = (tmp_path / "numba").glob("*.py")
    source = file.read_text()
    file.write_text("def broken(")
    (again,), _, _ = run("0", tmp_path)
    assert again == plain
    assert file.read_text() == source


def test_the_cache_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSEQ_CACHE_DIR", str(tmp_path))
    assert generated._folder() == tmp_path / "numba"
    monkeypatch.delenv("TINYSEQ_CACHE_DIR")
    assert generated._folder().parts[-2:] == ("tinyseq", "numba")


def test_names_differ_where_anything_does() -> None:
    def name(**flags: Any) -> str:
        loop = elementwise.Elementwise(rule, flags, lambda: ())
        return loop._compile((True, True, False, True, False, False), 3).py_func.__name__

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [name(amsgrad=False), name(amsgrad=True), name(amsgrad=False)]
    assert names[0] == names[2] != names[1]
