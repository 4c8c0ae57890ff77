"""Straight-line code on the GPU, losses and optimizers' updates, as far as they can be checked without one.

The kernels' text runs on the CPU through the shim, or, where it is for CuPy's ElementwiseKernel, in a loop over elements
compiled by the host's compiler. Nothing here has run on a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import types
from collections.abc import Callable
from typing import Any, ClassVar

import gpu_shim
import numpy as np
import pytest
import test_cupy_loop
from gpu_shim.compilers import compiler
from gpu_shim.cupy_on_cpu import CupyOnCpu, DeviceArray
from tinyseq_cupy import regions
from tinyseq_cupy.elementwise import Elementwise
from tinyseq_cupy.loop import cuda
from tinyseq_cupy.loop.source import BASICS
from tinyseq_cupy.regions import RegionFunction, compile_graph
from tinyseq_numpy import NumpyBackend

import tinyseq as ts
from tinyseq.graph import Equation, Graph, Var
from tinyseq.primitives import TABLE

cupy_on_cpu = test_cupy_loop.cupy_on_cpu
needs_compiler = pytest.mark.skipif(gpu_shim.COMPILER is None, reason="no g++ or clang++ to run CUDA source on the CPU")
F = ts.nn.functional


class Started:
    """The kernels that were made, and what was left to NumPy."""

    def __init__(self) -> None:
        self.functions: list[RegionFunction] = []
        self.alone: list[str] = []
        self.kernels: list[str] = []


@pytest.fixture
def through_the_shim(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Started]:
    """NumPy's backend compiles straight-line graphs for the shim, with threads in the given order."""

    def start(order: str) -> Started:
        started, machine = Started(), gpu_shim.CpuMachine(order)
        machine.limits = gpu_shim.Device(processors=1, shared=200_000)  # type: ignore[misc]  # so that rows share a block
        init, call, plain = RegionFunction.__init__, regions._call, gpu_shim.CpuProgram.plain

        def noted(self: RegionFunction, *arguments: Any) -> None:
            init(self, *arguments)
            started.functions.append(self)

        def left(e: Equation, backend: Any) -> Any:
            started.alone.append(e.primitive.name)
            return call(e, backend)

        def run(self: Any, name: str, *arguments: Any) -> None:
            started.kernels.append(name)
            plain(self, name, *arguments)

        monkeypatch.setattr(regions, "_call", left)
        monkeypatch.setattr(gpu_shim.CpuProgram, "plain", run)

        monkeypatch.setattr(regions, "THREADS", 64)
        monkeypatch.setattr(RegionFunction, "__init__", noted)
        monkeypatch.setattr(NumpyBackend, "recomputes", True)
        monkeypatch.setattr(NumpyBackend, "compile_graph", lambda self, graph: compile_graph(graph, self, lambda: machine))
        return started

    return start


def numbers(*shape: int, dtype: str = "float32", seed: int = 0) -> Any:
    return np.random.default_rng(seed).uniform(0.3, 1.7, shape).astype(dtype)


def chain(x: Any, y: Any) -> Any:
    return ts.tanh(x * 0.5 + y) * ts.sigmoid(y) / (1 + ts.exp(-x)) + ts.maximum(x, y) ** 2


def layer_norm(x: Any, gain: Any, shift: Any) -> Any:
    return F.layer_norm(ts.tanh(x), gain.shape, gain, shift)


def softmax(x: Any) -> Any:
    return ts.softmax(x * 3, -1) * 2


def masked_mean(x: Any, mask: Any) -> Any:
    return ts.where(mask, x * x, 0.0).sum() / mask.sum()


