"""Portable checkpoints: full fp32 tensors and plain JSON, independent of world size and ZeRO stage, no pickle.

    checkpoints/step-00000120/model.safetensors      parameters and buffers by name
                              optimizer.safetensors  optimizer state, as STATE/PARAMETER (momentum_buffer/conv1.weight)
                              state.json             phase and structure first, then position and which data
                              manifest.json          sizes and sha256, written last
    checkpoints/latest                               name of the newest, moved last
    checkpoints/best                                 name of the best, where it is kept

A folder appears under its name only when it is whole. One that was damaged later is named and passed over.
"""

from __future__ import annotations

import contextlib
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
from dist_prune.files import save_tensors, write_atomic

KEEP = 2  # the newest, and the one before it in case the newest is damaged


@dataclass
class Checkpoint:
    """A state of training. ``state`` is plain JSON data; tensors are full, fp32 and on the CPU."""

    weights: dict[str, Tensor]
    optimizer_state: dict[str, dict[str, Tensor]]  # parameter name -> state name -> tensor
    state: dict[str, Any]

    def pop_extra_state(self) -> dict[str, Tensor]:
        """Take out of ``weights`` what ``with_extra_state`` has put beside them."""
        names = [name for name in self.weights if name.startswith(_EXTRA)]
        return {name.removeprefix(_EXTRA): self.weights.pop(name) for name in names}


_EXTRA = "phase/"  # no module's name has a slash


def with_extra_state(weights: dict[str, Tensor], extra: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a module together with the tensors that its phase keeps beside them."""
    return weights | {f"{_EXTRA}{name}": tensor for name, tensor in extra.items()}


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, step: int, keep: int = KEEP, best: int | None = None
) -> Path:
    """Write ``checkpoint`` as step ``step`` below ``folder``; one rank does.

    The newest ``keep`` stay, and that of step ``best``, where it is there. Raises OSError or SafetensorError if
    it cannot be written; then what was there before is as it was, and nothing is left beside it.
    """
    final = folder / _name(step)
    beside = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        _write_files(beside, checkpoint)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # a full disk is to have its room back
        raise
    if final.exists():
        _remove(final)
    os.replace(beside, final)
    _sync(folder)
    write_atomic(folder / "latest", f"{final.name}\n".encode())
    stay = {path.name for path in _before(folder, final)[-keep:]}
    if best is not None and (folder / _name(best)).exists():
        write_atomic(folder / "best", f"{_name(best)}\n".encode())
        stay.add(_name(best))
    for old in [*folder.glob("step-*"), *folder.glob(".step-*.tmp")]:
        if old.name not in stay:
            _remove(old)
    return final


def _remove(path: Path) -> None:
    """Take a folder away whole: a process that is killed here leaves no half of it under its name."""
    aside = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.old.tmp")
    with contextlib.suppress(OSError):
        os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _before(folder: Path, newest: Path) -> list[Path]:
    """The checkpoints up to ``newest``, in their order. What is later was passed over by a resume, so it is damaged."""
    return sorted(path for path in folder.glob("step-*") if path.name <= newest.name)


def _write_files(beside: Path, checkpoint: Checkpoint) -> None:
    save_tensors(beside / "model.safetensors", checkpoint.weights)
    flat = {
        f"{key}/{name}": t for name, state in checkpoint.optimizer_state.items() for key, t in state.items()
    }
    save_tensors(beside / "optimizer.safetensors", flat)
    (beside / "state.json").write_text(json.dumps(checkpoint.state, indent=2))
    manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in [*beside.iterdir(), beside]:
        _sync(path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder; raises UserError if it is incomplete or does not match its manifest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            if _fingerprint(path / name) != expected:
                raise UserError(f"checkpoint {path} is damaged: {name} does not match its checksum")
        state = json.loads((path / "state.json").read_text())
        weights = safetensors.torch.load_file(path / "model.safetensors")
        flat = safetensors.torch.load_file(path / "optimizer.safetensors")
    except (OSError, ValueError, AttributeError, safetensors.SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(weights, _by_parameter(flat), state)


def _by_parameter(flat: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    states: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        key, slash, parameter = name.partition("/")
        if not slash:  # written before there were optimizers with several states: momentum by parameter name
            key, parameter = "momentum_buffer", name
        states.setdefault(parameter, {})[key] = tensor
    return states


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
    opened = os.open(path, os.O_RDONLY)  # a folder, too
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
