"""Channels that belong together, by propagation of labels through the trace of a network.

Every entry of a value carries a label: the structure that it is a part of, 0 for what always stays. A convolution or
linear layer gives each of its outputs a new label; operations that need entries of equal position (sums, products)
make their labels one; operations that only move entries (views, concatenations) move labels by running on them. What
is not understood pins the labels that it reads: they become 0. In the end all entries of one label, in values and in
tensors of the network, can only be removed together.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map_only

from dist_prune.pruning.trace import Node, Ref, Trace, is_pointwise

_COPIES = "to|_to_copy|clone|contiguous|alias|detach|dropout|feature_dropout|alpha_dropout"
_VIEWS = (
    "view|reshape|_unsafe_view|flatten|unflatten|permute|transpose|t|movedim|swapaxes|unsqueeze|squeeze|expand|select|"
    "slice|narrow|split|split_with_sizes|chunk|unbind|tensor_split|roll|flip|repeat|pixel_shuffle|pixel_unshuffle|"
    "channel_shuffle|numpy_T|unfold|tile|expand_as|view_as|reshape_as"
)
_POOLS = r"max_pool\dd|avg_pool\dd|adaptive_avg_pool\dd|adaptive_max_pool\dd|upsample_\w+"
_COUNTED_POOLS = ("adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d")
_CONVS = r"conv\dd|conv_transpose\dd"
_OPAQUE = "index|embedding|topk|sort|cumsum"
Rule = Callable[["Labels", Node], Sequence[Tensor] | None]


@dataclass(frozen=True)
class Entries:
    """The labels of the entries of one dimension of a module (``dim`` as in ``ChannelSlice``)."""

    module: str
    dim: str
    labels: Tensor


class Labels:
    """Labels of all values of a trace, and of the tensors of the network.

    Args:
        trace: of the network.
        modules: the network's modules by name.

    Attributes:
        of_value: for each value, labels of a shape that broadcasts to that of the value.
        entries: labels of the tensors of modules, in the order of the trace.
        sums: (node, value): the node sums up entries of different labels, so closed units have to be zero in there.
        costs: labels of the dimensions that scale the MACs of a node, by module.
    """

    def __init__(self, trace: Trace, modules: dict[str, nn.Module]) -> None:
        self.trace, self.modules = trace, modules
        self.of_value = [torch.zeros([1] * len(shape), dtype=torch.long) for shape in trace.shapes]
        self.entries: list[Entries] = []
        self.sums: list[tuple[Node, int]] = []
        self.costs: dict[str, list[Tensor]] = {}
        self._reasons: dict[int, str] = {}
        self._parent = torch.zeros(1, dtype=torch.long)
        for value, name in trace.tensors.items():
            self._label_vector(value, name)
        for node in trace.nodes:
            self._apply(node)
        self.pin(self.of_value[trace.output], "the network returns its channels")
        # Tensors have one length along each axis, so what remains must be slices.
        for labels in self.of_value:
            if len(varying_axes(self.find(labels))) > 1:
                self.pin(labels, "a reshape spreads its channels over several axes")

    def find(self, labels: Tensor) -> Tensor:
        """Return the representatives of labels: equal for those that have become one, 0 for those that stay."""
        while not torch.equal(above := self._parent[labels], labels):
            labels = above
        return labels

    def reason(self, label: int) -> str:
        """Return why a label is pinned; empty if it is not."""
        while label not in self._reasons and label != (above := int(self._parent[label])):
            label = above
        return self._reasons.get(label, "")

    def new(self, count: int) -> Tensor:
        """Return new labels (count,)."""
        first = len(self._parent)
        self._parent = torch.cat([self._parent, torch.arange(first, first + count)])
        return self._parent[first:].clone()

    def unite(self, a: Tensor, b: Tensor, why: str = "") -> None:
        """Make labels of equal position one; shapes broadcast. ``why`` is noted for labels that are pinned by it."""
        a, b = (labels.reshape(-1) for labels in torch.broadcast_tensors(compact(a), compact(b)))
        while True:
            a, b = self.find(a), self.find(b)
            if not (differ := a != b).any():
                return
            # 0, which stays, is the lowest label: it represents whatever is made one with it. Where several pairs
            # change one label, a single one counts, and the others come in the next round.
            low, high = torch.minimum(a, b)[differ], torch.maximum(a, b)[differ]
            self._parent[high] = low
            self._reasons |= dict.fromkeys(high[low == 0].tolist(), why)

    def pin(self, labels: Tensor, why: str) -> None:
        """Make labels stay."""
        self.unite(labels, torch.zeros(1, dtype=torch.long), why)

    def along(self, value: int, axis: int) -> Tensor:
        """Return the labels of a value along the only axis on which they may vary (size of the axis,)."""
        return self.of_value[value].reshape(-1).expand(self.trace.shapes[value][axis])

    def varies(self, value: int, *but: int) -> bool:
        """Return True if the labels of a value vary along other axes than ``but``."""
        rank = len(self.trace.shapes[value])
        return any(axis not in [b % rank for b in but] for axis in varying_axes(self.of_value[value]))

    def join(self, parts: Iterable[tuple[Sequence[int], Tensor]], rank: int, why: str) -> Tensor:
        """Return the labels of a result whose entries need those of equal position in all parts (shape, labels)."""
        wide = [((1,) * (rank - len(s)) + tuple(s), t.view([1] * (rank - t.dim()) + [*t.shape])) for s, t in parts]
        labelled = [labels for _, labels in wide if labels.any()]
        if not labelled:
            return torch.zeros([1] * rank, dtype=torch.long)
        varying = {axis for labels in labelled for axis in varying_axes(labels)}
        joined = labelled[0]
        for shape, labels in wide:
            # What is broadcast over the channels does not care how many there are.
            if labels.any() or any(shape[axis] > 1 for axis in varying):
                self.unite(joined, labels, why)
                joined = torch.maximum(*torch.broadcast_tensors(joined, labels))
        return joined

    def _label_vector(self, value: int, name: str) -> None:
        """Label the entries of a tensor that varies along one axis only; others get theirs where they are used."""
        shape = self.trace.shapes[value]
        module, _, tensor = name.rpartition(".")
        long = [axis for axis, size in enumerate(shape) if size > 1]
        if len(long) == 1 and not _is_layer(self.modules[module], tensor):
            labels = self.new(shape[long[0]])
            self.entries.append(Entries(module, tensor, labels))
            self.of_value[value] = labels.view([-1 if axis == long[0] else 1 for axis in range(len(shape))])

    def _apply(self, node: Node) -> None:
        for value in node.inputs:
            self.of_value[value] = compact(self.find(self.of_value[value]))
        rule = next((rule for pattern, rule in _RULES if pattern.fullmatch(node.op)), None)
        if rule is None and is_pointwise(node.func):
            rule = _pointwise
        results = rule(self, node) if rule else None
        if results is None:
            self.costs.setdefault(node.module, []).append(torch.zeros(1, dtype=torch.long))
            for value in node.inputs:
                self.pin(self.of_value[value], f"{node.op} in '{node.module}' mixes its channels")
        else:
            for value, labels in zip(node.outputs, results, strict=True):
                self.of_value[value] = compact(labels)


def varying_axes(labels: Tensor) -> list[int]:
    """Return the axes along which labels differ."""
    return [axis for axis, size in enumerate(compact(labels).shape) if size > 1]


def compact(labels: Tensor) -> Tensor:
    """Return labels with length 1 along all axes along which they are equal."""
    for axis, size in enumerate(labels.shape):
        if size > 1 and (labels.stride(axis) == 0 or bool((labels == labels.narrow(axis, 0, 1)).all())):
            labels = labels.narrow(axis, 0, 1)
    return labels


def _is_layer(module: nn.Module, tensor: str) -> bool:
    """Return True if a tensor is the weight of a convolution or linear layer."""
    return tensor == "weight" and isinstance(module, nn.modules.conv._ConvNd | nn.Linear)


def _pointwise(labels: Labels, node: Node) -> Sequence[Tensor]:
    parts = [(labels.trace.shapes[value], labels.of_value[value]) for value in node.inputs]
    why = f"{node.op} in '{node.module}' combines it with what stays"
    return [labels.join(parts, len(labels.trace.shapes[node.outputs[0]]), why)]


def _same(labels: Labels, node: Node) -> Sequence[Tensor]:
    return [labels.of_value[node.inputs[0]]]


def _view(labels: Labels, node: Node) -> Sequence[Tensor]:
    def expanded(ref: Ref) -> Tensor:
        return labels.of_value[ref.value].expand(labels.trace.shapes[ref.value])

    # Expanded labels cannot be viewed in other shapes, but copied.
    func = torch.ops.aten.reshape.default if node.op in ("view", "_unsafe_view") else node.func
    args, options = tree_map_only(Ref, expanded, (node.args, node.options))
    return [moved for moved in tree_iter(func(*args, **options)) if isinstance(moved, Tensor)]


def _cat(labels: Labels, node: Node) -> Sequence[Tensor]:
    parts = [labels.of_value[value] for value in node.inputs]
    dim = (node.args[1] if len(node.args) > 1 else node.options.get("dim", 0)) % parts[0].dim()
    shapes = [list(labels.trace.shapes[value]) for value in node.inputs]
    for axis in range(parts[0].dim()):
        # Labels are copied at the size at which they differ, not at that of the maps.
        if axis != dim and all(part.shape[axis] == 1 for part in parts):
            for shape in shapes:
                shape[axis] = 1
    return [torch.cat([part.expand(shape) for part, shape in zip(parts, shapes, strict=True)], dim)]


def _pad(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    read, pads = labels.of_value[node.inputs[0]], list(node.args[1])
    for axis in range(read.dim()):
        at = 2 * (read.dim() - 1 - axis)
        if at < len(pads) and read.shape[axis] == 1:
            # All pixels of a channel have its label, the border too.
            pads[at : at + 2] = [0, 0]
    if any(pads) and node.op == "pad" and (*node.args, "constant")[2] != "constant":
        return None
    return [F.pad(read, pads)]


def _pool(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    if labels.varies(node.inputs[0], 1):
        return None
    if node.op in _COUNTED_POOLS:
        labels.costs.setdefault(node.module, []).append(labels.along(node.inputs[0], 1))
    return [labels.of_value[node.inputs[0]] for _ in node.outputs]


def _reduce(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    read = labels.of_value[node.inputs[0]]
    dims = node.args[1] if len(node.args) > 1 else node.options.get("dim")
    dims = range(read.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    if any(read.shape[dim] > 1 for dim in dims):
        # The number of channels is part of a mean, not of a sum.
        if node.op != "sum":
            return None
        labels.sums.append((node, node.inputs[0]))
        read = torch.zeros([1] * read.dim(), dtype=torch.long)
    keeps = len(labels.trace.shapes[node.outputs[0]]) == read.dim()
    return [read if keeps else read.squeeze(tuple(dims))]


def _softmax(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    read = labels.of_value[node.inputs[0]]
    return None if read.shape[node.args[1]] > 1 else [read]


def _norm(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    """Batch and instance norms work channel by channel, group norms within groups, layer norms over all channels."""
    value = node.inputs[0]
    if labels.varies(value, 1):
        return None
    channels = labels.along(value, 1)
    for tensor in node.inputs[1:]:
        labels.unite(labels.of_value[tensor], channels, f"'{node.module}' is a norm of what stays")
    if node.op == "group_norm":
        groups = channels.reshape(node.args[1], -1)
        labels.unite(groups, groups[:, :1])
    labels.costs.setdefault(node.module, []).append(channels)
    return [labels.of_value[value]]


def _layer_norm(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    read = labels.of_value[node.inputs[0]]
    labels.costs.setdefault(node.module, []).append(read)
    return None if any(size > 1 for size in read.shape[-len(node.args[1]) :]) else [read]


def _prelu(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    if labels.varies(node.inputs[0], 1):
        return None
    if labels.trace.shapes[node.inputs[1]].numel() > 1:
        labels.unite(labels.of_value[node.inputs[1]], labels.along(node.inputs[0], 1))
    return [labels.of_value[node.inputs[0]]]


def _layer(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    """Convolutions and linear layers: they sum up all that they read, and make new channels."""
    value, weight = node.inputs[:2]
    name, _, tensor = labels.trace.tensors.get(weight, "").rpartition(".")
    axis = 1 if node.op.startswith("conv") else -1
    # MACs are counted for the module that runs a layer, so that must be the layer itself.
    if name != node.module or not _is_layer(labels.modules[name], tensor) or labels.varies(value, axis):
        return None
    module: Any = labels.modules[name]
    reads, groups = labels.along(value, axis), getattr(module, "groups", 1)
    makes = labels.new(labels.trace.shapes[node.outputs[0]][axis])
    if groups > 1:
        # A group goes as a whole: what it reads and what it makes.
        per_group = makes.view(groups, -1)
        labels.unite(per_group, per_group[:, :1])
        labels.unite(reads.reshape(groups, -1), per_group[:, :1], f"'{name}' reads what stays")
        labels.entries.append(Entries(name, "channels", makes))
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            labels.pin(makes, f"'{name}' is a grouped transposed convolution")
    else:
        labels.entries += [Entries(name, "in", reads), Entries(name, "out", makes)]
        labels.sums.append((node, value))
    for bias in node.inputs[2:]:
        labels.unite(labels.of_value[bias], makes)
    shape = [1] * len(labels.trace.shapes[node.outputs[0]])
    shape[axis] = -1
    return [makes.view(shape)]


def _matmul(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    """A product of two values: what is summed over goes as a whole, for each matrix of a batch."""
    left, right = (labels.of_value[value] for value in node.inputs)
    shapes = [list(labels.trace.shapes[value]) for value in node.inputs]
    if min(left.dim(), right.dim()) < 2:
        return None
    if left.shape[-1] > 1 or right.shape[-2] > 1:
        labels.unite(left, left[..., :1])
        labels.unite(right, right[..., :1, :])
        labels.unite(left[..., :1, :1], right[..., :1, :1], f"{node.op} in '{node.module}' sums it up")
    shapes[0][-1] = shapes[1][-2] = 1
    parts = [(shapes[0], left[..., :1]), (shapes[1], right[..., :1, :])]
    made = labels.join(parts, len(labels.trace.shapes[node.outputs[0]]), f"{node.op} in '{node.module}'")
    labels.costs.setdefault(node.module, []).append(made)
    return [made]


def _attention(labels: Labels, node: Node) -> Sequence[Tensor] | None:
    """Scaled dot-product attention of (batch, heads, tokens, width): a head goes as a whole."""
    parts = [labels.of_value[value] for value in node.inputs[:3]]
    if any(part.dim() != 4 or labels.varies(value, 1, 3) for part, value in zip(parts, node.inputs, strict=False)):
        return None
    heads = parts[2][..., :1]
    for part in parts:
        labels.unite(part, heads, f"attention in '{node.module}' reads what stays")
    if any(shape[1] > 1 for shape in (labels.trace.shapes[v] for v in node.inputs[3:]) if len(shape) > 3):
        labels.pin(heads, f"the attention mask of '{node.module}' has one part a head")
    labels.costs.setdefault(node.module, []).append(heads)
    return [heads]


_RULES: list[tuple[re.Pattern[str], Rule]] = [
    (re.compile(names), rule)
    for names, rule in (
        (_COPIES, _same), (_VIEWS, _view), ("cat|concat", _cat), ("pad|constant_pad_nd", _pad), (_POOLS, _pool),
        ("mean|sum", _reduce), ("softmax|_softmax", _softmax), ("(batch|group|instance)_norm", _norm),
        ("layer_norm", _layer_norm), ("prelu", _prelu), (f"{_CONVS}|linear", _layer), ("matmul|bmm", _matmul),
        ("scaled_dot_product_attention", _attention),
    )
]  # fmt: skip
# Operators that are recorded whole; all others are decomposed into these as far as torch can.
ATOMIC = re.compile("|".join([*(pattern.pattern for pattern, _ in _RULES), _OPAQUE]))