CASES = {
    "chain": (chain, lambda d: (numbers(7, 5, dtype=d), numbers(7, 5, dtype=d, seed=1))),
    "bias": (chain, lambda d: (numbers(4, 7, 5, dtype=d), numbers(5, dtype=d, seed=1))),
    "layer_norm": (layer_norm, lambda d: (numbers(9, 70, dtype=d), numbers(70, dtype=d), numbers(70, dtype=d, seed=1))),
    "softmax": (softmax, lambda d: (numbers(3, 5, 33, dtype=d),)),
    "mean": (lambda x: (chain(x, x) + x).mean(), lambda d: (numbers(200, dtype=d),)),
    "mse": (lambda x, y: F.mse_loss(x, y), lambda d: (numbers(31, 4, dtype=d), numbers(31, 4, dtype=d, seed=1))),
    "one_column": (lambda x: (ts.tanh(x) * 2).sum(-1), lambda d: (numbers(11, 1, dtype=d),)),
}


def near(a: Any, b: Any, tolerance: float) -> bool:
    return bool(np.allclose(a.numpy(), b.numpy(), rtol=tolerance, atol=tolerance * float(np.abs(b.numpy()).max())))


def both(function: Any, arrays: Any, backend: str = "numpy") -> tuple[list[Any], list[Any]]:
    """Value and gradients, eager and compiled."""

    def scalar(*xs: Any) -> Any:
        y = function(*xs)
        return (y * y).sum() if y.ndim else y

    argnums = tuple(range(len(arrays)))
    with ts.use_backend(backend):
        tensors = [ts.tensor(a) for a in arrays]
        value, gradients = ts.value_and_grad(scalar, argnums)(*tensors)
        got, got_gradients = ts.jit(ts.value_and_grad(scalar, argnums))(*tensors)
        plain = ts.jit(function)(*tensors)
        wanted = function(*tensors)
    return [value, *gradients, wanted], [got, *got_gradients, plain]


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_tape(through_the_shim: Any, case: str, dtype: str) -> None:
    function, make = CASES[case]
    tolerance = {"float32": 1e-5, "float64": 1e-10}[dtype]
    for order in gpu_shim.ORDERS if dtype == "float32" else ("random",):
        started = through_the_shim(order)
        wanted, got = both(function, make(dtype))
        assert started.functions
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == b.dtype
            assert near(a, b, tolerance)


def classes(dtype: str = "int64") -> Any:
    return ts.tensor(np.array([3, 0, 36, 5, 3, 11], dtype))


LOSSES = {
    "cross_entropy": lambda x, y, w: F.cross_entropy(x, classes()),
    "of what is computed": lambda x, y, w: F.cross_entropy(ts.tanh(x) * 40, classes()),
    "32-bit classes": lambda x, y, w: F.cross_entropy(x, classes("int32")),
    "sum": lambda x, y, w: F.cross_entropy(x, classes(), reduction="sum"),
    "none": lambda x, y, w: F.cross_entropy(x, classes(), reduction="none"),
    "ignore_index": lambda x, y, w: F.cross_entropy(x, classes(), ignore_index=3),
    "nothing counts": lambda x, y, w: F.cross_entropy(x, ts.full((6,), -100)),
    "label_smoothing": lambda x, y, w: F.cross_entropy(x, classes(), label_smoothing=0.1),
    "weight": lambda x, y, w: F.cross_entropy(x, classes(), w),
    "all of it": lambda x, y, w: F.cross_entropy(x, classes(), w, ignore_index=5, label_smoothing=0.2),
    "probabilities": lambda x, y, w: F.cross_entropy(x, y),
    "nll": lambda x, y, w: F.nll_loss(x, classes(), w),
    "nll of log_softmax": lambda x, y, w: F.nll_loss(ts.log_softmax(x), classes(), ignore_index=0),
    "log_softmax": lambda x, y, w: ts.log_softmax(x * 30),
    "mse": lambda x, y, w: F.mse_loss(x, y),
    "l1": lambda x, y, w: F.l1_loss(x, y),
    "huber": lambda x, y, w: F.huber_loss(x, y, 0.3),
    "smooth_l1": lambda x, y, w: F.smooth_l1_loss(x, y, 0.3),
    "bce": lambda x, y, w: F.binary_cross_entropy(x / 2, y),
    "bce_with_logits": lambda x, y, w: F.binary_cross_entropy_with_logits(x, y),
    "kl_div": lambda x, y, w: F.kl_div(x, y),
}


