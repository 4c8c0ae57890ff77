"""The compiled loop on the GPU, as far as it can be checked without one.

In rungs, each named for what it is: the same graph gives the same source; the source runs on the CPU through a shim, in three
orders of its threads, and gives what the reference loop gives; it fails when any barrier is taken out; CUDA's compiler takes
it, without spilling registers; the code that starts it runs on so much of CuPy as it calls, made of NumPy. Nothing here has
run on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import operator
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gpu_shim
import numpy as np
import pytest
import tinyseq_cupy
import tinyseq_numpy.loop
from gpu_shim.compilers import compiler
from gpu_shim.cupy_on_cpu import CupyOnCpu, DeviceArray
from gpu_shim.steps import random_step
from test_cupy import _names_used
from tinyseq_cupy import CupyBackend
from tinyseq_cupy.loop import cuda, run
from tinyseq_cupy.loop.plan import Unsupported, plan_step
from tinyseq_cupy.loop.scalars import SUPPORTED
from tinyseq_cupy.loop.source import source
from tinyseq_cupy.loop.tiles import Device, Tile, choose, persistent_tile, shared_bytes, streamed_tile
from tinyseq_numpy import NumpyBackend

import tinyseq as ts
from tinyseq.backend import get_backend
from tinyseq.compiler import scan
from tinyseq.compiler.loop import Step
from tinyseq.errors import BackendError
from tinyseq.graph import Equation, Graph, Var
from tinyseq.primitives import TABLE

needs_compiler = pytest.mark.skipif(gpu_shim.COMPILER is None, reason="no g++ or clang++ to run CUDA source on the CPU")
H100 = Device(processors=132, shared=227 * 1024)
A100 = Device(processors=108, shared=163 * 1024)

# Small and ragged: 10 units in blocks of 4, 10 of the inner axis in parts of 8, and those in two splits.
TILES = {
    "streamed": Tile(units=4, rows=2, row_groups=1, splits=2, depth=8, threads=16),
    "persistent": Tile(units=4, rows=2, row_groups=2, splits=2, depth=8, threads=16, stationary=True),
}


def projected(size: int) -> Any:
    return ts.nn.LSTM(3, size, proj_size=size - 3)


LAYERS = {
    "rnn": lambda size: ts.nn.RNN(3, size),
    "gru": lambda size: ts.nn.GRU(3, size),
    "gru_before": lambda size: ts.nn.GRU(3, size, reset_after=False),
    "lstm": lambda size: ts.nn.LSTM(3, size),
    "layer_norm_lstm": lambda size: ts.nn.LSTM(3, size, layer_norm=True),
    "peephole_lstm": lambda size: ts.nn.LSTM(3, size, peepholes=True),
    "projected_lstm": projected,
}
DIRECTIONS = ("forward", "backward")
EACH = [pytest.param(cell, direction, id=f"{cell}-{direction}") for cell in LAYERS for direction in DIRECTIONS]


def steps_of(layer: Any, batch: int, lengths: bool = False) -> dict[str, Step]:
    """The step graphs of a layer, traced at some batch size."""
    scan._runners.clear()
    with ts.use_backend("numpy"):
        x = ts.random.randn((2, batch, 3)).requires_grad_()
        ys, _ = layer(x, lengths=ts.tensor(np.full(batch, 2))) if lengths else layer(x)
        (ys * ys).sum().backward()
    (runner,) = scan._runners.values()
    scan._runners.clear()
    return {"forward": runner.program.forward.step, "backward": runner.program.backward.step}


def step_of(cell: str, direction: str, size: int = 10, batch: int = 5) -> Step:
    return steps_of(LAYERS[cell](size), batch)[direction]


def arguments(step: Step, steps: int, seed: int = 0) -> tuple[list[Any], list[Any], list[Any]]:
    """Carry, stacks and closed values, none of them zero."""
    rng = np.random.default_rng(seed)

    def made(v: Var, lead: tuple[int, ...] = (), low: float = -0.8) -> Any:
        shape = (*lead, *v.shape)
        return rng.random(shape) < 0.5 if v.dtype.kind == "b" else rng.uniform(low, 0.8, shape).astype(v.dtype)

    # Standard deviations are among the stacks of the backward pass: those are positive. Weights keep a long run finite.
    closed = [made(v) / np.sqrt(v.shape[0]).astype(v.dtype) if len(v.shape) == 2 else made(v) for v in step.graph.closed]
    return [made(v) for v in step.carry], [made(v, (steps,), 0.2) for v in step.slices], closed


def reference(step: Step, given: tuple[list[Any], list[Any], list[Any]], steps: int, reverse: bool) -> list[Any]:
    """What NumPy's loop gives."""
    last, histories, written, _ = tinyseq_numpy.loop.compile_loop(step, get_backend("numpy"))(*given, steps, reverse)
    return [*last, *histories, *written]


