"""New tensors of given values, on the backend in force; Python floats make float32, integers int64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tinyseq.backend import current_backend, get_backend
from tinyseq.errors import BackendError, DTypeError, ShapeError
from tinyseq.tensor import DEFAULT, Tensor, _kind, bool_, int64

__all__ = ["arange", "eye", "from_dlpack", "full", "full_like", "linspace", "ones", "ones_like", "zeros", "zeros_like"]

Shape = int | Sequence[int]
_HOST = 1  # DLPack's number


def _shape(shape: Shape) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes):
        raise ShapeError(f"a shape has no negative sizes, got {sizes}")
    return sizes


def _from_host(array: np.ndarray[Any, Any], requires_grad: bool) -> Tensor:
    result = Tensor(current_backend().asarray(array))
    result.requires_grad = requires_grad
    return result


def full(shape: Shape, value: float, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor with every element equal to ``value``.

    >>> import tinyseq as ts
    >>> ts.full((2,), 7).tolist()
    [7, 7]
    """
    if dtype is None:
        dtype = bool_ if isinstance(value, bool) else int64 if isinstance(value, int) else DEFAULT
    result = Tensor(current_backend().full(_shape(shape), value, np.dtype(dtype)))
    result.requires_grad = requires_grad
    return result


def zeros(shape: Shape, dtype: Any = DEFAULT, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros.

    >>> import tinyseq as ts
    >>> ts.zeros((2, 1)).tolist()
    [[0.0], [0.0]]
    """
    return full(shape, 0, dtype, requires_grad)


def ones(shape: Shape, dtype: Any = DEFAULT, requires_grad: bool = False) -> Tensor:
    """A tensor of ones.

    >>> import tinyseq as ts
    >>> ts.ones(2).tolist()
    [1.0, 1.0]
    """
    return full(shape, 1, dtype, requires_grad)


def full_like(x: Tensor, value: float, dtype: Any = None) -> Tensor:
    """A constant of the shape, dtype and backend of ``x``, with every element equal to ``value``."""
    return Tensor(x.backend.full(x.shape, value, x.dtype if dtype is None else np.dtype(dtype)))


def zeros_like(x: Tensor, dtype: Any = None) -> Tensor:
    """Zeros of the shape, dtype and backend of ``x``."""
    return full_like(x, 0, dtype)


def ones_like(x: Tensor, dtype: Any = None) -> Tensor:
    """Ones of the shape, dtype and backend of ``x``."""
    return full_like(x, 1, dtype)


def arange(start: float, stop: float | None = None, step: float = 1, dtype: Any = None) -> Tensor:
    """Numbers from ``start`` up to and without ``stop``; with one argument, from 0.

    >>> import tinyseq as ts
    >>> ts.arange(3).tolist()
    [0, 1, 2]
    """
    if stop is None:
        start, stop = 0, start
    if step == 0:
        raise ShapeError("arange needs a step other than 0")
    if dtype is None:
        dtype = int64 if all(isinstance(v, int) for v in (start, stop, step)) else DEFAULT
    return _from_host(np.arange(start, stop, step).astype(dtype), False)


def linspace(start: float, stop: float, steps: int, dtype: Any = DEFAULT) -> Tensor:
    """``steps`` numbers at equal distances, the first ``start`` and the last ``stop``.

    >>> import tinyseq as ts
    >>> ts.linspace(0, 1, 3).tolist()
    [0.0, 0.5, 1.0]
    """
    return _from_host(np.linspace(start, stop, steps).astype(dtype), False)


def eye(rows: int, columns: int | None = None, dtype: Any = DEFAULT) -> Tensor:
    """Ones on the diagonal, zeros elsewhere.

    >>> import tinyseq as ts
    >>> ts.eye(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return _from_host(np.eye(rows, columns, dtype=dtype), False)


def from_dlpack(array: Any) -> Tensor:
    """Another library's array as a constant that shares its memory: nothing is copied.

    What is on the host becomes a tensor of the backend in force if that takes arrays of the host, else of NumPy's; what is
    on a GPU becomes one of CuPy's, on the same device. As results and gradients may keep such an array, do not write to it
    before they are done with; ``ts.tensor`` makes a copy. The other way round, ``torch.from_dlpack(x.detach())`` and the
    like take a tensor of tinyseq.

    Args:
        array: what has ``__dlpack__`` and ``__dlpack_device__``, such as a tensor of PyTorch or JAX, or an array of CuPy.

    Raises:
        BackendError: it is on a device for which there is no backend here.
        DTypeError: it has no DLPack, or a dtype that tinyseq does not have.

    >>> import numpy as np
    >>> import tinyseq as ts
    >>> a = np.ones(3, np.float32)
    >>> np.shares_memory(ts.from_dlpack(a).numpy(), a)
    True
    """
    if not (hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")):
        raise DTypeError(f"from_dlpack takes an array with __dlpack__, got {type(array).__name__}; ts.tensor copies lists")
    kind, number = (int(part) for part in array.__dlpack_device__())
    backend = current_backend()
    if kind not in backend.dlpack_devices:
        backend = get_backend("numpy" if kind == _HOST else "cupy")
    if kind not in backend.dlpack_devices:
        raise BackendError(f"there is no backend for an array on DLPack's device {kind}, number {number}; move it to the host")
    try:
        shared = backend.xp.from_dlpack(array)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise DTypeError(f"this {type(array).__name__} cannot be shared: {error}") from error
    _kind(shared.dtype)
    return Tensor(shared)
