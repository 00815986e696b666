"""Decisions of a phase of training: unit masks, the vote that makes them, and weight masks in the same form."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from torch import Tensor, nn

from dist_prune.errors import UserError, first_problem, nearest
from dist_prune.files import read_regular
from dist_prune.pruning.costs import Costs
from dist_prune.pruning.families import sites_named
from dist_prune.pruning.sites import Site
from dist_prune.pruning.slicing import close_units, slice_network
from dist_prune.pruning.weight_mask import WeightMask

THRESHOLD = 0.5
BINS = 20
DECIDED = 0.99  # a unit counts as decided when at least this share of samples agrees with the mask


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class SiteMask:
    """The decision at one site.

    mean_activation: mean over units, in [0, 1].
    kept: indices of the units that stay.
    agreement: share of (sample, unit) decisions that equal the mask.
    r_polar: mean over units of g (1 - g), the site's part of equation 9.
    undecided: number of units on which less than ``DECIDED`` of the samples agree.
    flipped: number of units that stay against the gates' vote.
    histogram: number of units by mean activation, in ``BINS`` equal bins of [0, 1].
    """

    name: str
    kind: str
    units: int
    mean_activation: float
    kept: tuple[int, ...]
    agreement: float
    r_polar: float = 0.0
    undecided: int = 0
    flipped: int = 0
    histogram: tuple[int, ...] = ()


_SITES = TypeAdapter(tuple[SiteMask, ...])


@dataclass(frozen=True)
class UnitMask:
    """A decision for every site, in the order of the network. Equal on all ranks."""

    sites: tuple[SiteMask, ...]
    kind: ClassVar[str] = "units"

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """Kept unit indices by site name."""
        return {site.name: site.kept for site in self.sites}

    @property
    def agreement(self) -> float:
        """Share of samples that agree with the mask: mean over sites of the mean over units."""
        # As equation 9: sites of many channels do not outweigh the others.
        return sum(site.agreement for site in self.sites) / len(self.sites)

    @property
    def open_ratio(self) -> float:
        """Share of all units that stay."""
        return sum(len(site.kept) for site in self.sites) / sum(site.units for site in self.sites)

    @property
    def flipped(self) -> int:
        """Number of units that stay against the gates' vote: as the last of their site, or to round up."""
        return sum(site.flipped for site in self.sites)

    @property
    def undecided(self) -> list[str]:
        """Names of the sites with units that too many samples disagree about."""
        return [site.name for site in self.sites if site.undecided]

    def as_dict(self) -> dict[str, Any]:
        """Return the content of mask.json."""
        kept, units = sum(len(s.kept) for s in self.sites), sum(s.units for s in self.sites)
        totals = {"kept": kept, "units": units, "open_ratio": self.open_ratio, "agreement": self.agreement}
        return {"sites": [asdict(site) for site in self.sites], "totals": totals}

    def masked(self, module: nn.Module) -> nn.Module:
        """Return a copy of a plain network with its closed units contributing zero; eval mode."""
        # A mask of another network would silently close nothing.
        sites = sites_named(module, self.kept)
        UnitMask.of(self.kept, [sites[name] for name in self.kept if name in sites])
        return close_units(module, self.kept, sites)

    def sliced(self, module: nn.Module) -> nn.Module:
        """Return the plain network that remains, with the outputs of ``masked``; eval mode."""
        return slice_network(module, self.kept)[0].eval()

    def macs(self, costs: Costs, kept: Mapping[str, Collection[int]]) -> int:
        """Return the MACs of what remains; kept: units that earlier phases left, by site name."""
        return costs.of({**kept, **self.kept})

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing: ``as_dict`` is complete."""
        return {}

    def figures(self) -> dict[str, Any]:
        """Return the figures for the records of a run."""
        return {
            "open_ratio": self.open_ratio,
            # Equation 9 over the data set: 0 when every unit decides alike for all samples.
            "r_polar": sum(site.r_polar for site in self.sites) / len(self.sites),
            "agreement": self.agreement,
            "units_flipped_by_rounding": self.flipped,
            "gate_means": {site.name: site.mean_activation for site in self.sites},
            "gate_histogram": [sum(counts) for counts in zip(*(site.histogram for site in self.sites), strict=True)],
        }

    @staticmethod
    def restore(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> UnitMask:
        """Return the mask that ``as_dict`` described; raises UserError for anything else."""
        try:
            if not data["sites"]:
                raise UserError("that is no mask of units: it has no sites")
            found = UnitMask(_SITES.validate_python(data["sites"]))
            if len({len(site.histogram) for site in found.sites}) > 1:
                raise UserError("that is no mask: the histograms of its sites differ in length")
            return found
        except ValidationError as error:
            where, problem = first_problem(error)
            raise UserError(f"that is no mask: 'sites.{where}': {problem}") from error
        except (KeyError, TypeError) as error:
            raise UserError("that is no mask: it has no 'sites'") from error

    @staticmethod
    def of(kept: Mapping[str, Sequence[int]], model_sites: Sequence[Site]) -> UnitMask:
        """Build a mask from kept unit indices by site name; every site must be named.

        Raises:
            UserError: for missing or unknown sites, indices out of range, and an empty site without a shortcut.
        """
        # A site left out would silently stay whole, and a misspelled one would do nothing.
        names = [site.name for site in model_sites]
        if set(names) != set(kept):
            odd = sorted(set(names) ^ set(kept))[0]
            raise UserError(f"the mask must name every site of the model once; '{odd}' is missing or unknown")
        found = []
        for site in model_sites:
            units = tuple(sorted(kept[site.name]))
            site.check_units(units)
            found.append(SiteMask(site.name, site.kind, site.units, len(units) / site.units, units, agreement=1.0))
        return UnitMask(tuple(found))


def vote(means: Tensor, model_sites: Sequence[Site], round_to: int = 1) -> UnitMask:
    """Return the mask of mean activations: a unit stays where its mean exceeds 0.5.

    Args:
        means: of the units of all sites in their order, (all units,), in [0, 1].
        model_sites: the sites.
        round_to: closed units of a channel site are restored, the most active first, until the number of open ones is
            a multiple of this; a site that is closed as a whole stays closed.
    """
    decided = []
    # float64: means of many samples lie close to the threshold, and every rank must decide alike.
    parts = means.detach().double().cpu().split([site.units for site in model_sites])
    for site, part in zip(model_sites, parts, strict=True):
        voted = part > THRESHOLD
        # A site without a shortcut keeps its most active unit: no network loses its last path.
        stays = _rounded_up(part, voted, 1 if site.kind == "layer" else round_to, at_least=not site.may_be_empty)
        agreement = torch.where(stays, part, 1 - part)
        decided.append(
            SiteMask(
                name=site.name,
                kind=site.kind,
                units=site.units,
                mean_activation=part.mean().item(),
                kept=tuple(stays.nonzero().flatten().tolist()),
                agreement=agreement.mean().item(),
                r_polar=(part * (1 - part)).mean().item(),
                undecided=int((torch.where(voted, part, 1 - part) < DECIDED).sum()),
                flipped=int((stays & ~voted).sum()),
                histogram=tuple(part.float().histc(BINS, 0, 1).int().tolist()),
            )
        )
    return UnitMask(tuple(decided))


def _rounded_up(means: Tensor, stays: Tensor, multiple: int, at_least: int) -> Tensor:
    """Add the most active closed units to ``stays`` (units,), up to a multiple of ``multiple`` and ``at_least``."""
    count = max(int(stays.sum()), at_least)
    more = min(len(means), -(-count // multiple) * multiple) - int(stays.sum())
    # Stable: units of equal means are restored in the same order on every machine.
    most_active = means.masked_fill(stays, -1).argsort(descending=True, stable=True)
    return stays.index_fill(0, most_active[:more], True)


def load_mask(path: str | Path) -> UnitMask:
    """Read a mask.json; raises UserError if it is missing, unreadable or not a mask."""
    try:
        return UnitMask.restore(json.loads(read_regular(Path(path))), {})
    except (OSError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path} is not a readable mask.json: {error}") from error


# What stays of a network: units (structured) or weights (unstructured), the same on all ranks. Both can be applied
# (``masked``), made physical (``sliced``), costed (``macs``), recorded (``figures``) and written (``as_dict`` and
# ``tensors``).
Decision = UnitMask | WeightMask


def restore_decision(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Decision:
    """Return the decision of a checkpoint: ``as_dict`` with its ``kind``, and ``tensors``. Raises UserError."""
    # Checkpoints name the kind, so that a decision is read by the class that wrote it.
    kinds: dict[str, type[Decision]] = {UnitMask.kind: UnitMask, WeightMask.kind: WeightMask}
    kind = str(data.get("kind"))
    if kind not in kinds:
        raise UserError(f"unknown kind of decision '{kind}'; {nearest(kind, kinds)}")
    return kinds[kind].restore(data, tensors)
