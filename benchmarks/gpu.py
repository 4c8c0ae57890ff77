"""One command for a machine with an NVIDIA GPU: is it right, what does its hardware cost, and how fast is the compiled loop?

    python benchmarks/gpu.py                      # in about ten minutes, everything that fits
    python benchmarks/gpu.py --cells lstm gru --kinds float32 tf32 --hidden 256 512 1024 --write
    python benchmarks/gpu.py --dry                # without a GPU: all of it runs, on the CPU, and every clock is made up

1. The tests that are marked `gpu`, then some small ones under compute-sanitizer's memcheck and racecheck where it is found.
2. What a barrier, a broadcast, a launch and a node of a CUDA graph cost here, and the ceilings of memory and arithmetic.
3. A training step of `examples/shakespeare.py` beside the same in PyTorch.
4. Layers, forward and forward+backward, beside cuDNN's (`torch.nn`), a PyTorch loop, `torch.compile` of the cell's step and,
   for two short sequences, of the whole loop, and JAX's `lax.scan`, with the time that was predicted from part 2, the share of
   both ceilings, and the driver that was chosen.

PyTorch and CuPy are timed by events on their streams, JAX by the host's clock around `block_until_ready`. Libraries take turns,
and outputs and gradients are compared before anything is timed. What no longer fits into `--minutes` is skipped and counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import shakespeare
from cells import CELLS, Cell, Data, Names, Size, data
from common import RESULTS, markdown, plain, time_text, write

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["rnn", "gru", "lstm", "lstm-layer-norm", "lstm-peephole"]
KINDS = ["float32", "tf32", "float16", "bfloat16"]
TOLERANCE = {"float32": 1e-3, "tf32": 2e-2, "float16": 3e-2, "bfloat16": 1e-1}  # of the largest magnitude, after T steps
PEERS = ["built-in", "nn", "loop", "compile", "whole", "jax"]  # the first: our own layer beside the same cell as users write it
# A compiled whole loop: for these alone, and after so many other cases, since each compiles for a minute or is given up.
WHOLE_CASES = [(name, Size(32, 16, 512, 512), "float32") for name in ("lstm", "lstm-layer-norm")]
WHOLE_AFTER, WHOLE_SECONDS = 20, 75
MODES = ["forward", "forward+backward"]
ROUNDS, LEAST = 5, 0.02  # turns of each library, and seconds that a turn lasts
TESTS = [
    *(f"tests/test_cupy{part}.py" for part in ("", "_loop", "_regions", "_precision", "_devices")),
    "tests/test_shakespeare.py",
]
SMALL = "test_small_on_a_gpu"  # for compute-sanitizer, which takes a hundred times as long
MADE_UP = "made up"


# --- 1. is it right ---------------------------------------------------------------------------------------------------


def run_tests(dry: bool, left: Callable[[], float]) -> bool:
    """Run the tests for a GPU, then the small ones under compute-sanitizer; False if any fails."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    commands = [[*pytest, *TESTS]]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        if sanitizer and not dry:
            own = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
            commands.append([*own, *pytest, "-k", SMALL, *TESTS[1:3]])
        else:
            print(f"compute-sanitizer {tool}: {'not in a dry run' if dry else 'compute-sanitizer is not found'}")
    for command in commands:
        print("$", " ".join(command), flush=True)
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=max(1.0, min(240.0, left())), capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            print("  stopped: no time left for it")
            continue
        print("  " + (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1])
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:])
            return False
    return True


# --- 2. what the hardware costs ---------------------------------------------------------------------------------------

