"""Attention, positional encodings and Transformer layers; the attentions of recurrent decoders against their equations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from torch_cases.case import Case, Draw, Expression, Sizes, among, real, shape_of
from torch_cases.functional import expression
from torch_cases.layers import Layer


def exact_in_torch(call: Callable[..., Any]) -> Callable[..., Any]:
    """By PyTorch's plain formula: its fused kernels have no second derivative."""

    def theirs(*arguments: Any) -> Any:
        import torch

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return call(*arguments)

    return theirs


def some(letters: str, value: bool) -> Draw:
    """Booleans, the first of each row being `value`, so that no row is masked as a whole."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        values = np.asarray(rng.random(shape_of(letters, sizes)) < 0.5)
        values[..., 0] = value
        return values

    return draw


def additive(letters: str) -> Draw:
    """Numbers to add to scores, some -inf, never a whole row."""

    def draw(rng: np.random.Generator, sizes: Sizes) -> np.ndarray:
        values = real(letters)(rng, sizes)
        hidden = rng.random(values.shape) < 0.4
        hidden[..., 0] = False
        return np.where(hidden, -np.inf, values)

    return draw


# --- functions: L = T queries, S = K keys ----------------------------------------------------------------------------

QKV = (real("B2TI"), real("B2KI"), real("B2KH"))


def product(name: str, inputs: Any, call: Callable[..., Any], **options: Any) -> Case:
    return expression(name, inputs, call, exact_in_torch(call), **options)


FUNCTIONS: list[Case] = [
    product("sdpa", QKV, lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v)),
    product("sdpa_causal", QKV, lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    product("sdpa_scale", QKV, lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.3)),
    product(
        "sdpa_bool",
        (*QKV, some("TK", True)),
        lambda F, q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
    ),
    product(
        "sdpa_bool_all_hidden",
        (*QKV, some("B1TK", False)),
        lambda F, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
    ),
    product(
        "sdpa_additive",
        (*QKV, additive("B1TK")),
        lambda F, q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
    ),
    product(
        "sdpa_three_axes",
        (real("BTI"), real("BKI"), real("BKI")),
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v),
    ),
    product(
        "sdpa_grouped",
        (real("B4TI"), real("B2KI"), real("B2KH")),
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    ),
    product(  # scores of ten thousands, which float32 holds exactly
        "sdpa_large",
        (among("BTI", -200.0, 0.0, 200.0), among("BKI", -200.0, 0.0, 200.0), real("BKI")),
        lambda F, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.25),
    ),
]

# --- the attentions of recurrent decoders, in PyTorch's words ---------------------------------------------------------


def ours_with(kind: str, names: tuple[str, ...], *settings: Any) -> Callable[..., Any]:
    """An attention of tinyseq whose weights are the last inputs."""

    def call(ts: Any, query: Any, keys: Any, *weights: Any) -> Any:
        given = [weight.shape for weight in weights]
        sizes = {
            "AdditiveAttention": lambda: (given[0][1], given[1][1], given[0][0]),
            "GeneralAttention": lambda: given[0],
            "DotProductAttention": lambda: (),
        }[kind]()
        attention = getattr(ts.nn, kind)(*sizes, *settings)
        for name, weight in zip(names, weights, strict=True):
            holder, _, last = name.rpartition(".")
            setattr(getattr(attention, holder) if holder else attention, last, weight)
        return attention(query, keys)

    return call


def seen(torch: Any, weights: Any, h: Any) -> Any:
    return (weights.unsqueeze(-2) @ h).squeeze(-2) if weights.ndim < h.ndim else weights @ h, weights


def theirs_additive(torch: Any, s: Any, h: Any, w: Any, u: Any, v: Any) -> Any:
    keys = h @ u.T
    keys = keys.unsqueeze(-3) if s.ndim == h.ndim else keys
    return seen(torch, torch.softmax(torch.tanh((s @ w.T).unsqueeze(-2) + keys) @ v, -1), h)


def theirs_dot(torch: Any, s: Any, h: Any, w: Any = None) -> Any:
    keys = h if w is None else h @ w.T
    scores = s @ keys.mT if s.ndim == h.ndim else (keys @ s.unsqueeze(-1)).squeeze(-1)
    return seen(torch, torch.softmax(scores, -1), h)


ADDITIVE = ("query.weight", "key.weight", "energy")
READERS: list[Case] = []
for word, query, keys in [("", "BI", "BKH"), ("_several", "BTI", "BKH"), ("_unbatched", "I", "KH")]:
    asked = real(query, 0.3)  # small, since the gradient of a saturated softmax is a difference of nearly equal numbers
    READERS += [
        Expression(
            "additive_attention" + word,
            (asked, real(keys), real("CI"), real("CH"), real("C")),
            ours_with("AdditiveAttention", ADDITIVE),
            theirs_additive,
        ),
        Expression(
            "dot_attention" + word,
            (real(query), real(keys.replace("H", "I"))),
            ours_with("DotProductAttention", ()),
            theirs_dot,
        ),
        Expression(
            "general_attention" + word,
            (asked, real(keys), real("IH")),
            ours_with("GeneralAttention", ("key.weight",)),
            theirs_dot,
        ),
    ]

# --- MultiheadAttention: E = 6 in 3 heads (2 where the masks have an axis for them) ----------------------------------


def multihead(name: str, inputs: Any, settings: Any = (), **call: Any) -> Case:
    """`inputs` in the order query, key, value and then the masks that `call` names with the number of their place."""

    def ask(layer: Any, *tensors: Any) -> Any:
        given = {key: tensors[value] if type(value) is int else value for key, value in call.items()}
        query, key, value = (tensors[min(place, count - 1)] for place in range(3))
        output, weights = layer(query, key, value, **given)
        return output if weights is None else (output, weights)

    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    masks = sum(type(value) is int for value in call.values())
    count = len(inputs) - masks
    options = {"embed_dim": 6, "num_heads": 3} | dict(settings)
    return Layer("multihead" + name, "MultiheadAttention", options, inputs, ask, theirs=exact_in_torch(ask))


SELF, CROSS = real("TB6", 0.5), (real("TB6", 0.5), real("KB6", 0.5), real("KB6"))
FIRST = (real("BT6", 0.5), real("BK6", 0.5), real("BK6"))
UNBATCHED = (real("T6", 0.5), real("K6", 0.5), real("K6"))
MULTIHEAD: list[Case] = [
    multihead("", SELF),
    multihead("_two_inputs", CROSS[:2]),
    multihead("_cross", CROSS),
    multihead("_no_weights", CROSS, need_weights=False),
    multihead("_weights_of_heads", CROSS, average_attn_weights=False),
    multihead("_no_bias", CROSS, {"bias": False}),
    multihead("_one_head", SELF, {"num_heads": 1}),
    multihead("_kdim", (real("TB6", 0.5), real("KBI", 0.5), real("KB6")), {"kdim": "I"}),
    multihead("_kdim_vdim", (real("TB6", 0.5), real("KBI", 0.5), real("KBH")), {"kdim": "I", "vdim": "H"}),
    multihead(
        "_kdim_vdim_no_bias", (real("TB6", 0.5), real("KBI", 0.5), real("KBH")), {"kdim": "I", "vdim": "H", "bias": False}
    ),
    multihead("_unbatched", UNBATCHED),
    multihead("_unbatched_of_heads", UNBATCHED, average_attn_weights=False),
    multihead("_unbatched_masks", (*UNBATCHED, some("K", False)), key_padding_mask=3),
    multihead("_bias_kv", CROSS, {"add_bias_kv": True}),
    multihead("_zero_attn", CROSS, {"add_zero_attn": True}),
    multihead(
        "_added_masked",
        (*FIRST, some("BK", False), some("TK", False)),
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        key_padding_mask=3,
        attn_mask=4,
    ),
    multihead(
        "_added_additive",
        (*FIRST, additive("BK"), additive("TK")),
        {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
        key_padding_mask=3,
        attn_mask=4,
    ),
]
for first, weights, (padding, attn) in itertools.product(
    (False, True), (False, True), itertools.product((None, some, additive), (None, "2", some, additive))
):
    masks: list[Draw] = []
    named: dict[str, int] = {}
    words = ["_first"] * first + ["_weights"] * weights
    if padding is not None:
        named["key_padding_mask"] = 3
        masks.append(some("BK", False) if padding is some else additive("BK"))
        words.append("_padding" if padding is some else "_padding_additive")
    if attn is not None and (attn is additive) != (padding is additive) and padding is not None:
        continue  # PyTorch warns of masks of two kinds
    if attn is not None:
        named["attn_mask"] = 3 + len(masks)
        masks.append({"2": some("TK", False), some: some("BTK", False), additive: additive("TK")}[attn])
        words.append({"2": "_mask", some: "_mask_of_heads", additive: "_mask_additive"}[attn])
    if masks:
        heads = {"num_heads": 1} if attn is some else {}
        MULTIHEAD.append(
            multihead(
                "".join(words),
                ((FIRST if first else CROSS) + tuple(masks)),
                {"batch_first": first} | heads,
                need_weights=weights,
                **named,
            )
        )

ATTENTION = FUNCTIONS + READERS + MULTIHEAD
