"""Layers: a state dict of PyTorch's names and shapes is loaded into both, and every parameter's gradient compared."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from torch_cases.case import (
    Arrays,
    Case,
    Draw,
    Sizes,
    between,
    distinct,
    distribution,
    exact,
    index,
    real,
    tinyseq_answer,
    torch_answer,
)

STATE = "state/"


def give(layer: Any, *tensors: Any) -> Any:
    """The layer of its inputs."""
    return layer(*tensors)


def give_pair(layer: Any, x: Any, h: Any, c: Any) -> Any:
    """LSTM's state is a pair."""
    return layer(x, (h, c))


def state_of(call: Callable[..., Any]) -> Callable[..., Any]:
    """The second of what a layer returns."""
    return lambda layer, *tensors: call(layer, *tensors)[1]


class Layer(Case):
    """A layer of one name in both libraries. Settings that are letters stand for sizes."""

    def __init__(
        self,
        name: str,
        kind: str,
        settings: Mapping[str, Any],
        inputs: Draw | tuple[Draw, ...],
        call: Callable[..., Any] = give,
        *,
        theirs: Callable[..., Any] | None = None,
        least: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.settings = settings
        self.inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        self.ours = call
        self.theirs = theirs or call
        self.least = least or {}

    def _settings(self, sizes: Sizes) -> dict[str, Any]:
        def size(value: Any) -> Any:
            return sizes[value] if isinstance(value, str) and len(value) == 1 else value

        return {key: size(value) for key, value in self.settings.items()}

    def _torch_layer(self, sizes: Sizes) -> Any:
        import torch

        return getattr(torch.nn, self.kind)(**self._settings(sizes)).to(torch.float64)

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        arrays = {f"x{place}": draw(rng, sizes) for place, draw in enumerate(self.inputs)}
        for name, parameter in self._torch_layer(sizes).state_dict().items():
            arrays[STATE + name] = exact(0.7 * rng.standard_normal(tuple(parameter.shape)))
        return arrays

    def run_torch(self, arrays: Arrays, sizes: Sizes, twice: bool = False) -> Arrays:
        import torch

        layer = self._torch_layer(sizes)
        tensors, state = {}, {}
        for name, array in arrays.items():
            if name.startswith(STATE):
                state[name.removeprefix(STATE)] = torch.from_numpy(array)
            else:
                tensors[name] = torch.tensor(array, requires_grad=array.dtype.kind == "f")
        layer.load_state_dict(state)
        wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        wanted |= {STATE + name: parameter for name, parameter in layer.named_parameters()}
        return torch_answer(self.theirs(layer, *tensors.values()), wanted, twice)

    def run_tinyseq(self, arrays: Arrays, sizes: Sizes, dtype: Any, twice: bool = False) -> Arrays:
        import tinyseq as ts

        layer = getattr(ts.nn, self.kind)(**self._settings(sizes)).astype(np.dtype(dtype).name)
        tensors, state = {}, {}
        for name, array in arrays.items():
            values = array.astype(dtype) if array.dtype.kind == "f" else array
            if name.startswith(STATE):
                state[name.removeprefix(STATE)] = ts.tensor(values)
            else:
                tensors[name] = ts.tensor(values, requires_grad=array.dtype.kind == "f")
        layer.load_state_dict(state)
        wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
        wanted |= {STATE + name: parameter for name, parameter in layer.named_parameters()}
        return tinyseq_answer(self.ours(layer, *tensors.values()), wanted, dtype, twice)


NORMALISED = {"C": 3}  # see functional.py

PLAIN: list[Case] = [
    Layer("linear_layer", "Linear", {"in_features": "I", "out_features": "H"}, real("BTI")),
    Layer("linear_layer_without_bias", "Linear", {"in_features": "I", "out_features": "H", "bias": False}, real("BI")),
    Layer("embedding_layer", "Embedding", {"num_embeddings": "V", "embedding_dim": "I"}, index("TB", "V")),
    Layer(
        "embedding_layer_padding",
        "Embedding",
        {"num_embeddings": "V", "embedding_dim": "I", "padding_idx": 0},
        index("TB", "V"),
    ),
    Layer("layer_norm_layer", "LayerNorm", {"normalized_shape": "C"}, distinct("BTC"), least=NORMALISED),
    Layer(
        "layer_norm_layer_eps",
        "LayerNorm",
        {"normalized_shape": "C", "eps": 0.01},
        distinct("BC"),
        least=NORMALISED,
    ),
    Layer(
        "layer_norm_layer_without_affine",
        "LayerNorm",
        {"normalized_shape": "C", "elementwise_affine": False},
        distinct("BC"),
        least=NORMALISED,
    ),
]

# A cell of tinyseq returns its output beside its state; PyTorch's returns the state alone, which is what both answer.
CELLS: list[Case] = []
for kind, extra in [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("GRUCell", {}), ("LSTMCell", {})]:
    pair = kind == "LSTMCell"
    theirs = give_pair if pair else give
    title = "_".join([kind, *extra.values()])
    settings = {"input_size": "I", "hidden_size": "H"} | extra
    for word, inputs, more in [
        ("", (real("BI"), *(real("BH"),) * (1 + pair)), {}),
        ("_no_bias", (real("BI"), *(real("BH"),) * (1 + pair)), {"bias": False}),
        ("_unbatched", (real("I"), *(real("H"),) * (1 + pair)), {}),
    ]:
        CELLS.append(Layer(title + word, kind, settings | more, inputs, state_of(theirs), theirs=theirs))
    CELLS.append(Layer(f"{title}_no_state", kind, settings, real("BI"), state_of(give), theirs=give))

STACKS: list[Case] = []
for kind, extra in [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {})]:
    for num_layers, bidirectional, bias, given in itertools.product((1, 2), (False, True), (True, False), (True, False)):
        if not bias and not given:
            continue  # the two choices do not meet in the code; one of them at a time is enough
        depth = str(num_layers * (1 + bidirectional))
        states = (real(f"{depth}BH"),) * (1 + (kind == "LSTM")) if given else ()
        words = [kind, *extra.values(), f"{num_layers}_layer"]
        words += ["bidirectional"] * bidirectional + ["no_bias"] * (not bias) + ["no_state"] * (not given)
        STACKS.append(
            Layer(
                "_".join(words),
                kind,
                {
                    "input_size": "I",
                    "hidden_size": "H",
                    "num_layers": num_layers,
                    "bidirectional": bidirectional,
                    "bias": bias,
                }
                | extra,
                (real("TBI"), *states),
                give_pair if len(states) == 2 else give,
            )
        )
    states = 2 if kind == "LSTM" else 1
    settings = {"input_size": "I", "hidden_size": "H", "num_layers": 2, "bidirectional": True} | extra
    call = give_pair if kind == "LSTM" else give
    title = "_".join([kind, *extra.values()])
    STACKS += [
        Layer(
            f"{title}_batch_first",
            kind,
            settings | {"batch_first": True},
            (real("BTI"), *(real("4BH"),) * states),
            call,
        ),
        Layer(f"{title}_unbatched", kind, settings, (real("TI"), *(real("4H"),) * states), call),
        Layer(f"{title}_unbatched_no_state", kind, settings, real("TI")),
        Layer(f"{title}_unbatched_batch_first", kind, settings | {"batch_first": True}, real("TI")),
        Layer(f"{title}_last_state_only", kind, settings, real("TBI"), state_of(give)),
    ]