@needs_compiler
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_one_kernel_and_its_gradient_another(through_the_shim: Any, loss: str) -> None:
    for order in gpu_shim.ORDERS:
        started = through_the_shim(order)
        check_loss(LOSSES[loss], "float32", 1e-5)
        assert started.alone == []
        assert started.kernels == ["ts_region"] * 2


@needs_compiler
@pytest.mark.parametrize("loss", ["all of it", "nll of log_softmax", "huber"])
def test_a_loss_in_double_precision(through_the_shim: Any, loss: str) -> None:
    through_the_shim("random")
    check_loss(LOSSES[loss], "float64", 1e-10)


def check_loss(function: Any, dtype: str, tolerance: float, backend: str = "numpy") -> None:
    """Value and gradient, compiled, and by NumPy, eager."""
    results = []
    for f, where in ((function, "numpy"), (ts.jit(function), backend)):
        with ts.use_backend(where):
            target, weight = ts.tensor(numbers(6, 37, dtype=dtype, seed=3) / 2), ts.tensor(numbers(37, dtype=dtype, seed=5))
            x = ts.tensor(numbers(6, 37, dtype=dtype), requires_grad=True)
            value = f(x, target, weight)
            value.backward(ts.tensor(numbers(*value.shape, dtype=dtype, seed=9)))
            results.append((value, x.grad))
    for wanted, got in zip(*results, strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), tolerance, tolerance * np.abs(wanted.numpy()).max())


@needs_compiler
def test_an_element_of_each_row_whatever_the_rows(through_the_shim: Any) -> None:
    """Only where all rows are told to be others is a gather or a scatter one element a row; an index wraps around."""
    x, rows = ts.tensor(numbers(4, 5)), ts.tensor(np.array([2, 2, 0, 2]))
    columns = ts.tensor(np.array([-1, 4, -5, 0]))

    def loss(x: Any) -> Any:
        return (ts.exp(x)[rows, columns] * 2 + ts.tanh(x)[np.arange(4), columns]).sum()

    started = through_the_shim("random")
    with ts.use_backend("numpy"):
        wanted, got = (ts.value_and_grad(f)(x) for f in (loss, ts.jit(loss)))
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-7)
    assert started.alone.count("getitem") == started.alone.count("scatter_add") == 2


@needs_compiler
def test_other_sizes_and_numbers_compile_nothing(through_the_shim: Any) -> None:
    started = through_the_shim("ascending")
    for rows, factor in ((3, 0.5), (5, 0.25)):
        with ts.use_backend("numpy"):
            x = ts.tensor(numbers(rows, 40))
            y = ts.jit(lambda x, factor=factor: (ts.exp(x * factor) - x).sum(-1, keepdims=True) + x)(x)
        np.testing.assert_allclose(y.numpy(), (np.exp(x.numpy() * factor) - x.numpy()).sum(-1, keepdims=True) + x.numpy(), 1e-5)
    texts = {function.text for function in started.functions}
    assert len(started.functions) == 2
    assert len(texts) == 1


