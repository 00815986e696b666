"""Trace of a network: every operation of one forward pass in eval mode, on the meta device.

The pass computes shapes only, so it costs milliseconds and no memory. Control flow on shapes is followed; control flow
on values cannot be, and is refused. ``torch.fx`` fails on the former, ``torch.export`` takes seconds and loses which
values modules read and return, where gates may stand; the graph of autograd has lost which values are equal to zero.
"""

import copy
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from dist_prune.errors import UserError, first_line

BATCH = 3  # samples: a dimension of this size is that of samples, not one of windows or tokens
_SIZES = (224, 32, 64, 28, 16, 8, 256, 299, 384, 512, 128)  # of images, where the caller does not tell


@dataclass(frozen=True)
class Ref:
    """The number of a value in the arguments of a node."""

    value: int


@dataclass(frozen=True)
class Node:
    """One operation.

    op: name of the ATen operator, without the underscore of in-place ones.
    args: positional arguments, then named ones; a ``Ref`` for each tensor.
    inputs: all values among the arguments, in their order.
    outputs: values.
    module: qualified name of the innermost module that runs it.
    in_place: the first input is changed and must not be read again.
    """

    func: Any
    op: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str
    in_place: bool


@dataclass(frozen=True)
class Call:
    """One call of a module: its number in order, what it reads first (None if that is no tensor) and returns.

    single: it reads one tensor and nothing else.
    """

    reads: int | None
    returns: int | None
    single: bool


@dataclass
class Trace:
    """All operations and calls of modules in one forward pass; values are numbered.

    Attributes:
        shapes: of all values.
        tensors: names of the values that are parameters or buffers.
        nodes: operations in order.
        calls: of each module, by name.
        output: what the network returns.
    """

    shapes: list[torch.Size] = field(default_factory=list)
    tensors: dict[int, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    output: int = -1


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, atomic: re.Pattern[str]) -> None:
        super().__init__()
        self.trace, self.atomic, self.stack = Trace(), atomic, [""]
        self._values: dict[int, int] = {}
        self._storages: dict[int, list[Tensor]] = {}
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            self.trace.tensors[self.value(tensor)] = name
        for name, module in model.named_modules():
            self._watch(name, module)

    def value(self, tensor: Tensor) -> int:
        """Return the number of a tensor; a tensor from elsewhere (a buffer, a constant) gets a new one."""
        return self._values[id(tensor)] if id(tensor) in self._values else self._add(tensor)

    def _add(self, tensor: Tensor) -> int:
        alive = self._storages.setdefault(tensor.untyped_storage()._cdata, [])
        # An id is unique only among the living.
        if not any(other is tensor for other in alive):
            alive.append(tensor)
        self._values[id(tensor)] = self._number(tensor)
        return self._values[id(tensor)]

    def _number(self, tensor: Tensor) -> int:
        self.trace.shapes.append(tensor.shape)
        return len(self.trace.shapes) - 1

    def _watch(self, name: str, module: nn.Module) -> None:
        entered: list[int | None] = []

        def enter(_: nn.Module, args: tuple, options: dict) -> None:
            if name in self.trace.calls and any(True for _ in module.parameters()):
                raise UserError(
                    f"'{name}' is called twice in one forward pass, so nothing in it can be pruned for one call alone: "
                    "give each call a module of its own"
                )
            self.stack.append(name)
            # Before the module changes it in place.
            entered.append(self._values.get(id(args[0])) if args and isinstance(args[0], Tensor) else None)

        def leave(_: nn.Module, args: tuple, options: dict, output: Any) -> None:
            self.stack.pop()
            reads = entered.pop()
            returns = self._values.get(id(output)) if isinstance(output, Tensor) else None
            single = len(args) == 1 and not options
            self.trace.calls.setdefault(name, []).append(Call(reads, returns, single))

        module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        module.register_forward_hook(leave, with_kwargs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        op = func.overloadpacket.__name__
        in_place = op.endswith("_") and func._schema.is_mutable
        op = op.removesuffix("_") if in_place else op
        if not self.atomic.fullmatch(op) and not is_pointwise(func):
            with self:
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
        inputs = tuple(self.value(t) for t in tree_iter((args, options)) if isinstance(t, Tensor))
        refs = tree_map_only(Tensor, lambda t: Ref(self.value(t)), (tuple(args), options))
        result = func(*args, **options)
        if in_place:
            self._values[id(args[0])] = self._add(result)
            outputs: tuple[int, ...] = (self._values[id(args[0])],)
        else:
            outputs = tuple(self._add(t) for t in tree_iter(result) if isinstance(t, Tensor))
        self.trace.nodes.append(Node(func, op, refs[0], refs[1], inputs, outputs, self.stack[-1], in_place))
        if in_place:
            self._overwrite_aliases(args[0])
        return result

    def _overwrite_aliases(self, changed: Tensor) -> None:
        """Give other tensors of the same storage, each of which has changed in a way of its own, new values."""
        for tensor in self._storages[changed.untyped_storage()._cdata]:
            if tensor is not changed:
                inputs = self._values[id(tensor)], self._values[id(changed)]
                args = tuple(map(Ref, inputs))
                self._values[id(tensor)] = self._number(tensor)
                outputs = (self._values[id(tensor)],)
                func = torch.ops.aten.index_put.default
                self.trace.nodes.append(Node(func, "overwrite", args, {}, inputs, outputs, self.stack[-1], False))


def is_pointwise(func: Any) -> bool:
    """Return True if an ATen operator works element by element."""
    # Torch tags the variants that are not in place, and has forgotten one activation.
    name = func.overloadpacket.__name__.removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    tags = {tag for overload in packet.overloads() for tag in getattr(packet, overload).tags} if packet else set()
    return name == "hardswish" or torch.Tag.pointwise in tags


def on_meta(model: nn.Module) -> nn.Module:
    """Return a copy of a network without memory, in eval mode."""
    memo = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, memo).eval()


