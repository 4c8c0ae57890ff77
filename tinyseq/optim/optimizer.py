"""What every optimizer shares: groups of parameters with their settings, states, and the walk over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tinyseq.backend import Backend
from tinyseq.errors import BackendError, CheckpointError, DTypeError, GraphError
from tinyseq.tensor import Parameter, Tensor, owned_alone

__all__ = ["Group", "Optimizer", "Parameters", "Update", "named_parameters"]

Group = dict[str, Any]
Parameters = Iterable[Any]  # of parameters, of (name, parameter) pairs, or of groups

_FRACTIONS = {"betas"}  # in [0, 1)
_FREE = {"dampening"}  # any number; all other numbers are not negative


class Update(NamedTuple):
    """How a group's parameters change.

    Attributes:
        rule: what ``Backend.elementwise`` takes: the function of ``(p, *states, g, *numbers)`` that returns
            ``(p, *states)``.
        flags: the rule's options.
        states: the name of each state; None for one that these options have no use for.
    """

    rule: Any
    flags: dict[str, bool]
    states: tuple[str | None, ...]


class Optimizer:
    """The base of all optimizers. A subclass says its update rule, and the numbers that a step hands to it.

    Args:
        params: parameters, such as ``model.parameters()``; or (name, parameter) pairs; or groups, dicts with such a list
            under ``"params"`` and settings that differ from the others'.
        settings: the settings of every group that has none of its own.

    Attributes:
        param_groups: the groups, with their settings, which may be changed between steps.

    Parameters without a gradient are passed over. A parameter's array changes in place only if nobody else holds it (no
    graph, ``state_dict`` or view), so what was read earlier stays what it was.

    Raises:
        ValueError: there is no parameter, one is given twice, or a setting is unknown or out of range.
        DTypeError: something else than a parameter is given.
        GraphError: a parameter is the result of an operation.
    """

    def __init__(self, params: Parameters, **settings: Any) -> None:
        self.defaults = settings
        self.param_groups: list[Group] = []
        self._states: list[dict[str, Tensor]] = []  # of each parameter, in the groups' order
        self._steps: list[int] = []
        if isinstance(params, Tensor):
            raise DTypeError("an optimizer takes a list of parameters, not one tensor; put it in a list")
        entries = list(params.items() if isinstance(params, Mapping) else params)
        if not entries:
            raise ValueError("an optimizer needs at least one parameter, got an empty list")
        groups = entries if isinstance(entries[0], dict) else [{"params": entries}]
        for group in groups:
            self.add_param_group(group)

    # What a subclass says

    def _update(self, group: Group) -> Update:
        """The rule under this group's settings."""
        raise NotImplementedError

    def _numbers(self, group: Group, step: int, fresh: bool) -> tuple[float, ...]:
        """The rule's numbers for a parameter's step number ``step`` (from 1); ``fresh`` says that a state was just made."""
        raise NotImplementedError

    def _initial(self, group: Group) -> float:
        """What states start from."""
        return 0.0

    def _check(self, settings: Group) -> None:
        """Raise ``ValueError`` if settings do not go together."""

    # Groups

    def add_param_group(self, group: Any) -> None:
        """Add parameters with settings of their own: ``{"params": [...], "lr": ...}``."""
        if not isinstance(group, dict) or "params" not in group:
            raise DTypeError(f"a parameter group is a dict with a list under 'params', not {type(group).__name__}")
        unknown = sorted(group.keys() - self.defaults.keys() - {"params"})
        if unknown:
            known = ", ".join(sorted(self.defaults))
            raise ValueError(f"{type(self).__name__} has no setting {', '.join(map(repr, unknown))}; it has {known}")
        given = group["params"]
        parameters = named_parameters([given] if isinstance(given, Tensor) else given)
        taken = {id(p) for other in self.param_groups for p in other["params"]}
        for name, p in parameters:
            if id(p) in taken:
                raise ValueError(f"parameter {name} is given twice; give each parameter to one group, once")
            taken.add(id(p))
        settings = {name: _like(group.get(name, default), default) for name, default in self.defaults.items()}
        self._validate(settings)
        self.param_groups.append({"params": [p for _, p in parameters], **settings})
        self._states += [{} for _ in parameters]
        self._steps += [0] * len(parameters)

    def _validate(self, settings: Group) -> None:
        for name, value in settings.items():
            self._in_range(name, value)
        self._check(settings)

    def _in_range(self, name: str, value: Any) -> None:
        numbers = value if isinstance(value, tuple) else (value,)
        if name in _FRACTIONS and not all(0 <= number < 1 for number in numbers):
            raise ValueError(f"{type(self).__name__} needs {name} in [0, 1), got {value}")
        if name not in _FREE and not all(number >= 0 for number in numbers):
            raise ValueError(f"{type(self).__name__} needs {name} that is not negative, got {value}")

    @property
    def lr(self) -> float:
        """The learning rate of the first group. Setting it sets every group's."""
        return self.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        self._in_range("lr", value)
        for group in self.param_groups:
            group["lr"] = float(value)

    def _each(self) -> Iterator[tuple[int, Tensor, Group]]:
        i = 0
        for group in self.param_groups:
            for p in group["params"]:
                yield i, p, group
                i += 1

    # Steps

    def zero_grad(self) -> None:
        """Set every parameter's gradient to None."""
        for _, p, _ in self._each():
            if p.node is not None:
                p.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient.

        Raises:
            BackendError: a gradient or a state is on another backend than its parameter; nothing was changed.
        """
        for i, p, _ in self._each():
            for what, t in [("gradient", p.grad), *self._states[i].items()]:
                if t is not None and type(t.data) is not type(p.data):
                    raise BackendError(
                        f"the {what} of parameter {p.name or i} is on another backend ({type(t.data).__name__}) than the "
                        f"parameter ({type(p.data).__name__}); move parameters before the optimizer is made and backward() runs"
                    )
        i = 0
        for group in self.param_groups:
            rule, flags, names = self._update(group)
            for p in group["params"]:
                if p.grad is not None:
                    self._steps[i] += 1
                    backend = p.backend
                    fresh = self._make_states(i, p, group, names, backend)
                    numbers = self._numbers(group, self._steps[i], fresh)
                    states = self._states[i]
                    _change([p, *(states[name] if name else None for name in names)], backend, rule, flags, p.grad, numbers)
                i += 1

    def _make_states(self, i: int, p: Tensor, group: Group, names: tuple[str | None, ...], backend: Backend) -> bool:
        missing = [name for name in names if name and name not in self._states[i]]
        for name in missing:
            self._states[i][name] = Tensor(backend.full(p.shape, self._initial(group), p.dtype))
        return bool(missing)

    # Saving

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later run needs to go on bit for bit, as tensors by name: what ``ts.save`` takes.

        ``state.0.exp_avg`` is a state of the first parameter, ``groups.0.lr`` a setting of the first group.
        """
        result: dict[str, Tensor] = {}
        for i, p, _ in self._each():
            if self._steps[i]:
                result[f"state.{i}.step"] = _as_tensor(self._steps[i], p.backend)
                result |= {f"state.{i}.{name}": t.detach() for name, t in self._states[i].items()}
        for j, group in enumerate(self.param_groups):
            backend = self.param_groups[0]["params"][0].backend
            settings = {name: value for name, value in group.items() if name != "params"}
            for name, value in {"parameters": len(group["params"]), **settings}.items():
                result[f"groups.{j}.{name}"] = _as_tensor(value, backend)
        return result

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a ``state_dict`` of the same kind of optimizer over the same parameters.

        Raises:
            CheckpointError: it does not fit, and nothing was changed; the sentence names the entry.
        """
        left = dict(state)
        groups = [self._loaded_group(j, group, left) for j, group in enumerate(self.param_groups)]
        of_parameter = [group for group in groups for _ in group["params"]]
        steps, states = [], []
        for i, p, _ in self._each():
            names = [name for name in self._update(of_parameter[i]).states if name]
            mine = {key: left.pop(key) for key in list(left) if key.startswith(f"state.{i}.")}
            wanted = {f"state.{i}.{name}" for name in (*names, "step")} if mine else set()
            _same_keys(mine.keys(), wanted)
            for name in names if mine else ():
                t = mine[f"state.{i}.{name}"]
                if t.shape != p.shape or t.dtype != p.dtype:
                    raise CheckpointError(
                        f"the optimizer's entry state.{i}.{name} has shape {t.shape} and dtype {t.dtype}, but the parameter "
                        f"has {p.shape} and {p.dtype}; it is of another architecture"
                    )
            steps.append(_count(f"state.{i}.step", mine[f"state.{i}.step"]) if mine else 0)
            states.append({name: _copy(mine[f"state.{i}.{name}"], p.backend) for name in names} if mine else {})
        _same_keys(left.keys(), ())
        for group, loaded in zip(self.param_groups, groups, strict=True):
            group.update(loaded)
        self._steps, self._states = steps, states

    def _loaded_group(self, j: int, group: Group, left: dict[str, Tensor]) -> Group:
        prefix = f"groups.{j}."
        mine = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
        wanted = {"parameters", *self.defaults}
        _same_keys((prefix + name for name in mine if name != "initial_lr"), {prefix + name for name in wanted})
        count = _count(prefix + "parameters", mine.pop("parameters"))
        if count != len(group["params"]):
            raise CheckpointError(
                f"the optimizer's group {j} was saved with {count} parameters, but has {len(group['params'])}; "
                "it is of another architecture"
            )
        defaults = {**self.defaults, "initial_lr": 0.0}
        try:
            settings = {name: _like(t.tolist(), defaults[name]) for name, t in mine.items()}
            self._validate(settings)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the optimizer's group {j} holds what is no setting: {error}") from error
        return {"params": group["params"], **settings}

    def __repr__(self) -> str:
        count = sum(len(group["params"]) for group in self.param_groups)
        return f"<{type(self).__name__} of {count} parameters, lr={self.lr:g}>"


def _change(
    tensors: list[Tensor | None],
    backend: Backend,
    rule: Any,
    flags: dict[str, bool],
    gradient: Tensor,
    numbers: tuple[float, ...],
) -> None:
    """Run the rule and put its results in the tensors' places."""
    # Ask before the arrays are listed below, where this function itself holds them.
    alone = [t is not None and owned_alone(t) for t in tensors]
    arrays = [0.0 if t is None else t.data for t in tensors]
    changed = backend.elementwise(rule, **flags)(*arrays, gradient.data, *numbers, in_place=alone)
    for t, array in zip(tensors, changed, strict=True):
        if t is not None:
            t.data = backend.asarray(array)


