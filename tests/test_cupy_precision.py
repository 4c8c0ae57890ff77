"""Products in TF32, float16 and bfloat16 with sums in float32, as far as they can be checked without a GPU.

The shim runs all of the generated source but three instructions of PTX, for which it has C++ of its own: the conversions to
float16 and to TF32, and a tensor core's product of two fragments. Which lane holds which number of a fragment is written
down in the source and in the shim, after the PTX manual, and here once more as CUTLASS's layouts have it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import gpu_shim
import numpy as np
import pytest
from gpu_shim.compilers import compiler
from test_cupy_loop import DIRECTIONS, EACH, H100, LAYERS, arguments, check_each_barrier, reference, results, step_of
from tinyseq_cupy.loop import run
from tinyseq_cupy.loop.plan import plan_step
from tinyseq_cupy.loop.source import BASICS, PRELUDE, source
from tinyseq_cupy.loop.tiles import Device, Tile, choose, persistent_tile, shared_bytes, streamed_tile

import tinyseq as ts
from tinyseq.compiler.loop import Step
from tinyseq.graph import Equation, Graph, Operand, Var
from tinyseq.primitives import TABLE

needs_compiler = pytest.mark.skipif(gpu_shim.COMPILER is None, reason="no g++ or clang++ to run CUDA source on the CPU")
V100 = Device(processors=80, shared=96 * 1024, tensor_cores=False)
ORDERS = tuple(gpu_shim.ORDERS)

# Ragged: 10 units in blocks of 4, so 16 or 4 columns; the inner axis in parts of 16, those in two splits; two warps.
TILES = {
    "streamed": Tile(units=4, rows=16, row_groups=4, splits=2, depth=16, threads=64, mma=True),
    "persistent": Tile(units=4, rows=16, row_groups=4, splits=2, depth=32, threads=64, stationary=True, mma=True),
}
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "tf32": 3e-3}


# Of CUTLASS's MMA_Traits for SM80_16x8x8_F32TF32TF32F32_TN and SM80_16x8x16_F32F16F16F32_TN (include/cute/atom): by how much
# the place in an operand, which is stored by columns, grows with lane % 4, with lane // 4, and with each bit of the number
# of the lane's own elements; for the left operand (16, K), and for the right one as (8, K).
LAYOUTS = {"float": (8, (16, 1, 8, 64), (8, 1, 32)), "ts_float16": (16, (32, 1, 16, 8, 128), (16, 1, 8, 64))}


@needs_compiler
@pytest.mark.parametrize("kind", LAYOUTS)
def test_lanes_hold_what_cutlass_says(kind: str) -> None:
    inner, left, right = LAYOUTS[kind]
    text = f"""{BASICS}
{PRELUDE}
extern "C" int left(int row, int k) {{ return ts_left<{kind}>(row, k); }}
extern "C" int right(int k, int column) {{ return ts_right<{kind}>(k, column, 8); }}
extern "C" {{ long long ts_table[1]; }}
"""
    library = gpu_shim.build(text, replace(TILES["streamed"], tf32=True).defines)
    for strides, rows, place in ((left, 16, library.left), (right, 8, lambda column, k: library.right(k, column))):
        bits = len(strides) - 2
        for lane, own in itertools.product(range(32), range(1 << bits)):
            at = lane % 4 * strides[0] + lane // 4 * strides[1] + sum((own >> b & 1) * strides[2 + b] for b in range(bits))
            k, row = divmod(at, rows)
            assert place(row, k) == lane * (1 << bits) + own
    assert (1 << len(left) - 2, 1 << len(right) - 2) == (inner // 2, inner // 4)


def dtype_of(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    return np.dtype("float32" if name == "tf32" else name)


def retyped(step: Step, dtype: np.dtype[Any]) -> Step:
    """The step with other floating-point numbers."""
    new: dict[Var, Var] = {}

    def var(x: Operand) -> Any:
        if not isinstance(x, Var) or x.dtype.kind == "b":
            return x
        return new.setdefault(x, Var(x.shape, dtype))

    def params(e: Equation) -> dict[str, Any]:
        return {k: dtype if k == "dtype" and v.kind == "f" else v for k, v in e.params.items()}

    graph = step.graph
    equations = tuple(Equation(e.primitive, tuple(map(var, e.inputs)), params(e), var(e.output)) for e in graph.equations)
    inputs, outputs, closed = (tuple(map(var, values)) for values in (graph.inputs, graph.outputs, graph.closed))
    return replace(step, graph=Graph(inputs, equations, outputs, closed))


def cast(given: Any, dtype: Any) -> Any:
    return tuple([a if a.dtype.kind == "b" else a.astype(dtype) for a in part] for part in given)


def to_tf32(a: Any) -> Any:
    """To the nearest number with 10 bits of fraction, away from zero from the middle: once more, by arithmetic."""
    mantissa, exponent = np.frexp(a.astype(np.float64))
    return np.ldexp(np.trunc(mantissa * 2**11 + np.copysign(0.5, mantissa)), exponent - 11)


def shim(step: Step, tile: Tile, kind: str, order: str = "random", flags: Any = ()) -> run.Loop:
    return run.compile_loop(step, gpu_shim.CpuMachine(order, flags=flags), replace(tile, tf32=kind == "tf32"))


def check(
    cell: str, direction: str, driver: str, kind: str, order: str, tile: Tile | None = None, batch: int = 19, flags: Any = ()
) -> None:
    """Against float64 on the same numbers; outputs are full of NaN before, two groups of rows, the second not full."""
    exact = retyped(step_of(cell, direction, batch=batch), np.dtype("float64"))
    step = retyped(exact, dtype_of(kind))
    given = arguments(step, 3, seed=1)
    wanted = reference(exact, cast(given, "float64"), 3, direction == "backward")
    got = results(shim(step, tile or TILES[driver], kind, order, flags), given, 3, direction == "backward")
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == (dtype_of(kind) if b.dtype.kind == "f" else bool)
        scale = max(1.0, float(np.abs(b).max())) if b.size else 1.0
        np.testing.assert_allclose(a.astype(b.dtype), b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * scale)


@needs_compiler
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize("kind", TOLERANCE)
def test_an_lstm_and_its_gradient_are_those_of_float64(kind: str, driver: str) -> None:
    for direction, order in zip(DIRECTIONS, ORDERS, strict=False):
        check("lstm", direction, driver, kind, order)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize(("cell", "direction"), EACH)
def test_every_cell_is_that_of_float64(cell: str, direction: str, driver: str, kind: str) -> None:
    check(cell, direction, driver, kind, "random")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("driver", TILES)
def test_in_each_order_and_with_the_tiles_that_are_chosen(driver: str, kind: str) -> None:
    for order in ORDERS:
        check("gru_before", "forward", driver, kind, order)
    plan = plan_step(retyped(step_of("lstm", "forward"), dtype_of(kind)))
    chosen = (persistent_tile if driver == "persistent" else streamed_tile)(plan, 5, gpu_shim.CpuMachine.limits, kind == "tf32")
    assert chosen is not None
    assert chosen.mma
    for direction in DIRECTIONS:
        check("lstm", direction, driver, kind, "random", chosen, batch=5)


@needs_compiler
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("driver", TILES)
def test_numbers_of_16_bits_without_tensor_cores(driver: str, kind: str) -> None:
    """As on GPUs that have none for them."""
    tile = Tile(units=4, rows=2, row_groups=1, splits=2, depth=8, threads=16, stationary=driver == "persistent")
    check("lstm", "forward", driver, kind, "random", tile, batch=5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "driver"), [("float16", "persistent"), ("tf32", "streamed")])
def test_each_barrier_is_needed(kind: str, driver: str) -> None:
    """Between the warps: within one, a tensor core's product is a barrier in itself."""
    step = retyped(step_of("gru_before", "backward", batch=19), dtype_of(kind))
    tile = replace(TILES[driver], depth=16)  # less than the inner axis
    given = arguments(step, 3)
    orders = (("ascending", 0), ("descending", 0), ("random", 0), ("random", 1))
    tiles = tile, replace(tile, splits=1, row_groups=1)
    loops = [
        run.compile_loop(step, gpu_shim.CpuMachine(order, seed), replace(t, tf32=kind == "tf32"))
        for t in tiles
        for order, seed in orders
    ]
    wanted = results(loops[0], given, 3, False)
    near = lambda got: all(np.allclose(a, b, rtol=2e-3, atol=2e-3) for a, b in zip(got, wanted, strict=True))
    check_each_barrier(loops, lambda loop: near(results(loop, given, 3, False)))