def close(got: Sequence[Any], wanted: Sequence[Any]) -> bool:
    assert [(a.shape, a.dtype) for a in got] == [(a.shape, a.dtype) for a in wanted]
    tolerance = {"f4": 1e-5, "f8": 1e-11, "b1": 0}
    return all(
        np.allclose(a, b, rtol=tolerance[b.dtype.str[1:]], atol=tolerance[b.dtype.str[1:]])
        for a, b in zip(got, wanted, strict=True)
    )


def shim(step: Step, tile: Tile, order: str = "random", seed: int = 0) -> run.Loop:
    return run.compile_loop(step, gpu_shim.CpuMachine(order, seed), tile)


def results(loop: run.Loop, given: Any, steps: int, reverse: bool) -> list[Any]:
    last, histories, written, sums = loop(*given, steps, reverse)
    assert sums == []
    return [*last, *histories, *written]


# --- the same graph, the same source ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "direction"), EACH)
def test_the_source_depends_on_the_graph_alone(cell: str, direction: str) -> None:
    first = source(plan_step(step_of(cell, direction)))
    assert source(plan_step(step_of(cell, direction))) == first
    assert source(plan_step(step_of(cell, direction, batch=12))) == first
    assert source(plan_step(step_of(cell, direction, size=11))) != first


def test_the_source_is_the_same_in_every_process() -> None:
    code = (
        "import test_cupy_loop as t; from tinyseq_cupy.loop.source import source; from tinyseq_cupy.loop.plan import plan_step;"
        "import hashlib; print([hashlib.sha256(source(plan_step(t.step_of(c, d))).encode()).hexdigest()"
        " for c in ('layer_norm_lstm', 'gru_before') for d in t.DIRECTIONS])"
    )
    texts = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        texts.add(done.stdout)
    assert len(texts) == 1


def test_the_sections_of_the_cells() -> None:
    """As many exchanges a step as the longest chain of products and sums; a step's end and the next one's start are one."""
    found = {}
    for cell, direction in itertools.product(LAYERS, DIRECTIONS):
        plan = plan_step(step_of(cell, direction))
        found[cell, direction] = len(plan.sections) - (not plan.exchange)
    assert found == {
        ("rnn", "forward"): 1, ("rnn", "backward"): 1,
        ("gru", "forward"): 1, ("gru", "backward"): 1,
        ("gru_before", "forward"): 2, ("gru_before", "backward"): 2,
        ("lstm", "forward"): 1, ("lstm", "backward"): 1,
        ("layer_norm_lstm", "forward"): 5, ("layer_norm_lstm", "backward"): 5,
        ("peephole_lstm", "forward"): 1, ("peephole_lstm", "backward"): 1,
        ("projected_lstm", "forward"): 2, ("projected_lstm", "backward"): 2,
    }  # fmt: skip


# --- the source, on the CPU -------------------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize(("cell", "direction"), EACH)
def test_a_step_gives_what_the_reference_gives(cell: str, direction: str, driver: str) -> None:
    """Outputs are full of NaN before; states are not zero; several groups of rows, the last one not full."""
    step = step_of(cell, direction)
    for (order, reverse), steps in zip(itertools.product(gpu_shim.ORDERS, (False, True)), (4, 3, 1, 5, 2, 4), strict=True):
        given = arguments(step, steps, seed=steps)
        got = results(shim(step, TILES[driver], order), given, steps, reverse)
        assert close(got, reference(step, given, steps, reverse)), (order, reverse, steps)
    for batch in (1, 2, 12):  # the same source
        other = step_of(cell, direction, batch=batch)
        given = arguments(other, 3)
        assert close(results(shim(other, TILES[driver]), given, 3, False), reference(other, given, 3, False)), batch


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("size", [5, 16])
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize(("cell", "direction"), EACH)
def test_sizes_and_tiles(cell: str, direction: str, driver: str, size: int) -> None:
    step = step_of(cell, direction, size=size)
    plan, machine = plan_step(step), gpu_shim.CpuMachine("random")
    chosen = persistent_tile if driver == "persistent" else streamed_tile
    own = chosen(plan, 5, machine.limits)
    assert own is not None
    wide = Tile(units=8, rows=4, row_groups=2, splits=1, depth=8, threads=32, stationary=driver == "persistent")
    for tile in (own, wide):
        given = arguments(step, 3, seed=size)
        loop = run.compile_loop(step, machine, tile)
        assert close(results(loop, given, 3, True), reference(step, given, 3, True)), tile


@needs_compiler
@pytest.mark.parametrize("driver", TILES)
def test_no_steps_leave_the_carry(driver: str) -> None:
    step = step_of("lstm", "forward")
    carry, stacks, closed = arguments(step, 0)
    got = results(shim(step, TILES[driver]), (carry, stacks, closed), 0, False)
    assert close(got, reference(step, (carry, stacks, closed), 0, False))


