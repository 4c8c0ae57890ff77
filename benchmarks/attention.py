"""Scaled dot-product attention, causal: tinyseq's tiles beside PyTorch's kernel and our own definition.

    python benchmarks/attention.py --peer-python peers/bin/python --write

"forward" is inference, under `no_grad`; "forward+backward" has the gradients of query, key and value. The peer
"definition" is tinyseq without its kernel: all scores at once, masked, a softmax, a product.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import common
import numpy as np
from common import Case, Job, Peer

SHAPES = [(4, 8, 512, 64), (8, 4, 128, 32)]  # rows of a batch, heads, steps, features of a head
LONG = [(1, 8, 2048, 64)]
MODES = ("forward", "forward+backward")
NAMES = ("query", "key", "value")


def cases(args: argparse.Namespace) -> list[Case]:
    shapes = SHAPES[1:] if args.quick else SHAPES + LONG
    return [Case(",".join(map(str, shape)), {"shape": list(shape)}) for shape in shapes]


def arrays(case: Case) -> tuple[list[np.ndarray], np.ndarray]:
    """Query, key and value, and the output's cotangent."""
    *inputs, cotangent = np.random.default_rng(0).standard_normal((4, *case.settings["shape"]), np.float32)
    return inputs, cotangent


def job(attend: Callable[[], Any], inference: Callable[[], Any], leaves: list[Any], cotangent: Any, numpy: Any) -> Job:
    """`attend` is recorded and differentiated, `inference` is not."""

    def both() -> Any:
        for leaf in leaves:
            leaf.grad = None
        output = attend()
        output.backward(cotangent)
        return output

    def results() -> dict[str, np.ndarray]:
        output = both()
        gradients = {f"d{name}": numpy(leaf.grad) for name, leaf in zip(NAMES, leaves, strict=True)}
        return {"output": numpy(output), **gradients}

    return Job(results, dict(zip(MODES, (inference, both), strict=True)))


def tinyseq_build(kernel: bool = True) -> Callable[[Case], Job]:
    import tinyseq as ts

    backend = ts.current_backend()
    if not kernel:
        backend.fused = {name: each for name, each in backend.fused.items() if name != "attention"}

    def build(case: Case) -> Job:
        inputs, cotangent = arrays(case)
        leaves = [ts.tensor(x, requires_grad=True) for x in inputs]

        def attend() -> Any:
            return ts.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

        def inference() -> Any:
            with ts.no_grad():
                return attend()

        return job(attend, inference, leaves, ts.tensor(cotangent), lambda x: np.array(x.detach().numpy()))

    return build


def torch_build() -> Callable[[Case], Job]:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    def build(case: Case) -> Job:
        inputs, cotangent = arrays(case)
        leaves = [torch.tensor(x, requires_grad=True) for x in inputs]

        def attend() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)

        def inference() -> Any:
            with torch.no_grad():
                return attend()

        return job(attend, inference, leaves, torch.tensor(cotangent), lambda x: x.detach().numpy().copy())

    return build


PEERS = {
    "tinyseq": Peer(tinyseq_build, ["tinyseq", "numba", "numpy"]),
    "torch": Peer(torch_build, ["torch"]),
    "definition": Peer(lambda: tinyseq_build(kernel=False), ["tinyseq", "numpy"], own=True),
}
AIMS = {("torch", mode): 1.0 for mode in MODES}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(backend="numba", threads=2)


if __name__ == "__main__":
    common.main(__file__, "Causal attention", PEERS, cases, AIMS, add_arguments)