def product_step(units: int, inner: int, dtype: Any, factor: float) -> Step:
    """``carry = (x @ w) * factor``."""
    carry, x, w = Var((3, units), dtype), Var((3, inner), dtype), Var((inner, units), dtype)
    product = Equation(TABLE["matmul"], (x, w), {}, Var((3, units), dtype))
    scaled = Equation(TABLE["mul"], (product.output, factor), {}, Var((3, units), dtype))
    return Step(Graph((carry, x), (product, scaled), (scaled.output,), (w,)).check(), 1, ())


@needs_compiler
@pytest.mark.parametrize("mma", [True, False])
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_products_are_summed_in_float32(kind: str, mma: bool) -> None:
    """5,000 ones: float16 cannot count beyond 2,048, nor bfloat16 beyond 256."""
    dtype = dtype_of(kind)
    step = product_step(8, 5000, dtype, 1 / 8)
    ones = [[np.zeros((3, 8), dtype)], [np.ones((1, 3, 5000), dtype)], [np.ones((5000, 8), dtype)]]
    (last,) = results(shim(step, replace(TILES["streamed"], mma=mma), kind), ones, 1, False)
    np.testing.assert_array_equal(last.astype(float), float(np.array(625, dtype)))


@needs_compiler
@pytest.mark.parametrize("driver", TILES)
def test_tf32_rounds_the_operands_and_nothing_else(driver: str) -> None:
    step = product_step(10, 37, np.dtype("float32"), 1.0)
    given = arguments(step, 1, seed=3)
    (x,), (w,) = given[1], given[2]
    (got,) = results(shim(step, TILES[driver], "tf32"), given, 1, False)
    np.testing.assert_allclose(got, to_tf32(x[0]) @ to_tf32(w), rtol=1e-5, atol=1e-6)
    assert np.abs(got - x[0].astype(float) @ w.astype(float)).max() > 1e-5
    (full,) = results(shim(step, TILES[driver], "float32"), given, 1, False)  # nobody asked for TF32
    np.testing.assert_allclose(full, x[0].astype(float) @ w.astype(float), rtol=1e-5, atol=1e-6)


