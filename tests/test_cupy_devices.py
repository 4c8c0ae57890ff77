"""Devices, DLPack, full memory and waiting, with NumPy's arrays in the place of a GPU's; nothing here has run on a GPU."""

from __future__ import annotations

import ast
import gc
import importlib.util
import inspect
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_shim
import numpy as np
import pytest
import tinyseq_cupy
from test_cupy_loop import TILES, arguments, step_of
from tinyseq_cupy import CupyBackend
from tinyseq_cupy.loop import run

import tinyseq as ts
from tinyseq.backend import Backend
from tinyseq.errors import BackendError, DTypeError, GraphError


class Full(MemoryError):
    pass


class Array(np.ndarray[Any, Any]):
    """A NumPy array on a made-up device. What would wait for a GPU fails, unless ``waiting`` allows it."""

    number = 0
    waiting = False

    def __array_finalize__(self, other: Any) -> None:
        self.number = getattr(other, "number", Cuda.current)

    @property
    def device(self) -> Any:
        return Device(self.number)

    @property
    def flags(self) -> Any:
        return types.SimpleNamespace(c_contiguous=super().flags.c_contiguous, owndata=True)

    def copy(self, order: Any = "C") -> Any:
        new = super().copy(order)
        new.number = Cuda.current
        return new

    def _wait(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a value on the device was waited for")

    item = tolist = __bool__ = __int__ = __float__ = __index__ = _wait  # type: ignore[assignment]

    def __dlpack__(self, **options: Any) -> Any:
        return np.asarray(self).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return (2, self.number)


class Device:
    def __init__(self, number: int | None = None) -> None:
        self.id = Cuda.current if number is None else number

    def __enter__(self) -> Device:
        self.before, Cuda.current = Cuda.current, self.id
        return self

    def __exit__(self, *error: object) -> None:
        Cuda.current = self.before

    def synchronize(self) -> None:
        Cuda.waited.append(self.id)


class Cuda:
    current = 0
    waited: list[int] = []  # noqa: RUF012


def _made(function: Any) -> Any:
    """A function of NumPy whose results are arrays on the current device or on that of its arguments."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        numbers = {a.number for a in arguments if isinstance(a, Array)}
        assert numbers <= {Cuda.current}, "an operation ran on another device than that of its arrays"
        result = function(*arguments, **keywords)
        return np.asarray(result).view(Array) if isinstance(result, np.ndarray | np.generic) else result

    return call


class Cupy(types.ModuleType):
    __version__ = np.__version__
    ndarray = Array
    waits = 0

    def __init__(self, devices: int = 2) -> None:
        super().__init__("cupy")
        self.cuda = types.SimpleNamespace(
            Device=Device,
            memory=types.SimpleNamespace(OutOfMemoryError=Full),
            runtime=types.SimpleNamespace(
                getDeviceCount=lambda: devices,
                CUDARuntimeError=RuntimeError,
                memGetInfo=lambda: (2**29, 8 * 2**30),
                getDeviceProperties=lambda number: {"name": b"Made up"},
            ),
        )

    def asnumpy(self, array: Any) -> Any:
        Cupy.waits += 1
        return np.array(array).view(np.ndarray)

    def ElementwiseKernel(self, inputs: str, outputs: str, operation: str, name: str, preamble: str = "") -> Any:
        if name == "tinyseq_sigmoid":
            return _made(lambda x: 1 / (1 + np.exp(-x)))
        return lambda *arguments: arguments[-1].fill(0.5)  # random numbers

    def from_dlpack(self, array: Any) -> Any:
        shared = np.from_dlpack(_OnHost(array)).view(Array)
        shared.number = array.__dlpack_device__()[1]
        return shared

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return _made(found) if callable(found) and not isinstance(found, type) else found


class _OnHost:
    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return (1, 0)


class OneAtATime(CupyBackend):
    """What compiles has tests of its own."""

    compile_loop, compile_graph = Backend.compile_loop, Backend.compile_graph

    def elementwise(self, rule: Any, **flags: Any) -> Any:
        return Backend.elementwise(self, rule, **flags)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cupy]:
    from tinyseq import backend

    module = Cupy()
    erf = np.vectorize(__import__("math").erf, otypes=[float])
    scatter_add = _made(lambda total, key, values: np.add.at(total, key, values))
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setitem(sys.modules, "cupyx", types.SimpleNamespace(scatter_add=scatter_add))
    monkeypatch.setitem(sys.modules, "cupyx.scipy", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", types.SimpleNamespace(erf=_made(erf)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tinyseq_cupy, "CupyBackend", OneAtATime)
    monkeypatch.setattr(backend, "_loaded", {k: v for k, v in backend._loaded.items() if not k.startswith("cupy")})
    monkeypatch.setattr(backend, "_by_array_type", dict(backend._by_array_type))
    monkeypatch.setattr(ts.random, "_generators", {})
    Cuda.current, Cuda.waited, Cupy.waits = 0, [], 0
    yield module
    assert Cuda.current == 0
    gc.collect()


# --- which device -----------------------------------------------------------------------------------------------------


def test_a_backend_for_each_device(cupy: Cupy) -> None:
    first, second = ts.get_backend("cupy:0"), ts.get_backend("cupy:1")
    assert (first.name, second.name) == ("cupy:0", "cupy:1")
    assert second is ts.get_backend("cupy:1")
    assert second.device == "Made up (cuda:1)"
    assert repr(second) == "<tinyseq backend 'cupy:1' on Made up (cuda:1)>"
    for place in ("2", "", "one", "-1", "1.5"):
        with pytest.raises(BackendError, match=rf"no device 'cupy:{place}'; choose one of: cupy:0, cupy:1"):
            ts.get_backend(f"cupy:{place}")
    with pytest.raises(BackendError, match="'numpy' has no devices to choose from, got 'numpy:1'"):
        ts.get_backend("numpy:1")


def test_new_arrays_are_made_on_the_device_in_force(cupy: Cupy) -> None:
    for place, number in (("cupy:1", 1), ("cupy:0", 0), ("cupy", 0)):
        with ts.use_backend(place):
            made = [ts.zeros(2), ts.tensor([1.0]), ts.arange(3), ts.random.rand(2), ts.tensor(np.ones(2))]
        assert [t.data.number for t in made] == [number] * 5


def test_a_thread_of_its_own_makes_them_there_too(cupy: Cupy) -> None:
    """CUDA's current device is a thread's own; that of the backend is not."""
    found = []
    backend = ts.get_backend("cupy:1")
    thread = threading.Thread(target=lambda: found.append(backend.full((2,), 1.0, np.dtype("float32")).number))
    thread.start()
    thread.join()
    assert found == [1]


def test_an_operation_runs_where_its_arrays_are(cupy: Cupy) -> None:
    with ts.use_backend("cupy:1"):
        x = ts.tensor([1.0, 2.0], requires_grad=True)
    with ts.use_backend("cupy:0"):  # another one is in force
        loss = (ts.tanh(x) * x).sum()
        loss.backward()
    assert x.grad.data.number == 1
    Array._wait, wait = (lambda self: None), Array._wait
    try:
        expected = np.tanh([1, 2]) + np.array([1, 2]) * (1 - np.tanh([1, 2]) ** 2)
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-6)
    finally:
        Array._wait = wait  # type: ignore[method-assign]


def test_arrays_of_two_devices_do_not_mix(cupy: Cupy) -> None:
    x, y = (ts.ones(2).to(place) for place in ("cupy:0", "cupy:1"))
    with pytest.raises(BackendError, match=r"add got arrays on cuda:0 and cuda:1: move one of them with \.to\('cupy:0'\)"):
        x + y
    assert (x + y.to("cupy:0")).data.number == 0


def test_a_tensor_moves_between_devices_without_the_host(cupy: Cupy) -> None:
    x = ts.tensor([1.0, 2.0], requires_grad=True).to("cupy:0")
    y = x.to("cupy:1")
    assert (y.data.number, y.requires_grad) == (1, True)
    assert y.to("cupy:1") is y
    assert y.to("cupy").data.number == 0  # the current one
    assert Cupy.waits == 0
    np.testing.assert_array_equal(y.to("numpy").numpy(), [1, 2])
    with pytest.raises(GraphError, match="cannot move"):
        (y * 2).to("cupy:0")


def test_a_module_moves_and_learns_there(cupy: Cupy) -> None:
    """Parameters, buffers, an optimizer's state and the loop stay on device 1, and nothing waits for it."""
    layer = ts.nn.LSTM(3, 4).to("cupy:1")
    assert {p.data.number for p in layer.parameters()} == {1}
    before = [np.array(p.data) for p in layer.parameters()]
    optimizer = ts.optim.Adam(layer.parameters(), lr=0.1)
    with ts.use_backend("cupy:1"):
        x = ts.ones((5, 2, 3))
        Cupy.waits = 0
        for _ in range(2):
            optimizer.zero_grad()
            ys, _ = layer(x)
            (ys * ys).sum().backward()
            optimizer.step()
    assert Cupy.waits == 0
    assert Cuda.waited == []
    assert {p.data.number for p in layer.parameters()} == {1}
    assert all(not np.array_equal(a, np.array(p.data)) for a, p in zip(before, layer.parameters(), strict=True))


OPTIMIZERS = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"centered": True},
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "AdamW": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_training_waits_for_nothing(cupy: Cupy, name: str) -> None:
    """Embedding, loop, output layer, loss, clipping, schedule and update: no number comes back to the host."""
    with ts.use_backend("cupy:1"):
        layers = ts.nn.Embedding(11, 4), ts.nn.LSTM(4, 5, layer_norm=True), ts.nn.Dropout(0.5), ts.nn.Linear(5, 11)
        parameters = [p for layer in layers for p in layer.parameters()]
        optimizer = getattr(ts.optim, name)(parameters, lr=0.1, **OPTIMIZERS[name])
        schedule = ts.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        tokens = ts.tensor(np.arange(12).reshape(4, 3) % 11)
        Cupy.waits = 0
        for _ in range(2):
            x = tokens
            for layer in layers:
                x = layer(x)
                x = x[0] if isinstance(x, tuple) else x
            loss = ts.nn.functional.cross_entropy(x.reshape(-1, 11), tokens.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            ts.optim.clip_grad_norm(parameters, 1.0)
            optimizer.step()
            schedule.step()
    assert (Cupy.waits, Cuda.waited) == (0, [])
    assert {p.data.number for p in parameters} == {1}


def test_synchronize_waits_for_the_device_in_force(cupy: Cupy) -> None:
    ts.synchronize()
    assert Cuda.waited == []
    with ts.use_backend("cupy:1"):
        ts.synchronize()
    assert Cuda.waited == [1]


def test_tf32_is_off_unless_asked_for(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is CuPy's own setting, so that cuBLAS follows it as well as the loops do."""
    own = {"float32": 0}
    settings = types.SimpleNamespace(
        get_compute_type=lambda dtype: own[np.dtype(dtype).name],
        set_compute_type=lambda dtype, kind: own.update({np.dtype(dtype).name: kind}),
    )
    monkeypatch.setitem(sys.modules, "cupy._core", settings)
    backend, other = ts.get_backend("cupy"), ts.get_backend("cupy:1")
    assert (backend.allow_tf32, other.allow_tf32) == (False, False)
    backend.allow_tf32 = True
    assert own == {"float32": 7}  # CuPy's COMPUTE_TYPE_TF32
    assert other.allow_tf32
    backend.allow_tf32 = False
    assert own == {"float32": 1}


# --- full memory ------------------------------------------------------------------------------------------------------


def test_full_memory_is_one_sentence_with_the_remedy(cupy: Cupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise Full("Out of memory allocating 4,096 bytes (allocated so far: 0 bytes).")

    x = ts.ones(2).to("cupy:1")
    monkeypatch.setattr(cupy, "full", full, raising=False)
    monkeypatch.setitem(x.backend.table, "add", tinyseq_cupy.careful("add", full, cupy, True))
    wanted = r"cuda:1 is out of memory \(Out of memory .* bytes\); 0\.5 of its 8\.0 GiB are free\): use a smaller batch"
    with ts.use_backend("cupy:1"):
        for call in (lambda: x + x, lambda: ts.zeros(4)):
            with pytest.raises(BackendError, match=wanted) as raised:
                call()
            assert "\n" not in str(raised.value)


def test_memory_grows_with_the_steps_by_the_residuals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop asks the pool for: histories and written stacks for T steps, and the same scratch for any T."""
    if gpu_shim.COMPILER is None:
        pytest.skip("no g++ or clang++ to run CUDA source on the CPU")
    for driver, direction in (("persistent", "forward"), ("streamed", "backward")):
        step = step_of("layer_norm_lstm", direction)
        machine = gpu_shim.CpuMachine()
        asked: list[int] = []
        empty = machine.empty

        def noted(shape: tuple[int, ...], dtype: Any, asked: Any = asked, empty: Any = empty) -> Any:
            asked.append(int(np.prod(shape)) * dtype.itemsize)
            return empty(shape, dtype)

        machine.empty = noted  # type: ignore[method-assign]
        loop = run.compile_loop(step, machine, TILES[driver])
        sizes = []
        for steps in (2, 5):
            asked.clear()
            loop(*arguments(step, steps), steps, False)
            sizes.append(sum(asked))
        residuals = sum(step.carry[i].dtype.itemsize * int(np.prod(step.carry[i].shape)) for i in step.histories)
        residuals += sum(v.dtype.itemsize * int(np.prod(v.shape)) for v in step.written)
        assert sizes[1] - sizes[0] == 3 * residuals


# --- nothing waits ----------------------------------------------------------------------------------------------------

WAITS = {"get", "item", "tolist", "asnumpy", "synchronize", "to_numpy", "__array__"}
ALLOWED = {  # where waiting is what is asked for, or is for a copy of eight calls ago
    ("__init__.py", "to_numpy", "asnumpy"),
    ("__init__.py", "synchronize", "synchronize"),
    ("cuda.py", "filled", "synchronize"),
}


def test_no_other_line_of_the_backend_waits_for_the_device() -> None:
    found = set()
    for path in Path(inspect.getfile(tinyseq_cupy)).parent.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr in WAITS and not (node.func.attr == "get" and node.args):  # a dict's has an argument
                    found.add((path.name, function.name, node.func.attr))
    assert found == ALLOWED


# --- DLPack -----------------------------------------------------------------------------------------------------------


def test_an_array_of_the_host_is_shared_both_ways() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    for backend in ("numpy", "numba"):
        if backend == "numba":
            pytest.importorskip("numba")
        with ts.use_backend(backend):
            x = ts.from_dlpack(a)
            assert x.backend.name == backend
        assert np.shares_memory(x.numpy(), a)
        assert not x.requires_grad
        assert np.shares_memory(np.from_dlpack(x), a)
        np.testing.assert_array_equal((x * 2).numpy(), a * 2)
        w = ts.Parameter(np.ones((3, 1), np.float32))
        (x @ w).sum().backward()
        np.testing.assert_array_equal(w.grad.numpy()[:, 0], a.sum(0))
    np.testing.assert_array_equal(a.ravel(), np.arange(6))


def test_an_optimizer_does_not_write_into_what_is_shared() -> None:
    a = np.ones(3, np.float32)
    p = ts.Parameter(ts.from_dlpack(a))
    p.grad = ts.ones(3)
    ts.optim.SGD([p], lr=0.5).step()
    np.testing.assert_array_equal(p.numpy(), [0.5] * 3)
    np.testing.assert_array_equal(a, [1] * 3)


def test_what_cannot_be_shared_is_named() -> None:
    with pytest.raises(DTypeError, match=r"takes an array with __dlpack__, got list; ts\.tensor copies lists"):
        ts.from_dlpack([1.0])
    with pytest.raises(DTypeError, match="complex64"):
        ts.from_dlpack(np.ones(2, np.complex64))
    with pytest.raises(DTypeError, match="cannot be shared"):
        ts.from_dlpack(np.ones(2, ">f4"))

    class Far:
        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError

        def __dlpack_device__(self) -> Any:
            return (10, 3)  # ROCm

    if CupyBackend.unavailable() is None:
        with pytest.raises(BackendError, match="DLPack's device 10, number 3"):
            ts.from_dlpack(Far())
    else:
        with pytest.raises(BackendError, match="'cupy' cannot run here"):
            ts.from_dlpack(Far())


def test_an_array_of_a_gpu_stays_on_its_device(cupy: Cupy) -> None:
    theirs = np.ones(3, np.float32).view(Array)
    theirs.number = 1
    for place in ("numpy", "cupy:0"):
        with ts.use_backend(place):
            x = ts.from_dlpack(theirs)
            assert x.data.number == 1
            assert np.shares_memory(np.asarray(x.data), np.asarray(theirs))
            assert x.__dlpack_device__() == (2, 1)
            assert x.backend.name.startswith("cupy")
    with ts.use_backend("cupy:1"):
        assert ts.from_dlpack(np.ones(2)).backend.name == "numpy"


@pytest.mark.peers
def test_with_pytorch_and_jax() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.arange(3.0)
    x = ts.from_dlpack(theirs)
    theirs[0] = 7  # only a shared memory shows it
    assert x.tolist() == [7, 1, 2]
    back = torch.from_dlpack(x)
    assert back.data_ptr() == theirs.data_ptr()
    with pytest.raises(DTypeError, match="cannot be shared"):
        ts.from_dlpack(theirs.clone().requires_grad_())
    jax = pytest.importorskip("jax")
    ours = ts.from_dlpack(jax.numpy.arange(3.0))
    assert ours.tolist() == [0, 1, 2]
    assert jax.numpy.from_dlpack(x).tolist() == [7, 1, 2]


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    import cupy

    a = cupy.arange(4, dtype=np.float32)
    x = ts.from_dlpack(a)
    assert x.data.data.ptr == a.data.ptr
    assert cupy.from_dlpack(x).data.ptr == a.data.ptr
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        theirs = torch.from_dlpack(x)
        assert theirs.data_ptr() == a.data.ptr
        assert ts.from_dlpack(theirs).data.data.ptr == a.data.ptr


@pytest.mark.gpu
def test_two_gpus() -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    layer = ts.nn.LSTM(3, 64).to("cupy:1")
    with ts.use_backend("cupy:1"):
        x = ts.random.randn((7, 5, 3))
    ys, _ = layer(x)
    (ys * ys).sum().backward()
    assert ys.data.device.id == layer.weight_hh_l0.grad.data.device.id == 1
    wanted, _ = layer.to("numpy")(x.to("numpy"))
    np.testing.assert_allclose(ys.detach().numpy(), wanted.detach().numpy(), rtol=1e-4, atol=1e-5)
