"""What is damaged: a small data set in both formats, a run of a tiny network, its checkpoint and sliced network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_tools import make_shards
from data_tools.images import encode_png
from dist_prune.checkpoints.format import save_checkpoint
from dist_prune.checkpoints.train_state import ModelState, Origin, Progress, TrainState
from dist_prune.config import RunConfig, override
from dist_prune.gates.consensus import consensus_mask
from dist_prune.monitor.records import EVAL_KEYS, RunFolder
from dist_prune.pruning.sliced_checkpoint import save_sliced
from dist_prune.recipes import recipe
from dist_prune.training.context import build_method, open_images

TINY = (
    "model=resnet8", "model_args.width=2", "epochs=1", "mask_samples=8", "workers=0", "log_every=1", "target_macs=null",
    "global_batch_size=8", "gates.kind=channel", "gates.hidden=2",
)  # fmt: skip
DS = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True, "gradient_clipping": 1.0,
      "torch_autocast": {"enabled": False, "dtype": "bfloat16"}}  # fmt: skip


@dataclass(frozen=True)
class Material:
    """Whole files by name of the folder, and the paths of what was not damaged."""

    home: Path

    @property
    def data(self) -> Path:
        """Images in PNG files, in shards."""
        return self.home / "files"

    @property
    def run(self) -> Path:
        """A run that stopped after a step, with a sliced network."""
        return self.home / "run"

    @property
    def ds(self) -> Path:
        """A DeepSpeed config."""
        return self.home / "ds.json"

    @property
    def settings(self) -> list[str]:
        """The words after --set with which the run was begun."""
        return [f"data={self.data}", *TINY]


def make_material(home: Path) -> Material:
    """Make all of it; takes seconds."""
    material = Material(home)
    chance = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for number in range(count):
            path = home / "images" / split / f"class{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)))
    make_shards("imagefolder", home / "images", material.data, samples_per_shard=6)
    material.ds.write_text(json.dumps(DS))
    _make_run(material)
    return material


def _make_run(material: Material) -> None:
    config = override(recipe("digits"), material.settings)
    images = open_images(config)
    phase = next(build_method(config, images).phases())
    run = RunFolder.create(material.run, resume=False)
    run.write_json(run.config, _record(config))
    run.write_status("stopped", "made to be damaged", 1)
    means = {"gate_means": {}, "loss/total": 1.0}
    run.append("train", {"epoch": 1, "step": 1, "steps_skipped": 0, "samples_skipped": 0, **means})
    run.append("eval", {**dict.fromkeys(EVAL_KEYS, 0.5), "epoch": 1, "step": 1, "gate_means": {}})
    weights = {name: tensor.clone() for name, tensor in phase.module.state_dict().items()}
    momentum = {name: {"momentum_buffer": torch.zeros_like(p)} for name, p in phase.module.named_parameters()}
    progress = Progress(phase=phase.name, batch=0, epoch=1, step=1)
    model, extra = ModelState(weights, momentum), phase.extra_state()
    origin = Origin(recipe=config.model_dump(mode="json"), ds_config={}, micro_batch=8, versions={})
    state = TrainState(progress, images.identity(), origin, model=model, phase_state=extra)
    save_checkpoint(run.checkpoints, state)
    mask = consensus_mask(phase.module, images.eval_batches("train", batch_size=8, rank=0, world_size=1))
    run.write_json(run.mask, mask.as_dict())
    save_sliced(
        phase.sliced(phase.module, mask),
        run.sliced,
        input_shape=images.input_shape,
        normalization=images.normalization,
        class_names=images.class_names,
        results={"accuracy_sliced": 0.5},
    )


def _record(config: RunConfig) -> Mapping[str, Any]:
    return {"config": config.model_dump(mode="json"), "ds_config": DS, "world_size": 1, "versions": {}}
