"""The commit on record is that of the project's own checkout, or there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dist_prune.training.run_folder import git_commit, package_versions

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with one commit."""
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*GIT, "-C", tmp_path, *words], check=True)
    return tmp_path


def commit_of(repository: Path) -> str:
    words = ["git", "-C", repository, "rev-parse", "HEAD"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_records_its_commit(repository):
    (repository / "pyproject.toml").touch()
    assert git_commit(repository) == commit_of(repository)


def test_an_installed_package_does_not_record_the_commit_of_the_repository_around_it(repository):
    site_packages = repository / ".venv" / "lib" / "site-packages"
    site_packages.mkdir(parents=True)
    assert git_commit(site_packages) is None


def test_a_copy_inside_another_repository_has_no_commit_of_its_own(repository):
    copy = repository / "third_party" / "dist_prune"
    copy.mkdir(parents=True)
    (copy / "pyproject.toml").touch()
    assert git_commit(copy) is None


def test_a_git_hook_does_not_put_its_repository_in_place_of_the_checkout(repository, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    subprocess.run([*GIT, "-C", other, "init", "-q"], check=True)
    subprocess.run([*GIT, "-C", other, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    (repository / "pyproject.toml").touch()
    expected = commit_of(repository)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_commit(repository) == expected


def test_a_folder_without_a_commit_records_none(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    assert git_commit(tmp_path) is None
    subprocess.run([*GIT, "-C", tmp_path, "init", "-q"], check=True)
    assert git_commit(tmp_path) is None


def test_versions_name_what_is_installed():
    versions = package_versions()
    assert versions["torch"]
    assert "deepspeed" in versions
