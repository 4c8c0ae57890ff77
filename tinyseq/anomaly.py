"""Where did the NaN come from: a mode that stops at the first operation that makes one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tinyseq import mode
from tinyseq.backend import backend_of
from tinyseq.errors import NonFiniteError
from tinyseq.primitives import Primitive
from tinyseq.tape import Node, Part, Scatter
from tinyseq.tensor import Tensor

__all__ = ["detect_anomaly"]

_HOME = str(Path(__file__).parent)


def _host(value: Any) -> np.ndarray[Any, Any]:
    """A number, an array of any backend, or a Tensor, as a NumPy array."""
    data = value.data if isinstance(value, Tensor) else value
    backend = backend_of(data)
    return backend.to_numpy(data) if backend else np.asarray(data)


def _finite(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    host = _host(value.values if isinstance(value, Scatter) else value.value if isinstance(value, Part) else value)
    return host.dtype.kind != "f" or bool(np.isfinite(host).all())


def _caller() -> str:
    """The nearest line outside tinyseq."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HOME):
        frame = frame.f_back
    if frame is None:
        return "an unknown line"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


class _Watch:
    def applied(self, primitive: Primitive, arrays: tuple[Any, ...], output: Any, node: Node | None) -> None:
        if node is not None:
            node.extra = {**(node.extra or {}), "where": _caller()}
        if not _finite(output) and all(map(_finite, arrays)):
            kind = "a NaN" if np.isnan(_host(output)).any() else "an infinity"
            raise NonFiniteError(f"{primitive.name} made {kind} of finite inputs, called at {_caller()}")

    def pulled(self, node: Node, cotangent: Any, contributions: Any) -> None:
        if all(map(_finite, contributions)) or not _finite(cotangent):
            return
        where = (node.extra or {}).get("where", "a line outside detect_anomaly()")
        raise NonFiniteError(
            f"the gradient of {node.primitive.name} became NaN or infinite from a finite one; forward it was called at {where}"
        )


def detect_anomaly() -> Any:
    """Inside this ``with`` block, stop at the first operation that makes a NaN or an infinity of finite numbers.

    Forward and backward; the error names the primitive and the line that called it. Slow: every result is looked at.

    Raises:
        NonFiniteError: by the operation.

    >>> import numpy as np, tinyseq as ts
    >>> with np.errstate(invalid="ignore"), ts.detect_anomaly():
    ...     ts.tensor([-1.0]).log()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    tinyseq.errors.NonFiniteError: log made a NaN of finite inputs, called at ...
    """
    return mode.changed(observer=_Watch())
