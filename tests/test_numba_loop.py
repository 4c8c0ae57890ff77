"""The loop as machine code: accuracy at every argument, threads, the disk cache, what falls back."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tinyseq as ts

pytest.importorskip("numba")
import tinyseq_numba
from llvmlite import ir
from tinyseq_numba import machine, waiting
from tinyseq_numba import threads as thread_module
from tinyseq_numba.loop import compile as loops
from tinyseq_numba.loop import memory
from tinyseq_numba.loop.compile import pack
from tinyseq_numba.loop.product import packed_shape, panel_of
from tinyseq_numba.threads import run, together

EXACT = {
    "exp": np.exp,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "log1p": lambda x: np.log1p(np.abs(x)),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
}


@pytest.fixture(autouse=True)
def numba() -> Any:
    with ts.use_backend("numba"), warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing here may leave the machine code
        yield


def through_a_loop(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """f(x), computed by the step of a compiled scan."""
    f = {"log1p": lambda v: ts.functions.log1p(abs(v)), "sqrt": lambda v: abs(v).sqrt()}.get(name) or getattr(ts, name)
    rows = ts.tensor(x.reshape(1, 1, -1))
    _, ys = ts.scan(lambda c, v: (c * 0.5 + v * 0.0, f(v + c * 0.0)), ts.zeros((1, x.size), x.dtype), rows)
    return ys.numpy().reshape(-1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_elementary_functions_are_accurate(name: str, dtype: type) -> None:
    """Within 8 units in the last place wherever the result is over 1e-4, and within 1e-7 (1e-15) everywhere."""
    span = np.concatenate([np.linspace(-20, 20, 40_001), np.geomspace(1e-20, 80, 4_000), -np.geomspace(1e-20, 80, 4_000)])
    x = span.astype(dtype)
    with np.errstate(all="ignore"):
        wanted = EXACT[name](x.astype(np.longdouble))
        got = through_a_loop(name, x).astype(np.longdouble)
    finite = np.abs(wanted) < np.finfo(dtype).max
    error = np.abs(got - wanted)[finite]
    wanted = np.abs(wanted[finite])
    eps = np.finfo(dtype).eps
    assert (error[wanted > 1e-4] <= 8 * eps * wanted[wanted > 1e-4]).all()
    small = 1e-7 if dtype is np.float32 else 1e-15
    assert (error[wanted <= 1] <= small).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinities_come_out_as_the_limits(dtype: type) -> None:
    # Nine numbers: a whole vector and an end.
    x = np.array([np.nan, np.inf, -np.inf, 0.0, 1e30, -1e30, 200.0, -200.0, np.nan], dtype)
    with np.errstate(all="ignore"):
        for name in ("exp", "expm1", "tanh", "sigmoid"):
            wanted = EXACT[name](x)
            np.testing.assert_allclose(through_a_loop(name, x), wanted, rtol=1e-6, atol=1e-37, err_msg=name)


def lstm(seed: int = 0, size: int = 19, batch: int = 7, steps: int = 5) -> list[np.ndarray[Any, Any]]:
    ts.manual_seed(seed)
    layer = ts.nn.LSTM(3, size)
    x = ts.random.randn((steps, batch, 3)).requires_grad_()
    ys, (h, c) = layer(x)
    ((ys * ys).sum() + h.sum() + c.sum()).backward()
    return [t.numpy().copy() for t in (ys, x.grad, *(p.grad for p in layer.parameters())) if t is not None]


def test_threads_give_the_same_bits_again_and_nearly_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for a, b in zip(lstm(), lstm(), strict=True):
        np.testing.assert_array_equal(a, b)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    one = lstm()
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    for a, b in zip(one, lstm(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def forget() -> None:
    """Machine code that is in memory, and what was said."""
    for kept in (machine.compiled, machine.address, machine._engine, machine._say_once, loops._pack, waiting._function):
        kept.cache_clear()


def test_a_damaged_or_foreign_kernel_is_compiled_anew_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYSEQ_CACHE_DIR", str(tmp_path))

    def fresh(size: int) -> list[np.ndarray[Any, Any]]:
        forget()
        from tinyseq.compiler import scan

        scan._runners.clear()
        return lstm(size=size)

    wanted = fresh(11)
    files = list((tmp_path / "loops").glob("*.o"))
    assert len(files) == 4  # forward, backward, what packs the weights, and how threads get their shares
    for a, b in zip(wanted, fresh(11), strict=True):  # from the disk
        np.testing.assert_array_equal(a, b)
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
    with pytest.warns(UserWarning, match="is damaged and is compiled anew") as said:
        again = fresh(11)
    assert len(said) == 1
    for a, b in zip(wanted, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TINYSEQ_CACHE_DIR", str(tmp_path / "file"))
    forget()
    with pytest.warns(UserWarning, match="cannot be kept in .* set TINYSEQ_CACHE_DIR") as said:
        assert np.isfinite(lstm(size=13)[0]).all()
    assert len(said) == 1


def test_an_operation_without_code_falls_back_and_is_named() -> None:
    tinyseq_numba._said.clear()
    x = ts.tensor(np.arange(12.0, dtype=np.float32).reshape(2, 2, 3))
    with pytest.warns(UserWarning, match="the compiled loop has no code for flip"):
        _, ys = ts.scan(lambda c, v: (ts.flip(c + v, -1), c), ts.zeros((2, 3)), x)
    np.testing.assert_array_equal(ys.numpy(), [np.zeros((2, 3)), x.numpy()[0, :, ::-1]])
    ts.scan(lambda c, v: (ts.flip(c + v, -1), c), ts.zeros((5, 3)), ts.zeros((2, 5, 3)))  # of another size: not said again


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_packed_weights_hold_every_column(dtype: type) -> None:
    panel = panel_of(np.dtype(dtype))
    for rows, columns in [(1, 1), (3, panel + 5), (17, panel), (83, 4 * panel - 1), (8, 2 * panel)]:
        plain = np.arange(1, 1 + rows * columns, dtype=dtype).reshape(rows, columns)
        turned = np.ascontiguousarray(plain.T).T
        sparse = np.repeat(np.repeat(plain, 2, 0), 3, 1)[::2, ::3]
        for weights in (plain, turned, sparse):
            packed = np.full(packed_shape(weights.shape, weights.dtype), np.nan, dtype)
            pack(weights, packed)
            whole = np.concatenate(list(packed), axis=1)
            np.testing.assert_array_equal(whole[:, :columns], plain)
            assert not whole[:, columns:].any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_division_by_one_number_a_row(dtype: type) -> None:
    """Within two units in the last place of the quotient for every size of both, and as IEEE says at the ends."""
    kind = np.finfo(dtype)
    ends = [0.0, -0.0, np.inf, -np.inf, np.nan, kind.max, kind.max / 3, kind.tiny, 3.3 * kind.tiny, kind.smallest_subnormal]
    spread = np.geomspace(kind.tiny, kind.max / 2, 41) * np.resize([1, -1], 41)
    numbers = np.array([*ends, *(spread * 1.37)], dtype)
    x, y = np.tile(numbers, (len(numbers), 1)), numbers[:, None]

    def step(c: Any, pair: Any) -> Any:
        quotient = ts.where(c > 1, c, pair[0] / pair[1])  # of the carry too, so that it is computed in the loop
        return c * 0.5, quotient

    _, quotients = ts.scan(step, ts.zeros(x.shape, dtype), (ts.tensor(x[None]), ts.tensor(y[None])))
    with np.errstate(all="ignore"):
        wanted, found = x / y, quotients.numpy()[0]
        np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
        np.testing.assert_array_equal(np.isinf(found), np.isinf(wanted))
        np.testing.assert_array_equal(np.signbit(found), np.signbit(wanted), err_msg="sign")
        finite = np.isfinite(wanted)
        assert (np.abs(found - wanted)[finite] <= 2 * np.spacing(np.abs(wanted[finite]))).all()


def test_columns_cut_in_any_way_stay_in_machine_code() -> None:
    ts.manual_seed(1)
    w = ts.random.randn((6, 7)).astype(np.float64).requires_grad_()
    xs = ts.random.randn((5, 4, 7)).astype(np.float64).requires_grad_()

    def step(h: Any, x: Any) -> Any:
        z = h @ w + x
        h = ts.tanh(z[:, :-1]) * ts.sigmoid(z[:, -1]).unsqueeze(1) + z[..., 2][:, None] * 0.1
        return h, h

    found = []
    for unroll in (True, False):
        w.grad = xs.grad = None
        _, ys = ts.scan(step, ts.zeros((4, 6), np.float64), xs, unroll=unroll)
        (ys * ys).sum().backward()
        assert w.grad is not None
        assert xs.grad is not None
        found.append([ys.numpy(), w.grad.numpy(), xs.grad.numpy()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-11, atol=1e-13)


def reading(kind: str, batch: int, lines: int, size: int, lengths: bool, unroll: bool, backend: str, dtype: str) -> list[Any]:
    """Outputs, and all gradients, of a cell that reads a memory (B, S, N) at every step."""
    with ts.use_backend(backend):
        return _reading(kind, batch, lines, size, lengths, unroll, dtype)


def _reading(kind: str, batch: int, lines: int, size: int, lengths: bool, unroll: bool, dtype: str) -> list[Any]:
    rng = np.random.default_rng(3)

    def parameter(*shape: int) -> ts.Parameter:
        return ts.Parameter((rng.standard_normal(shape) * 0.5).astype(dtype))

    to_query, to_state, energy = parameter(4, size), parameter(size, 4), parameter(size)
    keys, values = parameter(batch, lines, size), parameter(batch, lines, size)
    start, xs = parameter(batch, 4), parameter(3, batch, 4)
    mask = ts.tensor(rng.random((batch, lines)) > 0.2)
    positions = ts.tensor(rng.standard_normal((lines, size)).astype(dtype))

    def step(h: Any, x: Any) -> Any:
        query = (h @ to_query)[:, None, :]
        if kind == "additive":
            scores = (keys + query).tanh() @ energy
        elif kind == "product":
            scores = (keys @ query.mT)[..., 0]
        else:  # whatever goes over lines: positions that all rows share, sums of lines, numbers of a line that divide
            scale = 1 + (keys * keys).sum(-1, keepdims=True)
            scores = ((keys + positions) * query / scale).sigmoid().sum(-1) + (keys * query).sum(1).max(-1, keepdims=True)
        weights = ts.softmax(ts.where(mask, scores, -1e9))
        context = (weights[:, None, :] @ values)[:, 0]
        h = ts.tanh(x + context @ to_state)
        return h, (h, weights)

    end, (ys, weights) = ts.scan(step, start, xs, unroll=unroll, lengths=[2] * batch if lengths else None)
    (end.sum() + (ys * ts.tensor(rng.standard_normal(ys.shape).astype(dtype))).sum() + (weights * weights).sum()).backward()
    leaves = (to_query, to_state, energy, keys, values, start, xs)
    return [end.numpy(), ys.numpy(), weights.numpy(), *(leaf.grad.numpy() for leaf in leaves if leaf.grad is not None)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["additive", "product", "lines"])
@pytest.mark.parametrize(("batch", "lines", "size"), [(3, 7, 6), (4, 4, 4), (2, 12, 33), (1, 5, 16), (3, 1, 8), (2, 8, 1)])
@pytest.mark.parametrize("lengths", [False, True])
def test_a_memory_is_read_in_machine_code(kind: str, batch: int, lines: int, size: int, lengths: bool) -> None:
    found = reading(kind, batch, lines, size, lengths, False, "numba", "float64")
    wanted = reading(kind, batch, lines, size, lengths, True, "numpy", "float64")
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", ["additive", "product"])
def test_a_memory_is_read_in_float32(kind: str) -> None:
    found = reading(kind, 3, 9, 20, True, False, "numba", "float32")
    wanted = reading(kind, 3, 9, 20, True, True, "numpy", "float64")
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * max(1, np.linalg.norm(other))


def test_a_number_of_each_row_is_not_taken_for_one_of_each_feature() -> None:
    """With as many rows as features, (B, N) + (B,) says N: NumPy spreads the second over the rows."""
    tinyseq_numba._said.clear()
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((3, 4, 4))
    with pytest.warns(UserWarning, match=r"no code for a value of shape \(4,\) beside one with 2 axes"):
        last, _ = ts.scan(lambda h, x: ((h + x + h.sum(-1)).tanh(), None), ts.zeros((4, 4), "float64"), ts.tensor(xs))
    wanted = np.zeros((4, 4))
    for x in xs:
        wanted = np.tanh(wanted + x + wanted.sum(-1))
    np.testing.assert_allclose(last.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "layer norm"])
@pytest.mark.parametrize(
    ("steps", "batch", "inputs", "hidden"), [(30, 1, 50, 128), (7, 1, 3, 67), (65, 1, 33, 70), (9, 2, 5, 40), (41, 7, 33, 70)]
)
def test_threads_share_the_columns_of_products(
    monkeypatch: pytest.MonkeyPatch, kind: str, threads: int, steps: int, batch: int, inputs: int, hidden: int
) -> None:
    shared: list[int] = []

    def trained(count: int) -> list[Any]:
        ts.manual_seed(1)
        layer = {"LSTM": ts.nn.LSTM, "GRU": ts.nn.GRU, "layer norm": ts.nn.LSTM}[kind](
            inputs, hidden, **({"layer_norm": True} if kind == "layer norm" else {})
        )
        xs = ts.random.randn((steps, batch, inputs)).requires_grad_()
        monkeypatch.setattr(loops, "threads", lambda: count)
        ys, _ = layer(xs)
        (ys * ys).sum().backward()
        assert xs.grad is not None
        return [ys.numpy(), xs.grad.numpy(), *(p.grad.numpy() for p in layer.parameters() if p.grad is not None)]

    def noted(code: int, tables: Any, *release: Any) -> None:
        shared.append((ctypes.c_int64 * loops.NUMBERS).from_address(tables[0])[-1])  # the parts of the columns
        run(code, tables, *release)

    monkeypatch.setattr(loops, "MANY", 0)
    monkeypatch.setattr(loops, "LARGE", 0)
    monkeypatch.setattr(loops, "run", noted)
    alone = trained(1)
    assert set(shared) == {1}
    found, again = trained(threads), trained(threads)
    assert shared[2:] == [threads] * 4
    for one, other, third in zip(alone, found, again, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6 * np.abs(one).max())
        np.testing.assert_array_equal(other, third)


def machine_code(write: Any) -> int:
    """The address of ``share(pointer)``, which does what ``write(b, words)`` says; ``words(i)`` is its i-th 64-bit word."""
    module = ir.Module("share")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.PointerType()]), "share")
    b = ir.IRBuilder(function.append_basic_block("entry"))
    write(b, lambda i: b.gep(function.args[0], [waiting.I64(i)], source_etype=waiting.I64))
    b.ret_void()
    return machine.address(str(module), "share")


def test_an_interruption_lets_threads_go_that_wait_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(b: Any, words: Any) -> None:
        waiting.wait_until(
            b, lambda: b.icmp_signed("!=", b.load_atomic(words(0), "acquire", 8, typ=waiting.I64), waiting.I64(0))
        )
        b.store(waiting.I64(7), words(1))

    def interrupted(code: int, arguments: int) -> None:
        raise KeyboardInterrupt

    gate = np.zeros(2, np.int64)
    monkeypatch.setattr(thread_module, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(machine_code(wait), [gate.ctypes.data] * 2, lambda: gate[:1].fill(1))
    assert gate[1] == 7  # the other has run to its end


def test_threads_that_look_and_threads_that_sleep_get_every_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(b: Any, words: Any) -> None:
        b.atomic_rmw("add", words(0), waiting.I64(1), "seq_cst")

    code, counters = machine_code(count), np.zeros((3, 8), np.int64)
    pointers = [counters[i].ctypes.data for i in range(3)]
    python = [0, 0, 0]

    def add(i: int) -> None:
        python[i] += 1

    rng = np.random.default_rng(0)
    for turn in range(3000):
        if turn % 3 == 2:
            together(add, [(0,), (1,), (2,)])
        else:
            run(code, pointers)
        if turn % 7 == 0:  # some sleep by then, some are about to, some look
            time.sleep(rng.choice([0, 2e-4, 6e-4, 1e-3]))
    assert counters[:, 0].tolist() == [2000] * 3
    assert python == [1000] * 3


def test_two_callers_at_once_get_their_own_shares() -> None:
    def count(b: Any, words: Any) -> None:
        b.atomic_rmw("add", words(0), waiting.I64(1), "seq_cst")

    code, counters = machine_code(count), np.zeros((2, 2, 8), np.int64)

    def call(caller: int) -> None:
        for _ in range(2000):
            run(code, [counters[caller, i].ctypes.data for i in (0, 1)])

    callers = [threading.Thread(target=call, args=(i,)) for i in (0, 1)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert (counters[:, :, 0] == 2000).all()


def test_a_batch_of_no_rows() -> None:
    last, ys = ts.scan(lambda h, x: (ts.tanh(h + x), h), ts.zeros((0, 3)), ts.zeros((4, 0, 3)))
    assert last.shape == (0, 3)
    assert ys.shape == (4, 0, 3)


# --- memory and threads -----------------------------------------------------------------------------------------------


def where(array: np.ndarray[Any, Any]) -> int:
    return int(array.ctypes.data)


def test_memory_is_used_again_when_the_last_array_on_it_is_gone() -> None:
    shape, kind = (77, 33, 11), np.dtype(np.float32)
    first = memory.empty(shape, kind)
    assert (first.shape, first.dtype, where(first) % 64) == (shape, kind, 0)
    first[:] = 1
    place, part = where(first), first[3:, ::2]
    del first
    other = memory.empty(shape, kind)
    assert where(other) != place  # a part of it is still in use
    other[:] = 2
    assert (part == 1).all()
    del part
    assert where(memory.empty(shape, kind)) == place


def test_memory_that_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free", {})
    monkeypatch.setattr(memory, "_held", [0])
    monkeypatch.setattr(memory, "LIMIT", 1_000_000)
    arrays = [memory.empty((200_000,), np.dtype(np.float32)) for _ in range(4)]
    arrays.clear()
    assert 0 < memory._held[0] <= 1_000_000
    assert memory._held[0] == sum(a.nbytes for waiting in memory._free.values() for a in waiting)
    memory.empty((225_000,), np.dtype(np.float32))  # of another size: what waits makes room
    assert memory._held[0] <= 1_000_000


def test_an_error_and_an_interruption_wait_for_all_shares() -> None:
    ended = []

    def work(share: int) -> None:
        if share == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)
        ended.append(share)
        if share == 2:
            raise ValueError("share 2")

    with pytest.raises(KeyboardInterrupt):
        together(work, [(0,), (1,)])
    assert ended == [1]
    with pytest.raises(ValueError, match="share 2"):
        together(work, [(3,), (2,)])
    together(work, [(4,), (5,)])  # the thread goes on
    assert sorted(ended) == [1, 2, 3, 4, 5]


OTHER_PROCESSOR = """
import sys

