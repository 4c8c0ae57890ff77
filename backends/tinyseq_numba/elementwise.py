"""A function of numbers, compiled to one loop over arrays: what optimizers run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyseq_numba import elementary
from tinyseq_numba.generated import compile_source, unique_name
from tinyseq_numba.jit import compiled
from tinyseq_numba.kernels import plain

__all__ = ["Elementwise"]

Array = np.ndarray[Any, Any]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Elementwise:
    """``rule(F, **flags)`` over arrays, as ``Backend.elementwise`` describes.

    ``general`` runs what no loop is compiled for: other dtypes, and arrays that differ in shape or dtype.
    """

    def __init__(
        self, rule: Callable[..., Callable[..., Any]], flags: dict[str, Any], general: Callable[..., tuple[Any, ...]]
    ) -> None:
        self.function = rule(elementary, **flags)
        self.flags = sorted(flags.items())
        self.general = general
        self.loops: dict[tuple[tuple[bool, ...], int], Any] = {}

    def __call__(self, *arguments: Any, in_place: Sequence[bool]) -> tuple[Any, ...]:
        kinds = tuple([type(a) is np.ndarray for a in arguments])
        first = arguments[kinds.index(True)]
        dtype, shape = first.dtype, first.shape
        if dtype not in DTYPES:
            return self.general(*arguments, in_place=in_place)
        outputs, ready = len(in_place), list(arguments)
        for i, is_array in enumerate(kinds):
            if is_array:
                a = arguments[i]
                if a.dtype != dtype or a.shape != shape:
                    return self.general(*arguments, in_place=in_place)
                # The loop writes over its first arrays, so those that others hold are copied.
                ready[i] = plain(a) if i >= outputs or in_place[i] else a.copy()
        loop = self.loops.get((kinds, outputs))
        if loop is None:
            loop = self.loops[kinds, outputs] = self._compile(kinds, outputs)
        loop(*[a.reshape(-1) if is_array else a for a, is_array in zip(ready, kinds, strict=True)])
        return tuple(ready[:outputs])

    def _compile(self, kinds: tuple[bool, ...], outputs: int) -> Any:
        code = self.function.__code__
        what = (kinds, outputs, self.flags, code.co_code, code.co_consts, code.co_names, inspect.getsource(elementary))
        name = unique_name("loop", self.function.__module__, self.function.__qualname__, *what)
        # Machine code finds a function by its name, and all variants of a rule have the same one.
        self.function.__name__ = self.function.__qualname__ = f"{self.function.__name__}_{name}"
        function = compiled(cache=False)(self.function)
        return compile_source(name, loop_source(name, kinds, outputs), {"function": function})


def loop_source(name: str, kinds: Sequence[bool], outputs: int) -> str:
    """The loop for arguments of these kinds, True for an array.

    >>> print(loop_source("adam", [True, False, True, False], 2))
    def adam(x0, x1, x2, x3):
        number = x0.dtype.type
        n1 = number(x1)
        n3 = number(x3)
        for i in range(x0.size):
            x0[i], _ = function(x0[i], n1, x2[i], n3)
    """
    places = range(len(kinds))
    first = f"x{kinds.index(True)}"
    element = [f"x{k}[i]" if kinds[k] else f"n{k}" for k in places]
    results = [element[k] if kinds[k] else "_" for k in range(outputs)]
    # A Python float would have a loop over float32 compute in float64.
    lines = [
        f"def {name}({', '.join(f'x{k}' for k in places)}):",
        f"    number = {first}.dtype.type",
        *[f"    n{k} = number(x{k})" for k in places if not kinds[k]],
        f"    for i in range({first}.size):",
        f"        {', '.join(results)}{',' * (outputs == 1)} = function({', '.join(element)})",
    ]
    return "\n".join(lines) + "\n"