def elementwise_step(dtype: str) -> Step:
    """Every elementwise primitive, on a row of 6."""
    rows: tuple[int, ...] = (3, 6)
    carry, x, flag = Var(rows, dtype), Var(rows, dtype), Var((3, 1), "bool")
    positive = Var(rows, dtype)
    equations: list[Equation] = []

    def add(name: str, *inputs: Any, out: str = dtype, shape: tuple[int, ...] = rows, **params: Any) -> Var:
        equations.append(Equation(TABLE[name], inputs, params, Var(shape, out)))
        return equations[-1].output

    unary = [
        add(name, x)
        for name in (
            "neg",
            "exp",
            "expm1",
            "tanh",
            "sigmoid",
            "relu",
            "sign",
            "sin",
            "cos",
            "abs",
            "floor",
            "round",
            "erf",
            "copy",
        )
    ]
    unary += [add(name, positive) for name in ("sqrt", "log", "log1p")]
    binary = [add(name, carry, x) for name in ("add", "sub", "mul", "div", "maximum", "minimum")]
    truths = [add(name, carry, x, out="bool") for name in ("eq", "ne", "lt", "le", "gt", "ge")]
    truths += [add(name, truths[2], flag, out="bool") for name in ("logical_and", "logical_or", "logical_xor")]
    truths += [add("logical_not", flag, out="bool", shape=(3, 1)), add("isnan", x, out="bool"), add("isfinite", x, out="bool")]
    others = [
        add("where", flag, carry, 0.25),
        add("clip", x, low=-0.5, high=0.25),
        add("cast", truths[2], dtype=np.dtype(dtype)),
        add("cast", x, out="bool", dtype=np.dtype("bool")),
        add("cast", x, out="float64", dtype=np.dtype("float64")),
        add("power", positive, 2),
        add("power", positive, 0.5),
        add("power", positive, 1.7),
        add("power", positive, carry),
    ]
    assert {e.primitive.name for e in equations} == SUPPORTED | {"copy"}
    graph = Graph((carry, x, flag, positive), tuple(equations), (binary[0], *unary, *binary, *truths, *others))
    return Step(graph.check(), 1, ())


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_elementwise_primitive(dtype: str) -> None:
    step = elementwise_step(dtype)
    carry, stacks, closed = arguments(step, 2)
    stacks[0][0, 0] = [np.nan, np.inf, -np.inf, 0.0, -0.75, 1e4]
    stacks[0][1, 1] = carry[0][1]  # equal
    with np.errstate(all="ignore"):
        wanted = reference(step, (carry, stacks, closed), 2, False)
    got = results(shim(step, TILES["persistent"]), (carry, stacks, closed), 2, False)
    for e, a, b in zip((None, *step.graph.equations), got, wanted, strict=False):
        tolerance = {"float32": 2e-6, "float64": 1e-13}[dtype]
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=e.primitive.name if e else "carry")


@needs_compiler
def test_sums_larger_and_smaller_across_blocks() -> None:
    def step(c: Any, x: Any) -> Any:
        y = x + c
        total, large, small = y.sum(-1, keepdims=True), y.max(-1, keepdims=True), y.min(-1, keepdims=True)
        c = (y - total / 7) / (large - small + 1)
        return c, c * total

    for driver, order in itertools.product(TILES, gpu_shim.ORDERS):
        with through_the_shim(TILES[driver], order), ts.use_backend("numpy"):
            xs = ts.random.randn((5, 3, 7))
            last, ys = ts.scan(step, ts.ones((3, 7)), xs)
        wanted = ts.scan(step, ts.ones((3, 7)), xs, unroll=True)
        assert close([last.numpy(), ys.numpy()], [wanted[0].numpy(), wanted[1].numpy()])


@needs_compiler
def test_a_carry_of_one_number_a_row() -> None:
    """One block writes it and all read it: a sum so far, a count without a feature axis, and a flag."""

    def step(carry: Any, x: Any) -> Any:
        h, total, count, flag = carry
        h = ts.where(flag, h, ts.tanh(h + x) * total)
        total = total * 0.5 + (h * x).sum(-1, keepdims=True)
        count = count + h.max(-1)
        return (h, total, count, total > 0), h * count.reshape(3, 1)

    start = ts.ones((3, 10)), ts.ones((3, 1)), ts.zeros(3), ts.tensor(np.array([[True], [False], [True]]))
    xs = ts.random.randn((6, 3, 10))
    wanted, ys_wanted = ts.scan(step, start, xs, unroll=True)
    for driver, order in itertools.product(TILES, gpu_shim.ORDERS):
        with through_the_shim(TILES[driver], order) as compiled, ts.use_backend("numpy"):
            last, ys = ts.scan(step, start, xs)
        assert close([a.numpy() for a in (*last, ys)], [a.numpy() for a in (*wanted, ys_wanted)]), (driver, order)
        # What the shim cannot show: on a GPU another block's number may be stale in the first-level cache.
        (text,) = {loop.text for loop in compiled}
        assert all(re.search(rf"= ts_fresh\(&carry{i}_in\[row\]\);", text) for i in (1, 2, 3))
        assert not re.search(r"= carry[123]_in\[row\]", text)


