"""Dropout draws at random, so PyTorch's numbers are not ours: the mask is read off the output and held to its law."""

from __future__ import annotations

import numpy as np
import pytest

import tinyseq as ts

BACKENDS = ["numpy", "numba", pytest.param("cupy", marks=pytest.mark.gpu)]
DTYPES = [np.float64, np.float32]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float64", "float32"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_zeroes_some_and_scales_the_rest_forward_and_backward(
    p: float, dtype: type, backend: str, rng: np.random.Generator
) -> None:
    values, seed = rng.uniform(1, 2, (60, 50)).astype(dtype), rng.standard_normal((60, 50)).astype(dtype)
    with ts.use_backend(backend):
        ts.manual_seed(0)
        x = ts.tensor(values, requires_grad=True)
        y = ts.nn.functional.dropout(x, p)
        y.backward(ts.tensor(seed))
        output, gradient = y.detach().numpy(), x.grad.numpy()
    assert output.dtype == gradient.dtype == dtype
    kept = output != 0
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(output, np.where(kept, values / (1 - p), 0), rtol=rtol)
    np.testing.assert_allclose(gradient, np.where(kept, seed / (1 - p), 0), rtol=rtol)
    deviation = np.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 5 * deviation
    for axis in (0, 1):  # elements fall alone, not by rows or columns
        spread = kept.mean(axis=axis).std() / np.sqrt(p * (1 - p) / kept.shape[axis])
        assert 0.6 < spread < 1.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_seed_gives_the_same_mask_and_the_next_call_another(backend: str) -> None:
    with ts.use_backend(backend):
        x = ts.ones((20, 20))
        masks = []
        for _ in range(2):
            ts.manual_seed(7)
            masks.append([ts.nn.functional.dropout(x, 0.5).numpy() for _ in range(2)])
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0][0] != masks[0][1]).mean() > 0.3


@pytest.mark.parametrize(("p", "training", "factor"), [(0.0, True, 1.0), (0.7, False, 1.0), (1.0, True, 0.0)])
def test_ends_of_the_range_and_evaluation(p: float, training: bool, factor: float, rng: np.random.Generator) -> None:
    values = rng.standard_normal((4, 5))
    x = ts.tensor(values, requires_grad=True)
    layer = ts.nn.Dropout(p).train(training)
    y = layer(x)
    y.backward(ts.ones((4, 5), dtype=ts.float64))
    np.testing.assert_array_equal(y.detach().numpy(), factor * values)
    np.testing.assert_array_equal(x.grad.numpy(), np.full((4, 5), factor))


def test_the_layer_draws_what_the_function_draws() -> None:
    x = ts.ones((10, 10))
    ts.manual_seed(3)
    expected = ts.nn.functional.dropout(x, 0.25).numpy()
    ts.manual_seed(3)
    np.testing.assert_array_equal(ts.nn.Dropout(0.25)(x).numpy(), expected)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_outside_the_unit_interval_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        ts.nn.functional.dropout(ts.ones(3), p)
    with pytest.raises(ValueError, match="probability"):
        ts.nn.Dropout(p)