import numpy as np

from tinyseq_numba import machine

length, registers = map(int, sys.argv[1:])
machine.vector_bytes, machine.vector_registers = lambda: length, lambda: registers

import tinyseq as ts

with ts.use_backend("numba"):
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-11)):
        for steps, batch, inputs, hidden in ((7, 5, 19, 83), (3, 1, 8, 130), (4, 13, 33, 16)):
            layer, xs = ts.nn.LSTM(inputs, hidden, dtype=dtype), ts.random.randn((steps, batch, inputs), dtype).requires_grad_()
            found = []
            for layer.unroll in (False, True):
                leaves = [xs, *layer.parameters()]
                for leaf in leaves:
                    leaf.grad = None
                ys, _ = layer(xs)
                (ys * ys).sum().backward()
                found.append([ys.numpy(), *(leaf.grad.numpy() for leaf in leaves)])
            for a, b in zip(*found, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max()))
from tinyseq_numba.loop import product

print(product.lanes_of(np.dtype("float32")), product.VECTORS)
"""


@pytest.mark.parametrize(("length", "registers", "tile"), [(16, 16, "4 2"), (16, 32, "4 4"), (32, 16, "8 2"), (32, 32, "8 4")])
def test_tiles_of_every_kind_of_processor(length: int, registers: int, tile: str) -> None:
    """Vectors of SSE and NEON are shorter than those of AVX, and AVX-512 and NEON have twice as many registers."""
    command = [sys.executable, "-W", "error", "-c", OTHER_PROCESSOR, str(length), str(registers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, tile), done.stderr