@needs_compiler
def test_carries_that_are_handed_on_as_they_are_or_change_places() -> None:
    def step(carry: Any, x: Any) -> Any:
        a, b, rate, other = carry
        return (b, a * rate + x, rate, a), a + other

    start = tuple(ts.random.randn(shape) for shape in ((3, 10), (3, 10), (3, 1), (3, 10)))
    xs = ts.random.randn((5, 3, 10))
    wanted, ys_wanted = ts.scan(step, start, xs, unroll=True)
    for driver, order in itertools.product(TILES, gpu_shim.ORDERS):
        with through_the_shim(TILES[driver], order), ts.use_backend("numpy"):
            last, ys = ts.scan(step, start, xs)
        assert close([a.numpy() for a in (*last, ys)], [a.numpy() for a in (*wanted, ys_wanted)]), (driver, order)


def check_a_random_step(seed: int) -> None:
    dtype = "float64" if seed % 4 == 3 else "float32"
    tolerance = {"float32": 1e-4, "float64": 1e-11}[dtype]
    step = random_step(np.random.default_rng(seed), dtype)
    given, reverse = arguments(step, 4, seed), bool(seed & 1)
    wanted = reference(step, given, 4, reverse)
    for order in gpu_shim.ORDERS:
        got = results(shim(step, TILES["persistent" if seed & 2 else "streamed"], order, seed), given, 4, reverse)
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"{seed} {order}\n{step.graph}")


@needs_compiler
@pytest.mark.parametrize("seed", range(4))
def test_random_steps(seed: int) -> None:
    check_a_random_step(seed)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4, 60))
def test_more_random_steps(seed: int) -> None:
    check_a_random_step(seed)


class through_the_shim:
    """``with``: NumPy's backend runs its compiled loops through the shim; gives a list of them."""

    def __init__(self, tile: Tile, order: str = "random") -> None:
        self.tile, self.order, self.patch = tile, order, pytest.MonkeyPatch()

    def __enter__(self) -> list[run.Loop]:
        scan._runners.clear()
        machine, loops = gpu_shim.CpuMachine(self.order), []

        def compile_loop(backend: Any, step: Step) -> run.Loop:
            loops.append(run.compile_loop(step, machine, self.tile))
            return loops[-1]

        self.patch.setattr(NumpyBackend, "compile_loop", compile_loop)
        self.patch.setattr(NumpyBackend, "recomputes", CupyBackend.recomputes)
        self.patch.setattr(get_backend("numpy"), "fuses", CupyBackend.fuses)
        return loops

    def __exit__(self, *error: object) -> None:
        self.patch.undo()
        scan._runners.clear()


def gradients(layer: Any, xs: Any, lengths: Any, unroll: bool) -> list[Any]:
    xs = ts.tensor(xs).requires_grad_()
    for p in layer.parameters():
        p.grad = None
    ys, state = layer(xs, lengths=lengths, unroll=unroll) if unroll else layer(xs, lengths=lengths)
    loss = (ys * ys).sum() + sum((part * part).sum() for part in (state if isinstance(state, tuple) else (state,)))
    loss.backward()
    return [ys.numpy().copy(), xs.grad.numpy().copy(), *(p.grad.numpy().copy() for p in layer.parameters())]


@needs_compiler
@pytest.mark.parametrize("driver", TILES)
def test_a_whole_layer_with_lengths_in_both_directions(driver: str) -> None:
    """What is computed before and after the loop fits what the loop reads and writes."""
    with ts.use_backend("numpy"):
        layer = ts.nn.GRU(3, 6, bidirectional=True)
        xs = ts.random.randn((5, 4, 3)).numpy()
        lengths = ts.tensor(np.array([5, 1, 3, 0]))
        scan._runners.clear()
        wanted = gradients(layer, xs, lengths, False)
        with through_the_shim(TILES[driver]):
            got = gradients(layer, xs, lengths, False)
    assert close(got, wanted)