@needs_compiler
def test_float32_beside_float16_stays_float32() -> None:
    """Two products in one section, of which one runs on tensor cores."""
    half, full = np.dtype("float16"), np.dtype("float32")
    a, b = Var((3, 10), half), Var((3, 10), full)
    w, v = Var((10, 10), half), Var((10, 10), full)
    equations = [
        Equation(TABLE["matmul"], (a, w), {}, Var((3, 10), half)),
        Equation(TABLE["matmul"], (b, v), {}, Var((3, 10), full)),
    ]
    equations.append(Equation(TABLE["cast"], (equations[0].output,), {"dtype": full}, Var((3, 10), full)))
    equations.append(Equation(TABLE["add"], (equations[2].output, equations[1].output), {}, Var((3, 10), full)))
    equations.append(Equation(TABLE["cast"], (equations[3].output,), {"dtype": half}, Var((3, 10), half)))
    step = Step(Graph((a, b), tuple(equations), (equations[4].output, equations[3].output), (w, v)).check(), 2, ())
    for tile in TILES.values():
        given = arguments(step, 1, seed=2)
        (h, x), (w_, v_) = given[0], given[2]
        rounded, sums = results(shim(step, tile, "float16"), given, 1, False)
        wanted = h.astype(float) @ w_.astype(float) + x.astype(float) @ v_.astype(float)
        np.testing.assert_allclose(sums, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rounded, sums.astype(half))


