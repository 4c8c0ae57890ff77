"""A training step of an encoder-decoder with attention: tinyseq's compiled loop beside PyTorch.

    python benchmarks/attention_decoder.py --peer-python peers/bin/python --write

Bahdanau et al. (2015): a bidirectional GRU reads the source, a GRU that attends to it at every step writes the target, fed
with the right tokens. Rows have different lengths, as in any batch of sentences. "forward" is the loss under `no_grad`;
"training step" is the loss, all gradients, clipping and Adam. PyTorch runs its own layers, with the source packed; its
decoder is the loop that one has to write, with what does not depend on the step (the memory's part of the scores, the output
layer) outside.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from typing import Any

import common
import numpy as np
from common import Case, Job, Peer

B, STEPS, EMBEDDING, H = 32, 40, 128, 256  # rows, steps of source and target
VOCABULARIES = [100, 2000]  # characters or sounds; words
PADDING, START, END = 0, 1, 2
LR, CLIP = 1e-3, 1.0
TITLE = "A training step of an attention decoder"


def cases(args: argparse.Namespace) -> list[Case]:
    vocabularies = VOCABULARIES[:1] if args.quick else VOCABULARIES
    return [
        Case(f"{B},{STEPS},{STEPS},{H} of {size} tokens", {"vocabulary": size, "rows": B, "steps": STEPS, "hidden": H})
        for size in vocabularies
    ]


def weights(case: Case) -> dict[str, np.ndarray]:
    """The first weights, under tinyseq's names."""
    size, hidden = case.settings["vocabulary"], case.settings["hidden"]
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embedding.weight": (size, EMBEDDING),
        "decoder.embedding.weight": (size, EMBEDDING),
        "decoder.cell.attention.query.weight": (hidden, hidden),
        "decoder.cell.attention.key.weight": (hidden, 2 * hidden),
        "decoder.cell.attention.energy": (hidden,),
        "bridge.maps.0.weight": (hidden, 2 * hidden),
        "bridge.maps.0.bias": (hidden,),
        "decoder.output.weight": (size, 3 * hidden),
        "decoder.output.bias": (size,),
    }
    for prefix, suffix, inputs in [
        ("encoder.layer.", "_l0", EMBEDDING),
        ("encoder.layer.", "_l0_reverse", EMBEDDING),
        ("decoder.cell.cell.", "", EMBEDDING + 2 * hidden),
    ]:
        shapes[f"{prefix}weight_ih{suffix}"] = (3 * hidden, inputs)
        shapes[f"{prefix}weight_hh{suffix}"] = (3 * hidden, hidden)
        shapes[f"{prefix}bias_ih{suffix}"] = shapes[f"{prefix}bias_hh{suffix}"] = (3 * hidden,)
    random = np.random.default_rng(0)

    def bound(name: str) -> float:
        """So large that attention looks at something, for else its gradients are differences of nothing but roundings."""
        return 1.0 if "embedding" in name else (4.0 if "attention" in name else 1.0) / math.sqrt(hidden)

    return {name: random.uniform(-bound(name), bound(name), shape).astype(np.float32) for name, shape in shapes.items()}


def batch(case: Case) -> tuple[np.ndarray, ...]:
    """Source and target (T, B), each with padding at the end, and the lengths of the source's rows."""
    rows, steps = case.settings["rows"], case.settings["steps"]
    random = np.random.default_rng(1)
    found = []
    for _ in range(2):
        ids = random.integers(END + 1, case.settings["vocabulary"], (steps, rows))
        lengths = random.integers(steps // 2, steps + 1, rows)
        lengths[0] = steps
        found += [np.where(np.arange(steps)[:, None] < lengths, ids, PADDING), lengths]
    source, source_lengths, target, _ = found
    return source, target, source_lengths


def job(loss: Callable[[], Any], step: Callable[[], Any], inference: Callable[[], Any], gradients: Callable[[], Any]) -> Job:
    """`loss` records and `gradients` gives what its backward pass left; `step` is all of a training step."""

    def results() -> dict[str, np.ndarray]:
        value = loss()
        value.backward()
        return {"loss": np.float32(value.item()).reshape(1), **gradients()}

    return Job(results, {"forward": inference, "training step": step})


def tinyseq_build() -> Callable[[Case], Job]:
    import tinyseq as ts

    nn = ts.nn

    def build(case: Case) -> Job:
        size, hidden = case.settings["vocabulary"], case.settings["hidden"]
        source, target, lengths = (ts.tensor(array) for array in batch(case))
        encoder = nn.RecurrentEncoder(nn.Embedding(size, EMBEDDING), nn.GRU(EMBEDDING, hidden, bidirectional=True))
        cell = nn.GRUCell(EMBEDDING + 2 * hidden, hidden)
        reader = nn.BahdanauCell(cell, nn.AdditiveAttention(hidden, 2 * hidden, hidden))
        decoder = nn.RecurrentDecoder(nn.Embedding(size, EMBEDDING), reader, nn.Linear(3 * hidden, size))
        model = nn.EncoderDecoder(encoder, decoder, START, END, nn.Bridge(2 * hidden, cell))
        model.load_state_dict(weights(case))
        optimizer = ts.optim.Adam(model.parameters(), lr=LR)

        def loss() -> Any:
            logits, _ = model(source, target, lengths)
            return ts.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PADDING)

        def inference() -> Any:
            with ts.no_grad():
                return loss()

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            ts.optim.clip_grad_norm(model.parameters(), CLIP)
            optimizer.step()

        def gradients() -> dict[str, np.ndarray]:
            return {f"d{name}": np.array(p.grad.numpy()) for name, p in model.named_parameters()}

        return job(loss, step, inference, gradients)

    return build


