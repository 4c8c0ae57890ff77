"""For the tests and the doctests alike: global state is sealed, random numbers are seeded, the absent is skipped."""

from __future__ import annotations

import importlib.util
import os
import signal
import warnings
import zlib
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

os.environ["MPLBACKEND"] = "Agg"  # no test opens a window
hypothesis.settings.register_profile("tinyseq", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("tinyseq")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts its background jobs, and their children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

PEERS = ("torch", "autograd", "mygrad")


@pytest.fixture(autouse=True)
def _sealed() -> Iterator[None]:
    """Seed the default random state, and put back after each test the backend, the mode and the state that it found."""
    from tinyseq import backend, mode, random

    default, found, state = backend._default, mode.current(), random.get_state()
    random.manual_seed(0)
    yield
    backend._default = default
    mode.replace(**{name: getattr(found, name) for name in found.__slots__})
    random.set_state(state)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """NumPy's generator, seeded by the test's name: each test has its own numbers, and the same ones each time."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(params=["numpy", "numba"])
def strict_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """A backend on which nothing may leave the compiled loop."""
    from tinyseq.backend import use_backend

    if request.param == "numba":
        pytest.importorskip("numba")
        import tinyseq_numba

        tinyseq_numba._said.clear()
    with use_backend(request.param), warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {"gpu": _why_no_gpu, "peers": _why_no_peers}
    for name, why in reasons.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and (reason := why()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_gpu() -> str | None:
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    try:
        return None if cupy.cuda.runtime.getDeviceCount() else "no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no GPU: {error}"


def _why_no_peers() -> str | None:
    return None if any(importlib.util.find_spec(name) for name in PEERS) else "no peer is installed"