@needs_compiler
def test_each_barrier_is_needed(through_the_shim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, barrier = regions.REDUCE, "__syncthreads();"
    places = [found.start() for found in re.finditer(re.escape(barrier), sound)]
    assert len(places) == 4
    for place in places:
        monkeypatch.setattr(regions, "REDUCE", sound[:place] + ";" + sound[place + len(barrier) :])
        for case, order in itertools.product(("layer_norm", "mse"), gpu_shim.ORDERS):
            function, make = CASES[case]
            through_the_shim(order)
            try:
                wanted, got = both(function, make("float32"))
            except gpu_shim.Broken:
                break
            if not all(near(a, b, 1e-5) for a, b in zip(got, wanted, strict=True)):
                break
        else:
            pytest.fail(f"nothing goes wrong without the barrier at {place}")


@needs_compiler
def test_the_same_text_is_one_program(cupy_on_cpu: CupyOnCpu) -> None:
    """CuPy loads it once, so there is one table, which only one program may fill."""
    machine, text = cuda.current_machine(), f"{BASICS}\n{KERNEL}"
    program = machine.compile(text, {"TS_THREADS": 32})
    assert machine.compile(text, {"TS_THREADS": 32}) is program
    assert machine.compile(text, {"TS_THREADS": 64}) is not program


KERNEL = 'extern "C" { __constant__ long long ts_table[1]; }\nextern "C" __global__ void ts_nothing() {}'


@needs_compiler
def test_a_region_is_started_without_waiting(cupy_on_cpu: CupyOnCpu) -> None:
    """Through the code that starts it on a GPU: the table and the kernel, one for a sum over all rows and what follows, too."""
    x, y = Var((6, 5), "float32"), Var((6, 5), "float32")
    product = Equation(TABLE["mul"], (x, y), {}, Var((6, 5), "float32"))
    scaled = Equation(TABLE["tanh"], (product.output,), {}, Var((6, 5), "float32"))
    total = Equation(TABLE["sum"], (scaled.output,), {"axis": (-2, -1), "keepdims": False}, Var((), "float32"))
    graph = Graph((x, y), (product, scaled, total), (scaled.output, total.output), ())
    with ts.use_backend("numpy") as backend:
        program = compile_graph(graph.check(), backend, cuda.current_machine)
        a, b = (numbers(6, 5, seed=i).view(DeviceArray) for i in range(2))
        got = program(a, b)
    np.testing.assert_allclose(got[0], np.tanh(a * b), rtol=1e-6)
    np.testing.assert_allclose(got[1], np.tanh(a * b).sum(), rtol=1e-6)
    assert cupy_on_cpu.events == ["wait", "table", "record", "ts_region", "record"]


# --- optimizers -------------------------------------------------------------------------------------------------------

RULES = {
    "sgd": lambda p: ts.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda p: ts.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "adagrad": lambda p: ts.optim.Adagrad(p, lr=0.1),
    "adam": lambda p: ts.optim.Adam(p, lr=0.1, amsgrad=True, weight_decay=0.01),
    "adamw": lambda p: ts.optim.AdamW(p, lr=0.1),
}


ARRAYS = 40  # more than a kernel has arguments


class ElementwiseKernel:
    """CuPy's, on the CPU: the operation in a loop over elements."""

    made: ClassVar[list[str]] = []

    def __init__(self, inputs: str, outputs: str, operation: str, name: str) -> None:
        self.made.append(name)
        types = {"float16": "ts_float16", "float32": "float", "float64": "double"}
        self.dtypes, reads, writes = [], [], []
        for i, declared in enumerate((*inputs.split(", "), *outputs.split(", "))):
            dtype, own = declared.split()
            self.dtypes.append(np.dtype(dtype))
            at = f"(({types[dtype]}*)ts_table[{i + 1}])"
            if own.startswith("x"):  # an array of one element stands for a number
                reads.append(f"const {types[dtype]} {own} = {at}[ts_table[{ARRAYS + i}] ? at : 0];")
            else:
                writes.append((own, f"{types[dtype]} {own};", f"{at}[at] = {own};"))
        lines = [*reads, *(w[1] for w in writes), operation, *(w[2] for w in writes)]
        body = "\n".join(lines)
        text = f'{BASICS}\nextern "C" {{ long long ts_table[{2 * ARRAYS}]; }}\n'
        text += f'extern "C" void ts_all() {{ for (long long at = 0; at < ts_table[0]; at++) {{ {body} }} }}\n'
        self.program = gpu_shim.CpuMachine().compile(text, {"TS_THREADS": 1})

    def __call__(self, *arguments: Any) -> None:
        count = max(a.size for a in arguments)
        arrays = [np.ascontiguousarray(a) for a in arguments]
        assert [a.dtype for a in arrays] == self.dtypes
        table = [count, *(a.ctypes.data for a in arrays)]
        table += [0] * (ARRAYS - len(table)) + [int(a.ndim > 0) for a in arguments]
        self.program.plain("ts_all", table, (1, 1), 0)


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_an_optimizers_update_is_one_kernel(monkeypatch: pytest.MonkeyPatch, name: str, dtype: str) -> None:
    tolerance = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-10}[dtype]
    with ts.use_backend("numpy"):
        wanted = trained(name, dtype, "float64")
        cupy = types.SimpleNamespace(ndarray=np.ndarray, empty_like=np.empty_like, ElementwiseKernel=ElementwiseKernel)
        kernels: dict[Any, Elementwise] = {}

        def elementwise(self: Any, rule: Any, **flags: Any) -> Any:
            refuse = lambda *_, **__: pytest.fail("not one kernel")
            return kernels.setdefault((rule, *flags.items()), OnCpu(cupy, rule, flags, refuse))

        monkeypatch.setattr(NumpyBackend, "elementwise", elementwise)
        ElementwiseKernel.made.clear()
        got = trained(name, dtype, dtype)
    assert len(set(ElementwiseKernel.made)) == 1
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(float), wanted, rtol=tolerance, atol=tolerance)