@needs_compiler
@pytest.mark.parametrize("driver", TILES)
def test_both_precisions_in_one_section(driver: str) -> None:
    w = ts.random.randn((10, 10))

    def step(h: Any, x: Any) -> Any:
        h = ts.tanh(h @ w + x)
        exact = h.astype("float64")
        total = (exact * exact).sum(-1, keepdims=True)
        return h / (total.astype("float32") + h.sum(-1, keepdims=True) ** 2 + 1), total

    start, xs = ts.random.randn((5, 10)), ts.random.randn((4, 5, 10))
    last_wanted, totals_wanted = ts.scan(step, start, xs, unroll=True)
    with through_the_shim(TILES[driver]) as compiled, ts.use_backend("numpy"):
        last, totals = ts.scan(step, start, xs)
    assert any("double* const terms =" in loop.text and "float* const weights0" in loop.text for loop in compiled)
    np.testing.assert_allclose(last.numpy(), last_wanted.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(totals.numpy(), totals_wanted.numpy(), rtol=1e-5)


# --- every barrier is needed ------------------------------------------------------------------------------------------

BARRIER = re.compile(
    r"(?:if \(\w+\) )?(?:__syncthreads\(\)|ts_exchange\(arrivals, wanted \+= gridDim\.x\));|while \(\(int\)\(ts_arrived.*?\{\}"
)


def with_switches(text: str, stationary: bool) -> tuple[str, list[str]]:
    """The source in which ``left_out`` says which of the barriers that the driver comes to is left out, and their names."""
    kernels = text.index("#if TS_STATIONARY\nextern")
    other = text.index("#else", kernels)
    exchange = text.index("TS_FUNCTION void ts_exchange"), text.index("template <class F> TS_FUNCTION F* ts_take")
    names: list[str] = []

    def switch(found: re.Match[str]) -> str:
        at = found.start()
        passed_by = at > other if stationary else kernels < at < other or exchange[0] < at < exchange[1]
        if passed_by:
            return found[0]
        names.append(f"{found[0]} in line {text[:at].count(chr(10)) + 1}")
        return f"if (left_out != {len(names) - 1}) {{ {found[0]} }}"

    switched = BARRIER.sub(switch, text)
    return 'extern "C" { int left_out = -1; }\n' + switched, names


def check_each_barrier(loops: Sequence[Any], right: Callable[[Any], bool]) -> None:
    """All is right with every barrier, and wrong in one of the loops without any one of them."""
    stationary = loops[0].tile.stationary
    text, names = with_switches(loops[0].text, stationary)
    for loop in loops:
        loop.program = loop.machine.compile(text, loop.tile.defines)
        assert right(loop)

    def goes_wrong(loop: Any, barrier: int) -> bool:
        left_out = ctypes.c_int.in_dll(loop.program.library, "left_out")
        left_out.value = barrier
        try:
            with np.errstate(all="ignore"):
                return not right(loop)
        except gpu_shim.Broken:
            return True
        finally:
            left_out.value = -1

    for barrier, name in enumerate(names):
        assert any(goes_wrong(loop, barrier) for loop in loops), f"nothing goes wrong without {name}"
    # Four in a product; the exchange has three more and is called before each section but, at times, the first.
    assert len(names) >= (8 if stationary else 4), text


def check_that_each_barrier_is_needed(cell: str, direction: str, driver: str) -> None:
    step, tile, steps = step_of(cell, direction), TILES[driver], 4
    given = arguments(step, steps)
    wanted = reference(step, given, steps, False)
    # Between two splits and one, two row groups and one, each barrier of a product guards something.
    orders = (("ascending", 0), ("descending", 0), ("random", 0), ("random", 1))
    loops = [shim(step, t, order, seed) for t in (tile, replace(tile, splits=1, row_groups=1)) for order, seed in orders]
    check_each_barrier(loops, lambda loop: close(results(loop, given, steps, False), wanted))


@needs_compiler
@pytest.mark.parametrize(
    ("cell", "direction", "driver"),
    [("lstm", "forward", "persistent"), ("gru_before", "backward", "streamed")],
)
def test_each_barrier_is_needed(cell: str, direction: str, driver: str) -> None:
    check_that_each_barrier_is_needed(cell, direction, driver)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", ["rnn", "layer_norm_lstm", "projected_lstm"])
def test_each_barrier_of_other_cells_is_needed(cell: str, direction: str) -> None:
    check_that_each_barrier_is_needed(cell, direction, "persistent")


SANITIZED = """
import sys
import gpu_shim
import test_cupy_loop as t
import test_cupy_precision as p
from tinyseq_cupy.loop import run

for direction, (driver, tile) in t.itertools.product(t.DIRECTIONS, t.TILES.items()):
    step = t.step_of("layer_norm_lstm", direction)
    given = t.arguments(step, 3)
    loop = run.compile_loop(step, gpu_shim.CpuMachine(flags=["-fsanitize=address"]), tile)
    if "wrong" in sys.argv:
        loop.program = loop.machine.compile(loop.text.replace("unit < 10", "unit < 11"), tile.defines)
    assert t.close(t.results(loop, given, 3, False), t.reference(step, given, 3, False))
    for kind in ("float16", "tf32"):
        p.check("layer_norm_lstm", direction, driver, kind, "random", flags=["-fsanitize=address"])
"""


@needs_compiler
@pytest.mark.slow
def test_nothing_outside_an_array_is_touched() -> None:
    """Under AddressSanitizer, which sees it when a bound is one too large."""
    found = subprocess.run([str(gpu_shim.COMPILER), "-print-file-name=libasan.so"], capture_output=True, text=True)
    if not os.path.exists(found.stdout.strip()):
        pytest.skip("the compiler has no AddressSanitizer")
    environment = {
        **os.environ,
        "PYTHONPATH": os.path.dirname(__file__),
        "LD_PRELOAD": found.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    }
    command = [sys.executable, "-c", SANITIZED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*command, "wrong"], capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr


@needs_compiler
def test_the_shim_sees_what_is_wrong() -> None:
    """A barrier that only some threads reach, one that nobody else reaches, and a store past the end of shared memory."""
    head = '#define TS_FUNCTION static inline\nextern "C" { long long ts_table[1]; }\n'
    bodies = {
        "different barriers": "if (threadIdx.x) { __syncthreads(); } else {\n __syncthreads(); }",
        "no thread can go on": "unsigned none = 0; while (!ts_arrived(&none)) {}",
        "past its shared memory": "TS_SHARED(shared); shared[16 + threadIdx.x] = 0;",
    }
    for what, body in bodies.items():
        text = f'{head}extern "C" void ts_loop() {{ {body} }}\n'
        with pytest.raises(gpu_shim.Broken, match=what):
            gpu_shim.CpuMachine().compile(text, {"TS_THREADS": 4}).persistent([0], (1, 1), 16)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(step: Any, carry: Any, xs: Any) -> str:
    """The operation that there is no code for."""
    reasons = []

    def compile_loop(self: Any, step: Step) -> Any:
        try:
            plan_step(step)
        except Unsupported as reason:
            reasons.append(str(reason))
        return tinyseq_numpy.loop.compile_loop(step, self)

    with pytest.MonkeyPatch.context() as patch, ts.use_backend("numpy"):
        scan._runners.clear()
        patch.setattr(NumpyBackend, "compile_loop", compile_loop)
        ts.scan(step, carry, xs)
        scan._runners.clear()
    (reason,) = reasons
    return reason


def test_what_there_is_no_code_for_is_named() -> None:
    x = ts.random.randn((2, 3, 4))
    h = ts.zeros((3, 4))
    assert refused(lambda c, v: ((c + v).cumsum(-1), c), h, x) == "cumsum"
    assert "across the batch" in refused(lambda c, v: (c - (c + v).mean(0, keepdims=True), c), h, x)
    assert "getitem" in refused(lambda c, v: (c + (c * v)[:, ::2].sum(-1, keepdims=True), c), h, x)
    assert "getitem" in refused(lambda c, v: (c + (c * v)[:, :1], c), h, x)
    assert "dtype int64" in refused(lambda c, v: (c + 1, c), ts.zeros((3, 4), "int64"), x)
    square, squares = ts.zeros((4, 4)), ts.random.randn((2, 4, 4))  # a number of each row, which is not one of each feature
    assert "beside one with 2 axes" in refused(lambda c, v: (c + v + c.sum(-1), c), square, squares)
    cubed = lambda c, v: (c + (c + v).reshape(3, 2, 2).sum(-1).sum(-1, keepdims=True) * c, c)
    assert "shape (3, 2, 2)" in refused(cubed, h, x)


def test_a_long_step_with_many_diamonds_is_planned_at_once() -> None:
    """2 to the power of 3,000 ways lead from the result to the carry."""
    h, w = Var((3, 4), "float32"), Var((4, 4), "float32")
    equations = [Equation(TABLE["matmul"], (h, w), {}, Var((3, 4), "float32"))]
    equations.append(Equation(TABLE["sum"], (equations[0].output,), {"axis": (-1,), "keepdims": True}, Var((3, 1), "float32")))
    x = h
    for _ in range(3000):
        equations.append(Equation(TABLE["add"], (x, x), {}, Var((3, 4), "float32")))
        x = equations[-1].output
    equations.append(Equation(TABLE["mul"], (x, equations[1].output), {}, Var((3, 4), "float32")))
    step = Step(Graph((h,), tuple(equations), (equations[-1].output,), (w,)), 1, ())
    text = source(plan_step(step))
    assert text.count(" + ") > 3000


def test_a_step_too_large_for_shared_memory_is_refused() -> None:
    plan = plan_step(step_of("lstm", "forward"))
    machine = gpu_shim.CpuMachine()
    machine.limits = Device(processors=4, shared=64)  # type: ignore[misc]
    with pytest.raises(Unsupported, match="10 units in the 64 bytes of shared memory"):
        run.Loop(plan, machine)


# --- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [H100, A100], ids=["H100", "A100"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "layer_norm_lstm"])
def test_tiles_fit_and_persistent_blocks_all_run_at_once(cell: str, device: Device) -> None:
    for size, direction in itertools.product((64, 1000), DIRECTIONS):
        plan = plan_step(step_of(cell, direction, size=size, batch=3))
        for batch in (1, 5, 64, 300):
            streamed, persistent = streamed_tile(plan, batch, device), persistent_tile(plan, batch, device)
            assert streamed is not None
            for tile in filter(None, (streamed, persistent)):
                blocks = tile.grid(plan, batch)
                assert blocks[0] * tile.units >= size
                assert blocks[1] * tile.rows >= batch
                assert shared_bytes(plan, tile) <= device.shared
                assert tile.units * tile.row_groups * tile.splits <= tile.threads
                assert tile.depth % 4 == 0
                assert -(-tile.rows // tile.row_groups) <= 8
            if persistent is not None:
                blocks = persistent.grid(plan, batch)
                assert blocks[0] * blocks[1] <= device.processors


def test_weights_stay_where_they_fit() -> None:
    """An LSTM of 1024 units in single precision on an H100; not on an A100, and not with 2048 units."""
    chosen = {}
    for size in (1024, 2048):
        plan = plan_step(step_of("lstm", "forward", size=size, batch=3))
        chosen[size] = [tile.stationary for device in (H100, A100) if (tile := choose(plan, 16, device))]
    assert chosen == {1024: [True, False], 2048: [False, False]}


# --- CUDA's compiler takes it -----------------------------------------------------------------------------------------

CUDA = compiler()
needs_cuda_compiler = pytest.mark.skipif(CUDA is None, reason="neither NVRTC's wheel nor nvcc is installed")


def check_that_it_compiles(cell: str, direction: str, size: int, batch: int, architecture: str, driver: str) -> None:
    plan = plan_step(step_of(cell, direction, size=size, batch=3))
    device = H100 if architecture == "sm_90" else A100
    tile = (persistent_tile if driver == "persistent" else streamed_tile)(plan, batch, device)
    assert tile is not None
    assert CUDA is not None
    found = CUDA(source(plan), tile.defines, architecture)
    for kernel, (spilled, registers) in found.items():
        assert spilled == 0, (kernel, spilled, registers)
        assert registers * tile.threads <= 65536, (kernel, registers)


@needs_cuda_compiler
@pytest.mark.parametrize(
    ("cell", "direction", "driver"),
    [("lstm", "forward", "persistent"), ("lstm", "backward", "streamed"), ("layer_norm_lstm", "forward", "streamed")],
)
def test_it_compiles_without_spilling(cell: str, direction: str, driver: str) -> None:
    check_that_it_compiles(cell, direction, 512, 16, "sm_90", driver)


@needs_cuda_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "driver", "size", "batch"),
    [
        ("sm_90", "persistent", 600, 64),
        ("sm_90", "streamed", 2000, 16),
        ("sm_80", "persistent", 500, 1),
        ("sm_80", "streamed", 128, 256),
    ],
)
@pytest.mark.parametrize(("cell", "direction"), EACH)
def test_every_cell_compiles_without_spilling(
    cell: str, direction: str, architecture: str, driver: str, size: int, batch: int
) -> None:
    check_that_it_compiles(cell, direction, size, batch, architecture, driver)


