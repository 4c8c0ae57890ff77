"""Transformer layers and stacks: E = 6 in 2 heads, T target steps, K source steps."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np

from torch_cases.attention import additive, exact_in_torch, some
from torch_cases.case import Arrays, Case, Draw, Sizes, exact, real
from torch_cases.layers import STATE, Layer

SETTINGS = {"d_model": 6, "nhead": 2, "dim_feedforward": "H", "dropout": 0.0}


class Stack(Layer):
    """Weights as small as trained ones, so that float32 tells no more through four layers than through one."""

    def draw(self, rng: np.random.Generator, sizes: Sizes) -> Arrays:
        arrays = super().draw(rng, sizes)
        for name, array in arrays.items():
            if name.startswith(STATE):
                arrays[name] = exact(0.4 * array + ("norm" in name and name.endswith("weight")))
        return arrays

    # PyTorch warns that it takes no shortcut through a stack, which only inference would.
    def _torch_layer(self, sizes: Sizes) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "enable_nested_tensor is True", UserWarning)
            return super()._torch_layer(sizes)


def layer(
    name: str, kind: str, inputs: tuple[Draw, ...], masks: tuple[Draw, ...] = (), settings: Any = (), **named: Any
) -> Case:
    """`named` gives each mask's argument the number of its place among the masks."""

    def call(layer: Any, *tensors: Any) -> Any:
        given = {argument: tensors[len(inputs) + place] for argument, place in named.items()}
        return layer(*tensors[: len(inputs)], **given)

    options: dict[str, Any] = {**SETTINGS, **dict(settings)}
    return Stack(name, kind, options, inputs + masks, call, theirs=exact_in_torch(call))


SOURCE, TARGET = (real("KB6"),), (real("TB6"), real("KB6"))
TRANSFORMER: list[Case] = []
for norm_first, activation, bias in itertools.product((False, True), ("relu", "gelu"), (True, False)):
    words = ["_norm_first"] * norm_first + ["_gelu"] * (activation == "gelu") + ["_no_bias"] * (not bias)
    settings = {"norm_first": norm_first, "activation": activation, "bias": bias}
    TRANSFORMER += [
        layer("encoder_layer" + "".join(words), "TransformerEncoderLayer", SOURCE, (), settings),
        layer("decoder_layer" + "".join(words), "TransformerDecoderLayer", TARGET, (), settings),
    ]
ENCODER, DECODER = "TransformerEncoderLayer", "TransformerDecoderLayer"
TRANSFORMER += [
    layer("encoder_layer_batch_first", ENCODER, (real("BK6"),), (), {"batch_first": True}),
    layer("encoder_layer_unbatched", ENCODER, (real("K6"),)),
    layer("encoder_layer_eps", ENCODER, SOURCE, (), {"layer_norm_eps": 0.1}),
    layer("encoder_layer_padding", ENCODER, SOURCE, (some("BK", False),), src_key_padding_mask=0),
    layer("encoder_layer_mask", ENCODER, SOURCE, (some("KK", False),), src_mask=0),
    layer(
        "encoder_layer_masks_additive",
        ENCODER,
        SOURCE,
        (additive("KK"), additive("BK")),
        src_mask=0,
        src_key_padding_mask=1,
    ),
    layer("decoder_layer_batch_first", DECODER, (real("BT6"), real("BK6")), (), {"batch_first": True}),
    layer("decoder_layer_unbatched", DECODER, (real("T6"), real("K6"))),
    layer(
        "decoder_layer_masks",
        DECODER,
        TARGET,
        (some("TT", False), some("TK", False), some("BT", False), some("BK", False)),
        tgt_mask=0,
        memory_mask=1,
        tgt_key_padding_mask=2,
        memory_key_padding_mask=3,
    ),
]
for norm_first in (False, True):
    for word, masks, named in [
        ("", (), {}),
        (
            "_masked",
            (some("TT", False), some("BK", False), some("BK", False)),
            {"tgt_mask": 0, "src_key_padding_mask": 1, "memory_key_padding_mask": 2},
        ),
    ]:
        settings = {"num_encoder_layers": 2, "num_decoder_layers": 2, "norm_first": norm_first, "activation": "gelu"}
        inputs = (real("KB6"), real("TB6"))
        TRANSFORMER.append(
            layer("transformer" + "_norm_first" * norm_first + word, "Transformer", inputs, masks, settings, **named)
        )
