"""Module: what it finds, what it saves and loads, and its settings."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.nn import Linear, Module, Sequential


class Block(Module):
    def __init__(self) -> None:
        self.scale = ts.Parameter([2.0, 3.0])
        self.count = ts.tensor(7)
        self._hidden = ts.Parameter([9.0])
        self.label = "a block"

    def __call__(self, x: ts.Tensor) -> ts.Tensor:
        return x * self.scale


class Net(Module):
    """Everything in which parameters may stand."""

    def __init__(self) -> None:
        self.weight = ts.Parameter(np.ones((2, 2), np.float32))
        self.blocks = [Block(), (Block(), {"deep": Block()})]
        self.by_name = {"b": ts.Parameter([1.0]), "a": [ts.Parameter([2.0])]}
        self.plain = ts.tensor([5.0], requires_grad=True)
        self.buffer = ts.tensor([4.0])
        self.nothing = None

    def __call__(self, x: ts.Tensor) -> ts.Tensor:
        return self.blocks[0](x) @ self.weight


class Tied(Module):
    def __init__(self) -> None:
        self.first = Linear(2, 2, bias=False)
        self.second = Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.again = self.first


PARAMETERS = [
    "weight",
    "blocks.0.scale",
    "blocks.1.0.scale",
    "blocks.1.1.deep.scale",
    "by_name.b",
    "by_name.a.0",
    "plain",
]


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_parameters_in_the_order_of_the_attributes() -> None:
    net = Net()
    named = dict(net.named_parameters())
    assert list(named) == PARAMETERS
    assert named["blocks.1.1.deep.scale"] is net.blocks[1][1]["deep"].scale
    assert named["by_name.a.0"] is net.by_name["a"][0]
    assert [id(p) for p in net.parameters()] == [id(p) for p in named.values()]


def test_buffers_are_constants() -> None:
    net = Net()
    assert [name for name, _ in net.named_buffers()] == [
        "blocks.0.count",
        "blocks.1.0.count",
        "blocks.1.1.deep.count",
        "buffer",
    ]
    assert next(iter(net.buffers())) is net.blocks[0].count


def test_modules() -> None:
    net = Net()
    assert [name for name, _ in net.named_modules()] == ["", "blocks.0", "blocks.1.0", "blocks.1.1.deep"]
    assert [name for name, _ in net.named_children()] == ["blocks.0", "blocks.1.0", "blocks.1.1.deep"]
    outer = Sequential(net, Sequential(Linear(1, 1)))
    assert [name for name, _ in outer.named_modules()][-3:] == ["0.blocks.1.1.deep", "1", "1.0"]
    assert [type(child) for child in outer.children()] == [Net, Sequential]
    assert next(iter(outer.modules())) is outer


def test_a_frozen_parameter_is_still_a_parameter() -> None:
    net = Net()
    net.weight.requires_grad = False
    assert "weight" in dict(net.named_parameters())


def test_the_result_of_an_operation_is_neither_parameter_nor_buffer() -> None:
    net = Net()
    net.last = net(ts.ones((1, 2)))
    assert list(dict(net.named_parameters())) == PARAMETERS
    assert "last" not in net.state_dict()


def test_shared_parameters_are_reported_once() -> None:
    tied = Tied()
    assert [name for name, _ in tied.named_parameters()] == ["first.weight"]
    assert [name for name, _ in tied.named_modules()] == ["", "first", "second"]
    assert list(tied.state_dict()) == ["first.weight", "second.weight", "again.weight"]


def test_a_module_that_knows_its_parent() -> None:
    net = Net()
    net.blocks[0].parent = net
    assert list(dict(net.named_parameters())) == PARAMETERS
    assert len(list(net.modules())) == 4
    assert "blocks.0.parent" not in repr(net)


def test_a_parameter_takes_the_name_of_its_first_attribute() -> None:
    block, other = Block(), Block()
    other.factor = block.scale
    assert block.scale.name == "scale"
    named = ts.Parameter([1.0])
    named.name = "mine"
    block.scale = named
    assert block.scale.name == "mine"


# --- calling ----------------------------------------------------------------------------------------------------------


def test_a_call_marks_what_it_records() -> None:
    net = Net()
    y = net(ts.ones((1, 2)))
    inner = y.node.parents[0]
    assert y.node.scope == (None, "module", "Net")
    assert inner.scope == ((None, "module", "Net"), "module", "Block")
    assert (y * 2).node.scope is None


def test_a_failing_call_leaves_no_mark() -> None:
    with pytest.raises(ts.ShapeError):
        Net()(ts.ones((1, 5)))
    assert (Block().scale * 2).node.scope is None


def test_an_inherited_call_is_marked_as_the_subclass() -> None:
    class Special(Block):
        pass

    assert Special()(ts.ones(2)).node.scope == (None, "module", "Special")


def test_without_call_it_says_what_to_do() -> None:
    class Silent(Module):
        def forward(self, x: Any) -> Any:
            return x

    with pytest.raises(NotImplementedError, match="Silent does not say what it computes; give it a method __call__"):
        Silent()(1)


def test_it_is_freed_without_the_cycle_collector() -> None:
    gc.disable()
    try:
        net = Net()
        net(ts.ones((1, 2))).sum().backward()
        gone = weakref.ref(net), weakref.ref(net.weight)
        del net
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


# --- saving and loading -----------------------------------------------------------------------------------------------


def test_state_round_trip() -> None:
    net, other = Net(), Net()
    net.weight.data[:] = 8.0
    net.blocks[0].count = ts.tensor(42)
    weight = other.weight
    assert other.load_state_dict(net.state_dict()) == ([], [])
    assert other.weight is weight
    assert weight.requires_grad
    np.testing.assert_array_equal(weight.detach().numpy(), np.full((2, 2), 8.0))
    assert other.blocks[0].count.item() == 42
    assert not any(value.requires_grad for value in net.state_dict().values())


def test_state_is_a_snapshot() -> None:
    net = Net()
    state = net.state_dict()
    with ts.no_grad():
        net.weight[0] = 100.0
    np.testing.assert_array_equal(state["weight"].numpy(), np.ones((2, 2)))


def test_loading_copies() -> None:
    layer, values = Linear(2, 1, bias=False), np.ones((1, 2), np.float32)
    layer.load_state_dict({"weight": values})
    values[:] = 5
    assert layer.weight.tolist() == [[1.0, 1.0]]


def test_loading_keeps_a_recorded_graph_right() -> None:
    layer = Linear(1, 1, bias=False)
    layer.load_state_dict({"weight": np.array([[3.0]], np.float32)})
    x = ts.tensor([[1.0]], requires_grad=True)
    y = layer(x)
    layer.load_state_dict({"weight": np.array([[7.0]], np.float32)})
    y.sum().backward()
    assert x.grad.tolist() == [[3.0]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("0.bias"), "missing are '0.bias'"),
        (lambda s: s.update(extra=np.zeros(1)), "unexpected are 'extra'"),
        (lambda s: s.update({"0.weight": np.zeros((2, 3), np.float32)}), r"'0.weight' has shape \(2, 3\) where \(3, 2\)"),
        (lambda s: s.update({"1.bias": np.zeros(1)}), "'1.bias' is float64 where float32 is needed"),
        (lambda s: s.update({"1.bias": "text"}), "'1.bias' is no tensor"),
        (lambda s: (s.pop("0.bias"), s.update(extra=1.0)), "missing are '0.bias'; unexpected are 'extra'$"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change: Any, sentence: str) -> None:
    model = Sequential(Linear(2, 3), Linear(3, 1))
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    state: dict[str, Any] = {name: np.zeros_like(value) for name, value in before.items()}
    change(state)
    with pytest.raises(ts.CheckpointError, match=f"does not fit Sequential: .*{sentence}") as caught:
        model.load_state_dict(state)
    assert "\n" not in str(caught.value)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_many_missing_names_are_counted() -> None:
    model = Sequential(*(Linear(1, 1) for _ in range(10)))
    with pytest.raises(ts.CheckpointError, match=r"'3.bias', and 12 more$"):
        model.load_state_dict({})


def test_not_strict_takes_what_fits_and_says_what_did_not() -> None:
    layer = Linear(2, 1)
    bias = layer.bias.tolist()
    state = {"weight": np.ones((1, 2), np.float32), "extra": 1}
    assert layer.load_state_dict(state, strict=False) == (["bias"], ["extra"])
    assert layer.weight.tolist() == [[1.0, 1.0]]
    assert layer.bias.tolist() == bias
    with pytest.raises(ts.CheckpointError, match="'weight' has shape"):
        layer.load_state_dict({"weight": np.ones((2, 1), np.float32)}, strict=False)


def test_of_a_shared_parameter_one_name_is_enough_and_two_values_are_not() -> None:
    tied, ones = Tied(), np.ones((2, 2), np.float32)
    assert tied.load_state_dict({"second.weight": ones}) == ([], [])
    assert tied.first.weight.tolist() == ones.tolist()
    tied.load_state_dict({"first.weight": ones * 2, "second.weight": ones * 2})
    with pytest.raises(ts.CheckpointError, match=r"'second.weight' is shared under several names"):
        tied.load_state_dict({"first.weight": ones, "second.weight": ones * 3})
    assert tied.first.weight.tolist() == (ones * 2).tolist()


def test_two_tensors_of_one_name_are_refused() -> None:
    net = Net()
    net.by_name["a.0"] = ts.tensor([0.0])
    with pytest.raises(ts.GraphError, match=r"called 'by_name.a.0'"):
        net.state_dict()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_train_and_eval_reach_every_module() -> None:
    net = Net()
    assert net.training
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    net.train()
    assert all(module.training for module in net.modules())


def test_requires_grad_and_zero_grad() -> None:
    net = Net()
    net(ts.ones((1, 2))).sum().backward()
    assert net.weight.grad is not None
    net.zero_grad()
    assert net.weight.grad is None
    net.blocks[0].requires_grad_(False)
    net(ts.ones((1, 2))).sum().backward()
    assert net.weight.grad.tolist() == [[2.0, 2.0], [3.0, 3.0]]
    assert net.blocks[0].scale.grad is None
    net.zero_grad()
    net.blocks[0].requires_grad_()
    assert net.blocks[0].scale.name == "scale"


def test_astype_casts_in_place() -> None:
    net = Net()
    weight = net.weight
    scale = net.blocks[0].scale
    assert net.astype("float64") is net
    assert (weight.dtype, scale.dtype, net.buffer.dtype) == (np.float64,) * 3
    assert net.blocks[0].count.dtype == np.int64
    net(ts.ones((1, 2), np.float64)).sum().backward()
    assert scale.grad.dtype == np.float64
    assert scale.grad.tolist() == [2.0, 2.0]
    assert scale.name == "scale"


def test_to_the_same_backend_changes_nothing() -> None:
    net = Net()
    net(ts.ones((1, 2))).sum().backward()
    array = net.weight.data
    assert net.to("numpy").weight.data is array
    assert net.weight.grad is not None


def test_a_copy_shares_nothing_but_its_own_ties() -> None:
    tied = Tied()
    twin = copy.deepcopy(tied)
    assert twin.second.weight is twin.first.weight
    assert twin.again is twin.first
    with ts.no_grad():
        twin.first.weight[0] = 99.0
    assert 99.0 not in tied.first.weight.numpy()


def test_repr_shows_the_tree() -> None:
    model = Sequential(Linear(2, 3), ts.tanh, ts.nn.Dropout(0.5), Block())
    assert repr(model) == "\n".join(
        [
            "Sequential: 11 parameters",
            "  0: Linear(in_features=2, out_features=3): 9 parameters",
            "    weight: (3, 2) float32",
            "    bias: (3,) float32",
            "  2: Dropout(p=0.5): 0 parameters",
            "  3: Block(label='a block'): 2 parameters",
            "    scale: (2,) float32",
            "    count: () int64 (buffer)",
        ]
    )


def test_sequential() -> None:
    model = Sequential(Linear(2, 3), ts.tanh, Linear(3, 1))
    assert len(model) == 3
    assert model[1] is ts.tanh
    assert model[-1] is list(model)[2]
    x = ts.ones((4, 2))
    np.testing.assert_array_equal(model(x).detach().numpy(), model[2](model[0](x).tanh()).detach().numpy())
    assert Sequential()(3) == 3
