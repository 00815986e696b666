"""Provenance of a run: the package versions and the commit that config.json records."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("dist-prune", "torch", "torchvision", "deepspeed", "webdataset", "numpy")
_ROOT = Path(__file__).resolve().parents[2]


def package_versions() -> dict[str, str | None]:
    """Return the installed version of each package that can change results; None for one that is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit(root: Path = _ROOT) -> str | None:
    """Return the commit of the checkout that the package runs from; None if it was installed in another way.

    Args:
        root: folder that holds the package.
    """
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
