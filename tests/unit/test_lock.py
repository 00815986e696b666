"""requirements/lock.txt holds what pyproject.toml asks for on every Python, and nothing of the machine that made it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]


def locked(name: str) -> list[Requirement]:
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return [Requirement(line.rstrip("\\ ")) for line in lines if line and line[0] not in " #"]


def pins(python: str) -> dict[str, str]:
    """Versions that pip installs from the lock on 64-bit Linux, by canonical name."""
    machine = {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux", "extra": ""}
    environment = {**machine, "python_version": python, "python_full_version": f"{python}.5"}
    chosen = [r for r in locked("lock.txt") if r.marker is None or r.marker.evaluate(environment)]
    found = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in chosen}
    assert len(found) == len(chosen), "two versions of one package"
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_lock_fits_pyproject(python: str) -> None:
    versions = pins(python)
    wanted = PROJECT["dependencies"] + [
        line for extra in ("test", "lint") for line in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name), "0")
        assert requirement.specifier.contains(version), f"{requirement}: locked is {version}; run make lock"


def test_lock_covers_the_pythons_of_pyproject() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if supported.contains(f"3.{minor}.5")] == PYTHONS


@pytest.mark.parametrize("name", ["lock.txt", "build.txt"])
def test_every_version_is_exact_and_hashed(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert all(re.fullmatch(r"==[^=,*]+", str(requirement.specifier)) for requirement in locked(name))
    blocks = re.split(r"^(?=[a-zA-Z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked(name))
    assert all("--hash=sha256:" in block for block in blocks)
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash)", text, flags=re.MULTILINE), "an option, such as an index"


@pytest.mark.parametrize("target", ["train", "test"])
def test_a_fresh_machine_installs_the_lock_and_nothing_else(target: str) -> None:
    words = ["make", "--dry-run", "VENV=absent", target]
    plan = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in plan.splitlines() if " pip install " in line]
    assert any(line.endswith("-r requirements/lock.txt") for line in installs)
    # pip refuses whatever a file of hashes does not list.
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line] == []
