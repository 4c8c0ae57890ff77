"""Recurrent layers beyond those of `layers.py`: projections, and rows of different lengths."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from torch_cases.case import Case, Sizes, real
from torch_cases.layers import Layer, give, give_pair, state_of

SIZES = {"input_size": "I", "hidden_size": "H"}
PROJECTED = {"H": 3}  # a projection is smaller than what it projects


def projected(name: str, settings: dict[str, Any], inputs: Any, call: Any = give_pair, **options: Any) -> Layer:
    return Layer(name, "LSTM", SIZES | {"proj_size": 2} | settings, inputs, call, least=PROJECTED, **options)


PROJECTIONS: list[Case] = []
for num_layers, bidirectional, bias in itertools.product((1, 2), (False, True), (True, False)):
    depth = str(num_layers * (1 + bidirectional))
    words = ["LSTM_projected", f"{num_layers}_layer"] + ["bidirectional"] * bidirectional + ["no_bias"] * (not bias)
    settings = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias}
    PROJECTIONS.append(projected("_".join(words), settings, (real("TBI"), real(f"{depth}B2"), real(f"{depth}BH"))))
deep = {"num_layers": 2, "bidirectional": True}
PROJECTIONS += [
    projected("LSTM_projected_no_state", deep, real("TBI"), give),
    projected("LSTM_projected_batch_first", deep | {"batch_first": True}, (real("BTI"), real("4B2"), real("4BH"))),
    projected("LSTM_projected_unbatched", deep, (real("TI"), real("42"), real("4H"))),
    projected("LSTM_projected_last_state_only", deep, real("TBI"), state_of(give)),
]


def lengths(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
    """In any order, at least 1, which is the least that PyTorch packs; one row is as long as there are steps."""
    counts = rng.integers(1, sizes["T"] + 1, sizes["B"])
    counts[rng.integers(sizes["B"])] = sizes["T"]
    return np.asarray(counts, dtype=np.int64)


def give_lengths(layer: Any, x: Any, counts: Any, *state: Any) -> Any:
    return layer(x, (state if len(state) == 2 else state[0]) if state else None, lengths=counts)


def give_packed(layer: Any, x: Any, counts: Any, *state: Any) -> Any:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    first, steps = layer.batch_first, x.shape[int(layer.batch_first)]
    packed = pack_padded_sequence(x, counts, batch_first=first, enforce_sorted=False)
    output, end = layer(packed, (state if len(state) == 2 else state[0]) if state else None)
    return pad_packed_sequence(output, batch_first=first, total_length=steps)[0], end


RAGGED: list[Case] = []
for kind, extra in [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2})]:
    for num_layers, bidirectional, batch_first in [(1, False, False), (1, True, True), (2, True, False), (2, True, True)]:
        depth = str(num_layers * (1 + bidirectional))
        first = real(f"{depth}B{extra.get('proj_size', 'H')}")
        states = () if num_layers == 1 else (first, real(f"{depth}BH")) if kind == "LSTM" else (first,)
        words = [kind, *map(str, extra.values()), "lengths", f"{num_layers}_layer"]
        words += ["bidirectional"] * bidirectional + ["batch_first"] * batch_first
        settings = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
        RAGGED.append(
            Layer(
                "_".join(words),
                kind,
                SIZES | extra | settings,
                (real("BTI" if batch_first else "TBI"), lengths, *states),
                give_lengths,
                theirs=give_packed,
                least=PROJECTED if "proj_size" in extra else {},
            )
        )

RECURRENT = PROJECTIONS + RAGGED
