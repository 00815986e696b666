"""Portable checkpoints: a ``TrainState`` as full fp32 tensors and plain JSON, no pickle.

    checkpoints/step-00000120/model.safetensors      parameters and buffers by name
                              optimizer.safetensors  optimizer state, as STATE/PARAMETER (momentum_buffer/conv1.weight)
                              phase.safetensors      state of the phase, decisions of finished phases
                              state.json             format version, progress, data, recipe, energy, finished phases
                              manifest.json          sizes and sha256, written last
    checkpoints/latest                               name of the newest, moved last
    checkpoints/best                                 name of the best, where it is kept

A folder appears under its name only when it is whole. One that was damaged later is named and passed over. Entries of
other names are the user's.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from dist_prune.checkpoints.train_state import ModelState, OptimizerState, TrainState
from dist_prune.errors import UserError
from dist_prune.files import read_regular, remove_leftovers, save_tensors, temporary_beside, write_atomic


class UnusableCheckpoint(UserError):
    """A checkpoint that is whole and that this program cannot continue from."""


_TENSORS = ("model.safetensors", "optimizer.safetensors", "phase.safetensors")
_CHECKPOINT = re.compile(r"step-\d{8,}")


def save_checkpoint(
    folder: Path,
    state: TrainState,
    keep: int = 2,
    keep_best: bool = False,
    check_owner: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint below ``folder``, on one rank.

    The newest ``keep`` stay, and with ``keep_best`` that of the best step, where it is there. So do checkpoints of
    later steps, and all files of other names.

    Args:
        folder: the run's folder of checkpoints.
        state: what to write.
        keep: number of the newest checkpoints that stay.
        keep_best: whether that of the best step stays too.
        check_owner: raises if another invocation has continued the run meanwhile; called before each change.

    Raises:
        OSError, SafetensorError: it cannot be written; then older checkpoints are as they were, and nothing is left
            beside them.
    """
    final = folder / _name(state.progress.step)
    beside = temporary_beside(final)
    try:
        # Not its parents: where the run folder has been moved away, a new one would be in the way of its return.
        folder.mkdir(exist_ok=True)
        beside.mkdir()
        _write_files(beside, state)
        check_owner()
    except BaseException:
        # A full disk gets its room back.
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if final.exists():
        _remove(final)
    # The rename is the moment at which the checkpoint exists; before it, nothing of it is visible.
    os.replace(beside, final)
    _sync(folder)
    check_owner()
    write_atomic(folder / "latest", f"{final.name}\n".encode())
    # Later ones could not be read when this run was resumed. They may be intact all the same, so they stay.
    found = checkpoints_in(folder)
    earlier = found[: found.index(final) + 1]
    stay = set(earlier[-keep:])
    best = state.progress.best_step if keep_best else None
    if best is not None and (folder / _name(best)).exists():
        write_atomic(folder / "best", f"{_name(best)}\n".encode())
        stay.add(folder / _name(best))
    check_owner()
    for old in earlier:
        if old not in stay:
            _remove(old)
    # Of processes that were killed while they wrote.
    remove_leftovers(folder)
    return final


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in ``folder`` in the order of their steps; entries of other names are the user's."""
    # Not glob, which takes a folder that cannot be read for an empty one.
    names = filter(_CHECKPOINT.fullmatch, os.listdir(folder))
    return [folder / name for name in sorted(names, key=lambda name: int(name.removeprefix("step-")))]


def _remove(path: Path) -> None:
    """Remove a folder as a whole: a process that is killed here leaves no half of it under its name."""
    aside = temporary_beside(path)
    # Renamed first: a half-removed folder must not keep its name.
    with contextlib.suppress(OSError):
        os.replace(path, aside)
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
    """Read one checkpoint folder.

    Raises:
        UnusableCheckpoint: it is of another format, or cannot be read just now.
        UserError: it is incomplete or damaged.
    """
    try:
        manifest = json.loads(read_regular(path / "manifest.json"))
        if not isinstance(manifest, dict) or set(manifest) != {"state.json", *_TENSORS}:
            raise UserError(f"checkpoint {path} is damaged: its manifest does not name the files of a checkpoint")
        for name, expected in manifest.items():
            if _fingerprint(path / name) != expected:
                raise UserError(f"checkpoint {path} is damaged: {name} does not match its checksum")
        data = json.loads(read_regular(path / "state.json"))
        weights, flat, tensors = (safetensors.torch.load_file(path / name) for name in _TENSORS)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"checkpoint {path} is incomplete: {error}") from error
    except OSError as error:
        # No damage: a file system that hangs or refuses now may have it whole tomorrow.
        raise UnusableCheckpoint(
            f"checkpoint {path} cannot be read just now ({error.strerror}): try again once it can be"
        ) from error
    except (ValueError, RecursionError, safetensors.SafetensorError) as error:
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

    Raises:
        UserError: there are checkpoints, and none of them is whole; or the newest whole one is of another format (an
            older one would be, too), or cannot be read just now.
    """
    passed_over: list[str] = []
    for path in reversed(_checkpoints_or_none(folder)):
        try:
            return load_checkpoint(path), passed_over
        except UnusableCheckpoint:
            raise
        except UserError as error:
            passed_over.append(str(error))
    if passed_over:
        # To begin anew would overwrite records of hours, while a backup may have what is missing.
        raise UserError(
            f"none of the checkpoints in {folder} is whole ({passed_over[0]}): restore one, or begin anew with "
            "another --out"
        )
    return None, passed_over


def _checkpoints_or_none(folder: Path) -> list[Path]:
    """Return the checkpoints, none if there is no folder of checkpoints yet; raises UserError if it cannot be read."""
    try:
        return checkpoints_in(folder)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not folder.is_symlink():
            return []
        raise UserError(
            f"the checkpoints in {folder} cannot be listed ({error.strerror}): restore that folder, or remove it to "
            "begin anew"
        ) from error


def _fingerprint(path: Path) -> dict[str, Any]:
    content = read_regular(path)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(path: Path) -> None:
    # Folders too: without it, a power failure may lose the rename.
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
