"""Evaluation by counts, and the end of a run: collapse -> sliced checkpoint, verified, reloaded and evaluated."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dist_prune import distributed
from dist_prune.errors import NothingToEvaluate, RunError
from dist_prune.gates.selection import budget_status
from dist_prune.measure.macs import count_macs, count_parameters
from dist_prune.methods import Phase, PhaseResult
from dist_prune.pruning.mask import Decision, UnitMask
from dist_prune.pruning.sliced_checkpoint import add_results, load_sliced, save_sliced
from dist_prune.training.context import RunContext


class CollapseFailed(RunError):
    """The sliced network does not compute what the gated one does."""


@torch.no_grad()
def accuracies(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    autocast: AbstractContextManager | None = None,
) -> dict[str, float]:
    """Return the top-1 accuracy of each model; every sample counts once over all ranks, and is decoded once.

    models: the same names on every rank; they are put in eval mode. batches: this rank's (images (B, C, H, W),
    labels (B,)); a rank may have none. Raises NothingToEvaluate if no rank has a sample.
    """
    for model in models.values():
        model.eval()
    counts = torch.zeros(len(models) + 1, dtype=torch.float64, device=device)
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        # The precision of training: users compare these figures with those of training steps.
        with autocast or nullcontext():
            right = [(model(images).argmax(1) == labels).sum() for model in models.values()]
        counts += torch.stack([*right, torch.as_tensor(len(labels), device=device)])
    # One all-reduce at the end: ranks may have different numbers of batches.
    *right_counts, samples = distributed.all_reduce_sum(counts).tolist()
    if samples == 0:
        raise NothingToEvaluate(
            "nothing to evaluate: no image could be read; fix the data (lines above that begin with 'skipped:' say why)"
        )
    return {name: right / samples for name, right in zip(models, right_counts, strict=True)}


@torch.no_grad()
def max_abs_difference(a: nn.Module, b: nn.Module, images: Tensor) -> tuple[float, float]:
    """Return (largest absolute difference of the two outputs, tolerance for fp32: 1e-5 * max(1, |y| max))."""
    # TF32 keeps 10 bits of the mantissa, which would hide a real difference in its rounding.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        first, second = a.eval()(images), b.eval()(images)
    tolerance = 1e-5 * max(1.0, first.abs().max().item())
    return (first - second).abs().max().item(), tolerance


def collapse_difference(context: RunContext, phase: Phase, result: PhaseResult) -> float:
    """Return the largest absolute difference between masked and sliced outputs of a phase, on real images.

    All ranks call it and get the same, whatever each one's processor rounds. Raises CollapseFailed, on all of them, if
    it is more than fp32 rounding.
    """
    masked = phase.masked(result.module, result.decision)
    sliced = phase.sliced(result.module, result.decision)
    # Real images: noise would not reach the units that matter.
    mine = max_abs_difference(masked, sliced, context.first_images("test"))
    difference, tolerance = map(max, zip(*distributed.gather_objects(mine), strict=True))
    # Not "difference > tolerance", which is False for NaN.
    if not difference <= tolerance:
        raise CollapseFailed(f"masked and sliced outputs differ by {difference:.3g} (tolerance {tolerance:.3g})")
    return difference


def finish(
    context: RunContext, phase: Phase, result: PhaseResult, difference: float, autocast: torch.autocast | None = None
) -> dict[str, Any]:
    """Collapse the network of the last phase, write mask.json and sliced/, and return the summary without times.

    All ranks call it; rank 0 writes. difference: what ``collapse_difference`` found, the largest of all phases. Raises
    CollapseFailed if the MACs are not those that the decision predicts.
    """
    trained, decision, costs = result.module, result.decision, context.method.costs
    masked, sliced = phase.masked(trained, decision), phase.sliced(trained, decision)
    # The budget was met by predicted MACs; the sliced network must have exactly these.
    macs, predicted = count_macs(sliced, context.data.input_shape), phase.macs(costs, decision)
    if macs != predicted:
        raise CollapseFailed(f"the sliced network has {macs} MACs, the mask predicts {predicted}")
    figures = decision.figures() if decision else {}
    target, budget = context.config.target_macs, {}
    if target is not None and isinstance(decision, UnitMask):
        budget = {"target_macs": target, "budget": budget_status(costs, decision.kept, target)}
    summary: dict[str, Any] = {
        "macs": macs,
        "macs_dense": costs.dense,
        "macs_ratio": macs / costs.dense,
        "macs_not_counted": list(costs.not_counted),
        **budget,
        "parameters": count_parameters(sliced),
        "parameters_dense": costs.parameters,
        **{key: figures.get(key) for key in ("open_ratio", "density", "agreement", "units_flipped_by_rounding")},
        "max_abs_difference": difference,
    }
    # From here on, what was written to disk is evaluated, not what is in memory.
    reloaded = sliced
    with context.capture_write_errors():
        reloaded = _write(context, sliced, decision, summary)
    context.sync_errors()
    models = {"accuracy": trained, "accuracy_sliced": reloaded.to(context.device)}
    # A network without gates is its own masked network; evaluating it twice would show nothing.
    if masked is not trained:
        models["accuracy_consensus"] = masked
    with context.with_read_errors():
        accuracy = accuracies(models, context.eval_batches("test"), context.device, autocast)
    context.sync_errors()
    summary |= {"accuracy_consensus": accuracy["accuracy"] if decision else None, **accuracy}
    # The model card is written once before the evaluation, so that a crash in it loses no network.
    with context.capture_write_errors():
        if distributed.is_main():
            context.folder.check_owner()
            add_results(context.folder.sliced, summary)
    context.sync_errors()
    return summary


def _write(context: RunContext, sliced: nn.Module, decision: Decision | None, summary: dict[str, Any]) -> nn.Module:
    """Write the results on rank 0; return the network to evaluate, on rank 0 the one that was reloaded."""
    if not distributed.is_main():
        return sliced
    context.folder.check_owner()
    # The last phase may have no mask; one of an earlier phase would not be that of the sliced network.
    context.folder.mask.unlink(missing_ok=True)
    if decision is not None:
        context.folder.write_json(context.folder.mask, decision.as_dict())
    data = context.data
    save_sliced(
        sliced,
        context.folder.sliced,
        input_shape=data.input_shape,
        resized_side=data.resized_side,
        interpolation=data.interpolation,
        normalization=data.normalization,
        class_names=data.class_names,
        results={"trained on": context.config.data.location, **summary},
    )
    reloaded = load_sliced(context.folder.sliced)
    ours = sliced.state_dict()
    for name, tensor in reloaded.state_dict().items():
        if not torch.equal(tensor, ours[name].cpu()):
            raise CollapseFailed(f"{name} came back changed from {context.folder.sliced}")
    return reloaded


def advice(decision: Decision | None) -> str | None:
    """Return one line about what a mask of units has decided: a warning with advice if units are undecided."""
    if not isinstance(decision, UnitMask):
        return None
    undecided, sites = decision.undecided, len(decision.sites)
    if not undecided:
        return f"all {sites} sites are decided: at least 99 % of the images agree with the mask"
    named = ", ".join(undecided[:5]) + (", ..." if len(undecided) > 5 else "")
    return (
        f"warning: {len(undecided)} of {sites} sites are undecided ({named}): more than 1 % of the images disagree "
        "with the mask there; train longer, or raise the polarization weight earlier"
    )
