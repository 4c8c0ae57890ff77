"""Layers over the product of their options: all of it for the live comparison, and a part that has every two choices
together for the golden files."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from torch_cases.attention import additive, exact_in_torch, some
from torch_cases.case import Case, Draw, Sizes, real
from torch_cases.layers import Layer

Choice = dict[str, Any]


def choices(options: Mapping[str, tuple[Any, ...]]) -> list[Choice]:
    """Every combination."""
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def every_two(options: Mapping[str, tuple[Any, ...]]) -> list[Choice]:
    """Few combinations, among them each value of each option with each value of each other one."""
    left = {
        frozenset([(a, x), (b, y)]): None  # a dict keeps the order
        for (a, xs), (b, ys) in itertools.combinations(options.items(), 2)
        for x, y in itertools.product(xs, ys)
    }
    found = []
    while left:
        choice: Choice = dict(next(iter(left)))
        for name, values in options.items():
            if name not in choice:
                new = {value: sum(frozenset([(name, value), item]) in left for item in choice.items()) for value in values}
                choice[name] = max(values, key=new.__getitem__)
        found.append({name: choice[name] for name in options})
        for pair in itertools.combinations(choice.items(), 2):
            left.pop(frozenset(pair), None)
    return found


def words(choice: Choice) -> str:
    """A name that says what is not the default."""
    return "_".join(name if value is True else str(value) for name, value in choice.items() if value)


# --- MultiheadAttention: E = 6 in 3 heads ----------------------------------------------------------------------------

HEADS = 3
MULTIHEAD: Mapping[str, tuple[Any, ...]] = {
    "no_bias": (False, True),
    "bias_kv": (False, True),
    "zero_attn": (False, True),
    "inputs": ("self", "memory", "three", "kdim_vdim"),
    "layout": ("", "first", "unbatched"),
    "attn": ("", "mask", "mask_additive", "mask_of_heads", "mask_of_heads_additive"),
    "padding": ("", "padding", "padding_additive"),
    "causal": (False, True),
    "weights": ("", "weights", "weights_of_heads"),
}


def for_heads(draw: Draw, batched: bool) -> Draw:
    """With an axis N of rows times heads."""
    return lambda rng, sizes: draw(rng, {**sizes, "N": HEADS * (sizes["B"] if batched else 1)})


def multihead(choice: Choice) -> Case:
    batched, first = choice["layout"] != "unbatched", choice["layout"] == "first"
    keys = "T" if choice["inputs"] == "self" else "K"

    def sequence(steps: str, features: str) -> Draw:
        return real((f"B{steps}" if first else f"{steps}B" if batched else steps) + features, 0.5)

    inputs = {
        "self": [sequence("T", "6")],
        "memory": [sequence("T", "6"), sequence("K", "6")],
        "three": [sequence("T", "6"), sequence("K", "6"), sequence("K", "6")],
        "kdim_vdim": [sequence("T", "6"), sequence("K", "I"), sequence("K", "H")],
    }[choice["inputs"]]
    given = len(inputs)
    named: dict[str, int] = {}
    if choice["attn"]:
        named["attn_mask"] = len(inputs)
        letters = ("N" if "heads" in choice["attn"] else "") + "T" + keys
        inputs.append(for_heads(additive(letters) if "additive" in choice["attn"] else some(letters, False), batched))
    if choice["padding"]:
        named["key_padding_mask"] = len(inputs)
        letters = "B" * batched + keys
        inputs.append(additive(letters) if "additive" in choice["padding"] else some(letters, False))
    options = {"need_weights": bool(choice["weights"]), "average_attn_weights": choice["weights"] != "weights_of_heads"}
    settings = {
        "embed_dim": 6,
        "num_heads": HEADS,
        "bias": not choice["no_bias"],
        "add_bias_kv": choice["bias_kv"],
        "add_zero_attn": choice["zero_attn"],
        "batch_first": first,
    }
    if choice["inputs"] == "kdim_vdim":
        settings |= {"kdim": "I", "vdim": "H"}

    def call(layer: Any, *tensors: Any, **more: Any) -> Any:
        qkv = [tensors[min(place, given - 1)] for place in range(3)]
        masks = {name: tensors[place] for name, place in named.items()}
        output, weights = layer(*qkv, **{**options, **masks, **more})
        return output if weights is None else (output, weights)

    def ours(layer: Any, *tensors: Any) -> Any:
        return call(layer, *tensors, is_causal=choice["causal"])

    def theirs(layer: Any, *tensors: Any) -> Any:
        """PyTorch's ``is_causal`` only says what the mask is."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Support for mismatched", UserWarning)
            if not choice["causal"]:
                return call(layer, *tensors)
            import torch

            steps = int(first and batched)
            size = tensors[0].shape[steps], tensors[min(1, given - 1)].shape[steps]
            future = torch.ones(size, dtype=torch.bool).triu(1)
            if not choice["attn"]:
                return call(layer, *tensors, attn_mask=future, is_causal=not (choice["bias_kv"] or choice["zero_attn"]))
            mask = tensors[named["attn_mask"]]
            both = mask | future if mask.dtype == torch.bool else mask.masked_fill(future, -torch.inf)
            return call(layer, *tensors, attn_mask=both)

    name = "multihead_product_" + words(choice)
    return Layer(name, "MultiheadAttention", settings, tuple(inputs), ours, theirs=exact_in_torch(theirs))


