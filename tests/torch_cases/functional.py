"""`nn.functional`: activations, normalisation and losses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch_cases.case import (
    Case,
    Expression,
    among,
    between,
    distinct,
    distribution,
    holes,
    index,
    nonzero,
    order,
    positive,
    real,
    ties,
)

IGNORED = 2  # a class that the drawn targets do hit


def with_functional(function: Callable[..., Any]) -> Callable[..., Any]:
    """`nn.functional` of either library in place of the library."""
    return lambda library, *tensors: function(library.nn.functional, *tensors)


def expression(name: str, inputs: Any, ours: Any, theirs: Any = None, **options: Any) -> Expression:
    return Expression(name, inputs, with_functional(ours), with_functional(theirs or ours), **options)


ACTIVATIONS = [
    expression("softmax", real("BTC"), lambda F, x: F.softmax(x, axis=-1), lambda F, x: F.softmax(x, -1)),
    expression("softmax_first", real("BTC"), lambda F, x: F.softmax(x, axis=0), lambda F, x: F.softmax(x, 0)),
    expression("softmax_masked", holes("BTC"), lambda F, x: F.softmax(x, axis=-1), lambda F, x: F.softmax(x, -1)),
    expression("softmax_large", real("BC", 1e4), lambda F, x: F.softmax(x, axis=-1), lambda F, x: F.softmax(x, -1)),
    expression("log_softmax", real("BTC"), lambda F, x: F.log_softmax(x, axis=-1), lambda F, x: F.log_softmax(x, -1)),
    expression("log_softmax_middle", real("BTC"), lambda F, x: F.log_softmax(x, axis=1), lambda F, x: F.log_softmax(x, 1)),
    expression("log_softmax_masked", holes("BTC"), lambda F, x: F.log_softmax(x, axis=-1), lambda F, x: F.log_softmax(x, -1)),
    expression(
        "log_softmax_large",
        real("BC", 1e4),
        lambda F, x: F.log_softmax(x, axis=-1),
        lambda F, x: F.log_softmax(x, -1),
    ),
    expression("relu_functional", ties("BT"), lambda F, x: F.relu(x)),
    expression("tanh_functional", real("BT"), lambda F, x: F.tanh(x)),
    expression("sigmoid_functional", real("BT"), lambda F, x: F.sigmoid(x)),
    expression("gelu", real("BT", 2.0), lambda F, x: F.gelu(x)),
    expression("gelu_tanh", real("BT", 2.0), lambda F, x: F.gelu(x, approximate="tanh")),
    expression("silu", real("BT", 2.0), lambda F, x: F.silu(x)),
    expression("softplus", real("BT", 2.0), lambda F, x: F.softplus(x)),
    expression(  # PyTorch calls softplus(x) x from 20 on, which float64 can tell apart
        "softplus_far",
        between("BT", -100.0, 100.0),
        lambda F, x: F.softplus(x),
        lambda F, x: F.softplus(x, threshold=200.0),
    ),
    expression("softplus_tail", between("BT", -80.0, -10.0), lambda F, x: F.softplus(x), each=True),
    expression("silu_tail", between("BT", -80.0, -10.0), lambda F, x: F.silu(x), each=True),
    expression(
        "softmax_tail",
        between("BC", -80.0, 0.0),
        lambda F, x: F.softmax(x, axis=-1),
        lambda F, x: F.softmax(x, -1),
        each=True,
        constant=(0,),
    ),
    expression("softplus_beta", real("BT"), lambda F, x: F.softplus(x, beta=2.0)),
    expression("logsigmoid", real("BT", 3.0), lambda F, x: F.logsigmoid(x)),
    expression("logsigmoid_tail", between("BT", 10.0, 80.0), lambda F, x: F.logsigmoid(x), each=True),
    expression("hardtanh", ties("BT"), lambda F, x: F.hardtanh(x)),
    expression("elu", real("BT"), lambda F, x: F.elu(x)),
    expression("elu_alpha", ties("BT"), lambda F, x: F.elu(x, alpha=0.7), twice=False),  # its slope bends at zero
    expression("leaky_relu", real("BT"), lambda F, x: F.leaky_relu(x)),
    expression("leaky_relu_slope", ties("BT"), lambda F, x: F.leaky_relu(x, 0.2)),
]

# Three well separated features and more: with fewer, the gradient is a difference of nearly equal numbers.
NORMALISED = {"C": 3, "T": 3}
NORMALISATION = [
    expression(
        "layer_norm",
        (distinct("BTC"), real("C"), real("C")),
        lambda F, x, w, b: F.layer_norm(x, (x.shape[-1],), w, b),
        least=NORMALISED,
    ),
    expression(
        "layer_norm_plain",
        distinct("BTC"),
        lambda F, x: F.layer_norm(x, (x.shape[-1],)),
        least=NORMALISED,
    ),
    expression(
        "layer_norm_weight_only",
        (distinct("BTC"), real("C")),
        lambda F, x, w: F.layer_norm(x, (x.shape[-1],), w, eps=0.1),
        least=NORMALISED,
    ),
    expression(
        "layer_norm_two_axes",
        (distinct("BTC"), real("TC"), real("TC")),
        lambda F, x, w, b: F.layer_norm(x, x.shape[1:], w, b),
        least=NORMALISED,
    ),
    expression(
        "cosine_similarity",
        (nonzero("BTC"), nonzero("BTC")),
        lambda F, x, y: F.cosine_similarity(x, y, axis=-1),
        lambda F, x, y: F.cosine_similarity(x, y, -1),
        least={"C": 2},
    ),
    expression(
        "cosine_similarity_default",
        (nonzero("BCT"), nonzero("BCT")),
        lambda F, x, y: F.cosine_similarity(x, y),
        least={"C": 2},
    ),
    expression(
        "normalize",
        nonzero("BC"),
        lambda F, x: F.normalize(x, axis=-1),
        lambda F, x: F.normalize(x, dim=-1),
        least={"C": 2},
    ),
]

LINEAR = [
    expression("linear", (real("BTI"), real("HI"), real("H")), lambda F, x, w, b: F.linear(x, w, b)),
    expression("linear_without_bias", (real("BI"), real("HI")), lambda F, x, w: F.linear(x, w)),
    expression("linear_of_vector", (real("I"), real("HI"), real("H")), lambda F, x, w, b: F.linear(x, w, b)),
    expression("embedding", (index("TB", "V"), real("VI")), lambda F, i, w: F.embedding(i, w)),
    expression("embedding_padding", (index("TB", "V"), real("VI")), lambda F, i, w: F.embedding(i, w, padding_idx=0)),
    expression("embedding_padding_negative", (index("TB", "V"), real("VI")), lambda F, i, w: F.embedding(i, w, padding_idx=-1)),
]

LOSSES: list[Case] = []


def loss(name: str, inputs: Any, function: Callable[..., Any], **options: Any) -> None:
    """The loss under each reduction; `function` takes nn.functional, the tensors and `reduction`."""
    LOSSES.extend(
        expression(
            f"{name}_{reduction}",
            inputs,
            lambda F, *xs, reduction=reduction: function(F, *xs, reduction=reduction),
            **options,
        )
        for reduction in ("mean", "sum", "none")
    )


# Four rows whose targets are the classes 0 to 3 in some order: one is ignored, and some always count.
CLASSES = {"C": 4}

for weighted, ignoring, smoothing in itertools.product((False, True), (False, True), (0.0, 0.1)):
    words = ["weighted"] * weighted + ["ignoring"] * ignoring + ["smoothed"] * bool(smoothing)
    settings = {"label_smoothing": smoothing} | ({"ignore_index": IGNORED} if ignoring else {})

    def weighted_loss(F: Any, x: Any, i: Any, w: Any, settings: Any = settings, **reduction: Any) -> Any:
        return F.cross_entropy(x, i, weight=w, **settings, **reduction)

    def plain_loss(F: Any, x: Any, i: Any, settings: Any = settings, **reduction: Any) -> Any:
        return F.cross_entropy(x, i, **settings, **reduction)

    loss(
        "_".join(["cross_entropy", *words]),
        (real("4C"), order("4"), positive("C")) if weighted else (real("4C"), order("4")),
        weighted_loss if weighted else plain_loss,
        least=CLASSES,
        constant=(2,),
    )

loss(
    "cross_entropy_sequence",
    (real("BCT"), index("BT", "C")),
    lambda F, x, i, reduction: F.cross_entropy(x, i, reduction=reduction),
)
loss(
    "cross_entropy_sequence_weighted_smoothed",
    (real("BCT"), index("BT", "C"), positive("C")),
    lambda F, x, i, w, reduction: F.cross_entropy(x, i, w, label_smoothing=0.2, reduction=reduction),
    constant=(2,),
)
loss(
    "cross_entropy_one_row",
    (real("C"), index("", "C")),
    lambda F, x, i, reduction: F.cross_entropy(x, i, reduction=reduction),
)
loss(
    "cross_entropy_probabilities",
    (real("BC"), distribution("BC")),
    lambda F, x, p, reduction: F.cross_entropy(x, p, reduction=reduction),
)
loss(
    "cross_entropy_probabilities_weighted_smoothed",
    (real("BC"), distribution("BC"), positive("C")),
    lambda F, x, p, w, reduction: F.cross_entropy(x, p, w, label_smoothing=0.1, reduction=reduction),
    constant=(2,),
)
loss(
    "cross_entropy_large",
    (real("BC", 1e4), index("B", "C")),
    lambda F, x, i, reduction: F.cross_entropy(x, i, reduction=reduction),
)
LOSSES.append(
    expression("cross_entropy_all_ignored", (real("BC"), index("B", 1)), lambda F, x, i: F.cross_entropy(x, i, ignore_index=0))
)
loss(
    "nll_loss",
    (real("BC"), index("B", "C")),
    lambda F, x, i, reduction: F.nll_loss(x, i, reduction=reduction),
)
loss(
    "nll_loss_weighted_ignoring",
    (real("4C"), order("4"), positive("C")),
    lambda F, x, i, w, reduction: F.nll_loss(x, i, w, ignore_index=IGNORED, reduction=reduction),
    least=CLASSES,
    constant=(2,),
)
loss(
    "nll_loss_sequence",
    (real("BCT"), index("BT", "C")),
    lambda F, x, i, reduction: F.nll_loss(x, i, reduction=reduction),
)
for name in ("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss"):

    def pairwise(F: Any, x: Any, y: Any, name: str = name, **settings: Any) -> Any:
        return getattr(F, name)(x, y, **settings)

    loss(name, (real("BT"), real("BT")), pairwise)
    loss(f"{name}_at_kinks", (ties("BT"), ties("BT")), pairwise, twice=False)  # where a slope bends, it has no slope
    loss(f"{name}_at_zero", (among("BT", -0.25, 0.0, 0.25), among("BT", -0.25, 0.25)), pairwise)
loss(
    "huber_loss_delta",
    (real("BT", 2.0), real("BT", 2.0)),
    lambda F, x, y, reduction: F.huber_loss(x, y, delta=0.7, reduction=reduction),
)
loss(
    "smooth_l1_loss_beta",
    (real("BT", 2.0), real("BT", 2.0)),
    lambda F, x, y, reduction: F.smooth_l1_loss(x, y, beta=0.7, reduction=reduction),
)
loss(
    "smooth_l1_loss_beta_zero",
    (real("BT"), real("BT")),
    lambda F, x, y, reduction: F.smooth_l1_loss(x, y, beta=0.0, reduction=reduction),
)
loss(
    "binary_cross_entropy",
    (between("BT", 0.1, 0.9), between("BT", 0.0, 1.0)),
    lambda F, p, t, reduction: F.binary_cross_entropy(p, t, reduction=reduction),
    constant=(1,),
)
loss(
    "binary_cross_entropy_weighted",
    (between("BT", 0.1, 0.9), between("BT", 0.0, 1.0), positive("BT")),
    lambda F, p, t, w, reduction: F.binary_cross_entropy(p, t, w, reduction=reduction),
    constant=(1, 2),
)
loss(
    "binary_cross_entropy_certain",
    (among("BT", 0.0, 0.5, 1.0), among("BT", 0.0, 0.25, 1.0)),
    lambda F, p, t, reduction: F.binary_cross_entropy(p, t, reduction=reduction),
    constant=(1,),
    twice=False,
)
loss(
    "binary_cross_entropy_with_logits",
    (real("BT", 3.0), between("BT", 0.0, 1.0)),
    lambda F, x, t, reduction: F.binary_cross_entropy_with_logits(x, t, reduction=reduction),
)
loss(
    "binary_cross_entropy_with_logits_far",
    (between("BT", -200.0, 200.0), between("BT", 0.0, 1.0)),
    lambda F, x, t, reduction: F.binary_cross_entropy_with_logits(x, t, reduction=reduction),
)
loss(
    "binary_cross_entropy_with_logits_weighted",
    (real("BT"), between("BT", 0.0, 1.0), positive("BT"), positive("T")),
    lambda F, x, t, w, p, reduction: F.binary_cross_entropy_with_logits(x, t, w, pos_weight=p, reduction=reduction),
    constant=(2, 3),
)
for reduction in ("mean", "sum", "none", "batchmean"):

    def divergence(F: Any, x: Any, p: Any, reduction: str = reduction, **settings: Any) -> Any:
        return F.kl_div(x, p, reduction=reduction, **settings)

    def log_divergence(F: Any, x: Any, q: Any, reduction: str = reduction) -> Any:
        return F.kl_div(x, q, reduction=reduction, log_target=True)

    LOSSES.append(expression(f"kl_div_{reduction}", (real("BC"), distribution("BC")), divergence))
    LOSSES.append(expression(f"kl_div_log_target_{reduction}", (real("BC"), real("BC")), log_divergence))
LOSSES.append(
    expression(
        "kl_div_zero_target",
        (real("BC"), among("BC", 0.0, 1.0)),
        lambda F, x, p: F.kl_div(x, p, reduction="sum"),
        constant=(1,),
    )
)

FUNCTIONAL: list[Case] = [*ACTIVATIONS, *NORMALISATION, *LINEAR, *LOSSES]
