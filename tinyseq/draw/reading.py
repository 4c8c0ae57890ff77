"""From the tape to a record: which operations there are, where in the program they ran, what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tinyseq.abstract import Abstract
from tinyseq.draw.diagram import BoxKind
from tinyseq.draw.labels import is_number
from tinyseq.draw.loops import Opening, Scan
from tinyseq.draw.record import Frame, Item, Record
from tinyseq.errors import DTypeError
from tinyseq.mode import Scope
from tinyseq.tape import Leaf, Node, Place, ancestors
from tinyseq.tensor import Parameter, Tensor

if TYPE_CHECKING:
    from tinyseq.draw.profile import Profile
    from tinyseq.nn import Module

__all__ = ["FEW", "Names", "boxed", "read_tape"]

FEW = 3  # an operation of more inputs, such as concatenate, does not show its constants one by one


class Names:
    """What the user calls tensors, which of them are parameters, and their values.

    A module names its parameters; so does a mapping, in which all that is no tensor is passed over, for ``locals()`` is
    handy; a module in it names its parameters after itself. Without a module, a leaf that has a name of its own is taken
    for a parameter, for modules name theirs.
    """

    def __init__(self, names: Module | Mapping[str, object] | None) -> None:
        self.trust_leaves = not hasattr(names, "named_parameters")
        self.known: dict[int, tuple[str, bool]] = {}  # by the identity of a place or, for constants, of an array
        self.arrays: dict[int, Any] = {}  # of places, by their identity
        self.modules: dict[str, str] = {}  # the classes of modules by their dotted names
        self.constants: set[int] = set()  # places of a trace that ask for no gradient
        self.keep: Any = None  # what must live as long as the identities above are used
        if names is None:
            return
        if not isinstance(names, Mapping):
            if self.trust_leaves:
                raise DTypeError(f"names is a {type(names).__name__}; give a module, or a dict of tensors by name")
            self._module("", names)
            return
        for name, value in names.items():
            if isinstance(value, Tensor):
                self._tensor(str(name), value, isinstance(value, Parameter))
        for name, value in names.items():
            if hasattr(value, "named_parameters") and not isinstance(value, type):
                self._module("" if name == "self" else f"{name}.", value)

    def _module(self, prefix: str, module: Any) -> None:
        for name, part in module.named_modules():
            self.modules.setdefault((prefix + name).rstrip("."), type(part).__name__)
        for name, value in module.named_parameters():
            self._tensor(prefix + name, value, True)
        for name, value in module.named_buffers():
            self._tensor(prefix + name, value, False)

    def _tensor(self, name: str, value: Tensor, learned: bool) -> None:
        self.known.setdefault(id(value.data if value.node is None else value.node), (name, learned))
        if value.node is not None:
            self.arrays[id(value.node)] = value.data

    def constant(self, place: Place, original: Tensor) -> None:
        """A place of a trace stands for a tensor that asks for no gradient."""
        if id(original.data) in self.known:
            self.known[id(place)] = self.known[id(original.data)]
        elif isinstance(original, Parameter):
            self.known[id(place)] = (original.name or "", True)
        self.constants.add(id(place))
        self.arrays[id(place)] = original.data

    def of(self, thing: Any) -> str | None:
        """The name of a place or of a constant's array, if it has one."""
        name, _ = self.known.get(id(thing), (thing.name if isinstance(thing, Leaf) else None, False))
        return name

    def is_parameter(self, thing: Any) -> bool:
        """Whether it is a parameter, as far as is known."""
        own = isinstance(thing, Leaf) and thing.name is not None and self.trust_leaves
        return self.known.get(id(thing), ("", own))[1]


def boxed(inputs: Sequence[Any] | None, tracked: Sequence[bool]) -> list[int]:
    """Which constant operands get a box of their own: those that are at hand, if they are few and no plain numbers."""
    if inputs is None or len(tracked) > FEW:
        return []
    return [i for i, array in enumerate(inputs) if not tracked[i] and array is not None and not is_number(array)]


def read_tape(
    outputs: Sequence[Place],
    names: Names,
    profile: Profile | None,
    opening: Opening,
    closed: Mapping[Place, Tensor] | None = None,
) -> Record:
    """The record of all that the outputs were computed from; ``closed`` says what places of a trace stand for."""
    return _Reader(names, profile, opening).run(outputs, closed or {})