KERNELS = r"""
extern "C" { __constant__ long long ts_table[5]; }
#if TS_STATIONARY
// Every block of a group waits for the others; with words, all read what each wrote a share of.
extern "C" __global__ void __launch_bounds__(TS_THREADS, 1) ts_loop() {
    unsigned* const arrivals = (unsigned*)ts_table[1] + blockIdx.y * 32;
    const int words = (int)ts_table[3], share = words / gridDim.x;
    unsigned wanted = 0;
    float sum = 0;
    for (long long n = 0; n < ts_table[0]; n++) {
        float* const h = (float*)ts_table[2] + ((n & 1) * gridDim.y + blockIdx.y) * words;
        for (int k = threadIdx.x; k < share; k += TS_THREADS) h[blockIdx.x * share + k] = 1;
        ts_exchange(arrivals, wanted += gridDim.x);
        for (int k = threadIdx.x; k < words; k += TS_THREADS) sum += ts_fresh(h + k);
    }
    ((float*)ts_table[4])[(blockIdx.y * gridDim.x + blockIdx.x) * TS_THREADS + threadIdx.x] = sum;
}
#else
extern "C" __global__ void ts_kernel0(int i) {}
#endif
"""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds and rates of this GPU.

    Attributes:
        barrier: of all its processors, a step.
        read: a byte that every block reads of what the others wrote, beyond the barrier.
        launch: the host's time for a kernel.
        node: of a CUDA graph.
        memory: bytes a second, read and written.
        arithmetic: operations a second of a large product, by kind.
    """

    barrier: float
    read: float
    launch: float
    node: float
    memory: float
    arithmetic: dict[str, float]

    def lines(self, note: str) -> list[str]:
        rates = ", ".join(f"{kind} {rate / 1e12:.1f}" for kind, rate in self.arithmetic.items())
        return [
            f"a barrier of all processors: {time_text(self.barrier)}{note}",
            f"64 KB that every block reads after it: {time_text(self.read * 65536)} more{note}",
            f"a launch: {time_text(self.launch)} of the host{note}; a node of a CUDA graph: {time_text(self.node)}{note}",
            f"ceilings: {self.memory / 1e9:.0f} GB/s; products in TFLOP/s: {rates}{note}",
        ]


def measure_costs(bench: Bench) -> Costs:
    """Run the little kernels through the code that runs the loops."""
    from tinyseq_cupy.loop.source import BASICS, PRELUDE
    from tinyseq_cupy.loop.tiles import Tile

    machine, steps = bench.machine, 4 if bench.dry else 2000
    blocks = 4 if bench.dry else machine.limits.processors
    tile = Tile(units=8, rows=1, row_groups=1, splits=1, depth=4, threads=32 if bench.dry else 256)
    programs = {
        stationary: machine.compile(f"{BASICS}\n{PRELUDE}\n{KERNELS}", dataclasses.replace(tile, stationary=stationary).defines)
        for stationary in (True, False)
    }
    out = machine.empty((blocks * tile.threads,), np.dtype("float32"))

    def exchanged(words: int) -> float:
        buffer = machine.empty((2, max(1, words)), np.dtype("float32"))

        def run() -> None:
            arrivals = machine.zeros(32)
            table = [steps, *map(machine.address, (arrivals, buffer)), words, machine.address(out)]
            programs[True].persistent(table, (blocks, 1), 0)

        return bench.seconds(run, (2e-6 + words * 4 * 1e-11) * steps) / steps

    barrier = exchanged(0)
    words = 16384 // blocks * blocks
    read = max(0.0, exchanged(words) - barrier) / (4 * words)
    if bench.dry:
        assert float(out[0]) == steps * words / tile.threads  # each block read what all wrote
    nodes = 64 if bench.dry else 4096
    table = [0] * 5
    node = bench.seconds(lambda: programs[False].streamed(table, (1, 1), 0, False, 1, nodes), 1e-6 * nodes) / nodes
    launch = bench.host_seconds(lambda: programs[False].plain("ts_kernel0", table, (1, 1), 0), 8e-6)
    return Costs(barrier, read, launch, node, *bench.ceilings())


# --- the clock, the machine ------------------------------------------------------------------------------------------


class Bench:
    """A GPU and its clock, or, in a dry run, the CPU and a clock that says what it is told."""

    def __init__(self, dry: bool, minutes: float) -> None:
        self.dry, self.end = dry, time.monotonic() + 60 * minutes
        self.backend = "numpy" if dry else "cupy"
        if dry:
            sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "backends")]
            import gpu_shim
            from tinyseq_cupy.loop.tiles import Device

            self.machine: Any = gpu_shim.CpuMachine("random")
            self.limits = Device(processors=132, shared=227 * 1024)
            self.name = "none: the CPU, through the tests' shim, and plans for an H100"
        else:
            import cupy
            from tinyseq_cupy.loop.cuda import current_machine

            self.cupy, self.machine = cupy, current_machine()
            self.limits = self.machine.limits
            runtime = cupy.cuda.runtime
            driver = runtime.driverGetVersion()
            self.name = (
                f"{runtime.getDeviceProperties(0)['name'].decode()}, driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
            )

    def left(self) -> float:
        """Seconds until the budget is spent."""
        return self.end - time.monotonic()

    def seconds(self, run: Callable[[], object], made_up: float) -> float:
        """The device's time of a call, the median of some; in a dry run it runs once, and takes what is made up."""
        run()
        if self.dry:
            return made_up
        times = []
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        for _ in range(ROUNDS):
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times.append(self.cupy.cuda.get_elapsed_time(start, stop) / 1e3)
        return statistics.median(times)

    def host_seconds(self, run: Callable[[], object], made_up: float) -> float:
        """The host's time of a call that waits for nothing."""
        run()
        if self.dry:
            return made_up
        self.cupy.cuda.Device().synchronize()
        start, calls = time.perf_counter(), 1000
        for _ in range(calls):
            run()
        taken = (time.perf_counter() - start) / calls
        self.cupy.cuda.Device().synchronize()
        return taken

    def ceilings(self) -> tuple[float, dict[str, float]]:
        """Bytes a second of a copy, and operations a second of a large product by kind, of cuBLAS."""
        if self.dry:
            return 3e12, {"float32": 5e13, "tf32": 4e14, "float16": 8e14, "bfloat16": 8e14}
        cupy, backend = self.cupy, _cupy_backend()
        a = cupy.ones(2**27, np.float32)
        b = cupy.empty_like(a)
        memory = 2 * a.nbytes / self.seconds(lambda a=a, b=b: cupy.copyto(b, a), 0)
        del a, b
        n, rates = 8192, {}
        for kind in KINDS:
            backend.allow_tf32 = kind == "tf32"
            dtype = np.float16 if "16" in kind else np.float32  # both kinds of 16 bits have the same rate
            x = cupy.ones((n, n), dtype)
            y = cupy.empty_like(x)
            rates[kind] = 2 * n**3 / self.seconds(lambda x=x, y=y: cupy.matmul(x, x, out=y), 0)
        backend.allow_tf32 = False
        return memory, rates


