"""The folder of a run: created, locked for one run at a time, and with a record of what made the run."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dist_prune import distributed
from dist_prune.config import RunConfig
from dist_prune.data.locate import absolute
from dist_prune.errors import UserError
from dist_prune.files import remove_leftovers
from dist_prune.monitor.records import RunFolder
from dist_prune.runtime.run_lock import SILENCE, RunLock
from dist_prune.training.context import RunContext

_PACKAGES = ("dist-prune", "torch", "torchvision", "deepspeed", "webdataset", "numpy")
_ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def open_run_folder(config: RunConfig, out: str | None, resume: bool) -> Iterator[tuple[RunFolder, bool]]:
    """Create and lock the run folder on rank 0; return it and True if its run is finished.

    Every rank gets the same, or the same error. out: its path; None: one for the recipe's name and the time.
    """
    path, done, problem = out or f"runs/{config.name}-{time.strftime('%Y%m%d-%H%M%S')}", False, None
    lock = None
    if distributed.is_main():
        try:
            folder = RunFolder.create(path, resume)
            # The other ranks wait meanwhile, at most rank_timeout.
            lock = RunLock.acquire(path, silence=min(SILENCE, config.rank_timeout / 2))
            for place in (folder.path, folder.checkpoints):
                remove_leftovers(place)
            done = (folder.read_status() or {}).get("state") == "done"
            # Rank 0 alone would meet a damaged record later, when the others no longer expect an error.
            folder.read_metrics("summary")
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot write to the run folder {path}: {error.strerror}"
        except ValueError as error:
            problem = f"the run folder is damaged: {error}; fix or remove that to continue the run"
    path, done, problem, invocation = distributed.broadcast_object((path, done, problem, lock and lock.invocation))
    with lock or RunLock(path, invocation) as lock:
        if problem:
            raise UserError(problem)
        yield RunFolder(path, lock.check), done


def record_of(context: RunContext) -> dict[str, Any]:
    """Return the content of config.json."""
    config = context.config.model_dump(mode="json")
    # Offline commands may be started in another folder.
    config["data"]["location"] = absolute(config["data"]["location"])
    config["eval_data"] = config["eval_data"] and absolute(config["eval_data"])
    if isinstance(config["data"]["classes"], str):
        config["data"]["classes"] = os.path.abspath(config["data"]["classes"])
    if config["cache"]["folder"]:
        config["cache"]["folder"] = os.path.abspath(config["cache"]["folder"])
    return {
        "config": config,
        "ds_config": context.ds_config,
        "batching": asdict(context.batching),
        "world_size": distributed.world_size(),
        "device": str(context.device.type),
        "versions": package_versions(),
        "git_commit": git_commit(),
    }


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that can change results; None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit(root: Path = _ROOT) -> str | None:
    """Return the commit of the checkout ``root`` that the package runs from; None if it was installed otherwise."""
    # In site-packages there is no pyproject.toml. A virtual environment often lies inside a repository of the user's,
    # and git would then answer with the commit of that.
    if not (root / "pyproject.toml").is_file():
        return None
    # A git hook that starts a run sets GIT_DIR and the like, which would name its own repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    top, _, commit = found.stdout.strip().partition("\n")
    # A source tree that was copied into another repository has no commit of its own.
    if found.returncode or not Path(top).samefile(root):
        return None
    return commit
