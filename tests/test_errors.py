"""Bad input to the engine: each is one clear sentence that names the values, and loses nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strict_backend import StrictBackend

import tinyseq as ts
from tinyseq.errors import BackendError, DTypeError, GraphError, ShapeError, TinyseqError
from tinyseq.tensor import Tensor


def f32(*shape: int) -> Tensor:
    return ts.ones(shape)


SENTENCES: list[tuple[str, Callable[[], Any], type[Exception], list[str]]] = [
    ("unknown backend", lambda: ts.use_backend("tpu"), BackendError, ["'tpu'", "numpy", "numba", "cupy"]),
    ("matmul", lambda: f32(2, 3) @ f32(4, 5), ShapeError, ["matmul", "(2, 3)", "(4, 5)"]),
    ("matmul batches", lambda: f32(2, 1, 3) @ f32(3, 3, 1), ShapeError, ["(2,)", "(3,)"]),
    ("matmul vectors", lambda: f32(3) @ f32(4), ShapeError, ["3", "4"]),
    ("matmul scalar", lambda: f32(3) @ ts.tensor(1.0), ShapeError, ["(3,)", "()", "*"]),
    ("matmul vector by matrix", lambda: f32(3) @ f32(4, 2), ShapeError, ["3", "(4, 2)"]),
    ("add", lambda: f32(2, 3) + f32(2, 4), ShapeError, ["add", "(2, 3)", "(2, 4)", "3 and 4"]),
    ("where", lambda: ts.where(ts.tensor([True] * 2), f32(3), 0.0), ShapeError, ["where", "(2,)", "(3,)"]),
    ("concatenate", lambda: ts.concatenate([f32(2, 3), f32(3, 3)], axis=1), ShapeError, ["input 1", "(3, 3)", "(2, 3)"]),
    ("concatenate ranks", lambda: ts.concatenate([f32(2, 3), f32(3)], axis=0), ShapeError, ["(3,)", "(2, 3)"]),
    ("stack", lambda: ts.stack([f32(2), f32(3)]), ShapeError, ["(2,)", "(3,)"]),
    ("reshape", lambda: f32(2, 3).reshape(4), ShapeError, ["(2, 3)", "6 elements", "(4,)"]),
    ("reshape with -1", lambda: f32(2, 3).reshape(4, -1), ShapeError, ["(2, 3)", "(4, -1)"]),
    ("reshape with two -1", lambda: f32(2, 3).reshape(-1, -1), ShapeError, ["(-1, -1)"]),
    ("permute", lambda: f32(2, 3).permute(0, 0), ShapeError, ["(2, 3)", "(0, 0)"]),
    ("expand", lambda: f32(2, 3).expand(4, 3), ShapeError, ["(2, 3)", "4"]),
    ("expand to fewer", lambda: f32(2, 3).expand(3), ShapeError, ["(2, 3)", "(3,)"]),
    ("squeeze", lambda: f32(2, 3).squeeze(0), ShapeError, ["(2, 3)", "2"]),
    ("axis", lambda: f32(2, 3).sum(axis=2), ShapeError, ["2", "2 axes"]),
    ("axis twice", lambda: f32(2, 3).sum(axis=(0, -2)), ShapeError, ["twice", "(0, -2)"]),
    ("empty max", lambda: f32(0, 3).max(axis=0), ShapeError, ["max", "(0, 3)"]),
    ("empty argmax", lambda: f32(0).argmax(), ShapeError, ["argmax", "(0,)"]),
    ("clip", lambda: f32(2).clip(), ShapeError, ["low", "high"]),
    ("item", lambda: f32(2).item(), ShapeError, ["(2,)"]),
    ("truth", lambda: bool(f32(2)), ShapeError, ["(2,)", ".any()"]),
    ("len", lambda: len(ts.tensor(1.0)), ShapeError, ["without axes"]),
    ("index by a float", lambda: [1, 2][ts.tensor(1.0)], DTypeError, ["float32", "int64"]),
    ("ragged", lambda: ts.tensor([[1.0], [1.0, 2.0]]), ShapeError, ["unequal lengths"]),
    ("text", lambda: ts.tensor(["a"]), DTypeError, ["list"]),
    ("integer with a gradient", lambda: ts.tensor([1], requires_grad=True), DTypeError, ["int64", "astype(ts.float32)"]),
    ("boolean with a gradient", lambda: ts.tensor([True]).requires_grad_(), DTypeError, ["bool"]),
    ("integer parameter", lambda: ts.Parameter([1, 2]), DTypeError, ["int64"]),
    ("backward on a constant", lambda: f32(1).backward(), GraphError, ["requires_grad=True"]),
    ("backward without a seed", lambda: ts.ones(3, requires_grad=True).exp().backward(), GraphError, ["(3,)", ".sum()"]),
    ("backward on an empty tensor", lambda: ts.ones(0, requires_grad=True).exp().backward(), GraphError, ["(0,)"]),
    ("seed of another shape", lambda: ts.ones(3, requires_grad=True).exp().backward([1.0, 2.0]), ShapeError, ["(2,)", "(3,)"]),
    ("requires_grad off", lambda: setattr(ts.ones(1, requires_grad=True).exp(), "requires_grad", False), GraphError,
     [".detach()"]),
    ("retain_grad", lambda: f32(1).retain_grad(), GraphError, ["requires_grad=True"]),
    ("hook on a constant", lambda: f32(1).register_hook(print), GraphError, ["requires_grad=True"]),
    ("gradient of another shape", lambda: setattr(ts.ones(1, requires_grad=True), "grad", f32(2)), ShapeError,
     ["(2,)", "(1,)"]),
    ("gradient on a constant", lambda: setattr(f32(1), "grad", f32(1)), GraphError, ["requires_grad=True"]),
    ("name on a constant", lambda: setattr(f32(1), "name", "w"), GraphError, ["requires_grad=True"]),
    ("assignment of a higher kind", lambda: ts.tensor([1, 2]).__setitem__(0, 0.5), DTypeError, ["float32", "int64"]),
    ("assignment of a wrong shape", lambda: f32(2, 2).__setitem__(0, f32(3)), ValueError, ["(3,)", "(2,)"]),
    ("move a result", lambda: ts.ones(1, requires_grad=True).exp().to(StrictBackend()), GraphError, [".detach()"]),
    ("zeros", lambda: ts.zeros((2, -1)), ShapeError, ["(2, -1)"]),
    ("arange", lambda: ts.arange(0, 5, 0), ShapeError, ["step"]),
    ("split", lambda: ts.split(f32(5), [2, 2]), ShapeError, ["5", "2"]),
    ("einsum", lambda: ts.einsum("ij,jk->ik", f32(2, 3), f32(4, 5)), ShapeError, ["j", "3", "4"]),
    ("grad of a vector", lambda: ts.grad(lambda x: x)(f32(3)), GraphError, ["(3,)", ".sum()"]),
    ("grad by integers", lambda: ts.grad(lambda x: x.sum())(ts.tensor([1])), DTypeError, ["argument 0", "int64"]),
    ("grad by an argument that is not there", lambda: ts.grad(lambda x: x.sum(), 1)(f32(1)), GraphError, ["1"]),
    ("jvp of a wrong tangent", lambda: ts.jvp(lambda x: x, (f32(2),), (f32(3),)), ShapeError, ["(3,)", "(2,)"]),
    ("dropout", lambda: ts.dropout(f32(2), 1.5), ValueError, ["1.5"]),
    ("one_hot", lambda: ts.one_hot(ts.tensor([0, 5]), 3), (ShapeError, IndexError, ValueError), ["5", "3"]),
    ("embedding", lambda: ts.embedding(f32(3, 2), ts.tensor([0, 3])), (ShapeError, IndexError, ValueError), ["3"]),
    ("cross_entropy", lambda: ts.nn.functional.cross_entropy(f32(2, 3), ts.tensor([0, 1, 2])), ShapeError, ["(2, 3)", "(3,)"]),
    ("take", lambda: f32(2)[5], IndexError, ["5", "2"]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "act", "error", "words"), SENTENCES, ids=[s[0] for s in SENTENCES])
def test_one_clear_sentence(what: str, act: Callable[[], Any], error: Any, words: list[str]) -> None:
    with pytest.raises(error) as caught:
        act()
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert len(message) < 320


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ShapeError, ValueError), (DTypeError, TypeError), (BackendError, RuntimeError), (GraphError, RuntimeError)],
)
def test_each_error_is_also_the_kind_that_python_has(error: type[Exception], kind: type[Exception]) -> None:
    assert issubclass(error, kind)
    assert issubclass(error, TinyseqError)


def test_a_failed_operation_leaves_the_graph_as_it_was() -> None:
    x = ts.tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    with pytest.raises(ShapeError):
        y + ts.ones(3)
    with pytest.raises(GraphError):
        y.backward()
    with pytest.raises(ShapeError):
        y.backward([1.0])
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 4.0]


def test_mixed_backends_name_both_and_the_remedy() -> None:
    strict = StrictBackend()
    x = ts.ones(2)
    y = x.to(strict)
    with pytest.raises(BackendError, match=r"add got tensors of different backends, 'numpy' and 'strict'.*\.to\('numpy'\)"):
        x + y
    with ts.use_backend(strict):
        with pytest.raises(BackendError, match=r"\.to\('strict'\)"):
            y * x
        assert (y + x.to(strict)).tolist() == [2.0, 2.0]
    assert (x + y.to("numpy")).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", ["concatenate", "where", "matmul"])
def test_mixed_backends_in_any_place(name: str) -> None:
    x, y = ts.ones((2, 2)), ts.ones((2, 2)).to(StrictBackend())
    act: Callable[[], Any] = {
        "concatenate": lambda: ts.concatenate([x, y]),
        "where": lambda: ts.where(x > 0, x, y),
        "matmul": lambda: y @ x,
    }[name]
    with pytest.raises(BackendError, match=r"numpy.*strict|strict.*numpy"):
        act()


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_a_missing_gpu_library_names_the_install_line() -> None:
    before = ts.current_backend()
    with pytest.raises(BackendError, match=r"'cupy' cannot run here: CuPy is not installed.*pip install"):
        ts.use_backend("cupy")
    assert ts.current_backend() is before


def test_an_unknown_backend_in_the_environment() -> None:
    code = "import tinyseq as ts\ntry: ts.ones(1)\nexcept ts.BackendError as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "TINYSEQ_BACKEND": "abacus"}
    )
    assert "there is no backend 'abacus'; choose one of" in done.stdout, done.stderr


def test_the_environment_chooses_the_backend_and_a_call_overrules_it() -> None:
    code = "import tinyseq as ts; print(ts.current_backend().name)\nts.use_backend('numpy'); print(ts.current_backend().name)"
    name = "numba" if importlib.util.find_spec("numba") else "numpy"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TINYSEQ_BACKEND": name},
        check=True,
    )
    assert done.stdout.split() == [name, "numpy"]


def test_importing_tinyseq_imports_no_backend_library() -> None:
    code = (
        "import sys, tinyseq\n"
        "heavy = {'numba', 'cupy', 'matplotlib', 'rich', 'pytest', 'hypothesis', 'graphviz', 'tinyseq_numba', 'tinyseq_cupy'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_loaded_backend_takes_these_arrays() -> None:
    class Odd:
        shape, dtype = (), np.dtype("float32")

    with pytest.raises(BackendError, match=r"Odd.*ts\.tensor"):
        Tensor(Odd()).exp()
