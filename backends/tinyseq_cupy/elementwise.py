"""A function of numbers as one kernel over arrays: what optimizers run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from tinyseq_cupy.loop.scalars import c_type, number, register_dtype

__all__ = ["Elementwise", "operation"]

Array = Any
DTYPES = tuple(map(np.dtype, ("float16", "float32", "float64")))
Rule = Callable[..., Callable[..., tuple[Any, ...]]]


class Elementwise:
    """``rule(F, **flags)`` over arrays, as ``Backend.elementwise`` describes.

    Args:
        cupy: the module.
        rule: makes the function of numbers.
        flags: what it is made for.
        general: runs what no kernel is written for: other dtypes, and arrays that differ in shape or dtype.
    """

    def __init__(self, cupy: Any, rule: Rule, flags: dict[str, Any], general: Callable[..., tuple[Any, ...]]) -> None:
        self._cupy, self.rule, self.flags, self.general = cupy, rule, flags, general
        self.kernels: dict[tuple[np.dtype[Any], tuple[bool, ...], int], Any] = {}

    def __call__(self, *arguments: Any, in_place: Sequence[bool]) -> tuple[Any, ...]:
        cupy = self._cupy
        kinds = tuple([isinstance(a, cupy.ndarray) for a in arguments])
        first = arguments[kinds.index(True)]
        arrays = [a for a, is_array in zip(arguments, kinds, strict=True) if is_array]
        if first.dtype not in DTYPES or any((a.dtype, a.shape) != (first.dtype, first.shape) for a in arrays):
            with self._on(first):
                return self.general(*arguments, in_place=in_place)
        key = first.dtype, kinds, len(in_place)
        if key not in self.kernels:
            self.kernels[key] = self._kernel(*key)
        real = register_dtype(first.dtype).type  # a Python float would arrive as a double
        given = [a if is_array else real(a) for a, is_array in zip(arguments, kinds, strict=True)]
        with self._on(first):
            new = [
                (a if over else cupy.empty_like(a)) if is_array else a
                for a, over, is_array in zip(arguments, in_place, kinds, strict=False)
            ]
            self.kernels[key](*given, *[a for a, is_array in zip(new, kinds, strict=False) if is_array])
        return tuple(new)

    def _on(self, array: Array) -> Any:
        return array.device

    def _kernel(self, dtype: np.dtype[Any], kinds: tuple[bool, ...], outputs: int) -> Any:
        text = operation(self.rule, self.flags, dtype, kinds, outputs)
        real = register_dtype(dtype).name
        inputs = ", ".join(f"{dtype.name if is_array else real} x{i}" for i, is_array in enumerate(kinds))
        written = ", ".join(f"{dtype.name} y{i}" for i in range(outputs) if kinds[i])
        return self._cupy.ElementwiseKernel(inputs, written, text, f"tinyseq_{self.rule.__name__}")


class _Value:
    """A number that the kernel computes; an operation on it is a line of C++."""

    def __init__(self, lines: list[str], dtype: np.dtype[Any], text: str) -> None:
        self.lines, self.dtype, self.text = lines, dtype, text

    def made(self, template: str, *operands: Any) -> _Value:
        texts = [x.text if isinstance(x, _Value) else number(x, self.dtype) for x in operands]
        name = f"v{len(self.lines)}"
        self.lines.append(f"const {c_type(self.dtype)} {name} = {template.format(*texts)};")
        return _Value(self.lines, self.dtype, name)

    def __neg__(self) -> _Value:
        return self.made("-{}", self)

    def __add__(self, other: Any) -> _Value:
        return self.made("{} + {}", self, other)

    def __radd__(self, other: Any) -> _Value:
        return self.made("{} + {}", other, self)

    def __sub__(self, other: Any) -> _Value:
        return self.made("{} - {}", self, other)

    def __rsub__(self, other: Any) -> _Value:
        return self.made("{} - {}", other, self)

    def __mul__(self, other: Any) -> _Value:
        return self.made("{} * {}", self, other)

    def __rmul__(self, other: Any) -> _Value:
        return self.made("{} * {}", other, self)

    def __truediv__(self, other: Any) -> _Value:
        return self.made("{} / {}", self, other)

    def __rtruediv__(self, other: Any) -> _Value:
        return self.made("{} / {}", other, self)


def operation(rule: Rule, flags: dict[str, Any], dtype: np.dtype[Any], kinds: Sequence[bool], outputs: int) -> str:
    """The kernel's text: ``x0 ...`` are the arguments, ``y0 ...`` the results that are arrays.

    >>> def rule(F):
    ...     return lambda p, g, lr: (p - lr * g,)
    >>> print(operation(rule, {}, np.dtype("float32"), (True, True, False), 1))
    const float v0 = x0;
    const float v1 = x1;
    const float v2 = x2;
    const float v3 = v2 * v1;
    const float v4 = v0 - v3;
    y0 = v4;
    """
    lines: list[str] = []
    root = _Value(lines, dtype, "")
    f = "f" if c_type(dtype) == "float" else ""
    larger = "({0} > {1} || {0} != {0} ? {0} : {1})"  # NaN comes out as NaN
    functions = SimpleNamespace(
        sqrt=lambda x: x.made(f"sqrt{f}({{}})", x),
        maximum=lambda x, y: root.made(larger, x, y),
    )
    results = rule(functions, **flags)(*[root.made(f"x{i}") for i in range(len(kinds))])
    # All is computed before anything is written: an argument and a result may be the same array.
    texts = [root.made("{}", y).text if not isinstance(y, _Value) else y.text for y in results[:outputs]]
    return "\n".join([*lines, *[f"y{i} = {text};" for i, text in enumerate(texts) if kinds[i]]])
