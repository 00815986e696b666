"""Data are identified by their fingerprint: a run continues, and is collapsed, wherever data and user are."""

from __future__ import annotations

import json
import os

from commands import ROOT

from data_tools import make_shards


def test_a_run_continues_with_moved_data_and_is_collapsed_from_another_folder(train, forked, tmp_path):
    make_shards("digits", None, tmp_path / "shards")
    run = tmp_path / "run"
    relative = os.path.relpath(tmp_path / "shards", ROOT)
    # Position does nothing for layer gates, which the first line says.
    done = train("--data", relative, "--out", run, "--max_steps", "3", settings=("gates.position=after",))
    assert done.code == 3, done.err
    assert "gates.position has no effect: gates.kind is not channel" in done.out + done.err
    recorded = json.loads((run / "config.json").read_text())["config"]
    assert recorded["data"]["location"] == str(tmp_path / "shards")

    collapsed = forked("dist-prune", "collapse", run, "--out", tmp_path / "out", cwd=tmp_path)
    assert collapsed.code == 0, collapsed.err

    (tmp_path / "shards").rename(tmp_path / "moved")
    words = ("--data", tmp_path / "moved", "--out", run, "--resume", "--max_steps", "1")
    done = train(*words, settings=("gates.position=after",))
    assert done.code == 3, done.err
    recorded = json.loads((run / "config.json").read_text())["config"]
    assert recorded["data"]["location"] == str(tmp_path / "moved")