@needs_compiler
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_rounding_to_memory_is_that_of_numpy(kind: str) -> None:
    """To the nearest, to even from the middle; subnormal numbers, infinities, overflow, NaN."""
    dtype = dtype_of(kind)
    carry, x = Var((3, 4000), dtype), Var((3, 4000), "float32")
    rounded = Equation(TABLE["cast"], (x,), {"dtype": dtype}, Var((3, 4000), dtype))
    step = Step(Graph((carry, x), (rounded,), (rounded.output,), ()).check(), 1, ())
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, (1, 3, 4000), np.uint32)
    bits[0, 0, :2000] &= np.uint32(0xFFFF8000)  # among them such as lie in the middle
    numbers = bits.view(np.float32)
    numbers[0, 1] = (rng.standard_normal(4000) * 10.0 ** rng.integers(-9, 6, 4000)).astype(np.float32)
    numbers[0, 1, :8] = [0, -0.0, np.inf, -np.inf, np.nan, 65519.9, 65520.1, 6e-8]
    given = [[np.zeros((3, 4000), dtype)], [numbers], []]
    (got,) = results(shim(step, TILES["streamed"], kind), given, 1, False)
    with np.errstate(all="ignore"):
        wanted = numbers[0].astype(dtype)
    is_nan = np.isnan(numbers[0])
    np.testing.assert_array_equal(np.isnan(got.astype(float)), is_nan)
    np.testing.assert_array_equal(got.view(np.uint16)[~is_nan], wanted.view(np.uint16)[~is_nan])


def test_tensor_cores_are_used_where_they_are_and_tf32_only_when_asked_for() -> None:
    halves = plan_step(retyped(step_of("lstm", "forward", size=512), np.dtype("float16")))
    floats = plan_step(step_of("lstm", "forward", size=512))
    doubles = plan_step(retyped(step_of("lstm", "forward", size=512), np.dtype("float64")))
    for plan, tf32, wanted in (
        (halves, False, (True, False)),
        (floats, False, (False, False)),
        (floats, True, (True, True)),
        (doubles, True, (False, False)),
    ):
        tile = choose(plan, 16, H100, tf32)
        assert tile is not None
        assert (tile.mma, tile.tf32) == wanted
        old = choose(plan, 16, V100, tf32)
        assert old is not None
        assert not old.mma


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "layer_norm_lstm"])
def test_tiles_fit_and_have_whole_fragments(cell: str, kind: str) -> None:
    for size, direction in ((64, "forward"), (1000, "backward")):
        plan = plan_step(retyped(step_of(cell, direction, size=size, batch=3), dtype_of(kind)))
        for batch in (1, 16, 100, 300):
            streamed = streamed_tile(plan, batch, H100, kind == "tf32")
            persistent = persistent_tile(plan, batch, H100, kind == "tf32")
            assert streamed is not None
            for tile in filter(None, (streamed, persistent)):
                assert tile.mma
                assert tile.rows % 16 == tile.depth % 16 == 0
                assert tile.threads % (32 * tile.splits) == 0
                assert shared_bytes(plan, tile) <= H100.shared
                assert tile.units * tile.row_groups * tile.splits <= tile.threads