def torch_build() -> Callable[[Case], Job]:
    import torch
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

    class Attention(nn.Module):
        def __init__(self, hidden: int) -> None:
            super().__init__()
            self.query = nn.Linear(hidden, hidden, bias=False)
            self.key = nn.Linear(2 * hidden, hidden, bias=False)
            self.energy = nn.Parameter(torch.empty(hidden))

        def forward(self, state: Any, keys: Any, memory: Any, hidden: Any) -> Any:
            scores = torch.tanh(self.query(state).unsqueeze(1) + keys) @ self.energy
            shares = torch.softmax(scores.masked_fill(hidden, -math.inf), -1)
            return torch.bmm(shares.unsqueeze(1), memory).squeeze(1)

    class Model(nn.Module):
        def __init__(self, size: int, hidden: int) -> None:
            super().__init__()
            self.read = nn.Embedding(size, EMBEDDING)
            self.encoder = nn.GRU(EMBEDDING, hidden, bidirectional=True)
            self.bridge = nn.Linear(2 * hidden, hidden)
            self.written = nn.Embedding(size, EMBEDDING)
            self.attention = Attention(hidden)
            self.cell = nn.GRUCell(EMBEDDING + 2 * hidden, hidden)
            self.output = nn.Linear(3 * hidden, size)

        def forward(self, source: Any, target: Any, lengths: Any, padded: Any) -> Any:
            packed = pack_padded_sequence(self.read(source), lengths, enforce_sorted=False)
            outputs, last = self.encoder(packed)
            memory = pad_packed_sequence(outputs, total_length=len(source))[0].transpose(0, 1).contiguous()
            state = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
            keys = self.attention.key(memory)
            fed = torch.cat([torch.full_like(target[:1], START), target[:-1]])
            ys = []
            for x in self.written(fed).unbind(0):
                context = self.attention(state, keys, memory, padded)
                state = self.cell(torch.cat([x, context], -1), state)
                ys.append(torch.cat([state, context], -1))
            return self.output(torch.stack(ys))

    places = {
        "encoder.embedding.": "read.",
        "encoder.layer.": "encoder.",
        "bridge.maps.0.": "bridge.",
        "decoder.embedding.": "written.",
        "decoder.cell.attention.": "attention.",
        "decoder.cell.cell.": "cell.",
        "decoder.output.": "output.",
    }

    def place(name: str) -> str:
        prefix = next(prefix for prefix in places if name.startswith(prefix))
        return places[prefix] + name.removeprefix(prefix)

    def build(case: Case) -> Job:
        source, target, lengths = (torch.tensor(array) for array in batch(case))
        padded = torch.arange(len(source)) >= lengths[:, None]
        model = Model(case.settings["vocabulary"], case.settings["hidden"])
        names = {place(name): name for name in weights(case)}
        model.load_state_dict({place(name): torch.tensor(array) for name, array in weights(case).items()})
        optimizer = torch.optim.Adam(model.parameters(), lr=LR)

        def loss() -> Any:
            logits = model(source, target, lengths, padded)
            return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PADDING)

        def inference() -> Any:
            with torch.no_grad():
                return loss()

        def step() -> None:
            optimizer.zero_grad()
            loss().backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()

        def gradients() -> dict[str, np.ndarray]:
            return {f"d{names[name]}": p.grad.numpy().copy() for name, p in model.named_parameters()}

        return job(loss, step, inference, gradients)

    return build


PEERS = {
    "tinyseq": Peer(tinyseq_build, ["tinyseq", "numba", "numpy"]),
    "torch": Peer(torch_build, ["torch"]),
}
AIMS = {("torch", "training step"): 0.33}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(backend="numba", threads=2, pairs=11, tolerance=1e-4)


if __name__ == "__main__":
    common.main(__file__, TITLE, PEERS, cases, AIMS, add_arguments)
