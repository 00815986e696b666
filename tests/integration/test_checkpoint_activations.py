"""checkpoint_activations=true: the run is the one without, in less memory."""

import json

import pytest
from commands import records


def test_a_run_has_the_losses_and_the_mask_of_the_run_that_keeps_its_activations(train, tmp_path):
    folders = {}
    for value in ("false", "true"):
        folders[value] = tmp_path / value
        done = train("--out", folders[value], settings=("target_macs=0.6", f"checkpoint_activations={value}"))
        assert done.code == 0, done.err
    plain, checkpointed = (records(folders[value], "train") for value in ("false", "true"))
    assert len(plain) == len(checkpointed) > 10
    for one, two in zip(plain, checkpointed, strict=True):
        assert two["loss/total"] == pytest.approx(one["loss/total"], rel=1e-4), one["step"]
    masks = [
        [site["kept"] for site in json.loads((folder / "mask.json").read_text())["sites"]]
        for folder in folders.values()
    ]
    assert masks[0] == masks[1]
