"""How each library runs a cell over time, forward and forward with gradients: tinyseq, PyTorch and JAX.

A function here imports its library and returns `run(cell, size) -> Job`, or None where it has no such layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from cells import Cell, Data, Names, Size, data
from common import Job

Run = Callable[[Cell, Size], Job | None]


def named(ys: Any, last: Any, gradients: dict[str, Any], numpy: Callable[[Any], np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs and gradients under the names that every library gives them."""
    outputs = {"ys": ys, **{f"last{k}": part for k, part in enumerate(last)}}
    return {k: numpy(v) for k, v in (outputs | {f"d{name}": part for name, part in gradients.items()}).items()}


def modes(forward: Callable[[], Any], both: Callable[[], Any]) -> dict[str, Callable[[], object]]:
    return {"forward": forward, "forward+backward": both}


# --- tinyseq ----------------------------------------------------------------------------------------------------------


def tinyseq(backend: str | None = None, unroll: bool = False) -> Run:
    """A backend of tinyseq, or the one in the environment: the built-in layers, and `nn.Recurrent` of a user's cell."""
    import tinyseq as ts

    if backend:
        ts.use_backend(backend)
    names = Names(
        ts.tanh,
        ts.sigmoid,
        ts.linear,
        lambda x, n: ts.chunk(x, n, -1),
        lambda x, gain, shift: ts.layer_norm(x, gain, shift),
    )

    class UserCell(ts.nn.Module):
        def __init__(self, cell: Cell, weights: dict[str, np.ndarray]) -> None:
            self.weights = {name: ts.Parameter(array) for name, array in weights.items()}
            self._cell = cell

        def initial_state(self, batch: int) -> Any:
            raise NotImplementedError("the state is given")

        def __call__(self, x: Any, state: Any) -> Any:
            return self._cell.step(names, self.weights, self._cell.inputs(names, self.weights, x), state)

    def run(cell: Cell, size: Size) -> Job:
        values = data(cell, size)
        x = ts.tensor(values.x, requires_grad=True)
        state = [ts.tensor(part, requires_grad=True) for part in values.state]
        dy = ts.tensor(values.dy)
        if cell.builtin:
            layer = getattr(ts.nn, cell.builtin)(size.I, size.H)
            layer.load_state_dict({f"{name}_l0": array for name, array in values.weights.items()})
            weights = {name: getattr(layer, f"{name}_l0") for name in values.weights}
        else:
            layer = ts.nn.Recurrent(UserCell(cell, values.weights))
            weights = layer.cell.weights
        layer.unroll = unroll
        leaves = {**weights, "x": x, **{f"state{k}": part for k, part in enumerate(state)}}

        def outputs() -> tuple[Any, Any]:
            if not cell.builtin:
                return layer(x, tuple(state))
            ys, last = layer(x, (state[0][None], state[1][None]) if len(state) == 2 else state[0][None])
            return ys, [part[0] for part in last] if len(state) == 2 else [last[0]]

        def forward() -> Any:
            with ts.no_grad():
                return outputs()

        def both() -> Any:
            for leaf in leaves.values():
                leaf.grad = None
            ys, last = outputs()
            ys.backward(dy)
            return ys, last

        def results() -> dict[str, np.ndarray]:
            ys, last = both()
            return named(ys, last, {name: leaf.grad for name, leaf in leaves.items()}, lambda t: np.array(t.numpy()))

        return Job(results, modes(forward, both))

    return run


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def torch_names() -> Names:
    import torch
    from torch.nn import functional

    return Names(
        torch.tanh,
        torch.sigmoid,
        functional.linear,
        lambda x, n: x.chunk(n, -1),
        lambda x, gain, shift: functional.layer_norm(x, gain.shape, gain, shift),
    )


def torch_job(layer: Callable[[Any, Any], tuple[Any, Any]], leaves: dict[str, Any], values: Data) -> Job:
    """`layer(x, state) -> (ys, last)` with its tensors in `leaves`."""
    import torch

    x, state = leaves["x"], tuple(leaves[f"state{k}"] for k in range(len(values.state)))
    dy = torch.tensor(values.dy)

    def forward() -> Any:
        with torch.no_grad():
            return layer(x, state)

    def both() -> Any:
        for leaf in leaves.values():
            leaf.grad = None
        ys, last = layer(x, state)
        ys.backward(dy)
        return ys, last

    def results() -> dict[str, np.ndarray]:
        ys, last = both()
        gradients = {name: leaf.grad for name, leaf in leaves.items()}
        return named(ys, last, gradients, lambda t: t.detach().numpy().copy())

    return Job(results, modes(forward, both))


