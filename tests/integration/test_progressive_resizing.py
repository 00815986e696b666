"""A run whose images grow: resumed exactly, and evaluated, priced and saved at the size of evaluation."""

from __future__ import annotations

import json

import pytest
from commands import records

from dist_prune import load_sliced
from dist_prune.measure.macs import count_macs

GROWING = (
    'image_size={"kind":"steps","values":[[0,6],[1,8]]}',
    "eval_size=10",
    "eval_crop=0.9",
    "interpolation=bicubic",
    "augment.random_resized_crop=true",
    "global_batch_size=512",
)


def test_a_run_with_growing_images_resumes_exactly_and_is_evaluated_at_its_own_size(train, forked, tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train("--out", straight, settings=GROWING).code == 0
    for words, code in ((("--max_steps", "3"), 3), (("--resume",), 0)):  # in the second epoch
        done = train("--out", stopped, *words, settings=GROWING)
        assert done.code == code, done.err
    for a, b in zip(records(straight, "train"), records(stopped, "train"), strict=True):
        assert b["loss/total"] == pytest.approx(a["loss/total"], rel=1e-6), f"step {a['step']}"
    config = json.loads((straight / "sliced" / "config.json").read_text())
    assert (config["input_shape"], config["resized_side"], config["interpolation"]) == ([1, 10, 10], 11, "bicubic")
    (summary,) = records(straight, "summary")
    assert summary["macs"] == count_macs(load_sliced(straight / "sliced"), (1, 10, 10))
    shown = forked("dist-prune", "evaluate", straight)
    assert shown.code == 0, shown.err
    assert f"accuracy  {summary['accuracy_sliced']}\n" in shown.out


def test_a_network_of_one_size_is_refused_before_the_run_leaves_anything(train, tmp_path):
    vit = 'model_args={"img_size":8,"patch_size":4,"depth":1,"embed_dim":32,"num_heads":2}'
    out = tmp_path / "run"
    done = train("--out", out, settings=("model=timm/vit_tiny_patch16_224", vit, *GROWING[:1]))
    assert done.code == 2, done.err
    assert "takes no images of 6 x 6 pixels, which image_size and eval_size ask for" in done.lines[-1]
    assert not out.exists()
