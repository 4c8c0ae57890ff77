"""Straight-line code on the GPU, losses and optimizers' updates, as far as they can be checked without one.

The kernels' text runs on the CPU through the shim, or, where it is for CuPy's ElementwiseKernel, in a loop over elements
compiled by the host's compiler. Nothing here has run on a GPU.
"""

from __future__ import annotations

import contextlib
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


@pytest.fixture
def through_the_shim(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Started]:
    """NumPy's backend compiles straight-line graphs for the shim, with threads in the given order."""

    def start(order: str) -> Started:
        started, machine = Started(), gpu_shim.CpuMachine(order)
        machine.limits = gpu_shim.Device(processors=1, shared=200_000)  # type: ignore[misc]  # so that rows share a block
        init = RegionFunction.__init__

        def noted(self: RegionFunction, *arguments: Any) -> None:
            init(self, *arguments)
            started.functions.append(self)

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


def cross_entropy(x: Any, y: Any) -> Any:
    return F.cross_entropy(x * 2, y)


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


def both(function: Any, arrays: Any) -> tuple[list[Any], list[Any]]:
    """Value and gradients, eager and compiled."""

    def scalar(*xs: Any) -> Any:
        y = function(*xs)
        return (y * y).sum() if y.ndim else y

    argnums = tuple(range(len(arrays)))
    with ts.use_backend("numpy"):
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


@needs_compiler
def test_a_loss_and_its_gradient_go_over_the_logits_once_each(through_the_shim: Any) -> None:
    """Between the two stand the choice of the right class, and kernels on a number a row."""
    started = through_the_shim("random")
    logits, classes = ts.tensor(numbers(6, 37)), ts.tensor(np.arange(6) % 5)
    with ts.use_backend("numpy"):
        wanted = ts.value_and_grad(cross_entropy)(logits, classes)
        got = ts.jit(ts.value_and_grad(cross_entropy))(logits, classes)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-7)
    assert sum(function.region.space == (6, 37) for function in started.functions) == 2


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
    function, make = CASES["layer_norm"]
    sound, barrier = regions.REDUCE, "__syncthreads();"
    places = [found.start() for found in re.finditer(re.escape(barrier), sound)]
    assert len(places) == 3
    for place in places:
        monkeypatch.setattr(regions, "REDUCE", sound[:place] + ";" + sound[place + len(barrier) :])
        for order in gpu_shim.ORDERS:
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
def test_a_region_is_started_without_waiting(cupy_on_cpu: CupyOnCpu) -> None:
    """Through the code that starts it on a GPU: the table, the kernel, and for a sum over all rows a second kernel."""
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
    started = ["wait", "table", "record", "ts_region", "record"]
    assert cupy_on_cpu.events == [*started, *started[:3], "ts_totals", "record"]


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
    gradients = np.random.default_rng(1).standard_normal((4, 7))

    def trained(exact: str) -> Any:
        p = ts.Parameter(numbers(7, dtype=dtype).astype(exact))
        optimizer = RULES[name]([p])
        for g in gradients:
            p.grad = ts.tensor(g.astype(dtype).astype(exact))
            optimizer.step()
        return p.numpy()

    with ts.use_backend("numpy"):
        wanted = trained("float64")
        cupy = types.SimpleNamespace(ndarray=np.ndarray, empty_like=np.empty_like, ElementwiseKernel=ElementwiseKernel)
        kernels: dict[Any, Elementwise] = {}

        def elementwise(self: Any, rule: Any, **flags: Any) -> Any:
            refuse = lambda *_, **__: pytest.fail("not one kernel")
            return kernels.setdefault((rule, *flags.items()), OnCpu(cupy, rule, flags, refuse))

        monkeypatch.setattr(NumpyBackend, "elementwise", elementwise)
        ElementwiseKernel.made.clear()
        got = trained(dtype)
    assert len(set(ElementwiseKernel.made)) == 1
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(float), wanted, rtol=tolerance, atol=tolerance)


class OnCpu(Elementwise):
    """NumPy's arrays have no device that could be entered."""

    def _on(self, array: Any) -> Any:
        return contextlib.nullcontext()


# --- CUDA's compiler takes it -----------------------------------------------------------------------------------------

CUDA = compiler()


@needs_compiler
@pytest.mark.skipif(CUDA is None, reason="neither NVRTC's wheel nor nvcc is installed")
@pytest.mark.parametrize("case", ["layer_norm", "mean"])
def test_cudas_compiler_takes_it(through_the_shim: Any, case: str) -> None:
    function, make = CASES[case]
    started = through_the_shim("ascending")
    both(function, make("float32"))
    assert CUDA is not None
    for text in {f.text for f in started.functions}:
        for kernel, (spilled, _) in CUDA(text, {"TS_THREADS": 256}, "sm_90").items():
            assert spilled == 0, kernel
