"""The running mean of the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tinyseq as ts
from tinyseq.optim import EMA


def values(p: ts.Tensor) -> list[float]:
    return p.detach().numpy().tolist()


def set_to(p: ts.Tensor, numbers: list[float]) -> None:
    p.data = ts.tensor(np.array(numbers)).data


def test_the_mean_of_all_weights_so_far() -> None:
    p = ts.Parameter(np.zeros(2))
    ema = EMA([p], decay=0.9)
    mean = np.zeros(2)
    for n in range(1, 6):
        set_to(p, [n, -2.0 * n])
        ema.update()
        mean = 0.9 * mean + 0.1 * np.array([n, -2.0 * n])
    with ema.swapped():
        np.testing.assert_allclose(values(p), mean, rtol=1e-14)
    assert values(p) == [5.0, -10.0]


def test_warmup_forgets_the_start() -> None:
    p = ts.Parameter(np.array([100.0]))
    ema = EMA([p], decay=0.999, warmup=True)
    mean = 100.0
    for n in range(1, 30):
        set_to(p, [1.0])
        ema.update()
        d = (1 + n) / (10 + n)
        mean = d * mean + (1 - d)
    with ema.swapped():
        assert values(p)[0] == pytest.approx(mean, rel=1e-12)
    assert abs(mean - 1) < 0.01


def test_the_weights_come_back_whatever_happens() -> None:
    p = ts.Parameter(np.array([1.0]))
    ema = EMA([p])
    set_to(p, [2.0])

    def fail() -> None:
        with ema.swapped():
            assert values(p) == [1.0]
            raise RuntimeError("in the block")

    with pytest.raises(RuntimeError, match="in the block"):
        fail()
    assert values(p) == [2.0]


def test_a_step_among_the_means_changes_neither_means_nor_weights() -> None:
    p = ts.Parameter(np.array([1.0]))
    ema, optimizer = EMA([p]), ts.optim.SGD([p], lr=1.0)
    with ema.swapped():
        (p * 3).sum().backward()
        optimizer.step()
    assert values(p) == [1.0]
    with ema.swapped():
        assert values(p) == [1.0]


def test_an_optimizer_step_does_not_reach_the_means() -> None:
    p = ts.Parameter(np.array([1.0]))
    optimizer = ts.optim.SGD([p], lr=1.0)
    ema = EMA([p])
    ema.copy_to_parameters()
    for _ in range(2):
        p.grad = None
        (p * 3).sum().backward()
        optimizer.step()
    with ema.swapped():
        assert values(p) == [1.0]


def test_it_goes_on_from_a_file(tmp_path: Path) -> None:
    p, q = ts.Parameter(np.array([1.0])), ts.Parameter(np.array([1.0]))
    ours, theirs = EMA([p], 0.5, warmup=True), EMA([q], 0.5, warmup=True)
    for n in range(3):
        set_to(p, [float(n)])
        ours.update()
    ts.save(tmp_path / "ema.safetensors", ours.state_dict())
    theirs.load_state_dict(ts.load(tmp_path / "ema.safetensors"))
    set_to(p, [9.0])
    set_to(q, [9.0])
    ours.update()
    theirs.update()
    with ours.swapped(), theirs.swapped():
        assert values(p) == values(q)


def test_refusals() -> None:
    p = ts.Parameter(np.array([1.0]))
    with pytest.raises(ValueError, match=r"decay in \[0, 1\), got 1.0"):
        EMA([p], 1.0)
    with pytest.raises(ts.CheckpointError, match=r"mean.0, updates do not fit"):
        EMA([p]).load_state_dict({})
    with pytest.raises(ts.CheckpointError, match=r"mean.0 is float64 \(2,\), but the parameter is float64 \(1,\)"):
        EMA([p]).load_state_dict(EMA([ts.Parameter(np.ones(2))]).state_dict())
