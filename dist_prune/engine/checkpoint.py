"""Portable checkpoints: full fp32 tensors and plain JSON, independent of world size and ZeRO stage, no pickle.

    checkpoints/step-00000120/model.safetensors      parameters and buffers by name
                              optimizer.safetensors  momentum by parameter name
                              state.json             phase and structure first, then position, schedules, which data
                              manifest.json          sizes and sha256, written last
    checkpoints/latest                               name of the newest, moved last

A folder appears under its name only when it is whole. One that was damaged later is named and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from dist_prune.errors import UserError

KEEP = 2  # the newest, and the one before it in case the newest is damaged


@dataclass
class Checkpoint:
    """A state of training. ``state`` is plain JSON data; tensors are full, fp32 and on the CPU."""

    weights: dict[str, Tensor]
    momentum: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, step: int) -> Path:
    """Write ``checkpoint`` as step ``step`` below ``folder`` (one rank does), and drop all but the newest."""
    final = folder / f"step-{step:08d}"
    beside = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    safetensors.torch.save_file(checkpoint.weights, beside / "model.safetensors")
    safetensors.torch.save_file(checkpoint.momentum, beside / "optimizer.safetensors")
    (beside / "state.json").write_text(json.dumps(checkpoint.state, indent=2))
    manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in beside.iterdir():
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(beside, final)
    pointer = folder / f".latest.{os.getpid()}.tmp"
    pointer.write_text(final.name + "\n")
    _sync(pointer)
    os.replace(pointer, folder / "latest")
    for old in [*sorted(folder.glob("step-*"))[:-KEEP], *folder.glob(".step-*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder; raises UserError if it is incomplete or does not match its manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            if _fingerprint(path / name) != expected:
                raise UserError(f"checkpoint {path} is damaged: {name} does not match its checksum")
        state = json.loads((path / "state.json").read_text())
        weights = safetensors.torch.load_file(path / "model.safetensors")
        momentum = safetensors.torch.load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(weights, momentum, state)


def load_newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint below ``folder`` that is whole, and a line about each newer one that is not."""
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return load_checkpoint(path), passed_over
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
