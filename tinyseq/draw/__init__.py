"""Pictures of computations, drawn from the record that the tape keeps.

``ts.draw(loss)`` reads the record (``reading``, ``columns``), makes a plain diagram of it (``diagram``), writes that as
DOT (``dot``), and has Graphviz lay it out and draw it (``layout``, ``routes``, ``render``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tinyseq.draw.picture import Picture as Picture
from tinyseq.draw.render import DrawError as DrawError
from tinyseq.errors import DTypeError, GraphError
from tinyseq.tensor import Tensor

if TYPE_CHECKING:
    from tinyseq.nn import Module

__all__ = ["DrawError", "Picture", "draw"]


def draw(
    what: Tensor | Sequence[Tensor],
    *,
    names: Module | Mapping[str, object] | None = None,
    limit: int = 300,
    seconds: float = 20.0,
) -> Picture:
    """A picture of the operations that made a tensor, or several.

    Each operation is a box with its name, its metadata and the shape and dtype of its result. The tensors asked for are
    green, parameters orange, other tensors that ask for a gradient blue, constants dashed. The time steps of a
    ``scan(..., unroll=True)`` stand in columns, from left to right, with blue arrows for what one hands to the next; a
    parameter that several steps use has a box in each.

    Args:
        what: the tensor or tensors. It may be drawn before or after ``backward()``; what the tape kept is then gone from
            the picture, that is, the values and shapes of constants.
        names: the module whose parameters to name, or tensors by name: ``names=locals()`` will do.
        limit: with more boxes than about this, scans show their first steps and the last one; if that is not enough, what
            is far from the output is left out. The picture says how much is not drawn.
        seconds: how long Graphviz may take to lay the picture out.

    Raises:
        DTypeError: ``what`` or ``names`` is of another type.
        GraphError: nothing was recorded for a tensor.
        ValueError: ``limit`` or ``seconds`` is not positive.

    >>> import tinyseq as ts
    >>> w = ts.tensor([1.0, 2.0], requires_grad=True)
    >>> loss = (w * 3.0).sum()
    >>> picture = ts.draw(loss, names={"w": w})
    >>> "mul(·, 3)" in picture.dot
    True
    """
    from tinyseq.draw.reading import read

    tensors = [what] if isinstance(what, Tensor) else list(what) if isinstance(what, Sequence) else [what]
    places = []
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise DTypeError(f"draw takes a tensor or a list of tensors, not a {type(tensor).__name__}")
        if tensor.node is None:
            raise GraphError(
                f"nothing was recorded for this tensor of shape {tensor.shape}: nothing it was computed from asks for a "
                "gradient, or it was computed under no_grad(); make a tensor with requires_grad=True first"
            )
        places.append(tensor.node)
    if not places:
        raise DTypeError("draw got an empty list; give at least one tensor")
    if limit < 1 or not seconds > 0:
        raise ValueError(f"limit and seconds must be positive, not {limit} and {seconds}")
    return Picture(read(places, names, limit), seconds=seconds)
