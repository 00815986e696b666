"""Fixtures of the fault-injection tests: ranks that end with the test, and the uninterrupted run to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drill import SETTINGS, STEPS, Ranks, Sabotage

PATIENCE = 900  # seconds for a drill: a busy machine is slow, and what has to be quick is measured by itself


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE))


@pytest.fixture(scope="session")
def launch(data_home, tmp_path_factory) -> Iterator[Callable[..., Ranks]]:
    """Start the ranks of a run in a folder; kill those that are left at the end of the session."""
    environment = pytest.MonkeyPatch()
    environment.setenv("DIST_PRUNE_DATA", str(data_home))
    environment.setenv("OMP_NUM_THREADS", "1")
    started: list[Ranks] = []

    def start(
        folder: Path,
        *words: str,
        world_size: int = 2,
        ds: str = "zero2",
        settings: tuple[str, ...] = (),
        sabotage: dict[int, Sabotage] | None = None,
        port: int | None = None,
    ) -> Ranks:
        given = ["--ds_config", f"ds_configs/{ds}.json", "--out", str(folder), *words]
        ranks = Ranks(folder, world_size, [*given, "--set", *SETTINGS, *settings], sabotage or {}, port)
        started.append(ranks)
        return ranks

    yield start
    for ranks in started:
        ranks.end()
    environment.undo()


@pytest.fixture(scope="session")
def straight(launch, tmp_path_factory) -> Path:
    """Return the folder of an uninterrupted run of two ranks, after ``STEPS`` steps."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    ranks = launch(folder, "--max_steps", str(STEPS))
    assert ranks.wait() == [3, 3], ranks.told()
    return folder


@pytest.fixture
def resume(launch) -> Callable[[Path], list[str]]:
    """Resume a run up to step ``STEPS`` and return its lines on standard error."""

    def resume_run(folder: Path, *words: str, **options) -> list[str]:
        from drill import load_newest

        found, _ = load_newest(folder / "checkpoints")
        done = found.progress.step if found else 0
        ranks = launch(folder, "--resume", "--max_steps", str(STEPS - done), *words, **options)
        assert ranks.wait() == [3] * len(ranks.processes), ranks.told()
        return ranks.told()

    return resume_run
