"""Module: parameters and the functions that use them, found by a walk over plain attributes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from tinyseq import mode
from tinyseq.backend import Backend, get_backend
from tinyseq.errors import CheckpointError, GraphError, TinyseqError
from tinyseq.tape import Leaf
from tinyseq.tensor import Parameter, Tensor, tensor

__all__ = ["Module"]

M = TypeVar("M", bound="Module")


class Module:
    """A function with parameters: assign them, or other modules, to attributes and define ``__call__``.

    Everything public among the attributes is found, also in lists, tuples and dicts, and named by the way to it
    (``layers.0.weight``):

    * a :class:`Parameter`, or another tensor made with ``requires_grad=True``, is a parameter;
    * a constant tensor is a buffer: saved, but not learned;
    * a module brings its own.

    Attributes whose name begins with an underscore are left alone. There is nothing to set up first: ``__init__`` of a
    subclass need not call that of Module.

    >>> import tinyseq as ts
    >>> class Affine(ts.nn.Module):
    ...     def __init__(self):
    ...         self.scale = ts.Parameter([2.0])
    ...         self.shift = ts.Parameter([1.0])
    ...     def __call__(self, x):
    ...         return self.scale * x + self.shift
    >>> affine = Affine()
    >>> affine(ts.tensor([3.0])).tolist()
    [7.0]
    >>> affine
    Affine: 2 parameters
      scale: (1,) float32
      shift: (1,) float32
    """

    training: bool = True

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "__call__" in vars(cls):
            cls.__call__ = _in_scope(cls.__call__)  # type: ignore[method-assign]

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            _name(value, name)
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """What the module computes; a subclass says what."""
        kind = type(self).__name__
        raise NotImplementedError(f"{kind} does not say what it computes; give it a method __call__")

    # What is in it

    def _members(self) -> Iterator[tuple[str, Tensor | Module]]:
        """The tensors and modules in the attributes, not those inside modules."""
        for name, value in vars(self).items():
            if not name.startswith("_"):
                yield from _leaves(name, value)

    def _tensors(self, prefix: str = "", inside: tuple[Module, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer under every name that leads to it; the result of an operation is neither."""
        inside = (*inside, self)
        for name, value in self._members():
            if isinstance(value, Module):
                if not _is_among(value, inside):  # a module may know the one that it is part of
                    yield from value._tensors(f"{prefix}{name}.", inside)
            elif value.is_leaf:
                yield prefix + name, value

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Each parameter with its name, in the order of the attributes; a shared one once, by its first name.

        >>> import tinyseq as ts
        >>> [name for name, _ in ts.nn.Linear(2, 3).named_parameters()]
        ['weight', 'bias']
        """
        return _once((name, value) for name, value in self._tensors() if _is_learned(value))

    def parameters(self) -> Iterator[Tensor]:
        """Each parameter once: what an optimizer takes."""
        return (value for _, value in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor that is kept but not learned, with its name."""
        return _once((name, value) for name, value in self._tensors() if not _is_learned(value))

    def buffers(self) -> Iterator[Tensor]:
        """Each tensor that is kept but not learned."""
        return (value for _, value in self.named_buffers())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly in this one, each once, with their names."""
        return _once((name, value) for name, value in self._members() if isinstance(value, Module))

    def children(self) -> Iterator[Module]:
        """The modules directly in this one, each once."""
        return (child for _, child in self.named_children())

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """This module, whose name is empty, and all inside it, each once, with their dotted names."""
        seen: set[int] = set()
        stack: list[tuple[str, Module]] = [("", self)]
        while stack:
            name, module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield name, module
                inner = [(f"{name}.{child}" if name else child, value) for child, value in module.named_children()]
                stack.extend(reversed(inner))

    def modules(self) -> Iterator[Module]:
        """This module and all inside it, each once."""
        return (module for _, module in self.named_modules())

    # Saving and loading

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as constants; a shared one stands under each of its names.

        It is a snapshot: what the module learns later does not change it.

        >>> import tinyseq as ts
        >>> {name: value.shape for name, value in ts.nn.Linear(2, 3).state_dict().items()}
        {'weight': (3, 2), 'bias': (3,)}
        """
        state: dict[str, Tensor] = {}
        for name, value in self._tensors():
            if name in state:
                raise GraphError(f"two tensors of this module are called {name!r}; rename the key of the dict that holds one")
            state[name] = value.detach()
        return state

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> tuple[list[str], list[str]]:
        """Take over the values of all parameters and buffers. Nothing changes unless everything fits.

        Args:
            state: tensors, NumPy arrays or another library's arrays by name; of a shared tensor one name is enough.
            strict: whether missing and unexpected names are errors.

        Returns:
            The names that are missing in ``state`` and those in it that this module does not have.

        Raises:
            CheckpointError: names do not match, or a shape or dtype differs; says which.

        >>> import tinyseq as ts
        >>> ts.nn.Linear(2, 1).load_state_dict({"weight": [[1.0, 2.0]]})
        Traceback (most recent call last):
        ...
        tinyseq.errors.CheckpointError: the state does not fit Linear: missing are 'bias'
        """
        own = dict(self._tensors())
        new = {name: _loaded(name, own[name], value) for name, value in state.items() if name in own}
        unexpected = [str(name) for name in state if name not in own]
        given = {id(own[name]) for name in new}
        missing = [name for name, value in own.items() if id(value) not in given]
        problems = []
        for what, names in (("missing", missing), ("unexpected", unexpected)):
            if strict and names:
                problems.append(f"{what} are {_joined([repr(name) for name in names])}")
        values: dict[int, Tensor] = {}
        for name, value in new.items():
            if isinstance(value, str):
                problems.append(value)
            elif not _equal(values.setdefault(id(own[name]), value), value):
                problems.append(f"{name!r} is shared under several names that have different values")
        if problems:
            raise CheckpointError(f"the state does not fit {type(self).__name__}: {_joined(problems, '; ')}")
        for target in own.values():
            if id(target) in values:
                target.data = values[id(target)].data
        return missing, unexpected

    # Settings

    def train(self: M, training: bool = True) -> M:
        """Switch dropout and the like on, here and in all modules inside; returns the module."""
        for module in self.modules():
            module.training = training
        return self

    def eval(self: M) -> M:
        """Switch dropout and the like off: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self: M, value: bool = True) -> M:
        """Let all parameters ask for a gradient, or freeze them; returns the module."""
        for name, parameter in list(self.named_parameters()):
            parameter.requires_grad = value
            _name(parameter, name.rpartition(".")[2])
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = None

    def to(self: M, where: str | Backend) -> M:
        """Move all parameters and buffers to another backend or device, in place; gradients are dropped.

        Args:
            where: a backend's name, with a device's number where it has several: ``"numpy"``, ``"cupy"``, ``"cupy:1"``.

        Returns:
            The module.

        Raises:
            BackendError: there is no such backend or device here.

        >>> import tinyseq as ts
        >>> ts.nn.Linear(2, 3).to("numpy").weight.backend.name
        'numpy'
        """
        backend = where if isinstance(where, Backend) else get_backend(where)
        return self._replace(lambda value: value.detach().to(backend))

    def astype(self: M, dtype: Any) -> M:
        """Cast all floating-point parameters and buffers, in place; gradients are dropped. Returns the module.

        >>> import tinyseq as ts
        >>> ts.nn.Linear(2, 3).astype("float64").weight.dtype
        dtype('float64')
        """
        return self._replace(lambda value: value.detach().astype(dtype) if value.dtype.kind in "fV" else value)

    def _replace(self: M, change: Callable[[Tensor], Tensor]) -> M:
        for value, new in [(value, change(value)) for _, value in _once(self._tensors())]:
            if new.data is value.data:
                continue
            name, learned = value.name, value.requires_grad
            value.requires_grad = False  # the leaf of the old array goes, with its gradient
            value.data = new.data
            value.requires_grad = learned
            if name is not None:
                value.name = name
        return self

    # Looking at it

    def __repr__(self) -> str:
        return "\n".join([_line(self), *_lines(self, "  ", (self,))])


# --- helpers ----------------------------------------------------------------------------------------------------------


def _in_scope(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, with what it records marked as this module's, for pictures and messages."""

    @functools.wraps(call)
    def scoped(self: Module, *args: Any, **keywords: Any) -> Any:
        with mode.scope("module", type(self).__name__):
            return call(self, *args, **keywords)

    return scoped


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor | Module]]:
    if isinstance(value, Tensor | Module):
        yield name, value
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _leaves(f"{name}.{place}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}", part)