class _Reader:
    def __init__(self, names: Names, profile: Profile | None, opening: Opening) -> None:
        self.names = names
        self.seconds = profile.seconds if profile else {}
        self.gradients = profile.gradients if profile else {}
        self.opening = opening
        self.record = Record()
        self.places: dict[Place, list[int]] = {}  # the items that stand for a place: several where steps are columns
        self.constants: dict[int, int] = {}
        self.frames: dict[int, int] = {}  # by the identity of a scope, for equal scopes may be different calls
        self.running: dict[int, int] = {}  # the loop that goes on, by the identity of the scope that it runs in
        self.times: dict[int, list[int]] = {}  # of each loop
        self.scans: dict[Place | None, Scan] = {}  # that are opened
        self.first: dict[str, Item] = {}  # the first operation of an opened scan, which has the facts of the whole
        self.unnamed = 0
        self.traced = False
        self.given = {id(_owner(array)) for array in names.arrays.values()}  # arrays that are there anyway

    def run(self, outputs: Sequence[Place], closed: Mapping[Place, Tensor]) -> Record:
        asked = set(outputs)
        self.traced = bool(outputs) and _is_traced(outputs[0])
        order = ancestors(outputs)
        originals = [x.node for place in order if (x := closed.get(place)) is not None and x.node is not None]
        if originals:
            order = sorted({*order, *ancestors(originals)}, key=lambda place: place.serial)
        for number, place in enumerate(order):
            original = closed.get(place)
            if original is not None and original.node is not None:
                self.places[place] = self.places[original.node]
            elif isinstance(place, Leaf):
                self.places[place] = [self._leaf(place, number)]
            elif place.primitive.name == "scan" and "runner" in place.params:
                self._scan(place, number)
            elif place.primitive.name == "item" and place.parents[0] in self.scans:
                scan, index = self.scans[place.parents[0]], place.params["index"]
                self.places[place] = [*scan.last, *scan.ys][index]
                scan.used = {*(scan.used or ()), index}
                first = self.first.get(scan.prefix)
                if first is not None and place.serial in self.seconds:
                    first.seconds = (first.seconds or 0.0) + self.seconds[place.serial]
                self._name(place)
            else:
                self.places[place] = [self._operation(place, number, "output" if place in asked else "operation")]
        record = self.record
        record.outputs = list(dict.fromkeys(i for place in outputs for i in self.places[place]))
        for i in record.outputs:
            if record.items[i].kind == "operation":
                record.items[i].kind = "output"
        for loop, times in self.times.items():
            record.frames[loop].steps = len(times)
            record.frames[loop].reverse = times[0] > times[-1]
        return record

    def _name(self, place: Place) -> None:
        name = self.names.of(place)
        for i in self.places[place]:
            self.record.items[i].name = self.record.items[i].name or name

    def _leaf(self, leaf: Leaf, number: int) -> int:
        name, learned = self.names.of(leaf), self.names.is_parameter(leaf)
        constant = id(leaf) in self.names.constants
        if not name and not learned and not constant:
            self.unnamed += 1
            name = "input" if self.unnamed == 1 else f"input {self.unnamed}"
        kind: BoxKind = "parameter" if learned else "constant" if constant else "input"
        item = Item(f"n{number}", kind, name or kind, [])
        item.name, item.shape, item.dtype = name, leaf.shape, leaf.dtype
        item.array = self.names.arrays.get(id(leaf))
        if leaf.grad is not None:
            item.gradient = _norm(leaf.grad)
        item.gradient = self.gradients.get(leaf.serial, item.gradient)
        return self.record.add(item)

    def constant(self, array: Any) -> int:
        """The item of a constant."""
        if id(array) not in self.constants:
            kind = "parameter" if self.names.is_parameter(array) else "constant"
            name = self.names.of(array)
            item = Item(f"c{len(self.constants)}", kind, name or "constant", [], name=name, array=array)  # type: ignore[arg-type]
            item.shape, item.dtype = tuple(array.shape), array.dtype
            self.constants[id(array)] = self.record.add(item)
        return self.constants[id(array)]

    def _operation(self, node: Node, number: int, kind: Any) -> int:
        tracked = [parent is not None for parent in node.parents]
        parents = []
        for slot, parent in enumerate(node.parents):
            if parent is not None:
                parents += [(i, slot) for i in self.places[parent]]
        for i in boxed(node.inputs, tracked):
            parents.append((self.constant(node.inputs[i]), i))  # type: ignore[index]
        parents.sort(key=lambda pair: pair[1])
        item = Item(f"n{number}", kind, node.primitive.name, parents, len(tracked), node.inputs or ())
        item.params, item.shape, item.dtype = node.params, node.shape, node.dtype
        item.name = self.names.of(node)
        item.frame = self._frame(node.scope)
        # What a kernel of the backend keeps besides its output comes with it.
        output, *more = node.output if isinstance(node.output, tuple) else (node.output,)
        extra = [a for part in more for a in (part if isinstance(part, tuple) else (part,))]
        for array, parent in zip(node.inputs or (), node.parents, strict=False):
            if isinstance(parent, Leaf):
                self.given.add(id(_owner(array)))
        if not self.traced:
            item.kept.update(self._kept((*(node.inputs or ()), output, *extra)))
        known = self.names.arrays.get(id(node)) if output is None else output
        item.array = None if isinstance(known, Abstract) else known
        for array, parent in zip(node.inputs or (), node.parents, strict=False):
            if isinstance(array, Abstract):
                continue
            if isinstance(parent, Node) and array is not None:
                for i in self.places[parent]:
                    if self.record.items[i].array is None and self.record.items[i].shape == getattr(array, "shape", None):
                        self.record.items[i].array = array
            elif isinstance(parent, Leaf) and array is not None:
                self.record.items[self.places[parent][0]].array = array
        item.seconds = self.seconds.get(node.serial)
        item.gradient = self.gradients.get(node.serial)
        return self.record.add(item)

    def _scan(self, node: Node, number: int) -> None:
        """A compiled scan, opened."""
        runner, carries = node.params["runner"], node.params["carries"]
        inputs: list[list[int]] = []
        for i, parent in enumerate(node.parents):
            array = (node.inputs or (None,) * len(node.parents))[i]
            if parent is not None:
                inputs.append(self.places[parent])
            elif array is None or is_number(array):
                inputs.append([])
            else:
                inputs.append([self.constant(array)])
        kept = node.params.get("kept")
        kept = kept if isinstance(kept, Mapping) else {}
        before = len(self.record.items)
        frame = self._frame(node.scope)
        inner = any(self.record.frames[f].kind == "step" for f in self.record.path(frame))
        scan = (Opening() if inner else self.opening).forward(
            self.record,
            runner.program,
            inputs[:carries],
            inputs[carries:],
            prefix=f"n{number}",
            frame=frame,
            steps=node.params["steps"],
            reverse=node.params["reverse"],
        )
        self.scans[node] = scan
        body = [item for item in self.record.items[before:] if item.frame is not None]
        frames = self.record.frames
        loop = [item for item in body if item.kind == "operation" and frames[item.frame].folded]  # type: ignore[index]
        first = next(iter([*loop, *body]), None)
        if first is not None:
            self.first[scan.prefix] = first
            given = {id(_owner(a)) for a in node.inputs or ()}
            first.kept.update((key, size) for key, size in self._kept(kept.values()) if key not in given)
            first.seconds = self.seconds.get(node.serial)

    def _kept(self, arrays: Iterable[Any]) -> list[tuple[int, int]]:
        """Which memory these arrays keep, by its identity, and how many bytes; what is there anyway is not kept."""
        owners = (_owner(array) for array in arrays if getattr(array, "nbytes", 0))
        return [(id(owner), int(owner.nbytes)) for owner in owners if id(owner) not in self.given]

    # Scopes

    def _frame(self, scope: Scope | None) -> int | None:
        """The frame of a scope; those around it are made first."""
        waiting = []
        while scope is not None and id(scope) not in self.frames:
            waiting.append(scope)
            scope = scope.parent
        for inner in reversed(waiting):
            parent = None if inner.parent is None else self.frames[id(inner.parent)]
            self.frames[id(inner)] = self._made(inner, parent)
        start = waiting[0] if waiting else scope
        return None if start is None else self.frames[id(start)]

    def _made(self, scope: Scope, parent: int | None) -> int:
        record = self.record
        number = f"g{len(record.frames)}"
        if scope.kind == "step" and isinstance(scope.name, int):
            around, t = id(scope.parent), int(scope.name)
            loop = self.running.get(around)
            if loop is None or not _goes_on(self.times[loop], t):
                loop = self.running[around] = record.frame(Frame(number, "loop", "loop", parent))
                self.times[loop] = []
                number = f"g{len(record.frames)}"
            self.times[loop].append(t)
            return record.frame(Frame(number, "step", f"t = {t}", loop, t))
        kind = "module" if scope.kind == "module" else "part"
        return record.frame(Frame(number, kind, str(scope.name), parent))  # type: ignore[arg-type]


def _goes_on(times: list[int], t: int) -> bool:
    """Whether t continues a loop: a scope says which step it is, but not of which loop."""
    first, last = times[0], times[-1]
    return t > last if last > first else t < last if last < first else t != last


def _owner(array: Any) -> Any:
    """The array whose memory a view looks at."""
    base = getattr(array, "base", None)
    return base if hasattr(base, "nbytes") else array


def _norm(gradient: Any) -> float:
    from tinyseq.draw.profile import norm

    return norm(gradient.data)


def _is_traced(place: Place) -> bool:
    """Whether nothing was computed: what is at hand are shapes then, and all of them."""
    return isinstance(place, Node) and any(isinstance(a, Abstract) for a in (*(place.inputs or ()), place.output))
