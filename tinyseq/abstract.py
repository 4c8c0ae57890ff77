"""A value without numbers: what a Tensor holds while a function is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from tinyseq.backend import Backend

if TYPE_CHECKING:
    from tinyseq.primitives import Primitive
    from tinyseq.tensor import Tensor

__all__ = ["Abstract", "Tracer"]


class Abstract:
    """What is known before there are numbers: a shape, a dtype, who traces, and the how manyeth value of the trace it is."""

    __slots__ = ("dtype", "number", "shape", "tracer")

    def __init__(self, tracer: Tracer, shape: tuple[int, ...], dtype: Any, number: int = 0) -> None:
        self.tracer = tracer
        self.number = number
        self.shape = shape
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


class Tracer(Backend):
    """The backend of traced Tensors: it records what is done and computes nothing.

    Attributes:
        level: a trace within a trace has the higher level, and takes the other's values as given.
        ended: whether the traced function has returned.
        caller: the public function that traces, as messages name it.
        remedy: what else can be done where a trace does not do.
    """

    array_type = Abstract
    level: int
    ended: bool
    caller: ClassVar[str] = "scan"
    remedy: ClassVar[str] = "scan(..., unroll=True)"

    def apply(self, primitive: Primitive, inputs: tuple[Any, ...], params: dict[str, Any]) -> Tensor:
        """Record an operation, at least one of whose inputs is traced."""
        raise NotImplementedError

    def inside(self, x: Tensor) -> Tensor:
        """The traced Tensor that stands for a Tensor."""
        raise NotImplementedError

    def loop(self) -> NoReturn:
        """Called by a ``scan`` that would compile a loop, if this is the backend in force."""
        raise NotImplementedError
