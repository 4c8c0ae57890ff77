"""What holds for the code that runs now: is it recorded, on which backend, where in the program, who watches.

One immutable ``Mode`` sits in a context variable, so that threads and asynchronous tasks each have their own and a
``with`` block always puts back what it found. Reading it costs 20 ns; every operation does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from tinyseq.backend import Backend
    from tinyseq.primitives import Primitive
    from tinyseq.tape import Node

__all__ = ["Mode", "Observer", "Scope", "changed", "current", "replace", "scope"]


class Scope(NamedTuple):
    """Where in the program an operation was recorded: a step of a scan, a call of a module."""

    parent: Scope | None
    kind: str
    name: str | int


class Observer(Protocol):
    """Watches operations as they run (anomaly mode, a profiler)."""

    def applied(self, primitive: Primitive, arrays: tuple[Any, ...], output: Any, node: Node | None) -> None:
        """An operation has run forward."""

    def pulled(self, node: Node, cotangent: Any, contributions: Any) -> None:
        """An operation's VJP has run."""


class Mode:
    """Immutable; ``changed`` and ``replace`` install a new one."""

    __slots__ = ("backend", "observer", "recording", "scope")

    def __init__(
        self,
        recording: bool = True,
        backend: Backend | None = None,
        scope: Scope | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.recording = recording
        self.backend = backend
        self.scope = scope
        self.observer = observer

    def but(self, **changes: Any) -> Mode:
        """This mode with some fields changed."""
        return Mode(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})


_variable: ContextVar[Mode] = ContextVar("tinyseq.mode", default=Mode())  # noqa: B039 (immutable)
current = _variable.get


def replace(**changes: Any) -> None:
    """Change the mode of this context until something changes it again."""
    _variable.set(current().but(**changes))


@contextmanager
def changed(**changes: Any) -> Iterator[None]:
    """Change the mode inside a ``with`` block."""
    token = _variable.set(current().but(**changes))
    try:
        yield
    finally:
        _variable.reset(token)


def scope(kind: str, name: str | int) -> Any:
    """Say where the operations of a ``with`` block belong, for those who read the record (pictures, messages)."""
    return changed(scope=Scope(current().scope, kind, name))
