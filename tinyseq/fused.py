"""Composed functions that a backend may compute in one pass.

A fused function carries its plain definition. A backend that has a kernel of that name (``Backend.fused``) runs it on
its own arrays, forward and backward; everywhere else, in traces and for second derivatives, the definition runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

from tinyseq import mode
from tinyseq.backend import current_backend
from tinyseq.primitives import Primitive
from tinyseq.tape import Node, walk
from tinyseq.tensor import Tensor, link, recorded

__all__ = ["Kernel", "fused"]

Array = Any


class Kernel(Protocol):
    """What a backend registers in ``Backend.fused``."""

    def accepts(self, *arrays: Array, **params: Any) -> bool:
        """Whether it takes arrays of these dtypes and shapes; otherwise the definition runs."""
        ...

    def forward(self, *arrays: Array, **params: Any) -> tuple[Array, tuple[Array, ...]]:
        """The output, and what ``backward`` wants to have kept."""
        ...

    def backward(
        self, cotangent: Array, arrays: tuple[Array, ...], output: Array, residuals: tuple[Array, ...], **params: Any
    ) -> tuple[Array | None, ...]:
        """A cotangent for each array; None for those that have none."""
        ...


def fused(name: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Let backends with a kernel of this name compute the decorated function.

    The function takes tensors by position (None where one is left out) and metadata by keyword.
    """

    def decorate(definition: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def pull(F: Any, g: Any, inputs: tuple[Any, ...], out: Any, node: Node) -> Any:
            if F is recorded:
                return _through_definition(definition, node.params, inputs, g)
            output, residuals, kernel = out
            return kernel.backward(g, inputs, output, residuals, **node.params)

        row = Primitive(name, lambda *inputs, **params: None, (), pull)

        @functools.wraps(definition)
        def function(*inputs: Any, **params: Any) -> Tensor:
            m = mode.current()
            backend = m.backend or current_backend()
            kernel = backend.fused.get(name)
            if kernel is None or not all(x is None or type(x.data) is backend.array_type for x in inputs):
                return definition(*inputs, **params)
            arrays = tuple(None if x is None else x.data for x in inputs)
            if not kernel.accepts(*arrays, **params):
                return definition(*inputs, **params)
            output, residuals = kernel.forward(*arrays, **params)
            parents = tuple(None if x is None else x.node for x in inputs)
            node = None
            if m.recording and any(parent is not None for parent in parents):
                kept = (output, residuals, kernel)
                node = Node(row, parents, arrays, kept, params, output.shape, output.dtype, m.scope)
            if m.observer is not None:
                m.observer.applied(row, arrays, output, node)
            return Tensor(output, node)

        return function

    return decorate


def _through_definition(
    definition: Callable[..., Tensor], params: dict[str, Any], inputs: tuple[Any, ...], cotangent: Tensor
) -> list[Tensor | None]:
    """The VJP as a recorded computation, so that it can be differentiated again."""
    linked = [link(x) if isinstance(x, Tensor) and x.node is not None else x for x in inputs]
    output = definition(*linked, **params)
    places = [x.node for x in linked if isinstance(x, Tensor) and x.node is not None]
    if output.node is None:
        return [None] * len(linked)
    found = walk(recorded, [(output.node, cotangent)], places, retain=True)
    return [found.get(x.node) if isinstance(x, Tensor) and x.node is not None else None for x in linked]