def _cupy_backend() -> Any:
    from tinyseq.backend import get_backend

    return get_backend("cupy")


# --- 3. a language model ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Speed:
    """Of training steps of one kind: seconds of a step of each library."""

    kind: str
    seconds: dict[str, float]

    def text(self) -> str:
        rate = lambda name: f"{shakespeare.T * shakespeare.B / self.seconds[name]:,.0f} characters/s"
        ours = f"a training step of the language model, {self.kind}: {rate('tinyseq')}"
        if "nn" not in self.seconds:
            return ours
        return f"{ours}, PyTorch's {rate('nn')}, {self.seconds['nn'] / self.seconds['tinyseq']:.2f} times as fast"


def language_model(bench: Bench, kinds: Sequence[str], with_torch: bool, dropped: list[str]) -> list[Speed]:
    """Training steps from the same weights on the same text; each ends with the host reading the loss."""
    from tinyseq.errors import TinyseqError

    try:
        ids, characters = shakespeare.text_ids()
    except TinyseqError as error:  # the plays are not installed
        dropped.append(f"the language model: {error}")
        return []
    speeds, checked = [], 2 if bench.dry else shakespeare.CHECKED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.npy"
        np.save(path, ids)
        case = shakespeare.Case("", {"ids": str(path), "characters": characters})
        for kind in (k for k in kinds if "16" not in k):
            steps = {"tinyseq": shakespeare.tinyseq()(case).timed[shakespeare.MODE]}
            if not bench.dry:
                _cupy_backend().allow_tf32 = kind == "tf32"
            if with_torch:
                steps["nn"] = torch_training(bench, ids, characters, kind)
            losses = {name: {"losses": np.array([step() for _ in range(checked)])} for name, step in steps.items()}
            wrong = compare(losses["tinyseq"], losses.get("nn", {}), TOLERANCE[kind])
            if wrong:
                dropped.append(f"the language model, {kind}: nn is not timed, {wrong}")
                del steps["nn"]
            times: dict[str, list[float]] = {name: [] for name in steps}
            for turn, name in itertools.product(range(0 if bench.dry else ROUNDS), steps):
                times[name].append(host_clock(steps[name], 1 if turn == 0 else 50))
            made_up = {name: [1e-3 if name == "tinyseq" else 2e-3] for name in steps}
            seconds = {name: statistics.median(found) for name, found in (made_up if bench.dry else times).items()}
            speeds.append(Speed(kind, seconds))
    return speeds


