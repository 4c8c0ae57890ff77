"""What holds for the code that runs now: is it recorded, on which backend, where in the program, who watches.

One immutable ``Mode`` sits in a context variable, so that threads and asynchronous tasks each have their own and a
``with`` block always puts back what it found. Reading it costs 20 ns; every operation does.
"""

from __future__ import annotations

from contextlib import ContextDecorator
from contextvars import ContextVar, Token
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
    """Immutable; ``changed`` and ``replace`` install a new one.

    Attributes:
        recording: whether operations are put on the tape.
        backend: the backend in force, or None for the process's.
        scope: where in the program this is.
        observer: who watches.
        tracing: whether a function runs once to see what it does; random numbers are refused then.
    """

    __slots__ = ("backend", "observer", "recording", "scope", "tracing")

    def __init__(
        self,
        recording: bool = True,
        backend: Backend | None = None,
        scope: Scope | None = None,
        observer: Observer | None = None,
        tracing: bool = False,
    ) -> None:
        self.recording = recording
        self.backend = backend
        self.scope = scope
        self.observer = observer
        self.tracing = tracing

    def but(self, **changes: Any) -> Mode:
        """This mode with some fields changed."""
        return Mode(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})


_variable: ContextVar[Mode] = ContextVar("tinyseq.mode", default=Mode())  # noqa: B039 (immutable)
current = _variable.get


def replace(**changes: Any) -> None:
    """Change the mode of this context until something changes it again."""
    _variable.set(current().but(**changes))


class changed(ContextDecorator):
    """Change the mode inside a ``with`` block, or while a decorated function runs."""

    def __init__(self, **changes: Any) -> None:
        self._changes = changes

    def __enter__(self) -> None:
        self._token = _variable.set(current().but(**self._changes))

    def __exit__(self, *error: object) -> None:
        _variable.reset(self._token)

    def _recreate_cm(self) -> changed:
        return changed(**self._changes)  # a decorated function may call itself


class scope:
    """Say where the operations of a ``with`` block belong, for those who read the record (pictures, messages).

    Every step of a scan and every call of a module does, so this takes half the time that ``changed`` would.
    """

    __slots__ = ("_kind", "_name", "_token")
    _token: Token[Mode]

    def __init__(self, kind: str, name: str | int) -> None:
        self._kind = kind
        self._name = name

    def __enter__(self) -> None:
        m = current()
        inner = Scope(m.scope, self._kind, self._name)
        self._token = _variable.set(Mode(m.recording, m.backend, inner, m.observer, m.tracing))

    def __exit__(self, *error: object) -> None:
        _variable.reset(self._token)
