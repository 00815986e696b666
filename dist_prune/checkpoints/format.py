"""Portable checkpoints: a ``TrainState`` as full fp32 tensors and plain JSON, no pickle.

    checkpoints/step-00000120/model.safetensors      parameters and buffers by name
                              optimizer.safetensors  optimizer state, as STATE/PARAMETER (momentum_buffer/conv1.weight)
                              phase.safetensors      state of the phase, decisions of finished phases
                              state.json             format version, progress, data, energy, finished phases
                              manifest.json          sizes and sha256, written last
    checkpoints/latest                               name of the newest, moved last
    checkpoints/best                                 name of the best, where it is kept

A folder appears under its name only when it is whole. One that was damaged later is named and passed over.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from dist_prune.checkpoints.train_state import ModelState, OptimizerState, TrainState
from dist_prune.errors import UserError
from dist_prune.files import save_tensors, write_atomic


class UnusableCheckpoint(UserError):
    """A checkpoint that is whole and that this program cannot continue from."""


def save_checkpoint(folder: Path, state: TrainState, keep: int = 2, keep_best: bool = False) -> Path:
    """Write a checkpoint below ``folder``, on one rank.

    The newest ``keep`` stay, and with ``keep_best`` that of the best step, where it is there. Raises OSError or
    SafetensorError if it cannot be written; then older checkpoints are as they were, and nothing is left beside them.
    """
    final = folder / _name(state.progress.step)
    beside = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        _write_files(beside, state)
    except BaseException:
        # A full disk gets its room back.
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if final.exists():
        _remove(final)
    # The rename is the moment at which the checkpoint exists; before it, nothing of it is visible.
    os.replace(beside, final)
    _sync(folder)
    write_atomic(folder / "latest", f"{final.name}\n".encode())
    # Later ones were passed over by a resume, so they are damaged.
    stay = set(sorted(path.name for path in folder.glob("step-*") if path.name <= final.name)[-keep:])
    best = state.progress.best_step if keep_best else None
    if best is not None and (folder / _name(best)).exists():
        write_atomic(folder / "best", f"{_name(best)}\n".encode())
        stay.add(_name(best))
    # Leftovers of killed processes go too: unfinished checkpoints, and files of one line.
    for old in [*folder.glob("step-*"), *folder.glob(".*.tmp")]:
        if old.name not in stay:
            _remove(old)
    return final


def _remove(path: Path) -> None:
    """Remove a folder or a file as a whole: a process that is killed here leaves no half of it under its name."""
    aside = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.old.tmp")
    # Renamed first: a half-removed folder must not keep its name.
    with contextlib.suppress(OSError):
        os.replace(path, aside)
        if aside.is_file():
            aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write_files(beside: Path, state: TrainState) -> None:
    optimizer_state = state.model.optimizer_state
    flat = {f"{key}/{name}": t for name, states in optimizer_state.items() for key, t in states.items()}
    save_tensors(beside / "model.safetensors", state.model.weights)
    save_tensors(beside / "optimizer.safetensors", flat)
    save_tensors(beside / "phase.safetensors", state.tensors())
    (beside / "state.json").write_text(json.dumps(state.as_json(), indent=2))
    # Last, so that a folder without a manifest is known to be incomplete.
    manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in [*beside.iterdir(), beside]:
        _sync(path)


def load_checkpoint(path: Path) -> TrainState:
    """Read one checkpoint folder; raises UserError if it is incomplete, damaged or of another format."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            if _fingerprint(path / name) != expected:
                raise UserError(f"checkpoint {path} is damaged: {name} does not match its checksum")
        data = json.loads((path / "state.json").read_text())
        weights, flat, tensors = (
            safetensors.torch.load_file(path / f"{name}.safetensors") if f"{name}.safetensors" in manifest else {}
            for name in ("model", "optimizer", "phase")
        )
    except (OSError, ValueError, AttributeError, RecursionError, safetensors.SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    try:
        return TrainState.restore(data, tensors, ModelState(weights, _by_parameter(flat)))
    except UserError as error:
        raise UnusableCheckpoint(f"checkpoint {path} cannot be used: {error}") from error


def _by_parameter(flat: dict[str, Tensor]) -> OptimizerState:
    states: OptimizerState = {}
    for name, tensor in flat.items():
        key, _, parameter = name.partition("/")
        states.setdefault(parameter, {})[key] = tensor
    return states


def load_newest(folder: Path) -> tuple[TrainState | None, list[str]]:
    """Return the newest checkpoint below ``folder`` that is whole, and a line about each newer one that is not.

    Raises UserError if the newest whole one is of another format: an older one would be, too.
    """
    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return load_checkpoint(path), passed_over
        except UnusableCheckpoint:
            raise
        except UserError as error:
            passed_over.append(str(error))
    return None, passed_over


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _sync(path: Path) -> None:
    # Folders too: without it, a power failure may lose the rename.
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