def torch_training(bench: Bench, ids: np.ndarray, characters: int, kind: str) -> Callable[[], float]:
    import torch
    from shakespeare_torch import Training

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
    weights = shakespeare.weights(characters)
    device = "cpu" if bench.dry else "cuda"
    training = Training(weights, shakespeare.EMBEDDING, shakespeare.HIDDEN, shakespeare.LR, shakespeare.CLIP, device)
    stream = shakespeare.chunks(ids)
    return lambda: training.step(*next(stream))


# --- 4. layers --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """A layer of one library: its outputs and gradients, a call for each mode, and what a call takes by its own clock."""

    results: Callable[[], dict[str, np.ndarray]]
    timed: Mapping[str, Callable[[], object]]
    clock: Clock
    steps: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # tinyseq's, by mode


Build = Callable[[Cell, Size, str], Job | None]


def dtype_of(kind: str) -> np.dtype[Any]:
    if kind == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype("float32" if kind == "tf32" else kind)


Clock = Callable[[Callable[[], object], int], float]


def host_clock(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def event_clock(event: Callable[[], Any], milliseconds: Callable[[Any, Any], float]) -> Clock:
    """The device's own time, by a library's events."""

    def clock(run: Callable[[], object], calls: int) -> float:
        start, stop = event(), event()
        start.record()
        for _ in range(calls):
            run()
        stop.record()
        stop.synchronize()
        return milliseconds(start, stop) / 1e3 / calls

    return clock


def in_both_modes(layer: Callable[[], Any], leaves: Mapping[str, Any], dy: Any, no_grad: Any) -> dict[str, Callable[[], Any]]:
    """A layer's calls; tinyseq and PyTorch agree in how a gradient is asked for."""

    def forward() -> Any:
        with no_grad():
            return layer()

    def both() -> Any:
        for leaf in leaves.values():
            leaf.grad = None
        ys = layer()
        ys.backward(dy)
        return ys

    return dict(zip(MODES, (forward, both), strict=True))


@contextmanager
def given_up_after(seconds: float) -> Iterator[None]:
    """Raise ``TimeoutError`` in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"given up after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tinyseq_layers(bench: Bench, builtin: bool = False) -> Build:
    """The cell as a user writes it, or the layer of the library that is the same cell."""
    import tinyseq as ts
    from tinyseq.compiler import scan

    ts.use_backend(bench.backend)
    names = Names(ts.tanh, ts.sigmoid, ts.linear, lambda x, n: ts.chunk(x, n, -1), lambda x, g, s: ts.layer_norm(x, g, s))

    clock = host_clock if bench.dry else event_clock(bench.cupy.cuda.Event, bench.cupy.cuda.get_elapsed_time)

    def build(cell: Cell, size: Size, kind: str) -> Job | None:
        if builtin and cell.builtin is None:
            return None
        if not bench.dry:
            _cupy_backend().allow_tf32 = kind == "tf32"
        values, dtype = data(cell, size), dtype_of(kind)
        leaves = {name: ts.tensor(a.astype(dtype), requires_grad=True) for name, a in values.leaves.items()}
        state = tuple(leaves[f"state{k}"] for k in range(len(values.state)))
        dy = ts.tensor(values.dy.astype(dtype))

        def step(carry: Any, x: Any) -> Any:
            y, new = cell.step(names, leaves, cell.inputs(names, leaves, x), carry)
            return new, y

        if builtin:
            module = getattr(ts.nn, str(cell.builtin))(size.I, size.H).astype(dtype)
            module.load_state_dict({f"{name}_l0": leaves[name].detach() for name in values.weights})
            leaves.update({name: getattr(module, f"{name}_l0") for name in values.weights})

        def layer() -> Any:
            if not builtin:
                return ts.scan(step, state, leaves["x"])[1]
            return module(leaves["x"], tuple(part[None] for part in state) if len(state) == 2 else state[0][None])[0]

        timed = in_both_modes(layer, leaves, dy, ts.no_grad)
        both = timed[MODES[1]]
        scan._runners.clear()

        def results() -> dict[str, np.ndarray]:
            ys = both()
            return named(ys.detach(), {k: leaf.grad for k, leaf in leaves.items()}, lambda t: t.numpy())

        both()
        program = next(iter(scan._runners.values())).program
        steps = {"forward": program.forward.step, "backward": program.backward.step}
        return Job(results, timed, clock, steps)

    return build


def named(ys: Any, gradients: Mapping[str, Any], numpy: Callable[[Any], Any]) -> dict[str, np.ndarray]:
    found = {"ys": ys, **{f"d{name}": g for name, g in gradients.items()}}
    return {name: np.asarray(numpy(value), np.float32) for name, value in found.items() if value is not None}


def torch_layers(bench: Bench, which: str) -> Build:
    """cuDNN's layers ("nn"), the cell in a Python loop ("loop"), its step compiled ("compile"), or all of it ("whole")."""
    import torch

    if not bench.dry and not torch.cuda.is_available():
        raise ImportError("this PyTorch sees no GPU")
    device = "cpu" if bench.dry else "cuda"
    functional = torch.nn.functional
    names = Names(torch.tanh, torch.sigmoid, functional.linear, lambda x, n: x.chunk(n, -1),
                  lambda x, gain, shift: functional.layer_norm(x, gain.shape, gain, shift))  # fmt: skip

    timer = event_clock(lambda: torch.cuda.Event(enable_timing=True), lambda start, stop: start.elapsed_time(stop))
    clock = host_clock if bench.dry else timer
    how = {"dynamic": False, "backend": "eager" if bench.dry else "inductor"}

    def build(cell: Cell, size: Size, kind: str) -> Job | None:
        if which == "nn" and cell.torch_builtin is None:
            return None
        if (which == "compile" and size.T > 128) or (which == "whole" and size.T > 32):
            return None  # each new size compiles for many seconds, a whole loop for as many as it has steps
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = kind == "tf32"
        dtype = getattr(torch, "float32" if kind == "tf32" else kind)
        values: Data = data(cell, size)
        leaves = {name: torch.tensor(a, device=device).to(dtype).requires_grad_() for name, a in values.leaves.items()}
        state = tuple(leaves[f"state{k}"] for k in range(len(values.state)))
        dy = torch.tensor(values.dy, device=device).to(dtype)
        if which == "nn":
            module = getattr(torch.nn, str(cell.torch_builtin))(size.I, size.H).to(device, dtype)
            module.load_state_dict({f"{name}_l0": leaves[name].detach() for name in values.weights})
            leaves.update({name: getattr(module, f"{name}_l0") for name in values.weights})

            def layer() -> Any:
                module.train(torch.is_grad_enabled())
                return module(leaves["x"], tuple(part[None] for part in state) if len(state) == 2 else state[0][None])[0]
        else:
            one = lambda x, s: cell.step(names, leaves, cell.inputs(names, leaves, x), s)
            if which in ("compile", "whole"):
                torch.compiler.reset()
            if which == "compile":
                one = torch.compile(one, **how)

            def layer() -> Any:
                ys, now = [], state
                for x in leaves["x"].unbind(0):
                    y, now = one(x, now)
                    ys.append(y)
                return torch.stack(ys)

            if which == "whole":
                layer = torch.compile(layer, **how)

        timed = in_both_modes(layer, leaves, dy, torch.no_grad)
        if which == "whole":
            with given_up_after(max(1.0, min(WHOLE_SECONDS, bench.left()))):
                for run in timed.values():  # which compiles
                    run()

        def results() -> dict[str, np.ndarray]:
            ys = timed[MODES[1]]()
            gradients = {k: leaf.grad for k, leaf in leaves.items()}
            return named(ys, gradients, lambda t: t.detach().float().cpu().numpy())

        return Job(results, timed, clock)

    return build


def jax_layers(bench: Bench) -> Build:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need memory too
    if bench.dry:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from jax import lax
    from jax import numpy as jnp

    if not bench.dry and jax.default_backend() != "gpu":
        raise ImportError("this JAX sees no GPU")

    def layer_norm(x: Any, gain: Any, shift: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * gain + shift

    linear = lambda x, w, b=None: x @ w.T if b is None else x @ w.T + b
    names = Names(jnp.tanh, jax.nn.sigmoid, linear, lambda x, n: jnp.split(x, n, -1), layer_norm)

    def build(cell: Cell, size: Size, kind: str) -> Job:
        values, dtype = data(cell, size), jnp.float32 if kind == "tf32" else getattr(jnp, kind)
        leaves = {name: jnp.asarray(a, dtype) for name, a in values.leaves.items()}
        dy, precision = jnp.asarray(values.dy, dtype), "tensorfloat32" if kind == "tf32" else "highest"

        def layer(leaves: Any) -> Any:
            def step(state: Any, x: Any) -> Any:
                y, state = cell.step(names, leaves, cell.inputs(names, leaves, x), state)
                return state, y

            with jax.default_matmul_precision(precision):
                return lax.scan(step, tuple(leaves[f"state{k}"] for k in range(len(values.state))), leaves["x"])[1]

        def gradients(leaves: Any, dy: Any) -> Any:
            ys, pull = jax.vjp(layer, leaves)
            return ys, pull(dy)[0]

        forward, both = jax.jit(layer), jax.jit(gradients)
        timed = {
            MODES[0]: lambda: jax.block_until_ready(forward(leaves)),
            MODES[1]: lambda: jax.block_until_ready(both(leaves, dy)),
        }

        def results() -> dict[str, np.ndarray]:
            return named(*both(leaves, dy), lambda a: np.asarray(a, np.float32))

        return Job(results, timed, host_clock)

    return build


CONNECT: dict[str, Callable[[Bench], Build]] = {
    "tinyseq": tinyseq_layers,
    "built-in": lambda bench: tinyseq_layers(bench, builtin=True),
    "nn": lambda bench: torch_layers(bench, "nn"),
    "loop": lambda bench: torch_layers(bench, "loop"),
    "compile": lambda bench: torch_layers(bench, "compile"),
    "whole": lambda bench: torch_layers(bench, "whole"),
    "jax": jax_layers,
}


def cases(args: argparse.Namespace) -> Iterator[tuple[str, Size, str]]:
    """What is asked for most comes first: short sequences, float32 and TF32, middle sizes."""
    middle = lambda value, centre: abs(np.log2(value / centre))
    everything = itertools.product(args.cells, args.kinds, args.hidden, args.batch, args.steps)
    order = sorted(
        everything, key=lambda c: (c[4], middle(c[2], 512) + middle(c[3], 16) + 2 * args.kinds.index(c[1]), NAMES.index(c[0]))
    )
    found = [(cell, Size(steps, batch, hidden, hidden), kind) for cell, kind, hidden, batch, steps in order]
    yield from found[:WHOLE_AFTER]
    if "whole" in args.peers and not args.dry:
        yield from WHOLE_CASES
    yield from found[WHOLE_AFTER:]


def predicted(job: Job, mode: str, size: Size, kind: str, bench: Bench, costs: Costs) -> tuple[str, float]:
    """The drivers that run, and the time of all steps: exchanges, and the larger one of arithmetic and of memory."""
    from tinyseq_cupy.loop.plan import Unsupported, plan_step
    from tinyseq_cupy.loop.tiles import choose

    drivers, seconds = [], 0.0
    for direction in ("forward", "backward") if mode == MODES[1] else ("forward",):
        try:
            plan = plan_step(job.steps[direction])
        except Unsupported as reason:
            return f"none ({reason})", float("nan")
        tile = choose(plan, size.B, bench.limits, kind == "tf32")
        if tile is None:
            return "none", float("nan")
        drivers.append("persistent" if tile.stationary else "streamed")
        weights = sum(p.inner * p.pieces * p.units * p.out.dtype.itemsize for p in plan.products)
        operands = sum(p.inner * size.B * p.out.dtype.itemsize for p in plan.products)
        operations = sum(2 * p.inner * p.pieces * p.units * size.B for p in plan.products)
        stacks = sum(a.width * size.B * a.dtype.itemsize for a in plan.arrays if a.kind in ("stack", "written", "history"))
        exchanges = max(1, len(plan.sections) - (not plan.exchange))
        work = operations / costs.arithmetic[kind]
        if tile.stationary:
            step = exchanges * costs.barrier + operands * costs.read + max(work, stacks / costs.memory)
        else:
            step = exchanges * costs.node + max(work, (stacks + weights) / costs.memory)
        seconds += size.T * step
    return " + ".join(drivers), seconds


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tolerance: float) -> str | None:
    """What differs, of the arrays that both have."""
    for name in ours.keys() & theirs.keys():
        a, b = ours[name], theirs[name]
        scale = max(1e-6, float(np.abs(b).max()))
        if a.shape != b.shape or not np.abs(a - b).max() <= tolerance * scale:
            worst = "its shape" if a.shape != b.shape else f"{np.abs(a - b).max() / scale:.2g} of its largest number"
            return f"{name} differs by {worst}"
    return None


@dataclasses.dataclass(frozen=True)
class Row:
    """A cell, size, kind and mode: seconds of a call of each library, and what was predicted of ours."""

    cell: str
    size: Size
    kind: str
    mode: str
    driver: str
    predicted: float
    seconds: dict[str, float]
    memory: float
    arithmetic: float

    def line(self, peers: Sequence[str]) -> list[str]:
        ours = self.seconds["tinyseq"]
        step = lambda s: f"{1e6 * s / self.size.T:.2f}"
        ratios = [f"{step(self.seconds[p])} ({self.seconds[p] / ours:.2f})" if p in self.seconds else "" for p in peers]
        shares = f"{100 * self.memory:.0f} %", f"{100 * self.arithmetic:.0f} %"
        return [
            self.cell,
            str(self.size),
            self.kind,
            self.mode,
            self.driver,
            step(self.predicted),
            step(ours),
            *shares,
            *ratios,
        ]


def traffic(cell: Cell, size: Size, kind: str, mode: str) -> float:
    """The bytes that must pass through memory: inputs, outputs and weights, and backward their gradients as well."""
    weights = sum(int(np.prod(shape)) for shape in cell.weights(size.I, size.H).values())
    numbers = size.T * size.B * (size.I + cell.state(size.H)[0]) + weights
    return numbers * dtype_size(kind) * (1 if mode == "forward" else 3)


def dtype_size(kind: str) -> int:
    return 2 if "16" in kind else 4


def time_case(
    cell: Cell, size: Size, kind: str, builds: dict[str, Build], bench: Bench, costs: Costs, dropped: list[str]
) -> list[Row]:
    """Build, compare, and take turns."""
    label = f"{cell.name} {size} {kind}"
    jobs: dict[str, Job] = {}
    for name, build in builds.items():
        try:
            job = build(cell, size, kind)
            if job is None:
                continue
            if jobs:
                wrong = compare(jobs["tinyseq"].results(), job.results(), TOLERANCE[kind])
                if wrong:
                    dropped.append(f"{label}: {name} is not timed, {wrong}")
                    continue
            jobs[name] = job
        except Exception as error:  # a library that cannot do a case is left out of it
            dropped.append(f"{label}: {name} cannot do it ({type(error).__name__}: {str(error).splitlines()[:1]})")
            if name == "tinyseq":
                return []
    rows = []
    for mode in MODES:
        driver, guess = predicted(jobs["tinyseq"], mode, size, kind, bench, costs)
        calls = {name: max(1, int(LEAST / max(1e-6, job.clock(job.timed[mode], 1)))) for name, job in jobs.items()}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for turn in range(1 if bench.dry else ROUNDS):
            for name in (*jobs,) if turn % 2 else reversed((*jobs,)):
                times[name].append(jobs[name].clock(jobs[name].timed[mode], calls[name]))
                if bench.left() < 0 and all(times.values()):
                    break
        seconds = {name: statistics.median(found) for name, found in times.items()}
        if bench.dry:  # what a CPU takes says nothing of a GPU
            seconds = {name: guess * (1 if name == "tinyseq" else 2) for name in seconds}
        ours = seconds["tinyseq"]
        share = traffic(cell, size, kind, mode) / ours / costs.memory
        rows.append(
            Row(
                cell.name,
                size,
                kind,
                mode,
                driver,
                guess,
                seconds,
                share,
                cell.flops(size, mode) / ours / costs.arithmetic[kind],
            )
        )
    return rows


def command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="tinyseq on a GPU", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="run all of it on the CPU with clocks that are made up")
    parser.add_argument("--minutes", type=float, default=9.5, help="what no longer fits is skipped")
    parser.add_argument("--cells", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--steps", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--no-tests", action="store_true", help="go to the measurements at once")
    parser.add_argument("--write", nargs="?", type=Path, const=RESULTS, help="write the report there, as JSON and Markdown")
    parser.add_argument("--quick", action="store_true", help="a try-out: a few sizes in three minutes")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.hidden, args.batch, args.steps = min(3.0, args.minutes), [256, 512], [16], [128]
    return args


