"""From functions to their derivatives: grad, value_and_grad, vjp, jvp, hvp, jacobian; checkpoint; check_grads.

Each calls the function on tensors that stand at new places on the tape, and walks back to those places. The walk is
itself recorded exactly when something outside asks for gradients through it, so that the transforms nest to any depth
and a first-order gradient costs no more than ``backward()``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tinyseq import mode, random
from tinyseq.abstract import Abstract, Tracer
from tinyseq.creation import zeros_like
from tinyseq.errors import DTypeError, GraphError, ShapeError
from tinyseq.primitives import Primitive
from tinyseq.tape import Leaf, Node, Place, ancestors, next_serial, walk
from tinyseq.tensor import Tensor, as_tensor, float64, link, outputs_of, raw, recorded
from tinyseq.tree import flatten, leaf_paths, tree_map

__all__ = ["check_grads", "checkpoint", "grad", "hvp", "jacobian", "jvp", "value_and_grad", "vjp"]

Function = Callable[..., Any]


def _linked(tree: Any, what: str) -> Any:
    """The tree with every tensor at a new place on the tape; all must be of floating point."""

    def one(x: Any) -> Tensor:
        x = as_tensor(x)
        if x.dtype.kind not in "fV":
            raise DTypeError(f"{what} has dtype {x.dtype}, and only floating-point tensors have gradients; cast it")
        return link(x)

    return tree_map(one, tree)


def _pull_back(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor], own: set[Place], retain: bool
) -> list[Tensor]:
    """The cotangent of each input. Recorded if something outside ``own`` wants gradients through the result."""
    starts = [(y.node, g) for y, g in zip(outputs, cotangents, strict=True) if y.node is not None]
    wrt = {x.node for x in inputs if x.node is not None}
    outside = any(g.node is not None and g.node not in own for _, g in starts) or any(
        (type(place) is Leaf or place in wrt) and (place not in own or place.parents)
        for place in ancestors([place for place, _ in starts], wrt)
    )
    backend = inputs[0].backend
    if (outside and mode.current().recording) or isinstance(backend, Tracer):
        found = walk(recorded, starts, wrt, retain=True)
        return [found[x.node] if x.node in found else zeros_like(x) for x in inputs]
    found = walk(raw(backend), [(place, g.data) for place, g in starts], wrt, retain=retain)
    return [Tensor(backend.contiguous(backend.asarray(found[x.node]))) if x.node in found else zeros_like(x) for x in inputs]


def _call(f: Function, args: Sequence[Any]) -> Any:
    """Call the function with recording on: what it computes is differentiated here, whatever holds outside."""
    with mode.changed(recording=True):
        return f(*args)


def vjp(f: Function, *args: Any) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """The value of ``f`` and its pull-back: from a cotangent of the value to those of the arguments.

    Args:
        f: from tensors, or nested structures of them, to a tensor or a nested structure.
        args: where to evaluate it.

    Returns:
        ``f(*args)``, and a function that takes a cotangent of that structure and may be called more than once.

    >>> import tinyseq as ts
    >>> y, pull = ts.vjp(lambda x: x * x, ts.tensor([3.0]))
    >>> pull(ts.tensor([1.0]))[0].tolist()
    [6.0]
    """
    linked = tuple(_linked(arg, f"argument {i}") for i, arg in enumerate(args))
    inputs, structure = flatten(linked)
    own: set[Place] = {x.node for x in inputs if type(x.node) is Leaf}
    output = _call(f, linked)
    ys, y_structure = flatten(output)

    def pull(cotangent: Any) -> tuple[Any, ...]:
        gs, g_structure = flatten(cotangent)
        if g_structure != y_structure:
            raise ShapeError(f"the cotangent has the structure {g_structure}, the value {y_structure}; they must be equal")
        gs = [as_tensor(g).astype(y.dtype) for g, y in zip(gs, ys, strict=True)]
        for g, y in zip(gs, ys, strict=True):
            if g.shape != y.shape:
                raise ShapeError(f"the cotangent has shape {g.shape}, the value {y.shape}; they must be equal")
        return structure.unflatten(_pull_back(ys, gs, inputs, own, retain=True))

    return tree_map(lambda y: _outward(y, own), output), pull


def _outward(y: Tensor, own: set[Place]) -> Tensor:
    """A result as the caller should see it: a constant, if only our own places led to it."""
    if y.node is None or not mode.current().recording:
        return y.detach()
    leaves = (place for place in ancestors([y.node]) if type(place) is Leaf)
    return y if any(leaf not in own for leaf in leaves) else y.detach()


def value_and_grad(f: Function, argnums: int | Sequence[int] = 0, has_aux: bool = False) -> Function:
    """A function that returns the value of ``f`` and its gradient.

    Args:
        f: returns one number; with ``has_aux``, that and anything else.
        argnums: the argument, or arguments, to differentiate; each a tensor or a nested structure.
        has_aux: ``f`` returns ``(value, aux)``; then so does the result, as ``((value, aux), gradient)``.

    Raises:
        GraphError: the value is not a single number.
        DTypeError: an argument to differentiate is not of floating point.

    >>> import tinyseq as ts
    >>> value, slope = ts.value_and_grad(lambda x: (x**3).sum())(ts.tensor([2.0]))
    >>> value.item(), slope.tolist()
    (8.0, [12.0])
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        for n in numbers:
            if not -len(args) <= n < len(args):
                raise GraphError(f"argnums names argument {n}, but {len(args)} were given by position")
        chosen = {n % len(args): _linked(args[n], f"argument {n}") for n in numbers}
        inputs, structure = flatten(tuple(chosen[n % len(args)] for n in numbers))
        own: set[Place] = {x.node for x in inputs if type(x.node) is Leaf}
        result = _call(functools.partial(f, **kwargs), [chosen.get(i, arg) for i, arg in enumerate(args)])
        y, aux = result if has_aux else (result, None)
        if not isinstance(y, Tensor) or y.size != 1:
            have = f"a tensor of shape {y.shape}" if isinstance(y, Tensor) else type(y).__name__
            raise GraphError(f"a gradient needs a function that returns one number, got {have}; reduce it, say with .sum()")
        seed = Tensor(y.backend.full(y.shape, 1, y.dtype))
        # Seen from outside before the walk: a walk that is not recorded frees what it passes.
        value = _outward(y, own)
        gradients = structure.unflatten(_pull_back([y], [seed], inputs, own, retain=value.node is not None))
        gradient = gradients[0] if isinstance(argnums, int) else gradients
        return ((value, tree_map(lambda t: _outward(as_tensor(t), own), aux)) if has_aux else value), gradient

    return wrapped