def trace(model: nn.Module, input_shape: Sequence[int] | None, atomic: re.Pattern[str]) -> Trace:
    """Trace a plain network; it stays as it is.

    Args:
        model: the network.
        input_shape: of one image, (C, H, W); None: try usual sizes.
        atomic: names of the operators that are recorded whole; others are decomposed where they can be.

    Raises:
        UserError: the forward pass cannot be traced; names the module and says what to do.
    """
    if input_shape is not None:
        return _trace(model, input_shape, atomic)
    # The graph does not depend on the size of images, so any size that the network takes will do.
    refusals = []
    for shape in _guesses(model):
        try:
            return _trace(model, shape, atomic)
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def _guesses(model: nn.Module) -> list[tuple[int, ...]]:
    first = next((m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)), None)
    if isinstance(first, nn.Linear):
        return [(first.in_features,), *((3, size, size) for size in _SIZES)]
    channels = getattr(first, "in_channels", 3)
    # Transformers know the size of their images.
    known = [getattr(m, name) for m in model.modules() for name in ("img_size", "image_size") if hasattr(m, name)]
    sizes = [size if isinstance(size, int) else tuple(size)[-1] for size in known if size]
    return [(channels, size, size) for size in (*sizes[:1], *_SIZES)]


def _trace(model: nn.Module, input_shape: Sequence[int], atomic: re.Pattern[str]) -> Trace:
    empty = on_meta(model)
    recorder = _Recorder(empty, atomic)
    dtype = next((p.dtype for p in empty.parameters() if p.is_floating_point()), torch.float32)
    images = torch.empty(BATCH, *input_shape, device="meta", dtype=dtype)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # One operator for a whole layer of attention would hide what happens inside.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(), torch.device("meta"), recorder:
            output = empty(images)
    except UserError:
        raise
    except Exception as error:  # a forward pass may raise anything
        where, what = recorder.stack[-1] or type(model).__name__, first_line(error)
        if "meta" in what or isinstance(error, NotImplementedError):
            what = "its forward depends on the values of tensors (if, item(), nonzero): make it depend on shapes only"
        else:
            what = f"no forward pass with images of {tuple(input_shape)}: {what}; is input_shape right?"
        raise UserError(f"cannot trace '{where}': {what}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if not isinstance(output, Tensor):
        raise UserError(
            f"{type(model).__name__} returns a {type(output).__name__} in eval mode, not one tensor of logits: wrap it "
            "in a module that returns the logits alone"
        )
    recorder.trace.output = recorder.value(output)
    return recorder.trace
