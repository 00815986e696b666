"""A comparison holds every run, says what was not measured, and refuses in one line what it cannot compare."""

import json
import shutil
from html.parser import HTMLParser

import pytest
from study_runs import make_run, naive_entries

from dist_prune.cli.runs import report
from dist_prune.errors import UserError
from dist_prune.monitor.formatting import spread
from dist_prune.study.comparison import write_comparison

NAN = float("nan")


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    return [
        make_run(folder / "dense", name="dense", gated=False, ratio=1.0, accuracy=0.84),
        make_run(folder / "half1", seed=1, accuracy=0.81),
        make_run(folder / "half2", seed=2, accuracy=0.83),
    ]


def rows(path, title):
    """The rows of one Markdown table, each {head: cell}."""
    lines = path.read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return [dict(zip(table[0], cells, strict=True)) for cells in table[2:]]


def test_a_comparison_lies_beside_its_runs_with_tables_page_and_pictures(runs):
    page = write_comparison(runs)
    folder = runs[0].parent / "report-comparison"
    assert page == folder / "comparison.html"
    assert {path.name for path in folder.iterdir()} == {
        "comparison.html",
        "comparison.md",
        "trade-off.png",
        "mean_activation.png",
        "distribution.png",
    }
    text = page.read_text("utf-8")
    assert text.count("data:image/png;base64,") == 3
    assert "82.00 ± 1.41" in text
    assert "FLOP" not in text


def test_the_table_of_groups_has_means_deviations_and_the_difference_to_dense(runs, tmp_path):
    write_comparison(runs, tmp_path / "out")
    dense, half = rows(tmp_path / "out" / "comparison.md", "Groups")
    assert half == {
        "group": "half",
        "seeds": "1, 2",
        "accuracy (%)": "82.00 ± 1.41",
        "difference": "-2.00",
        "MACs (M)": "20.00 ± 0.00",
        "MACs, sliced / dense (%)": "50.0 ± 0.0",
        "parameters (k)": "135.0 ± 0.0",
        "gates open (%)": half["gates open (%)"],
        "R_polar": half["R_polar"],
        "agreement (%)": "99.90 ± 0.00",
        "energy (kJ)": "not measured",
        "training (s)": "500 ± 0",
    }
    assert dense["accuracy (%)"] == "84.00", "one run has no deviation"
    assert dense["difference"] == "0 (dense)"
    assert {dense[key] for key in ("gates open (%)", "R_polar", "agreement (%)")} == {"not measured"}


def test_without_a_dense_group_the_difference_is_not_measured(runs, tmp_path):
    write_comparison(runs[1:], tmp_path / "out")
    (half,) = rows(tmp_path / "out" / "comparison.md", "Groups")
    assert half["difference"] == "not measured"


def test_a_group_as_accurate_as_the_dense_one_differs_by_no_negative_zero(runs, tmp_path):
    equal = make_run(runs[0].parent / "equal", accuracy=0.84)
    write_comparison([runs[0], equal], tmp_path / "out")
    assert rows(tmp_path / "out" / "comparison.md", "Groups")[1]["difference"] == "+0.00"


def test_an_unfinished_run_is_listed_as_such_with_what_it_has(runs, tmp_path):
    started = make_run(runs[0].parent / "half3", seed=3, accuracy=0.1, evaluated=1, finished=False)
    page = write_comparison([*runs, started], tmp_path / "out")
    _, half = rows(tmp_path / "out" / "comparison.md", "Groups")
    assert half["seeds"] == "1, 2, 3 (unfinished)"
    assert half["accuracy (%)"] == "82.00 ± 1.41"
    row = rows(tmp_path / "out" / "comparison.md", "Runs")[-1]
    assert (row["run"], row["state"], row["epochs"]) == ("half3", "unfinished", "1 of 4")
    assert row["accuracy, sliced (%)"] == "not measured"
    assert "1 unfinished, excluded from all means" in page.read_text("utf-8")


