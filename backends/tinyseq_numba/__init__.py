"""The Numba backend: NumPy's arrays, with compiled functions where a pass over memory less pays.

Numba itself is imported when the backend is chosen, not before.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tinyseq_numpy import NumpyBackend

from tinyseq.array_api import INDEX
from tinyseq.backend import CannotFuse
from tinyseq.errors import BackendError

if TYPE_CHECKING:
    from tinyseq.compiler.loop import Step
    from tinyseq.graph import Graph

__all__ = ["NumbaBackend"]

Array = np.ndarray[Any, Any]


class NumbaBackend(NumpyBackend):
    """NumPy arrays on the CPU, with functions compiled by Numba. Large products are NumPy's BLAS on the loops' threads.

    Compiled code is kept on the disk, so that only the first run on a machine waits for the compiler.

    Raises:
        BackendError: Numba is installed but does not load, as when it is too old for the installed NumPy.
    """

    name: ClassVar[str] = "numba"
    install: ClassVar[str] = "pip install 'tinyseq[numba]'"
    recomputes: ClassVar[bool] = True
    sums_products: ClassVar[bool] = True

    def __init__(self) -> None:
        try:
            import numba  # noqa: F401
        except ImportError as error:
            raise BackendError(f"the backend 'numba' cannot run here: {error}; install it with: {self.install}") from error
        super().__init__()
        from tinyseq_numba.attention import Attention
        from tinyseq_numba.elementwise import Elementwise
        from tinyseq_numba.fused import KERNELS
        from tinyseq_numba.loop.layout import fuses

        self.fused = {**KERNELS, "attention": Attention()}
        self.fuses = fuses
        self._compiled: dict[tuple[Any, ...], Elementwise] = {}

    @classmethod
    def unavailable(cls) -> str | None:
        """Says so if Numba is not installed."""
        return None if importlib.util.find_spec("numba") else "Numba is not installed"

    @property
    def version(self) -> str:
        """Numba's version, and NumPy's."""
        return f"numba {importlib.metadata.version('numba')}, {super().version}"

    def compile_loop(self, step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
        """The step as machine code, a share of the batch a thread; NumPy's loop where there is no code for an operation."""
        from tinyseq.compiler import debug
        from tinyseq_numba.loop.compile import compile_step
        from tinyseq_numba.loop.layout import Unsupported

        try:
            return compile_step(step, self._rows_apart)
        except Unsupported as reason:
            if step.before or step.after or step.sums:
                raise CannotFuse(str(reason)) from reason
            debug.show("time", f"fell back to NumPy's loop: there is no code for {reason}")
            _say_once(str(reason))
            return super().compile_loop(step)

    def _rows_apart(self, step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
        """The loop operation by operation, for a call in which one row looks at another."""
        from tinyseq.compiler.interpret import interpreted

        _say_once("an index whose rows are not 0, 1, 2 ...")
        return interpreted(step, self)

    def compile_graph(self, graph: Graph) -> Callable[..., list[Array]]:
        """Elementwise work and reductions of rows as machine code, one pass over memory each; the rest as on NumPy."""
        from tinyseq_numba.region_code import compile_graph

        return compile_graph(graph, self)

    def overrides(self) -> dict[str, Callable[..., Any]]:
        """NumPy's, products on the loops' threads, and an embedding's scatter-add, for which NumPy takes many times as long."""
        from tinyseq_numba.products import matmul

        numpy = super().overrides()
        return {**numpy, "matmul": matmul, **_scatter_adds(numpy["scatter_add_into"])}

    def elementwise(self, rule: Callable[..., Callable[..., tuple[Any, ...]]], **flags: Any) -> Callable[..., Any]:
        """Compiled to one pass over memory that writes in place, for float32 and float64."""
        from tinyseq_numba.elementwise import Elementwise

        key = (rule, *sorted(flags.items()))
        if key not in self._compiled:
            self._compiled[key] = Elementwise(rule, flags, super().elementwise(rule, **flags))
        return self._compiled[key]


_said: set[str] = set()


def _say_once(reason: str) -> None:
    """Once for each operation, whatever the sizes."""
    kind = re.sub(r"\d+", "", reason)
    if kind not in _said:
        _said.add(kind)
        warnings.warn(f"a scan runs on the slower NumPy loop, since the compiled loop has no code for {reason}", stacklevel=6)


def _scatter_adds(general: Callable[..., Array]) -> dict[str, Callable[..., Array]]:
    """``scatter_add`` and ``scatter_add_into`` with a compiled path for whole rows; ``general`` does all others."""
    from tinyseq_numba.kernels import add_rows, plain

    def scatter_add_into(total: Array, values: Array, *indices: Array, key: tuple[Any, ...]) -> Array:
        if key != (INDEX,) or total.dtype != values.dtype or total.dtype.kind != "f" or not total.flags.carray:
            return general(total, values, *indices, key=key)
        (index,) = indices
        if total.dtype.itemsize < 4 or index.dtype != np.int64 or values.shape != index.shape + total.shape[1:]:
            return general(total, values, *indices, key=key)
        if values.size:
            rows, count = total.shape[0], index.size
            outside = add_rows(total.reshape(rows, -1), plain(index).reshape(-1), plain(values).reshape(count, -1))
            if outside >= 0:
                at = index.reshape(-1)[outside]
                raise IndexError(f"index {at} is out of bounds for axis 0 with size {rows}")
        return total

    def scatter_add(values: Array, *indices: Array, key: tuple[Any, ...], shape: tuple[int, ...]) -> Array:
        return scatter_add_into(np.zeros(shape, values.dtype), values, *indices, key=key)

    return {"scatter_add": scatter_add, "scatter_add_into": scatter_add_into}