def main() -> int:
    if not {"--dry", "-h", "--help"} & set(sys.argv):
        from tinyseq_cupy import CupyBackend

        reason = CupyBackend.unavailable()
        if reason:  # no failure: `tinyseq bench` goes on with the others
            print(f"there is nothing to measure here: {reason} (--dry runs everything without a GPU)", file=sys.stderr)
            return 0
    args = command()
    started = time.monotonic()
    bench = Bench(args.dry, args.minutes)
    note = f" ({MADE_UP})" if args.dry else ""
    if args.dry:
        print("A dry run: nothing runs on a GPU, and every time and rate below is made up.\n")
    if not args.no_tests and not run_tests(args.dry, bench.left):
        print("a test failed: nothing is timed", file=sys.stderr)
        return 1
    costs = measure_costs(bench)
    facts = [f"GPU: {bench.name}", *costs.lines(note)]
    builds: dict[str, Build] = {}
    for name in ("tinyseq", *args.peers):
        try:
            builds[name] = CONNECT[name](bench)
        except ImportError as error:
            facts.append(f"Left out: {name} ({error})")
    with_torch = bool({"nn", "loop", "compile", "whole"} & builds.keys())
    if with_torch:
        facts.append("allow_tf32 of PyTorch's matmul and cuDNN, and of tinyseq: on for the kind tf32, else off")
    print("\n".join(facts), flush=True)
    rows: list[Row] = []
    dropped: list[str] = []
    skipped = 0
    speeds = language_model(bench, args.kinds, with_torch, dropped) if bench.left() > 0 else []
    trained = [f"{speed.text()}{note}" for speed in speeds]
    facts += trained
    print("\n".join(trained), flush=True)
    for name, size, kind in cases(args):
        if bench.left() < 0:
            skipped += 1
            continue
        rows += time_case(CELLS[name], size, kind, builds, bench, costs, dropped)
        print(f"{name} {size} {kind}: {bench.left():.0f} s left", file=sys.stderr, flush=True)
    peers = [name for name in builds if name != "tinyseq"]
    head = ["cell", "T,B,I,H", "kind", "mode", "driver", "predicted", "µs a step", "memory", "arithmetic"]
    lines = [[*head, *(f"{p} (times ours)" for p in peers)], *(row.line(peers) for row in rows)]
    ends = [*dropped, *([f"skipped: {skipped} cases, for which no time was left"] if skipped else [])]
    ends.append(f"all of it took {time.monotonic() - started:.0f} s")
    facts += ends
    print("\n".join(["", *ends, "", plain(lines)]))
    if args.write:
        report = {
            "made_up": args.dry,
            "facts": facts,
            "costs": dataclasses.asdict(costs),
            "language_model": [dataclasses.asdict(speed) for speed in speeds],
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        title = "tinyseq on a GPU" + (": a dry run, in which every figure is made up" if args.dry else "")
        write(__file__, args.write, json.loads(json.dumps(report)), markdown(title, facts, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