def torch_loop(compiled: bool = False, hoisted: bool = False) -> Run:
    """The cell in a Python loop; `hoisted` has the inputs' part before it, for all steps at once."""
    import torch

    names = torch_names()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def run(cell: Cell, size: Size) -> Job:
        values = data(cell, size)
        leaves = {name: torch.tensor(array, requires_grad=True) for name, array in values.leaves.items()}

        def layer(xs: Any, state: Any) -> tuple[Any, Any]:
            ys = []
            if hoisted:
                xs = cell.inputs(names, leaves, xs)
            for x in xs.unbind(0):
                y, state = cell.step(names, leaves, x if hoisted else cell.inputs(names, leaves, x), state)
                ys.append(y)
            return torch.stack(ys), state

        if compiled:
            torch.compiler.reset()
        return torch_job(torch.compile(layer, dynamic=False) if compiled else layer, leaves, values)

    return run


def torch_nn() -> Run:
    """PyTorch's own layers: oneDNN's LSTM, and kernels of its own."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def run(cell: Cell, size: Size) -> Job | None:
        if cell.torch_builtin is None:
            return None
        values = data(cell, size)
        options = {"proj_size": size.H // 2} if "weight_hr" in values.weights else {}
        module = getattr(torch.nn, cell.torch_builtin)(size.I, size.H, **options)
        module.load_state_dict({f"{name}_l0": torch.tensor(array) for name, array in values.weights.items()})
        leaves = {
            name: torch.tensor(array, requires_grad=True) for name, array in values.leaves.items() if name not in values.weights
        }
        leaves |= {name: getattr(module, f"{name}_l0") for name in values.weights}

        def layer(x: Any, state: Any) -> tuple[Any, Any]:
            module.train(torch.is_grad_enabled())
            ys, last = module(x, tuple(part[None] for part in state) if len(state) == 2 else state[0][None])
            return ys, [part[0] for part in last] if len(state) == 2 else [last[0]]

        return torch_job(layer, leaves, values)

    return run


# --- JAX --------------------------------------------------------------------------------------------------------------


def jax_scan(hoisted: bool = False) -> Run:
    """`lax.scan` of the cell under `jit`; `hoisted` has the inputs' part before it, for all steps at once."""
    if hasattr(os, "sched_setaffinity"):  # XLA has a thread a core that the process may use, and no setting of its own
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    from jax import lax
    from jax import numpy as jnp

    def layer_norm(x: Any, gain: Any, shift: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5) * gain + shift

    def linear(x: Any, w: Any, b: Any = None) -> Any:
        return x @ w.T if b is None else x @ w.T + b

    names = Names(jnp.tanh, jax.nn.sigmoid, linear, lambda x, n: jnp.split(x, n, -1), layer_norm)

    def run(cell: Cell, size: Size) -> Job:
        values = data(cell, size)
        leaves = {name: jnp.asarray(array) for name, array in values.leaves.items()}
        dy = jnp.asarray(values.dy)

        def layer(leaves: Any) -> tuple[Any, Any]:
            def step(state: Any, x: Any) -> tuple[Any, Any]:
                y, state = cell.step(names, leaves, x if hoisted else cell.inputs(names, leaves, x), state)
                return state, y

            xs = cell.inputs(names, leaves, leaves["x"]) if hoisted else leaves["x"]
            last, ys = lax.scan(step, tuple(leaves[f"state{k}"] for k in range(len(values.state))), xs)
            return ys, last

        def gradients(leaves: Any, dy: Any) -> Any:
            ys, pull, last = jax.vjp(layer, leaves, has_aux=True)
            return ys, last, pull(dy)[0]

        forward, gradient = jax.jit(layer), jax.jit(gradients)
        ready: list[Any] = [gradient]

        def prepare() -> None:
            ready[0] = gradient.lower(leaves, dy).compile()

        def both() -> Any:
            return jax.block_until_ready(ready[0](leaves, dy))

        def results() -> dict[str, np.ndarray]:
            return named(*both(), np.asarray)

        return Job(results, modes(lambda: jax.block_until_ready(forward(leaves)), both), prepare)

    return run
