"""``scan``: a loop over time whose body is a function of the state and of one step's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from tinyseq import mode
from tinyseq.abstract import Tracer
from tinyseq.compiler.scan import compiled_scan, traced
from tinyseq.errors import DTypeError, GraphError, ShapeError
from tinyseq.flow import active as active_flow
from tinyseq.flow import watch
from tinyseq.functions import stack
from tinyseq.tensor import Tensor, as_tensor, bool_, where
from tinyseq.tree import TreeDef, flatten

__all__ = ["scan"]

Tree = Any  # nested tuples, lists and dicts of tensors
Step = Callable[[Tree, Tree], tuple[Tree, Tree]]


def scan(
    step: Step,
    carry: Tree,
    xs: Tree = None,
    *,
    length: int | None = None,
    reverse: bool = False,
    lengths: Any = None,
    resets: Any = None,
    unroll: bool = False,
    checkpoint: int | bool = False,
) -> tuple[Tree, Tree]:
    """Run ``step(carry, x) -> (carry, y)`` over the first axis of ``xs``; return the last carry and all y, stacked.

    With T steps and B rows, this is what it means::

        start, ys = carry, []
        for t in reversed(range(T)) if reverse else range(T):
            begin = where(resets[t], start, carry)                   # with resets
            after, y = step(begin, xs[t])
            carry = where(t < lengths, after, carry)                 # with lengths, else carry = after
            ys.append(where(t < lengths, y, 0))                      # in the order of t, also in reverse
        return carry, stack(ys)

    carry, x and y are tensors or nested tuples, lists and dicts of them; the carry keeps its structure, shapes and
    dtypes. Tensors that ``step`` closes over, such as parameters, get their gradients.

    Args:
        step: the body of the loop. It returns the next carry and the output of this step, which may be None.
        carry: the state before the first step.
        xs: the inputs, time first: (T, ...), or None if ``length`` says how many steps there are.
        length: the number of steps T, if ``xs`` is None.
        reverse: run from the last step to the first.
        lengths: (B,) integers from 0 to T, how many steps of each row are valid; the rest is padding, whose content
            has no effect on any value or gradient: ``step`` sees zeros in its place. All of carry, x and y must then
            have the batch as their first axis. A row's state stays as it is in the padding: after the row's end, and in
            reverse before its last valid step. A row of length 0 keeps its initial state.
        resets: (T, B) booleans, where a row's state goes back to its initial value before the step.
        unroll: run ``step`` in Python and record every step on the tape: the definition. Otherwise ``step`` is called
            once, to see what it does, and the backend compiles a loop; then it must not branch on values, draw random
            numbers or change anything outside.
        checkpoint: k: keep the carry every k steps only, and run the steps between again when the gradient is taken: what
            is kept then takes the memory of T / k + k steps instead of T, for the time of one more forward pass. True
            stands for the square root of T, which keeps least.

    Raises:
        ShapeError: xs of unequal lengths, no steps at all, a carry that changes its structure or shape, lengths or
            resets that do not fit.
        DTypeError: a carry that changes its dtype, lengths that are no integers, resets that are no booleans.
        GraphError: a compiled ``step`` looks at a value, draws random numbers or assigns to a tensor outside;
            ``checkpoint`` with ``unroll``.
        ValueError: ``checkpoint`` is no positive number of steps.

    >>> import tinyseq as ts
    >>> total, sums = ts.scan(lambda c, x: (c + x, c + x), ts.tensor(0), ts.tensor([1, 2, 3]))
    >>> total.item(), sums.tolist()
    (6, [1, 3, 6])
    """
    if not unroll and isinstance(staging := mode.current().backend, Tracer):
        staging.loop()
    x_leaves, x_kinds = _tensors(xs)
    start, kinds = _tensors(carry)
    steps = _steps(x_leaves, x_kinds, length)
    every = _every(checkpoint, steps, unroll)
    flow = active_flow()
    entry = None if flow is None or mode.current().tracing else flow.entry(kinds.paths())
    valid = None if lengths is None else _valid(lengths, steps)
    flags = None if resets is None else _flags(resets, steps)
    rows = _rows(valid, flags)
    if rows is not None:
        _check_batch(start, kinds, rows, "carry", axis=0)
    if valid is not None:
        _check_batch(x_leaves, x_kinds, rows, "xs", axis=1)
        # NaN or a wild number in the padding would pass through a mask on the results: 0 * NaN is NaN in a VJP.
        x_leaves = [_select(valid, x, NOTHING) for x in x_leaves]

    # One step on flat lists: what the loop on the tape and the compiled loop both run.
    y_kinds: TreeDef | None = None
    marks = [each for each in (flags, valid) if each is not None]

    def flat(t: int, *values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        nonlocal y_kinds
        leaves, inputs = list(values[: len(start)]), list(values[len(start) : len(start) + len(x_leaves)])
        marked = iter(values[len(start) + len(x_leaves) :])
        begin = leaves if flags is None else _select_all(next(marked), start, leaves)
        after, y = _run(step, kinds.unflatten(begin), x_kinds.unflatten(inputs))
        new, kind = _tensors(after)
        _check_same("carry", start, kinds, new, kind, t)
        outputs, kind = _tensors(y)
        if y_kinds is None:
            y_kinds = kind
        elif difference := y_kinds.mismatch(kind):
            raise ShapeError(f"scan needs y to keep its structure, but step {t} changed it: {difference}")
        return (new if valid is None else _select_all(next(marked), new, leaves)), outputs

    def unrolled(first: list[Tensor], stacks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        leaves = first
        ys: list[list[Tensor]] = []
        squares: dict[int, Any] = {}
        for t in reversed(range(steps)) if reverse else range(steps):
            with mode.scope("step", t):
                leaves, outputs = flat(t, *leaves, *(x[t] for x in stacks))
            if entry is not None:
                watch(entry, t, steps, leaves, squares)
            if ys:
                assert y_kinds is not None
                _check_same("y", ys[0], y_kinds, outputs, y_kinds, t)
            ys.append(outputs)
        if reverse:
            ys.reverse()
        return leaves, [stack(list(column)) for column in zip(*ys, strict=True)]

    if unroll or not (start or x_leaves) or traced([*start, *x_leaves]):
        last, stacked = unrolled(start, [*x_leaves, *marks])
    else:
        last, stacked = compiled_scan(partial(flat, 0), start, [*x_leaves, *marks], steps, reverse, unrolled, every, entry)
    assert y_kinds is not None  # there is at least one step
    if valid is not None:
        _check_batch(stacked, y_kinds, rows, "ys", axis=1)
        stacked = [_select(valid, y, NOTHING) for y in stacked]
    return kinds.unflatten(last), y_kinds.unflatten(stacked)


def _tensors(tree: Tree) -> tuple[list[Tensor], TreeDef]:
    leaves, structure = flatten(tree)
    return [as_tensor(leaf) for leaf in leaves], structure


# --- the number of steps, and which of them count ---------------------------------------------------------------------


def _steps(xs: list[Tensor], kinds: TreeDef, length: int | None) -> int:
    found = [("length", length)] if length is not None else []
    for path, x in zip(kinds.paths(), xs, strict=True):
        name = f"xs.{path}" if path else "xs"
        if not x.ndim:
            raise ShapeError(f"scan runs over the first axis of xs, but {name} is a single number; close over it instead")
        found.append((name, x.shape[0]))
    if not found:
        raise ShapeError("scan does not know how many steps to run; give xs or length")
    (first, steps), *others = found
    for name, other in others:
        if other != steps:
            raise ShapeError(f"scan needs inputs of one length, but {first} has {steps} steps and {name} has {other}")
    if steps < 1:
        raise ShapeError(f"scan over {steps} steps has no outputs to stack; give at least one step")
    return steps


def _every(checkpoint: int | bool, steps: int, unroll: bool) -> int | None:
    """After how many steps the carry is kept; None where nothing is to be run again."""
    if checkpoint is False:
        return None
    if unroll:
        raise GraphError("scan(checkpoint=...) is for the compiled loop; with unroll=True, wrap parts of it in ts.checkpoint")
    if checkpoint is True:
        return math.isqrt(steps - 1) + 1
    if not isinstance(checkpoint, int) or checkpoint < 1:
        raise ValueError(f"scan takes a positive number of steps as checkpoint, or True, got {checkpoint!r}")
    return checkpoint


def _valid(lengths: Any, steps: int) -> Tensor:
    """(T, B): which steps of each row are not padding."""
    return as_tensor(np.arange(steps)[:, None] < checked_lengths(lengths, steps, "scan"))


def checked_lengths(lengths: Any, steps: int, who: str) -> np.ndarray[Any, Any]:
    """Lengths as an array (B,), if they are integers from 0 to T; none at all have no dtype.

    Raises:
        DTypeError: they are no integers.
        ShapeError: they are not one a row, or not in 0 to T.
    """
    counts = np.asarray(lengths)
    if counts.dtype.kind not in "iu" and counts.size:
        raise DTypeError(f"{who} takes integers as lengths, got dtype {counts.dtype}; cast them to int64")
    if counts.ndim != 1:
        raise ShapeError(f"{who} takes one length a row, of shape (B,), got shape {counts.shape}")
    for row, count in enumerate(counts):
        if not 0 <= count <= steps:
            raise ShapeError(f"{who} takes lengths from 0 to the {steps} steps there are, got {count} in row {row}")
    return counts.astype(np.int64)


def _flags(resets: Any, steps: int) -> Tensor:
    """(T, B): where a row starts anew."""
    flags = as_tensor(resets)
    if flags.dtype != bool_:
        raise DTypeError(f"scan takes booleans as resets, got dtype {flags.dtype}; write resets != 0")
    if flags.ndim != 2 or flags.shape[0] != steps:
        raise ShapeError(f"scan takes resets of shape (T, B) with T = {steps} steps, got shape {flags.shape}")
    return flags


def _rows(valid: Tensor | None, flags: Tensor | None) -> int | None:
    """The batch size that lengths and resets speak of, if either is given."""
    sizes = [each.shape[1] for each in (valid, flags) if each is not None]
    if len(set(sizes)) > 1:
        raise ShapeError(f"scan got lengths for {sizes[0]} rows and resets for {sizes[1]}; they must be for the same rows")
    return sizes[0] if sizes else None


# --- choosing rows ----------------------------------------------------------------------------------------------------

NOTHING = False  # zero in every dtype: a number of the lowest kind never promotes the tensor beside it


def _select(flags: Tensor, x: Tensor, y: Tensor | bool) -> Tensor:
    """``x`` where a flag is set, else ``y``; the flags stand for the first axes of ``x``."""
    return where(flags.reshape(flags.shape + (1,) * (x.ndim - flags.ndim)), x, y)


def _select_all(flags: Tensor, xs: list[Tensor], ys: list[Tensor]) -> list[Tensor]:
    return [_select(flags, x, y) for x, y in zip(xs, ys, strict=True)]


def _check_batch(leaves: list[Tensor], kinds: TreeDef, rows: int | None, what: str, axis: int) -> None:
    for path, x in zip(kinds.paths(), leaves, strict=True):
        if x.ndim <= axis or x.shape[axis] != rows:
            name = f"{what}.{path}" if path else what
            raise ShapeError(
                f"scan with lengths or resets for {rows} rows needs the batch as axis {axis} of {name}, got shape {x.shape}"
            )


# --- what a step returns ----------------------------------------------------------------------------------------------


def _run(step: Step, carry: Tree, x: Tree) -> tuple[Tree, Tree]:
    result: Any = step(carry, x)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ShapeError(f"scan needs a step that returns the pair (carry, y), got {type(result).__name__}")
    return result


def _check_same(what: str, first: list[Tensor], kinds: TreeDef, now: list[Tensor], structure: TreeDef, t: int) -> None:
    """Raise if the carry or the output of step ``t`` is not of the structure, shapes and dtypes that it had at first."""
    if difference := kinds.mismatch(structure):
        raise ShapeError(f"scan needs {what} to keep its structure, but step {t} changed it: {difference}")
    for place, (old, new) in enumerate(zip(first, now, strict=True)):
        if old.data.shape != new.data.shape or old.dtype != new.dtype:
            error = DTypeError if old.shape == new.shape else ShapeError
            path = kinds.paths()[place]
            raise error(
                f"scan needs {what}{path and '.'}{path} to keep its shape and dtype, but step {t} turned "
                f"{old.dtype} {old.shape} into {new.dtype} {new.shape}; cast or reshape one of them"
            )
