"""A request to stop that reaches one rank saves and stops all of them; the resumed run equals the uninterrupted one."""

from __future__ import annotations

import signal

import pytest
from drill import AtStep, SignalToSelf, assert_same_course, status

pytestmark = pytest.mark.drill


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_one_rank_stops_and_saves_all(launch, resume, straight, tmp_path, number):
    folder = tmp_path / "run"
    ranks = launch(folder, sabotage={1: AtStep(4, SignalToSelf(number))})
    assert ranks.wait() == [3, 3], ranks.told()
    assert ranks.told() == []
    assert status(folder)["state"] == "stopped"
    assert status(folder)["last_step"] == 4, "the step in which it came"
    resume(folder)
    assert_same_course(folder, straight)