def test_naive_baselines_get_a_table_where_there_are_some(runs, tmp_path):
    write_comparison(runs, tmp_path / "without")
    assert "Naive" not in (tmp_path / "without" / "comparison.md").read_text("utf-8")
    (runs[0] / "naive.json").write_text(json.dumps(naive_entries()))
    write_comparison(runs, tmp_path / "with")
    dropout, *_, layers = rows(tmp_path / "with" / "comparison.md", "Naive baselines")
    assert dropout == {
        "baseline": "naive dropout",
        "share (%)": "20",
        "draws": "2",
        "accuracy (%)": "57.00 ± 1.41",
        "MACs, kept / dense (%)": "not reduced",
    }
    assert (layers["share (%)"], layers["MACs, kept / dense (%)"]) == ("50", "50.0 ± 0.0")


def test_one_run_can_be_compared_with_nothing(runs, tmp_path):
    write_comparison(runs[1:2], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"comparison.html", "comparison.md", "mean_activation.png", "distribution.png"}


def test_an_earlier_comparison_among_the_folders_is_passed_over(runs):
    write_comparison(runs)
    again = write_comparison(sorted(runs[0].parent.iterdir()))
    assert "3 runs in 2 groups" in again.read_text("utf-8")


def test_names_from_outside_never_become_markup(tmp_path):
    name = "<script>alert(1)</script>|<b>"
    runs = [make_run(tmp_path / f"a|b<i>{seed}", name=name, seed=seed) for seed in (1, 2)]
    page = write_comparison(runs, tmp_path / "out")
    assert not {"script", "b", "i"} & set(Tags(page.read_text("utf-8")).found)
    text = (tmp_path / "out" / "comparison.md").read_text("utf-8")
    assert "<script>" not in text
    assert "\\|" in text


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (shutil.rmtree, "half2 holds no run"),
        (lambda run: (run / "metrics.jsonl").unlink(), "half2 is unfinished and has no evaluation yet"),
        (lambda run: (run / "config.json").write_text("{"), "half2/config.json is not JSON"),
        (lambda run: (run / "config.json").write_text("[]"), "half2/config.json is not the configuration"),
        (lambda run: (run / "naive.json").write_text("[1]"), "half2/naive.json is not a list of baselines"),
    ],
)
def test_a_folder_that_cannot_be_compared_is_named_in_one_line(runs, tmp_path, break_it, expected):
    break_it(runs[2])
    with pytest.raises(UserError) as refusal:
        report([*map(str, runs), "--out", str(tmp_path / "out")])
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists(), "a refused comparison leaves nothing behind"


def test_a_folder_given_twice_or_an_out_that_is_a_file_is_one_line(runs, tmp_path):
    with pytest.raises(UserError, match=r"half1 is given twice$"):
        report([*map(str, runs), str(runs[1])])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cannot make the folder .*file: File exists$"):
        report([*map(str, runs), "--out", str(tmp_path / "file")])


def test_the_command_reports_one_run_into_its_folder_and_compares_several(runs, capsys):
    report([str(runs[1])])
    assert capsys.readouterr().out.strip() == str(runs[1] / "report" / "report.html")
    report([str(run) for run in runs])
    printed = capsys.readouterr().out.strip()
    assert printed == str(runs[0].parent / "report-comparison" / "comparison.html")


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (spread(NAN, NAN, 100), "not measured"),
        (spread(0.82, NAN, 100), "82.00"),
        (spread(0.82, 0.0031, 100), "82.00 ± 0.31"),
        (spread(0.99996, NAN, 100), "99.996"),
        (spread(1.0, NAN, 100), "100.00"),
        (spread(0.0, NAN, 100, digits=1), "0.0"),
        (spread(0.00002, 0.00001, digits=4), "0.00002 ± 0.00001"),
    ],
)
def test_means_and_deviations_read_well(shown, expected):
    assert shown == expected
