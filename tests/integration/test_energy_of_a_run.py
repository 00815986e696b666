"""Energy from the counter to the report: a real run whose machine has a made-up RAPL counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import QUICK, records
from powercap import burning, make_zone

pytest.importorskip("zeus", reason="the extra 'energy' is not installed")

WATTS, LIMIT = 20.0, 60_000_000  # the counter begins anew every three seconds


def train_with_counters(folder: Path, words: list[str]) -> None:
    """Run the program of launch/train.py on a machine whose counters are in ``folder``."""
    from zeus.device.cpu import rapl

    from dist_prune.cli.main import train_main
    from dist_prune.measure import energy

    rapl.RAPL_DIR, energy.POLL_SECONDS = str(folder), 0.1
    train_main(words)


@pytest.fixture
def launch(forked_ranks, tmp_path):
    """Train on some ranks with a counter that rises; returns what rank 0 did and the joules that it rose by."""
    counter = make_zone(tmp_path / "rapl" / "intel-rapl:0", "package-0", LIMIT // 2, LIMIT)

    def run(*words: str, ranks: int, sensor: bool = True):
        rapl = tmp_path / ("rapl" if sensor else "nothing")
        given = ["--ds_config", "ds_configs/zero2.json", "--out", str(tmp_path / "run"), *words]
        with burning(counter, WATTS) as spent:
            given += ["--set", *QUICK, "grid_intensity=360"]
            done = forked_ranks(ranks, train_with_counters, rapl, given)
        return done[0], spent[0]

    return run


def test_two_ranks_of_one_machine_and_a_resumed_run_count_every_joule_once(launch, forked, tmp_path):
    first, spent_first = launch("--max_steps", "5", ranks=2)
    state = json.loads(next((tmp_path / "run" / "checkpoints").glob("step-*/state.json")).read_text())
    saved = state["energy_run"]
    assert 0 < saved["joules"] < spent_first, first.err
    second, spent_second = launch("--resume", ranks=2)
    assert second.code == 0, second.err
    (summary,) = records(tmp_path / "run", "summary")
    evals = records(tmp_path / "run", "eval")
    epochs = [record["energy_joules"] for record in evals]
    # Of the joules of both invocations, those of starting and ending a process are not the run's.
    seconds = summary["seconds_total"]
    assert summary["energy_joules"] == pytest.approx(WATTS * seconds, rel=0.25)
    assert saved["joules"] < epochs[0], "the epoch was begun by the first invocation"
    assert sum(epochs) <= summary["energy_joules"] < spent_first + spent_second
    assert [r["energy_joules_total"] for r in evals] == pytest.approx([epochs[0], sum(epochs)])
    assert {r["energy_ranks"] for r in [*evals, summary]} == {2}
    assert summary["energy_sensors"] == {"cpu": 1}
    assert summary["co2_grams"] == pytest.approx(summary["energy_joules"] / 1e4)
    assert " of 1 CPU package" in second.out
    assert "(at 360 g/kWh)" in second.out
    shown = forked("dist-prune", "report", tmp_path / "run", "--to_accuracy", "0.01")
    assert shown.code == 0, shown.err
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "not measured" not in page
    assert "energy to 1.0 %" in page


def test_a_run_of_which_a_part_was_not_measured_has_no_total(launch, tmp_path):
    launch("--max_steps", "5", ranks=1, sensor=False)
    second, _ = launch("--resume", ranks=1)
    assert second.code == 0, second.err
    first_epoch, second_epoch = records(tmp_path / "run", "eval")
    (summary,) = records(tmp_path / "run", "summary")
    assert (first_epoch["energy_joules"], first_epoch["energy_ranks"]) == (None, 0)
    assert second_epoch["energy_joules"] > 0
    assert (summary["energy_joules"], summary["energy_ranks"], summary["co2_grams"]) == (None, 0, None)
    assert "not measured" in second.out
