"""Commands on finished or interrupted runs, without a training engine: collapse a checkpoint, evaluate a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dist_prune.checkpoints.format import load_checkpoint, load_newest
from dist_prune.checkpoints.restore import config_of, data_of
from dist_prune.checkpoints.train_state import TrainState
from dist_prune.config import AugmentConfig
from dist_prune.data import ImageData, open_data
from dist_prune.engine.ds_config import Batching
from dist_prune.errors import UserError
from dist_prune.methods import PhaseResult
from dist_prune.monitor.records import RunFolder
from dist_prune.pruning.mask import load_mask
from dist_prune.pruning.sliced_checkpoint import find_sliced, load_sliced, read_sliced_config
from dist_prune.training.context import RunContext, build_method, interrupted_phase, open_images
from dist_prune.training.evaluate import accuracies, collapse_difference, finish


def collapse_run(
    source: str, out: str | None = None, mask: str | None = None, data: str | None = None, round_to: int | None = None
) -> dict[str, Any]:
    """Collapse the newest checkpoint of a run folder (or one checkpoint folder) into a sliced checkpoint.

    mask: a mask.json to use instead of a vote over the training images; data: where the shards are now;
    out: a folder for mask.json and sliced/ (default: the run folder); round_to: of channels (default: the recipe's).
    Returns the summary. Raises UserError where there is no gate left for a mask or a vote to round.
    """
    if mask and round_to:
        raise UserError("a mask.json is used unchanged: remove --mask or --round_to")
    run, state = _find(Path(source))
    config = config_of(run)
    data = data or data_of(run)
    given = {"data": data, "round_to": round_to}
    config = config.model_copy(update={key: value for key, value in given.items() if value})
    images = open_images(config)
    method = build_method(config, images)
    phase = interrupted_phase(method.phases(), state, config.seed)
    phase.module.load_state_dict(state.model.weights)
    phase.module.eval()
    phase.on_weights_loaded(phase.module)
    if (mask or round_to) and not phase.has_gates:
        raise UserError(f"{source} has no gates left to vote: remove --mask and --round_to")
    folder = RunFolder(out) if out else run
    folder.path.mkdir(parents=True, exist_ok=True)
    context = RunContext(config, {}, Batching(256, 1, 1), images, method, torch.device("cpu"), folder)
    with context.with_read_errors():
        batches = context.eval_batches("train")
        decision = load_mask(mask) if mask else phase.vote(phase.module, batches)
    context.sync_errors()
    result = PhaseResult(phase.module, state.progress.epoch, decision)
    summary = finish(context, phase, result, collapse_difference(context, phase, result))
    return {**summary, "sliced network": str(folder.sliced)}


def evaluate_sliced(folder: str, data: str | None = None, split: str = "test") -> dict[str, Any]:
    """Return the top-1 accuracy of a sliced checkpoint (or of a run folder's ``sliced/``) on a split."""
    path = find_sliced(folder)
    images, data = open_for_sliced(path, data)
    batches = images.eval_batches(split, batch_size=256, rank=0, world_size=1)
    measured = accuracies({"accuracy": load_sliced(path)}, batches, torch.device("cpu"))
    return {**measured, "samples": images.num_samples(split), "data": data, "split": split}


def open_for_sliced(path: Path, data: str | None) -> tuple[ImageData, str]:
    """Open the images as the sliced checkpoint at ``path`` expects them; by default, those of its run.

    Returns the images, and where they are. Raises UserError where they have another shape or normalization.
    """
    config = read_sliced_config(path)
    data = data_of(RunFolder(path.parent)) if data is None else data
    shape, expected = config["input_shape"], config["normalization"]
    # If training used random resized crops, evaluation scales images with a margin and crops the center.
    augment = AugmentConfig(random_resized_crop=config.get("resized_side") is not None)
    images = open_data(data, image_size=(shape or [None])[-1], augment=augment)
    if shape is not None and tuple(shape) != images.input_shape:
        raise UserError(f"the network takes images of {shape}, {data} has {list(images.input_shape)}")
    if expected is not None and expected != images.normalization:
        raise UserError(
            f"the network was trained on pixels normalized by {expected}, "
            f"{data} is normalized by {images.normalization}"
        )
    return images, data


def _find(source: Path) -> tuple[RunFolder, TrainState]:
    # One checkpoint: RUN/checkpoints/step-...
    if (source / "manifest.json").exists():
        return RunFolder(source.parent.parent), load_checkpoint(source)
    run = RunFolder(source)
    state, damaged = load_newest(run.checkpoints)
    if state is None:
        raise UserError(damaged[0] if damaged else f"{source} holds no checkpoint of a run")
    return run, state
