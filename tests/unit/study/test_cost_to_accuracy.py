"""Time and energy to an accuracy: dense against one pass, "not measured" where there was no sensor."""

import pytest
from study_runs import make_run

from dist_prune import UserError
from dist_prune.cli.main import COMMANDS
from dist_prune.monitor.report import reached, total_joules

# The synthetic runs reach 0.5 of their accuracy after 2 of 4 epochs of 100 s, and 0.92 of it after 3.


def cells(folder, group):
    lines = (folder / "comparison.md").read_text().split("## Time and energy")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    (found,) = (row for row in rows if row[0] == group)
    return dict(zip(rows[0], found, strict=True))


@pytest.fixture
def study(tmp_path):
    """One pass and dense; `write(joules_dense, joules_half)` makes the runs, None where nothing was measured."""

    def write(dense, half, **more):
        runs = [
            make_run(tmp_path / "dense", name="dense", gated=False, ratio=1.0, accuracy=0.8, joules=dense, epochs=4),
            make_run(tmp_path / "half1", accuracy=0.9, joules=half, seed=1),
            make_run(tmp_path / "half2", accuracy=0.9, joules=half, seed=2, **more),
        ]
        COMMANDS["report"]([*map(str, runs), "--out", str(tmp_path / "out"), "--to_accuracy", "0.7"])
        return tmp_path / "out"

    return write


def test_time_and_energy_to_an_accuracy_are_given_against_dense(study):
    folder = study(2000.0, 1500.0)
    assert cells(folder, "dense") == {
        "group": "dense", "reached by": "1 of 1", "epochs": "3.0", "time (s)": "300", "time / dense": "1.00",
        "energy (kJ)": "6.00", "energy / dense": "1.00", "MACs then / dense (%)": "100.0",
    }  # fmt: skip
    half = cells(folder, "half")
    assert (half["reached by"], half["time (s)"], half["time / dense"]) == ("2 of 2", "300 ± 0", "1.00")
    assert (half["energy (kJ)"], half["energy / dense"]) == ("4.50 ± 0.00", "0.75")
    assert "Time and energy to 70.0 %" in (folder / "comparison.html").read_text()


@pytest.mark.parametrize(("dense", "half"), [(None, 1500.0), (2000.0, None), (None, None)])
def test_what_had_no_sensor_is_not_measured_and_has_no_ratio(study, dense, half):
    folder = study(dense, half)
    row = cells(folder, "half")
    assert row["energy / dense"] == "not measured"
    assert (row["energy (kJ)"] == "not measured") == (half is None)
    assert (cells(folder, "dense")["energy (kJ)"] == "not measured") == (dense is None)
    assert row["time / dense"] == "1.00"


def test_who_never_comes_so_far_has_not_reached_it_and_unfinished_runs_do_not_count(tmp_path):
    runs = [make_run(tmp_path / "low", accuracy=0.6, joules=10.0)]
    runs += [make_run(tmp_path / "high", name="high", accuracy=0.9, joules=10.0)]
    runs += [make_run(tmp_path / "begun", name="high", accuracy=0.9, seed=2, evaluated=3, finished=False)]
    COMMANDS["report"]([*map(str, runs), "--out", str(tmp_path / "out"), "--to_accuracy", "0.7"])
    low, high = (cells(tmp_path / "out", name) for name in ("half", "high"))
    assert low["reached by"] == "0 of 1"
    assert {low[key] for key in ("time (s)", "energy (kJ)", "energy / dense")} == {"not reached"}
    assert high["reached by"] == "1 of 1"


def test_the_page_of_one_run_says_it_too(tmp_path):
    run = make_run(tmp_path / "run", accuracy=0.9, joules=1000.0)
    COMMANDS["report"]([str(run), "--to_accuracy", "0.7"])
    page = (run / "report" / "report.html").read_text()
    assert "<th>time to 70.0 %</th>" in page
    assert "3.00 kJ (0.83 Wh)" in page


def test_gated_networks_count_as_they_would_be_collapsed():
    evals = [{"epoch": 1, "seconds": 9.0, "accuracy": 0.8, "accuracy_consensus": 0.3, "energy_joules": 1.0}]
    assert reached(evals, 0.5) is None
    assert reached([*evals, {**evals[0], "epoch": 2, "accuracy_consensus": 0.5}], 0.5).joules == 2.0


def test_an_epoch_that_was_not_measured_leaves_no_sum():
    assert total_joules([{"energy_joules": 1.0}, {"energy_joules": None}]) is None
    assert total_joules([]) is None


@pytest.mark.parametrize("accuracy", ["90", "0", "much"])
def test_an_accuracy_is_a_fraction(tmp_path, accuracy):
    with pytest.raises(UserError, match=r"a fraction such as 0\.9"):
        COMMANDS["report"]([str(make_run(tmp_path / "run")), "--to_accuracy", accuracy])