# --- the code that starts it ------------------------------------------------------------------------------------------


@pytest.fixture
def cupy_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CupyOnCpu]:
    cupy = CupyOnCpu()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupy)
    monkeypatch.setitem(sys.modules, "cupy._core", types.SimpleNamespace(get_compute_type=lambda dtype: 0))
    cuda._machine.cache_clear()
    yield cupy
    cuda._machine.cache_clear()


@needs_compiler
def test_streamed_through_cupy(cupy_on_cpu: CupyOnCpu) -> None:
    """A graph of 32 steps, again and again; the table is filled once, and then only the first step's number changes."""
    step = step_of("lstm", "backward")
    given = arguments(step, 70)
    loop = run.compile_loop(step, cuda.current_machine(), TILES["streamed"])
    for _ in range(2):  # the second time, the graph is there already
        cupy_on_cpu.events.clear()
        assert close(results(loop, given, 70, True), reference(step, given, 70, True))
        graphs = ["graph of 32", "entry", "graph of 32", "entry", "graph of 32"]
        assert cupy_on_cpu.events == ["wait", "table", "record", "ts_before", *graphs, "record"]


@needs_compiler
def test_a_short_sequence_has_a_short_graph(cupy_on_cpu: CupyOnCpu) -> None:
    step = step_of("layer_norm_lstm", "forward")
    for steps, graphs in ((1, ["graph of 5"]), (3, ["graph of 20"]), (5, ["graph of 40"])):
        given = arguments(step, steps)
        cupy_on_cpu.events.clear()
        loop = run.compile_loop(step, cuda.current_machine(), TILES["streamed"])
        assert close(results(loop, given, steps, False), reference(step, given, steps, False))
        assert cupy_on_cpu.events == ["wait", "table", "record", *graphs, "record"]