LOSSES: list[Case] = [
    Layer("cross_entropy_loss", "CrossEntropyLoss", {}, (real("BC"), index("B", "C"))),
    Layer(
        "cross_entropy_loss_settings",
        "CrossEntropyLoss",
        {"ignore_index": 0, "label_smoothing": 0.1, "reduction": "sum"},
        (real("BCT"), index("BT", "C")),
    ),
    Layer("nll_loss_layer", "NLLLoss", {"ignore_index": 1, "reduction": "none"}, (real("BC"), index("B", "C"))),
    Layer("mse_loss_layer", "MSELoss", {"reduction": "sum"}, (real("BT"), real("BT"))),
    Layer("l1_loss_layer", "L1Loss", {}, (real("BT"), real("BT"))),
    Layer("huber_loss_layer", "HuberLoss", {"delta": 0.5}, (real("BT"), real("BT"))),
    Layer("smooth_l1_loss_layer", "SmoothL1Loss", {"beta": 0.5, "reduction": "none"}, (real("BT"), real("BT"))),
    Layer("bce_loss_layer", "BCELoss", {}, (between("BT", 0.1, 0.9), between("BT", 0.1, 0.9))),
    Layer("bce_with_logits_loss_layer", "BCEWithLogitsLoss", {"reduction": "sum"}, (real("BT"), between("BT", 0.0, 1.0))),
    Layer("kl_div_loss_layer", "KLDivLoss", {"reduction": "batchmean"}, (real("BC"), distribution("BC"))),
    Layer("kl_div_loss_layer_log_target", "KLDivLoss", {"reduction": "sum", "log_target": True}, (real("BC"), real("BC"))),
]

LAYERS = PLAIN + LOSSES + CELLS + STACKS
