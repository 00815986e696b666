"""Training may have other image sizes than evaluation where the network takes them."""

import pytest

from dist_prune import UserError
from dist_prune.config import GatesConfig, RunConfig
from dist_prune.gates.gate import Gate
from dist_prune.measure.macs import count_macs
from dist_prune.methods import METHODS, Task


def task(model: str, sides: tuple[int, ...], gates: GatesConfig | None = None) -> Task:
    """A task that is evaluated at the first side, and trained at the others."""
    config = RunConfig(name="test", data="none", model=model, gates=gates or GatesConfig(), epochs=3)
    shapes = tuple((3, side, side) for side in sides)
    return Task(config, 10, shapes[0], shapes[1:])


@pytest.mark.parametrize("model", ["timm/vit_tiny_patch16_224", "vit_b_16"])
def test_a_network_that_takes_one_size_is_refused_before_a_run_begins(model):
    task(model, (224,)).check_shapes()
    with pytest.raises(UserError, match=f"{model} takes no images of 176 x 176 pixels, which image_size and eval_size"):
        task(model, (224, 176)).check_shapes()


def test_a_network_that_ends_in_a_mean_takes_any_size_and_is_priced_at_that_of_evaluation():
    method = METHODS["consensus"](task("resnet8", (24, 16, 20)))
    method.check()
    assert method.costs.dense == count_macs(method.task.build(), (3, 24, 24))


def test_channel_gates_read_pooled_maps_where_sizes_differ():
    def flattens(sides: tuple[int, ...], **options) -> set[bool]:
        gates = GatesConfig(kind="channel", hidden=1, **options)
        module = next(METHODS["consensus"](task("resnet8", sides, gates)).phases()).module
        return {gate.flatten for gate in module.modules() if isinstance(gate, Gate)}

    assert (flattens((8,)), flattens((8, 12))) == ({True}, {False})
    with pytest.raises(UserError, match=r"gates.flatten=true needs images of one size"):
        flattens((8, 12), flatten=True)
