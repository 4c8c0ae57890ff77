"""Embedding beyond the look-up: vectors from elsewhere, bounded norms, tables that an output layer shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinyseq as ts
from tinyseq import nn


class Tied(nn.Module):
    """The least language model: the table that reads also writes."""

    def __init__(self) -> None:
        self.embedding = nn.Embedding(5, 3, padding_idx=0, dtype="float64")
        self.output = nn.Linear(3, 5, dtype="float64")
        self.output.weight = self.embedding.weight

    def __call__(self, ids: ts.Tensor) -> ts.Tensor:
        return self.output(self.embedding(ids).tanh())


def test_vectors_from_elsewhere() -> None:
    table = np.arange(6.0).reshape(3, 2)
    layer = nn.Embedding.from_pretrained(table, padding_idx=-1)
    table[:] = 7
    assert layer([2, 0]).tolist() == [[4.0, 5.0], [0.0, 1.0]]  # a copy, the padding's row as it was
    assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (3, 2, 2)
    assert not layer.weight.requires_grad
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    learned = nn.Embedding.from_pretrained(np.ones((3, 2)), freeze=False, padding_idx=1)
    learned([0, 1, 1]).sum().backward()
    assert learned.weight.grad.tolist() == [[1, 1], [0, 0], [0, 0]]
    with pytest.raises(ts.ShapeError, match=r"table \(V, E\), got shape \(3,\)"):
        nn.Embedding.from_pretrained(np.ones(3))
    with pytest.raises(ts.ShapeError, match="padding_idx 3 is not among the 3 rows"):
        nn.Embedding.from_pretrained(np.ones((3, 2)), padding_idx=3)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0])
def test_long_vectors_are_shortened_when_they_are_read(norm_type: float, rng: np.random.Generator) -> None:
    layer = nn.Embedding(6, 3, max_norm=1.0, norm_type=norm_type, dtype="float64")
    layer.weight.data = ts.tensor(rng.standard_normal((6, 3)) * np.array([[0.05], [3], [3], [3], [0.05], [3]])).data
    before = layer.weight.detach().numpy().copy()
    out = layer(ts.tensor([[0, 1], [1, 2]]))
    after = layer.weight.detach().numpy()
    sizes = (np.abs(before) ** norm_type).sum(1) ** (1 / norm_type)
    want = before.copy()
    for row in (1, 2):
        want[row] = before[row] / (sizes[row] + 1e-7)
    np.testing.assert_allclose(after, want, rtol=1e-14)
    np.testing.assert_array_equal(out.detach().numpy(), after[[[0, 1], [1, 2]]])
    out.sum().backward()
    assert layer.weight.grad.numpy()[:, 0].tolist() == [1, 2, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="max_norm >= 0"):
        nn.Embedding(2, 2, max_norm=-1.0)


def test_max_norm_equals_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    table, ids = rng.standard_normal((6, 3)), np.array([[0, 1, 1], [5, 2, 0]])
    ours = nn.Embedding(6, 3, padding_idx=2, max_norm=1.2, dtype="float64")
    ours.load_state_dict({"weight": table})
    theirs = torch.nn.Embedding(6, 3, padding_idx=2, max_norm=1.2, dtype=torch.float64)
    theirs.load_state_dict({"weight": torch.tensor(table)})
    got, want = ours(ts.tensor(ids)), theirs(torch.tensor(ids))
    (got * got).sum().backward()
    (want * want).sum().backward()
    np.testing.assert_allclose(got.detach().numpy(), want.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.weight.detach().numpy(), theirs.weight.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), rtol=1e-12)


def test_tied_weights_are_one_parameter_with_the_sum_of_both_gradients() -> None:
    model, ids = Tied(), ts.tensor([[1, 0], [2, 1]])
    assert [name for name, _ in model.named_parameters()] == ["embedding.weight", "output.bias"]
    model(ids).sum().backward()
    table = model.embedding.weight.detach().numpy()
    rows = table[ids.numpy().reshape(-1)]
    from_output = np.tile(np.tanh(rows).sum(0), (5, 1))
    from_reading = np.zeros((5, 3))
    np.add.at(from_reading, ids.numpy().reshape(-1), (1 - np.tanh(rows) ** 2) * table.sum(0))
    from_reading[0] = 0  # padding gets none as an input, but is an output like the others
    np.testing.assert_allclose(model.embedding.weight.grad.numpy(), from_output + from_reading, rtol=1e-12)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, other, ids = Tied(), Tied(), ts.tensor([[1, 2]])
    state = model.state_dict()
    assert sorted(state) == ["embedding.weight", "output.bias", "output.weight"]
    ts.save(tmp_path / "tied.safetensors", state)
    other.load_state_dict(ts.load(tmp_path / "tied.safetensors"))
    np.testing.assert_array_equal(other(ids).detach().numpy(), model(ids).detach().numpy())
    optimizer = ts.optim.Adam(other.parameters(), lr=0.1)
    other(ids).sum().backward()
    optimizer.step()
    assert other.output.weight is other.embedding.weight
    assert not np.array_equal(other.embedding.weight.detach().numpy(), model.embedding.weight.detach().numpy())
    np.testing.assert_array_equal(state["embedding.weight"].numpy(), model.embedding.weight.detach().numpy())
    other.astype("float32")
    assert other.output.weight is other.embedding.weight
    state["output.weight"] = state["output.weight"] + 1
    with pytest.raises(ts.CheckpointError, match="shared under several names that have different values"):
        other.astype("float64").load_state_dict(state)
