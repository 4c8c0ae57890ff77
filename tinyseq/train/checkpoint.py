"""All that a run goes on from, in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tinyseq import random
from tinyseq.errors import CheckpointError, TinyseqError
from tinyseq.io import load_whole, save
from tinyseq.tensor import Tensor

__all__ = ["RandomState", "Stateful", "load_checkpoint", "save_checkpoint"]

ENTRY = "tinyseq.train"


class Stateful(Protocol):
    """A part of a run: a module, an optimizer, a schedule, a loader, anything with these two methods."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and arrays, and whatever JSON can hold, by name."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from there."""


class RandomState:
    """The state of :mod:`tinyseq.random` as a part of a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """The generators' states."""
        return random.get_state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        random.set_state(dict(state))


def save_checkpoint(path: str | os.PathLike[str], parts: Mapping[str, Stateful]) -> None:
    """Write the states of all parts to a safetensors file, as safely as :func:`tinyseq.save`.

    A tensor of the part ``model`` that is called ``weight`` stands in the file as ``model.weight``.

    Raises:
        CheckpointError: the file cannot be written, or a state holds what neither a tensor nor JSON is.

    >>> import tempfile, tinyseq as ts
    >>> layer = ts.nn.Linear(1, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/a.safetensors", {"model": layer, "random": RandomState()})
    ...     list(ts.load(f"{folder}/a.safetensors"))
    ['model.bias', 'model.weight']
    """
    tensors: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        if "." in name:
            raise CheckpointError(f"a part of a checkpoint has a name without dots, not {name!r}")
        others[name] = {}
        for key, value in part.state_dict().items():
            if isinstance(value, Tensor | np.ndarray):
                tensors[f"{name}.{key}"] = value
            else:
                others[name][key] = value
    try:
        text = json.dumps(others)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"a state holds what neither a tensor nor JSON is: {error}") from error
    save(path, tensors, {ENTRY: text})


def load_checkpoint(path: str | os.PathLike[str], parts: Mapping[str, Stateful]) -> None:
    """Let all parts go on from a file of :func:`save_checkpoint`. Nothing changes unless everything fits.

    Raises:
        CheckpointError: there is no such file, it is of another kind, has other parts, or a part does not fit.
    """
    shown = repr(os.fspath(path))
    try:
        tensors, texts = load_whole(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {shown} to go on from") from None
    if ENTRY not in texts:
        raise CheckpointError(f"{shown} holds tensors, but no run of a trainer")
    states: dict[str, dict[str, Any]] = json.loads(texts[ENTRY])
    if states.keys() != parts.keys():
        raise CheckpointError(
            f"{shown} holds the parts {', '.join(sorted(states))}, but this run has {', '.join(sorted(parts))}"
        )
    for full, tensor in tensors.items():
        name, _, key = full.partition(".")
        states[name][key] = tensor
    before = {name: dict(part.state_dict()) for name, part in parts.items()}
    try:
        for name, part in parts.items():
            part.load_state_dict(states[name])
    except (TinyseqError, ValueError, KeyError, TypeError) as error:
        for name, part in parts.items():
            part.load_state_dict(before[name])
        raise CheckpointError(f"{shown} does not fit: {error}") from error