@needs_compiler
def test_the_backend_compiles_for_the_current_device(cupy_on_cpu: CupyOnCpu) -> None:
    step = step_of("lstm", "backward")
    asked = [False]
    loop = cuda.DeviceLoops(step, lambda: asked[0])
    assert loop.loop().tile.stationary
    for number, asked[0] in ((0, False), (1, False), (0, False), (1, True)):
        given = arguments(step, 3)
        arrays = [[np.asarray(a).view(DeviceArray) for a in part] for part in given]
        for a in itertools.chain(*arrays):
            a.number = number
        got = results(loop, arrays, 3, False)
        if asked[0]:
            assert not close(got, reference(step, given, 3, False))  # rounded to TF32, but then close
            assert all(np.allclose(a, b, atol=3e-3) for a, b in zip(got, reference(step, given, 3, False), strict=True))
        else:
            assert close(got, reference(step, given, 3, False))
        assert cupy_on_cpu.current == 0
    assert [(machine.number, tf32) for machine, tf32 in loop.loops] == [(0, False), (1, False), (1, True)]


@needs_compiler
def test_persistent_through_cupy(cupy_on_cpu: CupyOnCpu) -> None:
    step = step_of("gru", "forward")
    given = arguments(step, 6)
    loop = run.compile_loop(step, cuda.current_machine(), TILES["persistent"])
    assert close(results(loop, given, 6, False), reference(step, given, 6, False))
    assert cupy_on_cpu.events == ["wait", "table", "record", "ts_loop", "record"]