def trained(name: str, dtype: str, exact: str, backend: str = "numpy") -> Any:
    """A parameter after some steps, from numbers of a dtype, computed in another."""
    with ts.use_backend(backend):
        p = ts.Parameter(numbers(7, dtype=dtype).astype(exact))
        optimizer = RULES[name]([p])
        for g in np.random.default_rng(1).standard_normal((4, 7)):
            p.grad = ts.tensor(g.astype(dtype).astype(exact))
            optimizer.step()
        return p.numpy()


class OnCpu(Elementwise):
    """NumPy's arrays have no device that could be entered."""

    def _on(self, array: Any) -> Any:
        return contextlib.nullcontext()


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_on_a_gpu(loss: str) -> None:
    check_loss(LOSSES[loss], "float32", 2e-5, "cupy")


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_regions_on_a_gpu(case: str) -> None:
    function, make = CASES[case]
    wanted, _ = both(function, make("float32"))
    _, got = both(function, make("float32"), "cupy")
    for a, b in zip(got, wanted, strict=True):
        assert near(a, b, 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", ["all of it", "huber"])
def test_small_on_a_gpu(loss: str) -> None:
    """For compute-sanitizer."""
    import cupy

    with cupy.cuda.using_allocator(None):
        check_loss(LOSSES[loss], "float32", 2e-5, "cupy")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("name", RULES)
def test_optimizers_on_a_gpu(name: str, dtype: str) -> None:
    tolerance = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-10}[dtype]
    wanted, got = (trained(name, dtype, exact, where) for exact, where in (("float64", "numpy"), (dtype, "cupy")))
    np.testing.assert_allclose(got.astype(float), wanted, rtol=tolerance, atol=tolerance)


# --- CUDA's compiler takes it -----------------------------------------------------------------------------------------

CUDA = compiler()


@needs_compiler
@pytest.mark.skipif(CUDA is None, reason="neither NVRTC's wheel nor nvcc is installed")
@pytest.mark.parametrize("case", ["layer_norm", "mean", "all of it"])
def test_cudas_compiler_takes_it(through_the_shim: Any, case: str) -> None:
    started = through_the_shim("ascending")
    if case in LOSSES:
        check_loss(LOSSES[case], "float32", 1e-5)
    else:
        function, make = CASES[case]
        both(function, make("float32"))
    assert CUDA is not None
    for text in {f.text for f in started.functions}:
        for kernel, (spilled, _) in CUDA(text, {"TS_THREADS": 256}, "sm_90").items():
            assert spilled == 0, kernel
