"""The sliced checkpoint: a plain small network on disk, without gates, pickle or need of deepspeed.

``config.json`` describes the architecture completely, ``model.safetensors`` holds the tensors and
``README.md`` is the model card. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from dist_prune.consensus.slicing import remove_units
from dist_prune.errors import UserError
from dist_prune.gates import gated_modules
from dist_prune.models import Architecture, architecture_of

FORMAT = "dist_prune.sliced"
VERSION = 1


def save_sliced(
    small: nn.Module,
    folder: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    resized_side: int | None = None,
    normalization: Mapping[str, Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
    results: Mapping[str, Any] | None = None,
) -> Path:
    """Write a collapsed network (or a plain one) as a sliced checkpoint; replaces an older one at ``folder``.

    input_shape: (C, H, W); resized_side: to how many pixels the shorter side of an image is scaled before its
    centre is cut out, None where images are taken as a whole; normalization: {"mean": [...], "std": [...]} per
    channel, on pixels in [0, 1]; results: figures for the model card. Raises UserError if it is not known how
    the network was built (build it with ``dist_prune.build_model``, or use a stock torchvision ResNet or timm
    model).
    """
    kept = getattr(small, "dist_prune_kept", {})
    architecture = architecture_of(small)
    if architecture is None:
        raise UserError(
            f"cannot describe this {type(small).__name__} for a checkpoint: build it with dist_prune.build_model"
        )
    _refuse_other_structure(small, architecture, kept)
    config = {
        "format": FORMAT,
        "version": VERSION,
        **architecture.as_dict(),
        "kept_units": kept,
        "input_shape": None if input_shape is None else list(input_shape),
        "resized_side": resized_side,
        "normalization": None if normalization is None else {k: list(v) for k, v in normalization.items()},
        "class_names": None if class_names is None else list(class_names),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in small.state_dict().items()}
    target = Path(folder)
    if not target.name:
        raise UserError(f"name a folder for the checkpoint: '{folder}' itself cannot be replaced")
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    safetensors.torch.save_file(tensors, beside / "model.safetensors", metadata={"format": "pt"})
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (beside / "README.md").write_text(_model_card(config, results or {}))
    _replace_folder(beside, target)
    return target


def load_sliced(folder: str | Path) -> nn.Module:
    """The network of a sliced checkpoint: a plain ``nn.Module`` in eval mode, on CPU, without gates.

    Raises UserError if the folder is no sliced checkpoint or its files do not belong together.
    """
    config = read_sliced_config(folder)
    try:
        tensors = safetensors.torch.load_file(Path(folder) / "model.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}/model.safetensors cannot be read: {error}") from error
    architecture = Architecture(config["builder"], config["arguments"])
    with torch.device("meta"):
        small = architecture.build()
        remove_units(small, config["kept_units"])
    if len(dict(small.named_buffers())) + len(dict(small.named_parameters())) > len(small.state_dict()):
        with torch.random.fork_rng(devices=[]):  # buffers that no file holds are made by the builder
            small = architecture.build()
        remove_units(small, config["kept_units"])
    try:
        small.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]
        raise UserError(
            f"{folder}: config.json and model.safetensors do not belong together:{first}"
        ) from error
    return small.requires_grad_(True).eval()


def read_sliced_config(folder: str | Path) -> dict[str, Any]:
    """The description of a sliced checkpoint; raises UserError if it is missing or not one."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a sliced checkpoint: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{folder} is not a sliced checkpoint: {path} does not say so")
    if config.get("version") != VERSION:
        raise UserError(
            f"{folder} is of format version {config.get('version')}; this program reads {VERSION}"
        )
    missing = {"builder", "arguments", "kept_units"} - config.keys()
    if missing:
        raise UserError(f"{path} lacks '{sorted(missing)[0]}'")
    for key, kind in (("builder", str), ("arguments", dict), ("kept_units", dict)):
        if not isinstance(config[key], kind):
            raise UserError(f"{path}: '{key}' is of the wrong type: {config[key]!r}")
    return config


def _refuse_other_structure(small: nn.Module, architecture: Architecture, kept: Mapping[str, Any]) -> None:
    if any(True for _ in gated_modules(small)):
        raise UserError("this network still has gates: save what dist_prune.collapse returns")
    with torch.device("meta"):
        rebuilt = architecture.build()
        remove_units(rebuilt, kept)
    if repr(rebuilt) != repr(small):
        raise UserError(
            f"this {type(small).__name__} was changed after it was built as {architecture.builder}; a sliced "
            "checkpoint cannot describe that"
        )


def _replace_folder(beside: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.exists():
        os.replace(target, old)
    os.replace(beside, target)
    shutil.rmtree(old, ignore_errors=True)


def _model_card(config: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    closed = [name for name, units in config["kept_units"].items() if not units]
    rows = "\n".join(
        f"| {name} | {'not measured' if value is None else value} |" for name, value in results.items()
    )
    return f"""---
library_name: dist_prune
pipeline_tag: image-classification
tags: [pruning, structured-pruning, image-classification]
---

# {config["builder"]}, sliced

A plain network, trained once with gates and collapsed to the layers that the gates agreed on.

| | |
|---|---|
| builder | `{config["builder"]}` {json.dumps(config["arguments"])} |
| input (channels, height, width) | {config["input_shape"] or "not recorded"} |
| sites | {len(config["kept_units"])} |
| closed sites | {", ".join(closed) or "none"} |
{rows}

MACs are multiply-accumulates as fvcore counts them in eval mode (convolution, linear, 2 per batch-norm
element, pooling).

```python
import dist_prune

model = dist_prune.load_sliced(".")  # a torch.nn.Module in eval mode
```
"""