def grad(f: Function, argnums: int | Sequence[int] = 0) -> Function:
    """A function that returns the gradient of ``f``, which returns one number. Nests to any order.

    >>> import tinyseq as ts
    >>> ts.grad(ts.grad(lambda x: x**3))(ts.tensor(2.0)).item()
    12.0
    """
    inner = value_and_grad(f, argnums)

    @functools.wraps(f)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)[1]

    return wrapped


def jvp(f: Function, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """The value of ``f`` and its derivative in a direction.

    A pull-back is linear in the cotangent; pulling back through it once more pushes the tangent forward. So every
    primitive has a forward mode without a rule of its own.

    Args:
        f: from tensors, or nested structures, to a tensor or a nested structure.
        primals: the arguments.
        tangents: a direction for each argument, of its structure and shapes.

    >>> import tinyseq as ts
    >>> y, dy = ts.jvp(lambda x: x * x, (ts.tensor([3.0]),), (ts.tensor([2.0]),))
    >>> dy.tolist()
    [12.0]
    """
    linked = tuple(_linked(arg, f"argument {i}") for i, arg in enumerate(primals))
    inputs, structure = flatten(linked)
    directions, t_structure = flatten(tuple(tangents))
    if structure != t_structure:
        raise ShapeError(f"the tangents have the structure {t_structure}, the arguments {structure}; they must be equal")
    directions = [as_tensor(t).astype(x.dtype) for t, x in zip(directions, inputs, strict=True)]
    for t, x in zip(directions, inputs, strict=True):
        if t.shape != x.shape:
            raise ShapeError(f"a tangent has shape {t.shape}, its argument {x.shape}; they must be equal")
    own: set[Place] = {x.node for x in inputs if type(x.node) is Leaf}
    output = _call(f, linked)
    ys, y_structure = flatten(output)
    duals = [link(zeros_like(y)) for y in ys]
    starts = [(y.node, dual) for y, dual in zip(ys, duals, strict=True) if y.node is not None]
    with mode.changed(recording=True):
        found = walk(recorded, starts, {x.node for x in inputs if x.node is not None}, retain=True)
    pulled = [(found[x.node], t) for x, t in zip(inputs, directions, strict=True) if x.node in found]
    own |= {dual.node for dual in duals if dual.node is not None}
    pushed = _pull_back([g for g, _ in pulled], [t for _, t in pulled], duals, own, retain=True)
    return tree_map(lambda y: _outward(y, own), output), y_structure.unflatten(pushed)


def hvp(f: Function, primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """The Hessian of ``f``, which returns one number, times a vector, without forming the Hessian.

    Returns:
        The product for the one argument, or a tuple of them for several.

    >>> import tinyseq as ts
    >>> ts.hvp(lambda x: (x**3).sum(), (ts.tensor([2.0]),), (ts.tensor([1.0]),)).tolist()
    [12.0]
    """
    numbers = tuple(range(len(primals)))
    product = jvp(grad(f, numbers), primals, tangents)[1]
    return product[0] if len(primals) == 1 else product


def jacobian(f: Function, argnums: int = 0) -> Function:
    """A function that returns the Jacobian of ``f``: the output's axes, then the argument's.

    One pull-back for each element of the output.

    >>> import tinyseq as ts
    >>> ts.jacobian(lambda x: x * x)(ts.tensor([1.0, 2.0])).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """

    @functools.wraps(f)
    def wrapped(*args: Any) -> Tensor:
        from tinyseq.functions import stack

        def of_one(x: Tensor) -> Any:
            return f(*args[:argnums], x, *args[argnums + 1 :])

        x = as_tensor(args[argnums])
        y, pull = vjp(of_one, x)
        if not isinstance(y, Tensor):
            raise GraphError(f"jacobian needs a function that returns one tensor, got {type(y).__name__}")
        if y.size == 0:
            return zeros_like(x).reshape((1,) * y.ndim + x.shape).expand((*y.shape, *x.shape))
        rows = []
        for i in range(y.size):
            one = np.zeros(y.size, y.dtype)
            one[i] = 1
            rows.append(pull(Tensor(y.backend.asarray(one.reshape(y.shape))))[0])
        return stack(rows).reshape((*y.shape, *x.shape))

    return wrapped


# --- checkpoint -------------------------------------------------------------------------------------------------------


def checkpoint(f: Function, *args: Any) -> Any:
    """``f(*args)``, keeping only the arguments for the backward pass, which computes ``f`` again.

    Memory for time (Chen et al. 2016): the intermediate results of ``f`` are dropped at once. Tensors that ``f`` closes
    over get their gradients too, and random numbers are drawn again as they were.

    Args:
        f: from tensors, or nested structures, to a tensor or a nested structure.
        args: its arguments.

    >>> import tinyseq as ts
    >>> x = ts.tensor([0.5], requires_grad=True)
    >>> ts.checkpoint(lambda x: x.tanh().exp(), x).sum().backward()
    """
    if not mode.current().recording or any(isinstance(getattr(x, "data", None), Abstract) for x in flatten(args)[0]):
        return f(*args)  # in a trace, what is kept is decided later
    state, first = random.get_state(), next_serial()
    leaves, structure = flatten(args)
    linked = [link(x) if isinstance(x, Tensor) and x.node is not None else x for x in leaves]
    output = f(*structure.unflatten(linked))
    ys, y_structure = flatten(output)
    own = {x.node for x in linked if isinstance(x, Tensor) and x.node is not None}
    outer = _first_older([y.node for y in ys if y.node is not None], own, first)
    if not own and not outer:
        return output
    arguments = tuple(x.data if isinstance(x, Tensor) else x for x in leaves)
    parents = (*(x.node if isinstance(x, Tensor) else None for x in leaves), *outer)
    params = {"f": f, "structure": structure, "state": state, "outer": len(outer)}
    node = Node(_CHECKPOINT, parents, arguments, None, params, (), None, mode.current().scope)
    tracked = [y.node is not None for y in ys]
    results = outputs_of(node, [y.data for y in ys])
    return y_structure.unflatten([new if t else y for new, y, t in zip(results, ys, tracked, strict=True)])


def _first_older(starts: Sequence[Place], own: set[Place], first: int) -> list[Place]:
    """The places older than ``first`` that a graph made since then rests on."""
    seen = set(starts)
    stack, older = list(seen), []
    while stack:
        place = stack.pop()
        if place in own:
            continue
        if place.serial < first:
            older.append(place)
            continue
        for parent in place.parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return sorted(older, key=lambda place: place.serial)


def _checkpoint_vjp(F: Any, g: Any, inputs: tuple[Any, ...], node: Any) -> list[Any]:
    params = node.params
    in_place = F is not recorded
    arguments: list[Any] = []
    for value, parent in zip(inputs, node.parents, strict=False):
        x = Tensor(value) if in_place and parent is not None else value
        if parent is not None:
            arguments.append(link(x))
        else:
            arguments.append(Tensor(value) if in_place and hasattr(value, "shape") else value)
    outer = node.parents[len(inputs) :]
    now = random.get_state()
    random.set_state(params["state"])
    try:
        output = _call(params["f"], params["structure"].unflatten(arguments))
    finally:
        random.set_state(now)
    starts = [(y.node, part) for y, part in zip(flatten(output)[0], g, strict=True) if part is not None]
    wanted = [x.node if isinstance(x, Tensor) else None for x in arguments]
    found = walk(F, starts, {place for place in (*wanted, *outer) if place is not None}, retain=not in_place)
    return [None if place is None else found.get(place) for place in (*wanted, *outer)]


_CHECKPOINT = Primitive("checkpoint", lambda *inputs, **params: None, (), _checkpoint_vjp)


# --- check_grads ------------------------------------------------------------------------------------------------------


def check_grads(
    f: Function,
    args: Sequence[Any],
    order: int = 1,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    step: float = 1e-3,
    directions: int = 3,
    seed: int = 0,
) -> None:
    """Compare the derivatives of ``f`` with differences of its values, in float64; silent if they agree.

    Along random directions d and for random cotangents v, <pull-back of v, d> must equal the central difference of
    <f, v> along d, of fourth order in ``step``; then the same for the pull-back itself, up to ``order``.

    Args:
        f: from tensors, or nested structures of them, to a tensor or a nested structure.
        args: where to check; floating-point tensors are taken in float64, others stay as they are.
        order: how many derivatives to check.
        rtol, atol: how far the two may differ, relative to the larger and absolutely.
        step: the distance of the differences.
        directions: how many random directions.
        seed: of the random directions.

    Raises:
        AssertionError: they disagree; the sentence gives both values, the order and the argument.

    >>> import tinyseq as ts
    >>> ts.check_grads(lambda x: x.tanh(), [ts.tensor([0.3, -2.0])], order=2)
    """
    generator = np.random.default_rng(seed)
    leaves, structure = flatten(tuple(args))
    names = leaf_paths(tuple(args))
    tensors = [as_tensor(x) for x in leaves]
    smooth = [i for i, x in enumerate(tensors) if x.dtype.kind in "fV"]
    if not smooth:
        raise DTypeError("check_grads found no floating-point argument to differentiate")
    base = [x.detach().astype(float64) if i in smooth else x for i, x in enumerate(tensors)]

    def of_smooth(*xs: Tensor) -> Any:
        full = list(base)
        for i, x in zip(smooth, xs, strict=True):
            full[i] = x
        return f(*structure.unflatten(full))

    _check(
        of_smooth,
        [base[i] for i in smooth],
        [names[i] for i in smooth],
        order,
        1,
        generator,
        rtol,
        atol,
        step,
        directions,
    )


def _check(
    f: Function,
    xs: list[Tensor],
    names: list[str],
    order: int,
    level: int,
    generator: np.random.Generator,
    rtol: float,
    atol: float,
    step: float,
    directions: int,
) -> None:
    backend = xs[0].backend

    def draw(like: Tensor) -> Tensor:
        return Tensor(backend.asarray(generator.standard_normal(like.shape)))

    def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        return math.fsum(float((x * y).sum()) for x, y in zip(a, b, strict=True))

    output, pull = vjp(f, *xs)
    ys, y_structure = flatten(output)
    vs = [draw(y) for y in ys]
    gradients = pull(y_structure.unflatten(vs))
    for argument, name in enumerate(names):
        for _ in range(directions):
            d = draw(xs[argument])

            def along(t: float, d: Tensor = d, argument: int = argument) -> float:
                moved = [x + t * d if i == argument else x for i, x in enumerate(xs)]
                return inner(flatten(f(*moved))[0], vs)

            numeric = (8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))) / (12 * step)
            ours = inner([gradients[argument]], [d])
            scale = max(abs(numeric), abs(ours))
            if not abs(ours - numeric) <= atol + rtol * scale:
                raise AssertionError(
                    f"derivative of order {level} with respect to argument {name}: the VJP says {ours:.12g}, differences "
                    f"say {numeric:.12g} (relative error {abs(ours - numeric) / (scale or 1):.2g}, allowed {rtol:g})"
                )
    if level < order:

        def gradient(*at: Tensor) -> tuple[Tensor, ...]:
            return vjp(f, *at)[1](y_structure.unflatten(vs))

        _check(gradient, xs, names, order, level + 1, generator, rtol, atol, step, directions)