@needs_compiler
def test_a_grid_that_would_wait_for_ever_is_refused(cupy_on_cpu: CupyOnCpu) -> None:
    step = step_of("gru", "forward", batch=40)
    loop = run.compile_loop(step, cuda.current_machine(), TILES["persistent"])
    with pytest.raises(BackendError, match=r"has 60 blocks of \d+ bytes .* same time, but this GPU runs 16"):
        loop(*arguments(step, 6), 6, False)
    assert cupy_on_cpu.events == []


def test_an_old_gpu_is_refused(cupy_on_cpu: CupyOnCpu) -> None:
    cupy_on_cpu.capability = "61"
    with pytest.raises(BackendError, match=r"capability 7\.0 or newer, and cuda:0 has 6\.1"):
        cuda.current_machine()


def test_the_backend_falls_back_and_says_so(cupy_on_cpu: CupyOnCpu, monkeypatch: pytest.MonkeyPatch) -> None:
    tinyseq_cupy._say_once.cache_clear()
    backend = object.__new__(CupyBackend)
    backend.__dict__.update(
        {
            **vars(get_backend("numpy")),
            "xp": cupy_on_cpu,
            "array_type": np.ndarray,
            "number": None,
            "several": False,
            "fuses": None,
        }
    )
    step = step_of("lstm", "forward")
    monkeypatch.setattr(cuda.current_machine(), "limits", Device(4, 64))
    with pytest.warns(UserWarning, match="one operation at a time, since the compiled loop has no code for 10 units"):
        loop = backend.compile_loop(step)
    given = arguments(step, 3)
    last, histories, written, _ = loop(*given, 3, False)
    assert close([*last, *histories, *written], reference(step, given, 3, False))


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
def test_cupy_has_what_is_called() -> None:
    import cupy
    import cupyx

    names = _names_used(cuda)
    assert {"cupy.RawModule", "cupy.cuda.Stream", "cupyx.empty_pinned"} <= names
    for name in names:
        root, _, rest = name.partition(".")
        assert callable(operator.attrgetter(rest)({"cupy": cupy, "cupyx": cupyx}[root])), name
    parts = {
        cupy.RawModule: "get_function get_global",
        cupy.RawKernel: "kernel max_dynamic_shared_size_bytes",
        cupy.cuda.MemoryPointer: "copy_from_host_async copy_from_device_async __add__",
        cupy.cuda.Stream: "begin_capture end_capture wait_event",
        cupy.cuda.Event: "record synchronize",
        cupy.cuda.Graph: "launch",
        cupy.cuda.Device: "attributes compute_capability id synchronize __enter__",
        cupy.ndarray: "data device flags copy __dlpack__ __dlpack_device__",
    }
    for kind, attributes in parts.items():
        for attribute in attributes.split():
            assert hasattr(kind, attribute), (kind, attribute)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize(("cell", "direction"), EACH)
def test_on_a_gpu(cell: str, direction: str, driver: str) -> None:
    import cupy

    for size, batch, steps in ((7, 5, 4), (100, 33, 70), (512, 16, 40)):
        step = step_of(cell, direction, size=size, batch=batch)
        machine = cuda.current_machine()
        chosen = (persistent_tile if driver == "persistent" else streamed_tile)(plan_step(step), batch, machine.limits)
        assert chosen is not None
        loop = run.compile_loop(step, machine, chosen)
        given = arguments(step, steps)
        for _ in range(2):  # the graph is captured, then used again
            got = results(loop, [[cupy.asarray(a) for a in part] for part in given], steps, True)
            for a, b in zip(got, reference(step, given, steps, True), strict=True):
                np.testing.assert_allclose(cupy.asnumpy(a), b, rtol=1e-4, atol=2e-5 * np.abs(b).max())


@pytest.mark.gpu
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize(("cell", "direction"), [("lstm", "forward"), ("lstm", "backward"), ("layer_norm_lstm", "backward")])
def test_small_on_a_gpu(cell: str, direction: str, driver: str) -> None:
    """For compute-sanitizer, which takes long: several blocks and groups of rows, none of them full."""
    import cupy

    step = step_of(cell, direction)
    tile = replace(TILES[driver], threads=32)
    loop = run.compile_loop(step, cuda.current_machine(), tile)
    given = arguments(step, 4)
    with cupy.cuda.using_allocator(None):  # arrays of a pool are neighbours, and who writes past one is not found out
        got = results(loop, [[cupy.asarray(a) for a in part] for part in given], 4, False)
    for a, b in zip(got, reference(step, given, 4, False), strict=True):
        np.testing.assert_allclose(cupy.asnumpy(a), b, rtol=1e-4, atol=1e-5)
