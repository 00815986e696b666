"""Channel sites of any network, found in its trace.

A site is a set of channels whose every unit belongs to the same tensors. A gate closes its units where a zero reaches
all layers that read them as a zero: behind norms (which make constants of zeros), in front of squeeze-excitation (which
would read what is pruned). Each candidate is tried on the trace; what no gate can close stays whole.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from dist_prune.errors import UserError
from dist_prune.pruning.channel_labels import ATOMIC, Entries, Labels, compact
from dist_prune.pruning.narrowing import narrow_modules
from dist_prune.pruning.sites import ChannelSlice, IntAttribute, Site
from dist_prune.pruning.trace import BATCH, Node, is_pointwise, on_meta, trace
from dist_prune.pruning.zero_flow import stays_zero


@dataclass(frozen=True)
class TracedSites:
    """Channel sites of a network, in its order, and the layers that stay whole, each with the reason."""

    sites: tuple[Site, ...]
    whole: Mapping[str, str]


def traced_sites(plain: nn.Module) -> TracedSites:
    """Find the channel sites of a plain network, as it computes for images of the shape that it remembers.

    Raises:
        UserError: the network cannot be traced.
    """
    # A checkpoint is loaded on the meta device, on which labels cannot be compared.
    with torch.device("cpu"):
        return _Finder(plain, getattr(plain, "dist_prune_input_shape", None)).find()


class _Finder:
    def __init__(self, plain: nn.Module, input_shape: Sequence[int] | None) -> None:
        self.plain, self.input_shape = plain, input_shape
        self.modules = dict(plain.named_modules())
        self.trace = trace(plain, input_shape, ATOMIC)
        self.labels = Labels(self.trace, self.modules)
        self.roots = [compact(self.labels.find(labels)) for labels in self.labels.of_value]
        self.made = list(_by_dimension(self.labels.entries, self.modules))
        self.entries = [Entries(e.module, e.dim, self.labels.find(e.labels)) for e in self.made]
        self.scaled = {
            module: [compact(self.labels.find(part)).reshape(-1) for part in parts]
            for module, parts in self.labels.costs.items()
        }
        self.costs = [Entries(module, "channels", parts[0]) for module, parts in self.scaled.items()]
        self.number = {name: number for number, name in enumerate(self.modules)}

    def find(self) -> TracedSites:
        groups = self._groups()
        # Where each root lies: site numbers of values make the search for a gate cheap.
        site_of = torch.zeros(len(self.labels._parent), dtype=torch.long)
        for number, roots in enumerate(groups, start=1):
            site_of[roots] = number
        self.carried = [set(site_of[roots].unique().tolist()) for roots in self.roots]
        sites: list[Site] = []
        names: set[str] = set()
        for number, roots in enumerate(groups, start=1):
            if site := self._site(number, roots, [site.gate_at for site in sites], names):
                sites.append(site)
                names.add(site.name)
        sites = self._verified(sites)
        sites.sort(key=lambda site: self.number[site.gate_at])
        return TracedSites(tuple(sites), self._whole(sites))

    def _groups(self) -> list[Tensor]:
        """Return the roots of each site: labels that occur in the same tensors, equally often, made and read."""
        occurs: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, entries in enumerate(self.entries):
            for root, count in zip(*(t.tolist() for t in entries.labels.unique(return_counts=True)), strict=True):
                occurs[root].append((number, count))
        groups: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for root, where in occurs.items():
            dims = {self.entries[number].dim for number, _ in where}
            if root and "out" in dims and "in" in dims:
                groups[tuple(where)].append(root)
        uncounted = self._without_costs()
        found = [torch.tensor(sorted(roots)) for roots in groups.values() if len(roots) > 1]
        return sorted((r for r in found if not uncounted & set(r.tolist())), key=lambda r: int(r[0]))

    def _without_costs(self) -> set[int]:
        """Return the roots that scale some, but not all, of the MACs of a module."""
        mixed: set[int] = set()
        for parts in self.scaled.values():
            if any(not torch.equal(parts[0], part) for part in parts):
                mixed |= {root for part in parts for root in part.tolist()}
        return mixed

    def _site(self, number: int, roots: Tensor, taken: Sequence[str], names: set[str]) -> Site | None:
        producer = next(
            entries.module
            for entries in self.entries
            if _is_layer(self.modules[entries.module])
            and entries.dim != "in"
            and bool(torch.isin(roots, entries.labels).all())
        )
        name = producer
        while name in names:
            name += "'"
        for value, module, behind in self._gates(number):
            if any(f"{module}.".startswith(f"{at}.") or f"{at}.".startswith(f"{module}.") for at in taken):
                continue
            axis = next(axis for axis, size in enumerate(self.roots[value].shape) if size > 1)
            order = list(dict.fromkeys(self.roots[value].reshape(-1).tolist()))
            unit_of = {root: unit for unit, root in enumerate(order)}
            channels = tuple(unit_of[root] for root in self.roots[value].reshape(-1).tolist())
            return Site(
                name, "channel", len(order), "between", None, module, behind,
                tuple(self._slices(unit_of)), may_be_empty=False, axis=axis,
                channels=() if channels == tuple(range(len(order))) else channels,
                attributes=tuple(self._attributes(number)),
            )  # fmt: skip
        return None

    def _gates(self, number: int) -> Iterator[tuple[int, str, bool]]:
        """Yield where a gate may stand (value, module, behind): where an activation ends first, then the last ones."""
        touching = [node for node in self.trace.nodes if any(number in self.carried[v] for v in node.inputs)]
        changed_in_place = {node.inputs[0] for node in touching if node.in_place}
        maker = {value: node for node in self.trace.nodes for value in node.outputs}
        candidates = []
        for value, carried in enumerate(self.carried):
            axes = [axis for axis, size in enumerate(self.roots[value].shape) if size > 1]
            # The gate reads and closes all of a tensor, sample by sample.
            whole = carried == {number} and len(axes) == 1 and axes[0] > 0 and self.trace.shapes[value][0] == BATCH
            if whole and value in maker and value not in changed_in_place:
                candidates.append(value)
        active = [v for v in candidates if _is_activation(maker[v])]
        for value in [*active[::-1], *[v for v in candidates[::-1] if v not in active]]:
            if self._closes(value, number, touching):
                yield from ((value, *place) for place in self._places(value, touching))

    def _closes(self, value: int, number: int, touching: Sequence[Node]) -> bool:
        """Return True if zeros in ``value`` are zeros wherever entries of the site are summed up."""
        zero = {value}
        for node in touching:
            if stays_zero(node, zero, {v for v in node.inputs if number in self.carried[v]}):
                zero |= set(node.outputs)
        return all(v in zero for _, v in self.labels.sums if number in self.carried[v])

    def _places(self, value: int, touching: Sequence[Node]) -> Iterator[tuple[str, bool]]:
        """Yield the modules (name, behind) that return ``value``, or are all that read it; leaves first."""
        readers = {node.module for node in touching if value in node.inputs}
        found = []
        for name, calls in self.trace.calls.items():
            # A gate behind a module that returns what it reads would not act on others that read the same.
            if len(calls) == 1 and name and calls[0].returns == value and calls[0].reads != value:
                found.append((any(True for _ in self.modules[name].children()), name, True))
            if len(calls) == 1 and calls[0].reads == value and calls[0].single and readers == {name}:
                found.append((False, name, False))
        for _, name, behind in sorted(found, key=lambda place: (place[0], not place[2])):
            yield name, behind

    def _slices(self, unit_of: Mapping[int, int]) -> Iterator[ChannelSlice]:
        roots, seen = torch.tensor(list(unit_of)), set()
        for entries in [*self.entries, *self.costs]:
            if (belongs := torch.isin(entries.labels, roots)).any() and (entries.module, entries.dim) not in seen:
                positions: list[list[int]] = [[] for _ in unit_of]
                for position in belongs.nonzero().flatten().tolist():
                    positions[unit_of[int(entries.labels[position])]].append(position)
                seen.add((entries.module, entries.dim))
                yield ChannelSlice(
                    entries.module, entries.dim, width=len(positions[0]), size=len(entries.labels),
                    entries=tuple(map(tuple, positions)),
                )  # fmt: skip

    def _attributes(self, number: int) -> Iterator[IntAttribute]:
        """Yield attributes of modules that a reshape needs: numbers of heads, and widths of all heads together."""
        seen = set()
        for node in self.trace.nodes:
            if node.op not in ("view", "reshape", "unflatten", "expand", "split") or self.modules[node.module] in seen:
                continue
            for value in node.outputs:
                axes = [axis for axis, size in enumerate(self.roots[value].shape) if size > 1]
                if self.carried[value] != {number} or len(axes) != 1:
                    continue
                seen.add(self.modules[node.module])
                units = len(self.roots[value].unique())
                for name, count in vars(self.modules[node.module]).items():
                    heads = type(count) is int and count == units and re.search("heads|groups", name)
                    if heads or (type(count) is int and count > units and count in self._widths(number, units)):
                        yield IntAttribute(node.module, name, count // units)
                break

    def _widths(self, number: int, units: int) -> set[int]:
        sizes = {
            labels.numel() for labels, carried in zip(self.roots, self.carried, strict=True) if carried == {number}
        }
        return {size for size in sizes if size > units}

    def _verified(self, sites: list[Site]) -> list[Site]:
        """Return the sites that slicing serves: the sliced network is traced, and all shapes must be as predicted."""
        if not sites or self._fits(sites):
            return sites
        middle = len(sites) // 2
        # By bisection: as a rule a few sites of one kind do not fit.
        return self._verified(sites[:middle]) + self._verified(sites[middle:]) if middle else []

    def _fits(self, sites: Sequence[Site]) -> bool:
        drawn = random.Random(0)
        closed = {site: sorted(drawn.sample(range(site.units), drawn.randint(1, site.units - 1))) for site in sites}
        small = on_meta(self.plain)
        narrow_modules(small, closed)
        try:
            after = trace(small, self.input_shape, ATOMIC)
        except UserError:
            return False
        if [node.op for node in after.nodes] != [node.op for node in self.trace.nodes]:
            return False
        gone = self._gone(closed)
        for before, now in zip(self.trace.nodes, after.nodes, strict=True):
            # A constant that is computed from a width would be another one.
            if _numbers(before) != _numbers(now):
                return False
            for value, smaller in zip(before.outputs, now.outputs, strict=True):
                if self._remaining(value, gone) != after.shapes[smaller]:
                    return False
        return True

    def _gone(self, closed: Mapping[Site, Sequence[int]]) -> Tensor:
        """Return which roots are closed (labels,), bool."""
        gone = torch.zeros(len(self.labels._parent), dtype=torch.bool)
        by_dim = {(entries.module, entries.dim): entries.labels for entries in self.entries}
        for site, units in closed.items():
            piece = next(piece for piece in site.slices if piece.dim in ("out", "channels"))
            for unit in units:
                gone[by_dim[piece.module, piece.dim][list(piece.of(unit))]] = True
        return gone

    def _remaining(self, value: int, gone: Tensor) -> torch.Size:
        shape = list(self.trace.shapes[value])
        for axis, size in enumerate(self.roots[value].shape):
            if size > 1:
                shape[axis] -= int(gone[self.roots[value].reshape(-1)].sum())
        return torch.Size(shape)

    def _whole(self, sites: Sequence[Site]) -> dict[str, str]:
        sliced = {piece.module for site in sites for piece in site.slices if piece.dim in ("out", "channels")}
        whole = {}
        for entries in self.made:
            is_layer = _is_layer(self.modules[entries.module])
            if is_layer and entries.dim != "in" and entries.module not in sliced:
                reason = next((text for label in entries.labels.tolist() if (text := self.labels.reason(label))), "")
                whole[entries.module] = reason or "no single gate closes its channels for all layers that read them"
        return whole


def _by_dimension(entries: Sequence[Entries], modules: Mapping[str, nn.Module]) -> Iterator[Entries]:
    """Yield the entries of each dimension of a module once: layers and norms have several tensors for one."""
    seen = set()
    for each in entries:
        module, dim = modules[each.module], each.dim
        if _is_layer(module) and dim == "bias":
            continue
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
            dim = "channels"
        if (each.module, dim) not in seen:
            seen.add((each.module, dim))
            yield Entries(each.module, dim, each.labels)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd | nn.Linear)


def _is_activation(node: Node) -> bool:
    """Return True if a node is a pointwise function of one tensor alone."""
    return len(node.inputs) == 1 and is_pointwise(node.func)


def _numbers(node: Node) -> list[float]:
    return [number for number in tree_iter((node.args, node.options)) if isinstance(number, float)]
