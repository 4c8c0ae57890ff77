"""Backends: what one is, where they are found, and which one is in force.

A backend is a table with a function for each primitive, on the arrays of one library. ``tinyseq`` imports none: they
are found through the entry points of the group ``tinyseq.backends`` and loaded when first asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tinyseq import mode
from tinyseq.array_api import operations
from tinyseq.errors import BackendError, DTypeError

if TYPE_CHECKING:
    from tinyseq.compiler.fuse import Fuses
    from tinyseq.compiler.loop import Step
    from tinyseq.graph import Graph

__all__ = [
    "Backend",
    "BackendInfo",
    "CannotFuse",
    "backend_of",
    "backends",
    "canonical_dtype",
    "current_backend",
    "get_backend",
    "synchronize",
    "use_backend",
]

GROUP = "tinyseq.backends"
Array = Any


class CannotFuse(Exception):
    """A backend's loop takes a step alone; the sentence says what it has no code for."""


class Backend:
    """What tinyseq asks of a backend. Subclass it, name it, and say which array library it runs on.

    Attributes:
        name: what ``use_backend`` is called with.
        xp: the array library's namespace, which follows the array-API standard as far as it can.
        array_type: the one type of this library's arrays. Operations on such an array run on this backend.
        install: the command that installs what the backend needs.
        ops: a function for each primitive: ``ops.tanh(x)``, ``ops.sum(x, axis=(-1,), keepdims=False)``.
        fused: functions of ``tinyseq.fused`` that this backend computes in one pass, by name.
        fuses: which equations its loops can run beside the carry, see ``tinyseq.compiler.fuse``; None if they take a step
            alone.
        sums_products: whether they also add up there the products that give the gradient of a weight.
        recomputes: whether elementwise work is better done again than kept for a gradient, since compiled code makes one
            pass over memory of it; such work is also cut to the columns of one gate each.
        generator_family: backends that name the same family share one random generator, so that the same seed
            gives the same numbers on each.
        dlpack_devices: the kinds of device, by DLPack's numbers, whose arrays this library takes as they are; 1 is the host.

    A subclass sets ``xp`` and ``array_type`` before it calls ``super().__init__()``, and overrides ``overrides()``.
    """

    name: ClassVar[str]
    install: ClassVar[str] = ""
    generator_family: ClassVar[str]
    recomputes: ClassVar[bool] = False
    sums_products: ClassVar[bool] = True
    dlpack_devices: ClassVar[tuple[int, ...]] = (1,)
    xp: Any
    fuses: Fuses | None = None
    array_type: type

    def __init__(self) -> None:
        self.ops: Any = SimpleNamespace(**{**operations(self.xp), **self.overrides()})
        self.table: dict[str, Callable[..., Array]] = vars(self.ops)
        self.fused: dict[str, Any] = {}

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this backend cannot run here, in one sentence; None if it can.

        What to do comes after a colon, unless it is ``install``.
        """
        return None

    @classmethod
    def on(cls, place: str) -> Backend:
        """The backend on one of its devices: ``"cupy:1"`` asks for ``on("1")``.

        Raises:
            BackendError: it has no such device.
        """
        raise BackendError(
            f"the backend {cls.name!r} has no devices to choose from, got '{cls.name}:{place}'; say {cls.name!r}"
        )

    @property
    def version(self) -> str:
        """The array library and its version."""
        return f"{self.xp.__name__} {self.xp.__version__}"

    @property
    def device(self) -> str:
        """Where the arrays live."""
        return "cpu"

    def overrides(self) -> dict[str, Callable[..., Array]]:
        """Operations that the library does better than the array-API standard lets one write them."""
        return {}

    def native_dtype(self, dtype: np.dtype[Any]) -> Any:
        """The library's own object for a NumPy dtype; raises ``DTypeError`` if it has none."""
        try:
            return getattr(self.xp, dtype.name)
        except AttributeError:
            raise DTypeError(f"the {self.name!r} backend has no dtype {dtype.name}; cast to float32 first") from None

    def holds(self, array: Array) -> bool:
        """Whether an array is this library's and, of several devices, on this backend's."""
        return type(array) is self.array_type

    def owner(self, array: Array) -> Backend:
        """The backend of the device on which an array of this library is."""
        return self

    def moved(self, array: Array) -> Array:
        """An array of this library from another device on this backend's."""
        return array

    def asarray(self, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
        """A number, nested lists or an array as this library's array; no copy where none is needed."""
        native = None if dtype is None else self.native_dtype(dtype)
        return self.xp.asarray(value, dtype=native)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """The array on the host, as NumPy's; no copy where none is needed."""
        return np.asarray(array)

    def contiguous(self, array: Array) -> Array:
        """The array laid out in one piece, as compiled functions want it; a copy only if it is not."""
        return array

    def full(self, shape: tuple[int, ...], value: Any, dtype: np.dtype[Any]) -> Array:
        """A new array with every element equal to ``value``."""
        return self.xp.full(shape, value, dtype=self.native_dtype(dtype))

    def synchronize(self) -> None:
        """Wait until the device has finished; nothing to do where calls return when done."""

    def new_generator(self, seed: int) -> Any:
        """A random generator with the methods of :class:`numpy.random.Generator` that ``tinyseq.random`` names."""
        return np.random.Generator(np.random.PCG64(seed))

    def generator_state(self, generator: Any) -> Any:
        """The generator's state, as a value that JSON can hold."""
        return generator.bit_generator.state

    def set_generator_state(self, generator: Any, state: Any) -> None:
        """Put back what ``generator_state`` gave."""
        generator.bit_generator.state = state

    def compile_loop(self, step: Step) -> Callable[..., tuple[list[Array], list[Array], list[Array], list[Array]]]:
        """A step's graph as a loop over time.

        Returns:
            ``loop(carry, stacks, closed, steps, reverse)``, which returns the last carry, the histories (T + 1, ...) of
            the parts of the carry that ``step.histories`` names, the written stacks (T, ...), and ``step.sums``. Here it
            runs the graph operation by operation; a backend may compile it.

        Raises:
            CannotFuse: it takes the step alone, without what was fused into it.
        """
        from tinyseq.compiler.interpret import interpreted

        return interpreted(step, self)

    def compile_graph(self, graph: Graph) -> Callable[..., list[Array]]:
        """A straight-line graph as a function from the arrays of its inputs to the list of its outputs' arrays.

        Here it runs operation by operation; a backend may compile it. The arrays that it is given must not be changed.
        """
        from tinyseq.compiler.straight import interpreted

        return interpreted(graph, self)

    def elementwise(self, rule: Callable[..., Callable[..., tuple[Any, ...]]], **flags: Any) -> Callable[..., tuple[Any, ...]]:
        """A function of numbers, made to run over arrays of one shape and dtype. A backend may compile it to one pass.

        ``rule(F, **flags)`` returns the function; it is written with operators, ``F.sqrt`` and ``F.maximum``. It gives a
        tuple with new values of its first arguments: arrays, or numbers that stand for arrays it has no use for.

        What is returned here takes the function's arguments and ``in_place``, which says for each of those first ones
        whether its array may be overwritten (it need not be). Use the arrays it returns, not those it was given.
        """
        function = rule(self.ops, **flags)

        def run(*arguments: Any, in_place: Sequence[bool]) -> tuple[Any, ...]:
            return function(*arguments)

        return run

    def __repr__(self) -> str:
        return f"<tinyseq backend {self.name!r} on {self.device}>"


@dataclass(frozen=True)
class BackendInfo:
    """A line of ``ts.backends()``."""

    name: str
    version: str
    device: str
    available: bool
    reason: str
    install: str

    def __str__(self) -> str:
        if self.available:
            return f"{self.name}: {self.version} on {self.device}"
        remedy = "" if _says_what_to_do(self.reason) else f" ({self.install})"
        return f"{self.name}: not available: {self.reason}{remedy}"


def _says_what_to_do(reason: str) -> bool:
    return ": " in reason


# The built-in names resolve without a scan of the installed packages.
_BUILT_IN = {
    "numpy": "tinyseq_numpy:NumpyBackend",
    "numba": "tinyseq_numba:NumbaBackend",
    "cupy": "tinyseq_cupy:CupyBackend",
}
_loaded: dict[str, Backend] = {}
_by_array_type: dict[type, Backend] = {}
_default: Backend | None = None


def _entry_points() -> dict[str, str]:
    found = {point.name: point.value for point in importlib.metadata.entry_points(group=GROUP)}
    return {**found, **_BUILT_IN}


def _backend_class(name: str) -> type[Backend]:
    target = _BUILT_IN.get(name) or _entry_points().get(name)
    if target is None:
        known = ", ".join(sorted(_entry_points()))
        raise BackendError(f"there is no backend {name!r}; choose one of: {known}")
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendError(f"the backend {name!r} cannot be imported ({target}): {error}") from error


def get_backend(name: str | Backend) -> Backend:
    """The backend of that name, loaded once; a Backend as it is, and from then on its arrays are known.

    ``"cupy:1"`` is the backend on its device 1.

    Raises:
        BackendError: no such backend or device, or it cannot run here; the sentence says what to install.

    >>> get_backend("numpy").name
    'numpy'
    """
    if isinstance(name, Backend):
        _by_array_type.setdefault(name.array_type, name)
        return name
    if name not in _loaded:
        library, colon, place = name.partition(":")
        kind = _backend_class(library)
        reason = kind.unavailable()
        if reason is not None:
            remedy = f"; install it with: {kind.install}" if kind.install and not _says_what_to_do(reason) else ""
            raise BackendError(f"the backend {name!r} cannot run here: {reason}{remedy}")
        backend = kind.on(place) if colon else kind()
        _loaded[name] = backend
        _by_array_type.setdefault(backend.array_type, backend)
    return _loaded[name]


def current_backend() -> Backend:
    """The backend in force: of the ``with`` block, else the last ``use_backend``, else ``TINYSEQ_BACKEND``, else NumPy."""
    return mode.current().backend or _default or _initial()


def _initial() -> Backend:
    global _default
    _default = get_backend(os.environ.get("TINYSEQ_BACKEND") or "numpy")
    return _default


def backend_of(array: Array) -> Backend | None:
    """The backend that an array belongs to: the one in force if it takes such arrays, else the first loaded that does."""
    current = current_backend()
    return current if type(array) is current.array_type else _by_array_type.get(type(array))


def synchronize() -> None:
    """Wait until the device of the backend in force has done all that it was given.

    On a GPU operations return at once; a time is that of the work only if it ends with this.

    >>> import tinyseq as ts
    >>> y = ts.ones(3) + 1; ts.synchronize()
    """
    current_backend().synchronize()


class use_backend:
    """Choose the backend, as a call for all that follows or as a context for a block.

    Raises:
        BackendError: no such backend, or it cannot run here.

    >>> import tinyseq as ts
    >>> with ts.use_backend("numpy"):
    ...     ts.current_backend().name
    'numpy'
    """

    def __init__(self, name: str | Backend) -> None:
        global _default
        backend = get_backend(name)
        self._before = (_default, mode.current().backend)
        # New threads start from the process's default, so a plain call sets that too.
        _default = backend
        mode.replace(backend=backend)
        self._backend = backend

    def __enter__(self) -> Backend:
        global _default
        _default = self._before[0]
        return self._backend

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        mode.replace(backend=self._before[1])


def backends() -> list[BackendInfo]:
    """Every backend that is installed or built in, with its version and device, or why it cannot run here.

    >>> [info.available for info in backends() if info.name == "numpy"]
    [True]
    """
    lines = []
    for name in sorted(_entry_points(), key=lambda name: (list(_BUILT_IN).index(name) if name in _BUILT_IN else 9, name)):
        try:
            kind = _backend_class(name)
            reason, install = kind.unavailable(), kind.install
            backend = None if reason else get_backend(name)
        except (BackendError, ImportError) as error:
            reason, install, backend = str(error), "", None
        version, device = (backend.version, backend.device) if backend else ("", "")
        lines.append(BackendInfo(name, version, device, backend is not None, reason or "", install))
    return lines


_canonical: dict[Any, np.dtype[Any]] = {}


def canonical_dtype(native: Any) -> np.dtype[Any]:
    """NumPy's dtype for a library's own (``torch.float32``, ``array_api_strict.int64``): the last word of its name."""
    if isinstance(native, np.dtype):
        return native
    if native not in _canonical:
        _canonical[native] = np.dtype(str(native).rpartition(".")[2])
    return _canonical[native]
