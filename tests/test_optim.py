"""Optimizers against formulas written out in Python numbers; states, saved and kept; schedules; clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq import optim
from tinyseq.errors import BackendError, CheckpointError, DTypeError, GraphError, NonFiniteError
from tinyseq.io import load, save
from tinyseq.optim import lr_scheduler as schedules
from tinyseq.tensor import Parameter, Tensor

# array-api-strict warns when its dtypes meet NumPy's as keys of one dict.
pytestmark = pytest.mark.filterwarnings("ignore:You are comparing a array_api_strict dtype")

STRICT = StrictBackend()
BACKENDS = ["numpy", "numba", STRICT]
GRADIENTS = [0.5, -1.5, 2.0, 0.25, -0.75]
START = 3.0


# --- the rules, one number at a time, as the papers and PyTorch have them ------------------------------------------------


def sgd(g_of: Callable[[int, float], float], lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False) -> Any:
    p, v = START, None
    for t in range(len(GRADIENTS)):
        g = g_of(t, p) + weight_decay * p
        if momentum:
            v = g if v is None else momentum * v + (1 - dampening) * g
            g = g + momentum * v if nesterov else v
        p -= lr * g
        yield p


def rmsprop(g_of, lr=0.1, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False) -> Any:
    p, s, m, v = START, 0.0, 0.0, 0.0
    for t in range(len(GRADIENTS)):
        g = g_of(t, p) + weight_decay * p
        s = alpha * s + (1 - alpha) * g**2
        m = alpha * m + (1 - alpha) * g
        size = math.sqrt(s - m**2 if centered else s) + eps
        v = momentum * v + g / size
        p -= lr * v
        yield p


def adagrad(g_of, lr=0.1, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10) -> Any:
    p, s = START, initial_accumulator_value
    for t in range(len(GRADIENTS)):
        g = g_of(t, p) + weight_decay * p
        s += g**2
        p -= lr / (1 + t * lr_decay) * g / (math.sqrt(s) + eps)
        yield p


def adam(g_of, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, decoupled=False) -> Any:
    p, m, v, top = START, 0.0, 0.0, 0.0
    for t in range(1, len(GRADIENTS) + 1):
        g = g_of(t - 1, p)
        if decoupled:
            p -= lr * weight_decay * p
        else:
            g += weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        top = max(top, v)
        root = math.sqrt((top if amsgrad else v) / (1 - betas[1] ** t))
        p -= lr * m / (1 - betas[0] ** t) / (root + eps)
        yield p


def adamw(g_of, weight_decay=0.01, **settings) -> Any:
    return adam(g_of, weight_decay=weight_decay, decoupled=True, **settings)


CASES = [
    (optim.SGD, sgd, {}),
    (optim.SGD, sgd, {"weight_decay": 0.1}),
    (optim.SGD, sgd, {"momentum": 0.9}),
    (optim.SGD, sgd, {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    (optim.SGD, sgd, {"momentum": 0.9, "nesterov": True}),
    (optim.RMSprop, rmsprop, {}),
    (optim.RMSprop, rmsprop, {"alpha": 0.9, "eps": 0.1, "weight_decay": 0.1}),
    (optim.RMSprop, rmsprop, {"momentum": 0.9, "centered": True}),
    (optim.Adagrad, adagrad, {}),
    (optim.Adagrad, adagrad, {"lr_decay": 0.5, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 0.1}),
    (optim.Adam, adam, {}),
    (optim.Adam, adam, {"betas": (0.8, 0.9), "eps": 0.1, "weight_decay": 0.1}),
    (optim.Adam, adam, {"betas": (0.5, 0.5), "amsgrad": True}),
    (optim.AdamW, adamw, {}),
    (optim.AdamW, adamw, {"weight_decay": 0.5, "amsgrad": True, "betas": (0.5, 0.5)}),
]
NAMES = [f"{kind.__name__}-{'-'.join(settings) or 'plain'}" for kind, _, settings in CASES]


@pytest.fixture(params=BACKENDS, ids=["numpy", "numba", "strict"])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    with ts.use_backend(request.param) as chosen:
        yield chosen


def walk(optimizer: optim.Optimizer, p: Parameter, sign: float = 1.0) -> list[Any]:
    """The parameter after each step."""
    path = []
    for g in GRADIENTS:
        p.grad = ts.full(p.shape, sign * g, p.dtype)
        optimizer.step()
        path.append(p.tolist())
    return path


@pytest.mark.parametrize(("kind", "formula", "settings"), CASES, ids=NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_every_rule_is_its_formula(backend: Any, kind: Any, formula: Any, settings: Any, dtype: Any) -> None:
    p = Parameter(ts.full((2, 3), START, dtype))
    path = walk(kind([p], lr=0.1, **settings), p)
    wanted = list(formula(lambda t, p: GRADIENTS[t], lr=0.1, **settings))
    tolerance = 1e-12 if dtype == np.float64 else 2e-6
    np.testing.assert_allclose(path, np.broadcast_to(np.array(wanted)[:, None, None], (5, 2, 3)), rtol=tolerance)
    assert p.dtype == dtype


@pytest.mark.parametrize(("kind", "formula", "settings"), CASES, ids=NAMES)
def test_maximize_climbs(kind: Any, formula: Any, settings: Any) -> None:
    down, up = (Parameter(ts.full((3,), START, np.float64)) for _ in range(2))
    paths = walk(kind([down], **settings), down), walk(kind([up], maximize=True, **settings), up, sign=-1.0)
    assert paths[0] == paths[1]


def test_defaults_are_pytorchs() -> None:
    wanted = {
        optim.SGD: {"lr": 1e-3, "momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False},
        optim.Momentum: {"lr": 1e-3, "momentum": 0.9},
        optim.RMSprop: {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "centered": False},
        optim.Adagrad: {"lr": 1e-2, "lr_decay": 0, "weight_decay": 0, "initial_accumulator_value": 0, "eps": 1e-10},
        optim.Adam: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "amsgrad": False},
        optim.AdamW: {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False},
    }
    for kind, settings in wanted.items():
        (group,) = kind([Parameter([1.0])]).param_groups
        assert {name: group[name] for name in settings} == settings, kind


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (3, 5, 2)])
def test_any_shape(backend: Any, shape: tuple[int, ...]) -> None:
    p = Parameter(ts.full(shape, START, np.float64))
    walk(optim.Adam([p], lr=0.1, amsgrad=True), p)
    assert p.shape == shape
    np.testing.assert_allclose(p.numpy(), list(adam(lambda t, p: GRADIENTS[t], amsgrad=True))[-1], rtol=1e-12)


def test_float16_parameters_stay_float16() -> None:
    for name in ("numpy", "numba"):
        with ts.use_backend(name):
            p = Parameter(ts.full((3,), START, np.float16))
            walk(optim.SGD([p], lr=0.5), p)
            assert p.dtype == np.float16
            np.testing.assert_allclose(p.numpy(), START - 0.5 * sum(GRADIENTS), rtol=1e-3)


def test_infinite_parameters_survive_a_zero_gradient(backend: Any) -> None:
    p = Parameter(ts.tensor([-math.inf, 1.0]))
    p.grad = ts.zeros((2,))
    optimizer = optim.Adam([p])
    optimizer.step()
    assert p.tolist() == [-math.inf, 1.0]


def test_the_variance_of_a_constant_gradient_is_not_negative(backend: Any) -> None:
    p = Parameter(ts.full((1,), 0.0, np.float32))
    optimizer = optim.RMSprop([p], centered=True, alpha=0.1, lr=1e-9)
    for _ in range(50):
        p.grad = ts.full((1,), 0.1, np.float32)
        optimizer.step()
    assert math.isfinite(p.item())


# --- groups ------------------------------------------------------------------------------------------------------------


def test_groups_have_their_own_settings(backend: Any) -> None:
    a, b = (Parameter(ts.full((2,), START, np.float64)) for _ in range(2))
    optimizer = optim.SGD([{"params": [a], "lr": 0.5}, {"params": b, "weight_decay": 0.1}], lr=0.1)
    for g in GRADIENTS:
        a.grad = b.grad = ts.full((2,), g, np.float64)
        optimizer.step()
    np.testing.assert_allclose(a.numpy(), list(sgd(lambda t, p: GRADIENTS[t], lr=0.5))[-1], rtol=1e-12)
    np.testing.assert_allclose(b.numpy(), list(sgd(lambda t, p: GRADIENTS[t], weight_decay=0.1))[-1], rtol=1e-12)


def test_parameters_come_as_generators_pairs_and_mappings() -> None:
    a, b = Parameter([1.0]), Parameter([2.0])
    for given in ((p for p in (a, b)), [("a", a), ("b", b)], {"a": a, "b": b}, {"a": a, "b": b}.items()):
        assert optim.SGD(given).param_groups[0]["params"] == [a, b]


def test_parameters_without_a_gradient_are_passed_over(backend: Any) -> None:
    a, b = Parameter(ts.full((2,), START)), Parameter(ts.full((2,), START))
    optimizer = optim.Adam([a, b], weight_decay=0.1)
    a.grad = ts.ones((2,))
    optimizer.step()
    assert b.tolist() == [START, START]
    assert a.tolist() != [START, START]
    assert not [key for key in optimizer.state_dict() if key.startswith("state.1")]


def test_frozen_parameters_may_be_in_the_list() -> None:
    frozen = Parameter([1.0], requires_grad=False)
    optimizer = optim.SGD([frozen, Parameter([1.0])])
    optimizer.zero_grad()
    optimizer.step()
    assert frozen.tolist() == [1.0]


def test_zero_grad() -> None:
    p = Parameter([1.0])
    p.grad = ts.ones((1,))
    optim.SGD([p]).zero_grad()
    assert p.grad is None


def test_lr_is_read_and_set() -> None:
    optimizer = optim.SGD([{"params": [Parameter([1.0])], "lr": 0.5}, {"params": [Parameter([1.0])]}], lr=0.1)
    assert optimizer.lr == 0.5
    optimizer.lr = 0.25
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    with pytest.raises(ValueError, match="lr"):
        optimizer.lr = -1.0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: optim.SGD([]), ValueError, "at least one parameter"),
        (lambda: optim.SGD([{"params": []}]), ValueError, "no parameter"),
        (lambda: optim.SGD(Parameter([1.0])), DTypeError, "list"),
        (lambda: optim.SGD([1.0]), DTypeError, "parameter 0 is float"),
        (lambda: optim.SGD([("bias", np.ones(3))]), DTypeError, "parameter bias is ndarray"),
        (lambda: optim.SGD([ts.tensor([1.0])]), DTypeError, "without requires_grad"),
        (lambda: optim.SGD([Parameter([1.0]) * 2]), GraphError, "result of an operation"),
        (lambda: optim.SGD([Parameter([1.0])], lr=-0.1), ValueError, "lr .*not negative, got -0.1"),
        (lambda: optim.SGD([Parameter([1.0])], lr=math.nan), ValueError, "lr"),
        (lambda: optim.SGD([Parameter([1.0])], momentum=-1), ValueError, "momentum"),
        (lambda: optim.SGD([Parameter([1.0])], nesterov=True), ValueError, "nesterov needs momentum"),
        (lambda: optim.SGD([Parameter([1.0])], momentum=0.9, dampening=0.1, nesterov=True), ValueError, "dampening"),
        (lambda: optim.Adam([Parameter([1.0])], betas=(0.9, 1.0)), ValueError, r"betas in \[0, 1\)"),
        (lambda: optim.Adam([Parameter([1.0])], eps=-1e-8), ValueError, "eps"),
        (lambda: optim.Adam([{"params": [Parameter([1.0])], "beta": 1}]), ValueError, "no setting 'beta'; it has amsgrad"),
        (lambda: optim.Adam([{"parameters": []}]), DTypeError, "'params'"),
    ],
)
def test_what_is_wrong_is_said(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_a_parameter_is_given_once() -> None:
    p = Parameter([1.0])
    for given in ([p, p], [{"params": [p]}, {"params": [p]}]):
        with pytest.raises(ValueError, match="given twice"):
            optim.SGD(given)


def test_a_gradient_on_another_backend_changes_nothing() -> None:
    a, b = Parameter([1.0]), Parameter([1.0])
    optimizer = optim.SGD([a, b])
    a.grad = ts.ones((1,))
    with ts.use_backend(STRICT):
        b.grad = ts.ones((1,))
    with pytest.raises(BackendError, match="gradient of parameter 1 is on another backend"):
        optimizer.step()
    assert a.tolist() == [1.0]


# --- who holds an array ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_what_was_read_earlier_stays(name: str) -> None:
    with ts.use_backend(name):
        p = Parameter(ts.full((4,), START))
        optimizer = optim.Adam([p], amsgrad=True, lr=0.1)
        p.grad = ts.ones((4,))
        optimizer.step()
        saved, read, twin = optimizer.state_dict(), p.numpy(), p.detach()
        before = {key: t.tolist() for key, t in saved.items()}, read.tolist()
        optimizer.step()
        assert ({key: t.tolist() for key, t in saved.items()}, read.tolist()) == before
        assert twin.tolist() == before[1] != p.tolist()
        assert p.grad.tolist() == [1.0] * 4


def test_a_graph_keeps_the_values_that_it_was_made_with(backend: Any) -> None:
    p = Parameter(ts.full((2,), START))
    optimizer = optim.SGD([p], lr=1.0)
    loss = (p * p).sum()
    p.grad = ts.ones((2,))
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    assert p.grad.tolist() == [2 * START, 2 * START]


def test_a_gradient_may_share_the_parameters_array(backend: Any) -> None:
    p = Parameter(ts.full((2,), START))
    p.grad = p.detach()
    optim.SGD([p], lr=0.5, momentum=0.5).step()
    assert p.tolist() == [START / 2, START / 2]


def test_numba_writes_in_place_where_nobody_looks() -> None:
    with ts.use_backend("numba"):
        p = Parameter(ts.full((4,), START))
        optimizer = optim.Adam([p])
        p.grad = ts.ones((4,))
        optimizer.step()
        addresses = [t.data.ctypes.data for t in (p, *optimizer._states[0].values())]
        optimizer.step()
        assert [t.data.ctypes.data for t in (p, *optimizer._states[0].values())] == addresses


# --- saving ------------------------------------------------------------------------------------------------------------


def build(kind: Any, settings: Any, dtype: Any) -> tuple[list[Parameter], optim.Optimizer]:
    rng = np.random.default_rng(5)
    params = [Parameter(ts.tensor(rng.standard_normal(shape).astype(dtype))) for shape in ((3, 4), (4,), (2,))]
    groups = [{"params": params[:2], "lr": 0.07}, {"params": params[2:], "weight_decay": 0.01}]
    return params, kind(groups, lr=1 / 3, **settings)


def learn(params: list[Parameter], optimizer: optim.Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        for i, p in enumerate(params):
            if (i, step) != (2, 0):  # the last parameter starts a step later
                ((p * (i + 1) - step).tanh() * p).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("kind", "formula", "settings"), CASES, ids=NAMES)
def test_a_run_resumes_bit_for_bit(tmp_path: Path, kind: Any, formula: Any, settings: Any, dtype: Any) -> None:
    for name in ("numpy", "numba"):
        with ts.use_backend(name):
            whole, optimizer = build(kind, settings, dtype)
            learn(whole, optimizer, range(7))
            first, optimizer = build(kind, settings, dtype)
            learn(first, optimizer, range(3))
            save(tmp_path / "optimizer.safetensors", optimizer.state_dict())
            save(tmp_path / "params.safetensors", {str(i): p for i, p in enumerate(first)})
            second, optimizer = build(kind, settings, dtype)
            optimizer.lr = 9.0  # the saved rates come back
            optimizer.load_state_dict(load(tmp_path / "optimizer.safetensors"))
            for key, value in load(tmp_path / "params.safetensors").items():
                second[int(key)].data = value.data
            learn(second, optimizer, range(3, 7))
            for p, q in zip(whole, second, strict=True):
                np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_a_state_moves_to_another_backend() -> None:
    def train(p: Parameter, optimizer: optim.Optimizer) -> None:
        p.grad = ts.ones((2,), np.float64)
        optimizer.step()

    p = Parameter(ts.full((2,), START, np.float64))
    optimizer = optim.Adam([p])
    train(p, optimizer)
    with ts.use_backend(STRICT):
        q = Parameter(p.detach().to(STRICT))
        other = optim.Adam([q])
        other.load_state_dict(optimizer.state_dict())
        train(q, other)
        moved = q.tolist()
    train(p, optimizer)
    assert p.tolist() == moved


def test_loaded_states_are_copies() -> None:
    params, optimizer = build(optim.Adam, {}, np.float32)
    learn(params, optimizer, range(2))
    saved = optimizer.state_dict()
    before = {key: t.tolist() for key, t in saved.items()}
    others, other = build(optim.Adam, {}, np.float32)
    other.load_state_dict(saved)
    learn(others, other, range(2, 4))
    assert {key: t.tolist() for key, t in saved.items()} == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("state.0.exp_avg"), "lacks state.0.exp_avg"),
        (lambda s: s.pop("state.1.step"), "lacks state.1.step"),
        (lambda s: s.pop("groups.1.eps"), "lacks groups.1.eps"),
        (lambda s: s.update({"state.0.extra": ts.zeros((3, 4))}), "unknown state.0.extra"),
        (lambda s: s.update({"state.9.step": ts.tensor(1)}), "unknown state.9.step"),
        (lambda s: s.update({"weight": ts.zeros((1,))}), "unknown weight"),
        (lambda s: s.update({"groups.0.momentum": ts.zeros(())}), "unknown groups.0.momentum"),
        (lambda s: s.update({"state.0.exp_avg": ts.zeros((4, 3))}), r"state.0.exp_avg has shape \(4, 3\)"),
        (lambda s: s.update({"state.0.exp_avg": ts.zeros((3, 4), np.float64)}), "float64"),
        (lambda s: s.update({"groups.0.parameters": ts.tensor(5)}), "saved with 5 parameters, but has 2"),
        (lambda s: s.update({"groups.0.lr": ts.tensor(-1.0)}), "group 0 holds .* lr"),
        (lambda s: s.update({"groups.0.betas": ts.tensor([0.5])}), "2 numbers are needed"),
        (lambda s: s.update({"state.0.step": ts.tensor([1, 2])}), r"state.0.step should be a number .* \[1, 2\]"),
        (lambda s: s.update({"groups.1.amsgrad": ts.tensor(True)}), "lacks state.2.max_exp_avg_sq"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, words: str) -> None:
    params, optimizer = build(optim.Adam, {}, np.float32)
    learn(params, optimizer, range(2))
    state = optimizer.state_dict()
    before = {key: t.tolist() for key, t in state.items()}
    change(state)
    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state_dict(state)
    assert {key: t.tolist() for key, t in optimizer.state_dict().items()} == before


# --- clipping ----------------------------------------------------------------------------------------------------------


def with_gradients(*values: Any) -> list[Parameter]:
    params = [Parameter(ts.zeros(np.shape(v), np.float64)) for v in values]
    for p, v in zip(params, values, strict=True):
        p.grad = ts.tensor(np.array(v, np.float64))
    return params


@pytest.mark.parametrize(("p", "norm"), [(2.0, 13.0), (1.0, 19.0), (math.inf, 12.0), (3.0, (27 + 64 + 1728) ** (1 / 3))])
def test_clip_grad_norm(backend: Any, p: float, norm: float) -> None:
    params = [*with_gradients([3.0, -4.0], [[12.0]]), Parameter([1.0])]
    total = optim.clip_grad_norm(params, 6.0, p)
    assert isinstance(total, Tensor)
    assert total.shape == ()
    np.testing.assert_allclose(total.item(), norm, rtol=1e-12)
    factor = min(1, 6.0 / (norm + 1e-6))
    np.testing.assert_allclose(params[0].grad.numpy(), [3 * factor, -4 * factor], rtol=1e-12)
    np.testing.assert_allclose(params[1].grad.numpy(), [[12 * factor]], rtol=1e-12)
    assert params[2].grad is None


def test_clip_grad_norm_leaves_small_gradients_alone(backend: Any) -> None:
    params = with_gradients([0.3, -0.1], [[0.7]])
    optim.clip_grad_norm(params, 1.0)
    assert [p.grad.tolist() for p in params] == [[0.3, -0.1], [[0.7]]]


def test_clip_grad_norm_of_mixed_dtypes_and_empty_tensors() -> None:
    a, b, c = Parameter(ts.zeros((1,))), Parameter(ts.zeros((1,), np.float64)), Parameter(ts.zeros((0,)))
    a.grad, b.grad, c.grad = ts.tensor([3.0]), ts.tensor([4.0], np.float64), ts.zeros((0,))
    assert optim.clip_grad_norm([a, b, c], 2.5).item() == pytest.approx(5.0)
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)
    assert a.grad.item() == pytest.approx(1.5, rel=1e-5)
    assert optim.clip_grad_norm([c], 1.0, math.inf).item() == 0.0


def test_clip_grad_norm_of_nothing_is_zero() -> None:
    assert optim.clip_grad_norm([], 1.0).item() == 0.0
    assert optim.clip_grad_norm([Parameter([1.0])], 1.0).item() == 0.0
    assert optim.clip_grad_norm(iter([("a", Parameter([1.0]))]), 1.0).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite(bad: float) -> None:
    params = with_gradients([1.0, bad])
    with pytest.raises(NonFiniteError, match=f"norm is {bad}"):
        optim.clip_grad_norm(params, 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(params[0].grad.numpy(), [1.0, bad])
    with np.errstate(invalid="ignore"):
        assert not math.isfinite(optim.clip_grad_norm(params, 1.0).item())
    assert math.isnan(params[0].grad.tolist()[1])
    assert math.isnan(params[0].grad.tolist()[0]) or params[0].grad.tolist()[0] == 0


def test_clipping_refuses_nonsense() -> None:
    for arguments in ((-1.0,), (math.nan,), (1.0, 0.0), (1.0, -math.inf)):
        with pytest.raises(ValueError, match="clip_grad_norm needs"):
            optim.clip_grad_norm([Parameter([1.0])], *arguments)
    with pytest.raises(ValueError, match="clip_grad_value needs"):
        optim.clip_grad_value([Parameter([1.0])], -1.0)


def test_clip_grad_value(backend: Any) -> None:
    params = [*with_gradients([3.0, -0.5, -7.0]), Parameter([1.0])]
    optim.clip_grad_value(params, 2.0)
    assert params[0].grad.tolist() == [2.0, -0.5, -2.0]


# --- schedules ---------------------------------------------------------------------------------------------------------


def optimizer_at(*rates: float) -> optim.Optimizer:
    return optim.SGD([{"params": [Parameter([1.0])], "lr": rate} for rate in rates])


SCHEDULES: dict[str, tuple[Callable[[optim.Optimizer], schedules.Schedule], Callable[[int], float]]] = {
    "step": (lambda o: schedules.StepLR(o, 3, 0.5), lambda t: 0.5 ** (t // 3)),
    "multi-step": (lambda o: schedules.MultiStepLR(o, [5, 2], 0.5), lambda t: 0.5 ** ((t >= 2) + (t >= 5))),
    "exponential": (lambda o: schedules.ExponentialLR(o, 0.9), lambda t: 0.9**t),
    "constant": (lambda o: schedules.ConstantLR(o), lambda t: 1 / 3 if t < 5 else 1.0),
    "linear": (lambda o: schedules.LinearLR(o, 0.1, 0.9, 4), lambda t: 0.1 + 0.2 * min(t, 4)),
    "polynomial": (lambda o: schedules.PolynomialLR(o, 4, 2.0), lambda t: (1 - min(t, 4) / 4) ** 2),
    "cosine": (lambda o: schedules.CosineAnnealingLR(o, 6), lambda t: (1 + math.cos(math.pi * t / 6)) / 2),
    "lambda": (lambda o: schedules.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    "sequential": (
        lambda o: schedules.SequentialLR(
            o,
            [schedules.LinearLR(o, 0.25, total_iters=3), schedules.ConstantLR(o, 0.5, 99), schedules.StepLR(o, 1, 0.5)],
            [3, 5],
        ),
        lambda t: [0.25, 0.5, 0.75, 0.5, 0.5, 1.0, 0.5, 0.25, 0.125, 0.0625][t],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_its_function(name: str) -> None:
    make, factor = SCHEDULES[name]
    optimizer = optimizer_at(2.0, 0.5)
    schedule = make(optimizer)
    for t in range(10):
        np.testing.assert_allclose(schedule.get_last_lr(), [2.0 * factor(t), 0.5 * factor(t)], rtol=1e-12, atol=1e-15)
        assert schedule.lr == optimizer.lr == schedule.get_last_lr()[0]
        schedule.step()


def test_cosine_has_a_floor() -> None:
    optimizer = optimizer_at(1.0)
    schedule = schedules.CosineAnnealingLR(optimizer, 2, eta_min=0.2)
    rates = []
    for _ in range(5):
        rates.append(optimizer.lr)
        schedule.step()
    np.testing.assert_allclose(rates, [1.0, 0.6, 0.2, 0.6, 1.0], rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_resumes(tmp_path: Path, name: str) -> None:
    make, _ = SCHEDULES[name]
    optimizer = optimizer_at(2.0, 0.5)
    schedule = make(optimizer)
    for _ in range(4):
        schedule.step()
    save(tmp_path / "s.safetensors", schedule.state_dict())
    save(tmp_path / "o.safetensors", optimizer.state_dict())
    for schedule_first in (False, True):
        other = optimizer_at(2.0, 0.5)
        resumed = make(other) if schedule_first else None
        other.load_state_dict(load(tmp_path / "o.safetensors"))
        resumed = resumed or make(other)
        resumed.load_state_dict(load(tmp_path / "s.safetensors"))
        assert resumed.get_last_lr() == schedule.get_last_lr()
        resumed.step()
        later = make(optimizer_at(2.0, 0.5))
        for _ in range(5):
            later.step()
        assert resumed.get_last_lr() == later.get_last_lr()
    with pytest.raises(CheckpointError, match="saves"):
        schedule.load_state_dict({"epoch": ts.tensor(1)})


def test_two_schedules_at_once_are_refused() -> None:
    optimizer = optimizer_at(1.0)
    first, second = schedules.ExponentialLR(optimizer, 0.5), schedules.StepLR(optimizer, 1, 0.1)
    first.step()
    with pytest.raises(ValueError, match="combine schedules"):
        second.step()


def test_each_group_may_have_its_function() -> None:
    optimizer = optimizer_at(1.0, 1.0)
    schedules.LambdaLR(optimizer, [lambda t: 1.0, lambda t: 1 / (1 + t)]).step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: schedules.StepLR(o, 0),
        lambda o: schedules.CosineAnnealingLR(o, 0),
        lambda o: schedules.LambdaLR(o, [abs, abs]),
        lambda o: schedules.SequentialLR(o, [schedules.StepLR(o, 1)], [1]),
        lambda o: schedules.SequentialLR(o, [schedules.StepLR(o, 1), schedules.StepLR(optimizer_at(1.0), 1)], [1]),
        lambda o: schedules.ReduceLROnPlateau(o, mode="smallest"),
        lambda o: schedules.ReduceLROnPlateau(o, factor=1.0),
        lambda o: schedules.ReduceLROnPlateau(o, min_lr=[0.1, 0.1]),
    ],
)
def test_schedules_refuse_nonsense(make: Any) -> None:
    with pytest.raises(ValueError, match=r"must|needs|is 'min'"):
        make(optimizer_at(1.0))


def test_a_schedule_takes_an_optimizer() -> None:
    with pytest.raises(TypeError, match="takes an optimizer"):
        schedules.StepLR([Parameter([1.0])], 1)


def plateau(measures: list[float], **settings: Any) -> list[float]:
    optimizer = optimizer_at(1.0)
    schedule = schedules.ReduceLROnPlateau(optimizer, **settings)
    rates = []
    for measure in measures:
        schedule.step(measure)
        rates.append(round(optimizer.lr, 12))
    return rates


def test_reduce_on_plateau() -> None:
    flat = [1.0] * 8
    assert plateau(flat, patience=2) == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert plateau(flat, patience=1, cooldown=2, factor=0.5) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert plateau(flat, patience=0, min_lr=0.3, factor=0.5)[:4] == [1.0, 0.5, 0.3, 0.3]
    assert plateau([1.0, math.nan, math.nan], patience=1) == [1.0, 1.0, 0.1]
    falling = [1.0, 0.95, 0.90, 0.85]
    assert plateau(falling, patience=0) == [1.0] * 4
    assert plateau(falling, patience=0, threshold=0.07, factor=0.5) == [1.0, 0.5, 0.5, 0.25]
    assert plateau(falling, patience=0, threshold=0.07, threshold_mode="abs", factor=0.5) == [1.0, 0.5, 0.5, 0.25]
    assert plateau(falling, patience=0, mode="max", factor=0.5) == [1.0, 0.5, 0.25, 0.125]
    assert plateau([1.0, 2.0, 3.0], patience=0, mode="max") == [1.0] * 3


def test_reduce_on_plateau_resumes() -> None:
    optimizer = optimizer_at(1.0)
    schedule = schedules.ReduceLROnPlateau(optimizer, patience=2, cooldown=1)
    for measure in [3.0, 2.0, 2.0, 2.0]:
        schedule.step(ts.tensor(measure))
    other = optimizer_at(1.0)
    resumed = schedules.ReduceLROnPlateau(other, patience=2, cooldown=1)
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    for measure in [2.0, 2.0, 2.0, 2.0, 2.0]:
        schedule.step(measure)
        resumed.step(measure)
        assert resumed.lr == schedule.lr
    assert schedule.lr == pytest.approx(0.01)