def named_parameters(given: Any) -> list[tuple[str, Tensor]]:
    """Parameters with the names that messages call them by, from parameters or (name, parameter) pairs."""
    if not isinstance(given, Iterable) or isinstance(given, str | Tensor):
        raise DTypeError(f"parameters come as a list, not as {type(given).__name__}")
    parameters = []
    for i, entry in enumerate(given.items() if isinstance(given, Mapping) else given):
        named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
        name, p = entry if named else (str(i), entry)
        if not isinstance(p, Tensor) or not (isinstance(p, Parameter) or p.requires_grad):
            kind = "a tensor without requires_grad" if isinstance(p, Tensor) else type(p).__name__
            raise DTypeError(f"parameter {name} is {kind}; give parameters, such as model.parameters()")
        if not p.is_leaf:
            raise GraphError(f"parameter {name} is the result of an operation; give the tensors that it was computed from")
        parameters.append((name, p))
    if not parameters:
        raise ValueError("there is no parameter in the list; does the model have any?")
    return parameters


def _like(value: Any, default: Any) -> Any:
    """A setting as the type that its default has."""
    if isinstance(default, tuple):
        numbers = tuple(float(number) for number in value)
        if len(numbers) != len(default):
            raise ValueError(f"{len(default)} numbers are needed, got {value}")
        return numbers
    return bool(value) if isinstance(default, bool) else float(value)


def _count(key: str, t: Tensor) -> int:
    if t.size != 1 or t.dtype.kind != "i" or t.item() < 1:
        raise CheckpointError(f"the optimizer's entry {key} should be a number of 1 or more, but is {t.tolist()}")
    return int(t.item())


def _as_tensor(value: Any, backend: Backend) -> Tensor:
    return Tensor(backend.asarray(np.asarray(value)))


def _copy(t: Tensor, backend: Backend) -> Tensor:
    moved = t.detach().to(backend)
    return Tensor(backend.ops.copy(moved.data))


def _same_keys(got: Iterable[str], wanted: Iterable[str]) -> None:
    missing, unknown = sorted(set(wanted) - set(got := set(got))), sorted(got - set(wanted))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has an unknown {', '.join(unknown)}"] * bool(unknown)
        raise CheckpointError(
            f"the optimizer's state {' and '.join(parts)}; it was saved by another optimizer or for another model"
        )
