"""Commands on finished or interrupted runs, without a training engine: collapse, evaluate, and naive baselines.

Naive baselines (arXiv 2302.10798, section 5.3, Figure 4) prune a trained network at random.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tabulate import tabulate
from torch import Tensor, nn

from dist_prune.checkpoints.format import load_checkpoint, load_newest
from dist_prune.checkpoints.restore import config_with_data
from dist_prune.checkpoints.train_state import TrainState
from dist_prune.config import override
from dist_prune.data import ImageData, open_data
from dist_prune.engine.ds_config import Batching
from dist_prune.errors import UserError
from dist_prune.measure.macs import count_macs
from dist_prune.methods import PhaseResult
from dist_prune.monitor.formatting import spread
from dist_prune.monitor.records import RunFolder
from dist_prune.pruning.families import layer_sites
from dist_prune.pruning.mask import load_mask
from dist_prune.pruning.sliced_checkpoint import find_sliced, load_sliced, read_sliced_config
from dist_prune.pruning.slicing import slice_network
from dist_prune.training.context import RunContext, build_method, interrupted_phase, open_images
from dist_prune.training.evaluate import accuracies, collapse_difference, finish

SHARES = (0.2, 0.3, 0.5, 0.6, 0.8)
COPIES_BYTES = 2**30  # of copies of the network that one pass over the data may hold


def collapse_run(
    source: str,
    out: str | None = None,
    mask: str | None = None,
    data: str | None = None,
    eval_data: str | None = None,
    round_to: int | None = None,
) -> dict[str, Any]:
    """Collapse the newest checkpoint of a run folder (or one checkpoint folder) into a sliced checkpoint.

    mask: a mask.json to use instead of a vote over the training images; data, eval_data: where the shards are now;
    out: a folder for mask.json and sliced/ (default: the run folder); round_to: of channels (default: the recipe's).
    Returns the summary. Raises UserError where there is no gate left for a mask or a vote to round.
    """
    if mask and round_to:
        raise UserError("a mask.json is used unchanged: remove --mask or --round_to")
    run, state = _find(Path(source))
    config = config_with_data(run, data, eval_data)
    config = override(config, [f"round_to={round_to}"] if round_to else [])
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
    network = load_sliced(path).float()  # an export may have half-precision weights, which CPUs convolve in fp32 only
    measured = accuracies({"accuracy": network}, batches, torch.device("cpu"))
    return {**measured, "samples": images.num_samples(split) or "not counted", "data": data, "split": split}


def open_for_sliced(path: Path, data: str | None) -> tuple[ImageData, str]:
    """Open the images as the sliced checkpoint at ``path`` expects them; by default, those of its run.

    Returns the images, and where they are. Raises UserError for images of another shape, ShardError for other classes.
    """
    config = read_sliced_config(path)
    chosen: dict[str, Any] = {"data": data}
    if data is None:
        recorded = config_with_data(RunFolder(path.parent))
        chosen = {key: getattr(recorded, key) for key in ("data", "eval_data", "eval_share")}
        data = recorded.eval_data or recorded.data.location
    shape, expected, resized = config["input_shape"], config["normalization"], config["resized_side"]
    images = open_data(
        **chosen,
        # Only images that are used at their own size may have two different sides.
        image_size=shape[1] if shape and shape[1] == shape[2] else None,
        eval_crop=min(shape[1:]) / resized if shape and resized else None,
        interpolation=config["interpolation"] or "bilinear",
    )
    if shape is not None and tuple(shape) != images.input_shape:
        raise UserError(f"the network takes images of {shape}, {data} has {list(images.input_shape)}")
    if expected is not None:
        images = images.read_as(config["class_names"] or images.class_names, expected)
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


def naive_baselines(
    folder: str, data: str | None = None, shares: Sequence[float] = SHARES, draws: int = 3, split: str = "test"
) -> list[dict[str, Any]]:
    """Evaluate the naive baselines of a run's ``sliced/`` network, or of a sliced checkpoint, on a split.

    shares: fractions to prune; draws: seeds 0 to draws - 1 for each share; data: default the run's.
    Returns the entries of ``measure_naive``; for a run folder it also writes them to its naive.json.
    Raises UserError for a share that is not between 0 and 1 and for a folder that holds no such network.
    """
    for share in shares:
        if not 0 < share < 1:
            raise UserError(f"a share must be above 0 and below 1, not {share:g}")
    path = find_sliced(folder)
    images, _ = open_for_sliced(path, data)
    batches = functools.partial(images.eval_batches, split, batch_size=256, rank=0, world_size=1)
    entries = measure_naive(load_sliced(path).float(), batches, images.input_shape, shares, range(draws))
    run = RunFolder(folder)
    if path == run.sliced and run.holds_run():
        run.write_json(run.path / "naive.json", entries)
    return entries


def measure_naive(
    model: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    input_shape: Sequence[int],
    shares: Sequence[float],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Top-1 accuracy and MACs of each baseline, share and seed; ``model`` stays as it is.

    batches: each call reads the split again, (images (B, C, H, W), labels (B,)), once for as many variants as
    fit into memory; input_shape: (C, H, W). Returns {"baseline": "dropout" or "layers", "share", "seed",
    "accuracy", "macs_ratio"}, all fractions: macs_ratio is over the MACs of ``model``, None where none are
    saved. A network without residual layers has no "layers" entries.
    """
    baselines = [name for name in _BASELINES if name != "layers" or layer_sites(model)]
    plan = [(name, share, seed) for name in baselines for share in dict.fromkeys(shares) for seed in seeds]
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    per_pass = max(1, COPIES_BYTES // max(1, size))
    whole, entries = count_macs(model, input_shape), []
    for start in range(0, len(plan), per_pass):
        variants = {str(draw): _BASELINES[draw[0]][1](model, *draw[1:]) for draw in plan[start : start + per_pass]}
        measured = accuracies(variants, batches(), torch.device("cpu"))
        for draw in plan[start : start + per_pass]:
            ratio = count_macs(variants[str(draw)], input_shape) / whole if draw[0] == "layers" else None
            entry = dict(zip(("baseline", "share", "seed"), draw, strict=True))
            entries.append({**entry, "accuracy": measured[str(draw)], "macs_ratio": ratio})
    return entries


def drop_weights(model: nn.Module, share: float, seed: int) -> nn.Module:
    """Naive dropout (section 5.3): a copy with a share of its weights set to zero, which saves no MACs.

    Drawn uniformly over the weights of all convolution and linear layers together, exact to one weight. Norm
    parameters and biases stay as they are. With the same seed, a larger share zeroes what a smaller one does.
    """
    dropped = copy.deepcopy(model)
    weights = [
        parameter
        for module in dropped.modules()
        if isinstance(module, nn.Conv2d | nn.Linear | nn.MultiheadAttention)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1  # biases have one dimension
    ]
    sizes = [weight.numel() for weight in weights]
    gone = torch.zeros(sum(sizes), dtype=torch.bool)
    gone[_drawn(len(gone), share, seed)] = True
    for weight, part in zip(weights, gone.split(sizes), strict=True):
        weight.data[part.view_as(weight)] = 0
    return dropped


def remove_layers(model: nn.Module, share: float, seed: int) -> nn.Module:
    """Naive layer pruning (section 5.3): a copy without a share of its residual branches, in eval mode.

    Its outputs are those of ``model`` with the outputs of these branches set to 0. Drawn uniformly over the
    residual layers, rounded to whole ones. With the same seed, a larger share removes what a smaller one does.
    """
    names = [site.name for site in layer_sites(model)]
    gone = {names[number] for number in _drawn(len(names), share, seed).tolist()}
    return slice_network(model, {name: () if name in gone else (0,) for name in names})[0].eval()


_BASELINES = {"dropout": ("naive dropout", drop_weights), "layers": ("naive layer pruning", remove_layers)}


def _drawn(count: int, share: float, seed: int) -> Tensor:
    """Return the numbers of the pruned ones of ``count`` (int64): a prefix of one random order, so that shares nest."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: round(share * count)]


def naive_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries of ``measure_naive`` in percent, mean ± sample standard deviation over the draws, as text."""
    rows, frame = [], pd.DataFrame(entries).astype({"macs_ratio": float})
    for (baseline, share), draws in frame.groupby(["baseline", "share"], sort=False):
        accuracy, macs = (f"{spread(draws[of].mean(), draws[of].std(), 100)} %" for of in ("accuracy", "macs_ratio"))
        macs = "not reduced" if baseline == "dropout" else macs
        rows.append([_BASELINES[baseline][0], f"{100 * share:g} %", accuracy, macs])
    text = tabulate(rows, ["baseline", "share", "accuracy", "MACs, kept / whole"], disable_numparse=True)
    if all(entry["baseline"] == "dropout" for entry in entries):
        text += "\nno naive layer pruning: the network has no residual layers of a known family"
    return text