# --- RNN, GRU and LSTM ------------------------------------------------------------------------------------------------

RECURRENT: Mapping[str, tuple[Any, ...]] = {
    "kind": ("RNN", "RNN_relu", "GRU", "LSTM", "LSTM_projected"),
    "layers": ("1", "2", "3"),
    "bidirectional": (False, True),
    "no_bias": (False, True),
    "layout": ("", "first", "unbatched", "unbatched_first"),
    "state": (False, True),
    "lengths": (False, True),
}


def lengths(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
    """At least 1, the least that PyTorch packs."""
    return np.asarray(rng.integers(1, sizes["T"] + 1, sizes["B"]), dtype=np.int64)


def recurrent(choice: Choice) -> Case:
    kind, _, extra = choice["kind"].partition("_")
    batched, first = not choice["layout"].startswith("unbatched"), choice["layout"].endswith("first")
    rows = "B" * batched
    depth = str(int(choice["layers"]) * (1 + choice["bidirectional"]))
    x = real(("BTI" if first else "TBI") if batched else "TI")
    state = [real(depth + rows + ("2" if extra == "projected" else "H"))] + [real(depth + rows + "H")] * (kind == "LSTM")
    inputs = (x, *[lengths] * choice["lengths"], *state * choice["state"])
    settings: dict[str, Any] = {"input_size": "I", "hidden_size": "H", "num_layers": int(choice["layers"])}
    settings |= {"bidirectional": choice["bidirectional"], "bias": not choice["no_bias"], "batch_first": first}
    settings |= {"relu": {"nonlinearity": "relu"}, "projected": {"proj_size": 2}, "": {}}[extra]

    def parts(tensors: tuple[Any, ...]) -> tuple[Any, Any]:
        counts, *state = tensors if choice["lengths"] else (None, *tensors)
        return counts, tuple(state) if len(state) == 2 else state[0] if state else None

    def ours(layer: Any, x: Any, *tensors: Any) -> Any:
        counts, state = parts(tensors)
        return layer(x, state, lengths=counts)

    def theirs(layer: Any, x: Any, *tensors: Any) -> Any:
        from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

        counts, state = parts(tensors)
        if counts is None:
            return layer(x, state)
        packed = pack_padded_sequence(x, counts, batch_first=first, enforce_sorted=False)
        output, end = layer(packed, state)
        return pad_packed_sequence(output, batch_first=first, total_length=x.shape[int(first)])[0], end

    least = {"H": 3} if extra == "projected" else {}
    return Layer("recurrent_product_" + words(choice), kind, settings, inputs, ours, theirs=theirs, least=least)


# --- both -------------------------------------------------------------------------------------------------------------


def parts(
    title: str, build: Callable[[Choice], Case], options: Mapping[str, tuple[Any, ...]], of_layer: int
) -> Iterator[tuple[str, Callable[[], list[Case]]]]:
    """For each setting of a layer, which are the first options, a name and what makes its cases."""
    names = [*options]
    calls = choices({name: options[name] for name in names[of_layer:]})
    # Lengths are those of rows of a batch.
    calls = [call for call in calls if not (call.get("lengths") and call["layout"].startswith("unbatched"))]
    for layer in choices({name: options[name] for name in names[:of_layer]}):
        yield "_".join(filter(None, (title, words(layer)))), lambda layer=layer: [build(layer | call) for call in calls]


PRODUCTS = dict([*parts("multihead", multihead, MULTIHEAD, 5), *parts("recurrent", recurrent, RECURRENT, 4)])
EVERY_TWO: list[Case] = [multihead(choice) for choice in every_two(MULTIHEAD)]
