"""checkpoint_activations=true: the run is the one without, in less memory."""

import json

import pytest
from commands import records
from ranks import run_ranks
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from dist_prune.config import override
from dist_prune.recipes import recipe


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


def convolutions(folder: str, value: str) -> int:
    """Forward passes of convolutions in two steps of training."""
    from dist_prune.training.run import Options, run

    computed: list[nn.Module] = []
    register_module_forward_hook(
        lambda module, *_: computed.append(module) if module.training and isinstance(module, nn.Conv2d) else None
    )
    config = override(recipe("digits"), ["model=resnet8", "workers=0", f"checkpoint_activations={value}"])
    run(config, Options("ds_configs/zero0.json", out=folder, max_steps=2))
    return len(computed)


@pytest.mark.parametrize(("value", "passes"), [("false", 1 + 8), ("true", 1 + 2 * 8)])
def test_the_blocks_of_a_run_are_computed_again_in_backward_if_the_recipe_says_so(value, passes, tmp_path, data_folder):
    assert run_ranks(1, convolutions, str(tmp_path / "run"), value) == [2 * passes]
