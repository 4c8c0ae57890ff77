"""Microseconds an operation of eager code: chains of small operations and one LSTM step, beside other libraries.

    python benchmarks/eager.py [--peer-python ENV/bin/python] [--write]

At (4, 16) float32 the arithmetic takes about a tenth of a microsecond, so what is measured is each library's own work:
wrapping, recording and walking back. Every chain has about 100 operations and ends in a sum; "forward" records the tape,
"forward+backward" also fetches the gradient of every leaf. The bare NumPy calls are the floor.

Each library is used as its own documentation advises, at its fastest: the gates of the LSTM are split by PyTorch's `chunk`
and autograd's `np.split`; autograd's sigmoid is SciPy's `expit`, a primitive; MyGrad's memory guard is off.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import common
import numpy as np
from common import Case, Job, Peer

BATCH, SIZE = 4, 16
LINKS = 100
Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Names:
    """The few operations that are not methods or operators, as one library spells them."""

    tanh: Function
    sigmoid: Function
    split4: Function  # an array of (B, 4 H) into four of (B, H)


# The cases: `f(names, *leaves)` returns the outputs by name; the loss is their sum.


def mul(names: Names, links: int, x: Any, y: Any) -> dict[str, Any]:
    for _ in range(links):
        x = x * y
    return {"y": x}


def tanh(names: Names, links: int, x: Any) -> dict[str, Any]:
    function = names.tanh
    for _ in range(links):
        x = function(x)
    return {"y": x}


def add(names: Names, links: int, x: Any, y: Any) -> dict[str, Any]:
    for _ in range(links):
        x = x + y
    return {"y": x}


def matmul(names: Names, links: int, x: Any, w: Any) -> dict[str, Any]:
    for _ in range(links):
        x = x @ w
    return {"y": x}


def row_sum(names: Names, links: int, x: Any, y: Any) -> dict[str, Any]:
    # A sum alone would leave nothing to sum at the second link, so half of the links are broadcast products.
    for _ in range(links // 2):
        x = x.sum(axis=-1, keepdims=True) * y
    return {"y": x}


def mixed(names: Names, links: int, x: Any, w: Any, y: Any, b: Any) -> dict[str, Any]:
    function = names.tanh
    for _ in range(links // 4):
        x = function((x @ w) * y + b)
    return {"y": x}


def lstm(names: Names, links: int, x: Any, h: Any, c: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> dict[str, Any]:
    """One step with PyTorch's parameters and gate order (i, f, g, o)."""
    i, f, g, o = names.split4(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
    c = names.sigmoid(f) * c + names.sigmoid(i) * names.tanh(g)
    return {"h": names.sigmoid(o) * names.tanh(c), "c": c}


FUNCTIONS: dict[str, Function] = {
    "mul": mul,
    "tanh": tanh,
    "add": add,
    "matmul": matmul,
    "sum": row_sum,
    "mixed": mixed,
    "lstm": lstm,
}


def leaves(case: str) -> dict[str, np.ndarray]:
    """Return the case's leaves: random, and such that a hundred links neither vanish nor explode in float32."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape)

    def orthogonal() -> np.ndarray:
        return np.linalg.qr(normal(SIZE, SIZE))[0]

    shape = (BATCH, SIZE)
    arrays = {
        "mul": lambda: {"x": normal(*shape), "y": 1 + 0.01 * normal(*shape)},
        "tanh": lambda: {"x": normal(*shape)},
        "add": lambda: {"x": normal(*shape), "y": normal(*shape)},
        "matmul": lambda: {"x": normal(*shape), "w": orthogonal()},
        "sum": lambda: {"x": random.random(shape), "y": random.dirichlet(np.ones(SIZE), BATCH)},  # rows sum to 1
        "mixed": lambda: {"x": normal(*shape), "w": orthogonal(), "y": normal(*shape), "b": normal(SIZE)},
        "lstm": lambda: {
            **{name: normal(*shape) for name in ("x", "h", "c")},
            **{name: normal(4 * SIZE, SIZE) / 4 for name in ("w_ih", "w_hh")},
            **{name: normal(4 * SIZE) for name in ("b_ih", "b_hh")},
        },
    }[case]()
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def cases(args: argparse.Namespace) -> list[Case]:
    chains = [Case(name, {"links": args.links}, args.links + 1, "op") for name in FUNCTIONS if name != "lstm"]
    return [*chains, Case("lstm", {"links": 1}, 1, "step")]


# The peers. Those with `.backward()` on a tensor differ in four names only.


def backward_style(names: Names, leaf: Function, numpy: Function, clear: Function) -> Callable[[Case], Job]:
    """Return the `build` of a library whose tensors have `.backward()` and `.grad`."""

    def build(case: Case) -> Job:
        function, links = FUNCTIONS[case.name], case.settings["links"]
        tensors = {name: leaf(array) for name, array in leaves(case.name).items()}
        arguments = list(tensors.values())

        def forward() -> Any:
            return loss_of(function(names, links, *arguments))

        def backward() -> None:
            for tensor in arguments:
                clear(tensor)
            forward().backward()

        def results() -> dict[str, np.ndarray]:
            outputs = {name: numpy(output) for name, output in function(names, links, *arguments).items()}
            backward()
            return outputs | {f"d{name}": numpy(tensor.grad) for name, tensor in tensors.items()}

        return Job(results, {"forward": forward, "forward+backward": backward})

    return build


def loss_of(outputs: dict[str, Any]) -> Any:
    first, *rest = outputs.values()
    for output in rest:
        first = first + output
    return first.sum()


def clear_grad(tensor: Any) -> None:
    tensor.grad = None


def tinyseq_build() -> Callable[[Case], Job]:
    import tinyseq as ts

    names = Names(ts.tanh, ts.sigmoid, lambda gates: ts.chunk(gates, 4, axis=1))
    return backward_style(names, lambda array: ts.tensor(array, requires_grad=True), lambda t: t.numpy(), clear_grad)


def torch_build() -> Callable[[Case], Job]:
    import torch

    names = Names(torch.tanh, torch.sigmoid, lambda gates: gates.chunk(4, 1))
    return backward_style(
        names,
        lambda array: torch.tensor(array, requires_grad=True),
        lambda tensor: tensor.detach().numpy().copy(),
        clear_grad,
    )


def mygrad_build() -> Callable[[Case], Job]:
    import mygrad
    from mygrad.nnet.activations import sigmoid

    mygrad.turn_memory_guarding_off()
    columns = [slice(k * SIZE, (k + 1) * SIZE) for k in range(4)]
    names = Names(mygrad.tanh, sigmoid, lambda gates: [gates[:, column] for column in columns])
    return backward_style(names, mygrad.tensor, lambda tensor: np.array(tensor), lambda tensor: tensor.null_grad())


def autograd_build() -> Callable[[Case], Job]:
    import autograd
    import autograd.numpy as anp
    from autograd.scipy.special import expit

    names = Names(anp.tanh, expit, lambda gates: anp.split(gates, 4, axis=1))

    def build(case: Case) -> Job:
        function, links = FUNCTIONS[case.name], case.settings["links"]
        arrays = leaves(case.name)
        arguments, argnums = list(arrays.values()), tuple(range(len(arrays)))

        def loss(*arguments: Any) -> Any:
            return loss_of(function(names, links, *arguments))

        recorded, differentiated = autograd.make_vjp(loss, argnums), autograd.value_and_grad(loss, argnums)

        def results() -> dict[str, np.ndarray]:
            gradients = differentiated(*arguments)[1]
            outputs = function(names, links, *arguments)
            return outputs | {f"d{name}": gradient for name, gradient in zip(arrays, gradients, strict=True)}

        return Job(results, {"forward": lambda: recorded(*arguments), "forward+backward": lambda: differentiated(*arguments)})

    return build


def numpy_build() -> Callable[[Case], Job]:
    names = Names(np.tanh, lambda x: 1 / (1 + np.exp(-x)), lambda gates: np.split(gates, 4, axis=1))

    def build(case: Case) -> Job:
        function, links = FUNCTIONS[case.name], case.settings["links"]
        arguments = list(leaves(case.name).values())
        return Job(lambda: function(names, links, *arguments), {"forward": lambda: loss_of(function(names, links, *arguments))})

    return build


PEERS: dict[str, Peer] = {
    "tinyseq": Peer(tinyseq_build, ["tinyseq", "numpy"]),
    "torch": Peer(torch_build, ["torch"]),
    "autograd": Peer(autograd_build, ["autograd", "numpy", "scipy"]),
    "mygrad": Peer(mygrad_build, ["mygrad", "numpy"]),
    "numpy": Peer(numpy_build, ["numpy"]),
}
AIMS = {("torch", "forward+backward"): 0.7, ("autograd", "forward+backward"): 0.5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--links", type=int, default=LINKS, help="operations in a chain; a multiple of 4")


if __name__ == "__main__":
    common.main(__file__, "Eager overhead", PEERS, cases, AIMS, add_arguments)
