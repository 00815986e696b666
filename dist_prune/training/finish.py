"""The end of a run: consensus mask -> collapse -> sliced checkpoint, verified, reloaded and evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dist_prune import distributed
from dist_prune.errors import RunError
from dist_prune.gates.selection import budget_status
from dist_prune.measure.macs import count_macs, count_parameters
from dist_prune.methods import Phase
from dist_prune.pruning.mask import UnitMask
from dist_prune.pruning.sliced_checkpoint import add_results, load_sliced, save_sliced
from dist_prune.training.context import RunContext
from dist_prune.training.evaluate import accuracies, max_abs_difference


class CollapseFailed(RunError):
    """The sliced network does not compute what the gated one does."""


@dataclass(frozen=True)
class Outcome:
    """summary: the record of the run folder's contract, without times; small: the collapsed network."""

    summary: dict[str, Any]
    small: nn.Module


def collapse_difference(setting: RunContext, phase: Phase) -> float:
    """The largest absolute difference between masked and sliced outputs of a phase that is over, on real images.

    All ranks call it and get the same, whatever each one's processor rounds. Raises CollapseFailed, on all of them, if
    it is more than fp32 rounding.
    """
    trained, mask = phase.trained, phase.decision
    assert trained is not None
    fixed, small = phase.fixed(trained, mask), phase.small(trained, mask)
    mine = max_abs_difference(fixed, small, setting.first_images("test"))
    difference, tolerance = map(max, zip(*distributed.gather_objects(mine), strict=True))
    if not difference <= tolerance:
        raise CollapseFailed(
            f"masked and sliced outputs differ by {difference:.3g} (tolerance {tolerance:.3g})"
        )
    return difference


def finish(
    setting: RunContext, phase: Phase, difference: float, autocast: torch.autocast | None = None
) -> Outcome:
    """Collapse the last phase (``trained`` and ``decision`` set); all ranks call it.

    Rank 0 writes mask.json and sliced/. difference: what ``collapse_difference`` found, the largest of all phases.
    Raises CollapseFailed if the MACs are not those that the mask predicts.
    """
    trained, mask = phase.trained, phase.decision
    assert trained is not None
    fixed, small = phase.fixed(trained, mask), phase.small(trained, mask)
    macs, predicted = count_macs(small, setting.data.input_shape), phase.macs(setting.costs, mask)
    if macs != predicted:
        raise CollapseFailed(f"the sliced network has {macs} MACs, the mask predicts {predicted}")
    summary: dict[str, Any] = {
        "macs": macs,
        "macs_dense": setting.costs.dense,
        "macs_ratio": macs / setting.costs.dense,
        "macs_not_counted": list(setting.costs.not_counted),
        **_budget(setting, mask),
        "parameters": count_parameters(small),
        "parameters_dense": setting.costs.parameters,
        "agreement": mask.agreement if mask else None,
        "units_flipped_by_rounding": mask.flipped if mask else None,
        "max_abs_difference": difference,
    }
    reloaded = small
    with setting.capture_write_errors():
        reloaded = _write(setting, small, mask, summary)
    setting.sync_errors()
    models = {"accuracy": trained, "accuracy_sliced": reloaded.to(setting.device)}
    if fixed is not trained:
        models["accuracy_consensus"] = fixed
    with setting.with_read_errors():
        accuracy = accuracies(models, setting.eval_batches("test"), setting.device, autocast)
    setting.sync_errors()
    summary |= {"accuracy_consensus": accuracy["accuracy"] if mask else None, **accuracy}
    with setting.capture_write_errors():
        if distributed.is_main():
            add_results(setting.folder.sliced, summary)
    setting.sync_errors()
    return Outcome(summary, reloaded)


def _budget(setting: RunContext, mask: UnitMask | None) -> dict[str, Any]:
    """The budget and what became of it, for gated networks that have one."""
    target = setting.config.target_macs
    if mask is None or target is None:
        return {}
    return {"target_macs": target, "budget": budget_status(setting.costs, mask.kept, target)}


def _write(
    setting: RunContext, small: nn.Module, mask: UnitMask | None, summary: dict[str, Any]
) -> nn.Module:
    """Write the results on rank 0; returns the network to evaluate: there the reloaded one, bit for bit."""
    if not distributed.is_main():
        return small
    if mask is not None:
        setting.folder.write_json(setting.folder.mask, mask.as_dict())
    data = setting.data
    save_sliced(
        small,
        setting.folder.sliced,
        input_shape=data.input_shape,
        resized_side=data.resized_side,
        normalization=data.normalization,
        class_names=data.class_names,
        results={"trained on": setting.config.data, **summary},
    )
    reloaded = load_sliced(setting.folder.sliced)
    ours = small.state_dict()
    for name, tensor in reloaded.state_dict().items():
        if not torch.equal(tensor, ours[name].cpu()):
            raise CollapseFailed(f"{name} came back changed from {setting.folder.sliced}")
    return reloaded


def advice(mask: UnitMask | None) -> str | None:
    """A warning with advice where units are undecided, in one line; None where all samples agree."""
    if mask is None or not mask.undecided:
        return None
    named = ", ".join(mask.undecided[:5]) + (", ..." if len(mask.undecided) > 5 else "")
    return (
        f"warning: {len(mask.undecided)} of {len(mask.sites)} sites are undecided ({named}): more than 1 % of the "
        "images disagree with the mask there; train longer, or raise the polarization weight earlier"
    )
