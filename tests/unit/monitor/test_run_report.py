"""The report holds everything that was recorded, says what was not, and trusts no text."""

import os
import re
from html.parser import HTMLParser

import pytest

from dist_prune.monitor.records import EVAL_KEYS, SUMMARY_KEYS, RunFolder
from dist_prune.monitor.report import write_report

SITES = ["stage1.block0", "<script>alert(1)</script>", "a&b"]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


@pytest.fixture
def run(tmp_path):
    run = RunFolder.create(tmp_path / "digits", resume=False)
    run.write_json(run.config, {"recipe": "digits", "note": "</pre><b>bold</b>"})
    run.write_status("running", last_step=20)
    return run


def evaluation(step, gates):
    record = {**dict.fromkeys(EVAL_KEYS), "epoch": step // 10, "step": step, "accuracy": 0.875}
    return {**record, "gate_means": dict.fromkeys(SITES, 0.5), "accuracy_consensus": 0.75} if gates else record


def test_a_finished_run_shows_results_sites_and_pictures(run):
    for step in (10, 20):
        run.append("eval", evaluation(step, gates=True))
    summary = {**dict.fromkeys(SUMMARY_KEYS), "accuracy": 0.9, "accuracy_sliced": 0.983, "macs": 41.22e6}
    run.append("summary", summary)
    run.write_status("done", last_step=20)
    site = {"kind": "channel", "units": 4, "mean_activation": 0.75, "kept": [0, 2, 3], "agreement": None}
    run.write_json(run.mask, {"sites": [{"name": name, **site} for name in SITES], "totals": {}})
    path = write_report(run)
    page = path.read_text("utf-8")
    assert path == run.report / "report.html"
    for text in ("98.3 %", "41.22 M MACs", "3 of 4", "75.0 %", "not measured", "a&amp;b", "stage1.block0"):
        assert text in page
    energy = re.search(r"<th>energy</th><td[^>]*>([^<]*)<", page)
    assert energy.group(1) == "not measured"
    assert "FLOP" not in page
    assert "unfinished" not in page
    assert page.count("data:image/png;base64,") == 3
    assert {file.name for file in run.report.iterdir()} == {
        "report.html",
        "mean_activation.png",
        "polarization.png",
        "curves.png",
    }


def test_names_and_settings_from_outside_never_become_markup(run):
    run.write_json(run.mask, {"sites": [{"name": name, "kind": "<i>", "units": 1} for name in SITES]})
    page = write_report(run).read_text("utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not {"script", "b", "i"} & set(Tags(page).found)


def test_an_unfinished_dense_run_says_so_and_has_no_pictures_of_gates(run):
    run.append("train", {"epoch": 1, "step": 10, "loss/total": 1.0})
    run.append("eval", evaluation(10, gates=False))
    run.write_status("stopped", reason="--max_hours 1", last_step=20)
    page = write_report(run).read_text("utf-8")
    assert "unfinished (--max_hours 1)" in page
    assert "87.5 %" in page
    assert "gates dynamic" not in page
    assert {file.name for file in run.report.iterdir()} == {"report.html", "curves.png"}


def test_a_run_that_has_recorded_nothing_yet_still_gets_a_page(run):
    page = write_report(run).read_text("utf-8")
    assert "unfinished" in page
    assert "<img" not in page


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        write_report(RunFolder(tmp_path / "nothing"))


def test_a_report_that_fails_leaves_the_last_one_whole(run, monkeypatch):
    before = write_report(run).read_text("utf-8")
    run.write_status("done", last_step=99)

    def refuse(*_):
        raise OSError("disk on fire")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="fire"):
        write_report(run)
    assert (run.report / "report.html").read_text("utf-8") == before
    assert [file.name for file in run.report.iterdir()] == ["report.html"]