T = TypeVar("T")


def _once(named: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    seen: set[int] = set()
    for name, value in named:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _is_among(module: Module, others: tuple[Module, ...]) -> bool:
    return any(module is other for other in others)  # by identity: a subclass may define ==


def _is_learned(value: Tensor) -> bool:
    return isinstance(value, Parameter) or value.requires_grad  # a frozen Parameter still is one


def _name(value: Tensor, name: str) -> None:
    """Name a parameter that has no name yet."""
    if isinstance(value.node, Leaf) and value.node.name is None:
        value.node.name = name


def _loaded(name: str, target: Tensor, value: Any) -> Tensor | str:
    """The value as a tensor of its own on the target's backend; or what is wrong with it."""
    try:
        value = tensor(value).detach()
    except TinyseqError as error:
        return f"{name!r} is no tensor ({error})"
    if value.shape != target.shape:
        return f"{name!r} has shape {value.shape} where {target.shape} is needed"
    if value.dtype != target.dtype:
        return f"{name!r} is {value.dtype} where {target.dtype} is needed (cast it, or the module with .astype)"
    return value.to(target.backend)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or np.array_equal(a.numpy(), b.numpy(), equal_nan=a.dtype.kind == "f")


def _joined(parts: list[str], separator: str = ", ", longest: int = 8) -> str:
    more = [f"and {len(parts) - longest} more"] if len(parts) > longest else []
    return separator.join(parts[:longest] + more)


def _line(module: Module) -> str:
    """A module's type, its numbers and texts as they were given, and its size: ``Dropout(p=0.5): 0 parameters``."""
    settings = [
        f"{name}={value!r}"
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) and not name.startswith("_") and name != "training"
    ]
    count = sum(parameter.size for parameter in module.parameters())
    shown = f"({', '.join(settings)})" if settings else ""
    return f"{type(module).__name__}{shown}: {count:,} parameter{'s' * (count != 1)}"


def _lines(module: Module, indent: str, inside: tuple[Module, ...]) -> Iterator[str]:
    for name, value in module._members():
        if not isinstance(value, Module):
            yield f"{indent}{name}: {value.shape} {value.dtype}{'' if _is_learned(value) else ' (buffer)'}"
        elif not _is_among(value, inside):
            yield f"{indent}{name}: {_line(value)}"
            yield from _lines(value, indent + "  ", (*inside, value))