def test_half_as_many_bytes_hold_more_units() -> None:
    """The recurrent weights of an LSTM of 1,600 units stay in an H100's shared memory in float16, not in float32."""
    step = step_of("lstm", "forward", size=1600, batch=3)
    stationary = {}
    for kind in ("float16", "float32"):
        tile = choose(plan_step(retyped(step, np.dtype(kind))), 16, H100)
        assert tile is not None
        stationary[kind] = tile.stationary
    assert stationary == {"float16": True, "float32": False}


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_the_scan_of_16_bits_has_gradients(kind: str) -> None:
    """bfloat16 is no floating-point type to NumPy; a scan's gradient must not be lost for that."""
    dtype = dtype_of(kind)
    gradients = {}
    for exact in (np.dtype("float64"), dtype):
        with ts.use_backend("numpy"):
            ts.manual_seed(0)
            layer = ts.nn.LSTM(3, 5).astype(dtype).astype(exact)
            x = ts.random.randn((4, 2, 3)).astype(dtype).astype(exact).detach().requires_grad_()
            ys, _ = layer(x)
            (ys * ys).sum().backward()
            found = [x.grad, *(p.grad for p in layer.parameters())]
        assert [g.dtype for g in found] == [exact] * 5
        gradients[exact.name] = [g.numpy().astype(float) for g in found]
    for a, b in zip(gradients[dtype.name], gradients["float64"], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2 * TOLERANCE[kind] * np.abs(b).max())


# --- CUDA's compiler takes it -----------------------------------------------------------------------------------------

CUDA = compiler()
needs_cuda_compiler = pytest.mark.skipif(CUDA is None, reason="neither NVRTC's wheel nor nvcc is installed")


def check_that_it_compiles(cell: str, direction: str, kind: str, architecture: str, driver: str) -> None:
    plan = plan_step(retyped(step_of(cell, direction, size=512, batch=3), dtype_of(kind)))
    device = H100 if architecture == "sm_90" else Device(processors=108, shared=163 * 1024)
    tile = (persistent_tile if driver == "persistent" else streamed_tile)(plan, 64, device, kind == "tf32")
    if tile is None and driver == "persistent":
        pytest.skip("the weights do not fit")
    assert tile is not None
    assert tile.mma
    assert CUDA is not None
    for kernel, (spilled, registers) in CUDA(source(plan), tile.defines, architecture).items():
        assert spilled == 0, (kernel, spilled, registers)
        assert registers * tile.threads <= 65536, (kernel, registers)


@needs_cuda_compiler
@pytest.mark.parametrize(("kind", "driver"), [("float16", "persistent"), ("tf32", "persistent"), ("bfloat16", "streamed")])
def test_an_lstm_compiles_without_spilling(kind: str, driver: str) -> None:
    check_that_it_compiles("lstm", "forward", kind, "sm_90", driver)


@needs_cuda_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize(("architecture", "driver"), [("sm_80", "streamed"), ("sm_90", "persistent"), ("sm_90", "streamed")])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", LAYERS)
def test_every_cell_compiles_without_spilling(cell: str, direction: str, kind: str, architecture: str, driver: str) -> None:
    check_that_it_compiles(cell, direction, kind, architecture, driver)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TOLERANCE)
@pytest.mark.parametrize("driver", TILES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "layer_norm_lstm"])
def test_on_a_gpu(cell: str, direction: str, driver: str, kind: str) -> None:
    import cupy
    from tinyseq_cupy.loop import cuda

    for size, batch, steps in ((10, 5, 4), (512, 33, 20)):
        exact = retyped(step_of(cell, direction, size=size, batch=batch), np.dtype("float64"))
        step = retyped(exact, dtype_of(kind))
        machine = cuda.current_machine()
        chosen = (persistent_tile if driver == "persistent" else streamed_tile)(
            plan_step(step), batch, machine.limits, kind == "tf32"
        )
        assert chosen is not None
        given = arguments(step, steps)
        loop = run.compile_loop(step, machine, chosen)
        got = results(loop, [[cupy.asarray(a) for a in part] for part in given], steps, True)
        for a, b in zip(got, reference(exact, cast(given, "float64"), steps, True), strict=True):
            scale = max(1.0, float(np.abs(b).max()))
            np.testing.assert_allclose(cupy.asnumpy(a).astype(b.dtype), b, rtol=TOLERANCE[kind], atol=TOLERANCE[kind] * scale)
